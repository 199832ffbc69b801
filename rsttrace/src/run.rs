//! The live run: attach, say so, move events until told to stop, sum up.

use std::{
    cell::{Cell, RefCell},
    io::{self, BufWriter, IsTerminal as _, Write},
    os::{
        fd::{AsFd as _, AsRawFd, RawFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{ExitCode, ExitStatus},
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use crate::{
    clock::{monotonic_ns, tick_ns},
    config::{Config, LogConfig},
    correlate::{Book, Origin},
    decode::Decoder,
    enrich::Processes,
    exit,
    export::Tap,
    filter::{Filter, ProcessSelector, nearest},
    fold::Fold,
    follow::{Doors, Logs, Place},
    join::Joiner,
    notify::{self, Manager},
    outlet::{Format, Outlet, Sink},
    output::{self, WallClock, json, text::TextFormat},
    pipeline::{LogJoin, Pipeline},
    probe::{Choice, Options, Probe, preflight},
    reconcile::Reconciliation,
    recording::{Message, Recorder},
    sandbox::{Broker, Sandbox},
    status::Status,
    stdout::{Forgiving, Stdout},
    units::{counted, grouped},
};

/// Events taken before signals are looked at.
const BATCH: usize = 4_096;
/// After events, how long to let more gather before looking again: a storm then costs a wake-up for
/// hundreds of events instead of one for each, and rest costs none.
const GATHER: Duration = Duration::from_millis(1);
/// How often the status line and the loss counters are looked at while there is a reason to.
const TICK: Duration = Duration::from_secs(1);
/// Turns at the end of a run: the largest ring holds so many batches of the smallest events.
const MAX_LAST_TURNS: usize = 4_096;
/// How often a log file that is not there is looked for.
const SEARCH: Duration = Duration::from_millis(250);
/// How often the processes that are traced are counted for the live line: that reads all of /proc.
const RECOUNT: Duration = Duration::from_secs(10);

/// How often processes are looked at that have started since: who is killed with its connections cannot be
/// looked at any more.
const CENSUS: Duration = Duration::from_secs(10);

/// Runs until a signal, the end of the duration, of the count, of the command or of stdout. With a
/// broker (or what kept it from starting) privileges are given up once everything is attached. What is
/// shown goes to `record` and `export` too.
///
/// # Errors
/// What ends a run that had begun; `ProbeError` in the chain where it could not begin.
pub async fn run(
    config: Config,
    files: Option<Doors>,
    record: Option<Recorder>,
    broker: Option<io::Result<Broker>>,
    export: Option<Tap>,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::install()?;
    // A live line would mix with JSON on the same terminal, and with what CMD writes there.
    let live_wanted = config.command.is_empty() && !(config.json && io::stdout().is_terminal());
    let status = Rc::new(Status::new(config.quiet, live_wanted));
    check_process_numbers(&config, &status)?;

    let started = Timestamp::now();
    let clock = WallClock::new(started.as_nanosecond(), monotonic_ns());
    let mut probe = Probe::start(&Options {
        // The log may complain of any of them.
        want_fin: config.want_fin || config.log.is_some(),
        buffer_bytes: config.buffer_bytes,
        max_sockets: config.max_sockets,
        without: config.without.clone(),
        syscall_hooks: config.syscall_hooks,
        kernel_log: config.verbose >= 2,
        choice: choice(&config),
        http: config.http,
    })?;
    for warning in &probe.warnings {
        status.warn(warning);
    }

    let joiner = Joiner::new(u64::try_from(config.join_timeout.as_nanos()).unwrap_or(u64::MAX), config.max_sockets as usize);
    let mut decoder = Decoder::new(tick_ns(), probe.reasons.clone());
    decoder.queries = config.http_query;
    let format = Format::new(config.json, config.summary, TextFormat::new(config.look.on_stdout(started)));
    let mut pipeline = Pipeline::new(decoder, joiner, Outlet::new(config.filter.clone(), format, clock, config.count));
    let confined = broker.is_some();
    let mut logs = files.zip(config.log.as_ref()).map(|(files, log)| open_logs(log, files, &status));
    pipeline.log = config.log.as_ref().map(|log| LogJoin::new(config.join_timeout, log.is_immediate()));
    pipeline.outlet.show_unmatched = config.log.as_ref().is_some_and(|log| log.show_unmatched);
    match broker {
        Some(Ok(broker)) => {
            pipeline.processes = broker.clone().into();
            if let Some(logs) = &mut logs {
                logs.set_door(Box::new(broker));
            }
        }
        Some(Err(error)) => {
            status.warn(&format!("cannot fork: {error}; owners of unused sockets stay unknown, rotated logs are not followed"))
        }
        None => {}
    }
    pipeline.numbers_are_ours = preflight::in_initial_pid_namespace();
    if pipeline.tells_names() {
        // Whoever is killed with its connections has a name from here.
        pipeline.processes.remember_all();
    }
    let recorder = record.map(|record| Rc::new(RefCell::new(record)));
    pipeline.outlet.sinks.extend(recorder.iter().map(|recorder| Box::new(Rc::clone(recorder)) as Box<dyn Sink>));
    let export = export.map(|export| Rc::new(RefCell::new(export)));
    pipeline.outlet.sinks.extend(export.iter().map(|export| Box::new(Rc::clone(export)) as Box<dyn Sink>));
    pipeline.timers = config.timers.clone();
    pipeline.outlet.want_fin = config.want_fin;
    pipeline.outlet.fail_on = config.fail_on.clone();
    pipeline.outlet.fold = config.rate_limit.map(Fold::new);
    pipeline.outlet.summary.started = started;
    pipeline.outlet.summary.filters = !config.filter_words.is_empty();
    let reconciliation = Reconciliation::begin(&probe, config.filter.netns, &mut pipeline.tally);

    let end = config.duration.map(|duration| std::time::Instant::now() + duration);
    let say_losses = {
        let (status, lost) = (Rc::clone(&status), probe.losses());
        move || {
            status.losses(lost());
        }
    };
    let mut out = BufWriter::with_capacity(64 * 1024, Forgiving::new(Stdout::new(Arc::clone(&signals.stopping), end, say_losses)));
    if pipeline.outlet.filter.chooses_processes() {
        choose_processes(&probe, &mut pipeline);
    }
    let manager = Manager::of_this_service().unwrap_or_else(|error| {
        status.warn(&format!("cannot tell the service manager anything: {}: {error}", notify::VARIABLE));
        Manager::default()
    });
    let ready = ready_line(&config, &probe, &mut pipeline.processes, &status);
    status.permanent(&ready);
    if let Some(address) = export.as_ref().and_then(|export| export.borrow().address) {
        status.permanent(&format!("rsttrace: metrics at http://{address}/metrics"));
    }
    let mut live = Live {
        probe: &mut probe,
        pipeline: &mut pipeline,
        status: &status,
        out: &mut out,
        config: &config,
        end,
        reconciliation,
        tracing: None,
        logs,
        recorder,
        export,
        interim: None,
        command_ended: None,
        export_is_gone: Cell::new(false),
    };
    let mut child = live.spawn()?;
    if confined {
        live.give_up_privileges();
    }
    manager.ready(ready.trim_start_matches("rsttrace: ready: "));
    let result = match live.write_start() {
        Ok(()) => live.until_stopped(&mut signals, &mut child).await,
        Err(error) => Err(error),
    };
    manager.stopping();
    // Whoever reads stdout may have gone: what else is told of the run gets the rest.
    let finished = live.finish();
    let result = result.and(finished);
    live.close_recording();
    live.say_sums();
    live.finish_export();
    if let Some(pid) = child.as_ref().and_then(Child::id) {
        status.warn(&format!("the command, process {pid}, goes on"));
    }
    let ended = live.command_ended;
    if let Some(words) = ended.and_then(failure) {
        status.permanent(&format!("rsttrace: {} {words}", command_name(&config).unwrap_or_default()));
    }
    // What could not be written must not be tried again when the buffer is dropped.
    let _ = out.into_parts();
    let code = if pipeline.outlet.failed { exit::FOUND } else { ended.map_or(0, exit::of_child) };
    let code = ExitCode::from(code);
    match result {
        Ok(()) => Ok(code),
        // Whoever read our output has gone: nothing is wrong, and nobody is left to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(code),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            status.warn("the last records were not written: nobody reads stdout");
            Ok(code)
        }
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// What ends or interrupts the loop.
struct Signals {
    /// One of the stopping signals has arrived; set even while the loop is busy.
    stopping: Arc<AtomicBool>,
    int: Signal,
    term: Signal,
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
}

impl Signals {
    /// The first SIGINT or SIGTERM stops the run; the second ends the process at once, even while
    /// it is stuck writing to a pipe that nobody reads.
    fn install() -> anyhow::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&stopping))
                .and_then(|_| signal_hook::flag::register(number, Arc::clone(&stopping)))
                .context("cannot install signal handlers")?;
        }
        let listen = |kind| signal(kind).context("cannot install signal handlers");
        Ok(Self {
            stopping,
            int: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
            hup: listen(SignalKind::hangup())?,
            usr1: listen(SignalKind::user_defined1())?,
            usr2: listen(SignalKind::user_defined2())?,
        })
    }
}

