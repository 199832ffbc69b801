//! `rsttrace top`: the live screen. The tracer is a child that writes JSON lines to us, so that it can stay under its
//! sandbox, which knows no terminal, and that a live run and a file are one path; what shows them has no rights at all.

mod keys;
pub mod model;
mod view;

use std::{
    env,
    ffi::OsString,
    io::{self, BufWriter, IsTerminal as _, PipeReader, Read as _, Stdout, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    panic,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossterm::{
    cursor::{Hide, Show},
    event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use jiff::Timestamp;
use ratatui::{Terminal, backend::CrosstermBackend};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH},
    iterator::Signals,
};

use self::{keys::Key, model::Model, view::View};
use crate::{
    config::Look,
    input::{Item, Records, Told, json::Saved},
    output::{escape::for_terminal, summary::Summary},
    sandbox,
};

/// What to show, and how.
#[derive(Debug)]
pub struct Request {
    /// Instead of tracing.
    pub file: Option<PathBuf>,
    /// The tracer's flags, as they were given.
    pub flags: Vec<OsString>,
    pub look: Look,
    /// The tracer reads standard input.
    pub wants_stdin: bool,
    /// Its flags say how much it is to tell.
    pub says_more_or_less: bool,
}

/// A file had something that is no record.
const FAILED: u8 = 1;
/// The tracer has met what `--fail-on` asks for.
const FOUND: i32 = 4;
/// The screen is drawn at most so often.
const FRAME: Duration = Duration::from_millis(100);
/// Records that wait to be counted: a flood waits in the pipe, and a key behind no more than these.
const WAITING: usize = 1_024;
/// Faults of a file that are told one by one.
const MAX_TOLD: usize = 10;
/// What the tracer said is kept up to here, and told in the end.
const MAX_SAID: usize = 64 << 10;

/// Runs it.
///
/// # Errors
/// When there are no records to be had, or the terminal cannot be used.
pub fn run(request: Request) -> anyhow::Result<ExitCode> {
    // A terminal that cannot move its cursor shows no screen.
    let screen = io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
    let (mut records, tracer) = match &request.file {
        Some(path) => (sandbox::as_the_user(|| Records::open(path)).context("cannot change capabilities")??, None),
        None => {
            let mut tracer = Tracer::start(&request, screen)?;
            let stdout = tracer.child.stdout.take().context("the tracer has no stdout")?;
            (Records::new(Box::new(stdout)).context("cannot read from the tracer")?, Some(tracer))
        }
    };
    // Before there is a second thread.
    sandbox::give_up_capabilities().context("cannot give up capabilities")?;
    let mut model = Model::new(request.file.as_ref().map(|path| path.display().to_string()));
    if !screen {
        return without_screen(&mut records, &mut model, tracer);
    }
    // What keeps it from tracing is better said on an ordinary terminal: its first record is waited for.
    let first = if tracer.is_some() { records.next().context("cannot read from the tracer")? } else { None };
    let Some(first) = first else {
        return match tracer {
            Some(tracer) => tracer.finish(),
            None => show(request, records, model, None),
        };
    };
    take(&mut model, first, 0);
    show(request, records, model, tracer)
}

fn show(request: Request, records: Records, mut model: Model, mut tracer: Option<Tracer>) -> anyhow::Result<ExitCode> {
    let font = env::var_os("TERM").is_none_or(|term| term != "linux");
    let mut view = View::new(request.look.on_stdout(Timestamp::now()), font);
    let (send, receive) = sync_channel(WAITING);
    let stopping = Arc::new(AtomicBool::new(false));
    let mut screen = Screen::enter().context("cannot use the terminal")?;
    watch_signals(send.clone(), Arc::clone(&stopping)).context("cannot watch signals")?;
    read_keys(send.clone()).context("cannot read the keyboard")?;
    if let Some(tracer) = &tracer {
        tracer.listen(send.clone());
    }
    read_records(records, send);

    let mut faults = Vec::new();
    let result = screen.run(&mut model, &mut view, &receive, &stopping, tracer.as_mut(), &mut faults);
    drop(screen);
    // From here on a signal ends it at once.
    stopping.store(true, Ordering::Relaxed);
    result.context("cannot write to the terminal")?;
    match tracer {
        Some(tracer) => {
            tracer.stop();
            // It may be writing, and waits for its reader.
            while model.origin.ended.is_none() {
                let Ok(message) = receive.recv() else { break };
                message_to(&mut model, message, 0, &mut faults);
            }
            tracer.finish()
        }
        None => Ok(tell_faults(&model, &faults)),
    }
}

/// Counts to the end, and says what it came to.
fn without_screen(records: &mut Records, model: &mut Model, tracer: Option<Tracer>) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::default();
    let mut faults = Vec::new();
    while let Some(item) = records.next().context("cannot read the records")? {
        match item {
            Item::Told(told) => count(&mut summary, told.saved),
            Item::Fault(fault) => {
                model.origin.faults += 1;
                keep_fault(&mut faults, model, &fault);
            }
        }
    }
    match summary.write(&mut io::stdout()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error).context("cannot write to stdout"),
        _ => {}
    }
    match tracer {
        Some(tracer) => tracer.finish(),
        None => Ok(tell_faults(model, &faults)),
    }
}

