//! What people use instead.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::process::{Process, Stream};
use crate::host;

/// Another program that shows how connections end.
pub struct Peer {
    pub name: &'static str,
    /// Debian's package.
    pub package: &'static str,
    args: &'static [&'static str],
    ready: Ready,
    /// Attaches to one process rather than to the host.
    pub of_process: bool,
}

/// How to see that it works.
enum Ready {
    /// It says so on stderr.
    Says(&'static str),
    /// It holds BPF programs, and opens nothing more.
    HoldsPrograms,
}

const TRACEPOINTS: &str = r#"
tracepoint:tcp:tcp_receive_reset { printf("%s %d: RST received\n", comm, pid) }
tracepoint:tcp:tcp_send_reset { printf("%s %d: RST sent\n", comm, pid) }
tracepoint:sock:inet_sock_set_state /args->protocol == 6/ { printf("%s %d: %d -> %d\n", comm, pid, args->oldstate, args->newstate) }"#;

pub const PEERS: [Peer; 4] = [
    Peer {
        name: "tcpdump",
        package: "tcpdump",
        args: &["-i", "lo", "-w", "/dev/null", "tcp[tcpflags] & (tcp-rst|tcp-fin) != 0"],
        ready: Ready::Says("listening on"),
        of_process: false,
    },
    Peer { name: "bpftrace", package: "bpftrace", args: &["-e", TRACEPOINTS], ready: Ready::HoldsPrograms, of_process: false },
    Peer { name: "tcpstates", package: "libbpf-tools", args: &[], ready: Ready::HoldsPrograms, of_process: false },
    Peer {
        name: "strace",
        package: "strace",
        args: &["-f", "-e", "trace=network,read,write,readv,writev,close", "-o", "/dev/null", "-p"],
        ready: Ready::Says("attached"),
        of_process: true,
    },
];

/// Where tools look for tracepoints.
const TRACEFS: &str = "/sys/kernel/tracing";

/// How long a peer may take, and how long it must be at rest to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
const AT_REST: Duration = Duration::from_millis(100);

impl Peer {
    pub fn is_installed(&self) -> bool {
        host::find(self.name).is_some()
    }

    /// Starts it beside (or on) a process and returns when it is ready.
    pub fn start(&self, pid: u32) -> Result<Process> {
        let Some(program) = host::find(self.name) else { bail!("{} is not installed (apt-get install {})", self.name, self.package) };
        let mut command = in_sight_of_tracepoints(&program);
        command.args(self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if self.of_process {
            command.arg(pid.to_string());
        }
        match self.ready {
            Ready::Says(text) => {
                let process = Process::start(&mut command, Stream::Stderr)?;
                process.wait_for(text)?;
                Ok(process)
            }
            Ready::HoldsPrograms => {
                let process = Process::start(&mut command, Stream::Stdout)?;
                wait_until_at_rest(process.pid(), self.name)?;
                Ok(process)
            }
        }
    }
}

/// Where tracefs is not mounted, it is for this program alone.
fn in_sight_of_tracepoints(program: &Path) -> Command {
    if Path::new(TRACEFS).join("events").exists() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    let mount_and_exec = format!("mount -t tracefs tracefs {TRACEFS} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &mount_and_exec, "sh"]).arg(program);
    command
}

fn wait_until_at_rest(pid: u32, name: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut before = (Vec::new(), Instant::now());
    while Instant::now() < end {
        let now = descriptors(pid);
        if now != before.0 {
            before = (now, Instant::now());
        } else if before.1.elapsed() >= AT_REST && before.0.iter().any(|target| target.contains("bpf-prog")) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("{name} attached nothing within {} s", PATIENCE.as_secs())
}

/// What a process has open.
fn descriptors(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}
