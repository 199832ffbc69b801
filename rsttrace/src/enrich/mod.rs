//! Numbers to names, from /proc and /run/netns. May always answer "unknown": processes end.

mod cgroup;
mod conntrack;
pub mod nat;
pub mod netns;
mod proc;
mod users;

use std::{collections::BTreeSet, fmt, os::fd::AsRawFd as _, sync::Arc};

use foldhash::HashMap;
use procfs::process::Process;

pub use self::proc::Proc;
use self::{
    nat::{Budget, Connection, Translation},
    users::Users,
};
use crate::{
    clock::{boot_offset_ns, coarse_ns, monotonic_ns},
    filter::{Lineage, ProcessInfo},
    model::{Comm, Event, Identity, Names, Nat, Owner, Party, Teardown},
};

/// How long an answer about a living process is taken for fresh, and the names of namespaces too.
const FRESH_NS: u64 = 1_000_000_000;
/// Processes remembered; beyond it the half that was looked at longest ago is forgotten.
const MAX_REMEMBERED: usize = 16_384;
/// New processes that are looked at in one go: about 50 us each.
const MAX_NEW: usize = 1_024;
/// No record of a process comes so long after its end.
const GONE_NS: u64 = 60_000_000_000;
/// Namespaces without translation that are remembered as such.
const MAX_QUIET: usize = 4_096;
/// Names of namespaces are read for no more than a hundredth of the time.
const NAMING_TIMES: u64 = 100;
const NAMING_BURST_NS: u64 = 100_000_000;
/// Who asks about translation waits; records must not wait for more than a quarter of the time.
const NAT_TIMES: u64 = 4;
const NAT_BURST_NS: u64 = 200_000_000;
/// In a burst nobody notices that a record is so late: enough for tables that are read in one slice.
const NAT_DELAY_NS: u64 = 500_000_000;

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
    /// The network namespaces that `ip netns` has a name for.
    fn named_netns(&mut self) -> Vec<(u32, String)> {
        Vec::new()
    }
    /// What the addresses of a connection were before or behind translation.
    fn translation(&mut self, _of: &Connection) -> Translation {
        Translation::default()
    }
    /// Files are open that should not be for long,
    fn holds_files(&self) -> bool {
        false
    }
    /// and are closed.
    fn let_go(&mut self) {}
    /// It will never answer again.
    fn is_gone(&self) -> bool {
        false
    }
}

/// What was told about processes, remembered beyond their end.
#[derive(Debug)]
pub struct Processes {
    /// `CLOCK_MONOTONIC`.
    clock: fn() -> u64,
    /// Before anything is traced.
    began_ns: u64,
    known: HashMap<u32, Known>,
    source: Box<dyn ProcessSource>,
    users: Users,
    /// Names of namespaces, and when they were read.
    named: HashMap<u32, Arc<str>>,
    named_ns: u64,
    naming: Budget,
    /// Nothing is translated in these namespaces until then.
    quiet: HashMap<(u32, bool), u64>,
    patience: Budget,
    /// What is translated is not read before then.
    unread_until_ns: u64,
    warned: bool,
}

/// The last that was told about a number.
#[derive(Debug)]
struct Known {
    /// `CLOCK_MONOTONIC`.
    looked_ns: u64,
    /// It was there then.
    lives: bool,
    /// `None`: never seen.
    info: Option<Arc<ProcessInfo>>,
    /// When it had not started yet, at the earliest that /proc's ticks allow; `CLOCK_MONOTONIC`.
    started_ns: u64,
}

impl Known {
    fn is_fresh(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.looked_ns) < FRESH_NS
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self::from(Proc::default())
    }
}

impl<S: ProcessSource + 'static> From<S> for Processes {
    fn from(source: S) -> Self {
        Self {
            clock: coarse_ns,
            began_ns: monotonic_ns(),
            known: HashMap::default(),
            source: Box::new(source),
            users: Users::read(),
            named: HashMap::default(),
            named_ns: 0,
            naming: Budget::new(NAMING_TIMES, NAMING_BURST_NS),
            quiet: HashMap::default(),
            patience: Budget::new(NAT_TIMES, NAT_BURST_NS),
            unread_until_ns: 0,
            warned: false,
        }
    }
}

