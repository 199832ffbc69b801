//! From a judged record to the bytes that are written: filter, sums, folding, format. The live pipeline and
//! the replay of a file end in it.

use std::{
    fmt,
    io::{self, Write},
    sync::Arc,
};

use foldhash::HashSet;
use jiff::Timestamp;
use smallvec::SmallVec;

use crate::{
    filter::{Condition, Filter, Lineage},
    fold::Fold,
    model::{Finding, Judged, LateObservation, LogLine, Seen},
    output::{
        WallClock,
        json::{self, JsonFormat},
        summary::Summary,
        table::Table,
        text::{self, TextFormat},
    },
};

/// How records are written.
#[derive(Debug)]
pub enum Format {
    Json(JsonFormat),
    Text(TextFormat),
    /// Nothing but a table, which looks like text.
    Table(Box<Table>, TextFormat),
}

impl Format {
    /// `summary`: the table only; `json` comes first.
    pub fn new(json: bool, summary: bool, text: TextFormat) -> Self {
        match (json, summary) {
            (true, _) => Self::Json(JsonFormat::default()),
            (false, true) => Self::Table(Box::default(), text),
            (false, false) => Self::Text(text),
        }
    }
}

/// One socket that ended, or both ends of a connection within this host.
pub type Ends = SmallVec<[Judged; 2]>;

/// What is told together.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most are ends, and a box would cost each of them an allocation")]
pub enum Story {
    Ends(Ends),
    Late(Box<LateObservation>, Finding),
}

/// Where the processes of a record are known, and the names that go with its numbers.
pub trait People: Lineage {
    /// Fills in what is written and not judged by: users, units, containers, translated addresses.
    fn name(&mut self, judged: &mut Judged);
}

/// Somebody else who is told all that is shown, as lines of JSON.
pub trait Sink: fmt::Debug {
    /// Takes one line with its end. `judged`: the record that it tells of, if it tells of a connection's end.
    fn take(&mut self, line: &[u8], judged: Option<&Judged>, now_ns: u64);

    /// Does what is due.
    fn tick(&mut self, now_ns: u64);

    /// When [`Sink::tick`] has something to do.
    fn next_deadline_ns(&self) -> Option<u64>;
}

/// Ends whose error may still be noticed and then shown, where a verdict decides.
const MAX_AWAITED: usize = 1 << 16;

/// Everything between a judged record and the bytes of a line.
#[derive(Debug)]
pub struct Outlet {
    pub filter: Filter,
    pub format: Format,
    pub clock: WallClock,
    pub summary: Summary,
    /// Stop after this many records.
    pub limit: Option<u64>,
    /// Orderly ends are records too.
    pub want_fin: bool,
    pub fail_on: Vec<Condition>,
    /// A shown record met one of these conditions.
    pub failed: bool,
    pub printed: u64,
    /// Where lines of ends that are alike are limited.
    pub fold: Option<Fold>,
    /// Lines of a log without a record are written too.
    pub show_unmatched: bool,
    /// Shown records of an error that a call returned, and no line of a log about it.
    pub errors_without_line: u64,
    pub sinks: Vec<Box<dyn Sink>>,
    /// Cookies of ends that were shown for their verdict, and that nobody had noticed yet.
    awaited: HashSet<u64>,
    /// Of records that are done with: the next ones may use their memory.
    pub spent: Vec<Judged>,
    pub now_ns: u64,
    /// For the sinks, also where stdout has text.
    json: JsonFormat,
    line: Vec<u8>,
}

impl Outlet {
    pub fn new(filter: Filter, format: Format, clock: WallClock, limit: Option<u64>) -> Self {
        Self {
            filter,
            format,
            clock,
            summary: Summary::default(),
            limit,
            want_fin: true,
            fail_on: Vec::new(),
            failed: false,
            printed: 0,
            fold: None,
            show_unmatched: false,
            errors_without_line: 0,
            sinks: Vec::new(),
            awaited: HashSet::default(),
            spent: Vec::new(),
            now_ns: 0,
            json: JsonFormat::default(),
            line: Vec::new(),
        }
    }

    /// The record limit is reached.
    pub fn done(&self) -> bool {
        self.limit.is_some_and(|limit| self.printed >= limit)
    }

    /// Whether names are written: as JSON always, in text below a record only.
    pub fn tells_names(&self) -> bool {
        let shown = match &self.format {
            Format::Json(_) => true,
            Format::Text(text) => text.has_timeline(),
            Format::Table(..) => false,
        };
        shown || !self.sinks.is_empty()
    }

