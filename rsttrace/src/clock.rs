//! The clocks that the kernel half and user space share.

use rustix::time::ClockId;

/// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns()` reads it.
pub fn monotonic_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// The same as of the last tick: for questions about seconds, because it takes a fifth of the time to read.
pub fn coarse_ns() -> u64 {
    read(ClockId::MonotonicCoarse)
}

/// How long the calling thread has been on a CPU.
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// By how much `CLOCK_BOOTTIME` is ahead of it: for how long the machine was suspended.
pub fn boot_offset_ns() -> u64 {
    read(ClockId::Boottime).saturating_sub(monotonic_ns())
}

/// The length of a jiffy: the coarse clock advances with it (`TICK_NSEC`).
pub fn tick_ns() -> u64 {
    let resolution = rustix::time::clock_getres(ClockId::MonotonicCoarse);
    u64::try_from(resolution.tv_nsec).unwrap_or(0).max(1)
}
