//! `cargo xtask dist`: a Debian package, an archive of the same, what is in them, and their checksums (docs/packages.md).
//!
//! The package is made by dpkg-deb, which every Debian has: its files are laid out for the archive anyway, and what
//! cargo-deb would add to that takes longer to install than all of this takes.

mod check;
mod components;
mod documents;
mod licences;
mod sbom;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use self::components::Component;
use crate::{build, host, setup, sums::Sums};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const MAINTAINER: &str = "The rsttrace authors <https://github.com/rsttrace/rsttrace/issues>";

#[derive(clap::Args)]
pub struct Options {
    /// Also install the package, run what it holds, and purge it, in a copy of this machine's file system
    #[arg(long)]
    check: bool,
}

/// What is installed below /usr; what ends in .gz is compressed, and what is in bin is a program.
const FILES: [(&str, &str); 6] = [
    ("docs/rsttrace.1", "share/man/man1/rsttrace.1.gz"),
    ("docs/completions/rsttrace.bash", "share/bash-completion/completions/rsttrace"),
    ("docs/completions/_rsttrace", "share/zsh/vendor-completions/_rsttrace"),
    ("docs/completions/rsttrace.fish", "share/fish/vendor_completions.d/rsttrace.fish"),
    // Not /lib/systemd: where /lib is a link, which it is on every Debian since 12, an archive must not bring a directory.
    ("docs/rsttrace.service", "lib/systemd/system/rsttrace.service"),
    ("CHANGELOG.md", "share/doc/rsttrace/CHANGELOG.md.gz"),
];

pub fn run(options: &Options) -> Result<()> {
    setup::for_build()?;
    let dist = Dist::build()?;
    if options.check {
        report(check::run(&dist.package)?)?;
    }
    for file in dist.files()? {
        println!("dist: {}", file.display());
    }
    Ok(())
}

/// What `cargo xtask test` runs.
pub fn test() -> Result<Sums> {
    check::run(&Dist::build()?.package)
}

fn report(sums: Sums) -> Result<()> {
    let problems: Vec<String> = sums.failed.into_iter().chain(sums.skipped).collect();
    if !problems.is_empty() {
        bail!("the package is not as it should be, or could not be tried:\n  {}", problems.join("\n  "));
    }
    println!("dist: the package was installed, run and purged");
    Ok(())
}

/// A directory of what is given to others.
struct Dist {
    directory: PathBuf,
    package: PathBuf,
}

impl Dist {
    fn build() -> Result<Self> {
        let epoch = source_date_epoch()?;
        let binary = build::static_tracer()?;
        let components = components::of_binary()?;

        let directory = empty(host::target_dir()?.join("dist"))?;
        let licences = directory.join("LICENSES");
        write(&licences, licences::text(&components)?)?;
        write(&directory.join(format!("rsttrace-{VERSION}.cdx.json")), sbom::document(&components, &binary, &epoch)?)?;

        let tree = empty(host::target_dir()?.join("dist.tree"))?;
        let usr = tree.join("usr");
        place(&binary, &usr.join("bin/rsttrace"))?;
        place(&licences, &usr.join("share/doc/rsttrace/copyright"))?;
        for (source, destination) in FILES {
            place(&host::root().join(source), &usr.join(destination))?;
        }
        for document in documents::files()? {
            place(&host::root().join(&document), &usr.join(documents::DIRECTORY).join(&document))?;
        }
        archive(&tree, &directory.join(format!("rsttrace-{VERSION}-x86_64.tar.gz")), &epoch)?;
        let package = directory.join(format!("rsttrace_{VERSION}_amd64.deb"));
        self::package(&tree, &package, &components, &epoch)?;

        let dist = Self { directory, package };
        let names: Vec<PathBuf> = dist.files()?.iter().filter_map(|file| Some(file.file_name()?.into())).collect();
        write(&dist.directory.join("SHA256SUMS"), output(Command::new("sha256sum").args(names).current_dir(&dist.directory))?)?;
        Ok(dist)
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.directory).with_context(|| format!("cannot read {}", self.directory.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        Ok(files)
    }
}

/// Seconds since 1970 that everything here is from: those of the last commit, so that the same source makes the same files.
fn source_date_epoch() -> Result<String> {
    if let Ok(epoch) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    let epoch = output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(host::root()));
    Ok(epoch.context("cannot tell when the source is from: set SOURCE_DATE_EPOCH")?.trim().to_owned())
}

