//! seccomp: the system calls that a running trace makes, and no others. Measured with `strace -f`
//! over runs in every mode, and rounded up to the neighbours that another libc uses for the same
//! purpose; docs/privileges.md argues for the list.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction,
    SeccompCmpArgLen::{Dword, Qword},
    SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Who is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The loop: ring, signals, timers, output, counters.
    Tracer,
    /// Whoever reads /proc for it.
    Reader,
    /// Whoever makes the files of a recording.
    Keeper,
    /// Whoever answers those who fetch from it.
    Server,
    /// Whoever answers, and talks to other machines for it.
    Exporter,
}

/// Memory (never executable, see `conditional`), time, signals, the end.
const LIVING: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    // These cannot fail, so nobody looks: a refusal would be taken for an answer.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_uname,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What is open already, and looking at files; `openat` and `fcntl` are conditional.
const READING: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
];

/// Sockets and pipes that are open already; `sendto` and `sendmsg` are conditional.
const TALKING: &[libc::c_long] =
    &[libc::SYS_write, libc::SYS_writev, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_poll, libc::SYS_ppoll];

/// Files of one directory, as far as Landlock lets them.
const KEEPING: &[libc::c_long] =
    &[libc::SYS_openat, libc::SYS_close, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_fstat];

/// The runtime: readiness, and the child that it waits for.
const LOOPING: &[libc::c_long] = &[
    libc::SYS_pwrite64,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
];

/// A socket that listens already, and those who connect to it.
const SERVING: &[libc::c_long] = &[libc::SYS_accept4, libc::SYS_setsockopt, libc::SYS_getsockname, libc::SYS_getpeername];

/// Sockets of its own; to which ports they may connect is Landlock's business. `socket` and `sendmmsg` are conditional.
const CONNECTING: &[libc::c_long] = &[libc::SYS_bind, libc::SYS_connect, libc::SYS_recvmmsg];

/// `enum bpf_cmd` in `include/uapi/linux/bpf.h`: the counters are read with it.
const BPF_MAP_LOOKUP_ELEM: u64 = 1;
/// `include/uapi/asm-generic/ioctls.h`, as newer libcs use it for isatty().
const TCGETS2: u64 = 0x802C_542A;

/// Confines the calling thread. A call that is not on the list returns EPERM and is logged by the
/// kernel: a trace must not die of a libc that has found a new way to do something.
///
/// # Errors
/// When the kernel has no seccomp, or refuses.
pub fn confine(role: Role) -> Result<(), String> {
    let program = compile(role).map_err(|error| error.to_string())?;
    install(&program).map_err(|error| error.to_string())
}

fn compile(role: Role) -> Result<BpfProgram, BackendError> {
    let lists: &[&[libc::c_long]] = match role {
        Role::Tracer => &[LIVING, READING, TALKING, LOOPING],
        Role::Reader => &[LIVING, READING, TALKING],
        Role::Keeper => &[LIVING, TALKING, KEEPING],
        Role::Server => &[LIVING, READING, TALKING, LOOPING, SERVING],
        Role::Exporter => &[LIVING, READING, TALKING, LOOPING, SERVING, CONNECTING],
    };
    // An empty list of conditions: whatever the arguments.
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = lists.iter().copied().flatten().map(|&call| (call, Vec::new())).collect();
    rules.extend(conditional(role)?);
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// Calls that are harmless with some arguments only.
fn conditional(role: Role) -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let writing = bits(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC);
    let executable = bits(libc::PROT_EXEC);
    let mut calls = vec![
        (libc::SYS_mmap, vec![none_of(2, executable)?]),
        (libc::SYS_mprotect, vec![none_of(2, executable)?]),
        // Whoever sets a descriptor's owner and O_ASYNC can send signals.
        (
            libc::SYS_fcntl,
            [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC]
                .into_iter()
                .map(|command| equal(1, bits(command)))
                .chain([set_flags_without(libc::O_ASYNC)])
                .collect::<Result<_, _>>()?,
        ),
        // abort() raises its signal so.
        (libc::SYS_tgkill, vec![equal(0, u64::from(std::process::id()))?]),
        (
            libc::SYS_ioctl,
            [libc::TCGETS, TCGETS2, libc::TIOCGWINSZ].into_iter().map(|request| equal(1, request)).collect::<Result<_, _>>()?,
        ),
    ];
    if !matches!(role, Role::Keeper | Role::Server) {
        calls.push((libc::SYS_openat, vec![none_of(2, writing)?]));
    }
    // This flag connects, and Landlock does not see it.
    let connecting = bits(libc::MSG_FASTOPEN);
    if role == Role::Server {
        // To whoever has connected: send() is this call without an address.
        let nobody_else = SeccompCondition::new(4, Qword, SeccompCmpOp::Eq, 0)?;
        calls.push((libc::SYS_sendto, vec![SeccompRule::new(vec![nobody_else])?]));
    } else {
        calls.push((libc::SYS_sendto, vec![none_of(3, connecting)?]));
        calls.push((libc::SYS_sendmsg, vec![none_of(2, connecting)?]));
    }
    if role == Role::Exporter {
        // None of this host's own: whoever listens there may trust a user's number.
        let families = [libc::AF_INET, libc::AF_INET6].map(|family| equal(0, bits(family)));
        calls.push((libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?));
        calls.push((libc::SYS_sendmmsg, vec![none_of(3, connecting)?]));
    }
    if role == Role::Reader {
        // Log files are opened with no more rights than the user who named them has.
        calls.extend([libc::SYS_inotify_add_watch, libc::SYS_capget, libc::SYS_capset].map(|call| (call, Vec::new())));
    }
    if role == Role::Tracer {
        calls.push((libc::SYS_bpf, vec![equal(0, BPF_MAP_LOOKUP_ELEM)?]));
    }
    Ok(calls)
}

fn set_flags_without(flags: libc::c_int) -> Result<SeccompRule, BackendError> {
    let command = SeccompCondition::new(1, Dword, SeccompCmpOp::Eq, bits(libc::F_SETFL))?;
    SeccompRule::new(vec![command, SeccompCondition::new(2, Dword, SeccompCmpOp::MaskedEq(bits(flags)), 0)?])
}

fn bits(flags: libc::c_int) -> u64 {
    u64::from(flags.unsigned_abs())
}

fn none_of(argument: u8, bits: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bits), 0)?])
}

fn equal(argument: u8, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)?])
}

/// seccompiler's own does not ask for refused calls to be logged.
fn install(program: &BpfProgram) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
    let len = libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program; it and what it points to live beyond the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_LOG, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
