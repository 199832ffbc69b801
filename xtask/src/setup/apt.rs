//! Debian's packages.

use std::{
    fs,
    path::Path,
    process::{self, Command, Output, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::Need;
use crate::host;

/// Asked by Debian's package scripts before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Whether packages can be installed here, or why not.
pub fn usable() -> Result<(), String> {
    if !Path::new("/etc/debian_version").exists() || host::find("apt-get").is_none() {
        return Err("this is no Debian-like system with apt".to_owned());
    }
    if !host::is_root() {
        return Err("not root".to_owned());
    }
    Ok(())
}

/// Installs what apt has a candidate for, and gives what is unmet after that.
pub fn install(missing: Vec<&Need>) -> Result<Vec<&Need>> {
    if !missing.iter().all(|need| has_candidates(need)) {
        update();
    }
    let known: Vec<&Need> = missing.iter().copied().filter(|need| has_candidates(need)).collect();
    if !known.is_empty() {
        for need in &known {
            eprintln!("setup: installing {} (apt): {}", need.packages.join(" "), need.why);
        }
        install_known(&known)?;
    }
    Ok(super::unmet(missing))
}

fn install_known(needs: &[&Need]) -> Result<()> {
    let packages: Vec<_> = needs.iter().flat_map(|need| need.packages).copied().collect();
    let services: Vec<_> = SERVICES.iter().filter(|(package, _)| packages.contains(package)).map(|(_, service)| *service).collect();
    let _no_start = (!services.is_empty()).then(NoServices::new).transpose()?;
    let started = Instant::now();
    let mut output = install_once(&packages)?;
    if !output.status.success() {
        // The lists may be older than the mirror.
        update();
        output = install_once(&packages)?;
    }
    if !output.status.success() {
        bail!(
            "apt-get could not install {} ({}):\n{}\nfix that and start again; apt's lock may be held by another program",
            packages.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end(),
        );
    }
    for service in services {
        disable(service);
    }
    eprintln!("setup: apt took {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

fn install_once(packages: &[&str]) -> Result<Output> {
    // Nothing that is installed may go to make room.
    let flags = ["--yes", "--quiet=2", "--no-install-recommends", "--no-remove"];
    let options = ["-oDPkg::Lock::Timeout=120", "-oDpkg::Use-Pty=0"];
    apt_get().args(flags).args(options).arg("install").args(packages).output().context("cannot start apt-get")
}

/// A failure shows itself later, as a package without a candidate.
fn update() {
    eprintln!("setup: updating apt's package lists: they are missing or old");
    if let Err(error) = apt_get().args(["--quiet=2", "update"]).output() {
        eprintln!("setup: cannot start apt-get: {error}");
    }
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.stdin(Stdio::null()).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
    // No restarts of services on this occasion, no news.
    apt.env("NEEDRESTART_SUSPEND", "1").env("APT_LISTCHANGES_FRONTEND", "none");
    apt
}

fn has_candidates(need: &Need) -> bool {
    let mut policy = Command::new("apt-cache");
    policy.arg("policy").args(need.packages).env("LC_ALL", "C").stderr(Stdio::null());
    let Ok(output) = policy.output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let candidates = text.lines().filter_map(|line| line.trim().strip_prefix("Candidate: "));
    candidates.filter(|version| *version != "(none)").count() == need.packages.len()
}

/// Packages that would start a service, and its name.
const SERVICES: [(&str, &str); 3] = [("nginx-light", "nginx"), ("haproxy", "haproxy"), ("prometheus", "prometheus")];

/// While it lives, installing such a package does not start its service.
struct NoServices;

impl NoServices {
    fn new() -> Result<Option<Self>> {
        if Path::new(POLICY).exists() && !is_ours() {
            return Ok(None);
        }
        // Without us it allows everything, should we be killed before we remove it.
        let names = SERVICES.map(|(_, service)| format!("*{service}*")).join("|");
        let script = format!("#!/bin/sh\n# {MARK}\ncase \"$*\" in {names}) [ -d /proc/{} ] && exit 101 ;; esac\nexit 0\n", process::id());
        let written = fs::write(POLICY, script).and_then(|()| set_executable(Path::new(POLICY)));
        written.with_context(|| format!("cannot write {POLICY}, which keeps services from being started"))?;
        Ok(Some(Self))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(POLICY) {
            eprintln!("setup: cannot remove {POLICY}: {error}; it may be removed by hand");
        }
    }
}

const MARK: &str = "Written by rsttrace's `cargo xtask setup` so that what it installs is not started as a service; may be removed.";

fn is_ours() -> bool {
    fs::read_to_string(POLICY).is_ok_and(|script| script.contains(MARK))
}

fn set_executable(file: &Path) -> std::io::Result<()> {
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}

/// Nor does it start at the next boot.
fn disable(service: &str) {
    let mut command = if let Some(systemctl) = host::find("systemctl") {
        let mut command = Command::new(systemctl);
        command.args(["disable", "--quiet", service]);
        command
    } else if let Some(update_rc) = host::find("update-rc.d") {
        let mut command = Command::new(update_rc);
        command.args([service, "disable"]);
        command
    } else {
        return;
    };
    match command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => eprintln!("setup: {service} is neither started nor enabled"),
        _ => eprintln!("setup: {service} is not started, but could not be disabled: it may start at the next boot"),
    }
}
