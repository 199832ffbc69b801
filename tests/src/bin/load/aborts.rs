//! Connections that their clients abort and whose servers read the reset.

use std::{
    io::{self, Error, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use rsttrace_tests::peers::{abort, connect_from, listen};

/// Pairs of threads, each with an address of its own.
const PAIRS: u8 = 2;
/// Connections that a client may be ahead of its server, less than the accept queue holds.
const AHEAD: usize = 1000;
/// Connections to one address, fewer than there are ports to come from.
const PER_ADDRESS: usize = 10_000;

/// Makes `count` of them, or as many as `limit` allows.
pub fn make(count: usize, limit: Duration) -> io::Result<String> {
    let listeners = (0..PAIRS).map(|_| listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), 4096)).collect::<io::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let share = count / usize::from(PAIRS);
    let made = thread::scope(|scope| {
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for (pair, listener) in listeners.iter().enumerate() {
            // The client says that there is one more, the server makes room: so it is never far ahead.
            let (told, tell) = sync_channel(AHEAD);
            servers.push(scope.spawn(|| serve(listener, tell)));
            let port = listener.local_addr()?.port();
            clients.push(scope.spawn(move || {
                for i in 0..share {
                    if begun.elapsed() > limit {
                        break;
                    }
                    let server = SocketAddrV4::new(Ipv4Addr::new(127, 9, pair as u8, 1 + (i / PER_ADDRESS) as u8), port);
                    let mut client = connect_from(SocketAddrV4::new(Ipv4Addr::new(127, 8, pair as u8, 1), 0), server)?;
                    client.write_all(b"storm")?;
                    abort(client);
                    if told.send(()).is_err() {
                        break;
                    }
                }
                io::Result::Ok(())
            }));
        }
        clients.into_iter().try_for_each(joined)?;
        servers.into_iter().map(joined).sum::<io::Result<u64>>()
    })?;
    Ok(super::result(made, begun))
}

fn joined<T>(thread: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::other("a thread died")))
}

fn serve(listener: &TcpListener, made: Receiver<()>) -> io::Result<u64> {
    let mut served = 0;
    while made.recv().is_ok() {
        let (mut stream, _) = listener.accept()?;
        let mut data = [0; 16];
        loop {
            match stream.read(&mut data) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Ok(0) => return Err(Error::other("a FIN instead of a RST")),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        served += 1;
    }
    Ok(served)
}
