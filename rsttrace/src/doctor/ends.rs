//! The ends that the doctor makes, each with what its records must say. Everything happens on one
//! thread: on a loopback the other side of a call has happened when it returns, or a moment later.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use rustix::{
    event::PollFlags,
    fs::{OFlags, fcntl_setfl},
    io::Errno,
    net::{SendFlags, Shutdown, shutdown, sockopt},
};
use serde_json::json;

use super::{
    lab::{AGE_US, Lab, PATIENCE, Pair, REQUEST, RESPONSE, Socket, closed_port, deafen, set_option},
    must::{Half, Must},
};
use crate::clock::monotonic_ns;

/// An end that was made, or was to be.
#[derive(Debug)]
pub struct Made {
    pub name: &'static str,
    /// In plain words.
    pub what: &'static str,
    /// The records that it must have; `Err`: it could not be made.
    pub halves: Result<Vec<Half>, String>,
    /// `CLOCK_MONOTONIC` before and after.
    pub before_ns: u64,
    pub after_ns: u64,
}

type Maker = fn(&Lab) -> io::Result<Vec<Half>>;

/// Name, what happens, and who makes it happen. One line per end.
const ENDS: &[(&str, &str, Maker)] = &[
    ("orderly", "request, answer, FIN, FIN", orderly),
    ("peer-abort", "the peer aborts after our whole answer; recv() sees it", peer_abort),
    ("unread-close", "the peer closes with our data unread; send() sees it", unread_close),
    ("unanswered", "the second request on a connection is answered by a RST", unanswered),
    ("refused", "connect() to a closed port is refused", refused),
    ("refused-nonblocking", "the same without blocking; SO_ERROR sees it", refused_nonblocking),
    ("closed-port", "a RST leaves for a SYN that meets no socket", closed_port_resets),
    ("time-wait", "a RST leaves from TIME_WAIT", time_wait),
    ("write-after-close", "we write after the peer's close; send() says EPIPE", write_after_close),
    ("data-after-close", "data arrives after our close", data_after_close),
    ("killed", "a process is killed with data unread", killed),
    ("ipv6", "the peer aborts over IPv6", ipv6),
];

/// Waits for a timer, and is made last.
const LAST: (&str, &str) = ("user-timeout", "the peer falls silent; TCP_USER_TIMEOUT ends it, recv() sees it");

/// Those that were not made when patience ended.
pub fn too_late(made: &[Made]) -> Vec<Made> {
    let all = ENDS.iter().map(|&(name, what, _)| (name, what)).chain([LAST]);
    let late = all.filter(|(name, _)| made.iter().all(|made| made.name != *name));
    late.map(|(name, what)| Made { name, what, halves: Err("not made in time".to_owned()), before_ns: 0, after_ns: 0 }).collect()
}

/// Makes all of them, and tells of each as soon as it is made.
pub fn make_all(lab: &Lab, mut tell: impl FnMut(Made)) {
    // Its timer runs while the others are made.
    let before_ns = monotonic_ns();
    let waiting = begin_user_timeout();
    for &(name, what, maker) in ENDS {
        tell(make(name, what, monotonic_ns(), || maker(lab)));
    }
    let (name, what) = LAST;
    tell(make(name, what, before_ns, || waiting.and_then(|pair| user_timeout(lab, pair))));
}

fn make(name: &'static str, what: &'static str, before_ns: u64, maker: impl FnOnce() -> io::Result<Vec<Half>>) -> Made {
    let halves = maker().map_err(|error| error.to_string());
    Made { name, what, halves, before_ns, after_ns: monotonic_ns() }
}

/// A call must fail with this error.
fn fails<T: std::fmt::Debug>(result: rustix::io::Result<T>, expected: Errno) -> io::Result<()> {
    match result {
        Err(error) if error == expected => Ok(()),
        Err(error) => Err(io::Error::other(format!("{error} instead of {expected}"))),
        Ok(value) => Err(io::Error::other(format!("{value:?} instead of {expected}"))),
    }
}

