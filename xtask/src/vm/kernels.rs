//! Debian's kernels, unpacked and not installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::packages::{Apt, find, unpack};
use crate::host;

/// What `cargo xtask vm` knows by name.
pub const NAMES: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];
const NEWEST: &str = "newest";
/// Which suite has it, where the machine's own apt does not.
const SUITES: [(&str, &str); 4] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), (NEWEST, "sid")];
/// What the guest's `ss`, `ip` and `nft` need, and the links of the scenarios, where it is not built in.
/// Some releases pack theirs.
const MODULES: [&str; 30] = [
    "inet_diag",
    "tcp_diag",
    "tun",
    "veth",
    "nfnetlink",
    "nf_tables",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_counter",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nf_reject_ipv4",
    "nf_reject_ipv6",
    "nft_objref",
    "nft_hash",
    "libcrc32c",
    "crc32c_generic",
    "crc32c-intel",
    "crc32-cryptoapi",
    "crc32c-cryptoapi",
    "nft_limit",
];
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
    name.split_once(".ko").is_some_and(|(module, _)| MODULES.contains(&module))
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
    unpack(&work, &work.join("tree"))?;
    let kept = work.join("kept");
    fs::create_dir_all(&kept).with_context(|| format!("cannot create {}", kept.display()))?;
    for file in find(&work.join("tree"), &|name| is_image(name) || is_needed_module(name))? {
        let kept = kept.join(file.file_name().unwrap_or_default());
        fs::rename(&file, &kept).with_context(|| format!("cannot create {}", kept.display()))?;
    }
    // All of it, or nothing.
    let _ = fs::remove_dir_all(dir);
    fs::rename(&kept, dir).with_context(|| format!("cannot create {}", dir.display()))?;
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
    apt.download(&packages)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_suite() {
        assert!(NAMES.iter().all(|name| SUITES.iter().any(|(known, _)| known == name)));
    }
}
