//! What processes pay that have nothing to do with TCP: a loop of getppid().

use anyhow::Result;

use super::{
    Bench,
    load::Load,
    paired::{self, Condition},
    report::{Report, ratio},
};

pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("getppid", "a process without sockets: getppid() in a loop");
    let work = |watch: &mut dyn FnMut(u32) -> Result<()>| {
        let mut load = Load::start(&bench.load, &["getppid", &(bench.seconds / 2.0).to_string()])?;
        watch(load.pid())?;
        let run = load.run()?;
        load.end()?;
        Ok(run)
    };
    let mut conditions = vec![Condition::Untraced, Condition::TRACED];
    conditions.extend(paired::peers(false, &mut report));
    let comparison = paired::compare(bench, conditions, &work)?;
    let rate = comparison.tell(&mut report, "calls");
    report.target("no cost that can be measured: 1 is not above the middle half", ratio(rate), rate.high >= 1.0);
    comparison.tell_peers(&mut report);
    report.note("strace is left out: it costs only the process that it is attached to");
    Ok(report)
}
