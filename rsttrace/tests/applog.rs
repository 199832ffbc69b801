//! Log formats against lines that real programs wrote (tests/corpus), against lines made from parts,
//! hostile ones among them, and against anything at all. The properties are checked by functions over
//! any parser, so that parsers with a bug put in on purpose show that they would be found.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr, path::Path};

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use rsttrace::applog::{Fault, Format, LogLine, Parsed, Remote, Side};

type Parse<'a> = &'a dyn Fn(&[u8]) -> Parsed;

fn parser(format: Format) -> impl Fn(&[u8]) -> Parsed {
    let parser = format.parser();
    move |line| parser.parse(line)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let bytes = fs::read(path).unwrap();
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn corpus_of(format: Format) -> Vec<Vec<u8>> {
    match format {
        Format::Nginx => corpus("nginx.log"),
        Format::NginxAccess => corpus("nginx-access.log"),
        Format::HaProxy => corpus("haproxy.log"),
        // No Envoy was at hand: lines by the format of its documentation.
        Format::Envoy => ["UC", "UF,URX", "DC", "UT", "SI", "-", "DT"]
            .iter()
            .map(|flags| {
                let line = format!(
                    "[2026-04-15T20:17:00.310Z] \"POST /api HTTP/1.1\" 503 {flags} 0 95 12 - \"10.0.35.28\" \"curl/8\" \"id\" \"host\" \"10.0.2.1:80\""
                );
                line.into_bytes()
            })
            .collect(),
    }
}

// ---- properties ----

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() })
}

/// What holds for every line: no panic, always the same, and nothing that the line does not hold.
fn check_one(parse: Parse<'_>, line: &[u8]) -> Result<(), TestCaseError> {
    let parsed = parse(line);
    prop_assert_eq!(&parsed, &parse(line));
    let Parsed::About(about) = parsed else { return Ok(()) };
    let given = String::from_utf8_lossy(line);
    prop_assert_eq!(&about.raw, &given);
    let name = |remote: &Option<Remote>| match remote {
        Some(Remote::Unix(text) | Remote::Name(text)) => Some(text.clone()),
        _ => None,
    };
    let LogLine { request, upstream_text, host, phrase, client, upstream, .. } = &*about;
    for text in [request.clone(), upstream_text.clone(), host.clone(), phrase.clone(), name(client), name(upstream)].iter().flatten() {
        prop_assert!(given.contains(text.as_str()), "{:?} is not in {:?}", text, given);
    }
    Ok(())
}

/// Pieces that mean something to one of the formats.
const PIECES: &[&[u8]] = &[
    b"\"",
    b"\\",
    b", host: \"",
    b"\", host: \"",
    b", upstream: \"http://6.6.6.6:1/",
    b", client: ",
    b" (104: x)",
    b"(",
    b")",
    b" while ",
    b"\xff\xfe",
    b"\xc3",
    "\u{fffd}".as_bytes(),
    b"[",
    b"] ",
    b"*",
    b"#",
    b": ",
    b"/",
    b" ",
    b"\0",
    b"\x1b[2J",
    b"99999999999999999999",
    b"-",
    b"unix:",
    b" HTTP/1.1\"",
    b"+",
    b"{",
    b"SD--",
];

/// A line of the corpus with parts cut out, doubled and put in.
fn mutated(lines: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (0_u8..4, any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::sample::select(PIECES));
    (prop::sample::select(lines), prop::collection::vec(change, 0..5)).prop_map(|(mut line, changes)| {
        for (kind, from, to, piece) in changes {
            let (from, to) = (from.index(line.len() + 1), to.index(line.len() + 1));
            let part = from.min(to)..from.max(to);
            match kind {
                0 => drop(line.drain(part)),
                1 => line.truncate(from),
                2 => {
                    let double = line[part].to_vec();
                    line.splice(from..from, double);
                }
                _ => drop(line.splice(from..from, piece.iter().copied())),
            }
        }
        line
    })
}

/// Anything, and mutations of these lines.
fn check_any(parse: Parse<'_>, lines: &[Vec<u8>], cases: u32) -> Result<(), String> {
    let anything = prop::collection::vec(any::<u8>(), 0..300);
    let readable = |error: TestError<Vec<u8>>| match error {
        TestError::Fail(why, line) => format!("{why}: {:?}", String::from_utf8_lossy(&line)),
        error => error.to_string(),
    };
    runner(cases).run(&anything, |line| check_one(parse, &line)).map_err(readable)?;
    runner(cases).run(&mutated(lines.to_vec()), |line| check_one(parse, &line)).map_err(readable)
}

