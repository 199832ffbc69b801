//! Bytes of the ring buffer to events. Never trusts a length, a number or an order: what cannot be
//! read is an error that the caller counts.

mod abi;
mod http;
mod sizes;
mod syscall;

use rsttrace_common::{
    ABI, EndEvent, ExecEvent, Header, HttpEvent, StrayEvent, TaskEvent, end_flag, event_flag, first_fin, hook, kind, reset_flag, role,
    task_flag,
};
use thiserror::Error;

use self::sizes::RawSizes;
use crate::{
    model::{
        After, AfterKind, Bytes, Comm, End, Endpoint, Errno, Event, Evidence, Exec, FirstFin, Hook, Reason, ResetHeader, Role, SeenHttp,
        Segment, SockId, Stray, Task, TcpState,
    },
    spare::Spare,
};

/// Why an event could not be decoded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("event of ABI {0}, this program speaks {ABI}")]
    Abi(u16),
    #[error("event of unknown kind {0}")]
    Kind(u16),
    #[error("event of kind {kind} has {got} bytes, expected {expected}")]
    Length { kind: u16, got: usize, expected: usize },
    #[error("event of {0} bytes is shorter than its header")]
    Short(usize),
    #[error("event of kind {kind} has {field} {value}")]
    Value { kind: u16, field: &'static str, value: u64 },
}

/// Decodes events of one kernel.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Length of a jiffy.
    tick_ns: u64,
    /// `enum sk_rst_reason` by number.
    reasons: Vec<(i32, Reason)>,
    /// Request lines keep their query.
    pub queries: bool,
}

impl Decoder {
    /// `tick_ns` is the kernel's jiffy, `reasons` its `enum sk_rst_reason` without the prefix.
    pub fn new(tick_ns: u64, reasons: impl IntoIterator<Item = (i32, String)>) -> Self {
        Self { tick_ns, reasons: reasons.into_iter().map(|(number, name)| (number, name.into())).collect(), queries: false }
    }

    /// Decodes one event. `spare` lends memory.
    ///
    /// # Errors
    /// For anything that this program's own kernel half would not have written.
    pub fn decode(&self, bytes: &[u8], spare: &mut Spare<End>) -> Result<Event, DecodeError> {
        let Some(header) = abi::first::<Header>(bytes) else { return Err(DecodeError::Short(bytes.len())) };
        let Header { kind, abi, ts_ns, .. } = header;
        if abi != ABI {
            return Err(DecodeError::Abi(abi));
        }
        match kind {
            kind::END => self.end(&whole(kind, bytes)?).map(|end| Event::End(spare.fill(end))),
            kind::OBSERVED | kind::RESET_SENT | kind::CLOSED | kind::RELEASED => self.after(&whole(kind, bytes)?).map(Event::After),
            kind::STRAY => self.stray(&whole(kind, bytes)?).map(Event::Stray),
            kind::HTTP => {
                let (id, mut rest) = of_http(bytes)?;
                let http = http::Seen::read(&mut rest).http(self.queries);
                Ok(Event::Http(Box::new(SeenHttp { ts_ns, id, http })))
            }
            kind::EXEC => whole(kind, bytes).map(|event: ExecEvent| Event::Exec(Exec { ts_ns, tgid: event.tgid })),
            other => Err(DecodeError::Kind(other)),
        }
    }

