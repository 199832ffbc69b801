//! Network namespaces for a test's life.

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// A network namespace with its loopback up, deleted on drop.
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes one with a name of its own.
    #[expect(clippy::new_without_default, reason = "it changes the machine")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rsttrace-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let netns = Self { name };
        netns.command("ip", &["link", "set", "lo", "up"]);
        netns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `netns` is in the records of its sockets.
    pub fn inode(&self) -> u64 {
        fs::metadata(self.path()).expect("namespace's file").ino()
    }

    /// Puts a process that is yet to be spawned into this namespace.
    pub fn enter(&self, command: &mut Command) {
        let file = File::open(self.path()).expect("namespace's file");
        // SAFETY: setns is async-signal-safe.
        unsafe {
            command.pre_exec(move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }

    /// Runs something on a thread of its own that is in this namespace.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("namespace's file");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                // SAFETY: a valid descriptor; only this thread changes its namespace.
                let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command in this namespace; panics if it fails. Returns its output.
    pub fn command(&self, program: &str, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(args);
        run("ip", &all)
    }

    /// Adds an nftables rule to what arrives in this namespace, such as `tcp dport 80 drop`.
    pub fn on_input(&self, rule: &str) {
        self.command("nft", &["add", "table", "inet", "t"]);
        self.command("nft", &["add", "chain", "inet", "t", "in", "{ type filter hook input priority 0; }"]);
        let words: Vec<_> = ["add", "rule", "inet", "t", "in"].into_iter().chain(rule.split_whitespace()).collect();
        self.command("nft", &words);
    }

    /// Sets a sysctl of this namespace, named by its path under `/proc/sys/net`.
    pub fn sysctl(&self, path: &str, value: &str) {
        // `ip netns exec` mounts /sys anew, and /proc/sys/net is that of whoever opens it.
        self.run_in(|| fs::write(format!("/proc/sys/net/{path}"), value)).expect(path);
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// The number of the namespace that tests run in.
pub fn current_netns() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").expect("/proc").ino()
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(output.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
