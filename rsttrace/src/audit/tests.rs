//! Events to counters, and counters to words.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    Counter::{self, AbortOnClose, AbortOnData, AbortOnLinger, AbortOnTimeout, AttemptFails, EstabResets, OutRsts},
    identities::counted,
    *,
};
use crate::model::{
    After, AfterKind, Bytes, Comm, End, Endpoint, Errno, Event, Evidence, Hook, Idle, Segment, SockId, Stray, Task, TcpState,
};

const NETNS: u32 = 7;
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

fn task(syscall: Option<&'static str>) -> Task {
    Task {
        tgid: 20,
        tid: 20,
        parent_tgid: 1,
        comm: Comm::default(),
        process_comm: Comm::default(),
        syscall,
        fd: None,
        exiting: false,
        signal: None,
        kernel_thread: false,
        blocking: false,
    }
}

fn end(hook: Hook, state: TcpState) -> End {
    End {
        ts_ns: 100,
        id: SockId { sk: 1, born_ns: 1 },
        hook,
        state,
        cookie: 1,
        inode: None,
        netns: NETNS,
        local: Endpoint::v4(LOOPBACK, 80),
        remote: Endpoint::v4(LOOPBACK, 5_000),
        role: None,
        opened_ns: None,
        first_fin: None,
        first_fin_ns: None,
        second_fin_ns: None,
        fin_data_bytes: None,
        done: false,
        orphan: false,
        sequence: None,
        evidence: Evidence::default(),
        bytes: Bytes::default(),
        idle: Idle::default(),
        rtt_us: None,
        retransmits: 0,
        err: None,
        reason: None,
        answer: false,
        untracked: false,
        gone: false,
        owner: None,
        closer: None,
    }
}

fn failed(state: TcpState, errno: Errno) -> End {
    End { err: Some(errno), ..end(Hook::SetState, state) }
}

/// close() has begun: the RST is yet to come.
fn closed(state: TcpState, syscall: Option<&'static str>) -> End {
    End { closer: Some(task(syscall)), ..end(Hook::SetState, state) }
}

fn lingering(end: End) -> End {
    End { evidence: Evidence { linger_zero: true, ..end.evidence }, ..end }
}

fn reset(end: &End, reason: Option<&str>, answer: bool) -> Event {
    after(end, AfterKind::ResetSent { reason: reason.map(Into::into), answer, segment_bytes: None })
}

fn after(end: &End, kind: AfterKind) -> Event {
    Event::After(After { ts_ns: end.ts_ns + 1, id: end.id, task: None, kind })
}

fn stray(state: Option<TcpState>, reason: &str) -> Stray {
    Stray {
        ts_ns: 100,
        netns: Some(NETNS),
        local: Endpoint::v4(LOOPBACK, 80),
        remote: Endpoint::v4(LOOPBACK, 5_000),
        reason: Some(reason.into()),
        state,
        segment: Some(Segment { syn: false, bytes: None }),
    }
}

#[track_caller]
fn assert_steps(event: &Event, end: Option<&End>, reasons: bool, expected: &[Counter]) {
    let mut counts = Counts::default();
    expected.iter().for_each(|counter| counts[*counter] += 1);
    assert_eq!(counted(event, end, reasons), counts, "expected {expected:?}");
}

#[track_caller]
fn assert_end(end: End, expected: &[Counter]) {
    assert_steps(&Event::End(Box::new(end)), None, true, expected);
}

#[test]
fn a_reset_that_arrives_counts_by_the_state_it_meets() {
    let received = |state| end(Hook::ReceiveReset, state);
    assert_end(received(TcpState::Established), &[EstabResets]);
    assert_end(received(TcpState::CloseWait), &[EstabResets]);
    assert_end(received(TcpState::SynSent), &[AttemptFails]);
    assert_end(received(TcpState::FinWait1), &[]);
    assert_end(received(TcpState::LastAck), &[]);
}

#[test]
fn an_orderly_end_counts_nowhere() {
    for state in [TcpState::LastAck, TcpState::FinWait2, TcpState::Closing] {
        assert_end(end(Hook::SetState, state), &[]);
    }
}

