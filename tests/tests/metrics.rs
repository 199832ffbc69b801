//! `--metrics`: the same numbers as the records, for Prometheus, from a process that can do nothing else.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rsttrace_tests::{
    Actor, DEADLINE, NetNs, Pair, Tracer, binary, is_stray,
    peers::{abort, connect_from, listen},
    require_root, require_tool, wait_until,
};
use serde_json::Value;

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

/// Starts a tracer of one namespace that serves metrics on a port of the kernel's choice.
fn start(netns: &NetNs, args: &[&str]) -> (Tracer, SocketAddr) {
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&[&["--metrics", "0", "--netns", &inode], args].concat());
    let address = address(&tracer);
    (tracer, address)
}

fn address(tracer: &Tracer) -> SocketAddr {
    let line = tracer.wait_stderr("rsttrace: metrics at ");
    let url = line.strip_prefix("rsttrace: metrics at http://").and_then(|url| url.strip_suffix("/metrics"));
    url.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"))
}

/// The child that serves them.
#[track_caller]
fn exporter(tracer: &Tracer) -> libc::pid_t {
    let pid = tracer.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("a living tracer");
    let named = |pid: &libc::pid_t| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "rsttrace-export\n");
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(named).unwrap_or_else(|| panic!("none among {children}"))
}

fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a child of our own tracer, which is alive and has not reaped it.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
}

fn has_ended(pid: libc::pid_t) -> bool {
    !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// What a request was answered with.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// One request on a connection of its own; `head` as it is sent, without the empty line.
fn ask(address: SocketAddr, head: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(format!("{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1")).expect(path)
}

/// A name and its labels.
type Series = (String, BTreeMap<String, String>);

/// Every sample of a page.
#[derive(Clone, Debug, PartialEq)]
struct Page(BTreeMap<Series, f64>);

impl Page {
    fn fetch(address: SocketAddr) -> Self {
        let answer = get(address, "/metrics");
        assert_eq!(answer.status, 200);
        let (samples, end) = answer.body.rsplit_once("# EOF\n").expect("an end");
        assert_eq!(end, "");
        let mut page = BTreeMap::new();
        for line in samples.lines().filter(|line| !line.starts_with('#')) {
            let (sample, value) = Self::sample(line).unwrap_or_else(|| panic!("no sample: {line:?}"));
            assert!(page.insert(sample, value).is_none(), "twice: {line}");
        }
        Self(page)
    }

    fn sample(line: &str) -> Option<(Series, f64)> {
        let name_ends = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(name_ends);
        let mut labels = BTreeMap::new();
        if let Some(mut inside) = rest.strip_prefix('{') {
            loop {
                let (key, value) = inside.split_once("=\"")?;
                let mut chars = value.char_indices();
                let mut text = String::new();
                let ends = loop {
                    match chars.next()? {
                        (at, '"') => break at,
                        (_, '\\') => text.push(match chars.next()?.1 {
                            'n' => '\n',
                            c @ ('\\' | '"') => c,
                            _ => return None,
                        }),
                        (_, c) => text.push(c),
                    }
                };
                labels.insert(key.to_owned(), text);
                let after = &value[ends + 1..];
                match after.strip_prefix(',') {
                    Some(more) => inside = more,
                    None => {
                        rest = after.strip_prefix('}')?;
                        break;
                    }
                }
            }
        }
        Some(((name.to_owned(), labels), rest.strip_prefix(' ')?.parse().ok()?))
    }

    /// All samples of a name.
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        self.0.iter().filter(move |((n, _), _)| n == name).map(|((_, labels), value)| (labels, *value))
    }

    fn sum(&self, name: &str) -> f64 {
        self.of(name).map(|(_, value)| value).sum()
    }

    /// By the upper bound.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let bound = |labels: &BTreeMap<String, String>| labels["le"].replace("+Inf", "inf").parse().expect("a bound");
        let mut buckets: Vec<(f64, f64)> = self.of(name).map(|(labels, count)| (bound(labels), count)).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

/// What the same records come to, counted from the JSON.
#[derive(Debug, Default, PartialEq)]
struct Counted {
    ends: BTreeMap<[String; 5], f64>,
    lost: BTreeMap<[String; 2], f64>,
    unconfirmed: BTreeMap<[String; 2], f64>,
    /// Microseconds.
    delays: Vec<u64>,
    /// Milliseconds.
    idle: Vec<u64>,
}

impl Counted {
    fn from_records<'a>(records: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut counted = Self::default();
        for record in records {
            let word = |key: &str| record[key].as_str().expect(key).to_owned();
            counted.delays.extend(record["observer"]["delay_us"].as_u64());
            if record["record"] != "teardown" {
                continue;
            }
            let parties = ["owner", "observer", "closer"];
            let process = parties.iter().find_map(|party| record[party]["comm"].as_str()).unwrap_or("unknown").to_owned();
            let port = |end: &str| record[end]["port"].as_u64().expect("a port");
            let service_port = match record["role"].as_str() {
                Some("client") => port("remote").to_string(),
                Some(_) => port("local").to_string(),
                None if record["state"].is_null() => "unknown".to_owned(),
                None => match [port("local"), port("remote")].map(|port| (port < 32_768).then_some(port)) {
                    [Some(port), None] | [None, Some(port)] => port.to_string(),
                    _ => "unknown".to_owned(),
                },
            };
            *counted.ends.entry([word("end"), word("cause"), word("harm"), process.clone(), service_port.clone()]).or_default() += 1.0;
            let who = [process, service_port];
            *counted.lost.entry(who.clone()).or_default() += record["lost_bytes"].as_f64().expect("bytes");
            *counted.unconfirmed.entry(who).or_default() += record["unconfirmed_bytes"].as_f64().expect("bytes");
            counted.idle.extend(["sent", "received"].iter().filter_map(|way| record["idle_ms"][way].as_u64()).min());
        }
        counted
    }

    #[track_caller]
    fn assert_same(&self, page: &Page) {
        fn labelled<const N: usize>(page: &Page, name: &str, keys: [&str; N]) -> BTreeMap<[String; N], f64> {
            page.of(name).map(|(labels, value)| (keys.map(|key| labels[key].clone()), value)).collect()
        }
        assert_eq!(labelled(page, "rsttrace_teardowns_total", ["end", "cause", "harm", "process", "service_port"]), self.ends);
        assert_eq!(labelled(page, "rsttrace_lost_bytes_total", ["process", "service_port"]), self.lost);
        assert_eq!(labelled(page, "rsttrace_unconfirmed_bytes_total", ["process", "service_port"]), self.unconfirmed);
        assert_histogram(page, "rsttrace_observation_delay_seconds", &self.delays, 1e6);
        assert_histogram(page, "rsttrace_idle_seconds", &self.idle, 1e3);
    }
}

