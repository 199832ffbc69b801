//! What the addresses of a connection were before or behind translation, from the connection tracking of its
//! own network namespace and of the host's. Reading it is dear where the table is large, so this is bounded:
//! a twentieth of a CPU on average, and a slice of time at once.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader},
};

use super::{
    conntrack::{self, Table, View},
    netns_of, process_numbers,
};
use crate::{
    clock::{monotonic_ns, thread_cpu_ns},
    model::{Endpoint, Nat},
};

/// What is asked about one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub netns: u32,
    /// A process that may live in that namespace; 0: none is known.
    pub holder: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// When it began, at the latest: what was translated before was another connection.
    pub since_ns: u64,
    /// When it ended: what was read later has it, if anything has.
    pub ended_ns: u64,
}

/// What is told about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    pub nat: Option<Nat>,
    /// Nothing is translated there, and it will not be looked at again for so long.
    pub quiet_ns: u64,
    /// Something is, but for so long only what is known already will be told.
    pub wait_ns: u64,
}

/// Where connection tracking is read; apart, so that the rest can be tested without a kernel.
pub trait Source {
    type File: io::BufRead;
    /// The namespace of the host.
    fn host(&mut self) -> Option<u32>;
    /// How many connections a namespace follows, and the means to read them.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn open(&mut self, netns: u32, holder: u32) -> Result<(u64, Self::File), Closed>;
    /// `CLOCK_MONOTONIC`.
    fn now_ns(&mut self) -> u64;
    /// How long this thread has been on a CPU.
    fn spent_ns(&mut self) -> u64;
}

/// Why a namespace's connections cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// No process is known that lives there.
    Unreachable,
    /// It has no connection tracking, or we no right to see it.
    Absent,
}

/// Longest time on a CPU that reading takes at once: whoever asked waits for it. Looked at after so many lines.
const SLICE_NS: u64 = 25_000_000;
const LINES: u32 = 16;
/// A namespace without translation is not read again sooner,
const QUIET_NS: u64 = 100_000_000;
/// nor one that nobody is known to live in,
const SEARCH_NS: u64 = 1_000_000_000;
/// nor, where reading takes long or is not possible, than this.
const LONG_QUIET_NS: u64 = 60_000_000_000;
/// What takes longer is not for nothing.
const DEAR_NS: u64 = 100_000_000;
/// The kernel keeps a connection that was reset for so long (`nf_conntrack_tcp_timeout_close`): a table that was not
/// read to its end by then begins anew.
const CYCLE_NS: u64 = 10_000_000_000;
/// Ends of translated connections that are remembered, of all namespaces together; about 100 bytes each.
const MAX_VIEWS: usize = 262_144;
const MAX_NAMESPACES: usize = 256;

/// The translated connections of the namespaces that were asked about.
#[derive(Debug)]
pub struct Tables<S: Source> {
    source: S,
    namespaces: HashMap<u32, Namespace<S::File>>,
    budget: Budget,
    /// Ends that are remembered.
    max_views: usize,
}

#[derive(Debug)]
struct Namespace<F> {
    /// What is being read, and what was before: what is not yet in the one may be in the other.
    table: Table,
    before: Table,
    /// Where reading goes on, if it was stopped.
    rest: Option<F>,
    began_ns: u64,
    /// When reading began that has reached the end.
    complete_ns: u64,
    cost_ns: u64,
    /// Not to be read before.
    next_ns: u64,
}

impl<S: Source> Tables<S> {
    pub fn new(source: S) -> Self {
        Self { source, namespaces: HashMap::new(), budget: Budget::new(20, 100_000_000), max_views: MAX_VIEWS }
    }

