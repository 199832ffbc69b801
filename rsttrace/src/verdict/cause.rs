//! The causes. Each function is one group of the table in docs/verdicts.md, first match first.

use super::{
    facts::{Facts, Flight, waited},
    harm::CLOSE_NOTIFY,
};
use crate::model::{Answer, AtFin, Cause, EndKind, Errno, FirstFin, Role, Speaker, TcpState};

pub fn of(f: &Facts<'_>) -> Cause {
    match f.t.end {
        _ if f.t.bytes.is_none() => without_socket(f),
        EndKind::ResetReceived => reset_received(f),
        EndKind::Fin => fin(f),
        EndKind::ResetSent | EndKind::Timeout | EndKind::Error => ended_here(f),
    }
}

/// A RST that answered a segment without ending a full socket.
fn without_socket(f: &Facts<'_>) -> Cause {
    let syn = f.t.segment.map(|segment| segment.syn);
    match (f.t.state, syn) {
        (None, Some(true)) => Cause::ClosedPort,
        (None, Some(false)) => Cause::NoConnection,
        (Some(TcpState::Listen), Some(false)) if f.reason() == "INVALID_SYN" => Cause::AcceptQueueOverflow,
        (Some(TcpState::Listen), Some(false)) => Cause::NoConnection,
        (Some(TcpState::TimeWait), _) => Cause::TimeWait,
        (Some(_), _) => Cause::ProtocolError,
        (None, None) => Cause::Unknown,
    }
}

/// reset-sent, timeout, error.
fn ended_here(f: &Facts<'_>) -> Cause {
    let e = f.evidence;
    let foreign = f.t.closer.is_some_and(|closer| f.t.owner.is_none_or(|owner| owner.tgid != closer.tgid));
    if e.errno == Some(Errno::ECONNABORTED) && foreign {
        return Cause::AdminKill;
    }
    if f.t.end == EndKind::ResetSent && e.accept_queue && !e.answer {
        return Cause::ListenerClosed;
    }
    match f.reason() {
        "TCP_KEEPALIVE_TIMEOUT" => return Cause::KeepaliveTimeout,
        "TCP_ABORT_ON_MEMORY" => return Cause::OutOfMemory,
        _ => {}
    }
    if timed_out(f) {
        timeout(f)
    } else if f.t.end == EndKind::ResetSent {
        reset_sent(f)
    } else {
        error(f)
    }
}

/// A timer gave up. What it leaves is ETIMEDOUT, or the latest ICMP error if there was one.
fn timed_out(f: &Facts<'_>) -> bool {
    let e = f.evidence;
    let waiting = e.retransmits > 0 || e.probes_out > 0;
    let soft = e.errno.is_some() && e.errno == e.soft_errno && waiting && f.state() != TcpState::SynSent;
    f.t.end == EndKind::Timeout || e.errno == Some(Errno::ETIMEDOUT) || soft
}

fn timeout(f: &Facts<'_>) -> Cause {
    let e = f.evidence;
    match f.state() {
        // Of all timers only keep-alive's sends a RST.
        _ if f.t.end == EndKind::ResetSent => Cause::KeepaliveTimeout,
        TcpState::SynSent | TcpState::SynRecv => Cause::ConnectTimeout,
        _ if e.orphan => Cause::UndeliveredAfterClose,
        _ if e.user_timeout_ms.is_some() => Cause::UserTimeout,
        _ if e.retransmits == 0 && f.bytes.unacked == 0 && f.bytes.unsent > 0 => Cause::ZeroWindowTimeout,
        _ => Cause::RetransmitTimeout,
    }
}

/// Neither a RST nor a timer.
fn error(f: &Facts<'_>) -> Cause {
    match (f.state(), f.evidence.errno) {
        (TcpState::SynSent | TcpState::SynRecv, Some(Errno::ECONNREFUSED)) => Cause::RefusedByIcmp,
        (TcpState::SynSent | TcpState::SynRecv, Some(_)) => Cause::Unreachable,
        (TcpState::SynSent, None) => Cause::GaveUpConnecting,
        (TcpState::Established | TcpState::CloseWait, None) => Cause::SilentClose,
        _ => Cause::Unknown,
    }
}

