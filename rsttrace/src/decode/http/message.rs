//! HTTP/1 messages in the beginning of a stream: where they end, by their own framing (RFC 9112).
//! Everything here was written by somebody else: bounded, and refused where it is not clear.

use httparse::{EMPTY_HEADER, Status};

/// More header lines are not looked at.
const MAX_HEADERS: usize = 128;
/// A longer method is none.
const MAX_METHOD: usize = 32;

/// Where the body of a message ends, as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    /// Nothing says it: a request has no body then, and an answer goes on until the connection is closed.
    Unsaid,
}

/// What is known of a part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<T> {
    Whole(T),
    /// It goes on behind what is there.
    Cut,
    /// It says two things, or none that can be understood.
    Unclear,
}

/// A request line, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub version: &'a [u8],
}

/// `METHOD SP target SP HTTP/1.x`
fn request_line(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.split(|&b| b == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let is_method = (1..=MAX_METHOD).contains(&method.len()) && method.iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'));
    let well_formed = is_method && !target.is_empty() && is_version(version) && parts.next().is_none();
    well_formed.then_some(Line { method, target, version })
}

fn is_version(version: &[u8]) -> bool {
    version.strip_prefix(b"HTTP/1.").is_some_and(|minor| matches!(minor, [b'0'..=b'9']))
}

/// `HTTP/1.x SP 3DIGIT`, and a reason that says nothing.
fn status_line(line: &[u8]) -> Option<u16> {
    let (version, rest) = line.split_at_checked(8)?;
    let (code, after) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let fits = is_version(version) && code.iter().all(u8::is_ascii_digit) && matches!(after.first(), None | Some(b' '));
    let number = std::str::from_utf8(code).ok()?.parse().ok()?;
    (fits && (100..1_000).contains(&number)).then_some(number)
}

/// The first line without its end, and how long it is with it.
fn first_line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let at = bytes.iter().position(|&b| b == b'\n')?;
    let line = &bytes[..at];
    Some((line.strip_suffix(b"\r").unwrap_or(line), at + 1))
}

/// What header lines say of the body, and how long they are.
fn headers(bytes: &[u8]) -> Part<(usize, Body)> {
    let mut fields = [EMPTY_HEADER; MAX_HEADERS];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(Status::Complete((len, fields))) => body(fields).map_or(Part::Unclear, |body| Part::Whole((len, body))),
        Ok(Status::Partial) => Part::Cut,
        Err(_) => Part::Unclear,
    }
}

