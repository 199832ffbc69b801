//! What the verdicts say of a real nginx between clients and upstreams: 101 connections of each
//! scenario, and every record of all four sockets of an exchange. Two tracers watch: one as it is
//! by default, and one that shows orderly ends too.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use rsttrace_tests::{
    Actor, Direction, Fate, Flow, Link, NetNs, Tracer,
    nginx::Nginx,
    peers::{Beacons, abort, connect_from, listen, read_head, set},
    require_root, require_tool, wait_until,
};
use serde_json::{Value, json};

/// Of each scenario.
const N: usize = 101;
const PLAIN: u16 = 8080;
const TLS: u16 = 8443;
/// And above: a port each, where nginx keeps a pool for each.
const UPSTREAM: u16 = 9000;
const SMALL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\na small file, whole\n";
const BIG: usize = 2 << 20;

// ---- what is expected of records ----

/// The four sockets of a proxied exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Half {
    /// The client's own.
    Client,
    /// nginx's, towards its client.
    Front,
    /// nginx's, towards its upstream.
    Back,
    /// The upstream's own.
    Upstream,
}

impl Half {
    fn of(record: &Value) -> Option<Self> {
        let flow = Flow::in_record(record)?;
        let server = |port| matches!(port, PLAIN | TLS);
        let upstream = |port| (UPSTREAM..UPSTREAM + 1000).contains(&port);
        match (flow.local.port(), flow.remote.port()) {
            (local, _) if server(local) => Some(Self::Front),
            (local, _) if upstream(local) => Some(Self::Upstream),
            (_, remote) if server(remote) => Some(Self::Client),
            (_, remote) if upstream(remote) => Some(Self::Back),
            _ => None,
        }
    }

    fn role(self) -> &'static str {
        if matches!(self, Self::Client | Self::Back) { "client" } else { "server" }
    }
}

/// Everything that both tracers said of a scene.
struct Ends {
    default: Vec<Value>,
    all: Vec<Value>,
    workers: BTreeSet<u32>,
    problems: Vec<String>,
}

impl Ends {
    /// 101 ends of this half and kind show by default, and each is like this. `end` is `stray` for
    /// RSTs without a socket.
    fn show(&mut self, half: Half, end: &str, expected: &Value) {
        self.show_if(half, end, expected, |_| None);
    }

    /// The same with a check of what differs from record to record.
    fn show_if(&mut self, half: Half, end: &str, expected: &Value, wrong: impl Fn(&Value) -> Option<String>) {
        self.take(N, half, end, true, expected, wrong);
    }

    /// 101 ends of this half are in order, and show with `-a` only.
    fn hide(&mut self, half: Half, expected: &Value) {
        self.take(N, half, "fin", false, expected, |_| None);
    }

    fn take(&mut self, n: usize, half: Half, end: &str, by_default: bool, expected: &Value, problem: impl Fn(&Value) -> Option<String>) {
        let mut groups: BTreeMap<String, (usize, Value)> = BTreeMap::new();
        for (how, n) in [("by default", if by_default { n } else { 0 }), ("with -a", n)] {
            let records = if how == "with -a" { &mut self.all } else { &mut self.default };
            // What is retransmitted is answered again.
            let mut met = HashSet::new();
            let mut first = |record: &Value| end != "stray" || met.insert(Flow::in_record(record));
            let taken: Vec<_> =
                records.extract_if(.., |record| Half::of(record) == Some(half) && kind(record) == end && first(record)).collect();
            if how == "with -a" {
                tell(half, &taken, by_default);
            }
            if taken.len() != n {
                self.problems.push(format!("{half:?}, {end}, {how}: {} records, not {n}", taken.len()));
            }
            for record in taken {
                let mut wrong = Vec::new();
                differ("", expected, &record, &mut wrong);
                wrong.extend(self.not_as_always(half, &record));
                wrong.extend(problem(&record));
                if !wrong.is_empty() {
                    groups.entry(format!("{half:?}, {end}, {how}: {}", wrong.join("; "))).or_insert((0, record)).0 += 1;
                }
            }
        }
        self.problems.extend(groups.into_iter().map(|(what, (count, record))| format!("{count} x {what}\n    {record}")));
    }

    /// What holds for whatever ends: its role, and that it and its error are those of one worker.
    fn not_as_always(&self, half: Half, record: &Value) -> Option<String> {
        let tgid = |task: &str| record[task]["tgid"].as_u64().map(|tgid| tgid as u32);
        let nginx = matches!(half, Half::Front | Half::Back) && record["phase"] != "accepting";
        match (kind(record), tgid("owner"), tgid("observer")) {
            ("stray", owner, observer) => (owner.is_some() || observer.is_some()).then(|| "somebody has a stray RST".to_owned()),
            _ if record["role"] != half.role() => Some(format!("its role is {}", record["role"])),
            (_, Some(owner), observer) if nginx && self.workers.contains(&owner) => {
                let wrong =
                    observer.is_some_and(|observer| observer != owner || record["seen"] != "yes" || record["observer"]["comm"] != "nginx");
                wrong.then(|| "not observed by its worker".to_owned())
            }
            _ => nginx.then(|| "no worker of nginx has it".to_owned()),
        }
    }

    /// By default nothing else was shown, and with `-a` only what ended in order; then everything
    /// that was wrong.
    #[track_caller]
    fn nothing_else(mut self) {
        // What is under way, or retransmitted under load, meets a connection that is gone.
        let late = |record: &mut Value| kind(record) == "stray" && record["cause"] == "no-connection";
        self.default.retain_mut(|record| !late(record));
        self.all.retain_mut(|record| !late(record));
        self.problems.extend(self.default.iter().map(|record| format!("another record by default: {record}")));
        for half in [Half::Client, Half::Front, Half::Back, Half::Upstream] {
            let others: Vec<_> = self.all.extract_if(.., |record| Half::of(record) == Some(half)).collect();
            tell(half, &others, false);
            let in_order = |record: &&Value| kind(record) == "fin" && record["cause"] == "orderly" && record["harm"] == "none";
            self.problems.extend(others.iter().filter(|record| !in_order(record)).map(|record| format!("{half:?} not in order: {record}")));
        }
        self.problems.extend(self.all.iter().map(|record| format!("of nobody: {record}")));
        let total = self.problems.len();
        self.problems.truncate(12);
        assert!(self.problems.is_empty(), "{total} problems:\n{}", self.problems.join("\n"));
    }
}

