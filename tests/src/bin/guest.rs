//! Init of the machine that `cargo xtask vm` boots: there is nothing else in it but the tracer and
//! the demo's workload, all three linked statically. Called by the name `ss`, it is what the
//! workload needs of that: `ss -tK FILTER`.
//!
//! It traces the workload and tells everything on the console, a line each: `@KIND text`. The last
//! one says how many there were, so that what a broken console swallowed is missed. Whatever else
//! is on the console is the kernel's.

use std::{
    cell::Cell,
    env,
    ffi::{CStr, CString},
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Write},
    mem::size_of_val,
    net::SocketAddrV4,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const TRACER: &str = "/bin/rsttrace";
const WORKLOAD: &str = "/bin/workload";
const RECORDS: &str = "/run/records";
const MODULES: &str = "/modules";

/// Under emulation, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Twice the tracer's `--join-timeout`: nothing is outstanding any more.
const SETTLE: Duration = Duration::from_secs(2);
/// The workload pauses for 150 ms before it announces what it does next; we read that a little later.
const PAUSE: Duration = Duration::from_millis(140);

fn main() -> ExitCode {
    if env::args().next().is_some_and(|name| name == "ss") {
        return exit_code(env::args().nth(2).as_deref().map_or(Err(ErrorKind::InvalidInput.into()), kill_connection));
    }
    if std::process::id() != 1 {
        eprintln!("this is init of the machines that `cargo xtask vm` boots, and powers off when it is done");
        return ExitCode::FAILURE;
    }
    let console = Console { lines: Cell::new(0) };
    // The firmware leaves its last line unfinished.
    println!();
    if let Err(error) = prepare().and_then(|()| trace(&console)) {
        console.say("failed", &error.to_string());
    }
    console.say("end", &(console.lines.get() + 1).to_string());
    // SAFETY: no preconditions.
    let off = check(unsafe {
        libc::tcdrain(libc::STDOUT_FILENO);
        libc::reboot(libc::RB_POWER_OFF)
    });
    exit_code(off.map(drop))
}

fn exit_code(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The framed lines, counted.
struct Console {
    lines: Cell<usize>,
}

impl Console {
    fn say(&self, kind: &str, text: &str) {
        // In one write each, so that lines of the kernel come between and not within.
        let _ = io::stdout().lock().write_all(format!("@{kind} {text}\n").as_bytes());
        self.lines.set(self.lines.get() + 1);
    }

    fn say_all(&self, kind: &str, text: &str) {
        text.lines().for_each(|line| self.say(kind, line));
    }
}

/// What a distribution would have done.
fn prepare() -> io::Result<()> {
    for (what, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("cgroup2", "/sys/fs/cgroup"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        mount(what, at).map_err(|error| named(&format!("cannot mount {what} at {at}"), &error))?;
    }
    for module in sorted_files(MODULES)? {
        load_module(&module).map_err(|error| named(&format!("cannot load {}", module.display()), &error))?;
    }
    loopback_up().map_err(|error| named("cannot bring lo up", &error))
}

/// The order of their names happens to be that of their dependencies.
fn sorted_files(dir: &str) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.sort();
    Ok(files)
}

fn load_module(file: &Path) -> io::Result<()> {
    /// `MODULE_INIT_COMPRESSED_FILE`
    const COMPRESSED: libc::c_int = 4;
    let flags = if file.extension().is_some_and(|extension| extension == "ko") { 0 } else { COMPRESSED };
    let module = File::open(file)?;
    // SAFETY: a descriptor, a C string and flags.
    check(unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), flags) } as i32).map(drop)
}

fn mount(what: &str, at: &str) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let (kind, target) = (CString::new(what)?, CString::new(at)?);
    // SAFETY: C strings, and no data.
    check(unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) }).map(drop)
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: a new descriptor of ours.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0))?) };
    // SAFETY: a request of the kind that this ioctl reads.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// The steps, in their order.
fn trace(console: &Console) -> io::Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    console.say("kernel", kernel.trim_end());
    let version = Command::new(TRACER).arg("--version").output()?;
    console.say_all("version", &String::from_utf8_lossy(&version.stdout));

    let mut command = Command::new(TRACER);
    // Further flags come from the kernel's command line, which hands what follows `--` to init.
    command.args(["--json", "-a", "-d", "120s"]).args(env::args_os().skip(1)).stdout(File::create(RECORDS)?);
    let tracer = Program::start("tracer", Duration::ZERO, &mut command)?;
    let outcome = work_traced(console, &tracer);
    thread::sleep(SETTLE);
    // SAFETY: a child of ours that has not been waited for.
    unsafe { libc::kill(tracer.child.id() as libc::pid_t, libc::SIGTERM) };
    let stopped = tracer.finish(console);
    console.say_all("record", &fs::read_to_string(RECORDS)?);
    for file in ["snmp", "netstat"] {
        console.say_all(file, &fs::read_to_string(format!("/proc/net/{file}"))?);
    }
    outcome.and(stopped)
}

fn work_traced(console: &Console, tracer: &Program) -> io::Result<()> {
    if !tracer.hear(console, |line| line.contains("ready: "))? {
        return Err(io::Error::other("the tracer ended before it was ready"));
    }
    for program in programs()? {
        console.say("program", &program);
    }
    Program::start("workload", PAUSE, Command::new(WORKLOAD).env("PATH", "/bin"))?.finish(console)
}

/// A child, and its stderr by lines.
struct Program {
    name: &'static str,
    child: Child,
    stderr: mpsc::Receiver<String>,
}

