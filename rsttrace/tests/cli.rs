//! The command line as far as it goes without root: what is refused, and in which words.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs::File, io, path::Path, process::Stdio};

use assert_cmd::Command;

fn rsttrace(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("rsttrace").unwrap().args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Bad usage: status 2, nothing on stdout, and the message names what is wrong.
fn refused(args: &[&str], words: &[&str]) {
    let (code, stdout, stderr) = rsttrace(args);
    assert_eq!(code, 2, "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {word:?} is not in {stderr}");
    }
}

#[test]
fn bad_values_are_named_with_what_was_expected() {
    refused(&["--local-port", "70000"], &["70000", "1 to 65535"]);
    refused(&["-D", "90-80"], &["90-80", "empty range"]);
    refused(&["--port", "http"], &["http"]);
    refused(&["--addr", "10.0.0.0/33"], &["10.0.0.0/33", "CIDR"]);
    refused(&["--remote-addr", "!nonsense"], &["nonsense"]);
    refused(&["--errno", "ENOSUCH"], &["ENOSUCH", "ECONNRESET"]);
    refused(&["--end", "crash"], &["crash", "reset-received"]);
    refused(&["--duration", "soon"], &["soon", "30s"]);
    refused(&["--duration", "0"], &["0", "30s"]);
    refused(&["--count", "0"], &["0", "at least 1"]);
    refused(&["correlate", "--events", "x"], &["--error-log <FILE>", "--access-log <FILE>"]);
    refused(&["correlate", "--events", "x", "--error-log", "y", "--log-zone", "Mars"], &["Mars", "Europe/Berlin", "+02:00"]);
    refused(&["--rate-limit", "0"], &["0", "5/s"]);
    refused(&["--rate-limit", "5/m"], &["5/m", "lines per second"]);
    refused(&["--color", "sometimes"], &["sometimes", "auto"]);
    refused(&["--time", "mars"], &["mars", "utc"]);
    refused(&["--buffer", "1"], &["64k"]);
    refused(&["--max-sockets", "0"], &["0"]);
    refused(&["--without", "tcp_fin"], &["tcp_fin", "sock_recv_length"]);
    refused(&["--netns", "no-such-namespace"], &["/run/netns/no-such-namespace", "ip netns"]);
    for other in ["", "0", "/etc/hostname", "/run", "/proc/self/ns/mnt"] {
        refused(&["--netns", other], &["--netns", "ip netns", "/proc/PID/ns/net"]);
        refused(&["replay", "x", "--netns", other], &["--netns"]);
    }
    refused(&["--netns", "/proc/self/ns/mnt"], &["/proc/self/ns/mnt: this is no network namespace"]);
    refused(&["-p", "4194305"], &["there is no process 4194305"]);
    refused(&["-p", ""], &["--pid"]);
    refused(&["--cmdline", ""], &["--cmdline"]);
    refused(&["--container", "web"], &["web", "names are not known"]);
    refused(&["--container", "abc"], &["abc", "4 to 64"]);
    refused(&["--unit", "system.slice"], &["system.slice", "a service or a scope"]);
    refused(&["--unit", "a/b"], &["a/b", "nginx.service"]);
    refused(&["-4", "-6"], &["cannot be used with"]);
    refused(&["-q", "-v"], &["cannot be used with"]);
    refused(&["--http"], &["--http", "--pid, --cmdline or -- CMD"]);
    refused(&["-p", "nginx", "--http-query"], &["--http"]);
    refused(&["--no-such-flag"], &["--no-such-flag"]);
    refused(&["nginx"], &["nginx"]);
}

#[test]
fn what_may_have_been_meant_is_proposed() {
    refused(&["repaly", "x"], &["repaly", "'replay'"]);
    refused(&["-q", "replay", "x"], &["replay comes first"]);
    refused(&[&example("before.rst")], &["rsttrace replay ", "before.rst` shows"]);
    for args in [&["--foo"][..], &["diff", "--foo", "a", "b"], &["/nonexistent.rst"]] {
        let (code, _, stderr) = rsttrace(args);
        assert_eq!(code, 2);
        assert!(!stderr.contains("tip:"), "{stderr}");
    }
    assert!(rsttrace(&["--recrod", "x"]).2.contains("--record"));
    assert_eq!(rsttrace(&["help"]).1, rsttrace(&["--help"]).1);
    assert_eq!(rsttrace(&["help", "replay"]).1, rsttrace(&["replay", "--help"]).1);
}

