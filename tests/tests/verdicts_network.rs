//! Verdicts over a link: delay, loss, middleboxes and address translation. Each scenario asserts
//! what is true of it, which the test knows from both ends.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread::sleep,
    time::Duration,
};

use rsttrace_tests::{
    Actor, Direction, Fate, Flow, Link, NetNs, Pair, Segment, Side, Tracer, expect, in_range, number,
    peers::{abort, connect_from},
    require_root, require_tool, shared, text, veth, wait_until,
};
use serde_json::{Value, json};

use Direction::{AtoB, BtoA};

const REQUEST: usize = 20;
const RESPONSE: usize = 19;
const DELAY: Duration = Duration::from_millis(20);
const RTT_US: i64 = 40_000;
/// A segment's payload over a link of 1,500 bytes, with timestamps.
const MSS: usize = 1_448;

/// What the tracer can know of the other end: its socket too, or only what the network brings.
#[derive(Clone, Copy, PartialEq)]
enum Peer {
    Here,
    Elsewhere,
}
use Peer::{Elsewhere, Here};

/// Each scenario twice: with the other half paired, and with numbers that a synproxy has rewritten.
macro_rules! both {
    ($($(#[$doc:meta])* $name:ident)*) => {
        mod with_the_other_half_here { $(#[test] fn $name() { super::$name(super::Here) })* }
        mod with_the_other_half_elsewhere { $(#[test] fn $name() { super::$name(super::Elsewhere) })* }
    };
}

both! {
    a_server_aborts_while_the_next_request_is_on_its_way
    a_server_closes_while_the_next_request_is_on_its_way
    a_client_closes_in_return_before_its_crossing_request_is_refused
    a_server_that_lingers_takes_the_crossing_request_and_drops_it
    a_server_closes_after_reading_the_request
    a_server_dies_with_the_request
    a_server_aborts_having_acknowledged_the_request
    a_servers_reset_itself_acknowledges_the_request
    a_server_aborts_a_reused_connection_having_read_the_request
    a_server_closes_with_the_request_unread
    a_server_aborts_in_the_middle_of_its_answer
    a_client_aborts_and_its_reset_tells_what_had_arrived
    a_client_aborts_and_its_reset_acknowledges_everything
    a_client_aborts_before_the_answer
    a_client_aborts_an_idle_connection
    a_client_gives_up_waiting
    nothing_is_acknowledged_until_retransmissions_end
    the_request_arrived_and_only_the_acknowledgements_were_lost
    no_answer_to_keep_alive_probes
    a_user_timeout_runs_out
    a_closed_window_and_then_silence
    a_response_is_closed_upon_and_never_acknowledged
}

impl Peer {
    /// How a sentence calls the process at the other end.
    fn called(self, name: &str) -> String {
        if self == Here { name.into() } else { format!("the {name}") }
    }

    /// The record's `peer`.
    fn json(self, side: &Side, syscall: Option<&str>, unread: u64) -> Value {
        match self {
            Here => {
                json!({ "cookie": side.cookie, "tgid": side.actor.pid(), "comm": side.actor.name(), "syscall": syscall, "unread": unread })
            }
            Elsewhere => Value::Null,
        }
    }
}

/// A fresh connection over a link.
fn fresh(peer: Peer) -> (Link, Pair) {
    let link = Link::new(DELAY);
    if peer == Elsewhere {
        link.renumber();
    }
    let pair = link.connect();
    (link, pair)
}

/// One on which an exchange was completed, everything acknowledged.
fn reused(peer: Peer) -> (Link, Pair) {
    let (link, mut pair) = fresh(peer);
    exchange(&mut pair);
    (link, pair)
}

fn exchange(pair: &mut Pair) {
    pair.client.send_to(&mut pair.server, REQUEST);
    pair.server.send_to(&mut pair.client, RESPONSE);
    pair.server.wait_acknowledged();
    pair.client.wait_acknowledged();
}

fn judged(record: &Value, cause: &str, phase: &str, initiator: &str, harm: &str) {
    expect(record, json!({ "cause": cause, "phase": phase, "initiator": initiator, "harm": harm }));
}

/// The shortest round trip is the link's.
fn measured(record: &Value) {
    in_range(record, "/evidence/min_rtt_us", RTT_US..3 * RTT_US);
}

// Requests that cross the end of the connection.

fn a_server_aborts_while_the_next_request_is_on_its_way(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(peer);
    link.hold(AtoB, true);
    client.ok(&format!("send {REQUEST}"));
    server.abort();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    link.hold(AtoB, false);
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "sent": 2 * REQUEST, "acked": REQUEST, "unacked": REQUEST, "unsent": 0, "received": RESPONSE, "unread": 0 },
            "evidence": { "last_speaker": "local", "reused": true, "rst": { "acked": REQUEST } },
            "peer": peer.json(&server, Some("close"), 0),
            "verdict": format!(
                "{} closed the connection while our request was on its way (keep-alive race): 20 B unanswered; 20 B not delivered",
                peer.called("server"),
            ),
        }),
    );
    judged(&record, "keepalive-race", "request-in-flight", "peer-application", "lost");
    measured(&record);
    in_range(&record, "/evidence/since_last_tx_us", DELAY.as_micros() as i64..);

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "evidence": { "last_speaker": "local", "reused": null, "rst": null },
            "peer": peer.json(&client, Some("recvfrom"), 0),
            "verdict": "server aborted the connection (SO_LINGER 0)",
        }),
    );
    judged(&record, "linger-zero", "after-response", "local-application", "none");

    let record = tracer.stray(server.flow);
    expect(
        &record,
        json!({
            "state": null,
            "peer": null,
            "verdict": "a segment with 20 B arrived for a connection that this host does not know",
        }),
    );
    judged(&record, "no-connection", "unknown", "local-kernel", "lost");
}