/// Payload of a connection that ended with everything acknowledged and read.
fn bytes(half: Half, sent: usize, received: usize) -> Half {
    half.is("bytes.sent", sent)
        .is("bytes.acked", sent)
        .is("bytes.unacked", 0)
        .is("bytes.unsent", 0)
        .is("bytes.received", received)
        .is("bytes.unread", 0)
        .is("retransmits", 0)
}

/// Both sides have spoken, a moment ago.
fn lively(half: Half) -> Half {
    let recent = Must::BeBetween(0, AGE_US / 1_000);
    half.must("idle_ms.sent", recent.clone()).must("idle_ms.received", recent).must("evidence.since_last_tx_us", Must::BeBetween(0, AGE_US))
}

fn verdict(half: Half, phase: &'static str, cause: &'static str, initiator: &'static str, harm: &'static str) -> Half {
    let half = half.is("phase", phase).is("cause", cause).is("initiator", initiator).is("harm", harm).must("verdict", Must::BeKnown);
    if harm == "none" { half.is("lost_bytes", 0).is("unconfirmed_bytes", 0) } else { half }
}

fn no_fin(half: Half) -> Half {
    half.is("fin.local", false).is("fin.remote", false)
}

/// The request comes with the FIN, so that its segment's payload is told.
fn orderly(lab: &Lab) -> io::Result<Vec<Half>> {
    let pair = Pair::new(Ipv4Addr::LOCALHOST.into())?;
    let Pair { client, server } = &pair;
    client.send_with(REQUEST, SendFlags::MORE)?;
    shutdown(&client.fd, Shutdown::Write)?;
    server.recv_all(REQUEST)?;
    if server.recv(1)? != 0 {
        return Err(io::Error::other("data instead of a FIN"));
    }
    server.send(RESPONSE)?;
    client.recv_all(RESPONSE)?;

    let half_closed = Must::BeBetween(0, AGE_US);
    let ours = lab.closed(bytes(lab.half("server", server), RESPONSE, REQUEST), "close");
    let ours = verdict(ours.is("end", "fin").is("state", "LAST_ACK"), "closing", "orderly", "peer-application", "none")
        .is("seen", "never")
        .is("fin.first", "remote")
        .is("fin.local", true)
        .is("fin.remote", true)
        .is("fin.remote_data_bytes", REQUEST)
        .must("fin.half_closed_us", half_closed.clone())
        .must("fin.since_us", half_closed.clone());
    let theirs = lab.released(lab.closed(bytes(lab.half("client", client), REQUEST, RESPONSE), "shutdown"));
    let theirs = verdict(theirs.is("end", "fin").is("state", "FIN_WAIT2"), "closing", "orderly", "local-application", "none")
        .is("fin.first", "local")
        .is("fin.local", true)
        .is("fin.remote", true)
        .is("fin.remote_data_bytes", 0)
        .must("fin.half_closed_us", half_closed.clone())
        .must("fin.since_us", half_closed);
    let (ours, theirs) = (lab.peer(ours, client, "shutdown"), lab.peer(theirs, server, "close"));

    drop(pair.server);
    pair.client.wait(PollFlags::RDHUP)?;
    if pair.client.recv(1)? != 0 {
        return Err(io::Error::other("data instead of a FIN"));
    }
    drop(pair.client);
    Ok(vec![ours, theirs])
}

fn peer_abort(lab: &Lab) -> io::Result<Vec<Half>> {
    aborted(lab, Pair::exchanged()?)
}

fn ipv6(lab: &Lab) -> io::Result<Vec<Half>> {
    let pair = Pair::new(Ipv6Addr::LOCALHOST.into())?;
    pair.exchange()?;
    aborted(lab, pair)
}

