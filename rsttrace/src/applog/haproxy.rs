//! HAProxy's HTTP and TCP log (`option httplog`, `httpslog`, `tcplog`), in a file of syslog's or as
//! HAProxy writes it itself:
//!
//! `ADDR:PORT [ACCEPTED] FRONTEND BACKEND/SERVER TIMES STATUS BYTES COOKIE COOKIE STATE CONNECTIONS
//! QUEUES {HEADERS} {HEADERS} "REQUEST"`; a TCP line has no status, no cookies and nothing behind the
//! queues; and the line of a failed handshake, `ADDR:PORT [ACCEPTED] FRONTEND/BIND: MESSAGE`.
//!
//! HAProxy writes `"` of a request as `#22`, so that no quote is within one.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

use super::{
    Fault, LogFormat, LogLine, LogTime, Parsed, Remote, Side, Stamp, digits,
    syslog::{self, Message},
};

/// HAProxy's log, by the session's state at its end.
#[derive(Clone, Copy, Debug)]
pub struct HaProxy;

impl LogFormat for HaProxy {
    fn parse(&self, line: &[u8]) -> Parsed {
        let raw = String::from_utf8_lossy(line);
        let bare = Message { time: None, process: None, text: &raw };
        if let Some(parsed) = parse(bare, &raw) {
            return parsed;
        }
        let Some(message) = syslog::strip(&raw) else { return Parsed::Malformed };
        // What is not about a session ("Server b/s is DOWN") has a prefix and words.
        let is_haproxys = message.process.is_some();
        parse(message, &raw).unwrap_or(if is_haproxys { Parsed::Other } else { Parsed::Malformed })
    }
}

/// `None`: no line about a session.
fn parse(message: Message<'_>, raw: &str) -> Option<Parsed> {
    let (accept, rest) = Accept::of(message.text)?;
    let about = match Session::of(rest) {
        Some(session) => session.about(&accept),
        None => handshake(rest, &accept)?,
    };
    let Some(mut line) = about else { return Some(Parsed::Other) };
    if let (Some(written), Stamp::Civil(end)) = (message.time, line.time.stamp) {
        line.time.stamp = absolute(end, written).map_or(Stamp::Civil(end), Stamp::Absolute);
    }
    Some(Parsed::About(Box::new(LogLine { process: message.process, raw: raw.to_owned(), ..line })))
}

/// The end in the zone that makes it the time when the line was written: all zones are whole quarters
/// of an hour. `None` if none does.
fn absolute(end: DateTime, written: Timestamp) -> Option<Timestamp> {
    const QUARTER: i64 = 15 * 60;
    /// How much later than its end a line may be written.
    const SLACK: i64 = 60;
    let as_utc = end.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let offset = as_utc.as_second() - written.as_second();
    let zone = (offset + QUARTER / 2).div_euclid(QUARTER) * QUARTER;
    let is_good = (offset - zone).abs() <= SLACK && zone.abs() <= 14 * 3600;
    is_good.then(|| as_utc.checked_sub(SignedDuration::from_secs(zone)).ok()).flatten()
}

/// What every line begins with: `127.0.0.1:5000 [22/Nov/2026:10:01:02.123] `
struct Accept {
    client: Remote,
    time: DateTime,
}

impl Accept {
    fn of(text: &str) -> Option<(Self, &str)> {
        let (client, rest) = text.split_once(" [")?;
        let (time, rest) = rest.split_once("] ")?;
        let (address, port) = client.rsplit_once(':')?;
        let client = match (address, digits(port)) {
            ("unix", _) => Remote::Unix(String::new()),
            (_, port) => Remote::Tcp { addr: address.parse::<std::net::IpAddr>().ok()?.to_canonical(), port: Some(port?) },
        };
        Some((Self { client, time: civil(time)? }, rest))
    }

