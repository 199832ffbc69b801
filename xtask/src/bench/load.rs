//! `load` (tests/src/bin/load), which makes what xtask is too slow for.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    paired::Run,
    process::{Process, Stream},
};

/// Ready to begin.
pub struct Load(Process);

impl Load {
    pub fn start(binary: &Path, args: &[&str]) -> Result<Self> {
        let process = Process::start(Command::new(binary).args(args).stdin(Stdio::piped()), Stream::Stdout)?;
        process.wait_for("ready").with_context(|| format!("load {}", args.join(" ")))?;
        Ok(Self(process))
    }

    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Lets it do its work, and gives what it says of it.
    pub fn go(&mut self) -> Result<Value> {
        self.0.tell("go")?;
        let line = self.0.line()?;
        serde_json::from_str(&line).with_context(|| format!("load says: {line}"))
    }

    /// Lets it do its work, which is counted and timed.
    pub fn run(&mut self) -> Result<Run> {
        let done = self.go()?;
        let number = |name: &str| done[name].as_f64().with_context(|| format!("load tells no {name}: {done}"));
        Ok(Run { work: number("work")?, seconds: number("seconds")?, cpu_ns: number("cpu_ns")? })
    }

    /// Lets it go.
    pub fn end(self) -> Result<()> {
        self.0.end().map(drop)
    }
}
