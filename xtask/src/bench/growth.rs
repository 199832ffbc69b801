//! How the cost of an event grows with the number of open connections.

use anyhow::Result;
use serde_json::json;

use super::{
    Bench,
    held::Held,
    load::Load,
    pairs::Spread,
    plot::{self, Series},
    programs,
    report::{Report, grouped, spread},
    storm,
    tracer::{Traced, Tracer},
};

const SOCKETS: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 500_000];
const FLAGS: [&str; 3] = ["--json", "--max-sockets", "1000000"];
const STORMS: usize = 5;
/// Where the picture of docs/performance.md is.
pub const PLOT: &str = "docs/performance.svg";

struct Point {
    sockets: usize,
    /// CPU time of the tracer per record, storm by storm.
    tracer_us: Vec<f64>,
    /// Time of all its programs per record, less the statistics' own.
    kernel_us: f64,
}

pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("growth", "cost per record by open connections, in storms of aborts");
    let storms = if bench.quick { 1 } else { STORMS };
    let mut points: Vec<Point> = Vec::new();
    let mut held = Held::open(&bench.load, 0)?;
    for sockets in SOCKETS {
        if bench.quick && sockets > 10_000 {
            continue;
        }
        eprintln!("  {sockets} sockets");
        let before = points.last().map_or(0, |point| point.sockets);
        if let Err(error) = held.grow(&bench.load, before, sockets) {
            report.note(format!("not measured with {}: {error:#}", grouped(sockets as f64)));
            break;
        }
        let tracer_us = (0..storms).map(|_| storm_traced(bench)).collect::<Result<Vec<_>>>()?;
        points.push(Point { sockets, tracer_us, kernel_us: kernel_us(bench)? });
    }
    held.close()?;

    let table = report.table(&["open sockets", "rsttrace, us of CPU per record", "its programs in the kernel, us per record"]);
    for point in &points {
        let us = spread(Spread::of(&point.tracer_us), 2);
        table.row([grouped(point.sockets as f64), us, format!("{:.2}", point.kernel_us)]);
    }
    report.note(format!(
        "{storms} storms of {} aborts each beside sockets that do nothing, two records per abort; in the kernel: all runs of all programs by the \
         kernel's statistics in a storm of their own, less the statistics' own cost, opens and data of the aborted connections included",
        grouped(storm::ABORTS as f64)
    ));
    report.runs = points
        .iter()
        .map(|point| json!({ "sockets": point.sockets, "tracer_us": point.tracer_us, "kernel_us": point.kernel_us }))
        .collect();
    if bench.plot {
        let place = |point: &Point, y: f64| (point.sockets as f64, y);
        let series = [
            Series { name: "rsttrace, CPU", points: points.iter().map(|p| place(p, Spread::of(&p.tracer_us).median)).collect() },
            Series { name: "its programs in the kernel", points: points.iter().map(|p| place(p, p.kernel_us)).collect() },
        ];
        bench.write_plot(PLOT, &plot::svg("open sockets", "us per record", &series))?;
    }
    Ok(report)
}

fn per_record(traced: &Traced, ns: f64) -> f64 {
    ns / traced.records as f64 / 1e3
}

/// CPU time of the tracer per record in a storm, in microseconds.
fn storm_traced(bench: &Bench) -> Result<f64> {
    let mut load = storm::load(bench, storm::ABORTS)?;
    let tracer = Tracer::start(&bench.tracer, &FLAGS, None)?;
    load.run()?;
    load.end()?;
    let traced = tracer.stop()?;
    Ok(per_record(&traced, traced.cpu_ns as f64))
}

/// Time in the kernel half per record in a storm, in microseconds.
fn kernel_us(bench: &Bench) -> Result<f64> {
    let mut load = storm::load(bench, storm::ABORTS)?;
    let hooks = Load::start(&bench.load, &[&["hooks", "--stats"], programs::HOT.as_slice()].concat())?;
    let tracer = Tracer::start(&bench.tracer, &FLAGS, None)?;
    let before = programs::of_process(bench, tracer.pid())?;
    load.run()?;
    load.end()?;
    let (after, empty) = (programs::of_process(bench, tracer.pid())?, programs::of_process(bench, hooks.pid())?);
    let traced = tracer.stop()?;
    hooks.end()?;
    // What was there before is the search for open sockets.
    let cost = after.iter().map(|program| {
        let earlier = before.iter().find(|earlier| earlier.name == program.name);
        let (runs, ns) = earlier.map_or((0.0, 0.0), |earlier| (earlier.runs, earlier.run_ns));
        program.run_ns - ns - (program.runs - runs) * programs::overhead_ns(&empty, &program.name)
    });
    Ok(per_record(&traced, cost.sum()))
}
