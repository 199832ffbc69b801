//! What a run on another kernel is worth.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    console::Part,
    expect::{ALTERNATIVES, SCENARIOS, differences, told},
};

/// What came of all scenarios.
pub struct Judged {
    /// Each with `ok`, `differs`, or `-` where the machine cannot make it.
    pub scenarios: Vec<(&'static str, &'static str)>,
    pub problems: Vec<String>,
}

impl Judged {
    pub fn summary(&self) -> String {
        let count = |wanted: &str| self.scenarios.iter().filter(|(_, outcome)| *outcome == wanted).count();
        format!("{} of {} scenarios as expected, {} impossible there", count("ok"), SCENARIOS.len(), count("-"))
    }
}

/// `run` is one run of the workload, named by the tracer's flags.
pub fn judge(run: &Part<'_>, records: &[Value]) -> Result<Judged> {
    let mut problems = missing_hooks(run.name, records);
    problems.extend(losses(records));
    let blind = run.name.contains("kprobe") && records.iter().any(|record| record["hooks"].get("tcp_v4_send_reset").is_some());
    if !blind {
        problems.extend(contradictions(run, records)?);
    }
    let scenarios = scenarios(run, records, blind, &mut problems)?;
    Ok(Judged { scenarios, problems })
}

/// Hooks that the flags do not leave out.
fn missing_hooks(flags: &str, records: &[Value]) -> Vec<String> {
    let no_functions = flags.contains("kprobe");
    let left_out =
        |name: &str| flags.contains(name) || no_functions && matches!(name, "tcp_reset" | "tcp_v4_send_reset" | "tcp_v6_send_reset");
    let hooks = records.iter().filter_map(|record| record["hooks"].as_object()).flatten();
    hooks.filter(|(name, how)| how.is_null() && !left_out(name)).map(|(name, _)| format!("{name} is not attached")).collect()
}

fn losses(records: &[Value]) -> Vec<String> {
    let Some(summary) = records.iter().find(|record| record["record"] == "summary") else {
        return vec!["rsttrace printed no summary".to_owned()];
    };
    let counted = [
        ("events lost", &summary["lost"]["total"]),
        ("events not understood", &summary["undecodable"]),
        ("sockets evicted", &summary["evicted"]),
    ];
    let counted = counted.into_iter().filter(|(_, count)| count.as_u64() != Some(0));
    counted.map(|(what, count)| format!("{count} {what}")).collect()
}

/// Where the kernel itself has counted otherwise.
fn contradictions(run: &Part<'_>, records: &[Value]) -> Result<Vec<String>> {
    let count = |wanted: &dyn Fn(&Value) -> bool| records.iter().filter(|record| wanted(record)).count();
    let established = |record: &Value| record["end"] != "fin" && (record["state"] == "ESTABLISHED" || record["state"] == "CLOSE_WAIT");
    let counters = [("EstabResets", count(&established)), ("OutRsts", count(&|record| record["end"] == "reset-sent"))];
    let mut problems = Vec::new();
    for (name, told) in counters {
        let at = |when| counter(run, when, name).with_context(|| format!("/proc/net/snmp has no {name}"));
        let counted = at("after")? - at("before")?;
        if counted != told {
            problems.push(format!("the kernel counted {counted} {name}, and {told} were told"));
        }
    }
    Ok(problems)
}

/// One of TCP's in `/proc/net/snmp`: a line of names, then a line of numbers.
fn counter(run: &Part<'_>, when: &str, name: &str) -> Option<usize> {
    let mut lines = run.lines(when).filter(|line| line.starts_with("Tcp:"));
    let (names, mut numbers) = (lines.next()?, lines.next()?.split(' '));
    numbers.nth(names.split(' ').position(|known| known == name)?)?.parse().ok()
}

/// Compares the records after each announcement with the expected ones.
/// `blind`: RSTs without a full socket are not seen, by a choice of ours.
fn scenarios(run: &Part<'_>, records: &[Value], blind: bool, problems: &mut Vec<String>) -> Result<Vec<(&'static str, &'static str)>> {
    let parts = parts(run)?;
    let mut outcomes = Vec::new();
    for (announced, expected) in SCENARIOS {
        let Some(part) = parts.iter().find(|part| part.announced.starts_with(announced)) else {
            problems.push(format!("the workload did not announce: {announced}"));
            outcomes.push((*announced, "differs"));
            continue;
        };
        if part.not_here {
            outcomes.push((*announced, "-"));
            continue;
        }
        let told: Vec<String> = records.iter().filter(|record| part.has(record)).map(told).collect();
        let mut alternatives = ALTERNATIVES.iter().filter(|(of, _)| of == announced);
        let missed = differences(&adapted(expected, run.name, blind), &told);
        if missed.is_empty() || alternatives.any(|(_, expected)| differences(&adapted(expected, run.name, blind), &told).is_empty()) {
            outcomes.push((*announced, "ok"));
        } else {
            outcomes.push((*announced, "differs"));
            problems.push(format!("{announced}:"));
            problems.extend(missed);
        }
    }
    Ok(outcomes)
}

