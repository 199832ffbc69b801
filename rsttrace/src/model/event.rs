//! What the kernel half reported, decoded.

use super::{Bytes, Endpoint, Errno, Evidence, Http, Idle, Reason, Role, Segment, Task, TcpState};

/// One life of one socket: its address in the kernel, and when it was first met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SockId {
    pub sk: u64,
    /// 0: the kernel half had no entry for it (any more).
    pub born_ns: u64,
}

/// Which hook saw the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    ReceiveReset,
    SendReset,
    SetState,
}

/// Who sent the first FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstFin {
    Local,
    Remote,
    Both,
}

/// One event, in the order of the ring buffer.
#[derive(Clone, Debug)]
pub enum Event {
    End(Box<End>),
    After(After),
    Stray(Stray),
    Http(Box<SeenHttp>),
    Exec(Exec),
}

impl Event {
    /// `CLOCK_MONOTONIC`.
    pub fn ts_ns(&self) -> u64 {
        match self {
            Self::End(end) => end.ts_ns,
            Self::After(after) => after.ts_ns,
            Self::Stray(stray) => stray.ts_ns,
            Self::Http(seen) => seen.ts_ns,
            Self::Exec(exec) => exec.ts_ns,
        }
    }
}

/// Where a socket stood in both directions' sequence numbers, to recognise its other end by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceSpace {
    /// `snd_una`, less an acknowledged FIN.
    pub acknowledged: u32,
    /// `write_seq`.
    pub written: u32,
    /// `rcv_nxt`.
    pub expected: u32,
}

/// A socket's first sign of ending, with all that was known of it then.
#[derive(Clone, Debug)]
pub struct End {
    pub ts_ns: u64,
    pub id: SockId,
    pub hook: Hook,
    pub state: TcpState,
    pub cookie: u64,
    pub inode: Option<u64>,
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub role: Option<Role>,
    pub opened_ns: Option<u64>,
    pub first_fin: Option<FirstFin>,
    pub first_fin_ns: Option<u64>,
    pub second_fin_ns: Option<u64>,
    pub fin_data_bytes: Option<u32>,
    /// The peer's FIN was received.
    pub done: bool,
    /// No descriptor refers to it any more.
    pub orphan: bool,
    pub sequence: Option<SequenceSpace>,
    pub evidence: Evidence,
    pub bytes: Bytes,
    pub idle: Idle,
    pub rtt_us: Option<u32>,
    pub retransmits: u32,
    /// `sk_err` at that moment.
    pub err: Option<Errno>,
    pub reason: Option<Reason>,
    /// The RST that we sent answers a segment.
    pub answer: bool,
    /// The table was full: nothing that follows can be matched.
    pub untracked: bool,
    /// Destroyed already: nothing follows.
    pub gone: bool,
    pub owner: Option<Task>,
    pub closer: Option<Task>,
}

/// What happened to a socket after its end was reported.
#[derive(Clone, Debug)]
pub struct After {
    pub ts_ns: u64,
    pub id: SockId,
    pub task: Option<Task>,
    pub kind: AfterKind,
}

#[derive(Clone, Debug)]
pub enum AfterKind {
    /// A system call returned the error.
    Observed { errno: Errno },
    /// A RST left; `answer`: for a segment that arrived, with so much payload.
    ResetSent { reason: Option<Reason>, answer: bool, segment_bytes: Option<u64> },
    /// CLOSE was reached with this error.
    Closed { errno: Option<Errno> },
    /// The socket is gone, or connect() began its next life; `untaken` is the error that nobody
    /// took, `unread` the bytes that nobody read.
    Released { untaken: Option<Errno>, observation_lost: bool, reset_lost: bool, reopened: bool, unread: Option<u64> },
}

/// What HTTP says of a socket whose end was reported.
#[derive(Clone, Debug)]
pub struct SeenHttp {
    pub ts_ns: u64,
    pub id: SockId,
    /// `None`: it was no HTTP/1.
    pub http: Option<Http>,
}

/// A process became another program.
#[derive(Clone, Copy, Debug)]
pub struct Exec {
    pub ts_ns: u64,
    pub tgid: u32,
}

/// A RST that answered a segment without ending a full socket.
#[derive(Clone, Debug)]
pub struct Stray {
    pub ts_ns: u64,
    pub netns: Option<u32>,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub reason: Option<Reason>,
    /// State of the socket that the segment met, if any.
    pub state: Option<TcpState>,
    pub segment: Option<Segment>,
}
