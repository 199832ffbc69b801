//! `rsttrace replay`: what was recorded or saved, shown as if it happened now.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    num::NonZeroU32,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use foldhash::HashMap;
use jiff::Timestamp;

use crate::{
    config::Look,
    exit::{FAILED, FOUND},
    filter::{Condition, Filter, Lineage, ProcessInfo},
    fold::Fold,
    input::{
        Account, Source, Told, Totals,
        json::{Saved, Start},
    },
    model::{Judged, Party},
    outlet::{Ends, Format, Outlet, People, Story},
    output::{WallClock, escape::is_harmless_text, json, text::TextFormat},
    status,
    stdout::Stdout,
};

/// Which files, which of their records, and how to show them.
#[derive(Debug)]
pub struct Request {
    /// `-`: standard input.
    pub files: Vec<PathBuf>,
    pub filter: Filter,
    /// The filters as they were given.
    pub filter_words: Vec<String>,
    pub json: bool,
    /// The table only.
    pub summary: bool,
    pub rate_limit: Option<NonZeroU32>,
    pub look: Look,
    pub fail_on: Vec<Condition>,
    pub quiet: bool,
    pub count: Option<u64>,
}

const SECOND_NS: u64 = 1_000_000_000;

/// Runs it.
///
/// # Errors
/// When a file cannot be opened or read, or stdout not be written.
pub fn run(request: Request, columns: Option<usize>) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::with_capacity(64 * 1024, Stdout::new(Default::default(), None, || {}));
    let mut sources = request.files.iter().map(|path| Source::open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let quiet = request.quiet;
    let mut replay = Replay::new(request, columns);
    let read = replay.read(&mut sources, &mut out);
    replay.sum_up();
    let written = read.and_then(|()| replay.finish(&mut out)).and_then(|()| out.flush());
    let _ = out.into_parts();
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot show the records")?,
    }
    let mut text = Vec::new();
    if !quiet && replay.outlet.summary.write(&mut text).is_ok() {
        status::say(String::from_utf8_lossy(&text).trim_end());
    }
    // What is missing weighs more than what was found.
    let faulty = sources.iter_mut().filter(|source| source.sum_up()).count() > 0;
    Ok(match (faulty, replay.outlet.failed) {
        (true, _) => FAILED.into(),
        (false, true) => FOUND.into(),
        (false, false) => ExitCode::SUCCESS,
    })
}

struct Replay {
    outlet: Outlet,
    columns: Option<usize>,
    filter_words: Vec<String>,
    /// Everything is shown, and as JSON just as it was.
    is_verbatim: bool,
    look: Look,
    /// It had a time of its own, or it is not known yet.
    started: Option<Timestamp>,
    /// A socket whose other end, of this host too, may be the next record: both are one line of text.
    first: Option<End>,
    account: Account,
    people: Recorded,
}

/// One end of a connection, and the line that tells of it.
type End = (Vec<u8>, Box<Judged>);

impl Replay {
    fn new(request: Request, columns: Option<usize>) -> Self {
        let Request { files: _, filter, filter_words, json, summary, rate_limit, look, fail_on, quiet: _, count } = request;
        let is_verbatim = filter_words.is_empty() && rate_limit.is_none() && count.is_none();
        let format = Format::new(json, summary, TextFormat::new(look.on_stdout(Timestamp::UNIX_EPOCH)));
        // The times of records are dates already.
        let mut outlet = Outlet::new(filter, format, WallClock::new(0, 0), count);
        outlet.fold = rate_limit.map(Fold::new);
        outlet.fail_on = fail_on;
        outlet.summary.filters = !filter_words.is_empty();
        Self {
            outlet,
            columns,
            filter_words,
            is_verbatim,
            look,
            started: None,
            first: None,
            account: Account::default(),
            people: Recorded::default(),
        }
    }

    fn read(&mut self, sources: &mut [Source], out: &mut impl Write) -> io::Result<()> {
        for source in sources {
            while let Some(told) = source.next()? {
                if self.outlet.done() {
                    break;
                }
                self.tell(*told, out)?;
            }
            // The next one may be another host's, with the same numbers.
            self.people.namespaces.clear();
        }
        self.tell_first(out)
    }

    fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.outlet.tick(out, self.columns, u64::MAX)?;
        if !self.is_verbatim && self.is_json() {
            json::write_summary(out, &self.outlet.summary)?;
        }
        self.outlet.tell_table(out, self.columns)
    }

    fn is_json(&self) -> bool {
        matches!(self.outlet.format, Format::Json(_))
    }

    fn tell(&mut self, told: Told, out: &mut impl Write) -> io::Result<()> {
        let at_ns = told.saved.at_ns();
        if let Saved::Start(start) = &told.saved
            && self.account.goes_on(start)
        {
            // It has been shown.
            return Ok(());
        }
        self.account.add(&told.saved);
        let Told { line, saved } = told;
        match saved {
            Saved::Teardown(judged) => return self.tell_end((line, judged), out),
            // The other end would have been the next.
            _ => self.tell_first(out)?,
        }
        at_ns.map_or(Ok(()), |at_ns| self.advance(at_ns, out))?;
        match saved {
            Saved::Late(late, _) if self.is_json() => {
                if self.outlet.chooses_late(&late, &mut self.people) {
                    write_line(out, &line)
                } else {
                    Ok(())
                }
            }
            Saved::Late(late, log) => self.outlet.tell(out, self.columns, Story::Late(late, log), &mut self.people),
            Saved::Start(start) => self.tell_start(&line, &start, out),
            Saved::Teardown(_) | Saved::Summary(_) | Saved::Folded(_) | Saved::Kept(_) | Saved::Other => self.tell_other(&line, out),
        }
    }

    fn tell_start(&mut self, line: &[u8], start: &Start, out: &mut impl Write) -> io::Result<()> {
        self.begin(start.time);
        self.outlet.summary.filters |= !start.filters.is_empty();
        if !self.is_json() || self.is_verbatim {
            return self.tell_other(line, out);
        }
        let mut value: serde_json::Value = serde_json::from_slice(line)?;
        value["filters"] = start.filters.iter().chain(&self.filter_words).cloned().collect();
        json::line(out, &value)
    }

    /// What has no record's form is shown where all is.
    fn tell_other(&mut self, line: &[u8], out: &mut impl Write) -> io::Result<()> {
        if self.is_json() && self.is_verbatim { write_line(out, line) } else { Ok(()) }
    }

    /// Both ends of a connection within one host stand one behind the other.
    fn tell_end(&mut self, end: End, out: &mut impl Write) -> io::Result<()> {
        match self.first.take() {
            Some(first) if are_partners(&first.1, &end.1) => self.tell_ends([first, end], out),
            first => {
                self.first = Some(end);
                first.map_or(Ok(()), |first| self.tell_ends([first], out))
            }
        }
    }

    fn tell_first(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.first.take().map_or(Ok(()), |first| self.tell_ends([first], out))
    }

    /// It is so late now.
    fn advance(&mut self, at_ns: u64, out: &mut impl Write) -> io::Result<()> {
        self.begin(WallClock::new(0, 0).at(at_ns));
        // Another file may be of the same hours.
        let goes_back = at_ns.saturating_add(SECOND_NS) < self.outlet.now_ns;
        self.outlet.now_ns = if goes_back { at_ns } else { self.outlet.now_ns.max(at_ns) };
        self.outlet.tick(out, self.columns, if goes_back { u64::MAX } else { self.outlet.now_ns })?;
        Ok(())
    }

    /// What is told together.
    fn tell_ends<const N: usize>(&mut self, ends: [End; N], out: &mut impl Write) -> io::Result<()> {
        ends.iter().map(|(_, judged)| judged.teardown.at_ns).max().map_or(Ok(()), |at_ns| self.advance(at_ns, out))?;
        if !self.is_json() {
            let ends: Ends = ends.into_iter().map(|(_, judged)| *judged).inspect(|judged| self.people.learn(judged)).collect();
            self.outlet.spent.clear();
            return self.outlet.tell(out, self.columns, Story::Ends(ends), &mut self.people);
        }
        let mut shown = Ends::new();
        for (line, judged) in ends {
            self.people.learn(&judged);
            if self.outlet.done() || !self.outlet.shows(&judged, &mut self.people) {
                continue;
            }
            if self.outlet.admits(&judged, None) {
                self.outlet.printed += 1;
                write_line(out, &line)?;
            }
            shown.push(*judged);
        }
        self.outlet.summary.count(&shown);
        Ok(())
    }

    /// Relative times begin with the run.
    fn begin(&mut self, at: Timestamp) {
        if self.started.is_none() {
            self.started = Some(at);
            self.outlet.summary.started = at;
            if let Format::Text(text) | Format::Table(_, text) = &mut self.outlet.format {
                *text = TextFormat::new(self.look.on_stdout(at));
            }
        }
        self.outlet.summary.stopped = self.outlet.summary.stopped.max(at);
    }

    /// Adds what only the ends of runs tell.
    fn sum_up(&mut self) {
        self.account.end_run();
        let Totals { told, orderly, lost, undecodable, evicted, filtered } = self.account.totals();
        let summary = &mut self.outlet.summary;
        if let Some((_, until_ns)) = self.account.span_ns {
            summary.stopped = summary.stopped.max(WallClock::new(0, 0).at(until_ns));
        }
        summary.orderly_in_kernel = orderly;
        summary.lost_records = lost.records;
        // Nothing at all tells nothing of losses either.
        summary.untold_runs = if told == 0 { lost.untold_runs.max(1) } else { lost.untold_runs };
        // It may have been filtered.
        summary.filters |= self.account.runs == 0;
        summary.undecodable = undecodable;
        summary.evicted = evicted;
        summary.filtered = summary.filtered.saturating_add(filtered);
        summary.folded = self.account.folded;
        // What is not known to this version has no name here.
        let known = |by_hook: BTreeMap<String, u64>| {
            let name = |name: &str| rsttrace_common::hook::NAMES.iter().copied().find(|known| *known == name);
            by_hook.into_iter().filter_map(|(hook, n)| Some((name(&hook)?, n))).collect()
        };
        summary.lost_by_hook = known(lost.by_hook);
        summary.skipped = known(lost.skipped);
    }
}

