//! What of a record a log line can be compared with.

use crate::model::{
    EndKind, Endpoint, Errno, Fault, FirstFin, Judged, LateObservation, LogLine, Observer, Remote, Role, Side, Speaker, TcpState, Teardown,
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

/// Where the end of a socket is not known, how long its error or its peer's FIN may have waited for
/// the application.
const NOTICED_WITHIN_NS: u64 = 1_000_000_000;
/// Between a line and the close that it announces its writer may lose the CPU.
const CLOSED_WITHIN_NS: u64 = 100_000_000;

/// One socket's end, as its application may have logged it. The windows are those in which it may
/// have written the line: after it noticed, before it let go of the socket.
#[derive(Clone, Debug)]
pub struct Facts {
    pub(super) processes: Vec<u32>,
    pub(super) role: Option<Role>,
    pub(super) remote: Endpoint,
    /// The error that a call returned, and which call that was if it was caught.
    pub(super) error: Option<(Errno, Option<&'static str>, Window)>,
    /// The other end was the first to close, in order.
    pub(super) fin: Option<Window>,
    /// The same, or it reset the connection.
    pub(super) closed_by_peer: Option<Window>,
    /// The application closed it, before the other end did.
    pub(super) closed_by_us: Option<Window>,
    /// It was never open.
    pub(super) not_connected: Option<Window>,
    /// Which process let go of it, and when.
    pub(super) released: Option<(u32, u64)>,
    /// Who had spoken last, before any FIN.
    pub(super) speaker: Option<Speaker>,
    /// The request that it hit.
    pub(super) request: Option<String>,
}

impl Facts {
    pub fn of(judged: &Judged) -> Self {
        let t = &judged.teardown;
        let tasks = t.observer.iter().map(|observer| &observer.task).chain(&t.closer).chain(&t.released);
        let mut processes: Vec<u32> = t.owner.iter().map(|owner| owner.tgid).chain(tasks.map(|task| task.tgid)).collect();
        // What logs within a container calls itself by the number that it has there.
        processes.extend(judged.names.owner.as_ref().and_then(|owner| owner.ns_tgid));
        processes.sort_unstable();
        processes.dedup();
        let let_go = let_go(t);
        let noticed = |from_ns: u64| Window {
            from_ns,
            to_ns: let_go.map_or(from_ns.max(t.at_ns).saturating_add(NOTICED_WITHIN_NS), |(_, at_ns)| at_ns.max(from_ns)),
        };
        let by_fin = matches!(t.fin.first, Some(FirstFin::Remote | FirstFin::Both));
        let fin_ns = t.fin.first_ns.unwrap_or(t.at_ns).min(t.at_ns);
        Self {
            processes,
            role: t.role,
            remote: t.remote,
            error: t
                .observer
                .as_ref()
                .map(|observer| (observer.errno, caught(observer), noticed(t.at_ns.saturating_add(observer.delay_ns.unwrap_or(0))))),
            fin: by_fin.then(|| noticed(fin_ns)),
            closed_by_peer: (by_fin || t.end == EndKind::ResetReceived).then(|| noticed(if by_fin { fin_ns } else { t.at_ns })),
            closed_by_us: closed_by_us(t).map(announced),
            not_connected: (t.state == Some(TcpState::SynSent)).then(|| announced(t.at_ns)),
            released: let_go,
            speaker: t.evidence.as_ref().and_then(|evidence| evidence.last_speaker),
            request: t.http.as_ref().and_then(|http| http.request.clone()),
        }
    }

    /// Of an error that was noticed after its connection's record.
    pub fn of_late(late: &LateObservation) -> Self {
        let observer = &late.observer;
        Self {
            processes: vec![observer.task.tgid],
            role: None,
            remote: late.remote,
            error: Some((
                observer.errno,
                caught(observer),
                Window { from_ns: late.at_ns, to_ns: late.at_ns.saturating_add(NOTICED_WITHIN_NS) },
            )),
            fin: None,
            closed_by_peer: None,
            closed_by_us: None,
            not_connected: None,
            released: None,
            speaker: None,
            request: None,
        }
    }

    /// Which process let go of it, and when.
    pub fn released(&self) -> Option<(u32, u64)> {
        self.released
    }

    /// When its line was due: right after the call that returned the error, else right before the
    /// socket was let go of. One thread writes its lines in the order of these moments.
    pub fn moment(&self) -> Option<u64> {
        match self.error {
            Some((_, Some(_), window)) => Some(window.from_ns),
            _ => self.released.map(|(_, at_ns)| at_ns),
        }
    }

    /// Whether a line that fits tells enough to be told as certain: an address at least, or the request.
    pub fn is_meant_by(&self, line: &LogLine) -> bool {
        let is_address = |remote: &Option<Remote>| matches!(remote, Some(Remote::Tcp { .. }));
        let addressed = match line.side {
            Some(Side::Client) => is_address(&line.client),
            Some(Side::Upstream) => is_address(&line.upstream),
            None => is_address(&line.client) || is_address(&line.upstream),
        };
        addressed || self.is_named_by(line)
    }

    /// A line that fits and that names this very connection: by its port, or by the request.
    pub fn is_named_by(&self, line: &LogLine) -> bool {
        let by_port = line.side == Some(Side::Client) && matches!(line.client, Some(Remote::Tcp { port: Some(_), .. }));
        let theirs = line.side.and_then(|side| request_of(line, side));
        by_port || self.request.as_deref().and_then(target).zip(theirs).is_some_and(|(ours, theirs)| same_path(ours, theirs))
    }

    /// Whether a line that was written within `window` may be about it; if it is, it was not written
    /// before `since_ns`.
    pub fn fits(&self, line: &LogLine, window: Window, since_ns: u64) -> bool {
        self.fits_fault(&line.fault, window, since_ns)
            && line.process.is_none_or(|process| self.processes.contains(&process))
            && match line.side {
                Some(side) => self.fits_side(line, side),
                None => self.fits_side(line, Side::Client) || self.fits_side(line, Side::Upstream),
            }
    }

    fn fits_fault(&self, fault: &Fault, window: Window, since_ns: u64) -> bool {
        let meets = |when: Window| Window { from_ns: when.from_ns.max(since_ns), ..when }.meets(window);
        let within = |when: Option<Window>| when.is_some_and(meets);
        match fault {
            Fault::Error { errno, calls } => self.error.is_some_and(|(seen, call, when)| {
                seen == *errno && meets(when) && (calls.is_empty() || call.is_none_or(|call| calls.contains(&call)))
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
        names_it && self.role.is_none_or(|own| own == role) && self.fits_turn(line, side) && self.fits_request(line, side)
    }

    /// Before the answer the client has spoken last, else the server.
    fn fits_turn(&self, line: &LogLine, side: Side) -> bool {
        let (Some(unanswered), Some(speaker)) = (line.unanswered, self.speaker) else { return true };
        let ours = unanswered == (side == Side::Upstream);
        speaker == if ours { Speaker::Local } else { Speaker::Remote }
    }

    /// What both name must be the same, as far as both name it: the path. A proxy asks in its own
    /// words, and queries may be cut.
    fn fits_request(&self, line: &LogLine, side: Side) -> bool {
        let Some(ours) = self.request.as_deref().and_then(target) else { return true };
        request_of(line, side).is_none_or(|theirs| same_path(ours, theirs))
    }
}

fn caught(observer: &Observer) -> Option<&'static str> {
    observer.task.syscall.filter(|_| !observer.inferred)
}

fn closed_by_us(t: &Teardown) -> Option<u64> {
    match (t.end, t.fin.first) {
        (EndKind::Timeout, _) => Some(t.at_ns),
        (_, Some(FirstFin::Local | FirstFin::Both)) => Some(t.fin.first_ns.unwrap_or(t.at_ns).min(t.at_ns)),
        (EndKind::ResetSent, _) => t.closer.map(|_| t.at_ns),
        (EndKind::Error, _) if t.state == Some(TcpState::SynSent) => t.closer.map(|_| t.at_ns),
        _ => None,
    }
}

/// A close, from the line that announces it.
fn announced(close_ns: u64) -> Window {
    Window { from_ns: close_ns.saturating_sub(CLOSED_WITHIN_NS), to_ns: close_ns }
}

/// Which process closed it for itself, and when: the kernel may keep the socket for longer.
fn let_go(t: &Teardown) -> Option<(u32, u64)> {
    let fin_ns = match t.fin.first {
        Some(FirstFin::Remote) => t.fin.first_ns.zip(t.fin.half_closed_ns).map(|(first, half)| first.saturating_add(half)),
        Some(FirstFin::Local | FirstFin::Both) => t.fin.first_ns,
        None => None,
    };
    let by = t.closer.or(t.released).map(|task| task.tgid).or(t.owner.map(|owner| owner.tgid))?;
    let closed_ns = closed_by_us(t).filter(|_| t.end == EndKind::ResetSent);
    let released_ns = t.released_ns.filter(|_| t.released.is_some_and(|task| !task.kernel_thread));
    fin_ns.or(closed_ns).or(released_ns).map(|at_ns| (by, at_ns))
}

/// The path that was asked for on that side, as far as the line has it.
fn request_of(line: &LogLine, side: Side) -> Option<&str> {
    match side {
        Side::Client => line.request.as_deref().and_then(target),
        Side::Upstream => line.upstream_text.as_deref().and_then(path_of_url),
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
    let a = a.strip_suffix('…').unwrap_or(a);
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    short == long || short.len() >= LONG && long.starts_with(short)
}

/// Paths of this length may have been cut; shorter ones are whole.
const LONG: usize = 100;
