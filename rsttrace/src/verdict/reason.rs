//! The reason that the kernel would have given for a RST that it sent, had it been new enough (6.10,
//! and 6.12 for RSTs that answer no segment): the spelling of its `enum sk_rst_reason`. Only where the
//! cause leaves no doubt.

use super::facts::Facts;
use crate::model::{Cause, EndKind, TcpState};

pub fn inferred(f: &Facts<'_>, cause: Cause) -> Option<&'static str> {
    if f.t.end != EndKind::ResetSent || f.t.reason.is_some() {
        return None;
    }
    match cause {
        Cause::CloseWithUnreadData => Some("TCP_ABORT_ON_CLOSE"),
        Cause::DataAfterClose => Some("TCP_ABORT_ON_DATA"),
        Cause::Linger2Abort if f.evidence.answer => Some("TCP_ABORT_ON_DATA"),
        Cause::Linger2Abort => Some("TCP_ABORT_ON_LINGER"),
        Cause::KeepaliveTimeout => Some("TCP_KEEPALIVE_TIMEOUT"),
        // tcp_disconnect() asks tcp_need_reset() first.
        Cause::LingerZero | Cause::Disconnect if matches!(f.state(), TcpState::LastAck | TcpState::Closing) => {
            Some("TCP_DISCONNECT_WITH_DATA")
        }
        Cause::LingerZero | Cause::Disconnect | Cause::ListenerClosed | Cause::AdminKill => Some("TCP_STATE"),
        Cause::TimeWait => Some("TCP_TIMEWAIT_SOCKET"),
        // A listener has reasons of its own.
        Cause::ClosedPort | Cause::NoConnection if f.t.state.is_none() => Some("NO_SOCKET"),
        _ => None,
    }
}
