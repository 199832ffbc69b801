//! The verdict in one sentence: facts in the present case, numbers with units, and where knowledge
//! ends. No process is blamed by name unless it was seen.

use std::fmt::Write as _;

use super::{
    facts::Facts,
    harm::{is_close_notify, is_late_goodbye},
};
use crate::{
    model::{Answer, Cause, Damage, EndKind, FirstFin, Initiator, Speaker, TcpState},
    units::{bytes, duration, grouped},
};

pub fn of(f: &Facts<'_>, cause: Cause, initiator: Initiator, damage: &Damage) -> String {
    let mut words = match initiator {
        Initiator::Middlebox => in_between(f),
        _ => main_clause(f, cause),
    };
    for part in open_ends(f, cause, damage) {
        let _ = write!(words, "; {part}");
    }
    words
}

/// This end, by its process where that is known.
fn we(f: &Facts<'_>) -> String {
    f.t.owner.map_or_else(|| "our process".to_owned(), |owner| owner.comm.text().into_owned())
}

/// The other end, by its process where that is known.
fn peer(f: &Facts<'_>) -> String {
    match &f.t.peer {
        Some(peer) if !peer.comm.bytes().is_empty() => peer.comm.text().into_owned(),
        _ if f.client() => "the server".to_owned(),
        _ if f.server() => "the client".to_owned(),
        _ => "the peer".to_owned(),
    }
}

fn milliseconds(ms: u64) -> String {
    duration(ms.saturating_mul(1_000_000))
}

/// ", idle 60.0 s", where the connection idled; below a second it did not.
fn idle(f: &Facts<'_>, cause: Cause) -> String {
    f.idle_before(cause).filter(|&ms| ms >= 1_000).map(|ms| format!(", idle {}", milliseconds(ms))).unwrap_or_default()
}

/// Nobody at the other end did it.
fn in_between(f: &Facts<'_>) -> String {
    match &f.t.peer {
        Some(peer) if peer.end == EndKind::ResetReceived => "something on the way reset the connection at both ends".to_owned(),
        _ => format!("something on the way answered us with a RST, sooner than {} can", peer(f)),
    }
}

