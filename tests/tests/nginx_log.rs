//! The error log of a real nginx, joined with the records while both are made: 2,003 requests of mixed
//! fate, each with a URL of its own, over kept connections, by few clients and to one upstream, so that
//! addresses tell little. The generator knows which request went over which connection, by port.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use rsttrace_tests::{
    Flow, NetNs, Run, Tracer, binary, check_record,
    nginx::Nginx,
    peers::{Beacons, abort, connect_from, listen, read_head},
    require_root, require_tool, wait_until,
};
use serde_json::Value;

const REQUESTS: usize = 2_003;
const CLIENTS: usize = 8;
const NGINX: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080);
const UPSTREAM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 9000);
/// Nobody listens there; the port tells requests apart.
const NOBODY: u16 = 20_000;
/// More than nginx can have under way to a client that does not read.
const BIG: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(2);
const SMALL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall";

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// ... and then the upstream closes the idle connection.
    UpstreamClosesIdle,
    UpstreamResets,
    UpstreamDies,
    UpstreamResetsMidway,
    UpstreamDiesMidway,
    UpstreamIsSlow,
    UpstreamRefuses,
    /// These end the client's connection.
    ClientResetsBefore,
    ClientClosesBefore,
    ClientResetsMidway,
    ClientResetsAfter,
    ClientClosesAfter,
}

use Fate::*;

/// How often each of them, in a cycle without a pattern that fits the workers or the clients.
const CYCLE: [(Fate, usize); 13] = [
    (Answered, 20),
    (UpstreamClosesIdle, 3),
    (UpstreamResets, 5),
    (UpstreamDies, 4),
    (UpstreamResetsMidway, 3),
    (UpstreamDiesMidway, 3),
    (UpstreamIsSlow, 1),
    (UpstreamRefuses, 4),
    (ClientResetsBefore, 3),
    (ClientClosesBefore, 3),
    (ClientResetsMidway, 3),
    (ClientResetsAfter, 3),
    (ClientClosesAfter, 5),
];

impl Fate {
    fn of(request: usize) -> Self {
        let total: usize = CYCLE.iter().map(|(_, n)| n).sum();
        let mut at = request * 37 % total;
        for (fate, n) in CYCLE {
            if at < n {
                return fate;
            }
            at -= n;
        }
        Answered
    }

    fn ends_connection(self) -> bool {
        matches!(self, ClientResetsBefore | ClientClosesBefore | ClientResetsMidway | ClientResetsAfter | ClientClosesAfter)
    }

    fn word(self) -> String {
        format!("{self:?}")
    }

    /// The path of a request; what upstream and configuration go by.
    fn path(self, request: usize) -> String {
        match self {
            UpstreamRefuses => format!("/refused/{}/{request}", NOBODY + request as u16),
            _ => format!("/{}/{request}", self.word()),
        }
    }
}

/// What really happened, by port.
#[derive(Default)]
struct Truth {
    /// What was asked for over each client's connection.
    clients: Connections,
    /// What arrived over each connection of nginx's to the upstream.
    upstream: Connections,
    /// Requests that have arrived at the upstream.
    arrived: Beacons<String>,
}

/// Paths asked for, by the asker's address; ports come back, so that there are several of each.
#[derive(Default)]
struct Connections(Mutex<ByAsker>);

type ByAsker = HashMap<SocketAddr, Vec<(Timestamp, Vec<String>)>>;

impl Connections {
    fn lock(&self) -> MutexGuard<'_, ByAsker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, asker: SocketAddr, at: Timestamp) {
        self.lock().entry(asker).or_default().push((at, Vec::new()));
    }

    fn note(&self, asker: SocketAddr, path: &str) {
        let mut all = self.lock();
        let (_, paths) = all.get_mut(&asker).and_then(|connections| connections.last_mut()).expect("it has begun");
        paths.push(path.to_owned());
    }

    /// What was asked for over the connection that ended at this time.
    fn paths(&self, asker: SocketAddr, end: Timestamp) -> Vec<String> {
        let all = self.lock();
        let mut connections = all.get(&asker).into_iter().flatten();
        connections.rfind(|(begun, _)| *begun <= end).map(|(_, paths)| paths.clone()).unwrap_or_default()
    }

    fn has(&self, path: &str) -> bool {
        self.lock().values().flatten().any(|(_, paths)| paths.iter().any(|asked| asked == path))
    }
}

