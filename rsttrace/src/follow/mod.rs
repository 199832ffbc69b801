//! Log files that are followed while they are written: through rotation, truncation and recreation.
//! A file that was renamed or removed is read on until its writer has left it, because the writer goes on
//! with it until it is told to open its log again.

mod door;
mod file;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::Arc,
    time::Instant,
};

use rustix::{event, fs::inotify};

pub use self::door::{Door, Doors, Opened, look_at};
use self::file::LogFile;
use crate::{
    applog::{Line, LineSplitter, LogFormat, Parsed},
    correlate::{Arrival, LineClock, Window},
    model::LogLine,
};

/// Bytes taken from one file at a time, before other things are looked at.
const BUDGET: usize = 1 << 20;
const CHUNK: usize = 64 << 10;

/// Lines by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub lines: u64,
    /// No line of the format.
    pub malformed: u64,
    pub too_long: u64,
}

/// What is read.
#[derive(Debug)]
enum Source {
    File(LogFile),
    /// Standard input; gone at its end.
    Stdin {
        lines: LineSplitter,
        open: bool,
    },
}

/// One log.
#[derive(Debug)]
struct Log {
    source: Source,
    format: Box<dyn LogFormat>,
    /// A file that we do not have yet may have had lines since then.
    unseen_since_ns: u64,
}

/// All logs of a run.
#[derive(Debug)]
pub struct Logs {
    logs: Vec<Log>,
    inotify: Arc<OwnedFd>,
    door: Box<dyn Door>,
    clock: LineClock,
    counts: Counts,
    /// Nothing was written since the last look before this moment, on the records' clock.
    quiet_ns: u64,
    /// The last look left something for the next.
    more: bool,
}

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By its number behind the [`Door`].
    File(usize),
    Stdin,
}

impl Logs {
    /// Begins at the present end of each file; one that is not there yet is waited for, and named
    /// in what is returned beside it.
    pub fn open(
        places: Vec<(Place, Box<dyn LogFormat>)>,
        inotify: Arc<OwnedFd>,
        mut door: Box<dyn Door>,
        now_ns: u64,
    ) -> (Self, Vec<(usize, io::Error)>) {
        let mut missing = Vec::new();
        let logs = places
            .into_iter()
            .map(|(place, format)| {
                let source = match place {
                    Place::Stdin => Source::Stdin { lines: LineSplitter::new(), open: true },
                    Place::File(number) => {
                        let (file, error) = LogFile::open(number, &mut *door);
                        missing.extend(error.map(|error| (number, error)));
                        Source::File(file)
                    }
                };
                Log { source, format, unseen_since_ns: now_ns }
            })
            .collect();
        (Self { logs, inotify, door, clock: LineClock::Live, counts: Counts::default(), quiet_ns: now_ns, more: false }, missing)
    }

    /// From now on somebody else opens files.
    pub fn set_door(&mut self, door: Box<dyn Door>) {
        self.door = door;
    }

    /// Becomes readable when a file changes.
    pub fn event_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }

    /// Standard input is one of them, and not at its end.
    pub fn reads_stdin(&self) -> bool {
        self.logs.iter().any(|log| matches!(log.source, Source::Stdin { open: true, .. }))
    }

    /// The last look left something for the next, which should come soon.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// A file is to be looked for, now and then.
    pub fn is_searching(&self) -> bool {
        self.logs.iter().any(|log| matches!(&log.source, Source::File(file) if file.is_searching()))
    }

    /// Reads what has been written since the last look; `each` gets the lines about ends of
    /// connections, with the number of their log and the span in which that happened. `zero_ns`: where
    /// the records' clock has its zero, since 1970. Returns what all lines so far came to.
    pub fn poll(&mut self, now_ns: impl Fn() -> u64, zero_ns: i128, mut each: impl FnMut(usize, LogLine, Window)) -> Counts {
        let began_ns = now_ns();
        let changed = self.take_changes();
        let since_ns = self.quiet_ns;
        let look = changed.any() || self.more;
        let Self { logs, door, clock, counts, .. } = self;
        let mut more = false;
        for (number, log) in logs.iter_mut().enumerate() {
            let format = &*log.format;
            let was_searching = matches!(&log.source, Source::File(file) if file.is_searching());
            if !was_searching {
                log.unseen_since_ns = since_ns;
            }
            let not_before_ns = log.unseen_since_ns;
            let immediate = format.is_immediate() && matches!(log.source, Source::File(_));
            let mut line = |line: Line<'_>| {
                counts.lines += 1;
                match line {
                    Line::TooLong { .. } => counts.too_long += 1,
                    Line::Whole { bytes, .. } => match format.parse(bytes) {
                        Parsed::About(about) => {
                            let arrival = Arrival { not_before_ns, read_ns: now_ns(), immediate };
                            let window = clock.window(&about.time, Some(arrival), zero_ns);
                            each(number, *about, window);
                        }
                        Parsed::Other => {}
                        Parsed::Malformed => counts.malformed += 1,
                    },
                }
            };
            more |= match &mut log.source {
                Source::File(file) => (look || file.is_searching()) && file.read(&changed, &mut **door, &mut line),
                Source::Stdin { lines, open } => *open && read_stdin(lines, open, &mut line),
            };
        }
        self.more = more;
        if !more {
            self.quiet_ns = began_ns;
        }
        self.counts
    }

    /// Changes since the last look.
    fn take_changes(&self) -> Changes {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4_096];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        let mut changes = Changes::default();
        while let Ok(event) = reader.next() {
            changes.some = true;
            let left =
                inotify::ReadFlags::MOVE_SELF | inotify::ReadFlags::DELETE_SELF | inotify::ReadFlags::ATTRIB | inotify::ReadFlags::IGNORED;
            if event.events().intersects(left) {
                changes.left.push(event.wd());
            }
            // Too many at once: any of them may have been it.
            changes.overflow |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
        }
        changes
    }
}

/// What has happened to the watched files.
#[derive(Debug, Default)]
struct Changes {
    some: bool,
    overflow: bool,
    /// Watches of files that may have been renamed or removed.
    left: Vec<i32>,
}

impl Changes {
    fn any(&self) -> bool {
        self.some
    }

    fn may_have_left(&self, watch: i32) -> bool {
        self.overflow || self.left.contains(&watch)
    }
}

fn read_stdin(lines: &mut LineSplitter, open: &mut bool, line: &mut impl FnMut(Line<'_>)) -> bool {
    let stdin = io::stdin();
    let mut buffer = vec![0; CHUNK];
    let mut left = BUDGET;
    while left > 0 && is_readable(stdin.as_fd()) {
        match rustix::io::read(&stdin, &mut buffer[..]) {
            Ok(0) | Err(_) => {
                lines.finish(line);
                *open = false;
                return false;
            }
            Ok(n) => {
                lines.push(&buffer[..n], &mut *line);
                left = left.saturating_sub(n);
            }
        }
    }
    left == 0
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut watched = [event::PollFd::new(&fd, event::PollFlags::IN)];
    let none = event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(event::poll(&mut watched, Some(&none)), Ok(n) if n > 0)
}

/// Whether so much time has passed.
fn passed(since: Instant, time: std::time::Duration) -> bool {
    since.elapsed() >= time
}

#[cfg(test)]
mod tests;