    fn line(&self, fault: Fault, side: Side, stamp: DateTime, precision: Duration) -> LogLine {
        let time = LogTime { stamp: Stamp::Civil(stamp), precision };
        LogLine { side: Some(side), client: Some(self.client.clone()), ..LogLine::new(time, fault, String::new()) }
    }
}

/// `22/Nov/2026:10:01:02.123`
fn civil(text: &str) -> Option<DateTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (date, time) = text.split_once(':')?;
    let (time, millisecond) = time.split_once('.')?;
    let mut date = date.split('/');
    let (day, month, year) = (digits(date.next()?)?, date.next()?, digits(date.next()?)?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let mut time = time.split(':').map(digits);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if date.next().is_some() || time.next().is_some() || millisecond.len() != 3 {
        return None;
    }
    let nanosecond = digits::<i32>(millisecond)? * 1_000_000;
    DateTime::new(year, month.try_into().ok()?, day, hour, minute, second, nanosecond).ok()
}

/// The rest of a line about a session.
struct Session<'a> {
    server: &'a str,
    /// Of the whole session, or of the request.
    total: Option<u32>,
    state: &'a str,
    request: Option<&'a str>,
}

impl<'a> Session<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let mut fields = text.splitn(4, ' ');
        let [_frontend, server, times, rest] = std::array::from_fn(|_| fields.next().unwrap_or_default());
        if !server.contains('/') {
            return None;
        }
        let total = times.rsplit('/').next()?;
        // With `option logasap` the line is written before the end, and says so by a plus.
        let total = if total.starts_with('+') { None } else { Some(digits(total)?) };
        let (state, request) = match times.bytes().filter(|b| *b == b'/').count() {
            2 => (tcp(rest)?, None),
            4 => http(rest).map(|(state, request)| (state, Some(request)))?,
            _ => return None,
        };
        Some(Self { server, total, state, request })
    }

    fn about(&self, accept: &Accept) -> Option<LogLine> {
        let known = !self.server.ends_with("/<NOSRV>");
        let (fault, side) = match meaning(self.state.as_bytes())? {
            // No server is up: none was tried.
            (Fault::NotConnected, side) if !known => (Fault::NoConnection, side),
            meaning => meaning,
        };
        let end = accept.time.checked_add(SignedDuration::from_millis(self.total?.into())).ok()?;
        Some(LogLine {
            upstream: known.then(|| Remote::Name(self.server.to_owned())),
            upstream_text: known.then(|| self.server.to_owned()),
            request: self.request.filter(|request| *request != "<BADREQ>").map(str::to_owned),
            phrase: Some(self.state.to_owned()),
            unanswered: None,
            // Both the date and the duration are cut to milliseconds.
            ..accept.line(fault, side, end, Duration::from_millis(2))
        })
    }
}

/// `BYTES STATE CONNECTIONS QUEUES`
fn tcp(text: &str) -> Option<&str> {
    let (bytes, text) = text.split_once(' ')?;
    is_count(bytes).then(|| state(text, 2)).flatten()
}

/// `STATUS BYTES COOKIE COOKIE STATE CONNECTIONS QUEUES {HEADERS} {HEADERS} "REQUEST"`: the state and the
/// request. HAProxy writes a captured cookie as it is, with blanks and quotes; all behind it is
/// escaped, so that a line is read from its end.
fn http(text: &str) -> Option<(&str, &str)> {
    let mut fields = text.splitn(3, ' ');
    let [status, bytes, text] = std::array::from_fn(|_| fields.next().unwrap_or_default());
    if status != "-1" && !is_count(status) || !is_count(bytes) {
        return None;
    }
    let Some((text, request)) = text.strip_suffix('"').and_then(|text| text.rsplit_once(" \"")) else { return http_from_the_left(text) };
    let mut text = text;
    while let Some(headers) = text.strip_suffix('}') {
        text = headers.rsplit_once(" {")?.0;
    }
    let state_at = text.rmatch_indices(' ').nth(2)?.0 + 1;
    Some((state(&text[state_at..], 4)?, request))
}

