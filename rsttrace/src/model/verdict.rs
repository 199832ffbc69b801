//! The words of a verdict.

use super::{Comm, EndKind, Finding, Names, Teardown};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word of the JSON contract.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|value| value.name() == word).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|value| value.name()).collect();
                    format!("{word:?} is none of {}", all.join(", "))
                })
            }
        }
    };
}

words! {
    /// Did it hurt? In the order of weight.
    Harm {
        /// Bytes that certainly did not arrive or were never read.
        Lost = "lost",
        /// Unconfirmed bytes, or a request without its answer.
        Possible = "possible",
        Unknown = "unknown",
        /// All payload is acknowledged by the other host, and nothing received was dropped here.
        None = "none",
    }
}

impl Harm {
    /// The word in front of a record.
    pub const fn on_screen(self) -> &'static str {
        match self {
            Self::Lost => "LOST",
            Self::Possible => "maybe",
            Self::Unknown => "?",
            Self::None => "ok",
        }
    }
}

words! {
    /// At what point of the exchange.
    Phase {
        Connecting = "connecting",
        Accepting = "accepting",
        Idle = "idle",
        RequestInFlight = "request-in-flight",
        MidResponse = "mid-response",
        AfterResponse = "after-response",
        AfterLocalFin = "after-local-fin",
        AfterRemoteFin = "after-remote-fin",
        Closing = "closing",
        Unknown = "unknown",
    }
}

words! {
    /// Who ended it.
    Initiator {
        PeerApplication = "peer-application",
        PeerKernel = "peer-kernel",
        LocalApplication = "local-application",
        LocalKernel = "local-kernel",
        LocalAdmin = "local-admin",
        Middlebox = "middlebox",
        Unknown = "unknown",
    }
}

words! {
    /// Why, each explained in docs/causes.
    Cause {
        AdminKill = "admin-kill",
        ListenerClosed = "listener-closed",
        KeepaliveTimeout = "keepalive-timeout",
        RetransmitTimeout = "retransmit-timeout",
        ConnectTimeout = "connect-timeout",
        UserTimeout = "user-timeout",
        ZeroWindowTimeout = "zero-window-timeout",
        UndeliveredAfterClose = "undelivered-after-close",
        OutOfMemory = "out-of-memory",
        RefusedByIcmp = "refused-by-icmp",
        Unreachable = "unreachable",
        GaveUpConnecting = "gave-up-connecting",
        CloseWithUnreadData = "close-with-unread-data",
        LingerZero = "linger-zero",
        Disconnect = "disconnect",
        DataAfterClose = "data-after-close",
        Linger2Abort = "linger2-abort",
        SilentClose = "silent-close",
        ClosedPort = "closed-port",
        NoConnection = "no-connection",
        AcceptQueueOverflow = "accept-queue-overflow",
        TimeWait = "time-wait",
        ProtocolError = "protocol-error",
        Refused = "refused",
        ResetBeforeAccept = "reset-before-accept",
        ConnectProbe = "connect-probe",
        WriteAfterPeerClose = "write-after-peer-close",
        KeepaliveRace = "keepalive-race",
        ClosedBeforeAnswer = "closed-before-answer",
        ResetWhileClosing = "reset-while-closing",
        ResetAfterLocalFin = "reset-after-local-fin",
        StaleConnection = "stale-connection",
        NoConnectionAtPeer = "no-connection-at-peer",
        RequestNotConfirmed = "request-not-confirmed",
        ServerAbortBeforeResponse = "server-abort-before-response",
        ServerAbortMidResponse = "server-abort-mid-response",
        PeerAbortIdle = "peer-abort-idle",
        PeerAbortMidResponse = "peer-abort-mid-response",
        PeerAbortAfterResponse = "peer-abort-after-response",
        PeerAbortBeforeResponse = "peer-abort-before-response",
        Orderly = "orderly",
        OrderlyUnread = "orderly-unread",
        GaveUpWaiting = "gave-up-waiting",
        ClientGaveUp = "client-gave-up",
        Unknown = "unknown",
    }
}

/// What became of the payload, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Ours that never left, or is proved not to have arrived.
    pub undelivered: u64,
    /// Ours that may or may not have arrived.
    pub unconfirmed: u64,
    /// Ours that arrived, and that the other end (on this host) never read.
    pub unread_there: u64,
    /// The peer's that was dropped here unread.
    pub unread_here: u64,
}

impl Damage {
    /// Certainly lost.
    pub fn lost(&self) -> u64 {
        self.undelivered + self.unread_there + self.unread_here
    }
}

/// The other end of a connection, when it is a socket of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub end: EndKind,
    pub cookie: Option<u64>,
    pub tgid: Option<u32>,
    pub comm: Comm,
    /// What that end did: the call that closed it, or the one that saw the error.
    pub syscall: Option<&'static str>,
    /// A task of its own ended it, whether its call is known or not.
    pub acted: bool,
    /// It was ended from outside.
    pub killed: bool,
    /// Bytes of ours that arrived there and were never read; `None` while it may still read them.
    pub unread: Option<u64>,
    /// Of our payload without acknowledgement, what arrived there.
    pub arrived: u64,
}

/// A well-known timer whose time the idle time matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub seconds: u64,
    /// Whose it is.
    pub name: std::sync::Arc<str>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub phase: Phase,
    pub cause: Cause,
    pub initiator: Initiator,
    pub harm: Harm,
    pub damage: Damage,
    /// An exchange was completed on this connection before the one that it hit.
    pub reused: Option<bool>,
    /// What the kernel's reason for our RST would be, where it gave none.
    pub inferred_reason: Option<&'static str>,
    pub timer: Option<Timer>,
    /// One sentence.
    pub words: String,
}

/// A record with its verdict, and the names that go with its numbers.
#[derive(Clone, Debug)]
pub struct Judged {
    pub teardown: Box<Teardown>,
    pub verdict: Verdict,
    pub names: Names,
    /// What the application's log has about it.
    pub log: Finding,
}

impl Judged {
    /// In order, and the log has nothing about it: counted, and shown only where such ends are asked for.
    pub fn is_merely_orderly(&self) -> bool {
        self.log == Finding::Nothing
            && self.teardown.end == EndKind::Fin
            && matches!(self.verdict.cause, Cause::Orderly | Cause::OrderlyUnread)
    }
}
