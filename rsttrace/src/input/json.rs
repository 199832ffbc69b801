//! A line of `--json` back to the record that it was written from, as far as the line tells. These
//! structs are the format as it is read: what they do not name is ignored, what a later version adds too.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use crate::model::{
    Answer, Bytes, Closer, Comm, Container as ModelContainer, Damage, EndKind, Endpoint as ModelEndpoint, Errno, Fault, Finding, FirstFin,
    Http as ModelHttp, Identity, Idle, Judged, LateObservation, LogLine, LogTime, Names, Nat as ModelNat, Observer as ModelObserver,
    Owner as ModelOwner, Peer as ModelPeer, Place, Remote, ResetHeader, Role, Runtime, Seen, Side, Speaker, Stamp, Task, TcpState,
    Teardown, Verdict,
};
use crate::output::{Signal, json::MAX_CANDIDATES};

/// Lines of a log about one record: more are not told.
const MAX_LINES: usize = MAX_CANDIDATES + 1;
/// The schema that is understood; see docs/json.md.
const SCHEMA: u32 = 1;

/// A record whose times are nanoseconds since 1970.
#[derive(Debug)]
pub enum Saved {
    Teardown(Box<Judged>),
    Late(Box<LateObservation>, Finding),
    Start(Start),
    Summary(Box<Sums>),
    /// So many ends that `--rate-limit` kept from being records.
    Folded(u64),
    Kept(Kept),
    /// Whatever else is no end of a connection.
    Other,
}

impl Saved {
    /// When it happened; `None` for what has no time of its own.
    pub fn at_ns(&self) -> Option<u64> {
        match self {
            Self::Teardown(judged) => Some(judged.teardown.at_ns),
            Self::Late(late, _) => Some(late.at_ns),
            _ => None,
        }
    }
}

/// So much of a run was in memory when it was written.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Kept {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// The first line of a run.
#[derive(Clone, Debug, Deserialize)]
pub struct Start {
    pub time: Timestamp,
    pub version: String,
    pub kernel: String,
    pub host: String,
    pub filters: Vec<String>,
    /// The file goes on with a run that began in another one, since then.
    pub continued: Option<Timestamp>,
}

/// Of the last line, what the records do not tell.
#[derive(Clone, Debug, Deserialize)]
pub struct Sums {
    pub started: Timestamp,
    pub stopped: Timestamp,
    /// Orderly ends that are no records.
    pub orderly: u64,
    pub lost: Lost,
    pub undecodable: u64,
    pub evicted: u64,
    pub filtered: u64,
}

/// Events that the tracer lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Lost {
    pub total: u64,
    /// Records that are missing for it.
    #[serde(default)]
    pub records: u64,
    pub by_hook: BTreeMap<String, u64>,
    /// Runs of its programs that the kernel skipped.
    #[serde(default)]
    pub skipped: BTreeMap<String, u64>,
    /// Runs whose last line is missing, where it tells of a file.
    #[serde(default)]
    pub untold_runs: u64,
}

#[derive(Deserialize)]
struct FoldedLine {
    count: u64,
}

#[derive(Deserialize)]
struct Header {
    schema: u32,
    record: String,
}

#[derive(Deserialize)]
struct Endpoint {
    addr: IpAddr,
    port: u16,
}

#[derive(Deserialize)]
struct Owner {
    tgid: u32,
    comm: String,
    exe: Option<String>,
    user: Option<String>,
    uid: Option<u32>,
    ns_tgid: Option<u32>,
    unit: Option<String>,
    container: Option<Container>,
    pod: Option<String>,
}

#[derive(Deserialize)]
struct Container {
    id: String,
    runtime: Option<String>,
}

#[derive(Deserialize)]
struct Nat {
    original: Option<Endpoint>,
    translated: Option<Endpoint>,
}

#[derive(Deserialize)]
struct Observer {
    #[serde(flatten)]
    actor: Actor,
    fd: Option<i32>,
    errno: String,
    delay_us: Option<u64>,
    inferred: bool,
}

