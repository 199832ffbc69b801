//! The page. maud escapes every text; the only markup that is not ours comes from the pages of docs/causes, which are ours too.

use std::net::IpAddr;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::{MAX_SHOWN, Report, Shown};
use crate::{
    explain,
    input::{Account, Totals},
    model::{Cause, Comm, Harm},
    output::{
        escape::{cut, for_terminal},
        table::{bound, mostly},
    },
    rollup::{Group, Groups, Histogram},
    units::{counted, duration, grouped, size},
};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Of [`SCRIPT`], as Content-Security-Policy has it: no other script runs, whatever a record says.
const SCRIPT_HASH: &str = "sha256-/49GGFEZmsgQau5euKGVRWGWIDL99hYxhmrO70JEV9U=";

/// Rows of a table of talkers.
const MAX_TALKERS: usize = 10;
/// Bytes of a text of the run: host, filters.
const MAX_TEXT: usize = 1_000;

/// In the order of weight, as the table of verdicts sorts them.
const HARMS: [Harm; 4] = [Harm::Lost, Harm::Possible, Harm::Unknown, Harm::None];

fn harm_word(harm: Harm) -> &'static str {
    match harm {
        Harm::Lost => "LOST",
        Harm::Possible => "maybe",
        Harm::Unknown => "?",
        Harm::None => "ok",
    }
}