/// The client's half of a race that a FIN began: what state it was in, and whose RST it was.
fn check_race_by_fin(record: &Value, peer: Peer, server: &Side, state: &str, phase: &str) {
    // Only the other half proves that the request was dropped.
    let (harm, open) = if peer == Here { ("lost", "20 B not delivered") } else { ("possible", "20 B not confirmed") };
    expect(
        record,
        json!({
            "end": "reset-received",
            "state": state,
            "bytes": { "sent": 2 * REQUEST, "acked": REQUEST, "unacked": REQUEST, "unsent": 0, "received": RESPONSE, "unread": 0 },
            "fin": { "first": "remote", "remote": true, "remote_data_bytes": 0 },
            "peer": peer.json(server, Some("close"), 0),
            "verdict": format!(
                "{} closed the connection while our request was on its way (keep-alive race): 20 B unanswered; {open}",
                peer.called("server"),
            ),
        }),
    );
    judged(record, "keepalive-race", phase, "peer-application", harm);
    measured(record);
}

/// The server's half: the request came after its close().
fn check_data_after_close(record: &Value, peer: Peer, server: &Side) {
    expect(
        record,
        json!({
            "end": "reset-sent",
            "state": "FIN_WAIT1",
            "closer": server.task("close"),
            "fin": { "first": "local", "local": true, "remote": false },
            "verdict": format!("{} sent 20 B after server had closed", peer.called("client")),
        }),
    );
    judged(record, "data-after-close", "after-local-fin", "local-kernel", "lost");
}

fn a_server_closes_while_the_next_request_is_on_its_way(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(peer);
    link.hold(AtoB, true);
    client.ok(&format!("send {REQUEST}"));
    server.ok("close");
    assert_eq!(client.ok("recv 100"), "0");
    link.hold(AtoB, false);
    client.ok("poll error");
    client.ok("close");

    check_race_by_fin(&client.record(tracer), peer, &server, "CLOSE_WAIT", "after-remote-fin");
    check_data_after_close(&server.record(tracer), peer, &server);
}

fn a_client_closes_in_return_before_its_crossing_request_is_refused(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(peer);
    link.hold(AtoB, true);
    client.ok(&format!("send {REQUEST}"));
    server.ok("close");
    assert_eq!(client.ok("recv 100"), "0");
    client.ok("close");
    link.hold(AtoB, false);

    let record = client.record(tracer);
    check_race_by_fin(&record, peer, &server, "LAST_ACK", "closing");
    expect(&record, json!({ "fin": { "local": true }, "closer": client.task("close"), "observer": null, "seen": "never" }));
    check_data_after_close(&server.record(tracer), peer, &server);
}

/// nginx's lingering close: a FIN, and whatever comes is read to the client's own. No RST tells the
/// client, and its request is acknowledged.
fn a_server_that_lingers_takes_the_crossing_request_and_drops_it(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(peer);
    link.hold(AtoB, true);
    client.ok(&format!("send {REQUEST}"));
    server.ok("shutdown write");
    assert_eq!(client.ok("recv 100"), "0");
    client.ok("close");
    link.hold(AtoB, false);
    assert_eq!(server.ok("recv-all 100"), REQUEST.to_string());
    server.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "state": "LAST_ACK",
            "bytes": { "sent": 2 * REQUEST, "acked": 2 * REQUEST, "unacked": 0, "received": RESPONSE },
            "fin": { "first": "remote", "local": true, "remote": true },
            "evidence": { "reused": true, "rst": null },
            "peer": peer.json(&server, Some("shutdown"), 0),
            "verdict": format!(
                "{} closed the connection while our request was on its way (keep-alive race): 20 B unanswered",
                peer.called("server"),
            ),
        }),
    );
    judged(&record, "keepalive-race", "request-in-flight", "peer-application", "possible");
    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "bytes": { "sent": RESPONSE, "acked": RESPONSE, "received": 2 * REQUEST, "unread": 0 },
            "fin": { "first": "local", "local": true, "remote": true },
            "closer": server.task("shutdown"),
            "initiator": "local-application",
        }),
    );
}

// Requests that arrived and have no answer.

fn a_server_closes_after_reading_the_request(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = fresh(peer);
    client.send_to(&mut server, REQUEST);
    // Longer than an end that answers a goodbye would take, however busy it is.
    sleep(Duration::from_millis(1_100));
    server.ok("close");
    assert_eq!(client.ok("recv 100"), "0");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "state": "LAST_ACK",
            "bytes": { "sent": REQUEST, "acked": REQUEST, "unacked": 0, "received": 0 },
            "fin": { "first": "remote" },
            "peer": peer.json(&server, Some("close"), 0),
            "verdict": format!("{} closed without answering our request", peer.called("server")),
        }),
    );
    judged(&record, "closed-before-answer", "request-in-flight", "peer-application", "possible");
    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "bytes": { "sent": 0, "received": REQUEST, "unread": 0 },
            "fin": { "first": "local" },
            "verdict": format!("server closed without answering {}'s request", peer.called("client")),
        }),
    );
    judged(&record, "closed-before-answer", "request-in-flight", "local-application", "possible");
}

fn a_server_dies_with_the_request(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = reused(peer);
    client.send_to(&mut server, REQUEST);
    server.actor.signal(libc::SIGKILL);
    assert_eq!(client.ok("recv 100"), "0");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "bytes": { "sent": 2 * REQUEST, "acked": 2 * REQUEST, "unacked": 0, "received": RESPONSE },
            "fin": { "first": "remote" },
            "peer": peer.json(&server, None, 0),
            "verdict": format!("{} closed without answering our request", peer.called("server")),
        }),
    );
    judged(&record, "closed-before-answer", "request-in-flight", "peer-application", "possible");
    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "fin",
            "closer": server.exiting(),
            "evidence": { "signal": "SIGKILL" },
            "verdict": format!("server died without answering {}'s request", peer.called("client")),
        }),
    );
    judged(&record, "closed-before-answer", "request-in-flight", "local-application", "possible");
}

fn a_server_aborts_having_acknowledged_the_request(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = fresh(peer);
    client.send_to(&mut server, REQUEST);
    client.wait_acknowledged();
    server.abort();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "sent": REQUEST, "acked": REQUEST, "unacked": 0, "received": 0 },
            "evidence": { "last_speaker": "local", "reused": false, "rst": { "acked": REQUEST } },
            "peer": peer.json(&server, Some("close"), 0),
            "verdict": format!(
                "{} aborted before a byte of its answer, our request acknowledged by its host",
                peer.called("server"),
            ),
        }),
    );
    judged(&record, "server-abort-before-response", "request-in-flight", "peer-application", "possible");
    measured(&record);
}

