//! What is known of one ending socket so far, and how it is told.

use super::Key;
use crate::model::{
    Closer, Comm, End, EndKind, Errno, Evidence, Fin, FirstFin, Hook, Http, LateObservation, Observer, Owner, Peer, Reason, Record, Role,
    Seen, SockId, Task, TcpState, Teardown,
};

/// Why a story is told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The socket is released: all that can be known is.
    Complete,
    /// The join timeout has passed.
    Waited,
    /// Events of it are lost or cannot be matched.
    Untracked,
}

#[derive(Debug)]
struct Release {
    ts_ns: u64,
    task: Option<Task>,
    /// The error that was still there.
    untaken: Option<Errno>,
    observation_lost: bool,
    reopened: bool,
    /// Bytes that nobody read.
    unread: Option<u64>,
}

#[derive(Debug)]
struct SentReset {
    ts_ns: u64,
    reason: Option<Reason>,
    answer: bool,
    segment_bytes: Option<u64>,
}

#[derive(Debug)]
pub struct Story {
    end: Box<End>,
    observer: Option<Observer>,
    /// The observer's call may have kept the error to itself.
    unsure: bool,
    reset: Option<SentReset>,
    closed_with: Option<Errno>,
    release: Option<Release>,
    /// The other end, when it is a socket of this host.
    pub partner: Option<Key>,
    pub http: Option<Http>,
    told: bool,
}

impl Story {
    pub fn new(end: Box<End>) -> Self {
        Self { end, observer: None, unsure: false, reset: None, closed_with: None, release: None, partner: None, http: None, told: false }
    }

    pub fn id(&self) -> SockId {
        self.end.id
    }

    pub fn told(&self) -> bool {
        self.told
    }

    pub fn released(&self) -> bool {
        self.release.is_some()
    }

    /// The first call that returned the error is the observer; later ones see its remains. But
    /// sendfile() and splice() that have moved bytes return those, and drop the error that their
    /// last piece met: an error after theirs shows that they did, and is the first to be heard of.
    /// Yields a late observation where the record was told already.
    pub fn observed(&mut self, ts_ns: u64, task: Option<Task>, errno: Errno) -> Option<Record> {
        let task = task?;
        if self.observer.is_some() && !self.unsure {
            return None;
        }
        let first = self.observer.is_none();
        self.unsure = first && matches!(task.syscall, Some("sendfile" | "sendfile64" | "splice"));
        let observer = Observer {
            task: Task { syscall: task.syscall.filter(|name| returned_it(name, task.fd)), ..task },
            errno,
            delay_ns: Some(ts_ns.saturating_sub(self.end.ts_ns)),
            inferred: self.unsure,
        };
        self.observer = Some(observer);
        self.told.then(|| self.late(ts_ns, observer))
    }

    /// `task`: whose call sent it, where one did; shutdown() may have sent our FIN before.
    pub fn reset_sent(&mut self, ts_ns: u64, task: Option<Task>, reason: Option<Reason>, answer: bool, segment_bytes: Option<u64>) {
        if self.reset.is_none() {
            self.end.closer = task.or(self.end.closer);
            self.reset = Some(SentReset { ts_ns, reason, answer, segment_bytes });
        }
    }

    pub fn closed(&mut self, errno: Option<Errno>) {
        self.closed_with = errno;
    }

    pub fn release(
        &mut self,
        ts_ns: u64,
        task: Option<Task>,
        untaken: Option<Errno>,
        observation_lost: bool,
        reopened: bool,
        unread: Option<u64>,
    ) {
        self.release = Some(Release { ts_ns, task, untaken, observation_lost, reopened, unread });
    }

    pub fn into_end(self) -> Box<End> {
        self.end
    }

    pub fn end(&self) -> &End {
        &self.end
    }

    /// `tcp_rcv_state_process()` after our FIN: for data after close() the kernel ends
    /// the socket as if reset by the peer, destroys it, and only then sends its own RST.
    pub fn reset_may_follow(&self) -> bool {
        self.reset.is_none() && matches!(self.end.state, TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck)
    }

