//! Recorded events through decode, join, verdict and output, without a kernel: records per second on one core and
//! allocations per record.
//!
//!     cargo bench --bench pipeline                    # a table
//!     cargo bench --bench pipeline -- --json          # a line of JSON for each format
//!     cargo bench --bench pipeline -- --once json 20  # so many rounds, to count instructions of

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::HashMap,
    error::Error,
    mem::offset_of,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use rsttrace::{
    clock::{monotonic_ns, thread_cpu_ns},
    decode::Decoder,
    enrich::{
        ProcessSource, Processes,
        nat::{Connection, Translation},
    },
    filter::{Filter, ProcessInfo},
    join::Joiner,
    model::{Comm, Event, Identity, Place, Record},
    output::{
        WallClock,
        json::JsonFormat,
        text::{Appearance, TextFormat, TimeFormat},
    },
    pipeline::{Format, Pipeline},
    spare::Spare,
};
use rsttrace_common::{EndEvent, Header, Sizes, SockId, TaskEvent, kind};

/// Every kind of end, once: recorded for the golden tests, each event behind its length.
static EVENTS: &[u8] = include_bytes!("../tests/golden/events.bin");
/// Rounds before measuring.
const ROUNDS: u64 = 20;
/// How long each format is measured.
const MEASURED: Duration = Duration::from_secs(1);
/// From one round to the next, on the events' clock: everything is told by then.
const ROUND_NS: u64 = 10_000_000_000;

/// Counts what is allocated.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--once", format, rounds] => {
            let mut bench = Bench::new(format)?;
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
    let mut bench = Bench::new(format)?;
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

struct Bench {
    pipeline: Pipeline,
    events: Vec<Vec<u8>>,
    last_ns: u64,
    writes: bool,
    out: Vec<u8>,
    records: u64,
    bytes: u64,
    /// CPU time spent in the pipeline.
    busy: Duration,
}

impl Bench {
    fn new(format: &str) -> Result<Self, Box<dyn Error>> {
        let writes = format != "none";
        let format = match format {
            "json" | "none" => Format::Json(JsonFormat::default()),
            "text" => Format::Text(TextFormat::new(Appearance {
                time: TimeFormat::Zoned(TimeZone::UTC),
                color: false,
                unicode: true,
                cjk: false,
                timeline: false,
                silence: false,
            })),
            other => return Err(format!("no such format: {other}").into()),
        };
        let decoder = Decoder::new(4_000_000, (0..40).map(|number| (number, format!("REASON_{number}"))));
        let clock = WallClock::new(Timestamp::now().as_nanosecond(), monotonic_ns());
        let mut pipeline = Pipeline::new(decoder, Joiner::new(1_000_000_000, 1 << 18), Filter::default(), format, clock, None);
        let events = events()?;
        pipeline.processes = Processes::from(Recorded::read(&pipeline.decoder, &events));
        pipeline.want_fin = false;
        let last_ns = events.iter().map(|event| read(event, TS)).max().ok_or("the recording is empty")?;
        Ok(Self { pipeline, events, last_ns, writes, out: Vec::new(), records: 0, bytes: 0, busy: Duration::ZERO })
    }

    /// The recording, over and over, each time later.
    fn rounds(&mut self, n: u64) {
        for _ in 0..n {
            let begun_ns = thread_cpu_ns();
            for event in &self.events {
                self.pipeline.feed(event);
            }
            self.pipeline.tick(Some(self.last_ns + ROUND_NS / 2));
            self.out.clear();
            if self.writes {
                let before = self.pipeline.printed;
                let _ = self.pipeline.write(&mut self.out, None);
                self.records += self.pipeline.printed - before;
            } else {
                for record in self.pipeline.ready.drain(..) {
                    let halves = match record {
                        Record::Teardown(one) => [Some(one), None],
                        Record::Pair(one, other) => [Some(one), Some(other)],
                        Record::Late(_) => [None, None],
                    };
                    for teardown in halves.into_iter().flatten() {
                        self.records += 1;
                        self.pipeline.joiner.spare_teardowns.give(teardown);
                    }
                }
            }
            self.busy += Duration::from_nanos(thread_cpu_ns() - begun_ns);
            self.bytes += self.out.len() as u64;
            for event in &mut self.events {
                later(event);
            }
            self.last_ns += ROUND_NS;
        }
    }
}

