//! What the rules ask of a record.

use crate::model::{Answer, AtFin, Bytes, Cause, EndKind, Evidence, FirstFin, Role, Speaker, TcpState, Teardown};

/// Data older than this, and than three round trips, is history: the connection idles.
const IDLE_MS: u64 = 1_000;
/// Who closes this long after the last bytes has waited for an answer; who closes at once has not,
/// and the last bytes may be its goodbye (TLS close_notify). Three ticks at 250 Hz.
const WAITED_MS: u64 = 12;
/// A connection is stale when nothing was received for this long: what forgets connections
/// (NAT, load balancers, firewalls) takes at least as long.
const STALE_MS: u64 = 30_000;
/// Below this a round trip is too short to tell before from after.
const MEASURABLE_RTT_US: u32 = 1_000;

/// When a RST arrived, compared with the round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    /// Too early to answer our bytes: it was under way before they left.
    Crossing,
    /// About one round trip after they left: it answers them.
    Answering,
    Unknown,
}

/// A record, and the questions that more than one rule has.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub t: &'a Teardown,
    /// All zero for a RST without a full socket.
    pub bytes: Bytes,
    pub evidence: &'a Evidence,
}

/// For records that have none.
static NO_EVIDENCE: std::sync::LazyLock<Evidence> = std::sync::LazyLock::new(Evidence::default);

impl<'a> Facts<'a> {
    pub fn new(t: &'a Teardown) -> Self {
        Self { t, bytes: t.bytes.unwrap_or_default(), evidence: t.evidence.as_ref().unwrap_or(&NO_EVIDENCE) }
    }

    pub fn client(&self) -> bool {
        self.t.role == Some(Role::Client)
    }

    pub fn server(&self) -> bool {
        self.t.role == Some(Role::Server)
    }

    pub fn state(&self) -> TcpState {
        self.t.state.unwrap_or(TcpState::Close)
    }

    pub fn reason(&self) -> &str {
        self.t.reason.as_deref().unwrap_or_default()
    }

    /// Ours without acknowledgement, sent or not.
    pub fn outstanding(&self) -> u64 {
        self.bytes.unacked + self.bytes.unsent
    }

    /// As the other end sees it: a FIN that waits behind what has not been sent has not closed anything there.
    pub fn state_on_the_wire(&self) -> TcpState {
        match self.state() {
            TcpState::FinWait1 if self.bytes.unsent > 0 => TcpState::Established,
            state => state,
        }
    }

    /// Not a byte of payload either way.
    pub fn silent(&self) -> bool {
        self.bytes.sent + self.bytes.unsent + self.bytes.received == 0
    }

    pub fn speaker(&self) -> Option<Speaker> {
        self.evidence.last_speaker
    }

    pub fn first_fin(&self) -> Option<&'a AtFin> {
        self.evidence.first_fin(self.t.fin.first)
    }

    /// Our FIN was the first, or crossed the peer's.
    pub fn closed_first(&self) -> bool {
        matches!(self.t.fin.first, Some(FirstFin::Local | FirstFin::Both))
    }

    /// An exchange was completed before the one at hand, as far as that shows: the requester has
    /// spoken last, and there was an answer before.
    pub fn reused(&self) -> Option<bool> {
        match (self.t.role?, self.speaker()?) {
            (Role::Client, Speaker::Local) => Some(self.bytes.received > 0),
            (Role::Server, Speaker::Remote) => Some(self.bytes.sent > 0),
            _ => None,
        }
    }

    /// Whether the last word was a request: the client's.
    pub fn request_unanswered(&self) -> Option<bool> {
        Some(matches!((self.t.role?, self.speaker()?), (Role::Client, Speaker::Local) | (Role::Server, Speaker::Remote)))
    }

    /// How much of the last request's answer moved, where HTTP was looked at and is certain.
    pub fn answer(&self) -> Answer {
        self.t
            .http
            .as_ref()
            .filter(|http| http.request.is_some() && Some(http.role) == self.t.role)
            .map_or(Answer::Unknown, |http| http.answer)
    }

    /// Milliseconds since the last data segment in either direction.
    fn since_data_ms(&self) -> Option<u64> {
        let idle = self.t.idle?;
        idle.sent_ms.into_iter().chain(idle.received_ms).min()
    }

    pub fn idle(&self) -> bool {
        self.since_data_ms().is_some_and(|ms| self.long(ms))
    }

    fn long(&self, ms: u64) -> bool {
        ms > IDLE_MS && ms * 1_000 > 3 * u64::from(self.t.rtt_us.unwrap_or(0))
    }

    /// The same at a FIN.
    pub fn was_idle(&self, fin: &AtFin) -> bool {
        fin.idle.sent_ms.into_iter().chain(fin.idle.received_ms).min().is_some_and(|ms| self.long(ms))
    }

    /// Since the other end last spoke: the time that its timers have measured, which a request just
    /// sent has not yet reached.
    pub fn stale(&self) -> bool {
        self.t.idle.and_then(|idle| idle.received_ms).is_some_and(|ms| ms >= STALE_MS)
    }

    /// When the RST arrived, by the time since our oldest unacknowledged byte left.
    pub fn flight(&self) -> Flight {
        let (Some(since), Some(rtt)) = (self.evidence.since_last_tx_us, self.evidence.min_rtt_us) else { return Flight::Unknown };
        if rtt < MEASURABLE_RTT_US {
            return Flight::Unknown;
        }
        match since * 100 / u64::from(rtt) {
            ..90 => Flight::Crossing,
            90..=125 => Flight::Answering,
            _ => Flight::Unknown,
        }
    }

    /// The idle time that a timer may have measured.
    pub fn idle_before(&self, cause: Cause) -> Option<u64> {
        let sent_and_received = |idle: crate::model::Idle| match cause {
            // The request has just been sent; the other end's timer ran since its last word.
            Cause::KeepaliveRace | Cause::StaleConnection | Cause::NoConnectionAtPeer | Cause::RequestNotConfirmed => idle.received_ms,
            _ => idle.sent_ms.into_iter().chain(idle.received_ms).min(),
        };
        match self.t.end {
            // The kernel's own timers measure other times.
            EndKind::Timeout | EndKind::Error => None,
            _ if cause == Cause::KeepaliveTimeout => None,
            // The first FIN is the timer's work.
            EndKind::Fin => self.first_fin().map(|fin| fin.idle).and_then(sent_and_received),
            _ => self.t.idle.and_then(sent_and_received),
        }
    }
}

/// Whether the requester, who has spoken last, waited for an answer before this FIN.
pub fn waited(since_last_word_ms: Option<u64>) -> bool {
    since_last_word_ms.is_some_and(|ms| ms >= WAITED_MS)
}
