//! The summary's `audit`: what the kernel counts in a namespace is what our events add up to, and
//! a difference has its blind spot's name.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use rsttrace_tests::{
    Actor, NetNs, Run, Tracer, is_stray,
    peers::{abort, counters},
    require_root, require_tool, wait_until,
};
use serde_json::{Value, json};

const FILTERED: usize = 7;
const EMBRYONIC: usize = 5;
const TIME_WAIT: usize = 3;

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// So many connections, each as (client, server); the listener is gone.
fn connections(port: u16, n: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(local(port)).expect("listen");
    (0..n)
        .map(|_| {
            let client = TcpStream::connect(local(port)).expect("connect");
            (client, listener.accept().expect("accept").0)
        })
        .collect()
}

fn assert_reset(mut stream: &TcpStream) {
    let error = stream.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

fn aborts(port: u16, n: usize) {
    for (client, server) in connections(port, n) {
        abort(client);
        assert_reset(&server);
    }
}

fn closes_with_unread_data(port: u16, n: usize) {
    for (client, mut server) in connections(port, n) {
        server.write_all(b"unread").expect("send");
        client.peek(&mut [0]).expect("data");
        drop(client);
        assert_reset(&server);
    }
}

fn orderly(port: u16, n: usize) {
    for (client, mut server) in connections(port, n) {
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("a FIN"), 0);
    }
}

fn closed_ports(port: u16, n: usize) {
    for _ in 0..n {
        let error = TcpStream::connect(local(port)).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

/// The packet filter answers what clients write with RST. Their servers learn of it at their own
/// close, from a RST of the kernel's.
fn resets_of_a_filter(netns: &NetNs, port: u16, n: usize) {
    let connections = connections(port, n);
    netns.on_input(&format!("tcp dport {port} reject with tcp reset"));
    for (client, _) in &connections {
        let mut client = client;
        client.write_all(b"x").expect("send");
        assert_reset(client);
    }
    netns.command("nft", &["delete", "table", "inet", "t"]);
}

/// SYNs from ports that no socket has: this host's own answer to the SYN-ACK resets the request.
fn embryonic_resets(port: u16, n: usize) {
    let _listener = TcpListener::bind(local(port)).expect("listen");
    // SAFETY: no memory involved; the descriptor is new.
    let raw = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP);
        assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    for from in (20_001..).take(n) {
        let segment = syn(SocketAddrV4::new(Ipv4Addr::LOCALHOST, from), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()) },
            sin_zero: [0; 8],
        };
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: valid descriptor, buffer and address with their lengths.
        let sent = unsafe { libc::sendto(raw.as_raw_fd(), segment.as_ptr().cast(), segment.len(), 0, (&raw const to).cast(), length) };
        assert_eq!(sent, segment.len() as isize, "{}", std::io::Error::last_os_error());
    }
    wait_until("every request is reset", || counters()["EmbryonicRsts"] >= n as u64);
}

fn syn(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 20] {
    const SYN: u8 = 2;
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&1u32.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = SYN;
    segment[14..16].copy_from_slice(&1000u16.to_be_bytes());
    let pseudo = [&from.ip().octets()[..], &to.ip().octets()[..], &[0, 6, 0, 20]].concat();
    let sum: u32 = [&pseudo, &segment[..]].concat().chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    segment[16..18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    segment
}

/// The closed end goes on as a mini-socket, and answers data with RST.
fn time_wait_resets(port: u16, n: usize) {
    for (mut client, server) in connections(port, n) {
        drop(server);
        assert_eq!(client.read(&mut [0]).expect("a FIN"), 0);
        // The FIN's acknowledgement may be delayed, and the data carry it: wait for it alone.
        wait_until("the closed end is a mini-socket", || {
            let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc/net/tcp");
            let ours = format!(":{:04X}", client.local_addr().expect("connected").port());
            table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .any(|row| row.len() > 5 && row[2].ends_with(&ours) && row[3] == "05" && row[5].starts_with("03:"))
        });
        client.write_all(b"too late").expect("send");
        let mut poll = libc::pollfd { fd: client.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 15_000) }, 1, "no end within 15 s");
    }
}

/// Waits until the calling thread's namespace has counted that many RSTs and ends.
fn settled(resets_sent: u64, established: u64) {
    wait_until("the kernel has counted everything", || {
        let counters = counters();
        (counters["OutRsts"], counters["EstabResets"]) == (resets_sent, established)
    });
}

