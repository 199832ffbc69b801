//! Processes that are measured: their lines, their CPU time, their end.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Whoever says nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which stream is read, line by line; the other is the caller's.
#[derive(Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A process that is killed when this is dropped.
pub struct Process {
    child: Child,
    name: String,
    lines: Receiver<String>,
    reaped: bool,
}

/// What a process left behind.
pub struct Ended {
    pub lines: Vec<String>,
    /// User and system time of all its threads, and of its children that it waited for.
    pub cpu_ns: u64,
    pub success: bool,
}

impl Process {
    pub fn start(command: &mut Command, read: Stream) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        match read {
            Stream::Stdout => command.stdout(Stdio::piped()),
            Stream::Stderr => command.stderr(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stream: Option<Box<dyn Read + Send>> = match read {
            Stream::Stdout => child.stdout.take().map(|pipe| Box::new(pipe) as _),
            Stream::Stderr => child.stderr.take().map(|pipe| Box::new(pipe) as _),
        };
        let (send, lines) = channel();
        let stream = BufReader::new(stream.with_context(|| format!("{name} has no output"))?);
        thread::spawn(move || stream.lines().map_while(std::io::Result::ok).all(|line| send.send(line).is_ok()));
        Ok(Self { child, name, lines, reaped: false })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line.
    pub fn line(&self) -> Result<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => bail!("{} ended too early; what it wrote is above", self.name),
            Err(RecvTimeoutError::Timeout) => bail!("{} says nothing", self.name),
        }
    }

    /// The next line that contains `text`.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        loop {
            match self.line() {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => eprintln!("{line}"),
                Err(error) => return Err(error.context(format!("waiting for \"{text}\""))),
            }
        }
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().with_context(|| format!("{} has no input", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("{} does not listen", self.name))
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        // A process that nobody has waited for stays, as a zombie without descriptors.
        fs::read_dir(format!("/proc/{}/fd", self.pid())).is_ok_and(|mut fds| fds.next().is_some())
    }

    /// Asks it to end, as Ctrl-C does, and waits.
    pub fn interrupt(self) -> Result<Ended> {
        // SAFETY: no memory involved; the child is not yet reaped, so the number is its own.
        unsafe { libc::kill(self.pid() as libc::pid_t, libc::SIGINT) };
        self.end()
    }

    /// Closes its input and waits for its end.
    pub fn end(mut self) -> Result<Ended> {
        drop(self.child.stdin.take());
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(LAST_PATIENCE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                // bpftrace has been seen to miss its signal.
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{} does not end: it is killed", self.name);
                    let _ = self.child.kill();
                }
            }
        }
        let mut status = 0;
        // SAFETY: plain data, for which zeroes are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both are ours to be written to.
        let reaped = unsafe { libc::wait4(self.pid() as libc::pid_t, &mut status, 0, &mut usage) };
        if reaped < 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("waiting for {}", self.name));
        }
        self.reaped = true;
        let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
        Ok(Ended { lines, cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime), success: status == 0 })
    }
}

/// How long a process that is asked to end may say nothing.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// CPU time of a process's main thread, by the scheduler's own account.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path} tells no time"))
}

/// What a process calls itself.
pub fn name(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/comm");
    let name = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(name.trim().to_owned())
}

/// A number in `/proc/PID/status`, by its name.
pub fn status(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field(&text, name).with_context(|| format!("{path} has no {name}"))
}

/// The number behind `NAME:` in a file of lines.
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

/// The children of a process.
pub fn children(of: u32) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| status(*pid, "PPid").is_ok_and(|parent| parent == u64::from(of))).collect()
}
