//! The command line with root: what it selects, how it stops, what it leaves behind, and what it
//! says where it cannot run.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use rsttrace_tests::{
    Actor, NetNs, PublicCopy, Run, Tracer, binary,
    bpf::{bpf_object_exists, bpf_objects},
    is_stray,
    peers::abort,
    require_root, require_tool, wait_until,
};
use serde_json::Value;

/// Runs the tracer to its end, which must come by itself.
fn run(args: &[&str]) -> Output {
    output(Command::new(binary()).args(args))
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_refused(output: &Output, status: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "\"{word}\" is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty(), "records on stdout: {}", String::from_utf8_lossy(&output.stdout));
}

fn temporary(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("rsttrace-cli-{}-{number}-{name}", std::process::id()))
}

/// A tracer with text output, into a file.
struct Text {
    child: std::process::Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Text {
    fn start(args: &[&str]) -> Self {
        let (stdout, stderr) = (temporary("stdout"), temporary("stderr"));
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null());
        command.stdout(File::create(&stdout).expect("a file"));
        command.stderr(File::create(&stderr).expect("a file"));
        die_with_us(&mut command);
        let text = Self { child: command.spawn().expect("rsttrace"), stdout, stderr };
        wait_until("rsttrace: ready", || text.stderr().contains("rsttrace: ready"));
        text
    }

    fn stdout(&self) -> Vec<u8> {
        fs::read(&self.stdout).expect("stdout")
    }

    fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).expect("stderr")
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.stdout()).lines().map(str::to_owned).collect()
    }

    fn stop(mut self) -> Vec<u8> {
        signal(self.child.id(), libc::SIGTERM);
        let status = self.child.wait().expect("the tracer's end");
        assert!(status.success(), "{status}: {}", self.stderr());
        self.stdout()
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.stdout);
        let _ = fs::remove_file(&self.stderr);
    }
}

fn die_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: no memory involved; callers own the child and have not reaped it.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}

/// A listener where one was a moment ago: a process that another test is about to start has copies
/// of our sockets until its execve().
fn listener(address: SocketAddr) -> TcpListener {
    let mut bound = None;
    wait_until("the address is free", || {
        bound = TcpListener::bind(address).ok();
        bound.is_some()
    });
    bound.expect("a listener")
}

/// One connection that the client aborts and whose server sees it: two abnormal ends.
fn reset(server: SocketAddr) {
    reset_from(server, server);
}

/// The same, where the client connects to another name of the server's address.
fn reset_from(server: SocketAddr, to: SocketAddr) {
    let listener = listener(server);
    let client = TcpStream::connect(to).expect("connect");
    let (mut accepted, _) = listener.accept().expect("accept");
    abort(client);
    let error = accepted.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn refused(address: SocketAddr) {
    let error = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn orderly(address: SocketAddr) {
    let listener = listener(address);
    let client = TcpStream::connect(address).expect("connect");
    let (mut accepted, _) = listener.accept().expect("accept");
    drop(client);
    assert_eq!(accepted.read(&mut [0]).expect("a FIN"), 0);
}

fn v4(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn v6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

/// What tells records apart; strays have no cookie.
fn identities(run: &Run) -> BTreeSet<String> {
    run.teardowns().map(identity).collect()
}

fn identity(record: &Value) -> String {
    format!("{} {} {} {}", record["cookie"], record["local"], record["remote"], record["end"])
}

// ---- what is selected ----

/// A filter's arguments and its meaning, said again as a function of a record.
type Filter = (&'static [&'static str], fn(&Value) -> bool);

fn port(record: &Value, end: &str) -> u64 {
    record[end]["port"].as_u64().expect("a port")
}

fn address<'a>(record: &'a Value, end: &str) -> &'a str {
    record[end]["addr"].as_str().expect("an address")
}

fn either(record: &Value, condition: impl Fn(&str) -> bool) -> bool {
    condition(address(record, "local")) || condition(address(record, "remote"))
}

fn errno(record: &Value) -> &str {
    record["observer"]["errno"].as_str().unwrap_or("none")
}

