//! Maps, and the entry that remembers a socket's past.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use rsttrace_common::{MAX_PROCESSES, ResetHeader, Snapshot, Task, counter};

use crate::{http::Seen, sock::now_ns};

/// Events to user space; `--buffer` sets the size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Open sockets by the address of their `struct sock`, from the first state change to
/// `tcp_destroy_sock`; `--max-sockets` sets the capacity. Memory is taken per entry.
#[map]
pub static SOCKETS: HashMap<u64, Entry> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);

/// Counters, see [`rsttrace_common::counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// The socket whose entry outlives its destruction on this CPU, because a RST may follow at once.
#[map]
pub static DYING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A byte for each process number: it is chosen. User space writes it through memory. Bytes,
/// because bits would take an atomic OR, which 5.10 does not have.
#[map]
pub static CHOSEN: Array<[u8; 8]> = Array::with_max_entries(MAX_PROCESSES / 8, BPF_F_MMAPABLE);

/// What was seen of HTTP, by the address of the `struct sock`; memory is taken per entry.
#[map]
pub static HTTP: HashMap<u64, Seen> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);

/// The end reached user space.
pub const REPORTED: u32 = 1;
/// The end was abnormal or asked for, but found the ring full: nothing more of it is reported.
pub const LOST: u32 = 2;
/// CLOSE was reached in order.
pub const ORDERLY: u32 = 4;
/// An error was returned by a system call.
pub const OBSERVED: u32 = 8;
/// ... by sendfile() or splice(), which keeps it to itself if it has moved bytes before.
pub const OBSERVED_BY_SPLICE: u32 = 128;
/// An observation found the ring full.
pub const OBSERVATION_LOST: u32 = 16;
/// The event of a RST that was sent found the ring full.
pub const RESET_LOST: u32 = 256;
/// Destroyed; kept only for a RST that may follow.
pub const DESTROYED: u32 = 32;
/// Found at the start: its owner is its only holder or not known, and the first use tells better.
pub const SEEDED: u32 = 64;

/// The segment with the peer's FIN bore no payload, and was looked at before it was processed.
pub const FIN_SEEN: u32 = 512;

/// A write of a goodbye's size was made.
pub const GOODBYE: u32 = 1024;

/// What the end of a socket needs to know about its past.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    pub born_ns: u64,
    /// 0: older than the tracer.
    pub opened_ns: u64,
    pub first_fin_ns: u64,
    pub second_fin_ns: u64,
    /// Number of the socket's file, as long as it had one; 0: not met yet.
    pub inode: u64,
    pub owner: Task,
    pub closer: Task,
    pub taker: Task,
    pub remote_fin: Snapshot,
    pub local_fin: Snapshot,
    /// Of the latest RST that arrived, where it was looked at.
    pub reset: ResetHeader,
    /// `snd_wl1` and `snd_una` as the peer's FIN found them ([`FIN_SEEN`]).
    pub wl1_before_fin: u32,
    pub una_before_fin: u32,
    /// `write_seq` behind the latest write of a goodbye's size ([`GOODBYE`]).
    pub goodbye_seq: u32,
    pub flags: u32,
    pub fin_data_bytes: i32,
    /// `sk_err` as the end left it.
    pub errno: i32,
    /// An ICMP error that `taker` took by getsockopt(SO_ERROR) while connecting.
    pub soft_errno: i32,
    pub role: u8,
    pub first_fin: u8,
    /// State before CLOSE, once there.
    pub last_state: u8,
    pub pad: [u8; 1],
}

const NO_TASK: Task = Task { tgid: 0, tid: 0, parent_tgid: 0, flags: 0, syscall: -1, fd: -1, comm: [0; 16] };

/// Template for new entries: copied by the map, which spares the 512-byte stack.
#[unsafe(no_mangle)]
static BLANK: Entry = Entry {
    born_ns: 0,
    opened_ns: 0,
    first_fin_ns: 0,
    second_fin_ns: 0,
    inode: 0,
    owner: NO_TASK,
    closer: NO_TASK,
    taker: NO_TASK,
    remote_fin: Snapshot::NONE,
    local_fin: Snapshot::NONE,
    reset: ResetHeader::NONE,
    wl1_before_fin: 0,
    una_before_fin: 0,
    goodbye_seq: 0,
    flags: 0,
    fin_data_bytes: -1,
    errno: 0,
    soft_errno: 0,
    role: 0,
    first_fin: 0,
    last_state: 0,
    pad: [0; 1],
};

/// The entry of a socket, if it has one.
#[inline(always)]
pub fn find(sk: u64) -> Option<&'static mut Entry> {
    let entry = SOCKETS.get_ptr_mut(sk)?;
    // SAFETY: a map value, valid until the program returns (RCU); the hooks of one socket run
    // under its lock, and fields shared beyond it are single words.
    Some(unsafe { &mut *entry })
}

/// A blank entry; `mode` says what becomes of an earlier one: `BPF_ANY` replaces it, with
/// `BPF_NOEXIST` it stays and this yields nothing.
#[inline(always)]
pub fn begin(sk: u64, now_ns: u64, mode: u32) -> Option<&'static mut Entry> {
    SOCKETS.insert(sk, &BLANK, u64::from(mode)).ok()?;
    let entry = find(sk)?;
    entry.born_ns = now_ns;
    Some(entry)
}

/// The entry of a socket, blank if it had none.
#[inline(always)]
pub fn find_or_begin(sk: u64) -> Option<&'static mut Entry> {
    if let Some(entry) = find(sk) {
        if entry.flags & DESTROYED == 0 {
            return Some(entry);
        }
    }
    begin(sk, now_ns(), BPF_ANY)
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(index: u32) {
    add(index, 1);
}

/// Adds to a counter, modulo 2^64.
#[inline(always)]
pub fn add(index: u32, n: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: per-CPU value, valid until the program returns. A program that interrupts
        // another on this CPU may lose an increment; BPF tracing programs do not nest there.
        unsafe { *counter = (*counter).wrapping_add(n) };
    }
}
