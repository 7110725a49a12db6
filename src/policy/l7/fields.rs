//! Header fields that policies name: which of them an edit may touch, and what they may hold.
//!
//! Contract (RFC 9110, sections 5.5 and 7.6.1; RFC 9112, section 6): an edit touches no field that says where a
//! message ends, whom it is for, or what becomes of its connection, because whoever reads it next would read
//! another message than the one that was judged. What goes into a head is a field value, so nothing in it can
//! end the field.
//!
//! A Secret's value is often a file's content: one line break at its end is not a part of the value. A value that no
//! field can hold is as good as none.

/// Fields that frame a message or belong to one connection, in lower case.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// No edit may touch the field of this name.
pub fn frames_messages(name: &str) -> bool {
    name.starts_with(':') || FRAMING.iter().any(|framing| framing.eq_ignore_ascii_case(name))
}

/// RFC 9110, section 5.5: no control characters but the tab, no space around it.
pub fn is_field_value(bytes: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !bytes.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
        && !is_blank(bytes.first())
        && !is_blank(bytes.last())
}

/// The field value that a Secret holds; `None`: none at all.
pub fn of_secret(bytes: &[u8]) -> Option<&[u8]> {
    let value = match bytes.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => bytes,
    };
    is_field_value(value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_of_a_secret_is_not_a_part_of_its_value() {
        for (bytes, value) in [
            (&b"token"[..], Some(&b"token"[..])),
            (b"token\n", Some(b"token")),
            (b"token\r\n", Some(b"token")),
            (b"a\tb", Some(b"a\tb")),
            (b"caf\xc3\xa9", Some(b"caf\xc3\xa9")),
            (b"", Some(b"")),
            (b"token\n\n", None),
            (b"token\r", None),
            (b"x\r\nX-Admin: yes", None),
            (b"a\0b", None),
            (b"a\x7fb", None),
            (b" token", None),
            (b"token \n", None),
        ] {
            assert_eq!(of_secret(bytes), value, "{bytes:?}");
        }
    }

    #[test]
    fn names_that_frame_are_known_in_any_case() {
        assert!(frames_messages("Content-Length") && frames_messages("te") && frames_messages(":path"));
        assert!(!frames_messages("x-te") && !frames_messages("content-type"));
    }
}
