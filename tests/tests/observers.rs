//! Who saw the error: every way an application learns of a reset, with strace as the witness.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::mpsc,
    thread,
};

use rsttrace_tests::{
    Actor, DEADLINE, Flow, Pair, Side, Strace, Tracer, expect, in_range, observed, require_root, require_tool, shared, wait_until,
};
use serde_json::{Value, json};

/// A server under strace whose client has aborted, the error waiting to be taken.
fn aborted_under_strace() -> (Side, Strace) {
    let (server, strace) = Strace::actor("server");
    let Pair { mut client, mut server } = Pair::between(Actor::spawn("client"), server, "127.0.0.1:0");
    client.abort();
    server.ok("poll error");
    (server, strace)
}

/// Takes the error of an aborted connection by one command, and compares the record with what
/// strace says of the same call.
#[track_caller]
fn taken_by(command: &str, syscall: &str) {
    let tracer = shared();
    let (mut server, strace) = aborted_under_strace();
    assert_eq!(server.fails(command), "ECONNRESET", "{command}");
    server.ok("close");

    let record = server.record(tracer);
    expect(&record, json!({ "end": "reset-received", "state": "ESTABLISHED" }));
    let mut observer = server.observer(syscall, "ECONNRESET");
    if matches!(syscall, "sendfile" | "splice") {
        // Had the call moved bytes before, it would have returned those and kept the error.
        observer["inferred"] = true.into();
    }
    observed(&record, observer);
    let call = strace.wait("the error", |call| call.errno.as_deref() == Some("ECONNRESET"));
    expect(
        &record,
        json!({
            "observer": { "tid": call.tid, "syscall": call.name, "errno": call.errno },
        }),
    );
    // The descriptor is the first argument, but splice's third where it writes to the socket.
    if call.name == "splice" {
        assert!(call.line.contains(&format!(", {}<", server.fd)), "{}", call.line);
    } else {
        assert_eq!(call.fd, Some(server.fd), "{}", call.line);
    }
}

macro_rules! taken_by {
    ($($test:ident: $command:literal is $syscall:literal;)+) => {
        $(#[test]
        fn $test() {
            require_root!();
            require_tool!("strace");
            taken_by($command, $syscall);
        })+
    };
}

taken_by! {
    an_error_taken_by_recv: "recv 10" is "recvfrom";
    an_error_taken_by_read: "read 10" is "read";
    an_error_taken_by_readv: "readv 10" is "readv";
    an_error_taken_by_recvmsg: "recvmsg 10" is "recvmsg";
    an_error_taken_by_msg_peek: "peek 10" is "recvfrom";
    an_error_taken_by_send: "send 10" is "sendto";
    an_error_taken_by_write: "write 10" is "write";
    an_error_taken_by_writev: "writev 10" is "writev";
    an_error_taken_by_sendmsg: "sendmsg 10" is "sendmsg";
    an_error_taken_by_sendfile: "sendfile 10" is "sendfile";
    an_error_taken_by_splice_to_the_socket: "splice-to 10" is "splice";
}

#[test]
fn an_error_taken_by_so_error() {
    require_root!();
    require_tool!("strace");
    let tracer = shared();
    let (mut server, strace) = aborted_under_strace();
    assert_eq!(server.ok("so-error"), "ECONNRESET");
    assert_eq!(server.get("recv 10"), 0, "the error is taken");
    server.ok("close");

    let record = server.record(tracer);
    observed(&record, server.observer("getsockopt", "ECONNRESET"));
    let call = strace.wait("SO_ERROR", |call| call.line.contains("SO_ERROR, [ECONNRESET]"));
    expect(&record, json!({ "observer": { "tid": call.tid, "syscall": call.name, "fd": call.fd } }));
}

#[test]
fn strace_agrees_on_a_refused_connect() {
    require_root!();
    require_tool!("strace");
    let tracer = shared();
    let mut nobody = Actor::spawn("nobody");
    let held = nobody.socket(([127, 0, 0, 1], 0).into());
    nobody.ok(format!("bind {held} 127.0.0.1:0"));
    let to = nobody.get(format!("local {held}"));
    let (mut client, strace) = Strace::actor("client");
    let fd = client.socket(to);
    client.ok(format!("bind {fd} 127.0.0.1:0"));
    let flow = Flow::new(client.get(format!("local {fd}")), to);
    assert_eq!(client.fails(format!("connect {fd} {to}")), "ECONNREFUSED");
    client.ok(format!("close {fd}"));
    same_call(&tracer.teardown(flow), &strace, "ECONNREFUSED");
}

