//! The counts of a run, and how they are said at its end.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use jiff::Timestamp;

use super::units::grouped;
use crate::model::{EndKind, Teardown};

/// What a run amounted to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub started: Timestamp,
    pub stopped: Timestamp,
    /// Records were chosen; orderly ends are counted for the whole host all the same.
    pub filters: bool,
    ends: HashMap<EndKind, u64>,
    pub late: u64,
    pub orderly: u64,
    pub lost_by_hook: Vec<(&'static str, u64)>,
    /// Of the lost events, those whose record is missing.
    pub lost_records: u64,
    pub undecodable: u64,
    pub evicted: u64,
    pub filtered: u64,
}

impl Summary {
    pub fn count(&mut self, teardown: &Teardown) {
        *self.ends.entry(teardown.end).or_default() += 1;
    }

    /// Every kind of end, also those that did not occur.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        EndKind::ALL.iter().map(|kind| (kind.name(), self.of(*kind)))
    }

    pub fn of(&self, kind: EndKind) -> u64 {
        self.ends.get(&kind).copied().unwrap_or(0)
    }

    pub fn lost_total(&self) -> u64 {
        self.lost_by_hook.iter().map(|(_, n)| n).sum()
    }

    /// Says it in a few lines, the answer first.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let shown: u64 = self.ends.values().sum();
        let orderly = self.of(EndKind::Fin) + if self.filters { 0 } else { self.orderly };
        let words = [
            (self.of(EndKind::ResetReceived), "RST received"),
            (self.of(EndKind::ResetSent), "RST sent"),
            (self.of(EndKind::Timeout), "timed out"),
            (self.of(EndKind::Error), "failed with an error"),
        ];
        let mut parts = vec![format!("{} orderly", grouped(orderly))];
        parts.extend(words.iter().map(|(n, word)| format!("{} {word}", grouped(*n))));
        let ended = if self.filters { shown } else { shown + self.orderly };
        writeln!(out, "{} sockets ended: {}", grouped(ended), parts.join(", "))?;
        if self.filters && self.orderly > 0 {
            writeln!(out, "{} more ended in order on the whole host", grouped(self.orderly))?;
        }
        if self.late > 0 {
            let were = if self.late == 1 { "error was" } else { "errors were" };
            writeln!(out, "{} {were} noticed after the record was printed", grouped(self.late))?;
        }
        if self.filtered > 0 {
            let records = if self.filtered == 1 { "record" } else { "records" };
            writeln!(out, "{} {records} did not match the filters", grouped(self.filtered))?;
        }
        let lost = self.lost_total();
        if lost == 0 && self.undecodable == 0 && self.evicted == 0 {
            return writeln!(out, "tracer lost 0 events");
        }
        if lost > 0 {
            let by_hook: Vec<String> =
                self.lost_by_hook.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{} {name}", grouped(*n))).collect();
            writeln!(
                out,
                "tracer lost {} events, and with them {} records ({}): a larger --buffer helps",
                grouped(lost),
                grouped(self.lost_records),
                by_hook.join(", ")
            )?;
        }
        if self.evicted > 0 {
            writeln!(out, "{} sockets found no room: a larger --max-sockets helps", grouped(self.evicted))?;
        }
        if self.undecodable > 0 {
            writeln!(out, "{} events could not be decoded: please report this", grouped(self.undecodable))?;
        }
        Ok(())
    }
}
