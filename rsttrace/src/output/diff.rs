//! The comparison of two files, as text and as JSON.

use std::io::{self, Write};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Rfc3339, json as lines,
    text::{DIM, PLAIN, RED, TextFormat, YELLOW, elided},
};
use crate::{
    diff::{Change, Comparison, Kind, Section, Side, times},
    model::Harm,
    units::{duration, given, grouped, size},
};

/// Rows of one section; more are told by number.
const MAX_ROWS: usize = 20;
/// Rows of one section in JSON.
const MAX_ROWS_JSON: usize = 1_000;

/// Writes it for people.
///
/// # Errors
/// What writing returns.
pub fn write(out: &mut impl Write, comparison: &Comparison, text: &TextFormat, columns: Option<usize>) -> io::Result<()> {
    let Comparison { before, after, sections, statement, notes } = comparison;
    writeln!(out, "{}", text.fold("", &[text.shown(statement)], true, 2, columns).trim_start())?;
    for (when, side) in [("before:", before), ("after: ", after)] {
        let words = side_words(side);
        let words: Vec<_> = words.iter().map(|part| text.shown(part)).collect();
        writeln!(out, "{}", text.fold(when, &words, true, 8, columns))?;
    }
    for note in notes {
        writeln!(out, "{}", text.fold("note:", &[text.shown(note)], true, 6, columns))?;
    }
    for section in sections {
        write_section(out, section, comparison, text, columns.is_some())?;
    }
    Ok(())
}

fn side_words(side: &Side) -> Vec<String> {
    let account = &side.account;
    let when = |ns: u64| Timestamp::from_nanosecond(ns.into()).unwrap_or_default().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let span = account.span_ns.map(|(from, _)| format!("from {}, {}", when(from), duration(account.traced_ns)));
    let lost = (side.all.lost_bytes > 0).then(|| format!("{} lost data ({})", grouped(side.all.of(Harm::Lost)), size(side.all.lost_bytes)));
    let records = format!("{} ends{}", grouped(side.all.ends), given(", ", lost, ""));
    let host = account.start.as_ref().map(|start| format!("{}, Linux {}, rsttrace {}", start.host, start.kernel, start.version));
    [records].into_iter().chain(span).chain(host).collect()
}

fn write_section(out: &mut impl Write, section: &Section, comparison: &Comparison, text: &TextFormat, elide: bool) -> io::Result<()> {
    let rows = &section.changes[..section.changes.len().min(MAX_ROWS)];
    let Comparison { before, after, .. } = comparison;
    let cells: Vec<[String; 6]> = rows
        .iter()
        .map(|change| {
            let Change { key, before: a, after: b, kind, .. } = change;
            let word = match kind {
                Kind::More | Kind::Less => times(change),
                Kind::New | Kind::Gone => kind.name().to_owned(),
                Kind::NoClearChange if a + b == 0 => String::new(),
                Kind::TooFew if a + b == 0 => String::new(),
                Kind::NoClearChange => "no clear change".to_owned(),
                Kind::TooFew => "too few to tell".to_owned(),
                Kind::NoRate => "no rate".to_owned(),
            };
            let key = elided(text.shown(key).into_owned(), elide && section.name == "remote");
            [key, count(*a), rate(before.per_hour(*a)), count(*b), rate(after.per_hour(*b)), word]
        })
        .collect();
    let heads = [section.name, "before", "per hour", "after", "per hour", "change"].map(str::to_owned);
    let widths: [usize; 6] = std::array::from_fn(|at| cells.iter().chain([&heads]).map(|cells| text.width(&cells[at])).max().unwrap_or(0));
    writeln!(out)?;
    for (row, change) in std::iter::once((&heads, None)).chain(cells.iter().zip(rows.iter().map(Some))) {
        let style = match change.map(|change| (change.kind, change.key.as_str())) {
            None | Some((Kind::NoClearChange | Kind::TooFew | Kind::NoRate, _)) => DIM,
            Some((Kind::More | Kind::New, "orderly" | "none")) => PLAIN,
            Some((Kind::More | Kind::New, key)) if key == Harm::Lost.name() => RED,
            Some((Kind::More | Kind::New, _)) => YELLOW,
            Some((Kind::Less | Kind::Gone, _)) => PLAIN,
        };
        let [key, numbers @ .., word] = row;
        let mut line = text.pad(key, widths[0]).to_string();
        for (number, width) in numbers.iter().zip(&widths[1..]) {
            line += &format!("  {number:>width$}");
        }
        line += &format!("  {word}");
        let line = line.trim_end();
        if text.appearance().color && style != PLAIN { writeln!(out, "{style}{line}{style:#}")? } else { writeln!(out, "{line}")? }
    }
    let rest = &section.changes[rows.len()..];
    if !rest.is_empty() {
        let sum = |of: fn(&Change) -> u64| grouped(rest.iter().map(of).sum());
        let clear = rest.iter().filter(|change| change.kind.is_clear()).count();
        let (a, b) = (sum(|change| change.before), sum(|change| change.after));
        writeln!(out, "and {} more: {a} before, {b} after, {} clear changes", grouped(rest.len() as u64), grouped(clear as u64))?;
    }
    if section.is_cut {
        writeln!(out, "more than can be told apart: what seems new or gone may be among the others")?;
    }
    Ok(())
}

