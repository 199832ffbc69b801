//! What the kernel half has kept of a connection's HTTP, taken apart: which request was the last, and how
//! much of its answer moved. What is not certain is not said.
//!
//! A request is the last if its own framing says that it reaches up to the last byte that moved its
//! way; bytes that moved unseen show as a gap. All raw bytes end here.

mod message;

use bytes::Buf;
use rsttrace_common::{ANSWER_CAP, Exchange, REQUEST_CAP, Snapshot, http_flag, snapshot_flag};

use self::message::{Answered, Answers, Line, requests};
use super::sizes;
use crate::model::{Answer, Http, Role, TcpState};

/// A request line is not shown longer than this, in bytes.
const MAX_LINE: usize = 128;
/// Sequence distances above this are negative.
const HALF: u32 = 1 << 31;

/// The raw event, see `rsttrace_common::HttpEvent`.
pub struct Seen<'a> {
    at: Snapshot,
    flags: u32,
    state: TcpState,
    tail_end: u32,
    tail: [u8; 8],
    answer: &'a [u8],
    exchanges: [RawExchange<'a>; 2],
}

struct RawExchange<'a> {
    request_at: u32,
    request_len: u32,
    answer_at: u32,
    answer_len: u32,
    request: &'a [u8],
}

impl<'a> RawExchange<'a> {
    fn read(bytes: &mut &'a [u8]) -> Self {
        let (request_at, request_len) = (bytes.get_u32_ne(), bytes.get_u32_ne());
        let (answer_at, answer_len) = (bytes.get_u32_ne(), bytes.get_u32_ne());
        let (request, rest) = bytes.split_at(REQUEST_CAP);
        *bytes = rest;
        Self { request_at, request_len, answer_at, answer_len, request }
    }

    fn request(&self) -> &'a [u8] {
        self.request.get(..self.request_len as usize).unwrap_or_default()
    }
}

const _: () = assert!(size_of::<Exchange>() == 16 + REQUEST_CAP);

impl<'a> Seen<'a> {
    /// What follows the socket's id; its length is checked.
    pub fn read(bytes: &mut &'a [u8]) -> Self {
        let at = sizes::snapshot(bytes);
        let flags = bytes.get_u32_ne();
        let state = TcpState::from(bytes.get_u8());
        bytes.advance(3);
        let _requests_end = bytes.get_u32_ne();
        let tail_end = bytes.get_u32_ne();
        let mut tail = [0; 8];
        bytes.copy_to_slice(&mut tail);
        let (answer, rest) = bytes.split_at(ANSWER_CAP);
        *bytes = rest;
        let exchanges = [RawExchange::read(bytes), RawExchange::read(bytes)];
        Self { at, flags, state, tail_end, tail, answer, exchanges }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// What can be said; `None`: it was no HTTP/1.
    pub fn http(&self, queries: bool) -> Option<Http> {
        let role = if self.has(http_flag::ASKING) { Role::Client } else { Role::Server };
        let (current, previous) = match (&self.exchanges, self.has(http_flag::SECOND)) {
            ([first, second], true) => (second, first),
            ([first, second], false) => (first, second),
        };
        let own_fin =
            matches!(self.state, TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck | TcpState::TimeWait);
        let peer_fin = self.at.has(snapshot_flag::REMOTE_FIN);
        let sent = self.at.write_seq.wrapping_sub(own_fin.into());
        let received = self.at.rcv_nxt.wrapping_sub(peer_fin.into());
        let (requests_end, answers_end, closed) = match role {
            Role::Client => (sent, received, peer_fin),
            Role::Server => (received, sent, own_fin),
        };
        if current.request_len == 0 {
            // A status line was seen, or a request that could not be read.
            return self.has(http_flag::FINAL).then(|| Http::uncertain(role));
        }
        let (Some(asked), Some(answered)) = (ahead(requests_end, current.request_at), ahead(answers_end, current.answer_at)) else {
            return Some(Http::uncertain(role));
        };
        let requests = requests(current.request(), asked);
        let Some(last) = requests.found.last() else { return self.has(http_flag::FINAL).then(|| Http::uncertain(role)) };
        if is_body_of(previous, current) {
            return Some(Http::uncertain(role));
        }
        let answers = Answers {
            bytes: self.answer.get(..current.answer_len as usize).unwrap_or_default(),
            moved: answered,
            closed,
            tail: (self.tail_end == answers_end).then_some(self.tail),
        };
        let answer =
            if was_answered(previous, current) { answers.for_the_last(&requests.found) } else { Answered::Unclear { status: None } };
        // What follows a tunnel's opening is no request.
        if !requests.complete && !matches!(answer, Answered::Tunnel { .. }) {
            return Some(Http::uncertain(role));
        }
        let (status, answer, moved, expected) = match answer {
            Answered::Nothing => (None, Answer::None, Some(0), None),
            Answered::Cut { status, moved, expected } => (status, Answer::Partial, Some(moved), expected),
            Answered::Whole { status, moved } => (Some(status), Answer::Complete, Some(moved), Some(moved)),
            Answered::Tunnel { status } => (Some(status), Answer::Unknown, None, None),
            Answered::Unclear { status } => (status, Answer::Unknown, None, None),
        };
        let whole = last.end.is_some_and(|end| end <= asked);
        Some(Http { role, request: Some(shown(&last.line, queries)), whole, status, answer, moved, expected })
    }
}

/// `b - a` in sequence space; `None` where `b` lies before `a`.
fn ahead(b: u32, a: u32) -> Option<u64> {
    Some(b.wrapping_sub(a)).filter(|&distance| distance < HALF).map(u64::from)
}

/// Whether what looks like a request may be the body of the one before, which was answered early: where
/// that ends must be known.
fn is_body_of(previous: &RawExchange<'_>, current: &RawExchange<'_>) -> bool {
    let Some(distance) = ahead(current.request_at, previous.request_at).filter(|_| previous.request_len > 0) else { return false };
    let before = requests(previous.request(), distance);
    !before.complete || before.found.last().and_then(|last| last.end).is_none_or(|end| end > distance)
}

/// Whether at most one request came before: else its answers may still have been on their way.
fn was_answered(previous: &RawExchange<'_>, current: &RawExchange<'_>) -> bool {
    previous.request_len == 0
        || ahead(current.request_at, previous.request_at).is_some_and(|distance| requests(previous.request(), distance).found.len() <= 1)
}

/// The line as it is shown: without the query, unless it is wanted, and not too long.
fn shown(line: &Line<'_>, queries: bool) -> String {
    let target = if queries { line.target } else { line.target.split(|&b| b == b'?').next().unwrap_or_default() };
    let target = without_userinfo(target);
    let [method, target, version] = [line.method, &*target, line.version].map(String::from_utf8_lossy);
    let room = MAX_LINE.saturating_sub(method.len() + version.len() + 2);
    if target.len() <= room {
        return format!("{method} {target} {version}");
    }
    let mark = "…";
    format!("{method} {}{mark} {version}", &target[..target.floor_char_boundary(room.saturating_sub(mark.len()))])
}

/// `http://user:secret@host/` asks for what a proxy is to log in with: that is nobody's business.
fn without_userinfo(target: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let Some(scheme) = target.windows(3).position(|window| window == b"://") else { return target.into() };
    let (head, rest) = target.split_at(scheme + 3);
    let authority = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    match rest[..authority].iter().rposition(|&b| b == b'@') {
        Some(at) => [head, &rest[at + 1..]].concat().into(),
        None => target.into(),
    }
}

#[cfg(test)]
mod tests;
