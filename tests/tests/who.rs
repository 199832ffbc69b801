//! Who holds the socket, and where: executable, user, unit, container, pod, the name of the network namespace, and
//! addresses behind translation.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rsttrace_tests::{Actor, Cgroup, Flow, NetNs, Pair, PublicCopy, Side, Tracer, expect, require_root, require_tool, shared, wait_until};
use serde_json::{Value, json};

/// A number that no other group of any test has.
fn unique() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    u64::from(std::process::id()) << 16 | u64::from(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// 64 digits, the first of them the most telling.
fn container_id() -> String {
    format!("{:012x}{}", unique() ^ 0xfeed_0000_0000, "0123456789abc".repeat(4))
}

fn pod_uid() -> String {
    format!("2c48913c-b29f-11e7-9350-{:012x}", unique())
}

/// Where the actor's program is.
fn program(actor: &Actor) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", actor.pid())).expect("an executable")
}

/// The client resets, the server sees it: the server's record.
fn reset(tracer: &Tracer, Pair { mut client, mut server }: Pair) -> Value {
    client.abort();
    assert_eq!(server.fails("recv 1"), "ECONNRESET");
    server.ok("close");
    server.record(tracer)
}

#[test]
fn the_holder_has_its_executable_and_its_user() {
    require_root!();
    let pair = Pair::new();
    let exe = program(&pair.server.actor);
    let record = reset(shared(), pair);
    expect(
        &record,
        json!({ "owner": { "exe": exe, "uid": 0, "user": "root", "container": null, "pod": null }, "nat": null, "netns_name": null }),
    );
}

#[test]
fn a_user_has_a_name_only_where_the_host_gives_it_one() {
    require_root!();
    require_tool!("setpriv");
    let tracer = shared();
    for (uid, name) in [(65_534, json!("nobody")), (54_321, Value::Null)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        // It stays until its input is closed.
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -r line <&3; read -r line", address.port());
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", &uid.to_string(), "--clear-groups", "bash", "-c", &script]).stdin(Stdio::piped());
        let mut client = setpriv.spawn().expect("setpriv");
        let (stream, peer) = listener.accept().expect("a connection");
        abort(stream);
        let record = tracer.teardown(Flow::new(peer, address));
        expect(&record, json!({ "owner": { "comm": "bash", "uid": uid, "user": name } }));
        drop(client.stdin.take());
        assert!(client.wait().is_ok());
    }
}

