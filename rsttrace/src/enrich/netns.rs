//! Network namespaces and the counters that the kernel keeps in each, read through the processes
//! that live there: no descriptor is held that would keep a namespace alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
    time::Duration,
};

use procfs::process::{Process, all_processes};
use rustix::{
    thread::{LinkNameSpaceType, move_into_link_name_space},
    time::{ClockId, Timespec, clock_getres, clock_gettime},
};

use super::{Processes, netns_of};
use crate::audit::{Counter, Counts, Kernel, MAX_NAMESPACES, Reading};

/// Processes remembered of each namespace, the oldest: one of them should live as long as we do.
const MAX_MEMBERS: usize = 4;
/// How often counters are read until two readings in a row are equal.
const ATTEMPTS: usize = 16;
/// How long to wait between the first readings: longer than a hook and the counter behind it are
/// apart. A namespace that does not rest for so long is read as fast as it goes.
const REST: Duration = Duration::from_micros(500);
const ATTEMPTS_WITH_REST: usize = 4;

/// The namespaces that have processes, or a name.
#[derive(Debug)]
pub struct Namespaces {
    ways: BTreeMap<u32, Ways>,
    /// Nothing else is looked at.
    only: Option<u32>,
    confined: bool,
}

/// How one namespace is reached. The kernel gives its number to another as soon as it is gone: each
/// way says whether it still leads to the same.
#[derive(Debug, Default)]
struct Ways {
    members: Vec<Member>,
    name: Option<Name>,
}

/// A process that lives there, told apart from a later one with its number.
#[derive(Clone, Copy, Debug)]
struct Member {
    pid: i32,
    started: u64,
}

/// A file that `ip netns` has made, told apart from a later one at the same place.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    changed: (i64, i64),
}

impl Namespaces {
    /// All of this host, or the only one of interest.
    pub fn look(only: Option<u32>) -> Self {
        let mut namespaces = Self { ways: BTreeMap::new(), only, confined: false };
        namespaces.scan(|_| Some(u64::MAX), |pid| netns_of(&format!("/proc/{pid}/ns/net")).ok());
        namespaces
    }

    /// From now on nothing is visited: that takes privileges which are about to be given up.
    pub fn confine(&mut self) {
        self.confined = true;
    }

    /// Every namespace that is known.
    pub fn known(&self) -> BTreeSet<u32> {
        self.ways.keys().copied().collect()
    }

    /// Looks for further namespaces, each with the time at which it was there already; what can be
    /// reached under its number, but may have come later, may be another.
    pub fn find(&mut self, further: &BTreeMap<u32, u64>, processes: &mut Processes) {
        let known = self.known();
        if further.keys().any(|netns| !known.contains(netns)) {
            let bound = |netns| further.get(&netns).copied().filter(|_| !known.contains(&netns));
            self.scan(bound, |pid| processes.netns(pid.cast_unsigned()));
        }
    }

    /// The kernel's counters of these; missing where nothing leads to them any more.
    pub fn read(&self, wanted: &BTreeSet<u32>) -> BTreeMap<u32, Reading> {
        let mut open = self.read_once(wanted);
        let mut readings = BTreeMap::new();
        for attempt in 0..ATTEMPTS {
            let rest = if attempt < ATTEMPTS_WITH_REST { REST } else { Duration::ZERO };
            thread::sleep(rest);
            let at_ns = monotonic_ns();
            thread::sleep(rest);
            for (netns, kernel) in self.read_once(open.keys()) {
                let before = open.insert(netns, kernel).unwrap_or_default();
                let reading = Reading { at_ns, kernel, unsteady: kernel.counts.since(&before.counts) };
                let steadiest: &mut Reading = readings.entry(netns).or_insert(reading);
                if reading.unsteady.total() < steadiest.unsteady.total() {
                    *steadiest = reading;
                }
                if kernel == before {
                    open.remove(&netns);
                }
            }
            if open.is_empty() {
                break;
            }
        }
        readings
    }

    fn read_once<'a>(&self, wanted: impl IntoIterator<Item = &'a u32>) -> BTreeMap<u32, Kernel> {
        wanted.into_iter().filter_map(|netns| Some((*netns, self.ways.get(netns)?.counters(*netns, self.confined)?))).collect()
    }

    /// `bound`: whether a namespace is wanted, and until when a way to it must have existed; `home`: where a
    /// process lives.
    fn scan(&mut self, bound: impl Fn(u32) -> Option<u64>, mut home: impl FnMut(i32) -> Option<u32>) {
        let clocks = Clocks::read();
        let own = i32::try_from(std::process::id()).ok();
        let all = all_processes().into_iter().flatten().flatten().map(|process| process.pid());
        // We live as long as we do.
        for pid in own.into_iter().chain(all) {
            let Some(netns) = home(pid) else { continue };
            let Some((ways, until_ns)) = self.room(netns).zip(bound(netns)) else { continue };
            if ways.members.len() < MAX_MEMBERS
                && ways.members.iter().all(|member| member.pid != pid)
                && let Some(started) = started(pid).filter(|started| clocks.started_by(*started) <= until_ns)
            {
                ways.members.push(Member { pid, started });
            }
        }
        for path in names() {
            let Ok(stat) = rustix::fs::stat(&path) else { continue };
            let Ok(netns) = u32::try_from(stat.st_ino) else { continue };
            let Some((ways, until_ns)) = self.room(netns).zip(bound(netns)) else { continue };
            let changed = changed(&stat);
            if clocks.changed_by(changed) <= until_ns {
                ways.name = Some(Name { path, changed });
            }
        }
        self.ways.retain(|_, ways| ways.name.is_some() || !ways.members.is_empty());
    }

    fn room(&mut self, netns: u32) -> Option<&mut Ways> {
        let room = self.ways.len() < MAX_NAMESPACES || self.ways.contains_key(&netns);
        (room && self.only.is_none_or(|only| only == netns)).then(|| self.ways.entry(netns).or_default())
    }
}

