//! Harness of the kernel scenarios: the real tracer on the real kernel, and scripted peers.
//!
//! A scenario looks like this: spawn [`Actor`]s, have them connect and end a connection in one
//! particular way, then [`Tracer::teardown`] gives the record of one socket of it, and [`expect`]
//! compares it field by field. Nothing here sleeps to synchronise; everything waits for a
//! condition with a deadline and fails with what was seen instead.
//!
//! Without the feature `harness` there is only what needs no records: what `load` is made of.

#[cfg(feature = "harness")]
mod actor;
pub mod bpf;
#[cfg(feature = "harness")]
mod browser;
mod cgroup;
#[cfg(feature = "harness")]
mod expect;
#[cfg(feature = "harness")]
mod flow;
#[cfg(feature = "logs")]
pub mod haproxy;
#[cfg(feature = "harness")]
mod link;
mod netns;
#[cfg(feature = "logs")]
pub mod nginx;
#[cfg(feature = "harness")]
mod pair;
pub mod peers;
#[cfg(feature = "harness")]
mod refused;
mod requirements;
#[cfg(feature = "harness")]
mod schema;
#[cfg(feature = "harness")]
mod strace;
#[cfg(feature = "harness")]
mod tracer;

#[cfg(feature = "harness")]
pub use actor::{Actor, Fd};
#[cfg(feature = "harness")]
pub use browser::Browser;
pub use cgroup::Cgroup;
#[cfg(feature = "harness")]
pub use expect::{expect, in_range, number, text};
#[cfg(feature = "harness")]
pub use flow::{Flow, is_stray, is_teardown, of_kind};
#[cfg(feature = "harness")]
pub use link::{Direction, Fate, Link, Segment, veth};
pub use netns::{NetNs, current_netns};
#[cfg(feature = "harness")]
pub use pair::{Pair, Side, observed};
pub use requirements::{cannot_trace, missing_tool, tell_skipped};
#[cfg(feature = "harness")]
pub use schema::check_record;
#[cfg(feature = "harness")]
pub use strace::{Call, Strace};
#[cfg(feature = "harness")]
pub use tracer::{PublicCopy, Run, Tracer, binary, shared};

/// How long a test waits for anything before it fails.
pub const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// Returns early from a test, saying why, where the tracer cannot run; fails instead under `CI`.
#[macro_export]
macro_rules! require_root {
    () => {
        if let Some(why) = $crate::cannot_trace() {
            $crate::tell_skipped(&why);
            return;
        }
    };
}

/// Returns early from a test, saying why, where a tool is not installed; fails instead under `CI`.
#[macro_export]
macro_rules! require_tool {
    ($tool:expr) => {
        if let Some(why) = $crate::missing_tool($tool) {
            $crate::tell_skipped(&why);
            return;
        }
    };
}

/// Waits until a condition holds; panics after [`DEADLINE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "deadline passed while waiting until {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
