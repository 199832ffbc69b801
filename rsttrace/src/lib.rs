//! rsttrace: why TCP connections end. See ARCHITECTURE.md for the path of an event.

// They panic where nobody reads: `status::say` and `stdout` do not.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]

pub mod applog;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod correlate;
pub mod decode;
pub mod diff;
pub mod doctor;
pub mod enrich;
pub mod exit;
pub mod explain;
pub mod export;
pub mod filter;
pub mod fold;
pub mod follow;
pub mod input;
pub mod join;
pub mod model;
pub mod notify;
pub mod offline;
pub mod outlet;
pub mod output;
pub mod pipeline;
pub mod probe;
pub mod reconcile;
pub mod recording;
pub mod replay;
pub mod report;
pub mod rollup;
pub mod run;
pub mod sandbox;
pub mod spare;
pub mod status;
pub mod stdout;
pub mod top;
pub mod units;
pub mod verdict;
