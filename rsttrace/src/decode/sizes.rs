//! From sequence numbers and byte counters of `struct tcp_sock` to payload.
//!
//! The kernel counts our SYN in `bytes_acked` (at the connecting end only) and in `snd_nxt`, our
//! FIN in `write_seq`, `snd_nxt` and `bytes_acked`, and the peer's FIN in `rcv_nxt` and
//! `bytes_received`. None of them is payload.

use bytes::Buf;

use crate::model::{Bytes, Idle, Role, TcpState};

/// The raw members, see `rsttrace_common::Sizes`.
pub struct RawSizes {
    bytes_sent: u64,
    bytes_retrans: u64,
    bytes_acked: u64,
    bytes_received: u64,
    snd_una: u32,
    snd_nxt: u32,
    write_seq: u32,
    rcv_nxt: u32,
    copied_seq: u32,
    now: u32,
    lsndtime: u32,
    lrcvtime: u32,
    srtt_us_x8: u32,
    pub total_retrans: u32,
}

/// Sequence distances above this are negative: the window never is as large.
const HALF: u32 = 1 << 31;

/// `b - a` in sequence space, 0 where `b` lies before `a`.
fn ahead(b: u32, a: u32) -> u64 {
    let distance = b.wrapping_sub(a);
    if distance < HALF { distance.into() } else { 0 }
}

impl RawSizes {
    pub fn read(bytes: &mut &[u8]) -> Self {
        Self {
            bytes_sent: bytes.get_u64_ne(),
            bytes_retrans: bytes.get_u64_ne(),
            bytes_acked: bytes.get_u64_ne(),
            bytes_received: bytes.get_u64_ne(),
            snd_una: bytes.get_u32_ne(),
            snd_nxt: bytes.get_u32_ne(),
            write_seq: bytes.get_u32_ne(),
            rcv_nxt: bytes.get_u32_ne(),
            copied_seq: bytes.get_u32_ne(),
            now: bytes.get_u32_ne(),
            lsndtime: bytes.get_u32_ne(),
            lrcvtime: bytes.get_u32_ne(),
            srtt_us_x8: bytes.get_u32_ne(),
            total_retrans: bytes.get_u32_ne(),
        }
    }

    /// How many of our FINs are queued, sent and unacknowledged, and acknowledged: (queued but
    /// unsent, unacked, acked), one of them 1 at most.
    fn own_fin(&self, state: TcpState) -> (u64, u64, u64) {
        match state {
            TcpState::FinWait2 | TcpState::TimeWait => (0, 0, 1),
            // Its acknowledgement is what ends LAST_ACK and CLOSING.
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck if self.snd_una == self.write_seq => (0, 0, 1),
            // The FIN is the last thing in the queue: sent when all is.
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck if self.snd_nxt == self.write_seq => (0, 1, 0),
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => (1, 0, 0),
            _ => (0, 0, 0),
        }
    }

    fn unacked(&self, state: TcpState) -> u64 {
        if matches!(state, TcpState::SynSent | TcpState::SynRecv) {
            return 0;
        }
        ahead(self.snd_nxt, self.snd_una).saturating_sub(self.own_fin(state).1)
    }

    /// The role of a connection older than the tracer: what was transmitted for the first time and
    /// is acknowledged, compared with `bytes_acked`, shows whether a SYN was counted.
    pub fn role(&self, state: TcpState) -> Option<Role> {
        let payload = self.bytes_sent.checked_sub(self.bytes_retrans)?.checked_sub(self.unacked(state))?;
        match self.bytes_acked.checked_sub(self.own_fin(state).2)?.checked_sub(payload)? {
            0 => Some(Role::Server),
            1 => Some(Role::Client),
            _ => None,
        }
    }

    /// Payload only. `done`: the peer's FIN was received.
    pub fn bytes(&self, state: TcpState, role: Option<Role>, done: bool) -> Bytes {
        let (unsent_fin, _, acked_fin) = self.own_fin(state);
        let syn = u64::from(role == Some(Role::Client));
        let acked = self.bytes_acked.saturating_sub(syn + acked_fin);
        let unacked = self.unacked(state);
        let unsent = if matches!(state, TcpState::SynSent | TcpState::SynRecv) {
            ahead(self.write_seq, self.snd_nxt)
        } else {
            ahead(self.write_seq, self.snd_nxt).saturating_sub(unsent_fin)
        };
        let peer_fin = u64::from(done);
        let unread = ahead(self.rcv_nxt, self.copied_seq);
        Bytes {
            sent: acked + unacked,
            acked,
            unacked,
            unsent,
            received: self.bytes_received.saturating_sub(peer_fin),
            unread: unread.saturating_sub(peer_fin),
        }
    }

