//! A link between two network namespaces: delay, loss, and whatever a middlebox may do. Each end is
//! a tun device, and what the kernel writes to one is carried to the other by a thread of the test.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Actor, NetNs, Pair, wait_until};

/// One way across a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    AtoB,
    BtoA,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Lose,
    /// It is lost, and its sender has a RST at once, as from a host that knows no such connection.
    Reject,
}

/// A TCP segment on its way.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: Option<u32>,
    pub payload: usize,
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
}

/// Two namespaces, each with one address of either family, and the link between them. Gone on drop.
pub struct Link {
    pub a: NetNs,
    pub b: NetNs,
    pub addr_a: IpAddr,
    pub addr_b: IpAddr,
    pub addr6_a: IpAddr,
    pub addr6_b: IpAddr,
    lanes: [Arc<Lane>; 2],
    threads: Vec<JoinHandle<()>>,
}

/// One direction.
struct Lane {
    from: Arc<File>,
    to: Arc<File>,
    /// Rung at every change of the state.
    bell: File,
    state: Mutex<State>,
}

type Police = Box<dyn FnMut(&Segment) -> Fate + Send>;

#[derive(Default)]
struct State {
    delay: Duration,
    losing: bool,
    held: bool,
    police: Option<Police>,
    /// Added to the sequence numbers of one direction, taken from the other's acknowledgements.
    shift: (u32, u32),
    /// Packets with the time at which they are due, in order.
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// The latest segment that was not lost, as its sender numbered it.
    latest: Option<Segment>,
    passed: u64,
    lost: u64,
    over: bool,
}

impl Link {
    /// With this delay each way.
    #[track_caller]
    pub fn new(delay: Duration) -> Self {
        let ends = [(NetNs::new(), [10, 77, 0, 1], 1), (NetNs::new(), [10, 77, 0, 2], 2)].map(|(netns, v4, last)| {
            let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last));
            let tun = Arc::new(netns.run_in(open_tun));
            netns.command("ip", &["address", "add", &format!("{v4}/24"), "dev", "tun0"]);
            netns.command("ip", &["address", "add", &format!("{v6}/64"), "dev", "tun0", "nodad"]);
            netns.command("ip", &["link", "set", "tun0", "up"]);
            (netns, tun, IpAddr::from(v4), IpAddr::from(v6))
        });
        let [(a, tun_a, addr_a, addr6_a), (b, tun_b, addr_b, addr6_b)] = ends;
        let lanes = [Lane::new(&tun_a, &tun_b, delay), Lane::new(&tun_b, &tun_a, delay)];
        let threads = lanes.iter().map(|lane| spawn_carrier(Arc::clone(lane))).collect();
        Self { a, b, addr_a, addr_b, addr6_a, addr6_b, lanes, threads }
    }

    fn lane(&self, direction: Direction) -> &Lane {
        &self.lanes[direction as usize]
    }

    pub fn set_delay(&self, delay: Duration) {
        self.lanes.iter().for_each(|lane| lane.change(|state| state.delay = delay));
    }

    /// Loses everything that goes this way, or no longer.
    pub fn lose(&self, direction: Direction, lose: bool) {
        self.lane(direction).change(|state| state.losing = lose);
    }

    /// Keeps everything that goes this way on the link until it is released. What was kept longer
    /// than the delay arrives at once.
    pub fn hold(&self, direction: Direction, hold: bool) {
        self.lane(direction).change(|state| state.held = hold);
    }

    /// Has every segment that goes this way judged.
    pub fn police(&self, direction: Direction, judge: impl FnMut(&Segment) -> Fate + Send + 'static) {
        self.lane(direction).change(|state| state.police = Some(Box::new(judge)));
    }

    /// Numbers the bytes of both ends anew, as synproxies do: each is to the other like a host far
    /// away, and the tracer cannot know that both are here. For connections that are yet to be made.
    pub fn renumber(&self) {
        for netns in [&self.a, &self.b] {
            // Its blocks bear sequence numbers too.
            netns.sysctl("ipv4/tcp_sack", "0");
        }
        let (from_a, from_b) = (0x1234_5678, 0x9abc_def0);
        self.lane(Direction::AtoB).change(|state| state.shift = (from_a, from_b));
        self.lane(Direction::BtoA).change(|state| state.shift = (from_b, from_a));
    }

    /// Sends a RST this way that nobody but the link has made, with or without ACK: it continues
    /// exactly what has passed.
    #[track_caller]
    pub fn inject_reset(&self, direction: Direction, with_ack: bool) {
        let back = match direction {
            Direction::AtoB => Direction::BtoA,
            Direction::BtoA => Direction::AtoB,
        };
        let receiver = self.lane(back).lock().latest.expect("a segment from where the RST goes");
        write(&self.lane(direction).to, &reset_for(&receiver, with_ack));
    }

    /// TCP segments that have arrived this way.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.lane(direction).lock().passed
    }

    /// TCP segments that were lost this way.
    pub fn lost(&self, direction: Direction) -> u64 {
        self.lane(direction).lock().lost
    }

    /// Waits until nothing is under way.
    #[track_caller]
    pub fn wait_empty(&self, direction: Direction) {
        wait_until("the link is empty", || self.lane(direction).lock().waiting.is_empty());
    }

    /// A connection over IPv4, with the client at `a` and the server at `b`.
    #[track_caller]
    pub fn connect(&self) -> Pair {
        self.connect_to(self.addr_b)
    }

    /// The same to one of the addresses of `b`.
    #[track_caller]
    pub fn connect_to(&self, server: IpAddr) -> Pair {
        let (client, server_actor) = (Actor::spawn_in(&self.a, "client"), Actor::spawn_in(&self.b, "server"));
        let mut pair = Pair::between(client, server_actor, &SocketAddr::new(server, 0).to_string());
        pair.client.netns = self.a.inode();
        pair.server.netns = self.b.inode();
        pair
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.change(|state| state.over = true));
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !thread::panicking() {
                panic!("a link's thread has panicked");
            }
        }
    }
}

