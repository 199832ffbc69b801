//! `rsttrace top`: the live screen. The tracer is a child that writes JSON lines to us, so that it stays under its
//! sandbox, which knows no terminal; a file is replayed by such a child too. What shows the records has no rights at all.

mod keys;
mod model;
#[cfg(test)]
mod tests;
mod view;

use std::{
    env,
    ffi::OsString,
    io::{self, BufWriter, IsTerminal as _, PipeReader, Read as _, Stdout},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    panic,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
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
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::Signals,
};

use self::{keys::Key, model::Model, view::View};
use crate::{
    config::Look,
    exit::{self, FOUND},
    input::{Item, Records},
    sandbox, status,
};

/// What to show, and how.
#[derive(Debug)]
pub struct Request {
    /// What is shown instead of a live trace.
    pub file: Option<String>,
    /// It was named in front of the flags, and not by them.
    pub replays: bool,
    /// As they were given.
    pub flags: Vec<OsString>,
    pub look: Look,
    /// Records or a log come from standard input.
    pub reads_stdin: bool,
    /// It traces CMD, whose exit status is the tracer's.
    pub runs_command: bool,
}

impl Request {
    /// Ourselves, with the same flags.
    fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("rsttrace").args(self.replays.then_some("replay"));
        // What is typed on the screen is not for CMD.
        if !self.reads_stdin {
            command.stdin(Stdio::null());
        }
        command
    }
}

/// The screen is drawn at most so often.
const FRAME: Duration = Duration::from_millis(100);
/// Records that wait to be counted: a flood waits in the pipe, and a key behind no more than these. Each may be of 1 MiB.
const WAITING: usize = 64;
/// What the tracer said is kept up to here, and told in the end.
const MAX_SAID: usize = 64 << 10;

/// Runs it.
///
/// # Errors
/// When the records cannot be had, or the terminal not be used.
pub fn run(request: &Request) -> anyhow::Result<ExitCode> {
    // A terminal that cannot move its cursor shows no screen.
    if !io::stdout().is_terminal() || env::var_os("TERM").is_none_or(|term| term == "dumb") {
        let error = request.command().arg("--summary").args(&request.flags).exec();
        return Err(error).context("cannot start the tracer");
    }
    let mut tracer = Tracer::start(request)?;
    // Before there is a second thread.
    sandbox::give_up_capabilities().context("cannot give up capabilities")?;
    let stdout = tracer.child.stdout.take().context("the tracer has no stdout")?;
    let mut records = Records::new(Box::new(stdout)).context("cannot read from the tracer")?;
    let mut model = Model::new(request.file.clone());
    // What keeps it from tracing is better said where it stays: the first record is waited for.
    match records.next().context("cannot read from the tracer")? {
        Some(item) => take(&mut model, item, 0),
        None => return tracer.finish(),
    }
    show(request, records, &mut model, tracer)
}

fn show(request: &Request, records: Records, model: &mut Model, mut tracer: Tracer) -> anyhow::Result<ExitCode> {
    let font = env::var_os("TERM").is_none_or(|term| term != "linux");
    let mut view = View::new(request.look.on_stdout(Timestamp::now()), font);
    let (send, receive) = sync_channel(WAITING);
    let stopping = Arc::new(AtomicBool::new(false));
    let mut screen = Screen::enter().context("cannot use the terminal")?;
    watch_signals(send.clone(), Arc::clone(&stopping)).context("cannot watch signals")?;
    read_keys(send.clone()).context("cannot read the keyboard")?;
    tracer.listen(send.clone());
    read_records(records, if model.is_live() { "the tracer has ended" } else { "all read" }, send);
    let result = screen.run(model, &mut view, &receive, &stopping, &mut tracer);
    drop(screen);
    // From here on a signal ends it at once.
    stopping.store(true, Ordering::Relaxed);
    tracer.stop();
    // It may be writing, and waits for its reader.
    while model.origin.ended.is_none() {
        let Ok(message) = receive.recv() else { break };
        take_message(model, message, 0);
    }
    let code = tracer.finish()?;
    result.context("cannot write to the terminal").map(|()| code)
}

/// What the loop waits for.
enum Message {
    Read(Item),
    /// The end of the records, and how it came, in words.
    End(String),
    Key(Key),
    /// The window has another size.
    Resized,
    /// The tracer has said something.
    Said,
    /// For the tracer.
    Signal(i32),
    /// A signal to end, or the terminal has gone.
    Stop,
}

/// Takes a message into the model. Returns whether the screen is to stay.
fn take_message(model: &mut Model, message: Message, second: u64) -> bool {
    match message {
        Message::Read(item) => take(model, item, second),
        Message::End(end) => model.origin.ended = Some(end),
        Message::Key(key) => return model.press(key),
        Message::Resized | Message::Said | Message::Signal(_) => {}
        Message::Stop => return false,
    }
    true
}