/// Lets everything pass but ACKs that carry nothing.
fn no_pure_acks(segment: &Segment) -> Fate {
    if segment.payload > 0 || segment.syn || segment.fin || segment.rst { Fate::Pass } else { Fate::Lose }
}

fn a_servers_reset_itself_acknowledges_the_request(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(peer);
    link.police(BtoA, no_pure_acks);
    client.send_to(&mut server, REQUEST);
    server.abort();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "sent": 2 * REQUEST, "acked": REQUEST, "unacked": REQUEST, "received": RESPONSE },
            "evidence": { "last_speaker": "local", "reused": true, "rst": { "acked": 2 * REQUEST } },
            "peer": peer.json(&server, Some("close"), 0),
            "verdict": format!("{} aborted before a byte of its answer", peer.called("server")),
        }),
    );
    judged(&record, "server-abort-before-response", "request-in-flight", "peer-application", "possible");
}

fn a_server_aborts_a_reused_connection_having_read_the_request(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = reused(peer);
    client.send_to(&mut server, REQUEST);
    client.wait_acknowledged();
    server.abort();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "evidence": { "last_speaker": "local", "reused": true, "rst": { "acked": 2 * REQUEST } },
            "peer": peer.json(&server, Some("close"), 0),
        }),
    );
    judged(&record, "server-abort-before-response", "request-in-flight", "peer-application", "possible");
    let record = server.record(tracer);
    expect(&record, json!({ "verdict": "server aborted the connection (SO_LINGER 0); the client's request is unanswered" }));
    judged(&record, "linger-zero", "request-in-flight", "local-application", "possible");
}

fn a_server_closes_with_the_request_unread(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = fresh(peer);
    client.ok(&format!("send {REQUEST}"));
    server.ok("poll in");
    client.wait_acknowledged();
    server.ok("close");
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    let unread = if peer == Here { "; 20 B of ours never read there" } else { "" };
    expect(
        &record,
        json!({
            "end": "reset-received",
            "evidence": { "rst": { "acked": REQUEST } },
            "peer": peer.json(&server, Some("close"), REQUEST as u64),
            "verdict": format!(
                "{} aborted before a byte of its answer, our request acknowledged by its host{unread}",
                peer.called("server"),
            ),
        }),
    );
    // Acknowledged is not read, and only the other half knows.
    let harm = if peer == Here { "lost" } else { "possible" };
    judged(&record, "server-abort-before-response", "request-in-flight", "peer-application", harm);
    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "reason": "TCP_ABORT_ON_CLOSE",
            "verdict": format!("server closed with 20 B from {} unread; the client's request is unanswered", peer.called("client")),
        }),
    );
    judged(&record, "close-with-unread-data", "request-in-flight", "local-application", "lost");
}

fn a_server_aborts_in_the_middle_of_its_answer(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = fresh(peer);
    client.send_to(&mut server, REQUEST);
    server.send_to(&mut client, 100);
    server.wait_acknowledged();
    server.abort();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "sent": REQUEST, "acked": REQUEST, "received": 100, "unread": 0 },
            "evidence": { "last_speaker": "remote", "reused": null, "rst": { "acked": REQUEST } },
            "peer": peer.json(&server, Some("close"), 0),
            "verdict": format!("{} aborted after 100 B of its answer; whether that was all is not known", peer.called("server")),
        }),
    );
    judged(&record, "server-abort-mid-response", "mid-response", "peer-application", "possible");
}

// Clients that go away.

fn a_client_aborts_and_its_reset_tells_what_had_arrived(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = fresh(peer);
    client.send_to(&mut server, REQUEST);
    client.wait_acknowledged();
    // Two segments of the response arrive, and no acknowledgement of them but the RST's.
    let mut let_through = 2;
    link.police(BtoA, move |segment| {
        let_through -= i32::from(segment.payload > 0);
        if segment.payload > 0 && let_through < 0 { Fate::Lose } else { Fate::Pass }
    });
    link.police(AtoB, no_pure_acks);
    server.ok("send 5000");
    assert_eq!(client.ok(&format!("recv-all {}", 2 * MSS)), (2 * MSS).to_string());
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "sent": 5000, "acked": 0, "unacked": 5000, "unsent": 0, "received": REQUEST },
            "evidence": { "last_speaker": "local", "reused": null, "rst": { "acked": 2 * MSS } },
            "peer": peer.json(&client, Some("close"), 0),
            "verdict": format!(
                "{} aborted in the middle of our response, 2,896 of 5,000 B acknowledged; 2,104 B not delivered",
                peer.called("client"),
            ),
        }),
    );
    judged(&record, "peer-abort-mid-response", "mid-response", "peer-application", "lost");
    assert!(link.lost(BtoA) >= 2);
}

fn a_client_aborts_and_its_reset_acknowledges_everything(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = fresh(peer);
    client.send_to(&mut server, REQUEST);
    link.police(AtoB, no_pure_acks);
    server.send_to(&mut client, RESPONSE);
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "bytes": { "sent": RESPONSE, "acked": 0, "unacked": RESPONSE, "unsent": 0 },
            "evidence": { "rst": { "acked": RESPONSE } },
            "peer": peer.json(&client, Some("close"), 0),
            "verdict": format!("{} aborted after all that we sent (19 B) was acknowledged by its host", peer.called("client")),
        }),
    );
    judged(&record, "peer-abort-after-response", "after-response", "peer-application", "none");
}

fn a_client_aborts_before_the_answer(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = reused(peer);
    client.send_to(&mut server, REQUEST);
    client.wait_acknowledged();
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "evidence": { "last_speaker": "remote", "reused": true, "rst": { "acked": RESPONSE } },
            "peer": peer.json(&client, Some("close"), 0),
            "verdict": format!("{} aborted before our answer to its request", peer.called("client")),
        }),
    );
    judged(&record, "peer-abort-before-response", "request-in-flight", "peer-application", "possible");
    let record = client.record(tracer);
    expect(&record, json!({ "verdict": "client aborted the connection (SO_LINGER 0); our request is unanswered" }));
    judged(&record, "linger-zero", "request-in-flight", "local-application", "possible");
}

fn a_client_aborts_an_idle_connection(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = reused(peer);
    sleep(Duration::from_millis(1_100));
    client.abort();
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    expect(&record, json!({ "end": "reset-received", "peer": peer.json(&client, Some("close"), 0) }));
    judged(&record, "peer-abort-idle", "idle", "peer-application", "none");
    let start = format!("{} aborted the idle connection, idle 1.", peer.called("client"));
    assert!(text(&record, "/verdict").starts_with(&start), "{record}");
}

