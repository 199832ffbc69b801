//! The path of an event through user space: decode, join, judge, enrich, filter, output. Driven by the
//! live ring or by recorded bytes.

use std::io::{self, Write};

use crate::{
    audit::Tally,
    decode::Decoder,
    enrich::Processes,
    filter::{Condition, Filter},
    join::Joiner,
    model::{Cause, EndKind, Event, Judged, LateObservation, Record, Seen, Teardown},
    output::{WallClock, json, summary::Summary, text::TextFormat},
    probe::Counters,
    verdict::{self, timers::Timers},
};

/// How far events of different CPUs, and of an interrupt within another, may be out of order.
const DISORDER_NS: u64 = 1_000_000;

/// How records are written.
#[derive(Debug)]
pub enum Format {
    Json,
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
    pub fail_on: Vec<Condition>,
    /// A shown record met one of these conditions.
    pub failed: bool,
    pub printed: u64,
    pub ready: Vec<Record>,
    /// Every event, whatever is shown: for the comparison with the kernel's counters.
    pub tally: Tally,
    /// Processes that have become another program since somebody looked.
    pub execs: Vec<u32>,
    last_event_ns: u64,
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
            fail_on: Vec::new(),
            failed: false,
            printed: 0,
            ready: Vec::new(),
            tally: Tally::default(),
            execs: Vec::new(),
            last_event_ns: 0,
        }
    }

    /// Takes one event's bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.decoder.decode(bytes) {
            Ok(Event::Exec(exec)) => self.execs.push(exec.tgid),
            Ok(event) => {
                self.last_event_ns = self.last_event_ns.max(event.ts_ns());
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
        self.joiner.tick(now_ns.unwrap_or(self.last_event_ns), &mut self.ready);
    }

    /// Writes what is complete. Returns whether anything was written.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(&mut self, out: &mut impl Write, columns: Option<usize>) -> io::Result<bool> {
        let before = self.printed;
        for record in std::mem::take(&mut self.ready) {
            if self.done() {
                break;
            }
            match record {
                Record::Teardown(teardown) => self.write_halves(out, columns, vec![*teardown])?,
                Record::Pair(halves) => self.write_halves(out, columns, (*halves).into())?,
                Record::Late(late) => self.write_late(out, columns, &late)?,
            }
        }
        Ok(self.printed > before)
    }

    /// One socket that ended, or both ends of a connection within this host.
    fn write_halves(&mut self, out: &mut impl Write, columns: Option<usize>, halves: Vec<Teardown>) -> io::Result<()> {
        let mut shown = Vec::with_capacity(halves.len());
        for mut teardown in halves {
            self.find_owner(&mut teardown);
            let verdict = verdict::judge(&teardown, &self.timers);
            let judged = Judged { teardown, verdict };
            if self.is_merely_orderly(&judged) {
                self.summary.orderly_here += 1;
            } else if !self.filter.accepts(&judged, &mut self.processes) {
                self.summary.filtered += 1;
            } else if self.limit.is_none_or(|limit| self.printed < limit) {
                self.printed += 1;
                self.failed |= self.fail_on.iter().any(|condition| condition.is_met(&judged));
                shown.push(judged);
            }
        }
        let shown: Vec<_> = shown.iter().collect();
        self.summary.count(&shown);
        match (&mut self.format, &shown[..]) {
            (Format::Json, halves) => halves.iter().try_for_each(|judged| json::write_teardown(out, judged, &self.clock)),
            (Format::Text(_), []) => Ok(()),
            (Format::Text(text), [judged]) => text.write(out, judged, None, &self.clock, columns),
            (Format::Text(text), [first, second, ..]) => text.write(out, first, Some(second), &self.clock, columns),
        }
    }

    fn write_late(&mut self, out: &mut impl Write, columns: Option<usize>, late: &LateObservation) -> io::Result<()> {
        if !self.filter.accepts_late(late, &mut self.processes) {
            self.summary.filtered += 1;
            return Ok(());
        }
        self.summary.late += 1;
        self.printed += 1;
        match &mut self.format {
            Format::Json => json::write_late(out, late, &self.clock),
            Format::Text(text) => text.write_late(out, late, &self.clock, columns),
        }
    }

    /// The kernel half passes on what may have left a request unanswered; not all of it has.
    fn is_merely_orderly(&self, judged: &Judged) -> bool {
        !self.want_fin && judged.teardown.end == EndKind::Fin && matches!(judged.verdict.cause, Cause::Orderly | Cause::OrderlyUnread)
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
