//! The rules at their edges. The base case is a server on whose connection one exchange passed,
//! everything acknowledged; each test changes what its rule looks at.

use proptest::prelude::*;

use super::*;
use crate::model::{
    Answer, AtFin, Bytes, Cause, Comm, EndKind, Endpoint, Errno, Evidence, Fin, FirstFin, Harm, Http, Idle, Initiator, Owner, Peer, Phase,
    ResetHeader, Role, Seen, Segment, Speaker, Task, TcpState,
};

const REQUEST: u64 = 412;
const RESPONSE: u64 = 1_532;

fn task(tgid: u32, syscall: &'static str) -> Task {
    Task {
        tgid,
        tid: tgid,
        parent_tgid: 1,
        comm: Comm::from("actor"),
        process_comm: Comm::from("actor"),
        syscall: Some(syscall),
        fd: None,
        exiting: false,
        signal: None,
        kernel_thread: false,
        blocking: false,
    }
}

/// A RST arrived at a server that had answered.
fn server() -> Teardown {
    Teardown {
        at_ns: 0,
        end: EndKind::ResetReceived,
        local: Endpoint::v4([127, 0, 0, 1], 80),
        remote: Endpoint::v4([127, 0, 0, 1], 5_000),
        netns: Some(1),
        cookie: Some(1),
        inode: Some(1),
        role: Some(Role::Server),
        state: Some(TcpState::Established),
        age_ns: Some(1),
        idle: Some(Idle { sent_ms: Some(4), received_ms: Some(8) }),
        bytes: Some(Bytes { sent: RESPONSE, acked: RESPONSE, received: REQUEST, ..Bytes::default() }),
        rtt_us: Some(20_000),
        retransmits: Some(0),
        reason: None,
        owner: Some(Owner { tgid: 10, parent_tgid: 1, comm: Comm::from("actor") }),
        observer: None,
        seen: Seen::Yes,
        closer: None,
        released: None,
        released_ns: None,
        fin: Fin { local: Some(false), remote: Some(false), ..Fin::default() },
        evidence: Some(Evidence {
            last_speaker: Some(Speaker::Local),
            min_rtt_us: Some(20_000),
            since_last_tx_us: Some(30_000),
            unread_at_release: Some(0),
            errno: Some(Errno::ECONNRESET),
            ..Evidence::default()
        }),
        segment: None,
        peer: None,
        http: None,
    }
}

/// The same at the client, whose request is acknowledged and unanswered.
fn client() -> Teardown {
    let mut t = server();
    t.role = Some(Role::Client);
    t.bytes = Some(Bytes { sent: REQUEST, acked: REQUEST, ..Bytes::default() });
    t
}

/// The same with its request under way, after an earlier exchange.
fn in_flight() -> Teardown {
    let mut t = client();
    t.bytes = Some(Bytes { sent: 2 * REQUEST, acked: REQUEST, unacked: REQUEST, received: RESPONSE, ..Bytes::default() });
    t.idle = Some(Idle { sent_ms: Some(8), received_ms: Some(60_000) });
    t
}

/// A connection that our own process aborted.
fn aborted(syscall: &'static str) -> Teardown {
    let mut t = server();
    t.end = EndKind::ResetSent;
    t.reason = Some("TCP_STATE".into());
    t.closer = Some(task(10, syscall));
    e(&mut t).errno = None;
    t
}

/// In order, closed by `first`; how it stood then.
fn closed(role: Role, first: FirstFin, fin: AtFin) -> Teardown {
    let mut t = server();
    t.end = EndKind::Fin;
    t.role = Some(role);
    t.state = Some(TcpState::LastAck);
    t.fin = Fin { first: Some(first), local: Some(true), remote: Some(true), ..Fin::default() };
    e(&mut t).errno = None;
    match first {
        FirstFin::Remote => e(&mut t).remote_fin = Some(fin),
        _ => e(&mut t).local_fin = Some(fin),
    }
    *e(&mut t) = e(&mut t).with_speaker(TcpState::LastAck, Some(first), None);
    t
}

fn fin(speaker: Speaker, ago_ms: u64) -> AtFin {
    AtFin {
        speaker: Some(speaker),
        outstanding: 0,
        goodbye: false,
        written_after: 0,
        received_after: 0,
        idle: Idle { sent_ms: Some(ago_ms), received_ms: Some(ago_ms) },
    }
}

fn e(t: &mut Teardown) -> &mut Evidence {
    t.evidence.get_or_insert_default()
}

fn b(t: &mut Teardown) -> &mut Bytes {
    t.bytes.get_or_insert_default()
}

fn header(acked: Option<u64>) -> Option<ResetHeader> {
    Some(ResetHeader { acked, ttl: 64, window: 512 })
}

fn verdict(t: &Teardown) -> Verdict {
    judge(t, &Timers::well_known(), String::new())
}

#[track_caller]
fn is(t: &Teardown, cause: Cause, phase: Phase, initiator: Initiator, harm: Harm) {
    let v = verdict(t);
    assert_eq!((v.cause, v.phase, v.initiator, v.harm), (cause, phase, initiator, harm), "{}", v.words);
}

fn changed(mut t: Teardown, change: impl FnOnce(&mut Teardown)) -> Teardown {
    change(&mut t);
    t
}

