//! What the flags mean, checked.

use std::{ffi::OsString, num::NonZeroU32, path::PathBuf, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use thiserror::Error;

use crate::{
    applog::Format,
    cli::{self, ColorChoice, Correlate, EndChoice, TimeChoice, Trace},
    enrich,
    filter::{AddrFilter, Condition, Family, Filter, PortSet, ProcessSelector},
    follow,
    model::EndKind,
    offline,
    output::text::{Appearance, TimeFormat},
    top,
    verdict::timers::Timers,
};

/// A flag whose value cannot be used; the message says which and why.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct UsageError(String);

/// A validated run.
#[derive(Clone, Debug)]
pub struct Config {
    pub filter: Filter,
    /// The filters as they were given, for the first line of JSON.
    pub filter_words: Vec<String>,
    pub want_fin: bool,
    pub timers: Timers,
    pub fail_on: Vec<Condition>,
    /// Look at the HTTP of the chosen processes.
    pub http: bool,
    /// Requests are shown with their query.
    pub http_query: bool,
    pub json: bool,
    /// Lines per second of ends that are alike.
    pub rate_limit: Option<NonZeroU32>,
    pub look: Look,
    pub quiet: bool,
    pub verbose: u8,
    pub duration: Option<Duration>,
    pub count: Option<u64>,
    pub join_timeout: Duration,
    pub max_sockets: u32,
    pub buffer_bytes: u32,
    pub without: Vec<String>,
    pub syscall_hooks: bool,
    pub command: Vec<OsString>,
    pub keep_privileges: bool,
    pub log: Option<LogConfig>,
}

/// The log that is joined with the records.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// In the order of the command line.
    pub paths: Vec<PathBuf>,
    pub stdin: bool,
    pub format: Format,
    pub show_unmatched: bool,
}

impl LogConfig {
    /// Lines are read as they are written, by nobody in between.
    pub fn is_immediate(&self) -> bool {
        !self.stdin && self.format.parser().is_immediate()
    }
}

/// How text is to look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub time: TimeChoice,
    pub color: ColorChoice,
    pub ascii: bool,
    /// The evidence below each record.
    pub timeline: bool,
    /// That a log has nothing about an error is said.
    pub silence: bool,
}

impl Look {
    /// On this stdout; `started` is where relative times begin.
    pub fn on_stdout(self, started: Timestamp) -> Appearance {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default();
        let utf8 = locale.to_ascii_lowercase().replace('-', "").contains("utf8");
        let color = match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never,
        };
        Appearance {
            time: match self.time {
                TimeChoice::Local => TimeFormat::Zoned(TimeZone::system()),
                TimeChoice::Utc => TimeFormat::Zoned(TimeZone::UTC),
                TimeChoice::Relative => TimeFormat::Relative(started),
            },
            color,
            unicode: utf8 && !self.ascii,
            cjk: ["zh", "ja", "ko"].iter().any(|language| locale.starts_with(language)),
            timeline: self.timeline,
            silence: self.silence,
        }
    }
}

impl TryFrom<Correlate> for offline::Request {
    type Error = UsageError;

    fn try_from(cli: Correlate) -> Result<Self, UsageError> {
        let files = std::iter::once(&cli.events).chain(&cli.error_log).chain(&cli.access_log);
        if files.filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(UsageError("standard input (-) can be only one of the files".to_owned()));
        }
        Ok(Self {
            events: cli.events,
            error_logs: cli.error_log,
            access_logs: cli.access_log,
            format: cli.log_format,
            zone: cli.log_zone.unwrap_or_else(TimeZone::system),
            show_unmatched: cli.unmatched,
            all: cli.fin,
            json: cli.json,
            look: Look { time: cli.time, color: cli.color, ascii: cli.ascii, timeline: false, silence: cli.unmatched },
        })
    }
}

impl TryFrom<cli::Top> for top::Request {
    type Error = UsageError;

