//! The ABI between the kernel half and the user half of rsttrace, and nothing else.
//!
//! Every struct is `repr(C)`, made of fixed-width integers and byte arrays, padded explicitly, and
//! its size is asserted for both targets. Addresses are in network order, ports in host order.
//! Absence has a value of its own: `-1` in `syscall`, `fd`, `reason` and `fin_data_bytes`, `0` in
//! ids, times and `tgid`.
#![no_std]

/// Version of this ABI: both halves are built together, so a mismatch means a corrupt recording.
pub const ABI: u16 = 2;

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
    /// [`HttpEvent`](crate::HttpEvent): what was seen of HTTP on a socket, right before its END, and
    /// once more before RELEASED if more was seen.
    pub const HTTP: u16 = 7;
    /// [`ExecEvent`](crate::ExecEvent): a process became another program.
    pub const EXEC: u16 = 8;
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
    pub const SYS_EXIT: u8 = 7;
    pub const SCHED_PROCESS_EXEC: u8 = 8;
    pub const COUNT: usize = 9;
    /// Emits nothing: a child of a chosen process is chosen too.
    pub const SCHED_PROCESS_FORK: &str = "sched_process_fork";
    /// Emits nothing: it looks at the FIN and the RST before they are processed.
    pub const TCP_PROBE: &str = "tcp_probe";
    /// Emits nothing: it looks at the RST that ends a connection, in any state (5.11 and newer).
    pub const TCP_RESET: &str = "tcp_reset";
    /// RSTs without a full socket, which `tcp_send_reset` does not show before 6.10; emits in its name.
    pub const TCP_V4_SEND_RESET: &str = "tcp_v4_send_reset";
    pub const TCP_V6_SEND_RESET: &str = "tcp_v6_send_reset";
    /// Names as the kernel has them, indexed by the numbers above.
    pub const NAMES: [&str; COUNT] = [
        "tcp_receive_reset",
        "tcp_send_reset",
        "inet_sock_set_state",
        "sock_recv_length",
        "sock_send_length",
        "tcp_destroy_sock",
        "cgroup/getsockopt",
        "sys_exit",
        "sched_process_exec",
    ];
}

/// Indices into the per-CPU counter array; the first [`hook::COUNT`] are events lost by hook.
pub mod counter {
    /// Ends whose [`EndEvent`](crate::EndEvent) or [`StrayEvent`](crate::StrayEvent) was lost: records that will be missing.
    pub const LOST_RECORDS: u32 = 9;
    /// Orderly ends that stayed in the kernel.
    pub const ORDERLY: u32 = 10;
    /// Sockets that found no room in the table when they were opened, or at the start.
    pub const UNTRACKED: u32 = 11;
    /// Sockets older than the tracer that were found at the start.
    pub const SEEDED: u32 = 12;
    pub const COUNT: u32 = 13;
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
    /// From this bit on: the number of the signal that makes an exiting task exit, 7 bits.
    pub const SIGNAL_SHIFT: u32 = 24;
}

/// Bits of [`EndEvent::flags`].
pub mod end_flag {
    /// `SOCK_DONE`: the peer's FIN was received.
    pub const DONE: u32 = 1;
    /// `SOCK_DEAD`: orphan, no file descriptor refers to it.
    pub const DEAD: u32 = 2;
    /// A file refers to it: it was accepted or made by socket().
    pub const HAS_SOCKET: u32 = 4;
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
    /// `TCP_LINGER2` below 0.
    pub const LINGER2_NEGATIVE: u32 = 512;
    /// `SO_LINGER` on.
    pub const LINGER: u32 = 1024;
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
    /// When the oldest unacknowledged segment left, or the latest where all is acknowledged;
    /// `CLOCK_MONOTONIC` in microseconds.
    pub first_tx_us: u64,
    /// Eight times the smoothed round trip.
    pub srtt_us_x8: u32,
    /// The shortest round trip; `u32::MAX` before the first measurement.
    pub min_rtt_us: u32,
    pub total_retrans: u32,
    pub pad: u32,
    pub at: Snapshot,
}

