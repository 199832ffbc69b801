//! Intended against reported.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
};

use rsttrace_tests::{Flow, Run, is_stray};
use serde_json::Value;

use crate::lab::{Expected, Label, end_kind};

/// So many mismatches of each sort are shown in full.
const SHOWN: usize = 2;

/// A softirq that interrupts the process which manages this virtual machine runs no BPF program, and
/// nothing counts that: ftrace saw 8 resets more than the program's `run_cnt`, and the task that
/// each of these had interrupted was that one. Timers interrupt anybody; one end of theirs in some
/// hundreds is unseen, by every tracer at once.
const UNSEEN_AT_MOST: usize = 1;

/// A connection that was made.
pub struct Case {
    pub kind: &'static str,
    pub by_timer: bool,
    pub paced: bool,
    pub ends: Vec<Expected>,
}

/// What of a label answers a question.
type Answer = fn(&Label) -> &'static str;

/// The questions that every record answers.
const QUESTIONS: [(&str, Answer); 4] =
    [("cause", |label| label.cause), ("harm", |label| label.harm), ("phase", |label| label.phase), ("initiator", |label| label.initiator)];

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
    matrices: [Matrix; QUESTIONS.len()],
    /// `unknown` for want of evidence.
    excused: usize,
    /// Records that are missing, as the summary says.
    skipped: usize,
    /// Connections, see [`UNSEEN_AT_MOST`].
    unseen: usize,
    /// Acknowledgements that came too late.
    crossed: usize,
    /// By kind and what is wrong, each with its details.
    mismatches: BTreeMap<String, Vec<String>>,
}

impl Judgement {
    /// `all`: with orderly ends; `fewer`: of a tracer beside it, without.
    pub fn new(cases: &[Case], all: &Run, fewer: &Run) -> Self {
        let mut judgement = Self::default();
        judgement.judge(cases, all, false);
        judgement.judge(cases, fewer, true);
        judgement.compare_orderly(cases, all, fewer);
        judgement
    }

    /// `without`: the kernel half holds back orderly ends, and nothing else.
    fn judge(&mut self, cases: &[Case], run: &Run, without: bool) {
        let mut records = Records::new(run);
        let (mut missing, mut unseen) = (Vec::new(), Vec::new());
        for case in cases {
            let ends = case.ends.iter().filter(|end| !(without && end.is_orderly()));
            let mut absent = Vec::new();
            for end in ends {
                match records.take(end) {
                    Some(record) => self.compare(case, end, record, without),
                    None => absent.push((case.kind, format!("no record of {end:?}"))),
                }
            }
            match absent.len() {
                0 => {}
                _ if case.by_timer => unseen.push(absent),
                _ => missing.extend(absent),
            }
        }
        if unseen.len() <= UNSEEN_AT_MOST {
            self.unseen += unseen.len();
        } else {
            missing.extend(unseen.into_iter().flatten());
        }
        // The kernel has said so.
        if missing.len() as u64 <= skipped(run) {
            self.skipped += missing.len();
        } else {
            missing.iter().for_each(|(kind, details)| self.mismatch(kind, named("missing", without), details));
        }
        for record in records.left() {
            if crossed_an_abort(cases, record) {
                self.crossed += 1;
                continue;
            }
            self.mismatch("nothing that was made", named("unexpected", without), &format!("an unexpected record: {record}"));
        }
        self.compare_summary(run);
    }

    fn compare(&mut self, case: &Case, end: &Expected, record: &Value, without: bool) {
        let mut differences = Vec::new();
        let label = if without { end.label.alone() } else { end.label };
        for ((question, intended), matrix) in QUESTIONS.iter().zip(&mut self.matrices) {
            let intended = intended(&label);
            let reported = record[question].as_str().unwrap_or("null");
            if !without {
                matrix.add(intended, reported);
            }
            if reported == "unknown" && intended != "unknown" && lacks_evidence(record) {
                self.excused += 1;
            } else if reported != intended {
                differences.push(format!("{question}: intended {intended}, reported {reported}"));
            }
        }
        let kind = end_kind(label.cause);
        differences.extend((record["end"] != kind).then(|| format!("end: intended {kind}")));
        differences.extend(end.bytes.and_then(|bytes| bytes_differ(bytes, record)));
        if !differences.is_empty() {
            let differences = differences.join("; ");
            let pace = if case.paced { "paced" } else { "at once" };
            self.mismatch(case.kind, named(&differences, without), &format!("{pace}; intended {end:?}\n  {record}"));
        }
    }

