//! The demo's workload: every kind of end a TCP connection can have on loopback, each announced
//! on stderr by one line of what is about to be done. Needs no rights; as root it also runs
//! `ss -K`.
//!
//! Both ends of a connection are processes of their own, `demo-client` and `demo-server`, which
//! take turns over a Unix socket, so that every step happens after the one before it.

use std::{
    io::{self, ErrorKind, Read, Write},
    mem::size_of,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio, exit},
    thread,
    time::Duration,
};

/// Between two kinds, so that a reader can tell whose record is whose.
const PAUSE: Duration = Duration::from_millis(150);
/// The tracer's `--join-timeout`, and some.
const LATE: Duration = Duration::from_millis(1200);
/// A peer that says nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn main() -> io::Result<()> {
    // The parent only starts the two ends and announces.
    name("demo");
    // SAFETY: no preconditions.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let pooled = pooled_connection()?;
    announce("a client reads the whole response, then aborts (SO_LINGER 0)");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.read(RESPONSE.len())?;
            client.abort()
        },
        |mut server| {
            server.answer()?;
            server.expect_error()
        },
    )?;

    announce("a client aborts in the middle of a response of 4 MB");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.hear()?;
            client.read(1000)?;
            client.abort()
        },
        |mut server| {
            server.read(REQUEST.len())?;
            server.write_all_that_fits(4_000_000)?;
            server.say()?;
            server.expect_error()
        },
    )?;

    announce("a client sends its request and aborts before the response");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.hear()?;
            client.abort()
        },
        |mut server| {
            server.read(REQUEST.len())?;
            server.say()?;
            server.wait_for(libc::POLLERR)?;
            let _ = server.tcp.write(RESPONSE);
            Ok(())
        },
    )?;

    announce("a server closes with the request unread: the kernel sends RST instead of FIN");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.expect_error()
        },
        |server| {
            server.wait_for(libc::POLLIN)?;
            drop(server.tcp);
            Ok(())
        },
    )?;

    announce("a server closes an idle connection while the client's next request is on its way");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.read(RESPONSE.len())?;
            client.wait_for(libc::POLLRDHUP)?;
            // It has not looked, and sends: RST in CLOSE_WAIT, recv() 0, then EPIPE.
            client.request()?;
            client.wait_for(libc::POLLERR)?;
            let _ = client.tcp.write(REQUEST);
            Ok(())
        },
        |mut server| {
            server.answer()?;
            drop(server.tcp);
            Ok(())
        },
    )?;

    announce("a client connects to a port where nobody listens (blocking connect)");
    let closed = closed_port()?;
    alone("demo-client", || {
        let _ = TcpStream::connect(closed.1);
        Ok(())
    })?;

    announce("the same with a non-blocking connect, asked by getsockopt(SO_ERROR)");
    alone("demo-client", || refused_nonblocking(closed.1))?;

    announce("a server is killed with the request unread (SIGKILL)");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.expect_error()
        },
        |server| {
            server.wait_for(libc::POLLIN)?;
            // SAFETY: kills this process alone.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            Ok(())
        },
    )?;

    announce("a server closes its listener with two connections in the accept queue");
    close_listener_with_queue()?;

    announce("a client disconnects by connect(AF_UNSPEC)");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.read(RESPONSE.len())?;
            client.disconnect()
        },
        |mut server| {
            server.answer()?;
            server.expect_error()
        },
    )?;

    announce("a client aborts and the server closes without ever noticing");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.read(RESPONSE.len())?;
            client.abort()
        },
        |mut server| {
            server.answer()?;
            server.wait_for(libc::POLLERR)?;
            drop(server.tcp);
            Ok(())
        },
    )?;

    announce("an IPv6 client aborts");
    let ipv6 = pair(
        SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 0),
        |mut client| {
            client.request()?;
            client.read(RESPONSE.len())?;
            client.abort()
        },
        |mut server| {
            server.answer()?;
            server.expect_error()
        },
    );
    if let Err(error) = ipv6 {
        eprintln!("   (not here: {error})");
    }

    announce("a client stops reading; TCP_USER_TIMEOUT (300 ms) gives the connection up");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.hear()
        },
        |mut server| {
            server.read(REQUEST.len())?;
            server.option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 300)?;
            server.write_all_that_fits(4_000_000)?;
            server.wait_for(libc::POLLERR)?;
            let _ = server.tcp.write(RESPONSE);
            server.say()
        },
    )?;

    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        announce("an administrator kills a connection (ss -K)");
        pair(
            LOOPBACK,
            |mut client| {
                client.request()?;
                client.read(RESPONSE.len())?;
                client.say()?;
                client.expect_error()
            },
            |mut server| {
                server.answer()?;
                server.hear()?;
                if !server.kill_by_ss() {
                    eprintln!("   (not here: no ss, or a kernel without INET_DIAG_DESTROY)");
                    return server.abort();
                }
                server.expect_error()
            },
        )?;
    }

    announce("both ends close in order (FIN, seen with --fin): half-closed for 50 ms");
    pair(
        LOOPBACK,
        |mut client| {
            client.request()?;
            client.tcp.shutdown(Shutdown::Write)?;
            client.read(RESPONSE.len())?;
            client.read_to_end()
        },
        |mut server| {
            server.answer()?;
            server.read_to_end()?;
            thread::sleep(Duration::from_millis(50));
            Ok(())
        },
    )?;

    announce("the connection that was reset at the beginning, idle in a pool, is noticed at last");
    pooled.notice()
}

