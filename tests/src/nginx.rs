//! A real nginx with a configuration of its own, and its error log taken apart.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

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

/// One line of the error log that belongs to a connection.
#[derive(Clone, Debug)]
pub struct ErrorLine {
    /// Seconds since 1970, from nginx's clock of one tick per turn of its event loop.
    pub second: u64,
    pub pid: u32,
    /// What failed, up to the error.
    pub message: String,
    pub errno: Option<i32>,
    /// What nginx was doing: "reading upstream".
    pub action: String,
    pub client: Option<IpAddr>,
    pub upstream: Option<SocketAddr>,
    pub raw: String,
}

/// Which connection of a proxy a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Client,
    Upstream,
}

impl ErrorLine {
    /// `None` for lines without a connection (`*N`): the master's, starts and stops.
    pub fn parse(line: &str) -> Option<Self> {
        // 2026/11/22 10:01:02 [info] 12#12: *3 text (104: Connection reset by peer) while ..., client: ...
        let (when, rest) = line.split_once(" [")?;
        let (_, rest) = rest.split_once("] ")?;
        let (pid, rest) = rest.split_once('#')?;
        let (_, rest) = rest.split_once(": *")?;
        let (_, text) = rest.split_once(' ')?;
        let (head, fields) = match text.find(", client: ") {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let (message, errno, after) = match error_in(head) {
            Some((at, errno, end)) => (&head[..at], Some(errno), &head[end..]),
            None => match head.find(" while ") {
                Some(at) => (&head[..at], None, &head[at..]),
                None => (head, None, ""),
            },
        };
        let field = |name: &str| {
            let start = fields.find(&format!(", {name}: "))? + name.len() + 4;
            let value = &fields[start..];
            Some(&value[..value.find(", ").unwrap_or(value.len())])
        };
        let upstream = field("upstream").and_then(|url| {
            let url = url.trim_matches('"');
            let address = url.split_once("://").map_or(url, |(_, rest)| rest);
            address.split('/').next()?.parse().ok()
        });
        Some(Self {
            second: seconds(when)?,
            pid: pid.parse().ok()?,
            message: message.trim().to_owned(),
            errno,
            action: after.trim().trim_start_matches("while ").to_owned(),
            // The keep-alive line has the address inside its sentence.
            client: field("client").or_else(|| head.split_once("client ")?.1.split(' ').next()).and_then(|client| client.parse().ok()),
            upstream,
            raw: line.to_owned(),
        })
    }

    /// The connection that the failed call was made on. nginx logs both addresses as soon as there
    /// is an upstream, and its pipe reads one side and writes the other under one action, so the
    /// kind of the call decides: what a proxy reads while it relays a response is the upstream's,
    /// what it writes is the client's.
    pub fn side(&self) -> Side {
        let to_upstream = matches!(self.action.as_str(), "connecting to upstream" | "sending request to upstream");
        let is_read = self.message.starts_with("recv() failed") || self.message.starts_with("readv() failed");
        let upstream = match &*self.message {
            message if message.contains("client") => false,
            message if message.starts_with("connect() failed") => true,
            _ if self.upstream.is_none() => false,
            _ if is_read => self.action != "reading client request body",
            _ => to_upstream,
        };
        if upstream { Side::Upstream } else { Side::Client }
    }

    /// System calls that nginx reports in these words.
    pub fn syscalls(&self) -> &'static [&'static str] {
        const WORDS: &[(&str, &[&str])] = &[
            ("recv() failed", &["recvfrom"]),
            ("readv() failed", &["readv"]),
            ("send() failed", &["sendto"]),
            ("writev() failed", &["writev"]),
            ("sendfile() failed", &["sendfile"]),
            // ngx_http_upstream_test_connect() asks for SO_ERROR; connect() itself only starts.
            ("connect() failed", &["getsockopt", "connect"]),
            ("SSL_read() failed", &["read"]),
            ("SSL_write() failed", &["write"]),
            ("SSL_shutdown() failed", &["write", "read"]),
            ("SSL_do_handshake() failed", &["read", "write"]),
            // ngx_ssl_handshake(), where OpenSSL's error queue is empty.
            ("peer closed connection in SSL handshake", &["read", "write"]),
            // ngx_http_test_reading() and ngx_http_upstream_check_broken_connection() do not read:
            // EPOLLRDHUP told them, and they take the errno by SO_ERROR.
            ("client prematurely closed connection", &["getsockopt"]),
            ("epoll_wait() reported that client prematurely closed connection", &["getsockopt"]),
            // ngx_http_keepalive_handler(): its recv() takes ECONNRESET for an end of file and leaves
            // the errno for this line; so does OpenSSL's read().
            ("client 127.", &["recvfrom", "read"]),
        ];
        WORDS.iter().find(|(words, _)| self.message.starts_with(words)).map_or(&[], |(_, calls)| calls)
    }
}

/// Finds "(104: ..." : where it begins, the number, where it ends.
fn error_in(text: &str) -> Option<(usize, i32, usize)> {
    text.match_indices('(').find_map(|(at, _)| {
        let inside = &text[at + 1..];
        let (number, rest) = inside.split_once(": ")?;
        let errno = number.parse().ok()?;
        let close = rest.find(')')?;
        Some((at, errno, at + 1 + number.len() + 2 + close + 1))
    })
}

/// "2026/11/22 10:01:02", UTC.
fn seconds(when: &str) -> Option<u64> {
    let numbers: Vec<i64> = when.split(['/', ' ', ':']).filter_map(|n| n.parse().ok()).collect();
    let [year, month, day, hour, minute, second] = numbers[..] else { return None };
    // Days from civil, with the year beginning in March.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_failed_on_which_side() {
        let line = ErrorLine::parse(
            "2026/11/22 10:01:02 [error] 12#12: *3 recv() failed (104: Connection reset by peer) \
             while reading response header from upstream, client: 127.10.0.1, server: , \
             request: \"GET /a/1 HTTP/1.1\", upstream: \"http://127.20.0.1:9000/a/1\", host: \"x\"",
        )
        .expect("a line");
        assert_eq!(line.second, 1_795_341_662);
        assert_eq!((line.pid, line.errno, line.side()), (12, Some(104), Side::Upstream));
        assert_eq!(line.upstream, "127.20.0.1:9000".parse().ok());
        assert_eq!(line.client, "127.10.0.1".parse().ok());
        assert_eq!(line.action, "reading response header from upstream");
        assert_eq!(line.syscalls(), ["recvfrom"]);
    }

    #[test]
    fn a_keep_alive_line_names_its_client_in_the_sentence() {
        let line = ErrorLine::parse(
            "2026/11/22 10:01:02 [info] 12#12: *3 client 127.10.0.1 closed keepalive connection \
             (104: Connection reset by peer)",
        )
        .expect("a line");
        assert_eq!((line.client, line.errno), ("127.10.0.1".parse().ok(), Some(104)));
        assert_eq!(line.side(), Side::Client);
    }
}
