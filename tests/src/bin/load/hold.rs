//! Many connections over loopback that do nothing, both ends of each in this process.

use std::{
    io::{self, Error},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    thread,
    time::Duration,
};

use rsttrace_tests::peers::{connect_from, linger_zero, listen};

/// Beside the sockets.
const OTHER_DESCRIPTORS: usize = 64;
/// Connections per millisecond.
const ABORTED_AT_ONCE: usize = 25;

pub struct Held(Vec<(TcpStream, TcpStream)>);

/// Opens `sockets`, half as many connections. All end by a reset, also when the process ends: so nothing stays in TIME_WAIT.
pub fn open(sockets: usize, number: usize) -> io::Result<Held> {
    super::allow_descriptors(sockets + OTHER_DESCRIPTORS)?;
    let number = u8::try_from(number).map_err(|_| Error::other("NUMBER is one byte of an address"))?;
    let listener = listen(SocketAddrV4::new(Ipv4Addr::new(127, 100, number, 1), 0), 128)?;
    let SocketAddr::V4(server) = listener.local_addr()? else { return Err(Error::other("not IPv4")) };
    let client = SocketAddrV4::new(Ipv4Addr::new(127, 101, number, 1), 0);
    let connection = |_| {
        let client = connect_from(client, server)?;
        let (server, _) = listener.accept()?;
        linger_zero(&client);
        linger_zero(&server);
        Ok((client, server))
    };
    (0..sockets / 2).map(connection).collect::<io::Result<_>>().map(Held)
}

impl Held {
    /// Aborts them all; how many sockets that were.
    pub fn abort(mut self) -> usize {
        let sockets = 2 * self.0.len();
        while !self.0.is_empty() {
            self.0.truncate(self.0.len().saturating_sub(ABORTED_AT_ONCE));
            // This is no storm: whoever listens should keep up.
            thread::sleep(Duration::from_millis(1));
        }
        sockets
    }
}