#[test]
fn a_timer_counts_also_where_icmp_left_its_error() {
    assert_end(failed(TcpState::Established, Errno::ETIMEDOUT), &[EstabResets, AbortOnTimeout]);
    assert_end(failed(TcpState::SynSent, Errno::ETIMEDOUT), &[AttemptFails, AbortOnTimeout]);
    assert_end(failed(TcpState::FinWait1, Errno::ETIMEDOUT), &[AbortOnTimeout]);
    let unreachable = Errno(113);
    let soft = |end: End| End { evidence: Evidence { soft_errno: Some(unreachable), ..end.evidence }, ..end };
    assert_end(soft(failed(TcpState::Established, unreachable)), &[EstabResets, AbortOnTimeout]);
    // Here it is the ICMP error itself, whatever came before.
    assert_end(soft(failed(TcpState::SynSent, unreachable)), &[AttemptFails]);
}

#[test]
fn a_connect_that_its_process_gives_up_is_no_failed_attempt() {
    let given_up = closed(TcpState::SynSent, Some("close"));
    assert_end(given_up.clone(), &[]);
    assert_end(lingering(given_up.clone()), &[AbortOnData]);
    assert_end(lingering(closed(TcpState::SynSent, Some("connect"))), &[]);
    assert_end(lingering(closed(TcpState::SynSent, Some("shutdown"))), &[]);
    assert_end(End { err: Some(Errno(113)), ..given_up.clone() }, &[]);
    // ss -K is none of the process's doing.
    assert_end(End { err: Some(Errno::ECONNABORTED), closer: Some(task(Some("sendmsg"))), ..given_up }, &[AttemptFails]);
}

#[test]
fn keepalive_and_kills_send_before_they_end() {
    let sent = End { reason: Some("TCP_KEEPALIVE_TIMEOUT".into()), ..end(Hook::SendReset, TcpState::Established) };
    assert_end(sent.clone(), &[EstabResets, OutRsts]);
    assert_steps(&after(&sent, AfterKind::Closed { errno: Some(Errno::ETIMEDOUT) }), Some(&sent), true, &[AbortOnTimeout]);
    assert_steps(&after(&sent, AfterKind::Closed { errno: Some(Errno::ECONNABORTED) }), Some(&sent), true, &[]);
    assert_steps(&after(&sent, AfterKind::Closed { errno: None }), Some(&sent), true, &[]);
    let attempt = end(Hook::SendReset, TcpState::SynRecv);
    assert_end(attempt.clone(), &[OutRsts]);
    assert_steps(&after(&attempt, AfterKind::Closed { errno: Some(Errno::ECONNABORTED) }), Some(&attempt), true, &[AttemptFails]);
}

#[test]
fn the_kernels_reason_says_what_close_made_of_it() {
    let end = closed(TcpState::Established, Some("close"));
    assert_steps(&reset(&end, Some("TCP_ABORT_ON_CLOSE"), false), Some(&end), true, &[OutRsts, AbortOnClose]);
    assert_steps(&reset(&end, Some("TCP_ABORT_ON_LINGER"), false), Some(&end), true, &[OutRsts, AbortOnLinger]);
    assert_steps(&reset(&end, Some("TCP_ABORT_ON_DATA"), true), Some(&end), true, &[OutRsts, AbortOnData]);
    assert_steps(&reset(&end, Some("TCP_STATE"), false), Some(&end), true, &[OutRsts]);
    let end = lingering(end);
    assert_steps(&reset(&end, Some("TCP_STATE"), false), Some(&end), true, &[OutRsts, AbortOnData]);
    let exiting = lingering(closed(TcpState::Established, None));
    assert_steps(&reset(&exiting, Some("TCP_STATE"), false), Some(&exiting), true, &[OutRsts, AbortOnData]);
}

#[test]
fn tcp_disconnect_without_close_is_no_abort_on_data() {
    let disconnected = lingering(closed(TcpState::Established, Some("connect")));
    assert_steps(&reset(&disconnected, Some("TCP_STATE"), false), Some(&disconnected), true, &[OutRsts]);
    let queued = lingering(closed(TcpState::Established, Some("close")));
    let queued = End { evidence: Evidence { accept_queue: true, ..queued.evidence }, ..queued };
    assert_steps(&reset(&queued, Some("TCP_STATE"), false), Some(&queued), true, &[OutRsts]);
    let orphan = End { orphan: true, ..lingering(closed(TcpState::FinWait2, None)) };
    assert_steps(&reset(&orphan, Some("TCP_STATE"), false), Some(&orphan), true, &[OutRsts]);
}

