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
    /// `None`: the child has been told all, and is to end.
    pipe: Option<OwnedFd>,
    child: Pid,
    process: OwnedFd,
    /// The child has ended before that; from then on nothing waits.
    gone: bool,
    /// Whole lines.
    waiting: Vec<u8>,
    /// So much of the first has been written.
    begun: usize,
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
        let (waiting, sums) = (Vec::new(), Vec::new());
        Self { address, pipe: Some(pipe), child, process, gone: false, waiting, begun: 0, sums, dropped: 0, told: 0 }
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
        } else if !self.gone {
            self.sums = line.to_vec();
        }
    }

    fn has_room(&mut self) -> bool {
        if self.waiting.len() >= MAX_WAITING {
            self.flush();
        }
        !self.gone && self.waiting.len() < MAX_WAITING
    }

    /// Writes what there is room for.
    pub fn flush(&mut self) {
        if !self.gone && self.told < self.dropped && self.waiting.len() < MAX_WAITING {
            self.told = self.dropped;
            let _ = writeln!(self.waiting, "{DROPPED}{}", self.dropped);
        }
        loop {
            if self.waiting.len() < MAX_WAITING {
                self.waiting.append(&mut self.sums);
            }
            let Some(pipe) = self.pipe.as_ref().filter(|_| !self.waiting.is_empty()) else { return };
            match rustix::io::write(pipe, &self.waiting[self.begun..]) {
                Ok(n) => self.written(n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.gone = true;
                    self.give_up();
                }
            }
        }
    }

    /// A line goes when all of it is written.
    fn written(&mut self, n: usize) {
        self.begun += n;
        let whole = self.waiting[..self.begun].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.waiting.drain(..whole);
        self.begun -= whole;
    }

    /// What waits will not be written any more.
    fn give_up(&mut self) {
        let is_record = |line: &&[u8]| !line.starts_with(SUMMARY) && !line.starts_with(DROPPED.as_bytes());
        self.dropped += self.waiting.split_inclusive(|&byte| byte == b'\n').filter(is_record).count() as u64;
        (self.waiting, self.begun, self.sums) = (Vec::new(), 0, Vec::new());
    }

    /// Something waits for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Records that the child will not get. What it had got and not dealt with when it ended is not among them: nobody knows.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The child has ended before the trace.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Lets the child finish. Returns whether it has ended, within five seconds.
    pub fn finish(&mut self) -> bool {
        self.finish_before(Instant::now() + PATIENCE)
    }

    fn finish_before(&mut self, end: Instant) -> bool {
        self.flush();
        while self.is_waiting() && self.pipe.as_ref().is_some_and(|pipe| wait(PollFd::new(pipe, PollFlags::OUT), end)) {
            self.flush();
        }
        self.give_up();
        self.pipe = None;
        let ended = wait(PollFd::new(&self.process, PollFlags::IN), end);
        if ended {
            let status = waitpid(Some(self.child), WaitOptions::empty());
            self.gone |= status.is_ok_and(|status| status.is_some_and(|(_, status)| status.exit_status() != Some(0)));
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

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        process::{Child, Command},
    };

    use rustix::{
        fs::{OFlags, fcntl_setfl},
        pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
        process::{PidfdFlags, pidfd_open},
    };

    use super::*;

    /// A pipe that holds one page, fed for a child that is to go on for as long as somebody holds its stdin.
    fn tap() -> (OwnedFd, Tap, Child) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
        fcntl_setpipe_size(&write, 4_096).unwrap();
        let child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let tap = Tap::new(write, pid, pidfd_open(pid, PidfdFlags::empty()).unwrap(), None);
        (read, tap, child)
    }

    fn summary() -> Vec<u8> {
        [SUMMARY, b"}\n"].concat()
    }

    #[test]
    fn nothing_waits_for_a_child_that_has_gone() {
        let (read, mut tap, mut child) = tap();
        tap.push(b"{}\n");
        tap.push_sums(&summary());
        drop(read);
        // Children that other tests fork may hold it for a while.
        poll(&mut [PollFd::new(tap.pipe.as_ref().unwrap(), PollFlags::empty())], None).unwrap();
        tap.flush();
        assert_eq!((tap.is_gone(), tap.is_waiting(), tap.dropped()), (true, false, 1));
        for told in 2..4 {
            tap.push_sums(&summary());
            tap.push(b"{}\n");
            tap.flush();
            assert_eq!((tap.is_waiting(), tap.dropped()), (false, told));
        }
        drop(child.stdin.take());
        assert!(tap.finish(), "it has ended");
    }

    #[test]
    fn what_a_child_never_took_is_counted_line_by_line() {
        let (read, mut tap, mut child) = tap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..10 {
            tap.push(&line);
        }
        tap.push_sums(&summary());
        tap.flush();
        assert!(tap.is_waiting(), "a page holds four of them, and the beginning of a fifth");
        assert!(!tap.finish_before(Instant::now()), "it does not end: its stdin is open");
        assert_eq!((tap.dropped(), tap.is_waiting(), tap.is_gone()), (6, false, false));
        let mut got = Vec::new();
        std::fs::File::from(read).read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 4_096);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
