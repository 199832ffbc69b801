//! Reading sockets and segments. Two ways: [`typed`] loads from pointers whose type the verifier
//! knows (one instruction, faults read as 0), [`peek`] reads through a helper from plain addresses.

use core::ptr::read_volatile;

use aya_ebpf::helpers::{
    bpf_get_socket_cookie, bpf_jiffies64, bpf_probe_read_kernel,
    generated::{bpf_ktime_get_ns, bpf_skc_to_tcp_sock},
};
use rsttrace_common::{ABSENT, EndEvent, Sizes, Snapshot, Tuple, end_flag, snapshot_flag};

use crate::settings::{OFFSETS, SETTINGS, frozen, present};

/// `include/net/tcp_states.h`.
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const SYN_RECV: u8 = 3;
pub const FIN_WAIT1: u8 = 4;
pub const FIN_WAIT2: u8 = 5;
pub const TIME_WAIT: u8 = 6;
pub const CLOSE: u8 = 7;
pub const CLOSE_WAIT: u8 = 8;
pub const LAST_ACK: u8 = 9;
pub const LISTEN: u8 = 10;
pub const CLOSING: u8 = 11;
pub const NEW_SYN_RECV: u8 = 12;

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_MPTCP: u16 = 262;
pub const TCPHDR_FIN: u8 = 1;
pub const TCPHDR_SYN: u8 = 2;
pub const TCPHDR_RST: u8 = 4;
pub const TCPHDR_ACK: u8 = 16;

/// A `struct sock *` as a hook's typed argument.
pub type Sk = *const u8;

/// One load from a typed kernel pointer.
///
/// # Safety
/// `base` must be a pointer that the verifier knows as a kernel struct with a `T` at that offset.
#[inline(always)]
pub unsafe fn typed<T: Copy>(base: *const u8, offset: &'static u32) -> T {
    // SAFETY: as the caller promises; a fault is caught by the kernel and reads 0.
    unsafe { read_volatile(base.add(frozen(offset) as usize).cast::<T>()) }
}

/// Reads a member through a plain address; zero where it cannot be read or does not exist.
#[inline(always)]
pub fn peek<T: Copy + Default>(base: u64, offset: &'static u32) -> T {
    let offset = frozen(offset);
    if base == 0 || offset == ABSENT {
        return T::default();
    }
    peek_at(base.wrapping_add(u64::from(offset)))
}

/// Reads from a plain address; zero where it cannot be read.
#[inline(always)]
pub fn peek_at<T: Copy + Default>(address: u64) -> T {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const T) }.unwrap_or_default()
}

