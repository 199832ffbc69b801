//! HTTP/1 of chosen processes (`--http`): the raw beginning of the latest request and of its answer, for
//! user space to take apart when the socket ends.
//!
//! Receives and sends have just returned when they are seen, so that their bytes still lie in the
//! caller's memory, and the saved registers lead there. What moves in other ways (sendfile, splice,
//! io_uring) is known by number only: sequence numbers show the gap.
//!
//! What is decided here must never lead to a wrong request, at worst to none. A request begins the
//! connection, or follows an answer that began with a status line; anything else that moves in its
//! direction belongs to it, and may hold further requests, which user space finds by their framing.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user},
};
use rsttrace_common::{ANSWER_CAP, Exchange, Header, HttpEvent, REQUEST_CAP, Snapshot, SockId, http_flag, kind, snapshot_flag};

use crate::{
    chosen::is_chosen,
    emit,
    maps::HTTP,
    settings::{SETTINGS, frozen},
    sock::{self, Positions, Sk},
    task::{self, Buffers},
};

/// `include/linux/socket.h`
const MSG_OOB: u32 = 0x1;
const MSG_PEEK: u32 = 0x2;
const MSG_TRUNC: u32 = 0x20;
const MSG_ERRQUEUE: u32 = 0x2000;

/// What is remembered of one socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    event: HttpEvent,
    /// The verifier adds the greatest offset to the greatest length.
    room: [u8; REQUEST_CAP],
}

/// Template for new entries: copied by the map, which spares the 512-byte stack.
#[unsafe(no_mangle)]
static NOTHING_SEEN: Seen = Seen {
    event: HttpEvent {
        header: Header { kind: 0, abi: 0, cpu: 0, ts_ns: 0 },
        id: SockId { sk: 0, born_ns: 0 },
        at: Snapshot::NONE,
        flags: 0,
        state: 0,
        pad: [0; 3],
        requests_end: 0,
        tail_end: 0,
        tail: [0; 8],
        answer: [0; ANSWER_CAP],
        exchanges: [Exchange::NONE; 2],
    },
    room: [0; REQUEST_CAP],
};

#[inline(always)]
fn find(sk: u64) -> Option<&'static mut HttpEvent> {
    let seen = HTTP.get_ptr_mut(sk)?;
    // SAFETY: a map value, valid until the program returns (RCU). An end may be reported while a call
    // is looked at on another CPU: what is read then is the exchange before or this one.
    Some(unsafe { &mut (*seen).event })
}

#[inline(always)]
fn find_or_begin(sk: u64) -> Option<&'static mut HttpEvent> {
    find(sk).or_else(|| {
        HTTP.insert(sk, &NOTHING_SEEN, u64::from(BPF_NOEXIST)).ok()?;
        find(sk)
    })
}

/// The socket is gone, or begins a new life.
#[inline(always)]
pub fn forget(sk: u64) {
    if frozen(&SETTINGS.http) != 0 {
        let _ = HTTP.remove(sk);
    }
}

/// A receive or a send of the application has just moved `n` bytes.
#[inline(always)]
pub fn moved(sk: Sk, received: bool, n: u32, flags: u32) {
    if frozen(&SETTINGS.http) == 0 || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) != 0 {
        return;
    }
    // SAFETY: no preconditions.
    if is_chosen((unsafe { bpf_get_current_pid_tgid() } >> 32) as u32) {
        look(sk, received, n, flags & MSG_TRUNC == 0);
    }
}

/// `kept`: the bytes were handed over, and not dropped.
#[inline(always)]
fn look(sk: Sk, received: bool, n: u32, kept: bool) {
    let Some(Positions { received: read, sent }) = sock::positions(sk) else { return };
    let (end, other) = if received { (read, sent) } else { (sent, read) };
    let begin = end.wrapping_sub(n);
    let buffers = if kept { task::buffers_of_call(sk as u64, received) } else { Buffers::NONE };
    let start = Start::of(&buffers, n);
    let found = find(sk as u64);
    let is_new = found.is_none();
    let asks = match &found {
        Some(seen) => (seen.flags & http_flag::ASKING == 0) == received,
        // A body may look like a request, so that in the middle of a connection an answer must come first.
        None if start.may_be_request() && is_first(sk, n, received) => true,
        None if start.is_status_line() => false,
        None => return,
    };
    let Some(seen) = found.or_else(|| find_or_begin(sk as u64)) else { return };
    if asks != received {
        seen.flags |= http_flag::ASKING;
    }
    if seen.flags & http_flag::REPORTED != 0 {
        seen.flags |= http_flag::CHANGED;
    }
    if asks {
        request(seen, is_new, begin, other, &start, &buffers, n);
    } else {
        answer(seen, begin, other, &start, &buffers, n);
    }
}