#[test]
fn a_client_that_aborts_after_the_response_hurts_nobody() {
    let t = changed(server(), |t| e(t).reset = header(Some(RESPONSE)));
    is(&t, Cause::PeerAbortAfterResponse, Phase::AfterResponse, Initiator::PeerApplication, Harm::None);
    assert_eq!(verdict(&t).words, "the client aborted after all that we sent (1,532 B) was acknowledged by its host");
    // Without the header nobody is named.
    is(&server(), Cause::PeerAbortAfterResponse, Phase::AfterResponse, Initiator::Unknown, Harm::None);
}

#[test]
fn an_acknowledgement_that_is_still_delayed_is_in_the_reset() {
    let delayed = changed(server(), |t| *b(t) = Bytes { acked: 0, unacked: RESPONSE, ..b(t).to_owned() });
    is(&delayed, Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::Unknown, Harm::Possible);
    let seen = changed(delayed.clone(), |t| e(t).reset = header(Some(RESPONSE)));
    is(&seen, Cause::PeerAbortAfterResponse, Phase::AfterResponse, Initiator::PeerApplication, Harm::None);
    let cut = changed(delayed, |t| e(t).reset = header(Some(RESPONSE - 1)));
    is(&cut, Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::PeerApplication, Harm::Lost);
    assert_eq!(verdict(&cut).damage.lost(), 1);
}

#[test]
fn idle_is_older_than_a_second_and_than_three_round_trips() {
    let idle = |ms| changed(server(), |t| t.idle = Some(Idle { sent_ms: Some(ms), received_ms: Some(ms) }));
    assert_eq!(verdict(&idle(1_000)).cause, Cause::PeerAbortAfterResponse);
    is(&idle(1_001), Cause::PeerAbortIdle, Phase::Idle, Initiator::Unknown, Harm::None);
    let far = changed(idle(1_500), |t| t.rtt_us = Some(500_000));
    assert_eq!(verdict(&far).cause, Cause::PeerAbortAfterResponse);
    let v = verdict(&idle(75_000));
    assert_eq!(v.timer.unwrap().seconds, 75);
    assert_eq!(v.words, "the client aborted the idle connection, idle 75.0 s");
}

#[test]
fn a_client_that_aborts_before_the_response_has_a_request_open() {
    let t = changed(server(), |t| e(t).last_speaker = Some(Speaker::Remote));
    is(&t, Cause::PeerAbortBeforeResponse, Phase::RequestInFlight, Initiator::Unknown, Harm::Possible);
    assert_eq!(verdict(&t).reused, Some(true));
}

#[test]
fn unsent_bytes_are_lost_whatever_the_reset_says() {
    let t = changed(server(), |t| {
        b(t).unsent = 500;
        e(t).reset = header(Some(RESPONSE));
    });
    is(&t, Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::PeerApplication, Harm::Lost);
    assert_eq!(verdict(&t).damage.lost(), 500);
}

#[test]
fn a_fin_that_waits_behind_unsent_bytes_has_closed_nothing() {
    let t = changed(server(), |t| {
        t.state = Some(TcpState::FinWait1);
        b(t).unsent = 500;
        e(t).reset = header(Some(RESPONSE));
    });
    is(&t, Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::PeerApplication, Harm::Lost);
    let sent = changed(t, |t| b(t).unsent = 0);
    assert_eq!(verdict(&sent).cause, Cause::ResetAfterLocalFin);
}

#[test]
fn a_missing_acknowledgement_proves_nothing() {
    let waiting = changed(server(), |t| {
        *b(t) = Bytes { acked: 0, unacked: RESPONSE, ..b(t).to_owned() };
        e(t).since_last_tx_us = Some(5_000_000);
        e(t).retransmits = 3;
    });
    assert_eq!((verdict(&waiting).harm, verdict(&waiting).damage.unconfirmed), (Harm::Possible, RESPONSE));
}

#[test]
fn the_other_half_on_this_host_proves_more() {
    let peer = |arrived, unread| Peer {
        end: EndKind::ResetSent,
        cookie: Some(2),
        tgid: Some(20),
        comm: Comm::from("php-fpm"),
        syscall: Some("close"),
        acted: true,
        killed: false,
        unread,
        arrived,
    };
    let t = changed(server(), |t| {
        *b(t) = Bytes { acked: 0, unacked: RESPONSE, ..b(t).to_owned() };
        t.peer = Some(peer(RESPONSE, Some(0)));
    });
    assert_eq!(verdict(&t).harm, Harm::None);
    let cut = changed(t.clone(), |t| t.peer = Some(peer(1_000, Some(0))));
    assert_eq!((verdict(&cut).harm, verdict(&cut).damage.undelivered), (Harm::Lost, 532));
    let unread = changed(server(), |t| t.peer = Some(peer(0, Some(412))));
    assert_eq!((verdict(&unread).harm, verdict(&unread).damage.unread_there), (Harm::Lost, 412));
    is(&unread, Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::PeerApplication, Harm::Lost);
    assert!(verdict(&unread).words.starts_with("php-fpm aborted"), "{}", verdict(&unread).words);
}

