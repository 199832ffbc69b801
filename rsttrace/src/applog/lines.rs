//! A stream of bytes cut into lines, in bounded memory. Fed with chunks as they come: the end of a
//! file that is still being written is kept until the rest of its line has come.

use memchr::memchr;

/// Bytes of a line, without its end, beyond which it is skipped and only counted. nginx and HAProxy
/// cut their own lines far below it.
pub const MAX_LINE: usize = 64 << 10;

/// A line of the stream, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Without its end, which is LF or CRLF.
    Whole { number: u64, bytes: &'a [u8] },
    /// Longer than the limit; `length` without its LF.
    TooLong { number: u64, length: u64 },
}

/// Cuts chunks into lines.
#[derive(Debug)]
pub struct LineSplitter {
    limit: usize,
    /// Lines that have ended.
    ended: u64,
    /// What the chunks before gave of the current line: empty as soon as it is longer than the limit.
    kept: Vec<u8>,
    /// Length of the current line so far.
    length: u64,
}

impl Default for LineSplitter {
    fn default() -> Self {
        Self::with_limit(MAX_LINE)
    }
}

impl LineSplitter {
    pub fn new() -> Self {
        Self::default()
    }

    /// A limit of one's own, in bytes of a line.
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, ended: 0, kept: Vec::new(), length: 0 }
    }

    /// Takes the next bytes and hands on each line that ends in them.
    pub fn push(&mut self, mut chunk: &[u8], mut each: impl FnMut(Line<'_>)) {
        while let Some(at) = memchr(b'\n', chunk) {
            let (head, rest) = (&chunk[..at], &chunk[at + 1..]);
            if self.length == 0 && head.len() <= self.limit {
                // Nearly every line lies within one chunk and is not copied.
                each(Line::Whole { number: self.ended + 1, bytes: without_cr(head) });
            } else {
                self.keep(head);
                each(self.current());
            }
            self.next_line();
            chunk = rest;
        }
        self.keep(chunk);
    }

    /// The last line, if the stream stopped in the midst of it. What is pushed afterwards begins a
    /// new line.
    pub fn finish(&mut self, mut each: impl FnMut(Line<'_>)) {
        if self.length > 0 {
            each(self.current());
            self.next_line();
        }
    }

    /// Whether the stream so far stops in the midst of a line.
    pub fn is_within_line(&self) -> bool {
        self.length > 0
    }

    fn keep(&mut self, part: &[u8]) {
        self.length = self.length.saturating_add(part.len() as u64);
        if self.is_too_long() {
            self.kept = Vec::new();
        } else {
            self.kept.extend_from_slice(part);
        }
    }

    fn is_too_long(&self) -> bool {
        self.length > self.limit as u64
    }

    fn current(&self) -> Line<'_> {
        let number = self.ended + 1;
        if self.is_too_long() {
            Line::TooLong { number, length: self.length }
        } else {
            Line::Whole { number, bytes: without_cr(&self.kept) }
        }
    }

    fn next_line(&mut self) {
        self.ended += 1;
        self.length = 0;
        self.kept.clear();
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use proptest::prelude::*;

    use super::*;

    /// A line that owns its bytes: number and bytes, or number and length.
    type Owned = (u64, Result<Vec<u8>, u64>);

    fn owned(line: Line<'_>) -> Owned {
        match line {
            Line::Whole { number, bytes } => (number, Ok(bytes.to_vec())),
            Line::TooLong { number, length } => (number, Err(length)),
        }
    }

    fn split<'a>(splitter: &mut LineSplitter, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Owned> {
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(owned(line)));
        }
        lines
    }

    fn whole(number: u64, text: &str) -> Owned {
        (number, Ok(text.as_bytes().to_vec()))
    }

    #[test]
    fn lines_end_with_lf_or_crlf_and_empty_ones_count() {
        let mut splitter = LineSplitter::new();
        let lines = split(&mut splitter, [&b"one\ntwo\r\n\nfo\rur\r\r\n"[..]]);
        assert_eq!(lines, [whole(1, "one"), whole(2, "two"), whole(3, ""), whole(4, "fo\rur\r")]);
        assert!(!splitter.is_within_line());
    }

    #[test]
    fn an_incomplete_last_line_waits_for_its_rest_or_for_the_finish() {
        let mut splitter = LineSplitter::new();
        assert_eq!(split(&mut splitter, [&b"one\ntw"[..]]), [whole(1, "one")]);
        assert!(splitter.is_within_line());
        assert_eq!(split(&mut splitter, [&b"o\r"[..], b"\nthr", b"", b"ee"]), [whole(2, "two")]);
        let mut last = Vec::new();
        splitter.finish(|line| last.push(owned(line)));
        splitter.finish(|line| last.push(owned(line)));
        assert_eq!(last, [whole(3, "three")]);
        assert_eq!(split(&mut splitter, [&b"four\n"[..]]), [whole(4, "four")]);
    }

    #[test]
    fn a_line_beyond_the_limit_is_counted_and_the_next_is_good_again() {
        let mut splitter = LineSplitter::with_limit(4);
        let lines = split(&mut splitter, [&b"1234\n12345\n12"[..], b"34", b"56\n1234", b"\nab\n"]);
        assert_eq!(lines, [whole(1, "1234"), (2, Err(5)), (3, Err(6)), whole(4, "1234"), whole(5, "ab")]);
        assert_eq!(split(&mut splitter, [&b"123456"[..]]), []);
        let mut last = Vec::new();
        splitter.finish(|line| last.push(owned(line)));
        assert_eq!(last, [(6, Err(6))]);
    }

    /// `length` bytes without a line's end, then "\nnext\n".
    fn one_long_line(length: u64) -> impl Read {
        io::repeat(b'x').take(length).chain(&b"\nnext\n"[..])
    }

    #[test]
    fn a_line_of_a_gigabyte_takes_no_memory() {
        const LENGTH: u64 = 1 << 30;
        let (mut splitter, mut lines, mut most) = (LineSplitter::new(), Vec::new(), 0);
        let (mut reader, mut chunk) = (one_long_line(LENGTH), vec![0; 1 << 16]);
        loop {
            let length = reader.read(&mut chunk).expect("a generated stream");
            if length == 0 {
                break;
            }
            splitter.push(&chunk[..length], |line| lines.push(owned(line)));
            most = most.max(splitter.kept.capacity());
        }
        assert_eq!(lines, [(1, Err(LENGTH)), whole(2, "next")]);
        assert!(most <= 2 * MAX_LINE, "{most} B were kept");
    }

    #[test]
    fn an_endless_file_of_lines_takes_no_memory() {
        let (mut splitter, mut count, mut most) = (LineSplitter::new(), 0_u64, 0);
        // Neither divides the other, so that every way of cutting a line occurs.
        let chunk: Vec<u8> = (0..40_961).map(|at| if at % 8_191 == 0 { b'\n' } else { b'x' }).collect();
        for _ in 0..10_000 {
            splitter.push(&chunk, |line| {
                assert!(matches!(line, Line::Whole { bytes, .. } if bytes.len() < 8_192));
                count += 1;
            });
            most = most.max(splitter.kept.capacity());
        }
        assert_eq!(count, 60_000);
        assert!(most <= 2 * MAX_LINE, "{most} B were kept");
    }

    /// What the splitter must give, the plain way.
    fn expected(bytes: &[u8], limit: usize) -> Vec<Owned> {
        let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let (last, ended) = parts.split_last().expect("one part at least");
        let lines = ended.iter().chain((!last.is_empty()).then_some(last));
        let line = |(at, part): (usize, &&[u8])| {
            let whole = part.len() <= limit;
            (at as u64 + 1, if whole { Ok(part.strip_suffix(b"\r").unwrap_or(part).to_vec()) } else { Err(part.len() as u64) })
        };
        lines.enumerate().map(line).collect()
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_into_chunks_makes_no_difference(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            sizes in prop::collection::vec(0_usize..20, 1..20),
            limit in 0_usize..20,
        ) {
            let (mut splitter, mut lines, mut rest) = (LineSplitter::with_limit(limit), Vec::new(), &bytes[..]);
            for size in sizes.iter().cycle() {
                if rest.is_empty() || sizes.iter().all(|size| *size == 0) {
                    break;
                }
                let (chunk, after) = rest.split_at((*size).min(rest.len()));
                splitter.push(chunk, |line| lines.push(owned(line)));
                rest = after;
            }
            splitter.push(rest, |line| lines.push(owned(line)));
            splitter.finish(|line| lines.push(owned(line)));
            prop_assert_eq!(lines, expected(&bytes, limit));
        }
    }
}
