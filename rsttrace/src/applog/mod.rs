//! What applications log about the ends of their connections. Pure: bytes of a line in, values out;
//! one file per format. What a line means for a record is for `correlate` to say.

mod envoy;
mod format;
mod haproxy;
mod lines;
mod nginx;
mod nginx_access;
mod syslog;

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use jiff::{Timestamp, civil::DateTime};

pub use self::{
    envoy::Envoy,
    format::Format,
    haproxy::HaProxy,
    lines::{Line, LineSplitter, MAX_LINE},
    nginx::NginxError,
    nginx_access::NginxAccess,
};
use crate::model::Errno;

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
    fn of_address(text: &str) -> Option<Self> {
        let (addr, port) = match text.parse::<SocketAddr>() {
            Ok(socket) => (socket.ip(), Some(socket.port())),
            Err(_) => (text.parse().ok()?, None),
        };
        Some(Self::Tcp { addr: IpAddr::to_canonical(&addr), port })
    }
}

/// What a line says about the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A call returned this error: one of `calls` (by their kernel names), or any if that is empty.
    Error { errno: Errno, calls: &'static [&'static str] },
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
    /// The whole line, without its end.
    pub raw: String,
}

/// What a line came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    About(Box<LogLine>),
    /// A good line of this format that is not about the end of a connection.
    Other,
    /// No line of this format.
    Malformed,
}

/// A format of log lines.
pub trait LogFormat: std::fmt::Debug + Send {
    /// Takes one line apart, without its end of line. Any bytes may come.
    fn parse(&self, line: &[u8]) -> Parsed;
}

/// A number of digits alone: no sign, no blanks.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
