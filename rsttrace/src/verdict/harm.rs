//! Did it hurt? Lost is only what never left, what is proved not to have arrived, and what was
//! certainly never read; all else that is open is possible.

use std::ops::RangeInclusive;

use super::facts::{Facts, waited};
use crate::model::{Answer, Bytes, Cause, Damage, EndKind, Harm, Speaker, TcpState};

/// [`rsttrace_common::CLOSE_NOTIFY`]; what waits unread may have been read in part.
pub const CLOSE_NOTIFY: RangeInclusive<u64> = *rsttrace_common::CLOSE_NOTIFY.start() as u64..=*rsttrace_common::CLOSE_NOTIFY.end() as u64;

pub fn of(f: &Facts<'_>, cause: Cause) -> (Harm, Damage) {
    if f.t.bytes.is_none() {
        return without_socket(f, cause);
    }
    let damage = damage(f, cause);
    let harm = if damage.lost() > 0 {
        Harm::Lost
    } else if damage.unconfirmed > 0 || unread_may_be_lost(f, cause) {
        Harm::Possible
    } else {
        match unanswered(f, cause) {
            Some(true) => Harm::Possible,
            Some(false) => Harm::None,
            None => Harm::Unknown,
        }
    };
    (harm, damage)
}

fn damage(f: &Facts<'_>, cause: Cause) -> Damage {
    // What says goodbye to nobody is no loss.
    let goodbye = match cause {
        _ if is_close_notify(f) == Some(true) || is_goodbye_unread_there(f) == Some(true) => f.bytes.unacked,
        _ if is_crossing_goodbye(f, cause) => f.bytes.unacked,
        Cause::WriteAfterPeerClose if is_late_goodbye(f, cause) != Some(false) => f.evidence.remote_fin.map_or(0, |fin| fin.written_after),
        _ => 0,
    };
    let b = Bytes { unacked: f.bytes.unacked.saturating_sub(goodbye), ..f.bytes };
    let (undelivered, unconfirmed) = match (&f.t.peer, f.evidence.reset.and_then(|header| header.acked)) {
        // The other half is here: what did not arrive is known.
        (Some(peer), _) => (b.unacked.saturating_sub(peer.arrived), 0),
        // The RST says up to where its sender had received.
        (None, Some(acked)) => (b.sent.saturating_sub(acked.max(b.acked)), 0),
        // A retransmission proves that an acknowledgement is missing, not that the data is.
        (None, None) => (0, b.unacked),
    };
    Damage { undelivered: undelivered + b.unsent, unconfirmed, unread_there: unread_there(f), unread_here: unread_here(f, cause) }
}

/// The peer's bytes that arrived and that nobody here has read or will read.
fn unread_here(f: &Facts<'_>, cause: Cause) -> u64 {
    match cause {
        _ if is_close_notify(f) != Some(false) => 0,
        // What comes after close() is dropped on arrival.
        Cause::DataAfterClose if is_late_goodbye(f, cause) != Some(false) => f.bytes.unread,
        Cause::DataAfterClose => f.evidence.segment_bytes.unwrap_or(0) + f.bytes.unread,
        _ => f.evidence.unread_at_release.unwrap_or(0),
    }
}

/// All of ours is acknowledged, but for a goodbye.
fn nothing_pending(f: &Facts<'_>) -> bool {
    f.outstanding() == 0 || f.bytes.unsent == 0 && CLOSE_NOTIFY.contains(&f.bytes.unacked)
}

/// Ours that the other end, on this host, never read.
fn unread_there(f: &Facts<'_>) -> u64 {
    let unread = f.t.peer.and_then(|peer| peer.unread).unwrap_or(0);
    if is_goodbye_unread_there(f) == Some(false) { unread } else { 0 }
}

/// The same as [`is_close_notify`] from the other side: our own goodbye, before our FIN.
fn is_goodbye_unread_there(f: &Facts<'_>) -> Option<bool> {
    let unread = f.t.peer.and_then(|peer| peer.unread).unwrap_or(0);
    let exchanged = f.bytes.received > 0 && f.bytes.sent > unread;
    let fits = f.t.fin.local == Some(true) && nothing_pending(f) && exchanged && (1..=*CLOSE_NOTIFY.end()).contains(&unread);
    if fits { f.evidence.local_fin.map(|fin| !waited(fin.idle.sent_ms)) } else { Some(false) }
}

/// In CLOSE_WAIT after an exchange, with all of ours acknowledged, a few bytes that came right
/// before the FIN and that nobody reads are TLS's goodbye. `None`: they fit, but how things stood at
/// the FIN is not known.
pub fn is_close_notify(f: &Facts<'_>) -> Option<bool> {
    // After both FINs what waits can still be read.
    let unread = f.evidence.unread_at_release.filter(|_| f.t.end == EndKind::Fin).unwrap_or(f.bytes.unread);
    let exchanged = f.bytes.sent > 0 && f.bytes.received > unread;
    let few = (1..=*CLOSE_NOTIFY.end()).contains(&unread);
    match f.state() {
        _ if !nothing_pending(f) || !exchanged || !few => Some(false),
        TcpState::CloseWait => f.evidence.remote_fin.map(|fin| !waited(fin.idle.received_ms)),
        // In answer to our FIN: how long the bytes stood before the peer's is not seen.
        TcpState::FinWait1 | TcpState::FinWait2 if f.t.end == EndKind::Fin => None,
        _ => Some(false),
    }
}

