//! Logs that are followed while the tracer has no rights left: rotation, truncation, files of other
//! users, standard input; and what the join says of lines and records that have no counterpart.

use std::{
    fs::{self, File},
    io::Write,
    net::TcpStream,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use rsttrace_tests::{
    Actor, Flow, NetNs, Pair, PublicCopy, Run, Side, Tracer, binary, expect, peers::abort, require_root, require_tool, wait_until,
};
use serde_json::{Value, json};

const NOBODY: u32 = 65_534;

/// A directory for a log, gone with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rsttrace-logs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a directory for everybody");
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("error.log")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn append(path: &Path) -> File {
    File::options().append(true).create(true).open(path).expect("a log")
}

/// A server whose client has reset it; it takes the error, says so in the log as nginx would, and closes.
#[track_caller]
fn reset_and_say_so(netns: &NetNs, log: &mut impl Write, number: u32) -> Pair {
    let mut pair = Pair::inside(netns);
    pair.client.abort();
    assert_eq!(pair.server.fails("recv 100"), "ECONNRESET");
    log.write_all(line_of(&pair, number).as_bytes()).expect("a line");
    pair.server.ok("close");
    pair
}

fn line_of(pair: &Pair, number: u32) -> String {
    line(pair.server.actor.pid(), &pair.server.flow.remote.ip().to_string(), number)
}

fn line(pid: libc::pid_t, client: &str, number: u32) -> String {
    let now = jiff::Timestamp::now().strftime("%Y/%m/%d %H:%M:%S").to_string();
    format!(
        "{now} [info] {pid}#{pid}: *{number} recv() failed (104: Connection reset by peer) while reading client request line, \
         client: {client}, server: , request: \"GET /{number} HTTP/1.1\"\n"
    )
}

#[track_caller]
fn expect_joined(tracer: &Tracer, pair: &Pair, number: u32) -> Value {
    let record = pair.server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "log": { "side": "client", "request": format!("GET /{number} HTTP/1.1"), "phrase": "reading client request line", "further": [] },
            "log_candidates": [],
        }),
    );
    record
}

fn start(netns: &NetNs, log: &Path, more: &[&str]) -> Tracer {
    let inode = netns.inode().to_string();
    Tracer::start(&[&["--netns", &inode, "--error-log", log.to_str().expect("a path")], more].concat())
}

#[track_caller]
fn counted(run: &Run, expected: Value) {
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&run.summary["log"][key], value, "{key}: {}", run.summary["log"]);
    }
}

#[test]
fn a_log_is_followed_through_rotation_to_a_file_of_another_user() {
    require_root!();
    let (netns, directory) = (NetNs::new(), Directory::new());
    let log = directory.log();
    let mut old = append(&log);
    old.write_all(b"a line of before\n").expect("a line");
    let tracer = start(&netns, &log, &[]);
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut old, 1), 1);

    fs::rename(&log, log.with_extension("log.1")).expect("rename");
    // Nothing has told the writer yet.
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut old, 2), 2);
    let mut new = append(&log);
    chown(&log, Some(NOBODY), Some(NOBODY)).expect("chown");
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).expect("chmod");
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut new, 3), 3);
    // The worker that has not opened its log again yet.
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut old, 4), 4);

    new.set_len(0).expect("truncate");
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut new, 5), 5);

    fs::remove_file(&log).expect("remove");
    let mut again = append(&log);
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut again, 6), 6);
    let run = tracer.stop();
    counted(&run, json!({ "lines": 6, "ends": 6, "joined": 6, "ambiguous": 0, "without_record": 0, "malformed": 0 }));
}

#[test]
fn a_log_that_is_not_there_yet_is_waited_for() {
    require_root!();
    let (netns, directory) = (NetNs::new(), Directory::new());
    let tracer = start(&netns, &directory.log(), &[]);
    tracer.wait_stderr("error.log: No such file or directory (os error 2); waiting for it");
    let mut log = append(&directory.log());
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut log, 1), 1);
    counted(&tracer.stop(), json!({ "joined": 1 }));
}

