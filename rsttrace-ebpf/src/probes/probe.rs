//! `tcp_probe`: every segment that arrives in ESTABLISHED, before it is processed. Only the FIN and
//! the RST are of interest: what the RST's own header says, and what the FIN is about to overwrite.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use rsttrace_common::{ResetHeader, reset_flag};

use crate::{
    maps::{FIN_SEEN, find_or_begin},
    sock::*,
};

/// `void (struct sock *sk, struct sk_buff *skb)`, first thing in `tcp_rcv_established()`.
#[btf_tracepoint(function = "tcp_probe")]
fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    let skb = ctx.arg::<*const u8>(1);
    let flags = flags_of(skb);
    if flags & (TCPHDR_FIN | TCPHDR_RST) == 0 {
        return 0;
    }
    let sk: Sk = ctx.arg(0);
    if !is_tcp(sk) {
        return 0;
    }
    let Some(entry) = find_or_begin(sk as u64, now_ns()) else { return 0 };
    if flags & TCPHDR_RST == 0 {
        entry.wl1_before_fin = wl1(sk);
        entry.flags |= FIN_SEEN;
    } else {
        reset_header(skb as u64, flags, &mut entry.reset);
    }
    0
}

#[inline(always)]
fn reset_header(skb: u64, flags: u8, out: &mut ResetHeader) {
    out.flags = reset_flag::SEEN;
    if flags & TCPHDR_ACK != 0 {
        out.flags |= reset_flag::ACK;
    }
    out.ack_seq = ack_seq(skb);
    out.window = tcp_header(skb).map_or(0, |tcp| tcp.window);
    out.ttl = ttl(skb);
}