/// Joins two namespaces by a veth pair, named `name` in both, with an address (and prefix length) each.
#[track_caller]
pub fn veth(name: &str, a: &NetNs, addresses_a: &[&str], b: &NetNs, addresses_b: &[&str]) {
    a.command("ip", &["link", "add", name, "type", "veth", "peer", "name", name, "netns", b.name()]);
    for (netns, addresses) in [(a, addresses_a), (b, addresses_b)] {
        for address in addresses {
            let mut words = vec!["address", "add", address, "dev", name];
            words.extend(address.contains(':').then_some("nodad"));
            netns.command("ip", &words);
        }
        netns.command("ip", &["link", "set", name, "up"]);
    }
}

/// A tun device in the calling thread's namespace.
fn open_tun() -> File {
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").expect("/dev/net/tun");
    // SAFETY: plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tun0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: a request of ours.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    tun
}

fn spawn_carrier(lane: Arc<Lane>) -> JoinHandle<()> {
    let life = move || {
        // A link is never late, however busy the machine is.
        let first = libc::sched_param { sched_priority: 1 };
        // SAFETY: parameters of ours, for this thread.
        let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &first) };
        assert_eq!(result, 0, "sched_setscheduler: {}", std::io::Error::last_os_error());
        lane.carry();
    };
    thread::Builder::new().name("link".into()).spawn(life).expect("a thread")
}

impl Lane {
    fn new(from: &Arc<File>, to: &Arc<File>, delay: Duration) -> Arc<Self> {
        // SAFETY: no memory involved; the result is a new descriptor.
        let bell = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            assert!(fd >= 0, "eventfd: {}", std::io::Error::last_os_error());
            File::from(OwnedFd::from_raw_fd(fd))
        };
        Arc::new(Self { from: Arc::clone(from), to: Arc::clone(to), bell, state: Mutex::new(State { delay, ..State::default() }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        (&self.bell).write_all(&1u64.to_ne_bytes()).expect("an eventfd takes numbers");
    }

    /// The life of a carrier.
    fn carry(&self) {
        let mut packet = vec![0; 1 << 16];
        loop {
            while let Ok(length @ 1..) = (&*self.from).read(&mut packet) {
                self.take(packet[..length].to_vec());
            }
            let due = {
                let mut state = self.lock();
                if state.over {
                    return;
                }
                self.deliver(&mut state)
            };
            self.sleep_until(due);
            let _ = (&self.bell).read(&mut [0; 8]);
        }
    }

    fn take(&self, mut packet: Vec<u8>) {
        let mut state = self.lock();
        let segment = segment_of(&packet);
        let mut fate = if state.losing { Fate::Lose } else { Fate::Pass };
        if let (Fate::Pass, Some(segment), Some(judge)) = (fate, &segment, &mut state.police) {
            fate = judge(segment);
        }
        if let (Fate::Reject, Some(segment)) = (fate, &segment) {
            write(&self.from, &reset_for(segment, segment.ack.is_none()));
        }
        if fate != Fate::Pass {
            state.lost += u64::from(segment.is_some());
            return;
        }
        state.latest = segment.or(state.latest);
        if segment.is_some() && state.shift != (0, 0) {
            renumber(&mut packet, state.shift);
        }
        let due = Instant::now() + state.delay;
        state.waiting.push_back((due, packet));
    }

    /// Hands over what is due; when more will be.
    fn deliver(&self, state: &mut State) -> Option<Instant> {
        if state.held {
            return None;
        }
        while let Some((due, packet)) = state.waiting.front() {
            if *due > Instant::now() {
                return Some(*due);
            }
            write(&self.to, packet);
            state.passed += u64::from(segment_of(packet).is_some());
            state.waiting.pop_front();
        }
        None
    }

    fn sleep_until(&self, due: Option<Instant>) {
        let mut polled = [&*self.from, &self.bell].map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 });
        let left = due
            .map(|due| due.saturating_duration_since(Instant::now()))
            .map(|left| libc::timespec { tv_sec: left.as_secs() as libc::time_t, tv_nsec: left.subsec_nanos().into() });
        let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: two pollfds, and a time or none.
        unsafe { libc::ppoll(polled.as_mut_ptr(), 2, timeout, std::ptr::null()) };
    }
}

