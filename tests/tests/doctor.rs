//! `rsttrace doctor`: on this machine, and on one from which something was taken away.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use jsonschema::Validator;
use rsttrace_tests::{
    binary,
    bpf::{bpf_object_exists, bpf_objects},
    check_record, require_root, require_tool, wait_until,
};
use serde_json::Value;

/// Shown by no end that the doctor makes.
const UNTRIED: [&str; 11] = [
    "evidence.soft_errno",
    "evidence.timer.name",
    "evidence.timer.seconds",
    "http.answer",
    "http.request",
    "http.status",
    "nat.original.addr",
    "nat.original.port",
    "nat.translated.addr",
    "nat.translated.port",
    "netns_name",
];
/// Shown where the doctor, that is the test, runs in such a place; and what logs say is shown by none (`log`).
const PLACES: [&str; 5] = ["owner.container.id", "owner.container.runtime", "owner.pod", "owner.unit", "owner.user"];

/// Under a load of other tests; alone it takes less than a second.
const IN_TIME: Duration = Duration::from_secs(8);

fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.schema.json");
        let schema = serde_json::from_str(&fs::read_to_string(path).expect("the schema")).expect("JSON");
        jsonschema::validator_for(&schema).expect("a schema")
    })
}

fn output(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    output
}

/// The object that `command` prints, which must be the only one, be valid, and name its own exit status.
#[track_caller]
fn report(command: &mut Command) -> Value {
    let output = output(command);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "one object: {text}\n{said}");
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{said}"));
    let problems: Vec<_> = validator().iter_errors(&report).map(|error| format!("{error} at {}", error.instance_path)).collect();
    assert!(problems.is_empty(), "{}\n{report}", problems.join("\n"));
    assert_eq!(report["status"].as_i64(), output.status.code().map(i64::from), "{report}");
    report
}

fn doctor(args: &[&str]) -> Value {
    report(Command::new(binary()).args(["doctor", "--json"]).args(args))
}

/// `sh -c SCRIPT` with the tracer as `$0`, in namespaces of its own.
fn unshared(unshare: &[&str], script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", script]).arg(binary());
    command
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {report}"))
}

/// Why something is among what is degraded.
#[track_caller]
fn complaint<'a>(report: &'a Value, what: &str) -> &'a str {
    let all = report["degraded"].as_array().expect("a list");
    let found = all.iter().find(|complaint| complaint["what"] == what).unwrap_or_else(|| panic!("{what} is not in {all:#?}"));
    found["why"].as_str().expect("words")
}

fn with_status<'a>(report: &'a Value, status: &str) -> BTreeSet<&'a str> {
    let fields = report["fields"].as_object().expect("fields").iter();
    fields.filter(|(_, field)| field["status"] == status).map(|(name, _)| name.as_str()).collect()
}

