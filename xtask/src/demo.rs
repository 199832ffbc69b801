//! `cargo xtask demo`: the real tracer beside a loopback workload that makes every kind of end.

use std::{env, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Error, Result, bail};

use crate::{build, host, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Further flags for rsttrace, after `--`: `cargo xtask demo -- --json`
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Becomes the tracer, so that Ctrl-C and the exit status are the tracer's own.
pub fn run(options: &Options) -> Result<()> {
    setup::for_build()?;
    let tracer = build::tracer()?;
    let workload = build::workload()?;

    let mut command = if host::is_root() {
        Command::new(&tracer)
    } else if let Some(sudo) = host::find_in_path("sudo") {
        let mut command = Command::new(sudo);
        command.arg(&tracer);
        command
    } else {
        bail!(
            "the demo needs root to load BPF programs, and there is no sudo here; run as root:\n  {} -a -- {}",
            tracer.display(),
            workload.display()
        );
    };
    command.args(["-a", "--join-timeout", "300ms"]).args(&options.flags).arg("--").arg(&workload);
    eprintln!("demo: {}", shown(&command));
    let error = Error::new(command.exec());
    Err(error.context(format!("cannot start {}", command.get_program().to_string_lossy())))
}

/// The command as one would type it here.
fn shown(command: &Command) -> String {
    let here = env::current_dir().unwrap_or_default();
    let word = |word: &std::ffi::OsStr| Path::new(word).strip_prefix(&here).unwrap_or(Path::new(word)).display().to_string();
    let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(word).collect();
    words.join(" ")
}
