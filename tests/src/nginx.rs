//! A real nginx with a configuration of its own, and its error log, read by the tracer's own parser.

use std::{
    collections::HashSet,
    fs,
    net::IpAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
pub use rsttrace::applog::Side;
use rsttrace::applog::{Fault, LogFormat, LogLine, NginxError, Parsed, Remote, Stamp};

use crate::wait_until;

/// A running nginx: a master and its workers, files and logs in a directory of its own, no service.
pub struct Nginx {
    root: PathBuf,
    child: Child,
}

impl Nginx {
    /// A new directory for nginx's files; the paths of a configuration are relative to it.
    pub fn directory() -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rsttrace-nginx-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        for directory in ["", "files", "temp"] {
            fs::create_dir_all(root.join(directory)).expect("a temporary directory");
        }
        root
    }

    /// Starts nginx in the network namespace of the calling thread, with `http` as the contents of
    /// its `http` block, and waits until all workers run.
    pub fn start(root: PathBuf, workers: usize, http: &str) -> Self {
        let config = format!(
            "daemon off;\nmaster_process on;\nworker_processes {workers};\nuser root;\n\
             pid nginx.pid;\nlock_file nginx.lock;\nerror_log error.log info;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\naccess_log off;\nclient_body_temp_path temp/body;\nproxy_temp_path temp/proxy;\n\
             fastcgi_temp_path temp/fastcgi;\nuwsgi_temp_path temp/uwsgi;\nscgi_temp_path temp/scgi;\n\
             {http}\n}}\n"
        );
        fs::write(root.join("nginx.conf"), config).expect("nginx.conf");
        let mut prefix = root.clone().into_os_string();
        prefix.push("/");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(prefix).arg("-c").arg(root.join("nginx.conf"));
        command.arg("-e").arg(root.join("error.log")).env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().expect("nginx");
        let nginx = Self { root, child };
        wait_until("nginx has its workers", || nginx.workers().len() == workers);
        nginx
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn master(&self) -> u32 {
        self.child.id()
    }

    /// Processes that serve now, by their title: a child that is about to become one has none yet.
    pub fn workers(&self) -> Vec<u32> {
        let master = self.master();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"));
        let children = children.unwrap_or_default();
        let serves = |pid: &u32| {
            let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            title.starts_with("nginx: worker process") && !title.contains("shutting down")
        };
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(serves).collect()
    }

    /// Sends a signal to the master.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: no memory involved; the child is not reaped while `self` lives.
        unsafe { libc::kill(self.master() as libc::pid_t, signal) };
    }

    /// Waits until no worker holds a connection any more. A minute: behind the workers' back there
    /// may be hundreds of megabytes of temporary files.
    pub fn wait_idle(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.is_idle() {
            assert!(Instant::now() < end, "nginx still holds connections after a minute");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether no worker holds a connection any more, not even one whose reset it has yet to see.
    pub fn is_idle(&self) -> bool {
        self.workers().iter().all(|worker| {
            let ours = |name: &str, column: usize, is: &dyn Fn(&[&str]) -> bool| -> HashSet<u64> {
                let table = fs::read_to_string(format!("/proc/{worker}/net/{name}")).unwrap_or_default();
                let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
                rows.filter(|row| is(row)).filter_map(|row| row.get(column).and_then(|inode| inode.parse().ok())).collect()
            };
            let mut known = ours("unix", 6, &|_| true);
            known.extend(ours("tcp", 9, &|row| row.get(3) == Some(&"0A")));
            let files = fs::read_dir(format!("/proc/{worker}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).all(|target| {
                let target = target.to_string_lossy().into_owned();
                let inode = target.strip_prefix("socket:[").and_then(|n| n.strip_suffix(']')?.parse().ok());
                inode.is_none_or(|inode| known.contains(&inode))
            })
        })
    }

    /// The error log so far.
    pub fn error_log(&self) -> Vec<ErrorLine> {
        let log = fs::read(self.root.join("error.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().filter_map(ErrorLine::parse).collect()
    }

    /// Stops nginx as its service would; its directory stays until drop.
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        self.child.wait().expect("nginx's end");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("nginx's files stay in {}", self.root.display());
        } else {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// One line of the error log that is about the end of a connection, as the tracer understands it.
#[derive(Clone, Debug)]
pub struct ErrorLine(LogLine);

impl ErrorLine {
    /// `None` for lines about anything else.
    pub fn parse(line: &str) -> Option<Self> {
        match NginxError.parse(line.as_bytes()) {
            Parsed::About(line) => Some(Self(*line)),
            Parsed::Other => None,
            Parsed::Malformed => panic!("no line of nginx's: {line:?}"),
        }
    }

    /// Seconds since 1970, from nginx's clock of one tick per turn of its event loop.
    pub fn second(&self) -> u64 {
        let Stamp::Civil(time) = self.0.time.stamp else { panic!("a time with a zone: {}", self.0.raw) };
        let time = time.to_zoned(TimeZone::UTC).expect("nginx runs in UTC");
        time.timestamp().as_second() as u64
    }

    pub fn pid(&self) -> u32 {
        self.0.process.expect("every line has a process")
    }

    pub fn errno(&self) -> Option<i32> {
        match self.0.fault {
            Fault::Error { errno, .. } => Some(errno.0),
            _ => None,
        }
    }

    /// System calls that nginx reports in these words.
    pub fn calls(&self) -> &'static [&'static str] {
        match self.0.fault {
            Fault::Error { calls, .. } => calls,
            _ => &[],
        }
    }

    pub fn side(&self) -> Side {
        self.0.side.unwrap_or_else(|| panic!("no side: {}", self.0.raw))
    }

    /// The address of the other end on that side.
    pub fn remote(&self) -> IpAddr {
        let remote = match self.side() {
            Side::Client => &self.0.client,
            Side::Upstream => &self.0.upstream,
        };
        let Some(Remote::Tcp { addr, .. }) = remote else { panic!("no address: {}", self.0.raw) };
        *addr
    }

    pub fn raw(&self) -> &str {
        &self.0.raw
    }
}
