//! Records and metrics to an OpenTelemetry Collector: OTLP over HTTP, protobuf.
//!
//! The messages are the official crates'. Their batch processor is not used: it wants a thread, its queue is bounded by the
//! number of records and not by their size, and what it drops or a collector refuses is counted nowhere. Here records are
//! encoded as they come, wait in a queue of a bounded size, and each is at last either delivered or counted as lost.

mod http;
mod metric;
mod record;
mod settings;

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceResponse,
        metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    },
    common::v1::InstrumentationScope,
    metrics::v1::{ResourceMetrics, ScopeMetrics},
    resource::v1::Resource,
};
use prost::Message as _;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

pub use self::settings::Settings;
use self::{
    http::{Client, Outcome},
    record::{SCHEMA_URL, log_record, resource},
};
use super::metrics::Metrics;
use crate::{input::json::Saved, output::escape::for_terminal, status, units::grouped};

/// Encoded records that wait, in bytes; the newest are dropped beyond.
const MAX_WAITING: usize = 8 << 20;
/// Encoded records of one request, in bytes; a collector refuses requests beyond 20 MiB.
const MAX_BATCH: usize = 1 << 20;
/// How long a record waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// After a failure: the shortest and the longest pause before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// For the records that are left at the end, and then for the last metrics; the tracer waits for a second longer.
const GRACE: Duration = Duration::from_secs(3);
const LAST_METRICS: Duration = Duration::from_secs(1);
/// Of a warning, in characters.
const MAX_WORDS: usize = 500;

/// What a name is looked up in, and where a static program has random numbers from (for questions to DNS). Where resolv.conf is a link,
/// it leads to one of the directories, in which it is replaced.
pub const READABLE: [&str; 7] =
    ["/etc/hosts", "/etc/resolv.conf", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/dev/random", "/dev/urandom"];

/// What became of records. Those that are in none of the others wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub taken: u64,
    pub delivered: u64,
    /// Lost: they found the queue full.
    pub no_room: u64,
    /// Lost: the collector did not want them.
    pub refused: u64,
    /// Lost: not delivered by the end.
    pub left: u64,
}

impl Counts {
    pub fn lost(&self) -> u64 {
        self.no_room + self.refused + self.left
    }
}

/// The queue to a collector. Clones are the same queue.
#[derive(Clone)]
pub struct Otlp {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    resource: Resource,
    /// Since 1970: what is counted is counted since then.
    started_ns: u64,
    state: Mutex<State>,
    /// There is something to send.
    bell: Notify,
    /// Nothing more comes.
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// When the first of them must wait no longer.
    due: Option<Instant>,
    counts: Counts,
}

/// `ScopeLogs` and what it stands in, as they are on the wire, with records that are encoded already.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
    #[prost(string, tag = "3")]
    schema_url: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeLogs {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    log_records: Vec<Bytes>,
}

/// Records that are under way.
struct Batch {
    body: Bytes,
    records: u64,
    /// So many attempts have failed.
    failures: u32,
    /// The next one is not before this.
    at: Instant,
}

/// A collector, and how it behaves.
struct Collector {
    client: Client,
    /// By its own wish, nothing is sent before this.
    not_before: Instant,
    trouble: Trouble,
    /// Nothing more comes: what fails now may be the last.
    closed: watch::Receiver<bool>,
}

impl Collector {
    fn new(settings: Settings, closed: watch::Receiver<bool>) -> Self {
        Self { client: Client::new(settings), not_before: Instant::now(), trouble: Trouble::default(), closed }
    }

    async fn post<T: prost::Message + Default>(&mut self, signal: &str, body: Bytes) -> Outcome<T> {
        let outcome = self.client.post(signal, body).await;
        match &outcome {
            Outcome::Taken(_) => self.trouble.is_over(),
            Outcome::Never { why } => self.trouble.refused(&format!("{signal}: {why}")),
            Outcome::Later { why, after } => {
                self.trouble.begins(&if *self.closed.borrow() { why.clone() } else { format!("{why}; trying again") });
                // Nobody is asked without a pause, not even who asks for it.
                if let Some(after) = after {
                    self.not_before = Instant::now() + *after.max(&PAUSE);
                }
            }
        }
        outcome
    }
}

