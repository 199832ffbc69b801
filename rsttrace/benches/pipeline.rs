//! Recorded events through decode, join, verdict and output, without a kernel: records per second on one core and
//! allocations per record.
//!
//!     cargo bench --bench pipeline                    # a table
//!     cargo bench --bench pipeline -- --json          # a line of JSON for each format
//!     cargo bench --bench pipeline -- --once json     # a fixed amount of work, to count instructions of
//!     cargo bench --bench pipeline -- --record FILE   # as root: records the events anew

use std::{
    alloc::{GlobalAlloc, Layout, System},
    error::Error,
    fs::File,
    hint::black_box,
    io::{Read, Write},
    mem::offset_of,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use jiff::{Timestamp, tz::TimeZone};
use rsttrace::{
    clock::monotonic_ns,
    decode::Decoder,
    enrich::{
        ProcessSource, Processes,
        nat::{Connection, Translation},
    },
    filter::{Filter, ProcessInfo},
    join::Joiner,
    model::{Identity, Place, Record},
    output::{
        WallClock,
        text::{Appearance, TextFormat, TimeFormat},
    },
    pipeline::{Format, Pipeline},
    probe::{Options, Probe},
};
use rsttrace_common::{EndEvent, Header, Sizes, SockId, TaskEvent, kind};

/// Connections over loopback that their client aborts: each is two records, of 7 events at least.
const CONNECTIONS: usize = 64;
/// The recording, each event behind its length.
static EVENTS: &[u8] = include_bytes!("events.gz");
/// Rounds for `--once`, and before measuring.
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
        ["--record", path] => return record(path),
        ["--once", format] => {
            let mut bench = Bench::new(format)?;
            bench.rounds(ROUNDS);
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
    /// Time spent in the pipeline.
    busy: Duration,
}

impl Bench {
    fn new(format: &str) -> Result<Self, Box<dyn Error>> {
        let writes = format != "none";
        let format = match format {
            "json" | "none" => Format::Json,
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
        let decoder = Decoder::new(4_000_000, Vec::new());
        let clock = WallClock::new(Timestamp::now().as_nanosecond(), monotonic_ns());
        let mut pipeline = Pipeline::new(decoder, Joiner::new(1_000_000_000, 1 << 18), Filter::default(), format, clock, None);
        pipeline.processes = Processes::from(OneProcess);
        pipeline.want_fin = false;
        let events = events()?;
        let last_ns = events.iter().map(|event| read(event, TS)).max().ok_or("the recording is empty")?;
        Ok(Self { pipeline, events, last_ns, writes, out: Vec::new(), records: 0, bytes: 0, busy: Duration::ZERO })
    }

    /// The recording, over and over, each time later.
    fn rounds(&mut self, n: u64) {
        for _ in 0..n {
            let begun = Instant::now();
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
                self.records += self.pipeline.ready.iter().map(sockets).sum::<u64>();
                black_box(&self.pipeline.ready);
                self.pipeline.ready.clear();
            }
            self.busy += begun.elapsed();
            self.bytes += self.out.len() as u64;
            for event in &mut self.events {
                later(event);
            }
            self.last_ns += ROUND_NS;
        }
    }
}

/// How many sockets a record is about.
fn sockets(record: &Record) -> u64 {
    match record {
        Record::Pair(_) => 2,
        Record::Teardown(_) | Record::Late(_) => 1,
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

/// Everybody is the same process, and nothing is translated.
#[derive(Debug)]
struct OneProcess;

impl ProcessSource for OneProcess {
    fn process(&mut self, _: u32) -> Option<ProcessInfo> {
        let place = Place { unit: Some("nginx.service".to_owned()), ..Place::default() };
        let identity = Identity { exe: Some("/usr/sbin/nginx".to_owned()), uid: Some(0), user: None, ns_tgid: None, place };
        let cmdline = "nginx: worker process".to_owned();
        Some(ProcessInfo { comm: "pipeline".to_owned(), cmdline, parent: 1, started: 0, identity: Arc::new(identity) })
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
    let mut bytes = Vec::new();
    GzDecoder::new(EVENTS).read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    let mut events = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (event, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("the recording is cut")?;
        events.push(event.to_owned());
        rest = tail;
    }
    Ok(events)
}

/// Makes the connections, under the real hooks, and keeps every event of them.
fn record(path: &str) -> Result<(), Box<dyn Error>> {
    let mut probe = Probe::start_naming_us(&Options {
        want_fin: false,
        buffer_bytes: 8 << 20,
        max_sockets: 1 << 18,
        without: Vec::new(),
        syscall_hooks: false,
        kernel_log: false,
        http: None,
    })?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let client = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(server)?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
            stream.read_exact(&mut [0; 100])?;
            abort(stream)?;
        }
        Ok(())
    });
    for _ in 0..CONNECTIONS {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 64];
        let _ = stream.read(&mut request)?;
        stream.write_all(&[b'x'; 100])?;
        // What the client's RST leaves.
        let _ = stream.read(&mut request);
    }
    client.join().map_err(|_| "the client panicked")??;
    let mut out = GzEncoder::new(File::create(path)?, Compression::best());
    let mut events = 0;
    while let Some(event) = probe.next_event() {
        out.write_all(&u32::try_from(event.len())?.to_le_bytes())?;
        out.write_all(&event)?;
        events += 1;
    }
    out.finish()?;
    println!("{events} events of {CONNECTIONS} connections in {path}");
    Ok(())
}

/// Closes with a RST.
fn abort(stream: TcpStream) -> std::io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: a valid descriptor, and a value of the size that is given.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size_of_val(&linger) as u32)
    };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