fn count(summary: &mut Summary, saved: Saved) {
    match saved {
        Saved::Teardown(judged) => summary.count(std::slice::from_ref(&*judged)),
        Saved::Late(_) => summary.late += 1,
        Saved::Start(start) => summary.filters = !start.filters.is_empty(),
        Saved::Summary(sums) => {
            summary.orderly_in_kernel = sums.orderly;
            summary.lost_records = sums.lost.records;
            summary.undecodable = sums.undecodable;
            summary.evicted = sums.evicted;
            summary.filtered = sums.filtered;
        }
        Saved::Other => {}
    }
}

fn keep_fault(faults: &mut Vec<String>, model: &Model, fault: &crate::input::Fault) {
    if faults.len() < MAX_TOLD {
        let name = model.file.as_deref().unwrap_or("tracer");
        faults.push(format!("rsttrace: {}:{}: {}", for_terminal(name), fault.at, for_terminal(&fault.why)));
    }
}

fn tell_faults(model: &Model, faults: &[String]) -> ExitCode {
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    if let Some(more @ 1..) = model.origin.faults.checked_sub(faults.len() as u64) {
        eprintln!("rsttrace: {more} more of them");
    }
    if model.origin.faults > 0 { FAILED.into() } else { ExitCode::SUCCESS }
}

/// What the loop waits for.
enum Message {
    Record(Box<Told>),
    Fault(crate::input::Fault),
    /// The end of the records, or why they cannot be read.
    End(io::Result<()>),
    Key(Key),
    /// The window has another size.
    Resized,
    /// The tracer has said something.
    Said,
    /// A signal, or the terminal has gone.
    Stop,
}

/// Takes an item into the model.
fn take(model: &mut Model, item: Item, second: u64) -> Option<crate::input::Fault> {
    match item {
        Item::Told(told) => model.take(told.saved, second),
        Item::Fault(fault) => {
            model.origin.faults += 1;
            return Some(fault);
        }
    }
    None
}

/// Takes a message into the model. Returns whether the screen is to stay.
fn message_to(model: &mut Model, message: Message, second: u64, faults: &mut Vec<String>) -> bool {
    match message {
        Message::Record(told) => model.take(told.saved, second),
        Message::Fault(fault) => {
            model.origin.faults += 1;
            keep_fault(faults, model, &fault);
        }
        Message::End(Ok(())) if model.is_live() => model.origin.ended = Some("tracer has ended".to_owned()),
        Message::End(Ok(())) => model.origin.ended = Some("all read".to_owned()),
        Message::End(Err(error)) => model.origin.ended = Some(format!("cannot read on: {error}")),
        Message::Key(key) => return model.press(key),
        Message::Resized | Message::Said => {}
        Message::Stop => return false,
    }
    true
}

