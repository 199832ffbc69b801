//! Lines of JSON, many in a burst. serde_json looks at every key for characters to escape and hands it to the writer in
//! pieces, which for a record of 90 keys takes longer than all that comes before it. Here a key with its punctuation is
//! one constant, and only values are looked at.

use std::{
    fmt::{self, Write as _},
    io,
    net::IpAddr,
};

use jiff::Timestamp;
use serde::Serialize;

use super::{Rfc3339, json};
use crate::model::Comm;

/// An object, written as JSON has it: `object! { key: value, other: object! { .. } }` is a [`Value`].
macro_rules! object {
    ($first:ident: $value:expr $(, $key:ident: $more:expr)* $(,)?) => {
        move |line: &mut $crate::output::line::Line| {
            use $crate::output::line::Value;
            line.put(concat!("{\"", stringify!($first), "\":").as_bytes());
            Value::put(&$value, line);
            $(
                line.put(concat!(",\"", stringify!($key), "\":").as_bytes());
                Value::put(&$more, line);
            )*
            line.put(b"}");
        }
    };
}

pub(super) use object;

/// A line in the making, and the room for it, which the next one has too.
#[derive(Debug, Default)]
pub struct Line {
    room: Vec<u8>,
    /// So much is written, or would have been had there been room.
    length: usize,
}

impl Line {
    /// Writes one value on a line of its own.
    ///
    /// # Errors
    /// What writing returns.
    pub fn write(&mut self, out: &mut impl io::Write, value: impl Value) -> io::Result<()> {
        loop {
            self.length = 0;
            value.put(self);
            self.put(b"\n");
            match self.room.get(..self.length) {
                Some(line) => return out.write_all(line),
                // Once in a while a record is longer than all before it.
                None => self.room.resize(2 * self.length, 0),
            }
        }
    }

    #[inline(always)]
    pub fn put(&mut self, text: &[u8]) {
        let end = self.length + text.len();
        if let Some(room) = self.room.get_mut(self.length..end) {
            room.copy_from_slice(text);
        }
        self.length = end;
    }

    #[inline(always)]
    fn number<N: itoa::Integer + Copy + TryInto<u8>>(&mut self, n: N) {
        match n.try_into() {
            // Most are.
            Ok(digit @ 0..10) => self.put(&[b'0' + digit]),
            _ => self.put(itoa::Buffer::new().format(n).as_bytes()),
        }
    }

    fn string(&mut self, text: &str) {
        if is_plain(text.as_bytes()) { self.quoted(text.as_bytes()) } else { Rare(text).put(self) }
    }

    #[inline(always)]
    fn quoted(&mut self, text: &[u8]) {
        let end = self.length + text.len() + 2;
        if let Some([first, room @ .., last]) = self.room.get_mut(self.length..end) {
            (*first, *last) = (b'"', b'"');
            room.copy_from_slice(text);
        }
        self.length = end;
    }
}