const FILTERS: &[Filter] = &[
    (&["-L", "8001"], |r| port(r, "local") == 8001),
    (&["--local-port", "8001,8003"], |r| matches!(port(r, "local"), 8001 | 8003)),
    (&["-L", "8001-8003"], |r| matches!(port(r, "local"), 8001..=8003)),
    (&["-L", "8001", "-L", "8003"], |r| matches!(port(r, "local"), 8001 | 8003)),
    (&["-D", "8002-8004"], |r| matches!(port(r, "remote"), 8002..=8004)),
    (&["--remote-port", "8005"], |r| port(r, "remote") == 8005),
    (&["--port", "8001,8005-8006"], |r| [port(r, "local"), port(r, "remote")].iter().any(|port| matches!(port, 8001 | 8005 | 8006))),
    (&["-D", "8001", "-L", "1-65535"], |r| port(r, "remote") == 8001),
    (&["--addr", "127.1.0.0/16"], |r| either(r, |a| a.starts_with("127.1."))),
    (&["--addr", "!127.1.0.0/16"], |r| !either(r, |a| a.starts_with("127.1."))),
    (&["--addr", "127.0.0.0/8", "--addr", "!127.1.0.0/16"], |r| {
        either(r, |a| a.starts_with("127.")) && !either(r, |a| a.starts_with("127.1."))
    }),
    (&["--addr", "::1"], |r| either(r, |a| a == "::1")),
    (&["--addr", "::/0"], |r| either(r, |a| a.contains(':'))),
    (&["--local-addr", "127.1.0.1"], |r| address(r, "local") == "127.1.0.1"),
    (&["--remote-addr", "127.1.0.1,::1"], |r| matches!(address(r, "remote"), "127.1.0.1" | "::1")),
    (&["--remote-addr", "!127.0.0.1"], |r| address(r, "remote") != "127.0.0.1"),
    (&["-4"], |r| r["family"] == "ipv4"),
    (&["-6"], |r| r["family"] == "ipv6"),
    (&["--errno", "ECONNRESET"], |r| errno(r) == "ECONNRESET"),
    (&["--errno", "104"], |r| errno(r) == "ECONNRESET"),
    (&["--errno", "ECONNREFUSED,104"], |r| matches!(errno(r), "ECONNRESET" | "ECONNREFUSED")),
    (&["--end", "reset"], |r| r["end"] == "reset-received" || r["end"] == "reset-sent"),
    (&["--end", "reset-received"], |r| r["end"] == "reset-received"),
    (&["--end", "reset-sent"], |r| r["end"] == "reset-sent"),
    (&["--end", "fin"], |r| r["end"] == "fin"),
    (&["--end", "fin,reset-sent", "-6"], |r| (r["end"] == "fin" || r["end"] == "reset-sent") && r["family"] == "ipv6"),
];

#[test]
fn every_filter_selects_what_its_words_say_and_nothing_else() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let common = ["--netns", inode.as_str(), "--join-timeout", "10s"];
    // Tracers at once, in parts: what one selects is compared to what another prints of the same.
    for part in FILTERS.chunks(7) {
        let all = Tracer::start(&[&common[..], &["-a"]].concat());
        let tracers: Vec<_> = part.iter().map(|(args, _)| Tracer::start(&[&common[..], &["-a"][..], args].concat())).collect();
        netns.run_in(|| {
            reset(v4(8001));
            reset((Ipv4Addr::new(127, 1, 0, 1), 8002).into());
            reset(v6(8003));
            // A v4-mapped address is IPv4.
            reset_from((Ipv6Addr::UNSPECIFIED, 8004).into(), v4(8004));
            refused(v4(8005));
            refused(v6(8005));
            orderly(v4(8006));
            orderly(v6(8006));
        });
        let all = all.stop();
        let made = |end: &str| all.teardowns().filter(|record| record["end"] == end).count();
        assert_eq!((made("reset-received"), made("reset-sent"), made("fin")), (6, 6, 4));
        for ((args, meaning), tracer) in part.iter().zip(tracers) {
            let run = tracer.stop();
            let expected: BTreeSet<_> = all.teardowns().filter(|r| meaning(r)).map(identity).collect();
            assert!(!expected.is_empty() && expected.len() < 16, "{args:?} tests nothing");
            assert_eq!(identities(&run), expected, "{args:?}");
            let start = &run.records[0];
            assert!(start["filters"].as_array().is_some_and(|words| !words.is_empty()), "{start}");
        }
    }
}

#[test]
fn a_namespace_s_inode_selects_its_sockets_alone_and_so_does_its_name() {
    require_root!();
    let (one, other) = (NetNs::new(), NetNs::new());
    let inode = one.inode().to_string();
    let by_inode = Tracer::start(&["--netns", &inode]);
    let by_name = Tracer::start(&["--netns", one.name()]);
    for netns in [&other, &one, &other] {
        netns.run_in(|| reset(v4(8100)));
    }
    for run in [by_inode.stop(), by_name.stop()] {
        assert_eq!(run.teardowns().count(), 2);
        assert!(run.teardowns().all(|record| record["netns"] == one.inode()));
    }
}

