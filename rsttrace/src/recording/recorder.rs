//! `--record` and `--keep`: lines into blocks, and blocks into a file or into memory.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    mem,
    rc::Rc,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    format::{self, BLOCK},
    shelf::Shelf,
};
use crate::{
    clock::monotonic_ns,
    filter::Condition,
    model::Judged,
    outlet::Sink,
    output::json,
    units::{counted, duration, grouped, size},
};

/// How long a line may wait for the rest of its block: so much is missing after a crash.
const FLUSH_NS: u64 = 1_000_000_000;
/// What was to be written from memory and could not be is tried again after so long.
const RETRY_NS: u64 = 5_000_000_000;

/// When a file is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub bytes: Option<u64>,
    pub time: Option<Duration>,
}

/// What is kept in memory instead of being written.
#[derive(Clone, Debug)]
pub struct Keep {
    pub time: Duration,
    /// Compressed.
    pub bytes: u64,
    /// What makes it be written.
    pub triggers: Vec<Condition>,
}

impl Keep {
    fn window_ns(&self) -> u64 {
        u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Note(String),
    Warning(String),
}

/// A block in memory.
#[derive(Debug)]
struct Kept {
    last_ns: u64,
    records: u64,
    block: Vec<u8>,
}

/// Lines that are not in a block yet.
#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    records: u64,
    since_ns: Option<u64>,
}

/// Takes lines, and writes them.
#[derive(Debug)]
pub struct Recorder {
    /// As the user gave it, for messages.
    name: String,
    shelf: Box<dyn Shelf>,
    file: File,
    limits: Limits,
    /// In the present file.
    written: u64,
    /// When this run's first block came into it.
    begun_ns: Option<u64>,
    /// Bytes of the next block that are in it already: there was room for no more.
    torn: usize,
    pending: Pending,
    keep: Option<Keep>,
    kept: VecDeque<Kept>,
    kept_bytes: u64,
    /// Some was dropped because of its size since the last time it was written.
    is_short: bool,
    /// Of the run, and in other words of each file that goes on with it.
    first_line: Vec<u8>,
    /// A block that comes before the next one: such a line.
    prefix: Vec<u8>,
    /// All up to here is in the file, or was let go.
    told_ns: u64,
    told_until: Timestamp,
    /// What is being written was kept since then.
    kept_since_ns: Option<u64>,
    /// What is kept is to be written then.
    dump_ns: Option<u64>,
    /// Records that could not be written.
    pub lost: u64,
    /// So it was the last time: what is kept is still to be written.
    is_failing: bool,
    messages: Vec<Message>,
}

impl Recorder {
    /// `written`: what the file has already.
    pub fn new(name: String, shelf: Box<dyn Shelf>, file: File, written: u64, limits: Limits, keep: Option<Keep>) -> Self {
        Self {
            name,
            shelf,
            file,
            limits,
            written,
            begun_ns: None,
            torn: 0,
            pending: Pending::default(),
            keep,
            kept: VecDeque::new(),
            kept_bytes: 0,
            is_short: false,
            first_line: Vec::new(),
            prefix: Vec::new(),
            told_ns: 0,
            told_until: Timestamp::MIN,
            kept_since_ns: None,
            dump_ns: None,
            lost: 0,
            is_failing: false,
            messages: Vec::new(),
        }
    }

    /// What is to be said since it was asked last.
    pub fn take_messages(&mut self) -> Vec<Message> {
        mem::take(&mut self.messages)
    }

    fn take(&mut self, line: &[u8], judged: Option<&Judged>, now_ns: u64) {
        if self.first_line.is_empty() {
            self.first_line = line.to_vec();
            self.told_ns = now_ns;
            // What is dropped must not take the beginning of the run with it.
            if self.keep.is_some() {
                match format::encode(line) {
                    Ok(block) => self.prefix = block,
                    Err(error) => self.fail(0, &error),
                }
                return;
            }
        }
        self.pending.lines.extend_from_slice(line);
        self.pending.records += u64::from(judged.is_some());
        self.pending.since_ns.get_or_insert(now_ns);
        if let (Some(keep), Some(judged)) = (&self.keep, judged)
            && keep.triggers.iter().any(|condition| condition.is_met(judged))
        {
            // With what follows at once, and what else triggers it.
            self.dump_ns.get_or_insert(now_ns.saturating_add(FLUSH_NS));
        }
        if self.pending.lines.len() >= BLOCK {
            self.flush(now_ns);
        }
    }

