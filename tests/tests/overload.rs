//! Nobody reads the tracer's stdout while many connections end: whoever is traced does not notice, the newest
//! ends are lost and counted, those of the chosen processes are kept before others, and it goes on by itself.
//!
//! The loss counters are the host's and know no namespace, so somebody else's end may be among them: fewer than
//! made is a failure, more is one only if it happens every time.

use std::{
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
use serde_json::Value;

/// Fills the smallest useful ring several times.
const STORM: usize = 600;
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
struct Accounts {
    /// Records and ends that did not match.
    told: usize,
    lost: usize,
}

impl Accounts {
    fn of(run: &Run, netns: &NetNs) -> Self {
        let lost = &run.summary["lost"];
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let by_hook: usize = lost["by_hook"].as_object().expect("by hook").values().map(number).sum();
        assert_eq!(by_hook, number(&lost["total"]), "{lost}");
        assert_eq!(run.summary["undecodable"], 0);
        let told = run.teardowns().filter(|record| record["netns"] == netns.inode() && !is_stray(record)).count();
        Self { told: told + number(&run.summary["filtered"]), lost: number(&lost["records"]) }
    }
}

/// What was said to be lost, line by line.
fn said(stderr: &str) -> Vec<u64> {
    let lines = stderr.lines().filter_map(|line| line.strip_prefix("rsttrace: warning: ")?.split_once(" events lost"));
    lines.map(|(number, _)| number.replace(',', "").parse().expect("a number")).collect()
}

/// Where nobody reads for a while.
fn nobody_reads_for_a_while() -> (usize, Accounts) {
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
    (made, Accounts::of(&run, &netns))
}

#[test]
fn a_reader_that_does_not_read_costs_the_newest_records_and_nobody_else_anything() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (made, Accounts { told, lost }) = nobody_reads_for_a_while();
        println!("{told} told, {lost} lost of {made}");
        assert!(lost > 0, "nothing was lost, nothing was tested");
        assert!(told + lost >= made, "{told} told and {lost} stated losses of {made}");
        if told + lost == made {
            return;
        }
        seen.push((told, lost, made));
    }
    panic!("told, lost, and made, three times: {seen:?}");
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
/// many were told, and what was made in all.
fn small_among_many(select: bool) -> (usize, usize, usize, Accounts) {
    let netns = NetNs::new();
    let actor = Actor::spawn_in(&netns, "small");
    let pid = actor.pid().to_string();
    let mut args = vec!["--buffer", "64k"];
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
    (ended.len(), told.len(), made, Accounts::of(&run, &netns))
}

#[test]
fn what_belongs_to_a_chosen_process_is_kept_before_the_rest() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (its, told_of_it, made, Accounts { told, lost }) = small_among_many(true);
        println!("{told_of_it} of {its} of its own told; {told} told or filtered, {lost} lost of {made}");
        assert_eq!(told_of_it, its, "the chosen process's");
        assert!(lost > made / 2, "{lost} lost of {made}");
        assert!(told + lost >= made, "{told} told or filtered and {lost} stated losses of {made}");
        if told + lost == made {
            return;
        }
        seen.push((told, lost, made));
    }
    panic!("told or filtered, lost, and made, three times: {seen:?}");
}

#[test]
fn where_nobody_is_chosen_the_newest_are_lost_whosever_they_are() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (its, told, _, _) = small_among_many(false);
    assert!(told < its, "all {its} were told, so that the other test shows nothing");
}