#[test]
fn help_is_short_by_letter_and_long_by_word() {
    let (code, short, _) = rsttrace(&["-h"]);
    assert_eq!(code, 0);
    let (code, long, _) = rsttrace(&["--help"]);
    assert_eq!(code, 0);
    assert!(short.lines().count() < long.lines().count());
    for heading in ["Processes:", "Connections:", "Ends:", "Output:", "Run:", "Examples:", "Exit status:"] {
        assert!(short.contains(heading) && long.contains(heading), "{heading}");
    }
    for line in short.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(rsttrace(&["--version"]).1, format!("rsttrace {}\n", env!("CARGO_PKG_VERSION")));
}

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name).to_str().unwrap().to_owned()
}

/// Exit status with these as stdout and stderr.
fn status(args: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Option<i32> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rsttrace"));
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(stderr).status().unwrap().code()
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// Its reader has gone.
fn closed() -> io::PipeWriter {
    io::pipe().unwrap().1
}

#[test]
fn nobody_has_to_hear_what_is_said() {
    let (before, after) = (example("before.rst"), example("after.rst"));
    let log = example("README.md");
    let correlate = ["correlate", "--events", &before, "--error-log", &log];
    for (args, code) in [
        (&["replay", &before][..], 0),
        (&["replay", &before, "--fail-on", "harm=lost"], 4),
        (&["replay", &log], 1),
        (&["replay", "/nonexistent"], 1),
        (&["top", &before], 0),
        (&["diff", &before, &after], 0),
        (&["report", &before, "-o", "-"], 0),
        (&["explain", "time-wait"], 0),
        (&["explain", "nonsense"], 2),
        (&["explain"], 0),
        (&correlate, 1),
        (&["--no-such-flag"], 2),
        (&["--help"], 0),
    ] {
        assert_eq!(status(args, Stdio::null(), full()), Some(code), "{args:?}, full");
        assert_eq!(status(args, Stdio::null(), closed()), Some(code), "{args:?}, closed");
        // What goes to a pipe nobody reads is not read to its end either.
        let code = if args[0] == "correlate" { 0 } else { code };
        assert_eq!(status(args, closed(), closed()), Some(code), "{args:?}, both closed");
    }
}

#[test]
fn a_network_namespace_is_one_by_number_or_path() {
    for netns in ["4026531840", "1", "/proc/self/ns/net"] {
        assert_eq!(status(&["replay", &example("before.rst"), "--netns", netns], Stdio::null(), Stdio::null()), Some(0), "{netns}");
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let (before, after) = (example("before.rst"), example("after.rst"));
    for args in
        [&["replay", &before][..], &["diff", &before, &after], &["report", &before, "-o", "-"], &["explain"], &["explain", "time-wait"]]
    {
        assert_eq!(status(args, full(), Stdio::null()), Some(1), "{args:?}");
    }
}

#[test]
fn top_shows_one_thing_and_every_record_of_it() {
    refused(&["top", "--json"], &["--json", "--rate-limit"]);
    refused(&["top", "--rate-limit", "5"], &["--rate-limit"]);
    refused(&["top", "--summary"], &["--summary"]);
    refused(&["top", "records.jsonl", "--", "true"], &["FILE", "CMD", "Usage: rsttrace top"]);
    for args in
        [&["top", "records.jsonl", "-d", "1s"][..], &["top", "-r", "records.jsonl", "-d", "1s"], &["replay", "x", "--duration", "1s"]]
    {
        refused(args, &["live traces only", &format!("Usage: rsttrace {}", args[0])]);
    }
    refused(&["top", "--pid", "4194305"], &["there is no process 4194305"]);
}
