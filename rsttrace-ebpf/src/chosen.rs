//! Processes that user space has chosen (`--pid` and its like), and their descendants: their events are kept
//! before others, and with `--http` their HTTP is looked at.

use crate::maps::CHOSEN;

/// Whether this process is chosen; 0 is none.
#[inline(always)]
pub fn is_chosen(tgid: u32) -> bool {
    // SAFETY: a map value of eight bytes; a stale byte is as good.
    CHOSEN.get_ptr(tgid / 8).is_some_and(|bytes| unsafe { bytes.cast::<u8>().add((tgid & 7) as usize).read_volatile() } != 0)
}

#[inline(always)]
pub fn choose(tgid: u32, chosen: bool) {
    if let Some(bytes) = CHOSEN.get_ptr_mut(tgid / 8) {
        // SAFETY: as above.
        unsafe { bytes.cast::<u8>().add((tgid & 7) as usize).write_volatile(chosen.into()) };
    }
}
