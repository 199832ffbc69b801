//! What a run, or a file of records, amounts to: one row per cause, process and remote address, the worst first.
//! Counted by rollup.rs; memory is bounded by the number of its groups.

use std::{
    borrow::Cow,
    io::{self, Write},
    net::IpAddr,
};

use anstyle::Style;
use foldhash::HashMap;
use jiff::Timestamp;

use super::{
    WallClock,
    escape::cut,
    text::{DIM, PLAIN, RED, TextFormat, YELLOW, elided},
};
use crate::{
    explain,
    model::{Cause, Comm, Endpoint, Harm, Judged},
    rollup::{Group, Groups, Histogram},
    units::{grouped, size},
};

/// More rows are told as a sum.
const MAX_ROWS: usize = 20;
/// Causes whose explanation is offered below the table.
const MAX_EXPLAINED: usize = 3;
/// Bytes of an example's sentence.
const MAX_WORDS: usize = 1_000;
/// Below a row's numbers, what else is known of it.
const INDENT: usize = 4;

/// What the ends of one row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row {
    pub cause: Cause,
    /// Holder, observer or closer.
    pub process: Option<Comm>,
    pub remote: IpAddr,
}

impl Row {
    pub fn of(judged: &Judged) -> Self {
        let t = &judged.teardown;
        Self { cause: judged.verdict.cause, process: t.process(), remote: t.remote.addr }
    }
}

/// One of a row's ends: the first of those that hurt most.
#[derive(Clone, Debug)]
struct Example {
    harm: Harm,
    at_ns: u64,
    local: Endpoint,
    remote: Endpoint,
    words: String,
}

impl Example {
    fn of(judged: &Judged) -> Self {
        let Judged { teardown: t, verdict, .. } = judged;
        Self { harm: verdict.harm, at_ns: t.at_ns, local: t.local, remote: t.remote, words: cut(&verdict.words, MAX_WORDS).into_owned() }
    }
}

/// The sums of all records so far.
#[derive(Clone, Debug, Default)]
pub struct Table {
    all: Group,
    rows: Groups<Row>,
    examples: HashMap<Row, Example>,
}

/// Columns of numbers.
const HEADS: [&str; 7] = ["ends", "LOST", "maybe", "ok", "?", "lost", "unconf."];
type Cells = [String; HEADS.len()];

/// Words in front of a row's numbers: the cause, and where there is room process and remote address.
type Names = Vec<String>;

impl Table {
    /// Counts one record that is shown.
    pub fn add(&mut self, judged: &Judged) {
        let row = Row::of(judged);
        self.all.add(judged);
        self.rows.add(row, judged);
        if self.rows.get(&row).is_none() {
            return;
        }
        let example = self.examples.entry(row).or_insert_with(|| Example::of(judged));
        if judged.verdict.harm < example.harm {
            *example = Example::of(judged);
        }
    }

    /// All records, in one group.
    pub fn all(&self) -> &Group {
        &self.all
    }