/// What is expected under these flags: without a hook for them RSTs without a full socket (role `-`) are not
/// seen, and the exit of a system call shows what a blocking connect() returned, which is concluded otherwise.
fn adapted(expected: &[&'static str], flags: &str, blind: bool) -> Vec<String> {
    let stray = |line: &str| line.starts_with("reset-sent") && line.split_whitespace().nth(1) == Some("-");
    let seen = expected.iter().filter(|line| !blind || !stray(line));
    let caught = if flags.contains("--syscall-hooks") { "connect:" } else { "~connect:" };
    seen.map(|line| line.replace("~connect:", caught)).collect()
}

/// The workload from one announcement to the next; times are written as in the records.
struct Scenario<'a> {
    from: &'a str,
    until: &'a str,
    announced: &'a str,
    not_here: bool,
}

impl Scenario<'_> {
    fn has(&self, record: &Value) -> bool {
        let kind = record["record"].as_str().unwrap_or_default();
        let time = record["time"].as_str().unwrap_or_default();
        matches!(kind, "teardown" | "late-observation") && self.from <= time && time < self.until
    }
}

fn parts<'a>(run: &Part<'a>) -> Result<Vec<Scenario<'a>>> {
    let mut parts: Vec<Scenario<'_>> = Vec::new();
    for line in run.lines("workload") {
        let (time, text) = line.split_once(' ').with_context(|| format!("no time before {line:?}"))?;
        if let Some(announced) = text.strip_prefix("-- ") {
            if let Some(last) = parts.last_mut() {
                last.until = time;
            }
            parts.push(Scenario { from: time, until: "~", announced, not_here: false });
        } else if let Some(last) = parts.last_mut() {
            last.not_here |= text.contains("(not here");
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vm::console::Console;

    const TOLD: &str = "@run -v\n@before Tcp: ActiveOpens EstabResets OutRsts\n@before Tcp: 1 1 1\n\
                        @workload 10:00:01.0Z -- an IPv6 client aborts\n@workload 10:00:01.0Z    (not here: no IPv6)\n\
                        @workload 10:00:02.0Z -- the connection that was reset at the beginning, idle in a pool\n\
                        @after Tcp: ActiveOpens EstabResets OutRsts\n@after Tcp: 3 2 2\n@ended run 0\n";

    fn judged(records: &[Value]) -> Judged {
        let console = Console::of(TOLD);
        let runs = console.parts("run");
        judge(&runs[0], records).expect("counters")
    }

    fn late(time: &str) -> Value {
        let observer = json!({"syscall": "recvfrom", "errno": "ECONNRESET", "inferred": false});
        json!({"record": "late-observation", "time": time, "observer": observer})
    }

    #[test]
    fn a_record_belongs_to_the_last_announcement_before_it() {
        assert_eq!(judged(&[late("10:00:02.5Z")]).summary(), "1 of 17 scenarios as expected, 1 impossible there");
        assert_eq!(judged(&[late("10:00:01.5Z")]).summary(), "0 of 17 scenarios as expected, 1 impossible there");
    }

    #[test]
    fn the_kernels_own_counters_are_a_witness() {
        let sent = json!({"record": "teardown", "time": "10:00:00Z", "end": "reset-sent", "state": "ESTABLISHED"});
        let contradicts = |problems: Vec<String>| problems.iter().any(|problem| problem.starts_with("the kernel counted 1 OutRsts"));
        assert!(contradicts(judged(&[]).problems));
        assert!(!contradicts(judged(&[sent]).problems));
    }

    #[test]
    fn what_is_lost_or_not_attached_is_a_problem() {
        let start = json!({"record": "start", "hooks": {"tcp_probe": null, "tcp_destroy_sock": "tp_btf"}});
        let summary = json!({"record": "summary", "lost": {"total": 2}, "undecodable": 0, "evicted": 0});
        assert_eq!(judged(&[start, summary]).problems[..2], ["tcp_probe is not attached", "2 events lost"]);
    }
}