fn a_client_gives_up_waiting(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (_link, Pair { mut client, mut server }) = fresh(peer);
    client.send_to(&mut server, REQUEST);
    client.wait_acknowledged();
    sleep(Duration::from_millis(100));
    client.ok("close");
    assert_eq!(server.ok("recv 100"), "0");
    server.ok("close");

    let record = client.record(tracer);
    expect(&record, json!({ "end": "fin", "fin": { "first": "local" }, "peer": peer.json(&server, Some("close"), 0) }));
    judged(&record, "gave-up-waiting", "request-in-flight", "local-application", "possible");
    let words = text(&record, "/verdict");
    assert!(words.starts_with("client gave up after waiting 1"), "{words}");
    assert!(words.ends_with(&format!(" ms for {}'s answer", peer.called("server"))), "{words}");
    let record = server.record(tracer);
    expect(&record, json!({ "end": "fin", "fin": { "first": "remote" }, "peer": peer.json(&client, Some("close"), 0) }));
    judged(&record, "client-gave-up", "request-in-flight", "peer-application", "possible");
    let words = text(&record, "/verdict");
    assert!(words.starts_with(&format!("{} gave up after waiting 1", peer.called("client"))), "{words}");
}

// Timers.

/// Loses everything, both ways.
fn cut(link: &Link) {
    link.lose(AtoB, true);
    link.lose(BtoA, true);
}

fn nothing_is_acknowledged_until_retransmissions_end(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, server: _server }) = reused(peer);
    link.a.sysctl("ipv4/tcp_retries2", "2");
    cut(&link);
    client.ok(&format!("send {REQUEST}"));
    assert_eq!(client.fails("recv 100"), "ETIMEDOUT");
    client.ok("close");

    let record = client.record(tracer);
    in_range(&record, "/retransmits", 1..20);
    expect(
        &record,
        json!({
            "end": "timeout",
            "state": "ESTABLISHED",
            "bytes": { "sent": 2 * REQUEST, "acked": REQUEST, "unacked": REQUEST, "unsent": 0 },
            "evidence": { "user_timeout": null },
            "peer": null,
        }),
    );
    judged(&record, "retransmit-timeout", "request-in-flight", "local-kernel", "possible");
    let words = text(&record, "/verdict");
    assert!(words.starts_with("the server acknowledged nothing, though we retransmitted "), "{words}");
    assert!(words.ends_with(" times; 20 B not confirmed; our request is unanswered"), "{words}");
}

/// The server has read the request: whatever the client's record says, it must not say that the
/// request was not delivered.
fn the_request_arrived_and_only_the_acknowledgements_were_lost(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(peer);
    link.a.sysctl("ipv4/tcp_retries2", "2");
    link.lose(BtoA, true);
    client.send_to(&mut server, REQUEST);
    assert_eq!(client.fails("recv 100"), "ETIMEDOUT");
    client.ok("close");

    let record = client.record(tracer);
    expect(&record, json!({ "end": "timeout", "bytes": { "unacked": REQUEST } }));
    judged(&record, "retransmit-timeout", "request-in-flight", "local-kernel", "possible");
    assert!(text(&record, "/verdict").ends_with("20 B not confirmed; our request is unanswered"), "{record}");
}

fn no_answer_to_keep_alive_probes(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, server: _server }) = reused(peer);
    cut(&link);
    client.ok("set keepintvl 1");
    client.ok("set keepcnt 2");
    client.ok("set keepidle 1");
    client.ok("set keepalive 1");
    assert_eq!(client.fails("recv 100"), "ETIMEDOUT");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "reason": "TCP_KEEPALIVE_TIMEOUT",
            "evidence": { "probes_out": 2, "reason_from": "kernel" },
            "peer": null,
            "verdict": "the server answered none of 2 keep-alive probes",
        }),
    );
    judged(&record, "keepalive-timeout", "idle", "local-kernel", "none");
}

fn a_user_timeout_runs_out(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { client: _client, mut server }) = reused(peer);
    cut(&link);
    server.ok("set user-timeout 600");
    server.ok("send 44");
    assert_eq!(server.fails("recv 100"), "ETIMEDOUT");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "timeout",
            "bytes": { "unacked": 44 },
            "evidence": { "user_timeout": 600 },
            "peer": null,
        }),
    );
    judged(&record, "user-timeout", "mid-response", "local-kernel", "possible");
    let words = text(&record, "/verdict");
    assert!(words.starts_with("the client acknowledged nothing within TCP_USER_TIMEOUT (600 ms); 44 B not confirmed"), "{words}");
}

/// A host that answers probes may keep its window closed for ever: what ended this is silence.
fn a_closed_window_and_then_silence(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { client: _client, mut server }) = reused(peer);
    link.b.sysctl("ipv4/tcp_retries2", "2");
    server.ok("set sndbuf 200000");
    server.ok("fill");
    let full = |server: &mut Side| {
        let outstanding = server.get("outstanding");
        outstanding > 0 && outstanding == server.get("unsent")
    };
    // For a while its host answers the probes.
    wait_until("the client's window is full", || full(&mut server));
    sleep(Duration::from_secs(1));
    wait_until("the client's window is full again", || full(&mut server));
    cut(&link);
    wait_until("the kernel gives up", || server.actor.call(format!("poll {} error", server.fd)).is_ok());
    server.ok("close");

    let record = server.record(tracer);
    expect(&record, json!({ "end": "timeout", "state": "ESTABLISHED", "bytes": { "unacked": 0 }, "peer": null }));
    in_range(&record, "/bytes/unsent", 1..);
    in_range(&record, "/evidence/probes_out", 1..);
    judged(&record, "zero-window-timeout", "mid-response", "local-kernel", "lost");
    assert!(!text(&record, "/verdict").contains("kept its window closed until"), "{record}");
}