fn abort(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: an option of a socket of ours, with its right size.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn units_containers_and_pods_are_told_by_control_groups_of_either_version() {
    require_root!();
    let tracer = shared();
    let hierarchies = Cgroup::hierarchies();
    assert!(hierarchies.iter().any(|(version, _)| *version == "cgroup v2"), "{hierarchies:?}");
    for (version, root) in hierarchies {
        let (id, pod, unit) = (container_id(), pod_uid(), format!("rsttrace-{}.service", unique()));
        let slice = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice", pod.replace('-', "_"));
        let container = |runtime: Option<&str>| json!({ "id": id, "runtime": runtime });
        let scope = |runtime: &str| format!("{runtime}-{id}.scope");
        let cases = [
            (format!("system.slice/{unit}"), json!({ "unit": unit, "container": null, "pod": null })),
            (format!("docker/{id}"), json!({ "unit": null, "container": container(Some("docker")), "pod": null })),
            (
                format!("system.slice/docker-{id}.scope"),
                json!({ "unit": scope("docker"), "container": container(Some("docker")), "pod": null }),
            ),
            (
                format!("{slice}/cri-containerd-{id}.scope"),
                json!({ "unit": scope("cri-containerd"), "container": container(Some("containerd")), "pod": pod }),
            ),
            (
                format!("{slice}/crio-{id}.scope/container"),
                json!({ "unit": scope("crio"), "container": container(Some("cri-o")), "pod": pod }),
            ),
            (
                format!("machine.slice/libpod-{id}.scope/container"),
                json!({ "unit": scope("libpod"), "container": container(Some("podman")), "pod": null }),
            ),
            (format!("machine.slice/libpod-conmon-{id}.scope"), json!({ "unit": scope("libpod-conmon"), "container": null, "pod": null })),
            (format!("kubepods/besteffort/pod{pod}/{id}"), json!({ "unit": null, "container": container(None), "pod": pod })),
        ];
        for (name, expected) in cases {
            let group = Cgroup::new(&root, &format!("rsttrace-{}/{name}", unique()));
            let pair = Pair::new();
            group.take(pair.server.actor.pid());
            let record = reset(tracer, pair);
            let seen: Vec<_> = ["unit", "container", "pod"].iter().map(|key| &record["owner"][*key]).collect();
            let wanted: Vec<_> = ["unit", "container", "pod"].iter().map(|key| &expected[*key]).collect();
            assert_eq!(seen, wanted, "{version}: {name}\nrecord: {record}");
        }
    }
}

#[test]
fn records_are_chosen_by_container_and_unit() {
    require_root!();
    let (_, root) = Cgroup::hierarchies().swap_remove(0);
    let (id, unit) = (container_id(), format!("rsttrace-{}", unique()));
    let container = Cgroup::new(&root, &format!("rsttrace-{}/{unit}.service/docker/{id}", unique()));
    let service = Cgroup::new(&root, &format!("rsttrace-{}/{unit}.service", unique()));
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let ended = |group: Option<&Cgroup>, name: &str, tracers: &[&Tracer]| {
        let (client, server) = (Actor::spawn_in(&netns, "client"), Actor::spawn_in(&netns, name));
        if let Some(group) = group {
            group.take(server.pid());
        }
        let mut pair = Pair::between(client, server, "127.0.0.1:0");
        pair.server.netns = netns.inode();
        let (server, flow) = (pair.server.actor.pid(), pair.server.flow);
        let Pair { mut client, server: mut side } = pair;
        client.abort();
        assert_eq!(side.fails("recv 1"), "ECONNRESET");
        side.ok("close");
        for tracer in tracers {
            expect(&tracer.teardown(flow), json!({ "owner": { "tgid": server } }));
        }
    };
    let short = &id[..12];
    let start = |flags: &[&str]| Tracer::start(&[&["--netns", &inode][..], flags].concat());
    let by_container = start(&["--container", short]);
    let by_unit = start(&["--unit", &unit]);
    let by_all = start(&["--container", &id, "--unit", &format!("{unit}.service"), "-p", "inside"]);
    for tracer in [&by_container, &by_unit, &by_all] {
        tracer.wait_stderr("waiting for one");
    }
    ended(None, "outside", &[]);
    ended(Some(&service), "inside", &[&by_unit]);
    ended(Some(&container), "other", &[&by_container, &by_unit]);
    ended(Some(&container), "inside", &[&by_container, &by_unit, &by_all]);
    for (tracer, shown, words, filters) in [
        (by_container, 2, format!("in container {short}"), vec![format!("container={short}")]),
        (by_unit, 3, format!("in unit {unit}.service"), vec![format!("unit={unit}.service")]),
        (
            by_all,
            1,
            format!("in container {short} in unit {unit}.service"),
            vec!["pid=inside".to_owned(), format!("container={id}"), format!("unit={unit}.service")],
        ),
    ] {
        let run = tracer.stop();
        assert!(run.stderr.contains(&words), "{}", run.stderr);
        assert_eq!(run.teardowns().count(), shown, "{words}");
        // The other half of each connection at least.
        assert!(run.summary["filtered"].as_u64() >= Some(8 - shown as u64), "{}", run.summary);
        let said = run.records[0]["filters"].as_array().expect("filters");
        assert!(filters.iter().all(|filter| said.contains(&json!(filter))), "{said:?}");
    }
}

/// Has the tracer sleep while something happens that it must not see.
fn unseen(tracer: &Tracer, work: impl FnOnce()) {
    tracer.signal(libc::SIGSTOP);
    wait_until("the tracer has stopped", || {
        fs::read_to_string(format!("/proc/{}/stat", tracer.pid())).is_ok_and(|stat| stat.contains(") T "))
    });
    work();
    tracer.signal(libc::SIGCONT);
}

#[test]
fn who_is_killed_with_its_connection_is_named_if_it_lived_when_the_trace_began() {
    require_root!();
    let (_, root) = Cgroup::hierarchies().swap_remove(0);
    let id = container_id();
    let group = Cgroup::new(&root, &format!("rsttrace-{}/docker/{id}", unique()));
    let Pair { mut client, server } = Pair::new();
    group.take(server.actor.pid());
    let (exe, flow, pid) = (program(&server.actor), server.flow, server.actor.pid());
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    client.ok("send 20");
    unseen(&tracer, || server.actor.kill());
    let record = tracer.teardown(flow);
    expect(
        &record,
        json!({
            "owner": { "tgid": pid, "comm": "server", "exe": exe, "user": "root", "uid": 0, "container": { "id": id, "runtime": "docker" } },
            "closer": { "tgid": pid, "exiting": true },
        }),
    );
}

#[test]
fn who_is_killed_after_an_earlier_record_is_named_too_and_else_unknown() {
    require_root!();
    let tracer = Tracer::start(&["--join-timeout", "1s", "-a"]);
    let mut server = Actor::spawn("server");
    let (listener, address) = server.listen("127.0.0.1:0");
    let mut client = Actor::spawn("client");
    let mut connect = |server: &mut Actor| (client.connect(address), server.accept(listener));
    let (first, second) = (connect(&mut server), connect(&mut server));
    let (one, two) = (server.flow(first.1), server.flow(second.1));
    client.ok(format!("linger0 {}", first.0));
    client.ok(format!("close {}", first.0));
    assert_eq!(server.fails(format!("recv {} 1", first.1)), "ECONNRESET");
    server.ok(format!("close {}", first.1));
    let exe = program(&server);
    expect(&tracer.teardown(one), json!({ "owner": { "exe": exe } }));
    client.ok(format!("send {} 20", second.0));
    unseen(&tracer, || server.kill());
    expect(&tracer.teardown(two), json!({ "owner": { "exe": exe, "uid": 0 } }));

    // Nobody can have looked at this one before it was gone.
    let mut flow = None;
    unseen(&tracer, || {
        let Pair { mut client, server } = Pair::new();
        flow = Some(server.flow);
        client.ok("send 20");
        server.actor.kill();
    });
    let flow = flow.expect("a connection");
    expect(
        &tracer.teardown(flow),
        json!({ "owner": { "comm": "server", "exe": null, "user": null, "uid": null, "unit": null, "container": null, "pod": null } }),
    );
}

#[test]
fn who_starts_later_is_named_without_an_earlier_record_if_it_lives_for_a_while() {
    require_root!();
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    let mut pairs: Vec<_> = (0..20).map(|_| Pair::new()).collect();
    let exe = program(&pairs[0].server.actor);
    // One a second, until the tracer has come by.
    let named = std::iter::from_fn(|| pairs.pop()).any(|Pair { mut client, server }| {
        std::thread::sleep(Duration::from_secs(1));
        let flow = server.flow;
        client.ok("send 20");
        unseen(&tracer, || server.actor.kill());
        tracer.teardown(flow)["owner"]["exe"] == json!(exe)
    });
    assert!(named, "none of twenty");
}

#[test]
fn a_named_namespace_has_its_name_however_late_it_came() {
    require_root!();
    let early = NetNs::new();
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    let late = NetNs::new();
    for netns in [&early, &late] {
        expect(&reset(&tracer, Pair::inside(netns)), json!({ "netns": netns.inode(), "netns_name": netns.name() }));
    }
    expect(&reset(&tracer, Pair::new()), json!({ "netns_name": null }));
}

/// A namespace in which whoever dials the first address of a family reaches the second.
fn translating() -> (NetNs, [(SocketAddr, SocketAddr); 2]) {
    let netns = NetNs::new();
    let nft = |words: &str| netns.command("nft", &[words]);
    netns.command("ip", &["addr", "add", "10.98.0.1/32", "dev", "lo"]);
    netns.command("ip", &["-6", "addr", "add", "fd98::1/128", "dev", "lo"]);
    netns.command("ip", &["route", "add", "10.99.0.1/32", "dev", "lo", "src", "10.98.0.1"]);
    netns.command("ip", &["-6", "route", "add", "fd99::1/128", "dev", "lo", "src", "fd98::1"]);
    nft("add table inet n");
    nft("add chain inet n o { type nat hook output priority -100; }");
    nft("add rule inet n o ip daddr 10.99.0.1 tcp dport 443 dnat ip to 10.98.0.1:8443");
    nft("add rule inet n o ip6 daddr fd99::1 tcp dport 443 dnat ip6 to [fd98::1]:8443");
    let pair = |dialled: &str, real: &str| (dialled.parse().expect("an address"), real.parse().expect("an address"));
    (netns, [pair("10.99.0.1:443", "10.98.0.1:8443"), pair("[fd99::1]:443", "[fd98::1]:8443")])
}

/// Dials one address and is answered by another.
fn dial(netns: &NetNs, dialled: SocketAddr, real: SocketAddr) -> Pair {
    let (mut client, mut server) = (Actor::spawn_in(netns, "client"), Actor::spawn_in(netns, "server"));
    let (listener, _) = server.listen(&real.to_string());
    let fd = client.connect(dialled);
    let mut client = Side::new(client, fd, "client");
    let fd = server.accept(listener);
    server.ok(format!("close {listener}"));
    let mut server = Side::new(server, fd, "server");
    client.netns = netns.inode();
    server.netns = netns.inode();
    Pair { client, server }
}

fn json_of(address: SocketAddr) -> Value {
    json!({ "addr": address.ip().to_string(), "port": address.port() })
}

/// Both ends of a connection that is reset say what the other saw.
fn assert_translated(tracer: &Tracer, pair: Pair, dialled: SocketAddr, real: SocketAddr) {
    let Pair { mut client, mut server } = pair;
    client.abort();
    assert_eq!(server.fails("recv 1"), "ECONNRESET");
    server.ok("close");
    expect(&client.record(tracer), json!({ "remote": json_of(dialled), "nat": { "original": null, "translated": json_of(real) } }));
    expect(&server.record(tracer), json!({ "local": json_of(real), "nat": { "original": json_of(dialled), "translated": null } }));
}

#[test]
fn both_ends_of_a_translated_connection_say_what_they_cannot_see() {
    require_root!();
    require_tool!("nft");
    let tracer = Tracer::start(&["--join-timeout", "1s"]);
    let (netns, families) = translating();
    for (dialled, real) in families {
        assert_translated(&tracer, dial(&netns, dialled, real), dialled, real);
    }
    // Beside them, one that is not.
    expect(&reset(&tracer, Pair::inside(&netns)), json!({ "nat": null }));
}

#[test]
fn a_redirected_connection_says_so_too() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    let (dialled, real): (SocketAddr, SocketAddr) = ("127.0.0.1:80".parse().unwrap(), "127.0.0.1:15001".parse().unwrap());
    netns.command("nft", &["add table ip n"]);
    netns.command("nft", &["add chain ip n o { type nat hook output priority -100; }"]);
    netns.command("nft", &["add rule ip n o tcp dport 80 redirect to :15001"]);
    assert_translated(tracer, dial(&netns, dialled, real), dialled, real);
}

