//! The tracer as a child process, its records as they come.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{DEADLINE, Flow, check_record, is_stray, refused::Refused};

/// `rsttrace --json`, running.
pub struct Tracer {
    log: Arc<Log>,
    pid: libc::pid_t,
    refused: Refused,
    /// Nobody reads its stdout as long as this is there.
    unread: Option<mpsc::Sender<()>>,
}

/// What a tracer that has ended left behind.
pub struct Run {
    /// Every record, from `start` to `summary`.
    pub records: Vec<Value>,
    pub summary: Value,
    pub stderr: String,
    pub status: ExitStatus,
}

impl Run {
    /// The teardowns alone.
    pub fn teardowns(&self) -> impl Iterator<Item = &Value> {
        self.records.iter().filter(|record| record["record"] == "teardown")
    }
}

/// Everything that the reading threads have seen, and a bell for every change.
#[derive(Default)]
struct Log {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    records: Vec<Value>,
    /// Lines that are no JSON.
    problems: Vec<String>,
    stderr: String,
    stderr_closed: bool,
    status: Option<ExitStatus>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `find` gives something; `Err` with what was seen at the deadline.
    fn wait<T>(&self, deadline: Duration, mut find: impl FnMut(&Seen) -> Option<T>) -> Result<T, MutexGuard<'_, Seen>> {
        let end = Instant::now() + deadline;
        let mut seen = self.lock();
        loop {
            if let Some(found) = find(&seen) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(seen);
            }
            seen = self.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Tracer {
    /// Starts `rsttrace --json ARGS` and returns when it is ready.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.arg("--json").args(args);
        Self::start_command(command)
    }

    /// The same, but its stdout is a small pipe that nobody reads until [`read_on`](Self::read_on).
    #[track_caller]
    pub fn start_unread(args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.arg("--json").args(args);
        let (unread, until) = mpsc::channel();
        let mut tracer = Self::launch(command, Some(until));
        tracer.unread = Some(unread);
        tracer
    }

    /// Starts a prepared command (which must say `--json`) and returns when it is ready.
    #[track_caller]
    pub fn start_command(command: Command) -> Self {
        Self::launch(command, None)
    }

