//! Names that come from outside, made harmless for a terminal.

use std::borrow::Cow;

/// Escapes control characters, format characters (bidirectional overrides, zero-width ones) and
/// backslashes, as Rust's literals do; everything printable stays.
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_harmless(c) && c != '\\' {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    Cow::Owned(out)
}

/// At most so many bytes, with `…` where something was cut: a record from a file may be as long as it likes.
pub fn cut(text: &str, bytes: usize) -> Cow<'_, str> {
    if text.len() <= bytes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(bytes)]))
}

/// A terminal shows all of it, and does nothing else.
pub fn is_harmless_text(text: &[u8]) -> bool {
    text.iter().all(|b| matches!(b, b' '..=b'~')) || std::str::from_utf8(text).is_ok_and(|text| text.chars().all(is_harmless))
}

/// Printable: a terminal shows it, and does nothing else.
pub fn is_harmless(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_process_name_cannot_clear_the_screen() {
        assert_eq!(for_terminal("\x1b[2J"), "\\u{1b}[2J");
        assert_eq!(for_terminal("a\nb\r\u{202e}\u{200b}\u{9b}"), "a\\nb\\r\\u{202e}\\u{200b}\\u{9b}");
        assert_eq!(for_terminal("nginx: worker 'x' 日本"), "nginx: worker 'x' 日本");
    }

    proptest! {
        #[test]
        fn no_control_character_survives(text in any::<String>()) {
            prop_assert!(!for_terminal(&text).chars().any(char::is_control));
        }
    }
}
