//! Nobody reads the tracer's stdout while many connections end: whoever is traced does not notice, the newest
//! ends are lost and counted, those of the chosen processes are kept before others, and it goes on by itself.
//!
//! The loss counters are the host's and know no namespace, so somebody else's ends may be among them: fewer than
//! made is a failure, more is one where nobody else had an end by the kernel's own counters.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use rsttrace_tests::{
    Actor, Flow, NetNs, Run, Tracer, is_stray,
    peers::{abort, connect_from, counters, linger_zero, listen},
    require_root, wait_until,
};
use serde_json::{Value, json};

/// Fills the ring several times.
const STORM: usize = 600;
/// How often somebody else may disturb.
const TRIES: usize = 5;
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// The losses of one test must not be those of another.
static ALONE: Mutex<()> = Mutex::new(());

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = listen(ANY, 100).expect("listen");
    let SocketAddr::V4(address) = listener.local_addr().expect("bound") else { panic!("bound to IPv4") };
    (listener, address)
}

/// Makes a connection that the client aborts; the server sees it. Returns it as the client sees it.
fn abort_one(listener: &TcpListener, address: SocketAddrV4) -> Flow {
    let client = connect_from(ANY, address).expect("connect");
    let flow = Flow::new(client.local_addr().expect("connected"), SocketAddr::V4(address));
    let (mut server, _) = listener.accept().expect("accept");
    abort(client);
    assert_eq!(server.read(&mut [0]).expect_err("the RST").kind(), ErrorKind::ConnectionReset);
    flow
}

fn storm() {
    let (listener, address) = listener();
    for _ in 0..STORM {
        abort_one(&listener, address);
    }
}

/// Ends made in the calling thread's namespace by the kernel's count, if all are resets.
fn ends_made() -> usize {
    let counters = counters();
    let strays = counters["OutRsts"] * 2 - counters["EstabResets"];
    assert_eq!(strays, 0, "every RST ends two sockets");
    counters["EstabResets"] as usize
}

/// What the summary accounts for.
#[derive(Debug)]
struct Accounts {
    made: usize,
    /// Records and ends that did not match.
    told: usize,
    lost: usize,
    /// No other namespace had a RST.
    alone: bool,
}

impl Accounts {
    fn of(run: &Run, netns: &NetNs, made: usize) -> Self {
        let lost = &run.summary["lost"];
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let by_hook: usize = lost["by_hook"].as_object().expect("by hook").values().map(number).sum();
        assert_eq!(by_hook, number(&lost["total"]), "{lost}");
        assert_eq!(run.summary["undecodable"], 0);
        let told = run.teardowns().filter(|record| record["netns"] == netns.inode() && !is_stray(record)).count();
        let audited = run.summary["audit"].as_array().expect("an audit");
        let alone = audited.iter().all(|counter| counter["netns"] == netns.inode() || counter["kernel"] == 0);
        Self { made, told: told + number(&run.summary["filtered"]), lost: number(&lost["records"]), alone }
    }
}

/// Told and lost are all that was made, as soon as somebody else does not disturb.
fn add_up(mut attempt: impl FnMut() -> Accounts) {
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let accounts = attempt();
        println!("{accounts:?}");
        let Accounts { made, told, lost, .. } = accounts;
        assert!(lost > 0, "nothing was lost, nothing was tested");
        assert!(told + lost >= made, "{accounts:?}");
        if told + lost == made {
            return;
        }
        seen.push(accounts);
    }
    assert!(seen.iter().all(|accounts| !accounts.alone), "more than was made: {seen:?}");
    println!("somebody else's connections ended meanwhile, every time: only that nothing is missing was tested");
}

/// What was said to be lost, line by line.
fn said(stderr: &str) -> Vec<u64> {
    let lines = stderr.lines().filter_map(|line| line.strip_prefix("rsttrace: warning: ")?.split_once(" events lost"));
    lines.map(|(number, _)| number.replace(',', "").parse().expect("a number")).collect()
}

