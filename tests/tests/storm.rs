//! As many resets as two cores can make: nothing is lost at the default buffer, and with a tiny
//! one every missing record is stated.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rsttrace_tests::{
    Flow, NetNs, binary, check_record, is_stray,
    peers::{abort, connect_from, counters, listen},
    require_root, wait_until,
};
use serde_json::Value;

const PORTS: [u16; 2] = [9101, 9102];
/// Connections that a client may be ahead of its server, less than the accept queue holds.
const AHEAD: usize = 1000;

/// The storms share two cores: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A tracer that writes to a file, because a test that parses while it listens is too slow for it.
struct ToFile {
    child: Child,
    path: PathBuf,
    stderr: mpsc::Receiver<String>,
}

impl ToFile {
    fn start(args: &[&str]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("rsttrace-storm-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let mut command = Command::new(binary());
        command.arg("--json").args(args).stdin(Stdio::null());
        command.stdout(File::create(&path).expect("a file")).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("rsttrace");
        let pipe = BufReader::new(child.stderr.take().expect("a pipe"));
        let (send, stderr) = mpsc::channel();
        thread::spawn(move || pipe.lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
        let tracer = Self { child, path, stderr };
        loop {
            let line = tracer.stderr.recv_timeout(Duration::from_secs(20)).expect("rsttrace: ready");
            if line.contains("rsttrace: ready") {
                return tracer;
            }
        }
    }

    /// Stops the tracer; all its records, each checked against the schema.
    fn stop(mut self) -> Vec<Value> {
        // SAFETY: no memory involved; the child is not yet reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let status = self.child.wait().expect("the tracer's end");
        assert!(status.success(), "{status}: {:?}", self.stderr.try_iter().collect::<Vec<_>>());
        let text = fs::read_to_string(&self.path).expect("the tracer's output");
        let lines: Vec<_> = text.lines().collect();
        let share = lines.len().div_ceil(2).max(1);
        thread::scope(|scope| {
            let workers: Vec<_> = lines
                .chunks(share)
                .map(|lines| {
                    scope.spawn(|| {
                        let parse = |line: &&str| -> Value {
                            let record = serde_json::from_str(line).expect(line);
                            if let Err(problem) = check_record(&record) {
                                panic!("{problem}: {line}");
                            }
                            record
                        };
                        lines.iter().map(parse).collect::<Vec<_>>()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("valid records")).collect()
        })
    }
}

impl Drop for ToFile {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.path);
    }
}

struct Storm {
    /// Every connection as its server sees it.
    connections: Vec<Flow>,
    /// RSTs beyond those of the aborts, by the kernel's count: an acknowledgement that was under
    /// way when the client aborted finds no socket any more, and is answered by one more RST.
    strays: usize,
}

/// Makes `n` connections that the client aborts and whose server waits for the RST, on as many
/// pairs of threads as there are ports.
fn storm(n: usize) -> Storm {
    let servers = PORTS.map(|port| (port, listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), 4096).expect("listen")));
    let begun = Instant::now();
    let share = n.div_ceil(PORTS.len());
    let made = thread::scope(|scope| {
        let mut clients = Vec::new();
        for (at, (port, listener)) in servers.iter().enumerate() {
            let count = share.min(n - at * share);
            let served = std::sync::Arc::new(AtomicUsize::new(0));
            let progress = std::sync::Arc::clone(&served);
            scope.spawn(move || {
                for _ in 0..count {
                    let (mut stream, _) = listener.accept().expect("accept");
                    let mut data = [0; 16];
                    assert_eq!(stream.read(&mut data).expect("what was sent before the RST"), 5);
                    let error = stream.read(&mut data).expect_err("the RST");
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    drop(stream);
                    progress.fetch_add(1, Ordering::Release);
                }
            });
            clients.push(scope.spawn(move || {
                let mut made = Vec::with_capacity(count);
                for i in 0..count {
                    if i % 100 == 0 {
                        wait_until("the server keeps up", || i < served.load(Ordering::Acquire) + AHEAD);
                    }
                    // Several addresses, so that no client port is in use when its turn comes again.
                    let address = Ipv4Addr::new(127, 9, *port as u8, 1 + (i / 5_000) as u8);
                    let server = SocketAddrV4::new(address, *port);
                    let from = SocketAddrV4::new(Ipv4Addr::new(127, 8, *port as u8, 1), 0);
                    let mut stream = connect_from(from, server).expect("connect");
                    stream.write_all(b"storm").expect("send");
                    made.push(Flow::new(SocketAddr::V4(server), stream.local_addr().expect("connected")));
                    abort(stream);
                }
                made
            }));
        }
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    let rate = made.len() as f64 / begun.elapsed().as_secs_f64();
    let counted = |name: &str| counters()[name] as usize;
    wait_until("both ends of every connection are reset", || counted("EstabResets") == 2 * n);
    let strays = counted("OutRsts") - n;
    println!("{n} aborts, {rate:.0} per second, and {strays} RSTs without a socket");
    Storm { connections: made, strays }
}

fn teardowns(records: &[Value]) -> impl Iterator<Item = &Value> {
    records.iter().filter(|record| record["record"] == "teardown")
}

#[test]
fn of_fifty_thousand_resets_as_fast_as_can_be_every_one_has_its_record_with_its_observer() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    // Room for all of it: how soon the tracer is given a CPU is not what is tested.
    let tracer = ToFile::start(&["--netns", &inode, "--port", "9101,9102", "--buffer", "128M"]);
    let made = netns.run_in(|| storm(50_000));
    let stopping = Instant::now();
    let records = tracer.stop();
    println!("read within {:.1} s", stopping.elapsed().as_secs_f64());
    let summary = records.last().expect("a summary");
    assert_eq!(summary["record"], "summary");
    assert_eq!(summary["lost"]["total"], 0, "{summary}");
    assert_eq!(summary["undecodable"], 0, "{summary}");
    assert_eq!(summary["evicted"], 0, "{summary}");

    let me = u64::from(std::process::id());
    let mut servers: HashMap<Flow, usize> = HashMap::new();
    let mut clients: HashMap<Flow, usize> = HashMap::new();
    let mut cookies = std::collections::HashSet::new();
    let mut unseen = 0;
    assert_eq!(teardowns(&records).filter(|record| is_stray(record)).count(), made.strays);
    for record in teardowns(&records).filter(|record| !is_stray(record)) {
        let flow = Flow::in_record(record).expect("addresses");
        assert!(cookies.insert(record["cookie"].as_u64()), "a socket twice: {record}");
        if record["end"] == "reset-received" {
            let observer = &record["observer"];
            let exact = record["seen"] == "yes"
                && observer["tgid"] == me
                && observer["syscall"] == "recvfrom"
                && observer["errno"] == "ECONNRESET"
                && observer["inferred"] == false
                && observer["fd"].as_u64().is_some()
                && observer["delay_us"].as_u64().is_some();
            // The kernel skips a program that it is just running on this CPU, for a thread that was preempted in
            // it; it counts that.
            unseen += usize::from(!exact);
            assert!(exact || record["seen"] == "unknown" && observer.is_null(), "not the server's observer: {record}");
            *servers.entry(flow).or_default() += 1;
        } else {
            assert_eq!(record["end"], "reset-sent", "{record}");
            let closer = &record["closer"];
            assert!(closer["tgid"] == me && closer["syscall"] == "close", "not the closer: {record}");
            *clients.entry(flow.peer()).or_default() += 1;
        }
    }
    let skipped: u64 = summary["lost"]["skipped"].as_object().expect("an object").values().filter_map(Value::as_u64).sum();
    assert!(unseen as u64 <= skipped, "{unseen} observers are missing: {summary}");
    let mut expected: HashMap<Flow, usize> = HashMap::new();
    for flow in made.connections {
        *expected.entry(flow).or_default() += 1;
    }
    let missing = |found: &HashMap<Flow, usize>| -> Vec<String> {
        let differ = expected.iter().filter(|(flow, n)| found.get(flow) != Some(n));
        differ.take(5).map(|(flow, n)| format!("{flow}: {n} made, {:?} recorded", found.get(flow))).collect()
    };
    assert!(servers == expected, "servers' records: {:#?}", missing(&servers));
    assert!(clients == expected, "clients' records: {:#?}", missing(&clients));
    assert_eq!(summary["sockets"]["reset-received"], 50_000, "{summary}");
    assert_eq!(summary["sockets"]["reset-sent"], 50_000 + made.strays, "{summary}");
}

/// The loss counters are the host's and know no namespace, so a reset of somebody else may be among
/// them: fewer than made is a failure, more is one only if it happens every time.
#[test]
fn with_a_tiny_buffer_the_records_and_the_stated_losses_are_all_that_was_made() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const MADE: usize = 10_007;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let netns = NetNs::new();
        let tracer = ToFile::start(&["--buffer", "64k"]);
        let storm = netns.run_in(|| storm(MADE));
        let made = storm.connections.len() * 2 + storm.strays;
        let records = tracer.stop();
        let summary = records.last().expect("a summary");
        let stated = summary["lost"]["records"].as_u64().expect("lost.records") as usize;
        let total = summary["lost"]["total"].as_u64().expect("lost.total") as usize;
        let by_hook: u64 =
            summary["lost"]["by_hook"].as_object().expect("lost.by_hook").values().map(|lost| lost.as_u64().expect("a number")).sum();
        assert_eq!(by_hook as usize, total, "lost events by hook add up: {summary}");
        assert!(stated > 0, "64 KiB were enough, nothing was tested: {summary}");
        assert!(stated <= total, "{summary}");
        let is_ours = |record: &&Value| record["netns"] == netns.inode();
        let printed = teardowns(&records).filter(is_ours).count();
        let others = teardowns(&records).count() - printed;
        println!("{printed} records, {others} of others, {stated} stated as lost, of {made}");
        assert!(printed + stated >= made, "{printed} records and {stated} stated losses of {made}");
        if printed + stated == made {
            return;
        }
        seen.push((printed, stated, made));
    }
    panic!("records, stated losses, and ends made, three times: {seen:?}");
}

