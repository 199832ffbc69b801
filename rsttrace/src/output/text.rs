//! One line per connection that ended, two or more where the terminal is narrow.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};
use unicode_width::UnicodeWidthStr;

use super::{WallClock, escape::for_terminal, json, timeline};
use crate::{
    fold::{Folded, Kind, Place},
    model::{
        Cause, EndKind, Endpoint, Finding, FirstFin, Harm, Judged, LateObservation, LogLine, Names, Observer, Role, Seen, Side, Task,
        TcpState, Teardown,
    },
    units::{bytes, duration, given, grouped, size},
};

/// How times are shown.
#[derive(Clone, Debug)]
pub enum TimeFormat {
    /// In a zone: the machine's, or UTC.
    Zoned(TimeZone),
    /// Seconds since the start.
    Relative(Timestamp),
}

/// What the reader's terminal can do.
#[derive(Clone, Debug)]
pub struct Appearance {
    pub time: TimeFormat,
    pub color: bool,
    /// Arrows beyond ASCII.
    pub unicode: bool,
    /// Ambiguous characters are two columns wide.
    pub cjk: bool,
    /// The evidence below each record.
    pub timeline: bool,
    /// That a log has nothing about an error is said.
    pub silence: bool,
}

/// Below this the sockets do not fit beside the process.
const ONE_LINE: usize = 120;
/// Where the words of a second line begin: under the process, after "HH:MM:SS.mmm maybe ".
const INDENT: usize = 19;
/// Width of the timeline's column of times.
const TIMES: usize = 9;
/// Columns grow to what they hold, but a single odd one does not push the rest off the screen.
const MAX_PROCESS: usize = 22;
const MAX_ENDPOINT: usize = 32;

pub(super) const RED: Style = AnsiColor::Red.on_default();
pub(super) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const PLAIN: Style = Style::new();

/// Formats records; remembers how wide the columns have become.
#[derive(Clone, Debug)]
pub struct TextFormat {
    style: Appearance,
    process: usize,
    local: usize,
    remote: usize,
    /// Of the latest record: since 1970, and as it is shown.
    second: (Option<i64>, String),
}

/// What stands in front of a record's words.
struct Head<'a> {
    at_ns: u64,
    harm: &'static str,
    style: Style,
    /// As it is shown.
    process: String,
    arrow: &'a str,
    local: Endpoint,
    remote: Endpoint,
}

impl TextFormat {
    pub fn new(style: Appearance) -> Self {
        Self { style, process: 12, local: 15, remote: 15, second: (None, String::new()) }
    }

    pub fn appearance(&self) -> &Appearance {
        &self.style
    }

    /// Whether the evidence is shown.
    pub fn has_timeline(&self) -> bool {
        self.style.timeline
    }

