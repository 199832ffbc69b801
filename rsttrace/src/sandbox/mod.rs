//! Least privilege: once everything is attached, the tracer gives up what it no longer needs.
//! Capabilities first, then files (Landlock), then system calls (seccomp); each where the kernel
//! has it, none of them a condition for tracing. docs/privileges.md says what for.
//!
//! All three are per thread. The tracer has one, and can make no other afterwards.

mod broker;
mod capabilities;
mod files;
mod keeper;
mod syscalls;

use std::{
    ffi::CStr,
    fmt,
    io::{self, Read as _, Write as _},
    os::fd::RawFd,
};

use rustix::{
    process::{Pid, WaitOptions, waitpid},
    thread::CapabilitySet,
};

pub use self::{broker::Broker, keeper::Keeper};

/// Runs what opens files that the user has named. Where rsttrace got its capabilities from its file,
/// they are not the user's: nobody should read /etc/shadow by `--timers`. Root has every right.
///
/// # Errors
/// What the kernel refuses; `work` is not run then.
pub fn as_the_user<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    if rustix::process::getuid().is_root() { Ok(work()) } else { Ok(capabilities::without_rights_to_files(work)?) }
}

/// Gives up all capabilities for good: for a process that only shows what another one traces. To be called while it
/// has one thread.
///
/// # Errors
/// What the kernel refuses.
pub fn give_up_capabilities() -> io::Result<()> {
    Ok(capabilities::keep_only(CapabilitySet::empty())?)
}

/// What stays readable: our own fdinfo (runs that the kernel skipped), and what /proc shows to
/// everybody, such as the counters of network namespaces. Of other processes' files Landlock
/// leaves only what needs no `ptrace_may_access()`.
const READABLE: [&str; 1] = ["/proc"];

/// What confines this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// What is left of them, or why they could not be given up.
    pub capabilities: Result<CapabilitySet, String>,
    /// The ABI that is enforced, or why none is.
    pub landlock: Result<String, String>,
    /// Or why not.
    pub seccomp: Result<(), String>,
}

impl Sandbox {
    /// Confines this process for good. `counters_can_be_read` must say whether the kernel still
    /// lets us read maps: before Linux 5.19 that takes `CAP_BPF`, which is kept there.
    pub fn enter(counters_can_be_read: impl Fn() -> bool) -> Self {
        // In this order: the filter allows none of the calls that the other two make.
        Self {
            capabilities: capabilities::keep_least(counters_can_be_read).map_err(|error| error.to_string()),
            landlock: files::only_read_below(&READABLE),
            seccomp: syscalls::confine(syscalls::Role::Tracer),
        }
    }

    /// What [`enter`](Self::enter) would come to, in words, and whether it would be complete: tried in
    /// a child, so that this process stays as it is.
    ///
    /// # Errors
    /// When there can be no child, or it does not answer.
    pub fn trial(counters_can_be_read: impl Fn() -> bool) -> io::Result<(String, bool)> {
        let (mut read, mut write) = io::pipe()?;
        let child = fork(|| {
            let sandbox = Self::enter(counters_can_be_read);
            let _ = write!(write, "{}{sandbox}", if sandbox.is_complete() { '+' } else { '-' });
        })?;
        drop(write);
        let mut words = String::new();
        let result = read.read_to_string(&mut words);
        waitpid(Some(child), WaitOptions::empty())?;
        result?;
        let complete = words.starts_with('+');
        words.get(1..).map(|words| (words.to_owned(), complete)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Nothing is left to be given up.
    pub fn is_complete(&self) -> bool {
        self.capabilities == Ok(CapabilitySet::empty()) && self.landlock.is_ok() && self.seccomp.is_ok()
    }
}

impl fmt::Display for Sandbox {
    /// `no capabilities, Landlock (ABI 7), seccomp`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.capabilities {
            Ok(kept) if kept.is_empty() => f.write_str("no capabilities")?,
            Ok(kept) => {
                let names: Vec<_> = kept.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
                write!(f, "{} kept (this kernel asks for it to read counters)", names.join(" and "))?;
            }
            Err(why) => write!(f, "capabilities kept: {why}")?,
        }
        match &self.landlock {
            Ok(abi) => write!(f, ", Landlock ({abi})")?,
            Err(why) => write!(f, ", no Landlock: {why}")?,
        }
        match &self.seccomp {
            Ok(()) => f.write_str(", seccomp"),
            Err(why) => write!(f, ", no seccomp: {why}"),
        }
    }
}

/// A child that lives `life` and ends.
fn fork(life: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: the child is a copy of this thread alone. The tracer has no other when it forks; where
    // others exist, `life` takes no lock of theirs but the allocator's, which libc hands over in order.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            life();
            // SAFETY: ends the child; nothing of its parent's is flushed or run twice.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).ok_or_else(io::Error::last_os_error),
    }
}

/// Signals that are meant for the tracer, and reach its whole process or control group.
const NOT_FOR_CHILDREN: [libc::c_int; 6] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// A child that serves the tracer for as long as that lives. In `ps` it goes by `name`; the signals that stop the
/// tracer do not reach it; of all descriptors it has `kept`, and /dev/null in place of stdin, stdout and stderr
/// where they are not among them, so that nobody waits for it who reads our output or our other children's.
///
/// Called while the process has one thread and no runtime: the child is a copy of this thread only.
///
/// # Errors
/// When there can be no process.
pub fn servant(name: &CStr, kept: &[RawFd], life: impl FnOnce()) -> io::Result<Pid> {
    use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
    let mut kept: Vec<_> = kept.iter().map(|fd| fd.cast_unsigned()).collect();
    kept.sort_unstable();
    fork(|| {
        for signal in NOT_FOR_CHILDREN {
            // SAFETY: no handler is installed, only the disposition changes.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        // The command line is the tracer's.
        let _ = rustix::thread::set_name(name);
        if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
            let _ = dup2_stdin(&null);
            let _ = dup2_stdout(&null);
            if !kept.contains(&libc::STDERR_FILENO.unsigned_abs()) {
                let _ = dup2_stderr(&null);
            }
        }
        let mut first = libc::STDERR_FILENO.unsigned_abs() + 1;
        for fd in kept.iter().copied().filter(|&fd| fd >= first).chain([u32::MAX]).collect::<Vec<_>>() {
            if fd > first {
                // SAFETY: the child's own copies, which nothing in it uses or drops: it ends by _exit().
                unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            }
            first = fd.saturating_add(1);
        }
        life();
    })
}

/// Confines a child that talks to others by TCP, for good: no capability, files below `readable` for reading only,
/// connections only to `ports`. Where there are none, it makes no socket and opens no file, whatever Landlock restricts
/// in this kernel. What the kernel does not have is left out.
pub fn confine_exporter(readable: &[&str], ports: &[u16]) {
    let _ = capabilities::keep_only(CapabilitySet::empty());
    let _ = files::only_read_below_and_connect_to(readable, ports);
    let _ = syscalls::confine(if ports.is_empty() { syscalls::Role::Server } else { syscalls::Role::Exporter });
}

#[cfg(test)]
mod tests;
