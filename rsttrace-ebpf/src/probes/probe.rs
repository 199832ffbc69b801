//! Segments before they are processed: what the RST's own header says, and what the FIN is about to
//! overwrite. `tcp_probe` shows every segment that arrives in ESTABLISHED; `tcp_reset()`, where the
//! kernel allows to attach to it, the RST that ends a connection in any state.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{btf_tracepoint, fentry, kprobe},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext},
};
use rsttrace_common::{ResetHeader, reset_flag};

use crate::{
    maps::{FIN_SEEN, find_or_begin},
    sock::*,
};

/// `void (struct sock *sk, struct sk_buff *skb)`, first thing in `tcp_rcv_established()`. Every
/// segment pays for what stands here.
#[btf_tracepoint(function = "tcp_probe")]
fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the hook's second argument.
    let flags = unsafe { flags_of(ctx.arg(1)) };
    if flags & (TCPHDR_FIN | TCPHDR_RST) != 0 {
        fin_or_reset(ctx.as_ptr(), flags);
    }
    0
}

/// Out of line, so that other segments do not save registers for it.
#[inline(never)]
fn fin_or_reset(ctx: *mut c_void, flags: u8) {
    let ctx = BtfTracePointContext::new(ctx);
    let sk: Sk = ctx.arg(0);
    if !is_tcp(sk) {
        return;
    }
    let Some(entry) = find_or_begin(sk as u64) else { return };
    let skb = ctx.arg::<*const u8>(1) as u64;
    if flags & TCPHDR_RST != 0 {
        reset_header(skb, flags, 0, &mut entry.reset);
    } else if segment_bytes(skb) == 0 {
        (entry.wl1_before_fin, entry.una_before_fin) = window_and_acknowledgement(sk);
        entry.flags |= FIN_SEEN;
    }
}

/// `void tcp_reset(struct sock *sk, struct sk_buff *skb)`; the segment since 5.11.
#[fentry]
fn tcp_reset(ctx: FEntryContext) -> i32 {
    accepted(ctx.arg(0), ctx.arg(1));
    0
}

/// The same by another way.
#[kprobe]
fn tcp_reset_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg(0), ctx.arg(1)) {
        accepted(sk, skb);
    }
    0
}

#[inline(always)]
fn accepted(sk: u64, skb: u64) {
    let flags = tcp_flags(skb);
    // Data after close() comes here too.
    if flags & TCPHDR_RST == 0 {
        return;
    }
    if let Some(entry) = find_or_begin(sk) {
        reset_header(skb, flags, reset_flag::ACCEPTED, &mut entry.reset);
    }
}

#[inline(always)]
fn reset_header(skb: u64, flags: u8, how: u8, out: &mut ResetHeader) {
    out.flags = reset_flag::SEEN | how;
    if flags & TCPHDR_ACK != 0 {
        out.flags |= reset_flag::ACK;
    }
    out.ack_seq = ack_seq(skb);
    out.window = tcp_header(skb).map_or(0, |tcp| tcp.window);
    out.ttl = ttl(skb);
}