    /// Writes one record, or both halves of a connection within this host as one; `columns` is the
    /// terminal's width now, `None` where there is none.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(
        &mut self,
        out: &mut impl Write,
        judged: &Judged,
        other: Option<&Judged>,
        clock: &WallClock,
        columns: Option<usize>,
    ) -> io::Result<()> {
        let Some(other) = other else {
            self.write_half(out, judged, None, clock, columns)?;
            self.write_log_of(out, judged, columns)?;
            return self.write_timeline(out, judged, columns);
        };
        // Whoever began the end leads, and what the other saw of it follows.
        let (first, second) = if leads(judged, other) { (judged, other) } else { (other, judged) };
        self.write_half(out, first, Some(second), clock, columns)?;
        self.write_log_of(out, first, columns)?;
        self.write_log_of(out, second, columns)?;
        self.write_timeline(out, first, columns)?;
        self.write_timeline(out, second, columns)
    }

    /// Writes an observation that came after its connection's record.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write_late(
        &mut self,
        out: &mut impl Write,
        late: &LateObservation,
        log: &Finding,
        clock: &WallClock,
        columns: Option<usize>,
    ) -> io::Result<()> {
        let head = Head {
            at_ns: late.at_ns,
            harm: "",
            style: PLAIN,
            process: self.shown(&named(&late.observer.task).to_string()).into_owned(),
            arrow: "  ",
            local: late.local,
            remote: late.remote,
        };
        self.write_line(out, head, &late_words(late), clock, columns)?;
        self.write_log(out, log, columns)
    }

    /// Writes how many more like one that was shown there were; processes without numbers, ports of servers only.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write_folded(&mut self, out: &mut impl Write, folded: &Folded, clock: &WallClock, columns: Option<usize>) -> io::Result<()> {
        let Folded { kind, other, count, first_ns, last_ns, lost_bytes, unconfirmed_bytes, .. } = folded;
        let process = |kind: &Kind| kind.place.and_then(|place| place.process).map_or("-".into(), |comm| comm.text().into_owned());
        let mut who = process(kind);
        if let Some(other) = other {
            who = format!("{who} {} {}", if self.style.unicode { "→" } else { "->" }, process(other));
        }
        let (who, elide) = (self.shown(&who), columns.is_some());
        let (local, remote) = match kind.place {
            Some(Place { role: Some(Role::Client), service_port, remote, .. }) => {
                // Of a pair the other end tells our address.
                let ours = other.and_then(|other| other.place).map_or(String::new(), |place| elided(place.remote.to_string(), elide));
                (ours, endpoint(Endpoint { addr: remote, port: service_port }, elide))
            }
            Some(Place { service_port, remote, .. }) => (format!(":{service_port}"), elided(remote.to_string(), elide)),
            None => (String::new(), "many addresses".to_owned()),
        };
        let [left, right, _, none] = self.arrows();
        let arrow = match kind.end {
            EndKind::ResetReceived => left,
            EndKind::ResetSent | EndKind::Timeout => right,
            EndKind::Error | EndKind::Fin => none,
        };
        let worst = other.map_or(kind.harm, |other| other.harm.min(kind.harm));
        let (time, harm) = (self.time(clock.at(*last_ns)), worst.on_screen());
        let wide = columns.is_none_or(|columns| columns >= ONE_LINE);
        let head = if wide {
            let (who, local) = (self.pad(&who, self.process), self.pad(&local, self.local));
            format!("{time} {harm:<5} {who} {local} {arrow} {} ", self.pad(&remote, self.remote))
        } else {
            let what = format!("{local} {arrow} {remote}");
            format!("{time} {harm:<5} {who} {}", what.trim_start())
        };
        let within = if first_ns < last_ns { format!(" within {}", duration(last_ns - first_ns)) } else { String::new() };
        let more = if self.style.unicode { "…" } else { "..." };
        let mut words: Vec<Cow<'_, str>> = vec![
            format!("{more} and {} more like it{within}", grouped(*count)).into(),
            format!("{}, {}", kind.end.name(), kind.cause).into(),
        ];
        words.extend((*lost_bytes > 0).then(|| format!("{} lost", size(*lost_bytes)).into()));
        words.extend((*unconfirmed_bytes > 0).then(|| format!("{} not confirmed", size(*unconfirmed_bytes)).into()));
        let lines = self.fold(&head, &words, wide, INDENT, columns);
        let style = match worst {
            Harm::Lost => RED,
            Harm::Possible => YELLOW,
            Harm::Unknown | Harm::None => DIM,
        };
        if self.style.color { writeln!(out, "{style}{lines}{style:#}") } else { writeln!(out, "{lines}") }
    }

    /// Writes a line of the log that no record belongs to.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write_unmatched(&self, out: &mut impl Write, line: &LogLine, columns: Option<usize>) -> io::Result<()> {
        let parts = ["log line without a record:".into(), self.shown(&line.raw)];
        writeln!(out, "{}", self.fold("", &parts, true, INDENT, columns))
    }

    fn write_log_of(&self, out: &mut impl Write, judged: &Judged, columns: Option<usize>) -> io::Result<()> {
        if self.style.silence && judged.log == Finding::Nothing && judged.teardown.observer.is_some() {
            return writeln!(out, "{:INDENT$}log: no line about this error", "");
        }
        self.write_log(out, &judged.log, columns)
    }

    /// What the application's log has about a record, below it.
    fn write_log(&self, out: &mut impl Write, log: &Finding, columns: Option<usize>) -> io::Result<()> {
        for parts in log_words(log) {
            let parts: Vec<_> = parts.iter().map(|part| self.shown(part)).collect();
            writeln!(out, "{}", self.fold(&" ".repeat(INDENT - 1), &parts, true, INDENT, columns))?;
        }
        Ok(())
    }

    fn write_half(
        &mut self,
        out: &mut impl Write,
        judged: &Judged,
        other: Option<&Judged>,
        clock: &WallClock,
        columns: Option<usize>,
    ) -> io::Result<()> {
        let t = &judged.teardown;
        // Of a pair the worse half counts.
        let worst = other.filter(|other| other.verdict.harm < judged.verdict.harm).unwrap_or(judged);
        let process = match other {
            Some(other) => {
                let arrow = if self.style.unicode { "→" } else { "->" };
                let (ours, theirs) = (process_of(t).to_string(), process_of(&other.teardown).to_string());
                format!("{} {arrow} {}", self.shown(&ours), self.shown(&theirs))
            }
            None => self.shown(&process_of(t).to_string()).into_owned(),
        };
        let head = Head {
            at_ns: t.at_ns,
            harm: worst.verdict.harm.on_screen(),
            style: style_of(worst),
            process,
            arrow: self.arrow(t),
            local: t.local,
            remote: t.remote,
        };
        self.write_line(out, head, &words(judged, other), clock, columns)
    }

    fn write_line(
        &mut self,
        out: &mut impl Write,
        head: Head<'_>,
        words: &[Cow<'_, str>],
        clock: &WallClock,
        columns: Option<usize>,
    ) -> io::Result<()> {
        let Head { at_ns, harm, style, process, arrow, local, remote } = head;
        let words: Vec<_> = words.iter().map(|part| self.shown(part)).collect();
        let time = self.time(clock.at(at_ns));
        let wide = columns.is_none_or(|columns| columns >= ONE_LINE);
        let elide = columns.is_some();
        let remote = endpoint(remote, elide);
        let head = if wide {
            let local = endpoint(local, elide);
            self.process = self.process.max(self.width(&process).min(MAX_PROCESS));
            self.local = self.local.max(self.width(&local).min(MAX_ENDPOINT));
            self.remote = self.remote.max(self.width(&remote).min(MAX_ENDPOINT));
            format!(
                "{time} {harm:<5} {} {} {arrow} {} ",
                self.pad(&process, self.process),
                self.pad(&local, self.local),
                self.pad(&remote, self.remote)
            )
        } else {
            let (who, what) = (format!("{time} {harm:<5} {process}"), format!(":{} {arrow} {remote}", local.port));
            let fits = columns.is_none_or(|columns| self.width(&who) + 1 + self.width(&what) < columns);
            if fits { format!("{who} {what}") } else { format!("{who}\n{}{what}", " ".repeat(INDENT)) }
        };
        let lines = self.fold(&head, &words, wide, INDENT, columns);
        if self.style.color { writeln!(out, "{style}{lines}{style:#}") } else { writeln!(out, "{lines}") }
    }

    /// The evidence, for `-v`.
    fn write_timeline(&self, out: &mut impl Write, judged: &Judged, columns: Option<usize>) -> io::Result<()> {
        if !self.style.timeline {
            return Ok(());
        }
        for (time, parts) in timeline::of(judged) {
            let head = format!("{:INDENT$}{time:>TIMES$} ", "");
            let parts: Vec<_> = parts.iter().map(|part| self.shown(part)).collect();
            writeln!(out, "{}", self.fold(&head, &parts, true, INDENT + TIMES + 2, columns))?;
        }
        Ok(())
    }

    /// Names in it come from outside.
    pub fn shown<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let text = for_terminal(text);
        if self.style.unicode || text.is_ascii() { text } else { in_ascii(&text).into() }
    }

    /// Puts the words behind the head as far as they fit, the rest below.
    pub(super) fn fold(&self, head: &str, words: &[Cow<'_, str>], wide: bool, indent: usize, columns: Option<usize>) -> String {
        let limit = columns.unwrap_or(usize::MAX).max(40);
        let length = words.iter().map(|part| part.len() + 2).sum::<usize>();
        let mut lines = String::with_capacity(head.len() + length);
        lines += head;
        let mut used = match columns {
            Some(_) if !wide => limit,
            Some(_) => self.width(head),
            None => 0,
        };
        let mut first = true;
        for part in words {
            // Nobody measures where nothing ends.
            let part_width = if columns.is_none() { 0 } else { self.width(part) };
            let joint = if first { " " } else { "; " };
            if used + joint.len() + part_width + 1 > limit {
                // A line of its own is no gain where this one has nothing but the time.
                if used + joint.len() > indent {
                    lines.truncate(lines.trim_end().len());
                    if !first {
                        lines.push(';');
                    }
                    lines.push('\n');
                    lines.push_str(&" ".repeat(indent));
                    used = indent;
                } else {
                    lines.push_str(joint);
                    used += joint.len();
                }
                self.wrap(&mut lines, part, &mut used, indent, limit);
            } else {
                lines.push_str(joint);
                lines.push_str(part);
                used += joint.len() + part_width;
            }
            first = false;
        }
        lines.truncate(lines.trim_end().len());
        lines
    }

    /// A part that begins at the indentation, broken between words where it must be.
    fn wrap(&self, lines: &mut String, part: &str, used: &mut usize, indent: usize, limit: usize) {
        for (i, word) in unbroken(part).enumerate() {
            let width = self.width(word);
            if i > 0 && *used + 1 + width + 1 > limit {
                lines.push('\n');
                lines.push_str(&" ".repeat(indent + 2));
                *used = indent + 2;
            } else if i > 0 {
                lines.push(' ');
                *used += 1;
            }
            lines.push_str(word);
            *used += width;
        }
    }

    pub(super) fn width(&self, text: &str) -> usize {
        if text.is_ascii() {
            return text.len();
        }
        if self.style.cjk { text.width_cjk() } else { text.width() }
    }

    /// With spaces up to a width.
    pub(super) fn pad(&self, text: &str, width: usize) -> impl Display {
        let missing = width.saturating_sub(self.width(text));
        fmt::from_fn(move |f| write!(f, "{text}{:missing$}", ""))
    }

    /// In the way that was asked for: `HH:MM:SS.mmm`, or seconds since the start.
    pub fn time(&mut self, at: Timestamp) -> String {
        match &self.style.time {
            TimeFormat::Zoned(zone) => {
                // Records of a burst share it.
                let second = at.as_second();
                if self.second.0 != Some(second) {
                    self.second = (Some(second), at.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string());
                }
                format!("{}.{:03}", self.second.1, at.subsec_millisecond())
            }
            TimeFormat::Relative(start) => {
                let ms = at.as_millisecond() - start.as_millisecond();
                format!("{:>12}", format!("{}.{:03}", ms / 1_000, ms.rem_euclid(1_000)))
            }
        }
    }

    /// `2026-11-26 21:43:22 to 21:43:40, 18.2 s`, in the way of times that was asked for.
    pub fn span(&mut self, from: Timestamp, to: Timestamp) -> String {
        let lasted = duration(u64::try_from(to.duration_since(from).as_nanos()).unwrap_or(0));
        let [begin, end] = match &self.style.time {
            TimeFormat::Zoned(zone) => {
                let [from, to] = [from, to].map(|at| at.to_zoned(zone.clone()));
                let end = if from.date() == to.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
                [from.strftime("%Y-%m-%d %H:%M:%S"), to.strftime(end)].map(|at| at.to_string())
            }
            TimeFormat::Relative(_) => [from, to].map(|at| self.time(at).trim_start().to_owned()),
        };
        format!("{begin} to {end}, {lasted}")
    }

    /// The end came from the remote side, from ours, from both at once, or from nobody who is known.
    pub const fn arrows(&self) -> [&'static str; 4] {
        if self.style.unicode { ["←", "→", "↔", "–"] } else { ["<-", "->", "<>", "--"] }
    }

    /// From which side the end came.
    pub fn arrow(&self, t: &Teardown) -> &'static str {
        let [left, right, both, none] = self.arrows();
        match (t.end, t.fin.first) {
            (EndKind::ResetReceived, _) | (EndKind::Fin, Some(FirstFin::Remote)) => left,
            (EndKind::ResetSent | EndKind::Timeout, _) | (EndKind::Fin, Some(FirstFin::Local)) => right,
            (EndKind::Fin, Some(FirstFin::Both)) => both,
            // An ICMP message, or ours to say.
            (EndKind::Error, _) if t.closer.is_none() => left,
            (EndKind::Error, _) => right,
            (EndKind::Fin, None) => none,
        }
    }
}

