//! What a collector gets: every record once, with all that its line of JSON says, whatever the collector does; and what is lost,
//! counted.

use std::{
    collections::{BTreeMap, VecDeque},
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse},
        metrics::v1::ExportMetricsServiceRequest,
    },
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::LogRecord,
    metrics::v1::{AggregationTemporality, metric::Data, number_data_point},
};
use prost::Message;
use rsttrace_tests::{
    DEADLINE, NetNs, Pair, Run, Tracer, binary,
    peers::{abort, connect_from, linger_zero},
    require_root, require_tool, wait_until,
};
use serde_json::{Map, Value, json};

/// What a collector does with a request for logs.
#[derive(Clone, Debug)]
enum Answer {
    /// A status without a body, and `Retry-After`.
    Status(u16, Option<&'static str>),
    /// Closes the connection with a RST.
    Reset,
    /// Says nothing.
    Silence,
    /// Takes all but so many.
    Partial(i64),
}

#[derive(Default)]
struct Got {
    /// Of requests that were taken.
    logs: Vec<ExportLogsServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    /// Of each request.
    paths: Vec<String>,
    /// Of each request, in lower case.
    headers: Vec<BTreeMap<String, String>>,
    /// Bytes of bodies as they came, and unpacked.
    bytes: (usize, usize),
    plan: VecDeque<Answer>,
    /// Connections that are not answered.
    silent: Vec<TcpStream>,
}

/// OTLP over HTTP, as far as one exporter needs it.
#[derive(Clone)]
struct Collector {
    got: Arc<(Mutex<Got>, Condvar)>,
    address: SocketAddr,
}

impl Collector {
    /// Does first what is planned, then takes everything.
    fn start(plan: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let got = Got { plan: plan.iter().cloned().collect(), ..Got::default() };
        let collector = Self { got: Arc::new((Mutex::new(got), Condvar::new())), address };
        let served = collector.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let served = served.clone();
                thread::spawn(move || served.serve(stream));
            }
        });
        collector
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        while let Some((path, headers, body)) = request(&mut reader) {
            let plain = if headers.get("content-encoding").is_some_and(|how| how == "gzip") {
                let mut plain = Vec::new();
                GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("gzip");
                plain
            } else {
                body.clone()
            };
            assert_eq!(headers["content-type"], "application/x-protobuf");
            let (lock, bell) = &*self.got;
            let mut got = lock.lock().expect("no test has failed");
            got.paths.push(path.clone());
            got.headers.push(headers);
            let answer = match path.as_str() {
                "/v1/metrics" => {
                    got.metrics.push(ExportMetricsServiceRequest::decode(&plain[..]).expect("metrics"));
                    None
                }
                "/v1/logs" => got.plan.pop_front(),
                other => panic!("nobody asks for {other}"),
            };
            let mut reply = Vec::new();
            match answer {
                Some(Answer::Reset) => {
                    linger_zero(&stream);
                    bell.notify_all();
                    return;
                }
                Some(Answer::Silence) => {
                    got.silent.push(stream);
                    bell.notify_all();
                    return;
                }
                Some(Answer::Status(status, after)) => {
                    let after = after.map(|value| format!("Retry-After: {value}\r\n")).unwrap_or_default();
                    write!(reply, "HTTP/1.1 {status} No\r\n{after}Content-Length: 0\r\n\r\n").expect("memory");
                }
                taken => {
                    let rejected_log_records = if let Some(Answer::Partial(n)) = taken { n } else { 0 };
                    let said = ExportLogsPartialSuccess { rejected_log_records, error_message: "too \u{1b}[31mold".to_owned() };
                    let said = ExportLogsServiceResponse { partial_success: (rejected_log_records > 0).then_some(said) }.encode_to_vec();
                    write!(reply, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", said.len()).expect("memory");
                    reply.extend(said);
                    if path == "/v1/logs" {
                        got.bytes.0 += body.len();
                        got.bytes.1 += plain.len();
                        got.logs.push(ExportLogsServiceRequest::decode(&plain[..]).expect("logs"));
                    }
                }
            }
            bell.notify_all();
            drop(got);
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    }

    /// What is true of what it got, waited for.
    #[track_caller]
    fn wait(&self, what: &str, is: impl Fn(&Got) -> bool) {
        let (lock, bell) = &*self.got;
        let got = lock.lock().expect("no test has failed");
        let waited = bell.wait_timeout_while(got, DEADLINE, |got| !is(got)).expect("no test has failed");
        assert!(!waited.1.timed_out(), "waited for {what}");
    }

    fn look<T>(&self, at: impl FnOnce(&Got) -> T) -> T {
        at(&self.got.0.lock().expect("no test has failed"))
    }

    fn records(&self) -> Vec<LogRecord> {
        let resources = |request: &ExportLogsServiceRequest| request.resource_logs.clone();
        let scopes: Vec<_> = self.look(|got| got.logs.iter().flat_map(resources).flat_map(|resource| resource.scope_logs).collect());
        scopes.into_iter().flat_map(|scope| scope.log_records).collect()
    }
}