impl Lineage for Processes {
    fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
        let now_ns = (self.clock)();
        if !self.known.get(&tgid).is_some_and(|known| known.is_fresh(now_ns)) {
            self.look(tgid, now_ns);
        }
        self.known.get(&tgid)?.info.clone()
    }

    fn at(&mut self, party: Party, at_ns: u64) -> Option<Arc<ProcessInfo>> {
        self.meet(party, at_ns);
        let known = self.known.get(&party.tgid)?;
        let info = known.info.as_ref()?;
        // Of a number that nobody has any more, only what the kernel half saw can tell whose it was last.
        let same = known.lives || is_like(info, party);
        (same && known.started_ns <= at_ns).then(|| Arc::clone(info))
    }
}

/// Whether a process is as an event showed it.
fn is_like(info: &ProcessInfo, party: Party) -> bool {
    Comm::from(info.comm.as_str()) == party.process_comm && info.parent == party.parent_tgid
}

/// See [`Known::started_ns`].
fn started_ns(info: &ProcessInfo) -> u64 {
    let since_boot_ns = u128::from(info.started) * 1_000_000_000 / u128::from(procfs::ticks_per_second().max(1));
    u64::try_from(since_boot_ns).unwrap_or(u64::MAX).saturating_sub(boot_offset_ns())
}

