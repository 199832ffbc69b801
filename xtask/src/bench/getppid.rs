//! What processes pay that have nothing to do with TCP: a loop of getppid().

use anyhow::Result;

use super::{
    Bench,
    load::Load,
    paired::{self, Condition, Watch},
    report::{Report, ratio},
};

pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("getppid", "a process without sockets: getppid() in a loop");
    let seconds = (bench.seconds / 2.0).to_string();
    let work = |watch: Watch| paired::by_load(Load::start(&bench.load, &["getppid", &seconds])?, watch);
    let mut conditions = vec![Condition::Untraced, Condition::TRACED];
    conditions.extend(paired::peers(false, &mut report));
    let comparison = paired::compare(bench, conditions, &work)?;
    let rate = comparison.tell(&mut report, "calls");
    report.target("no cost that can be measured: the middle half reaches 1", ratio(rate), rate.high >= 1.0);
    report.note("strace is left out: it costs only the process that it is attached to");
    Ok(report)
}
