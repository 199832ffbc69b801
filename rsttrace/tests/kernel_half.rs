//! The kernel half as the loader sees it. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{env, fs::OpenOptions, io::Write as _};

use aya::programs::loaded_programs;
use rsttrace::probe::{Options, Probe};

/// Says why a test did not run, where `cargo xtask test` gathers it.
fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
    if let Some(path) = env::var_os("RSTTRACE_SKIPS") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// Instructions left of each tracepoint program after the verifier has removed what cannot run.
fn sizes(kernel_log: bool) -> Vec<(String, u32)> {
    let options = Options {
        want_fin: false,
        buffer_bytes: 1 << 16,
        max_sockets: 64,
        without: Vec::new(),
        syscall_hooks: false,
        kernel_log,
        choice: None,
        http: false,
    };
    let before: Vec<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
    let probe = Probe::start(&options).unwrap();
    let mut sizes: Vec<_> = loaded_programs()
        .flatten()
        .filter(|program| !before.contains(&program.id()))
        .filter_map(|program| Some((program.name_as_str()?.to_owned(), program.size_translated()?)))
        // The kernel cuts names at 15 bytes.
        .filter(|(name, _)| probe.hooks.iter().any(|hook| hook.name.starts_with(name.as_str())))
        .collect();
    sizes.sort();
    sizes
}

#[test]
fn no_log_call_is_left_in_the_default_programs() {
    if !rustix::process::geteuid().is_root() {
        return skip("no_log_call_is_left_in_the_default_programs", "needs root to load programs");
    }
    let (silent, logging) = (sizes(false), sizes(true));
    assert_eq!(silent.len(), logging.len());
    assert!(silent.len() >= 4, "{silent:?}");
    let mut with_calls = 0;
    for ((name, without), (_, with)) in silent.iter().zip(&logging) {
        assert!(without <= with, "{name}: {without} bytes without log calls, {with} with them");
        with_calls += usize::from(without < with);
    }
    // All but what reports nothing by itself (tcp_probe, tcp_reset).
    assert!(with_calls >= silent.len() - 2, "{silent:?}, with log calls {logging:?}");
    println!("without log calls {silent:?}\nwith {logging:?}");
}