/// Names and translations.
impl Processes {
    /// With another clock, for events of another time.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> u64) -> Self {
        self.clock = clock;
        self
    }

    /// Looks at everything that lives now, so that it has a name when it is gone.
    pub fn remember_all(&mut self) {
        self.all();
    }

    /// Looks at what has started since.
    pub fn remember_new(&mut self) {
        let now_ns = (self.clock)();
        let living = self.numbers();
        if self.known.len() > MAX_REMEMBERED / 2 {
            self.known.retain(|tgid, known| living.contains(tgid) || now_ns.saturating_sub(known.looked_ns) < GONE_NS);
        }
        let is_new = |tgid: &u32| self.known.get(tgid).is_none_or(|known| known.info.is_none());
        let new: Vec<_> = living.into_iter().filter(is_new).take(MAX_NEW).collect();
        for tgid in new {
            self.look(tgid, now_ns);
        }
    }

    /// Looks at the processes of an event while they are still there.
    pub fn meet_all(&mut self, event: &Event) {
        let tasks = match event {
            Event::End(end) => [end.owner.as_ref(), end.closer.as_ref()],
            Event::After(after) => [after.task.as_ref(), None],
            Event::Stray(_) | Event::Http(_) | Event::Exec(_) => [None, None],
        };
        for task in tasks.into_iter().flatten().filter(|task| !task.kernel_thread) {
            self.meet(Party::from(task), event.ts_ns());
        }
    }

    /// Looks at a process unless what is known of it holds for that time.
    fn meet(&mut self, party: Party, at_ns: u64) {
        let now_ns = (self.clock)();
        let holds = |known: &Known| {
            // No later look tells more about a time that is over.
            known.looked_ns >= at_ns
                || known.is_fresh(now_ns) && known.info.as_ref().is_none_or(|info| Comm::from(info.comm.as_str()) == party.process_comm)
        };
        if !self.known.get(&party.tgid).is_some_and(holds) {
            self.look(party.tgid, now_ns);
        }
    }

    fn look(&mut self, tgid: u32, now_ns: u64) {
        let told = self.source.process(tgid).map(|info| self.with_user(info));
        self.make_room();
        let before = self.known.remove(&tgid).and_then(|known| known.info);
        let lives = told.is_some();
        let info = match (told, before) {
            // A zombie has no executable and no command line any more.
            (Some(now), Some(before)) if now.started == before.started && now.identity.exe.is_none() && now.cmdline.is_empty() => {
                Some(before)
            }
            (now, before) => now.or(before),
        };
        let started_ns = info.as_deref().map_or(0, started_ns);
        self.known.insert(tgid, Known { looked_ns: now_ns, lives, info, started_ns });
    }

    fn with_user(&self, mut info: ProcessInfo) -> Arc<ProcessInfo> {
        let identity = Arc::make_mut(&mut info.identity);
        identity.user = identity.uid.and_then(|uid| self.users.name(uid));
        Arc::new(info)
    }

    fn make_room(&mut self) {
        if self.known.len() < MAX_REMEMBERED {
            return;
        }
        let mut looked: Vec<_> = self.known.values().map(|known| known.looked_ns).collect();
        let (_, &mut median, _) = looked.select_nth_unstable(MAX_REMEMBERED / 2);
        self.known.retain(|_, known| known.looked_ns > median);
    }

    /// What goes with a record.
    pub fn names(&mut self, t: &Teardown) -> Names {
        Names { owner: self.identity(t), netns: t.netns.and_then(|netns| self.netns_name(netns, t.at_ns)), nat: self.nat(t) }
    }

    /// What the process that holds a socket is.
    pub fn identity(&mut self, t: &Teardown) -> Option<Arc<Identity>> {
        let owner = t.owner.as_ref().and_then(|owner| self.at(Party::from(owner), t.held_ns()))?;
        Some(Arc::clone(&owner.identity))
    }

    /// What `ip netns` calls a namespace. A number is given to another as soon as it is free: names that were read
    /// before an event are believed only where it comes in a burst.
    fn netns_name(&mut self, netns: u32, at_ns: u64) -> Option<Arc<str>> {
        let now_ns = (self.clock)();
        let stale = now_ns.saturating_sub(self.named_ns) >= FRESH_NS;
        if self.named_ns <= at_ns && (stale || self.naming.allows(now_ns)) {
            self.read_netns_names(now_ns);
        }
        self.named.get(&netns).cloned()
    }

    fn read_netns_names(&mut self, now_ns: u64) {
        let begun_ns = monotonic_ns();
        self.named = self.source.named_netns().into_iter().map(|(netns, name)| (netns, Arc::from(name))).collect();
        self.named_ns = now_ns;
        self.naming.spend(now_ns, monotonic_ns().saturating_sub(begun_ns));
    }

    /// What the addresses of a record were before or behind translation.
    pub fn nat(&mut self, t: &Teardown) -> Option<Nat> {
        // Without an age it is older than the trace.
        let since_ns = t.age_ns.map_or(self.began_ns, |age_ns| t.at_ns.saturating_sub(age_ns));
        let holder = t.owner.map_or(0, |owner| owner.tgid);
        self.translated(&Connection { netns: t.netns?, holder, local: t.local, remote: t.remote, since_ns, ended_ns: t.at_ns })
    }

    /// Asks, unless it is known to be for nothing, or has taken too long of late.
    fn translated(&mut self, of: &Connection) -> Option<Nat> {
        // What stays within a namespace is translated there alone.
        let place = (of.netns, of.local.addr.is_loopback());
        let now_ns = (self.clock)();
        if self.quiet.get(&place).is_some_and(|until_ns| now_ns < *until_ns) || !self.patience.allows(now_ns) {
            return None;
        }
        let now_ns = monotonic_ns();
        let told = self.source.translation(of);
        let after_ns = monotonic_ns();
        self.patience.spend(after_ns, after_ns.saturating_sub(now_ns));
        if told.quiet_ns > 0 {
            if self.quiet.len() >= MAX_QUIET {
                self.quiet.clear();
            }
            self.quiet.insert(place, after_ns.saturating_add(told.quiet_ns));
        }
        self.unread_until_ns = after_ns.saturating_add(told.wait_ns);
        told.nat
    }

    /// Where some connections are translated: when more will be known of those that end now, if that is soon.
    pub fn worth_waiting_until_ns(&self, now_ns: u64) -> Option<u64> {
        (now_ns..now_ns + NAT_DELAY_NS).contains(&self.unread_until_ns).then_some(self.unread_until_ns)
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
        let numbers = self.numbers();
        numbers.into_iter().filter_map(|tgid| self.process(tgid).map(|info| (tgid, info))).collect()
    }

    fn numbers(&mut self) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        let mut last = 0;
        loop {
            let page = self.source.after(last);
            // Ascending, so that it ends whatever is answered.
            match page.iter().max() {
                Some(&max) if max > last => last = max,
                _ => return all,
            }
            all.extend(page);
        }
    }

    /// True once, when nothing more will be learnt about processes.
    pub fn became_blind(&mut self) -> bool {
        let gone = self.source.is_gone();
        gone && !std::mem::replace(&mut self.warned, gone)
    }
}