// ---- upstream ----

fn upstream(truth: &Truth, listener: &TcpListener, stop: &AtomicBool) {
    thread::scope(|scope| {
        for stream in listener.incoming() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let accepted = Timestamp::now();
            scope.spawn(move || serve(truth, stream, accepted));
        }
    });
}

fn serve(truth: &Truth, mut stream: TcpStream, accepted: Timestamp) {
    let asker = stream.peer_addr().expect("a peer");
    truth.upstream.begin(asker, accepted);
    loop {
        let head = read_head(&mut stream);
        let Some(path) = head.split(' ').nth(1) else { return };
        truth.upstream.note(asker, path);
        truth.arrived.light(path.to_owned());
        let fate = path.split('/').nth(1).unwrap_or_default();
        let is = |wanted: Fate| fate == wanted.word();
        let half = || {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
            let mut bytes = head.into_bytes();
            bytes.resize(64 << 10, b'x');
            bytes
        };
        if is(UpstreamResets) {
            return abort(stream);
        } else if is(UpstreamDies) {
            return;
        } else if is(UpstreamResetsMidway) || is(UpstreamDiesMidway) {
            let _ = stream.write_all(&half());
            return if is(UpstreamDiesMidway) { drop(stream) } else { abort(stream) };
        } else if is(UpstreamIsSlow) || is(ClientResetsBefore) || is(ClientClosesBefore) {
            // Until nginx gives up.
            let _ = stream.read(&mut [0]);
            return;
        } else if is(ClientResetsMidway) {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; BIG]));
        } else {
            if stream.write_all(SMALL.as_bytes()).is_err() || is(UpstreamClosesIdle) {
                return;
            }
        }
    }
}

// ---- clients ----

/// Takes the next requests until one ends the connection.
fn client(truth: &Truth, number: usize, next: &AtomicUsize) {
    // Three addresses for eight clients.
    let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, (number % 3) as u8 + 1), 0);
    while next.load(Ordering::SeqCst) < REQUESTS {
        let (mut stream, own) = connect(truth, address);
        loop {
            let request = next.fetch_add(1, Ordering::SeqCst);
            if request >= REQUESTS {
                break;
            }
            let fate = Fate::of(request);
            let path = fate.path(request);
            truth.clients.note(own, &path);
            ask(&mut stream, &path);
            if fate.ends_connection() {
                end(truth, stream, fate, &path);
                break;
            }
            if !read_answer(&mut stream) {
                break;
            }
        }
    }
}

fn connect(truth: &Truth, from: SocketAddrV4) -> (TcpStream, SocketAddr) {
    let before = Timestamp::now();
    let stream = connect_from(from, NGINX).expect("connect to nginx");
    let own = stream.local_addr().expect("an address");
    truth.clients.begin(own, before);
    (stream, own)
}

fn ask(stream: &mut TcpStream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
}

fn end(truth: &Truth, mut stream: TcpStream, fate: Fate, path: &str) {
    match fate {
        // It may meet an upstream connection that is just being closed, and get an answer at once.
        ClientResetsBefore => {
            truth.arrived.wait_up_to(PATIENCE, &path.to_owned());
            abort(stream);
        }
        ClientClosesBefore => {
            truth.arrived.wait_up_to(PATIENCE, &path.to_owned());
        }
        ClientResetsMidway => {
            stream.read_exact(&mut [0; 4096]).expect("the beginning of an answer");
            abort(stream);
        }
        ClientResetsAfter => {
            read_answer(&mut stream);
            abort(stream);
        }
        _ => {
            read_answer(&mut stream);
        }
    }
}

/// Whether another request can follow.
fn read_answer(stream: &mut TcpStream) -> bool {
    let head = read_head(stream).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<u64>().ok());
    let Some(length) = length else { return false };
    let read = std::io::copy(&mut stream.take(length), &mut std::io::sink()).unwrap_or(0);
    read == length && !head.contains("connection: close")
}

// ---- nginx ----

fn configuration() -> String {
    "keepalive_timeout 75s;\nkeepalive_requests 10000;\nproxy_http_version 1.1;\nproxy_set_header Connection '';\n\
     proxy_read_timeout 300ms;\nproxy_max_temp_file_size 0;\nadd_header X-Worker $pid always;\n\
     upstream u { server 127.0.0.2:9000; keepalive 8; }\n\
     server {\nlisten 127.0.0.1:8080 reuseport backlog=4096 sndbuf=64k;\n\
     location ~ ^/refused/(\\d+)/ { proxy_pass http://127.0.0.3:$1; }\n\
     location / { proxy_pass http://u; }\n}\n"
        .to_owned()
}