/// Path, headers and body; `None` at the end.
fn request(reader: &mut impl BufRead) -> Option<(String, BTreeMap<String, String>, Vec<u8>)> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let path = line()?.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line()?.split_once(": ") {
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some((path, headers, body))
}

fn start(url: &str, netns: &NetNs, args: &[&str], env: &[(&str, &str)]) -> Tracer {
    let mut command = Command::new(binary());
    command.args(["--json", "-v", "--otlp", url, "--netns", &netns.inode().to_string()]).args(args).envs(env.iter().copied());
    let tracer = Tracer::start_command(command);
    tracer.wait_stderr("rsttrace: sandbox: ");
    tracer
}

/// Ends of several kinds, and at last their records.
fn some_ends(tracer: &Tracer, netns: &NetNs, n: usize) {
    let before = tracer.matching(|record| record["record"] == "teardown").len();
    for i in 0..n {
        let mut pair = Pair::inside(netns);
        pair.client.ok("send 10");
        let read = i % 2 == 0;
        if read {
            pair.server.ok("recv-all 10");
        }
        pair.client.abort();
        if read {
            pair.server.fails("recv 1");
        }
        pair.server.ok("close");
    }
    tracer.wait_n("the ends", before + 2 * n, |record| record["record"] == "teardown");
}

/// So many connections that end by a reset, as fast as one thread makes them; two records each. Gives the last one's port.
fn storm(netns: &NetNs, n: usize) -> u16 {
    netns.run_in(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let SocketAddr::V4(to) = listener.local_addr().expect("its address") else { panic!("IPv4") };
        let mut last = 0;
        for _ in 0..n {
            let client = connect_from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), to).expect("a connection");
            last = client.local_addr().expect("its address").port();
            let (server, _) = listener.accept().expect("its other end");
            abort(client);
            drop(server);
        }
        last
    })
}

/// A run's records that are log records too: ends and late observations.
fn told(run: &Run) -> Vec<&Value> {
    run.records.iter().filter(|record| record["record"] == "teardown" || record["record"] == "late-observation").collect()
}

fn plain(value: &AnyValue) -> Value {
    match value.value.as_ref().expect("a value") {
        any_value::Value::StringValue(text) => json!(text),
        any_value::Value::BoolValue(is) => json!(is),
        any_value::Value::IntValue(n) => json!(n),
        any_value::Value::DoubleValue(n) => json!(n),
        any_value::Value::ArrayValue(array) => array.values.iter().map(plain).collect(),
        other => panic!("{other:?} is not expected"),
    }
}

fn attributes(all: &[KeyValue]) -> Map<String, Value> {
    let plain: Map<_, _> = all.iter().map(|pair| (pair.key.clone(), plain(pair.value.as_ref().expect("a value")))).collect();
    assert_eq!(plain.len(), all.len(), "an attribute stands twice");
    plain
}

