//! The path of an event through user space: decode, join, judge, enrich, filter, output. Driven by the
//! live ring or by recorded bytes.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use smallvec::SmallVec;

use crate::{
    audit::Tally,
    correlate::{Correlator, Facts, HELD_BACK_NS, Patience},
    decode::Decoder,
    enrich::Processes,
    export::Tap,
    filter::{Condition, Filter},
    fold::Fold,
    follow::Counts,
    join::Joiner,
    model::{Event, Finding, Judged, LateObservation, LogLine, Names, Record, Seen, Teardown},
    output::{
        WallClock,
        json::{self, JsonFormat},
        summary::{LogCounts, Summary},
        text::{self, TextFormat},
    },
    probe::Counters,
    verdict::{self, timers::Timers},
};

/// How far events of different CPUs, and of an interrupt within another, may be out of order.
const DISORDER_NS: u64 = 1_000_000;

/// How records are written.
#[derive(Debug)]
pub enum Format {
    Json(JsonFormat),
    Text(TextFormat),
}

/// Everything between the bytes of an event and the bytes of a line.
#[derive(Debug)]
pub struct Pipeline {
    pub decoder: Decoder,
    pub joiner: Joiner,
    pub processes: Processes,
    pub filter: Filter,
    pub format: Format,
    pub clock: WallClock,
    pub summary: Summary,
    /// Stop after this many records.
    pub limit: Option<u64>,
    /// Orderly ends are records too.
    pub want_fin: bool,
    pub timers: Timers,
    /// Processes have the numbers here that the kernel half reports.
    pub numbers_are_ours: bool,
    pub fail_on: Vec<Condition>,
    /// A shown record met one of these conditions.
    pub failed: bool,
    pub printed: u64,
    pub ready: Vec<Record>,
    /// Every event, whatever is shown: for the comparison with the kernel's counters.
    pub tally: Tally,
    /// The application's log, where it is joined with the records.
    pub log: Option<LogJoin>,
    /// Processes that have become another program since somebody looked.
    pub execs: Vec<u32>,
    /// Where lines of ends that are alike are limited.
    pub fold: Option<Fold>,
    /// To the child that exports.
    pub tap: Option<Tap>,
    /// Of records that are written: the next ones' words need no memory of their own.
    spare_words: Vec<String>,
    last_event_ns: u64,
    now_ns: u64,
}

/// The join of log lines with records.
#[derive(Debug)]
pub struct LogJoin {
    pub correlator: Correlator<Story>,
    /// Lines without a record are written too.
    pub show_unmatched: bool,
    /// Shown records of an error that a call returned, and no line about it.
    pub errors_without_line: u64,
    /// Lines that were read.
    pub counts: Counts,
}

/// More records than these do not wait for names that are about to be known.
const MAX_WAITING: usize = 4_096;
/// How long a record waits for its line, which was mostly written before.
const LINE_FOLLOWS_NS: u64 = 100_000_000;

impl LogJoin {
    /// `join_timeout`: how long a record may take to come; `immediate`: lines are read as they are written.
    pub fn new(join_timeout: Duration, immediate: bool, show_unmatched: bool) -> Self {
        let join_ns = u64::try_from(join_timeout.as_nanos()).unwrap_or(u64::MAX);
        let record_ns = if immediate { LINE_FOLLOWS_NS } else { LINE_FOLLOWS_NS + HELD_BACK_NS };
        let lag_ns = join_ns.saturating_add(record_ns);
        let entangled_ns = lag_ns.saturating_mul(3);
        let patience = Patience { record_ns, lag_ns, entangled_ns, line_ns: entangled_ns.saturating_add(lag_ns.saturating_mul(2)) };
        Self { correlator: Correlator::new(patience), show_unmatched, errors_without_line: 0, counts: Counts::default() }
    }

