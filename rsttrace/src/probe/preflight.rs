//! What this machine and this process allow, before anything is loaded.

use std::path::PathBuf;

use procfs::process::Process;

use super::{ProbeError, unusable};

/// `include/uapi/linux/capability.h`
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

/// Whether the process numbers that the kernel half reports are those of our /proc.
pub fn in_initial_pid_namespace() -> bool {
    rustix::fs::stat("/proc/self/ns/pid").is_ok_and(|stat| stat.st_ino == INIT_PID_NS)
}

/// Whether /proc shows other users' processes to us.
pub fn proc_hides_processes() -> bool {
    let hidden =
        Process::myself().and_then(|me| me.mountinfo()).is_ok_and(|mounts| {
            mounts.0.iter().filter(|mount| mount.fs_type == "proc" && mount.mount_point.as_os_str() == "/proc").any(|mount| {
                mount.super_options.get("hidepid").and_then(Option::as_deref).is_some_and(|value| value != "0" && value != "off")
            })
        });
    // With this capability the option does not apply to us (ptrace_may_access() in proc_pid_permission()).
    hidden && Process::myself().and_then(|me| me.status()).is_ok_and(|status| status.capeff & (1 << CAP_SYS_PTRACE) == 0)
}

/// Mount point of the whole cgroup2 hierarchy, which may lie below a v1 tree; a part of it would
/// show a part of the host's calls.
pub fn cgroup2_root() -> Option<PathBuf> {
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    mounts.0.into_iter().find(|mount| mount.fs_type == "cgroup2" && mount.root == "/").map(|mount| mount.mount_point)
}
