//! A process that does exactly the system call it is told to: one command per line on stdin, one
//! line `ok VALUE` or `errno SYMBOL` in answer on stdout. `actor NAME` gives it that comm.

mod call;
mod net;
mod uring;

use std::{
    ffi::CString,
    io::{BufRead, BufReader, Write},
    mem::ManuallyDrop,
    os::{fd::FromRawFd, unix::net::UnixStream},
};

use call::{Errno, check};

fn main() {
    let name = std::env::args().nth(1).unwrap_or_else(|| "actor".into());
    // SAFETY: no preconditions.
    unsafe {
        // Forks are not waited for, and a broken pipe is an errno.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    set_name(&name);
    serve();
}

/// Answers commands until their source closes.
fn serve() {
    // SAFETY: both descriptors stay open; `ManuallyDrop` leaves them so. Standard streams would
    // keep buffered input across fork().
    let (input, mut output) = unsafe {
        (ManuallyDrop::new(UnixStream::from_raw_fd(libc::STDIN_FILENO)), ManuallyDrop::new(UnixStream::from_raw_fd(libc::STDOUT_FILENO)))
    };
    if writeln!(output, "{}", std::process::id()).is_err() {
        return;
    }
    for line in BufReader::new(&*input).lines() {
        let Ok(line) = line else { return };
        let answer = match run(&line) {
            Ok(value) => format!("ok {value}\n"),
            Err(Problem::Errno(errno)) => format!("errno {errno}\n"),
            Err(Problem::Usage(words)) => format!("usage: {words} (in \"{line}\")\n"),
        };
        if output.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

enum Problem {
    Errno(Errno),
    Usage(&'static str),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// The words after a command.
struct Args<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Args<'a> {
    fn word(&mut self) -> Result<&'a str, Problem> {
        self.0.next().ok_or(Problem::Usage("a word is missing"))
    }

    fn parse<T: std::str::FromStr>(&mut self) -> Result<T, Problem> {
        self.word()?.parse().map_err(|_| Problem::Usage("a word cannot be read"))
    }

    fn fd(&mut self) -> Result<i32, Problem> {
        self.parse()
    }
}

fn run(line: &str) -> Result<String, Problem> {
    if let Some(commands) = line.strip_prefix("all ") {
        return all(commands);
    }
    let mut words = line.split_whitespace();
    let command = words.next().unwrap_or_default();
    let mut args = Args(words);
    let a = &mut args;
    let value = match command {
        // Making connections.
        "listen" => net::listen(a.parse()?, a.parse().unwrap_or(128))?.to_string(),
        "socket" => net::socket(a.parse()?)?.to_string(),
        "listen-mptcp" => net::listen_mptcp(a.parse()?)?.to_string(),
        "socket-mptcp" => net::socket_mptcp(a.parse()?)?.to_string(),
        "bind" => net::bind(a.fd()?, a.parse()?)?.to_string(),
        "connect" => net::connect(a.fd()?, a.parse()?)?.to_string(),
        "accept" => net::accept(a.fd()?)?.to_string(),
        "local" => net::local(a.fd()?)?.to_string(),
        "remote" => net::remote(a.fd()?)?.to_string(),

        // What the kernel says of a socket.
        "cookie" => net::cookie(a.fd()?)?.to_string(),
        "inode" => net::inode(a.fd()?)?.to_string(),
        "unread" => net::queued(a.fd()?, libc::FIONREAD)?.to_string(),
        "outstanding" => net::queued(a.fd()?, libc::TIOCOUTQ)?.to_string(),
        "unsent" => net::queued(a.fd()?, net::SIOCOUTQNSD)?.to_string(),
        "poll" => net::poll(a.fd()?, a.word()?)?,

        // Receives, by the system call that they make.
        "recv" => call::recv(a.fd()?, a.parse()?, 0)?.to_string(),
        "peek" => call::recv(a.fd()?, a.parse()?, libc::MSG_PEEK)?.to_string(),
        // No urgent data waits: EINVAL, whatever the connection's state.
        "recv-oob" => call::recv(a.fd()?, a.parse()?, libc::MSG_OOB)?.to_string(),
        "recv-all" => call::recv(a.fd()?, a.parse()?, libc::MSG_WAITALL)?.to_string(),
        "read" => call::read(a.fd()?, a.parse()?)?.to_string(),
        "readv" => call::readv(a.fd()?, a.parse()?)?.to_string(),
        "recvmsg" => call::recvmsg(a.fd()?, a.parse()?)?.to_string(),
        "recvmmsg" => call::recvmmsg(a.fd()?, a.parse()?)?.to_string(),
        "splice-from" => call::splice_from(a.fd()?, a.parse()?)?.to_string(),
        "uring-recv" => uring::recv(a.fd()?, a.parse()?)?.to_string(),
        "so-error" => net::so_error(a.fd()?)?,

        // Sends.
        "send" => call::send(a.fd()?, a.parse()?, 0)?.to_string(),
        "send-more" => call::send(a.fd()?, a.parse()?, libc::MSG_MORE)?.to_string(),
        "fill" => call::fill(a.fd()?)?.to_string(),
        "write" => call::write(a.fd()?, a.parse()?)?.to_string(),
        "writev" => call::writev(a.fd()?, a.parse()?)?.to_string(),
        "sendmsg" => call::sendmsg(a.fd()?, a.parse()?)?.to_string(),
        "sendfile" => call::sendfile(a.fd()?, a.parse()?)?.to_string(),
        "splice-to" => call::splice_to(a.fd()?, a.parse()?)?.to_string(),

        // Ending connections.
        "close" => call::close(a.fd()?)?.to_string(),
        "close-range" => call::close_range(a.fd()?)?.to_string(),
        "dup2" => call::dup2(a.fd()?, a.fd()?)?.to_string(),
        "shutdown" => call::shutdown(a.fd()?, a.word()?)?.to_string(),
        "disconnect" => net::disconnect(a.fd()?)?.to_string(),
        "linger0" => net::linger_zero(a.fd()?)?.to_string(),
        "set" => net::set(a.fd()?, a.word()?, a.parse()?)?.to_string(),
        "exec" => call::exec(a.word()?)?.to_string(),
        // SAFETY: ends the process.
        "exit" => unsafe { libc::_exit(0) },

        // A delay that is the scenario.
        "sleep" => sleep(a.parse()?),

        // Other processes.
        "socketpair" => call::socketpair()?,
        "send-fd" => call::send_fd(a.fd()?, a.fd()?)?.to_string(),
        "recv-fd" => call::recv_fd(a.fd()?)?.to_string(),
        "fork" => return fork(a.word()?, a.word()?),
        _ => return Err(Problem::Usage("no such command")),
    };
    Ok(value)
}

fn sleep(ms: u64) -> String {
    std::thread::sleep(std::time::Duration::from_millis(ms));
    ms.to_string()
}

/// Commands between `;`, one right behind the other: the last one's answer, or the first errno.
fn all(commands: &str) -> Result<String, Problem> {
    commands.split(';').try_fold(String::new(), |_, command| run(command.trim()))
}

/// The child takes its commands from a Unix socket at `path`; the parent answers with its pid.
fn fork(name: &str, path: &str) -> Result<String, Problem> {
    // SAFETY: the process has one thread.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok(pid.to_string());
    }
    set_name(name);
    let Ok(stream) = UnixStream::connect(path) else { std::process::exit(1) };
    let fd = std::os::fd::IntoRawFd::into_raw_fd(stream);
    // SAFETY: descriptors of ours.
    unsafe {
        libc::dup2(fd, libc::STDIN_FILENO);
        libc::dup2(fd, libc::STDOUT_FILENO);
        libc::close(fd);
    }
    serve();
    std::process::exit(0)
}

fn set_name(name: &str) {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}
