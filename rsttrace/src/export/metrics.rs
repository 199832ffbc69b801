//! `--metrics`: the sums of all records, in OpenMetrics, for whoever asks by HTTP. Who asks is not trusted: the
//! number of series, of connections and the size of a request are bounded, and nobody can keep others from asking.

mod http;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt, io,
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::{
    input::json::{Saved, Start, Sums},
    model::{Cause, EndKind, Harm, Judged, Teardown},
    rollup::{Group, Groups, Histogram},
};

/// So many sets of labels are told apart; further ones become one process, `other`, for each kind of end.
const MAX_LABEL_SETS: usize = 512;
/// From here on, the kernel gives ports to those who connect (`net.ipv4.ip_local_port_range`, as it is by default).
const FIRST_EPHEMERAL: u16 = 32_768;

/// What is served or sent. Clones are the same sums; the library asks for something that threads could share, and there is one.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Totals>>);

impl Metrics {
    /// Begins to answer, in a task of its own on this thread.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn serve(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        tokio::task::spawn_local(http::serve(tokio::net::TcpListener::from_std(listener)?, self.registry()));
        Ok(())
    }

    /// Shows what is counted at present.
    pub fn look<T>(&self, at: impl FnOnce(&[Family<'_>]) -> T) -> T {
        at(&self.lock().families())
    }

    pub fn take(&self, saved: &Saved) {
        let mut totals = self.lock();
        match saved {
            Saved::Teardown(judged) => totals.add(judged),
            // Its record had no observer.
            Saved::Late(late, _) => late.observer.delay_ns.into_iter().for_each(|ns| totals.all.delay.add(ns)),
            Saved::Start(start) => totals.start = Some(start.clone()),
            Saved::Summary(sums) => totals.sums = Some(sums.clone()),
            Saved::Folded(_) | Saved::Kept(_) | Saved::Other => {}
        }
    }

    /// So many records have not come, all in all.
    pub fn dropped(&self, total: u64) {
        self.lock().dropped = total;
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        registry
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.lock().encode(&mut encoder)
    }
}

/// What is counted.
#[derive(Debug, Default)]
struct Totals {
    start: Option<Start>,
    /// The latest.
    sums: Option<Box<Sums>>,
    all: Group,
    ends: Groups<Key>,
    dropped: u64,
}

/// Ends that are one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    who: Who,
    end: EndKind,
    cause: Cause,
    harm: Harm,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Who {
    process: Cow<'static, str>,
    port: ServicePort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum ServicePort {
    Number(u16),
    Unknown,
    Other,
}

impl Totals {
    fn add(&mut self, judged: &Judged) {
        let Judged { teardown, verdict, .. } = judged;
        let who = Who {
            process: teardown.process().map_or("unknown".into(), |comm| comm.text().into_owned().into()),
            port: ServicePort::of(teardown),
        };
        let mut key = Key { who, end: teardown.end, cause: verdict.cause, harm: verdict.harm };
        if self.ends.iter().len() >= MAX_LABEL_SETS && self.ends.get(&key).is_none() {
            key.who = Who { process: "other".into(), port: ServicePort::Other };
        }
        self.ends.add(key, judged);
        self.all.add(judged);
    }

    /// All that is counted, in the order in which it is shown.
    fn families(&self) -> Vec<Family<'_>> {
        let ends = self.ends.sorted(|_| ());
        let mut bytes: BTreeMap<&Who, (u64, u64)> = BTreeMap::new();
        for (key, group) in &ends {
            let (lost, unconfirmed) = bytes.entry(&key.who).or_default();
            *lost += group.lost_bytes;
            *unconfirmed += group.unconfirmed_bytes;
        }
        let family = |name, help, unit, values| Family { name, help, unit, values };
        let mut families = Vec::new();
        if let Some(start) = &self.start {
            let labels = vec![("version", start.version.as_str().into()), ("kernel", start.kernel.as_str().into())];
            families.push(family("build", "What is running, and on which kernel", None, Values::Info(labels)));
            let time = Values::Gauge(start.time.as_duration().as_secs_f64());
            families.push(family("start_time", "When tracing began", Some(Unit::Seconds), time));
        }
        let help = "Sockets that ended, as the records tell it: both ends of a connection within this host are two";
        let values = ends.iter().map(|(key, group)| (key.labels().to_vec(), group.ends)).collect();
        families.push(family("teardowns", help, None, Values::Counter(values)));
        let values = bytes.iter().map(|(who, (lost, _))| (who.labels().to_vec(), *lost)).collect();
        families.push(family("lost", "Payload that certainly did not arrive or was not read", Some(Unit::Bytes), Values::Counter(values)));
        let values = bytes.iter().map(|(who, (_, unconfirmed))| (who.labels().to_vec(), *unconfirmed)).collect();
        let help = "Payload of which nobody knows whether it arrived";
        families.push(family("unconfirmed", help, Some(Unit::Bytes), Values::Counter(values)));
        let help = "From the error to the return of the call that took it";
        families.push(family("observation_delay", help, Some(Unit::Seconds), Values::Histogram(&self.all.delay)));
        let help = "Since the last data either way, when a connection ended";
        families.push(family("idle", help, Some(Unit::Seconds), Values::Histogram(&self.all.idle)));
        let told = |count: fn(&Sums) -> u64| self.sums.as_deref().map_or(0, count);
        for (name, help, count) in [
            ("orderly", "Orderly ends of the whole host that are no records", told(|sums| sums.orderly)),
            ("filtered_records", "Records that did not match the filters", told(|sums| sums.filtered)),
            ("lost_events", "Events that found no room in the buffer (--buffer)", told(|sums| sums.lost.total)),
            ("lost_records", "Records that are missing because their event was lost", told(|sums| sums.lost.records)),
            ("undecodable_events", "Events that could not be decoded", told(|sums| sums.undecodable)),
            ("evicted_sockets", "Sockets that found no room in the table (--max-sockets)", told(|sums| sums.evicted)),
            ("export_dropped_records", "Records that are missing here because this process was too slow", self.dropped),
        ] {
            families.push(family(name, help, None, Values::Counter(vec![(Vec::new(), count)])));
        }
        families
    }

    fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.families().iter().try_for_each(|family| family.encode(to))
    }
}

