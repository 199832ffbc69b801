//! Somebody who may still read /proc when we no longer may. After the tracer has given up its
//! capabilities, the kernel hides from it who holds which socket and what others execute
//! (`ptrace_may_access()`), and under hidepid that others exist. A child that was forked before
//! answers questions about it, over a socket, opens the log files that the user has named when there
//! are new ones, and can do nothing else: it has
//! `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH` where we had them, can open files for reading only,
//! and cannot make a socket, a process or a file (`syscalls::Role::Reader`). Landlock is not for
//! it: a process in a Landlock domain is refused by `ptrace_may_access()` whatever it is capable of.
//!
//! It sleeps in one receive while nobody asks, and ends when the other end of the socket is
//! closed, that is with the tracer, however that ends.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BufMut};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair, sockopt,
    },
    thread::CapabilitySet,
};

use super::{
    capabilities, servant,
    syscalls::{self, Role},
};
use crate::{
    clock::monotonic_ns,
    enrich::{
        Proc, ProcessSource,
        nat::{Connection, Translation},
    },
    filter::ProcessInfo,
    follow::{Door, Doors, Opened},
    model::{Container, Endpoint, Identity, Nat, Place, Runtime},
};

/// What most questions look like: their kind and a number.
const QUESTION: usize = 9;
/// One about a connection: kind, namespace, holder, its two times, its two endpoints.
const CONNECTION: usize = 1 + 2 * 4 + 2 * 8 + 2 * ENDPOINT;
/// An address as IPv6 has it, and a port.
const ENDPOINT: usize = 18;
/// An answer is not longer.
const ANSWER_MAX: usize = 160 * 1024;
/// More of a command line is not told: the kernel's own limit for one argument (`MAX_ARG_STRLEN`).
const CMDLINE_MAX: usize = 128 * 1024;
/// How long the tracer waits for an answer: /proc may have to wait for a process that is stuck.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Files that reading may go on from are closed when nobody asks for so long.
const BEFORE_LONG: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Process(u32),
    Holder(u64),
    After(u32),
    Netns(u32),
    NamedNetns,
    Translation(Connection),
    /// A log file, by its number.
    File(u64),
}

/// The tracer's end; all copies are one.
#[derive(Clone, Debug)]
pub struct Broker(Rc<RefCell<Line>>);

/// To the child.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    /// An answer that nobody waits for any longer is still to come.
    owed: bool,
    gone: bool,
    answer: Vec<u8>,
}

impl Broker {
    /// Forks. Called while the process has one thread and no runtime: the child is a copy of this
    /// thread only.
    ///
    /// # Errors
    /// When there can be no socket or no process.
    pub fn start(files: Option<Doors>) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let kept: Vec<_> = std::iter::once(theirs.as_raw_fd()).chain(files.iter().map(|files| files.inotify.as_raw_fd())).collect();
        servant(c"rsttrace-proc", &kept, || live(&theirs, files))?;
        Self::asking(ours)
    }

    fn asking(socket: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(Rc::new(RefCell::new(Line { socket, owed: false, gone: false, answer: vec![0; ANSWER_MAX] }))))
    }
}

impl Line {
    /// `None`: no answer, or none in time.
    fn ask(&mut self, question: Question) -> Option<(&[u8], Option<OwnedFd>)> {
        if self.gone || self.owed && self.receive(RecvFlags::DONTWAIT).is_none() {
            return None;
        }
        let packet = question.encode();
        if retry_on_intr(|| send(&self.socket, &packet, SendFlags::NOSIGNAL)).is_err() {
            self.gone = true;
            return None;
        }
        self.owed = true;
        let (len, file) = self.receive(RecvFlags::empty())?;
        Some((self.answer.get(..len)?, file))
    }

