//! `rsttrace doctor`: what works on this machine, what does not, and why. Nothing is believed that can
//! be tried: it attaches everything, makes connections end, and compares the records with what it did.

mod bundle;
mod checks;
mod ends;
pub mod fields;
mod judge;
mod lab;
mod must;
mod redact;
mod report;
mod text;
mod watch;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use jiff::Timestamp;

use self::{
    judge::Sources,
    report::{Check, Complaint, Delivery, End, Field, Hook, Outcome, Program, Report, Status},
    watch::Watched,
};
use crate::{
    cli::Doctor,
    clock::tick_ns,
    exit::{UNUSABLE, USAGE},
    output::{Rfc3339, escape::for_terminal, json},
    probe::{Options, Probe, ProbeError, attach, preflight},
    status, units,
};

/// The defaults of a run.
const BUFFER_BYTES: u32 = 8 << 20;
const MAX_SOCKETS: u32 = 262_144;

const NOT_NEEDED: &str = "not needed: other hooks show it on this kernel, or it was not asked for";
/// How the reason begins why nothing is known of a hook.
const UNTRIED: &str = "not tried";

/// Exit status where not all is fine.
const DEGRADED: u8 = 1;

/// Examines the machine and says what was found.
pub fn run(request: &Doctor) -> ExitCode {
    if let Some(path) = request.bundle.as_deref().filter(|path| path.symlink_metadata().is_ok()) {
        complain(&format!("--bundle: {} exists already", path.display()), "remove it, or give another name");
        return USAGE.into();
    }
    let mut report = examine(&request.without);
    if request.redact {
        redact::redact(&mut report);
    }
    let written = match print(&report, request.json) {
        // Whoever read it has gone: nobody is left to tell.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("cannot write to stdout: {error}"), "see what stdout leads to");
            false
        }
        _ => true,
    };
    let bundled = request.bundle.as_deref().is_none_or(|path| match bundle::write(path, &report) {
        Ok(()) => {
            let redacted = if request.redact { "redacted" } else { "not redacted: it names this host (--redact)" };
            status::say(&format!("rsttrace: wrote {}, {redacted}", for_terminal(&path.to_string_lossy())));
            true
        }
        Err(error) => {
            complain(&format!("--bundle: cannot write {}: {error}", path.display()), "give a name in a directory that you may write to");
            false
        }
    });
    // A machine that cannot run it is told from output that could not be written.
    let failed = if written && bundled { 0 } else { DEGRADED };
    report.status.max(failed).into()
}

fn complain(what: &str, hint: &str) {
    status::say(&format!("rsttrace: {}\nhint: {hint}", for_terminal(what)));
}