#[test]
fn orderly_ends_are_shown_with_a_and_only_counted_without() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let with = Tracer::start(&["--netns", &inode, "-a"]);
    let without = Tracer::start(&["--netns", &inode]);
    netns.run_in(|| orderly(v4(8101)));
    let (with, without) = (with.stop(), without.stop());
    assert_eq!(with.teardowns().filter(|record| record["end"] == "fin").count(), 2);
    assert_eq!(without.teardowns().count(), 0);
    // The kernel half counts for the whole host.
    assert!(without.summary["orderly"].as_u64().is_some_and(|n| n >= 2), "{}", without.summary);
}

#[test]
fn the_duration_and_the_count_end_the_run() {
    require_root!();
    let begun = Instant::now();
    let run = Tracer::start(&["-d", "1s"]).finish();
    assert!(run.status.success(), "{}", run.status);
    assert!((1..5).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode, "-c", "3"]);
    netns.run_in(|| (0..7).for_each(|_| reset(v4(8102))));
    let run = tracer.finish();
    assert!(run.status.success(), "{}", run.status);
    assert_eq!(run.teardowns().count(), 3);
}

#[test]
fn interrupt_and_terminate_stop_cleanly_with_a_summary() {
    require_root!();
    for number in [libc::SIGINT, libc::SIGTERM] {
        let netns = NetNs::new();
        let inode = netns.inode().to_string();
        let tracer = Tracer::start(&["--netns", &inode]);
        netns.run_in(|| reset(v4(8103)));
        tracer.signal(number);
        let run = tracer.finish();
        assert_eq!(run.status.code(), Some(0), "signal {number}");
        assert_eq!(run.teardowns().count(), 2, "what had ended before signal {number} is printed");
        assert_eq!(run.summary["sockets"]["reset-received"], 1, "{}", run.summary);
        assert!(run.stderr.contains("sockets ended"), "{}", run.stderr);
    }
}

/// A tracer that waits for its reader to take what no pipe holds; the reader's end comes with it.
fn stuck_on_a_full_pipe(args: &[&str]) -> (Child, ChildStdout) {
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let mut command = Command::new(binary());
    command.args(["--json", "--netns", &inode]).args(args).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_us(&mut command);
    let mut child = command.spawn().expect("rsttrace");
    let mut errors = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    assert!(errors.any(|line| line.is_ok_and(|line| line.contains("rsttrace: ready"))));
    let stdout = child.stdout.take().expect("a pipe");
    let call = format!("/proc/{}/syscall", child.id());
    netns.run_in(|| {
        wait_until("the pipe is full and it waits for room in poll()", || {
            reset(v4(8104));
            // 7 is poll(2), 271 ppoll(2); at rest it is in epoll_wait(2).
            fs::read_to_string(&call).is_ok_and(|call| call.starts_with("7 ") || call.starts_with("271 "))
        });
    });
    (child, stdout)
}

#[test]
fn one_signal_ends_it_even_while_nobody_reads_its_output() {
    require_root!();
    for number in [libc::SIGINT, libc::SIGTERM] {
        let (mut child, _unread) = stuck_on_a_full_pipe(&[]);
        signal(child.id(), number);
        wait_until("it is gone", || child.try_wait().expect("the child").is_some());
        assert_eq!(child.wait().expect("the child").code(), Some(0));
    }
}

#[test]
fn a_duration_ends_it_even_while_nobody_reads_its_output() {
    require_root!();
    let (mut child, _unread) = stuck_on_a_full_pipe(&["-d", "5s"]);
    wait_until("it is gone", || child.try_wait().expect("the child").is_some());
    assert_eq!(child.wait().expect("the child").code(), Some(0));
}

#[test]
fn a_second_interrupt_ends_it_at_once_even_while_nobody_reads_its_output() {
    require_root!();
    let (mut child, stdout) = stuck_on_a_full_pipe(&[]);
    signal(child.id(), libc::SIGINT);
    wait_until("the first interrupt is taken", || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let pending = |name: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & (1 << (libc::SIGINT - 1)) != 0
        };
        !pending("SigPnd:") && !pending("ShdPnd:")
    });
    assert!(child.try_wait().expect("the child").is_none(), "after one interrupt the reader still has a second");
    signal(child.id(), libc::SIGINT);
    wait_until("it is gone", || child.try_wait().expect("the child").is_some());
    assert_eq!(child.wait().expect("the child").code(), Some(128 + libc::SIGINT));
    drop(stdout);
}

