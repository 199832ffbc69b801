//! The recording of the golden tests through the pipeline, over and over, each time later: for whoever measures what a
//! record costs.

#[path = "../../tests/recording/mod.rs"]
mod recording;

use std::{
    alloc,
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
    outlet::{Format, Outlet},
    output::{
        WallClock,
        json::JsonFormat,
        text::{Appearance, TextFormat, TimeFormat},
    },
    pipeline::Pipeline,
    spare::Spare,
};
use rsttrace_common::{EndEvent, Header, Sizes, SockId, TaskEvent, kind};

/// From one round to the next, on the events' clock: everything is told by then.
const ROUND_NS: u64 = 10_000_000_000;

/// Counts what is allocated.
struct Counting;

/// So many times memory was asked for.
pub static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl alloc::GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: alloc::Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { alloc::GlobalAlloc::alloc(&alloc::System, layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: alloc::Layout) {
        // SAFETY: as the caller promises.
        unsafe { alloc::GlobalAlloc::dealloc(&alloc::System, at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: alloc::Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { alloc::GlobalAlloc::realloc(&alloc::System, at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A pipeline in its steady state.
pub struct Steady {
    pipeline: Pipeline,
    events: Vec<Vec<u8>>,
    last_ns: u64,
    writes: bool,
    out: Vec<u8>,
    pub records: u64,
    pub bytes: u64,
    /// CPU time spent in the pipeline.
    pub busy: Duration,
}

impl Steady {
    /// `json`, `text`, or `none`, which ends after the join.
    ///
    /// # Errors
    /// For other words, and for an empty recording.
    pub fn new(format: &str) -> Result<Self, Box<dyn Error>> {
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
        let mut pipeline = Pipeline::new(decoder, Joiner::new(1_000_000_000, 1 << 18), Outlet::new(Filter::default(), format, clock, None));
        let events = recording::events();
        // Later than every event: whoever was looked at once is known.
        pipeline.processes = Processes::from(Recorded::read(&pipeline.decoder, &events)).with_clock(|| u64::MAX / 2);
        pipeline.outlet.want_fin = false;
        let last_ns = events.iter().map(|event| read(event, TS)).max().ok_or("the recording is empty")?;
        Ok(Self { pipeline, events, last_ns, writes, out: Vec::new(), records: 0, bytes: 0, busy: Duration::ZERO })
    }

    /// The recording, over and over, each time later.
    pub fn rounds(&mut self, n: u64) {
        for _ in 0..n {
            let begun_ns = thread_cpu_ns();
            for event in &self.events {
                self.pipeline.feed(event);
            }
            self.pipeline.tick(Some(self.last_ns + ROUND_NS / 2));
            self.out.clear();
            if self.writes {
                let before = self.pipeline.outlet.printed;
                let _ = self.pipeline.write(&mut self.out, None);
                self.records += self.pipeline.outlet.printed - before;
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