#[derive(Deserialize)]
struct Actor {
    tgid: u32,
    tid: u32,
    comm: String,
    syscall: Option<String>,
    #[serde(default)]
    exiting: bool,
}

#[derive(Deserialize)]
struct Released {
    #[serde(flatten)]
    by: Actor,
    after_us: Option<u64>,
}

#[derive(Deserialize)]
struct Sizes {
    sent: u64,
    acked: u64,
    unacked: u64,
    unsent: u64,
    received: u64,
    unread: u64,
}

#[derive(Deserialize)]
struct IdleTimes {
    sent: Option<u64>,
    received: Option<u64>,
}

#[derive(Deserialize)]
struct Fin {
    first: Option<String>,
    local: Option<bool>,
    remote: Option<bool>,
    remote_data_bytes: Option<u32>,
    half_closed_us: Option<u64>,
    since_us: Option<u64>,
}

#[derive(Deserialize)]
struct Http {
    request: Option<String>,
    status: Option<u16>,
    answer: String,
}

#[derive(Deserialize)]
struct Log {
    side: Option<String>,
    client: Option<String>,
    upstream: Option<String>,
    request: Option<String>,
    host: Option<String>,
    phrase: Option<String>,
    line: String,
    further: Vec<String>,
}

#[derive(Deserialize)]
struct TeardownLine {
    time: Timestamp,
    end: String,
    local: Endpoint,
    remote: Endpoint,
    nat: Option<Nat>,
    netns: Option<u32>,
    netns_name: Option<String>,
    cookie: Option<u64>,
    inode: Option<u64>,
    role: Option<String>,
    state: Option<String>,
    age_us: Option<u64>,
    idle_ms: Option<IdleTimes>,
    bytes: Option<Sizes>,
    rtt_us: Option<u32>,
    retransmits: Option<u32>,
    reason: Option<String>,
    owner: Option<Owner>,
    observer: Option<Observer>,
    seen: String,
    closer: Option<Actor>,
    released: Option<Released>,
    peer: Option<Peer>,
    fin: Fin,
    http: Option<Http>,
    phase: String,
    cause: String,
    initiator: String,
    harm: String,
    /// Not told by versions before this key.
    #[serde(default)]
    lost_bytes: u64,
    #[serde(default)]
    unconfirmed_bytes: u64,
    evidence: Option<Evidence>,
    verdict: String,
    log: Option<Log>,
    #[serde(default)]
    log_candidates: Vec<String>,
}

#[derive(Deserialize)]
struct Peer {
    cookie: Option<u64>,
    tgid: Option<u32>,
    comm: Option<String>,
    syscall: Option<String>,
    unread: Option<u64>,
}

#[derive(Deserialize)]
struct Evidence {
    last_speaker: Option<String>,
    reused: Option<bool>,
    linger: Option<u64>,
    user_timeout: Option<u32>,
    min_rtt_us: Option<u32>,
    since_last_tx_us: Option<u64>,
    probes_out: Option<u8>,
    soft_errno: Option<Number>,
    signal: Option<Number>,
    timer: Option<Timer>,
    rst: Option<Reset>,
}

/// By its name, or by number where it has none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Name(String),
    Number(i32),
}

#[derive(Deserialize)]
struct Timer {
    seconds: u64,
    name: String,
}

#[derive(Deserialize)]
struct Reset {
    acked: Option<u64>,
    ttl: u8,
    window: u16,
}

