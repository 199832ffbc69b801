//! What the flags mean, checked.

use std::{ffi::OsString, net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use anyhow::Context as _;
use jiff::{Timestamp, tz::TimeZone};
use thiserror::Error;

use crate::{
    applog::Format,
    cli::{self, ColorChoice, Correlate, Diff, EndChoice, Replay, Select, Show, TimeChoice, Trace},
    diff, enrich,
    export::otlp,
    filter::{AddrFilter, Condition, Family, Filter, PortSet, ProcessSelector},
    follow,
    model::EndKind,
    offline,
    output::{
        escape,
        text::{Appearance, TimeFormat},
    },
    recording::{Keep, Limits, Place, Recorder, Shelf},
    replay,
    sandbox::{self, Keeper},
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
    /// The table only.
    pub summary: bool,
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
    pub record: Option<RecordConfig>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where records and metrics are sent.
    pub otlp: Option<otlp::Settings>,
    /// Summaries in JSON while the run goes on.
    pub interim: bool,
}

/// Where everything that is shown is recorded.
#[derive(Clone, Debug)]
pub struct RecordConfig {
    pub path: PathBuf,
    pub limits: Limits,
    /// All in all, of those that are full and the present one.
    pub files: u32,
    pub keep: Option<Keep>,
}

impl RecordConfig {
    /// Opens the file, and what it takes to open the next one. `confined`: this process will not be able to. Called
    /// while it has one thread: it forks.
    ///
    /// # Errors
    /// Which file, and why.
    pub fn open(&self, confined: bool) -> anyhow::Result<Recorder> {
        let name = escape::for_terminal(&self.path.to_string_lossy()).into_owned();
        let open = || {
            let place = Place::new(&self.path, self.files)?;
            let file = place.begin()?;
            Ok::<_, std::io::Error>((place, file))
        };
        let (place, file) = sandbox::as_the_user(open).flatten().with_context(|| format!("--record: {name}"))?;
        let metadata = file.metadata().with_context(|| format!("--record: {name}"))?;
        if !metadata.is_file() && (self.limits.bytes.is_some() || self.limits.time.is_some()) {
            anyhow::bail!("--record: {name} is no regular file: without --record-size and --record-time it can be written to");
        }
        let written = metadata.len();
        let shelf: Box<dyn Shelf> =
            if confined { Box::new(Keeper::start(place).context("--record: cannot fork")?) } else { Box::new(place) };
        Ok(Recorder::new(name, shelf, file, written, self.limits, self.keep.clone()))
    }
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
        if trace.show.json || trace.show.summary || trace.show.rate_limit.is_some() {
            return Err(UsageError("--json, --summary and --rate-limit do not go with top, which shows every record".to_owned()));
        }
        let replays = file.is_some();
        let files: Vec<_> = file.into_iter().chain(trace.replay.iter().cloned()).collect();
        Ok(Self {
            reads_stdin: trace.error_log.iter().chain(&files).any(|path| path.as_os_str() == "-"),
            runs_command: !trace.command.is_empty(),
            replays,
            file: files.first().map(|path| path.display().to_string()),
            // Wrong values are told before there is a screen.
            look: match files.is_empty() {
                true => Config::try_from(trace)?.look,
                false => replay::Request::try_from(Replay { files, select: trace.select, show: trace.show })?.look,
            },
            // Behind the name of this task.
            flags: std::env::args_os().skip(2).collect(),
        })
    }
}

impl TryFrom<Diff> for diff::Request {
    type Error = UsageError;

    fn try_from(cli: Diff) -> Result<Self, UsageError> {
        if cli.before.as_os_str() == "-" && cli.after.as_os_str() == "-" {
            return Err(UsageError("standard input (-) can be only one of the files".to_owned()));
        }
        let look = Look { time: TimeChoice::Utc, color: cli.color, ascii: cli.ascii, timeline: false, silence: false };
        Ok(Self { before: cli.before, after: cli.after, json: cli.json, look })
    }
}

impl TryFrom<Trace> for Config {
    type Error = UsageError;