#[test]
fn strace_agrees_on_epipe_after_the_peers_fin() {
    require_root!();
    require_tool!("strace");
    let tracer = shared();
    let (server, strace) = Strace::actor("server");
    let Pair { mut client, mut server } = Pair::between(Actor::spawn("client"), server, "127.0.0.1:0");
    client.ok("close");
    server.ok("poll eof");
    server.ok("write 10");
    server.ok("poll error");
    assert_eq!(server.get("read 10"), 0);
    assert_eq!(server.fails("write 10"), "EPIPE");
    server.ok("close");
    same_call(&server.record(tracer), &strace, "EPIPE");
}

#[test]
fn strace_agrees_on_econnaborted_by_ss_kill() {
    require_root!();
    require_tool!("strace");
    require_tool!("ss");
    let tracer = shared();
    let (server, strace) = Strace::actor("server");
    let Pair { client: _client, mut server } = Pair::between(Actor::spawn("client"), server, "127.0.0.1:0");
    server.kill_by_ss();
    assert_eq!(server.fails("readv 10"), "ECONNABORTED");
    server.ok("close");
    same_call(&server.record(tracer), &strace, "ECONNABORTED");
}

/// The record's observer is the call that strace saw fail with this errno.
#[track_caller]
fn same_call(record: &Value, strace: &Strace, errno: &str) {
    let call = strace.wait(errno, |call| call.errno.as_deref() == Some(errno));
    expect(
        record,
        json!({
            "observer": { "tid": call.tid, "syscall": call.name, "fd": call.fd, "errno": errno },
            "seen": "yes",
        }),
    );
}

/// Some calls take the error from the socket where no hook sees it.
#[track_caller]
fn taken_unseen_by(command: &str, syscall: &str) {
    let tracer = shared();
    let (mut server, strace) = aborted_under_strace();
    assert_eq!(server.fails(command), "ECONNRESET", "{command}");
    server.ok("close");

    let call = strace.wait("the error", |call| call.errno.as_deref() == Some("ECONNRESET"));
    assert_eq!((call.name.as_str(), call.tid), (syscall, server.actor.pid()));
    let record = server.record(tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "observer": {
                "tgid": call.tid,
                "tid": call.tid,
                "comm": "server",
                "syscall": null,
                "fd": null,
                "errno": "ECONNRESET",
                "delay_us": null,
                "inferred": true,
            },
            "seen": "yes",
        }),
    );
}

#[test]
fn an_error_taken_by_splice_is_inferred() {
    require_root!();
    require_tool!("strace");
    taken_unseen_by("splice-from 10", "splice");
}

#[test]
fn an_error_taken_by_recvmmsg_is_inferred() {
    require_root!();
    require_tool!("strace");
    // __sys_recvmmsg() takes a pending error itself, before any receive.
    taken_unseen_by("recvmmsg 10", "recvmmsg");
}

#[test]
fn a_blocked_recvmmsg_is_caught() {
    require_root!();
    blocked_in("recvmmsg 10", "recvmmsg", libc::SYS_recvmmsg);
}

#[test]
fn io_uring_names_the_process_and_no_descriptor() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.abort();
    server.ok("poll error");
    let errno = server.fails("uring-recv 10");
    if ["EPERM", "ENOSYS"].contains(&errno.as_str()) {
        rsttrace_tests::tell_skipped("io_uring is disabled here");
        return;
    }
    assert_eq!(errno, "ECONNRESET");
    server.ok("close");

    let record = server.record(tracer);
    observed(
        &record,
        json!({
            "tgid": server.actor.pid(),
            "tid": server.actor.pid(),
            "comm": "server",
            "syscall": "io_uring_enter",
            "fd": null,
            "errno": "ECONNRESET",
            "inferred": false,
        }),
    );
}

/// The reset arrives while the call sleeps.
#[track_caller]
fn blocked_in(command: &str, syscall: &str, number: libc::c_long) {
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    let command = server.on_socket(command);
    server.actor.begin(command);
    server.actor.wait_in_syscall(number);
    client.abort();
    assert_eq!(server.actor.reply(), Err("ECONNRESET".into()));
    server.ok("close");

    let record = server.record(tracer);
    expect(&record, json!({ "end": "reset-received", "state": "ESTABLISHED" }));
    observed(&record, server.observer(syscall, "ECONNRESET"));
    // It is woken, not polled: far below any timer.
    in_range(&record, "/observer/delay_us", 0..1_000_000);
}

