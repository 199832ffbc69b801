//! Intended against reported.

use std::collections::{BTreeMap, HashMap};

use rsttrace_tests::{Flow, Run, is_stray};
use serde_json::Value;

use crate::lab::{Expected, Label};

/// So many mismatches of each sort are shown in full.
const SHOWN: usize = 2;

/// A connection that was made.
pub struct Case {
    pub kind: &'static str,
    pub paced: bool,
    pub ends: Vec<Expected>,
}

/// What of a label answers a question.
type Answer = fn(&Label) -> &'static str;

/// The three questions that every record answers.
const QUESTIONS: [(&str, Answer); 3] = [("cause", |label| label.cause), ("harm", |label| label.harm), ("phase", |label| label.phase)];

/// How often what was intended was reported as what.
#[derive(Default)]
struct Matrix(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Matrix {
    fn add(&mut self, intended: &'static str, reported: &str) {
        *self.0.entry(intended).or_default().entry(reported.to_owned()).or_default() += 1;
    }

    fn print(&self, question: &str) {
        println!("\n{:<30} {:>8} {:>8}  reported otherwise", format!("intended {question}"), "made", "reported");
        for (intended, reported) in &self.0 {
            let right = reported.get(*intended).copied().unwrap_or(0);
            let others = reported.iter().filter(|(word, _)| word != intended).map(|(word, n)| format!("{word} {n}"));
            let others = others.collect::<Vec<_>>().join(", ");
            println!("{intended:<30} {:>8} {right:>8}  {others}", reported.values().sum::<usize>());
        }
    }
}

#[derive(Default)]
pub struct Judgement {
    matrices: [Matrix; 3],
    /// `unknown` for want of evidence.
    excused: usize,
    /// By kind and what is wrong, each with its details.
    mismatches: BTreeMap<String, Vec<String>>,
}

impl Judgement {
    /// `all`: with orderly ends; `fewer`: of a tracer beside it, without.
    pub fn new(cases: &[Case], all: &Run, fewer: &Run) -> Self {
        let mut judgement = Self::default();
        let mut records = Records::new(all);
        for case in cases {
            for end in &case.ends {
                match records.take(end) {
                    Some(record) => judgement.compare(case, end, record),
                    None => judgement.mismatch(case.kind, "missing", &format!("no record of {end:?}")),
                }
            }
        }
        for record in records.left() {
            judgement.mismatch("nothing that was made", "unexpected", &format!("an unexpected record: {record}"));
        }
        let ends: Vec<&Expected> = cases.iter().flat_map(|case| &case.ends).collect();
        judgement.compare_summaries(&ends, all, fewer);
        judgement.compare_records(all, fewer);
        judgement
    }

    fn compare(&mut self, case: &Case, end: &Expected, record: &Value) {
        let mut differences = Vec::new();
        for ((question, intended), matrix) in QUESTIONS.iter().zip(&mut self.matrices) {
            let intended = intended(&end.label);
            let reported = record[question].as_str().unwrap_or("null");
            matrix.add(intended, reported);
            if reported == "unknown" && lacks_evidence(record) {
                self.excused += 1;
            } else if reported != intended {
                differences.push(format!("{question}: intended {intended}, reported {reported}"));
            }
        }
        differences.extend(end_kind(end.label.cause).filter(|kind| record["end"] != *kind).map(|kind| format!("end: intended {kind}")));
        differences.extend(end.bytes.and_then(|bytes| bytes_differ(bytes, record)));
        if !differences.is_empty() {
            let differences = differences.join("; ");
            let pace = if case.paced { "paced" } else { "at once" };
            self.mismatch(case.kind, &differences, &format!("{pace}; intended {end:?}\n  {record}"));
        }
    }

    fn mismatch(&mut self, kind: &str, what: &str, details: &str) {
        self.mismatches.entry(format!("{kind}: {what}")).or_default().push(details.to_owned());
    }

    /// The last line of each tracer counts what was made.
    fn compare_summaries(&mut self, ends: &[&Expected], all: &Run, fewer: &Run) {
        let orderly = |end: &&&Expected| matches!(end.label.cause, "orderly" | "orderly-unread");
        let unordered: Vec<_> = ends.iter().filter(|end| !orderly(end)).copied().collect();
        for (run, ends) in [(all, ends), (fewer, &unordered[..])] {
            self.compare_counts("causes", run, &counts(ends, |end| end.label.cause));
            self.compare_counts("harm", run, &counts(ends, |end| end.label.harm));
            self.compare_counts("sockets", run, &counts(ends, |end| end_kind(end.label.cause).unwrap_or("none")));
            for key in ["/lost/total", "/undecodable", "/evicted"] {
                self.compare_number(run, key, 0);
            }
        }
        self.compare_number(all, "/orderly", 0);
        // Counted for the whole host, on which others may end connections in order too.
        let made = ends.iter().filter(orderly).count() as u64;
        let counted = fewer.summary["orderly"].as_u64().unwrap_or(0);
        println!("{counted} orderly ends counted without -a, of which {made} were made here");
        if counted < made {
            self.mismatch("summary", "orderly", &format!("{made} orderly ends were made, {counted} counted"));
        }
    }

    fn compare_number(&mut self, run: &Run, key: &str, intended: u64) {
        let reported = run.summary.pointer(key).and_then(Value::as_u64);
        if reported != Some(intended) {
            self.mismatch("summary", key, &format!("{key} is {reported:?}, not {intended}"));
        }
    }

    fn compare_counts(&mut self, key: &str, run: &Run, intended: &BTreeMap<String, u64>) {
        let reported = run.summary[key].as_object().into_iter().flatten();
        let reported: BTreeMap<String, u64> =
            reported.filter_map(|(word, n)| Some((word.clone(), n.as_u64().filter(|n| *n > 0)?))).collect();
        if reported != *intended {
            self.mismatch("summary", key, &format!("{key}: {intended:?} were made, reported {reported:?}"));
        }
    }

    /// Without -a the kernel half holds back orderly ends, and nothing else.
    fn compare_records(&mut self, all: &Run, fewer: &Run) {
        let key = |record: &Value| (record["cookie"].as_u64(), Flow::in_record(record), record["cause"].to_string(), is_stray(record));
        let orderly = |record: &&Value| matches!(record["cause"].as_str(), Some("orderly" | "orderly-unread"));
        let mut there: HashMap<_, usize> = HashMap::new();
        for record in fewer.teardowns() {
            *there.entry(key(record)).or_default() += 1;
        }
        for record in all.teardowns().filter(|record| !orderly(record)) {
            match there.get_mut(&key(record)) {
                Some(n) if *n > 0 => *n -= 1,
                _ => self.mismatch("without -a", "missing", &format!("not told: {record}")),
            }
        }
        let more: usize = there.values().sum();
        if more > 0 {
            self.mismatch("without -a", "unexpected", &format!("{more} records that the other tracer does not have"));
        }
    }

    pub fn print(&self) {
        for ((question, _), matrix) in QUESTIONS.iter().zip(&self.matrices) {
            matrix.print(question);
        }
        println!("\n{} answers unknown for want of evidence", self.excused);
        if self.mismatches.is_empty() {
            println!("nothing is off the diagonal");
            return;
        }
        println!("{} MISMATCHES", self.mismatches.values().map(Vec::len).sum::<usize>());
        for (what, mismatches) in &self.mismatches {
            println!("{:>6}  {what}", mismatches.len());
        }
        for (what, mismatches) in &self.mismatches {
            for details in mismatches.iter().take(SHOWN) {
                println!("\n{what}\n  {details}");
            }
        }
    }

    pub fn is_clean(&self) -> bool {
        self.mismatches.is_empty()
    }
}

/// Records that have not been asked for.
struct Records<'a>(HashMap<(Option<Flow>, bool), Vec<&'a Value>>);