#[test]
fn a_request_that_crosses_the_close_is_a_race() {
    let crossing = changed(in_flight(), |t| e(t).reset = header(Some(REQUEST)));
    is(&crossing, Cause::KeepaliveRace, Phase::RequestInFlight, Initiator::PeerApplication, Harm::Lost);
    assert_eq!(
        verdict(&crossing).words,
        "the server closed the connection while our request was on its way (keep-alive race, idle 60.0 s): 412 B unanswered; 412 B not delivered"
    );
    assert_eq!(verdict(&crossing).timer.unwrap().seconds, 60);
    // Arrived, in part or whole: the server had it.
    let arrived = changed(in_flight(), |t| e(t).reset = header(Some(REQUEST + 1)));
    assert_eq!(verdict(&arrived).cause, Cause::ServerAbortBeforeResponse);
    // The first request of a connection races with nothing.
    let first = changed(crossing, |t| b(t).received = 0);
    assert_eq!(verdict(&first).cause, Cause::ServerAbortBeforeResponse);
}

#[test]
fn a_reset_without_ack_comes_from_who_knows_no_connection() {
    let answered = |received_ms| {
        changed(in_flight(), |t| {
            e(t).reset = header(None);
            t.idle = Some(Idle { sent_ms: Some(8), received_ms: Some(received_ms) });
        })
    };
    is(&answered(29_999), Cause::NoConnectionAtPeer, Phase::RequestInFlight, Initiator::PeerKernel, Harm::Possible);
    is(&answered(30_000), Cause::StaleConnection, Phase::RequestInFlight, Initiator::PeerKernel, Harm::Possible);
}

#[test]
fn an_answer_sooner_than_the_peer_can_is_a_middlebox() {
    let answered = |us| {
        changed(in_flight(), |t| {
            e(t).reset = header(None);
            e(t).since_last_tx_us = Some(us);
        })
    };
    assert_eq!(verdict(&answered(17_999)).initiator, Initiator::Middlebox);
    assert_eq!(verdict(&answered(18_000)).initiator, Initiator::PeerKernel);
    let busy = changed(answered(1_000), |t| t.idle = Some(Idle { sent_ms: Some(8), received_ms: Some(1_000) }));
    assert_eq!(verdict(&busy).initiator, Initiator::Unknown, "it may answer what was sent before");
    assert_eq!(
        verdict(&answered(1_000)).words,
        "something on the way answered us with a RST, sooner than the server can; 412 B not confirmed"
    );
    let acknowledged = changed(answered(1_000), |t| *b(t) = Bytes { acked: 2 * REQUEST, unacked: 0, ..b(t).to_owned() });
    assert_eq!(verdict(&acknowledged).initiator, Initiator::Unknown, "it answers nothing of ours");
    let near = changed(answered(100), |t| e(t).min_rtt_us = Some(999));
    assert_eq!(verdict(&near).initiator, Initiator::PeerKernel, "too near to tell");
}

#[test]
fn without_the_header_the_flight_time_tells() {
    let after = |us| changed(in_flight(), |t| e(t).since_last_tx_us = Some(us));
    assert_eq!(verdict(&after(17_999)).cause, Cause::KeepaliveRace);
    assert_eq!(verdict(&after(18_000)).cause, Cause::StaleConnection);
    assert_eq!(verdict(&after(25_199)).cause, Cause::StaleConnection);
    is(&after(25_200), Cause::RequestNotConfirmed, Phase::RequestInFlight, Initiator::Unknown, Harm::Possible);
    let near = changed(after(500), |t| e(t).min_rtt_us = Some(999));
    assert_eq!(verdict(&near).cause, Cause::RequestNotConfirmed);
}

#[test]
fn a_server_that_aborts_had_the_request_or_was_answering() {
    is(&client(), Cause::ServerAbortBeforeResponse, Phase::RequestInFlight, Initiator::Unknown, Harm::Possible);
    let answering = changed(client(), |t| {
        b(t).received = 100;
        e(t).last_speaker = Some(Speaker::Remote);
    });
    is(&answering, Cause::ServerAbortMidResponse, Phase::MidResponse, Initiator::Unknown, Harm::Possible);
    let idle = changed(answering, |t| t.idle = Some(Idle { sent_ms: Some(5_000), received_ms: Some(5_000) }));
    is(&idle, Cause::PeerAbortIdle, Phase::Idle, Initiator::Unknown, Harm::None);
    let probed = changed(idle, |t| e(t).probes_out = 1);
    assert_eq!(verdict(&probed).cause, Cause::StaleConnection);
}

#[test]
fn handshakes_and_probes() {
    let refused = changed(client(), |t| {
        t.state = Some(TcpState::SynSent);
        t.bytes = Some(Bytes::default());
    });
    is(&refused, Cause::Refused, Phase::Connecting, Initiator::PeerKernel, Harm::None);
    let queued = changed(server(), |t| e(t).accept_queue = true);
    is(&queued, Cause::ResetBeforeAccept, Phase::Accepting, Initiator::Unknown, Harm::None);
    let silent = changed(server(), |t| {
        t.bytes = Some(Bytes::default());
        e(t).last_speaker = None;
    });
    is(&silent, Cause::ConnectProbe, Phase::Idle, Initiator::Unknown, Harm::None);
}

