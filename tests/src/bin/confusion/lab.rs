//! Where ends are made: two processes in a namespace, and the connection between them.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, thread, time::Duration};

use rsttrace_tests::{Actor, Fd, Flow, NetNs, wait_until};

use crate::rng::Rng;

/// Connections to this port are rejected by ICMP.
pub const REJECTED: u16 = 4711;
/// SYNs to this port are dropped.
pub const DROPPED: u16 = 4712;
/// Nobody listens here.
pub const CLOSED: u16 = 4713;
/// More than the time after which a requester counts as having waited, 12 ms in ticks of 4 ms.
pub const WAITED: Duration = Duration::from_millis(24);
/// More than a record waits for its other half: 200 ms and two round trips, which delayed
/// acknowledgements make as long as 40 ms.
pub const LATE: Duration = Duration::from_millis(400);

/// What a half of a connection is meant to be.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub cause: &'static str,
    pub harm: &'static str,
    pub phase: &'static str,
    /// Empty: whoever closed first.
    pub initiator: &'static str,
    /// The harm as far as it is known without the other half, whose end in order stays in the kernel.
    harm_alone: Option<&'static str>,
}

/// Of most causes it is plain who ends the connection.
pub fn label(cause: &'static str, harm: &'static str, phase: &'static str) -> Label {
    let initiator = match end_kind(cause) {
        "fin" => "",
        "timeout" => "local-kernel",
        "error" if cause == "refused-by-icmp" => "unknown",
        _ => match cause {
            "keepalive-timeout" | "data-after-close" | "closed-port" | "time-wait" => "local-kernel",
            "refused" | "write-after-peer-close" => "peer-kernel",
            _ if end_kind(cause) == "reset-received" => "peer-application",
            _ => "local-application",
        },
    };
    Label { cause, harm, phase, initiator, harm_alone: None }
}

impl Label {
    pub fn by(self, initiator: &'static str) -> Self {
        Self { initiator, ..self }
    }

    /// With the other half more is known.
    pub fn harm_alone(self, harm: &'static str) -> Self {
        Self { harm_alone: Some(harm), ..self }
    }

    /// Without the other half.
    pub fn alone(self) -> Self {
        Self { harm: self.harm_alone.unwrap_or(self.harm), ..self }
    }
}

/// The kind of end that belongs to a cause.
pub fn end_kind(cause: &str) -> &'static str {
    match cause {
        "orderly" | "orderly-unread" | "gave-up-waiting" | "client-gave-up" | "closed-before-answer" => "fin",
        "connect-timeout" | "user-timeout" => "timeout",
        "gave-up-connecting" | "refused-by-icmp" => "error",
        "linger-zero"
        | "close-with-unread-data"
        | "disconnect"
        | "data-after-close"
        | "linger2-abort"
        | "admin-kill"
        | "listener-closed"
        | "closed-port"
        | "time-wait"
        | "keepalive-timeout" => "reset-sent",
        "refused"
        | "connect-probe"
        | "reset-before-accept"
        | "write-after-peer-close"
        | "reset-while-closing"
        | "reset-after-local-fin"
        | "server-abort-before-response"
        | "server-abort-mid-response"
        | "peer-abort-idle"
        | "peer-abort-after-response"
        | "peer-abort-before-response"
        | "peer-abort-mid-response" => "reset-received",
        _ => panic!("no end has the cause {cause}"),
    }
}

/// One record that must come.
#[derive(Clone, Debug)]
pub struct Expected {
    pub flow: Flow,
    /// Of the socket, where it could be asked for.
    pub cookie: Option<u64>,
    /// A RST without a socket.
    pub stray: bool,
    pub label: Label,
    /// Payload that the application wrote and read.
    pub bytes: Option<(u64, u64)>,
}

impl Expected {
    pub fn stray(flow: Flow, label: Label) -> Self {
        Self { flow, cookie: None, stray: true, label, bytes: None }
    }

