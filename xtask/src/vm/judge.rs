//! What a run on another kernel is worth.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    console::Console,
    expect::{ALTERNATIVES, SCENARIOS, differences, told},
};

/// What came of all scenarios.
pub struct Judged {
    pub summary: String,
    pub problems: Vec<String>,
}

pub fn judge(console: &Console, records: &[Value]) -> Result<Judged> {
    let mut problems = missing_hooks(records);
    problems.extend(losses(records));
    problems.extend(contradictions(console, records)?);
    let summary = scenarios(console, records, &mut problems)?;
    Ok(Judged { summary, problems })
}

fn missing_hooks(records: &[Value]) -> Vec<String> {
    let hooks = records.iter().filter_map(|record| record["hooks"].as_object()).flatten();
    hooks.filter(|(_, how)| how.is_null()).map(|(name, _)| format!("{name} is not attached")).collect()
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
fn contradictions(console: &Console, records: &[Value]) -> Result<Vec<String>> {
    let count = |wanted: &dyn Fn(&Value) -> bool| records.iter().filter(|record| wanted(record)).count();
    let established = |record: &Value| record["end"] != "fin" && (record["state"] == "ESTABLISHED" || record["state"] == "CLOSE_WAIT");
    let counters = [("EstabResets", count(&established)), ("OutRsts", count(&|record| record["end"] == "reset-sent"))];
    let mut problems = Vec::new();
    for (name, told) in counters {
        let counted = counter(console, name).with_context(|| format!("/proc/net/snmp has no {name}"))?;
        if counted != told {
            problems.push(format!("the kernel counted {counted} {name}, and {told} were told"));
        }
    }
    Ok(problems)
}

/// One of TCP's in `/proc/net/snmp`: a line of names, then a line of numbers.
fn counter(console: &Console, name: &str) -> Option<usize> {
    let mut lines = console.lines("snmp").filter(|line| line.starts_with("Tcp:"));
    let (names, mut numbers) = (lines.next()?, lines.next()?.split(' '));
    numbers.nth(names.split(' ').position(|known| known == name)?)?.parse().ok()
}

/// Compares the records after each announcement with the expected ones.
fn scenarios(console: &Console, records: &[Value], problems: &mut Vec<String>) -> Result<String> {
    let parts = parts(console)?;
    let (mut as_expected, mut left_out) = (0, 0);
    for (announced, expected) in SCENARIOS {
        let Some(part) = parts.iter().find(|part| part.announced.starts_with(announced)) else {
            problems.push(format!("the workload did not announce: {announced}"));
            continue;
        };
        if part.not_here {
            left_out += 1;
            continue;
        }
        let told: Vec<String> = records.iter().filter(|record| part.has(record)).map(told).collect();
        let mut alternatives = ALTERNATIVES.iter().filter(|(of, _)| of == announced);
        let missed = differences(expected, &told);
        if missed.is_empty() || alternatives.any(|(_, expected)| differences(expected, &told).is_empty()) {
            as_expected += 1;
        } else {
            problems.push(format!("{announced}:"));
            problems.extend(missed);
        }
    }
    Ok(format!("{as_expected} of {} scenarios as expected, {left_out} impossible there", SCENARIOS.len()))
}

/// The workload from one announcement to the next; times are written as in the records.
struct Part<'a> {
    from: &'a str,
    until: &'a str,
    announced: &'a str,
    not_here: bool,
}

impl Part<'_> {
    fn has(&self, record: &Value) -> bool {
        let kind = record["record"].as_str().unwrap_or_default();
        let time = record["time"].as_str().unwrap_or_default();
        matches!(kind, "teardown" | "late-observation") && self.from <= time && time < self.until
    }
}

fn parts(console: &Console) -> Result<Vec<Part<'_>>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    for line in console.lines("workload") {
        let (time, text) = line.split_once(' ').with_context(|| format!("no time before {line:?}"))?;
        if let Some(announced) = text.strip_prefix("-- ") {
            if let Some(last) = parts.last_mut() {
                last.until = time;
            }
            parts.push(Part { from: time, until: "~", announced, not_here: false });
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

    const TOLD: &str = "@workload 10:00:01.0Z -- an IPv6 client aborts\n@workload 10:00:01.0Z    (not here: no IPv6)\n\
                        @workload 10:00:02.0Z -- the connection that was reset at the beginning, idle in a pool\n\
                        @snmp Tcp: ActiveOpens EstabResets OutRsts\n@snmp Tcp: 3 1 1\n";

    fn problems(records: &[Value]) -> Vec<String> {
        judge(&Console::of(TOLD), records).expect("counters").problems
    }

    fn late(time: &str) -> Value {
        let observer = json!({"syscall": "recvfrom", "errno": "ECONNRESET", "inferred": false});
        json!({"record": "late-observation", "time": time, "observer": observer})
    }

    #[test]
    fn a_record_belongs_to_the_last_announcement_before_it() {
        let summary = |time| judge(&Console::of(TOLD), &[late(time)]).expect("counters").summary;
        assert_eq!(summary("10:00:02.5Z"), "1 of 17 scenarios as expected, 1 impossible there");
        assert_eq!(summary("10:00:01.5Z"), "0 of 17 scenarios as expected, 1 impossible there");
    }

    #[test]
    fn the_kernels_own_counters_are_a_witness() {
        let sent = json!({"record": "teardown", "time": "10:00:00Z", "end": "reset-sent", "state": "ESTABLISHED"});
        let contradicts = |problems: Vec<String>| problems.iter().any(|problem| problem.starts_with("the kernel counted 1 OutRsts"));
        assert!(contradicts(problems(&[])));
        assert!(!contradicts(problems(&[sent])));
    }

    #[test]
    fn what_is_lost_or_not_attached_is_a_problem() {
        let start = json!({"record": "start", "hooks": {"tcp_probe": null, "tcp_destroy_sock": "tp_btf"}});
        let summary = json!({"record": "summary", "lost": {"total": 2}, "undecodable": 0, "evicted": 0});
        let problems = problems(&[start, summary]);
        assert_eq!(problems[..2], ["tcp_probe is not attached", "2 events lost"]);
    }
}