/// The terminal, for as long as this lives: raw, and on its other screen.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

/// There is a terminal to be given back.
static ON_SCREEN: AtomicBool = AtomicBool::new(false);

impl Screen {
    /// Takes the terminal. A panic of any thread gives it back first, tells itself next, and ends the process.
    ///
    /// # Errors
    /// What the terminal refuses.
    pub fn enter() -> io::Result<Self> {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            leave();
            tell(panic);
            std::process::exit(101);
        }));
        enable_raw_mode()?;
        ON_SCREEN.store(true, Ordering::SeqCst);
        let entered = execute!(io::stdout(), EnterAlternateScreen, Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(64 << 10, io::stdout()))));
        entered.map(|terminal| Self { terminal }).inspect_err(|_| leave())
    }

    /// Until a key or a signal ends it, or the tracer fails.
    fn run(
        &mut self,
        model: &mut Model,
        view: &mut View,
        messages: &Receiver<Message>,
        stopping: &AtomicBool,
        mut tracer: Option<&mut Tracer>,
        faults: &mut Vec<String>,
    ) -> io::Result<()> {
        let began = Instant::now();
        let mut drawn: Option<Instant> = None;
        let mut changed = true;
        while !stopping.load(Ordering::Relaxed) {
            let now = Instant::now();
            // Before the first one there is room for a whole sparkline.
            let second = began.elapsed().as_secs() + model::BUCKETS as u64;
            if changed && drawn.is_none_or(|at| now.duration_since(at) >= FRAME) {
                model.origin.warning = tracer.as_ref().and_then(|tracer| tracer.warning());
                self.terminal.draw(|frame| view.draw(frame, model))?;
                drawn = Some(now);
                changed = false;
            }
            let frame = changed.then(|| drawn.map_or(FRAME, |at| (at + FRAME).saturating_duration_since(now)));
            // Sparklines move with time, as long as they show something.
            let next_second = Duration::from_secs(1).saturating_sub(Duration::from_nanos(began.elapsed().subsec_nanos().into()));
            let patience = frame.or_else(|| model.moves_by_itself().then_some(next_second));
            let message = match patience {
                Some(patience) => messages.recv_timeout(patience),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::End(result)) => {
                    message_to(model, Message::End(result), second, faults);
                    // Its words are better read where they stay.
                    if tracer.as_mut().is_some_and(|tracer| tracer.has_failed()) {
                        return Ok(());
                    }
                    changed = true;
                }
                Ok(message) => {
                    if !message_to(model, message, second, faults) {
                        return Ok(());
                    }
                    changed = true;
                }
                Err(RecvTimeoutError::Timeout) => changed |= model.tick(second),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back, once. First what needs nobody to read.
fn leave() {
    if ON_SCREEN.swap(false, Ordering::SeqCst) {
        let _ = disable_raw_mode();
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    }
}

/// The first signal ends the loop; another one the process, even while the terminal takes nothing.
fn watch_signals(send: SyncSender<Message>, stopping: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGWINCH {
                let _ = send.send(Message::Resized);
            } else if stopping.swap(true, Ordering::Relaxed) {
                leave();
                std::process::exit(128 + signal);
            } else {
                // Where it is full the loop is awake.
                let _ = send.try_send(Message::Stop);
            }
        }
    });
    Ok(())
}

/// The keyboard is the terminal that stdin is, or the one that we are on: stdin may be the records.
fn read_keys(send: SyncSender<Message>) -> io::Result<()> {
    let terminal: Box<dyn std::os::fd::AsFd + Send> =
        if io::stdin().is_terminal() { Box::new(io::stdin()) } else { Box::new(std::fs::File::open("/dev/tty")?) };
    thread::spawn(move || {
        loop {
            // Not crossterm's: it never ends where the terminal has gone.
            let mut watched = [PollFd::new(&terminal, PollFlags::IN)];
            let gone = match poll(&mut watched, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => true,
                Ok(_) => watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
            };
            if gone {
                let _ = send.send(Message::Stop);
                return;
            }
            while event::poll(Duration::from_millis(20)).unwrap_or(false) {
                if let Some(key) = event::read().ok().and_then(key) {
                    let _ = send.send(Message::Key(key));
                }
            }
        }
    });
    Ok(())
}

