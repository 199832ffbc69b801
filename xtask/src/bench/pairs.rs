//! The order of runs that are compared, and what their ratios say. Pure.

/// For each round the order in which the conditions run: forwards and backwards in turn (A B B A), so that a drift of the
/// machine hits all alike.
pub fn orders(conditions: usize, rounds: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..rounds).map(move |round| if round % 2 == 0 { (0..conditions).collect() } else { (0..conditions).rev().collect() })
}

/// Where the middle of some figures is, and the middle half of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// Of figures in any order; of none, no number.
    pub fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quantile| quantile_of(&sorted, quantile);
        Self { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// Of the ratios of what was measured in the same rounds.
    pub fn of_ratios(figures: &[f64], to: &[f64]) -> Self {
        Self::of(&figures.iter().zip(to).map(|(figure, to)| figure / to).collect::<Vec<_>>())
    }
}

/// Between the two nearest, by their distance.
fn quantile_of(sorted: &[f64], quantile: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = last as f64 * quantile;
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_conditions_run_as_a_b_b_a() {
        assert_eq!(orders(2, 4).collect::<Vec<_>>().concat(), [0, 1, 1, 0, 0, 1, 1, 0]);
        assert_eq!(orders(3, 2).collect::<Vec<_>>().concat(), [0, 1, 2, 2, 1, 0]);
    }

    #[test]
    fn quartiles_lie_between_figures() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { low: 1.5, median: 2.0, high: 2.5 });
        assert_eq!(Spread::of(&[7.0]), Spread { low: 7.0, median: 7.0, high: 7.0 });
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn ratios_are_of_the_same_round_and_not_of_the_medians() {
        // A machine that is ten times as slow in every other round is no spread.
        let spread = Spread::of_ratios(&[99.0, 9.9, 990.0], &[100.0, 10.0, 1000.0]);
        assert!([spread.low, spread.median, spread.high].iter().all(|ratio| (ratio - 0.99).abs() < 1e-9), "{spread:?}");
    }
}
