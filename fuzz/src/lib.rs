//! What every log format must hold to, for the targets in fuzz_targets/.

use rsttrace::applog::{Format, Parsed};

/// Parses a line; panics if what came out was not in it.
pub fn check(format: Format, line: &[u8]) {
    let Parsed::About(about) = format.parser().parse(line) else { return };
    let given = String::from_utf8_lossy(line);
    assert_eq!(about.raw, given);
    for text in [&about.request, &about.upstream_text, &about.host, &about.phrase].into_iter().flatten() {
        assert!(given.contains(text.as_str()), "{text:?} is not in {given:?}");
    }
}