#[test]
fn after_the_peers_fin_it_counts_how_things_stood_then() {
    let at_fin = |role, outstanding, written_after, speaker| {
        changed(server(), |t| {
            t.role = Some(role);
            t.state = Some(TcpState::CloseWait);
            t.fin.first = Some(FirstFin::Remote);
            e(t).remote_fin = Some(AtFin { outstanding, written_after, ..fin(speaker, 4) });
        })
    };
    let cause = |t: &Teardown| verdict(t).cause;
    assert_eq!(cause(&at_fin(Role::Server, 0, 1, Speaker::Local)), Cause::WriteAfterPeerClose);
    assert_eq!(cause(&at_fin(Role::Client, 412, 0, Speaker::Local)), Cause::KeepaliveRace);
    assert_eq!(cause(&at_fin(Role::Client, 0, 0, Speaker::Local)), Cause::ClosedBeforeAnswer);
    let fresh = changed(at_fin(Role::Client, 412, 0, Speaker::Local), |t| b(t).received = 0);
    assert_eq!(cause(&fresh), Cause::ClosedBeforeAnswer);
    assert_eq!(cause(&at_fin(Role::Server, 412, 0, Speaker::Local)), Cause::PeerAbortMidResponse);
    assert_eq!(cause(&at_fin(Role::Server, 0, 0, Speaker::Local)), Cause::ResetWhileClosing);
    let unseen = changed(at_fin(Role::Server, 0, 1, Speaker::Local), |t| e(t).remote_fin = None);
    assert_eq!(cause(&unseen), Cause::ResetWhileClosing);
    let read = at_fin(Role::Server, 0, 50, Speaker::Local);
    assert_eq!(verdict(&read).words, "actor wrote 50 B after the client had closed, not having read its FIN");
    let read = changed(read, |t| e(t).fin_read = true);
    assert_eq!(verdict(&read).words, "actor wrote 50 B after the client had closed");
}

#[test]
fn our_own_aborts_are_told_apart() {
    let linger = changed(aborted("close"), |t| e(t).linger_zero = true);
    is(&linger, Cause::LingerZero, Phase::AfterResponse, Initiator::LocalApplication, Harm::None);
    assert_eq!(verdict(&changed(linger, |t| t.closer = Some(task(10, "connect")))).cause, Cause::Disconnect);
    assert_eq!(verdict(&aborted("shutdown")).cause, Cause::Disconnect);
    let unread = changed(aborted("close"), |t| {
        t.reason = Some("TCP_ABORT_ON_CLOSE".into());
        b(t).unread = 32;
        e(t).unread_at_release = Some(32);
    });
    is(&unread, Cause::CloseWithUnreadData, Phase::AfterResponse, Initiator::LocalApplication, Harm::Lost);
    let old_kernel = changed(unread.clone(), |t| t.reason = None);
    assert_eq!(verdict(&old_kernel).cause, Cause::CloseWithUnreadData);
    let memory = changed(aborted("close"), |t| t.reason = Some("TCP_ABORT_ON_MEMORY".into()));
    is(&memory, Cause::OutOfMemory, Phase::AfterResponse, Initiator::LocalKernel, Harm::None);
    let killed = changed(aborted("sendmsg"), |t| {
        t.closer = Some(task(77, "sendmsg"));
        e(t).errno = Some(Errno::ECONNABORTED);
    });
    is(&killed, Cause::AdminKill, Phase::AfterResponse, Initiator::LocalAdmin, Harm::None);
    let queue = changed(aborted("close"), |t| e(t).accept_queue = true);
    is(&queue, Cause::ListenerClosed, Phase::Accepting, Initiator::LocalApplication, Harm::None);
}

#[test]
fn a_tls_goodbye_that_nobody_reads_is_harmless() {
    let goodbye = |unread| {
        changed(aborted("close"), |t| {
            t.reason = Some("TCP_ABORT_ON_CLOSE".into());
            t.state = Some(TcpState::CloseWait);
            t.fin.first = Some(FirstFin::Remote);
            b(t).unread = unread;
            e(t).unread_at_release = Some(unread);
            e(t).remote_fin = Some(fin(Speaker::Remote, 11));
        })
    };
    let waited = changed(goodbye(31), |t| e(t).remote_fin = Some(fin(Speaker::Remote, 12)));
    assert_eq!(verdict(&waited).harm, Harm::Lost, "a goodbye is followed by the FIN at once");
    assert_eq!(verdict(&changed(goodbye(31), |t| e(t).remote_fin = None)).harm, Harm::Possible);
    assert_eq!(verdict(&goodbye(31)).harm, Harm::None);
    assert_eq!(verdict(&goodbye(32)).harm, Harm::Lost);
    assert_eq!(verdict(&changed(goodbye(24), |t| b(t).unacked = 1)).harm, Harm::Lost);
    assert_eq!(verdict(&changed(goodbye(24), |t| b(t).received = 24)).harm, Harm::Lost, "a request of its own");
    assert_eq!(verdict(&changed(goodbye(24), |t| *b(t) = Bytes { sent: 0, acked: 0, ..b(t).to_owned() })).harm, Harm::Lost);
    assert_eq!(verdict(&changed(goodbye(24), |t| t.state = Some(TcpState::Established))).harm, Harm::Lost);
}

#[test]
fn a_tls_goodbye_to_who_has_closed_is_harmless() {
    let wrote = |written_after, speaker| {
        changed(server(), |t| {
            t.state = Some(TcpState::LastAck);
            t.fin.first = Some(FirstFin::Remote);
            *b(t) = Bytes { acked: RESPONSE - written_after, unacked: written_after, ..b(t).to_owned() };
            e(t).remote_fin = Some(AtFin { written_after, ..fin(speaker, 400) });
        })
    };
    is(&wrote(24, Speaker::Local), Cause::WriteAfterPeerClose, Phase::Closing, Initiator::PeerKernel, Harm::None);
    // Not known to be one: it may have been a small request.
    for (written, speaker) in [(22, Speaker::Local), (32, Speaker::Local), (24, Speaker::Remote)] {
        assert_eq!(verdict(&wrote(written, speaker)).harm, Harm::Possible, "{written}, {speaker:?}");
    }
}