/// Where nobody reads for a while.
fn nobody_reads_for_a_while() -> Accounts {
    let netns = NetNs::new();
    let begun = Instant::now();
    let mut tracer = Tracer::start_unread(&["--buffer", "64k"]);
    // It ends, though nobody reads: nobody waits for the tracer.
    netns.run_in(storm);
    tracer.wait_stuck();
    // Said before anybody reads.
    tracer.wait_stderr("events lost");
    tracer.wait_stuck();
    tracer.read_on();
    // As long as the ring is full, the newest are lost; then they are not any more.
    netns.run_in(|| {
        let (listener, address) = listener();
        let mut new = Vec::new();
        wait_until("an end is told again", || {
            new.push(abort_one(&listener, address));
            !tracer.matching(|record| new.iter().any(|flow| flow.matches(record))).is_empty()
        });
    });
    let made = netns.run_in(ends_made);
    let run = tracer.stop();
    let said = said(&run.stderr);
    let seconds = begun.elapsed().as_secs();
    assert!(said.len() as u64 <= seconds + 1, "{} lines about losses in {seconds} s", said.len());
    assert!(said.iter().sum::<u64>() <= run.summary["lost"]["total"].as_u64().expect("a number"), "{said:?}: {}", run.summary);
    Accounts::of(&run, &netns, made)
}

#[test]
fn a_reader_that_does_not_read_costs_the_newest_records_and_nobody_else_anything() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    add_up(nobody_reads_for_a_while);
}

/// A small process, and what it talks to.
struct Small {
    actor: Actor,
    listener: TcpListener,
    address: SocketAddrV4,
    /// Its ends, as it sees them.
    ended: Vec<Flow>,
}

impl Small {
    /// One more of its connections ends: reset by its peer, and it sees that.
    fn is_reset(&mut self) {
        let fd = self.connect();
        let (peer, _) = self.listener.accept().expect("accept");
        linger_zero(&peer);
        drop(peer);
        assert_eq!(self.actor.fails(format!("recv {fd} 1")), "ECONNRESET");
        self.actor.ok(format!("close {fd}"));
    }

    /// One more, that it aborts.
    fn aborts(&mut self) {
        let fd = self.connect();
        let (mut peer, _) = self.listener.accept().expect("accept");
        self.actor.ok(format!("linger0 {fd}"));
        self.actor.ok(format!("close {fd}"));
        assert_eq!(peer.read(&mut [0]).expect_err("the RST").kind(), ErrorKind::ConnectionReset);
    }

    fn connect(&mut self) -> i32 {
        let fd = self.actor.connect(SocketAddr::V4(self.address));
        self.ended.push(self.actor.flow(fd));
        fd
    }
}

/// Ends of a small process in the middle of a storm of others', while nobody reads. Returns how many it made and how
/// many were told.
fn small_among_many(select: bool) -> (usize, usize, Accounts) {
    let netns = NetNs::new();
    let actor = Actor::spawn_in(&netns, "small");
    let pid = actor.pid().to_string();
    let mut args = vec!["--buffer", "256k"];
    if select {
        args.extend(["--pid", &pid]);
    }
    let mut tracer = Tracer::start_unread(&args);
    let (mut small, made) = netns.run_in(|| {
        let (listener, address) = listener();
        let mut small = Small { actor, listener, address, ended: Vec::new() };
        wait_until("the tracer waits for its reader", || {
            small.is_reset();
            tracer.is_stuck()
        });
        for _ in 0..3 {
            storm();
            small.is_reset();
            small.aborts();
            small.is_reset();
        }
        storm();
        (small, ends_made())
    });
    tracer.wait_stuck();
    tracer.wait_stderr("events lost");
    tracer.read_on();
    // It has ended, and its end says so.
    let ended = std::mem::take(&mut small.ended);
    drop(small);
    let run = tracer.stop();
    let of = |flow: &Flow| run.teardowns().find(|record| flow.matches(record));
    let told: Vec<_> = ended.iter().filter_map(of).collect();
    if select {
        for record in &told {
            assert_eq!((&record["owner"]["tgid"].to_string(), &record["released"].is_null()), (&pid, &false), "{record}");
            let seen = if record["end"] == "reset-received" { "yes" } else { "never" };
            assert_eq!(record["seen"], seen, "{record}");
        }
    }
    (ended.len(), told.len(), Accounts::of(&run, &netns, made))
}

