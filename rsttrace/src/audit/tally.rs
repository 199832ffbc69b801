//! Our side of the comparison: counted from events of every socket, before any filter.

use std::collections::BTreeMap;

use foldhash::HashMap;

use super::{
    Counts, MAX_NAMESPACES,
    foreign::{Foreign, Receiver},
    identities::{counted, is_overflow},
};
use crate::model::{AfterKind, End, Event, Hook};

/// What our events of one namespace add up to.
#[derive(Clone, Copy, Debug)]
pub struct Ours {
    pub counts: Counts,
    /// When the first was counted, `CLOCK_MONOTONIC`.
    pub first_ns: Option<u64>,
    /// Connections refused with a RST because the accept queue was full.
    pub overflows: u64,
    /// Only what happened from then on counts, as `CLOCK_MONOTONIC`;
    from_ns: u64,
    /// and until then.
    until_ns: u64,
}

impl Default for Ours {
    fn default() -> Self {
        Self { counts: Counts::default(), first_ns: None, overflows: 0, from_ns: 0, until_ns: u64::MAX }
    }
}

/// What our events add up to, by namespace.
#[derive(Debug, Default)]
pub struct Tally {
    /// This kernel gives reasons for the RSTs that it chooses to send.
    pub reasons: bool,
    namespaces: HashMap<u32, Ours>,
    /// RSTs of sockets of which nothing else is known, not even the namespace.
    unplaced: Counts,
    /// Before, nothing counts anywhere.
    since_ns: Option<u64>,
    foreign: Foreign,
}

impl Tally {
    /// In this namespace, what happened before is not for us to count.
    pub fn begin(&mut self, netns: u32, at_ns: u64) {
        if let Some(ours) = self.of(netns) {
            ours.from_ns = at_ns;
        }
        self.since_ns = Some(self.since_ns.map_or(at_ns, |since_ns| since_ns.min(at_ns)));
    }

    /// In this namespace, what happens from now on is not either.
    pub fn close(&mut self, netns: u32, at_ns: u64) {
        if let Some(ours) = self.namespaces.get_mut(&netns) {
            ours.until_ns = at_ns;
        }
    }

    /// Every event once. `end`: the end that an [`Event::After`] follows.
    pub fn count(&mut self, event: &Event, end: Option<&End>) {
        let counts = counted(event, end, self.reasons);
        let netns = match event {
            Event::End(end) => Some(end.netns),
            Event::After(_) => end.map(|end| end.netns),
            Event::Stray(stray) => stray.netns,
            Event::Http(_) | Event::Exec(_) => return,
        };
        let at_ns = event.ts_ns();
        let Some(netns) = netns else {
            // While the hooks are being attached, what follows an end is seen without it.
            if self.since_ns.is_none_or(|since_ns| since_ns <= at_ns) {
                self.unplaced.add(&counts);
            }
            return;
        };
        // Beyond the bound a namespace is not audited at all.
        let Some(ours) = self.of(netns).filter(|ours| ours.from_ns <= at_ns && at_ns < ours.until_ns) else { return };
        if !counts.is_zero() {
            // Events of different CPUs come out of order.
            ours.first_ns = Some(ours.first_ns.map_or(at_ns, |first_ns| first_ns.min(at_ns)));
        }
        ours.counts.add(&counts);
        if let Event::Stray(stray) = event {
            ours.overflows += u64::from(is_overflow(stray));
        }
        self.match_resets(event, end, netns);
    }

    /// Everything counted, by namespace.
    pub fn namespaces(&self) -> impl Iterator<Item = (u32, &Ours)> {
        self.namespaces.iter().map(|(netns, ours)| (*netns, ours))
    }

    pub fn unplaced(&self) -> &Counts {
        &self.unplaced
    }

    /// RSTs that arrived and that no socket of this host sent, by namespace.
    pub fn foreign(&self) -> Option<BTreeMap<u32, u64>> {
        self.foreign.counts()
    }

    fn of(&mut self, netns: u32) -> Option<&mut Ours> {
        if self.namespaces.len() >= MAX_NAMESPACES && !self.namespaces.contains_key(&netns) {
            return None;
        }
        Some(self.namespaces.entry(netns).or_default())
    }

    fn match_resets(&mut self, event: &Event, end: Option<&End>, netns: u32) {
        let at_ns = event.ts_ns();
        let receives = |end: &End| Receiver { netns, local: end.local, remote: end.remote };
        let receives_ours = |end: &End| Receiver { netns, local: end.remote, remote: end.local };
        match (event, end) {
            (Event::Stray(stray), _) => self.foreign.sent(Receiver { netns, local: stray.remote, remote: stray.local }, at_ns),
            (Event::End(end), _) if end.hook == Hook::ReceiveReset => self.foreign.received(receives(end), at_ns),
            (Event::End(end), _) if end.hook == Hook::SendReset => self.foreign.sent(receives_ours(end), at_ns),
            (Event::After(after), Some(end)) => {
                let AfterKind::ResetSent { answer, .. } = after.kind else { return };
                // tcp_reset() was called for data after close(): it was we who sent the RST.
                if answer && end.hook == Hook::ReceiveReset {
                    self.foreign.not_received(receives(end));
                }
                self.foreign.sent(receives_ours(end), at_ns);
            }
            _ => {}
        }
    }
}