/// Both ways to say the length at once are a known way to smuggle requests.
fn body(fields: &[httparse::Header<'_>]) -> Option<Body> {
    let named = |name: &'static str| fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value);
    let mut lengths = named("content-length").map(|value| std::str::from_utf8(value).ok().filter(|text| is_number(text))?.parse().ok());
    let mut codings = named("transfer-encoding");
    match (lengths.next(), codings.next()) {
        (None, None) => Some(Body::Unsaid),
        (Some(length), None) => lengths.all(|other| other == length).then_some(Body::Length(length?)),
        (None, Some(coding)) => (coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none()).then_some(Body::Chunked),
        (Some(_), Some(_)) => None,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Length of a chunked body, from its first chunk to the empty line behind the last.
fn chunks(bytes: &[u8]) -> Part<u64> {
    let mut at = 0usize;
    while let Some(rest) = bytes.get(at..) {
        match httparse::parse_chunk_size(rest) {
            Ok(Status::Complete((line, 0))) => {
                let mut trailers = [EMPTY_HEADER; MAX_HEADERS];
                return match httparse::parse_headers(&rest[line..], &mut trailers) {
                    Ok(Status::Complete((len, _))) => Part::Whole((at + line + len) as u64),
                    Ok(Status::Partial) => Part::Cut,
                    Err(_) => Part::Unclear,
                };
            }
            Ok(Status::Complete((line, size))) => {
                let end = usize::try_from(size).ok().and_then(|size| at.checked_add(line)?.checked_add(size));
                let Some(end) = end else { return Part::Cut };
                match bytes.get(end..) {
                    Some([b'\r', b'\n', ..]) => at = end + 2,
                    Some([] | [b'\r']) | None => return Part::Cut,
                    Some(_) => return Part::Unclear,
                }
            }
            Ok(Status::Partial) => return Part::Cut,
            Err(_) => return Part::Unclear,
        }
    }
    Part::Cut
}

/// One of the requests of a stream. Positions are from the stream's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub line: Line<'a>,
    /// Behind its body; `None`: it goes on, and how far is not told yet.
    pub end: Option<u64>,
}

/// The requests of a stream.
#[derive(Debug)]
pub struct Requests<'a> {
    pub found: Vec<Request<'a>>,
    /// The last one found is the last that moved.
    pub complete: bool,
}

/// Finds the requests in a stream of which `bytes` are the beginning and `moved` the length.
pub fn requests(bytes: &[u8], moved: u64) -> Requests<'_> {
    let mut requests = Requests { found: Vec::new(), complete: false };
    let all_seen = bytes.len() as u64 >= moved;
    let mut at = proxy_header(bytes);
    loop {
        let Some(rest) = bytes.get(at..) else { return requests };
        // An empty line may stand in front of a request, and old clients send one behind.
        at += rest.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let rest = &bytes[at..];
        if rest.is_empty() {
            requests.complete = all_seen && !requests.found.is_empty();
            return requests;
        }
        let Some((line, line_len)) = first_line(rest).and_then(|(line, len)| Some((request_line(line)?, len))) else {
            return requests;
        };
        let behind = |head: usize, body: u64| (at as u64).checked_add((line_len + head) as u64)?.checked_add(body);
        let end = match headers(&rest[line_len..]) {
            Part::Whole((head, Body::Unsaid)) => Part::Whole(behind(head, 0)),
            Part::Whole((head, Body::Length(body))) => Part::Whole(behind(head, body)),
            Part::Whole((head, Body::Chunked)) => match chunks(&rest[line_len + head..]) {
                Part::Whole(body) => Part::Whole(behind(head, body)),
                Part::Cut => Part::Cut,
                Part::Unclear => Part::Unclear,
            },
            Part::Cut => Part::Cut,
            Part::Unclear => Part::Unclear,
        };
        match end {
            Part::Whole(Some(end)) => {
                requests.found.push(Request { line, end: Some(end) });
                if end >= moved {
                    requests.complete = true;
                    return requests;
                }
                let Ok(next) = usize::try_from(end) else { return requests };
                at = next;
            }
            Part::Cut | Part::Whole(None) => {
                requests.found.push(Request { line, end: None });
                requests.complete = all_seen;
                return requests;
            }
            Part::Unclear => {
                requests.found.push(Request { line, end: None });
                return requests;
            }
        }
    }
}

/// The line that a load balancer puts in front of a connection (PROXY protocol, version 1).
fn proxy_header(bytes: &[u8]) -> usize {
    if !bytes.starts_with(b"PROXY ") || first_line(bytes).is_some_and(|(line, _)| request_line(line).is_some()) {
        return 0;
    }
    first_line(bytes).map_or(0, |(_, len)| len)
}

/// How an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Nothing of it has moved.
    Nothing,
    Cut {
        status: Option<u16>,
        moved: u64,
        expected: Option<u64>,
    },
    Whole {
        status: u16,
        moved: u64,
    },
    /// Behind this status there is no HTTP: the connection was handed to another protocol.
    Tunnel {
        status: u16,
    },
    Unclear {
        status: Option<u16>,
    },
}

/// A stream of answers, of which `bytes` are the beginning and `moved` the length.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a> {
    pub bytes: &'a [u8],
    pub moved: u64,
    /// Nothing follows: the sender has closed.
    pub closed: bool,
    /// The last bytes that moved, where they are known.
    pub tail: Option<[u8; 8]>,
}

