//! The confusion matrix with a fixed seed; `cargo xtask confusion --seed N` draws others.

use std::process::Command;

use rsttrace_tests::{require_root, require_tool};

#[test]
fn of_a_thousand_ends_of_all_kinds_every_one_is_reported_as_it_was_made() {
    require_root!();
    require_tool!("nft");
    require_tool!("ss");
    let output = Command::new(env!("CARGO_BIN_EXE_confusion")).args(["--seed", "1009", "--ends", "1009"]).output().expect("the generator");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("nothing is off the diagonal"));
}