    fn try_from(cli: Trace) -> Result<Self, UsageError> {
        let filter_words = filter_words(&cli);
        let mut filter = filter(cli.select.clone(), running)?;
        for text in &cli.cmdline {
            if text.is_empty() {
                return Err(UsageError("--cmdline: an empty text is part of every command line".to_owned()));
            }
            filter.processes.push(ProcessSelector::Cmdline(text.clone()));
        }
        if cli.http && filter.processes.is_empty() && cli.command.is_empty() {
            return Err(UsageError("--http needs processes to look at: --pid, --cmdline or -- CMD".to_owned()));
        }
        Ok(Self {
            timers: timers(&cli.timers)?,
            filter_words,
            want_fin: cli.select.fin || filter.ends.contains(&EndKind::Fin),
            filter,
            http: cli.http,
            http_query: cli.http_query,
            json: cli.show.json,
            summary: cli.show.summary,
            rate_limit: cli.show.rate_limit,
            look: look(&cli.show, cli.unmatched),
            fail_on: cli.show.fail_on,
            quiet: cli.show.quiet,
            verbose: cli.show.verbose,
            duration: cli.duration,
            count: cli.show.count,
            join_timeout: cli.join_timeout,
            max_sockets: cli.max_sockets,
            buffer_bytes: cli.buffer,
            without: cli.without,
            syscall_hooks: cli.syscall_hooks,
            command: cli.command,
            keep_privileges: cli.keep_privileges,
            log: log(cli.error_log, cli.log_format, cli.unmatched)?,
            record: record_path(cli.record)?.map(|path| RecordConfig {
                path,
                limits: Limits { bytes: cli.record_size, time: cli.record_time },
                files: cli.record_files,
                keep: cli.keep.map(|time| Keep { time, bytes: cli.keep_size, triggers: cli.trigger }),
            }),
            metrics: cli.metrics,
            otlp: otlp(cli.otlp, &cli.otlp_header)?,
            interim: cli.interim,
        })
    }
}

fn otlp(url: Option<String>, headers: &[String]) -> Result<Option<otlp::Settings>, UsageError> {
    let env = |name: &str| std::env::var(name).ok();
    url.map(|url| otlp::Settings::new(&url, headers, env)).transpose().map_err(UsageError)
}

impl TryFrom<Replay> for replay::Request {
    type Error = UsageError;

    fn try_from(cli: Replay) -> Result<Self, UsageError> {
        if cli.files.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(UsageError("standard input (-) can be only one of the files".to_owned()));
        }
        let Replay { files, mut select, show } = cli;
        let filter_words = select_words(&select);
        let (netns, netns_name) = select.netns.take().map_or(Ok((None, None)), |text| recorded_netns(&text))?;
        Ok(Self {
            files,
            filter_words,
            filter: Filter { netns, netns_name, ..filter(select, recorded)? },
            json: show.json,
            summary: show.summary,
            rate_limit: show.rate_limit,
            look: look(&show, false),
            fail_on: show.fail_on,
            quiet: show.quiet,
            count: show.count,
        })
    }
}

/// `number`: which process a number means.
fn filter(select: Select, number: impl Fn(&str) -> Result<u32, UsageError>) -> Result<Filter, UsageError> {
    let selector = |text: &String| match text.bytes().all(|b| b.is_ascii_digit()) {
        _ if text.is_empty() => Err(UsageError("--pid: expected a process number or name".to_owned())),
        true => number(text).map(ProcessSelector::Pid),
        false => Ok(ProcessSelector::Name(text.clone())),
    };
    Ok(Filter {
        processes: select.pid.iter().map(selector).collect::<Result<_, _>>()?,
        containers: select.container,
        units: select.unit,
        local_ports: PortSet::union(select.local_port),
        remote_ports: PortSet::union(select.remote_port),
        either_port: PortSet::union(select.port),
        addr: AddrFilter(select.addr),
        local_addr: AddrFilter(select.local_addr),
        remote_addr: AddrFilter(select.remote_addr),
        family: match (select.ipv4, select.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        },
        netns: select.netns.as_deref().map(netns).transpose()?,
        netns_name: None,
        errnos: select.errno,
        ends: select.end.iter().flat_map(|end| kinds(*end)).copied().collect(),
        harms: select.harm,
        causes: select.cause,
    })
}

