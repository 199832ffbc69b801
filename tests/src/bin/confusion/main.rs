//! The confusion matrix: ends of all kinds in random order, each labelled by the system calls that
//! made it, against what the tracer says of them.
//!
//! `confusion --seed N [--ends N] [--jobs N] [--kind TEXT]`; exits with 0 if every end was reported
//! as it was meant. `--kind` makes only kinds whose name contains TEXT.

mod kinds;
mod lab;
mod matrix;
mod rng;

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rsttrace_tests::{NetNs, Run, Tracer};
use serde_json::Value;

use crate::{
    kinds::{KINDS, Kind, Often},
    lab::{Expected, Lab},
    matrix::{Case, Judgement},
    rng::Rng,
};

struct Options {
    seed: u64,
    ends: usize,
    jobs: usize,
    kind: String,
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("confusion: {problem}");
            return ExitCode::from(2);
        }
    };
    println!("seed {}, {} connections, {} at a time", options.seed, options.ends, options.jobs);
    let netns = NetNs::new();
    lab::filter(&netns);
    let inode = netns.inode().to_string();
    let with_orderly = Tracer::start(&["-a", "--netns", &inode]);
    let without = Tracer::start(&["--netns", &inode]);

    let begun = Instant::now();
    let cases = make_all(&netns, &options);
    println!("made in {:.1} s", begun.elapsed().as_secs_f64());
    let expected: usize = cases.iter().map(|case| case.ends.len()).sum();
    await_records(&with_orderly, expected);
    await_quiet(&without);
    let (all, fewer) = (with_orderly.stop(), without.stop());

    let judgement = Judgement::new(&cases, &all, &fewer);
    judgement.print();
    println!("{} connections, {expected} records in {:.1} s", cases.len(), begun.elapsed().as_secs_f64());
    let differences: Vec<_> = [&all, &fewer].into_iter().flat_map(unexplained).collect();
    differences.iter().for_each(|entry| println!("the kernel counts otherwise: {entry}"));
    if judgement.is_clean() && differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Where the kernel's counters and the tracer's events differ, and it cannot say why.
fn unexplained(run: &Run) -> impl Iterator<Item = &Value> {
    let entries = run.summary["audit"].as_array().into_iter().flatten();
    entries.filter(|entry| entry["explained"].as_str().is_some_and(|words| words.starts_with("not explained")))
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { seed: 1, ends: 1009, jobs: 8, kind: String::new() };
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{name}: {value:?} is no number"));
            match name.as_str() {
                "--seed" => options.seed = number()?,
                "--ends" => options.ends = number()? as usize,
                "--jobs" => options.jobs = (number()? as usize).max(1),
                "--kind" => options.kind = value,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }
}

/// What to make, and the seed of everything about it.
struct Task {
    kind: &'static Kind,
    seed: u64,
    ipv6: bool,
    paced: bool,
}

/// All kinds in random order: the slow ones as often as they say, the others alike.
fn tasks(options: &Options) -> Vec<Task> {
    let chosen = || KINDS.iter().filter(|kind| kind.name.contains(&options.kind));
    let mut kinds: Vec<&'static Kind> = Vec::new();
    for kind in chosen() {
        if let Often::Times(n) | Often::Timer(n) = kind.often {
            kinds.extend(std::iter::repeat_n(kind, n));
        }
    }
    kinds.truncate(options.ends / 4);
    let shared: Vec<_> = chosen().filter(|kind| matches!(kind.often, Often::Share)).collect();
    let rest = options.ends - kinds.len();
    kinds.extend(shared.iter().cycle().take(rest));
    let mut rng = Rng::new(options.seed);
    rng.shuffle(&mut kinds);
    kinds.into_iter().map(|kind| Task { kind, seed: rng.next(), ipv6: rng.flip(), paced: rng.flip() }).collect()
}

fn make_all(netns: &NetNs, options: &Options) -> Vec<Case> {
    let todo = Mutex::new(tasks(options));
    let next = || todo.lock().unwrap_or_else(PoisonError::into_inner).pop();
    thread::scope(|scope| {
        let work = || {
            prefer_this_thread();
            let mut lab = Lab::new(netns);
            std::iter::from_fn(next).map(|task| make(&mut lab, &task)).collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..options.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn make(lab: &mut Lab<'_>, task: &Task) -> Case {
    let announced = OnPanic(task);
    lab.rng = Rng::new(task.seed);
    (lab.ipv6, lab.paced) = (task.ipv6, task.paced);
    let ends: Vec<Expected> = (task.kind.make)(lab);
    std::mem::forget(announced);
    let by_timer = matches!(task.kind.often, Often::Timer(_));
    Case { kind: task.kind.name, by_timer, paced: task.paced, ends }
}

/// Says which kind could not be made.
struct OnPanic<'a>(&'a Task);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        let Task { kind, ipv6, paced, .. } = self.0;
        eprintln!("confusion: while making \"{}\" (ipv6: {ipv6}, paced: {paced})", kind.name);
    }
}

/// Whether a requester has waited is a matter of milliseconds, which must not depend on what else
/// the machine does: this thread, and the processes that it starts, run before all ordinary ones. On a
/// single CPU these would wait for us, and with them the kernel's thread that delivers segments.
fn prefer_this_thread() {
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        return;
    }
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: a parameter of ours. Without the right to it, everything is made all the same.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
}

/// Waits until so many records are there, or none comes any more.
fn await_records(tracer: &Tracer, expected: usize) {
    let count = || tracer.matching(|record| record["record"] == "teardown").len();
    let end = Instant::now() + Duration::from_secs(5);
    while count() < expected && Instant::now() < end {
        thread::sleep(Duration::from_millis(100));
    }
}

fn await_quiet(tracer: &Tracer) {
    let mut before = 0;
    loop {
        let now = tracer.matching(|_| true).len();
        if now == before {
            return;
        }
        before = now;
        thread::sleep(Duration::from_millis(300));
    }
}
