//! Whose socket it was: accepted, inherited, passed on, older than the tracer, never used.

use std::collections::HashSet;

use rsttrace_tests::{Actor, Flow, Pair, Side, Strace, Tracer, expect, observed, require_root, require_tool, shared};
use serde_json::{Value, json};

#[test]
fn each_prefork_worker_owns_what_it_accepted() {
    require_root!();
    let tracer = shared();
    prefork(tracer);
}

#[test]
fn prefork_workers_older_than_the_tracer_own_what_they_accepted() {
    require_root!();
    let (mut workers, mut client, _master) = accepted_by_four_workers();
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    end_by_abort(&mut workers, &mut client);
    for worker in &workers {
        let record = tracer.teardown(worker.flow);
        expect(&record, json!({ "age_us": null, "owner": worker.process() }));
    }
}

fn prefork(tracer: &Tracer) {
    let (mut workers, mut client, _master) = accepted_by_four_workers();
    end_by_abort(&mut workers, &mut client);
    for (number, worker) in workers.iter().enumerate() {
        // Checks the owner: this worker, never the master.
        let record = worker.record(tracer);
        expect(&record, json!({ "end": "reset-received" }));
        if number % 2 == 0 {
            observed(&record, worker.observer("recvfrom", "ECONNRESET"));
        } else {
            expect(&record, json!({ "observer": null, "seen": "never" }));
        }
    }
}

/// Four workers, each with a connection of its own, the client that made them, and the master.
fn accepted_by_four_workers() -> (Vec<Side>, (Actor, Vec<i32>), Actor) {
    let mut master = Actor::spawn("master");
    let (listener, address) = master.listen("127.0.0.1:0");
    let mut client = Actor::spawn("client");
    let mut descriptors = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..4 {
        let mut worker = master.fork("worker");
        let fd = client.connect(address);
        descriptors.push(fd);
        client.ok(format!("send {fd} 20"));
        let fd = worker.accept(listener);
        worker.ok(format!("recv-all {fd} 20"));
        workers.push(Side::new(worker, fd, "server"));
    }
    (workers, (client, descriptors), master)
}

/// The client resets all; every other worker notices, the others just close.
fn end_by_abort(workers: &mut [Side], (client, descriptors): &mut (Actor, Vec<i32>)) {
    for fd in descriptors {
        client.ok(format!("linger0 {fd}"));
        client.ok(format!("close {fd}"));
    }
    for (number, worker) in workers.iter_mut().enumerate() {
        worker.ok("poll error");
        if number % 2 == 0 {
            assert_eq!(worker.fails("recv 10"), "ECONNRESET");
        }
        worker.ok("close");
    }
}

#[test]
fn a_worker_that_never_used_its_connection_still_owns_it() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.abort();
    server.ok("poll error");
    server.ok("close");
    // Neither a receive nor a send told who has it; `record` checks that the owner is known.
    expect(&server.record(tracer), json!({ "end": "reset-received", "seen": "never" }));
}

#[test]
fn an_owner_that_never_calls_again_is_named_while_it_holds_the_socket() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, server } = Pair::new();
    client.abort();
    // Printed at the join timeout; only /proc knows who has the descriptor.
    expect(
        &server.record(tracer),
        json!({
            "end": "reset-received",
            "observer": null,
            "seen": "not-yet",
            "released": null,
        }),
    );
}

#[test]
fn a_socket_passed_to_another_process_is_observed_and_owned_there() {
    require_root!();
    require_tool!("strace");
    let tracer = shared();
    let (receiver, strace) = Strace::actor("first");
    let Pair { client: mut first, mut server } = Pair::between(receiver, Actor::spawn("server"), "127.0.0.1:0");
    first.send_to(&mut server, 20);
    let pair = first.actor.ok("socketpair");
    let (one, other) = pair.split_once(' ').expect("two descriptors");
    let mut second = first.actor.fork("second");
    // The child's inherited copy would do; it goes, so that only the passed one is there.
    second.ok(format!("close {}", first.fd));
    let command = format!("send-fd {one} {}", first.fd);
    first.actor.ok(command);
    first.ok("close");
    let fd: i32 = second.get(format!("recv-fd {other}"));
    assert_eq!(second.get::<u64>(format!("cookie {fd}")), first.cookie);

    server.abort();
    second.ok(format!("poll {fd} error"));
    assert_eq!(second.fails(format!("read {fd} 10")), "ECONNRESET");
    second.ok(format!("close {fd}"));
    let record = tracer.teardown(first.flow);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "cookie": first.cookie,
            "inode": first.inode,
            "role": "client",
            "owner": { "tgid": second.pid(), "comm": "second" },
        }),
    );
    observed(
        &record,
        json!({
            "tgid": second.pid(), "tid": second.pid(), "comm": "second",
            "syscall": "read", "fd": fd, "errno": "ECONNRESET", "inferred": false,
        }),
    );
    let call = strace.wait("the error", |call| call.errno.as_deref() == Some("ECONNRESET"));
    assert_eq!((call.tid, call.name.as_str(), call.fd), (second.pid(), "read", Some(fd)));
}

