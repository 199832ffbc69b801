//! The records of the made ends against what was done.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    ends::Made,
    fields::{Source, sources},
    must::{Finding, at},
    report::{Delivery, End, Field, Hook, Outcome},
    watch::Watched,
};
use crate::{probe::preflight, units};

/// How many places are named where a field is not right.
const FEW: usize = 4;

/// What is known here of hooks and members.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    pub hooks: &'a [Hook],
    /// What this kernel does not have.
    pub missing: &'a [&'static str],
}

impl Sources<'_> {
    pub fn attached(&self, name: &str) -> bool {
        self.how(name).is_some()
    }

    fn how(&self, name: &str) -> Option<&'static str> {
        self.hooks.iter().find(|hook| hook.name == name)?.how
    }

    /// What feeds a field here, in words; `None`: nothing.
    fn from(&self, source: &Source) -> Option<String> {
        if source.hooks.is_empty() {
            return Some("rsttrace itself".to_owned());
        }
        let fed: Vec<_> = source.hooks.iter().filter_map(|hook| Some(format!("{hook} ({})", self.how(hook)?))).collect();
        (!fed.is_empty()).then(|| fed.join(", "))
    }

    /// Of these hooks those that are not attached, by the reason why.
    fn why_unattached(&self, names: &[&'static str]) -> Vec<String> {
        let mut by_reason: Vec<(&str, Vec<&str>)> = Vec::new();
        for hook in self.hooks.iter().filter(|hook| hook.how.is_none() && !hook.extra && names.contains(&hook.name)) {
            let why = hook.why.as_deref().unwrap_or("not attached");
            match by_reason.iter_mut().find(|(reason, _)| *reason == why) {
                Some((_, hooks)) => hooks.push(hook.name),
                None => by_reason.push((why, vec![hook.name])),
            }
        }
        by_reason.into_iter().map(|(why, hooks)| format!("{}: {why}", hooks.join(" and "))).collect()
    }

    /// Why a RST without a full socket may have no record here.
    fn why_no_stray(&self) -> String {
        // The kernel began to trace them, and to give reasons, in the same release.
        let old = self.missing.contains(&preflight::RESET_REASON);
        let hooks = if old { &["tcp_v4_send_reset", "tcp_v6_send_reset"][..] } else { &["tcp_send_reset"] };
        let unattached = self.why_unattached(hooks);
        if unattached.is_empty() { "please report it".to_owned() } else { unattached.join("; ") }
    }

    /// Why a field may be silent here.
    fn why_silent(&self, source: &Source, clocks_agree: bool) -> String {
        let mut reasons = self.why_unattached(source.hooks);
        let members: Vec<_> =
            source.members.iter().filter(|member| self.missing.contains(member)).map(|name| name.replace("__", ".")).collect();
        if !members.is_empty() {
            reasons.push(format!("this kernel lacks {}", members.join(" and ")));
        }
        if reasons.is_empty() {
            let why = match (clocks_agree, self.hooks.iter().all(|hook| hook.how.is_some())) {
                (false, _) => "records are told too early or too late, because the clocks do not agree",
                (true, false) => "it follows from what is missing",
                (true, true) => "please report it",
            };
            reasons.push(why.to_owned());
        }
        reasons.join("; ")
    }
}

/// Where a field was looked at, and what was found.
#[derive(Debug, Default)]
struct Seen {
    right: Vec<String>,
    null: Vec<String>,
    wrong: Vec<String>,
}

/// Every field and every made end.
pub fn judge(watched: &Watched, known: Sources<'_>) -> (Vec<Field>, Vec<End>) {
    let mut seen: BTreeMap<&'static str, Seen> = BTreeMap::new();
    let ends = watched.made.iter().map(|made| judge_end(made, watched, known, &mut seen)).collect();
    let clocks_agree = seen.get("time").is_none_or(|seen| seen.wrong.is_empty());
    let fields = sources().iter().map(|source| field(source, seen.get(source.field), known, clocks_agree)).collect();
    (fields, ends)
}

/// Where nothing could be made.
pub fn untried(known: Sources<'_>, why: &str) -> Vec<Field> {
    let field =
        |source: &Source| Field { name: source.field, status: Delivery::NotTried, from: known.from(source), why: Some(why.to_owned()) };
    sources().iter().map(field).collect()
}

