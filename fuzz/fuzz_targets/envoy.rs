#![no_main]

use rsttrace::applog::Format;

libfuzzer_sys::fuzz_target!(|line: &[u8]| rsttrace_fuzz::check(Format::Envoy, line));
