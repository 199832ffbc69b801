//! Which records are shown. Pure: what /proc knows is asked through [`Lineage`].

mod place;
mod ports;
mod process;

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};

pub use self::{
    place::{ContainerId, UnitName},
    ports::PortSet,
    process::{Lineage, ProcessInfo, ProcessSelector, matches},
};
use crate::model::{Cause, EndKind, Endpoint, Errno, Harm, Judged, LateObservation, Party};

/// An address range, or everything but it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrMatch {
    net: IpNet,
    negated: bool,
}

impl FromStr for AddrMatch {
    type Err = String;

    /// `10.0.0.0/8`, `::1`, `!192.168.0.0/16`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (negated, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        let net =
            rest.parse::<IpNet>().map(canonical).or_else(|_| rest.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                format!("{rest:?} is not an address or CIDR range: expected something like 10.0.0.0/8, 2001:db8::/32 or ::1")
            })?;
        Ok(Self { net, negated })
    }
}

/// A range of v4-mapped addresses is the IPv4 range, as records have it.
fn canonical(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(addr), Some(prefix)) if net.addr().is_ipv6() => Ipv4Net::new(addr, prefix).map_or(net, Into::into),
        _ => net,
    }
}

impl fmt::Display for AddrMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.negated { "!" } else { "" }, self.net)
    }
}

impl AddrMatch {
    fn contains(&self, addr: IpAddr) -> bool {
        self.net.contains(&addr)
    }
}

/// Address conditions on one end or on either: any of the plain ones, and none of the negated.
#[derive(Clone, Debug, Default)]
pub struct AddrFilter(pub Vec<AddrMatch>);

impl AddrFilter {
    fn accepts(&self, ends: &[IpAddr]) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let hit = |m: &AddrMatch| ends.iter().any(|&addr| m.contains(addr));
        let (negated, plain): (Vec<_>, Vec<_>) = self.0.iter().partition(|m| m.negated);
        !negated.into_iter().any(hit) && (plain.is_empty() || plain.into_iter().any(hit))
    }
}

/// IP versions to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Everything that a record must satisfy; empty lists accept all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Owner, observer or closer is such a process or descends from one.
    pub processes: Vec<ProcessSelector>,
    /// Such a process is also in one of these,
    pub containers: Vec<ContainerId>,
    /// and in one of these.
    pub units: Vec<UnitName>,
    pub local_ports: PortSet,
    pub remote_ports: PortSet,
    pub either_port: PortSet,
    pub addr: AddrFilter,
    pub local_addr: AddrFilter,
    pub remote_addr: AddrFilter,
    pub family: Option<Family>,
    pub netns: Option<u32>,
    /// What records that were saved call their network namespace; those of a live run have no names yet when they are chosen.
    pub netns_name: Option<String>,
    pub errnos: Vec<Errno>,
    pub ends: Vec<EndKind>,
    pub harms: Vec<Harm>,
    pub causes: Vec<Cause>,
}

/// What `--fail-on` asks for: `harm=lost,possible` or `cause=keepalive-race`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Harm(Vec<Harm>),
    Cause(Vec<Cause>),
}

impl Condition {
    pub fn is_met(&self, judged: &Judged) -> bool {
        match self {
            Self::Harm(harms) => harms.contains(&judged.verdict.harm),
            Self::Cause(causes) => causes.contains(&judged.verdict.cause),
        }
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("harm", values)) => values.split(',').map(harm).collect::<Result<_, _>>().map(Self::Harm),
            Some(("cause", values)) => values.split(',').map(cause).collect::<Result<_, _>>().map(Self::Cause),
            _ => Err("expected harm=HARM[,HARM] or cause=CAUSE[,CAUSE], such as harm=lost".to_owned()),
        }
    }
}

/// A harm by its name, or by its word on screen, in whatever case.
///
/// # Errors
/// With all there are.
pub fn harm(word: &str) -> Result<Harm, String> {
    let is_meant = |harm: &Harm| [harm.name(), harm.on_screen()].iter().any(|name| name.eq_ignore_ascii_case(word));
    Harm::ALL.iter().copied().find(is_meant).ok_or_else(|| {
        let all: Vec<_> = Harm::ALL.iter().map(|harm| format!("{harm} ({})", harm.on_screen())).collect();
        format!("{word:?} is none of {}", all.join(", "))
    })
}

/// A cause by its name.
///
/// # Errors
/// With the one that may have been meant, and where all are.
pub fn cause(word: &str) -> Result<Cause, String> {
    word.parse().map_err(|_: String| {
        let hint = nearest(word, Cause::ALL.iter().map(|cause| cause.name())).map(|name| format!("did you mean {name}? "));
        format!("no cause is called {word:?}; {}`rsttrace explain` lists them", hint.unwrap_or_default())
    })
}