/// The same of a line that was cut off, or that has more behind the request (`httpslog`): only without
/// captured cookies.
fn http_from_the_left(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix("- - ")?;
    let state_end = text.match_indices(' ').nth(2)?.0;
    let (headers, request) = text[state_end..].split_once('"')?;
    let is_good = headers == " " || headers.starts_with(" {") && headers.ends_with("} ");
    let (request, rest) = request.split_once('"').unwrap_or((request, ""));
    (is_good && !rest.contains('"')).then_some((state(&text[..state_end], 4)?, request))
}

/// `STATE CONNECTIONS QUEUES`
fn state(text: &str, length: usize) -> Option<&str> {
    let (state, rest) = text.split_once(' ')?;
    let (connections, queues) = rest.split_once(' ')?;
    (is_state(state, length) && is_connections(connections) && is_queues(queues)).then_some(state)
}

fn is_count(text: &str) -> bool {
    let text = text.strip_prefix('+').unwrap_or(text);
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `SD`, `SDNI`: the event, the phase, and in HTTP two letters about cookies.
fn is_state(text: &str, length: usize) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == length && b"CSPLRIDUKcs-".contains(&bytes[0]) && b"RQCHDLT-".contains(&bytes[1])
}

/// `1/1/0/0/0`; retries with a plus after a redispatch.
fn is_connections(text: &str) -> bool {
    text.split('/').count() == 5 && text.split('/').all(is_count)
}

fn is_queues(text: &str) -> bool {
    text.split('/').count() == 2 && text.split('/').all(is_count)
}

/// What the first two letters of a termination state tell of a connection's end; HAProxy's own
/// decisions (P, L, R, I, D, U, K) are none, but for a connection that could not be made.
fn meaning(state: &[u8]) -> Option<(Fault, Side)> {
    Some(match (state.first()?, state.get(1)?) {
        (b'C', _) => (Fault::ClosedByPeer, Side::Client),
        (b'c', _) => (Fault::TimedOut, Side::Client),
        // Refused, unreachable: the line does not tell which.
        (b'S', b'C') => (Fault::NotConnected, Side::Upstream),
        (b'S', _) => (Fault::ClosedByPeer, Side::Upstream),
        // No connection slot became free in time; no source port was left.
        (b's', b'Q') | (b'R', b'C') => (Fault::NoConnection, Side::Upstream),
        (b's', _) => (Fault::TimedOut, Side::Upstream),
        _ => return None,
    })
}

/// `FRONTEND/BIND: MESSAGE`, logged when the connection has not become a session.
/// `None`: no such line; `Some(None)`: nothing about an end.
fn handshake(text: &str, accept: &Accept) -> Option<Option<LogLine>> {
    let (place, message) = text.split_once(": ")?;
    if place.contains(' ') || !place.contains('/') {
        return None;
    }
    let fault = match message {
        "Connection closed during SSL handshake" | "Connection error during SSL handshake" => Fault::ClosedByPeer,
        "Timeout during SSL handshake" => Fault::TimedOut,
        _ => return Some(None),
    };
    // How long the handshake took is not said: HAProxy bounds it by `timeout client`.
    let line = accept.line(fault, Side::Client, accept.time, HANDSHAKE);
    Some(Some(LogLine { phrase: Some(message.to_owned()), ..line }))
}