#[derive(Deserialize)]
struct LateLine {
    time: Timestamp,
    cookie: Option<u64>,
    local: Endpoint,
    remote: Endpoint,
    /// Not told by versions before these keys.
    netns: Option<u32>,
    end: Option<String>,
    observer: Observer,
    log: Option<Log>,
    #[serde(default)]
    log_candidates: Vec<String>,
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it, in words for people.
pub fn read(line: &[u8]) -> Result<Saved, String> {
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err("is no JSON object".to_owned());
    }
    let words = |error: serde_json::Error| error.to_string();
    let header: Header = serde_json::from_slice(line).map_err(words)?;
    if header.schema != SCHEMA {
        return Err(format!("schema {} is not known to this version, which reads schema {SCHEMA}", header.schema));
    }
    match header.record.as_str() {
        "teardown" => serde_json::from_slice::<TeardownLine>(line).map_err(words)?.read().map(|judged| Saved::Teardown(Box::new(judged))),
        "late-observation" => serde_json::from_slice::<LateLine>(line).map_err(words)?.read(),
        "start" => serde_json::from_slice(line).map(Saved::Start).map_err(words),
        "summary" => serde_json::from_slice(line).map(Saved::Summary).map_err(words),
        "folded" => serde_json::from_slice::<FoldedLine>(line).map_err(words).map(|folded| Saved::Folded(folded.count)),
        "kept" => serde_json::from_slice(line).map(Saved::Kept).map_err(words),
        _ => Ok(Saved::Other),
    }
}

/// Nanoseconds since 1970.
fn nanoseconds(time: Timestamp) -> Result<u64, String> {
    u64::try_from(time.as_nanosecond()).map_err(|_| "its time lies before 1970 or too far ahead".to_owned())
}

impl Owner {
    fn identity(&self) -> Identity {
        let runtime = |name: &String| Runtime::ALL.into_iter().find(|runtime| runtime.name() == name);
        let container = |saved: &Container| ModelContainer { id: saved.id.clone(), runtime: saved.runtime.as_ref().and_then(runtime) };
        Identity {
            exe: self.exe.clone(),
            uid: self.uid,
            ns_tgid: self.ns_tgid,
            user: self.user.as_deref().map(Arc::from),
            place: Place { unit: self.unit.clone(), container: self.container.as_ref().map(container), pod: self.pod.clone() },
        }
    }
}

impl TeardownLine {
    fn read(self) -> Result<Judged, String> {
        let at_ns = nanoseconds(self.time)?;
        let fin = self.fin.read(at_ns)?;
        let role = self.role.map(|role| one_of([Role::Client, Role::Server], Role::name, &role)).transpose()?;
        let names = Names {
            owner: self.owner.as_ref().map(|owner| Arc::new(owner.identity())),
            netns: self.netns_name.map(Arc::from),
            nat: self.nat.map(|nat| ModelNat { original: nat.original.map(Into::into), translated: nat.translated.map(Into::into) }),
        };
        let end = one_of(EndKind::ALL, EndKind::name, &self.end)?;
        let peer = self.peer.map(|peer| peer.read(end));
        let unread = self.bytes.as_ref().map_or(0, |bytes| bytes.unread);
        let damage = damage(self.lost_bytes, self.unconfirmed_bytes, peer.and_then(|peer| peer.unread).unwrap_or(0), unread);
        let reused = self.evidence.as_ref().and_then(|evidence| evidence.reused);
        let timer = self.evidence.as_ref().and_then(|evidence| evidence.timer.as_ref());
        let timer = timer.map(|timer| crate::model::Timer { seconds: timer.seconds, name: Arc::from(timer.name.as_str()) });
        let signal = self.evidence.as_ref().and_then(|evidence| evidence.signal.as_ref()).and_then(Number::signal);
        let teardown = Teardown {
            at_ns,
            end,
            local: self.local.into(),
            remote: self.remote.into(),
            netns: self.netns,
            cookie: self.cookie,
            inode: self.inode,
            role,
            state: self.state.map(|state| one_of((1..=12).map(TcpState::from), TcpState::name, &state).unwrap_or(TcpState::Unknown(0))),
            age_ns: self.age_us.map(|us| us.saturating_mul(1_000)),
            idle: self.idle_ms.map(|idle| Idle { sent_ms: idle.sent, received_ms: idle.received }),
            bytes: self.bytes.map(Into::into),
            rtt_us: self.rtt_us,
            retransmits: self.retransmits,
            reason: self.reason.map(Arc::from),
            owner: self.owner.map(|owner| ModelOwner { tgid: owner.tgid, parent_tgid: 0, comm: Comm::from(owner.comm.as_str()) }),
            observer: self.observer.map(Observer::read).transpose()?,
            seen: one_of([Seen::Yes, Seen::Never, Seen::NotYet, Seen::Unknown], Seen::name, &self.seen)?,
            closer: self.closer.map(|closer| Task { signal, ..closer.into() }),
            released_ns: self
                .released
                .as_ref()
                .and_then(|released| released.after_us)
                .map(|us| at_ns.saturating_add(us.saturating_mul(1_000))),
            released: self.released.map(|released| released.by.into()),
            fin,
            evidence: self.evidence.map(Evidence::read).transpose()?,
            segment: None,
            peer,
            http: self.http.map(|http| http.read(role)).transpose()?,
        };
        let verdict = Verdict {
            phase: self.phase.parse()?,
            cause: self.cause.parse()?,
            initiator: self.initiator.parse()?,
            harm: self.harm.parse()?,
            damage,
            reused,
            inferred_reason: None,
            timer,
            words: self.verdict,
        };
        let log = finding(self.log, self.log_candidates, self.time);
        Ok(Judged { teardown: Box::new(teardown), verdict, names, log })
    }
}

