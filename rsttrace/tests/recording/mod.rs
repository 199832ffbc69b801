//! Events of a real kernel, recorded by examples/record_events.rs: every kind of end once.

/// Each event behind its length.
static EVENTS: &[u8] = include_bytes!("../golden/events.bin");

/// The bytes of each event.
///
/// # Panics
/// If the recording is cut.
#[allow(clippy::expect_used, reason = "only tests and benchmarks read it")]
pub fn events() -> Vec<Vec<u8>> {
    let mut rest = EVENTS;
    let mut events = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (event, tail) = tail.split_at_checked(u32::from_ne_bytes(*length) as usize).expect("a whole event");
        events.push(event.to_vec());
        rest = tail;
    }
    assert!(events.len() > 50, "a truncated recording");
    events
}
