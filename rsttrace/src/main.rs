//! Parse, run, and map what went wrong to a message and an exit status.

use std::{net::TcpListener, process::ExitCode};

use clap::Parser as _;
use rsttrace::{
    cli::{self, Cli, Task},
    config::Config,
    diff, doctor, explain, export,
    follow::Doors,
    offline,
    output::escape::for_terminal,
    probe::ProbeError,
    replay, report, run,
    sandbox::{self, Broker},
    status,
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
        Some(Task::Correlate(request)) => return offline(request, |request, columns| offline::run(&request, columns)),
        Some(Task::Diff(request)) => return offline(request, |request, columns| diff::run(&request, columns)),
        Some(Task::Replay(request)) => return offline(*request, replay::run),
        Some(Task::Report(request)) => return offline(request, |request, _| report::run(&request)),
        None => cli.trace,
    };
    if !trace.replay.is_empty() {
        let request = cli::Replay { files: trace.replay, select: trace.select, show: trace.show };
        return offline(request, replay::run);
    }
    if trace.show.verbose >= 2 {
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
    let export = match export_request(&config) {
        Ok(request) => request,
        Err(error) => {
            complain(&error);
            return FAILED.into();
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
    let record = match config.record.as_ref().map(|record| record.open(!config.keep_privileges)).transpose() {
        Ok(record) => record,
        Err(error) => {
            complain(&format!("{error:#}"));
            return FAILED.into();
        }
    };
    let export = match (!export.is_empty()).then(|| export::start(export)).transpose() {
        Ok(export) => export,
        Err(error) => {
            complain(&format!("cannot fork: {error}; without --metrics and --otlp it would run"));
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
    match runtime.block_on(run::run(config, files, record, broker, export)) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            if error.is::<ProbeError>() { UNUSABLE.into() } else { FAILED.into() }
        }
    }
}

/// What is listened on is bound before anything else happens.
fn export_request(config: &Config) -> Result<export::Request, String> {
    let listen =
        |at| TcpListener::bind(at).map_err(|error| format!("--metrics: cannot listen on {at}: {error}; another port can be given"));
    Ok(export::Request {
        metrics: config.metrics.map(listen).transpose()?,
        readable: config.otlp.iter().flat_map(|_| export::otlp::READABLE).collect(),
        ports: config.otlp.iter().flat_map(export::otlp::Settings::ports).collect(),
        otlp: config.otlp.clone(),
        confined: !config.keep_privileges,
        ..export::Request::default()
    })
}

/// What reads files that the user has named, and traces nothing.
fn offline<Cli, Request>(cli: Cli, run: impl FnOnce(Request, Option<usize>) -> anyhow::Result<ExitCode>) -> ExitCode
where
    Request: TryFrom<Cli, Error: std::fmt::Display>,
{
    let request = match Request::try_from(cli) {
        Ok(request) => request,
        Err(error) => {
            complain(&error.to_string());
            return USAGE.into();
        }
    };
    match sandbox::as_the_user(|| run(request, status::columns())) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            complain(&format!("{error:#}"));
            FAILED.into()
        }
        Err(error) => {
            complain(&format!("cannot change capabilities: {error}"));
            FAILED.into()
        }
    }
}

/// What it says may quote arguments, which may come from anywhere.
fn complain(message: &str) {
    let lines: Vec<_> = message.lines().map(for_terminal).collect();
    eprintln!("rsttrace: {}", lines.join("\n"));
}
