//! The made ends through the real tracer: the same probe, ring and pipeline as in a run.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::{
    ends::{self, Made},
    lab::Lab,
};
use crate::{
    clock::{monotonic_ns, tick_ns},
    decode::Decoder,
    filter::Filter,
    join::Joiner,
    outlet::{Format, Outlet},
    output::{WallClock, json::JsonFormat},
    pipeline::Pipeline,
    probe::{Probe, preflight},
};

/// Name of the thread that makes the ends, as it is in the records.
pub const THREAD: &str = "rsttrace-ends";
/// All of them are made by then, or never.
const MAKING: Duration = Duration::from_secs(3);
/// A record that is not there this long after the last end was made does not come.
const JOIN: Duration = Duration::from_millis(500);
/// Events taken in one turn.
const BATCH: usize = 4_096;
/// Records kept that belong to no end that was made, as far as is known.
const RECENT: usize = 4_096;
/// How often the thread is asked for news while the ring is silent.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What was made, and what the tracer said of it.
#[derive(Debug)]
pub struct Watched {
    pub lab: Lab,
    pub made: Vec<Made>,
    /// Of the made ends, and of nothing else that may have happened on a shared loopback.
    pub records: Vec<Value>,
    pub undecodable: u64,
    pub lost: u64,
    pub took: Duration,
    /// The same moment on both clocks.
    pub wall_ns: i128,
    pub started_ns: u64,
}

impl Watched {
    /// `CLOCK_MONOTONIC` of a record, from its date.
    pub fn monotonic_ns(&self, record: &Value) -> Option<i128> {
        let date: Timestamp = record["time"].as_str()?.parse().ok()?;
        Some(date.as_nanosecond() - self.wall_ns + i128::from(self.started_ns))
    }
}

/// Makes all ends on a thread of its own, and reads what the probe reports until every record is
/// there.
///
/// # Errors
/// Where there is no loopback to make them on.
pub fn watch(probe: &mut Probe) -> io::Result<Watched> {
    let began = Instant::now();
    let process = rustix::thread::name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let numbers_are_ours = preflight::in_initial_pid_namespace();
    let (enter, entered) = channel();
    let (tell, told) = channel();
    thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        let lab = Lab::enter(process, numbers_are_ours);
        let copy = lab.as_ref().ok().cloned();
        if enter.send(lab).is_ok()
            && let Some(lab) = copy
        {
            ends::make_all(&lab, |made| {
                let _ = tell.send(made);
            });
        }
    })?;
    let lab = entered.recv_timeout(MAKING).map_err(io::Error::other)??;
    let (wall_ns, started_ns) = (Timestamp::now().as_nanosecond(), monotonic_ns());
    let filter = Filter { netns: Some(lab.netns), ..Filter::default() };
    let decoder = Decoder::new(tick_ns(), probe.reasons.clone());
    let joiner = Joiner::new(u64::try_from(JOIN.as_nanos()).unwrap_or(u64::MAX), 4_096);
    let mut pipeline =
        Pipeline::new(decoder, joiner, Outlet::new(filter, Format::Json(JsonFormat::default()), WallClock::new(wall_ns, started_ns), None));
    pipeline.numbers_are_ours = numbers_are_ours;
    let mut reader = Reader { probe, pipeline, records: Vec::new() };
    let mut made = reader.until_all_is_told(&told, began)?;
    reader.finish()?;
    made.extend(ends::too_late(&made));

    let mut records = reader.records;
    let expected: Vec<_> = made.iter().flat_map(|made| made.halves.iter().flatten()).collect();
    if lab.shared.is_some() {
        records.retain(|record| expected.iter().any(|half| half.matches(record)));
    }
    let undecodable = reader.pipeline.outlet.summary.undecodable;
    let counters = reader.probe.counters();
    let lost = counters.lost_by_hook.iter().sum();
    Ok(Watched { lab, made, records, undecodable, lost, took: began.elapsed(), wall_ns, started_ns })
}

struct Reader<'a> {
    probe: &'a mut Probe,
    pipeline: Pipeline,
    records: Vec<Value>,
}

impl Reader<'_> {
    fn until_all_is_told(&mut self, told: &Receiver<Made>, began: Instant) -> io::Result<Vec<Made>> {
        let mut made = Vec::new();
        let mut finished: Option<Instant> = None;
        loop {
            self.read()?;
            self.forget_strangers(&made);
            loop {
                match told.try_recv() {
                    Ok(end) => made.push(end),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        finished.get_or_insert_with(Instant::now);
                        break;
                    }
                }
            }
            let overdue = finished.is_some_and(|at| at.elapsed() > 2 * JOIN);
            if finished.is_some() && self.has_all(&made) || overdue || began.elapsed() > MAKING {
                return Ok(made);
            }
            self.wait()?;
        }
    }

    fn has_all(&self, made: &[Made]) -> bool {
        let mut halves = made.iter().flat_map(|made| made.halves.iter().flatten());
        halves.all(|half| self.records.iter().any(|record| half.matches(record)))
    }

    /// On a shared loopback others end connections too. Of what matches no end that was made, only
    /// the latest is kept: its end may be told in a moment.
    fn forget_strangers(&mut self, made: &[Made]) {
        let Some(old) = self.records.len().checked_sub(RECENT).filter(|old| *old > RECENT) else { return };
        let mut index = 0;
        self.records.retain(|record| {
            index += 1;
            index > old || made.iter().flat_map(|made| made.halves.iter().flatten()).any(|half| half.matches(record))
        });
    }

    /// What is in the ring now, or as much of it as one turn takes.
    fn read(&mut self) -> io::Result<()> {
        let now_ns = monotonic_ns();
        let mut taken = 0;
        while taken < BATCH
            && let Some(bytes) = self.probe.next_event()
        {
            self.pipeline.feed(&bytes);
            taken += 1;
        }
        self.pipeline.tick((taken < BATCH).then_some(now_ns));
        self.take()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.pipeline.joiner.finish(&mut self.pipeline.ready);
        self.take()
    }

    fn take(&mut self) -> io::Result<()> {
        let mut lines = Vec::new();
        self.pipeline.write(&mut lines, None)?;
        let values = serde_json::Deserializer::from_slice(&lines).into_iter::<Value>();
        self.records.extend(values.flatten());
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        // SAFETY: the ring outlives this call.
        let ring = unsafe { BorrowedFd::borrow_raw(self.probe.event_fd()) };
        match poll(&mut [PollFd::new(&ring, PollFlags::IN)], Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