/// Bits of [`Snapshot::flags`].
pub mod snapshot_flag {
    /// It was taken at all.
    pub const TAKEN: u32 = 1;
    /// Payload was written by the application, ever.
    pub const SENT: u32 = 2;
    /// Payload was received, ever.
    pub const RECEIVED: u32 = 4;
    /// `rcv_nxt` counts the peer's FIN.
    pub const REMOTE_FIN: u32 = 8;
    /// The peer's FIN bore no payload, and `snd_wl1` and `prior_una` are those of before it.
    pub const BEFORE_FIN: u32 = 16;
    /// The application's latest write had [`CLOSE_NOTIFY`](super::CLOSE_NOTIFY)'s size.
    pub const GOODBYE: u32 = 32;
}

/// Sizes of TLS's close_notify as the stack sees it: an encrypted alert, from ChaCha20 (TLS 1.2) to
/// AES-GCM (TLS 1.2); 24 in TLS 1.3.
pub const CLOSE_NOTIFY: core::ops::RangeInclusive<u32> = 23..=31;

/// Where both directions of a connection stood at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    /// Sequence number of the latest segment that told us a window.
    pub snd_wl1: u32,
    /// `snd_una` before the segment with the peer's FIN; else the same as `snd_una`.
    pub prior_una: u32,
    /// Jiffies, as are `lsndtime` and `lrcvtime`.
    pub now: u32,
    pub lsndtime: u32,
    pub lrcvtime: u32,
    /// [`snapshot_flag`].
    pub flags: u32,
    pub pad: u32,
}

/// Who sent payload last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    Local,
    Remote,
}

impl Snapshot {
    /// Not taken.
    pub const NONE: Self = Self {
        snd_una: 0,
        snd_nxt: 0,
        write_seq: 0,
        rcv_nxt: 0,
        copied_seq: 0,
        snd_wl1: 0,
        prior_una: 0,
        now: 0,
        lsndtime: 0,
        lrcvtime: 0,
        flags: 0,
        pad: 0,
    };

    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Who sent payload last, before any FIN of ours; `None` where nobody did, or where it cannot
    /// be told. Both halves decide by this one rule, for protocols in which the ends alternate.
    ///
    /// Bytes on their way are ours. Then the times of the last data segment each way, which the
    /// kernel keeps in ticks. Within one tick the peer's latest segment tells: a pure ACK bears
    /// the number that we expect next, and what it acknowledges was sent after the peer's data.
    #[inline(always)]
    pub const fn last_speaker(&self) -> Option<Speaker> {
        use snapshot_flag::{BEFORE_FIN, RECEIVED, REMOTE_FIN, SENT};
        if !self.has(SENT) && !self.has(RECEIVED) {
            return None;
        }
        if !self.has(RECEIVED) || self.write_seq != self.snd_una {
            return Some(Speaker::Local);
        }
        if !self.has(SENT) {
            return Some(Speaker::Remote);
        }
        // Acknowledged by nothing but the bare FIN.
        if self.has(BEFORE_FIN) && self.write_seq != self.prior_una {
            return Some(Speaker::Local);
        }
        match self.lsndtime.wrapping_sub(self.lrcvtime) {
            0 => {}
            later if later < 1 << 31 => return Some(Speaker::Local),
            _ => return Some(Speaker::Remote),
        }
        let expected = if self.has(REMOTE_FIN) { self.rcv_nxt.wrapping_sub(1) } else { self.rcv_nxt };
        // Nobody answers what is not read; and what knocks at a closed window bears that number too.
        let unread = expected.wrapping_sub(self.copied_seq);
        if self.snd_wl1 != expected || unread != 0 && unread < 1 << 31 {
            Some(Speaker::Remote)
        } else if self.has(REMOTE_FIN) && !self.has(BEFORE_FIN) {
            // The FIN itself bears this number.
            None
        } else {
            Some(Speaker::Local)
        }
    }
}

/// Bits of [`ResetHeader::flags`].
pub mod reset_flag {
    /// The segment was seen.
    pub const SEEN: u8 = 1;
    /// It acknowledges: its sender still had the connection.
    pub const ACK: u8 = 2;
    /// `tcp_reset()` has accepted it: it is the one that ends the connection, in whatever state.
    pub const ACCEPTED: u8 = 4;
}

/// What the RST that arrived had in its own header; all zero where it was not seen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ResetHeader {
    pub ack_seq: u32,
    /// As sent, not scaled.
    pub window: u16,
    pub ttl: u8,
    /// [`reset_flag`].
    pub flags: u8,
}