fn count(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { grouped(n).to_string() }
}

/// Three digits.
fn rate(per_hour: Option<f64>) -> String {
    match per_hour {
        None => "?".to_owned(),
        Some(0.0) => "-".to_owned(),
        Some(rate) if rate < 0.01 => "<0.01".to_owned(),
        Some(rate) if rate < 9.995 => format!("{rate:.2}"),
        Some(rate) if rate < 99.95 => format!("{rate:.1}"),
        Some(rate) => grouped(rate.round() as u64).to_string(),
    }
}

/// Writes it for programs, one object.
///
/// # Errors
/// What writing returns.
pub fn write_json(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    let Comparison { before, after, sections, statement, notes } = comparison;
    let sections: serde_json::Map<String, Value> =
        sections.iter().map(|section| (section.name.to_owned(), section_value(section, before, after))).collect();
    let value = json!({
        "schema": 1,
        "record": "diff",
        "statement": statement,
        "notes": notes,
        "before": side_value(before),
        "after": side_value(after),
        "changes": sections,
    });
    lines::line(out, &value)
}

fn side_value(side: &Side) -> Value {
    let account = &side.account;
    let time = |ns: u64| Timestamp::from_nanosecond(ns.into()).ok().map(|time| Rfc3339(time).to_string());
    let start = account.start.as_ref();
    json!({
        "file": account.name,
        "host": start.map(|start| &start.host),
        "kernel": start.map(|start| &start.kernel),
        "version": start.map(|start| &start.version),
        "filters": start.map(|start| &start.filters),
        "from": account.span_ns.and_then(|(from, _)| time(from)),
        "to": account.span_ns.and_then(|(_, to)| time(to)),
        "traced_ms": account.traced_ns / 1_000_000,
        "teardowns": side.all.ends,
        "lost_bytes": side.all.lost_bytes,
        "unconfirmed_bytes": side.all.unconfirmed_bytes,
        "lost_records": account.totals().lost.records,
        "folded": account.folded,
        "faults": account.faults,
    })
}

fn section_value(section: &Section, before: &Side, after: &Side) -> Value {
    let row = |change: &Change| {
        json!({
            "key": change.key,
            "before": change.before,
            "before_per_hour": before.per_hour(change.before),
            "before_lost_bytes": change.before_lost_bytes,
            "after": change.after,
            "after_per_hour": after.per_hour(change.after),
            "after_lost_bytes": change.after_lost_bytes,
            "change": change.kind.name(),
            "ratio": change.ratio,
            "p": change.p,
        })
    };
    json!({
        "rows": section.changes.iter().take(MAX_ROWS_JSON).map(row).collect::<Vec<_>>(),
        "more_rows": section.changes.len().saturating_sub(MAX_ROWS_JSON),
    })
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::output::text::{Appearance, TimeFormat};

    #[test]
    fn rates_have_three_digits() {
        for (per_hour, words) in [(0.0, "-"), (0.001, "<0.01"), (0.5, "0.50"), (9.996, "10.0"), (99.96, "100"), (12_345.6, "12,346")] {
            assert_eq!(rate(Some(per_hour)), words);
        }
        assert_eq!(rate(None), "?");
    }

    #[test]
    fn empty_files_are_compared_too() {
        let comparison = Comparison::of(Side::default(), Side::default());
        let text = TextFormat::new(Appearance {
            time: TimeFormat::Zoned(TimeZone::UTC),
            color: false,
            unicode: false,
            cjk: false,
            timeline: false,
            silence: false,
        });
        let mut out = Vec::new();
        write(&mut out, &comparison, &text, Some(80)).unwrap();
        write_json(&mut out, &comparison).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("rates cannot be compared"));
    }
}