/// Has both names, and mode, and compression.
fn place(source: &Path, destination: &Path) -> Result<()> {
    let program = destination.parent().is_some_and(|directory| directory.ends_with("bin"));
    let mode = if program { "755" } else { "644" };
    // Directories get 755 whatever the umask is.
    let mut install = Command::new("install");
    install.args(["-D", "-m", mode]);
    if destination.extension().is_none_or(|extension| extension != "gz") {
        return host::run(install.args([source, destination]), &format!("placing {}", destination.display()));
    }
    let plain = destination.with_extension("");
    host::run(install.args([source, &plain]), &format!("placing {}", plain.display()))?;
    host::run(Command::new("gzip").args(["--best", "--no-name"]).arg(&plain), &format!("compressing {}", plain.display()))
}

/// What is below usr, in a directory by the archive's name: unpacked with `--strip-components=1` into /usr/local, it is installed.
fn archive(tree: &Path, file: &Path, epoch: &str) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--use-compress-program=gzip --best --no-name", "--sort=name", "--format=gnu"]);
    tar.args(["--owner=0", "--group=0", "--numeric-owner", &format!("--mtime=@{epoch}")]);
    tar.arg(format!("--transform=s,^usr,rsttrace-{VERSION},"));
    // Only Debian's zsh knows the other one.
    tar.arg("--transform=s,zsh/vendor-completions,zsh/site-functions,");
    tar.arg("--file").arg(file).arg("--directory").arg(tree).arg("usr");
    host::run(&mut tar, "making the archive")
}

fn package(tree: &Path, file: &Path, components: &[Component], epoch: &str) -> Result<()> {
    let control = tree.join("DEBIAN");
    let changelog = tree.join("changelog");
    let date = output(Command::new("date").args(["--utc", "--rfc-email", &format!("--date=@{epoch}")]).env("LC_ALL", "C"))?;
    let entry = format!("rsttrace ({VERSION}) unstable; urgency=medium\n\n  * CHANGELOG.md.gz has it.\n\n -- {MAINTAINER}  {date}");
    write(&changelog, entry)?;
    place(&changelog, &tree.join("usr/share/doc/rsttrace/changelog.gz"))?;
    fs::remove_file(&changelog).with_context(|| format!("cannot remove {}", changelog.display()))?;
    let size = output(Command::new("du").args(["--summarize", "--apparent-size", "--block-size=1K"]).arg(tree.join("usr")))?;
    let sums = output(Command::new("sh").args(["-c", "find usr -type f | LC_ALL=C sort | xargs md5sum"]).current_dir(tree))?;
    let built_using: Vec<String> = components.iter().filter_map(Component::built_using).collect();
    fs::create_dir(&control).with_context(|| format!("cannot make {}", control.display()))?;
    write(
        &control.join("control"),
        format!(
            "Package: rsttrace\n\
             Version: {VERSION}\n\
             Architecture: amd64\n\
             Maintainer: {MAINTAINER}\n\
             Installed-Size: {}\n\
             Built-Using: {}\n\
             Section: net\n\
             Priority: optional\n\
             Homepage: https://github.com/rsttrace/rsttrace\n\
             Description: why TCP connections end, who ended them, and which process noticed\n \
              Traces resets, timeouts and orderly ends of TCP connections with eBPF, and says\n \
              of each whether it hurt, at what point of the exchange it happened, who did it,\n \
              which process saw which error from which system call, and what to change.\n \
              .\n \
              Needs Linux 5.10 or newer with BTF, and nothing else: it is linked statically.\n",
            size.split_whitespace().next().unwrap_or("0"),
            built_using.join(", "),
        ),
    )?;
    write(&control.join("md5sums"), sums)?;
    for script in ["postinst", "prerm", "postrm"] {
        let copy = control.join(script);
        fs::copy(host::root().join("packaging").join(script), &copy).with_context(|| format!("cannot write {}", copy.display()))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", copy.display()))?;
    }
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--build", "--root-owner-group", "-Zxz"]).arg(tree).arg(file).env("SOURCE_DATE_EPOCH", epoch);
    output(&mut dpkg).map(|_| ())
}

/// Makes an empty directory in place of what is there.
fn empty(directory: PathBuf) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open {} to all", directory.display()))?;
    Ok(directory)
}

fn write(file: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// What a command prints; that it fails is an error with what it said.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The SHA-256 of a file, in hexadecimal.
fn sha256(file: &Path) -> Result<String> {
    let line = output(Command::new("sha256sum").arg(file))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}
