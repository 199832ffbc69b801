//! How connections end: what each end's record says of the end itself.

use rsttrace_tests::{
    Actor, DEADLINE, Flow, NetNs, Pair, Side, Tracer, expect, in_range, number, observed, require_root, require_tool, shared, wait_until,
};
use serde_json::json;
use std::time::Instant;

const REQUEST: usize = 20;
const RESPONSE: usize = 19;

/// A FIN was neither sent nor received.
fn no_fin() -> serde_json::Value {
    json!({
        "first": null,
        "local": false,
        "remote": false,
        "remote_data_bytes": null,
        "half_closed_us": null,
    })
}

/// A pair after one exchange, everything acknowledged.
fn exchanged() -> Pair {
    let mut pair = Pair::new();
    pair.client.send_to(&mut pair.server, REQUEST);
    pair.server.send_to(&mut pair.client, RESPONSE);
    pair.server.wait_acknowledged();
    pair.client.wait_acknowledged();
    pair
}

#[test]
fn client_aborts_after_reading_our_whole_response() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": {
                "sent": RESPONSE, "acked": RESPONSE, "unacked": 0, "unsent": 0,
                "received": REQUEST, "unread": 0,
            },
            "retransmits": 0,
            "reason": null,
            "closer": null,
            "released": server.task("close"),
            "fin": no_fin(),
        }),
    );
    observed(&record, server.observer("recvfrom", "ECONNRESET"));
    // The kernel keeps these in ticks, 10 ms at the coarsest.
    in_range(&record, "/idle_ms/sent", 0..=number(&record, "/age_us") / 1000 + 10);
    in_range(&record, "/idle_ms/received", 0..=number(&record, "/age_us") / 1000 + 10);

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "bytes": {
                "sent": REQUEST, "acked": REQUEST, "unacked": 0, "unsent": 0,
                "received": RESPONSE, "unread": 0,
            },
            "retransmits": 0,
            "reason": "TCP_STATE",
            "observer": null,
            "seen": "never",
            "closer": client.task("close"),
            "released": client.task("close"),
            "fin": no_fin(),
        }),
    );
}

#[test]
fn client_aborts_in_the_middle_of_our_response() {
    require_root!();
    let tracer = shared();
    let mut client = Actor::spawn("client");
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let fd = client.socket(address);
    client.ok(format!("set {fd} rcvbuf 4096"));
    client.ok(format!("connect {fd} {address}"));
    let mut client = Side::new(client, fd, "client");
    let fd = server.accept(listener);
    server.ok(format!("set {fd} sndbuf 200000"));
    let mut server = Side::new(server, fd, "server");
    client.send_to(&mut server, REQUEST);
    let written = server.get("fill");
    // The client's window closes: what was sent is acknowledged, and the rest has to wait.
    wait_until("the client's window is full", || {
        let outstanding = server.get("outstanding");
        outstanding > 0 && outstanding == server.get("unsent")
    });
    let read: u64 = 1000;
    assert_eq!(client.get(&format!("recv-all {read}")), read);
    let unread = client.get("unread");
    client.abort();
    assert_eq!(server.fails("send 1"), "ECONNRESET");
    server.ok("close");

    let ours = server.record(tracer);
    expect(&ours, json!({ "end": "reset-received", "state": "ESTABLISHED", "reason": null }));
    observed(&ours, server.observer("sendto", "ECONNRESET"));
    let theirs = client.record(tracer);
    expect(
        &theirs,
        json!({
            "end": "reset-sent",
            "reason": "TCP_ABORT_ON_CLOSE",
            "bytes": { "sent": REQUEST, "acked": REQUEST, "unread": unread },
        }),
    );
    let sent = number(&ours, "/bytes/sent");
    let unsent = in_range(&ours, "/bytes/unsent", 1..);
    assert_eq!(sent + unsent, written as i64, "sent + unsent = written by the application");
    let unacked = number(&ours, "/bytes/unacked");
    assert_eq!(number(&ours, "/bytes/acked") + unacked, sent, "acked + unacked = sent");
    let received = number(&theirs, "/bytes/received");
    assert_eq!(received, (read + unread) as i64, "what the client's kernel took in");
    assert_eq!(number(&ours, "/bytes/acked"), received, "what the client's kernel acknowledged");
}

