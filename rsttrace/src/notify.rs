//! What a service manager is told: sd_notify(3), over a socket that is connected before the sandbox forbids to make any.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// The variable that names the manager's socket; not for a command that is traced.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// A service manager, if there is one.
#[derive(Debug, Default)]
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    /// The one that started this process.
    ///
    /// # Errors
    /// When its socket cannot be connected to.
    pub fn of_this_service() -> io::Result<Self> {
        let Some(name) = env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return Ok(Self(None)) };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // Tracing waits for nobody.
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Self(Some(socket)))
    }

    /// Everything is attached; `status` is what `systemctl status` shows.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The trace is over.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    fn send(&self, state: &str) {
        if let Self(Some(socket)) = self {
            // A manager that is gone or busy is no reason not to trace.
            let _ = socket.send(state.as_bytes());
        }
    }
}

/// A line of its own would be another assignment.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