/// What the attributes of a record must be, from its line of JSON.
fn expected(record: &Value) -> Map<String, Value> {
    let mut flat = Map::new();
    flatten(&mut flat, String::new(), record);
    for name in ["schema", "record", "time", "verdict"] {
        flat.remove(name);
    }
    let mut all = Map::from_iter([("network.transport".to_owned(), json!("tcp"))]);
    for (path, value) in flat {
        let name = match path.as_str() {
            "family" => "network.type",
            "local.addr" => "network.local.address",
            "local.port" => "network.local.port",
            "remote.addr" => "network.peer.address",
            "remote.port" => "network.peer.port",
            "owner.tgid" => "process.pid",
            "owner.ns_tgid" => "process.vpid",
            "owner.exe" => {
                let name = value.as_str().and_then(|exe| exe.rsplit('/').next()).expect("a path");
                all.insert("process.executable.name".to_owned(), json!(name));
                "process.executable.path"
            }
            "owner.user" => "process.owner",
            "owner.uid" => "process.user.id",
            "owner.container.id" => "container.id",
            "owner.container.runtime" => "container.runtime.name",
            "owner.pod" => "k8s.pod.uid",
            "observer.errno" => "error.type",
            other => &format!("rsttrace.{other}"),
        };
        all.insert(name.to_owned(), value);
    }
    all
}

fn flatten(into: &mut Map<String, Value>, path: String, value: &Value) {
    match value {
        Value::Null => {}
        Value::Array(values) if values.is_empty() => {}
        Value::Object(members) => {
            for (name, value) in members {
                flatten(into, if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value);
            }
        }
        value => drop(into.insert(path, value.clone())),
    }
}

/// Every record of the run once, in any order, and nothing else.
#[track_caller]
fn assert_same(run: &Run, collector: &Collector) {
    let mut sent = collector.records();
    for record in told(run) {
        let expected = expected(record);
        let at = sent.iter().position(|sent| attributes(&sent.attributes) == expected);
        let found = sent.swap_remove(at.unwrap_or_else(|| panic!("not sent, or not so: {record}")));
        let time: u64 = found.time_unix_nano;
        let written = format!("{}.{:09}Z", utc_second(time), time % 1_000_000_000);
        assert_eq!(record["time"].as_str(), Some(written.as_str()));
        if record["record"] == "teardown" {
            assert_eq!(found.body.as_ref().map(plain), Some(record["verdict"].clone()));
            assert_eq!(found.severity_text, record["harm"]);
            let number = match found.severity_text.as_str() {
                "lost" => 17,
                "possible" => 13,
                "unknown" => 9,
                _ => 5,
            };
            assert_eq!((found.severity_number, found.event_name.as_str()), (number, "rsttrace.teardown"));
        }
    }
    assert!(sent.is_empty(), "{} records too many, such as {:?}", sent.len(), sent.first());
}

/// `2026-11-26T15:47:32`
fn utc_second(ns: u64) -> String {
    let seconds = (ns / 1_000_000_000).to_string();
    let output = Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%S"]).output().expect("date");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn every_record_arrives_once_whatever_the_collector_does_first() {
    require_root!();
    let first = [Answer::Status(503, Some("1")), Answer::Reset, Answer::Silence, Answer::Status(429, None)];
    let collector = Collector::start(&first);
    let netns = NetNs::new();
    let env = [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20geheim"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=node-7"),
    ];
    let tracer = start(&collector.url(), &netns, &["--otlp-header", "x-tenant=a"], &env);
    some_ends(&tracer, &netns, 5);
    collector.wait("a request that is taken", |got| !got.logs.is_empty());
    some_ends(&tracer, &netns, 3);
    let run = tracer.stop();
    assert!(run.status.success(), "{}", run.stderr);
    assert_same(&run, &collector);
    assert!(!run.stderr.contains("geheim") && !run.stderr.contains("not delivered"), "{}", run.stderr);
    assert_eq!(run.stderr.matches("--otlp: ").count(), 1, "an outage is told once: {}", run.stderr);
    collector.look(|got| {
        for headers in &got.headers {
            assert_eq!((headers["authorization"].as_str(), headers["x-tenant"].as_str()), ("Bearer geheim", "a"));
        }
        let resource = got.logs[0].resource_logs[0].resource.as_ref().expect("a resource");
        let of = attributes(&resource.attributes);
        let start = &run.records[0];
        for (name, value) in [
            ("service.name", &json!("rsttrace")),
            ("service.version", &start["version"]),
            ("host.name", &start["host"]),
            ("os.type", &json!("linux")),
            ("os.version", &start["kernel"]),
            ("k8s.node.name", &json!("node-7")),
        ] {
            assert_eq!(of.get(name), Some(value), "{name}");
        }
    });
}

