//! What can be known of this machine before anything is loaded. One line in [`CHECKS`] per check.

use super::report::{Check, Status};
use crate::{
    output::escape::for_terminal,
    probe::{btf::VMLINUX, preflight},
};

/// In the order of the report.
const CHECKS: &[fn() -> Check] = &[kernel, privileges, btf, lockdown, pid_namespace, hidepid, cgroup2, jit];

/// Oldest kernel that is known to do.
const OLDEST: (u32, u32) = (5, 10);

pub fn run() -> Vec<Check> {
    CHECKS.iter().map(|check| check()).collect()
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let uname = rustix::system::uname();
    let (release, machine) = (uname.release().to_string_lossy(), uname.machine().to_string_lossy());
    let words = format!("Linux {release}, {machine}");
    if machine != "x86_64" {
        return Check::failed(NAME, words, "rsttrace reads the registers of x86-64 only");
    }
    match version(&release) {
        Some(version) if version < OLDEST => Check::failed(NAME, words, "rsttrace needs Linux 5.10 or newer"),
        _ => Check::ok(NAME, words),
    }
}

/// Major and minor number of a release such as `6.18.1-arch1`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn privileges() -> Check {
    const NAME: &str = "privileges";
    if let Err(error) = preflight::capabilities() {
        let message = error.to_string();
        let (what, hint) = message.split_once("\nhint: ").unwrap_or((&message, "run it as root"));
        return Check::failed(NAME, what, hint);
    }
    let held = preflight::held_capabilities();
    let has = |name: &str| held.iter().any(|(cap, held)| *cap == name && *held);
    let names = |wanted: bool| held.iter().filter(|(_, held)| *held == wanted).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let mut costs = Vec::new();
    if !has("CAP_NET_ADMIN") && !has("CAP_SYS_ADMIN") {
        costs.push("no CAP_NET_ADMIN: errors taken by getsockopt(SO_ERROR) are concluded");
    }
    if !has("CAP_SYS_PTRACE") {
        costs.push("no CAP_SYS_PTRACE: of other users' processes neither executables nor sockets are seen in /proc");
    }
    if costs.is_empty() {
        return Check::ok(NAME, names(true));
    }
    Check::degraded(NAME, format!("{}; {}", names(true), costs.join("; ")), "run it as root, or grant these capabilities too")
}

fn btf() -> Check {
    const NAME: &str = "btf";
    match preflight::missing() {
        Ok(missing) if missing.is_empty() => Check::ok(NAME, format!("{VMLINUX}: all that is read is there")),
        Ok(missing) => Check::degraded(
            NAME,
            format!("{VMLINUX} lacks {}: what that feeds stays unknown", missing.join(", ").replace("__", ".")),
            "nothing to do on this kernel",
        ),
        Err(why) => Check::failed(
            NAME,
            for_terminal(&why).into_owned(),
            "rsttrace reads struct layouts from the kernel's BTF: it needs a kernel built with CONFIG_DEBUG_INFO_BTF (5.10 or newer), and /sys",
        ),
    }
}

fn lockdown() -> Check {
    const NAME: &str = "lockdown";
    match preflight::lockdown().as_deref() {
        None => Check::ok(NAME, "this kernel shows none (/sys/kernel/security/lockdown)"),
        Some("confidentiality") => {
            Check::failed(NAME, "confidentiality: the kernel lets no program read its memory", "boot with lockdown=integrity, or without")
        }
        Some(mode) => Check::ok(NAME, format!("{}: reading kernel memory is allowed", for_terminal(mode))),
    }
}

fn pid_namespace() -> Check {
    const NAME: &str = "pid-namespace";
    if preflight::in_initial_pid_namespace() {
        return Check::ok(NAME, "the host's");
    }
    Check::degraded(
        NAME,
        "not the host's PID namespace: process numbers in records are the host's, --pid does not work, and owners of unused sockets stay unknown",
        "run rsttrace on the host, or in a container that shares its PID namespace (--pid=host)",
    )
}

fn hidepid() -> Check {
    const NAME: &str = "hidepid";
    if preflight::proc_hides_processes() {
        return Check::degraded(
            NAME,
            "/proc hides other users' processes (hidepid): choosing by name and owners of unused sockets work for visible ones only",
            "grant CAP_SYS_PTRACE, or mount /proc without hidepid",
        );
    }
    let detail = if preflight::hidepid_is_set() { "set, but CAP_SYS_PTRACE lifts it" } else { "/proc shows all processes" };
    Check::ok(NAME, detail)
}

fn cgroup2() -> Check {
    const NAME: &str = "cgroup2";
    match preflight::cgroup2_root() {
        Some(root) => Check::ok(NAME, format!("its root is mounted at {}", for_terminal(&root.to_string_lossy()))),
        None => Check::degraded(
            NAME,
            "its root is not mounted: errors taken by getsockopt(SO_ERROR) are concluded",
            "mount it: mount -t cgroup2 none /some/directory",
        ),
    }
}

fn jit() -> Check {
    const NAME: &str = "jit";
    match preflight::jit() {
        Some(false) => Check::degraded(
            NAME,
            "off: programs are interpreted, which costs every receive and send more",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Some(true) => Check::ok(NAME, "programs are compiled"),
        None => Check { name: NAME, status: Status::Ok, detail: "this kernel does not say".to_owned(), hint: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_every_distribution_are_read() {
        for (release, expected) in [
            ("6.18.44-custom", Some((6, 18))),
            ("5.10.0-30-cloud-amd64", Some((5, 10))),
            ("4.18.0-553.el8_10.x86_64", Some((4, 18))),
            ("7.2-rc1", Some((7, 2))),
            ("", None),
            ("linux", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn every_check_that_complains_says_what_to_do() {
        for check in run() {
            assert!(check.status == Status::Ok || check.hint.is_some(), "{check:?}");
        }
    }
}
