//! Debian's packages, downloaded and unpacked but not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::host;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Every file below a directory whose name is wanted.
pub fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            found.append(&mut find(&path, wanted)?);
        } else if path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Unpacks all packages' files of a directory.
pub fn unpack(work: &Path, into: &Path) -> Result<()> {
    for package in find(work, &|name| name.ends_with(".deb"))? {
        let mut dpkg = Command::new("dpkg-deb");
        host::run(dpkg.arg("-x").arg(&package).arg(into), &format!("unpacking {}", package.display()))?;
    }
    Ok(())
}

/// The machine's own apt, or one with its mirror and another suite, which leaves the machine's alone.
pub struct Apt {
    options: Vec<String>,
    work: PathBuf,
}

impl Apt {
    pub fn own(work: &Path) -> Self {
        // apt's user cannot reach this directory.
        Self { options: vec!["-oAPT::Sandbox::User=root".to_owned()], work: work.to_owned() }
    }

    pub fn of_suite(suite: &str, work: &Path) -> Result<Self> {
        let Some(mirror) = debian_mirror() else {
            bail!("apt's sources on this machine name no mirror of Debian");
        };
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is not there: install debian-archive-keyring");
        }
        let state = work.join("apt");
        let list = state.join("sources.list");
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(dir)).with_context(|| format!("cannot create {}", state.display()))?;
        }
        let line = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(&list, line).with_context(|| format!("cannot write {}", list.display()))?;
        let options = [
            format!("-oDir::Etc::sourcelist={}", list.display()),
            "-oDir::Etc::sourceparts=-".to_owned(),
            format!("-oDir::State::lists={}/lists", state.display()),
            format!("-oDir::Cache={}/cache", state.display()),
        ];
        let mut apt = Self::own(work);
        apt.options.extend(options);
        host::run(apt.command("apt-get").args(["--quiet=2", "update"]), &format!("reading {suite}'s package lists"))?;
        Ok(apt)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).stdin(Stdio::null()).env("LC_ALL", "C");
        command
    }

    /// Leaves the packages' files in the work directory.
    pub fn download(&self, packages: &[String]) -> Result<()> {
        let mut get = self.command("apt-get");
        get.current_dir(&self.work).arg("--quiet=2").arg("download").args(packages);
        host::run(&mut get, &format!("downloading {}", packages.join(" ")))
    }

    /// What apt would install for a package here, itself included; nothing where it does not know it.
    pub fn wanted_for(&self, package: &str) -> Vec<String> {
        let mut command = self.command("apt-get");
        command.args(["install", "--simulate", "--no-install-recommends", package]).stderr(Stdio::null());
        let text = command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next().map(str::to_owned)).collect()
    }

    /// What packages depend on; those that this apt does not know depend on nothing.
    pub fn dependencies(&self, packages: &[&str]) -> Vec<String> {
        let mut command = self.command("apt-cache");
        command.args(["depends", "--important"]).args(packages).stderr(Stdio::null());
        let text = command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().filter_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned())).collect()
    }
}

/// Where this machine gets Debian itself from.
fn debian_mirror() -> Option<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]);
    let output = targets.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    mirror_in(&String::from_utf8_lossy(&output.stdout))
}

/// Others have suites of the same names; Debian's archive is in a directory of its own name.
fn mirror_in(targets: &str) -> Option<String> {
    let releases = ["bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable"];
    targets.lines().find_map(|line| {
        let [uri, release, component] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        // A list of mirrors, as cloud images have it: its first.
        let listed = uri.strip_prefix("mirror+file:").and_then(|file| fs::read_to_string(file).ok());
        let uri = listed.as_deref().map_or(uri, |list| list.split_whitespace().next().unwrap_or_default());
        let debian = uri.split('/').any(|part| part == "debian") && releases.contains(&release) && component == "main";
        debian.then(|| uri.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_has_debian_itself() {
        let targets = "https://apt.example.com/ bookworm main\n\
                       https://example.com/linux/debian/ bookworm stable\n\
                       http://mirror.example/debian-security/ bookworm-security main\n\
                       http://mirror.example/debian/ bookworm-updates main\n\
                       http://mirror.example/debian/ bookworm main\n";
        assert_eq!(mirror_in(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(mirror_in("http://mirror.example/ubuntu/ noble main\n"), None);
    }
}