fn judge_end(made: &Made, watched: &Watched, known: Sources<'_>, seen: &mut BTreeMap<&'static str, Seen>) -> End {
    let end = |outcome, why| End { name: made.name, what: made.what, outcome, why };
    let halves = match &made.halves {
        Ok(halves) => halves,
        Err(error) => return end(Outcome::NotMade, Some(error.to_string())),
    };
    let (mut silent, mut doubts) = (Vec::new(), Vec::new());
    for half in halves {
        let Some(record) = watched.records.iter().find(|record| half.matches(record)) else {
            silent.push(half);
            continue;
        };
        let place = format!("{} ({})", made.name, half.whose);
        let time = ("time", when(record, made, watched));
        let others = half.must.iter().map(|(field, must)| (*field, must.compare(at(record, field), |hook| known.attached(hook))));
        for (field, finding) in others.chain([time]) {
            let seen = seen.entry(field).or_default();
            match finding {
                Finding::Right => seen.right.push(place.clone()),
                Finding::Null => {
                    doubts.push(format!("{field} of the {} is null", half.whose));
                    seen.null.push(place.clone());
                }
                Finding::Wrong(words) => {
                    doubts.push(format!("{field} of the {} is {words}", half.whose));
                    seen.wrong.push(format!("{place}: {words}"));
                }
            }
        }
    }
    if !silent.is_empty() {
        let whose: Vec<_> = silent.iter().map(|half| half.whose).collect();
        let why = if silent.iter().any(|half| half.stray) { known.why_no_stray() } else { "please report it".to_owned() };
        return end(Outcome::NoRecord, Some(format!("no record of the {}: {why}", whose.join(" and the "))));
    }
    if doubts.is_empty() { end(Outcome::Right, None) } else { end(Outcome::Partial, Some(doubts.join("; "))) }
}

/// An event's time lies between our readings of the same clock.
fn when(record: &Value, made: &Made, watched: &Watched) -> Finding {
    let Some(at) = watched.monotonic_ns(record) else { return Finding::Null };
    if (i128::from(made.before_ns)..=i128::from(made.after_ns)).contains(&at) {
        return Finding::Right;
    }
    let (behind, ahead) = (i128::from(made.before_ns) - at, at - i128::from(made.after_ns));
    let words = |ns: i128| units::duration(u64::try_from(ns).unwrap_or(u64::MAX));
    Finding::Wrong(if behind > 0 { format!("{} behind our clock", words(behind)) } else { format!("{} ahead of our clock", words(ahead)) })
}

/// The first few of many.
fn some(all: &[String], between: &str) -> String {
    let more = if all.len() > FEW { format!("{between}and {} more", all.len() - FEW) } else { String::new() };
    all[..all.len().min(FEW)].join(between) + &more
}

