//! Stories told from events alone.

use proptest::prelude::*;

use super::*;
use crate::model::{Bytes, Comm, Endpoint, Errno, Evidence, Hook, Idle, Role, SequenceSpace, Task, TcpState};

const SECOND: u64 = 1_000_000_000;
const SERVER: u32 = 20;

fn task(tgid: u32, syscall: Option<&'static str>, fd: Option<i32>) -> Task {
    Task {
        tgid,
        tid: tgid,
        parent_tgid: 1,
        comm: Comm::from("thread"),
        process_comm: Comm::from("server"),
        syscall,
        fd,
        exiting: false,
        signal: None,
        kernel_thread: false,
        blocking: false,
    }
}

fn end(sk: u64, at: u64, hook: Hook, state: TcpState, err: Option<Errno>) -> End {
    End {
        ts_ns: at,
        id: SockId { sk, born_ns: 1 },
        hook,
        state,
        cookie: sk,
        inode: Some(77),
        netns: 1,
        local: Endpoint::v4([127, 0, 0, 1], 80),
        remote: Endpoint::v4([127, 0, 0, 1], 5_000),
        role: Some(Role::Server),
        opened_ns: Some(at / 2),
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
        err,
        reason: None,
        answer: false,
        untracked: false,
        gone: false,
        owner: Some(task(SERVER, Some("recvfrom"), Some(5))),
        closer: None,
    }
}

fn reset(sk: u64, at: u64) -> Event {
    Event::End(Box::new(end(sk, at, Hook::ReceiveReset, TcpState::Established, None)))
}

fn after(sk: u64, at: u64, task: Option<Task>, kind: AfterKind) -> Event {
    Event::After(After { ts_ns: at, id: SockId { sk, born_ns: 1 }, task, kind })
}

fn observed(sk: u64, at: u64, tgid: u32, errno: Errno) -> Event {
    after(sk, at, Some(task(tgid, Some("recvfrom"), Some(5))), AfterKind::Observed { errno })
}

fn released(sk: u64, at: u64, untaken: Option<Errno>) -> Event {
    let kind = AfterKind::Released { untaken, observation_lost: false, reset_lost: false, reopened: false, unread: None };
    after(sk, at, Some(task(SERVER, Some("close"), None)), kind)
}

fn told(events: Vec<Event>) -> Vec<Record> {
    let mut joiner = Joiner::new(SECOND, 100);
    let mut out = Vec::new();
    for event in events {
        joiner.push(event, &mut out);
    }
    joiner.tick(100 * SECOND, &mut out);
    out
}

fn teardown(record: &Record) -> &Teardown {
    match record {
        Record::Teardown(teardown) => teardown,
        other => panic!("no teardown: {other:?}"),
    }
}

fn one(events: Vec<Event>) -> Teardown {
    let records = told(events);
    assert_eq!(records.len(), 1, "{records:?}");
    teardown(&records[0]).clone()
}

#[test]
fn the_first_observer_stays() {
    let t = one(vec![
        reset(1, 10),
        observed(1, 41_010, SERVER, Errno::ECONNRESET),
        observed(1, 50_000, 21, Errno::EPIPE),
        released(1, 60_000, None),
    ]);
    let observer = t.observer.unwrap();
    assert_eq!((observer.task.tgid, observer.errno, observer.delay_ns), (SERVER, Errno::ECONNRESET, Some(41_000)));
    assert!(!observer.inferred);
    assert_eq!(t.seen, Seen::Yes);
    assert_eq!(t.end, EndKind::ResetReceived);
    assert_eq!(t.released.unwrap().syscall, Some("close"));
}

#[test]
fn an_error_that_is_still_there_at_the_end_was_seen_by_nobody() {
    let t = one(vec![reset(1, 10), released(1, 60_000, Some(Errno::ECONNRESET))]);
    assert_eq!((t.observer, t.seen), (None, Seen::Never));
    assert_eq!(t.owner.unwrap().tgid, SERVER);
}

#[test]
fn an_error_that_is_gone_was_taken_by_who_released_the_socket() {
    let observer = one(vec![reset(1, 10), released(1, 60_000, None)]).observer.unwrap();
    assert!(observer.inferred);
    assert_eq!((observer.task.tgid, observer.task.syscall, observer.task.fd), (SERVER, None, None));
    assert_eq!((observer.errno, observer.delay_ns), (Errno::ECONNRESET, None));
}

#[test]
fn a_lost_observation_is_not_concluded_away() {
    let release = AfterKind::Released { untaken: None, observation_lost: true, reset_lost: false, reopened: false, unread: None };
    let t = one(vec![reset(1, 10), after(1, 20, Some(task(SERVER, Some("close"), None)), release)]);
    assert_eq!((t.observer, t.seen), (None, Seen::Unknown));
}

