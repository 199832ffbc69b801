//! `cargo xtask setup`: makes a fresh machine able to build, and with `--tests` to run all tests.
//!
//! What building the kernel half takes is known to rsttrace/build.rs: a Rust with `core` for BPF
//! (Debian's packages, or rustup's nightly with rust-src) and bpf-linker. bpf-linker reads the
//! bitcode of that Rust, so it is linked with that Rust's own LLVM: no LLVM of another version, and
//! none of LLVM's development files, are needed.

mod apt;
mod deny;
mod linker;
mod wheel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::host;

/// Where Debian's packages put the prebuilt `core`; rsttrace/build.rs looks there first.
const SYSTEM_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";

#[derive(clap::Args)]
pub struct Options {
    /// Only say what is missing; exit status 1 if anything is
    #[arg(long)]
    check: bool,
    /// Also what the tests use: nginx, HAProxy, tcpdump, nft, strace ...
    #[arg(long)]
    tests: bool,
    /// Also what the benchmarks use: nginx, wrk, and what rsttrace is compared with
    #[arg(long)]
    bench: bool,
}

/// Debian packages that belong together, and how to see that they are there.
struct Need {
    packages: &'static [&'static str],
    why: &'static str,
    met: fn() -> bool,
}

const RUST: Need = Need {
    packages: &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
    why: "a Rust that can build the kernel half",
    met: || Toolchain::find().is_some(),
};

const BUILD: [Need; 2] = [Need { packages: &["gcc", "libc6-dev"], why: "to link programs", met: || host::find("cc").is_some() }, RUST];

const NGINX: Need = Need { packages: &["nginx-light"], why: "the proxy of the nginx scenarios", met: || host::find("nginx").is_some() };
const TCPDUMP: Need = Need { packages: &["tcpdump"], why: "witness of the packets", met: || host::find("tcpdump").is_some() };
const STRACE: Need = Need { packages: &["strace"], why: "witness of the system calls", met: || host::find("strace").is_some() };

const TESTS: [Need; 18] = [
    Need { packages: &["valgrind"], why: "to count instructions", met: || host::find("valgrind").is_some() },
    NGINX,
    Need { packages: &["haproxy"], why: "the proxy of the HAProxy scenarios", met: || host::find("haproxy").is_some() },
    TCPDUMP,
    Need { packages: &["nftables"], why: "to lose packets on purpose", met: || host::find("nft").is_some() },
    Need {
        packages: &["iproute2"],
        why: "network namespaces and `ss -K`",
        met: || host::find("ip").is_some() && host::find("ss").is_some(),
    },
    STRACE,
    Need { packages: &["gcc-multilib"], why: "to build a 32-bit program", met: can_build_for_32_bits },
    Need { packages: &["procps"], why: "ps and sysctl", met: || host::find("sysctl").is_some() },
    Need { packages: &["systemd"], why: "to check the example unit (systemd-analyze)", met: || host::find("systemd-analyze").is_some() },
    Need { packages: &["libcap2-bin"], why: "file capabilities (setcap)", met: || host::find("setcap").is_some() },
    Need { packages: &["python3"], why: "processes that start while they are traced", met: || host::find("python3").is_some() },
    Need { packages: &["fish"], why: "to complete in", met: || host::find("fish").is_some() },
    Need { packages: &["zsh"], why: "to complete in", met: || host::find("zsh").is_some() },
    Need { packages: &["openssl"], why: "certificates for TLS", met: || host::find("openssl").is_some() },
    Need { packages: &["chromium"], why: "to open the report's page and see what it asks for", met: || host::find("chromium").is_some() },
    Need {
        packages: &["prometheus"],
        why: "to fetch the metrics, and to judge the alert rules",
        met: || host::find("prometheus").is_some() && host::find("promtool").is_some(),
    },
    Need {
        packages: &["python3-pip"],
        why: "to install what checks the Kubernetes manifest",
        met: || wheel::is_there() || Path::new("/usr/lib/python3/dist-packages/pip").is_dir(),
    },
];

