//! `rsttrace correlate` on saved files, good and bad.

#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

const RECORD: &str = include_str!("corpus/record.json");

struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!("rsttrace-correlate-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn rsttrace() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rsttrace"))
}

fn correlate(args: &[&str]) -> Output {
    rsttrace().arg("correlate").args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn records(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line that belongs to the record of the corpus, as nginx wrote it.
fn line() -> String {
    let record: Value = serde_json::from_str(RECORD).unwrap();
    let time = record["time"].as_str().unwrap()[..19].replace('-', "/").replace('T', " ");
    let pid = &record["owner"]["tgid"];
    format!(
        "{time} [error] {pid}#{pid}: *3 readv() failed (104: Connection reset by peer) while reading upstream, client: 127.0.0.1, server: , \
         request: \"GET /up/mid HTTP/1.1\", upstream: \"http://127.0.0.1:9000/up/mid\", host: \"a\"\n"
    )
}

#[test]
fn a_saved_record_gets_its_line_and_keeps_all_else() {
    let files = Files::new();
    // What a later version adds must not be lost either.
    let events =
        files.write("events", &format!("{{\"schema\":1,\"record\":\"of-the-future\"}}\n{}", RECORD.replacen('{', "{\"later\":[1],", 1)));
    let log = files.write("log", &line());
    let output = correlate(&["--events", &events, "--error-log", &log, "--log-zone", "UTC", "--json"]);
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), "log: 1 line about ends of connections: 1 joined\n"));
    let records = records(&output);
    let mut expected: Value = serde_json::from_str(RECORD).unwrap();
    assert_eq!(records[1]["log"]["request"], "GET /up/mid HTTP/1.1");
    assert_eq!(records[1]["later"], serde_json::json!([1]));
    expected["log"] = records[1]["log"].clone();
    let mut got = records[1].clone();
    got.as_object_mut().unwrap().remove("later");
    assert_eq!(got, expected);

    let text = correlate(&["--events", &events, "--error-log", &log, "--log-zone", "UTC", "--time", "utc", "--ascii"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("RST received") && text.contains("log: upstream side, \"GET /up/mid HTTP/1.1\", client 127.0.0.1"), "{text}");
    // Two hours away it is somebody else's.
    let output = correlate(&["--events", &events, "--error-log", &log, "--log-zone", "+02:00"]);
    assert!(said(&output).contains("1 without a record; 1 errors without a line"), "{}", said(&output));
}

#[test]
fn what_another_log_has_nothing_about_keeps_what_was_known() {
    let files = Files::new();
    let known = |key: &str, value: Value| {
        let mut record: Value = serde_json::from_str(RECORD).unwrap();
        record[key] = value;
        record
    };
    let events = files.write("events", RECORD);
    let log = files.write("log", &line());
    let access = files.write("access", "192.0.2.1 - - [26/Nov/2026:15:47:32 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"\n");
    let joined = &records(&correlate(&["--events", &events, "--error-log", &log, "--log-zone", "UTC", "--json"]))[0];
    let certain = known("log", joined["log"].clone());
    let ambiguous = known("log_candidates", serde_json::json!(["one", "two"]));
    for before in [&certain, &ambiguous] {
        let events = files.write("before", &format!("{before}\n"));
        let args = ["--events", &events, "--access-log", &access, "--log-zone", "UTC"];
        let after = correlate(&[&args[..], &["--json"]].concat());
        assert_eq!(&records(&after)[0], before);
        let text = String::from_utf8_lossy(&correlate(&[&args[..], &["--ascii"]].concat()).stdout).into_owned();
        assert!(text.contains("log: "), "{text}");
        assert!(!said(&after).contains("errors without a line"), "{}", said(&after));
    }
    // What is certain is known better.
    let events = files.write("before", &format!("{ambiguous}\n"));
    let after = &records(&correlate(&["--events", &events, "--error-log", &log, "--log-zone", "UTC", "--json"]))[0];
    assert_eq!(after, &certain);
}

#[test]
fn what_is_no_record_is_told_by_number_and_the_rest_is_joined() {
    let files = Files::new();
    let events = files.write("events", &format!("nonsense\n{RECORD}\n{{\"schema\":1,\"record\":\"teardown\"}}\n"));
    let log = files.write("log", &format!("no line of nginx's\n{}", line()));
    let output = correlate(&["--events", &events, "--error-log", &log, "--log-zone", "UTC", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    for words in [
        "events:1: is no JSON object",
        "events:4: missing field `time`",
        "2 of 3 lines are no records and were skipped",
        "log:1: is not understood",
        "1 joined",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(records(&output).len(), 1);
}

#[test]
fn a_log_of_another_format_is_a_fault_with_a_way_out() {
    let files = Files::new();
    let events = files.write("events", RECORD);
    let log = files.write("log", "127.0.0.1 - - [x] \"GET / HTTP/1.1\" 200 5\n");
    let output = correlate(&["--events", &events, "--error-log", &log]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("1 line, and none is understood; --log-format names other formats"), "{}", said(&output));
    let output = correlate(&["--events", &events, "--error-log", "/nonexistent/log"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("cannot open /nonexistent/log: No such file or directory"), "{}", said(&output));
    let output = correlate(&["--events", "-", "--error-log", "-"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("standard input (-) can be only one of the files"), "{}", said(&output));
}

#[test]
fn a_line_of_a_gibibyte_is_skipped_in_little_memory() {
    let files = Files::new();
    for (events, log) in [(true, false), (false, true)] {
        let write = |name: &str, long: bool, good: &str| {
            let path = files.write(name, "");
            let mut file = File::options().write(true).open(&path).unwrap();
            if long {
                // Text, as far as its beginning tells.
                file.write_all(b"[").unwrap();
                file.seek(SeekFrom::Start(1 << 30)).unwrap();
                file.write_all(b"\n").unwrap();
            }
            file.write_all(good.as_bytes()).unwrap();
            path
        };
        let (events, log) = (write("events", events, RECORD), write("log", log, &line()));
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -v 400000; exec "$0" "$@""#, env!("CARGO_BIN_EXE_rsttrace"), "correlate", "--log-zone", "UTC"]);
        let output = command.args(["--events", &events, "--error-log", &log]).output().unwrap();
        let said = said(&output);
        assert!(said.contains(":1: 1,073,741,824 bytes are too many for one line") && said.contains("1 joined"), "{said}");
    }
}