impl ResetHeader {
    /// Not seen.
    pub const NONE: Self = Self { ack_seq: 0, window: 0, ttl: 0, flags: 0 };
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
    /// `sk_err_soft`: the latest ICMP error that did not end the connection.
    pub soft_err: i32,
    /// `TCP_USER_TIMEOUT`; 0: none.
    pub user_timeout_ms: u32,
    /// `SO_LINGER`'s time in jiffies.
    pub linger_jiffies: u32,
    /// Retransmissions of the oldest unacknowledged segment.
    pub retransmits: u8,
    /// Unanswered keep-alive or zero-window probes.
    pub probes_out: u8,
    pub pad: [u8; 2],
    /// Payload of the segment that our RST answers; `u32::MAX`: unknown.
    pub segment_bytes: u32,
    pub reset: ResetHeader,
    /// At ESTABLISHED -> CLOSE_WAIT.
    pub remote_fin: Snapshot,
    /// At the first FIN of ours, before it is queued.
    pub local_fin: Snapshot,
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
    pub pad: [u8; 3],
    /// `RELEASED`: bytes that nobody ever read; `RESET_SENT`: payload of the answered segment;
    /// `u32::MAX`: unknown.
    pub bytes: u32,
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
    /// The segment's own flags, as in the header's 14th byte.
    pub tcp_flags: u8,
    pub pad: u16,
    /// The segment's payload; `u32::MAX`: unknown.
    pub segment_bytes: u32,
    pub pad2: u32,
}

/// Bytes kept of a request, from its first; the last one is never used.
pub const REQUEST_CAP: usize = 2_048;
/// Bytes kept of what was sent in answer.
pub const ANSWER_CAP: usize = 1_024;

/// Bits of [`HttpEvent::flags`].
pub mod http_flag {
    /// Requests leave this host: we are the client. Else they arrive.
    pub const ASKING: u32 = 1;
    /// Which of the two exchanges is the latest.
    pub const SECOND: u32 = 2;
    /// What moved last was an answer.
    pub const ANSWERING: u32 = 4;
    /// The latest request has a status line that is not interim (1xx).
    pub const FINAL: u32 = 8;
    /// Told with the end.
    pub const REPORTED: u32 = 16;
    /// More was seen since.
    pub const CHANGED: u32 = 32;
}

/// A request and where its answer begins. A position is the sequence number of a byte.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub request_at: u32,
    pub request_len: u32,
    pub answer_at: u32,
    pub answer_len: u32,
    pub request: [u8; REQUEST_CAP],
}

impl Exchange {
    /// None yet.
    pub const NONE: Self = Self { request_at: 0, request_len: 0, answer_at: 0, answer_len: 0, request: [0; REQUEST_CAP] };
}

/// [`kind::HTTP`](crate::kind::HTTP), and what the kernel half remembers of a socket's HTTP: raw bytes that user space
/// takes apart.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HttpEvent {
    pub header: Header,
    pub id: SockId,
    /// At the end, before it took effect.
    pub at: Snapshot,
    /// [`http_flag`].
    pub flags: u32,
    /// Kernel's number of the state before the end.
    pub state: u8,
    pub pad: [u8; 3],
    /// Behind the requests that had moved when the answer last did.
    pub requests_end: u32,
    /// Behind [`tail`](Self::tail).
    pub tail_end: u32,
    /// The last bytes of the answer that moved.
    pub tail: [u8; 8],
    /// Of the latest exchange.
    pub answer: [u8; ANSWER_CAP],
    pub exchanges: [Exchange; 2],
}

/// [`kind::EXEC`](crate::kind::EXEC).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExecEvent {
    pub header: Header,
    pub tgid: u32,
    pub pad: u32,
}