/// `time`: the record's. What lines said of times and errors has been used, and is not told.
fn finding(log: Option<Log>, candidates: Vec<String>, time: Timestamp) -> Finding {
    let time = LogTime { stamp: Stamp::Absolute(time), precision: Duration::ZERO };
    let line = |raw: String| LogLine::new(time, Fault::NotConnected, raw);
    let whole = |raw: String| Arc::new(line(raw));
    let Some(Log { side, client, upstream, request, host, phrase, line: raw, further }) = log else {
        let lines: Vec<_> = candidates.into_iter().take(MAX_LINES).map(whole).collect();
        return if lines.is_empty() { Finding::Nothing } else { Finding::Ambiguous(lines) };
    };
    let side = side.and_then(|word| [Side::Client, Side::Upstream].into_iter().find(|side| side.name() == word));
    let client = client.map(|text| Remote::of_address(&text).unwrap_or(Remote::Name(text)));
    let first = LogLine { side, client, upstream_text: upstream, request, host, phrase, ..line(raw) };
    Finding::About(std::iter::once(Arc::new(first)).chain(further.into_iter().map(whole)).take(MAX_LINES).collect())
}

impl Http {
    /// Which end asks is not told; mostly it is the one that connected.
    fn read(self, role: Option<Role>) -> Result<ModelHttp, String> {
        let all = [Answer::None, Answer::Partial, Answer::Complete, Answer::Unknown];
        let (status, answer) = (self.status, one_of(all, Answer::name, &self.answer)?);
        Ok(ModelHttp { request: self.request, status, answer, ..ModelHttp::uncertain(role.unwrap_or(Role::Client)) })
    }
}

impl Evidence {
    /// Of all that a verdict rests on, what others than the verdict ask for.
    fn read(self) -> Result<crate::model::Evidence, String> {
        let speaker = |word: String| one_of([Speaker::Local, Speaker::Remote], Speaker::name, &word);
        Ok(crate::model::Evidence {
            last_speaker: self.last_speaker.map(speaker).transpose()?,
            linger_zero: self.linger == Some(0),
            linger_s: self.linger,
            user_timeout_ms: self.user_timeout,
            min_rtt_us: self.min_rtt_us,
            since_last_tx_us: self.since_last_tx_us,
            probes_out: self.probes_out.unwrap_or(0),
            soft_errno: self.soft_errno.map(Number::errno).transpose()?,
            reset: self.rst.map(|rst| ResetHeader { acked: rst.acked, ttl: rst.ttl, window: rst.window }),
            ..crate::model::Evidence::default()
        })
    }
}

impl Number {
    fn errno(self) -> Result<Errno, String> {
        match self {
            Self::Name(name) => name.parse(),
            Self::Number(number) => Ok(Errno(number)),
        }
    }

