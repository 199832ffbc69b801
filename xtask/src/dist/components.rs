//! What the static binary is made of: crates of both halves, as cargo resolves them, and the libraries that every static
//! program has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::output;
use crate::{build, host};

/// Something that is linked in.
pub struct Component {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub licence: String,
    pub authors: Vec<String>,
    /// Its package URL, which tells it from all others.
    pub purl: String,
    pub repository: Option<String>,
    /// Of what was fetched from the registry.
    pub sha256: Option<String>,
    /// Files with its licences.
    pub texts: Vec<PathBuf>,
    /// Package URLs of what it uses.
    pub needs: Vec<String>,
}

impl Component {
    /// How a Debian package says that it contains part of another one.
    pub fn built_using(&self) -> Option<String> {
        self.purl.starts_with(DEBIAN).then(|| format!("{} (= {})", self.name, self.version))
    }
}

const DEBIAN: &str = "pkg:deb/debian/";
const HALVES: [&str; 2] = ["rsttrace", "rsttrace-ebpf"];

/// rsttrace itself first, then by name.
pub fn of_binary() -> Result<Vec<Component>> {
    let linked = linked()?;
    let metadata = output(host::cargo().args(["metadata", "--format-version=1", "--locked", "--filter-platform", build::STATIC_TARGET]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let lock = fs::read_to_string(host::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let sums = checksums(&lock);
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let packages: BTreeMap<&str, &Value> = packages
        .filter(|package| linked.contains(&(word(&package["name"]), word(&package["version"]))))
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: Vec<&Value> = metadata["resolve"]["nodes"].as_array().into_iter().flatten().collect();

    let mut components = libraries()?;
    let libraries: Vec<String> = components.iter().map(|library| library.purl.clone()).collect();
    for (id, package) in &packages {
        let (name, version) = (word(&package["name"]), word(&package["version"]));
        let node = nodes.iter().find(|node| node["id"] == **id);
        let needs = node
            .and_then(|node| node["deps"].as_array())
            .into_iter()
            .flatten()
            .filter(|need| need["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null())));
        let mut needs: Vec<String> = needs
            .filter_map(|need| packages.get(need["pkg"].as_str()?))
            .map(|need| purl(&word(&need["name"]), &word(&need["version"])))
            .collect();
        if name == HALVES[0] {
            // What cargo does not see: build.rs builds the kernel half, and rustc links the rest.
            needs.push(purl(HALVES[1], &version));
            needs.extend(libraries.iter().cloned());
        }
        needs.sort();
        let manifest = PathBuf::from(word(&package["manifest_path"]));
        let directory = manifest.parent().unwrap_or(&manifest);
        let mut texts = texts(directory)?;
        if package["source"].is_null() {
            texts.extend(self::texts(host::root())?);
        }
        components.push(Component {
            purl: purl(&name, &version),
            // Some say so in the way of the past.
            licence: word(&package["license"]).replace(" / ", "/").replace('/', " OR "),
            authors: package["authors"].as_array().into_iter().flatten().map(word).collect(),
            repository: package["repository"].as_str().map(str::to_owned),
            sha256: sums.get(&(name.clone(), version.clone())).cloned(),
            texts,
            needs,
            name,
            version,
        });
    }
    if packages.len() != linked.len() {
        bail!("cargo tree knows {} crates that are linked in, and cargo metadata {} of them", linked.len(), packages.len());
    }
    components.sort_by(|a, b| (a.name != HALVES[0], &a.name, &a.version).cmp(&(b.name != HALVES[0], &b.name, &b.version)));
    Ok(components)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn purl(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}

/// Crates that are linked in, by name and version. Not from cargo metadata, which unites what the tests ask for.
fn linked() -> Result<BTreeSet<(String, String)>> {
    let mut cargo = host::cargo();
    cargo.args([
        "tree",
        "--locked",
        "--edges=normal,no-proc-macro",
        "--prefix=none",
        "--no-dedupe",
        "--format={p}",
        "--target",
        build::STATIC_TARGET,
    ]);
    cargo.args(HALVES.iter().flat_map(|half| ["--package", half]));
    let tree = output(&mut cargo)?;
    let crates = tree.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    });
    Ok(crates.collect())
}

/// SHA-256 by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let packages = lock.split("[[package]]");
    let field = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    packages.filter_map(|package| Some(((field(package, "name")?, field(package, "version")?), field(package, "checksum")?))).collect()
}

/// Files that a crate's or the project's directory has for its licences.
fn texts(directory: &Path) -> Result<Vec<PathBuf>> {
    const NAMES: [&str; 5] = ["LICEN", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut texts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    texts.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        file.is_file() && NAMES.iter().any(|begin| name.starts_with(begin))
    });
    texts.sort();
    Ok(texts)
}

/// What is linked in without being a crate of the lock file.
fn libraries() -> Result<Vec<Component>> {
    let rustc = output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let Some(version) = rustc.lines().find_map(|line| line.strip_prefix("release: ")) else { bail!("rustc does not tell its version") };
    let std = Component {
        name: "rust-std".to_owned(),
        version: version.to_owned(),
        licence: "MIT OR Apache-2.0".to_owned(),
        authors: Vec::new(),
        purl: format!("pkg:github/rust-lang/rust@{version}"),
        repository: Some("https://github.com/rust-lang/rust".to_owned()),
        sha256: None,
        texts: vec![host::root().join("LICENSE-APACHE")],
        needs: Vec::new(),
    };
    Ok(vec![
        std,
        of_debian("libc.a", "LGPL-2.1-or-later", "LGPL-2.1", "https://sourceware.org/git/glibc.git")?,
        of_debian("libgcc_eh.a", "GPL-3.0-or-later WITH GCC-exception-3.1", "GPL-3", "https://gcc.gnu.org/git/gcc.git")?,
    ])
}

/// The source package of a library that the linker takes in; `text` is the licence's name on Debian.
fn of_debian(library: &str, licence: &str, text: &str, repository: &str) -> Result<Component> {
    let path = output(Command::new("cc").arg(format!("-print-file-name={library}")))?;
    let path = fs::canonicalize(path.trim()).with_context(|| format!("cannot find the {library} that cc links with"))?;
    let owner = output(Command::new("dpkg-query").arg("--search").arg(&path))?;
    let package = owner.split(": ").next().unwrap_or_default();
    let source = output(Command::new("dpkg-query").args(["--show", "--showformat=${source:Package} ${source:Version}", package]))?;
    let Some((name, version)) = source.split_once(' ') else { bail!("dpkg-query does not tell the source of {package}") };
    Ok(Component {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: licence.to_owned(),
        authors: Vec::new(),
        purl: format!("{DEBIAN}{name}@{version}?arch=source"),
        repository: Some(repository.to_owned()),
        sha256: None,
        texts: vec![Path::new("/usr/share/common-licenses").join(text)],
        needs: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_has_checksums_of_what_was_fetched_only() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0\"\nchecksum = \"abc\"\n\n[[package]]\nname = \"b\"\nversion = \"2.0\"\n";
        let sums = checksums(lock);
        assert_eq!(sums.len(), 1);
        assert_eq!(sums[&("a".to_owned(), "1.0".to_owned())], "abc");
    }

    #[test]
    fn what_only_tests_and_builds_need_is_no_component() {
        let linked = linked().expect("cargo tree");
        let has = |name: &str| linked.iter().any(|(linked, _)| linked == name);
        for name in ["rsttrace", "rsttrace-ebpf", "aya", "aya-ebpf", "libc"] {
            assert!(has(name), "{name}");
        }
        for name in ["proptest", "clap_mangen", "clap_derive", "xtask"] {
            assert!(!has(name), "{name}");
        }
    }
}