#[test]
fn data_after_close_is_our_reset_although_one_seems_to_arrive_first() {
    let mut orphan = end(1, 10, Hook::ReceiveReset, TcpState::FinWait2, None);
    orphan.orphan = true;
    let gone =
        AfterKind::Released { untaken: Some(Errno::ECONNRESET), observation_lost: false, reset_lost: false, reopened: false, unread: None };
    let answer = Event::After(After {
        ts_ns: 30,
        id: SockId { sk: 1, born_ns: 0 },
        task: None,
        kind: AfterKind::ResetSent { reason: Some("TCP_ABORT_ON_DATA".into()), answer: true, segment_bytes: None },
    });
    let t = one(vec![Event::End(Box::new(orphan.clone())), after(1, 20, None, gone.clone()), answer]);
    assert_eq!((t.end, t.at_ns, t.reason.as_deref()), (EndKind::ResetSent, 30, Some("TCP_ABORT_ON_DATA")));
    assert_eq!((t.seen, t.observer), (Seen::Never, None));

    let t = one(vec![Event::End(Box::new(orphan)), after(1, 20, None, gone)]);
    assert_eq!(t.end, EndKind::ResetReceived, "no answer followed: it was the peer's");
}

#[test]
fn a_pooled_connection_is_told_at_the_timeout_and_again_when_it_is_noticed() {
    let mut joiner = Joiner::new(SECOND, 100);
    let mut out = Vec::new();
    joiner.push(reset(1, 10), &mut out);
    assert_eq!(joiner.next_deadline_ns(), Some(SECOND + 10));
    joiner.tick(SECOND, &mut out);
    assert!(out.is_empty());
    joiner.tick(SECOND + 10, &mut out);
    assert_eq!(teardown(&out[0]).seen, Seen::NotYet);
    joiner.push(observed(1, 240 * SECOND + 10, SERVER, Errno::ECONNRESET), &mut out);
    joiner.push(released(1, 241 * SECOND, None), &mut out);
    assert_eq!(out.len(), 2);
    let Record::Late(late) = &out[1] else { panic!("{out:?}") };
    assert_eq!(late.observer.delay_ns, Some(240 * SECOND));
    assert!(!late.observer.inferred);
}

#[test]
fn a_blocking_connect_returns_the_error_itself() {
    let mut refused = end(1, 10, Hook::ReceiveReset, TcpState::SynSent, None);
    refused.owner = Some(Task { blocking: true, ..task(SERVER, Some("connect"), Some(3)) });
    let observer = one(vec![Event::End(Box::new(refused.clone())), released(1, 20, None)]).observer.unwrap();
    assert_eq!((observer.task.syscall, observer.task.fd, observer.inferred), (Some("connect"), Some(3), true));
    assert_eq!(observer.errno, Errno::ECONNREFUSED);

    refused.owner = Some(task(SERVER, Some("connect"), Some(3)));
    let t = one(vec![Event::End(Box::new(refused)), released(1, 20, Some(Errno::ECONNREFUSED))]);
    assert_eq!(t.seen, Seen::Never, "non-blocking, and nobody asked");
}

#[test]
fn a_sendfile_that_kept_the_error_is_not_the_observer_if_another_call_shows_it() {
    let sendfile = |at| after(1, at, Some(task(SERVER, Some("sendfile"), Some(5))), AfterKind::Observed { errno: Errno::ECONNRESET });
    let alone = one(vec![reset(1, 10), sendfile(20), released(1, 40, None)]).observer.unwrap();
    assert_eq!((alone.task.syscall, alone.errno, alone.inferred), (Some("sendfile"), Errno::ECONNRESET, true));
    let broken = after(1, 30, Some(task(SERVER, Some("sendfile"), Some(5))), AfterKind::Observed { errno: Errno::EPIPE });
    let both = one(vec![reset(1, 10), sendfile(20), broken, released(1, 40, None)]).observer.unwrap();
    assert_eq!((both.errno, both.inferred, both.delay_ns), (Errno::EPIPE, false, Some(20)));
}

#[test]
fn a_completion_inside_another_call_names_no_call() {
    let event = after(1, 20, Some(task(SERVER, Some("clock_nanosleep"), None)), AfterKind::Observed { errno: Errno::ECONNRESET });
    let observer = one(vec![reset(1, 10), event, released(1, 30, None)]).observer.unwrap();
    assert_eq!((observer.task.tgid, observer.task.syscall), (SERVER, None));
}

#[test]
fn a_killed_connection_is_told_with_the_error_that_close_had() {
    let mut killed = end(1, 10, Hook::SendReset, TcpState::Established, None);
    killed.closer = Some(task(99, Some("sendmsg"), None));
    let t = one(vec![
        Event::End(Box::new(killed)),
        after(1, 11, None, AfterKind::Closed { errno: Some(Errno::ECONNABORTED) }),
        released(1, 30, None),
    ]);
    assert_eq!((t.end, t.closer.unwrap().tgid), (EndKind::ResetSent, 99));
    assert_eq!(t.observer.unwrap().errno, Errno::ECONNABORTED);
}

