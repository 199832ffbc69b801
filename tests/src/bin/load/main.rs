//! What the benchmarks need in a tight loop. It says `ready`, does its work when it reads a line from standard input, and says
//! what it did in a line of JSON. At the end of input it goes away, and leaves nothing behind.

mod aborts;
mod bulk;
mod hold;

use std::{
    env,
    hint::black_box,
    io::{self, Error, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use rsttrace_tests::bpf::{self, EmptyProgram, Statistics};

const USAGE: &str = "\
load getppid SECONDS          getppid() as fast as can be
load aborts COUNT SECONDS     connections that are aborted, COUNT or for SECONDS
load bulk SECONDS             one connection over loopback, as fast as can be
load hold SOCKETS NUMBER      open sockets, half as many connections, from addresses of this NUMBER; aborted by a line of input
load hooks [--stats] NAME...  empty programs on these tracepoints; with --stats the kernel times all programs
load programs PID             the BPF programs of a process";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> io::Result<()> {
    match args {
        ["getppid", seconds] => when_told(|| getppid(duration(seconds)?)),
        ["aborts", count, seconds] => {
            let (count, limit) = (number(count)?, duration(seconds)?);
            when_told(|| aborts::make(count, limit))
        }
        ["bulk", seconds] => bulk::prepare().and_then(|pair| when_told(|| pair.transfer(duration(seconds)?))),
        ["hold", sockets, number_] => {
            let held = hold::open(number(sockets)?, number(number_)?)?;
            when_told(|| Ok(format!("\"aborted\":{}", held.abort())))
        }
        ["hooks", "--stats", tracepoints @ ..] => {
            let _statistics = Statistics::enable()?;
            hooks(tracepoints)
        }
        ["hooks", tracepoints @ ..] => hooks(tracepoints),
        ["programs", pid] => programs(number(pid)? as libc::pid_t),
        _ => Err(Error::other(format!("what to do?\n{USAGE}"))),
    }
}

/// Says `ready`, waits for a line, works, and says what came of it and what CPU time it took.
fn when_told(work: impl FnOnce() -> io::Result<String>) -> io::Result<()> {
    if !ready()? {
        return Ok(());
    }
    let before = cpu_ns();
    let done = work()?;
    println!("{{{done},\"cpu_ns\":{}}}", cpu_ns() - before);
    // Peers that look at this process are stopped first.
    wait_for_line().map(drop)
}

/// Whether there was a line of input, rather than its end.
fn ready() -> io::Result<bool> {
    println!("ready");
    io::stdout().flush()?;
    wait_for_line()
}

fn wait_for_line() -> io::Result<bool> {
    Ok(io::stdin().read_line(&mut String::new())? > 0)
}

fn getppid(limit: Duration) -> io::Result<String> {
    let begun = Instant::now();
    let mut calls = 0_u64;
    while begun.elapsed() < limit {
        for _ in 0..10_000 {
            // SAFETY: no preconditions.
            black_box(unsafe { libc::getppid() });
        }
        calls += 10_000;
    }
    Ok(result(calls, begun))
}

fn hooks(tracepoints: &[&str]) -> io::Result<()> {
    let attach = |name: &&str| EmptyProgram::attach(name).map_err(|error| Error::other(format!("tracepoint {name}: {error}")));
    let _attached = tracepoints.iter().map(attach).collect::<io::Result<Vec<_>>>()?;
    ready().map(drop)
}

fn programs(pid: libc::pid_t) -> io::Result<()> {
    for program in bpf::programs(pid)? {
        let bpf::Program { name, runs, run_ns, .. } = program;
        println!("{{\"name\":\"{name}\",\"runs\":{runs},\"run_ns\":{run_ns}}}");
    }
    Ok(())
}

/// What was done, as members of a JSON object.
fn result(work: u64, begun: Instant) -> String {
    format!("\"work\":{work},\"seconds\":{}", begun.elapsed().as_secs_f64())
}

/// CPU time of this process so far.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| Error::other(format!("{text} is no number")))
}

fn duration(text: &str) -> io::Result<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| Error::other(format!("{text} is no time in seconds")))
}

/// Allows as many descriptors as the system lets this process have.
fn allow_descriptors(wanted: usize) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 && limit.rlim_cur >= wanted as u64 {
        return Ok(());
    }
    limit = libc::rlimit { rlim_cur: wanted as u64, rlim_max: limit.rlim_max.max(wanted as u64) };
    // SAFETY: `limit` is valid.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
        return Ok(());
    }
    let error = Error::last_os_error();
    Err(Error::other(format!("{wanted} descriptors are not allowed here ({error}): raise the limit (ulimit -Hn)")))
}
