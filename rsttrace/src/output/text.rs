//! One line per connection that ended, two or more where the terminal is narrow.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};
use unicode_width::UnicodeWidthStr;

use super::{
    WallClock,
    escape::for_terminal,
    units::{bytes, duration},
};
use crate::model::{EndKind, Endpoint, Fin, FirstFin, LateObservation, Observer, Record, Seen, Task, TcpState, Teardown};

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
    /// A second line with the evidence.
    pub verbose: bool,
}

/// Below this a record takes two lines at least.
const ONE_LINE: usize = 120;
/// Where the words of a second line begin: under the process, after "HH:MM:SS.mmm ".
const INDENT: usize = 13;
/// Columns grow to what they hold, but a single odd one does not push the rest off the screen.
const MAX_PROCESS: usize = 22;
const MAX_ENDPOINT: usize = 32;

const RED: Style = AnsiColor::Red.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();
const PLAIN: Style = Style::new();

/// Formats records; remembers how wide the columns have become.
#[derive(Clone, Debug)]
pub struct TextFormat {
    style: Appearance,
    process: usize,
    local: usize,
    remote: usize,
}

impl TextFormat {
    pub fn new(style: Appearance) -> Self {
        Self { style, process: 12, local: 15, remote: 15 }
    }

    /// Writes one record; `columns` is the terminal's width now, `None` where there is none.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(&mut self, out: &mut impl Write, record: &Record, clock: &WallClock, columns: Option<usize>) -> io::Result<()> {
        let (at_ns, process, arrow, local, remote, style, words) = match record {
            Record::Teardown(t) => (t.at_ns, process_of(t), self.arrow(t), t.local, t.remote, style_of(t), self.words(t)),
            Record::Late(late) => (late.at_ns, named(&late.observer.task), "  ", late.local, late.remote, PLAIN, late_words(late)),
        };
        let (process, words) =
            if self.style.unicode { (process, words) } else { (in_ascii(process), words.into_iter().map(in_ascii).collect()) };
        let time = self.time(clock.at(at_ns));
        let wide = columns.is_none_or(|columns| columns >= ONE_LINE);
        let elide = columns.is_some();
        let remote = endpoint(remote, elide);
        let head = if wide {
            let local = endpoint(local, elide);
            self.process = self.process.max(self.width(&process)).min(MAX_PROCESS.max(self.process));
            self.local = self.local.max(self.width(&local).min(MAX_ENDPOINT));
            self.remote = self.remote.max(self.width(&remote).min(MAX_ENDPOINT));
            format!(
                "{time} {} {} {arrow} {} ",
                self.pad(&process, self.process),
                self.pad(&local, self.local),
                self.pad(&remote, self.remote)
            )
        } else {
            let (who, what) = (format!("{time} {process}"), format!(":{} {arrow} {remote}", local.port));
            let fits = columns.is_none_or(|columns| self.width(&who) + 1 + self.width(&what) < columns);
            if fits { format!("{who} {what}") } else { format!("{who}\n{}{what}", " ".repeat(INDENT)) }
        };
        let lines = self.fold(&head, &words, wide, columns);
        if self.style.color { writeln!(out, "{style}{lines}{style:#}") } else { writeln!(out, "{lines}") }
    }

    /// Puts the words behind the head as far as they fit, the rest below.
    fn fold(&self, head: &str, words: &[String], wide: bool, columns: Option<usize>) -> String {
        let limit = columns.unwrap_or(usize::MAX).max(40);
        let mut lines = head.to_owned();
        let mut used = if wide { self.width(head) } else { limit };
        let mut first = true;
        for part in words {
            let part_width = self.width(part);
            let joint = if first { " " } else { "; " };
            if used + joint.len() + part_width + 1 > limit {
                lines.truncate(lines.trim_end().len());
                if !first {
                    lines.push(';');
                }
                used = INDENT;
                self.wrap(&mut lines, part, &mut used, limit);
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

    /// A part that begins a line of its own, broken between words where it must be.
    fn wrap(&self, lines: &mut String, part: &str, used: &mut usize, limit: usize) {
        lines.push('\n');
        lines.push_str(&" ".repeat(INDENT));
        for (i, word) in part.split(' ').enumerate() {
            let width = self.width(word);
            if i > 0 && *used + 1 + width + 1 > limit {
                lines.push('\n');
                lines.push_str(&" ".repeat(INDENT + 2));
                *used = INDENT + 2;
            } else if i > 0 {
                lines.push(' ');
                *used += 1;
            }
            lines.push_str(word);
            *used += width;
        }
    }

    fn width(&self, text: &str) -> usize {
        if self.style.cjk { text.width_cjk() } else { text.width() }
    }

    fn pad(&self, text: &str, width: usize) -> String {
        format!("{text}{}", " ".repeat(width.saturating_sub(self.width(text))))
    }

    fn time(&self, at: Timestamp) -> String {
        match &self.style.time {
            TimeFormat::Zoned(zone) => at.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
            TimeFormat::Relative(start) => {
                let ms = at.as_millisecond() - start.as_millisecond();
                format!("{:>12}", format!("{}.{:03}", ms / 1_000, ms.rem_euclid(1_000)))
            }
        }
    }

    /// From which side the end came.
    fn arrow(&self, t: &Teardown) -> &'static str {
        let (left, right, both, none) = if self.style.unicode { ("←", "→", "↔", "–") } else { ("<-", "->", "<>", "--") };
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

    fn words(&self, t: &Teardown) -> Vec<String> {
        let mut words = vec![what(t)];
        words.extend(who_saw(t));
        words.extend(payload(t));
        if self.style.verbose {
            words.extend(evidence(t));
        }
        words
    }
}

/// For terminals that show nothing else.
fn in_ascii(text: String) -> String {
    if text.is_ascii() {
        return text;
    }
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

fn style_of(t: &Teardown) -> Style {
    let lost = t.bytes.is_some_and(|b| b.unsent > 0 || b.unread > 0 && t.end == EndKind::ResetSent);
    match t.end {
        EndKind::Fin => DIM,
        _ if t.bytes.is_none() => DIM,
        _ if lost => RED,
        EndKind::Timeout | EndKind::Error => RED,
        _ if t.bytes.is_some_and(|b| b.unacked > 0) => YELLOW,
        _ => PLAIN,
    }
}

/// The process column: who holds the socket, else who had a hand in it.
fn process_of(t: &Teardown) -> String {
    match (t.owner, hand_in(t)) {
        (Some(owner), _) => format!("{}/{}", for_terminal(&owner.comm.text()), owner.tgid),
        (None, Some(task)) => named(&task),
        (None, None) => "-".to_owned(),
    }
}

fn shown_tgid(t: &Teardown) -> Option<u32> {
    t.owner.map(|owner| owner.tgid).or_else(|| hand_in(t).map(|task| task.tgid))
}

/// A task that is not known to hold the socket, but had a part in its end.
fn hand_in(t: &Teardown) -> Option<Task> {
    t.observer.map(|observer| observer.task).or(t.released).or(t.closer)
}

fn named(task: &Task) -> String {
    format!("{}/{}", for_terminal(&task.comm.text()), task.tgid)
}

/// What happened on the wire, and by whose hand where it was ours.
fn what(t: &Teardown) -> String {
    let state = t.state.map_or("no socket", TcpState::name);
    let reason = t.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    match t.end {
        EndKind::ResetReceived if t.state == Some(TcpState::SynSent) => "refused: RST received in SYN_SENT".to_owned(),
        EndKind::ResetReceived => format!("RST received in {state}"),
        EndKind::ResetSent if t.bytes.is_none() => match t.state {
            Some(state) => format!("RST sent for a segment that met a {} socket{reason}", state.name()),
            None => format!("RST sent for a segment that met no socket{reason}"),
        },
        EndKind::ResetSent => format!("RST sent {}in {state}{reason}", by(t)),
        EndKind::Timeout => format!("timed out in {state}"),
        EndKind::Error if t.state == Some(TcpState::SynSent) && t.observer.is_none() && t.closer.is_some() => {
            format!("connect given up {}", by(t).trim_end())
        }
        EndKind::Error => format!("ended by an error in {state}"),
        EndKind::Fin => fins(&t.fin, t),
    }
}

/// "by close() ", with the process where it is not the one in front of the line.
fn by(t: &Teardown) -> String {
    let Some(closer) = &t.closer else { return String::new() };
    let foreign = shown_tgid(t) != Some(closer.tgid);
    match (foreign, closer.exiting, closer.syscall) {
        (false, true, _) => "on exit ".to_owned(),
        (true, true, _) => format!("on exit of {} ", named(closer)),
        (false, false, Some(call)) => format!("by {call}() "),
        (true, false, Some(call)) => format!("by {} {call}() ", named(closer)),
        (true, false, None) => format!("by {} ", named(closer)),
        (false, false, None) => String::new(),
    }
}

fn fins(fin: &Fin, t: &Teardown) -> String {
    let by = by(t);
    let by = by.trim_end();
    let sent = if by.is_empty() { "FIN sent".to_owned() } else { format!("FIN sent {by}") };
    let received = match fin.remote_data_bytes {
        Some(n) if n > 0 => format!("FIN received with {}", bytes(n.into())),
        _ => "FIN received".to_owned(),
    };
    let apart = fin.half_closed_ns.map(|ns| format!(" {} later", duration(ns))).unwrap_or_default();
    match (fin.first, fin.local, fin.remote) {
        (Some(FirstFin::Local), _, Some(true)) => format!("{sent}, {received}{apart}"),
        (Some(FirstFin::Local), ..) => sent,
        (Some(FirstFin::Remote), Some(true), _) => format!("{received}, {sent}{apart}"),
        (Some(FirstFin::Remote), ..) => received,
        (Some(FirstFin::Both), ..) => format!("{sent} and {received} at once"),
        (None, ..) => "closed".to_owned(),
    }
}

fn saw(observer: &Observer) -> String {
    let call = observer.task.syscall.unwrap_or("an unseen call");
    let fd = observer.task.fd.map(|fd| format!(" fd {fd}")).unwrap_or_default();
    let delay = observer.delay_ns.map(|ns| format!(" +{}", duration(ns))).unwrap_or_default();
    let inferred = if observer.inferred { " (concluded)" } else { "" };
    format!("{call}{fd} {}{delay}{inferred}", observer.errno)
}

fn who_saw(t: &Teardown) -> Option<String> {
    if t.end == EndKind::Fin || t.bytes.is_none() {
        return None;
    }
    // Whoever aborts has no error to see.
    let own = matches!(t.end, EndKind::ResetSent | EndKind::Error) && t.closer.is_some() && t.observer.is_none();
    match (&t.observer, t.seen) {
        (Some(observer), _) => {
            let foreign = shown_tgid(t) != Some(observer.task.tgid);
            let who = if foreign { format!("{} saw ", named(&observer.task)) } else { String::new() };
            Some(format!("{who}{}", saw(observer)))
        }
        _ if own => None,
        (None, Seen::NotYet) => Some("not yet noticed".to_owned()),
        (None, Seen::Never) => Some("noticed by nobody".to_owned()),
        (None, Seen::Unknown) => Some("noticed by: unknown".to_owned()),
        (None, Seen::Yes) => None,
    }
}

fn payload(t: &Teardown) -> Option<String> {
    let b = t.bytes?;
    if t.state == Some(TcpState::SynSent) && b.unsent == 0 {
        return None;
    }
    let mut parts = Vec::new();
    if b.sent > 0 {
        let acked = if b.unacked == 0 { " all acked".to_owned() } else { format!(" {} unacked", bytes(b.unacked)) };
        parts.push(format!("sent {},{acked}", bytes(b.sent)));
    }
    if b.unsent > 0 {
        parts.push(format!("{} unsent", bytes(b.unsent)));
    }
    if b.received > 0 {
        let unread = if b.unread > 0 { format!(", {} unread", bytes(b.unread)) } else { String::new() };
        parts.push(format!("received {}{unread}", bytes(b.received)));
    }
    if parts.is_empty() {
        parts.push("no payload".to_owned());
    }
    Some(parts.join(", "))
}

/// What else is known, for `-v`.
fn evidence(t: &Teardown) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(age) = t.age_ns {
        parts.push(format!("opened {} before", duration(age)));
    } else if t.bytes.is_some() {
        parts.push("older than the tracer".to_owned());
    }
    if let Some(role) = t.role {
        parts.push(role.name().to_owned());
    }
    if let Some(idle) = t.idle {
        // The kernel keeps these in ticks of up to 10 ms: less would be false precision.
        let ago = |ms: Option<u64>| match ms {
            None => "never".to_owned(),
            Some(0..=10) => "just before".to_owned(),
            Some(ms) => format!("{} before", duration(ms * 1_000_000)),
        };
        parts.push(format!("last sent {}, last received {}", ago(idle.sent_ms), ago(idle.received_ms)));
    }
    if let Some(rtt) = t.rtt_us {
        parts.push(format!("rtt {}", duration(u64::from(rtt) * 1_000)));
    }
    if let Some(n @ 1..) = t.retransmits {
        parts.push(format!("{n} retransmits"));
    }
    if let Some(task) = &t.released {
        let how = if task.exiting { "exiting".to_owned() } else { task.syscall.map_or("?".to_owned(), |call| format!("{call}()")) };
        parts.push(format!("released by {} {how}", named(task)));
    }
    if let Some(netns) = t.netns {
        parts.push(format!("netns {netns}"));
    }
    parts
}

fn late_words(late: &LateObservation) -> Vec<String> {
    vec![format!("noticed at last: {}", saw(&late.observer)), format!("the {} that was printed before", late.end.name())]
}

/// An endpoint; a long IPv6 address is elided in the middle on a terminal.
fn endpoint(endpoint: Endpoint, elide: bool) -> String {
    let text = endpoint.to_string();
    if !elide || text.len() <= MAX_ENDPOINT {
        return text;
    }
    let tail = text.len() - (MAX_ENDPOINT - 12);
    format!("{}..{}", &text[..10], &text[tail..])
}
