//! Lines and records as a worker of a proxy makes them.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::model::{Endpoint, Errno, LogTime, Role, Stamp};

const MS: u64 = 1_000_000;
const PATIENCE: Patience = Patience { record_ns: 250 * MS, lag_ns: 0, entangled_ns: 1_000 * MS, line_ns: 2_000 * MS };

/// A client's connection whose error `worker` took at a moment.
fn error(worker: u32, client: u8, at_ns: u64) -> Facts {
    Facts {
        processes: vec![worker],
        role: Some(Role::Server),
        remote: Endpoint::v4([127, 0, 0, client], 40_000),
        error: Some((Errno::ECONNRESET, Some("recvfrom"), Window { from_ns: at_ns, to_ns: at_ns + 15_000 })),
        fin: None,
        closed_by_peer: Some(Window::point(at_ns)),
        closed_by_us: None,
        not_connected: None,
        released: Some((worker, at_ns + 15_000)),
        speaker: None,
        request: None,
    }
}

/// The line about it, as its writer might word it.
fn line(worker: u32, client: u8, number: u64) -> LogLine {
    let time = LogTime { stamp: Stamp::Absolute(Timestamp::UNIX_EPOCH), precision: Duration::from_secs(1) };
    let fault = Fault::Error { errno: Errno::ECONNRESET, calls: &["recvfrom"] };
    LogLine {
        side: Some(Side::Client),
        process: Some(worker),
        connection: Some(number),
        client: Some(Remote::Tcp { addr: [127, 0, 0, client].into(), port: None }),
        request: Some(format!("GET /{number} HTTP/1.1")),
        ..LogLine::new(time, fault, format!("line {number}"))
    }
}

/// A line that was read at a moment, after a quiet second.
fn at(correlator: &mut Correlator<u64>, now_ns: u64, line: LogLine) {
    correlator.push_line(
        now_ns,
        Origin { book: Book::Errors, file: 0 },
        line,
        Window { from_ns: now_ns.saturating_sub(1_000 * MS), to_ns: now_ns },
    );
}

#[derive(Default)]
struct Told(Vec<(u64, Finding)>);

impl Told {
    fn tick(&mut self, correlator: &mut Correlator<u64>, now_ns: u64) {
        correlator.tick(now_ns, &mut |payload, findings| self.0.extend(findings.into_iter().map(|finding| (payload, finding))));
    }

    /// Numbers of the lines that each record was told with; `None`: ambiguous.
    fn numbers(&self) -> Vec<(u64, Option<Vec<u64>>)> {
        let numbers = |lines: &Vec<Arc<LogLine>>| lines.iter().filter_map(|line| line.connection).collect();
        self.0
            .iter()
            .map(|(payload, finding)| {
                let told = match finding {
                    Finding::Nothing => Some(Vec::new()),
                    Finding::About(lines) => Some(numbers(lines)),
                    Finding::Ambiguous(_) => None,
                };
                (*payload, told)
            })
            .collect()
    }
}

#[test]
fn a_line_goes_with_the_record_of_its_worker_and_client() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    at(&mut correlator, 10 * MS, line(7, 1, 11));
    at(&mut correlator, 10 * MS, line(8, 1, 12));
    at(&mut correlator, 10 * MS, line(7, 2, 13));
    for (record, (worker, client)) in [(8, 1), (7, 2), (7, 1), (7, 3)].into_iter().enumerate() {
        correlator.push_record(11 * MS, vec![error(worker, client, 9 * MS)], record as u64);
    }
    told.tick(&mut correlator, 200 * MS);
    assert!(told.0.is_empty(), "lines may still come");
    told.tick(&mut correlator, 261 * MS);
    assert_eq!(told.numbers(), [(0, Some(vec![12])), (1, Some(vec![13])), (2, Some(vec![11])), (3, Some(vec![]))]);
    told.tick(&mut correlator, u64::MAX);
    assert_eq!(correlator.tally(), LogTally { lines: 3, joined: 3, ..LogTally::default() });
}

