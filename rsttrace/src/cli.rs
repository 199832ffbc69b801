//! The command line, and nothing but it.

use std::{
    ffi::OsStr,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::Path,
};

use clap::{
    ArgAction, ArgGroup, Args, CommandFactory as _, Parser, Subcommand, ValueEnum, ValueHint,
    builder::{PossibleValue, PossibleValuesParser, Styles, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};
use jiff::{SignedDuration, tz::TimeZone};

use crate::applog::Format;
use crate::filter::{self, AddrMatch, Condition, ContainerId, PortSet, UnitName};
use crate::model::{Cause, Errno, Harm};
use crate::output::escape::for_terminal;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// How to show times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimeChoice {
    Local,
    Utc,
    Relative,
}

/// Kinds of end, as `--end` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EndChoice {
    /// Both kinds of reset
    Reset,
    ResetReceived,
    ResetSent,
    Timeout,
    Error,
    /// Orderly ends; implies --fin
    Fin,
}

const EXAMPLES: &str = "\
Examples:
  sudo rsttrace --pid nginx                  what nginx's workers see, as it happens
  sudo rsttrace -p nginx --remote-port 9000  only its upstreams on port 9000
  sudo rsttrace --end reset --errno ECONNRESET -j | jq .owner
  sudo rsttrace -a -d 30s -- curl -s http://localhost/

Exit status: 0 ran and stopped normally (Ctrl-C, closed pipe and end of duration too),
1 failed while running, 2 bad usage, 3 this machine cannot run it, 4 a record met --fail-on.
Where it would be 0 and CMD has ended, CMD's own; 128+n if signal n ended CMD.";

/// Says why TCP connections of this host end: who reset, closed or timed out, which process saw
/// which error from which system call, and what was acknowledged, lost or unread
#[derive(Clone, Debug, Parser)]
#[command(name = "rsttrace", version, styles = Styles::plain(), after_help = EXAMPLES, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub task: Option<Task>,

    #[command(flatten)]
    pub trace: Trace,
}

impl Cli {
    /// The command line of this process. One that is not understood ends it, with words and a way out.
    pub fn of_this_process() -> Self {
        let first = std::env::args().nth(1);
        Self::try_parse().unwrap_or_else(|error| with_way_out(error, first.as_deref()).exit())
    }
}

/// Adds what may have been meant. `first`: the first argument.
fn with_way_out(mut error: clap::Error, first: Option<&str>) -> clap::Error {
    // To put `--` in front, which would run a command.
    error.remove(ContextKind::Suggested);
    let whole = Cli::command();
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => vec![name.clone()],
        Some(ContextValue::Strings(names)) => names.clone(),
        _ => Vec::new(),
    };
    let args: Vec<_> = [ContextKind::InvalidArg, ContextKind::PriorArg].into_iter().flat_map(named).collect();
    let is_task = |word: &str| whole.find_subcommand(word).is_some();
    match (error.kind(), args.iter().find(|arg| is_for_live_traces(&whole, arg))) {
        (ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict, Some(flag)) => {
            tell(&mut error, format!("{flag} is for live traces only"));
        }
        (ErrorKind::UnknownArgument, None) if !first.is_some_and(is_task) => {
            let word = args.first().map(String::as_str).unwrap_or_default();
            let near = || filter::nearest(word, whole.get_subcommands().map(clap::Command::get_name));
            if is_task(word) {
                tell(&mut error, format!("{word} comes first: rsttrace {word} ..."));
            } else if let Some(near) = near().filter(|_| !word.starts_with('-')) {
                error.insert(ContextKind::SuggestedSubcommand, ContextValue::String(near.to_owned()));
            } else if Path::new(word).is_file() {
                tell(&mut error, format!("`rsttrace replay {}` shows what is recorded there", for_terminal(word)));
            }
        }
        _ => {}
    }
    error
}

fn tell(error: &mut clap::Error, tip: String) {
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
}