/// The verdict first, then what happened on the wire and who saw it.
pub fn words<'j>(judged: &'j Judged, other: Option<&Judged>) -> Vec<Cow<'j, str>> {
    let t = &judged.teardown;
    let mut words = Vec::with_capacity(6);
    words.push(judged.verdict.words.as_str().into());
    words.extend(request(t).or_else(|| other.and_then(|other| request(&other.teardown))).map(Cow::from));
    words.push(format!("{}{}", what(t), given(", ", who_saw(t), "")).into());
    if let Some(other) = other {
        words.extend(who_saw(&other.teardown).map(|saw| format!("at the other end {saw}").into()));
        let damage = &other.verdict.damage;
        if damage.undelivered > 0 {
            words.push(format!("{} of {} not delivered", bytes(damage.undelivered), process_of(&other.teardown)).into());
        }
    }
    let translated = translation(t, &judged.names).or_else(|| other.and_then(|other| translation(&other.teardown, &other.names)));
    words.extend(translated.map(Cow::from));
    words
}

/// Who really answers for the address that was dialled, in the same words at both ends.
fn translation(t: &Teardown, names: &Names) -> Option<String> {
    let nat = names.nat?;
    let words = |answers: Endpoint, dialled: Endpoint| format!("NAT: {answers} (for {dialled})");
    nat.translated.map(|real| words(real, t.remote)).or_else(|| nat.original.map(|dialled| words(t.local, dialled)))
}

