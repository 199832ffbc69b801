//! From sequence numbers and byte counters of `struct tcp_sock` to payload.
//!
//! The kernel counts our SYN in `bytes_acked` (at the connecting end only) and in `snd_nxt`, our
//! FIN in `write_seq`, `snd_nxt` and `bytes_acked`, and the peer's FIN in `rcv_nxt` and
//! `bytes_received`. None of them is payload.

use bytes::Buf;
use rsttrace_common::{Sizes, Snapshot, snapshot_flag};

use crate::model::{AtFin, Bytes, Idle, Role, SequenceSpace, Speaker, TcpState};

/// The raw members.
pub struct RawSizes<'a>(pub &'a Sizes);

/// Sequence distances above this are negative: the window never is as large.
const HALF: u32 = 1 << 31;

/// `b - a` in sequence space, 0 where `b` lies before `a`.
fn ahead(b: u32, a: u32) -> u64 {
    let distance = b.wrapping_sub(a);
    if distance < HALF { distance.into() } else { 0 }
}

impl RawSizes<'_> {
    /// How many of our FINs are queued, sent and unacknowledged, and acknowledged: (queued but
    /// unsent, unacked, acked), one of them 1 at most.
    fn own_fin(&self, state: TcpState) -> (u64, u64, u64) {
        match state {
            TcpState::FinWait2 | TcpState::TimeWait => (0, 0, 1),
            // Its acknowledgement is what ends LAST_ACK and CLOSING.
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck if self.0.at.snd_una == self.0.at.write_seq => (0, 0, 1),
            // The FIN is the last thing in the queue: sent when all is.
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck if self.0.at.snd_nxt == self.0.at.write_seq => (0, 1, 0),
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => (1, 0, 0),
            _ => (0, 0, 0),
        }
    }

    fn unacked(&self, state: TcpState) -> u64 {
        if matches!(state, TcpState::SynSent | TcpState::SynRecv) {
            return 0;
        }
        ahead(self.0.at.snd_nxt, self.0.at.snd_una).saturating_sub(self.own_fin(state).1)
    }

    /// The role of a connection older than the tracer: what was transmitted for the first time and
    /// is acknowledged, compared with `bytes_acked`, shows whether a SYN was counted.
    pub fn role(&self, state: TcpState) -> Option<Role> {
        // Its SYN is not acknowledged yet.
        if state == TcpState::SynSent {
            return Some(Role::Client);
        }
        let payload = self.0.bytes_sent.checked_sub(self.0.bytes_retrans)?.checked_sub(self.unacked(state))?;
        match self.0.bytes_acked.checked_sub(self.own_fin(state).2)?.checked_sub(payload)? {
            0 => Some(Role::Server),
            1 => Some(Role::Client),
            _ => None,
        }
    }

    /// Payload only. `done`: the peer's FIN was received.
    pub fn bytes(&self, state: TcpState, role: Option<Role>, done: bool) -> Bytes {
        let (unsent_fin, _, acked_fin) = self.own_fin(state);
        let syn = u64::from(role == Some(Role::Client));
        let acked = self.0.bytes_acked.saturating_sub(syn + acked_fin);
        let unacked = self.unacked(state);
        let unsent = if matches!(state, TcpState::SynSent | TcpState::SynRecv) {
            ahead(self.0.at.write_seq, self.0.at.snd_nxt)
        } else {
            ahead(self.0.at.write_seq, self.0.at.snd_nxt).saturating_sub(unsent_fin)
        };
        let peer_fin = u64::from(done);
        let unread = ahead(self.0.at.rcv_nxt, self.0.at.copied_seq);
        Bytes {
            sent: acked + unacked,
            acked,
            unacked,
            unsent,
            received: self.0.bytes_received.saturating_sub(peer_fin),
            unread: unread.saturating_sub(peer_fin),
        }
    }

    /// Idle times, in the kernel's ticks of `tick_ns`.
    pub fn idle(&self, bytes: &Bytes, tick_ns: u64) -> Idle {
        idle(&self.0.at, bytes.sent > 0, bytes.received > 0, tick_ns)
    }

    /// How the connection stood at a FIN, compared with its end in this state; `None` where no
    /// FIN was seen.
    pub fn since_fin(&self, fin: &Snapshot, state: TcpState, tick_ns: u64) -> Option<AtFin> {
        if !fin.has(snapshot_flag::TAKEN) {
            return None;
        }
        let (unsent_fin, unacked_fin, acked_fin) = self.own_fin(state);
        let remote_fin = |at: &Snapshot| u64::from(at.has(snapshot_flag::REMOTE_FIN));
        let received = ahead(self.0.at.rcv_nxt, fin.rcv_nxt);
        Some(AtFin {
            speaker: speaker(fin),
            outstanding: ahead(fin.write_seq, fin.snd_una),
            goodbye: fin.has(snapshot_flag::GOODBYE),
            written_after: ahead(self.0.at.write_seq, fin.write_seq).saturating_sub(unsent_fin + unacked_fin + acked_fin),
            received_after: received.saturating_sub(remote_fin(&self.0.at).saturating_sub(remote_fin(fin))),
            idle: idle(fin, fin.has(snapshot_flag::SENT), fin.has(snapshot_flag::RECEIVED), tick_ns),
        })
    }

    /// Who spoke last; only while neither end has sent its FIN.
    pub fn speaker(&self) -> Option<Speaker> {
        speaker(&self.0.at)
    }

    /// The application has taken everything that arrived, the peer's FIN included.
    pub fn fin_read(&self) -> bool {
        self.0.at.copied_seq == self.0.at.rcv_nxt
    }

    /// What of our payload a segment acknowledges with this number.
    pub fn acked_by(&self, ack_seq: u32, bytes: &Bytes) -> u64 {
        bytes.acked + ahead(ack_seq, self.0.at.snd_una).min(bytes.unacked)
    }

    /// For finding the other end on this host.
    pub fn sequence_space(&self, state: TcpState) -> Option<SequenceSpace> {
        let (_, _, acked_fin) = self.own_fin(state);
        // Before the handshake is through, the numbers mean nothing yet.
        (self.0.at.has(snapshot_flag::TAKEN) && self.0.at.rcv_nxt != 0 && !matches!(state, TcpState::SynSent | TcpState::SynRecv)).then(
            || SequenceSpace {
                acknowledged: self.0.at.snd_una.wrapping_sub(u32::try_from(acked_fin).unwrap_or(0)),
                written: self.0.at.write_seq,
                expected: self.0.at.rcv_nxt,
            },
        )
    }

    /// Microseconds since the oldest unacknowledged segment left, or the latest where all is
    /// acknowledged.
    pub fn since_last_tx_us(&self, bytes: &Bytes, now_ns: u64) -> Option<u64> {
        (bytes.sent > 0 && self.0.first_tx_us != 0).then(|| (now_ns / 1_000).saturating_sub(self.0.first_tx_us))
    }

    /// The shortest round trip; `None` before the first measurement.
    pub fn min_rtt_us(&self) -> Option<u32> {
        (self.0.min_rtt_us != u32::MAX && self.0.srtt_us_x8 != 0).then_some(self.0.min_rtt_us)
    }

    /// Smoothed round trip; `None` before the first measurement.
    pub fn rtt_us(&self) -> Option<u32> {
        (self.0.srtt_us_x8 != 0).then_some(self.0.srtt_us_x8 >> 3)
    }
}