/// Whether `--flag`, `-f` or `--flag <VALUE>` is one that a trace has and a replay has not.
fn is_for_live_traces(whole: &clap::Command, flag: &str) -> bool {
    let name = flag.split(' ').next().unwrap_or_default();
    let is_it = |arg: &clap::Arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => arg.get_short().is_some_and(|short| name.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4]))),
    };
    let has = |command: &clap::Command| command.get_arguments().any(|arg| is_it(arg) && arg.get_id() != "replay");
    has(whole) && !whole.find_subcommand("replay").is_some_and(has)
}

/// What does not go with a file.
const LIVE_ONLY: [&str; 25] = [
    "cmdline",
    "command",
    "error_log",
    "log_format",
    "unmatched",
    "http",
    "http_query",
    "duration",
    "record",
    "record_size",
    "record_time",
    "record_files",
    "keep",
    "keep_size",
    "trigger",
    "metrics",
    "otlp",
    "otlp_header",
    "timers",
    "without",
    "syscall_hooks",
    "join_timeout",
    "max_sockets",
    "buffer",
    "keep_privileges",
];

/// What else than tracing.
#[derive(Clone, Debug, Subcommand)]
pub enum Task {
    /// Say what a cause means, why it happens, and what to change
    Explain {
        /// A word of the record's "cause"; without it, all of them
        #[arg(value_parser = Offers { words: causes(), read: |word| Ok(word.to_owned()) }, hide_possible_values = true)]
        cause: Option<String>,
    },
    /// Say what works on this machine and what does not: rights, hooks, fields, clocks
    ///
    /// Attaches everything, makes connections end in every way that is cheap to make, on the
    /// loopback of a network namespace of its own, and compares the records with what was done.
    /// Takes about a second and leaves nothing behind. Exit status: 0 all fine, 1 degraded, 3 this
    /// machine cannot run it.
    Doctor(Doctor),
    /// Join saved records with saved logs, as --error-log does while they are made
    ///
    /// Reads a recording or what --json wrote, and logs of the same time. Lines that cannot be
    /// read are told by number and skipped. Exit status: 0 joined, 1 something was no record, or a
    /// whole log was not understood.
    #[command(visible_alias = "join")]
    Correlate(Correlate),
    /// Compare two files of records, such as before and after a deploy
    ///
    /// Rates per hour by harm, cause, process and remote address, the largest differences first, and what is new or gone.
    /// A difference that may be chance is not called one (docs/diff.md). Reads recordings and what --json wrote; - is
    /// standard input. Exit status: 0 compared, 1 something could not be read.
    Diff(Diff),
    /// Make a page of records: timeline, causes explained, top talkers, every verdict
    ///
    /// One HTML file that needs nothing else and asks no network. Exit status: 0 made, 1 something could not be read.
    Report(Report),
    /// Show what was recorded with --record or saved with --json, with the same filters and outputs
    ///
    /// Without filters, --json gives the very lines of the run. What cannot be read is told with its place and skipped. Exit
    /// status: 0 shown, 1 something could not be read, 4 a record met --fail-on.
    Replay(Box<Replay>),
    /// Show on the whole terminal, live, how connections end: by cause, process, remote address and port
    ///
    /// Traces as rsttrace does, with the same flags, or looks through FILE: a recording, or records that were
    /// saved with --json. ? says what the keys do. Where stdout is no terminal, it gets the table of
    /// --summary at the end (docs/top.md). Exit status: as without top; 0 where a key or a signal ends it.
    Top(Box<Top>),
}

/// What to compare, and how to show it.
#[derive(Clone, Debug, Args)]
pub struct Diff {
    /// A recording, or what rsttrace --json wrote
    #[arg(value_name = "BEFORE")]
    pub before: std::path::PathBuf,

    /// Another one
    #[arg(value_name = "AFTER")]
    pub after: std::path::PathBuf,

    /// One JSON object (docs/diff.md)
    #[arg(short, long)]
    pub json: bool,