    fn mismatch(&mut self, kind: &str, what: impl Display, details: &str) {
        self.mismatches.entry(format!("{kind}: {what}")).or_default().push(details.to_owned());
    }

    /// The last line counts what was printed before it; and nothing is lost.
    fn compare_summary(&mut self, run: &Run) {
        for (question, key) in [("cause", "causes"), ("harm", "harm"), ("end", "sockets")] {
            let mut printed = BTreeMap::new();
            for record in run.teardowns() {
                *printed.entry(record[question].as_str().unwrap_or("null").to_owned()).or_default() += 1;
            }
            let counted = run.summary[key].as_object().into_iter().flatten();
            let counted: BTreeMap<String, u64> =
                counted.filter_map(|(word, n)| Some((word.clone(), n.as_u64().filter(|n| *n > 0)?))).collect();
            if counted != printed {
                self.mismatch("summary", key, &format!("{key}: {printed:?} were printed, {counted:?} counted"));
            }
        }
        for key in ["/lost/total", "/undecodable", "/evicted"] {
            let n = number(run, key);
            if n != Some(0) {
                self.mismatch("summary", key, &format!("{key} is {n:?}"));
            }
        }
    }

    /// Counted for the whole host, on which others may end connections in order too.
    fn compare_orderly(&mut self, cases: &[Case], all: &Run, fewer: &Run) {
        let made = cases.iter().flat_map(|case| &case.ends).filter(|end| end.is_orderly()).count() as u64;
        let counted = number(fewer, "/orderly").unwrap_or(0);
        println!("{counted} orderly ends counted without -a, of which {made} were made here");
        if counted + skipped(fewer) < made || number(all, "/orderly") != Some(0) {
            self.mismatch("summary", "orderly", &format!("{made} orderly ends were made, {counted} counted"));
        }
    }

    pub fn print(&self) {
        for ((question, _), matrix) in QUESTIONS.iter().zip(&self.matrices) {
            matrix.print(question);
        }
        println!("\n{} answers unknown for want of evidence", self.excused);
        println!("{} records missing for runs that the kernel says it skipped", self.skipped);
        println!("{} ends by a timer unseen", self.unseen);
        println!("{} acknowledgements crossed an abort", self.crossed);
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
        // Before 5.12 a socket has no cookie until somebody asks for it, which may be after its end.
        let fits = |record: &&Value| end.cookie.is_none_or(|cookie| record["cookie"] == cookie || record["cookie"].is_null());
        let at = candidates.iter().position(fits)?;
        Some(candidates.remove(at))
    }

    fn left(self) -> impl Iterator<Item = &'a Value> {
        self.0.into_values().flatten()
    }
}

/// An acknowledgement under way may find its socket aborted, and be answered by one more RST, which
/// does no harm.
fn crossed_an_abort(cases: &[Case], record: &Value) -> bool {
    let is = |word: &str, answer: &str| record[word] == answer;
    let harmless = is("cause", "no-connection") && is("harm", "none") && is("initiator", "local-kernel") && is_stray(record);
    let made_here = || {
        let flow = Flow::in_record(record);
        cases.iter().any(|case| case.ends.iter().any(|end| Some(end.flow) == flow))
    };
    harmless && made_here()
}

/// `unknown` is an answer only where what the rules ask for is not there.
fn lacks_evidence(record: &Value) -> bool {
    record["role"].is_null() || record.pointer("/evidence/last_speaker").is_none_or(Value::is_null)
}

/// Every byte that the application wrote is sent or unsent; it has read what was received, but for
/// what is unread, of which it may have read later.
fn bytes_differ((written, read): (u64, u64), record: &Value) -> Option<String> {
    let bytes = |key: &str| record["bytes"][key].as_u64();
    let (sent, received) = (bytes("sent")? + bytes("unsent")?, bytes("received")?);
    let early = received.saturating_sub(bytes("unread")?);
    (sent != written || !(early..=received).contains(&read)).then(|| format!("bytes: {written} written, {read} read"))
}

fn number(run: &Run, key: &str) -> Option<u64> {
    run.summary.pointer(key).and_then(Value::as_u64)
}

/// Runs of the tracer's programs that the kernel skipped: each may be an event that is missing.
fn skipped(run: &Run) -> u64 {
    run.summary["lost"]["skipped"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
}

/// Which of the two tracers it is about.
fn named(what: &str, without: bool) -> String {
    if without { format!("{what} (without -a)") } else { what.to_owned() }
}