#[test]
fn a_reset_whose_event_was_lost_is_a_reset_without_a_reason() {
    let aborted = end(1, 10, Hook::SetState, TcpState::Established, None);
    let release = AfterKind::Released { untaken: None, observation_lost: false, reset_lost: true, reopened: false, unread: None };
    let t = one(vec![Event::End(Box::new(aborted)), after(1, 20, None, release)]);
    assert_eq!((t.end, t.reason), (EndKind::ResetSent, None));
}

#[test]
fn errors_are_timeouts_by_their_number() {
    let kind = |err| one(vec![Event::End(Box::new(end(1, 10, Hook::SetState, TcpState::SynSent, err)))]).end;
    assert_eq!(kind(Some(Errno::ETIMEDOUT)), EndKind::Timeout);
    assert_eq!(kind(Some(Errno(113))), EndKind::Error);
    assert_eq!(kind(None), EndKind::Error, "connect() given up");
}

#[test]
fn a_new_life_at_the_same_address_ends_the_old_story() {
    let mut second = end(1, 20, Hook::ReceiveReset, TcpState::Established, None);
    second.id.born_ns = 2;
    let records = told(vec![reset(1, 10), Event::End(Box::new(second)), observed(1, 30, SERVER, Errno::ECONNRESET)]);
    assert_eq!(records.len(), 2);
    assert_eq!(teardown(&records[0]).seen, Seen::Unknown, "its release was lost");
    assert_eq!(teardown(&records[1]).seen, Seen::NotYet, "the observation was of the first life");
}

#[test]
fn room_is_made_exactly_and_counted() {
    let mut joiner = Joiner::new(SECOND, 10);
    let mut out = Vec::new();
    for sk in 1..=1_009 {
        joiner.push(reset(sk, sk), &mut out);
    }
    assert_eq!(joiner.evicted(), 999);
    joiner.finish(&mut out);
    assert_eq!(out.len(), 1_009, "every story is told once");
}

#[test]
fn the_told_are_forgotten_first() {
    let mut joiner = Joiner::new(SECOND, 2);
    let mut out = Vec::new();
    joiner.push(reset(1, 1), &mut out);
    joiner.tick(2 * SECOND, &mut out);
    joiner.push(reset(2, 2 * SECOND), &mut out);
    joiner.push(reset(3, 2 * SECOND), &mut out);
    assert_eq!((joiner.evicted(), out.len()), (1, 1));
    joiner.push(observed(2, 2 * SECOND + 1, SERVER, Errno::ECONNRESET), &mut out);
    joiner.push(released(2, 2 * SECOND + 2, None), &mut out);
    assert_eq!(teardown(&out[1]).seen, Seen::Yes);
}

proptest! {
    /// Whatever comes in whatever order: no end is told twice, none is swallowed.
    #[test]
    fn every_end_is_told_once(steps in proptest::collection::vec((0u8..5, 1u64..6, 0u64..3), 0..200)) {
        let mut joiner = Joiner::new(SECOND, 3);
        let mut out = Vec::new();
        let mut ends = 0;
        for (at, (what, sk, born)) in (1_000_u64..).zip(steps) {
            let id = SockId { sk, born_ns: born };
            let event = match what {
                0 => {
                    let mut end = end(sk, at, Hook::ReceiveReset, TcpState::Established, None);
                    end.id = id;
                    // The kernel half reports the end of one life once.
                    end.id.born_ns = at;
                    ends += 1;
                    Event::End(Box::new(end))
                }
                1 => observed(sk, at, SERVER, Errno::ECONNRESET),
                2 => released(sk, at, None),
                3 => Event::After(After { ts_ns: at, id, task: None, kind: AfterKind::ResetSent { reason: None, answer: true, segment_bytes: None } }),
                _ => { joiner.tick(at * SECOND, &mut out); continue; }
            };
            joiner.push(event, &mut out);
        }
        joiner.finish(&mut out);
        let told = out.iter().filter(|record| matches!(record, Record::Teardown(_))).count();
        prop_assert_eq!(told, ends);
    }
}

/// Two halves of one connection: the client has sent 20 B and the server 10, of which 4 arrived.
fn halves() -> (End, End) {
    let server = End {
        sequence: Some(SequenceSpace { acknowledged: 1_004, written: 1_010, expected: 5_020 }),
        bytes: Bytes { sent: 10, acked: 4, unacked: 6, ..Bytes::default() },
        opened_ns: Some(2),
        ..end(1, 100, Hook::ReceiveReset, TcpState::Established, None)
    };
    let client = End {
        sequence: Some(SequenceSpace { acknowledged: 5_020, written: 5_020, expected: 1_008 }),
        local: server.remote,
        remote: server.local,
        role: Some(Role::Client),
        opened_ns: Some(1),
        ..end(2, 101, Hook::ReceiveReset, TcpState::Established, None)
    };
    (server, client)
}