    /// Colours in text
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,

    /// No characters beyond ASCII in text (the default outside UTF-8)
    #[arg(long)]
    pub ascii: bool,
}

/// What to make a page of.
#[derive(Clone, Debug, Args)]
pub struct Report {
    /// Recordings, or what rsttrace --json wrote, one after the other; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<std::path::PathBuf>,

    /// Where the page goes; a page that is there is replaced. - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: std::path::PathBuf,
}

/// What the live screen is about.
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// Saved records, instead of tracing; - is standard input
    #[arg(conflicts_with = "replay", conflicts_with_all = LIVE_ONLY)]
    pub file: Option<std::path::PathBuf>,

    #[command(flatten)]
    pub trace: Trace,
}

/// What to bring together, and how to show it.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("logs").args(["error_log", "access_log"]).required(true).multiple(true)))]
pub struct Correlate {
    /// A recording, or what rsttrace --json wrote; - is standard input
    #[arg(long, value_name = "FILE")]
    pub events: std::path::PathBuf,

    /// A log of the same time; - is standard input. May be given several times
    #[arg(long, value_name = "FILE")]
    pub error_log: Vec<std::path::PathBuf>,

    /// An nginx access log in the combined format: its 499s and 408s are about ends too
    #[arg(long, value_name = "FILE")]
    pub access_log: Vec<std::path::PathBuf>,

    /// What wrote the log
    #[arg(long, value_name = "FORMAT", value_parser = log_formats(), default_value = "nginx")]
    pub log_format: Format,

    /// Time zone of the log, where its lines name none: UTC, Europe/Berlin, +02:00 (default: this machine's)
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    pub log_zone: Option<TimeZone>,

    /// Show lines of the log without a record
    #[arg(long)]
    pub unmatched: bool,

    /// Show orderly ends (FIN) too
    #[arg(short = 'a', long)]
    pub fin: bool,

    /// The records with "log" filled in, one JSON object per line (docs/json.md)
    #[arg(short, long)]
    pub json: bool,

    /// Times in text
    #[arg(long, value_enum, default_value_t = TimeChoice::Local, value_name = "WHICH")]
    pub time: TimeChoice,

    /// Colours in text
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,

    /// No characters beyond ASCII in text (the default outside UTF-8)
    #[arg(long)]
    pub ascii: bool,
}

/// How to examine this machine.
#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// One JSON object with every hook and every field (docs/doctor.schema.json)
    #[arg(short, long)]
    pub json: bool,

    /// Pack it all into FILE for a bug report: a tar archive, compressed if it ends in .gz or .tgz
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<std::path::PathBuf>,

    /// No addresses, no host name, and no names of processes that are not ours
    #[arg(long)]
    pub redact: bool,

    /// Do not attach HOOK, to see what it costs
    #[arg(long, value_name = "HOOK", value_delimiter = ',', value_parser = hooks())]
    pub without: Vec<String>,
}

/// Which records are meant; the same for a live run and for a file.
#[derive(Clone, Debug, Args)]
pub struct Select {
    /// Only connections of these processes and their descendants: PID, or exact name
    ///
    /// A name is the process's comm or its executable's name. A connection belongs to a process
    /// that holds it, saw its error, or closed it. Processes that start later count too; with a
    /// name that nobody has yet, rsttrace waits for it. --pid, --cmdline and CMD add up.
    #[arg(short, long, value_name = "PID|NAME", value_delimiter = ',', help_heading = "Processes")]
    pub pid: Vec<String>,

    /// Only processes in these containers: the id or its first digits, at least 4
    ///
    /// As `docker ps`, `podman ps` and `crictl ps` show it; names of containers are not known.
    /// --container and --unit narrow each other and what --pid, --cmdline and CMD choose.
    #[arg(long, value_name = "ID", value_delimiter = ',', help_heading = "Processes")]
    pub container: Vec<ContainerId>,