fn key(event: Event) -> Option<Key> {
    let Event::Key(event) = event else { return None };
    if event.kind == KeyEventKind::Release {
        return None;
    }
    Some(match event.code {
        KeyCode::Char('c') if event.modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(_) if event.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}

/// Reads to the end, also when nobody takes it any more: the tracer waits for its reader.
fn read_records(mut records: Records, send: SyncSender<Message>) {
    thread::spawn(move || {
        let end = loop {
            let message = match records.next() {
                Ok(Some(Item::Told(told))) => Message::Record(told),
                Ok(Some(Item::Fault(fault))) => Message::Fault(fault),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let _ = send.send(message);
        };
        let _ = send.send(Message::End(end));
    });
}

/// The tracer, as a child.
struct Tracer {
    child: Child,
    /// Where it must not be seen on the screen.
    said: Option<Arc<Said>>,
}

/// What the tracer says on stderr. Two threads read it: one as it comes, the other one to the end.
struct Said {
    pipe: PipeReader,
    text: Mutex<Vec<u8>>,
}

impl Tracer {
    fn start(request: &Request, screen: bool) -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("rsttrace").arg("--json").args(&request.flags).stdout(Stdio::piped());
        // What is typed on the screen is not for CMD.
        if !request.wants_stdin {
            command.stdin(Stdio::null());
        }
        let mut said = None;
        if screen {
            let (pipe, theirs) = io::pipe().context("cannot make a pipe")?;
            fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
            command.stderr(theirs);
            said = Some(Arc::new(Said { pipe, text: Mutex::default() }));
        } else if !request.says_more_or_less {
            // The summary is ours to write.
            command.arg("--quiet");
        }
        Ok(Self { child: command.spawn().context("cannot start the tracer")?, said })
    }

    /// Tells the loop whenever something was said.
    fn listen(&self, send: SyncSender<Message>) {
        let Some(said) = self.said.clone() else { return };
        thread::spawn(move || {
            loop {
                let mut watched = [PollFd::new(&said.pipe, PollFlags::IN)];
                match poll(&mut watched, None) {
                    Err(rustix::io::Errno::INTR) => continue,
                    Ok(_) if said.take().is_ok_and(|more| more) => {}
                    _ => return,
                }
                let _ = send.try_send(Message::Said);
            }
        });
    }

    fn warning(&self) -> Option<String> {
        let said = self.said.as_ref()?;
        let text = said.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&text);
        text.lines().rev().find_map(|line| line.strip_prefix("rsttrace: warning: ")).map(str::to_owned)
    }

    fn stop(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// To be asked once it has closed its stdout.
    fn has_failed(&mut self) -> bool {
        self.child.wait().map_or(true, |status| !matches!(status.code(), Some(0 | FOUND)))
    }

    /// Waits for its end, and tells what it said; its exit status is ours.
    fn finish(mut self) -> anyhow::Result<ExitCode> {
        let status = self.child.wait().context("cannot wait for the tracer")?;
        if let Some(said) = self.said {
            let _ = said.take();
            let _ = io::stderr().write_all(&said.text.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED).into())
    }
}

impl Said {
    /// Takes what is there. Returns whether more may come.
    fn take(&self) -> io::Result<bool> {
        // Read and kept under one lock: who has it knows of everything that was there.
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunk = [0; 4_096];
        loop {
            match (&self.pipe).read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(n) => text.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            let too_much = text.len().saturating_sub(MAX_SAID);
            text.drain(..too_much);
        }
    }
}