/// One counter of one namespace, as (kernel, ours, explained).
#[track_caller]
fn entry(run: &Run, netns: &NetNs, counter: &str) -> (u64, u64, Option<String>) {
    let audit = run.summary["audit"].as_array().expect("an array");
    let mut found = audit.iter().filter(|entry| entry["netns"] == netns.inode() && entry["counter"] == counter);
    let entry = found.next().unwrap_or_else(|| panic!("no {counter} of {}: {}\n{}", netns.inode(), run.summary, run.stderr));
    assert!(found.next().is_none(), "{counter} twice");
    let number = |key: &str| entry[key].as_u64().expect(key);
    (number("kernel"), number("ours"), entry["explained"].as_str().map(str::to_owned))
}

#[track_caller]
fn assert_equal(run: &Run, netns: &NetNs, expected: &[(&str, u64)]) {
    for (counter, n) in expected {
        assert_eq!(entry(run, netns, counter), (*n, *n, None), "{counter}: {}", run.summary["audit"]);
    }
}

fn resets_that_nobody_sent<'a>(run: &'a Run, netns: &NetNs) -> Option<&'a Value> {
    let all = run.summary["foreign_resets"].as_array()?;
    Some(all.iter().find(|entry| entry["netns"] == netns.inode()).map_or(&Value::Null, |entry| &entry["resets"]))
}

/// Every kind of end with a blind spot of its own, and ordinary ones; what the kernel counts of
/// them is (EstabResets, OutRsts).
fn make_blind_spots(netns: &NetNs) -> (u64, u64) {
    resets_of_a_filter(netns, 7001, FILTERED);
    embryonic_resets(7002, EMBRYONIC);
    time_wait_resets(7003, TIME_WAIT);
    aborts(7004, 4);
    closes_with_unread_data(7005, 2);
    orderly(7006, 6);
    closed_ports(7007, 1);
    let established = FILTERED + TIME_WAIT + 2 * 4 + 2 * 2;
    let sent = FILTERED + EMBRYONIC + TIME_WAIT + 4 + 2 + 1;
    (established as u64, sent as u64)
}

#[test]
fn resets_of_filters_of_embryonic_connections_and_of_time_wait_are_accounted_for_whatever_is_shown() {
    require_root!();
    require_tool!("nft");
    let mut uncertain = Vec::new();
    // What others on this host lose makes a claim uncertain, and then it is not made.
    for _ in 0..3 {
        let netns = NetNs::new();
        let _resident = Actor::spawn_in(&netns, "resident");
        let inode = netns.inode().to_string();
        let arguments: [&[&str]; 3] =
            [&["--netns", &inode], &["-a", "--netns", &inode], &["--harm", "lost", "--remote-port", "1", "--count", "1"]];
        let tracers = arguments.map(Tracer::start);
        let (established, sent) = netns.run_in(|| {
            let (established, sent) = make_blind_spots(&netns);
            settled(sent, established);
            (established, sent)
        });
        let runs = tracers.map(Tracer::stop);
        for run in &runs {
            let equal =
                [("EstabResets", established), ("OutRsts", sent), ("TCPAbortOnData", 4), ("TCPAbortOnClose", 2), ("TCPAbortOnTimeout", 0)];
            assert_equal(run, &netns, &equal);
            let (kernel, ours, why) = entry(run, &netns, "AttemptFails");
            assert_eq!((kernel, ours), (1 + EMBRYONIC as u64, 1));
            assert_eq!(why.as_deref(), Some("5 connections reset while still in the SYN queue: no socket yet, no tracepoint"));
            assert!(run.stderr.contains("AttemptFails"), "{}", run.stderr);
        }
        let [plain, ..] = &runs;
        let of_time_wait = plain.teardowns().filter(|record| is_stray(record) && record["cause"] == "time-wait").count();
        assert_eq!(of_time_wait, TIME_WAIT);
        assert!(plain.stderr.contains("the kernel's own counters are accounted for (EstabResets 22, OutRsts 22"), "{}", plain.stderr);
        if runs.iter().all(|run| resets_that_nobody_sent(run, &netns) == Some(&json!(FILTERED))) {
            assert!(plain.stderr.contains("7 RSTs arrived over loopback"), "{}", plain.stderr);
            return;
        }
        uncertain.extend(runs.iter().map(|run| format!("{}\n{}", run.summary["foreign_resets"], run.stderr)));
    }
    panic!("resets of a filter are never told for certain:\n{}", uncertain.join("\n"));
}

