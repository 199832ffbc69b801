//! The processes whose HTTP the kernel half looks at: a table of bytes that is shared by memory, because the
//! sandbox allows no map to be changed by a system call.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU8, Ordering},
};

use rsttrace_common::MAX_PROCESSES;

/// One byte for each process number.
const BYTES: usize = MAX_PROCESSES as usize;

/// The table in our memory.
pub struct Chosen {
    bytes: NonNull<AtomicU8>,
}

impl Chosen {
    /// Maps the kernel half's table into memory.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map(table: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address of the kernel's choice, of a map that was made with
        // BPF_F_MMAPABLE and this size.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), BYTES, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, table.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast()).map(|bytes| Self { bytes }).ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Notes whether a process is chosen. Numbers beyond the kernel's limit are nobody's.
    pub fn set(&self, tgid: u32, chosen: bool) {
        if tgid < MAX_PROCESSES {
            // SAFETY: within the mapping, which lives as long as this; the kernel half writes single
            // bytes too.
            unsafe { self.bytes.add(tgid as usize).as_ref() }.store(chosen.into(), Ordering::Relaxed);
        }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, to which no reference is left.
        unsafe { libc::munmap(self.bytes.as_ptr().cast(), BYTES) };
    }
}
