//! Control groups for a test's life, named as systemd and container runtimes name them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A control group, and those above it that had to be made; removed on drop, when its processes have left or ended.
pub struct Cgroup {
    path: PathBuf,
    made: Vec<PathBuf>,
}

impl Cgroup {
    /// Hierarchies of this machine, with a word for each: cgroup v2, and systemd's own of v1.
    pub fn hierarchies() -> Vec<(&'static str, PathBuf)> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().filter_map(hierarchy).collect()
    }

    /// Makes one below the root of a hierarchy.
    #[track_caller]
    pub fn new(root: &Path, name: &str) -> Self {
        let path = root.join(name.trim_start_matches('/'));
        let mut above: Vec<_> = path.ancestors().take_while(|above| *above != root).map(Path::to_owned).collect();
        above.reverse();
        let made = above.into_iter().filter(|path| fs::create_dir(path).is_ok()).collect();
        assert!(path.is_dir(), "cannot make {}", path.display());
        Self { path, made }
    }

    /// Moves a process here.
    #[track_caller]
    pub fn take(&self, pid: libc::pid_t) {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, pid.to_string()).unwrap_or_else(|error| panic!("cannot write {pid} to {}: {error}", file.display()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = std::time::Instant::now() + crate::DEADLINE;
        for path in self.made.iter().rev() {
            // A process that has ended leaves its group a moment later. Another test's group may be below.
            let is_leaf = *path == self.path;
            while fs::remove_dir(path).is_err() && is_leaf && path.exists() && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
        }
    }
}

/// From a line of `/proc/self/mountinfo`.
fn hierarchy(line: &str) -> Option<(&'static str, PathBuf)> {
    let (mount, kind) = line.split_once(" - ")?;
    let path = PathBuf::from(mount.split(' ').nth(4)?);
    let mut kind = kind.split(' ');
    match (kind.next()?, kind.nth(1)?) {
        ("cgroup2", _) => Some(("cgroup v2", path)),
        ("cgroup", options) => options.split(',').any(|option| option == "name=systemd").then_some(("cgroup v1", path)),
        _ => None,
    }
}
