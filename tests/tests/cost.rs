//! What a record costs the user half, in numbers that do not depend on how busy the machine is.

#[path = "../../rsttrace/benches/steady/mod.rs"]
mod steady;

use std::{
    env,
    process::Command,
    sync::{Mutex, atomic::Ordering},
};

use rsttrace_tests::tell_skipped;
use steady::{ALLOCATIONS, Steady};

/// Until memory is as large as it gets.
const WARM_UP: u64 = 50;
const MEASURED: u64 = 20;
/// An allocation now and then, when the last unpaired end of all leaves its tree and the next one plants it anew.
const MAX_ALLOCATIONS: f64 = 0.1;
/// Instructions per record without optimisation, of which an optimised build takes about a tenth: 1.3 times what they are
/// today. To renew them, run the test with `--nocapture`, which prints today's numbers.
const MAX_INSTRUCTIONS: [(&str, u64); 2] = [("json", 245_000), ("text", 195_000)];

/// Tells the test which is run by valgrind how much to do.
const ROUNDS: &str = "RSTTRACE_COST_ROUNDS";
const FORMAT: &str = "RSTTRACE_COST_FORMAT";

/// The allocator counts for all threads.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn no_record_allocates_in_the_steady_state() {
    let _alone = ALONE.lock();
    let mut steady = Steady::new("json").expect("the recording");
    steady.rounds(WARM_UP);
    let before = (ALLOCATIONS.load(Ordering::Relaxed), steady.records);
    steady.rounds(MEASURED);
    let per_record = (ALLOCATIONS.load(Ordering::Relaxed) - before.0) as f64 / (steady.records - before.1) as f64;
    println!("{per_record:.3} allocations per record");
    assert!(per_record <= MAX_ALLOCATIONS, "{per_record:.3} allocations per record");
    assert!(steady.bytes > 0 && !steady.busy.is_zero());
}

#[test]
fn instructions_per_record_stay_within_their_bounds() {
    if env::var_os(ROUNDS).is_some() {
        return;
    }
    let _alone = ALONE.lock();
    if Command::new("valgrind").arg("--version").output().is_err() {
        return tell_skipped("valgrind is not installed: instructions are not counted");
    }
    let records = {
        let mut steady = Steady::new("json").expect("the recording");
        steady.rounds(MEASURED);
        steady.records
    };
    for (format, bound) in MAX_INSTRUCTIONS {
        let per_record = (instructions(format, 2 + MEASURED) - instructions(format, 2)) / records;
        println!("{format}: {per_record} instructions per record of {bound}");
        assert!(per_record <= bound, "{format}: {per_record} instructions per record, more than {bound}");
    }
}

/// Instructions of this program when it does so many rounds.
fn instructions(format: &str, rounds: u64) -> u64 {
    let ours = env::current_exe().expect("this program");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(ours);
    valgrind.args(["--exact", "rounds_that_valgrind_counts", "--test-threads=1"]).env(ROUNDS, rounds.to_string()).env(FORMAT, format);
    let output = valgrind.output().expect("valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let counted = said.lines().find_map(|line| line.split_once("Collected :")).map(|(_, n)| n.trim().parse());
    counted.and_then(Result::ok).unwrap_or_else(|| panic!("valgrind counts nothing: {said}"))
}

/// Does nothing but under valgrind.
#[test]
fn rounds_that_valgrind_counts() {
    let Ok(rounds) = env::var(ROUNDS) else { return };
    let format = env::var(FORMAT).expect("a format");
    Steady::new(&format).expect("the recording").rounds(rounds.parse().expect("a number"));
}
