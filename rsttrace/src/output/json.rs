//! The JSON contract, schema 1: see docs/json.md and docs/rsttrace.schema.json. The objects and
//! structs here are the format; nothing else may name its keys.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Serialize, ser::SerializeMap as _};
use serde_json::{Serializer, ser::Formatter};

use super::{
    Rfc3339, Signal, WallClock,
    escape::is_harmless,
    line::{Dates, Line, Plain, Rare, Strings, Value, Word, object},
    summary::{LogCounts, Summary},
};
use crate::{
    audit,
    fold::Folded,
    model::{self, EndKind, Endpoint, Errno, Finding, FirstFin, Judged, LateObservation, LogLine, Observer, Side, Teardown, Verdict},
};

const SCHEMA: u32 = 1;

impl Serialize for Rfc3339 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// First line of a run.
#[derive(Clone, Debug)]
pub struct Start {
    pub time: String,
    pub version: &'static str,
    pub kernel: String,
    pub host: String,
    /// How each hook is attached; `None`: it is not.
    pub hooks: Vec<(&'static str, Option<&'static str>)>,
    pub filters: Vec<String>,
}

#[derive(Serialize)]
struct StartLine<'a> {
    schema: u32,
    record: &'static str,
    time: &'a str,
    version: &'a str,
    kernel: &'a str,
    host: &'a str,
    #[serde(serialize_with = "as_map")]
    hooks: &'a [(&'static str, Option<&'static str>)],
    filters: &'a [String],
    /// The last key: see [`continued`].
    continued: Option<Rfc3339>,
}

fn as_map<S: serde::Serializer>(pairs: &[(&'static str, Option<&'static str>)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (key, value) in pairs {
        map.serialize_entry(key, value)?;
    }
    map.end()
}

/// A line of the application's log. Its key is the format for `rsttrace correlate` too.
#[derive(Serialize)]
pub struct Log<'a> {
    side: Option<&'static str>,
    client: Option<String>,
    upstream: Option<&'a str>,
    request: Option<&'a str>,
    host: Option<&'a str>,
    phrase: Option<&'a str>,
    line: &'a str,
    further: Vec<&'a str>,
}

/// The lines that are about this record and no other.
pub fn certain(log: &Finding) -> Option<Log<'_>> {
    let Finding::About(lines) = log else { return None };
    let (first, further) = lines.split_first()?;
    Some(of_line(first, further))
}

fn of_line<'a>(line: &'a LogLine, further: &'a [Arc<LogLine>]) -> Log<'a> {
    Log {
        side: line.side.map(Side::name),
        client: line.client.as_ref().map(ToString::to_string),
        upstream: line.upstream_text.as_deref(),
        request: line.request.as_deref(),
        host: line.host.as_deref(),
        phrase: line.phrase.as_deref(),
        line: &line.raw,
        further: further.iter().map(|line| line.raw.as_str()).collect(),
    }
}

/// The lines that may be about it.
pub fn candidates(log: &Finding) -> Vec<&str> {
    let Finding::Ambiguous(lines) = log else { return Vec::new() };
    lines.iter().take(MAX_CANDIDATES).map(|line| line.raw.as_str()).collect()
}

/// More are not told: they help nobody.
pub const MAX_CANDIDATES: usize = 8;

#[derive(Serialize)]
struct KeptLine {
    schema: u32,
    record: &'static str,
    from: Rfc3339,
    to: Rfc3339,
}

#[derive(Serialize)]
struct FoldedLine<'a> {
    schema: u32,
    record: &'static str,
    time: Rfc3339,
    first: Rfc3339,
    count: u64,
    like: Option<u64>,
    end: &'static str,
    cause: &'static str,
    harm: &'static str,
    role: Option<&'static str>,
    process: Option<std::borrow::Cow<'a, str>>,
    service_port: Option<u16>,
    remote_addr: Option<std::net::IpAddr>,
    lost_bytes: u64,
    unconfirmed_bytes: u64,
}

#[derive(Serialize)]
struct LogOnlyLine<'a> {
    schema: u32,
    record: &'static str,
    log: Log<'a>,
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    schema: u32,
    record: &'static str,
    started: Rfc3339,
    stopped: Rfc3339,
    sockets: BTreeMap<&'static str, u64>,
    causes: BTreeMap<&'static str, u64>,
    harm: BTreeMap<&'static str, u64>,
    orderly: u64,
    lost: Lost<'a>,
    undecodable: u64,
    evicted: u64,
    filtered: u64,
    audit: Vec<AuditEntry<'a>>,
    not_audited: &'a [u32],
    foreign_resets: Option<Vec<ForeignResets>>,
    log: Option<LogSummary>,
}