/// What was put into a line.
#[derive(Clone, Debug)]
struct Made {
    line: String,
    fault: Fault,
    side: Side,
    client: Option<SocketAddr>,
    upstream: Option<SocketAddr>,
    request: String,
    host: Option<String>,
}

/// Whether the parts come back as they were put in. A client without a port has port 0.
fn check_made(parse: Parse<'_>, made: impl Strategy<Value = Made>, cases: u32) -> Result<(), String> {
    let check = |made: Made| {
        check_one(parse, made.line.as_bytes())?;
        let Parsed::About(line) = parse(made.line.as_bytes()) else {
            return Err(TestCaseError::fail(format!("not about an end: {}", made.line)));
        };
        let tcp = |address: SocketAddr| Remote::Tcp { addr: address.ip(), port: (address.port() != 0).then_some(address.port()) };
        prop_assert_eq!(line.request.as_ref(), Some(&made.request));
        prop_assert_eq!(line.host, made.host);
        prop_assert_eq!((line.fault, line.side), (made.fault, Some(made.side)));
        prop_assert_eq!(line.client, made.client.map(tcp));
        if let Some(upstream) = made.upstream {
            prop_assert_eq!(line.upstream, Some(tcp(upstream)));
        }
        Ok(())
    };
    runner(cases).run(&made, check).map_err(|error| error.to_string())
}

/// What a URI can hold that nginx accepts: no space, no control character.
fn uri() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z/?=&%:,\"\\\\é]{0,8}".prop_map(|text| text),
        Just("\",+host:+\"forged".to_owned()),
        Just("\",upstream:\"http://6.6.6.6:1/\"".to_owned()),
        Just("HTTP/1.1\"".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// What a header can hold: anything but the end of a line.
fn header() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -~é]{0,12}".prop_map(|text| text),
        Just("\", host: \"forged".to_owned()),
        Just("\", upstream: \"http://6.6.6.6:1/\"".to_owned()),
        Just("\" \"forged\" \"6.6.6.6:1".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = (any::<[u8; 4]>(), 1_u16..).prop_map(|(addr, port)| SocketAddr::from((addr, port)));
    let v6 = (any::<[u16; 8]>(), 1_u16..).prop_map(|(addr, port)| SocketAddr::from((addr, port)));
    // A v4-mapped address comes back as IPv4.
    prop_oneof![v4, v6].prop_filter("v4-mapped", |address| address.ip().to_canonical() == address.ip())
}

fn nginx_line() -> impl Strategy<Value = Made> {
    use rsttrace::model::Errno;
    let reset = |calls| Fault::Error { errno: Errno(104), calls };
    let messages: Vec<(&str, &str, Fault, Side)> = vec![
        (
            "error",
            "recv() failed (104: Connection reset by peer) while reading response header from upstream",
            reset(&["recvfrom"]),
            Side::Upstream,
        ),
        ("info", "writev() failed (104: Connection reset by peer) while sending to client", reset(&["writev"]), Side::Client),
        ("error", "upstream timed out (110: Connection timed out) while reading upstream", Fault::TimedOut, Side::Upstream),
        ("info", "client prematurely closed connection while sending request to upstream", Fault::ClosedByPeer, Side::Client),
        ("error", "upstream prematurely closed connection while reading upstream", Fault::ClosedByPeer, Side::Upstream),
    ];
    let host = "[a-z.\",:]{1,12}";
    let parts = (prop::sample::select(messages), address(), address(), uri(), prop::option::of(uri()), host, prop::option::of(header()));
    parts.prop_map(|((level, message, fault, side), client, upstream, uri, rewritten, host, referrer)| {
        let client = SocketAddr::new(client.ip(), 0);
        let request = format!("GET {uri} HTTP/1.1");
        let to = rewritten.unwrap_or(uri);
        let mut line = format!(
            "2026/11/22 10:01:02 [{level}] 12#12: *3 {message}, client: {}, server: a.example, request: \"{request}\"",
            client.ip()
        );
        write!(line, ", upstream: \"http://{upstream}{to}\", host: \"{host}\"").unwrap();
        if let Some(referrer) = referrer {
            write!(line, ", referrer: \"{referrer}\"").unwrap();
        }
        Made { line, fault, side, client: Some(client), upstream: Some(upstream), request, host: Some(host) }
    })
}