/// Whether they are both ends of one connection.
fn are_partners(a: &Judged, b: &Judged) -> bool {
    let of_peer = |judged: &Judged| judged.teardown.peer.and_then(|peer| peer.cookie);
    let (first, second) = (a.teardown.cookie, b.teardown.cookie);
    first.is_some() && second.is_some() && of_peer(a) == second && of_peer(b) == first
}

/// As it was, unless a terminal would do something else than show it: ours never would.
fn write_line(out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    if !is_harmless_text(line) {
        return json::line(out, &serde_json::from_str::<serde_json::Value>(&String::from_utf8_lossy(line))?);
    }
    out.write_all(line)?;
    out.write_all(b"\n")
}

/// Of all processes, those that the present records name; of network namespaces, all names of the present file.
#[derive(Debug, Default)]
struct Recorded {
    owners: Vec<(u32, Arc<ProcessInfo>)>,
    /// No new ones beyond [`MAX_NAMESPACES`].
    namespaces: HashMap<u32, Arc<str>>,
}

/// A file may have any number of them.
const MAX_NAMESPACES: usize = 4_096;

impl Recorded {
    fn learn(&mut self, judged: &Judged) {
        if let Some((inode, name)) = judged.teardown.netns.zip(judged.names.netns.as_ref())
            && (self.namespaces.len() < MAX_NAMESPACES || self.namespaces.contains_key(&inode))
        {
            self.namespaces.insert(inode, Arc::clone(name));
        }
        let Some((owner, identity)) = judged.teardown.owner.as_ref().zip(judged.names.owner.as_ref()) else { return };
        // Those of the present connection: there are two at most.
        self.owners.truncate(1);
        let comm = owner.comm.text().into_owned();
        self.owners.insert(0, (owner.tgid, Arc::new(ProcessInfo { comm, identity: Arc::clone(identity), ..ProcessInfo::default() })));
    }
}

impl Lineage for Recorded {
    fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
        self.owners.iter().find(|(owner, _)| *owner == tgid).map(|(_, info)| Arc::clone(info))
    }

    fn at(&mut self, party: Party, _: u64) -> Option<Arc<ProcessInfo>> {
        self.process(party.tgid)
    }

    fn netns_name(&mut self, inode: u32) -> Option<Arc<str>> {
        self.namespaces.get(&inode).cloned()
    }
}

impl People for Recorded {
    fn name(&mut self, _: &mut Judged) {}
}
