//! The structs of rsttrace-common out of the ring's bytes.

use rsttrace_common::{EndEvent, ExecEvent, Header, SockId, StrayEvent, TaskEvent};

/// # Safety
/// Any bytes at all are a value: integers and arrays of them, and nothing between.
pub unsafe trait Abi: Copy {}

// SAFETY: rsttrace-common makes its structs of nothing else, and pads them explicitly.
unsafe impl Abi for Header {}
// SAFETY: as above.
unsafe impl Abi for EndEvent {}
// SAFETY: as above.
unsafe impl Abi for TaskEvent {}
// SAFETY: as above.
unsafe impl Abi for StrayEvent {}
// SAFETY: as above.
unsafe impl Abi for SockId {}
// SAFETY: as above.
unsafe impl Abi for ExecEvent {}

/// What the bytes begin with; `None` where they are too few.
pub fn first<T: Abi>(bytes: &[u8]) -> Option<T> {
    // SAFETY: so many bytes are there, at whatever alignment, and any bytes are a `T`.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