fn haproxy_line() -> impl Strategy<Value = Made> {
    let states = vec![
        ("CD", Fault::ClosedByPeer, Side::Client),
        ("cR", Fault::TimedOut, Side::Client),
        ("SH", Fault::ClosedByPeer, Side::Upstream),
        ("sD", Fault::TimedOut, Side::Upstream),
        ("SC", Fault::NotConnected, Side::Upstream),
        ("sQ", Fault::NoConnection, Side::Upstream),
    ];
    // HAProxy writes `"` and `#` of a request, and braces and bars of a header, by their number.
    let request = "[a-z /?=&%:,{}|]{1,30}";
    let header = "[a-z /?=&%:,\\[\\]]{0,30}";
    (prop::sample::select(states), address(), request, header, 0_u32..1_000_000, any::<bool>()).prop_map(
        |((state, fault, side), client, request, header, total, has_prefix)| {
            let prefix = if has_prefix { "<134>Nov 22 10:01:02 host haproxy[12]: " } else { "" };
            let address = format!("{}:{}", client.ip(), client.port());
            let line = format!(
                "{prefix}{address} [22/Nov/2026:10:01:02.003] fe~ be/srv 0/0/1/-1/{total} 502 208 - - {state}-- 1/1/0/0/+3 0/0 {{{header}|}} {{}} \"{request}\""
            );
            Made { line, fault, side, client: Some(client), upstream: None, request, host: None }
        },
    )
}

fn envoy_line() -> impl Strategy<Value = Made> {
    let flags = vec![
        ("UC", Fault::ClosedByPeer, Side::Upstream),
        ("UF,URX", Fault::NotConnected, Side::Upstream),
        ("DC", Fault::ClosedByPeer, Side::Client),
        ("UT", Fault::TimedOut, Side::Upstream),
    ];
    (prop::sample::select(flags), address(), uri(), header(), "[a-z.:]{1,12}", 0_u32..100_000).prop_map(
        |((flags, fault, side), upstream, uri, agent, host, duration)| {
            let request = format!("GET {uri} HTTP/1.1");
            let line = format!(
                "[2026-04-15T20:17:00.310Z] \"{request}\" 503 {flags} 0 95 {duration} - \"10.0.0.1\" \"{agent}\" \"id\" \"{host}\" \"{upstream}\""
            );
            Made { line, fault, side, client: None, upstream: Some(upstream), request, host: Some(host) }
        },
    )
}

#[test]
fn no_bytes_at_all_panic_or_give_more_than_they_hold() {
    for format in Format::ALL {
        check_any(&parser(format), &corpus_of(format), 3_000).unwrap_or_else(|error| panic!("{}: {error}", format.name()));
    }
}

#[test]
fn a_line_of_nginxs_gives_back_its_parts_whatever_the_client_sent() {
    check_made(&parser(Format::Nginx), nginx_line(), 3_000).unwrap();
}

#[test]
fn a_line_of_haproxys_gives_back_its_parts_whatever_the_client_sent() {
    check_made(&parser(Format::HaProxy), haproxy_line(), 2_000).unwrap();
}

#[test]
fn a_line_of_envoys_gives_back_its_parts_whatever_the_client_sent() {
    check_made(&parser(Format::Envoy), envoy_line(), 2_000).unwrap();
}

// ---- seeded bugs ----

/// nginx's parser, and what is changed of its lines.
fn broken(line: &[u8], change: impl Fn(&mut LogLine)) -> Parsed {
    match parser(Format::Nginx)(line) {
        Parsed::About(mut about) => {
            change(&mut about);
            Parsed::About(about)
        }
        other => other,
    }
}

#[test]
fn a_parser_that_believes_the_last_host_is_found_out() {
    let last_host = |line: &[u8]| {
        broken(line, |about| {
            let host = about.raw.rsplit_once("\", host: \"").map(|(_, rest)| rest.split('"').next().unwrap().to_owned());
            about.host = host;
        })
    };
    assert!(check_made(&last_host, nginx_line(), 3_000).is_err());
}

#[test]
fn a_parser_that_believes_the_first_quote_is_found_out() {
    let first_quote = |line: &[u8]| {
        broken(line, |about| {
            about.request = about.request.take().map(|request| request.split('"').next().unwrap().to_owned());
        })
    };
    assert!(check_made(&first_quote, nginx_line(), 3_000).is_err());
}

