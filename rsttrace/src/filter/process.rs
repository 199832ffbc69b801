//! Which processes are meant by `--pid` and `--cmdline`: they and their descendants, whenever
//! those start.

use std::{fmt, sync::Arc};

use crate::model::{Identity, Party};

/// What is known of a process by its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    pub comm: String,
    /// Arguments joined by spaces.
    pub cmdline: String,
    pub parent: u32,
    /// Since boot, in clock ticks: tells it from an earlier process with its number.
    pub started: u64,
    pub identity: Arc<Identity>,
}

impl ProcessInfo {
    /// Base name of the executable, where it can be read.
    pub fn exe_name(&self) -> Option<&str> {
        self.identity.exe.as_deref().map(|path| path.rsplit_once('/').map_or(path, |(_, name)| name))
    }
}

/// Where processes are looked up.
pub trait Lineage {
    /// `None`: gone, and never seen while it lived.
    fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>>;
    /// The process that was meant at a time (`CLOCK_MONOTONIC`), and not a later one with its number.
    fn at(&mut self, party: Party, at_ns: u64) -> Option<Arc<ProcessInfo>>;
    /// What records that were saved call the network namespace with this inode number.
    fn netns_name(&mut self, _inode: u32) -> Option<Arc<str>> {
        None
    }
}

/// One `--pid` or `--cmdline` value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessSelector {
    Pid(u32),
    /// Exact comm or executable's name.
    Name(String),
    /// Part of the command line.
    Cmdline(String),
}

impl fmt::Display for ProcessSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Name(name) => f.write_str(name),
            Self::Cmdline(text) => write!(f, "{text:?}"),
        }
    }
}

impl ProcessSelector {
    /// Whether this very process is meant; ancestors are the caller's care.
    pub fn selects(&self, tgid: u32, info: &ProcessInfo) -> bool {
        match self {
            Self::Pid(pid) => *pid == tgid,
            // The kernel cuts comm at 15 bytes.
            Self::Name(name) => {
                info.comm == *name || info.exe_name() == Some(name) || name.len() > 15 && info.comm == name[..floor(name, 15)]
            }
            Self::Cmdline(text) => info.cmdline.contains(text.as_str()),
        }
    }
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// Deeper families than this are not followed: a loop in /proc's answers must end.
const MAX_GENERATIONS: usize = 64;

/// Whether a process is selected, itself or through an ancestor. `parent` and `comm` are what the
/// kernel half saw, for processes that are gone.
pub fn matches(selectors: &[ProcessSelector], tgid: u32, parent: u32, comm: &str, lineage: &mut dyn Lineage) -> bool {
    let seen = ProcessInfo { comm: comm.to_owned(), parent, ..ProcessInfo::default() };
    if selectors.iter().any(|selector| selector.selects(tgid, &seen)) {
        return true;
    }
    let mut tgid = tgid;
    let mut info = lineage.process(tgid).unwrap_or_else(|| Arc::new(seen));
    for _ in 0..MAX_GENERATIONS {
        if selectors.iter().any(|selector| selector.selects(tgid, &info)) {
            return true;
        }
        tgid = info.parent;
        if tgid == 0 {
            return false;
        }
        let Some(parent) = lineage.process(tgid) else {
            return selectors.contains(&ProcessSelector::Pid(tgid));
        };
        info = parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Fake(HashMap<u32, ProcessInfo>);

    impl Lineage for Fake {
        fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
            self.0.get(&tgid).cloned().map(Arc::new)
        }

        fn at(&mut self, party: Party, _: u64) -> Option<Arc<ProcessInfo>> {
            self.process(party.tgid)
        }
    }

    fn family() -> Fake {
        let process = |comm: &str, exe: &str, parent| ProcessInfo {
            comm: comm.to_owned(),
            cmdline: format!("/usr/sbin/{exe} -c x"),
            parent,
            identity: Arc::new(Identity { exe: Some(format!("/usr/sbin/{exe}")), ..Identity::default() }),
            ..ProcessInfo::default()
        };
        Fake(HashMap::from([
            (1, process("systemd", "systemd", 0)),
            (10, process("nginx", "nginx", 1)),
            (11, process("worker", "nginx", 10)),
            (12, process("looping", "a", 12)),
        ]))
    }

    fn name(text: &str) -> Vec<ProcessSelector> {
        vec![ProcessSelector::Name(text.to_owned())]
    }

    #[test]
    fn descendants_are_meant_too() {
        assert!(matches(&[ProcessSelector::Pid(10)], 11, 10, "worker", &mut family()));
        assert!(matches(&name("nginx"), 11, 10, "worker", &mut family()));
        assert!(!matches(&name("apache2"), 11, 10, "worker", &mut family()));
        assert!(matches(&[ProcessSelector::Cmdline("-c x".to_owned())], 11, 10, "worker", &mut family()));
    }

    #[test]
    fn the_dead_are_matched_by_what_the_kernel_saw() {
        assert!(matches(&name("nginx"), 99, 10, "x", &mut family()), "by its parent");
        assert!(matches(&name("curl"), 99, 98, "curl", &mut family()), "by its name");
        assert!(matches(&[ProcessSelector::Pid(98)], 99, 98, "x", &mut family()), "by a dead parent's number");
        assert!(!matches(&name("nginx"), 99, 98, "x", &mut family()));
    }

    #[test]
    fn long_names_match_what_the_kernel_keeps_of_them() {
        assert!(matches(&name("systemd-resolved-helper"), 99, 0, "systemd-resolve", &mut family()));
    }

    #[test]
    fn a_loop_ends() {
        assert!(!matches(&name("nginx"), 12, 12, "looping", &mut family()));
    }
}
