//! Where the doctor makes its ends: a loopback of its own, and sockets on it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::fstat,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect, getsockname, ipproto, listen, recv, send,
        socket_with,
        sockopt::{self, Timeout},
    },
    thread::{UnshareFlags, gettid, unshare_unsafe},
};
use serde_json::json;

use super::must::{Half, Must};
use crate::{enrich, filter::Lineage as _, model::Identity};

/// What the client says, and what the server answers.
pub const REQUEST: usize = 100;
pub const RESPONSE: usize = 200;

/// Nothing on a loopback takes this long; what does has gone wrong.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Nothing in a record of these connections can be older, however busy the host.
pub const AGE_US: u64 = 10_000_000;

/// Who makes the ends, and where.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Why the namespace is not our own.
    pub shared: Option<String>,
    /// Numbers of this process and thread; `None` where the kernel half has other ones for them.
    pub numbers: Option<(u32, i32)>,
    /// Name of this thread, and of its process.
    pub comm: String,
    pub process: String,
    /// What else this process is; `None` where its number is another one for the kernel half.
    pub identity: Option<Arc<Identity>>,
}

impl Lab {
    /// Puts the calling thread into a new network namespace with its loopback up, or else takes the
    /// present one as it is. The namespace ends with the thread.
    pub fn enter(process: String, numbers_are_ours: bool) -> io::Result<Self> {
        // SAFETY: no other thread of this process relies on this thread's network namespace.
        let shared = match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            Ok(()) => {
                bring_loopback_up()?;
                None
            }
            Err(error) => {
                require_loopback()?;
                Some(format!("a new network namespace is not permitted ({error})"))
            }
        };
        let name = rustix::thread::name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self {
            netns: enrich::netns_of("/proc/thread-self/ns/net")?,
            shared,
            numbers: numbers_are_ours.then(|| (std::process::id(), gettid().as_raw_nonzero().get())),
            comm: name,
            process,
            identity: numbers_are_ours
                .then(|| enrich::Processes::default().process(std::process::id()))
                .flatten()
                .map(|info| Arc::clone(&info.identity)),
        })
    }

    fn tgid(&self) -> Must {
        self.numbers.map_or(Must::BeKnown, |(tgid, _)| Must::Be(json!(tgid)))
    }

    fn tid(&self) -> Must {
        self.numbers.map_or(Must::BeKnown, |(_, tid)| Must::Be(json!(tid)))
    }

    /// The record of a socket, as far as any end of it: who and which it is.
    pub fn half(&self, whose: &'static str, socket: &Socket) -> Half {
        let half = Half::new(whose, socket.local, socket.remote)
            .is("netns", self.netns)
            .is("cookie", socket.cookie)
            .is("inode", socket.inode)
            .is("role", whose)
            .must("age_us", Must::BeBetween(0, AGE_US))
            .must("owner.tgid", self.tgid())
            .is("owner.comm", self.process.clone())
            .must("evidence.probes_out", Must::Be(json!(0)));
        let half = self.identified(half);
        if socket.established {
            half.must("rtt_us", Must::BeBetween(0, AGE_US)).must("evidence.min_rtt_us", Must::BeBetween(0, AGE_US))
        } else {
            half
        }
    }

    /// What this process is, as far as that is known here.
    fn identified(&self, half: Half) -> Half {
        let Some(Identity { exe: _, uid: _, user, ns_tgid, place }) = self.identity.as_deref() else { return half };
        let half = half.is("owner.uid", rustix::process::geteuid().as_raw()).is("owner.ns_tgid", *ns_tgid);
        let exe = std::env::current_exe().map(|path| path.to_string_lossy().into_owned());
        let container = place.container.as_ref();
        let known = [
            ("owner.exe", exe.ok()),
            ("owner.user", user.as_ref().map(|user| user.to_string())),
            ("owner.unit", place.unit.clone()),
            ("owner.container.id", container.map(|container| container.id.clone())),
            ("owner.container.runtime", container.and_then(|container| container.runtime).map(|runtime| runtime.to_string())),
            ("owner.pod", place.pod.clone()),
        ];
        known.into_iter().fold(half, |half, (field, value)| match value {
            Some(value) => half.is(field, value),
            None => half,
        })
    }

    /// A RST that leaves without a socket.
    pub fn stray(&self, local: SocketAddr, remote: SocketAddr) -> Half {
        let half = Half::new("reset", local, remote).is("netns", self.netns).is("end", "reset-sent");
        Half { stray: true, ..half }
    }

    /// This thread took the error with a call on this socket, which `hook` sees.
    pub fn observed(&self, half: Half, socket: &Socket, syscall: &'static str, errno: &'static str, hook: &'static str) -> Half {
        half.must("observer.tgid", self.tgid())
            .must("observer.tid", self.tid())
            .is("observer.comm", self.comm.clone())
            .is("observer.syscall", syscall)
            .is("observer.fd", socket.fd.as_raw_fd())
            .is("observer.errno", errno)
            .must("observer.delay_us", Must::BeBetween(0, AGE_US))
            .must("observer.inferred", Must::TellWithout(hook))
            .is("seen", "yes")
    }

    /// This thread ended the connection with a call.
    pub fn closed(&self, half: Half, syscall: &'static str) -> Half {
        half.must("closer.tgid", self.tgid())
            .must("closer.tid", self.tid())
            .is("closer.comm", self.comm.clone())
            .is("closer.syscall", syscall)
            .is("closer.exiting", false)
    }

    /// This thread let go of the socket with close().
    pub fn released(&self, half: Half) -> Half {
        half.must("released.tgid", self.tgid())
            .must("released.tid", self.tid())
            .is("released.comm", self.comm.clone())
            .is("released.syscall", "close")
            .is("released.exiting", false)
            .must("released.after_us", Must::BeBetween(0, AGE_US))
    }

    /// The other end, and the call that ended it or saw its error.
    pub fn peer(&self, half: Half, peer: &Socket, syscall: &'static str) -> Half {
        half.is("peer.cookie", peer.cookie).must("peer.tgid", self.tgid()).is("peer.comm", self.process.clone()).is("peer.syscall", syscall)
    }
}

