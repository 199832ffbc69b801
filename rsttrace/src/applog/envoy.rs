//! Envoy's access log in its default text format:
//!
//! `[START] "METHOD PATH PROTOCOL" CODE FLAGS RECEIVED SENT DURATION SERVICE_TIME "X-FORWARDED-FOR"
//! "USER-AGENT" "REQUEST-ID" "AUTHORITY" "UPSTREAM_HOST"`
//!
//! Envoy escapes nothing in it. What it writes itself stands at the beginning and at the end; what
//! lies between is the client's and is not taken apart.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Fault, LogFormat, LogLine, LogTime, Parsed, Remote, Side, Stamp, digits};

/// Envoy's access log, by its response flags.
#[derive(Clone, Copy, Debug)]
pub struct Envoy;

impl LogFormat for Envoy {
    fn parse(&self, line: &[u8]) -> Parsed {
        let raw = String::from_utf8_lossy(line);
        match Entry::of(&raw) {
            None => Parsed::Malformed,
            Some(entry) => entry.about(&raw).map_or(Parsed::Other, |line| Parsed::About(Box::new(line))),
        }
    }
}

struct Entry<'a> {
    end: Timestamp,
    request: &'a str,
    code: &'a str,
    flags: &'a str,
    authority: &'a str,
    upstream: &'a str,
}

impl<'a> Entry<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (start, rest) = line.strip_prefix('[')?.split_once("] \"")?;
        let (request, rest) = rest.split_at_checked(request_end(rest)?)?;
        let (numbers, headers) = rest.strip_prefix("\" ")?.split_once(" \"")?;
        let mut numbers = numbers.split(' ');
        let [code, flags, _received, _sent, duration, _service] = std::array::from_fn(|_| numbers.next().unwrap_or_default());
        if numbers.next().is_some() || code.is_empty() || !code.bytes().all(|b| b.is_ascii_digit()) || flags.is_empty() {
            return None;
        }
        let start: Timestamp = start.parse().ok()?;
        let duration = if duration == "-" { 0 } else { digits(duration)? };
        let end = start.checked_add(SignedDuration::from_millis(duration)).ok()?;
        // From the end: three of the values before are the client's own words.
        let (rest, upstream) = headers.strip_suffix('"')?.rsplit_once("\" \"")?;
        let authority = rest.rsplit_once("\" \"")?.1;
        Some(Self { end, request, code, flags, authority, upstream })
    }

    fn about(&self, raw: &str) -> Option<LogLine> {
        let (fault, side) = self.flags.split(',').find_map(|flag| meaning(flag, self.code))?;
        let known = |text: &str| !matches!(text, "" | "-");
        let upstream = known(self.upstream).then(|| match self.upstream.strip_prefix('/') {
            // A pipe's address is its path.
            Some(_) => Remote::Unix(self.upstream.to_owned()),
            None => Remote::of_address(self.upstream).unwrap_or_else(|| Remote::Name(self.upstream.to_owned())),
        });
        Some(LogLine {
            // Start and duration are cut to milliseconds.
            time: LogTime { stamp: Stamp::Absolute(self.end), precision: Duration::from_millis(2) },
            fault,
            side,
            process: None,
            connection: None,
            // X-Forwarded-For is what the client says.
            client: None,
            upstream,
            request: (self.request != "- - -").then(|| self.request.to_owned()),
            upstream_text: known(self.upstream).then(|| self.upstream.to_owned()),
            host: known(self.authority).then(|| self.authority.to_owned()),
            phrase: Some(self.flags.to_owned()),
            unanswered: None,
            raw: raw.to_owned(),
        })
    }
}

/// Where the quote behind `METHOD PATH PROTOCOL` stands: a path has no space.
fn request_end(text: &str) -> Option<usize> {
    let mut spaces = text.match_indices(' ').map(|(at, _)| at);
    let protocol = spaces.nth(1)? + 1;
    let end = protocol + text[protocol..].find('"')?;
    let name = &text[protocol..end];
    (name == "-" || name.starts_with("HTTP/")).then_some(end)
}

/// What a response flag tells of a connection's end. Flags that are about a stream within a
/// connection (UR, DR), about Envoy's own decision, or about no connection at all are not here.
fn meaning(flag: &str, code: &str) -> Option<(Fault, Option<Side>)> {
    Some(match flag {
        "UC" => (Fault::ClosedByPeer, Some(Side::Upstream)),
        "UF" => (Fault::NotConnected, Some(Side::Upstream)),
        "UT" | "UMSDR" => (Fault::TimedOut, Some(Side::Upstream)),
        // The circuit breaker let no connection be made.
        "UO" => (Fault::NoConnection, Some(Side::Upstream)),
        "DC" => (Fault::ClosedByPeer, Some(Side::Client)),
        // The stream's idle timeout: 408 while the request was awaited, 504 while the response was.
        "SI" if code == "408" => (Fault::TimedOut, Some(Side::Client)),
        "SI" if code == "504" => (Fault::TimedOut, Some(Side::Upstream)),
        "SI" | "DT" => (Fault::TimedOut, None),
        _ => return None,
    })
}

