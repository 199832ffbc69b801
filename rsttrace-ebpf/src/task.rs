//! The current task: who it is, and which system call on which descriptor it is in.

use core::ptr::read_volatile;

use aya_ebpf::helpers::{
    bpf_probe_read_user,
    generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs},
};
use rsttrace_common::{Task, task_flag};

use crate::{
    settings::{OFFSETS, SETTINGS, frozen, present},
    sock::{peek, peek_at, typed},
};

/// `include/linux/sched.h`; stable since 5.12 (io workers) and long before (the others).
const PF_EXITING: u32 = 0x4;
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x20_0000;
/// `arch/x86/include/asm/thread_info.h`.
const TS_COMPAT: u32 = 0x2;
const SENDFILE: u64 = 40;
const SENDFILE_COMPAT: u64 = 187;
const SENDFILE64_COMPAT: u64 = 239;
/// `splice(2)` has the socket in its third argument when it writes to it.
const SPLICE: u64 = 275;
const SPLICE_COMPAT: u64 = 313;
/// Its first argument is the number of the call that is meant.
const SOCKETCALL_COMPAT: u64 = 102;
/// `O_NONBLOCK` on x86.
const O_NONBLOCK: u32 = 0o4000;

/// A task, or what belongs to it. Where the helper is there that says so, the verifier knows its type, and a member
/// costs a load instead of a call.
#[derive(Clone, Copy)]
struct Of(*const u8);

impl Of {
    #[inline(always)]
    fn current() -> Self {
        if frozen(&SETTINGS.has_task_pt_regs) != 0 {
            // SAFETY: the helper exists on this kernel, or the branch is pruned.
            Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
        } else {
            // SAFETY: no preconditions.
            Self(unsafe { bpf_get_current_task() } as *const u8)
        }
    }

    #[inline(always)]
    fn get<T: Copy + Default>(self, member: &'static u32) -> T {
        if frozen(&SETTINGS.has_task_pt_regs) == 0 {
            return peek(self.0 as u64, member);
        }
        if self.0.is_null() || !present(member) {
            return T::default();
        }
        // SAFETY: typed, and the member exists.
        unsafe { typed(self.0, member) }
    }

    /// The address of another struct. Not by a load: it would have a type too, and for each such pointer the verifier
    /// searches the kernel's BTF by name (before 7.0 from end to end), which would double the time that loading takes.
    #[inline(always)]
    fn follow(self, member: &'static u32) -> u64 {
        peek(self.0 as u64, member)
    }

    /// `task_struct.comm`.
    #[inline(always)]
    fn comm(self) -> [u8; 16] {
        let at = frozen(&OFFSETS.task_struct__comm);
        // Two loads, where it lies as they need it.
        if frozen(&SETTINGS.has_task_pt_regs) == 0 || at % 8 != 0 {
            return peek(self.0 as u64, &OFFSETS.task_struct__comm);
        }
        if self.0.is_null() {
            return [0; 16];
        }
        let mut comm = [0; 16];
        // SAFETY: typed; the member is so long, and aligned.
        let (head, tail) = unsafe {
            let at = self.0.add(at as usize).cast::<u64>();
            (read_volatile(at), read_volatile(at.add(1)))
        };
        comm[..8].copy_from_slice(&head.to_ne_bytes());
        comm[8..].copy_from_slice(&tail.to_ne_bytes());
        comm
    }

    /// Where its user registers are saved; null where that is not known.
    #[inline(always)]
    fn user_registers(self) -> Self {
        if frozen(&SETTINGS.has_task_pt_regs) != 0 {
            // SAFETY: the helper exists on this kernel, or the branch is pruned; it wants a task.
            return Self(unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const u8);
        }
        Self(match frozen(&SETTINGS.pt_regs_on_stack) {
            0 => 0,
            distance => self.follow(&OFFSETS.task_struct__stack).wrapping_add(u64::from(distance)),
        } as *const u8)
    }
}

