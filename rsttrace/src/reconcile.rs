//! A run's own audit: the kernel's counters at its beginning and its end, and what was counted between.

use std::collections::{BTreeMap, BTreeSet};

use rsttrace_common::hook;

use crate::{
    audit::{self, Audit, Circumstances, Losses, Reading, Span, Tally},
    enrich::{Processes, netns::Namespaces},
    probe::{Counters, Probe},
};

/// A kernel's reason that all kernels have which give reasons for active RSTs.
const REASON: &str = "TCP_ABORT_ON_CLOSE";

/// Hooks whose events step no counter.
const UNCOUNTED: [&str; 9] = [
    "sock_recv_length",
    "sock_send_length",
    "tcp_destroy_sock",
    "cgroup/getsockopt",
    "sys_exit",
    "sched_process_exec",
    hook::SCHED_PROCESS_FORK,
    hook::TCP_PROBE,
    hook::TCP_RESET,
];

/// For RSTs without a full socket, before 6.10.
const STAND_IN: [&str; 2] = [hook::TCP_V4_SEND_RESET, hook::TCP_V6_SEND_RESET];

/// What is missing for the comparison, of what is missing by hook.
fn of_counted(by_hook: impl Iterator<Item = (&'static str, u64)>) -> u64 {
    by_hook.filter(|(name, _)| !UNCOUNTED.contains(name)).map(|(_, n)| n).sum()
}

/// What is needed at the end to compare.
#[derive(Debug)]
pub struct Reconciliation {
    namespaces: Namespaces,
    only: Option<u32>,
    circumstances: Circumstances,
    /// Namespaces that were there at the beginning,
    known: BTreeSet<u32>,
    /// and those of them whose counters could be read then.
    first: BTreeMap<u32, Reading>,
}

impl Reconciliation {
    /// Once the hooks are attached: from the moment of each reading on, both sides count.
    pub fn begin(probe: &Probe, only: Option<u32>, tally: &mut Tally) -> Self {
        let attached = |name: &str| probe.hooks.iter().any(|hook| hook.name == name && hook.how.is_some());
        let circumstances = Circumstances {
            sent_resets: attached("tcp_send_reset"),
            // The tracepoint has had its reason since it fires for every RST; else others stand in, one per family.
            socketless: !probe.reasons.is_empty()
                || probe.hooks.iter().filter(|hook| STAND_IN.contains(&hook.name)).all(|hook| hook.how.is_some()),
            reasons: probe.reasons.iter().any(|(_, name)| name == REASON),
        };
        tally.reasons = circumstances.reasons;
        let namespaces = Namespaces::look(only);
        let known = namespaces.known();
        let first = namespaces.read(&known);
        for (netns, reading) in &first {
            tally.begin(*netns, reading.at_ns);
        }
        Self { namespaces, only, circumstances, known, first }
    }

    /// Privileges are about to be given up.
    pub fn confine(&mut self) {
        self.namespaces.confine();
    }

    /// Reads the counters for the last time. What has happened before is in the ring by now.
    pub fn close(&mut self, tally: &mut Tally, processes: &mut Processes) -> BTreeMap<u32, Reading> {
        let later = tally.namespaces().filter(|(netns, _)| !self.known.contains(netns));
        self.namespaces.find(&later.filter_map(|(netns, ours)| Some((netns, ours.first_ns?))).collect(), processes);
        let last = self.namespaces.read(&self.namespaces.known());
        for (netns, reading) in &last {
            tally.close(*netns, reading.at_ns);
        }
        last
    }

    /// Once the ring is read to its end.
    pub fn compare(&self, last: &BTreeMap<u32, Reading>, tally: &Tally, counters: &Counters, undecodable: u64) -> Audit {
        let span = |netns: u32, last: Reading| Span { first: self.first.get(&netns).copied(), last };
        // One that was known, but could not be read at the beginning, is no new one.
        let comparable = |netns: &u32| self.first.contains_key(netns) || !self.known.contains(netns);
        let spans = last.iter().filter(|(netns, _)| comparable(netns)).map(|(netns, last)| (*netns, span(*netns, *last))).collect();
        let lost = hook::NAMES.iter().copied().zip(counters.lost_by_hook);
        let losses = Losses { lost: of_counted(lost), skipped: of_counted(counters.skipped.iter().copied()), undecodable };
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
