//! What of a record a log line can be compared with.

use super::clock::SLACK_NS;
use crate::model::{
    EndKind, Endpoint, Errno, Fault, FirstFin, Judged, LateObservation, LogLine, Observer, Remote, Role, Side, Task, TcpState, Teardown,
};

/// A span of time on the records' clock, in nanoseconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from_ns: u64,
    pub to_ns: u64,
}

impl Window {
    pub fn point(at_ns: u64) -> Self {
        Self { from_ns: at_ns, to_ns: at_ns }
    }

    pub fn meets(self, other: Self) -> bool {
        self.from_ns <= other.to_ns && other.from_ns <= self.to_ns
    }
}

/// How soon after the record of an error that nobody was caught taking its taker may have logged it,
/// where its end is not known.
const TAKEN_WITHIN_NS: u64 = 1_000_000_000;

/// One socket's end, as its application may have logged it.
#[derive(Clone, Debug)]
pub struct Facts {
    pub(super) processes: Vec<u32>,
    pub(super) role: Option<Role>,
    pub(super) remote: Endpoint,
    /// The error that a call returned, which call that was if it was caught, and when.
    pub(super) error: Option<(Errno, Option<&'static str>, Window)>,
    /// The other end was the first to close, in order: when the application may have noticed.
    pub(super) fin: Option<Window>,
    /// The same, or it reset the connection.
    pub(super) closed_by_peer: Option<Window>,
    /// The application closed it, before the other end did: when.
    pub(super) closed_by_us: Option<Window>,
    /// It was never open: when it failed, or was given up.
    pub(super) not_connected: Option<Window>,
    /// The request that it hit.
    pub(super) request: Option<String>,
}

impl Facts {
    pub fn of(judged: &Judged) -> Self {
        let t = &judged.teardown;
        let tasks = t.observer.iter().map(|observer| &observer.task).chain(&t.closer).chain(&t.released);
        let mut processes: Vec<u32> = t.owner.iter().map(|owner| owner.tgid).chain(tasks.map(|task| task.tgid)).collect();
        processes.sort_unstable();
        processes.dedup();
        Self {
            processes,
            role: t.role,
            remote: t.remote,
            error: t.observer.as_ref().map(|observer| (observer.errno, caught(observer), error_window(t, observer))),
            fin: by_fin(t).then(|| until_released(t)),
            closed_by_peer: (by_fin(t) || t.end == EndKind::ResetReceived).then(|| until_released(t)),
            closed_by_us: closed_by_us(t),
            not_connected: (t.state == Some(TcpState::SynSent)).then(|| until_released(t)),
            request: None,
        }
    }

    /// Of an error that was noticed after its connection's record.
    pub fn of_late(late: &LateObservation) -> Self {
        let observer = &late.observer;
        Self {
            processes: vec![observer.task.tgid],
            role: None,
            remote: late.remote,
            error: Some((observer.errno, caught(observer), Window::point(late.at_ns))),
            fin: None,
            closed_by_peer: None,
            closed_by_us: None,
            not_connected: None,
            request: None,
        }
    }

    /// When the application noticed, to put the records of one thread in order.
    pub fn noticed(&self) -> Option<Window> {
        self.error.map(|(.., window)| window).or(self.closed_by_peer).or(self.closed_by_us)
    }

    /// Whether a line may be about it; `window`: when what the line is about happened.
    pub fn fits(&self, line: &LogLine, window: Window) -> bool {
        self.fits_fault(&line.fault, window)
            && line.process.is_none_or(|process| self.processes.contains(&process))
            && match line.side {
                Some(side) => self.fits_side(line, side),
                None => self.fits_side(line, Side::Client) || self.fits_side(line, Side::Upstream),
            }
    }

