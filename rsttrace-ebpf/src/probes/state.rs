//! `inet_sock_set_state`: opens, FINs and ends. No kernel has a tracepoint in `tcp_fin()`; every
//! first FIN shows as a change of state.

use aya_ebpf::{bindings::BPF_ANY, macros::btf_tracepoint, programs::BtfTracePointContext};
use rsttrace_common::{
    CLOSE_NOTIFY, Snapshot, Speaker, counter, end_flag, event_flag, first_fin, hook, kind, role, snapshot_flag, task_flag,
};

use super::{ECONNABORTED, End, UNKNOWN_BYTES, of_reset, release_flags, report_after, report_end};
use crate::{
    http,
    maps::{self, DESTROYED, Entry, FIN_SEEN, GOODBYE, LOST, OBSERVED, ORDERLY, REPORTED, count, find_or_begin},
    settings::{SETTINGS, frozen},
    sock::*,
    task,
};

/// `void (const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sk: Sk = ctx.arg(0);
    let old = ctx.arg::<u32>(1) as u8;
    let new = ctx.arg::<u32>(2) as u8;
    // MPTCP's own socket passes here too, and repeats states.
    if old == new || old == LISTEN && new == CLOSE || !is_tcp(sk) {
        return 0;
    }
    match new {
        SYN_SENT if old == CLOSE => opened_by_us(&ctx, sk),
        SYN_RECV if old == LISTEN => opened_by_peer(sk),
        FIN_WAIT1 => fin(sk, first_fin::LOCAL),
        LAST_ACK => fin_in_answer(sk),
        CLOSE_WAIT => fin(sk, first_fin::REMOTE),
        CLOSING => fin(sk, first_fin::BOTH),
        CLOSE => closed(&ctx, sk, old),
        _ => {}
    }
    0
}

/// `tcp_v4_connect()`: the caller is the first owner. The same socket may have had a life before.
#[inline(always)]
fn opened_by_us(ctx: &BtfTracePointContext, sk: Sk) {
    let key = sk as u64;
    http::forget(key);
    if let Some(entry) = maps::find(key) {
        // One kept beyond its destruction was counted then: this is another socket at its address.
        if entry.flags & (REPORTED | LOST | ORDERLY | DESTROYED) == ORDERLY {
            count(counter::ORDERLY);
        }
        if entry.flags & REPORTED != 0 {
            let flags = release_flags(entry) | event_flag::REOPENED;
            report_after(ctx, kind::RELEASED, hook::INET_SOCK_SET_STATE, key, Some(&*entry), err(sk), flags, UNKNOWN_BYTES, |out| {
                task::current(out, 0);
            });
        }
    }
    if let Some(entry) = opened(key, role::CLIENT) {
        task::current(&mut entry.owner, key);
        task::lead(&mut entry.owner);
        entry.inode = inode(sk);
    }
}

/// `tcp_create_openreq_child()`: nobody owns it before accept().
#[inline(always)]
fn opened_by_peer(sk: Sk) {
    // The address may have been another's, whose destruction was not seen.
    http::forget(sk as u64);
    let _ = opened(sk as u64, role::SERVER);
}

/// A new life. Without room for its past it is counted here, once, and again told from its end on.
#[inline(always)]
fn opened(key: u64, role: u8) -> Option<&'static mut Entry> {
    let now = now_ns();
    let Some(entry) = maps::begin(key, now, BPF_ANY) else {
        count(counter::UNTRACKED);
        return None;
    };
    entry.opened_ns = now;
    entry.role = role;
    Some(entry)
}

/// The first FIN of a connection, or (BOTH) a second that crossed the first.
#[inline(always)]
fn fin(sk: Sk, by: u8) {
    let now = now_ns();
    let Some(entry) = find_or_begin(sk as u64) else { return };
    if by == first_fin::BOTH {
        entry.second_fin_ns = now;
    } else {
        entry.first_fin_ns = now;
    }
    entry.first_fin = by;
    if by == first_fin::LOCAL {
        note_closer(sk, entry);
        snapshot(sk, &mut entry.local_fin);
        mark_goodbye(entry.goodbye_seq, entry.flags, &mut entry.local_fin);
    } else {
        entry.fin_data_bytes = fin_data_bytes(sk);
        snapshot(sk, &mut entry.remote_fin);
        mark_goodbye(entry.goodbye_seq, entry.flags, &mut entry.remote_fin);
        // A write that has kept this segment waiting has not returned, nor told its size yet.
        if owned(sk) && CLOSE_NOTIFY.contains(&entry.remote_fin.write_seq.wrapping_sub(entry.remote_fin.snd_una)) {
            entry.remote_fin.flags |= snapshot_flag::GOODBYE;
        }
        if entry.flags & FIN_SEEN != 0 {
            entry.remote_fin.snd_wl1 = entry.wl1_before_fin;
            entry.remote_fin.prior_una = entry.una_before_fin;
            entry.remote_fin.flags |= snapshot_flag::BEFORE_FIN;
        }
    }
}

#[inline(always)]
fn mark_goodbye(goodbye_seq: u32, flags: u32, at: &mut Snapshot) {
    if flags & GOODBYE != 0 && goodbye_seq == at.write_seq {
        at.flags |= snapshot_flag::GOODBYE;
    }
}

