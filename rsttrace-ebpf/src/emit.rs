//! Reserving room in the ring buffer, and accounting for it when there is none.

use aya_ebpf::{EbpfContext, bindings::BPF_RB_AVAIL_DATA, maps::ring_buf::RingBufEntry};
use aya_log_ebpf::warn;
use rsttrace_common::{ABI, Header, hook};

use crate::{
    maps::{EVENTS, count},
    settings::{SETTINGS, frozen},
};

/// Room for one event, to be filled in place; a full ring is counted for this hook. `chosen` tells whether it
/// is a chosen process's, for which the last part of the ring is kept.
#[inline(always)]
pub fn reserve<T: 'static>(ctx: &impl EbpfContext, hook: u8, chosen: impl FnOnce() -> bool) -> Option<RingBufEntry<T>> {
    let entry = if only_for_chosen() && !chosen() { None } else { EVENTS.reserve::<T>(0) };
    if entry.is_none() {
        count(u32::from(hook));
        warn!(ctx, "ring buffer full: an event of {} is lost", name(hook));
    }
    entry
}

#[inline(always)]
fn only_for_chosen() -> bool {
    let shared = frozen(&SETTINGS.shared_bytes);
    shared != 0 && EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= u64::from(shared)
}

/// Sends an event of a chosen process that lies in a map; a full ring is counted for this hook.
#[inline(always)]
pub fn send<T>(ctx: &impl EbpfContext, hook: u8, event: &T) {
    if EVENTS.output::<T>(event, 0).is_err() {
        count(u32::from(hook));
        warn!(ctx, "ring buffer full: an event of {} is lost", name(hook));
    }
}

/// The hook's name; folded away, because every caller's hook is a constant.
#[inline(always)]
fn name(hook: u8) -> &'static str {
    match hook {
        hook::TCP_RECEIVE_RESET => "tcp_receive_reset",
        hook::TCP_SEND_RESET => "tcp_send_reset",
        hook::INET_SOCK_SET_STATE => "inet_sock_set_state",
        hook::SOCK_RECV_LENGTH => "sock_recv_length",
        hook::SOCK_SEND_LENGTH => "sock_send_length",
        hook::TCP_DESTROY_SOCK => "tcp_destroy_sock",
        hook::GETSOCKOPT => "cgroup/getsockopt",
        hook::SCHED_PROCESS_EXEC => "sched_process_exec",
        _ => "sys_exit",
    }
}

/// The header of an event.
#[inline(always)]
pub fn header(kind: u16, ts_ns: u64) -> Header {
    Header {
        kind,
        abi: ABI,
        // SAFETY: no preconditions.
        cpu: unsafe { aya_ebpf::helpers::generated::bpf_get_smp_processor_id() },
        ts_ns,
    }
}