/// A TCP socket, and what is known of it beside the tracer.
#[derive(Debug)]
pub struct Socket {
    pub fd: OwnedFd,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub cookie: u64,
    pub inode: u64,
    pub established: bool,
}

/// Both ends of a connection.
#[derive(Debug)]
pub struct Pair {
    pub client: Socket,
    pub server: Socket,
}

impl Socket {
    fn new(fd: OwnedFd, remote: SocketAddr, established: bool) -> io::Result<Self> {
        // A call that would wait for ever returns EAGAIN, and the socket stays blocking.
        for id in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&fd, id, Some(PATIENCE))?;
        }
        let local = local_address(&fd)?;
        Ok(Self { cookie: sockopt::socket_cookie(&fd)?, inode: fstat(&fd)?.st_ino, fd, local, remote, established })
    }

    /// Bound, and not yet connected.
    pub fn unconnected(ip: IpAddr, remote: SocketAddr) -> io::Result<Self> {
        let fd = tcp(ip)?;
        bind(&fd, &SocketAddr::new(ip, 0))?;
        Self::new(fd, remote, false)
    }

    pub fn connect(&self) -> rustix::io::Result<()> {
        connect(&self.fd, &self.remote)
    }

    pub fn send(&self, len: usize) -> rustix::io::Result<usize> {
        self.send_with(len, SendFlags::empty())
    }

    pub fn send_with(&self, len: usize, flags: SendFlags) -> rustix::io::Result<usize> {
        send(&self.fd, &vec![b'x'; len], flags | SendFlags::NOSIGNAL)
    }

    /// One receive of at most `len` bytes.
    pub fn recv(&self, len: usize) -> rustix::io::Result<usize> {
        recv(&self.fd, vec![0; len].as_mut_slice(), RecvFlags::empty()).map(|(n, _)| n)
    }

    /// Receives exactly `len` bytes.
    pub fn recv_all(&self, len: usize) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            match self.recv(left)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => left -= n,
            }
        }
        Ok(())
    }

    /// Waits until something of `events` is there.
    pub fn wait(&self, events: PollFlags) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut watched = [PollFd::new(&self.fd, events)];
            match poll(&mut watched, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) if watched[0].revents().intersects(events) => return Ok(()),
                Ok(_) => return Err(io::Error::other("something else arrived than was sent")),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub fn wait_readable(&self) -> io::Result<()> {
        self.wait(PollFlags::IN)
    }

    /// Waits for the RST.
    pub fn wait_error(&self) -> io::Result<()> {
        self.wait(PollFlags::ERR)
    }

    /// Waits until all that was sent is acknowledged by the other end, which is told not to delay.
    pub fn wait_acknowledged_by(&self, peer: &Self) -> io::Result<()> {
        sockopt::set_tcp_quickack(&peer.fd, true)?;
        let end = Instant::now() + PATIENCE;
        while unacknowledged(&self.fd)? > 0 {
            if Instant::now() >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// close() will send a RST.
    pub fn abort(self) -> io::Result<()> {
        sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO))?;
        drop(self);
        Ok(())
    }
}

