//! Where things are on this machine and in this repository.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Where Debian puts programs that an ordinary user's PATH may lack.
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// The workspace's directory.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo's target directory, wherever configuration put it: this program was built into it.
pub fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("cannot find out where xtask itself was built")?;
    match exe.ancestors().nth(2) {
        Some(dir) => Ok(dir.to_owned()),
        None => bail!("{} is not in a target directory; start it as `cargo xtask`", exe.display()),
    }
}

/// The cargo that started us, at the workspace's root, able to find what `cargo install` installed.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // Only when needed: build scripts that watch PATH would run again.
    if find_in_path("bpf-linker").is_none()
        && let Some(dir) = install_dir()
        && let Ok(path) = env::join_paths(path_dirs().chain([dir]))
    {
        cargo.env("PATH", path);
    }
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR")
        && let Ok(dir) = std::path::absolute(dir)
    {
        cargo.env("CARGO_TARGET_DIR", dir);
    }
    cargo
}

/// Runs a command to its end; its failure is an error that says what was being done.
pub fn run(command: &mut Command, doing: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("{doing}: cannot start {program}"))?;
    if !status.success() {
        bail!("{doing} failed ({status}); the messages above say why");
    }
    Ok(())
}

/// Where cargo keeps what it fetched, as far as the environment says.
pub fn cargo_home() -> Option<PathBuf> {
    let default = || Some(Path::new(&env::var_os("HOME")?).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(default)
}

/// Where `cargo install` puts programs, as far as the environment says.
pub fn install_dir() -> Option<PathBuf> {
    Some(env::var_os("CARGO_INSTALL_ROOT").map(PathBuf::from).or_else(cargo_home)?.join("bin"))
}

/// A program in PATH.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    path_dirs().map(|dir| dir.join(name)).find(|file| is_executable(file))
}

/// A program in PATH, which counts, or else where `cargo install` put it outside of that.
pub fn find_installed(name: &str) -> Option<PathBuf> {
    let installed = || Some(install_dir()?.join(name)).filter(|file| is_executable(file));
    find_in_path(name).or_else(installed)
}

/// A program in PATH or where an administrator's PATH would have it.
pub fn find(name: &str) -> Option<PathBuf> {
    let system = SYSTEM_DIRS.iter().map(|dir| Path::new(dir).join(name));
    find_in_path(name).or_else(|| system.into_iter().find(|file| is_executable(file)))
}

pub fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether we run as root: a process owns its own directory in /proc.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn path_dirs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect::<Vec<_>>().into_iter()
}