#[test]
fn namespaces_are_told_apart_and_later_ones_begin_at_nothing() {
    require_root!();
    // A number that another test's namespace had at the start proves nothing: then it is not audited.
    for _ in 0..5 {
        let first = NetNs::new();
        let _resident = Actor::spawn_in(&first, "resident");
        // What was counted before the start is not counted.
        first.run_in(|| aborts(7001, 2));
        let tracer = Tracer::start(&[]);
        let second = NetNs::new();
        let _resident = Actor::spawn_in(&second, "resident");
        first.run_in(|| {
            aborts(7001, 3);
            settled(2 + 3, 2 * (2 + 3));
        });
        second.run_in(|| {
            closed_ports(7002, 5);
            settled(5, 0);
        });
        let run = tracer.stop();
        assert_equal(&run, &first, &[("EstabResets", 6), ("OutRsts", 3), ("AttemptFails", 0), ("TCPAbortOnData", 3)]);
        if run.summary["not_audited"].as_array().expect("an array").contains(&json!(second.inode())) {
            continue;
        }
        assert_equal(&run, &second, &[("EstabResets", 0), ("OutRsts", 5), ("AttemptFails", 5), ("TCPAbortOnData", 0)]);
        return;
    }
    panic!("a later namespace is never audited");
}

#[test]
fn a_namespace_that_is_gone_is_not_audited_and_that_is_said() {
    require_root!();
    let tracer = Tracer::start(&[]);
    let netns = NetNs::new();
    let inode = netns.inode();
    netns.run_in(|| {
        aborts(7001, 1);
        settled(1, 2);
    });
    drop(netns);
    let run = tracer.stop();
    let not_audited = run.summary["not_audited"].as_array().expect("an array");
    assert!(not_audited.contains(&json!(inode)), "{}", run.summary);
    assert!(run.summary["audit"].as_array().expect("an array").iter().all(|entry| entry["netns"] != inode), "{}", run.summary);
    assert!(run.stderr.contains("could not be read: not compared"), "{}", run.stderr);
}

#[test]
fn what_a_tiny_buffer_loses_is_a_doubt_and_no_contradiction() {
    require_root!();
    let netns = NetNs::new();
    let _resident = Actor::spawn_in(&netns, "resident");
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--buffer", "4k", "--netns", &inode]);
    tracer.signal(libc::SIGSTOP);
    const N: u64 = 97;
    netns.run_in(|| {
        aborts(7001, N as usize);
        closed_ports(7002, N as usize);
        settled(2 * N, 2 * N);
    });
    tracer.signal(libc::SIGCONT);
    let run = tracer.stop();
    assert_ne!(run.summary["lost"]["total"], 0);
    for (counter, n) in [("EstabResets", 2 * N), ("OutRsts", 2 * N), ("AttemptFails", N), ("TCPAbortOnData", N)] {
        let (kernel, ours, explained) = entry(&run, &netns, counter);
        assert_eq!(kernel, n, "{counter}");
        assert!(ours < n, "{counter}: nothing of it is lost");
        let why = explained.unwrap_or_default();
        assert!(why.starts_with("up to ") && why.contains("may be missing"), "{counter}: {why}");
    }
    assert!(run.summary["foreign_resets"].is_null(), "nothing is certain: {}", run.summary);
}

#[test]
fn a_hook_that_is_missing_is_named() {
    require_root!();
    let netns = NetNs::new();
    let _resident = Actor::spawn_in(&netns, "resident");
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--without", "tcp_send_reset", "--netns", &inode]);
    netns.run_in(|| {
        aborts(7001, 3);
        closed_ports(7002, 2);
        settled(5, 6);
    });
    let run = tracer.stop();
    assert_equal(&run, &netns, &[("EstabResets", 6), ("AttemptFails", 2), ("TCPAbortOnTimeout", 0)]);
    for (counter, n) in [("OutRsts", 5), ("TCPAbortOnData", 3)] {
        assert_eq!(entry(&run, &netns, counter), (n, 0, Some("the hook tcp_send_reset is not attached".to_owned())));
    }
    assert!(run.summary["foreign_resets"].is_null(), "{}", run.summary);
}
