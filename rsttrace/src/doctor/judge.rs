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
use crate::units;

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

    /// Why a field may be silent here.
    fn why_silent(&self, source: &Source, clocks_agree: bool) -> String {
        let hooks = source.hooks.iter().filter(|hook| !self.attached(hook)).map(|name| {
            let why = self.hooks.iter().find(|hook| hook.name == *name).and_then(|hook| hook.why.as_deref());
            format!("{name}: {}", why.unwrap_or("not attached"))
        });
        let members = source.members.iter().filter(|member| self.missing.contains(member));
        let mut reasons: Vec<_> = hooks.chain(members.map(|member| format!("no {} in BTF", member.replace("__", ".")))).collect();
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
            silent.push(half.whose);
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
        return end(Outcome::NoRecord, Some(format!("no record of the {}", silent.join(" and the "))));
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
        Some(seen) if !seen.wrong.is_empty() => field(Delivery::Wrong, Some(some(&seen.wrong, "; "))),
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