    /// Until when the other end, if it is a socket of this host, may end too; `None` where it has,
    /// or where it could not be recognised.
    pub fn partner_may_follow_until_ns(&self, beyond_ns: u64, at_most_ns: u64) -> Option<u64> {
        if self.partner.is_some() || self.told {
            return None;
        }
        self.end.sequence?;
        let round_trips_ns = 2_000 * u64::from(self.end.rtt_us.unwrap_or(0));
        // An orphan in FIN_WAIT2 is done before the other end's process has closed.
        let beyond_ns = if self.kind() == EndKind::Fin && !self.end.done { 20 * beyond_ns } else { beyond_ns };
        Some(self.end.ts_ns.saturating_add((beyond_ns + round_trips_ns).min(at_most_ns)))
    }

    /// The error left for the application, if the end left one.
    fn errno_at_birth(&self) -> Option<Errno> {
        match self.end.hook {
            Hook::ReceiveReset => Some(Errno::of_reset_in(self.end.state)),
            Hook::SetState => self.end.err,
            Hook::SendReset => self.closed_with.or(self.end.err),
        }
    }

    fn kind(&self) -> EndKind {
        let local_reset = match self.end.hook {
            // A RST sent for a segment in FIN_WAIT unmasks data after close().
            Hook::ReceiveReset => self.reset.as_ref().is_some_and(|reset| reset.answer),
            Hook::SendReset => true,
            Hook::SetState => self.reset.is_some(),
        };
        if local_reset {
            return EndKind::ResetSent;
        }
        match (self.end.hook, self.end.err) {
            (Hook::ReceiveReset, _) => EndKind::ResetReceived,
            (_, Some(Errno::ETIMEDOUT)) => EndKind::Timeout,
            (_, Some(_)) => EndKind::Error,
            // Without an entry in the table the RST that always follows cannot be matched.
            (_, None) if self.end.untracked && matches!(self.end.state, TcpState::Established | TcpState::CloseWait) => EndKind::ResetSent,
            // Ended by us without a FIN, a RST or an error: connect() given up, TCP_REPAIR's silent close.
            (_, None) if matches!(self.end.state, TcpState::Established | TcpState::CloseWait | TcpState::SynSent) => EndKind::Error,
            (_, None) => EndKind::Fin,
        }
    }

    /// What the other end's record says of this one: how much of its payload arrived here, and
    /// what was done with it.
    pub fn as_peer(&self, of: &End) -> Peer {
        let owner = self.owner();
        let foreign = |task: &Closer| owner.is_some_and(|owner| owner.tgid != task.tgid);
        let killed = self.end.closer.is_some_and(|task| foreign(&task)) && self.closed_with.or(self.end.err) == Some(Errno::ECONNABORTED);
        let actor = self.end.closer.filter(|_| !killed).or_else(|| self.observer.map(|observer| observer.task));
        let arrived = match (self.end.sequence, of.sequence) {
            (Some(here), Some(there)) => u64::from(here.expected.wrapping_sub(there.acknowledged)).min(of.bytes.unacked),
            _ => 0,
        };
        Peer {
            end: self.kind(),
            cookie: (self.end.cookie != 0).then_some(self.end.cookie),
            tgid: owner.map(|owner| owner.tgid),
            comm: owner.map_or_else(Comm::default, |owner| owner.comm),
            syscall: actor.filter(|_| !killed).and_then(|task| task.syscall),
            acted: self.end.closer.is_some() && !killed,
            killed,
            unread: self.unread(),
            arrived,
        }
    }

    /// Bytes that nobody will read any more. An abort drops what is there at once; otherwise they
    /// can be read until the release.
    fn unread(&self) -> Option<u64> {
        match (&self.release, self.kind()) {
            (_, EndKind::ResetSent) if self.end.closer.is_some() => Some(self.end.bytes.unread),
            (Some(release), _) => release.unread,
            (None, _) => None,
        }
    }