    /// Not told without -a.
    pub fn is_orderly(&self) -> bool {
        matches!(self.label.cause, "orderly" | "orderly-unread")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// One socket of a connection.
pub struct End {
    fd: Fd,
    flow: Flow,
    cookie: Option<u64>,
    written: u64,
    read: u64,
}

impl End {
    pub fn is(&self, label: Label) -> Expected {
        Expected { flow: self.flow, cookie: self.cookie, stray: false, label, bytes: Some((self.written, self.read)) }
    }
}

/// A client and a server that make one connection after another.
pub struct Lab<'a> {
    pub netns: &'a NetNs,
    pub client: Actor,
    pub server: Actor,
    /// For each family.
    listeners: [(Fd, SocketAddr); 2],
    pub rng: Rng,
    pub ipv6: bool,
    /// Steps of an exchange may be delayed; otherwise nothing sleeps.
    pub paced: bool,
}

impl<'a> Lab<'a> {
    pub fn new(netns: &'a NetNs) -> Self {
        let client = Actor::spawn_in(netns, "conf-client");
        let mut server = Actor::spawn_in(netns, "conf-server");
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|address| server.listen(address));
        Self { netns, client, server, listeners, rng: Rng::new(0), ipv6: false, paced: false }
    }

    /// Where a port of this family is.
    pub fn at(&self, port: u16) -> SocketAddr {
        if self.ipv6 { SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)) } else { SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub fn listener(&self) -> (Fd, SocketAddr) {
        self.listeners[usize::from(self.ipv6)]
    }

    /// A delay, in paced scenarios.
    pub fn breathe(&mut self) {
        if self.paced {
            thread::sleep(Duration::from_millis(self.rng.one_of(&[0, 1, 20])));
        }
    }

    /// A client's socket that is bound, so that its flow is known before it connects.
    pub fn attempt(&mut self, to: u16) -> (End, SocketAddr) {
        let to = self.at(to);
        let from = self.at(0);
        let fd = self.client.socket(to);
        self.client.ok(format!("bind {fd} {from}"));
        let flow = Flow::new(self.client.get(format!("local {fd}")), to);
        let cookie = Some(self.client.get(format!("cookie {fd}")));
        (End { fd, flow, cookie, written: 0, read: 0 }, to)
    }

    /// A connected client whose server has not accepted.
    pub fn connect_to(&mut self, to: SocketAddr) -> End {
        let fd = self.client.connect(to);
        let cookie = Some(self.client.get(format!("cookie {fd}")));
        End { fd, flow: self.client.flow(fd), cookie, written: 0, read: 0 }
    }

    /// Its other half, accepted by `server`.
    pub fn accept(server: &mut Actor, listener: Fd, client: &End) -> End {
        let fd = server.accept(listener);
        // Reset before, it would not tell its peer's address any more.
        End { fd, flow: client.flow.peer(), cookie: Some(server.get(format!("cookie {fd}"))), written: 0, read: 0 }
    }

    pub fn connect(&mut self) -> Duo<'_, 'a> {
        let (listener, to) = self.listener();
        let client = self.connect_to(to);
        let server = Self::accept(&mut self.server, listener, &client);
        Duo { lab: self, client, server, first_fin: None }
    }

    /// A connection with some exchanges completed.
    pub fn connect_and_exchange(&mut self, exchanges: RangeInclusive<u64>) -> Duo<'_, 'a> {
        let n = self.rng.between(*exchanges.start(), *exchanges.end());
        let mut duo = self.connect();
        for _ in 0..n {
            duo.exchange();
        }
        duo
    }

    /// A listener of its own.
    pub fn listen(&mut self) -> (Fd, SocketAddr) {
        let at = self.at(0);
        self.server.listen(&at.to_string())
    }

    pub fn client_call(&mut self, end: &End, command: &str) -> Result<String, String> {
        self.client.call(on(end.fd, command))
    }

    pub fn client_sends(&mut self, client: &mut End, bytes: u64) {
        assert_eq!(self.client.get::<u64>(on(client.fd, &format!("send {bytes}"))), bytes);
        client.written += bytes;
    }

    pub fn abort_client(&mut self, client: &End) {
        self.client.ok(on(client.fd, "linger0"));
        self.client.ok(on(client.fd, "close"));
    }

    pub fn server_reads(&mut self, server: &mut End, bytes: u64) {
        read(&mut self.server, server, bytes);
    }

    pub fn close_server(&mut self, server: &End) {
        self.server.ok(on(server.fd, "close"));
    }
}