#[derive(Serialize)]
struct LogSummary {
    lines: u64,
    ends: u64,
    joined: u64,
    ambiguous: u64,
    without_record: u64,
    no_connection: u64,
    malformed: u64,
    too_long: u64,
    errors_without_line: u64,
}

impl From<&LogCounts> for LogSummary {
    fn from(log: &LogCounts) -> Self {
        let ends = log.of_ends;
        Self {
            lines: log.lines,
            ends: ends.lines,
            joined: ends.joined,
            ambiguous: ends.ambiguous,
            without_record: ends.without_record,
            no_connection: ends.no_connection,
            malformed: log.malformed,
            too_long: log.too_long,
            errors_without_line: log.errors_without_line,
        }
    }
}

#[derive(Serialize)]
struct AuditEntry<'a> {
    netns: u32,
    counter: &'static str,
    kernel: u64,
    ours: u64,
    explained: Option<&'a str>,
}

impl<'a> From<&'a audit::Entry> for AuditEntry<'a> {
    fn from(entry: &'a audit::Entry) -> Self {
        Self { netns: entry.netns, counter: entry.counter.name(), kernel: entry.kernel, ours: entry.ours, explained: entry.words() }
    }
}

#[derive(Serialize)]
struct ForeignResets {
    netns: u32,
    resets: u64,
}

#[derive(Serialize)]
struct Lost<'a> {
    total: u64,
    records: u64,
    by_hook: BTreeMap<&'a str, u64>,
    skipped: BTreeMap<&'a str, u64>,
    untold_runs: u64,
}

/// Writes the first line.
///
/// # Errors
/// What writing returns.
pub fn write_start(out: &mut impl Write, start: &Start) -> io::Result<()> {
    line(
        out,
        &StartLine {
            schema: SCHEMA,
            record: "start",
            time: &start.time,
            version: start.version,
            kernel: &start.kernel,
            host: &start.host,
            hooks: &start.hooks,
            filters: &start.filters,
            continued: None,
        },
    )
}

/// The first line of a run for a file that goes on with it since `at`; `None`: it is no such line.
pub fn continued(start: &[u8], at: Timestamp) -> Option<Vec<u8>> {
    let head = start.strip_suffix(b"null}\n").filter(|head| head.ends_with(b"\"continued\":"))?;
    Some([head, format!("\"{}\"}}\n", Rfc3339(at)).as_bytes()].concat())
}

/// Writes the last line.
///
/// # Errors
/// What writing returns.
pub fn write_summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    line(
        out,
        &SummaryLine {
            schema: SCHEMA,
            record: "summary",
            started: Rfc3339(summary.started),
            stopped: Rfc3339(summary.stopped),
            sockets: summary.ends().collect(),
            causes: summary.causes().collect(),
            harm: summary.harms().collect(),
            orderly: summary.orderly(),
            lost: Lost {
                total: summary.lost_total(),
                records: summary.lost_records,
                by_hook: summary.lost_by_hook.iter().copied().collect(),
                skipped: summary.skipped.iter().copied().collect(),
                untold_runs: summary.untold_runs,
            },
            undecodable: summary.undecodable,
            evicted: summary.evicted,
            filtered: summary.filtered,
            audit: summary.audit.iter().flat_map(|audit| &audit.entries).map(Into::into).collect(),
            not_audited: summary.audit.as_ref().map_or(&[], |audit| &audit.not_audited),
            foreign_resets: summary
                .audit
                .as_ref()
                .and_then(|audit| audit.foreign.as_ref())
                .map(|foreign| foreign.iter().map(|(&netns, &resets)| ForeignResets { netns, resets }).collect()),
            log: summary.log.as_ref().map(Into::into),
        },
    )
}

/// One object on a line of its own, safe to be watched on a terminal.
///
/// # Errors
/// What writing returns.
pub fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    escaped(out, value)?;
    out.write_all(b"\n")
}

/// Any value, safe to be watched on a terminal.
pub(super) fn escaped(out: &mut impl Write, value: &(impl Serialize + ?Sized)) -> Result<(), serde_json::Error> {
    value.serialize(&mut Serializer::with_formatter(out, TerminalSafe))
}

/// JSON lets control characters beyond ASCII and bidirectional overrides stand as they are; a
/// terminal that somebody watches the lines on would obey them.
struct TerminalSafe;

