//! `--record`, `--keep` and `replay`: what was recorded is what was shown, whatever happens to the tracer and to
//! the file.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rsttrace_tests::{NetNs, Pair, Tracer, binary, peers::abort, require_root, wait_until};
use serde_json::{Value, json};

/// A directory that is gone with its test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rsttrace-record-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn exists(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn replay(args: &[&str]) -> Output {
    Command::new(binary()).arg("replay").args(args).output().expect("replay runs")
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(bytes).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Ends of connections in a file, in its order.
fn teardowns(file: &str) -> Vec<Value> {
    lines(&replay(&["-j", "-q", file]).stdout).into_iter().filter(|record| record["record"] == "teardown").collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A connection that loses data, one that is aborted while idle, one that ends in order.
fn workload(netns: &NetNs) {
    let mut unread = Pair::inside(netns);
    unread.server.ok("send 1000");
    unread.client.abort();
    let mut idle = Pair::inside(netns);
    idle.client.abort();
    let mut orderly = Pair::inside(netns);
    orderly.client.ok("close");
    orderly.server.ok("close");
}

/// Sockets that end in one workload.
const ENDS: usize = 6;

/// A tracer of one namespace that records in `rec`, with further flags.
fn record(directory: &Directory, netns: &NetNs, flags: &[&str]) -> Tracer {
    Tracer::start(&[&["-a", "--netns", &netns.inode().to_string(), "-w", &directory.path("rec")], flags].concat())
}

/// Works once more, and waits until all `rounds` of it are told.
fn work(netns: &NetNs, tracer: &Tracer, rounds: usize) {
    workload(netns);
    tracer.wait_n("the ends", rounds * ENDS, |record| record["record"] == "teardown");
}

/// Output that goes to a file, byte for byte.
struct Raw {
    child: std::process::Child,
    stderr: PathBuf,
}

impl Raw {
    fn start(directory: &Directory, stdout: &str, args: &[&str]) -> Self {
        let stderr = directory.0.join(format!("{stdout}.stderr"));
        let file = |path: &Path| File::create(path).expect("a file");
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(file(&directory.0.join(stdout))).stderr(file(&stderr));
        let raw = Self { child: command.spawn().expect("the tracer"), stderr };
        wait_until("the tracer is ready", || raw.said().contains("rsttrace: ready"));
        raw
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn stop(mut self) -> String {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        assert!(self.child.wait().expect("an end").success());
        self.said()
    }
}

#[test]
fn a_replay_is_the_run_byte_for_byte() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    let inode = netns.inode().to_string();
    let recording = directory.path("rec");
    let json = Raw::start(&directory, "json", &["-a", "-j", "--netns", &inode, "-w", &recording]);
    let text =
        Raw::start(&directory, "text", &["-a", "-v", "--time", "utc", "--netns", &inode, "--record", &directory.path("rec-of-text")]);
    for _ in 0..3 {
        workload(&netns);
    }
    let live = directory.path("json");
    let count = |name: &str| fs::read(directory.path(name)).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
    wait_until("all ends are told", || count("json") > 3 * ENDS);
    wait_until("and in text", || fs::read_to_string(directory.path("text")).unwrap_or_default().contains("FIN sent"));
    let (said_json, said_text) = (json.stop(), text.stop());

    let written = fs::read(&live).expect("the lines");
    let again = replay(&["--json", &recording]);
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(written, again.stdout, "byte for byte");
    assert_eq!(lines(&written).iter().filter(|record| record["record"] == "teardown").count(), 3 * ENDS);
    // The same from the saved lines, from a pipe, by the other name, and with another program's eyes.
    let pipe = Command::new(binary()).args(["-r", "-", "-j", "-q"]).stdin(File::open(&recording).expect("it")).output().expect("replay");
    let saved = replay(&["-jq", &live]);
    let zcat = Command::new("zcat").stdin(File::open(&recording).expect("it")).output().expect("zcat");
    assert!([pipe.stdout, saved.stdout, zcat.stdout].iter().all(|bytes| *bytes == written));

    // What is said at the end, without the comparison with the kernel's counters, which are of that time.
    let sums = |said: &str| {
        let lines = said.lines().filter(|line| !line.starts_with("rsttrace: ") && !line.starts_with("the kernel's counters"));
        lines.map(|line| line.split(';').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(sums(&said(&again)), sums(&said_json));

    // Text is the same but for digits below a microsecond, which JSON does not have, and the order of what happened within one.
    let coarse_line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_short = |at: usize| words.get(at + 1).is_some_and(|unit| unit.starts_with("us") || unit.starts_with("ns"));
        let said = |(at, word): (usize, &&str)| match *word {
            _ if is_short(at) => "N".to_owned(),
            unit if at > 0 && is_short(at - 1) => unit.replacen("ns", "us", 1),
            other => other.to_owned(),
        };
        // A moment within the same microsecond.
        format!(" {}", words.iter().enumerate().map(said).collect::<Vec<_>>().join(" ")).replace(" N us ", " 0 ")
    };
    let coarse = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(coarse_line).collect();
        lines.sort();
        lines
    };
    let shown = fs::read_to_string(directory.path("text")).expect("the text");
    let again = replay(&["-v", "--time", "utc", &directory.path("rec-of-text")]);
    assert_eq!(coarse(&String::from_utf8_lossy(&again.stdout)), coarse(&shown));
    assert_eq!(sums(&said(&again)), sums(&said_text));
}

#[test]
fn filters_choose_from_a_recording_as_from_a_run() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    let tracer = record(&directory, &netns, &[]);
    work(&netns, &tracer, 1);
    let run = tracer.stop();
    let some = run.teardowns().next().expect("a record");
    let port = some["local"]["port"].as_u64().expect("a port");
    type Choice<'a> = Box<dyn Fn(&Value) -> bool + 'a>;
    let cases: [(&[&str], Choice<'_>); 6] = [
        (&["--harm", "lost"], Box::new(|record| record["harm"] == "lost")),
        (&["-p", "server"], Box::new(|record| record["owner"]["comm"] == "server" || record["closer"]["comm"] == "server")),
        (&["--errno", "ECONNRESET"], Box::new(|record| record["observer"]["errno"] == "ECONNRESET")),
        (&["--local-port", &port.to_string()], Box::new(|record: &Value| record["local"]["port"] == port)),
        (&["--end", "fin"], Box::new(|record| record["end"] == "fin")),
        (&["--cause", "orderly"], Box::new(|record| record["cause"] == "orderly")),
    ];
    for (flags, choice) in cases {
        let output = replay(&[&["-j", &directory.path("rec")], flags].concat());
        let told = lines(&output.stdout);
        let chosen: Vec<_> = told.iter().filter(|record| record["record"] == "teardown").cloned().collect();
        let expected: Vec<_> = run.teardowns().filter(|record| choice(record)).cloned().collect();
        assert_eq!(chosen, expected, "{flags:?}");
        let summary = told.last().expect("a summary");
        let shown: u64 = summary["sockets"].as_object().expect("sums").values().filter_map(Value::as_u64).sum();
        // The run itself left out what was not of its namespace.
        let left_out = run.summary["filtered"].as_u64().map(|n| n + (ENDS - expected.len()) as u64);
        assert_eq!((shown as usize, summary["filtered"].as_u64()), (expected.len(), left_out), "{flags:?}");
        assert_eq!(told[0]["filters"].as_array().expect("filters").len(), 2, "the run's and ours");
    }
    assert_eq!(replay(&["--fail-on", "harm=lost", &directory.path("rec")]).status.code(), Some(4));
}

#[test]
fn an_error_that_was_noticed_late_is_chosen_by_what_its_socket_was() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    let tracer = record(&directory, &netns, &["--join-timeout", "200ms"]);
    let mut pair = Pair::inside(&netns);
    pair.client.abort();
    tracer.wait("an end that is not noticed yet", |record| record["seen"] == "not-yet");
    assert_eq!(pair.server.fails("recv 10"), "ECONNRESET");
    let late = tracer.wait("a late observation", |record| record["record"] == "late-observation");
    tracer.stop();
    let (here, elsewhere) = (netns.inode().to_string(), (netns.inode() + 1).to_string());
    let cases: [(&[&str], bool); 6] = [
        (&["--netns", &here], true),
        (&["--netns", &elsewhere], false),
        (&["--end", "reset-received"], true),
        (&["--end", "timeout"], false),
        (&["--pid", "server"], true),
        (&["--pid", "client"], false),
    ];
    for (flags, chosen) in cases {
        let told = lines(&replay(&[&["-jq", &directory.path("rec")], flags].concat()).stdout);
        let found: Vec<_> = told.iter().filter(|record| record["record"] == "late-observation").collect();
        assert_eq!(found, [&late].into_iter().filter(|_| chosen).collect::<Vec<_>>(), "{flags:?}");
    }
}

