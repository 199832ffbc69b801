//! Bytes of the ring buffer to events. Never trusts a length, a number or an order: what cannot be
//! read is an error that the caller counts.

mod http;
mod sizes;
mod syscall;

use bytes::Buf;
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
    pub fn decode(&self, mut bytes: &[u8], spare: &mut Spare<End>) -> Result<Event, DecodeError> {
        let got = bytes.len();
        if got < size_of::<Header>() {
            return Err(DecodeError::Short(got));
        }
        let kind = bytes.get_u16_ne();
        let abi = bytes.get_u16_ne();
        if abi != ABI {
            return Err(DecodeError::Abi(abi));
        }
        let expected = match kind {
            kind::END => size_of::<EndEvent>(),
            kind::OBSERVED | kind::RESET_SENT | kind::CLOSED | kind::RELEASED => size_of::<TaskEvent>(),
            kind::STRAY => size_of::<StrayEvent>(),
            kind::HTTP => size_of::<HttpEvent>(),
            kind::EXEC => size_of::<ExecEvent>(),
            other => return Err(DecodeError::Kind(other)),
        };
        if got != expected {
            return Err(DecodeError::Length { kind, got, expected });
        }
        let _cpu = bytes.get_u32_ne();
        let ts_ns = bytes.get_u64_ne();
        match kind {
            kind::END => self.end(ts_ns, &mut bytes).map(|end| Event::End(spare.fill(end))),
            kind::STRAY => self.stray(ts_ns, &mut bytes).map(Event::Stray),
            kind::HTTP => {
                let id = sock_id(&mut bytes);
                let http = http::Seen::read(&mut bytes).http(self.queries);
                Ok(Event::Http(Box::new(SeenHttp { ts_ns, id, http })))
            }
            kind::EXEC => Ok(Event::Exec(Exec { ts_ns, tgid: bytes.get_u32_ne() })),
            _ => self.after(kind, ts_ns, &mut bytes).map(Event::After),
        }
    }

    // The order of reads in these functions is the order of the structs in rsttrace-common, whose
    // sizes and offsets are asserted there; the length was checked above.

    fn end(&self, ts_ns: u64, bytes: &mut &[u8]) -> Result<End, DecodeError> {
        let id = sock_id(bytes);
        let cookie = bytes.get_u64_ne();
        let inode = bytes.get_u64_ne();
        let opened_ns = bytes.get_u64_ne();
        let first_fin_ns = bytes.get_u64_ne();
        let second_fin_ns = bytes.get_u64_ne();
        let tuple = tuple(kind::END, bytes)?;
        let raw = RawSizes::read(bytes);
        let flags = bytes.get_u32_ne();
        let hook = match bytes.get_u8() {
            hook::TCP_RECEIVE_RESET => Hook::ReceiveReset,
            hook::TCP_SEND_RESET => Hook::SendReset,
            hook::INET_SOCK_SET_STATE => Hook::SetState,
            other => return Err(DecodeError::Value { kind: kind::END, field: "hook", value: other.into() }),
        };
        let state = TcpState::from(bytes.get_u8());
        let told_role = match bytes.get_u8() {
            role::CLIENT => Some(Role::Client),
            role::SERVER => Some(Role::Server),
            _ => None,
        };
        let first_fin = match bytes.get_u8() {
            first_fin::LOCAL => Some(FirstFin::Local),
            first_fin::REMOTE => Some(FirstFin::Remote),
            first_fin::BOTH => Some(FirstFin::Both),
            _ => None,
        };
        let err = errno(bytes.get_i32_ne());
        let reason = self.reason(bytes.get_i32_ne());
        let fin_data_bytes = u32::try_from(bytes.get_i32_ne()).ok();
        let soft_errno = errno(bytes.get_i32_ne());
        let user_timeout_ms = bytes.get_u32_ne();
        let linger_jiffies = bytes.get_u32_ne();
        let retransmits_unanswered = bytes.get_u8();
        let probes_out = bytes.get_u8();
        let _pad = bytes.get_u16_ne();
        let segment_bytes = known(bytes.get_u32_ne());
        let reset = ResetSegment::read(bytes);
        let remote_fin = sizes::snapshot(bytes);
        let local_fin = sizes::snapshot(bytes);
        let owner = task(bytes);
        let closer = task(bytes);
        let has = |flag: u32| flags & flag != 0;
        let role = told_role.or_else(|| raw.role(state));
        let sizes = raw.bytes(state, role, has(end_flag::DONE));
        Ok(End {
            ts_ns,
            id,
            hook,
            state,
            cookie,
            inode: (inode != 0).then_some(inode),
            netns: tuple.netns,
            local: tuple.local,
            remote: tuple.remote,
            role,
            opened_ns: (opened_ns != 0).then_some(opened_ns),
            first_fin,
            first_fin_ns: (first_fin_ns != 0).then_some(first_fin_ns),
            second_fin_ns: (second_fin_ns != 0).then_some(second_fin_ns),
            fin_data_bytes,
            done: has(end_flag::DONE),
            orphan: has(end_flag::DEAD),
            sequence: raw.sequence_space(state),
            evidence: Evidence {
                last_speaker: None,
                linger_zero: has(end_flag::LINGER_ZERO),
                linger_s: has(end_flag::LINGER).then(|| u64::from(linger_jiffies) * self.tick_ns / 1_000_000_000),
                linger2: has(end_flag::LINGER2_NEGATIVE),
                user_timeout_ms: (user_timeout_ms != 0).then_some(user_timeout_ms),
                min_rtt_us: raw.min_rtt_us(),
                since_last_tx_us: raw.since_last_tx_us(&sizes, ts_ns),
                retransmits: retransmits_unanswered,
                probes_out,
                soft_errno,
                errno: None,
                reset: reset.header(&raw, &sizes),
                remote_fin: raw.since_fin(&remote_fin, state, self.tick_ns),
                local_fin: raw.since_fin(&local_fin, state, self.tick_ns),
                fin_read: raw.fin_read(),
                orphan: has(end_flag::DEAD),
                accept_queue: told_role == Some(Role::Server) && !has(end_flag::HAS_SOCKET | end_flag::DEAD | end_flag::MPTCP),
                answer: has(end_flag::ANSWER),
                segment_bytes,
                unread_at_release: None,
            }
            .with_speaker(state, first_fin, raw.speaker()),
            bytes: sizes,
            idle: raw.idle(&sizes, self.tick_ns),
            rtt_us: raw.rtt_us(),
            retransmits: raw.total_retrans,
            err,
            reason,
            answer: has(end_flag::ANSWER),
            untracked: has(end_flag::UNTRACKED),
            gone: has(end_flag::GONE),
            owner,
            closer,
        })
    }

    fn after(&self, kind: u16, ts_ns: u64, bytes: &mut &[u8]) -> Result<After, DecodeError> {
        let id = sock_id(bytes);
        let value = bytes.get_i32_ne();
        let flags = bytes.get_u32_ne();
        bytes.advance(4);
        let counted = known(bytes.get_u32_ne());
        let mut task = task(bytes);
        let mut process_comm = [0; 16];
        bytes.copy_to_slice(&mut process_comm);
        if let Some(task) = &mut task {
            task.process_comm = Comm(process_comm);
        }
        let has = |flag: u32| flags & flag != 0;
        let kind = match kind {
            kind::OBSERVED => AfterKind::Observed {
                errno: errno(value).ok_or(DecodeError::Value { kind, field: "errno", value: u64::from(value.cast_unsigned()) })?,
            },
            kind::RESET_SENT => {
                AfterKind::ResetSent { reason: self.reason(value), answer: has(event_flag::ANSWER), segment_bytes: counted }
            }
            kind::CLOSED => AfterKind::Closed { errno: errno(value) },
            _ => AfterKind::Released {
                untaken: errno(value),
                observation_lost: has(event_flag::OBSERVATION_LOST),
                reset_lost: has(event_flag::RESET_LOST),
                reopened: has(event_flag::REOPENED),
                unread: counted,
            },
        };
        Ok(After { ts_ns, id, task, kind })
    }

    fn stray(&self, ts_ns: u64, bytes: &mut &[u8]) -> Result<Stray, DecodeError> {
        let tuple = tuple(kind::STRAY, bytes)?;
        let reason = self.reason(bytes.get_i32_ne());
        let state = bytes.get_u8();
        let tcp_flags = bytes.get_u8();
        let _pad = bytes.get_u16_ne();
        let segment_bytes = known(bytes.get_u32_ne());
        Ok(Stray {
            segment: (tcp_flags != 0).then_some(Segment { syn: tcp_flags & TCPHDR_SYN != 0, bytes: segment_bytes }),
            ts_ns,
            netns: (tuple.netns != 0).then_some(tuple.netns),
            local: tuple.local,
            remote: tuple.remote,
            reason,
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

/// See `rsttrace_common::ResetHeader`.
struct ResetSegment {
    ack_seq: u32,
    window: u16,
    ttl: u8,
    flags: u8,
}

impl ResetSegment {
    fn read(bytes: &mut &[u8]) -> Self {
        Self { ack_seq: bytes.get_u32_ne(), window: bytes.get_u16_ne(), ttl: bytes.get_u8(), flags: bytes.get_u8() }
    }

    fn header(&self, raw: &RawSizes, bytes: &Bytes) -> Option<ResetHeader> {
        (self.flags & reset_flag::SEEN != 0).then(|| ResetHeader {
            acked: (self.flags & reset_flag::ACK != 0).then(|| raw.acked_by(self.ack_seq, bytes)),
            ttl: self.ttl,
            window: self.window,
        })
    }
}

struct Tuple {
    local: Endpoint,
    remote: Endpoint,
    netns: u32,
}

fn tuple(kind: u16, bytes: &mut &[u8]) -> Result<Tuple, DecodeError> {
    let mut local = [0; 16];
    let mut remote = [0; 16];
    bytes.copy_to_slice(&mut local);
    bytes.copy_to_slice(&mut remote);
    let local_port = bytes.get_u16_ne();
    let remote_port = bytes.get_u16_ne();
    let family = bytes.get_u16_ne();
    let _pad = bytes.get_u16_ne();
    let netns = bytes.get_u32_ne();
    let _pad = bytes.get_u32_ne();
    let endpoint = |address: [u8; 16], port| match i32::from(family) {
        libc::AF_INET => Ok(Endpoint::v4([address[0], address[1], address[2], address[3]], port)),
        libc::AF_INET6 => Ok(Endpoint::v6(address, port)),
        _ => Err(DecodeError::Value { kind, field: "address family", value: family.into() }),
    };
    Ok(Tuple { local: endpoint(local, local_port)?, remote: endpoint(remote, remote_port)?, netns })
}

fn sock_id(bytes: &mut &[u8]) -> SockId {
    SockId { sk: bytes.get_u64_ne(), born_ns: bytes.get_u64_ne() }
}

fn task(bytes: &mut &[u8]) -> Option<Task> {
    let tgid = bytes.get_u32_ne();
    let tid = bytes.get_u32_ne();
    let parent_tgid = bytes.get_u32_ne();
    let flags = bytes.get_u32_ne();
    let number = bytes.get_i32_ne();
    let fd = bytes.get_i32_ne();
    let mut comm = [0; 16];
    bytes.copy_to_slice(&mut comm);
    let has = |flag: u32| flags & flag != 0;
    (tgid != 0).then(|| Task {
        tgid,
        tid,
        parent_tgid,
        comm: Comm(comm),
        process_comm: Comm(comm),
        syscall: syscall::name(number, has(task_flag::COMPAT)),
        fd: (fd >= 0).then_some(fd),
        exiting: has(task_flag::EXITING),
        signal: Some((flags >> task_flag::SIGNAL_SHIFT) & 0x7f).filter(|&n| n != 0 && has(task_flag::EXITING)),
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