const BENCH: [Need; 6] = [
    NGINX,
    Need { packages: &["wrk"], why: "load for nginx", met: || host::find("wrk").is_some() },
    TCPDUMP,
    STRACE,
    Need { packages: &["bpftrace"], why: "to be compared with", met: || host::find("bpftrace").is_some() },
    Need { packages: &["libbpf-tools"], why: "tcpstates, to be compared with", met: || host::find("tcpstates").is_some() },
];

/// `cargo xtask setup`.
pub fn run(options: &Options) -> Result<()> {
    let mut needs: Vec<&Need> = BUILD.iter().collect();
    if options.tests {
        needs.extend(&TESTS);
    }
    if options.bench {
        // What both lists have is named once.
        needs.extend(BENCH.iter().filter(|need| !options.tests || !TESTS.iter().any(|other| other.packages == need.packages)));
    }
    if options.tests && !options.check {
        for_dependencies();
    }
    let missing = unmet(needs);
    let linker = linker_problem();
    let wheel = !options.tests || wheel::is_there();
    if missing.is_empty() && linker.is_none() && wheel {
        println!("setup: everything is there");
        return Ok(());
    }
    if options.check {
        bail!("{}", missing_text(&missing, linker.as_deref(), cannot_install(&missing).as_deref()));
    }
    let left = install(&missing)?;
    if !left.is_empty() {
        let why_not = cannot_install(&left).unwrap_or_else(|| "apt has no such packages".to_owned());
        bail!("{}", missing_text(&left, linker_problem().as_deref(), Some(&why_not)));
    }
    if wheel { Ok(()) } else { wheel::install() }
}

/// What `build` and `demo` need; silent when it is there.
pub fn for_build() -> Result<()> {
    run_if_needed(unmet(&BUILD))
}

/// What `test` needs. A tool that cannot be installed is no error: the tests that use it say so.
pub fn for_tests() -> Result<()> {
    for_build_and(&TESTS, "tests that need it are skipped")?;
    if !wheel::is_there()
        && let Err(error) = wheel::install()
    {
        eprintln!("setup: {error:#}; tests that need it are skipped");
    }
    Ok(())
}

/// cargo-deny, which looks at the dependencies, installed where it is missing; no error either.
pub fn for_dependencies() -> Option<PathBuf> {
    if deny::find().is_none()
        && let Err(error) = deny::install()
    {
        eprintln!("setup: {error:#}; dependencies are not checked");
    }
    deny::find()
}

/// What `bench` needs. A tool that cannot be installed is no error here either.
pub fn for_bench() -> Result<()> {
    for_build_and(&BENCH, "what needs it is not measured")
}

fn for_build_and(needs: &[Need], without: &str) -> Result<()> {
    for_build()?;
    for need in install(&unmet(needs))? {
        eprintln!("setup: cannot install {} ({}); {without}", need.packages.join(" "), need.why);
    }
    Ok(())
}

fn run_if_needed(missing: Vec<&Need>) -> Result<()> {
    if missing.is_empty() && linker_problem().is_none() {
        return Ok(());
    }
    run(&Options { check: false, tests: false, bench: false })
}

fn unmet<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Vec<&'a Need> {
    needs.into_iter().filter(|need| !(need.met)()).collect()
}

/// What is wrong with bpf-linker, as far as a toolchain is there to compare it with.
fn linker_problem() -> Option<String> {
    match Toolchain::find() {
        Some(toolchain) => linker::problem(&toolchain.rustc),
        None => linker::find().is_none().then(|| "not in PATH".to_owned()),
    }
}

