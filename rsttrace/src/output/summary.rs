//! The counts of a run, and how they are said at its end.

use std::{
    cmp::Reverse,
    io::{self, Write},
    net::IpAddr,
};

use foldhash::HashMap;
use jiff::Timestamp;

use crate::{
    audit::{Agreement, Audit, Counter, Entry},
    model::{Cause, EndKind, Harm, Judged, LogTally},
    units::{counted, grouped, size},
};

/// What a run amounted to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub started: Timestamp,
    pub stopped: Timestamp,
    /// Records were chosen; orderly ends are counted for the whole host all the same.
    pub filters: bool,
    ends: HashMap<EndKind, u64>,
    causes: HashMap<Cause, u64>,
    harms: HashMap<Harm, u64>,
    losses: Losses,
    /// Connections that may have lost data, and are not known to have.
    possible: u64,
    pub late: u64,
    /// Orderly ends that stayed in the kernel.
    pub orderly_in_kernel: u64,
    /// Ends that might have hurt, and turned out orderly.
    pub orderly_here: u64,
    pub lost_by_hook: Vec<(&'static str, u64)>,
    /// Of the lost events, those whose record is missing.
    pub lost_records: u64,
    /// Runs of our programs that the kernel skipped, by hook.
    pub skipped: Vec<(&'static str, u64)>,
    /// Of a file: runs that do not tell what they lost, because their last line is not there.
    pub untold_runs: u64,
    /// Of a file: ends that `--rate-limit` kept from being records.
    pub folded: u64,
    pub undecodable: u64,
    pub evicted: u64,
    pub filtered: u64,
    /// The join with the application's log, where there is one.
    pub log: Option<LogCounts>,
    /// The comparison with the kernel's own counters, once the run is over.
    pub audit: Option<Audit>,
}

/// What became of the lines of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// All that were read.
    pub lines: u64,
    pub malformed: u64,
    pub too_long: u64,
    pub of_ends: LogTally,
    /// Shown records of an error that a call returned, and no line about it.
    pub errors_without_line: u64,
}

/// Connections that lost data.
#[derive(Clone, Debug, Default)]
struct Losses {
    connections: u64,
    bytes: u64,
    causes: HashMap<Cause, u64>,
    /// By the other end's address; no new one beyond [`MAX_REMOTES`].
    remotes: HashMap<IpAddr, u64>,
}

/// A flood of addresses must not become a flood of memory.
const MAX_REMOTES: usize = 4_096;

impl Summary {
    /// Counts the shown halves of one connection.
    pub fn count(&mut self, halves: &[Judged]) {
        for Judged { teardown, verdict, .. } in halves {
            *self.ends.entry(teardown.end).or_default() += 1;
            *self.causes.entry(verdict.cause).or_default() += 1;
            *self.harms.entry(verdict.harm).or_default() += 1;
        }
        // Both tell of the same bytes.
        let worst = halves.iter().max_by_key(|judged| judged.verdict.damage.lost());
        if let Some(Judged { teardown, verdict, .. }) = worst.filter(|judged| judged.verdict.harm == Harm::Lost) {
            self.losses.connections += 1;
            self.losses.bytes += verdict.damage.lost();
            *self.losses.causes.entry(verdict.cause).or_default() += 1;
            let remotes = &mut self.losses.remotes;
            if remotes.len() < MAX_REMOTES || remotes.contains_key(&teardown.remote.addr) {
                *remotes.entry(teardown.remote.addr).or_default() += 1;
            }
        } else if halves.iter().any(|judged| judged.verdict.harm == Harm::Possible) {
            self.possible += 1;
        }
    }

    /// All orderly ends that are not records.
    pub fn orderly(&self) -> u64 {
        self.orderly_in_kernel + self.orderly_here
    }

