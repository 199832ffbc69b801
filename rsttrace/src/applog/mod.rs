//! What applications log about the ends of their connections. Pure: bytes of a line in, values out;
//! one file per format. What a line means for a record is for `correlate` to say.

mod envoy;
mod format;
mod haproxy;
mod lines;
mod nginx;
mod nginx_access;
mod syslog;

use std::str::FromStr;

pub use self::{
    envoy::Envoy,
    format::Format,
    haproxy::HaProxy,
    lines::{Line, LineSplitter, MAX_LINE},
    nginx::NginxError,
    nginx_access::NginxAccess,
};
pub use crate::model::{Fault, LogLine, LogTime, Remote, Side, Stamp};

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

    /// The application writes such lines into its file itself, and before it closes the connection.
    fn is_immediate(&self) -> bool {
        false
    }
}

/// A number of digits alone: no sign, no blanks.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