/// One metric, on whatever surface.
pub struct Family<'a> {
    /// Without `rsttrace` before it.
    pub name: &'static str,
    pub help: &'static str,
    pub unit: Option<Unit>,
    pub values: Values<'a>,
}

pub type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

pub enum Values<'a> {
    /// What the labels say; 1 where a number is asked for, and `_info` behind the name.
    Info(Labels<'a>),
    Gauge(f64),
    Counter(Vec<(Labels<'a>, u64)>),
    Histogram(&'a Histogram),
}

impl Family<'_> {
    fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match &self.values {
            Values::Info(_) => MetricType::Info,
            Values::Gauge(_) => MetricType::Gauge,
            Values::Counter(_) => MetricType::Counter,
            Values::Histogram(_) => MetricType::Histogram,
        };
        let name = format!("rsttrace_{}", self.name);
        let mut metric = to.encode_descriptor(&name, self.help, self.unit.as_ref(), kind)?;
        match &self.values {
            Values::Info(labels) => metric.encode_info(&&labels[..]),
            Values::Gauge(value) => metric.encode_gauge(value),
            Values::Counter(counts) => counts.iter().try_for_each(|(labels, count)| match &labels[..] {
                [] => metric.encode_counter::<NoLabelSet, _, u64>(count, None),
                labels => metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None),
            }),
            Values::Histogram(histogram) => {
                let buckets: Vec<_> = histogram.buckets().map(|(bound, count)| (bound.map_or(f64::INFINITY, seconds), count)).collect();
                metric.encode_histogram::<NoLabelSet>(histogram.sum_ns() as f64 / 1e9, histogram.count(), &buckets, None)
            }
        }
    }
}

impl Key {
    fn labels(&self) -> [(&'static str, Cow<'_, str>); 5] {
        let [process, port] = self.who.labels();
        [("end", self.end.name().into()), ("cause", self.cause.name().into()), ("harm", self.harm.name().into()), process, port]
    }
}

impl Who {
    fn labels(&self) -> [(&'static str, Cow<'_, str>); 2] {
        let port = match self.port {
            ServicePort::Number(port) => port.to_string().into(),
            ServicePort::Unknown => "unknown".into(),
            ServicePort::Other => "other".into(),
        };
        [("process", Cow::Borrowed(&self.process)), ("service_port", port)]
    }
}