#[test]
fn without_reasons_circumstances_tell() {
    let end = closed(TcpState::Established, Some("close"));
    let unread = End { bytes: Bytes { unread: 5, ..Bytes::default() }, ..lingering(end.clone()) };
    assert_steps(&reset(&unread, None, false), Some(&unread), false, &[OutRsts, AbortOnClose]);
    let lingered = lingering(end.clone());
    assert_steps(&reset(&lingered, None, false), Some(&lingered), false, &[OutRsts, AbortOnData]);
    assert_steps(&reset(&end, None, false), Some(&end), false, &[OutRsts]);
    let after_close = super::tests::end(Hook::ReceiveReset, TcpState::FinWait2);
    assert_steps(&reset(&after_close, None, true), Some(&after_close), false, &[OutRsts, AbortOnData]);
    // After shutdown(), with and without the orderly end that -a reports first.
    for hook in [Hook::SetState, Hook::SendReset] {
        let half_closed = End { hook, ..lingering(closed(TcpState::FinWait2, Some("close"))) };
        assert_steps(&reset(&half_closed, None, false), Some(&half_closed), false, &[OutRsts, AbortOnData]);
    }
    // ss -K sends first.
    let killed = lingering(super::tests::end(Hook::SendReset, TcpState::Established));
    assert_steps(&Event::End(Box::new(killed)), None, false, &[EstabResets, OutRsts]);
}

#[test]
fn a_reset_without_a_full_socket_is_one_that_left() {
    assert_steps(&Event::Stray(stray(None, "NO_SOCKET")), None, true, &[OutRsts]);
    assert_steps(&Event::Stray(stray(Some(TcpState::TimeWait), "TCP_TIMEWAIT_SOCKET")), None, true, &[OutRsts]);
}

const ALL_SEEN: Circumstances = Circumstances { sent_resets: true, socketless: true, reasons: true };

fn tally(events: &[Event]) -> Tally {
    let mut tally = Tally::default();
    tally.reasons = true;
    events.iter().for_each(|event| tally.count(event, None));
    tally
}

fn reading(counts: &[(Counter, u64)], embryonic: u64) -> Reading {
    let mut kernel = Kernel { embryonic, ..Kernel::default() };
    counts.iter().for_each(|(counter, n)| kernel.counts[*counter] = *n);
    Reading { at_ns: 0, kernel, unsteady: Counts::default() }
}

fn spans(first: Option<Reading>, last: Reading) -> BTreeMap<u32, Span> {
    BTreeMap::from([(NETNS, Span { first, last })])
}

#[track_caller]
fn of(audit: &Audit, counter: Counter) -> &Entry {
    audit.entries.iter().find(|entry| entry.counter == counter).unwrap()
}

fn received() -> Event {
    Event::End(Box::new(end(Hook::ReceiveReset, TcpState::Established)))
}

#[test]
fn what_was_counted_before_the_first_reading_is_nobodys() {
    let audit = compare(
        &tally(&[received(), received()]),
        &spans(Some(reading(&[(EstabResets, 100)], 0)), reading(&[(EstabResets, 102)], 0)),
        ALL_SEEN,
        Losses::default(),
    );
    let entry = of(&audit, EstabResets);
    assert_eq!((entry.netns, entry.kernel, entry.ours, entry.words()), (NETNS, 2, 2, None));
    assert_eq!((audit.entries.len(), audit.namespaces()), (Counter::ALL.len(), 1));
    assert!(audit.not_audited.is_empty());
}

