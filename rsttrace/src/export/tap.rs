//! The tracer's end of the pipe to the child that exports.

use std::{
    io::{self, Write as _},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
};

use super::DROPPED;
use crate::{
    model::{Finding, Judged, LateObservation},
    output::{
        WallClock,
        json::{self, JsonFormat},
        summary::Summary,
    },
};

/// Beyond the pipe's own room, so much waits; further records are dropped.
const MAX_WAITING: usize = 256 << 10;
/// How long the child may take for what it still has to do at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hands every record to the child, as a line of JSON. Never waits while the trace runs: what finds no room is
/// dropped as a whole line, and counted.
#[derive(Debug)]
pub struct Tap {
    /// `None`: the child has gone.
    pipe: Option<OwnedFd>,
    child: Pid,
    process: OwnedFd,
    format: JsonFormat,
    /// Whole lines, but for the beginning of the first.
    waiting: Vec<u8>,
    dropped: u64,
    /// Of these, how many the child has been told of.
    told: u64,
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.pipe.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Tap {
    /// `pipe` does not block; `process` is the child's pidfd.
    pub fn new(pipe: OwnedFd, child: Pid, process: OwnedFd) -> Self {
        Self { pipe: Some(pipe), child, process, format: JsonFormat::default(), waiting: Vec::new(), dropped: 0, told: 0 }
    }

    pub fn start(&mut self, start: &json::Start) {
        self.push(|_, out| json::write_start(out, start));
    }

    pub fn end(&mut self, judged: &Judged, clock: &WallClock) {
        self.push(|format, out| format.write(out, judged, clock));
    }

    pub fn late(&mut self, late: &LateObservation, log: &Finding, clock: &WallClock) {
        self.push(|format, out| format.write_late(out, late, log, clock));
    }

    pub fn summary(&mut self, summary: &Summary) {
        self.push(|_, out| json::write_summary(out, summary));
    }

    fn push(&mut self, line: impl FnOnce(&mut JsonFormat, &mut Vec<u8>) -> io::Result<()>) {
        if self.waiting.len() >= MAX_WAITING {
            self.flush();
        }
        if self.pipe.is_none() || self.waiting.len() >= MAX_WAITING {
            self.dropped += 1;
            return;
        }
        // Memory takes everything.
        let _ = line(&mut self.format, &mut self.waiting);
    }

    /// Writes what there is room for.
    pub fn flush(&mut self) {
        if self.pipe.is_some() && self.told < self.dropped && self.waiting.len() < MAX_WAITING {
            self.told = self.dropped;
            let _ = writeln!(self.waiting, "{DROPPED}{}", self.dropped);
        }
        while let Some(pipe) = &self.pipe
            && !self.waiting.is_empty()
        {
            match rustix::io::write(pipe, &self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.pipe = None;
                    self.waiting = Vec::new();
                }
            }
        }
    }

    /// Something waits for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records that the child will not get.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The child has ended before the trace.
    pub fn is_gone(&self) -> bool {
        self.pipe.is_none()
    }

    /// Lets the child finish. Returns whether it has, within five seconds.
    pub fn finish(mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        self.flush();
        while self.is_waiting() && self.pipe.as_ref().is_some_and(|pipe| wait(PollFd::new(pipe, PollFlags::OUT), end)) {
            self.flush();
        }
        self.pipe = None;
        let ended = wait(PollFd::new(&self.process, PollFlags::IN), end);
        if ended {
            let _ = waitpid(Some(self.child), WaitOptions::empty());
        }
        ended
    }
}

/// Whether it was there before `end`.
fn wait(fd: PollFd<'_>, end: Instant) -> bool {
    let mut fds = [fd];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            found => return found.is_ok_and(|n| n > 0),
        }
    }
}