    /// Only processes in these units of systemd: nginx (nginx.service), session-3.scope
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Processes")]
    pub unit: Vec<UnitName>,

    /// Only these ports at our end: 80,443,8000-8099
    #[arg(short = 'L', long, value_name = "PORTS", help_heading = "Connections")]
    pub local_port: Vec<PortSet>,

    /// Only these ports at the other end
    #[arg(short = 'D', long, value_name = "PORTS", help_heading = "Connections")]
    pub remote_port: Vec<PortSet>,

    /// Only these ports at either end
    #[arg(long, value_name = "PORTS", help_heading = "Connections")]
    pub port: Vec<PortSet>,

    /// Only addresses in CIDR at either end; `!CIDR` excludes
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Connections")]
    pub addr: Vec<AddrMatch>,

    /// Only addresses in CIDR at our end; `!CIDR` excludes
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Connections")]
    pub local_addr: Vec<AddrMatch>,

    /// Only addresses in CIDR at the other end; `!CIDR` excludes
    #[arg(long, value_name = "CIDR", value_delimiter = ',', help_heading = "Connections")]
    pub remote_addr: Vec<AddrMatch>,

    /// Only IPv4 (v4-mapped addresses are IPv4)
    #[arg(short = '4', long, conflicts_with = "ipv6", help_heading = "Connections")]
    pub ipv4: bool,

    /// Only IPv6
    #[arg(short = '6', long, help_heading = "Connections")]
    pub ipv6: bool,

    /// Only this network namespace: inode number, name (ip netns), or path
    ///
    /// In records that were saved, a number or a name is the one that they have, whatever has it on this host now.
    #[arg(long, value_name = "NETNS", help_heading = "Connections")]
    pub netns: Option<String>,

    /// Only connections whose error was seen as one of these: ECONNRESET, 104
    #[arg(long, value_name = "NAME|NUMBER", value_delimiter = ',', help_heading = "Ends")]
    pub errno: Vec<Errno>,

    /// Only these kinds of end
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = "Ends")]
    pub end: Vec<EndChoice>,

    /// Show orderly ends (FIN) too
    #[arg(short = 'a', long, help_heading = "Ends")]
    pub fin: bool,

    /// Only ends that hurt this much: lost, possible, unknown, none
    #[arg(long, value_name = "HARM", value_delimiter = ',', value_parser = Offers { words: harms(), read: filter::harm }, hide_possible_values = true)]
    #[arg(help_heading = "Ends")]
    pub harm: Vec<Harm>,

    /// Only ends of these causes (rsttrace explain lists them)
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = Offers { words: causes(), read: filter::cause }, hide_possible_values = true)]
    #[arg(help_heading = "Ends")]
    pub cause: Vec<Cause>,
}

/// How records are shown; the same for a live run and for a file.
#[derive(Clone, Debug, Args)]
pub struct Show {
    /// One JSON object per line (docs/json.md)
    #[arg(short, long, help_heading = "Output")]
    pub json: bool,

    /// No line per record: one table by cause, process and remote address, at the end and, of a live run, on SIGUSR1
    ///
    /// With numbers, distributions and an example of each row, the worst first (docs/summary.md). Not with --json, whose
    /// last line is a summary.
    #[arg(long, conflicts_with_all = ["json", "rate_limit"], help_heading = "Output")]
    pub summary: bool,

    /// Write at most N lines per second of ends that are alike; the rest is one line with a count
    ///
    /// Alike are ends of the same kind, cause, harm and process's name, with the same address at the other end and
    /// the same port of the server. A connection whose both ends are on this host is one line of text. The summary
    /// and --fail-on know all ends, --count only those that are written one by one. Errors that are noticed after
    /// their record and lines of a log are always written.
    #[arg(long, value_name = "N[/s]", value_parser = rate, help_heading = "Output")]
    pub rate_limit: Option<NonZeroU32>,

    /// Times in text
    #[arg(long, value_enum, default_value_t = TimeChoice::Local, value_name = "WHICH", help_heading = "Output")]
    pub time: TimeChoice,

