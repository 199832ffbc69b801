//! A real HAProxy with a configuration of its own, and its log, read by the tracer's own parser.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use rsttrace::applog::{HaProxy as Format, LogFormat, Parsed};

use crate::wait_until;

/// A running HAProxy: one process with one thread, its files in a directory of its own, no service.
pub struct HaProxy {
    root: PathBuf,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl HaProxy {
    /// Starts it in the network namespace of the calling thread, with `config` behind the sections
    /// `global` and `defaults`, and waits until it listens on this port.
    pub fn start(config: &str, port: u16) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rsttrace-haproxy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).expect("a temporary directory");
        let log = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket for the log");
        let address = log.local_addr().expect("an address");
        let lines = Arc::default();
        thread::spawn({
            let lines = Arc::clone(&lines);
            move || read(&log, &lines)
        });
        let config = format!(
            "global\nnbthread 1\nlog {address} len 4096 local0\n\
             defaults\nlog global\nretries 0\nhttp-reuse never\noption abortonclose\n\
             timeout connect 10s\ntimeout client 10s\ntimeout server 10s\n{config}"
        );
        fs::write(root.join("haproxy.cfg"), config).expect("haproxy.cfg");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-q", "-f"]).arg(root.join("haproxy.cfg")).env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().expect("haproxy");
        let haproxy = Self { root, child, lines };
        let listens = format!("0100007F:{port:04X} 00000000:0000 0A");
        wait_until("HAProxy listens", || fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|table| table.contains(&listens)));
        haproxy
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines so far, taken apart, by their clients.
    pub fn sessions(&self) -> BTreeMap<SocketAddr, (String, Parsed)> {
        let client = |line: &str| line.split(' ').find_map(|word| word.parse().ok());
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter_map(|line| Some((client(line)?, (line.clone(), Format.parse(line.as_bytes()))))).collect()
    }

    /// Stops it at once.
    pub fn stop(&mut self) {
        // SAFETY: no memory involved; the child has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        self.child.wait().expect("HAProxy's end");
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Takes lines as they come, for as long as the test runs: a Unix socket would hold ten, and HAProxy drops
/// what finds no room.
fn read(log: &UdpSocket, lines: &Mutex<Vec<String>>) {
    let mut line = [0; 8192];
    while let Ok(length) = log.recv(&mut line) {
        let line = String::from_utf8_lossy(&line[..length]).trim_end().to_owned();
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