fn print(report: &Report, as_json: bool) -> io::Result<()> {
    let mut out = Vec::new();
    if as_json {
        json::line(&mut out, report)?
    } else {
        out = text::render(report).into_bytes()
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(&out)?;
    stdout.flush()
}

/// What was found out by trying.
struct Trial {
    checks: Vec<Check>,
    hooks: Vec<Hook>,
    fields: Vec<Field>,
    ends: Vec<End>,
    programs: Vec<Program>,
    records: Vec<serde_json::Value>,
}

fn examine(without: &[String]) -> Report {
    let mut checks = checks::run();
    let hopeless = checks.iter().find(|check| check.status == Status::Failed).map(|check| check.name);
    let trial = match hopeless {
        Some(check) => Trial::not_made(without, &format!("{UNTRIED}: see {check}"), None),
        None => try_it(without),
    };
    checks.extend(trial.checks);
    let degraded = complaints(&checks, &trial.hooks, &trial.fields, &trial.ends);
    let status = match checks.iter().map(|check| check.status).max() {
        Some(Status::Failed) => UNUSABLE,
        _ if degraded.is_empty() => 0,
        _ => DEGRADED,
    };
    let uname = rustix::system::uname();
    Report {
        schema: 1,
        record: "doctor",
        time: Rfc3339(Timestamp::now()).to_string(),
        version: env!("CARGO_PKG_VERSION"),
        kernel: uname.release().to_string_lossy().into_owned(),
        kernel_version: uname.version().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        host: uname.nodename().to_string_lossy().into_owned(),
        status,
        degraded,
        checks,
        hooks: trial.hooks,
        fields: trial.fields,
        ends: trial.ends,
        programs: trial.programs,
        records: trial.records,
    }
}

/// Attaches everything and makes ends.
fn try_it(without: &[String]) -> Trial {
    let options = Options {
        want_fin: true,
        buffer_bytes: BUFFER_BYTES,
        max_sockets: MAX_SOCKETS,
        without: without.to_vec(),
        syscall_hooks: false,
        kernel_log: false,
        choice: None,
        http: false,
    };
    let mut probe = match Probe::start_naming_us(&options) {
        Ok(probe) => probe,
        Err(ProbeError::Unusable { what, hint }) => {
            // Its hint is for who has not refused it.
            let hint = if without.is_empty() { hint } else { format!("leave out --without {}", without.join(",")) };
            let failed = Check::failed("hooks", what.clone(), hint);
            return Trial::not_made(without, &format!("{UNTRIED}: a required hook is missing"), Some((&what, failed)));
        }
    };
    let hooks: Vec<Hook> = attach::all()
        .iter()
        .map(|known| match probe.hooks.iter().find(|hook| hook.name == known.name) {
            Some(hook) => {
                Hook { name: hook.name, how: hook.how, extra: hook.extra, why: why_not(hook.name, hook.why_not.as_deref(), without) }
            }
            None => Hook { name: known.name, how: None, extra: true, why: Some(NOT_NEEDED.to_owned()) },
        })
        .collect();
    let missing = preflight::missing().unwrap_or_default();
    let known = Sources { hooks: &hooks, missing: &missing };
    let mut checks = vec![hooks_check(&hooks), buffer_check(&probe)];
    let programs = probe.programs().into_iter();
    let programs = programs
        .map(|facts| Program { name: facts.name, verified_instructions: facts.verified_instructions, bytes: facts.translated_bytes })
        .collect();
    let (fields, ends, records) = match watch::watch(&mut probe) {
        Ok(watched) => {
            let (fields, ends) = judge::judge(&watched, known);
            checks.extend([clock_check(&fields), ends_check(&watched, &ends)]);
            (fields, ends, watched.records)
        }
        Err(error) => {
            let why = format!("no loopback to make ends on: {error}");
            let fields = judge::untried(known, &why);
            checks.push(Check::degraded("made-ends", why, "bring it up: ip link set lo up"));
            (fields, Vec::new(), Vec::new())
        }
    };
    Trial { checks, hooks, fields, ends, programs, records }
}

impl Trial {
    /// Nothing is attached. `failure`: the loader's words, and the check that repeats them.
    fn not_made(without: &[String], why: &str, failure: Option<(&str, Check)>) -> Self {
        let named = failure.as_ref().map_or("", |(what, _)| *what);
        let hook = |name: &'static str| {
            let own = named.contains(&format!("cannot attach {name}:")).then_some(named);
            Hook { name, how: None, extra: false, why: why_not(name, Some(own.unwrap_or(why)), without) }
        };
        let hooks: Vec<_> = attach::all().iter().map(|known| hook(known.name)).collect();
        let fields = judge::untried(Sources { hooks: &hooks, missing: &[] }, "nothing is attached");
        let checks = failure.into_iter().map(|(_, check)| check).collect();
        Self { checks, hooks, fields, ends: Vec::new(), programs: Vec::new(), records: Vec::new() }
    }
}

fn why_not(name: &str, why: Option<&str>, without: &[String]) -> Option<String> {
    if without.iter().any(|refused| refused == name) {
        return Some("refused on request (--without)".to_owned());
    }
    why.map(str::to_owned)
}

/// A hook that this kernel does not need, or that is only more evidence, is not missed.
fn is_missed(hook: &Hook) -> bool {
    hook.how.is_none() && !hook.extra
}

fn is_untried(hook: &Hook) -> bool {
    hook.why.as_deref().is_some_and(|why| why.starts_with(UNTRIED))
}

fn hooks_check(hooks: &[Hook]) -> Check {
    let attached = hooks.iter().filter(|hook| hook.how.is_some()).count();
    let missed: Vec<_> = hooks.iter().filter(|hook| is_missed(hook)).map(|hook| hook.name).collect();
    let words = format!("{attached} of {} attached", attached + missed.len());
    if missed.is_empty() {
        return Check::ok("hooks", words);
    }
    Check::degraded("hooks", format!("{words}, without {}", missed.join(" and ")), "see below why not")
}

