//! Durations, sizes and what may be missing, in words.

use std::fmt::{self, Display};

/// A value between words; nothing where there is none.
pub fn given<T: Display>(before: &str, value: Option<T>, after: &str) -> impl Display {
    fmt::from_fn(move |out| value.as_ref().map_or(Ok(()), |value| write!(out, "{before}{value}{after}")))
}

/// Three significant digits with an SI unit: `41.3 us`, `1.20 s`.
pub fn duration(ns: u64) -> impl Display {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    fmt::from_fn(move |f| {
        let Some((at, &(scale, unit))) = UNITS.iter().enumerate().find(|(_, (scale, _))| ns >= *scale) else {
            return write!(f, "{ns} ns");
        };
        let (scale, unit) = match at.checked_sub(1).and_then(|larger| UNITS.get(larger)) {
            // 999.6 us is a millisecond, not "1000 us".
            Some(&larger) if rounded(ns, scale) == 1_000 => larger,
            _ => (scale, unit),
        };
        three_digits(f, ns, scale)?;
        write!(f, " {unit}")
    })
}

/// Exact, with thousands separated: `3,866,624 B`.
pub fn bytes(n: u64) -> impl Display {
    fmt::from_fn(move |f| write!(f, "{} B", grouped(n)))
}

/// Three significant digits with an SI unit: `412 B`, `3.87 MB`.
pub fn size(n: u64) -> impl Display {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    fmt::from_fn(move |f| {
        let (mut scale, mut unit) = (1, 0);
        while rounded(n, scale) >= 1_000 && unit < UNITS.len() - 1 {
            scale *= 1_000;
            unit += 1;
        }
        if unit == 0 {
            write!(f, "{n}")?
        } else {
            three_digits(f, n, scale)?
        }
        write!(f, " {}", UNITS[unit])
    })
}

/// To the nearest, halves up.
fn rounded(n: u64, scale: u64) -> u64 {
    n / scale + u64::from(n % scale >= scale.div_ceil(2))
}

/// `n / scale`, at least 1, in three significant digits.
fn three_digits(f: &mut fmt::Formatter<'_>, n: u64, scale: u64) -> fmt::Result {
    match (rounded(n, scale / 100), rounded(n, scale / 10)) {
        (hundredths @ ..1_000, _) => write!(f, "{}.{:02}", hundredths / 100, hundredths % 100),
        (_, tenths @ ..1_000) => write!(f, "{}.{}", tenths / 10, tenths % 10),
        _ => write!(f, "{}", rounded(n, scale)),
    }
}

/// `3,866,624`.
pub fn grouped(n: u64) -> impl Display {
    fmt::from_fn(move |f| {
        // As many as u64 has digits and commas.
        let mut text = [0; 26];
        let mut at = text.len();
        let mut rest = n;
        for digit in 0.. {
            if digit > 0 && digit % 3 == 0 {
                at -= 1;
                text[at] = b',';
            }
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        f.pad(str::from_utf8(&text[at..]).unwrap_or_default())
    })
}

/// `1 line`, `2,000 lines`.
pub fn counted(n: u64, one: &str) -> impl Display {
    fmt::from_fn(move |f| write!(f, "{} {one}{}", grouped(n), if n == 1 { "" } else { "s" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2_000].map(|n| counted(n, "line").to_string()), ["0 lines", "1 line", "2,000 lines"]);
    }

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (41_345, "41.3 us"),
            (999_499, "999 us"),
            (999_600, "1.00 ms"),
            (9_996_000, "10.0 ms"),
            (52_000_000, "52.0 ms"),
            (1_204_000_000, "1.20 s"),
            (240_000_000_000, "240 s"),
            (86_400_000_000_000, "86400 s"),
        ] {
            assert_eq!(duration(ns).to_string(), text);
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        for (n, text) in [(0, "0 B"), (999, "999 B"), (1_000, "1.00 kB"), (3_866_624, "3.87 MB"), (99_960, "100 kB"), (999_600, "1.00 MB")]
        {
            assert_eq!(size(n).to_string(), text);
        }
    }

    #[test]
    fn bytes_are_exact() {
        assert_eq!(bytes(0).to_string(), "0 B");
        assert_eq!(bytes(999).to_string(), "999 B");
        assert_eq!(bytes(1_532).to_string(), "1,532 B");
        assert_eq!(bytes(3_866_624).to_string(), "3,866,624 B");
    }
}
