//! nginx's access log in the format `combined`, or one that begins with it:
//!
//! `ADDR - USER [22/Nov/2026:10:01:02 +0000] "GET /a HTTP/1.1" 499 0 "REFERRER" "AGENT"`
//!
//! nginx writes `"` and `\` of a value as `\x22` and `\x5C`, so that a quote always closes.

use std::time::Duration;

use jiff::Timestamp;

use super::{Fault, LogFormat, LogLine, LogTime, Parsed, Remote, Side, Stamp, syslog};

/// nginx's access log: the requests that a client did not wait for, or never finished.
#[derive(Clone, Copy, Debug)]
pub struct NginxAccess;

impl LogFormat for NginxAccess {
    fn parse(&self, line: &[u8]) -> Parsed {
        let raw = String::from_utf8_lossy(line);
        match Entry::of(&raw).or_else(|| Entry::of(syslog::strip(&raw)?.text)) {
            None => Parsed::Malformed,
            Some(entry) => entry.about(&raw).map_or(Parsed::Other, |line| Parsed::About(Box::new(line))),
        }
    }
}

struct Entry<'a> {
    client: &'a str,
    time: Timestamp,
    request: &'a str,
    status: &'a str,
}

impl<'a> Entry<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (head, rest) = line.split_once('"')?;
        let (client, user) = head.split_once(" - ")?;
        // The user's name is the client's choice; the time is last.
        let time = user.strip_suffix("] ")?.rsplit_once(" [")?.1;
        let (request, rest) = rest.split_once('"')?;
        let (status, rest) = rest.strip_prefix(' ')?.split_once(' ')?;
        let (bytes, _) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if client.contains(' ') || status.len() != 3 || !is_number(status) || !is_number(bytes) {
            return None;
        }
        let time = jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).ok()?.to_timestamp().ok()?;
        Some(Self { client, time, request, status })
    }

    /// 444 is nginx's own close, and says so by itself.
    fn about(&self, raw: &str) -> Option<LogLine> {
        let fault = match self.status {
            "499" => Fault::ClosedByPeer,
            "408" => Fault::TimedOut,
            _ => return None,
        };
        let client = match self.client.strip_prefix("unix:") {
            Some(path) => Remote::Unix(path.to_owned()),
            None => Remote::of_address(self.client).unwrap_or_else(|| Remote::Name(self.client.to_owned())),
        };
        let time = LogTime { stamp: Stamp::Absolute(self.time), precision: Duration::from_secs(1) };
        Some(LogLine {
            side: Some(Side::Client),
            client: Some(client),
            request: (!matches!(self.request, "" | "-")).then(|| self.request.to_owned()),
            ..LogLine::new(time, fault, raw.to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn about(line: &str) -> LogLine {
        match NginxAccess.parse(line.as_bytes()) {
            Parsed::About(line) => *line,
            other => panic!("{other:?}: {line}"),
        }
    }

    #[test]
    fn a_client_that_did_not_wait_is_499() {
        let line = about("127.0.0.1 - - [22/Nov/2026:12:01:02 +0200] \"GET /a HTTP/1.1\" 499 0 \"-\" \"curl/8\"");
        assert_eq!((line.fault, line.side), (Fault::ClosedByPeer, Some(Side::Client)));
        assert_eq!(line.client, Some(Remote::Tcp { addr: Ipv4Addr::LOCALHOST.into(), port: None }));
        let time: Timestamp = "2026-11-22T10:01:02Z".parse().expect("a time");
        assert_eq!(line.time, LogTime { stamp: Stamp::Absolute(time), precision: Duration::from_secs(1) });
        assert_eq!(line.request.as_deref(), Some("GET /a HTTP/1.1"));
    }

    #[test]
    fn a_request_that_never_came_is_408() {
        let line = about("::1 - - [22/Nov/2026:10:01:02 +0000] \"-\" 408 0 \"-\" \"-\" \"-\"");
        assert_eq!((line.fault, line.request), (Fault::TimedOut, None));
    }

    #[test]
    fn a_user_cannot_forge_a_time_nor_a_request() {
        let user = "x [01/Jan/1970:00:00:00 +0000] \\x22GET /forged HTTP/1.1\\x22 499 0";
        let line = about(&format!("127.0.0.1 - {user} [22/Nov/2026:10:01:02 +0000] \"GET /\\x22 499 HTTP/1.1\" 408 0 \"-\" \"-\""));
        assert_eq!((line.fault, line.request.as_deref()), (Fault::TimedOut, Some("GET /\\x22 499 HTTP/1.1")));
    }

    #[test]
    fn other_statuses_are_not_about_an_end() {
        for status in ["200", "444", "502"] {
            let line = format!("127.0.0.1 - - [22/Nov/2026:10:01:02 +0000] \"GET / HTTP/1.1\" {status} 5 \"-\" \"-\"");
            assert_eq!(NginxAccess.parse(line.as_bytes()), Parsed::Other);
        }
        for line in ["", "x", "127.0.0.1 - - [yesterday] \"GET / HTTP/1.1\" 499 0", "2026/11/22 10:01:02 [error] 1#1: \"x\" 499 0"] {
            assert_eq!(NginxAccess.parse(line.as_bytes()), Parsed::Malformed, "{line}");
        }
    }
}
