//! Ends over time, in steps that fit whatever time they span.

use std::collections::BTreeMap;

use crate::model::Harm;

/// No more steps than these.
pub const MAX_STEPS: u64 = 120;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const HOUR: u64 = 3_600 * SECOND;
const WEEK: u64 = 7 * 24 * HOUR;
/// Lengths of steps; each divides the next, so that steps can be joined.
const LENGTHS_NS: [u64; 20] = [
    MS,
    5 * MS,
    10 * MS,
    50 * MS,
    100 * MS,
    500 * MS,
    SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    60 * SECOND,
    300 * SECOND,
    600 * SECOND,
    1_800 * SECOND,
    HOUR,
    6 * HOUR,
    24 * HOUR,
    WEEK,
    10 * WEEK,
    1_000 * WEEK,
];

/// Ends by harm, in the order of [`Harm::ALL`].
pub type Counts = [u64; Harm::ALL.len()];

/// Counts by step of time.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Of [`LENGTHS_NS`].
    length: usize,
    /// By number of the step since 1970; those without an end are left out.
    steps: BTreeMap<u64, Counts>,
}

impl Timeline {
    /// Counts one end.
    pub fn add(&mut self, at_ns: u64, harm: Harm) {
        self.steps.entry(at_ns / self.step_ns()).or_default()[harm as usize] += 1;
        while self.numbers().is_some_and(|(first, last)| last - first >= MAX_STEPS) && self.length + 1 < LENGTHS_NS.len() {
            let factor = LENGTHS_NS[self.length + 1] / LENGTHS_NS[self.length];
            self.length += 1;
            for (number, counts) in std::mem::take(&mut self.steps) {
                let joined = self.steps.entry(number / factor).or_default();
                joined.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more);
            }
        }
    }

    pub fn step_ns(&self) -> u64 {
        LENGTHS_NS[self.length]
    }

    fn numbers(&self) -> Option<(u64, u64)> {
        Some((*self.steps.first_key_value()?.0, *self.steps.last_key_value()?.0))
    }

    /// Beginning (since 1970) and counts of every step from the first end to the last.
    pub fn steps(&self) -> impl Iterator<Item = (u64, Counts)> + '_ {
        let numbers = self.numbers().map(|(first, last)| first..=last);
        numbers.into_iter().flatten().map(|number| (number * self.step_ns(), self.steps.get(&number).copied().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_length_divides_the_next() {
        assert!(LENGTHS_NS.windows(2).all(|pair| pair[1] % pair[0] == 0));
        assert!(u64::MAX / LENGTHS_NS[LENGTHS_NS.len() - 1] < MAX_STEPS);
    }

    proptest! {
        #[test]
        fn steps_are_few_and_hold_everything(times in proptest::collection::vec(any::<u64>(), 0..200), scale in 0u32..60) {
            let mut timeline = Timeline::default();
            times.iter().for_each(|at| timeline.add(at >> scale, Harm::Lost));
            let steps: Vec<_> = timeline.steps().collect();
            prop_assert!(steps.len() as u64 <= MAX_STEPS);
            prop_assert_eq!(steps.iter().map(|(_, counts)| counts[0]).sum::<u64>(), times.len() as u64);
            if let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) {
                prop_assert!(steps[0].0 <= first >> scale && last >> scale >= steps[steps.len() - 1].0);
            }
        }
    }
}