#[test]
fn client_aborts_before_our_response() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.send_to(&mut server, REQUEST);
    client.abort();
    assert_eq!(server.fails("send 19"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": {
                "sent": 0, "acked": 0, "unacked": 0, "unsent": 0, "received": REQUEST, "unread": 0,
            },
            "fin": no_fin(),
        }),
    );
    observed(&record, server.observer("sendto", "ECONNRESET"));
    let record = client.record(tracer);
    expect(&record, json!({ "end": "reset-sent", "bytes": { "sent": REQUEST, "received": 0 } }));
}

#[test]
fn closing_with_unread_data_sends_a_reset() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    server.ok("send 100");
    client.ok("poll in");
    client.ok("close");
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "reason": "TCP_ABORT_ON_CLOSE",
            "bytes": {
                "sent": 0, "acked": 0, "unacked": 0, "unsent": 0, "received": 100, "unread": 100,
            },
            "observer": null,
            "seen": "never",
            "closer": client.task("close"),
            "released": client.task("close"),
            "fin": no_fin(),
        }),
    );
    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "reason": null,
            "bytes": { "sent": 100, "unsent": 0, "received": 0, "unread": 0 },
            "closer": null,
            "released": server.task("close"),
        }),
    );
    observed(&record, server.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn reset_in_close_wait_reports_epipe_on_send() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    // Its FIN acknowledged, close() leaves nothing of the client but a TIME_WAIT mini-socket.
    client.ok("shutdown write");
    client.wait_acknowledged();
    client.ok("close");
    server.ok("poll eof");
    assert_eq!(server.get("recv 100"), 0);
    assert_eq!(server.get("send 33"), 33);
    server.ok("poll error");
    assert_eq!(server.get("recv 100"), 0, "the reset hides behind the end of the stream");
    assert_eq!(server.fails("send 33"), "EPIPE");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "CLOSE_WAIT",
            "reason": null,
            "bytes": {
                "sent": RESPONSE + 33, "acked": RESPONSE, "unacked": 33, "unsent": 0,
                "received": REQUEST, "unread": 0,
            },
            "closer": null,
            "released": server.task("close"),
            "fin": {
                "first": "remote",
                "local": false,
                "remote": true,
                "remote_data_bytes": 0,
                "half_closed_us": null,
            },
        }),
    );
    observed(&record, server.observer("sendto", "EPIPE"));

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "state": "FIN_WAIT2",
            "reason": null,
            "observer": null,
            "seen": "never",
            "closer": client.task("shutdown"),
            "released": client.task("close"),
            "fin": { "first": "local", "local": true, "remote_data_bytes": null, "half_closed_us": null },
        }),
    );
    // The mini-socket sent the RST.
    let record = tracer.stray(client.flow);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "TIME_WAIT",
            "netns": client.netns,
            "reason": "TCP_TIMEWAIT_SOCKET",
            "bytes": null,
            "idle_ms": null,
            "owner": null,
            "observer": null,
            "closer": null,
        }),
    );
}

/// An address where nobody listens and nobody else will, held by an actor's bound socket.
fn closed_port(actor: &mut Actor) -> std::net::SocketAddr {
    let fd: i32 = actor.get("socket 4");
    actor.ok(format!("bind {fd} 127.0.0.1:0"));
    actor.get(format!("local {fd}"))
}

/// A bound socket that is not yet connected, as the side of a connection to `to`.
fn unconnected(mut actor: Actor, to: std::net::SocketAddr) -> (Actor, i32, Flow) {
    let fd = actor.socket(to);
    actor.ok(format!("bind {fd} 127.0.0.1:0"));
    let flow = Flow::new(actor.get(format!("local {fd}")), to);
    (actor, fd, flow)
}

#[test]
fn a_refused_blocking_connect_is_an_inferred_observation() {
    require_root!();
    let tracer = shared();
    let mut nobody = Actor::spawn("nobody");
    let to = closed_port(&mut nobody);
    let (mut client, fd, flow) = unconnected(Actor::spawn("client"), to);
    let cookie: u64 = client.get(format!("cookie {fd}"));
    let inode: u64 = client.get(format!("inode {fd}"));
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ECONNREFUSED");
    client.ok(format!("close {fd}"));

    let record = tracer.teardown(flow);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "family": "ipv4",
            "cookie": cookie,
            "inode": inode,
            "role": "client",
            "state": "SYN_SENT",
            "bytes": {
                "sent": 0, "acked": 0, "unacked": 0, "unsent": 0, "received": 0, "unread": 0,
            },
            "reason": null,
            "owner": { "tgid": client.pid(), "comm": "client" },
            "observer": {
                "tgid": client.pid(), "tid": client.pid(), "comm": "client",
                "syscall": "connect", "fd": fd, "errno": "ECONNREFUSED", "inferred": true,
            },
            "seen": "yes",
            "closer": null,
            "fin": no_fin(),
        }),
    );
    in_range(&record, "/age_us", 0..=DEADLINE.as_micros() as i64);
}

