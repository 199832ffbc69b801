//! Aborts as fast as can be.

use anyhow::Result;

use super::{
    Bench,
    load::Load,
    paired::{self, Condition, Measured, Watch},
    pairs::Spread,
    report::{Report, grouped, ratio},
};

pub const ABORTS: usize = 50_000;
/// For those under which it would take minutes.
const LIMIT_SECONDS: &str = "4";

pub fn run(bench: &Bench) -> Result<Report> {
    let aborts = if bench.quick { ABORTS / 5 } else { ABORTS };
    let mut report = Report::new("storm", format!("{} loopback aborts as fast as can be", grouped(aborts as f64)));
    let work = |watch: Watch| paired::by_load(load(bench, aborts)?, watch);
    let json = Condition::Traced { name: "rsttrace --json", flags: &["--json"], read: false };
    let text = Condition::Traced { name: "rsttrace", flags: &[], read: false };
    let mut conditions = vec![Condition::Untraced, json, text];
    conditions.extend(paired::peers(true, &mut report));
    let comparison = paired::compare(bench, conditions, &work)?;
    let rate = comparison.tell(&mut report, "aborts");
    report.target("at least 0.90 of untraced", ratio(rate), rate.median >= 0.90);

    let mut rows = Vec::new();
    for (name, at) in [("JSON to /dev/null", 1), ("text to /dev/null", 2)] {
        let runs = &comparison.runs[at];
        let traced = || runs.iter().filter_map(|measured| measured.traced.as_ref());
        let cpu: Vec<f64> = traced().map(|traced| traced.cpu_ns as f64 / traced.records as f64).collect();
        let lost: u64 = traced().map(|traced| traced.lost).sum();
        let unreported: f64 = runs.iter().filter_map(unreported).sum();
        let median = Spread::of(&cpu).median / 1e3;
        report.target(
            format!("{name}: none lost"),
            format!("{lost} lost, {unreported} ends without a record"),
            lost == 0 && unreported == 0.0,
        );
        report.target(format!("{name}: below 4 us of CPU per record"), format!("{median:.2} us"), median < 4.0);
        let records: u64 = traced().map(|traced| traced.records).sum();
        rows.push([name.to_owned(), grouped(records as f64), grouped(lost as f64), grouped(unreported), paired::micros(&cpu)]);
    }
    let table = report.table(&["rsttrace", "records", "events lost", "ends without a record", "its CPU per record, us"]);
    rows.into_iter().for_each(|row| table.row(row));
    report.note(
        "each abort has two ends, hence two records; a few more records are RSTs that met no socket. CPU is that of both processes of \
         rsttrace from when it was ready to its end (rusage, schedstat), at the default buffer",
    );
    report.note("alive: the records of every run are counted against the ends that were made in it (statistics off)");
    paired::with_statistics(bench, &mut report, &work)?;
    Ok(report)
}

/// Ends that were made and not reported.
fn unreported(measured: &Measured) -> Option<f64> {
    Some((2.0 * measured.run.work - measured.traced.as_ref()?.records as f64).max(0.0))
}

/// A storm that is about to begin.
pub fn load(bench: &Bench, aborts: usize) -> Result<Load> {
    Load::start(&bench.load, &["aborts", &aborts.to_string(), LIMIT_SECONDS])
}