#[test]
fn usr1_says_the_summary_so_far_and_tracing_goes_on() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode]);
    let is_received = |record: &Value| record["end"] == "reset-received";
    netns.run_in(|| reset(v4(8105)));
    tracer.wait_n("resets", 1, is_received);
    tracer.signal(libc::SIGUSR1);
    let line = tracer.wait_stderr("sockets ended");
    assert!(line.contains("1 RST received"), "{line}");
    netns.run_in(|| reset(v4(8105)));
    tracer.wait_n("resets", 2, is_received);
    let run = tracer.stop();
    assert_eq!(run.summary["sockets"]["reset-received"], 2);
    assert_eq!(run.stderr.matches("sockets ended").count(), 2, "{}", run.stderr);
}

// ---- processes ----

/// What an actor does to be the server of a reset.
fn reset_at(server: &mut Actor, client: &mut Actor) {
    let (listener, address) = server.listen("127.0.0.1:0");
    let connected = client.connect(address);
    let accepted = server.accept(listener);
    client.ok(format!("linger0 {connected}"));
    client.ok(format!("close {connected}"));
    assert_eq!(server.fails(format!("recv {accepted} 10")), "ECONNRESET");
    server.ok(format!("close {accepted}"));
    server.ok(format!("close {listener}"));
}

#[test]
fn a_process_is_chosen_by_number_name_list_or_command_line() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let mut server = Actor::spawn_in(&netns, "cli-server");
    let mut other = Actor::spawn_in(&netns, "cli-other");
    let mut client = Actor::spawn_in(&netns, "cli-client");
    let pid = server.pid().to_string();
    let list = format!("cli-other,{pid}");
    let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("cmdline");
    let command_line: String = command_line.chars().map(|c| if c == '\0' { ' ' } else { c }).collect();
    let command_line = command_line.trim();
    let choices: [(&str, &str, &[&Actor]); 5] = [
        ("-p", &pid, &[&server]),
        ("--pid", "cli-server", &[&server]),
        ("--pid", &list, &[&server, &other]),
        ("--cmdline", command_line, &[&server]),
        ("--pid", "cli-client", &[&client]),
    ];
    let expected: Vec<BTreeSet<u64>> = choices.iter().map(|(.., who)| who.iter().map(|actor| actor.pid() as u64).collect()).collect();
    let tracers: Vec<_> =
        choices.iter().map(|(flag, value, _)| Tracer::start(&["--netns", &inode, "--join-timeout", "10s", flag, value])).collect();
    reset_at(&mut server, &mut client);
    reset_at(&mut other, &mut client);
    for (tracer, owners) in tracers.into_iter().zip(expected) {
        let run = tracer.stop();
        let seen: BTreeSet<u64> = run.teardowns().filter_map(|record| record["owner"]["tgid"].as_u64()).collect();
        assert_eq!(seen, owners, "{:?}", run.records[0]["filters"]);
    }
}

#[test]
fn a_name_that_nobody_has_yet_is_waited_for_and_a_close_one_is_proposed() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let mut like_it = Actor::spawn_in(&netns, "cli-workers");
    let mut client = Actor::spawn_in(&netns, "cli-peer");
    let tracer = Tracer::start(&["--netns", &inode, "--join-timeout", "10s", "-p", "cli-worker"]);
    let said = tracer.wait_stderr("did you mean");
    assert!(said.contains("cli-workers"), "{said}");
    reset_at(&mut like_it, &mut client);
    // A namesake of the tracer's own test: the name must be exact.
    let mut worker = Actor::spawn_in(&netns, "cli-worker");
    reset_at(&mut worker, &mut client);
    let run = tracer.stop();
    let owners: Vec<_> = run.teardowns().map(|record| record["owner"]["tgid"].clone()).collect();
    assert_eq!(owners, [worker.pid()], "{}", run.stderr);
}

#[test]
fn a_number_that_is_no_process_is_a_usage_error() {
    require_root!();
    // Beyond any pid_max.
    assert_refused(&run(&["-d", "1s", "-p", "4194305"]), 2, &["4194305", "no process"]);
}

