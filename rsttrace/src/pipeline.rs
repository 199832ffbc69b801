//! The path of an event through user space: decode, join, judge, and on to the outlet. Driven by the live
//! ring or by recorded bytes.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use crate::{
    audit::Tally,
    correlate::{Correlator, Facts, HELD_BACK_NS, Patience},
    decode::Decoder,
    enrich::Processes,
    filter::{Lineage, ProcessInfo},
    follow::Counts,
    join::Joiner,
    model::{Event, Finding, Judged, Names, Party, Record, Seen, Teardown},
    outlet::{Ends, Outlet, People, Story},
    output::summary::LogCounts,
    probe::Counters,
    verdict::{self, timers::Timers},
};

/// How far events of different CPUs, and of an interrupt within another, may be out of order.
const DISORDER_NS: u64 = 1_000_000;

/// Everything between the bytes of an event and a judged record, and the outlet behind it.
#[derive(Debug)]
pub struct Pipeline {
    pub decoder: Decoder,
    pub joiner: Joiner,
    pub processes: Processes,
    pub outlet: Outlet,
    pub timers: Timers,
    /// Processes have the numbers here that the kernel half reports.
    pub numbers_are_ours: bool,
    pub ready: Vec<Record>,
    /// Every event, whatever is shown: for the comparison with the kernel's counters.
    pub tally: Tally,
    /// The application's log, where it is joined with the records.
    pub log: Option<LogJoin>,
    /// Processes that have become another program since somebody looked.
    pub execs: Vec<u32>,
    /// Of records that are written: the next ones' words need no memory of their own.
    spare_words: Vec<String>,
    last_event_ns: u64,
}

/// The join of log lines with records.
#[derive(Debug)]
pub struct LogJoin {
    pub correlator: Correlator<Story>,
    /// Lines that were read.
    pub counts: Counts,
}

/// More records than these do not wait for names that are about to be known.
const MAX_WAITING: usize = 4_096;
/// How long a record waits for its line, which was mostly written before.
const LINE_FOLLOWS_NS: u64 = 100_000_000;

impl LogJoin {
    /// `join_timeout`: how long a record may take to come; `immediate`: lines are read as they are written.
    pub fn new(join_timeout: Duration, immediate: bool) -> Self {
        let join_ns = u64::try_from(join_timeout.as_nanos()).unwrap_or(u64::MAX);
        let record_ns = if immediate { LINE_FOLLOWS_NS } else { LINE_FOLLOWS_NS + HELD_BACK_NS };
        let lag_ns = join_ns.saturating_add(record_ns);
        let entangled_ns = lag_ns.saturating_mul(3);
        let patience = Patience { record_ns, lag_ns, entangled_ns, line_ns: entangled_ns.saturating_add(lag_ns.saturating_mul(2)) };
        Self { correlator: Correlator::new(patience), counts: Counts::default() }
    }