    /// Writes it as `text` looks, for a terminal of so many columns, or for none. `span`: the time that it is about.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(
        &self,
        out: &mut impl Write,
        text: &mut TextFormat,
        span: Option<(Timestamp, Timestamp)>,
        clock: &WallClock,
        columns: Option<usize>,
    ) -> io::Result<()> {
        if let Some((from, to)) = span {
            writeln!(out, "{}", text.span(from, to))?;
        }
        let sorted = self.rows.sorted(Group::weight);
        let (shown, rest) = sorted.split_at(sorted.len().min(MAX_ROWS));
        let mut more = self.rows.others.clone();
        rest.iter().for_each(|(_, group)| more.merge(group));
        let more = (more.ends > 0).then(|| {
            let at_least = if self.rows.others.ends > 0 { "at least " } else { "" };
            (format!("and {at_least}{} more rows", grouped(rest.len() as u64)), more)
        });

        let numbers: Vec<Cells> =
            shown.iter().map(|(_, group)| *group).chain(more.iter().map(|(_, group)| group)).chain([&self.all]).map(cells).collect();
        let widths: [usize; HEADS.len()] =
            std::array::from_fn(|at| numbers.iter().map(|cells| cells[at].len()).chain([HEADS[at].len()]).max().unwrap_or(0));
        let elide = columns.is_some();
        let names: Vec<Names> = shown.iter().map(|(row, _)| names(row, text, elide)).collect();
        let heads = ["cause", "process", "remote"];
        let width_of = |at: usize| names.iter().map(|names: &Names| text.width(&names[at])).chain([heads[at].len()]).max().unwrap_or(0);
        let all_widths = [0, 1, 2].map(width_of);
        let of_numbers = widths.iter().map(|width| width + 2).sum::<usize>();
        let is_wide = columns.is_none_or(|columns| all_widths.iter().sum::<usize>() + 4 + of_numbers <= columns);
        let mut name_widths = if is_wide { all_widths.to_vec() } else { all_widths[..1].to_vec() };
        // What stands alone in front of its numbers must not be cut either.
        if let (false, Some((words, _))) = (is_wide, &more) {
            name_widths[0] = name_widths[0].max(words.len());
        }
        let page = Page { widths, name_widths };

        let heads: Names = heads.map(str::to_owned).into();
        page.line(out, text, &heads, &HEADS.map(str::to_owned), [DIM; HEADS.len()])?;
        for (((row, group), names), cells) in shown.iter().zip(&names).zip(&numbers) {
            page.line(out, text, names, cells, styles(group))?;
            let mut words: Vec<Cow<'_, str>> = Vec::new();
            if !is_wide {
                words.push(format!("{} with {}", names[1], names[2]).into());
            }
            words.extend(distribution("idle", &group.idle, text));
            words.extend(distribution("delay", &group.delay, text));
            if !words.is_empty() {
                writeln!(out, "{}", text.fold(&" ".repeat(INDENT - 1), &words, true, INDENT, columns))?;
            }
            if let Some(example) = self.examples.get(row) {
                let time = text.time(clock.at(example.at_ns));
                let pair = [example.local, example.remote].map(|end| elided(end.to_string(), elide));
                let head = format!("{:INDENT$}{} {} - {}", "", time.trim_start(), pair[0], pair[1]);
                let words = [text.shown(&example.words)];
                writeln!(out, "{}", text.fold(&head, &words, true, INDENT, columns))?;
            }
        }
        let tail = numbers.get(shown.len()..).unwrap_or_default();
        let sums = more.iter().map(|(words, group)| (words.as_str(), group)).chain([("all", &self.all)]);
        for ((words, group), cells) in sums.zip(tail) {
            page.line(out, text, &vec![words.to_owned()], cells, styles(group))?;
        }
        write_explained(out, &sorted)
    }
}

/// How wide the columns are.
struct Page {
    widths: [usize; HEADS.len()],
    /// One, or three where all names fit.
    name_widths: Vec<usize>,
}

impl Page {
    fn line(&self, out: &mut impl Write, text: &TextFormat, names: &Names, cells: &Cells, styles: [Style; HEADS.len()]) -> io::Result<()> {
        match names.as_slice() {
            // It may be longer than its column, and nothing stands in the next.
            [words] => {
                let width = self.name_widths.iter().map(|width| width + 2).sum::<usize>() - 2;
                write!(out, "{}", text.pad(words, width))?;
            }
            names => {
                for (at, (name, width)) in names.iter().zip(&self.name_widths).enumerate() {
                    write!(out, "{}{}", if at > 0 { "  " } else { "" }, text.pad(name, *width))?;
                }
            }
        }
        for ((cell, width), style) in cells.iter().zip(self.widths).zip(styles) {
            if text.appearance().color && style != PLAIN {
                write!(out, "  {style}{cell:>width$}{style:#}")?;
            } else {
                write!(out, "  {cell:>width$}")?;
            }
        }
        writeln!(out)
    }
}

fn names(row: &Row, text: &TextFormat, elide: bool) -> Names {
    let process = row.process.map_or_else(|| "-".to_owned(), |comm| text.shown(&comm.text()).into_owned());
    vec![row.cause.name().to_owned(), process, elided(row.remote.to_string(), elide)]
}

/// Nothing is a dash, so that what is there stands out.
fn cells(group: &Group) -> Cells {
    let count = |n: u64| if n == 0 { "-".to_owned() } else { grouped(n).to_string() };
    let bytes = |n: u64| if n == 0 { "-".to_owned() } else { size(n).to_string() };
    let [lost, possible, none, unknown] = [Harm::Lost, Harm::Possible, Harm::None, Harm::Unknown].map(|harm| count(group.of(harm)));
    [grouped(group.ends).to_string(), lost, possible, none, unknown, bytes(group.lost_bytes), bytes(group.unconfirmed_bytes)]
}

