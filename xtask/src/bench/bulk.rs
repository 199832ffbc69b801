//! Bulk transfer over loopback: what a hook costs that runs for every segment.

use anyhow::{Context as _, Result};

use super::{
    Bench,
    load::Load,
    paired::{self, Condition},
    report::{Report, ratio},
};

pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("bulk", "one connection over loopback as fast as can be, by segments");
    let work = |watch: &mut dyn FnMut(u32) -> Result<()>| {
        let mut load = Load::start(&bench.load, &["bulk", &bench.seconds.to_string()])?;
        watch(load.pid())?;
        let before = segments()?;
        let mut run = load.run()?;
        run.work = segments()? - before;
        load.end()?;
        Ok(run)
    };
    let mut conditions = vec![Condition::Untraced, Condition::TRACED, Condition::EmptyPrograms];
    conditions.extend(paired::peers(true, &mut report));
    let comparison = paired::compare(bench, conditions, &work)?;
    let rate = comparison.tell(&mut report, "segments");
    report.target("at least 0.99 of untraced", ratio(rate), rate.median >= 0.99);
    comparison.tell_peers(&mut report);
    paired::with_statistics(bench, &mut report, &["--json"], &work)?;
    report.note("writes and reads of 64 KiB; segments are the kernel's InSegs, data and acknowledgements; CPU is that of both ends");
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