#[test]
fn a_command_is_run_and_traced_and_its_end_is_the_end() {
    require_root!();
    require_tool!("bash");
    let netns = NetNs::new();
    let mut command = Command::new(binary());
    command.args(["--json", "--", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9; exit 3"]);
    netns.enter(&mut command);
    let run = Tracer::start_command(command).finish();
    assert_eq!(run.status.code(), Some(3), "its own: {}", run.stderr);
    assert!(run.stderr.contains("rsttrace: bash exited with status 3"), "{}", run.stderr);
    let ends: Vec<_> = run.teardowns().collect();
    assert_eq!(ends.len(), 1, "only the command's: {ends:?}");
    let observer = &ends[0]["observer"];
    assert_eq!((&observer["comm"], &observer["errno"]), (&"bash".into(), &"ECONNREFUSED".into()));
    assert_eq!(ends[0]["remote"]["port"], 9);
}

#[test]
fn the_exit_status_is_the_commands_where_nothing_else_is_to_be_said() {
    require_root!();
    require_tool!("bash");
    let run_in = |args: &[&str]| {
        let netns = NetNs::new();
        let mut command = Command::new(binary());
        command.args(args);
        netns.enter(&mut command);
        output(&mut command)
    };
    let run = run_in(&["-p", "nobody-has-it", "--", "true"]);
    assert!(stderr(&run).contains("ready: tracing true, nobody-has-it (0 processes);"), "{}", stderr(&run));
    let refused = "exec 3<>/dev/tcp/127.0.0.1/9; exit 3";
    for (args, code, words) in [
        (&["--", "true"][..], 0, None),
        (&["--", "sh", "-c", "kill -TERM $$"], 128 + libc::SIGTERM, Some("rsttrace: sh was ended by SIGTERM")),
        (&["--fail-on", "cause=refused", "--", "bash", "-c", refused], 4, Some("rsttrace: bash exited with status 3")),
        (&["--fail-on", "cause=time-wait", "--", "bash", "-c", refused], 3, Some("rsttrace: bash exited with status 3")),
        (&["-q", "--", "sh", "-c", "exit 3"], 3, None),
    ] {
        let run = run_in(args);
        assert_eq!(run.status.code(), Some(code), "{args:?}: {}", stderr(&run));
        let said = stderr(&run);
        let said = said.lines().find(|line| line.contains("exited with") || line.contains("was ended by"));
        assert_eq!(said, words, "{args:?}");
    }
    // It waits for its stdin, which ends after the run.
    let mut command = Command::new(binary());
    command.args(["-d", "300ms", "--", "sh", "-c", "read line; exit 3"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("rsttrace");
    let stdin = child.stdin.take();
    let mut first = String::new();
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    while said.read_line(&mut first).expect("stderr") > 0 && !first.contains("goes on") {}
    assert_eq!(child.wait().expect("its end").code(), Some(0), "{first}");
    drop(stdin);
}

#[test]
fn what_a_traced_command_prints_is_not_among_the_records() {
    require_root!();
    let run = output(Command::new(binary()).args(["--json", "--", "echo", "printed by the command"]));
    let stdout = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{stdout}");
    assert!(stderr(&run).contains("printed by the command"), "{}", stderr(&run));
}

#[test]
fn a_command_that_cannot_be_run_is_named() {
    require_root!();
    let run = run(&["--", "/nonexistent/command"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("/nonexistent/command: No such file"), "{}", stderr(&run));
}

#[test]
fn a_process_called_clear_screen_does_not_clear_the_screen() {
    require_root!();
    const NAME: &str = "\x1b[2J\x1b[31mred\x07";
    for color in ["never", "always"] {
        let netns = NetNs::new();
        let inode = netns.inode().to_string();
        let text = Text::start(&["--netns", &inode, "-a", "--color", color]);
        let json = Tracer::start(&["--netns", &inode]);
        let mut server = Actor::spawn_in(&netns, NAME);
        let mut client = Actor::spawn_in(&netns, "cli-client");
        reset_at(&mut server, &mut client);
        let record = json.wait("the server's end", |record| record["end"] == "reset-received");
        assert_eq!(record["owner"]["comm"], NAME, "JSON escapes by itself");
        // A harmless reset is plain; an orderly end has a style of its own.
        netns.run_in(|| orderly(v4(8115)));
        // Both halves of a connection are one line.
        wait_until("both connections are printed", || text.lines().len() >= 2);
        let printed = text.stop();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        assert!(printed.contains("red"), "{printed:?}");
        assert!(!printed.contains("\x1b[2J") && !printed.contains('\x07'), "{color}: {printed:?}");
        assert!(!printed.contains("\x1b[31mred"), "{color}: {printed:?}");
        assert_eq!(printed.contains('\x1b'), color == "always", "{color}: {printed:?}");
    }
}

#[test]
fn text_says_the_time_of_the_record_in_the_way_that_was_asked_for() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let json = Tracer::start(&["--netns", &inode]);
    let utc = Text::start(&["--netns", &inode, "--time", "utc", "--ascii"]);
    let relative = Text::start(&["--netns", &inode, "--time", "relative"]);
    netns.run_in(|| reset(v4(8116)));
    let times: BTreeSet<String> = json
        .wait_n("both ends", 2, |record| record["record"] == "teardown")
        .iter()
        .map(|record| record["time"].as_str().expect("a time")[11..23].to_owned())
        .collect();
    for text in [&utc, &relative] {
        wait_until("the connection is printed", || text.lines().len() == 1);
    }
    let printed = utc.stop();
    assert!(printed.is_ascii(), "{}", String::from_utf8_lossy(&printed));
    let printed = String::from_utf8_lossy(&printed).into_owned();
    // Every tracer has its own offset between the clocks: allow for the last digit.
    let ms = |time: &str| -> i64 {
        let digits: String = time.chars().filter(char::is_ascii_digit).collect();
        digits.parse().expect("a time")
    };
    for line in printed.lines() {
        let time = line.split(' ').next().expect("a time");
        assert!(times.iter().any(|known| (ms(known) - ms(time)).abs() <= 1), "{time} is not of {times:?}");
    }
    for line in relative.lines() {
        let seconds: f64 = line.split_whitespace().next().expect("a time").parse().expect("seconds");
        assert!((0.0..15.0).contains(&seconds), "{line}");
    }
}

#[test]
fn quiet_leaves_stderr_to_warnings_and_errors() {
    require_root!();
    let run = run(&["-q", "-d", "300ms"]);
    assert_eq!(run.status.code(), Some(0));
    assert_eq!(stderr(&run), "");
}

// ---- where output goes ----

#[test]
fn a_full_disk_is_a_failure_with_words() {
    require_root!();
    let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
    for (args, needs_traffic) in [(&["--json", "-d", "10s"][..], false), (&["-d", "10s"][..], true)] {
        let netns = NetNs::new();
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(full()).stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn().expect("rsttrace");
        let mut errors = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        while errors.read_line(&mut said).expect("stderr") > 0 {
            if said.contains("rsttrace: ready") && needs_traffic {
                netns.run_in(|| reset(v4(8106)));
                break;
            }
        }
        errors.read_to_string(&mut said).expect("stderr");
        let status = child.wait().expect("the tracer's end");
        assert_eq!(status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("No space left on device"), "{args:?}: {said}");
        assert!(said.contains("stdout") || said.contains("standard output"), "{args:?}: {said}");
    }
}

#[test]
fn a_closed_pipe_ends_it_cleanly() {
    require_root!();
    require_tool!("bash");
    // With records under way, and with none: then poll() alone tells.
    for traffic in [true, false] {
        let netns = NetNs::new();
        let inode = netns.inode().to_string();
        let mut command = Command::new("bash");
        command.arg("-c").arg(r#""$0" --json --netns "$1" | head -1; exit "${PIPESTATUS[0]}""#);
        command.arg(binary()).arg(&inode).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_us(&mut command);
        let mut child = command.spawn().expect("bash");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        stdout.read_line(&mut first).expect("a line");
        assert!(first.contains("\"record\":\"start\""), "{first}");
        if traffic {
            netns.run_in(|| (0..3).for_each(|_| reset(v4(8107))));
        }
        wait_until("it has ended", || child.try_wait().expect("the child").is_some());
        let mut said = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("stderr");
        assert_eq!(child.wait().expect("the child").code(), Some(0), "traffic: {traffic}: {said}");
        assert!(!said.contains("roken pipe") && !said.contains("panicked"), "{said}");
    }
}

#[test]
fn two_tracers_at_once_print_the_same() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let args = ["--netns", &inode, "-a", "--join-timeout", "10s"];
    let (one, two) = (Tracer::start(&args), Tracer::start(&args));
    netns.run_in(|| {
        for _ in 0..101 {
            reset(v4(8108));
            refused(v4(8109));
            orderly(v6(8110));
        }
    });
    let (one, two) = (one.stop(), two.stop());
    // Each reads its own clock, a few microseconds apart.
    let told = |run: &Run| -> BTreeSet<String> {
        let without_clocks = |record: &Value| {
            let mut record = record.clone();
            for pointer in
                ["/time", "/age_us", "/observer/delay_us", "/fin/half_closed_us", "/fin/since_us", "/released/after_us", "/idle_ms"]
            {
                if let Some(value) = record.pointer_mut(pointer) {
                    *value = Value::Null;
                }
            }
            record.to_string()
        };
        run.teardowns().map(without_clocks).collect()
    };
    assert_eq!(one.teardowns().count(), 101 * 6);
    assert_eq!(one.teardowns().filter(|record| is_stray(record)).count(), 101);
    let (one, two) = (told(&one), told(&two));
    let differences: Vec<_> = one.symmetric_difference(&two).take(4).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

// ---- what stays ----

fn pinned() -> BTreeSet<PathBuf> {
    fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn nothing_stays_attached_loaded_or_pinned_after_sigkill() {
    require_root!();
    let before = pinned();
    let tracer = Tracer::start(&[]);
    let objects = bpf_objects(tracer.pid());
    let of_kind = |command: libc::c_int| objects.iter().filter(|(kind, _)| *kind == command).count();
    assert!(of_kind(14) > 0 && of_kind(30) > 0, "no maps or links: {objects:?}");
    assert!(objects.iter().all(|object| bpf_object_exists(*object)), "{objects:?}");
    tracer.signal(libc::SIGKILL);
    drop(tracer.finish_unchecked());
    wait_until("the kernel has freed everything", || !objects.iter().any(|object| bpf_object_exists(*object)));
    assert_eq!(pinned(), before);
}

// ---- where it cannot run, or not fully ----

#[test]
fn without_rights_it_says_which_and_how_to_get_them() {
    require_root!();
    require_tool!("setpriv");
    let copy = PublicCopy::new();
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let run = output(Command::new("setpriv").args(nobody).arg(copy.path()).args(["-d", "1s"]));
    assert_refused(&run, 3, &["CAP_BPF", "sudo"]);
    // Root in name only.
    let poor = ["--bounding-set", "-bpf,-sys_admin"];
    let run = output(Command::new("setpriv").args(poor).arg(binary()).args(["-d", "1s"]));
    assert_refused(&run, 3, &["CAP_BPF"]);
}

#[test]
fn two_capabilities_are_enough_and_what_they_cost_is_said() {
    require_root!();
    require_tool!("setpriv");
    let copy = PublicCopy::new();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps", "+bpf,+perfmon", "--ambient-caps", "+bpf,+perfmon"]);
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    command.arg(copy.path()).args(["--json", "--netns", &inode]);
    let tracer = Tracer::start_command(command);
    netns.run_in(|| reset(v4(8111)));
    let record = tracer.wait("the server's end", |record| record["end"] == "reset-received");
    assert_eq!(record["observer"]["errno"], "ECONNRESET");
    let said = tracer.stop().stderr;
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("warning")).collect();
    assert!(warnings.iter().any(|line| line.contains("cgroup/getsockopt")), "{said}");
}

#[test]
fn without_btf_it_says_what_the_kernel_lacks() {
    require_root!();
    require_tool!("unshare");
    let empty = temporary("empty");
    fs::create_dir(&empty).expect("a directory");
    let script = r#"mount --bind "$0" /sys/kernel/btf && exec "$1" -d 1s"#;
    let run = output(Command::new("unshare").args(["-m", "sh", "-c", script]).arg(&empty).arg(binary()));
    let _ = fs::remove_dir(&empty);
    assert_refused(&run, 3, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
}

#[test]
fn in_another_pid_namespace_processes_cannot_be_chosen_but_ends_are_traced() {
    require_root!();
    require_tool!("unshare");
    let unshared = ["-p", "-f", "--mount-proc", "--kill-child"];
    let run = output(Command::new("unshare").args(unshared).arg(binary()).args(["-d", "1s", "-p", "1"]));
    assert_refused(&run, 3, &["PID namespace", "hint"]);

    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let mut command = Command::new("unshare");
    command.args(unshared).arg(binary()).args(["--json", "-d", "3s", "--netns", &inode]);
    let tracer = Tracer::start_command(command);
    assert!(tracer.stderr().contains("PID namespace"), "{}", tracer.stderr());
    netns.run_in(|| reset(v4(8112)));
    let record = tracer.wait("the server's end", |record| record["end"] == "reset-received");
    assert_eq!(record["observer"]["tgid"], std::process::id(), "numbers are the host's");
    assert!(tracer.finish().status.success());
}

/// A mount of its own: remounting /proc would change the host's.
fn with_hidden_processes(setpriv: &[&str], tracer: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", r#"mount -t proc -o hidepid=2 proc /proc && exec "$@""#, "sh"]);
    if !setpriv.is_empty() {
        command.arg("setpriv").args(setpriv);
    }
    command.arg(tracer).args(args);
    command
}

const CAPABLE_NOBODY: [&str; 9] = [
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
    "--inh-caps",
    "+bpf,+perfmon,+net_admin",
    "--ambient-caps",
    "+bpf,+perfmon,+net_admin",
];

#[test]
fn hidden_processes_are_warned_about_and_not_called_inexistent() {
    require_root!();
    require_tool!("setpriv");
    let copy = PublicCopy::new();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let args = ["--json", "--netns", inode.as_str()];
    let tracer = Tracer::start_command(with_hidden_processes(&CAPABLE_NOBODY, copy.path(), &args));
    netns.run_in(|| reset(v4(8113)));
    let record = tracer.wait("the server's end", |record| record["end"] == "reset-received");
    assert_eq!(record["observer"]["tgid"], std::process::id(), "the kernel hides nothing");
    let said = tracer.stop().stderr;
    assert!(said.contains("hidepid"), "{said}");

    // The kernel's numbers are enough to choose a process that /proc does not show.
    let mut server = Actor::spawn_in(&netns, "cli-hidden");
    let mut client = Actor::spawn_in(&netns, "cli-client");
    let pid = server.pid().to_string();
    let args = ["--json", "--netns", inode.as_str(), "-p", &pid];
    let tracer = Tracer::start_command(with_hidden_processes(&CAPABLE_NOBODY, copy.path(), &args));
    reset_at(&mut server, &mut client);
    let run = tracer.stop();
    let owners: Vec<_> = run.teardowns().map(|record| record["owner"]["tgid"].clone()).collect();
    assert_eq!(owners, [server.pid()], "{}", run.stderr);
    for wrong in ["no process", "gone"] {
        assert!(!run.stderr.contains(wrong), "process {pid} is there, and only hidden: {}", run.stderr);
    }
}

#[test]
fn root_sees_hidden_processes_and_is_not_warned() {
    require_root!();
    let run = output(&mut with_hidden_processes(&[], &binary(), &["-d", "500ms", "-p", "1"]));
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(!stderr(&run).contains("hidepid"), "{}", stderr(&run));
}

#[test]
fn a_missing_optional_hook_costs_its_fields_and_one_warning() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode, "--without", "sock_recv_length"]);
    netns.run_in(|| reset(v4(8114)));
    let record = tracer.wait("the server's end", |record| record["end"] == "reset-received");
    let observer = &record["observer"];
    assert_eq!(observer["inferred"], true, "{record}");
    assert_eq!(observer["tgid"], std::process::id(), "concluded from who released it: {record}");
    assert_eq!((&record["seen"], &observer["delay_us"]), (&"yes".into(), &Value::Null), "{record}");
    let run = tracer.stop();
    assert_eq!(run.records[0]["hooks"]["sock_recv_length"], Value::Null);
    let warnings: Vec<_> = run.stderr.lines().filter(|line| line.contains("warning")).collect();
    assert_eq!(warnings.len(), 1, "{}", run.stderr);
    assert!(warnings[0].contains("sock_recv_length"), "{}", warnings[0]);
}

#[test]
fn a_missing_required_hook_is_the_end() {
    require_root!();
    for hook in ["tcp_receive_reset", "inet_sock_set_state"] {
        assert_refused(&run(&["-d", "1s", "--without", hook]), 3, &[hook, "required"]);
    }
}

#[test]
fn values_that_make_no_sense_are_named_in_the_error() {
    require_root!();
    const BAD: &[(&[&str], &str)] = &[
        (&["--port", "70000"], "70000"),
        (&["-L", "0"], "'0'"),
        (&["-D", "90-80"], "90-80"),
        (&["-L", "80,http"], "http"),
        (&["--addr", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["--addr", "10.0.0/8"], "10.0.0/8"),
        (&["--remote-addr", "!fe80::/129"], "fe80::/129"),
        (&["--errno", "ENOSUCH"], "ENOSUCH"),
        (&["--errno", "0"], "'0'"),
        (&["--end", "explosion"], "explosion"),
        (&["--netns", "no-such-namespace"], "no-such-namespace"),
        (&["-d", "soon"], "soon"),
        (&["-d", "0"], "'0'"),
        (&["-c", "0"], "0"),
        (&["--join-timeout=-1s"], "-1s"),
        (&["--time", "martian"], "martian"),
        (&["--color", "pink"], "pink"),
        (&["--buffer", "3q"], "3q"),
        (&["--buffer", "1"], "'1'"),
        (&["--max-sockets", "0"], "0"),
        (&["--without", "tcp_fin"], "tcp_fin"),
        (&["-4", "-6"], "--ipv"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["-p", ""], "--pid"),
    ];
    for (args, named) in BAD {
        assert_refused(&run(args), 2, &[named]);
    }
}