/// A connection and its ends' processes.
pub struct Duo<'l, 'a> {
    pub lab: &'l mut Lab<'a>,
    pub client: End,
    pub server: End,
    /// Who closed first, or shut down its direction.
    first_fin: Option<Side>,
}

impl Duo<'_, '_> {
    fn end(&mut self, side: Side) -> (&mut Actor, &mut End) {
        match side {
            Side::Client => (&mut self.lab.client, &mut self.client),
            Side::Server => (&mut self.lab.server, &mut self.server),
        }
    }

    /// Makes one call, which must succeed.
    pub fn ok(&mut self, side: Side, command: &str) -> String {
        let (actor, end) = self.end(side);
        actor.ok(on(end.fd, command))
    }

    /// Makes one call, which may fail.
    pub fn call(&mut self, side: Side, command: &str) -> Result<String, String> {
        let (actor, end) = self.end(side);
        actor.call(on(end.fd, command))
    }

    pub fn send(&mut self, side: Side, bytes: u64) {
        assert_eq!(self.ok(side, &format!("send {bytes}")), bytes.to_string());
        self.end(side).1.written += bytes;
    }

    /// Sends all that the buffers of both ends hold.
    pub fn fill(&mut self, side: Side) {
        let bytes: u64 = self.ok(side, "fill").parse().expect("a number");
        self.end(side).1.written += bytes;
    }

    pub fn read(&mut self, side: Side, bytes: u64) {
        let (actor, end) = self.end(side);
        read(actor, end, bytes);
    }

    /// Waits until so many bytes have arrived unread.
    pub fn arrived(&mut self, side: Side, bytes: u64) {
        wait_until("the bytes have arrived", || self.ok(side, "unread") == bytes.to_string());
    }

    /// Reads the peer's FIN.
    pub fn read_fin(&mut self, side: Side) {
        assert_eq!(self.ok(side, "recv 1"), "0", "the peer's FIN");
    }

    /// Receives the error that must come.
    pub fn read_error(&mut self, side: Side, errno: &str) {
        assert_eq!(self.call(side, "recv 1"), Err(errno.to_owned()));
    }

    /// Reads the RST that has arrived, or not: the error is left for close() to drop.
    pub fn notice_or_not(&mut self, side: Side) {
        if self.lab.rng.flip() {
            self.read_error(side, "ECONNRESET");
        }
        self.close(side);
    }

    pub fn close(&mut self, side: Side) {
        self.first_fin.get_or_insert(side);
        self.ok(side, "close");
    }

    /// Ends one direction.
    pub fn shut(&mut self, side: Side) {
        self.first_fin.get_or_insert(side);
        self.ok(side, "shutdown write");
    }

    /// Closes in order, and is certainly gone but for its TIME_WAIT when this returns: a socket whose
    /// FIN is not acknowledged yet, which may take 40 ms, would meet the peer's RST.
    pub fn close_for_good(&mut self, side: Side) {
        self.shut(side);
        self.acknowledged(side);
        self.close(side);
    }

    /// SO_LINGER 0, then close(). An acknowledgement under way would find no socket any more, and be
    /// answered by one more RST: where time has passed, it is waited for.
    pub fn abort(&mut self, side: Side) {
        if self.lab.paced {
            self.acknowledged(side);
        }
        self.ok(side, "linger0");
        self.close(side);
    }

