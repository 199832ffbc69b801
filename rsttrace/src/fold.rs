//! `--rate-limit`: so many lines per second of each kind of end; what exceeds them becomes one line with a
//! count. Pure; time comes in as an argument.

use std::{net::IpAddr, num::NonZeroU32};

use foldhash::HashMap;

use crate::model::{Cause, Comm, EndKind, Harm, Judged, Role};

/// From the first line of a second to its end.
const SECOND_NS: u64 = 1_000_000_000;
/// More kinds in one second are told apart by end, cause and harm only: a flood of addresses must not become
/// a flood of memory, nor of lines.
const MAX_KINDS: usize = 4_096;

/// What makes two ends alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub end: EndKind,
    pub cause: Cause,
    pub harm: Harm,
    /// `None` where too many kinds are told apart already.
    pub place: Option<Place>,
}

/// Whose connection it was, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub role: Option<Role>,
    /// Holder, observer or closer.
    pub process: Option<Comm>,
    /// The server's: ours, unless we connected.
    pub service_port: u16,
    pub remote: IpAddr,
}

impl Kind {
    fn of(judged: &Judged) -> Self {
        let (t, verdict) = (&judged.teardown, &judged.verdict);
        let place = Some(Place { role: t.role, process: t.process(), service_port: t.service_port(), remote: t.remote.addr });
        Self { end: t.end, cause: verdict.cause, harm: verdict.harm, place }
    }
}

/// Ends of one kind that are not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folded {
    pub kind: Kind,
    /// Of the other end of a connection within this host, where both are told as one.
    pub other: Option<Kind>,
    pub count: u64,
    /// Cookie of the last one that was shown in the same second.
    pub like: Option<u64>,
    /// When the first and the last of them ended.
    pub first_ns: u64,
    pub last_ns: u64,
    pub lost_bytes: u64,
    pub unconfirmed_bytes: u64,
}

/// What one end adds to the sums.
#[derive(Clone, Copy, Debug)]
struct End {
    at_ns: u64,
    cookie: Option<u64>,
    lost_bytes: u64,
    unconfirmed_bytes: u64,
}

/// Decides what is shown, and remembers what is not until its second is over.
#[derive(Debug)]
pub struct Fold {
    per_second: u32,
    /// The present second is over then.
    ends_ns: u64,
    /// Of the present second, how many were shown, and the rest.
    kinds: HashMap<(Kind, Option<Kind>), (u32, Folded)>,
    /// Some of them are folded.
    owes: bool,
}

impl Fold {
    pub fn new(per_second: NonZeroU32) -> Self {
        Self { per_second: per_second.get(), ends_ns: 0, kinds: HashMap::default(), owes: false }
    }

    /// Whether an end is to be shown, or both ends of a connection as one; else it is folded.
    /// [`Fold::take`] must have been called with the same time.
    pub fn admits(&mut self, now_ns: u64, judged: &Judged, other: Option<&Judged>) -> bool {
        let damage = judged.verdict.damage;
        let there = other.map(|other| other.verdict.damage).unwrap_or_default();
        let end = End {
            at_ns: judged.teardown.at_ns,
            cookie: judged.teardown.cookie,
            // Both ends tell of the same bytes.
            lost_bytes: damage.lost().max(there.lost()),
            unconfirmed_bytes: damage.unconfirmed.max(there.unconfirmed),
        };
        self.admits_end(now_ns, Kind::of(judged), other.map(Kind::of), end)
    }

