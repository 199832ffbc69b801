//! Calls on descriptors, each the one system call that its name says.

use std::{ffi::CString, fmt, mem, os::fd::RawFd, ptr};

/// An errno, shown by its symbol.
#[derive(Clone, Copy, Debug)]
pub struct Errno(pub i32);

impl Errno {
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = match self.0 {
            0 => "0",
            libc::EAGAIN => "EAGAIN",
            libc::EBADF => "EBADF",
            libc::EINPROGRESS => "EINPROGRESS",
            libc::EPIPE => "EPIPE",
            libc::ECONNABORTED => "ECONNABORTED",
            libc::ECONNREFUSED => "ECONNREFUSED",
            libc::ECONNRESET => "ECONNRESET",
            libc::EHOSTUNREACH => "EHOSTUNREACH",
            libc::EINVAL => "EINVAL",
            libc::ENETUNREACH => "ENETUNREACH",
            libc::ENOSYS => "ENOSYS",
            libc::ENOTCONN => "ENOTCONN",
            libc::EPERM => "EPERM",
            libc::ETIMEDOUT => "ETIMEDOUT",
            other => return write!(f, "{other}"),
        };
        f.write_str(symbol)
    }
}

/// A result below zero becomes the errno.
pub fn check<T: PartialOrd + From<i8>>(result: T) -> Result<T, Errno> {
    if result < T::from(0) { Err(Errno::last()) } else { Ok(result) }
}

type Count = Result<isize, Errno>;
type Done = Result<i32, Errno>;

/// `recvfrom`
pub fn recv(fd: RawFd, len: usize, flags: i32) -> Count {
    let mut buffer = vec![0u8; len];
    // SAFETY: the buffer is ours and has this length.
    check(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), len, flags) })
}

pub fn read(fd: RawFd, len: usize) -> Count {
    let mut buffer = vec![0u8; len];
    // SAFETY: as above.
    check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), len) })
}

pub fn readv(fd: RawFd, len: usize) -> Count {
    let mut buffer = vec![0u8; len];
    let iov = io_vector(&mut buffer);
    // SAFETY: one vector over a buffer of ours.
    check(unsafe { libc::readv(fd, &iov, 1) })
}

pub fn recvmsg(fd: RawFd, len: usize) -> Count {
    let mut buffer = vec![0u8; len];
    let mut iov = io_vector(&mut buffer);
    let mut message = message(&mut iov);
    // SAFETY: the message leads to a buffer of ours.
    check(unsafe { libc::recvmsg(fd, &mut message, 0) })
}

/// The number of messages.
pub fn recvmmsg(fd: RawFd, len: usize) -> Done {
    let mut buffer = vec![0u8; len];
    let mut iov = io_vector(&mut buffer);
    let mut one = libc::mmsghdr { msg_hdr: message(&mut iov), msg_len: 0 };
    // SAFETY: one message that leads to a buffer of ours; no timeout.
    check(unsafe { libc::recvmmsg(fd, &mut one, 1, 0, ptr::null_mut()) })
}

/// `splice` from the socket into a pipe.
pub fn splice_from(fd: RawFd, len: usize) -> Count {
    let [read, write] = pipe()?;
    // SAFETY: valid descriptors; null offsets.
    let result = check(unsafe { libc::splice(fd, ptr::null_mut(), write, ptr::null_mut(), len, 0) });
    close(read)?;
    close(write)?;
    result
}

/// `splice` from a full pipe into the socket.
pub fn splice_to(fd: RawFd, len: usize) -> Count {
    let [read, write] = pipe()?;
    self::write(write, len)?;
    // SAFETY: valid descriptors; null offsets.
    let result = check(unsafe { libc::splice(read, ptr::null_mut(), fd, ptr::null_mut(), len, 0) });
    close(read)?;
    close(write)?;
    result
}

/// `sendto`
pub fn send(fd: RawFd, len: usize, flags: i32) -> Count {
    let buffer = vec![b'x'; len];
    // SAFETY: the buffer is ours and has this length.
    check(unsafe { libc::send(fd, buffer.as_ptr().cast(), len, flags | libc::MSG_NOSIGNAL) })
}