impl Answers<'_> {
    /// How the answer to the last of these requests stands.
    pub fn for_the_last(&self, requests: &[Request<'_>]) -> Answered {
        let Some((last, earlier)) = requests.split_last() else { return Answered::Unclear { status: None } };
        // What moved last tells nothing of the others.
        let unended = Self { tail: None, ..*self };
        let mut at = 0;
        for request in earlier {
            at = match unended.for_one(request, at) {
                Answered::Whole { moved, .. } => at + moved,
                // An earlier one stands in front of it.
                Answered::Nothing | Answered::Cut { .. } => return Answered::Nothing,
                Answered::Tunnel { .. } | Answered::Unclear { .. } => return Answered::Unclear { status: None },
            };
        }
        match self.for_one(last, at) {
            // More than it has: then it is not the last.
            Answered::Whole { moved, .. } if at + moved < self.moved => Answered::Unclear { status: None },
            answered => answered,
        }
    }

    fn for_one(&self, request: &Request<'_>, from: u64) -> Answered {
        let mut at = from;
        loop {
            if at == self.moved {
                return Answered::Nothing;
            }
            let Some(rest) = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)) else {
                return Answered::Unclear { status: None };
            };
            let all_seen = self.bytes.len() as u64 >= self.moved;
            let cut = |status, expected| match all_seen {
                true => Answered::Cut { status, moved: self.moved - from, expected },
                false => Answered::Unclear { status },
            };
            let Some((line, line_len)) = first_line(rest) else { return cut(None, None) };
            let Some(status) = status_line(line) else { return Answered::Unclear { status: None } };
            let (head, body) = match headers(&rest[line_len..]) {
                Part::Whole((len, body)) => (at + (line_len + len) as u64, body),
                Part::Cut if is_interim(status) && all_seen => return Answered::Nothing,
                Part::Cut => return cut(Some(status), None),
                Part::Unclear => return Answered::Unclear { status: Some(status) },
            };
            if is_interim(status) {
                at = head;
                continue;
            }
            return self.with_body(request, status, from, head, body);
        }
    }

    /// `head`: where the answer's head ends.
    fn with_body(&self, request: &Request<'_>, status: u16, from: u64, head: u64, body: Body) -> Answered {
        let method = request.line.method;
        let until = |end: u64| match end <= self.moved {
            true => Answered::Whole { status, moved: end - from },
            false => Answered::Cut { status: Some(status), moved: self.moved - from, expected: Some(end - from) },
        };
        if status == 101 || method == b"CONNECT" && (200..300).contains(&status) {
            return Answered::Tunnel { status };
        }
        if method == b"HEAD" || matches!(status, 204 | 304) {
            return until(head);
        }
        match body {
            Body::Length(n) => head.checked_add(n).map_or(Answered::Unclear { status: Some(status) }, until),
            Body::Unsaid if self.closed => Answered::Whole { status, moved: self.moved - from },
            Body::Unsaid => Answered::Unclear { status: Some(status) },
            Body::Chunked => {
                let rest = usize::try_from(head).ok().and_then(|head| self.bytes.get(head..)).unwrap_or_default();
                match chunks(rest) {
                    Part::Whole(len) => until(head + len),
                    Part::Unclear => Answered::Unclear { status: Some(status) },
                    Part::Cut if self.bytes.len() as u64 >= self.moved => {
                        Answered::Cut { status: Some(status), moved: self.moved - from, expected: None }
                    }
                    Part::Cut => self.by_tail(status, from),
                }
            }
        }
    }

    /// Too long to be seen as a whole: the last chunk is told by its place.
    fn by_tail(&self, status: u16, from: u64) -> Answered {
        let moved = self.moved - from;
        match self.tail {
            Some(tail) if tail.ends_with(b"\r\n0\r\n\r\n") => Answered::Whole { status, moved },
            // Trailers, it may be.
            Some(tail) if !tail.ends_with(b"\r\n\r\n") => Answered::Cut { status: Some(status), moved, expected: None },
            _ => Answered::Unclear { status: Some(status) },
        }
    }
}

/// Others follow it. 101 ends HTTP.
fn is_interim(status: u16) -> bool {
    (100..200).contains(&status) && status != 101
}
