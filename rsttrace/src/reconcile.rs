//! A run's own audit: the kernel's counters at its beginning and its end, and what was counted between.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    audit::{self, Audit, Circumstances, Losses, Reading, Span, Tally},
    enrich::netns::Namespaces,
    probe::{Counters, Probe},
};

/// A kernel's reason that all kernels have which give reasons for active RSTs.
const REASON: &str = "TCP_ABORT_ON_CLOSE";

/// What is needed at the end to compare.
#[derive(Debug)]
pub struct Reconciliation {
    namespaces: Namespaces,
    only: Option<u32>,
    circumstances: Circumstances,
    first: BTreeMap<u32, Reading>,
}

impl Reconciliation {
    /// Once the hooks are attached: from the moment of each reading on, both sides count.
    pub fn begin(probe: &Probe, only: Option<u32>, tally: &mut Tally) -> Self {
        let attached = |name: &str| probe.hooks.iter().any(|hook| hook.name == name && hook.how.is_some());
        let circumstances = Circumstances {
            sent_resets: attached("tcp_send_reset"),
            // The hook has had its reason since it fires for every RST.
            socketless: !probe.reasons.is_empty() || attached("tcp_v4_send_reset"),
            reasons: probe.reasons.iter().any(|(_, name)| name == REASON),
        };
        tally.reasons = circumstances.reasons;
        let mut namespaces = Namespaces::look(only);
        let first = namespaces.read(None);
        for (netns, reading) in &first {
            tally.begin(*netns, reading.at_ns);
        }
        Self { namespaces, only, circumstances, first }
    }

    /// Reads the counters for the last time. What has happened before is in the ring by now.
    pub fn close(&mut self, tally: &mut Tally) -> BTreeMap<u32, Reading> {
        let counted = tally.namespaces().filter(|(_, ours)| !ours.counts.is_zero()).map(|(netns, _)| netns);
        let wanted: BTreeSet<u32> = self.first.keys().copied().chain(counted).filter(|netns| self.is_of_interest(*netns)).collect();
        let last = self.namespaces.read(Some(&wanted));
        for (netns, reading) in &last {
            tally.close(*netns, reading.at_ns);
        }
        last
    }

    /// Once the ring is read to its end.
    pub fn compare(&self, last: &BTreeMap<u32, Reading>, tally: &Tally, counters: &Counters, undecodable: u64) -> Audit {
        let mut spans: BTreeMap<u32, Span> = BTreeMap::new();
        for (netns, first) in &self.first {
            spans.insert(*netns, Span { first: Some(*first), last: last.get(netns).copied() });
        }
        for (netns, last) in last {
            // One that had a name and no process has counters, and nobody knows how far they were.
            if !self.namespaces.is_named(*netns) {
                spans.entry(*netns).or_insert(Span { first: None, last: Some(*last) });
            }
        }
        let losses =
            Losses { lost: counters.lost_by_hook.iter().sum(), skipped: counters.skipped.iter().map(|(_, n)| n).sum(), undecodable };
        let mut audit = audit::compare(tally, &spans, self.circumstances, losses);
        audit.not_audited.retain(|netns| self.is_of_interest(*netns));
        if let Some(foreign) = &mut audit.foreign {
            foreign.retain(|netns, _| self.is_of_interest(*netns));
        }
        audit
    }

    fn is_of_interest(&self, netns: u32) -> bool {
        self.only.is_none_or(|only| only == netns)
    }
}
