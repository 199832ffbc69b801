//! One block: a gzip member with an extra field. `docs/recordings.md` describes it for others.

use std::io::{self, Read as _, Write as _};

use flate2::{Compression, GzBuilder, bufread::GzDecoder};

/// The layout that is written, and the newest that is read.
pub const VERSION: u16 = 1;
/// Uncompressed, a block is not larger by more than one line.
pub const BLOCK: usize = 256 << 10;
/// A block that claims more, compressed or not, is damaged.
pub const MAX_BLOCK: usize = 16 << 20;
/// Of the header, up to and with the length of the block.
pub const HEADER: usize = 22;

/// gzip, deflate, with an extra field (RFC 1952, 2.3).
pub const MAGIC: [u8; 4] = [0x1f, 0x8b, 8, 4];
/// Of the extra field: its length, then our subfield `RT` and that one's length (2.3.1.1).
const EXTRA: [u8; 6] = [10, 0, b'R', b'T', 6, 0];
/// Where they stand.
const EXTRA_AT: usize = 10;
const VERSION_AT: usize = EXTRA_AT + EXTRA.len();
const LENGTH_AT: usize = VERSION_AT + 2;

/// Compresses whole lines into one block.
///
/// # Errors
/// When it would be too large.
pub fn encode(lines: &[u8]) -> io::Result<Vec<u8>> {
    // The length is known when it is done.
    let mut subfield = EXTRA[2..].to_vec();
    subfield.extend(VERSION.to_le_bytes());
    subfield.extend([0; 4]);
    let mut encoder = GzBuilder::new().extra(subfield).write(Vec::with_capacity(lines.len() / 8), Compression::fast());
    encoder.write_all(lines)?;
    let mut block = encoder.finish()?;
    if block.len() > MAX_BLOCK {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much for one block"));
    }
    let length = u32::try_from(block.len()).map_err(io::Error::other)?;
    block[LENGTH_AT..HEADER].copy_from_slice(&length.to_le_bytes());
    Ok(block)
}

/// What the first bytes of a block say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Of this version; the whole block's length in bytes.
    Block(usize),
    /// Of a version that is not known here.
    Newer(u16),
    /// No block begins here.
    Nothing,
}

/// Reads a header.
pub fn header(bytes: &[u8; HEADER]) -> Header {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if !begins(bytes) {
        return Header::Nothing;
    }
    match u16::from_le_bytes([bytes[VERSION_AT], bytes[VERSION_AT + 1]]) {
        0 => Header::Nothing,
        VERSION => match number(LENGTH_AT) as usize {
            length @ HEADER..=MAX_BLOCK => Header::Block(length),
            _ => Header::Nothing,
        },
        newer => Header::Newer(newer),
    }
}

/// Whether a block may begin so, as far as these bytes go.
pub fn begins(bytes: &[u8]) -> bool {
    let is = |at: usize, what: &[u8]| bytes.iter().skip(at).zip(what).all(|(have, want)| have == want);
    is(0, &MAGIC) && is(EXTRA_AT, &EXTRA)
}

/// The lines of a block, of which only the beginning may be there, and whether they are all of it and
/// its checksum is right.
pub fn decode(block: &[u8]) -> (Vec<u8>, bool) {
    let mut lines = Vec::new();
    // Whatever a damaged block unpacks to, it is not more than this.
    let result = GzDecoder::new(block).take(MAX_BLOCK as u64 + 1).read_to_end(&mut lines);
    let complete = result.is_ok() && lines.len() <= MAX_BLOCK;
    (lines, complete)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header_of(block: &[u8]) -> Header {
        header(block[..HEADER].try_into().unwrap())
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(lines: Vec<u8>) {
            let block = encode(&lines).unwrap();
            prop_assert_eq!(header_of(&block), Header::Block(block.len()));
            prop_assert!(begins(&block));
            prop_assert_eq!(decode(&block), (lines, true));
        }

        #[test]
        fn a_block_that_was_cut_or_changed_is_noticed(lines in "[a-z\n]{1,2000}", at: prop::sample::Index, bit in 0..8u8) {
            let whole = encode(lines.as_bytes()).unwrap();
            let (begun, complete) = decode(&whole[..at.index(whole.len())]);
            prop_assert!(!complete && lines.as_bytes().starts_with(&begun));
            let mut changed = whole.clone();
            // What lies before is the header, of which gzip checks nothing.
            let at = HEADER + at.index(whole.len() - HEADER);
            changed[at] ^= 1 << bit;
            let (lines_then, complete) = decode(&changed);
            prop_assert!(!complete || lines_then == lines.as_bytes());
        }
    }

    #[test]
    fn it_is_a_gzip_member() {
        let mut both = encode(b"one\n").unwrap();
        both.extend(encode(b"two\n").unwrap());
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(&both[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
    }

    #[test]
    fn other_headers_are_told_apart() {
        let mut block = encode(b"x\n").unwrap();
        block[VERSION_AT] = 7;
        assert_eq!(header_of(&block), Header::Newer(7));
        block[VERSION_AT] = 1;
        block[LENGTH_AT + 3] = 0xff;
        assert_eq!(header_of(&block), Header::Nothing, "it claims too much");
        assert_eq!(header_of(&[0; HEADER]), Header::Nothing);
    }
}