    /// What is known of a connection, from its own namespace before the host's.
    pub fn translation(&mut self, of: &Connection) -> Translation {
        let view = (of.local, of.remote);
        let mut quiet_ns = u64::MAX;
        for netns in self.places(of) {
            let known = self.look_up(netns, &view, of.since_ns);
            let nat = known.or_else(|| if self.read(netns, of) { self.look_up(netns, &view, of.since_ns) } else { None });
            quiet_ns = quiet_ns.min(self.quiet_ns(netns));
            if nat.is_some() {
                return Translation { nat: nat.filter(|nat| *nat != Nat::default()), quiet_ns: 0, wait_ns: self.wait_ns() };
            }
        }
        Translation { nat: None, quiet_ns, wait_ns: if quiet_ns == 0 { self.wait_ns() } else { 0 } }
    }

    fn wait_ns(&mut self) -> u64 {
        let now_ns = self.source.now_ns();
        self.budget.wait_ns(now_ns)
    }

    /// Loopback is another one in each namespace.
    fn places(&mut self, of: &Connection) -> impl Iterator<Item = u32> + use<S> {
        let host = self.source.host().filter(|host| *host != of.netns && !of.local.addr.is_loopback());
        [of.netns].into_iter().chain(host)
    }

    fn look_up(&self, netns: u32, view: &View, since_ns: u64) -> Option<Nat> {
        let namespace = self.namespaces.get(&netns)?;
        namespace.table.get(view, since_ns).or_else(|| namespace.before.get(view, since_ns))
    }

    fn quiet_ns(&mut self, netns: u32) -> u64 {
        let now_ns = self.source.now_ns();
        let quiet = |namespace: &Namespace<S::File>| namespace.is_quiet().then(|| namespace.next_ns.saturating_sub(now_ns));
        self.namespaces.get(&netns).and_then(quiet).unwrap_or(0)
    }

    /// Reads, or reads on, if that may help and it is time. Whether anything was read.
    fn read(&mut self, netns: u32, of: &Connection) -> bool {
        let now_ns = self.source.now_ns();
        let due = |namespace: &Namespace<S::File>| namespace.next_ns <= now_ns && namespace.complete_ns < of.ended_ns;
        if !self.namespaces.get(&netns).is_none_or(due) || !self.budget.allows(now_ns) {
            return false;
        }
        let spent_ns = self.source.spent_ns();
        let mut namespace = self.namespaces.remove(&netns).unwrap_or_default();
        namespace.begin_anew_if_late(now_ns);
        let mut room = self.max_views.saturating_sub(self.views() + namespace.before.len());
        if room <= namespace.table.len() {
            // What is new counts more.
            room += std::mem::take(&mut namespace.before).len();
        }
        let file = namespace.rest.take().map_or_else(|| self.source.open(netns, of.holder), |file| Ok((1, file)));
        let outcome = file.map(|(count, file)| if count == 0 { Ok(None) } else { self.read_slice(file, &mut namespace, now_ns, room) });
        let (after_ns, cost_ns) = (self.source.now_ns(), self.source.spent_ns().saturating_sub(spent_ns));
        self.budget.spend(after_ns, cost_ns);
        namespace.cost_ns += cost_ns;
        let has_read = matches!(outcome, Ok(Ok(_)));
        match outcome {
            Ok(Ok(rest)) => namespace.rest = rest,
            Ok(Err(_)) | Err(Closed::Absent) => namespace.next_ns = after_ns + LONG_QUIET_NS,
            Err(Closed::Unreachable) => namespace.next_ns = after_ns + SEARCH_NS,
        }
        if has_read && namespace.rest.is_none() {
            namespace.end_cycle(after_ns);
        }
        self.make_room();
        self.namespaces.insert(netns, namespace);
        has_read
    }

    /// What is left of the file, if anything.
    fn read_slice(&mut self, mut file: S::File, into: &mut Namespace<S::File>, began_ns: u64, room: usize) -> io::Result<Option<S::File>> {
        if into.table.len() >= room {
            return Ok(None);
        }
        let (mut lines, mut full) = (0_u32, false);
        let until_ns = self.source.spent_ns() + SLICE_NS;
        let ended = conntrack::read(&mut file, &mut into.table, began_ns, |table| {
            lines += 1;
            full = table.len() >= room;
            full || lines.is_multiple_of(LINES) && self.source.spent_ns() >= until_ns
        })?;
        Ok((!ended && !full).then_some(file))
    }

