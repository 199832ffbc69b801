//! Sums of records. Every surface that counts (summary, live screen, report, metrics, comparison) counts by
//! these, so that all of them say the same. Pure; memory is bounded by the number of groups.

use std::hash::Hash;

use foldhash::HashMap;

use crate::model::{Harm, Judged};

/// More keys than these share one group: a flood of addresses must not become a flood of memory.
pub const MAX_GROUPS: usize = 4_096;

/// Upper bounds in nanoseconds, each inclusive, of the time since the last data when a connection ended: they part the usual
/// keep-alive times of servers and the idle times of firewalls and load balancers.
pub const IDLE_BOUNDS_NS: &[u64] = &[
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    5_000_000_000,
    15_000_000_000,
    60_000_000_000,
    120_000_000_000,
    350_000_000_000,
    900_000_000_000,
    3_600_000_000_000,
];

/// Upper bounds in nanoseconds, each inclusive, of the time from an error to the call that returned it.
pub const DELAY_BOUNDS_NS: &[u64] = &[10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000, 100_000_000_000];

/// How often a duration lay within which bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    bounds_ns: &'static [u64],
    /// One more than there are bounds: the last is for what exceeds them all.
    counts: Vec<u64>,
    sum_ns: u128,
}

impl Histogram {
    pub fn new(bounds_ns: &'static [u64]) -> Self {
        Self { bounds_ns, counts: vec![0; bounds_ns.len() + 1], sum_ns: 0 }
    }

    pub fn add(&mut self, ns: u64) {
        let at = self.bounds_ns.partition_point(|bound| *bound < ns);
        self.counts[at] += 1;
        self.sum_ns += u128::from(ns);
    }

    /// Adds what another one with the same bounds has.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.bounds_ns, other.bounds_ns);
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum_ns += other.sum_ns;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn sum_ns(&self) -> u128 {
        self.sum_ns
    }

    /// Upper bound (`None`: there is none) and count of each bucket.
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = (Option<u64>, u64)> + '_ {
        self.counts.iter().enumerate().map(|(at, count)| (self.bounds_ns.get(at).copied(), *count))
    }
}

/// What the ends of one group add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Records, which are sockets: a connection within this host has two.
    pub ends: u64,
    harms: [u64; Harm::ALL.len()],
    /// As `lost_bytes` and `unconfirmed_bytes` of the records.
    pub lost_bytes: u64,
    pub unconfirmed_bytes: u64,
    /// Time since the last data either way.
    pub idle: Histogram,
    /// From the error to the return of the call that took it.
    pub delay: Histogram,
    /// Of the first and of the last end.
    pub first_ns: u64,
    pub last_ns: u64,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            ends: 0,
            harms: Default::default(),
            lost_bytes: 0,
            unconfirmed_bytes: 0,
            idle: Histogram::new(IDLE_BOUNDS_NS),
            delay: Histogram::new(DELAY_BOUNDS_NS),
            first_ns: u64::MAX,
            last_ns: 0,
        }
    }
}

impl Group {
    pub fn add(&mut self, judged: &Judged) {
        let Judged { teardown: t, verdict, .. } = judged;
        self.ends += 1;
        self.harms[verdict.harm as usize] += 1;
        self.lost_bytes = self.lost_bytes.saturating_add(verdict.damage.lost());
        self.unconfirmed_bytes = self.unconfirmed_bytes.saturating_add(verdict.damage.unconfirmed);
        if let Some(ms) = t.idle_ms() {
            self.idle.add(ms.saturating_mul(1_000_000));
        }
        if let Some(ns) = t.observer.and_then(|observer| observer.delay_ns) {
            // As records tell it: who counts what was saved counts the same.
            self.delay.add(ns / 1_000 * 1_000);
        }
        self.first_ns = self.first_ns.min(t.at_ns);
        self.last_ns = self.last_ns.max(t.at_ns);
    }

    /// Adds what another group has.
    pub fn merge(&mut self, other: &Self) {
        self.ends += other.ends;
        self.harms.iter_mut().zip(&other.harms).for_each(|(count, more)| *count += more);
        self.lost_bytes = self.lost_bytes.saturating_add(other.lost_bytes);
        self.unconfirmed_bytes = self.unconfirmed_bytes.saturating_add(other.unconfirmed_bytes);
        self.idle.merge(&other.idle);
        self.delay.merge(&other.delay);
        self.first_ns = self.first_ns.min(other.first_ns);
        self.last_ns = self.last_ns.max(other.last_ns);
    }

    /// What is worst comes first: by data that was lost, then by what may have been, then by number.
    pub fn weight(&self) -> impl Ord + use<> {
        (self.of(Harm::Lost), self.of(Harm::Possible), self.ends)
    }

    /// Ends that hurt so much.
    pub fn of(&self, harm: Harm) -> u64 {
        self.harms[harm as usize]
    }
}

/// Groups of ends by something that they have in common.
#[derive(Clone, Debug)]
pub struct Groups<K> {
    by: HashMap<K, Group>,
    /// Of keys that found no room.
    pub others: Group,
}

impl<K> Default for Groups<K> {
    fn default() -> Self {
        Self { by: HashMap::default(), others: Group::default() }
    }
}

impl<K: Eq + Hash + Ord + Clone> Groups<K> {
    pub fn add(&mut self, key: K, judged: &Judged) {
        let is_one_of_few = self.by.len() < MAX_GROUPS || self.by.contains_key(&key);
        if is_one_of_few { self.by.entry(key).or_default() } else { &mut self.others }.add(judged);
    }

    /// The groups, in no order, without [`Groups::others`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &Group)> {
        self.by.iter()
    }

    pub fn get(&self, key: &K) -> Option<&Group> {
        self.by.get(key)
    }

    /// The largest first by `weight`; equals in the order of their keys.
    pub fn sorted<W: Ord>(&self, weight: impl Fn(&Group) -> W) -> Vec<(&K, &Group)> {
        let mut all: Vec<_> = self.by.iter().collect();
        all.sort_by(|(a_key, a), (b_key, b)| weight(b).cmp(&weight(a)).then_with(|| a_key.cmp(b_key)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::json::{self, Saved},
        output::{WallClock, json::JsonFormat},
    };

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::new(&[10, 100]);
        [0, 10, 11, 100, 101, u64::MAX].into_iter().for_each(|ns| histogram.add(ns));
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(Some(10), 2), (Some(100), 2), (None, 2)]);
        assert_eq!((histogram.count(), histogram.sum_ns()), (6, 222 + u128::from(u64::MAX)));
    }

    #[test]
    fn a_delay_counts_live_as_it_does_when_it_was_saved() {
        let line = include_bytes!("../tests/corpus/record.json");
        let Ok(Saved::Teardown(mut live)) = json::read(line) else { panic!("the corpus has a record") };
        live.teardown.observer.as_mut().unwrap().delay_ns = Some(10_400);
        let mut written = Vec::new();
        JsonFormat::default().write(&mut written, &live, &WallClock::new(0, 0)).unwrap();
        let Ok(Saved::Teardown(saved)) = json::read(&written) else { panic!("it reads back") };
        let (mut of_live, mut of_saved) = (Group::default(), Group::default());
        of_live.add(&live);
        of_saved.add(&saved);
        assert_eq!(of_live, of_saved);
        assert_eq!((of_live.delay.buckets().next(), of_live.delay.sum_ns()), (Some((Some(10_000), 1)), 10_000));
    }
}
