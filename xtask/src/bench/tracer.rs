//! rsttrace, as it is measured.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::process::{self, Process, Stream};

/// A tracer that is ready.
pub struct Tracer {
    process: Process,
    /// Where it writes, unless nobody reads it.
    output: Option<PathBuf>,
    /// The process that reads /proc for it.
    helper: Option<u32>,
    cpu_at_start: u64,
    /// From its start until it was ready.
    pub took: Duration,
}

/// What a tracer did, by its own words and the kernel's account.
pub struct Traced {
    pub records: u64,
    pub lost: u64,
    /// From when it was ready to its end, both processes.
    pub cpu_ns: u64,
    pub teardowns: Vec<Value>,
}

impl Tracer {
    /// Starts it with these flags. What it writes is kept in `output`, or nobody reads it.
    pub fn start(binary: &Path, flags: &[&str], output: Option<PathBuf>) -> Result<Self> {
        let stdout = match &output {
            Some(path) => File::create(path).with_context(|| format!("cannot write {}", path.display()))?.into(),
            None => Stdio::null(),
        };
        let begun = Instant::now();
        let process = Process::start(Command::new(binary).args(flags).stdin(Stdio::null()).stdout(stdout), Stream::Stderr)?;
        process.wait_for("rsttrace: ready")?;
        let took = begun.elapsed();
        let helper = process::children(process.pid()).first().copied();
        let mut tracer = Self { process, output, helper, cpu_at_start: 0, took };
        tracer.cpu_at_start = process::cpu_ns(tracer.pid())? + tracer.helper_ns();
        Ok(tracer)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its processes: the tracer, and the one that reads /proc for it.
    pub fn processes(&self) -> Vec<u32> {
        [self.pid()].into_iter().chain(self.helper).collect()
    }

    fn helper_ns(&self) -> u64 {
        self.helper.and_then(|pid| process::cpu_ns(pid).ok()).unwrap_or(0)
    }

    /// Stops it.
    pub fn stop(self) -> Result<Traced> {
        let helper_ns = self.helper_ns();
        let ended = self.process.interrupt()?;
        if !ended.success {
            bail!("rsttrace failed:\n{}", ended.lines.join("\n"));
        }
        let records = ended.lines.iter().find_map(|line| records(line));
        let lost = ended.lines.iter().find_map(|line| number(line.strip_prefix("tracer lost ")?.split(' ').next()?));
        let teardowns = match &self.output {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                let records = text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
                records.into_iter().filter(|record| record["record"] == "teardown").collect()
            }
            None => Vec::new(),
        };
        Ok(Traced {
            records: records.context("rsttrace's summary tells no number of ends")?,
            lost: lost.unwrap_or(0),
            cpu_ns: (ended.cpu_ns + helper_ns).saturating_sub(self.cpu_at_start),
            teardowns,
        })
    }
}

/// "50,003 sockets ended: 3 orderly, ..."; orderly ends have no records here.
fn records(line: &str) -> Option<u64> {
    let (all, kinds) = line.split_once(" ended: ")?;
    Some(number(all.split_once(" socket")?.0)? - number(kinds.split_once(" orderly")?.0)?)
}

/// "50,000"
fn number(grouped: &str) -> Option<u64> {
    grouped.trim().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_the_ends_that_were_not_orderly() {
        assert_eq!(records("50,003 sockets ended: 3 orderly, 25,000 RST received, 25,000 RST sent"), Some(50_000));
        assert_eq!(records("1 socket ended: 0 orderly, 1 RST sent"), Some(1));
        assert_eq!(records("harm: 0 none"), None);
    }
}