fn tell(ends: [End; 2]) -> Vec<Record> {
    let ids = [ends[0].id.sk, ends[1].id.sk];
    let mut events: Vec<_> = ends.into_iter().map(|end| Event::End(Box::new(end))).collect();
    events.push(released(ids[0], 200, None));
    events.push(released(ids[1], 300, None));
    told(events)
}

#[test]
fn both_ends_within_the_host_are_one_story() {
    let (server, client) = halves();
    let records = tell([server, client]);
    let [Record::Pair(first, second)] = &records[..] else { panic!("{records:?}") };
    assert_eq!(first.peer.unwrap().cookie, second.cookie);
    assert_eq!(second.peer.unwrap().cookie, first.cookie);
    let server = [first, second].into_iter().find(|half| half.role == Some(Role::Server)).unwrap();
    assert_eq!(server.peer.unwrap().arrived, 4, "of 6 B without acknowledgement");
}

#[test]
fn translated_addresses_do_not_hide_the_other_half() {
    let (server, mut client) = halves();
    client.remote = Endpoint::v4([10, 96, 0, 1], 443);
    let records = tell([server, client]);
    assert!(matches!(&records[..], [Record::Pair(..)]), "{records:?}");
}

#[test]
fn a_port_used_again_is_another_connection() {
    let (server, mut client) = halves();
    client.sequence = Some(SequenceSpace { acknowledged: 9_000, written: 9_000, expected: 77_000 });
    let records = tell([server, client]);
    assert_eq!(records.len(), 2, "{records:?}");
    assert!(records.iter().all(|record| teardown(record).peer.is_none()));
}

#[test]
fn two_candidates_are_none() {
    let (server, client) = halves();
    let mut twin = client.clone();
    twin.id.sk = 3;
    let records = told([client, twin, server].into_iter().map(|end| Event::End(Box::new(end))).collect());
    assert!(records.iter().all(|record| matches!(record, Record::Teardown(t) if t.peer.is_none())), "{records:?}");
}

#[test]
fn the_half_that_is_known_first_waits_for_the_other() {
    let (server, client) = halves();
    let mut joiner = Joiner::new(SECOND, 100);
    let mut out = Vec::new();
    joiner.push(Event::End(Box::new(server)), &mut out);
    joiner.push(released(1, 150, None), &mut out);
    assert!(out.is_empty(), "its other end may still appear");
    joiner.push(Event::End(Box::new(client)), &mut out);
    joiner.tick(500_000_000, &mut out);
    assert!(out.is_empty(), "its other end is not released");
    joiner.tick(2 * SECOND, &mut out);
    assert!(matches!(&out[..], [Record::Pair(..)]), "{out:?}");
    joiner.finish(&mut out);
    assert_eq!(out.len(), 1);
    assert!(joiner.stories.is_empty());
}

#[test]
fn an_end_without_a_partner_is_told_soon() {
    let (server, _) = halves();
    let mut joiner = Joiner::new(SECOND, 100);
    let mut out = Vec::new();
    joiner.push(Event::End(Box::new(server)), &mut out);
    joiner.push(released(1, 150, None), &mut out);
    assert_eq!(joiner.next_deadline_ns(), Some(100 + 10_000_000));
    joiner.tick(100 + 10_000_000, &mut out);
    assert!(matches!(&out[..], [Record::Teardown(_)]), "{out:?}");
    assert!(joiner.stories.is_empty());
}

#[test]
fn a_crowd_of_other_ends_does_not_hide_the_other_half() {
    let (server, mut client) = halves();
    client.remote = Endpoint::v4([10, 96, 0, 1], 443);
    let crowd = (0..200).map(|n| {
        let other = 1_000_000 + 5_000 * n;
        let sequence = SequenceSpace { acknowledged: other, written: other, expected: other };
        End {
            sequence: Some(sequence),
            local: Endpoint::v4([10, 0, 0, 1], 80),
            ..end(u64::from(n) + 10, 90, Hook::ReceiveReset, TcpState::Established, None)
        }
    });
    let mut events: Vec<_> = crowd.chain([server, client]).map(|end| Event::End(Box::new(end))).collect();
    events.extend([released(1, 200, None), released(2, 300, None)]);
    let mut joiner = Joiner::new(SECOND, 1_000);
    let mut out = Vec::new();
    events.into_iter().for_each(|event| joiner.push(event, &mut out));
    joiner.finish(&mut out);
    assert_eq!(out.iter().filter(|record| matches!(record, Record::Pair(..))).count(), 1);
}