#[test]
fn a_refused_connect_that_keeps_its_socket_is_told_all_the_same() {
    require_root!();
    let tracer = shared();
    let mut nobody = Actor::spawn("nobody");
    let to = closed_port(&mut nobody);
    let (mut client, fd, flow) = unconnected(Actor::spawn("client"), to);
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ECONNREFUSED");
    expect(
        &tracer.teardown(flow),
        json!({
            "end": "reset-received",
            "state": "SYN_SENT",
            "observer": { "tgid": client.pid(), "syscall": "connect", "fd": fd, "inferred": true },
            "seen": "yes",
            "released": null,
        }),
    );
}

#[test]
fn a_refused_nonblocking_connect_is_observed_by_so_error() {
    require_root!();
    let tracer = shared();
    let mut nobody = Actor::spawn("nobody");
    let to = closed_port(&mut nobody);
    let (mut client, fd, flow) = unconnected(Actor::spawn("client"), to);
    client.ok(format!("set {fd} nonblock 1"));
    assert_eq!(client.fails(format!("connect {fd} {to}")), "EINPROGRESS");
    client.ok(format!("poll {fd} out"));
    assert_eq!(client.ok(format!("so-error {fd}")), "ECONNREFUSED");
    client.ok(format!("close {fd}"));

    let record = tracer.teardown(flow);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "role": "client",
            "state": "SYN_SENT",
            "owner": { "tgid": client.pid(), "comm": "client" },
            "closer": null,
        }),
    );
    observed(
        &record,
        json!({
            "tgid": client.pid(), "tid": client.pid(), "comm": "client",
            "syscall": "getsockopt", "fd": fd, "errno": "ECONNREFUSED", "inferred": false,
        }),
    );
}

#[test]
fn a_closed_port_answers_without_a_socket() {
    require_root!();
    let tracer = shared();
    let mut nobody = Actor::spawn("nobody");
    let to = closed_port(&mut nobody);
    let (mut client, fd, flow) = unconnected(Actor::spawn("client"), to);
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ECONNREFUSED");

    expect(
        &tracer.stray(flow.peer()),
        json!({
            "end": "reset-sent",
            "family": "ipv4",
            "netns": rsttrace_tests::current_netns(),
            "state": null,
            "reason": "NO_SOCKET",
            "cookie": null,
            "inode": null,
            "role": null,
            "age_us": null,
            "idle_ms": null,
            "bytes": null,
            "owner": null,
            "observer": null,
            "closer": null,
            "released": null,
        }),
    );
}

#[test]
fn a_socket_that_is_refused_and_connects_again_has_two_records() {
    require_root!();
    let tracer = shared();
    let mut server = Actor::spawn("server");
    let refusing = closed_port(&mut server);
    let (listener, accepting) = server.listen("127.0.0.1:0");
    let (mut client, fd, refused) = unconnected(Actor::spawn("client"), refusing);
    assert_eq!(client.fails(format!("connect {fd} {refusing}")), "ECONNREFUSED");
    client.ok(format!("connect {fd} {accepting}"));
    let client = Side::new(client, fd, "client");
    let fd = server.accept(listener);
    let mut server = Side::new(server, fd, "server");
    server.abort();

    let Side { mut actor, fd, flow, .. } = client;
    assert_eq!(actor.fails(format!("recv {fd} 1")), "ECONNRESET");
    actor.ok(format!("close {fd}"));

    expect(
        &tracer.teardown(refused),
        json!({
            "end": "reset-received",
            "state": "SYN_SENT",
            "observer": { "tgid": actor.pid(), "syscall": "connect", "inferred": true },
        }),
    );
    let record = tracer.teardown(flow);
    expect(&record, json!({ "end": "reset-received", "state": "ESTABLISHED", "role": "client" }));
    observed(&record, json!({ "tgid": actor.pid(), "syscall": "recvfrom", "fd": fd }));
}