fn main_clause(f: &Facts<'_>, cause: Cause) -> String {
    let (we, peer) = (we(f), peer(f));
    let b = &f.bytes;
    let e = f.evidence;
    let segment = || match f.t.segment.and_then(|segment| segment.bytes) {
        Some(n @ 1..) => format!("a segment with {}", bytes(n)),
        _ => "a segment".to_owned(),
    };
    match cause {
        Cause::AdminKill => match &f.t.closer {
            Some(task) => format!("ended from outside by {} (as ss -K does)", task.comm.text()),
            None => "ended from outside (as ss -K does)".to_owned(),
        },
        Cause::ListenerClosed => "reset in the accept queue, because the listening socket was closed".to_owned(),
        Cause::KeepaliveTimeout => match e.probes_out {
            0 | 1 => format!("{peer} did not answer our keep-alive probe"),
            n => format!("{peer} answered none of {n} keep-alive probes"),
        },
        Cause::RetransmitTimeout => {
            let soft = e.soft_errno.map(|errno| format!(" (ICMP: {errno})")).unwrap_or_default();
            let times = if e.retransmits == 1 { "once".to_owned() } else { format!("{} times", e.retransmits) };
            format!("{peer} acknowledged nothing, though we retransmitted {times}{soft}")
        }
        Cause::ConnectTimeout => "our SYN had no answer".to_owned(),
        Cause::UserTimeout => {
            format!("{peer} acknowledged nothing within TCP_USER_TIMEOUT ({})", milliseconds(e.user_timeout_ms.unwrap_or(0).into()))
        }
        Cause::ZeroWindowTimeout => format!("{peer}'s window was closed, and its host stopped answering our probes"),
        Cause::UndeliveredAfterClose => format!("{we} had closed, and {peer} acknowledged no more"),
        Cause::OutOfMemory => "the kernel ran out of memory for TCP, or of room for orphans".to_owned(),
        Cause::RefusedByIcmp => "refused by ICMP and not by a RST, as a firewall's reject does".to_owned(),
        Cause::Unreachable => format!("unreachable: {}", e.errno.map(|errno| errno.to_string()).unwrap_or_default()),
        Cause::GaveUpConnecting => {
            let after = f.t.age_ns.map(|ns| format!(" after {}", duration(ns))).unwrap_or_default();
            format!("{we} gave up connecting{after}: no answer to our SYN")
        }
        Cause::CloseWithUnreadData if is_close_notify(f) == Some(true) => {
            format!("{we} closed with {} from {peer} unread after its FIN, as TLS's goodbye is", bytes(b.unread))
        }
        Cause::CloseWithUnreadData => format!("{we} closed with {} from {peer} unread", bytes(b.unread)),
        Cause::LingerZero => format!("{we} aborted the connection (SO_LINGER 0)"),
        Cause::Disconnect => format!("{we} disconnected the socket (connect to AF_UNSPEC)"),
        Cause::DataAfterClose => match e.segment_bytes {
            Some(n) if is_late_goodbye(f, cause) == Some(true) => {
                format!("{peer} sent {} after {we} had closed, as TLS's goodbye is", bytes(n))
            }
            Some(n) if n > 0 => format!("{peer} sent {} after {we} had closed", bytes(n)),
            _ => format!("{peer} sent data after {we} had closed"),
        },
        Cause::Linger2Abort => "reset instead of waiting for the peer's FIN (TCP_LINGER2 below 0)".to_owned(),
        Cause::SilentClose => "closed without a FIN or RST (TCP_REPAIR)".to_owned(),
        Cause::ClosedPort => format!("nobody listens on port {} here", f.t.local.port),
        Cause::NoConnection => format!("{} arrived for a connection that this host does not know", segment()),
        Cause::AcceptQueueOverflow => "accept queue full: the end of the handshake was answered with a RST".to_owned(),
        Cause::TimeWait => format!("{} arrived for a connection that had ended (TIME_WAIT)", segment()),
        Cause::ProtocolError => {
            format!("an unacceptable segment was answered with a RST ({})", f.t.reason.as_deref().unwrap_or("no reason"))
        }
        Cause::Refused => "refused: nothing listens there, or a firewall answers in its place".to_owned(),
        Cause::ResetBeforeAccept => "the client reset the connection before accept()".to_owned(),
        Cause::ConnectProbe if f.server() => "connected and reset without a byte, as health checks do".to_owned(),
        Cause::ConnectProbe => format!("reset by {peer} before a byte was sent"),
        Cause::WriteAfterPeerClose => {
            let written = e.remote_fin.map_or(0, |fin| fin.written_after);
            let unread = if e.fin_read { "" } else { ", not having read its FIN" };
            let goodbye = if is_late_goodbye(f, cause) == Some(true) { ", as TLS's goodbye is" } else { unread };
            format!("{we} wrote {} after {peer} had closed{goodbye}", bytes(written))
        }
        Cause::KeepaliveRace => {
            let idle = idle(f, cause);
            format!(
                "{peer} closed the connection while our request was on its way (keep-alive race{idle}): {} unanswered",
                bytes(request(f))
            )
        }
        Cause::ClosedBeforeAnswer if f.client() => format!("{peer} closed without answering our request"),
        Cause::ClosedBeforeAnswer => {
            let what = if f.answer() == Answer::Partial { "in the middle of its answer to" } else { "without answering" };
            let how = match f.t.closer {
                Some(closer) if closer.exiting => "died",
                _ => "closed",
            };
            format!("{we} {how} {what} {peer}'s request")
        }
        Cause::ResetWhileClosing => format!("reset by {peer} while the connection was closing"),
        Cause::ResetAfterLocalFin => format!("reset by {peer} after our FIN"),
        Cause::StaleConnection if e.probes_out > 0 && f.outstanding() == 0 => {
            format!("our keep-alive probe found no connection at {peer}{}", idle(f, cause))
        }
        Cause::StaleConnection => format!("{peer}'s side had forgotten the connection{}: {} unanswered", idle(f, cause), bytes(request(f))),
        Cause::NoConnectionAtPeer => {
            format!("{peer}'s side knew no such connection when our request arrived: {} unanswered", bytes(request(f)))
        }
        Cause::RequestNotConfirmed => format!("reset while {} of our request were unacknowledged", bytes(f.outstanding())),
        Cause::ServerAbortBeforeResponse if f.outstanding() > 0 => format!("{peer} aborted before a byte of its answer"),
        Cause::ServerAbortBeforeResponse => {
            format!("{peer} aborted before a byte of its answer, our request acknowledged by its host")
        }
        Cause::ServerAbortMidResponse if f.answer() == Answer::Partial => {
            let how = if f.t.end == EndKind::Fin { "closed" } else { "aborted" };
            format!("{peer} {how} in the middle of its answer")
        }
        Cause::ServerAbortMidResponse => {
            format!("{peer} aborted after {} of its answer; whether that was all is not known", bytes(b.received))
        }
        Cause::PeerAbortIdle => format!("{peer} aborted the idle connection{}", idle(f, cause)),
        Cause::PeerAbortMidResponse => {
            let acked = e.reset.and_then(|header| header.acked).unwrap_or(0).max(b.acked);
            format!("{peer} aborted in the middle of our response, {} of {} acknowledged", grouped(acked), bytes(b.sent + b.unsent))
        }
        Cause::PeerAbortAfterResponse if f.client() => {
            format!("{peer} aborted after its whole answer ({})", bytes(f.t.http.as_ref().and_then(|http| http.moved).unwrap_or(0)))
        }
        Cause::PeerAbortAfterResponse => {
            format!("{peer} aborted after all that we sent ({}) was acknowledged by its host", bytes(b.sent))
        }
        Cause::PeerAbortBeforeResponse => format!("{peer} aborted before our answer to its request"),
        Cause::Orderly => match f.t.fin.first {
            Some(FirstFin::Local) => format!("closed in order, by {we} first"),
            Some(FirstFin::Remote) => format!("closed in order, by {peer} first"),
            _ => "closed in order".to_owned(),
        },
        Cause::OrderlyUnread => "closed in order, but not everything was read".to_owned(),
        Cause::GaveUpWaiting if f.answer() == Answer::Partial => format!("{we} closed before the end of {peer}'s answer"),
        Cause::GaveUpWaiting => {
            let waited = f.first_fin().and_then(|fin| fin.idle.sent_ms).map(milliseconds).unwrap_or_default();
            format!("{we} gave up after waiting {waited} for {peer}'s answer")
        }
        Cause::ClientGaveUp if f.answer() == Answer::Partial => format!("{peer} closed before the end of our answer"),
        Cause::ClientGaveUp => {
            let waited = f.first_fin().and_then(|fin| fin.idle.received_ms).map(milliseconds).unwrap_or_default();
            format!("{peer} gave up after waiting {waited} for our answer")
        }
        Cause::Unknown => unknown(f),
    }
}