#[test]
fn data_after_close_is_lost_by_its_length() {
    let after = |bytes| {
        changed(server(), |t| {
            t.end = EndKind::ResetSent;
            t.state = Some(TcpState::FinWait2);
            t.reason = Some("TCP_ABORT_ON_DATA".into());
            e(t).answer = true;
            e(t).segment_bytes = bytes;
        })
    };
    is(&after(Some(50)), Cause::DataAfterClose, Phase::AfterLocalFin, Initiator::LocalKernel, Harm::Lost);
    assert_eq!(verdict(&after(None)).harm, Harm::Possible);
    let linger2 = changed(after(Some(0)), |t| e(t).linger2 = true);
    is(&linger2, Cause::Linger2Abort, Phase::AfterLocalFin, Initiator::LocalApplication, Harm::None);
}

#[test]
fn timers_are_told_apart() {
    let timeout = |change: &dyn Fn(&mut Teardown)| {
        verdict(&changed(server(), |t| {
            t.end = EndKind::Timeout;
            *b(t) = Bytes { acked: 0, unacked: RESPONSE, ..b(t).to_owned() };
            e(t).errno = Some(Errno::ETIMEDOUT);
            e(t).retransmits = 6;
            change(t);
        }))
    };
    let v = timeout(&|_| {});
    assert_eq!((v.cause, v.harm, v.initiator), (Cause::RetransmitTimeout, Harm::Possible, Initiator::LocalKernel));
    assert_eq!(timeout(&|t| e(t).user_timeout_ms = Some(500)).cause, Cause::UserTimeout);
    assert_eq!(timeout(&|t| e(t).orphan = true).cause, Cause::UndeliveredAfterClose);
    assert_eq!(timeout(&|t| t.state = Some(TcpState::SynSent)).cause, Cause::ConnectTimeout);
    let closed_window = |t: &mut Teardown| {
        e(t).retransmits = 0;
        *b(t) = Bytes { acked: RESPONSE, unacked: 0, unsent: 9, ..b(t).to_owned() };
    };
    assert_eq!(timeout(&closed_window).cause, Cause::ZeroWindowTimeout);
    let keepalive = |t: &mut Teardown| {
        t.end = EndKind::ResetSent;
        b(t).unacked = 0;
        e(t).probes_out = 3;
    };
    assert_eq!(timeout(&keepalive).cause, Cause::KeepaliveTimeout, "before 6.10 there is no reason");
    let icmp = |t: &mut Teardown| {
        t.end = EndKind::Error;
        e(t).errno = Some(Errno(113));
        e(t).soft_errno = Some(Errno(113));
    };
    assert_eq!(timeout(&icmp).cause, Cause::RetransmitTimeout, "the last ICMP error stands for the timer's");
}

#[test]
fn errors_without_a_reset() {
    let error = |errno, change: &dyn Fn(&mut Teardown)| {
        verdict(&changed(client(), |t| {
            t.end = EndKind::Error;
            t.state = Some(TcpState::SynSent);
            t.bytes = Some(Bytes::default());
            e(t).errno = errno;
            change(t);
        }))
    };
    let v = error(Some(Errno::ECONNREFUSED), &|_| {});
    assert_eq!((v.cause, v.phase, v.initiator, v.harm), (Cause::RefusedByIcmp, Phase::Connecting, Initiator::Unknown, Harm::None));
    assert_eq!(error(Some(Errno(113)), &|_| {}).cause, Cause::Unreachable);
    let v = error(None, &|t| t.closer = Some(task(10, "close")));
    assert_eq!((v.cause, v.initiator), (Cause::GaveUpConnecting, Initiator::LocalApplication));
    assert_eq!(error(None, &|t| t.state = Some(TcpState::Established)).cause, Cause::SilentClose);
}

#[test]
fn resets_without_a_socket() {
    let stray = |state, syn, bytes, reason: &str| {
        verdict(&changed(server(), |t| {
            t.end = EndKind::ResetSent;
            (t.bytes, t.evidence, t.idle, t.state, t.role) = (None, None, None, state, None);
            t.reason = Some(reason.into());
            t.segment = Some(Segment { syn, bytes: Some(bytes) });
        }))
    };
    let v = stray(None, true, 0, "NO_SOCKET");
    assert_eq!((v.cause, v.phase, v.initiator, v.harm), (Cause::ClosedPort, Phase::Connecting, Initiator::LocalKernel, Harm::None));
    let v = stray(None, false, 412, "NO_SOCKET");
    assert_eq!((v.cause, v.harm, v.damage.lost()), (Cause::NoConnection, Harm::Lost, 412));
    assert_eq!(stray(Some(TcpState::Listen), false, 0, "NO_SOCKET").cause, Cause::NoConnection);
    assert_eq!(stray(Some(TcpState::Listen), false, 0, "INVALID_SYN").cause, Cause::AcceptQueueOverflow);
    assert_eq!(stray(Some(TcpState::Listen), true, 0, "INVALID_SYN").cause, Cause::ProtocolError);
    assert_eq!(stray(Some(TcpState::TimeWait), false, 0, "TCP_TIMEWAIT_SOCKET").cause, Cause::TimeWait);
    let v = stray(Some(TcpState::NewSynRecv), false, 0, "TCP_RFC7323_PAWS");
    assert_eq!((v.cause, v.harm), (Cause::ProtocolError, Harm::Unknown));
}

