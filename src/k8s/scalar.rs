//! Plain scalars as Kubernetes reads them: `sigs.k8s.io/yaml` resolves by the YAML 1.1 rules of
//! go-yaml v2, so `yes` is a boolean and `0x50` a number, and neither is a string. One exception:
//! the single letters `y` and `n` are strings, as in YAML 1.2; people name things so.

use super::tree::{Text, Value};

/// The value of an unquoted scalar.
pub fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    if text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'))
        && text.bytes().all(in_number)
    {
        let digits = text.replace('_', "");
        if let Some(integer) = integer(&digits) {
            return Value::Integer(integer);
        }
        if let Some(float) = float(&digits) {
            return Value::Float(float);
        }
    }
    Value::Text(Text { text: text.into(), content_line: 0, content_column: 0 })
}

/// Other bytes (an address has some) are in no number of any notation.
fn in_number(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'+' | b'-')
}

/// Decimal, `0x`, `0b`, `0o` and octal with a leading zero.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &*lower),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// `1.5`, `.5`, `1e3`: digits, at most one dot, an exponent. Not an address such as `10.0.0.1`.
fn float(text: &str) -> Option<f64> {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let take_digits = |rest: &mut &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let count = end;
        *rest = &rest[end..];
        count
    };
    let whole = take_digits(&mut rest);
    let fraction = match rest.strip_prefix('.') {
        Some(after) => {
            rest = after;
            take_digits(&mut rest)
        }
        None => 0,
    };
    if whole + fraction == 0 {
        return None;
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        rest = after.strip_prefix(['-', '+']).unwrap_or(after);
        if take_digits(&mut rest) == 0 {
            return None;
        }
    }
    if rest.is_empty() { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_text(text: &str) -> bool {
        matches!(resolve(text), Value::Text(found) if found.text == text)
    }

    #[test]
    fn yaml_1_1_words_are_booleans_and_null() {
        for word in ["yes", "On", "TRUE"] {
            assert_eq!(resolve(word), Value::Bool(true), "{word}");
        }
        for word in ["no", "off", "False"] {
            assert_eq!(resolve(word), Value::Bool(false), "{word}");
        }
        assert_eq!(resolve("~"), Value::Null);
        assert_eq!(resolve(""), Value::Null);
    }

    #[test]
    fn numbers_in_every_base() {
        for (text, value) in [
            ("80", 80),
            ("-1", -1),
            ("+7", 7),
            ("0x50", 80),
            ("0b101", 5),
            ("0o17", 15),
            ("017", 15),
            ("1_000", 1000),
            ("0", 0),
        ] {
            assert_eq!(resolve(text), Value::Integer(value), "{text}");
        }
        assert_eq!(resolve("1.5"), Value::Float(1.5));
        assert_eq!(resolve("1e3"), Value::Float(1000.0));
        assert_eq!(resolve("99999999999999999999"), Value::Float(1e20));
    }

    #[test]
    fn addresses_names_and_dates_are_text() {
        for text in [
            "10.0.0.1",
            "y",
            "N",
            "10.0.0.0/8",
            "2001:db8::1",
            "nein",
            "1.2.3",
            "2026-01-02",
            "-",
            "+",
            ".",
            "1e",
            "e5",
            "0xzz",
            "09",
            "8080/TCP",
        ] {
            if text == "09" {
                // No octal number; the float rule takes it, as upstream does.
                assert_eq!(resolve(text), Value::Float(9.0));
                continue;
            }
            assert!(is_text(text), "{text}: {:?}", resolve(text));
        }
    }
}
