//! The same load under several conditions in turn, and proof in each run that the tracer was alive.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::{
    Bench,
    load::Load,
    pairs::{self, Spread},
    peers::{PEERS, Peer},
    process::Process,
    programs,
    report::{Report, grouped, ratio, spread},
    tracer::{Traced, Tracer},
};

/// Connections that are aborted beside each load; of each, both ends must be reported.
const ABORTS: usize = 20;

/// What a load did in one run.
#[derive(Clone, Copy)]
pub struct Run {
    pub work: f64,
    pub seconds: f64,
    /// CPU time of the processes that did it.
    pub cpu_ns: f64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.work / self.seconds
    }

    fn cpu_per_work(&self) -> f64 {
        self.cpu_ns / self.work
    }
}

/// Work that is counted: it says which process does it, so that somebody can look at that, and begins afterwards. A process
/// of its own is given back, to be let go when nobody looks any more.
pub type Work<'a> = &'a dyn Fn(Watch) -> Result<(Run, Option<Load>)>;
pub type Watch<'a> = &'a mut dyn FnMut(u32) -> Result<()>;

/// Work that `load` does.
pub fn by_load(mut load: Load, watch: Watch) -> Result<(Run, Option<Load>)> {
    watch(load.pid())?;
    Ok((load.run()?, Some(load)))
}

/// Who watches.
pub enum Condition {
    Untraced,
    /// rsttrace with these flags; its records are read, or go to /dev/null.
    Traced {
        name: &'static str,
        flags: &'static [&'static str],
        read: bool,
    },
    /// Programs that do nothing on the hooks that run most.
    EmptyPrograms,
    Peer(&'static Peer),
}

impl Condition {
    pub const TRACED: Self = Self::Traced { name: "rsttrace", flags: &["--json"], read: true };

    fn name(&self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Traced { name, .. } => name,
            Self::EmptyPrograms => "empty programs",
            Self::Peer(peer) => peer.name,
        }
    }
}

/// The peers that are installed; the report says which are not.
pub fn peers(of_processes_too: bool, report: &mut Report) -> Vec<Condition> {
    let meant = PEERS.iter().filter(|peer| of_processes_too || !peer.of_process);
    let (there, absent): (Vec<_>, Vec<_>) = meant.partition(|peer| peer.is_installed());
    for peer in absent {
        report.note(format!("{} is not installed (Debian's package {}): not compared", peer.name, peer.package));
    }
    there.into_iter().map(Condition::Peer).collect()
}

/// One run under one condition.
pub struct Measured {
    pub run: Run,
    pub traced: Option<Traced>,
}

/// Every run, by condition; the first of them is what the others are compared with, the second ours.
pub struct Comparison {
    conditions: Vec<Condition>,
    pub runs: Vec<Vec<Measured>>,
}

/// Runs the load under all conditions, in as many rounds as are asked for.
pub fn compare(bench: &Bench, conditions: Vec<Condition>, work: Work) -> Result<Comparison> {
    // What is slow once (caches, the first connections) is nobody's cost.
    measure(bench, &Condition::Untraced, work)?;
    let mut runs: Vec<Vec<Measured>> = conditions.iter().map(|_| Vec::new()).collect();
    for (round, order) in pairs::orders(conditions.len(), bench.pairs).enumerate() {
        eprint!("\r  round {} of {} ", round + 1, bench.pairs);
        for at in order {
            let name = conditions[at].name();
            runs[at].push(measure(bench, &conditions[at], work).map_err(|error| error.context(format!("round {}, {name}", round + 1)))?);
        }
    }
    eprintln!();
    Ok(Comparison { conditions, runs })
}

enum Watcher {
    Nobody,
    Tracer(Tracer),
    Hooks(Load),
    Peer(&'static str, Process),
}

impl Watcher {
    fn start(bench: &Bench, condition: &Condition, pid: u32) -> Result<Self> {
        Ok(match condition {
            Condition::Untraced => Self::Nobody,
            Condition::Traced { flags, read, .. } => {
                Self::Tracer(Tracer::start(&bench.tracer, flags, read.then(|| bench.scratch.path("records")))?)
            }
            Condition::EmptyPrograms => Self::Hooks(Load::start(&bench.load, &[&["hooks"], programs::HOT.as_slice()].concat())?),
            Condition::Peer(peer) => Self::Peer(peer.name, peer.start(pid)?),
        })
    }

    fn stop(self) -> Result<Option<Traced>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Tracer(tracer) => tracer.stop().map(Some),
            Self::Hooks(hooks) => hooks.end().map(|()| None),
            Self::Peer(name, process) => {
                ensure!(process.is_alive(), "{name} ended during the run");
                process.interrupt().map(|_| None)
            }
        }
    }
}

fn measure(bench: &Bench, condition: &Condition, work: Work) -> Result<Measured> {
    let mut started = None;
    let (run, worker) = work(&mut |pid| {
        let watcher = Watcher::start(bench, condition, pid)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        started = Some((watcher, port.local_addr()?.port(), abort_beside(port, bench.seconds)));
        Ok(())
    })?;
    let Some((watcher, port, aborts)) = started else { bail!("the load let nobody watch") };
    aborts.join().map_err(|_| anyhow!("the thread that aborts died"))??;
    let traced = watcher.stop()?;
    worker.map(Load::end).transpose()?;
    if let (Condition::Traced { read: true, .. }, Some(traced)) = (condition, &traced) {
        let told = traced.teardowns.iter().filter(|record| record["local"]["port"] == port || record["remote"]["port"] == port);
        let told = told.filter(|record| record["end"] == "reset-sent" || record["end"] == "reset-received").count();
        ensure!(told == 2 * ABORTS, "of {ABORTS} aborts beside the load {told} ends were reported instead of {}", 2 * ABORTS);
    }
    Ok(Measured { run, traced })
}

