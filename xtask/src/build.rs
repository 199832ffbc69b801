//! `cargo xtask build`: leaves the tracer in target/release.

use std::path::PathBuf;

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