    /// Colours in text
    #[arg(long, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN", help_heading = "Output")]
    pub color: ColorChoice,

    /// No characters beyond ASCII in text (the default outside UTF-8)
    #[arg(long, help_heading = "Output")]
    pub ascii: bool,

    /// Nothing on stderr but warnings and errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,

    /// Show the evidence of each record; -vv also what the kernel half of a live run logs
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,

    /// Stop after N records that were written
    #[arg(short, long, value_name = "N", value_parser = count, help_heading = "Run")]
    pub count: Option<u64>,

    /// Exit with status 4 if a record is like this: harm=lost, cause=keepalive-race
    #[arg(long, value_name = "WHAT", help_heading = "Run")]
    pub fail_on: Vec<Condition>,
}

/// What to trace, and how to show it.
#[derive(Clone, Debug, Args)]
pub struct Trace {
    /// Show what is in FILE instead of tracing: the same as rsttrace replay FILE
    #[arg(short = 'r', long, value_name = "FILE", help_heading = "Record and replay")]
    #[arg(conflicts_with_all = LIVE_ONLY)]
    pub replay: Vec<std::path::PathBuf>,

    /// Record everything that is shown in FILE, whatever stdout has: rsttrace replay shows it again
    ///
    /// The file is appended to, and can be read at any time and after a crash: at most the last second is missing. It is
    /// a sequence of gzip members with lines of JSON (zcat FILE). SIGHUP opens it again by its name (docs/recordings.md).
    #[arg(short = 'w', long, value_name = "FILE", help_heading = "Record and replay")]
    pub record: Option<std::path::PathBuf>,