/// Our FIN after the peer's.
#[inline(always)]
fn fin_in_answer(sk: Sk) {
    let now = now_ns();
    let Some(entry) = find_or_begin(sk as u64) else { return };
    entry.second_fin_ns = now;
    entry.first_fin = first_fin::REMOTE;
    note_closer(sk, entry);
    snapshot(sk, &mut entry.local_fin);
    mark_goodbye(entry.goodbye_seq, entry.flags, &mut entry.local_fin);
}

/// Only `tcp_close()` and `tcp_shutdown()` send our FIN, so the current task is the closer.
#[inline(always)]
fn note_closer(sk: Sk, entry: &mut Entry) {
    task::current(&mut entry.closer, 0);
    if entry.inode == 0 {
        entry.inode = inode(sk);
    }
    // MPTCP closes its subflows from a worker.
    if entry.owner.tgid == 0 && entry.closer.flags & task_flag::KTHREAD == 0 {
        entry.owner = entry.closer;
        task::lead(&mut entry.owner);
    }
}

/// The end, unless a RST has announced it before.
#[inline(always)]
fn closed(ctx: &BtfTracePointContext, sk: Sk, old: u8) {
    let now = now_ns();
    let error = err(sk);
    let Some(entry) = find_or_begin(sk as u64) else {
        // If a RST did it, tcp_receive_reset has said so already.
        if error != of_reset(old) && (error != 0 || aborts(old)) {
            report_end(ctx, sk, None, &end_in(old, error));
        }
        return;
    };
    entry.last_state = old;
    entry.errno = error;
    if entry.flags & LOST != 0 {
        return;
    }
    if entry.flags & REPORTED != 0 {
        // As tcp_reset() sets it: user space knows the rule.
        if error != of_reset(old) {
            report_after(ctx, kind::CLOSED, hook::INET_SOCK_SET_STATE, sk as u64, Some(&*entry), error, 0, UNKNOWN_BYTES, task::none);
        }
        return;
    }
    if error == 0 && !aborts(old) {
        if old != SYN_RECV {
            closed_in_order(ctx, sk, entry, old, now);
        }
        // A child that found no room in the accept queue was never anybody's connection.
        return;
    }
    // tcp_abort() is the one error that a task makes.
    if error == 0 || error == ECONNABORTED && owned(sk) {
        task::current(&mut entry.closer, 0);
    }
    let soft = if old == SYN_SENT && error == 0 { entry.soft_errno } else { 0 };
    if soft == 0 {
        report_end(ctx, sk, Some(entry), &end_in(old, error));
        return;
    }
    // Whoever took the ICMP error has given the connection up for it.
    let taker = entry.taker;
    entry.flags |= OBSERVED;
    report_end(ctx, sk, Some(&mut *entry), &end_in(old, soft));
    report_after(ctx, kind::OBSERVED, hook::GETSOCKOPT, sk as u64, Some(&*entry), soft, 0, UNKNOWN_BYTES, |out| *out = taker);
}

/// Both FINs, or an orphan that goes on as a TIME_WAIT mini-socket. A RST may still follow, and
/// then tcp_send_reset reports it.
#[inline(always)]
fn closed_in_order(ctx: &BtfTracePointContext, sk: Sk, entry: &mut Entry, old: u8, now: u64) {
    entry.flags |= ORDERLY;
    let report = frozen(&SETTINGS.want_fin) != 0 || may_hurt(sk, entry);
    if entry.first_fin != first_fin::NONE && entry.second_fin_ns == 0 {
        // The peer's FIN after ours has no change of state of its own.
        entry.second_fin_ns = now;
        if report && end_flags(sk) & end_flag::DONE != 0 {
            entry.fin_data_bytes = fin_data_bytes(sk);
        }
    }
    if report {
        report_end(ctx, sk, Some(entry), &end_in(old, 0));
    }
}

/// Whether a request may have been left without its answer, so that user space must look at this
/// end in order. It decides; here is only what keeps ordinary ends in the kernel: whoever is to
/// speak next has not, since the first FIN.
#[inline(always)]
fn may_hurt(sk: Sk, entry: &Entry) -> bool {
    let (first, patient) = match entry.first_fin {
        first_fin::REMOTE => (&entry.remote_fin, entry.role == role::SERVER),
        first_fin::LOCAL => (&entry.local_fin, entry.role == role::CLIENT || entry.closer.flags & task_flag::EXITING == 0),
        _ => return false,
    };
    let (requester, since) = match entry.role {
        role::CLIENT => (Speaker::Local, first.now.wrapping_sub(first.lsndtime)),
        role::SERVER => (Speaker::Remote, first.now.wrapping_sub(first.lrcvtime)),
        _ => return false,
    };
    // A FIN right behind the last bytes waits for no answer.
    if first.last_speaker() != Some(requester) || patient && since < 2 {
        return false;
    }
    // The answer may have followed the FIN.
    if entry.role == role::CLIENT {
        let mut end = Snapshot::NONE;
        snapshot(sk, &mut end);
        end.rcv_nxt.wrapping_sub(first.rcv_nxt) <= 1
    } else {
        entry.local_fin.write_seq == first.write_seq
    }
}

#[inline(always)]
fn end_in(state: u8, err: i32) -> End {
    End { hook: hook::INET_SOCK_SET_STATE, state, reason: -1, flags: 0, err, skb: 0 }
}

/// To CLOSE from here without an error, it was us: an abort, or a connect() given up before the
/// peer answered. tcp_disconnect() of a listener's queue holds no lock, and is a task's doing too.
#[inline(always)]
fn aborts(old: u8) -> bool {
    old == ESTABLISHED || old == CLOSE_WAIT || old == SYN_SENT
}
