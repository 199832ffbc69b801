//! `cargo xtask confusion`: ends of every kind in random order, each against what it was meant to be.

use anyhow::{Result, bail};

use crate::{build, host, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Determines the order, the sizes and the delays
    #[arg(long, value_name = "N", default_value_t = 1009)]
    seed: u64,
    /// Connections to make and end
    #[arg(long, value_name = "N", default_value_t = 1009)]
    ends: u64,
    /// Only kinds of end whose name contains TEXT
    #[arg(long, value_name = "TEXT")]
    kind: Option<String>,
}

/// Fails where anything was reported otherwise than it was meant.
pub fn run(options: &Options) -> Result<()> {
    setup::for_tests()?;
    let tracer = build::tracer()?;
    if !host::is_root() {
        bail!("making ends in a network namespace of their own needs root: run it as root");
    }
    const WITHOUT_LOGS: [&str; 5] = ["--package", "rsttrace-tests", "--no-default-features", "--features", "harness"];
    // All programs: it drives processes that are one of their own.
    host::run(host::cargo().args(["build", "--quiet", "--bins"]).args(WITHOUT_LOGS), "building the generator")?;
    let mut cargo = host::cargo();
    cargo.args(["run", "--quiet", "--bin", "confusion"]).args(WITHOUT_LOGS).arg("--");
    cargo.args(["--seed", &options.seed.to_string(), "--ends", &options.ends.to_string()]);
    if let Some(kind) = &options.kind {
        cargo.args(["--kind", kind]);
    }
    host::run(cargo.env("RSTTRACE_BIN", &tracer), "the confusion matrix")
}
