//! Debian's HAProxy between clients and servers that end connections in every way that its log tells
//! apart: each line must say the right side and fault, and the tracer's record of that connection must
//! say the same.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use rsttrace::applog::{Fault, LogLine, Parsed, Remote, Side, Stamp};
use rsttrace_tests::{
    DEADLINE, NetNs, Run, Tracer,
    haproxy::HaProxy,
    peers::{Beacons, abort, connect_from, listen, read_head},
    require_root, require_tool, wait_until,
};
use serde_json::Value;

/// Of each kind.
const N: usize = 7;
/// And above: a frontend for each kind.
const FRONT: u16 = 8100;
/// And above: a server for each kind.
const BACK: u16 = 9000;
const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwhole";
const PART: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\na part of it";
const BIG: usize = 16 << 20;

/// Who listens where HAProxy looks for a server.
#[derive(Clone, Copy)]
enum Server {
    Does(fn(&Stage, TcpStream, usize)),
    /// Nobody.
    Refuses,
    /// Somebody whose accept queue is full, so that no SYN is answered.
    Ignores,
    /// Nobody is needed.
    None,
}

/// One way in which a session of HAProxy's ends.
struct Kind {
    name: &'static str,
    /// The first two letters of the termination state; several where timing decides.
    states: &'static [&'static str],
    told: Option<(Side, Fault)>,
    /// For the frontend, which is a backend too.
    config: &'static str,
    client: fn(&Stage, TcpStream, usize),
    server: Server,
}

const CLIENT_CLOSED: Option<(Side, Fault)> = Some((Side::Client, Fault::ClosedByPeer));
const CLIENT_TIMED_OUT: Option<(Side, Fault)> = Some((Side::Client, Fault::TimedOut));
const SERVER_CLOSED: Option<(Side, Fault)> = Some((Side::Upstream, Fault::ClosedByPeer));
const SERVER_TIMED_OUT: Option<(Side, Fault)> = Some((Side::Upstream, Fault::TimedOut));
const NOT_CONNECTED: Option<(Side, Fault)> = Some((Side::Upstream, Fault::NotConnected));
const NO_CONNECTION: Option<(Side, Fault)> = Some((Side::Upstream, Fault::NoConnection));

const HTTP: &str = "mode http\noption httplog\n";
const TCP: &str = "mode tcp\noption tcplog\n";

