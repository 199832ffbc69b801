//! Port lists and ranges.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// Ports given as a list of numbers and ranges; the empty set accepts all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    pub fn accepts(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|range| range.contains(&port))
    }

    /// One set that accepts what any of several does.
    pub fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        Self(sets.into_iter().flat_map(|set| set.0).collect())
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

impl FromStr for PortSet {
    type Err = String;

    /// `80`, `80,443`, `8000-8099`.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = |part: &str| {
            part.parse::<u16>().ok().filter(|&port| port != 0).ok_or_else(|| format!("{part:?} is not a port: expected 1 to 65535"))
        };
        text.split(',')
            .map(|part| match part.split_once('-') {
                Some((from, to)) => {
                    let range = port(from)?..=port(to)?;
                    if range.is_empty() { Err(format!("{part:?} is an empty range: the smaller port comes first")) } else { Ok(range) }
                }
                None => port(part).map(|port| port..=port),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_and_ranges_parse() {
        let set: PortSet = "80,443,8000-8099".parse().unwrap();
        assert!(set.accepts(80) && set.accepts(8000) && set.accepts(8099));
        assert!(!set.accepts(81) && !set.accepts(8100));
        assert!(PortSet::default().accepts(1));
        assert_eq!(set.to_string(), "80,443,8000-8099");
    }

    #[test]
    fn bad_ports_are_named() {
        for bad in ["70000", "0", "", "80,", "http", "90-80", "1-2-3", "-1"] {
            let error = bad.parse::<PortSet>().unwrap_err();
            assert!(error.contains("port") || error.contains("range"), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            let _ = text.parse::<PortSet>();
        }
    }
}
