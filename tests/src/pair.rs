//! One connection between two actors, and what must be true of both its records.

use std::{
    net::SocketAddr,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::{Actor, DEADLINE, Fd, Flow, NetNs, Tracer, current_netns, expect, in_range, is_stray, text};

/// A connected client and server, each a process of its own.
pub struct Pair {
    pub client: Side,
    pub server: Side,
}

impl Pair {
    /// Over IPv4 loopback.
    #[track_caller]
    pub fn new() -> Self {
        Self::to("127.0.0.1:0")
    }

    /// With a server that listens on this address.
    #[track_caller]
    pub fn to(address: &str) -> Self {
        Self::between(Actor::spawn("client"), Actor::spawn("server"), address)
    }

    /// Both inside a namespace.
    #[track_caller]
    pub fn inside(netns: &NetNs) -> Self {
        let client = Actor::spawn_in(netns, "client");
        let server = Actor::spawn_in(netns, "server");
        let mut pair = Self::between(client, server, "127.0.0.1:0");
        pair.client.netns = netns.inode();
        pair.server.netns = netns.inode();
        pair
    }

    /// Between two given processes.
    #[track_caller]
    pub fn between(mut client: Actor, mut server: Actor, address: &str) -> Self {
        let (listener, at) = server.listen(address);
        let fd = client.connect(reachable(at));
        let client = Side::new(client, fd, "client");
        let fd = server.accept(listener);
        server.ok(format!("close {listener}"));
        Self { client, server: Side::new(server, fd, "server") }
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

/// One end: a process, its descriptor, and what the kernel calls the socket.
pub struct Side {
    pub actor: Actor,
    pub fd: Fd,
    pub flow: Flow,
    pub cookie: u64,
    pub inode: u64,
    pub netns: u64,
    role: &'static str,
}

impl Side {
    /// `role`: `client` or `server`.
    #[track_caller]
    pub fn new(mut actor: Actor, fd: Fd, role: &'static str) -> Self {
        Self {
            flow: actor.flow(fd),
            cookie: actor.get(format!("cookie {fd}")),
            inode: actor.get(format!("inode {fd}")),
            netns: current_netns(),
            actor,
            fd,
            role,
        }
    }

    /// `COMMAND FD`, must succeed.
    #[track_caller]
    pub fn ok(&mut self, command: &str) -> String {
        self.actor.ok(self.on_socket(command))
    }

    /// `COMMAND FD`, must fail; the symbol of its errno.
    #[track_caller]
    pub fn fails(&mut self, command: &str) -> String {
        self.actor.fails(self.on_socket(command))
    }

    /// A number that `COMMAND FD` gives.
    #[track_caller]
    pub fn get(&mut self, command: &str) -> u64 {
        self.actor.get(self.on_socket(command))
    }

    /// `COMMAND FD; COMMAND FD ...`, one right behind the other: the last one's answer.
    #[track_caller]
    pub fn all(&mut self, commands: &str) -> String {
        self.actor.ok(self.script(commands))
    }

    /// The same without waiting: it may block, and [`Actor::reply`] must follow.
    #[track_caller]
    pub fn begin(&mut self, commands: &str) {
        self.actor.begin(self.script(commands));
    }

    fn script(&self, commands: &str) -> String {
        let each = commands.split(';').map(str::trim);
        let on_socket: Vec<_> =
            each.map(|command| if command.starts_with("sleep ") { command.to_owned() } else { self.on_socket(command) }).collect();
        format!("all {}", on_socket.join(" ; "))
    }

    /// Puts the descriptor after the command's first word.
    pub fn on_socket(&self, command: &str) -> String {
        match command.split_once(' ') {
            Some((name, rest)) => format!("{name} {} {rest}", self.fd),
            None => format!("{command} {}", self.fd),
        }
    }

    /// Sends so many bytes, which the other end takes.
    #[track_caller]
    pub fn send_to(&mut self, other: &mut Self, bytes: usize) {
        self.ok(&format!("send {bytes}"));
        assert_eq!(other.ok(&format!("recv-all {bytes}")), bytes.to_string());
    }

    /// Waits until everything that was sent is acknowledged.
    #[track_caller]
    pub fn wait_acknowledged(&mut self) {
        let actor = &mut self.actor;
        let fd = self.fd;
        crate::wait_until("everything is acknowledged", || actor.get::<u64>(format!("outstanding {fd}")) == 0);
    }

    /// Resets the connection: SO_LINGER 0, then close().
    #[track_caller]
    pub fn abort(&mut self) {
        self.ok("linger0");
        self.ok("close");
    }

    /// Has an administrator end the connection at this end (`ss -K`).
    #[track_caller]
    pub fn kill_by_ss(&self) {
        let filter = format!("( src {} and dst {} )", self.flow.local, self.flow.remote);
        let output = Command::new("ss").args(["-tK", &filter]).output().expect("ss");
        assert!(output.status.success(), "ss -K: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The record of this end, of which everything that does not depend on how it ended is checked.
    #[track_caller]
    pub fn record(&self, tracer: &Tracer) -> Value {
        let record = tracer.wait(&format!("the end of {}'s {}", self.actor.name(), self.flow), |r| {
            r["record"] == "teardown" && !is_stray(r) && r["netns"] == self.netns && self.flow.matches(r)
        });
        expect(&record, self.identity());
        expect(&record, json!({ "owner": self.process() }));
        check_clocks(&record);
        record
    }

    /// The fields that name the socket.
    pub fn identity(&self) -> Value {
        let Flow { local, remote } = self.flow;
        json!({
            "schema": 1,
            "record": "teardown",
            "family": if local.is_ipv4() { "ipv4" } else { "ipv6" },
            "local": { "addr": local.ip().to_string(), "port": local.port() },
            "remote": { "addr": remote.ip().to_string(), "port": remote.port() },
            "netns": self.netns,
            "cookie": self.cookie,
            "inode": self.inode,
            "role": self.role,
        })
    }

    /// The process as an owner.
    pub fn process(&self) -> Value {
        json!({ "tgid": self.actor.pid(), "comm": self.actor.name() })
    }

    /// The process's only thread as closer or releaser in a system call.
    pub fn task(&self, syscall: &str) -> Value {
        json!({
            "tgid": self.actor.pid(),
            "tid": self.actor.pid(),
            "comm": self.actor.name(),
            "syscall": syscall,
            "exiting": false,
        })
    }

    /// The process while it exits.
    pub fn exiting(&self) -> Value {
        json!({
            "tgid": self.actor.pid(),
            "tid": self.actor.pid(),
            "comm": self.actor.name(),
            "syscall": null,
            "exiting": true,
        })
    }

    /// The process as the observer of an error, caught in a call on its descriptor.
    pub fn observer(&self, syscall: &str, errno: &str) -> Value {
        json!({
            "tgid": self.actor.pid(),
            "tid": self.actor.pid(),
            "comm": self.actor.name(),
            "syscall": syscall,
            "fd": self.fd,
            "errno": errno,
            "inferred": false,
        })
    }
}

/// Panics unless the record says that this observer caught the error, within the test's time.
#[track_caller]
pub fn observed(record: &Value, observer: Value) {
    expect(record, json!({ "observer": observer, "seen": "yes" }));
    in_range(record, "/observer/delay_us", 0..=DEADLINE.as_micros() as i64);
}

/// Times that every record of a fresh loopback connection obeys.
#[track_caller]
fn check_clocks(record: &Value) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let time = seconds(text(record, "/time"));
    assert!((now - 120..=now + 1).contains(&time), "time is {time}, it is {now}\nrecord: {record}");
    let deadline_us = 4 * DEADLINE.as_micros() as i64;
    if !record["age_us"].is_null() {
        in_range(record, "/age_us", 0..=deadline_us);
    }
    if !record["rtt_us"].is_null() {
        in_range(record, "/rtt_us", 0..=1_000_000);
    }
    let bytes = &record["bytes"];
    let byte = |key: &str| bytes[key].as_i64().unwrap_or(-1);
    assert_eq!(byte("acked") + byte("unacked"), byte("sent"), "acked + unacked = sent\nrecord: {record}");
    for key in ["acked", "unacked", "unsent", "received", "unread"] {
        assert!(byte(key) >= 0, "bytes.{key}\nrecord: {record}");
    }
}

/// Seconds since 1970 of an RFC 3339 time in UTC with nanoseconds.
#[track_caller]
fn seconds(time: &str) -> i64 {
    let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00.000000000Z", "{time}");
    let part = |from: usize, to: usize| time[from..to].parse::<i32>().expect("digits");
    // SAFETY: plain data, for which zeroes are valid.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    tm.tm_year = part(0, 4) - 1900;
    tm.tm_mon = part(5, 7) - 1;
    tm.tm_mday = part(8, 10);
    tm.tm_hour = part(11, 13);
    tm.tm_min = part(14, 16);
    tm.tm_sec = part(17, 19);
    // SAFETY: a filled structure of ours.
    unsafe { libc::timegm(&mut tm) }
}

/// Where a client finds a listener of this address: the unspecified one is reached by IPv4.
fn reachable(at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], at.port())) } else { at }
}