/// Connections that are closed with a byte unread, which sends a RST, spread over the first half of the time.
fn abort_beside(listener: TcpListener, seconds: f64) -> JoinHandle<Result<()>> {
    thread::spawn(move || {
        for _ in 0..ABORTS {
            thread::sleep(Duration::from_secs_f64(seconds / 2.0 / ABORTS as f64));
            let client = TcpStream::connect(listener.local_addr()?)?;
            let (mut server, _) = listener.accept()?;
            server.write_all(b".")?;
            client.peek(&mut [0])?;
            drop(client);
            let error = server.read(&mut [0]).err();
            ensure!(error.is_some_and(|error| error.kind() == ErrorKind::ConnectionReset), "a close with unread data sent no RST");
        }
        Ok(())
    })
}

impl Comparison {
    fn figures(&self, at: usize, figure: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs[at].iter().map(|measured| figure(&measured.run)).collect()
    }

    /// Rates of one condition as ratios of another's.
    fn rates(&self, at: usize, to: usize) -> Spread {
        Spread::of_ratios(&self.figures(at, Run::rate), &self.figures(to, Run::rate))
    }

    /// The table of rates and CPU time per piece of work; rate ratio of ours against untraced.
    pub fn tell(&self, report: &mut Report, unit: &str) -> Spread {
        let each = unit.trim_end_matches('s');
        let (rate, cpu) = (format!("{unit}/s"), format!("CPU per {each}, us"));
        let table = report.table(&["", &rate, "of untraced", &cpu, "of untraced", "rsttrace's rate to it"]);
        for (at, condition) in self.conditions.iter().enumerate() {
            let cpu = self.figures(at, Run::cpu_per_work);
            let of_untraced = |words: String| if at == 0 { "1".to_owned() } else { words };
            table.row([
                condition.name().to_owned(),
                grouped(Spread::of(&self.figures(at, Run::rate)).median),
                of_untraced(ratio(self.rates(at, 0))),
                format!("{:.3}", Spread::of(&cpu).median / 1e3),
                of_untraced(ratio(Spread::of_ratios(&cpu, &self.figures(0, Run::cpu_per_work)))),
                if at == 1 { "1".to_owned() } else { ratio(self.rates(1, at)) },
            ]);
        }
        let rounds = self.runs[0].len();
        report.note(format!(
            "{rounds} rounds, forwards and backwards in turn; ratios are of the runs of one round: the median, and the middle half in brackets"
        ));
        self.tell_proof(report);
        report.runs = self.json();
        self.rates(1, 0)
    }

    fn tell_proof(&self, report: &mut Report) {
        let read = self.conditions.iter().any(|condition| matches!(condition, Condition::Traced { read: true, .. }));
        if read {
            report.note(format!(
                "alive: {ABORTS} connections were aborted beside each run, and both ends of each were reported in every run of rsttrace \
                 (statistics off; run counts are in the run with statistics)"
            ));
        }
    }

    /// Whether ours falls behind no peer: its rate to theirs is not below 1 with all of its middle half.
    pub fn tell_peers(&self, report: &mut Report) {
        for (at, condition) in self.conditions.iter().enumerate() {
            if let Condition::Peer(peer) = condition {
                let to = self.rates(1, at);
                report.target(format!("not behind {}", peer.name), ratio(to), to.high >= 1.0);
            }
        }
    }

    fn json(&self) -> Value {
        let condition = |(condition, runs): (&Condition, &Vec<Measured>)| {
            let run = |Measured { run, traced }: &Measured| {
                let traced = traced.as_ref().map(|t| json!({ "records": t.records, "lost": t.lost, "cpu_ns": t.cpu_ns }));
                json!({ "work": run.work, "seconds": run.seconds, "cpu_ns": run.cpu_ns, "tracer": traced })
            };
            (condition.name().to_owned(), runs.iter().map(run).collect::<Value>())
        };
        self.conditions.iter().zip(&self.runs).map(condition).collect()
    }
}

/// The kernel's statistics of our programs under this load, in a run of its own; of the hooks that run most, what one run takes
/// over an empty program, in nanoseconds.
pub fn with_statistics(bench: &Bench, report: &mut Report, work: Work) -> Result<Vec<(&'static str, f64)>> {
    let mut watchers = None;
    let (_, worker) = work(&mut |_| {
        // First the statistics, so that no run is missed.
        let hooks = Load::start(&bench.load, &[&["hooks", "--stats"], programs::HOT.as_slice()].concat())?;
        watchers = Some((Tracer::start(&bench.tracer, &["--json"], None)?, hooks));
        Ok(())
    })?;
    let Some((tracer, hooks)) = watchers else { bail!("the load let nobody watch") };
    let hot = programs::tell(bench, report, tracer.pid(), hooks.pid())?;
    tracer.stop()?;
    worker.into_iter().chain([hooks]).try_for_each(Load::end)?;
    Ok(hot)
}

/// A spread in microseconds.
pub fn micros(figures_ns: &[f64]) -> String {
    spread(Spread::of(&figures_ns.iter().map(|ns| ns / 1e3).collect::<Vec<_>>()), 2)
}
