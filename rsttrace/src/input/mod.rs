//! Records that were saved. Hostile: a file may come from anywhere.

mod account;
mod blocks;
pub mod json;

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{self, Cursor, Read},
    path::Path,
};

use anyhow::Context as _;

pub use self::account::{Account, Totals, read_all};
use self::blocks::Blocks;
use crate::{
    applog::{Line, LineSplitter},
    input::json::Saved,
    output::escape::for_terminal,
    status,
    units::{counted, grouped},
};

/// Longer records are no records.
pub const MAX_RECORD: usize = 1 << 20;
const CHUNK: usize = 256 << 10;

/// A record, and the line that it was read from.
#[derive(Debug)]
pub struct Told {
    /// As it was written, without its end.
    pub line: Vec<u8>,
    pub saved: Saved,
}

/// Where something stands in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// From 1.
    Line(u64),
    /// Of a recording's block, from 0.
    Byte(u64),
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => number.fmt(f),
            Self::Byte(offset) => write!(f, "byte {offset}"),
        }
    }
}

/// Something that could not be read; what follows it is read all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at: Position,
    /// In words for people, not yet safe for a terminal.
    pub why: String,
}

/// What a file gives next.
#[derive(Debug)]
pub enum Item {
    Told(Box<Told>),
    Fault(Fault),
}

/// The records of a file: a recording, or lines of JSON. Which of them it is, its content says.
pub struct Records {
    source: Box<dyn Read + Send>,
    kind: Kind,
    /// What was read and not yet taken.
    items: VecDeque<Item>,
    buffer: Vec<u8>,
    ended: bool,
}

enum Kind {
    Lines(LineSplitter),
    Blocks(Blocks),
}

impl Records {
    /// `-` is standard input.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::new(Box::new(io::stdin())).context("cannot read standard input");
        }
        let open = || Self::new(Box::new(File::open(path)?));
        open().with_context(|| format!("cannot read {}", path.display()))
    }

    /// Looks at the beginning.
    ///
    /// # Errors
    /// What reading it returns.
    pub fn new(mut source: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut beginning = Vec::new();
        source.by_ref().take(1).read_to_end(&mut beginning)?;
        // A recording whose first block is damaged is one all the same.
        let is_text = beginning.first().is_none_or(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        let kind = if is_text { Kind::Lines(LineSplitter::with_limit(MAX_RECORD)) } else { Kind::Blocks(Blocks::default()) };
        let source = Box::new(Cursor::new(beginning).chain(source));
        Ok(Self { source, kind, items: VecDeque::new(), buffer: vec![0; CHUNK], ended: false })
    }

    /// The next record or fault; `None` at the end.
    ///
    /// # Errors
    /// What reading returns.
    #[allow(clippy::should_implement_trait, reason = "after an error there is nothing more")]
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(Some(item));
            }
            // Block by block: a small file may unpack to much.
            let more = match &mut self.kind {
                Kind::Blocks(blocks) if self.ended => blocks.finish(&mut self.items),
                Kind::Blocks(blocks) => blocks.step(&mut self.items),
                Kind::Lines(_) => false,
            };
            if more || !self.items.is_empty() {
                continue;
            }
            if self.ended {
                return Ok(None);
            }
            match self.source.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => self.take(read?),
            }
        }
    }

    fn take(&mut self, n: usize) {
        let Self { kind, items, buffer, ended, .. } = self;
        *ended = n == 0;
        match kind {
            Kind::Lines(splitter) => {
                let mut each = |line: Line<'_>| match line {
                    Line::TooLong { number, length } => items.push_back(too_long(Position::Line(number), length)),
                    Line::Whole { number, bytes } => items.extend(read(bytes, Position::Line(number))),
                };
                if *ended { splitter.finish(&mut each) } else { splitter.push(&buffer[..n], &mut each) }
            }
            Kind::Blocks(blocks) => blocks.push(&buffer[..n]),
        }
    }
}

/// A file of records whose faults are told on stderr as they are met.
pub struct Source {
    /// Safe for a terminal.
    pub name: String,
    records: Records,
    /// Lines and faults.
    lines: u64,
    faults: u64,
    is_at_end: bool,
    /// As long as there are no records, there may never be: that is one thing to say.
    untold: Option<Vec<Fault>>,
}

/// Faults of one file that are told one by one.
pub const MAX_TOLD: u64 = 10;

impl Source {
    /// `-` is standard input.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let name = for_terminal(&path.to_string_lossy()).into_owned();
        Ok(Self { name, records: Records::open(path)?, lines: 0, faults: 0, is_at_end: false, untold: Some(Vec::new()) })
    }

    /// The next record.
    ///
    /// # Errors
    /// What reading returns, with the file's name.
    #[allow(clippy::should_implement_trait, reason = "after an error there is nothing more")]
    pub fn next(&mut self) -> io::Result<Option<Box<Told>>> {
        loop {
            let item = self.records.next().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.name)))?;
            self.lines += u64::from(item.is_some());
            match item {
                Some(Item::Told(told)) => {
                    self.untold.take().iter().flatten().for_each(|fault| self.say(fault));
                    return Ok(Some(told));
                }
                Some(Item::Fault(fault)) => {
                    self.faults += 1;
                    match &mut self.untold {
                        _ if self.faults > MAX_TOLD => {}
                        Some(untold) => untold.push(fault),
                        None => self.say(&fault),
                    }
                }
                None => {
                    self.is_at_end = true;
                    return Ok(None);
                }
            }
        }
    }

    fn say(&self, fault: &Fault) {
        status::say(&format!("rsttrace: {}:{}: {}", self.name, fault.at, for_terminal(&fault.why)));
    }

    /// Says how much could not be read. Returns whether there was anything.
    pub fn sum_up(&self) -> bool {
        if self.lines == 0 && self.is_at_end {
            status::say(&format!("rsttrace: {} is empty", self.name));
        }
        let untold = self.untold.as_deref().unwrap_or_default();
        if let Some(Fault { at: at @ Position::Line(_), why }) = untold.first() {
            let why = for_terminal(why);
            status::say(&format!(
                "rsttrace: {} is neither a recording nor what --json of this version wrote (line {at}: {why})",
                self.name
            ));
        } else if self.faults > 0 {
            untold.iter().for_each(|fault| self.say(fault));
            let (faults, lines) = (grouped(self.faults), counted(self.lines, "line"));
            let words = if self.faults == 1 { "is no record and was" } else { "are no records and were" };
            status::say(&format!("rsttrace: {}: {faults} of {lines} {words} skipped", self.name));
        }
        self.faults > 0
    }
}