    /// Whether files are open: each keeps its namespace alive.
    pub fn holds_files(&self) -> bool {
        self.namespaces.values().any(|namespace| namespace.rest.is_some())
    }

    /// Closes them: what was read so far stays.
    pub fn let_go(&mut self) {
        self.namespaces.values_mut().for_each(|namespace| namespace.rest = None);
    }

    fn views(&self) -> usize {
        self.namespaces.values().map(|namespace| namespace.table.len() + namespace.before.len()).sum()
    }

    /// Namespaces come and go: whichever may be read soonest was read longest ago.
    fn make_room(&mut self) {
        if self.namespaces.len() >= MAX_NAMESPACES
            && let Some(oldest) = self.namespaces.iter().min_by_key(|(_, namespace)| namespace.began_ns).map(|(netns, _)| *netns)
        {
            self.namespaces.remove(&oldest);
        }
    }
}

impl<F> Default for Namespace<F> {
    fn default() -> Self {
        Self { table: Table::default(), before: Table::default(), rest: None, began_ns: 0, complete_ns: 0, cost_ns: 0, next_ns: 0 }
    }
}

impl<F> Namespace<F> {
    fn is_quiet(&self) -> bool {
        self.table.is_empty() && self.before.is_empty() && self.rest.is_none()
    }

    fn begin_anew_if_late(&mut self, now_ns: u64) {
        if self.rest.is_some() && now_ns.saturating_sub(self.began_ns) < CYCLE_NS {
            return;
        }
        self.rest = None;
        self.before = std::mem::take(&mut self.table);
        (self.began_ns, self.cost_ns) = (now_ns, 0);
    }

    /// Once everything was seen.
    fn end_cycle(&mut self, now_ns: u64) {
        let pause_ns = match (self.table.is_empty(), self.cost_ns > DEAR_NS) {
            (false, _) => 0,
            (true, false) => QUIET_NS,
            (true, true) => LONG_QUIET_NS,
        };
        if self.table.is_empty() {
            self.before = Table::default();
        }
        self.complete_ns = self.began_ns;
        self.next_ns = now_ns + pause_ns;
    }
}

/// No more than a share of the time, but for a burst of it at once.
#[derive(Debug)]
pub struct Budget {
    /// Time that must pass for each that is spent.
    times: u64,
    burst_ns: u64,
    /// Everything that was spent is paid for then.
    paid_ns: u64,
}

impl Budget {
    pub fn new(times: u64, burst_ns: u64) -> Self {
        Self { times, burst_ns, paid_ns: 0 }
    }

    pub fn allows(&self, now_ns: u64) -> bool {
        self.paid_ns <= now_ns.saturating_add(self.burst_ns)
    }

    /// Until it allows more.
    pub fn wait_ns(&self, now_ns: u64) -> u64 {
        self.paid_ns.saturating_sub(now_ns.saturating_add(self.burst_ns))
    }

    pub fn spend(&mut self, now_ns: u64, cost_ns: u64) {
        self.paid_ns = self.paid_ns.max(now_ns).saturating_add(cost_ns.saturating_mul(self.times));
    }
}

/// Through the processes that live in a namespace.
#[derive(Debug, Default)]
pub struct ProcConntrack {
    host: Option<u32>,
    /// A process in each namespace.
    members: HashMap<u32, u32>,
    searched_ns: u64,
}

impl Source for ProcConntrack {
    type File = BufReader<File>;

    fn host(&mut self) -> Option<u32> {
        self.host = self.host.or_else(|| home(1));
        self.host
    }