static KINDS: &[Kind] = &[
    Kind { name: "whole", states: &["--"], told: None, config: HTTP, client: ask_and_read, server: Server::Does(answer) },
    Kind { name: "reset", states: &["SH"], told: SERVER_CLOSED, config: HTTP, client: ask_and_read, server: Server::Does(reset) },
    Kind { name: "fin", states: &["SH"], told: SERVER_CLOSED, config: HTTP, client: ask_and_read, server: Server::Does(fin) },
    Kind { name: "reset-body", states: &["SD"], told: SERVER_CLOSED, config: HTTP, client: ask_and_read, server: Server::Does(part_reset) },
    Kind { name: "fin-body", states: &["SD"], told: SERVER_CLOSED, config: HTTP, client: ask_and_read, server: Server::Does(part_fin) },
    Kind {
        name: "mute",
        states: &["sH"],
        told: SERVER_TIMED_OUT,
        config: "mode http\noption httplog\ntimeout server 400ms\n",
        client: ask_and_read,
        server: Server::Does(wait_for_end),
    },
    Kind {
        name: "mute-body",
        states: &["sD"],
        told: SERVER_TIMED_OUT,
        config: "mode http\noption httplog\ntimeout server 400ms\n",
        client: ask_and_read,
        server: Server::Does(part_wait),
    },
    Kind { name: "refused", states: &["SC"], told: NOT_CONNECTED, config: HTTP, client: ask_and_read, server: Server::Refuses },
    Kind {
        name: "ignored",
        states: &["sC"],
        told: SERVER_TIMED_OUT,
        config: "mode http\noption httplog\ntimeout connect 400ms\n",
        client: ask_and_read,
        server: Server::Ignores,
    },
    Kind {
        name: "client-reset",
        states: &["CD", "CH"],
        told: CLIENT_CLOSED,
        config: HTTP,
        client: ask_and_reset,
        server: Server::Does(wait_for_end),
    },
    Kind {
        name: "client-fin",
        states: &["CH"],
        told: CLIENT_CLOSED,
        config: HTTP,
        client: ask_and_leave,
        server: Server::Does(wait_for_end),
    },
    Kind {
        name: "client-reset-body",
        states: &["CD"],
        told: CLIENT_CLOSED,
        config: HTTP,
        client: read_and_reset,
        server: Server::Does(part_wait),
    },
    Kind {
        name: "client-stalls",
        states: &["cD"],
        told: CLIENT_TIMED_OUT,
        config: "mode http\noption httplog\ntimeout client 400ms\n",
        client: ask_and_stall,
        server: Server::Does(big),
    },
    Kind { name: "head-reset", states: &["CR"], told: CLIENT_CLOSED, config: HTTP, client: half_head_reset, server: Server::None },
    Kind { name: "head-fin", states: &["CR"], told: CLIENT_CLOSED, config: HTTP, client: half_head_leave, server: Server::None },
    Kind {
        name: "head-slow",
        states: &["cR"],
        told: CLIENT_TIMED_OUT,
        config: "mode http\noption httplog\ntimeout http-request 400ms\n",
        client: half_head_wait,
        server: Server::None,
    },
    Kind {
        name: "connecting-reset",
        states: &["CC"],
        told: CLIENT_CLOSED,
        config: HTTP,
        client: reset_while_connecting,
        server: Server::Ignores,
    },
    Kind {
        name: "queued",
        states: &["sQ"],
        told: NO_CONNECTION,
        config: "mode http\noption httplog\ntimeout queue 300ms\n",
        client: ask_and_read,
        server: Server::Does(wait_for_end),
    },
    Kind { name: "tcp-whole", states: &["--"], told: None, config: TCP, client: say_and_read, server: Server::Does(fin) },
    Kind { name: "tcp-reset", states: &["SD"], told: SERVER_CLOSED, config: TCP, client: say_and_read, server: Server::Does(reset) },
    Kind {
        name: "tcp-mute",
        states: &["sD"],
        told: SERVER_TIMED_OUT,
        config: "mode tcp\noption tcplog\ntimeout server 400ms\n",
        client: say_and_read,
        server: Server::Does(wait_for_end),
    },
    Kind { name: "tcp-refused", states: &["SC"], told: NOT_CONNECTED, config: TCP, client: say_and_read, server: Server::Refuses },
    Kind {
        name: "tcp-client-reset",
        states: &["CD"],
        told: CLIENT_CLOSED,
        config: TCP,
        client: say_and_reset,
        server: Server::Does(wait_for_end),
    },
];

fn port(base: u16, kind: &Kind) -> u16 {
    base + KINDS.iter().position(|other| std::ptr::eq(kind, other)).expect("a kind") as u16
}

/// What clients and servers tell each other.
#[derive(Default)]
struct Stage {
    /// ("what", a port of the kind's, instance)
    happened: Beacons<(&'static str, u16, usize)>,
}

impl Stage {
    /// A server has what HAProxy sent it.
    fn served(&self, stream: &TcpStream, i: usize) {
        self.happened.light(("served", stream.local_addr().expect("an address").port() - BACK, i));
    }