/// Sockets that find no room are counted once each, whatever happens to them later, and their ends
/// are still told. As above, sockets of somebody else may be among them.
#[test]
fn beyond_max_sockets_every_end_is_told_and_every_socket_without_room_is_counted() {
    require_root!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const ROOM: usize = 8;
    const CONNECTIONS: usize = 31;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let netns = NetNs::new();
        let inode = netns.inode().to_string();
        let tracer = ToFile::start(&["--netns", &inode, "--max-sockets", &ROOM.to_string()]);
        netns.run_in(|| {
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORTS[0]);
            let listener = listen(address, 100).expect("listen");
            let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
            let open: Vec<_> =
                (0..CONNECTIONS).map(|_| (connect_from(any, address).expect("connect"), listener.accept().expect("accept").0)).collect();
            for (client, mut server) in open {
                abort(client);
                let error = server.read(&mut [0]).expect_err("the RST");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
        });
        let records = tracer.stop();
        let count = |end: &str| teardowns(&records).filter(|record| record["end"] == end).count();
        assert_eq!((count("reset-received"), count("reset-sent")), (CONNECTIONS, CONNECTIONS));
        let evicted = records.last().expect("a summary")["evicted"].as_u64().expect("evicted") as usize;
        assert!(evicted >= 2 * CONNECTIONS - ROOM, "{evicted}");
        if evicted == 2 * CONNECTIONS - ROOM {
            return;
        }
        seen.push(evicted);
    }
    panic!("sockets without room, three times: {seen:?}");
}

#[test]
fn ends_that_are_lost_are_not_counted_as_orderly_too() {
    require_root!();
    const CONNECTIONS: usize = 499;
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = ToFile::start(&["-a", "--buffer", "4k", "--netns", &inode]);
    netns.run_in(|| {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORTS[0]);
        let listener = listen(address, 100).expect("listen");
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        for _ in 0..CONNECTIONS {
            let client = connect_from(any, address).expect("connect");
            let (mut server, _) = listener.accept().expect("accept");
            drop(client);
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
        }
    });
    let records = tracer.stop();
    let told = teardowns(&records).count();
    let summary = records.last().expect("a summary");
    let lost = summary["lost"]["records"].as_u64().expect("lost records") as usize;
    // Others on this host may lose ends as well, but here none is told or counted twice.
    assert!(told + lost >= 2 * CONNECTIONS, "{told} told, {lost} lost");
    assert_eq!(summary["orderly"], 0, "with -a every orderly end is told or lost: {summary}");
}