    fn open(&mut self, netns: u32, holder: u32) -> Result<(u64, Self::File), Closed> {
        let member = self.member(netns, holder).ok_or(Closed::Unreachable)?;
        let count = fs::read_to_string(format!("/proc/{member}/net/stat/nf_conntrack")).ok().and_then(|text| conntrack::count(&text));
        let file = File::open(format!("/proc/{member}/net/nf_conntrack")).map_err(|_| Closed::Absent)?;
        // Else the number has passed to another process meanwhile.
        if home(member) != Some(netns) {
            return Err(Closed::Unreachable);
        }
        Ok((count.unwrap_or(1), BufReader::new(file)))
    }

    fn now_ns(&mut self) -> u64 {
        monotonic_ns()
    }

    fn spent_ns(&mut self) -> u64 {
        thread_cpu_ns()
    }
}

impl ProcConntrack {
    fn member(&mut self, netns: u32, holder: u32) -> Option<u32> {
        let known = self.members.get(&netns).copied();
        let lives_there = |pid: &u32| home(*pid) == Some(netns);
        let member = [known, Some(1), Some(holder)].into_iter().flatten().find(lives_there).or_else(|| self.search(netns))?;
        if self.members.len() >= MAX_NAMESPACES {
            self.members.clear();
        }
        self.members.insert(netns, member);
        Some(member)
    }

    fn search(&mut self, netns: u32) -> Option<u32> {
        let now_ns = monotonic_ns();
        if now_ns.saturating_sub(self.searched_ns) < SEARCH_NS {
            return None;
        }
        self.searched_ns = now_ns;
        process_numbers().find(|pid| home(*pid) == Some(netns))
    }
}

