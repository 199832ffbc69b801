//! The evidence of one record, in the order of time.

use super::text::{named, saw, what};
use crate::{
    model::{Answer, Evidence, FirstFin, Http, Identity, Judged, Teardown},
    units::{bytes, duration, grouped},
};

/// One line per event, with its distance from the record's own time, then what has no time. The
/// parts of a line are to be joined by "; ".
pub fn of(judged: &Judged) -> Vec<(String, Vec<String>)> {
    let t = &judged.teardown;
    let mut events = events(t);
    events.sort_by_key(|(at, _)| *at);
    let mut lines: Vec<_> = events.into_iter().map(|(at, words)| (delta(at), vec![words])).collect();
    lines.extend(t.bytes.map(|b| {
        let sent =
            format!("sent {} ({} acked, {} unacked, {} unsent)", bytes(b.sent), grouped(b.acked), grouped(b.unacked), grouped(b.unsent));
        (String::new(), vec![sent, format!("received {} ({} unread)", bytes(b.received), grouped(b.unread))])
    }));
    lines.extend(t.evidence.as_ref().map(|e| (String::new(), timeless(judged, e))));
    let who = judged.names.owner.as_deref().map(who).filter(|parts| !parts.is_empty());
    lines.extend(who.map(|parts| ("who".to_owned(), parts)));
    lines
}

/// The process that holds the socket, beyond its name and number.
fn who(identity: &Identity) -> Vec<String> {
    let Identity { exe, uid, user, ns_tgid: _, place } = identity;
    let user = user.as_ref().map(|user| format!("user {user}")).or_else(|| uid.map(|uid| format!("uid {uid}")));
    let mut parts: Vec<_> = exe.clone().into_iter().chain(user).collect();
    // A container's scope is named after it.
    let container = place.container.as_ref();
    let unit = place.unit.as_ref().filter(|unit| container.is_none_or(|container| !unit.contains(&container.id)));
    parts.extend(unit.map(|unit| format!("unit {unit}")));
    parts.extend(container.map(|container| {
        let runtime = container.runtime.map(|runtime| format!(" ({runtime})")).unwrap_or_default();
        format!("container {}{runtime}", container.short())
    }));
    parts.extend(place.pod.as_ref().map(|pod| format!("pod {pod}")));
    parts
}

fn events(t: &Teardown) -> Vec<(i64, String)> {
    let ago = |ns: u64| -signed(ns);
    let after = |ns: u64| signed(ns.saturating_sub(t.at_ns)) - signed(t.at_ns.saturating_sub(ns));
    let mut events = Vec::new();
    if let Some(age) = t.age_ns {
        events.push((ago(age), format!("opened{}", t.role.map(|role| format!(", we are the {}", role.name())).unwrap_or_default())));
    }
    if let Some(idle) = t.idle {
        // In ticks of the kernel's clock: nothing came before the connection, nor left after our FIN.
        let opened = t.age_ns.map_or(i64::MIN, ago);
        let closed = t.fin.local_ns().map_or(i64::MAX, after);
        events.extend(idle.received_ms.map(|ms| (ago(ms * 1_000_000).max(opened), "received the last data".to_owned())));
        // The microseconds are those of the latest only where nothing is outstanding.
        let exact = t.evidence.and_then(|e| e.since_last_tx_us).filter(|_| t.bytes.is_some_and(|b| b.unacked == 0)).map(|us| us * 1_000);
        events
            .extend(idle.sent_ms.map(|ms| (ago(exact.unwrap_or(ms * 1_000_000)).max(opened).min(closed), "sent the last data".to_owned())));
    }
    // Within one tick of the kernel's clock what came before stays before.
    events.push((0, wire(t)));
    if let Some(first) = t.fin.first_ns {
        let (one, two) = match t.fin.first {
            Some(FirstFin::Remote) => ("FIN received", "FIN sent"),
            _ => ("FIN sent", "FIN received"),
        };
        events.push((after(first), one.to_owned()));
        events.extend(t.fin.half_closed_ns.map(|apart| (after(first + apart), two.to_owned())));
    }
    if let Some(observer) = &t.observer {
        let at = observer.delay_ns.map_or(0, signed);
        events.push((at, format!("{} saw {}", named(&observer.task), saw(observer))));
    }
    if let (Some(at), Some(task)) = (t.released_ns, &t.released) {
        let how = match (task.exiting, task.syscall) {
            (true, _) => "exited".to_owned(),
            (false, Some(call)) => format!("{call}()"),
            (false, None) => "let go".to_owned(),
        };
        events.push((after(at), format!("released by {} {how}", named(task))));
    }
    events
}

