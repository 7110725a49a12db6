//! "Did you mean": the nearest of some names.

/// The name that is at most two edits away (one, for short texts), letter case aside.
pub fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = if text.len() <= 4 { 1 } else { 2 };
    // Long texts are no misprints, and distances cost their product.
    if text.len() > 64 {
        return None;
    }
    names
        .map(|name| (distance(&text.to_ascii_lowercase(), &name.to_ascii_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let substitution = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_near_field_and_no_far_one() {
        let fields = ["ingress", "egress", "podSelector"];
        assert_eq!(nearest("ingres", fields.into_iter()), Some("ingress"));
        assert_eq!(nearest("podselector", fields.into_iter()), Some("podSelector"));
        assert_eq!(nearest("containers", fields.into_iter()), None);
        assert_eq!(nearest("to", ["from"].into_iter()), None);
    }
}
