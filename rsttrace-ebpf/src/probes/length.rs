//! `sock_recv_length` and `sock_send_length`: what the application's receive or send returned.
//! Every receive and send of the host passes here, so the usual outcomes leave after a few loads.

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use rsttrace_common::{CLOSE_NOTIFY, hook};

use super::report_observed;
use crate::{
    http,
    maps::{self, GOODBYE, SEEDED},
    sock::{self, *},
    task,
};

/// `include/uapi/asm-generic/errno-base.h`
const EAGAIN: i32 = -11;
/// What connect() left undone, or a socket without a connection; not this connection's error.
const ENOTCONN: i32 = -107;

/// `void (struct sock *sk, int ret, int flags)`, since 6.3.
#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    returned(&ctx, hook::SOCK_RECV_LENGTH, ctx.arg(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2))
}

/// `void (struct sock *sk, int ret, int flags)`, since 6.3.
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    returned(&ctx, hook::SOCK_SEND_LENGTH, ctx.arg(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2))
}

/// `sk` must be typed; `ret` and `flags` are an `int` in a register.
#[inline(always)]
pub fn returned(ctx: &impl EbpfContext, hook: u8, sk: Sk, ret: u64, flags: u64) -> i32 {
    let ret = ret as u32 as i32;
    if ret == 0 || ret == EAGAIN {
        return 0;
    }
    if ret > 0 {
        if is_tcp(sk) {
            if is_first_use(sk, ret, hook == hook::SOCK_RECV_LENGTH) {
                first_use(sk);
            }
            if hook == hook::SOCK_SEND_LENGTH && CLOSE_NOTIFY.contains(&(ret as u32)) {
                wrote_goodbye(sk);
            }
            http::moved(sk, hook == hook::SOCK_RECV_LENGTH, ret as u32, flags as u32);
        }
        return 0;
    }
    if !is_answer(ret) || sock::state(sk) != CLOSE {
        return 0;
    }
    let tcp = tcp_of(sk);
    if tcp != 0 {
        report_observed(ctx, hook, tcp, sk as u64, -ret);
    }
    0
}

/// Whether a negative return may be the error of an ended connection: restarts (-512 ...) and
/// interruptions are no answer.
#[inline(always)]
pub fn is_answer(ret: i32) -> bool {
    ret > -512 && ret < 0 && ret != ENOTCONN && ret != EAGAIN
}

/// What was written last may be TLS's goodbye: at the FIN it matters whether it was a request.
/// Only writes of such a size pay for the look-up.
#[inline(always)]
fn wrote_goodbye(sk: Sk) {
    if let Some(entry) = maps::find(sk as u64) {
        entry.goodbye_seq = write_seq(sk);
        entry.flags |= GOODBYE;
    }
}

/// The first task that uses an accepted connection owns it.
#[inline(always)]
fn first_use(sk: Sk) {
    if let Some(entry) = maps::find(sk as u64) {
        if entry.owner.tgid == 0 || entry.flags & SEEDED != 0 {
            entry.flags &= !SEEDED;
            // By which descriptor does not matter.
            task::current(&mut entry.owner, 0);
            task::lead(&mut entry.owner);
            entry.inode = inode(sk);
        }
    }
}
