//! `cargo xtask vm`: the tracer, the demo's workload and the test programs on other kernels.
//!
//! Each boots under emulation with `guest` (the tests' own init), the tracer, the workload and the test
//! programs, all of them static. What they tell on the console is compared with what `expect` has, with the
//! kernel's own counters, and with what is on file of that kernel.

mod console;
mod emulator;
mod expect;
mod initramfs;
mod judge;
mod kernels;
mod packages;
mod programs;
mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::{
    console::{Console, Part},
    emulator::Emulator,
    kernels::Kernel,
    programs::{Programs, Scope},
    support::Support,
};
use crate::{host, setup, sums::Sums};

/// Lines of a console that show why nothing came of it.
const TAIL: usize = 25;

#[derive(clap::Args)]
pub struct Options {
    /// Debian's kernels, fetched with apt
    #[arg(value_name = "KERNEL", value_parser = kernels::NAMES, required_unless_present_any = ["all", "kernel"])]
    kernels: Vec<String>,
    /// All of these
    #[arg(long, conflicts_with = "kernels")]
    all: bool,
    /// A kernel image of your own, with BTF
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "all"])]
    kernel: Option<PathBuf>,
    /// Where its inet_diag and tcp_diag are, if they are modules
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Only the workload: the test programs are neither built nor run
    #[arg(long)]
    quick: bool,
    /// Put what each kernel delivers, as its doctor says, on file in docs/kernel-support.md
    #[arg(long)]
    record: bool,
    /// Look for newer packages of kernels that were fetched before
    #[arg(long)]
    fresh: bool,
    /// Further flags for rsttrace, after `--`: `cargo xtask vm 6.1 -- -vv`
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Boots one kernel after the other; fails where one did not do as expected.
pub fn run(options: &Options) -> Result<()> {
    setup::for_tests()?;
    let scope = if options.quick { Scope::Workload } else { Scope::All };
    let machine = Machine::new(scope)?;
    let mut flags = options.flags.clone();
    flags.extend(options.quick.then(|| "vm.quick".to_owned()));
    let mut kernels: Vec<(String, Result<Kernel>)> = Vec::new();
    if let Some(image) = &options.kernel {
        kernels.push((image.display().to_string(), Kernel::of_file(image, options.modules.as_deref())));
    }
    let wanted = |name: &&str| options.all || options.kernels.iter().any(|wanted| wanted == name);
    kernels.extend(kernels::NAMES.into_iter().filter(wanted).map(|name| (name.to_owned(), Kernel::fetch(name, options.fresh))));
    let mut found = Vec::new();
    let mut failed = Vec::new();
    side_by_side(
        kernels,
        |(name, kernel)| (name, kernel.and_then(|kernel| machine.run(&kernel, &kernel.name, &flags))),
        |(name, outcome)| match outcome {
            Ok(report) => {
                // Drift is no failure where it is about to be put on file.
                let drift = if options.record { Vec::new() } else { report.drift() };
                report.print(&drift);
                if !drift.is_empty() {
                    println!("    if that is meant: cargo xtask vm --all --record");
                }
                if !report.problems.is_empty() || !drift.is_empty() {
                    failed.push(name);
                }
                found.extend(report.support);
            }
            Err(error) => {
                println!("{name}: {error:#}");
                failed.push(name);
            }
        },
    );
    if options.record {
        support::record(found)?;
    }
    if !failed.is_empty() {
        bail!("not as expected on {}; what was said there is kept in {}", failed.join(" and "), directory()?.display());
    }
    Ok(())
}

/// What `cargo xtask test` runs: two kernels, some of the test programs; and whether what goes wrong in a
/// guest is noticed.
pub fn test() -> Result<Sums> {
    const KERNELS: [&str; 2] = ["6.1", "6.12"];
    let mut sums = Sums::default();
    let machine = Machine::new(Scope::Some)?;
    let kernels = KERNELS.map(|name| (name, Kernel::fetch(name, false)));
    side_by_side(
        kernels.into(),
        |(name, kernel)| (name, kernel.and_then(|kernel| machine.run_twice_at_most(&kernel))),
        |(name, outcome)| {
            let problems = match outcome {
                Ok(report) => {
                    let drift = report.drift();
                    report.print(&drift);
                    let mut guest = report.sums;
                    guest.expect_skips(&NOT_IN_GUESTS);
                    sums.add(&format!("vm {name}"), guest);
                    report.problems.into_iter().chain(drift.into_iter().filter(|line| !support::is_growth(line))).collect()
                }
                Err(error) => vec![format!("{error:#}")],
            };
            sums.note(&format!("vm {name}"), (!problems.is_empty()).then(|| problems.join("\n    ")));
        },
    );
    let kernel = Kernel::fetch(KERNELS[1], false)?;
    side_by_side(
        SABOTAGE.to_vec(),
        |(flags, words)| {
            let flags: Vec<String> = ["vm.quick"].iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
            let label = format!("{}-sabotaged-{}", kernel.name, flags[flags.len() - 1].replace('/', "-"));
            (flags.join(" "), words, machine.run(&kernel, &label, &flags))
        },
        |(flags, words, outcome)| {
            let told = outcome.map_or_else(|error| format!("{error:#}"), |report| report.problems.join("\n    "));
            let unnoticed = (!told.contains(words)).then(|| format!("{words:?} was to be noticed, and this was: {told}"));
            println!("test: a guest sabotaged by {flags}: {}", if unnoticed.is_none() { "noticed" } else { "NOT NOTICED" });
            sums.note(&format!("vm, sabotaged: {flags}"), unnoticed);
        },
    );
    Ok(sums)
}

