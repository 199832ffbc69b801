//! `tcp_destroy_sock`: the socket is gone, and with it the last chance to see its error.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use rsttrace_common::{SockId, counter, hook, kind};

use super::{acting, release_flags, report_after};
use crate::{
    http,
    maps::{self, DESTROYED, DYING, LOST, ORDERLY, REPORTED, SOCKETS},
    sock::{FIN_WAIT1, FIN_WAIT2, Sk, err, unread},
};

/// `void (struct sock *sk)`, from `tcp_v4_destroy_sock()`.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let sk: Sk = ctx.arg(0);
    let key = sk as u64;
    let Some(entry) = maps::find(key) else {
        http::forget(key);
        return 0;
    };
    let id = SockId { sk: key, born_ns: entry.born_ns };
    if entry.flags & REPORTED != 0 {
        http::report_late(&ctx, sk, entry.last_state, hook::TCP_DESTROY_SOCK, id);
    }
    http::forget(key);
    if entry.flags & REPORTED != 0 {
        let flags = release_flags(entry);
        report_after(&ctx, kind::RELEASED, hook::TCP_DESTROY_SOCK, key, Some(&*entry), err(sk), flags, unread(sk), |out| acting(out, sk));
    } else if entry.flags & (ORDERLY | LOST) != 0 {
        if entry.flags & LOST == 0 {
            maps::count(counter::ORDERLY);
        }
        // An orphan that met data after close() is destroyed first and answered with RST next,
        // in the same breath.
        if entry.last_state == FIN_WAIT1 || entry.last_state == FIN_WAIT2 {
            entry.flags |= DESTROYED;
            bury_previous(key);
            return 0;
        }
    }
    let _ = SOCKETS.remove(key);
    0
}

/// Keeps this CPU's latest such entry and drops the one before it, if it is still the dead one.
#[inline(always)]
fn bury_previous(key: u64) {
    let Some(slot) = DYING.get_ptr_mut(0) else { return };
    // SAFETY: per-CPU value, valid until the program returns.
    let previous = unsafe { core::mem::replace(&mut *slot, key) };
    if previous != 0 && previous != key {
        if let Some(entry) = maps::find(previous) {
            if entry.flags & DESTROYED != 0 {
                let _ = SOCKETS.remove(previous);
            }
        }
    }
}