#[test]
fn one_worker_logs_in_the_order_in_which_it_meets_errors() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    for i in 0..5 {
        correlator.push_record(20 * MS, vec![error(7, 1, (10 + i) * MS)], i);
    }
    for i in 0..5 {
        at(&mut correlator, 21 * MS, line(7, 1, i));
    }
    told.tick(&mut correlator, 300 * MS);
    assert_eq!(told.numbers(), (0..5).map(|i| (i, Some(vec![i]))).collect::<Vec<_>>());
}

#[test]
fn what_may_be_about_either_of_two_is_told_as_ambiguous_at_both() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    correlator.push_record(21 * MS, vec![error(7, 1, 10 * MS)], 0);
    correlator.push_record(100 * MS, vec![error(7, 1, 11 * MS)], 1);
    told.tick(&mut correlator, 351 * MS);
    assert_eq!(told.numbers(), [(0, None), (1, None)]);
    told.tick(&mut correlator, u64::MAX);
    assert_eq!(correlator.tally(), LogTally { lines: 1, ambiguous: 1, ..LogTally::default() });
    assert!(correlator.take_unmatched().is_empty());
}

#[test]
fn a_record_that_comes_late_is_not_robbed_of_its_line() {
    let (mut correlator, mut told) = (Correlator::new(Patience { lag_ns: 400 * MS, ..PATIENCE }), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    // Nothing was logged about this one.
    correlator.push_record(21 * MS, vec![error(7, 1, 10 * MS)], 0);
    told.tick(&mut correlator, 300 * MS);
    assert!(told.0.is_empty(), "another may come");
    correlator.push_record(310 * MS, vec![error(7, 1, 15 * MS)], 1);
    told.tick(&mut correlator, 600 * MS);
    assert_eq!(told.numbers(), [(0, None), (1, None)]);

    // By its request it is known at once.
    let (mut correlator, mut told) = (Correlator::new(Patience { lag_ns: 400 * MS, ..PATIENCE }), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    let mut facts = error(7, 1, 10 * MS);
    facts.request = Some("GET /1 HTTP/1.1".to_owned());
    correlator.push_record(21 * MS, vec![facts], 0);
    told.tick(&mut correlator, 300 * MS);
    assert_eq!(told.numbers(), [(0, Some(vec![1]))]);
}

#[test]
fn entangled_records_do_not_wait_for_ever() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    for i in 0..40 {
        let now = (21 + i * 100) * MS;
        correlator.push_record(now, vec![error(7, 1, (10 + i) * MS)], i);
        told.tick(&mut correlator, now);
    }
    assert!(told.0.len() > 20, "{}", told.0.len());
}

#[test]
fn both_halves_of_a_pair_have_lines_of_their_own() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    correlator.push_record(21 * MS, vec![error(9, 5, 10 * MS), error(7, 1, 10 * MS)], 0);
    told.tick(&mut correlator, 300 * MS);
    assert_eq!(told.numbers(), [(0, Some(vec![])), (0, Some(vec![1]))]);
}

#[test]
fn a_second_line_about_the_same_connection_goes_with_the_first() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    correlator.push_record(21 * MS, vec![error(7, 1, 10 * MS)], 0);
    told.tick(&mut correlator, 300 * MS);
    assert_eq!(told.numbers(), [(0, Some(vec![1, 1]))]);
    // Another error of it later, of which no record can be.
    let mut broken_pipe = line(7, 1, 1);
    broken_pipe.fault = Fault::Error { errno: Errno::EPIPE, calls: &[] };
    at(&mut correlator, 310 * MS, broken_pipe);
    told.tick(&mut correlator, u64::MAX);
    assert_eq!(correlator.tally(), LogTally { lines: 3, joined: 3, ..LogTally::default() });
}

