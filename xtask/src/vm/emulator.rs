//! QEMU: the machine's own, or Debian's, unpacked and not installed, because it may conflict with
//! what is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages::{Apt, unpack};
use crate::host;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Some packages still have theirs outside of /usr.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const MODULES: &str = "usr/lib/x86_64-linux-gnu/qemu";
/// Of firmware and boot code.
const DATA: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// Where it is.
pub enum Emulator {
    Installed(PathBuf),
    Unpacked(PathBuf),
}

impl Emulator {
    /// Finds it, or fetches it into the target directory.
    pub fn find() -> Result<Self> {
        if let Some(program) = host::find(PROGRAM) {
            return Ok(Self::Installed(program));
        }
        let dir = host::target_dir()?.join("vm/qemu");
        if !dir.is_dir() {
            fetch(&dir).with_context(|| format!("{PROGRAM} is not installed, and cannot be fetched; install {PACKAGE}"))?;
        }
        Ok(Self::Unpacked(dir))
    }

    pub fn command(&self) -> Command {
        match self {
            Self::Installed(program) => Command::new(program),
            Self::Unpacked(dir) => {
                let mut qemu = Command::new(dir.join("usr/bin").join(PROGRAM));
                let libraries = LIBRARIES.map(|libraries| dir.join(libraries).display().to_string()).join(":");
                qemu.env("LD_LIBRARY_PATH", libraries).env("QEMU_MODULE_DIR", dir.join(MODULES));
                DATA.iter().for_each(|data| {
                    qemu.arg("-L").arg(dir.join(data));
                });
                qemu
            }
        }
    }
}

fn fetch(dir: &Path) -> Result<()> {
    eprintln!("vm: fetching Debian's {PACKAGE} (apt), which is unpacked below {} and not installed", dir.display());
    let work = dir.with_added_extension("packages");
    let tree = dir.with_added_extension("tree");
    for dir in [&work, &tree] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let apt = Apt::own(&work);
    let mut packages = apt.wanted_for(PACKAGE);
    if packages.is_empty() || apt.download(&packages).is_err() {
        // The lists may be missing, or older than the mirror.
        host::run(apt.command("apt-get").args(["--quiet=2", "update"]), "reading the package lists")?;
        packages = apt.wanted_for(PACKAGE);
        if packages.is_empty() {
            bail!("apt has no package {PACKAGE}");
        }
        apt.download(&packages)?;
    }
    unpack(&work, &tree)?;
    fs::rename(&tree, dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}