    /// Length of an answer that has arrived, and the descriptor that came with it.
    fn receive(&mut self, flags: RecvFlags) -> Option<(usize, Option<OwnedFd>)> {
        match receive_file(&self.socket, &mut self.answer, flags) {
            Ok((bytes @ 1.., file)) => {
                self.owed = false;
                Some((bytes, file))
            }
            Err(Errno::AGAIN) => None,
            _ => {
                self.gone = true;
                None
            }
        }
    }
}

/// A packet's length, and the descriptor that came with it.
pub(super) fn receive_file(socket: &OwnedFd, packet: &mut [u8], flags: RecvFlags) -> rustix::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut packet = [IoSliceMut::new(packet)];
    let message = retry_on_intr(|| recvmsg(socket, &mut packet, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC))?;
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok((message.bytes, file))
}

impl ProcessSource for Broker {
    fn process(&mut self, tgid: u32) -> Option<ProcessInfo> {
        decode_process(self.0.borrow_mut().ask(Question::Process(tgid))?.0)
    }

    fn holder(&mut self, inode: u64) -> Option<u32> {
        decode_numbers(self.0.borrow_mut().ask(Question::Holder(inode))?.0).next()
    }

    fn after(&mut self, tgid: u32) -> Vec<u32> {
        self.0.borrow_mut().ask(Question::After(tgid)).map(|(answer, _)| decode_numbers(answer).collect()).unwrap_or_default()
    }

    fn netns(&mut self, tgid: u32) -> Option<u32> {
        decode_numbers(self.0.borrow_mut().ask(Question::Netns(tgid))?.0).next()
    }

    fn named_netns(&mut self) -> Vec<(u32, String)> {
        self.0.borrow_mut().ask(Question::NamedNetns).map(|(answer, _)| decode_names(answer)).unwrap_or_default()
    }

    fn translation(&mut self, of: &Connection) -> Translation {
        self.0.borrow_mut().ask(Question::Translation(*of)).and_then(|(answer, _)| decode_translation(answer)).unwrap_or_default()
    }

    fn is_gone(&self) -> bool {
        self.0.borrow().gone
    }
}