/// Why tests are skipped in guests, where this machine runs them.
const NOT_IN_GUESTS: [&str; 3] = ["strace is not installed", "gcc is not installed", "what MPTCP returns is seen by the tracepoint only"];

/// What a guest is told to do wrong, and words by which that is noticed.
const SABOTAGE: &[(&[&str], &str)] = &[
    (&["vm.panic"], "Kernel panic"),
    (&["vm.hang"], "the machine hung"),
    (&["vm.truncated"], "no end marker"),
    // A scenario that comes out otherwise: its observer is then concluded.
    (&["--without", "cgroup/getsockopt"], "the same with a non-blocking connect:"),
];

/// Does as many at once as this machine has CPUs, which a guest keeps busy one each; what comes of them is
/// handed over in order.
fn side_by_side<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync, mut done: impl FnMut(R)) {
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let mut all = all.into_iter();
    loop {
        let some: Vec<T> = all.by_ref().take(at_once).collect();
        if some.is_empty() {
            return;
        }
        let work = &work;
        thread::scope(|scope| {
            let running: Vec<_> = some.into_iter().map(|one| scope.spawn(move || work(one))).collect();
            for one in running {
                done(one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        });
    }
}

/// Where consoles and records are kept.
fn directory() -> Result<PathBuf> {
    let dir = host::target_dir()?.join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// What every guest is made of.
struct Machine {
    emulator: Emulator,
    programs: Programs,
}

impl Machine {
    fn new(scope: Scope) -> Result<Self> {
        Ok(Self { emulator: Emulator::find()?, programs: Programs::build(scope)? })
    }

    /// Once more if anything was not as expected: that is said, and what counts is the second time.
    fn run_twice_at_most(&self, kernel: &Kernel) -> Result<Report> {
        let first = self.run(kernel, &kernel.name, &[])?;
        let drift = first.drift();
        if first.problems.is_empty() && drift.iter().all(|line| support::is_growth(line)) {
            return Ok(first);
        }
        first.print(&drift);
        println!("    once more:");
        self.run(kernel, &format!("{}-again", kernel.name), &[])
    }

    /// Boots a kernel, and keeps what was said under this label.
    fn run(&self, kernel: &Kernel, label: &str, flags: &[String]) -> Result<Report> {
        let stem = directory()?.join(label);
        let initramfs = stem.with_added_extension("initramfs");
        write(&initramfs, self.programs.initramfs(kernel)?)?;
        let started = Instant::now();
        let console = console::boot(&self.emulator, &stem.with_added_extension("console"), &kernel.image, &initramfs, flags)?;
        let seconds = started.elapsed().as_secs();
        write(&stem.with_added_extension("console"), &console.text)?;
        write(&stem.with_added_extension("jsonl"), console.joined("record"))?;
        write(&stem.with_added_extension("said"), console.joined("said"))?;
        Ok(Report::new(&kernel.name, seconds, &console))
    }
}

fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

/// What a console told.
#[derive(Default)]
struct Report {
    name: String,
    /// Its own `uname -r`.
    kernel: String,
    seconds: u64,
    /// Scenarios of the workload, with what came of them in each run.
    scenarios: Vec<(&'static str, Vec<&'static str>)>,
    details: Vec<String>,
    problems: Vec<String>,
    sums: Sums,
    support: Option<Support>,
}

impl Report {
    fn new(name: &str, seconds: u64, console: &Console) -> Self {
        let mut report = Self { name: name.to_owned(), kernel: console.lines("kernel").collect(), seconds, ..Self::default() };
        if let Err(error) = report.read(console) {
            report.problems.push(format!("{error:#}"));
            report.problems.extend(console.tail(TAIL).into_iter().map(str::to_owned));
        }
        report
    }

    fn read(&mut self, console: &Console) -> Result<()> {
        if self.kernel.is_empty() {
            "did not get as far as init".clone_into(&mut self.kernel);
        }
        console.complete()?;
        let runs = console.parts("run");
        if runs.is_empty() {
            bail!("rsttrace was not run");
        }
        for (number, run) in runs.iter().enumerate() {
            self.workload(run, number == 0)?;
        }
        self.test_programs(console);
        let doctor = console.lines("doctor").next().context("the doctor said nothing")?;
        let doctor = serde_json::from_str(doctor).with_context(|| format!("the doctor printed no JSON: {doctor}"))?;
        self.support = Some(Support::of_doctor(&self.name, &doctor));
        Ok(())
    }

    /// How hooks, fields and programs differ from what is on file.
    fn drift(&self) -> Vec<String> {
        match (&self.support, support::recorded()) {
            (Some(support), Ok(recorded)) => support.drift(&recorded),
            (_, Err(error)) => vec![format!("{error:#}")],
            (None, _) => Vec::new(),
        }
    }

    fn print(&self, drift: &[String]) {
        println!("{}: {}, {} s", self.name, self.kernel, self.seconds);
        for (scenario, outcomes) in &self.scenarios {
            println!("    {:<10} {scenario}", outcomes.join(" "));
        }
        self.details.iter().for_each(|line| println!("    {line}"));
        self.problems.iter().chain(drift).for_each(|line| println!("  ! {line}"));
    }

    /// One run of the workload; more is told of the first.
    fn workload(&mut self, run: &Part<'_>, first: bool) -> Result<()> {
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("rsttrace printed no JSON: {line}"));
        let records: Vec<Value> = run.lines("record").map(parse).collect::<Result<_>>()?;
        let Some(start) = records.first() else { bail!("rsttrace printed nothing") };
        let judged = judge::judge(run, &records)?;
        let flags = if run.name == "-" { String::new() } else { format!(" ({})", run.name) };
        self.details.push(format!("{}; {}{flags}", judged.summary(), hooks(start)));
        for (scenario, outcome) in &judged.scenarios {
            match self.scenarios.iter_mut().find(|(known, _)| known == scenario) {
                Some((_, outcomes)) => outcomes.push(outcome),
                None => self.scenarios.push((scenario, vec![outcome])),
            }
        }
        if first {
            self.details.extend(["end", "cause"].map(|key| counts(&records, key)));
            self.details.push(verified(run));
        }
        self.problems.extend(judged.problems.into_iter().map(|problem| format!("{problem}{flags}")));
        Ok(())
    }

    /// What the test programs said.
    fn test_programs(&mut self, console: &Console) {
        let mut all = Sums::default();
        let second: Vec<_> = console.parts("again");
        for first in console.parts("scenarios") {
            let mut sums = first.sums();
            if let Some(second) = second.iter().find(|second| second.name == first.name) {
                sums.retried(&second.sums());
            }
            if sums.is_empty() {
                // No libtest: it has nothing to say but how it ended.
                sums.note(first.name, None);
            }
            let (passed, failed) = (sums.passed(), sums.failed.len());
            self.details.push(format!(
                "{}: {}",
                first.name,
                if failed == 0 { format!("{passed} passed") } else { format!("{passed} passed, {failed} failed") }
            ));
            all.add(first.name, sums);
        }
        if !all.is_empty() {
            all.add_skips(&console.joined("skip"));
            self.details.push(format!(
                "test programs: {} passed, {} failed, {} skipped",
                all.passed(),
                all.failed.len(),
                all.skipped.len()
            ));
            self.details.extend(all.skipped.iter().map(|skip| format!("  skipped {skip}")));
            self.details.extend(all.again.iter().map(|name| format!("  passed alone {name}")));
            self.problems.extend(all.failed.iter().map(|name| format!("failed: {name}")));
        }
        self.sums = all;
    }
}

/// `9 of 9 hooks`, and which are not attached.
fn hooks(start: &Value) -> String {
    let hooks: Vec<_> = start["hooks"].as_object().into_iter().flatten().collect();
    let without: Vec<&str> = hooks.iter().filter(|(_, how)| how.is_null()).map(|(name, _)| name.as_str()).collect();
    let names = if without.is_empty() { String::new() } else { format!(", without {}", without.join(" and ")) };
    format!("{} of {} hooks{names}", hooks.len() - without.len(), hooks.len())
}

/// `32 records by end: 15 reset-received, ...`, most first.
fn counts(records: &[Value], key: &str) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    let teardowns = records.iter().filter(|record| record["record"] == "teardown");
    teardowns.for_each(|record| *counts.entry(record[key].as_str().unwrap_or("null")).or_default() += 1);
    let total: usize = counts.values().sum();
    format!("{total} records by {key}: {}", most_first(counts.into_iter().collect()))
}

/// What the verifier walked through, by program; kernels before 5.16 do not tell.
fn verified(run: &Part<'_>) -> String {
    let programs = run.lines("program").filter_map(|line| {
        let [name, verified, _] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        Some((name, verified.parse().ok()?))
    });
    let programs: Vec<(&str, usize)> = programs.filter(|(_, verified)| *verified > 0).collect();
    format!("verified instructions: {}", if programs.is_empty() { "not told".to_owned() } else { most_first(programs) })
}

fn most_first(mut counted: Vec<(&str, usize)>) -> String {
    counted.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let words: Vec<String> = counted.iter().map(|(word, count)| format!("{count} {word}")).collect();
    words.join(", ")
}
