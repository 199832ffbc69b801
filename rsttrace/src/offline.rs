//! `rsttrace correlate`: saved records and saved logs, brought together as a live run would have.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::{
    applog::{Format, Line, LineSplitter, LogFormat, Parsed},
    config::Look,
    correlate::{Book, Correlator, Facts, LineClock, Origin, Patience, Window},
    exit::FAILED,
    input::{self, Told, json::Saved},
    model::{Finding, LogLine},
    output::{
        WallClock,
        escape::for_terminal,
        json,
        summary::{self, LogCounts},
        text::TextFormat,
    },
    status,
    stdout::Stdout,
    units::{counted, grouped},
};

/// What is to be brought together, and how to show it.
#[derive(Debug)]
pub struct Request {
    /// `-`: standard input.
    pub events: PathBuf,
    pub error_logs: Vec<PathBuf>,
    pub access_logs: Vec<PathBuf>,
    pub format: Format,
    /// Of logs whose lines name none.
    pub zone: TimeZone,
    pub show_unmatched: bool,
    /// Also ends that were in order and of which the log says nothing.
    pub all: bool,
    pub json: bool,
    pub look: Look,
}

/// A stamp of whole seconds leaves records of about three seconds that it may mean.
/// Records stand in the order in which they were told, which is not that of their times.
const PATIENCE: Patience =
    Patience { record_ns: 3_000_000_000, lag_ns: 2_000_000_000, entangled_ns: 12_000_000_000, line_ns: 20_000_000_000 };
/// How often records and lines are settled, on their own clock.
const TURN_NS: u64 = 100_000_000;
/// And at the latest after so many of them: that clock may stand still.
const TURN_ITEMS: usize = 4_096;
/// Bytes of records that wait; beyond, all are told as they stand.
const MAX_HELD_BYTES: usize = 128 << 20;
const CHUNK: usize = 256 << 10;
/// A log in more pieces is taken for several.
const MAX_PIECES: usize = 1_000;

/// Runs it.
///
/// # Errors
/// When a file cannot be opened or read, or stdout not be written.
pub fn run(request: &Request, columns: Option<usize>) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::with_capacity(64 * 1024, Stdout::new(Default::default(), None, || {}));
    let mut sources = vec![Source::events(&request.events)?];
    for path in &request.error_logs {
        sources.push(Source::log(path, Book::Errors, request.format, sources.len())?);
    }
    for path in &request.access_logs {
        sources.push(Source::log(path, Book::Accesses, Format::NginxAccess, sources.len())?);
    }
    let mut join = Join::new(request, columns);
    let written = join.all(&mut sources, &mut out).and_then(|()| out.flush());
    let _ = out.into_parts();
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        written => written.context("cannot bring records and logs together")?,
    }
    Ok(sum_up(&sources, &join))
}

/// What was found, on stderr.
fn sum_up(sources: &[Source], join: &Join<'_>) -> ExitCode {
    let mut counts = join.counts;
    counts.of_ends = join.correlator.tally();
    let mut code = ExitCode::SUCCESS;
    for source in sources {
        let name = &source.name;
        match &source.reader {
            Reader::Events(events) => {
                if events.sum_up() {
                    code = FAILED.into();
                }
            }
            Reader::Log(_) if source.faults > 0 && source.faults == source.lines => {
                let lines = counted(source.lines, "line");
                status::say(&format!("rsttrace: {name}: {lines}, and none is understood; --log-format names other formats"));
                code = FAILED.into();
            }
            Reader::Log(_) => {
                counts.lines += source.lines;
                counts.malformed += source.faults;
            }
        }
    }
    status::say(&summary::log_words(&counts));
    code
}

/// A line that may be about a record, or a record.
enum Item {
    Record(Box<Told>),
    /// `order_ns`: its place among all that happened.
    Line {
        origin: Origin,
        line: Box<LogLine>,
        window: Window,
        order_ns: u64,
    },
}