#[test]
fn ends_in_order_that_leave_a_request() {
    use FirstFin::{Local, Remote};
    let cause = |t: &Teardown| verdict(t).cause;
    let c = Role::Client;
    let s = Role::Server;
    // Whoever closes right behind its last bytes waits for no answer: a goodbye, or one-way.
    assert_eq!(cause(&closed(c, Local, fin(Speaker::Local, 11))), Cause::Orderly);
    is(
        &closed(c, Local, fin(Speaker::Local, 12)),
        Cause::GaveUpWaiting,
        Phase::RequestInFlight,
        Initiator::LocalApplication,
        Harm::Possible,
    );
    let answered = AtFin { received_after: 1, ..fin(Speaker::Local, 12) };
    assert_eq!(cause(&closed(c, Local, answered)), Cause::Orderly, "half-closed, and answered");
    assert_eq!(cause(&closed(s, Remote, fin(Speaker::Remote, 11))), Cause::Orderly);
    is(
        &closed(s, Remote, fin(Speaker::Remote, 12)),
        Cause::ClientGaveUp,
        Phase::RequestInFlight,
        Initiator::PeerApplication,
        Harm::Possible,
    );
    let answered = AtFin { written_after: 1, ..fin(Speaker::Remote, 12) };
    assert_eq!(cause(&closed(s, Remote, answered)), Cause::Orderly);
    is(
        &closed(c, Remote, fin(Speaker::Local, 0)),
        Cause::ClosedBeforeAnswer,
        Phase::RequestInFlight,
        Initiator::PeerApplication,
        Harm::Possible,
    );
    let crossed = AtFin { outstanding: 412, ..fin(Speaker::Local, 0) };
    assert_eq!(cause(&closed(c, Remote, crossed)), Cause::KeepaliveRace);
    assert_eq!(cause(&closed(s, Local, fin(Speaker::Remote, 0))), Cause::Orderly);
    assert_eq!(cause(&closed(s, Local, fin(Speaker::Remote, 1_000))), Cause::Orderly, "it may answer a goodbye");
    assert_eq!(cause(&closed(s, Local, fin(Speaker::Remote, 1_001))), Cause::ClosedBeforeAnswer);
    let last_words = |goodbye| AtFin { goodbye, ..fin(Speaker::Local, 0) };
    assert_eq!(cause(&closed(c, Remote, last_words(true))), Cause::Orderly, "a goodbye, answered by closing");
    assert_eq!(cause(&closed(c, Remote, last_words(false))), Cause::ClosedBeforeAnswer);
    let died = changed(closed(s, Local, fin(Speaker::Remote, 0)), |t| t.closer = Some(Task { exiting: true, ..task(10, "read") }));
    assert_eq!(verdict(&died).words, "actor died without answering the client's request");
    is(&closed(s, Local, fin(Speaker::Local, 0)), Cause::Orderly, Phase::AfterResponse, Initiator::LocalApplication, Harm::None);
    is(&closed(c, Local, fin(Speaker::Remote, 5_000)), Cause::Orderly, Phase::Idle, Initiator::LocalApplication, Harm::None);
    let unread = changed(closed(c, Local, fin(Speaker::Remote, 0)), |t| e(t).unread_at_release = Some(7));
    is(&unread, Cause::OrderlyUnread, Phase::AfterResponse, Initiator::LocalApplication, Harm::Lost);
}

/// The same, and HTTP was looked at.
fn with_http(t: Teardown, answer: Answer) -> Teardown {
    changed(t, |t| {
        let role = t.role.unwrap();
        t.http = Some(Http {
            role,
            request: Some("GET /a HTTP/1.1".to_owned()),
            whole: true,
            status: Some(200),
            answer,
            moved: Some(41),
            expected: Some(43),
        });
    })
}

#[test]
fn http_tells_whether_the_answer_was_whole_when_the_server_aborted() {
    use Answer::{Complete, None, Partial, Unknown};
    let answered = || changed(client(), |t| (b(t).received, e(t).last_speaker) = (RESPONSE, Some(Speaker::Remote)));
    let by_peer = Initiator::Unknown;
    is(&with_http(answered(), Complete), Cause::PeerAbortAfterResponse, Phase::AfterResponse, by_peer, Harm::None);
    is(&with_http(answered(), Partial), Cause::ServerAbortMidResponse, Phase::MidResponse, by_peer, Harm::Possible);
    is(&with_http(answered(), None), Cause::ServerAbortBeforeResponse, Phase::RequestInFlight, by_peer, Harm::Possible);
    is(&with_http(answered(), Unknown), Cause::ServerAbortMidResponse, Phase::MidResponse, by_peer, Harm::Possible);
    let idle = || changed(answered(), |t| t.idle = Some(Idle { sent_ms: Some(5_000), received_ms: Some(5_000) }));
    is(&with_http(idle(), Complete), Cause::PeerAbortIdle, Phase::Idle, by_peer, Harm::None);
    is(&with_http(idle(), Partial), Cause::ServerAbortMidResponse, Phase::MidResponse, by_peer, Harm::Possible);
    assert_eq!(verdict(&with_http(answered(), Complete)).words, "the server aborted after its whole answer (41 B)");
    assert_eq!(
        verdict(&with_http(answered(), Partial)).words,
        "the server aborted in the middle of its answer; 41 of 43 B of the answer arrived"
    );
}