/// What the log has about a record, a line each; parts to be joined by "; ".
fn log_words(log: &Finding) -> Vec<Vec<String>> {
    match log {
        Finding::Nothing => Vec::new(),
        Finding::About(lines) => lines.iter().take(MAX_LOG_LINES).map(|line| line_words(line)).collect(),
        Finding::Ambiguous(lines) => {
            let head = match lines.len() {
                1 => "log: not certain, this line fits other records as well:".to_owned(),
                // No more than these are told of.
                n if n > json::MAX_CANDIDATES => "log: not certain, one of many lines that fit:".to_owned(),
                n => format!("log: not certain, one of {n} lines that fit:"),
            };
            let shown = lines.iter().take(MAX_LOG_LINES).map(|line| vec![format!("  {}", line.raw)]);
            std::iter::once(vec![head]).chain(shown).collect()
        }
    }
}

/// More lines about one record are not shown.
const MAX_LOG_LINES: usize = 4;

fn line_words(line: &LogLine) -> Vec<String> {
    let side = line.side.map(|side| format!("{} side", side.name()));
    let mut first: Vec<String> = side.into_iter().chain(line.request.as_ref().map(|request| format!("\"{request}\""))).collect();
    if line.side != Some(Side::Client) {
        first.extend(line.client.as_ref().map(|client| format!("client {client}")));
    }
    let mut words = vec![format!("log: {}", first.join(", "))];
    words.extend(line.phrase.as_ref().map(|phrase| format!("while {phrase}")));
    // The record has its address; a path of its own it has where the proxy rewrites.
    let path = line.request.as_deref().and_then(|request| request.split(' ').nth(1));
    let upstream = line.upstream_text.as_ref().filter(|upstream| path.is_none_or(|path| !upstream.ends_with(path)));
    words.extend(upstream.map(|upstream| format!("upstream {upstream}")));
    if first.is_empty() && words.len() == 1 {
        words = vec![format!("log: {}", line.raw)];
    }
    words
}