#[test]
fn a_blocked_recv_is_woken_by_the_reset() {
    require_root!();
    blocked_in("recv 10", "recvfrom", libc::SYS_recvfrom);
}

#[test]
fn a_blocked_read_is_woken_by_the_reset() {
    require_root!();
    blocked_in("read 10", "read", libc::SYS_read);
}

#[test]
fn queued_data_comes_first_and_nothing_after_the_error_counts() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 7");
    server.ok("poll in");
    client.abort();
    server.ok("poll error");
    assert_eq!(server.get("recv 100"), 7);
    assert_eq!(server.fails("recv 100"), "ECONNRESET");
    assert_eq!(server.get("read 100"), 0);
    assert_eq!(server.fails("write 100"), "EPIPE");
    server.ok("close");

    let record = server.record(tracer);
    expect(&record, json!({ "end": "reset-received", "bytes": { "received": 7, "unread": 7 } }));
    observed(&record, server.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn a_short_read_leaves_the_error_for_the_next_call() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 5");
    server.ok("poll in");
    client.abort();
    server.ok("poll error");
    // MSG_WAITALL: what there is comes back, not the error.
    assert_eq!(server.get("recv-all 100"), 5);
    assert_eq!(server.fails("read 100"), "ECONNRESET");
    server.ok("close");
    observed(&server.record(tracer), server.observer("read", "ECONNRESET"));
}

#[test]
fn nobody_saw_it_is_proved_by_the_sockets_destruction() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.send_to(&mut server, 20);
    client.abort();
    server.ok("poll error");
    server.ok("close");

    expect(
        &server.record(tracer),
        json!({
            "end": "reset-received",
            "bytes": { "received": 20 },
            "observer": null,
            "seen": "never",
            "closer": null,
            "released": server.task("close"),
        }),
    );
}

#[test]
fn two_threads_wait_and_the_one_that_saw_it_is_named() {
    require_root!();
    let tracer = shared();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    let flow = Flow::of(&server);
    let (send, receive) = mpsc::channel();
    for _ in 0..2 {
        let mut socket = server.try_clone().expect("dup");
        let send = send.clone();
        let waiter = thread::Builder::new().name("waiter".into());
        let _detached = waiter.spawn(move || {
            // SAFETY: no preconditions.
            let tid = unsafe { libc::gettid() };
            send.send((tid, socket.as_raw_fd(), None)).expect("the test waits");
            let outcome = socket.read(&mut [0; 10]).map_err(|error| error.raw_os_error());
            send.send((tid, socket.as_raw_fd(), Some(outcome))).expect("the test waits");
            // Their descriptors stay open until the test drops the channel.
            drop(send);
            thread::park_timeout(DEADLINE);
        });
    }
    for _ in 0..2 {
        let (tid, _, _) = receive.recv_timeout(DEADLINE).expect("a thread starts");
        wait_until("the thread waits in recv", || {
            std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall"))
                .is_ok_and(|text| text.starts_with(&format!("{} ", libc::SYS_recvfrom)))
        });
    }
    abort(client);
    let mut errors = Vec::new();
    for _ in 0..2 {
        let (tid, fd, outcome) = receive.recv_timeout(DEADLINE).expect("a thread returns");
        match outcome.expect("an outcome") {
            Ok(0) => {}
            Ok(n) => panic!("{n} bytes from nowhere"),
            Err(errno) => errors.push((tid, fd, errno)),
        }
    }
    assert_eq!(errors.len(), 1, "the error is delivered once");
    let (tid, fd, errno) = errors[0];
    assert_eq!(errno, Some(libc::ECONNRESET));
    let record = tracer.teardown(flow);
    let process = std::fs::read_to_string("/proc/self/comm").expect("/proc");
    expect(
        &record,
        json!({
            "end": "reset-received",
            "role": "server",
            "owner": { "tgid": std::process::id(), "comm": process.trim_end() },
        }),
    );
    observed(
        &record,
        json!({
            "tgid": std::process::id(),
            "tid": tid,
            "comm": "waiter",
            "syscall": "recvfrom",
            "fd": fd,
            "errno": "ECONNRESET",
            "inferred": false,
        }),
    );
}