#[test]
fn fin_by_us_first_then_by_the_peer() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    let before = Instant::now();
    client.ok("shutdown write");
    server.ok("poll eof");
    assert_eq!(server.get("recv 100"), 0);
    let between = Instant::now();
    // Half-closed: the server may still answer.
    server.send_to(&mut client, 50);
    let at_least = between.elapsed().as_micros() as i64;
    server.ok("close");
    client.ok("poll eof");
    let at_most = before.elapsed().as_micros() as i64;
    assert_eq!(client.get("recv 100"), 0);
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "state": "FIN_WAIT2",
            "reason": null,
            "bytes": {
                "sent": REQUEST, "acked": REQUEST, "unacked": 0, "unsent": 0,
                "received": RESPONSE + 50, "unread": 0,
            },
            "observer": null,
            "closer": client.task("shutdown"),
            "released": client.task("close"),
            "fin": { "first": "local", "local": true, "remote": true, "remote_data_bytes": 0 },
        }),
    );
    in_range(&record, "/fin/half_closed_us", at_least..=at_most);

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "state": "LAST_ACK",
            "bytes": { "sent": RESPONSE + 50, "acked": RESPONSE + 50, "unacked": 0, "received": REQUEST },
            "observer": null,
            "seen": "never",
            "closer": server.task("close"),
            "fin": { "first": "remote", "local": true, "remote": true, "remote_data_bytes": 0 },
        }),
    );
    in_range(&record, "/fin/half_closed_us", at_least..=at_most);
}

#[test]
fn fin_by_both_at_once() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    let Pair { mut client, mut server } = Pair::inside(&netns);
    client.send_to(&mut server, REQUEST);
    server.send_to(&mut client, RESPONSE);
    client.wait_acknowledged();
    server.wait_acknowledged();
    // The client's FIN and what follows stay on the way: for the client, both FINs cross.
    netns.command("nft", &["add", "table", "ip", "t"]);
    netns.command("nft", &["add", "chain", "ip", "t", "in", "{ type filter hook input priority 0; }"]);
    let port = client.flow.local.port().to_string();
    netns.command("nft", &["add", "rule", "ip", "t", "in", "tcp", "sport", &port, "drop"]);
    client.ok("shutdown write");
    server.ok("shutdown write");
    client.ok("poll eof");
    netns.command("nft", &["delete", "table", "ip", "t"]);
    server.ok("poll eof");
    for side in [&mut client, &mut server] {
        assert_eq!(side.get("recv 100"), 0);
    }
    client.ok("close");
    server.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "state": "CLOSING",
            "bytes": { "sent": REQUEST, "acked": REQUEST, "unacked": 0, "received": RESPONSE },
            "closer": client.task("shutdown"),
            "observer": null,
            "fin": { "first": "both", "local": true, "remote": true, "remote_data_bytes": 0 },
        }),
    );
    in_range(&record, "/fin/half_closed_us", 0..=DEADLINE.as_micros() as i64);
    // The client's FIN came with the acknowledgement of the server's own.
    expect(
        &server.record(tracer),
        json!({
            "end": "fin",
            "closer": server.task("shutdown"),
            "fin": { "first": "local", "local": true, "remote": true, "remote_data_bytes": 0 },
        }),
    );
}

#[test]
fn a_fin_that_carries_data_says_how_much() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    assert_eq!(client.get("send-more 10"), 10);
    client.ok("shutdown write");
    server.ok("poll eof");
    assert_eq!(server.get("recv 100"), 10);
    assert_eq!(server.get("recv 100"), 0);
    server.ok("close");
    client.ok("poll eof");
    client.ok("close");

    expect(
        &server.record(tracer),
        json!({
            "end": "fin",
            "bytes": { "sent": 0, "received": 10, "unread": 0 },
            "fin": { "first": "remote", "local": true, "remote": true, "remote_data_bytes": 10 },
        }),
    );
    expect(
        &client.record(tracer),
        json!({
            "end": "fin",
            "bytes": { "sent": 10, "acked": 10, "unacked": 0, "unsent": 0, "received": 0 },
            "fin": { "first": "local", "local": true, "remote": true, "remote_data_bytes": 0 },
        }),
    );
}