    fn admits_end(&mut self, now_ns: u64, kind: Kind, other: Option<Kind>, end: End) -> bool {
        if self.kinds.is_empty() {
            self.ends_ns = now_ns.saturating_add(SECOND_NS);
        }
        let exact = (kind, other);
        let is_one_of_few = self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&exact);
        let key = if is_one_of_few { exact } else { (Kind { place: None, ..kind }, None) };
        let nothing =
            Folded { kind: key.0, other: key.1, count: 0, like: None, first_ns: u64::MAX, last_ns: 0, lost_bytes: 0, unconfirmed_bytes: 0 };
        let (shown, folded) = self.kinds.entry(key).or_insert((0, nothing));
        if *shown < self.per_second {
            *shown += 1;
            folded.like = end.cookie;
            return true;
        }
        folded.count += 1;
        folded.first_ns = folded.first_ns.min(end.at_ns);
        folded.last_ns = folded.last_ns.max(end.at_ns);
        folded.lost_bytes = folded.lost_bytes.saturating_add(end.lost_bytes);
        folded.unconfirmed_bytes = folded.unconfirmed_bytes.saturating_add(end.unconfirmed_bytes);
        self.owes = true;
        false
    }

    /// What was folded in a second that is over, in the order in which it began.
    pub fn take(&mut self, now_ns: u64) -> Vec<Folded> {
        if now_ns < self.ends_ns {
            return Vec::new();
        }
        let mut folded: Vec<_> = self.kinds.drain().map(|(_, (_, folded))| folded).filter(|folded| folded.count > 0).collect();
        folded.sort_by_key(|folded| (folded.first_ns, folded.last_ns, folded.like));
        self.owes = false;
        folded
    }

    /// When [`Fold::take`] has something to give.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.owes.then_some(self.ends_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn kind(n: u32) -> Kind {
        let place =
            Place { role: Some(Role::Server), process: Some(Comm::from("nginx")), service_port: 443, remote: Ipv4Addr::from(n).into() };
        Kind { end: EndKind::ResetReceived, cause: Cause::PeerAbortIdle, harm: Harm::None, place: Some(place) }
    }

    fn end(at_ns: u64) -> End {
        End { at_ns, cookie: Some(at_ns), lost_bytes: 1, unconfirmed_bytes: 2 }
    }

    fn fold(per_second: u32) -> Fold {
        Fold::new(NonZeroU32::new(per_second).unwrap())
    }

    #[test]
    fn what_exceeds_the_limit_is_one_line_with_a_count_when_the_second_is_over() {
        let mut fold = fold(2);
        let shown: Vec<_> = (0..5).map(|at| fold.admits_end(100, kind(1), None, end(at))).collect();
        assert_eq!(shown, [true, true, false, false, false]);
        assert!(fold.admits_end(100, kind(2), None, end(9)), "another kind");
        assert_eq!(fold.next_deadline_ns(), Some(100 + SECOND_NS));
        assert_eq!(fold.take(99 + SECOND_NS), []);
        let three =
            Folded { kind: kind(1), other: None, count: 3, like: Some(1), first_ns: 2, last_ns: 4, lost_bytes: 3, unconfirmed_bytes: 6 };
        assert_eq!(fold.take(100 + SECOND_NS), [three]);
        assert_eq!((fold.next_deadline_ns(), fold.take(u64::MAX)), (None, vec![]));
        assert!(fold.admits_end(200 + SECOND_NS, kind(1), None, end(10)), "a new second");
    }

    #[test]
    fn nothing_is_due_while_nothing_is_folded() {
        let mut fold = fold(1);
        assert!(fold.admits_end(100, kind(1), None, end(1)));
        assert_eq!((fold.next_deadline_ns(), fold.take(u64::MAX)), (None, vec![]));
    }

    #[test]
    fn ends_with_different_other_ends_are_not_alike() {
        let mut fold = fold(1);
        assert!(fold.admits_end(1, kind(1), Some(kind(2)), end(1)));
        assert!(fold.admits_end(1, kind(1), Some(kind(3)), end(1)));
        assert!(!fold.admits_end(1, kind(1), Some(kind(2)), end(1)));
    }

    #[test]
    fn a_flood_of_kinds_takes_bounded_memory_and_lines() {
        let mut fold = fold(1);
        let flood = 10 * MAX_KINDS as u32;
        let shown = (0..flood).filter(|n| fold.admits_end(1, kind(*n), Some(kind(*n)), end(1))).count();
        assert_eq!((shown, fold.kinds.len()), (MAX_KINDS + 1, MAX_KINDS + 1));
        let folded = fold.take(u64::MAX);
        assert_eq!((folded.len(), folded[0].count), (1, u64::from(flood) - MAX_KINDS as u64 - 1));
        assert_eq!((folded[0].kind.place, folded[0].other), (None, None));
    }

    proptest! {
        /// Whatever comes, and however often it is asked for: each end is shown or counted, and no kind is shown
        /// more often in a second than it may be.
        #[test]
        fn shown_and_folded_are_all_that_came(
            per_second in 1..4u32,
            steps in prop::collection::vec((0..3u32, 0..SECOND_NS / 3), 0..200),
        ) {
            let mut fold = fold(per_second);
            let (mut now_ns, mut told) = (0, HashMap::<_, u64>::default());
            let mut shown_at: Vec<(u32, u64)> = Vec::new();
            for (n, after_ns) in &steps {
                now_ns += after_ns;
                for folded in fold.take(now_ns) {
                    *told.entry(folded.kind).or_default() += folded.count;
                }
                if fold.admits_end(now_ns, kind(*n), None, end(now_ns)) {
                    *told.entry(kind(*n)).or_default() += 1;
                    shown_at.push((*n, now_ns));
                }
            }
            for folded in fold.take(u64::MAX) {
                prop_assert!(folded.first_ns <= folded.last_ns && folded.lost_bytes == folded.count);
                *told.entry(folded.kind).or_default() += folded.count;
            }
            for n in 0..3 {
                let came = steps.iter().filter(|(of, _)| *of == n).count() as u64;
                prop_assert_eq!(told.get(&kind(n)).copied().unwrap_or(0), came);
            }
            // Two windows may meet within one second, no three.
            for (n, at_ns) in &shown_at {
                let within = shown_at.iter().filter(|(of, at)| of == n && (*at_ns..*at_ns + SECOND_NS).contains(at)).count();
                prop_assert!(within <= 2 * per_second as usize);
            }
        }
    }
}
