//! What this machine and this process allow, before anything is loaded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use procfs::process::Process;

use super::{
    ProbeError,
    btf::{KernelBtf, VMLINUX},
    offsets, unusable,
};

/// `include/uapi/linux/capability.h`
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// `PROC_USER_INIT_INO` in `include/linux/proc_ns.h`.
const INIT_USER_NS: u64 = 0xEFFF_FFFD;
/// `PROC_PID_INIT_INO` in `include/linux/proc_ns.h`.
const INIT_PID_NS: u64 = 0xEFFF_FFFC;

/// Checks that this process may load and attach tracing programs.
///
/// # Errors
/// Names the missing capabilities.
pub fn capabilities() -> Result<(), ProbeError> {
    let effective = Process::myself()
        .and_then(|me| me.status())
        .map_err(|error| unusable(format!("cannot read /proc/self/status: {error}"), "mount /proc"))?
        .capeff;
    if rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != INIT_USER_NS) {
        return Err(unusable(
            "this is not the host's user namespace: its capabilities do not count for BPF",
            "run rsttrace on the host, or in a container without a user namespace of its own (privileged)",
        ));
    }
    let has = |cap: u32| effective & (1 << cap) != 0;
    if has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON) {
        return Ok(());
    }
    let missing: Vec<&str> =
        [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")].iter().filter(|(cap, _)| !has(*cap)).map(|&(_, name)| name).collect();
    Err(unusable(
        format!("not permitted to load BPF programs: {} missing", missing.join(" and ")),
        "run it as root (sudo rsttrace ...), or grant CAP_BPF, CAP_PERFMON and, for SO_ERROR, CAP_NET_ADMIN",
    ))
}

/// Capabilities that tracing can use, by name, and whether this process has them.
pub fn held_capabilities() -> Vec<(&'static str, bool)> {
    const USED: [(&str, u32); 6] = [
        ("CAP_BPF", CAP_BPF),
        ("CAP_PERFMON", CAP_PERFMON),
        ("CAP_NET_ADMIN", CAP_NET_ADMIN),
        ("CAP_SYS_PTRACE", CAP_SYS_PTRACE),
        ("CAP_DAC_READ_SEARCH", CAP_DAC_READ_SEARCH),
        ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
    ];
    let effective = Process::myself().and_then(|me| me.status()).map_or(0, |status| status.capeff);
    USED.iter().map(|&(name, cap)| (name, effective & (1 << cap) != 0)).collect()
}

/// Needed for the kernel's reasons.
pub const RESET_REASON: &str = "the reason in tcp_send_reset (Linux 6.10)";

/// What this kernel does not have, of what tracing can do without: members of structs by their names
/// in `rsttrace_common::Offsets`, [`RESET_REASON`].
///
/// # Errors
/// No BTF, or a member is missing without which nothing works.
pub fn missing() -> Result<Vec<&'static str>, String> {
    let kernel = KernelBtf::from_file(Path::new(VMLINUX)).map_err(|error| error.to_string())?;
    let (_, mut missing) = offsets::resolve(&kernel).map_err(|name| format!("{VMLINUX} has no member {name}"))?;
    if kernel.tracepoint_args("tcp_send_reset") < Some(3) {
        missing.push(RESET_REASON);
    }
    Ok(missing)
}

/// Whether the kernel speaks IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/tcp6").exists()
}

/// The mode of the kernel's lockdown; `None` where the kernel has none, or does not show it.
pub fn lockdown() -> Option<String> {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = modes.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Whether programs are compiled and not interpreted; `None` where the kernel does not say.
pub fn jit() -> Option<bool> {
    let value = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok()?;
    Some(value.trim() != "0")
}

/// Settings of the kernel and of this network namespace that bear on how connections end, by sysctl.
pub fn settings() -> Vec<(String, String)> {
    const NAMES: [&str; 12] = [
        "kernel/unprivileged_bpf_disabled",
        "net/core/bpf_jit_enable",
        "net/core/bpf_jit_harden",
        "net/ipv4/tcp_abort_on_overflow",
        "net/ipv4/tcp_fin_timeout",
        "net/ipv4/tcp_keepalive_time",
        "net/ipv4/tcp_max_orphans",
        "net/ipv4/tcp_retries2",
        "net/ipv4/tcp_rfc1337",
        "net/ipv4/tcp_timestamps",
        "net/ipv4/tcp_tw_reuse",
        "net/mptcp/enabled",
    ];
    let value = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    NAMES.iter().filter_map(|name| Some((name.replace('/', "."), value(name)?.trim().to_owned()))).collect()
}

/// Whether this process has a clock of its own: in a time namespace `CLOCK_MONOTONIC` is moved, and
/// `bpf_ktime_get_ns()` is not.
pub fn monotonic_clock_is_moved() -> bool {
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let monotonic = offsets.lines().find_map(|line| line.strip_prefix("monotonic"));
    monotonic.is_some_and(|numbers| numbers.split_whitespace().any(|number| number != "0"))
}

/// Whether /proc is mounted to hide other users' processes, from us or from others.
pub fn hidepid_is_set() -> bool {
    Process::myself().and_then(|me| me.mountinfo()).is_ok_and(|mounts| {
        mounts
            .0
            .iter()
            .filter(|mount| mount.fs_type == "proc" && mount.mount_point.as_os_str() == "/proc")
            .any(|mount| mount.super_options.get("hidepid").and_then(Option::as_deref).is_some_and(|value| value != "0" && value != "off"))
    })
}

/// Whether the process numbers that the kernel half reports are those of our /proc.
pub fn in_initial_pid_namespace() -> bool {
    rustix::fs::stat("/proc/self/ns/pid").is_ok_and(|stat| stat.st_ino == INIT_PID_NS)
}

/// Whether /proc shows other users' processes to us.
pub fn proc_hides_processes() -> bool {
    // With this capability the option does not apply to us (ptrace_may_access() in proc_pid_permission()).
    hidepid_is_set() && Process::myself().and_then(|me| me.status()).is_ok_and(|status| status.capeff & (1 << CAP_SYS_PTRACE) == 0)
}

/// Mount point of the whole cgroup2 hierarchy, which may lie below a v1 tree; a part of it would show a part of the host's
/// calls. What mountinfo calls the root is, in a container, its own cgroup: the root of all has this inode.
pub fn cgroup2_root() -> Option<PathBuf> {
    const ROOT: u64 = 1;
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let is_root = |path: &PathBuf| rustix::fs::stat(path).is_ok_and(|stat| stat.st_ino == ROOT);
    mounts.0.into_iter().filter(|mount| mount.fs_type == "cgroup2").map(|mount| mount.mount_point).find(is_root)
}