    /// Every cause that occurred.
    pub fn causes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.causes.iter().map(|(cause, n)| (cause.name(), *n))
    }

    /// Every degree of harm, also those that did not occur.
    pub fn harms(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Harm::ALL.iter().map(|harm| (harm.name(), self.harms.get(harm).copied().unwrap_or(0)))
    }

    fn answer(&self) -> String {
        let Losses { connections, bytes, causes, remotes } = &self.losses;
        if *connections == 0 {
            return match self.possible {
                0 => "no connection is known to have lost data".to_owned(),
                n => format!("no connection is known to have lost data; {} may have", grouped(n)),
            };
        }
        let mut words = format!("{} lost data ({})", counted(*connections, "connection"), size(*bytes));
        if let Some((cause, n)) = most(causes) {
            words += &if n == *connections { format!(": {cause}") } else { format!(", most by {cause} ({})", grouped(n)) };
        }
        if let Some((remote, n)) = most(remotes).filter(|_| *connections > 1) {
            words += &format!("; most with {remote} ({})", grouped(n));
        }
        words
    }

    /// Every kind of end, also those that did not occur.
    pub fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        EndKind::ALL.iter().map(|kind| (kind.name(), self.of(*kind)))
    }

    /// The three most frequent causes beside order, and where to read on.
    fn most_causes(&self) -> Option<String> {
        let mut causes: Vec<_> = self.causes.iter().filter(|(cause, _)| !matches!(cause, Cause::Orderly | Cause::OrderlyUnread)).collect();
        causes.sort_by_key(|(cause, n)| (Reverse(**n), **cause));
        let (first, _) = causes.first()?;
        let words: Vec<String> = causes.iter().take(3).map(|(cause, n)| format!("{cause} {}", grouped(**n))).collect();
        Some(format!("most: {}    (rsttrace explain {first})", words.join(", ")))
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
        let of_host = self.orderly();
        let cause = |cause| self.causes.get(&cause).copied().unwrap_or(0);
        let in_order = cause(Cause::Orderly) + cause(Cause::OrderlyUnread);
        let orderly = in_order + if self.filters { 0 } else { of_host };
        if shown > in_order {
            writeln!(out, "{}", self.answer())?;
        }
        let words = [
            (self.of(EndKind::Fin).saturating_sub(in_order), "closed with a request unanswered"),
            (self.of(EndKind::ResetReceived), "RST received"),
            (self.of(EndKind::ResetSent), "RST sent"),
            (self.of(EndKind::Timeout), "timed out"),
            (self.of(EndKind::Error), "failed with an error"),
        ];
        let mut parts = vec![format!("{} orderly", grouped(orderly))];
        parts.extend(words.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{} {word}", grouped(*n))));
        let ended = if self.filters { shown } else { shown + of_host };
        let harm: Vec<String> =
            Harm::ALL.iter().rev().map(|harm| format!("{} {harm}", grouped(self.harms.get(harm).copied().unwrap_or(0)))).collect();
        writeln!(out, "{} ended: {}", counted(ended, "socket"), parts.join(", "))?;
        if shown > 0 {
            writeln!(out, "harm: {}", harm.join(", "))?;
        }
        if let Some(most) = self.most_causes() {
            writeln!(out, "{most}")?;
        }
        if self.filters && of_host > 0 {
            writeln!(out, "{} more ended in order on the whole host", grouped(of_host))?;
        }
        if self.late > 0 {
            let were = if self.late == 1 { "error was" } else { "errors were" };
            writeln!(out, "{} {were} noticed after the record was printed", grouped(self.late))?;
        }
        if self.filtered > 0 {
            let records = if self.filtered == 1 { "record" } else { "records" };
            writeln!(out, "{} {records} did not match the filters", grouped(self.filtered))?;
        }
        if let Some(log) = &self.log {
            writeln!(out, "{}", log_words(log))?;
        }
        let lost = self.lost_total();
        let skipped: Vec<String> = self.skipped.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{} {name}", grouped(*n))).collect();
        if !skipped.is_empty() {
            writeln!(out, "the kernel skipped runs within runs: as many events may be missing ({})", skipped.join(", "))?;
        }
        if self.folded > 0 {
            writeln!(out, "{} more were folded by --rate-limit when this was saved, and are not counted", grouped(self.folded))?;
        }
        if self.untold_runs > 0 {
            let runs = if self.untold_runs == 1 {
                "a run's last line was".to_owned()
            } else {
                format!("{} last lines were", grouped(self.untold_runs))
            };
            writeln!(out, "what the tracer lost is not known: {runs} not read")?;
        } else if lost == 0 && self.undecodable == 0 && self.evicted == 0 {
            match self.audit.as_ref().and_then(agreement) {
                Some(words) => writeln!(out, "tracer lost 0 events; {words}")?,
                None => writeln!(out, "tracer lost 0 events")?,
            }
            return self.write_differences(out);
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
        if let Some(words) = self.audit.as_ref().and_then(agreement) {
            writeln!(out, "{words}")?;
        }
        self.write_differences(out)
    }

    /// Where the kernel's counters and our events differ, one line each.
    fn write_differences(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let several = audit.namespaces() > 1;
        let of_netns = |netns: u32| if several { format!(" in network namespace {netns}") } else { String::new() };
        let mut differences: Vec<_> = audit.entries.iter().filter_map(|entry| Some((entry, entry.words()?))).collect();
        // What nothing accounts for comes first.
        differences.sort_by_key(|(entry, _)| matches!(entry.agreement, Agreement::Explained(_)));
        for (Entry { netns, counter, kernel, ours, .. }, words) in differences.iter().take(MAX_DIFFERENCES) {
            let (kernel, ours) = (grouped(*kernel), grouped(*ours));
            writeln!(out, "{}{}: {kernel} by the kernel, {ours} by our events: {words}", counter.name(), of_netns(*netns))?;
        }
        if let Some(more @ 1..) = differences.len().checked_sub(MAX_DIFFERENCES) {
            writeln!(out, "{} more counters differ: --json has them all", grouped(more as u64))?;
        }
        for (netns, n) in audit.foreign.iter().flatten().take(MAX_DIFFERENCES) {
            let resets = if *n == 1 { "RST" } else { "RSTs" };
            writeln!(
                out,
                "{} {resets} arrived over loopback{} that no socket there sent: a packet filter made them, unless NAT lies between",
                grouped(*n),
                of_netns(*netns)
            )?;
        }
        match audit.not_audited.len() as u64 {
            0 => Ok(()),
            1 => writeln!(out, "the kernel's counters of 1 network namespace could not be read: not compared"),
            n => writeln!(out, "the kernel's counters of {} network namespaces could not be read: not compared", grouped(n)),
        }
    }
}

/// Differences that are said in text.
const MAX_DIFFERENCES: usize = 10;

/// Whether the kernel's counters agree with ours; nothing where none was compared.
fn agreement(audit: &Audit) -> Option<String> {
    let agrees = |counter: Counter| audit.entries.iter().all(|entry| entry.counter != counter || entry.agreement == Agreement::Equal);
    let total = |counter| audit.entries.iter().filter(|entry| entry.counter == counter).map(|entry| entry.kernel).sum::<u64>();
    let equal: Vec<String> = Counter::ALL
        .into_iter()
        .filter(|counter| agrees(*counter) && total(*counter) > 0)
        .map(|counter| format!("{} {}", counter.name(), grouped(total(counter))))
        .collect();
    let list = if equal.is_empty() { String::new() } else { format!(" ({})", equal.join(", ")) };
    let across = match audit.namespaces() {
        0 => return None,
        1 => String::new(),
        n => format!(" in {} network namespaces", grouped(n)),
    };
    let unexplained = audit.entries.iter().any(|entry| matches!(entry.agreement, Agreement::Unexplained(_)));
    Some(match (unexplained, audit.entries.iter().all(|entry| entry.agreement == Agreement::Equal)) {
        (_, true) => format!("the kernel's own counters agree{across}{list}"),
        (false, false) => format!("the kernel's own counters are accounted for{across}{list}"),
        (true, false) => {
            let equal = if equal.is_empty() { String::new() } else { format!("; these do: {}", equal.join(", ")) };
            format!("not all of the kernel's own counters agree{equal}")
        }
    })
}

/// The most frequent key, if there is one.
fn most<K: Copy>(counts: &HashMap<K, u64>) -> Option<(K, u64)> {
    let (key, most) = counts.iter().max_by_key(|(_, n)| **n)?;
    (counts.values().filter(|n| *n == most).count() == 1).then_some((*key, *most))
}

/// "log: 41 lines about ends: 38 joined, 2 ambiguous, 1 without a record"
pub fn log_words(log: &LogCounts) -> String {
    let ends = &log.of_ends;
    let mut parts = vec![format!("{} joined", grouped(ends.joined))];
    let others =
        [(ends.ambiguous, "ambiguous"), (ends.without_record, "without a record"), (ends.no_connection, "without a TCP connection")];
    parts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{} {word}", grouped(*n))));
    let mut words = format!("log: {} about ends of connections: {}", counted(ends.lines, "line"), parts.join(", "));
    let unread = [(log.malformed, "lines not understood"), (log.too_long, "too long"), (log.errors_without_line, "errors without a line")];
    unread.iter().filter(|(n, _)| *n > 0).for_each(|(n, word)| words += &format!("; {} {word}", grouped(*n)));
    words
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::input::json::{Saved, read};

    fn end(harm: Harm, lost: u64, cause: Cause, remote: &str) -> Judged {
        let Ok(Saved::Teardown(mut judged)) = read(include_bytes!("../../tests/corpus/record.json")) else { panic!("no record") };
        judged.verdict.harm = harm;
        judged.verdict.damage.undelivered = lost;
        judged.verdict.cause = cause;
        judged.teardown.remote.addr = remote.parse().unwrap();
        *judged
    }

    fn answer(connections: &[&[Judged]]) -> String {
        let mut summary = Summary::default();
        connections.iter().for_each(|halves| summary.count(halves));
        summary.answer()
    }

    #[test]
    fn a_connection_with_both_ends_here_is_one() {
        let here = |harm, lost| end(harm, lost, Cause::PeerAbortIdle, "127.0.0.1");
        assert_eq!(answer(&[&[here(Harm::Possible, 0), here(Harm::Possible, 0)]]), "no connection is known to have lost data; 1 may have");
        assert_eq!(answer(&[&[here(Harm::None, 0), here(Harm::Possible, 0)], &[here(Harm::Possible, 0)]]), {
            "no connection is known to have lost data; 2 may have"
        });
        let lost = "1 connection lost data (7 B): peer-abort-idle";
        assert_eq!(answer(&[&[here(Harm::Lost, 7), here(Harm::Lost, 7)]]), lost);
        assert_eq!(answer(&[&[here(Harm::Possible, 0), here(Harm::Lost, 7)]]), lost);
        assert_eq!(answer(&[&[here(Harm::None, 0), here(Harm::Unknown, 0)]]), "no connection is known to have lost data");
    }

    #[test]
    fn most_is_more_than_any_other() {
        let lost = |cause, remote| [end(Harm::Lost, 5, cause, remote)];
        let (idle, race) = (Cause::PeerAbortIdle, Cause::KeepaliveRace);
        let [a, b, c] = [lost(idle, "10.0.0.1"), lost(race, "10.0.0.2"), lost(idle, "10.0.0.2")];
        assert_eq!(answer(&[&a, &b]), "2 connections lost data (10 B)");
        assert_eq!(answer(&[&a, &b, &c]), "3 connections lost data (15 B), most by peer-abort-idle (2); most with 10.0.0.2 (2)");
        assert_eq!(answer(&[&a, &c]), "2 connections lost data (10 B): peer-abort-idle");
    }

    fn entry(netns: u32, counter: Counter, kernel: u64, ours: u64, agreement: Agreement) -> Entry {
        Entry { netns, counter, kernel, ours, agreement }
    }

    /// Every counter of a namespace: equal, but for one.
    fn audit_of(netns: u32, differs: Counter, agreement: Agreement) -> Vec<Entry> {
        let of = |counter| match counter {
            _ if counter == differs => entry(netns, counter, 6, 1, agreement.clone()),
            Counter::EstabResets => entry(netns, counter, 1_054, 1_054, Agreement::Equal),
            _ => entry(netns, counter, 0, 0, Agreement::Equal),
        };
        Counter::ALL.map(of).into()
    }

    fn written(audit: Audit) -> String {
        let mut out = Vec::new();
        let summary = Summary { audit: Some(audit), ..Summary::default() };
        summary.write(&mut out).unwrap();
        String::from_utf8(out).unwrap().lines().skip(1).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn agreement_takes_half_a_line() {
        let audit = Audit { entries: audit_of(1, Counter::OutRsts, Agreement::Equal), ..Audit::default() };
        assert_eq!(written(audit), "tracer lost 0 events; the kernel's own counters agree (EstabResets 1,054, OutRsts 6)");
        assert_eq!(written(Audit::default()), "tracer lost 0 events");
    }

    #[test]
    fn a_difference_has_a_line_with_its_blind_spot() {
        let entries = audit_of(1, Counter::AttemptFails, Agreement::Explained("5 of them unseen".to_owned()));
        let foreign = Some(BTreeMap::from([(1, 7)]));
        assert_eq!(
            written(Audit { entries, foreign, ..Audit::default() }),
            "tracer lost 0 events; the kernel's own counters are accounted for (EstabResets 1,054)\n\
             AttemptFails: 6 by the kernel, 1 by our events: 5 of them unseen\n\
             7 RSTs arrived over loopback that no socket there sent: a packet filter made them, unless NAT lies between"
        );
    }

    #[test]
    fn what_is_not_explained_comes_first_and_names_its_namespace() {
        let mut entries = audit_of(1, Counter::AttemptFails, Agreement::Explained("unseen".to_owned()));
        entries.extend(audit_of(2, Counter::OutRsts, Agreement::Unexplained("not explained".to_owned())));
        assert_eq!(
            written(Audit { entries, not_audited: vec![3], ..Audit::default() }),
            "tracer lost 0 events; not all of the kernel's own counters agree; these do: EstabResets 2,108\n\
             OutRsts in network namespace 2: 6 by the kernel, 1 by our events: not explained\n\
             AttemptFails in network namespace 1: 6 by the kernel, 1 by our events: unseen\n\
             the kernel's counters of 1 network namespace could not be read: not compared"
        );
    }

    #[test]
    fn a_host_full_of_differences_is_summed_up() {
        let entries = (0..50).flat_map(|netns| audit_of(netns, Counter::OutRsts, Agreement::Explained("unseen".to_owned()))).collect();
        let text = written(Audit { entries, ..Audit::default() });
        assert_eq!(text.lines().count(), 1 + MAX_DIFFERENCES + 1, "{text}");
        assert!(text.ends_with("40 more counters differ: --json has them all"), "{text}");
    }
}