    /// Idle times, in the kernel's ticks of `tick_ns`.
    pub fn idle(&self, bytes: &Bytes, tick_ns: u64) -> Idle {
        let since = |then: u32| ahead(self.now, then).saturating_mul(tick_ns) / 1_000_000;
        Idle { sent_ms: (bytes.sent > 0).then(|| since(self.lsndtime)), received_ms: (bytes.received > 0).then(|| since(self.lrcvtime)) }
    }

    /// Smoothed round trip; `None` before the first measurement.
    pub fn rtt_us(&self) -> Option<u32> {
        (self.srtt_us_x8 != 0).then_some(self.srtt_us_x8 >> 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sent 1,000 bytes, of which 600 are acknowledged, and wrote 50 more.
    fn server() -> RawSizes {
        RawSizes {
            bytes_sent: 1_300,
            bytes_retrans: 300,
            bytes_acked: 600,
            bytes_received: 20,
            snd_una: u32::MAX - 100,
            snd_nxt: 299,
            write_seq: 349,
            rcv_nxt: 21,
            copied_seq: 11,
            now: 1_000,
            lsndtime: 987,
            lrcvtime: 500,
            srtt_us_x8: 328,
            total_retrans: 3,
        }
    }

    #[test]
    fn payload_adds_up_across_the_wrap_of_sequence_numbers() {
        let bytes = server().bytes(TcpState::Established, Some(Role::Server), false);
        assert_eq!(bytes, Bytes { sent: 1_000, acked: 600, unacked: 400, unsent: 50, received: 20, unread: 10 });
    }

    #[test]
    fn the_syn_counts_at_the_connecting_end_only() {
        let client = RawSizes { bytes_acked: 601, ..server() };
        assert_eq!(client.role(TcpState::Established), Some(Role::Client));
        assert_eq!(server().role(TcpState::Established), Some(Role::Server));
        assert_eq!(client.bytes(TcpState::Established, Some(Role::Client), false).acked, 600);
        let odd = RawSizes { bytes_acked: 700, ..server() };
        assert_eq!(odd.role(TcpState::Established), None);
    }

    #[test]
    fn fins_are_not_payload() {
        let queued = RawSizes { write_seq: 350, ..server() };
        assert_eq!(queued.bytes(TcpState::FinWait1, Some(Role::Server), false).unsent, 50);
        let sent = RawSizes { snd_nxt: 350, write_seq: 350, ..server() };
        let bytes = sent.bytes(TcpState::LastAck, Some(Role::Server), true);
        assert_eq!((bytes.unacked, bytes.unsent, bytes.received, bytes.unread), (450, 0, 19, 9));
        let done = RawSizes { bytes_acked: 1, snd_una: 300, snd_nxt: 300, write_seq: 300, bytes_sent: 0, bytes_retrans: 0, ..server() };
        assert_eq!(done.bytes(TcpState::LastAck, Some(Role::Server), true).sent, 0);
        assert_eq!(done.role(TcpState::LastAck), Some(Role::Server));
        let acked = RawSizes { bytes_acked: 1_001, snd_una: 300, snd_nxt: 300, write_seq: 300, ..server() };
        assert_eq!(acked.bytes(TcpState::FinWait2, Some(Role::Server), false).acked, 1_000);
    }

    #[test]
    fn a_syn_under_way_is_not_payload() {
        let syn = RawSizes {
            bytes_sent: 0,
            bytes_retrans: 0,
            bytes_acked: 0,
            bytes_received: 0,
            snd_una: 7,
            snd_nxt: 8,
            write_seq: 8,
            rcv_nxt: 0,
            copied_seq: 0,
            ..server()
        };
        assert_eq!(syn.bytes(TcpState::SynSent, Some(Role::Client), false), Bytes::default());
    }

    #[test]
    fn idle_is_null_where_nothing_was_sent() {
        let raw = server();
        let bytes = raw.bytes(TcpState::Established, Some(Role::Server), false);
        assert_eq!(raw.idle(&bytes, 4_000_000), Idle { sent_ms: Some(52), received_ms: Some(2_000) });
        assert_eq!(raw.idle(&Bytes::default(), 4_000_000), Idle::default());
        assert_eq!(raw.rtt_us(), Some(41));
    }
}
