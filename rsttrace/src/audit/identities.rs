//! Which of the kernel's counters stepped where an event was made. Each rule names the function
//! that counts.

use super::{
    Counter::{self, AbortOnClose, AbortOnData, AbortOnLinger, AbortOnTimeout, AttemptFails, EstabResets, OutRsts},
    Counts,
};
use crate::model::{After, AfterKind, End, Errno, Event, Hook, Stray, Task, TcpState};

/// The counters that stepped with this event. `end`: what was reported earlier of the socket that
/// an [`Event::After`] is about. `reasons`: this kernel gives reasons for the RSTs that it chooses
/// to send (6.12 and newer); otherwise they are told from circumstances.
pub fn counted(event: &Event, end: Option<&End>, reasons: bool) -> Counts {
    let mut counts = Counts::default();
    match event {
        Event::Stray(_) => counts[OutRsts] += 1,
        Event::Http(_) | Event::Exec(_) => {}
        Event::End(end) => of_end(end, reasons, &mut counts),
        Event::After(after) => of_after(after, end, reasons, &mut counts),
    }
    counts
}

/// A RST for a connection that had not been accepted because the queue was full
/// (`tcp_check_req()` with tcp_abort_on_overflow): `EmbryonicRsts` steps, and `AttemptFails` does not.
pub fn is_overflow(stray: &Stray) -> bool {
    stray.state == Some(TcpState::Listen)
        && stray.segment.is_some_and(|segment| !segment.syn)
        && stray.reason.as_deref() == Some("INVALID_SYN")
}

fn of_end(end: &End, reasons: bool, counts: &mut Counts) {
    // tcp_set_state()
    if matches!(end.state, TcpState::Established | TcpState::CloseWait) {
        counts[EstabResets] += 1;
    }
    // tcp_done(). Where a RST was sent first, the error that follows says whether it was called.
    if is_attempt(end.state) && (end.hook == Hook::ReceiveReset || end.hook == Hook::SetState && end.err.is_some() && !gave_up(end)) {
        counts[AttemptFails] += 1;
    }
    // tcp_write_err()
    if end.hook == Hook::SetState && timed_out(end) {
        counts[AbortOnTimeout] += 1;
    }
    match end.hook {
        Hook::SendReset => of_reset(Some(end), end.closer.as_ref(), end.reason.as_deref(), end.answer, reasons, counts),
        // __tcp_close(): there is no RST where the handshake had only begun.
        Hook::SetState if end.state == TcpState::SynSent && gave_up(end) && lingered(end, end.closer.as_ref()) => counts[AbortOnData] += 1,
        _ => {}
    }
}

fn of_after(after: &After, end: Option<&End>, reasons: bool, counts: &mut Counts) {
    match &after.kind {
        AfterKind::ResetSent { reason, answer, .. } => {
            let task = after.task.as_ref().or_else(|| end.and_then(|end| end.closer.as_ref()));
            of_reset(end, task, reason.as_deref(), *answer, reasons, counts);
        }
        // An active RST came first.
        AfterKind::Closed { errno: Some(errno) } => {
            if end.is_some_and(|end| is_attempt(end.state)) {
                counts[AttemptFails] += 1;
            }
            // All but tcp_abort() are tcp_keepalive_timer().
            if *errno != Errno::ECONNABORTED {
                counts[AbortOnTimeout] += 1;
            }
        }
        AfterKind::Closed { errno: None } | AfterKind::Observed { .. } | AfterKind::Released { .. } => {}
    }
}

/// tcp_send_active_reset() and tcp_v4_send_reset().
fn of_reset(end: Option<&End>, task: Option<&Task>, reason: Option<&str>, answer: bool, reasons: bool, counts: &mut Counts) {
    counts[OutRsts] += 1;
    let abort = if reasons {
        match reason {
            Some("TCP_ABORT_ON_CLOSE") => Some(AbortOnClose),
            Some("TCP_ABORT_ON_LINGER") => Some(AbortOnLinger),
            // tcp_rcv_state_process(): data after close().
            Some("TCP_ABORT_ON_DATA") => Some(AbortOnData),
            // tcp_disconnect(), of which __tcp_close() with linger 0 is one caller.
            Some("TCP_STATE" | "TCP_DISCONNECT_WITH_DATA") => end.filter(|end| !answer && lingered(end, task)).map(|_| AbortOnData),
            _ => None,
        }
    } else {
        end.and_then(|end| by_circumstances(end, task, answer))
    };
    if let Some(counter) = abort {
        counts[counter] += 1;
    }
}

/// The same without a reason.
fn by_circumstances(end: &End, task: Option<&Task>, answer: bool) -> Option<Counter> {
    let established = matches!(end.state, TcpState::Established | TcpState::CloseWait);
    if answer {
        return (!established).then_some(AbortOnData);
    }
    // close() is in CLOSE before it sends; timers and ss -K send first.
    if end.orphan || established && end.hook != Hook::SetState || !closes(end, task) {
        return None;
    }
    match end.state {
        _ if end.bytes.unread > 0 => Some(AbortOnClose),
        TcpState::FinWait2 if end.evidence.linger2 => Some(AbortOnLinger),
        _ if end.evidence.linger_zero => Some(AbortOnData),
        _ => None,
    }
}

/// `__tcp_close()` with linger 0.
fn lingered(end: &End, task: Option<&Task>) -> bool {
    end.evidence.linger_zero && !end.orphan && closes(end, task)
}

/// It is close(), by whatever way, that let tcp_disconnect() end the connection. The others are
/// connect(AF_UNSPEC), shutdown() while connecting, a listener that closes with this one in its
/// queue; and ss -K, which has the same reason.
fn closes(end: &End, task: Option<&Task>) -> bool {
    let call = task.and_then(|task| task.syscall);
    !end.evidence.accept_queue && !matches!(call, Some("connect" | "shutdown" | "sendmsg" | "sendto"))
}

fn is_attempt(state: TcpState) -> bool {
    matches!(state, TcpState::SynSent | TcpState::SynRecv)
}

/// A connect() that its own process ended: tcp_set_state() alone. An error is then what the process
/// had taken before.
fn gave_up(end: &End) -> bool {
    end.err.is_none() || end.closer.is_some() && end.err != Some(Errno::ECONNABORTED)
}

/// What a timer leaves is ETIMEDOUT, or the latest ICMP error if there was one. Before the handshake
/// is done ICMP errors end the connection themselves.
fn timed_out(end: &End) -> bool {
    match end.err {
        Some(Errno::ETIMEDOUT) => true,
        Some(errno) => end.evidence.soft_errno == Some(errno) && !is_attempt(end.state),
        None => false,
    }
}
