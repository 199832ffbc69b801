//! `cargo xtask test`: everything that is tested, and one line with the sums.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{build, host, setup};

/// Scenarios run several tracers at once; more than this only makes them wait for each other.
const MAX_THREADS: usize = 4;

#[derive(clap::Args)]
pub struct Options {
    /// Only tests whose names contain one of these; leaves out rustfmt and clippy
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Further flags for the test programs, after `--`: `-- --nocapture`
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    setup::for_tests()?;
    let tracer = build::tracer()?;

    let mut sums = Sums::default();
    if options.filters.is_empty() {
        lint(&["fmt", "--all", "--check"], &mut sums)?;
        // The kernel half, which is no default member, does not compile for this machine.
        lint(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"], &mut sums)?;
    }

    let skips = host::target_dir()?.join("skipped-tests");
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    let mut cargo = host::cargo();
    cargo.args(["test", "--no-fail-fast", "--"]).args(&options.filters).args(&options.flags);
    cargo.env("RSTTRACE_BIN", &tracer).env("RSTTRACE_SKIPS", &skips);
    // A golden test that differs fails; it writes nothing into the source tree.
    cargo.env("INSTA_UPDATE", "no");
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        cargo.env("RUST_TEST_THREADS", threads.to_string());
    }
    run_tests(&mut cargo, &mut sums)?;
    sums.add_skips(&fs::read_to_string(&skips).with_context(|| format!("cannot read {}", skips.display()))?);
    report(&sums, options, &tracer)
}

/// Runs one of cargo's optional tools, where it is installed.
fn lint(args: &[&str], sums: &mut Sums) -> Result<()> {
    let tool = args.first().copied().unwrap_or_default();
    let mut probe = host::cargo();
    let probe = probe.args([tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.context("cannot start cargo")?.success() {
        println!("test: cargo {tool} is not installed here: left out");
        return Ok(());
    }
    println!("test: cargo {}", args.join(" "));
    if !host::cargo().args(args).status().context("cannot start cargo")?.success() {
        sums.failed.push(format!("cargo {}", args.join(" ")));
    }
    Ok(())
}

/// Runs `cargo test`, shows its output as it comes, and counts.
fn run_tests(cargo: &mut Command, sums: &mut Sums) -> Result<()> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let Some(stdout) = child.stdout.take() else { bail!("cargo test has no output") };
    for line in BufReader::new(stdout).split(b'\n') {
        let mut line = line.context("cannot read the tests' output")?;
        sums.read_line(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        io::stdout().write_all(&line).context("cannot show the tests' output")?;
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    sums.end(status.success());
    Ok(())
}

fn report(sums: &Sums, options: &Options, tracer: &Path) -> Result<()> {
    list("skipped", &sums.skipped);
    list("failed", &sums.failed);
    println!("\n{} passed, {} failed, {} skipped", sums.passed(), sums.failed.len(), sums.skipped.len());
    if !sums.failed.is_empty() {
        bail!("tests failed; the tracer they ran is {}", tracer.display());
    }
    if !sums.skipped.is_empty() && in_ci() {
        bail!("tests were skipped, which fails where CI is set; the list above says why");
    }
    if sums.passed() + sums.skipped.len() == 0 && !options.filters.is_empty() {
        bail!("no test has a name that contains {}", options.filters.join(" or "));
    }
    Ok(())
}

fn list(title: &str, entries: &[String]) {
    if !entries.is_empty() {
        println!("\n{title}:\n  {}", entries.join("\n  "));
    }
}

fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// What the test programs' lines add up to.
#[derive(Default)]
struct Sums {
    /// As the test programs count: a test that returned early is one of these.
    ran_well: usize,
    /// Tests that returned early, each with its reason.
    returned_early: usize,
    /// `name: why`
    skipped: Vec<String>,
    failed: Vec<String>,
    /// A test program has said how many tests it runs, and not yet how that went.
    unfinished: bool,
}

impl Sums {
    fn passed(&self) -> usize {
        self.ran_well.saturating_sub(self.returned_early)
    }

    /// Takes one line of libtest's output.
    fn read_line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.unfinished = false;
            self.ran_well += rest.split_once(". ").map_or(0, |(_, counts)| leading_number(counts));
        } else if let Some(rest) = line.strip_prefix("test ") {
            if let Some((name, outcome)) = rest.rsplit_once(" ... ") {
                self.read_outcome(name, outcome);
            }
        } else if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.note_unfinished();
            self.unfinished = true;
        }
    }

    fn read_outcome(&mut self, name: &str, outcome: &str) {
        if outcome.starts_with("FAILED") {
            self.failed.push(name.to_owned());
        } else if let Some(why) = outcome.strip_prefix("ignored") {
            let why = why.strip_prefix(", ").unwrap_or("marked #[ignore]");
            self.skipped.push(format!("{name}: {why}"));
        }
    }

    fn note_unfinished(&mut self) {
        if self.unfinished {
            self.failed.push("a test program that ended before its tests did".to_owned());
        }
    }

    fn end(&mut self, success: bool) {
        self.note_unfinished();
        self.unfinished = false;
        if !success && self.failed.is_empty() {
            self.failed.push("cargo test (its messages say why)".to_owned());
        }
    }

    /// Takes what the tests wrote into the file that RSTTRACE_SKIPS names: `name: why` each.
    fn add_skips(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.is_empty()) {
            let line = line.to_owned();
            if !self.skipped.contains(&line) {
                self.returned_early += 1;
                self.skipped.push(line);
            }
        }
    }
}

fn leading_number(text: &str) -> usize {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(output: &str, success: bool) -> Sums {
        let mut sums = Sums::default();
        output.lines().for_each(|line| sums.read_line(line));
        sums.end(success);
        sums
    }

    #[test]
    fn the_results_of_all_test_programs_add_up() {
        let sums = sums(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             running 3 tests\ntest c::d ... FAILED\ntest e ... ok\ntest f ... ignored, needs a cluster\n\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            false,
        );
        assert_eq!(sums.passed(), 3);
        assert_eq!(sums.failed, ["c::d"]);
        assert_eq!(sums.skipped, ["f: needs a cluster"]);
    }

    #[test]
    fn a_test_that_returned_early_is_skipped_and_not_passed() {
        let mut sums = sums("running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored;\n", true);
        sums.add_skips("a: needs root\n");
        assert_eq!((sums.passed(), sums.failed.len()), (1, 0));
        assert_eq!(sums.skipped, ["a: needs root"]);
    }

    #[test]
    fn a_test_program_that_dies_is_a_failure() {
        let sums = sums("running 2 tests\ntest a ... ok\nrunning 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n", false);
        assert_eq!(sums.failed.len(), 1);
        assert_eq!(sums.passed(), 1);
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        assert_eq!(sums("", false).failed.len(), 1);
    }
}
