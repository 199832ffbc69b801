//! Log lines and records brought together. A line and a record belong together if worker, side, address,
//! error, call and time fit, and if that holds in every best way to bring all lines and records of that
//! moment together. What stays ambiguous is told as ambiguous. Pure: time comes in as an argument.

mod align;
mod clock;
mod facts;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use self::align::align;
pub use self::{
    clock::LineClock,
    facts::{Facts, Window},
};
use crate::model::{Fault, Finding, LogLine, LogTally, Remote, Side};

/// How long to wait, in nanoseconds of the time that is handed in.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A record for the lines that may be about it.
    pub record_ns: u64,
    /// A record that could be told, for others that the same lines may be about.
    pub entangled_ns: u64,
    /// A line for its record.
    pub line_ns: u64,
}

/// Lines and records held at a time; beyond, the oldest are told as they stand.
const MAX_HELD: usize = 16_384;
/// Connections of the application whose lines are remembered, to recognise a line that only goes on.
const MAX_REMEMBERED: usize = 4_096;

#[derive(Debug)]
struct Held<T> {
    since_ns: u64,
    due_ns: u64,
    halves: Vec<(Facts, Option<Finding>)>,
    payload: T,
}

impl<T> Held<T> {
    fn is_settled(&self) -> bool {
        self.halves.iter().all(|(_, finding)| finding.is_some())
    }
}

#[derive(Debug)]
struct Waiting {
    line: Arc<LogLine>,
    window: Window,
    due_ns: u64,
    /// Told as one of several.
    ambiguous: bool,
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
    /// Topics of joined lines, newest last.
    joined: VecDeque<Topic>,
    tally: LogTally,
    unmatched: Vec<Arc<LogLine>>,
}

/// A half of a held record.
type Half = (usize, usize);

