//! One log by its path, and the files that have had that path.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    time::{Duration, Instant},
};

use super::{BUDGET, CHUNK, Changes, Door, Opened, passed};
use crate::applog::{Line, LineSplitter};

/// Files that a path has had and that are still read.
const MAX_FILES: usize = 4;
/// A file that has left its path is read until it has not grown for so long.
const WRITER_LEAVES: Duration = Duration::from_secs(60);
/// How often a new file is looked for while there is reason to.
const SEARCH: Duration = Duration::from_millis(200);

/// A file that has, or had, the path.
#[derive(Debug)]
struct Generation {
    file: File,
    watch: i32,
    /// Device and inode.
    identity: (u64, u64),
    offset: u64,
    lines: LineSplitter,
    /// It began in the midst of a line, which is no line to us.
    skip_first: bool,
    grew: Instant,
}

/// A followed log.
#[derive(Debug)]
pub struct LogFile {
    number: usize,
    /// Oldest first.
    generations: VecDeque<Generation>,
    /// The path has no file, or one that is leaving.
    searching: bool,
    searched: Instant,
}

impl LogFile {
    /// Begins at the file's present end; why it could not be opened, else.
    pub fn open(number: usize, door: &mut dyn Door) -> (Self, Option<io::Error>) {
        let mut file = Self { number, generations: VecDeque::new(), searching: true, searched: Instant::now() };
        let error = file.search(door, true).err();
        (file, error)
    }

    pub fn is_searching(&self) -> bool {
        self.searching
    }

    /// Reads what is new. Returns whether there may be more.
    pub fn read(&mut self, changes: &Changes, door: &mut dyn Door, each: &mut impl FnMut(Line<'_>)) -> bool {
        let more = self.read_all(each);
        self.searching |= self.generations.back().is_none_or(|newest| changes.may_have_left(newest.watch));
        if self.searching && passed(self.searched, SEARCH) && self.search(door, false).is_ok() {
            return self.read_all(each) || more;
        }
        more
    }

    fn read_all(&mut self, each: &mut impl FnMut(Line<'_>)) -> bool {
        let mut more = false;
        for generation in &mut self.generations {
            more |= generation.read(each);
        }
        while self.generations.len() > MAX_FILES || self.generations.len() > 1 && passed(self.generations[0].grew, WRITER_LEAVES) {
            self.generations.pop_front();
        }
        more
    }

    /// Looks whether the path has another file now.
    fn search(&mut self, door: &mut dyn Door, at_the_end: bool) -> io::Result<()> {
        self.searched = Instant::now();
        let Opened { file, watch } = door.open(self.number)?;
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        if self.generations.back().is_some_and(|newest| newest.identity == identity) {
            // Its attributes changed, or it is back: it is still the one.
            self.searching = metadata.nlink() == 0;
            return Ok(());
        }
        let offset = if at_the_end { metadata.len() } else { 0 };
        let skip_first = offset > 0 && !ends_a_line(&file, offset);
        self.generations.push_back(Generation {
            file,
            watch,
            identity,
            offset,
            lines: LineSplitter::new(),
            skip_first,
            grew: Instant::now(),
        });
        self.searching = false;
        Ok(())
    }
}

fn ends_a_line(file: &File, offset: u64) -> bool {
    let mut last = [0];
    file.read_exact_at(&mut last, offset - 1).is_ok() && last == *b"\n"
}

impl Generation {
    fn read(&mut self, each: &mut impl FnMut(Line<'_>)) -> bool {
        let mut buffer = vec![0; CHUNK];
        let mut left = BUDGET;
        while left > 0 {
            match self.file.read_at(&mut buffer, self.offset) {
                Ok(0) => {
                    if self.was_truncated() {
                        self.offset = 0;
                        self.lines = LineSplitter::new();
                        self.skip_first = false;
                        continue;
                    }
                    return false;
                }
                Ok(n) => {
                    self.offset += n as u64;
                    self.grew = Instant::now();
                    left = left.saturating_sub(n);
                    let skip_first = &mut self.skip_first;
                    self.lines.push(&buffer[..n], |line| {
                        if !std::mem::take(skip_first) {
                            each(line);
                        }
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// As by copytruncate: what was written between our last look and the copy is in the copy only.
    fn was_truncated(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.len() < self.offset)
    }
}
