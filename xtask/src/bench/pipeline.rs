//! Recorded events through the user half, without a kernel: `cargo bench -p rsttrace --bench pipeline`.

use std::{fs, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bench, report::Report};
use crate::host;

pub fn run(_: &Bench) -> Result<Report> {
    let mut report = Report::new("pipeline", "recorded events through decode, join, verdict and output");
    if !fs::exists(host::root().join("rsttrace/benches/pipeline.rs")).unwrap_or(false) {
        report.note("there is no such benchmark in this tree");
        return Ok(report);
    }
    let mut cargo = host::cargo();
    cargo.args(["bench", "--quiet", "--package", "rsttrace", "--bench", "pipeline", "--", "--json"]);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo bench")?;
    ensure!(output.status.success(), "cargo bench failed ({}); the messages above say why", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| line.starts_with('{'));
    let figures = lines.map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>().context("cargo bench wrote no JSON")?;
    let columns: Vec<&str> =
        figures.first().and_then(Value::as_object).into_iter().flat_map(|first| first.keys().map(String::as_str)).collect();
    let table = report.table(&columns);
    for figure in &figures {
        let cell = |column: &&str| match &figure[*column] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.row(columns.iter().map(cell).collect::<Vec<_>>());
    }
    report.runs = figures.clone().into();
    Ok(report)
}