/// Numbers of living processes, in ascending order.
fn process_numbers() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Inode number of the network namespace that a path leads to, as the kernel half reports it.
///
/// # Errors
/// When the path cannot be looked at.
pub fn netns_of(path: &str) -> std::io::Result<u32> {
    let inode = rustix::fs::stat(path)?.st_ino;
    u32::try_from(inode).map_err(std::io::Error::other)
}

/// The network namespace that a file is.
///
/// # Errors
/// When the file cannot be looked at; `InvalidInput` when it is something else.
pub fn netns_at(path: &str) -> std::io::Result<u32> {
    let other = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "this is no network namespace");
    // Before it is opened: a pipe would wait for its other end.
    if rustix::fs::statfs(path)?.f_type != libc::NSFS_MAGIC {
        return Err(other());
    }
    let file = std::fs::File::open(path)?;
    // SAFETY: the descriptor is open; this request takes no argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) } != libc::CLONE_NEWNET {
        return Err(other());
    }
    u32::try_from(rustix::fs::fstat(&file)?.st_ino).map_err(std::io::Error::other)
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::model::{Endpoint, Identity, Place};

    /// Processes that can be ended and replaced, and how often anybody asked.
    #[derive(Clone, Debug, Default)]
    struct Fake(Rc<RefCell<Told>>);

    #[derive(Debug, Default)]
    struct Told {
        processes: HashMap<u32, ProcessInfo>,
        named: Vec<(u32, String)>,
        translation: Translation,
        asked: u32,
    }

    impl ProcessSource for Fake {
        fn process(&mut self, tgid: u32) -> Option<ProcessInfo> {
            self.0.borrow_mut().asked += 1;
            self.0.borrow().processes.get(&tgid).cloned()
        }

        fn holder(&mut self, _: u64) -> Option<u32> {
            None
        }

        fn after(&mut self, tgid: u32) -> Vec<u32> {
            let mut all: Vec<_> = self.0.borrow().processes.keys().copied().filter(|number| *number > tgid).collect();
            all.sort_unstable();
            all.truncate(3);
            all
        }

        fn netns(&mut self, _: u32) -> Option<u32> {
            None
        }

        fn named_netns(&mut self) -> Vec<(u32, String)> {
            self.0.borrow_mut().asked += 1;
            self.0.borrow().named.clone()
        }

        fn translation(&mut self, _: &Connection) -> Translation {
            self.0.borrow_mut().asked += 1;
            self.0.borrow().translation
        }
    }

    /// Ticks since boot, now.
    fn ticks_now() -> u64 {
        (monotonic_ns() + boot_offset_ns()) / (1_000_000_000 / procfs::ticks_per_second())
    }

    fn process(comm: &str, started: u64) -> ProcessInfo {
        let place = Place { unit: Some(format!("{comm}.service")), ..Place::default() };
        let identity = Arc::new(Identity { exe: Some(format!("/usr/sbin/{comm}")), uid: Some(0), user: None, ns_tgid: None, place });
        ProcessInfo { comm: comm.to_owned(), cmdline: comm.to_owned(), parent: 1, started, identity }
    }

    fn party(tgid: u32, comm: &str) -> Party {
        Party { tgid, parent_tgid: 1, comm: Comm::from("thread"), process_comm: Comm::from(comm) }
    }

    fn exe(info: Option<Arc<ProcessInfo>>) -> Option<String> {
        info.and_then(|info| info.identity.exe.clone())
    }

    fn with(processes: &[(u32, ProcessInfo)]) -> (Processes, Fake) {
        let fake = Fake::default();
        fake.0.borrow_mut().processes = processes.iter().cloned().collect();
        (Processes::from(fake.clone()), fake)
    }

    #[test]
    fn all_are_remembered_beyond_their_end_if_they_are_looked_at_in_time() {
        let all: Vec<_> = (1..=7).map(|tgid| (tgid, process("nginx", 0))).collect();
        let (mut processes, fake) = with(&all);
        processes.remember_all();
        fake.0.borrow_mut().processes.clear();
        let later_ns = monotonic_ns() + 2 * FRESH_NS;
        for tgid in 1..=7 {
            assert_eq!(exe(processes.at(party(tgid, "nginx"), later_ns)).as_deref(), Some("/usr/sbin/nginx"), "{tgid}");
        }
        assert!(processes.at(party(8, "nginx"), later_ns).is_none());
    }

    #[test]
    fn newcomers_are_looked_at_once_and_the_gone_make_room() {
        let (mut processes, fake) = with(&[(1, process("init", 0))]);
        processes.remember_all();
        fake.0.borrow_mut().processes.insert(7, process("nginx", 0));
        for _ in 0..3 {
            processes.remember_new();
        }
        assert_eq!(fake.0.borrow().asked, 2, "init, nginx");
        fake.0.borrow_mut().processes.remove(&7);
        let later_ns = monotonic_ns() + 2 * FRESH_NS;
        assert!(processes.at(party(7, "nginx"), later_ns).is_some());

        let gone = |tgid| (tgid, Known { looked_ns: 0, lives: true, info: Some(Arc::new(process("x", 0))), started_ns: 0 });
        processes.known.extend((100..100 + MAX_REMEMBERED as u32 / 2).map(gone));
        processes.remember_new();
        // Whether a minute has passed since the machine started does not matter to those that live.
        assert!(processes.known.contains_key(&1) && processes.known.contains_key(&7));
        assert_eq!(processes.known.contains_key(&100), monotonic_ns() < GONE_NS);
    }

    #[test]
    fn a_process_that_started_after_the_event_is_not_the_one_that_was_meant() {
        let (mut processes, _) = with(&[(7, process("nginx", ticks_now() + 100))]);
        assert_eq!(exe(processes.at(party(7, "nginx"), monotonic_ns())), None);
        let (mut processes, _) = with(&[(7, process("nginx", ticks_now()))]);
        assert!(processes.at(party(7, "nginx"), monotonic_ns()).is_some());
    }

    #[test]
    fn a_number_that_was_used_again_inherits_nothing() {
        let (mut processes, fake) = with(&[(7, process("nginx", 0))]);
        processes.remember_all();
        let event_ns = monotonic_ns() + 1;
        fake.0.borrow_mut().processes.insert(7, process("curl", ticks_now()));
        assert_eq!(exe(processes.at(party(7, "curl"), event_ns)).as_deref(), Some("/usr/sbin/curl"));
        // It came and went unseen: what the kernel half saw is not what was here before.
        let (mut processes, fake) = with(&[(7, process("nginx", 0))]);
        processes.remember_all();
        fake.0.borrow_mut().processes.clear();
        let event_ns = monotonic_ns() + 2 * FRESH_NS;
        assert_eq!(exe(processes.at(party(7, "curl"), event_ns)), None);
        let stranger = Party { parent_tgid: 99, ..party(7, "nginx") };
        assert_eq!(exe(processes.at(stranger, event_ns)), None);
    }

    #[test]
    fn an_exec_after_the_last_look_is_noticed() {
        let (mut processes, fake) = with(&[(7, process("sh", 0))]);
        processes.remember_all();
        fake.0.borrow_mut().processes.insert(7, process("curl", 0));
        assert_eq!(exe(processes.at(party(7, "curl"), monotonic_ns())).as_deref(), Some("/usr/sbin/curl"));
    }

    #[test]
    fn a_zombie_keeps_what_it_had() {
        let (mut processes, fake) = with(&[(7, process("nginx", 5))]);
        processes.remember_all();
        fake.0.borrow_mut().processes.insert(7, ProcessInfo { identity: Arc::default(), ..process("nginx", 5) });
        assert_eq!(exe(processes.at(party(7, "nginx"), monotonic_ns() + 2 * FRESH_NS)).as_deref(), Some("/usr/sbin/nginx"));
    }

    #[test]
    fn nobody_is_asked_twice_about_the_same_moment() {
        let (mut processes, fake) = with(&[]);
        let at_ns = monotonic_ns();
        for _ in 0..5 {
            assert!(processes.at(party(7, "nginx"), at_ns).is_none());
        }
        assert_eq!(fake.0.borrow().asked, 1);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let (mut processes, fake) = with(&[]);
        let last = 2 * MAX_REMEMBERED as u32;
        for tgid in 1..=last {
            fake.0.borrow_mut().processes = HashMap::from_iter([(tgid, process("x", 0))]);
            processes.process(tgid);
            assert!(processes.known.len() <= MAX_REMEMBERED);
        }
        assert!(processes.known.contains_key(&last) && processes.known.len() >= MAX_REMEMBERED / 2);
    }

    #[test]
    fn names_of_namespaces_are_as_new_as_the_event() {
        let (mut processes, fake) = with(&[]);
        let name = |processes: &mut Processes, netns| processes.netns_name(netns, monotonic_ns()).map(|name| name.to_string());
        fake.0.borrow_mut().named = vec![(1, "blue".to_owned())];
        assert_eq!(name(&mut processes, 1).as_deref(), Some("blue"));
        assert_eq!(name(&mut processes, 2), None);
        // The number was given to another one.
        fake.0.borrow_mut().named = vec![(1, "red".to_owned()), (2, "green".to_owned())];
        assert_eq!(name(&mut processes, 2).as_deref(), Some("green"));
        assert_eq!(name(&mut processes, 1).as_deref(), Some("red"));
        let (asked, past_ns) = (fake.0.borrow().asked, monotonic_ns() - 1_000_000);
        assert!(processes.netns_name(3, past_ns.min(processes.named_ns - 1)).is_none());
        assert_eq!(fake.0.borrow().asked, asked, "nothing newer is known of that time");
        // In a burst they are believed.
        processes.naming.spend(monotonic_ns(), 1_000_000_000);
        assert_eq!(name(&mut processes, 1).as_deref(), Some("red"));
        assert_eq!(fake.0.borrow().asked, asked);
    }

    #[test]
    fn a_quiet_namespace_is_left_alone() {
        let (mut processes, fake) = with(&[]);
        let end = |port| Endpoint::v4([10, 0, 0, 1], port);
        let mut ask =
            |netns| processes.translated(&Connection { netns, holder: 0, local: end(1), remote: end(2), since_ns: 0, ended_ns: 0 });
        fake.0.borrow_mut().translation = Translation { quiet_ns: u64::MAX, ..Translation::default() };
        assert_eq!((ask(1), ask(1), ask(2)), (None, None, None));
        assert_eq!(fake.0.borrow().asked, 2);
        let nat = Nat { original: Some(end(3)), translated: None };
        fake.0.borrow_mut().translation = Translation { nat: Some(nat), wait_ns: NAT_DELAY_NS / 2, ..Translation::default() };
        assert_eq!((ask(3), ask(3)), (Some(nat), Some(nat)));
        assert_eq!(fake.0.borrow().asked, 4);
        let now_ns = monotonic_ns();
        let until_ns = processes.worth_waiting_until_ns(now_ns).unwrap();
        assert!((now_ns..now_ns + NAT_DELAY_NS).contains(&until_ns));
        assert_eq!(processes.worth_waiting_until_ns(until_ns + 1), None);
    }
}
