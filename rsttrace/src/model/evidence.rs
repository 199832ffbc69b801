//! What a verdict rests on, beside what a record says anyway.

use super::{Errno, FirstFin, Idle, TcpState};

/// Who sent payload last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    Local,
    Remote,
}

impl Speaker {
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// The header of the RST that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    /// Our payload up to its acknowledgement number; `None` where it acknowledges nothing: then it
    /// answers a segment of ours, and its sender knows no such connection (RFC 9293, 3.5.2).
    pub acked: Option<u64>,
    pub ttl: u8,
    /// As sent, not scaled.
    pub window: u16,
}

/// How a connection stood when a FIN passed, and what came after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtFin {
    pub speaker: Option<Speaker>,
    /// Our bytes without acknowledgement, sent or not.
    pub outstanding: u64,
    /// Our application's latest write had the size of TLS's close_notify.
    pub goodbye: bool,
    /// Payload that our application wrote later.
    pub written_after: u64,
    /// Payload that arrived later.
    pub received_after: u64,
    pub idle: Idle,
}

/// A segment that met no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub syn: bool,
    /// Its payload.
    pub bytes: Option<u64>,
}

/// What the kernel half and the join know beside the record's other fields; `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Before any FIN, and after it where payload followed.
    pub last_speaker: Option<Speaker>,
    /// `SO_LINGER` on with time 0.
    pub linger_zero: bool,
    /// `SO_LINGER`'s time where it is on.
    pub linger_s: Option<u64>,
    /// `TCP_LINGER2` below 0.
    pub linger2: bool,
    /// `TCP_USER_TIMEOUT`.
    pub user_timeout_ms: Option<u32>,
    pub min_rtt_us: Option<u32>,
    /// Since the oldest unacknowledged segment left, or the latest where all is acknowledged.
    pub since_last_tx_us: Option<u64>,
    /// Retransmissions of the oldest unacknowledged segment, unanswered.
    pub retransmits: u8,
    /// Keep-alive or zero-window probes, unanswered.
    pub probes_out: u8,
    /// The latest ICMP error that did not end the connection.
    pub soft_errno: Option<Errno>,
    /// The error that the end left for the application.
    pub errno: Option<Errno>,
    /// Of the RST that arrived, where the segment was seen.
    pub reset: Option<ResetHeader>,
    pub remote_fin: Option<AtFin>,
    pub local_fin: Option<AtFin>,
    /// The application has read up to the peer's FIN.
    pub fin_read: bool,
    /// No descriptor referred to it any more.
    pub orphan: bool,
    /// accept() had not returned it yet.
    pub accept_queue: bool,
    /// The RST that we sent answers a segment.
    pub answer: bool,
    /// Payload of that segment.
    pub segment_bytes: Option<u64>,
    /// Bytes that nobody ever read.
    pub unread_at_release: Option<u64>,
}

impl Evidence {
    /// How it stood at the first FIN.
    pub fn first_fin(&self, first: Option<FirstFin>) -> Option<&AtFin> {
        match first? {
            FirstFin::Remote => self.remote_fin.as_ref(),
            FirstFin::Local | FirstFin::Both => self.local_fin.as_ref(),
        }
    }

    /// Fills in the last speaker: `now` is who it is by the numbers of the end, which FINs blur.
    #[must_use]
    pub fn with_speaker(mut self, state: TcpState, first: Option<FirstFin>, now: Option<Speaker>) -> Self {
        self.last_speaker = match (state, self.first_fin(first)) {
            (TcpState::Established, _) => now,
            (_, Some(fin)) => match (fin.written_after, fin.received_after) {
                (0, 0) => fin.speaker,
                (_, 0) => Some(Speaker::Local),
                (0, _) => Some(Speaker::Remote),
                _ => None,
            },
            _ => None,
        };
        self
    }
}