fn rotate(nginx: &Nginx) {
    let log = nginx.root().join("error.log");
    fs::rename(&log, nginx.root().join("error.log.1")).expect("rename");
    nginx.signal(libc::SIGUSR1);
    wait_until("nginx has a new log", || log.exists());
}

/// Both workers get the same request in the same moment, over connections that were there before.
fn the_same_url_at_both_workers(truth: &Truth, path: &str) {
    let mut kept: BTreeMap<String, TcpStream> = BTreeMap::new();
    wait_until("both workers have accepted a connection", || {
        let (mut stream, own) = connect(truth, SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, 1), 0));
        truth.clients.note(own, "/Answered/worker");
        ask(&mut stream, "/Answered/worker");
        let head = read_head(&mut stream);
        stream.read_exact(&mut [0; 5]).expect("an answer");
        let worker = head.lines().find_map(|line| line.strip_prefix("X-Worker: ")).expect("a worker").to_owned();
        kept.entry(worker).or_insert(stream);
        kept.len() == 2
    });
    for stream in kept.values_mut() {
        truth.clients.note(stream.local_addr().expect("an address"), path);
        ask(stream, path);
    }
    for stream in kept.values_mut() {
        read_answer(stream);
    }
}

const SAME: &str = "/UpstreamResets/same";

/// All requests, with the log rotated in the middle; returns when nginx has let go of everything.
fn load(nginx: &Nginx, truth: &Truth) {
    let listener = listen(UPSTREAM, 4096).expect("the upstream's listener");
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let upstream = scope.spawn(|| upstream(truth, &listener, &stop));
        the_same_url_at_both_workers(truth, SAME);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn({
                    let next = &next;
                    move || client(truth, number, next)
                })
            })
            .collect();
        wait_until("half of the requests are made", || next.load(Ordering::SeqCst) > REQUESTS / 2);
        rotate(nginx);
        let failed: Vec<_> = clients.into_iter().filter_map(|client| client.join().err()).collect();
        // The pool's idle connections too, so that nobody waits for ever.
        stop.store(true, Ordering::SeqCst);
        nginx.signal(libc::SIGHUP);
        drop(TcpStream::connect(UPSTREAM));
        upstream.join().expect("the upstream");
        assert!(failed.is_empty(), "{} clients failed", failed.len());
    });
    nginx.wait_idle();
}

// ---- what the tracer made of it ----

/// The paths that were asked for over a connection, as far as they arrived.
fn paths(truth: &Truth, record: &Value) -> Vec<String> {
    let Some(flow) = Flow::in_record(record) else { return Vec::new() };
    let end: Timestamp = record["time"].as_str().and_then(|time| time.parse().ok()).expect("a time");
    if flow.local.port() == NGINX.port() {
        truth.clients.paths(flow.remote, end)
    } else if flow.remote == SocketAddr::V4(UPSTREAM) {
        truth.upstream.paths(flow.local, end)
    } else {
        let port = flow.remote.port();
        Vec::from_iter((port >= NOBODY).then(|| UpstreamRefuses.path(usize::from(port - NOBODY))))
    }
}

/// The path of the request that a connection ended with.
fn last_path(truth: &Truth, record: &Value) -> Option<String> {
    paths(truth, record).pop()
}

