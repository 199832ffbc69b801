//! Which members the kernel half reads, looked up in the running kernel's BTF.

use rsttrace_common::{ABSENT, Offsets};

use super::btf::KernelBtf;

/// Where a member of [`Offsets`] is found: the struct, and the path from it.
fn place(name: &str) -> Option<(&str, String)> {
    let (of, member) = name.split_once("__")?;
    let path = match (of, member) {
        ("sock", "skc_net") => "__sk_common.skc_net.net".to_owned(),
        ("sock", "sk_lock_owned") => "sk_lock.owned".to_owned(),
        ("sock", "sk_receive_queue_prev") => "sk_receive_queue.prev".to_owned(),
        ("sock", member) if member.starts_with("skc_") => format!("__sk_common.{member}"),
        ("inet_connection_sock", "lrcvtime") => "icsk_ack.lrcvtime".to_owned(),
        // The value of the first of three samples, behind its time.
        ("tcp_sock", "rtt_min") => "rtt_min.s".to_owned(),
        ("net", "inum") => "ns.inum".to_owned(),
        ("net_device", "nd_net") => "nd_net.net".to_owned(),
        ("sk_buff", "cb_tcp_flags") => "cb".to_owned(),
        ("task_struct", "status") => "thread_info.status".to_owned(),
        (_, member) => member.to_owned(),
    };
    Some((of, path))
}

/// What lies behind the beginning of an array that the path leads to.
fn inner(name: &str, btf: &KernelBtf) -> Option<u32> {
    match name {
        "tcp_sock__rtt_min" => btf.offset("minmax_sample", "v"),
        "sk_buff__cb_tcp_flags" => btf.offset("tcp_skb_cb", "tcp_flags"),
        _ => Some(0),
    }
}

/// Members that the kernel half reads with a helper and can do without. All others are loaded
/// directly, which the verifier refuses where they do not exist.
fn optional(name: &str) -> bool {
    const OPTIONAL: [&str; 9] =
        ["mptcp_", "sk_buff__", "net_device__", "tcp_skb_cb__", "task_struct__", "files_struct__", "fdtable__", "SOCK_", "pt_regs__"];
    OPTIONAL.iter().any(|start| name.starts_with(start)) || matches!(name, "tcp_sock__is_mptcp" | "sock__skc_cookie")
}

/// Looks every member up. Returns the offsets and the names of those that are missing;
/// `Err` names a missing one that nothing works without.
pub fn resolve(btf: &KernelBtf) -> Result<(Offsets, Vec<&'static str>), &'static str> {
    let flags = btf.enumerators("sock_flags");
    let mut offsets = Offsets::ABSENT;
    let mut missing = Vec::new();
    offsets.each(|name, offset| {
        *offset = match place(name) {
            Some((of, path)) => btf.offset(of, &path).zip(inner(name, btf)).map(|(offset, inner)| offset + inner),
            None => flags.iter().find(|(flag, _)| *flag == name).map(|&(_, bit)| bit.cast_unsigned()),
        }
        .unwrap_or(ABSENT);
        // A kernel without CONFIG_MPTCP has no such sockets either.
        if *offset == ABSENT && !name.contains("mptcp") {
            missing.push(name);
        }
    });
    match missing.iter().find(|name| !optional(name)) {
        Some(name) => Err(name),
        None => Ok((offsets, missing)),
    }
}
