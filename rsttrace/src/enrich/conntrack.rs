//! `/proc/PID/net/nf_conntrack`: translated connections, and nothing else of it. Pure but for the
//! reading; the file may be of any length.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{self, BufRead, Read as _},
};

use crate::model::{Endpoint, Nat};

/// A line of the kernel's has about 200 bytes.
const MAX_LINE: u64 = 1_024;

/// A connection as one of its sockets names it: local, remote.
pub type View = (Endpoint, Endpoint);

/// Translated connections by what their sockets call them, with when they were seen (`CLOCK_MONOTONIC`).
#[derive(Debug, Default)]
pub struct Table(HashMap<View, (Nat, u64)>);

impl Table {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `since_ns`: what was seen before was another connection between the same addresses.
    pub fn get(&self, view: &View, since_ns: u64) -> Option<Nat> {
        self.0.get(view).filter(|(_, seen_ns)| *seen_ns >= since_ns).map(|(nat, _)| *nat)
    }

    /// One translated connection, for both of its ends.
    fn insert(&mut self, entry: &Translated, now_ns: u64) {
        let Translated { original, reply } = entry;
        self.tell((original.source, original.destination), Nat { original: None, translated: Some(reply.source) }, now_ns);
        self.tell((reply.source, reply.destination), Nat { original: Some(original.destination), translated: None }, now_ns);
    }

    fn tell(&mut self, view: View, nat: Nat, now_ns: u64) {
        match self.0.entry(view) {
            Entry::Vacant(vacant) => {
                vacant.insert((nat, now_ns));
            }
            Entry::Occupied(mut occupied) => {
                let (known, seen_ns) = occupied.get_mut();
                *known = Nat { original: one(known.original, nat.original), translated: one(known.translated, nat.translated) };
                *seen_ns = now_ns;
            }
        }
    }
}

/// The same addresses in two zones may be translated to different ones: then it is not for us to guess.
fn one(known: Option<Endpoint>, new: Option<Endpoint>) -> Option<Endpoint> {
    match (known, new) {
        (Some(known), Some(new)) => (known == new).then_some(known),
        (known, new) => known.or(new),
    }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: Endpoint,
    destination: Endpoint,
}

/// A connection whose answers come from elsewhere than it was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Translated {
    original: Tuple,
    reply: Tuple,
}

/// Reads on until `enough` says so, after each line. Whether the end was reached.
///
/// # Errors
/// What reading returns.
pub fn read(file: &mut impl BufRead, table: &mut Table, now_ns: u64, mut enough: impl FnMut(&Table) -> bool) -> io::Result<bool> {
    let mut line = Vec::with_capacity(256);
    loop {
        line.clear();
        // What is longer is no line of the kernel's, and falls into parts that say nothing.
        if file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(true);
        }
        if let Some(entry) = std::str::from_utf8(&line).ok().and_then(translated) {
            table.insert(&entry, now_ns);
        }
        if enough(table) {
            return Ok(false);
        }
    }
}

/// `ipv4 2 tcp 6 431999 ESTABLISHED src=A dst=B sport=1 dport=2 ... src=C dst=A sport=3 dport=1 ...`; `None`
/// where it is not TCP, or not translated.
fn translated(line: &str) -> Option<Translated> {
    let mut words = line.split_ascii_whitespace();
    if words.nth(2)? != "tcp" {
        return None;
    }
    let original = tuple(&mut words)?;
    let reply = tuple(&mut words)?;
    (reply.source != original.destination).then_some(Translated { original, reply })
}

/// The next four words that name addresses and ports, in the kernel's order.
fn tuple<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Tuple> {
    let source = words.find_map(|word| word.strip_prefix("src="))?;
    let destination = words.next()?.strip_prefix("dst=")?;
    let source_port = words.next()?.strip_prefix("sport=")?;
    let destination_port = words.next()?.strip_prefix("dport=")?;
    Some(Tuple { source: endpoint(source, source_port)?, destination: endpoint(destination, destination_port)? })
}

fn endpoint(addr: &str, port: &str) -> Option<Endpoint> {
    Some(Endpoint { addr: addr.parse::<std::net::IpAddr>().ok()?.to_canonical(), port: port.parse().ok()? })
}