impl<T> Correlator<T> {
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            held: VecDeque::new(),
            lines: VecDeque::new(),
            joined: VecDeque::new(),
            tally: LogTally::default(),
            unmatched: Vec::new(),
        }
    }

    pub fn tally(&self) -> LogTally {
        self.tally
    }

    /// Takes a record: one [`Facts`] for each of its sockets.
    pub fn push_record(&mut self, now_ns: u64, facts: Vec<Facts>, payload: T) {
        let halves = facts.into_iter().map(|facts| (facts, None)).collect();
        self.held.push_back(Held { since_ns: now_ns, due_ns: now_ns + self.patience.record_ns, halves, payload });
    }

    /// Takes a line; `window`: when what it is about happened.
    pub fn push_line(&mut self, now_ns: u64, line: LogLine, window: Window) {
        self.tally.lines += 1;
        if line.fault == Fault::NoConnection || line.side == Some(Side::Upstream) && matches!(line.upstream, Some(Remote::Unix(_))) {
            self.tally.no_connection += 1;
            return;
        }
        self.lines.push_back(Waiting { line: Arc::new(line), window, due_ns: now_ns + self.patience.line_ns, ambiguous: false });
    }

    /// When [`Correlator::tick`] has something to do next.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let record = self.held.iter().filter(|held| !held.is_settled()).map(|held| held.due_ns).min();
        let line = self.lines.front().map(|waiting| waiting.due_ns);
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
            told(front.payload, front.halves.into_iter().map(|(_, finding)| finding.unwrap_or_default()).collect());
        }
        let waiting = self.lines.len();
        while let Some(line) = self.lines.pop_front_if(|line| line.due_ns <= now_ns) {
            self.expire(line);
        }
        for _ in MAX_HELD..waiting.min(self.lines.len()) {
            if let Some(line) = self.lines.pop_front() {
                self.expire(line);
            }
        }
    }

    /// Tells all that is left.
    pub fn finish(&mut self, told: &mut impl FnMut(T, Vec<Finding>)) {
        self.tick(u64::MAX, told);
    }

    /// Lines that no record fits, since the last call.
    pub fn take_unmatched(&mut self) -> Vec<Arc<LogLine>> {
        std::mem::take(&mut self.unmatched)
    }

    fn expire(&mut self, waiting: Waiting) {
        let goes_on = topic(&waiting.line).is_some_and(|topic| self.joined.contains(&topic));
        if waiting.ambiguous {
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
            if self.held[record].halves[half].1.is_none() {
                self.settle_half((record, half), now_ns, now_or_never);
            }
        }
    }

    /// Settles a socket's end, with all others that the same lines may be about.
    fn settle_half(&mut self, half: Half, now_ns: u64, now_or_never: bool) {
        let (lines, halves) = self.entangled_with(half);
        if lines.is_empty() {
            self.held[half.0].halves[half.1].1 = Some(Finding::Nothing);
            return;
        }
        let patient = now_ns < self.held[half.0].since_ns.saturating_add(self.patience.entangled_ns) && !now_or_never;
        let latest = halves.iter().map(|&(record, _)| self.held[record].due_ns).max().unwrap_or(now_ns);
        if patient && latest > now_ns {
            self.held[half.0].due_ns = latest;
            return;
        }
        self.settle(&lines, &halves);
    }

    /// Lines that may be about a half, the other halves that they may be about, and so on.
    fn entangled_with(&self, half: Half) -> (Vec<usize>, Vec<Half>) {
        let mut lines = Vec::new();
        let mut halves = vec![half];
        let mut known_lines = vec![false; self.lines.len()];
        let mut known_halves = HashSet::from([half]);
        let mut looked_at = 0;
        while looked_at < halves.len() {
            let facts = self.facts(halves[looked_at]);
            looked_at += 1;
            for index in 0..self.lines.len() {
                if known_lines[index] || !self.fits(index, facts) {
                    continue;
                }
                known_lines[index] = true;
                lines.push(index);
                for (record, held) in self.held.iter().enumerate() {
                    for (number, (facts, finding)) in held.halves.iter().enumerate() {
                        let half = (record, number);
                        if finding.is_none() && !known_halves.contains(&half) && self.fits(index, facts) {
                            known_halves.insert(half);
                            halves.push(half);
                        }
                    }
                }
            }
        }
        lines.sort_unstable();
        halves.sort_unstable_by_key(|&half| self.facts(half).noticed().map(|window| window.to_ns));
        (lines, halves)
    }

    fn facts(&self, (record, half): Half) -> &Facts {
        &self.held[record].halves[half].0
    }

    fn fits(&self, line: usize, facts: &Facts) -> bool {
        let waiting = &self.lines[line];
        facts.fits(&waiting.line, waiting.window)
    }

    fn settle(&mut self, lines: &[usize], halves: &[Half]) {
        let candidates = align(lines.len(), halves.len(), self.is_in_order(lines, halves), |line, half| {
            self.fits(lines[line], self.facts(halves[half]))
        });
        let mut found: HashMap<usize, Vec<usize>> = HashMap::new();
        for (line, candidates) in candidates.iter().enumerate() {
            for &half in &candidates.records {
                found.entry(half).or_default().push(line);
            }
        }
        let certain = |line: usize, half: usize| candidates[line].always && candidates[line].records == [half];
        // Several lines about one connection of the application, and about no other socket.
        let one_topic = |of_half: &[usize]| {
            let first = topic(&self.lines[lines[of_half[0]]].line);
            first.is_some()
                && of_half.iter().all(|&line| candidates[line].records.len() == 1 && topic(&self.lines[lines[line]].line) == first)
        };
        let mut joined = Vec::new();
        let mut findings = Vec::with_capacity(halves.len());
        for half in 0..halves.len() {
            let of_half = found.remove(&half).unwrap_or_default();
            let text = |of_half: &[usize]| of_half.iter().map(|&line| Arc::clone(&self.lines[lines[line]].line)).collect();
            findings.push(match &of_half[..] {
                [] => Finding::Nothing,
                [line] if certain(*line, half) => {
                    joined.push(*line);
                    Finding::About(text(&of_half))
                }
                of_half if one_topic(of_half) => {
                    joined.extend(of_half);
                    Finding::About(text(of_half))
                }
                of_half => Finding::Ambiguous(text(of_half)),
            });
        }
        for (&(record, half), finding) in halves.iter().zip(findings) {
            if let Finding::Ambiguous(_) = finding {
                for waiting in &mut self.lines {
                    let Finding::Ambiguous(told) = &finding else { continue };
                    waiting.ambiguous |= told.iter().any(|line| Arc::ptr_eq(line, &waiting.line));
                }
            }
            self.held[record].halves[half].1 = Some(finding);
        }
        let mut gone: Vec<usize> = joined.into_iter().map(|line| lines[line]).collect();
        gone.sort_unstable();
        for index in gone.into_iter().rev() {
            if let Some(waiting) = self.lines.remove(index) {
                self.tally.joined += 1;
                self.remember(&waiting.line);
            }
        }
    }

    fn remember(&mut self, line: &LogLine) {
        if let Some(topic) = topic(line) {
            if self.joined.len() >= MAX_REMEMBERED {
                self.joined.pop_front();
            }
            self.joined.push_back(topic);
        }
    }

    /// One process wrote all of the lines, as it met the errors, and when it met each of them is known.
    fn is_in_order(&self, lines: &[usize], halves: &[Half]) -> bool {
        let process = self.lines[lines[0]].line.process;
        let one_writer = process.is_some() && lines.iter().all(|&line| self.lines[line].line.process == process);
        let noticed: Vec<_> = halves.iter().map(|&half| self.facts(half).noticed()).collect();
        one_writer && noticed.windows(2).all(|pair| matches!(pair, [Some(a), Some(b)] if a.to_ns < b.from_ns))
    }
}

#[cfg(test)]
mod tests;