/// What a word with a slip in it may have been meant to be.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.map(|candidate| (strsim::jaro_winkler(word, candidate), candidate)).filter(|(score, _)| *score > 0.75);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

impl Filter {
    /// Whether a record is shown.
    pub fn accepts(&self, judged: &Judged, lineage: &mut dyn Lineage) -> bool {
        let Judged { teardown: t, verdict, names, .. } = judged;
        let errno = t.observer.map(|observer| observer.errno);
        (self.harms.is_empty() || self.harms.contains(&verdict.harm))
            && (self.causes.is_empty() || self.causes.contains(&verdict.cause))
            && self.accepts_connection(t.local, t.remote, t.netns, t.end, errno)
            && self.accepts_netns_name(|| names.netns.clone())
            && self.accepts_parties(t.parties(), t.held_ns(), lineage)
    }

    /// What an end is chosen by is not in all that is told of it.
    pub fn asks_for_verdicts(&self) -> bool {
        !(self.harms.is_empty() && self.causes.is_empty())
    }

    /// Whether an observation that came after its record is shown, as far as it tells itself.
    pub fn accepts_late(&self, late: &LateObservation, lineage: &mut dyn Lineage) -> bool {
        self.accepts_connection(late.local, late.remote, late.netns, late.end, Some(late.observer.errno))
            && self.accepts_netns_name(|| lineage.netns_name(late.netns?))
            && self.accepts_parties(late.parties(), late.at_ns, lineage)
    }

    fn accepts_connection(&self, local: Endpoint, remote: Endpoint, netns: Option<u32>, end: EndKind, errno: Option<Errno>) -> bool {
        self.local_ports.accepts(local.port)
            && self.remote_ports.accepts(remote.port)
            && (self.either_port.accepts(local.port) || self.either_port.accepts(remote.port))
            && self.local_addr.accepts(&[local.addr])
            && self.remote_addr.accepts(&[remote.addr])
            && self.addr.accepts(&[local.addr, remote.addr])
            && self.family.is_none_or(|family| local.addr.is_ipv4() == (family == Family::V4))
            && (self.netns.is_none() || self.netns == netns)
            && (self.ends.is_empty() || self.ends.contains(&end))
            && (self.errnos.is_empty() || errno.is_some_and(|errno| self.errnos.contains(&errno)))
    }

    fn accepts_netns_name(&self, name: impl FnOnce() -> Option<Arc<str>>) -> bool {
        self.netns_name.as_ref().is_none_or(|wanted| name().is_some_and(|name| *name == **wanted))
    }

    /// One of them satisfies all conditions on processes.
    fn accepts_parties(&self, mut parties: impl Iterator<Item = Party>, at_ns: u64, lineage: &mut dyn Lineage) -> bool {
        !self.chooses_processes() || parties.any(|party| self.is_of_processes(party, lineage) && self.is_in_places(party, at_ns, lineage))
    }

    fn is_of_processes(&self, party: Party, lineage: &mut dyn Lineage) -> bool {
        self.processes.is_empty() || process::matches(&self.processes, party.tgid, party.parent_tgid, &party.comm.text(), lineage)
    }

    fn is_in_places(&self, party: Party, at_ns: u64, lineage: &mut dyn Lineage) -> bool {
        !self.asks_for_places() || lineage.at(party, at_ns).is_some_and(|info| self.contains(&info))
    }

    /// Whether not every process is meant.
    pub fn chooses_processes(&self) -> bool {
        !self.processes.is_empty() || self.asks_for_places()
    }

    /// Whether a process is meant that is there now.
    pub fn means(&self, tgid: u32, lineage: &mut dyn Lineage) -> bool {
        let info = lineage.process(tgid).unwrap_or_default();
        (self.processes.is_empty() || matches(&self.processes, tgid, info.parent, &info.comm, lineage))
            && (!self.asks_for_places() || self.contains(&info))
    }

    /// Whether a process is in one of the containers and in one of the units that are asked for.
    pub fn contains(&self, info: &ProcessInfo) -> bool {
        let place = &info.identity.place;
        let contained = || place.container.as_ref().is_some_and(|container| self.containers.iter().any(|id| id.matches(container)));
        let of_unit = || place.unit.as_ref().is_some_and(|unit| self.units.iter().any(|name| name.matches(unit)));
        (self.containers.is_empty() || contained()) && (self.units.is_empty() || of_unit())
    }

