//! A line of an application's log, taken apart.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, civil::DateTime};

use super::Errno;

/// The end of a proxy's work that a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The connection that somebody made to the application.
    Client,
    /// The connection that the application made to somebody.
    Upstream,
}

impl Side {
    /// The word of the JSON contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
        }
    }
}

/// A line's own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// In the writer's time zone, which the line does not name.
    Civil(DateTime),
    Absolute(Timestamp),
}

/// When what a line is about happened: at `stamp`, or up to `precision` later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTime {
    pub stamp: Stamp,
    pub precision: Duration,
}

/// The other end of a connection, as far as a line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    Tcp {
        addr: IpAddr,
        port: Option<u16>,
    },
    /// A path; no TCP connection can be meant.
    Unix(String),
    /// A host name, or a name from the application's configuration.
    Name(String),
}

impl Remote {
    /// `127.0.0.1`, `::1`, `127.0.0.1:80` or `[::1]:80`; a v4-mapped address is the IPv4 address that it is.
    pub fn of_address(text: &str) -> Option<Self> {
        let (addr, port) = match text.parse::<SocketAddr>() {
            Ok(socket) => (socket.ip(), Some(socket.port())),
            Err(_) => (text.parse().ok()?, None),
        };
        Some(Self::Tcp { addr: IpAddr::to_canonical(&addr), port })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { addr, port: Some(port) } => SocketAddr::new(*addr, *port).fmt(f),
            Self::Tcp { addr, port: None } => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What a line says about the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A call returned this error: one of `calls` (by their kernel names), or any if that is empty.
    Error { errno: Errno, calls: &'static [&'static str] },
    /// The other end closed it too early, in order: a receive returned 0.
    EndOfFile,
    /// The other end closed or reset it too early.
    ClosedByPeer,
    /// The application lost patience and closed it.
    TimedOut,
    /// It could not be opened; the line does not tell whether it was refused, unreachable or given up.
    NotConnected,
    /// There was an error, but no connection that could have a record: accept() failed, a queue was full.
    NoConnection,
}

/// A line about the end of a connection. Texts are as the application wrote them, hostile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub time: LogTime,
    pub fault: Fault,
    /// `None`: either may be meant.
    pub side: Option<Side>,
    /// The process that wrote it.
    pub process: Option<u32>,
    /// The application's own number of the client's connection (nginx's `*N`).
    pub connection: Option<u64>,
    pub client: Option<Remote>,
    pub upstream: Option<Remote>,
    /// "POST /a HTTP/1.1"
    pub request: Option<String>,
    /// The upstream as the line has it: an URL, or a server's name.
    pub upstream_text: Option<String>,
    pub host: Option<String>,
    /// What the application was doing: "reading response header from upstream".
    pub phrase: Option<String>,
    /// Its answer had not begun; `Some(false)`: it was under way.
    pub unanswered: Option<bool>,
    /// The whole line, without its end.
    pub raw: String,
}

impl LogLine {
    /// A line that says no more than that.
    pub fn new(time: LogTime, fault: Fault, raw: String) -> Self {
        Self {
            time,
            fault,
            side: None,
            process: None,
            connection: None,
            client: None,
            upstream: None,
            request: None,
            upstream_text: None,
            host: None,
            phrase: None,
            unanswered: None,
            raw,
        }
    }
}

/// What the log has about one socket's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Finding {
    #[default]
    Nothing,
    /// These lines are about it, and about no other; the first of them first.
    About(Vec<Arc<LogLine>>),
    /// One of these lines may be about it, or about another end.
    Ambiguous(Vec<Arc<LogLine>>),
}

/// What became of lines about ends of connections, once they are settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTally {
    /// Lines about the end of a connection.
    pub lines: u64,
    pub joined: u64,
    pub ambiguous: u64,
    /// No record fits.
    pub without_record: u64,
    /// About a Unix socket, or an error without a connection: there is nothing to join them with.
    pub no_connection: u64,
}
