//! rsttrace: why TCP connections end. See ARCHITECTURE.md for the path of an event.

pub mod applog;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod correlate;
pub mod decode;
pub mod doctor;
pub mod enrich;
pub mod explain;
pub mod filter;
pub mod follow;
pub mod input;
pub mod join;
pub mod model;
pub mod offline;
pub mod output;
pub mod pipeline;
pub mod probe;
pub mod reconcile;
pub mod run;
pub mod sandbox;
pub mod status;
pub mod stdout;
pub mod units;
pub mod verdict;
