//! Finding the other end of a connection among the sockets of this host that end at the same time.
//!
//! Both ends are one story when each expects next what the other has yet to have acknowledged. That
//! holds through DNAT and across network namespaces, and never between two lives of one port. The
//! addresses only say where to look first. A user-space proxy is two connections, and synproxy and
//! NAT helpers renumber: neither is ever paired.

use std::collections::BTreeMap;

use foldhash::HashMap;
use slotmap::Key as _;
use smallvec::SmallVec;

use super::Key;
use crate::model::{End, Endpoint, Role, SequenceSpace};

/// How many ends are looked at for one whose addresses were translated.
const NEIGHBOURS: usize = 64;
/// The server's end is opened by the client's SYN, or by the SYN's last retransmission.
const HANDSHAKE_NS: u64 = 130_000_000_000;

/// Ends without a partner.
#[derive(Debug, Default)]
pub struct Partners {
    by_flow: HashMap<(Endpoint, Endpoint), SmallVec<[Key; 2]>>,
    /// By `written` and story: what expects a number is found at or above it.
    by_written: BTreeMap<(u32, u64), (Key, SequenceSpace)>,
}

impl Partners {
    pub fn add(&mut self, end: &End, key: Key) {
        if let Some(sequence) = end.sequence {
            self.by_flow.entry((end.local, end.remote)).or_default().push(key);
            self.by_written.insert((sequence.written, number(key)), (key, sequence));
        }
    }

    pub fn remove(&mut self, end: &End, key: Key) {
        let Some(sequence) = end.sequence else { return };
        self.by_written.remove(&(sequence.written, number(key)));
        if let Some(ends) = self.by_flow.get_mut(&(end.local, end.remote)) {
            ends.retain(|other| *other != key);
            if ends.is_empty() {
                self.by_flow.remove(&(end.local, end.remote));
            }
        }
    }

    /// The only end that fits; `None` where there is none or more than one.
    pub fn find<'a>(&self, end: &End, known: impl Fn(Key) -> Option<&'a End>) -> Option<Key> {
        let sequence = end.sequence?;
        let mut reversed = self.by_flow.get(&(end.remote, end.local)).into_iter().flatten();
        let fits = |key: &&Key| known(**key).is_some_and(|other| are_halves(sequence, other.sequence));
        if let Some(found) = reversed.find(fits) {
            return reversed.find(fits).is_none().then_some(*found);
        }
        // The numbers wrap around.
        let from = (sequence.expected, 0);
        let above = self.by_written.range(from..).chain(self.by_written.range(..from));
        let mut translated = above
            .take(NEIGHBOURS)
            .map(|(_, ends)| *ends)
            .filter(|(_, other)| are_halves(sequence, Some(*other)))
            .map(|(key, _)| key)
            .filter(|key| known(*key).is_some_and(|other| may_be_translated(end, other)));
        let found = translated.next()?;
        translated.next().is_none().then_some(found)
    }
}

/// Tells entries of one sequence number apart.
fn number(key: Key) -> u64 {
    key.data().as_ffi()
}

/// Each expects a number that the other has written, and not seen acknowledged before it ended.
fn are_halves(a: SequenceSpace, b: Option<SequenceSpace>) -> bool {
    let within = |expected: u32, of: SequenceSpace| expected.wrapping_sub(of.acknowledged) <= of.written.wrapping_sub(of.acknowledged);
    b.is_some_and(|b| within(a.expected, b) && within(b.expected, a))
}

/// What address translation leaves as it was: one of the two endpoints, or at least the order in
/// which the ends were opened.
fn may_be_translated(a: &End, b: &End) -> bool {
    let opened = match (a.role, b.role) {
        (Some(Role::Client), Some(Role::Server)) => (a.opened_ns, b.opened_ns),
        (Some(Role::Server), Some(Role::Client)) => (b.opened_ns, a.opened_ns),
        _ => return false,
    };
    match opened {
        (Some(client), Some(server)) => server.checked_sub(client).is_some_and(|later| later < HANDSHAKE_NS),
        (None, None) => a.local == b.remote || a.remote == b.local,
        _ => false,
    }
}
