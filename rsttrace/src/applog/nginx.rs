//! nginx's error log (`ngx_log_error_core()`):
//!
//! `TIME [LEVEL] PID#TID: *CONNECTION MESSAGE (ERRNO: TEXT) while PHRASE, client: A, server: N,
//! request: "R", subrequest: "S", upstream: "U", host: "H", referrer: "F"`
//!
//! nginx escapes nothing here, so R, S, H, F and what U has of the request may hold quotes and whole
//! fields. A line is therefore read from its beginning, which nginx alone writes, and each field is
//! closed by what its own grammar cannot contain.

use std::{net::SocketAddr, time::Duration};

use jiff::civil::DateTime;

use super::{Fault, LogFormat, LogLine, LogTime, Parsed, Remote, Side, Stamp, digits, syslog};
use crate::model::Errno;

/// nginx's error log, all levels, with or without a syslog prefix.
#[derive(Clone, Copy, Debug)]
pub struct NginxError;

impl LogFormat for NginxError {
    fn is_immediate(&self) -> bool {
        true
    }

    fn parse(&self, line: &[u8]) -> Parsed {
        let raw = String::from_utf8_lossy(line);
        let Some(head) = Head::of(&raw).or_else(|| Head::of(syslog::strip(&raw)?.text)) else { return Parsed::Malformed };
        about(&head, &raw).map_or(Parsed::Other, |line| Parsed::About(Box::new(line)))
    }
}

/// What every line begins with.
struct Head<'a> {
    time: DateTime,
    level: &'a str,
    process: u32,
    connection: Option<u64>,
    text: &'a str,
}

impl<'a> Head<'a> {
    /// `2026/11/22 10:01:02 [error] 12#12: *3 text`
    fn of(line: &'a str) -> Option<Self> {
        const LEVELS: [&str; 8] = ["error", "info", "notice", "warn", "crit", "alert", "emerg", "debug"];
        let (time, rest) = line.split_at_checked(19)?;
        let (level, rest) = rest.strip_prefix(" [")?.split_once("] ")?;
        let (process, rest) = rest.split_once('#')?;
        let (thread, text) = rest.split_once(": ")?;
        if !LEVELS.contains(&level) || digits::<u64>(thread).is_none() {
            return None;
        }
        let (connection, text) = match text.strip_prefix('*').and_then(|text| text.split_once(' ')) {
            Some((number, rest)) => (Some(digits(number)?), rest),
            None => (None, text),
        };
        Some(Self { time: civil(time)?, level, process: digits(process)?, connection, text })
    }
}

/// `2026/11/22 10:01:02`
fn civil(text: &str) -> Option<DateTime> {
    let (date, time) = text.split_once(' ')?;
    let mut date = date.split('/').map(digits::<i16>);
    let mut time = time.split(':').map(digits::<i8>);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if date.next().is_some() || time.next().is_some() {
        return None;
    }
    DateTime::new(year, month.try_into().ok()?, day.try_into().ok()?, hour, minute, second, 0).ok()
}

/// What a message of nginx's tells of a connection.
#[derive(Clone, Copy)]
enum Told {
    /// One of these calls failed; without an errno it was no error of the connection.
    Failed(&'static [&'static str]),
    /// The other end has closed; with an errno one of these calls had it.
    Closed(&'static [&'static str]),
    TimedOut,
    NoConnection,
}

/// Whose connection a message is about.
#[derive(Clone, Copy)]
enum Whose {
    Client,
    Upstream,
    /// Both end, and either may be meant.
    Both,
    /// The message does not tell; the level does, or the phrase.
    Reader,
    Writer,
    TlsReader,
    TlsWriter,
    TlsBoth,
}

/// A message: how it begins and, behind a name or an address, how it ends.
struct Message(&'static str, Option<&'static str>, Told, Whose);