#[test]
fn after_a_crash_what_was_complete_is_there() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    let recording = directory.path("rec");
    let tracer = record(&directory, &netns, &[]);
    work(&netns, &tracer, 1);
    wait_until("they are in the file", || teardowns(&recording).len() == ENDS);
    tracer.signal(libc::SIGKILL);
    let run = tracer.finish_unchecked();
    let output = replay(&["-j", &recording]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(lines(&output.stdout), run.records);

    // The next run goes on in it, and a block that was cut does not hide it.
    let whole = fs::read(&recording).expect("the file");
    fs::write(&recording, &whole[..whole.len() - 30]).expect("cut");
    let tracer = record(&directory, &netns, &[]);
    work(&netns, &tracer, 1);
    let second = tracer.stop();
    let output = replay(&["-j", &recording]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(":byte ") && said(&output).contains("this block is damaged"), "{}", said(&output));
    let told = lines(&output.stdout);
    assert_eq!(told[told.len() - second.records.len()..], second.records);

    let newer: Vec<u8> = whole.iter().enumerate().map(|(at, byte)| if at == 16 { 2 } else { *byte }).collect();
    fs::write(&recording, newer).expect("changed");
    let output = replay(&[&recording]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("rec:byte 0: this block is of a newer version of rsttrace (layout 2, and this one reads 1)"),
        "{}",
        said(&output)
    );
}