#[test]
fn without_translation_there_is_none_although_connections_are_tracked() {
    require_root!();
    require_tool!("nft");
    let tracer = shared();
    let netns = NetNs::new();
    netns.on_input("ct state established accept");
    expect(&reset(tracer, Pair::inside(&netns)), json!({ "nat": null }));
}

#[test]
fn what_is_known_of_the_translation_of_many_short_connections_is_right() {
    require_root!();
    require_tool!("nft");
    const CONNECTIONS: usize = 211;
    let (netns, [(dialled, real), _]) = translating();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--join-timeout", "5s", "--netns", &inode]);
    // Connection tracking is read through a process that lives there; our own does not.
    let _resident = Actor::spawn_in(&netns, "resident");
    let listener = netns.run_in(|| TcpListener::bind(real).expect("a listener"));
    for _ in 0..CONNECTIONS {
        let client = netns.run_in(|| TcpStream::connect(dialled).expect("a connection"));
        let (mut server, _) = listener.accept().expect("it");
        (&client).write_all(b"x").expect("a byte");
        server.read_exact(&mut [0]).expect("the byte");
        abort(client);
        assert!(server.read(&mut [0]).is_err());
    }
    let records = tracer.wait_n("both ends", 2 * CONNECTIONS, |record| record["record"] == "teardown");
    // How many are known depends on how soon the reader gets a CPU; none may be wrong.
    let known: Vec<_> = records.iter().filter(|record| !record["nat"].is_null()).collect();
    println!("{} of {} are known to be translated", known.len(), records.len());
    assert!(!known.is_empty());
    for record in known {
        let (original, translated) =
            (json!({ "addr": dialled.ip(), "port": dialled.port() }), json!({ "addr": real.ip(), "port": real.port() }));
        let expected = if record["role"] == "server" { ("/nat/original", original) } else { ("/nat/translated", translated) };
        assert_eq!(record.pointer(expected.0), Some(&expected.1), "{record}");
    }
}

#[test]
fn without_rights_to_look_it_stays_unknown() {
    require_root!();
    require_tool!("setpriv");
    require_tool!("nft");
    let copy = PublicCopy::new();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps", "+bpf,+perfmon,+net_admin", "--ambient-caps", "+bpf,+perfmon,+net_admin"]);
    command.arg(copy.path()).args(["--json", "--join-timeout", "1s"]);
    let tracer = Tracer::start_command(command);
    let (netns, [(dialled, real), _]) = translating();
    let record = reset(&tracer, dial(&netns, dialled, real));
    expect(
        &record,
        json!({ "owner": { "comm": "server", "exe": null, "uid": 0, "user": "root" }, "nat": null, "netns_name": netns.name() }),
    );
    assert!(tracer.stop().status.success());
}
