//! A stream of bytes cut into a recording's blocks. What is damaged is told with its offset and left out;
//! reading goes on where the next block begins.

use std::collections::VecDeque;

use memchr::memmem;

use super::{Fault, Item, MAX_RECORD, Position, read, too_long};
use crate::{
    recording::format::{self, HEADER, Header},
    units::grouped,
};

#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// What has come; what lies before `at` is taken apart.
    bytes: Vec<u8>,
    at: usize,
    /// Of `at` in the file.
    offset: u64,
    /// A fault has been told, and no block has begun since.
    lost: bool,
}

impl Blocks {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.at));
        self.bytes.extend_from_slice(bytes);
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// What is left is all that there is. Whether there may be more to take.
    pub(super) fn finish(&mut self, items: &mut VecDeque<Item>) -> bool {
        if self.rest().is_empty() || self.step(items) {
            return !self.rest().is_empty();
        }
        // A block that is too short for what it says.
        if !self.lost {
            let there = self.rest();
            if there.len() >= HEADER {
                let (lines, _) = format::decode(there);
                let complete = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                tell(&lines[..complete], self.offset, items);
            }
            let n = grouped(self.rest().len() as u64);
            self.fault(items, format!("the file ends within this block, of which {n} B are there: it was cut, or is being written"));
        }
        self.skip(1);
        self.find_next();
        !self.rest().is_empty()
    }

    /// Takes one block, or what is none. Whether there may be more to take.
    pub(super) fn step(&mut self, items: &mut VecDeque<Item>) -> bool {
        let Some(beginning) = self.rest().first_chunk::<HEADER>() else { return false };
        match format::header(beginning) {
            Header::Block(length) => {
                let Some(block) = self.rest().get(..length) else { return false };
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
            Header::Nothing if self.offset == 0 && beginning.starts_with(&format::MAGIC[..2]) => {
                self.fault(items, "this is compressed, and no recording: unpack it (zcat FILE | rsttrace replay -)".to_owned());
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
        self.at += n;
        self.offset += n as u64;
    }

    /// To where a block may begin.
    fn find_next(&mut self) {
        let rest = self.rest();
        let next = memmem::find_iter(rest, &format::MAGIC).find(|&at| format::begins(&rest[at..]));
        // The last bytes may be the first ones of it.
        let at = next.unwrap_or(rest.len().saturating_sub(format::MAGIC.len() - 1));
        self.skip(at);
    }
}

/// The lines of a block, and one fault for those that are none.
fn tell(lines: &[u8], at: u64, items: &mut VecDeque<Item>) {
    let at = Position::Byte(at);
    let mut first = None;
    let mut faults = 0u64;
    for (number, line) in (1u64..).zip(lines.split(|byte| *byte == b'\n')) {
        let item = if line.len() > MAX_RECORD { Some(too_long(at, line.len() as u64)) } else { read(line, at) };
        match item {
            Some(Item::Fault(Fault { why, .. })) => {
                faults += 1;
                first.get_or_insert_with(|| format!("line {number} of this block: {why}"));
            }
            item => items.extend(item),
        }
    }
    if let Some(mut why) = first {
        if faults > 1 {
            why += &format!(" (and {} more)", grouped(faults - 1));
        }
        items.push_back(Item::Fault(Fault { at, why }));
    }
}
