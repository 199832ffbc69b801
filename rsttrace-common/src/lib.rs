//! The ABI between the kernel half and the user half of rsttrace, and nothing else.
//!
//! Every struct is `repr(C)`, made of fixed-width integers and byte arrays, padded explicitly, and
//! its size is asserted for both targets. Addresses are in network order, ports in host order.
//! Absence has a value of its own: `-1` in `syscall`, `fd`, `reason` and `fin_data_bytes`, `0` in
//! ids, times and `tgid`.
#![no_std]

/// Version of this ABI: both halves are built together, so a mismatch means a corrupt recording.
pub const ABI: u16 = 1;

/// Kinds of event, the first field of every event.
pub mod kind {
    /// [`EndEvent`](crate::EndEvent): a socket's first sign of ending, with all that is known of it.
    pub const END: u16 = 1;
    /// [`TaskEvent`](crate::TaskEvent): a system call returned the error of an ended socket.
    pub const OBSERVED: u16 = 2;
    /// [`TaskEvent`](crate::TaskEvent): a RST left for a socket whose end was already reported.
    pub const RESET_SENT: u16 = 3;
    /// [`TaskEvent`](crate::TaskEvent): the socket reached CLOSE after its end was reported.
    pub const CLOSED: u16 = 4;
    /// [`TaskEvent`](crate::TaskEvent): the socket is gone, or begins a new life.
    pub const RELEASED: u16 = 5;
    /// [`StrayEvent`](crate::StrayEvent): a RST answered a segment without ending a full socket.
    pub const STRAY: u16 = 6;
}

/// The hooks that emit events, in the order of their loss counters.
pub mod hook {
    pub const TCP_RECEIVE_RESET: u8 = 0;
    pub const TCP_SEND_RESET: u8 = 1;
    pub const INET_SOCK_SET_STATE: u8 = 2;
    pub const SOCK_RECV_LENGTH: u8 = 3;
    pub const SOCK_SEND_LENGTH: u8 = 4;
    pub const TCP_DESTROY_SOCK: u8 = 5;
    pub const GETSOCKOPT: u8 = 6;
    pub const COUNT: usize = 7;
    /// Names as the kernel has them (the last is the cgroup hook's), indexed by the numbers above.
    pub const NAMES: [&str; COUNT] = [
        "tcp_receive_reset",
        "tcp_send_reset",
        "inet_sock_set_state",
        "sock_recv_length",
        "sock_send_length",
        "tcp_destroy_sock",
        "cgroup/getsockopt",
    ];
}

/// Indices into the per-CPU counter array; the first [`hook::COUNT`] are events lost by hook.
pub mod counter {
    /// Ends whose [`EndEvent`](crate::EndEvent) or [`StrayEvent`](crate::StrayEvent) was lost: records that will be missing.
    pub const LOST_RECORDS: u32 = 7;
    /// Orderly ends that stayed in the kernel.
    pub const ORDERLY: u32 = 8;
    /// Sockets that found no room in the table when they were opened, or at the start.
    pub const UNTRACKED: u32 = 9;
    /// Sockets older than the tracer that were found at the start.
    pub const SEEDED: u32 = 10;
    pub const COUNT: u32 = 11;
}

/// Roles: which end connected.
pub mod role {
    pub const UNKNOWN: u8 = 0;
    pub const CLIENT: u8 = 1;
    pub const SERVER: u8 = 2;
}

/// Who sent the first FIN.
pub mod first_fin {
    pub const NONE: u8 = 0;
    pub const LOCAL: u8 = 1;
    pub const REMOTE: u8 = 2;
    pub const BOTH: u8 = 3;
}

/// Bits of [`Task::flags`].
pub mod task_flag {
    /// `PF_EXITING`: the saved registers name the interrupted call, not a cause.
    pub const EXITING: u32 = 1;
    /// `PF_KTHREAD`.
    pub const KTHREAD: u32 = 2;
    /// `PF_IO_WORKER`: io_uring's worker thread of this process.
    pub const IO_WORKER: u32 = 4;
    /// `TS_COMPAT`: the number is of the 32-bit system call table.
    pub const COMPAT: u32 = 8;
    /// The descriptor given to connect() was in blocking mode.
    pub const BLOCKING: u32 = 16;
}

