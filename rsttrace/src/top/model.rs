//! What the live screen knows: records counted as every other surface counts them, the newest ones kept, and
//! what the reader has chosen to see. Pure; whoever calls says when things happened.

use std::{borrow::Cow, collections::VecDeque, net::IpAddr, ops::Deref, rc::Rc, sync::Arc};

use foldhash::HashMap;

use crate::{
    input::{Account, json::Saved},
    model::{Comm, Finding, Harm, Judged, Remote},
    output::escape::cut,
    rollup::{Group, Groups},
};

/// Records that are kept to be looked at; all of them are counted.
pub const MAX_ROWS: usize = 10_000;
/// Bytes of one text of such a record.
const MAX_TEXT: usize = 1_000;
/// Parts of the time that a sparkline shows.
pub const BUCKETS: usize = 60;
/// Buckets that say what goes on now.
const RECENT: usize = 10;

/// What a table has a row for each of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    #[default]
    Cause,
    Process,
    Remote,
    Port,
}

impl By {
    pub const ALL: [Self; 4] = [Self::Cause, Self::Process, Self::Remote, Self::Port];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cause => "cause",
            Self::Process => "process",
            Self::Remote => "remote address",
            Self::Port => "service port",
        }
    }

    /// The row that a record belongs to.
    fn of(self, judged: &Judged) -> Of {
        let t = &judged.teardown;
        match self {
            Self::Cause => Of::Cause(judged.verdict.cause),
            Self::Process => Of::Process(t.process()),
            Self::Remote => Of::Remote(t.remote.addr),
            Self::Port => Of::Port(t.service_port()),
        }
    }
}

/// What the ends of one row have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Of {
    Cause(crate::model::Cause),
    Process(Option<Comm>),
    Remote(IpAddr),
    Port(u16),
}

/// Which rows come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Harm,
    Ends,
    Bytes,
    Recent,
}

impl Sort {
    pub const ALL: [Self; 4] = [Self::Harm, Self::Ends, Self::Bytes, Self::Recent];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ends => "most ends first",
            Self::Harm => "most harm first",
            Self::Bytes => "most lost bytes first",
            Self::Recent => "busiest now first",
        }
    }
}

/// Ends by time, the oldest bucket first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series(pub [u32; BUCKETS]);

impl Default for Series {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Series {
    fn mark(&mut self, bucket: Option<usize>) {
        if let Some(bucket) = bucket {
            self.0[bucket] = self.0[bucket].saturating_add(1);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Forward(n) => {
                let n = n.min(BUCKETS);
                self.0.copy_within(n.., 0);
                self.0[BUCKETS - n..].fill(0);
            }
            Step::Halve => {
                for at in 0..BUCKETS / 2 {
                    self.0[at] = self.0[2 * at].saturating_add(self.0[2 * at + 1]);
                }
                self.0[BUCKETS / 2..].fill(0);
            }
        }
    }

    /// Of so many buckets, the last ones.
    fn recent(&self, buckets: usize) -> u64 {
        self.0[buckets.saturating_sub(RECENT)..buckets].iter().map(|n| u64::from(*n)).sum()
    }
}

/// How the buckets move under their series.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many have become too old.
    Forward(usize),
    /// Two become one.
    Halve,
}

/// Which time the buckets stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last [`BUCKETS`] seconds.
    Last,
    /// All that there was: a bucket is as many seconds as it takes.
    Whole,
}

#[derive(Clone, Copy, Debug)]
struct Axis {
    first: u64,
    /// Seconds per bucket.
    width: u64,
    /// The latest bucket that was asked for.
    last: usize,
}

/// A record that is kept.
#[derive(Debug)]
pub struct Row {
    /// From 0, in the order of arrival.
    pub number: u64,
    second: u64,
    pub judged: Judged,
}

#[derive(Clone, Debug, Default)]
struct Table {
    groups: Groups<Of>,
    series: HashMap<Of, Series>,
}

/// A line of a table; `None`: all that found no room in it.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub of: Option<Of>,
    pub group: &'a Group,
    pub series: Option<&'a Series>,
}

/// Records, counted, and the newest of them.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub total: Group,
    pub series: Series,
    tables: [Table; By::ALL.len()],
    /// The newest last.
    pub rows: VecDeque<Rc<Row>>,
}

