//! Small parts of scripted peers that live in the test's own threads.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    hash::Hash,
    io::{self, Read},
    mem,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd},
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::DEADLINE;

/// A blocking TCP connection from an address of the caller's choice (port 0: the kernel's choice).
pub fn connect_from(local: SocketAddrV4, remote: SocketAddrV4) -> io::Result<TcpStream> {
    // SAFETY: plain socket calls; the descriptor is owned by the stream from the first line on.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let stream = TcpStream::from_raw_fd(fd);
        // The port is chosen at connect(), for the whole tuple and not for the address alone.
        set(&stream, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1)?;
        let length = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let local = raw(local);
        check(libc::bind(fd, (&raw const local).cast(), length))?;
        let remote = raw(remote);
        check(libc::connect(fd, (&raw const remote).cast(), length))?;
        Ok(stream)
    }
}

/// A listening socket with room for a crowd before accept().
pub fn listen(address: SocketAddrV4, backlog: i32) -> io::Result<TcpListener> {
    // SAFETY: as in `connect_from`.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let listener = TcpListener::from_raw_fd(fd);
        set(&listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1)?;
        let address = raw(address);
        let length = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
        check(libc::bind(fd, (&raw const address).cast(), length))?;
        check(libc::listen(fd, backlog))?;
        Ok(listener)
    }
}

/// Sets a socket option.
pub fn set<T>(socket: &impl AsRawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: a valid descriptor; the kernel reads `length` bytes of the value.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) })
}

/// Makes close() abort: RST instead of FIN, whatever was read or not.
pub fn linger_zero(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set(stream, libc::SOL_SOCKET, libc::SO_LINGER, &linger).expect("SO_LINGER");
}

/// Aborts the connection.
pub fn abort(stream: TcpStream) {
    linger_zero(&stream);
    drop(stream);
}

/// Aborts the connection for every descriptor of it, by connect(AF_UNSPEC).
pub fn disconnect(stream: &TcpStream) -> io::Result<()> {
    // SAFETY: zero is a valid value of every member.
    let mut nowhere: libc::sockaddr = unsafe { mem::zeroed() };
    nowhere.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let length = mem::size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: a valid descriptor and address.
    check(unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, length) })
}

/// Reads a request's or response's head, to the empty line; shorter where the peer ends before.
pub fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn raw(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(Ipv4Addr::octets(address.ip())) },
        sin_zero: [0; 8],
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Counters of the calling thread's network namespace by name, of `/proc/net/snmp` and
/// `/proc/net/netstat`.
pub fn counters() -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    for file in ["snmp", "netstat"] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect(file);
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.chunks(2) {
            let names = pair[0].split_whitespace();
            for (name, value) in names.zip(pair[1].split_whitespace()) {
                if let Ok(value) = value.parse() {
                    counters.insert(name.to_owned(), value);
                }
            }
        }
    }
    counters
}

/// Things that have happened, for threads that wait for them.
#[derive(Default)]
pub struct Beacons<T> {
    lit: Mutex<HashSet<T>>,
    changed: Condvar,
}

impl<T: Eq + Hash + std::fmt::Debug> Beacons<T> {
    pub fn light(&self, what: T) {
        self.lit.lock().unwrap_or_else(PoisonError::into_inner).insert(what);
        self.changed.notify_all();
    }

    /// Waits until it has happened; panics after [`DEADLINE`].
    #[track_caller]
    pub fn wait(&self, what: &T) {
        assert!(self.wait_up_to(DEADLINE, what), "deadline passed while waiting for {what:?}");
    }

    pub fn wait_up_to(&self, deadline: Duration, what: &T) -> bool {
        let end = Instant::now() + deadline;
        let mut lit = self.lit.lock().unwrap_or_else(PoisonError::into_inner);
        while !lit.contains(what) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            lit = self.changed.wait_timeout(lit, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
