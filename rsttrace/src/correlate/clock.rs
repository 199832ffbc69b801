//! From the time that a line bears to the span in which what it is about happened.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::Window;
use crate::model::{LogTime, Stamp};

/// An application may stamp its lines with the time at which its loop woke up (nginx does), and act a
/// while later.
const LAG_NS: u64 = 1_000_000_000;
/// A stamp finer than a second is computed from a beginning and a duration, by a clock that is looked
/// at now and then: HAProxy's was up to 32 ms late under load.
const SKEW_NS: u64 = 100_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// A daemon that collects logs does not hold a line back for longer.
pub const HELD_BACK_NS: u64 = 2_000_000_000;
/// Zones differ from UTC by multiples of this.
const QUARTER_NS: i128 = 15 * 60 * 1_000_000_000;
/// A line is not read later than this after it was written, else its stamp is not used.
const FRESH_NS: i128 = 5 * 60 * 1_000_000_000;

/// When a line was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The latest moment at which it was not there yet.
    pub not_before_ns: u64,
    pub read_ns: u64,
    /// The writer itself put it where it was read: nobody in between may have held it back.
    pub immediate: bool,
}

/// Reads the times of one file's lines.
#[derive(Clone, Debug)]
pub enum LineClock {
    /// Lines are read as they are written: the writer's zone shows in how far its stamps are from now.
    Live,
    /// A saved log of this zone.
    Saved(TimeZone),
}

impl LineClock {
    /// The span in which a line was written, on the records' clock, whose zero is at `zero_ns`
    /// (nanoseconds since 1970).
    pub fn window(&self, time: &LogTime, arrival: Option<Arrival>, zero_ns: i128) -> Window {
        let stamped = self.instant(&time.stamp, arrival, zero_ns).map(|at| {
            let from_ns = u64::try_from(at.as_nanosecond() - zero_ns).unwrap_or(0);
            let precision = u64::try_from(time.precision.as_nanos()).unwrap_or(u64::MAX);
            let to_ns = from_ns.saturating_add(precision).saturating_add(LAG_NS);
            let skew_ns = if precision < SECOND_NS { SKEW_NS } else { 0 };
            Window { from_ns: from_ns.saturating_sub(skew_ns), to_ns }
        });
        // Through other hands a line comes later than it was written, and it may tell of a close to come.
        let arrived = arrival.map(|arrival| match arrival.immediate {
            true => Window { from_ns: arrival.not_before_ns, to_ns: arrival.read_ns },
            false => Window { from_ns: arrival.read_ns.saturating_sub(HELD_BACK_NS), to_ns: arrival.read_ns.saturating_add(LAG_NS) },
        });
        match (arrived, stamped) {
            (Some(arrived), Some(stamped)) if arrived.meets(stamped) => {
                Window { from_ns: arrived.from_ns.max(stamped.from_ns), to_ns: arrived.to_ns.min(stamped.to_ns) }
            }
            // Kept back for long: the stamp is all that counts, if it needs no guess.
            (Some(_), Some(stamped)) if matches!(time.stamp, Stamp::Absolute(_)) && arrival.is_some_and(|arrival| !arrival.immediate) => {
                stamped
            }
            (Some(arrived), _) => arrived,
            (None, Some(stamped)) => stamped,
            // No date can be made of it: nothing fits.
            (None, None) => Window::point(u64::MAX),
        }
    }

    fn instant(&self, stamp: &Stamp, arrival: Option<Arrival>, zero_ns: i128) -> Option<Timestamp> {
        match (stamp, self) {
            (Stamp::Absolute(at), _) => Some(*at),
            (Stamp::Civil(civil), Self::Saved(zone)) => civil.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp()),
            (Stamp::Civil(civil), Self::Live) => in_the_zone_of_now(*civil, i128::from(arrival?.read_ns) + zero_ns),
        }
    }
}

/// The instant near `now_ns` that a clock in some zone shows as `civil`.
fn in_the_zone_of_now(civil: DateTime, now_ns: i128) -> Option<Timestamp> {
    let as_utc = civil.to_zoned(TimeZone::UTC).ok()?.timestamp().as_nanosecond();
    let apart = now_ns - as_utc;
    // A stamp is a little earlier than now, so that rounding to the nearest quarter is right.
    let zone = (apart + QUARTER_NS / 2).div_euclid(QUARTER_NS) * QUARTER_NS;
    let age = apart - zone;
    (age.abs() <= FRESH_NS).then(|| Timestamp::from_nanosecond(as_utc + zone).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn civil(text: &str) -> LogTime {
        LogTime { stamp: Stamp::Civil(text.parse().unwrap()), precision: Duration::from_secs(1) }
    }

    fn utc(text: &str) -> i128 {
        text.parse::<Timestamp>().unwrap().as_nanosecond()
    }

    #[test]
    fn a_line_that_arrives_now_was_stamped_now_in_whatever_zone() {
        // The record's clock began 100 s before.
        let zero = utc("2026-11-26T10:00:00Z");
        let arrival = Arrival { not_before_ns: 99 * SECOND, read_ns: 100 * SECOND + SECOND / 2, immediate: true };
        for stamp in ["2026-11-26T10:01:40", "2026-11-26T15:31:40", "2026-11-26T02:01:40", "2026-11-25T22:01:40"] {
            let window = LineClock::Live.window(&civil(stamp), Some(arrival), zero);
            assert_eq!(window, Window { from_ns: 100 * SECOND, to_ns: arrival.read_ns }, "{stamp}");
        }
        // Written late, or by a clock that is wrong: only the arrival counts.
        let window = LineClock::Live.window(&civil("2026-11-26T10:10:40"), Some(arrival), zero);
        assert_eq!(window, Window { from_ns: 99 * SECOND, to_ns: arrival.read_ns });
        // Through the hands of a daemon it may have been written before.
        let window = LineClock::Live.window(&civil("2026-11-26T10:01:38"), Some(Arrival { immediate: false, ..arrival }), zero);
        assert_eq!(window, Window { from_ns: arrival.read_ns - HELD_BACK_NS, to_ns: 100 * SECOND });
    }

    #[test]
    fn a_saved_line_has_the_second_that_it_bears_and_what_its_writer_may_lag() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let window = LineClock::Saved(zone).window(&civil("2026-11-26T12:00:05"), None, utc("2026-11-26T10:00:00Z"));
        assert_eq!(window, Window { from_ns: 5 * SECOND, to_ns: 7 * SECOND });
    }
}