impl Formatter for TerminalSafe {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if is_harmless(c) {
                write!(writer, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// Records as lines of JSON.
#[derive(Debug, Default)]
pub struct JsonFormat {
    line: Line,
    dates: Dates,
}

impl JsonFormat {
    /// Writes one record.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(&mut self, out: &mut impl Write, judged: &Judged, clock: &WallClock) -> io::Result<()> {
        let Judged { teardown: t, verdict, names, log } = judged;
        let time = self.dates.of(clock.at(judged.teardown.at_ns));
        self.line.write(
            out,
            object! {
                schema: SCHEMA,
                record: Word("teardown"),
                time: time,
                end: Word(t.end.name()),
                family: Word(if t.local.addr.is_ipv4() { "ipv4" } else { "ipv6" }),
                local: endpoint(t.local),
                remote: endpoint(t.remote),
                nat: names.nat.map(|nat| object! { original: nat.original.map(endpoint), translated: nat.translated.map(endpoint) }),
                netns: t.netns,
                netns_name: names.netns.as_deref(),
                cookie: t.cookie,
                inode: t.inode,
                role: t.role.map(|role| Word(role.name())),
                state: t.state.map(|state| Word(state.name())),
                age_us: t.age_ns.map(micros),
                idle_ms: t.idle.map(|idle| object! { sent: idle.sent_ms, received: idle.received_ms }),
                bytes: t.bytes.map(|b| object! {
                    sent: b.sent,
                    acked: b.acked,
                    unacked: b.unacked,
                    unsent: b.unsent,
                    received: b.received,
                    unread: b.unread,
                }),
                rtt_us: t.rtt_us,
                retransmits: t.retransmits,
                reason: t.reason.as_deref().or(verdict.inferred_reason),
                owner: t.owner.as_ref().map(|owner| holder(owner, names.owner.as_deref())),
                observer: t.observer.as_ref().map(observer),
                seen: Word(t.seen.name()),
                closer: t.closer.as_ref().map(|task| object! {
                    tgid: task.tgid,
                    tid: task.tid,
                    comm: task.comm,
                    syscall: task.syscall.map(Word),
                    exiting: task.exiting,
                }),
                released: t.released.as_ref().map(|task| object! {
                    tgid: task.tgid,
                    tid: task.tid,
                    comm: task.comm,
                    syscall: task.syscall.map(Word),
                    exiting: task.exiting,
                    after_us: t.released_ns.map(|ns| micros(ns.saturating_sub(t.at_ns))),
                }),
                peer: t.peer.as_ref().map(|peer| object! {
                    cookie: peer.cookie,
                    tgid: peer.tgid,
                    comm: peer.tgid.map(|_| peer.comm),
                    syscall: peer.syscall.map(Word),
                    unread: peer.unread,
                }),
                fin: object! {
                    first: t.fin.first.map(|first| match first {
                        FirstFin::Local => Word("local"),
                        FirstFin::Remote => Word("remote"),
                        FirstFin::Both => Word("both"),
                    }),
                    local: t.fin.local,
                    remote: t.fin.remote,
                    remote_data_bytes: t.fin.remote_data_bytes,
                    half_closed_us: t.fin.half_closed_ns.map(micros),
                    since_us: t.fin.first_ns.map(|ns| micros(t.at_ns.saturating_sub(ns))),
                },
                http: t.http.as_ref().map(|http| object! {
                    request: http.request.as_deref(),
                    status: http.status,
                    answer: Word(http.answer.name()),
                }),
                phase: Word(verdict.phase.name()),
                cause: Word(verdict.cause.name()),
                initiator: Word(verdict.initiator.name()),
                harm: Word(verdict.harm.name()),
                lost_bytes: verdict.damage.lost(),
                unconfirmed_bytes: verdict.damage.unconfirmed,
                evidence: evidence(t, verdict),
                verdict: verdict.words.as_str(),
                log: certain(log).map(Rare),
                log_candidates: Strings(candidates(log)),
            },
        )
    }

    /// Writes an observation that came after its connection's record.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write_late(&mut self, out: &mut impl Write, late: &LateObservation, log: &Finding, clock: &WallClock) -> io::Result<()> {
        let time = self.dates.of(clock.at(late.at_ns));
        self.line.write(
            out,
            object! {
                schema: SCHEMA,
                record: Word("late-observation"),
                time: time,
                cookie: late.cookie,
                local: endpoint(late.local),
                remote: endpoint(late.remote),
                netns: late.netns,
                end: Word(late.end.name()),
                observer: observer(&late.observer),
                log: certain(log).map(Rare),
                log_candidates: Strings(candidates(log)),
            },
        )
    }
}

/// Writes how many more like one that was shown there were.
///
/// # Errors
/// What writing returns.
pub fn write_folded(out: &mut impl Write, folded: &Folded, clock: &WallClock) -> io::Result<()> {
    let place = folded.kind.place.as_ref();
    line(
        out,
        &FoldedLine {
            schema: SCHEMA,
            record: "folded",
            time: Rfc3339(clock.at(folded.last_ns)),
            first: Rfc3339(clock.at(folded.first_ns)),
            count: folded.count,
            like: folded.like,
            end: folded.kind.end.name(),
            cause: folded.kind.cause.name(),
            harm: folded.kind.harm.name(),
            role: place.and_then(|place| place.role).map(model::Role::name),
            process: place.and_then(|place| place.process.as_ref()).map(model::Comm::text),
            service_port: place.map(|place| place.service_port),
            remote_addr: place.map(|place| place.remote),
            lost_bytes: folded.lost_bytes,
            unconfirmed_bytes: folded.unconfirmed_bytes,
        },
    )
}

/// Writes over which time what follows was kept in memory.
///
/// # Errors
/// What writing returns.
pub fn write_kept(out: &mut impl Write, from: Timestamp, to: Timestamp) -> io::Result<()> {
    line(out, &KeptLine { schema: SCHEMA, record: "kept", from: Rfc3339(from), to: Rfc3339(to) })
}

/// Writes a line of the log that no record belongs to.
///
/// # Errors
/// What writing returns.
pub fn write_unmatched(out: &mut impl Write, log: &LogLine) -> io::Result<()> {
    line(out, &LogOnlyLine { schema: SCHEMA, record: "log-line", log: of_line(log, &[]) })
}

fn micros(ns: u64) -> u64 {
    ns / 1_000
}

fn endpoint(endpoint: Endpoint) -> impl Value {
    object! { addr: endpoint.addr, port: endpoint.port }
}

fn holder<'a>(owner: &'a model::Owner, identity: Option<&'a model::Identity>) -> impl Value + 'a {
    let place = identity.map(|identity| &identity.place);
    object! {
        tgid: owner.tgid,
        comm: owner.comm,
        exe: identity.and_then(|identity| identity.exe.as_deref()),
        user: identity.and_then(|identity| identity.user.as_deref()),
        uid: identity.and_then(|identity| identity.uid),
        ns_tgid: identity.and_then(|identity| identity.ns_tgid),
        unit: place.and_then(|place| place.unit.as_deref()),
        container: place.and_then(|place| place.container.as_ref()).map(|container| object! {
            id: container.id.as_str(),
            runtime: container.runtime.map(|runtime| Word(runtime.name())),
        }),
        pod: place.and_then(|place| place.pod.as_deref()),
    }
}

fn observer(observer: &Observer) -> impl Value + '_ {
    let task = &observer.task;
    object! {
        tgid: task.tgid,
        tid: task.tid,
        comm: task.comm,
        syscall: task.syscall.map(Word),
        fd: task.fd,
        errno: Symbol(observer.errno),
        delay_us: observer.delay_ns.map(micros),
        inferred: observer.inferred,
    }
}