/// What one look at the ring found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    Nothing,
    /// Everything that was there.
    Some,
    /// As much as one turn takes; more may be waiting.
    Batch,
}

struct Live<'a, W: Write> {
    probe: &'a mut Probe,
    pipeline: &'a mut Pipeline,
    status: &'a Status,
    out: &'a mut BufWriter<Forgiving<W>>,
    config: &'a Config,
    /// The duration is over then.
    end: Option<std::time::Instant>,
    reconciliation: Reconciliation,
    /// What is traced, in words, and when that was counted.
    tracing: Option<(Instant, String)>,
    logs: Option<Logs>,
    recorder: Option<Rc<RefCell<Recorder>>>,
    export: Option<Rc<RefCell<Tap>>>,
    /// CMD has ended so.
    command_ended: Option<ExitStatus>,
    /// What changes in a summary, when one was last written.
    interim: Option<[u64; 6]>,
    /// That it has ended has been said.
    export_is_gone: Cell<bool>,
}

/// A descriptor that is watched, and owned elsewhere.
struct Watched(RawFd);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Watches a descriptor for as long as the caller keeps it open.
fn watch(fd: RawFd, interest: Interest) -> io::Result<AsyncFd<Watched>> {
    // SAFETY: the descriptors watched here (ring, log ring, stdout) outlive the loop that watches
    // them, and nothing else registers them with this runtime.
    unsafe { AsyncFd::register_with_interest(Watched(fd), interest) }.map_err(Into::into)
}