    fn fits_fault(&self, fault: &Fault, window: Window) -> bool {
        // What the application does about it comes after its line.
        let acting = Window { to_ns: window.to_ns.saturating_add(SLACK_NS), ..window };
        let within = |when: Option<Window>| when.is_some_and(|when| when.meets(acting));
        match fault {
            Fault::Error { errno, calls } => self.error.is_some_and(|(seen, call, when)| {
                seen == *errno && when.meets(window) && (calls.is_empty() || call.is_none_or(|call| calls.contains(&call)))
            }),
            Fault::EndOfFile => within(self.fin),
            Fault::ClosedByPeer => within(self.closed_by_peer),
            Fault::TimedOut => within(self.closed_by_us),
            Fault::NotConnected => within(self.not_connected),
            Fault::NoConnection => false,
        }
    }

    fn fits_side(&self, line: &LogLine, side: Side) -> bool {
        let (role, remote) = match side {
            Side::Client => (Role::Server, &line.client),
            Side::Upstream => (Role::Client, &line.upstream),
        };
        let names_it = match remote {
            Some(Remote::Tcp { addr, port }) => addr.to_canonical() == self.remote.addr && port.is_none_or(|port| port == self.remote.port),
            Some(Remote::Unix(_)) => false,
            Some(Remote::Name(_)) | None => true,
        };
        names_it && self.role.is_none_or(|own| own == role) && self.fits_request(line, side)
    }

    /// What both name must be the same, as far as both name it: the path. A proxy asks in its own
    /// words, and queries may be cut.
    fn fits_request(&self, line: &LogLine, side: Side) -> bool {
        let Some(ours) = self.request.as_deref().and_then(target) else { return true };
        let theirs = match side {
            Side::Client => line.request.as_deref().and_then(target),
            Side::Upstream => line.upstream_text.as_deref().and_then(path_of_url),
        };
        theirs.is_none_or(|theirs| same_path(ours, theirs))
    }
}

fn caught(observer: &Observer) -> Option<&'static str> {
    observer.task.syscall.filter(|_| !observer.inferred)
}

fn error_window(t: &Teardown, observer: &Observer) -> Window {
    match observer.delay_ns {
        Some(delay) => Window::point(t.at_ns + delay),
        None => Window { from_ns: t.at_ns, to_ns: t.released_ns.unwrap_or(t.at_ns + TAKEN_WITHIN_NS) },
    }
}

fn by_fin(t: &Teardown) -> bool {
    matches!(t.fin.first, Some(FirstFin::Remote | FirstFin::Both))
}

/// From the first sign of the end to our own close, or to the end's.
fn until_released(t: &Teardown) -> Window {
    let from_ns = t.fin.first_ns.filter(|_| by_fin(t)).unwrap_or(t.at_ns).min(t.at_ns);
    Window { from_ns, to_ns: t.released_ns.unwrap_or(t.at_ns).max(t.at_ns) }
}

fn closed_by_us(t: &Teardown) -> Option<Window> {
    let by_task = |task: &Option<Task>| task.is_some();
    match (t.end, t.fin.first) {
        (EndKind::Timeout, _) => Some(Window::point(t.at_ns)),
        (_, Some(FirstFin::Local | FirstFin::Both)) => Some(Window::point(t.fin.first_ns.unwrap_or(t.at_ns).min(t.at_ns))),
        (EndKind::ResetSent, _) if by_task(&t.closer) => Some(Window::point(t.at_ns)),
        (EndKind::Error, _) if t.state == Some(TcpState::SynSent) && by_task(&t.closer) => Some(Window::point(t.at_ns)),
        _ => None,
    }
}

/// The path of "POST /a?b HTTP/1.1".
fn target(request: &str) -> Option<&str> {
    let target = request.split(' ').nth(1)?;
    Some(without_query(target))
}

fn path_of_url(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    Some(without_query(&rest[rest.find('/')?..]))
}

fn without_query(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// One of them may have been cut.
fn same_path(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    short == long || short.len() >= LONG && long.starts_with(short)
}

/// Paths of this length may have been cut; shorter ones are whole.
const LONG: usize = 100;