fn speaker(at: &Snapshot) -> Option<Speaker> {
    at.last_speaker().map(|speaker| match speaker {
        rsttrace_common::Speaker::Local => Speaker::Local,
        rsttrace_common::Speaker::Remote => Speaker::Remote,
    })
}

fn idle(at: &Snapshot, sent: bool, received: bool, tick_ns: u64) -> Idle {
    let since = |then: u32| ahead(at.now, then).saturating_mul(tick_ns) / 1_000_000;
    Idle { sent_ms: sent.then(|| since(at.lsndtime)), received_ms: received.then(|| since(at.lrcvtime)) }
}

/// See `rsttrace_common::Snapshot`.
pub fn snapshot(bytes: &mut &[u8]) -> Snapshot {
    Snapshot {
        snd_una: bytes.get_u32_ne(),
        snd_nxt: bytes.get_u32_ne(),
        write_seq: bytes.get_u32_ne(),
        rcv_nxt: bytes.get_u32_ne(),
        copied_seq: bytes.get_u32_ne(),
        snd_wl1: bytes.get_u32_ne(),
        prior_una: bytes.get_u32_ne(),
        now: bytes.get_u32_ne(),
        lsndtime: bytes.get_u32_ne(),
        lrcvtime: bytes.get_u32_ne(),
        flags: bytes.get_u32_ne(),
        pad: bytes.get_u32_ne(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sent 1,000 bytes, of which 600 are acknowledged, and wrote 50 more.
    fn server() -> Sizes {
        Sizes {
            bytes_sent: 1_300,
            bytes_retrans: 300,
            bytes_acked: 600,
            bytes_received: 20,
            first_tx_us: 0,
            srtt_us_x8: 328,
            min_rtt_us: 30,
            total_retrans: 3,
            pad: 0,
            at: Snapshot {
                snd_una: u32::MAX - 100,
                snd_nxt: 299,
                write_seq: 349,
                rcv_nxt: 21,
                copied_seq: 11,
                now: 1_000,
                lsndtime: 987,
                lrcvtime: 500,
                flags: snapshot_flag::TAKEN | snapshot_flag::SENT | snapshot_flag::RECEIVED,
                ..Snapshot::NONE
            },
        }
    }

    /// The same with other numbers.
    fn at(change: impl FnOnce(&mut Snapshot)) -> Snapshot {
        let mut at = server().at;
        change(&mut at);
        at
    }

    #[test]
    fn payload_adds_up_across_the_wrap_of_sequence_numbers() {
        let bytes = RawSizes(&server()).bytes(TcpState::Established, Some(Role::Server), false);
        assert_eq!(bytes, Bytes { sent: 1_000, acked: 600, unacked: 400, unsent: 50, received: 20, unread: 10 });
    }

    #[test]
    fn the_syn_counts_at_the_connecting_end_only() {
        let client = Sizes { bytes_acked: 601, ..server() };
        assert_eq!(RawSizes(&client).role(TcpState::Established), Some(Role::Client));
        assert_eq!(RawSizes(&server()).role(TcpState::Established), Some(Role::Server));
        assert_eq!(RawSizes(&client).bytes(TcpState::Established, Some(Role::Client), false).acked, 600);
        let odd = Sizes { bytes_acked: 700, ..server() };
        assert_eq!(RawSizes(&odd).role(TcpState::Established), None);
    }

    #[test]
    fn fins_are_not_payload() {
        let queued = Sizes { at: at(|at| at.write_seq = 350), ..server() };
        assert_eq!(RawSizes(&queued).bytes(TcpState::FinWait1, Some(Role::Server), false).unsent, 50);
        let sent = Sizes { at: at(|at| (at.snd_nxt, at.write_seq) = (350, 350)), ..server() };
        let bytes = RawSizes(&sent).bytes(TcpState::LastAck, Some(Role::Server), true);
        assert_eq!((bytes.unacked, bytes.unsent, bytes.received, bytes.unread), (450, 0, 19, 9));
        let done = Sizes {
            bytes_acked: 1,
            bytes_sent: 0,
            bytes_retrans: 0,
            at: at(|at| (at.snd_una, at.snd_nxt, at.write_seq) = (300, 300, 300)),
            ..server()
        };
        assert_eq!(RawSizes(&done).bytes(TcpState::LastAck, Some(Role::Server), true).sent, 0);
        assert_eq!(RawSizes(&done).role(TcpState::LastAck), Some(Role::Server));
        let acked = Sizes { bytes_acked: 1_001, at: at(|at| (at.snd_una, at.snd_nxt, at.write_seq) = (300, 300, 300)), ..server() };
        assert_eq!(RawSizes(&acked).bytes(TcpState::FinWait2, Some(Role::Server), false).acked, 1_000);
    }

    #[test]
    fn a_syn_under_way_is_not_payload() {
        let syn = Sizes {
            bytes_sent: 0,
            bytes_retrans: 0,
            bytes_acked: 0,
            bytes_received: 0,
            at: at(|at| (at.snd_una, at.snd_nxt, at.write_seq, at.rcv_nxt, at.copied_seq) = (7, 8, 8, 0, 0)),
            ..server()
        };
        assert_eq!(RawSizes(&syn).bytes(TcpState::SynSent, Some(Role::Client), false), Bytes::default());
    }

    #[test]
    fn idle_is_null_where_nothing_was_sent() {
        let raw = server();
        let bytes = RawSizes(&raw).bytes(TcpState::Established, Some(Role::Server), false);
        assert_eq!(RawSizes(&raw).idle(&bytes, 4_000_000), Idle { sent_ms: Some(52), received_ms: Some(2_000) });
        assert_eq!(RawSizes(&raw).idle(&Bytes::default(), 4_000_000), Idle::default());
        assert_eq!(RawSizes(&raw).rtt_us(), Some(41));
    }
}
