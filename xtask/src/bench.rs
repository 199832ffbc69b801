//! `cargo xtask bench`: what tracing costs, each figure beside the same load untraced and under what people use instead
//! (docs/performance.md says how to read it).

mod bulk;
mod getppid;
mod growth;
mod held;
mod load;
mod memory;
mod nginx;
mod paired;
mod pairs;
mod peers;
mod pipeline;
mod plot;
mod process;
mod programs;
mod report;
mod start;
mod storm;
mod tracer;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{build, host, setup};
use report::Report;

#[derive(clap::Args)]
pub struct Options {
    /// Only these figures
    #[arg(value_name = "FIGURE", value_parser = FIGURES.map(|(name, _)| name))]
    figures: Vec<String>,
    /// Rounds of those that compare, in each of which every condition runs once (default: 15)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: Option<u32>,
    /// Whether it works, not how fast: 2 rounds, and no large numbers of sockets
    #[arg(long)]
    quick: bool,
    /// One JSON document with every run; without it Markdown
    #[arg(long)]
    json: bool,
    /// Write the curve of the figure "growth" to docs/performance.svg
    #[arg(long)]
    plot: bool,
    /// Write the results into docs/performance.md, and the curve
    #[arg(long, conflicts_with_all = ["figures", "quick"])]
    record: bool,
}

/// Where results are kept, behind a heading.
const DOCUMENT: &str = "docs/performance.md";
const HEADING: &str = "\n## Results\n";

const PAIRS: u32 = 15;
const QUICK_PAIRS: u32 = 2;

type Figure = (&'static str, fn(&Bench) -> Result<Report>);

const FIGURES: [Figure; 10] = [
    ("nginx-keepalive", nginx::keep_alive),
    ("nginx-close", nginx::close),
    ("storm", storm::run),
    ("getppid", getppid::run),
    ("bulk", bulk::run),
    ("pipeline", pipeline::run),
    ("start", start::run),
    ("memory", memory::memory),
    ("rest", memory::rest),
    ("growth", growth::run),
];

/// What every figure needs.
struct Bench {
    tracer: PathBuf,
    load: PathBuf,
    scratch: Scratch,
    pairs: usize,
    /// Of load in each run.
    seconds: f64,
    quick: bool,
    plot: bool,
}

impl Bench {
    fn write_plot(&self, path: &str, svg: &str) -> Result<()> {
        write(&host::root().join(path), svg)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("bench: wrote {}", path.display());
    Ok(())
}

/// Puts results in place of the earlier ones.
fn record(results: &str) -> Result<()> {
    let path = host::root().join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (before, _) = text.split_once(HEADING).with_context(|| format!("{} has no heading \"Results\"", path.display()))?;
    write(&path, &format!("{before}{HEADING}\n{}\n", results.trim_end()))
}

/// A directory that goes away with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("rsttrace-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Fails where something could not be measured; a target that is not met is no failure, but told.
pub fn run(options: &Options) -> Result<()> {
    if !host::is_root() {
        bail!("tracing needs root: run it as root");
    }
    setup::for_bench()?;
    let bench = Bench {
        tracer: build::tracer()?,
        load: build::load()?,
        scratch: Scratch::new()?,
        pairs: options.pairs.unwrap_or(if options.quick { QUICK_PAIRS } else { PAIRS }) as usize,
        seconds: 1.0,
        quick: options.quick,
        plot: options.plot || options.record,
    };
    let wanted = |name: &str| options.figures.is_empty() || options.figures.iter().any(|figure| figure == name);
    let machine = Machine::of_this();
    let say = |words: &str| {
        if !options.json {
            println!("{words}")
        }
    };
    let mut text = format!("{}\n", machine.words());
    say(&text);
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for (name, figure) in FIGURES.iter().filter(|(name, _)| wanted(name)) {
        let begun = Instant::now();
        eprintln!("bench: {name}");
        match figure(&bench) {
            Ok(report) => {
                let words = report.markdown();
                say(&words);
                text += &format!("\n{words}");
                reports.push(report);
            }
            Err(error) => {
                eprintln!("bench: {name}: {error:#}");
                failed.push(*name);
            }
        }
        eprintln!("bench: {name} took {:.0} s", begun.elapsed().as_secs_f64());
    }
    if options.json {
        let figures: Vec<Value> = reports.iter().map(Report::json).collect();
        let document = json!({ "machine": machine.json(), "pairs": bench.pairs, "figures": figures, "failed": failed });
        println!("{document:#}");
    }
    if !failed.is_empty() {
        bail!("not measured: {}; the messages above say why", failed.join(", "));
    }
    if options.record {
        record(&text)?;
    }
    Ok(())
}

/// Where it was measured.
struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
}

impl Machine {
    fn of_this() -> Self {
        let read = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or("an unknown processor", |(_, model)| model).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    fn words(&self) -> String {
        format!("Linux {}, {} x {}.", self.kernel, self.processors, self.processor)
    }

    fn json(&self) -> Value {
        json!({ "kernel": self.kernel, "processor": self.processor, "processors": self.processors })
    }
}
