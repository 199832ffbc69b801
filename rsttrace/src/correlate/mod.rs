//! Log lines and records brought together. A line and a record belong together if worker, side, address,
//! error, call and time fit, and if that holds in every best way to bring all lines and records of that
//! moment together. What stays ambiguous is told as ambiguous. Pure: time comes in as an argument.

mod align;
mod clock;
mod facts;

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use self::align::{align, can_work_out};
pub use self::{
    clock::{Arrival, HELD_BACK_NS, LineClock},
    facts::{Facts, Window},
};
use crate::model::{Fault, Finding, LogLine, LogTally, Remote, Side};

/// How long to wait, in nanoseconds of the time that is handed in.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A record for the lines that may be about it.
    pub record_ns: u64,
    /// A line for all records that it may be about, before it is taken for certain: some come later
    /// than others.
    pub lag_ns: u64,
    /// A record that could be told, for lines that came later and are about others as well.
    pub entangled_ns: u64,
    /// A line for any record.
    pub line_ns: u64,
}

/// Lines and records held at a time; beyond, the oldest are told as they stand.
const MAX_HELD: usize = 16_384;
/// Lines that are told at one record: more help nobody.
const MAX_TOLD: usize = 9;
/// Releases are compared with those of so long before.
const RECENT_NS: u64 = 10_000_000_000;
/// Connections of the application whose lines are remembered, to recognise a line that only goes on.
const MAX_REMEMBERED: usize = 4_096;

#[derive(Debug)]
struct Held<T> {
    since_ns: u64,
    due_ns: u64,
    halves: Vec<Half>,
    payload: T,
}

/// One socket's end.
#[derive(Debug)]
struct Half {
    facts: Facts,
    /// From every book that has been asked.
    finding: Finding,
    asked: [bool; Book::ALL.len()],
}

impl Half {
    fn new(facts: Facts) -> Self {
        Self { facts, finding: Finding::Nothing, asked: [false; Book::ALL.len()] }
    }

    fn is_settled(&self) -> bool {
        self.asked == [true; Book::ALL.len()]
    }

    /// What is certain in one book outweighs what is not in another.
    fn take(&mut self, book: Book, found: Finding) {
        self.asked[book as usize] = true;
        self.finding = match (std::mem::take(&mut self.finding), found) {
            (Finding::About(mut lines), Finding::About(more)) => {
                lines.extend(more);
                Finding::About(lines)
            }
            (about @ Finding::About(_), _) | (_, about @ Finding::About(_)) => about,
            (Finding::Ambiguous(mut lines), Finding::Ambiguous(more)) => {
                lines.extend(more);
                Finding::Ambiguous(lines)
            }
            (Finding::Nothing, other) | (other, Finding::Nothing) => other,
        };
    }
}

/// What an application writes into one of these says it once; both may have a line about one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Book {
    Errors,
    Accesses,
}

/// Where a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub book: Book,
    /// Lines of one file are in the order in which they were written.
    pub file: usize,
}

impl Book {
    pub const ALL: [Self; 2] = [Self::Errors, Self::Accesses];
}

impl<T> Held<T> {
    fn is_settled(&self) -> bool {
        self.halves.iter().all(Half::is_settled)
    }
}

#[derive(Debug)]
struct Waiting {
    origin: Origin,
    line: Arc<LogLine>,
    window: Window,
    /// All records that it may be about have come by then.
    ripe_ns: u64,
    due_ns: u64,
    /// Told as one of several.
    ambiguous: Cell<bool>,
}

/// The connection that a line is about, by the application's own number.
type Topic = (Option<u32>, u64, Option<Side>, Option<String>);

fn topic(line: &LogLine) -> Option<Topic> {
    Some((line.process, line.connection?, line.side, line.upstream_text.clone().filter(|_| line.side == Some(Side::Upstream))))
}

/// Lines and records that wait for each other, both bounded. `T` is what a record is told with.
#[derive(Debug)]
pub struct Correlator<T> {
    patience: Patience,
    held: VecDeque<Held<T>>,
    lines: VecDeque<Waiting>,
    /// When each process let go of sockets, of late.
    releases: HashMap<u32, BTreeSet<u64>>,
    /// Topics of joined lines, newest last.
    joined: VecDeque<Topic>,
    tally: LogTally,
    unmatched: Vec<Arc<LogLine>>,
    /// The files of a book are pieces of one log, in order.
    pieces: [bool; Book::ALL.len()],
}

