//! Which line goes with which record, where several could: what holds in every best assignment is
//! certain, the rest is ambiguous.

/// Beyond so many pairs nothing is worked out.
const MAX_PAIRS: usize = 4_000_000;
/// Without an order every pair is tried.
const MAX_UNORDERED: usize = 24;

/// What became of one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Records with which it goes in some best assignment.
    pub records: Vec<usize>,
    /// It goes with one of them in every best assignment.
    pub always: bool,
}

/// Whether so many can be worked out in a moment, and in little memory.
pub fn can_work_out(lines: usize, records: usize, ordered: bool) -> bool {
    if ordered { lines.saturating_mul(records) <= MAX_PAIRS } else { lines.max(records) <= MAX_UNORDERED }
}

/// Assigns as many lines to records as possible, each to at most one; only where [`can_work_out`].
/// `ordered`: both are in the order in which one thread met the errors and wrote the lines, so that
/// pairs do not cross.
pub fn align(lines: usize, records: usize, ordered: bool, fits: impl Fn(usize, usize) -> bool) -> Vec<Candidates> {
    let fits: Vec<Vec<bool>> = (0..lines).map(|line| (0..records).map(|record| fits(line, record)).collect()).collect();
    if ordered { in_order(&fits, records) } else { in_any_order(&fits, records) }
}

/// Longest chains of pairs that do not cross, from both ends.
fn in_order(fits: &[Vec<bool>], records: usize) -> Vec<Candidates> {
    let lines = fits.len();
    // before[i][j]: pairs among the first i lines and j records; after[i][j]: among the others.
    let mut before = vec![vec![0u32; records + 1]; lines + 1];
    for i in 0..lines {
        for j in 0..records {
            let paired = if fits[i][j] { before[i][j] + 1 } else { 0 };
            before[i + 1][j + 1] = paired.max(before[i][j + 1]).max(before[i + 1][j]);
        }
    }
    let mut after = vec![vec![0u32; records + 1]; lines + 1];
    for i in (0..lines).rev() {
        for j in (0..records).rev() {
            let paired = if fits[i][j] { after[i + 1][j + 1] + 1 } else { 0 };
            after[i][j] = paired.max(after[i + 1][j]).max(after[i][j + 1]);
        }
    }
    let best = after[0][0];
    (0..lines)
        .map(|i| Candidates {
            records: (0..records).filter(|&j| fits[i][j] && before[i][j] + 1 + after[i + 1][j + 1] == best).collect(),
            always: (0..=records).all(|j| before[i][j] + after[i + 1][j] < best),
        })
        .collect()
}

fn in_any_order(fits: &[Vec<bool>], records: usize) -> Vec<Candidates> {
    let best = matching(fits, records, None, None);
    (0..fits.len())
        .map(|i| Candidates {
            records: (0..records).filter(|&j| fits[i][j] && matching(fits, records, Some(i), Some(j)) + 1 == best).collect(),
            always: matching(fits, records, Some(i), None) < best,
        })
        .collect()
}

/// Size of a largest matching (augmenting paths), without one line and one record.
fn matching(fits: &[Vec<bool>], records: usize, without_line: Option<usize>, without_record: Option<usize>) -> usize {
    fn augment(fits: &[Vec<bool>], line: usize, without: Option<usize>, visited: &mut [bool], taken: &mut [Option<usize>]) -> bool {
        for record in 0..taken.len() {
            if !fits[line][record] || visited[record] || Some(record) == without {
                continue;
            }
            visited[record] = true;
            if taken[record].is_none_or(|other| augment(fits, other, without, visited, taken)) {
                taken[record] = Some(line);
                return true;
            }
        }
        false
    }
    let mut taken = vec![None; records];
    (0..fits.len())
        .filter(|&line| Some(line) != without_line && augment(fits, line, without_record, &mut vec![false; records], &mut taken))
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certain(candidates: &[Candidates]) -> Vec<Option<usize>> {
        candidates.iter().map(|c| if c.always && c.records.len() == 1 { Some(c.records[0]) } else { None }).collect()
    }

    #[test]
    fn as_many_lines_as_records_in_one_order_are_certain() {
        let found = align(3, 3, true, |_, _| true);
        assert_eq!(certain(&found), [Some(0), Some(1), Some(2)]);
        // Without an order, nothing is.
        assert_eq!(certain(&align(3, 3, false, |_, _| true)), [None; 3]);
    }

    #[test]
    fn one_line_and_two_records_that_fit_are_ambiguous() {
        for ordered in [true, false] {
            let found = align(1, 2, ordered, |_, _| true);
            assert_eq!(found, [Candidates { records: vec![0, 1], always: true }]);
        }
    }

    #[test]
    fn what_fits_only_one_makes_the_others_certain() {
        // The first line fits both records, the second only the first.
        let found = align(2, 2, false, |line, record| line == 0 || record == 0);
        assert_eq!(certain(&found), [Some(1), Some(0)]);
        // In order they would cross: only one of the two pairs can be.
        let found = align(2, 2, true, |line, record| line == 0 || record == 0);
        assert_eq!(certain(&found), [None, None]);
    }

    #[test]
    fn too_many_are_not_worked_out() {
        assert!(can_work_out(24, 24, false) && !can_work_out(25, 1, false));
        assert!(can_work_out(2_000, 2_000, true) && !can_work_out(2_001, 2_000, true));
    }

    type Pairs = Vec<(usize, usize)>;

    /// All largest sets of pairs, by trying.
    fn brute(ordered: bool, fits: &[Vec<bool>]) -> Vec<Pairs> {
        let mut all: Vec<Pairs> = vec![Vec::new()];
        for (i, row) in fits.iter().enumerate() {
            for pairs in all.clone() {
                let free = |j: usize| pairs.iter().all(|&(_, other)| if ordered { other < j } else { other != j });
                all.extend((0..row.len()).filter(|&j| row[j] && free(j)).map(|j| [&pairs[..], &[(i, j)]].concat()));
            }
        }
        let best = all.iter().map(Vec::len).max().unwrap_or(0);
        all.retain(|pairs| pairs.len() == best);
        all
    }

    proptest! {
        #[test]
        fn what_is_certain_is_in_every_best_assignment(fits in prop::collection::vec(prop::collection::vec(any::<bool>(), 4), 0..5), ordered: bool) {
            let all = brute(ordered, &fits);
            for (i, found) in align(fits.len(), 4, ordered, |i, j| fits[i][j]).into_iter().enumerate() {
                let of_line = |pairs: &Pairs| pairs.iter().find(|pair| pair.0 == i).map(|pair| pair.1);
                let mut records: Vec<_> = all.iter().filter_map(of_line).collect();
                records.sort_unstable();
                records.dedup();
                prop_assert_eq!(&found.records, &records);
                prop_assert_eq!(found.always, all.iter().all(|pairs| of_line(pairs).is_some()));
            }
        }
    }
}