#[test]
fn a_log_may_come_by_standard_input() {
    require_root!();
    let (netns, directory) = (NetNs::new(), Directory::new());
    let fifo = directory.0.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" --json --netns "$1" --error-log - < "$2""#]);
    command.arg(binary()).arg(netns.inode().to_string()).arg(&fifo);
    let mut log = None;
    let tracer = std::thread::scope(|scope| {
        let writer = scope.spawn(|| File::options().write(true).open(&fifo).expect("the other end"));
        let tracer = Tracer::start_command(command);
        log = writer.join().ok();
        tracer
    });
    let mut log = log.expect("the other end");
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut log, 1), 1);
    // A line in two pieces.
    let mut pair = Pair::inside(&netns);
    pair.client.abort();
    assert_eq!(pair.server.fails("recv 100"), "ECONNRESET");
    let line = line_of(&pair, 2);
    let (head, tail) = line.as_bytes().split_at(40);
    log.write_all(head).and_then(|()| log.write_all(tail)).expect("a line");
    pair.server.ok("close");
    expect_joined(&tracer, &pair, 2);
    // Its end is not the trace's.
    drop(log);
    let pair = reset_and_say_so(&netns, &mut std::io::sink(), 3);
    expect(&pair.server.record(&tracer), json!({ "log": null, "log_candidates": [] }));
    counted(&tracer.stop(), json!({ "lines": 2, "joined": 2, "errors_without_line": 1 }));
}

#[test]
fn lines_without_a_record_and_errors_without_a_line_are_counted_and_shown_on_request() {
    require_root!();
    let (netns, directory) = (NetNs::new(), Directory::new());
    let mut log = append(&directory.log());
    let tracer = start(&netns, &directory.log(), &["--unmatched"]);
    let stranger = Pair::inside(&netns);
    let of_nobody = line_of(&stranger, 7);
    log.write_all(of_nobody.as_bytes()).expect("a line");
    log.write_all(b"2026/11/26 10:00:00 [crit] 7#7: accept4() failed (24: Too many open files)\nnonsense\n").expect("lines");
    let silent = reset_and_say_so(&netns, &mut std::io::sink(), 8);
    expect(&silent.server.record(&tracer), json!({ "log": null, "log_candidates": [] }));
    let shown = tracer.wait("the line of nobody", |record| record["record"] == "log-line");
    expect(&shown, json!({ "log": { "line": of_nobody.trim_end() } }));
    let run = tracer.stop();
    counted(
        &run,
        json!({ "lines": 3, "ends": 2, "joined": 0, "without_record": 1, "no_connection": 1, "malformed": 1, "errors_without_line": 1 }),
    );
}

#[test]
fn a_line_that_may_be_about_either_of_two_is_told_at_both() {
    require_root!();
    let (netns, directory) = (NetNs::new(), Directory::new());
    let mut log = append(&directory.log());
    let tracer = start(&netns, &directory.log(), &[]);
    // One process, one client's address, and one line: which of the two connections did it mean?
    let mut server = Actor::spawn_in(&netns, "server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let connections = ["first", "second"].map(|name| {
        let mut client = Actor::spawn_in(&netns, name);
        let fd = client.connect(address);
        let accepted = server.accept(listener);
        let flow = server.flow(accepted);
        Side::new(client, fd, "client").abort();
        assert_eq!(server.fails(format!("recv {accepted} 100")), "ECONNRESET");
        (accepted, flow)
    });
    log.write_all(line(server.pid(), "127.0.0.1", 1).as_bytes()).expect("a line");
    for (fd, _) in connections {
        server.ok(format!("close {fd}"));
    }
    for (_, flow) in connections {
        let record = tracer.teardown(flow);
        assert_eq!((&record["log"], record["log_candidates"].as_array().map(Vec::len)), (&Value::Null, Some(1)), "{record}");
    }
    counted(&tracer.stop(), json!({ "ends": 1, "joined": 0, "ambiguous": 1 }));
}