struct Join<'a> {
    request: &'a Request,
    clock: LineClock,
    correlator: Correlator<Box<Told>>,
    text: Option<TextFormat>,
    columns: Option<usize>,
    /// When records and lines were last settled, and how many have come since.
    turn_ns: u64,
    untold: usize,
    /// Of the lines of records that wait.
    held_bytes: usize,
    /// Where lines came from, one after the other.
    files: [Vec<usize>; Book::ALL.len()],
    take_turns: [bool; Book::ALL.len()],
    counts: LogCounts,
}

impl<'a> Join<'a> {
    fn new(request: &'a Request, columns: Option<usize>) -> Self {
        Self {
            request,
            clock: LineClock::Saved(request.zone.clone()),
            correlator: Correlator::new(PATIENCE),
            text: None,
            columns,
            turn_ns: 0,
            untold: 0,
            held_bytes: 0,
            files: Default::default(),
            take_turns: Default::default(),
            counts: LogCounts::default(),
        }
    }

    /// Takes what is earliest, as if all had come at its time.
    fn all(&mut self, sources: &mut [Source], out: &mut impl Write) -> io::Result<()> {
        loop {
            for source in &mut *sources {
                source.fill(&self.clock)?;
            }
            let earliest = sources.iter_mut().filter(|source| source.next.is_some()).min_by_key(|source| source.next_ns());
            let Some(source) = earliest else { break };
            let now_ns = source.next_ns();
            if let Some(item) = source.next.take() {
                self.take(now_ns, item, out)?;
            }
        }
        self.settle(u64::MAX, out)
    }

    fn take(&mut self, now_ns: u64, item: Item, out: &mut impl Write) -> io::Result<()> {
        match item {
            Item::Record(told) => {
                let facts = match &told.saved {
                    Saved::Teardown(judged) => vec![Facts::of(judged)],
                    Saved::Late(late, _) => vec![Facts::of_late(late)],
                    _ => Vec::new(),
                };
                self.held_bytes += told.line.len();
                self.correlator.push_record(now_ns, facts, told);
            }
            Item::Line { origin, line, window, .. } => {
                self.notice_turns(origin);
                self.correlator.push_line(now_ns, origin, *line, window);
            }
        }
        self.untold += 1;
        if self.held_bytes > MAX_HELD_BYTES {
            return self.settle(u64::MAX, out);
        }
        if now_ns >= self.turn_ns.saturating_add(TURN_NS) || self.untold >= TURN_ITEMS {
            self.turn_ns = now_ns;
            self.settle(now_ns, out)?;
        }
        Ok(())
    }

    /// Files that take turns are different logs, and the order of their lines is not known within a
    /// second; rotated pieces of one log follow each other.
    fn notice_turns(&mut self, origin: Origin) {
        let files = &mut self.files[origin.book as usize];
        if files.last() != Some(&origin.file) {
            self.take_turns[origin.book as usize] |= files.contains(&origin.file) || files.len() >= MAX_PIECES;
            files.push(origin.file);
            files.truncate(MAX_PIECES);
            self.correlator.set_pieces(origin.book, !self.take_turns[origin.book as usize]);
        }
    }

    /// Relative times begin with the first record.
    fn text_from(&mut self, at_ns: u64) -> &mut TextFormat {
        let look = self.request.look;
        self.text.get_or_insert_with(|| TextFormat::new(look.on_stdout(WallClock::new(0, 0).at(at_ns))))
    }