impl<W: Write> Live<'_, W> {
    async fn until_stopped(&mut self, signals: &mut Signals, child: &mut Option<Child>) -> io::Result<()> {
        let ring = watch(self.probe.event_fd(), Interest::READABLE)?;
        let kernel_log = self.probe.log_fd().map(|fd| watch(fd, Interest::READABLE)).transpose()?;
        // A regular file cannot be watched, and cannot be closed at its other end either.
        let stdout = watch(io::stdout().as_raw_fd(), Interest::ERROR).ok();
        let log_files = self.logs.as_ref().map(|logs| watch(logs.event_fd(), Interest::READABLE)).transpose()?;
        // What cannot be watched (/dev/null) is looked at in every turn, and is at its end at once.
        let stdin = self.logs.as_ref().filter(|logs| logs.reads_stdin());
        let stdin = stdin.and_then(|_| watch(io::stdin().as_raw_fd(), Interest::READABLE).ok());
        let export = self.export.as_ref().map(|export| watch(export.borrow().as_raw_fd(), Interest::WRITABLE)).transpose()?;
        let mut stop_at = self.end.map(Instant::from_std);
        let mut next_look = Instant::now() + TICK;
        let mut next_census = Instant::now() + CENSUS;
        // An exec whose event was lost is made good by it.
        let takes_census = self.config.http || self.pipeline.tells_names();
        let chooses = chooses_by_program(&self.pipeline.outlet.filter);
        // Events were there since the last look, so that some may have been lost.
        let mut looks = false;
        loop {
            let moved = self.move_events()?;
            self.out.get_mut().check()?;
            looks |= moved != Moved::Nothing;
            if self.pipeline.outlet.done() {
                return Ok(());
            }
            if moved == Moved::Batch {
                // More is waiting; look at the signals without sleeping.
                tokio::task::yield_now().await;
            }
            let gathered = Some(Instant::now() + GATHER);
            let searching = self.logs.as_ref().is_some_and(Logs::is_searching).then(|| Instant::now() + SEARCH);
            let more_logged = self.logs.as_ref().is_some_and(Logs::has_more);
            let export_waits = self.export.as_ref().is_some_and(|export| export.borrow().is_waiting());
            let reads_stdin = self.logs.as_ref().is_some_and(Logs::reads_stdin);
            let due = self
                .pipeline
                .next_deadline_ns(monotonic_ns())
                .map(|at| Instant::now() + Duration::from_nanos(at.saturating_sub(monotonic_ns())) + Duration::from_micros(100));
            tokio::select! {
                biased;
                _ = signals.int.recv() => return Ok(()),
                _ = signals.term.recv() => return Ok(()),
                _ = signals.hup.recv() => match &self.recorder {
                    Some(recorder) => recorder.borrow_mut().reopen(monotonic_ns()),
                    None => return Ok(()),
                },
                () = at(stop_at) => return Ok(()),
                _ = signals.usr1.recv() => {
                    self.say_summary();
                    self.pipeline.outlet.tell_table(self.out, self.status.columns())?;
                    self.out.flush()?;
                }
                _ = signals.usr2.recv() => self.dump(),
                () = closed(stdout.as_ref()) => return Err(io::ErrorKind::BrokenPipe.into()),
                () = readable(kernel_log.as_ref()) => self.probe.flush_log(),
                () = readable(log_files.as_ref()) => {}
                () = readable(stdin.as_ref()), if reads_stdin => {}
                () = writable(export.as_ref()), if export_waits => {}
                () = at(searching) => {}
                status = ended(child) => {
                    self.command_ended = status;
                    // Its last connections end after it: their FINs are under way.
                    *child = None;
                    let grace = Instant::now() + self.config.join_timeout;
                    stop_at = Some(stop_at.map_or(grace, |at| at.min(grace)));
                }
                () = std::future::ready(()), if moved == Moved::Batch || more_logged => {}
                () = at(gathered), if moved == Moved::Some => {}
                () = readable(Some(&ring)), if moved == Moved::Nothing => {}
                () = at(due) => {}
                () = at(Some(next_look)), if looks || self.tells_interim() || self.status.wants_ticks() => {}
                () = at(Some(next_census)), if takes_census => {}
            }
            // Whose events come first matters only while there are some.
            if Instant::now() >= next_census && (takes_census || chooses && moved != Moved::Nothing) {
                next_census = Instant::now() + CENSUS;
                if takes_census {
                    self.pipeline.processes.remember_new();
                }
                if chooses {
                    choose_processes(self.probe, self.pipeline);
                }
            }
            // Also where nobody looks, losses are said as they happen: at rest there are none.
            if Instant::now() >= next_look {
                next_look = Instant::now() + TICK;
                looks = self.look();
            }
        }
    }

    /// Moves one batch from the ring to stdout.
    fn move_events(&mut self) -> io::Result<Moved> {
        let now_ns = monotonic_ns();
        let mut moved = Moved::Nothing;
        for n in 1..=BATCH {
            let Some(bytes) = self.probe.next_event() else { break };
            self.pipeline.feed(&bytes);
            moved = if n == BATCH { Moved::Batch } else { Moved::Some };
        }
        self.read_logs();
        self.pipeline.tick((moved != Moved::Batch).then_some(now_ns));
        self.ask_about_new_programs();
        if self.pipeline.has_ready() && !self.pipeline.is_worth_waiting(now_ns) {
            self.status.clear();
            if self.pipeline.write(self.out, self.status.columns())? {
                self.out.flush()?;
            }
            if self.pipeline.processes.became_blind() {
                self.status.warn(
                    "the process that reads /proc for rsttrace has ended: names of new processes and owners of unused sockets stay unknown, rotated logs are not followed",
                );
            }
        }
        self.say_of_recording();
        self.flush_export();
        Ok(moved)
    }

    /// Writes what `--keep` has in memory.
    fn dump(&mut self) {
        match &self.recorder {
            Some(recorder) if recorder.borrow().keeps() => recorder.borrow_mut().dump(monotonic_ns()),
            _ => self.status.warn("SIGUSR2: nothing is kept (--keep)"),
        }
        self.say_of_recording();
    }

    fn say_of_recording(&self) {
        let messages = self.recorder.as_ref().map(|recorder| recorder.borrow_mut().take_messages());
        for message in messages.into_iter().flatten() {
            match message {
                Message::Note(words) => self.status.permanent(&words),
                Message::Warning(words) => self.status.warn(&words),
            }
        }
    }

    /// Hands on what waits.
    fn flush_export(&self) {
        let Some(export) = &self.export else { return };
        export.borrow_mut().flush();
        self.say_of_export();
    }

    /// Says once that it has ended, which a record that found no reader may have noticed too.
    fn say_of_export(&self) {
        if self.export.as_ref().is_some_and(|export| export.borrow().is_gone()) && !self.export_is_gone.replace(true) {
            self.status.warn("the process that exports for rsttrace has ended: nothing is exported any more");
        }
    }

    /// Takes what has been logged.
    fn read_logs(&mut self) {
        if let (Some(logs), Some(join)) = (&mut self.logs, &mut self.pipeline.log) {
            // The writer's clock may have been set since we started.
            let zero_ns = Timestamp::now().as_nanosecond() - i128::from(monotonic_ns());
            join.counts = logs.poll(monotonic_ns, zero_ns, |file, line, window| {
                let origin = Origin { book: Book::Errors, file };
                join.correlator.push_line(monotonic_ns(), origin, line, window);
            });
        }
    }

    /// Starts CMD as the process to trace. Its output goes to stderr: stdout is for records only.
    fn spawn(&mut self) -> anyhow::Result<Option<Child>> {
        let Some((program, args)) = self.config.command.split_first() else { return Ok(None) };
        // It inherits this, and begins at once.
        self.probe.choose(std::process::id(), true);
        let child = io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .and_then(|stderr| {
                let mut command = Command::new(program);
                // What stands there is the log.
                if self.config.log.as_ref().is_some_and(|log| log.stdin) {
                    command.stdin(std::process::Stdio::null());
                }
                command.args(args).env_remove(notify::VARIABLE).stdout(stderr).spawn()
            })
            .with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
        self.probe.choose(std::process::id(), false);
        self.pipeline.outlet.filter.processes.extend(child.id().map(ProcessSelector::Pid));
        Ok(Some(child))
    }

    /// Those that have become another program.
    fn ask_about_new_programs(&mut self) {
        let mut found = false;
        for tgid in std::mem::take(&mut self.pipeline.execs) {
            self.pipeline.processes.has_changed(tgid);
            let chosen = self.pipeline.outlet.filter.means(tgid, &mut self.pipeline.processes);
            self.probe.choose(tgid, chosen);
            found |= chosen;
        }
        // It may have made children before it was chosen.
        if found {
            choose_processes(self.probe, self.pipeline);
        }
    }

    /// CMD has been started with what we had; from here on nothing is needed but to read and write.
    fn give_up_privileges(&mut self) {
        self.reconciliation.confine();
        let sandbox = Sandbox::enter(|| self.probe.counters_can_be_read());
        if self.config.verbose >= 1 {
            self.status.permanent(&format!("rsttrace: sandbox: {sandbox}"));
        }
    }

    fn write_start(&mut self) -> io::Result<()> {
        self.pipeline.outlet.now_ns = monotonic_ns();
        let uname = rustix::system::uname();
        let start = json::Start {
            time: crate::output::Rfc3339(self.pipeline.outlet.summary.started).to_string(),
            version: env!("CARGO_PKG_VERSION"),
            kernel: uname.release().to_string_lossy().into_owned(),
            host: uname.nodename().to_string_lossy().into_owned(),
            hooks: self.probe.hooks.iter().map(|hook| (hook.name, hook.how)).collect(),
            filters: self.config.filter_words.clone(),
        };
        self.pipeline.outlet.tell_start(self.out, &start)?;
        self.out.flush()
    }

    /// Once a second: the live line, where somebody looks, and a warning when events were lost. Returns whether
    /// there is more to be said.
    fn look(&mut self) -> bool {
        let counters = self.probe.counters();
        self.pipeline.count(&counters);
        let unsaid = self.status.losses(self.pipeline.outlet.summary.lost_total());
        if self.tells_interim()
            && let Err(error) = self.tell_interim()
        {
            // The next record that is written will say so.
            log::debug!("{error}");
        }
        if !self.status.wants_ticks() {
            return unsaid;
        }
        if self.tracing.as_ref().is_none_or(|(at, _)| at.elapsed() >= RECOUNT) {
            self.tracing = Some((Instant::now(), tracing(self.config, &mut self.pipeline.processes)));
        }
        let tracing = self.tracing.as_ref().map_or("", |(_, words)| words);
        self.status.live(&format!(
            "tracing {tracing}: {} orderly, {}",
            grouped(counters.orderly),
            counted(self.pipeline.outlet.printed, "record")
        ));
        unsaid
    }

    /// Somebody asks for summaries while the run goes on.
    fn tells_interim(&self) -> bool {
        self.config.interim || self.export.is_some()
    }

    /// A summary for a reader who shows how it goes, where it is another one than before.
    fn tell_interim(&mut self) -> io::Result<()> {
        let Outlet { printed, summary, .. } = &self.pipeline.outlet;
        let now = [*printed, summary.orderly(), summary.lost_total(), summary.filtered, summary.evicted, summary.undecodable];
        if self.interim.replace(now) == Some(now) {
            return Ok(());
        }
        self.pipeline.outlet.summary.stopped = Timestamp::now();
        if let Some(export) = &self.export {
            let mut line = Vec::new();
            json::write_summary(&mut line, &self.pipeline.outlet.summary)?;
            export.borrow_mut().push_sums(&line);
            self.flush_export();
        }
        if self.config.interim {
            self.pipeline.outlet.tell_interim(self.out)?;
        }
        self.out.flush()
    }

    /// Everything that is still there, as it stands.
    fn finish(&mut self) -> io::Result<()> {
        // In this order: what the kernel has counted by now is in the ring.
        let counted = self.reconciliation.close(&mut self.pipeline.tally, &mut self.pipeline.processes);
        // What has come by now, and no more: on a busy host it never ends.
        for _ in 0..MAX_LAST_TURNS {
            let more_logged = self.logs.as_ref().is_some_and(Logs::has_more);
            if self.move_events()? != Moved::Batch && !more_logged {
                break;
            }
        }
        self.status.clear();
        self.pipeline.finish(self.out, self.status.columns())?;
        let counters = self.probe.counters();
        self.pipeline.outlet.summary.audit =
            Some(self.reconciliation.compare(&counted, &self.pipeline.tally, &counters, self.pipeline.outlet.summary.undecodable));
        self.update_summary();
        self.pipeline.outlet.tell_summary(self.out)?;
        self.pipeline.outlet.tell_table(self.out, self.status.columns())?;
        self.out.flush()?;
        self.out.get_mut().check()
    }

    fn close_recording(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.borrow_mut().close(monotonic_ns());
        }
        self.say_of_recording();
    }

    fn update_summary(&mut self) {
        let counters = self.probe.counters();
        self.pipeline.count(&counters);
        self.pipeline.outlet.summary.stopped = Timestamp::now();
    }

    /// How it stands.
    fn say_summary(&mut self) {
        self.say_sums();
        self.say_what_is_not_exported(false);
    }

    fn say_sums(&mut self) {
        self.update_summary();
        let mut text = Vec::new();
        if self.pipeline.outlet.summary.write(&mut text).is_ok() {
            self.status.permanent(String::from_utf8_lossy(&text).trim_end());
        }
    }

    /// Only now is it known what has not come through.
    fn finish_export(&self) {
        let Some(export) = &self.export else { return };
        let has_ended = export.borrow_mut().finish();
        self.say_of_export();
        self.say_what_is_not_exported(!has_ended);
        if !has_ended {
            self.status.warn("the process that exports for rsttrace is not done yet, and goes on");
        }
    }

    /// `is_stuck`: what has been written to it may not be read any more.
    fn say_what_is_not_exported(&self, is_stuck: bool) {
        let Some(export) = &self.export else { return };
        let (dropped, gone) = (export.borrow().dropped(), export.borrow().is_gone());
        if dropped > 0 {
            let at_least = if gone || is_stuck { "at least " } else { "" };
            let why = if gone { "has ended" } else { "was too slow" };
            let were = if dropped == 1 { "was" } else { "were" };
            let records = counted(dropped, "record");
            self.status.permanent(&format!("{at_least}{records} {were} not exported: the process that exports {why}"));
        }
    }
}