/// The client aborts after the answer, and the server finds out by recv().
fn aborted(lab: &Lab, pair: Pair) -> io::Result<Vec<Half>> {
    let Pair { client, server } = pair;
    server.wait_acknowledged_by(&client)?;
    let ours = lively(bytes(lab.half("server", &server), RESPONSE, REQUEST));
    let ours = lab.observed(no_fin(ours), &server, "recvfrom", "ECONNRESET", "sock_recv_length");
    let ours = lab.peer(lab.released(ours), &client, "close").is("peer.unread", 0);
    let ours = verdict(
        ours.is("end", "reset-received").is("state", "ESTABLISHED"),
        "after-response",
        "peer-abort-after-response",
        "peer-application",
        "none",
    )
    .is("evidence.last_speaker", "local")
    .is("evidence.rst.acked", RESPONSE)
    .must("evidence.rst.ttl", Must::BeBetween(1, 255))
    .must("evidence.rst.window", Must::BeKnown);
    let theirs = no_fin(lively(bytes(lab.half("client", &client), REQUEST, RESPONSE)));
    let theirs = lab.peer(lab.released(lab.closed(theirs, "close")), &server, "recvfrom").is("peer.unread", 0);
    let theirs =
        verdict(theirs.is("end", "reset-sent").is("state", "ESTABLISHED"), "after-response", "linger-zero", "local-application", "none")
            .is("reason", "TCP_STATE")
            .is("seen", "never")
            .is("evidence.linger", 0)
            .must("evidence.reason_from", Must::BeOneOf(vec![json!("kernel"), json!("inferred")]));

    client.abort()?;
    server.wait_error()?;
    fails(server.recv(1), Errno::CONNRESET)?;
    drop(server);
    Ok(vec![ours, theirs])
}

fn unread_close(lab: &Lab) -> io::Result<Vec<Half>> {
    let Pair { client, server } = Pair::new(Ipv4Addr::LOCALHOST.into())?;
    client.send(REQUEST)?;
    server.wait_readable()?;
    client.wait_acknowledged_by(&server)?;
    let ours = no_fin(bytes(lab.half("client", &client), REQUEST, 0));
    let ours = lab.observed(ours, &client, "sendto", "ECONNRESET", "sock_send_length");
    let ours = lab.peer(lab.released(ours), &server, "close").is("peer.unread", REQUEST);
    let ours = ours.is("end", "reset-received").is("state", "ESTABLISHED").is("harm", "lost").is("lost_bytes", REQUEST);
    let theirs = no_fin(bytes(lab.half("server", &server), 0, REQUEST)).is("bytes.unread", REQUEST);
    let theirs = lab.released(lab.closed(theirs, "close")).is("reason", "TCP_ABORT_ON_CLOSE").is("seen", "never");
    let theirs = theirs.is("end", "reset-sent").is("state", "ESTABLISHED").is("cause", "close-with-unread-data");
    let theirs = theirs.is("harm", "lost").is("lost_bytes", REQUEST);

    drop(server);
    client.wait_error()?;
    fails(client.send(1), Errno::CONNRESET)?;
    drop(client);
    Ok(vec![ours, theirs])
}

/// On a connection that was used before, as pools keep them.
fn unanswered(lab: &Lab) -> io::Result<Vec<Half>> {
    let pair = Pair::exchanged()?;
    let Pair { client, server } = pair;
    client.send(REQUEST)?;
    server.recv_all(REQUEST)?;
    client.wait_acknowledged_by(&server)?;
    let ours = lively(no_fin(bytes(lab.half("client", &client), 2 * REQUEST, RESPONSE)));
    let ours = lab.released(lab.observed(ours, &client, "recvfrom", "ECONNRESET", "sock_recv_length"));
    let ours = verdict(
        ours.is("end", "reset-received").is("state", "ESTABLISHED"),
        "request-in-flight",
        "server-abort-before-response",
        "peer-application",
        "possible",
    )
    .is("evidence.last_speaker", "local")
    .is("evidence.reused", true);

    server.abort()?;
    client.wait_error()?;
    fails(client.recv(1), Errno::CONNRESET)?;
    drop(client);
    Ok(vec![ours])
}

