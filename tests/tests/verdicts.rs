//! What each end of a connection is told to mean: one scenario per cause that can be made on this
//! host alone, and what both records say of it. docs/verdicts.md is the table behind.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::Duration,
};

use rsttrace_tests::{
    Actor, Fd, Flow, NetNs, Pair, Side, Tracer, binary, expect, in_range, is_stray, number, require_root, require_tool, shared, text,
    wait_until,
};
use serde_json::{Value, json};

const REQUEST: usize = 20;
const RESPONSE: usize = 19;

/// Bytes at each end after one exchange: sent, acked, unacked, unsent, received, unread.
const OF_CLIENT: [usize; 6] = [REQUEST, REQUEST, 0, 0, RESPONSE, 0];
const OF_SERVER: [usize; 6] = [RESPONSE, RESPONSE, 0, 0, REQUEST, 0];

/// The tracer runs before anything is made for it to see.
macro_rules! require_tracer {
    () => {
        require_root!();
        shared();
    };
}

/// Steps within one tick of the kernel's clock, as far as the scheduler lets them, or several
/// ticks apart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Quick,
    Slow,
}

const PACES: [Pace; 2] = [Pace::Quick, Pace::Slow];

impl Pace {
    fn pause(self) {
        if self == Self::Slow {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One exchange, all acknowledged.
fn exchange(pair: &mut Pair, pace: Pace) {
    pair.client.send_to(&mut pair.server, REQUEST);
    pace.pause();
    pair.server.send_to(&mut pair.client, RESPONSE);
    pair.server.wait_acknowledged();
    pace.pause();
}

fn exchanged(pace: Pace) -> Pair {
    let mut pair = Pair::new();
    exchange(&mut pair, pace);
    pair
}

/// A request whose answer is stuck at the client's closed window, and its size.
fn stuck(mut client: Actor, mut server: Actor) -> (Pair, usize) {
    let (listener, address) = server.listen("127.0.0.1:0");
    let fd = client.socket(address);
    client.ok(format!("set {fd} rcvbuf 4096"));
    client.ok(format!("connect {fd} {address}"));
    let mut client = Side::new(client, fd, "client");
    let fd = server.accept(listener);
    server.ok(format!("set {fd} sndbuf 200000"));
    let mut server = Side::new(server, fd, "server");
    client.send_to(&mut server, REQUEST);
    let written = server.get("fill") as usize;
    wait_until("what was sent is acknowledged, and the rest has to wait", || {
        let outstanding = server.get("outstanding");
        outstanding > 0 && outstanding == server.get("unsent")
    });
    (Pair { client, server }, written)
}

/// A request that the server has read.
fn requested(pace: Pace) -> Pair {
    let mut pair = Pair::new();
    pair.client.send_to(&mut pair.server, REQUEST);
    pair.client.wait_acknowledged();
    pace.pause();
    pair
}

/// Sentences of more than one scenario.
const ABORTED: &str = "our process aborted the connection (SO_LINGER 0)";
const ABORTED_AFTER_ALL: &str = "client aborted after all that we sent (19 B) was acknowledged by its host";
const BY_US: &str = "closed in order, by our process first";

/// `3,866,624`
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let with_commas = digits.char_indices().flat_map(|(i, c)| {
        let comma = (i > 0 && (digits.len() - i).is_multiple_of(3)).then_some(',');
        comma.into_iter().chain([c])
    });
    with_commas.collect()
}

/// Notices a reset and lets go.
fn let_go(side: &mut Side) {
    side.all("poll error; close");
}

/// The verdict in one line: end, state, phase, cause, initiator, harm; then its sentence, where
/// a time is a T.
#[track_caller]
fn says(record: &Value, line: &str, sentence: &str) {
    // A process that is known is named.
    let sentence = &record["owner"]["comm"].as_str().map_or_else(|| sentence.to_owned(), |comm| sentence.replace("our process", comm));
    let words = ["end", "state", "phase", "cause", "initiator", "harm"].map(|key| record[key].as_str().unwrap_or("-"));
    let said = format!("{}\n  {}", words.join(" "), without_times(text(record, "/verdict")));
    let expected = format!("{line}\n  {sentence}");
    assert!(said == expected, "expected\n  {expected}\nbut it says\n  {said}\nrecord: {record}");
}

/// `30.1 ms` is `T`.
fn without_times(sentence: &str) -> String {
    let unit = |word: &str| ["ns", "us", "ms", "s"].contains(&word.trim_end_matches([',', ';', ':', ')']));
    let is_number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let mut out: Vec<String> = Vec::new();
    for word in sentence.split(' ') {
        let follows = out.last().is_some_and(|last| is_number(last.trim_start_matches('(')));
        if unit(word) && follows {
            let number = out.pop().unwrap_or_default();
            let opening = if number.starts_with('(') { "(" } else { "" };
            out.push(format!("{opening}T{}", word.trim_start_matches(|c: char| c.is_ascii_alphabetic())));
        } else {
            out.push(word.to_owned());
        }
    }
    out.join(" ")
}

#[track_caller]
fn sizes(record: &Value, [sent, acked, unacked, unsent, received, unread]: [usize; 6]) {
    expect(
        record,
        json!({ "bytes": {
            "sent": sent, "acked": acked, "unacked": unacked, "unsent": unsent, "received": received, "unread": unread,
        } }),
    );
}

/// What the other half did, and what it never read of ours.
#[track_caller]
fn peer(record: &Value, syscall: impl Into<Value>, unread: impl Into<Value>) {
    expect(record, json!({ "peer": { "syscall": syscall.into(), "unread": unread.into() } }));
}

#[track_caller]
fn evidence(record: &Value, expected: Value) {
    expect(record, json!({ "evidence": expected }));
}

#[track_caller]
fn spoke_last(record: &Value, who: impl Into<Value>, reused: impl Into<Value>) {
    evidence(record, json!({ "last_speaker": who.into(), "reused": reused.into() }));
}

/// Both records, each of which names the other.
#[track_caller]
fn both(client: &Side, server: &Side) -> (Value, Value) {
    both_of(shared(), client, server)
}

#[track_caller]
fn both_of(tracer: &Tracer, client: &Side, server: &Side) -> (Value, Value) {
    let records = (client.record(tracer), server.record(tracer));
    names(&records.0, server);
    names(&records.1, client);
    records
}

#[track_caller]
fn names(record: &Value, other: &Side) {
    expect(record, json!({ "peer": { "cookie": other.cookie, "tgid": other.actor.pid(), "comm": other.actor.name() } }));
}

/// An address where nobody listens and nobody else will.
fn closed_port(actor: &mut Actor) -> SocketAddr {
    let fd: Fd = actor.get("socket 4");
    actor.ok(format!("bind {fd} 127.0.0.1:0"));
    actor.get(format!("local {fd}"))
}

/// A bound socket that is not yet connected.
fn unconnected(mut actor: Actor, to: SocketAddr) -> (Actor, Fd, Flow) {
    let fd = actor.socket(to);
    actor.ok(format!("bind {fd} 127.0.0.1:0"));
    let flow = Flow::new(actor.get(format!("local {fd}")), to);
    (actor, fd, flow)
}

// ---- aborts ----

#[test]
fn a_client_that_aborts_after_reading_the_answer_hurts_nobody() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = exchanged(pace);
        client.abort();
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        says(&client, "reset-sent ESTABLISHED after-response linger-zero local-application none", ABORTED);
        sizes(&client, OF_CLIENT);
        spoke_last(&client, "remote", Value::Null);
        evidence(&client, json!({ "linger": 0, "rst": null, "signal": null }));
        // Its process let go without a call that returned the error.
        peer(&client, Value::Null, 0);
        says(&server, "reset-received ESTABLISHED after-response peer-abort-after-response peer-application none", ABORTED_AFTER_ALL);
        sizes(&server, OF_SERVER);
        spoke_last(&server, "local", Value::Null);
        evidence(&server, json!({ "linger": null, "rst": { "acked": RESPONSE, "ttl": 64 }, "reason_from": null }));
        peer(&server, "close", 0);
    }
}

#[test]
fn an_acknowledgement_that_is_only_delayed_is_no_loss() {
    require_tracer!();
    let mut pair = Pair::new();
    // After an exchange or two the client's kernel delays its acknowledgements.
    for _ in 0..3 {
        exchange(&mut pair, Pace::Slow);
    }
    let Pair { mut client, mut server } = pair;
    client.send_to(&mut server, REQUEST);
    client.ok("linger0");
    client.begin("recv-all 19; close");
    server.ok("send 19");
    client.actor.reply().expect("close");
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    says(
        &server,
        "reset-received ESTABLISHED after-response peer-abort-after-response peer-application none",
        "client aborted after all that we sent (76 B) was acknowledged by its host",
    );
    sizes(&server, [4 * RESPONSE, 3 * RESPONSE, RESPONSE, 0, 4 * REQUEST, 0]);
    spoke_last(&server, "local", Value::Null);
    evidence(&server, json!({ "rst": { "acked": 4 * RESPONSE } }));
    peer(&server, "close", 0);
    says(&client, "reset-sent ESTABLISHED after-response linger-zero local-application none", ABORTED);
}

#[test]
fn a_client_that_aborts_before_the_answer_leaves_its_request_unanswered() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = requested(pace);
        client.abort();
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-sent ESTABLISHED request-in-flight linger-zero local-application possible",
            "our process aborted the connection (SO_LINGER 0); our request is unanswered",
        );
        sizes(&client, [REQUEST, REQUEST, 0, 0, 0, 0]);
        spoke_last(&client, "local", false);
        says(
            &server,
            "reset-received ESTABLISHED request-in-flight peer-abort-before-response peer-application possible",
            "client aborted before our answer to its request",
        );
        sizes(&server, [0, 0, 0, 0, REQUEST, 0]);
        spoke_last(&server, "remote", false);
        evidence(&server, json!({ "rst": { "acked": 0 } }));
        peer(&server, "close", 0);
    }
}

