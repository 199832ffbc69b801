//! The kernel counts ends too, per network namespace. In a namespace of its own a test makes a
//! known number of every kind of end; the records must add up to the kernel's counters exactly,
//! and so must the RSTs that tcpdump sees on the wire.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rsttrace_tests::{
    NetNs, Run, Tracer, missing_tool,
    peers::{abort, counters, disconnect, set},
    require_root, require_tool, wait_until,
};
use serde_json::Value;

/// Of every kind.
const N: usize = 17;
/// Listens for the children that nobody accepts.
const QUEUE_PORT: u16 = 7008;
/// Segments to these ports are dropped while the timeouts are made.
const USER_TIMEOUT_PORT: u16 = 7011;
const KEEPALIVE_PORT: u16 = 7012;

fn v4(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn v6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

/// N connections, each as (client, server).
fn connections(address: SocketAddr) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(address).expect("listen");
    (0..N)
        .map(|_| {
            let client = TcpStream::connect(address).expect("connect");
            let (server, _) = listener.accept().expect("accept");
            (client, server)
        })
        .collect()
}

fn assert_reset(mut stream: &TcpStream) {
    let error = stream.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

fn assert_fin(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).expect("a FIN"), 0);
}

/// Waits for the end of both directions, without a segment and without taking the error.
fn wait_for_hangup(stream: &TcpStream) {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 15_000) };
    assert_eq!((ready, poll.revents & libc::POLLHUP), (1, libc::POLLHUP), "no end within 15 s");
}

fn linger_zero_close(address: SocketAddr) {
    for (client, server) in connections(address) {
        abort(client);
        assert_reset(&server);
    }
}

fn close_with_unread_data() {
    for (mut client, server) in connections(v4(7001)) {
        client.write_all(b"unread").expect("send");
        server.peek(&mut [0]).expect("data");
        drop(server);
        assert_reset(&client);
    }
}