    #[track_caller]
    fn launch(mut command: Command, unread_until: Option<mpsc::Receiver<()>>) -> Self {
        let program = command.get_program().to_owned();
        let refused = Refused::from_now_on();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let log = Arc::new(Log::default());
        let (send_pid, receive_pid) = std::sync::mpsc::channel();
        let for_thread = Arc::clone(&log);
        // The parent-death signal is the spawning thread's: it must live as long as the child.
        thread::spawn(move || {
            let log = for_thread;
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let _ = send_pid.send(Err(error));
                    return;
                }
            };
            let stderr = child.stderr.take();
            let _ = send_pid.send(Ok(child.id() as libc::pid_t));
            thread::scope(|scope| {
                scope.spawn(|| {
                    for line in stderr.into_iter().flat_map(|pipe| BufReader::new(pipe).split(b'\n')) {
                        let Ok(line) = line else { break };
                        log.update(|seen| {
                            seen.stderr.push_str(&String::from_utf8_lossy(&line));
                            seen.stderr.push('\n');
                        });
                    }
                    log.update(|seen| seen.stderr_closed = true);
                });
                let stdout = child.stdout.take();
                if let (Some(pipe), Some(until)) = (&stdout, unread_until) {
                    // SAFETY: a valid descriptor; one page is the least that a pipe has.
                    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 1) };
                    let _ = until.recv();
                }
                for line in stdout.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
                    let Ok(line) = line else { break };
                    // Not checked here: the tracer must not wait for us.
                    let record = serde_json::from_str(&line);
                    log.update(|seen| match record {
                        Ok(record) => seen.records.push(record),
                        Err(error) => seen.problems.push(format!("not JSON ({error}): {line}")),
                    });
                }
                // Reaped under the lock: whoever sends a signal sees it alive, or its status.
                await_end(child.id());
                log.update(|seen| seen.status = child.wait().ok());
            });
        });
        let pid = match receive_pid.recv() {
            Ok(Ok(pid)) => pid,
            Ok(Err(error)) => panic!("cannot run {}: {error}", program.display()),
            Err(_) => panic!("the tracer's thread died"),
        };
        let tracer = Self { log, pid, refused, unread: None };
        tracer.wait_stderr("rsttrace: ready");
        tracer
    }

    /// Waits until it cannot write to its stdout: it waits for nothing else in poll().
    #[track_caller]
    pub fn wait_stuck(&self) {
        crate::wait_until("the tracer waits for its reader", || self.is_stuck());
    }

    /// Whether it waits for somebody to read its stdout.
    pub fn is_stuck(&self) -> bool {
        let call = fs::read_to_string(format!("/proc/{}/syscall", self.pid)).unwrap_or_default();
        [libc::SYS_poll, libc::SYS_ppoll].iter().any(|poll| call.starts_with(&format!("{poll} ")))
    }

    /// From now on somebody reads its stdout.
    pub fn read_on(&mut self) {
        self.unread = None;
    }

    /// Waits for a record that satisfies the condition; panics at the deadline, or if the record
    /// breaks the contract.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.wait_n(what, 1, condition).swap_remove(0)
    }

    /// Waits for `n` records that satisfy the condition, in order of appearance.
    #[track_caller]
    pub fn wait_n(&self, what: &str, n: usize, condition: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut found = Vec::new();
        let mut looked_at = 0;
        let outcome = self.log.wait(DEADLINE, |seen| {
            if !seen.problems.is_empty() {
                return Some(Err(format!("the contract is broken:\n{}", seen.problems.join("\n"))));
            }
            let new = &seen.records[looked_at..];
            found.extend(new.iter().filter(|record| condition(record)).cloned());
            looked_at = seen.records.len();
            if found.len() >= n {
                return Some(Ok(()));
            }
            seen.status.map(|status| Err(format!("the tracer ended ({status}):\n{}", seen.stderr)))
        });
        match outcome {
            Ok(Ok(())) => {
                found.truncate(n);
                for record in &found {
                    require_valid(record);
                }
                found
            }
            Ok(Err(problem)) => panic!("while waiting for {what}: {problem}"),
            Err(seen) => {
                let total = seen.records.len();
                let last: Vec<_> = seen.records.iter().rev().take(60).rev().map(Value::to_string).collect();
                let (count, stderr) = (found.len(), seen.stderr.clone());
                drop(seen);
                panic!(
                    "no record (or too few, {count} of {n}) of {what}; {total} records, the last:\n{}\nstderr:\n{stderr}",
                    last.join("\n"),
                )
            }
        }
    }

    /// The record of one socket (never that of a RST without a socket).
    #[track_caller]
    pub fn teardown(&self, flow: Flow) -> Value {
        self.wait(&format!("the end of {flow}"), |record| record["record"] == "teardown" && !is_stray(record) && flow.matches(record))
    }

    /// The record of a RST that went out for these addresses without a socket.
    #[track_caller]
    pub fn stray(&self, flow: Flow) -> Value {
        self.wait(&format!("a RST without a socket, {flow}"), |record| is_stray(record) && flow.matches(record))
    }

    /// Waits for a line on stderr that contains `text`, and returns it; panics at the deadline.
    #[track_caller]
    pub fn wait_stderr(&self, text: &str) -> String {
        let outcome = self.log.wait(DEADLINE + Duration::from_secs(5), |seen| {
            let found = seen.stderr.lines().find(|line| line.contains(text)).map(str::to_owned);
            match (found, seen.status) {
                (Some(line), _) => Some(Some(line)),
                (None, Some(_)) if seen.stderr_closed => Some(None),
                _ => None,
            }
        });
        match outcome {
            Ok(Some(line)) => line,
            Ok(None) => panic!("the tracer ended without \"{text}\":\n{}", self.stderr()),
            Err(seen) => {
                let stderr = seen.stderr.clone();
                drop(seen);
                panic!("no \"{text}\" on stderr:\n{stderr}")
            }
        }
    }

    /// Everything printed so far.
    pub fn records(&self) -> Vec<Value> {
        self.log.lock().records.clone()
    }

    /// Records so far that satisfy a condition.
    pub fn matching(&self, condition: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.log.lock().records.iter().filter(|record| condition(record)).cloned().collect()
    }

    pub fn stderr(&self) -> String {
        self.log.lock().stderr.clone()
    }

    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Sends a signal, unless the tracer has ended.
    pub fn signal(&self, signal: libc::c_int) {
        let seen = self.log.lock();
        if seen.status.is_none() {
            // SAFETY: no memory involved; the child is not yet reaped, so the pid is its own.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// Ends the tracer with SIGTERM, see [`finish`](Self::finish).
    #[track_caller]
    pub fn stop(self) -> Run {
        self.signal(libc::SIGTERM);
        self.finish()
    }

    /// Waits for the tracer's own end, and checks that its output is whole: every line valid,
    /// `start` first, `summary` last.
    #[track_caller]
    pub fn finish(self) -> Run {
        let run = self.finish_unchecked();
        let kinds: Vec<_> = run.records.iter().map(|record| record["record"].clone()).collect();
        assert_eq!(kinds.first().and_then(Value::as_str), Some("start"), "the first record");
        assert_eq!(kinds.last().and_then(Value::as_str), Some("summary"), "the last record");
        for kind in ["start", "summary"] {
            assert_eq!(kinds.iter().filter(|k| *k == kind).count(), 1, "records of kind {kind}");
        }
        run
    }

    /// Waits for the tracer's own end; its output may be cut. No tracer may have been refused a call.
    #[track_caller]
    pub fn finish_unchecked(mut self) -> Run {
        let outcome = self.log.wait(DEADLINE * 2, |seen| (seen.stderr_closed && seen.status.is_some()).then_some(seen.status).flatten());
        // The guard in an error must be gone: stderr() takes the lock too.
        let Some(status) = outcome.ok() else { panic!("the tracer does not end:\n{}", self.stderr()) };
        let refused = self.refused.lines();
        assert!(refused.is_empty(), "a tracer was refused calls by its sandbox:\n{}", refused.concat());
        let seen = self.log.lock();
        assert!(seen.problems.is_empty(), "the contract is broken:\n{}", seen.problems.join("\n"));
        seen.records.iter().for_each(require_valid);
        Run {
            records: seen.records.clone(),
            summary: seen.records.last().cloned().unwrap_or_default(),
            stderr: seen.stderr.clone(),
            status,
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
    }
}

/// Panics where a record breaks the contract.
#[track_caller]
fn require_valid(record: &Value) {
    if let Err(problem) = check_record(record) {
        panic!("the contract is broken: {problem}\nrecord: {record}");
    }
}

/// Waits until a child has ended, and leaves it to be reaped.
fn await_end(pid: u32) {
    // SAFETY: plain data, for which zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is ours.
    unsafe { libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT) };
}

/// The tracer under test: `$RSTTRACE_BIN`, or the workspace's release build.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("RSTTRACE_BIN") {
        return path.into();
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("release/rsttrace")
}

/// A copy of the tracer that everybody may run, in a directory that everybody may enter.
pub struct PublicCopy(PathBuf);

impl PublicCopy {
    #[expect(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("rsttrace-copy-{}-{number}", std::process::id()));
        // By another process: while a descriptor for writing is open here, a test that forks would keep the file busy.
        let status = Command::new("cp").arg(binary()).arg(&path).status().expect("cp");
        assert!(status.success(), "cp: {status}");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One tracer for all tests of a binary, which see everything and pick by addresses; it ends with
/// the test process.
pub fn shared() -> &'static Tracer {
    static SHARED: OnceLock<Tracer> = OnceLock::new();
    SHARED.get_or_init(|| Tracer::start(&["-a", "--join-timeout", "3s"]))
}