    fn wait_served(&self, stream: &TcpStream, i: usize) {
        self.happened.wait(&("served", stream.peer_addr().expect("an address").port() - FRONT, i));
    }
}

// ---- servers ----

/// Reads a request, or what there is of one.
fn take(stage: &Stage, stream: &mut TcpStream, i: usize) {
    // A request of TCP's kinds is a head too.
    assert!(!read_head(stream).is_empty());
    stage.served(stream, i);
}

fn answer(stage: &Stage, mut stream: TcpStream, i: usize) {
    take(stage, &mut stream, i);
    stream.write_all(WHOLE).expect("send");
}

fn reset(stage: &Stage, mut stream: TcpStream, i: usize) {
    take(stage, &mut stream, i);
    abort(stream);
}

fn fin(stage: &Stage, mut stream: TcpStream, i: usize) {
    take(stage, &mut stream, i);
}

/// Sends the beginning of a response and waits until the client has it, or HAProxy at least.
fn send_part(stage: &Stage, stream: &mut TcpStream, i: usize) {
    take(stage, stream, i);
    stream.write_all(PART).expect("send");
    let front = stream.local_addr().expect("an address").port() - BACK;
    stage.happened.wait(&("client has a part", front, i));
}

fn part_reset(stage: &Stage, mut stream: TcpStream, i: usize) {
    send_part(stage, &mut stream, i);
    abort(stream);
}

fn part_fin(stage: &Stage, mut stream: TcpStream, i: usize) {
    send_part(stage, &mut stream, i);
}

fn part_wait(stage: &Stage, mut stream: TcpStream, i: usize) {
    send_part(stage, &mut stream, i);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn wait_for_end(stage: &Stage, mut stream: TcpStream, i: usize) {
    take(stage, &mut stream, i);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn big(stage: &Stage, mut stream: TcpStream, i: usize) {
    take(stage, &mut stream, i);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
    // HAProxy ends it.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; BIG]));
}

// ---- clients ----

fn ask(stream: &mut TcpStream, i: usize) {
    let request = format!("GET /{i}\"quoted\" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send");
}

/// Reads to whatever end; tells when the first bytes are there.
fn read(stage: &Stage, mut stream: TcpStream, i: usize) {
    let front = stream.peer_addr().expect("an address").port() - FRONT;
    let mut bytes = [0; 4096];
    while let Ok(1..) = stream.read(&mut bytes) {
        stage.happened.light(("client has a part", front, i));
    }
}

fn ask_and_read(stage: &Stage, mut stream: TcpStream, i: usize) {
    ask(&mut stream, i);
    read(stage, stream, i);
}

fn ask_and_reset(stage: &Stage, mut stream: TcpStream, i: usize) {
    ask(&mut stream, i);
    stage.wait_served(&stream, i);
    abort(stream);
}

fn ask_and_leave(stage: &Stage, mut stream: TcpStream, i: usize) {
    ask(&mut stream, i);
    stage.wait_served(&stream, i);
}

fn read_and_reset(stage: &Stage, mut stream: TcpStream, i: usize) {
    ask(&mut stream, i);
    stream.read_exact(&mut [0; 16]).expect("the beginning of a response");
    stage.happened.light(("client has a part", stream.peer_addr().expect("an address").port() - FRONT, i));
    abort(stream);
}

/// Reads nothing until HAProxy has given it up.
fn ask_and_stall(_: &Stage, mut stream: TcpStream, i: usize) {
    ask(&mut stream, i);
    let local = stream.local_addr().expect("an address").port();
    let remote = stream.peer_addr().expect("an address").port();
    wait_until("HAProxy has let go of a client that does not read", || {
        sockets().iter().all(|row| !(row.0 == remote && row.1 == local && row.2 == "01"))
    });
}

fn half_head(stream: &mut TcpStream) {
    stream.write_all(b"GET /half HTTP/1.1\r\nHost: te").expect("send");
}

fn half_head_reset(_: &Stage, mut stream: TcpStream, _: usize) {
    half_head(&mut stream);
    abort(stream);
}

fn half_head_leave(_: &Stage, mut stream: TcpStream, _: usize) {
    half_head(&mut stream);
}

fn half_head_wait(stage: &Stage, mut stream: TcpStream, i: usize) {
    half_head(&mut stream);
    read(stage, stream, i);
}

fn reset_while_connecting(_: &Stage, mut stream: TcpStream, i: usize) {
    ask(&mut stream, i);
    let back = stream.peer_addr().expect("an address").port() - FRONT + BACK;
    wait_until("HAProxy connects", || sockets().iter().any(|row| row.1 == back && row.2 == "02"));
    abort(stream);
    wait_until("HAProxy no longer connects", || sockets().iter().all(|row| row.1 != back || row.2 != "02"));
}

fn say(stream: &mut TcpStream) {
    stream.write_all(b"hello\r\n\r\n").expect("send");
}

fn say_and_read(stage: &Stage, mut stream: TcpStream, i: usize) {
    say(&mut stream);
    read(stage, stream, i);
}

fn say_and_reset(stage: &Stage, mut stream: TcpStream, i: usize) {
    say(&mut stream);
    stage.wait_served(&stream, i);
    abort(stream);
}

/// Local port, remote port and state of this namespace's sockets.
fn sockets() -> Vec<(u16, u16, String)> {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    let port = |address: &str| u16::from_str_radix(address.split_once(':')?.1, 16).ok();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((port(fields.get(1)?)?, port(fields.get(2)?)?, fields.get(3)?.to_string()))
    };
    table.lines().skip(1).filter_map(row).collect()
}

// ---- the play ----

fn configuration() -> String {
    let section = |kind: &Kind| {
        let (front, back) = (port(FRONT, kind), port(BACK, kind));
        let limit = if kind.name == "queued" { " maxconn 1" } else { "" };
        format!("listen {}\nbind 127.0.0.1:{front}\n{}server srv 127.0.0.1:{back}{limit}\n", kind.name, kind.config)
    };
    KINDS.iter().map(section).collect()
}

/// A listener with a full accept queue, and what fills it. The SYN that finds it full stays.
fn ignore(address: SocketAddrV4) -> (TcpListener, Vec<TcpStream>) {
    let listener = listen(address, 0).expect("a listener");
    let filler = TcpStream::connect(address).expect("the one that fits");
    (listener, vec![filler])
}

fn connect(kind: &Kind) -> TcpStream {
    let front = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port(FRONT, kind));
    // An address for each kind: the kernel gives one port to several destinations.
    let from = Ipv4Addr::new(127, 1, (port(FRONT, kind) - FRONT) as u8, 1);
    connect_from(SocketAddrV4::new(from, 0), front).expect("connect to HAProxy")
}

/// N sessions of each kind, all kinds at once; gives the clients' addresses.
fn play(stage: &Stage) -> BTreeMap<SocketAddr, &'static Kind> {
    let address = |kind: &Kind| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port(BACK, kind));
    let ignoring: Vec<_> = KINDS.iter().filter(|kind| matches!(kind.server, Server::Ignores)).map(|kind| ignore(address(kind))).collect();
    let play = |kind: &'static Kind| {
        move || {
            // Keeps the server's only slot.
            let mut holder = (kind.name == "queued").then(|| connect(kind));
            if let Some(holder) = &mut holder {
                ask(holder, 0);
                stage.wait_served(holder, 0);
            }
            let session = |i| {
                let stream = connect(kind);
                let client = stream.local_addr().expect("an address");
                (kind.client)(stage, stream, i);
                client
            };
            (1..=N).map(session).collect::<Vec<SocketAddr>>()
        }
    };
    let sessions = thread::scope(|scope| {
        for kind in KINDS {
            let Server::Does(serve) = kind.server else { continue };
            let listener = listen(address(kind), 64).expect("a listener");
            // The queue's only connection is its holder's.
            let instances = if kind.name == "queued" { 0..=0 } else { 1..=N };
            scope.spawn(move || instances.for_each(|i| serve(stage, listener.accept().expect("HAProxy's connection").0, i)));
        }
        let clients: Vec<_> = KINDS.iter().map(|kind| (kind, scope.spawn(play(kind)))).collect();
        let sessions = |(kind, client): (&'static Kind, thread::ScopedJoinHandle<'_, Vec<SocketAddr>>)| {
            client.join().expect("a client").into_iter().map(move |address| (address, kind))
        };
        clients.into_iter().flat_map(sessions).collect()
    });
    drop(ignoring);
    sessions
}