/// A socket's address as a number: the verifier allows no arithmetic on `struct bpf_sock`, and
/// forgets the type of what a helper has copied.
#[inline(always)]
pub fn plain(sk: *const u8) -> u64 {
    let slot = sk as u64;
    peek_at(&raw const slot as u64)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub fn state(sk: Sk) -> u8 {
    // SAFETY: typed `struct sock`; mini-sockets share `struct sock_common`, where this lies.
    unsafe { typed(sk, &OFFSETS.sock__skc_state) }
}

/// A socket that is only a `struct sock_common` and some: not to be read further.
#[inline(always)]
pub fn is_mini(state: u8) -> bool {
    state == TIME_WAIT || state == NEW_SYN_RECV
}

/// Full TCP sockets only; MPTCP's own socket (262) is none.
#[inline(always)]
pub fn is_tcp(sk: Sk) -> bool {
    // SAFETY: typed `struct sock`.
    unsafe { typed::<u16>(sk, &OFFSETS.sock__sk_protocol) == IPPROTO_TCP && is_inet(sk) }
}

/// Other families number their protocols on their own.
#[inline(always)]
fn is_inet(sk: Sk) -> bool {
    // SAFETY: typed `struct sock`.
    let family: u16 = unsafe { typed(sk, &OFFSETS.sock__skc_family) };
    family == AF_INET || family == AF_INET6
}

/// The TCP socket behind what an application holds: itself, or MPTCP's first subflow; 0: neither.
#[inline(always)]
pub fn tcp_of(sk: Sk) -> u64 {
    if !is_inet(sk) {
        return 0;
    }
    // SAFETY: typed `struct sock`.
    match unsafe { typed::<u16>(sk, &OFFSETS.sock__sk_protocol) } {
        IPPROTO_TCP => sk as u64,
        IPPROTO_MPTCP => peek(sk as u64, &OFFSETS.mptcp_sock__first),
        _ => 0,
    }
}

/// The same through a plain address, as the look at all files has it.
#[inline(always)]
pub fn tcp_of_plain(sk: u64) -> u64 {
    let family: u16 = peek(sk, &OFFSETS.sock__skc_family);
    if family != AF_INET && family != AF_INET6 {
        return 0;
    }
    match peek::<u16>(sk, &OFFSETS.sock__sk_protocol) {
        IPPROTO_TCP => sk,
        IPPROTO_MPTCP => peek(sk, &OFFSETS.mptcp_sock__first),
        _ => 0,
    }
}

/// `sock_owned_by_user()`: a task is at work on this socket, and it is the current one, because
/// everything else that arrives meanwhile is put on the backlog or deferred.
#[inline(always)]
pub fn owned(sk: Sk) -> bool {
    // SAFETY: typed `struct sock`.
    unsafe { typed::<u32>(sk, &OFFSETS.sock__sk_lock_owned) != 0 }
}

#[inline(always)]
pub fn err(sk: Sk) -> i32 {
    // SAFETY: typed `struct sock`.
    unsafe { typed(sk, &OFFSETS.sock__sk_err) }
}

/// `SO_COOKIE`; on kernels without the helper only if somebody has asked for it before, else 0.
#[inline(always)]
pub fn cookie(sk: Sk) -> u64 {
    if frozen(&SETTINGS.has_socket_cookie) == 0 {
        return peek(sk as u64, &OFFSETS.sock__skc_cookie);
    }
    // SAFETY: typed `struct sock`, full.
    unsafe { bpf_get_socket_cookie(sk.cast_mut().cast()) }
}

#[inline(always)]
fn has_flag(flags: u64, bit: &'static u32) -> bool {
    present(bit) && flags & (1 << (frozen(bit) & 63)) != 0
}

/// [`end_flag`]s that the socket shows now.
#[inline(always)]
pub fn end_flags(sk: Sk) -> u32 {
    // SAFETY: typed `struct sock`.
    let (sk_flags, lingertime, socket) = unsafe {
        (
            typed::<u64>(sk, &OFFSETS.sock__skc_flags),
            typed::<u64>(sk, &OFFSETS.sock__sk_lingertime),
            typed::<u64>(sk, &OFFSETS.sock__sk_socket),
        )
    };
    let mut flags = 0;
    if has_flag(sk_flags, &OFFSETS.SOCK_DONE) {
        flags |= end_flag::DONE;
    }
    if has_flag(sk_flags, &OFFSETS.SOCK_DEAD) {
        flags |= end_flag::DEAD;
    }
    if has_flag(sk_flags, &OFFSETS.SOCK_LINGER) {
        flags |= if lingertime == 0 { end_flag::LINGER | end_flag::LINGER_ZERO } else { end_flag::LINGER };
    }
    if socket != 0 {
        flags |= end_flag::HAS_SOCKET;
    }
    let tp = tcp_sock(sk);
    // SAFETY: typed `struct tcp_sock`.
    if !tp.is_null() && unsafe { typed::<i32>(tp, &OFFSETS.tcp_sock__linger2) } < 0 {
        flags |= end_flag::LINGER2_NEGATIVE;
    }
    flags
}

/// Fills in what the timers of an ending socket had come to, and its options.
#[inline(always)]
pub fn timers(sk: Sk, out: &mut EndEvent) {
    // SAFETY: typed `struct sock`.
    unsafe {
        out.soft_err = typed(sk, &OFFSETS.sock__sk_err_soft);
        out.linger_jiffies = typed::<u64>(sk, &OFFSETS.sock__sk_lingertime) as u32;
    }
    let tp = tcp_sock(sk);
    if tp.is_null() {
        out.user_timeout_ms = 0;
        out.retransmits = 0;
        out.probes_out = 0;
        return;
    }
    // SAFETY: typed `struct tcp_sock`, which begins with `struct inet_connection_sock`.
    unsafe {
        out.user_timeout_ms = typed(tp, &OFFSETS.inet_connection_sock__icsk_user_timeout);
        out.retransmits = typed(tp, &OFFSETS.inet_connection_sock__icsk_retransmits);
        out.probes_out = typed(tp, &OFFSETS.inet_connection_sock__icsk_probes_out);
    }
}

/// Inode number of the socket's file; 0 without one.
#[inline(always)]
pub fn inode(sk: Sk) -> u64 {
    let socket: u64 = peek(sk as u64, &OFFSETS.sock__sk_socket);
    if socket == 0 {
        return 0;
    }
    let file: u64 = peek(socket, &OFFSETS.socket__file);
    let inode: u64 = peek(file, &OFFSETS.file__f_inode);
    peek(inode, &OFFSETS.inode__i_ino)
}

/// Fills in the connection's name. The port members of a dying socket are cleared early, the
/// source port that it was bound to stays.
#[inline(always)]
pub fn tuple(sk: Sk, out: &mut Tuple) {
    // SAFETY: typed `struct sock`, and `struct inet_sock` for the source port.
    unsafe {
        let family: u16 = typed(sk, &OFFSETS.sock__skc_family);
        out.family = family;
        out.pad = 0;
        out.pad2 = 0;
        if family == AF_INET6 {
            out.local = address6(sk, &OFFSETS.sock__skc_v6_rcv_saddr);
            out.remote = address6(sk, &OFFSETS.sock__skc_v6_daddr);
        } else {
            out.local = address4(typed(sk, &OFFSETS.sock__skc_rcv_saddr));
            out.remote = address4(typed(sk, &OFFSETS.sock__skc_daddr));
        }
        out.remote_port = u16::from_be(typed(sk, &OFFSETS.sock__skc_dport));
        out.local_port = u16::from_be(peek(sk as u64, &OFFSETS.inet_sock__inet_sport));
    }
    out.netns = netns(sk as u64);
}

/// Inode number of a socket's network namespace; mini-sockets have it in the same place.
#[inline(always)]
pub fn netns(sk: u64) -> u32 {
    let net: u64 = peek(sk, &OFFSETS.sock__skc_net);
    peek(net, &OFFSETS.net__inum)
}

#[inline(always)]
fn address4(address: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    let a = address.to_ne_bytes();
    bytes[0] = a[0];
    bytes[1] = a[1];
    bytes[2] = a[2];
    bytes[3] = a[3];
    bytes
}

#[inline(always)]
fn address6(sk: Sk, offset: &'static u32) -> [u8; 16] {
    peek(sk as u64, offset)
}

/// Fills in sequence numbers, byte counts and clocks.
#[inline(always)]
pub fn sizes(sk: Sk, out: &mut Sizes) {
    let tp = tcp_sock(sk);
    out.pad = 0;
    snapshot_of(sk, tp, &mut out.at);
    if tp.is_null() {
        out.bytes_sent = 0;
        out.bytes_retrans = 0;
        out.bytes_acked = 0;
        out.bytes_received = 0;
        out.first_tx_us = 0;
        out.srtt_us_x8 = 0;
        out.min_rtt_us = u32::MAX;
        out.total_retrans = 0;
        return;
    }
    // SAFETY: typed `struct tcp_sock`.
    unsafe {
        out.bytes_sent = typed(tp, &OFFSETS.tcp_sock__bytes_sent);
        out.bytes_retrans = typed(tp, &OFFSETS.tcp_sock__bytes_retrans);
        out.bytes_acked = typed(tp, &OFFSETS.tcp_sock__bytes_acked);
        out.bytes_received = typed(tp, &OFFSETS.tcp_sock__bytes_received);
        out.first_tx_us = typed(tp, &OFFSETS.tcp_sock__first_tx_mstamp);
        out.srtt_us_x8 = typed(tp, &OFFSETS.tcp_sock__srtt_us);
        out.min_rtt_us = typed(tp, &OFFSETS.tcp_sock__rtt_min);
        out.total_retrans = typed(tp, &OFFSETS.tcp_sock__total_retrans);
    }
}

/// `struct tcp_sock` of a socket; null for anything else.
#[inline(always)]
fn tcp_sock(sk: Sk) -> *const u8 {
    // SAFETY: the helper checks the type at run time and returns null for anything else.
    unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) }.cast_const().cast()
}