#[test]
fn a_line_waits_for_its_record_and_is_then_given_up() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    at(&mut correlator, 20 * MS, line(7, 1, 1));
    at(&mut correlator, 20 * MS, line(7, 2, 2));
    correlator.push_record(1_500 * MS, vec![error(7, 1, 10 * MS)], 0);
    told.tick(&mut correlator, 1_800 * MS);
    assert_eq!(told.numbers(), [(0, Some(vec![1]))]);
    assert!(correlator.take_unmatched().is_empty());
    told.tick(&mut correlator, 2_020 * MS);
    let unmatched = correlator.take_unmatched();
    assert_eq!(unmatched.iter().filter_map(|line| line.connection).collect::<Vec<_>>(), [2]);
    assert_eq!(correlator.tally(), LogTally { lines: 2, joined: 1, without_record: 1, ..LogTally::default() });
}

#[test]
fn lines_without_a_tcp_connection_are_counted_only() {
    let (mut correlator, mut told) = (Correlator::<u64>::new(PATIENCE), Told::default());
    let mut accept = line(7, 1, 1);
    accept.fault = Fault::NoConnection;
    let mut unix = line(7, 1, 2);
    (unix.side, unix.upstream) = (Some(Side::Upstream), Some(Remote::Unix("/run/app.sock".to_owned())));
    at(&mut correlator, 20 * MS, accept);
    at(&mut correlator, 20 * MS, unix);
    told.tick(&mut correlator, u64::MAX);
    assert_eq!(correlator.tally(), LogTally { lines: 2, no_connection: 2, ..LogTally::default() });
}

#[test]
fn the_request_decides_where_both_name_it() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    for i in [0, 1, 2] {
        let mut facts = error(7, 1, (10 + i) * MS);
        facts.request = Some(format!("GET /{i} HTTP/1.1"));
        correlator.push_record(20 * MS, vec![facts], i);
    }
    let mut with_query = line(7, 1, 2);
    with_query.request = Some("GET /2?token=x HTTP/1.1".to_owned());
    at(&mut correlator, 21 * MS, line(7, 1, 0));
    at(&mut correlator, 21 * MS, with_query);
    told.tick(&mut correlator, 300 * MS);
    assert_eq!(told.numbers(), [(0, Some(vec![0])), (1, Some(vec![])), (2, Some(vec![2]))]);
}

#[test]
fn a_flood_is_told_early_instead_of_growing() {
    let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
    for i in 0..40_000 {
        correlator.push_record(i, vec![error(7, 1, i)], i);
        if i % 1_000 == 0 {
            told.tick(&mut correlator, i);
        }
    }
    assert!(correlator.held.len() <= MAX_HELD + 1_000);
    for i in 0..40_000 {
        at(&mut correlator, 40_000, line(9, 1, i));
    }
    told.tick(&mut correlator, 40_000);
    assert!(correlator.lines.len() <= MAX_HELD);
}

proptest! {
    /// Whatever a worker logs of what it meets, in its order, and whatever is missing on either side:
    /// a line that is told as certain is the right one, as long as nothing but logging is left out.
    #[test]
    fn nothing_is_told_that_is_wrong(
        ends in prop::collection::vec((0u8..3, 1u64..40, any::<bool>()), 1..40),
    ) {
        let (mut correlator, mut told) = (Correlator::new(PATIENCE), Told::default());
        let mut now = 10 * MS;
        for (i, (client, apart, logged)) in ends.iter().enumerate() {
            now += apart * MS;
            if *logged {
                at(&mut correlator, now + 10_000, line(7, *client, i as u64));
            }
            correlator.push_record(now + 20_000, vec![error(7, *client, now)], i as u64);
            told.tick(&mut correlator, now + 20_000);
        }
        told.tick(&mut correlator, u64::MAX);
        prop_assert_eq!(told.0.len(), ends.len());
        for (record, lines) in told.numbers() {
            for line in lines.unwrap_or_default() {
                prop_assert_eq!(line, record);
            }
        }
    }
}
