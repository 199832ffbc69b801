//! Connections that no segment ended: timers, and what ICMP says.

use rsttrace_tests::{Actor, Flow, NetNs, Pair, expect, in_range, observed, require_root, require_tool, shared};
use serde_json::json;

/// Lets a rule act on what arrives in the namespace.
fn rule(netns: &NetNs, words: &[&str]) {
    netns.command("nft", &["add", "table", "inet", "t"]);
    netns.command("nft", &["add", "chain", "inet", "t", "in", "{ type filter hook input priority 0; }"]);
    let mut all = vec!["add", "rule", "inet", "t", "in"];
    all.extend(words);
    netns.command("nft", &all);
}

/// A connection on which nothing arrives any more.
fn cut() -> (Pair, NetNs) {
    let netns = NetNs::new();
    let mut pair = Pair::inside(&netns);
    pair.client.send_to(&mut pair.server, 20);
    pair.client.wait_acknowledged();
    let port = pair.server.flow.local.port().to_string();
    rule(&netns, &["tcp", "sport", &port, "drop"]);
    rule(&netns, &["tcp", "dport", &port, "drop"]);
    (pair, netns)
}

#[test]
fn a_user_timeout_is_seen_by_the_blocked_receive() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let (Pair { client: _client, mut server }, _netns) = cut();
    server.ok("set user-timeout 600");
    server.ok("send 44");
    let command = server.on_socket("recv 10");
    server.actor.begin(command);
    assert_eq!(server.actor.reply(), Err("ETIMEDOUT".into()));
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "timeout",
            "state": "ESTABLISHED",
            "reason": null,
            "bytes": {
                "sent": 44, "acked": 0, "unacked": 44, "unsent": 0, "received": 20, "unread": 0,
            },
            "closer": null,
            "released": server.task("close"),
        }),
    );
    in_range(&record, "/retransmits", 1..=20);
    in_range(&record, "/age_us", 600_000..);
    observed(&record, server.observer("recvfrom", "ETIMEDOUT"));
    in_range(&record, "/observer/delay_us", 0..1_000_000);
}

#[test]
fn keep_alive_gives_up_with_a_reset_and_etimedout() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let (Pair { client: _client, mut server }, _netns) = cut();
    server.ok("set keepidle 1");
    server.ok("set keepintvl 1");
    server.ok("set keepcnt 1");
    server.ok("set keepalive 1");
    let command = server.on_socket("recv 10");
    server.actor.begin(command);
    assert_eq!(server.actor.reply(), Err("ETIMEDOUT".into()));
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-sent",
            "state": "ESTABLISHED",
            "reason": "TCP_KEEPALIVE_TIMEOUT",
            "bytes": { "sent": 0, "received": 20, "unacked": 0, "unsent": 0 },
            "closer": null,
            "released": server.task("close"),
        }),
    );
    observed(&record, server.observer("recvfrom", "ETIMEDOUT"));
}

/// A client in a namespace, whose connection attempts to some port meet a rule.
fn attempt(netns: &NetNs, words: &[&str]) -> (Actor, i32, Flow) {
    let mut client = Actor::spawn_in(netns, "client");
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], 4711));
    let mut all = vec!["tcp", "dport", "4711"];
    all.extend(words);
    rule(netns, &all);
    let fd = client.socket(to);
    client.ok(format!("bind {fd} 127.0.0.1:0"));
    let flow = Flow::new(client.get(format!("local {fd}")), to);
    (client, fd, flow)
}

#[test]
fn a_connect_that_nobody_answers_times_out() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    let (mut client, fd, flow) = attempt(&netns, &["drop"]);
    client.ok(format!("set {fd} syncnt 1"));
    assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), "ETIMEDOUT");
    client.ok(format!("close {fd}"));

    let record = tracer.wait("a connect timeout", |record| record["netns"] == netns.inode() && flow.matches(record));
    expect(
        &record,
        json!({
            "end": "timeout",
            "role": "client",
            "state": "SYN_SENT",
            "reason": null,
            "bytes": { "sent": 0, "acked": 0, "unacked": 0, "unsent": 0, "received": 0 },
            "owner": { "tgid": client.pid(), "comm": "client" },
            "observer": {
                "tgid": client.pid(), "syscall": "connect", "fd": fd, "errno": "ETIMEDOUT",
                "inferred": true,
            },
            "seen": "yes",
        }),
    );
    in_range(&record, "/retransmits", 1..=8);
}