fn a_response_is_closed_upon_and_never_acknowledged(peer: Peer) {
    require_root!();
    let tracer = shared();
    let (link, Pair { client: _client, mut server }) = reused(peer);
    link.b.sysctl("ipv4/tcp_orphan_retries", "2");
    cut(&link);
    server.ok("send 44");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "timeout",
            "state": "FIN_WAIT1",
            "bytes": { "sent": RESPONSE + 44, "acked": RESPONSE, "unacked": 44, "unsent": 0 },
            "observer": null,
            "seen": "never",
            "closer": server.task("close"),
            "peer": null,
        }),
    );
    judged(&record, "undelivered-after-close", "after-local-fin", "local-kernel", "possible");
    let words = text(&record, "/verdict");
    assert!(words.starts_with("server had closed, and the client acknowledged no more; 44 B not confirmed"), "{words}");
}

#[test]
fn nobody_answers_a_syn() {
    require_root!();
    let tracer = shared();
    let link = Link::new(DELAY);
    link.a.sysctl("ipv4/tcp_syn_retries", "1");
    cut(&link);
    let mut client = Actor::spawn_in(&link.a, "client");
    let to = SocketAddr::new(link.addr_b, 4711);
    let fd = client.socket(to);
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ETIMEDOUT");
    client.ok(format!("close {fd}"));

    let record = tracer.wait("a connect timeout", |record| record["owner"]["tgid"] == client.pid());
    expect(&record, json!({ "end": "timeout", "state": "SYN_SENT", "peer": null, "verdict": "our SYN had no answer" }));
    judged(&record, "connect-timeout", "connecting", "local-kernel", "none");
}

#[test]
fn nobody_listens_at_the_other_end() {
    require_root!();
    let tracer = shared();
    let link = Link::new(DELAY);
    let mut client = Actor::spawn_in(&link.a, "client");
    let to = SocketAddr::new(link.addr6_b, 4711);
    let fd = client.socket(to);
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ECONNREFUSED");
    client.ok(format!("close {fd}"));

    let record = tracer.wait("a refused connect", |record| record["owner"]["tgid"] == client.pid());
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "SYN_SENT",
            "peer": null,
            "verdict": "refused: nothing listens there, or a firewall answers in its place",
        }),
    );
    judged(&record, "refused", "connecting", "peer-kernel", "none");
    let record = tracer.wait("a closed port", |record| record["netns"] == link.b.inode() && record["local"]["port"] == 4711);
    expect(&record, json!({ "end": "reset-sent", "state": null, "verdict": "nobody listens on port 4711 here" }));
    judged(&record, "closed-port", "connecting", "local-kernel", "none");
}

// Connections that the other end has forgotten.

/// The server's host forgets the connection, and the client does not know: the RST is lost.
fn forgotten() -> (Link, Side, Side) {
    let (link, Pair { client, mut server }) = reused(Here);
    link.lose(BtoA, true);
    server.abort();
    wait_until("the RST is lost", || link.lost(BtoA) > 0);
    // Its record is told when no other half can follow any more.
    server.record(shared());
    link.lose(BtoA, false);
    (link, client, server)
}

#[test]
fn a_request_meets_a_host_that_forgot_the_connection() {
    require_root!();
    let tracer = shared();
    let (_link, mut client, server) = forgotten();
    client.ok(&format!("send {REQUEST}"));
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "acked": REQUEST, "unacked": REQUEST, "received": RESPONSE },
            "evidence": { "rst": { "acked": null } },
            "peer": null,
            "verdict": "the server's side knew no such connection when our request arrived: 20 B unanswered; 20 B not confirmed",
        }),
    );
    judged(&record, "no-connection-at-peer", "request-in-flight", "peer-kernel", "possible");
    measured(&record);
    in_range(&record, "/evidence/since_last_tx_us", RTT_US..3 * RTT_US);
    let record = tracer.stray(server.flow);
    judged(&record, "no-connection", "unknown", "local-kernel", "lost");
}

#[test]
fn a_keep_alive_probe_meets_a_host_that_forgot_the_connection() {
    require_root!();
    let tracer = shared();
    let (_link, mut client, server) = forgotten();
    client.ok("set keepidle 1");
    client.ok("set keepalive 1");
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "unacked": 0, "unsent": 0 },
            "evidence": { "probes_out": 1, "rst": { "acked": null } },
            "peer": null,
        }),
    );
    judged(&record, "stale-connection", "idle", "peer-kernel", "none");
    let words = text(&record, "/verdict");
    assert!(words.starts_with("our keep-alive probe found no connection at the server, idle "), "{words}");
    let record = tracer.stray(server.flow);
    expect(&record, json!({ "verdict": "a segment arrived for a connection that this host does not know" }));
    judged(&record, "no-connection", "unknown", "local-kernel", "none");
}

// Middleboxes.

#[test]
fn a_firewall_near_the_client_answers_sooner_than_the_server_can() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let routed = Routed::new();
    let Pair { mut client, mut server } = routed.connect(&[], routed.link.addr_b);
    exchange_between(&mut client, &mut server);
    sleep(Duration::from_millis(1_100));
    routed.nft("add table inet f; add chain inet f f { type filter hook forward priority 0; }; add rule inet f f meta l4proto tcp reject with tcp reset");
    client.ok(&format!("send {REQUEST}"));
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "state": "ESTABLISHED",
            "bytes": { "unacked": REQUEST },
            "evidence": { "reused": true, "rst": { "acked": null } },
            "peer": null,
        }),
    );
    measured(&record);
    in_range(&record, "/evidence/since_last_tx_us", 0..DELAY.as_micros() as i64);
    in_range(&record, "/idle_ms/received", 1_000..);
    judged(&record, "no-connection-at-peer", "request-in-flight", "middlebox", "possible");
    // The request never came to the server's side, which knows the connection well.
    assert!(!text(&record, "/verdict").contains("the server's side knew no such connection"), "{record}");
}

/// On a busy connection the early RST may answer an earlier segment: nobody can be named, least of
/// all the peer's kernel, which has the connection.
#[test]
fn on_a_busy_connection_an_early_reset_accuses_nobody() {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(Elsewhere);
    link.police(AtoB, |_| Fate::Reject);
    client.ok(&format!("send {REQUEST}"));
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(&record, json!({ "evidence": { "rst": { "acked": null } }, "peer": null, "initiator": "unknown" }));
    in_range(&record, "/evidence/since_last_tx_us", 0..DELAY.as_micros() as i64);
    server.ok("close");
}