    fn try_from(cli: cli::Top) -> Result<Self, UsageError> {
        let cli::Top { file, trace } = cli;
        let refused = |words: &str| Err(UsageError(words.to_owned()));
        if trace.json || trace.rate_limit.is_some() {
            return refused("top shows every record on a screen of its own: --json and --rate-limit are for rsttrace without it");
        }
        let (wants_stdin, says_more_or_less) =
            (trace.error_log.iter().any(|path| path.as_os_str() == "-"), trace.quiet || trace.verbose > 0);
        let traces = !trace.command.is_empty() || trace.duration.is_some() || trace.count.is_some() || !trace.error_log.is_empty();
        // Wrong values are told before there is a screen.
        let config = Config::try_from(trace)?;
        if file.is_some() && (traces || !config.filter_words.is_empty()) {
            return refused("FILE is shown as it is: flags that choose what to trace do not go with it; f on the screen filters");
        }
        // Behind the name of this task; what is traced is for the tracer to read.
        let flags = std::env::args_os().skip(2).collect();
        Ok(Self { file, flags, look: config.look, wants_stdin, says_more_or_less })
    }
}

impl TryFrom<Trace> for Config {
    type Error = UsageError;

    fn try_from(cli: Trace) -> Result<Self, UsageError> {
        let filter_words = filter_words(&cli);
        let mut processes = cli.pid.iter().map(|text| selector(text)).collect::<Result<Vec<_>, _>>()?;
        for text in &cli.cmdline {
            if text.is_empty() {
                return Err(UsageError("--cmdline: an empty text is part of every command line".to_owned()));
            }
            processes.push(ProcessSelector::Cmdline(text.clone()));
        }
        if cli.http && processes.is_empty() && cli.command.is_empty() {
            return Err(UsageError("--http needs processes to look at: --pid, --cmdline or -- CMD".to_owned()));
        }
        let ends: Vec<EndKind> = cli.end.iter().flat_map(|end| kinds(*end)).copied().collect();
        let want_fin = cli.fin || ends.contains(&EndKind::Fin);
        let family = match (cli.ipv4, cli.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        };
        Ok(Self {
            filter: Filter {
                processes,
                containers: cli.container,
                units: cli.unit,
                local_ports: PortSet::union(cli.local_port),
                remote_ports: PortSet::union(cli.remote_port),
                either_port: PortSet::union(cli.port),
                addr: AddrFilter(cli.addr),
                local_addr: AddrFilter(cli.local_addr),
                remote_addr: AddrFilter(cli.remote_addr),
                family,
                netns: cli.netns.as_deref().map(netns).transpose()?,
                errnos: cli.errno,
                ends,
                harms: cli.harm,
                causes: cli.cause,
            },
            timers: timers(&cli.timers)?,
            fail_on: cli.fail_on,
            filter_words,
            want_fin,
            http: cli.http,
            http_query: cli.http_query,
            json: cli.json,
            rate_limit: cli.rate_limit,
            look: Look { time: cli.time, color: cli.color, ascii: cli.ascii, timeline: cli.verbose >= 1, silence: cli.unmatched },
            quiet: cli.quiet,
            verbose: cli.verbose,
            duration: cli.duration,
            count: cli.count,
            join_timeout: cli.join_timeout,
            max_sockets: cli.max_sockets,
            buffer_bytes: cli.buffer,
            without: cli.without,
            syscall_hooks: cli.syscall_hooks,
            command: cli.command,
            keep_privileges: cli.keep_privileges,
            log: log(cli.error_log, cli.log_format, cli.unmatched)?,
        })
    }
}

fn selector(text: &str) -> Result<ProcessSelector, UsageError> {
    if text.is_empty() {
        return Err(UsageError("--pid: expected a process number or name".to_owned()));
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(ProcessSelector::Name(text.to_owned()));
    }
    text.parse()
        .ok()
        .and_then(enrich::process_of)
        .map(ProcessSelector::Pid)
        .ok_or_else(|| UsageError(format!("--pid: there is no process {text}; give a name to wait for one that starts later")))
}