/// `sendto` until nothing more is taken: all that was taken.
pub fn fill(fd: RawFd) -> Count {
    let mut total = 0;
    loop {
        match send(fd, 65536, libc::MSG_DONTWAIT) {
            Ok(n) => total += n,
            Err(Errno(libc::EAGAIN)) => return Ok(total),
            Err(errno) => return Err(errno),
        }
    }
}

pub fn write(fd: RawFd, len: usize) -> Count {
    let buffer = vec![b'x'; len];
    // SAFETY: the buffer is ours and has this length.
    check(unsafe { libc::write(fd, buffer.as_ptr().cast(), len) })
}

pub fn writev(fd: RawFd, len: usize) -> Count {
    let mut buffer = vec![b'x'; len];
    let iov = io_vector(&mut buffer);
    // SAFETY: one vector over a buffer of ours.
    check(unsafe { libc::writev(fd, &iov, 1) })
}

pub fn sendmsg(fd: RawFd, len: usize) -> Count {
    let mut buffer = vec![b'x'; len];
    let mut iov = io_vector(&mut buffer);
    let message = message(&mut iov);
    // SAFETY: the message leads to a buffer of ours.
    check(unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL) })
}

pub fn sendfile(fd: RawFd, len: usize) -> Count {
    // SAFETY: a C string.
    let file = check(unsafe { libc::memfd_create(c"data".as_ptr(), 0) })?;
    write(file, len)?;
    let mut offset = 0;
    // SAFETY: valid descriptors, an offset of ours.
    let result = check(unsafe { libc::sendfile(fd, file, &mut offset, len) });
    close(file)?;
    result
}

pub fn close(fd: RawFd) -> Done {
    // SAFETY: the caller is done with the descriptor.
    check(unsafe { libc::close(fd) })
}

pub fn close_range(fd: RawFd) -> Result<libc::c_long, Errno> {
    // SAFETY: the caller is done with the descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, fd, fd, 0) })
}

pub fn dup2(from: RawFd, to: RawFd) -> Done {
    // SAFETY: the caller is done with `to`.
    check(unsafe { libc::dup2(from, to) })
}

pub fn shutdown(fd: RawFd, how: &str) -> Done {
    let how = match how {
        "read" => libc::SHUT_RD,
        "write" => libc::SHUT_WR,
        _ => libc::SHUT_RDWR,
    };
    // SAFETY: no memory involved.
    check(unsafe { libc::shutdown(fd, how) })
}

/// Becomes another program, and loses every descriptor but the standard ones.
pub fn exec(program: &str) -> Done {
    let path = CString::new(program).unwrap_or_default();
    let argv = [path.as_ptr(), ptr::null()];
    // SAFETY: C strings, null-terminated arrays.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        check(libc::execv(path.as_ptr(), argv.as_ptr()))
    }
}

/// Both ends of a Unix stream.
pub fn socketpair() -> Result<String, Errno> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) })?;
    Ok(format!("{} {}", ends[0], ends[1]))
}

/// Room for one descriptor in a control message, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// Passes a descriptor through a Unix socket (`SCM_RIGHTS`).
pub fn send_fd(via: RawFd, fd: RawFd) -> Count {
    let mut byte = [0u8];
    let mut iov = io_vector(&mut byte);
    let mut control = Control([0; 24]);
    let message = message_with_fd(&mut iov, &mut control);
    // SAFETY: the control buffer has room for one header and one descriptor.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        check(libc::sendmsg(via, &message, 0))
    }
}

/// Takes a descriptor that [`send_fd`] passed.
pub fn recv_fd(via: RawFd) -> Done {
    let mut byte = [0u8];
    let mut iov = io_vector(&mut byte);
    let mut control = Control([0; 24]);
    let mut message = message_with_fd(&mut iov, &mut control);
    // SAFETY: the control buffer has room for one header and one descriptor.
    unsafe {
        check(libc::recvmsg(via, &mut message, 0))?;
        let header = libc::CMSG_FIRSTHDR(&message);
        if header.is_null() {
            return Err(Errno(libc::EBADF));
        }
        Ok(libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
    }
}

fn io_vector(buffer: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }
}

/// A message of one vector.
fn message(iov: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: plain data, for which zeroes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = iov;
    message.msg_iovlen = 1;
    message
}

fn message_with_fd(iov: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    let mut message = message(iov);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    message
}

fn pipe() -> Result<[RawFd; 2], Errno> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    Ok(ends)
}