#[test]
fn a_client_that_aborts_in_the_middle_of_the_answer_leaves_an_exact_number_of_bytes() {
    require_tracer!();
    for unread in [true, false] {
        let (Pair { mut client, mut server }, written) = stuck(Actor::spawn("client"), Actor::spawn("server"));
        let read: usize = 1000;
        assert_eq!(client.get(&format!("recv-all {read}")), read as u64);
        let left = client.get("unread") as usize;
        client.ok("linger0");
        if unread {
            client.ok("close");
        } else {
            client.ok("disconnect");
        }
        let_go(&mut server);
        if !unread {
            client.ok("close");
        }
        let (client, server) = both(&client, &server);
        let arrived = read + left;
        says(
            &server,
            "reset-received ESTABLISHED mid-response peer-abort-mid-response peer-application lost",
            &format!(
                "client aborted in the middle of our response, {} of {} B acknowledged; {} B not delivered; {} B of ours never read there",
                grouped(arrived),
                grouped(written),
                grouped(written - arrived),
                grouped(left),
            ),
        );
        let sent = number(&server, "/bytes/sent") as usize;
        sizes(&server, [sent, arrived, sent - arrived, written - sent, REQUEST, 0]);
        evidence(&server, json!({ "rst": { "acked": arrived }, "last_speaker": "local" }));
        peer(&server, if unread { "close" } else { "connect" }, left);
        let (cause, sentence) = if unread {
            ("close-with-unread-data", format!("our process closed with {} B from server unread", grouped(left)))
        } else {
            ("disconnect", format!("our process disconnected the socket (connect to AF_UNSPEC); {} B never read here", grouped(left)))
        };
        says(&client, &format!("reset-sent ESTABLISHED mid-response {cause} local-application lost"), &sentence);
        sizes(&client, [REQUEST, REQUEST, 0, 0, arrived, left]);
    }
}

#[test]
fn a_server_that_aborts_before_its_answer_is_named_to_the_client() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = requested(pace);
        server.abort();
        let_go(&mut client);
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-received ESTABLISHED request-in-flight server-abort-before-response peer-application possible",
            "server aborted before a byte of its answer, our request acknowledged by its host",
        );
        sizes(&client, [REQUEST, REQUEST, 0, 0, 0, 0]);
        spoke_last(&client, "local", false);
        evidence(&client, json!({ "rst": { "acked": REQUEST } }));
        peer(&client, "close", 0);
        says(
            &server,
            "reset-sent ESTABLISHED request-in-flight linger-zero local-application possible",
            "our process aborted the connection (SO_LINGER 0); the client's request is unanswered",
        );
        spoke_last(&server, "remote", false);
    }
}

#[test]
fn the_second_request_is_on_a_connection_that_was_used_before() {
    require_tracer!();
    for pace in PACES {
        let mut pair = exchanged(pace);
        pair.client.send_to(&mut pair.server, REQUEST);
        pace.pause();
        let Pair { mut client, mut server } = pair;
        server.abort();
        let_go(&mut client);
        let (client, server) = both(&client, &server);
        // Its acknowledgement may have been delayed: then the RST brings it.
        let line = "reset-received ESTABLISHED request-in-flight server-abort-before-response peer-application possible";
        let acknowledged = number(&client, "/bytes/unacked") == 0;
        let tail = if acknowledged { ", our request acknowledged by its host" } else { "" };
        says(&client, line, &format!("server aborted before a byte of its answer{tail}"));
        spoke_last(&client, "local", true);
        evidence(&client, json!({ "rst": { "acked": 2 * REQUEST } }));
        peer(&client, "close", 0);
        says(
            &server,
            "reset-sent ESTABLISHED request-in-flight linger-zero local-application possible",
            "our process aborted the connection (SO_LINGER 0); the client's request is unanswered",
        );
        spoke_last(&server, "remote", true);
    }
}

#[test]
fn a_server_that_aborts_behind_its_answer_may_have_cut_it() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = exchanged(pace);
        server.abort();
        let_go(&mut client);
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-received ESTABLISHED mid-response server-abort-mid-response peer-application possible",
            "server aborted after 19 B of its answer; whether that was all is not known",
        );
        sizes(&client, OF_CLIENT);
        spoke_last(&client, "remote", Value::Null);
        evidence(&client, json!({ "rst": { "acked": REQUEST } }));
        says(&server, "reset-sent ESTABLISHED after-response linger-zero local-application none", ABORTED);
        sizes(&server, OF_SERVER);
        spoke_last(&server, "local", Value::Null);
    }
}

#[test]
fn bytes_that_arrived_before_a_reset_are_lost_only_if_nobody_reads_them() {
    require_tracer!();
    let sentence = "server aborted after 50 B of its answer; whether that was all is not known";
    // Read after the reset; never; and not yet when the record is due.
    for (then, harm, tail, unread) in [
        ("poll error; recv-all 50; close", "possible", "", json!(0)),
        ("poll error; close", "lost", "; 50 B never read here", json!(50)),
        ("poll error", "possible", "", Value::Null),
    ] {
        let Pair { mut client, mut server } = requested(Pace::Slow);
        server.ok("send 50");
        server.wait_acknowledged();
        server.abort();
        client.all(then);
        let (theirs, ours) = both(&client, &server);
        says(
            &theirs,
            &format!("reset-received ESTABLISHED mid-response server-abort-mid-response peer-application {harm}"),
            &format!("{sentence}{tail}"),
        );
        sizes(&theirs, [REQUEST, REQUEST, 0, 0, 50, 50]);
        let (phase, harm, tail) =
            if harm == "lost" { ("mid-response", "lost", "; 50 B of ours never read there") } else { ("after-response", "none", "") };
        says(&ours, &format!("reset-sent ESTABLISHED {phase} linger-zero local-application {harm}"), &format!("{ABORTED}{tail}"));
        expect(&ours, json!({ "peer": { "unread": unread } }));
    }
}

#[test]
fn an_abort_of_an_idle_connection_hurts_nobody_whoever_does_it() {
    require_tracer!();
    for by_client in [true, false] {
        let Pair { mut client, mut server } = exchanged(Pace::Quick);
        thread::sleep(Duration::from_millis(1_050));
        let (ours, theirs) = if by_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        ours.abort();
        let_go(theirs);
        let name = ours.actor.name().to_owned();
        let (client, server) = both(&client, &server);
        let (ours, theirs) = if by_client { (client, server) } else { (server, client) };
        says(&ours, "reset-sent ESTABLISHED idle linger-zero local-application none", ABORTED);
        says(
            &theirs,
            "reset-received ESTABLISHED idle peer-abort-idle peer-application none",
            &format!("{name} aborted the idle connection, idle T"),
        );
        in_range(&theirs, "/idle_ms/sent", 1_000..4_000);
        in_range(&theirs, "/idle_ms/received", 1_000..4_000);
        peer(&theirs, "close", 0);
    }
}

#[test]
fn a_connection_reset_without_a_byte_is_a_probe() {
    require_tracer!();
    let Pair { mut client, mut server } = Pair::new();
    client.abort();
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    says(
        &server,
        "reset-received ESTABLISHED idle connect-probe peer-application none",
        "connected and reset without a byte, as health checks do",
    );
    sizes(&server, [0; 6]);
    spoke_last(&server, Value::Null, Value::Null);
    says(&client, "reset-sent ESTABLISHED idle linger-zero local-application none", ABORTED);
    sizes(&client, [0; 6]);
}

#[test]
fn a_disconnect_is_no_linger() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = exchanged(pace);
        client.ok("disconnect");
        let_go(&mut server);
        client.ok("close");
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-sent ESTABLISHED after-response disconnect local-application none",
            "our process disconnected the socket (connect to AF_UNSPEC)",
        );
        sizes(&client, OF_CLIENT);
        evidence(&client, json!({ "linger": null }));
        says(&server, "reset-received ESTABLISHED after-response peer-abort-after-response peer-application none", ABORTED_AFTER_ALL);
        peer(&server, "connect", 0);
    }
}

#[test]
fn a_fork_that_closes_last_is_an_application() {
    require_tracer!();
    let Pair { mut client, mut server } = exchanged(Pace::Slow);
    let mut child = client.actor.fork("child");
    client.all("linger0; close");
    child.ok(format!("close {}", client.fd));
    let_go(&mut server);
    let of = |side: &Side| shared().wait("an end", |r| r["record"] == "teardown" && r["cookie"] == side.cookie);
    expect(&of(&client), json!({ "cause": "linger-zero", "initiator": "local-application" }));
    expect(&of(&server), json!({ "cause": "peer-abort-after-response", "initiator": "peer-application" }));
}

#[test]
fn ss_kill_is_an_administrators_doing_at_one_end_and_an_abort_at_the_other() {
    require_tracer!();
    require_tool!("ss");
    let Pair { mut client, mut server } = exchanged(Pace::Slow);
    server.kill_by_ss();
    assert_eq!(server.fails("recv 100"), "ECONNABORTED");
    server.ok("close");
    let_go(&mut client);
    let (client, server) = both(&client, &server);
    says(&server, "reset-sent ESTABLISHED after-response admin-kill local-admin none", "ended from outside by ss (as ss -K does)");
    sizes(&server, OF_SERVER);
    expect(&server, json!({ "closer": { "comm": "ss" } }));
    // The server's process did nothing.
    says(
        &client,
        "reset-received ESTABLISHED mid-response server-abort-mid-response local-admin possible",
        "server aborted after 19 B of its answer; whether that was all is not known",
    );
    peer(&client, Value::Null, 0);
}

#[test]
fn ss_kill_before_the_answer_leaves_the_request_open() {
    require_tracer!();
    require_tool!("ss");
    let Pair { mut client, mut server } = requested(Pace::Slow);
    client.kill_by_ss();
    assert_eq!(client.fails("recv 100"), "ECONNABORTED");
    client.ok("close");
    let_go(&mut server);
    let client = client.record(shared());
    says(
        &client,
        "reset-sent ESTABLISHED request-in-flight admin-kill local-admin possible",
        "ended from outside by ss (as ss -K does); our request is unanswered",
    );
}

// ---- closing with unread data ----