#[track_caller]
fn assert_histogram(page: &Page, name: &str, values: &[u64], per_second: f64) {
    assert_eq!(page.sum(&format!("{name}_count")), values.len() as f64, "{name}");
    let sum = values.iter().sum::<u64>() as f64 / per_second;
    let told = page.sum(&format!("{name}_sum"));
    assert!((told - sum).abs() <= sum * 1e-12, "{name}: {told} and not {sum}");
    for (bound, count) in page.buckets(&format!("{name}_bucket")) {
        let expected = values.iter().filter(|value| **value as f64 / per_second <= bound).count();
        assert_eq!(count, expected as f64, "{name} up to {bound}");
    }
}

fn teardowns(tracer: &Tracer) -> usize {
    tracer.matching(|record| record["record"] == "teardown").len()
}

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = listen(ANY, 1_000).expect("listen");
    let SocketAddr::V4(address) = listener.local_addr().expect("bound") else { panic!("bound to IPv4") };
    (listener, address)
}

/// A connection whose client aborts; the server sees it.
fn abort_one(listener: &TcpListener, address: SocketAddrV4) {
    let client = connect_from(ANY, address).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    abort(client);
    assert_eq!(server.read(&mut [0]).expect_err("the RST").kind(), ErrorKind::ConnectionReset);
}