/// Process numbers are smaller (`PID_MAX_LIMIT`).
pub const MAX_PROCESSES: u32 = 1 << 22;

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
    sock__sk_protocol, sock__sk_err, sock__sk_err_soft, sock__sk_socket, sock__sk_lock_owned, sock__sk_receive_queue,
    sock__sk_receive_queue_prev, sock__sk_lingertime,
    inet_sock__inet_sport,
    inet_connection_sock__lrcvtime, inet_connection_sock__icsk_user_timeout,
    inet_connection_sock__icsk_retransmits, inet_connection_sock__icsk_probes_out,
    inet_connection_sock__icsk_ulp_ops,
    tcp_sock__copied_seq, tcp_sock__rcv_nxt, tcp_sock__snd_nxt, tcp_sock__snd_una,
    tcp_sock__write_seq, tcp_sock__bytes_sent, tcp_sock__bytes_retrans, tcp_sock__bytes_acked,
    tcp_sock__bytes_received, tcp_sock__lsndtime, tcp_sock__srtt_us, tcp_sock__total_retrans,
    tcp_sock__is_mptcp, tcp_sock__snd_wl1, tcp_sock__rtt_min, tcp_sock__first_tx_mstamp, tcp_sock__linger2,
    mptcp_sock__first,
    net__inum,
    socket__file, socket__sk,
    file__f_inode, file__f_flags, file__private_data,
    inode__i_ino, inode__i_sb, super_block__s_magic,
    sk_buff__head, sk_buff__transport_header, sk_buff__network_header, sk_buff__len, sk_buff__cb,
    sk_buff__dev, net_device__nd_net, tcp_skb_cb__tcp_flags, tcp_skb_cb__seq, tcp_skb_cb__end_seq,
    tcp_skb_cb__ack_seq,
    /// `tcp_flags` in the control block, from the beginning of the buffer: one load per segment.
    sk_buff__cb_tcp_flags,
    task_struct__flags, task_struct__files, task_struct__real_parent, task_struct__group_leader,
    task_struct__pid, task_struct__tgid, task_struct__comm, task_struct__status,
    task_struct__exit_code,
    files_struct__fdt, fdtable__fd, fdtable__max_fds,
    task_struct__stack, pt_regs__orig_ax, pt_regs__di, pt_regs__si, pt_regs__dx, pt_regs__bx,
    /// Bit numbers in `skc_flags`.
    SOCK_DEAD, SOCK_DONE, SOCK_LINGER,
}

/// What the kernel half is told before it is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Orderly ends cross the ring too.
    pub want_fin: u32,
    /// `bpf_task_pt_regs` exists (5.15 and newer): system call and descriptor can be read.
    pub has_task_pt_regs: u32,
    /// Where it does not, the saved user registers' distance from the beginning of the task's stack; 0: not known.
    pub pt_regs_on_stack: u32,
    /// `tcp_send_reset` has its third argument, the reason (6.10 and newer).
    pub has_reset_reason: u32,
    /// `bpf_get_socket_cookie` serves tracing programs (5.12 and newer).
    pub has_socket_cookie: u32,
    /// Our own process: its tasks are never blamed for what the start's look at all files touches.
    pub own_tgid: u32,
    /// HTTP of the chosen processes is looked at.
    pub http: u32,
    /// As much of the ring may be filled by events of other than the chosen processes; 0: none are chosen.
    pub shared_bytes: u32,
}

macro_rules! assert_size {
    ($($t:ty = $n:expr),+ $(,)?) => { $(const _: () = assert!(size_of::<$t>() == $n);)+ };
}

assert_size!(
    Header = 16,
    SockId = 16,
    Task = 40,
    Tuple = 48,
    Snapshot = 48,
    Sizes = 104,
    ResetHeader = 8,
    EndEvent = 448,
    TaskEvent = 104,
    StrayEvent = 80,
    Exchange = 2_064,
    HttpEvent = 5_256,
    ExecEvent = 24,
    Settings = 32,
);
const _: () = assert!(core::mem::offset_of!(EndEvent, tuple) == 72);
const _: () = assert!(core::mem::offset_of!(EndEvent, sizes) == 120);
const _: () = assert!(core::mem::offset_of!(Sizes, at) == 56);
const _: () = assert!(core::mem::offset_of!(EndEvent, flags) == 224);
const _: () = assert!(core::mem::offset_of!(EndEvent, reset) == 264);
const _: () = assert!(core::mem::offset_of!(EndEvent, owner) == 368);
const _: () = assert!(core::mem::offset_of!(TaskEvent, task) == 48);
const _: () = assert!(core::mem::offset_of!(StrayEvent, reason) == 64);
const _: () = assert!(core::mem::offset_of!(HttpEvent, flags) == 80);
const _: () = assert!(core::mem::offset_of!(HttpEvent, answer) == 104);
const _: () = assert!(core::mem::offset_of!(HttpEvent, exchanges) == 1_128);
