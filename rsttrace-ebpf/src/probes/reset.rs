//! `tcp_receive_reset` and `tcp_send_reset`; and for kernels before 6.10, where the latter is silent
//! without a full socket, the functions that send such RSTs.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, kprobe},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext},
};
use rsttrace_common::{StrayEvent, counter, end_flag, event_flag, hook, kind};

use super::{End, UNKNOWN_BYTES, acting, of_reset, report_after, report_end};
use crate::{
    emit,
    maps::{self, DESTROYED, Entry, LOST, ORDERLY, REPORTED, RESET_LOST, find_or_begin},
    settings::{OFFSETS, SETTINGS, frozen},
    sock::{self, *},
    task,
};

/// `void (struct sock *sk)`, from `tcp_reset()`: a RST arrived; in FIN_WAIT1/2 also data after
/// close(), for which the kernel itself aborts and sends its RST next.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    let sk: Sk = ctx.arg(0);
    let state = sock::state(sk);
    // tcp_reset() does nothing to a socket that is closed already.
    if is_mini(state) || state == CLOSE || !is_tcp(sk) {
        return 0;
    }
    let mut entry = find_or_begin(sk as u64);
    if let Some(entry) = entry.as_deref_mut() {
        entry.errno = of_reset(state);
    }
    let end = End { hook: hook::TCP_RECEIVE_RESET, state, reason: -1, flags: 0, err: 0, skb: 0 };
    report_end(&ctx, sk, entry, &end);
    0
}

/// `void (const struct sock *sk, const struct sk_buff *skb, const enum sk_rst_reason reason)`;
/// the reason since 6.10.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    let sk: Sk = ctx.arg(0);
    let skb = ctx.arg::<*const u8>(1);
    let reason = if frozen(&SETTINGS.has_reset_reason) == 0 { -1 } else { ctx.arg::<u32>(2) as i32 };
    if sk.is_null() {
        stray(&ctx, 0, skb as u64, reason, 0);
        return 0;
    }
    let state = sock::state(sk);
    if is_mini(state) || state == LISTEN {
        stray(&ctx, sk as u64, skb as u64, reason, state);
        return 0;
    }
    if !is_tcp(sk) {
        return 0;
    }
    if !skb.is_null() && state != CLOSE {
        // The segment was unacceptable; the socket lives on.
        stray(&ctx, sk as u64, skb as u64, reason, state);
        return 0;
    }
    ended(&ctx, sk, skb as u64, reason, state);
    0
}

/// A RST that goes with the end of a full socket.
#[inline(always)]
fn ended(ctx: &BtfTracePointContext, sk: Sk, skb: u64, reason: i32, state: u8) {
    let key = sk as u64;
    let Some(entry) = maps::find(key) else {
        // Destroyed a moment ago, after its end was reported.
        let _ = after(ctx, sk, None, skb, reason);
        return;
    };
    if entry.flags & LOST != 0 {
        return;
    }
    if entry.flags & REPORTED != 0 {
        // What was reported as an orderly end is none.
        entry.flags &= !ORDERLY;
        if !after(ctx, sk, Some(&*entry), skb, reason) {
            entry.flags |= RESET_LOST;
        }
        return;
    }
    let mut flags = 0;
    if skb != 0 {
        flags |= end_flag::ANSWER;
    }
    if entry.flags & DESTROYED != 0 {
        flags |= end_flag::GONE;
        // It was taken for orderly when it was destroyed.
        maps::add(counter::ORDERLY, u64::MAX);
    }
    entry.flags &= !ORDERLY;
    let before = if state == CLOSE { entry.last_state } else { state };
    // An active RST from inside a system call: that task ends the connection (ss -K, close()).
    if skb == 0 && owned(sk) {
        task::current(&mut entry.closer, 0);
    }
    let end = End { hook: hook::TCP_SEND_RESET, state: before, reason, flags, err: err(sk), skb };
    report_end(ctx, sk, Some(entry), &end);
}

#[inline(always)]
fn after(ctx: &BtfTracePointContext, sk: Sk, entry: Option<&Entry>, skb: u64, reason: i32) -> bool {
    let (flags, bytes) = if skb != 0 { (event_flag::ANSWER, segment_bytes(skb)) } else { (0, UNKNOWN_BYTES) };
    report_after(ctx, kind::RESET_SENT, hook::TCP_SEND_RESET, sk as u64, entry, reason, flags, bytes, |out| {
        // As below: the task whose call sends it.
        if skb == 0 {
            acting(out, sk);
        } else {
            task::none(out);
        }
    })
}

/// `static void tcp_v4_send_reset(const struct sock *sk, struct sk_buff *skb)`, before 6.10.
#[fentry]
fn tcp_v4_send_reset(ctx: FEntryContext) -> i32 {
    without_full_socket(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

/// The same for IPv6.
#[fentry]
fn tcp_v6_send_reset(ctx: FEntryContext) -> i32 {
    without_full_socket(&ctx, ctx.arg(0), ctx.arg(1));
    0
}

/// Both by another way.
#[kprobe]
fn send_reset_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg(0), ctx.arg(1)) {
        without_full_socket(&ctx, sk, skb);
    }
    0
}

/// What `tcp_send_reset` does not show: no socket at all, or a mini-socket.
#[inline(always)]
fn without_full_socket(ctx: &impl EbpfContext, sk: u64, skb: u64) {
    let state = if sk == 0 { 0 } else { peek(sk, &OFFSETS.sock__skc_state) };
    // A RST is never answered by a RST: the function returns at once.
    if sk != 0 && !is_mini(state) || tcp_header(skb).is_none_or(|tcp| tcp.flags & TCPHDR_RST != 0) {
        return;
    }
    stray(ctx, sk, skb, -1, state);
}

/// A RST that answers a segment and ends no full socket.
#[inline(always)]
fn stray(ctx: &impl EbpfContext, sk: u64, skb: u64, reason: i32, state: u8) {
    let Some(mut event) = emit::reserve::<StrayEvent>(ctx, hook::TCP_SEND_RESET, || false) else {
        maps::count(counter::LOST_RECORDS);
        return;
    };
    // SAFETY: room for one StrayEvent, of which every byte is written below.
    let out = unsafe { &mut *event.as_mut_ptr() };
    out.header = emit::header(kind::STRAY, now_ns());
    sock::tuple_of_segment(skb, &mut out.tuple);
    if out.tuple.netns == 0 {
        // The device is forgotten once a socket has taken the segment.
        out.tuple.netns = sock::netns(sk);
    }
    out.reason = reason;
    out.state = state;
    out.tcp_flags = sock::tcp_header(skb).map_or(0, |tcp| tcp.flags);
    out.segment_bytes = segment_bytes(skb);
    out.pad = 0;
    out.pad2 = 0;
    event.submit(0);
}