/// Bits of [`EndEvent::flags`].
pub mod end_flag {
    /// `SOCK_DONE`: the peer's FIN was received.
    pub const DONE: u32 = 1;
    /// `SOCK_DEAD`: orphan, no file descriptor refers to it.
    pub const DEAD: u32 = 2;
    /// A file refers to it: it was accepted or made by socket().
    pub const HAS_SOCKET: u32 = 4;
    /// A task held the socket's lock: the current task is the one that acted.
    pub const OWNED: u32 = 8;
    /// `SO_LINGER` on with time 0.
    pub const LINGER_ZERO: u32 = 16;
    /// Its later events cannot be matched: there was no room in the table.
    pub const UNTRACKED: u32 = 32;
    /// The RST answers a segment; otherwise it is one that the kernel or a task chose to send.
    pub const ANSWER: u32 = 64;
    /// The socket was destroyed just before: no [`kind::RELEASED`](crate::kind::RELEASED) follows.
    pub const GONE: u32 = 128;
    /// The socket is one subflow of an MPTCP connection.
    pub const MPTCP: u32 = 256;
}

/// Bits of [`TaskEvent::flags`].
pub mod event_flag {
    /// The RST answers a segment ([`kind::RESET_SENT`](crate::kind::RESET_SENT)).
    pub const ANSWER: u32 = 1;
    /// An observation of this socket was made and its event lost ([`kind::RELEASED`](crate::kind::RELEASED)).
    pub const OBSERVATION_LOST: u32 = 2;
    /// A RST was sent and its event lost ([`kind::RELEASED`](crate::kind::RELEASED)).
    pub const RESET_LOST: u32 = 8;
    /// The socket was not destroyed: connect() begins its next life ([`kind::RELEASED`](crate::kind::RELEASED)).
    pub const REOPENED: u32 = 4;
}

/// First field of every event.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub kind: u16,
    pub abi: u16,
    pub cpu: u32,
    /// `CLOCK_MONOTONIC`.
    pub ts_ns: u64,
}

/// One life of one socket: the kernel's address of it, and when its entry was made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SockId {
    pub sk: u64,
    pub born_ns: u64,
}

/// A task at the moment of an event.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub tgid: u32,
    pub tid: u32,
    pub parent_tgid: u32,
    /// [`task_flag`].
    pub flags: u32,
    /// Number of the system call it is in; -1: none, or not readable.
    pub syscall: i32,
    /// The call's descriptor, where it is this socket; else -1.
    pub fd: i32,
    pub comm: [u8; 16],
}

/// A connection's name.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tuple {
    /// Network order; IPv4 in the first four bytes.
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    pub pad: u16,
    /// Inode number of the network namespace.
    pub netns: u32,
    pub pad2: u32,
}

/// Raw members of `tcp_sock` from which sizes and idle times are computed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    /// Jiffies, as are `lsndtime` and `lrcvtime`.
    pub now: u32,
    pub lsndtime: u32,
    pub lrcvtime: u32,
    /// Eight times the smoothed round trip.
    pub srtt_us_x8: u32,
    pub total_retrans: u32,
}

/// [`kind::END`](crate::kind::END).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EndEvent {
    pub header: Header,
    pub id: SockId,
    pub cookie: u64,
    /// Number in `/proc/PID/fd` "socket:[N]"; 0 without a file.
    pub inode: u64,
    pub opened_ns: u64,
    pub first_fin_ns: u64,
    pub second_fin_ns: u64,
    pub tuple: Tuple,
    pub sizes: Sizes,
    /// [`end_flag`].
    pub flags: u32,
    /// [`hook`].
    pub hook: u8,
    /// Kernel's number of the state before the end.
    pub state: u8,
    /// [`role`].
    pub role: u8,
    /// [`first_fin`].
    pub first_fin: u8,
    /// `sk_err` at that moment.
    pub err: i32,
    /// `enum sk_rst_reason`; -1: the kernel gave none.
    pub reason: i32,
    /// Payload of the segment that carried the peer's FIN; -1: unknown.
    pub fin_data_bytes: i32,
    pub pad: u32,
    pub owner: Task,
    pub closer: Task,
}

/// [`kind::OBSERVED`](crate::kind::OBSERVED), [`kind::RESET_SENT`](crate::kind::RESET_SENT), [`kind::CLOSED`](crate::kind::CLOSED), [`kind::RELEASED`](crate::kind::RELEASED).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskEvent {
    pub header: Header,
    pub id: SockId,
    /// `OBSERVED`: the errno returned; `RESET_SENT`: the reason; `CLOSED`, `RELEASED`: `sk_err`.
    pub value: i32,
    /// [`event_flag`].
    pub flags: u32,
    /// [`hook`].
    pub hook: u8,
    pub pad: [u8; 7],
    pub task: Task,
    /// Name of the task's process; `task.comm` is its thread's.
    pub process_comm: [u8; 16],
}