#[test]
fn embryonic_resets_are_what_the_kernels_own_counter_says_and_no_more() {
    let refused = Event::End(Box::new(end(Hook::ReceiveReset, TcpState::SynSent)));
    let explained = |attempts, embryonic, losses| {
        let last = reading(&[(AttemptFails, attempts)], embryonic);
        let audit = compare(&tally(std::slice::from_ref(&refused)), &spans(Some(Reading::default()), last), ALL_SEEN, losses);
        of(&audit, AttemptFails).agreement.clone()
    };
    let words = "5 connections reset while still in the SYN queue: no socket yet, no tracepoint".to_owned();
    assert_eq!(explained(6, 5, Losses::default()), Agreement::Explained(words));
    assert!(matches!(explained(7, 5, Losses::default()), Agreement::Unexplained(_)));
    assert!(matches!(explained(1, 5, Losses::default()), Agreement::Unexplained(_)));
    assert!(matches!(explained(7, 5, Losses { lost: 1, ..Losses::default() }), Agreement::Explained(_)));
    assert_eq!(explained(1, 0, Losses::default()), Agreement::Equal);
}

#[test]
fn a_full_accept_queue_is_embryonic_for_the_kernel_and_no_failed_attempt() {
    let overflow = Event::Stray(stray(Some(TcpState::Listen), "INVALID_SYN"));
    let last = reading(&[(OutRsts, 1)], 1);
    let audit = compare(&tally(&[overflow]), &spans(Some(Reading::default()), last), ALL_SEEN, Losses::default());
    assert!(audit.entries.iter().all(|entry| entry.agreement == Agreement::Equal), "{audit:?}");
}

#[test]
fn every_blind_spot_has_its_words() {
    let explained = |counter, n, circumstances, losses, first| {
        let audit = compare(&tally(&[]), &spans(first, reading(&[(counter, n)], 0)), circumstances, losses);
        match &of(&audit, counter).agreement {
            Agreement::Explained(words) => words.clone(),
            other => panic!("{counter:?}: {other:?}"),
        }
    };
    let (none, start) = (Losses::default(), Some(Reading::default()));
    assert!(
        explained(OutRsts, 3, Circumstances { sent_resets: false, ..ALL_SEEN }, none, start).contains("tcp_send_reset is not attached")
    );
    assert!(explained(AbortOnClose, 3, Circumstances { sent_resets: false, ..ALL_SEEN }, none, start).contains("not attached"));
    assert!(explained(OutRsts, 3, Circumstances { socketless: false, ..ALL_SEEN }, none, start).contains("TIME_WAIT"));
    assert!(explained(AbortOnData, 3, Circumstances { reasons: false, ..ALL_SEEN }, none, start).contains("6.12"));
    assert!(explained(EstabResets, 3, ALL_SEEN, Losses { skipped: 3, ..none }, start).contains("up to 3 events"));
    assert!(explained(EstabResets, 3, ALL_SEEN, none, None).contains("had no process when tracing began"));
    let mut unsteady = Reading::default();
    unsteady.unsteady[EstabResets] = 3;
    assert!(explained(EstabResets, 3, ALL_SEEN, none, Some(unsteady)).contains("in which the counters were read"));
}

#[test]
fn what_nothing_accounts_for_is_said() {
    let last = reading(&[(EstabResets, 5), (AbortOnData, 1)], 0);
    let losses = Losses { lost: 1, ..Losses::default() };
    let audit = compare(&tally(&[received(), received()]), &spans(Some(Reading::default()), last), ALL_SEEN, losses);
    let words = of(&audit, EstabResets).words().unwrap();
    assert!(words.starts_with("not explained: 2 counted by the kernel alone; beside them, up to 1 events"), "{words}");
    let audit = compare(&tally(&[received()]), &spans(Some(Reading::default()), Reading::default()), ALL_SEEN, losses);
    assert_eq!(of(&audit, EstabResets).words(), Some("not explained: 1 counted by us alone"));
}

#[test]
fn a_namespace_whose_counters_cannot_be_read_is_named() {
    let audit = compare(&tally(&[received()]), &BTreeMap::new(), ALL_SEEN, Losses::default());
    assert_eq!((audit.entries.len(), audit.not_audited), (0, vec![NETNS]));
}