impl Part {
    /// `bucket`: `None` where the row is older than what the series show.
    fn add(&mut self, row: &Rc<Row>, bucket: Option<usize>) {
        self.total.add(&row.judged);
        self.series.mark(bucket);
        for by in By::ALL {
            let (table, of) = (&mut self.tables[by as usize], by.of(&row.judged));
            table.groups.add(of, &row.judged);
            if table.groups.get(&of).is_some() {
                table.series.entry(of).or_default().mark(bucket);
            }
        }
        if self.rows.len() == MAX_ROWS {
            self.rows.pop_front();
        }
        self.rows.push_back(Rc::clone(row));
    }

    fn step(&mut self, step: Step) {
        self.series.step(step);
        self.tables.iter_mut().flat_map(|table| table.series.values_mut()).for_each(|series| series.step(step));
    }

    /// The lines of a table, all of them. `buckets`: as [`Data::buckets`].
    pub fn lines(&self, by: By, sort: Sort, buckets: usize) -> Vec<Line<'_>> {
        let Table { groups, series } = &self.tables[by as usize];
        let recent = |of: &Of| series.get(of).map_or(0, |series| series.recent(buckets));
        let mut lines: Vec<_> = match sort {
            Sort::Ends => groups.sorted(|group| group.ends),
            Sort::Harm => groups.sorted(|group| (group.of(Harm::Lost), group.of(Harm::Possible), group.of(Harm::Unknown), group.ends)),
            Sort::Bytes => groups.sorted(|group| (group.lost_bytes, group.unconfirmed_bytes, group.ends)),
            Sort::Recent => groups.sorted(|group| group.ends),
        };
        if sort == Sort::Recent {
            lines.sort_by_key(|(of, _)| std::cmp::Reverse(recent(of)));
        }
        let others = Some(&groups.others).filter(|group| group.ends > 0).map(|group| Line { of: None, group, series: None });
        let lines = lines.into_iter().map(|(of, group)| Line { of: Some(*of), group, series: series.get(of) });
        lines.chain(others).collect()
    }

    /// Place of a record among the kept ones, the newest first; of the oldest, where it is kept no more.
    pub fn place_of(&self, number: u64) -> usize {
        let later = self.rows.len() - self.rows.partition_point(|row| row.number <= number);
        later.min(self.rows.len().saturating_sub(1))
    }

    /// By its place.
    pub fn row(&self, place: usize) -> Option<&Rc<Row>> {
        self.rows.iter().rev().nth(place)
    }
}

/// All that there is, and what of it matches the filter.
#[derive(Clone, Debug)]
pub struct Data {
    pub span: Span,
    axis: Option<Axis>,
    pub all: Part,
    chosen: Option<Part>,
    next: u64,
}

impl Data {
    fn new(span: Span) -> Self {
        Self { span, axis: None, all: Part::default(), chosen: None, next: 0 }
    }

    /// What is to be shown.
    pub fn shown(&self) -> &Part {
        self.chosen.as_ref().unwrap_or(&self.all)
    }

    /// Seconds that one bucket stands for.
    pub fn bucket_seconds(&self) -> u64 {
        self.axis.map_or(1, |axis| axis.width)
    }

    /// Buckets that stand for a time that there was.
    pub fn buckets(&self) -> usize {
        self.axis.map_or(BUCKETS, |axis| axis.last + 1)
    }

    /// Ends per second: of late, or on average over all that there is.
    pub fn rate(&self) -> f64 {
        let part = self.shown();
        match self.span {
            // The second that is not over says nothing yet.
            Span::Last => {
                let counts = &part.series.0[BUCKETS - 1 - RECENT..BUCKETS - 1];
                counts.iter().map(|n| f64::from(*n)).sum::<f64>() / RECENT as f64
            }
            Span::Whole => {
                let ns = part.total.last_ns.saturating_sub(part.total.first_ns);
                if ns == 0 { 0.0 } else { part.total.ends as f64 * 1e9 / ns as f64 }
            }
        }
    }

