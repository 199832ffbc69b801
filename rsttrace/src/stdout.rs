//! Standard output that can be given up: a reader that has stopped reading, or has gone, must not keep a run
//! from ending, nor from saying what is lost meanwhile, nor from telling others.

use std::{
    io::{self, ErrorKind, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
};

/// Once the run is to end, how long the reader may still take.
const GRACE: Duration = Duration::from_secs(1);
/// How often the reasons to end are looked at while the reader does not read.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A pipe that has room takes this much without blocking (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// Writes all of it, and flushes; a reader that has gone has seen enough.
///
/// # Errors
/// What writing returns.
pub fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes to descriptor 1 without blocking beyond the end of the run.
pub struct Stdout<F> {
    /// A signal has asked the run to end.
    stopping: Arc<AtomicBool>,
    /// The duration is over then.
    end: Option<Instant>,
    /// Pipes and sockets only: files take everything, terminals are watched by somebody.
    may_block: bool,
    stop_noticed: Option<Instant>,
    /// Called from time to time while nobody reads.
    meanwhile: F,
}

impl<F: FnMut()> Stdout<F> {
    pub fn new(stopping: Arc<AtomicBool>, end: Option<Instant>, meanwhile: F) -> Self {
        let may_block =
            fstat(io::stdout()).is_ok_and(|stat| matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket));
        Self { stopping, end, may_block, stop_noticed: None, meanwhile }
    }

    /// Waits for room; an error once that took too long after the run was to end.
    fn wait_for_room(&mut self) -> io::Result<()> {
        let stdout = io::stdout();
        loop {
            let mut watched = [PollFd::new(&stdout, PollFlags::OUT)];
            match poll(&mut watched, Some(&PATIENCE)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            (self.meanwhile)();
            let now = Instant::now();
            if self.stopping.load(Ordering::Relaxed) || self.end.is_some_and(|end| now >= end) {
                let since = *self.stop_noticed.get_or_insert(now);
                if now.duration_since(since) >= GRACE {
                    return Err(io::Error::new(ErrorKind::TimedOut, "nobody reads it"));
                }
            }
        }
    }
}

impl<F: FnMut()> Write for Stdout<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.may_block {
            return Ok(rustix::io::write(io::stdout(), bytes)?);
        }
        self.wait_for_room()?;
        Ok(rustix::io::write(io::stdout(), &bytes[..bytes.len().min(ATOMIC)])?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Once writing has failed, takes everything and writes nothing: who else is told of a run is told the rest.
#[derive(Debug)]
pub struct Forgiving<W> {
    inner: W,
    has_failed: bool,
    failure: Option<io::Error>,
}

impl<W> Forgiving<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, has_failed: false, failure: None }
    }

    /// Says once that writing has failed.
    ///
    /// # Errors
    /// What it failed by.
    pub fn check(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// `otherwise`: the result where nothing is written any more.
    fn attempt<T>(&mut self, otherwise: T, write: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.has_failed {
            return Ok(otherwise);
        }
        match write(&mut self.inner) {
            // The caller tries again.
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                self.has_failed = true;
                self.failure = Some(error);
                Ok(otherwise)
            }
            written => written,
        }
    }
}

impl<W: Write> Write for Forgiving<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(bytes.len(), |inner| inner.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt((), W::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_said_once_and_then_taken_by_nobody() {
        struct Closed(u32);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                Err(ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Forgiving::new(Closed(0));
        for _ in 0..2 {
            out.write_all(b"lost").unwrap();
            out.flush().unwrap();
        }
        assert_eq!(out.check().unwrap_err().kind(), ErrorKind::BrokenPipe);
        out.check().unwrap();
        assert_eq!(out.inner.0, 1, "it is not tried again");
    }
}