/// What of our request was under way, or is unanswered as a whole.
fn request(f: &Facts<'_>) -> u64 {
    let at_fin = f.evidence.remote_fin.map_or(0, |fin| fin.outstanding);
    f.outstanding().max(at_fin)
}

/// What is lost, and what is open; where the clause has not said it.
fn open_ends(f: &Facts<'_>, cause: Cause, damage: &Damage) -> Vec<String> {
    let mut parts = Vec::new();
    if damage.undelivered > 0 {
        parts.push(format!("{} not delivered", bytes(damage.undelivered)));
    }
    if damage.unconfirmed > 0 {
        parts.push(format!("{} not confirmed", bytes(damage.unconfirmed)));
    }
    if damage.unread_there > 0 {
        parts.push(format!("{} of ours never read there", bytes(damage.unread_there)));
    }
    let said = matches!(cause, Cause::CloseWithUnreadData | Cause::DataAfterClose | Cause::NoConnection | Cause::TimeWait);
    if damage.unread_here > 0 && !said {
        parts.push(format!("{} never read here", bytes(damage.unread_here)));
    }
    let by_http = match f.answer() {
        Answer::None => Some(true),
        Answer::Partial | Answer::Complete => Some(false),
        Answer::Unknown => None,
    };
    let half_answered = matches!(f.t.end, EndKind::ResetSent | EndKind::Timeout) && by_http.or(f.request_unanswered()) == Some(true);
    parts.extend(cut_answer(f));
    if half_answered && f.t.bytes.is_some() && f.state() == TcpState::Established {
        parts.push(
            if by_http.map_or(f.speaker() == Some(Speaker::Local), |_| f.client()) {
                "our request is unanswered"
            } else {
                "the client's request is unanswered"
            }
            .to_owned(),
        );
    }
    parts
}

/// How much of the answer there was, by HTTP.
fn cut_answer(f: &Facts<'_>) -> Option<String> {
    let http = f.t.http.as_ref().filter(|_| f.answer() == Answer::Partial)?;
    let how = if f.client() { "arrived" } else { "was written" };
    Some(match (http.moved?, http.expected) {
        (moved, Some(expected)) => format!("{} of {} of the answer {how}", grouped(moved), bytes(expected)),
        (moved, None) => format!("{} of the answer {how}, without its end", bytes(moved)),
    })
}

/// What is missing for a verdict.
fn unknown(f: &Facts<'_>) -> String {
    let missing = match (f.t.role, f.speaker(), f.t.reason.is_none()) {
        (None, ..) => "which end had connected",
        (_, None, _) => "who spoke last",
        (_, _, true) => "the kernel's reason",
        _ => "a rule for this end",
    };
    format!("why is not known: {missing} is missing")
}
