//! The difference between the kernel's counters and ours, and what accounts for it.

use std::collections::BTreeMap;

use super::{Counter, Kernel, Reading, Tally, tally::Ours};
use crate::units::grouped;

/// What this kernel and the attached hooks let us see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// The hook `tcp_send_reset` is attached.
    pub sent_resets: bool,
    /// RSTs without a full socket are traced: Linux 6.10 and newer, or a hook that stands in.
    pub socketless: bool,
    /// The kernel gives reasons for the RSTs that it chooses to send: Linux 6.12 and newer.
    pub reasons: bool,
}

/// Events that we know to be missing, whatever namespace they are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// They found the ring full.
    pub lost: u64,
    /// Runs of our programs that the kernel skipped.
    pub skipped: u64,
    pub undecodable: u64,
}

impl Losses {
    fn none(&self) -> bool {
        *self == Self::default()
    }
}

/// The kernel's counters of one namespace over the run.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// `None`: the namespace was not seen when tracing began.
    pub first: Option<Reading>,
    pub last: Reading,
}

/// How a counter and our events compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    Equal,
    /// Blind spots account for the difference.
    Explained(String),
    /// They do not.
    Unexplained(String),
}

/// One counter of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub netns: u32,
    pub counter: Counter,
    pub kernel: u64,
    pub ours: u64,
    pub agreement: Agreement,
}

impl Entry {
    /// What there is to say, if anything.
    pub fn words(&self) -> Option<&str> {
        match &self.agreement {
            Agreement::Equal => None,
            Agreement::Explained(words) | Agreement::Unexplained(words) => Some(words),
        }
    }
}

/// What the comparison came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Every counter of every audited namespace.
    pub entries: Vec<Entry>,
    /// Namespaces in which something was counted, and whose own counters could not be read.
    pub not_audited: Vec<u32>,
    /// RSTs that arrived and that no socket of this host sent, by namespace; `None`: not known.
    pub foreign: Option<BTreeMap<u32, u64>>,
}

impl Audit {
    /// How many were compared.
    pub fn namespaces(&self) -> u64 {
        (self.entries.len() / Counter::ALL.len()) as u64
    }
}

/// Compares what was counted with what the kernel counted.
pub fn compare(tally: &Tally, spans: &BTreeMap<u32, Span>, circumstances: Circumstances, losses: Losses) -> Audit {
    let mut audit = Audit::default();
    let ours: BTreeMap<u32, &Ours> = tally.namespaces().collect();
    let nothing = Ours::default();
    for (&netns, span) in spans {
        let ours = ours.get(&netns).copied().unwrap_or(&nothing);
        let first = span.first.unwrap_or_default();
        let kernel = Kernel {
            counts: span.last.kernel.counts.since(&first.kernel.counts),
            embryonic: span.last.kernel.embryonic.saturating_sub(first.kernel.embryonic),
        };
        for counter in Counter::ALL {
            let spots = Spots { counter, circumstances, losses, ours, kernel, unplaced: tally.unplaced()[counter], span };
            let (kernel, ours) = (kernel.counts[counter], ours.counts[counter]);
            audit.entries.push(Entry { netns, counter, kernel, ours, agreement: agreement(kernel, ours, counter, &spots.all()) });
        }
    }
    let counted = ours.iter().filter(|(_, ours)| !ours.counts.is_zero()).map(|(netns, _)| *netns);
    audit.not_audited = counted.filter(|netns| !spans.contains_key(netns)).collect();
    let certain = circumstances.sent_resets && circumstances.socketless && losses.none() && tally.unplaced().is_zero();
    audit.foreign = if certain { tally.foreign() } else { None };
    audit
}

/// What the kernel counts and we do not: at least and at most so many.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BlindSpot {
    least: i128,
    most: i128,
    words: String,
}

const UNBOUNDED: i128 = i64::MAX as i128;

struct Spots<'a> {
    counter: Counter,
    circumstances: Circumstances,
    losses: Losses,
    ours: &'a Ours,
    kernel: Kernel,
    unplaced: u64,
    span: &'a Span,
}