    /// When something is due that waits for nothing but time.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let sinks = self.sinks.iter().filter_map(|sink| sink.next_deadline_ns());
        self.fold.as_ref().and_then(Fold::next_deadline_ns).into_iter().chain(sinks).min()
    }

    /// Writes what is told together, as far as it is to be shown.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tell(&mut self, out: &mut impl Write, columns: Option<usize>, story: Story, people: &mut impl People) -> io::Result<()> {
        match story {
            Story::Ends(ends) => self.tell_ends(out, columns, ends, people),
            Story::Late(late, log) => self.tell_late(out, columns, &late, &log, people),
        }
    }

    fn tell_ends(&mut self, out: &mut impl Write, columns: Option<usize>, ends: Ends, people: &mut impl People) -> io::Result<()> {
        // In text both ends are one line, and folded as one.
        let as_line = self.fold.is_some() && matches!(self.format, Format::Text(_));
        let mut shown = Ends::new();
        let mut admitted = SmallVec::<[bool; 2]>::new();
        for mut judged in ends {
            let room = as_line || !self.done();
            if !room || !self.shows(&judged, people) {
                self.spent.push(judged);
                continue;
            }
            let admits = as_line || self.admits(&judged, None);
            self.printed += u64::from(admits);
            admitted.push(admits);
            // Sinks are told of what is folded too.
            if admits || !self.sinks.is_empty() {
                people.name(&mut judged);
            }
            shown.push(judged);
        }
        self.summary.count(&shown);
        if as_line && !self.admits_line(&shown) {
            self.printed -= shown.len() as u64;
            admitted.fill(false);
        }
        if !self.sinks.is_empty() {
            for judged in &shown {
                self.line.clear();
                self.json.write(&mut self.line, judged, &self.clock)?;
                self.pass_on(Some(judged));
            }
        }
        let mut written = Ends::new();
        for (judged, admitted) in shown.into_iter().zip(admitted) {
            if admitted {
                written.push(judged);
            } else {
                self.spent.push(judged);
            }
        }
        match (&mut self.format, &written[..]) {
            (Format::Json(json), ends) => ends.iter().try_for_each(|judged| json.write(out, judged, &self.clock))?,
            (Format::Table(table, _), ends) => ends.iter().for_each(|judged| table.add(judged)),
            (Format::Text(_), []) => {}
            (Format::Text(text), [judged]) => text.write(out, judged, None, &self.clock, columns)?,
            (Format::Text(text), [first, second, ..]) => text.write(out, first, Some(second), &self.clock, columns)?,
        }
        self.spent.extend(written);
        Ok(())
    }

    /// Whether an observation that came after its record is shown; then it is counted as such. (Its end has been counted
    /// either way.)
    pub fn chooses_late(&mut self, late: &LateObservation, people: &mut impl People) -> bool {
        let is_awaited = !self.filter.asks_for_verdicts() || late.cookie.is_none_or(|cookie| self.awaited.remove(&cookie));
        let chosen = is_awaited && self.filter.accepts_late(late, people);
        self.summary.late += u64::from(chosen);
        self.printed += u64::from(chosen);
        chosen
    }

    /// Whether an end is shown; then it is counted as such.
    pub fn shows(&mut self, judged: &Judged, people: &mut impl People) -> bool {
        // The kernel half passes on what may have left a request unanswered, and all where there is a log.
        if !self.want_fin && judged.is_merely_orderly() {
            self.summary.orderly_here += 1;
            return false;
        }
        if !self.filter.accepts(judged, people) {
            self.summary.filtered += 1;
            return false;
        }
        let t = &judged.teardown;
        if self.filter.asks_for_verdicts() && t.seen == Seen::NotYet && self.awaited.len() < MAX_AWAITED {
            self.awaited.extend(t.cookie);
        }
        self.failed |= self.fail_on.iter().any(|condition| condition.is_met(judged));
        self.errors_without_line += u64::from(judged.teardown.observer.is_some() && judged.log == Finding::Nothing);
        true
    }

    /// The same of what is one line in text.
    fn admits_line(&mut self, ends: &[Judged]) -> bool {
        match ends {
            [a, b] if text::leads(a, b) => self.admits(a, Some(b)),
            [a, b] => self.admits(b, Some(a)),
            [one] => self.admits(one, None),
            _ => true,
        }
    }

    /// Whether it is written by itself, and not folded.
    pub fn admits(&mut self, judged: &Judged, other: Option<&Judged>) -> bool {
        self.fold.as_mut().is_none_or(|fold| fold.admits(self.now_ns, judged, other))
    }

    /// Writes what was folded in a second that is over, and lets the sinks do what is due. Returns whether
    /// there was anything to write.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tick(&mut self, out: &mut impl Write, columns: Option<usize>, until_ns: u64) -> io::Result<bool> {
        let now_ns = self.now_ns;
        self.sinks.iter_mut().for_each(|sink| sink.tick(now_ns));
        let folded = self.fold.as_mut().map(|fold| fold.take(until_ns)).unwrap_or_default();
        for folded in &folded {
            match &mut self.format {
                Format::Json(_) => json::write_folded(out, folded, &self.clock)?,
                Format::Text(text) => text.write_folded(out, folded, &self.clock, columns)?,
                // It knows them one by one.
                Format::Table(..) => {}
            }
        }
        Ok(!folded.is_empty())
    }

    fn tell_late(
        &mut self,
        out: &mut impl Write,
        columns: Option<usize>,
        late: &LateObservation,
        log: &Finding,
        people: &mut impl People,
    ) -> io::Result<()> {
        if !self.chooses_late(late, people) {
            return Ok(());
        }
        if !self.sinks.is_empty() {
            self.line.clear();
            self.json.write_late(&mut self.line, late, log, &self.clock)?;
            self.pass_on(None);
        }
        match &mut self.format {
            Format::Json(json) => json.write_late(out, late, log, &self.clock),
            Format::Text(text) => text.write_late(out, late, log, &self.clock, columns),
            Format::Table(..) => Ok(()),
        }
    }

    /// Writes lines that no record belongs to, where they are asked for. Returns whether there were any.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tell_unmatched(&mut self, out: &mut impl Write, columns: Option<usize>, lines: &[Arc<LogLine>]) -> io::Result<bool> {
        if !self.show_unmatched {
            return Ok(false);
        }
        for line in lines {
            self.tell_sinks(|out| json::write_unmatched(out, line))?;
            match &self.format {
                Format::Json(_) => json::write_unmatched(out, line)?,
                Format::Text(text) => text.write_unmatched(out, line, columns)?,
                Format::Table(..) => {}
            }
        }
        Ok(!lines.is_empty())
    }

    /// Writes the first line of a run, where the format has one.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tell_start(&mut self, out: &mut impl Write, start: &json::Start) -> io::Result<()> {
        self.tell_sinks(|out| json::write_start(out, start))?;
        if matches!(self.format, Format::Json(_)) { json::write_start(out, start) } else { Ok(()) }
    }

    /// Writes how it stands to who reads JSON, and not to sinks: another last line is to come.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tell_interim(&self, out: &mut impl Write) -> io::Result<()> {
        if matches!(self.format, Format::Json(_)) { json::write_summary(out, &self.summary) } else { Ok(()) }
    }

    /// Writes the last line.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tell_summary(&mut self, out: &mut impl Write) -> io::Result<()> {
        let summary = std::mem::take(&mut self.summary);
        self.tell_sinks(|out| json::write_summary(out, &summary))?;
        self.summary = summary;
        if matches!(self.format, Format::Json(_)) { json::write_summary(out, &self.summary) } else { Ok(()) }
    }

    /// Writes the table, where that is what is wanted.
    ///
    /// # Errors
    /// What writing returns.
    pub fn tell_table(&mut self, out: &mut impl Write, columns: Option<usize>) -> io::Result<()> {
        let Summary { started, stopped, .. } = self.summary;
        // Nothing was read that tells a time.
        let span = (stopped > Timestamp::UNIX_EPOCH).then_some((started, stopped));
        match &mut self.format {
            Format::Table(table, text) => table.write(out, text, span, &self.clock, columns),
            _ => Ok(()),
        }
    }

    /// A line that is about no end, for the sinks only.
    fn tell_sinks(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        if self.sinks.is_empty() {
            return Ok(());
        }
        self.line.clear();
        write(&mut self.line)?;
        self.pass_on(None);
        Ok(())
    }

    fn pass_on(&mut self, judged: Option<&Judged>) {
        let Self { sinks, line, now_ns, .. } = self;
        sinks.iter_mut().for_each(|sink| sink.take(line, judged, *now_ns));
    }
}