/// The end itself, with the header of the RST where it was seen.
fn wire(t: &Teardown) -> String {
    let header = t.evidence.and_then(|e| e.reset).map(|header| {
        let acked = header.acked.map_or("no ACK".to_owned(), |n| format!("ACK of {}", bytes(n)));
        format!(" ({acked}, TTL {}, window {})", header.ttl, header.window)
    });
    format!("{}{}", what(t), header.unwrap_or_default())
}

fn timeless(judged: &Judged, e: &Evidence) -> Vec<String> {
    let Judged { teardown: t, verdict, names, .. } = judged;
    let mut parts = vec![format!("{}, {}, by {}", verdict.cause, verdict.phase, verdict.initiator)];
    if t.age_ns.is_none() {
        parts.push("older than the tracer".to_owned());
    }
    parts.push(format!("last speaker {}", e.last_speaker.map_or("unknown", |speaker| speaker.name())));
    parts.extend(t.rtt_us.map(|us| format!("rtt {}", duration(u64::from(us) * 1_000))));
    parts.extend(e.min_rtt_us.map(|us| format!("min {}", duration(u64::from(us) * 1_000))));
    parts.extend(t.retransmits.filter(|&n| n > 0).map(|n| format!("{n} retransmits")));
    parts.extend(Some(e.probes_out).filter(|&n| n > 0).map(|n| format!("{n} probes unanswered")));
    parts.extend(e.soft_errno.map(|errno| format!("ICMP {errno}")));
    parts.extend(e.user_timeout_ms.map(|ms| format!("TCP_USER_TIMEOUT {}", duration(u64::from(ms) * 1_000_000))));
    parts.extend(e.linger_s.map(|s| format!("SO_LINGER {s} s")));
    parts.extend(t.closer.and_then(|closer| closer.signal).map(|signal| super::Signal(signal).to_string()));
    parts.extend(t.http.as_ref().map(http));
    parts.extend(verdict.timer.as_ref().map(|timer| format!("idle as {} s: {}", timer.seconds, timer.name)));
    let named = names.netns.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    parts.extend(t.netns.map(|netns| format!("netns {netns}{named}")));
    parts
}

fn http(http: &Http) -> String {
    let status = http.status.map(|status| format!("status {status}, ")).unwrap_or_default();
    let of = http.expected.map(|n| format!(" of {}", bytes(n))).unwrap_or_default();
    let moved = http.moved.filter(|_| http.answer != Answer::None).map(|n| format!(" ({}{of})", grouped(n))).unwrap_or_default();
    match &http.request {
        Some(_) => format!("HTTP: {status}answer {}{moved}", http.answer.name()),
        None => "HTTP: which request was the last is not certain".to_owned(),
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn delta(at: i64) -> String {
    match at {
        0 => "0".to_owned(),
        ..0 => format!("-{}", duration(at.unsigned_abs())),
        _ => format!("+{}", duration(at.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Container, Place, Runtime};

    #[test]
    fn who_says_what_is_known_and_nothing_twice() {
        assert!(who(&Identity::default()).is_empty());
        let id = "0123456789abcdef".repeat(4);
        let container = |runtime| Some(Container { id: id.clone(), runtime });
        let mut identity = Identity { exe: Some("/usr/sbin/nginx".to_owned()), uid: Some(33), ..Identity::default() };
        identity.place.unit = Some("nginx.service".to_owned());
        assert_eq!(who(&identity), ["/usr/sbin/nginx", "uid 33", "unit nginx.service"]);
        identity.user = Some("www-data".into());
        identity.place = Place { unit: Some(format!("docker-{id}.scope")), container: container(Some(Runtime::Docker)), pod: None };
        assert_eq!(who(&identity), ["/usr/sbin/nginx", "user www-data", "container 0123456789ab (docker)"]);
        identity.place = Place { unit: Some("cron.service".to_owned()), container: container(None), pod: Some("2c48".to_owned()) };
        assert_eq!(who(&identity)[2..], ["unit cron.service", "container 0123456789ab", "pod 2c48"]);
    }
}