#[test]
fn http_tells_whether_our_answer_was_whole_when_the_client_aborted() {
    use Answer::{Complete, None, Partial};
    is(&with_http(server(), Complete), Cause::PeerAbortAfterResponse, Phase::AfterResponse, Initiator::Unknown, Harm::None);
    is(&with_http(server(), Partial), Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::Unknown, Harm::Possible);
    is(&with_http(server(), None), Cause::PeerAbortBeforeResponse, Phase::RequestInFlight, Initiator::Unknown, Harm::Possible);
    let unsent = changed(server(), |t| b(t).unsent = 10);
    is(&with_http(unsent, Complete), Cause::PeerAbortMidResponse, Phase::MidResponse, Initiator::Unknown, Harm::Lost);
}

#[test]
fn http_tells_whether_a_fin_left_a_request() {
    use Answer::{Complete, None, Partial};
    let end = |role, first, speaker| closed(role, first, fin(speaker, 1));
    let cause = |t: Teardown, answer| {
        let verdict = verdict(&with_http(t, answer));
        (verdict.cause, verdict.harm)
    };
    let by_server = || end(Role::Client, FirstFin::Remote, Speaker::Remote);
    assert_eq!(cause(by_server(), Complete), (Cause::Orderly, Harm::None));
    assert_eq!(cause(by_server(), Partial), (Cause::ServerAbortMidResponse, Harm::Possible));
    assert_eq!(cause(by_server(), None), (Cause::ClosedBeforeAnswer, Harm::Possible));
    let by_us = || end(Role::Server, FirstFin::Local, Speaker::Local);
    assert_eq!(cause(by_us(), Complete), (Cause::Orderly, Harm::None));
    assert_eq!(cause(by_us(), Partial), (Cause::ClosedBeforeAnswer, Harm::Possible));
    let by_client = || end(Role::Server, FirstFin::Remote, Speaker::Remote);
    assert_eq!(cause(by_client(), Complete), (Cause::Orderly, Harm::None));
    assert_eq!(cause(by_client(), None), (Cause::ClientGaveUp, Harm::Possible));
    assert_eq!(cause(end(Role::Client, FirstFin::Local, Speaker::Remote), Partial), (Cause::GaveUpWaiting, Harm::Possible));
    assert_eq!(cause(end(Role::Client, FirstFin::Local, Speaker::Local), Complete), (Cause::Orderly, Harm::None));
    assert_eq!(cause(aborted("close"), Complete).1, Harm::None);
    assert_eq!(cause(aborted("close"), Partial).1, Harm::Possible);
}

#[test]
fn without_the_role_or_the_speaker_there_is_no_guess() {
    let t = changed(server(), |t| t.role = None);
    is(&t, Cause::Unknown, Phase::Unknown, Initiator::Unknown, Harm::Unknown);
    assert_eq!(verdict(&t).words, "why is not known: which end had connected is missing");
    let t = changed(server(), |t| e(t).last_speaker = None);
    is(&t, Cause::Unknown, Phase::Unknown, Initiator::Unknown, Harm::Unknown);
    assert_eq!(verdict(&t).words, "why is not known: who spoke last is missing");
}

/// Any record at all.
fn any_teardown() -> impl Strategy<Value = Teardown> {
    let fields = (
        prop::sample::select(EndKind::ALL.to_vec()),
        prop::option::of(prop::sample::select(vec![Role::Client, Role::Server])),
        (0u8..=13).prop_map(TcpState::from),
        prop::option::of(prop::sample::select(vec![FirstFin::Local, FirstFin::Remote, FirstFin::Both])),
        (any_bytes(), any_idle(), prop::option::of(0u32..200_000)),
        any_evidence(),
        prop::option::of(prop::sample::select(vec!["close", "connect", "sendmsg"])),
        prop::option::of((0u64..2_000, prop::option::of(0u64..2_000))),
        prop::option::of(prop::sample::select(vec!["TCP_STATE", "TCP_ABORT_ON_CLOSE", "TCP_KEEPALIVE_TIMEOUT", "NO_SOCKET", "9"])),
    );
    fields.prop_map(|(end, role, state, first, (bytes, idle, rtt_us), evidence, syscall, peer, reason)| {
        changed(server(), |t| {
            (t.end, t.role, t.state, t.fin.first) = (end, role, Some(state), first);
            (t.bytes, t.idle, t.rtt_us, t.evidence) = (Some(bytes), Some(idle), rtt_us, Some(evidence));
            // Only a RST that arrives has a header.
            e(t).reset = e(t).reset.filter(|_| end == EndKind::ResetReceived);
            // A timer's RST answers nothing.
            e(t).answer &= reason != Some("TCP_KEEPALIVE_TIMEOUT");
            t.closer = syscall.map(|syscall| task(10, syscall));
            t.reason = reason.map(Into::into);
            t.peer = peer.map(|(arrived, unread)| Peer {
                end: EndKind::ResetSent,
                cookie: None,
                tgid: None,
                comm: Comm::default(),
                syscall: None,
                acted: false,
                killed: false,
                unread,
                arrived: arrived.min(bytes.unacked),
            });
        })
    })
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    let few = || prop_oneof![Just(0u64), 1u64..40, 1_000u64..2_000];
    (few(), few(), few(), few(), few()).prop_map(|(acked, unacked, unsent, received, unread)| Bytes {
        sent: acked + unacked,
        acked,
        unacked,
        unsent,
        received: received.max(unread),
        unread,
    })
}