/// How many connections a namespace follows, from `/proc/PID/net/stat/nf_conntrack`: a line of names, and one of
/// hexadecimal numbers for each CPU. The first is the same in all of them.
pub fn count(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    if lines.next()?.split_ascii_whitespace().next()? != "entries" {
        return None;
    }
    u64::from_str_radix(lines.next()?.split_ascii_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=443 src=10.0.0.2 dst=10.0.0.1 sport=443 dport=40000 [ASSURED] mark=0 zone=0 use=2\n";
    const DNAT: &str = "ipv4     2 tcp      6 9 CLOSE src=10.1.1.5 dst=10.96.0.1 sport=40000 dport=443 packets=3 bytes=180 src=10.1.2.3 dst=10.1.1.5 sport=8443 dport=40000 packets=3 bytes=180 [ASSURED] mark=0 zone=0 use=1\n";
    const BOTH: &str = "ipv4     2 tcp      6 9 CLOSE src=10.1.1.5 dst=10.99.0.1 sport=40000 dport=80 [UNREPLIED] src=10.77.0.2 dst=10.77.0.1 sport=8080 dport=20123 mark=0 use=1\n";
    const MASQUERADE: &str = "ipv4     2 tcp      6 9 TIME_WAIT src=10.1.1.5 dst=1.1.1.1 sport=40001 dport=443 src=1.1.1.1 dst=192.0.2.1 sport=443 dport=61000 [ASSURED] use=1\n";
    const SIX: &str = "ipv6     10 tcp      6 117 TIME_WAIT src=fd78:0000:0000:0000:0000:0000:0000:0001 dst=fd99:0000:0000:0000:0000:0000:0000:0001 sport=40002 dport=80 src=fd77:0000:0000:0000:0000:0000:0000:0002 dst=fd78:0000:0000:0000:0000:0000:0000:0001 sport=8080 dport=40002 [ASSURED] mark=0 zone=0 use=1\n";
    const UDP: &str = "ipv4     2 udp      17 29 src=10.1.1.5 dst=10.96.0.10 sport=5353 dport=53 src=10.1.2.9 dst=10.1.1.5 sport=53 dport=5353 mark=0 use=1\n";

    fn at(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().unwrap();
        Endpoint { addr: address.ip(), port: address.port() }
    }

    fn table(text: &str) -> Table {
        let mut table = Table::default();
        assert!(read(&mut text.as_bytes(), &mut table, 7, |_| false).unwrap());
        table
    }

    fn told(table: &Table, local: &str, remote: &str) -> Option<Nat> {
        table.get(&(at(local), at(remote)), 0)
    }

    #[test]
    fn both_ends_of_a_translated_connection_learn_what_they_cannot_see() {
        let table = table(&[PLAIN, DNAT, UDP, MASQUERADE, BOTH, SIX].concat());
        let original = |text| Some(Nat { original: Some(at(text)), translated: None });
        let translated = |text| Some(Nat { original: None, translated: Some(at(text)) });
        assert_eq!(told(&table, "10.1.1.5:40000", "10.96.0.1:443"), translated("10.1.2.3:8443"));
        assert_eq!(told(&table, "10.1.2.3:8443", "10.1.1.5:40000"), original("10.96.0.1:443"));
        assert_eq!(told(&table, "10.1.1.5:40000", "10.99.0.1:80"), translated("10.77.0.2:8080"));
        assert_eq!(told(&table, "10.77.0.2:8080", "10.77.0.1:20123"), original("10.99.0.1:80"));
        assert_eq!(told(&table, "[fd78::1]:40002", "[fd99::1]:80"), translated("[fd77::2]:8080"));
        assert_eq!(told(&table, "[fd77::2]:8080", "[fd78::1]:40002"), original("[fd99::1]:80"));
        assert_eq!(table.len(), 6, "neither what is not translated, nor UDP, nor what only has another source");
    }

    #[test]
    fn what_was_seen_before_a_connection_began_is_not_of_it() {
        let table = table(DNAT);
        let view = (at("10.1.1.5:40000"), at("10.96.0.1:443"));
        assert!(table.get(&view, 7).is_some() && table.get(&view, 8).is_none());
    }

    #[test]
    fn two_zones_that_disagree_tell_nothing() {
        let table = table(&[DNAT, &DNAT.replace("10.1.2.3", "10.1.2.4")].concat());
        assert_eq!(told(&table, "10.1.1.5:40000", "10.96.0.1:443"), Some(Nat::default()));
        assert!(told(&table, "10.1.2.4:8443", "10.1.1.5:40000").is_some());
    }

    #[test]
    fn reading_stops_when_it_is_enough_and_goes_on_from_there() {
        let text = [DNAT, PLAIN, BOTH].concat();
        let (mut file, mut table) = (text.as_bytes(), Table::default());
        assert!(!read(&mut file, &mut table, 0, |table| !table.is_empty()).unwrap());
        assert_eq!(table.len(), 2);
        assert!(read(&mut file, &mut table, 0, |_| false).unwrap());
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn the_number_of_connections_is_read_as_the_kernel_writes_it() {
        let text = "entries  clashres found new invalid\n0000001f  00000000 00000000 00000000 00000000\n0000001f  00000000 00000000 00000000 00000000\n";
        assert_eq!(count(text), Some(31));
        assert_eq!(count("nonsense"), None);
        assert_eq!(count(""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let mut table = Table::default();
            prop_assert!(read(&mut &bytes[..], &mut table, 0, |_| false).unwrap());
            let _ = count(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_words_of_the_kernels_are_read(words in prop::collection::vec("(tcp|src=[0-9.:a-f]{0,9}|dst=1\\.1\\.1\\.[0-9]|sport=[0-9]{1,6}|dport=[0-9]{1,6}| ){1,3}", 0..20)) {
            let _ = translated(&words.join(" "));
        }
    }
}