    fn bucket(&mut self, second: u64) -> usize {
        loop {
            let axis = self.axis.get_or_insert(match self.span {
                Span::Last => Axis { first: (second + 1).saturating_sub(BUCKETS as u64), width: 1, last: BUCKETS - 1 },
                Span::Whole => Axis { first: second, width: 1, last: 0 },
            });
            let at = second.saturating_sub(axis.first) / axis.width;
            let too_far = at.saturating_sub(BUCKETS as u64 - 1);
            let step = match self.span {
                _ if too_far == 0 => {
                    axis.last = axis.last.max(at as usize);
                    return at as usize;
                }
                Span::Last => {
                    axis.first += too_far;
                    Step::Forward(usize::try_from(too_far).unwrap_or(BUCKETS))
                }
                Span::Whole => {
                    axis.width *= 2;
                    axis.last /= 2;
                    Step::Halve
                }
            };
            self.all.step(step);
            self.chosen.iter_mut().for_each(|part| part.step(step));
        }
    }

    fn add(&mut self, judged: Judged, second: u64, filter: &Filter) {
        let bucket = Some(self.bucket(second));
        let row = Rc::new(Row { number: self.next, second, judged });
        self.next += 1;
        self.all.add(&row, bucket);
        if let Some(chosen) = self.chosen.as_mut().filter(|_| filter.matches(&row.judged)) {
            chosen.add(&row, bucket);
        }
    }

    /// Counts anew what is kept.
    fn choose(&mut self, filter: &Filter) {
        self.chosen = None;
        if filter.0.is_empty() {
            return;
        }
        let rows: Vec<_> = self.all.rows.iter().filter(|row| filter.matches(&row.judged)).cloned().collect();
        let mut chosen = Part::default();
        for row in &rows {
            let is_shown = self.span == Span::Whole || self.axis.is_some_and(|axis| row.second >= axis.first);
            chosen.add(row, is_shown.then(|| self.bucket(row.second)));
        }
        self.chosen = Some(chosen);
    }
}

/// Cuts what a record from a file may have as long as it likes: many of them are kept.
fn shorten(judged: &mut Judged) {
    let Judged { teardown: t, verdict, names, log } = judged;
    short(&mut verdict.words);
    verdict.timer.iter_mut().for_each(|timer| short(&mut timer.name));
    t.reason.iter_mut().for_each(short);
    t.http.iter_mut().filter_map(|http| http.request.as_mut()).for_each(short);
    names.netns.iter_mut().for_each(short);
    if let Some(owner) = names.owner.as_mut().map(Arc::make_mut) {
        owner.user.iter_mut().for_each(short);
        let container = owner.place.container.as_mut().map(|container| &mut container.id);
        [&mut owner.exe, &mut owner.place.unit, &mut owner.place.pod].into_iter().flatten().chain(container).for_each(short);
    }
    let (Finding::About(lines) | Finding::Ambiguous(lines)) = log else { return };
    for line in lines.iter_mut().map(Arc::make_mut) {
        let client = line.client.as_mut().and_then(|client| if let Remote::Name(name) = client { Some(name) } else { None });
        let texts = [&mut line.request, &mut line.upstream_text, &mut line.host, &mut line.phrase];
        texts.into_iter().flatten().chain(client).chain([&mut line.raw]).for_each(short);
    }
}

fn short<T: Deref<Target = str> + From<String>>(text: &mut T) {
    if let Cow::Owned(cut) = cut(text, MAX_TEXT) {
        *text = cut.into();
    }
}

/// Words that a record must have, each of them.
#[derive(Clone, Debug, Default)]
struct Filter(Vec<String>);

impl Filter {
    fn new(text: &str) -> Self {
        Self(text.split_whitespace().map(str::to_lowercase).collect())
    }

    /// Numbers are ports and processes, whole; everything else is part of a name, an address or a word for harm.
    fn matches(&self, judged: &Judged) -> bool {
        let t = &judged.teardown;
        let (harm, holder) = (judged.verdict.harm, t.parties().next());
        self.0.iter().all(|word| match word.strip_prefix(':').unwrap_or(word).parse::<u32>() {
            Ok(number) => {
                let ports = [t.local.port, t.remote.port].map(u32::from);
                ports.contains(&number) || !word.starts_with(':') && holder.is_some_and(|party| party.tgid == number)
            }
            Err(_) => {
                let has = |text: &str| text.to_lowercase().contains(word);
                has(judged.verdict.cause.name())
                    || has(t.end.name())
                    || *word == harm.on_screen().to_lowercase()
                    || has(harm.name())
                    || holder.is_some_and(|party| has(&party.process_comm.text()))
                    || has(&t.remote.to_string())
            }
        })
    }
}

