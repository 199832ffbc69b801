//! Addresses, options and what the kernel tells of a socket.

use std::{
    mem::{self, size_of},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::RawFd,
    ptr,
};

use crate::call::{Errno, check};

/// `include/uapi/linux/sockios.h`: bytes that were written and not yet sent.
pub const SIOCOUTQNSD: libc::c_ulong = 0x894B;

/// Less than what the harness waits for an answer.
const PATIENCE_MS: i32 = 12_000;

type Done = Result<i32, Errno>;

pub fn listen(address: SocketAddr, backlog: i32) -> Done {
    listen_on(socket(version(address))?, address, backlog)
}

pub fn listen_mptcp(address: SocketAddr) -> Done {
    listen_on(socket_mptcp(version(address))?, address, 128)
}

fn listen_on(fd: RawFd, address: SocketAddr, backlog: i32) -> Done {
    option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(fd, address)?;
    // SAFETY: no memory involved.
    check(unsafe { libc::listen(fd, backlog) })?;
    Ok(fd)
}

/// A TCP socket of IP version 4 or 6.
pub fn socket(version: u8) -> Done {
    socket_of(version, libc::IPPROTO_TCP)
}

pub fn socket_mptcp(version: u8) -> Done {
    socket_of(version, libc::IPPROTO_MPTCP)
}

fn socket_of(version: u8, protocol: i32) -> Done {
    let family = if version == 4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory involved.
    check(unsafe { libc::socket(family, libc::SOCK_STREAM, protocol) })
}

fn version(address: SocketAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

pub fn bind(fd: RawFd, address: SocketAddr) -> Done {
    let (storage, len) = to_raw(address);
    // SAFETY: an address of that length.
    check(unsafe { libc::bind(fd, (&raw const storage).cast(), len) })
}

pub fn connect(fd: RawFd, address: SocketAddr) -> Done {
    let (storage, len) = to_raw(address);
    // SAFETY: an address of that length.
    check(unsafe { libc::connect(fd, (&raw const storage).cast(), len) })
}

/// `connect(AF_UNSPEC)`
pub fn disconnect(fd: RawFd) -> Done {
    // SAFETY: plain data, for which zeroes are valid; AF_UNSPEC is 0.
    let unspecified: libc::sockaddr = unsafe { mem::zeroed() };
    // SAFETY: an address of that length.
    check(unsafe { libc::connect(fd, &unspecified, size_of::<libc::sockaddr>() as _) })
}

pub fn accept(fd: RawFd) -> Done {
    // SAFETY: no address is asked for.
    check(unsafe { libc::accept(fd, ptr::null_mut(), ptr::null_mut()) })
}

pub fn local(fd: RawFd) -> Result<SocketAddr, Errno> {
    // SAFETY: the function is called with room for an address.
    address(|storage, len| unsafe { libc::getsockname(fd, storage, len) })
}

pub fn remote(fd: RawFd) -> Result<SocketAddr, Errno> {
    // SAFETY: the function is called with room for an address.
    address(|storage, len| unsafe { libc::getpeername(fd, storage, len) })
}

/// `SO_COOKIE`
pub fn cookie(fd: RawFd) -> Result<u64, Errno> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: room for the option.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &mut len) })?;
    Ok(cookie)
}

/// `fstat`'s inode number, which /proc/PID/fd shows too.
pub fn inode(fd: RawFd) -> Result<u64, Errno> {
    // SAFETY: plain data, for which zeroes are valid.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is ours.
    check(unsafe { libc::fstat(fd, &mut stat) })?;
    Ok(stat.st_ino)
}

/// An ioctl that gives a number of bytes.
pub fn queued(fd: RawFd, request: libc::c_ulong) -> Done {
    let mut bytes = 0;
    // SAFETY: room for one integer.
    check(unsafe { libc::ioctl(fd, request as _, &raw mut bytes) })?;
    Ok(bytes)
}

/// The symbol of the pending error, which is thereby taken; `0` for none.
pub fn so_error(fd: RawFd) -> Result<String, Errno> {
    let mut errno = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: room for the option.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut errno).cast(), &mut len) })?;
    Ok(Errno(errno).to_string())
}