/// Proven on nginx 1.22; the functions are those that log it.
const MESSAGES: &[Message] = &[
    Message("recv() failed", None, Told::Failed(&["recvfrom"]), Whose::Reader),
    Message("readv() failed", None, Told::Failed(&["readv"]), Whose::Reader),
    Message("send() failed", None, Told::Failed(&["sendto"]), Whose::Writer),
    Message("writev() failed", None, Told::Failed(&["writev"]), Whose::Writer),
    Message("sendfile() failed", None, Told::Failed(&["sendfile"]), Whose::Writer),
    // ngx_http_upstream_test_connect() asks for SO_ERROR; connect() itself only starts.
    Message("connect() failed", None, Told::Failed(&["getsockopt", "connect"]), Whose::Upstream),
    // ngx_event_connect_peer(): connect() itself failed.
    Message("connect() to ", Some(" failed"), Told::Failed(&["connect"]), Whose::Upstream),
    Message("socket() failed", None, Told::NoConnection, Whose::Upstream),
    Message("bind(", Some(") failed"), Told::NoConnection, Whose::Upstream),
    Message("accept() failed", None, Told::NoConnection, Whose::Client),
    Message("accept4() failed", None, Told::NoConnection, Whose::Client),
    Message("SSL_read() failed", None, Told::Failed(&["read"]), Whose::TlsReader),
    Message("SSL_read_early_data() failed", None, Told::Failed(&["read"]), Whose::TlsReader),
    Message("SSL_write() failed", None, Told::Failed(&["write"]), Whose::TlsWriter),
    Message("SSL_write_early_data() failed", None, Told::Failed(&["write"]), Whose::TlsWriter),
    Message("SSL_sendfile() failed", None, Told::Failed(&["sendfile"]), Whose::Client),
    Message("SSL_shutdown() failed", None, Told::Failed(&["write", "read"]), Whose::TlsBoth),
    Message("SSL_do_handshake() failed", None, Told::Failed(&["read", "write"]), Whose::TlsBoth),
    // ngx_ssl_handshake(), where OpenSSL's error queue is empty.
    Message("peer closed connection in SSL handshake", None, Told::Closed(&["read", "write"]), Whose::TlsBoth),
    // ngx_http_test_reading() and ngx_http_upstream_check_broken_connection() do not read:
    // EPOLLRDHUP told them, and they take the errno by SO_ERROR.
    Message("client prematurely closed connection", None, Told::Closed(&["getsockopt"]), Whose::Client),
    Message(CLOSED_TOO, None, Told::Closed(&["getsockopt"]), Whose::Client),
    Message("epoll_wait() reported that client prematurely closed connection", None, Told::Closed(&["getsockopt"]), Whose::Client),
    Message(EPOLL_CLOSED_TOO, None, Told::Closed(&["getsockopt"]), Whose::Client),
    Message("client closed connection", None, Told::Closed(&[]), Whose::Client),
    // ngx_http_keepalive_handler(): its recv() takes ECONNRESET for an end of file and leaves the
    // errno for this line; so does OpenSSL's read(). Without an errno the end was in order.
    Message("client ", Some(" closed keepalive connection"), Told::Failed(&["recvfrom", "read"]), Whose::Client),
    Message("upstream prematurely closed connection", None, Told::Closed(&[]), Whose::Upstream),
    Message("upstream timed out", None, Told::TimedOut, Whose::Upstream),
    Message("client timed out", None, Told::TimedOut, Whose::Client),
    // The stream module: neither side has sent anything for proxy_timeout.
    Message("connection timed out", None, Told::TimedOut, Whose::Both),
    // The mail module.
    Message("auth http server ", Some(" timed out"), Told::TimedOut, Whose::Upstream),
];

const CLOSED_TOO: &str = "client prematurely closed connection, so upstream connection is closed too";
const EPOLL_CLOSED_TOO: &str = "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too";

impl Message {
    fn find(text: &str) -> Option<&'static Self> {
        MESSAGES.iter().find(|message| match message.1 {
            None => text == message.0,
            Some(_) => message.name_in(text).is_some(),
        })
    }

    /// The name or address within: nginx's own, without a space.
    fn name_in<'a>(&self, text: &'a str) -> Option<&'a str> {
        let name = text.strip_prefix(self.0)?.strip_suffix(self.1?)?;
        (!name.is_empty() && !name.contains(' ')).then_some(name)
    }
}

/// What stands between the head and the fields.
struct Sentence<'a> {
    message: &'a str,
    errno: Option<Errno>,
    phrase: Option<&'a str>,
    fields: &'a str,
}

impl<'a> Sentence<'a> {
    fn of(text: &'a str) -> Self {
        let (message, rest) = until(text, &[" (", " while ", CLIENT, UDP_CLIENT]);
        let (errno, rest) = errno_of(rest);
        let (phrase, fields) = match rest.strip_prefix(" while ") {
            Some(rest) => {
                let (phrase, fields) = until(rest, &[CLIENT, UDP_CLIENT]);
                (Some(phrase), fields)
            }
            None => (None, rest),
        };
        Self { message, errno, phrase, fields }
    }
}

