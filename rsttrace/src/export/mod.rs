//! What others fetch from a running trace, or are sent by it. The tracer itself is confined and talks to nobody:
//! a child that was forked before anything else, without any privilege, does it. It is fed with lines of JSON over a
//! pipe ([`Tap`]), ends with the tracer, and if it is slow or gone, tracing goes on.

pub mod metrics;
pub mod otlp;
mod tap;

use std::{
    io,
    net::TcpListener,
    os::fd::{AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::{PidfdFlags, pidfd_open},
};
use tokio::{
    net::unix::pipe,
    task::{LocalSet, spawn_local},
};

pub use self::tap::Tap;
use self::{metrics::Metrics, otlp::Otlp};
use crate::{
    applog::{Line, LineSplitter},
    input::{
        MAX_RECORD,
        json::{self, Saved},
    },
    sandbox, status,
};

/// As much as an unprivileged process may ask for (fs.pipe-max-size): what the child has not read yet.
const PIPE_SIZE: usize = 1 << 20;
/// What is read at once, between two looks at the network.
const CHUNK: usize = 64 << 10;
/// Begins a line that is no record: how many records the pipe had no room for, all in all.
const DROPPED: &str = "dropped ";

/// What is to be exported, and to whom.
#[derive(Debug, Default)]
pub struct Request {
    /// Metrics are fetched here.
    pub metrics: Option<TcpListener>,
    /// Records and metrics are sent there.
    pub otlp: Option<otlp::Settings>,
    /// Files and directories that the child reads.
    pub readable: Vec<&'static str>,
    /// Ports that it connects to.
    pub ports: Vec<u16>,
    /// Without it, the child keeps all privileges.
    pub confined: bool,
}

impl Request {
    /// Nothing is to be exported.
    pub fn is_empty(&self) -> bool {
        self.metrics.is_none() && self.otlp.is_none()
    }
}

/// Forks the child. Called while the process has one thread and no runtime.
///
/// # Errors
/// When there can be no pipe or no process.
pub fn start(request: Request) -> io::Result<Tap> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Where it stays smaller, it is full sooner.
    let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
    fcntl_setfl(&write, fcntl_getfl(&write)? | OFlags::NONBLOCK)?;
    let listener = request.metrics.iter().map(|listener| listener.as_raw_fd());
    let address = request.metrics.as_ref().map(TcpListener::local_addr).transpose()?;
    // It has warnings to tell.
    let kept: Vec<_> = [read.as_raw_fd(), io::stderr().as_raw_fd()].into_iter().chain(listener).collect();
    let child = sandbox::servant(c"rsttrace-export", &kept, || {
        if let Err(error) = live(read, request) {
            status::warn_if_room(&format!("cannot export: {error}"));
        }
    })?;
    Ok(Tap::new(write, child, pidfd_open(child, PidfdFlags::empty())?, address))
}

/// The child's whole life.
fn live(pipe: OwnedFd, request: Request) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    LocalSet::new().block_on(&runtime, async {
        let pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let exporter = Exporter { metrics: Metrics::default(), otlp: request.otlp.map(Otlp::new) };
        request.metrics.map(|listener| exporter.metrics.serve(listener)).transpose()?;
        if request.confined {
            sandbox::confine_exporter(&request.readable, &request.ports);
        }
        exporter.run(pipe).await
    })
}

/// All that is fed.
struct Exporter {
    metrics: Metrics,
    otlp: Option<Otlp>,
}

impl Exporter {
    /// Until the trace is over.
    async fn run(self, pipe: pipe::Receiver) -> io::Result<()> {
        let sending = self.otlp.clone().map(|otlp| {
            let metrics = self.metrics.clone();
            spawn_local(async move { otlp.run(&metrics).await })
        });
        let mut lines = LineSplitter::with_limit(MAX_RECORD);
        let mut chunk = vec![0; CHUNK];
        loop {
            match read(&pipe, &mut chunk).await? {
                0 => break,
                n => lines.push(&chunk[..n], |line| self.take_line(line)),
            }
        }
        if let (Some(otlp), Some(sending)) = (&self.otlp, sending) {
            otlp.close();
            sending.await.map_err(io::Error::other)?;
            if let Some(words) = otlp.farewell() {
                status::warn_if_room(&words);
            }
        }
        Ok(())
    }

    fn take_line(&self, line: Line<'_>) {
        let Line::Whole { bytes, .. } = line else { return };
        if let Some(number) = bytes.strip_prefix(DROPPED.as_bytes()) {
            self.dropped(std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).unwrap_or(0));
        } else if let Ok(saved) = json::read(bytes) {
            self.take(bytes, &saved);
        }
    }

    /// A record, or what begins or ends a run.
    fn take(&self, line: &[u8], saved: &Saved) {
        self.metrics.take(saved);
        if let Some(otlp) = &self.otlp {
            otlp.take(line, saved);
        }
    }

    /// So many records have not come, all in all.
    fn dropped(&self, total: u64) {
        self.metrics.dropped(total);
    }
}

async fn read(pipe: &pipe::Receiver, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        pipe.readable().await?;
        match pipe.try_read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}
