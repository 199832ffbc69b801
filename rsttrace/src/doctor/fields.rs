//! Which source feeds which field of a teardown record: the one table of it. The doctor reads it,
//! and so may whatever documents kernel support.

use crate::probe::preflight;

/// Where one field comes from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Dotted name, as in `observer.fd`.
    pub field: &'static str,
    /// Hooks that feed it, any of them; none for what this program knows by itself.
    pub hooks: &'static [&'static str],
    /// Members of the kernel's structs, by their names in `rsttrace_common::Offsets`, and what else
    /// [`preflight::missing`] may miss.
    pub members: &'static [&'static str],
    /// Why the doctor makes no end that shows it.
    pub untried: Option<&'static str>,
}

/// Whichever of them sees the end first takes the snapshot.
const END: &[&str] = &["tcp_receive_reset", "tcp_send_reset", "inet_sock_set_state"];
const STATES: &[&str] = &["inet_sock_set_state"];
const OWNERS: &[&str] = &["inet_sock_set_state", "sock_recv_length", "sock_send_length", "tcp_destroy_sock", "iter/task_file"];
/// The last knows who called connect().
const OBSERVERS: &[&str] = &["sock_recv_length", "sock_send_length", "cgroup/getsockopt", "sys_exit", "inet_sock_set_state"];
const RETURNS: &[&str] = &["sock_recv_length", "sock_send_length", "cgroup/getsockopt", "sys_exit"];
/// What was not caught is concluded from the release.
const CONCLUDED: &[&str] =
    &["sock_recv_length", "sock_send_length", "cgroup/getsockopt", "sys_exit", "inet_sock_set_state", "tcp_destroy_sock"];
const CLOSERS: &[&str] = &["inet_sock_set_state", "tcp_send_reset"];
/// The other end's closer, or who saw its error.
const ACTORS: &[&str] = &["inet_sock_set_state", "tcp_send_reset", "sock_recv_length", "sock_send_length", "cgroup/getsockopt"];
const RELEASERS: &[&str] = &["tcp_destroy_sock"];
/// The verdict weighs all that there is.
const EVERYTHING: &[&str] = &["tcp_receive_reset", "tcp_send_reset", "inet_sock_set_state", "tcp_probe", "tcp_reset", "tcp_destroy_sock"];
/// Before 6.10 the last two show what the first does not.
const SENT: &[&str] = &["tcp_send_reset", "tcp_v4_send_reset", "tcp_v6_send_reset"];
const ARRIVED: &[&str] = &["tcp_probe", "tcp_reset"];

/// The last two find the processes that are looked at.
const HTTP: &[&str] = &["sock_recv_length", "sock_send_length", "sched_process_fork", "sched_process_exec"];

const TASK: &[&str] = &["task_struct__tgid"];
const THREAD: &[&str] = &["task_struct__pid"];
const COMM: &[&str] = &["task_struct__comm"];
const SYSCALL: &[&str] = &["pt_regs__orig_ax", "task_struct__stack"];
const EXITING: &[&str] = &["task_struct__flags"];
const DESCRIPTOR: &[&str] =
    &["pt_regs__di", "task_struct__stack", "task_struct__files", "files_struct__fdt", "fdtable__fd", "file__private_data"];
const PAYLOAD: &[&str] = &["tcp_sock__snd_una", "tcp_sock__snd_nxt", "tcp_sock__write_seq"];
const RESET: &[&str] = &["sk_buff__head", "sk_buff__transport_header", "sk_buff__network_header", "tcp_skb_cb__tcp_flags"];
const CONTAINER: &str = "the doctor runs in no container";
const NAT: &str = "it takes a connection whose addresses are translated";
const LOG: &str = "it takes the log of an application (--error-log)";
const MOVED: &[&str] = &["pt_regs__si", "pt_regs__dx", "pt_regs__di", "inet_connection_sock__icsk_ulp_ops"];
const OPT_IN: &str = "it takes --http";
const SLOW: &str = "it takes a connection that idles for as long as a well-known timer";

