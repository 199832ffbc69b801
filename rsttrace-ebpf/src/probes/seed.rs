//! `iter/task_file`: at the start, every descriptor of every process once, so that connections
//! older than the tracer have an owner. All network namespaces at once, which `iter/tcp` is not.

use aya_ebpf::bindings::BPF_NOEXIST;
use rsttrace_common::counter;

use crate::{
    maps::{self, SEEDED},
    settings::OFFSETS,
    sock::{self, CLOSE, LISTEN, is_mini, peek, typed},
    task,
};

/// `include/uapi/linux/magic.h`
const SOCKFS_MAGIC: u64 = 0x534F_434B;

/// `struct bpf_iter__task_file` (5.8+).
#[repr(C)]
struct TaskFile {
    meta: *const u8,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

/// Called once per descriptor, and once more at the end with null.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
fn seed_owners(ctx: *mut TaskFile) -> i32 {
    // SAFETY: the iterator's context.
    let (task, fd, file) = unsafe { ((*ctx).task, (*ctx).fd, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: typed `struct file`.
    let (inode, socket) = unsafe { (typed::<u64>(file, &OFFSETS.file__f_inode), typed::<u64>(file, &OFFSETS.file__private_data)) };
    let superblock: u64 = peek(inode, &OFFSETS.inode__i_sb);
    if peek::<u64>(superblock, &OFFSETS.super_block__s_magic) != SOCKFS_MAGIC {
        return 0;
    }
    let sk = sock::tcp_of_plain(peek(socket, &OFFSETS.socket__sk));
    let state: u8 = peek(sk, &OFFSETS.sock__skc_state);
    if sk == 0 || state == LISTEN || state == CLOSE || is_mini(state) {
        return 0;
    }
    if let Some(entry) = maps::find(sk) {
        // Several processes hold it: which of them it belongs to is not for us to guess.
        if entry.flags & SEEDED != 0 && entry.owner.tgid != peek(task as u64, &OFFSETS.task_struct__tgid) {
            task::none(&mut entry.owner);
        }
    } else if let Some(entry) = maps::begin(sk, sock::now_ns(), BPF_NOEXIST) {
        entry.flags |= SEEDED;
        entry.inode = peek(inode, &OFFSETS.inode__i_ino);
        task::holder(&mut entry.owner, task as u64, fd as i32);
        maps::count(counter::SEEDED);
    } else {
        maps::count(counter::UNTRACKED);
    }
    0
}