impl<'a> Records<'a> {
    fn new(run: &'a Run) -> Self {
        let mut records: HashMap<_, Vec<_>> = HashMap::new();
        for record in run.teardowns() {
            records.entry((Flow::in_record(record), is_stray(record))).or_default().push(record);
        }
        Self(records)
    }

    /// The record of this end; the socket's cookie tells two lives of one port apart.
    fn take(&mut self, end: &Expected) -> Option<&'a Value> {
        let candidates = self.0.get_mut(&(Some(end.flow), end.stray))?;
        let at = candidates.iter().position(|record| end.cookie.is_none_or(|cookie| record["cookie"] == cookie))?;
        Some(candidates.remove(at))
    }

    fn left(self) -> impl Iterator<Item = &'a Value> {
        self.0.into_values().flatten()
    }
}

/// `unknown` is an answer only where what the rules ask for is not there.
fn lacks_evidence(record: &Value) -> bool {
    record["role"].is_null() || record.pointer("/evidence/last_speaker").is_none_or(Value::is_null)
}

/// The kind of end that belongs to a cause.
fn end_kind(cause: &str) -> Option<&'static str> {
    Some(match cause {
        "orderly" | "orderly-unread" | "gave-up-waiting" | "client-gave-up" | "closed-before-answer" => "fin",
        "connect-timeout" | "user-timeout" => "timeout",
        "gave-up-connecting" | "refused-by-icmp" => "error",
        "linger-zero"
        | "close-with-unread-data"
        | "disconnect"
        | "data-after-close"
        | "linger2-abort"
        | "admin-kill"
        | "listener-closed"
        | "closed-port"
        | "time-wait"
        | "keepalive-timeout" => "reset-sent",
        "refused"
        | "connect-probe"
        | "reset-before-accept"
        | "write-after-peer-close"
        | "reset-while-closing"
        | "reset-after-local-fin"
        | "server-abort-before-response"
        | "server-abort-mid-response"
        | "peer-abort-idle"
        | "peer-abort-after-response"
        | "peer-abort-before-response"
        | "peer-abort-mid-response" => "reset-received",
        _ => return None,
    })
}

/// Every byte that the application wrote is sent or unsent; it has read what was received, but for
/// what is unread, of which it may have read later.
fn bytes_differ((written, read): (u64, u64), record: &Value) -> Option<String> {
    let bytes = |key: &str| record["bytes"][key].as_u64();
    let (sent, received) = (bytes("sent")? + bytes("unsent")?, bytes("received")?);
    let early = received.saturating_sub(bytes("unread")?);
    (sent != written || !(early..=received).contains(&read)).then(|| format!("bytes: {written} written, {read} read"))
}

fn counts(ends: &[&Expected], word: impl Fn(&Expected) -> &'static str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for end in ends {
        *counts.entry(word(end).to_owned()).or_default() += 1;
    }
    counts
}
