//! The tracer's end of the pipe to the child that exports.

use std::{
    cell::RefCell,
    io::Write as _,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    rc::Rc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
};

use super::DROPPED;
use crate::{model::Judged, outlet::Sink};

/// Beyond the pipe's own room, so much waits; further records are dropped.
const MAX_WAITING: usize = 256 << 10;
/// How the run's last line begins.
const SUMMARY: &[u8] = br#"{"schema":1,"record":"summary""#;
/// How long the child may take for what it still has to do at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hands every line to the child. Never waits while the trace runs: what finds no room is
/// dropped as a whole line, and counted.
#[derive(Debug)]
pub struct Tap {
    /// Where metrics are served.
    pub address: Option<SocketAddr>,
    /// `None`: the child has gone.
    pipe: Option<OwnedFd>,
    child: Pid,
    process: OwnedFd,
    /// Whole lines, but for the beginning of the first.
    waiting: Vec<u8>,
    /// The latest line that is about no connection and found no room: sums, each of which says all that those before it said.
    sums: Vec<u8>,
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
    pub fn new(pipe: OwnedFd, child: Pid, process: OwnedFd, address: Option<SocketAddr>) -> Self {
        Self { address, pipe: Some(pipe), child, process, waiting: Vec::new(), sums: Vec::new(), dropped: 0, told: 0 }
    }

    /// Takes a record, a line with its end.
    pub fn push(&mut self, line: &[u8]) {
        if self.has_room() {
            self.waiting.extend_from_slice(line);
        } else {
            self.dropped += 1;
        }
    }

    /// Takes a line that says how it stands.
    pub fn push_sums(&mut self, line: &[u8]) {
        if self.has_room() {
            self.sums.clear();
            self.waiting.extend_from_slice(line);
        } else {
            self.sums = line.to_vec();
        }
    }

    fn has_room(&mut self) -> bool {
        if self.waiting.len() >= MAX_WAITING {
            self.flush();
        }
        self.pipe.is_some() && self.waiting.len() < MAX_WAITING
    }

    /// Writes what there is room for.
    pub fn flush(&mut self) {
        if self.pipe.is_some() && self.told < self.dropped && self.waiting.len() < MAX_WAITING {
            self.told = self.dropped;
            let _ = writeln!(self.waiting, "{DROPPED}{}", self.dropped);
        }
        loop {
            if self.waiting.len() < MAX_WAITING {
                self.waiting.append(&mut self.sums);
            }
            let Some(pipe) = self.pipe.as_ref().filter(|_| !self.waiting.is_empty()) else { return };
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
    pub fn finish(&mut self) -> bool {
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

impl Sink for Rc<RefCell<Tap>> {
    fn take(&mut self, line: &[u8], judged: Option<&Judged>, _now_ns: u64) {
        let mut tap = self.borrow_mut();
        if judged.is_some() || !line.starts_with(SUMMARY) { tap.push(line) } else { tap.push_sums(line) }
    }

    fn tick(&mut self, _now_ns: u64) {}

    fn next_deadline_ns(&self) -> Option<u64> {
        None
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