fn too_long(at: Position, length: u64) -> Item {
    Item::Fault(Fault { at, why: format!("{} bytes are too many for one line", grouped(length)) })
}

/// One line; nothing where it is empty.
fn read(line: &[u8], at: Position) -> Option<Item> {
    if line.trim_ascii().is_empty() {
        return None;
    }
    Some(match json::read(line) {
        Ok(saved) => Item::Told(Box::new(Told { line: line.to_vec(), saved })),
        Err(why) => Item::Fault(Fault { at, why }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recording::format;

    const LINE: &str = include_str!("../../tests/corpus/record.json");

    /// Gives a few bytes at a time, as a pipe may.
    struct Drop(Cursor<Vec<u8>>, usize);

    impl Read for Drop {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.1.clamp(1, into.len().max(1)).min(into.len());
            self.0.read(&mut into[..n])
        }
    }

    /// How many records, and what was wrong.
    fn all(bytes: &[u8], at_once: usize) -> (usize, Vec<Fault>) {
        let mut records = Records::new(Box::new(Drop(Cursor::new(bytes.to_vec()), at_once))).unwrap();
        let (mut told, mut faults) = (0, Vec::new());
        while let Some(item) = records.next().unwrap() {
            match item {
                Item::Told(_) => told += 1,
                Item::Fault(fault) => faults.push(fault),
            }
        }
        (told, faults)
    }

    fn block(lines: usize) -> Vec<u8> {
        format::encode(format!("{}\n", LINE.trim_end()).repeat(lines).as_bytes()).unwrap()
    }

    #[test]
    fn what_it_is_its_content_says() {
        let lines = format!("{}\n\n", LINE.trim_end()).repeat(3);
        let recording = [block(1), block(2)].concat();
        for file in [lines.as_bytes(), lines.trim_end().as_bytes(), &recording] {
            for at_once in [1, 7, 1 << 20] {
                assert_eq!(all(file, at_once), (3, vec![]));
            }
        }
        assert_eq!(all(b"", 1), (0, vec![]));
    }

    #[test]
    fn a_recording_that_was_cut_is_read_up_to_the_cut() {
        let (first, more) = (2, 40);
        let whole = [block(first), block(more)].concat();
        let at = Position::Byte(block(first).len() as u64);
        for cut in (1..block(more).len()).step_by(7) {
            let (told, faults) = all(&whole[..whole.len() - cut], 4096);
            assert!((first..=first + more).contains(&told), "{told} of {cut}");
            assert!(matches!(&faults[..], [fault] if fault.at == at && fault.why.contains("ends within")), "{faults:?}");
        }
        let (told, _) = all(&whole[..whole.len() - 20], 4096);
        assert!(told > first, "what is there of a block is read");
    }

    #[test]
    fn a_damaged_block_is_left_out_and_the_next_one_read() {
        let (one, two) = (block(2), block(3));
        for at in 0..two.len() {
            let mut damaged = two.clone();
            damaged[at] ^= 0x55;
            let (told, faults) = all(&[one.clone(), damaged, one.clone()].concat(), 64);
            // What gzip does not look at: time, level and system of the header.
            let harmless = (4..10).contains(&at);
            // A wrong length may still lead to its end.
            assert!(told == if harmless { 7 } else { 4 } || (18..22).contains(&at) && told == 7, "{at}: {told}, {faults:?}");
            assert_eq!(
                faults.iter().map(|fault| fault.at).collect::<Vec<_>>(),
                vec![Position::Byte(one.len() as u64); 1 - usize::from(harmless)],
                "{at}: {faults:?}"
            );
        }
    }

    #[test]
    fn a_newer_block_is_said_to_be_one() {
        let mut newer = block(2);
        newer[16] = 9;
        let (told, faults) = all(&[block(1), newer, block(1)].concat(), 4096);
        assert_eq!(told, 2);
        assert!(matches!(&faults[..], [fault] if fault.why.contains("newer version of rsttrace (layout 9")), "{faults:?}");
    }

    proptest! {
        #[test]
        fn no_file_does_harm(bytes: Vec<u8>, at in 0..2_000usize, as_recording: bool) {
            let mut file = if as_recording { [block(2), block(1)].concat() } else { format!("{LINE}\n{LINE}\n").into_bytes() };
            let at = at.min(file.len());
            file.splice(at..(at + bytes.len() / 2).min(file.len()), bytes);
            let _ = all(&file, 100);
        }
    }
}