/// Waits for one kind of event (`in`, `out`, `eof`, `error`); gives all that came, `ETIMEDOUT` if
/// none does.
pub fn poll(fd: RawFd, event: &str) -> Result<String, Errno> {
    let events = match event {
        "in" => libc::POLLIN,
        "out" => libc::POLLOUT,
        "eof" => libc::POLLRDHUP,
        _ => 0,
    };
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one pollfd.
    if check(unsafe { libc::poll(&mut one, 1, PATIENCE_MS) })? == 0 {
        return Err(Errno(libc::ETIMEDOUT));
    }
    let names =
        [(libc::POLLIN, "in"), (libc::POLLOUT, "out"), (libc::POLLRDHUP, "eof"), (libc::POLLERR, "error"), (libc::POLLHUP, "hangup")];
    let came: Vec<_> = names.iter().filter(|(bit, _)| one.revents & bit != 0).map(|(_, name)| *name).collect();
    Ok(came.join(" "))
}

pub fn linger_zero(fd: RawFd) -> Done {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: an option of that length.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size_of::<libc::linger>() as _) })
}

/// Sets an option by name.
pub fn set(fd: RawFd, name: &str, value: i32) -> Done {
    let (level, option_name) = match name {
        "nonblock" => return nonblock(fd, value != 0),
        "sndbuf" => (libc::SOL_SOCKET, libc::SO_SNDBUF),
        "rcvbuf" => (libc::SOL_SOCKET, libc::SO_RCVBUF),
        "reuseport" => (libc::SOL_SOCKET, libc::SO_REUSEPORT),
        "keepalive" => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        "keepidle" => (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        "keepintvl" => (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
        "keepcnt" => (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
        "linger2" => (libc::IPPROTO_TCP, libc::TCP_LINGER2),
        "user-timeout" => (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        "syncnt" => (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
        "quickack" => (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
        "defer-accept" => (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
        "repair" => (libc::IPPROTO_TCP, libc::TCP_REPAIR),
        "only6" => (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        _ => return Err(Errno(libc::EINVAL)),
    };
    option(fd, level, option_name, value)
}

fn option(fd: RawFd, level: i32, name: i32, value: i32) -> Done {
    // SAFETY: an option of that length.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as _) })
}

fn nonblock(fd: RawFd, on: bool) -> Done {
    // SAFETY: no memory involved.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        check(libc::fcntl(fd, libc::F_SETFL, flags))
    }
}

/// Large enough for both families.
type Raw = libc::sockaddr_in6;

fn to_raw(address: SocketAddr) -> (Raw, libc::socklen_t) {
    // SAFETY: plain data, for which zeroes are valid.
    let mut storage: Raw = unsafe { mem::zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: it is smaller and as aligned.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            storage.sin6_family = libc::AF_INET6 as _;
            storage.sin6_port = v6.port().to_be();
            storage.sin6_addr.s6_addr = v6.ip().octets();
            storage.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as _)
}

fn address(ask: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> i32) -> Result<SocketAddr, Errno> {
    // SAFETY: plain data, for which zeroes are valid.
    let mut storage: Raw = unsafe { mem::zeroed() };
    let mut len = size_of::<Raw>() as libc::socklen_t;
    check(ask((&raw mut storage).cast(), &mut len))?;
    if i32::from(storage.sin6_family) == libc::AF_INET {
        // SAFETY: it is smaller and as aligned, and the kernel wrote it.
        let raw = unsafe { (&raw const storage).cast::<libc::sockaddr_in>().read() };
        let ip = raw.sin_addr.s_addr.to_ne_bytes();
        return Ok(SocketAddr::from((ip, u16::from_be(raw.sin_port))));
    }
    let ip = Ipv6Addr::from(storage.sin6_addr.s6_addr);
    let port = u16::from_be(storage.sin6_port);
    Ok(SocketAddrV6::new(ip, port, 0, storage.sin6_scope_id).into())
}