    fn end(&self, event: &EndEvent) -> Result<End, DecodeError> {
        let ts_ns = event.header.ts_ns;
        let tuple = tuple(kind::END, &event.tuple)?;
        let raw = RawSizes(&event.sizes);
        let hook = match event.hook {
            hook::TCP_RECEIVE_RESET => Hook::ReceiveReset,
            hook::TCP_SEND_RESET => Hook::SendReset,
            hook::INET_SOCK_SET_STATE => Hook::SetState,
            other => return Err(DecodeError::Value { kind: kind::END, field: "hook", value: other.into() }),
        };
        let state = TcpState::from(event.state);
        let told_role = match event.role {
            role::CLIENT => Some(Role::Client),
            role::SERVER => Some(Role::Server),
            _ => None,
        };
        let first_fin = match event.first_fin {
            first_fin::LOCAL => Some(FirstFin::Local),
            first_fin::REMOTE => Some(FirstFin::Remote),
            first_fin::BOTH => Some(FirstFin::Both),
            _ => None,
        };
        let has = |flag: u32| event.flags & flag != 0;
        let role = told_role.or_else(|| raw.role(state));
        let sizes = raw.bytes(state, role, has(end_flag::DONE));
        Ok(End {
            ts_ns,
            id: event.id.into(),
            hook,
            state,
            cookie: event.cookie,
            inode: (event.inode != 0).then_some(event.inode),
            netns: tuple.netns,
            local: tuple.local,
            remote: tuple.remote,
            role,
            opened_ns: (event.opened_ns != 0).then_some(event.opened_ns),
            first_fin,
            first_fin_ns: (event.first_fin_ns != 0).then_some(event.first_fin_ns),
            second_fin_ns: (event.second_fin_ns != 0).then_some(event.second_fin_ns),
            fin_data_bytes: u32::try_from(event.fin_data_bytes).ok(),
            done: has(end_flag::DONE),
            orphan: has(end_flag::DEAD),
            sequence: raw.sequence_space(state),
            evidence: Evidence {
                last_speaker: None,
                linger_zero: has(end_flag::LINGER_ZERO),
                linger_s: has(end_flag::LINGER).then(|| u64::from(event.linger_jiffies) * self.tick_ns / 1_000_000_000),
                linger2: has(end_flag::LINGER2_NEGATIVE),
                user_timeout_ms: (event.user_timeout_ms != 0).then_some(event.user_timeout_ms),
                min_rtt_us: raw.min_rtt_us(),
                since_last_tx_us: raw.since_last_tx_us(&sizes, ts_ns),
                retransmits: event.retransmits,
                probes_out: event.probes_out,
                soft_errno: errno(event.soft_err),
                errno: None,
                reset: reset_header(&event.reset, &raw, &sizes),
                remote_fin: raw.since_fin(&event.remote_fin, state, self.tick_ns),
                local_fin: raw.since_fin(&event.local_fin, state, self.tick_ns),
                fin_read: raw.fin_read(),
                orphan: has(end_flag::DEAD),
                accept_queue: told_role == Some(Role::Server) && !has(end_flag::HAS_SOCKET | end_flag::DEAD | end_flag::MPTCP),
                answer: has(end_flag::ANSWER),
                segment_bytes: known(event.segment_bytes),
                unread_at_release: None,
            }
            .with_speaker(state, first_fin, raw.speaker()),
            bytes: sizes,
            idle: raw.idle(&sizes, self.tick_ns),
            rtt_us: raw.rtt_us(),
            retransmits: event.sizes.total_retrans,
            err: errno(event.err),
            reason: self.reason(event.reason),
            answer: has(end_flag::ANSWER),
            untracked: has(end_flag::UNTRACKED),
            gone: has(end_flag::GONE),
            owner: task(&event.owner),
            closer: task(&event.closer),
        })
    }

    fn after(&self, event: &TaskEvent) -> Result<After, DecodeError> {
        let &TaskEvent { value, bytes, .. } = event;
        let mut task = task(&event.task);
        if let Some(task) = &mut task {
            task.process_comm = Comm(event.process_comm);
        }
        let has = |flag: u32| event.flags & flag != 0;
        let kind = match event.header.kind {
            kind::OBSERVED => {
                let refused = DecodeError::Value { kind: kind::OBSERVED, field: "errno", value: u64::from(value.cast_unsigned()) };
                AfterKind::Observed { errno: errno(value).ok_or(refused)? }
            }
            kind::RESET_SENT => {
                AfterKind::ResetSent { reason: self.reason(value), answer: has(event_flag::ANSWER), segment_bytes: known(bytes) }
            }
            kind::CLOSED => AfterKind::Closed { errno: errno(value) },
            _ => AfterKind::Released {
                untaken: errno(value),
                observation_lost: has(event_flag::OBSERVATION_LOST),
                reset_lost: has(event_flag::RESET_LOST),
                reopened: has(event_flag::REOPENED),
                unread: known(bytes),
            },
        };
        Ok(After { ts_ns: event.header.ts_ns, id: event.id.into(), task, kind })
    }

