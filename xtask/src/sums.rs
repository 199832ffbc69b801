//! What test programs print, added up.

/// What the test programs' lines add up to.
#[derive(Default)]
pub struct Sums {
    /// As the test programs count: a test that returned early is one of these.
    ran_well: usize,
    /// Tests that returned early, each with its reason.
    returned_early: usize,
    /// `name: why`
    pub skipped: Vec<String>,
    /// What cannot be looked at here, and why; no failure anywhere.
    pub left_out: Vec<String>,
    pub failed: Vec<String>,
    ok: Vec<String>,
    /// Failed at first, and passed alone.
    pub again: Vec<String>,
    /// A test program has said how many tests it runs, and not yet how that went.
    unfinished: bool,
}

impl Sums {
    pub fn passed(&self) -> usize {
        self.ran_well.saturating_sub(self.returned_early)
    }

    /// Takes one line of libtest's output.
    pub fn read_line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.unfinished = false;
            self.ran_well += rest.split_once(". ").map_or(0, |(_, counts)| leading_number(counts));
        } else if let Some(rest) = line.strip_prefix("test ") {
            if let Some((name, outcome)) = rest.rsplit_once(" ... ") {
                self.read_outcome(name, outcome);
            }
        } else if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.note_unfinished();
            self.unfinished = true;
        }
    }

    fn read_outcome(&mut self, name: &str, outcome: &str) {
        if outcome == "ok" {
            self.ok.push(name.to_owned());
        } else if outcome.starts_with("FAILED") {
            self.failed.push(name.to_owned());
        } else if let Some(why) = outcome.strip_prefix("ignored") {
            let why = why.strip_prefix(", ").unwrap_or("marked #[ignore]");
            self.skipped.push(format!("{name}: {why}"));
        }
    }

    fn note_unfinished(&mut self) {
        if self.unfinished {
            self.failed.push("a test program that ended before its tests did".to_owned());
        }
    }

    /// Takes the second attempt of what failed in.
    pub fn retried(&mut self, second: &Self) {
        let failed = std::mem::take(&mut self.failed);
        // What is no test's name was not tried again; and tests of two programs may share a name.
        let passed = |name: &String| second.ok.contains(name) && !second.failed.contains(name);
        let (again, failed): (Vec<_>, _) = failed.into_iter().partition(passed);
        self.ran_well += again.len();
        self.failed = failed;
        self.again.extend(again);
        let further: Vec<String> = second.failed.iter().filter(|name| !self.failed.contains(name)).cloned().collect();
        self.failed.extend(further);
    }

    /// One more thing that was tried; `problem`: why it failed.
    pub fn note(&mut self, name: &str, problem: Option<String>) {
        match problem {
            None => self.ran_well += 1,
            Some(problem) => self.failed.push(format!("{name}: {problem}")),
        }
    }

    /// Skips for these reasons are meant.
    pub fn expect_skips(&mut self, reasons: &[&str]) {
        self.skipped.retain(|skip| !reasons.iter().any(|reason| skip.ends_with(reason)));
    }

    pub fn is_empty(&self) -> bool {
        self.ran_well == 0 && self.failed.is_empty() && self.skipped.is_empty()
    }

    /// Takes another program's in.
    pub fn add(&mut self, program: &str, other: Self) {
        self.ran_well += other.ran_well;
        self.returned_early += other.returned_early;
        self.skipped.extend(other.skipped.into_iter().map(|skip| format!("{program}: {skip}")));
        self.failed.extend(other.failed.into_iter().map(|name| format!("{program}: {name}")));
        self.again.extend(other.again.into_iter().map(|name| format!("{program}: {name}")));
    }

    pub fn end(&mut self, success: bool) {
        self.note_unfinished();
        self.unfinished = false;
        if !success && self.failed.is_empty() {
            self.failed.push("a program that failed (its messages say why)".to_owned());
        }
    }

    /// Takes what the tests wrote into the file that RSTTRACE_SKIPS names: `name: why` each.
    pub fn add_skips(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.is_empty()) {
            let line = line.to_owned();
            if !self.skipped.contains(&line) {
                self.returned_early += 1;
                self.skipped.push(line);
            }
        }
    }
}

fn leading_number(text: &str) -> usize {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(output: &str, success: bool) -> Sums {
        let mut sums = Sums::default();
        output.lines().for_each(|line| sums.read_line(line));
        sums.end(success);
        sums
    }

    #[test]
    fn the_results_of_all_test_programs_add_up() {
        let sums = sums(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             running 3 tests\ntest c::d ... FAILED\ntest e ... ok\ntest f ... ignored, needs a cluster\n\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            false,
        );
        assert_eq!(sums.passed(), 3);
        assert_eq!(sums.failed, ["c::d"]);
        assert_eq!(sums.skipped, ["f: needs a cluster"]);
    }

    #[test]
    fn a_test_that_returned_early_is_skipped_and_not_passed() {
        let mut sums = sums("running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored;\n", true);
        sums.add_skips("a: needs root\n");
        assert_eq!((sums.passed(), sums.failed.len()), (1, 0));
        assert_eq!(sums.skipped, ["a: needs root"]);
    }

    #[test]
    fn what_passes_alone_has_passed_and_is_named() {
        let first = "running 3 tests\ntest a ... FAILED\ntest b ... FAILED\ntest c ... ok\ntest result: FAILED. 1 passed; 2 failed;\n";
        let mut sums = sums(first, false);
        sums.retried(&self::sums("running 2 tests\ntest a ... FAILED\ntest b ... ok\ntest result: FAILED. 1 passed; 1 failed;\n", false));
        assert_eq!((sums.passed(), &sums.failed[..], &sums.again[..]), (2, &["a".to_owned()][..], &["b".to_owned()][..]));
    }

    #[test]
    fn a_test_program_that_dies_is_a_failure() {
        let sums = sums("running 2 tests\ntest a ... ok\nrunning 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n", false);
        assert_eq!(sums.failed.len(), 1);
        assert_eq!(sums.passed(), 1);
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        assert_eq!(sums("", false).failed.len(), 1);
    }
}