/// Resets a connection of this process.
fn abort(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: an option of that length.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size_of::<libc::linger>() as _)
    };
    assert_eq!(result, 0);
}

#[test]
fn an_mptcp_listener_hears_of_a_plain_clients_abort() {
    require_root!();
    mptcp(false);
}

#[test]
fn an_mptcp_connection_is_observed_through_its_own_socket() {
    require_root!();
    let start = shared().wait("the first record", |record| record["record"] == "start");
    if start["hooks"]["sock_recv_length"] != "tp_btf" {
        // docs/kernel-support.md
        return rsttrace_tests::tell_skipped("what MPTCP returns is seen by the tracepoint only");
    }
    mptcp(true);
}

/// The application holds MPTCP's socket, the reset ends the TCP socket below.
fn mptcp(both: bool) {
    let tracer = shared();
    let mut server = Actor::spawn("server");
    let listener: i32 = match server.call("listen-mptcp 127.0.0.1:0") {
        Ok(fd) => fd.parse().expect("a descriptor"),
        Err(errno) => {
            rsttrace_tests::tell_skipped(&format!("no MPTCP here ({errno})"));
            return;
        }
    };
    let to: std::net::SocketAddr = server.get(format!("local {listener}"));
    let mut client = Actor::spawn("client");
    let ours: i32 = client.get(if both { "socket-mptcp 4" } else { "socket 4" });
    client.ok(format!("connect {ours} {to}"));
    let flow = client.flow(ours);
    let theirs = server.accept(listener);
    client.ok(format!("send {ours} 20"));
    server.ok(format!("recv-all {theirs} 20"));
    client.ok(format!("linger0 {ours}"));
    client.ok(format!("close {ours}"));
    server.ok(format!("poll {theirs} error"));
    assert_eq!(server.fails(format!("recv {theirs} 10")), "ECONNRESET");
    server.ok(format!("close {theirs}"));

    let record = tracer.teardown(flow.peer());
    expect(
        &record,
        json!({
            "end": "reset-received",
            "role": "server",
            "owner": { "tgid": server.pid(), "comm": "server" },
        }),
    );
    observed(
        &record,
        json!({
            "tgid": server.pid(), "syscall": "recvfrom", "fd": theirs, "errno": "ECONNRESET",
        }),
    );
}

/// A record told as "not yet", and the late observation that completes it.
#[track_caller]
fn noticed_late(wait: std::time::Duration) {
    let tracer = Tracer::start(&["-a", "--join-timeout", "200ms"]);
    let Pair { mut client, mut server } = Pair::new();
    client.abort();
    let record = server.record(&tracer);
    expect(
        &record,
        json!({
            "end": "reset-received",
            "observer": null,
            "seen": "not-yet",
            "released": null,
        }),
    );
    // Not for synchronisation: lateness is what is tested.
    thread::sleep(wait);
    assert_eq!(server.fails("recv 10"), "ECONNRESET");
    let late = tracer.wait("a late observation", |record| record["record"] == "late-observation" && server.flow.matches(record));
    let identity = server.identity();
    expect(
        &late,
        json!({
            "schema": 1,
            "cookie": server.cookie,
            "local": identity["local"],
            "remote": identity["remote"],
            "netns": identity["netns"],
            "end": "reset-received",
            "observer": server.observer("recvfrom", "ECONNRESET"),
        }),
    );
    let least = wait.as_micros() as i64 + 200_000;
    in_range(&late, "/observer/delay_us", least..=least + DEADLINE.as_micros() as i64);
    server.ok("close");
    let run = tracer.stop();
    let of_it = |record: &&Value| server.flow.matches(record);
    assert_eq!(run.records.iter().filter(of_it).count(), 2, "one teardown, one late observation");
    assert!(run.status.success());
}

#[test]
fn noticed_after_the_join_timeout() {
    require_root!();
    noticed_late(std::time::Duration::ZERO);
}

#[test]
fn noticed_ten_seconds_late() {
    require_root!();
    noticed_late(std::time::Duration::from_secs(10));
}