#[test]
fn a_filters_resets_are_told_only_where_nothing_is_missing() {
    let (tally, spans) = (tally(&[received()]), spans(Some(Reading::default()), reading(&[(EstabResets, 1)], 0)));
    let foreign = |circumstances, losses| compare(&tally, &spans, circumstances, losses).foreign;
    assert_eq!(foreign(ALL_SEEN, Losses::default()), Some(BTreeMap::from([(NETNS, 1)])));
    assert_eq!(foreign(ALL_SEEN, Losses { lost: 1, ..Losses::default() }), None);
    assert_eq!(foreign(Circumstances { socketless: false, ..ALL_SEEN }, Losses::default()), None);
    assert_eq!(foreign(Circumstances { sent_resets: false, ..ALL_SEEN }, Losses::default()), None);
}

#[test]
fn data_after_close_looks_like_a_reset_that_arrived_and_is_none() {
    let mut tally = Tally::default();
    tally.reasons = true;
    let end = end(Hook::ReceiveReset, TcpState::FinWait2);
    tally.count(&Event::End(Box::new(end.clone())), None);
    assert_eq!(tally.foreign(), Some(BTreeMap::from([(NETNS, 1)])));
    tally.count(&reset(&end, Some("TCP_ABORT_ON_DATA"), true), Some(&end));
    assert_eq!(tally.foreign(), Some(BTreeMap::new()));
}

#[test]
fn resets_of_unknown_sockets_have_no_namespace() {
    let end = closed(TcpState::Established, None);
    let tally = tally(&[reset(&end, Some("TCP_ABORT_ON_CLOSE"), false)]);
    assert_eq!((tally.unplaced()[OutRsts], tally.unplaced()[AbortOnClose]), (1, 1));
    assert_eq!(tally.namespaces().count(), 0);
}

#[test]
fn what_follows_an_end_before_the_first_reading_is_nobodys() {
    let end = closed(TcpState::Established, None);
    let mut tally = Tally::default();
    tally.begin(NETNS, end.ts_ns + 2);
    tally.begin(NETNS + 1, end.ts_ns + 3);
    tally.count(&reset(&end, None, false), None);
    assert!(tally.unplaced().is_zero());
}

#[test]
fn namespaces_are_bounded() {
    let mut tally = Tally::default();
    for netns in 0..=MAX_NAMESPACES as u32 {
        tally.count(&Event::End(Box::new(End { netns, ..end(Hook::ReceiveReset, TcpState::Established) })), None);
    }
    assert_eq!(tally.namespaces().count(), MAX_NAMESPACES);
}

proptest! {
    #[test]
    fn only_what_lies_between_the_readings_counts(times in proptest::collection::vec(0u64..100, 0..50), from in 0u64..100, until in 0u64..100) {
        let mut tally = Tally::default();
        tally.begin(NETNS, from);
        let at = |ts_ns| Event::End(Box::new(End { ts_ns, ..end(Hook::ReceiveReset, TcpState::Established) }));
        let (early, late) = times.split_at(times.len() / 2);
        early.iter().for_each(|ts_ns| tally.count(&at(*ts_ns), None));
        tally.close(NETNS, until);
        late.iter().for_each(|ts_ns| tally.count(&at(*ts_ns), None));
        let expected = early.iter().filter(|ts| from <= **ts).count() + late.iter().filter(|ts| from <= **ts && **ts < until).count();
        let counts: u64 = tally.namespaces().map(|(_, ours)| ours.counts[EstabResets]).sum();
        prop_assert_eq!(counts, expected as u64);
    }

    #[test]
    fn a_kernel_that_agrees_is_never_contradicted(resets in 0u64..50, refusals in 0u64..50, embryonic in 0u64..50) {
        let mut events: Vec<Event> = (0..resets).map(|_| received()).collect();
        events.extend((0..refusals).map(|_| Event::End(Box::new(end(Hook::ReceiveReset, TcpState::SynSent)))));
        let last = reading(&[(EstabResets, resets), (AttemptFails, refusals + embryonic)], embryonic);
        let audit = compare(&tally(&events), &spans(Some(Reading::default()), last), ALL_SEEN, Losses::default());
        prop_assert!(!audit.entries.iter().any(|entry| matches!(entry.agreement, Agreement::Unexplained(_))), "{:?}", audit.entries);
        prop_assert_eq!(of(&audit, AttemptFails).words().is_some(), embryonic > 0);
    }
}
