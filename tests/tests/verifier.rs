//! How far the verifier has to go through each program. It gives up at a million instructions, and a branch in the wrong place
//! may double them: that should be noticed when it is written.

use rsttrace_tests::{Tracer, bpf, require_root, tell_skipped};

/// The kernel that they were measured on; another's verifier counts otherwise.
const KERNEL: &str = "6.18.";

/// Programs by the first 15 characters of their names, and the instructions that are allowed: about 1.3 times what Linux 6.18
/// went through, plain and with `--http`. To renew it, run the test with `--nocapture`, which prints today's numbers; other
/// kernels are compared by `cargo xtask vm`.
const BOUNDS: [(&str, u32, u32); 11] = [
    ("getsockopt", 10_500, 10_500),
    ("inet_sock_set_s", 27_000, 28_000),
    ("sched_process_e", 120, 120),
    ("sched_process_f", 200, 200),
    ("seed_owners", 750, 750),
    ("sock_recv_lengt", 19_000, 62_000),
    ("sock_send_lengt", 19_000, 62_000),
    ("tcp_destroy_soc", 1_400, 1_700),
    ("tcp_probe", 650, 650),
    ("tcp_receive_res", 3_200, 3_400),
    ("tcp_send_reset", 12_000, 12_500),
];

/// For programs that only other kernels need.
const OTHERS: u32 = 50_000;

#[test]
fn no_program_takes_the_verifier_much_longer_than_it_did() {
    require_root!();
    check("plain", &[], |(_, plain, _)| plain);
    check("--http", &["--http", "--pid", "rsttrace-nobody"], |(_, _, http)| http);
}

fn check(what: &str, flags: &[&str], bound: impl Fn((&str, u32, u32)) -> u32) {
    let tracer = Tracer::start(flags);
    let programs = bpf::programs(tracer.pid()).expect("descriptions of the programs");
    tracer.stop();
    assert!(!programs.is_empty(), "{what}: the tracer holds no programs");
    if programs.iter().all(|program| program.verified_instructions == 0) {
        return tell_skipped("the kernel does not count what it verifies (5.16 does)");
    }
    let is_measured = std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| release.starts_with(KERNEL));
    for program in programs {
        let bound = BOUNDS.into_iter().find(|(name, ..)| *name == program.name).map_or(OTHERS, &bound);
        let bpf::Program { name, verified_instructions, .. } = program;
        println!("{what}: {name} {verified_instructions} of {bound}");
        assert!(
            !is_measured || verified_instructions <= bound,
            "{what}: {name} takes {verified_instructions} instructions to verify, more than {bound}"
        );
    }
}
