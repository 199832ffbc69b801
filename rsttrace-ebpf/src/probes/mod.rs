//! One file per family of hooks. Programs are thin: they take arguments and call what is beside them.

mod calls;
mod destroy;
mod length;
mod probe;
mod process;
mod reset;
mod seed;
mod sockopt;
mod state;

use aya_ebpf::EbpfContext;
use rsttrace_common::{
    EndEvent, ResetHeader, Snapshot, SockId, Task, TaskEvent, counter, end_flag, event_flag, hook, kind, reset_flag, role,
};

use crate::{
    chosen::is_chosen,
    emit, http,
    maps::{Entry, LOST, OBSERVATION_LOST, OBSERVED, OBSERVED_BY_SPLICE, ORDERLY, REPORTED, RESET_LOST, count},
    settings::{OFFSETS, present},
    sock::{self, Sk},
    task,
};

/// What an [`EndEvent`] says beside what the socket and its entry tell.
struct End {
    hook: u8,
    state: u8,
    reason: i32,
    flags: u32,
    err: i32,
    /// The answered segment, for the port that a dying socket has already forgotten; 0: none.
    skb: u64,
}

/// Reports the end of a socket; from now on its other events are reported too.
#[inline(always)]
fn report_end(ctx: &impl EbpfContext, sk: Sk, entry: Option<&mut Entry>, end: &End) {
    let Some(mut event) = emit::reserve::<EndEvent>(ctx, end.hook, || entry.as_deref().is_some_and(is_of_chosen)) else {
        count(counter::LOST_RECORDS);
        if let Some(entry) = entry {
            entry.flags |= LOST;
        }
        return;
    };
    // SAFETY: room for one EndEvent, of which every byte is written below.
    let out = unsafe { &mut *event.as_mut_ptr() };
    out.header = emit::header(kind::END, sock::now_ns());
    out.cookie = sock::cookie(sk);
    // Where its file is known, it need not be searched for again.
    let inode = entry.as_ref().map_or(0, |entry| entry.inode);
    out.inode = if inode == 0 { sock::inode(sk) } else { inode };
    sock::tuple(sk, &mut out.tuple);
    if out.tuple.remote_port == 0 && end.skb != 0 {
        out.tuple.remote_port = sock::tcp_header(end.skb).map_or(0, |tcp| tcp.source);
    }
    sock::sizes(sk, &mut out.sizes);
    out.hook = end.hook;
    out.state = end.state;
    out.reason = end.reason;
    out.err = end.err;
    out.pad = [0; 2];
    out.segment_bytes = if end.skb == 0 { UNKNOWN_BYTES } else { sock::segment_bytes(end.skb) };
    sock::timers(sk, out);
    let mut flags = end.flags | sock::end_flags(sk);
    if present(&OFFSETS.tcp_sock__is_mptcp) && sock::peek::<u8>(sk as u64, &OFFSETS.tcp_sock__is_mptcp) & 1 != 0 {
        flags |= end_flag::MPTCP;
    }
    match entry {
        Some(entry) => {
            entry.flags |= REPORTED;
            out.id = SockId { sk: sk as u64, born_ns: entry.born_ns };
            out.opened_ns = entry.opened_ns;
            out.first_fin_ns = entry.first_fin_ns;
            out.second_fin_ns = entry.second_fin_ns;
            out.role = entry.role;
            out.first_fin = entry.first_fin;
            out.fin_data_bytes = entry.fin_data_bytes;
            // tcp_probe looks at a RST in ESTABLISHED only; an earlier one may have been refused.
            let accepted = end.state == sock::ESTABLISHED || entry.reset.flags & reset_flag::ACCEPTED != 0;
            out.reset = if end.hook == hook::TCP_RECEIVE_RESET && accepted { entry.reset } else { ResetHeader::NONE };
            out.remote_fin = entry.remote_fin;
            out.local_fin = entry.local_fin;
            out.owner = entry.owner;
            out.closer = entry.closer;
        }
        None => {
            flags |= end_flag::UNTRACKED;
            out.id = SockId { sk: sk as u64, born_ns: 0 };
            out.opened_ns = 0;
            out.first_fin_ns = 0;
            out.second_fin_ns = 0;
            out.role = role::UNKNOWN;
            out.first_fin = 0;
            out.fin_data_bytes = -1;
            out.reset = ResetHeader::NONE;
            out.remote_fin = Snapshot::NONE;
            out.local_fin = Snapshot::NONE;
            task::none(&mut out.owner);
            task::none(&mut out.closer);
        }
    }
    out.flags = flags;
    let id = out.id;
    event.submit(0);
    // Without an entry nothing that follows can be matched.
    if id.born_ns != 0 {
        http::report(ctx, sk, end.state, end.hook, id);
    }
}

