//! Driving scripted processes, see `src/bin/actor`.

use std::{
    fmt::Display,
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{DEADLINE, Flow, NetNs, wait_until};

/// A file descriptor's number in an actor.
pub type Fd = i32;

/// A process that does one system call when told to. It is killed on drop.
pub struct Actor {
    name: String,
    pid: libc::pid_t,
    /// Names this very process, whatever becomes of its number.
    pidfd: OwnedFd,
    replies: BufReader<UnixStream>,
    commands: UnixStream,
    /// The process, or strace in front of it; none for a fork of another actor.
    child: Option<Child>,
}

impl Actor {
    /// Starts one; `name` is its comm.
    #[track_caller]
    pub fn spawn(name: &str) -> Self {
        let mut command = Command::new(program());
        command.arg(name);
        Self::start(command, name)
    }

    /// Starts one inside a network namespace.
    #[track_caller]
    pub fn spawn_in(netns: &NetNs, name: &str) -> Self {
        let mut command = Command::new(program());
        command.arg(name);
        netns.enter(&mut command);
        Self::start(command, name)
    }

    /// Starts one under `strace -f -y`, which writes every call to a file.
    #[track_caller]
    pub fn spawn_under_strace(name: &str, output: &Path) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-o"]).arg(output).arg(program()).arg(name);
        Self::start(command, name)
    }

    #[track_caller]
    fn start(mut command: Command, name: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        command.stdin(OwnedFd::from(theirs.try_clone().expect("dup"))).stdout(OwnedFd::from(theirs));
        // It ends with the thread that started it, the test's.
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Self::greet(ours, name, Some(child))
    }

    #[track_caller]
    fn greet(stream: UnixStream, name: &str, child: Option<Child>) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("socket option");
        let mut replies = BufReader::new(stream.try_clone().expect("dup"));
        let mut hello = String::new();
        replies.read_line(&mut hello).expect("an actor says its pid");
        let pid: libc::pid_t = hello.trim().parse().unwrap_or_else(|_| panic!("an actor said {hello:?}"));
        // SAFETY: no memory involved; the result is a new descriptor.
        let pidfd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            assert!(fd >= 0, "pidfd_open({pid}): {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd as libc::c_int)
        };
        Self { name: name.to_owned(), pid, pidfd, replies, commands: stream, child }
    }

    /// Forks it: the new process has all its descriptors.
    #[track_caller]
    pub fn fork(&mut self, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rsttrace-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("bind");
        self.ok(format!("fork {name} {}", path.display()));
        let (stream, _) = listener.accept().expect("accept");
        let _ = fs::remove_file(&path);
        Self::greet(stream, name, None)
    }

    /// The process's id.
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Its comm.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs one command: what it returned, or the symbol of its errno.
    #[track_caller]
    pub fn call(&mut self, command: impl Display) -> Result<String, String> {
        self.begin(command);
        self.reply()
    }

    /// Sends a command that may block; [`reply`](Self::reply) must follow.
    #[track_caller]
    pub fn begin(&mut self, command: impl Display) {
        writeln!(self.commands, "{command}").expect("an actor takes commands");
    }

    /// The outcome of the last command.
    #[track_caller]
    pub fn reply(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.replies.read_line(&mut line) {
            Ok(n) if n > 0 => {}
            outcome => panic!("{} ({}) gave no reply: {outcome:?}", self.name, self.pid),
        }
        match line.trim_end().split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            Some(("errno", symbol)) => Err(symbol.to_owned()),
            _ if line.trim_end() == "ok" => Ok(String::new()),
            _ => panic!("{} ({}): {line}", self.name, self.pid),
        }
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&mut self, command: impl Display) -> String {
        let text = command.to_string();
        match self.call(command) {
            Ok(value) => value,
            Err(errno) => panic!("{} ({}): {text}: {errno}", self.name, self.pid),
        }
    }

    /// Runs a command that must succeed and gives one thing.
    #[track_caller]
    pub fn get<T: FromStr>(&mut self, command: impl Display) -> T {
        let text = command.to_string();
        let value = self.ok(command);
        value.parse().unwrap_or_else(|_| panic!("{}: {text} gave {value:?}", self.name))
    }

    /// Runs a command that must fail, and gives the symbol of its errno.
    #[track_caller]
    pub fn fails(&mut self, command: impl Display) -> String {
        let text = command.to_string();
        match self.call(command) {
            Ok(value) => panic!("{} ({}): {text} gave {value:?}", self.name, self.pid),
            Err(errno) => errno,
        }
    }

    /// Makes a listener on an address (port 0: any): its descriptor and address.
    #[track_caller]
    pub fn listen(&mut self, address: &str) -> (Fd, SocketAddr) {
        let fd = self.get(format!("listen {address}"));
        (fd, self.get(format!("local {fd}")))
    }

    /// Connects in blocking mode.
    #[track_caller]
    pub fn connect(&mut self, to: SocketAddr) -> Fd {
        let fd = self.socket(to);
        self.ok(format!("connect {fd} {to}"));
        fd
    }

    /// Makes a socket of an address's family.
    #[track_caller]
    pub fn socket(&mut self, family_of: SocketAddr) -> Fd {
        self.get(format!("socket {}", if family_of.is_ipv4() { 4 } else { 6 }))
    }

    #[track_caller]
    pub fn accept(&mut self, listener: Fd) -> Fd {
        self.get(format!("accept {listener}"))
    }

    /// The socket's two addresses.
    #[track_caller]
    pub fn flow(&mut self, fd: Fd) -> Flow {
        Flow::new(self.get(format!("local {fd}")), self.get(format!("remote {fd}")))
    }

    /// Waits until the process sleeps in a system call.
    #[track_caller]
    pub fn wait_in_syscall(&self, number: libc::c_long) {
        let path = format!("/proc/{}/syscall", self.pid);
        let prefix = format!("{number} ");
        wait_until(&format!("{} is in system call {number}", self.name), || {
            fs::read_to_string(&path).is_ok_and(|text| text.starts_with(&prefix))
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a valid pidfd; the null pointer means no details.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0) };
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(self) {
        drop(self);
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait_gone(&self) {
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        let n = unsafe { libc::poll(&mut poll, 1, DEADLINE.as_millis() as libc::c_int) };
        assert_eq!(n, 1, "{} ({}) does not end", self.name, self.pid);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, DEADLINE.as_millis() as libc::c_int) };
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Cargo builds it beside other programs, and beside the directory of the test binaries.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let beside = own.with_file_name("actor");
    if beside.exists() {
        return beside;
    }
    let directory = own.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    directory.join("actor")
}