/// Fills `out` with the current task. `sk` is the socket whose descriptor counts as `fd`; 0 for
/// none. The descriptor is kept only where the task's table really leads to this socket: an
/// io_uring completion may run inside any call.
#[inline(always)]
pub fn current(out: &mut Task, sk: u64) {
    // By member: the helpers for numbers and name serve cgroup programs on newer kernels only (6.1
    // has them, 5.10 has not).
    let task = Of::current();
    let tgid: u32 = task.get(&OFFSETS.task_struct__tgid);
    if tgid == frozen(&SETTINGS.own_tgid) {
        // The look at all files at the start may drop the last reference to a socket.
        none(out);
        return;
    }
    out.tgid = tgid;
    out.tid = task.get(&OFFSETS.task_struct__pid);
    out.syscall = -1;
    out.fd = -1;
    out.parent_tgid = peek(task.follow(&OFFSETS.task_struct__real_parent), &OFFSETS.task_struct__tgid);
    out.comm = task.comm();

    let pf: u32 = task.get(&OFFSETS.task_struct__flags);
    let status: u32 = task.get(&OFFSETS.task_struct__status);
    let compat = status & TS_COMPAT != 0;
    let mut flags = 0;
    if pf & PF_EXITING != 0 {
        // do_exit() notes it before it closes files; the lowest bits are the signal.
        let code: u32 = task.get(&OFFSETS.task_struct__exit_code);
        flags |= task_flag::EXITING | (code & 0x7f) << task_flag::SIGNAL_SHIFT;
    }
    if pf & PF_KTHREAD != 0 {
        flags |= task_flag::KTHREAD;
    }
    if pf & PF_IO_WORKER != 0 {
        flags |= task_flag::IO_WORKER;
    }
    if compat {
        flags |= task_flag::COMPAT;
    }
    out.flags = flags;

    if pf & (PF_EXITING | PF_KTHREAD | PF_IO_WORKER) != 0 {
        return;
    }
    let regs = task.user_registers();
    if regs.0.is_null() {
        return;
    }
    let number: u64 = regs.get(&OFFSETS.pt_regs__orig_ax);
    let first = first_argument(regs, compat);
    let third: u64 = regs.get(&OFFSETS.pt_regs__dx);
    out.syscall = number as i32;
    if sk == 0 {
        return;
    }
    let socket: u64 = peek(sk, &OFFSETS.sock__sk_socket);
    if socket == 0 {
        return;
    }
    let mut fd = first as u32;
    let mut file = file_of(task, fd);
    let splice = if compat { SPLICE_COMPAT } else { SPLICE };
    if number == splice && !is_socket(file, socket) {
        fd = third as u32;
        file = file_of(task, fd);
    }
    if is_socket(file, socket) {
        out.fd = fd as i32;
        let file_flags: u32 = peek(file, &OFFSETS.file__f_flags);
        if file_flags & O_NONBLOCK == 0 {
            out.flags |= task_flag::BLOCKING;
        }
    }
}

#[inline(always)]
fn first_argument(regs: Of, compat: bool) -> u64 {
    if compat { regs.get(&OFFSETS.pt_regs__bx) } else { regs.get(&OFFSETS.pt_regs__di) }
}

/// The TCP or MPTCP socket behind the descriptor that is the first argument of the current task's
/// system call, as the application holds it; 0: none.
#[inline(always)]
pub fn socket_of_call() -> u64 {
    let task = Of::current();
    let regs = task.user_registers();
    if regs.0.is_null() {
        return 0;
    }
    let compat = task.get::<u32>(&OFFSETS.task_struct__status) & TS_COMPAT != 0;
    let number: u64 = regs.get(&OFFSETS.pt_regs__orig_ax);
    if compat && number == SOCKETCALL_COMPAT {
        return 0;
    }
    let first = socket_of(file_of(task, first_argument(regs, compat) as u32));
    if first != 0 || number != (if compat { SPLICE_COMPAT } else { SPLICE }) {
        return first;
    }
    socket_of(file_of(task, regs.get::<u64>(&OFFSETS.pt_regs__dx) as u32))
}

/// The `struct sock` behind a file; 0 where it is no socket's.
#[inline(always)]
fn socket_of(file: u64) -> u64 {
    let socket: u64 = peek(file, &OFFSETS.file__private_data);
    // Any file may have something there; a socket leads back to its file.
    if socket == 0 || peek::<u64>(socket, &OFFSETS.socket__file) != file {
        return 0;
    }
    peek(socket, &OFFSETS.socket__sk)
}

/// Where a call has its bytes: in one place, or in those that a vector lists.
#[derive(Clone, Copy)]
pub struct Buffers {
    one: u64,
    vector: u64,
    count: u64,
}

impl Buffers {
    /// They cannot be seen.
    pub const NONE: Self = Self { one: 0, vector: 0, count: 0 };

    #[inline(always)]
    pub fn are_seen(&self) -> bool {
        self.one != 0 || self.vector != 0
    }

    /// Address and size of the `i`th place; size 0 behind the last.
    #[inline(always)]
    pub fn get(&self, i: u32) -> (u64, u64) {
        if self.vector == 0 {
            // What the call returned says how much of it counts.
            return if i == 0 { (self.one, u64::MAX) } else { (0, 0) };
        }
        if u64::from(i) >= self.count {
            return (0, 0);
        }
        (from_user(self.vector.wrapping_add(u64::from(i) * 16)), from_user(self.vector.wrapping_add(u64::from(i) * 16 + 8)))
    }
}

/// A word of the current task's memory; 0 where it cannot be read.
#[inline(always)]
fn from_user(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or_default()
}