/// Where both directions of a connection stand now.
#[inline(always)]
pub fn snapshot(sk: Sk, out: &mut Snapshot) {
    snapshot_of(sk, tcp_sock(sk), out);
}

#[inline(always)]
fn snapshot_of(sk: Sk, tp: *const u8, out: &mut Snapshot) {
    if tp.is_null() {
        *out = Snapshot::NONE;
        return;
    }
    out.pad = 0;
    // SAFETY: no preconditions.
    out.now = unsafe { bpf_jiffies64() } as u32;
    // SAFETY: typed `struct tcp_sock` and `struct sock`.
    let (sent, received, sk_flags) = unsafe {
        out.snd_una = typed(tp, &OFFSETS.tcp_sock__snd_una);
        out.snd_nxt = typed(tp, &OFFSETS.tcp_sock__snd_nxt);
        out.write_seq = typed(tp, &OFFSETS.tcp_sock__write_seq);
        out.rcv_nxt = typed(tp, &OFFSETS.tcp_sock__rcv_nxt);
        out.copied_seq = typed(tp, &OFFSETS.tcp_sock__copied_seq);
        out.snd_wl1 = typed(tp, &OFFSETS.tcp_sock__snd_wl1);
        out.prior_una = out.snd_una;
        out.lsndtime = typed(tp, &OFFSETS.tcp_sock__lsndtime);
        out.lrcvtime = typed(tp, &OFFSETS.inet_connection_sock__lrcvtime);
        (
            typed::<u64>(tp, &OFFSETS.tcp_sock__bytes_sent),
            typed::<u64>(tp, &OFFSETS.tcp_sock__bytes_received),
            typed::<u64>(sk, &OFFSETS.sock__skc_flags),
        )
    };
    let remote_fin = has_flag(sk_flags, &OFFSETS.SOCK_DONE);
    let mut flags = snapshot_flag::TAKEN;
    if sent != 0 || out.write_seq != out.snd_nxt {
        flags |= snapshot_flag::SENT;
    }
    if received > u64::from(remote_fin) {
        flags |= snapshot_flag::RECEIVED;
    }
    if remote_fin {
        flags |= snapshot_flag::REMOTE_FIN;
    }
    out.flags = flags;
}

