//! Memory by tracked connections, and what the tracer does while nothing happens.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::{
    Bench,
    held::Held,
    process,
    report::{Report, grouped},
    tracer::{Traced, Tracer},
};

/// The default of `--max-sockets`.
const DEFAULT_ROOM: usize = 262_144;
const PARTS: [&str; 4] = ["VmRSS", "RssAnon", "RssFile", "RssShmem"];

pub fn memory(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("memory", "resident memory by tracked connections");
    let mut rows = Vec::new();
    for tracked in [10, 100_000, 500_000] {
        if bench.quick && tracked > 10_000 {
            continue;
        }
        eprintln!("  {tracked} connections");
        let mut held = match Held::open(&bench.load, tracked) {
            Ok(held) => held,
            Err(error) => {
                report.note(format!("not measured with {}: {error:#}", grouped(tracked as f64)));
                continue;
            }
        };
        let room = if tracked > DEFAULT_ROOM { &["--max-sockets", "1000000"][..] } else { &[] };
        let tracer = Tracer::start(&bench.tracer, &[&["--json"], room].concat(), None)?;
        wait_until_at_rest(&tracer)?;
        let kib = rows_of(&tracer, tracked, "tracked", &mut rows)?;
        if tracked == 10 {
            report.target("at most 20 MiB resident with 10", format!("{:.1} MiB", kib / 1024.0), kib <= 20.0 * 1024.0);
        }
        held.abort()?;
        wait_until_at_rest(&tracer)?;
        rows_of(&tracer, tracked, "and their ends told", &mut rows)?;
        let Traced { records, lost, .. } = tracer.stop()?;
        ensure!(records >= tracked as u64, "of {tracked} ends {records} were reported, and {lost} events lost");
        held.close()?;
    }
    let table = report.table(&["tracked", "", "process", "VmRSS, MiB", "RssAnon", "RssFile", "RssShmem", "BPF maps, MiB"]);
    for (tracked, when, process, kib, maps) in &rows {
        let mut row = vec![grouped(*tracked as f64), (*when).to_owned(), process.clone()];
        row.extend(kib.iter().map(|kib| format!("{:.1}", kib / 1024.0)));
        row.push(maps.map_or(String::new(), |bytes| format!("{:.1}", bytes / f64::from(1 << 20))));
        table.row(row);
    }
    report.note(
        "a tracked connection is one end of a connection on this host, opened before rsttrace starts; each then ends by a reset and is told. \
         The target is about the sum of both processes, of which what they share (the program in RssFile) counts twice. BPF maps are the kernel's memory (memlock in \
         /proc/PID/fdinfo), the 8 MiB of the buffer included, which RssFile counts twice more, because it is mapped twice in a row; \
         with 500,000 --max-sockets is 1,000,000 instead of 262,144",
    );
    report.runs = rows.iter().map(|(tracked, when, process, kib, maps)| json!([tracked, when, process, kib, maps])).collect();
    Ok(report)
}

type Row = (usize, &'static str, String, [f64; 4], Option<f64>);

/// One row for each process; the sum of their resident memory in KiB.
fn rows_of(tracer: &Tracer, tracked: usize, when: &'static str, rows: &mut Vec<Row>) -> Result<f64> {
    let mut sum = 0.0;
    for pid in tracer.processes() {
        let name = process::name(pid)?;
        let mut kib = [0.0; 4];
        for (kib, part) in kib.iter_mut().zip(PARTS) {
            *kib = process::status(pid, part)? as f64;
        }
        sum += kib[0];
        rows.push((tracked, when, name, kib, (pid == tracer.pid()).then(|| map_bytes(pid))));
    }
    Ok(sum)
}

/// What the maps of a process take in the kernel.
fn map_bytes(pid: u32) -> f64 {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let infos = infos.filter_map(|entry| fs::read_to_string(entry.path()).ok()).filter(|info| info.contains("map_id:"));
    infos.filter_map(|info| process::field(&info, "memlock")).sum::<u64>() as f64
}

/// Waits until it has used no CPU time for a while.
pub fn wait_until_at_rest(tracer: &Tracer) -> Result<()> {
    // Longer than it waits for what completes a record.
    const AT_REST: Duration = Duration::from_millis(1_500);
    let end = Instant::now() + Duration::from_secs(60);
    let mut before = (process::cpu_ns(tracer.pid())?, Instant::now());
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
        let now = process::cpu_ns(tracer.pid())?;
        // What other programs of this host do with TCP is no unrest.
        if now > before.0 + 1_000_000 {
            before = (now, Instant::now());
        } else if before.1.elapsed() >= AT_REST {
            return Ok(());
        }
    }
    bail!("rsttrace does not come to rest")
}

pub fn rest(bench: &Bench) -> Result<Report> {
    let seconds = if bench.quick { 5 } else { 60 };
    let mut report = Report::new("rest", format!("{seconds} s in which nothing happens"));
    eprintln!("  {seconds} s");
    let tracers = [("text", vec![]), ("JSON", vec!["--json"])].map(|(name, flags)| (name, Tracer::start(&bench.tracer, &flags, None)));
    let mut before = Vec::new();
    for (name, tracer) in tracers {
        let tracer = tracer?;
        wait_until_at_rest(&tracer)?;
        before.push((name, counts(&tracer)?, tracer));
    }
    thread::sleep(Duration::from_secs(seconds));
    let mut rows = Vec::new();
    for (name, before, tracer) in &before {
        for ((process, switches, ns), (_, switches_before, ns_before)) in counts(tracer)?.into_iter().zip(before) {
            rows.push((*name, process, switches - switches_before, (ns - ns_before) as f64 / 1e6));
        }
    }
    before.into_iter().try_for_each(|(_, _, tracer)| tracer.stop().map(drop))?;
    let table = report.table(&["output", "process", "voluntary context switches", "CPU, ms"]);
    for (name, process, switches, ms) in &rows {
        table.row([(*name).to_owned(), process.clone(), switches.to_string(), format!("{ms:.2}")]);
    }
    report.note("both at once; whatever ends over TCP on this host meanwhile wakes them. Standard error is no terminal");
    report.runs = rows.iter().map(|(output, process, switches, ms)| json!([output, process, switches, ms])).collect();
    Ok(report)
}

/// Name, voluntary context switches and CPU time of each process.
fn counts(tracer: &Tracer) -> Result<Vec<(String, u64, u64)>> {
    let of = |pid| Ok((process::name(pid)?, process::status(pid, "voluntary_ctxt_switches")?, process::cpu_ns(pid)?));
    tracer.processes().into_iter().map(of).collect()
}
