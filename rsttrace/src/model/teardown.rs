//! What is said about one connection that ended.

use super::{Comm, Endpoint, Errno, Evidence, FirstFin, Http, Peer, Reason, Segment, Task, TcpState};

/// How a connection ended, in the order of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndKind {
    ResetReceived,
    ResetSent,
    Timeout,
    Error,
    Fin,
}

impl EndKind {
    pub const ALL: [Self; 5] = [Self::ResetReceived, Self::ResetSent, Self::Timeout, Self::Error, Self::Fin];

    /// The word of the JSON contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::ResetReceived => "reset-received",
            Self::ResetSent => "reset-sent",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::Fin => "fin",
        }
    }
}

/// Which end connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Client,
    Server,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Whether a task learned of the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Yes,
    /// The socket died with its error untaken.
    Never,
    NotYet,
    Unknown,
}

impl Seen {
    pub fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Never => "never",
            Self::NotYet => "not-yet",
            Self::Unknown => "unknown",
        }
    }
}

/// Payload by what became of it; SYN and FIN are never counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub sent: u64,
    pub acked: u64,
    pub unacked: u64,
    pub unsent: u64,
    pub received: u64,
    pub unread: u64,
}

/// Milliseconds since the last data segment each way; `None`: there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    pub sent_ms: Option<u64>,
    pub received_ms: Option<u64>,
}

/// The process that holds the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub tgid: u32,
    pub parent_tgid: u32,
    pub comm: Comm,
}

/// The task whose system call returned the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observer {
    pub task: Task,
    pub errno: Errno,
    /// From the error's birth to the return of that call; `None` where the return was not caught.
    pub delay_ns: Option<u64>,
    /// Concluded, not caught.
    pub inferred: bool,
}

/// A task that ended or released a connection.
pub type Closer = Task;

/// What is known of the two FINs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fin {
    pub first: Option<FirstFin>,
    pub local: Option<bool>,
    pub remote: Option<bool>,
    pub remote_data_bytes: Option<u32>,
    pub half_closed_ns: Option<u64>,
    /// `CLOCK_MONOTONIC`.
    pub first_ns: Option<u64>,
}

impl Fin {
    /// When our own was sent; `None` where that is not known, or it was not.
    pub fn local_ns(&self) -> Option<u64> {
        match self.first? {
            FirstFin::Local | FirstFin::Both => self.first_ns,
            FirstFin::Remote => self.first_ns.zip(self.half_closed_ns).map(|(first, apart)| first.saturating_add(apart)),
        }
    }
}

/// One socket that ended.
#[derive(Clone, Debug)]
pub struct Teardown {
    /// Time of the event named by `end`, `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    pub end: EndKind,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub netns: Option<u32>,
    pub cookie: Option<u64>,
    pub inode: Option<u64>,
    pub role: Option<Role>,
    /// State before the end; `None` where a RST met no socket.
    pub state: Option<TcpState>,
    pub age_ns: Option<u64>,
    /// `None` for a RST without a full socket.
    pub idle: Option<Idle>,
    pub bytes: Option<Bytes>,
    pub rtt_us: Option<u32>,
    pub retransmits: Option<u32>,
    pub reason: Option<Reason>,
    pub owner: Option<Owner>,
    pub observer: Option<Observer>,
    pub seen: Seen,
    pub closer: Option<Closer>,
    pub released: Option<Closer>,
    /// When, `CLOCK_MONOTONIC`.
    pub released_ns: Option<u64>,
    pub fin: Fin,
    /// `None` for a RST without a full socket.
    pub evidence: Option<Evidence>,
    /// The segment that such a RST answers.
    pub segment: Option<Segment>,
    pub peer: Option<Peer>,
    /// The last request, where HTTP is looked at and was seen.
    pub http: Option<Http>,
}

impl Teardown {
    /// Every process that has a part in it: holder, observer, closer.
    pub fn parties(&self) -> impl Iterator<Item = Party> + '_ {
        let tasks = self.observer.iter().map(|observer| &observer.task).chain(&self.closer);
        self.owner.iter().map(Party::from).chain(tasks.map(Party::from))
    }

    /// Whose connection it is called in a table: its holder, else who noticed or closed it.
    pub fn process(&self) -> Option<Comm> {
        self.parties().next().map(|party| party.process_comm)
    }

    /// The server's port: ours, unless we connected. The other one is of no use to anybody who counts.
    pub fn service_port(&self) -> u16 {
        if self.role == Some(Role::Client) { self.remote.port } else { self.local.port }
    }

    /// Since the last data either way; `None`: there was none, or no full socket.
    pub fn idle_ms(&self) -> Option<u64> {
        let idle = self.idle?;
        idle.sent_ms.into_iter().chain(idle.received_ms).min()
    }

    /// When whoever held the socket certainly still did: closing it may be long before its end.
    pub fn held_ns(&self) -> u64 {
        let closed = self.fin.first_ns.filter(|_| self.fin.first == Some(FirstFin::Local));
        closed.map_or(self.at_ns, |closed| closed.min(self.at_ns))
    }
}

/// A process as an event named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    pub tgid: u32,
    pub parent_tgid: u32,
    /// The acting thread's name.
    pub comm: Comm,
    pub process_comm: Comm,
}

impl From<&Owner> for Party {
    fn from(owner: &Owner) -> Self {
        Self { tgid: owner.tgid, parent_tgid: owner.parent_tgid, comm: owner.comm, process_comm: owner.comm }
    }
}

impl From<&Task> for Party {
    fn from(task: &Task) -> Self {
        Self { tgid: task.tgid, parent_tgid: task.parent_tgid, comm: task.comm, process_comm: task.process_comm }
    }
}

/// An error that was noticed after its connection's record was printed.
#[derive(Clone, Debug)]
pub struct LateObservation {
    pub at_ns: u64,
    pub cookie: Option<u64>,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub netns: Option<u32>,
    pub end: EndKind,
    pub owner: Option<Owner>,
    pub observer: Observer,
}

impl LateObservation {
    /// Holder and observer.
    pub fn parties(&self) -> impl Iterator<Item = Party> + '_ {
        self.owner.iter().map(Party::from).chain([Party::from(&self.observer.task)])
    }
}

/// What the join yields.
#[derive(Clone, Debug)]
pub enum Record {
    Teardown(Box<Teardown>),
    /// Both ends of a connection within this host.
    Pair(Box<Teardown>, Box<Teardown>),
    Late(Box<LateObservation>),
}