#[test]
fn what_a_collector_refuses_is_counted() {
    require_root!();
    let collector = Collector::start(&[Answer::Status(400, None), Answer::Partial(2)]);
    let netns = NetNs::new();
    let tracer = start(&collector.url(), &netns, &[], &[]);
    some_ends(&tracer, &netns, 2);
    collector.wait("the request that is refused", |got| got.plan.len() < 2);
    some_ends(&tracer, &netns, 2);
    collector.wait("the request that is taken in part", |got| got.plan.is_empty());
    let run = tracer.stop();
    let (all, taken) = (told(&run).len(), collector.records().len());
    let refused = all - taken + 2;
    let words = format!("--otlp: {refused} of {all} records were not delivered: {refused} were refused");
    assert!(run.stderr.contains(&words), "expected {words:?}:\n{}", run.stderr);
    assert!(run.stderr.contains("HTTP status 400") && !run.stderr.contains('\u{1b}'), "{}", run.stderr);
}

/// Values of counters by their labels, of gauges and of histograms (their sum, counts and bounds), as they were sent last.
fn metrics(collector: &Collector) -> BTreeMap<String, BTreeMap<String, Value>> {
    let request = collector.look(|got| got.metrics.last().expect("metrics").clone());
    let scope = &request.resource_metrics[0].scope_metrics[0];
    let mut all: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for metric in &scope.metrics {
        let of = all.entry(metric.name.clone()).or_default();
        match metric.data.as_ref().expect("data") {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality() == AggregationTemporality::Cumulative, "{}", metric.name);
                for point in &sum.data_points {
                    assert!(point.start_time_unix_nano <= point.time_unix_nano);
                    let Some(number_data_point::Value::AsInt(n)) = point.value else { panic!("{point:?}") };
                    let labels = serde_json::to_string(&attributes(&point.attributes)).expect("JSON");
                    assert!(of.insert(labels, json!(n)).is_none(), "a series stands twice");
                }
            }
            Data::Gauge(gauge) => {
                for point in &gauge.data_points {
                    let labels = serde_json::to_string(&attributes(&point.attributes)).expect("JSON");
                    let Some(number_data_point::Value::AsInt(n)) = point.value else { continue };
                    of.insert(labels, json!(n));
                }
            }
            Data::Histogram(histogram) => {
                let point = &histogram.data_points[0];
                assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
                of.insert("count".to_owned(), json!(point.count));
                of.insert("sum".to_owned(), json!(point.sum));
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

#[test]
fn metrics_are_the_sums_of_the_records() {
    require_root!();
    let collector = Collector::start(&[Answer::Status(400, None)]);
    let netns = NetNs::new();
    let tracer =
        start(&collector.url(), &netns, &[], &[("OTEL_METRIC_EXPORT_INTERVAL", "200"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "none")]);
    some_ends(&tracer, &netns, 3);
    collector.wait("metrics while it traces", |got| got.metrics.len() > 1 && got.plan.is_empty());
    some_ends(&tracer, &netns, 2);
    let run = tracer.stop();
    let metrics = metrics(&collector);
    let mut ends: BTreeMap<String, Value> = BTreeMap::new();
    let (mut delays, mut lost) = ((0, 0.0), 0);
    for record in run.teardowns() {
        let service = if record["role"] == "client" { &record["remote"] } else { &record["local"] };
        let labels = json!({ "end": record["end"], "cause": record["cause"], "harm": record["harm"],
            "process": record["owner"]["comm"], "service_port": service["port"].to_string() });
        let n = ends.entry(labels.to_string()).or_insert(json!(0));
        *n = json!(n.as_u64().expect("a number") + 1);
        lost += record["lost_bytes"].as_u64().expect("a number");
        if let Some(us) = record["observer"]["delay_us"].as_u64() {
            delays = (delays.0 + 1, delays.1 + us as f64 / 1e6);
        }
    }
    assert_eq!(metrics["rsttrace.teardowns"], ends);
    assert_eq!(metrics["rsttrace.lost"].values().filter_map(Value::as_u64).sum::<u64>(), lost);
    assert_eq!(metrics["rsttrace.observation_delay"]["count"], delays.0);
    // JSON has whole microseconds.
    assert!((metrics["rsttrace.observation_delay"]["sum"].as_f64().expect("a number") - delays.1).abs() < 1e-5);
    let of = |name: &str, labels: Value| metrics[name][&labels.to_string()].clone();
    let (delivered, refused) =
        (of("rsttrace.otlp.delivered_records", json!({})), of("rsttrace.otlp.lost_records", json!({ "reason": "refused" })));
    assert_eq!(delivered, collector.records().len());
    assert_eq!(delivered.as_u64().zip(refused.as_u64()).map(|(a, b)| a + b), Some(told(&run).len() as u64));
    assert_eq!(of("rsttrace.orderly", json!({})), run.summary["orderly"]);
    let start = &run.records[0];
    assert_eq!(of("rsttrace.build_info", json!({ "version": start["version"], "kernel": start["kernel"] })), 1);
    assert_eq!(of("rsttrace.lost_events", json!({})), run.summary["lost"]["total"]);
}

#[test]
fn metrics_do_not_wait_for_records() {
    require_root!();
    // More than one request takes is there when this is over.
    let collector = Collector::start(&[Answer::Status(503, Some("1"))]);
    let netns = NetNs::new();
    let tracer = start(&collector.url(), &netns, &["--buffer", "64M"], &[("OTEL_METRIC_EXPORT_INTERVAL", "5")]);
    // A pipe holds as many records.
    let last = storm(&netns, 500);
    collector.wait("the last record", |got| {
        let records = got.logs.iter().flat_map(|request| &request.resource_logs[0].scope_logs[0].log_records);
        records.rev().any(|record| attributes(&record.attributes).get("network.local.port") == Some(&json!(last)))
    });
    // A request of so many records takes longer than metrics may wait.
    collector.look(|got| {
        assert!(got.logs.len() > 1, "one request had room for all");
        let adjacent = got.paths.windows(2).filter(|two| two.iter().all(|path| path == "/v1/logs")).count();
        assert_eq!(adjacent, 0, "{:?}", got.paths);
    });
    tracer.stop();
}

/// The values of the metrics that were sent last.
fn lost_records(collector: &Collector, reason: &str) -> Value {
    metrics(collector)["rsttrace.otlp.lost_records"][&json!({ "reason": reason }).to_string()].clone()
}

#[test]
fn what_is_left_at_the_end_is_in_the_last_metrics() {
    require_root!();
    // At the end it is tried once a second.
    let collector = Collector::start(&vec![Answer::Status(503, None); 100]);
    let netns = NetNs::new();
    let tracer = start(&collector.url(), &netns, &[], &[]);
    some_ends(&tracer, &netns, 2);
    collector.wait("an attempt", |got| got.plan.len() < 100);
    let run = tracer.stop();
    let all = told(&run).len();
    assert!(
        run.stderr.contains(&format!("--otlp: {all} of {all} records were not delivered: {all} were left at the end")),
        "{}",
        run.stderr
    );
    assert_eq!((lost_records(&collector, "left-at-end"), lost_records(&collector, "refused")), (json!(all), json!(0)));
}

#[test]
fn a_collector_that_asks_for_patience_is_left_alone_by_everybody() {
    require_root!();
    let collector = Collector::start(&[Answer::Status(503, Some("3600"))]);
    let netns = NetNs::new();
    let tracer = start(&collector.url(), &netns, &[], &[("OTEL_METRIC_EXPORT_INTERVAL", "100")]);
    collector.wait("metrics", |got| !got.metrics.is_empty());
    some_ends(&tracer, &netns, 2);
    collector.wait("its wish", |got| got.plan.is_empty());
    let before = collector.look(|got| got.headers.len());
    // That takes four seconds, in which there would be forty.
    let run = tracer.stop();
    assert_eq!(collector.look(|got| got.headers.len()), before, "{}", run.stderr);
    assert!(run.stderr.contains("were left at the end"), "{}", run.stderr);
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_no_trouble() {
    require_root!();
    let collector = Collector::start(&[Answer::Partial(0), Answer::Reset]);
    let netns = NetNs::new();
    let tracer = start(&collector.url(), &netns, &[], &[]);
    some_ends(&tracer, &netns, 1);
    collector.wait("the first request", |got| got.logs.len() == 1);
    some_ends(&tracer, &netns, 1);
    collector.wait("the second, once more", |got| got.logs.len() == 2);
    let run = tracer.stop();
    assert_same(&run, &collector);
    assert!(!run.stderr.contains("--otlp: "), "{}", run.stderr);
}

/// Where nobody reads stderr any more, or nobody ever does.
#[test]
fn what_cannot_be_said_keeps_nobody_from_exporting() {
    require_root!();
    for is_read in [false, true] {
        let collector = Collector::start(&[Answer::Status(503, None), Answer::Status(400, None)]);
        let netns = NetNs::new();
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let reader = if is_read {
            // What it holds by default.
            writer.write_all(&[b'\n'; 64 << 10]).expect("room");
            Some(reader)
        } else {
            None
        };
        let mut command = Command::new(binary());
        command.args(["--json", "-q", "--otlp", &collector.url(), "--netns", &netns.inode().to_string()]);
        let mut tracer = command.stdout(Stdio::piped()).stderr(writer).spawn().expect("rsttrace");
        let mut lines = BufReader::new(tracer.stdout.take().expect("a pipe")).lines();
        assert!(lines.next().expect("a line").expect("a line").contains("\"record\":\"start\""));
        let end = || {
            let mut pair = Pair::inside(&netns);
            pair.client.abort();
            pair.server.fails("recv 1");
        };
        end();
        collector.wait("an attempt that fails, and one that is refused", |got| got.plan.is_empty());
        end();
        collector.wait("records", |got| !got.logs.is_empty());
        // SAFETY: our own child, which is not yet reaped.
        unsafe { libc::kill(tracer.id() as libc::pid_t, libc::SIGTERM) };
        lines.for_each(|line| drop(line.expect("a line")));
        assert!(tracer.wait().expect("its end").success());
        drop(reader);
    }
}

/// Nobody listens.
fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    format!("http://{}", listener.local_addr().expect("its address"))
}

/// The process that exports.
fn exporter(tracer: &Tracer) -> libc::pid_t {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.pid())).expect("children");
    let named = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "rsttrace-export\n");
    children.split_whitespace().find(named).expect("an exporter").parse().expect("a number")
}

