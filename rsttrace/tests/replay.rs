//! `rsttrace replay` of files that tell less, or more, than a whole run does.

#![allow(clippy::unwrap_used)]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const RECORD: &str = include_str!("corpus/record.json");

fn replay(args: &[&str], lines: &[Value]) -> Output {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    replay_text(args, &text)
}

fn replay_text(args: &[&str], text: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    let command = command.arg("replay").args(args).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn told(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The record of the corpus, with some values changed.
fn record(changes: Value) -> Value {
    let mut record: Value = serde_json::from_str(RECORD).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

fn late(cookie: u64) -> Value {
    let record = record(json!({}));
    json!({
        "schema": 1, "record": "late-observation", "time": "2026-11-26T15:48:00.000000000Z", "cookie": cookie, "local": record["local"],
        "remote": record["remote"], "netns": record["netns"], "end": "reset-received", "observer": record["observer"], "log": null,
        "log_candidates": [],
    })
}

fn start() -> Value {
    json!({"schema": 1, "record": "start", "time": "2026-11-26T15:47:00Z", "version": "0.1.0", "kernel": "6.1", "host": "h", "hooks": {}, "filters": []})
}

fn summary(lost: u64, skipped: u64) -> Value {
    json!({
        "schema": 1, "record": "summary", "started": "2026-11-26T15:47:00Z", "stopped": "2026-11-26T15:49:00Z", "orderly": 1,
        "lost": {"total": lost, "records": lost, "by_hook": {"inet_sock_set_state": lost}, "skipped": {"inet_sock_set_state": skipped}},
        "undecodable": 0, "evicted": 0, "filtered": 0,
    })
}

#[test]
fn what_is_no_record_is_said_line_by_line_and_of_a_file_of_another_kind_once() {
    let code = |output: &Output| output.status.code();
    let other = replay_text(&["-q"], "nonsense\n{}\nmore\n");
    let sentence = "rsttrace: - is neither a recording nor what --json of this version wrote (line 1: is no JSON object)\n";
    assert_eq!((code(&other), said(&other).as_str()), (Some(1), sentence));
    let record = RECORD.trim_end();
    let one = replay_text(&["-q"], &format!("nonsense\n{record}\n"));
    let lines = "rsttrace: -:1: is no JSON object\nrsttrace: -: 1 of 2 lines is no record and was skipped\n";
    assert_eq!((code(&one), said(&one).as_str()), (Some(1), lines));
    let two = replay_text(&["-q"], &format!("nonsense\n{record}\n{{}}\n"));
    assert!(said(&two).contains("-:3: missing field") && said(&two).contains("2 of 3 lines are no records"), "{}", said(&two));
}

#[test]
fn what_is_not_known_to_be_lost_is_not_said_to_be_none() {
    let whole = [start(), record(json!({})), summary(0, 0)];
    assert!(said(&replay(&[], &whole)).contains("tracer lost 0 events"));
    let unknown = "what the tracer lost is not known: a run's last line was not read";
    // Killed, or still running; stopped by a count; the end of one run and the beginning of another.
    let [first, one, last] = &whole;
    for (args, lines) in [(&[][..], vec![first, one]), (&["--count", "1"], vec![first, one, one, last]), (&[], vec![one, last, first, one])]
    {
        let lines: Vec<_> = lines.into_iter().cloned().collect();
        let text = said(&replay(args, &lines));
        assert!(text.contains(unknown) && !text.contains("lost 0 events"), "{text}");
        let json = told(&replay(&[&["-j", "--harm", "possible"], args].concat(), &lines));
        assert_eq!(json.last().unwrap()["lost"]["untold_runs"], 1, "{json:?}");
    }
    let text = said(&replay(&[], &[start(), summary(0, 7)]));
    assert!(text.contains("the kernel skipped runs within runs: as many events may be missing (7 inet_sock_set_state)"), "{text}");
}

#[test]
fn losses_of_several_runs_are_added_and_the_latest_summary_of_each_counts() {
    let lines = [start(), summary(3, 0), summary(5, 0), start(), record(json!({})), summary(2, 0)];
    let text = said(&replay(&[], &lines));
    assert!(text.contains("tracer lost 7 events, and with them 7 records (7 inet_sock_set_state)"), "{text}");
    let json = told(&replay(&["-j", "--pid", "nginx"], &lines));
    assert_eq!((&json.last().unwrap()["lost"]["total"], &json.last().unwrap()["orderly"]), (&json!(7), &json!(2)));
}

#[test]
fn ends_that_were_folded_are_told_of() {
    let folded = json!({"schema": 1, "record": "folded", "time": "2026-11-26T15:47:33Z", "count": 9_970});
    let text = said(&replay(&[], &[start(), record(json!({})), folded, summary(0, 0)]));
    assert!(text.contains("9,970 more were folded by --rate-limit when this was saved, and are not counted"), "{text}");
}

#[test]
fn what_is_noticed_late_is_shown_with_its_record_where_verdicts_choose() {
    let unseen =
        |cookie: u64, harm: &str| record(json!({"cookie": cookie, "harm": harm, "seen": "not-yet", "observer": null, "peer": null}));
    let lines = [start(), unseen(1, "none"), unseen(2, "possible"), late(1), late(2), summary(0, 0)];
    let cookies = |args: &[&str]| {
        let told = told(&replay(args, &lines));
        told.iter().filter(|line| line["record"] == "late-observation").map(|line| line["cookie"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(cookies(&["-j"]), [1, 2]);
    assert_eq!(cookies(&["-j", "--harm", "possible"]), [2]);
    assert_eq!(cookies(&["-j", "--cause", "orderly"]), [0; 0]);
    assert_eq!(cookies(&["-j", "--errno", "ECONNRESET"]), [1, 2]);
    // Each end is counted once.
    let told = told(&replay(&["-j", "--harm", "possible"], &lines));
    assert_eq!(told.last().unwrap()["filtered"], 1);
}

#[test]
fn a_network_namespace_is_the_one_that_records_name() {
    let of =
        |cookie: u64, netns: u32, name: Option<&str>| record(json!({"cookie": cookie, "netns": netns, "netns_name": name, "peer": null}));
    let late_of = |cookie: u64, netns: u32| {
        let mut late = late(cookie);
        late["netns"] = netns.into();
        late
    };
    // Made again, with another number; one without a name; one with another.
    let lines = [of(1, 7, Some("web")), of(2, 8, Some("web")), of(3, 9, None), of(4, 10, Some("db"))];
    let lates = [late_of(11, 7), late_of(12, 8), late_of(13, 9), late_of(14, 10)];
    let lines = [&[start()], &lines[..], &lates, &[summary(0, 0)]].concat();
    let cookies = |netns: &str| {
        let output = replay(&["-j", "--netns", netns], &lines);
        assert!(output.status.success(), "{}", said(&output));
        told(&output).iter().filter_map(|line| line["cookie"].as_u64()).collect::<Vec<_>>()
    };
    assert_eq!(cookies("web"), [1, 2, 11, 12]);
    assert_eq!(cookies("db"), [4, 14]);
    assert_eq!(cookies("9"), [3, 13]);
    assert_eq!(cookies("we"), [0; 0]);
    // A path is one of this host.
    assert_eq!(replay(&["--netns", "./no/such"], &lines).status.code(), Some(2));
    assert_eq!(replay(&["--netns", ""], &lines).status.code(), Some(2));
}

#[test]
fn the_names_of_namespaces_end_with_their_file() {
    let write = |name: &str, lines: &[Value]| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("namespaces.{name}"));
        std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        path
    };
    let named = write("named", &[start(), record(json!({"netns_name": "web", "peer": null})), summary(0, 0)]);
    let other = write("other", &[start(), late(5), summary(0, 0)]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    let output = command.args(["replay", "-j", "--netns", "web"]).args([&named, &other]).output().unwrap();
    let shown: Vec<_> = told(&output).iter().filter_map(|line| line["record"].as_str().map(str::to_owned)).collect();
    assert!(shown.contains(&"teardown".to_owned()) && !shown.contains(&"late-observation".to_owned()), "{shown:?}");
}

#[test]
fn a_line_that_a_terminal_would_obey_is_escaped() {
    for hostile in ["\u{9b}2J", "\u{202e}", "\u{7f}", "\u{200b}"] {
        let line = format!("{{\"schema\":1,\"record\":\"of-the-future\",\"a\":\"{hostile}\"}}\n");
        let output = replay_text(&["-j"], &line);
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains(hostile), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["a"], hostile);
    }
    let carriage = replay_text(&["-j"], "{\"schema\":1,\r\"record\":\"of-the-future\"}\n");
    assert!(!carriage.stdout.contains(&b'\r'));
}

#[test]
fn files_of_the_same_hours_are_folded_each_by_their_own_seconds() {
    let at = |second: u32| record(json!({"time": format!("2026-11-26T15:47:{second:02}.500000000Z"), "cookie": 100 + second}));
    // Two files, one after the other, whose ends are three seconds apart.
    let lines: Vec<_> = [0, 3, 6, 0, 3, 6].map(at).into();
    let told = told(&replay(&["-j", "--rate-limit", "1"], &lines));
    assert_eq!(told.iter().filter(|line| line["record"] == "teardown").count(), 6);
}