/// Bytes that arrived and that the application has not taken; `u32::MAX` where it cannot be told.
#[inline(always)]
pub fn unread(sk: Sk) -> u32 {
    let tp = tcp_sock(sk);
    if tp.is_null() {
        return u32::MAX;
    }
    // SAFETY: typed `struct tcp_sock` and `struct sock`.
    let (waiting, sk_flags) = unsafe {
        let waiting = typed::<u32>(tp, &OFFSETS.tcp_sock__rcv_nxt).wrapping_sub(typed::<u32>(tp, &OFFSETS.tcp_sock__copied_seq));
        (waiting, typed::<u64>(sk, &OFFSETS.sock__skc_flags))
    };
    if waiting > 0 && has_flag(sk_flags, &OFFSETS.SOCK_DONE) { waiting - 1 } else { waiting }
}

/// Whether `moved` bytes, just received or sent by the application, are the first of this
/// connection in that direction. Costs loads only, so that no success path needs a map.
#[inline(always)]
pub fn is_first_use(sk: Sk, moved: i32, received: bool) -> bool {
    let tp = tcp_sock(sk);
    if tp.is_null() {
        return false;
    }
    // SAFETY: typed `struct tcp_sock`.
    let so_far = unsafe {
        if received {
            // What arrived less what still waits: what the application ever took.
            let arrived = typed::<u64>(tp, &OFFSETS.tcp_sock__bytes_received) as u32;
            let waiting = typed::<u32>(tp, &OFFSETS.tcp_sock__rcv_nxt).wrapping_sub(typed::<u32>(tp, &OFFSETS.tcp_sock__copied_seq));
            arrived.wrapping_sub(waiting)
        } else {
            let acked = typed::<u64>(tp, &OFFSETS.tcp_sock__bytes_acked) as u32;
            let queued = typed::<u32>(tp, &OFFSETS.tcp_sock__write_seq).wrapping_sub(typed::<u32>(tp, &OFFSETS.tcp_sock__snd_una));
            acked.wrapping_add(queued)
        }
    };
    so_far == moved as u32
}

