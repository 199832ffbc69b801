//! At what point of the exchange it happened.

use super::facts::Facts;
use crate::model::{Answer, Cause, EndKind, Phase, Role, Speaker, TcpState};

pub fn of(f: &Facts<'_>, cause: Cause) -> Phase {
    if f.t.bytes.is_none() {
        return match cause {
            Cause::ClosedPort => Phase::Connecting,
            Cause::AcceptQueueOverflow => Phase::Accepting,
            Cause::TimeWait => Phase::Closing,
            _ if matches!(f.t.state, Some(TcpState::SynSent | TcpState::SynRecv | TcpState::NewSynRecv)) => Phase::Connecting,
            _ => Phase::Unknown,
        };
    }
    if f.t.end == EndKind::Fin {
        // The first FIN is where the end began.
        let orderly = matches!(cause, Cause::Orderly | Cause::OrderlyUnread);
        return match f.first_fin() {
            // The last word was a goodbye, or the protocol is one-way.
            Some(fin) if orderly && requested(f, fin.speaker) && !f.silent() => Phase::Closing,
            Some(fin) => exchange(f, fin.speaker, fin.outstanding > 0 && !orderly, f.was_idle(fin), cause),
            None => Phase::Closing,
        };
    }
    let state = if f.t.end == EndKind::ResetReceived { f.state_on_the_wire() } else { f.state() };
    match state {
        TcpState::SynSent | TcpState::SynRecv => Phase::Connecting,
        _ if f.evidence.accept_queue => Phase::Accepting,
        TcpState::FinWait1 | TcpState::FinWait2 => Phase::AfterLocalFin,
        TcpState::CloseWait => Phase::AfterRemoteFin,
        TcpState::Closing | TcpState::LastAck | TcpState::TimeWait => Phase::Closing,
        TcpState::Established => {
            let unread_there = f.t.peer.and_then(|peer| peer.unread).is_some_and(|n| n > 0);
            exchange(f, f.speaker(), f.outstanding() > 0 || unread_there, f.idle(), cause)
        }
        _ => Phase::Unknown,
    }
}

/// The last word was the client's.
fn requested(f: &Facts<'_>, speaker: Option<Speaker>) -> bool {
    matches!((f.t.role, speaker), (Some(Role::Client), Some(Speaker::Local)) | (Some(Role::Server), Some(Speaker::Remote)))
}

fn exchange(f: &Facts<'_>, speaker: Option<Speaker>, outstanding: bool, idle: bool, cause: Cause) -> Phase {
    match (f.t.role, speaker) {
        _ if f.silent() => Phase::Idle,
        _ if f.answer() == Answer::None => Phase::RequestInFlight,
        _ if f.answer() == Answer::Partial => Phase::MidResponse,
        (Some(Role::Client), _) if f.answer() == Answer::Complete => {
            if idle {
                Phase::Idle
            } else {
                Phase::AfterResponse
            }
        }
        _ if requested(f, speaker) => Phase::RequestInFlight,
        (Some(Role::Server), Some(Speaker::Local)) if outstanding && cause != Cause::PeerAbortAfterResponse => Phase::MidResponse,
        // Whole or part, only the application's protocol knows.
        (Some(Role::Client), Some(Speaker::Remote)) if cause == Cause::ServerAbortMidResponse || f.bytes.unread > 0 => Phase::MidResponse,
        (Some(_), Some(_)) if cause == Cause::PeerAbortMidResponse => Phase::MidResponse,
        (Some(_), Some(_)) if idle => Phase::Idle,
        (Some(_), Some(_)) => Phase::AfterResponse,
        _ if idle => Phase::Idle,
        _ => Phase::Unknown,
    }
}
