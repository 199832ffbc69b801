//! Writes the raw events of a few seconds to a file, each behind its length (u32): the material of
//! the golden tests. Usage: `record_events FILE SECONDS`.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rsttrace::probe::{Options, Probe};

fn main() -> anyhow::Result<()> {
    let usage = "usage: record_events FILE SECONDS";
    let mut args = env::args().skip(1);
    let path = args.next().context(usage)?;
    let seconds = args.next().context(usage)?.parse().context(usage)?;
    let options =
        Options { want_fin: true, buffer_bytes: 8 << 20, max_sockets: 4096, without: Vec::new(), kernel_log: false };
    let mut probe = Probe::start(&options)?;
    eprintln!("ready");
    let mut recorded = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        while let Some(event) = probe.next_event() {
            recorded.extend(u32::try_from(event.len())?.to_ne_bytes());
            recorded.extend_from_slice(&event);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::write(&path, &recorded).with_context(|| format!("cannot write {path}"))?;
    eprintln!("{} bytes", recorded.len());
    Ok(())
}
