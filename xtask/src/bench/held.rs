//! Many open sockets, held by as many processes as it takes.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{load::Load, process, report::grouped};

/// Of one process: below the limits that are usual.
const PER_PROCESS: usize = 16_000;
/// What the kernel takes for a socket with its file, about twice of what is measured.
const BYTES_PER_SOCKET: usize = 10_000;

/// Open sockets, both ends of connections over loopback.
pub struct Held {
    processes: Vec<Load>,
}

impl Held {
    pub fn open(load: &Path, sockets: usize) -> Result<Self> {
        let mut held = Self { processes: Vec::new() };
        held.grow(load, 0, sockets)?;
        Ok(held)
    }

    /// Opens more, from `from` to `sockets`.
    pub fn grow(&mut self, load: &Path, from: usize, sockets: usize) -> Result<()> {
        check_room(sockets - from)?;
        let mut left = sockets - from;
        while left > 0 {
            let share = left.min(PER_PROCESS);
            let number = self.processes.len() + 1;
            self.processes.push(Load::start(load, &["hold", &share.to_string(), &number.to_string()])?);
            left -= share;
        }
        Ok(())
    }

    /// Aborts every connection.
    pub fn abort(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(|process| process.go().map(drop))
    }

    pub fn close(self) -> Result<()> {
        self.processes.into_iter().try_for_each(Load::end)
    }
}

/// Rather no figure than a machine without memory.
fn check_room(sockets: usize) -> Result<()> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = process::field(&meminfo, "MemAvailable").unwrap_or(0) as usize * 1024;
    let needed = sockets * BYTES_PER_SOCKET;
    let n = grouped(sockets as f64);
    ensure!(needed < available, "{n} more sockets may take {} MB, and {} MB are available", needed >> 20, available >> 20);
    let files = fs::read_to_string("/proc/sys/fs/file-nr").context("cannot read /proc/sys/fs/file-nr")?;
    let files: Vec<usize> = files.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    if let [open, _, max] = files[..] {
        ensure!(open + sockets < max, "{n} more sockets are more files than the kernel allows (fs.file-max {max})");
    }
    Ok(())
}
