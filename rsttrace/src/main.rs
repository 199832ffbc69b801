//! Parse, run, and map what went wrong to a message and an exit status.

#![warn(clippy::print_stderr, clippy::print_stdout)]

use std::{fmt::Display, io::ErrorKind, net::TcpListener, process::ExitCode};

use rsttrace::{
    cli::{self, Cli, Task},
    config::Config,
    diff, doctor,
    exit::{FAILED, UNUSABLE, USAGE},
    explain, export,
    follow::Doors,
    offline,
    output::escape::for_terminal,
    probe::ProbeError,
    replay, report, run,
    sandbox::{self, Broker},
    status, top,
};

fn main() -> ExitCode {
    obey(Cli::of_this_process()).unwrap_or_else(|code| code)
}

/// `Err` where something went wrong that has been said.
fn obey(cli: Cli) -> Result<ExitCode, ExitCode> {
    match cli.task {
        Some(Task::Explain { cause }) => explain::run(cause.as_deref(), status::columns()).map_err(|error| failed(&format!("{error:#}"))),
        Some(Task::Doctor(request)) => Ok(doctor::run(&request)),
        Some(Task::Correlate(request)) => offline(request, |request, columns| offline::run(&request, columns)),
        Some(Task::Diff(request)) => offline(request, |request, columns| diff::run(&request, columns)),
        Some(Task::Replay(request)) => offline(*request, replay::run),
        Some(Task::Report(request)) => offline(request, |request, _| report::run(&request)),
        Some(Task::Top(request)) => {
            let request = as_the_user(USAGE, || top::Request::try_from(*request))?;
            top::run(&request).map_err(|error| failed(&format!("{error:#}")))
        }
        None if cli.trace.replay.is_empty() => trace(cli.trace),
        None => {
            let cli::Trace { replay: files, select, show, .. } = cli.trace;
            offline(cli::Replay { files, select, show }, replay::run)
        }
    }
}

fn trace(trace: cli::Trace) -> Result<ExitCode, ExitCode> {
    if trace.show.verbose >= 2 {
        // Both halves of rsttrace; the loader's own chatter only where RUST_LOG asks for it.
        env_logger::Builder::new().filter_module("rsttrace", log::LevelFilter::Debug).parse_default_env().init();
    }
    let config = as_the_user(USAGE, || Config::try_from(trace))?;
    let export = export_request(&config).map_err(|error| failed(&error))?;
    // Before there is a runtime: it forks.
    let files = config.log.as_ref().map(|log| Doors::new(log.paths.clone())).transpose();
    let files = files.map_err(|error| failed(&format!("cannot watch log files: {error} (fs.inotify.max_user_instances)")))?;
    let record = config.record.as_ref().map(|record| record.open(!config.keep_privileges)).transpose();
    let record = record.map_err(|error| failed(&format!("{error:#}")))?;
    let export = (!export.is_empty()).then(|| export::start(export)).transpose();
    let export = export.map_err(|error| failed(&format!("cannot fork: {error}; without --metrics and --otlp it would run")))?;
    let broker = (!config.keep_privileges).then(|| Broker::start(files.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(&format!("cannot start: {error}")))?;
    runtime.block_on(run::run(config, files, record, broker, export)).map_err(|error| {
        let code = failed(&format!("{error:#}"));
        if error.is::<ProbeError>() { UNUSABLE.into() } else { code }
    })
}

/// What is listened on is bound before anything else happens.
fn export_request(config: &Config) -> Result<export::Request, String> {
    let listen = |at| {
        TcpListener::bind(at).map_err(|error| {
            let way_out = match error.kind() {
                ErrorKind::AddrNotAvailable => "give an address of this machine",
                _ => "another port can be given",
            };
            format!("--metrics: cannot listen on {at}: {error}; {way_out}")
        })
    };
    Ok(export::Request {
        metrics: config.metrics.map(listen).transpose()?,
        readable: config.otlp.iter().flat_map(|_| export::otlp::READABLE).collect(),
        ports: config.otlp.iter().flat_map(export::otlp::Settings::ports).collect(),
        otlp: config.otlp.clone(),
        confined: !config.keep_privileges,
    })
}

/// What reads files that the user has named, and traces nothing.
fn offline<Cli, Request>(cli: Cli, run: impl FnOnce(Request, Option<usize>) -> anyhow::Result<ExitCode>) -> Result<ExitCode, ExitCode>
where
    Request: TryFrom<Cli, Error: Display>,
{
    let request = Request::try_from(cli).map_err(|error| {
        complain(&error.to_string());
        ExitCode::from(USAGE)
    })?;
    as_the_user(FAILED, || run(request, status::columns()))
}

/// `code`: the exit status where `work` fails.
fn as_the_user<T, E: Display>(code: u8, work: impl FnOnce() -> Result<T, E>) -> Result<T, ExitCode> {
    match sandbox::as_the_user(work) {
        Ok(result) => result.map_err(|error| {
            complain(&format!("{error:#}"));
            code.into()
        }),
        Err(error) => Err(failed(&format!("cannot change capabilities: {error}"))),
    }
}

fn failed(message: &str) -> ExitCode {
    complain(message);
    FAILED.into()
}

/// What it says may quote arguments, which may come from anywhere.
fn complain(message: &str) {
    let lines: Vec<_> = message.lines().map(for_terminal).collect();
    status::say(&format!("rsttrace: {}", lines.join("\n")));
}
