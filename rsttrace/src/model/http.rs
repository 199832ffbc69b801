//! The last request on a connection, and what became of its answer.

use super::Role;

/// How much of the answer moved: sent by our application, or received by our kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not a byte, or interim status lines (1xx) only.
    None,
    Partial,
    Complete,
    Unknown,
}

impl Answer {
    /// The word of the JSON contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Complete => "complete",
            Self::Unknown => "unknown",
        }
    }
}

/// What HTTP/1 says of a connection that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Which end of the conversation is ours.
    pub role: Role,
    /// The last request's line; `None`: which one was the last is not certain.
    pub request: Option<String>,
    /// All of the request moved, its body too.
    pub whole: bool,
    pub status: Option<u16>,
    pub answer: Answer,
    /// Bytes of the answer that moved, its head included.
    pub moved: Option<u64>,
    /// How many they were to be.
    pub expected: Option<u64>,
}

impl Http {
    /// HTTP it is, but which request was the last is not certain.
    pub fn uncertain(role: Role) -> Self {
        Self { role, request: None, whole: false, status: None, answer: Answer::Unknown, moved: None, expected: None }
    }
}
