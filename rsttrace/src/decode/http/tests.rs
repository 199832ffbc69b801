use proptest::prelude::*;
use rsttrace_common::{Header, HttpEvent, SockId};

use super::*;

/// The kernel half's rules on a conversation, call by call.
struct Wire {
    role: Role,
    flags: u32,
    requests_end: u32,
    tail_end: u32,
    tail: Vec<u8>,
    answer: Vec<u8>,
    exchanges: [(u32, Vec<u8>, u32, usize); 2],
    asked: u32,
    answered: u32,
    seen: bool,
}

const START: u32 = u32::MAX - 700;

impl Wire {
    fn new(role: Role) -> Self {
        Self {
            role,
            flags: if role == Role::Client { http_flag::ASKING } else { 0 },
            requests_end: 0,
            tail_end: 0,
            tail: Vec::new(),
            answer: Vec::new(),
            exchanges: Default::default(),
            asked: START,
            answered: START,
            seen: false,
        }
    }

    fn current(&mut self) -> &mut (u32, Vec<u8>, u32, usize) {
        &mut self.exchanges[usize::from(self.flags & http_flag::SECOND != 0)]
    }

    fn ask(&mut self, bytes: &[u8]) {
        let begin = self.asked;
        self.asked = begin.wrapping_add(bytes.len() as u32);
        let token = bytes.iter().take(8).position(|&b| b == b' ');
        let method = bytes.iter().take(token.unwrap_or(8)).all(u8::is_ascii_uppercase) && token != Some(0);
        let both = http_flag::ANSWERING | http_flag::FINAL;
        let follows = self.flags & both == both && begin == self.requests_end;
        if (!self.seen || follows) && method {
            self.seen = true;
            self.flags = (self.flags ^ http_flag::SECOND) & !both;
            let answered = self.answered;
            self.answer.clear();
            *self.current() = (begin, bytes.iter().take(REQUEST_CAP - 1).copied().collect(), answered, 0);
        } else {
            self.flags &= !http_flag::ANSWERING;
            let (at, request, ..) = self.current();
            if begin == at.wrapping_add(request.len() as u32) {
                request.extend(bytes);
                request.truncate(REQUEST_CAP - 1);
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.flags |= http_flag::ANSWERING;
        self.requests_end = self.asked;
        if bytes.len() >= 10 && bytes.starts_with(b"HTTP/1.") && bytes[8] == b' ' && bytes[9] != b'1' {
            self.flags |= http_flag::FINAL;
        }
        self.answer.extend(bytes);
        self.answer.truncate(ANSWER_CAP - 1);
        self.answered = self.answered.wrapping_add(bytes.len() as u32);
        self.tail.extend(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(8));
        self.tail_end = self.answered;
    }

    fn http(&self, closed: bool) -> Option<Http> {
        let (sent, received) = match self.role {
            Role::Client => (self.asked, self.answered),
            Role::Server => (self.answered, self.asked),
        };
        let mut at = Snapshot { flags: snapshot_flag::TAKEN, write_seq: sent, rcv_nxt: received, ..Snapshot::NONE };
        let mut state = TcpState::Established;
        match (closed, self.role) {
            (false, _) => {}
            (true, Role::Client) => (at.flags, at.rcv_nxt) = (at.flags | snapshot_flag::REMOTE_FIN, received.wrapping_add(1)),
            (true, Role::Server) => (state, at.write_seq) = (TcpState::FinWait2, sent.wrapping_add(1)),
        }
        let mut tail = [0; 8];
        tail[8 - self.tail.len()..].copy_from_slice(&self.tail);
        let mut answer = self.answer.clone();
        answer.resize(ANSWER_CAP, 0);
        let mut requests = self.exchanges.clone();
        requests.iter_mut().for_each(|(_, request, ..)| request.resize(REQUEST_CAP, 0));
        let last = usize::from(self.flags & http_flag::SECOND != 0);
        let exchange = |i: usize| RawExchange {
            request_at: self.exchanges[i].0,
            request_len: self.exchanges[i].1.len() as u32,
            answer_at: self.exchanges[i].2,
            answer_len: if i == last { self.answer.len() as u32 } else { 0 },
            request: &requests[i].1,
        };
        Seen { at, flags: self.flags, state, tail_end: self.tail_end, tail, answer: &answer, exchanges: [exchange(0), exchange(1)] }
            .http(false)
    }
}

fn server(talk: &[(bool, &str)]) -> Option<Http> {
    let mut wire = Wire::new(Role::Server);
    for (asks, bytes) in talk {
        if *asks { wire.ask(bytes.as_bytes()) } else { wire.say(bytes.as_bytes()) }
    }
    wire.http(false)
}

const ASK: bool = true;
const SAY: bool = false;

fn brief(http: Option<Http>) -> Option<(Option<String>, Option<u16>, Answer)> {
    http.map(|http| (http.request, http.status, http.answer))
}

fn told(line: &str, status: u16, answer: Answer) -> Option<(Option<String>, Option<u16>, Answer)> {
    Some((Some(line.to_owned()), (status > 0).then_some(status), answer))
}

#[test]
fn answers_are_none_partial_or_complete() {
    let get = (ASK, "GET /a?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    let line = "GET /a HTTP/1.1";
    assert_eq!(brief(server(&[get])), told(line, 0, Answer::None));
    assert_eq!(brief(server(&[get, (SAY, "HTTP/1.1 103 Early Hints\r\n\r\n")])), told(line, 0, Answer::None));
    assert_eq!(brief(server(&[get, (SAY, "HTTP/1.1 200 OK\r\nConte")])), told(line, 200, Answer::Partial));
    assert_eq!(brief(server(&[get, (SAY, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")])), told(line, 200, Answer::Partial));
    assert_eq!(brief(server(&[get, (SAY, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")])), told(line, 200, Answer::Complete));
    assert_eq!(brief(server(&[get, (SAY, "HTTP/1.1 200 OK\r\n\r\nuntil I close")])), told(line, 200, Answer::Unknown));
    assert_eq!(brief(server(&[get, (SAY, "HTTP/1.1 204 No Content\r\n\r\n")])), told(line, 204, Answer::Complete));
    assert_eq!(
        brief(server(&[get, (SAY, "HTTP/1.1 101 Switching\r\n\r\n"), (ASK, "\u{81}xyz"), (SAY, "abc")])),
        told(line, 101, Answer::Unknown)
    );
    let head = (ASK, "HEAD /h HTTP/1.0\r\n\r\n");
    assert_eq!(
        brief(server(&[head, (SAY, "HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n")])),
        told("HEAD /h HTTP/1.0", 200, Answer::Complete)
    );
}

#[test]
fn an_answer_without_a_length_is_complete_when_its_sender_closes() {
    for role in [Role::Client, Role::Server] {
        let mut wire = Wire::new(role);
        wire.ask(b"GET / HTTP/1.0\r\n\r\n");
        wire.say(b"HTTP/1.0 200 OK\r\n\r\nall of it");
        assert_eq!(brief(wire.http(false)), told("GET / HTTP/1.0", 200, Answer::Unknown));
        assert_eq!(brief(wire.http(true)), told("GET / HTTP/1.0", 200, Answer::Complete));
    }
}

#[test]
fn chunked_answers_end_with_their_last_chunk() {
    let get = (ASK, "GET /c HTTP/1.1\r\n\r\n");
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let say = |body: &str| brief(server(&[get, (SAY, head), (SAY, body)]));
    assert_eq!(say("5\r\nhello\r\n"), told("GET /c HTTP/1.1", 200, Answer::Partial));
    assert_eq!(say("5\r\nhello\r\n0\r\n\r\n"), told("GET /c HTTP/1.1", 200, Answer::Complete));
    assert_eq!(say("5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"), told("GET /c HTTP/1.1", 200, Answer::Complete));
    let long = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    assert_eq!(say(&long), told("GET /c HTTP/1.1", 200, Answer::Partial));
    assert_eq!(say(&format!("{long}0\r\n\r\n")), told("GET /c HTTP/1.1", 200, Answer::Complete));
    assert_eq!(say(&format!("{long}0\r\nTrailer: x\r\n\r\n")), told("GET /c HTTP/1.1", 200, Answer::Unknown));
}

#[test]
fn the_last_of_pipelined_requests_is_named_and_its_own_answer_counts() {
    let two = (ASK, "GET /1 HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nab");
    let one = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(brief(server(&[two])), told("POST /2 HTTP/1.1", 0, Answer::None));
    assert_eq!(brief(server(&[two, (SAY, one)])), told("POST /2 HTTP/1.1", 0, Answer::None));
    assert_eq!(
        brief(server(&[two, (SAY, one), (SAY, "HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n")])),
        told("POST /2 HTTP/1.1", 500, Answer::Partial)
    );
    assert_eq!(brief(server(&[two, (SAY, one), (SAY, one)])), told("POST /2 HTTP/1.1", 200, Answer::Complete));
}

#[test]
fn a_body_that_looks_like_a_request_is_a_body() {
    let fake = "GET /fake HTTP/1.1\r\n\r\n";
    let post = format!("POST /p HTTP/1.1\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n", fake.len());
    assert_eq!(brief(server(&[(ASK, &post), (ASK, fake)])), told("POST /p HTTP/1.1", 0, Answer::None));
    assert_eq!(
        brief(server(&[(ASK, &post), (SAY, "HTTP/1.1 100 Continue\r\n\r\n"), (ASK, fake)])),
        told("POST /p HTTP/1.1", 0, Answer::None)
    );
    // Answered early: which of the two it was is not known.
    let early = server(&[(ASK, &post), (SAY, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"), (ASK, fake)]);
    assert_eq!(brief(early), Some((None, None, Answer::Unknown)));
}

#[test]
fn what_is_not_certain_is_not_said() {
    let nothing = Some((None, None, Answer::Unknown));
    let long = format!("GET / HTTP/1.1\r\nCookie: {}\r\n\r\n", "c".repeat(3_000));
    assert_eq!(brief(server(&[(ASK, &long)])), nothing, "there may be another behind it");
    let chunked = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x1000));
    assert_eq!(brief(server(&[(ASK, &chunked)])), nothing);
    let both = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(brief(server(&[(ASK, both)])), nothing, "two lengths");
    let mut wire = Wire::new(Role::Server);
    wire.ask(b"GET / HTTP/1.1\r\n\r\n");
    wire.asked += 20;
    assert_eq!(brief(wire.http(false)), nothing, "more has arrived that nobody saw");
    assert_eq!(server(&[(ASK, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]), None);
    assert_eq!(server(&[(ASK, "GET /half-a-line")]), None);
    assert_eq!(server(&[(ASK, "MAIL FROM:<a@b>\r\n")]), None);
}

#[test]
fn lines_are_cut_and_queries_left_out() {
    let line = |target: &str| server(&[(ASK, &format!("GET {target} HTTP/1.1\r\n\r\n"))]).and_then(|http| http.request).unwrap();
    assert_eq!(line("/a?b?c"), "GET /a HTTP/1.1");
    assert_eq!(line("/?"), "GET / HTTP/1.1");
    let long = line(&format!("/{}", "é".repeat(200)));
    assert!(long.len() <= MAX_LINE && long.ends_with("é… HTTP/1.1"), "{long}");
    assert_eq!(line("/\u{1b}[2J"), "GET /\u{1b}[2J HTTP/1.1", "whoever prints it escapes it");
}

#[test]
fn a_load_balancers_line_stands_in_front() {
    let proxied = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /p HTTP/1.1\r\n\r\n";
    assert_eq!(brief(server(&[(ASK, proxied)])), told("GET /p HTTP/1.1", 0, Answer::None));
}

/// A request with a number, and its answer.
#[derive(Clone, Debug)]
struct Turn {
    method: &'static str,
    header: usize,
    body: Vec<u8>,
    chunked: bool,
    answer: usize,
    answer_chunked: bool,
    pipelined: bool,
}

fn turn() -> impl Strategy<Value = Turn> {
    let body = prop_oneof![
        Just(Vec::new()),
        Just(b"GET /fake HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..2_500)
    ];
    let method = prop_oneof![Just("GET"), Just("POST"), Just("HEAD"), Just("DELETE")];
    (method, 0usize..3_000, body, any::<bool>(), 0usize..4_000, any::<bool>(), proptest::bool::weighted(0.2)).prop_map(
        |(method, header, body, chunked, answer, answer_chunked, pipelined)| Turn {
            method,
            header: if header % 5 == 0 { header } else { header % 300 },
            body,
            chunked,
            answer,
            answer_chunked,
            pipelined,
        },
    )
}

fn in_chunks(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(700) {
        out.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
    }
    out.extend(b"0\r\n\r\n");
    out
}

impl Turn {
    fn line(&self, i: usize) -> String {
        format!("{} /{i} HTTP/1.1", self.method)
    }

    fn request(&self, i: usize) -> Vec<u8> {
        let mut bytes = format!("{}\r\nX: {}\r\n", self.line(i), "h".repeat(self.header)).into_bytes();
        if self.chunked {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            bytes.extend(in_chunks(&self.body));
        } else {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", self.body.len()).bytes());
            bytes.extend(&self.body);
        }
        bytes
    }

    fn answer(&self, i: usize) -> Vec<u8> {
        let body = vec![b'a'; self.answer];
        let mut bytes = format!("HTTP/1.1 20{}\r\n", i % 3).into_bytes();
        // 204 and HEAD have no body, whatever they say.
        let bodiless = self.method == "HEAD";
        if self.answer_chunked && !bodiless {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            bytes.extend(in_chunks(&body));
        } else {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
            bytes.extend(body.iter().filter(|_| !bodiless));
        }
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn any_event_is_taken_apart_without_harm(
        fill in proptest::collection::vec(any::<u8>(), size_of::<HttpEvent>()),
        lens in proptest::array::uniform4(0u32..2_100),
    ) {
        let mut bytes = &fill[size_of::<Header>() + size_of::<SockId>()..];
        let mut seen = Seen::read(&mut bytes);
        let _ = seen.http(true);
        (seen.exchanges[0].request_len, seen.exchanges[0].answer_len) = (lens[0], lens[1]);
        (seen.exchanges[1].request_len, seen.exchanges[1].answer_len) = (lens[2], lens[3]);
        let _ = seen.http(false);
    }

    #[test]
    fn any_stream_is_taken_apart_without_harm(text in "(GET|POST) /[a-z]{0,3} HTTP/1.1\r\n(Content-Length: [0-9]{1,25}\r\n|Transfer-Encoding: chunked\r\n){0,2}\r\n[0-9a-f\r\n]{0,40}", moved in any::<u64>()) {
        for n in 0..text.len() {
            let found = requests(&text.as_bytes()[..n], moved);
            let answers = Answers { bytes: text.as_bytes(), moved, closed: false, tail: None };
            let _ = answers.for_the_last(&found.found);
        }
    }

    /// Cut at any boundaries of calls, and stopped anywhere: the right request, or none; the right
    /// answer, or unknown.
    #[test]
    fn a_conversation_names_its_last_request_or_none(
        turns in proptest::collection::vec(turn(), 1..6),
        cuts in proptest::collection::vec(1usize..1_500, 1..40),
        stop in 0usize..60_000,
        asking in any::<bool>(),
    ) {
        let mut wire = Wire::new(if asking { Role::Client } else { Role::Server });
        let mut cuts = cuts.iter().cycle();
        let mut left = stop;
        // Requests begun, how much of the last one's answer moved, of how much.
        let mut asked = None;
        let mut waiting: Vec<usize> = Vec::new();
        let mut answered: Vec<(usize, usize)> = vec![(0, usize::MAX); turns.len()];
        'talk: for (i, turn) in turns.iter().enumerate() {
            let bytes = turn.request(i);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let n = (*cuts.next().unwrap()).min(rest.len()).min(left);
                if n == 0 {
                    break 'talk;
                }
                asked = Some(i);
                wire.ask(&rest[..n]);
                (rest, left) = (&rest[n..], left - n);
            }
            waiting.push(i);
            if turn.pipelined && i + 1 < turns.len() {
                continue;
            }
            for j in waiting.drain(..) {
                let bytes = turns[j].answer(j);
                answered[j].1 = bytes.len();
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let n = (*cuts.next().unwrap()).min(rest.len()).min(left);
                    if n == 0 {
                        break 'talk;
                    }
                    wire.say(&rest[..n]);
                    answered[j].0 += n;
                    (rest, left) = (&rest[n..], left - n);
                }
            }
        }
        if let Some(http) = wire.http(false)
            && let Some(request) = &http.request
        {
            let last = asked.unwrap();
            prop_assert_eq!(request, &turns[last].line(last));
            let right = match answered[last] {
                (0, _) => Answer::None,
                (moved, all) if moved == all => Answer::Complete,
                _ => Answer::Partial,
            };
            prop_assert!(http.answer == right || http.answer == Answer::Unknown, "{:?} and not {:?}", http.answer, right);
            if let Some(status) = http.status {
                prop_assert_eq!(usize::from(status), 200 + last % 3);
            }
        }
    }
}