    fn settle(&mut self, now_ns: u64, out: &mut impl Write) -> io::Result<()> {
        self.untold = 0;
        let mut settled = Vec::new();
        self.correlator.tick(now_ns, &mut |told, findings| settled.push((told, findings.into_iter().next().unwrap_or_default())));
        for (told, finding) in settled {
            self.held_bytes -= told.line.len();
            self.write(*told, finding, out)?;
        }
        let columns = self.columns;
        for line in self.correlator.take_unmatched() {
            match (self.request.show_unmatched, self.request.json) {
                (false, _) => {}
                (true, true) => json::write_unmatched(out, &line)?,
                (true, false) => self.text_from(0).write_unmatched(out, &line, columns)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, mut told: Told, found: Finding, out: &mut impl Write) -> io::Result<()> {
        let before = match &mut told.saved {
            Saved::Teardown(judged) => std::mem::take(&mut judged.log),
            Saved::Late(_, log) => std::mem::take(log),
            _ => Finding::Nothing,
        };
        let (finding, is_new) = match (before, found) {
            // It was known better.
            (before @ (Finding::About(_) | Finding::Ambiguous(_)), Finding::Nothing) => (before, false),
            (before @ Finding::About(_), Finding::Ambiguous(_)) => (before, false),
            (_, found) => (found, true),
        };
        if let Saved::Teardown(judged) = &mut told.saved {
            judged.log = finding.clone();
            if judged.is_merely_orderly() && !self.request.all && !self.request.json {
                return Ok(());
            }
            self.counts.errors_without_line += u64::from(judged.teardown.observer.is_some() && finding == Finding::Nothing);
        }
        if self.request.json {
            // What it had before stays, but for what is known better now.
            let mut value: Value = serde_json::from_slice(&told.line)?;
            if is_new && told.saved.at_ns().is_some() {
                value["log"] = serde_json::to_value(json::certain(&finding))?;
                value["log_candidates"] = json::candidates(&finding).into();
            }
            return json::line(out, &value);
        }
        let clock = WallClock::new(0, 0);
        match told.saved {
            Saved::Teardown(judged) => {
                let columns = self.columns;
                self.text_from(judged.teardown.at_ns).write(out, &judged, None, &clock, columns)
            }
            Saved::Late(late, _) => {
                let columns = self.columns;
                self.text_from(late.at_ns).write_late(out, &late, &finding, &clock, columns)
            }
            _ => Ok(()),
        }
    }
}

/// A file, and what it gives next.
struct Source {
    name: String,
    reader: Reader,
    next: Option<Item>,
    last_ns: u64,
    lines: u64,
    faults: u64,
}

enum Reader {
    Events(input::Source),
    Log(Box<Log>),
}

/// A log, read in pieces.
struct Log {
    file: Box<dyn Read>,
    splitter: LineSplitter,
    buffer: Vec<u8>,
    ended: bool,
    origin: Origin,
    format: Box<dyn LogFormat>,
    /// What was read and not yet taken, in reverse.
    items: Vec<Item>,
}

impl Source {
    fn events(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::new(path, Reader::Events(input::Source::open(path)?)))
    }

    fn log(path: &Path, book: Book, format: Format, file: usize) -> anyhow::Result<Self> {
        let origin = Origin { book, file };
        let file: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        };
        let (splitter, buffer, items) = (LineSplitter::new(), vec![0; CHUNK], Vec::new());
        Ok(Self::new(path, Reader::Log(Box::new(Log { file, splitter, buffer, ended: false, origin, format: format.parser(), items }))))
    }

    fn new(path: &Path, reader: Reader) -> Self {
        Self { name: for_terminal(&path.to_string_lossy()).into_owned(), reader, next: None, last_ns: 0, lines: 0, faults: 0 }
    }

    /// When it happened. What stands later in a file is not earlier, however it is stamped.
    fn next_ns(&self) -> u64 {
        let own = match &self.next {
            Some(Item::Record(told)) => told.saved.at_ns().unwrap_or(0),
            Some(Item::Line { order_ns, .. }) => *order_ns,
            None => 0,
        };
        own.max(self.last_ns)
    }

    /// Makes the next item ready, if there is one.
    fn fill(&mut self, clock: &LineClock) -> io::Result<()> {
        if self.next.is_none() {
            self.next = self.read(clock)?;
            self.last_ns = self.next_ns();
        }
        Ok(())
    }

