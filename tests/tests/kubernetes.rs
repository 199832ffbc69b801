//! The example manifest is one that Kubernetes takes, and gives exactly the rights that docs/privileges.md names.

use std::{env, fs, path::Path, process::Command};

use rsttrace_tests::tell_skipped;

fn docs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))
}

/// By Kubernetes' own schemas, unknown keys included: of the newest version, and of one from before.
#[test]
fn kubernetes_takes_the_manifest() {
    let program = env::current_exe().expect("this program");
    let validator = program.ancestors().nth(3).expect("cargo's target directory").join("setup/kubernetes-validate");
    if !validator.is_dir() {
        return tell_skipped("kubernetes-validate is not installed (cargo xtask setup --tests)");
    }
    let manifest = docs().join("kubernetes/rsttrace.yaml");
    for version in ["1.37", "1.30"] {
        let mut python = Command::new("/usr/bin/python3");
        python.env("PYTHONPATH", &validator).args(["-m", "kubernetes_validate", "--strict", "-k", version]).arg(&manifest);
        let output = python.output().expect("python3");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{version}: {said}");
        assert_eq!(said.matches("passed").count(), 2, "{version}: {said}");
    }
}

#[test]
fn the_manifest_gives_what_the_unit_file_gives() {
    let manifest = fs::read_to_string(docs().join("kubernetes/rsttrace.yaml")).expect("the manifest");
    let unit = fs::read_to_string(docs().join("rsttrace.service")).expect("the unit file");
    let (_, added) = manifest.split_once("              add:\n").expect("capabilities");
    let mut added: Vec<_> =
        added.lines().map(str::trim).filter(|line| !line.starts_with('#')).map_while(|line| line.strip_prefix("- ")).collect();
    let bounding = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("capabilities");
    let mut bounding: Vec<_> = bounding.split(' ').map(|name| name.trim_start_matches("CAP_")).collect();
    added.sort_unstable();
    bounding.sort_unstable();
    assert_eq!(added, bounding);
}