fn closed_port(address: SocketAddr) {
    for _ in 0..N {
        let error = TcpStream::connect(address).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

fn fin_by_both_in_turn() {
    for (client, server) in connections(v4(7003)) {
        let (first, second) = (client, server);
        drop(first);
        assert_fin(&second);
    }
}

fn killed_by_ss() {
    let connections = connections(v4(7004));
    let status = Command::new("ss").args(["-K", "-n", "-t", "state", "established", "dport = :7004"]).stdout(Stdio::null()).status();
    assert!(status.expect("ss").success());
    for (mut client, server) in connections {
        assert_reset(&server);
        let error = client.read(&mut [0]).expect_err("killed");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    }
}

/// The closed end stays a full socket in FIN_WAIT2 (`TCP_LINGER2` above a minute), or goes on as a
/// mini-socket, and answers data with RST.
fn data_after_close(port: u16, full: bool) {
    for (mut client, server) in connections(v4(port)) {
        if full {
            set(&server, libc::IPPROTO_TCP, libc::TCP_LINGER2, &100).expect("TCP_LINGER2");
        }
        drop(server);
        assert_fin(&client);
        // The FIN's acknowledgement may be delayed, and the data carry it: wait for it alone.
        wait_until("the closed end is in FIN_WAIT2", || closed_end_waits(&client, full));
        client.write_all(b"too late").expect("send");
        wait_for_hangup(&client);
    }
}

/// Whether the peer of a socket is in FIN_WAIT2 (5), as a full socket or (timer 3) as a mini-socket.
fn closed_end_waits(client: &TcpStream, full: bool) -> bool {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let local = port(client.peer_addr().expect("connected"));
    let remote = port(client.local_addr().expect("connected"));
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc/net/tcp");
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|row| {
        row.len() > 5 && row[1].ends_with(&local) && row[2].ends_with(&remote) && row[3] == "05" && row[5].starts_with("03:") != full
    })
}

fn listener_closed_with_a_queue() {
    let listener = TcpListener::bind(v4(QUEUE_PORT)).expect("listen");
    let clients: Vec<_> = (0..N).map(|_| TcpStream::connect(v4(QUEUE_PORT)).expect("connect")).collect();
    drop(listener);
    clients.iter().for_each(assert_reset);
}

fn connect_to_nowhere() {
    for (client, server) in connections(v4(7009)) {
        disconnect(&client).expect("disconnect");
        assert_reset(&server);
    }
}

fn abort_after_the_peers_fin() {
    for (client, server) in connections(v4(7010)) {
        server.shutdown(std::net::Shutdown::Write).expect("shutdown");
        assert_fin(&client);
        abort(client);
        assert_reset(&server);
    }
}

fn reset_before_accept() {
    let listener = TcpListener::bind(v4(7013)).expect("listen");
    for _ in 0..N {
        abort(TcpStream::connect(v4(7013)).expect("connect"));
        let (server, _) = listener.accept().expect("accept");
        assert_reset(&server);
    }
}

/// Data goes out and no answer comes; later the other end closes, and there is nobody any more.
fn timeouts() {
    let user = connections(v4(USER_TIMEOUT_PORT));
    let keepalive = connections(v4(KEEPALIVE_PORT));
    let rules = "add table inet t; add chain inet t in { type filter hook input priority 0; }; \
                 add rule inet t in tcp dport { 7011, 7012 } drop";
    nft(rules);
    for (mut client, _) in user.iter().map(|(client, server)| (client, server)) {
        set(client, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &100).expect("TCP_USER_TIMEOUT");
        client.write_all(b"into the void").expect("send");
    }
    for (client, _) in &keepalive {
        for (level, name) in [
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        ] {
            set(client, level, name, &1).expect("keep-alive");
        }
    }
    for (mut client, _) in user.iter().chain(&keepalive).map(|(client, server)| (client, server)) {
        let error = client.read(&mut [0]).expect_err("a timeout");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    nft("delete table inet t");
    for (_, server) in user.iter().chain(&keepalive) {
        server.shutdown(std::net::Shutdown::Write).expect("shutdown");
        assert_reset(server);
    }
}

fn nft(rules: &str) {
    let status = Command::new("nft").arg(rules).status().expect("nft");
    assert!(status.success(), "nft {rules}");
}

/// tcpdump on the calling thread's loopback, one line per RST.
struct Wire {
    tcpdump: Child,
}

impl Wire {
    fn listen() -> Self {
        let mut command = Command::new("tcpdump");
        // A short snapshot: frames of the capture's ring are as long, and few of the default fit.
        command.args(["-i", "lo", "-n", "-l", "--immediate-mode", "-Z", "root", "-s", "128"]);
        command.arg("tcp[tcpflags] & tcp-rst != 0 or (ip6 and ip6[6] == 6 and ip6[53] & 4 != 0)");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut tcpdump = command.spawn().expect("tcpdump");
        let stderr = BufReader::new(tcpdump.stderr.take().expect("a pipe"));
        let mut lines = stderr.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("listening on lo")), "tcpdump does not listen");
        thread::spawn(move || lines.for_each(drop));
        Self { tcpdump }
    }

    /// Stops when `expected` have been seen, or at the deadline: what was seen in all.
    fn stop(mut self, expected: usize) -> usize {
        let stdout = BufReader::new(self.tcpdump.stdout.take().expect("a pipe"));
        let seen = AtomicUsize::new(0);
        let count = || seen.load(Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                // A line is left empty when it is interrupted.
                for line in stdout.lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
                    assert!(line.contains("Flags [R"), "{line}");
                    seen.fetch_add(1, Ordering::SeqCst);
                }
            });
            let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                wait_until("tcpdump has seen every RST", || count() >= expected);
            }));
            // SAFETY: no memory involved; the child is not yet reaped.
            unsafe { libc::kill(self.tcpdump.id() as libc::pid_t, libc::SIGINT) };
            self.tcpdump.wait().expect("tcpdump's end");
            drop(waited);
        });
        count()
    }
}

/// Whether a record is of a full socket, rather than of a RST that met none.
fn is_full(record: &Value) -> bool {
    !record["bytes"].is_null()
}

/// What the kernel counts, from records alone; by the definitions of `net/ipv4/tcp*.c`.
fn counted_by_records(run: &Run) -> BTreeMap<&'static str, u64> {
    let count =
        |condition: &dyn Fn(&Value) -> bool| run.teardowns().filter(|record| record["end"] != "fin" && condition(record)).count() as u64;
    let by_close = |record: &Value| record["closer"]["syscall"] == "close";
    BTreeMap::from([
        // tcp_set_state(): ESTABLISHED or CLOSE_WAIT to CLOSE.
        ("EstabResets", count(&|r| is_full(r) && (r["state"] == "ESTABLISHED" || r["state"] == "CLOSE_WAIT"))),
        // tcp_send_active_reset() and tcp_v4_send_reset(), whether or not they end a full socket.
        ("OutRsts", count(&|r| r["end"] == "reset-sent")),
        // tcp_done() in SYN_SENT.
        ("AttemptFails", count(&|r| is_full(r) && r["state"] == "SYN_SENT")),
        // __tcp_close() with linger 0, and tcp_rcv_state_process() with data after close().
        // The same reason and call, but for a child in the queue of a listener, is none.
        (
            "TCPAbortOnData",
            count(&|r| {
                is_full(r) && r["reason"] == "TCP_ABORT_ON_DATA"
                    || is_full(r) && r["reason"] == "TCP_STATE" && by_close(r) && r["local"]["port"] != QUEUE_PORT
            }),
        ),
        ("TCPAbortOnClose", count(&|r| r["reason"] == "TCP_ABORT_ON_CLOSE")),
        // A keep-alive timeout sends a RST first, and so is a reset-sent with a reason of its own.
        ("TCPAbortOnTimeout", count(&|r| r["end"] == "timeout" || r["reason"] == "TCP_KEEPALIVE_TIMEOUT")),
    ])
}