/// The record of HAProxy's own socket.
fn record(run: &Run, local: Option<u16>, remote: u16) -> Vec<&Value> {
    let is_it = |record: &&Value| {
        record["remote"]["port"] == remote
            && local.is_none_or(|local| record["local"]["port"] == local)
            && record["owner"]["comm"] == "haproxy"
    };
    run.teardowns().filter(is_it).collect()
}

/// Whether a record tells what a line does.
fn agrees(fault: Fault, record: &Value) -> bool {
    let first = record["fin"]["first"].as_str();
    let by_peer = record["end"] == "reset-received" || first == Some("remote");
    match fault {
        Fault::ClosedByPeer => by_peer && record["state"] != "SYN_SENT",
        // The peer may answer HAProxy's FIN by RST.
        Fault::TimedOut => {
            first == Some("local") || !by_peer && record["initiator"].as_str().is_some_and(|initiator| initiator.starts_with("local"))
        }
        Fault::NotConnected => record["state"] == "SYN_SENT" && record["cause"] == "refused",
        Fault::NoConnection | Fault::Error { .. } => false,
    }
}

/// Milliseconds from the record's time to the line's.
fn apart(line: &LogLine, record: &Value) -> i64 {
    let Stamp::Civil(stamp) = line.time.stamp else { panic!("a time with a zone: {}", line.raw) };
    let said = stamp.to_zoned(TimeZone::UTC).expect("HAProxy runs in UTC").timestamp();
    let happened: Timestamp = record["time"].as_str().expect("time").parse().expect("a time");
    said.as_millisecond() - happened.as_millisecond()
}