/// A connection whose client aborts with all that it was sent unread.
fn lose(listener: &TcpListener, address: SocketAddrV4) {
    let client = connect_from(ANY, address).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    server.write_all(&[7; 20_000]).expect("sent");
    let mut first = [0; 1];
    (&client).read_exact(&mut first).expect("something has come");
    abort(client);
    assert_eq!(server.read(&mut first).expect_err("the RST").kind(), ErrorKind::ConnectionReset);
}

/// Some of each: aborts, losses, refusals, orderly ends.
fn traffic(rounds: usize) {
    let (listener, address) = self::listener();
    let (refusing, nowhere) = self::listener();
    drop(refusing);
    for _ in 0..rounds {
        abort_one(&listener, address);
        lose(&listener, address);
        connect_from(ANY, nowhere).expect_err("nobody listens");
        let client = connect_from(ANY, address).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        (&client).write_all(b"question").expect("sent");
        server.read_exact(&mut [0; 8]).expect("received");
        server.write_all(b"answer").expect("sent");
        (&client).read_exact(&mut [0; 6]).expect("received");
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the FIN"), 0);
    }
}

#[test]
fn the_sums_of_the_records_are_what_is_served() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &["-a", "--join-timeout", "1s"]);
    netns.run_in(|| traffic(20));
    // Noticed by nobody for a while: a record, and an observation after it.
    let mut pair = Pair::inside(&netns);
    pair.client.abort();
    tracer.wait("a record that is not noticed yet", |record| record["seen"] == "not-yet");
    pair.server.fails("recv 100");
    tracer.wait("the late observation", |record| record["record"] == "late-observation");
    // Each round: two ends of three connections, the refused one and the RST that refused it.
    wait_until("all records are there", || teardowns(&tracer) == 20 * 8 + 2);
    wait_until("all of them are counted", || Page::fetch(address).sum("rsttrace_teardowns_total") == 162.0);
    let page = Page::fetch(address);
    let run = tracer.stop();
    let counted = Counted::from_records(&run.records);
    assert!(counted.lost.values().sum::<f64>() > 0.0 && !counted.delays.is_empty() && counted.ends.len() > 6, "{counted:?}");
    counted.assert_same(&page);
    let (build, _) = page.of("rsttrace_build_info").next().expect("what runs");
    assert_eq!(
        (build["version"].as_str(), build["kernel"].as_str()),
        (env!("CARGO_PKG_VERSION"), run.records[0]["kernel"].as_str().expect("a kernel"))
    );
    for unhappy in ["lost_events", "lost_records", "evicted_sockets", "undecodable_events", "export_dropped_records"] {
        assert_eq!(page.sum(&format!("rsttrace_{unhappy}_total")), 0.0, "{unhappy}");
    }
}

#[test]
fn what_the_tracer_lost_and_left_out_is_served_while_it_runs() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &["--interim", "--buffer", "4k"]);
    netns.run_in(|| traffic(300));
    let told = |page: &Page| {
        ["orderly", "filtered_records", "lost_events", "lost_records"].map(|name| page.sum(&format!("rsttrace_{name}_total")))
    };
    let summary = || {
        let summaries = tracer.matching(|record| record["record"] == "summary");
        let last = summaries.last()?.clone();
        Some([&last["orderly"], &last["filtered"], &last["lost"]["total"], &last["lost"]["records"]].map(|n| n.as_f64().expect("a number")))
    };
    wait_until("both tell the same losses", || summary().is_some_and(|sums| sums[2] > 0.0 && sums == told(&Page::fetch(address))));
    wait_until("and the same records", || Page::fetch(address).sum("rsttrace_teardowns_total") == teardowns(&tracer) as f64);
    tracer.signal(libc::SIGTERM);
    tracer.finish_unchecked();
}

#[test]
fn ten_thousand_client_ports_make_fewer_than_fifty_series() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &["--buffer", "64M"]);
    let (listener, server) = netns.run_in(listener);
    for made in (500..=10_000).step_by(500) {
        netns.run_in(|| (0..500).for_each(|_| abort_one(&listener, server)));
        // No faster than they are counted: what is missing would have no series.
        wait_until("all are counted", || Page::fetch(address).sum("rsttrace_teardowns_total") >= f64::from(2 * made));
    }
    let page = Page::fetch(address);
    println!("{} series of {} ends", page.0.len(), page.sum("rsttrace_teardowns_total"));
    assert!(page.0.len() < 50, "{} series", page.0.len());
    let run = tracer.stop();
    Counted::from_records(&run.records).assert_same(&page);
}