    fn read(&mut self, clock: &LineClock) -> io::Result<Option<Item>> {
        let Self { name, reader, lines, faults, .. } = self;
        match reader {
            Reader::Events(events) => Ok(events.next()?.map(Item::Record)),
            Reader::Log(log) => loop {
                if log.items.is_empty() && !log.ended {
                    let read = log.read(clock, |number, why| {
                        *lines += 1;
                        let Some(why) = why else { return };
                        *faults += 1;
                        if *faults <= input::MAX_TOLD {
                            status::say(&format!("rsttrace: {name}:{number}: {}", for_terminal(&why)));
                        }
                    });
                    read.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
                } else {
                    return Ok(log.items.pop());
                }
            },
        }
    }
}

impl Log {
    /// Reads on. `each`: what is told of each line: its number, and what is wrong with it.
    fn read(&mut self, clock: &LineClock, mut each: impl FnMut(u64, Option<String>)) -> io::Result<()> {
        let n = match self.file.read(&mut self.buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            read => read?,
        };
        let Self { splitter, buffer, items, origin, format, .. } = self;
        let mut take = |line: Line<'_>| match line {
            Line::TooLong { number, length } => each(number, Some(format!("{} bytes are too many for one line", grouped(length)))),
            Line::Whole { number, bytes } => match format.parse(bytes) {
                Parsed::About(about) => {
                    let window = clock.window(&about.time, None, 0);
                    items.push(Item::Line { origin: *origin, line: about, window, order_ns: window.from_ns });
                    each(number, None);
                }
                Parsed::Other => each(number, None),
                Parsed::Malformed => each(number, Some("is not understood".to_owned())),
            },
        };
        if n == 0 {
            self.ended = true;
            splitter.finish(&mut take);
        } else {
            splitter.push(&buffer[..n], &mut take);
        }
        self.items.reverse();
        // A line is not later than the one behind it, whatever it says: else one with a wrong stamp would
        // take all that follow with it.
        let mut next_ns = u64::MAX;
        for item in &mut self.items {
            if let Item::Line { order_ns, .. } = item {
                next_ns = next_ns.min(*order_ns);
                *order_ns = next_ns;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{ColorChoice, TimeChoice},
        input::json::read,
    };

    const LINE: &[u8] = include_bytes!("../tests/corpus/record.json");
    /// Of the correlator, in records.
    const MAX_HELD: usize = 16_384;

    fn request() -> Request {
        Request {
            events: "-".into(),
            error_logs: Vec::new(),
            access_logs: Vec::new(),
            format: Format::NginxAccess,
            zone: TimeZone::UTC,
            show_unmatched: false,
            all: true,
            json: false,
            look: Look { time: TimeChoice::Utc, color: ColorChoice::Never, ascii: true, timeline: false, silence: false },
        }
    }

    /// A record of so many bytes.
    fn record(bytes: usize) -> Item {
        let mut line = LINE.trim_ascii_end().to_vec();
        line.resize(bytes.max(line.len()), b' ');
        Item::Record(Box::new(Told { saved: read(&line).unwrap(), line }))
    }

    /// Takes records until one is told; the bytes that waited then.
    fn held(bytes: usize) -> usize {
        let request = request();
        let mut join = Join::new(&request, None);
        let mut out = Vec::new();
        // The clock goes far ahead, and stays there.
        let at_ns = 1 << 62;
        join.take(at_ns, record(bytes), &mut out).unwrap();
        let mut most = 0;
        while out.is_empty() {
            join.take(at_ns, record(bytes), &mut out).unwrap();
            most = most.max(join.held_bytes);
        }
        assert!(join.held_bytes <= most);
        most
    }

    #[test]
    fn records_of_one_time_are_not_all_held() {
        assert!(held(0) <= (MAX_HELD + TURN_ITEMS) * LINE.len());
        assert!(held(1 << 20) <= MAX_HELD_BYTES);
    }
}