    fn signal(&self) -> Option<u32> {
        match self {
            Self::Name(name) => (1..=64).find(|number| Signal(*number).to_string() == *name),
            Self::Number(number) => u32::try_from(*number).ok(),
        }
    }
}

impl Peer {
    /// `end`: how our end went. What only a verdict asks for is not told.
    fn read(self, end: EndKind) -> ModelPeer {
        let end = match end {
            EndKind::ResetReceived => EndKind::ResetSent,
            EndKind::ResetSent => EndKind::ResetReceived,
            other => other,
        };
        let syscall = self.syscall.as_deref().and_then(call);
        let (cookie, tgid, unread) = (self.cookie, self.tgid, self.unread);
        let comm = self.comm.as_deref().map(Comm::from).unwrap_or_default();
        ModelPeer { end, cookie, tgid, comm, syscall, acted: syscall.is_some(), killed: false, unread, arrived: 0 }
    }
}

/// The ways in which bytes were lost, as far as the sum and what was unread tell.
fn damage(lost: u64, unconfirmed: u64, unread_there: u64, unread_here: u64) -> Damage {
    let unread_there = unread_there.min(lost);
    let unread_here = unread_here.min(lost - unread_there);
    Damage { undelivered: lost - unread_there - unread_here, unconfirmed, unread_there, unread_here }
}

impl LateLine {
    fn read(self) -> Result<Saved, String> {
        let log = finding(self.log, self.log_candidates, self.time);
        let late = LateObservation {
            at_ns: nanoseconds(self.time)?,
            cookie: self.cookie,
            local: self.local.into(),
            remote: self.remote.into(),
            netns: self.netns,
            end: self.end.map_or(Ok(EndKind::ResetReceived), |end| one_of(EndKind::ALL, EndKind::name, &end))?,
            owner: None,
            observer: self.observer.read()?,
        };
        Ok(Saved::Late(Box::new(late), log))
    }
}

impl Observer {
    fn read(self) -> Result<ModelObserver, String> {
        let task = Task { fd: self.fd, ..self.actor.into() };
        let delay_ns = self.delay_us.map(|us| us.saturating_mul(1_000));
        Ok(ModelObserver { task, errno: self.errno.parse::<Errno>()?, delay_ns, inferred: self.inferred })
    }
}

impl Fin {
    /// `at_ns`: the record's time.
    fn read(self, at_ns: u64) -> Result<crate::model::Fin, String> {
        let words = [(FirstFin::Local, "local"), (FirstFin::Remote, "remote"), (FirstFin::Both, "both")];
        let first = |word: String| {
            words.iter().find(|(_, name)| *name == word).map(|(first, _)| *first).ok_or_else(|| format!("{word:?} is no end of a FIN"))
        };
        let half_closed_ns = self.half_closed_us.map(|us| us.saturating_mul(1_000));
        Ok(crate::model::Fin {
            first: self.first.map(first).transpose()?,
            local: self.local,
            remote: self.remote,
            remote_data_bytes: self.remote_data_bytes,
            half_closed_ns,
            first_ns: self.since_us.map(|us| at_ns.saturating_sub(us.saturating_mul(1_000))),
        })
    }
}

impl From<Endpoint> for ModelEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self { addr: endpoint.addr, port: endpoint.port }
    }
}

impl From<Sizes> for Bytes {
    fn from(sizes: Sizes) -> Self {
        let Sizes { sent, acked, unacked, unsent, received, unread } = sizes;
        Self { sent, acked, unacked, unsent, received, unread }
    }
}

impl From<Actor> for Closer {
    fn from(actor: Actor) -> Self {
        let comm = Comm::from(actor.comm.as_str());
        Self {
            tgid: actor.tgid,
            tid: actor.tid,
            parent_tgid: 0,
            comm,
            process_comm: comm,
            syscall: actor.syscall.as_deref().and_then(call),
            fd: None,
            exiting: actor.exiting,
            signal: None,
            kernel_thread: false,
            blocking: false,
        }
    }
}

