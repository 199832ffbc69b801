//! `rsttrace report`: a file of records as one page of HTML that needs nothing else.

mod output;
mod page;
mod timeline;

use std::{cmp::Reverse, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use self::{output::Output, timeline::Timeline};
use crate::{
    cli,
    exit::FAILED,
    input::{Account, read_all},
    model::{Cause, Comm, Harm, Judged},
    output::{
        escape::{cut, for_terminal},
        text,
    },
    rollup::{Group, Groups},
    stdout,
};

/// What to make a page of.
#[derive(Clone, Debug)]
pub struct Request {
    /// `-`: standard input.
    pub files: Vec<PathBuf>,
    /// `-`: standard output.
    pub output: PathBuf,
}

impl From<cli::Report> for Request {
    fn from(cli::Report { files, output }: cli::Report) -> Self {
        Self { files, output }
    }
}

/// Records that are shown one by one.
const MAX_SHOWN: usize = 2_000;
/// Bytes of one text of a record.
const MAX_TEXT: usize = 600;

/// Runs it.
///
/// # Errors
/// When a file cannot be opened, read or written.
pub fn run(request: &Request) -> anyhow::Result<ExitCode> {
    let name = for_terminal(&request.output.to_string_lossy()).into_owned();
    // Before the files are read, which may take long.
    let output = (name != "-").then(|| Output::at(&request.output)).transpose().with_context(|| format!("--output: {name}"))?;
    let report = Report::read(&request.files)?;
    let page = page::render(&report).into_string();
    match output {
        Some(output) => output.write(page.as_bytes()).with_context(|| format!("cannot write {name}"))?,
        None => stdout::write_all(page.as_bytes()).context("cannot write to stdout")?,
    }
    Ok(if report.account.faults > 0 { FAILED.into() } else { ExitCode::SUCCESS })
}

/// Everything that the page shows.
#[derive(Debug, Default)]
struct Report {
    account: Account,
    all: Group,
    causes: Groups<Cause>,
    remotes: Groups<IpAddr>,
    processes: Groups<Option<Comm>>,
    ports: Groups<u16>,
    timeline: Timeline,
    shown: Vec<Shown>,
    /// Nothing that comes behind it will be shown.
    floor: Option<Order>,
}

/// The worst first, then the newest.
type Order = (Harm, Reverse<u64>);

/// One record in the words of the page, each of them safe for a terminal, not for HTML.
#[derive(Debug)]
struct Shown {
    at_ns: u64,
    harm: Harm,
    cause: Cause,
    process: String,
    local: String,
    remote: String,
    verdict: String,
    /// The request, what happened on the wire, who saw it.
    evidence: String,
    lost_bytes: u64,
    unconfirmed_bytes: u64,
}

impl Shown {
    fn of(judged: &Judged) -> Self {
        let Judged { teardown: t, verdict, .. } = judged;
        let shown = |text: &str| for_terminal(&cut(text, MAX_TEXT)).into_owned();
        let process = t.parties().next().map_or_else(|| "-".to_owned(), |party| format!("{}/{}", party.process_comm.text(), party.tgid));
        let words = text::words(judged, None);
        Self {
            at_ns: t.at_ns,
            harm: verdict.harm,
            cause: verdict.cause,
            process: shown(&process),
            local: t.local.to_string(),
            remote: t.remote.to_string(),
            verdict: shown(&verdict.words),
            evidence: words.iter().skip(1).map(|part| shown(part)).collect::<Vec<_>>().join("; "),
            lost_bytes: verdict.damage.lost(),
            unconfirmed_bytes: verdict.damage.unconfirmed,
        }
    }

    fn order(&self) -> Order {
        (self.harm, Reverse(self.at_ns))
    }
}

impl Report {
    fn read(files: &[PathBuf]) -> anyhow::Result<Self> {
        let mut report = Self::default();
        report.account = read_all(files, |judged| report.add(&judged))?;
        report.choose();
        Ok(report)
    }

    fn add(&mut self, judged: &Judged) {
        let t = &judged.teardown;
        self.all.add(judged);
        self.causes.add(judged.verdict.cause, judged);
        self.remotes.add(t.remote.addr, judged);
        self.processes.add(t.process(), judged);
        self.ports.add(t.service_port(), judged);
        self.timeline.add(t.at_ns, judged.verdict.harm);
        let order = (judged.verdict.harm, Reverse(t.at_ns));
        if self.floor.is_none_or(|floor| order < floor) {
            self.shown.push(Shown::of(judged));
        }
        if self.shown.len() >= 2 * MAX_SHOWN {
            self.choose();
        }
    }

    /// Keeps what is shown, in its order.
    fn choose(&mut self) {
        self.shown.sort_by_key(Shown::order);
        if self.shown.len() > MAX_SHOWN {
            self.shown.truncate(MAX_SHOWN);
            self.floor = self.shown.last().map(Shown::order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::json::{Saved, read};

    fn record() -> Judged {
        match read(include_bytes!("../../tests/corpus/record.json")) {
            Ok(Saved::Teardown(judged)) => *judged,
            other => panic!("{other:?}"),
        }
    }

    fn page(report: &mut Report) -> String {
        report.choose();
        page::render(report).into_string()
    }

    #[test]
    fn nothing_hostile_is_markup() {
        let mut report = Report::default();
        let mut judged = record();
        judged.teardown.owner.as_mut().unwrap().comm = Comm::from("<script>x()");
        judged.teardown.http.as_mut().unwrap().request = Some("GET /\"><script>alert(1)</script> HTTP/1.1\u{202e}".to_owned());
        judged.verdict.words = "</td></table><img src=x onerror=alert(1)>\u{1b}[2J".to_owned();
        report.add(&judged);
        report.account.name = "<u>file</u>&'\"".to_owned();
        report.account.start = Some(crate::input::json::Start {
            time: jiff::Timestamp::UNIX_EPOCH,
            version: "<marquee>".to_owned(),
            kernel: "<script src=//evil.example>".to_owned(),
            host: "</title><marquee>".to_owned(),
            filters: vec!["pid=<script>".to_owned()],
            continued: None,
        });
        let page = page(&mut report);
        assert_eq!(page.matches("<script").count(), 1, "only our own");
        for markup in ["<img", "<u>", "<marquee", "\u{202e}", "\u{1b}"] {
            assert!(!page.contains(markup), "{markup:?}");
        }
        assert!(page.contains("&lt;script&gt;x()") && page.contains("\\u{202e}"));
    }

    #[test]
    fn the_worst_and_newest_are_shown_and_the_rest_is_counted() {
        let mut report = Report::default();
        let mut judged = record();
        for n in 0..10_000_u64 {
            judged.teardown.at_ns += 1_000_000_000;
            judged.verdict.harm = if n % 100 == 0 { Harm::Lost } else { Harm::Possible };
            report.add(&judged);
        }
        report.choose();
        assert_eq!(report.shown.len(), MAX_SHOWN);
        assert_eq!(report.shown.iter().filter(|shown| shown.harm == Harm::Lost).count(), 100);
        // The newest of the others.
        let oldest = report.shown.last().unwrap();
        assert_eq!(judged.teardown.at_ns - oldest.at_ns, 1_918_000_000_000);
        assert!(page(&mut report).contains("8,000 more"));
    }

    #[test]
    fn long_texts_are_cut() {
        let mut judged = record();
        judged.verdict.words = "x".repeat(1 << 20);
        assert!(Shown::of(&judged).verdict.len() < 2 * MAX_TEXT);
    }

    #[test]
    fn an_empty_file_makes_a_page() {
        assert!(page(&mut Report::default()).ends_with("</html>"));
    }

    #[test]
    fn the_page_asks_for_nothing() {
        let mut report = Report::default();
        for &cause in Cause::ALL {
            let mut judged = record();
            judged.verdict.cause = cause;
            report.add(&judged);
        }
        let page = page(&mut report);
        for asking in ["src=", "url(", "@import", "<link rel=\"stylesheet", "<img", "<iframe"] {
            assert!(!page.contains(asking), "{asking}");
        }
        // Every cause is explained, and every link within the page leads somewhere.
        for part in page.split("href=\"#").skip(1) {
            let id = part.split('"').next().unwrap();
            assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
        }
        for &cause in Cause::ALL {
            assert!(page.contains(&format!("id=\"cause-{cause}\"")), "{cause}");
        }
    }
}
