//! Records and the summary as people and programs read them. Pure formatting to a `Write`.

pub mod diff;
pub mod escape;
pub mod json;
mod line;
pub mod summary;
pub mod table;
pub mod text;
mod timeline;

use std::fmt::{self, Display};

use jiff::Timestamp;

/// Turns the kernel's monotonic times into dates.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Wall-clock time at monotonic zero, nanoseconds since 1970.
    offset_ns: i128,
}

impl WallClock {
    /// From the same moment on both clocks.
    pub fn new(wall_ns: i128, monotonic_ns: u64) -> Self {
        Self { offset_ns: wall_ns - i128::from(monotonic_ns) }
    }

    /// Wall-clock time at monotonic zero, nanoseconds since 1970.
    pub fn zero_ns(&self) -> i128 {
        self.offset_ns
    }

    /// The date of a monotonic time, 1970 or later; 1970 where it lies outside of what dates can express.
    pub fn at(&self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_nanosecond(self.offset_ns + i128::from(monotonic_ns)).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH)
    }
}

/// A date as RFC 3339 has it, UTC, nine digits.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(pub Timestamp);

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

/// `SIGKILL`; the number where it has no name.
#[derive(Clone, Copy, Debug)]
pub struct Signal(pub u32);

impl Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = i32::try_from(self.0).ok().and_then(signal_hook::low_level::signal_name);
        match name {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}
