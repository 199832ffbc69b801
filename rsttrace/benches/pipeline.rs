//! Recorded events through decode, join, verdict and output, without a kernel: records per second on one core and
//! allocations per record.
//!
//!     cargo bench --bench pipeline                    # a table
//!     cargo bench --bench pipeline -- --json          # a line of JSON for each format
//!     cargo bench --bench pipeline -- --once json 20  # so many rounds, to count instructions of

mod steady;

use std::{error::Error, sync::atomic::Ordering, time::Duration};

use steady::{ALLOCATIONS, Steady};

/// Rounds before measuring.
const ROUNDS: u64 = 20;
/// How long each format is measured.
const MEASURED: Duration = Duration::from_secs(1);
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--once", format, rounds] => {
            let mut bench = Steady::new(format)?;
            bench.rounds(rounds.parse()?);
            println!("{}", bench.records);
        }
        ["--json"] => {
            for format in FORMATS {
                let Figures { records_per_s, allocations_per_record, bytes_per_record } = measure(format)?;
                println!(
                    r#"{{"format":"{format}","records_per_s":{records_per_s:.0},"allocations_per_record":{allocations_per_record:.3},"bytes_per_record":{bytes_per_record:.0}}}"#
                );
            }
        }
        _ => {
            println!("{:8} {:>14} {:>12} {:>24} {:>16}", "format", "records/s", "ns/record", "allocations per record", "bytes per record");
            for format in FORMATS {
                let Figures { records_per_s, allocations_per_record, bytes_per_record } = measure(format)?;
                let ns = 1e9 / records_per_s;
                println!("{format:8} {records_per_s:14.0} {ns:12.0} {allocations_per_record:24.3} {bytes_per_record:16.0}");
            }
        }
    }
    Ok(())
}

/// `none` ends after the join: what is left of the others is verdict, names and output.
const FORMATS: [&str; 3] = ["json", "text", "none"];

struct Figures {
    records_per_s: f64,
    allocations_per_record: f64,
    bytes_per_record: f64,
}

fn measure(format: &str) -> Result<Figures, Box<dyn Error>> {
    let mut bench = Steady::new(format)?;
    bench.rounds(ROUNDS);
    (bench.records, bench.bytes, bench.busy) = (0, 0, Duration::ZERO);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    while bench.busy < MEASURED {
        bench.rounds(1);
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let records = bench.records as f64;
    Ok(Figures {
        records_per_s: records / bench.busy.as_secs_f64(),
        allocations_per_record: allocations as f64 / records,
        bytes_per_record: bench.bytes as f64 / records,
    })
}