/// Where times stand in an event.
const TS: usize = offset_of!(Header, ts_ns);
const TIMES_OF_END: [usize; 4] = [
    offset_of!(EndEvent, id) + offset_of!(SockId, born_ns),
    offset_of!(EndEvent, opened_ns),
    offset_of!(EndEvent, first_fin_ns),
    offset_of!(EndEvent, second_fin_ns),
];
const LAST_TX: usize = offset_of!(EndEvent, sizes) + offset_of!(Sizes, first_tx_us);
const BORN: usize = offset_of!(TaskEvent, id) + offset_of!(SockId, born_ns);

/// Moves an event on to the next round: 0 is no time.
fn later(event: &mut [u8]) {
    let kind = u16::from_ne_bytes([event[0], event[1]]);
    let mut add = |at: usize, n: u64| {
        let before = read(event, at);
        if before != 0 {
            event[at..at + 8].copy_from_slice(&(before + n).to_ne_bytes());
        }
    };
    add(TS, ROUND_NS);
    match kind {
        kind::END => {
            TIMES_OF_END.into_iter().for_each(|at| add(at, ROUND_NS));
            add(LAST_TX, ROUND_NS / 1_000);
        }
        kind::OBSERVED | kind::RESET_SENT | kind::CLOSED | kind::RELEASED => add(BORN, ROUND_NS),
        _ => {}
    }
}

fn read(event: &[u8], at: usize) -> u64 {
    event[at..at + 8].try_into().map_or(0, u64::from_ne_bytes)
}

/// The recorded processes by their names; nothing is translated.
#[derive(Debug)]
struct Recorded(HashMap<u32, Comm>);

impl Recorded {
    fn read(decoder: &Decoder, events: &[Vec<u8>]) -> Self {
        let tasks = |event: &Vec<u8>| match decoder.decode(event, &mut Spare::default()) {
            Ok(Event::End(end)) => vec![end.owner, end.closer],
            Ok(Event::After(after)) => vec![after.task],
            _ => Vec::new(),
        };
        Self(events.iter().flat_map(tasks).flatten().map(|task| (task.tgid, task.process_comm)).collect())
    }
}

impl ProcessSource for Recorded {
    fn process(&mut self, tgid: u32) -> Option<ProcessInfo> {
        let comm = self.0.get(&tgid)?.text().into_owned();
        let place = Place { unit: Some("nginx.service".to_owned()), ..Place::default() };
        let identity = Identity { exe: Some("/usr/sbin/nginx".to_owned()), uid: Some(0), user: None, ns_tgid: None, place };
        let cmdline = "nginx: worker process".to_owned();
        Some(ProcessInfo { comm, cmdline, parent: 1, started: 0, identity: Arc::new(identity) })
    }

    fn holder(&mut self, _: u64) -> Option<u32> {
        None
    }

    fn after(&mut self, _: u32) -> Vec<u32> {
        Vec::new()
    }

    fn netns(&mut self, _: u32) -> Option<u32> {
        None
    }

    fn translation(&mut self, _: &Connection) -> Translation {
        Translation { quiet_ns: u64::MAX, ..Translation::default() }
    }
}

fn events() -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut rest = EVENTS;
    let mut events = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (event, tail) = tail.split_at_checked(u32::from_ne_bytes(*length) as usize).ok_or("the recording is cut")?;
        events.push(event.to_owned());
        rest = tail;
    }
    Ok(events)
}
