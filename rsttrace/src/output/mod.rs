//! Records and the summary as people and programs read them. Pure formatting to a `Write`.

pub mod escape;
pub mod json;
pub mod summary;
pub mod text;
mod timeline;

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

    /// The date of a monotonic time; 1970 where it lies outside of what dates can express.
    pub fn at(&self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_nanosecond(self.offset_ns + i128::from(monotonic_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// RFC 3339, UTC, nine digits.
pub fn rfc3339(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// `SIGKILL`; the number where it has no name.
pub fn signal_name(number: u32) -> String {
    let name = i32::try_from(number).ok().and_then(signal_hook::low_level::signal_name);
    name.map_or_else(|| number.to_string(), str::to_owned)
}