/// `asm/unistd_64.h`: calls that receive or send once, on the descriptor in their first argument.
const READ: u64 = 0;
const WRITE: u64 = 1;
const READV: u64 = 19;
const WRITEV: u64 = 20;
const SENDTO: u64 = 44;
const RECVFROM: u64 = 45;
const SENDMSG: u64 = 46;
const RECVMSG: u64 = 47;
/// In `struct user_msghdr`.
const MSG_IOV: u64 = 16;
const MSG_IOVLEN: u64 = 24;

/// Where the current task's call has the bytes that it has just moved from (or to) this socket. Only
/// 64-bit calls, and only where the descriptor leads to the socket: what an io_uring request or a
/// splice moves lies elsewhere.
#[inline(always)]
pub fn buffers_of_call(sk: u64, received: bool) -> Buffers {
    let task = Of::current();
    let pf: u32 = task.get(&OFFSETS.task_struct__flags);
    let status: u32 = task.get(&OFFSETS.task_struct__status);
    let regs = task.user_registers();
    if pf & (PF_EXITING | PF_KTHREAD | PF_IO_WORKER) != 0 || status & TS_COMPAT != 0 || regs.0.is_null() {
        return Buffers::NONE;
    }
    let socket: u64 = peek(sk, &OFFSETS.sock__sk_socket);
    if socket == 0 || !is_socket(file_of(task, first_argument(regs, false) as u32), socket) {
        return Buffers::NONE;
    }
    let second: u64 = regs.get(&OFFSETS.pt_regs__si);
    match (received, regs.get::<u64>(&OFFSETS.pt_regs__orig_ax)) {
        (true, READ | RECVFROM) | (false, WRITE | SENDTO) => Buffers { one: second, vector: 0, count: 0 },
        (true, READV) | (false, WRITEV) => Buffers { one: 0, vector: second, count: regs.get(&OFFSETS.pt_regs__dx) },
        (true, RECVMSG) | (false, SENDMSG) => {
            Buffers { one: 0, vector: from_user(second.wrapping_add(MSG_IOV)), count: from_user(second.wrapping_add(MSG_IOVLEN)) }
        }
        _ => Buffers::NONE,
    }
}

/// No task.
#[inline(always)]
pub fn none(out: &mut Task) {
    *out = Task { tgid: 0, tid: 0, parent_tgid: 0, flags: 0, syscall: -1, fd: -1, comm: [0; 16] };
}

/// Whether the task is in a call that moves data in pieces and returns how much it moved, even if
/// the last piece met an error.
#[inline(always)]
pub fn is_splicing(task: &Task) -> bool {
    let number = task.syscall as u32 as u64;
    if task.flags & task_flag::COMPAT == 0 {
        number == SENDFILE || number == SPLICE
    } else {
        number == SENDFILE_COMPAT || number == SENDFILE64_COMPAT || number == SPLICE_COMPAT
    }
}

/// Gives an owner its process's name instead of its thread's.
#[inline(always)]
pub fn lead(owner: &mut Task) {
    owner.comm = process_comm(owner);
}

/// The name of the current task's process, if `task` is the current one.
#[inline(always)]
pub fn process_comm(task: &Task) -> [u8; 16] {
    if task.tid == task.tgid {
        return task.comm;
    }
    peek(Of::current().follow(&OFFSETS.task_struct__group_leader), &OFFSETS.task_struct__comm)
}

/// A process that has a descriptor of the socket, seen from outside.
#[inline(always)]
pub fn holder(out: &mut Task, task: u64, fd: i32) {
    let leader: u64 = peek(task, &OFFSETS.task_struct__group_leader);
    let parent: u64 = peek(leader, &OFFSETS.task_struct__real_parent);
    out.tgid = peek(leader, &OFFSETS.task_struct__tgid);
    out.tid = out.tgid;
    out.parent_tgid = peek(parent, &OFFSETS.task_struct__tgid);
    out.flags = 0;
    out.syscall = -1;
    out.fd = fd;
    out.comm = peek(leader, &OFFSETS.task_struct__comm);
}

/// `files_lookup_fd_raw()`: the file behind a descriptor of a task, 0 if none.
#[inline(always)]
fn file_of(task: Of, fd: u32) -> u64 {
    let table: u64 = peek(task.follow(&OFFSETS.task_struct__files), &OFFSETS.files_struct__fdt);
    if fd >= peek::<u32>(table, &OFFSETS.fdtable__max_fds) {
        return 0;
    }
    let array: u64 = peek(table, &OFFSETS.fdtable__fd);
    peek_at(array.wrapping_add(u64::from(fd) * 8))
}

#[inline(always)]
fn is_socket(file: u64, socket: u64) -> bool {
    file != 0 && peek::<u64>(file, &OFFSETS.file__private_data) == socket
}
