//! Idle times at which well-known software closes connections, or forgets them.

use std::sync::Arc;

use thiserror::Error;

use crate::model::Timer;

/// How far from a timer's time an idle time may lie, for ticks, round trips, and timer wheels that
/// are late: 1 %, for short ones up to 5 % but not more than this.
const TOLERANCE_MS: u64 = 500;

/// Ships with the program; `--timers` adds to it.
const WELL_KNOWN: &str = include_str!("../../../docs/timers.txt");

/// A line of a timers file that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line}, column {column}: {what}")]
pub struct TimersError {
    pub line: usize,
    pub column: usize,
    pub what: &'static str,
}

/// The table, shortest first.
#[derive(Clone, Debug, Default)]
pub struct Timers(Vec<Timer>);

impl Timers {
    /// The well-known ones.
    pub fn well_known() -> Self {
        let mut timers = Self::default();
        // Checked by a test; nothing of it is left out here.
        let _ = timers.add(WELL_KNOWN);
        timers
    }

    /// Adds the lines of a file: a whole number of seconds, then whose timer it is. Empty lines
    /// and what follows `#` are skipped. Where two timers have the same time, both are named.
    ///
    /// # Errors
    /// The first line that is neither; nothing of the file is added then.
    pub fn add(&mut self, text: &str) -> Result<(), TimersError> {
        let parsed = text.lines().enumerate().filter_map(|(i, line)| parse_line(line, i + 1).transpose());
        for timer in parsed.collect::<Result<Vec<_>, _>>()? {
            match self.0.iter_mut().find(|known| known.seconds == timer.seconds) {
                Some(known) => known.name = format!("{}, {}", known.name, timer.name).into(),
                None => self.0.push(timer),
            }
        }
        self.0.sort_by_key(|timer| timer.seconds);
        Ok(())
    }

    /// The timer that an idle time matches, the nearest.
    pub fn matching(&self, idle_ms: Option<u64>) -> Option<Timer> {
        let idle_ms = idle_ms?;
        let distance = |timer: &Timer| idle_ms.abs_diff(timer.seconds * 1_000);
        let tolerance = |timer: &Timer| (timer.seconds * 10).max((timer.seconds * 50).min(TOLERANCE_MS));
        self.0.iter().filter(|timer| distance(timer) <= tolerance(timer)).min_by_key(|timer| distance(timer)).cloned()
    }
}

fn parse_line(line: &str, number: usize) -> Result<Option<Timer>, TimersError> {
    let content = line.split('#').next().unwrap_or_default();
    let trimmed = content.trim_start();
    if trimmed.is_empty() {
        return Ok(None);
    }
    let column = |rest: &str| line[..line.len() - (line.len() - content.len()) - rest.len()].chars().count() + 1;
    let error = |rest: &str, what| TimersError { line: number, column: column(rest), what };
    let (seconds, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
    let seconds = match seconds.strip_suffix('s').unwrap_or(seconds).parse::<u64>() {
        Ok(seconds @ 1..=31_536_000) => seconds,
        Ok(_) => return Err(error(trimmed, "expected a time from 1 to 31536000 seconds")),
        Err(_) => return Err(error(trimmed, "expected a whole number of seconds, such as 60")),
    };
    let name = rest.trim();
    if name.is_empty() {
        return Err(error(rest, "expected whose timer it is after the seconds"));
    }
    if name.chars().any(char::is_control) {
        return Err(error(rest.trim_start(), "a control character in the name"));
    }
    if name.chars().count() > 120 {
        return Err(error(rest.trim_start(), "the name is longer than 120 characters"));
    }
    Ok(Some(Timer { seconds, name: Arc::from(name) }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(text: &str) -> Timers {
        let mut timers = Timers::default();
        timers.add(text).unwrap();
        timers
    }

    fn refused(text: &str) -> (usize, usize) {
        let error = Timers::default().add(text).unwrap_err();
        (error.line, error.column)
    }

    #[test]
    fn the_table_that_ships_is_whole() {
        let mut timers = Timers::default();
        timers.add(WELL_KNOWN).unwrap();
        for seconds in [60, 65, 75, 240, 350, 900] {
            assert!(timers.0.iter().any(|timer| timer.seconds == seconds), "{seconds}");
        }
    }

    #[test]
    fn an_idle_time_matches_the_nearest_timer_within_a_percent() {
        let timers = table("2 short\n60 a\n65 b\n900 c\n");
        let name = |ms| timers.matching(Some(ms)).map(|timer| timer.name.to_string());
        assert_eq!(name(2_100).as_deref(), Some("short"));
        assert_eq!(name(2_101), None);
        assert_eq!(name(60_000).as_deref(), Some("a"));
        assert_eq!(name(60_600).as_deref(), Some("a"));
        assert_eq!(name(59_399), None);
        assert_eq!(name(62_500), None);
        assert_eq!(name(64_400).as_deref(), Some("b"));
        assert_eq!(name(909_000).as_deref(), Some("c"));
        assert_eq!(name(909_001), None);
        assert_eq!(timers.matching(None), None);
    }

    #[test]
    fn one_time_may_have_two_owners() {
        let timers = table("60 nginx # comment\n\n# all\n  60s load balancer\n");
        assert_eq!(&*timers.matching(Some(60_000)).unwrap().name, "nginx, load balancer");
    }

    #[test]
    fn what_cannot_be_read_is_named_by_line_and_column() {
        assert_eq!(refused("60 a\n  soon b\n"), (2, 3));
        assert_eq!(refused("60 a\n70\n"), (2, 3));
        assert_eq!(refused("0 never"), (1, 1));
        assert_eq!(refused("60 a\u{1b}[2J"), (1, 4));
        assert_eq!(refused("-5 x"), (1, 1));
        let mut timers = table("60 a");
        assert!(timers.add("70 b\nbad").is_err());
        assert_eq!(timers.matching(Some(70_000)), None, "nothing of a refused file is used");
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused_with_a_place(text in any::<String>()) {
            if let Err(error) = Timers::default().add(&text) {
                prop_assert!(error.line <= text.lines().count() && error.column >= 1);
            }
        }
    }
}