const CLIENT: &str = ", client: ";
const UDP_CLIENT: &str = ", udp client: ";

/// The text before the first of these, and from it on.
fn until<'a>(text: &'a str, ends: &[&str]) -> (&'a str, &'a str) {
    let end = ends.iter().filter_map(|end| text.find(end)).min().unwrap_or(text.len());
    text.split_at(end)
}

/// Takes ` (SSL: error:...)` and ` (104: Connection reset by peer)` off.
fn errno_of(text: &str) -> (Option<Errno>, &str) {
    // OpenSSL's words may hold parentheses of their own.
    let is_end = |rest: &str| rest.is_empty() || [" (", " while ", ", "].iter().any(|next| rest.starts_with(next));
    let after_ssl = |ssl: &'_ str| ssl.match_indices(')').map(|(at, _)| at + 1).find(|end| is_end(&ssl[*end..]));
    let rest = match text.strip_prefix(" (SSL: ") {
        Some(ssl) => &ssl[after_ssl(ssl).unwrap_or(ssl.len())..],
        None => text,
    };
    let errno = rest.strip_prefix(" (").and_then(|error| {
        let (number, error) = error.split_once(": ")?;
        let number = digits(number).filter(|number| (1..=4095).contains(number))?;
        Some((Errno(number), error.split_once(')')?.1))
    });
    match errno {
        Some((errno, rest)) => (Some(errno), rest),
        None => (None, rest),
    }
}

fn about(head: &Head<'_>, raw: &str) -> Option<LogLine> {
    let sentence = Sentence::of(head.text);
    let message = Message::find(sentence.message)?;
    // What nginx does for itself (its resolver, syslog) has no number of a connection.
    let is_own = matches!((message.2, message.3), (Told::NoConnection, Whose::Upstream)) && head.connection.is_none();
    if is_own || sentence.fields.starts_with(UDP_CLIENT) {
        return None;
    }
    let fields = Fields::of(sentence.fields, sentence.phrase);
    let client = fields.client.map(remote);
    if matches!(client, Some(Remote::Name(_))) {
        // Not nginx's doing: it names files as they are, line ends included, so that a client can begin
        // a line. See docs/logs.md.
        return None;
    }
    let side = side(message.3, head.level, &sentence, &fields);
    let fault = fault(message, &sentence)?;
    // A failed bind() names our own address.
    let named = message.name_in(sentence.message).filter(|_| message.0 != "bind(").map(remote);
    let upstream = fields.upstream.map(upstream_of);
    let (client, upstream) = match message.3 {
        Whose::Client => (client.or(named), upstream),
        Whose::Upstream => (client, upstream.or(named)),
        _ => (client, upstream),
    };
    Some(LogLine {
        time: LogTime { stamp: Stamp::Civil(head.time), precision: Duration::from_secs(1) },
        fault,
        side,
        process: Some(head.process),
        connection: head.connection,
        client,
        upstream,
        request: fields.request.map(str::to_owned),
        upstream_text: fields.upstream.map(str::to_owned),
        host: fields.host.map(str::to_owned),
        phrase: sentence.phrase.map(str::to_owned),
        unanswered: sentence.phrase.and_then(unanswered),
        raw: raw.to_owned(),
    })
}

/// How far nginx had come with a request (`c->log->action`).
fn unanswered(phrase: &str) -> Option<bool> {
    match phrase {
        "connecting to upstream" | "sending request to upstream" | "reading response header from upstream" => Some(true),
        "reading upstream" | "sending response to client" | "sending to client" => Some(false),
        _ if phrase.starts_with("reading client ") => Some(true),
        _ => None,
    }
}

/// `None`: the line is not about an end after all.
fn fault(message: &Message, sentence: &Sentence<'_>) -> Option<Fault> {
    /// The kernel found no way before it began to connect, or no port was left.
    const NEVER_BEGAN: [i32; 3] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EADDRNOTAVAIL];
    match message.2 {
        // A client that came, said nothing, and left.
        Told::Closed(_) if sentence.phrase == Some("waiting for request") && sentence.errno.is_none() => None,
        Told::Failed(["connect"]) if sentence.errno.is_some_and(|errno| NEVER_BEGAN.contains(&errno.0)) => Some(Fault::NoConnection),
        Told::Failed(calls) => Some(Fault::Error { errno: sentence.errno?, calls }),
        Told::Closed(calls) => Some(sentence.errno.map_or(Fault::EndOfFile, |errno| Fault::Error { errno, calls })),
        Told::TimedOut => Some(Fault::TimedOut),
        Told::NoConnection => Some(Fault::NoConnection),
    }
}