pub(super) fn render(report: &Report) -> Markup {
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src '{SCRIPT_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"
    );
    let host = report.account.start.as_ref().map(|start| text(&start.host));
    let title = match &host {
        Some(host) => format!("Why TCP connections ended on {host}"),
        None => "Why TCP connections ended".to_owned(),
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                meta name="generator" content=(concat!("rsttrace ", env!("CARGO_PKG_VERSION")));
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.answer { (answer(report)) }
                    (run(&report.account))
                }
                main {
                    (cards(report))
                    (losses(&report.account))
                    section aria-labelledby="h-time" { h2 id="h-time" { "When" } (timeline(report)) }
                    section aria-labelledby="h-causes" { h2 id="h-causes" { "Why" } (causes(report)) }
                    section aria-labelledby="h-who" { h2 id="h-who" { "Who" } (talkers(report)) }
                    section aria-labelledby="h-ends" { h2 id="h-ends" { "Each end" } (verdicts(report)) }
                    section aria-labelledby="h-explained" { h2 id="h-explained" { "The causes explained" } (explained(report)) }
                }
                footer { (footer()) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// From outside: nothing in it acts on whoever reads or copies it.
fn text(text: &str) -> String {
    for_terminal(&cut(text, MAX_TEXT)).into_owned()
}

fn answer(report: &Report) -> String {
    let all = &report.all;
    if all.ends == 0 {
        return "No record of an end.".to_owned();
    }
    let (lost, possible) = (all.of(Harm::Lost), all.of(Harm::Possible));
    let ended = counted(all.ends, "socket");
    let mut words = match (lost, possible) {
        (0, 0) => format!("{ended} ended; none is known to have lost data"),
        (0, possible) => format!("{ended} ended; none is known to have lost data, {} may have", grouped(possible)),
        (lost, possible) => {
            let may = if possible > 0 { format!(", {} more may have", grouped(possible)) } else { String::new() };
            format!("{} of {ended} lost data ({}){may}", grouped(lost), size(all.lost_bytes))
        }
    };
    let worst = report.causes.sorted(Group::weight).into_iter().find(|(_, group)| lost == 0 || group.of(Harm::Lost) > 0);
    if let Some((cause, group)) = worst.filter(|_| lost + possible > 0) {
        words += &format!("; most by {cause} ({})", grouped(if lost > 0 { group.of(Harm::Lost) } else { group.of(Harm::Possible) }));
    }
    words + "."
}

fn date(ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or_default()
}

fn second(ns: u64) -> String {
    date(ns).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn run(account: &Account) -> Markup {
    let row = |name: &str, value: Option<String>| html! { @if let Some(value) = value { div { dt { (name) } dd { (value) } } } };
    let start = account.start.as_ref();
    let filters = start.map(|start| if start.filters.is_empty() { "none".to_owned() } else { text(&start.filters.join(" ")) });
    let span = account.span_ns.map(|(from, to)| format!("{} to {} UTC", second(from), second(to)));
    html! {
        dl.run {
            (row("host", start.map(|start| text(&start.host))))
            (row("kernel", start.map(|start| format!("Linux {}", text(&start.kernel)))))
            (row("tracer", start.map(|start| format!("rsttrace {}", text(&start.version)))))
            (row("time", span))
            (row("traced", (account.traced_ns > 0).then(|| duration(account.traced_ns).to_string())))
            (row("runs", (account.runs > 1).then(|| grouped(account.runs).to_string())))
            (row("filters", filters))
            (row("file", Some(account.name.clone())))
        }
    }
}

fn cards(report: &Report) -> Markup {
    let all = &report.all;
    let card = |class: &str, value: String, words: &str| html! { li class=(class) { b { (value) } span { (words) } } };
    let n = |n: u64| grouped(n).to_string();
    html! {
        ul.cards #totals {
            (card("ends", n(all.ends), "sockets that ended"))
            (card("lost", n(all.of(Harm::Lost)), "LOST: data was lost"))
            (card("possible", n(all.of(Harm::Possible)), "maybe: may have lost data"))
            (card("unknown", n(all.of(Harm::Unknown)), "? not known"))
            (card("none", n(all.of(Harm::None)), "ok: nothing lost"))
            (card("lost-bytes", size(all.lost_bytes).to_string(), "certainly lost"))
            (card("unconfirmed-bytes", size(all.unconfirmed_bytes).to_string(), "not confirmed"))
        }
    }
}

/// What is not in the numbers.
fn losses(account: &Account) -> Markup {
    let totals = account.totals();
    let Totals { lost, orderly, undecodable, evicted, filtered, .. } = &totals;
    let hooks = lost.by_hook.iter().map(|(hook, n)| format!("{} {}", grouped(*n), text(hook))).collect::<Vec<_>>().join(", ");
    let warnings = [
        (
            lost.total,
            format!(
                "The tracer lost {}, and with them {} ({hooks}): a larger --buffer helps.",
                counted(lost.total, "event"),
                counted(lost.records, "record")
            ),
        ),
        (
            lost.skipped.values().sum(),
            format!(
                "The kernel skipped {} of the tracer's programs: as many events may be missing.",
                counted(lost.skipped.values().sum(), "run")
            ),
        ),
        (*evicted, format!("{} found no room in the tracer: a larger --max-sockets helps.", counted(*evicted, "socket"))),
        (*undecodable, format!("{} could not be decoded.", counted(*undecodable, "event"))),
        (account.faults, format!("{} could not be read.", counted(account.faults, "place"))),
        (lost.untold_runs, "The last line of a run is missing: what the tracer lost is not known.".to_owned()),
        (u64::from(account.runs == 0), "The first line of the run is missing: host, kernel and filters are not known.".to_owned()),
        (account.folded, format!("{} more were folded by --rate-limit, and are not counted on this page.", counted(account.folded, "end"))),
    ];
    let besides = [
        (*orderly, "ended in order and are no records"),
        (*filtered, "did not match the filters"),
        (account.late, "errors were noticed after their record"),
    ];
    html! {
        @for (_, words) in warnings.iter().filter(|(n, _)| *n > 0) { p.warning { (words) } }
        p.note #besides {
            @if totals.is_whole() { "The tracer lost 0 events. " }
            @for (n, words) in besides.iter().filter(|(n, _)| *n > 0) { (grouped(*n)) " " (words) ". " }
            "A connection within this host is two sockets."
        }
    }
}

const WIDTH: f64 = 1_100.0;
const HEIGHT: f64 = 200.0;
/// Around the bars: left for numbers, below for times.
const LEFT: f64 = 56.0;
const BELOW: f64 = 24.0;
const ABOVE: f64 = 12.0;

