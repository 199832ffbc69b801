//! Numbers to names, from /proc. May always answer "unknown": processes end.

pub mod netns;
mod proc;

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use procfs::process::Process;

pub use self::proc::Proc;
use crate::{
    filter::{Lineage, ProcessInfo},
    model::{Comm, Owner},
};

/// How long an answer about a living process is taken for fresh.
const FRESH: Duration = Duration::from_secs(1);
/// Processes remembered; beyond it the table starts anew.
const MAX_REMEMBERED: usize = 16_384;

/// Who is asked about processes: /proc itself, or somebody who may still read it.
pub trait ProcessSource: fmt::Debug {
    /// `None`: there is no such process, or it must not be looked at.
    fn process(&mut self, tgid: u32) -> Option<ProcessInfo>;
    /// The one process that holds a socket, by the socket's inode number.
    fn holder(&mut self, inode: u64) -> Option<u32>;
    /// The next numbers of living processes above `tgid`, ascending; none at the end.
    fn after(&mut self, tgid: u32) -> Vec<u32>;
    /// The network namespace that a process lives in, by its inode number.
    fn netns(&mut self, tgid: u32) -> Option<u32>;
    /// It will never answer again.
    fn is_gone(&self) -> bool {
        false
    }
}

/// What was told about processes, remembered beyond their end.
#[derive(Debug)]
pub struct Processes {
    known: HashMap<u32, (Instant, Arc<ProcessInfo>)>,
    source: Box<dyn ProcessSource>,
    warned: bool,
}

impl Default for Processes {
    fn default() -> Self {
        Self::from(Proc::default())
    }
}

impl<S: ProcessSource + 'static> From<S> for Processes {
    fn from(source: S) -> Self {
        Self { known: HashMap::new(), source: Box::new(source), warned: false }
    }
}

impl Lineage for Processes {
    fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
        let now = Instant::now();
        if let Some((at, info)) = self.known.get(&tgid)
            && now.duration_since(*at) < FRESH
        {
            return Some(Arc::clone(info));
        }
        match self.source.process(tgid) {
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
        let tgid = self.source.holder(inode)?;
        let info = self.process(tgid)?;
        Some(Owner { tgid, parent_tgid: info.parent, comm: Comm::from(info.comm.as_str()) })
    }

    /// It has become another program: what was told of it is no longer so.
    pub fn has_changed(&mut self, tgid: u32) {
        self.known.remove(&tgid);
    }

    /// The network namespace that a process lives in, by its inode number.
    pub fn netns(&mut self, tgid: u32) -> Option<u32> {
        self.source.netns(tgid)
    }

    /// All processes of the host that are there now.
    pub fn all(&mut self) -> Vec<(u32, Arc<ProcessInfo>)> {
        let mut all = Vec::new();
        let mut last = 0;
        loop {
            let page = self.source.after(last);
            // Ascending, so that it ends whatever is answered.
            match page.iter().max() {
                Some(&max) if max > last => last = max,
                _ => return all,
            }
            all.extend(page.into_iter().filter_map(|tgid| self.process(tgid).map(|info| (tgid, info))));
        }
    }

    /// True once, when nothing more will be learnt about processes.
    pub fn became_blind(&mut self) -> bool {
        let gone = self.source.is_gone();
        gone && !std::mem::replace(&mut self.warned, gone)
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