/// Nothing in it needs escaping.
#[inline(always)]
fn is_plain(text: &[u8]) -> bool {
    // No early return, so that it is done in wide steps.
    text.iter().fold(true, |plain, &b| plain & matches!(b, b' '..=b'~') & (b != b'"') & (b != b'\\'))
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// What can stand in a line.
pub trait Value {
    fn put(&self, line: &mut Line);
}

impl<F: Fn(&mut Line)> Value for F {
    #[inline]
    fn put(&self, line: &mut Line) {
        self(line);
    }
}

impl<T: Value> Value for Option<T> {
    #[inline]
    fn put(&self, line: &mut Line) {
        match self {
            Some(value) => value.put(line),
            None => line.put(b"null"),
        }
    }
}

impl Value for bool {
    #[inline]
    fn put(&self, line: &mut Line) {
        line.put(if *self { b"true" } else { b"false" });
    }
}

macro_rules! numbers {
    ($($type:ty)+) => {$(
        impl Value for $type {
            #[inline]
            fn put(&self, line: &mut Line) {
                line.number(*self);
            }
        }
    )+};
}

numbers!(u8 u16 u32 u64 i32);

impl Value for &str {
    #[inline]
    fn put(&self, line: &mut Line) {
        line.string(self);
    }
}

impl Value for IpAddr {
    #[inline]
    fn put(&self, line: &mut Line) {
        let IpAddr::V4(address) = self else { return Plain(self).put(line) };
        let [a, b, c, d] = address.octets();
        line.put(b"\"");
        line.number(a);
        for octet in [b, c, d] {
            line.put(b".");
            line.number(octet);
        }
        line.put(b"\"");
    }
}

/// A word of ours.
pub struct Word(pub &'static str);

impl Value for Word {
    #[inline]
    fn put(&self, line: &mut Line) {
        line.quoted(self.0.as_bytes());
    }
}

impl Value for Comm {
    #[inline]
    fn put(&self, line: &mut Line) {
        let bytes = self.bytes();
        if is_plain(bytes) { line.quoted(bytes) } else { line.string(&self.text()) }
    }
}

/// Displayed in plain characters, of which none needs escaping.
pub struct Plain<T>(pub T);

impl<T: fmt::Display> Value for Plain<T> {
    #[inline]
    fn put(&self, line: &mut Line) {
        // There is always room, or will be.
        let _ = write!(line, "\"{}\"", self.0);
    }
}

/// Dates of records, which mostly share their second.
#[derive(Debug, Default)]
pub struct Dates {
    second: i64,
    /// `2026-11-26T17:55:01`
    text: String,
}

impl Dates {
    /// [`Rfc3339`] of a time since 1970.
    pub fn of(&mut self, time: Timestamp) -> impl Value {
        if self.text.is_empty() || time.as_second() != self.second {
            self.second = time.as_second();
            self.text.clear();
            let _ = write!(self.text, "{}", Rfc3339(time));
            self.text.truncate(self.text.find('.').unwrap_or(0));
        }
        let mut fraction = *b".000000000Z";
        let mut rest = time.subsec_nanosecond().unsigned_abs();
        for digit in fraction[1..10].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        move |line: &mut Line| {
            line.put(b"\"");
            line.put(self.text.as_bytes());
            line.put(&fraction);
            line.put(b"\"");
        }
    }
}

/// Whatever serde knows, where it does not matter how long it takes.
pub struct Rare<T>(pub T);

/// An array of strings.
pub struct Strings<'a>(pub Vec<&'a str>);

impl Value for Strings<'_> {
    #[inline]
    fn put(&self, line: &mut Line) {
        line.put(b"[");
        for (i, text) in self.0.iter().enumerate() {
            if i > 0 {
                line.put(b",");
            }
            line.string(text);
        }
        line.put(b"]");
    }
}

impl<T: Serialize> Value for Rare<T> {
    #[cold]
    fn put(&self, line: &mut Line) {
        let mut text = Vec::new();
        // Neither memory nor our types can refuse.
        let _ = json::escaped(&mut text, &self.0);
        line.put(&text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: impl Value) -> String {
        let mut out = Vec::new();
        Line::default().write(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn objects_are_written_as_they_stand() {
        let inner = Some(2_u8).map(|n| object! { n: n });
        let value = object! { a: "x", none: None::<u32>, yes: true, inner: inner, list: Strings(vec!["1", "\"2\""]) };
        assert_eq!(written(value), "{\"a\":\"x\",\"none\":null,\"yes\":true,\"inner\":{\"n\":2},\"list\":[\"1\",\"\\\"2\\\"\"]}\n");
    }

    proptest! {
        #[test]
        fn strings_and_addresses_are_as_serde_has_them(text in any::<String>(), address in any::<IpAddr>(), n in any::<u64>()) {
            let mut expected = Vec::new();
            json::line(&mut expected, &(&text, address, n)).unwrap();
            let ours = written(|line: &mut Line| {
                line.put(b"[");
                text.as_str().put(line);
                line.put(b",");
                address.put(line);
                line.put(b",");
                n.put(line);
                line.put(b"]");
            });
            prop_assert_eq!(ours.as_bytes(), expected);
        }

        #[test]
        fn dates_are_rfc_3339(times in proptest::collection::vec((0i64..253_000_000_000, 0i32..1_000_000_000), 1..8)) {
            let mut dates = Dates::default();
            for (second, ns) in times {
                let time = Timestamp::new(second, ns).unwrap();
                prop_assert_eq!(written(dates.of(time)), format!("\"{}\"\n", Rfc3339(time)));
            }
        }
    }
}
