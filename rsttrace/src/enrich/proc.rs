//! What /proc tells about processes.

use std::{
    collections::HashMap,
    io::Read as _,
    sync::Arc,
    time::{Duration, Instant},
};

use procfs::process::{FDTarget, Process, all_processes};

use super::{
    ProcessSource, cgroup,
    nat::{Connection, ProcConntrack, Tables, Translation},
    netns, netns_of, process_numbers,
};
use crate::{filter::ProcessInfo, model::Identity};

/// A look at all descriptors of the host is not repeated sooner.
const SCAN_INTERVAL: Duration = Duration::from_millis(200);
/// Process numbers told at a time.
const PAGE: usize = 4_096;
/// More of a file about one process is not read.
const MAX_FILE: u64 = 64 * 1024;

/// Reads /proc with the rights of this process.
#[derive(Debug)]
pub struct Proc {
    holders: HashMap<u64, Option<u32>>,
    scanned: Option<Instant>,
    tables: Tables<ProcConntrack>,
}

impl Default for Proc {
    fn default() -> Self {
        Self { holders: HashMap::new(), scanned: None, tables: Tables::new(ProcConntrack::default()) }
    }
}

impl ProcessSource for Proc {
    fn process(&mut self, tgid: u32) -> Option<ProcessInfo> {
        // All of it through one descriptor, and so of one process.
        let process = Process::new(i32::try_from(tgid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let cmdline = process.cmdline().map(|args| args.join(" ")).unwrap_or_default();
        let place = text(&process, "cgroup").map(|text| cgroup::place(&text)).unwrap_or_default();
        let status = text(&process, "status").unwrap_or_default();
        Some(ProcessInfo {
            comm: stat.comm,
            cmdline,
            parent: u32::try_from(stat.ppid).unwrap_or(0),
            started: stat.starttime,
            identity: Arc::new(Identity {
                exe: exe(&process),
                uid: effective_uid(&status),
                user: None,
                ns_tgid: innermost_tgid(&status),
                place,
            }),
        })
    }

    fn holder(&mut self, inode: u64) -> Option<u32> {
        let stale = self.scanned.is_none_or(|at| at.elapsed() >= SCAN_INTERVAL);
        if !self.holders.contains_key(&inode) && stale {
            self.holders = scan();
            self.scanned = Some(Instant::now());
        }
        *self.holders.get(&inode)?
    }

    fn netns(&mut self, tgid: u32) -> Option<u32> {
        netns_of(&format!("/proc/{tgid}/ns/net")).ok()
    }

    fn after(&mut self, tgid: u32) -> Vec<u32> {
        // Processes come in the order of their numbers (next_tgid()).
        process_numbers().filter(|&number| number > tgid).take(PAGE).collect()
    }

    fn named_netns(&mut self) -> Vec<(u32, String)> {
        netns::named()
    }

    fn translation(&mut self, of: &Connection) -> Translation {
        self.tables.translation(of)
    }

    fn holds_files(&self) -> bool {
        self.tables.holds_files()
    }

    fn let_go(&mut self) {
        self.tables.let_go();
    }
}

fn exe(process: &Process) -> Option<String> {
    let path = process.exe().ok()?.to_string_lossy().into_owned();
    // A replaced binary, as after a package upgrade.
    Some(path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned))
}

/// Of a process's directory.
fn text(process: &Process, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    process.open_relative(name).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `Uid:`, then real, effective, saved, and that of the file system.
fn effective_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// `NSpid:`, from this /proc's PID namespace inwards.
fn innermost_tgid(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().next_back()?.parse().ok()
}

fn scan() -> HashMap<u64, Option<u32>> {
    let mut holders = HashMap::new();
    let Ok(processes) = all_processes() else { return holders };
    for process in processes.flatten() {
        let (Ok(tgid), Ok(fds)) = (u32::try_from(process.pid()), process.fd()) else { continue };
        for fd in fds.flatten() {
            if let FDTarget::Socket(inode) = fd.target {
                // Held by several, it is not for us to guess whose it is.
                holders.entry(inode).and_modify(|holder| *holder = holder.filter(|holder| *holder == tgid)).or_insert(Some(tgid));
            }
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::fd::{AsFd, AsRawFd},
    };

    use super::*;

    #[test]
    fn we_find_ourselves_and_our_sockets() {
        let me = std::process::id();
        let mut proc = Proc::default();
        let info = proc.process(me).unwrap();
        assert!(info.cmdline.contains(info.exe_name().unwrap()));
        assert_eq!(info.identity.exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert_eq!(info.identity.uid, Some(rustix::process::geteuid().as_raw()));
        assert_eq!(effective_uid("Name:\tx\nUid:\t0\t33\t0\t0\n"), Some(33));
        assert!(info.identity.ns_tgid.is_some());
        assert_eq!(innermost_tgid("Uid:\t0\t33\t0\t0\nNSpid:\t4711\t12\t7\n"), Some(7));
        assert_eq!(innermost_tgid("NSpid:\n"), None);
        assert_eq!(info.parent, u32::try_from(rustix::process::getppid().unwrap().as_raw_nonzero().get()).unwrap());
        assert_eq!(proc.after(me - 1).first(), Some(&me));
        assert!(!proc.after(me).contains(&me));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
        assert_eq!(proc.holder(inode), Some(me), "descriptor {}", listener.as_raw_fd());
        assert_eq!(proc.holder(u64::MAX), None);
    }
}