#[test]
fn data_after_close_is_our_reset() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    // Longer than TIME_WAIT, so that the orphan stays a full socket.
    client.ok("set linger2 100");
    client.ok("close");
    server.ok("poll eof");
    assert_eq!(server.get("send 77"), 77);
    server.ok("poll error");
    assert_eq!(server.fails("send 1"), "EPIPE");
    server.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "reason": "TCP_ABORT_ON_DATA",
            "bytes": { "sent": REQUEST, "acked": REQUEST, "unacked": 0, "unsent": 0 },
            "observer": null,
            "seen": "never",
            "closer": client.task("close"),
            "fin": { "first": "local", "local": true, "remote": false, "half_closed_us": null },
        }),
    );
    let state = rsttrace_tests::text(&record, "/state");
    assert!(["FIN_WAIT1", "FIN_WAIT2"].contains(&state), "{record:#}");
    let record = server.record(tracer);
    expect(&record, json!({ "end": "reset-received", "state": "CLOSE_WAIT" }));
    observed(&record, server.observer("sendto", "EPIPE"));
}

#[test]
fn closing_with_unread_data_after_the_peers_fin_sends_a_reset() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    // A TLS peer's close_notify is such data.
    client.ok("send 31");
    client.ok("shutdown write");
    server.ok("poll eof");
    server.ok("close");
    client.ok("poll error");
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    expect(
        &server.record(tracer),
        json!({
            "end": "reset-sent",
            "state": "CLOSE_WAIT",
            "reason": "TCP_ABORT_ON_CLOSE",
            "bytes": { "sent": RESPONSE, "acked": RESPONSE, "received": REQUEST + 31, "unread": 31 },
            "observer": null,
            "closer": server.task("close"),
            "fin": { "first": "remote", "local": false, "remote": true, "half_closed_us": null },
        }),
    );
    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "bytes": { "sent": REQUEST + 31, "received": RESPONSE },
            "closer": client.task("shutdown"),
            "released": client.task("close"),
            "fin": { "first": "local", "local": true, "remote": false },
        }),
    );
    observed(&record, client.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn tcp_linger2_below_zero_resets_instead_of_waiting() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    linger2_below_zero(&mut client, &mut server);
    expect(&client.record(tracer), linger2_record(&client));
}

/// The client sends FIN, and its close() in FIN_WAIT2 a RST.
fn linger2_below_zero(client: &mut Side, server: &mut Side) {
    client.ok("set linger2 -1");
    client.ok("shutdown write");
    client.wait_acknowledged();
    client.ok("close");
    server.ok("poll error");
    server.ok("close");
}

fn linger2_record(client: &Side) -> serde_json::Value {
    json!({
        "end": "reset-sent",
        "state": "FIN_WAIT2",
        "reason": "TCP_ABORT_ON_LINGER",
        "bytes": { "sent": REQUEST, "acked": REQUEST, "unacked": 0, "received": RESPONSE },
        "observer": null,
        "seen": "never",
        "released": client.task("close"),
        "fin": { "first": "local", "local": true, "remote": false },
    })
}

#[test]
fn resets_after_a_fin_are_told_without_asking_for_fins() {
    require_root!();
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    let mut tested = exchanged();
    linger2_below_zero(&mut tested.client, &mut tested.server);
    expect(&tested.client.record(&tracer), linger2_record(&tested.client));

    let Pair { mut client, mut server } = exchanged();
    client.ok("set linger2 100");
    client.ok("close");
    server.ok("poll eof");
    assert_eq!(server.get("send 77"), 77);
    server.ok("poll error");
    server.ok("close");
    expect(
        &client.record(&tracer),
        json!({
            "end": "reset-sent",
            "reason": "TCP_ABORT_ON_DATA",
            "closer": client.task("close"),
        }),
    );

    // An orderly end of the same kind is counted, not told.
    let Pair { mut client, mut server } = exchanged();
    client.ok("close");
    server.ok("poll eof");
    server.ok("close");
    let flow = client.flow;
    let run = tracer.stop();
    let told = run.teardowns().any(|record| flow.matches(record) || flow.peer().matches(record));
    assert!(!told, "an orderly end was told");
    in_range(&run.summary, "/orderly", 1..);
}