    fn counts(&self, errors_without_line: u64) -> LogCounts {
        let Counts { lines, malformed, too_long } = self.counts;
        LogCounts { lines, malformed, too_long, of_ends: self.correlator.tally(), errors_without_line }
    }
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
    pub fn new(decoder: Decoder, joiner: Joiner, outlet: Outlet) -> Self {
        Self {
            decoder,
            joiner,
            processes: Processes::default(),
            outlet,
            timers: Timers::well_known(),
            numbers_are_ours: true,
            ready: Vec::new(),
            tally: Tally::default(),
            log: None,
            execs: Vec::new(),
            spare_words: Vec::new(),
            last_event_ns: 0,
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
                self.outlet.summary.undecodable += 1;
            }
        }
    }

    /// Tells what has waited long enough. `now_ns`: the present where nothing is left to read;
    /// else the time of the last event, because what completes a story may be among the unread.
    pub fn tick(&mut self, now_ns: Option<u64>) {
        self.outlet.now_ns = now_ns.unwrap_or(self.last_event_ns);
        self.joiner.tick(self.outlet.now_ns, &mut self.ready);
    }

    /// Whether [`Pipeline::write`] has something to do.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || self.next_line_ns().is_some_and(|at_ns| at_ns <= self.outlet.now_ns)
    }

    /// When something is due that waits for nothing but time.
    fn next_line_ns(&self) -> Option<u64> {
        let log = self.log.as_ref().and_then(|log| log.correlator.next_deadline_ns());
        log.into_iter().chain(self.outlet.next_deadline_ns()).min()
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
        let now_ns = self.outlet.now_ns;
        self.write_until(out, columns, now_ns)
    }

    /// Writes what is left, at the end of the run.
    ///
    /// # Errors
    /// What writing returns.
    pub fn finish(&mut self, out: &mut impl Write, columns: Option<usize>) -> io::Result<()> {
        self.joiner.finish(&mut self.ready);
        self.write_until(out, columns, u64::MAX)?;
        self.outlet.tick(out, columns, u64::MAX).map(|_| ())
    }

    fn write_until(&mut self, out: &mut impl Write, columns: Option<usize>, until_ns: u64) -> io::Result<bool> {
        let wrote_folded = self.outlet.tick(out, columns, self.outlet.now_ns)?;
        let before = self.outlet.printed;
        let mut ready = std::mem::take(&mut self.ready);
        for record in ready.drain(..) {
            if self.outlet.done() {
                break;
            }
            let story = self.judge(record);
            match &mut self.log {
                Some(log) => log.correlator.push_record(self.outlet.now_ns, story.facts(), story),
                None => self.tell(out, columns, story)?,
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
                if self.outlet.done() {
                    break;
                }
                self.tell(out, columns, story)?;
            }
            if self.outlet.tell_unmatched(out, columns, &unmatched)? {
                return Ok(true);
            }
        }
        Ok(wrote_folded || self.outlet.printed > before)
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

    fn tell(&mut self, out: &mut impl Write, columns: Option<usize>, story: Story) -> io::Result<()> {
        let tells_names = self.tells_names();
        let mut people = Known { processes: &mut self.processes, tells_names };
        self.outlet.tell(out, columns, story, &mut people)?;
        for Judged { mut teardown, verdict, .. } in self.outlet.spent.drain(..) {
            if self.spare_words.len() < MAX_WAITING {
                self.spare_words.push(verdict.words);
            }
            // Nobody's request is kept for the sake of the memory around it.
            teardown.http = None;
            self.joiner.spare_teardowns.give(teardown);
        }
        Ok(())
    }

    /// Puts the kernel half's counters into the summary.
    pub fn count(&mut self, counters: &Counters) {
        let Outlet { summary, errors_without_line, .. } = &mut self.outlet;
        summary.orderly_in_kernel = counters.orderly;
        summary.lost_records = counters.lost_records;
        summary.skipped = counters.skipped.clone();
        summary.lost_by_hook = rsttrace_common::hook::NAMES.iter().copied().zip(counters.lost_by_hook).collect();
        summary.evicted = counters.untracked + self.joiner.evicted();
        summary.log = self.log.as_ref().map(|log| log.counts(*errors_without_line));
    }

    /// Whether anything that is written, or chosen by, needs more of processes than the kernel half reports.
    pub fn tells_names(&self) -> bool {
        self.numbers_are_ours && (self.outlet.tells_names() || self.outlet.filter.asks_for_places() || self.log.is_some())
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

/// The processes of this host.
struct Known<'a> {
    processes: &'a mut Processes,
    tells_names: bool,
}

impl Lineage for Known<'_> {
    fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
        self.processes.process(tgid)
    }

    fn at(&mut self, party: Party, at_ns: u64) -> Option<Arc<ProcessInfo>> {
        self.processes.at(party, at_ns)
    }
}

impl People for Known<'_> {
    fn name(&mut self, judged: &mut Judged) {
        if self.tells_names {
            judged.names = self.processes.names(&judged.teardown);
        } else {
            judged.names.nat = self.processes.nat(&judged.teardown);
        }
    }
}