fn kind(record: &Value) -> &str {
    if record["bytes"].is_null() { "stray" } else { record["end"].as_str().unwrap_or_default() }
}

/// For people: what was seen.
fn tell(half: Half, records: &[Value], by_default: bool) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for record in records {
        let words = ["end", "state", "phase", "cause", "initiator", "harm"].map(|key| record[key].as_str().unwrap_or("-")).join(" | ");
        let peer = if record["peer"].is_null() { "" } else { " +peer" };
        *seen.entry(format!("{words}{peer} | {}", form(record))).or_default() += 1;
    }
    for (what, count) in seen {
        println!("{count:>4} {half:?}{}: {what}", if by_default { "" } else { " (-a)" });
    }
}

/// Where a record is not as expected; verdicts are compared by their [`form`].
fn differ(path: &str, expected: &Value, actual: &Value, wrong: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(fields), Value::Object(_)) => {
            for (key, value) in fields {
                match (key.as_str(), value.as_str()) {
                    ("verdict", Some(words)) if form(actual) != words => wrong.push(format!("\"{}\", not \"{words}\"", form(actual))),
                    ("verdict", _) => {}
                    _ => differ(&format!("{path}.{key}"), value, &actual[key.as_str()], wrong),
                }
            }
        }
        _ if expected == actual => {}
        _ => wrong.push(format!("{path} is {actual}, not {expected}")),
    }
}

/// A record's verdict with `WE` and `PEER` for the two ends, `#` for numbers, and `T` for units of time.
fn form(record: &Value) -> String {
    let mut words = record["verdict"].as_str().unwrap_or("no verdict").to_owned();
    let unnamed = if record["role"] == "client" { "the server" } else { "the client" };
    let mut names = [(&record["owner"]["comm"], "WE"), (&record["peer"]["comm"], "PEER")];
    // One may begin like the other.
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.as_str().map_or(0, str::len)));
    for (name, stands_for) in names {
        words = name.as_str().filter(|name| !name.is_empty()).map_or(words.clone(), |name| words.replace(name, stands_for));
    }
    words = words.replace("our process", "WE").replace(unnamed, "PEER");
    let mut out = String::new();
    for word in words.split_inclusive(' ') {
        let (paren, word) = word.strip_prefix('(').map_or(("", word), |rest| ("(", rest));
        out.push_str(paren);
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        let unit =
            ["ns", "us", "ms", "s"].iter().any(|unit| word.trim_end_matches([' ', ',', ';', ')', ':']) == *unit) && out.ends_with("# ");
        match word {
            _ if is_number => out.extend(["#", word.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, ',' | '.'))]),
            _ if unit => out.extend(["T", word.trim_start_matches(|c: char| c.is_ascii_alphabetic())]),
            _ => out.push_str(word),
        }
    }
    // Under load a second passes.
    out.replace("race, idle # T)", "race)")
}

