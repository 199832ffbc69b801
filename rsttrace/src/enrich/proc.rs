//! What /proc tells about processes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use procfs::process::{FDTarget, Process, all_processes};

use super::{ProcessSource, netns_of};
use crate::filter::ProcessInfo;

/// A look at all descriptors of the host is not repeated sooner.
const SCAN_INTERVAL: Duration = Duration::from_millis(200);
/// Process numbers told at a time.
const PAGE: usize = 4_096;

/// Reads /proc with the rights of this process.
#[derive(Debug, Default)]
pub struct Proc {
    holders: HashMap<u64, Option<u32>>,
    scanned: Option<Instant>,
}

impl ProcessSource for Proc {
    fn process(&mut self, tgid: u32) -> Option<ProcessInfo> {
        let process = Process::new(i32::try_from(tgid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let exe = process.exe().ok().and_then(|path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            // A replaced binary, as after a package upgrade.
            Some(name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_owned))
        });
        let cmdline = process.cmdline().map(|args| args.join(" ")).unwrap_or_default();
        Some(ProcessInfo { comm: stat.comm, exe, cmdline, parent: u32::try_from(stat.ppid).unwrap_or(0) })
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
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        // Processes come in the order of their numbers (next_tgid()).
        let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter(|&number| number > tgid).take(PAGE).collect()
    }
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
        assert!(info.cmdline.contains(info.exe.as_deref().unwrap()));
        assert_eq!(info.parent, u32::try_from(rustix::process::getppid().unwrap().as_raw_nonzero().get()).unwrap());
        assert_eq!(proc.after(me - 1).first(), Some(&me));
        assert!(!proc.after(me).contains(&me));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
        assert_eq!(proc.holder(inode), Some(me), "descriptor {}", listener.as_raw_fd());
        assert_eq!(proc.holder(u64::MAX), None);
    }
}
