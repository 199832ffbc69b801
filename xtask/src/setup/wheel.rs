//! What checks the Kubernetes manifest: Debian does not package it. It comes from PyPI, with the schemas of all versions, and lies
//! below cargo's target directory, where nobody else looks.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::host;

const WHEEL: &str = "kubernetes-validate==1.37.0";

/// Where tests/tests/kubernetes.rs finds it.
fn directory() -> Result<PathBuf> {
    Ok(host::target_dir()?.join("setup/kubernetes-validate"))
}

pub fn is_there() -> bool {
    directory().is_ok_and(|directory| directory.join("kubernetes_validate").is_dir())
}

/// Needs pip.
pub fn install() -> Result<()> {
    let python = host::find("python3").context("python3 is not installed")?;
    eprintln!("setup: installing {WHEEL} (pip): to check the Kubernetes manifest");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"]).arg(directory()?).arg(WHEEL);
    host::run(&mut pip, "installing kubernetes-validate (needs access to PyPI)")
}