#[test]
fn a_parser_that_cuts_within_a_character_is_found_out() {
    let cuts = |line: &[u8]| {
        let raw = String::from_utf8_lossy(line);
        let _ = raw.get(..19).map(str::len).unwrap_or_else(|| if raw.len() < 19 { 0 } else { raw[..19].len() });
        parser(Format::Nginx)(line)
    };
    assert!(check_any(&cuts, &corpus_of(Format::Nginx), 3_000).is_err());
}

#[test]
fn a_parser_that_gives_what_was_not_there_is_found_out() {
    let invents = |line: &[u8]| broken(line, |about| about.host = about.host.take().map(|host| host + "."));
    assert!(check_any(&invents, &corpus_of(Format::Nginx), 1_000).is_err());
}

// ---- real lines ----

/// A line with numbers and names taken out: what nginx says, or HAProxy's state.
fn kind_of(format: Format, line: &str) -> String {
    let kind = match format {
        Format::Nginx => {
            let (_, rest) = line.split_once(" [").unwrap_or(("", line));
            let (level, rest) = rest.split_once("] ").unwrap_or(("", rest));
            let (_, rest) = rest.split_once(": ").unwrap_or(("", rest));
            let (sentence, fields) = rest.find(", client: ").map_or((rest, ""), |at| rest.split_at(at));
            let sentence = sentence.strip_prefix('*').and_then(|text| text.split_once(' ')).map_or(sentence, |(_, text)| text);
            let upstream = if fields.contains("upstream:") { "upstream:" } else { "" };
            format!("[{level}] {sentence} {upstream}")
        }
        Format::HaProxy => {
            let fields: Vec<&str> = line.split(' ').collect();
            let state = fields.windows(2).find(|pair| pair[1].split('/').count() == 5 && matches!(pair[0].len(), 2 | 4));
            state.map_or_else(|| fields[fields.len().saturating_sub(5)..].join(" "), |pair| pair[0].to_owned())
        }
        Format::NginxAccess | Format::Envoy => line.split('"').nth(2).unwrap_or_default().trim().chars().take(3).collect(),
    };
    let mut out = String::new();
    for c in kind.chars().take(160) {
        match c {
            '0'..='9' if out.ends_with('N') => {}
            '0'..='9' => out.push('N'),
            c => out.push(c),
        }
    }
    out.trim_end().replace("(N: Connection reset by peer)", "(104)")
}

fn told(parsed: &Parsed) -> String {
    let remote = |remote: &Option<Remote>| match remote {
        None => "-",
        Some(Remote::Tcp { port: None, .. }) => "address",
        Some(Remote::Tcp { .. }) => "address:port",
        Some(Remote::Unix(_)) => "unix",
        Some(Remote::Name(_)) => "name",
    };
    match parsed {
        Parsed::Other => "other".into(),
        Parsed::Malformed => "MALFORMED".into(),
        Parsed::About(line) => {
            let fault = match line.fault {
                Fault::Error { errno, calls } => format!("{errno} {}", calls.join("/")),
                other => format!("{other:?}"),
            };
            let side = line.side.map_or("either", Side::name);
            format!("{side}: {fault}; client {}, upstream {}", remote(&line.client), remote(&line.upstream))
        }
    }
}

#[test]
fn what_real_lines_mean_was_found_right_by_eye() {
    for format in [Format::Nginx, Format::NginxAccess, Format::HaProxy] {
        let parse = parser(format);
        let mut kinds: BTreeMap<(String, String), usize> = BTreeMap::new();
        for line in corpus_of(format) {
            *kinds.entry((kind_of(format, &String::from_utf8_lossy(&line)), told(&parse(&line)))).or_default() += 1;
        }
        let table: String = kinds.iter().map(|((kind, told), count)| format!("{count:3} {kind}\n      {told}\n")).collect();
        insta::assert_snapshot!(format!("corpus_{}", format.name()), table);
    }
}

#[test]
fn real_lines_of_hostile_clients_name_no_forged_upstream() {
    let parse = parser(Format::Nginx);
    let lines = corpus_of(Format::Nginx);
    let hostile = lines.iter().filter(|line| String::from_utf8_lossy(line).contains("6.6.6.6"));
    let mut seen = 0;
    for line in hostile {
        seen += 1;
        if let Parsed::About(about) = parse(line) {
            let forged = |remote: &Option<Remote>| matches!(remote, Some(Remote::Tcp { addr, .. }) if addr.to_string() == "6.6.6.6");
            assert!(!forged(&about.upstream) && !forged(&about.client), "{about:?}");
            assert_ne!(about.host.as_deref(), Some("forged"));
        }
    }
    assert!(seen > 10, "only {seen} lines of hostile clients");
}