/// The connection that a line is about.
fn side(whose: Whose, level: &str, sentence: &Sentence<'_>, fields: &Fields<'_>) -> Option<Side> {
    match (whose, level) {
        (Whose::Client, _) => Some(Side::Client),
        (Whose::Upstream, _) => Some(Side::Upstream),
        (Whose::Both, _) => None,
        // ngx_connection_error(): a client's errors are logged as [info] (`c->log_error`), an upstream's
        // as [error], unless nginx does not expect this errno at all.
        (_, "info") => Some(Side::Client),
        (_, "error") => Some(Side::Upstream),
        _ => side_by_phrase(whose, sentence.phrase.unwrap_or_default(), fields),
    }
}

/// nginx's pipe reads one side and writes the other under one phrase, so that the kind of the call
/// decides: what a proxy reads while it relays a response is the upstream's, what it writes is the
/// client's.
fn side_by_phrase(whose: Whose, phrase: &str, fields: &Fields<'_>) -> Option<Side> {
    match phrase {
        "proxying and reading from client" | "proxying and sending to client" => return Some(Side::Client),
        "connecting to upstream" | "SSL handshaking to upstream" | "in http auth state" => return Some(Side::Upstream),
        "proxying and reading from upstream" | "proxying and sending to upstream" => return Some(Side::Upstream),
        // Both ways under one phrase: streams, mail, WebSocket.
        "proxying connection" | "proxying" | "proxying upgraded connection" => return None,
        _ => {}
    }
    let upstream_has_tls = fields.upstream.is_some_and(has_tls);
    let is_upstream = match whose {
        Whose::TlsReader | Whose::TlsWriter if !upstream_has_tls => false,
        Whose::TlsBoth => upstream_has_tls && phrase.contains("upstream"),
        // With proxy_request_buffering off the client's body is read under this phrase.
        Whose::Reader | Whose::TlsReader if phrase == "sending request to upstream" => false,
        Whose::Reader | Whose::TlsReader => phrase.contains("upstream") || phrase == "sending to client" && fields.upstream.is_some(),
        _ => phrase.starts_with("sending ") && phrase.ends_with(" to upstream"),
    };
    Some(if is_upstream { Side::Upstream } else { Side::Client })
}

fn has_tls(upstream: &str) -> bool {
    ["https://", "grpcs://", "suwsgi://"].iter().any(|scheme| upstream.starts_with(scheme))
}

/// The fields behind the sentence, as far as they can be told apart.
#[derive(Default)]
struct Fields<'a> {
    client: Option<&'a str>,
    request: Option<&'a str>,
    upstream: Option<&'a str>,
    host: Option<&'a str>,
}

const REQUEST: &str = ", request: \"";
const SUBREQUEST: &str = ", subrequest: \"";
const UPSTREAM: &str = ", upstream: \"";
const HOST: &str = ", host: \"";
const REFERRER: &str = ", referrer: \"";
/// The stream module's last fields.
const BYTES: &str = ", bytes from/to client:";
const AFTER_UPSTREAM: &[&str] = &[HOST, REFERRER, BYTES];
/// The mail module's; the upstream that may follow has no quotes.
const LOGIN: &str = ", login: \"";
const MAIL_UPSTREAM: &str = ", upstream: ";

impl<'a> Fields<'a> {
    fn of(text: &'a str, phrase: Option<&str>) -> Self {
        let Some(text) = text.strip_prefix(CLIENT) else { return Self::default() };
        let (client, rest) = until(text, &[","]);
        let client = client.strip_suffix(" using starttls").unwrap_or(client);
        // The server's name is the administrator's.
        let (_, rest) = until(rest, &[REQUEST, UPSTREAM, LOGIN, BYTES]);
        let mut fields = Self { client: Some(client), ..Self::default() };
        if rest.starts_with(LOGIN) {
            // Were there no upstream, a login that looks like one would end with its quote.
            let address = rest.rsplit_once(MAIL_UPSTREAM).map(|(_, address)| address);
            fields.upstream = address.filter(|address| address.parse::<SocketAddr>().is_ok());
        } else if phrase.is_some_and(|phrase| phrase.ends_with("request line")) {
            // nginx may have refused it: then it is anything at all, fields included, and the last.
            fields.request = rest.strip_prefix(REQUEST).map(|text| &text[..unclosed(text)]);
        } else {
            fields.read_http(rest);
        }
        fields
    }

