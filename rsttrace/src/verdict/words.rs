//! The verdict in one sentence: facts in the present case, numbers with units, and where knowledge
//! ends. No process is blamed by name unless it was seen.

use std::{
    borrow::Cow,
    fmt::{self, Display, Write as _},
};

use super::{
    facts::Facts,
    harm::{is_close_notify, is_late_goodbye},
};
use crate::{
    model::{Answer, Cause, Damage, EndKind, FirstFin, Initiator, Speaker, TcpState},
    units::{bytes, duration, given, grouped},
};

/// Appends the sentence.
pub fn write(out: &mut String, f: &Facts<'_>, cause: Cause, initiator: Initiator, damage: &Damage) {
    // Memory is all that a string can lack.
    let _ = match initiator {
        Initiator::Middlebox => in_between(out, f),
        _ => main_clause(out, f, cause),
    };
    let _ = open_ends(out, f, cause, damage);
}

/// This end, by its process where that is known.
fn we<'a>(f: &Facts<'a>) -> Cow<'a, str> {
    f.t.owner.as_ref().map_or("our process".into(), |owner| owner.comm.text())
}

/// The other end, by its process where that is known.
fn peer<'a>(f: &Facts<'a>) -> Cow<'a, str> {
    match &f.t.peer {
        Some(peer) if !peer.comm.bytes().is_empty() => peer.comm.text(),
        _ if f.client() => "the server".into(),
        _ if f.server() => "the client".into(),
        _ => "the peer".into(),
    }
}

fn milliseconds(ms: u64) -> impl Display {
    duration(ms.saturating_mul(1_000_000))
}

/// ", idle 60.0 s", where the connection idled; below a second it did not.
fn idle(f: &Facts<'_>, cause: Cause) -> impl Display + use<> {
    given(", idle ", f.idle_before(cause).filter(|&ms| ms >= 1_000).map(milliseconds), "")
}

/// Nobody at the other end did it.
fn in_between(out: &mut String, f: &Facts<'_>) -> fmt::Result {
    match &f.t.peer {
        Some(peer) if peer.end == EndKind::ResetReceived => out.write_str("something on the way reset the connection at both ends"),
        _ => write!(out, "something on the way answered us with a RST, sooner than {} can", peer(f)),
    }
}

