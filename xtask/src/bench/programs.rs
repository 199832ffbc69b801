//! What the kernel's statistics say of each BPF program, less what they cost themselves.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Bench,
    report::{Report, grouped},
};

/// The hooks on paths where nothing ends: a receive, a send, a segment.
pub const HOT: [&str; 3] = ["sock_recv_length", "sock_send_length", "tcp_probe"];

/// What the statistics' own clock must have run for its mean to be worth something.
const ENOUGH_RUNS: f64 = 1000.0;

/// A program's runs.
pub struct Program {
    pub name: String,
    pub runs: f64,
    pub run_ns: f64,
}

impl Program {
    pub fn ns_per_run(&self) -> f64 {
        self.run_ns / self.runs
    }
}

/// The programs of a process.
pub fn of_process(bench: &Bench, pid: u32) -> Result<Vec<Program>> {
    let output = Command::new(&bench.load).args(["programs", &pid.to_string()]).output().context("cannot start load")?;
    ensure!(output.status.success(), "load programs: {}", String::from_utf8_lossy(&output.stderr));
    let program = |line: &str| -> Result<Program> {
        let program: Value = serde_json::from_str(line).with_context(|| format!("load says: {line}"))?;
        let number = |name: &str| program[name].as_f64().unwrap_or(0.0);
        Ok(Program { name: program["name"].as_str().unwrap_or_default().to_owned(), runs: number("runs"), run_ns: number("run_ns") })
    };
    String::from_utf8_lossy(&output.stdout).lines().map(program).collect()
}

/// What an empty program is said to take: that of the same hook, or of all.
pub fn overhead_ns(empty: &[Program], hook: &str) -> f64 {
    let enough = |program: &&Program| program.runs >= ENOUGH_RUNS;
    match empty.iter().filter(enough).find(|program| program.name == hook) {
        Some(same) => same.ns_per_run(),
        None => {
            let sum = |of: fn(&Program) -> f64| empty.iter().filter(enough).map(of).sum::<f64>();
            sum(|program| program.run_ns) / sum(|program| program.runs).max(1.0)
        }
    }
}

/// The targets for receives and sends that move data.
pub fn tell_success_path(report: &mut Report, hot: &[(&str, f64)]) {
    for hook in HOT.into_iter().filter(|hook| hook.starts_with("sock_")) {
        let measured = hot.iter().find(|(name, _)| *name == hook).map(|(_, ns)| *ns);
        let words = measured.map_or_else(|| "did not run often enough, or by another program".to_owned(), |ns| format!("{ns:.0} ns"));
        report.target(format!("{hook} at most 25 ns over an empty program"), words, measured.is_some_and(|ns| ns <= 25.0));
    }
}

/// The table of a tracer's programs, while it and empty programs beside it are attached.
pub fn tell(bench: &Bench, report: &mut Report, tracer: u32, hooks: u32) -> Result<Vec<(&'static str, f64)>> {
    let (ours, empty) = (of_process(bench, tracer)?, of_process(bench, hooks)?);
    let ran: Vec<&Program> = ours.iter().filter(|program| program.runs > 0.0).collect();
    ensure!(!ran.is_empty(), "no program of rsttrace ran: is it attached?");
    let table = report.table(&["program", "runs", "ns per run, with statistics", "an empty program", "ns per run"]);
    let mut hot = Vec::new();
    for program in ran {
        let (with, overhead) = (program.ns_per_run(), overhead_ns(&empty, &program.name));
        table.row([
            program.name.clone(),
            grouped(program.runs),
            format!("{with:.0}"),
            format!("{overhead:.0}"),
            format!("{:.0}", with - overhead),
        ]);
        let is_this = |hook: &&&str| hook.starts_with(&program.name) && program.runs >= ENOUGH_RUNS;
        hot.extend(HOT.iter().find(is_this).map(|hook| (*hook, with - overhead)));
    }
    report.note(
        "run counts and times are the kernel's statistics (BPF_ENABLE_STATS) in a run of their own; what they cost themselves is what \
         they say of an empty program on the same hook in the same run, and is taken off in the last column",
    );
    Ok(hot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_of_the_same_hook_where_it_ran_often() {
        let empty = |name: &str, runs, run_ns| Program { name: name.to_owned(), runs, run_ns };
        let empty = [empty("a", 1e4, 4e5), empty("b", 1e4, 2e5), empty("c", 3.0, 9e9)];
        assert_eq!(["a", "b", "c", "d"].map(|hook| overhead_ns(&empty, hook)), [40.0, 20.0, 30.0, 30.0]);
    }
}
