//! Debian's kernels, unpacked and not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::host;

/// What `cargo xtask vm` knows by name.
pub const NAMES: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];
const NEWEST: &str = "newest";
/// Which suite has it, where the machine's own apt does not.
const SUITES: [(&str, &str); 4] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), (NEWEST, "sid")];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What the guest's `ss` needs, where it is not built in; 5.10 and 6.1 do not pack theirs.
const MODULES: [&str; 2] = ["inet_diag.ko", "tcp_diag.ko"];
const WAY_OUT: &str = "give a kernel image by --kernel FILE instead";

/// An image to boot, and the modules that the guest loads.
pub struct Kernel {
    pub name: String,
    pub image: PathBuf,
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    pub fn of_file(image: &Path, modules: Option<&Path>) -> Result<Self> {
        let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let modules = modules.map(|dir| find(dir, &is_needed_module)).transpose()?.unwrap_or_default();
        Ok(Self { name, image: image.to_owned(), modules })
    }

    /// The one that was fetched before, unless a fresh one is wanted.
    pub fn fetch(name: &str, fresh: bool) -> Result<Self> {
        let dir = host::target_dir()?.join("vm/kernels").join(name);
        if fresh || !dir.is_dir() {
            fetch(name, &dir).with_context(|| format!("cannot fetch the kernel {name}; {WAY_OUT}"))?;
        }
        let Some(image) = find(&dir, &is_image)?.pop() else { bail!("{} holds no kernel image; remove it and start again", dir.display()) };
        Ok(Self { name: name.to_owned(), image, modules: find(&dir, &is_needed_module)? })
    }
}

fn is_image(name: &str) -> bool {
    name.starts_with("vmlinuz")
}

fn is_needed_module(name: &str) -> bool {
    MODULES.iter().any(|module| name.starts_with(module))
}

/// Every file below a directory whose name is wanted.
fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
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

/// Leaves the image and the modules in `dir`, which is there only when that went well.
fn fetch(name: &str, dir: &Path) -> Result<()> {
    eprintln!("vm: fetching Debian's kernel {name} (apt)");
    let work = dir.with_added_extension("unpacked");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(work.join("tree")).with_context(|| format!("cannot create {}", work.display()))?;
    // What the machine's apt knows needs no other package lists; but these may be old.
    let own = if name == NEWEST { Ok(false) } else { download(&Apt::own(&work), name) };
    if !own.unwrap_or(false) && !download(&Apt::of_suite(suite(name), &work)?, name)? {
        bail!("{} has no package linux-image-*-cloud-amd64 of it", suite(name));
    }
    unpack(&work)?;
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for file in find(&work.join("tree"), &|name| is_image(name) || is_needed_module(name))? {
        let kept = dir.join(file.file_name().unwrap_or_default());
        fs::rename(&file, &kept).with_context(|| format!("cannot create {}", kept.display()))?;
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

fn suite(name: &str) -> &'static str {
    SUITES.iter().find(|(known, _)| *known == name).map_or("sid", |(_, suite)| suite)
}

/// Downloads the image's package and those that its files went into in later releases; `false` if
/// this apt has none.
fn download(apt: &Apt, name: &str) -> Result<bool> {
    let version = if name == NEWEST { String::new() } else { format!("{name}.") };
    let image = apt.dependencies(&["linux-image-cloud-amd64", &format!("linux-image-{name}-cloud-amd64")]);
    let wanted = format!("linux-image-{version}");
    let Some(image) = image.into_iter().find(|package| package.starts_with(&wanted) && package.ends_with("-cloud-amd64")) else {
        return Ok(false);
    };
    let mut packages = apt.dependencies(&[&image]);
    packages.retain(|package| package.starts_with("linux-binary-") || package.starts_with("linux-modules-"));
    packages.push(image);
    let mut get = apt.command("apt-get");
    get.current_dir(&apt.work).arg("--quiet=2").arg("download").args(&packages);
    host::run(&mut get, &format!("downloading {}", packages.join(" ")))?;
    Ok(true)
}

fn unpack(work: &Path) -> Result<()> {
    for package in find(work, &|name| name.ends_with(".deb"))? {
        let mut dpkg = Command::new("dpkg-deb");
        host::run(dpkg.arg("-x").arg(&package).arg(work.join("tree")), &format!("unpacking {}", package.display()))?;
    }
    Ok(())
}

/// The machine's own apt, or one with its mirror and another suite, which leaves the machine's alone.
struct Apt {
    options: Vec<String>,
    work: PathBuf,
}

impl Apt {
    fn own(work: &Path) -> Self {
        // apt's user cannot reach this directory.
        Self { options: vec!["-oAPT::Sandbox::User=root".to_owned()], work: work.to_owned() }
    }

    fn of_suite(suite: &str, work: &Path) -> Result<Self> {
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

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).stdin(Stdio::null()).env("LC_ALL", "C");
        command
    }

    /// What packages depend on; those that this apt does not know depend on nothing.
    fn dependencies(&self, packages: &[&str]) -> Vec<String> {
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

    #[test]
    fn every_name_has_a_suite() {
        assert!(NAMES.iter().all(|name| SUITES.iter().any(|(known, _)| known == name)));
    }
}
