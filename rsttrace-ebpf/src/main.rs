//! Kernel half of rsttrace. The path of an event: a hook in `probes/` rejects what is not its
//! business, `sock` and `task` read what vanishes, `emit` hands it to the ring buffer.
//!
//! Offsets of kernel structs come from [`settings`]: user space reads them from the running
//! kernel's BTF and freezes them before loading, so the verifier sees constants and prunes every
//! branch that this kernel does not need.
#![no_std]
#![no_main]

mod chosen;
mod emit;
mod http;
mod maps;
mod probes;
mod settings;
mod sock;
mod task;

/// The helpers used are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
