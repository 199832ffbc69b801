//! Builds the kernel half for its own target and hands its path to the library.
//!
//! aya-build cannot choose the BPF instruction set; this can. Two toolchains serve: a system Rust
//! with a prebuilt `core` for `bpfel-unknown-none` (Debian's `rustc-web` and
//! `libstd-rust-web-dev-bpf`), or rustup's nightly with `rust-src`. `cargo xtask setup` installs one.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
/// Where Debian's packages put Rust.
const SYSTEM_PREFIX: &str = "/usr";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // TARGET/PROFILE/build/rsttrace-HASH/out: beside the profiles, so that all of them share one.
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("ebpf");
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = package.parent().unwrap_or(&package);
    let kernel_half = root.join("rsttrace-ebpf");
    println!("cargo::rerun-if-changed={}", kernel_half.display());
    println!("cargo::rerun-if-changed={}", root.join("rsttrace-common").display());
    println!("cargo::rerun-if-env-changed=PATH");

    let mut cargo = toolchain()?;
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut flags = vec![
        // v3 has 32-bit arithmetic and jumps; kernels from 5.1 accept it.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // The same wherever it is built: BTF has the names of source files.
        format!("--remap-path-prefix={}=/rsttrace", root.display()),
    ];
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    flags.extend(cargo_home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    cargo
        .args(["build", "--release", "--target", TARGET, "--manifest-path"])
        .arg(kernel_half.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building the kernel half failed ({status})").into());
    }
    let object = target_dir.join(TARGET).join("release/rsttrace-ebpf");
    println!("cargo::rustc-env=RSTTRACE_EBPF_OBJECT={}", object.display());
    Ok(())
}

/// A cargo that can build for BPF, freed from what the outer build told its own children.
fn toolchain() -> Result<Command, Box<dyn Error>> {
    let system = Path::new(SYSTEM_PREFIX);
    let mut cargo = if system.join("lib/rustlib").join(TARGET).is_dir() {
        let mut cargo = Command::new(system.join("bin/cargo"));
        cargo.env("RUSTC", system.join("bin/rustc"));
        // The prebuilt core is stable's; these two crates use features of the BPF target.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf,rsttrace_ebpf");
        cargo
    } else if rustup_nightly_has_source() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
        cargo.env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP");
        cargo
    } else {
        return Err("no Rust toolchain here can build for BPF; run `cargo xtask setup`".into());
    };
    if !in_path("bpf-linker") {
        return Err("bpf-linker is not in PATH; run `cargo xtask setup`".into());
    }
    for name in
        ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_PROFILE_RELEASE_STRIP", "RUSTUP_TOOLCHAIN"]
    {
        cargo.env_remove(name);
    }
    Ok(cargo)
}

fn rustup_nightly_has_source() -> bool {
    let Ok(output) = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library").is_dir()
}

fn in_path(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}