    fn tick(&mut self, now_ns: u64) {
        if self.pending.since_ns.is_some_and(|since| now_ns >= since.saturating_add(FLUSH_NS)) {
            self.flush(now_ns);
        }
        if self.dump_ns.is_some_and(|at| now_ns >= at) {
            self.dump(now_ns);
        }
        self.forget(now_ns);
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let flush = self.pending.since_ns.map(|since| since.saturating_add(FLUSH_NS));
        flush.into_iter().chain(self.dump_ns).chain(self.next_expiry_ns()).min()
    }

    /// When the oldest block is too old.
    fn next_expiry_ns(&self) -> Option<u64> {
        // What is still to be written stays.
        let keep = self.keep.as_ref().filter(|_| !self.is_failing)?;
        self.kept.front().map(|oldest| oldest.last_ns.saturating_add(keep.window_ns()))
    }

    /// Makes a block of what is pending.
    fn flush(&mut self, now_ns: u64) {
        let Pending { mut lines, records, since_ns } = mem::take(&mut self.pending);
        if since_ns.is_none() {
            return;
        }
        match (format::encode(&lines), &self.keep) {
            (Ok(block), None) => self.write(&block, records, now_ns),
            (Ok(block), Some(_)) => {
                self.kept_bytes += block.len() as u64;
                self.kept.push_back(Kept { last_ns: now_ns, records, block });
                self.forget(now_ns);
            }
            (Err(error), _) => self.fail(records, &error),
        }
        // The memory serves the next lines.
        lines.clear();
        self.pending.lines = lines;
    }

    /// Drops what is too old, and what is too much.
    fn forget(&mut self, now_ns: u64) {
        let Some(limit) = self.keep.as_ref().map(|keep| keep.bytes) else { return };
        loop {
            let is_too_much = self.kept_bytes > limit;
            if !is_too_much && self.next_expiry_ns().is_none_or(|expiry_ns| now_ns < expiry_ns) {
                break;
            }
            let Some(oldest) = self.kept.pop_front() else { break };
            self.give_up_torn();
            self.kept_bytes -= oldest.block.len() as u64;
            match is_too_much {
                true if self.is_failing => self.lost += oldest.records,
                true => self.is_short = true,
                false => {}
            }
        }
    }

    /// Writes what is kept in memory, and forgets it there. What cannot be written stays, and is tried again.
    pub fn dump(&mut self, now_ns: u64) {
        let Some(window_ns) = self.keep.as_ref().map(Keep::window_ns) else { return };
        self.dump_ns = None;
        self.flush(now_ns);
        self.forget(now_ns);
        let oldest_ns = self.kept.front().filter(|_| self.is_short || self.is_failing).map(|kept| kept.last_ns);
        self.kept_since_ns.get_or_insert(oldest_ns.unwrap_or(now_ns.saturating_sub(window_ns)).max(self.told_ns));
        let (mut records, mut bytes) = (0, 0);
        let written = self.write_kept(now_ns, |kept| {
            records += kept.records;
            bytes += kept.block.len() as u64;
        });
        if written.is_ok() || records > 0 {
            let window = duration(window_ns);
            let short = if mem::take(&mut self.is_short) { "; older ones found no room (--keep-size)" } else { "" };
            let what = format!("{} ({}) of the last {window}", counted(records, "record"), size(bytes));
            self.messages.push(Message::Note(format!("rsttrace: wrote {what} to {}{short}", self.name)));
        }
        if let Err(error) = written {
            self.dump_ns = Some(now_ns.saturating_add(RETRY_NS));
            self.fail(0, &error);
        }
    }

