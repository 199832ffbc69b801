//! cargo-deny, which looks at what rsttrace depends on.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;

use crate::host;

const VERSION: &str = "0.20.2";

pub fn find() -> Option<PathBuf> {
    host::find_installed("cargo-deny")
}

pub fn install() -> Result<()> {
    eprintln!("setup: installing cargo-deny {VERSION} (cargo install): to check licences, versions and sources of dependencies");
    let started = Instant::now();
    let mut cargo = host::cargo();
    cargo.args(["install", "--quiet", "--locked", "--no-default-features", &format!("cargo-deny@{VERSION}")]);
    // Its release profile is made for speed, and it runs for two seconds as it is.
    for (name, value) in [("OPT_LEVEL", "0"), ("DEBUG", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "16")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    host::run(&mut cargo, "installing cargo-deny (needs access to the crates registry)")?;
    eprintln!("setup: cargo-deny took {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}