/// A run whose stdout nobody reads, while so many connections are aborted; then something happens that ends it. What was
/// recorded.
fn recorded_unread(connections: usize, end: impl FnOnce(&mut std::process::Child)) -> Vec<Value> {
    let (directory, netns) = (Directory::new(), NetNs::new());
    let recording = directory.path("rec");
    let stderr = directory.0.join("stderr");
    let mut command = Command::new(binary());
    command.args(["-a", "-j", "--netns", &netns.inode().to_string(), "-w", &recording]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(File::create(&stderr).expect("a file")).spawn().expect("the tracer");
    wait_until("the tracer is ready", || fs::read_to_string(&stderr).unwrap_or_default().contains("rsttrace: ready"));
    netns.run_in(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        for _ in 0..connections {
            let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
            let server = listener.accept().expect("its other end");
            abort(client);
            drop(server);
        }
    });
    end(&mut child);
    assert!(child.wait().expect("an end").success());
    let told = lines(&replay(&["-jq", &recording]).stdout);
    let summary = told.last().expect("lines");
    assert_eq!((&summary["record"], &summary["lost"]["total"]), (&json!("summary"), &json!(0)));
    let ended: u64 = summary["sockets"].as_object().expect("sums").values().filter_map(Value::as_u64).sum();
    assert_eq!(ended, told.iter().filter(|record| record["record"] == "teardown").count() as u64);
    told
}

#[test]
fn a_reader_of_stdout_that_goes_takes_nothing_from_the_recording() {
    require_root!();
    // More than pipe and buffers hold, and less.
    for connections in [300, 3] {
        let told = recorded_unread(connections, |child| drop(child.stdout.take()));
        assert_eq!(told.iter().filter(|record| record["record"] == "teardown").count(), 2 * connections);
    }
}

#[test]
fn nor_does_one_that_does_not_read() {
    require_root!();
    let told = recorded_unread(300, |child| {
        let waits_for_room = || {
            let call = fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
            [libc::SYS_poll, libc::SYS_ppoll].iter().any(|poll| call.starts_with(&format!("{poll} ")))
        };
        wait_until("the tracer waits for its reader", waits_for_room);
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    });
    assert_eq!(told.iter().filter(|record| record["record"] == "teardown").count(), 600);
}