#[test]
fn a_process_killed_with_unread_data_resets() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 100");
    server.ok("poll in");
    server.actor.signal(libc::SIGKILL);
    server.actor.wait_gone();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");

    expect(
        &server.record(tracer),
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "reason": "TCP_ABORT_ON_CLOSE",
            "bytes": { "received": 100, "unread": 100 },
            "observer": null,
            "closer": server.exiting(),
            "released": server.exiting(),
            "fin": no_fin(),
        }),
    );
    client.ok("close");
    let record = client.record(tracer);
    expect(&record, json!({ "end": "reset-received", "bytes": { "sent": 100, "received": 0 } }));
    observed(&record, client.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn a_process_killed_with_nothing_unread_says_fin() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, server } = exchanged();
    server.actor.signal(libc::SIGKILL);
    server.actor.wait_gone();
    client.ok("poll eof");
    assert_eq!(client.get("recv 100"), 0);
    client.ok("close");

    expect(
        &server.record(tracer),
        json!({
            "end": "fin",
            "reason": null,
            "bytes": { "sent": RESPONSE, "received": REQUEST, "unread": 0 },
            "observer": null,
            "closer": server.exiting(),
            "fin": { "first": "local", "local": true },
        }),
    );
    expect(
        &client.record(tracer),
        json!({
            "end": "fin",
            "state": "LAST_ACK",
            "closer": client.task("close"),
            "fin": { "first": "remote", "local": true, "remote": true, "remote_data_bytes": 0 },
        }),
    );
}

#[test]
fn closing_a_listener_resets_its_queue() {
    require_root!();
    let tracer = shared();
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn("client");
    let mut queue = Vec::new();
    for _ in 0..5 {
        let fd = client.connect(address);
        queue.push((fd, client.flow(fd)));
    }
    server.ok(format!("close {listener}"));

    for (fd, _) in &queue {
        assert_eq!(client.fails(format!("recv {fd} 1")), "ECONNRESET");
        client.ok(format!("close {fd}"));
    }
    for (fd, flow) in queue {
        expect(
            &tracer.teardown(flow.peer()),
            json!({
                "end": "reset-sent",
                "inode": null,
                "role": "server",
                "state": "ESTABLISHED",
                "reason": "TCP_STATE",
                "bytes": { "sent": 0, "received": 0 },
                "owner": null,
                "observer": null,
                "seen": "never",
                "closer": {
                    "tgid": server.pid(), "tid": server.pid(), "comm": "server",
                    "syscall": "close", "exiting": false,
                },
                "fin": no_fin(),
            }),
        );
        let record = tracer.teardown(flow);
        expect(&record, json!({ "end": "reset-received", "role": "client" }));
        observed(
            &record,
            json!({
                "tgid": client.pid(), "syscall": "recvfrom", "fd": fd, "errno": "ECONNRESET",
            }),
        );
    }
}

#[test]
fn ss_kill_aborts_the_connection() {
    require_root!();
    require_tool!("ss");
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    server.kill_by_ss();
    assert_eq!(server.fails("recv 100"), "ECONNABORTED");
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    server.ok("close");
    client.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "reason": "TCP_STATE",
            "bytes": {
                "sent": RESPONSE, "acked": RESPONSE, "unacked": 0, "unsent": 0,
                "received": REQUEST, "unread": 0,
            },
            "closer": { "comm": "ss", "exiting": false },
            "released": server.task("close"),
            "fin": no_fin(),
        }),
    );
    assert!(["sendto", "sendmsg"].contains(&rsttrace_tests::text(&record, "/closer/syscall")));
    observed(&record, server.observer("recvfrom", "ECONNABORTED"));
    let record = client.record(tracer);
    expect(&record, json!({ "end": "reset-received", "closer": null }));
    observed(&record, client.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn connect_to_nowhere_disconnects_with_a_reset() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    client.ok("disconnect");
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    expect(
        &client.record(tracer),
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "reason": "TCP_STATE",
            "bytes": {
                "sent": REQUEST, "acked": REQUEST, "unacked": 0, "unsent": 0,
                "received": RESPONSE, "unread": 0,
            },
            "observer": null,
            "closer": client.task("connect"),
            "fin": no_fin(),
        }),
    );
}

#[test]
fn every_call_that_lets_go_of_the_last_descriptor_is_named() {
    require_root!();
    let tracer = shared();
    for (command, syscall) in [("close", "close"), ("close-range", "close_range")] {
        let Pair { mut client, mut server } = Pair::new();
        client.ok("send 1");
        server.ok("poll in");
        server.ok(command);
        expect(
            &server.record(tracer),
            json!({
                "end": "reset-sent",
                "reason": "TCP_ABORT_ON_CLOSE",
                "closer": server.task(syscall),
                "released": server.task(syscall),
            }),
        );
    }

    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 1");
    server.ok("poll in");
    let command = format!("dup2 0 {}", server.fd);
    server.actor.ok(command);
    expect(&server.record(tracer), json!({ "end": "reset-sent", "closer": server.task("dup2") }));
}