impl Ways {
    /// Through the first process that still lives there, else by a visit.
    fn counters(&self, netns: u32, confined: bool) -> Option<Kernel> {
        let by_process = self.members.iter().find_map(|member| {
            let counters = member.lives_in(netns).then(|| read(&member.pid.to_string()))??;
            member.lives_in(netns).then_some(counters)
        });
        by_process.or_else(|| self.name.as_ref().filter(|_| !confined)?.visit(netns))
    }
}

impl Member {
    fn lives_in(&self, netns: u32) -> bool {
        let there = match netns_of(&format!("/proc/{}/ns/net", self.pid)) {
            Ok(now) => now == netns,
            // Where we may not look (another user's, once our privileges are dropped), the same
            // process is taken to have stayed.
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        };
        there && started(self.pid) == Some(self.started)
    }
}

impl Name {
    /// Reads the counters of a namespace without processes, on a thread that goes there; it takes
    /// CAP_SYS_ADMIN. The thread and its descriptor are gone afterwards.
    fn visit(&self, netns: u32) -> Option<Kernel> {
        let file = File::open(&self.path).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        if stat.st_ino != u64::from(netns) || changed(&stat) != self.changed {
            return None;
        }
        let visitor = thread::Builder::new().name("netns".to_owned()).spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
            read("thread-self")
        });
        visitor.ok()?.join().ok()?
    }
}

/// The clocks of /proc and of files, in terms of `CLOCK_MONOTONIC`.
struct Clocks {
    monotonic_ns: i128,
    boot_ns: i128,
    real_ns: i128,
    /// By how much a file's time may be early.
    tick_ns: i128,
}

impl Clocks {
    fn read() -> Self {
        let [monotonic_ns, boot_ns, real_ns] =
            [ClockId::Monotonic, ClockId::Boottime, ClockId::Realtime].map(|clock| ns(clock_gettime(clock)));
        Self { monotonic_ns, boot_ns, real_ns, tick_ns: ns(clock_getres(ClockId::MonotonicCoarse)) }
    }

    /// When a process had certainly started. Ticks of /proc are rounded down.
    fn started_by(&self, ticks: u64) -> u64 {
        let since_boot_ns = (i128::from(ticks) + 1) * 1_000_000_000 / i128::from(procfs::ticks_per_second().max(1));
        not_negative(self.monotonic_ns - self.boot_ns + since_boot_ns)
    }

    /// When a file certainly was what it is.
    fn changed_by(&self, (seconds, nanoseconds): (i64, i64)) -> u64 {
        let changed_ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        not_negative(self.monotonic_ns - self.real_ns + changed_ns + self.tick_ns)
    }
}

fn ns(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

fn not_negative(ns: i128) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

/// A namespace's file is as old as the first look at the namespace that anybody kept.
#[expect(clippy::useless_conversion, reason = "the types differ between C libraries")]
fn changed(stat: &rustix::fs::Stat) -> (i64, i64) {
    (stat.st_ctime.into(), i64::try_from(stat.st_ctime_nsec).unwrap_or(0))
}

fn started(pid: i32) -> Option<u64> {
    Some(Process::new(pid).ok()?.stat().ok()?.starttime)
}

/// Files that `ip netns` has made, one per namespace.
fn names() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.take(MAX_NAMESPACES).map(|entry| entry.path())
}

/// The namespaces that have a name, and it: not longer than `NAME_MAX` allows.
pub fn named() -> Vec<(u32, String)> {
    let number = |path: &PathBuf| u32::try_from(rustix::fs::stat(path).ok()?.st_ino).ok();
    let named = |path: PathBuf| Some((number(&path)?, path.file_name()?.to_string_lossy().into_owned()));
    names().filter_map(named).collect()
}

/// `of`: a process's number, or another name in /proc.
fn read(of: &str) -> Option<Kernel> {
    let file = |name| fs::read_to_string(format!("/proc/{of}/net/{name}")).ok();
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
    not_negative(ns(clock_gettime(ClockId::Monotonic)))
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
        let namespaces = Namespaces::look(Some(own));
        let readings = namespaces.read(&BTreeSet::from([own]));
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
