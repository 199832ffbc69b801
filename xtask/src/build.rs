//! `cargo xtask build`: leaves the tracer in target/release.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{host, setup};

pub fn run() -> Result<()> {
    setup::for_build()?;
    println!("build: {}", tracer()?.display());
    Ok(())
}

/// Builds the tracer and says where it is.
pub fn tracer() -> Result<PathBuf> {
    host::run(host::cargo().args(["build", "--release", "--package", "rsttrace"]), "building rsttrace")?;
    Ok(host::target_dir()?.join("release/rsttrace"))
}

/// The only target that Rust can build for everywhere: its glibc can be linked statically too.
pub const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Has cargo link statically, and the same wherever it is done: without paths of this machine.
pub fn statically(cargo: &mut Command) -> &mut Command {
    let without = |path: &Path, name: &str| format!("--remap-path-prefix={}={name}", path.display());
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), without(host::root(), "/rsttrace")];
    flags.extend(host::cargo_home().map(|home| without(&home, "/cargo")));
    cargo.args(["--target", STATIC_TARGET]).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
}

/// Builds the tracer that needs no libraries, which is what packages and guests have, and says where it is.
pub fn static_tracer() -> Result<PathBuf> {
    host::run(statically(host::cargo().args(["build", "--quiet", "--release", "--package", "rsttrace"])), "building a static rsttrace")?;
    Ok(static_release()?.join("rsttrace"))
}

/// Where static programs are built.
pub fn static_release() -> Result<PathBuf> {
    Ok(host::target_dir()?.join(STATIC_TARGET).join("release"))
}

/// Builds the demonstration's workload and says where it is.
///
/// Not in one go with the tracer: cargo would unite the features of both and build twice. Without
/// default features: the workload needs nothing of the harness beside it.
pub fn workload() -> Result<PathBuf> {
    scripted("workload")
}

/// Builds what makes the benchmarks' load and says where it is.
pub fn load() -> Result<PathBuf> {
    scripted("load")
}

fn scripted(name: &str) -> Result<PathBuf> {
    let args = ["build", "--release", "--package", "rsttrace-tests", "--bin", name, "--no-default-features"];
    host::run(host::cargo().args(args), &format!("building the {name}"))?;
    Ok(host::target_dir()?.join("release").join(name))
}