fn reset_sent(f: &Facts<'_>) -> Cause {
    let e = f.evidence;
    let by_call = f.t.closer.as_ref();
    let finished = matches!(f.state(), TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck);
    match f.reason() {
        "TCP_ABORT_ON_CLOSE" if !e.answer => return Cause::CloseWithUnreadData,
        "TCP_ABORT_ON_LINGER" => return Cause::Linger2Abort,
        _ => {}
    }
    if e.answer && finished {
        // A segment without payload met a socket that waits for no FIN.
        return if e.linger2 && e.segment_bytes == Some(0) { Cause::Linger2Abort } else { Cause::DataAfterClose };
    }
    match by_call {
        Some(closer) if closer.syscall == Some("connect") => Cause::Disconnect,
        // Before 6.12 the kernel gives no reason.
        Some(_) if f.t.reason.is_none() && f.bytes.unread > 0 => Cause::CloseWithUnreadData,
        Some(_) if e.linger_zero => Cause::LingerZero,
        None | Some(_) if e.linger2 && f.state() == TcpState::FinWait2 => Cause::Linger2Abort,
        // tcp_disconnect() without SO_LINGER: what asks for it is not always called connect, and old
        // kernels tell neither call nor reason.
        Some(_) if matches!(f.reason(), "" | "TCP_STATE" | "TCP_DISCONNECT_WITH_DATA") => Cause::Disconnect,
        _ => Cause::Unknown,
    }
}

fn reset_received(f: &Facts<'_>) -> Cause {
    match f.state_on_the_wire() {
        TcpState::SynSent => Cause::Refused,
        TcpState::SynRecv => Cause::ResetBeforeAccept,
        _ if f.evidence.accept_queue => Cause::ResetBeforeAccept,
        _ if f.silent() => Cause::ConnectProbe,
        TcpState::CloseWait | TcpState::LastAck | TcpState::Closing | TcpState::TimeWait => reset_after_remote_fin(f),
        TcpState::FinWait1 | TcpState::FinWait2 => Cause::ResetAfterLocalFin,
        TcpState::Established => match f.t.role {
            Some(Role::Client) => reset_at_client(f),
            Some(Role::Server) => reset_at_server(f),
            None if f.outstanding() == 0 && f.idle() => Cause::PeerAbortIdle,
            None => Cause::Unknown,
        },
        _ => Cause::Unknown,
    }
}

/// The peer had sent its FIN: what counts is how things stood then, and what we wrote after.
fn reset_after_remote_fin(f: &Facts<'_>) -> Cause {
    let Some(fin) = &f.evidence.remote_fin else { return Cause::ResetWhileClosing };
    if fin.written_after > 0 {
        return Cause::WriteAfterPeerClose;
    }
    let remote_first = f.t.fin.first == Some(FirstFin::Remote);
    match (f.t.role, f.answer()) {
        (_, Answer::Complete) => return Cause::ResetWhileClosing,
        (Some(Role::Client), Answer::Partial) if remote_first => return Cause::ServerAbortMidResponse,
        (Some(Role::Client), Answer::None) if remote_first => return unanswered_at_fin(f),
        (Some(Role::Server), Answer::Partial) => return Cause::PeerAbortMidResponse,
        (Some(Role::Server), Answer::None) => return Cause::PeerAbortBeforeResponse,
        _ => {}
    }
    match f.t.role {
        Some(Role::Client) if remote_first && fin.speaker == Some(Speaker::Local) && !may_be_goodbye(f, fin) => unanswered_at_fin(f),
        Some(Role::Server) if fin.outstanding > 0 => Cause::PeerAbortMidResponse,
        _ => Cause::ResetWhileClosing,
    }
}

/// The peer closed while our request had no answer. If its FIN did not acknowledge the request,
/// the two crossed. If it did, the application had read it: closing with it unread makes a RST.
fn unanswered_at_fin(f: &Facts<'_>) -> Cause {
    let crossed = f.evidence.remote_fin.is_some_and(|fin| fin.outstanding > 0);
    if crossed && f.bytes.received > 0 { Cause::KeepaliveRace } else { Cause::ClosedBeforeAnswer }
}

/// After an exchange, the last that our application wrote before this FIN may have been TLS's
/// close_notify, and was no request then. If the two crossed, the peer had just said its own.
fn may_be_goodbye(f: &Facts<'_>, fin: &AtFin) -> bool {
    let crossed = CLOSE_NOTIFY.contains(&fin.outstanding) && !waited(fin.idle.received_ms);
    fin.goodbye && f.bytes.received > 0 && (fin.outstanding == 0 || crossed)
}

