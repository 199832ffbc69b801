//! What the tracer needs, what it gives up once it traces, and what works all the same.

use std::{fs, process::Command};

use rsttrace_tests::{Actor, NetNs, Pair, PublicCopy, Tracer, binary, expect, require_root, require_tool, wait_until};
use serde_json::{Value, json};

/// What everything takes; docs/privileges.md.
const ALL: [&str; 5] = ["bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search"];
const NOBODY: &str = "65534";
/// `CAP_DAC_READ_SEARCH` and `CAP_SYS_PTRACE`.
const READERS_CAPABILITIES: u64 = 1 << 2 | 1 << 19;

/// One thread's `/proc/PID/task/TID/status`, by name.
struct Status(String);

impl Status {
    #[track_caller]
    fn get(&self, name: &str) -> &str {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        found.unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    #[track_caller]
    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.get(set), 16).expect("a mask")
    }
}

/// Of every thread of a process.
fn statuses(pid: libc::pid_t) -> Vec<Status> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a living process");
    tasks.map(|task| Status(fs::read_to_string(task.expect("a task").path().join("status")).expect("status"))).collect()
}

fn children(pid: libc::pid_t) -> Vec<libc::pid_t> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().expect("a number")).collect()
}

/// The child that reads /proc.
#[track_caller]
fn reader(tracer: &Tracer) -> libc::pid_t {
    let named = |pid: &libc::pid_t| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "rsttrace-proc\n");
    let readers: Vec<_> = children(tracer.pid()).into_iter().filter(named).collect();
    assert_eq!(readers.len(), 1, "children of the tracer: {:?}", children(tracer.pid()));
    readers[0]
}

fn runs(pid: libc::pid_t) -> bool {
    // A zombie has ended.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a child of our own tracer, which is alive and has not reaped it.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
}

#[track_caller]
fn assert_powerless(tracer: &Tracer) {
    let threads = statuses(tracer.pid());
    assert_eq!(threads.len(), 1, "the filters are per thread");
    for status in &threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status.capabilities(set), 0, "{set}");
        }
        assert_eq!((status.get("NoNewPrivs"), status.get("Seccomp")), ("1", "2"));
    }
}

#[test]
fn the_unit_file_is_one_that_systemd_understands() {
    require_tool!("systemd-analyze");
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rsttrace.service");
    let unit = fs::read_to_string(docs).expect("the unit file");
    // Also where rsttrace and its man page are not installed.
    let unit = unit.replace("ExecStart=rsttrace", "ExecStart=true").replace("Documentation=man:rsttrace(1)\n", "");
    let directory = std::env::temp_dir().join(format!("rsttrace-unit-{}", std::process::id()));
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("rsttrace.service"), unit).expect("a copy");
    let output = Command::new("systemd-analyze").arg("verify").arg(directory.join("rsttrace.service")).output().expect("systemd-analyze");
    let _ = fs::remove_dir_all(&directory);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("rsttrace.service"), "{said}");
}

/// A connection whose server never calls again after the client's reset: the server's record.
fn unobserved(tracer: &Tracer, pair: &mut Pair) -> Value {
    pair.client.abort();
    pair.server.record(tracer)
}

/// A setpriv that becomes nobody with these capabilities.
fn as_nobody(capabilities: &[&str]) -> Command {
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    if !capabilities.is_empty() {
        let list: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
        setpriv.args(["--inh-caps", &list.join(","), "--ambient-caps", &list.join(",")]);
    }
    setpriv
}

fn start(mut command: Command, tracer: &std::path::Path, args: &[&str]) -> Tracer {
    command.arg(tracer).args(["--json", "-v", "--join-timeout", "1s"]).args(args);
    let tracer = Tracer::start_command(command);
    tracer.wait_stderr("rsttrace: sandbox: ");
    tracer
}

#[test]
fn while_records_flow_no_thread_has_a_capability_and_each_is_confined() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["-v", "--join-timeout", "1s", "--netns", &inode]);
    let said = tracer.wait_stderr("rsttrace: sandbox: ");
    assert!(said.contains("no capabilities, ") && said.ends_with(", seccomp"), "{said}");
    assert_powerless(&tracer);
    let mut pair = Pair::inside(&netns);
    let record = unobserved(&tracer, &mut pair);
    expect(&record, json!({ "owner": pair.server.process(), "seen": "not-yet" }));
    assert_powerless(&tracer);

    // Counted in a map of the kernel half, which is read without a capability.
    let Pair { mut client, mut server } = Pair::inside(&netns);
    client.ok("close");
    server.ok("close");
    let run = tracer.stop();
    assert!(run.status.success(), "{}", run.stderr);
    assert!(run.summary["orderly"].as_u64() >= Some(1), "{}", run.summary);
    // What cannot fail is not checked, and must not be refused.
    for (key, path) in [("kernel", "/proc/sys/kernel/osrelease"), ("host", "/proc/sys/kernel/hostname")] {
        assert_eq!(run.records[0][key], fs::read_to_string(path).expect(path).trim_end(), "{key}");
    }
}