/// The request, in quotes.
fn request(t: &Teardown) -> Option<String> {
    t.http.as_ref()?.request.as_ref().map(|line| format!("\"{}\"", line.replace('"', "\\\"")))
}

/// Which half of a pair the line is about: the one that sent, or closed first.
pub fn leads(a: &Judged, b: &Judged) -> bool {
    let (a, b) = (&a.teardown, &b.teardown);
    match (a.end, b.end) {
        // On loopback the arrival of a RST is traced before its departure.
        (EndKind::ResetSent, EndKind::ResetReceived) => true,
        (EndKind::ResetReceived, EndKind::ResetSent) => false,
        (EndKind::Fin, EndKind::Fin) if a.fin.first != b.fin.first => a.fin.first == Some(FirstFin::Local),
        _ => a.at_ns <= b.at_ns,
    }
}

fn style_of(judged: &Judged) -> Style {
    match judged.verdict.harm {
        Harm::Lost => RED,
        Harm::Possible => YELLOW,
        Harm::None if is_benign(judged) => DIM,
        Harm::None | Harm::Unknown => PLAIN,
    }
}

/// Ends that nobody need look at.
fn is_benign(judged: &Judged) -> bool {
    let cause = judged.verdict.cause;
    judged.teardown.end == EndKind::Fin
        || judged.teardown.bytes.is_none()
        || matches!(
            cause,
            Cause::ConnectProbe
                | Cause::PeerAbortAfterResponse
                | Cause::PeerAbortIdle
                | Cause::ResetWhileClosing
                | Cause::CloseWithUnreadData
        )
}