/// ESTABLISHED, and we had connected.
fn reset_at_client(f: &Facts<'_>) -> Cause {
    match f.answer() {
        _ if f.outstanding() == 0 && f.evidence.probes_out > 0 => return Cause::StaleConnection,
        Answer::Complete if f.idle() => return Cause::PeerAbortIdle,
        Answer::Complete => return Cause::PeerAbortAfterResponse,
        Answer::Partial => return Cause::ServerAbortMidResponse,
        Answer::None | Answer::Unknown => {}
    }
    if f.outstanding() == 0 {
        return match f.speaker() {
            _ if f.answer() == Answer::None => Cause::ServerAbortBeforeResponse,
            Some(Speaker::Local) => Cause::ServerAbortBeforeResponse,
            Some(Speaker::Remote) if f.idle() => Cause::PeerAbortIdle,
            Some(Speaker::Remote) => Cause::ServerAbortMidResponse,
            None => Cause::Unknown,
        };
    }
    let forgotten = if f.stale() { Cause::StaleConnection } else { Cause::NoConnectionAtPeer };
    let fresh = f.bytes.received == 0;
    match f.evidence.reset.map(|header| header.acked) {
        // It answers our segment: whoever sent it knows no such connection.
        Some(None) => forgotten,
        // Its sender aborted a connection that it had, without or with our request.
        Some(Some(acked)) if acked <= f.bytes.acked && !fresh && f.bytes.unsent == 0 => Cause::KeepaliveRace,
        Some(Some(_)) => Cause::ServerAbortBeforeResponse,
        None => match f.flight() {
            Flight::Crossing if !fresh => Cause::KeepaliveRace,
            Flight::Answering => forgotten,
            _ => Cause::RequestNotConfirmed,
        },
    }
}

/// ESTABLISHED, and the peer had connected.
fn reset_at_server(f: &Facts<'_>) -> Cause {
    let arrived = f.evidence.reset.and_then(|header| header.acked).is_some_and(|acked| acked >= f.bytes.sent);
    let unread_there = f.t.peer.and_then(|peer| peer.unread).is_some_and(|n| n > 0);
    if f.bytes.unsent > 0 || f.bytes.unacked > 0 && !arrived || f.speaker() == Some(Speaker::Local) && unread_there {
        return Cause::PeerAbortMidResponse;
    }
    match f.answer() {
        Answer::Partial => return Cause::PeerAbortMidResponse,
        Answer::None => return Cause::PeerAbortBeforeResponse,
        Answer::Complete if f.idle() => return Cause::PeerAbortIdle,
        Answer::Complete => return Cause::PeerAbortAfterResponse,
        Answer::Unknown => {}
    }
    match f.speaker() {
        Some(Speaker::Local) if f.idle() => Cause::PeerAbortIdle,
        Some(Speaker::Local) => Cause::PeerAbortAfterResponse,
        Some(Speaker::Remote) => Cause::PeerAbortBeforeResponse,
        None => Cause::Unknown,
    }
}

/// Both FINs, or ours and a mini-socket. Most are in order; some leave a request unanswered.
fn fin(f: &Facts<'_>) -> Cause {
    match (f.t.role, f.closed_first(), f.answer()) {
        (Some(Role::Client), false, Answer::None) => return unanswered_at_fin(f),
        (Some(Role::Client), false, Answer::Partial) => return Cause::ServerAbortMidResponse,
        (Some(Role::Client), true, Answer::None | Answer::Partial) => return Cause::GaveUpWaiting,
        (Some(Role::Server), false, Answer::None | Answer::Partial) => return Cause::ClientGaveUp,
        (Some(Role::Server), true, Answer::None | Answer::Partial) => return Cause::ClosedBeforeAnswer,
        _ => {}
    }
    if f.answer() == Answer::Unknown
        && let (Some(role), Some(fin)) = (f.t.role, f.first_fin())
    {
        let exiting = f.t.closer.is_some_and(|closer| closer.exiting);
        match (role, f.closed_first(), fin.speaker) {
            (Role::Client, false, Some(Speaker::Local)) if !may_be_goodbye(f, fin) => return unanswered_at_fin(f),
            (Role::Client, true, Some(Speaker::Local)) if may_be_goodbye(f, fin) => {}
            (Role::Client, true, Some(Speaker::Local)) if fin.received_after == 0 && waited(fin.idle.sent_ms) => {
                return Cause::GaveUpWaiting;
            }
            (Role::Server, false, Some(Speaker::Remote)) if fin.written_after == 0 && waited(fin.idle.received_ms) => {
                return Cause::ClientGaveUp;
            }
            // Its own close may answer a goodbye; a loaded server takes its time for that.
            (Role::Server, true, Some(Speaker::Remote)) if exiting || f.was_idle(fin) => return Cause::ClosedBeforeAnswer,
            _ => {}
        }
    }
    if f.evidence.unread_at_release.unwrap_or(f.bytes.unread) > 0 { Cause::OrderlyUnread } else { Cause::Orderly }
}