    /// The record as far as it is known; `peer` is the other end of this host.
    pub fn tell(&mut self, why: Told, peer: Option<Peer>) -> Teardown {
        self.told = true;
        let end = &self.end;
        let kind = self.kind();
        let sent = self.reset.as_ref().filter(|_| kind == EndKind::ResetSent);
        let at_ns = sent.map_or(end.ts_ns, |reset| reset.ts_ns);
        let observer = self.observer.or_else(|| self.conclude(why));
        let seen = self.seen(why, observer.is_some());
        self.observer = observer;
        let unread_at_release = self.unread();
        let end = &self.end;
        Teardown {
            at_ns,
            end: kind,
            local: end.local,
            remote: end.remote,
            netns: Some(end.netns),
            cookie: (end.cookie != 0).then_some(end.cookie),
            inode: end.inode,
            role: end.role,
            state: Some(end.state),
            age_ns: end.opened_ns.map(|opened| at_ns.saturating_sub(opened)),
            idle: Some(end.idle),
            bytes: Some(end.bytes),
            rtt_us: end.rtt_us,
            retransmits: Some(end.retransmits),
            reason: sent.and_then(|reset| reset.reason.clone()).or_else(|| end.reason.clone()),
            owner: self.owner(),
            observer,
            seen,
            closer: end.closer,
            released: self.releaser(),
            released_ns: self.release.as_ref().filter(|release| !release.reopened).map(|release| release.ts_ns),
            fin: self.fin(kind),
            evidence: Some(Evidence {
                errno: self.errno_at_birth(),
                answer: end.evidence.answer || self.reset.as_ref().is_some_and(|reset| reset.answer),
                segment_bytes: end.evidence.segment_bytes.or_else(|| self.reset.as_ref().and_then(|reset| reset.segment_bytes)),
                unread_at_release,
                ..end.evidence
            }),
            segment: None,
            peer,
            http: self.last_request(),
        }
    }

    /// What HTTP says, where it fits the connection. What comes after our close is dropped unseen: if the last
    /// request was whole, it is another, and nobody knows which.
    fn last_request(&self) -> Option<Http> {
        let http = self.http.clone().filter(|http| self.end.role.is_none_or(|role| role == http.role))?;
        let dropped =
            self.reset.as_ref().is_some_and(|reset| reset.answer && reset.segment_bytes != Some(0)) && self.reset_is_after_close();
        Some(if dropped && http.whole && http.role == Role::Server { Http::uncertain(http.role) } else { http })
    }

    /// Our FIN had left.
    fn reset_is_after_close(&self) -> bool {
        matches!(self.end.state, TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck | TcpState::TimeWait)
    }

    /// The error was there and is gone, and no hook saw who took it.
    fn conclude(&self, why: Told) -> Option<Observer> {
        let errno = self.errno_at_birth()?;
        let end = &self.end;
        if end.orphan || self.release.as_ref().is_some_and(|release| release.untaken.is_some() || release.observation_lost) {
            return None;
        }
        let concluded = |task: Task| Observer { task, errno, delay_ns: None, inferred: true };
        // connect() in blocking mode returns the error itself; no hook sees that.
        let connecting = end.owner.filter(|owner| end.state == TcpState::SynSent && owner.blocking && owner.syscall == Some("connect"));
        match (&self.release, why, connecting) {
            (Some(_), Told::Complete, Some(task)) | (None, Told::Waited, Some(task)) => Some(concluded(task)),
            (Some(Release { task: Some(task), .. }), Told::Complete, None) if !task.kernel_thread => {
                Some(concluded(Task { syscall: None, fd: None, ..*task }))
            }
            _ => None,
        }
    }

    fn seen(&self, why: Told, observed: bool) -> Seen {
        if observed {
            return Seen::Yes;
        }
        match (why, &self.release) {
            // A FIN leaves no error that anybody could see.
            _ if self.kind() == EndKind::Fin => Seen::Never,
            (Told::Untracked, _) | (_, Some(Release { observation_lost: true, .. })) => Seen::Unknown,
            (Told::Waited, None) => Seen::NotYet,
            // Taken, but nobody is left who could be named.
            (_, Some(release)) if release.untaken.is_none() && self.errno_at_birth().is_some() && !self.end.orphan => Seen::Unknown,
            _ => Seen::Never,
        }
    }