impl Program {
    /// The time of each line is that of its arrival, less `pause`.
    fn start(name: &'static str, pause: Duration, command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| named(&format!("cannot start the {name}"), &error))?;
        let Some(stderr) = child.stderr.take() else { return Err(io::Error::other("a child without stderr")) };
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(format!("{} {line}", before(pause)));
            }
        });
        Ok(Self { name, child, stderr: receiver })
    }

    /// Passes its stderr on, up to the line that is wanted; `false`: it ended before.
    fn hear(&self, console: &Console, wanted: impl Fn(&str) -> bool) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    console.say(self.name, &line);
                    if wanted(&line) {
                        return Ok(true);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(false),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    console.say_all("process", &processes()?);
                    return Err(io::Error::other(format!("the {} took too long", self.name)));
                }
            }
        }
    }

    /// Waits for its success; its end closes its stderr.
    fn finish(mut self, console: &Console) -> io::Result<()> {
        if let Err(error) = self.hear(console, |_| false) {
            self.child.kill()?;
            return Err(error);
        }
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("the {} failed ({status})", self.name))),
        }
    }
}

/// Who is where, when something is stuck: `comm state` and the kernel's stack.
fn processes() -> io::Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        let Ok(stat) = fs::read_to_string(dir.join("stat")) else { continue };
        // Kernel threads have no memory of their own.
        if fs::read_to_string(dir.join("statm")).is_ok_and(|statm| !statm.starts_with("0 ")) {
            let stack = fs::read_to_string(dir.join("stack")).unwrap_or_default();
            text += &format!("{}\n{stack}", stat.split(' ').take(4).collect::<Vec<_>>().join(" "));
        }
    }
    Ok(text)
}

/// So long ago, as the tracer writes the times of its records.
fn before(now: Duration) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(now);
    let seconds = time.as_secs() as libc::time_t;
    // SAFETY: plain data, for which zeroes are valid.
    let mut date: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: room for the result.
    unsafe { libc::gmtime_r(&seconds, &mut date) };
    let (year, month, day) = (date.tm_year + 1900, date.tm_mon + 1, date.tm_mday);
    let (hour, minute, second, fraction) = (date.tm_hour, date.tm_min, date.tm_sec, time.subsec_nanos());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// `ss -tK`: asks the kernel to destroy the socket that `( src ADDR:PORT and dst ADDR:PORT )` names.
fn kill_connection(filter: &str) -> io::Result<()> {
    const SOCK_DESTROY: u16 = 21;
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    let mut addresses = filter.split_whitespace().filter_map(|word| word.parse::<SocketAddrV4>().ok());
    let (Some(local), Some(remote)) = (addresses.next(), addresses.next()) else { return Err(ErrorKind::InvalidInput.into()) };

    // struct nlmsghdr, then struct inet_diag_req_v2.
    let mut message = [0u8; 16 + 56];
    message[0..4].copy_from_slice(&72u32.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message[16] = libc::AF_INET as u8;
    message[17] = libc::IPPROTO_TCP as u8;
    message[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    message[24..26].copy_from_slice(&local.port().to_be_bytes());
    message[26..28].copy_from_slice(&remote.port().to_be_bytes());
    message[28..32].copy_from_slice(&local.ip().octets());
    message[44..48].copy_from_slice(&remote.ip().octets());
    message[64..72].copy_from_slice(&NO_COOKIE);

    // SAFETY: a new descriptor of ours.
    let netlink = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_INET_DIAG))?) };
    // SAFETY: a message of that length.
    check(unsafe { libc::send(netlink.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) } as i32)?;
    // The answer is struct nlmsgerr: 0 or a negative errno behind the header.
    let mut answer = [0u8; 20];
    // SAFETY: room for that many bytes.
    check(unsafe { libc::recv(netlink.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) } as i32)?;
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// `union bpf_attr`, as much of it as is needed here: `{start_id | prog_id, next_id}` or `{bpf_fd, info_len, info}`.
#[repr(C)]
struct Attr {
    first: u32,
    second: u32,
    third: u64,
}

const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: an attribute of that size; where it has an address, `info` is behind it.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of_val(attr)) } as i32)
}

/// Every BPF program of this machine: `name verified-instructions translated-bytes`. The first number is 0 before 5.16.
fn programs() -> io::Result<Vec<String>> {
    let mut programs = Vec::new();
    let mut id = 0;
    loop {
        let mut next = Attr { first: id, second: 0, third: 0 };
        match bpf(PROG_GET_NEXT_ID, &mut next) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(programs),
            result => result?,
        };
        id = next.second;
        let fd = bpf(PROG_GET_FD_BY_ID, &mut Attr { first: id, second: 0, third: 0 })?;
        // SAFETY: a new descriptor of ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        programs.push(describe(&fd)?);
    }
}

/// Reads `struct bpf_prog_info` at the offsets that its ABI has.
fn describe(program: &OwnedFd) -> io::Result<String> {
    const XLATED_PROG_LEN: usize = 20;
    const NAME: usize = 64;
    const VERIFIED_INSNS: usize = 216;
    let mut info = [0u8; 256];
    let length = info.len() as u32;
    bpf(OBJ_GET_INFO_BY_FD, &mut Attr { first: program.as_raw_fd() as u32, second: length, third: info.as_mut_ptr() as u64 })?;
    let number = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let name = CStr::from_bytes_until_nul(&info[NAME..]).unwrap_or_default().to_string_lossy();
    Ok(format!("{name} {} {}", number(VERIFIED_INSNS), number(XLATED_PROG_LEN)))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}