fn path_of(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

/// The upstream closed the idle connection while nginx sent this over it: nobody there ever read it.
fn crossed_the_close(truth: &Truth, record: &Value, told: &str) -> bool {
    let causes = ["write-after-peer-close", "keepalive-race", "closed-before-answer", "server-abort-before-response"];
    let closed = record["cause"].as_str().is_some_and(|cause| causes.contains(&cause));
    closed && !paths(truth, record).iter().any(|path| path == told) && truth.clients.has(told)
}

/// What is wrong with the line that a record was given.
fn mismatch(truth: &Truth, record: &Value) -> Option<String> {
    let log = &record["log"];
    let line = log["line"].as_str().expect("a line");
    let Some(expected) = last_path(truth, record) else { return Some("a line for a connection of nobody's".to_owned()) };
    // Lines about idle connections name no request.
    let told = log["request"].as_str().map(path_of);
    if told.is_some_and(|told| told != expected && !crossed_the_close(truth, record, told)) {
        return Some(format!("{expected} was asked for"));
    }
    let worker = line.split_once("] ").and_then(|(_, rest)| rest.split_once('#')).map(|(worker, _)| worker);
    if worker != Some(&record["owner"]["tgid"].to_string()) {
        return Some("another worker's".to_owned());
    }
    let side = if record["local"]["port"] == NGINX.port() { "client" } else { "upstream" };
    (log["side"] != side).then(|| "the other side".to_owned())
}

fn told(record: &Value) -> String {
    let parts = ["/time", "/end", "/cause", "/observer/errno", "/observer/syscall", "/log/line"];
    parts.iter().filter_map(|part| record.pointer(part)).map(Value::to_string).collect::<Vec<_>>().join(" ")
}

/// No wrong pair, and an explanation for what is no pair. Returns how many of each there are.
fn assert_all_explained(truth: &Truth, records: &[Value]) -> BTreeMap<&'static str, usize> {
    let mut problems = Vec::new();
    let mut found: BTreeMap<&'static str, usize> = BTreeMap::new();
    for record in records {
        let kind = match record["record"].as_str() {
            Some("teardown") if !record["log"].is_null() => {
                problems.extend(mismatch(truth, record).map(|problem| format!("{problem}: {}", told(record))));
                "joined"
            }
            Some("teardown") if record["log_candidates"] != serde_json::json!([]) => {
                let expected = last_path(truth, record).unwrap_or_default();
                let candidates = record["log_candidates"].as_array().expect("an array");
                println!("ambiguous, {expected}: {}, {} candidates", told(record), candidates.len());
                // The right one is among them, unless nginx had nothing to say about this one.
                if !candidates.iter().any(|line| line.as_str().is_some_and(|line| line.contains(&format!("{expected} ")))) {
                    *found.entry("ambiguous, none of them right").or_default() += 1;
                }
                "ambiguous"
            }
            Some("teardown") if !record["observer"].is_null() => {
                let path = last_path(truth, record).unwrap_or_default();
                // A RST on a connection that waits for the next request is no error to nginx's upstream pool, and
                // sendfile() and writev() may have sent something before it.
                let unsaid = path.contains(&ClientResetsMidway.word()) || path.contains(&ClientResetsAfter.word());
                if !unsaid {
                    problems.push(format!("an error without a line, {path}: {}", told(record)));
                }
                "errors that nginx did not log"
            }
            Some("log-line") => {
                problems.push(format!("a line without a record: {}", record["log"]["line"]));
                "lines without a record"
            }
            _ => continue,
        };
        *found.entry(kind).or_default() += 1;
    }
    let total = problems.len();
    problems.truncate(20);
    assert!(problems.is_empty(), "{found:?}; {total} problems, the first:\n{}", problems.join("\n"));
    found
}

fn of_fate<'a>(run: &'a Run, truth: &'a Truth, fate: Fate) -> impl Iterator<Item = &'a Value> {
    let part = format!("/{}/", if fate == UpstreamRefuses { "refused".to_owned() } else { fate.word() });
    run.teardowns().filter(move |record| last_path(truth, record).is_some_and(|path| path.starts_with(&part)))
}

