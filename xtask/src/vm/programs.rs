//! What a guest runs: everything of ours is linked statically; the tools that the scenarios call
//! (ip, nft, ss) are the machine's own, with the libraries that they need.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{initramfs::Archive, kernels::Kernel};
use crate::{build, host};

/// Which test programs a guest runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// None: the demo's workload alone.
    Workload,
    /// Those that are soon done.
    Some,
    All,
}

/// Test programs of the package `rsttrace-tests` that need nothing that a guest lacks.
const SCENARIOS: [&str; 8] = ["observers", "owners", "http", "ends", "orderly", "overload", "timeouts", "verdicts"];
/// So many of them are soon done.
const SOON: usize = 2;
/// Programs that they start, and the confusion generator.
const HELPERS: [&str; 2] = ["actor", "confusion"];
const TOOLS: [&str; 4] = ["ip", "nft", "ss", "true"];

/// Files of this machine, and where a guest has them.
pub struct Programs {
    files: Vec<(String, PathBuf)>,
}

impl Programs {
    /// Builds them.
    pub fn build(scope: Scope) -> Result<Self> {
        let tracer = build::static_tracer()?;
        let workload = ["--package", "rsttrace-tests", "--bin", "guest", "--bin", "workload", "--no-default-features"];
        let mut cargo = host::cargo();
        cargo.args(["build", "--quiet", "--release"]).args(workload);
        host::run(build::statically(&mut cargo), "building a static workload")?;
        let release = build::static_release()?;
        let mut files = vec![
            ("init".to_owned(), release.join("guest")),
            ("bin/rsttrace".to_owned(), tracer),
            ("bin/workload".to_owned(), release.join("workload")),
        ];
        for tool in TOOLS {
            let Some(program) = host::find(tool) else { bail!("{tool} is not installed here, and scenarios need it") };
            files.extend(libraries(&program)?.into_iter().map(|library| (inside(&library), library)));
            files.push((format!("bin/{tool}"), program));
        }
        files.extend(match scope {
            Scope::Workload => Vec::new(),
            Scope::Some => build_scenarios(&SCENARIOS[..SOON], &HELPERS[..1])?,
            Scope::All => build_scenarios(&SCENARIOS, &HELPERS)?,
        });
        files.sort();
        files.dedup();
        Ok(Self { files })
    }

    pub fn initramfs(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        // Init's first output: /dev is not mounted yet.
        archive.directory("dev").device("dev/console", 5, 1).directory("modules");
        for (name, file) in &self.files {
            archive.file(name, file)?;
        }
        for module in &kernel.modules {
            archive.file(&format!("modules/{}", module.file_name().unwrap_or_default().to_string_lossy()), module)?;
        }
        Ok(archive.finish())
    }
}

fn inside(file: &Path) -> String {
    file.display().to_string().trim_start_matches('/').to_owned()
}

/// The test programs, each by the name that cargo knows it by, and what they start beside them.
fn build_scenarios(scenarios: &[&str], helpers: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = host::cargo();
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json", "--package", "rsttrace-tests"]);
    build::statically(&mut cargo)
        .args(["--no-default-features", "--features", "harness"])
        .args(scenarios.iter().flat_map(|name| ["--test", name]));
    // A guest has little memory.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "symbols");
    let output = cargo.stderr(Stdio::inherit()).output().context("building static scenarios: cannot start cargo")?;
    if !output.status.success() {
        bail!("building static scenarios failed ({}); the messages above say why", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?;
        let wanted = scenarios.contains(&name) && message["profile"]["test"] == true || helpers.contains(&name);
        wanted.then(|| Some((format!("scenarios/{name}"), message["executable"].as_str()?.into())))?
    });
    Ok(built.collect())
}

/// The shared libraries and the loader of a program, as ldd tells.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
