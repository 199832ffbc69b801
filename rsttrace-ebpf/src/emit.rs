//! Reserving room in the ring buffer, and accounting for it when there is none.

use aya_ebpf::{EbpfContext, maps::ring_buf::RingBufEntry};
use aya_log_ebpf::warn;
use rsttrace_common::{ABI, Header, hook};

use crate::maps::{EVENTS, count};

/// Room for one event, to be filled in place; a full ring is counted for this hook.
#[inline(always)]
pub fn reserve<T: 'static>(ctx: &impl EbpfContext, hook: u8) -> Option<RingBufEntry<T>> {
    let entry = EVENTS.reserve::<T>(0);
    if entry.is_none() {
        count(u32::from(hook));
        if (hook as usize) < hook::COUNT {
            warn!(ctx, "ring buffer full: event of hook {} lost", hook);
        }
    }
    entry
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
