//! What user space decides before the programs are loaded.

use core::ptr::read_volatile;

use rsttrace_common::{ABSENT, Offsets, Settings};

/// Offsets of kernel struct members, overridden by the loader.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::ABSENT;

/// Switches, overridden by the loader.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings {
    want_fin: 0,
    has_task_pt_regs: 0,
    pt_regs_on_stack: 0,
    has_reset_reason: 0,
    has_socket_cookie: 0,
    own_tgid: 0,
    http: 0,
    shared_bytes: 0,
};

/// A frozen value, as the verifier's constant instead of the compiler's.
#[inline(always)]
pub fn frozen(value: &'static u32) -> u32 {
    // SAFETY: the reference is valid; volatile keeps the compiler from using the initial value.
    unsafe { read_volatile(value) }
}

/// Whether this kernel has the member at this offset.
#[inline(always)]
pub fn present(offset: &'static u32) -> bool {
    frozen(offset) != ABSENT
}