/// The first bytes of the connection in this direction. The kernel counts our SYN as acknowledged, where
/// it was we who connected.
#[inline(always)]
fn is_first(sk: Sk, n: u32, received: bool) -> bool {
    sock::is_first_use(sk, n as i32, received) || !received && sock::is_first_use(sk, n as i32 + 1, received)
}

/// The first bytes of what has moved, the first one lowest. Looked at by whole words: a branch for each
/// byte, and the verifier would walk all the ways through them.
struct Start {
    words: [u64; 2],
    len: u32,
}

/// The same byte in all places.
const fn all(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

impl Start {
    #[inline(always)]
    fn of(buffers: &Buffers, n: u32) -> Self {
        let mut start = Self { words: [0; 2], len: 0 };
        let (base, size) = buffers.get(0);
        let len = opaque(u64::from(n).min(size).min(15)) as u32 & 15;
        // SAFETY: 15 bytes at most; the helper checks the address.
        if base != 0 && unsafe { bpf_probe_read_user(start.words.as_mut_ptr().cast(), len, base as *const _) } == 0 {
            start.len = len;
        }
        start
    }

    /// It begins with a method and a space, as far as eight bytes go.
    #[inline(always)]
    fn may_be_request(&self) -> bool {
        let len = opaque(u64::from(self.len)) as u32;
        if len == 0 {
            return false;
        }
        // What is not there yet may be anything.
        let missing = if len < 8 { all(b'A') << (len * 8) } else { 0 };
        let word = self.words[0] | missing;
        let spaces = word ^ all(b' ');
        let space = spaces.wrapping_sub(all(1)) & !spaces & all(0x80);
        // From the first space on, whatever follows does not count.
        let token = (space & space.wrapping_neg()).wrapping_sub(1) >> 7;
        let token = if space == 0 { u64::MAX } else { token };
        let letters = word & token | all(b'A') & !token;
        let at_least_a = letters.wrapping_add(all(0x80 - b'A'));
        let beyond_z = letters.wrapping_add(all(0x7f - b'Z'));
        at_least_a & !beyond_z & !letters & all(0x80) == all(0x80) && token != 0
    }

    #[inline(always)]
    fn is_status_line(&self) -> bool {
        const VERSION: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
        self.len >= 10 && self.words[0] & (u64::MAX >> 8) == VERSION && self.words[1] as u8 == b' '
    }

    /// 100 Continue, 103 Early Hints; and 101, behind which there is no HTTP.
    #[inline(always)]
    fn is_interim(&self) -> bool {
        (self.words[1] >> 8) as u8 == b'1'
    }
}

/// What moved in the direction of requests.
#[inline(always)]
fn request(seen: &mut HttpEvent, first: bool, begin: u32, other: u32, start: &Start, buffers: &Buffers, n: u32) {
    use http_flag::{ANSWERING, FINAL, SECOND};
    let follows = seen.flags & (ANSWERING | FINAL) == ANSWERING | FINAL && begin == seen.requests_end;
    let fresh = (first || follows) && start.may_be_request();
    // The one before stays, until this one is there and its number is told.
    let second = (seen.flags & SECOND != 0) != fresh;
    let flags = match (fresh, second) {
        (false, _) => seen.flags & !ANSWERING,
        (true, false) => seen.flags & !(ANSWERING | FINAL | SECOND),
        (true, true) => seen.flags & !(ANSWERING | FINAL) | SECOND,
    };
    let exchange = exchange(seen, second);
    if fresh {
        exchange.request_at = begin;
        exchange.request_len = 0;
        exchange.answer_at = other;
        exchange.answer_len = 0;
    }
    if begin == exchange.request_at.wrapping_add(exchange.request_len) {
        exchange.request_len = keep::<REQUEST_CAP>(exchange.request.as_mut_ptr(), exchange.request_len, buffers, n);
    }
    // SAFETY: a member; volatile, so that it is written last.
    unsafe { (&raw mut seen.flags).write_volatile(flags) };
}

/// What moved in the direction of answers.
#[inline(always)]
fn answer(seen: &mut HttpEvent, begin: u32, other: u32, start: &Start, buffers: &Buffers, n: u32) {
    seen.requests_end = other;
    seen.flags |= http_flag::ANSWERING;
    if start.is_status_line() && !start.is_interim() {
        seen.flags |= http_flag::FINAL;
    }
    if seen.tail_end != begin {
        seen.tail = [0; 8];
    }
    if let Some(tail) = tail(u64::from_le_bytes(seen.tail), buffers, n) {
        seen.tail = tail.to_le_bytes();
        seen.tail_end = begin.wrapping_add(n);
    }
    let into = seen.answer.as_mut_ptr();
    let exchange = exchange(seen, seen.flags & http_flag::SECOND != 0);
    if begin == exchange.answer_at.wrapping_add(exchange.answer_len) {
        exchange.answer_len = keep::<ANSWER_CAP>(into, exchange.answer_len, buffers, n);
    }
}

#[inline(always)]
fn exchange(seen: &mut HttpEvent, second: bool) -> &mut Exchange {
    let [a, b] = &mut seen.exchanges;
    if second { b } else { a }
}

/// Places of a vector from which is copied, and which are looked at for the last bytes.
const PLACES: u32 = 4;
const PLACES_TO_THE_END: u32 = 8;

/// The same number, of which the verifier knows nothing, and which it does not trace back: the rounds of a
/// loop look alike to it then, and it walks each once. Written in halves, because it forgets those.
#[inline(always)]
fn opaque(n: u64) -> u64 {
    let mut halves = Halves([0; 2]);
    let to = &raw mut halves.0;
    // SAFETY: two words on the stack, aligned as one.
    unsafe {
        (*to).as_mut_ptr().write_volatile(n as u32);
        (*to).as_mut_ptr().add(1).write_volatile((n >> 32) as u32);
        to.cast::<u64>().read_volatile()
    }
}

#[repr(C, align(8))]
struct Halves([u32; 2]);

/// Copies `n` bytes behind the `len` that are there, as far as there is room. Returns how many there are.
#[inline(always)]
fn keep<const CAP: usize>(into: *mut u8, len: u32, buffers: &Buffers, n: u32) -> u32 {
    let mut len = u64::from(len);
    let mut left = u64::from(n);
    for i in 0..PLACES {
        let (base, size) = buffers.get(i);
        (left, len) = (opaque(left), opaque(len));
        let here = size.min(left);
        left -= here;
        let room = (CAP as u64 - 1).saturating_sub(len);
        let step = opaque(here.min(room)) as u32 & (CAP as u32 - 1);
        let at = len as u32 & (CAP as u32 - 1);
        // SAFETY: less than twice CAP, which lies within the map value; the helper checks the source.
        if unsafe { bpf_probe_read_user(into.add(at as usize).cast(), step, base as *const _) } != 0 {
            break;
        }
        len += u64::from(step);
        // The rest is not seen, or finds no room.
        if left == 0 || here > room {
            break;
        }
    }
    opaque(len) as u32
}

/// The last eight bytes after `n` more; `None` where their end is not seen.
#[inline(always)]
fn tail(before: u64, buffers: &Buffers, n: u32) -> Option<u64> {
    let mut tail = before;
    let mut left = u64::from(n);
    for i in 0..PLACES_TO_THE_END {
        let (base, size) = buffers.get(i);
        left = opaque(left);
        let here = size.min(left);
        left -= here;
        let few = opaque(here.min(8)) as u32 & 15;
        let mut last = 0u64;
        let from = base.wrapping_add(here).wrapping_sub(u64::from(few));
        // SAFETY: eight bytes at most; the helper checks the address.
        if few > 8 || few != 0 && unsafe { bpf_probe_read_user((&raw mut last).cast(), few, from as *const _) } != 0 {
            return None;
        }
        // The latest byte is the highest.
        tail = match few {
            0 => tail,
            8 => last,
            _ => tail >> (few * 8) | last << (64 - few * 8),
        };
        if left == 0 {
            return Some(tail);
        }
    }
    None
}

/// Tells what was seen, right behind the socket's end.
#[inline(always)]
pub fn report(ctx: &impl EbpfContext, sk: Sk, state: u8, hook: u8, id: SockId) {
    if frozen(&SETTINGS.http) == 0 {
        return;
    }
    if let Some(seen) = find(sk as u64) {
        tell(ctx, sk, seen, state, hook, id);
    }
}

/// Once more before the release, if the application has read on what had arrived before the end.
#[inline(always)]
pub fn report_late(ctx: &impl EbpfContext, sk: Sk, state: u8, hook: u8, id: SockId) {
    if frozen(&SETTINGS.http) == 0 {
        return;
    }
    if let Some(seen) = find(sk as u64) {
        if seen.flags & (http_flag::REPORTED | http_flag::CHANGED) != http_flag::REPORTED {
            tell(ctx, sk, seen, state, hook, id);
        }
    }
}

#[inline(always)]
fn tell(ctx: &impl EbpfContext, sk: Sk, seen: &mut HttpEvent, state: u8, hook: u8, id: SockId) {
    if seen.at.flags & snapshot_flag::TAKEN == 0 {
        sock::snapshot(sk, &mut seen.at);
        seen.state = state;
    }
    seen.flags |= http_flag::REPORTED;
    seen.header = emit::header(kind::HTTP, sock::now_ns());
    seen.id = id;
    emit::send(ctx, hook, seen);
}