#[test]
fn closing_with_a_request_unread_loses_it() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = Pair::new();
        client.ok("send 100");
        client.wait_acknowledged();
        pace.pause();
        server.ok("close");
        let_go(&mut client);
        let (client, server) = both(&client, &server);
        says(
            &server,
            "reset-sent ESTABLISHED request-in-flight close-with-unread-data local-application lost",
            "our process closed with 100 B from client unread; the client's request is unanswered",
        );
        sizes(&server, [0, 0, 0, 0, 100, 100]);
        spoke_last(&server, "remote", false);
        evidence(&server, json!({ "linger": null, "signal": null }));
        says(
            &client,
            "reset-received ESTABLISHED request-in-flight server-abort-before-response peer-application lost",
            "server aborted before a byte of its answer, our request acknowledged by its host; 100 B of ours never read there",
        );
        sizes(&client, [100, 100, 0, 0, 0, 0]);
        spoke_last(&client, "local", false);
        evidence(&client, json!({ "rst": { "acked": 100 } }));
        peer(&client, "close", 100);
    }
}

#[test]
fn a_client_that_aborts_while_our_fin_waits_cuts_the_answer() {
    require_tracer!();
    let (Pair { mut client, mut server }, written) = stuck(Actor::spawn("client"), Actor::spawn("server"));
    // The server has written all of its answer, and closes; most of it is still to be sent.
    server.ok("close");
    client.ok("linger0");
    client.ok("close");
    let (_, server) = both(&client, &server);
    let unsent = number(&server, "/bytes/unsent") as usize;
    assert!((1..written).contains(&unsent), "{server}");
    let arrived = grouped(written - unsent);
    says(
        &server,
        "reset-received FIN_WAIT1 mid-response peer-abort-mid-response peer-application lost",
        &format!(
            "client aborted in the middle of our response, {arrived} of {} B acknowledged; {} B not delivered; {arrived} B of ours never read there",
            grouped(written),
            grouped(unsent)
        ),
    );
    expect(&server, json!({ "fin": { "first": null, "local": false, "remote": false, "since_us": null } }));
}

#[test]
fn closing_with_the_answer_unread_loses_it() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = requested(pace);
        server.ok("send 50");
        server.wait_acknowledged();
        assert_eq!(client.get("recv-all 7"), 7);
        pace.pause();
        client.ok("close");
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-sent ESTABLISHED mid-response close-with-unread-data local-application lost",
            "our process closed with 43 B from server unread",
        );
        sizes(&client, [REQUEST, REQUEST, 0, 0, 50, 43]);
        says(
            &server,
            "reset-received ESTABLISHED mid-response peer-abort-mid-response peer-application lost",
            "client aborted in the middle of our response, 50 of 50 B acknowledged; 43 B of ours never read there",
        );
        peer(&server, "close", 43);
    }
}

#[test]
fn a_goodbye_that_nobody_reads_is_no_loss_at_either_end() {
    require_tracer!();
    let Pair { mut client, mut server } = exchanged(Pace::Slow);
    client.all("send 24; shutdown write");
    client.wait_acknowledged();
    server.ok("close");
    let_go(&mut client);
    let (client, server) = both(&client, &server);
    says(
        &server,
        "reset-sent CLOSE_WAIT after-remote-fin close-with-unread-data local-application none",
        "our process closed with 24 B from client unread after its FIN, as TLS's goodbye is",
    );
    sizes(&server, [RESPONSE, RESPONSE, 0, 0, REQUEST + 24, 24]);
    says(&client, "reset-received FIN_WAIT2 after-local-fin reset-after-local-fin peer-application none", "reset by server after our FIN");
    peer(&client, "close", 24);
}

#[test]
fn a_short_request_that_nobody_read_is_no_goodbye() {
    require_tracer!();
    let Pair { mut client, mut server } = Pair::new();
    client.all("send 20; shutdown write");
    client.wait_acknowledged();
    server.ok("close");
    let_go(&mut client);
    let (client, server) = both(&client, &server);
    expect(&server, json!({ "state": "CLOSE_WAIT", "cause": "close-with-unread-data", "harm": "lost" }));
    says(
        &client,
        "reset-received FIN_WAIT2 after-local-fin reset-after-local-fin peer-application lost",
        "reset by server after our FIN; 20 B of ours never read there",
    );
}

#[test]
fn an_answer_that_nobody_read_is_lost_however_short() {
    require_tracer!();
    for bytes in [RESPONSE, 50] {
        let Pair { mut client, mut server } = requested(Pace::Slow);
        client.begin("poll eof; close");
        server.all(&format!("send {bytes}; shutdown write"));
        client.actor.reply().expect("close");
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-sent CLOSE_WAIT after-remote-fin close-with-unread-data local-application lost",
            &format!("our process closed with {bytes} B from server unread"),
        );
        sizes(&client, [REQUEST, REQUEST, 0, 0, bytes, bytes]);
        expect(&server, json!({ "cause": "reset-after-local-fin", "initiator": "peer-application", "harm": "lost" }));
        peer(&server, "close", bytes);
    }
}

#[test]
fn more_than_a_goodbye_is_lost_after_the_peers_fin_too() {
    require_tracer!();
    let Pair { mut client, mut server } = exchanged(Pace::Quick);
    client.all("send 32; shutdown write");
    client.wait_acknowledged();
    server.ok("close");
    let_go(&mut client);
    let (client, server) = both(&client, &server);
    says(
        &server,
        "reset-sent CLOSE_WAIT after-remote-fin close-with-unread-data local-application lost",
        "our process closed with 32 B from client unread",
    );
    says(
        &client,
        "reset-received FIN_WAIT2 after-local-fin reset-after-local-fin peer-application lost",
        "reset by server after our FIN; 32 B of ours never read there",
    );
    peer(&client, "close", 32);
}

#[test]
fn a_process_killed_with_a_request_unread_is_said_to_have_been_killed() {
    require_tracer!();
    let Pair { mut client, server } = Pair::new();
    client.ok("send 100");
    client.wait_acknowledged();
    server.actor.signal(libc::SIGKILL);
    server.actor.wait_gone();
    let_go(&mut client);
    let (client, server) = both(&client, &server);
    expect(&server, json!({ "end": "reset-sent", "cause": "close-with-unread-data", "initiator": "local-application", "harm": "lost" }));
    evidence(&server, json!({ "signal": "SIGKILL" }));
    expect(&client, json!({ "cause": "server-abort-before-response", "initiator": "peer-application", "harm": "lost" }));
    peer(&client, Value::Null, 100);
}

// ---- after a FIN ----

#[test]
fn data_after_close_is_lost_and_answered_by_the_kernel() {
    require_tracer!();
    for fin_read in [true, false] {
        let Pair { mut client, mut server } = exchanged(Pace::Slow);
        // Longer than TIME_WAIT, so that the orphan stays a full socket.
        client.all("set linger2 100; close");
        server.ok("poll eof");
        if fin_read {
            assert_eq!(server.get("recv 100"), 0);
        }
        server.ok("send 77");
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        let state = text(&client, "/state").to_owned();
        assert!(["FIN_WAIT1", "FIN_WAIT2"].contains(&state.as_str()), "{client}");
        says(
            &client,
            &format!("reset-sent {state} after-local-fin data-after-close local-kernel lost"),
            "server sent 77 B after our process had closed",
        );
        sizes(&client, OF_CLIENT);
        expect(&client, json!({ "closer": { "syscall": "close" } }));
        let unread = if fin_read { "" } else { ", not having read its FIN" };
        says(
            &server,
            "reset-received CLOSE_WAIT after-remote-fin write-after-peer-close peer-kernel lost",
            &format!("our process wrote 77 B after client had closed{unread}; 77 B not delivered"),
        );
        sizes(&server, [RESPONSE + 77, RESPONSE, 77, 0, REQUEST, 0]);
        spoke_last(&server, "local", Value::Null);
    }
}

/// A RST without a full socket has no evidence; only where its reason is inferred must that be said.
#[track_caller]
fn no_socket(stray: &Value) {
    expect(stray, json!({ "peer": null, "bytes": null }));
    assert!(stray["evidence"].is_null() || stray["evidence"]["reason_from"] == "inferred", "{stray}");
}

#[test]
fn data_for_a_connection_in_time_wait_is_lost() {
    require_tracer!();
    for fin_read in [true, false] {
        let Pair { mut client, mut server } = exchanged(Pace::Slow);
        client.ok("shutdown write");
        client.wait_acknowledged();
        client.ok("close");
        server.ok("poll eof");
        if fin_read {
            assert_eq!(server.get("recv 100"), 0);
        }
        // Told by now: what follows is no longer put together with it.
        let first = client.record(shared());
        says(&first, "fin FIN_WAIT2 after-response orderly local-application none", "closed in order, by our process first");
        expect(&first, json!({ "peer": null }));
        server.ok("send 33");
        let_go(&mut server);
        let stray = shared().stray(client.flow);
        says(
            &stray,
            "reset-sent TIME_WAIT closing time-wait local-kernel lost",
            "a segment with 33 B arrived for a connection that had ended (TIME_WAIT)",
        );
        no_socket(&stray);
        let server = server.record(shared());
        let unread = if fin_read { "" } else { ", not having read its FIN" };
        says(
            &server,
            "reset-received CLOSE_WAIT after-remote-fin write-after-peer-close peer-kernel possible",
            &format!("our process wrote 33 B after the client had closed{unread}; 33 B not confirmed"),
        );
        sizes(&server, [RESPONSE + 33, RESPONSE, 33, 0, REQUEST, 0]);
        evidence(&server, json!({ "last_speaker": "local" }));
        expect(&server, json!({ "peer": null }));
    }
}

#[test]
fn a_client_that_leaves_for_good_during_a_late_answer_resets_it() {
    require_tracer!();
    let Pair { mut client, mut server } = requested(Pace::Slow);
    client.all("set linger2 100; close");
    server.ok("poll eof");
    server.ok("send 19");
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    // Its request was unanswered when it closed.
    expect(&client, json!({ "end": "reset-sent", "cause": "data-after-close", "harm": "lost" }));
    says(
        &server,
        "reset-received CLOSE_WAIT after-remote-fin write-after-peer-close peer-kernel lost",
        "our process wrote 19 B after client had closed, not having read its FIN; 19 B not delivered",
    );
}

