//! Who ended it. Nobody is named without evidence: what arrives from the network may have been
//! made by anything on the way.

use super::facts::{Facts, Flight};
use crate::model::{Cause, EndKind, Errno, FirstFin, Initiator};

pub fn of(f: &Facts<'_>, cause: Cause) -> Initiator {
    match f.t.end {
        EndKind::Fin => first_to_close(f),
        EndKind::ResetReceived => sender(f, cause),
        _ if cause == Cause::AdminKill => Initiator::LocalAdmin,
        EndKind::Timeout => Initiator::LocalKernel,
        EndKind::ResetSent | EndKind::Error => match cause {
            Cause::RefusedByIcmp | Cause::Unreachable => Initiator::Unknown,
            Cause::ListenerClosed
            | Cause::CloseWithUnreadData
            | Cause::LingerZero
            | Cause::Disconnect
            | Cause::Linger2Abort
            | Cause::SilentClose
            | Cause::GaveUpConnecting => Initiator::LocalApplication,
            _ if f.evidence.errno == Some(Errno::ECONNABORTED) => Initiator::LocalApplication,
            Cause::Unknown => Initiator::Unknown,
            _ => Initiator::LocalKernel,
        },
    }
}

fn first_to_close(f: &Facts<'_>) -> Initiator {
    match f.t.fin.first {
        Some(FirstFin::Local | FirstFin::Both) => Initiator::LocalApplication,
        Some(FirstFin::Remote) => Initiator::PeerApplication,
        None => Initiator::Unknown,
    }
}

/// Who sent the RST that arrived.
fn sender(f: &Facts<'_>, cause: Cause) -> Initiator {
    let header = f.evidence.reset.map(|header| header.acked);
    match (cause, &f.t.peer) {
        // Both ends received a RST, and neither sent one.
        (_, Some(peer)) if peer.end == EndKind::ResetReceived => Initiator::Middlebox,
        // It answers a segment.
        (Cause::Refused | Cause::WriteAfterPeerClose, _) => Initiator::PeerKernel,
        // The peer's application had closed before, whatever the RST answers; or aborts after our FIN.
        (Cause::KeepaliveRace | Cause::ClosedBeforeAnswer | Cause::ResetWhileClosing, _) if f.t.fin.first == Some(FirstFin::Remote) => {
            Initiator::PeerApplication
        }
        (Cause::ResetAfterLocalFin, Some(peer)) if peer.acted && !peer.killed => Initiator::PeerApplication,
        _ if header == Some(None) => answering(f),
        // A socket of this host sent it: killed, by a call of its process, or by itself.
        (_, Some(peer)) if peer.killed => Initiator::LocalAdmin,
        (_, Some(peer)) if peer.acted => Initiator::PeerApplication,
        (_, Some(_)) => Initiator::PeerKernel,
        (_, None) if header.is_some() => Initiator::PeerApplication,
        (_, None) => Initiator::Unknown,
    }
}

/// A RST without ACK answers a segment of ours: but which, and could the peer have had it?
fn answering(f: &Facts<'_>) -> Initiator {
    let asked = f.bytes.unacked > 0 || f.evidence.probes_out > 0;
    let quiet_before = f.t.idle.and_then(|idle| idle.received_ms).is_some_and(|ms| ms > 1_000);
    match f.flight() {
        // It answers an acknowledgement, or nothing.
        _ if !asked => Initiator::Unknown,
        // Sooner than the peer can, on a connection where nothing else was under way: something
        // nearer has sent it.
        Flight::Crossing if f.bytes.unacked > 0 && quiet_before => Initiator::Middlebox,
        // Or it answers what was sent before.
        Flight::Crossing if f.bytes.unacked > 0 => Initiator::Unknown,
        _ => Initiator::PeerKernel,
    }
}
