//! A receive by io_uring, with nothing between it and the kernel.

use std::{
    mem::size_of,
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::call::{Errno, check, close};

/// `include/uapi/linux/io_uring.h`
const OFF_SQ_RING: i64 = 0;
const OFF_CQ_RING: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;
const ENTER_GETEVENTS: u32 = 1;
const OP_RECV: u8 = 27;

#[repr(C)]
#[derive(Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv1: u32,
    user_addr: u64,
}

#[repr(C)]
#[derive(Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    resv1: u32,
    user_addr: u64,
}

#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq_off: SqOffsets,
    cq_off: CqOffsets,
}

#[repr(C)]
#[derive(Default)]
struct Sqe {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    msg_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

#[repr(C)]
struct Cqe {
    user_data: u64,
    res: i32,
    flags: u32,
}

/// Submits one `IORING_OP_RECV` and waits for it, in one `io_uring_enter`.
pub fn recv(fd: RawFd, len: u32) -> Result<i32, Errno> {
    let mut params = Params::default();
    // SAFETY: parameters of ours, as the kernel lays them out.
    let ring = check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, &raw mut params) })? as RawFd;
    let sq_len = params.sq_off.array as usize + params.sq_entries as usize * size_of::<u32>();
    let cq_len = params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Cqe>();
    let sq = map(ring, OFF_SQ_RING, sq_len)?;
    let cq = map(ring, OFF_CQ_RING, cq_len)?;
    let sqes = map(ring, OFF_SQES, params.sq_entries as usize * size_of::<Sqe>())?;
    let mut buffer = vec![0u8; len as usize];
    let request = Sqe { opcode: OP_RECV, fd, addr: buffer.as_mut_ptr() as u64, len, ..Sqe::default() };
    // SAFETY: the rings are mapped with the sizes and offsets that the kernel gave, and this is
    // their only user.
    let result = unsafe {
        sqes.cast::<Sqe>().write(request);
        sq.add(params.sq_off.array as usize).cast::<u32>().write(0);
        word(sq, params.sq_off.tail).store(1, Ordering::Release);
        let enter = libc::syscall(libc::SYS_io_uring_enter, ring, 1, 1, ENTER_GETEVENTS, ptr::null::<libc::sigset_t>(), 0);
        check(enter)?;
        let head = word(cq, params.cq_off.head).load(Ordering::Relaxed);
        let mask = word(cq, params.cq_off.ring_mask).load(Ordering::Relaxed);
        let cqes = cq.add(params.cq_off.cqes as usize).cast::<Cqe>();
        (*cqes.add((head & mask) as usize)).res
    };
    close(ring)?;
    if result < 0 { Err(Errno(-result)) } else { Ok(result) }
}

/// # Safety
/// `base` must be a mapped ring that has a word at that offset.
unsafe fn word<'a>(base: *mut u8, offset: u32) -> &'a AtomicU32 {
    // SAFETY: as the caller promises.
    unsafe { &*base.add(offset as usize).cast::<AtomicU32>() }
}

/// The mapping stays until the process ends.
fn map(ring: RawFd, offset: i64, len: usize) -> Result<*mut u8, Errno> {
    // SAFETY: a new mapping.
    let address = unsafe {
        libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE, ring, offset)
    };
    if address == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(address.cast()) }
}
