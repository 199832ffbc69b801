//! Parse, run, and map what went wrong to a message and an exit status.

use std::process::ExitCode;

use clap::Parser as _;
use rsttrace::{
    cli::{Cli, Task},
    config::Config,
    doctor, explain,
    follow::Doors,
    output::escape::for_terminal,
    probe::ProbeError,
    run,
    sandbox::{self, Broker},
};

/// Failed while running.
const FAILED: u8 = 1;
/// Bad usage; clap exits with the same.
const USAGE: u8 = 2;
/// This machine cannot run it.
const UNUSABLE: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let trace = match cli.task {
        Some(Task::Explain { cause }) => return explain::run(cause.as_deref()),
        Some(Task::Doctor(request)) => return doctor::run(&request),
        None => cli.trace,
    };
    if trace.verbose >= 2 {
        // Both halves of rsttrace; the loader's own chatter only where RUST_LOG asks for it.
        env_logger::Builder::new().filter_module("rsttrace", log::LevelFilter::Debug).parse_default_env().init();
    }
    let config = match sandbox::as_the_user(|| Config::try_from(trace)) {
        Ok(Ok(config)) => config,
        Err(error) => {
            complain(&format!("cannot change capabilities: {error}"));
            return FAILED.into();
        }
        Ok(Err(error)) => {
            complain(&error.to_string());
            return USAGE.into();
        }
    };
    // Before there is a runtime: it forks.
    let files = match config.log.as_ref().map(|log| Doors::new(log.paths.clone())).transpose() {
        Ok(files) => files,
        Err(error) => {
            complain(&format!("cannot watch log files: {error} (fs.inotify.max_user_instances)"));
            return FAILED.into();
        }
    };
    let broker = (!config.keep_privileges).then(|| Broker::start(files.clone()));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return FAILED.into();
        }
    };
    match runtime.block_on(run::run(config, files, broker)) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            if error.is::<ProbeError>() { UNUSABLE.into() } else { FAILED.into() }
        }
    }
}

/// What it says may quote arguments, which may come from anywhere.
fn complain(message: &str) {
    let lines: Vec<_> = message.lines().map(for_terminal).collect();
    eprintln!("rsttrace: {}", lines.join("\n"));
}