/// In KiB.
fn memory(pid: libc::pid_t, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).expect(what);
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_dead_collector_costs_bounded_memory_and_no_record() {
    require_root!();
    const CONNECTIONS: usize = 4_000;
    /// The queue's 8 MiB, what an allocator makes of them, a batch, the pipe and the program's own.
    const MOST_KIB: u64 = 24 << 10;
    let netns = NetNs::new();
    let tracer = start(&dead(), &netns, &["--metrics", "0"], &[]);
    let page = tracer.wait_stderr("rsttrace: metrics at ");
    let exporter = exporter(&tracer);
    let before = memory(exporter, "RssAnon");
    // A pipe holds more than a thousand records, and the exporter reads on while it waits.
    for n in 1..=CONNECTIONS / 250 {
        storm(&netns, 250);
        // The last connection may not have both its records yet.
        wait_until("it has read them", || counted(&page) + 1 >= n * 500);
    }
    tracer.wait_stderr("trying again");
    let most = memory(exporter, "RssAnon");
    assert!(most - before < MOST_KIB, "{before} KiB before, {most} KiB after");
    let run = tracer.stop();
    let all = told(&run).len();
    // The last connection may not have both its records yet.
    assert!(all + 2 >= 2 * CONNECTIONS, "{all}");
    assert_eq!((&run.summary["lost"]["total"], run.status.success()), (&json!(0), true), "{}", run.stderr);
    let line = run.stderr.lines().find(|line| line.contains("not delivered")).expect("losses are told");
    let numbers: Vec<usize> = line.split([' ', ':']).filter_map(|word| word.replace(',', "").parse().ok()).collect();
    let [lost, of, no_room, left] = numbers[..] else { panic!("{line}") };
    let dropped = run.stderr.lines().find_map(|line| line.split_once(" records were not exported")?.0.replace(',', "").parse().ok());
    assert_eq!((lost, of, no_room + left), (all - dropped.unwrap_or(0), lost, lost), "{line}");
    assert!(no_room > 0, "{line}");
    println!("{line}; memory {before} KiB before, {most} KiB after");
}