#[test]
fn every_end_in_haproxys_log_is_understood_and_the_record_of_that_connection_agrees() {
    require_root!();
    require_tool!("haproxy");
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    netns.run_in(|| {
        let mut haproxy = HaProxy::start(&configuration(), FRONT);
        let tracer = Tracer::start(&["--netns", &inode, "--pid", "haproxy", "-a", "--join-timeout", "60s"]);
        let stage = Stage::default();
        let kinds = play(&stage);
        assert_eq!(kinds.len(), N * KINDS.len());
        let without_line = || {
            let sessions = haproxy.sessions();
            kinds.iter().filter(|(client, _)| !sessions.contains_key(client)).map(|(_, kind)| kind.name).collect::<Vec<_>>()
        };
        let end = Instant::now() + DEADLINE;
        while !without_line().is_empty() {
            assert!(Instant::now() < end, "sessions without a line: {:?}", without_line());
            thread::sleep(Duration::from_millis(1));
        }
        let process = haproxy.pid();
        let sessions = haproxy.sessions();
        haproxy.stop();
        let run = tracer.stop();
        assert_eq!(run.summary["lost"]["total"], 0, "{}", run.summary);

        let mut problems = Vec::new();
        let mut distances: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for (client, kind) in &kinds {
            let (raw, parsed) = &sessions[client];
            let line = match (parsed, kind.told) {
                (Parsed::Other, None) if kind.states.iter().any(|state| raw.contains(&format!(" {state}"))) => continue,
                (Parsed::About(line), Some(_)) => line,
                _ => {
                    problems.push(format!("{}: not understood: {raw}", kind.name));
                    continue;
                }
            };
            let (side, fault) = kind.told.expect("just matched");
            let state = line.phrase.as_deref().unwrap_or_default();
            let is_right = kind.states.iter().any(|expected| state.starts_with(expected))
                && (line.side, line.fault) == (Some(side), fault)
                && line.client == Some(Remote::Tcp { addr: client.ip(), port: Some(client.port()) })
                && line.process == Some(process);
            if !is_right {
                problems.push(format!("{}: misunderstood: {raw}\n    {line:?}", kind.name));
            }
            if fault == Fault::NoConnection {
                continue;
            }
            // A server's record is found by its port alone: all N of them must agree.
            let (records, n) = match side {
                Side::Client => (record(&run, Some(port(FRONT, kind)), client.port()), 1),
                Side::Upstream => (record(&run, None, port(BACK, kind)), N),
            };
            if records.len() != n {
                problems.push(format!("{}: {} records, not {n}: {raw}", kind.name, records.len()));
            }
            problems
                .extend(records.iter().filter(|record| !agrees(fault, record)).map(|record| format!("{}: {raw}\n    {record}", kind.name)));
            let nearest = records.iter().map(|record| apart(line, record)).min_by_key(|distance| distance.abs());
            distances.entry(kind.name).or_default().extend(nearest);
        }
        for (kind, distances) in &distances {
            println!("{kind}: the line's time is {:?}..{:?} ms after the record's", distances.iter().min(), distances.iter().max());
            // A client that does not read is given up, logged, and closed a second `timeout client` later.
            let earliest = if *kind == "client-stalls" { -1_000 } else { -100 };
            if distances.iter().any(|distance| !(earliest..=250).contains(distance)) {
                problems.push(format!("{kind}: times are apart by {distances:?} ms"));
            }
        }
        let total = problems.len();
        problems.truncate(20);
        assert!(problems.is_empty(), "{total} problems, the first:\n{}", problems.join("\n"));
    });
}
