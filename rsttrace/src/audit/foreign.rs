//! RSTs that a packet filter made. The kernel counts them nowhere, but over loopback both ends are
//! this host's: a RST that arrives there and that no socket sent is somebody else's. Of RSTs from
//! other hosts nothing can be said.

use std::collections::BTreeMap;

use foldhash::HashMap;

use crate::model::Endpoint;

/// How far a RST's departure and its arrival over loopback are apart at most: as long as the
/// receiving socket may be locked.
const ARRIVES_NS: u64 = 1_000_000_000;
/// Connections remembered.
const MAX_REMEMBERED: usize = 65_536;

/// A connection's name as the receiver of its RST has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receiver {
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
}

impl Receiver {
    /// The other end is a socket of the same namespace, if it is anybody.
    fn is_local(&self) -> bool {
        self.remote.addr.is_loopback() || self.remote.addr == self.local.addr
    }
}

#[derive(Debug)]
enum Half {
    /// So many arrived without a sender, the latest then.
    Received(u64, u64),
    /// Sent then, and not arrived yet. It may never: its receiver may be closed already.
    Sent(u64),
}

/// RSTs over loopback whose other half is missing.
#[derive(Debug, Default)]
pub struct Foreign {
    halves: HashMap<Receiver, Half>,
    /// Some had to be forgotten: nothing is certain any more.
    overflowed: bool,
}

impl Foreign {
    pub fn received(&mut self, by: Receiver, at_ns: u64) {
        if self.overflowed || !by.is_local() {
            return;
        }
        let half = match self.halves.remove(&by) {
            Some(Half::Sent(sent_ns)) if at_ns.abs_diff(sent_ns) <= ARRIVES_NS => return,
            Some(Half::Received(n, _)) => Half::Received(n + 1, at_ns),
            _ => Half::Received(1, at_ns),
        };
        self.remember(by, half, at_ns);
    }

    pub fn sent(&mut self, to: Receiver, at_ns: u64) {
        if self.overflowed || !to.is_local() {
            return;
        }
        let half = match self.halves.remove(&to) {
            Some(Half::Received(n, received_ns)) if at_ns.abs_diff(received_ns) <= ARRIVES_NS => {
                if n == 1 {
                    return;
                }
                Half::Received(n - 1, received_ns)
            }
            Some(received @ Half::Received(..)) => received,
            _ => Half::Sent(at_ns),
        };
        self.remember(to, half, at_ns);
    }

    /// What looked like a RST that arrived was none.
    pub fn not_received(&mut self, by: Receiver) {
        if let Some(Half::Received(n, _)) = self.halves.get_mut(&by) {
            *n -= 1;
            if *n == 0 {
                self.halves.remove(&by);
            }
        }
    }

    /// By namespace; `None` where too many were under way at once.
    pub fn counts(&self) -> Option<BTreeMap<u32, u64>> {
        let mut counts = BTreeMap::new();
        for (receiver, half) in &self.halves {
            if let Half::Received(n, _) = half {
                *counts.entry(receiver.netns).or_default() += n;
            }
        }
        (!self.overflowed).then_some(counts)
    }

    fn remember(&mut self, receiver: Receiver, half: Half, now_ns: u64) {
        if self.halves.len() >= MAX_REMEMBERED {
            self.halves.retain(|_, half| !matches!(half, Half::Sent(at_ns) if now_ns.abs_diff(*at_ns) > ARRIVES_NS));
            // Were it nearly full again, each event would go through all of it: and just then there are many.
            if self.halves.len() > MAX_REMEMBERED / 2 {
                self.overflowed = true;
                self.halves = HashMap::default();
                return;
            }
        }
        self.halves.insert(receiver, half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(port: u16) -> Receiver {
        Receiver { netns: 7, local: Endpoint::v4([127, 0, 0, 1], port), remote: Endpoint::v4([127, 0, 0, 1], 80) }
    }

    fn count(foreign: &Foreign) -> u64 {
        foreign.counts().expect("within bounds").values().sum()
    }

    #[test]
    fn a_reset_and_its_sender_find_each_other_in_either_order() {
        let mut foreign = Foreign::default();
        foreign.received(receiver(1), 100);
        assert_eq!(count(&foreign), 1);
        foreign.sent(receiver(1), 200);
        foreign.sent(receiver(2), 300);
        foreign.received(receiver(2), 400);
        assert_eq!(count(&foreign), 0);
        assert!(foreign.halves.is_empty());
    }

    #[test]
    fn what_nobody_sent_stays() {
        let mut foreign = Foreign::default();
        foreign.received(receiver(1), 100);
        foreign.received(receiver(1), 200);
        foreign.sent(receiver(2), 300);
        assert_eq!(foreign.counts(), Some(BTreeMap::from([(7, 2)])));
        foreign.not_received(receiver(1));
        assert_eq!(count(&foreign), 1);
    }

    #[test]
    fn a_reset_of_an_earlier_connection_of_that_name_excuses_nothing() {
        let mut foreign = Foreign::default();
        foreign.sent(receiver(1), 0);
        foreign.received(receiver(1), ARRIVES_NS + 1);
        foreign.sent(receiver(1), 3 * ARRIVES_NS);
        assert_eq!(count(&foreign), 1);
    }

    #[test]
    fn nothing_is_said_of_other_hosts() {
        let mut foreign = Foreign::default();
        let far = Receiver { remote: Endpoint::v4([192, 0, 2, 1], 80), ..receiver(1) };
        foreign.received(far, 1);
        assert_eq!(count(&foreign), 0);
        let own = Endpoint::v4([192, 0, 2, 1], 80);
        foreign.received(Receiver { local: Endpoint { port: 4000, ..own }, remote: own, netns: 1 }, 1);
        assert_eq!(count(&foreign), 1);
    }

    #[test]
    fn a_flood_is_bounded_and_withdraws_the_claim() {
        let mut foreign = Foreign::default();
        for n in 0..=MAX_REMEMBERED as u32 {
            let local = Endpoint::v4(n.to_ne_bytes(), 1);
            foreign.received(Receiver { netns: 1, local, remote: local }, 1);
        }
        assert_eq!(foreign.counts(), None);
        assert!(foreign.halves.is_empty());
        foreign.received(receiver(1), 2);
        assert!(foreign.halves.is_empty(), "it is not looked at any more");
    }
}
