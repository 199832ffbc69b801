//! stderr: what is said beside the records. A live line is there only while nothing else is.

use std::{
    cell::Cell,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::tcgetwinsize,
};
use textwrap::{Options, WordSplitter, wrap};

use crate::units::counted;

/// Losses are announced at most this often.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);

/// What is on stderr, and whether stdout is a terminal too.
#[derive(Debug)]
pub struct Status {
    quiet: bool,
    stderr_is_terminal: bool,
    stdout_is_terminal: bool,
    live: Cell<bool>,
    announced_losses: Cell<u64>,
    announced_at: Cell<Option<Instant>>,
}

impl Status {
    /// `live_wanted`: a live line would not mix with what stdout shows.
    pub fn new(quiet: bool, live_wanted: bool) -> Self {
        Self {
            quiet,
            stderr_is_terminal: io::stderr().is_terminal() && live_wanted,
            stdout_is_terminal: io::stdout().is_terminal(),
            live: Cell::new(false),
            announced_losses: Cell::new(0),
            announced_at: Cell::new(None),
        }
    }

    /// Width of the terminal that records go to; asked each time, for it may be resized.
    pub fn columns(&self) -> Option<usize> {
        if self.stdout_is_terminal { width(&io::stdout()) } else { None }
    }

    /// Whether anybody looks at stderr while nothing happens.
    pub fn wants_ticks(&self) -> bool {
        self.stderr_is_terminal && !self.quiet
    }

    /// Shows or replaces the live line.
    pub fn live(&self, text: &str) {
        if !self.wants_ticks() {
            return;
        }
        let columns = width(&io::stderr()).unwrap_or(80);
        let cut: String = text.chars().take(columns.saturating_sub(1)).collect();
        let _ = write!(io::stderr(), "\r\x1b[K{cut}");
        self.live.set(true);
    }

    /// Removes the live line.
    pub fn clear(&self) {
        if self.live.replace(false) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// A line that stays, unless quiet is wanted.
    pub fn permanent(&self, text: &str) {
        if !self.quiet {
            self.clear();
            say(text);
        }
    }

    /// A line that stays, also when quiet is wanted.
    pub fn warn(&self, text: &str) {
        self.clear();
        say(&format!("rsttrace: warning: {text}"));
    }

    /// Says that events are being lost, once a second at most. Returns whether some are still to be told of.
    pub fn losses(&self, total: u64) -> bool {
        let new = total.saturating_sub(self.announced_losses.get());
        let due = self.announced_at.get().is_none_or(|at| at.elapsed() >= LOSS_INTERVAL);
        if new > 0 && due && has_room() {
            self.warn(&format!("{} lost: the ring buffer was full (--buffer)", counted(new, "event")));
            self.announced_losses.set(total);
            self.announced_at.set(Some(Instant::now()));
        }
        new > 0 && !due
    }
}

/// A warning by whoever must not wait for a reader of stderr: it is said if there is room now. Returns whether it was.
pub fn warn_if_room(text: &str) -> bool {
    has_room() && say(&format!("rsttrace: warning: {text}"))
}

/// Says a line, or several; a terminal gets them folded. In one piece: others write there too. Returns whether there is
/// somebody to read it, which is nobody's failure.
pub fn say(text: &str) -> bool {
    let text = match width(&io::stderr()) {
        Some(columns) => folded(text, columns, "  "),
        None => format!("{text}\n"),
    };
    io::stderr().write_all(text.as_bytes()).is_ok()
}

/// Lines cut between words, as far as that helps. `indent`: what further lines begin with.
pub fn folded(text: &str, columns: usize, indent: &str) -> String {
    let options = Options::new(columns).subsequent_indent(indent).break_words(false).word_splitter(WordSplitter::NoHyphenation);
    // Each by itself: an indentation is for what follows of the same line.
    text.lines().flat_map(|line| wrap(line, &options)).map(|line| line.into_owned() + "\n").collect()
}

/// Whether stderr takes a line now. Nothing that is said while stdout is stuck may get stuck as well: they may be one pipe.
fn has_room() -> bool {
    let stderr = io::stderr();
    let mut watched = [PollFd::new(&stderr, PollFlags::OUT)];
    poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Width of the terminal that stdout is, if it is one.
pub fn columns() -> Option<usize> {
    width(&io::stdout())
}

/// Where it is a terminal that says it.
fn width(stream: &impl AsFd) -> Option<usize> {
    tcgetwinsize(stream).ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_between_words() {
        let text = "rsttrace: warning: a few words\nmost: one-long-cause 1    (more)\n/a/path/that/is/longer/than/that";
        let lines = ["rsttrace: warning: a", "  few words", "most: one-long-cause", "  1    (more)", "/a/path/that/is/longer/than/that"];
        assert_eq!(folded(text, 20, "  ").lines().collect::<Vec<_>>(), lines);
        assert_eq!(folded(text, 80, "  "), format!("{text}\n"));
    }
}