/// A close_notify that comes after the other end's close: in answer to its goodbye, which stood
/// right before its FIN, or from who had spoken last. `None`: it has the size, but how things
/// stood at the FIN is not known.
pub fn is_late_goodbye(f: &Facts<'_>, cause: Cause) -> Option<bool> {
    let (fin, said, last_bytes_ms, answered) = match cause {
        Cause::WriteAfterPeerClose => {
            let fin = f.evidence.remote_fin;
            (fin, fin.map(|fin| fin.written_after), fin.and_then(|fin| fin.idle.received_ms), Speaker::Local)
        }
        Cause::DataAfterClose => {
            let fin = f.evidence.local_fin;
            (fin, f.evidence.segment_bytes, fin.and_then(|fin| fin.idle.sent_ms), Speaker::Remote)
        }
        Cause::TimeWait | Cause::NoConnection => (None, f.t.segment.and_then(|segment| segment.bytes), None, Speaker::Remote),
        _ => return Some(false),
    };
    if !said.is_some_and(|n| CLOSE_NOTIFY.contains(&n)) {
        return Some(false);
    }
    let fin = fin?;
    let in_answer = last_bytes_ms.is_some() && !waited(last_bytes_ms);
    // Else it may be a small request just as well.
    (in_answer || fin.outstanding == 0 && fin.speaker? == answered).then_some(true)
}

/// Our own goodbye, right before a FIN and after an exchange, that crossed the other end's close.
fn is_crossing_goodbye(f: &Facts<'_>, cause: Cause) -> bool {
    let exchanged = f.bytes.received > 0 && f.bytes.acked > 0;
    matches!(cause, Cause::ResetWhileClosing | Cause::ResetAfterLocalFin)
        && f.bytes.unsent == 0
        && CLOSE_NOTIFY.contains(&f.bytes.unacked)
        && exchanged
        && f.evidence.local_fin.or(f.evidence.remote_fin).is_some_and(|fin| fin.goodbye && !waited(fin.idle.sent_ms))
}

/// Bytes wait that the application may still read, or dropped ones could not be counted.
fn unread_may_be_lost(f: &Facts<'_>, cause: Cause) -> bool {
    f.evidence.unread_at_release.is_none() && f.bytes.unread > 0 && cause != Cause::CloseWithUnreadData
        || is_close_notify(f).is_none()
        || is_goodbye_unread_there(f).is_none()
        || cause == Cause::DataAfterClose && f.evidence.segment_bytes.is_none()
        || is_late_goodbye(f, cause).is_none()
}

/// Whether a request was left without its answer, or with a part of it; `None`: not known.
fn unanswered(f: &Facts<'_>, cause: Cause) -> Option<bool> {
    match f.answer() {
        Answer::Complete => return Some(false),
        Answer::None | Answer::Partial => return Some(true),
        Answer::Unknown => {}
    }
    match cause {
        Cause::KeepaliveRace
        | Cause::ClosedBeforeAnswer
        | Cause::RequestNotConfirmed
        | Cause::NoConnectionAtPeer
        | Cause::ServerAbortBeforeResponse
        | Cause::ServerAbortMidResponse
        | Cause::PeerAbortBeforeResponse
        | Cause::GaveUpWaiting
        | Cause::ClientGaveUp => Some(true),
        Cause::Refused
        | Cause::RefusedByIcmp
        | Cause::Unreachable
        | Cause::ConnectTimeout
        | Cause::GaveUpConnecting
        | Cause::ConnectProbe
        | Cause::PeerAbortIdle
        | Cause::PeerAbortAfterResponse
        | Cause::Orderly
        | Cause::OrderlyUnread => Some(false),
        Cause::Unknown => None,
        // The FINs passed: whether a request was left is known from before.
        Cause::ResetWhileClosing | Cause::ResetAfterLocalFin if f.speaker().is_none() => Some(false),
        _ if f.silent() => Some(false),
        // TLS's goodbye is no request.
        Cause::CloseWithUnreadData if is_close_notify(f) == Some(true) => Some(false),
        _ if is_goodbye_unread_there(f) == Some(true) || is_crossing_goodbye(f, cause) => Some(false),
        Cause::WriteAfterPeerClose | Cause::DataAfterClose if is_late_goodbye(f, cause) == Some(true) => Some(false),
        _ => f.request_unanswered().or((f.t.end == EndKind::Fin).then_some(false)),
    }
}

/// A segment that met no socket: its payload, if it had any, was never read.
fn without_socket(f: &Facts<'_>, cause: Cause) -> (Harm, Damage) {
    let dropped = f.t.segment.and_then(|segment| segment.bytes);
    match (cause, dropped) {
        (Cause::ClosedPort, _) | (Cause::NoConnection | Cause::TimeWait | Cause::AcceptQueueOverflow, Some(0)) => {
            (Harm::None, Damage::default())
        }
        (Cause::NoConnection | Cause::TimeWait, Some(_)) if is_late_goodbye(f, cause).is_none() => (Harm::Possible, Damage::default()),
        (Cause::NoConnection | Cause::TimeWait | Cause::AcceptQueueOverflow, Some(n)) => {
            (Harm::Lost, Damage { unread_here: n, ..Damage::default() })
        }
        // The socket that it met lives on, or nothing is known of the segment.
        _ => (Harm::Unknown, Damage::default()),
    }
}
