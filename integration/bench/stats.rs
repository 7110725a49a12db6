//! Medians and percentiles.

/// The value below which `share` (0 to 1) of the samples lie. Sorts.
///
/// # Panics
/// Without samples: a measurement that measured nothing is a broken bench, not a zero.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    assert!(!samples.is_empty(), "no samples");
    samples.sort_unstable_by(f64::total_cmp);
    let rank = (share * (samples.len() - 1) as f64).round() as usize;
    samples[rank]
}

/// The middle of the samples.
pub fn median(samples: &[f64]) -> f64 {
    percentile(&mut samples.to_vec(), 0.5)
}

/// Median of the ratios of runs that stand beside each other: what the machine does to both of a round
/// cancels out.
pub fn paired_ratio(of: &[f64], to: &[f64]) -> f64 {
    assert_eq!(of.len(), to.len(), "rounds");
    let ratios: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
    median(&ratios)
}

/// Runs `round` this often, with the alternatives in another order each time, so that none is always
/// the one that comes after the others have warmed (or heated) the machine.
pub fn interleaved<E>(
    rounds: usize,
    alternatives: usize,
    mut run: impl FnMut(usize) -> Result<(), E>,
) -> Result<(), E> {
    for round in 0..rounds {
        (0..alternatives).try_for_each(|step| run((step + round) % alternatives))?;
    }
    Ok(())
}
