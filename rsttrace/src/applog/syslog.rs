//! What a syslog daemon, journald or a container's runtime put in front of an application's line.

use jiff::Timestamp;

use super::digits;

/// A line behind its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// When it was written or received, where the prefix has a zone.
    pub time: Option<Timestamp>,
    pub process: Option<u32>,
    pub text: &'a str,
}

/// Takes the prefix off: `<134>`, a time of RFC 3164 or RFC 3339, a host, `haproxy[12]:`, or all that
/// RFC 5424 has. Each part may be missing; `None` if there is no prefix at all.
pub fn strip(line: &str) -> Option<Message<'_>> {
    let (had_priority, rest) = match priority(line) {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    if let Some(message) = had_priority.then(|| rfc_5424(rest)).flatten() {
        return Some(message);
    }
    let (had_time, time, rest) = match time(rest) {
        Some((time, rest)) => (true, time, rest),
        None => (false, None, rest),
    };
    match tag(rest).or_else(|| had_time.then(|| tag(rest.split_once(' ')?.1)).flatten()) {
        Some((process, text)) => Some(Message { time, process, text }),
        None => (had_priority || had_time).then_some(Message { time, process: None, text: rest }),
    }
}

/// `<134>`
fn priority(line: &str) -> Option<&str> {
    let (number, rest) = line.strip_prefix('<')?.split_once('>')?;
    (matches!(number.len(), 1..=3) && is_digits(number)).then_some(rest)
}

/// `1 2026-11-22T10:01:02.123+00:00 host haproxy 12 - - ` or with `[structured data]` at the end.
fn rfc_5424(text: &str) -> Option<Message<'_>> {
    let mut fields = text.strip_prefix("1 ")?.splitn(6, ' ');
    let [time, _host, _application, process, _id] = std::array::from_fn(|_| fields.next().unwrap_or_default());
    let data = fields.next()?;
    let text = match data.strip_prefix("- ") {
        Some(text) => text,
        None => &data[structured_data_end(data)?..],
    };
    // A byte order mark tells that the text is UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Some(Message { time: time.parse().ok(), process: digits(process), text })
}

/// Where `[id name="value"][id] ` ends; in a value `]` is escaped.
fn structured_data_end(data: &str) -> Option<usize> {
    if !data.starts_with('[') {
        return None;
    }
    let ends = data.match_indices("] ").map(|(at, _)| at);
    ends.into_iter().find(|at| !data[..*at].ends_with('\\')).map(|at| at + 2)
}

/// `Nov 22 10:01:02 ` or `2026-11-22T10:01:02.123+00:00 `; the rest, and what has a zone.
fn time(text: &str) -> Option<(Option<Timestamp>, &str)> {
    let bytes = text.as_bytes();
    if bytes.len() > 16 && text.is_char_boundary(16) {
        let (stamp, rest) = text.split_at(16);
        let is_time = |(at, byte): (usize, u8)| match at {
            0..=2 => byte.is_ascii_alphabetic(),
            3 | 6 | 15 => byte == b' ',
            4 => byte == b' ' || byte.is_ascii_digit(),
            9 | 12 => byte == b':',
            _ => byte.is_ascii_digit(),
        };
        if stamp.bytes().enumerate().all(is_time) {
            return Some((None, rest));
        }
    }
    let (stamp, rest) = text.split_once(' ')?;
    Some((Some(stamp.parse().ok()?), rest))
}

/// `haproxy[12]: ` or `haproxy: `
fn tag(text: &str) -> Option<(Option<u32>, &str)> {
    let (tag, text) = text.split_once(": ")?;
    let (name, process) = match tag.strip_suffix(']').and_then(|tag| tag.rsplit_once('[')) {
        Some((name, process)) => (name, Some(digits(process)?)),
        None => (tag, None),
    };
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    is_name.then_some((process, text))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_prefix_is_taken_off() {
        for (line, process) in [
            ("<134>Nov 22 10:01:02 haproxy[12]: text: [1]", Some(12)),
            ("<134>Nov  2 10:01:02 host haproxy[12]: text: [1]", Some(12)),
            ("Nov 22 10:01:02 host haproxy[12]: text: [1]", Some(12)),
            ("Nov 22 10:01:02 host nginx: text: [1]", None),
            ("2026-11-22T10:01:02.123456+00:00 host haproxy[12]: text: [1]", Some(12)),
            ("<134>1 2026-11-22T10:01:02.123456+00:00 host haproxy 12 - - text: [1]", Some(12)),
            ("<134>1 2026-11-22T10:01:02.123456+00:00 host haproxy - - [a b=\"\\] \"][c] text: [1]", None),
            ("<134>1 2026-11-22T10:01:02.123456+00:00 host haproxy - - - \u{feff}text: [1]", None),
            ("<134>haproxy[12]: text: [1]", Some(12)),
            ("haproxy[12]: text: [1]", Some(12)),
        ] {
            let time = line.contains("10:01:02.123456+00:00").then(|| "2026-11-22T10:01:02.123456Z".parse().expect("a time"));
            assert_eq!(strip(line), Some(Message { time, process, text: "text: [1]" }), "{line}");
        }
        assert_eq!(strip("<134>127.0.0.1:1 [x"), Some(Message { time: None, process: None, text: "127.0.0.1:1 [x" }));
    }

    #[test]
    fn a_line_without_a_prefix_has_none() {
        for line in ["", "127.0.0.1:80 [22/Nov/2026:10:01:02.000] x", "2026/11/22 10:01:02 [error] 1#1: x", "<>", "<1", "<1234>x"] {
            assert_eq!(strip(line), None, "{line}");
        }
    }
}
