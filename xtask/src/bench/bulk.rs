//! Bulk transfer over loopback: what a hook costs that runs for every segment.

use std::cell::RefCell;

use anyhow::{Context as _, Result};

use super::{
    Bench,
    load::Load,
    paired::{self, Condition, Watch},
    pairs::Spread,
    programs,
    report::{Report, grouped, ratio},
};

pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("bulk", "one connection over loopback, as fast as can be");
    let rates = RefCell::new(Vec::new());
    let work = |watch: Watch| {
        let mut load = Load::start(&bench.load, &["bulk", &bench.seconds.to_string()])?;
        watch(load.pid())?;
        let before = segments()?;
        let mut run = load.run()?;
        rates.borrow_mut().push((segments()? - before) / run.seconds);
        run.work /= 1e6;
        Ok((run, Some(load)))
    };
    let mut conditions = vec![Condition::Untraced, Condition::TRACED, Condition::EmptyPrograms];
    conditions.extend(paired::peers(true, &mut report));
    let comparison = paired::compare(bench, conditions, &work)?;
    let rate = comparison.tell(&mut report, "MB");
    report.target("at least 0.99 of untraced", ratio(rate), rate.median >= 0.99);
    comparison.tell_peers(&mut report);
    let hot = paired::with_statistics(bench, &mut report, &work)?;
    programs::tell_success_path(&mut report, &hot);
    report.note(format!(
        "writes and reads of 64 KiB, {} segments per second in the median run (InSegs: data and acknowledgements, whose size and number \
         change from run to run: hence the rate in bytes); CPU is that of both ends",
        grouped(Spread::of(&rates.take()).median)
    ));
    Ok(report)
}

/// TCP segments that this network namespace has received.
fn segments() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/net/snmp").context("cannot read /proc/net/snmp")?;
    let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_whitespace);
    let (names, values) = tcp.next().zip(tcp.next()).context("/proc/net/snmp has no TCP")?;
    let value = names.zip(values).find(|(name, _)| *name == "InSegs").and_then(|(_, value)| value.parse().ok());
    value.context("/proc/net/snmp has no InSegs")
}