#[test]
fn a_hostile_name_is_a_label_and_nothing_else() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &[]);
    let name = "a\"} 9\n\\x";
    let (client, server) = (Actor::spawn_in(&netns, name), Actor::spawn_in(&netns, name));
    let mut pair = Pair::between(client, server, "127.0.0.1:0");
    pair.client.abort();
    pair.server.fails("recv 100");
    wait_until("both are counted", || Page::fetch(address).sum("rsttrace_teardowns_total") == 2.0);
    let page = Page::fetch(address);
    assert!(page.of("rsttrace_teardowns_total").all(|(labels, _)| labels["process"] == name), "{page:?}");
    let run = tracer.stop();
    Counted::from_records(&run.records).assert_same(&page);
}

#[test]
fn only_get_and_head_of_one_page_are_answered_in_what_was_asked_for() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &[]);
    let open_metrics = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    // As Prometheus asks.
    let accept = "Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let asked = ask(address, &format!("GET /metrics HTTP/1.1\r\n{accept}")).expect("an answer");
    assert!(asked.status == 200 && asked.head.contains(open_metrics) && asked.body.ends_with("# EOF\n"), "{}", asked.head);
    assert!(get(address, "/metrics").head.contains(open_metrics));
    let old = ask(address, "GET /metrics HTTP/1.1\r\nAccept: text/plain").expect("an answer");
    assert!(old.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8") && !old.body.contains("# EOF"), "{}", old.head);
    assert!(old.body.contains("# TYPE rsttrace_teardowns_total counter\n"), "{}", old.body);
    let head = ask(address, "HEAD /metrics HTTP/1.1").expect("an answer");
    assert!(head.status == 200 && head.body.is_empty(), "{}", head.body);
    assert!(get(address, "/").body.contains("/metrics"));
    assert_eq!(get(address, "/metrics/../etc/passwd").status, 404);
    let posted = ask(address, "POST /metrics HTTP/1.1").expect("an answer");
    assert!(posted.status == 405 && posted.head.contains("allow: get, head"), "{}", posted.head);
    let long = ask(address, &format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(100_000)));
    assert!(long.as_ref().map_or(true, |answer| answer.status == 431), "{:?}", long.map(|answer| answer.status));
    assert_eq!(ask(address, "nonsense").map_or(400, |answer| answer.status), 400);
    tracer.stop();
}

#[test]
fn who_holds_connections_open_keeps_nobody_from_asking() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &[]);
    let descriptors = |pid| fs::read_dir(format!("/proc/{pid}/fd")).expect("a living process").count();
    let before = descriptors(exporter(&tracer));
    let slow: Vec<_> = (0..200)
        .map(|n| {
            let mut stream = TcpStream::connect(address).expect("connect");
            // Nothing, or the beginning of a request; all of them stay open.
            if n % 2 == 0 {
                let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ");
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(get(address, "/metrics").status, 200);
    }
    let held = descriptors(exporter(&tracer)) - before;
    assert!(held <= 16, "{held} connections are open");
    drop(slow);
    tracer.stop();
}

#[test]
fn it_is_without_privileges_and_ends_with_the_tracer() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, _) = start(&netns, &[]);
    let pid = exporter(&tracer);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Threads:\t1",
    ] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    // What stops the tracer does not stop it before.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        kill(pid, signal);
    }
    let run = tracer.stop();
    assert!(run.status.success(), "{}", run.stderr);
    assert!(has_ended(pid), "it goes on");

    let (tracer, _) = start(&netns, &[]);
    let pid = exporter(&tracer);
    tracer.signal(libc::SIGKILL);
    wait_until("it has noticed", || has_ended(pid));
}