fn home(pid: u32) -> Option<u32> {
    netns_of(&format!("/proc/{pid}/ns/net")).ok()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    const HOST: u32 = 1;
    const POD: u32 = 2;
    const CLIENT: &str = "10.1.1.5:40000";
    const SERVICE: &str = "10.96.0.1:443";
    const SERVER: &str = "10.1.2.3:8443";

    fn at(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().unwrap();
        Endpoint { addr: address.ip(), port: address.port() }
    }

    fn line(port: u16, translated: bool) -> String {
        let server = if translated { "src=10.1.2.3 dst=10.1.1.5 sport=8443" } else { "src=10.96.0.1 dst=10.1.1.5 sport=443" };
        format!("ipv4 2 tcp 6 9 CLOSE src=10.1.1.5 dst=10.96.0.1 sport={port} dport=443 {server} dport={port} use=1\n")
    }

    /// Files of namespaces, a clock that stands still but for what a line costs, and how often a file was opened.
    #[derive(Debug, Default)]
    struct Fake {
        files: HashMap<u32, String>,
        now_ns: Rc<Cell<u64>>,
        per_line_ns: u64,
        opened: Rc<Cell<u32>>,
    }

    impl Source for Fake {
        type File = io::Cursor<String>;

        fn host(&mut self) -> Option<u32> {
            Some(HOST)
        }

        fn open(&mut self, netns: u32, _: u32) -> Result<(u64, Self::File), Closed> {
            self.opened.set(self.opened.get() + 1);
            let text = self.files.get(&netns).ok_or(Closed::Absent)?;
            Ok((text.lines().count() as u64, io::Cursor::new(text.clone())))
        }

        fn now_ns(&mut self) -> u64 {
            self.now_ns.get()
        }

        /// Asked once for so many lines.
        fn spent_ns(&mut self) -> u64 {
            self.now_ns.set(self.now_ns.get() + self.per_line_ns * u64::from(LINES));
            self.now_ns.get()
        }
    }

    fn connection(netns: u32, local: &str, remote: &str, since_ns: u64) -> Connection {
        Connection { netns, holder: 0, local: at(local), remote: at(remote), since_ns, ended_ns: u64::MAX }
    }

    fn tables(files: &[(u32, String)], per_line_ns: u64) -> (Tables<Fake>, Rc<Cell<u64>>, Rc<Cell<u32>>) {
        let fake = Fake { files: files.iter().cloned().collect(), per_line_ns, ..Fake::default() };
        fake.now_ns.set(1_000_000_000);
        let (now_ns, opened) = (Rc::clone(&fake.now_ns), Rc::clone(&fake.opened));
        (Tables::new(fake), now_ns, opened)
    }

    fn translated() -> Option<Nat> {
        Some(Nat { original: None, translated: Some(at(SERVER)) })
    }

    #[test]
    fn the_own_namespace_tells_and_else_the_host() {
        for files in [[(POD, line(40_000, true)), (HOST, String::new())], [(POD, String::new()), (HOST, line(40_000, true))]] {
            let (mut tables, ..) = tables(&files, 0);
            assert_eq!(tables.translation(&connection(POD, CLIENT, SERVICE, 0)).nat, translated());
            let original = Some(Nat { original: Some(at(SERVICE)), translated: None });
            assert_eq!(tables.translation(&connection(POD, SERVER, CLIENT, 0)).nat, original);
        }
    }

    #[test]
    fn loopback_is_not_the_hosts() {
        let text =
            "ipv4 2 tcp 6 9 CLOSE src=127.0.0.1 dst=127.0.0.1 sport=4 dport=80 src=127.0.0.1 dst=127.0.0.1 sport=8080 dport=4 use=1\n";
        let (mut tables, ..) = tables(&[(POD, String::new()), (HOST, text.to_owned())], 0);
        assert_eq!(tables.translation(&connection(POD, "127.0.0.1:4", "127.0.0.1:80", 0)).nat, None);
        assert!(tables.translation(&connection(HOST, "127.0.0.1:4", "127.0.0.1:80", 0)).nat.is_some());
    }

    #[test]
    fn an_earlier_connection_between_the_same_addresses_is_not_meant() {
        let (mut tables, now_ns, _) = tables(&[(HOST, line(40_000, true))], 0);
        assert_eq!(tables.translation(&connection(HOST, CLIENT, SERVICE, 0)).nat, translated());
        tables.source.files.insert(HOST, line(40_000, false));
        now_ns.set(now_ns.get() + 1);
        let later = connection(HOST, CLIENT, SERVICE, now_ns.get());
        assert_eq!(tables.translation(&later).nat, None);
    }

    #[test]
    fn where_nothing_is_translated_nobody_needs_to_ask_for_a_while() {
        let (mut tables, now_ns, opened) = tables(&[(HOST, line(40_000, false))], 0);
        let ask = connection(HOST, CLIENT, SERVICE, 0);
        assert_eq!(tables.translation(&ask), Translation { nat: None, quiet_ns: QUIET_NS, wait_ns: 0 });
        assert_eq!(tables.translation(&ask).quiet_ns, QUIET_NS);
        assert_eq!(opened.get(), 1);
        tables.source.files.insert(HOST, line(40_000, true));
        now_ns.set(now_ns.get() + QUIET_NS);
        assert_eq!(tables.translation(&ask), Translation { nat: translated(), quiet_ns: 0, wait_ns: 0 });
        assert_eq!(opened.get(), 2);
        tables.translation(&ask);
        assert_eq!(opened.get(), 2, "what is known is not read again");
    }

    #[test]
    fn without_connection_tracking_a_namespace_is_left_alone() {
        let (mut tables, _, opened) = tables(&[], 0);
        for _ in 0..3 {
            assert_eq!(
                tables.translation(&connection(HOST, CLIENT, SERVICE, 0)),
                Translation { nat: None, quiet_ns: LONG_QUIET_NS, wait_ns: 0 }
            );
        }
        assert_eq!(opened.get(), 1);
    }

    #[test]
    fn what_was_read_after_an_end_is_not_read_again_for_it() {
        let (mut tables, now_ns, opened) = tables(&[(HOST, line(40_000, true))], 0);
        let ended = |ended_ns| Connection { ended_ns, ..connection(HOST, "10.1.1.5:9", SERVICE, 0) };
        for _ in 0..5 {
            assert_eq!(tables.translation(&ended(now_ns.get())).nat, None);
        }
        assert_eq!(opened.get(), 1);
        tables.translation(&ended(now_ns.get() + 1));
        assert_eq!(opened.get(), 2);
    }

    #[test]
    fn who_comes_too_often_is_told_when_to_come_again() {
        let (mut tables, now_ns, _) = tables(&[(HOST, line(40_000, true))], 100_000);
        let ask = connection(HOST, "10.1.1.5:9", SERVICE, 0);
        let wait_ns = std::iter::repeat_with(|| tables.translation(&ask).wait_ns).find(|wait_ns| *wait_ns > 0);
        assert!(wait_ns.is_some_and(|wait_ns| wait_ns < 200_000_000), "{wait_ns:?}");
        now_ns.set(now_ns.get() + wait_ns.unwrap_or(0));
        tables.source.files.insert(HOST, line(9, true));
        assert_eq!(tables.translation(&ask).nat, translated());
    }

    /// A host whose connections take half a second to read, at ten microseconds for each.
    fn large(translated_port: Option<u16>) -> String {
        let half = line(40_000, false).repeat(25_000);
        [half.clone(), translated_port.map(|port| line(port, true)).unwrap_or_default(), half].concat()
    }

    #[test]
    fn a_large_table_is_read_slice_by_slice_at_a_twentieth_of_the_time() {
        let (mut tables, now_ns, opened) = tables(&[(HOST, large(Some(40_001)))], 10_000);
        let ask = connection(HOST, "10.1.1.5:40001", SERVICE, 0);
        let began_ns = now_ns.get();
        let mut busy_ns = 0;
        let found = loop {
            let before_ns = now_ns.get();
            let nat = tables.translation(&ask).nat;
            let took_ns = now_ns.get() - before_ns;
            assert!(took_ns < SLICE_NS * 11 / 10, "nobody waits for longer than a slice: {took_ns}");
            busy_ns += took_ns;
            if nat.is_some() {
                break nat;
            }
            now_ns.set(now_ns.get() + 1_000_000);
            assert!(now_ns.get() - began_ns < CYCLE_NS, "the kernel forgets");
        };
        assert_eq!(found, translated());
        assert_eq!(opened.get(), 1);
        assert!(tables.holds_files());
        tables.let_go();
        assert!(!tables.holds_files());
        assert_eq!(tables.translation(&ask).nat, translated(), "it is not forgotten");
        let (busy, all) = (busy_ns as f64, (now_ns.get() - began_ns) as f64);
        assert!(busy / all < 0.06, "{busy} of {all}");
    }

    #[test]
    fn a_large_table_without_translation_is_not_read_again_for_a_minute() {
        let (mut tables, now_ns, opened) = tables(&[(HOST, large(None))], 10_000);
        let ask = connection(HOST, CLIENT, SERVICE, 0);
        while tables.translation(&ask).quiet_ns == 0 {
            now_ns.set(now_ns.get() + 1_000_000);
        }
        assert!(tables.translation(&ask).quiet_ns > LONG_QUIET_NS * 9 / 10);
        assert_eq!(opened.get(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let text: String = (0..1_000).flat_map(|port| [line(port, true), line(port, true).replace("10.1.1.5", "10.1.1.6")]).collect();
        let (mut tables, ..) = tables(&[(HOST, text.clone()), (POD, text.replace("10.1.1.", "10.1.3."))], 0);
        tables.max_views = 3_000;
        for netns in [HOST, POD, HOST] {
            tables.budget = Budget::new(0, 0);
            tables.translation(&connection(netns, "1.1.1.1:1", SERVICE, 0));
            assert!((2_000..=3_002).contains(&tables.views()), "{}", tables.views());
        }
        for netns in 10..10 + 2 * MAX_NAMESPACES as u32 {
            tables.translation(&connection(netns, "127.0.0.1:1", SERVICE, 0));
        }
        assert!(tables.namespaces.len() <= MAX_NAMESPACES);
    }
}