    fn read_http(&mut self, mut rest: &'a str) {
        if let Some(text) = rest.strip_prefix(REQUEST) {
            let end = request_end(text);
            self.request = Some(&text[..end.unwrap_or(unclosed(text))]);
            rest = end.map_or("", |end| &text[end + 1..]);
        }
        if let Some(text) = rest.strip_prefix(SUBREQUEST) {
            rest = after_quote(text, &[UPSTREAM, HOST, REFERRER]).1;
        }
        if let Some(text) = rest.strip_prefix(UPSTREAM) {
            let (upstream, after) = match self.request.and_then(|request| unchanged_uri_end(text, request)) {
                Some(end) => (&text[..end], &text[end + 1..]),
                None => after_quote(text, AFTER_UPSTREAM),
            };
            self.upstream = Some(upstream);
            rest = after;
        }
        if let Some(text) = rest.strip_prefix(HOST) {
            self.host = Some(after_quote(text, &[REFERRER]).0);
        }
    }
}

/// Where the quote behind a request line stands: ` HTTP/1.1"` is in no request that nginx accepts but
/// at its end. Not found: the line was refused, or cut off at nginx's 2,048 bytes.
fn request_end(text: &str) -> Option<usize> {
    const VERSION: &str = " HTTP/";
    text.match_indices(VERSION).find_map(|(at, _)| {
        let version = &text[at + VERSION.len()..];
        let length = version.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let rest = version[length..].strip_prefix('"')?;
        (length > 0 && (rest.is_empty() || rest.starts_with(", "))).then_some(at + VERSION.len() + length)
    })
}

/// Where the quote behind an upstream stands if its URI is the request's, whatever that holds.
fn unchanged_uri_end(upstream: &str, request: &str) -> Option<usize> {
    let uri = request.split_once(' ')?.1.rsplit_once(" HTTP/")?.0;
    let authority = upstream.find("://")? + 3;
    let start = authority + upstream[authority..].find('/')?;
    let rest = upstream[start..].strip_prefix(uri)?.strip_prefix('"')?;
    is_field(rest, AFTER_UPSTREAM).then_some(start + uri.len())
}

/// A value up to the first quote behind which one of these fields follows, or nothing; and the rest.
fn after_quote<'a>(text: &'a str, next: &[&str]) -> (&'a str, &'a str) {
    match text.match_indices('"').find(|(at, _)| is_field(&text[at + 1..], next)) {
        Some((at, _)) => (&text[..at], &text[at + 1..]),
        None => (&text[..unclosed(text)], ""),
    }
}

/// Whether a value may end before this: at one of these fields, or at the end of the line.
fn is_field(rest: &str, fields: &[&str]) -> bool {
    rest.is_empty() || fields.iter().any(|field| rest.starts_with(field))
}

/// Length of a value that goes to the end of the line.
fn unclosed(text: &str) -> usize {
    text.strip_suffix('"').unwrap_or(text).len()
}

/// `http://127.0.0.1:9000/a`, `fastcgi://unix:/run/php.sock:`, `[::1]:53`
fn upstream_of(text: &str) -> Remote {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    if let Some(path) = rest.strip_prefix("unix:") {
        return Remote::Unix(until(path, &[":"]).0.to_owned());
    }
    remote(until(rest, &["/", "?"]).0)
}