const fn source(field: &'static str, hooks: &'static [&'static str], members: &'static [&'static str]) -> Source {
    Source { field, hooks, members, untried: None }
}

impl Source {
    const fn untried(self, why: &'static str) -> Self {
        Self { untried: Some(why), ..self }
    }
}

/// Every field of a teardown record, in the record's order.
pub fn sources() -> &'static [Source] {
    SOURCES
}

static SOURCES: &[Source] = &[
    source("schema", &[], &[]),
    source("record", &[], &[]),
    source("time", END, &[]),
    source("end", END, &["sock__sk_err", "sock__skc_state"]),
    source("family", END, &["sock__skc_family"]),
    source("local.addr", END, &["sock__skc_rcv_saddr", "sock__skc_v6_rcv_saddr"]),
    source("local.port", END, &["inet_sock__inet_sport"]),
    source("remote.addr", END, &["sock__skc_daddr", "sock__skc_v6_daddr"]),
    source("remote.port", END, &["sock__skc_dport"]),
    source("nat.original.addr", END, &["sock__skc_net"]).untried(NAT),
    source("nat.original.port", END, &["sock__skc_net"]).untried(NAT),
    source("nat.translated.addr", END, &["sock__skc_net"]).untried(NAT),
    source("nat.translated.port", END, &["sock__skc_net"]).untried(NAT),
    source("netns", END, &["sock__skc_net", "net__inum"]),
    source("netns_name", END, &["sock__skc_net", "net__inum"]).untried("the network namespace that it takes has no name"),
    source("cookie", END, &["sock__skc_cookie"]),
    source("inode", OWNERS, &["sock__sk_socket", "socket__file", "file__f_inode", "inode__i_ino"]),
    source("role", STATES, &[]),
    source("state", END, &["sock__skc_state"]),
    source("age_us", STATES, &[]),
    source("idle_ms.sent", END, &["tcp_sock__lsndtime"]),
    source("idle_ms.received", END, &["inet_connection_sock__lrcvtime"]),
    source("bytes.sent", END, PAYLOAD),
    source("bytes.acked", END, &["tcp_sock__snd_una", "tcp_sock__bytes_acked"]),
    source("bytes.unacked", END, PAYLOAD),
    source("bytes.unsent", END, PAYLOAD),
    source("bytes.received", END, &["tcp_sock__bytes_received", "tcp_sock__rcv_nxt"]),
    source("bytes.unread", END, &["tcp_sock__rcv_nxt", "tcp_sock__copied_seq"]),
    source("rtt_us", END, &["tcp_sock__srtt_us"]),
    source("retransmits", END, &["tcp_sock__total_retrans"]),
    source("reason", SENT, &[preflight::RESET_REASON]),
    source("owner.tgid", OWNERS, TASK),
    source("owner.comm", OWNERS, &["task_struct__comm", "task_struct__group_leader"]),
    source("owner.exe", OWNERS, TASK),
    source("owner.user", OWNERS, TASK).untried("/etc/passwd has no name for the user of the doctor"),
    source("owner.uid", OWNERS, TASK),
    source("owner.ns_tgid", OWNERS, TASK),
    source("owner.unit", OWNERS, TASK).untried("the doctor runs in no unit of systemd"),
    source("owner.container.id", OWNERS, TASK).untried(CONTAINER),
    source("owner.container.runtime", OWNERS, TASK).untried(CONTAINER),
    source("owner.pod", OWNERS, TASK).untried("the doctor runs in no pod"),
    source("observer.tgid", CONCLUDED, TASK),
    source("observer.tid", CONCLUDED, THREAD),
    source("observer.comm", CONCLUDED, COMM),
    source("observer.syscall", OBSERVERS, SYSCALL),
    source("observer.fd", OBSERVERS, DESCRIPTOR),
    source("observer.errno", CONCLUDED, &["sock__sk_err"]),
    source("observer.delay_us", RETURNS, &[]),
    source("observer.inferred", CONCLUDED, &[]),
    source("seen", CONCLUDED, &["sock__sk_err"]),
    source("closer.tgid", CLOSERS, TASK),
    source("closer.tid", CLOSERS, THREAD),
    source("closer.comm", CLOSERS, COMM),
    source("closer.syscall", CLOSERS, SYSCALL),
    source("closer.exiting", CLOSERS, EXITING),
    source("released.tgid", RELEASERS, TASK),
    source("released.tid", RELEASERS, THREAD),
    source("released.comm", RELEASERS, COMM),
    source("released.syscall", RELEASERS, SYSCALL),
    source("released.exiting", RELEASERS, EXITING),
    source("released.after_us", RELEASERS, &[]),
    source("peer.cookie", END, &["sock__skc_cookie", "tcp_sock__rcv_nxt", "tcp_sock__snd_una"]),
    source("peer.tgid", OWNERS, TASK),
    source("peer.comm", OWNERS, COMM),
    source("peer.syscall", ACTORS, SYSCALL),
    source("peer.unread", END, &["tcp_sock__rcv_nxt", "tcp_sock__copied_seq"]),
    source("fin.first", STATES, &[]),
    source("fin.local", STATES, &[]),
    source("fin.remote", STATES, &["sock__skc_flags", "SOCK_DONE"]),
    source("fin.remote_data_bytes", STATES, &["sock__sk_receive_queue", "sk_buff__cb", "tcp_skb_cb__seq", "tcp_skb_cb__end_seq"]),
    source("fin.half_closed_us", STATES, &[]),
    source("fin.since_us", STATES, &[]),
    source("http.request", HTTP, MOVED).untried(OPT_IN),
    source("http.status", HTTP, MOVED).untried(OPT_IN),
    source("http.answer", HTTP, MOVED).untried(OPT_IN),
    source("phase", EVERYTHING, &[]),
    source("cause", EVERYTHING, &[]),
    source("initiator", EVERYTHING, &[]),
    source("harm", EVERYTHING, &[]),
    source("lost_bytes", EVERYTHING, &[]),
    source("unconfirmed_bytes", EVERYTHING, &[]),
    source("evidence.last_speaker", END, &["tcp_sock__lsndtime", "inet_connection_sock__lrcvtime", "tcp_sock__snd_wl1"]),
    source("evidence.reused", END, &["tcp_sock__lsndtime", "inet_connection_sock__lrcvtime", "tcp_sock__snd_wl1"]),
    source("evidence.linger", END, &["sock__skc_flags", "SOCK_LINGER", "sock__sk_lingertime"]),
    source("evidence.user_timeout", END, &["inet_connection_sock__icsk_user_timeout"]),
    source("evidence.min_rtt_us", END, &["tcp_sock__rtt_min"]),
    source("evidence.since_last_tx_us", END, &["tcp_sock__first_tx_mstamp"]),
    source("evidence.probes_out", END, &["inet_connection_sock__icsk_probes_out"]),
    source("evidence.soft_errno", END, &["sock__sk_err_soft"]).untried("it takes an ICMP error from the network"),
    source("evidence.signal", CLOSERS, &["task_struct__exit_code"]),
    source("evidence.timer.seconds", END, &["tcp_sock__lsndtime", "inet_connection_sock__lrcvtime"]).untried(SLOW),
    source("evidence.timer.name", END, &["tcp_sock__lsndtime", "inet_connection_sock__lrcvtime"]).untried(SLOW),
    source("evidence.reason_from", SENT, &[]),
    source("evidence.rst.acked", ARRIVED, &["tcp_skb_cb__ack_seq"]),
    source("evidence.rst.ttl", ARRIVED, RESET),
    source("evidence.rst.window", ARRIVED, RESET),
    source("verdict", EVERYTHING, &[]),
    source("log.side", &[], &[]).untried(LOG),
    source("log.client", &[], &[]).untried(LOG),
    source("log.upstream", &[], &[]).untried(LOG),
    source("log.request", &[], &[]).untried(LOG),
    source("log.host", &[], &[]).untried(LOG),
    source("log.phrase", &[], &[]).untried(LOG),
    source("log.line", &[], &[]).untried(LOG),
    source("log.further", &[], &[]).untried(LOG),
    source("log_candidates", &[], &[]).untried(LOG),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rsttrace_common::Offsets;
    use serde_json::Value;

    use super::*;
    use crate::probe::attach;

    /// Dotted names of everything in a schema that has no keys of its own.
    fn leaves(schema: &Value, defs: &Value, name: &str, out: &mut BTreeSet<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            return leaves(&defs[reference.rsplit('/').next().unwrap()], defs, name, out);
        }
        let choices = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array());
        if let Some(object) = choices.and_then(|choices| choices.iter().find(|choice| choice["type"] != "null")) {
            return leaves(object, defs, name, out);
        }
        match schema["properties"].as_object() {
            Some(keys) => {
                for (key, inner) in keys {
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    leaves(inner, defs, &name, out);
                }
            }
            None => {
                out.insert(name.to_owned());
            }
        }
    }

    #[test]
    fn the_table_has_every_field_of_the_schema_and_no_other() {
        let schema: Value = serde_json::from_str(include_str!("../../../docs/rsttrace.schema.json")).unwrap();
        let mut expected = BTreeSet::new();
        leaves(&schema["$defs"]["teardown"], &schema["$defs"], "", &mut expected);
        let named: BTreeSet<_> = sources().iter().map(|source| source.field.to_owned()).collect();
        assert_eq!(named, expected);
        assert_eq!(named.len(), sources().len(), "no field is named twice");
    }

    #[test]
    fn the_table_names_hooks_and_members_that_exist() {
        let hooks: Vec<_> = attach::all().iter().map(|hook| hook.name).collect();
        let mut members = vec![preflight::RESET_REASON];
        let mut offsets = Offsets::ABSENT;
        offsets.each(|name, _| members.push(name));
        for source in sources() {
            assert!(source.hooks.iter().all(|hook| hooks.contains(hook)), "{source:?}");
            assert!(source.members.iter().all(|member| members.contains(member)), "{source:?}");
        }
    }

    #[test]
    fn every_hook_feeds_a_field() {
        for hook in attach::all().iter().map(|hook| hook.name) {
            assert!(sources().iter().any(|source| source.hooks.contains(&hook)), "{hook}");
        }
    }
}
