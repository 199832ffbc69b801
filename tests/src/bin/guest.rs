//! Init of the machine that `cargo xtask vm` boots: there is nothing else in it but the tracer, the
//! demo's workload, the test programs, and the few tools that those call.
//!
//! It traces the workload, runs the test programs, and tells everything on the console, a line each:
//! `@KIND text`. The last one says how many there were, so that what a broken console swallowed is
//! missed. Whatever else is on the console is the kernel's.

use std::{
    cell::Cell,
    env,
    ffi::{CStr, CString},
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Write},
    mem::size_of_val,
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
const COUNTERS: &str = "/proc/net/snmp";
const MODULES: &str = "/modules";
const SCENARIOS: &str = "/scenarios";
const SKIPS: &str = "/run/skips";

/// Under emulation, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Twice the tracer's `--join-timeout`: nothing is outstanding any more.
const SETTLE: Duration = Duration::from_secs(2);
/// The workload pauses for 150 ms before it announces what it does next; we read that a little later.
const PAUSE: Duration = Duration::from_millis(140);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is init of the machines that `cargo xtask vm` boots, and powers off when it is done");
        return ExitCode::FAILURE;
    }
    let console = Console { lines: Cell::new(0) };
    // The firmware leaves its last line unfinished.
    println!();
    if let Err(error) = prepare().and_then(|()| work(&console)) {
        console.say("failed", &error.to_string());
    }
    // What must be noticed outside is done on purpose.
    if wanted("panic") {
        return ExitCode::FAILURE;
    }
    while wanted("hang") {
        thread::park();
    }
    if !wanted("truncated") {
        console.say("end", &(console.lines.get() + 1).to_string());
    }
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

fn work(console: &Console) -> io::Result<()> {
    // What is to go wrong needs nothing before it.
    if ["panic", "hang", "truncated"].into_iter().any(wanted) {
        return Ok(());
    }
    let quick = wanted("quick");
    trace(console, quick)?;
    if quick { Ok(()) } else { run_scenarios(console) }
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
    load_modules(files(MODULES)?)?;
    loopback_up().map_err(|error| named("cannot bring lo up", &error))
}

fn files(dir: &str) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whatever depends on another is refused until that is there.
fn load_modules(mut modules: Vec<PathBuf>) -> io::Result<()> {
    while !modules.is_empty() {
        let before = modules.len();
        let mut refused = None;
        modules.retain(|module| match load_module(module) {
            Ok(()) => false,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => {
                refused = Some(named(&format!("cannot load {}", module.display()), &error));
                true
            }
        });
        if let Some(refused) = refused
            && modules.len() == before
        {
            return Err(refused);
        }
    }
    Ok(())
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

/// Flags of the tracer under which it traces the workload, one time each: as it is, by probes where
/// functions are traced, and by the exits of all system calls.
const RUNS: [&[&str]; 3] =
    [&[], &["--without", "fentry,fexit"], &["--without", "fentry,fexit,kprobe,sock_recv_length,sock_send_length", "--syscall-hooks"]];

fn trace(console: &Console, quick: bool) -> io::Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    console.say("kernel", kernel.trim_end());
    let version = Command::new(TRACER).arg("--version").output()?;
    console.say_all("version", &String::from_utf8_lossy(&version.stdout));
    // What it finds wrong is in what it says; without the flags of the runs, which it may not know.
    let doctor = Command::new(TRACER).args(["doctor", "--json"]).stderr(Stdio::null()).output()?;
    console.say_all("doctor", &String::from_utf8_lossy(&doctor.stdout));
    // Before 6.1 the other ways are not offered.
    let runs = if quick || older_than(kernel.trim_end(), (6, 1)) { &RUNS[..1] } else { &RUNS };
    runs.iter().try_for_each(|flags| run_workload(console, flags))
}

fn older_than(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < version
}

fn run_workload(console: &Console, flags: &[&str]) -> io::Result<()> {
    console.say("run", if flags.is_empty() { "-".to_owned() } else { flags.join(" ") }.as_str());
    console.say_all("before", &fs::read_to_string(COUNTERS)?);
    let mut command = Command::new(TRACER);
    // Further flags come from the kernel's command line, which hands what follows `--` to init.
    command.args(["--json", "-a", "-d", "120s"]).args(flags).args(further_flags()).stdout(File::create(RECORDS)?);
    let tracer = Program::start("tracer", Duration::ZERO, &mut command)?;
    let outcome = work_traced(console, &tracer);
    thread::sleep(SETTLE);
    // SAFETY: a child of ours that has not been waited for.
    unsafe { libc::kill(tracer.child.id() as libc::pid_t, libc::SIGTERM) };
    let stopped = tracer.finish(console);
    console.say_all("record", &fs::read_to_string(RECORDS)?);
    console.say_all("after", &fs::read_to_string(COUNTERS)?);
    console.say("ended", "run 0");
    outcome.and(stopped)
}

/// What `cargo xtask vm` wants of us is written `vm.WHAT`; all else is for the tracer.
fn further_flags() -> impl Iterator<Item = String> {
    env::args().skip(1).filter(|word| !word.starts_with("vm."))
}

fn wanted(what: &str) -> bool {
    env::args().any(|word| word.strip_prefix("vm.") == Some(what))
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

/// Runs the test programs one after the other, and the confusion generator; what they print is for
/// the host to judge.
fn run_scenarios(console: &Console) -> io::Result<()> {
    let mut programs = files(SCENARIOS)?;
    programs.sort();
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match name.as_str() {
            "actor" => {}
            "confusion" => drop(run_program(console, "scenarios", &program, &["--seed", "1009", "--ends", "1009", "--jobs", "2"])?),
            _ => run_tests(console, &program)?,
        }
    }
    console.say_all("skip", &fs::read_to_string(SKIPS).unwrap_or_default());
    Ok(())
}

/// What fails is run once more, alone: an emulated machine is slow, and some scenarios are a matter of milliseconds.
fn run_tests(console: &Console, program: &Path) -> io::Result<()> {
    let said = run_program(console, "scenarios", program, &["--test-threads", "2"])?;
    let failed: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED")).collect();
    if failed.is_empty() {
        return Ok(());
    }
    run_program(console, "again", program, &[&["--exact", "--test-threads", "1"], &failed[..]].concat()).map(drop)
}

/// Gives what it printed on stdout.
fn run_program(console: &Console, kind: &str, program: &Path, args: &[&str]) -> io::Result<String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    console.say(kind, &name);
    let mut command = Command::new(program);
    command.args(args).env("PATH", "/bin").env("RSTTRACE_BIN", TRACER).env("RSTTRACE_SKIPS", SKIPS).env("RUST_BACKTRACE", "0");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut said = String::new();
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(Result::ok) {
        console.say("said", &line);
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait()?;
    console.say("ended", &format!("{name} {}", status.code().unwrap_or(-1)));
    Ok(said)
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