    /// Begin a new file when this one has reached SIZE: 100M; the others become FILE.1, FILE.2
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "record", help_heading = "Record and replay")]
    pub record_size: Option<u64>,

    /// Begin a new file after TIME: 1h
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "record", help_heading = "Record and replay")]
    pub record_time: Option<std::time::Duration>,

    /// Keep N files in all, and remove the oldest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "record", help_heading = "Record and replay")]
    pub record_files: u32,

    /// Keep the last TIME in memory, and write it to the file of --record on SIGUSR2 or --trigger
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "record", help_heading = "Record and replay")]
    pub keep: Option<std::time::Duration>,

    /// Memory that --keep may take, compressed; beyond it the oldest is dropped
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size, requires = "keep", help_heading = "Record and replay")]
    pub keep_size: u64,

    /// With --keep: write what is kept when a record is like this: harm=lost, cause=keepalive-race
    #[arg(long, value_name = "WHAT", requires = "keep", help_heading = "Record and replay")]
    pub trigger: Vec<Condition>,

    #[command(flatten)]
    pub select: Select,

    /// Only processes whose command line contains TEXT, and their descendants
    #[arg(long, value_name = "TEXT", help_heading = "Processes")]
    pub cmdline: Vec<String>,

    #[command(flatten)]
    pub show: Show,

    /// Run CMD, trace it and its descendants, and stop when it ends
    ///
    /// What CMD prints goes to stderr, because stdout carries records only. Its exit status is
    /// rsttrace's, unless --fail-on is met or something else failed. Where rsttrace stops first
    /// (--count, --duration, a signal), CMD goes on, and the status is 0.
    #[arg(last = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments, help_heading = "Processes")]
    pub command: Vec<std::ffi::OsString>,

    /// More timers to match idle times with: lines of SECONDS NAME
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub timers: Vec<std::path::PathBuf>,

    /// Join the lines of this error log with the records that they are about; - is standard input
    ///
    /// Follows the file through rotation. A record then names the request that it hit, as the
    /// application logged it, and orderly ends that the log complains of are shown too
    /// (docs/logs.md). May be given several times.
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    pub error_log: Vec<std::path::PathBuf>,

    /// What writes the log
    #[arg(long, value_name = "FORMAT", value_parser = log_formats(), default_value = "nginx", requires = "error_log", help_heading = "Log")]
    pub log_format: Format,

    /// Show lines of the log without a record, and errors without a line
    #[arg(long, requires = "error_log", help_heading = "Log")]
    pub unmatched: bool,

    /// Name the HTTP/1 request that each connection was about, of the chosen processes
    ///
    /// Needs --pid, --cmdline or CMD: what these processes receive and send is looked at, as far as it is plain
    /// text; the last request's line is shown, without its query, and whether its answer was complete
    /// (docs/http.md).
    #[arg(long, help_heading = "Output")]
    pub http: bool,

    /// Show the query of requests too (`?...`); needs --http
    #[arg(long, requires = "http", help_heading = "Output")]
    pub http_query: bool,

    /// Serve metrics for Prometheus (OpenMetrics) at http://ADDR/metrics: PORT or IP:PORT
    ///
    /// Without ADDR, or with a port only, on 127.0.0.1 (9464 by default): other machines can ask only where an address
    /// is given. A process of its own, without any privilege, serves them (docs/metrics.md).
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "9464", value_parser = listen_address, help_heading = "Export")]
    pub metrics: Option<SocketAddr>,

    /// Send records and metrics to an OpenTelemetry Collector: http://HOST:4318, https://HOST
    ///
    /// OTLP over HTTP, protobuf, gzip: a log record for each end, and the counters of --metrics every minute. What finds no room while the
    /// collector does not answer, or is refused, is counted and said at the end; tracing never waits. The variables OTEL_EXPORTER_OTLP_HEADERS,
    /// _TIMEOUT, _COMPRESSION and _CERTIFICATE, OTEL_METRIC_EXPORT_INTERVAL, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are
    /// obeyed (docs/otlp.md).
    #[arg(long, value_name = "URL", help_heading = "Export")]
    pub otlp: Option<String>,

    /// Send this header too; everybody sees it in `ps`, so secrets belong into OTEL_EXPORTER_OTLP_HEADERS
    #[arg(long, value_name = "NAME=VALUE", requires = "otlp", help_heading = "Export")]
    pub otlp_header: Vec<String>,

    /// Stop after this time: 30s, 5m, 1h30m
    #[arg(short, long, value_name = "TIME", value_parser = duration, help_heading = "Run")]
    pub duration: Option<std::time::Duration>,

    /// Print a record that is still incomplete after this time
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, help_heading = "Run")]
    pub join_timeout: std::time::Duration,

    /// Connections whose past is remembered; memory is taken as needed, about 400 B each
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..=16_777_216), help_heading = "Run")]
    pub max_sockets: u32,

    /// Size of the buffer between kernel and user space: 64k, 8M
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = buffer_size, help_heading = "Run")]
    pub buffer: u32,

    /// Watch the exit of every system call too: shows which call got the error where no other hook can
    ///
    /// That is for kernels without sock_recv_length whose functions cannot be traced either, and for
    /// splice() and kernel TLS; it needs Linux 6.1. Every system call of the host pays for it
    /// (docs/kernel-support.md).
    #[arg(long, help_heading = "Run")]
    pub syscall_hooks: bool,

    /// Do not attach HOOK, or not by this way (fentry, fexit, kprobe); costs the fields that it feeds
    #[arg(long, value_name = "HOOK", value_delimiter = ',', value_parser = hooks(), help_heading = "Run")]
    pub without: Vec<String>,

    /// In JSON, a summary about every second while something has changed; the last one counts
    #[arg(long, hide = true, requires = "json", help_heading = "Run")]
    pub interim: bool,

    /// Keep all privileges after attaching, and run without a sandbox (docs/privileges.md)
    #[arg(long, help_heading = "Run")]
    pub keep_privileges: bool,
}

/// Which files, which of their records, and how to show them.
#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// Recordings, or records as --json wrote them, one after the other; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<std::path::PathBuf>,

    #[command(flatten)]
    pub select: Select,

    #[command(flatten)]
    pub show: Show,
}