/// A system call by its name.
fn call(name: &str) -> Option<&'static str> {
    name.parse::<syscalls::Sysno>().ok().map(|call| call.name())
}

fn one_of<T: Copy>(all: impl IntoIterator<Item = T>, name: impl Fn(T) -> &'static str, word: &str) -> Result<T, String> {
    all.into_iter().find(|&value| name(value) == word).ok_or_else(|| format!("{word:?} is not known to this version"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::output::{WallClock, json};

    /// A record of a run, as the contract has it.
    const LINE: &str = include_str!("../../tests/corpus/record.json");

    #[test]
    fn a_record_that_is_read_and_written_says_the_same() {
        let Ok(Saved::Teardown(judged)) = read(LINE.as_bytes()) else { panic!("{:?}", read(LINE.as_bytes())) };
        let mut written = Vec::new();
        json::JsonFormat::default().write(&mut written, &judged, &WallClock::new(0, 0)).unwrap();
        let (mut before, mut after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(LINE).unwrap(), serde_json::from_slice(&written).unwrap());
        // What is not read is not written.
        for value in [&mut before, &mut after] {
            value["evidence"]["reason_from"] = serde_json::Value::Null;
        }
        assert_eq!(before, after);
    }

    #[test]
    fn an_error_noticed_late_that_is_read_and_written_says_the_same() {
        let Ok(Saved::Teardown(judged)) = read(LINE.as_bytes()) else { panic!("the corpus has a record") };
        let t = &judged.teardown;
        let late = LateObservation {
            at_ns: t.at_ns,
            cookie: t.cookie,
            local: t.local,
            remote: t.remote,
            netns: t.netns,
            end: EndKind::ResetSent,
            owner: None,
            observer: t.observer.unwrap(),
        };
        let line = |late: &LateObservation, log: &Finding| {
            let mut line = Vec::new();
            json::JsonFormat::default().write_late(&mut line, late, log, &WallClock::new(0, 0)).unwrap();
            String::from_utf8(line).unwrap()
        };
        for log in [Finding::Nothing, finding(None, vec!["one".to_owned(), "two".to_owned()], Timestamp::UNIX_EPOCH)] {
            let written = line(&late, &log);
            let Ok(Saved::Late(again, its_log)) = read(written.as_bytes()) else { panic!("{:?}", read(written.as_bytes())) };
            assert_eq!((again.netns, again.end), (late.netns, EndKind::ResetSent));
            assert_eq!(line(&again, &its_log), written);
        }
        // As versions before wrote it.
        let mut old: serde_json::Value = serde_json::from_str(&line(&late, &Finding::Nothing)).unwrap();
        for key in ["netns", "end", "log_candidates"] {
            old.as_object_mut().unwrap().remove(key);
        }
        assert!(matches!(read(old.to_string().as_bytes()), Ok(Saved::Late(late, Finding::Nothing)) if late.netns.is_none()));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        for (line, words) in [
            ("", "is no JSON object"),
            ("{", "EOF"),
            ("[1,\"teardown\"]", "is no JSON object"),
            (r#"{"schema":2,"record":"teardown"}"#, "schema 2 is not known"),
            (r#"{"schema":1,"record":"teardown"}"#, "missing field `time`"),
            (&LINE.replace("\"reset-received\"", "\"reset-by-magic\""), "\"reset-by-magic\" is not known"),
            (&LINE.replace("\"ECONNRESET\"", "\"ENOSUCH\""), "no errno is called"),
        ] {
            let error = read(line.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        assert!(matches!(read(br#"{"schema":1,"record":"of-the-future"}"#), Ok(Saved::Other)));
    }

    proptest! {
        #[test]
        fn no_line_does_harm(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_change_of_a_record_does_harm(at in 0..LINE.len(), with: Vec<u8>, cut in 0usize..40) {
            let mut line = LINE.as_bytes().to_vec();
            let end = (at + cut).min(line.len());
            line.splice(at..end, with);
            let _ = read(&line);
        }
    }
}