/// Payload of the segment that carried the peer's FIN, now the last in the receive queue
/// (`tcp_data_queue()` queues it before it calls `tcp_fin()`); -1 where it cannot be told.
#[inline(always)]
pub fn fin_data_bytes(sk: Sk) -> i32 {
    let sk = sk as u64;
    let queue = sk.wrapping_add(u64::from(frozen(&OFFSETS.sock__sk_receive_queue)));
    let tail: u64 = peek(sk, &OFFSETS.sock__sk_receive_queue_prev);
    if tail == 0 || tail == queue {
        return 0;
    }
    let cb = tail.wrapping_add(u64::from(frozen(&OFFSETS.sk_buff__cb)));
    let flags: u8 = peek(cb, &OFFSETS.tcp_skb_cb__tcp_flags);
    if flags & TCPHDR_FIN == 0 {
        return -1;
    }
    let length: u32 = peek(tail, &OFFSETS.sk_buff__len);
    if length == 0 {
        return 0;
    }
    // Coalesced with earlier unread data, the buffer shows the flag but keeps the header of the
    // segment that it began with: without FIN there, the length is not the FIN segment's.
    if tcp_header(tail).map_or(0, |tcp| tcp.flags) & TCPHDR_FIN == 0 {
        return -1;
    }
    length as i32
}

/// Payload of a received segment, as `tcp_v4_fill_cb()` noted it.
#[inline(always)]
pub fn segment_bytes(skb: u64) -> u32 {
    if !present(&OFFSETS.tcp_skb_cb__end_seq) || !present(&OFFSETS.sk_buff__cb) {
        return u32::MAX;
    }
    let cb = skb.wrapping_add(u64::from(frozen(&OFFSETS.sk_buff__cb)));
    let flags: u8 = peek(cb, &OFFSETS.tcp_skb_cb__tcp_flags);
    let length = peek::<u32>(cb, &OFFSETS.tcp_skb_cb__end_seq).wrapping_sub(peek(cb, &OFFSETS.tcp_skb_cb__seq));
    length.wrapping_sub(u32::from(flags & TCPHDR_FIN)).wrapping_sub(u32::from(flags & TCPHDR_SYN != 0))
}

/// The members of a TCP header that are of use.
pub struct TcpHeader {
    pub source: u16,
    pub dest: u16,
    pub flags: u8,
    /// As sent, not scaled.
    pub window: u16,
}

/// The TCP header of a received segment.
#[inline(always)]
pub fn tcp_header(skb: u64) -> Option<TcpHeader> {
    let head: u64 = peek(skb, &OFFSETS.sk_buff__head);
    let at: u16 = peek(skb, &OFFSETS.sk_buff__transport_header);
    if head == 0 || at == u16::MAX {
        return None;
    }
    let at = head.wrapping_add(u64::from(at));
    Some(TcpHeader {
        source: u16::from_be(peek_at(at)),
        dest: u16::from_be(peek_at(at.wrapping_add(2))),
        flags: peek_at(at.wrapping_add(13)),
        window: u16::from_be(peek_at(at.wrapping_add(14))),
    })
}

/// Flags of a `struct sk_buff` that TCP has taken in, by one load.
///
/// # Safety
/// `skb` must be a pointer that the verifier knows as a `struct sk_buff`.
#[inline(always)]
pub unsafe fn flags_of(skb: *const u8) -> u8 {
    // SAFETY: as the caller promises; the byte lies in the buffer's control block.
    unsafe { typed(skb, &OFFSETS.sk_buff__cb_tcp_flags) }
}

/// Flags of a segment that TCP has taken in, through a plain address.
#[inline(always)]
pub fn tcp_flags(skb: u64) -> u8 {
    let cb = skb.wrapping_add(u64::from(frozen(&OFFSETS.sk_buff__cb)));
    peek(cb, &OFFSETS.tcp_skb_cb__tcp_flags)
}