/// Whether a socket is held or was closed by a chosen process.
#[inline(always)]
fn is_of_chosen(entry: &Entry) -> bool {
    is_chosen(entry.owner.tgid) || is_chosen(entry.closer.tgid)
}

/// `TaskEvent::bytes` where there is nothing to count.
const UNKNOWN_BYTES: u32 = u32::MAX;

/// Reports what happens to a socket after its end was reported. Without an entry it was destroyed a moment
/// ago: user space knows it by its address, and would tell its end wrongly without this.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn report_after(
    ctx: &impl EbpfContext,
    kind: u16,
    hook: u8,
    sk: u64,
    entry: Option<&Entry>,
    value: i32,
    flags: u32,
    bytes: u32,
    fill: impl FnOnce(&mut Task),
) -> bool {
    let Some(mut event) = emit::reserve::<TaskEvent>(ctx, hook, || entry.is_none_or(is_of_chosen)) else {
        return false;
    };
    // SAFETY: room for one TaskEvent, of which every byte is written below.
    let out = unsafe { &mut *event.as_mut_ptr() };
    out.header = emit::header(kind, sock::now_ns());
    out.id = SockId { sk, born_ns: entry.map_or(0, |entry| entry.born_ns) };
    out.value = value;
    out.flags = flags;
    out.hook = hook;
    out.pad = [0; 3];
    out.bytes = bytes;
    fill(&mut out.task);
    out.process_comm = task::process_comm(&out.task);
    event.submit(0);
    true
}

/// Reports the first system call that returned the error of an ended socket.
/// `held` is the socket as the application holds it: MPTCP's, or the same.
#[inline(always)]
fn report_observed(ctx: &impl EbpfContext, hook: u8, sk: u64, held: u64, errno: i32) {
    let Some(entry) = crate::maps::find(sk) else { return };
    // In order is no error: EPIPE after both FINs says that the application writes on.
    if entry.flags & ORDERLY != 0 {
        return;
    }
    if entry.flags & REPORTED == 0 || entry.flags & OBSERVED != 0 {
        if hook == hook::GETSOCKOPT && entry.flags & REPORTED == 0 && sock::peek::<u8>(sk, &OFFSETS.sock__skc_state) == sock::SYN_SENT {
            // tcp_v4_err() on a socket that connect() is at work on: the error was soft, the
            // connection goes on, but who asks for it gives up.
            entry.soft_errno = errno;
            task::current(&mut entry.taker, held);
        }
        return;
    }
    // A bad buffer or flag fails too, and says nothing about the connection. connect(AF_UNSPEC)
    // leaves ECONNRESET behind after the end.
    if errno != entry.errno && errno != EPIPE && errno != ECONNRESET {
        return;
    }
    let mut splicing = false;
    let reported = report_after(ctx, kind::OBSERVED, hook, sk, Some(&*entry), errno, 0, UNKNOWN_BYTES, |out| {
        task::current(out, held);
        splicing = task::is_splicing(out);
    });
    if !reported {
        entry.flags |= OBSERVATION_LOST;
    }
    // What follows the error that a splice may have kept shows whether it did.
    entry.flags |= if splicing && entry.flags & OBSERVED_BY_SPLICE == 0 { OBSERVED_BY_SPLICE } else { OBSERVED };
}

/// Whoever holds the socket's lock acts; else a timer or a segment does, and the task that happens
/// to be current has nothing to do with it.
#[inline(always)]
fn acting(out: &mut Task, sk: Sk) {
    if sock::owned(sk) {
        task::current(out, 0);
    } else {
        task::none(out);
    }
}

/// [`event_flag`]s of a release.
#[inline(always)]
fn release_flags(entry: &Entry) -> u32 {
    let mut flags = 0;
    if entry.flags & OBSERVATION_LOST != 0 {
        flags |= event_flag::OBSERVATION_LOST;
    }
    if entry.flags & RESET_LOST != 0 {
        flags |= event_flag::RESET_LOST;
    }
    flags
}

/// `include/uapi/asm-generic/errno.h`
const EPIPE: i32 = 32;
const ECONNABORTED: i32 = 103;
const ECONNRESET: i32 = 104;
const ECONNREFUSED: i32 = 111;

/// The error that `tcp_reset()` leaves in `sk_err`.
#[inline(always)]
fn of_reset(state: u8) -> i32 {
    match state {
        sock::SYN_SENT => ECONNREFUSED,
        sock::CLOSE_WAIT => EPIPE,
        _ => ECONNRESET,
    }
}
