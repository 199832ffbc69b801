//! `rsttrace diff`: two files of records compared, such as before and after a deploy. What is compared are rates, because
//! no two runs are equally long; and a difference is called one only where chance does not make it (poisson.rs).

pub mod poisson;

use std::{
    hash::Hash,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use jiff::Timestamp;

use crate::{
    config::Look,
    exit::FAILED,
    input::{Account, Totals, read_all},
    model::{Cause, Comm, Harm, Judged},
    output::{self, text::TextFormat},
    rollup::{Group, Groups},
    stdout,
    units::counted,
};

/// What is to be compared, and how to show it.
#[derive(Clone, Debug)]
pub struct Request {
    /// `-`: standard input.
    pub before: PathBuf,
    pub after: PathBuf,
    pub json: bool,
    pub look: Look,
}

/// Runs it.
///
/// # Errors
/// When a file cannot be opened or read, or stdout not be written.
pub fn run(request: &Request, columns: Option<usize>) -> anyhow::Result<ExitCode> {
    let comparison = Comparison::of(Side::read(&request.before)?, Side::read(&request.after)?);
    let mut out = Vec::new();
    if request.json {
        output::diff::write_json(&mut out, &comparison)?;
    } else {
        let text = TextFormat::new(request.look.on_stdout(Timestamp::UNIX_EPOCH));
        output::diff::write(&mut out, &comparison, &text, columns)?;
    }
    stdout::write_all(&out).context("cannot write to stdout")?;
    let faults = comparison.before.account.faults + comparison.after.account.faults;
    Ok(if faults > 0 { FAILED.into() } else { ExitCode::SUCCESS })
}

/// Of all differences that are no more than chance, so many may be taken for changes in one table.
pub const CHANCE: f64 = 0.01;
/// Shorter runs have no rate.
const MIN_TRACED_NS: u64 = 1_000_000_000;

/// One of the files.
#[derive(Clone, Debug, Default)]
pub struct Side {
    pub account: Account,
    pub all: Group,
    causes: Groups<Cause>,
    on: Groups<(Cause, Option<Comm>)>,
    processes: Groups<Option<Comm>>,
    remotes: Groups<IpAddr>,
}

impl Side {
    /// Reads a file to its end.
    ///
    /// # Errors
    /// When the file cannot be opened or read.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let mut side = Self::default();
        side.account = read_all(&[path], |judged| side.add(&judged))?;
        Ok(side)
    }

    fn add(&mut self, judged: &Judged) {
        let (t, cause) = (&judged.teardown, judged.verdict.cause);
        self.all.add(judged);
        self.causes.add(cause, judged);
        self.on.add((cause, t.process()), judged);
        self.processes.add(t.process(), judged);
        self.remotes.add(t.remote.addr, judged);
    }

    fn has_rates(&self) -> bool {
        self.account.traced_ns >= MIN_TRACED_NS
    }

    /// So many as a rate; `None` where the run was too short to have one.
    pub fn per_hour(&self, ends: u64) -> Option<f64> {
        self.has_rates().then(|| ends as f64 * 3.6e12 / self.account.traced_ns as f64)
    }
}

/// What is to be said of two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only after.
    New,
    /// Only before.
    Gone,
    More,
    Less,
    /// The rates may well be the same.
    NoClearChange,
    /// Whatever the rates are, so few could not show it.
    TooFew,
    /// A run was too short to have a rate.
    NoRate,
}

impl Kind {
    /// The word of the JSON form.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Gone => "gone",
            Self::More => "more",
            Self::Less => "less",
            Self::NoClearChange => "no-clear-change",
            Self::TooFew => "too-few",
            Self::NoRate => "no-rate",
        }
    }

    /// Chance does not explain it.
    pub fn is_clear(self) -> bool {
        matches!(self, Self::New | Self::Gone | Self::More | Self::Less)
    }
}

/// What became of the ends that have something in common.
#[derive(Clone, Debug)]
pub struct Change {
    /// What that is: not yet safe for a terminal.
    pub key: String,
    pub before: u64,
    pub after: u64,
    pub before_lost_bytes: u64,
    pub after_lost_bytes: u64,
    pub kind: Kind,
    /// How probable so large a difference is where the rates are equal; `None` without rates.
    pub p: Option<f64>,
    /// Rate after by rate before; `None` where either is 0 or unknown.
    pub ratio: Option<f64>,
}