/// `127.0.0.1`, `::1`, `127.0.0.1:80`, `[::1]:80`, `unix:` or a name.
fn remote(text: &str) -> Remote {
    if let Some(path) = text.strip_prefix("unix:") {
        return Remote::Unix(path.to_owned());
    }
    Remote::of_address(text).unwrap_or_else(|| Remote::Name(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "2026/11/22 10:01:02 [error] 12#13: *3 ";
    const HTTP: &str = ", client: 127.0.0.1, server: , request: \"GET /a HTTP/1.1\", upstream: \"http://127.0.0.1:9000/a\", host: \"x\"";

    fn about(text: &str) -> LogLine {
        match NginxError.parse(format!("{HEAD}{text}").as_bytes()) {
            Parsed::About(line) => *line,
            other => panic!("{other:?}: {text}"),
        }
    }

    fn is_other(text: &str) -> bool {
        NginxError.parse(format!("{HEAD}{text}").as_bytes()) == Parsed::Other
    }

    fn error(errno: i32, calls: &'static [&'static str]) -> Fault {
        Fault::Error { errno: Errno(errno), calls }
    }

    #[test]
    fn a_line_is_taken_apart_to_its_last_field() {
        let line = about(
            "recv() failed (104: Connection reset by peer) while reading response header from upstream, \
             client: 10.0.0.1, server: a.example, request: \"GET /a HTTP/1.1\", subrequest: \"/auth\", \
             upstream: \"http://[::1]:9000/a\", host: \"x\", referrer: \"http://y/\"",
        );
        assert_eq!((line.fault, line.side), (error(104, &["recvfrom"]), Some(Side::Upstream)));
        assert_eq!((line.process, line.connection), (Some(12), Some(3)));
        assert_eq!(line.time.stamp, Stamp::Civil("2026-11-22T10:01:02".parse().expect("a time")));
        assert_eq!((line.client, line.upstream), (Remote::of_address("10.0.0.1"), Remote::of_address("[::1]:9000")));
        assert_eq!(line.upstream_text.as_deref(), Some("http://[::1]:9000/a"));
        assert_eq!((line.request.as_deref(), line.host.as_deref()), (Some("GET /a HTTP/1.1"), Some("x")));
        assert_eq!(line.phrase.as_deref(), Some("reading response header from upstream"));
    }

    #[test]
    fn a_syslog_prefix_is_no_obstacle() {
        let line = format!(
            "<187>Nov 22 10:01:02 host nginx: {HEAD}upstream timed out (110: Connection timed out) while connecting to upstream{HTTP}"
        );
        let Parsed::About(line) = NginxError.parse(line.as_bytes()) else { panic!("{line}") };
        assert_eq!((line.fault, line.side, line.process), (Fault::TimedOut, Some(Side::Upstream), Some(12)));
    }

    #[test]
    fn the_level_tells_the_side_whatever_the_phrase() {
        let text = format!("recv() failed (104: x) while proxying upgraded connection{HTTP}");
        for (level, side) in [("info", Some(Side::Client)), ("error", Some(Side::Upstream)), ("alert", None)] {
            assert_eq!(about(&text).side, Some(Side::Upstream));
            let line = format!("{}{text}", HEAD.replace("error", level));
            let Parsed::About(line) = NginxError.parse(line.as_bytes()) else { panic!("{line}") };
            assert_eq!(line.side, side, "{level}");
        }
        assert_eq!(about(&format!("connection timed out (110: x) while proxying connection{HTTP}")).side, None);
    }

    #[test]
    fn where_the_level_does_not_tell_the_call_and_the_phrase_do() {
        let (client, upstream) = (Some(Side::Client), Some(Side::Upstream));
        let plain = HTTP;
        let tls = &HTTP.replace("http:", "https:");
        let no_upstream = ", client: 127.0.0.1, server: 0.0.0.0:80";
        for (message, phrase, fields, expected) in [
            ("recv() failed", "reading response header from upstream", plain, upstream),
            ("readv() failed", "reading upstream", plain, upstream),
            ("readv() failed", "sending to client", plain, upstream),
            ("writev() failed", "reading upstream", plain, client),
            ("sendfile() failed", "sending to client", plain, client),
            ("writev() failed", "sending request to upstream", plain, upstream),
            ("recv() failed", "sending request to upstream", plain, client),
            ("recv() failed", "reading client request body", plain, client),
            ("recv() failed", "waiting for request", no_upstream, client),
            ("recv() failed", "sending to client", no_upstream, client),
            ("connect() failed", "connecting to upstream", plain, upstream),
            ("SSL_read() failed", "reading upstream", plain, client),
            ("SSL_read() failed", "reading upstream", tls, upstream),
            ("SSL_write() failed", "reading upstream", tls, client),
            ("SSL_write() failed", "sending request to upstream", tls, upstream),
            ("SSL_do_handshake() failed", "SSL handshaking", no_upstream, client),
            ("SSL_do_handshake() failed", "SSL handshaking to upstream", tls, upstream),
            ("peer closed connection in SSL handshake", "SSL handshaking", no_upstream, client),
            ("client prematurely closed connection", "sending request to upstream", plain, client),
            ("recv() failed", "proxying upgraded connection", plain, None),
            ("upstream timed out", "proxying upgraded connection", plain, upstream),
            ("recv() failed", "proxying connection", no_upstream, None),
            ("recv() failed", "proxying and reading from client", no_upstream, client),
            ("send() failed", "proxying and sending to upstream", no_upstream, upstream),
            ("recv() failed", "in http auth state", no_upstream, upstream),
            ("recv() failed", "in auth state", no_upstream, client),
        ] {
            let head = HEAD.replace("error", "alert");
            let line = format!("{head}{message} (103: Software caused connection abort) while {phrase}{fields}");
            let Parsed::About(line) = NginxError.parse(line.as_bytes()) else { panic!("{line}") };
            assert_eq!(line.side, expected, "{message} while {phrase}{fields}");
        }
    }

    #[test]
    fn an_errno_is_the_kernels_or_a_timer_of_nginxs_own() {
        let fault = |text: &str| about(&format!("{text} while reading upstream{HTTP}")).fault;
        assert_eq!(fault("recv() failed (110: Connection timed out)"), error(110, &["recvfrom"]));
        assert_eq!(fault("upstream timed out (110: Connection timed out)"), Fault::TimedOut);
        assert_eq!(fault("client timed out (110: Connection timed out)"), Fault::TimedOut);
        assert_eq!(fault("upstream prematurely closed connection"), Fault::EndOfFile);
        assert_eq!(fault("client prematurely closed connection"), Fault::EndOfFile);
        assert_eq!(
            fault(
                "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too (104: Connection reset by peer)"
            ),
            error(104, &["getsockopt"])
        );
        assert_eq!(fault("SSL_write() failed (SSL: error:00000000:lib(0)::x while y) (32: Broken pipe)"), error(32, &["write"]));
        assert_eq!(fault("connect() failed (111: Connection refused)"), error(111, &["getsockopt", "connect"]));
        assert_eq!(fault("connect() to 10.0.0.1:80 failed (101: Network is unreachable)"), Fault::NoConnection);
    }

    #[test]
    fn an_address_within_the_message_is_taken_where_no_field_has_it() {
        let line = about("client 127.0.0.1 closed keepalive connection (104: Connection reset by peer)");
        assert_eq!((line.client, line.side), (Remote::of_address("127.0.0.1"), Some(Side::Client)));
        assert_eq!(line.fault, error(104, &["recvfrom", "read"]));
        assert!(is_other("client 127.0.0.1 closed keepalive connection"));
        let line =
            about("connect() to [::1]:80 failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1, server: ");
        assert_eq!(line.upstream, Remote::of_address("[::1]:80"));
    }

    #[test]
    fn a_failed_accept_or_socket_has_no_connection() {
        let line = "2026/11/22 10:01:02 [crit] 12#12: accept4() failed (24: Too many open files)";
        let Parsed::About(line) = NginxError.parse(line.as_bytes()) else { panic!("{line}") };
        assert_eq!((line.fault, line.side, line.connection), (Fault::NoConnection, Some(Side::Client), None));
        let text = "socket() failed (24: Too many open files) while connecting to upstream, client: 127.0.0.1, server: ";
        assert_eq!(about(text).fault, Fault::NoConnection);
        let text = "2026/11/22 10:01:02 [alert] 12#12: socket() failed (24: Too many open files)";
        assert_eq!(NginxError.parse(text.as_bytes()), Parsed::Other);
    }

    #[test]
    fn upstreams_are_addresses_paths_or_names() {
        for (upstream, remote) in [
            ("http://127.0.0.1:9000/a", Remote::of_address("127.0.0.1:9000")),
            ("https://[::1]:9000?x", Remote::of_address("[::1]:9000")),
            ("fastcgi://127.0.0.1:9000", Remote::of_address("127.0.0.1:9000")),
            ("fastcgi://unix:/run/php.sock:", Some(Remote::Unix("/run/php.sock".into()))),
            ("http://unix:/run/app.sock:/a", Some(Remote::Unix("/run/app.sock".into()))),
            ("http://backend/a", Some(Remote::Name("backend".into()))),
        ] {
            let line =
                about(&format!("recv() failed (104: x) while reading upstream{}", HTTP.replace("http://127.0.0.1:9000/a", upstream)));
            assert_eq!((line.upstream, line.upstream_text.as_deref()), (remote, Some(upstream)));
        }
        let line = about(
            "recv() failed (104: x) while proxying connection, client: ::1, server: 0.0.0.0:1, upstream: \"[::1]:53\", bytes from/to client:0/0, bytes from/to upstream:0/0",
        );
        assert_eq!((line.client, line.upstream), (Remote::of_address("::1"), Remote::of_address("[::1]:53")));
    }

    #[test]
    fn mail_names_its_upstream_without_quotes() {
        let text = |login: &str, upstream: &str| {
            format!(
                "recv() failed (104: x) while in auth state, client: 127.0.0.1 using starttls, server: 0.0.0.0:25, login: \"{login}\"{upstream}"
            )
        };
        let line = about(&text("me", ", upstream: 127.0.0.1:25"));
        assert_eq!((line.client, line.upstream), (Remote::of_address("127.0.0.1"), Remote::of_address("127.0.0.1:25")));
        assert_eq!(about(&text("x\", upstream: 6.6.6.6:25", "")).upstream, None);
    }

    #[test]
    fn what_a_client_sends_cannot_forge_a_field() {
        const READING: &str =
            "recv() failed (104: Connection reset by peer) while reading response header from upstream, client: 127.0.0.1, server: ";
        let forged = "\", upstream: \"http://6.6.6.6:1/\", host: \"forged";
        let uri = format!("/a{}", forged.replace(' ', "+"));
        // Old versions of nginx let a URI have spaces.
        for uri in [uri, format!("/a{forged}"), "/a, host: \"forged\"".into()] {
            let line = about(&format!("{READING}, request: \"GET {uri} HTTP/1.1\", upstream: \"http://127.0.0.1:9{uri}\", host: \"x\""));
            assert_eq!(line.request, Some(format!("GET {uri} HTTP/1.1")));
            assert_eq!((line.upstream, line.host.as_deref()), (Remote::of_address("127.0.0.1:9"), Some("x")));
            assert_eq!(line.upstream_text, Some(format!("http://127.0.0.1:9{uri}")));
        }
        let line = about(&format!(
            "{READING}, request: \"GET / HTTP/1.1\", upstream: \"http://127.0.0.1:9/\", host: \"x\", referrer: \"{forged}\""
        ));
        assert_eq!((line.upstream, line.host.as_deref()), (Remote::of_address("127.0.0.1:9"), Some("x")));
        // A line that nginx refused, and one that it cut off.
        for what in ["client request line", "client pipelined request line"] {
            let refused = READING.replace("response header from upstream", what);
            let line = about(&format!("{refused}, request: \"GET / HTTP/1.1{forged}\""));
            assert_eq!((line.upstream, line.host), (None, None));
        }
        let line = about(&format!("{READING}, request: \"GET /{forged}"));
        assert_eq!((line.request, line.upstream), (Some(format!("GET /{forged}")), None));
    }

    #[test]
    fn good_lines_about_something_else_are_other_and_the_rest_is_malformed() {
        for text in [
            "no live upstreams while connecting to upstream, client: 127.0.0.1",
            "SSL_do_handshake() failed (SSL: error:0A000126:SSL routines::unexpected eof while reading) while SSL handshaking, client: 127.0.0.1, server: 0.0.0.0:443",
            "open() \"/recv() failed (104: Connection reset by peer), client: 1.2.3.4\" failed (2: No such file or directory), client: 127.0.0.1",
            "recv() failed (104: x) while proxying connection, udp client: 127.0.0.1, server: 0.0.0.0:53",
            "bind() to 127.0.0.1:80 failed (98: Address already in use)",
            "client closed connection while waiting for request, client: 127.0.0.1, server: 0.0.0.0:80",
            "upstream disconnected, bytes from/to client:1/2, bytes from/to upstream:2/1",
            "",
        ] {
            assert!(is_other(text), "{text}");
        }
        for text in [
            "",
            "x",
            "2026/11/22 10:01:02",
            "2026/11/32 10:01:02 [error] 1#1: x",
            "2026/11/22 10:01:02 [loud] 1#1: x",
            "2026/11/22 10:01:02 [error] a#1: x",
            "2026/11/22 10:01:02 [error] 1#1: *a x",
            "2026/11/2\u{e9} 10:01:02 [error] 1#1: x",
        ] {
            assert_eq!(NginxError.parse(text.as_bytes()), Parsed::Malformed, "{text}");
        }
    }
}
