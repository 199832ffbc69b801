//! Finding the record of one socket among those of everything else on the host.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

/// One socket of a connection, named as a record names it. A v4-mapped address is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Flow {
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local: plain(local), remote: plain(remote) }
    }

    /// The socket's own view.
    pub fn of(stream: &std::net::TcpStream) -> Self {
        Self::new(stream.local_addr().expect("a connected socket"), stream.peer_addr().expect("a connected socket"))
    }

    /// The other end's view.
    pub fn peer(self) -> Self {
        Self { local: self.remote, remote: self.local }
    }

    /// Whether a record (of any kind that has addresses) is of this socket.
    pub fn matches(self, record: &Value) -> bool {
        endpoint(&record["local"]) == Some(self.local) && endpoint(&record["remote"]) == Some(self.remote)
    }

    /// What a record names.
    pub fn in_record(record: &Value) -> Option<Self> {
        Some(Self { local: endpoint(&record["local"])?, remote: endpoint(&record["remote"])? })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.local, self.remote)
    }
}

/// Selects teardowns by both ports.
pub fn is_teardown(local_port: u16, remote_port: u16) -> impl Fn(&Value) -> bool {
    move |record| record["record"] == "teardown" && record["local"]["port"] == local_port && record["remote"]["port"] == remote_port
}

/// Selects teardowns of one end kind.
pub fn of_kind(end: &'static str) -> impl Fn(&Value) -> bool {
    move |record| record["record"] == "teardown" && record["end"] == end
}

/// Whether a teardown is a reset that no full socket sent.
pub fn is_stray(record: &Value) -> bool {
    record["record"] == "teardown" && record["end"] == "reset-sent" && record["bytes"].is_null()
}

fn endpoint(value: &Value) -> Option<SocketAddr> {
    let address: IpAddr = value["addr"].as_str()?.parse().ok()?;
    let port = u16::try_from(value["port"].as_u64()?).ok()?;
    Some(plain(SocketAddr::new(address, port)))
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
