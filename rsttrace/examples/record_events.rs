//! Writes the raw events of one network namespace to a file, each behind its length (u32): the
//! material of the golden tests. Usage: `record_events FILE SECONDS NETNS_INODE`.

use std::{
    collections::HashSet,
    env, fs,
    mem::offset_of,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rsttrace::probe::{Options, Probe};
use rsttrace_common::{EndEvent, StrayEvent, TaskEvent, Tuple, kind};

fn main() -> anyhow::Result<()> {
    let usage = "usage: record_events FILE SECONDS NETNS_INODE";
    let mut args = env::args().skip(1);
    let path = args.next().context(usage)?;
    let seconds = args.next().context(usage)?.parse().context(usage)?;
    let netns: u32 = args.next().context(usage)?.parse().context(usage)?;
    let options = Options {
        want_fin: true,
        buffer_bytes: 8 << 20,
        max_sockets: 4096,
        without: Vec::new(),
        syscall_hooks: false,
        kernel_log: false,
        choice: None,
        http: false,
    };
    let mut probe = Probe::start(&options)?;
    eprintln!("ready");
    let mut recorded = Vec::new();
    let mut sockets = HashSet::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        while let Some(event) = probe.next_event() {
            if wanted(&event, netns, &mut sockets).context("an event is too short")? {
                recorded.extend(u32::try_from(event.len())?.to_ne_bytes());
                recorded.extend_from_slice(&event);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::write(&path, &recorded).with_context(|| format!("cannot write {path}"))?;
    eprintln!("{} bytes", recorded.len());
    Ok(())
}

/// Whether an event belongs to the namespace, or to a socket of it that was met before.
fn wanted(event: &[u8], netns: u32, sockets: &mut HashSet<u64>) -> Option<bool> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(event.get(at..at + 4)?.try_into().ok()?));
    let sk_at = |at: usize| Some(u64::from_ne_bytes(event.get(at..at + 8)?.try_into().ok()?));
    Some(match u16::from_ne_bytes(event.get(..2)?.try_into().ok()?) {
        kind::END => {
            let ours = u32_at(offset_of!(EndEvent, tuple) + offset_of!(Tuple, netns))? == netns;
            let sk = sk_at(offset_of!(EndEvent, id))?;
            if ours {
                sockets.insert(sk)
            } else {
                sockets.remove(&sk)
            };
            ours
        }
        kind::STRAY => u32_at(offset_of!(StrayEvent, tuple) + offset_of!(Tuple, netns))? == netns,
        _ => sockets.contains(&sk_at(offset_of!(TaskEvent, id))?),
    })
}