    /// Whether it matters where a process is kept.
    pub fn asks_for_places(&self) -> bool {
        !self.containers.is_empty() || !self.units.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Container, Identity, Place};

    /// One process, in a container.
    struct One(ProcessInfo);

    impl Lineage for One {
        fn process(&mut self, tgid: u32) -> Option<Arc<ProcessInfo>> {
            (tgid == 7).then(|| Arc::new(self.0.clone()))
        }

        fn at(&mut self, party: Party, _: u64) -> Option<Arc<ProcessInfo>> {
            self.process(party.tgid)
        }
    }

    #[test]
    fn a_process_is_meant_by_all_that_is_said_of_it() {
        let place = Place { container: Some(Container { id: "0123abcd".repeat(8), runtime: None }), ..Place::default() };
        let identity = Arc::new(Identity { place, ..Identity::default() });
        let mut one = One(ProcessInfo { comm: "nginx".to_owned(), identity, ..ProcessInfo::default() });
        let mut means = |name: Option<&str>, id: Option<&str>, tgid| {
            let processes = name.map(|name| ProcessSelector::Name(name.to_owned())).into_iter().collect();
            let containers = id.map(|id| id.parse().unwrap()).into_iter().collect();
            Filter { processes, containers, ..Filter::default() }.means(tgid, &mut one)
        };
        assert!(means(Some("nginx"), None, 7) && means(None, Some("0123"), 7) && means(Some("nginx"), Some("0123"), 7));
        assert!(!means(Some("curl"), Some("0123"), 7) && !means(Some("nginx"), Some("4567"), 7));
        assert!(!means(Some("nginx"), None, 8) && !means(None, Some("0123"), 8), "it is not there");
    }

    #[test]
    fn a_slip_of_the_keyboard_finds_its_cause() {
        for (slip, meant) in [("keepalive-rase", "keepalive-race"), ("linger0", "linger-zero"), ("server-abort", "server-abort-")] {
            let why = cause(slip).unwrap_err();
            assert!(why.contains(&format!("; did you mean {meant}")) && why.contains("`rsttrace explain`") && why.len() < 120, "{why}");
        }
        assert_eq!(cause("xyzzy").unwrap_err(), "no cause is called \"xyzzy\"; `rsttrace explain` lists them");
        assert!("cause=linger0".parse::<Condition>().unwrap_err().contains("linger-zero"));
    }

    #[test]
    fn harms_have_two_words() {
        for (words, meant) in [
            (["lost", "LOST", "Lost"], Harm::Lost),
            (["possible", "maybe", "MAYBE"], Harm::Possible),
            (["none", "ok", "OK"], Harm::None),
            (["unknown", "?", "Unknown"], Harm::Unknown),
        ] {
            assert!(words.iter().all(|word| harm(word) == Ok(meant)));
        }
        assert_eq!("harm=maybe,LOST".parse(), Ok(Condition::Harm(vec![Harm::Possible, Harm::Lost])));
        let why = harm("bad").unwrap_err();
        assert!(why.contains("lost (LOST), possible (maybe)"), "{why}");
    }

    fn addrs(list: &[&str]) -> AddrFilter {
        AddrFilter(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn addresses_match_any_plain_and_no_negated() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(addrs(&[]).accepts(&[ip("1.2.3.4")]));
        assert!(addrs(&["10.0.0.0/8", "::1"]).accepts(&[ip("1.2.3.4"), ip("10.9.9.9")]));
        assert!(!addrs(&["10.0.0.0/8"]).accepts(&[ip("1.2.3.4")]));
        assert!(!addrs(&["!10.0.0.0/8"]).accepts(&[ip("1.2.3.4"), ip("10.9.9.9")]));
        assert!(addrs(&["!10.0.0.0/8"]).accepts(&[ip("1.2.3.4")]));
        assert!(!addrs(&["10.0.0.0/8", "!10.1.0.0/16"]).accepts(&[ip("10.1.2.3")]));
        assert!(addrs(&["::ffff:10.0.0.0/104"]).accepts(&[ip("10.1.2.3")]));
        assert!(!addrs(&["::ffff:10.0.0.0/104"]).accepts(&[ip("11.1.2.3")]));
        assert!(addrs(&["::/0"]).accepts(&[ip("::1")]) && !addrs(&["::/0"]).accepts(&[ip("10.1.2.3")]));
    }

    #[test]
    fn a_malformed_range_is_named() {
        let error = "10.0.0.0/33".parse::<AddrMatch>().unwrap_err();
        assert!(error.contains("10.0.0.0/33"), "{error}");
    }
}
