//! Durations and sizes in words.

/// Three significant digits with an SI unit: `41.3 us`, `1.20 s`.
pub fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1, "ns"), (1_000, "us"), (1_000_000, "ms"), (1_000_000_000, "s")];
    let (scale, unit) = UNITS.iter().rev().find(|(scale, _)| ns >= *scale).copied().unwrap_or(UNITS[0]);
    if scale == 1 {
        return format!("{ns} ns");
    }
    let value = ns as f64 / scale as f64;
    let text = match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    };
    // 999.6 us is a millisecond, not "1000 us".
    if text == "1000" && scale < 1_000_000_000 {
        return duration(scale * 1_000);
    }
    format!("{text} {unit}")
}

/// Exact, with thousands separated: `3,866,624 B`.
pub fn bytes(n: u64) -> String {
    format!("{} B", grouped(n))
}

/// Three significant digits with an SI unit: `412 B`, `3.87 MB`.
pub fn size(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit < UNITS.len() - 1 {
        value /= 1_000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `3,866,624`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        for (n, text) in [(0, "0 B"), (999, "999 B"), (1_000, "1.00 kB"), (3_866_624, "3.87 MB"), (99_960, "100 kB"), (999_600, "1.00 MB")]
        {
            assert_eq!(size(n), text);
        }
    }

    #[test]
    fn bytes_are_exact() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_532), "1,532 B");
        assert_eq!(bytes(3_866_624), "3,866,624 B");
    }
}
