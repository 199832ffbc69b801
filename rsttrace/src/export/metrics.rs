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

/// What is served.
pub struct Metrics(Shared);

impl Metrics {
    /// Begins to answer, in a task of its own on this thread.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let shared = Shared::default();
        tokio::task::spawn_local(http::serve(tokio::net::TcpListener::from_std(listener)?, shared.registry()));
        Ok(Self(shared))
    }

    pub fn take(&mut self, saved: &Saved) {
        let mut totals = self.0.lock();
        match saved {
            Saved::Teardown(judged) => totals.add(judged),
            // Its record had no observer.
            Saved::Late(late) => late.observer.delay_ns.into_iter().for_each(|ns| totals.all.delay.add(ns)),
            Saved::Start(start) => totals.start = Some(start.clone()),
            Saved::Summary(sums) => totals.sums = Some(sums.clone()),
            Saved::Folded(_) | Saved::Other => {}
        }
    }

    /// So many records have not come, all in all.
    pub fn dropped(&mut self, total: u64) {
        self.0.lock().dropped = total;
    }
}

/// The library asks for something that threads could share; there is one.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Totals>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        registry
    }
}

impl Collector for Shared {
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

    fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(start) = &self.start {
            let labels = [("version", start.version.as_str()), ("kernel", start.kernel.as_str())];
            to.encode_descriptor("rsttrace_build", "What is running, and on which kernel", None, MetricType::Info)?.encode_info(&labels)?;
            to.encode_descriptor("rsttrace_start_time", "When tracing began", Some(&Unit::Seconds), MetricType::Gauge)?
                .encode_gauge(&start.time.as_duration().as_secs_f64())?;
        }
        let ends = self.ends.sorted(|_| ());
        let help = "Sockets that ended, as the records tell it: both ends of a connection within this host are two";
        let mut counter = to.encode_descriptor("rsttrace_teardowns", help, None, MetricType::Counter)?;
        for (key, group) in &ends {
            counter.encode_family(&key.labels())?.encode_counter::<NoLabelSet, _, u64>(&group.ends, None)?;
        }
        let mut bytes: BTreeMap<&Who, (u64, u64)> = BTreeMap::new();
        for (key, group) in &ends {
            let (lost, unconfirmed) = bytes.entry(&key.who).or_default();
            *lost += group.lost_bytes;
            *unconfirmed += group.unconfirmed_bytes;
        }
        let help = "Payload that certainly did not arrive or was not read";
        let mut counter = to.encode_descriptor("rsttrace_lost", help, Some(&Unit::Bytes), MetricType::Counter)?;
        for (who, (lost, _)) in &bytes {
            counter.encode_family(&who.labels())?.encode_counter::<NoLabelSet, _, u64>(lost, None)?;
        }
        let help = "Payload of which nobody knows whether it arrived";
        let mut counter = to.encode_descriptor("rsttrace_unconfirmed", help, Some(&Unit::Bytes), MetricType::Counter)?;
        for (who, (_, unconfirmed)) in &bytes {
            counter.encode_family(&who.labels())?.encode_counter::<NoLabelSet, _, u64>(unconfirmed, None)?;
        }
        let help = "From the error to the return of the call that took it";
        encode_histogram(to, "rsttrace_observation_delay", help, &self.all.delay)?;
        encode_histogram(to, "rsttrace_idle", "Since the last data either way, when a connection ended", &self.all.idle)?;
        let told = |count: fn(&Sums) -> u64| self.sums.as_deref().map_or(0, count);
        for (name, help, count) in [
            ("rsttrace_orderly", "Orderly ends of the whole host that are no records", told(|sums| sums.orderly)),
            ("rsttrace_filtered_records", "Records that did not match the filters", told(|sums| sums.filtered)),
            ("rsttrace_lost_events", "Events that found no room in the buffer (--buffer)", told(|sums| sums.lost.total)),
            ("rsttrace_lost_records", "Records that are missing because their event was lost", told(|sums| sums.lost.records)),
            ("rsttrace_undecodable_events", "Events that could not be decoded", told(|sums| sums.undecodable)),
            ("rsttrace_evicted_sockets", "Sockets that found no room in the table (--max-sockets)", told(|sums| sums.evicted)),
            ("rsttrace_export_dropped_records", "Records that are missing here because this process was too slow", self.dropped),
        ] {
            to.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
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

fn encode_histogram(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
    let buckets: Vec<_> = histogram.buckets().map(|(bound_ns, count)| (bound_ns.map_or(f64::INFINITY, seconds), count)).collect();
    to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?.encode_histogram::<NoLabelSet>(
        histogram.sum_ns() as f64 / 1e9,
        histogram.count(),
        &buckets,
        None,
    )
}

fn seconds(ns: u64) -> f64 {
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
        text::encode(&mut page, &metrics.0.registry()).unwrap();
        page
    }

    fn series(metrics: &Metrics, name: &str) -> Vec<String> {
        page(metrics).lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[test]
    fn beyond_so_many_sets_of_labels_all_processes_are_one() {
        let mut metrics = Metrics(Shared::default());
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
        let mut metrics = Metrics(Shared::default());
        metrics.take(&record(|teardown| teardown.owner.as_mut().unwrap().comm = Comm::from("a\"b\\c\nd")));
        metrics.take(&record(|teardown| (teardown.owner, teardown.observer, teardown.closer) = (None, None, None)));
        let told = series(&metrics, "rsttrace_teardowns_total");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().any(|line| line.contains(r#"process="a\"b\\c\nd","#)), "{told:?}");
        assert!(told.iter().any(|line| line.contains(r#"process="unknown","#)), "{told:?}");
    }

    #[test]
    fn a_run_without_records_serves_zeros() {
        let metrics = Metrics(Shared::default());
        assert_eq!(series(&metrics, "rsttrace_teardowns_total"), Vec::<String>::new());
        assert_eq!(series(&metrics, "rsttrace_lost_events_total"), ["rsttrace_lost_events_total 0"]);
        assert!(page(&metrics).ends_with("# EOF\n"));
    }
}