#[test]
fn what_reads_proc_can_do_nothing_else_and_ends_with_the_tracer() {
    require_root!();
    let tracer = Tracer::start(&["-v"]);
    tracer.wait_stderr("rsttrace: sandbox: ");
    let reader = reader(&tracer);
    for status in statuses(reader) {
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status.capabilities(set), READERS_CAPABILITIES, "{set}");
        }
        assert_eq!((status.capabilities("CapInh"), status.capabilities("CapAmb")), (0, 0));
        assert_eq!((status.get("NoNewPrivs"), status.get("Seccomp")), ("1", "2"));
    }
    for fd in ["0", "1", "2"] {
        let target = fs::read_link(format!("/proc/{reader}/fd/{fd}")).expect("a descriptor");
        assert_eq!(target.to_string_lossy(), "/dev/null", "the tracer's output is closed when the tracer ends");
    }
    tracer.signal(libc::SIGKILL);
    wait_until("it has ended too", || !runs(reader));
    drop(tracer.finish_unchecked());
}

#[test]
fn signals_for_the_whole_group_leave_names_to_the_summary() {
    require_root!();
    let tracer = Tracer::start(&["-v", "--join-timeout", "1s"]);
    tracer.wait_stderr("rsttrace: sandbox: ");
    let reader = reader(&tracer);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
        kill(reader, signal);
    }
    let mut pair = Pair::new();
    let record = unobserved(&tracer, &mut pair);
    expect(&record, json!({ "owner": pair.server.process() }));
    assert!(runs(reader));
    assert!(tracer.stop().status.success());
}

#[test]
fn tracing_outlives_what_reads_proc_and_says_what_that_costs() {
    require_root!();
    let tracer = Tracer::start(&["-v", "--join-timeout", "1s"]);
    tracer.wait_stderr("rsttrace: sandbox: ");
    let reader = reader(&tracer);
    kill(reader, libc::SIGKILL);
    wait_until("it has ended", || !runs(reader));
    let mut pair = Pair::new();
    pair.client.abort();
    let flow = pair.server.flow;
    expect(&tracer.teardown(flow), json!({ "end": "reset-received", "seen": "not-yet", "owner": null }));
    let mut other = Pair::new();
    other.client.abort();
    assert_eq!(other.server.fails("recv 1"), "ECONNRESET");
    other.server.ok("close");
    expect(&tracer.teardown(other.server.flow), json!({ "owner": other.server.process(), "seen": "yes" }));
    let run = tracer.stop();
    assert!(run.status.success());
    let warnings = run.stderr.lines().filter(|line| line.contains("the process that reads /proc for rsttrace has ended")).count();
    assert_eq!(warnings, 1, "{}", run.stderr);
}

#[test]
fn a_process_that_starts_later_is_known_by_its_executable() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    // Its comm is another: only /proc/PID/exe has this name.
    let tracer = Tracer::start(&["-v", "--netns", &inode, "-p", "actor"]);
    tracer.wait_stderr("rsttrace: sandbox: ");
    let Pair { mut client, mut server } = Pair::inside(&netns);
    client.abort();
    assert_eq!(server.fails("recv 1"), "ECONNRESET");
    server.ok("close");
    expect(&tracer.teardown(server.flow), json!({ "owner": { "comm": "server" } }));
    assert!(tracer.stop().status.success());
}

#[test]
fn a_command_keeps_the_privileges_that_it_was_started_with() {
    require_root!();
    let show = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; : >/dev/null && echo wrote";
    let output = Command::new(binary()).args(["-v", "--", "sh", "-c", show]).output().expect("rsttrace");
    let said = String::from_utf8_lossy(&output.stderr);
    let ours = Status(fs::read_to_string("/proc/self/status").expect("our status"));
    for name in ["CapEff", "NoNewPrivs", "Seccomp"] {
        let line = format!("{name}:\t{}", ours.get(name));
        assert!(said.lines().any(|said| said == line), "{line} is not in: {said}");
    }
    assert!(said.contains("wrote") && said.contains("rsttrace: sandbox: no capabilities"), "{said}");
}

#[test]
fn privileges_can_be_kept() {
    require_root!();
    let tracer = Tracer::start(&["-v", "--keep-privileges", "--join-timeout", "1s"]);
    let mut pair = Pair::new();
    let record = unobserved(&tracer, &mut pair);
    expect(&record, json!({ "owner": pair.server.process() }));
    let ours = Status(fs::read_to_string("/proc/self/status").expect("our status"));
    for status in statuses(tracer.pid()) {
        for name in ["CapEff", "NoNewPrivs", "Seccomp"] {
            assert_eq!(status.get(name), ours.get(name), "{name}");
        }
    }
    assert_eq!(children(tracer.pid()).len(), 0, "nobody reads /proc in its place");
    assert!(!tracer.stop().stderr.contains("sandbox"));
}

