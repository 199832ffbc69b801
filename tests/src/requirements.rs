//! What a machine needs to run the scenarios, and the words for what it lacks.

use std::{env, fs::OpenOptions, io::Write as _, path::Path};

/// Why the tracer cannot run here, if it cannot.
pub fn cannot_trace() -> Option<String> {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root".into());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF (/sys/kernel/btf/vmlinux)".into());
    }
    None
}

/// Why a tool cannot be used here, if it cannot.
pub fn missing_tool(tool: &str) -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]).any(|directory| directory.join(tool).exists());
    (!found).then(|| format!("{tool} is not installed"))
}

/// Says that a test is skipped, also where `cargo xtask test` gathers it; under `CI` that is a failure.
pub fn tell_skipped(why: &str) {
    assert!(env::var_os("CI").is_none(), "cannot run here: {why}");
    eprintln!("skipped: {why}");
    if let Some(path) = env::var_os("RSTTRACE_SKIPS") {
        // libtest names each thread after its test.
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let file = OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{test}: {why}"));
    }
}
