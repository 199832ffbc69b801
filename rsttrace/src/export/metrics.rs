//! `--metrics`: sums of all records, for Prometheus to fetch.

use std::{io, net::TcpListener};

use crate::input::json::Saved;

/// What is served.
pub struct Metrics;

impl Metrics {
    /// Begins to answer.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self)
    }

    pub fn take(&mut self, _saved: &Saved) {}

    pub fn dropped(&mut self, _total: u64) {}
}