#[test]
fn tcp_linger2_below_zero_resets_instead_of_waiting() {
    require_tracer!();
    let sentence = "reset instead of waiting for the peer's FIN (TCP_LINGER2 below 0)";
    // close() in FIN_WAIT2.
    let Pair { mut client, mut server } = exchanged(Pace::Slow);
    client.ok("set linger2 -1");
    client.ok("shutdown write");
    client.wait_acknowledged();
    client.ok("close");
    let_go(&mut server);
    let (ours, theirs) = both(&client, &server);
    says(&ours, "reset-sent FIN_WAIT2 after-local-fin linger2-abort local-application none", sentence);
    sizes(&ours, OF_CLIENT);
    says(
        &theirs,
        "reset-received CLOSE_WAIT after-remote-fin reset-while-closing peer-application none",
        "reset by client while the connection was closing",
    );
    sizes(&theirs, OF_SERVER);

    // close() alone: the acknowledgement of its FIN is answered, bare or with the server's FIN.
    for with_fin in [false, true] {
        let Pair { mut client, mut server } = exchanged(Pace::Slow);
        client.ok("set linger2 -1");
        if with_fin {
            server.begin("recv 100; close");
            client.ok("close");
            server.actor.reply().expect("close");
        } else {
            client.ok("close");
            let_go(&mut server);
        }
        let (ours, theirs) = both(&client, &server);
        says(&ours, "reset-sent FIN_WAIT2 after-local-fin linger2-abort local-application none", sentence);
        sizes(&ours, OF_CLIENT);
        let state = if with_fin { "LAST_ACK closing" } else { "CLOSE_WAIT after-remote-fin" };
        expect(&theirs, json!({ "cause": "reset-while-closing", "harm": "none" }));
        assert!(state.starts_with(text(&theirs, "/state")), "{theirs}");
    }
}

#[test]
fn an_abort_after_the_own_fin_is_an_orderly_end_cut_short() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = exchanged(pace);
        client.ok("shutdown write");
        client.wait_acknowledged();
        client.abort();
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        says(&client, "reset-sent FIN_WAIT2 after-local-fin linger-zero local-application none", ABORTED);
        spoke_last(&client, "remote", Value::Null);
        says(
            &server,
            "reset-received CLOSE_WAIT after-remote-fin reset-while-closing peer-application none",
            "reset by client while the connection was closing",
        );
        spoke_last(&server, "local", Value::Null);
        expect(&server, json!({ "fin": { "first": "remote" } }));
        peer(&server, "close", 0);
    }
}

#[test]
fn an_abort_in_answer_to_our_fin_hurts_nobody() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = exchanged(pace);
        server.ok("shutdown write");
        server.wait_acknowledged();
        client.ok("poll eof");
        client.abort();
        let_go(&mut server);
        let (client, server) = both(&client, &server);
        says(&client, "reset-sent CLOSE_WAIT after-remote-fin linger-zero local-application none", ABORTED);
        says(
            &server,
            "reset-received FIN_WAIT2 after-local-fin reset-after-local-fin peer-application none",
            "reset by client after our FIN",
        );
        sizes(&server, OF_SERVER);
        spoke_last(&server, "local", Value::Null);
        peer(&server, "close", 0);
    }
}

#[test]
fn an_abort_after_the_request_and_its_fin_leaves_it_unanswered() {
    require_tracer!();
    let Pair { mut client, mut server } = Pair::new();
    client.all("send 20; shutdown write");
    assert_eq!(server.get("recv-all 20"), 20);
    client.wait_acknowledged();
    client.abort();
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    says(&client, "reset-sent FIN_WAIT2 after-local-fin linger-zero local-application possible", ABORTED);
    spoke_last(&client, "local", false);
    says(
        &server,
        "reset-received CLOSE_WAIT after-remote-fin reset-while-closing peer-application possible",
        "reset by client while the connection was closing",
    );
    spoke_last(&server, "remote", false);
}

#[test]
fn a_server_that_finishes_and_then_aborts_has_read_the_request() {
    require_tracer!();
    for pace in PACES {
        let Pair { mut client, mut server } = requested(pace);
        server.ok("shutdown write");
        client.ok("poll eof");
        server.wait_acknowledged();
        server.abort();
        let_go(&mut client);
        let (client, server) = both(&client, &server);
        says(
            &client,
            "reset-received CLOSE_WAIT after-remote-fin closed-before-answer peer-application possible",
            "server closed without answering our request",
        );
        sizes(&client, [REQUEST, REQUEST, 0, 0, 0, 0]);
        spoke_last(&client, "local", false);
        says(&server, "reset-sent FIN_WAIT2 after-local-fin linger-zero local-application possible", ABORTED);
        spoke_last(&server, "remote", false);
    }
}

#[test]
fn a_client_that_finishes_and_then_aborts_cuts_the_answer() {
    require_tracer!();
    let (Pair { mut client, mut server }, written) = stuck(Actor::spawn("client"), Actor::spawn("server"));
    client.ok("shutdown write");
    server.ok("poll eof");
    client.wait_acknowledged();
    let left = client.get("unread") as usize;
    client.ok("close");
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    says(
        &client,
        "reset-sent FIN_WAIT2 after-local-fin close-with-unread-data local-application lost",
        &format!("our process closed with {} B from server unread", grouped(left)),
    );
    says(
        &server,
        "reset-received CLOSE_WAIT after-remote-fin peer-abort-mid-response peer-application lost",
        &format!(
            "client aborted in the middle of our response, {} of {} B acknowledged; {} B not delivered; {} B of ours never read there",
            grouped(left),
            grouped(written),
            grouped(written - left),
            grouped(left),
        ),
    );
    peer(&server, "close", left);
}

#[test]
fn a_silent_close_tells_the_peer_nothing_until_it_speaks() {
    require_tracer!();
    let Pair { mut client, mut server } = exchanged(Pace::Slow);
    server.all("set repair 1; close");
    let record = server.record(shared());
    says(&record, "error ESTABLISHED after-response silent-close local-application none", "closed without a FIN or RST (TCP_REPAIR)");
    sizes(&record, OF_SERVER);
    expect(&record, json!({ "peer": null, "closer": { "syscall": "close" } }));
    client.ok("send 20");
    let_go(&mut client);
    let stray = shared().stray(server.flow);
    says(
        &stray,
        "reset-sent - unknown no-connection local-kernel lost",
        "a segment with 20 B arrived for a connection that this host does not know",
    );
    no_socket(&stray);
    expect(&stray, json!({ "reason": "NO_SOCKET" }));
    let client = client.record(shared());
    says(
        &client,
        "reset-received ESTABLISHED request-in-flight no-connection-at-peer peer-kernel possible",
        "the server's side knew no such connection when our request arrived: 20 B unanswered; 20 B not confirmed",
    );
    sizes(&client, [2 * REQUEST, REQUEST, REQUEST, 0, RESPONSE, 0]);
    spoke_last(&client, "local", true);
    evidence(&client, json!({ "rst": { "acked": null } }));
    expect(&client, json!({ "peer": null }));
}

#[test]
fn a_request_to_a_connection_forgotten_a_moment_ago_is_answered_by_a_kernel() {
    require_tracer!();
    let Pair { mut client, mut server } = exchanged(Pace::Slow);
    // Both may end within the time in which halves are put together; who sent the RST is the same.
    server.begin("set repair 1; close");
    server.actor.reply().expect("close");
    client.ok("send 20");
    let_go(&mut client);
    let client = client.record(shared());
    expect(&client, json!({ "cause": "no-connection-at-peer", "initiator": "peer-kernel" }));
}

#[test]
fn a_keep_alive_probe_finds_that_the_peer_has_forgotten() {
    require_tracer!();
    let Pair { mut client, mut server } = exchanged(Pace::Quick);
    client.all("set keepidle 1; set keepintvl 1; set keepcnt 3; set keepalive 1");
    server.all("set repair 1; close");
    let_go(&mut client);
    let client = client.record(shared());
    says(
        &client,
        "reset-received ESTABLISHED idle stale-connection peer-kernel none",
        "our keep-alive probe found no connection at the server, idle T",
    );
    evidence(&client, json!({ "probes_out": 1, "rst": { "acked": null } }));
    let stray = shared().stray(server.flow);
    says(&stray, "reset-sent - unknown no-connection local-kernel none", "a segment arrived for a connection that this host does not know");
}

// ---- without a connection ----

#[test]
fn a_closed_port_refuses_and_says_so_at_both_ends() {
    require_tracer!();
    let mut nobody = Actor::spawn("nobody");
    let to = closed_port(&mut nobody);
    let (mut client, fd, flow) = unconnected(Actor::spawn("client"), to);
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ECONNREFUSED");
    client.ok(format!("close {fd}"));
    let record = shared().teardown(flow);
    says(
        &record,
        "reset-received SYN_SENT connecting refused peer-kernel none",
        "refused: nothing listens there, or a firewall answers in its place",
    );
    sizes(&record, [0; 6]);
    expect(&record, json!({ "peer": null }));
    spoke_last(&record, Value::Null, Value::Null);
    let stray = shared().stray(flow.peer());
    says(&stray, "reset-sent - connecting closed-port local-kernel none", &format!("nobody listens on port {} here", to.port()));
    no_socket(&stray);
}

#[test]
fn a_client_that_is_gone_before_accept_is_told_from_one_that_only_connected() {
    require_tracer!();
    // Without a byte, with a request that nobody reads, and with one that is read after the end.
    for (bytes, read) in [(0, false), (20, false), (20, true)] {
        let mut server = Actor::spawn("server");
        let (listener, address) = server.listen("127.0.0.1:0");
        let mut client = Actor::spawn("client");
        let fd = client.connect(address);
        let mut client = Side::new(client, fd, "client");
        if bytes > 0 {
            client.ok(&format!("send {bytes}"));
            client.wait_acknowledged();
        }
        client.abort();
        let fd = server.accept(listener);
        if read {
            assert_eq!(server.get::<u64>(format!("recv {fd} 100")), bytes);
        }
        server.ok(format!("close {fd}"));
        let record = shared().teardown(client.flow.peer());
        let (harm, tail) = match (bytes, read) {
            (0, _) => ("none", ""),
            (_, false) => ("lost", "; 20 B never read here"),
            (_, true) => ("possible", ""),
        };
        says(
            &record,
            &format!("reset-received ESTABLISHED accepting reset-before-accept peer-application {harm}"),
            &format!("the client reset the connection before accept(){tail}"),
        );
        names(&record, &client);
        let client = client.record(shared());
        expect(&client, json!({ "cause": "linger-zero", "peer": { "cookie": record["cookie"] } }));
        peer(&client, Value::Null, if read { 0 } else { bytes });
    }
}

