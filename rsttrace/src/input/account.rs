//! A whole file of records, and what it says of its run beside them.

use std::path::Path;

use jiff::Timestamp;

use super::{
    Source,
    json::{Kept, Lost, Saved, Start, Sums},
};
use crate::model::Judged;

/// What files tell of the run, or runs, that they were written by.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// As the files are called, safe for a terminal.
    pub name: String,
    /// Of the first run.
    pub start: Option<Start>,
    /// First lines of runs.
    pub runs: u64,
    /// Of all runs, nanoseconds since 1970; `None` where nothing has a time.
    pub span_ns: Option<(u64, u64)>,
    /// So long the runs took, without the gaps between them, and without what `--keep` let go.
    pub traced_ns: u64,
    pub teardowns: u64,
    pub late: u64,
    /// Ends that `--rate-limit` kept from being records.
    pub folded: u64,
    /// What could not be read.
    pub faults: u64,
    /// Of the runs that are over.
    totals: Totals,
    /// Of the present run: its time so far, and its sums.
    run_began: Option<Timestamp>,
    run_ns: Option<(u64, u64)>,
    /// Of it, what is in the file, where only parts are.
    kept_ns: Option<u64>,
    sums: Option<Box<Sums>>,
}

/// What the last lines of runs tell, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Last lines.
    pub told: u64,
    /// Orderly ends that are no records.
    pub orderly: u64,
    /// What is told of; of [`Lost::untold_runs`] nothing is known.
    pub lost: Lost,
    pub undecodable: u64,
    pub evicted: u64,
    pub filtered: u64,
}

impl Totals {
    /// `None`: a run, or a part of one, whose last line is not there.
    fn add(&mut self, sums: Option<&Sums>) {
        let Some(Sums { orderly, lost, undecodable, evicted, filtered, .. }) = sums else {
            self.lost.untold_runs += 1;
            return;
        };
        self.told += 1;
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.orderly, *orderly);
        add(&mut self.lost.total, lost.total);
        add(&mut self.lost.records, lost.records);
        add(&mut self.lost.untold_runs, lost.untold_runs);
        for (sums, more) in [(&mut self.lost.by_hook, &lost.by_hook), (&mut self.lost.skipped, &lost.skipped)] {
            for (hook, more) in more.iter().filter(|(_, more)| **more > 0) {
                add(sums.entry(hook.clone()).or_default(), *more);
            }
        }
        add(&mut self.undecodable, *undecodable);
        add(&mut self.evicted, *evicted);
        add(&mut self.filtered, *filtered);
    }

    /// Nothing is known to be missing, and nothing is not known.
    pub fn is_whole(&self) -> bool {
        let Lost { total, skipped, untold_runs, .. } = &self.lost;
        self.told > 0 && skipped.is_empty() && total + untold_runs + self.evicted + self.undecodable == 0
    }
}

/// Reads files (`-`: standard input) one after the other, telling faults on stderr; `each` takes their records. A run may
/// go on from one file to the next.
///
/// # Errors
/// When a file cannot be opened or read.
pub fn read_all(paths: &[impl AsRef<Path>], mut each: impl FnMut(Judged)) -> anyhow::Result<Account> {
    let mut sources = paths.iter().map(|path| Source::open(path.as_ref())).collect::<anyhow::Result<Vec<_>>>()?;
    let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
    let mut account = Account { name: names.join(", "), ..Account::default() };
    for source in &mut sources {
        while let Some(told) = source.next()? {
            account.add(&told.saved);
            if let Saved::Teardown(judged) = told.saved {
                each(*judged);
            }
        }
        source.sum_up();
        account.faults += source.faults;
    }
    account.end_run();
    Ok(account)
}

impl Account {
    /// Takes what comes next of a file, whatever it is.
    pub fn add(&mut self, saved: &Saved) {
        match saved {
            Saved::Teardown(_) => self.teardowns += 1,
            Saved::Late(..) => self.late += 1,
            Saved::Folded(count) => self.folded = self.folded.saturating_add(*count),
            Saved::Start(start) if self.goes_on(start) => {}
            Saved::Start(start) => {
                self.end_run();
                self.runs += 1;
                self.run_began = Some(start.time);
                self.extend_to(since_1970(start.continued.unwrap_or(start.time)));
                self.start.get_or_insert_with(|| start.clone());
            }
            // The latest of a run counts. When the run began its first line says: this may be but the end of it.
            Saved::Summary(sums) => {
                self.extend_to(since_1970(sums.stopped));
                self.sums = Some(sums.clone());
            }
            Saved::Kept(Kept { from, to }) => {
                let (from, to) = (since_1970(*from), since_1970(*to));
                self.extend_to(from);
                self.extend_to(to);
                self.kept_ns = Some(self.kept_ns.unwrap_or(0).saturating_add(to.saturating_sub(from)));
            }
            Saved::Other => {}
        }
        if let Some(at_ns) = saved.at_ns() {
            self.extend_to(at_ns);
        }
    }

    /// The present run, in another file.
    pub fn goes_on(&self, start: &Start) -> bool {
        start.continued.is_some() && self.run_began == Some(start.time)
    }

    /// As it stands, the present run included.
    pub fn totals(&self) -> Totals {
        let mut totals = self.totals.clone();
        if self.run_ns.is_some() {
            totals.add(self.sums.as_deref());
        }
        totals
    }

    fn extend_to(&mut self, at_ns: u64) {
        let (from, to) = self.run_ns.get_or_insert((at_ns, at_ns));
        (*from, *to) = ((*from).min(at_ns), (*to).max(at_ns));
    }