/// Changes by one thing, the largest difference of rates first among those that are clear, then the others.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: &'static str,
    pub changes: Vec<Change>,
    /// There were more keys than are told apart, and the last change is of the others: what is new or gone may be among them.
    pub is_cut: bool,
}

/// The whole comparison.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub before: Side,
    pub after: Side,
    pub sections: Vec<Section>,
    /// The outcome in one line.
    pub statement: String,
    /// What to know before believing it.
    pub notes: Vec<String>,
}

impl Comparison {
    pub fn of(before: Side, after: Side) -> Self {
        let harms = |side: &Side| Harm::ALL.iter().map(|&harm| (harm.name().to_owned(), side.all.of(harm))).collect::<Vec<_>>();
        let (harms_before, harms_after) = (harms(&before), harms(&after));
        let of_harm = harms_before.into_iter().zip(harms_after).map(|((key, a), (_, b))| {
            let is_lost = key == Harm::Lost.name();
            let bytes = |side: &Side| if is_lost { side.all.lost_bytes } else { 0 };
            (key, (a, bytes(&before)), (b, bytes(&after)))
        });
        let harm = section("harm", of_harm.collect(), false, &before, &after);
        let process = |process: &Option<Comm>| process.map_or_else(|| "-".to_owned(), |comm| comm.text().into_owned());
        let sections = vec![
            harm,
            by("cause", |side| &side.causes, |cause| cause.name().to_owned(), &before, &after),
            by("process", |side| &side.processes, process, &before, &after),
            by("remote", |side| &side.remotes, IpAddr::to_string, &before, &after),
        ];
        let (statement, notes) = (statement(&sections, &before, &after), notes(&before, &after));
        Self { before, after, sections, statement, notes }
    }
}

fn by<K: Eq + Hash + Ord + Clone>(
    name: &'static str,
    groups: impl Fn(&Side) -> &Groups<K>,
    key: impl Fn(&K) -> String,
    before: &Side,
    after: &Side,
) -> Section {
    let (a, b) = (groups(before), groups(after));
    let counts = |group: Option<&Group>| group.map_or((0, 0), |group| (group.ends, group.lost_bytes));
    let only_after = b.sorted(Group::weight).into_iter().filter(|(key, _)| a.get(key).is_none());
    let keys = a.sorted(Group::weight).into_iter().chain(only_after).map(|(key, _)| key);
    let mut all: Vec<_> = keys.map(|k| (key(k), counts(a.get(k)), counts(b.get(k)))).collect();
    let is_cut = a.others.ends > 0 || b.others.ends > 0;
    if is_cut {
        all.push(("others".to_owned(), counts(Some(&a.others)), counts(Some(&b.others))));
    }
    section(name, all, is_cut, before, after)
}

type Counts = (u64, u64);

fn section(name: &'static str, all: Vec<(String, Counts, Counts)>, is_cut: bool, before: &Side, after: &Side) -> Section {
    let rates = before.has_rates() && after.has_rates();
    let (t_a, t_b) = (before.account.traced_ns as f64, after.account.traced_ns as f64);
    let part = rates.then(|| t_b / (t_a + t_b));
    // Each row is a chance to be deceived.
    let threshold = CHANCE / all.len().max(1) as f64;
    let change = |(key, (a, a_bytes), (b, b_bytes)): (String, Counts, Counts)| {
        let p = part.map(|part| poisson::equal_rates(a, b, part));
        let ratio = (rates && a > 0 && b > 0).then(|| (b as f64 / t_b) / (a as f64 / t_a));
        let kind = match (p, part) {
            (Some(p), Some(part)) if p >= threshold => {
                if poisson::least(a.saturating_add(b), part) >= threshold {
                    Kind::TooFew
                } else {
                    Kind::NoClearChange
                }
            }
            (Some(_), _) => match ratio {
                // Where keys were left out, one that is missing may have been among them.
                None if is_cut => Kind::NoClearChange,
                None if a == 0 => Kind::New,
                None => Kind::Gone,
                Some(ratio) if ratio > 1.0 => Kind::More,
                Some(_) => Kind::Less,
            },
            (None, _) => Kind::NoRate,
        };
        Change { key, before: a, after: b, before_lost_bytes: a_bytes, after_lost_bytes: b_bytes, kind, p, ratio }
    };
    let mut changes: Vec<_> = all.into_iter().map(change).collect();
    let difference = |change: &Change| (change.after as f64 / t_b.max(1.0) - change.before as f64 / t_a.max(1.0)).abs();
    // The order of equals is that of their weight.
    changes.sort_by(|x, y| y.kind.is_clear().cmp(&x.kind.is_clear()).then(difference(y).total_cmp(&difference(x))));
    Section { name, changes, is_cut }
}