/// The ends that the exporter knows of, by the line that says where its metrics are.
fn counted(line: &str) -> usize {
    let address = line.strip_prefix("rsttrace: metrics at http://").and_then(|url| url.strip_suffix("/metrics")).expect(line);
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("an answer");
    let values = page.lines().filter(|line| line.starts_with("rsttrace_teardowns_total")).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<usize>().expect("a number")).sum()
}

/// Prints the numbers of docs/fleet.md: `RSTTRACE_BIN=target/release/rsttrace cargo test -p rsttrace-tests --test otlp what_a_record_costs -- --nocapture`.
#[test]
fn what_a_record_costs_is_a_fraction_of_its_json() {
    const STEPS: usize = 10;
    require_root!();
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).and_then(|()| gzip.finish()).expect("memory").len()
    };
    // At a time, and in one request.
    for connections in [1, 10, 100] {
        let collector = Collector::start(&[]);
        let netns = NetNs::new();
        let recording = env::temp_dir().join(format!("rsttrace-cost-{}", std::process::id()));
        let tracer = start(&collector.url(), &netns, &["--record", &recording.display().to_string()], &[]);
        let exporter = exporter(&tracer);
        for n in 1..=STEPS {
            storm(&netns, connections);
            tracer.wait_n("the records", n * connections * 2, |record| record["record"] == "teardown");
            collector.wait("the records", |got| {
                let of = |got: &ExportLogsServiceRequest| got.resource_logs[0].scope_logs[0].log_records.len();
                got.logs.iter().map(of).sum::<usize>() == n * connections * 2
            });
        }
        let cpu: u64 = fs::read_to_string(format!("/proc/{exporter}/schedstat"))
            .expect("schedstat")
            .split(' ')
            .next()
            .expect("a number")
            .parse()
            .expect("a number");
        let memory = memory(exporter, "VmHWM");
        let run = tracer.stop();
        let json: String = run.teardowns().map(|record| format!("{record}\n")).collect();
        let n = run.teardowns().count();
        let recorded = fs::metadata(&recording).expect("a recording").len() as usize;
        let _ = fs::remove_file(&recording);
        let (sent, plain, requests) = collector.look(|got| (got.bytes.0, got.bytes.1, got.logs.len()));
        println!(
            "{connections} connections at a time: {n} records in {requests} requests; bytes per record: OTLP {}, gzip {}; JSON {}, gzip {}; recording {}; exporter: {} us of CPU per record, {memory} KiB at most",
            plain / n,
            sent / n,
            json.len() / n,
            gzip(json.as_bytes()) / n,
            recorded / n,
            cpu / 1_000 / n as u64
        );
        assert!(connections < 100 || sent * 5 < plain && recorded * 5 < json.len(), "{sent} of {plain}, {recorded} of {}", json.len());
    }
}