    /// Nothing more comes of the present run.
    pub fn end_run(&mut self) {
        self.run_began = None;
        if let Some((from, to)) = self.run_ns.take() {
            let traced_ns = self.kept_ns.take().unwrap_or(to - from);
            self.traced_ns = self.traced_ns.saturating_add(traced_ns);
            let (first, last) = self.span_ns.get_or_insert((from, to));
            (*first, *last) = ((*first).min(from), (*last).max(to));
            self.totals.add(self.sums.take().as_deref());
        }
    }
}

fn since_1970(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::json::read;

    fn summary(stopped: &str, orderly: u64) -> Saved {
        let line = format!(
            r#"{{"schema":1,"record":"summary","started":"2026-11-26T10:00:00Z","stopped":"{stopped}","orderly":{orderly},"lost":{{"total":2,"records":1,"by_hook":{{"a":2,"b":0}}}},"undecodable":0,"evicted":0,"filtered":3}}"#
        );
        read(line.as_bytes()).unwrap()
    }

    #[test]
    fn runs_are_added_up_without_the_gap_between_them_and_the_latest_summary_of_each_counts() {
        let start = |time: &str| {
            let line = format!(r#"{{"schema":1,"record":"start","time":"{time}","version":"1","kernel":"6","host":"h","filters":[]}}"#);
            read(line.as_bytes()).unwrap()
        };
        let mut account = Account::default();
        for saved in [
            start("2026-11-26T10:00:00Z"),
            summary("2026-11-26T10:00:01Z", 1),
            summary("2026-11-26T10:00:10Z", 5),
            start("2026-11-26T12:00:00Z"),
            read(include_bytes!("../../tests/corpus/record.json")).unwrap(),
            read(br#"{"schema":1,"record":"folded","count":7}"#).unwrap(),
        ] {
            account.add(&saved);
        }
        account.end_run();
        let hours = 3 * 3_600 + 47 * 60 + 32;
        assert_eq!(account.traced_ns / 1_000_000_000, 10 + hours);
        let totals = account.totals();
        assert_eq!((account.runs, totals.told, totals.orderly, totals.lost.records, totals.filtered), (2, 1, 5, 1, 3));
        assert_eq!((account.teardowns, account.folded), (1, 7));
        assert_eq!(totals.lost.by_hook.iter().collect::<Vec<_>>(), [(&"a".to_owned(), &2)]);
        assert_eq!(totals.lost.untold_runs, 1, "of the second run nothing is known");
    }

    #[test]
    fn the_end_of_a_run_lasts_as_long_as_its_records_and_its_sums_are_those_of_no_other_run() {
        let mut account = Account::default();
        // The last of several files: the run began long before, and the next one ended without a word.
        account.add(&summary("2026-11-26T10:00:10Z", 1));
        account.add(
            &read(br#"{"schema":1,"record":"start","time":"2026-11-26T10:00:20Z","version":"1","kernel":"6","host":"h","filters":[]}"#)
                .unwrap(),
        );
        assert_eq!((account.totals().told, account.totals().lost.untold_runs), (1, 1));
        account.add(&summary("2026-11-26T10:00:25Z", 1));
        assert_eq!((account.totals().told, account.totals().lost.untold_runs, account.totals().lost.total), (2, 0, 4));
        account.end_run();
        assert_eq!((account.traced_ns / 1_000_000_000, account.totals().told), (5, 2));
    }

    #[test]
    fn a_run_goes_on_from_file_to_file() {
        let start = |time: &str, continued: &str| {
            let line = format!(
                r#"{{"schema":1,"record":"start","time":"{time}","version":"1","kernel":"6","host":"h","filters":["a"],"continued":{continued}}}"#
            );
            read(line.as_bytes()).unwrap()
        };
        let (first, second, third) = ("null", r#""2026-11-26T11:00:00Z""#, r#""2026-11-26T12:00:00Z""#);
        let time = "2026-11-26T10:00:00Z";
        let account = |files: &[&str]| {
            let mut account = Account::default();
            files.iter().for_each(|continued| account.add(&start(time, continued)));
            account.add(&summary("2026-11-26T12:30:00Z", 1));
            account.end_run();
            (account.runs, account.traced_ns / 60_000_000_000, account.totals().told, account.start.unwrap().filters.len())
        };
        assert_eq!(account(&[first, second, third]), (1, 150, 1, 1));
        // What is left of it.
        assert_eq!(account(&[second, third]), (1, 90, 1, 1));
        assert_eq!(account(&[third]), (1, 30, 1, 1));
        // Another run is no part of it.
        let mut account = Account::default();
        account.add(&start("2026-11-26T08:00:00Z", first));
        account.add(&start(time, second));
        account.end_run();
        assert_eq!((account.runs, account.totals().lost.untold_runs), (2, 2));
    }

    #[test]
    fn of_a_run_that_was_kept_in_memory_what_was_written_counts() {
        let mut account = Account::default();
        account.add(
            &read(br#"{"schema":1,"record":"start","time":"2026-11-20T10:00:00Z","version":"1","kernel":"6","host":"h","filters":[]}"#)
                .unwrap(),
        );
        for (from, to) in [("2026-11-26T10:00:00Z", "2026-11-26T10:10:00Z"), ("2026-11-26T15:45:00Z", "2026-11-26T15:48:00Z")] {
            account.add(&read(format!(r#"{{"schema":1,"record":"kept","from":"{from}","to":"{to}"}}"#).as_bytes()).unwrap());
        }
        account.add(&read(include_bytes!("../../tests/corpus/record.json")).unwrap());
        account.end_run();
        assert_eq!(account.traced_ns / 1_000_000_000, 13 * 60);
    }
}