#[test]
fn a_connection_older_than_the_tracer_has_its_owner_and_no_age() {
    require_root!();
    let Pair { mut client, mut server } = Pair::new();
    client.send_to(&mut server, 20);
    server.send_to(&mut client, 30);
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    client.abort();
    server.ok("poll error");
    server.ok("close");

    let record = tracer.teardown(server.flow);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "cookie": server.cookie,
            "inode": server.inode,
            "state": "ESTABLISHED",
            "age_us": null,
            "bytes": { "sent": 30, "received": 20, "unsent": 0, "unread": 0 },
            "owner": server.process(),
            "observer": null,
            "seen": "never",
        }),
    );
    let record = tracer.teardown(client.flow);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "age_us": null,
            "bytes": { "sent": 20, "acked": 20, "received": 30 },
            "owner": client.process(),
            "closer": client.task("close"),
        }),
    );
    assert!(tracer.stop().status.success());
}

#[test]
fn before_accept_nobody_owns_it_and_who_accepts_sees_the_error() {
    require_root!();
    let tracer = shared();
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn("client");
    let fd = client.connect(address);
    let mut client = Side::new(client, fd, "client");
    client.abort();
    // accept() knows nothing of it; getpeername() does.
    let fd = server.accept(listener);
    assert_eq!(server.fails(format!("remote {fd}")), "ENOTCONN");
    assert_eq!(server.fails(format!("recv {fd} 10")), "ECONNRESET");
    server.ok(format!("close {fd}"));

    let record = tracer.teardown(client.flow.peer());
    expect(
        &record,
        json!({
            "end": "reset-received",
            "inode": null,
            "role": "server",
            "state": "ESTABLISHED",
            "owner": { "tgid": server.pid(), "comm": "server" },
        }),
    );
    observed(
        &record,
        json!({
            "tgid": server.pid(), "syscall": "recvfrom", "fd": fd, "errno": "ECONNRESET",
        }),
    );
}

#[test]
fn reset_and_never_accepted_has_no_owner() {
    require_root!();
    let tracer = shared();
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn("client");
    let fd = client.connect(address);
    let mut client = Side::new(client, fd, "client");
    client.abort();
    server.ok(format!("close {listener}"));

    expect(
        &tracer.teardown(client.flow.peer()),
        json!({
            "end": "reset-received",
            "inode": null,
            "role": "server",
            "state": "ESTABLISHED",
            "owner": null,
            "observer": null,
            "seen": "never",
        }),
    );
}

#[test]
fn connections_in_and_twice_as_many_records_out() {
    require_root!();
    const CONNECTIONS: usize = 997;
    let tracer = Tracer::start(&["-a", "--join-timeout", "60s"]);
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn("client");
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let ours = client.connect(address);
        let theirs = server.accept(listener);
        connections.push((ours, theirs, client.flow(ours)));
    }
    for (ours, _, _) in &connections {
        client.ok(format!("linger0 {ours}"));
        client.ok(format!("close {ours}"));
    }
    for (_, theirs, _) in &connections {
        assert_eq!(server.fails(format!("recv {theirs} 1")), "ECONNRESET");
        server.ok(format!("close {theirs}"));
    }
    let port = address.port();
    let ours =
        move |record: &Value| record["record"] == "teardown" && (record["local"]["port"] == port || record["remote"]["port"] == port);
    tracer.wait_n("997 connections", 2 * CONNECTIONS, ours);
    let run = tracer.stop();

    let records: Vec<_> = run.records.iter().filter(|record| ours(record)).collect();
    assert_eq!(records.len(), 2 * CONNECTIONS, "one record for each socket");
    let mut flows: HashSet<Flow> = HashSet::new();
    for record in records {
        let flow = Flow::in_record(record).expect("addresses");
        assert!(flows.insert(flow), "{flow} twice");
        let Some((ours, theirs, _)) = connections.iter().find(|(_, _, known)| flow == *known || flow == known.peer()) else {
            panic!("{flow} was never made");
        };
        if flow.local == address {
            expect(
                record,
                json!({
                    "end": "reset-received",
                    "role": "server",
                    "owner": { "tgid": server.pid() },
                    "seen": "yes",
                    "observer": {
                        "tgid": server.pid(), "syscall": "recvfrom", "fd": theirs,
                        "errno": "ECONNRESET", "inferred": false,
                    },
                }),
            );
        } else {
            let _ = ours;
            expect(
                record,
                json!({
                    "end": "reset-sent",
                    "role": "client",
                    "owner": { "tgid": client.pid() },
                    "observer": null,
                    "closer": { "tgid": client.pid(), "syscall": "close" },
                }),
            );
        }
    }
    expect(
        &run.summary,
        json!({
            "lost": { "total": 0 }, "undecodable": 0, "evicted": 0, "filtered": 0,
        }),
    );
}