    /// Closes with bytes unread, which aborts too.
    pub fn close_unread(&mut self, side: Side) {
        if self.lab.paced {
            self.acknowledged(side);
        }
        self.close(side);
    }

    /// Waits until the peer's kernel has all that this end sent, its FIN included.
    pub fn acknowledged(&mut self, side: Side) {
        wait_until("all is acknowledged", || self.ok(side, "outstanding") == "0");
    }

    /// A random size of a request or response.
    pub fn size(&mut self) -> u64 {
        self.lab.rng.size(1, 100_000)
    }

    /// A request that the server reads.
    pub fn request(&mut self) {
        let bytes = self.size();
        self.send(Side::Client, bytes);
        self.lab.breathe();
        self.read(Side::Server, bytes);
    }

    /// One whole exchange.
    pub fn exchange(&mut self) {
        self.lab.breathe();
        self.request();
        self.lab.breathe();
        let bytes = self.size();
        self.send(Side::Server, bytes);
        self.lab.breathe();
        self.read(Side::Client, bytes);
    }

    /// Lets nothing of this connection arrive any more, once all that was sent is acknowledged.
    pub fn cut(&mut self) {
        self.acknowledged(Side::Client);
        self.acknowledged(Side::Server);
        // By both ports: a connection to another listener may have this client's port too.
        let (client, server) = (self.client.flow.local.port(), self.server.flow.local.port());
        let both = format!("{{ {client} . {server}, {server} . {client} }}");
        self.lab.netns.command("nft", &["add", "element", "inet", "t", "cut", &both]);
    }

    /// Has an administrator end one half.
    pub fn kill_by_ss(&mut self, side: Side) {
        let flow = self.end(side).1.flow;
        let filter = format!("( src {} and dst {} )", flow.local, flow.remote);
        self.lab.netns.command("ss", &["-tK", &filter]);
    }

    /// What both halves are meant to be.
    pub fn are(&self, client: Label, server: Label) -> Vec<Expected> {
        let by_closer = |label: Label, side: Side| match label.initiator {
            "" if self.first_fin == Some(side) => label.by("local-application"),
            "" => label.by("peer-application"),
            _ => label,
        };
        vec![self.client.is(by_closer(client, Side::Client)), self.server.is(by_closer(server, Side::Server))]
    }

    /// A RST that the server's host sends without a socket.
    pub fn stray_at_server(&self, label: Label) -> Expected {
        Expected::stray(self.server.flow, label)
    }

    /// The same of the client's host.
    pub fn stray_at_client(&self, label: Label) -> Expected {
        Expected::stray(self.client.flow, label)
    }
}

impl End {
    /// The other half, which was never accepted.
    pub fn peer_in_queue(&self, label: Label) -> Expected {
        Expected { flow: self.flow.peer(), cookie: None, stray: false, label, bytes: None }
    }

    pub fn stray_at_peer(&self, label: Label) -> Expected {
        Expected::stray(self.flow.peer(), label)
    }
}

/// Reads exactly so much.
pub fn read(actor: &mut Actor, end: &mut End, bytes: u64) {
    assert_eq!(actor.get::<u64>(on(end.fd, &format!("recv-all {bytes}"))), bytes);
    end.read += bytes;
}

/// Puts the descriptor after the command's first word.
fn on(fd: impl Display, command: &str) -> String {
    match command.split_once(' ') {
        Some((name, rest)) => format!("{name} {fd} {rest}"),
        None => format!("{command} {fd}"),
    }
}

/// The rules that some kinds rely on.
pub fn filter(netns: &NetNs) {
    let nft = |words: &str| netns.command("nft", &[words]);
    nft("add table inet t");
    nft("add set inet t cut { type inet_service . inet_service; }");
    nft("add chain inet t in { type filter hook input priority 0; }");
    nft(&format!("add rule inet t in tcp dport {REJECTED} reject with icmpx type port-unreachable"));
    nft(&format!("add rule inet t in tcp dport {DROPPED} drop"));
    nft("add rule inet t in tcp sport . tcp dport @cut drop");
}
