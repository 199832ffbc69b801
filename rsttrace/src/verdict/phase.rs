//! At what point of the exchange it happened.

use super::facts::Facts;
use crate::model::{Cause, EndKind, Phase, Role, Speaker, TcpState};

pub fn of(f: &Facts<'_>, cause: Cause) -> Phase {
    if f.t.bytes.is_none() {
        return match cause {
            Cause::ClosedPort => Phase::Connecting,
            Cause::AcceptQueueOverflow => Phase::Accepting,
            Cause::TimeWait => Phase::Closing,
            _ => Phase::Unknown,
        };
    }
    if f.t.end == EndKind::Fin {
        // The first FIN is where the end began.
        return match f.first_fin() {
            Some(fin) => exchange(f, fin.speaker, fin.outstanding > 0, f.was_idle(fin), cause),
            None => Phase::Closing,
        };
    }
    match f.state() {
        TcpState::SynSent | TcpState::SynRecv => Phase::Connecting,
        _ if f.evidence.accept_queue => Phase::Accepting,
        TcpState::FinWait1 | TcpState::FinWait2 => Phase::AfterLocalFin,
        TcpState::CloseWait => Phase::AfterRemoteFin,
        TcpState::Closing | TcpState::LastAck | TcpState::TimeWait => Phase::Closing,
        TcpState::Established => exchange(f, f.speaker(), f.outstanding() > 0, f.idle(), cause),
        _ => Phase::Unknown,
    }
}

fn exchange(f: &Facts<'_>, speaker: Option<Speaker>, outstanding: bool, idle: bool, cause: Cause) -> Phase {
    match (f.t.role, speaker) {
        _ if f.silent() => Phase::Idle,
        (Some(Role::Client), Some(Speaker::Local)) | (Some(Role::Server), Some(Speaker::Remote)) => Phase::RequestInFlight,
        (Some(Role::Server), Some(Speaker::Local)) if outstanding && cause != Cause::PeerAbortAfterResponse => Phase::MidResponse,
        (Some(_), Some(_)) if idle => Phase::Idle,
        // Whole or part, only the application's protocol knows.
        (Some(Role::Client), Some(Speaker::Remote)) if cause == Cause::ServerAbortMidResponse || f.bytes.unread > 0 => Phase::MidResponse,
        (Some(_), Some(_)) => Phase::AfterResponse,
        _ if idle => Phase::Idle,
        _ => Phase::Unknown,
    }
}