/// Rejected by ICMP: an error without a RST.
fn rejected_by_icmp(words: &[&str], errno: &str) {
    let tracer = shared();
    let netns = NetNs::new();
    let (mut client, fd, flow) = attempt(&netns, words);
    assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), errno);
    client.ok(format!("close {fd}"));

    let record = tracer.wait("a rejected connect", |record| record["netns"] == netns.inode() && flow.matches(record));
    expect(
        &record,
        json!({
            "end": "error",
            "role": "client",
            "state": "SYN_SENT",
            "reason": null,
            "owner": { "tgid": client.pid(), "comm": "client" },
            "observer": {
                "tgid": client.pid(), "syscall": "connect", "fd": fd, "errno": errno, "inferred": true,
            },
            "seen": "yes",
        }),
    );
}

#[test]
fn a_host_that_is_unreachable_is_an_error() {
    require_root!();
    require_tool!("nft");
    rejected_by_icmp(&["reject", "with", "icmp", "type", "host-unreachable"], "EHOSTUNREACH");
}

#[test]
fn a_firewalls_reject_is_an_error_and_no_reset() {
    require_root!();
    require_tool!("nft");
    rejected_by_icmp(&["reject", "with", "icmp", "type", "port-unreachable"], "ECONNREFUSED");
}

#[test]
fn a_soft_error_of_a_nonblocking_connect_is_observed_by_so_error() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    let words = ["reject", "with", "icmp", "type", "host-unreachable"];
    let (mut client, fd, flow) = attempt(&netns, &words);
    client.ok(format!("set {fd} nonblock 1"));
    // On loopback the ICMP message arrives inside connect(), which holds the socket: the error is
    // only noted (sk_err_soft) and the attempt goes on, but SO_ERROR tells it.
    assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), "EINPROGRESS");
    client.ok(format!("poll {fd} error"));
    assert_eq!(client.ok(format!("so-error {fd}")), "EHOSTUNREACH");
    client.ok(format!("close {fd}"));

    let record = tracer.wait("a rejected connect", |record| record["netns"] == netns.inode() && flow.matches(record));
    expect(&record, json!({ "end": "error", "role": "client", "state": "SYN_SENT", "reason": null }));
    observed(
        &record,
        json!({
            "tgid": client.pid(), "syscall": "getsockopt", "fd": fd, "errno": "EHOSTUNREACH",
            "inferred": false,
        }),
    );
}

#[test]
fn a_firewalls_reset_is_received_and_nobody_sent_it() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    let (mut client, fd, flow) = attempt(&netns, &["reject", "with", "tcp", "reset"]);
    assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), "ECONNREFUSED");
    client.ok(format!("close {fd}"));
    let of_it = |record: &serde_json::Value| record["netns"] == netns.inode() && (flow.matches(record) || flow.peer().matches(record));
    let record = tracer.wait("a refused connect", of_it);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "local": { "port": flow.local.port() },
            "state": "SYN_SENT",
            "observer": { "syscall": "connect", "errno": "ECONNREFUSED", "inferred": true },
        }),
    );
    assert_eq!(tracer.matching(of_it).len(), 1);
}

#[test]
fn an_orphan_that_times_out_is_seen_by_nobody() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let (Pair { client: _client, mut server }, _netns) = cut();
    server.ok("set user-timeout 600");
    server.ok("send 44");
    server.ok("close");

    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "timeout",
            "state": "FIN_WAIT1",
            "bytes": { "sent": 44, "acked": 0, "unacked": 44, "unsent": 0, "received": 20 },
            "observer": null,
            "seen": "never",
            "closer": server.task("close"),
            "fin": { "first": "local", "local": true, "remote": false },
        }),
    );
}

#[test]
fn a_connect_that_its_own_process_gives_up_is_an_error() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    let (mut client, fd, flow) = attempt(&netns, &["drop"]);
    client.ok(format!("set {fd} nonblock 1"));
    assert_eq!(client.fails(format!("connect {fd} {}", flow.remote)), "EINPROGRESS");
    client.ok(format!("close {fd}"));

    let record = tracer.wait("a connect given up", |record| record["netns"] == netns.inode() && flow.matches(record));
    let task = json!({
        "tgid": client.pid(), "tid": client.pid(), "comm": "client", "syscall": "close",
        "exiting": false,
    });
    expect(
        &record,
        json!({
            "end": "error",
            "role": "client",
            "state": "SYN_SENT",
            "reason": null,
            "observer": null,
            "seen": "never",
            "closer": task,
            "released": task,
            "fin": { "first": null, "local": false, "remote": false },
        }),
    );
}