#[test]
fn a_container_logs_by_the_numbers_that_its_processes_have_there() {
    require_root!();
    require_tool!("nginx");
    require_tool!("unshare");
    let (netns, directory) = (NetNs::new(), Directory::new());
    let root = directory.0.to_str().expect("a path");
    let http = "http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; \
                server { listen 127.0.0.1:8080; } }";
    let config = format!("daemon off; worker_processes 1; user root; pid pid; error_log error.log info; events {{}} {http}\n");
    fs::write(directory.0.join("nginx.conf"), config).expect("nginx.conf");
    let prefix = format!("{root}/");
    let mut nginx = Command::new("unshare");
    nginx.args(["--pid", "--fork", "--kill-child", "nginx", "-p", &prefix, "-c", "nginx.conf", "-e", "error.log"]).env("TZ", "UTC");
    netns.enter(&mut nginx);
    let mut nginx = nginx.spawn().expect("nginx");
    let connect = || netns.run_in(|| TcpStream::connect("127.0.0.1:8080"));
    wait_until("nginx listens", || connect().is_ok());
    let tracer = start(&netns, &directory.log(), &["--pid", "nginx"]);

    let mut client = connect().expect("a connection");
    client.write_all(b"GET /half HTTP/1.1\r\n").expect("half a request");
    let flow = Flow::of(&client).peer();
    // nginx has read it, or it would find the reset instead of the request's beginning.
    wait_until("nginx has the half", || {
        netns.command("ss", &["-tnH", "sport", "=", ":8080"]).lines().all(|line| line.contains(" 0      0 "))
    });
    abort(client);
    let record = tracer.teardown(flow);
    let worker = record["owner"]["ns_tgid"].as_u64().expect("a number");
    assert!(worker < 100 && record["owner"]["tgid"] != worker, "{record}");
    let line = record["log"]["line"].as_str().expect("a line");
    assert!(line.contains(&format!(" {worker}#{worker}: *")), "{line}");
    counted(&tracer.stop(), json!({ "joined": 1, "without_record": 0 }));
    nginx.kill().and_then(|()| nginx.wait()).expect("its end");
}

#[test]
fn whoever_may_not_read_a_rotated_log_does_not_read_it_by_the_rights_of_the_tracer() {
    require_root!();
    require_tool!("setpriv");
    require_tool!("setcap");
    let (netns, directory) = (NetNs::new(), Directory::new());
    let log = directory.log();
    let mut old = append(&log);
    fs::set_permissions(&log, fs::Permissions::from_mode(0o644)).expect("chmod");
    let copy = PublicCopy::new();
    let setcap =
        Command::new("setcap").arg("cap_bpf,cap_perfmon,cap_net_admin,cap_sys_ptrace,cap_dac_read_search+ep").arg(copy.path()).status();
    assert!(setcap.expect("setcap").success());
    let mut command = Command::new("setpriv");
    let nobody = NOBODY.to_string();
    command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]).arg(copy.path());
    command.args(["--json", "--netns", &netns.inode().to_string(), "--error-log"]).arg(&log);
    let tracer = Tracer::start_command(command);
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut old, 1), 1);
    // As /etc/shadow is.
    fs::rename(&log, log.with_extension("log.1")).expect("rename");
    let mut new = append(&log);
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).expect("chmod");
    let pair = reset_and_say_so(&netns, &mut new, 2);
    expect(&pair.server.record(&tracer), json!({ "log": null, "log_candidates": [] }));
    // It becomes readable.
    fs::set_permissions(&log, fs::Permissions::from_mode(0o644)).expect("chmod");
    expect_joined(&tracer, &reset_and_say_so(&netns, &mut new, 3), 3);
    assert!(tracer.stop().status.success());
}

#[test]
fn what_cannot_be_followed_is_refused_with_a_way_out() {
    let directory = Directory::new();
    let refused = |log: &str, words: &str| {
        let output = Command::new(binary()).args(["--error-log", log]).output().expect("rsttrace");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{log}: {}: {said}", output.status);
    };
    refused(directory.0.to_str().expect("a path"), "it is a directory and no file");
    refused("/dev/null", "it is a device and no file; as standard input it can be read: --error-log - < FILE");
    let file = File::open("/proc/self/status").expect("a file");
    let output = Command::new(binary()).args(["--error-log", "-"]).stdin(file).output().expect("rsttrace");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("standard input is a file: give its name"), "{said}");
}
