//! `cargo xtask test`: everything that is tested, and one line with the sums.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{build, dist, host, setup, sums::Sums, vm};

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

    let skips = host::target_dir()?.join("skipped-tests");
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;
    let cargo = |filters: &[String]| {
        let mut cargo = host::cargo();
        cargo.args(["test", "--no-fail-fast", "--"]).args(filters).args(&options.flags);
        cargo.env("RSTTRACE_BIN", &tracer).env("RSTTRACE_SKIPS", &skips);
        // A golden test that differs fails; it writes nothing into the source tree.
        cargo.env("INSTA_UPDATE", "no");
        cargo
    };
    let mut first = cargo(&options.filters);
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        first.env("RUST_TEST_THREADS", threads.to_string());
    }
    let mut sums = run_tests(&mut first)?;
    if !sums.failed.is_empty() {
        // Some scenarios are a matter of milliseconds, and the machine may have had other things to do.
        println!("test: what failed is run once more, alone");
        sums.retried(&run_tests(cargo(&sums.failed).arg("--exact").env("RUST_TEST_THREADS", "1"))?);
    }
    if options.filters.is_empty() {
        lint(&["fmt", "--all", "--check"], &mut sums)?;
        // The kernel half, which is no default member, does not compile for this machine.
        lint(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"], &mut sums)?;
        dependencies(&mut sums)?;
        println!("test: other kernels");
        match vm::test() {
            Ok(other) => sums.add("other kernels", other),
            Err(error) => sums.note("other kernels", Some(format!("{error:#}"))),
        }
        // With the tracer that the other kernels have run.
        println!("test: packages");
        match dist::test() {
            Ok(packages) => sums.add("packages", packages),
            Err(error) => sums.note("packages", Some(format!("{error:#}"))),
        }
    }
    sums.add_skips(&fs::read_to_string(&skips).with_context(|| format!("cannot read {}", skips.display()))?);
    report(&sums, options, &tracer)
}

/// Runs one of cargo's optional tools, where it is installed.
fn lint(args: &[&str], sums: &mut Sums) -> Result<()> {
    let tool = args.first().copied().unwrap_or_default();
    let mut probe = host::cargo();
    let probe = probe.args([tool, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.context("cannot start cargo")?.success() {
        sums.left_out.push(format!("cargo {tool}: not installed here"));
        return Ok(());
    }
    println!("test: cargo {}", args.join(" "));
    if !host::cargo().args(args).status().context("cannot start cargo")?.success() {
        sums.failed.push(format!("cargo {}", args.join(" ")));
    }
    Ok(())
}

/// Licences, versions and sources of what is depended on; known faults too, where the database of them can be had.
fn dependencies(sums: &mut Sums) -> Result<()> {
    let Some(program) = setup::for_dependencies() else {
        sums.skipped.push("cargo deny: it cannot be installed here".to_owned());
        return Ok(());
    };
    let deny = |args: &[&str]| {
        let mut deny = Command::new(&program);
        deny.args(args).current_dir(host::root());
        deny
    };
    let mut check = vec!["check", "licenses", "bans", "sources"];
    if deny(&["fetch", "db"]).output().context("cannot start cargo-deny")?.status.success() {
        check.push("advisories");
    } else {
        sums.left_out.push("cargo deny check advisories: the database of known faults cannot be fetched from here".to_owned());
    }
    println!("test: cargo deny {}", check.join(" "));
    let passed = deny(&check).status().context("cannot start cargo-deny")?.success();
    sums.note("cargo deny", (!passed).then(|| "the messages above say why".to_owned()));
    Ok(())
}

/// Runs `cargo test`, shows its output as it comes, and counts.
fn run_tests(cargo: &mut Command) -> Result<Sums> {
    let mut sums = Sums::default();
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
    Ok(sums)
}

fn report(sums: &Sums, options: &Options, tracer: &Path) -> Result<()> {
    list("left out", &sums.left_out);
    list("skipped", &sums.skipped);
    list("passed only alone, at the second attempt", &sums.again);
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