/// The acknowledgement number of a received segment.
#[inline(always)]
pub fn ack_seq(skb: u64) -> u32 {
    let cb = skb.wrapping_add(u64::from(frozen(&OFFSETS.sk_buff__cb)));
    peek(cb, &OFFSETS.tcp_skb_cb__ack_seq)
}

/// Time to live, or hop limit, of a received segment.
#[inline(always)]
pub fn ttl(skb: u64) -> u8 {
    let ip = network_header(skb);
    let version: u8 = peek_at(ip);
    peek_at(ip.wrapping_add(if version >> 4 == 6 { 7 } else { 8 }))
}

#[inline(always)]
fn network_header(skb: u64) -> u64 {
    let head: u64 = peek(skb, &OFFSETS.sk_buff__head);
    let at: u16 = peek(skb, &OFFSETS.sk_buff__network_header);
    head.wrapping_add(u64::from(at))
}

/// Behind everything that the application has written.
#[inline(always)]
pub fn write_seq(sk: Sk) -> u32 {
    let tp = tcp_sock(sk);
    // SAFETY: typed `struct tcp_sock`.
    if tp.is_null() { 0 } else { unsafe { typed(tp, &OFFSETS.tcp_sock__write_seq) } }
}

/// How far the application has come: behind what it has received, and behind what it has sent.
#[derive(Clone, Copy)]
pub struct Positions {
    pub received: u32,
    pub sent: u32,
}

/// [`Positions`] of a TCP socket right after a call that moved data; `None` where the bytes are not those of
/// the stream, because another layer (kernel TLS) lies in between.
#[inline(always)]
pub fn positions(sk: Sk) -> Option<Positions> {
    let tp = tcp_sock(sk);
    if tp.is_null() {
        return None;
    }
    // SAFETY: typed `struct tcp_sock`, which begins with `struct inet_connection_sock`, and `struct sock`.
    unsafe {
        if typed::<u64>(tp, &OFFSETS.inet_connection_sock__icsk_ulp_ops) != 0 {
            return None;
        }
        let read: u32 = typed(tp, &OFFSETS.tcp_sock__copied_seq);
        let arrived: u32 = typed(tp, &OFFSETS.tcp_sock__rcv_nxt);
        // The call that takes the last byte takes the peer's FIN with it.
        let fin = arrived == read && has_flag(typed(sk, &OFFSETS.sock__skc_flags), &OFFSETS.SOCK_DONE);
        Some(Positions { received: read.wrapping_sub(u32::from(fin)), sent: typed(tp, &OFFSETS.tcp_sock__write_seq) })
    }
}

/// `snd_wl1` and `snd_una`, which the segment that is about to be processed may change.
#[inline(always)]
pub fn window_and_acknowledgement(sk: Sk) -> (u32, u32) {
    let tp = tcp_sock(sk);
    if tp.is_null() {
        return (0, 0);
    }
    // SAFETY: typed `struct tcp_sock`.
    unsafe { (typed(tp, &OFFSETS.tcp_sock__snd_wl1), typed(tp, &OFFSETS.tcp_sock__snd_una)) }
}

/// The connection that a received segment was meant for, seen from this host.
#[inline(always)]
pub fn tuple_of_segment(skb: u64, out: &mut Tuple) {
    let ip = network_header(skb);
    let version: u8 = peek_at(ip);
    out.pad = 0;
    out.pad2 = 0;
    if version >> 4 == 6 {
        out.family = AF_INET6;
        out.remote = peek_at(ip.wrapping_add(8));
        out.local = peek_at(ip.wrapping_add(24));
    } else {
        out.family = AF_INET;
        out.remote = address4(peek_at(ip.wrapping_add(12)));
        out.local = address4(peek_at(ip.wrapping_add(16)));
    }
    out.remote_port = 0;
    out.local_port = 0;
    if let Some(tcp) = tcp_header(skb) {
        out.remote_port = tcp.source;
        out.local_port = tcp.dest;
    }
    let device: u64 = peek(skb, &OFFSETS.sk_buff__dev);
    let net: u64 = peek(device, &OFFSETS.net_device__nd_net);
    out.netns = peek(net, &OFFSETS.net__inum);
}