fn main_clause(out: &mut String, f: &Facts<'_>, cause: Cause) -> fmt::Result {
    let (we, peer) = (we(f), peer(f));
    let b = &f.bytes;
    let e = f.evidence;
    let segment = given(" with ", f.t.segment.and_then(|segment| segment.bytes).filter(|&n| n > 0).map(bytes), "");
    match cause {
        Cause::AdminKill => match &f.t.closer {
            Some(task) => write!(out, "ended from outside by {} (as ss -K does)", task.comm.text()),
            None => out.write_str("ended from outside (as ss -K does)"),
        },
        Cause::ListenerClosed => out.write_str("reset in the accept queue, because the listening socket was closed"),
        Cause::KeepaliveTimeout => match e.probes_out {
            0 | 1 => write!(out, "{peer} did not answer our keep-alive probe"),
            n => write!(out, "{peer} answered none of {n} keep-alive probes"),
        },
        Cause::RetransmitTimeout => {
            write!(out, "{peer} acknowledged nothing, though we retransmitted ")?;
            match e.retransmits {
                1 => out.write_str("once")?,
                n => write!(out, "{n} times")?,
            }
            write!(out, "{}", given(" (ICMP: ", e.soft_errno, ")"))
        }
        Cause::ConnectTimeout => out.write_str("our SYN had no answer"),
        Cause::UserTimeout => {
            write!(out, "{peer} acknowledged nothing within TCP_USER_TIMEOUT ({})", milliseconds(e.user_timeout_ms.unwrap_or(0).into()))
        }
        Cause::ZeroWindowTimeout => write!(out, "{peer}'s window was closed, and its host stopped answering our probes"),
        Cause::UndeliveredAfterClose => write!(out, "{we} had closed, and {peer} acknowledged no more"),
        Cause::OutOfMemory => out.write_str("the kernel ran out of memory for TCP, or of room for orphans"),
        Cause::RefusedByIcmp => out.write_str("refused by ICMP and not by a RST, as a firewall's reject does"),
        Cause::Unreachable => write!(out, "unreachable: {}", given("", e.errno, "")),
        Cause::GaveUpConnecting => {
            let after = given(" after ", f.t.age_ns.map(duration), "");
            write!(out, "{we} gave up connecting{after}: no answer to our SYN")
        }
        Cause::CloseWithUnreadData if is_close_notify(f) == Some(true) => {
            write!(out, "{we} closed with {} from {peer} unread after its FIN, as TLS's goodbye is", bytes(b.unread))
        }
        Cause::CloseWithUnreadData => write!(out, "{we} closed with {} from {peer} unread", bytes(b.unread)),
        Cause::LingerZero => write!(out, "{we} aborted the connection (SO_LINGER 0)"),
        Cause::Disconnect => write!(out, "{we} disconnected the socket (connect to AF_UNSPEC)"),
        Cause::DataAfterClose => match e.segment_bytes {
            Some(n) if is_late_goodbye(f, cause) == Some(true) => {
                write!(out, "{peer} sent {} after {we} had closed, as TLS's goodbye is", bytes(n))
            }
            Some(n) if n > 0 => write!(out, "{peer} sent {} after {we} had closed", bytes(n)),
            _ => write!(out, "{peer} sent data after {we} had closed"),
        },
        Cause::Linger2Abort => out.write_str("reset instead of waiting for the peer's FIN (TCP_LINGER2 below 0)"),
        Cause::SilentClose => out.write_str("closed without a FIN or RST (TCP_REPAIR)"),
        Cause::ClosedPort => write!(out, "nobody listens on port {} here", f.t.local.port),
        Cause::NoConnection => write!(out, "a segment{segment} arrived for a connection that this host does not know"),
        Cause::AcceptQueueOverflow => out.write_str("accept queue full: the end of the handshake was answered with a RST"),
        Cause::TimeWait => write!(out, "a segment{segment} arrived for a connection that had ended (TIME_WAIT)"),
        Cause::ProtocolError => {
            write!(out, "an unacceptable segment was answered with a RST ({})", f.t.reason.as_deref().unwrap_or("no reason"))
        }
        Cause::Refused => out.write_str("refused: nothing listens there, or a firewall answers in its place"),
        Cause::ResetBeforeAccept => out.write_str("the client reset the connection before accept()"),
        Cause::ConnectProbe if f.server() => out.write_str("connected and reset without a byte, as health checks do"),
        Cause::ConnectProbe => write!(out, "reset by {peer} before a byte was sent"),
        Cause::WriteAfterPeerClose => {
            let written = e.remote_fin.map_or(0, |fin| fin.written_after);
            let unread = if e.fin_read { "" } else { ", not having read its FIN" };
            let goodbye = if is_late_goodbye(f, cause) == Some(true) { ", as TLS's goodbye is" } else { unread };
            write!(out, "{we} wrote {} after {peer} had closed{goodbye}", bytes(written))
        }
        Cause::KeepaliveRace => {
            let idle = idle(f, cause);
            write!(
                out,
                "{peer} closed the connection while our request was on its way (keep-alive race{idle}): {} unanswered",
                bytes(request(f))
            )
        }
        Cause::ClosedBeforeAnswer if f.client() => write!(out, "{peer} closed without answering our request"),
        Cause::ClosedBeforeAnswer => {
            let what = if f.answer() == Answer::Partial { "in the middle of its answer to" } else { "without answering" };
            let how = match f.t.closer {
                Some(closer) if closer.exiting => "died",
                _ => "closed",
            };
            write!(out, "{we} {how} {what} {peer}'s request")
        }
        Cause::ResetWhileClosing => write!(out, "reset by {peer} while the connection was closing"),
        Cause::ResetAfterLocalFin => write!(out, "reset by {peer} after our FIN"),
        Cause::StaleConnection if e.probes_out > 0 && f.outstanding() == 0 => {
            write!(out, "our keep-alive probe found no connection at {peer}{}", idle(f, cause))
        }
        Cause::StaleConnection => {
            write!(out, "{peer}'s side had forgotten the connection{}: {} unanswered", idle(f, cause), bytes(request(f)))
        }
        Cause::NoConnectionAtPeer => {
            write!(out, "{peer}'s side knew no such connection when our request arrived: {} unanswered", bytes(request(f)))
        }
        Cause::RequestNotConfirmed => write!(out, "reset while {} of our request were unacknowledged", bytes(f.outstanding())),
        Cause::ServerAbortBeforeResponse if f.outstanding() > 0 => write!(out, "{peer} aborted before a byte of its answer"),
        Cause::ServerAbortBeforeResponse => {
            write!(out, "{peer} aborted before a byte of its answer, our request acknowledged by its host")
        }
        Cause::ServerAbortMidResponse if f.answer() == Answer::Partial => {
            let how = if f.t.end == EndKind::Fin { "closed" } else { "aborted" };
            write!(out, "{peer} {how} in the middle of its answer")
        }
        Cause::ServerAbortMidResponse => {
            write!(out, "{peer} aborted after {} of its answer; whether that was all is not known", bytes(b.received))
        }
        Cause::PeerAbortIdle => write!(out, "{peer} aborted the idle connection{}", idle(f, cause)),
        Cause::PeerAbortMidResponse => {
            let acked = e.reset.and_then(|header| header.acked).unwrap_or(0).max(b.acked);
            write!(out, "{peer} aborted in the middle of our response, {} of {} acknowledged", grouped(acked), bytes(b.sent + b.unsent))
        }
        Cause::PeerAbortAfterResponse if f.client() => {
            write!(out, "{peer} aborted after its whole answer ({})", bytes(f.t.http.as_ref().and_then(|http| http.moved).unwrap_or(0)))
        }
        Cause::PeerAbortAfterResponse => {
            write!(out, "{peer} aborted after all that we sent ({}) was acknowledged by its host", bytes(b.sent))
        }
        Cause::PeerAbortBeforeResponse => write!(out, "{peer} aborted before our answer to its request"),
        Cause::Orderly => match f.t.fin.first {
            Some(FirstFin::Local) => write!(out, "closed in order, by {we} first"),
            Some(FirstFin::Remote) => write!(out, "closed in order, by {peer} first"),
            _ => out.write_str("closed in order"),
        },
        Cause::OrderlyUnread => out.write_str("closed in order, but not everything was read"),
        Cause::GaveUpWaiting if f.answer() == Answer::Partial => write!(out, "{we} closed before the end of {peer}'s answer"),
        Cause::GaveUpWaiting => {
            let waited = f.first_fin().and_then(|fin| fin.idle.sent_ms).map(milliseconds);
            let waited = given("", waited, "");
            write!(out, "{we} gave up after waiting {waited} for {peer}'s answer")
        }
        Cause::ClientGaveUp if f.answer() == Answer::Partial => write!(out, "{peer} closed before the end of our answer"),
        Cause::ClientGaveUp => {
            let waited = f.first_fin().and_then(|fin| fin.idle.received_ms).map(milliseconds);
            let waited = given("", waited, "");
            write!(out, "{peer} gave up after waiting {waited} for our answer")
        }
        Cause::Unknown => unknown(out, f),
    }
}

