//! The commands of README's "Use" are run as they stand there, in a directory with the files that they name.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use rsttrace_tests::{Pair, binary, require_root, require_tool};

const README: &str = include_str!("../../README.md");
/// At a time: most of them wait for their end.
const AT_ONCE: usize = 4;

/// The commands, without what is said of them.
fn commands() -> Vec<&'static str> {
    let part = README.split("\n## Use\n").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("README has this part");
    let indented = part.lines().filter_map(|line| line.strip_prefix("    "));
    indented.map(|line| line.split("  ").next().unwrap_or(line)).collect()
}

/// A directory in which they can run: the files that they read, and `rsttrace` and `sudo` before all others.
fn stage() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("rsttrace-readme-{}", std::process::id()));
    fs::create_dir_all(directory.join("bin")).expect("a directory");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    for (from, to) in [("before.rst", "before.rst"), ("after.rst", "after.rst"), ("after.rst", "nginx.rst")] {
        fs::copy(examples.join(from), directory.join(to)).expect("a recording");
    }
    let saved = Command::new(binary()).args(["replay", "-jq", "after.rst"]).current_dir(&directory).output().expect("a replay");
    fs::write(directory.join("records.jsonl"), saved.stdout).expect("records");
    fs::write(directory.join("error.log"), "2026/11/26 21:43:46 [error] 1#1: nothing that is about a connection\n").expect("a log");
    std::os::unix::fs::symlink(binary(), directory.join("bin/rsttrace")).expect("a link");
    // Here everything is root's.
    fs::write(directory.join("bin/sudo"), "#!/bin/sh\nexec \"$@\"\n").expect("a script");
    fs::set_permissions(directory.join("bin/sudo"), fs::Permissions::from_mode(0o755)).expect("chmod");
    directory
}

/// The same for a second, of what is here.
fn shortened(command: &str) -> String {
    let traces = command.starts_with("sudo rsttrace") && !command.contains(" doctor");
    let command = command.replace("/var/log/nginx/error.log", "error.log").replace("4711", &std::process::id().to_string());
    match (traces, command.contains("-d 10m")) {
        (true, true) => command.replace("-d 10m", "-d 1s"),
        (true, false) if command.contains("rsttrace top") => command.replacen("rsttrace top", "rsttrace top -d 1s", 1),
        (true, false) => command.replacen("rsttrace", "rsttrace -d 1s", 1),
        (false, _) => command,
    }
}

#[test]
fn every_command_of_the_readme_runs() {
    require_root!();
    require_tool!("jq");
    require_tool!("curl");
    let directory = stage();
    let path = format!("{}:{}", directory.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    let left = Mutex::new(commands.into_iter());
    let problems = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(command) = left.lock().expect("no panic").next() else { return };
                    // Something ends while it looks.
                    Pair::new().client.abort();
                    let mut shell = Command::new("sh");
                    shell.args(["-c", &shortened(command)]).current_dir(&directory).env("PATH", &path).env("TZ", "UTC");
                    let output = shell.output().expect("a shell");
                    // 4: --fail-on found something; 7: nobody answers curl; the doctor may find the machine wanting.
                    let fine = match output.status.code() {
                        Some(0) => true,
                        Some(4) => command.contains("--fail-on"),
                        Some(7) => command.contains("-- curl"),
                        Some(1) => command.contains("doctor"),
                        _ => false,
                    };
                    if !fine {
                        let said = String::from_utf8_lossy(&output.stderr).into_owned();
                        problems.lock().expect("no panic").push(format!("{command}: {}\n{said}", output.status));
                    }
                }
            });
        }
    });
    let page = fs::read_to_string(directory.join("nginx.html")).unwrap_or_default();
    let _ = fs::remove_dir_all(&directory);
    let problems = problems.into_inner().expect("no panic");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(page.contains("<html"), "the report is a page");
}