impl ServicePort {
    /// Never one that the kernel gave to whoever connected, nor one that others may choose at will: each would
    /// be a series.
    fn of(teardown: &Teardown) -> Self {
        let is_a_services = |port: &u16| *port < FIRST_EPHEMERAL;
        match (teardown.role, teardown.state) {
            (Some(_), _) => Self::Number(teardown.service_port()),
            // A RST to a port without a socket.
            (None, None) => Self::Unknown,
            (None, Some(_)) => match [teardown.local.port, teardown.remote.port].map(|port| Some(port).filter(is_a_services)) {
                [Some(port), None] | [None, Some(port)] => Self::Number(port),
                _ => Self::Unknown,
            },
        }
    }
}

/// A bound or a sum on the wire.
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;
    use crate::{
        input::json,
        model::{Comm, Role, TcpState},
    };

    const LINE: &str = include_str!("../../tests/corpus/record.json");

    fn record(change: impl FnOnce(&mut Teardown)) -> Saved {
        let Ok(Saved::Teardown(mut judged)) = json::read(LINE.as_bytes()) else { panic!("a record") };
        change(&mut judged.teardown);
        Saved::Teardown(judged)
    }

    fn page(metrics: &Metrics) -> String {
        let mut page = String::new();
        text::encode(&mut page, &metrics.registry()).unwrap();
        page
    }

    fn series(metrics: &Metrics, name: &str) -> Vec<String> {
        page(metrics).lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[test]
    fn beyond_so_many_sets_of_labels_all_processes_are_one() {
        let metrics = Metrics::default();
        let ends = 3 * MAX_LABEL_SETS as u64;
        for n in 0..ends {
            let name = format!("worker-{n}");
            metrics.take(&record(|teardown| teardown.owner.as_mut().unwrap().comm = Comm::from(name.as_str())));
        }
        let told = series(&metrics, "rsttrace_teardowns_total");
        assert_eq!(told.len(), MAX_LABEL_SETS + 1);
        let other = told.iter().find(|line| line.contains(r#"process="other",service_port="other""#)).unwrap();
        assert!(other.ends_with(&format!("}} {}", ends - MAX_LABEL_SETS as u64)), "{other}");
        let sum: u64 = told.iter().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, ends);
    }

    #[test]
    fn a_port_is_a_services_or_unknown() {
        let port = |role, state, local: u16, remote: u16| {
            let Saved::Teardown(judged) = record(|teardown| {
                (teardown.role, teardown.state) = (role, state);
                (teardown.local.port, teardown.remote.port) = (local, remote);
            }) else {
                panic!("a record")
            };
            ServicePort::of(&judged.teardown)
        };
        let socket = Some(TcpState::Established);
        assert_eq!(port(Some(Role::Server), socket, 40_000, 50_000), ServicePort::Number(40_000), "it listens there");
        assert_eq!(port(Some(Role::Client), socket, 40_000, 443), ServicePort::Number(443));
        assert_eq!(port(None, socket, 40_000, 443), ServicePort::Number(443));
        assert_eq!(port(None, socket, 443, 40_000), ServicePort::Number(443));
        assert_eq!(port(None, socket, 443, 80), ServicePort::Unknown);
        assert_eq!(port(None, socket, 40_000, 50_000), ServicePort::Unknown);
        assert_eq!(port(None, None, 443, 40_000), ServicePort::Unknown, "whoever scans ports chooses it");
    }

    #[test]
    fn labels_are_escaped_and_unknown_is_a_word() {
        let metrics = Metrics::default();
        metrics.take(&record(|teardown| teardown.owner.as_mut().unwrap().comm = Comm::from("a\"b\\c\nd")));
        metrics.take(&record(|teardown| (teardown.owner, teardown.observer, teardown.closer) = (None, None, None)));
        let told = series(&metrics, "rsttrace_teardowns_total");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().any(|line| line.contains(r#"process="a\"b\\c\nd","#)), "{told:?}");
        assert!(told.iter().any(|line| line.contains(r#"process="unknown","#)), "{told:?}");
    }

    #[test]
    fn a_run_without_records_serves_zeros() {
        let metrics = Metrics::default();
        assert_eq!(series(&metrics, "rsttrace_teardowns_total"), Vec::<String>::new());
        assert_eq!(series(&metrics, "rsttrace_lost_events_total"), ["rsttrace_lost_events_total 0"]);
        assert!(page(&metrics).ends_with("# EOF\n"));
    }
}