#[test]
fn every_line_of_a_busy_proxys_log_goes_with_the_connection_that_it_is_about() {
    require_root!();
    require_tool!("nginx");
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    netns.run_in(|| {
        let mut nginx = Nginx::start(Nginx::directory(), 2, &configuration());
        let log = nginx.root().join("error.log");
        let log = log.to_str().expect("a path");
        let tracer = Tracer::start(&["--netns", &inode, "--pid", "nginx", "--error-log", log, "--unmatched", "--fin"]);
        let truth = Truth::default();
        load(&nginx, &truth);
        nginx.stop();
        let run = tracer.stop();
        assert_eq!(run.summary["lost"]["total"], 0, "{}", run.summary);

        let found = assert_all_explained(&truth, &run.records);
        println!("{found:?}; {}", run.summary["log"]);
        let lines = &run.summary["log"];
        let of = |what: &str| lines[what].as_u64().expect("a number") as usize;
        assert_eq!(of("ends"), of("joined") + of("ambiguous") + of("without_record") + of("no_connection"), "{lines}");
        assert!(of("ambiguous") * 20 <= of("ends"), "{lines}");
        assert_eq!((of("without_record"), of("no_connection"), of("malformed"), of("too_long")), (0, 0, 0, 0), "{lines}");

        // Both halves of the log were read, and all that were made to fail were told of.
        for fate in [
            UpstreamResets,
            UpstreamDies,
            UpstreamResetsMidway,
            UpstreamDiesMidway,
            UpstreamIsSlow,
            UpstreamRefuses,
            ClientResetsBefore,
            ClientClosesBefore,
        ] {
            let made = (0..REQUESTS).filter(|request| Fate::of(*request) == fate).count();
            let side = if fate.ends_connection() { "client" } else { "upstream" };
            let told = of_fate(&run, &truth, fate).filter(|record| record["log"]["side"] == side).count();
            let unsure = of_fate(&run, &truth, fate).filter(|record| record["log_candidates"] != serde_json::json!([])).count();
            assert!(told + unsure >= made, "{fate:?}: {told} told and {unsure} ambiguous of {made}");
        }
        // The same request in the same second at both workers.
        let same: Vec<_> =
            run.teardowns().filter(|record| record["log"]["request"].as_str().is_some_and(|request| path_of(request) == SAME)).collect();
        let mut workers: Vec<_> = same.iter().filter_map(|record| record["owner"]["tgid"].as_u64()).collect();
        workers.sort_unstable();
        workers.dedup();
        assert_eq!(workers.len(), 2, "{same:?}");

        assert_the_same_offline(&run, nginx.root(), &truth);
    });
}

/// Saved records and the saved log, without the times at which lines were read.
fn assert_the_same_offline(run: &Run, root: &Path, truth: &Truth) {
    let events = root.join("events.jsonl");
    let saved: String = run.records.iter().filter(|record| record["record"] != "log-line").map(|record| format!("{record}\n")).collect();
    fs::write(&events, saved).expect("a file");
    let mut command = Command::new(binary());
    command.args(["correlate", "--json", "--unmatched", "--log-zone", "UTC", "--events"]).arg(&events);
    let output =
        command.arg("--error-log").arg(root.join("error.log.1")).arg("--error-log").arg(root.join("error.log")).output().expect("rsttrace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for record in &records {
        check_record(record).unwrap_or_else(|problem| panic!("the contract is broken: {problem}\nrecord: {record}"));
    }
    let found = assert_all_explained(truth, &records);
    println!("offline: {found:?}");
    let (live, offline) = (run.teardowns().count(), records.iter().filter(|record| record["record"] == "teardown").count());
    assert_eq!(live, offline, "nothing is lost");
}

/// How many records name their request, and how many that moved payload do not.
fn assert_right_requests(truth: &Truth, run: &Run) -> (usize, usize) {
    let mut problems = Vec::new();
    let (mut named, mut unnamed) = (0, 0);
    for record in run.teardowns().filter(|record| record["owner"]["comm"] == "nginx") {
        let Some(request) = record["http"]["request"].as_str() else {
            unnamed += usize::from(record["bytes"]["received"] != 0 || record["bytes"]["sent"] != 0);
            continue;
        };
        named += 1;
        let (expected, told) = (last_path(truth, record).unwrap_or_default(), path_of(request));
        if told != expected && !crossed_the_close(truth, record, told) {
            problems.push(format!("{expected} was asked for, not {told}: {}", self::told(record)));
        }
    }
    let total = problems.len();
    problems.truncate(20);
    assert!(problems.is_empty(), "{total} problems, the first:\n{}", problems.join("\n"));
    (named, unnamed)
}

#[test]
fn the_same_requests_are_named_by_http_without_any_log() {
    require_root!();
    require_tool!("nginx");
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    netns.run_in(|| {
        let mut nginx = Nginx::start(Nginx::directory(), 2, &configuration());
        let tracer = Tracer::start(&["--netns", &inode, "--pid", "nginx", "--http", "--fin"]);
        let truth = Truth::default();
        load(&nginx, &truth);
        nginx.stop();
        let run = tracer.stop();
        assert_eq!(run.summary["lost"]["total"], 0, "{}", run.summary);
        let (named, unnamed) = assert_right_requests(&truth, &run);
        println!("{named} records name their request, {unnamed} do not");
        assert!(named > REQUESTS / 2 && unnamed * 50 <= named, "{named} named, {unnamed} not");
    });
}