fn take(model: &mut Model, item: Item, second: u64) {
    match item {
        Item::Told(told) => model.take(told.saved, second),
        // Its own tracer's words: never, but for a defect.
        Item::Fault(_) => model.origin.account.faults += 1,
    }
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
        tracer: &mut Tracer,
    ) -> io::Result<()> {
        let began = Instant::now();
        let mut drawn: Option<Instant> = None;
        let mut changed = true;
        while !stopping.load(Ordering::Relaxed) {
            let now = Instant::now();
            if changed && drawn.is_none_or(|at| now.duration_since(at) >= FRAME) {
                model.origin.warning = tracer.warning();
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
            // Before the first one there is room for a whole sparkline.
            let second = began.elapsed().as_secs() + model::BUCKETS as u64;
            match message {
                Ok(Message::Signal(signal)) => tracer.signal(signal),
                Ok(message) => {
                    // Why tracing failed is better read where it stays; of a file there is something to be seen.
                    let ends = model.is_live() && matches!(message, Message::End(_));
                    if !take_message(model, message, second) || ends && tracer.has_failed() {
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

/// How long a terminal may take to be given back when a second signal has come.
const LEAVING: Duration = Duration::from_millis(200);

/// The first signal ends the loop; another one the process, even while the terminal takes nothing.
fn watch_signals(send: SyncSender<Message>, stopping: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGUSR1, SIGUSR2])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let message = match signal {
                SIGWINCH => Some(Message::Resized),
                SIGUSR1 | SIGUSR2 => Some(Message::Signal(signal)),
                _ => None,
            };
            if let Some(message) = message {
                let _ = send.send(message);
            } else if stopping.swap(true, Ordering::Relaxed) {
                // By somebody else, who may get stuck.
                thread::spawn(leave);
                thread::sleep(LEAVING);
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

/// Reads to the end, also when nobody looks any more: the tracer waits for its reader.
fn read_records(mut records: Records, ended: &'static str, send: SyncSender<Message>) {
    thread::spawn(move || {
        let end = loop {
            match records.next() {
                Ok(Some(item)) => drop(send.send(Message::Read(item))),
                Ok(None) => break ended.to_owned(),
                Err(error) => break format!("cannot read on: {error}"),
            }
        };
        let _ = send.send(Message::End(end));
    });
}

/// The tracer, as a child.
struct Tracer {
    child: Child,
    said: Arc<Said>,
    /// It has been asked to end.
    stopped: bool,
    runs_command: bool,
}

/// What the tracer says on stderr. Two threads read it: one as it comes, the other one to the end.
struct Said {
    pipe: PipeReader,
    text: Mutex<Vec<u8>>,
}

impl Tracer {
    fn start(request: &Request) -> anyhow::Result<Self> {
        let (pipe, theirs) = io::pipe().context("cannot make a pipe")?;
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        let mut command = request.command();
        command.arg("--json").args(request.file.is_none().then_some("--interim")).args(&request.flags);
        let child = command.stdout(Stdio::piped()).stderr(theirs).spawn().context("cannot start the tracer")?;
        Ok(Self { child, said: Arc::new(Said { pipe, text: Mutex::default() }), stopped: false, runs_command: request.runs_command })
    }

    /// Tells the loop whenever something was said.
    fn listen(&self, send: SyncSender<Message>) {
        let said = Arc::clone(&self.said);
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

    /// The latest that is to be read at once.
    fn warning(&self) -> Option<String> {
        let text = self.said.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&text);
        let mut words = text.lines().rev().filter_map(|line| line.strip_prefix("rsttrace: "));
        let words = words.find(|words| !words.starts_with("ready: ") && !words.starts_with("sandbox: "))?;
        Some(words.strip_prefix("warning: ").unwrap_or(words).to_owned())
    }

    fn stop(&mut self) {
        self.stopped = true;
        self.signal(SIGTERM);
    }

    fn signal(&mut self, signal: i32) {
        // Its number is its own as long as nobody has waited for it.
        if let (Ok(None), Ok(number)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let signal = Signal::from_named_raw(signal);
            let _ = Pid::from_raw(number).zip(signal).map(|(pid, signal)| kill_process(pid, signal));
        }
    }

    /// To be asked once it has closed its stdout. A status may be that of CMD, which had run by then.
    fn has_failed(&mut self) -> bool {
        let is_fine = |status: ExitStatus| match status.code() {
            Some(code) => [0, i32::from(FOUND)].contains(&code) || self.runs_command,
            None => false,
        };
        !self.child.wait().is_ok_and(is_fine)
    }

    /// Waits for its end, and tells what it said; its exit status is ours.
    fn finish(mut self) -> anyhow::Result<ExitCode> {
        let status = self.child.wait().context("cannot wait for the tracer")?;
        let _ = self.said.take();
        let text = std::mem::take(&mut *self.said.text.lock().unwrap_or_else(PoisonError::into_inner));
        if !text.is_empty() {
            status::say(String::from_utf8_lossy(&text).trim_end());
        }
        // What replays a file knows of nothing to be done first.
        if self.stopped && status.signal() == Some(SIGTERM) {
            return Ok(ExitCode::SUCCESS);
        }
        Ok(exit::of_child(status).into())
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