/// Without a full socket there is none, but that a reason is inferred must be said.
fn evidence<'a>(t: &'a Teardown, verdict: &'a Verdict) -> Option<impl Value + 'a> {
    let known = t.evidence.as_ref();
    if known.is_none() && verdict.inferred_reason.is_none() {
        return None;
    }
    let e = known.copied().unwrap_or_default();
    Some(object! {
        last_speaker: e.last_speaker.map(|speaker| Word(speaker.name())),
        reused: verdict.reused,
        linger: e.linger_s,
        user_timeout: e.user_timeout_ms,
        min_rtt_us: e.min_rtt_us,
        since_last_tx_us: e.since_last_tx_us,
        probes_out: known.map(|e| e.probes_out),
        soft_errno: e.soft_errno.map(Symbol),
        signal: t.closer.and_then(|closer| closer.signal).map(|signal| Plain(Signal(signal))),
        timer: verdict.timer.as_ref().map(|timer| object! { seconds: timer.seconds, name: &*timer.name }),
        reason_from: match (t.end, &t.reason) {
            (EndKind::ResetSent, Some(_)) => Some(Word("kernel")),
            (EndKind::ResetSent, None) => Some(Word("inferred")),
            _ => None,
        },
        rst: e.reset.map(|header| object! { acked: header.acked, ttl: header.ttl, window: header.window }),
    })
}

/// An error by its symbol, or by number where it has none.
struct Symbol(Errno);

impl Value for Symbol {
    fn put(&self, line: &mut Line) {
        match self.0.name() {
            Some(name) => Word(name).put(line),
            None => Plain(self.0.0).put(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        line(&mut out, &text).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_control_character_reaches_a_terminal_through_json() {
        assert_eq!(written("\u{1b}[2J\u{9b}2J\u{202e}\u{7f}"), "\"\\u001b[2J\\u009b2J\\u202e\\u007f\"\n");
        assert_eq!(written("日本 \"x\" \\"), "\"日本 \\\"x\\\" \\\\\"\n");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(text in any::<String>()) {
            let line = written(&text);
            prop_assert!(!line.trim_end().chars().any(char::is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