impl Spots<'_> {
    /// The likeliest first.
    fn all(&self) -> Vec<BlindSpot> {
        [self.embryonic(), self.hooks(), self.missing(), self.unplaced(), self.guessed(), self.unsteady(), self.unseen()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// A request that is reset has no socket yet, and no tracepoint shows it; but the kernel has a
    /// counter of its own for it, where a full accept queue counts too.
    fn embryonic(&self) -> Option<BlindSpot> {
        if self.counter != Counter::AttemptFails {
            return None;
        }
        let most = i128::from(self.kernel.embryonic);
        let certain = self.circumstances.reasons && self.circumstances.sent_resets && self.losses.none();
        let exact = (most - i128::from(self.ours.overflows)).max(0);
        let (least, most) = if certain { (exact, exact) } else { (0, most) };
        let n = (i128::from(self.kernel.counts[self.counter]) - i128::from(self.ours.counts[self.counter])).clamp(least, most);
        let (n, connections) = (grouped(u64::try_from(n).unwrap_or(0)), if n == 1 { "connection" } else { "connections" });
        spot(least, most, format!("{n} {connections} reset while still in the SYN queue: no socket yet, no tracepoint"))
    }

    fn hooks(&self) -> Option<BlindSpot> {
        use Counter::{AbortOnClose, AbortOnData, AbortOnLinger, OutRsts};
        let of_resets = matches!(self.counter, OutRsts | AbortOnData | AbortOnClose | AbortOnLinger);
        if of_resets && !self.circumstances.sent_resets {
            return spot(0, UNBOUNDED, "the hook tcp_send_reset is not attached".to_owned());
        }
        if self.counter == OutRsts && !self.circumstances.socketless {
            let words = "RSTs without a full socket (closed ports, TIME_WAIT): not traced here before Linux 6.10";
            return spot(0, UNBOUNDED, words.to_owned());
        }
        None
    }

    fn missing(&self) -> Option<BlindSpot> {
        let Losses { lost, skipped, undecodable } = self.losses;
        let most = lost.saturating_add(skipped).saturating_add(undecodable);
        spot(0, most.into(), format!("up to {} events may be missing (lost, skipped or undecodable), of whatever namespace", grouped(most)))
    }

    fn unplaced(&self) -> Option<BlindSpot> {
        let n = self.unplaced;
        spot(0, n.into(), format!("up to {} RSTs whose socket is not known (lost, or no room for it), of whatever namespace", grouped(n)))
    }

    fn guessed(&self) -> Option<BlindSpot> {
        use Counter::{AbortOnClose, AbortOnData, AbortOnLinger};
        if self.circumstances.reasons || !matches!(self.counter, AbortOnData | AbortOnClose | AbortOnLinger) {
            return None;
        }
        spot(-UNBOUNDED, UNBOUNDED, "told from circumstances: the kernel gives no reasons for its own RSTs before Linux 6.12".to_owned())
    }

    fn unsteady(&self) -> Option<BlindSpot> {
        let first = self.span.first.map_or(0, |reading| reading.unsteady[self.counter]);
        let n = first.saturating_add(self.span.last.unsteady[self.counter]);
        spot(-i128::from(n), n.into(), format!("up to {} were counted in the moments in which the counters were read", grouped(n)))
    }

    fn unseen(&self) -> Option<BlindSpot> {
        if self.span.first.is_some() {
            return None;
        }
        let words = "the namespace had no process when tracing began: what happened in it before is in the kernel's count";
        spot(0, UNBOUNDED, words.to_owned())
    }
}

/// `None` for one that saw nothing.
fn spot(least: i128, most: i128, words: String) -> Option<BlindSpot> {
    (least != 0 || most != 0).then_some(BlindSpot { least, most, words })
}

fn agreement(kernel: u64, ours: u64, counter: Counter, spots: &[BlindSpot]) -> Agreement {
    let difference = i128::from(kernel) - i128::from(ours);
    let mut words = Vec::new();
    let mut rest = difference;
    // What is certain first, then of the uncertain as much as it takes.
    for spot in spots.iter().filter(|spot| spot.least > 0) {
        rest -= spot.least;
        words.push(spot.words.as_str());
    }
    for spot in spots {
        if rest == 0 {
            break;
        }
        let take = rest.clamp(spot.least.min(0), spot.most - spot.least.max(0));
        if take != 0 {
            rest -= take;
            if !words.contains(&spot.words.as_str()) {
                words.push(&spot.words);
            }
        }
    }
    match rest {
        0 if difference == 0 => Agreement::Equal,
        0 => Agreement::Explained(words.join("; ")),
        _ => Agreement::Unexplained(unexplained(rest, counter, &words)),
    }
}

fn unexplained(rest: i128, counter: Counter, partly: &[&str]) -> String {
    let who = if rest > 0 { "by the kernel alone" } else { "by us alone" };
    let mut words = format!("not explained: {} counted {who}", grouped(u64::try_from(rest.unsigned_abs()).unwrap_or(u64::MAX)));
    let perhaps = match counter {
        Counter::AbortOnData if rest > 0 => Some("a close() with SO_LINGER 0 after both FINs leaves no trace"),
        Counter::OutRsts if rest < 0 => Some("a RST over IPv6 that has no route is not counted"),
        Counter::OutRsts if rest > 0 => Some("one that found no memory is not traced"),
        _ => None,
    };
    if let Some(perhaps) = perhaps {
        words = format!("{words} ({perhaps})");
    }
    if partly.is_empty() { words } else { format!("{words}; beside them, {}", partly.join("; ")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_difference_is_explained_if_and_only_if_blind_spots_of_its_size_exist(
            kernel in 0u64..200,
            ours in 0u64..200,
            ranges in proptest::collection::vec((-20i128..20, 0i128..40), 0..5),
        ) {
            let spots: Vec<_> = ranges
                .iter()
                .filter_map(|&(least, width)| spot(least, (least + width).max(0), "words".to_owned()))
                .collect();
            let difference = i128::from(kernel) - i128::from(ours);
            let least: i128 = spots.iter().map(|spot| spot.least).sum();
            let most: i128 = spots.iter().map(|spot| spot.most).sum();
            let agreement = agreement(kernel, ours, Counter::EstabResets, &spots);
            prop_assert_eq!(!matches!(agreement, Agreement::Unexplained(_)), (least..=most).contains(&difference));
            prop_assert_eq!(agreement == Agreement::Equal, difference == 0 && (least..=most).contains(&0));
        }
    }
}