#[test]
fn closing_a_listener_resets_those_who_wait_and_loses_what_they_said() {
    require_tracer!();
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0 2");
    let mut client = Actor::spawn("client");
    let mut queue = Vec::new();
    for number in 0..3 {
        let fd = client.connect(address);
        let bytes = 20 * number;
        if bytes > 0 {
            client.ok(format!("send {fd} {bytes}"));
        }
        queue.push((fd, client.flow(fd), bytes));
    }
    server.ok(format!("close {listener}"));
    for (fd, flow, bytes) in queue {
        assert_eq!(client.fails(format!("recv {fd} 1")), "ECONNRESET");
        client.ok(format!("close {fd}"));
        let ours = shared().teardown(flow.peer());
        let sentence = "reset in the accept queue, because the listening socket was closed";
        let theirs = shared().teardown(flow);
        if bytes == 0 {
            says(&ours, "reset-sent ESTABLISHED accepting listener-closed local-application none", sentence);
            says(
                &theirs,
                "reset-received ESTABLISHED idle connect-probe peer-application none",
                "reset by the server before a byte was sent",
            );
        } else {
            says(
                &ours,
                "reset-sent ESTABLISHED accepting listener-closed local-application lost",
                &format!("{sentence}; {bytes} B never read here; the client's request is unanswered"),
            );
            says(
                &theirs,
                "reset-received ESTABLISHED request-in-flight server-abort-before-response peer-application lost",
                &format!(
                    "the server aborted before a byte of its answer, our request acknowledged by its host; {bytes} B of ours never read there"
                ),
            );
        }
        sizes(&ours, [0, 0, 0, 0, bytes, bytes]);
        // Nobody had accepted it: no process to name, but the call that ended it.
        expect(&theirs, json!({ "peer": { "cookie": ours["cookie"], "tgid": null, "syscall": "close", "unread": bytes } }));
        expect(&ours, json!({ "owner": null, "peer": { "cookie": theirs["cookie"], "tgid": client.pid(), "comm": "client" } }));
    }
}

#[test]
fn an_accept_queue_that_overflows_is_named_where_resets_are_asked_for() {
    require_tracer!();
    let netns = NetNs::new();
    netns.sysctl("ipv4/tcp_abort_on_overflow", "1");
    let mut server = Actor::spawn_in(&netns, "server");
    let (listener, address) = server.listen("127.0.0.1:0 1");
    // A handshake stays under way until its first data; the queue has room for two.
    server.ok(format!("set {listener} defer-accept 10"));
    let mut client = Actor::spawn_in(&netns, "client");
    let late = client.connect(address);
    for _ in 0..2 {
        let fd = client.connect(address);
        client.ok(format!("send {fd} 20"));
    }
    let flow = client.flow(late);
    client.ok(format!("send {late} 20"));
    assert_eq!(client.fails(format!("recv {late} 1")), "ECONNRESET");
    client.ok(format!("close {late}"));
    let stray = shared().wait("a RST of the listener", |r| is_stray(r) && r["netns"] == netns.inode() && flow.peer().matches(r));
    if stray["reason"].is_null() {
        // Before 6.10 nothing tells it from a segment for a connection that is not known.
        expect(&stray, json!({ "end": "reset-sent", "state": "LISTEN", "cause": "no-connection", "harm": "lost" }));
    } else {
        says(
            &stray,
            "reset-sent LISTEN accepting accept-queue-overflow local-kernel lost",
            "accept queue full: the end of the handshake was answered with a RST; 20 B never read here",
        );
        expect(&stray, json!({ "reason": "INVALID_SYN", "peer": null }));
    }
    let record = shared().wait("its client", |r| !is_stray(r) && r["netns"] == netns.inode() && flow.matches(r));
    says(
        &record,
        "reset-received ESTABLISHED request-in-flight no-connection-at-peer peer-kernel possible",
        "the server's side knew no such connection when our request arrived: 20 B unanswered; 20 B not confirmed",
    );
    expect(&record, json!({ "peer": null }));
}

#[test]
fn an_old_half_that_answers_a_new_connection_is_cleared_by_a_reset() {
    require_tracer!();
    let netns = NetNs::new();
    let mut server = Actor::spawn_in(&netns, "server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn_in(&netns, "client");
    // The client forgets the connection, and connects again from the same port.
    let mut lives = Vec::new();
    let mut local: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    for _ in 0..2 {
        let fd = client.socket(address);
        client.ok(format!("bind {fd} {local}"));
        local = client.get(format!("local {fd}"));
        client.ok(format!("connect {fd} {address}"));
        let cookie: u64 = client.get(format!("cookie {fd}"));
        if lives.is_empty() {
            client.ok(format!("all set {fd} repair 1 ; close {fd}"));
        }
        let accepted = server.accept(listener);
        lives.push((fd, accepted, cookie, server.get::<u64>(format!("cookie {accepted}"))));
    }
    let [old, new] = lives[..] else { unreachable!() };
    server.ok(format!("all poll {} error ; close {}", old.1, old.1));
    client.ok(format!("all linger0 {} ; close {}", new.0, new.0));
    server.ok(format!("all poll {} error ; close {}", new.1, new.1));
    let of = |cookie: u64| shared().wait("a life", |r| r["record"] == "teardown" && r["cookie"] == cookie && r["netns"] == netns.inode());
    let flow = Flow::new(local, address);
    let stray = shared().wait("a RST for the challenge", |r| is_stray(r) && r["state"] == "SYN_SENT" && flow.matches(r));
    expect(
        &stray,
        json!({ "state": "SYN_SENT", "phase": "connecting", "cause": "protocol-error", "initiator": "local-kernel", "harm": "unknown" }),
    );
    // Before 6.10 the kernel does not say.
    let reason = stray["reason"].as_str().unwrap_or("no reason");
    assert!(matches!(reason, "TCP_INVALID_ACK_SEQUENCE" | "no reason"), "{stray}");
    assert_eq!(text(&stray, "/verdict"), format!("an unacceptable segment was answered with a RST ({reason})"));
    expect(&stray, json!({ "netns": netns.inode() }));
    expect(&of(old.2), json!({ "end": "error", "cause": "silent-close" }));
    // The old half of the server belongs to the old life, if to any.
    let forgotten = of(old.3);
    expect(&forgotten, json!({ "end": "reset-received", "state": "ESTABLISHED" }));
    assert!(forgotten["peer"].is_null() || forgotten["peer"]["cookie"] == old.2, "{forgotten}");
    expect(&of(new.2), json!({ "end": "reset-sent", "peer": { "cookie": new.3 } }));
    expect(&of(new.3), json!({ "end": "reset-received", "peer": { "cookie": new.2 } }));
}

// ---- timers and ICMP ----

/// A connection after one exchange, in a namespace where nothing of it arrives any more.
fn cut() -> (Pair, NetNs) {
    let netns = NetNs::new();
    let mut pair = Pair::inside(&netns);
    exchange(&mut pair, Pace::Quick);
    cut_now(&pair, &netns);
    (pair, netns)
}

fn cut_now(pair: &Pair, netns: &NetNs) {
    let port = pair.server.flow.local.port();
    netns.on_input(&format!("tcp sport {port} drop"));
    netns.on_input(&format!("tcp dport {port} drop"));
}

#[test]
fn keep_alive_without_an_answer_loses_nothing() {
    require_tracer!();
    require_tool!("nft");
    let (Pair { client: _client, mut server }, _netns) = cut();
    server.all("set keepidle 1; set keepintvl 1; set keepcnt 2; set keepalive 1; poll error; close");
    let record = server.record(shared());
    says(&record, "reset-sent ESTABLISHED idle keepalive-timeout local-kernel none", "the client answered none of 2 keep-alive probes");
    sizes(&record, OF_SERVER);
    evidence(&record, json!({ "probes_out": 2, "last_speaker": "local" }));
    expect(&record, json!({ "peer": null }));
}

#[test]
fn a_user_timeout_names_the_option() {
    require_tracer!();
    require_tool!("nft");
    let (Pair { client: _client, mut server }, _netns) = cut();
    server.all("set user-timeout 600; send 44; poll error; close");
    let record = server.record(shared());
    says(
        &record,
        "timeout ESTABLISHED mid-response user-timeout local-kernel possible",
        "the client acknowledged nothing within TCP_USER_TIMEOUT (T); 44 B not confirmed",
    );
    assert!(text(&record, "/verdict").contains("(600 ms)"), "{record}");
    sizes(&record, [RESPONSE + 44, RESPONSE, 44, 0, REQUEST, 0]);
    evidence(&record, json!({ "user_timeout": 600, "last_speaker": "local" }));
    expect(&record, json!({ "peer": null }));
}

#[test]
fn retransmissions_that_nobody_answers_time_out() {
    require_tracer!();
    require_tool!("nft");
    let (Pair { mut client, server: _server }, netns) = cut();
    netns.sysctl("ipv4/tcp_retries2", "2");
    client.all("send 44; poll error; close");
    let record = client.record(shared());
    let times = in_range(&record, "/retransmits", 2..);
    // Those of its timer; a probe for a lost tail goes before them.
    let said = (2..=times).find(|n| text(&record, "/verdict").contains(&format!(" {n} times;"))).unwrap_or(times);
    says(
        &record,
        "timeout ESTABLISHED request-in-flight retransmit-timeout local-kernel possible",
        &format!("the server acknowledged nothing, though we retransmitted {said} times; 44 B not confirmed; our request is unanswered"),
    );
    sizes(&record, [REQUEST + 44, REQUEST, 44, 0, RESPONSE, 0]);
    spoke_last(&record, "local", true);
}

#[test]
fn an_icmp_error_among_the_retransmissions_is_told() {
    require_tracer!();
    require_tool!("nft");
    let netns = NetNs::new();
    netns.sysctl("ipv4/tcp_retries2", "2");
    let mut pair = Pair::inside(&netns);
    exchange(&mut pair, Pace::Quick);
    let port = pair.server.flow.local.port();
    netns.on_input(&format!("tcp dport {port} reject with icmp type host-unreachable"));
    let Pair { mut client, server: _server } = pair;
    client.all("send 44; poll error; close");
    let record = client.record(shared());
    expect(&record, json!({ "cause": "retransmit-timeout", "initiator": "local-kernel", "harm": "possible" }));
    evidence(&record, json!({ "soft_errno": "EHOSTUNREACH" }));
    assert!(text(&record, "/verdict").contains("(ICMP: EHOSTUNREACH)"), "{record}");
}

#[test]
fn bytes_that_arrived_are_not_called_lost_because_their_acknowledgement_is_missing() {
    require_tracer!();
    require_tool!("nft");
    let netns = NetNs::new();
    let mut pair = Pair::inside(&netns);
    exchange(&mut pair, Pace::Quick);
    // Only what the client sends is lost: it reads the answer, and the server never hears of it.
    netns.on_input(&format!("tcp dport {} drop", pair.server.flow.local.port()));
    let Pair { mut client, mut server } = pair;
    server.ok("set user-timeout 600");
    server.ok("send 44");
    assert_eq!(client.get("recv-all 44"), 44);
    let_go(&mut server);
    let record = server.record(shared());
    says(
        &record,
        "timeout ESTABLISHED mid-response user-timeout local-kernel possible",
        "the client acknowledged nothing within TCP_USER_TIMEOUT (T); 44 B not confirmed",
    );
}

#[test]
fn a_window_that_stays_closed_times_out_with_nothing_under_way() {
    require_tracer!();
    require_tool!("nft");
    let netns = NetNs::new();
    netns.sysctl("ipv4/tcp_retries2", "2");
    let (mut pair, written) = stuck(Actor::spawn_in(&netns, "client"), Actor::spawn_in(&netns, "server"));
    pair.server.netns = netns.inode();
    cut_now(&pair, &netns);
    let Pair { client: _client, mut server } = pair;
    let_go(&mut server);
    let record = server.record(shared());
    let unsent = number(&record, "/bytes/unsent") as usize;
    sizes(&record, [written - unsent, written - unsent, 0, unsent, REQUEST, 0]);
    says(
        &record,
        "timeout ESTABLISHED mid-response zero-window-timeout local-kernel lost",
        &format!("the client's window was closed, and its host stopped answering our probes; {} B not delivered", grouped(unsent)),
    );
    in_range(&record, "/evidence/probes_out", 1..);
}

#[test]
fn an_orphan_that_cannot_deliver_is_told_although_nobody_sees_it() {
    require_tracer!();
    require_tool!("nft");
    let (Pair { client: _client, mut server }, _netns) = cut();
    server.all("set user-timeout 600; send 44; close");
    let record = server.record(shared());
    says(
        &record,
        "timeout FIN_WAIT1 after-local-fin undelivered-after-close local-kernel possible",
        "our process had closed, and the client acknowledged no more; 44 B not confirmed",
    );
    sizes(&record, [RESPONSE + 44, RESPONSE, 44, 0, REQUEST, 0]);
    expect(&record, json!({ "seen": "never" }));
}

/// A client in a namespace, whose connection attempts meet a rule.
fn attempt(netns: &NetNs, rule: &str) -> (Actor, Fd, Flow) {
    let to = SocketAddr::from(([127, 0, 0, 1], 4711));
    netns.on_input(&format!("tcp dport 4711 {rule}"));
    unconnected(Actor::spawn_in(netns, "client"), to)
}

fn record_in(netns: &NetNs, flow: Flow) -> Value {
    let record = shared().wait("an attempt", |r| r["record"] == "teardown" && r["netns"] == netns.inode() && flow.matches(r));
    sizes(&record, [0; 6]);
    spoke_last(&record, Value::Null, Value::Null);
    expect(&record, json!({ "peer": null }));
    record
}

#[test]
fn connects_that_fail_have_each_their_own_cause() {
    require_tracer!();
    require_tool!("nft");
    let table = [
        ("drop", "ETIMEDOUT", "timeout SYN_SENT connecting connect-timeout local-kernel none", "our SYN had no answer"),
        (
            "reject with icmp type port-unreachable",
            "ECONNREFUSED",
            "error SYN_SENT connecting refused-by-icmp unknown none",
            "refused by ICMP and not by a RST, as a firewall's reject does",
        ),
        (
            "reject with icmp type host-unreachable",
            "EHOSTUNREACH",
            "error SYN_SENT connecting unreachable unknown none",
            "unreachable: EHOSTUNREACH",
        ),
        (
            "reject with icmp type net-unreachable",
            "ENETUNREACH",
            "error SYN_SENT connecting unreachable unknown none",
            "unreachable: ENETUNREACH",
        ),
        (
            "reject with tcp reset",
            "ECONNREFUSED",
            "reset-received SYN_SENT connecting refused peer-kernel none",
            "refused: nothing listens there, or a firewall answers in its place",
        ),
    ];
    for (rule, errno, line, sentence) in table {
        let netns = NetNs::new();
        let (mut client, fd, flow) = attempt(&netns, rule);
        client.ok(format!("set {fd} syncnt 1"));
        assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), errno, "{rule}");
        client.ok(format!("close {fd}"));
        says(&record_in(&netns, flow), line, sentence);
    }
}