impl Door for Broker {
    fn open(&mut self, number: usize) -> io::Result<Opened> {
        let mut line = self.0.borrow_mut();
        let (answer, file) = line.ask(Question::File(number as u64)).ok_or(io::ErrorKind::TimedOut)?;
        match (answer, file) {
            ([KNOWN, watch @ ..], Some(file)) if watch.len() == 4 => Ok(Opened { file: file.into(), watch: (&*watch).get_i32_le() }),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// The child's whole life.
fn live(socket: &OwnedFd, files: Option<Doors>) {
    // The first look at a clock finds out where the kernel's own code for it is, by calls that are refused later.
    let _ = monotonic_ns();
    // Where the kernel refuses a layer, the others hold.
    let _ = capabilities::keep_only(CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH);
    let _ = syscalls::confine(Role::Reader);
    serve(socket, &mut Proc::default(), files);
}

/// Answers until the asking end is closed, or says something else than a question.
fn serve(socket: impl AsFd, source: &mut impl ProcessSource, mut files: Option<Doors>) {
    let mut packet = [0; CONNECTION + 1];
    loop {
        if source.holds_files() && !is_asked(&socket) {
            source.let_go();
        }
        let Ok((len, _)) = retry_on_intr(|| recv(&socket, &mut packet[..], RecvFlags::empty())) else { return };
        let Some(question) = Question::decode(&packet[..len]) else { return };
        let mut file = None;
        let answer = match question {
            Question::Process(tgid) => encode_process(source.process(tgid)),
            Question::Holder(inode) => encode_numbers(source.holder(inode)),
            Question::After(tgid) => encode_numbers(source.after(tgid)),
            Question::Netns(tgid) => encode_numbers(source.netns(tgid)),
            Question::NamedNetns => encode_names(source.named_netns()),
            Question::Translation(of) => encode_translation(source.translation(&of)),
            Question::File(number) => match files.as_mut().zip(usize::try_from(number).ok()).map(|(files, number)| files.open(number)) {
                Some(Ok(opened)) => {
                    file = Some(opened.file);
                    encode_numbers([opened.watch.cast_unsigned()])
                }
                _ => UNKNOWN.to_vec(),
            },
        };
        let sent = match retry_on_intr(|| send_with(&socket, &answer, file.as_ref())) {
            // The system allows only smaller packets (net.core.wmem_max).
            Err(Errno::MSGSIZE) => retry_on_intr(|| send(&socket, &UNKNOWN, SendFlags::NOSIGNAL)),
            sent => sent,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Whether there is a question before long; also where that cannot be known.
fn is_asked(socket: &impl AsFd) -> bool {
    let mut question = [PollFd::new(socket, PollFlags::IN)];
    retry_on_intr(|| poll(&mut question, Some(&BEFORE_LONG))) != Ok(0)
}

/// An answer, and the descriptor that goes with it.
pub(super) fn send_with(socket: impl AsFd, answer: &[u8], file: Option<&File>) -> rustix::io::Result<usize> {
    let Some(file) = file else { return send(socket, answer, SendFlags::NOSIGNAL) };
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(socket, &[IoSlice::new(answer)], &mut ancillary, SendFlags::NOSIGNAL)
}

impl Question {
    fn encode(self) -> Vec<u8> {
        let (kind, number) = match self {
            Self::Process(tgid) => (b'p', u64::from(tgid)),
            Self::Holder(inode) => (b'h', inode),
            Self::After(tgid) => (b'a', u64::from(tgid)),
            Self::Netns(tgid) => (b'n', u64::from(tgid)),
            Self::NamedNetns => (b'i', 0),
            Self::Translation(of) => return encode_connection(&of),
            Self::File(number) => (b'f', number),
        };
        let mut packet = vec![kind];
        packet.put_u64_le(number);
        packet
    }

    fn decode(mut packet: &[u8]) -> Option<Self> {
        match packet.len() {
            QUESTION => {}
            CONNECTION => return decode_connection(packet).map(Self::Translation),
            _ => return None,
        }
        let (kind, number) = (packet.get_u8(), packet.get_u64_le());
        match kind {
            b'p' => u32::try_from(number).ok().map(Self::Process),
            b'h' => Some(Self::Holder(number)),
            b'a' => u32::try_from(number).ok().map(Self::After),
            b'n' => u32::try_from(number).ok().map(Self::Netns),
            b'i' => Some(Self::NamedNetns),
            b'f' => Some(Self::File(number)),
            _ => None,
        }
    }
}

fn encode_connection(of: &Connection) -> Vec<u8> {
    let mut packet = vec![b't'];
    packet.put_u32_le(of.netns);
    packet.put_u32_le(of.holder);
    packet.put_u64_le(of.since_ns);
    packet.put_u64_le(of.ended_ns);
    put_endpoint(&mut packet, of.local);
    put_endpoint(&mut packet, of.remote);
    packet
}

fn decode_connection(mut packet: &[u8]) -> Option<Connection> {
    if packet.try_get_u8().ok()? != b't' {
        return None;
    }
    let (netns, holder) = (packet.try_get_u32_le().ok()?, packet.try_get_u32_le().ok()?);
    let (since_ns, ended_ns) = (packet.try_get_u64_le().ok()?, packet.try_get_u64_le().ok()?);
    let (local, remote) = (take_endpoint(&mut packet)?, take_endpoint(&mut packet)?);
    Some(Connection { netns, holder, local, remote, since_ns, ended_ns })
}

/// IPv4 goes as v4-mapped.
fn put_endpoint(packet: &mut Vec<u8>, endpoint: Endpoint) {
    let addr = match endpoint.addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    };
    packet.put_slice(&addr.octets());
    packet.put_u16_le(endpoint.port);
}

fn take_endpoint(packet: &mut &[u8]) -> Option<Endpoint> {
    let (addr, rest) = packet.split_first_chunk::<16>()?;
    *packet = rest;
    Some(Endpoint::v6(*addr, packet.try_get_u16_le().ok()?))
}

// An answer is never empty, because that would be the end of the socket: its first byte says
// whether there is something behind it.
const UNKNOWN: [u8; 1] = [0];
const KNOWN: u8 = 1;

fn encode_numbers(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut answer = vec![KNOWN];
    numbers.into_iter().for_each(|number| answer.put_u32_le(number));
    answer.truncate(ANSWER_MAX);
    answer
}

fn decode_numbers(answer: &[u8]) -> impl Iterator<Item = u32> {
    answer.get(1..).unwrap_or_default().chunks_exact(4).map(|mut number| number.get_u32_le())
}

/// Numbers of namespaces, each before its name; as many as an answer has room for.
fn encode_names(names: Vec<(u32, String)>) -> Vec<u8> {
    let mut answer = vec![KNOWN];
    for (number, name) in names {
        if answer.len() + 4 + 2 + NAME_MAX > ANSWER_MAX {
            break;
        }
        answer.put_u32_le(number);
        put_name(&mut answer, Some(&name), NAME_MAX);
    }
    answer
}

fn decode_names(answer: &[u8]) -> Vec<(u32, String)> {
    let mut rest = answer.get(1..).unwrap_or_default();
    std::iter::from_fn(|| Some((rest.try_get_u32_le().ok()?, take_name(&mut rest)??))).collect()
}

/// The two times, then the two endpoints, each behind whether it is there.
fn encode_translation(Translation { nat, quiet_ns, wait_ns }: Translation) -> Vec<u8> {
    let mut answer = vec![KNOWN];
    answer.put_u64_le(quiet_ns);
    answer.put_u64_le(wait_ns);
    let Nat { original, translated } = nat.unwrap_or_default();
    for endpoint in [original, translated] {
        answer.put_u8(endpoint.is_some().into());
        endpoint.into_iter().for_each(|endpoint| put_endpoint(&mut answer, endpoint));
    }
    answer
}

fn decode_translation(mut answer: &[u8]) -> Option<Translation> {
    if answer.try_get_u8().ok()? != KNOWN {
        return None;
    }
    let (quiet_ns, wait_ns) = (answer.try_get_u64_le().ok()?, answer.try_get_u64_le().ok()?);
    let mut endpoint = || match answer.try_get_u8().ok()? {
        0 => Some(None),
        _ => take_endpoint(&mut answer).map(Some),
    };
    let nat = Nat { original: endpoint()?, translated: endpoint()? };
    Some(Translation { nat: (nat != Nat::default()).then_some(nat), quiet_ns, wait_ns })
}

/// In place of a length, a uid, or a container's runtime.
const NO_NAME: u16 = u16::MAX;
const NO_UID: u64 = u64::MAX;
const NO_TGID: u32 = 0;
const NO_RUNTIME: u8 = u8::MAX;
/// More than the kernel's `NAME_MAX` and `PATH_MAX`, also where each byte had to be replaced.
const NAME_MAX: usize = 1_024;
const PATH_MAX: usize = 12_288;

/// Numbers, then names with their lengths, then the command line.
fn encode_process(info: Option<ProcessInfo>) -> Vec<u8> {
    let Some(ProcessInfo { comm, cmdline, parent, started, identity }) = info else { return UNKNOWN.to_vec() };
    let Identity { exe, uid, user: _, ns_tgid, place } = &*identity;
    let container = place.container.as_ref();
    let runtime = container.and_then(|container| Runtime::ALL.iter().position(|runtime| Some(*runtime) == container.runtime));
    let mut answer = vec![KNOWN];
    answer.put_u32_le(parent);
    answer.put_u64_le(started);
    answer.put_u64_le(uid.map_or(NO_UID, u64::from));
    answer.put_u32_le(ns_tgid.unwrap_or(NO_TGID));
    answer.put_u8(runtime.and_then(|index| u8::try_from(index).ok()).unwrap_or(NO_RUNTIME));
    put_name(&mut answer, exe.as_deref(), PATH_MAX);
    for name in [Some(&comm), place.unit.as_ref(), container.map(|container| &container.id), place.pod.as_ref()] {
        put_name(&mut answer, name.map(String::as_str), NAME_MAX);
    }
    answer.put_slice(&cmdline.as_bytes()[..cmdline.floor_char_boundary(CMDLINE_MAX)]);
    answer
}

fn put_name(answer: &mut Vec<u8>, name: Option<&str>, max: usize) {
    let name = name.map(|name| &name[..name.floor_char_boundary(max)]);
    answer.put_u16_le(name.and_then(|name| u16::try_from(name.len()).ok()).unwrap_or(NO_NAME));
    answer.put_slice(name.unwrap_or_default().as_bytes());
}

fn decode_process(mut answer: &[u8]) -> Option<ProcessInfo> {
    if answer.try_get_u8().ok()? != KNOWN {
        return None;
    }
    let parent = answer.try_get_u32_le().ok()?;
    let started = answer.try_get_u64_le().ok()?;
    let uid = u32::try_from(answer.try_get_u64_le().ok()?).ok();
    let ns_tgid = Some(answer.try_get_u32_le().ok()?).filter(|&tgid| tgid != NO_TGID);
    let runtime = Runtime::ALL.get(usize::from(answer.try_get_u8().ok()?)).copied();
    let exe = take_name(&mut answer)?;
    let comm = take_name(&mut answer)?.unwrap_or_default();
    let unit = take_name(&mut answer)?;
    let container = take_name(&mut answer)?.map(|id| Container { id, runtime });
    let place = Place { unit, container, pod: take_name(&mut answer)? };
    let identity = Arc::new(Identity { exe, uid, user: None, ns_tgid, place });
    Some(ProcessInfo { comm, cmdline: String::from_utf8_lossy(answer).into_owned(), parent, started, identity })
}

/// Outer `None`: cut short.
fn take_name(answer: &mut &[u8]) -> Option<Option<String>> {
    match answer.try_get_u16_le().ok()? {
        NO_NAME => Some(None),
        len => {
            let (name, rest) = answer.split_at_checked(usize::from(len))?;
            *answer = rest;
            Some(Some(String::from_utf8_lossy(name).into_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        thread,
    };

    use proptest::prelude::*;

    use super::*;

    /// Knows process 7 and its socket, and takes long over process 8.
    #[derive(Debug)]
    struct Fake;

    /// Has a file open until it is told to let go.
    #[derive(Debug)]
    struct Holding(Option<Sender<()>>);

    impl ProcessSource for Holding {
        fn process(&mut self, _: u32) -> Option<ProcessInfo> {
            None
        }

        fn holder(&mut self, _: u64) -> Option<u32> {
            None
        }

        fn netns(&mut self, _: u32) -> Option<u32> {
            None
        }

        fn after(&mut self, _: u32) -> Vec<u32> {
            Vec::new()
        }

        fn holds_files(&self) -> bool {
            self.0.is_some()
        }

        fn let_go(&mut self) {
            let _ = self.0.take().map(|told| told.send(()));
        }
    }

    #[test]
    fn files_are_not_held_when_nobody_asks_any_longer() {
        let (broker, theirs) = pair();
        let (tell, told) = channel();
        let server = thread::spawn(move || serve(&theirs, &mut Holding(Some(tell)), None));
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(broker);
        server.join().unwrap();
    }

    fn seven() -> ProcessInfo {
        let container = Container { id: "0".repeat(64), runtime: Some(Runtime::Podman) };
        let place = Place { unit: Some("nginx.service".to_owned()), container: Some(container), pod: None };
        let identity = Arc::new(Identity { exe: Some("/usr/sbin/nginx".to_owned()), uid: Some(33), user: None, ns_tgid: Some(7), place });
        ProcessInfo { comm: "worker".to_owned(), cmdline: "nginx: worker".to_owned(), parent: 1, started: 4_711, identity }
    }

    impl ProcessSource for Fake {
        fn process(&mut self, tgid: u32) -> Option<ProcessInfo> {
            if tgid == 8 {
                thread::sleep(PATIENCE + Duration::from_millis(300));
            }
            (tgid == 7).then(seven)
        }

        fn holder(&mut self, inode: u64) -> Option<u32> {
            (inode == 4_711).then_some(7)
        }

        fn netns(&mut self, tgid: u32) -> Option<u32> {
            (tgid == 7).then_some(4_026_531_840)
        }

        fn after(&mut self, tgid: u32) -> Vec<u32> {
            (tgid + 1..=20_000).take(4_096).collect()
        }

        fn named_netns(&mut self) -> Vec<(u32, String)> {
            vec![(4_026_531_841, "blue".to_owned()), (4_026_531_842, String::new())]
        }

        /// Each connection is translated to itself, backwards.
        fn translation(&mut self, of: &Connection) -> Translation {
            Translation {
                nat: Some(Nat { original: Some(of.remote), translated: Some(of.local) }),
                quiet_ns: of.since_ns,
                wait_ns: of.ended_ns,
            }
        }
    }

    fn connection() -> Connection {
        let (local, remote) = (Endpoint::v4([10, 1, 2, 3], 8443), Endpoint::v6([0xfd; 16], 40_000));
        Connection { netns: 4_026_531_840, holder: 7, local, remote, since_ns: 12, ended_ns: 34 }
    }

    fn pair() -> (Broker, OwnedFd) {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Broker::asking(ours).unwrap(), theirs)
    }

    #[test]
    fn questions_are_answered_and_the_end_of_the_asker_ends_it() {
        let (mut broker, theirs) = pair();
        let server = thread::spawn(move || serve(&theirs, &mut Fake, None));
        assert_eq!(broker.process(7), Some(seven()));
        assert_eq!(broker.process(9), None);
        assert_eq!(broker.holder(4_711), Some(7));
        assert_eq!(broker.holder(4_712), None);
        assert_eq!(broker.after(3).len(), 4_096);
        assert_eq!(broker.after(19_999), [20_000]);
        assert!(broker.after(20_000).is_empty());
        assert_eq!(broker.named_netns(), Fake.named_netns());
        assert_eq!(broker.translation(&connection()), Fake.translation(&connection()));
        assert!(!broker.is_gone());
        drop(broker);
        server.join().unwrap();
    }

    #[test]
    fn an_answer_that_takes_too_long_is_unknown_and_does_not_answer_the_next_question() {
        let (mut broker, theirs) = pair();
        let server = thread::spawn(move || serve(&theirs, &mut Fake, None));
        assert_eq!(broker.process(8), None, "not in time");
        assert_eq!(broker.process(7), None, "busy: not waited for again");
        let deadline = std::time::Instant::now() + PATIENCE * 4;
        while broker.process(7) != Some(seven()) {
            assert!(!broker.is_gone() && std::time::Instant::now() < deadline);
            thread::yield_now();
        }
        drop(broker);
        server.join().unwrap();
    }

    #[test]
    fn an_end_that_is_gone_is_noticed_and_answers_nothing() {
        let (mut broker, theirs) = pair();
        drop(theirs);
        assert_eq!(broker.process(7), None);
        assert!(broker.is_gone());
        assert_eq!(broker.holder(4_711), None);
    }

    #[test]
    fn what_is_no_question_ends_it() {
        for nonsense in [&b"x"[..], b"q12345678", &[b'p'; CONNECTION], &[b't'; CONNECTION + 1], b"p\0\0\0\0\x01\0\0\0", b"p123456789"] {
            let (broker, theirs) = pair();
            let server = thread::spawn(move || serve(&theirs, &mut Fake, None));
            send(&broker.0.borrow().socket, nonsense, SendFlags::NOSIGNAL).unwrap();
            server.join().unwrap();
        }
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (any::<[u8; 16]>(), any::<[u8; 4]>(), any::<bool>(), any::<u16>())
            .prop_map(|(v6, v4, four, port)| if four { Endpoint::v4(v4, port) } else { Endpoint::v6(v6, port) })
    }

    proptest! {
        #[test]
        fn processes_survive_the_way(
            comm in ".{0,64}", exe in prop::option::of(".{0,255}"), unit in prop::option::of(".{0,64}"), pod in prop::option::of(".{0,36}"),
            id in prop::option::of(".{0,64}"), runtime in prop::option::of(prop::sample::select(&Runtime::ALL[..])), uid: Option<u32>, ns_tgid in prop::option::of(1u32..),
            cmdline in ".*", parent: u32, started: u64,
        ) {
            let place = Place { unit, container: id.map(|id| Container { id, runtime }), pod };
            let info = ProcessInfo { comm, cmdline, parent, started, identity: Arc::new(Identity { exe, uid, user: None, ns_tgid, place }) };
            prop_assert_eq!(decode_process(&encode_process(Some(info.clone()))), Some(info));
        }

        #[test]
        fn names_and_translations_survive_the_way(
            names in prop::collection::vec((any::<u32>(), ".{0,64}"), 0..50), quiet_ns: u64, original in prop::option::of(endpoint()), translated in endpoint(),
        ) {
            prop_assert_eq!(decode_names(&encode_names(names.clone())), names);
            let told = Translation { nat: Some(Nat { original, translated: Some(translated) }), quiet_ns, wait_ns: quiet_ns / 2 };
            prop_assert_eq!(decode_translation(&encode_translation(told)), Some(told));
        }

        #[test]
        fn any_bytes_are_an_answer_or_none(bytes: Vec<u8>) {
            let _ = decode_process(&bytes);
            let _ = decode_numbers(&bytes).count();
            let _ = decode_names(&bytes);
            let _ = decode_translation(&bytes);
            let _ = decode_connection(&bytes);
            let _ = Question::decode(&bytes);
        }

        #[test]
        fn questions_survive_the_way(tgid: u32, inode: u64, local in endpoint(), remote in endpoint()) {
            let of = Connection { netns: tgid, holder: tgid, local, remote, since_ns: inode, ended_ns: inode / 2 };
            for question in
                [Question::Process(tgid), Question::Holder(inode), Question::After(tgid), Question::NamedNetns, Question::Translation(of)]
            {
                prop_assert_eq!(Question::decode(&question.encode()), Some(question));
            }
        }
    }

    #[test]
    fn long_names_and_command_lines_are_cut_and_fit() {
        let long = "ä".repeat(ANSWER_MAX);
        let place =
            Place { unit: Some(long.clone()), container: Some(Container { id: long.clone(), runtime: None }), pod: Some(long.clone()) };
        let identity = Arc::new(Identity { exe: Some(long.clone()), uid: None, user: None, ns_tgid: None, place });
        let answer = encode_process(Some(ProcessInfo { comm: long.clone(), cmdline: long.clone(), parent: 1, started: 1, identity }));
        assert!(answer.len() <= ANSWER_MAX);
        assert!(encode_names(vec![(1, long); 1_000]).len() <= ANSWER_MAX);
        let told = decode_process(&answer).unwrap();
        assert_eq!(told.identity.exe.as_ref().map(String::len), Some(PATH_MAX));
        assert_eq!((told.comm.len(), told.cmdline.len()), (NAME_MAX, CMDLINE_MAX));
    }
}