/// Installs with apt what apt can, Rust with rustup otherwise, then bpf-linker; gives what is left.
fn install<'a>(missing: &[&'a Need]) -> Result<Vec<&'a Need>> {
    let mut left = missing.to_vec();
    if !left.is_empty() && apt::usable().is_ok() {
        left = apt::install(left)?;
    }
    let (rust, mut left): (Vec<_>, Vec<_>) = left.into_iter().partition(|need| need.packages == RUST.packages);
    for need in rust {
        if host::find_in_path("rustup").is_some() {
            install_nightly()?;
        } else {
            left.push(need);
        }
    }
    if let Some(toolchain) = Toolchain::find()
        && let Some(problem) = linker::problem(&toolchain.rustc)
    {
        linker::install(&toolchain.rustc, &problem)?;
    }
    Ok(left)
}

/// Why `setup` cannot install this, as far as one can tell without trying.
fn cannot_install(missing: &[&Need]) -> Option<String> {
    let rustup = host::find_in_path("rustup").is_some();
    let needs_apt = missing.iter().any(|need| need.packages != RUST.packages || !rustup);
    if needs_apt { apt::usable().err() } else { None }
}

/// Never touches rustup itself, and a nightly that is there only as far as needed.
fn install_nightly() -> Result<()> {
    let mut rustup = Command::new("rustup");
    if nightly_sysroot().is_some() {
        eprintln!("setup: adding rust-src to rustup's nightly: to build the kernel half's `core`");
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    } else {
        eprintln!("setup: installing rustup's nightly with rust-src: a Rust that can build the kernel half");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        rustup.arg("--no-self-update");
    }
    host::run(&mut rustup, "installing rustup's nightly with rust-src")
}

/// What is missing, and the commands that help.
fn missing_text(missing: &[&Need], linker: Option<&str>, apt_unusable: Option<&str>) -> String {
    let mut text = String::from("this is missing:");
    for need in missing {
        text += &format!("\n  {}: {}", need.packages.join(" "), need.why);
    }
    if let Some(problem) = linker {
        text += &format!("\n  bpf-linker ({problem}): links the kernel half");
    }
    let Some(why_not) = apt_unusable else {
        return text + "\ninstall it with:\n  cargo xtask setup";
    };
    let packages: Vec<_> = missing.iter().flat_map(|need| need.packages).copied().collect();
    text += &format!("\nit cannot be installed from here: {why_not}. On Debian 12, as root:");
    text += "\n  apt-get update";
    text += &format!("\n  apt-get install --no-install-recommends {}", packages.join(" "));
    if missing.iter().any(|need| need.packages == RUST.packages) {
        text += "\nwith rustup, instead of the packages whose names contain rust or cargo:";
        text += "\n  rustup toolchain install nightly --profile minimal --component rust-src";
    }
    text + "\nand then once more:\n  cargo xtask setup"
}

/// A Rust that can build for BPF, in the order in which rsttrace/build.rs looks.
struct Toolchain {
    rustc: PathBuf,
}

impl Toolchain {
    fn find() -> Option<Self> {
        if Path::new(SYSTEM_CORE).is_dir() {
            let complete = [SYSTEM_RUSTC, SYSTEM_CARGO].into_iter().all(|file| host::is_executable(Path::new(file)));
            return complete.then(|| Self { rustc: SYSTEM_RUSTC.into() });
        }
        let sysroot = nightly_sysroot()?;
        let source = sysroot.join("lib/rustlib/src/rust/library");
        source.is_dir().then(|| Self { rustc: sysroot.join("bin/rustc") })
    }
}

fn nightly_sysroot() -> Option<PathBuf> {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", "nightly", "rustc", "--print", "sysroot"]).stderr(Stdio::null());
    let output = rustup.output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    (output.status.success() && sysroot.is_dir()).then_some(sysroot)
}

/// Whether gcc's 32-bit start files are there; only x86-64 runs 32-bit programs of its own.
fn can_build_for_32_bits() -> bool {
    cfg!(not(target_arch = "x86_64"))
        || fs::read_dir("/usr/lib/gcc/x86_64-linux-gnu")
            .is_ok_and(|versions| versions.flatten().any(|version| version.path().join("32/crtbegin.o").exists()))
}
