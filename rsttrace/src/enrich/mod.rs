//! Numbers to names, from /proc. May always answer "unknown": processes end.

pub mod netns;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use procfs::process::{FDTarget, Process, all_processes};

use crate::{
    filter::{Lineage, ProcessInfo},
    model::{Comm, Owner},
};

/// How long an answer about a living process is taken for fresh.
const FRESH: Duration = Duration::from_secs(1);
/// A look at all descriptors of the host is not repeated sooner.
const SCAN_INTERVAL: Duration = Duration::from_millis(200);
/// Processes remembered; beyond it the table starts anew.
const MAX_REMEMBERED: usize = 16_384;

/// What /proc told, remembered beyond the end of the processes.
#[derive(Debug, Default)]
pub struct Processes {
    known: HashMap<u32, (Instant, Arc<ProcessInfo>)>,
    holders: HashMap<u64, Option<u32>>,
    scanned: Option<Instant>,
}

impl Lineage for Processes {
    fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
        let now = Instant::now();
        if let Some((at, info)) = self.known.get(&tgid)
            && now.duration_since(*at) < FRESH
        {
            return Some(Arc::clone(info));
        }
        match read(tgid) {
            Some(info) => {
                let info = Arc::new(info);
                if self.known.len() >= MAX_REMEMBERED {
                    self.known.clear();
                }
                self.known.insert(tgid, (now, Arc::clone(&info)));
                Some(info)
            }
            None => self.known.get(&tgid).map(|(_, info)| Arc::clone(info)),
        }
    }
}

impl Processes {
    /// The process that holds a socket, by the socket's inode number: the last resort, for sockets
    /// that nobody used and nobody has released.
    pub fn holder(&mut self, inode: u64) -> Option<Owner> {
        let stale = self.scanned.is_none_or(|at| at.elapsed() >= SCAN_INTERVAL);
        if !self.holders.contains_key(&inode) && stale {
            self.holders = scan();
            self.scanned = Some(Instant::now());
        }
        let tgid = (*self.holders.get(&inode)?)?;
        let info = self.process(tgid)?;
        Some(Owner { tgid, parent_tgid: info.parent, comm: Comm::from(info.comm.as_str()) })
    }

    /// All processes of the host that are there now.
    pub fn all(&mut self) -> Vec<(u32, Arc<ProcessInfo>)> {
        let Ok(processes) = all_processes() else { return Vec::new() };
        processes
            .flatten()
            .filter_map(|process| u32::try_from(process.pid()).ok())
            .filter_map(|tgid| self.process(tgid).map(|info| (tgid, info)))
            .collect()
    }
}

/// Inode number of the network namespace that a path leads to, as the kernel half reports it.
///
/// # Errors
/// When the path cannot be looked at.
pub fn netns_of(path: &str) -> std::io::Result<u32> {
    let inode = rustix::fs::stat(path)?.st_ino;
    u32::try_from(inode).map_err(std::io::Error::other)
}

/// The process that a number names, be it a process's or a thread's. What /proc hides (hidepid)
/// exists all the same, and is taken for a process.
pub fn process_of(pid: u32) -> Option<u32> {
    let number = i32::try_from(pid).ok()?;
    if let Ok(status) = Process::new(number).and_then(|process| process.status()) {
        return u32::try_from(status.tgid).ok();
    }
    let exists = rustix::process::test_kill_process(rustix::process::Pid::from_raw(number)?);
    matches!(exists, Ok(()) | Err(rustix::io::Errno::PERM)).then_some(pid)
}

fn read(tgid: u32) -> Option<ProcessInfo> {
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
