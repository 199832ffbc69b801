//! strace as the independent witness of who got an error from which call.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Actor, wait_until};

/// One system call as strace saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub tid: i32,
    pub name: String,
    /// The first argument, where it is a descriptor.
    pub fd: Option<i32>,
    /// The symbol of the returned error.
    pub errno: Option<String>,
    pub line: String,
}

/// The file that strace writes for one actor.
pub struct Strace {
    path: PathBuf,
}

impl Strace {
    /// Starts an actor under strace.
    #[track_caller]
    pub fn actor(name: &str) -> (Actor, Self) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rsttrace-strace-{}-{number}", std::process::id()));
        let strace = Self { path };
        (Actor::spawn_under_strace(name, &strace.path), strace)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls seen so far.
    pub fn calls(&self) -> Vec<Call> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter_map(parse).collect()
    }

    /// Waits for the first call that satisfies the condition: strace writes with a delay.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn(&Call) -> bool) -> Call {
        let mut found = None;
        wait_until(&format!("strace has seen {what}"), || {
            found = self.calls().into_iter().find(|call| condition(call));
            found.is_some()
        });
        found.expect("just found")
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// `1234 recvfrom(4<socket:[99]>, 0x7f, 100, 0, NULL, NULL) = -1 ECONNRESET (Connection ...)`;
/// null for exits, signals and calls that have not returned.
fn parse(line: &str) -> Option<Call> {
    let (tid, rest) = line.split_once(char::is_whitespace)?;
    let (call, result) = rest.rsplit_once(" = ")?;
    let call = call.trim_start();
    let (name, args) = match call.strip_prefix("<... ") {
        Some(resumed) => (resumed.split_once(' ')?.0, ""),
        None => call.split_once('(')?,
    };
    let digits = args.find(|c: char| !c.is_ascii_digit()).unwrap_or(args.len());
    Some(Call {
        tid: tid.parse().ok()?,
        name: name.to_owned(),
        fd: args[..digits].parse().ok(),
        errno: result.strip_prefix("-1 ").and_then(|error| error.split_whitespace().next()).map(str::to_owned),
        line: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_read_with_its_descriptor_and_errno() {
        let call = parse(
            "812 recvfrom(4<TCP:[127.0.0.1:5->127.0.0.1:6]>, 0x7ffe, 9, 0, NULL, NULL) = -1 \
             ECONNRESET (Connection reset by peer)",
        );
        let call = call.expect("a call");
        assert_eq!((call.tid, call.name.as_str(), call.fd), (812, "recvfrom", Some(4)));
        assert_eq!(call.errno.as_deref(), Some("ECONNRESET"));
    }

    #[test]
    fn a_resumed_call_has_no_descriptor() {
        let call = parse("812 <... recvfrom resumed>0x7ffe, 9, 0, NULL, NULL) = 0").expect("a call");
        assert_eq!((call.name.as_str(), call.fd, call.errno), ("recvfrom", None, None));
    }

    #[test]
    fn an_exit_is_no_call() {
        assert_eq!(parse("812 +++ exited with 0 +++"), None);
    }
}