/// What takes the place of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    #[default]
    Tables,
    Details,
    Help,
}

/// What is known of whoever made the records.
#[derive(Debug, Default)]
pub struct Origin {
    pub account: Account,
    /// The latest that whoever makes the records wants to be read, not yet safe for a terminal.
    pub warning: Option<String>,
    /// Nothing more will come; why, in words.
    pub ended: Option<String>,
}

/// The screen's state.
#[derive(Debug)]
pub struct Model {
    /// What it is about: the file, or nothing where records come live.
    pub file: Option<String>,
    pub origin: Origin,
    now: Data,
    /// As it was when it was paused.
    paused: Option<Data>,
    pub by: By,
    pub sort: Sort,
    pub filter: String,
    matcher: Filter,
    /// The filter is being typed.
    pub typing: bool,
    pub pane: Pane,
    /// Of the row; `None`: the newest, whichever that is.
    pub selected: Option<u64>,
    /// First place of the list, and first line of the details; the view keeps both in bounds.
    pub offset: usize,
    pub scroll: usize,
    /// Rows that the list has room for, or the details.
    pub page: usize,
}

impl Model {
    pub fn new(file: Option<String>) -> Self {
        let span = if file.is_some() { Span::Whole } else { Span::Last };
        Self {
            file,
            origin: Origin::default(),
            now: Data::new(span),
            paused: None,
            by: By::default(),
            sort: Sort::default(),
            filter: String::new(),
            matcher: Filter::default(),
            typing: false,
            pane: Pane::default(),
            selected: None,
            offset: 0,
            scroll: 0,
            page: 10,
        }
    }

    /// Takes a record. `second` is when it arrived; saved ones have their own time.
    pub fn take(&mut self, saved: Saved, second: u64) {
        self.origin.account.add(&saved);
        if let Saved::Teardown(mut judged) = saved {
            shorten(&mut judged);
            let second = if self.now.span == Span::Whole { judged.teardown.at_ns / 1_000_000_000 } else { second };
            self.now.add(*judged, second, &self.matcher);
        }
    }

    /// Time has passed. Returns whether that can be seen.
    pub fn tick(&mut self, second: u64) -> bool {
        let moves = self.moves_by_itself();
        if moves {
            self.now.bucket(second);
        }
        moves
    }

    /// Sparklines that are not empty move as time passes.
    pub fn moves_by_itself(&self) -> bool {
        self.paused.is_none() && self.now.span == Span::Last && self.now.all.series != Series::default()
    }

    pub fn is_live(&self) -> bool {
        self.file.is_none()
    }

    pub fn shown(&self) -> &Data {
        self.paused.as_ref().unwrap_or(&self.now)
    }

    /// Ends since it was paused; `None`: it is not.
    pub fn missed(&self) -> Option<u64> {
        self.paused.as_ref().map(|paused| self.now.next - paused.next)
    }

    /// Of the record that is selected, among those that are shown.
    pub fn place(&self) -> usize {
        self.selected.map_or(0, |number| self.shown().shown().place_of(number))
    }

    pub fn selected_row(&self) -> Option<&Rc<Row>> {
        self.shown().shown().row(self.place())
    }

    /// Moves the selection; the first place follows what comes.
    pub fn select(&mut self, place: usize) {
        let part = self.shown().shown();
        let place = place.min(part.rows.len().saturating_sub(1));
        let number = part.row(place).map(|row| row.number);
        self.selected = number.filter(|_| place > 0);
        self.scroll = 0;
    }

    pub fn set_filter(&mut self, text: String) {
        self.filter = text;
        self.matcher = Filter::new(&self.filter);
        self.now.choose(&self.matcher);
        self.paused.iter_mut().for_each(|paused| paused.choose(&self.matcher));
        self.selected = None;
    }

    /// What is shown stays as it is, or goes on.
    pub fn pause(&mut self) {
        self.paused = if self.paused.is_none() { Some(self.now.clone()) } else { None };
    }
}
