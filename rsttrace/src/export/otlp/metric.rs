//! Metrics as OpenTelemetry's data model has them: those of `--metrics`, and what became of the records here.

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric::Data, number_data_point,
    },
};
use prometheus_client::registry::Unit;

use super::{
    super::metrics::{Family, Labels, Metrics, Values, seconds},
    Counts,
    record::attribute,
};

/// All of them, counted from `start_ns` to `now_ns`.
pub fn all(metrics: &Metrics, counts: &Counts, start_ns: u64, now_ns: u64) -> Vec<Metric> {
    let period = Period { start_ns, now_ns };
    let mut all: Vec<_> = metrics.look(|families| families.iter().map(|family| period.metric(family)).collect());
    let lost = [("queue-full", counts.no_room), ("refused", counts.refused), ("left-at-end", counts.left)];
    let lost = lost.map(|(reason, n)| (vec![("reason", reason.into())], n)).to_vec();
    for (name, help, values) in [
        ("otlp.delivered_records", "Records that the collector has taken", vec![(Vec::new(), counts.delivered)]),
        ("otlp.lost_records", "Records that did not reach the collector", lost),
    ] {
        all.push(period.metric(&Family { name, help, unit: None, values: Values::Counter(values) }));
    }
    all
}

#[derive(Clone, Copy)]
struct Period {
    start_ns: u64,
    now_ns: u64,
}

impl Period {
    fn metric(self, family: &Family<'_>) -> Metric {
        let (unit, suffix) = match (&family.unit, &family.values) {
            (Some(Unit::Seconds), _) => ("s", ""),
            (Some(Unit::Bytes), _) => ("By", ""),
            // It counts nothing: Prometheus would have it end in `_ratio`.
            (_, Values::Info(_)) => ("", "_info"),
            _ => ("1", ""),
        };
        let temporality = AggregationTemporality::Cumulative.into();
        let data = match &family.values {
            Values::Info(labels) => self.gauge(attributes(labels), number_data_point::Value::AsInt(1)),
            Values::Gauge(value) => self.gauge(Vec::new(), number_data_point::Value::AsDouble(*value)),
            Values::Counter(counts) => {
                let point = |(labels, count): &(Labels<'_>, u64)| NumberDataPoint {
                    attributes: attributes(labels),
                    start_time_unix_nano: self.start_ns,
                    time_unix_nano: self.now_ns,
                    value: Some(number_data_point::Value::AsInt(i64::try_from(*count).unwrap_or(i64::MAX))),
                    ..NumberDataPoint::default()
                };
                Data::Sum(Sum { data_points: counts.iter().map(point).collect(), aggregation_temporality: temporality, is_monotonic: true })
            }
            Values::Histogram(histogram) => Data::Histogram(Histogram {
                data_points: vec![HistogramDataPoint {
                    start_time_unix_nano: self.start_ns,
                    time_unix_nano: self.now_ns,
                    count: histogram.count(),
                    sum: Some(histogram.sum_ns() as f64 / 1e9),
                    bucket_counts: histogram.buckets().map(|(_, count)| count).collect(),
                    explicit_bounds: histogram.buckets().filter_map(|(bound_ns, _)| bound_ns.map(seconds)).collect(),
                    ..HistogramDataPoint::default()
                }],
                aggregation_temporality: temporality,
            }),
        };
        Metric {
            name: format!("rsttrace.{}{suffix}", family.name),
            description: family.help.to_owned(),
            unit: unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn gauge(self, attributes: Vec<KeyValue>, value: number_data_point::Value) -> Data {
        let point = NumberDataPoint { attributes, time_unix_nano: self.now_ns, value: Some(value), ..NumberDataPoint::default() };
        Data::Gauge(Gauge { data_points: vec![point] })
    }
}

fn attributes(labels: &Labels<'_>) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| attribute(name, value.to_string())).collect()
}