    fn stray(&self, event: &StrayEvent) -> Result<Stray, DecodeError> {
        let tuple = tuple(kind::STRAY, &event.tuple)?;
        let &StrayEvent { state, tcp_flags, .. } = event;
        Ok(Stray {
            segment: (tcp_flags != 0).then_some(Segment { syn: tcp_flags & TCPHDR_SYN != 0, bytes: known(event.segment_bytes) }),
            ts_ns: event.header.ts_ns,
            netns: (tuple.netns != 0).then_some(tuple.netns),
            local: tuple.local,
            remote: tuple.remote,
            reason: self.reason(event.reason),
            state: (state != 0).then(|| TcpState::from(state)),
        })
    }

    /// A number that this kernel has no name for is shown as a number. Not to specify a reason is to
    /// give none: 6.10 and 6.11 do so for every RST that answers no segment.
    fn reason(&self, number: i32) -> Option<Reason> {
        if number < 0 {
            return None;
        }
        let known = self.reasons.iter().find(|(value, _)| *value == number).map(|(_, name)| name.clone());
        Some(known.unwrap_or_else(|| number.to_string().into())).filter(|reason| &**reason != "NOT_SPECIFIED")
    }
}

/// In the TCP header's 14th byte.
const TCPHDR_SYN: u8 = 2;

/// The whole of an event of this kind.
fn whole<T: abi::Abi>(kind: u16, bytes: &[u8]) -> Result<T, DecodeError> {
    let (got, expected) = (bytes.len(), size_of::<T>());
    abi::first(bytes).filter(|_| got == expected).ok_or(DecodeError::Length { kind, got, expected })
}

/// An event of this kind is large: it is not copied.
fn of_http(bytes: &[u8]) -> Result<(SockId, &[u8]), DecodeError> {
    let (got, expected) = (bytes.len(), size_of::<HttpEvent>());
    let body = bytes.get(size_of::<Header>()..).filter(|_| got == expected);
    let id = body.and_then(abi::first::<rsttrace_common::SockId>);
    let rest = body.and_then(|body| body.get(size_of::<rsttrace_common::SockId>()..));
    id.zip(rest).map(|(id, rest)| (id.into(), rest)).ok_or(DecodeError::Length { kind: kind::HTTP, got, expected })
}

fn reset_header(reset: &rsttrace_common::ResetHeader, raw: &RawSizes<'_>, bytes: &Bytes) -> Option<ResetHeader> {
    (reset.flags & reset_flag::SEEN != 0).then(|| ResetHeader {
        acked: (reset.flags & reset_flag::ACK != 0).then(|| raw.acked_by(reset.ack_seq, bytes)),
        ttl: reset.ttl,
        window: reset.window,
    })
}

struct Tuple {
    local: Endpoint,
    remote: Endpoint,
    netns: u32,
}

fn tuple(kind: u16, tuple: &rsttrace_common::Tuple) -> Result<Tuple, DecodeError> {
    let endpoint = |address: [u8; 16], port| match i32::from(tuple.family) {
        libc::AF_INET => Ok(Endpoint::v4([address[0], address[1], address[2], address[3]], port)),
        libc::AF_INET6 => Ok(Endpoint::v6(address, port)),
        _ => Err(DecodeError::Value { kind, field: "address family", value: tuple.family.into() }),
    };
    Ok(Tuple { local: endpoint(tuple.local, tuple.local_port)?, remote: endpoint(tuple.remote, tuple.remote_port)?, netns: tuple.netns })
}