/// Records go to stdout by --json.
fn record_path(path: Option<PathBuf>) -> Result<Option<PathBuf>, UsageError> {
    match path {
        Some(path) if path.as_os_str() == "-" => {
            Err(UsageError("--record -: expected the name of a file; --json writes records to standard output".to_owned()))
        }
        path => Ok(path),
    }
}

/// `silence`: that a log has nothing about an error is said.
fn look(show: &Show, silence: bool) -> Look {
    Look { time: show.time, color: show.color, ascii: show.ascii, timeline: show.verbose >= 1, silence }
}

/// The process that has this number now, or whose thread has it.
fn running(text: &str) -> Result<u32, UsageError> {
    text.parse()
        .ok()
        .and_then(enrich::process_of)
        .ok_or_else(|| UsageError(format!("--pid: there is no process {text}; give a name to wait for one that starts later")))
}

/// The process that had this number.
fn recorded(text: &str) -> Result<u32, UsageError> {
    text.parse().map_err(|_| UsageError(format!("--pid: {text} is no process number")))
}

/// The network namespace that had this number or this name; a path is one of this host.
fn recorded_netns(text: &str) -> Result<(Option<u32>, Option<String>), UsageError> {
    match text.parse() {
        _ if ["", "0"].contains(&text) => Err(UsageError("--netns: expected an inode number, a name or a path".to_owned())),
        Ok(inode) => Ok((Some(inode), None)),
        Err(_) if text.contains('/') => netns(text).map(|inode| (Some(inode), None)),
        Err(_) => Ok((None, Some(text.to_owned()))),
    }
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
    if let Ok(inode) = text.parse::<NonZeroU32>() {
        return Ok(inode.get());
    }
    let path = if text.contains('/') { text.to_owned() } else { format!("/run/netns/{text}") };
    enrich::netns_at(&path).map_err(|error| {
        UsageError(format!("--netns: {path}: {error}; `ip netns` lists the named ones, /proc/PID/ns/net is any process's"))
    })
}

/// Every filter as the user gave it, `name=value`.
fn filter_words(cli: &Trace) -> Vec<String> {
    let mut words: Vec<String> = cli.cmdline.iter().map(|value| format!("cmdline={value}")).collect();
    if let Some(command) = cli.command.first() {
        words.push(format!("command={}", command.to_string_lossy()));
    }
    words.extend(select_words(&cli.select));
    words
}

fn select_words(select: &Select) -> Vec<String> {
    let mut words: Vec<String> = select.pid.iter().map(|value| format!("pid={value}")).collect();
    words.extend(select.container.iter().map(|value| format!("container={value}")));
    words.extend(select.unit.iter().map(|value| format!("unit={value}")));
    words.extend(select.local_port.iter().map(|value| format!("local-port={value}")));
    words.extend(select.remote_port.iter().map(|value| format!("remote-port={value}")));
    words.extend(select.port.iter().map(|value| format!("port={value}")));
    words.extend(select.addr.iter().map(|value| format!("addr={value}")));
    words.extend(select.local_addr.iter().map(|value| format!("local-addr={value}")));
    words.extend(select.remote_addr.iter().map(|value| format!("remote-addr={value}")));
    words.extend(select.ipv4.then(|| "ipv4".to_owned()));
    words.extend(select.ipv6.then(|| "ipv6".to_owned()));
    words.extend(select.netns.iter().map(|value| format!("netns={value}")));
    words.extend(select.errno.iter().map(|value| format!("errno={value}")));
    words.extend(select.end.iter().flat_map(|end| kinds(*end)).map(|kind| format!("end={}", kind.name())));
    words.extend(select.harm.iter().map(|harm| format!("harm={harm}")));
    words.extend(select.cause.iter().map(|cause| format!("cause={cause}")));
    words
}