fn number(record: &Value, pointer: &str) -> u64 {
    record.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// Those in a verdict.
fn numbers_of(record: &Value) -> Vec<u64> {
    let words = record["verdict"].as_str().unwrap_or_default().replace(',', "");
    words.split([' ', '(', ')', ';']).filter_map(|word| word.parse().ok()).collect()
}

/// An object with more fields.
fn with(some: &Value, more: Value) -> Value {
    let mut all = some.clone();
    all.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    all
}

/// This process as records name it.
fn me() -> String {
    fs::read_to_string("/proc/self/comm").expect("comm").trim().to_owned()
}

// ---- scenes ----

/// A process that is about to be another has all descriptors of the thread that starts it, and its
/// exec() may be what closes them. So that no test has those of another, each has a table of its own.
fn own_descriptors() {
    // SAFETY: what this thread and its children have open they keep.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0, "{}", std::io::Error::last_os_error());
}

/// Where a scene is played.
struct Stage {
    nginx: Nginx,
    /// What threads tell each other: ("what", instance).
    happened: Arc<Beacons<(&'static str, usize)>>,
}

/// Plays a scene with nginx in a namespace of its own.
fn scene(http: &str, play: impl FnOnce(&mut Stage) + Send) -> Ends {
    own_descriptors();
    let netns = NetNs::new();
    scene_in(&netns, &[&netns], http, play)
}

/// Plays a scene with nginx in one of several namespaces.
fn scene_in(home: &NetNs, all: &[&NetNs], http: &str, play: impl FnOnce(&mut Stage) + Send) -> Ends {
    let inodes: Vec<_> = all.iter().map(|netns| netns.inode()).collect();
    let only = inodes[0].to_string();
    // The machine is shared: other tests' storms must not crowd out our events.
    let mut args = vec!["--join-timeout", "30s", "--buffer", "32M"];
    if inodes.len() == 1 {
        args.extend(["--netns", &only]);
    }
    let with_all = [&args[..], &["-a"]].concat();
    home.run_in(|| {
        let root = Nginx::directory();
        prepare_tls(&root, http);
        fs::write(root.join("files/small"), "a small file, whole\n").expect("a file");
        fs::File::create(root.join("files/big")).and_then(|file| file.set_len(BIG as u64)).expect("a file");
        let nginx = Nginx::start(root, 2, http);
        let tracers = at_once([&args, &with_all], |args| Tracer::start(args));
        let mut workers: BTreeSet<_> = nginx.workers().into_iter().collect();
        let mut stage = Stage { nginx, happened: Arc::default() };
        play(&mut stage);
        workers.extend(stage.nginx.workers());
        stage.nginx.wait_idle();
        let runs = at_once(tracers, Tracer::stop);
        let [default, all] = runs.map(|run| {
            assert_eq!((&run.summary["lost"]["total"], &run.summary["evicted"]), (&json!(0), &json!(0)), "{}", run.summary);
            let here = |record: &&Value| inodes.iter().any(|inode| record["netns"] == *inode);
            let ours: Vec<_> = run.teardowns().filter(here).cloned().collect();
            // A RST that a listening socket sent bears no namespace: it is known by its connection.
            let flows: HashSet<_> = ours.iter().filter_map(Flow::in_record).collect();
            let nowhere = run
                .teardowns()
                .filter(|record| record["netns"].is_null() && Flow::in_record(record).is_some_and(|flow| flows.contains(&flow)));
            ours.iter().chain(nowhere).cloned().collect()
        });
        Ends { default, all, workers, problems: Vec::new() }
    })
}

/// Does two things of one kind at the same time.
fn at_once<T: Send, U: Send>(things: [T; 2], act: impl Fn(T) -> U + Sync) -> [U; 2] {
    thread::scope(|scope| {
        let act = &act;
        let threads = things.map(|thing| scope.spawn(move || act(thing)));
        threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Runs something of each of 101 instances, all at once.
fn crowd<T: Send>(act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let act = &act;
        let threads: Vec<_> = (1..=N).map(|i| scope.spawn(move || act(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn http(locations: &str) -> String {
    format!(
        "keepalive_timeout 75s;\nproxy_http_version 1.1;\nproxy_set_header Connection '';\n\
         server {{\nlisten {PLAIN} backlog=4096;\n{locations}\n}}\n"
    )
}

fn proxy(extra: &str) -> String {
    http(&format!("location / {{ proxy_pass http://127.0.0.1:{UPSTREAM}; {extra} }}"))
}

const FILES: &str = "location /files/ { root .; }";

fn connect_to(port: u16) -> TcpStream {
    let localhost = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    connect_from(localhost(0), localhost(port)).expect("connect to nginx")
}

fn connect() -> TcpStream {
    connect_to(PLAIN)
}

fn request(path: &str, last: bool) -> String {
    let close = if last { "Connection: close\r\n" } else { "" };
    // nginx's own to its upstream has no more headers, and must be longer than a goodbye.
    format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n{close}\r\n")
}

fn send(mut to: impl Write, bytes: impl AsRef<[u8]>) {
    to.write_all(bytes.as_ref()).and_then(|()| to.flush()).expect("send");
}

/// Connects to nginx and asks for `/i`.
fn ask(i: usize, last: bool) -> TcpStream {
    let stream = connect();
    send(&stream, request(&format!("/{i}"), last));
    stream
}

/// A connection over which a small file has come.
fn exchanged() -> TcpStream {
    let mut stream = connect();
    send(&stream, request("/files/small", false));
    read_response(&mut stream);
    stream
}

/// Reads a response with Content-Length to its end.
fn read_response(stream: &mut TcpStream) {
    let head = read_head(stream);
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    stream.read_exact(&mut vec![0; length.expect("a length")]).expect("a whole response");
}

/// Reads to the end of file, and gives the status.
fn read_status(mut stream: TcpStream) -> String {
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("nginx's answer");
    String::from_utf8_lossy(&response).split(' ').nth(1).unwrap_or("none").to_owned()
}

/// Serves connections by a script, each on a thread of its own, until dropped.
struct Upstream {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn new(script: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        Self::at(UPSTREAM, script)
    }

    fn at(port: u16, script: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        let listener = listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), 4096).expect("the upstream's listener");
        let accepting = listener.try_clone().expect("dup");
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = accepting.accept() {
                let script = script.clone();
                connections.push(thread::spawn(move || script(stream)));
            }
            connections.into_iter().for_each(|connection| connection.join().expect("an upstream"));
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // SAFETY: no memory involved.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || joined.is_none_or(|result| result.is_ok()), "an upstream has failed");
    }
}

/// The instance that a request is for.
fn asked_for(head: &str) -> usize {
    head.split([' ', '/']).find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number in {head:?}"))
}

/// Waits for the peer's end, then closes.
fn wait_for_end(mut stream: TcpStream) {
    while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: no memory involved; a child of nginx's master, which lives.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Rows of the namespace's table of sockets, by columns.
fn sockets() -> Vec<Vec<String>> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    table.lines().skip(1).map(|row| row.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Established connections that the workers have accepted and still hold.
fn accepted(nginx: &Nginx) -> usize {
    let open: HashSet<_> = sockets().into_iter().filter(|row| row[3] == "01").map(|row| format!("socket:[{}]", row[9])).collect();
    let files = nginx.workers().into_iter().flat_map(|worker| fs::read_dir(format!("/proc/{worker}/fd")).into_iter().flatten().flatten());
    files.filter_map(|file| fs::read_link(file.path()).ok()).filter(|target| open.contains(&*target.to_string_lossy())).count()
}

/// Whether nginx has written more to each of these clients than its socket gets rid of.
fn all_wait(clients: &[TcpStream]) -> bool {
    let waiting = |row: &Vec<String>| u64::from_str_radix(row[4].split(':').next()?, 16).ok();
    let queues: BTreeMap<_, _> = sockets().iter().filter_map(|row| Some((format!("{} {}", row[1], row[2]), waiting(row)?))).collect();
    clients.iter().all(|client| {
        let port = client.local_addr().expect("connected").port();
        queues.get(&format!("0100007F:{PLAIN:04X} 0100007F:{port:04X}")).is_some_and(|waiting| *waiting > 32 << 10)
    })
}

// ---- keep-alive ----

/// The arrangement on the link, which holds a hundred segments of a hundred connections back, now and
/// then misses its deadline on a loaded machine, why is not known: then it is made once more. What
/// the records say is judged after it, and once.
fn arranged(scene: impl Fn() -> Ends) -> Ends {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(&scene)).unwrap_or_else(|_| scene())
}

/// The upstream's FINs and nginx's requests pass each other on a slow link; nginx sees the FIN,
/// closes, and asks again over a new connection. The RST that answers the request comes to a socket
/// that nobody holds any more, and nginx's FIN to none at all.
fn keepalive_race(far: bool) -> Ends {
    own_descriptors();
    let link = Link::new(Duration::from_millis(20));
    if far {
        link.renumber();
    }
    let pools: String =
        (1..=N).map(|i| format!("upstream u{i} {{ server {}:{}; keepalive 1; }}\n", link.addr_b, usize::from(UPSTREAM) + i)).collect();
    let http = pools + &http("location ~ ^/(\\d+)$ { proxy_pass http://u$1; }");
    scene_in(&link.a, &[&link.a, &link.b], &http, |stage| {
        let happened = Arc::clone(&stage.happened);
        let script = move |mut stream: TcpStream| {
            let i = asked_for(&read_head(&mut stream));
            if happened.wait_up_to(Duration::ZERO, &("closed", i)) {
                return send(&stream, SMALL.replacen("\r\n", "\r\nConnection: close\r\n", 1));
            }
            send(&stream, SMALL);
            happened.wait(&("enough", 0));
            drop(stream);
            happened.light(("closed", i));
        };
        let upstreams: Vec<_> = link.b.run_in(|| (1..=N as u16).map(|i| Upstream::at(UPSTREAM + i, script.clone())).collect());
        let clients = crowd(|i| {
            let mut stream = ask(i, false);
            read_response(&mut stream);
            stream
        });
        for way in [Direction::AtoB, Direction::BtoA] {
            link.wait_empty(way);
            link.hold(way, true);
        }
        let [requests, fins] = [(); 2].map(|()| Arc::new(Beacons::default()));
        let seen = [&requests, &fins].map(Arc::clone);
        link.police(Direction::AtoB, move |segment| {
            for (seen, _) in seen.iter().zip([segment.payload > 0, segment.fin]).filter(|(_, is)| *is) {
                seen.light(usize::from(segment.to.port() - UPSTREAM));
            }
            Fate::Pass
        });
        stage.happened.light(("enough", 0));
        (1..=N).for_each(|i| stage.happened.wait(&("closed", i)));
        (1..).zip(&clients).for_each(|(i, stream)| send(stream, request(&format!("/{i}"), true)));
        (1..=N).for_each(|i| requests.wait(&i));
        link.hold(Direction::BtoA, false);
        (1..=N).for_each(|i| fins.wait(&i));
        link.hold(Direction::AtoB, false);
        clients.into_iter().for_each(|stream| assert_eq!(read_status(stream), "200"));
        stage.nginx.wait_idle();
        drop(upstreams);
    })
}

/// The far half as well as the near one; what the verdicts differ in is whether both are known.
fn check_race(mut ends: Ends, back: Value, upstream: Value) {
    let race = json!({
        "state": "LAST_ACK", "phase": "closing", "cause": "keepalive-race", "initiator": "peer-application", "seen": "never",
        "observer": null, "closer": { "comm": "nginx", "syscall": "close" }, "fin": { "first": "remote" },
        "evidence": { "last_speaker": "local", "reused": true },
    });
    let late = json!({
        "state": "FIN_WAIT1", "phase": "after-local-fin", "cause": "data-after-close", "initiator": "local-kernel", "harm": "lost",
        "verdict": "PEER sent # B after WE had closed",
    });
    let stray = json!({
        "cause": "no-connection", "initiator": "local-kernel", "harm": "none",
        "verdict": "a segment arrived for a connection that this host does not know",
    });
    ends.show(Half::Back, "reset-received", &with(&race, back));
    ends.show(Half::Upstream, "reset-sent", &with(&late, upstream));
    ends.show(Half::Upstream, "stray", &stray);
    ends.nothing_else();
}

#[test]
fn a_request_that_races_with_a_far_upstreams_close_is_a_keepalive_race() {
    require_root!();
    require_tool!("nginx");
    let words = "PEER closed the connection while our request was on its way (keep-alive race): # B unanswered; # B not confirmed";
    check_race(arranged(|| keepalive_race(true)), json!({ "harm": "possible", "peer": null, "verdict": words }), json!({ "peer": null }));
}

#[test]
fn a_keepalive_race_between_two_namespaces_of_one_host_has_both_halves() {
    require_root!();
    require_tool!("nginx");
    let words = "PEER closed the connection while our request was on its way (keep-alive race): # B unanswered; # B not delivered";
    let back = json!({ "harm": "lost", "peer": { "comm": me() }, "verdict": words });
    check_race(arranged(|| keepalive_race(false)), back, json!({ "peer": { "comm": "nginx" } }));
}

// ---- clients that abort ----

/// What both halves of an abort by SO_LINGER 0 have that did no harm, here and there.
fn harmless_abort(mut ends: Ends, both: &Value, front: Value) {
    let both = with(both, json!({ "state": "ESTABLISHED", "harm": "none", "bytes": { "unsent": 0, "unread": 0 } }));
    let at_nginx = json!({
        "initiator": "peer-application", "observer": { "syscall": "recvfrom", "errno": "ECONNRESET" },
        "peer": { "comm": me() },
    });
    let at_client = json!({
        "cause": "linger-zero", "initiator": "local-application", "peer": { "comm": "nginx" },
        "verdict": "WE aborted the connection (SO_LINGER #)",
    });
    ends.show(Half::Front, "reset-received", &with(&with(&both, at_nginx), front));
    ends.show(Half::Client, "reset-sent", &with(&both, at_client));
    ends.nothing_else();
}

#[test]
fn a_client_that_aborts_after_the_whole_response_does_no_harm() {
    require_root!();
    require_tool!("nginx");
    let ends = scene(&http(FILES), |_| drop(crowd(|_| abort(exchanged()))));
    let words = "PEER aborted after all that we sent (# B) was acknowledged by its host";
    harmless_abort(ends, &json!({ "phase": "after-response" }), json!({ "cause": "peer-abort-after-response", "verdict": words }));
}

#[test]
fn a_client_that_aborts_an_idle_connection_does_no_harm() {
    require_root!();
    require_tool!("nginx");
    let ends = scene(&http(FILES), |_| {
        let idle = crowd(|_| exchanged());
        thread::sleep(Duration::from_millis(1_200));
        idle.into_iter().for_each(abort);
    });
    let words = "PEER aborted the idle connection, idle # T";
    harmless_abort(ends, &json!({ "phase": "idle" }), json!({ "cause": "peer-abort-idle", "verdict": words }));
}

#[test]
fn a_client_that_aborts_a_download_loses_the_rest() {
    require_root!();
    require_tool!("nginx");
    let mut ends = scene(&http(FILES).replace("backlog", "sndbuf=64k backlog"), |_| {
        let clients = crowd(|_| {
            let mut stream = connect();
            set(&stream, libc::SOL_SOCKET, libc::SO_RCVBUF, &4096).expect("SO_RCVBUF");
            send(&stream, request("/files/big", false));
            stream.read_exact(&mut [0; 4096]).expect("the beginning of a file");
            stream
        });
        wait_until("nginx has more than fits", || all_wait(&clients));
        clients.into_iter().for_each(abort);
    });
    let both = json!({ "state": "ESTABLISHED", "phase": "mid-response", "harm": "lost" });
    let front = json!({
        "cause": "peer-abort-mid-response", "initiator": "peer-application", "peer": { "comm": me() },
        "verdict": "PEER aborted in the middle of our response, # of # B acknowledged; # B not delivered; # B of ours never read there",
    });
    ends.show_if(Half::Front, "reset-received", &with(&both, front), |record| {
        let [sent, acked, unacked, unsent] = ["sent", "acked", "unacked", "unsent"].map(|key| number(record, &format!("/bytes/{key}")));
        // What the last acknowledgement did not tell, the RST may.
        let arrived = acked.max(number(record, "/evidence/rst/acked"));
        let right = [arrived, sent + unsent, sent + unsent - arrived, number(record, "/peer/unread")];
        (numbers_of(record) != right || arrived > acked + unacked || unsent == 0).then(|| format!("its numbers are not {right:?}"))
    });
    // For close() unread data weigh more than SO_LINGER.
    let client = json!({
        "cause": "close-with-unread-data", "initiator": "local-application", "peer": { "comm": "nginx" }, "reason": "TCP_ABORT_ON_CLOSE",
        "verdict": "WE closed with # B from PEER unread",
    });
    ends.show_if(Half::Client, "reset-sent", &with(&both, client), |record| {
        let unread = number(record, "/bytes/unread");
        (unread == 0 || numbers_of(record) != [unread]).then(|| "another number of unread bytes".to_owned())
    });
    ends.nothing_else();
}

// ---- upstreams that die ----

/// An upstream process takes 101 connections, reads the requests or lets them wait, and is killed.
fn killed_upstream(reads: bool) -> Ends {
    scene(&proxy(""), |_| {
        let mut upstream = Actor::spawn("upstream");
        let (listener, _) = upstream.listen(&format!("127.0.0.1:{UPSTREAM} 4096"));
        let clients = crowd(|i| ask(i, true));
        for _ in 0..N {
            let fd = upstream.accept(listener);
            wait_until("the request is there", || upstream.get::<u64>(format!("unread {fd}")) > 0);
            if reads {
                upstream.ok(format!("recv {fd} 4096"));
            }
        }
        upstream.kill();
        clients.into_iter().for_each(|client| assert_eq!(read_status(client), "502"));
    })
}

fn killed() -> Value {
    json!({ "comm": "upstream", "syscall": null, "exiting": true })
}

#[test]
fn an_upstream_killed_with_the_request_read_closes_before_its_answer() {
    require_root!();
    require_tool!("nginx");
    let mut ends = killed_upstream(true);
    let both = json!({ "phase": "request-in-flight", "cause": "closed-before-answer", "harm": "possible" });
    let back = json!({
        "initiator": "peer-application", "fin": { "first": "remote" }, "bytes": { "unacked": 0, "received": 0 }, "observer": null,
        "verdict": "PEER closed without answering our request",
    });
    let upstream = json!({
        "initiator": "local-application", "fin": { "first": "local" }, "closer": killed(), "evidence": { "signal": "SIGKILL" },
        "verdict": "WE died without answering PEER's request",
    });
    ends.show(Half::Back, "fin", &with(&both, back));
    ends.show(Half::Upstream, "fin", &with(&both, upstream));
    ends.nothing_else();
}

#[test]
fn an_upstream_killed_with_the_request_unread_aborts_before_its_answer() {
    require_root!();
    require_tool!("nginx");
    let mut ends = killed_upstream(false);
    let both = json!({ "state": "ESTABLISHED", "phase": "request-in-flight", "harm": "lost" });
    let back = json!({
        "cause": "server-abort-before-response", "initiator": "peer-application",
        "observer": { "syscall": "recvfrom", "errno": "ECONNRESET" }, "peer": { "comm": "upstream" },
        "bytes": { "unacked": 0, "received": 0 },
        "verdict": "PEER aborted before a byte of its answer, our request acknowledged by its host; # B of ours never read there",
    });
    let upstream = json!({
        "cause": "close-with-unread-data", "initiator": "local-application", "closer": killed(), "peer": { "comm": "nginx" },
        "verdict": "WE closed with # B from PEER unread; PEER's request is unanswered",
    });
    ends.show(Half::Back, "reset-received", &with(&both, back));
    ends.show(Half::Upstream, "reset-sent", &with(&both, upstream));
    ends.nothing_else();
}

/// The upstream sends the head and a part of the body, which reach the client, and then ends.
fn half_a_response(end: fn(TcpStream)) -> Ends {
    scene(&proxy("proxy_buffering off;"), |stage| {
        let happened = Arc::clone(&stage.happened);
        let _upstream = Upstream::new(move |mut stream| {
            let i = asked_for(&read_head(&mut stream));
            send(&stream, format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n{}", "x".repeat(1000)));
            happened.wait(&("client has half", i));
            end(stream);
        });
        drop(crowd(|i| {
            let mut stream = ask(i, true);
            read_head(&mut stream);
            stream.read_exact(&mut [0; 1000]).expect("half a response");
            stage.happened.light(("client has half", i));
            assert_eq!(stream.read(&mut [0]).expect("nginx's FIN"), 0);
        }));
    })
}

#[test]
fn an_upstream_that_resets_in_the_middle_of_its_response_is_named() {
    require_root!();
    require_tool!("nginx");
    let mut ends = half_a_response(abort);
    let back = json!({
        "state": "ESTABLISHED", "phase": "mid-response", "cause": "server-abort-mid-response", "initiator": "peer-application",
        "harm": "possible",
        "observer": { "syscall": "recvfrom", "errno": "ECONNRESET" }, "peer": { "comm": me() },
        "bytes": { "unacked": 0, "unread": 0, "received": 1044 },
        "verdict": "PEER aborted after # B of its answer; whether that was all is not known",
    });
    let upstream = json!({
        "state": "ESTABLISHED", "cause": "linger-zero", "initiator": "local-application", "harm": "none", "peer": { "comm": "nginx" },
        "verdict": "WE aborted the connection (SO_LINGER #)",
    });
    ends.show(Half::Back, "reset-received", &back);
    ends.show(Half::Upstream, "reset-sent", &upstream);
    ends.nothing_else();
}

/// nginx says "upstream prematurely closed connection"; TCP knows no Content-Length.
#[test]
fn an_upstream_that_closes_in_the_middle_of_its_response_ends_in_order_for_tcp() {
    require_root!();
    require_tool!("nginx");
    let mut ends = half_a_response(drop);
    in_order(&mut ends, Half::Upstream, Half::Back, "after-response");
    ends.nothing_else();
}

/// Both halves of connections that ended in order.
fn in_order(ends: &mut Ends, first: Half, second: Half, phase: &str) {
    let both = json!({ "phase": phase, "cause": "orderly", "harm": "none" });
    let closer = json!({ "fin": { "first": "local" }, "initiator": "local-application", "verdict": "closed in order, by WE first" });
    let other = json!({ "fin": { "first": "remote" }, "initiator": "peer-application", "verdict": "closed in order, by PEER first" });
    ends.hide(first, &with(&both, closer));
    ends.hide(second, &with(&both, other));
}

// ---- who waits too long ----

#[test]
fn nginx_gives_up_waiting_at_proxy_read_timeout() {
    require_root!();
    require_tool!("nginx");
    let mut ends = scene(&proxy("proxy_read_timeout 300ms;"), |_| {
        let _upstream = Upstream::new(wait_for_end);
        drop(crowd(|i| assert_eq!(read_status(ask(i, true)), "504")));
    });
    gave_up(&mut ends, Half::Back, Half::Upstream, 200);
    ends.nothing_else();
}

#[test]
fn a_client_gives_up_waiting_and_so_does_nginx_with_its_upstream() {
    require_root!();
    require_tool!("nginx");
    let mut ends = scene(&proxy(""), |stage| {
        let happened = Arc::clone(&stage.happened);
        let _upstream = Upstream::new(move |mut stream| {
            happened.light(("upstream has the request", asked_for(&read_head(&mut stream))));
            wait_for_end(stream);
        });
        drop(crowd(|i| {
            let stream = ask(i, false);
            stage.happened.wait(&("upstream has the request", i));
            thread::sleep(Duration::from_millis(100));
            drop(stream);
        }));
    });
    gave_up(&mut ends, Half::Client, Half::Front, 96);
    gave_up(&mut ends, Half::Back, Half::Upstream, 96);
    ends.nothing_else();
}

/// Both halves of connections whose client has waited in vain, at least so long.
fn gave_up(ends: &mut Ends, client: Half, server: Half, at_least_ms: u64) {
    let both = json!({ "phase": "request-in-flight", "harm": "possible", "bytes": { "unacked": 0, "unsent": 0, "unread": 0 } });
    let gave_up = json!({
        "cause": "gave-up-waiting", "initiator": "local-application", "fin": { "first": "local" },
        "verdict": "WE gave up after waiting # T for PEER's answer",
    });
    let was_left = json!({
        "cause": "client-gave-up", "initiator": "peer-application", "fin": { "first": "remote" },
        "verdict": "PEER gave up after waiting # T for our answer",
    });
    let too_short = |record: &Value| {
        let words = record["verdict"].as_str().unwrap_or_default();
        let (_, waited) = words.split_once("waiting ")?;
        let [number, unit] = waited.split(' ').take(2).collect::<Vec<_>>()[..] else { return None };
        let ms = number.parse::<f64>().ok()? * if unit == "s" { 1_000.0 } else { 1.0 };
        (ms < at_least_ms as f64).then(|| format!("waited {ms} ms only"))
    };
    ends.show_if(client, "fin", &with(&both, gave_up), too_short);
    ends.show_if(server, "fin", &with(&both, was_left), too_short);
}

// ---- the accept queue ----

/// 101 connections wait for workers that are stopped; then the listening sockets go.
fn full_accept_queue(asks: bool, end: fn(&mut Nginx)) -> Ends {
    scene(&http(FILES), |stage| {
        stage.nginx.workers().iter().for_each(|worker| signal(*worker, libc::SIGSTOP));
        let clients = crowd(|_| {
            let stream = connect();
            if asks {
                send(&stream, request("/files/small", false));
            }
            stream
        });
        end(&mut stage.nginx);
        for mut stream in clients {
            let error = stream.read(&mut [0]).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    })
}

/// The port is in the configuration no more, and the old workers are gone with the socket.
fn reload_without_the_port(nginx: &mut Nginx) {
    let old = nginx.workers();
    let path = nginx.root().join("nginx.conf");
    let config = fs::read_to_string(&path).expect("nginx.conf");
    fs::write(&path, config.replace(&format!("listen {PLAIN}"), &format!("listen {}", PLAIN + 1))).expect("nginx.conf");
    nginx.signal(libc::SIGHUP);
    wait_until("new workers have taken over", || nginx.workers().iter().filter(|worker| !old.contains(worker)).count() == 2);
    old.iter().for_each(|worker| signal(*worker, libc::SIGKILL));
    wait_until("old workers are gone", || nginx.workers().iter().all(|worker| !old.contains(worker)));
}

/// Both halves of connections that were reset in the queue, with a request or without.
fn listener_closed(mut ends: Ends, closer: &Value, front: Value, client: Value) {
    let both = json!({ "state": "ESTABLISHED" });
    let in_queue = json!({
        "phase": "accepting", "cause": "listener-closed", "initiator": "local-application", "owner": null, "inode": null,
        "closer": closer, "peer": { "comm": me() },
    });
    let at_client = json!({ "initiator": "peer-application", "observer": { "syscall": "recvfrom", "errno": "ECONNRESET" } });
    ends.show(Half::Front, "reset-sent", &with(&with(&both, in_queue), front));
    ends.show(Half::Client, "reset-received", &with(&with(&both, at_client), client));
    ends.nothing_else();
}

/// With requests, which nobody has read.
fn listener_closed_on_requests(ends: Ends, closer: &Value) {
    let words = "reset in the accept queue, because the listening socket was closed; # B never read here; PEER's request is unanswered";
    let front = json!({ "harm": "lost", "verdict": words });
    let words = "PEER aborted before a byte of its answer, our request acknowledged by its host; # B of ours never read there";
    let client = json!({ "phase": "request-in-flight", "cause": "server-abort-before-response", "harm": "lost", "verdict": words });
    listener_closed(ends, closer, front, client);
}

/// The master closes after its workers, which it has to kill.
#[test]
fn nginx_stopped_with_a_full_accept_queue_has_closed_its_listener() {
    require_root!();
    require_tool!("nginx");
    let master = json!({ "comm": "nginx", "syscall": "close", "exiting": false });
    listener_closed_on_requests(full_accept_queue(true, Nginx::stop), &master);
}

#[test]
fn nginx_reloaded_without_a_port_has_closed_its_listener() {
    require_root!();
    require_tool!("nginx");
    let worker = json!({ "comm": "nginx", "syscall": null, "exiting": true });
    listener_closed_on_requests(full_accept_queue(true, reload_without_the_port), &worker);
}

#[test]
fn clients_reset_in_the_accept_queue_before_they_said_a_word_have_lost_nothing() {
    require_root!();
    require_tool!("nginx");
    let master = json!({ "comm": "nginx", "syscall": "close", "exiting": false });
    let front = json!({ "harm": "none", "verdict": "reset in the accept queue, because the listening socket was closed" });
    let words = "reset by PEER before a byte was sent";
    let client = json!({ "phase": "idle", "cause": "connect-probe", "harm": "none", "verdict": words });
    listener_closed(full_accept_queue(false, Nginx::stop), &master, front, client);
}

// ---- health checks ----

#[test]
fn health_checks_that_reset_are_probes() {
    require_root!();
    require_tool!("nginx");
    let ends = scene(&http(FILES), |stage| {
        let checks = crowd(|_| connect());
        wait_until("nginx has accepted all", || accepted(&stage.nginx) == N);
        checks.into_iter().for_each(abort);
    });
    let words = "connected and reset without a byte, as health checks do";
    harmless_abort(ends, &json!({ "phase": "idle" }), json!({ "cause": "connect-probe", "verdict": words }));
}

#[test]
fn health_checks_that_reset_before_accept_do_no_harm() {
    require_root!();
    require_tool!("nginx");
    let mut ends = scene(&http(FILES), |stage| {
        let workers = stage.nginx.workers();
        workers.iter().for_each(|worker| signal(*worker, libc::SIGSTOP));
        drop(crowd(|_| abort(connect())));
        workers.iter().for_each(|worker| signal(*worker, libc::SIGCONT));
        // Connections come out of the queue in order.
        assert_eq!(read_status(ask(0, true)), "404");
    });
    let both = json!({ "state": "ESTABLISHED", "harm": "none", "bytes": { "sent": 0, "received": 0 } });
    let front = json!({
        "phase": "accepting", "cause": "reset-before-accept", "initiator": "peer-application", "peer": { "comm": me() },
        "verdict": "PEER reset the connection before accept()",
    });
    let client = json!({ "phase": "idle", "cause": "linger-zero", "initiator": "local-application" });
    ends.show(Half::Front, "reset-received", &with(&both, front));
    ends.show(Half::Client, "reset-sent", &with(&both, client));
    ends.nothing_else();
}

#[test]
fn health_checks_that_close_are_not_shown() {
    require_root!();
    require_tool!("nginx");
    let mut ends = scene(&http(FILES), |stage| {
        let checks = crowd(|_| connect());
        wait_until("nginx has accepted all", || accepted(&stage.nginx) == N);
        drop(checks);
    });
    in_order(&mut ends, Half::Client, Half::Front, "idle");
    ends.nothing_else();
}

// ---- TLS ----

/// Makes a certificate where the configuration wants one.
fn prepare_tls(root: &Path, http: &str) {
    if http.contains("ssl") {
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-subj",
                "/CN=test",
                "-days",
                "2",
            ])
            .arg("-keyout")
            .arg(root.join("key.pem"))
            .arg("-out")
            .arg(root.join("cert.pem"))
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl").success());
    }
}

fn https(locations: &str) -> String {
    http(locations).replace(&format!("listen {PLAIN} backlog=4096"), &format!("listen {TLS} ssl backlog=4096"))
        + "ssl_certificate cert.pem;\nssl_certificate_key key.pem;\n"
}

/// `openssl s_client`: at the end of its input it says close_notify and sends its FIN at once, and
/// when the server ends, it says close_notify too.
struct TlsClient(Child);

impl TlsClient {
    fn connect() -> Self {
        Self::to(&["-connect", &format!("127.0.0.1:{TLS}")])
    }

    fn to(how: &[&str]) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-no_ign_eof"]).args(how);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().expect("openssl"))
    }

    fn ask(&mut self, path: &str, last: bool) {
        send(self.0.stdin.as_mut().expect("a pipe"), request(path, last));
    }

    fn read_until(&mut self, end: &str) {
        let mut response = Vec::new();
        while !response.ends_with(end.as_bytes()) {
            let mut byte = [0];
            self.0.stdout.as_mut().expect("a pipe").read_exact(&mut byte).expect("through openssl");
            response.push(byte[0]);
        }
    }

    fn leave(mut self) {
        drop(self.0.stdin.take());
        self.wait();
    }

    fn wait(mut self) {
        self.0.wait().expect("openssl's end");
    }
}

/// What a file request needs to be one whole exchange over TLS.
fn exchange(client: &mut TlsClient, last: bool) {
    client.ask("/files/small", last);
    client.read_until("whole\n");
}

#[test]
fn a_tls_client_that_says_goodbye_and_closes_is_not_shown() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let mut ends = scene(&https(FILES), |_| {
        drop(crowd(|_| {
            let mut client = TlsClient::connect();
            exchange(&mut client, false);
            client.leave();
        }));
    });
    let both = json!({ "phase": "closing", "cause": "orderly", "harm": "none" });
    let [front, client] = taken_for_requests(&mut ends);
    ends.take(N - front, Half::Front, "fin", false, &both, |_| None);
    ends.take(N - client, Half::Client, "fin", false, &both, |_| None);
    ends.nothing_else();
}

/// Goodbyes that look like requests, at both ends. The client's: where the kernel acknowledged it
/// before nginx closed, the FIN no longer tells how many bytes were the last. nginx's own: where the
/// machine is so busy that nginx has it for more than a second.
fn taken_for_requests(ends: &mut Ends) -> [usize; 2] {
    [Half::Front, Half::Client].map(|half| {
        let doubtful = |record: &mut Value| Half::of(record) == Some(half) && record["cause"] == "closed-before-answer";
        let [shown, all] = [&mut ends.default, &mut ends.all].map(|records| records.extract_if(.., doubtful).collect::<Vec<_>>());
        tell(half, &all, true);
        assert_eq!(shown.len(), all.len(), "{half:?}");
        for record in &all {
            let slow = half == Half::Client || number(record, "/idle_ms/received") > 1_000;
            assert!(slow && record["harm"] == "possible" && record["bytes"]["unacked"] == 0, "{record}");
        }
        all.len()
    })
}

/// As RFC 5246 asked for, and RFC 8446 allows: who has said close_notify waits for the other end.
#[test]
fn a_tls_client_that_waits_for_the_servers_close_after_its_goodbye_is_not_shown() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let mut ends = scene(&https(FILES), |stage| {
        let root = stage.nginx.root().to_owned();
        drop(crowd(|i| {
            let path = root.join(format!("{i}.sock"));
            let listener = UnixListener::bind(&path).expect("a socket for openssl");
            let mut client = TlsClient::to(&["-unix", path.to_str().expect("a path")]);
            let (local, _) = listener.accept().expect("openssl's connection");
            let tcp = connect_to(TLS);
            let there = relay(local.try_clone().expect("dup"), tcp.try_clone().expect("dup"));
            let back = relay(tcp, local);
            exchange(&mut client, false);
            client.leave();
            [there, back].into_iter().for_each(|relay| relay.join().expect("a relay"));
        }));
    });
    let [front, client] = taken_for_requests(&mut ends);
    let both = json!({ "phase": "closing", "cause": "orderly", "harm": "none" });
    let closer = json!({ "fin": { "first": "local" }, "initiator": "local-application" });
    let other = json!({ "fin": { "first": "remote" }, "initiator": "peer-application" });
    ends.take(N - front, Half::Front, "fin", false, &with(&both, closer), |_| None);
    ends.take(N - client, Half::Client, "fin", false, &with(&both, other), |_| None);
    ends.nothing_else();
}

/// Carries bytes until one side ends, and does not end the other.
fn relay(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
    })
}

/// nginx closes without waiting for the client's close_notify, which then comes too late, or was not
/// read: so ends every HTTPS connection that nginx closes first. Which of the ends that TCP has for
/// that is a matter of microseconds; none of them does harm.
#[test]
fn a_tls_goodbye_that_comes_after_nginxs_close_is_no_loss() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let mut ends = scene(&https(FILES), |_| {
        drop(crowd(|_| {
            let mut client = TlsClient::connect();
            exchange(&mut client, true);
            client.wait();
        }));
    });
    let has = |record: &Value, half, kinds: &[&str]| Half::of(record) == Some(half) && kinds.contains(&kind(record));
    for (half, kinds) in [(Half::Front, ["reset-sent", "fin"]), (Half::Client, ["reset-received", "fin"])] {
        assert_eq!(ends.all.iter().filter(|record| has(record, half, &kinds)).count(), N, "{half:?}");
    }
    let allowed = [
        "data-after-close",
        "close-with-unread-data",
        "write-after-peer-close",
        "reset-after-local-fin",
        "reset-while-closing",
        "time-wait",
        "no-connection",
    ];
    for records in [&mut ends.default, &mut ends.all] {
        let resets: Vec<_> = records.extract_if(.., |record| kind(record) != "fin").collect();
        for half in [Half::Front, Half::Client] {
            tell(half, &resets.iter().filter(|record| Half::of(record) == Some(half)).cloned().collect::<Vec<_>>(), true);
        }
        // Of a segment that meets no connection nothing but its size is known, if it has one.
        let is_goodbye = |record: &Value| {
            (record["harm"] == "none" || kind(record) == "stray" && record["harm"] == "possible")
                && record["cause"].as_str().is_some_and(|cause| allowed.contains(&cause))
        };
        ends.problems.extend(resets.iter().filter(|record| !is_goodbye(record)).map(|record| format!("harm in a goodbye: {record}")));
    }
    ends.nothing_else();
}

/// TLS clients of an upstream that sends one event and no more, or nothing.
fn tls_proxy(event: bool, client: impl Fn(&Stage, usize) + Sync + Send) -> Ends {
    let http = https(&format!("location / {{ proxy_pass http://127.0.0.1:{UPSTREAM}; proxy_buffering off; }}"));
    scene(&http, |stage| {
        let happened = Arc::clone(&stage.happened);
        let _upstream = Upstream::new(move |mut stream| {
            let i = asked_for(&read_head(&mut stream));
            happened.light(("upstream has the request", i));
            if event {
                send(&stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: event\n\n");
            }
            wait_for_end(stream);
        });
        drop(crowd(|i| client(stage, i)));
    })
}

/// nginx learns of the client's FIN from epoll, and closes without reading the close_notify before it.
fn goodbye_unread(ends: &mut Ends) {
    let both = json!({ "harm": "none" });
    let front = json!({
        "state": "CLOSE_WAIT", "phase": "after-remote-fin", "cause": "close-with-unread-data", "initiator": "local-application",
        "bytes": { "unacked": 0 }, "peer": { "comm": "openssl" },
    });
    let client = json!({
        "cause": "reset-after-local-fin", "phase": "after-local-fin", "initiator": "peer-application",
        "peer": { "comm": "nginx", "syscall": "close" },
    });
    ends.show_if(Half::Front, "reset-sent", &with(&both, front), |record| {
        (!(24..=31).contains(&number(record, "/bytes/unread"))).then(|| "unread is something else than a close_notify".to_owned())
    });
    ends.show(Half::Client, "reset-received", &with(&both, client));
}

/// All that was sent has arrived and was read, but for the goodbye, and no request is open.
#[test]
fn a_tls_client_that_leaves_an_event_stream_does_no_harm() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let mut ends = tls_proxy(true, |_, i| {
        let mut client = TlsClient::connect();
        client.ask(&format!("/{i}"), false);
        client.read_until("data: event\n\n\r\n");
        client.leave();
    });
    goodbye_unread(&mut ends);
    ends.nothing_else();
}

/// nginx logs 499. For TCP the handshake was an exchange and the close_notify was the last word: this
/// is exactly how a client leaves after its answer too, and no harm is claimed. The request that
/// stays open is told where it shows, between nginx and its upstream.
#[test]
fn a_tls_client_that_gives_up_waiting_is_told_at_the_upstream() {
    require_root!();
    require_tool!("nginx");
    require_tool!("openssl");
    let mut ends = tls_proxy(false, |stage, i| {
        let mut client = TlsClient::connect();
        client.ask(&format!("/{i}"), false);
        stage.happened.wait(&("upstream has the request", i));
        thread::sleep(Duration::from_millis(100));
        client.leave();
    });
    gave_up(&mut ends, Half::Back, Half::Upstream, 96);
    goodbye_unread(&mut ends);
    ends.nothing_else();
}
