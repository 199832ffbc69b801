//! From the start of the process to `ready`, with open sockets to be found.

use anyhow::Result;
use serde_json::json;

use super::{
    Bench,
    held::Held,
    pairs::Spread,
    report::{Report, grouped, spread},
    tracer::Tracer,
};

pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("start", "from the start to `ready`");
    let mut rows = Vec::new();
    for (sockets, target) in [(10, Some(150.0)), (1_000, None), (100_000, Some(1_000.0))] {
        if bench.quick && sockets > 1_000 {
            continue;
        }
        eprintln!("  {sockets} sockets");
        let held = Held::open(&bench.load, sockets)?;
        let mut took = Vec::new();
        for _ in 0..bench.pairs {
            let tracer = Tracer::start(&bench.tracer, &["--json"], None)?;
            took.push(tracer.took.as_secs_f64() * 1e3);
            tracer.stop()?;
        }
        held.close()?;
        let figure = Spread::of(&took);
        if let Some(target) = target {
            let aim = format!("with {} sockets at most {target} ms", grouped(sockets as f64));
            report.target(aim, format!("{:.0} ms", figure.median), figure.median <= target);
        }
        rows.push((sockets, figure, took));
    }
    let table = report.table(&["open sockets", "start to ready, ms", "longest"]);
    for (sockets, figure, took) in &rows {
        let longest = took.iter().copied().fold(0.0, f64::max);
        table.row([grouped(*sockets as f64), spread(*figure, 0), format!("{longest:.0}")]);
    }
    report.note(format!("{} starts each: the median, and the middle half in brackets", bench.pairs));
    report.runs = rows.iter().map(|(sockets, _, took)| json!({ "sockets": sockets, "ms": took })).collect();
    Ok(report)
}