/// Words at whose ends a line may be broken: a number stays with its unit.
fn unbroken(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let is_unit = |after: &str| matches!(after.split([' ', ',', ')']).next(), Some("B" | "ns" | "us" | "ms" | "s"));
        let at = text.match_indices(' ').map(|(at, _)| at).find(|&at| !is_unit(&text[at + 1..]));
        let (word, tail) = at.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
        rest = tail;
        Some(word)
    })
}

/// For terminals that show nothing else.
fn in_ascii(text: &str) -> String {
    let ascii = |c: char| match c {
        // Something was cut here.
        '…' => "...".to_owned(),
        c if c.is_ascii() => c.to_string(),
        c => c.escape_unicode().to_string(),
    };
    text.chars().map(ascii).collect()
}

/// The process column: who holds the socket, else who had a hand in it.
pub fn process_of(t: &Teardown) -> impl Display {
    let process = t.owner.map(|owner| (owner.comm, owner.tgid)).or_else(|| hand_in(t).map(|task| (task.comm, task.tgid)));
    fmt::from_fn(move |f| match process {
        Some((comm, tgid)) => write!(f, "{}/{tgid}", comm.text()),
        None => f.write_str("-"),
    })
}

fn shown_tgid(t: &Teardown) -> Option<u32> {
    t.owner.map(|owner| owner.tgid).or_else(|| hand_in(t).map(|task| task.tgid))
}

/// A task that is not known to hold the socket, but had a part in its end.
fn hand_in(t: &Teardown) -> Option<Task> {
    t.observer.map(|observer| observer.task).or(t.released).or(t.closer)
}

pub(super) fn named(task: &Task) -> impl Display + use<> {
    let (comm, tgid) = (task.comm, task.tgid);
    fmt::from_fn(move |f| write!(f, "{}/{tgid}", comm.text()))
}

/// What happened on the wire, and by whose hand where it was ours.
pub(super) fn what(t: &Teardown) -> impl Display {
    fmt::from_fn(move |f| {
        let state = t.state.map_or("no socket", TcpState::name);
        let reason = given(" (", t.reason.as_deref(), ")");
        let by = given("", by(t), " ");
        match t.end {
            EndKind::ResetReceived => write!(f, "RST received in {state}"),
            EndKind::ResetSent if t.bytes.is_none() => match t.state {
                Some(state) => write!(f, "RST sent for a segment that met a {} socket{reason}", state.name()),
                None => write!(f, "RST sent for a segment that met no socket{reason}"),
            },
            EndKind::ResetSent => write!(f, "RST sent {by}in {state}{reason}"),
            EndKind::Timeout => write!(f, "timed out in {state}"),
            EndKind::Error if t.state == Some(TcpState::SynSent) && t.observer.is_none() && t.closer.is_some() => {
                write!(f, "closed {by}in SYN_SENT")
            }
            EndKind::Error => write!(f, "ended by an error in {state}"),
            EndKind::Fin => fins(f, t),
        }
    })
}