/// A half of a held record: the record's index, and the half's.
type At = (usize, usize);

impl<T> Correlator<T> {
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            held: VecDeque::new(),
            lines: VecDeque::new(),
            releases: HashMap::new(),
            joined: VecDeque::new(),
            tally: LogTally::default(),
            unmatched: Vec::new(),
            pieces: [false; Book::ALL.len()],
        }
    }

    pub fn tally(&self) -> LogTally {
        self.tally
    }

    /// Whether all files of a book are pieces of one log, and their lines come in its order.
    pub fn set_pieces(&mut self, book: Book, pieces: bool) {
        self.pieces[book as usize] = pieces;
    }

    /// Takes a record: one [`Facts`] for each of its sockets.
    pub fn push_record(&mut self, now_ns: u64, facts: Vec<Facts>, payload: T) {
        for facts in &facts {
            if let Some((process, at_ns)) = facts.released() {
                self.note_release(process, at_ns);
            }
        }
        let halves = facts.into_iter().map(Half::new).collect();
        self.held.push_back(Held { since_ns: now_ns, due_ns: now_ns.saturating_add(self.patience.record_ns), halves, payload });
    }

    /// Takes a line; `window`: when what it is about happened.
    pub fn push_line(&mut self, now_ns: u64, origin: Origin, line: LogLine, window: Window) {
        self.tally.lines += 1;
        if line.fault == Fault::NoConnection || line.side == Some(Side::Upstream) && matches!(line.upstream, Some(Remote::Unix(_))) {
            self.tally.no_connection += 1;
            return;
        }
        let ripe_ns = now_ns.max(window.to_ns).saturating_add(self.patience.lag_ns);
        let due_ns = now_ns.saturating_add(self.patience.line_ns);
        self.lines.push_back(Waiting { origin, line: Arc::new(line), window, ripe_ns, due_ns, ambiguous: Cell::new(false) });
    }

    /// When [`Correlator::tick`] has something to do next.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let record = self.held.iter().filter(|held| !held.is_settled()).map(|held| held.due_ns).min();
        let crowded = self.lines.len() > MAX_HELD;
        let line = self.lines.front().map(|waiting| if crowded { 0 } else { waiting.due_ns });
        [record, line].into_iter().flatten().min()
    }

    /// Tells what has waited long enough, in the order in which it came.
    pub fn tick(&mut self, now_ns: u64, told: &mut impl FnMut(T, Vec<Finding>)) {
        for record in 0..self.held.len() {
            let crowded = self.held.len() - record > MAX_HELD;
            if self.held[record].due_ns <= now_ns || crowded {
                self.settle_record(record, now_ns, crowded);
            }
        }
        while let Some(front) = self.held.pop_front_if(|held| held.is_settled()) {
            told(front.payload, front.halves.into_iter().map(|half| half.finding).collect());
        }
        while let Some(line) = self.lines.pop_front_if(|line| line.due_ns <= now_ns) {
            self.expire(line);
        }
        for _ in MAX_HELD..self.lines.len() {
            if let Some(line) = self.lines.pop_front() {
                self.expire(line);
            }
        }
    }

    /// Lines that no record fits, since the last call.
    pub fn take_unmatched(&mut self) -> Vec<Arc<LogLine>> {
        std::mem::take(&mut self.unmatched)
    }

    fn expire(&mut self, waiting: Waiting) {
        let goes_on = topic(&waiting.line).is_some_and(|topic| self.joined.contains(&topic));
        if waiting.ambiguous.get() {
            self.tally.ambiguous += 1;
        } else if goes_on {
            self.tally.joined += 1;
        } else {
            self.tally.without_record += 1;
            self.unmatched.push(waiting.line);
        }
    }

    fn settle_record(&mut self, record: usize, now_ns: u64, now_or_never: bool) {
        for half in 0..self.held[record].halves.len() {
            for book in Book::ALL {
                if !self.held[record].halves[half].asked[book as usize] {
                    self.settle_half((record, half), book, now_ns, now_or_never);
                }
            }
        }
    }

    /// Settles a socket's end, with all others that the same lines may be about.
    fn settle_half(&mut self, at: At, book: Book, now_ns: u64, now_or_never: bool) {
        if !self.lines.iter().any(|waiting| waiting.origin.book == book) {
            return self.held[at.0].halves[at.1].take(book, Finding::Nothing);
        }
        let (lines, halves) = self.entangled_with(at, book);
        if lines.is_empty() {
            self.held[at.0].halves[at.1].take(book, Finding::Nothing);
            return;
        }
        let unripe = |&line: &usize| self.lines[line].ripe_ns > now_ns && !self.names_one_of(line, &halves);
        let ripe_ns = lines.iter().filter(|line| unripe(line)).map(|&line| self.lines[line].ripe_ns).max();
        let Some(ripe_ns) = ripe_ns else { return self.settle(&lines, &halves, book, true) };
        let last_ns = self.held[at.0].since_ns.saturating_add(self.patience.entangled_ns);
        if now_or_never || now_ns >= last_ns {
            return self.settle(&lines, &halves, book, false);
        }
        for (record, _) in halves {
            let held = &mut self.held[record];
            let last_ns = held.since_ns.saturating_add(self.patience.entangled_ns);
            held.due_ns = ripe_ns.min(last_ns).max(held.due_ns);
        }
    }

    /// A line that fits one record alone, and by name, waits for no other.
    fn names_one_of(&self, line: usize, halves: &[At]) -> bool {
        let mut fitting = halves.iter().map(|&at| self.facts(at)).filter(|facts| self.fits(line, facts));
        fitting.next().is_some_and(|facts| facts.is_named_by(&self.lines[line].line)) && fitting.next().is_none()
    }

    /// Lines of a book that may be about a half, the other halves that they may be about, and so on.
    fn entangled_with(&self, at: At, book: Book) -> (Vec<usize>, Vec<At>) {
        let mut lines = Vec::new();
        let mut halves = vec![at];
        let mut known_lines: Vec<bool> = self.lines.iter().map(|waiting| waiting.origin.book != book).collect();
        let mut known_halves = HashSet::from([at]);
        let mut looked_at = 0;
        while looked_at < halves.len() {
            let facts = self.facts(halves[looked_at]);
            looked_at += 1;
            for (index, known) in known_lines.iter_mut().enumerate() {
                if *known || !self.fits(index, facts) {
                    continue;
                }
                *known = true;
                lines.push(index);
                for (record, held) in self.held.iter().enumerate() {
                    for (number, half) in held.halves.iter().enumerate() {
                        let at = (record, number);
                        if !half.asked[book as usize] && !known_halves.contains(&at) && self.fits(index, &half.facts) {
                            known_halves.insert(at);
                            halves.push(at);
                        }
                    }
                }
            }
        }
        lines.sort_unstable();
        halves.sort_unstable_by_key(|&at| self.facts(at).moment());
        (lines, halves)
    }

    fn facts(&self, (record, half): At) -> &Facts {
        &self.held[record].halves[half].facts
    }

    fn fits(&self, line: usize, facts: &Facts) -> bool {
        let waiting = &self.lines[line];
        if !facts.fits(&waiting.line, waiting.window, 0) {
            return false;
        }
        // What a worker says of an upstream's connection it says right before it lets go of that, and
        // of no other in between; before a client's it lets go of the upstream's.
        let since = if waiting.line.side == Some(Side::Upstream) { self.release_before(facts) } else { None };
        since.is_none_or(|since_ns| facts.fits(&waiting.line, waiting.window, since_ns))
    }

    fn note_release(&mut self, process: u32, at_ns: u64) {
        if self.releases.len() >= MAX_REMEMBERED {
            self.releases.retain(|_, releases| releases.last().is_some_and(|&last_ns| last_ns.saturating_add(RECENT_NS) > at_ns));
        }
        let releases = self.releases.entry(process).or_default();
        releases.insert(at_ns);
        let newest_ns = releases.last().copied().unwrap_or(at_ns);
        *releases = releases.split_off(&newest_ns.saturating_sub(RECENT_NS));
    }

    /// When the same process last let go of a socket before this one.
    fn release_before(&self, facts: &Facts) -> Option<u64> {
        let (process, at_ns) = facts.released()?;
        self.releases.get(&process)?.range(..at_ns).next_back().copied()
    }

    /// `certainly`: no other record that these lines may be about is still to come.
    fn settle(&mut self, lines: &[usize], halves: &[At], book: Book, certainly: bool) {
        let ordered = self.is_in_order(lines, halves);
        // What was told as ambiguous before may have been about a record that is gone: it would take another's place.
        let fresh = lines.iter().all(|&line| !self.lines[line].ambiguous.get());
        if !certainly || !fresh || !can_work_out(lines.len(), halves.len(), ordered) {
            return self.leave_ambiguous(lines, halves, book);
        }
        let candidates = align(lines.len(), halves.len(), ordered, |line, half| self.fits(lines[line], self.facts(halves[half])));
        let mut found = vec![Vec::new(); halves.len()];
        for (line, candidates) in candidates.iter().enumerate() {
            candidates.records.iter().for_each(|&half| found[half].push(line));
        }
        let certain = |line: usize| candidates[line].always && candidates[line].records.len() == 1;
        // Several lines about one connection of the application, and about no other socket.
        let one_topic = |of_half: &[usize]| {
            let mut topics = of_half.iter().map(|&line| topic(&self.lines[lines[line]].line));
            let first = topics.next().flatten();
            of_half.len() > 1
                && first.is_some()
                && topics.all(|topic| topic == first)
                && of_half.iter().all(|&line| candidates[line].records.len() == 1)
        };
        let mut joined = Vec::new();
        let findings: Vec<_> = found
            .iter()
            .zip(halves)
            .map(|(of_half, &at)| {
                let meant = of_half.iter().all(|&line| self.facts(at).is_meant_by(&self.lines[lines[line]].line));
                let told = of_half.iter().take(MAX_TOLD).map(|&line| Arc::clone(&self.lines[lines[line]].line)).collect();
                match &of_half[..] {
                    [] => Finding::Nothing,
                    of_half if meant && (of_half.len() == 1 && certain(of_half[0]) || one_topic(of_half)) => {
                        joined.extend(of_half.iter().map(|&line| lines[line]));
                        Finding::About(told)
                    }
                    of_half => {
                        of_half.iter().for_each(|&line| self.lines[lines[line]].ambiguous.set(true));
                        Finding::Ambiguous(told)
                    }
                }
            })
            .collect();
        for (&(record, half), finding) in halves.iter().zip(findings) {
            self.held[record].halves[half].take(book, finding);
        }
        joined.sort_unstable();
        for index in joined.into_iter().rev() {
            if let Some(waiting) = self.lines.remove(index) {
                self.tally.joined += 1;
                self.remember(&waiting.line);
            }
        }
    }

    /// What belongs together cannot be worked out.
    fn leave_ambiguous(&mut self, lines: &[usize], halves: &[At], book: Book) {
        for &(record, half) in halves {
            let fitting = lines.iter().filter(|&&line| self.fits(line, self.facts((record, half))));
            let told: Vec<_> = fitting.take(MAX_TOLD).map(|&line| Arc::clone(&self.lines[line].line)).collect();
            let finding = if told.is_empty() { Finding::Nothing } else { Finding::Ambiguous(told) };
            self.held[record].halves[half].take(book, finding);
        }
        lines.iter().for_each(|&line| self.lines[line].ambiguous.set(true));
    }

    fn remember(&mut self, line: &LogLine) {
        if let Some(topic) = topic(line) {
            if self.joined.len() >= MAX_REMEMBERED {
                self.joined.pop_front();
            }
            self.joined.push_back(topic);
        }
    }

    /// One process wrote all of the lines into one log, and when each of them was due is known.
    fn is_in_order(&self, lines: &[usize], halves: &[At]) -> bool {
        let Waiting { origin, line: first, .. } = &self.lines[lines[0]];
        let by_the_same =
            |waiting: &Waiting| (self.pieces[origin.book as usize] || waiting.origin == *origin) && waiting.line.process == first.process;
        let one_writer = first.process.is_some() && lines.iter().all(|&line| by_the_same(&self.lines[line]));
        let moments: Vec<_> = halves.iter().map(|&at| self.facts(at).moment()).collect();
        one_writer && moments.windows(2).all(|pair| matches!(pair, [Some(a), Some(b)] if a < b))
    }
}

#[cfg(test)]
mod tests;