/// [`kind::STRAY`](crate::kind::STRAY): addresses are those of the socket that the segment was meant for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StrayEvent {
    pub header: Header,
    pub tuple: Tuple,
    pub reason: i32,
    /// Kernel's number of the state of the socket that it met: TIME_WAIT, LISTEN ...; 0: none.
    pub state: u8,
    pub pad: [u8; 3],
}

/// A member or constant that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Offsets of the members that the kernel half reads, from the running kernel's BTF;
        /// [`ABSENT`] where a member does not exist. Named `type__member`, in the kernel's spelling.
        #[allow(non_snake_case)]
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct Offsets { $($(#[$doc])* pub $name: u32,)+ }

        impl Offsets {
            /// Nothing known.
            pub const ABSENT: Self = Self { $($name: ABSENT,)+ };

            /// Every member by name, for the loader to fill and the doctor to show.
            pub fn each(&mut self, mut visit: impl FnMut(&'static str, &mut u32)) {
                $(visit(stringify!($name), &mut self.$name);)+
            }
        }
    };
}

offsets! {
    sock__skc_family, sock__skc_state, sock__skc_daddr, sock__skc_rcv_saddr, sock__skc_dport,
    sock__skc_v6_daddr, sock__skc_v6_rcv_saddr, sock__skc_net, sock__skc_cookie, sock__skc_flags,
    sock__sk_protocol, sock__sk_err, sock__sk_socket, sock__sk_lock_owned, sock__sk_receive_queue,
    sock__sk_receive_queue_prev, sock__sk_lingertime,
    inet_sock__inet_sport,
    inet_connection_sock__lrcvtime,
    tcp_sock__copied_seq, tcp_sock__rcv_nxt, tcp_sock__snd_nxt, tcp_sock__snd_una,
    tcp_sock__write_seq, tcp_sock__bytes_sent, tcp_sock__bytes_retrans, tcp_sock__bytes_acked,
    tcp_sock__bytes_received, tcp_sock__lsndtime, tcp_sock__srtt_us, tcp_sock__total_retrans,
    tcp_sock__is_mptcp,
    mptcp_sock__first,
    net__inum,
    socket__file, socket__sk,
    file__f_inode, file__f_flags, file__private_data,
    inode__i_ino, inode__i_sb, super_block__s_magic,
    sk_buff__head, sk_buff__transport_header, sk_buff__network_header, sk_buff__len, sk_buff__cb,
    sk_buff__dev, net_device__nd_net, tcp_skb_cb__tcp_flags,
    task_struct__flags, task_struct__files, task_struct__real_parent, task_struct__group_leader,
    task_struct__pid, task_struct__tgid, task_struct__comm, task_struct__status,
    files_struct__fdt, fdtable__fd, fdtable__max_fds,
    pt_regs__orig_ax, pt_regs__di, pt_regs__dx, pt_regs__bx,
    /// Bit numbers in `skc_flags`.
    SOCK_DEAD, SOCK_DONE, SOCK_LINGER,
}

/// What the kernel half is told before it is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Orderly ends cross the ring too.
    pub want_fin: u32,
    /// `bpf_task_pt_regs` exists: system call and descriptor can be read.
    pub has_task_pt_regs: u32,
    /// `tcp_send_reset` has its third argument, the reason (6.10 and newer).
    pub has_reset_reason: u32,
    /// `bpf_get_socket_cookie` serves tracing programs (5.12 and newer).
    pub has_socket_cookie: u32,
    /// Our own process: its tasks are never blamed for what the start's look at all files touches.
    pub own_tgid: u32,
}

macro_rules! assert_size {
    ($($t:ty = $n:expr),+ $(,)?) => { $(const _: () = assert!(size_of::<$t>() == $n);)+ };
}

assert_size!(Header = 16, SockId = 16, Task = 40, Tuple = 48, Sizes = 72, EndEvent = 296, TaskEvent = 104, StrayEvent = 72, Settings = 20,);
const _: () = assert!(core::mem::offset_of!(EndEvent, tuple) == 72);
const _: () = assert!(core::mem::offset_of!(EndEvent, sizes) == 120);
const _: () = assert!(core::mem::offset_of!(EndEvent, flags) == 192);
const _: () = assert!(core::mem::offset_of!(EndEvent, owner) == 216);
const _: () = assert!(core::mem::offset_of!(TaskEvent, task) == 48);
const _: () = assert!(core::mem::offset_of!(StrayEvent, reason) == 64);