fn styles(group: &Group) -> [Style; HEADS.len()] {
    let if_any = |n: u64, style: Style| if n > 0 { style } else { DIM };
    let (lost, possible) = (group.of(Harm::Lost), group.of(Harm::Possible));
    let (lost_bytes, unconfirmed) = (group.lost_bytes, group.unconfirmed_bytes);
    [PLAIN, if_any(lost, RED), if_any(possible, YELLOW), DIM, PLAIN, if_any(lost_bytes, RED), if_any(unconfirmed, YELLOW)]
}

/// `idle [______.#:__] mostly 15 s to 60 s`; nothing where nothing was measured.
fn distribution(name: &str, histogram: &Histogram, text: &TextFormat) -> Option<Cow<'static, str>> {
    let style = text.appearance();
    let mostly = mostly(histogram)?;
    Some(format!("{name} [{}] {mostly}", bars(histogram, style.unicode && !style.cjk)).into())
}

/// One character per bucket, as high as its part of the fullest; no bucket that holds anything looks empty.
pub fn bars(histogram: &Histogram, unicode: bool) -> String {
    let (none, levels): (char, &[char]) =
        if unicode { ('·', &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']) } else { ('_', &['.', ':', '|', '#']) };
    let most = histogram.buckets().map(|(_, count)| count).max().unwrap_or(0);
    let bar = |count: u64| match count {
        0 => none,
        // In u128: a product of counts may not fit.
        count => levels[((u128::from(count) * levels.len() as u128).div_ceil(u128::from(most)) as usize).saturating_sub(1)],
    };
    histogram.buckets().map(|(_, count)| bar(count)).collect()
}

/// `mostly 15 s to 60 s`: the fullest bucket in words; `None` where all are empty.
pub fn mostly(histogram: &Histogram) -> Option<String> {
    let buckets: Vec<_> = histogram.buckets().collect();
    let most = buckets.iter().map(|(_, count)| *count).max().filter(|most| *most > 0)?;
    let at = buckets.iter().position(|(_, count)| *count == most)?;
    let from = at.checked_sub(1).and_then(|before| buckets[before].0).map(bound);
    let how = if most == histogram.count() { "all" } else { "mostly" };
    Some(match (from, buckets[at].0.map(bound)) {
        (None, Some(to)) => format!("{how} up to {to}"),
        (Some(from), Some(to)) => format!("{how} {from} to {to}"),
        (Some(from), None) => format!("{how} over {from}"),
        (None, None) => return None,
    })
}

/// A bound of a histogram, which is a round number.
pub fn bound(ns: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(3_600_000_000_000, "h"), (1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    let unit = UNITS.iter().find(|(scale, _)| ns >= *scale && ns.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{ns} ns"), |(scale, unit)| format!("{} {unit}", ns / scale))
}

/// What to go on with: the causes on top of the table.
fn write_explained(out: &mut impl Write, sorted: &[(&Row, &Group)]) -> io::Result<()> {
    let mut causes: Vec<Cause> = Vec::new();
    for (row, _) in sorted {
        if causes.len() < MAX_EXPLAINED && !causes.contains(&row.cause) && !matches!(row.cause, Cause::Orderly | Cause::OrderlyUnread) {
            causes.push(row.cause);
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    for cause in causes {
        writeln!(out, "rsttrace explain {cause}\n{:INDENT$}{}", "", explain::summary(cause))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::{
        input::json::{Saved, read},
        output::text::{Appearance, TimeFormat},
    };

    fn record() -> Judged {
        match read(include_bytes!("../../tests/corpus/record.json")) {
            Ok(Saved::Teardown(judged)) => *judged,
            other => panic!("{other:?}"),
        }
    }

    fn text(unicode: bool) -> TextFormat {
        let time = TimeFormat::Zoned(TimeZone::UTC);
        TextFormat::new(Appearance { time, color: false, unicode, cjk: false, timeline: false, silence: false })
    }

    fn written(table: &Table, unicode: bool, columns: Option<usize>) -> String {
        let mut out = Vec::new();
        table.write(&mut out, &mut text(unicode), None, &WallClock::new(0, 0), columns).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn some() -> Table {
        let mut table = Table::default();
        let mut judged = record();
        for _ in 0..1_234 {
            table.add(&judged);
        }
        judged.verdict.harm = Harm::Lost;
        judged.verdict.cause = Cause::KeepaliveRace;
        judged.verdict.damage.undelivered = 3_866_624;
        judged.verdict.words = "the request hit a connection that the server had closed\u{1b}[2J after its keep-alive time".into();
        judged.teardown.remote.addr = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff".parse().unwrap();
        judged.teardown.idle = Some(crate::model::Idle { sent_ms: Some(65_000), received_ms: None });
        judged.teardown.owner = None;
        judged.teardown.observer = None;
        table.add(&judged);
        judged.teardown.idle = Some(crate::model::Idle { sent_ms: Some(61_000), received_ms: None });
        table.add(&judged);
        judged.teardown.idle = Some(crate::model::Idle { sent_ms: Some(3), received_ms: None });
        table.add(&judged);
        table
    }

    #[test]
    fn at_80_columns() {
        insta::assert_snapshot!(written(&some(), false, Some(80)));
    }

    #[test]
    fn at_160_columns() {
        insta::assert_snapshot!(written(&some(), true, Some(160)));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in [80, 100, 120, 160] {
            for line in written(&some(), false, Some(columns)).lines() {
                assert!(line.len() <= columns, "{columns}: {line}");
            }
        }
    }

    #[test]
    fn rows_are_bounded_and_add_up() {
        let mut table = Table::default();
        let mut judged = record();
        for n in 0..10_000_u32 {
            judged.teardown.remote.addr = std::net::Ipv4Addr::from(0x0a00_0000 + n).into();
            judged.verdict.damage.undelivered = 1;
            table.add(&judged);
        }
        let text = written(&table, false, Some(80));
        assert!(text.lines().count() <= 2 + 20 * 6 + 8, "{text}");
        let more = text.lines().find(|line| line.starts_with("and at least 4,076 more rows")).unwrap();
        assert!(more.contains("9,980") && more.contains("9.98 kB"), "{more}");
        let all = text.lines().find(|line| line.starts_with("all")).unwrap();
        assert!(all.contains("10,000") && all.contains("10.0 kB"), "{all}");
        assert_eq!(table.all().ends, 10_000);
        assert!(table.examples.len() <= crate::rollup::MAX_GROUPS);
    }

    #[test]
    fn nothing_is_a_table_too() {
        assert!(written(&Table::default(), false, Some(80)).lines().last().unwrap().starts_with("all "));
    }

    #[test]
    fn its_time_stands_above() {
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let head = |from, to| {
            let mut out = Vec::new();
            let span = Some((at(from), at(to)));
            Table::default().write(&mut out, &mut text(true), span, &WallClock::new(0, 0), Some(80)).unwrap();
            String::from_utf8(out).unwrap().lines().next().unwrap().to_owned()
        };
        assert_eq!(head("2026-11-26T21:43:22.1Z", "2026-11-26T21:43:40.3Z"), "2026-11-26 21:43:22 to 21:43:40, 18.2 s");
        assert_eq!(head("2026-11-26T23:00:00Z", "2026-11-27T01:00:00Z"), "2026-11-26 23:00:00 to 2026-11-27 01:00:00, 7200 s");
    }

    #[test]
    fn bars_show_what_is_there() {
        let mut histogram = Histogram::new(&[10, 100, 1_000_000]);
        assert_eq!((bars(&histogram, true).as_str(), mostly(&histogram)), ("····", None));
        (0..100).for_each(|_| histogram.add(50));
        assert_eq!(mostly(&histogram).unwrap(), "all 10 ns to 100 ns");
        histogram.add(u64::MAX);
        (0..50).for_each(|_| histogram.add(1_000));
        assert_eq!(bars(&histogram, true), "·█▄▁");
        assert_eq!(bars(&histogram, false), "_#:.");
        assert_eq!(mostly(&histogram).unwrap(), "mostly 10 ns to 100 ns");
        assert_eq!([60_000_000_000, 3_600_000_000_000, 1_500].map(bound), ["60 s", "1 h", "1500 ns"]);
    }

    #[test]
    fn hostile_names_stay_text() {
        let mut table = Table::default();
        let mut judged = record();
        judged.teardown.owner.as_mut().unwrap().comm = Comm::from("\x1b[2J日本\n");
        table.add(&judged);
        for unicode in [true, false] {
            let text = written(&table, unicode, Some(80));
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
            assert!(unicode || text.is_ascii(), "{text}");
        }
    }
}
