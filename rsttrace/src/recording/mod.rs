//! Recordings: what `--json` says, compressed, in a file that can be appended to and read after a crash.
//!
//! A recording is a sequence of gzip members (RFC 1952), so that `zcat` reads it too. Each member is a block
//! of whole lines, complete in itself with its own checksum, and says in an extra field what it is, in which
//! version, and how long it is (docs/recordings.md).

pub mod format;
mod recorder;
mod shelf;

pub use self::{
    recorder::{Keep, Limits, Message, Recorder},
    shelf::{Place, Shelf},
};