#[test]
fn an_error_taken_late_and_unseen_is_inferred_late() {
    require_root!();
    let tracer = Tracer::start(&["--join-timeout", "200ms"]);
    let Pair { mut client, mut server } = Pair::new();
    client.abort();
    expect(&server.record(&tracer), json!({ "observer": null, "seen": "not-yet" }));
    assert_eq!(server.fails("splice-from 10"), "ECONNRESET");
    server.ok("close");
    let late = tracer.wait("a late observation", |record| record["record"] == "late-observation" && server.flow.matches(record));
    expect(
        &late,
        json!({
            "cookie": server.cookie,
            "observer": {
                "tgid": server.actor.pid(), "syscall": null, "fd": null, "errno": "ECONNRESET",
                "inferred": true,
            },
        }),
    );
}

/// A 32-bit client: connects, receives by the call that its second argument names, exits with
/// the errno.
const CLIENT_32: &str = r#"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    char buffer[16];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (argc < 3 || connect(fd, (struct sockaddr *)&to, sizeof to))
        return 255;
    dup2(fd, 9);
    close(fd);
    long n;
    if (!strcmp(argv[2], "read")) {
        n = read(9, buffer, sizeof buffer);
    } else if (!strcmp(argv[2], "recvfrom")) {
        n = syscall(SYS_recvfrom, 9, buffer, sizeof buffer, 0, 0, 0);
    } else {
        unsigned long args[4] = { 9, (unsigned long)buffer, sizeof buffer, 0 };
        n = syscall(SYS_socketcall, 10 /* SYS_RECV */, args);
    }
    return n < 0 ? errno : 254;
}
"#;

#[test]
fn a_32_bit_process_is_read_by_its_own_system_call_table() {
    require_root!();
    require_tool!("gcc");
    let tracer = shared();
    let directory = std::env::temp_dir().join(format!("rsttrace-32-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("temporary directory");
    let source = directory.join("client32.c");
    let program = directory.join("client32");
    std::fs::write(&source, CLIENT_32).expect("source");
    let gcc = std::process::Command::new("gcc").args(["-m32", "-o"]).arg(&program).arg(&source).output().expect("gcc");
    if !gcc.status.success() {
        let why = String::from_utf8_lossy(&gcc.stderr);
        rsttrace_tests::tell_skipped(&format!("gcc -m32 does not work here (gcc-multilib?): {why}"));
        return;
    }
    // socketcall() has no descriptor among its arguments.
    for (call, fd) in [("read", Some(9)), ("recvfrom", Some(9)), ("socketcall", None)] {
        let mut server = Actor::spawn("server");
        let (listener, address) = server.listen("127.0.0.1:0");
        let mut client = std::process::Command::new(&program).args([&address.port().to_string(), call]).spawn().expect("the 32-bit client");
        let accepted = server.accept(listener);
        let mut server = Side::new(server, accepted, "server");
        server.abort();
        let status = client.wait().expect("the client ends");
        assert_eq!(status.code(), Some(libc::ECONNRESET), "{call}");

        let record = tracer.teardown(server.flow.peer());
        expect(
            &record,
            json!({
                "end": "reset-received",
                "owner": { "tgid": client.id(), "comm": "client32" },
            }),
        );
        observed(
            &record,
            json!({
                "tgid": client.id(),
                "tid": client.id(),
                "comm": "client32",
                "syscall": call,
                "fd": fd,
                "errno": "ECONNRESET",
                "inferred": false,
            }),
        );
    }
    let _ = std::fs::remove_dir_all(&directory);
}

#[test]
fn a_call_that_fails_for_a_reason_of_its_own_observes_nothing() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("send 20");
    server.ok("poll in");
    client.abort();
    server.ok("poll error");
    assert_eq!(server.fails("recv-oob 1"), "EINVAL");
    assert_eq!(server.get("recv 20"), 20, "what was received comes first");
    assert_eq!(server.fails("recv 20"), "ECONNRESET");
    server.ok("close");
    observed(&server.record(tracer), server.observer("recvfrom", "ECONNRESET"));
}

#[test]
fn writing_on_after_both_fins_observes_nothing() {
    require_root!();
    let tracer = shared();
    let Pair { mut client, mut server } = Pair::new();
    client.ok("shutdown write");
    server.ok("poll eof");
    server.ok("shutdown write");
    client.ok("poll eof");
    assert_eq!(server.fails("send 1"), "EPIPE");
    server.ok("close");
    client.ok("close");
    expect(&server.record(tracer), json!({ "end": "fin", "observer": null, "seen": "never" }));
}