fn refused(lab: &Lab) -> io::Result<Vec<Half>> {
    let (_nobody, address) = closed_port()?;
    let client = Socket::unconnected(Ipv4Addr::LOCALHOST.into(), address)?;
    // No hook sees what a blocking connect() returns, but its caller is known.
    let half = lab.released(bytes(lab.half("client", &client), 0, 0));
    let half = verdict(half.is("end", "reset-received").is("state", "SYN_SENT"), "connecting", "refused", "peer-kernel", "none")
        .is("observer.syscall", "connect")
        .is("observer.fd", client.fd.as_raw_fd())
        .is("observer.errno", "ECONNREFUSED")
        .is("observer.inferred", true)
        .is("seen", "yes");

    fails(client.connect(), Errno::CONNREFUSED)?;
    drop(client);
    Ok(vec![half])
}

fn refused_nonblocking(lab: &Lab) -> io::Result<Vec<Half>> {
    let (_nobody, address) = closed_port()?;
    let client = Socket::unconnected(Ipv4Addr::LOCALHOST.into(), address)?;
    fcntl_setfl(&client.fd, OFlags::NONBLOCK)?;
    let half = bytes(lab.half("client", &client), 0, 0).is("end", "reset-received").is("state", "SYN_SENT").is("cause", "refused");
    let half = lab.released(lab.observed(half, &client, "getsockopt", "ECONNREFUSED", "cgroup/getsockopt"));

    fails(client.connect(), Errno::INPROGRESS)?;
    client.wait_error()?;
    fails(sockopt::socket_error(&client.fd)?, Errno::CONNREFUSED)?;
    drop(client);
    Ok(vec![half])
}

fn closed_port_resets(lab: &Lab) -> io::Result<Vec<Half>> {
    let (_nobody, address) = closed_port()?;
    let client = Socket::unconnected(Ipv4Addr::LOCALHOST.into(), address)?;
    let half = lab.stray(address, client.local).is("reason", "NO_SOCKET").is("cause", "closed-port").is("initiator", "local-kernel");
    fails(client.connect(), Errno::CONNREFUSED)?;
    Ok(vec![half])
}

/// The client has closed in order and is a mini-socket when the server writes once more.
fn written_after_close(lab: &Lab) -> io::Result<(Half, Half)> {
    let Pair { client, server } = Pair::exchanged()?;
    shutdown(&client.fd, Shutdown::Write)?;
    server.wait(PollFlags::RDHUP)?;
    // Its FIN acknowledged, close() leaves nothing of it but a TIME_WAIT mini-socket.
    client.wait_acknowledged_by(&server)?;
    let reset =
        lab.stray(client.local, client.remote).is("state", "TIME_WAIT").is("reason", "TCP_TIMEWAIT_SOCKET").is("cause", "time-wait");
    let half = lab.half("server", &server).is("end", "reset-received").is("state", "CLOSE_WAIT");
    let half = half.is("bytes.sent", RESPONSE + 33).is("bytes.acked", RESPONSE).is("bytes.unacked", 33).is("bytes.received", REQUEST);
    let half = lab.released(lab.observed(half, &server, "sendto", "EPIPE", "sock_send_length"));
    let half = half.is("cause", "write-after-peer-close").is("fin.first", "remote").is("fin.local", false).is("fin.remote", true);

    drop(client);
    if server.recv(1)? != 0 {
        return Err(io::Error::other("data instead of a FIN"));
    }
    server.send(33)?;
    server.wait_error()?;
    fails(server.send(1), Errno::PIPE)?;
    drop(server);
    Ok((half, reset))
}

fn time_wait(lab: &Lab) -> io::Result<Vec<Half>> {
    written_after_close(lab).map(|(_, reset)| vec![reset])
}

fn write_after_close(lab: &Lab) -> io::Result<Vec<Half>> {
    written_after_close(lab).map(|(half, _)| vec![half])
}

