//! Exit statuses, the same of every command; `--help` and the man page list them.

/// Failed while running, or a file had something that could not be read.
pub const FAILED: u8 = 1;
/// Bad usage; clap exits with the same.
pub const USAGE: u8 = 2;
/// This machine cannot run it.
pub const UNUSABLE: u8 = 3;
/// A record is what `--fail-on` asks for.
pub const FOUND: u8 = 4;