/// Neither socket sent the RST, and both are here: it is proved that something between them did.
fn a_reset_for_both_ends(with_ack: bool) {
    let tracer = shared();
    let (link, Pair { mut client, mut server }) = reused(Here);
    link.wait_empty(AtoB);
    link.wait_empty(BtoA);
    link.inject_reset(AtoB, with_ack);
    link.inject_reset(BtoA, with_ack);
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    client.ok("close");
    server.ok("close");

    let acked = |bytes: usize| if with_ack { json!(bytes) } else { Value::Null };
    let record = client.record(tracer);
    expect(
        &record,
        json!({ "end": "reset-received", "evidence": { "rst": { "acked": acked(REQUEST) } }, "peer": { "cookie": server.cookie } }),
    );
    expect(&record, json!({ "initiator": "middlebox" }));
    let record = server.record(tracer);
    expect(
        &record,
        json!({ "end": "reset-received", "evidence": { "rst": { "acked": acked(RESPONSE) } }, "peer": { "cookie": client.cookie } }),
    );
    expect(&record, json!({ "initiator": "middlebox" }));
}

#[test]
fn a_middlebox_resets_both_ends_as_if_each_had() {
    require_root!();
    a_reset_for_both_ends(true);
}

#[test]
fn a_middlebox_resets_both_ends_without_an_ack() {
    require_root!();
    a_reset_for_both_ends(false);
}

/// Nothing of the client's is outstanding, so nothing of it is answered.
#[test]
fn a_reset_without_ack_that_answers_nothing_of_ours_has_no_known_sender() {
    require_root!();
    let tracer = shared();
    let (link, Pair { mut client, server: _server }) = reused(Elsewhere);
    link.wait_empty(AtoB);
    link.inject_reset(BtoA, false);
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");

    let record = client.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "bytes": { "unacked": 0, "unsent": 0, "received": RESPONSE },
            "evidence": { "last_speaker": "remote", "rst": { "acked": null } },
            "cause": "server-abort-mid-response",
            "peer": null,
            "initiator": "unknown",
        }),
    );
}

// Pairing.

/// A client behind a router, and a link from there to the server.
struct Routed {
    client: NetNs,
    link: Link,
}

impl Routed {
    fn new() -> Self {
        let (client, link) = (NetNs::new(), Link::new(DELAY));
        veth("lan", &client, &["10.78.0.1/24", "fd78::1/64"], &link.a, &["10.78.0.2/24", "fd78::2/64"]);
        link.a.sysctl("ipv4/ip_forward", "1");
        link.a.sysctl("ipv6/conf/all/forwarding", "1");
        client.command("ip", &["route", "add", "default", "via", "10.78.0.2"]);
        client.command("ip", &["-6", "route", "add", "default", "via", "fd78::2"]);
        link.b.command("ip", &["route", "add", "default", "dev", "tun0"]);
        link.b.command("ip", &["-6", "route", "add", "default", "dev", "tun0"]);
        Self { client, link }
    }

    /// Has the router do something to packets.
    fn nft(&self, commands: &str) {
        nft(&self.link.a, commands);
    }

    /// Connects from the LAN to the server, or to one of the addresses given, which are the server's
    /// by translation. The server listens on port 8080.
    #[track_caller]
    fn connect(&self, to: &[SocketAddr], at: IpAddr) -> Pair {
        connect_translated(&self.client, &self.link.b, to.first().copied(), SocketAddr::new(at, 8080))
    }
}

fn nft(netns: &NetNs, commands: &str) {
    for command in commands.split("; ").fold(Vec::<String>::new(), join_braces) {
        netns.command("nft", &[&command]);
    }
}

/// Semicolons within braces separate no commands.
fn join_braces(mut commands: Vec<String>, part: &str) -> Vec<String> {
    match commands.last_mut().filter(|last| last.matches('{').count() > last.matches('}').count()) {
        Some(last) => *last += &format!("; {part}"),
        None => commands.push(part.into()),
    }
    commands
}

/// `to`: what the client believes to be the server's address.
#[track_caller]
fn connect_translated(from: &NetNs, at: &NetNs, to: Option<SocketAddr>, listen: SocketAddr) -> Pair {
    let (mut client, mut server) = (Actor::spawn_in(from, "client"), Actor::spawn_in(at, "server"));
    let (listener, address) = server.listen(&listen.to_string());
    let fd = client.connect(to.unwrap_or(address));
    let mut client = Side::new(client, fd, "client");
    let fd = server.accept(listener);
    server.ok(format!("close {listener}"));
    let mut server = Side::new(server, fd, "server");
    client.netns = from.inode();
    server.netns = at.inode();
    Pair { client, server }
}

fn exchange_between(client: &mut Side, server: &mut Side) {
    client.send_to(server, REQUEST);
    server.send_to(client, RESPONSE);
    server.wait_acknowledged();
    client.wait_acknowledged();
}

/// An end that both see, and each names the other.
fn paired(tracer: &Tracer, Pair { mut client, mut server }: Pair) -> (Flow, Flow) {
    exchange_between(&mut client, &mut server);
    client.send_to(&mut server, REQUEST);
    server.abort();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    client.ok("close");
    let record = client.record(tracer);
    expect(&record, json!({ "peer": Here.json(&server, Some("close"), 0) }));
    judged(&record, "server-abort-before-response", "request-in-flight", "peer-application", "possible");
    let record = server.record(tracer);
    expect(&record, json!({ "peer": Here.json(&client, Some("recvfrom"), 0) }));
    (client.flow, server.flow)
}

#[test]
fn halves_are_paired_across_namespaces() {
    require_root!();
    let tracer = shared();
    let (a, b) = (NetNs::new(), NetNs::new());
    veth("lan", &a, &["10.78.0.1/24", "fd78::1/64"], &b, &["10.78.0.2/24", "fd78::2/64"]);
    for address in ["10.78.0.2:8080", "[fd78::2]:8080"] {
        let (client, server) = paired(tracer, connect_translated(&a, &b, None, address.parse().unwrap()));
        assert_eq!(client, server.peer());
    }
    let link = Link::new(DELAY);
    for address in [link.addr_b, link.addr6_b] {
        let (client, server) = paired(tracer, link.connect_to(address));
        assert_eq!(client, server.peer());
    }
}

