//! What each kernel delivers, as its doctor said: kept in docs/kernel-support.jsonl, shown in
//! docs/kernel-support.md, and compared with every run.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::kernels;
use crate::host;

/// A program whose verification has grown by more than this is looked at.
const GROWTH_PERCENT: u64 = 10;
const BEGIN: &str = "<!-- From here on written by `cargo xtask vm --all --record`. -->\n";

/// One kernel, by the name that `cargo xtask vm` has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    pub kernel: String,
    release: String,
    /// Attached how, or `-`.
    hooks: BTreeMap<String, String>,
    /// `delivered`, `null`, `wrong` or `not-tried`.
    fields: BTreeMap<String, String>,
    /// Why a field is not delivered.
    reasons: BTreeMap<String, String>,
    /// Verified instructions; before 5.16, which does not tell, the program's bytes after verification.
    programs: BTreeMap<String, u64>,
}

impl Support {
    /// `doctor`: what `rsttrace doctor --json` printed.
    pub fn of_doctor(kernel: &str, doctor: &Value) -> Self {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let each = |key: &str, of: &str| {
            let entries = doctor[key].as_object().into_iter().flatten();
            entries.map(|(name, value)| (name.clone(), word(&value[of]))).collect::<BTreeMap<_, _>>()
        };
        let size = |program: &Value| program["verified_instructions"].as_u64().or_else(|| program["bytes"].as_u64());
        let programs = doctor["programs"].as_array().into_iter().flatten();
        let fields = each("fields", "status");
        let mut reasons = each("fields", "why");
        reasons.retain(|name, _| fields.get(name).is_some_and(|status| status != "delivered"));
        Self {
            kernel: kernel.to_owned(),
            release: word(&doctor["kernel"]),
            hooks: each("hooks", "how"),
            fields,
            reasons,
            programs: programs.filter_map(|program| Some((word(&program["name"]), size(program)?))).collect(),
        }
    }

    fn to_json(&self) -> Value {
        json!({ "kernel": self.kernel, "release": self.release, "hooks": self.hooks, "fields": self.fields, "reasons": self.reasons, "programs": self.programs })
    }

    fn of_json(value: &Value) -> Option<Self> {
        let map = |key: &str| -> Option<BTreeMap<String, String>> {
            value[key].as_object()?.iter().map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
        };
        Some(Self {
            kernel: value["kernel"].as_str()?.to_owned(),
            release: value["release"].as_str()?.to_owned(),
            hooks: map("hooks")?,
            fields: map("fields")?,
            reasons: map("reasons")?,
            programs: value["programs"].as_object()?.iter().map(|(name, n)| Some((name.clone(), n.as_u64()?))).collect::<Option<_>>()?,
        })
    }

    /// How this run differs from what is on file.
    pub fn drift(&self, recorded: &[Self]) -> Vec<String> {
        let Some(before) = recorded.iter().find(|support| support.kernel == self.kernel) else { return Vec::new() };
        let mut drift = Vec::new();
        for (what, now, then) in [("hook", &self.hooks, &before.hooks), ("field", &self.fields, &before.fields)] {
            for name in now.keys().chain(then.keys()).collect::<std::collections::BTreeSet<_>>() {
                let word = |map: &BTreeMap<String, String>| map.get(name).cloned().unwrap_or_else(|| "unknown".to_owned());
                if now.get(name) != then.get(name) {
                    drift.push(format!("{what} {name} was {}, and is {}", word(then), word(now)));
                }
            }
        }
        for (name, now) in &self.programs {
            let then = before.programs.get(name).copied().unwrap_or(0);
            if then == 0 || now * 100 > then * (100 + GROWTH_PERCENT) {
                drift.push(format!("program {name} has {GROWN} {then} to {now} verified instructions"));
            }
        }
        drift
    }
}

const GROWN: &str = "grown from";

/// Another compiler may have done it: no reason to refuse a change of something else.
pub fn is_growth(drift: &str) -> bool {
    drift.contains(GROWN)
}

fn file(name: &str) -> PathBuf {
    host::root().join("docs").join(name)
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(file(name)).with_context(|| format!("cannot read {}", file(name).display()))
}

/// What is on file.
pub fn recorded() -> Result<Vec<Support>> {
    let text = read("kernel-support.jsonl")?;
    let parse = |line: &str| Support::of_json(&serde_json::from_str(line).ok()?);
    text.lines()
        .map(|line| parse(line).with_context(|| format!("docs/kernel-support.jsonl: not what was written there: {line:.80}")))
        .collect()
}