    /// `each`: what is told of a block that is in the file.
    fn write_kept(&mut self, now_ns: u64, mut each: impl FnMut(&Kept)) -> io::Result<()> {
        while let Some(kept) = self.kept.pop_front() {
            if let Err(error) = self.append(&kept.block, now_ns) {
                self.kept.push_front(kept);
                return Err(error);
            }
            self.kept_bytes -= kept.block.len() as u64;
            each(&kept);
        }
        if let Some(since_ns) = self.kept_since_ns {
            let (date, date_ns) = (Timestamp::now(), monotonic_ns());
            let date_of = |ns: u64| date - Duration::from_nanos(date_ns.saturating_sub(ns));
            // The clocks are not read at the same moment.
            let (from, to) = (date_of(since_ns).max(self.told_until), date_of(now_ns));
            let mut line = Vec::new();
            json::write_kept(&mut line, from, to)?;
            self.append(&format::encode(&line)?, now_ns)?;
            self.kept_since_ns = None;
            (self.told_ns, self.told_until) = (now_ns, to);
        }
        Ok(())
    }

    /// Whether the last minutes are in memory.
    pub fn keeps(&self) -> bool {
        self.keep.is_some()
    }

    fn write(&mut self, block: &[u8], records: u64, now_ns: u64) {
        if let Err(error) = self.append(block, now_ns) {
            self.give_up_torn();
            self.fail(records, &error);
        }
    }

    /// The next block is another one. What comes before any goes on where it stopped.
    fn give_up_torn(&mut self) {
        if self.torn > self.prefix.len() {
            self.prefix.clear();
            self.torn = 0;
        }
    }