#[test]
fn if_it_is_slow_nobody_waits_and_what_is_missing_is_counted() {
    require_root!();
    // Twice what the pipe has room for.
    const MADE: usize = 1_000;
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &["--buffer", "64M"]);
    let pid = exporter(&tracer);
    kill(pid, libc::SIGSTOP);
    netns.run_in(|| {
        let (listener, address) = listener();
        (0..MADE).for_each(|_| abort_one(&listener, address));
    });
    wait_until("stdout has all records all the same", || teardowns(&tracer) >= 2 * MADE);
    kill(pid, libc::SIGCONT);
    let missing = |page: &Page| page.sum("rsttrace_export_dropped_records_total");
    wait_until("all are counted or missing", || {
        let page = Page::fetch(address);
        missing(&page) > 0.0 && missing(&page) + page.sum("rsttrace_teardowns_total") >= teardowns(&tracer) as f64
    });
    let page = Page::fetch(address);
    let run = tracer.stop();
    let told = format!("{} records were not exported", grouped(missing(&page) as u64));
    assert!(run.stderr.contains(&told), "no {told:?} in\n{}", run.stderr);
}

/// With commas, as text has it.
fn grouped(number: u64) -> String {
    if number < 1_000 { number.to_string() } else { format!("{},{:03}", number / 1_000, number % 1_000) }
}

/// In nanoseconds, of a process with one thread.
fn cpu_time(pid: libc::pid_t) -> u64 {
    let told = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("a living process");
    told.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
}

#[test]
fn if_it_is_killed_tracing_goes_on_and_says_so() {
    require_root!();
    let netns = NetNs::new();
    let (tracer, _) = start(&netns, &["--interim"]);
    kill(exporter(&tracer), libc::SIGKILL);
    let end = || {
        let sums = tracer.matching(|record| record["record"] == "summary").len();
        let mut pair = Pair::inside(&netns);
        pair.client.abort();
        pair.server.fails("recv 100");
        pair.server.record(&tracer);
        // Sums are told once a second.
        wait_until("the sums", || tracer.matching(|record| record["record"] == "summary").len() > sums);
    };
    end();
    tracer.wait_stderr("the process that exports for rsttrace has ended");
    // Sums that nobody takes must not keep the loop turning: it would use a second of each.
    end();
    let before = cpu_time(tracer.pid());
    (0..3).for_each(|_| end());
    let used = cpu_time(tracer.pid()) - before;
    assert!(used < 500_000_000, "{used} ns of CPU for six records and three sums");
    tracer.signal(libc::SIGTERM);
    let run = tracer.finish_unchecked();
    let told = "records were not exported: the process that exports has ended";
    assert!(run.status.success() && run.stderr.contains(told) && run.stderr.contains("at least "), "{}", run.stderr);
}