/// "by close()", with the process where it is not the one in front of the line.
fn by(t: &Teardown) -> Option<impl Display> {
    let closer = t.closer.as_ref()?;
    let foreign = shown_tgid(t) != Some(closer.tgid);
    if !foreign && !closer.exiting && closer.syscall.is_none() {
        return None;
    }
    Some(fmt::from_fn(move |f| match (foreign, closer.exiting, closer.syscall) {
        (false, true, _) => f.write_str("on exit"),
        (true, true, _) => write!(f, "on exit of {}", named(closer)),
        (true, false, call) => write!(f, "by {}{}", named(closer), given(" ", call, "()")),
        (false, false, call) => write!(f, "{}", given("by ", call, "()")),
    }))
}

fn fins(f: &mut fmt::Formatter<'_>, t: &Teardown) -> fmt::Result {
    let fin = &t.fin;
    let sent = given(" ", by(t), "");
    let received = given(" with ", fin.remote_data_bytes.filter(|&n| n > 0).map(|n| bytes(n.into())), "");
    let apart = given(" ", fin.half_closed_ns.map(duration), " later");
    match (fin.first, fin.local, fin.remote) {
        (Some(FirstFin::Local), _, Some(true)) => write!(f, "FIN sent{sent}, FIN received{received}{apart}"),
        (Some(FirstFin::Local), ..) => write!(f, "FIN sent{sent}"),
        (Some(FirstFin::Remote), Some(true), _) => write!(f, "FIN received{received}, FIN sent{sent}{apart}"),
        (Some(FirstFin::Remote), ..) => write!(f, "FIN received{received}"),
        (Some(FirstFin::Both), ..) => write!(f, "FIN sent{sent} and FIN received{received} at once"),
        (None, ..) => f.write_str("closed"),
    }
}

pub(super) fn saw(observer: &Observer) -> impl Display {
    let call = observer.task.syscall.unwrap_or("an unseen call");
    let fd = given(" fd ", observer.task.fd, "");
    let delay = given(" +", observer.delay_ns.map(duration), "");
    let inferred = if observer.inferred { " (concluded)" } else { "" };
    fmt::from_fn(move |f| write!(f, "{call}{fd} {}{delay}{inferred}", observer.errno))
}

fn who_saw(t: &Teardown) -> Option<impl Display> {
    if t.end == EndKind::Fin || t.bytes.is_none() {
        return None;
    }
    // Whoever aborts has no error to see.
    let own = matches!(t.end, EndKind::ResetSent | EndKind::Error) && t.closer.is_some() && t.observer.is_none();
    let unseen = match t.seen {
        Seen::NotYet => "not yet noticed",
        Seen::Never => "noticed by nobody",
        Seen::Unknown => "noticed by: unknown",
        Seen::Yes => "",
    };
    if own || t.observer.is_none() && unseen.is_empty() {
        return None;
    }
    Some(fmt::from_fn(move |f| match &t.observer {
        Some(observer) if shown_tgid(t) != Some(observer.task.tgid) => write!(f, "{} saw {}", named(&observer.task), saw(observer)),
        Some(observer) => write!(f, "{}", saw(observer)),
        None => f.write_str(unseen),
    }))
}

fn late_words(late: &LateObservation) -> [Cow<'static, str>; 2] {
    [format!("noticed at last: {}", saw(&late.observer)).into(), format!("the {} that was printed before", late.end.name()).into()]
}

/// An endpoint; a long IPv6 address is elided in the middle on a terminal.
fn endpoint(endpoint: Endpoint, elide: bool) -> String {
    elided(endpoint.to_string(), elide)
}

pub(super) fn elided(text: String, elide: bool) -> String {
    if !elide || text.len() <= MAX_ENDPOINT {
        return text;
    }
    let tail = text.len() - (MAX_ENDPOINT - 12);
    format!("{}..{}", &text[..10], &text[tail..])
}