#[test]
fn halves_are_paired_through_dnat_in_the_clients_namespace() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    for (family, vip, server) in [("ip", "10.99.0.1", "10.77.0.2:8080"), ("ip6", "fd99::1", "[fd77::2]:8080")] {
        let link = Link::new(DELAY);
        link.a.command("ip", &[if family == "ip" { "-4" } else { "-6" }, "route", "add", "default", "dev", "tun0"]);
        nft(
            &link.a,
            &format!(
                "add table {family} n; add chain {family} n o {{ type nat hook output priority -100; }}; \
                 add rule {family} n o {family} daddr {vip} tcp dport 80 dnat to {server}"
            ),
        );
        let to = SocketAddr::new(vip.parse().unwrap(), 80);
        let (client, seen) = paired(tracer, connect_translated(&link.a, &link.b, Some(to), server.parse().unwrap()));
        assert_eq!(client.remote, to);
        assert_eq!(seen, Flow::new(server.parse().unwrap(), client.local));
    }
}

#[test]
fn halves_are_paired_through_dnat_and_masquerading_in_a_router() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let routed = Routed::new();
    for (family, vip, server, outside) in
        [("ip", "10.99.0.1", "10.77.0.2:8080", routed.link.addr_a), ("ip6", "fd99::1", "[fd77::2]:8080", routed.link.addr6_a)]
    {
        routed.nft(&format!(
            "add table {family} n; add chain {family} n p {{ type nat hook prerouting priority -100; }}; \
             add rule {family} n p {family} daddr {vip} tcp dport 80 dnat to {server}; \
             add chain {family} n q {{ type nat hook postrouting priority 100; }}; \
             add rule {family} n q oifname tun0 meta l4proto tcp masquerade to :20000-20999"
        ));
        let to = SocketAddr::new(vip.parse().unwrap(), 80);
        let server: SocketAddr = server.parse().unwrap();
        let (client, seen) = paired(tracer, routed.connect(&[to], server.ip()));
        assert_eq!(client.remote, to);
        assert_eq!((seen.local, seen.remote.ip()), (server, outside));
        assert_ne!(client.local.port(), seen.remote.port(), "no endpoint is the same at both ends");
    }
}

#[test]
fn sixty_connections_that_end_at_once_behind_one_router_are_each_paired_with_their_own() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let routed = Routed::new();
    routed.nft(
        "add table ip n; add chain ip n p { type nat hook prerouting priority -100; }; \
         add rule ip n p ip daddr 10.99.0.1 tcp dport 80 dnat to 10.77.0.2:8080; \
         add chain ip n q { type nat hook postrouting priority 100; }; \
         add rule ip n q oifname tun0 meta l4proto tcp masquerade to :20000-20999",
    );
    let listener = routed.link.b.run_in(|| TcpListener::bind("10.77.0.2:8080").unwrap());
    let connect = || (TcpStream::connect("10.99.0.1:80").unwrap(), listener.accept().unwrap().0);
    let connections: Vec<_> = routed.client.run_in(|| (0..60).map(|_| connect()).collect());
    let cookies: Vec<_> = connections.iter().map(|(client, server)| [cookie(client), cookie(server)]).collect();
    for (client, _) in &connections {
        (&*client).write_all(b"request").unwrap();
    }
    let (clients, servers): (Vec<_>, Vec<_>) = connections.into_iter().unzip();
    servers.into_iter().for_each(abort);
    for mut client in clients {
        assert!(client.read(&mut [0; 10]).is_err());
    }
    each_has_its_own(tracer, &cookies);
}

#[test]
fn lives_of_one_port_that_follow_at_once_are_never_mixed() {
    require_root!();
    let tracer = shared();
    let netns = NetNs::new();
    let (mut client, mut server) = (Actor::spawn_in(&netns, "client"), Actor::spawn_in(&netns, "server"));
    let (listener, address) = server.listen("127.0.0.1:7000");
    let mut lives = Vec::new();
    for life in 0..30 {
        let fd = client.socket(address);
        client.ok(format!("bind {fd} 127.0.0.1:7001"));
        client.ok(format!("connect {fd} {address}"));
        let accepted = server.accept(listener);
        client.ok(format!("send {fd} 20"));
        server.ok(format!("recv-all {accepted} 20"));
        lives.push([client.get(format!("cookie {fd}")), server.get(format!("cookie {accepted}"))]);
        // The other end is released in the next life or the one after.
        let (first, first_fd, second, second_fd) =
            if life % 2 == 0 { (&mut client, fd, &mut server, accepted) } else { (&mut server, accepted, &mut client, fd) };
        first.ok(format!("linger0 {first_fd}"));
        first.ok(format!("close {first_fd}"));
        second.ok(format!("close {second_fd}"));
    }
    each_has_its_own(tracer, &lives);
}

/// Both records of each connection are there, by the cookies of its two sockets, and name each other.
#[track_caller]
fn each_has_its_own(tracer: &Tracer, connections: &[[u64; 2]]) {
    let other = |record: &Value| {
        let own = record["cookie"].as_u64()?;
        let [client, server] = connections.iter().find(|pair| pair.contains(&own))?;
        Some(if own == *client { *server } else { *client })
    };
    let records = tracer.wait_n("both halves of every connection", 2 * connections.len(), |record| other(record).is_some());
    let wrong: Vec<_> = records.iter().filter(|record| record["peer"]["cookie"].as_u64() != other(record)).collect();
    assert!(wrong.is_empty(), "{} of {} are not paired with their own; the first: {}", wrong.len(), records.len(), wrong[0]);
}

#[test]
fn two_hundred_connections_with_the_same_addresses_are_each_paired_with_their_own() {
    require_root!();
    let tracer = shared();
    const NAMESPACES: usize = 10;
    const EACH: u16 = 20;
    let all: Vec<_> = (0..NAMESPACES).map(|_| NetNs::new()).collect();
    let open = |netns: &NetNs| {
        netns.run_in(|| {
            let listener = TcpListener::bind("127.0.0.1:7000").unwrap();
            let connect = |n| {
                let from = format!("127.0.0.1:{}", 20_000 + n).parse().unwrap();
                let client = connect_from(from, "127.0.0.1:7000".parse().unwrap()).unwrap();
                (client, listener.accept().unwrap().0)
            };
            (0..EACH).map(connect).collect::<Vec<_>>()
        })
    };
    let connections: Vec<_> = all.iter().flat_map(open).collect();
    let cookies: Vec<_> = connections.iter().map(|(client, server)| [cookie(client), cookie(server)]).collect();
    for (client, server) in connections {
        (&client).write_all(b"request").unwrap();
        abort(server);
        drop(client);
    }
    each_has_its_own(tracer, &cookies);
}

