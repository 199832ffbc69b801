//! Plain values that the other modules exchange. Nothing here reads a clock or a file.

mod event;
mod evidence;
mod http;
mod log;
mod teardown;
mod verdict;
mod who;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

pub use self::{
    event::{After, AfterKind, End, Event, Exec, FirstFin, Hook, SeenHttp, SequenceSpace, SockId, Stray},
    evidence::{AtFin, Evidence, ResetHeader, Segment, Speaker},
    http::{Answer, Http},
    log::{Fault, Finding, LogLine, LogTally, LogTime, Remote, Side, Stamp},
    teardown::{Bytes, Closer, EndKind, Fin, Idle, LateObservation, Observer, Owner, Party, Record, Role, Seen, Teardown},
    verdict::{Cause, Damage, Harm, Initiator, Judged, Peer, Phase, Timer, Verdict},
    who::{Container, Identity, Names, Nat, Place, Runtime},
};

/// TCP states, `include/net/tcp_states.h`; what a future kernel adds is kept by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    NewSynRecv,
    Unknown(u8),
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            other => Self::Unknown(other),
        }
    }
}

impl TcpState {
    /// The kernel's name without `TCP_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::NewSynRecv => "NEW_SYN_RECV",
            Self::Unknown(_) => "UNKNOWN",
        }
    }
}

/// An error number, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    pub const EPIPE: Self = Self(32);
    pub const ECONNABORTED: Self = Self(103);
    pub const ECONNRESET: Self = Self(104);
    pub const ETIMEDOUT: Self = Self(110);
    pub const ECONNREFUSED: Self = Self(111);

    /// What `tcp_reset()` leaves in `sk_err` for a RST that arrives in this state.
    pub fn of_reset_in(state: TcpState) -> Self {
        match state {
            TcpState::SynSent => Self::ECONNREFUSED,
            TcpState::CloseWait => Self::EPIPE,
            _ => Self::ECONNRESET,
        }
    }

    /// `ECONNRESET`; `None` for a number that has no symbol.
    pub fn name(self) -> Option<&'static str> {
        syscalls::Errno::new(self.0).name()
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl FromStr for Errno {
    type Err = String;

    /// Symbol in any case, or number.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number @ 1..=4095) = text.parse() {
            return Ok(Self(number));
        }
        let wanted = text.to_ascii_uppercase();
        (1..=4095)
            .map(Self)
            .find(|errno| errno.name() == Some(wanted.as_str()))
            .ok_or_else(|| format!("no errno is called {text:?}: expected a symbol such as ECONNRESET or a number such as 104"))
    }
}

/// One end of a connection. A v4-mapped address is held as the IPv4 address that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub addr: IpAddr,
    pub port: u16,
}

impl Endpoint {
    pub fn v4(bytes: [u8; 4], port: u16) -> Self {
        Self { addr: Ipv4Addr::from(bytes).into(), port }
    }

    pub fn v6(bytes: [u8; 16], port: u16) -> Self {
        Self { addr: IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(), port }
    }
}

impl fmt::Display for Endpoint {
    /// IPv6 in brackets, RFC 5952.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

/// A task's name as the kernel keeps it: at most 15 bytes, any bytes at all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The bytes before the first NUL.
    pub fn bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// As text; bytes that are not UTF-8 become U+FFFD. Control characters are the printer's care.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        // Most are plain, and the check for that is the quickest.
        str::from_utf8(self.bytes()).map_or_else(|_| String::from_utf8_lossy(self.bytes()), Into::into)
    }
}

impl From<&str> for Comm {
    fn from(text: &str) -> Self {
        let mut bytes = [0; 16];
        let length = text.len().min(15);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self(bytes)
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text(), f)
    }
}

/// A task as an event found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub tgid: u32,
    pub tid: u32,
    pub parent_tgid: u32,
    /// The thread's name.
    pub comm: Comm,
    /// The process's name: what an owner is called.
    pub process_comm: Comm,
    /// Name of the system call that it was in; `None` for an exiting task, a kernel thread, an
    /// io_uring worker, or where the kernel half cannot read it.
    pub syscall: Option<&'static str>,
    /// The call's descriptor, where it is the event's socket.
    pub fd: Option<i32>,
    pub exiting: bool,
    /// The signal that makes it exit.
    pub signal: Option<u32>,
    pub kernel_thread: bool,
    /// The descriptor was in blocking mode (connect only).
    pub blocking: bool,
}

/// The kernel's reason for a RST that it sends.
pub type Reason = Arc<str>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_parse_by_symbol_and_number() {
        assert_eq!("econnreset".parse(), Ok(Errno::ECONNRESET));
        assert_eq!("104".parse(), Ok(Errno::ECONNRESET));
        assert!("ERESET".parse::<Errno>().is_err());
        assert!("0".parse::<Errno>().is_err());
        assert!("-104".parse::<Errno>().is_err());
        assert_eq!(Errno(4000).to_string(), "errno 4000");
    }

    #[test]
    fn unknown_states_keep_their_number() {
        assert_eq!(TcpState::from(13), TcpState::Unknown(13));
        assert_eq!(TcpState::from(8).name(), "CLOSE_WAIT");
    }

    #[test]
    fn a_v4_mapped_endpoint_is_ipv4() {
        let mut bytes = [0; 16];
        bytes[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(Endpoint::v6(bytes, 80).to_string(), "127.0.0.1:80");
        assert_eq!(Endpoint::v6([0; 16], 80).to_string(), "[::]:80");
    }

    #[test]
    fn a_reset_leaves_the_error_of_its_state() {
        assert_eq!(Errno::of_reset_in(TcpState::SynSent), Errno::ECONNREFUSED);
        assert_eq!(Errno::of_reset_in(TcpState::CloseWait), Errno::EPIPE);
        assert_eq!(Errno::of_reset_in(TcpState::LastAck), Errno::ECONNRESET);
    }
}