fn field(source: &Source, seen: Option<&Seen>, known: Sources<'_>, clocks_agree: bool) -> Field {
    let field = |status, why| Field { name: source.field, status, from: known.from(source), why };
    match seen {
        Some(seen) if !seen.wrong.is_empty() => {
            let mut words = vec![some(&seen.wrong, "; ")];
            words.extend(known.why_unattached(source.hooks));
            field(Delivery::Wrong, Some(words.join("; ")))
        }
        Some(seen) if !seen.null.is_empty() => {
            let all = seen.null.len() + seen.right.len();
            let places = format!("null in {} of {all}: {}", seen.null.len(), some(&seen.null, ", "));
            field(Delivery::Null, Some(format!("{}; {places}", known.why_silent(source, clocks_agree))))
        }
        Some(_) => field(Delivery::Delivered, None),
        None => {
            let why = source.untried.unwrap_or("no made end that shows it has a record");
            field(Delivery::NotTried, Some(why.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::doctor::{lab::Lab, must::Half};

    const NEEDED: &str = "sock_recv_length";

    fn watched(made: Vec<Made>, records: Vec<Value>) -> Watched {
        let lab = Lab { netns: 1, shared: None, numbers: None, comm: String::new(), process: String::new(), identity: None };
        // Monotonic zero is 1970.
        Watched { lab, made, records, undecodable: 0, lost: 0, took: Duration::ZERO, wall_ns: 0, started_ns: 0 }
    }

    /// Made between the first and the second second.
    fn made(name: &'static str, halves: io::Result<Vec<Half>>) -> Made {
        Made { name, what: "", halves: halves.map_err(|error| error.to_string()), before_ns: 1_000_000_000, after_ns: 2_000_000_000 }
    }

    fn half(port: u16) -> Half {
        Half::new("server", ([127, 0, 0, 1], port).into(), ([127, 0, 0, 1], 9).into()).is("observer.fd", 7)
    }

    fn record(port: u16, fd: Value, time: &str) -> Value {
        json!({
            "schema": 1, "record": "teardown", "family": "ipv4", "time": time, "bytes": {},
            "local": { "addr": "127.0.0.1", "port": port }, "remote": { "addr": "127.0.0.1", "port": 9 },
            "observer": { "fd": fd },
        })
    }

    const IN_TIME: &str = "1970-01-01T00:00:01.500000000Z";

    fn attached(how: Option<&'static str>) -> Vec<Hook> {
        vec![Hook { name: NEEDED, how, extra: false, why: how.is_none().then(|| "refused".to_owned()) }]
    }

    fn field_of<'a>(fields: &'a [Field], name: &str) -> &'a Field {
        fields.iter().find(|field| field.name == name).unwrap()
    }

    #[test]
    fn a_field_that_one_of_two_ends_lacks_is_null_and_says_which_and_why() {
        let ends = vec![made("one", Ok(vec![half(1)])), made("two", Ok(vec![half(2)]))];
        let watched = watched(ends, vec![record(1, json!(7), IN_TIME), record(2, Value::Null, IN_TIME)]);
        let hooks = attached(None);
        let (fields, ends) = judge(&watched, Sources { hooks: &hooks, missing: &[] });
        let fd = field_of(&fields, "observer.fd");
        assert_eq!((fd.status, fd.from.as_deref()), (Delivery::Null, None));
        assert_eq!(fd.why.as_deref(), Some("sock_recv_length: refused; null in 1 of 2: two (server)"));
        assert_eq!(ends.iter().map(|end| end.outcome).collect::<Vec<_>>(), [Outcome::Right, Outcome::Partial]);
        assert_eq!(field_of(&fields, "time").status, Delivery::Delivered);
        assert_eq!(field_of(&fields, "rtt_us").status, Delivery::NotTried);
    }

    #[test]
    fn a_contradiction_is_wrong_however_often_it_is_right_elsewhere() {
        let ends = vec![made("one", Ok(vec![half(1), half(2)]))];
        let watched = watched(ends, vec![record(1, json!(7), IN_TIME), record(2, json!(8), IN_TIME)]);
        let hooks = attached(Some("tp_btf"));
        let (fields, _) = judge(&watched, Sources { hooks: &hooks, missing: &[] });
        let fd = field_of(&fields, "observer.fd");
        assert_eq!(fd.status, Delivery::Wrong);
        assert_eq!(fd.from.as_deref(), Some("sock_recv_length (tp_btf)"));
        assert_eq!(fd.why.as_deref(), Some("one (server): 8 instead of 7"));
    }

    #[test]
    fn a_time_outside_of_our_readings_is_wrong_by_how_much() {
        for (time, words) in
            [("1970-01-01T00:00:00.500000000Z", "500 ms behind our clock"), ("1970-01-01T00:00:05.000000000Z", "3.00 s ahead of our clock")]
        {
            let watched = watched(vec![made("one", Ok(vec![half(1)]))], vec![record(1, json!(7), time)]);
            let (fields, _) = judge(&watched, Sources { hooks: &[], missing: &[] });
            assert_eq!(field_of(&fields, "time").why.as_deref(), Some(format!("one (server): {words}").as_str()));
        }
    }

    #[test]
    fn an_end_without_a_record_and_one_that_was_not_made_claim_nothing_of_fields() {
        let stray = Half { stray: true, ..half(3) };
        let ends = vec![
            made("silent", Ok(vec![half(1)])),
            made("stray", Ok(vec![stray])),
            made("impossible", Err(io::ErrorKind::AddrNotAvailable.into())),
        ];
        let refused = Hook { name: "tcp_v4_send_reset", how: None, extra: false, why: Some("no trampolines".to_owned()) };
        let known = Sources { hooks: &[refused], missing: &[preflight::RESET_REASON] };
        let (fields, ends) = judge(&watched(ends, Vec::new()), known);
        assert!(fields.iter().all(|field| field.status == Delivery::NotTried));
        assert_eq!(ends.iter().map(|end| end.outcome).collect::<Vec<_>>(), [Outcome::NoRecord, Outcome::NoRecord, Outcome::NotMade]);
        assert!(ends[1].why.as_deref().is_some_and(|why| why.contains("no trampolines")), "{ends:?}");
    }
}