/// Says what comes next.
fn announce(what: &str) {
    thread::sleep(PAUSE);
    eprintln!("-- {what}");
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// One end of a connection: the socket, and the way to take turns with the other end.
struct End {
    tcp: TcpStream,
    turn: UnixStream,
}

impl End {
    /// Lets the other end go on.
    fn say(&mut self) -> io::Result<()> {
        self.turn.write_all(b".")
    }

    /// Waits for the other end's [`say`](Self::say).
    fn hear(&mut self) -> io::Result<()> {
        self.turn.read_exact(&mut [0])
    }

    fn request(&mut self) -> io::Result<()> {
        self.tcp.write_all(REQUEST)
    }

    fn answer(&mut self) -> io::Result<()> {
        self.read(REQUEST.len())?;
        self.tcp.write_all(RESPONSE)
    }

    fn read(&mut self, bytes: usize) -> io::Result<()> {
        self.tcp.read_exact(&mut vec![0; bytes])
    }

    fn read_to_end(&mut self) -> io::Result<()> {
        self.tcp.read_to_end(&mut Vec::new()).map(drop)
    }

    /// Receives until the error that must come.
    fn expect_error(&mut self) -> io::Result<()> {
        match self.tcp.read(&mut [0; 4096]) {
            Err(_) => Ok(()),
            Ok(n) => Err(io::Error::other(format!("{n} bytes instead of an error"))),
        }
    }

    /// Writes what the buffers of both ends hold, at most `limit` bytes.
    fn write_all_that_fits(&mut self, limit: usize) -> io::Result<()> {
        self.option(libc::SOL_SOCKET, libc::SO_SNDBUF, limit as i32)?;
        self.tcp.set_nonblocking(true)?;
        let mut left = limit;
        while left > 0 {
            match self.tcp.write(&vec![0; left.min(65536)]) {
                Ok(n) => left -= n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.tcp.set_nonblocking(false)
    }

    /// Resets the connection: SO_LINGER 0, then close().
    fn abort(self) -> io::Result<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        set_option(&self.tcp, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
    }

    /// `connect(AF_UNSPEC)`
    fn disconnect(self) -> io::Result<()> {
        // SAFETY: plain data, for which zeroes are valid; AF_UNSPEC is 0.
        let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
        let length = size_of::<libc::sockaddr>() as libc::socklen_t;
        // SAFETY: an address of that length.
        check(unsafe { libc::connect(self.tcp.as_raw_fd(), &nowhere, length) }).map(drop)
    }

    fn kill_by_ss(&self) -> bool {
        let (Ok(local), Ok(peer)) = (self.tcp.local_addr(), self.tcp.peer_addr()) else {
            return false;
        };
        let filter = format!("( src {local} and dst {peer} )");
        let ran = Command::new("ss").args(["-tK", &filter]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success()) && poll(&self.tcp, 0, Duration::ZERO).unwrap_or(false)
    }

    fn option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        set_option(&self.tcp, level, name, &value)
    }

    fn wait_for(&self, event: i16) -> io::Result<()> {
        match poll(&self.tcp, event, PATIENCE)? {
            true => Ok(()),
            false => Err(ErrorKind::TimedOut.into()),
        }
    }
}

/// Runs both ends of one connection and waits for them.
fn pair(listen: SocketAddr, client: impl FnOnce(End) -> io::Result<()>, server: impl FnOnce(End) -> io::Result<()>) -> io::Result<()> {
    let (client_turn, server_turn) = UnixStream::pair()?;
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    let server = fork("demo-server", || {
        let (tcp, _) = listener.accept()?;
        drop(listener);
        server(End { tcp, turn: server_turn })
    })?;
    let client = fork("demo-client", || client(End { tcp: TcpStream::connect(address)?, turn: client_turn }))?;
    client.wait()?;
    server.wait()
}

/// Runs one process and waits for it.
fn alone(name: &str, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    fork(name, work)?.wait()
}

/// A connection that is reset at once, and whose owner sits on it.
struct Pooled {
    owner: Process,
    turn: UnixStream,
    since: std::time::Instant,
}

fn pooled_connection() -> io::Result<Pooled> {
    announce("a server resets a connection that its client keeps in a pool, and does not look at");
    let (mut turn, theirs) = UnixStream::pair()?;
    let listener = TcpListener::bind(LOOPBACK)?;
    let address = listener.local_addr()?;
    let server = fork("demo-server", || {
        let (tcp, _) = listener.accept()?;
        let mut server = End { tcp, turn: theirs.try_clone()? };
        server.answer()?;
        server.wait_for(libc::POLLIN)?;
        drop(server.tcp);
        Ok(())
    })?;
    let owner = fork("demo-client", || {
        let mut client = End { tcp: TcpStream::connect(address)?, turn: theirs };
        client.request()?;
        client.read(RESPONSE.len())?;
        client.request()?;
        client.wait_for(libc::POLLERR)?;
        client.say()?;
        client.hear()?;
        client.expect_error()
    })?;
    turn.read_exact(&mut [0])?;
    server.wait()?;
    Ok(Pooled { owner, turn, since: std::time::Instant::now() })
}

impl Pooled {
    fn notice(mut self) -> io::Result<()> {
        thread::sleep(LATE.saturating_sub(self.since.elapsed()));
        self.turn.write_all(b".")?;
        self.owner.wait()
    }
}

/// A bound socket that does not listen, so that nobody else will, and its address.
fn closed_port() -> io::Result<(OwnedFd, SocketAddr)> {
    // Binding without listening is not in the standard library: the listener is closed by
    // shutdown(), which keeps the port.
    let listener = TcpListener::bind(LOOPBACK)?;
    let address = listener.local_addr()?;
    // SAFETY: no memory involved.
    check(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) })?;
    Ok((listener.into(), address))
}