/// A value that is read by its own rules, in its own words where it is refused; a shell offers these words for it.
#[derive(Clone)]
struct Offers<T> {
    words: Vec<&'static str>,
    read: fn(&str) -> Result<T, String>,
}

impl<T> TypedValueParser for Offers<T>
where
    T: Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<T, clap::Error> {
        self.read.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.words.iter().map(PossibleValue::new)))
    }
}

fn causes() -> Vec<&'static str> {
    Cause::ALL.iter().map(|cause| cause.name()).collect()
}

fn harms() -> Vec<&'static str> {
    Harm::ALL.iter().map(|harm| harm.name()).collect()
}

fn hooks() -> PossibleValuesParser {
    crate::probe::attach::names().collect::<Vec<_>>().into()
}

fn zone(text: &str) -> Result<TimeZone, String> {
    let zone = jiff::fmt::temporal::DateTimeParser::new().parse_time_zone(text);
    zone.map_err(|_| "expected UTC, a name such as Europe/Berlin, or an offset such as +02:00".to_owned())
}

fn count(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number of records, at least 1".to_owned())
}

fn rate(text: &str) -> Result<NonZeroU32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().map_err(|_| "expected a number of lines per second, such as 5 or 5/s".to_owned())
}

/// Loopback where only a port is given.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .or_else(|_| text.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()))
        .map_err(|_| "expected a port, or an IP address with one, such as 9464, 127.0.0.1:9464 or [::]:9464".to_owned())
}

fn log_formats() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|name| name.parse::<Format>())
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => SignedDuration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => text.parse::<SignedDuration>().map_err(|error| error.to_string()),
    };
    parsed
        .ok()
        .and_then(|duration| std::time::Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a time such as 500ms, 30s or 1h30m".to_owned())
}

/// In bytes; 64 KiB at least.
fn size(text: &str) -> Result<u64, String> {
    let size = parse_size::Config::new().with_binary().parse_size(text).ok();
    size.filter(|size| *size >= 64 << 10).ok_or_else(|| "expected a size of 64k at least, such as 100M or 1G".to_owned())
}

/// The ring buffer's sizes are 4 KiB to 1 GiB.
fn buffer_size(text: &str) -> Result<u32, String> {
    parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .ok()
        .filter(|size| (4 << 10..=1 << 30).contains(size))
        .and_then(|size| u32::try_from(size).ok())
        .ok_or_else(|| "expected a size from 4k to 1G, such as 64k or 8M".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_replay_has_not_is_for_live_traces() {
        let ids = |command: &clap::Command| {
            let told = command.get_arguments().filter(|arg| !arg.is_hide_set());
            told.map(|arg| arg.get_id().as_str().to_owned()).collect::<BTreeSet<_>>()
        };
        let whole = Cli::command();
        let of_replay = ids(whole.find_subcommand("replay").unwrap());
        let live: BTreeSet<_> = ids(&whole).difference(&of_replay).filter(|id| *id != "replay").cloned().collect();
        assert_eq!(live, LIVE_ONLY.map(str::to_owned).into());
        let refused = |line: &str| Cli::try_parse_from(line.split(' ')).is_err();
        assert!(refused("rsttrace -r f --record-time 1s") && refused("rsttrace top f --record-time 1s") && !refused("rsttrace -r f -q"));
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("30s").unwrap().as_secs(), 30);
        assert_eq!(duration("1h30m").unwrap().as_secs(), 5_400);
        assert_eq!(duration("2").unwrap().as_secs(), 2);
        for bad in ["0", "-1s", "soon", "", "nan", "inf", "1e300"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(buffer_size("64k").unwrap(), 65_536);
        assert_eq!(buffer_size("8M").unwrap(), 8 << 20);
        for bad in ["1", "2G", "x", "-8M", ""] {
            assert!(buffer_size(bad).is_err(), "{bad}");
        }
    }
}
