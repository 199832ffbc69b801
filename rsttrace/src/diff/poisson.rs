//! Whether two counts may come from the same rate.
//!
//! Ends that come independently at a steady rate are counted by a Poisson law. Given that `a` came in the time `t_a` and
//! `b` in `t_b`, and if the rate was the same, each of the `a + b` fell into the second time with probability
//! `t_b / (t_a + t_b)`, like coins thrown: `b` follows a binomial law, whatever the rate is. The test asks how probable it is,
//! under that law, to see a split that is no more probable than the one at hand: the two-sided exact conditional test
//! (J. Przyborowski and H. Wilenski, "Homogeneity of results in testing samples from Poisson series", Biometrika 31, 1940,
//! pages 313-323), as `poisson.test` and `binom.test` of R do it.

/// Splits that are this near in probability are equally probable, as in R.
const TOLERANCE: f64 = 1e-7;
/// Smaller terms change no sum that anybody looks at.
const NEGLIGIBLE: f64 = 1e-17;

/// The probability of a split of `a + b` that is no more probable than this one, 0 to 1, if the rates are equal.
/// `part`: of the whole time, that of `b`; above 0 and below 1.
pub fn equal_rates(a: u64, b: u64, part: f64) -> f64 {
    let law = Binomial { n: a.saturating_add(b), p: part };
    let observed = law.ln(b) + TOLERANCE;
    let mode = law.mode();
    // The law rises up to its mode and falls from there: what is no more probable lies at both ends.
    let below = last(0, mode, |k| law.ln(k) <= observed);
    let above = last(0, law.n - mode, |k| law.ln(law.n - k) <= observed).map(|k| law.n - k);
    let sum = match (below, above) {
        // All of it.
        (Some(below), Some(above)) if above <= below.saturating_add(1) => 1.0,
        (below, above) => below.map_or(0.0, |k| law.sum_down(k)) + above.map_or(0.0, |k| law.sum_up(k)),
    };
    sum.min(1.0)
}

/// The least that [`equal_rates`] can be for so many: if it is not small, they are too few to tell anything.
pub fn least(n: u64, part: f64) -> f64 {
    equal_rates(0, n, part).min(equal_rates(n, 0, part))
}

/// The last of a range up to which `holds`; `None` where it does not hold at its beginning.
fn last(from: u64, to: u64, holds: impl Fn(u64) -> bool) -> Option<u64> {
    if !holds(from) {
        return None;
    }
    let (mut yes, mut no) = (from, to.saturating_add(1));
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if holds(middle) { yes = middle } else { no = middle }
    }
    Some(yes)
}

struct Binomial {
    n: u64,
    p: f64,
}

impl Binomial {
    fn mode(&self) -> u64 {
        ((((self.n as f64) + 1.0) * self.p).floor() as u64).min(self.n)
    }

    /// The logarithm of the probability of `k`.
    fn ln(&self, k: u64) -> f64 {
        let rest = self.n - k;
        let choices = ln_factorial(self.n) - ln_factorial(k) - ln_factorial(rest);
        choices + k as f64 * self.p.ln() + rest as f64 * (-self.p).ln_1p()
    }

    /// The probability of at most `k`, which is not above the mode.
    fn sum_down(&self, k: u64) -> f64 {
        let odds = self.p / (1.0 - self.p);
        self.sum(k, |k| (k > 0).then(|| (k - 1, k as f64 / ((self.n - k + 1) as f64 * odds))))
    }

    /// The probability of at least `k`, which is not below the mode.
    fn sum_up(&self, k: u64) -> f64 {
        let odds = self.p / (1.0 - self.p);
        self.sum(k, |k| (k < self.n).then(|| (k + 1, (self.n - k) as f64 * odds / (k + 1) as f64)))
    }

    /// From `k` on; `next`: the next one, and its probability relative to this one's.
    fn sum(&self, k: u64, next: impl Fn(u64) -> Option<(u64, f64)>) -> f64 {
        let (mut sum, mut term, mut at) = (1.0, 1.0, k);
        while let Some((k, ratio)) = next(at) {
            term *= ratio;
            sum += term;
            at = k;
            if term < NEGLIGIBLE * sum {
                break;
            }
        }
        sum * self.ln(k).exp()
    }
}

/// By Stirling's series beyond what is exact.
fn ln_factorial(n: u64) -> f64 {
    if n < 20 {
        return ((1..=n).product::<u64>() as f64).ln();
    }
    let x = n as f64;
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1_260.0 * x.powi(5));
    x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln() + series
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the book: all probabilities, and the sum of those that are not larger.
    fn by_the_book(a: u64, b: u64, part: f64) -> f64 {
        let n = a + b;
        let all: Vec<f64> = (0..=n)
            .map(|k| {
                let choices: f64 = (1..=k).map(|i| (n - k + i) as f64 / i as f64).product();
                choices * part.powi(k as i32) * (1.0 - part).powi((n - k) as i32)
            })
            .collect();
        all.iter().filter(|p| **p <= all[b as usize] * (1.0 + TOLERANCE)).sum()
    }

    #[test]
    fn known_values() {
        // Coins: 0 of 5, and 1 of 10 heads.
        assert!((equal_rates(5, 0, 0.5) - 2.0 / 32.0).abs() < 1e-12);
        assert!((equal_rates(9, 1, 0.5) - 22.0 / 1_024.0).abs() < 1e-12);
        assert_eq!(equal_rates(0, 0, 0.3), 1.0);
        assert_eq!(equal_rates(7, 7, 0.5), 1.0);
        // Three in a time, none in one nine times as long.
        assert!((equal_rates(0, 3, 0.1) - 0.001).abs() < 1e-12);
        assert!((least(5, 0.5) - 2.0 / 32.0).abs() < 1e-12);
    }

    #[test]
    fn large_counts_take_no_time_and_stay_probabilities() {
        for (a, b) in [(0, u64::from(u32::MAX)), (1 << 40, 1 << 40), (1_000_000, 1_003_000), (u64::MAX / 2, 3)] {
            let p = equal_rates(a, b, 0.5);
            assert!((0.0..=1.0).contains(&p), "{a} {b}: {p}");
        }
        // Two standard deviations of the difference of two large counts.
        let p = equal_rates(1_000_000, 1_002_828, 0.5);
        assert!((p - 0.0455).abs() < 0.001, "{p}");
    }

    proptest! {
        #[test]
        fn it_is_as_the_book_has_it(a in 0u64..60, b in 0u64..60, part in 0.02f64..0.98) {
            let (ours, book) = (equal_rates(a, b, part), by_the_book(a, b, part));
            prop_assert!((ours - book).abs() < 1e-9 * book.max(1e-3), "{ours} {book}");
        }
    }
}