/// A packet that the kernel does not take, because the device is down or its namespace is going, is lost.
fn write(mut tun: &File, packet: &[u8]) {
    let _ = tun.write(packet);
}

const SYN: u8 = 2;
const FIN: u8 = 1;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Where the TCP header begins; `None` for other packets.
fn tcp_at(packet: &[u8]) -> Option<usize> {
    let (at, protocol) = match packet.first()? >> 4 {
        4 => (usize::from(packet[0] & 15) * 4, packet[9]),
        6 => (40, packet[6]),
        _ => return None,
    };
    (i32::from(protocol) == libc::IPPROTO_TCP).then_some(at)
}

/// Both addresses, in network order.
fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn segment_of(packet: &[u8]) -> Option<Segment> {
    let tcp = &packet[tcp_at(packet)?..];
    let (from, to) = addresses(packet).split_at(addresses(packet).len() / 2);
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("an IPv6 address")),
    };
    let flags = tcp[13];
    Some(Segment {
        from: SocketAddr::new(address(from), u16_at(tcp, 0)),
        to: SocketAddr::new(address(to), u16_at(tcp, 2)),
        seq: u32_at(tcp, 4),
        ack: (flags & ACK != 0).then(|| u32_at(tcp, 8)),
        payload: tcp.len() - usize::from(tcp[12] >> 4) * 4,
        syn: flags & SYN != 0,
        fin: flags & FIN != 0,
        rst: flags & RST != 0,
    })
}

/// The RST that answers a segment, as RFC 9293 has it (3.10.7.1); `with_ack` makes it one that its
/// sender chose to send.
fn reset_for(segment: &Segment, with_ack: bool) -> Vec<u8> {
    let next = segment.seq.wrapping_add(segment.payload as u32 + u32::from(segment.syn) + u32::from(segment.fin));
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&segment.to.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.from.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.ack.unwrap_or(0).to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = RST;
    if with_ack {
        tcp[8..12].copy_from_slice(&next.to_be_bytes());
        tcp[13] |= ACK;
    }
    let mut packet = match (segment.to.ip(), segment.from.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, libc::IPPROTO_TCP as u8, 0, 0];
            header.extend(from.octets().into_iter().chain(to.octets()));
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 20, libc::IPPROTO_TCP as u8, 64];
            header.extend(from.octets().into_iter().chain(to.octets()));
            header
        }
        _ => unreachable!("both addresses of a packet are of one family"),
    };
    packet.extend(tcp);
    seal(&mut packet);
    packet
}

/// Shifts a segment's numbers: its own, and those of the other direction that it acknowledges.
fn renumber(packet: &mut [u8], (own, other): (u32, u32)) {
    let at = tcp_at(packet).expect("a TCP segment");
    let seq = u32_at(packet, at + 4).wrapping_add(own);
    packet[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
    if packet[at + 13] & ACK != 0 {
        let ack = u32_at(packet, at + 8).wrapping_sub(other);
        packet[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
    }
    seal(packet);
}

/// Sets the segment's checksum.
fn seal(packet: &mut [u8]) {
    let at = tcp_at(packet).expect("a TCP segment");
    packet[at + 16..at + 18].fill(0);
    let length = (packet.len() - at) as u16;
    let sum = checksum(&[addresses(packet), &[0, libc::IPPROTO_TCP as u8], &length.to_be_bytes(), &packet[at..]]);
    packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum of parts, of which all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words =
        parts.iter().flat_map(|part| part.chunks(2)).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
