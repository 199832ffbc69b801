//! The software bill of materials, in CycloneDX's JSON.
//!
//! cargo-cyclonedx knows neither the kernel half, which build.rs builds, nor the libraries of a static program.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{components::Component, output, sha256};

/// `epoch`: when it is from, in seconds since 1970.
pub fn document(components: &[Component], binary: &Path, epoch: &str) -> Result<String> {
    let (itself, others) = components.split_first().context("the binary is made of nothing")?;
    let timestamp = output(Command::new("date").args(["--utc", &format!("--date=@{epoch}"), "+%Y-%m-%dT%H:%M:%SZ"]))?;
    let mut program = component(itself, "application");
    program["hashes"] = json!([{ "alg": "SHA-256", "content": sha256(binary)? }]);
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "timestamp": timestamp.trim(), "component": program },
        "components": others.iter().map(|other| component(other, "library")).collect::<Vec<_>>(),
        "dependencies": components.iter().map(|component| json!({ "ref": component.purl, "dependsOn": component.needs })).collect::<Vec<_>>(),
    });
    Ok(format!("{document:#}\n"))
}

fn component(component: &Component, kind: &str) -> Value {
    let Component { name, version, licence, purl, repository, sha256, .. } = component;
    let mut told = json!({
        "type": kind, "bom-ref": purl, "name": name, "version": version, "licenses": [{ "expression": licence }], "purl": purl,
    });
    if let Some(sum) = sha256 {
        told["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    if let Some(url) = repository {
        told["externalReferences"] = json!([{ "type": "vcs", "url": url }]);
    }
    told
}