fn cookie(stream: &TcpStream) -> u64 {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: room for the option.
    let result = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &mut length) };
    assert_eq!(result, 0);
    cookie
}

#[test]
fn a_proxys_two_connections_are_two_pairs() {
    require_root!();
    let tracer = shared();
    let link = Link::new(DELAY);
    let mut proxy = Actor::spawn_in(&link.a, "proxy");
    let mut client = Actor::spawn_in(&link.a, "client");
    let mut server = Actor::spawn_in(&link.b, "server");
    let (front, front_address) = proxy.listen("127.0.0.1:0");
    let (back, back_address) = server.listen(&SocketAddr::new(link.addr_b, 0).to_string());
    let fd = client.connect(front_address);
    let mut client = Side::new(client, fd, "client");
    let upstream = proxy.connect(back_address);
    let downstream = proxy.accept(front);
    let fd = server.accept(back);
    let mut server = Side::new(server, fd, "server");
    // The same bytes pass both.
    client.ok(&format!("send {REQUEST}"));
    proxy.ok(format!("recv-all {downstream} {REQUEST}"));
    proxy.ok(format!("send {upstream} {REQUEST}"));
    server.ok(&format!("recv-all {REQUEST}"));
    let cookies: [u64; 2] = [downstream, upstream].map(|fd| proxy.get(format!("cookie {fd}")));
    for fd in [downstream, upstream] {
        proxy.ok(format!("linger0 {fd}"));
    }
    proxy.begin("exit");
    proxy.wait_gone();
    assert_eq!(client.fails("recv 100"), "ECONNRESET");
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    client.ok("close");
    server.ok("close");

    for (outer, inner) in [(&mut client, cookies[0]), (&mut server, cookies[1])] {
        outer.netns = if outer.actor.name() == "client" { link.a.inode() } else { link.b.inode() };
        let record = outer.record(tracer);
        expect(&record, json!({ "peer": { "cookie": inner, "comm": "proxy", "syscall": null }, "initiator": "peer-application" }));
        let record = tracer.wait("the proxy's half", |record| record["cookie"] == inner && record["record"] == "teardown");
        expect(&record, json!({ "peer": { "cookie": outer.cookie }, "closer": { "comm": "proxy", "exiting": true } }));
    }
}

// What is shown without -a.

#[test]
fn ends_by_fin_that_hurt_are_shown_and_orderly_ones_are_not() {
    require_root!();
    let tracer = Tracer::start(&["--join-timeout", "3s"]);
    let link = Link::new(DELAY);
    let mut hurt: Vec<(Pair, [&str; 2])> = Vec::new();

    // The server closes without an answer.
    let mut pair = link.connect();
    pair.client.send_to(&mut pair.server, REQUEST);
    sleep(Duration::from_millis(1_100));
    pair.server.ok("close");
    assert_eq!(pair.client.ok("recv 100"), "0");
    pair.client.ok("close");
    hurt.push((pair, ["closed-before-answer", "closed-before-answer"]));

    // The client gives up.
    let mut pair = link.connect();
    pair.client.send_to(&mut pair.server, REQUEST);
    sleep(Duration::from_millis(40));
    pair.client.ok("close");
    assert_eq!(pair.server.ok("recv 100"), "0");
    pair.server.ok("close");
    hurt.push((pair, ["gave-up-waiting", "client-gave-up"]));

    // A race.
    let mut pair = link.connect();
    exchange(&mut pair);
    link.hold(AtoB, true);
    pair.client.ok(&format!("send {REQUEST}"));
    pair.server.ok("close");
    assert_eq!(pair.client.ok("recv 100"), "0");
    pair.client.ok("close");
    link.hold(AtoB, false);
    hurt.push((pair, ["keepalive-race", "data-after-close"]));

    // In order: by the client after its answer, by the server after its answer and with it, by
    // either without a byte, and by a client that half-closes behind its request.
    let mut orderly: Vec<Pair> = (0..6).map(|_| link.connect()).collect();
    for (n, Pair { client, server }) in orderly.iter_mut().enumerate() {
        match n {
            0 => {
                exchange_between(client, server);
                close_in_order(client, server);
            }
            1 => {
                exchange_between(client, server);
                close_in_order(server, client);
            }
            2 => {
                client.send_to(server, REQUEST);
                server.ok(&format!("send {RESPONSE}"));
                server.ok("close");
                assert_eq!(client.ok("recv-all 100"), RESPONSE.to_string());
                client.ok("close");
            }
            3 => close_in_order(client, server),
            4 => close_in_order(server, client),
            _ => {
                client.ok(&format!("send {REQUEST}"));
                client.ok("shutdown write");
                assert_eq!(server.ok("recv-all 100"), REQUEST.to_string());
                sleep(Duration::from_millis(40));
                server.ok(&format!("send {RESPONSE}"));
                server.ok("close");
                assert_eq!(client.ok("recv-all 100"), RESPONSE.to_string());
                client.ok("close");
            }
        }
    }

    for (Pair { client, server }, [at_client, at_server]) in &hurt {
        expect(&client.record(&tracer), json!({ "cause": at_client, "peer": { "cookie": server.cookie } }));
        expect(&server.record(&tracer), json!({ "cause": at_server, "peer": { "cookie": client.cookie } }));
    }
    link.wait_empty(AtoB);
    link.wait_empty(BtoA);
    let run = tracer.stop();
    for (n, Pair { client, server }) in orderly.iter().enumerate() {
        for side in [client, server] {
            let shown = run.teardowns().find(|record| record["cookie"] == side.cookie);
            assert!(shown.is_none(), "orderly connection {n}, {}: {shown:?}", side.actor.name());
        }
    }
    assert!(number(&run.summary, "/orderly") >= 12, "{}", run.summary);
}

fn close_in_order(first: &mut Side, second: &mut Side) {
    first.ok("close");
    assert_eq!(second.ok("recv 100"), "0");
    second.ok("close");
}