impl Pair {
    /// Connected over this address's loopback.
    pub fn new(ip: IpAddr) -> io::Result<Self> {
        let listener = tcp(ip)?;
        bind(&listener, &SocketAddr::new(ip, 0))?;
        listen(&listener, 1)?;
        sockopt::set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
        let mut client = Socket::unconnected(ip, local_address(&listener)?)?;
        client.connect()?;
        client.established = true;
        let server = Socket::new(accept_with(&listener, SocketFlags::CLOEXEC)?, client.local, true)?;
        Ok(Self { client, server })
    }

    /// One request and its answer.
    pub fn exchange(&self) -> io::Result<()> {
        self.client.send(REQUEST)?;
        self.server.recv_all(REQUEST)?;
        self.server.send(RESPONSE)?;
        self.client.recv_all(RESPONSE)
    }

    pub fn exchanged() -> io::Result<Self> {
        let pair = Self::new(Ipv4Addr::LOCALHOST.into())?;
        pair.exchange()?;
        Ok(pair)
    }
}

/// An address at which nobody listens, for as long as the descriptor lives.
pub fn closed_port() -> io::Result<(OwnedFd, SocketAddr)> {
    let ip = Ipv4Addr::LOCALHOST.into();
    let fd = tcp(ip)?;
    bind(&fd, &SocketAddr::new(ip, 0))?;
    let address = local_address(&fd)?;
    Ok((fd, address))
}

fn tcp(ip: IpAddr) -> io::Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?)
}

fn local_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(getsockname(fd)?).map_err(Into::into)
}

/// What rustix has no function for.
pub fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `value`, which outlives the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on nothing that is sent to this socket arrives.
pub fn deafen(socket: &Socket) -> io::Result<()> {
    // `BPF_RET | BPF_K`: accept no byte.
    let mut nothing = libc::sock_filter { code: 0x6, jt: 0, jf: 0, k: 0 };
    set_option(&socket.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &libc::sock_fprog { len: 1, filter: &mut nothing })
}

/// `SIOCOUTQ`: bytes sent and not acknowledged, the FIN included.
fn unacknowledged(fd: &OwnedFd) -> io::Result<libc::c_int> {
    let mut n = 0;
    // SAFETY: the request writes one int.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &mut n) } {
        0 => Ok(n),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An error where nothing leads to this host itself.
fn require_loopback() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // Looks the route up, and sends nothing.
    socket.connect((Ipv4Addr::LOCALHOST, 9))
}

fn bring_loopback_up() -> io::Result<()> {
    let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request reads an `ifreq` with a name and flags.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