fn refused_nonblocking(to: SocketAddr) -> io::Result<()> {
    let SocketAddr::V4(to) = to else { return Ok(()) };
    // SAFETY: a new descriptor of ours.
    let tcp = unsafe { TcpStream::from_raw_fd(check(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0))?) };
    let raw = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: an address of that length. It fails, or is in progress.
    unsafe { libc::connect(tcp.as_raw_fd(), (&raw const raw).cast(), length) };
    poll(&tcp, libc::POLLOUT, PATIENCE)?;
    tcp.take_error().map(drop)
}

fn close_listener_with_queue() -> io::Result<()> {
    let (mut turn, mut theirs) = UnixStream::pair()?;
    let listener = TcpListener::bind(LOOPBACK)?;
    let address = listener.local_addr()?;
    let server = fork("demo-server", || {
        theirs.read_exact(&mut [0])?;
        drop(listener);
        Ok(())
    })?;
    let client = fork("demo-client", || {
        let mut queued = [TcpStream::connect(address)?, TcpStream::connect(address)?];
        turn.write_all(b".")?;
        for stream in &mut queued {
            let _ = stream.read(&mut [0]);
        }
        Ok(())
    })?;
    client.wait()?;
    server.wait()
}

/// A child of ours.
struct Process(libc::pid_t);

impl Process {
    /// Waits for its end; a process killed by SIGKILL has done its part too.
    fn wait(self) -> io::Result<()> {
        let mut status = 0;
        // SAFETY: room for the status.
        check(unsafe { libc::waitpid(self.0, &mut status, 0) })?;
        let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
        if killed || libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
            Ok(())
        } else {
            Err(io::Error::other("a demo process failed"))
        }
    }
}

/// Runs `work` in a process of its own. What it takes by value is closed here.
fn fork(process: &str, work: impl FnOnce() -> io::Result<()>) -> io::Result<Process> {
    // SAFETY: this process has one thread.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok(Process(pid));
    }
    // SAFETY: no memory involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
    name(process);
    exit(match work() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{process}: {error}");
            1
        }
    })
}

/// Sets this process's comm.
fn name(name: &str) {
    let mut text = [0u8; 16];
    let length = name.len().min(15);
    text[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, text.as_ptr()) };
}

fn set_option<T>(tcp: &TcpStream, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: an option of that length.
    let result = unsafe { libc::setsockopt(tcp.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    check(result).map(drop)
}

/// Whether an event (or an error, always) comes in time.
fn poll(tcp: &TcpStream, event: i16, patience: Duration) -> io::Result<bool> {
    let mut one = libc::pollfd { fd: tcp.as_raw_fd(), events: event, revents: 0 };
    // SAFETY: one pollfd.
    check(unsafe { libc::poll(&mut one, 1, patience.as_millis() as libc::c_int) }).map(|n| n > 0)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
