//! A stream of bytes cut into a recording's blocks. What is damaged is told with its offset and left out;
//! reading goes on where the next block begins.

use std::collections::VecDeque;

use memchr::memmem;

use super::{Fault, Item, Position, read};
use crate::{
    recording::format::{self, HEADER, Header},
    units::grouped,
};

#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// What has come and is not taken apart yet.
    bytes: Vec<u8>,
    /// Of its first byte in the file.
    offset: u64,
    /// A fault has been told, and no block has begun since.
    lost: bool,
}

impl Blocks {
    pub(super) fn push(&mut self, bytes: &[u8], items: &mut VecDeque<Item>) {
        self.bytes.extend_from_slice(bytes);
        while self.step(items) {}
    }

    /// What is left is all that there is.
    pub(super) fn finish(&mut self, items: &mut VecDeque<Item>) {
        while !self.bytes.is_empty() {
            if self.step(items) {
                continue;
            }
            // A block that is too short for what it says.
            let (at, whole) = (self.offset, self.bytes.len());
            if whole >= HEADER {
                let (lines, _) = format::decode(&self.bytes);
                let complete = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                tell(&lines[..complete], at, items);
            }
            if !self.lost {
                let n = grouped(whole as u64);
                self.fault(items, format!("the file ends within this block, of which {n} B are there: it was cut, or is being written"));
            }
            self.skip(1);
            self.find_next();
        }
    }

    /// Takes one block, or what is none. Whether there may be more to take.
    fn step(&mut self, items: &mut VecDeque<Item>) -> bool {
        let Some(beginning) = self.bytes.first_chunk::<HEADER>() else { return false };
        match format::header(beginning) {
            Header::Block(length) => {
                let Some(block) = self.bytes.get(..length) else { return false };
                let (lines, complete) = format::decode(block);
                if complete {
                    tell(&lines, self.offset, items);
                    self.lost = false;
                    self.skip(length);
                    return true;
                }
                self.fault(items, "this block is damaged: its records are left out".to_owned());
            }
            Header::Newer(version) => {
                let known = format::VERSION;
                self.fault(items, format!("this block is of a newer version of rsttrace (layout {version}, and this one reads {known})"));
            }
            Header::Nothing => self.fault(items, "no block of a recording begins here".to_owned()),
        }
        self.skip(1);
        self.find_next();
        true
    }

    /// One fault for all that lies up to the next good block.
    fn fault(&mut self, items: &mut VecDeque<Item>, why: String) {
        if !std::mem::replace(&mut self.lost, true) {
            items.push_back(Item::Fault(Fault { at: Position::Byte(self.offset), why }));
        }
    }

    fn skip(&mut self, n: usize) {
        self.bytes.drain(..n);
        self.offset += n as u64;
    }

    /// To where a block may begin.
    fn find_next(&mut self) {
        let next = memmem::find_iter(&self.bytes, &format::MAGIC).find(|&at| format::begins(&self.bytes[at..]));
        // The last bytes may be the first ones of it.
        let at = next.unwrap_or(self.bytes.len().saturating_sub(format::MAGIC.len() - 1));
        self.skip(at);
    }
}

/// The lines of a block.
fn tell(lines: &[u8], at: u64, items: &mut VecDeque<Item>) {
    for (number, line) in lines.split(|byte| *byte == b'\n').enumerate() {
        items.extend(read(line, Position::Byte(at), |why| format!("line {} of this block: {why}", number + 1)));
    }
}