impl From<rsttrace_common::SockId> for SockId {
    fn from(rsttrace_common::SockId { sk, born_ns }: rsttrace_common::SockId) -> Self {
        Self { sk, born_ns }
    }
}

fn task(task: &rsttrace_common::Task) -> Option<Task> {
    let has = |flag: u32| task.flags & flag != 0;
    (task.tgid != 0).then(|| Task {
        tgid: task.tgid,
        tid: task.tid,
        parent_tgid: task.parent_tgid,
        comm: Comm(task.comm),
        process_comm: Comm(task.comm),
        syscall: syscall::name(task.syscall, has(task_flag::COMPAT)),
        fd: (task.fd >= 0).then_some(task.fd),
        exiting: has(task_flag::EXITING),
        signal: Some((task.flags >> task_flag::SIGNAL_SHIFT) & 0x7f).filter(|&n| n != 0 && has(task_flag::EXITING)),
        kernel_thread: has(task_flag::KTHREAD),
        blocking: has(task_flag::BLOCKING),
    })
}

/// A count, `u32::MAX` where it is not known.
fn known(count: u32) -> Option<u64> {
    (count != u32::MAX).then_some(count.into())
}

/// Kernel-internal codes (ERESTARTSYS and up) are no errors of a connection.
fn errno(value: i32) -> Option<Errno> {
    (1..512).contains(&value).then_some(Errno(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoder() -> Decoder {
        Decoder::new(4_000_000, [(0, "NOT_SPECIFIED".to_owned()), (11, "TCP_ABORT_ON_CLOSE".to_owned())])
    }

    fn header(kind: u16, abi: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[..2].copy_from_slice(&kind.to_ne_bytes());
        bytes[2..4].copy_from_slice(&abi.to_ne_bytes());
        bytes
    }

    #[test]
    fn kind_length_and_abi_are_three_different_errors() {
        assert_eq!(decoder().decode(&header(99, ABI, 104), &mut Spare::default()).unwrap_err(), DecodeError::Kind(99));
        assert_eq!(decoder().decode(&header(kind::OBSERVED, 9, 104), &mut Spare::default()).unwrap_err(), DecodeError::Abi(9));
        assert_eq!(
            decoder().decode(&header(kind::OBSERVED, ABI, 87), &mut Spare::default()).unwrap_err(),
            DecodeError::Length { kind: kind::OBSERVED, got: 87, expected: 104 }
        );
        assert_eq!(decoder().decode(&[1, 2, 3], &mut Spare::default()).unwrap_err(), DecodeError::Short(3));
    }

    #[test]
    fn reasons_without_a_name_are_kept_by_number() {
        assert_eq!(decoder().reason(11).as_deref(), Some("TCP_ABORT_ON_CLOSE"));
        assert_eq!(decoder().reason(77).as_deref(), Some("77"));
        assert_eq!(decoder().reason(-1), None);
        assert_eq!(decoder().reason(0), None, "not specified");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decoder().decode(&bytes, &mut Spare::default());
        }

        #[test]
        fn any_content_of_the_right_length_decodes_or_is_refused(kind in 1u16..=8, fill in proptest::collection::vec(any::<u8>(), size_of::<HttpEvent>())) {
            let length = match kind {
                kind::END => size_of::<EndEvent>(),
                kind::STRAY => size_of::<StrayEvent>(),
                kind::HTTP => size_of::<HttpEvent>(),
                kind::EXEC => size_of::<ExecEvent>(),
                _ => size_of::<TaskEvent>(),
            };
            let mut bytes = header(kind, ABI, length);
            bytes[4..].copy_from_slice(&fill[4..length]);
            let _ = decoder().decode(&bytes, &mut Spare::default());
        }
    }
}