#[test]
fn an_address_that_cannot_be_had_is_said() {
    require_root!();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let run = |args: &[&str]| Command::new(binary()).args(args).stdin(Stdio::null()).output().expect("rsttrace");
    let output = run(&["--metrics", &address]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("rsttrace: --metrics: cannot listen on {address}: Address already in use")), "{said}");
    for bad in ["localhost", "1.2.3.4", "70000", ":9464"] {
        let output = run(&["--metrics", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A Prometheus of its own, not the service: it fetches from one tracer and judges the rules.
struct Prometheus {
    child: Child,
    root: PathBuf,
    address: SocketAddr,
}

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file).canonicalize().expect(file)
}

impl Prometheus {
    fn start(of: SocketAddr) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rsttrace-prometheus-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).expect("a temporary directory");
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{ job_name: rsttrace, static_configs: [{{ targets: [\"{of}\"] }}] }}]\n",
            docs("prometheus/rsttrace.rules.yml").display()
        );
        fs::write(root.join("prometheus.yml"), config).expect("prometheus.yml");
        // Given back at once: nobody else is given it so soon.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", root.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", root.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(root.join("log")).expect("a log"));
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().expect("prometheus");
        let prometheus = Self { child, root, address };
        wait_until("prometheus is ready", || ask(address, "GET /-/ready HTTP/1.0").is_ok_and(|answer| answer.status == 200));
        prometheus
    }

    fn ask(&self, path: &str) -> Value {
        // HTTP/1.0: the answer in one piece.
        let answer = ask(self.address, &format!("GET {path} HTTP/1.0")).expect(path);
        let json: Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.body));
        assert_eq!(json["status"], "success", "{path}: {json}");
        json["data"].clone()
    }

    fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        self.ask(&format!("/api/v1/query?query={encoded}"))["result"].as_array().expect("a result").clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // SAFETY: our own child, which is not yet reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("prometheus says:\n{}", fs::read_to_string(self.root.join("log")).unwrap_or_default());
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Every value of this key, however deep.
fn values<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match json {
        Value::Object(object) => {
            for (name, value) in object {
                found.extend(value.as_str().filter(|_| name == key));
                values(value, key, found);
            }
        }
        Value::Array(array) => array.iter().for_each(|value| values(value, key, found)),
        _ => {}
    }
}

#[test]
fn prometheus_fetches_what_the_dashboard_shows_and_the_rules_judge() {
    require_root!();
    require_tool!("prometheus");
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &["-a"]);
    let prometheus = Prometheus::start(address);
    let dashboard = fs::read_to_string(docs("grafana/rsttrace.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut queries = Vec::new();
    values(&dashboard["panels"], "expr", &mut queries);
    assert!(queries.len() >= 15, "{queries:?}");
    for query in queries {
        let variables = [("$instance", ".*"), ("$process", ".*"), ("$__rate_interval", "4s"), ("$__range", "1m")];
        let query = variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
        assert!(!query.contains('$'), "a variable is not known: {query}");
        wait_until(&query, || {
            // No more than is counted at once: what is missing would be another number.
            wait_until("what was made is counted", || Page::fetch(address).sum("rsttrace_teardowns_total") >= teardowns(&tracer) as f64);
            netns.run_in(|| traffic(1));
            !prometheus.query(&query).is_empty()
        });
    }
    // A variable is a label of a metric.
    let mut variables = Vec::new();
    values(&dashboard["templating"], "definition", &mut variables);
    for definition in variables {
        let inside = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).expect(definition);
        let (series, label) = inside.rsplit_once(", ").expect(definition);
        wait_until(definition, || {
            let found = prometheus.query(&series.replace("$instance", ".*"));
            !found.is_empty() && found.iter().all(|series| series["metric"][label].is_string())
        });
    }
    wait_until("nothing is missing", || {
        let sum = prometheus.query("sum(rsttrace_teardowns_total)");
        sum.first().and_then(|sum| sum["value"][1].as_str()).and_then(|sum| sum.parse().ok()) == Some(teardowns(&tracer))
    });
    wait_until("lost data is an alert", || {
        let rules = prometheus.ask("/api/v1/rules");
        let rules: Vec<_> =
            rules["groups"].as_array().expect("groups").iter().flat_map(|group| group["rules"].as_array().expect("rules")).collect();
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
        rules.iter().any(|rule| rule["name"] == "ConnectionsLoseData" && rule["state"] == "firing")
    });
    drop(prometheus);
    let run = tracer.stop();
    assert!(run.teardowns().any(|record| record["harm"] == "lost" && !is_stray(record)));
}

#[test]
fn the_rules_say_what_their_tests_expect() {
    require_tool!("promtool");
    for args in [["check", "rules", "rsttrace.rules.yml"], ["test", "rules", "rsttrace.rules.test.yml"]] {
        let output = Command::new("promtool").args(args).current_dir(docs("prometheus")).output().expect("promtool");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    require_root!();
    require_tool!("promtool");
    let netns = NetNs::new();
    let (tracer, address) = start(&netns, &[]);
    netns.run_in(|| traffic(1));
    wait_until("something is counted", || Page::fetch(address).sum("rsttrace_teardowns_total") > 0.0);
    let page = ask(address, "GET /metrics HTTP/1.1\r\nAccept: text/plain").expect("an answer").body;
    let mut promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool");
    promtool.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("promtool's end");
    assert!(output.status.success(), "{}{page}", String::from_utf8_lossy(&output.stderr));
    tracer.stop();
}