    fn counts(&self) -> LogCounts {
        let Counts { lines, malformed, too_long } = self.counts;
        LogCounts { lines, malformed, too_long, of_ends: self.correlator.tally(), errors_without_line: self.errors_without_line }
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

impl Story {
    /// What a line can be compared with, for each of its sockets.
    fn facts(&self) -> Vec<Facts> {
        match self {
            Self::Ends(ends) => ends.iter().map(Facts::of).collect(),
            Self::Late(late, _) => vec![Facts::of_late(late)],
        }
    }

    /// Takes what the log has about each of its sockets.
    fn take(&mut self, findings: Vec<Finding>) {
        match self {
            Self::Ends(ends) => ends.iter_mut().zip(findings).for_each(|(judged, finding)| judged.log = finding),
            Self::Late(_, log) => *log = findings.into_iter().next().unwrap_or_default(),
        }
    }
}

impl Pipeline {
    pub fn new(decoder: Decoder, joiner: Joiner, filter: Filter, format: Format, clock: WallClock, limit: Option<u64>) -> Self {
        Self {
            decoder,
            joiner,
            processes: Processes::default(),
            filter,
            format,
            clock,
            summary: Summary::default(),
            limit,
            want_fin: true,
            timers: Timers::well_known(),
            numbers_are_ours: true,
            fail_on: Vec::new(),
            failed: false,
            printed: 0,
            ready: Vec::new(),
            tally: Tally::default(),
            log: None,
            execs: Vec::new(),
            fold: None,
            tap: None,
            spare_words: Vec::new(),
            last_event_ns: 0,
            now_ns: 0,
        }
    }

    /// Takes one event's bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.decoder.decode(bytes, &mut self.joiner.spare_ends) {
            Ok(Event::Exec(exec)) => self.execs.push(exec.tgid),
            Ok(event) => {
                self.last_event_ns = self.last_event_ns.max(event.ts_ns());
                if self.tells_names() {
                    self.processes.meet_all(&event);
                }
                let end = if let Event::After(after) = &event { self.joiner.end_of(after) } else { None };
                self.tally.count(&event, end);
                // What was due before this event is told without it, however late we read.
                self.joiner.tick(event.ts_ns().saturating_sub(DISORDER_NS), &mut self.ready);
                self.joiner.push(event, &mut self.ready);
            }
            Err(error) => {
                log::debug!("{error}");
                self.summary.undecodable += 1;
            }
        }
    }

    /// Tells what has waited long enough. `now_ns`: the present where nothing is left to read;
    /// else the time of the last event, because what completes a story may be among the unread.
    pub fn tick(&mut self, now_ns: Option<u64>) {
        self.now_ns = now_ns.unwrap_or(self.last_event_ns);
        self.joiner.tick(self.now_ns, &mut self.ready);
    }