/// What of our request was under way, or is unanswered as a whole.
fn request(f: &Facts<'_>) -> u64 {
    let at_fin = f.evidence.remote_fin.map_or(0, |fin| fin.outstanding);
    f.outstanding().max(at_fin)
}

/// What is lost, and what is open; where the clause has not said it.
fn open_ends(out: &mut String, f: &Facts<'_>, cause: Cause, damage: &Damage) -> fmt::Result {
    if damage.undelivered > 0 {
        write!(out, "; {} not delivered", bytes(damage.undelivered))?;
    }
    if damage.unconfirmed > 0 {
        write!(out, "; {} not confirmed", bytes(damage.unconfirmed))?;
    }
    if damage.unread_there > 0 {
        write!(out, "; {} of ours never read there", bytes(damage.unread_there))?;
    }
    let said = matches!(cause, Cause::CloseWithUnreadData | Cause::DataAfterClose | Cause::NoConnection | Cause::TimeWait);
    if damage.unread_here > 0 && !said {
        write!(out, "; {} never read here", bytes(damage.unread_here))?;
    }
    let by_http = match f.answer() {
        Answer::None => Some(true),
        Answer::Partial | Answer::Complete => Some(false),
        Answer::Unknown => None,
    };
    let half_answered = matches!(f.t.end, EndKind::ResetSent | EndKind::Timeout) && by_http.or(f.request_unanswered()) == Some(true);
    cut_answer(out, f)?;
    if half_answered && f.t.bytes.is_some() && f.state() == TcpState::Established {
        let ours = by_http.map_or(f.speaker() == Some(Speaker::Local), |_| f.client());
        out.write_str(if ours { "; our request is unanswered" } else { "; the client's request is unanswered" })?;
    }
    Ok(())
}

/// How much of the answer there was, by HTTP.
fn cut_answer(out: &mut String, f: &Facts<'_>) -> fmt::Result {
    let http = f.t.http.as_ref().filter(|_| f.answer() == Answer::Partial);
    let how = if f.client() { "arrived" } else { "was written" };
    match http.and_then(|http| Some((http.moved?, http.expected))) {
        Some((moved, Some(expected))) => write!(out, "; {} of {} of the answer {how}", grouped(moved), bytes(expected)),
        Some((moved, None)) => write!(out, "; {} of the answer {how}, without its end", bytes(moved)),
        None => Ok(()),
    }
}

/// What is missing for a verdict.
fn unknown(out: &mut String, f: &Facts<'_>) -> fmt::Result {
    let missing = match (f.t.role, f.speaker(), f.t.reason.is_none()) {
        (None, ..) => "which end had connected",
        (_, None, _) => "who spoke last",
        (_, _, true) => "the kernel's reason",
        _ => "a rule for this end",
    };
    write!(out, "why is not known: {missing} is missing")
}