#[test]
fn a_socket_lost_in_execve_names_execve() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 1");
    server.ok("poll in");
    server.actor.begin("exec /bin/true");
    server.actor.wait_gone();
    let record = tracer.teardown(server.flow);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "reason": "TCP_ABORT_ON_CLOSE",
            "inode": server.inode,
            // The name is already that of the new program.
            "closer": { "tgid": server.actor.pid(), "tid": server.actor.pid(), "comm": "true" },
        }),
    );
    // Linux 5.10 was seen to let go of the socket only when the new program ends.
    let (syscall, exiting) = (&record["closer"]["syscall"], &record["closer"]["exiting"]);
    assert!(syscall == "execve" && exiting == false || syscall.is_null() && exiting == true, "{record}");
}

#[test]
fn exit_closes_as_an_exiting_task() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 1");
    server.ok("poll in");
    server.actor.begin("exit");
    server.actor.wait_gone();
    expect(
        &server.record(tracer),
        json!({
            "end": "reset-sent",
            "reason": "TCP_ABORT_ON_CLOSE",
            "closer": server.exiting(),
            "released": server.exiting(),
        }),
    );
}

#[test]
fn shutdown_of_both_directions_closes_by_fin() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = exchanged();
    client.ok("shutdown both");
    server.ok("poll eof");
    server.ok("close");
    client.ok("close");
    expect(&server.record(tracer), json!({ "end": "fin", "fin": { "first": "remote" } }));
    expect(
        &client.record(tracer),
        json!({
            "end": "fin",
            "closer": client.task("shutdown"),
            "fin": { "first": "local", "local": true, "remote": true },
        }),
    );
}

#[test]
fn ipv6_is_read_whole() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::to("[::1]:0");
    client.send_to(&mut server, REQUEST);
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "family": "ipv6",
            "local": { "addr": "::1" },
            "remote": { "addr": "::1" },
            "bytes": { "received": REQUEST },
        }),
    );
    observed(&record, server.observer("recvfrom", "ECONNRESET"));
    expect(&client.record(tracer), json!({ "end": "reset-sent", "family": "ipv6" }));
}

#[test]
fn a_v4_mapped_socket_is_ipv4() {
    require_root!();
    let tracer = shared();
    // The listener is an IPv6 socket, the client comes by IPv4.
    let Pair { mut client, mut server } = Pair::to("[::]:0");
    assert_eq!(server.actor.ok(format!("remote {}", server.fd)), format!("[::ffff:127.0.0.1]:{}", server.flow.remote.port()));
    client.send_to(&mut server, REQUEST);
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "family": "ipv4",
            "local": { "addr": "127.0.0.1" },
            "remote": { "addr": "127.0.0.1" },
        }),
    );
    observed(&record, server.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn another_network_namespace_is_seen_and_numbered() {
    require_root!();
    require_tool!("ip");
    let tracer = shared();
    let netns = NetNs::new();
    assert_ne!(netns.inode(), rsttrace_tests::current_netns());
    let Pair { mut client, mut server } = Pair::inside(&netns);
    client.send_to(&mut server, REQUEST);
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    // `record` picks by the namespace's number.
    let record = server.record(tracer);
    expect(&record, json!({ "end": "reset-received", "netns": netns.inode() }));
    observed(&record, server.observer("recvfrom", "ECONNRESET"));
    expect(&client.record(tracer), json!({ "end": "reset-sent", "netns": netns.inode() }));
}

#[test]
fn the_closer_of_a_reset_after_our_fin_is_the_one_that_sent_it_with_and_without_fins() {
    require_root!();
    let without_fins = Tracer::start(&["--join-timeout", "3s"]);
    let Pair { mut client, mut server } = exchanged();
    server.ok("shutdown write");
    client.ok("poll eof");
    client.ok("send 20");
    server.ok("poll in");
    server.ok("close");
    client.ok("poll error");
    client.ok("close");
    for tracer in [shared(), &without_fins] {
        expect(
            &server.record(tracer),
            json!({
                "end": "reset-sent",
                "reason": "TCP_ABORT_ON_CLOSE",
                "state": "FIN_WAIT2",
                "closer": server.task("close"),
                "fin": { "first": "local", "local": true },
            }),
        );
    }
}
