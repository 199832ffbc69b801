//! Whether the Debian package installs, runs and goes away without a trace: in a copy of this machine's file system,
//! an overlay in a mount namespace of its own, whose upper layer then shows what was left.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{VERSION, documents, output};
use crate::{host, sums::Sums};

/// Where installing anything leaves something, whatever it was.
const OF_DPKG: [&str; 3] = ["var/lib/dpkg", "var/log", "var/cache"];
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/rsttrace.service";

pub fn run(package: &Path) -> Result<Sums> {
    let mut sums = Sums::default();
    if !host::is_root() {
        sums.skipped.push("the package: installing it needs root".to_owned());
        return Ok(sums);
    }
    println!("test: the package: {}", package.display());
    // The namespace is this thread's, and gone with it.
    let checked = thread::scope(|scope| {
        let inside = scope.spawn(|| Copy::new(package).and_then(|copy| copy.check(&mut sums)));
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    checked.map(|()| sums)
}

/// A copy of the machine's file system: what is written there is kept in memory.
struct Copy {
    root: PathBuf,
    upper: PathBuf,
    /// The package as it is called there.
    package: PathBuf,
}

impl Copy {
    /// Moves the calling thread into a mount namespace of its own.
    fn new(package: &Path) -> Result<Self> {
        // SAFETY: it concerns this thread alone, which was started for it.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot make a mount namespace");
        }
        let base = host::target_dir()?.join("dist.root");
        let at = |name: &str| base.join(name);
        fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
        mount(&["--make-rprivate", "/"], Path::new(""))?;
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"], &base)?;
        for name in ["upper", "work", "root"] {
            fs::create_dir(at(name)).with_context(|| format!("cannot make {}", at(name).display()))?;
        }
        let layers = format!("lowerdir=/,upperdir={},workdir={}", at("upper").display(), at("work").display());
        mount(&["-t", "overlay", "-o", &layers, "overlay"], &at("root"))?;
        for system in ["/proc", "/sys", "/dev"] {
            mount(&["--rbind", system], &at("root").join(&system[1..]))?;
        }
        let directory = package.parent().unwrap_or(package).to_string_lossy();
        mount(&["--bind", &directory], &at("root/mnt"))?;
        Ok(Self { root: at("root"), upper: at("upper"), package: Path::new("/mnt").join(package.file_name().unwrap_or_default()) })
    }

    fn check(&self, sums: &mut Sums) -> Result<()> {
        let mut note = |what: &str, outcome: Result<()>| {
            let problem = outcome.err().map(|error| format!("{error:#}"));
            println!("test: the package {what}: {}", problem.as_deref().unwrap_or("ok"));
            sums.note(&format!("the package {what}"), problem);
        };
        let installed = output(self.command("dpkg", &["--install"]).arg(&self.package)).map(|_| ());
        let there = installed.is_ok();
        note("is installed", installed);
        if there {
            note("holds what it should, unchanged", self.verify());
            note("enables no service", self.enables_nothing());
            note("runs", self.runs());
            note("traces", self.traces());
            note("knows this machine", self.knows_this_machine());
        }
        // As an administrator may have: it goes away as well.
        let enabled =
            host::find("systemctl").map_or(Ok(()), |_| output(&mut self.command("systemctl", &["enable", "rsttrace"])).map(|_| ()));
        note("is enabled, if one wants that", enabled);
        note("is purged", output(&mut self.command("dpkg", &["--purge", "rsttrace"])).map(|_| ()));
        note("leaves nothing behind", self.nothing_left());
        Ok(())
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut chroot = Command::new(host::find("chroot").unwrap_or_else(|| "chroot".into()));
        chroot.arg(&self.root).arg(program).args(args).stdin(Stdio::null());
        chroot.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        chroot
    }

    fn rsttrace(&self, args: &[&str]) -> Command {
        self.command("/usr/bin/rsttrace", args)
    }

    fn verify(&self) -> Result<()> {
        let differences = output(&mut self.command("dpkg", &["--verify", "rsttrace"]))?;
        if !differences.is_empty() {
            bail!("dpkg --verify: {differences}");
        }
        let list = output(&mut self.command("dpkg-query", &["--listfiles", "rsttrace"]))?;
        let wanted = super::FILES.iter().map(|(_, file)| *file).chain(["bin/rsttrace", "share/doc/rsttrace/copyright"]);
        let missing: Vec<&str> = wanted.filter(|wanted| !list.lines().any(|line| line.strip_prefix("/usr/") == Some(wanted))).collect();
        if !missing.is_empty() {
            bail!("not in the package: {}", missing.join(", "));
        }
        let of_documents = Path::new("/usr").join(documents::DIRECTORY);
        let documents: Vec<PathBuf> =
            list.lines().filter_map(|line| Some(Path::new(line).strip_prefix(&of_documents).ok()?.to_owned())).collect();
        let tasks = ["explain", "doctor", "correlate", "diff", "report", "replay", "top"];
        for task in tasks.map(Some).into_iter().chain([None]) {
            let help = output(self.rsttrace(&[]).args(task).arg("--help"))?;
            let missing = documents::missing(&help, &documents);
            if !missing.is_empty() {
                bail!("named by {} --help and not in the package: {}", task.unwrap_or("rsttrace"), missing.join(", "));
            }
        }
        Ok(())
    }

    fn enables_nothing(&self) -> Result<()> {
        if self.root.join(ENABLED).is_symlink() {
            bail!("/{ENABLED} is there");
        }
        Ok(())
    }

    fn runs(&self) -> Result<()> {
        let version = output(&mut self.rsttrace(&["--version"]))?;
        let page = output(&mut self.rsttrace(&["explain", "linger-zero"]))?;
        if version != format!("rsttrace {VERSION}\n") || !page.starts_with("# linger-zero\n") {
            bail!("it said {version:?} and {:?}", page.lines().next());
        }
        Ok(())
    }

    /// For a second.
    fn traces(&self) -> Result<()> {
        let text = output(&mut self.rsttrace(&["--json", "--fin", "--duration", "1s"]))?;
        let kind = |line: Option<&str>| {
            let record: Option<Value> = line.and_then(|line| serde_json::from_str(line).ok());
            record.map(|record| record["record"].clone()).unwrap_or_default()
        };
        if kind(text.lines().next()) != "start" || kind(text.lines().last()) != "summary" {
            bail!("it printed {text:?}");
        }
        Ok(())
    }

    /// It makes connections end in many ways, and compares what it says of them.
    fn knows_this_machine(&self) -> Result<()> {
        let output = self.rsttrace(&["doctor"]).output().context("cannot start it")?;
        // 1: some fields are not to be had here, and it says which.
        if !matches!(output.status.code(), Some(0 | 1)) {
            bail!(
                "rsttrace doctor: {}: {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    fn nothing_left(&self) -> Result<()> {
        let mut left = Vec::new();
        find_left(&self.upper, Path::new(""), &mut left)?;
        if !left.is_empty() {
            bail!("{}", left.join(", "));
        }
        Ok(())
    }
}

/// What the upper layer has that the machine has not; a device without a number stands for what was removed.
fn find_left(upper: &Path, below: &Path, left: &mut Vec<String>) -> Result<()> {
    let directory = upper.join(below);
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?.flatten() {
        let file = below.join(entry.file_name());
        let of_machine = Path::new("/").join(&file);
        let kind = entry.metadata().with_context(|| format!("cannot look at {}", entry.path().display()))?;
        let removed = kind.file_type().is_char_device() && kind.rdev() == 0;
        if removed || OF_DPKG.iter().any(|dpkgs| file == Path::new(dpkgs)) {
            continue;
        }
        if kind.is_dir() && of_machine.is_dir() {
            find_left(upper, &file, left)?;
        } else {
            left.push(of_machine.display().to_string());
        }
    }
    Ok(())
}

fn mount(args: &[&str], target: &Path) -> Result<()> {
    let mut mount = Command::new("mount");
    mount.args(args).args((!target.as_os_str().is_empty()).then_some(target));
    output(&mut mount).map(|_| ())
}