fn buffer_check(probe: &Probe) -> Check {
    let size = units::size(BUFFER_BYTES.into());
    let cost = units::size(probe.memory_bytes());
    Check::ok("buffer", format!("a ring of {size} (the default) was made; all maps and programs take {cost} of kernel memory"))
}

fn clock_check(fields: &[Field]) -> Check {
    const NAME: &str = "clocks";
    let jiffy = format!("a jiffy is {}", units::duration(tick_ns()));
    match fields.iter().find(|field| field.name == "time") {
        Some(Field { status: Delivery::Delivered, .. }) => {
            Check::ok(NAME, format!("the kernel's times of events lie between our readings of CLOCK_MONOTONIC; {jiffy}"))
        }
        Some(Field { status: Delivery::Wrong, why, .. }) => {
            let moved = preflight::monotonic_clock_is_moved();
            let hint = if moved { "this is a time namespace of its own: run rsttrace on the host" } else { "please report it" };
            // One of them says it for all.
            let off = why.as_deref().and_then(|why| why.split(';').next()).unwrap_or_default();
            Check::degraded(NAME, format!("the kernel's times of events are not between our readings of CLOCK_MONOTONIC: {off}"), hint)
        }
        _ => Check::degraded(NAME, format!("no event to compare with; {jiffy}"), "see made-ends"),
    }
}

fn ends_check(watched: &Watched, ends: &[End]) -> Check {
    const NAME: &str = "made-ends";
    let place = match &watched.lab.shared {
        None => "in a network namespace of its own".to_owned(),
        Some(why) => format!("on this namespace's loopback, because {why}"),
    };
    let told = ends.iter().filter(|end| matches!(end.outcome, Outcome::Right | Outcome::Partial)).count();
    let took = units::duration(u64::try_from(watched.took.as_nanos()).unwrap_or(u64::MAX));
    let words = format!("{told} of {} made and told {place}, in {took}", ends.len());
    if watched.lost > 0 || watched.undecodable > 0 {
        let words = format!("{words}; {} events lost, {} not understood", watched.lost, watched.undecodable);
        return Check::degraded(NAME, words, "a busy host: try again when it is quieter, and trace with a larger --buffer");
    }
    if ends.iter().any(is_bad) {
        return Check::degraded(NAME, words, "see below which, and why");
    }
    Check::ok(NAME, words)
}

fn is_bad(end: &End) -> bool {
    // Where there is no IPv6, none can be made.
    let no_ipv6 = [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT].map(|errno| io::Error::from_raw_os_error(errno).to_string());
    let absent = end.name == "ipv6" && end.why.as_ref().is_some_and(|why| no_ipv6.contains(why));
    matches!(end.outcome, Outcome::NoRecord | Outcome::NotMade) && !absent
}

/// Everything that makes this machine less than it could be, the cause before what follows.
fn complaints(checks: &[Check], hooks: &[Hook], fields: &[Field], ends: &[End]) -> Vec<Complaint> {
    // These two are sums of what follows.
    let sum = |check: &Check| check.status == Status::Degraded && check.name == "hooks";
    let bad_checks = checks.iter().filter(|check| check.status != Status::Ok && !sum(check));
    let mut all: Vec<_> = bad_checks.map(|check| Complaint { what: check.name.to_owned(), why: check.detail.clone() }).collect();
    all.extend(hooks.iter().filter(|hook| is_missed(hook) && !is_untried(hook)).map(|hook| {
        let why = hook.why.as_deref().unwrap_or("not attached");
        let cost = attach::all().iter().find(|known| known.name == hook.name).and_then(|known| known.cost_of_missing);
        let cost = cost.unwrap_or("nothing works without it");
        Complaint { what: hook.name.to_owned(), why: format!("{why}; {cost}") }
    }));
    all.extend(
        ends.iter().filter(|end| is_bad(end)).map(|end| Complaint { what: end.name.to_owned(), why: end.why.clone().unwrap_or_default() }),
    );
    let silent = fields.iter().filter(|field| matches!(field.status, Delivery::Null | Delivery::Wrong));
    all.extend(silent.map(|field| Complaint {
        what: field.name.to_owned(),
        why: format!("{}: {}", field.status.word(), field.why.as_deref().unwrap_or_default()),
    }));
    all
}