/// Puts these kernels on file in place of what was there of them.
pub fn record(found: Vec<Support>) -> Result<()> {
    let mut all = recorded().unwrap_or_default();
    all.retain(|old| !found.iter().any(|new| new.kernel == old.kernel));
    all.extend(found);
    all.sort_by_key(|support| kernels::NAMES.iter().position(|name| *name == support.kernel));
    let lines: String = all.iter().map(|support| format!("{}\n", support.to_json())).collect();
    let page = read("kernel-support.md")?;
    let head = page.split_once(BEGIN).map_or(page.as_str(), |(head, _)| head);
    for (name, text) in [("kernel-support.jsonl", lines), ("kernel-support.md", format!("{head}{BEGIN}{}", render(&all)))] {
        fs::write(file(name), text).with_context(|| format!("cannot write {}", file(name).display()))?;
    }
    Ok(())
}

/// The tables.
fn render(all: &[Support]) -> String {
    let mut text = String::from("\n| | ");
    text += &all.iter().map(|support| support.release.clone()).collect::<Vec<_>>().join(" | ");
    text += " |\n|---|";
    text += &"---|".repeat(all.len());
    text.push('\n');
    table(&mut text, all, "**hook**", |support| &support.hooks);
    table(&mut text, all, "**field**", |support| &support.fields);
    let _ = writeln!(text, "| **program** |{}", " |".repeat(all.len()));
    for name in names(all.iter().flat_map(|support| support.programs.keys())) {
        let cells = all.iter().map(|support| support.programs.get(name).map_or_else(String::new, u64::to_string));
        let _ = writeln!(text, "| `{name}` | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    let reasons = all.iter().flat_map(|support| support.reasons.iter().map(move |(field, why)| (field, why, support)));
    let mut by_reason: BTreeMap<(&String, &String), Vec<&str>> = BTreeMap::new();
    reasons.for_each(|(field, why, support)| by_reason.entry((field, why)).or_default().push(&support.kernel));
    text += "\nFields that are not delivered, or not tried:\n\n";
    for ((field, why), kernels) in by_reason {
        let _ = writeln!(text, "* `{field}` ({}): {why}", kernels.join(", "));
    }
    text
}

fn table(text: &mut String, all: &[Support], title: &str, of: impl Fn(&Support) -> &BTreeMap<String, String>) {
    let _ = writeln!(text, "| {title} |{}", " |".repeat(all.len()));
    for name in names(all.iter().flat_map(|support| of(support).keys())) {
        let cells = all.iter().map(|support| of(support).get(name).map_or("", String::as_str));
        let _ = writeln!(text, "| `{name}` | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> std::collections::BTreeSet<&'a String> {
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn support(how: &str, verified: u64) -> Support {
        let doctor = json!({
            "kernel": "6.1.0", "hooks": {"tcp_probe": {"how": how, "why": null}}, "fields": {"reason": {"status": "null", "why": "old"}},
            "programs": [{"name": "tcp_probe", "verified_instructions": verified, "bytes": 8}],
        });
        Support::of_doctor("6.1", &doctor)
    }

    #[test]
    fn the_page_says_what_is_on_file() {
        let (page, all) = (read("kernel-support.md").expect("the page"), recorded().expect("the file"));
        assert_eq!(page.split_once(BEGIN).expect("a generated part").1, render(&all), "cargo xtask vm --all --record writes it anew");
        assert_eq!(all.iter().map(|support| support.kernel.as_str()).collect::<Vec<_>>(), kernels::NAMES);
    }

    #[test]
    fn what_is_written_reads_back() {
        let written = support("tp_btf", 400);
        assert_eq!(Support::of_json(&written.to_json()), Some(written));
    }

    #[test]
    fn growth_and_another_way_are_noticed_and_less_is_not() {
        let before = [support("tp_btf", 400)];
        assert_eq!(support("tp_btf", 440).drift(&before), Vec::<String>::new());
        assert_eq!(support("tp_btf", 4).drift(&before), Vec::<String>::new());
        assert_eq!(support("tp_btf", 441).drift(&before)[0], "program tcp_probe has grown from 400 to 441 verified instructions");
        assert_eq!(support("kprobe", 400).drift(&before)[0], "hook tcp_probe was tp_btf, and is kprobe");
    }
}