/// A path of its own, removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("rsttrace-doctor-{}-{number}-{name}", std::process::id())))
    }

    fn directory(name: &str) -> Self {
        let directory = Self::new(name);
        fs::create_dir(&directory.0).expect("a directory");
        directory
    }

    fn text(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A copy of the tracer that everybody may run.
fn public_copy() -> Temporary {
    let copy = Temporary::new("rsttrace");
    fs::copy(binary(), &copy.0).expect("a copy");
    copy
}

/// Everything in an archive, unpacked.
fn unpacked(bundle: &Temporary) -> (Temporary, PathBuf) {
    let directory = Temporary::directory("unpacked");
    let status = Command::new("tar").arg("-xf").arg(&bundle.0).arg("-C").arg(&directory.0).status().expect("tar");
    assert!(status.success(), "{status}");
    let root = directory.0.join("rsttrace-doctor");
    (directory, root)
}

fn records(root: &Path) -> Vec<Value> {
    let lines = fs::read_to_string(root.join("records.jsonl")).expect("records");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

// ---- here ----

#[test]
fn where_everything_is_there_it_says_so_and_shows_every_field() {
    require_root!();
    let began = Instant::now();
    let report = doctor(&[]);
    let took = began.elapsed();
    assert_eq!(report["status"], 0, "{:#}", report["degraded"]);
    assert_eq!(report["degraded"], Value::Array(Vec::new()));
    for (name, hook) in report["hooks"].as_object().expect("hooks") {
        // More evidence, where there is fentry or kprobes; or not for this kernel.
        let dispensable = name == "tcp_reset" || hook["why"].as_str().is_some_and(|why| why.starts_with("not needed"));
        assert!(hook["how"].is_string() || dispensable, "{name}: {hook}");
    }
    let not_tried = with_status(&report, "not-tried");
    let beyond: BTreeSet<_> = not_tried.iter().copied().filter(|field| !PLACES.contains(field) && !field.starts_with("log")).collect();
    assert_eq!(beyond, BTreeSet::from(UNTRIED));
    assert_eq!(with_status(&report, "delivered").len() + not_tried.len(), report["fields"].as_object().expect("fields").len());
    assert!(report["ends"].as_array().expect("ends").iter().all(|end| end["outcome"] == "right"), "{:#}", report["ends"]);
    assert!(report["programs"].as_array().expect("programs").len() >= 8, "{report}");
    assert!(took < IN_TIME, "{took:?}");
}

#[test]
fn the_table_for_people_is_eighty_columns_wide_and_needs_no_colour() {
    require_root!();
    let output = output(Command::new(binary()).arg("doctor"));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
        assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')), "{line:?}");
    }
    for word in ["CHECKS", "HOOKS", "MADE ENDS", "FIELDS OF A RECORD", "CONCLUSION", "All fine", "observer: syscall, fd"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

// ---- where something is missing ----

#[test]
fn a_hidden_btf_makes_the_machine_unusable_and_is_named() {
    require_root!();
    require_tool!("unshare");
    let empty = Temporary::directory("empty");
    let script = format!("mount --bind {} /sys/kernel/btf && exec \"$0\" doctor --json", empty.text());
    let report = report(&mut unshared(&["-m"], &script));
    assert_eq!(report["status"], 3);
    assert_eq!(check(&report, "btf")["status"], "failed");
    assert!(complaint(&report, "btf").contains("/sys/kernel/btf/vmlinux"), "{report}");
    assert!(check(&report, "btf")["hint"].as_str().is_some_and(|hint| hint.contains("CONFIG_DEBUG_INFO_BTF")), "{report}");
    // Nothing is left out: every field and every hook is there, and not tried.
    assert_eq!(with_status(&report, "not-tried").len(), report["fields"].as_object().expect("fields").len());
    assert!(report["hooks"].as_object().expect("hooks").len() >= 9, "{report}");
}

#[test]
fn without_cap_perfmon_it_is_unusable_and_says_which_capability_is_missing() {
    require_root!();
    require_tool!("setpriv");
    let poor = ["--bounding-set", "-perfmon,-sys_admin"];
    let report = report(Command::new("setpriv").args(poor).arg(binary()).args(["doctor", "--json"]));
    assert_eq!(report["status"], 3);
    let why = complaint(&report, "privileges");
    assert!(why.contains("CAP_PERFMON") && !why.contains("CAP_BPF"), "{why}");
}

#[test]
fn a_proc_that_hides_processes_is_named_and_its_own_loopback_is_not_required() {
    require_root!();
    require_tool!("setpriv");
    let copy = public_copy();
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups \
         --inh-caps +bpf,+perfmon,+net_admin --ambient-caps +bpf,+perfmon,+net_admin {} doctor --json",
        copy.text()
    );
    // A loopback that nobody else uses; it may not make another.
    let script = format!("ip link set lo up && {script}");
    let report = report(&mut unshared(&["-m", "-n"], &script));
    assert_eq!(report["status"], 1);
    assert!(complaint(&report, "hidepid").contains("hidepid"), "{report}");
    assert!(complaint(&report, "privileges").contains("CAP_SYS_PTRACE"), "{report}");
    let made = check(&report, "made-ends");
    assert!(made["status"] == "ok" && made["detail"].as_str().is_some_and(|words| words.contains("this namespace's loopback")), "{made}");
    assert!(with_status(&report, "wrong").is_empty() && with_status(&report, "null").is_empty(), "{:#}", report["degraded"]);
}

#[test]
fn without_a_loopback_nothing_is_claimed_of_fields() {
    require_root!();
    require_tool!("setpriv");
    let copy = public_copy();
    let script = format!("exec setpriv --bounding-set -sys_admin {} doctor --json", copy.text());
    let report = report(&mut unshared(&["-n"], &script));
    assert_eq!(report["status"], 1);
    assert!(complaint(&report, "made-ends").contains("loopback"), "{report}");
    assert_eq!(with_status(&report, "delivered").len(), 0);
}

#[test]
fn another_pid_namespace_is_named_and_costs_no_field() {
    require_root!();
    require_tool!("unshare");
    let report = report(&mut unshared(&["-p", "-f", "--mount-proc", "--kill-child"], "exec \"$0\" doctor --json"));
    assert_eq!(report["status"], 1);
    assert!(complaint(&report, "pid-namespace").contains("PID namespace"), "{report}");
    assert_eq!(report["degraded"].as_array().map(Vec::len), Some(1), "{:#}", report["degraded"]);
}

#[test]
fn a_moved_clock_is_noticed_by_the_events_themselves() {
    require_root!();
    require_tool!("unshare");
    if !Path::new("/proc/self/ns/time").exists() {
        rsttrace_tests::tell_skipped("this kernel has no time namespaces");
        return;
    }
    let report = report(&mut unshared(&["-T", "-f", "--kill-child", "--monotonic", "1000"], "exec \"$0\" doctor --json"));
    assert_eq!(report["status"], 1);
    assert!(complaint(&report, "clocks").contains("1000 s behind"), "{:#}", report["degraded"]);
    assert_eq!(report["fields"]["time"]["status"], "wrong");
    assert!(check(&report, "clocks")["hint"].as_str().is_some_and(|hint| hint.contains("time namespace")), "{report}");
}

#[test]
fn a_refused_hook_is_named_with_the_fields_that_it_costs() {
    require_root!();
    let report = doctor(&["--without", "sock_recv_length"]);
    assert_eq!(report["status"], 1);
    assert!(complaint(&report, "sock_recv_length").starts_with("refused on request"), "{report}");
    assert_eq!(report["hooks"]["sock_recv_length"]["how"], Value::Null);
    assert!(report["hooks"]["sock_send_length"]["how"].is_string());
    let silent = BTreeSet::from(["observer.delay_us", "observer.fd", "observer.syscall", "peer.syscall"]);
    assert_eq!(with_status(&report, "null"), silent);
    assert!(with_status(&report, "wrong").is_empty(), "{:#}", report["degraded"]);
    for field in silent {
        let why = complaint(&report, field);
        assert!(why.contains("sock_recv_length: refused on request") && why.contains("peer-abort"), "{field}: {why}");
    }
    // A send that was traced shows them still.
    let from = report["fields"]["observer.fd"]["from"].as_str().expect("a source");
    assert!(from.contains("sock_send_length") && !from.contains("sock_recv_length"), "{from}");
}

#[test]
fn a_required_hook_that_is_refused_makes_it_unusable() {
    require_root!();
    let report = doctor(&["--without", "inet_sock_set_state"]);
    assert_eq!(report["status"], 3);
    assert!(complaint(&report, "inet_sock_set_state").contains("refused on request"), "{report}");
}

// ---- what it leaves behind, and where its words go ----

#[test]
fn nothing_of_it_stays() {
    require_root!();
    require_tool!("tar");
    let bundle = Temporary::new("left.tar");
    let mut command = Command::new(binary());
    command.args(["doctor", "--json", "--bundle", bundle.text()]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("rsttrace");
    let mut objects = BTreeSet::new();
    let mut status = None;
    wait_until("it has ended", || {
        objects.extend(bpf_objects(child.id() as libc::pid_t));
        status = child.try_wait().expect("its status");
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    assert!(objects.len() > 8, "its programs and maps were not seen: {objects:?}");
    wait_until("the kernel has freed everything", || !objects.iter().any(|object| bpf_object_exists(*object)));

    let (_directory, root) = unpacked(&bundle);
    let records = records(&root);
    let netns = records[0]["netns"].as_u64().expect("a namespace");
    assert_ne!(netns, rsttrace_tests::current_netns(), "a namespace of its own");
    let inside = |path: PathBuf| fs::metadata(path).is_ok_and(|namespace| std::os::unix::fs::MetadataExt::ino(&namespace) == netns);
    let processes: Vec<_> = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()).collect();
    assert!(!processes.iter().any(|process| inside(process.join("ns/net"))), "a process is still in its namespace");
    assert!(!fs::read_dir("/run/netns").into_iter().flatten().flatten().any(|entry| inside(entry.path())), "its namespace has a name");
}

#[test]
fn a_bundle_holds_what_was_said_and_is_for_its_owner_only() {
    require_root!();
    require_tool!("tar");
    for name in ["bundle.tar", "bundle.tar.gz"] {
        let bundle = Temporary::new(name);
        let report = doctor(&["--bundle", bundle.text()]);
        assert_eq!(fs::metadata(&bundle.0).expect("the bundle").permissions().mode() & 0o777, 0o600);
        let magic = fs::read(&bundle.0).expect("the bundle")[..2] == [0x1f, 0x8b];
        assert_eq!(magic, name.ends_with("gz"));
        let (_directory, root) = unpacked(&bundle);
        let inside: Value = serde_json::from_str(&fs::read_to_string(root.join("doctor.json")).expect("JSON")).expect("JSON");
        assert_eq!(inside, report);
        assert!(fs::read_to_string(root.join("doctor.txt")).expect("text").contains("CONCLUSION"));
        let kernel = fs::read_to_string(root.join("kernel.txt")).expect("facts");
        assert!(kernel.contains(report["kernel"].as_str().expect("a release")) && kernel.contains("inet_sock_set_state\t"), "{kernel}");
        let records = records(&root);
        assert!(records.len() >= 20, "{}", records.len());
        records.iter().for_each(|record| check_record(record).expect("a valid record"));
    }
}

#[test]
fn a_bundle_never_replaces_a_file() {
    require_root!();
    let there = Temporary::new("there.tar");
    fs::write(&there.0, "precious").expect("a file");
    let output = output(Command::new(binary()).args(["doctor", "--bundle", there.text()]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("exists already") && said.contains("hint:"), "{said}");
    assert!(output.stdout.is_empty(), "nothing was examined");
    assert_eq!(fs::read_to_string(&there.0).expect("the file"), "precious");
}

#[test]
fn a_redacted_bundle_names_neither_the_host_nor_an_address() {
    require_root!();
    require_tool!("tar");
    require_tool!("unshare");
    let (plain, redacted) = (Temporary::new("plain.tar"), Temporary::new("redacted.tar"));
    let script = format!(
        "hostname secret-host && \"$0\" doctor --json --bundle {} >&2 && exec \"$0\" doctor --json --redact --bundle {}",
        plain.text(),
        redacted.text()
    );
    let report = report(&mut unshared(&["-u"], &script));
    assert_eq!(report["host"], "redacted");
    let contents = |bundle: &Temporary| String::from_utf8_lossy(&fs::read(&bundle.0).expect("a bundle")).into_owned();
    for secret in ["secret-host", "127.0.0.1", "\"::1\""] {
        assert!(contents(&plain).contains(secret), "{secret}");
        assert!(!contents(&redacted).contains(secret), "{secret}");
    }
    let (_directory, root) = unpacked(&redacted);
    for record in records(&root) {
        assert_eq!(record["local"]["addr"], "redacted", "{record}");
        assert!(record["owner"].is_null() || record["owner"]["comm"] == "rsttrace", "its own name stays: {record}");
    }
}

#[test]
fn closed_standard_streams_are_no_reason_to_panic() {
    require_root!();
    // A reader that has gone.
    let mut command = Command::new(binary());
    let mut child = command.arg("doctor").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rsttrace");
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().expect("stderr").read_to_string(&mut said).expect("UTF-8");
    assert_eq!(child.wait().expect("its end").code(), Some(0), "{said}");
    assert!(said.is_empty(), "{said}");

    // Each of the three closed.
    for fd in 0..3 {
        let mut command = Command::new(binary());
        command.args(["doctor", "--json"]);
        // SAFETY: close is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                libc::close(fd);
                Ok(())
            });
        }
        let output = command.output().expect("rsttrace");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "descriptor {fd}: {said}");
        assert!(!said.contains("panicked"), "descriptor {fd}: {said}");
    }
}

#[test]
fn a_full_disk_is_told_and_what_was_begun_is_removed() {
    require_root!();
    let output =
        output(Command::new(binary()).arg("doctor").stdout(fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full")));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to stdout"), "{said}");
    let nowhere = output_of_bundle("/no/such/directory/bundle.tar");
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("cannot write /no/such/directory/bundle.tar"));
}

fn output_of_bundle(path: &str) -> Output {
    output(Command::new(binary()).args(["doctor", "--bundle", path]))
}
