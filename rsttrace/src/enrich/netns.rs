//! Network namespaces and the counters that the kernel keeps in each, read through the processes
//! that live there: no descriptor is held that would keep a namespace alive.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io, thread,
    time::Duration,
};

use procfs::process::{Process, all_processes};
use rustix::time::ClockId;

use super::netns_of;
use crate::audit::{Counter, Counts, Kernel, MAX_NAMESPACES, Reading};

/// Processes remembered of each namespace, the oldest: one of them should live as long as we do.
const MAX_MEMBERS: usize = 8;
/// How often counters are read until two readings in a row are equal.
const ATTEMPTS: usize = 16;
/// How long to wait between the first readings: longer than a hook and the counter behind it are
/// apart. A namespace that does not rest for so long is read as fast as it goes.
const REST: Duration = Duration::from_micros(500);
const ATTEMPTS_WITH_REST: usize = 4;

/// A process, told apart from a later one with its number.
#[derive(Clone, Copy, Debug)]
struct Member {
    pid: i32,
    started: u64,
}

/// The namespaces that processes live in.
#[derive(Debug)]
pub struct Namespaces {
    members: BTreeMap<u32, Vec<Member>>,
    /// Had a name under /run/netns when we looked first, with or without a process in it.
    named: HashSet<u32>,
    /// Nothing else is looked at.
    only: Option<u32>,
}

impl Namespaces {
    /// All of this host, or the only one of interest.
    pub fn look(only: Option<u32>) -> Self {
        let mut namespaces = Self { members: BTreeMap::new(), named: named(), only };
        namespaces.look_again();
        namespaces
    }

    /// Whether it was there, in name or with a process, when we looked first.
    pub fn is_named(&self, netns: u32) -> bool {
        self.named.contains(&netns)
    }

    /// The kernel's counters of these, or of all; those that no remembered process leads to are missing.
    pub fn read(&mut self, wanted: Option<&BTreeSet<u32>>) -> BTreeMap<u32, Reading> {
        let mut open: BTreeMap<u32, Kernel> = match wanted {
            Some(wanted) => wanted.iter().filter_map(|&netns| Some((netns, self.counters(netns)?))).collect(),
            None => self.members.keys().filter_map(|&netns| Some((netns, self.counters(netns)?))).collect(),
        };
        if wanted.is_some_and(|wanted| open.len() < wanted.len()) {
            // Those whom we remember have left: others may have come.
            self.look_again();
            let missing: Vec<u32> = wanted.into_iter().flatten().copied().filter(|netns| !open.contains_key(netns)).collect();
            open.extend(missing.into_iter().filter_map(|netns| Some((netns, self.counters(netns)?))));
        }
        let mut readings = BTreeMap::new();
        for attempt in 0..ATTEMPTS {
            let rest = if attempt < ATTEMPTS_WITH_REST { REST } else { Duration::ZERO };
            thread::sleep(rest);
            let at_ns = monotonic_ns();
            thread::sleep(rest);
            for (netns, before) in std::mem::take(&mut open) {
                let Some(kernel) = self.counters(netns) else { continue };
                let unsteady = kernel.counts.since(&before.counts);
                readings.insert(netns, Reading { at_ns, kernel, unsteady });
                if kernel != before {
                    open.insert(netns, kernel);
                }
            }
            if open.is_empty() {
                break;
            }
        }
        readings
    }

    /// Finds namespaces, and further members of those that are known.
    fn look_again(&mut self) {
        let own = i32::try_from(std::process::id()).ok();
        let all = all_processes().into_iter().flatten().flatten().map(|process| process.pid());
        // We live as long as we do.
        for pid in own.into_iter().chain(all) {
            let Ok(netns) = netns_of(&format!("/proc/{pid}/ns/net")) else { continue };
            if self.only.is_some_and(|only| only != netns) {
                continue;
            }
            if self.members.len() >= MAX_NAMESPACES && !self.members.contains_key(&netns) {
                continue;
            }
            let members = self.members.entry(netns).or_default();
            if members.len() >= MAX_MEMBERS {
                members.retain(|member| started(member.pid) == Some(member.started));
            }
            if members.len() < MAX_MEMBERS
                && members.iter().all(|member| member.pid != pid)
                && let Some(started) = started(pid)
            {
                members.push(Member { pid, started });
            }
        }
    }

    /// Through the first process that still lives there.
    fn counters(&self, netns: u32) -> Option<Kernel> {
        self.members.get(&netns)?.iter().find_map(|member| {
            let lives_there = || {
                // Where we may not look (another user's, after our privileges are dropped), the
                // same process is taken to have stayed.
                let there = netns_of(&format!("/proc/{}/ns/net", member.pid))
                    .map_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied, |now| now == netns);
                there && started(member.pid) == Some(member.started)
            };
            let counters = lives_there().then(|| read(member.pid))??;
            lives_there().then_some(counters)
        })
    }
}

fn started(pid: i32) -> Option<u64> {
    Some(Process::new(pid).ok()?.stat().ok()?.starttime)
}

/// Those that `ip netns` lists.
fn named() -> HashSet<u32> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| netns_of(entry.path().to_str()?).ok()).collect()
}

fn read(pid: i32) -> Option<Kernel> {
    let file = |name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
    parse(&file("snmp")?, &file("netstat")?)
}

/// `None` where a counter is missing.
fn parse(snmp: &str, netstat: &str) -> Option<Kernel> {
    let find = |name: &str| value(snmp, "Tcp:", name).or_else(|| value(netstat, "TcpExt:", name));
    let mut counts = Counts::default();
    for counter in Counter::ALL {
        counts[counter] = find(counter.name())?;
    }
    Some(Kernel { counts, embryonic: find("EmbryonicRsts")? })
}

/// A line of names, and behind it a line of values, both of which begin with the protocol.
fn value(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let (_, value) = names.split(' ').zip(values.split(' ')).find(|(candidate, _)| *candidate == name)?;
    value.parse().ok()
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SNMP: &str = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoMin MaxConn AttemptFails EstabResets OutRsts\nTcp: 200 -1 3 5 7\n";
    const NETSTAT: &str = "TcpExt: EmbryonicRsts TCPAbortOnData TCPAbortOnClose TCPAbortOnTimeout TCPAbortOnLinger\nTcpExt: 1 2 4 6 8\nIpExt: InNoRoutes\nIpExt: 0\n";

    #[test]
    fn counters_are_found_by_their_names() {
        let kernel = parse(SNMP, NETSTAT).unwrap();
        let values = Counter::ALL.map(|counter| kernel.counts[counter]);
        assert_eq!((values, kernel.embryonic), ([5, 7, 3, 2, 4, 8, 6], 1));
    }

    #[test]
    fn a_counter_that_is_missing_is_no_zero() {
        assert_eq!(parse(SNMP, ""), None);
        assert_eq!(parse(&SNMP.replace("OutRsts", "Else"), NETSTAT), None);
        assert_eq!(parse(&SNMP.replace("5 7", "5 -7"), NETSTAT), None);
    }

    #[test]
    fn our_own_namespace_is_read_and_steady() {
        let own = netns_of("/proc/self/ns/net").unwrap();
        let mut namespaces = Namespaces::look(Some(own));
        let readings = namespaces.read(None);
        assert_eq!(readings.keys().copied().collect::<Vec<_>>(), [own]);
        assert!(readings[&own].at_ns <= monotonic_ns());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(snmp in any::<String>(), netstat in any::<String>()) {
            let _ = parse(&snmp, &netstat);
        }
    }
}