/// The well-known timers and those of the files.
fn timers(files: &[PathBuf]) -> Result<Timers, UsageError> {
    let mut timers = Timers::well_known();
    for path in files {
        let refused = |error: &dyn std::fmt::Display| UsageError(format!("--timers: {}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
        timers.add(&text).map_err(|error| refused(&error))?;
    }
    Ok(timers)
}

/// Files are only looked at here: one that is not there yet is waited for.
fn log(files: Vec<PathBuf>, format: Format, show_unmatched: bool) -> Result<Option<LogConfig>, UsageError> {
    let (stdin, paths): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| path.as_os_str() == "-");
    for path in &paths {
        match follow::look_at(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(UsageError(format!("--error-log: {}: {error}", path.display()))),
            Ok(()) => {}
        }
    }
    let stdin = !stdin.is_empty();
    if stdin && rustix::fs::fstat(std::io::stdin()).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file()) {
        return Err(UsageError("--error-log -: standard input is a file: give its name, so that it can be followed".to_owned()));
    }
    Ok((stdin || !paths.is_empty()).then_some(LogConfig { paths, stdin, format, show_unmatched }))
}

fn kinds(end: EndChoice) -> &'static [EndKind] {
    match end {
        EndChoice::Reset => &[EndKind::ResetReceived, EndKind::ResetSent],
        EndChoice::ResetReceived => &[EndKind::ResetReceived],
        EndChoice::ResetSent => &[EndKind::ResetSent],
        EndChoice::Timeout => &[EndKind::Timeout],
        EndChoice::Error => &[EndKind::Error],
        EndChoice::Fin => &[EndKind::Fin],
    }
}

/// Inode number, name under /run/netns, or path of a namespace file.
fn netns(text: &str) -> Result<u32, UsageError> {
    if let Ok(inode) = text.parse() {
        return Ok(inode);
    }
    let path = if text.contains('/') { text.to_owned() } else { format!("/run/netns/{text}") };
    enrich::netns_of(&path).map_err(|error| {
        UsageError(format!("--netns: {path}: {error}; `ip netns` lists the named ones, /proc/PID/ns/net is any process's"))
    })
}

/// Every filter as the user gave it, `name=value`.
fn filter_words(cli: &Trace) -> Vec<String> {
    let mut words: Vec<String> = cli.pid.iter().map(|value| format!("pid={value}")).collect();
    words.extend(cli.cmdline.iter().map(|value| format!("cmdline={value}")));
    words.extend(cli.container.iter().map(|value| format!("container={value}")));
    words.extend(cli.unit.iter().map(|value| format!("unit={value}")));
    if let Some(command) = cli.command.first() {
        words.push(format!("command={}", command.to_string_lossy()));
    }
    words.extend(cli.local_port.iter().map(|value| format!("local-port={value}")));
    words.extend(cli.remote_port.iter().map(|value| format!("remote-port={value}")));
    words.extend(cli.port.iter().map(|value| format!("port={value}")));
    words.extend(cli.addr.iter().map(|value| format!("addr={value}")));
    words.extend(cli.local_addr.iter().map(|value| format!("local-addr={value}")));
    words.extend(cli.remote_addr.iter().map(|value| format!("remote-addr={value}")));
    words.extend(cli.ipv4.then(|| "ipv4".to_owned()));
    words.extend(cli.ipv6.then(|| "ipv6".to_owned()));
    words.extend(cli.netns.iter().map(|value| format!("netns={value}")));
    words.extend(cli.errno.iter().map(|value| format!("errno={value}")));
    words.extend(cli.end.iter().flat_map(|end| kinds(*end)).map(|kind| format!("end={}", kind.name())));
    words.extend(cli.harm.iter().map(|harm| format!("harm={harm}")));
    words.extend(cli.cause.iter().map(|cause| format!("cause={cause}")));
    words
}