impl Otlp {
    pub fn new(settings: Settings) -> Self {
        let resource = resource(&settings);
        let closed = watch::Sender::new(false);
        Self { shared: Arc::new(Shared { settings, resource, started_ns: now_ns(), state: Mutex::default(), bell: Notify::new(), closed }) }
    }

    /// Takes what is an end or a late observation; never waits.
    pub fn take(&self, line: &[u8], saved: &Saved) {
        let Some(record) = log_record(line, saved, now_ns()) else { return };
        let encoded = Bytes::from(record.encode_to_vec());
        let mut state = self.state();
        state.counts.taken += 1;
        if state.waiting_bytes + encoded.len() > MAX_WAITING {
            state.counts.no_room += 1;
            return;
        }
        let fills_batch = state.waiting_bytes < MAX_BATCH && state.waiting_bytes + encoded.len() >= MAX_BATCH;
        state.waiting_bytes += encoded.len();
        state.waiting.push_back(encoded);
        if fills_batch || state.due.is_none() {
            state.due.get_or_insert_with(|| Instant::now() + LINGER);
            self.shared.bell.notify_one();
        }
    }

    /// Nothing more comes: what waits is sent at once, as far as that takes no longer than a few seconds.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// What there is to say about losses at the end.
    pub fn farewell(&self) -> Option<String> {
        let counts = self.counts();
        let parts = [(counts.no_room, "found the queue full"), (counts.refused, "were refused"), (counts.left, "were left at the end")];
        let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, words)| format!("{} {words}", grouped(*n))).collect();
        let (lost, taken) = (grouped(counts.lost()), grouped(counts.taken));
        (counts.lost() > 0).then(|| format!("--otlp: {lost} of {taken} records were not delivered: {}", parts.join(", ")))
    }

    /// Sends until closed, then what is left, and at last the metrics, which tell what became of everything.
    pub async fn run(&self, metrics: &Metrics) {
        let mut collector = Collector::new(self.shared.settings.clone(), self.shared.closed.subscribe());
        let patience = async {
            self.closed().await;
            sleep(GRACE).await;
        };
        tokio::select! {
            () = self.deliver(&mut collector, metrics) => {}
            () = patience => {}
        }
        self.leave();
        let last = async {
            sleep_until(collector.not_before).await;
            self.send_metrics(&mut collector, metrics).await;
        };
        // If they do not arrive in time, the end of the run has said it all.
        let _ = timeout(LAST_METRICS, last).await;
    }

    /// What has not become anything else is left.
    fn leave(&self) {
        let mut state = self.state();
        let Counts { taken, delivered, no_room, refused, .. } = state.counts;
        state.counts.left = taken - delivered - no_room - refused;
    }

    /// Until closed and empty.
    async fn deliver(&self, collector: &mut Collector, metrics: &Metrics) {
        let Shared { settings, bell, closed, .. } = &*self.shared;
        let mut batch: Option<Batch> = None;
        let mut metrics_at = Instant::now() + settings.interval;
        loop {
            let closing = *closed.borrow();
            let metrics_due = metrics_at.max(collector.not_before);
            // Before records, of which there may always be more.
            if !closing && metrics_due <= Instant::now() {
                self.send_metrics(collector, metrics).await;
                metrics_at = Instant::now() + settings.interval;
                continue;
            }
            if batch.is_none() {
                batch = self.next_batch(closing);
            }
            if closing && batch.is_none() {
                return;
            }
            let due = match &mut batch {
                Some(under_way) => {
                    if closing {
                        under_way.at = under_way.at.min(Instant::now() + PAUSE);
                    }
                    let at = under_way.at.max(collector.not_before);
                    if at <= Instant::now() {
                        let outcome = collector.post("logs", under_way.body.clone()).await;
                        if self.settle(under_way, outcome, &mut collector.trouble) {
                            batch = None;
                        }
                        continue;
                    }
                    Some(at)
                }
                None => self.state().due,
            };
            let next = if closing { due } else { due.into_iter().chain([metrics_due]).min() };
            tokio::select! {
                () = bell.notified(), if batch.is_none() => {}
                () = self.closed(), if !closing => {}
                () = sleep_until(next.unwrap_or(metrics_due)) => {}
            }
        }
    }

    /// As many as one request takes, if they should wait no longer.
    fn next_batch(&self, closing: bool) -> Option<Batch> {
        let mut state = self.state();
        let due = state.due?;
        let now = Instant::now();
        if !closing && due > now && state.waiting_bytes < MAX_BATCH {
            return None;
        }
        let (mut log_records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = state.waiting.pop_front_if(|record| bytes == 0 || bytes + record.len() <= MAX_BATCH) {
            bytes += record.len();
            log_records.push(record);
        }
        state.waiting_bytes -= bytes;
        // What is left has waited.
        state.due = (!state.waiting.is_empty()).then_some(now);
        drop(state);
        let records = log_records.len() as u64;
        let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records }];
        let resource_logs = ResourceLogs { resource: Some(self.shared.resource.clone()), scope_logs, schema_url: SCHEMA_URL.to_owned() };
        let body = self.body(&Request { resource_logs: vec![resource_logs] });
        Some(Batch { body, records, failures: 0, at: now })
    }

    /// Counts what became of a batch. Returns whether it is done with.
    fn settle(&self, batch: &mut Batch, outcome: Outcome<ExportLogsServiceResponse>, trouble: &mut Trouble) -> bool {
        match outcome {
            Outcome::Taken(answer) => {
                let partial = answer.partial_success.unwrap_or_default();
                let refused = u64::try_from(partial.rejected_log_records).unwrap_or(0).min(batch.records);
                if refused > 0 {
                    trouble.refused(&format!("{} records: {}", grouped(refused), partial.error_message));
                }
                let counts = &mut self.state().counts;
                counts.refused += refused;
                counts.delivered += batch.records - refused;
                true
            }
            Outcome::Never { .. } => {
                self.state().counts.refused += batch.records;
                true
            }
            Outcome::Later { after, .. } => {
                if after.is_none() {
                    batch.at = Instant::now() + pause(batch.failures);
                }
                batch.failures += 1;
                false
            }
        }
    }

    /// The next ones say all that these did, so what became of them matters little.
    async fn send_metrics(&self, collector: &mut Collector, metrics: &Metrics) {
        let metrics = metric::all(metrics, &self.counts(), self.shared.started_ns, now_ns());
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: String::new() }];
        let resource = Some(self.shared.resource.clone());
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, schema_url: SCHEMA_URL.to_owned() }];
        let body = self.body(&ExportMetricsServiceRequest { resource_metrics });
        if let Outcome::Taken(ExportMetricsServiceResponse { partial_success: Some(partial) }) = collector.post("metrics", body).await
            && partial.rejected_data_points > 0
        {
            collector.trouble.refused(&format!("metrics: {}", partial.error_message));
        }
    }

    fn body(&self, request: &impl prost::Message) -> Bytes {
        let plain = request.encode_to_vec();
        if !self.shared.settings.compress {
            return plain.into();
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        // Memory takes everything.
        let _ = gzip.write_all(&plain);
        gzip.finish().unwrap_or_default().into()
    }

    async fn closed(&self) {
        // The sender lives in what is shared.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has been told of a collector that does not do as it should: each thing once; that it cannot be reached, until it works again.
#[derive(Default)]
struct Trouble {
    unreachable: bool,
    refused: bool,
}

impl Trouble {
    fn begins(&mut self, why: &str) {
        if !self.unreachable {
            self.unreachable = say(why);
        }
    }

    fn is_over(&mut self) {
        self.unreachable = false;
    }

    fn refused(&mut self, why: &str) {
        if !self.refused {
            self.refused = say(&format!("the collector refused what it was sent: {why}"));
        }
    }
}

/// A collector's words may be many. Returns whether they were said.
fn say(what: &str) -> bool {
    let what: String = what.chars().take(MAX_WORDS).collect();
    status::warn_if_room(&format!("--otlp: {}", for_terminal(&what)))
}

/// Twice as long after each failure, and somewhat at random: a fleet must not come back all at once.
fn pause(failures: u32) -> Duration {
    let whole = PAUSE.saturating_mul(1 << failures.min(8)).min(MAX_PAUSE);
    let random = RandomState::new().hash_one(failures) % 1_000;
    whole.mul_f64(0.5 + random as f64 / 1_000.0)
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "rsttrace".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), ..InstrumentationScope::default() }
}

/// Since 1970.
fn now_ns() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0)
}