#[test]
fn what_belongs_to_a_chosen_process_is_kept_before_the_rest() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    add_up(|| {
        let (its, told, accounts) = small_among_many(true);
        println!("{told} of {its} of its own told");
        assert_eq!(told, its, "of the chosen process");
        assert!(accounts.lost > accounts.made / 2, "{accounts:?}");
        accounts
    });
}

/// Sums by kind of end, of teardowns alone and with what was folded.
fn by_end(run: &Run) -> [BTreeMap<String, u64>; 2] {
    let mut sums = [BTreeMap::new(), BTreeMap::new()];
    for record in run.records.iter().filter(|record| record["record"] == "teardown" || record["record"] == "folded") {
        let end = record["end"].as_str().expect("an end");
        let count = record["count"].as_u64();
        *sums[0].entry(end.to_owned()).or_default() += u64::from(count.is_none());
        *sums[1].entry(end.to_owned()).or_default() += count.unwrap_or(1);
    }
    sums
}

#[test]
fn ends_that_are_alike_are_folded_and_none_is_missing() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const MADE: u64 = 60;
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode, "--rate-limit", "2/s"]);
    let port = netns.run_in(|| {
        let (listener, address) = listener();
        for _ in 0..MADE {
            abort_one(&listener, address);
        }
        address.port()
    });
    // What is folded is told when its second is over, though nothing more happens.
    let folded = tracer.wait("what was folded", |record| record["record"] == "folded" && record["end"] == "reset-sent");
    assert_eq!((&folded["cause"], &folded["harm"], &folded["role"]), (&json!("linger-zero"), &json!("none"), &json!("client")));
    assert_eq!((&folded["service_port"], &folded["remote_addr"]), (&json!(port), &json!("127.0.0.1")));
    let is_like = |record: &Value| record["record"] == "teardown" && record["end"] == folded["end"] && record["cookie"] == folded["like"];
    let like = tracer.wait("one like it", is_like);
    assert_eq!((&like["cause"], &like["owner"]["comm"]), (&folded["cause"], &folded["process"]), "{folded}");
    let run = tracer.stop();
    let [shown, all] = by_end(&run);
    for end in ["reset-received", "reset-sent"] {
        assert_eq!(all[end], MADE, "{end}");
        assert!(shown[end] < MADE, "{} of {MADE} {end} shown", shown[end]);
        assert_eq!(run.summary["sockets"][end], MADE, "{end}");
    }
}

#[test]
fn what_is_folded_does_not_count_as_a_record() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode, "--rate-limit", "1", "--count", "3"]);
    netns.run_in(|| {
        let (listener, address) = listener();
        for _ in 0..20 {
            abort_one(&listener, address);
        }
    });
    tracer.wait_n("both ends of the first", 2, |record| record["record"] == "teardown");
    // Another service's ends are other kinds.
    netns.run_in(|| {
        let (listener, address) = listener();
        abort_one(&listener, address);
    });
    let run = tracer.finish();
    let [shown, all] = by_end(&run);
    assert_eq!(shown.values().sum::<u64>(), 3, "{shown:?}");
    assert!(all.values().sum::<u64>() > 3, "{all:?}");
    // Nobody is forgotten between what is written and what is folded.
    for (end, n) in &all {
        assert_eq!(run.summary["sockets"][end], *n, "{end}");
    }
}

#[test]
fn where_nobody_is_chosen_the_newest_are_lost_whosever_they_are() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (its, told, _) = small_among_many(false);
    assert!(told < its, "all {its} were told, so that the other test shows nothing");
}