/// The program that needs no library, where there is one of this state (`cargo xtask vm` makes it), or else the one that is tested; and
/// whether it is static.
fn static_binary() -> (PathBuf, bool) {
    let tested = binary();
    let program = env::current_exe().expect("this program");
    let built = program.ancestors().nth(3).expect("cargo's target directory").join("x86_64-unknown-linux-gnu/release/rsttrace");
    let made = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    let program = if made(&built) > made(&tested) { built } else { tested };
    let head = fs::read(&program).expect("a program");
    let is_static = !head[..4_096].windows(8).any(|bytes| bytes == b"ld-linux");
    (program, is_static)
}

/// Answers for one name: 127.0.0.1.
fn serve_dns(name: &'static str) {
    let socket = UdpSocket::bind("127.0.0.1:53").expect("port 53 in a namespace of our own");
    let question: Vec<u8> = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut query) {
            let end = 12 + question.len();
            let asked = query[12..n].to_ascii_lowercase();
            let is_known = asked.starts_with(&question);
            let is_a = is_known && query[end..end + 2] == [0, 1];
            let code = if is_known { 0 } else { 3 };
            let mut answer = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]].concat();
            let end = 12 + asked.iter().position(|&byte| byte == 0).expect("a name") + 5;
            answer.extend(&query[12..end]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// Without the machine's libc, its NSS modules and its configuration, by /etc/hosts and by DNS.
#[test]
fn a_collector_is_found_by_its_name() {
    require_root!();
    let (program, is_static) = static_binary();
    println!("{}, static: {is_static}", program.display());
    let netns = NetNs::new();
    let collector = netns.run_in(|| {
        serve_dns("collector.example");
        Collector::start(&[])
    });
    let directory = env::temp_dir().join(format!("rsttrace-names-{}", std::process::id()));
    fs::create_dir(&directory).expect("a directory");
    // The second name's first address never answers.
    netns.on_input("ip daddr 127.0.0.2 drop");
    let hosts = "127.0.0.1 written.example\n127.0.0.2 twice.example\n127.0.0.1 twice.example\n";
    fs::write(directory.join("hosts"), hosts).expect("a file");
    fs::write(directory.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1\n").expect("a file");
    let hidden = if is_static { "mount -t tmpfs none /usr/lib && " } else { "" };
    let mut all = 0;
    for (n, name) in ["written.example", "twice.example", "collector.example"].into_iter().enumerate() {
        let script = format!(
            "mount --bind {0}/hosts /etc/hosts && mount --bind {0}/resolv.conf /etc/resolv.conf && {hidden}exec \"$@\"",
            directory.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(&program).args(["--json", "-v", "--otlp"]);
        command.arg(format!("http://{name}:{}", collector.address.port())).args(["--netns", &netns.inode().to_string()]);
        netns.enter(&mut command);
        command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "3000");
        let tracer = Tracer::start_command(command);
        some_ends(&tracer, &netns, 1);
        collector.wait("the records", |got| got.logs.len() > n);
        let run = tracer.stop();
        assert!(!run.stderr.contains("--otlp: "), "{name}: {}", run.stderr);
        // An attempt that was given up is an end too.
        all += told(&run).len();
        assert_eq!(collector.records().len(), all, "{name}");
    }
    let _ = fs::remove_dir_all(&directory);
}

/// `openssl s_server` between us and the exporter: what it decrypts, we read, and it encrypts what we say.
#[test]
fn a_collector_behind_tls_must_have_the_right_certificate() {
    require_root!();
    require_tool!("openssl");
    let netns = NetNs::new();
    let directory = env::temp_dir().join(format!("rsttrace-tls-{}", std::process::id()));
    fs::create_dir(&directory).expect("a directory");
    let path = |name: &str| directory.join(name).display().to_string();
    let make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    for name in ["right", "wrong"] {
        let mut openssl = Command::new("sh");
        openssl.args(["-c", &format!("{make} -keyout {} -out {} 2>&1", path(&format!("{name}.key")), path(&format!("{name}.pem")))]);
        let output = openssl.output().expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-accept", &address.to_string(), "-cert", &path("right.pem"), "-key", &path("right.key")]);
    let mut server = server.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl");
    wait_until("it listens", || TcpStream::connect(address).is_ok());

    let url = format!("https://{address}");
    let tracer = start(&url, &netns, &[], &[("OTEL_EXPORTER_OTLP_CERTIFICATE", &path("wrong.pem"))]);
    some_ends(&tracer, &netns, 1);
    let said = tracer.wait_stderr("trying again");
    assert!(said.contains("TLS: ") && said.contains("certificate"), "{said}");
    assert!(tracer.stop().stderr.contains("2 of 2 records were not delivered"));

    let tracer = start(&url, &netns, &[], &[("OTEL_EXPORTER_OTLP_CERTIFICATE", &path("right.pem"))]);
    some_ends(&tracer, &netns, 1);
    let mut reader = BufReader::new(server.stdout.take().expect("a pipe"));
    let (asked, _, body) = request(&mut reader).expect("a request");
    let mut plain = Vec::new();
    GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("gzip");
    let logs = ExportLogsServiceRequest::decode(&plain[..]).expect("logs");
    assert_eq!((asked.as_str(), logs.resource_logs[0].scope_logs[0].log_records.len()), ("/v1/logs", 2));
    let mut stdin = server.stdin.take().expect("a pipe");
    write!(stdin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").and_then(|()| stdin.flush()).expect("a reader");
    let answers = thread::spawn(move || {
        while request(&mut reader).is_some() {
            let _ = write!(stdin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").and_then(|()| stdin.flush());
        }
    });
    let run = tracer.stop();
    assert!(!run.stderr.contains("--otlp: "), "{}", run.stderr);
    let _ = server.kill();
    let _ = server.wait();
    answers.join().expect("no panic");
    let _ = fs::remove_dir_all(&directory);
}