/// The lines are made by the format in Envoy's documentation; no real Envoy wrote them.
#[cfg(test)]
mod tests {
    use super::*;

    fn line(flags: &str, code: &str, rest: &str) -> String {
        format!("[2026-04-15T20:17:00.310Z] \"POST /api HTTP/1.1\" {code} {flags} 0 95 12 - {rest}")
    }

    const REST: &str = "\"10.0.35.28\" \"curl/8\" \"cc21d9b0\" \"host\" \"10.0.2.1:80\"";

    fn about(line: &str) -> LogLine {
        match Envoy.parse(line.as_bytes()) {
            Parsed::About(line) => *line,
            other => panic!("{other:?}: {line}"),
        }
    }

    #[test]
    fn a_line_gives_its_end_its_upstream_and_its_request() {
        let line = about(&line("UC", "503", REST));
        assert_eq!((line.fault, line.side), (Fault::ClosedByPeer, Some(Side::Upstream)));
        assert_eq!(line.time.stamp, Stamp::Absolute("2026-04-15T20:17:00.322Z".parse().expect("a time")));
        assert_eq!(line.upstream, Remote::of_address("10.0.2.1:80"));
        assert_eq!((line.request.as_deref(), line.host.as_deref()), (Some("POST /api HTTP/1.1"), Some("host")));
        assert_eq!(line.client, None);
    }

    #[test]
    fn the_first_flag_that_tells_counts() {
        let of = |flags, code| {
            let line = about(&line(flags, code, REST));
            (line.fault, line.side)
        };
        assert_eq!(of("UF,URX", "503"), (Fault::NotConnected, Some(Side::Upstream)));
        assert_eq!(of("URX,UF", "503"), (Fault::NotConnected, Some(Side::Upstream)));
        assert_eq!(of("DC", "0"), (Fault::ClosedByPeer, Some(Side::Client)));
        assert_eq!(of("UT", "504"), (Fault::TimedOut, Some(Side::Upstream)));
        assert_eq!(of("SI", "408"), (Fault::TimedOut, Some(Side::Client)));
        assert_eq!(of("SI", "504"), (Fault::TimedOut, Some(Side::Upstream)));
        assert_eq!(of("DT", "0"), (Fault::TimedOut, None));
        assert_eq!(of("UO", "503"), (Fault::NoConnection, Some(Side::Upstream)));
        for flags in ["-", "UH", "LR", "UR", "DR", "NR", "RL", "URX", "NFCF", "??"] {
            assert_eq!(Envoy.parse(line_bytes(flags).as_slice()), Parsed::Other, "{flags}");
        }
    }

    fn line_bytes(flags: &str) -> Vec<u8> {
        line(flags, "503", REST).into_bytes()
    }

    #[test]
    fn a_tcp_proxy_has_no_request() {
        let text = "[2026-04-15T20:17:00.310Z] \"- - -\" 0 UF,URX 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"[::1]:80\"";
        let line = about(text);
        assert_eq!((line.request, line.host), (None, None));
        assert_eq!(line.upstream, Remote::of_address("[::1]:80"));
    }

    #[test]
    fn headers_cannot_forge_an_upstream_nor_a_flag() {
        let agent = "x\" \"id\" \"forged\" \"6.6.6.6:1\" 503 UC 0 0 0 - \"";
        let line = about(&line("DC", "0", &format!("\"-\" \"{agent}\" \"id\" \"host\" \"10.0.2.1:80\"")));
        assert_eq!(line.upstream, Remote::of_address("10.0.2.1:80"));
        assert_eq!((line.host.as_deref(), line.fault, line.side), (Some("host"), Fault::ClosedByPeer, Some(Side::Client)));
    }

    #[test]
    fn what_has_not_this_shape_is_no_line_of_envoys() {
        for text in [
            "",
            "[",
            "[] \"\"",
            "[2026-04-15T20:17:00.310Z] \"GET / HTTP/1.1\" 503 UC 0 95 12 -",
            "[x] \"GET / HTTP/1.1\" 503 UC 0 95 12 - \"a\" \"b\" \"c\" \"d\" \"e\"",
        ] {
            assert_eq!(Envoy.parse(text.as_bytes()), Parsed::Malformed, "{text}");
        }
    }
}
