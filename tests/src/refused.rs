//! System calls that the sandbox refused, from the kernel's log: a trace that needs one that is not
//! on the list (rsttrace/src/sandbox/syscalls.rs) may only look as if it worked.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

/// The kernel's log from now on; nothing where it cannot be read.
pub struct Refused(Option<File>);

impl Refused {
    pub fn from_now_on() -> Self {
        let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        Self(log.ok().filter(|mut log| log.seek(SeekFrom::End(0)).is_ok()))
    }

    /// What was refused to rsttrace and to its reader of /proc, one line each. `AUDIT_SECCOMP` is 1326.
    pub fn lines(&mut self) -> Vec<String> {
        let Some(log) = &mut self.0 else { return Vec::new() };
        let mut lines = Vec::new();
        // Each read gives one record.
        let mut record = [0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(0) => return lines,
                Ok(len) => {
                    let line = String::from_utf8_lossy(&record[..len]).into_owned();
                    if line.contains("type=1326") && line.contains("comm=\"rsttrace") {
                        lines.push(line);
                    }
                }
                // Overwritten meanwhile: go on with what is left.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return lines,
            }
        }
    }
}