    fn append(&mut self, block: &[u8], now_ns: u64) -> io::Result<()> {
        let age = self.begun_ns.map_or(Duration::ZERO, |begun| Duration::from_nanos(now_ns.saturating_sub(begun)));
        let is_full = self.limits.bytes.is_some_and(|limit| self.written > 0 && self.written + block.len() as u64 > limit);
        let is_old = self.limits.time.is_some_and(|limit| self.written > 0 && age >= limit);
        if (is_full || is_old) && self.torn == 0 {
            self.open(true);
        }
        let whole = [&self.prefix, block].concat();
        while self.torn < whole.len() {
            match self.file.write(&whole[self.torn..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.torn += n;
                    self.written += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.torn = 0;
        self.prefix.clear();
        self.begun_ns.get_or_insert(now_ns);
        self.is_failing = false;
        Ok(())
    }

    /// Opens the file again by its name, which may be another one now.
    pub fn reopen(&mut self, now_ns: u64) {
        // What came before belongs to the file that was there before.
        if self.keep.is_none() {
            self.flush(now_ns);
        }
        self.open(false);
    }

    fn open(&mut self, fresh: bool) {
        match self.shelf.open(fresh) {
            Ok(file) => {
                self.written = file.metadata().map_or(0, |metadata| metadata.len());
                self.file = file;
                self.torn = 0;
                // Each file tells of its run, unless that is still to come.
                if self.prefix.is_empty() {
                    let line = json::continued(&self.first_line, Timestamp::now());
                    self.prefix = line.and_then(|line| format::encode(&line).ok()).unwrap_or_default();
                }
            }
            Err(error) => {
                self.messages.push(Message::Warning(format!("{}: cannot open it anew: {error}; recording goes on where it was", self.name)))
            }
        }
        // Also where it failed: else it would be tried with every block.
        self.begun_ns = None;
        if fresh {
            self.written = 0;
        }
    }

    /// Counts what is not in the file, and says so once until it works again.
    fn fail(&mut self, records: u64, error: &io::Error) {
        self.lost += records;
        if !mem::replace(&mut self.is_failing, true) {
            let what = if self.keep.is_some() { "what is kept stays in memory, and is tried again" } else { "records are missing in it" };
            self.messages.push(Message::Warning(format!("{}: {error}: {what}", self.name)));
        }
    }

    /// Writes what is pending; what is kept in memory was not asked for, and goes.
    pub fn close(&mut self, now_ns: u64) {
        if self.dump_ns.is_some() {
            self.dump(now_ns);
            // There is no later.
            if self.dump_ns.is_some() {
                self.lost += self.kept.iter().map(|kept| kept.records).sum::<u64>();
            }
        } else if self.keep.is_none() {
            self.flush(now_ns);
        } else {
            let records = self.pending.records + self.kept.iter().map(|kept| kept.records).sum::<u64>();
            if records > 0 {
                let plural = if records == 1 { " was" } else { "s were" };
                let what = format!("{} kept record{plural} not asked for (SIGUSR2, --trigger), and not written", grouped(records));
                self.messages.push(Message::Note(format!("rsttrace: {what}")));
            }
        }
        if self.lost > 0 {
            self.messages.push(Message::Warning(format!("{}: {} records could not be written", self.name, grouped(self.lost))));
        }
    }
}

impl Sink for Rc<RefCell<Recorder>> {
    fn take(&mut self, line: &[u8], judged: Option<&Judged>, now_ns: u64) {
        self.borrow_mut().take(line, judged, now_ns);
    }

    fn tick(&mut self, now_ns: u64) {
        self.borrow_mut().tick(now_ns);
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.borrow().next_deadline_ns()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, path::PathBuf};

    use super::*;
    use crate::{
        input::{Item, Records, json},
        recording::Place,
    };

    const LINE: &str = include_str!("../../tests/corpus/record.json");
    const SECOND: u64 = 1_000_000_000;

    /// A recorder in a directory of its own.
    struct Bench {
        directory: PathBuf,
        recorder: Recorder,
        judged: Box<Judged>,
        now_ns: u64,
    }

    impl Bench {
        fn new(name: &str, limits: Limits, keep: Option<Keep>) -> Self {
            let directory = std::env::temp_dir().join(format!("rsttrace-recorder-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let place = Place::new(&directory.join("a"), 3).unwrap();
            let file = place.begin().unwrap();
            let recorder = Recorder::new("a".to_owned(), Box::new(place), file, 0, limits, keep);
            let Ok(json::Saved::Teardown(judged)) = json::read(LINE.as_bytes()) else { panic!("the corpus has a record") };
            let mut bench = Self { directory, recorder, judged, now_ns: SECOND };
            bench.recorder.take(b"{\"schema\":1,\"record\":\"the-first-line\"}\n", None, bench.now_ns);
            bench
        }

        /// So many records, all at once, a while after the last.
        fn take(&mut self, records: usize, after_ns: u64) {
            self.now_ns += after_ns;
            self.recorder.tick(self.now_ns);
            for _ in 0..records {
                self.recorder.take(format!("{}\n", LINE.trim_end()).as_bytes(), Some(&self.judged), self.now_ns);
            }
        }

        /// Records and other lines of a file.
        fn read(&self, name: &str) -> (usize, usize) {
            let mut bytes = Vec::new();
            File::open(self.directory.join(name)).unwrap().read_to_end(&mut bytes).unwrap();
            let mut records = Records::new(Box::new(io::Cursor::new(bytes))).unwrap();
            let (mut ends, mut others) = (0, 0);
            while let Some(item) = records.next().unwrap() {
                match item {
                    Item::Told(told) if told.saved.at_ns().is_some() => ends += 1,
                    Item::Told(told) if matches!(told.saved, json::Saved::Kept(_)) => {}
                    Item::Told(_) => others += 1,
                    Item::Fault(fault) => panic!("{fault:?}"),
                }
            }
            (ends, others)
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    #[test]
    fn after_a_second_a_line_is_in_the_file() {
        let mut bench = Bench::new("second", Limits::default(), None);
        bench.take(3, 0);
        assert_eq!(bench.recorder.next_deadline_ns(), Some(2 * SECOND));
        assert_eq!(bench.read("a"), (0, 0));
        bench.take(0, SECOND);
        assert_eq!(bench.read("a"), (3, 1));
        assert_eq!(bench.recorder.next_deadline_ns(), None, "at rest nothing wakes up");
        bench.take(2, SECOND);
        bench.recorder.close(bench.now_ns);
        assert_eq!(bench.read("a"), (5, 1));
    }

    #[test]
    fn a_full_file_is_followed_by_a_fresh_one() {
        let mut bench = Bench::new("size", Limits { bytes: Some(2_000), time: None }, None);
        for _ in 0..20 {
            bench.take(2, SECOND);
        }
        bench.recorder.close(bench.now_ns);
        for name in ["a", "a.1", "a.2"] {
            assert!(bench.directory.join(name).metadata().unwrap().len() <= 2_000, "{name}");
            assert!(bench.read(name).0 > 0, "{name}");
        }
        assert!(!bench.directory.join("a.3").exists());
        let mut bench = Bench::new("time", Limits { bytes: None, time: Some(Duration::from_secs(60)) }, None);
        for _ in 0..59 {
            bench.take(1, SECOND);
        }
        assert!(!bench.directory.join("a.1").exists());
        bench.take(1, 2 * SECOND);
        bench.take(1, 2 * SECOND);
        // The last one came to be written when the minute was over.
        assert_eq!(bench.read("a.1"), (58, 1));
        assert_eq!(bench.read("a"), (2, 0));
    }

    fn keep(triggers: &[&str], bytes: u64) -> Option<Keep> {
        let triggers = triggers.iter().map(|text| text.parse().unwrap()).collect();
        Some(Keep { time: Duration::from_secs(600), bytes, triggers })
    }

    #[test]
    fn what_is_kept_is_the_last_minutes() {
        let mut bench = Bench::new("keep", Limits::default(), keep(&[], 1 << 20));
        for _ in 0..1_000 {
            bench.take(1, SECOND);
        }
        assert_eq!(bench.read("a"), (0, 0), "nobody has asked for it");
        bench.recorder.dump(bench.now_ns);
        // The last one's second is not over, and the oldest block counts by its last record.
        let (records, others) = bench.read("a");
        assert!((600..=602).contains(&records) && others == 1, "{records}, {others}");
        let notes = bench.recorder.take_messages();
        assert!(
            matches!(&notes[..], [Message::Note(words)] if words.contains(&format!("wrote {records} records")) && words.contains("of the last 600 s to a")),
            "{notes:?}"
        );
        bench.take(5, SECOND);
        bench.recorder.dump(bench.now_ns);
        assert_eq!(bench.read("a"), (records + 5, 1), "once is enough");
    }

    /// What a file tells of its run besides records: first lines and spans in seconds.
    fn account(bench: &Bench, name: &str) -> (Vec<bool>, Vec<i64>) {
        let mut records = Records::open(&bench.directory.join(name)).unwrap();
        let (mut starts, mut spans) = (Vec::new(), Vec::new());
        while let Some(item) = records.next().unwrap() {
            match item {
                Item::Told(told) => match told.saved {
                    json::Saved::Start(start) => starts.push(start.continued.is_some()),
                    json::Saved::Kept(kept) => spans.push((kept.to - kept.from).get_seconds()),
                    _ => {}
                },
                Item::Fault(fault) => panic!("{fault:?}"),
            }
        }
        (starts, spans)
    }

    const START: &[u8] = br#"{"schema":1,"record":"start","time":"2026-11-26T10:00:00Z","version":"1","kernel":"6","host":"h","hooks":{},"filters":[],"continued":null}
"#;

    #[test]
    fn each_file_tells_of_its_run() {
        let limits = Limits { bytes: None, time: Some(Duration::from_secs(10)) };
        let mut bench = Bench::new("parts", limits, None);
        bench.recorder.first_line = START.to_vec();
        for _ in 0..25 {
            bench.take(1, SECOND);
        }
        bench.recorder.close(bench.now_ns);
        for name in ["a", "a.1"] {
            assert_eq!(account(&bench, name), (vec![true], vec![]), "{name}");
        }
        assert_eq!(account(&bench, "a.2"), (vec![], vec![]), "where it began, another line stands");
    }

    #[test]
    fn what_was_kept_says_since_when() {
        let mut bench = Bench::new("spans", Limits::default(), keep(&[], 1 << 20));
        bench.recorder.prefix = format::encode(START).unwrap();
        for _ in 0..1_000 {
            bench.take(1, SECOND);
        }
        bench.recorder.dump(bench.now_ns);
        bench.take(5, 30 * SECOND);
        bench.recorder.dump(bench.now_ns);
        // All that was kept, and then what came after that.
        assert_eq!(account(&bench, "a"), (vec![false], vec![600, 30]));
        bench.take(3, SECOND);
        bench.recorder.close(bench.now_ns);
        let notes = format!("{:?}", bench.recorder.take_messages());
        assert!(notes.contains("3 kept records were not asked for (SIGUSR2, --trigger), and not written"), "{notes}");
    }

    #[test]
    fn what_is_kept_takes_no_more_memory_than_it_may() {
        let mut bench = Bench::new("bytes", Limits::default(), keep(&[], 10_000));
        for _ in 0..500 {
            bench.take(1, SECOND);
            assert!(bench.recorder.kept_bytes <= 10_000);
            assert_eq!(bench.recorder.kept_bytes, bench.recorder.kept.iter().map(|kept| kept.block.len() as u64).sum::<u64>());
        }
        bench.recorder.dump(bench.now_ns);
        let said = format!("{:?}", bench.recorder.take_messages());
        assert!(said.contains("older ones found no room (--keep-size)"), "{said}");
    }

    #[test]
    fn a_trigger_writes_what_came_before_and_what_follows_at_once() {
        let mut bench = Bench::new("trigger", Limits::default(), keep(&["harm=lost"], 1 << 20));
        bench.take(7, SECOND);
        bench.take(0, 10 * SECOND);
        assert_eq!(bench.read("a"), (0, 0), "harm is only possible");
        bench.judged.verdict.harm = crate::model::Harm::Lost;
        bench.take(2, SECOND);
        bench.take(1, SECOND / 2);
        assert_eq!(bench.read("a"), (0, 0));
        bench.take(0, SECOND / 2);
        assert_eq!(bench.read("a"), (10, 1));
        bench.judged.verdict.harm = crate::model::Harm::None;
        bench.take(1, SECOND);
        bench.recorder.close(bench.now_ns);
        assert_eq!(bench.read("a"), (10, 1));
    }

    #[test]
    fn the_end_of_a_run_is_no_end_of_time() {
        let mut bench = Bench::new("end", Limits { bytes: None, time: Some(Duration::from_secs(3_600)) }, None);
        bench.take(3, SECOND);
        bench.recorder.close(bench.now_ns);
        assert!(!bench.directory.join("a.1").exists(), "an hour is not over");
        // Triggered in the last second, what came before it is written.
        let mut bench = Bench::new("last", Limits::default(), keep(&["harm=possible"], 1 << 20));
        bench.judged.verdict.harm = crate::model::Harm::None;
        for _ in 0..5 {
            bench.take(1, SECOND);
        }
        bench.judged.verdict.harm = crate::model::Harm::Possible;
        bench.take(1, SECOND);
        bench.recorder.close(bench.now_ns + 1);
        assert_eq!(bench.read("a"), (6, 1));
    }

    fn full() -> File {
        File::options().write(true).open("/dev/full").unwrap()
    }

    #[test]
    fn what_is_kept_and_cannot_be_written_is_tried_again() {
        let mut bench = Bench::new("again", Limits::default(), keep(&["harm=possible"], 1 << 20));
        let good = std::mem::replace(&mut bench.recorder.file, full());
        bench.take(2, SECOND);
        // Longer than anything is kept: what was asked for waits all the same.
        for _ in 0..200 {
            let due_ns = bench.recorder.next_deadline_ns().unwrap();
            bench.take(0, due_ns - bench.now_ns);
        }
        assert!(bench.now_ns > 700 * SECOND);
        let said = bench.recorder.take_messages();
        assert!(
            matches!(&said[..], [Message::Warning(words)] if words.contains("No space left") && words.contains("tried again")),
            "{said:?}"
        );
        bench.recorder.file = good;
        let due_ns = bench.recorder.next_deadline_ns().unwrap();
        bench.take(0, due_ns - bench.now_ns);
        assert_eq!(bench.read("a"), (2, 1));
        let said = bench.recorder.take_messages();
        assert!(matches!(&said[..], [Message::Note(words)] if words.contains("wrote 2 records")), "{said:?}");
        assert_eq!(bench.recorder.next_deadline_ns(), None);
        bench.recorder.close(bench.now_ns);
        assert_eq!((bench.recorder.lost, bench.recorder.take_messages()), (0, vec![]));
    }

    #[test]
    fn a_block_that_found_room_for_its_beginning_goes_on_there() {
        let mut bench = Bench::new("torn", Limits::default(), keep(&["harm=possible"], 1 << 20));
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4_096).unwrap();
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        bench.recorder.file = std::os::fd::OwnedFd::from(writer).into();
        // Of nothing that could be compressed.
        let random: String = (0..20_000_u64).map(|n| char::from(b'a' + (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 % 26)).collect();
        bench.recorder.take(format!("{{\"schema\":1,\"record\":\"{random}\"}}\n").as_bytes(), None, bench.now_ns);
        bench.take(2, SECOND);
        let mut recorded = Vec::new();
        while let Some(due_ns) = bench.recorder.next_deadline_ns() {
            bench.take(0, due_ns - bench.now_ns);
            assert_eq!(reader.read_to_end(&mut recorded).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        assert!(recorded.len() > 4_096, "more than there was room for at once");
        std::fs::write(bench.directory.join("b"), &recorded).unwrap();
        assert_eq!(bench.read("b"), (2, 2));
        bench.recorder.close(bench.now_ns);
        assert_eq!((bench.recorder.lost, bench.recorder.written), (0, recorded.len() as u64));
    }

    #[test]
    fn what_was_asked_for_and_never_written_is_counted() {
        let mut bench = Bench::new("never", Limits::default(), keep(&["harm=possible"], 3_000));
        bench.recorder.file = full();
        for _ in 0..10 {
            bench.take(1, 2 * SECOND);
        }
        bench.recorder.close(bench.now_ns);
        let said = format!("{:?}", bench.recorder.take_messages());
        assert!(bench.recorder.lost > bench.recorder.kept.len() as u64, "some found no room while they waited");
        assert!(said.contains("10 records could not be written"), "{said}");
    }

    #[test]
    fn what_is_too_old_goes_by_itself_and_is_not_written() {
        let mut bench = Bench::new("old", Limits::default(), keep(&[], 1 << 20));
        bench.take(1, SECOND);
        bench.take(1, 300 * SECOND);
        bench.take(0, SECOND);
        // One wakes up for each of the two blocks, and then for nothing.
        let mut left = Vec::new();
        while let Some(due_ns) = bench.recorder.next_deadline_ns() {
            bench.take(0, due_ns - bench.now_ns);
            left.push(bench.recorder.kept.len());
        }
        assert_eq!((left, bench.recorder.kept_bytes), (vec![1, 0], 0));
        bench.take(1, SECOND);
        bench.take(0, SECOND);
        // Nothing has happened meanwhile, not even that.
        bench.recorder.dump(bench.now_ns + 601 * SECOND);
        assert_eq!(bench.read("a"), (0, 1));
    }

    #[test]
    fn the_age_of_a_file_begins_with_its_first_block() {
        let limits = Limits { bytes: None, time: Some(Duration::from_secs(60)) };
        let mut bench = Bench::new("age", limits, keep(&[], 1 << 20));
        for _ in 0..200 {
            bench.take(1, SECOND);
        }
        bench.recorder.dump(bench.now_ns);
        assert_eq!(bench.read("a"), (200, 1));
        bench.take(1, 59 * SECOND);
        bench.recorder.dump(bench.now_ns);
        assert_eq!(bench.read("a"), (201, 1));
        bench.take(1, SECOND);
        bench.recorder.dump(bench.now_ns);
        assert_eq!((bench.read("a.1"), bench.read("a")), ((201, 1), (1, 0)));
    }

    #[test]
    fn a_file_that_takes_nothing_is_said_to_once() {
        let mut bench = Bench::new("full", Limits::default(), None);
        bench.recorder.file = full();
        for _ in 0..3 {
            bench.take(2, 2 * SECOND);
        }
        bench.recorder.close(bench.now_ns);
        let said = bench.recorder.take_messages();
        assert!(
            matches!(&said[..], [Message::Warning(first), Message::Warning(last)]
            if first.contains("No space left") && last.contains("6 records could not be written")),
            "{said:?}"
        );
    }
}
