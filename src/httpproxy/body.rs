//! Bodies of HTTP/1 messages: how much of the bytes at hand belongs to this one.
//!
//! Contract (RFC 9112, section 7.1): chunk framing is checked byte by byte before anything is forwarded, in
//! constant memory, and forwarded as it came. A chunk size is one to fifteen hexadecimal digits; extensions and
//! trailer fields are printable and short; trailers cannot carry fields that frame or route a message.

use super::head::Length;
use crate::policy::l7::message::Fault;

/// Longest line of a chunk size with its extension, and longest trailer section.
const LONGEST_LINE: usize = 1024;
const LONGEST_TRAILERS: usize = 8 * 1024;

/// Where in its framing a body is.
#[derive(Clone, Debug)]
pub enum Body {
    Bytes(u64),
    Chunked(Chunks),
    UntilClose,
}

impl From<Length> for Body {
    fn from(length: Length) -> Body {
        match length {
            Length::None => Body::Bytes(0),
            Length::Bytes(count) => Body::Bytes(count),
            Length::Chunked => Body::Chunked(Chunks::default()),
            Length::UntilClose => Body::UntilClose,
        }
    }
}

impl Body {
    /// Takes what belongs to the body from the start of `bytes`: how many bytes.
    pub fn accept(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match self {
            Body::Bytes(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Body::Chunked(chunks) => chunks.accept(bytes),
            Body::UntilClose => Ok(bytes.len()),
        }
    }

    /// Bytes that are missing of a body without framing of its own.
    pub fn plain(&mut self) -> Option<&mut u64> {
        match self {
            Body::Bytes(left) => Some(left),
            Body::Chunked(_) | Body::UntilClose => None,
        }
    }

    /// Nothing is missing.
    pub fn is_done(&self) -> bool {
        match self {
            Body::Bytes(left) => *left == 0,
            Body::Chunked(chunks) => chunks.state == State::Done,
            Body::UntilClose => false,
        }
    }

    /// The other side has closed: that ends this body as it should.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self, Body::UntilClose)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Digits so far.
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Done,
}

/// The chunked coding.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    state: State,
    left: u64,
    digits: u8,
    /// Bytes of the line, or of the trailers.
    line: usize,
    name: Vec<u8>,
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (0x20..0x7f).contains(&byte)
}

impl Chunks {
    fn accept(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<(), Fault> {
        self.line += 1;
        self.state = match (self.state, byte) {
            (State::Size, digit) if digit.is_ascii_hexdigit() => {
                self.digits += 1;
                if self.digits > 15 {
                    return Err("chunk size has too many digits");
                }
                let value = char::from(digit).to_digit(16).map_or(0, u64::from);
                self.left = self.left * 16 + value;
                State::Size
            }
            (State::Size, _) if self.digits == 0 => return Err("chunk size is not a number"),
            (State::Size, b';') => State::Extension,
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, byte) if is_text(byte) && self.line < LONGEST_LINE => State::Extension,
            (State::Size | State::Extension, _) => return Err("chunk size is not a number"),
            (State::SizeLf, b'\n') => {
                self.line = 0;
                self.digits = 0;
                if self.left == 0 { State::Trailer } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size
            }
            (State::Trailer, b'\r') => State::LastLf,
            (State::Trailer | State::TrailerName, byte) if is_token(byte) => {
                self.name.push(byte.to_ascii_lowercase());
                State::TrailerName
            }
            (State::TrailerName, b':') => {
                let forbidden: [&[u8]; 7] = [
                    b"content-length",
                    b"transfer-encoding",
                    b"host",
                    b"trailer",
                    b"connection",
                    b"te",
                    b"upgrade",
                ];
                if forbidden.contains(&&self.name[..]) {
                    return Err("a trailer field frames or routes the message");
                }
                self.name.clear();
                State::TrailerValue
            }
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, byte) if is_text(byte) || byte >= 0x80 => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::LastLf, b'\n') => State::Done,
            (
                State::Trailer | State::TrailerName | State::TrailerValue | State::TrailerLf | State::LastLf,
                _,
            ) => {
                return Err("a trailer field is malformed");
            }
            (State::SizeLf | State::DataCr | State::DataLf, _) => {
                return Err("a chunk does not end as it should");
            }
            (State::Data | State::Done, _) => return Err("a byte behind the end of a body"),
        };
        if self.line > LONGEST_TRAILERS {
            return Err("trailers are too long");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked(bytes: &[u8]) -> Result<(usize, bool), Fault> {
        let mut body = Body::from(Length::Chunked);
        let taken = body.accept(bytes)?;
        Ok((taken, body.is_done()))
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let text = b"5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nX-Sum: 1\r\n\r\nGET /next";
        assert_eq!(chunked(text), Ok((text.len() - 9, true)));
        let mut body = Body::from(Length::Bytes(3));
        assert_eq!(body.accept(b"abcdef"), Ok(3));
        assert!(body.is_done());
    }

    #[test]
    fn framing_that_can_be_read_in_two_ways_is_a_fault() {
        for bad in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"0x5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"\r\nhello",
            b";a\r\n",
            b"-1\r\n",
            b"0000000000000005\r\nhello\r\n",
            b"ffffffffffffffff\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n",
            b"5;a\nb\r\nhello\r\n",
            b"5;\x00\r\nhello\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\n\rX",
        ] {
            assert!(chunked(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_arrive_does_not_matter(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
            cuts in prop::collection::vec(1..9usize, 1..200),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend(format!("{:x}\r\n", chunk.len()).bytes());
                text.extend(chunk);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\nA: b\r\n\r\n");
            let end = text.len();
            text.extend(b"rest");
            let mut body = Body::from(Length::Chunked);
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            while !body.is_done() {
                let piece = &text[at..(at + cuts.next().unwrap()).min(text.len())];
                at += body.accept(piece).unwrap();
            }
            prop_assert_eq!(at, end);
        }
    }
}
