//! bpf-linker, linked with the LLVM of the Rust whose output it reads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::host;

const VERSION: &str = "0.13.0";
/// The LLVMs that this version knows.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

pub fn find() -> Option<PathBuf> {
    host::find_installed("bpf-linker")
}

/// What keeps bpf-linker from linking what this compiler makes.
pub fn problem(rustc: &Path) -> Option<String> {
    let Some(linker) = find() else {
        return Some("not in PATH".to_owned());
    };
    let shown = linker.display();
    let compiler = loaded_llvm(rustc);
    match (loaded_llvm(&linker), compiler) {
        (Loaded::Missing, _) => Some(format!("{shown} does not start: a library is missing")),
        // An older LLVM cannot read a newer one's bitcode.
        (Loaded::Llvm { major, .. }, Loaded::Llvm { major: needed, .. }) if major < needed => {
            Some(format!("{shown} has LLVM {major}, {} has LLVM {needed}", rustc.display()))
        }
        _ => None,
    }
}

pub fn install(rustc: &Path, problem: &str) -> Result<()> {
    if let Some(other) = host::find_in_path("bpf-linker")
        && host::install_dir().is_some_and(|dir| other.parent() != Some(&dir))
    {
        bail!("bpf-linker cannot be used: {problem}; remove {} and start again", other.display());
    }
    let Loaded::Llvm { major, library } = loaded_llvm(rustc) else {
        bail!(
            "bpf-linker is missing, and {} does not show with which LLVM to build it; \
             install a bpf-linker for the LLVM that `{0} -vV` names",
            rustc.display()
        );
    };
    if !LLVMS.contains(&major) {
        bail!(
            "bpf-linker {VERSION} knows LLVM {} to {}, but {} has LLVM {major}; \
             use Debian's rustc-web packages, or another bpf-linker",
            LLVMS.start(),
            LLVMS.end(),
            rustc.display()
        );
    }
    // The library has its versioned name only; -lLLVM wants the plain one.
    let names = host::target_dir()?.join("setup");
    let plain = names.join("libLLVM.so");
    fs::create_dir_all(&names).with_context(|| format!("cannot create {}", names.display()))?;
    if plain.is_symlink() {
        fs::remove_file(&plain).with_context(|| format!("cannot replace {}", plain.display()))?;
    }
    std::os::unix::fs::symlink(&library, &plain).with_context(|| format!("cannot create {}", plain.display()))?;

    eprintln!("setup: installing bpf-linker {VERSION} (cargo install, with LLVM {major}): links the kernel half");
    let started = Instant::now();
    let mut cargo = host::cargo();
    cargo.args(["install", "--quiet", "--locked", "--force", &format!("bpf-linker@{VERSION}")]);
    cargo.args(["--no-default-features", "--features", &format!("llvm-{major}")]);
    // Its build script makes PREFIX/lib the run-time path, where rustup's LLVM is.
    cargo.env("LLVM_PREFIX", rustc.ancestors().nth(2).unwrap_or(Path::new("/usr")));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("-Lnative={}", names.display())).env_remove("RUSTFLAGS");
    // LLVM does the work. Unoptimised, the rest builds in half the time and links as fast.
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    host::run(&mut cargo, "installing bpf-linker (needs access to the crates registry)")?;
    eprintln!("setup: bpf-linker took {:.0} s", started.elapsed().as_secs_f32());
    match self::problem(rustc) {
        Some(problem) => bail!("bpf-linker was installed but cannot be used: {problem}"),
        None => Ok(()),
    }
}

/// What the dynamic linker says about a program's LLVM.
enum Loaded {
    Llvm {
        major: u32,
        library: PathBuf,
    },
    /// A library is not there.
    Missing,
    /// Linked statically, perhaps.
    Unknown,
}

/// As ldd does: the dynamic linker prints what it would load, and does not start the program.
fn loaded_llvm(program: &Path) -> Loaded {
    let mut command = Command::new(program);
    command.env("LD_TRACE_LOADED_OBJECTS", "1").env_remove("LD_LIBRARY_PATH");
    command.stdin(Stdio::null()).stderr(Stdio::null());
    match command.output() {
        Ok(output) => parse_loaded(&String::from_utf8_lossy(&output.stdout)),
        Err(_) => Loaded::Missing,
    }
}

fn parse_loaded(text: &str) -> Loaded {
    let mut loaded = Loaded::Unknown;
    for line in text.lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        if rest.starts_with("not found") {
            return Loaded::Missing;
        }
        let version = name.strip_prefix("libLLVM.so.").or_else(|| name.strip_prefix("libLLVM-"));
        let Some(version) = version else { continue };
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        let path = rest.rsplit_once(" (").map_or(rest, |(path, _)| path);
        if let Ok(major) = digits.parse() {
            loaded = Loaded::Llvm { major, library: path.into() };
        }
    }
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_llvm(text: &str, expected: u32, path: &str) {
        match parse_loaded(text) {
            Loaded::Llvm { major, library } => {
                assert_eq!((major, library), (expected, path.into()))
            }
            Loaded::Missing => panic!("a library is missing"),
            Loaded::Unknown => panic!("no LLVM"),
        }
    }

    #[test]
    fn llvm_is_found_under_each_of_its_names() {
        let head = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007ff9)\n";
        let line = "\tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007ff9)\n";
        assert_llvm(&format!("{head}{line}"), 22, "/lib/x86_64-linux-gnu/libLLVM.so.22.1");
        assert_llvm("\tlibLLVM.so.23.1-rust-1.101.0-nightly => /a b/lib/libLLVM.so (0x7f8b)", 23, "/a b/lib/libLLVM.so");
        assert_llvm("\tlibLLVM-19.so.1 => /lib/libLLVM-19.so.1 (0x7f8b)", 19, "/lib/libLLVM-19.so.1");
        assert!(matches!(parse_loaded(head), Loaded::Unknown));
    }

    #[test]
    fn a_library_that_is_not_there_is_noticed() {
        assert!(matches!(parse_loaded("\tlibLLVM.so.22.1 => not found\n"), Loaded::Missing));
    }
}
