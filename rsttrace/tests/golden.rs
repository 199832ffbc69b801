//! Recorded events of a real kernel through the whole of user space, compared with what was found
//! right by eye once: text at three widths, and JSON, which is checked against the schema too.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod recording;

use std::{collections::BTreeMap, fs, num::NonZeroU32, path::Path};

use jiff::{Timestamp, tz::TimeZone};
use rsttrace::{
    audit::{Counter, Counts},
    decode::Decoder,
    enrich::{ProcessSource, Processes},
    filter::{Filter, ProcessInfo},
    fold::Fold,
    join::Joiner,
    outlet::{Format, Outlet},
    output::{
        WallClock,
        json::JsonFormat,
        text::{Appearance, TextFormat, TimeFormat},
    },
    pipeline::Pipeline,
};

use recording::events;

/// Linux 6.18's numbers, as its BTF gave them when the events were recorded.
const REASONS: [(i32, &str); 6] = [
    (1, "NO_SOCKET"),
    (8, "TCP_ABORT_ON_DATA"),
    (9, "TCP_TIMEWAIT_SOCKET"),
    (11, "TCP_ABORT_ON_CLOSE"),
    (14, "TCP_STATE"),
    (15, "TCP_KEEPALIVE_TIMEOUT"),
];

/// The recorded processes are gone, whoever has their numbers now.
#[derive(Debug)]
struct Nobody;

impl ProcessSource for Nobody {
    fn process(&mut self, _: u32) -> Option<ProcessInfo> {
        None
    }

    fn holder(&mut self, _: u64) -> Option<u32> {
        None
    }

    fn after(&mut self, _: u32) -> Vec<u32> {
        Vec::new()
    }

    fn netns(&mut self, _: u32) -> Option<u32> {
        None
    }
}

fn replay(format: Format, columns: Option<usize>) -> String {
    replay_limited(format, columns, None)
}

fn replay_limited(format: Format, columns: Option<usize>, rate_limit: Option<NonZeroU32>) -> String {
    let reasons = REASONS.map(|(number, name)| (number, name.to_owned()));
    let first_ns = events()[0][8..16].try_into().map(u64::from_ne_bytes).unwrap();
    let clock = WallClock::new("2026-11-22T07:52:00Z".parse::<Timestamp>().unwrap().as_nanosecond(), first_ns);
    let mut pipeline = Pipeline::new(
        Decoder::new(4_000_000, reasons),
        Joiner::new(1_000_000_000, 4096),
        Outlet::new(Filter::default(), format, clock, None),
    );
    pipeline.processes = Processes::from(Nobody);
    pipeline.outlet.fold = rate_limit.map(Fold::new);
    let mut out = Vec::new();
    for event in events() {
        pipeline.feed(&event);
        pipeline.tick(None);
        pipeline.write(&mut out, columns).unwrap();
    }
    pipeline.finish(&mut out, columns).unwrap();
    assert_eq!(pipeline.outlet.summary.undecodable, 0);
    String::from_utf8(out).unwrap()
}

fn text(timeline: bool, unicode: bool) -> Format {
    Format::Text(TextFormat::new(Appearance {
        time: TimeFormat::Zoned(TimeZone::UTC),
        color: false,
        unicode,
        cjk: false,
        timeline,
        silence: false,
    }))
}

#[test]
fn text_without_a_terminal_is_one_line_each() {
    insta::assert_snapshot!(replay(text(false, false), None));
}

#[test]
fn text_at_160_columns() {
    let shown = replay(text(true, true), Some(160));
    fits(&shown, 160);
    insta::assert_snapshot!(shown);
}

#[test]
fn text_at_80_columns() {
    let shown = replay(text(false, true), Some(80));
    fits(&shown, 80);
    insta::assert_snapshot!(shown);
}

#[test]
fn folded_text_at_80_and_160_columns() {
    for columns in [80, 160] {
        let shown = replay_limited(text(false, true), Some(columns), NonZeroU32::new(1));
        fits(&shown, columns);
        // A line that begins with a time begins a story.
        let stories = shown.split("\n07:").filter(|story| story.contains("more like it"));
        let folded: Vec<String> = stories.map(|story| format!("07:{story}")).collect();
        insta::assert_snapshot!(format!("folded_text_at_{columns}_columns"), folded.join("\n"));
    }
}

#[test]
fn what_is_folded_and_what_is_not_add_up() {
    let count = |shown: &str| {
        let mut ends = BTreeMap::<String, u64>::new();
        for line in shown.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            if record["record"] == "teardown" || record["record"] == "folded" {
                *ends.entry(record["end"].as_str().unwrap().to_owned()).or_default() += record["count"].as_u64().unwrap_or(1);
            }
        }
        ends
    };
    let limited = replay_limited(Format::Json(JsonFormat::default()), None, NonZeroU32::new(1));
    assert!(limited.contains("\"folded\""));
    is_valid(&limited);
    assert_eq!(count(&limited), count(&replay(Format::Json(JsonFormat::default()), None)));
}

fn fits(shown: &str, columns: usize) {
    for line in shown.lines() {
        assert!(unicode_width::UnicodeWidthStr::width(line) <= columns, "wider than {columns}: {line}");
    }
}

#[test]
fn json_is_valid_by_the_schema() {
    let shown = replay(Format::Json(JsonFormat::default()), None);
    is_valid(&shown);
    insta::assert_snapshot!(shown);
}

fn is_valid(shown: &str) {
    let schema = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rsttrace.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    for line in shown.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        validator.validate(&value).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// What the run's own audit counts of the recording.
fn counted(reasons: bool) -> Vec<(u32, Counts)> {
    let names = if reasons { REASONS.map(|(number, name)| (number, name.to_owned())).to_vec() } else { Vec::new() };
    let mut pipeline = Pipeline::new(
        Decoder::new(4_000_000, names),
        Joiner::new(1_000_000_000, 4096),
        Outlet::new(Filter::default(), Format::Json(JsonFormat::default()), WallClock::new(0, 0), None),
    );
    pipeline.tally.reasons = reasons;
    events().iter().for_each(|event| pipeline.feed(event));
    assert!(pipeline.tally.unplaced().is_zero());
    pipeline.tally.namespaces().map(|(netns, ours)| (netns, ours.counts)).collect()
}

#[test]
fn circumstances_tell_the_audit_what_the_kernels_reasons_tell() {
    let by_reasons = counted(true);
    assert!(by_reasons.iter().any(|(_, counts)| counts[Counter::AbortOnClose] > 0 && counts[Counter::AbortOnData] > 0), "{by_reasons:?}");
    assert_eq!(counted(false), by_reasons);
}
