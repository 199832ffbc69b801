//! The path of an event through user space: decode, join, enrich, filter, output. Driven by the
//! live ring or by recorded bytes.

use std::io::{self, Write};

use crate::{
    decode::Decoder,
    enrich::Processes,
    filter::Filter,
    join::Joiner,
    model::{Record, Seen},
    output::{WallClock, json, summary::Summary, text::TextFormat},
    probe::Counters,
};

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
    pub printed: u64,
    pub ready: Vec<Record>,
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
            printed: 0,
            ready: Vec::new(),
            last_event_ns: 0,
        }
    }

    /// Takes one event's bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.decoder.decode(bytes) {
            Ok(event) => {
                self.last_event_ns = self.last_event_ns.max(event.ts_ns());
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
        for mut record in std::mem::take(&mut self.ready) {
            if self.done() {
                break;
            }
            self.find_owner(&mut record);
            if !self.filter.accepts(&record, &mut self.processes) {
                self.summary.filtered += 1;
                continue;
            }
            match &record {
                Record::Teardown(teardown) => self.summary.count(teardown),
                Record::Late(_) => self.summary.late += 1,
            }
            self.printed += 1;
            match &mut self.format {
                Format::Json => json::write_record(out, &record, &self.clock)?,
                Format::Text(text) => text.write(out, &record, &self.clock, columns)?,
            }
        }
        Ok(self.printed > before)
    }

    /// The record limit is reached.
    pub fn done(&self) -> bool {
        self.limit.is_some_and(|limit| self.printed >= limit)
    }

    /// Puts the kernel half's counters into the summary.
    pub fn count(&mut self, counters: &Counters) {
        self.summary.orderly = counters.orderly;
        self.summary.lost_records = counters.lost_records;
        self.summary.lost_by_hook = rsttrace_common::hook::NAMES.iter().copied().zip(counters.lost_by_hook).collect();
        self.summary.evicted = counters.untracked + self.joiner.evicted();
    }

    /// A socket that still lives, and that nobody used since it was accepted, is looked up.
    fn find_owner(&mut self, record: &mut Record) {
        if let Record::Teardown(teardown) = record
            && teardown.owner.is_none()
            && teardown.seen == Seen::NotYet
            && let Some(inode) = teardown.inode
        {
            teardown.owner = self.processes.holder(inode);
        }
    }
}
