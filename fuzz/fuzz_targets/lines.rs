#![no_main]

use rsttrace::applog::{Line, LineSplitter};

// The first bytes choose the limit and the size of the chunks; how a stream is cut into chunks must
// make no difference.
libfuzzer_sys::fuzz_target!(|input: (u8, u8, &[u8])| {
    let (limit, chunk, bytes) = input;
    let (limit, chunk) = (usize::from(limit), usize::from(chunk).max(1));
    assert_eq!(split(limit, bytes.chunks(chunk)), split(limit, [bytes]));
});

fn split<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<(u64, Result<Vec<u8>, u64>)> {
    let mut lines = Vec::new();
    let mut each = |line: Line<'_>| match line {
        Line::Whole { number, bytes } => {
            assert!(bytes.len() <= limit && !bytes.contains(&b'\n'));
            lines.push((number, Ok(bytes.to_vec())));
        }
        Line::TooLong { number, length } => {
            assert!(length > limit as u64);
            lines.push((number, Err(length)));
        }
    };
    let mut splitter = LineSplitter::with_limit(limit);
    for chunk in chunks {
        splitter.push(chunk, &mut each);
    }
    splitter.finish(&mut each);
    lines
}