/// Whether and how the kernel half is told of processes. Whose events come first may be found out a few seconds late;
/// whose HTTP is looked at may not.
fn choice(config: &Config) -> Option<Choice> {
    if config.http && chooses_by_program(&config.filter) {
        return Some(Choice::ByProgram);
    }
    (config.filter.chooses_processes() || !config.command.is_empty()).then_some(Choice::ByNumber)
}

/// Processes that start later may be meant too, and not only as children.
fn chooses_by_program(filter: &Filter) -> bool {
    filter.asks_for_places() || filter.processes.iter().any(|selector| !matches!(selector, ProcessSelector::Pid(_)))
}

/// The processes that are there. Twice, because who forks between being listed and being chosen leaves a child
/// that is neither.
fn choose_processes(probe: &Probe, pipeline: &mut Pipeline) {
    for _ in 0..2 {
        for (tgid, _) in pipeline.processes.all() {
            if pipeline.outlet.filter.means(tgid, &mut pipeline.processes) {
                probe.choose(tgid, true);
            }
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

async fn readable(fd: Option<&AsyncFd<Watched>>) {
    if let Some(fd) = fd
        && let Ok(mut guard) = fd.readable().await
    {
        guard.clear_ready();
        return;
    }
    std::future::pending().await
}

async fn writable(fd: Option<&AsyncFd<Watched>>) {
    if let Some(fd) = fd
        && let Ok(mut guard) = fd.writable().await
    {
        guard.clear_ready();
        return;
    }
    std::future::pending().await
}

async fn closed(stdout: Option<&AsyncFd<Watched>>) {
    if let Some(fd) = stdout
        && fd.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn ended(child: &mut Option<Child>) -> Option<ExitStatus> {
    match child {
        Some(child) => child.wait().await.ok(),
        None => std::future::pending().await,
    }
}

/// The logs from their present ends on.
fn open_logs(config: &LogConfig, files: Doors, status: &Status) -> Logs {
    let places = (0..files.paths.len()).map(Place::File).chain(config.stdin.then_some(Place::Stdin));
    let places = places.map(|place| (place, config.format.parser())).collect();
    let inotify = Arc::clone(&files.inotify);
    let (logs, missing) = Logs::open(places, inotify, Box::new(files), monotonic_ns());
    for (number, error) in missing {
        let path = config.paths.get(number).map(|path| path.display().to_string()).unwrap_or_default();
        status.warn(&format!("--error-log: {}: {error}; waiting for it", crate::output::escape::for_terminal(&path)));
    }
    logs
}

/// Process numbers in another PID namespace are not those that the kernel half reports.
fn check_process_numbers(config: &Config, status: &Status) -> anyhow::Result<()> {
    if !preflight::in_initial_pid_namespace() {
        if choice(config).is_some() {
            return Err(crate::probe::ProbeError::Unusable {
                what: "this is not the host's PID namespace: the kernel's process numbers are not the ones seen here, so processes cannot be chosen".to_owned(),
                hint: "run rsttrace on the host, or in a container that shares its PID namespace (--pid=host)".to_owned(),
            }
            .into());
        }
        status.warn("this is not the host's PID namespace: process numbers are the host's, and owners of unused sockets stay unknown");
    }
    if preflight::proc_hides_processes() {
        status.warn("/proc hides other users' processes (hidepid): choosing by name and owners of unused sockets work for visible ones only; CAP_SYS_PTRACE lifts this");
    }
    Ok(())
}

/// CMD's, for a terminal.
fn command_name(config: &Config) -> Option<String> {
    let command = config.command.first()?;
    let name = Path::new(command).file_name().unwrap_or(command);
    Some(crate::output::escape::for_terminal(&name.to_string_lossy()).into_owned())
}

/// How CMD failed, if it did.
fn failure(status: ExitStatus) -> Option<String> {
    match status.signal() {
        Some(signal) => Some(format!("was ended by {}", output::Signal(signal.cast_unsigned()))),
        None => status.code().filter(|code| *code != 0).map(|code| format!("exited with status {code}")),
    }
}

/// `nginx (3 processes)`, or the whole host.
fn tracing(config: &Config, processes: &mut Processes) -> String {
    let filter = &config.filter;
    let command = command_name(config);
    if command.is_none() && !filter.chooses_processes() {
        return "all processes".to_owned();
    }
    let all = processes.all();
    if command.is_none() && filter.processes.is_empty() {
        let n = all.iter().filter(|(_, info)| filter.contains(info)).count();
        return format!("{n} process{}{}", if n == 1 { "" } else { "es" }, places(filter));
    }
    let selected = filter.processes.iter().map(|selector| {
        let n = all.iter().filter(|(tgid, info)| selector.selects(*tgid, info)).count();
        let plural = if n == 1 { "" } else { "es" };
        match selector {
            ProcessSelector::Pid(pid) => match all.iter().find(|(tgid, _)| tgid == pid) {
                Some((_, info)) => format!("{}/{pid}", crate::output::escape::for_terminal(&info.comm)),
                None => format!("process {pid}"),
            },
            other => format!("{} ({n} process{plural})", crate::output::escape::for_terminal(&other.to_string())),
        }
    });
    let words: Vec<String> = command.into_iter().chain(selected).collect();
    format!("{}{}", words.join(", "), places(filter))
}

/// ` in container 0123456789ab in unit nginx.service or php8.2-fpm.service`, as far as it is asked for.
fn places(filter: &Filter) -> String {
    let containers: Vec<_> = filter.containers.iter().map(|id| format!("{id:.12}")).collect();
    let units: Vec<_> = filter.units.iter().map(ToString::to_string).collect();
    let words = |kind: &str, names: &[String]| if names.is_empty() { String::new() } else { format!(" in {kind} {}", names.join(" or ")) };
    words("container", &containers) + &words("unit", &units)
}

fn ready_line(config: &Config, probe: &Probe, processes: &mut Processes, status: &Status) -> String {
    // What is only more evidence is not missed.
    let hooks: Vec<_> = probe.hooks.iter().filter(|hook| hook.how.is_some() || !hook.extra).collect();
    let attached = hooks.iter().filter(|hook| hook.how.is_some()).count();
    let missing: Vec<&str> = hooks.iter().filter(|hook| hook.how.is_none()).map(|hook| hook.name).collect();
    let without = if missing.is_empty() { String::new() } else { format!(", without {}", missing.join(" and ")) };
    let line = format!(
        "rsttrace: ready: tracing {}; {} of {} hooks attached{without}; {} found",
        tracing(config, processes),
        attached,
        hooks.len(),
        counted(probe.counters().seeded, "open connection"),
    );
    if config.command.is_empty() {
        warn_about_absent(config, processes, status);
    }
    line
}

/// A name that nobody has: wait for it, but say what it may have been meant to be.
fn warn_about_absent(config: &Config, processes: &mut Processes, status: &Status) {
    let all = processes.all();
    if config.filter.asks_for_places() && !all.iter().any(|(_, info)| config.filter.contains(info)) {
        status.warn(&format!("no process is{} yet: waiting for one", places(&config.filter)));
    }
    for selector in &config.filter.processes {
        // A number was there when the flags were read, visible in /proc or not.
        if matches!(selector, ProcessSelector::Pid(_)) || all.iter().any(|(tgid, info)| selector.selects(*tgid, info)) {
            continue;
        }
        let hint = match selector {
            ProcessSelector::Name(name) => {
                nearest(name, all.iter().flat_map(|(_, info)| std::iter::once(info.comm.as_str()).chain(info.exe_name())))
                    .map(|name| format!("; did you mean {}?", crate::output::escape::for_terminal(name)))
                    .unwrap_or_default()
            }
            _ => String::new(),
        };
        status
            .warn(&format!("no process matches {} yet: waiting for one{hint}", crate::output::escape::for_terminal(&selector.to_string())));
    }
}