    /// Whether [`Pipeline::write`] has something to do.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || self.next_line_ns().is_some_and(|at_ns| at_ns <= self.now_ns)
    }

    /// When something is due that waits for nothing but time.
    fn next_line_ns(&self) -> Option<u64> {
        let log = self.log.as_ref().and_then(|log| log.correlator.next_deadline_ns());
        let folded = self.fold.as_ref().and_then(Fold::next_deadline_ns);
        log.into_iter().chain(folded).min()
    }

    /// What is complete can be written with more in a moment.
    pub fn is_worth_waiting(&self, now_ns: u64) -> bool {
        self.waits_until_ns(now_ns).is_some()
    }

    fn waits_until_ns(&self, now_ns: u64) -> Option<u64> {
        self.processes.worth_waiting_until_ns(now_ns).filter(|_| self.ready.len() < MAX_WAITING)
    }

    /// When [`Pipeline::tick`] and [`Pipeline::write`] have something to do next.
    pub fn next_deadline_ns(&self, now_ns: u64) -> Option<u64> {
        let ready = (!self.ready.is_empty()).then_some(now_ns);
        let write = self.next_line_ns().into_iter().chain(ready).min();
        let not_before_ns = self.waits_until_ns(now_ns).unwrap_or(0);
        self.joiner.next_deadline_ns().into_iter().chain(write.map(|at| at.max(not_before_ns))).min()
    }

    /// Writes what is complete. Returns whether anything was written.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(&mut self, out: &mut impl Write, columns: Option<usize>) -> io::Result<bool> {
        let now_ns = self.now_ns;
        self.write_until(out, columns, now_ns)
    }

    /// Writes what is left, at the end of the run.
    ///
    /// # Errors
    /// What writing returns.
    pub fn finish(&mut self, out: &mut impl Write, columns: Option<usize>) -> io::Result<()> {
        self.joiner.finish(&mut self.ready);
        self.write_until(out, columns, u64::MAX)?;
        self.write_folded(out, columns, u64::MAX).map(|_| ())
    }

    fn write_until(&mut self, out: &mut impl Write, columns: Option<usize>, until_ns: u64) -> io::Result<bool> {
        let wrote_folded = self.write_folded(out, columns, self.now_ns)?;
        let before = self.printed;
        let mut ready = std::mem::take(&mut self.ready);
        for record in ready.drain(..) {
            if self.done() {
                break;
            }
            let story = self.judge(record);
            match &mut self.log {
                Some(log) => log.correlator.push_record(self.now_ns, story.facts(), story),
                None => self.write_story(out, columns, story)?,
            }
        }
        self.ready = ready;
        if let Some(log) = &mut self.log {
            let mut told = Vec::new();
            log.correlator.tick(until_ns, &mut |mut story: Story, findings| {
                story.take(findings);
                told.push(story);
            });
            let unmatched = log.correlator.take_unmatched();
            for story in told {
                if self.done() {
                    break;
                }
                self.write_story(out, columns, story)?;
            }
            if self.write_unmatched(out, columns, &unmatched)? {
                return Ok(true);
            }
        }
        Ok(wrote_folded || self.printed > before)
    }

    /// The kernel half's part of it is told; names and a verdict are added.
    fn judge(&mut self, record: Record) -> Story {
        let mut ends = Ends::new();
        match record {
            Record::Teardown(teardown) => ends.push(self.judge_end(teardown)),
            Record::Pair(first, second) => ends.extend([first, second].map(|half| self.judge_end(half))),
            Record::Late(late) => return Story::Late(late, Finding::Nothing),
        }
        Story::Ends(ends)
    }

    fn judge_end(&mut self, mut teardown: Box<Teardown>) -> Judged {
        self.find_owner(&mut teardown);
        let verdict = verdict::judge(&teardown, &self.timers, self.spare_words.pop().unwrap_or_default());
        // In a log a process may go by the number that it has in its own PID namespace.
        let owner = if self.log.is_some() { self.processes.identity(&teardown) } else { None };
        Judged { teardown, verdict, names: Names { owner, ..Names::default() }, log: Finding::Nothing }
    }

    fn write_story(&mut self, out: &mut impl Write, columns: Option<usize>, story: Story) -> io::Result<()> {
        match story {
            Story::Ends(ends) => self.write_ends(out, columns, ends),
            Story::Late(late, log) => self.write_late(out, columns, &late, &log),
        }
    }

    /// Lines that no record belongs to, where they are asked for. Returns whether there were any.
    fn write_unmatched(&mut self, out: &mut impl Write, columns: Option<usize>, lines: &[Arc<LogLine>]) -> io::Result<bool> {
        if !self.log.as_ref().is_some_and(|log| log.show_unmatched) {
            return Ok(false);
        }
        for line in lines {
            match &self.format {
                Format::Json(_) => json::write_unmatched(out, line)?,
                Format::Text(text) => text.write_unmatched(out, line, columns)?,
            }
        }
        Ok(!lines.is_empty())
    }

    fn write_ends(&mut self, out: &mut impl Write, columns: Option<usize>, ends: Ends) -> io::Result<()> {
        // In text both ends are one line, and folded as one.
        let as_line = self.fold.is_some() && matches!(self.format, Format::Text(_));
        let mut shown = Ends::new();
        let mut admitted = SmallVec::<[bool; 2]>::new();
        for mut judged in ends {
            let room = as_line || !self.done();
            if !room || !self.shows(&mut judged) {
                self.give_back(judged);
                continue;
            }
            let admits = as_line || self.admits(&judged, None);
            self.printed += u64::from(admits);
            admitted.push(admits);
            shown.push(judged);
        }
        self.summary.count(&shown);
        if as_line && !self.admits_line(&shown) {
            self.printed -= shown.len() as u64;
            admitted.fill(false);
        }
        let mut written = Ends::new();
        for (mut judged, admitted) in shown.into_iter().zip(admitted) {
            if admitted {
                self.find_names(&mut judged);
            }
            if let Some(tap) = &mut self.tap {
                tap.end(&judged, &self.clock);
            }
            if admitted {
                written.push(judged);
            } else {
                self.give_back(judged);
            }
        }
        match (&mut self.format, &written[..]) {
            (Format::Json(json), ends) => ends.iter().try_for_each(|judged| json.write(out, judged, &self.clock))?,
            (Format::Text(_), []) => {}
            (Format::Text(text), [judged]) => text.write(out, judged, None, &self.clock, columns)?,
            (Format::Text(text), [first, second, ..]) => text.write(out, first, Some(second), &self.clock, columns)?,
        }
        written.into_iter().for_each(|judged| self.give_back(judged));
        Ok(())
    }

    fn give_back(&mut self, judged: Judged) {
        if self.spare_words.len() < MAX_WAITING {
            self.spare_words.push(judged.verdict.words);
        }
        let mut teardown = judged.teardown;
        // Nobody's request is kept for the sake of the memory around it.
        teardown.http = None;
        self.joiner.spare_teardowns.give(teardown);
    }

    /// Whether an end is shown; then it is counted as such.
    fn shows(&mut self, judged: &mut Judged) -> bool {
        // The kernel half passes on what may have left a request unanswered, and all where there is a log.
        if !self.want_fin && judged.is_merely_orderly() {
            self.summary.orderly_here += 1;
            return false;
        }
        if !self.filter.accepts(judged, &mut self.processes) {
            self.summary.filtered += 1;
            return false;
        }
        self.failed |= self.fail_on.iter().any(|condition| condition.is_met(judged));
        if let Some(log) = &mut self.log {
            log.errors_without_line += u64::from(judged.teardown.observer.is_some() && judged.log == Finding::Nothing);
        }
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
    fn admits(&mut self, judged: &Judged, other: Option<&Judged>) -> bool {
        self.fold.as_mut().is_none_or(|fold| fold.admits(self.now_ns, judged, other))
    }

    /// Writes what was folded in a second that is over. Returns whether there was anything.
    fn write_folded(&mut self, out: &mut impl Write, columns: Option<usize>, until_ns: u64) -> io::Result<bool> {
        let folded = self.fold.as_mut().map(|fold| fold.take(until_ns)).unwrap_or_default();
        for folded in &folded {
            match &mut self.format {
                Format::Json(_) => json::write_folded(out, folded, &self.clock)?,
                Format::Text(text) => text.write_folded(out, folded, &self.clock, columns)?,
            }
        }
        Ok(!folded.is_empty())
    }

    fn write_late(&mut self, out: &mut impl Write, columns: Option<usize>, late: &LateObservation, log: &Finding) -> io::Result<()> {
        if !self.filter.accepts_late(late, &mut self.processes) {
            self.summary.filtered += 1;
            return Ok(());
        }
        self.summary.late += 1;
        self.printed += 1;
        if let Some(tap) = &mut self.tap {
            tap.late(late, log, &self.clock);
        }
        match &mut self.format {
            Format::Json(json) => json.write_late(out, late, log, &self.clock),
            Format::Text(text) => text.write_late(out, late, log, &self.clock, columns),
        }
    }

    /// The record limit is reached.
    pub fn done(&self) -> bool {
        self.limit.is_some_and(|limit| self.printed >= limit)
    }

    /// Puts the kernel half's counters into the summary.
    pub fn count(&mut self, counters: &Counters) {
        self.summary.orderly_in_kernel = counters.orderly;
        self.summary.lost_records = counters.lost_records;
        self.summary.skipped = counters.skipped.clone();
        self.summary.lost_by_hook = rsttrace_common::hook::NAMES.iter().copied().zip(counters.lost_by_hook).collect();
        self.summary.evicted = counters.untracked + self.joiner.evicted();
        self.summary.log = self.log.as_ref().map(LogJoin::counts);
    }

    /// Whether anything that is written, or chosen by, needs more of processes than the kernel half reports.
    pub fn tells_names(&self) -> bool {
        let shown = match &self.format {
            Format::Json(_) => true,
            Format::Text(text) => text.has_timeline(),
        };
        self.numbers_are_ours && (shown || self.filter.asks_for_places() || self.log.is_some())
    }

    fn find_names(&mut self, judged: &mut Judged) {
        if self.tells_names() {
            judged.names = self.processes.names(&judged.teardown);
        } else {
            judged.names.nat = self.processes.nat(&judged.teardown);
        }
    }

    /// A socket that still lives, and that nobody used since it was accepted, is looked up.
    fn find_owner(&mut self, teardown: &mut Teardown) {
        if teardown.owner.is_none()
            && teardown.seen == Seen::NotYet
            && let Some(inode) = teardown.inode
        {
            teardown.owner = self.processes.holder(inode);
        }
    }
}
