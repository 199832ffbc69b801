//! Whether a run has seen everything: the kernel counts ends too, per network namespace, and its
//! counters must grow by what our events add up to. docs/audit.md has the identities and what they
//! do not see. Pure: `enrich::netns` reads the counters, `reconcile` brings both together.

mod compare;
mod foreign;
mod identities;
mod tally;

use std::ops::{Index, IndexMut};

pub use self::{
    compare::{Agreement, Audit, Circumstances, Entry, Losses, Span, compare},
    tally::Tally,
};

/// Namespaces that are told apart; what happens in further ones is not audited.
pub const MAX_NAMESPACES: usize = 1_024;

/// A counter of the kernel that our events add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    EstabResets,
    OutRsts,
    AttemptFails,
    AbortOnData,
    AbortOnClose,
    AbortOnLinger,
    AbortOnTimeout,
}

impl Counter {
    pub const ALL: [Self; 7] = [
        Self::EstabResets,
        Self::OutRsts,
        Self::AttemptFails,
        Self::AbortOnData,
        Self::AbortOnClose,
        Self::AbortOnLinger,
        Self::AbortOnTimeout,
    ];

    /// As `/proc/net/snmp` and `/proc/net/netstat` have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::EstabResets => "EstabResets",
            Self::OutRsts => "OutRsts",
            Self::AttemptFails => "AttemptFails",
            Self::AbortOnData => "TCPAbortOnData",
            Self::AbortOnClose => "TCPAbortOnClose",
            Self::AbortOnLinger => "TCPAbortOnLinger",
            Self::AbortOnTimeout => "TCPAbortOnTimeout",
        }
    }
}

/// One number for each [`Counter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Counter::ALL.len()]);

impl Counts {
    /// How much each has grown.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut grown = Self::default();
        for counter in Counter::ALL {
            grown[counter] = self[counter].saturating_sub(earlier[counter]);
        }
        grown
    }

    pub fn add(&mut self, more: &Self) {
        for counter in Counter::ALL {
            self[counter] = self[counter].saturating_add(more[counter]);
        }
    }

    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl Index<Counter> for Counts {
    type Output = u64;

    fn index(&self, counter: Counter) -> &u64 {
        &self.0[counter as usize]
    }
}

impl IndexMut<Counter> for Counts {
    fn index_mut(&mut self, counter: Counter) -> &mut u64 {
        &mut self.0[counter as usize]
    }
}

/// What the kernel has counted in one namespace since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    pub counts: Counts,
    /// `EmbryonicRsts`: requests dropped from a SYN queue, for which there is no event.
    pub embryonic: u64,
}

/// The kernel's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `CLOCK_MONOTONIC`: what has happened before is in them.
    pub at_ns: u64,
    pub kernel: Kernel,
    /// By how much they moved around that moment: so much may be on its other side.
    pub unsteady: Counts,
}

#[cfg(test)]
mod tests;