fn timeline(report: &Report) -> Markup {
    let steps: Vec<_> = report.timeline.steps().collect();
    let step = duration(report.timeline.step_ns()).to_string();
    let most = steps.iter().map(|(_, counts)| counts.iter().sum::<u64>()).max().unwrap_or(0);
    let top = round_up(most);
    let width = (WIDTH - LEFT) / steps.len().max(1) as f64;
    let room = HEIGHT - BELOW - ABOVE;
    let y = |n: u64| ABOVE + room * (1.0 - n as f64 / top as f64);
    let x = |at: usize| LEFT + width * at as f64;
    // Fractions of a second only where steps are so short.
    let time = |ns: u64| if report.timeline.step_ns() < 1_000_000_000 { date(ns).strftime("%H:%M:%S%.3f").to_string() } else { second(ns) };
    let words = |(at, counts): &(u64, super::timeline::Counts)| {
        let parts: Vec<_> = HARMS
            .iter()
            .filter(|harm| counts[**harm as usize] > 0)
            .map(|harm| format!("{} {}", grouped(counts[*harm as usize]), harm_word(*harm)))
            .collect();
        format!("{}: {}", time(*at), parts.join(", "))
    };
    // No hair-thin gaps where there are many.
    let gap = if width > 6.0 { 1.5 } else { 0.3 };
    let ticks = steps.len().clamp(1, 5);
    html! {
        @if steps.is_empty() { p.soft { "Nothing ended." } } @else {
            div.panel {
                svg.timeline viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-labelledby="t-title t-desc" {
                    title id="t-title" { "Ends over time, by harm" }
                    desc id="t-desc" { "Bars of " (step) " each, at most " (counted(most, "end")) ". The numbers are in the table below." }
                    @for n in [0, top / 2, top].iter().filter(|n| **n != top / 2 || top > 1) {
                        line x1=(LEFT) x2=(WIDTH) y1=(p(y(*n))) y2=(p(y(*n))) {}
                        text x=(LEFT - 8.0) y=(p(y(*n) + 4.0)) text-anchor="end" { (grouped(*n)) }
                    }
                    @for (at, (begin, counts)) in steps.iter().enumerate().filter(|(_, (_, counts))| counts.iter().sum::<u64>() > 0) {
                        g {
                            title { (words(&(*begin, *counts))) }
                            @for (harm, below) in stacked(counts) {
                                @let n = counts[harm as usize];
                                rect class=(harm.name()) x=(p(x(at) + gap / 2.0)) width=(p((width - gap).max(0.5)))
                                    y=(p(y(below + n))) height=(p((y(below) - y(below + n)).max(1.0))) {}
                            }
                        }
                    }
                    @for tick in 0..ticks {
                        @let at = tick * steps.len() / ticks;
                        text x=(p(x(at))) y=(HEIGHT - 6.0) { (time(steps[at].0)) }
                    }
                }
                ul.legend { @for harm in HARMS { li class=(harm.name()) { i {} (harm_word(harm)) } } li { "one bar: " (step) ", UTC" } }
                details {
                    summary.soft { "The numbers as a table" }
                    table #timeline {
                        thead { tr { th scope="col" { "from (UTC)" } @for harm in HARMS { th.n scope="col" { (harm_word(harm)) } } } }
                        tbody {
                            @for (begin, counts) in steps.iter().filter(|(_, counts)| counts.iter().sum::<u64>() > 0) {
                                tr { th scope="row" { (time(*begin)) } @for harm in HARMS { td.n { (grouped(counts[harm as usize])) } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The worst at the bottom, each with what lies beneath it.
fn stacked(counts: &super::timeline::Counts) -> Vec<(Harm, u64)> {
    let mut below = 0;
    HARMS
        .iter()
        .filter(|harm| counts[**harm as usize] > 0)
        .map(|&harm| {
            let here = below;
            below += counts[harm as usize];
            (harm, here)
        })
        .collect()
}

/// 1, 1.2, 1.6, 2, 4, 6 or 8 times a power of ten: half of it is a number to be written at a line.
fn round_up(n: u64) -> u64 {
    let mut scale = 1_u64;
    loop {
        if let Some(top) = [10, 12, 16, 20, 40, 60, 80].iter().map(|step| step * scale / 10).find(|top| *top >= n) {
            return top;
        }
        match scale.checked_mul(10).filter(|scale| *scale <= u64::MAX / 80) {
            Some(larger) => scale = larger,
            None => return n,
        }
    }
}

/// A coordinate.
fn p(value: f64) -> String {
    format!("{value:.1}")
}

fn harm_heads() -> Markup {
    html! { @for harm in HARMS { th.n scope="col" { (harm_word(harm)) } } th.n scope="col" { "lost" } }
}

fn bytes(n: u64) -> String {
    if n == 0 { "–".to_owned() } else { size(n).to_string() }
}

fn unconfirmed(group: &Group) -> Markup {
    html! { td.n data-v=(group.unconfirmed_bytes) { (bytes(group.unconfirmed_bytes)) } }
}

/// Counts and bytes; `data-v` is what they are sorted by.
fn numbers(group: &Group) -> Markup {
    html! {
        td.n data-v=(group.ends) { (grouped(group.ends)) }
        @for harm in HARMS {
            @let n = group.of(harm);
            td class=(if n > 0 && harm != Harm::None { format!("n {harm}") } else { "n".to_owned() }) data-v=(n) { @if n == 0 { "–" } @else { (grouped(n)) } }
        }
        td.n data-v=(group.lost_bytes) { (bytes(group.lost_bytes)) }
    }
}

fn causes(report: &Report) -> Markup {
    let sorted = report.causes.sorted(Group::weight);
    html! {
        div.panel {
            table.sortable #causes {
                thead { tr {
                    th scope="col" { "cause" } th.n scope="col" { "ends" } (harm_heads()) th.n scope="col" { "not confirmed" }
                    th scope="col" { "idle before" } th scope="col" { "error to call" }
                } }
                tbody {
                    @for (cause, group) in &sorted {
                        tr {
                            th scope="row" { a href=(format!("#cause-{cause}")) { (cause) } }
                            (numbers(group)) (unconfirmed(group))
                            (shape(&group.idle)) (shape(&group.delay))
                        }
                    }
                }
                tfoot { tr { td { "all" } (numbers(&report.all)) (unconfirmed(&report.all)) (shape(&report.all.idle)) (shape(&report.all.delay)) } }
            }
        }
        p.note { "Idle before: since the last data either way. Error to call: until a system call returned the error. One bar is one range of time, from short to long." }
    }
}

/// A small histogram.
fn shape(histogram: &Histogram) -> Markup {
    const BAR: u64 = 6;
    const TALL: f64 = 18.0;
    let words = mostly(histogram);
    let buckets: Vec<_> = histogram.buckets().collect();
    let most = buckets.iter().map(|(_, n)| *n).max().unwrap_or(0).max(1);
    let height = |n: u64| if n == 0 { 0.0 } else { (TALL * n as f64 / most as f64).max(2.0) };
    let title: Vec<_> = buckets
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(to, n)| format!("{} {}", grouped(*n), to.map_or("longer".to_owned(), |to| format!("up to {}", bound(to)))))
        .collect();
    html! {
        td.shape data-v=(histogram.sum_ns() / u128::from(histogram.count().max(1))) {
            @if let Some(words) = words {
                svg.bars width=(buckets.len() as u64 * BAR) height=(TALL + 1.0) role="img" aria-label=(title.join(", ")) {
                    title { (title.join(", ")) }
                    rect.base x="0" y=(TALL) width="100%" height="1" {}
                    @for (at, (_, n)) in buckets.iter().enumerate().filter(|(_, (_, n))| *n > 0) {
                        rect x=(at as u64 * BAR) y=(p(TALL - height(*n))) width=(BAR - 1) height=(p(height(*n))) {}
                    }
                }
                span { (words) }
            } @else { "–" }
        }
    }
}

fn talkers(report: &Report) -> Markup {
    let process = |comm: &Option<Comm>| comm.map_or_else(|| "–".to_owned(), |comm| text(&comm.text()));
    html! {
        div.talkers {
            (talker("remotes", "Remote addresses", &report.remotes, IpAddr::to_string))
            (talker("processes", "Processes", &report.processes, process))
            (talker("ports", "Service ports", &report.ports, u16::to_string))
        }
    }
}

fn talker<K: Eq + std::hash::Hash + Ord + Clone>(id: &str, title: &str, groups: &Groups<K>, name: impl Fn(&K) -> String) -> Markup {
    let sorted = groups.sorted(Group::weight);
    let (shown, rest) = sorted.split_at(sorted.len().min(MAX_TALKERS));
    let mut more = groups.others.clone();
    rest.iter().for_each(|(_, group)| more.merge(group));
    html! {
        div.panel {
            h3 { (title) }
            table.sortable id=(id) {
                thead { tr { th scope="col" { "name" } th.n scope="col" { "ends" } (harm_heads()) } }
                tbody { @for (key, group) in shown { tr { th.mono scope="row" { (name(key)) } (numbers(group)) } } }
                @if more.ends > 0 {
                    @let at_least = if groups.others.ends > 0 { "at least " } else { "" };
                    tfoot { tr { td { (at_least) (grouped(rest.len() as u64)) " more" } (numbers(&more)) } }
                }
            }
        }
    }
}

fn verdicts(report: &Report) -> Markup {
    let left_out = report.all.ends - report.shown.len() as u64;
    html! {
        @if left_out > 0 {
            p.note { "The worst " (grouped(MAX_SHOWN as u64)) ", of equals the newest. " (grouped(left_out)) " more are in the file, and in all numbers above." }
        }
        div.panel {
            table.sortable #verdicts {
                thead { tr {
                    th scope="col" { "time (UTC)" } th scope="col" { "harm" } th scope="col" { "process" } th scope="col" { "local" } th scope="col" { "remote" }
                    th scope="col" { "what happened" } th scope="col" { "cause" } th.n scope="col" { "lost" }
                } }
                tbody { @for shown in &report.shown { (verdict(shown)) } }
            }
        }
    }
}

fn verdict(shown: &Shown) -> Markup {
    let Shown { at_ns, harm, cause, process, local, remote, verdict, evidence, lost_bytes, unconfirmed_bytes } = shown;
    let at = date(*at_ns);
    html! {
        tr {
            td data-v=(at_ns / 1_000) { time datetime=(at) { (at.strftime("%Y-%m-%d")) br; (at.strftime("%H:%M:%S%.3f")) } }
            td class=(format!("harm {harm}")) data-v=(Harm::ALL.len() - *harm as usize) { (harm_word(*harm)) }
            td.mono.who { (process) }
            td.mono.end { (local) }
            td.mono.end { (remote) }
            td.verdict { (verdict) @if !evidence.is_empty() { small { (evidence) } } }
            td.why { a href=(format!("#cause-{cause}")) { (cause) } }
            td.n data-v=(lost_bytes) {
                @if *lost_bytes > 0 { (size(*lost_bytes)) } @else if *unconfirmed_bytes > 0 { (size(*unconfirmed_bytes)) " ?" } @else { "–" }
            }
        }
    }
}

fn explained(report: &Report) -> Markup {
    html! {
        @for (cause, group) in report.causes.sorted(Group::weight) {
            details.cause id=(format!("cause-{cause}")) {
                summary { b { (cause) } span.soft { (explain::summary(*cause)) " (" (grouped(group.ends)) ")" } }
                div.text { (PreEscaped(page_of(*cause))) }
            }
        }
    }
}

/// The page of docs/causes without its heading and its first sentence, its chapters a level lower.
fn page_of(cause: Cause) -> String {
    let page = explain::page(cause);
    let body = page.find("\n## ").map_or(page, |at| &page[at..]);
    let level = |level: HeadingLevel| if level <= HeadingLevel::H2 { HeadingLevel::H4 } else { HeadingLevel::H5 };
    let lower = |event| match event {
        Event::Start(Tag::Heading { level: of, id, classes, attrs }) => Event::Start(Tag::Heading { level: level(of), id, classes, attrs }),
        Event::End(TagEnd::Heading(of)) => Event::End(TagEnd::Heading(level(of))),
        other => other,
    };
    let mut out = String::new();
    pulldown_cmark::html::push_html(&mut out, Parser::new_ext(body, Options::ENABLE_TABLES).map(lower));
    out
}

fn footer() -> Markup {
    html! {
        p {
            "LOST: bytes certainly did not arrive or were never read. maybe: unconfirmed bytes, or a request without its answer. "
            "ok: all payload was acknowledged, and nothing received was dropped. ?: not known. "
            "This page holds everything that it shows, and asks no network. The same numbers: " code { "rsttrace replay FILE --summary" } "."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_a_round_number() {
        for (n, top) in
            [(0, 1), (1, 1), (2, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 16), (17, 20), (41, 60), (99, 100), (101, 120)]
        {
            assert_eq!(round_up(n), top);
        }
        assert!(round_up(u64::MAX) == u64::MAX);
    }

    #[test]
    fn the_policy_allows_our_script() {
        use base64::Engine as _;
        use sha2::Digest as _;
        let digest = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(SCRIPT));
        assert_eq!(SCRIPT_HASH, format!("sha256-{digest}"));
    }

    #[test]
    fn chapters_of_a_page_are_below_its_title() {
        let page = page_of(Cause::KeepaliveRace);
        assert!(page.starts_with("<h4>On the wire</h4>") && !page.contains("<h1>") && page.contains("<pre>"), "{page}");
    }
}