#[test]
fn the_records_of_a_namespace_add_up_to_the_kernels_counters_and_to_the_wire() {
    require_root!();
    require_tool!("tcpdump");
    require_tool!("ss");
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let timeouts_too = match missing_tool("nft") {
        None => true,
        Some(why) => {
            eprintln!("without timeouts: {why}");
            false
        }
    };
    netns.run_in(|| {
        let wire = Wire::listen();
        let tracer = Tracer::start(&["--netns", &inode, "--join-timeout", "5s"]);
        thread::scope(|scope| {
            scope.spawn(|| linger_zero_close(v4(7000)));
            scope.spawn(|| linger_zero_close(v6(7000)));
            scope.spawn(close_with_unread_data);
            scope.spawn(|| closed_port(v4(7002)));
            scope.spawn(|| closed_port(v6(7002)));
            scope.spawn(fin_by_both_in_turn);
            scope.spawn(|| data_after_close(7005, true));
            scope.spawn(|| data_after_close(7006, false));
            scope.spawn(listener_closed_with_a_queue);
            scope.spawn(connect_to_nowhere);
            scope.spawn(abort_after_the_peers_fin);
            scope.spawn(reset_before_accept);
        });
        // Not beside the others: between fork and exec a child has copies of their sockets, and
        // it would be its execve() that closes them.
        killed_by_ss();
        if timeouts_too {
            timeouts();
        }
        let n = N as u64;
        let t = if timeouts_too { n } else { 0 };
        let made = BTreeMap::from([
            // Both ends: linger 0 (twice), unread data, ss -K, the queue, AF_UNSPEC, before accept();
            // one end: data after close (twice), linger 0 in CLOSE_WAIT, two kinds of timeout.
            ("EstabResets", 7 * 2 * n + 3 * n + 2 * t),
            // One for each, but the user timeout has none until its peer closes, and the
            // keep-alive's has both.
            ("OutRsts", 12 * n + 3 * t),
            ("AttemptFails", 2 * n),
            // Linger 0 (four times), data after close (once to a full socket).
            ("TCPAbortOnData", 5 * n),
            ("TCPAbortOnClose", n),
            ("TCPAbortOnTimeout", 2 * t),
        ]);
        let of_kernel = || -> BTreeMap<&str, u64> {
            let all = counters();
            made.keys().map(|name| (*name, all[*name])).collect()
        };
        // What was made, by the test's own arithmetic; the kernel agrees before the records are asked.
        let expected = made.clone();
        let mut last = BTreeMap::new();
        let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("the kernel has counted everything", || {
                last = of_kernel();
                last == expected
            });
        }));
        assert!(settled.is_ok(), "the kernel counts {last:?}, made were {expected:?}");

        let run = tracer.stop();
        let seen = wire.stop(expected["OutRsts"] as usize);
        assert_eq!(run.summary["lost"]["total"], 0, "{}", run.summary);
        let audit: Vec<_> = run.summary["audit"].as_array().into_iter().flatten().filter(|entry| entry["netns"] == netns.inode()).collect();
        assert!(audit.len() > made.len() && audit.iter().all(|entry| entry["explained"].is_null()), "the tracer's own audit: {audit:?}");
        let ours = counted_by_records(&run);
        let mut table: BTreeMap<String, usize> = BTreeMap::new();
        for record in run.teardowns() {
            let key = format!("{} {} {} {}", record["end"], record["state"], record["reason"], is_full(record));
            *table.entry(key).or_default() += 1;
        }
        assert_eq!(ours, of_kernel(), "records (left) and kernel (right) disagree: {table:#?}");
        assert_eq!(seen as u64, ours["OutRsts"], "RSTs on the wire and in the records: {table:#?}");
        let of_end = |end: &str| run.teardowns().filter(|record| record["end"] == end).count() as u64;
        assert_eq!(of_end("timeout"), t);
        let of_summary = |end: &str| run.summary["sockets"][end].as_u64().unwrap_or(0);
        for end in ["reset-sent", "reset-received", "timeout", "error"] {
            assert_eq!(of_summary(end), of_end(end), "{end} in the summary");
        }
    });
}
