//! Whether a client of HTTP/2 has left a frame unfinished: `h2` waits for its rest for ever.
//!
//! Contract (RFC 9113, sections 4.1, 6.2 and 6.10): only lengths, types and the flag END_HEADERS are read; what a frame
//! says, and whether it may be there, is for `h2`. A field block that goes on in CONTINUATION is one thing from the
//! HEADERS that it begins with to its end, however many frames are whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an HTTP/2 client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Length, type, flags, stream.
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// What is unfinished at the end of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    Nothing,
    /// A part of a body, or too little to say: a slow network may be all there is to it.
    Data,
    /// What a client has at hand when it begins to send it.
    Other,
}

/// What is known of the newest frame. Two that are equal are of the same frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    fn new(count: u64, pending: Pending) -> Mark {
        let kind = match pending {
            Pending::Nothing => 0,
            Pending::Data => 1,
            Pending::Other => 2,
        };
        Mark(count << 2 | kind)
    }

    pub(super) fn pending(self) -> Pending {
        match self.0 & 3 {
            0 => Pending::Nothing,
            1 => Pending::Data,
            _ => Pending::Other,
        }
    }
}

/// Tells what is unfinished to whom the stream does not belong.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch(Arc<AtomicU64>);

impl Watch {
    pub(super) fn mark(&self) -> Mark {
        Mark(self.0.load(Ordering::Relaxed))
    }
}

/// Follows the frames in a stream of bytes.
#[derive(Debug)]
struct Frames {
    preface: usize,
    head: [u8; HEAD],
    /// Bytes of `head` that there are.
    known: usize,
    /// Bytes that are missing of the payload of a frame whose head is known.
    missing: usize,
    in_block: bool,
    /// Frames and blocks so far.
    count: u64,
}

impl Frames {
    fn new() -> Frames {
        Frames { preface: PREFACE, head: [0; HEAD], known: 0, missing: 0, in_block: false, count: 0 }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Mark {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.known < HEAD {
                let more = (HEAD - self.known).min(bytes.len());
                self.head[self.known..self.known + more].copy_from_slice(&bytes[..more]);
                self.known += more;
                bytes = &bytes[more..];
                if self.known < HEAD {
                    break;
                }
                self.missing = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
            }
            let more = self.missing.min(bytes.len());
            self.missing -= more;
            bytes = &bytes[more..];
            if self.missing == 0 {
                self.end();
            }
        }
        Mark::new(self.count, self.pending())
    }

    /// Of a frame.
    fn end(&mut self) {
        self.known = 0;
        let [.., kind, flags, _, _, _, _] = self.head;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_block = flags & END_HEADERS == 0;
        }
        if !self.in_block {
            self.count += 1;
        }
    }

    fn pending(&self) -> Pending {
        match self.known {
            _ if self.in_block => Pending::Other,
            0 if self.preface == 0 => Pending::Nothing,
            // The type is the fourth byte.
            4.. if self.head[3] != DATA => Pending::Other,
            _ => Pending::Data,
        }
    }
}

/// A stream whose reader is watched.
pub(super) struct Framed<S> {
    stream: S,
    frames: Frames,
    watch: Watch,
}

impl<S> fmt::Debug for Framed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl<S> Framed<S> {
    /// From the first byte of the preface.
    pub(super) fn new(stream: S) -> (Framed<S>, Watch) {
        let watch = Watch::default();
        (Framed { stream, frames: Frames::new(), watch: watch.clone() }, watch)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if read.is_ready() {
            let mark = self.frames.take(&into.filled()[before..]);
            self.watch.0.store(mark.0, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut out = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        out.extend(std::iter::repeat_n(b'x', length.into()));
        out
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        frames.take(&[b'P'; PREFACE]);
        frames
    }

    #[test]
    fn a_frame_is_pending_from_its_first_byte_to_its_last_however_it_is_cut() {
        let text = [frame(4, 0, 0), frame(HEADERS, END_HEADERS, 20), frame(DATA, 0, 5)].concat();
        let (settings, headers) = (HEAD, 2 * HEAD + 20);
        let mut frames = begun();
        for (at, byte) in text.iter().enumerate() {
            let expected = match at + 1 {
                end if end == settings || end == headers || end == text.len() => Pending::Nothing,
                end if end > headers => Pending::Data,
                end if end % settings < 4 && end < settings + 4 => Pending::Data,
                _ => Pending::Other,
            };
            assert_eq!(frames.take(std::slice::from_ref(byte)).pending(), expected, "{at}");
        }
        assert_eq!(begun().take(&text), frames.take(&[]), "all at once");
    }

    #[test]
    fn a_field_block_is_one_thing_to_its_end() {
        let mut frames = begun();
        let first = frames.take(&frame(HEADERS, 0, 3));
        assert_eq!(first.pending(), Pending::Other);
        assert_eq!(frames.take(&frame(CONTINUATION, 0, 0)), first);
        assert_eq!(frames.take(&frame(CONTINUATION, 0, 9)[..5]), first);
        assert_eq!(frames.take(&frame(CONTINUATION, 0, 9)[5..]), first);
        assert_eq!(frames.take(&frame(CONTINUATION, END_HEADERS, 1)).pending(), Pending::Nothing);
    }

    #[test]
    fn frames_of_one_kind_are_told_apart() {
        let mut frames = begun();
        let half = frame(HEADERS, END_HEADERS, 8);
        let one = frames.take(&half[..12]);
        assert_eq!(frames.take(&half[12..14]), one);
        let next = frames.take(&[&half[14..], &half[..12]].concat());
        assert_eq!(next.pending(), Pending::Other);
        assert_ne!(next, one);
    }
}
