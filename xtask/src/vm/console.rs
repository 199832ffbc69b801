//! The machine, and what is said on its console.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
    process::Stdio,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::emulator::Emulator;
use crate::sums::Sums;

/// A few minutes are usual, with all scenarios.
const DEADLINE: Duration = Duration::from_secs(1200);
const HANG_DEADLINE: Duration = Duration::from_secs(60);
/// Whatever is wrong ends the machine instead of leaving it to the deadline.
const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 oops=panic panic_on_warn=1 softlockup_panic=1";

const ACCELERATOR: &str = "tcg,thread=single";
/// The guest's clock goes by what it executes, four nanoseconds an instruction, and jumps to the next timer where
/// it only waits: a matter of milliseconds does not depend on what else this machine does. It has one CPU: old
/// kernels wait for a second one in a loop that such a clock never ends.
const CLOCK: [&str; 4] = ["-icount", "shift=2,sleep=off", "-rtc", "clock=vm"];
/// QEMU 7.2 now and then leaves garbage in the flags after a cmpxchg16b, which SLUB does without where it must.
const CPU: &str = "max,-cx16";

/// Everything that was said; a line of `@KIND text` is the guest's, all others are the kernel's.
pub struct Console {
    pub text: String,
    timed_out: bool,
}

/// Runs the machine until it powers off, panics or takes too long. What it says comes into the file `live` at once.
pub fn boot(emulator: &Emulator, live: &Path, kernel: &Path, initramfs: &Path, flags: &[String]) -> Result<Console> {
    let live = File::create(live).with_context(|| format!("cannot create {}", live.display()))?;
    let mut qemu = emulator.command();
    qemu.args(["-accel", ACCELERATOR, "-cpu", CPU, "-smp", "1", "-m", "1024", "-nic", "none", "-nographic", "-no-reboot"]);
    qemu.args(CLOCK).arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    // Init gets what follows `--`.
    qemu.arg("-append").arg(format!("{KERNEL_ARGS} -- {}", flags.join(" ")));
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start qemu-system-x86_64")?;
    let Some(mut stdout) = child.stdout.take() else { bail!("the machine has no console") };
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let result = read_to_end(&mut stdout, &mut text, live);
        // Nobody listens any more after the deadline.
        let _ = sender.send(());
        result.map(|()| printable(&text))
    });
    // A machine that hangs on purpose is not waited for that long.
    let deadline = if flags.iter().any(|flag| flag == "vm.hang") { HANG_DEADLINE } else { DEADLINE };
    let timed_out = receiver.recv_timeout(deadline).is_err();
    if timed_out {
        child.kill().context("cannot stop the machine")?;
    }
    let status = child.wait().context("cannot wait for the machine")?;
    let Ok(text) = reader.join() else { bail!("reading the console failed") };
    let text = text.context("cannot read the console")?;
    if !timed_out && !status.success() {
        bail!("qemu-system-x86_64 failed ({status}); its message is above");
    }
    Ok(Console { text, timed_out })
}

/// Shows what is read in a file too, as it comes.
fn read_to_end(from: &mut impl Read, text: &mut Vec<u8>, mut live: File) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        live.write_all(&buffer[..n])?;
        text.extend(&buffer[..n]);
    }
}

/// Without what moves cursors and clears screens, as the firmware does.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

/// A section of what the guest said: from one announcement to its end.
pub struct Part<'a> {
    pub name: &'a str,
    frames: Vec<&'a str>,
}

impl<'a> Part<'a> {
    /// What was said of one kind.
    pub fn lines<'s>(&'s self, kind: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.frames.iter().filter_map(move |frame| frame.strip_prefix(kind)?.strip_prefix(' '))
    }

    /// What the program printed, counted.
    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        self.lines("said").for_each(|line| sums.read_line(line));
        sums.end(self.frames.iter().any(|frame| frame.starts_with("ended ") && frame.ends_with(" 0")));
        sums
    }
}

impl Console {
    /// What the guest said of one kind.
    pub fn lines<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.frames().filter_map(move |frame| frame.strip_prefix(kind)?.strip_prefix(' '))
    }

    /// The same as the text of a file.
    pub fn joined(&self, kind: &str) -> String {
        self.lines(kind).flat_map(|line| [line, "\n"]).collect()
    }

    /// The sections that this kind announces.
    pub fn parts<'a>(&'a self, kind: &str) -> Vec<Part<'a>> {
        let mut parts: Vec<Part<'a>> = Vec::new();
        let mut open = false;
        for frame in self.frames() {
            if let Some(name) = frame.strip_prefix(kind).and_then(|rest| rest.strip_prefix(' ')) {
                parts.push(Part { name, frames: Vec::new() });
                open = true;
            } else if let Some(part) = parts.last_mut().filter(|_| open) {
                part.frames.push(frame);
                open = !frame.starts_with("ended ");
            }
        }
        parts
    }

    fn frames(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter_map(|line| line.strip_prefix('@'))
    }

    /// Whether the guest came to its end, did what it was told, and nothing of it is missing here.
    pub fn complete(&self) -> Result<()> {
        if let Some(panic) = self.text.lines().find(|line| line.contains("Kernel panic")) {
            bail!("{}", panic.trim());
        }
        if self.timed_out {
            bail!("the machine hung: it was stopped before its end");
        }
        if let Some(why) = self.lines("failed").next() {
            bail!("the guest failed: {why}");
        }
        let Some(said) = self.lines("end").next().and_then(|count| count.parse::<usize>().ok()) else {
            bail!("the console broke off: it has no end marker");
        };
        let read = self.frames().count();
        if said != read {
            bail!("the console is damaged: the guest said {said} lines, {read} are there");
        }
        Ok(())
    }

    /// The last lines, for people: what was traced is none of the reasons for a failure.
    pub fn tail(&self, lines: usize) -> Vec<&str> {
        let data = ["@record ", "@before ", "@after ", "@said "];
        let wanted = self.text.lines().filter(|line| !data.iter().any(|kind| line.starts_with(kind)));
        let wanted: Vec<&str> = wanted.collect();
        wanted[wanted.len().saturating_sub(lines)..].to_vec()
    }
}

#[cfg(test)]
impl Console {
    pub fn of(text: &str) -> Self {
        Self { text: text.to_owned(), timed_out: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_complete(text: &str, expected: Option<&str>) {
        match (Console::of(text).complete(), expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) if error.to_string().contains(expected) => {}
            (result, _) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn only_what_is_whole_is_believed() {
        assert_complete("booting\n@kernel 6.1\n[ 1.0] noise\n@record {}\n@end 3\n", None);
        assert_complete("@kernel 6.1\n@end 3\n", Some("2 are there"));
        assert_complete("@kernel 6.1\n", Some("no end marker"));
        assert_complete("@failed no cgroup2\n@end 2\n", Some("no cgroup2"));
        assert_complete("@kernel 6.1\n[ 1.0] Kernel panic - not syncing: Oops\n", Some("Oops"));
    }

    #[test]
    fn what_the_firmware_does_to_the_screen_is_left_out() {
        assert_eq!(printable(b"\x1bc\x1b[2JBooting\r\n\tok\xff\n"), "c[2JBooting\n\tok\u{fffd}\n");
    }

    #[test]
    fn lines_of_a_kind_are_not_those_of_a_longer_one() {
        let console = Console::of("@record 1\n@records 2\n x @record 3\n@record 4\n");
        assert_eq!(console.lines("record").collect::<Vec<_>>(), ["1", "4"]);
        assert_eq!(console.tail(1), [" x @record 3"]);
    }
}
