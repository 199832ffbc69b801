//! The report for people: 80 columns, and nothing that depends on colour.

use textwrap::{Options, WordSplitter, wrap};

use super::report::{Delivery, Field, Hook, Outcome, Report};
use crate::output::escape::for_terminal;

const COLUMNS: usize = 80;

pub fn render(report: &Report) -> String {
    let mut page = Page::default();
    page.line(&format!("rsttrace {} on {}, Linux {}, {}", report.version, report.host, report.kernel, report.machine));
    page.title("CHECKS");
    for check in &report.checks {
        page.row(&format!("  {:<9} {:<14} ", check.status.word(), check.name), &check.detail);
        if let Some(hint) = &check.hint {
            page.row(&format!("  {:<9} {:<14} ", "", ""), &format!("hint: {hint}"));
        }
    }
    page.title("HOOKS");
    for hook in &report.hooks {
        page.row(&format!("  {:<9} {:<20} ", hook.how.unwrap_or("-"), hook.name), hook.why.as_deref().unwrap_or_default());
    }
    if !report.ends.is_empty() {
        page.title("MADE ENDS");
    }
    for end in &report.ends {
        page.row(&format!("  {:<9} {:<19} ", end.outcome.word(), end.name), end.what);
        if let Some(why) = end.why.as_ref().filter(|_| end.outcome != Outcome::Right) {
            page.row(&format!("  {:<9} {:<19} ", "", ""), why);
        }
    }
    page.title("FIELDS OF A RECORD");
    match report.fields.first() {
        Some(first) if report.fields.iter().all(|field| field.status == first.status && field.why == first.why && first.why.is_some()) => {
            page.row(&format!("  {:<9} all: ", first.status.word()), first.why.as_deref().unwrap_or_default());
        }
        _ => report.fields.chunk_by(belong_together).for_each(|group| fields(&mut page, group, &report.hooks)),
    }
    page.title("CONCLUSION");
    page.row("  ", verdict(report.status));
    for complaint in &report.degraded {
        page.hanging("  * ", "    ", &format!("{}: {}", complaint.what, complaint.why));
    }
    page.0
}

fn verdict(status: u8) -> &'static str {
    match status {
        0 => "All fine: every hook is attached, and every field that was tried is right.",
        1 => "Degraded: rsttrace works here, but not in full.",
        _ => "Unusable: rsttrace cannot run here.",
    }
}

/// Fields of one object with the same fate are one row.
fn belong_together(a: &Field, b: &Field) -> bool {
    (object(a), a.status, &a.from, &a.why) == (object(b), b.status, &b.from, &b.why)
}

/// Everything before the last dot.
fn object(field: &Field) -> &str {
    field.name.rsplit_once('.').map_or("", |(object, _)| object)
}

fn fields(page: &mut Page, group: &[Field], hooks: &[Hook]) {
    let Some(first) = group.first() else { return };
    let object = object(first);
    let names: Vec<_> = group.iter().map(|field| field.name.strip_prefix(object).unwrap_or(field.name).trim_start_matches('.')).collect();
    let names = if object.is_empty() { names.join(", ") } else { format!("{object}: {}", names.join(", ")) };
    page.row(&format!("  {:<9} ", first.status.word()), &names);
    let indent = format!("  {:<9}   ", "");
    if let Some(from) = first.from.as_ref().filter(|_| first.status != Delivery::NotTried) {
        // How each is attached was said above.
        let from = hooks.iter().filter_map(|hook| hook.how).fold(from.clone(), |from, how| from.replace(&format!(" ({how})"), ""));
        page.row(&indent, &format!("from {from}"));
    }
    if let Some(why) = &first.why {
        page.row(&indent, why);
    }
}

/// Lines, each fit for a terminal.
#[derive(Default)]
struct Page(String);

impl Page {
    fn title(&mut self, title: &str) {
        self.0.push('\n');
        self.line(title);
    }

    fn line(&mut self, text: &str) {
        self.0.push_str(for_terminal(text).trim_end());
        self.0.push('\n');
    }

    /// A head of our own words, and others that are folded behind it.
    fn row(&mut self, head: &str, words: &str) {
        if words.is_empty() {
            return self.line(head);
        }
        self.hanging(head, &" ".repeat(head.len()), words);
    }

    fn hanging(&mut self, head: &str, indent: &str, words: &str) {
        let options = Options::new(COLUMNS).initial_indent(head).subsequent_indent(indent);
        for line in wrap(&for_terminal(words), options.word_splitter(WordSplitter::NoHyphenation)) {
            self.0.push_str(line.trim_end());
            self.0.push('\n');
        }
    }
}
