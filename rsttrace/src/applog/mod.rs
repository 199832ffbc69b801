//! What applications log about the ends of their connections. Pure: bytes of a line in, values out;
//! one file per format. What a line means for a record is for `correlate` to say.

mod lines;

pub use self::lines::{Line, LineSplitter, MAX_LINE};
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
}

/// PLACEHOLDER until the formats land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Nginx,
}

#[derive(Debug)]
struct Nothing;

impl LogFormat for Nothing {
    fn parse(&self, _: &[u8]) -> Parsed {
        Parsed::Malformed
    }
}

impl Format {
    pub fn parser(self) -> Box<dyn LogFormat> {
        Box::new(Nothing)
    }
}
