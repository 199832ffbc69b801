//! Exit statuses, the same of every command; `--help` and the man page list them.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

/// Failed while running, or a file had something that could not be read.
pub const FAILED: u8 = 1;
/// Bad usage; clap exits with the same.
pub const USAGE: u8 = 2;
/// This machine cannot run it.
pub const UNUSABLE: u8 = 3;
/// A record is what `--fail-on` asks for.
pub const FOUND: u8 = 4;

/// A child's status as ours, as shells have it: 128 and the signal's number where one ended it.
pub fn of_child(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}
