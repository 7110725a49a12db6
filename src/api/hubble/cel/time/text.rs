//! Times and durations as text: RFC 3339, and what Go's `time.ParseDuration` reads.

use std::fmt;

use jiff::fmt::temporal::Pieces;

use super::{EPOCH, SECOND, Span, Time};

/// Digits after the point that can matter: those of an hour in nanoseconds, and some.
const FRACTION: usize = 15;

impl Time {
    /// `2023-11-14T22:13:20.5Z`, `2023-11-14T23:13:20+01:00`.
    pub fn parse(text: &str) -> Option<Time> {
        if !is_rfc3339(text.as_bytes()) {
            return None;
        }
        let pieces = Pieces::parse(text).ok()?;
        let civil = pieces.date().to_datetime(pieces.time()?);
        let east = pieces.to_numeric_offset()?.seconds();
        Time::of(Some(civil.duration_since(EPOCH).as_nanos() - i128::from(east) * SECOND)).ok()
    }
}

/// The reader knows more forms: without separators, without minutes, with the name of a zone.
fn is_rfc3339(text: &[u8]) -> bool {
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let is_like = |(byte, like): (&u8, &u8)| match like {
        b'd' => byte.is_ascii_digit(),
        _ => byte.eq_ignore_ascii_case(like),
    };
    let Some((clock, rest)) = text.split_at_checked(shape.len()) else { return false };
    let zone = match rest {
        [.., b'Z' | b'z'] => 1,
        [.., b'+' | b'-', _, _, b':', _, _] => 6,
        _ => return false,
    };
    clock.iter().zip(shape).all(is_like)
        && match &rest[..rest.len() - zone] {
            [] => true,
            [b'.', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let civil = self.civil(0).map_err(|_| fmt::Error)?;
        write!(f, "{}", civil.strftime("%Y-%m-%dT%H:%M:%S"))?;
        fraction(f, self.nanos().unsigned_abs())?;
        f.write_str("Z")
    }
}

impl Span {
    /// `1h30m`, `-1.5s`, `20ms`, `0`.
    pub fn parse(text: &str) -> Option<Span> {
        let (sign, mut rest) = match text.as_bytes().first()? {
            b'-' => (-1, &text[1..]),
            b'+' => (1, &text[1..]),
            _ => (1, text),
        };
        if rest == "0" {
            return Some(Span(0));
        }
        if rest.is_empty() {
            return None;
        }
        let mut nanos = 0_i128;
        while !rest.is_empty() {
            let (part, after) = one(rest)?;
            nanos = nanos.checked_add(part)?;
            rest = after;
        }
        Span::of(sign * nanos).ok()
    }
}

/// One number with its unit, and what comes after it.
fn one(text: &str) -> Option<(i128, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (unit, rest) =
        rest.split_at(rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len()));
    let unit: i128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3600 * SECOND,
        _ => return None,
    };
    let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
    let fraction = &fraction[..fraction.len().min(FRACTION)];
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    Some((i128::from(number(whole)?) * unit + i128::from(number(fraction)?) * unit / scale, rest))
}

impl fmt::Display for Span {
    /// In seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}", nanos / 1_000_000_000)?;
        fraction(f, u32::try_from(nanos % 1_000_000_000).unwrap_or_default())?;
        f.write_str("s")
    }
}

/// Nanoseconds as a fraction without zeros at its end.
fn fraction(f: &mut fmt::Formatter<'_>, nanos: u32) -> fmt::Result {
    if nanos == 0 {
        return Ok(());
    }
    write!(f, ".{}", format!("{nanos:09}").trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, written) in [
            ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z"),
            ("2023-11-14T22:13:20.500Z", "2023-11-14T22:13:20.5Z"),
            ("2023-11-14t23:13:20.000000080+01:00", "2023-11-14T22:13:20.00000008Z"),
            ("2023-11-14T20:43:20-01:30", "2023-11-14T22:13:20Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999999Z"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(Time::parse(text).unwrap().to_string(), written, "{text}");
        }
        for text in [
            "",
            "2023-11-14",
            "2023-11-14T22:13Z",
            "2023-11-14T22:13:20",
            "20231114T221320Z",
            "2023-11-14T22:13:20+01",
            "2023-11-14T22:13:20+0100",
            "2023-11-14T22:13:20Z[UTC]",
            "2023-11-14T22:13:20,5Z",
            "2023-13-14T22:13:20Z",
            "2023-11-14T24:13:20Z",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "0000-12-31T23:59:59Z",
            "é023-11-14T22:13:20Z",
        ] {
            assert_eq!(Time::parse(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_read_and_written() {
        for (text, written) in [
            ("0", "0s"),
            ("-0", "0s"),
            ("1h1m1s", "3661s"),
            ("-1.5m", "-90s"),
            ("+.5s", "0.5s"),
            ("1.s", "1s"),
            ("1ms1us1ns", "0.001001001s"),
            ("1.5µs", "0.0000015s"),
            ("-500ms", "-0.5s"),
            ("0.33333333333333333333h", "1199.999999999s"),
            ("9223372036854775807ns", "9223372036.854775807s"),
            ("-9223372036854775808ns", "-9223372036.854775808s"),
        ] {
            assert_eq!(Span::parse(text).unwrap().to_string(), written, "{text}");
        }
        for text in [
            "",
            "-",
            "1",
            "1.5",
            "s",
            ".s",
            "1x",
            "1 s",
            "--1s",
            "1h ",
            "1e3s",
            "2562048h",
            "9223372036854775808ns",
        ] {
            assert_eq!(Span::parse(text), None, "{text}");
        }
    }
}