#[test]
fn a_connect_given_up_is_told_from_one_that_was_killed() {
    require_tracer!();
    require_tool!("nft");
    for killed in [false, true] {
        let netns = NetNs::new();
        let (mut client, fd, flow) = attempt(&netns, "drop");
        client.ok(format!("set {fd} nonblock 1"));
        assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), "EINPROGRESS");
        if killed {
            netns.command("ss", &["-tK", "state", "syn-sent"]);
            assert_eq!(client.ok(format!("so-error {fd}")), "ECONNABORTED");
        }
        client.ok(format!("close {fd}"));
        let record = record_in(&netns, flow);
        if killed {
            says(&record, "error SYN_SENT connecting admin-kill local-admin none", "ended from outside by ss (as ss -K does)");
        } else {
            says(
                &record,
                "error SYN_SENT connecting gave-up-connecting local-application none",
                "our process gave up connecting after T: no answer to our SYN",
            );
        }
    }
}

// ---- FINs ----

/// How a connection ends by FINs, for the tests with and without -a.
struct Ending {
    name: &'static str,
    make: fn() -> Pair,
    says: Says,
}

/// What the two halves of an ending say.
enum Says {
    /// In order, by the client first or by the server, in this phase.
    ByClient(&'static str),
    ByServer(&'static str),
    /// The client's line and sentence, and the server's; told even without -a where the cause is not orderly.
    Each([(&'static str, &'static str); 2]),
}

impl Says {
    /// Line and sentence of the client and the server.
    fn halves(&self) -> [(String, &'static str); 2] {
        let first = |phase| (format!("fin FIN_WAIT2 {phase} orderly local-application none"), BY_US);
        let second = |phase, sentence| (format!("fin LAST_ACK {phase} orderly peer-application none"), sentence);
        match self {
            Self::ByClient(phase) => [first(phase), second(phase, "closed in order, by client first")],
            Self::ByServer(phase) => [second(phase, "closed in order, by server first"), first(phase)],
            Self::Each(halves) => halves.map(|(line, sentence)| (line.to_owned(), sentence)),
        }
    }
}

const NO_ANSWER: (&str, &str) =
    ("fin LAST_ACK request-in-flight closed-before-answer peer-application possible", "server closed without answering our request");
const DIED: (&str, &str) = (
    "fin FIN_WAIT2 request-in-flight closed-before-answer local-application possible",
    "our process died without answering client's request",
);
const GAVE_UP: Says = Says::Each([
    (
        "fin FIN_WAIT2 request-in-flight gave-up-waiting local-application possible",
        "our process gave up after waiting T for server's answer",
    ),
    ("fin LAST_ACK request-in-flight client-gave-up peer-application possible", "client gave up after waiting T for our answer"),
]);

/// The server closes as soon as the client has.
fn follow(mut pair: Pair, last_words: &str, then_reads: &str) -> Pair {
    pair.server.begin(then_reads);
    pair.client.all(last_words);
    pair.server.actor.reply().expect("the server closes");
    pair
}

/// The server has read the request, and leaves without an answer.
fn server_leaves(last_words: &str) -> Pair {
    let mut pair = requested(Pace::Quick);
    pair.client.begin("recv 100; close");
    pair.server.all(last_words);
    pair.client.actor.reply().expect("close");
    pair
}

/// The server's process is killed.
fn server_dies(mut pair: Pair) -> Pair {
    pair.client.begin("recv 100; close");
    pair.server.actor.signal(libc::SIGKILL);
    pair.client.actor.reply().expect("close");
    pair
}

const ENDINGS: &[Ending] = &[
    Ending {
        name: "an exchange, then the client closes",
        make: || follow(exchanged(Pace::Quick), "close", "recv 100; close"),
        says: Says::ByClient("after-response"),
    },
    Ending {
        name: "an exchange, then the client closes; with pauses",
        make: || follow(exchanged(Pace::Slow), "close", "recv 100; close"),
        says: Says::ByClient("after-response"),
    },
    Ending {
        name: "an exchange, then the server closes",
        make: || {
            let mut pair = exchanged(Pace::Quick);
            pair.client.begin("recv 100; close");
            pair.server.ok("close");
            pair.client.actor.reply().expect("close");
            pair
        },
        says: Says::ByServer("after-response"),
    },
    Ending {
        name: "the server closes behind its answer",
        make: || {
            let mut pair = requested(Pace::Quick);
            pair.client.begin("recv-all 19; recv 100; close");
            pair.server.all("send 19; close");
            pair.client.actor.reply().expect("close");
            pair
        },
        says: Says::ByServer("after-response"),
    },
    Ending {
        name: "an idle connection is closed by the client",
        make: || {
            let pair = exchanged(Pace::Quick);
            thread::sleep(Duration::from_millis(1_050));
            follow(pair, "close", "recv 100; close")
        },
        says: Says::ByClient("idle"),
    },
    Ending {
        name: "not a byte, then the client closes",
        make: || follow(Pair::new(), "close", "recv 100; close"),
        says: Says::ByClient("idle"),
    },
    Ending {
        name: "an upload that waits for no answer",
        make: || follow(Pair::new(), "send 20; close", "recv-all 20; recv 100; close"),
        says: Says::ByClient("closing"),
    },
    Ending {
        name: "an exchange, then a goodbye",
        make: || follow(exchanged(Pace::Slow), "send 24; close", "recv-all 24; recv 100; close"),
        says: Says::ByClient("closing"),
    },
    Ending {
        name: "a request and a half-close, answered at once",
        make: || follow(Pair::new(), "send 20; shutdown write; recv-all 19; recv 100; close", "recv-all 20; recv 100; send 19; close"),
        says: Says::ByClient("closing"),
    },
    Ending {
        name: "a request and a later half-close, answered after a while",
        make: || {
            follow(
                Pair::new(),
                "send 20; sleep 30; shutdown write; recv-all 19; recv 100; close",
                "recv-all 20; recv 100; sleep 30; send 19; close",
            )
        },
        says: Says::ByClient("closing"),
    },
    Ending {
        name: "a client that shut down does not read the answer",
        make: || {
            let mut pair = requested(Pace::Quick);
            pair.client.begin("shutdown write; poll eof; close");
            pair.server.all("recv 100; send 19; close");
            pair.client.actor.reply().expect("close");
            pair
        },
        says: Says::Each([
            (
                "fin FIN_WAIT2 closing orderly-unread local-application lost",
                "closed in order, but not everything was read; 19 B never read here",
            ),
            ("fin LAST_ACK closing orderly peer-application lost", "closed in order, by client first; 19 B of ours never read there"),
        ]),
    },
    Ending {
        name: "the client waits, and closes",
        make: || follow(requested(Pace::Quick), "sleep 40; close", "recv 100; close"),
        says: GAVE_UP,
    },
    Ending {
        name: "the client waits for its second answer, and closes",
        make: || {
            let mut pair = exchanged(Pace::Slow);
            pair.client.send_to(&mut pair.server, REQUEST);
            follow(pair, "sleep 40; close", "recv 100; close")
        },
        says: GAVE_UP,
    },
    Ending {
        // Under a second of waiting its close may answer a goodbye that it was slow to read.
        name: "the server reads the request, waits a little, and closes",
        make: || server_leaves("sleep 40; close"),
        says: Says::Each([NO_ANSWER, ("fin FIN_WAIT2 closing orderly local-application none", BY_US)]),
    },
    Ending {
        name: "the server reads the request, waits long, and closes",
        make: || server_leaves("sleep 1050; close"),
        says: Says::Each([
            NO_ANSWER,
            (
                "fin FIN_WAIT2 request-in-flight closed-before-answer local-application possible",
                "our process closed without answering client's request",
            ),
        ]),
    },
    Ending {
        name: "the server is killed over the request",
        make: || server_dies(requested(Pace::Quick)),
        says: Says::Each([NO_ANSWER, DIED]),
    },
    Ending {
        name: "the server is killed over the second request",
        make: || {
            let mut pair = exchanged(Pace::Slow);
            pair.client.send_to(&mut pair.server, REQUEST);
            // Until its acknowledgement the FIN could be one that crossed it.
            pair.client.wait_acknowledged();
            server_dies(pair)
        },
        says: Says::Each([NO_ANSWER, DIED]),
    },
    Ending {
        name: "the server is killed after its answer",
        make: || server_dies(exchanged(Pace::Slow)),
        says: Says::ByServer("after-response"),
    },
];

#[test]
fn every_ending_by_fins_is_what_its_halves_say() {
    require_tracer!();
    let mut wrong = Vec::new();
    for ending in ENDINGS {
        let pair = (ending.make)();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (client, server) = both(&pair.client, &pair.server);
            for (record, (line, sentence)) in [client, server].iter().zip(ending.says.halves()) {
                says(record, &line, sentence);
            }
        }));
        wrong.extend(outcome.err().map(|_| ending.name));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn without_a_only_the_ends_that_left_a_request_open_are_told() {
    require_root!();
    let tracer = Tracer::start(&["--join-timeout", "3s"]);
    let pairs: Vec<_> = ENDINGS.iter().map(|ending| (ending, (ending.make)())).collect();
    let run = tracer.stop();
    let mut orderly = 0;
    for (ending, pair) in &pairs {
        for (side, (line, sentence)) in [&pair.client, &pair.server].into_iter().zip(ending.says.halves()) {
            let told = run.teardowns().find(|r| r["cookie"] == side.cookie);
            let is_orderly = line.contains(" orderly");
            orderly += i64::from(is_orderly);
            match told {
                Some(record) if is_orderly => panic!("{}, at the {}: {record}", ending.name, side.actor.name()),
                Some(record) => {
                    says(record, &line, sentence);
                    names(record, if std::ptr::eq(side, &pair.client) { &pair.server } else { &pair.client });
                }
                None => assert!(is_orderly, "{} is not told at the {}", ending.name, side.actor.name()),
            }
        }
    }
    // Of the whole host, in which other tests are at work.
    in_range(&run.summary, "/orderly", orderly..);
}

#[test]
fn last_speaker_reuse_and_signal_of_ends_by_fin() {
    require_tracer!();
    let of = |name: &str| {
        let ending = ENDINGS.iter().find(|ending| ending.name == name).expect("an ending");
        let pair = (ending.make)();
        both(&pair.client, &pair.server)
    };
    let (client, server) = of("an exchange, then the client closes");
    spoke_last(&client, "remote", Value::Null);
    spoke_last(&server, "local", Value::Null);
    sizes(&client, OF_CLIENT);
    sizes(&server, OF_SERVER);
    peer(&client, "close", 0);
    peer(&server, "close", 0);
    let (client, server) = of("a request and a half-close, answered at once");
    spoke_last(&client, "remote", Value::Null);
    spoke_last(&server, "local", Value::Null);
    // The answer may be unread when the server's FIN comes behind it.
    expect(&client, json!({ "bytes": { "sent": REQUEST, "acked": REQUEST, "received": RESPONSE } }));
    sizes(&server, OF_SERVER);
    let (client, server) = of("the client waits, and closes");
    spoke_last(&client, "local", false);
    spoke_last(&server, "remote", false);
    let (client, server) = of("the client waits for its second answer, and closes");
    spoke_last(&client, "local", true);
    spoke_last(&server, "remote", true);
    let (client, server) = of("the server is killed over the request");
    spoke_last(&client, "local", false);
    spoke_last(&server, "remote", false);
    evidence(&server, json!({ "signal": "SIGKILL" }));
    evidence(&client, json!({ "signal": null }));
    peer(&client, Value::Null, 0);
    let (client, server) = of("the server is killed over the second request");
    spoke_last(&client, "local", true);
    spoke_last(&server, "remote", true);
    evidence(&server, json!({ "signal": "SIGKILL" }));
}

#[test]
fn a_server_that_closes_at_once_without_an_answer_is_told_by_the_client() {
    require_tracer!();
    let Pair { mut client, mut server } = Pair::new();
    client.begin("send 20; recv 100; close");
    server.all("recv-all 20; close");
    client.actor.reply().expect("close");
    let (client, server) = both(&client, &server);
    says(
        &client,
        "fin LAST_ACK request-in-flight closed-before-answer peer-application possible",
        "server closed without answering our request",
    );
    // Its last bytes may have been a goodbye.
    says(&server, "fin FIN_WAIT2 closing orderly local-application none", BY_US);
}

// ---- finding the other half ----

#[test]
fn two_namespaces_joined_by_a_cable_hold_one_connection() {
    require_tracer!();
    let (one, other) = (NetNs::new(), NetNs::new());
    one.command("ip", &["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other.name()]);
    for (netns, address) in [(&one, "10.9.0.1/24"), (&other, "10.9.0.2/24")] {
        netns.command("ip", &["address", "add", address, "dev", "cable"]);
        netns.command("ip", &["link", "set", "cable", "up"]);
    }
    let mut pair = Pair::between(Actor::spawn_in(&one, "client"), Actor::spawn_in(&other, "server"), "10.9.0.2:0");
    (pair.client.netns, pair.server.netns) = (one.inode(), other.inode());
    exchange(&mut pair, Pace::Slow);
    let Pair { mut client, mut server } = pair;
    client.abort();
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    says(&client, "reset-sent ESTABLISHED after-response linger-zero local-application none", ABORTED);
    says(&server, "reset-received ESTABLISHED after-response peer-abort-after-response peer-application none", ABORTED_AFTER_ALL);
}

#[test]
fn halves_whose_addresses_were_translated_are_one_connection() {
    require_tracer!();
    require_tool!("nft");
    let netns = NetNs::new();
    let mut server = Actor::spawn_in(&netns, "server");
    let (listener, address) = server.listen("127.0.0.1:0");
    netns.command("nft", &["add", "table", "ip", "n"]);
    netns.command("nft", &["add", "chain", "ip", "n", "out", "{ type nat hook output priority -100; }"]);
    let rule = format!("add rule ip n out ip daddr 127.0.0.9 tcp dport 80 dnat to {address}");
    netns.command("nft", &rule.split(' ').collect::<Vec<_>>());
    let mut client = Actor::spawn_in(&netns, "client");
    let fd = client.connect("127.0.0.9:80".parse().expect("an address"));
    let mut client = Side::new(client, fd, "client");
    let fd = server.accept(listener);
    let mut server = Side::new(server, fd, "server");
    (client.netns, server.netns) = (netns.inode(), netns.inode());
    client.send_to(&mut server, REQUEST);
    client.abort();
    let_go(&mut server);
    let (client, server) = both(&client, &server);
    expect(&client, json!({ "remote": { "addr": "127.0.0.9", "port": 80 }, "cause": "linger-zero" }));
    expect(&server, json!({ "local": { "addr": "127.0.0.1", "port": address.port() }, "cause": "peer-abort-before-response" }));
}

#[test]
fn each_life_of_a_port_has_its_own_other_half() {
    require_tracer!();
    let netns = NetNs::new();
    let mut server = Actor::spawn_in(&netns, "server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn_in(&netns, "client");
    let mut local: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let mut cookies = Vec::new();
    // The same bytes in each life, all within the time in which halves are looked for.
    for _ in 0..5 {
        let fd = client.socket(address);
        client.ok(format!("bind {fd} {local}"));
        local = client.get(format!("local {fd}"));
        client.ok(format!("connect {fd} {address}"));
        let accepted = server.accept(listener);
        cookies.push((client.get::<u64>(format!("cookie {fd}")), server.get::<u64>(format!("cookie {accepted}"))));
        client.ok(format!("all send {fd} 20 ; linger0 {fd} ; close {fd}"));
        server.ok(format!("all poll {accepted} error ; close {accepted}"));
    }
    for (client, server) in cookies {
        for (of, other) in [(client, server), (server, client)] {
            let record = shared().wait("a life", |r| r["cookie"] == of && r["netns"] == netns.inode());
            expect(&record, json!({ "peer": { "cookie": other } }));
        }
    }
}

#[test]
fn a_proxy_is_two_connections() {
    require_tracer!();
    for abort in [false, true] {
        let mut server = Actor::spawn("server");
        let (listener, address) = server.listen("127.0.0.1:0");
        let mut proxy = Actor::spawn("proxy");
        let (entrance, to) = proxy.listen("127.0.0.1:0");
        let mut client = Actor::spawn("client");
        let fd = client.connect(to);
        let mut client = Side::new(client, fd, "client");
        let front = proxy.accept(entrance);
        let back = proxy.connect(address);
        let fd = server.accept(listener);
        let mut server = Side::new(server, fd, "server");
        let of_proxy = [front, back].map(|fd| proxy.get::<u64>(format!("cookie {fd}")));
        // The same bytes in both connections, and both end within a moment.
        client.ok("send 20");
        proxy.ok(format!("all recv-all {front} 20 ; send {back} 20"));
        server.all("recv-all 20; send 19");
        proxy.ok(format!("all recv-all {back} 19 ; send {front} 19"));
        assert_eq!(client.get("recv-all 19"), 19);
        if abort {
            proxy.begin(format!("all poll {front} error ; linger0 {back} ; close {back} ; close {front}"));
            server.begin("poll error; close");
            client.abort();
        } else {
            proxy.begin(format!("all recv {front} 1 ; close {back} ; close {front}"));
            server.begin("recv 1; close");
            client.ok("close");
        }
        proxy.reply().expect("close");
        server.actor.reply().expect("close");
        let of = |cookie: u64| shared().wait("an end", |r| r["record"] == "teardown" && r["cookie"] == cookie);
        for (one, other) in [(client.cookie, of_proxy[0]), (of_proxy[1], server.cookie)] {
            expect(&of(one), json!({ "peer": { "cookie": other } }));
            expect(&of(other), json!({ "peer": { "cookie": one } }));
        }
    }
}

// ---- options ----

/// One connection that loses bytes, one that is reset without harm: four records.
fn one_loss_and_one_abort(netns: &NetNs) -> [Pair; 2] {
    let mut lost = Pair::inside(netns);
    lost.client.ok("send 100");
    lost.client.wait_acknowledged();
    lost.server.ok("close");
    let_go(&mut lost.client);
    let mut harmless = Pair::inside(netns);
    exchange(&mut harmless, Pace::Slow);
    harmless.client.abort();
    let_go(&mut harmless.server);
    [lost, harmless]
}

#[test]
fn harm_and_cause_select_records() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let start = |args: &[&str]| Tracer::start(&[&["--netns", &inode], args].concat());
    let tracers = [
        start(&["--harm", "lost"]),
        start(&["--harm", "none"]),
        start(&["--harm", "none,lost"]),
        start(&["--cause", "linger-zero"]),
        start(&["--cause", "linger-zero,close-with-unread-data"]),
        start(&["--cause", "linger-zero", "--harm", "lost"]),
    ];
    let [lost, harmless] = one_loss_and_one_abort(&netns);
    let told = tracers.map(|tracer| {
        let run = tracer.stop();
        let mut cookies: Vec<_> = run.teardowns().filter_map(|r| r["cookie"].as_u64()).collect();
        cookies.sort_unstable();
        (cookies, number(&run.summary, "/filtered"))
    });
    let expected = |sides: &[&Side]| {
        let mut cookies: Vec<_> = sides.iter().map(|side| side.cookie).collect();
        cookies.sort_unstable();
        cookies
    };
    let all = [&lost.client, &lost.server, &harmless.client, &harmless.server];
    assert_eq!(told[0], (expected(&all[..2]), told[0].1), "--harm lost");
    assert_eq!(told[1].0, expected(&all[2..]), "--harm none");
    assert_eq!(told[2].0, expected(&all), "--harm none,lost");
    assert_eq!(told[3].0, expected(&all[2..3]), "--cause linger-zero");
    assert_eq!(told[4].0, expected(&all[1..3]), "--cause linger-zero,close-with-unread-data");
    assert_eq!(told[5].0, expected(&[]), "both must hold");
    assert!(told.iter().all(|(cookies, filtered)| *filtered >= 4 - cookies.len() as i64), "{told:?}");
}

#[test]
fn the_exit_status_says_whether_a_record_met_the_condition() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let start = |args: &[&str]| Tracer::start(&[&["--netns", &inode], args].concat());
    let table: &[(&[&str], i32)] = &[
        (&["--fail-on", "harm=lost"], 4),
        (&["--fail-on", "harm=possible,lost"], 4),
        (&["--fail-on", "cause=linger-zero"], 4),
        (&["--fail-on", "cause=keepalive-race"], 0),
        (&["--fail-on", "harm=possible,unknown"], 0),
        (&["--fail-on", "cause=keepalive-race", "--fail-on", "harm=lost"], 4),
        // Only what is shown counts.
        (&["--fail-on", "harm=lost", "--harm", "none"], 0),
        (&[], 0),
    ];
    let tracers: Vec<_> = table.iter().map(|(args, status)| (args, status, start(args))).collect();
    one_loss_and_one_abort(&netns);
    for (args, status, tracer) in tracers {
        assert_eq!(tracer.stop().status.code(), Some(*status), "{args:?}");
    }
    for bad in ["lost", "harm=much", "cause=", "phase=idle"] {
        let output = run(&["--fail-on", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}: {}", stderr(&output));
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().expect("rsttrace")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file that is gone with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rsttrace-verdicts-{}-{name}", std::process::id()));
        fs::write(&path, content).expect("a file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_timer_of_ones_own_is_named_by_an_idle_time() {
    require_root!();
    let netns = NetNs::new();
    let file = Temporary::new("timers", "# ours\n\n1s  the pool of our application # by default\n");
    let tracer = Tracer::start(&["-a", "--netns", &netns.inode().to_string(), "--timers", file.path()]);
    let mut pair = Pair::inside(&netns);
    exchange(&mut pair, Pace::Quick);
    thread::sleep(Duration::from_millis(1_010));
    let Pair { mut client, mut server } = pair;
    client.abort();
    let_go(&mut server);
    let timer = json!({ "seconds": 1, "name": "the pool of our application" });
    let (ours, theirs) = both_of(&tracer, &client, &server);
    evidence(&ours, json!({ "timer": timer }));
    evidence(&theirs, json!({ "timer": timer }));
    // The first FIN is the timer's work.
    let mut pair = Pair::inside(&netns);
    exchange(&mut pair, Pace::Quick);
    thread::sleep(Duration::from_millis(1_010));
    let Pair { client, server } = follow(pair, "close", "recv 1; sleep 700; close");
    let ours = client.record(&tracer);
    let theirs = server.record(&tracer);
    evidence(&ours, json!({ "timer": timer }));
    evidence(&theirs, json!({ "timer": timer }));
    // No time to idle, no timer.
    let mut pair = Pair::inside(&netns);
    exchange(&mut pair, Pace::Quick);
    let Pair { mut client, mut server } = pair;
    client.abort();
    let_go(&mut server);
    evidence(&client.record(&tracer), json!({ "timer": null }));
}

#[test]
fn a_file_of_timers_that_cannot_be_read_is_refused_with_its_place() {
    for (name, content, place) in [
        ("word", "60 a\n  soon b\n", "line 2, column 3"),
        ("nameless", "60 a\n70\n", "line 2, column 3"),
        ("zero", "0 never\n", "line 1, column 1"),
        ("control", "1 a\u{1b}[2J\n", "line 1, column 3"),
    ] {
        let file = Temporary::new(name, content);
        let output = run(&["--timers", file.path()]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(place) && said.contains(file.path()) && !said.contains('\u{1b}'), "{said}");
        assert!(output.stdout.is_empty());
    }
    let output = run(&["--timers", "/nonexistent/timers"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nonexistent/timers"), "{}", stderr(&output));
}

#[test]
fn explain_lists_and_tells_and_suggests() {
    let list = run(&["explain"]);
    let listed = String::from_utf8(list.stdout).expect("UTF-8");
    assert_eq!(list.status.code(), Some(0));
    for cause in ["admin-kill", "keepalive-race", "orderly", "unknown"] {
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(cause));
        assert!(line.is_some_and(|line| line.split_whitespace().count() > 3), "{cause} in:\n{listed}");
    }
    let page = run(&["explain", "keepalive-race"]);
    assert_eq!(page.status.code(), Some(0));
    let page = String::from_utf8(page.stdout).expect("UTF-8");
    assert!(page.starts_with("# keepalive-race\n") && page.contains("## What to change"), "{page}");
    for (slip, meant) in [("keepalive-rase", "keepalive-race"), ("lingerzero", "linger-zero"), ("closed-prot", "closed-port")] {
        let output = run(&["explain", slip]);
        assert_eq!(output.status.code(), Some(2), "{slip}");
        assert!(stderr(&output).contains(&format!("did you mean {meant}?")), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    let output = run(&["explain", "\u{1b}[2Jxyzzy"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!stderr(&output).contains("did you mean") && !stderr(&output).contains('\u{1b}'), "{}", stderr(&output));
}