/// Causes named in the statement, of each kind.
const MAX_NAMED: usize = 3;

fn statement(sections: &[Section], before: &Side, after: &Side) -> String {
    if !(before.has_rates() && after.has_rates()) {
        return "rates cannot be compared: a file spans less than a second".to_owned();
    }
    let causes = sections.iter().find(|section| section.name == "cause").map_or(&[][..], |section| &section.changes);
    let of = |kind: Kind| causes.iter().filter(move |change| change.kind == kind).collect::<Vec<_>>();
    let mut parts = Vec::new();
    for kind in [Kind::More, Kind::Less] {
        for change in of(kind).into_iter().take(MAX_NAMED) {
            parts.push(format!("{} {}{}", times(change), change.key, place(&change.key, if kind == Kind::More { after } else { before })));
        }
    }
    for (kind, word) in [(Kind::New, "new"), (Kind::Gone, "gone")] {
        let changes = of(kind);
        if changes.is_empty() {
            continue;
        }
        let names: Vec<_> = changes
            .iter()
            .take(MAX_NAMED)
            .map(|change| format!("{}{}", change.key, place(&change.key, if kind == Kind::New { after } else { before })))
            .collect();
        let plural = if changes.len() == 1 { "cause" } else { "causes" };
        let more = if changes.len() > MAX_NAMED { ", ..." } else { "" };
        parts.push(format!("{} {plural} {word} ({}{more})", changes.len(), names.join(", ")));
    }
    if parts.is_empty() {
        let too_few = causes.iter().all(|change| change.kind == Kind::TooFew);
        return if too_few { "too few ends to tell a difference" } else { "no clear change of any cause" }.to_owned();
    }
    format!("after: {}", parts.join("; "))
}

/// `3.2x more`.
pub fn times(change: &Change) -> String {
    let shown = |ratio: f64| if ratio >= 99.5 { format!("{ratio:.0}") } else { format!("{ratio:.1}") };
    match change.ratio {
        Some(ratio) if ratio >= 1.0 => format!("{}x more", shown(ratio)),
        Some(ratio) => format!("{}x less", shown(1.0 / ratio)),
        None => change.kind.name().to_owned(),
    }
}

/// ` on nginx`, where most of a cause's ends are there.
fn place(cause: &str, side: &Side) -> String {
    let Ok(cause) = cause.parse::<Cause>() else { return String::new() };
    let all = side.causes.get(&cause).map_or(0, |group| group.ends);
    let most = side.on.iter().filter(|((of, _), group)| *of == cause && group.ends > all / 2).find_map(|((_, process), _)| *process);
    most.map(|comm| format!(" on {}", comm.text())).unwrap_or_default()
}