/// The longest handshake that one would wait for.
const HANDSHAKE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &str =
        "127.0.0.1:5000 [22/Nov/2026:10:01:02.900] fe be/srv 0/0/1/-1/250 502 208 - - SH-- 1/1/0/0/0 0/0 \"GET /a HTTP/1.1\"";

    fn about(line: &str) -> LogLine {
        match HaProxy.parse(line.as_bytes()) {
            Parsed::About(line) => *line,
            other => panic!("{other:?}: {line}"),
        }
    }

    #[test]
    fn an_http_line_gives_its_end_its_client_and_its_server() {
        let line = about(HTTP);
        assert_eq!((line.fault, line.side), (Fault::ClosedByPeer, Some(Side::Upstream)));
        assert_eq!(line.time.stamp, Stamp::Civil("2026-11-22T10:01:03.150".parse().expect("a time")));
        assert_eq!(line.client, Remote::of_address("127.0.0.1:5000"));
        assert_eq!(line.upstream, Some(Remote::Name("be/srv".into())));
        assert_eq!((line.request.as_deref(), line.phrase.as_deref()), (Some("GET /a HTTP/1.1"), Some("SH--")));
    }

    #[test]
    fn every_prefix_is_accepted_and_names_the_process() {
        for (prefix, process) in [
            ("<134>Nov 22 10:01:03 haproxy[12]: ", Some(12)),
            ("Nov 22 10:01:03 host haproxy[12]: ", Some(12)),
            ("<134>1 2026-11-22T10:01:03.150+00:00 host haproxy 12 - - ", Some(12)),
            ("<6>", None),
            ("<6>2026-11-22T10:01:03.150+00:00 ", None),
            ("", None),
        ] {
            let line = about(&format!("{prefix}{HTTP}"));
            assert_eq!((line.process, line.fault), (process, Fault::ClosedByPeer), "{prefix}");
        }
    }

    #[test]
    fn a_prefix_with_a_zone_makes_the_time_absolute_whatever_haproxys_own_zone() {
        let end = "2026-11-22T10:01:03.150Z".parse().expect("a time");
        for (prefix, expected) in [
            ("<134>1 2026-11-22T10:01:03.151+00:00 host haproxy 12 - - ", Stamp::Absolute(end)),
            ("2026-11-22T11:01:03.151+01:00 host haproxy[12]: ", Stamp::Absolute(end)),
            // HAProxy in UTC - 3:30.
            ("2026-11-22T13:31:04.000Z ", Stamp::Absolute("2026-11-22T13:31:03.150Z".parse().expect("a time"))),
            // Somebody else's time.
            ("2026-11-22T10:06:03.000Z ", Stamp::Civil("2026-11-22T10:01:03.150".parse().expect("a time"))),
            ("Nov 22 10:01:03 host haproxy[12]: ", Stamp::Civil("2026-11-22T10:01:03.150".parse().expect("a time"))),
        ] {
            assert_eq!(about(&format!("{prefix}{HTTP}")).time.stamp, expected, "{prefix}");
        }
    }

    #[test]
    fn a_tcp_line_ends_with_its_queues_and_a_line_without_a_server_has_no_connection() {
        let text = "127.0.0.1:5000 [22/Nov/2026:10:01:02.900] fe be/<NOSRV> 0/-1/-1/-1/0 503 217 - - SC-- 1/1/0/0/0 0/0 \"GET / HTTP/1.1\"";
        assert_eq!((about(text).fault, about(text).upstream), (Fault::NoConnection, None));
        let line = about("::1:5000 [22/Nov/2026:10:01:02.900] fe be/srv 0/0/5007 0 sD 1/1/0/0/+3 0/0");
        assert_eq!((line.fault, line.side), (Fault::TimedOut, Some(Side::Upstream)));
        assert_eq!((line.client, line.request), (Remote::of_address("[::1]:5000"), None));
    }

    #[test]
    fn the_state_at_the_end_tells_side_and_fault() {
        let of = |state: &str| {
            let text = HTTP.replace("SH--", &format!("{state}NI"));
            match HaProxy.parse(text.as_bytes()) {
                Parsed::About(line) => Some((line.fault, line.side)),
                _ => None,
            }
        };
        let (client, server) = (Some(Side::Client), Some(Side::Upstream));
        for (states, expected) in [
            (&["CR", "CQ", "CC", "CH", "CD", "CL", "CT"][..], Some((Fault::ClosedByPeer, client))),
            (&["cR", "cH", "cD", "cL"], Some((Fault::TimedOut, client))),
            (&["SH", "SD", "SL"], Some((Fault::ClosedByPeer, server))),
            (&["SC"], Some((Fault::NotConnected, server))),
            (&["sC", "sH", "sD"], Some((Fault::TimedOut, server))),
            (&["sQ", "RC"], Some((Fault::NoConnection, server))),
            (&["--", "LR", "PR", "PH", "PC", "PD", "PT", "DD", "UD", "KD", "ID"], None),
        ] {
            for state in states {
                assert_eq!(of(state), expected, "{state}");
            }
        }
    }

    #[test]
    fn a_captured_cookie_or_header_cannot_forge_a_state() {
        for cookie in ["X=a b CD-- 1/1/1/1/1 0/0 \"GET / HTTP/1.1", "X=a CD-- 1/1/1/1/1 0/0", "X=a \"b\" {CD-- 1/1/1/1/1 0/0}"] {
            let text = HTTP.replace(" - - ", &format!(" {cookie} - "));
            let line = about(&text);
            assert_eq!((line.phrase.as_deref(), line.request.as_deref()), (Some("SH--"), Some("GET /a HTTP/1.1")));
            // Cut off, the cookie is the last that is left.
            let cut = text.split_once(" - SH").expect("a state").0;
            assert!(!matches!(HaProxy.parse(cut.as_bytes()), Parsed::About(_)), "{cut}");
        }
        let line = about(&HTTP.replace(" \"GET", " {a|CD-- 1/1/1/1/1 0/0} {} \"GET"));
        assert_eq!((line.phrase.as_deref(), line.request.as_deref()), (Some("SH--"), Some("GET /a HTTP/1.1")));
    }

    #[test]
    fn a_line_that_was_cut_off_or_has_more_behind_its_request_is_good() {
        for text in
            [HTTP.trim_end_matches('"').to_owned(), format!("{HTTP} 0/0000000000000000/0/0/0 test.example/TLSv1.3/TLS_AES_256_GCM_SHA384")]
        {
            let line = about(&text);
            assert_eq!((line.phrase.as_deref(), line.request.as_deref()), (Some("SH--"), Some("GET /a HTTP/1.1")));
        }
    }

    #[test]
    fn a_line_written_before_the_end_is_not_about_it() {
        assert_eq!(HaProxy.parse(HTTP.replace("/250", "/+250").as_bytes()), Parsed::Other);
    }

    #[test]
    fn a_failed_handshake_is_the_clients() {
        let line = about(
            "<134>Nov 22 10:01:03 haproxy[12]: 127.0.0.1:5000 [22/Nov/2026:10:01:02.900] fe/1: Connection closed during SSL handshake",
        );
        assert_eq!((line.fault, line.side), (Fault::ClosedByPeer, Some(Side::Client)));
        let text = "127.0.0.1:5000 [22/Nov/2026:10:01:02.900] fe/1: SSL handshake failure";
        assert_eq!(HaProxy.parse(text.as_bytes()), Parsed::Other);
    }

    #[test]
    fn other_lines_of_haproxys_are_good_and_foreign_ones_are_not() {
        let other = "<133>Nov 22 10:01:03 haproxy[12]: Server be/srv is DOWN, reason: Layer4 connection problem.";
        assert_eq!(HaProxy.parse(other.as_bytes()), Parsed::Other);
        for text in [
            "",
            "x",
            "<134>x",
            "127.0.0.1 - - [22/Nov/2026:10:01:02 +0000] \"GET / HTTP/1.1\" 499 0",
            "127.0.0.1:5000 [22/Nov/2026:10:01:02.900] x",
        ] {
            assert_eq!(HaProxy.parse(text.as_bytes()), Parsed::Malformed, "{text}");
        }
    }
}