fn any_idle() -> impl Strategy<Value = Idle> {
    let ms = || prop::option::of(prop_oneof![0u64..30, 900u64..1_100, 29_000u64..61_000]);
    (ms(), ms()).prop_map(|(sent_ms, received_ms)| Idle { sent_ms, received_ms })
}

fn any_speaker() -> impl Strategy<Value = Option<Speaker>> {
    prop::option::of(prop::sample::select(vec![Speaker::Local, Speaker::Remote]))
}

fn any_fin() -> impl Strategy<Value = Option<AtFin>> {
    let fin = (any_speaker(), 0u64..3, 0u64..3, 0u64..3, any_idle());
    prop::option::of(fin.prop_map(|(speaker, outstanding, written_after, received_after, idle)| AtFin {
        speaker,
        outstanding,
        goodbye: false,
        written_after,
        received_after,
        idle,
    }))
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    let errnos = vec![Errno::ECONNRESET, Errno::ETIMEDOUT, Errno::ECONNABORTED, Errno::ECONNREFUSED, Errno(113)];
    let errno = || prop::option::of(prop::sample::select(errnos.clone()));
    let reset = prop::option::of(prop::option::of(0u64..4_000).prop_map(|acked| ResetHeader { acked, ttl: 64, window: 1 }));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let counts = (0u8..3, 0u8..3, prop::option::of(0u64..300_000), prop::option::of(0u32..30_000));
    let unread = prop::option::of(0u64..50);
    (any_speaker(), errno(), errno(), reset, flags, counts, (any_fin(), any_fin(), unread.clone(), unread)).prop_map(
        |(last_speaker, errno, soft_errno, reset, flags, counts, (remote_fin, local_fin, segment_bytes, unread_at_release))| Evidence {
            last_speaker,
            errno,
            soft_errno,
            reset,
            linger_zero: flags.0,
            linger2: flags.1,
            orphan: flags.2,
            accept_queue: flags.3,
            answer: flags.4,
            retransmits: counts.0,
            probes_out: counts.1,
            since_last_tx_us: counts.2,
            min_rtt_us: counts.3,
            remote_fin,
            local_fin,
            segment_bytes,
            unread_at_release,
            ..Evidence::default()
        },
    )
}

/// How much is claimed.
fn strength(harm: Harm) -> u8 {
    match harm {
        Harm::Lost => 3,
        Harm::Possible => 2,
        Harm::None | Harm::Unknown => 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn every_record_has_its_verdict_in_one_printable_sentence(t in any_teardown()) {
        let v = verdict(&t);
        prop_assert!(!v.words.is_empty() && v.words.len() < 300, "{}", v.words);
        prop_assert!(!v.words.contains('\n'));
        prop_assert!(v.words.chars().all(|c| !c.is_control()));
    }

    #[test]
    fn lost_needs_unsent_bytes_or_proof(t in any_teardown()) {
        let v = verdict(&t);
        let b = t.bytes.unwrap();
        let e = t.evidence.unwrap();
        let proof = e.reset.is_some_and(|header| header.acked.is_some()) || t.peer.is_some();
        let unread = b.unread > 0 || e.unread_at_release.is_some_and(|n| n > 0) || e.segment_bytes.is_some_and(|n| n > 0);
        if v.harm == Harm::Lost {
            prop_assert!(v.damage.lost() > 0);
            prop_assert!(b.unsent > 0 || b.unacked > 0 && proof || unread || t.peer.is_some_and(|peer| peer.unread.is_some()));
        } else {
            prop_assert_eq!(v.damage.lost(), 0);
        }
        prop_assert!(v.damage.undelivered + v.damage.unconfirmed <= b.unacked + b.unsent);
    }

    /// What is not known can make a verdict weaker, or unknown; never `lost`, and it blames nobody
    /// who was not blamed. (Without the evidence that excludes it, harm is possible.)
    #[test]
    fn a_missing_field_never_makes_a_stronger_verdict(t in any_teardown(), field in 0usize..10) {
        let full = verdict(&t);
        let less = verdict(&changed(t.clone(), |t| match field {
            0 => t.role = None,
            1 => e(t).last_speaker = None,
            2 => e(t).since_last_tx_us = None,
            3 => e(t).min_rtt_us = None,
            4 => t.owner = None,
            5 => t.closer = None,
            6 => { e(t).remote_fin = None; e(t).local_fin = None }
            7 => e(t).segment_bytes = None,
            8 => e(t).reset = None,
            _ => t.reason = None,
        }));
        prop_assert!(strength(less.harm) <= strength(full.harm).max(2), "{:?} from {:?}", less, full);
        if full.initiator != Initiator::Middlebox {
            prop_assert!(less.initiator != Initiator::Middlebox);
        }
    }
}