/// The orphan stays a full socket, and answers data with a RST of its own.
fn data_after_close(lab: &Lab) -> io::Result<Vec<Half>> {
    let Pair { client, server } = Pair::exchanged()?;
    server.wait_acknowledged_by(&client)?;
    // Longer than TIME_WAIT.
    set_option(&client.fd, libc::IPPROTO_TCP, libc::TCP_LINGER2, &100_i32)?;
    let half = bytes(lab.half("client", &client), REQUEST, RESPONSE);
    let half = lab.closed(half, "close").is("end", "reset-sent").is("reason", "TCP_ABORT_ON_DATA").is("cause", "data-after-close");
    let half = half.is("fin.first", "local").is("fin.local", true).is("fin.remote", false);

    drop(client);
    server.wait(PollFlags::RDHUP)?;
    server.send(77)?;
    server.wait_error()?;
    fails(server.send(1), Errno::PIPE)?;
    drop(server);
    Ok(vec![half])
}

/// A child that holds the client's last descriptor is killed.
fn killed(lab: &Lab) -> io::Result<Vec<Half>> {
    let Pair { client, server } = Pair::new(Ipv4Addr::LOCALHOST.into())?;
    server.send(RESPONSE)?;
    client.wait_readable()?;
    let child = Child::fork()?;
    let tgid = lab.numbers.map_or(Must::BeKnown, |_| Must::Be(json!(child.0)));
    let half = lab.half("client", &client).is("end", "reset-sent").is("bytes.unread", RESPONSE).is("reason", "TCP_ABORT_ON_CLOSE");
    let half = half
        .must("closer.tgid", tgid.clone())
        .must("closer.tid", tgid.clone())
        .is("closer.comm", lab.comm.clone())
        .is("closer.exiting", true)
        .must("released.tgid", tgid)
        .is("released.exiting", true)
        .is("evidence.signal", "SIGKILL");

    drop(client);
    child.kill()?;
    server.wait_error()?;
    drop(server);
    Ok(vec![half])
}

/// A copy of this process that waits to be killed.
struct Child(libc::pid_t);

impl Child {
    fn fork() -> io::Result<Self> {
        // SAFETY: the child calls async-signal-safe functions only, and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: as above. It dies with the thread that made it.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::alarm(PATIENCE.as_secs() as libc::c_uint);
                libc::pause();
                libc::_exit(0)
            },
            pid => Ok(Self(pid)),
        }
    }

    /// Ends it, and waits for that.
    fn kill(self) -> io::Result<()> {
        // SAFETY: our own child, not yet reaped.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: no status is asked for.
        match unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// A server whose answer nobody acknowledges, with a timer on it.
fn begin_user_timeout() -> io::Result<Pair> {
    let pair = Pair::new(Ipv4Addr::LOCALHOST.into())?;
    pair.client.send(REQUEST)?;
    pair.server.recv_all(REQUEST)?;
    pair.client.wait_acknowledged_by(&pair.server)?;
    deafen(&pair.client)?;
    sockopt::set_tcp_user_timeout(&pair.server.fd, USER_TIMEOUT_MS)?;
    // With two segments on their way the kernel probes sooner.
    sockopt::set_tcp_nodelay(&pair.server.fd, true)?;
    pair.server.send(RESPONSE / 2)?;
    pair.server.send(RESPONSE / 2)?;
    Ok(pair)
}

/// Shorter than the first retransmission, which the kernel waits for in any case.
const USER_TIMEOUT_MS: u32 = 20;

fn user_timeout(lab: &Lab, pair: Pair) -> io::Result<Vec<Half>> {
    let Pair { client, server } = pair;
    let half = lab.half("server", &server).is("end", "timeout").is("state", "ESTABLISHED");
    let half = half.is("bytes.sent", RESPONSE).is("bytes.acked", 0).is("bytes.unacked", RESPONSE).is("bytes.received", REQUEST);
    let half = lab.released(lab.observed(half, &server, "recvfrom", "ETIMEDOUT", "sock_recv_length"));
    let half = half
        .must("retransmits", Must::BeBetween(1, 20))
        .is("evidence.user_timeout", USER_TIMEOUT_MS)
        .is("cause", "user-timeout")
        .is("initiator", "local-kernel");

    let result = fails(server.recv(1), Errno::TIMEDOUT);
    drop(server);
    // Nothing reaches it any more: an abort is the one end that waits for no answer.
    client.abort()?;
    result.map(|()| vec![half])
}