#[test]
fn nobody_with_five_capabilities_sees_what_root_sees() {
    require_root!();
    require_tool!("setpriv");
    let copy = PublicCopy::new();
    // As docs/rsttrace.service has it.
    let mut command = as_nobody(&ALL);
    let bounds: String = ALL.iter().map(|name| format!(",+{name}")).collect();
    command.args(["--no-new-privs", "--bounding-set", &format!("-all{bounds}")]);
    sees_everything(start(command, copy.path(), &[]));
}

#[test]
fn file_capabilities_do_as_well() {
    require_root!();
    require_tool!("setpriv");
    require_tool!("setcap");
    let copy = capable_copy();
    let tracer = start(as_nobody(&[]), copy.path(), &[]);
    assert_eq!(statuses(tracer.pid())[0].get("Uid").split('\t').next(), Some(NOBODY));
    sees_everything(tracer);
}

/// With file capabilities.
fn capable_copy() -> PublicCopy {
    let copy = PublicCopy::new();
    let list: Vec<_> = ALL.iter().map(|name| format!("cap_{name}")).collect();
    let status = Command::new("setcap").arg(format!("{}=ep", list.join(","))).arg(copy.path()).status();
    assert!(status.expect("setcap").success());
    copy
}

#[test]
fn file_capabilities_read_no_file_that_their_user_may_not_read() {
    require_root!();
    require_tool!("setpriv");
    require_tool!("setcap");
    let copy = capable_copy();
    for flags in [&["-d", "1s"][..], &["-d", "1s", "--keep-privileges"]] {
        let output = as_nobody(&[]).arg(copy.path()).args(["--timers", "/etc/shadow"]).args(flags).output().expect("rsttrace");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--timers: /etc/shadow: Permission denied"), "{said}");
    }
}

#[track_caller]
fn sees_everything(tracer: Tracer) {
    assert_powerless(&tracer);
    // Root's processes, by the tracer's own look-up and by the hook for SO_ERROR.
    let mut pair = Pair::new();
    let record = unobserved(&tracer, &mut pair);
    expect(&record, json!({ "owner": pair.server.process(), "seen": "not-yet" }));
    let run = tracer.stop();
    assert!(run.status.success());
    // The one that is only more evidence needs fentry or kprobes.
    let missing = |(name, how): (&String, &Value)| how.is_null() && name != "tcp_reset";
    assert!(!run.records[0]["hooks"].as_object().expect("hooks").iter().any(missing), "{}", run.records[0]["hooks"]);
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
}

#[test]
fn without_those_for_proc_only_owners_of_unused_sockets_are_unknown() {
    require_root!();
    require_tool!("setpriv");
    let copy = PublicCopy::new();
    let tracer = start(as_nobody(&["bpf", "perfmon", "net_admin"]), copy.path(), &[]);
    for status in statuses(reader(&tracer)) {
        assert_eq!(status.capabilities("CapEff"), 0);
    }
    let mut pair = Pair::new();
    pair.client.abort();
    expect(&tracer.teardown(pair.server.flow), json!({ "seen": "not-yet", "owner": null }));
    // Whoever uses its socket is known from the kernel.
    let mut other = Pair::new();
    other.client.abort();
    assert_eq!(other.server.fails("recv 1"), "ECONNRESET");
    other.server.ok("close");
    expect(&tracer.teardown(other.server.flow), json!({ "owner": other.server.process() }));
    assert!(tracer.stop().status.success());
}

#[test]
fn where_proc_hides_processes_the_reader_still_knows_them() {
    require_root!();
    require_tool!("setpriv");
    require_tool!("unshare");
    let copy = PublicCopy::new();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", r#"mount -t proc -o hidepid=2 proc /proc && exec "$@""#, "sh"]);
    let setpriv = as_nobody(&ALL);
    command.arg(setpriv.get_program()).args(setpriv.get_args());
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = start(command, copy.path(), &["--netns", &inode, "-p", "actor"]);
    let mut server = Actor::spawn_in(&netns, "hidden");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn_in(&netns, "client");
    let connected = client.connect(address);
    let accepted = server.accept(listener);
    client.ok(format!("linger0 {connected}"));
    client.ok(format!("close {connected}"));
    assert_eq!(server.fails(format!("recv {accepted} 1")), "ECONNRESET");
    server.ok(format!("close {accepted}"));
    let record = tracer.wait("the server's end", |record| record["end"] == "reset-received");
    expect(&record, json!({ "owner": { "comm": "hidden" } }));
    assert!(!tracer.stop().stderr.contains("hidepid"));
}