fn notes(before: &Side, after: &Side) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(a), Some(b)) = (&before.account.start, &after.account.start) {
        let words = |filters: &[String]| if filters.is_empty() { "none".to_owned() } else { filters.join(" ") };
        if a.filters != b.filters {
            notes.push(format!("the filters differ: {} before, {} after", words(&a.filters), words(&b.filters)));
        }
        for (what, a, b) in
            [("hosts", &a.host, &b.host), ("kernels", &a.kernel, &b.kernel), ("versions of rsttrace", &a.version, &b.version)]
        {
            if a != b {
                notes.push(format!("the {what} differ: {a} before, {b} after"));
            }
        }
    }
    for (when, side) in [("before", before), ("after", after)] {
        let Account { folded, faults, runs, .. } = &side.account;
        let Totals { lost, undecodable, evicted, .. } = side.account.totals();
        for (n, one, what) in [
            (lost.records, "record", "lost by the tracer"),
            (evicted, "socket", "that found no room in the tracer"),
            (undecodable, "event", "that the tracer could not decode"),
            (lost.skipped.values().sum(), "run", "of the tracer's programs that the kernel skipped, and perhaps as many events"),
            (*folded, "end", "folded by --rate-limit"),
            (*faults, "place", "that could not be read"),
        ] {
            if n > 0 {
                notes.push(format!("{when}: not counted here: {} {what}", counted(n, one)));
            }
        }
        if lost.untold_runs > 0 {
            notes.push(format!("{when}: without its last line; what the tracer lost is not known"));
        }
        if *runs == 0 {
            notes.push(format!("{when}: without its first line; it is taken to last from the first record to the last"));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::json::{Saved, read};

    fn side(seconds: u64, ends: &[(Cause, &str, u64)]) -> Side {
        let Ok(Saved::Teardown(judged)) = read(include_bytes!("../../tests/corpus/record.json")) else { panic!() };
        let mut side = Side::default();
        side.account.traced_ns = seconds * 1_000_000_000;
        for (cause, process, n) in ends {
            let mut judged = (*judged).clone();
            judged.verdict.cause = *cause;
            judged.teardown.owner.as_mut().unwrap().comm = Comm::from(*process);
            (0..*n).for_each(|_| side.add(&judged));
        }
        side
    }

    fn causes(comparison: &Comparison) -> Vec<(&str, Kind)> {
        comparison.sections[1].changes.iter().map(|change| (change.key.as_str(), change.kind)).collect()
    }

    #[test]
    fn rates_are_compared_and_not_counts() {
        // Twice as many in twice the time.
        let before = side(3_600, &[(Cause::KeepaliveRace, "nginx", 100)]);
        let comparison = Comparison::of(before.clone(), side(7_200, &[(Cause::KeepaliveRace, "nginx", 200)]));
        assert_eq!(causes(&comparison), [("keepalive-race", Kind::NoClearChange)]);
        assert_eq!(comparison.statement, "no clear change of any cause");
        // As many in a fifth of the time.
        let comparison = Comparison::of(before, side(720, &[(Cause::KeepaliveRace, "nginx", 100)]));
        assert_eq!(comparison.statement, "after: 5.0x more keepalive-race on nginx");
    }

    #[test]
    fn what_is_new_gone_more_and_less_is_said_the_biggest_first() {
        let before = side(
            3_600,
            &[
                (Cause::KeepaliveRace, "nginx", 20),
                (Cause::LingerZero, "app", 60),
                (Cause::TimeWait, "app", 90),
                (Cause::Orderly, "app", 3),
            ],
        );
        let after = side(
            3_600,
            &[(Cause::KeepaliveRace, "nginx", 64), (Cause::Refused, "app", 30), (Cause::TimeWait, "app", 40), (Cause::ClosedPort, "x", 1)],
        );
        let comparison = Comparison::of(before, after);
        assert_eq!(
            causes(&comparison),
            [
                ("linger-zero", Kind::Gone),
                ("time-wait", Kind::Less),
                ("keepalive-race", Kind::More),
                ("refused", Kind::New),
                ("orderly", Kind::TooFew),
                ("closed-port", Kind::TooFew)
            ]
        );
        assert_eq!(
            comparison.statement,
            "after: 3.2x more keepalive-race on nginx; 2.2x less time-wait on app; 1 cause new (refused on app); 1 cause gone (linger-zero on app)"
        );
    }

    #[test]
    fn few_ends_say_nothing_and_short_runs_have_no_rate() {
        let comparison =
            Comparison::of(side(3_600, &[(Cause::TimeWait, "a", 1)]), side(3_600, &[(Cause::TimeWait, "a", 3), (Cause::Refused, "a", 2)]));
        assert_eq!(comparison.statement, "too few ends to tell a difference");
        let comparison = Comparison::of(side(0, &[(Cause::TimeWait, "a", 1)]), side(3_600, &[(Cause::TimeWait, "a", 300)]));
        assert_eq!(causes(&comparison), [("time-wait", Kind::NoRate)]);
        assert_eq!(comparison.statement, "rates cannot be compared: a file spans less than a second");
    }

    #[test]
    fn chance_alone_makes_no_changes() {
        // A thousand addresses, each with counts as chance gives them to equal rates.
        let mut state = 42_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        let mut poisson = |mean: f64| {
            let (mut n, mut product) = (0, next());
            while product > (-mean).exp() {
                n += 1;
                product *= next();
            }
            n
        };
        let all: Vec<_> = (0..1_000).map(|n| (n.to_string(), (poisson(8.0), 0), (poisson(8.0), 0))).collect();
        let section = section("remote", all, false, &side(60, &[]), &side(60, &[]));
        assert_eq!(section.changes.iter().filter(|change| change.kind.is_clear()).count(), 0);
    }
}