    /// Whoever caught the error holds the socket; else what the kernel half learned; else whoever
    /// released it. Before accept() nobody does.
    fn owner(&self) -> Option<Owner> {
        let known = self.end.owner;
        let caught = self.observer.filter(|observer| !observer.inferred).map(|observer| observer.task);
        let holder = match (caught, known) {
            (Some(task), Some(owner)) if task.tgid == owner.tgid => Some(owner),
            (Some(task), _) => Some(task),
            (None, known) => known.or_else(|| self.releaser()),
        };
        holder.filter(|task| !task.kernel_thread).map(|task| Owner {
            tgid: task.tgid,
            parent_tgid: task.parent_tgid,
            comm: task.process_comm,
        })
    }

    fn releaser(&self) -> Option<Closer> {
        self.release.as_ref().filter(|release| !release.reopened).and_then(|release| release.task)
    }

    fn fin(&self, kind: EndKind) -> Fin {
        let end = &self.end;
        // Closed by the application, but the FIN waits behind what has not been sent.
        let is_queued = end.bytes.unsent > 0;
        let local = match end.state {
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck if is_queued => Some(false),
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck | TcpState::TimeWait => Some(true),
            TcpState::Unknown(_) => None,
            _ => Some(false),
        };
        let remote = match end.state {
            _ if end.done => Some(true),
            TcpState::CloseWait | TcpState::LastAck | TcpState::Closing => Some(true),
            // An orphan goes on as a mini-socket, which receives the peer's FIN without a trace.
            TcpState::FinWait1 | TcpState::FinWait2 if kind == EndKind::Fin => None,
            TcpState::Unknown(_) => None,
            _ => Some(false),
        };
        let (first, first_ns) = match end.state {
            TcpState::FinWait1 if is_queued => (None, None),
            TcpState::Closing if is_queued => (Some(FirstFin::Remote), end.second_fin_ns),
            TcpState::CloseWait | TcpState::LastAck => (end.first_fin.or(Some(FirstFin::Remote)), end.first_fin_ns),
            TcpState::FinWait1 | TcpState::FinWait2 => (end.first_fin.or(Some(FirstFin::Local)), end.first_fin_ns),
            _ => (end.first_fin, end.first_fin_ns),
        };
        let both = local == Some(true) && remote == Some(true);
        Fin {
            first,
            local,
            remote,
            remote_data_bytes: end.fin_data_bytes.filter(|_| remote == Some(true)),
            first_ns,
            half_closed_ns: end.first_fin_ns.zip(end.second_fin_ns).filter(|_| both).map(|(a, b)| b.saturating_sub(a)),
        }
    }

    /// A story that was told as "not yet", released now: the error may be gone all the same.
    pub fn concluded_late(&mut self) -> Option<Record> {
        if self.observer.is_some() {
            return None;
        }
        let observer = self.conclude(Told::Complete)?;
        self.observer = Some(observer);
        let at_ns = self.release.as_ref().map_or(self.end.ts_ns, |release| release.ts_ns);
        Some(self.late(at_ns, observer))
    }

    fn late(&self, at_ns: u64, observer: Observer) -> Record {
        let end = &self.end;
        Record::Late(Box::new(LateObservation {
            at_ns,
            cookie: (end.cookie != 0).then_some(end.cookie),
            local: end.local,
            remote: end.remote,
            netns: Some(end.netns),
            end: self.kind(),
            owner: self.owner(),
            observer,
        }))
    }
}

/// Whether a call returned the socket's error to its caller. In any other call, and in the same
/// one on another descriptor, what ran was the completion of an asynchronous request, and the call
/// has no part in it. Some name no descriptor of the socket: io_uring's is the ring's, and that of
/// `socketcall` lies in memory.
fn returned_it(name: &str, fd: Option<i32>) -> bool {
    const CALLS: [&str; 22] = [
        "read",
        "readv",
        "preadv",
        "preadv2",
        "recvfrom",
        "recvmsg",
        "recvmmsg",
        "recvmmsg_time64",
        "recv",
        "write",
        "writev",
        "pwritev",
        "pwritev2",
        "sendto",
        "sendmsg",
        "sendmmsg",
        "sendfile",
        "sendfile64",
        "splice",
        "getsockopt",
        "connect",
        "send",
    ];
    CALLS.contains(&name) && fd.is_some() || matches!(name, "io_uring_enter" | "socketcall")
}
