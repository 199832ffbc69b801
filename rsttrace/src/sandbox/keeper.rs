//! Somebody who may still make files when we no longer may: a recording goes on in a new file when one is
//! full, and in the file of its name when that has been moved away. A child that was forked before has the
//! directory, opens what it is told to, and hands over the descriptor. Landlock leaves it that directory and nothing
//! else; where rsttrace runs as root it keeps `CAP_DAC_OVERRIDE`, because the directory may be somebody else's.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use rustix::{
    io::retry_on_intr,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt},
    thread::CapabilitySet,
};

use super::{
    broker::{PATIENCE, receive_file, send_with},
    capabilities, files, servant,
    syscalls::{self, Role},
};
use crate::recording::{Place, Shelf};

const ANEW: u8 = b'n';
const AGAIN: u8 = b'a';

/// The tracer's end.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    /// An answer that nobody waits for any longer is still to come.
    owed: bool,
}

impl Keeper {
    /// Forks. Called while the process has one thread and no runtime.
    ///
    /// # Errors
    /// When there can be no socket or no process.
    pub fn start(place: Place) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let kept = [theirs.as_raw_fd(), place.directory().as_raw_fd()];
        servant(c"rsttrace-files", &kept, || live(&theirs, place))?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket: ours, owed: false })
    }
}

impl Shelf for Keeper {
    fn open(&mut self, fresh: bool) -> io::Result<File> {
        if self.owed {
            // A descriptor that came too late is not of this request. It may have been moved on since.
            receive_file(&self.socket, &mut [0; 4], RecvFlags::DONTWAIT)?;
        }
        retry_on_intr(|| send(&self.socket, &[if fresh { ANEW } else { AGAIN }], SendFlags::NOSIGNAL))?;
        self.owed = true;
        let mut answer = [0; 4];
        let answered = receive_file(&self.socket, &mut answer, RecvFlags::empty())?;
        self.owed = false;
        match answered {
            (_, Some(file)) => Ok(file.into()),
            (4, None) => Err(io::Error::from_raw_os_error(i32::from_le_bytes(answer))),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The child's whole life.
fn live(socket: &OwnedFd, mut place: Place) {
    // Where the kernel refuses a layer, the others hold.
    let override_rights = if rustix::process::getuid().is_root() { CapabilitySet::DAC_OVERRIDE } else { CapabilitySet::empty() };
    let _ = capabilities::keep_only(override_rights);
    let _ = files::only_make_in(place.directory().as_fd());
    let _ = syscalls::confine(Role::Keeper);
    let mut request = [0];
    while let Ok((1, _)) = retry_on_intr(|| recv(socket, &mut request[..], RecvFlags::empty())) {
        let opened = place.open(request[0] == ANEW);
        let number = opened.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0);
        if retry_on_intr(|| send_with(socket, &number.to_le_bytes(), opened.as_ref().ok())).is_err() {
            return;
        }
    }
}
