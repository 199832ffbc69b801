//! What receives and sends returned, on kernels without `sock_recv_length` (before 6.3): the return of
//! the functions beneath it; where the kernel has no trampolines for that, probes on their return; and
//! on request every system call's exit.
//!
//! TCP's own functions only: what MPTCP, kernel TLS and splice() return does not pass here.

use aya_ebpf::{
    EbpfContext,
    macros::{fexit, kretprobe, raw_tracepoint},
    programs::{FExitContext, RawTracePointContext, RetProbeContext},
};
use rsttrace_common::hook;

use super::{
    length::{is_answer, returned},
    report_observed,
};
use crate::{
    settings::OFFSETS,
    sock::{CLOSE, peek, tcp_of_plain},
    task,
};

// The return value lies behind the arguments, whose number is the program's: the verifier allows no
// computed index.

/// `int tcp_recvmsg(struct sock *, struct msghdr *, size_t, int nonblock, int flags, int *addr_len)`, to 5.18.
#[fexit]
fn tcp_recvmsg_6(ctx: FExitContext) -> i32 {
    returned(&ctx, hook::SOCK_RECV_LENGTH, ctx.arg(0), ctx.arg::<u64>(6), ctx.arg::<u64>(4))
}

/// The same without `nonblock`, since 5.19.
#[fexit]
fn tcp_recvmsg_5(ctx: FExitContext) -> i32 {
    returned(&ctx, hook::SOCK_RECV_LENGTH, ctx.arg(0), ctx.arg::<u64>(5), ctx.arg::<u64>(3))
}

/// `int tcp_sendmsg(struct sock *, struct msghdr *, size_t)`.
#[fexit]
fn tcp_sendmsg_3(ctx: FExitContext) -> i32 {
    returned(&ctx, hook::SOCK_SEND_LENGTH, ctx.arg(0), ctx.arg::<u64>(3), 0)
}

/// `int tcp_sendpage(struct sock *, struct page *, int offset, size_t, int flags)`, to 6.4: sendfile() and splice() to the socket.
#[fexit]
fn tcp_sendpage_5(ctx: FExitContext) -> i32 {
    returned(&ctx, hook::SOCK_SEND_LENGTH, ctx.arg(0), ctx.arg::<u64>(5), 0)
}

/// On the return of `tcp_recvmsg()`.
#[kretprobe]
fn recv_kretprobe(ctx: RetProbeContext) -> u32 {
    call_returned(&ctx, hook::SOCK_RECV_LENGTH, ctx.ret::<i32>());
    0
}

/// On the return of `tcp_sendmsg()` and `tcp_sendpage()`.
#[kretprobe]
fn send_kretprobe(ctx: RetProbeContext) -> u32 {
    call_returned(&ctx, hook::SOCK_SEND_LENGTH, ctx.ret::<i32>());
    0
}

/// `void (struct pt_regs *regs, long ret)`: what every system call of every process returns.
#[raw_tracepoint(tracepoint = "sys_exit")]
fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let ret: i64 = ctx.arg(1);
    if ret < 0 && ret >= -4095 {
        call_returned(&ctx, hook::SYS_EXIT, ret as i32);
    }
    0
}

/// A return says no socket: it is the one behind the call's descriptor.
#[inline(always)]
fn call_returned(ctx: &impl EbpfContext, hook: u8, ret: i32) {
    if !is_answer(ret) {
        return;
    }
    let held = task::socket_of_call();
    let tcp = if held == 0 { 0 } else { tcp_of_plain(held) };
    if tcp != 0 && peek::<u8>(held, &OFFSETS.sock__skc_state) == CLOSE {
        report_observed(ctx, hook, tcp, held, -ret);
    }
}