#[test]
fn a_full_file_moves_on_and_nothing_is_missing() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    // A directory of somebody else, in whose name files are made all the same.
    std::os::unix::fs::chown(&directory.0, Some(65_534), Some(65_534)).expect("chown");
    let tracer = record(&directory, &netns, &["--record-time", "1ms", "--record-files", "1000"]);
    let mut rounds = 0;
    while !directory.exists("rec.2") {
        rounds += 1;
        work(&netns, &tracer, rounds);
    }
    let run = tracer.stop();
    let mut files: Vec<_> = (1..1000).map(|n| format!("rec.{n}")).take_while(|name| directory.exists(name)).collect();
    files.reverse();
    files.push("rec".to_owned());
    let files: Vec<_> = files.iter().map(|name| directory.path(name)).collect();
    let args: Vec<_> = ["-j"].into_iter().chain(files.iter().map(String::as_str)).collect();
    assert_eq!(lines(&replay(&args).stdout), run.records);
    // Each tells of its run: the same as the first of them, but for since when.
    for file in &files[1..] {
        let mut first = lines(&replay(&["-jq", file]).stdout).swap_remove(0);
        assert!(first["continued"].is_string(), "{first}");
        first["continued"] = Value::Null;
        assert_eq!(first, run.records[0]);
    }
}

#[test]
fn a_file_that_was_moved_away_is_made_again_on_sighup() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    let recording = directory.path("rec");
    let tracer = record(&directory, &netns, &[]);
    work(&netns, &tracer, 1);
    fs::rename(&recording, directory.path("old")).expect("rename");
    tracer.signal(libc::SIGHUP);
    wait_until("a new file", || directory.exists("rec"));
    work(&netns, &tracer, 2);
    let run = tracer.stop();
    assert_eq!(teardowns(&directory.path("old")).len(), ENDS, "what came before is in the old one");
    assert_eq!(lines(&replay(&["-j", &directory.path("old"), &recording]).stdout), run.records);
}

#[test]
fn what_is_kept_is_written_when_it_hurts_and_when_asked() {
    require_root!();
    let (directory, netns) = (Directory::new(), NetNs::new());
    let recording = directory.path("rec");
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode, "-w", &recording, "--keep", "10m", "--trigger", "harm=lost"]);
    let mut idle = Pair::inside(&netns);
    idle.client.abort();
    tracer.wait_n("harmless ends", 2, |record| record["harm"] == "none");
    assert_eq!(fs::metadata(&recording).expect("the file").len(), 0, "nothing has happened");
    let mut unread = Pair::inside(&netns);
    unread.server.ok("send 1000");
    unread.client.abort();
    let words = tracer.wait_stderr("rsttrace: wrote ");
    assert!(words.contains("4 records (") && words.contains(" of the last 600 s to "), "{words}");
    assert_eq!(teardowns(&recording).len(), 4);

    let mut idle = Pair::inside(&netns);
    idle.client.abort();
    tracer.wait_n("harmless ends", 4, |record| record["harm"] == "none");
    tracer.signal(libc::SIGUSR2);
    tracer.wait_stderr("rsttrace: wrote 2 records (");
    let run = tracer.stop();
    assert_eq!(teardowns(&recording), run.teardowns().cloned().collect::<Vec<_>>());
    let told = lines(&replay(&["-j", &recording]).stdout);
    assert_eq!(told[0], run.records[0], "the beginning of the run is there");
    let spans: Vec<_> = told.iter().filter(|line| line["record"] == "kept").map(|line| (&line["from"], &line["to"])).collect();
    assert!(matches!(spans[..], [(a, b), (c, d)] if text(a) < text(b) && text(b) <= text(c) && text(c) < text(d)), "{spans:?}");
}

#[test]
fn a_file_that_is_no_recording_is_left_alone() {
    let directory = Directory::new();
    let file = directory.path("notes");
    fs::write(&file, "mine\n").expect("a file");
    let refused = |args: &[&str]| {
        let output = Command::new(binary()).args(args).output().expect("it runs");
        (output.status.code(), said(&output))
    };
    let (code, words) = refused(&["-w", &file, "-d", "1s"]);
    assert!(code == Some(1) && words.contains("notes: is there, and is no recording: give another name"), "{words}");
    assert_eq!(fs::read_to_string(&file).expect("it"), "mine\n");
    let (code, words) = refused(&["-w", "/nonexistent/rec", "-d", "1s"]);
    assert!(code == Some(1) && words.contains("--record: /nonexistent/rec: No such file or directory"), "{words}");
    let (code, _) = refused(&["--keep", "1m"]);
    assert_eq!(code, Some(2), "where to write it is not said");
    let (code, words) = refused(&["replay", &file]);
    assert!(code == Some(1) && words.contains("notes is neither a recording nor what --json"), "{words}");
}
