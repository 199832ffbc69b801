//! What the live screen looks like. At least 80 columns and 24 lines are needed for all of it; more are used.

use std::borrow::Cow;

use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
};
use unicode_width::UnicodeWidthStr as _;

use super::{
    keys::HELP,
    model::{BUCKETS, By, Data, Line as TableLine, Model, Of, Pane, Part, Row, Span as Time},
};
use crate::{
    explain,
    input::{Account, Totals},
    model::{Harm, Judged, Role},
    output::{
        WallClock,
        text::{Appearance, TextFormat, process_of},
    },
    rollup::Group,
    units::{counted, grouped, size},
};

/// From here on there is room for whole addresses, and for the verdict beside the record.
const WIDE: u16 = 120;
/// Less shows nothing that helps.
const LEAST: (u16, u16) = (40, 12);
/// Lines beside the rows of table and list: title, totals, two rules, head, verdict, keys.
const FIXED: u16 = 9;
/// The longest cause.
const NAME: usize = 28;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_BARS: [char; 8] = ['.', ':', '-', '=', '+', '*', '#', '@'];

/// How it looks on this terminal.
#[derive(Clone, Debug)]
pub struct View {
    text: TextFormat,
    color: bool,
    /// Lines and bars, where they are one column wide and in the font.
    drawn: bool,
}

impl View {
    /// `font`: the terminal's font has more than code page 437.
    pub fn new(look: Appearance, font: bool) -> Self {
        let (color, drawn) = (look.color, look.unicode && !look.cjk && font);
        // Arrows stand in columns here.
        let look = Appearance { color: false, timeline: true, silence: false, unicode: drawn, ..look };
        Self { text: TextFormat::new(look), color, drawn }
    }

    /// Draws all of it, and keeps the model's scroll positions in bounds.
    pub fn draw(&mut self, frame: &mut Frame<'_>, model: &mut Model) {
        let area = frame.area();
        let mut page = Page { buffer: frame.buffer_mut(), area, y: 0 };
        if area.width < LEAST.0 || area.height < LEAST.1 {
            page.line(Line::from(format!("too small: {} x {} at least", LEAST.0, LEAST.1)));
            return;
        }
        self.title(&mut page, model);
        match model.pane {
            Pane::Tables => self.tables(&mut page, model),
            Pane::Details => self.details(&mut page, model),
            Pane::Help => self.help(&mut page),
        }
        page.y = area.height - 1;
        page.line(self.keys(model));
    }

    fn title(&mut self, page: &mut Page<'_>, model: &Model) {
        let origin = &model.origin;
        let mut left = " rsttrace top".to_owned();
        if let Some(file) = &model.file {
            left += &format!("  {}", self.text.shown(file));
        }
        if let Some(start) = &origin.account.start {
            left += &format!("  {}", self.text.shown(&start.host));
            start.filters.iter().for_each(|filter| left += &format!("  {}", self.text.shown(filter)));
        }
        let mut right = match (model.missed(), &origin.ended) {
            (Some(0), _) => "PAUSED".to_owned(),
            (Some(n), _) => format!("PAUSED, {} more since", grouped(n)),
            (None, Some(words)) => words.clone(),
            (None, None) if model.is_live() => "live".to_owned(),
            (None, None) => "reading".to_owned(),
        };
        let total = &model.shown().all.total;
        if total.ends > 0 {
            let (first, last) = (self.second(total.first_ns), self.second(total.last_ns));
            right = format!("{first} to {last}  {right}");
        }
        let room = usize::from(page.area.width).saturating_sub(right.width() + 2);
        page.line(Line::styled(format!("{} {right} ", self.fit(&left, room)), REVERSED));
    }

    fn tables(&mut self, page: &mut Page<'_>, model: &mut Model) {
        let rows = usize::from(page.area.height - FIXED);
        let of_table = (rows * 12 / 25).max(1);
        model.page = rows.saturating_sub(of_table).max(1);
        let place = model.place();
        model.offset = model.offset.clamp((place + 1).saturating_sub(model.page), place);

        let (data, part) = (model.shown(), model.shown().shown());
        self.totals(page, model, data, part);
        page.line(self.tabs(page.area.width, model));
        self.table(page, model, data, part, of_table);
        page.line(self.list_rule(page.area.width, model, data, part));
        self.list(page, model, part, place);
        self.verdict(page, model);
    }

    fn totals(&self, page: &mut Page<'_>, model: &Model, data: &Data, part: &Part) {
        let total = &part.total;
        let over = if data.span == Time::Last { "/s now" } else { "/s on average" };
        let mut spans = vec![Span::styled(format!(" {} ", counted(total.ends, "end")), BOLD)];
        for harm in Harm::ALL.iter().filter(|harm| **harm != Harm::None).chain([&Harm::None]) {
            let n = total.of(*harm);
            let style = if n > 0 { self.style(*harm) } else { Style::new() };
            spans.push(Span::styled(format!("  {} {}", harm.on_screen(), grouped(n)), style));
        }
        spans.push(Span::raw(format!("   {}{over}", rate(data.rate()))));
        page.parts(spans);

        let mut words = vec![Span::raw(format!(" lost {}  not confirmed {}", size(total.lost_bytes), size(total.unconfirmed_bytes)))];
        let Account { late, folded, faults, .. } = model.origin.account;
        let totals = model.origin.account.totals();
        words.extend(self.losses(model, &totals));
        if totals.told > 0 {
            words.push(Span::raw(format!("  in order {}", grouped(totals.orderly))));
        }
        if totals.filtered > 0 {
            words.push(Span::raw(format!("  filtered {}", grouped(totals.filtered))));
        }
        if folded > 0 {
            words.push(Span::styled(format!("  folded, not counted here {}", grouped(folded)), BOLD));
        }
        if faults > 0 {
            words.push(Span::styled(format!("  not understood {}", grouped(faults)), BOLD));
        }
        if late > 0 {
            words.push(Span::raw(format!("  late {}", grouped(late))));
        }
        page.parts(words);
    }

    /// What the tracer itself lost: without it the rest is not worth its digits.
    fn losses(&self, model: &Model, totals: &Totals) -> Vec<Span<'static>> {
        let warn = self.style(Harm::Possible).patch(BOLD);
        let Totals { lost, evicted, undecodable, .. } = totals;
        let mut words = Vec::new();
        if lost.untold_runs > 0 || totals.told == 0 {
            words.push(match (&model.origin.ended, model.is_live()) {
                (Some(_), false) => Span::styled("  no summary: the tracer's losses are not known", warn),
                _ => Span::raw("  tracer lost: not told yet"),
            });
        }
        if lost.total > 0 || words.is_empty() {
            let records = if lost.records > 0 { format!(" ({} records)", grouped(lost.records)) } else { String::new() };
            let events = format!("  tracer lost {} events{records}", grouped(lost.total));
            words.push(Span::styled(events, if lost.total > 0 { warn } else { Style::new() }));
        }
        let others = [
            (*evicted, "sockets found no room"),
            (*undecodable, "events not decoded"),
            (lost.skipped.values().sum(), "runs skipped by the kernel"),
        ];
        words.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| Span::styled(format!("  {} {what}", grouped(*n)), warn)));
        words
    }

    fn tabs(&self, width: u16, model: &Model) -> Line<'static> {
        let mut spans = vec![Span::raw(self.bar(1))];
        for by in By::ALL {
            let (name, style) = if by == model.by { (format!("[{}]", by.name()), BOLD) } else { (format!(" {} ", by.name()), DIM) };
            spans.push(Span::styled(name, style));
        }
        self.rule(width, spans, model.sort.name())
    }

    fn table(&mut self, page: &mut Page<'_>, model: &Model, data: &Data, part: &Part, rows: usize) {
        let wide = page.area.width >= WIDE;
        let columns: Vec<&Column> = COLUMNS.iter().filter(|column| wide || !column.wide_only).collect();
        let used = NAME + 1 + columns.iter().map(|column| column.width).sum::<usize>();
        let bars = usize::from(page.area.width).saturating_sub(used + 2).min(BUCKETS);

        let mut head = format!(" {:NAME$}", model.by.name());
        columns.iter().for_each(|column| head += &format!("{:>1$}", column.head, column.width));
        let seconds = data.bucket_seconds() * data.buckets() as u64;
        head += &match data.span {
            Time::Last => format!(" last {seconds} s"),
            Time::Whole => format!(" over {}", span(seconds)),
        };
        page.line(Line::styled(head, DIM));

        let lines = part.lines(model.by, model.sort, data.buckets());
        let hidden = lines.len().saturating_sub(rows);
        let end = page.y + rows as u16;
        for (at, line) in lines.iter().take(rows).enumerate() {
            if at + 1 == rows && hidden > 0 {
                page.line(Line::styled(format!(" and {} more", grouped(hidden as u64 + 1)), DIM));
                break;
            }
            let name = self.fit_middle(&self.name(line), NAME);
            let mut spans = vec![Span::styled(format!(" {name}"), self.style_of(line.group))];
            for column in &columns {
                let style = column.harm.filter(|harm| line.group.of(*harm) > 0).map_or(Style::new(), |harm| self.style(harm));
                spans.push(Span::styled(format!("{:>1$}", (column.cell)(self, line, data), column.width), style));
            }
            if let Some(series) = line.series {
                spans.push(Span::raw(format!(" {}", self.sparkline(&series.0[..data.buckets()], bars))));
            }
            page.line(Line::from(spans));
        }
        page.y = end;
    }

    fn name(&self, line: &TableLine<'_>) -> String {
        match line.of {
            Some(Of::Cause(cause)) => cause.name().to_owned(),
            Some(Of::Process(Some(comm))) => self.text.shown(&comm.text()).into_owned(),
            Some(Of::Process(None)) => "(not known)".to_owned(),
            Some(Of::Remote(addr)) => addr.to_string(),
            Some(Of::Port(port)) => format!(":{port}"),
            None => "(all others)".to_owned(),
        }
    }

    fn sparkline(&self, counts: &[u32], width: usize) -> String {
        let bars = if self.drawn { BARS } else { ASCII_BARS };
        let each = counts.len().div_ceil(width.max(1)).max(1);
        // The newest bucket ends the last bar.
        let mut sums: Vec<u64> = counts.rchunks(each).map(|chunk| chunk.iter().map(|n| u64::from(*n)).sum()).collect();
        sums.reverse();
        let most = sums.iter().copied().max().unwrap_or(0).max(1);
        let bar = |n: u64| if n == 0 { ' ' } else { bars[((n * 8).div_ceil(most) as usize).clamp(1, 8) - 1] };
        sums.into_iter().map(bar).collect()
    }

    fn list_rule(&self, width: u16, model: &Model, data: &Data, part: &Part) -> Line<'static> {
        let mut spans = vec![Span::raw(self.bar(1)), Span::styled(" newest ", BOLD)];
        if !model.filter.is_empty() || model.typing {
            let cursor = if model.typing { "_" } else { "" };
            let (matching, all) = (grouped(part.total.ends), grouped(data.all.total.ends));
            spans.push(Span::raw(format!(" filter: {}{cursor} ", self.text.shown(&model.filter))));
            spans.push(Span::raw(format!(" {matching} of {all} match ")));
        }
        let kept = part.rows.len() as u64;
        let right = if kept < part.total.ends { format!("{} kept", grouped(kept)) } else { String::new() };
        self.rule(width, spans, &right)
    }

    fn list(&mut self, page: &mut Page<'_>, model: &Model, part: &Part, place: usize) {
        let (offset, rows) = (model.offset, model.page);
        let end = page.y + rows as u16;
        if part.rows.is_empty() {
            let words = if !model.filter.is_empty() { "  nothing matches yet" } else { "  no record yet" };
            page.line(Line::styled(words, DIM));
        }
        for (at, row) in part.rows.iter().rev().enumerate().skip(offset).take(rows) {
            let line = self.row(page.area.width, row, at == place);
            page.line(line);
        }
        page.y = end;
    }

    fn row(&mut self, width: u16, row: &Row, selected: bool) -> Line<'static> {
        let judged = &row.judged;
        let t = &judged.teardown;
        let (wide, width) = (width >= WIDE, usize::from(width));
        let time = if wide { self.text.time(WallClock::new(0, 0).at(t.at_ns)) } else { format!("{:>8}", self.second(t.at_ns)) };
        let mark = if selected { ">" } else { " " };
        let harm = Span::styled(format!("{:<5}", judged.verdict.harm.on_screen()), self.style(judged.verdict.harm));
        let arrow = self.text.arrow(t);
        let process = self.text.shown(&process_of(t).to_string()).into_owned();
        let cause = judged.verdict.cause.name();
        let rest = if wide {
            let (local, remote) = (self.fit_middle(&t.local.to_string(), 21), self.fit_middle(&t.remote.to_string(), 25));
            let head = format!(" {} {local} {arrow} {remote} {cause:<NAME$} ", self.fit(&process, 22));
            let room = width.saturating_sub(mark.len() + time.width() + 1 + 5 + head.width());
            head + &self.fit(&self.text.shown(&judged.verdict.words), room)
        } else {
            let connection = match t.role {
                Some(Role::Client) => format!("{arrow} {}", t.remote),
                _ => format!(":{} {arrow} {}", t.local.port, t.remote.addr),
            };
            // The name without its number is enough here.
            let name = t.process().map_or(process, |comm| self.text.shown(&comm.text()).into_owned());
            let more = width.saturating_sub(80).min(15);
            format!(" {} {} {cause}", self.fit(&name, 11 + more.min(4)), self.fit_middle(&connection, 25 + more.saturating_sub(4)))
        };
        let line =
            Line::from(vec![Span::raw(format!("{mark}{time} ")), harm, Span::raw(self.fit(&rest, width.saturating_sub(7 + time.width())))]);
        if selected { line.style(REVERSED) } else { line }
    }

    /// The sentence of the selected record; a warning of the tracer takes its second line.
    fn verdict(&self, page: &mut Page<'_>, model: &Model) {
        let width = usize::from(page.area.width).saturating_sub(2).max(1);
        let words = model.selected_row().map(|row| self.text.shown(&row.judged.verdict.words).into_owned()).unwrap_or_default();
        let mut lines: Vec<Line<'static>> =
            textwrap::wrap(&words, width).into_iter().take(2).map(|line| Line::styled(format!(" {line}"), BOLD)).collect();
        lines.resize(2, Line::default());
        if let Some(warning) = &model.origin.warning {
            let warning = format!(" tracer: {}", self.text.shown(warning));
            lines[1] = Line::styled(self.fit(&warning, width), self.style(Harm::Possible));
        }
        lines.into_iter().for_each(|line| page.line(line));
    }

    fn details(&mut self, page: &mut Page<'_>, model: &mut Model) {
        let width = page.area.width;
        let mut lines = model.selected_row().map(|row| self.details_of(&row.judged, usize::from(width))).unwrap_or_default();
        model.page = usize::from(page.area.height.saturating_sub(3));
        model.scroll = model.scroll.min(lines.len().saturating_sub(model.page));
        let last = (model.scroll + model.page).min(lines.len());
        let right = format!("lines {} to {last} of {}", model.scroll + 1, lines.len());
        page.line(self.rule(width, vec![Span::raw(self.bar(1)), Span::styled(" details ", BOLD)], &right));
        lines.drain(model.scroll..last).for_each(|line| page.line(line));
    }

    fn details_of(&mut self, judged: &Judged, width: usize) -> Vec<Line<'static>> {
        let mut text = Vec::new();
        // A Vec takes everything.
        let _ = self.text.write(&mut text, judged, None, &WallClock::new(0, 0), Some(width.min(usize::from(WIDE) - 1)));
        let record = String::from_utf8_lossy(&text).into_owned();
        let style = self.style(judged.verdict.harm).patch(BOLD);
        let mut lines: Vec<Line<'static>> = record.lines().map(|line| Line::raw(line.to_owned())).collect();
        if let Some(first) = lines.first_mut() {
            *first = first.clone().style(style);
        }
        lines.push(Line::default());
        for line in explain::page(judged.verdict.cause).lines() {
            let style = if line.starts_with('#') { BOLD } else { Style::new() };
            lines.extend(textwrap::wrap(line, width).into_iter().map(|line| Line::styled(line.into_owned(), style)));
        }
        lines
    }

    fn help(&self, page: &mut Page<'_>) {
        let width = usize::from(page.area.width);
        page.line(self.rule(page.area.width, vec![Span::raw(self.bar(1)), Span::styled(" keys ", BOLD)], ""));
        for (keys, words) in HELP {
            let indent = " ".repeat(15);
            let options = textwrap::Options::new(width.saturating_sub(1)).subsequent_indent(&indent);
            let text = format!(" {keys:<13} {words}");
            textwrap::wrap(&text, options).into_iter().for_each(|line| page.line(Line::raw(line.into_owned())));
        }
        page.line(Line::default());
        let [left, right, ..] = self.text.arrows();
        let words = format!(
            "LOST: bytes certainly did not arrive or were never read. maybe: bytes are not confirmed, or a request has no answer. \
             ok: neither. ?: not known. {left} the end came from the remote side, {right} from ours. An end is a socket's: \
             a connection within this host has two."
        );
        let options = textwrap::Options::new(width.saturating_sub(1)).initial_indent(" ").subsequent_indent(" ");
        textwrap::wrap(&words, options).into_iter().for_each(|line| page.line(Line::raw(line.into_owned())));
    }

    fn keys(&self, model: &Model) -> Line<'static> {
        let words = match model.pane {
            _ if model.typing => " Enter keep the filter   Esc show all   words: cause process address :port lost",
            Pane::Tables if model.missed().is_some() => " q quit  Tab table  s sort  f filter  p GO ON  j/k select  Enter details  ? help",
            Pane::Tables => " q quit  Tab table  s sort  f filter  p pause  j/k select  Enter details  ? help",
            Pane::Details => " Esc back   up/down PgUp/PgDn scroll   left/right older/newer   ? help",
            Pane::Help => " any key: back   Ctrl-C quit",
        };
        Line::styled(words, REVERSED)
    }

    /// Seconds are enough beside a list.
    fn second(&mut self, at_ns: u64) -> String {
        let time = self.text.time(WallClock::new(0, 0).at(at_ns));
        time.split('.').next().unwrap_or_default().trim_start().to_owned()
    }

    fn style(&self, harm: Harm) -> Style {
        match harm {
            Harm::Lost if self.color => BOLD.fg(Color::Red),
            Harm::Possible if self.color => Style::new().fg(Color::Yellow),
            Harm::Lost => BOLD,
            Harm::None => DIM,
            Harm::Possible | Harm::Unknown => Style::new(),
        }
    }

    /// Of its worst end.
    fn style_of(&self, group: &Group) -> Style {
        let worst = Harm::ALL.iter().find(|harm| group.of(**harm) > 0);
        worst.filter(|harm| **harm != Harm::None).map_or(Style::new(), |harm| self.style(*harm))
    }

    fn bar(&self, n: usize) -> String {
        if self.drawn { "─" } else { "-" }.repeat(n)
    }

    /// A line across, with words at both ends.
    fn rule(&self, width: u16, mut left: Vec<Span<'static>>, right: &str) -> Line<'static> {
        let used: usize = left.iter().map(Span::width).sum();
        let right = if right.is_empty() { String::new() } else { format!(" {right} ") };
        let room = usize::from(width).saturating_sub(used + right.width() + 1);
        left.push(Span::raw(self.bar(room)));
        left.push(Span::raw(right));
        left.push(Span::raw(self.bar(1)));
        Line::from(left)
    }

    /// Cut and filled to a width.
    fn fit(&self, text: &str, width: usize) -> String {
        let mark = if self.drawn { "…" } else { "~" };
        let text =
            if text.width() <= width { Cow::Borrowed(text) } else { Cow::Owned(begin(text, width.saturating_sub(1)).to_owned() + mark) };
        let missing = width.saturating_sub(text.width());
        format!("{text}{:missing$}", "")
    }

    /// The same, cut in the middle: the beginning and the end of an address tell the most.
    fn fit_middle(&self, text: &str, width: usize) -> String {
        let marks = 2;
        if text.width() <= width || width <= marks {
            return self.fit(text, width);
        }
        let head = begin(text, (width - marks) / 2);
        let mut tail = text;
        while head.width() + marks + tail.width() > width {
            let mut chars = tail.chars();
            chars.next();
            tail = chars.as_str();
        }
        self.fit(&format!("{head}..{tail}"), width)
    }
}

/// A column of numbers.
struct Column {
    head: &'static str,
    width: usize,
    wide_only: bool,
    /// Whose colour it has.
    harm: Option<Harm>,
    cell: fn(&View, &TableLine<'_>, &Data) -> String,
}

const COLUMNS: &[Column] = &[
    Column { head: "ends", width: 7, wide_only: false, harm: None, cell: |_, line, _| count(line.group.ends) },
    Column { head: "LOST", width: 7, wide_only: false, harm: Some(Harm::Lost), cell: |_, line, _| count(line.group.of(Harm::Lost)) },
    Column {
        head: "maybe",
        width: 7,
        wide_only: false,
        harm: Some(Harm::Possible),
        cell: |_, line, _| count(line.group.of(Harm::Possible)),
    },
    Column { head: "?", width: 7, wide_only: true, harm: None, cell: |_, line, _| count(line.group.of(Harm::Unknown)) },
    Column { head: "ok", width: 7, wide_only: true, harm: None, cell: |_, line, _| count(line.group.of(Harm::None)) },
    Column { head: "lost", width: 9, wide_only: false, harm: Some(Harm::Lost), cell: |_, line, _| size(line.group.lost_bytes).to_string() },
    Column { head: "unconf.", width: 9, wide_only: true, harm: None, cell: |_, line, _| size(line.group.unconfirmed_bytes).to_string() },
    Column { head: "peak/s", width: 7, wide_only: false, harm: None, cell: |_, line, data| peak(line, data) },
];

/// The busiest bucket, by second.
fn peak(line: &TableLine<'_>, data: &Data) -> String {
    let most = line.series.and_then(|series| series.0.iter().copied().max()).unwrap_or(0);
    if most == 0 { "0".to_owned() } else { rate(f64::from(most) / data.bucket_seconds() as f64) }
}

/// Exact, up to five digits.
fn count(n: u64) -> String {
    if n < 100_000 { grouped(n).to_string() } else { size(n).to_string().trim_end_matches('B').trim_end().to_owned() }
}

fn rate(per_second: f64) -> String {
    match per_second {
        n if n >= 9.95 => grouped(n.round() as u64).to_string(),
        n if n == 0.0 || n >= 0.05 => format!("{n:.1}"),
        _ => "<0.1".to_owned(),
    }
}

/// `2 min`, in whole units.
fn span(seconds: u64) -> String {
    match seconds {
        0..=120 => format!("{seconds} s"),
        121..=7_200 => format!("{} min", seconds.div_ceil(60)),
        7_201..=172_800 => format!("{} h", seconds.div_ceil(3_600)),
        _ => format!("{} d", seconds.div_ceil(86_400)),
    }
}

/// As much of the text as fits.
fn begin(text: &str, width: usize) -> &str {
    let mut used = 0;
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let next = at + c.len_utf8();
        used += text[at..next].width();
        if used > width {
            break;
        }
        end = next;
    }
    &text[..end]
}

/// Lines, from the top down.
struct Page<'a> {
    buffer: &'a mut ratatui::buffer::Buffer,
    area: Rect,
    y: u16,
}

impl Page<'_> {
    fn line(&mut self, line: Line<'_>) {
        if self.y < self.area.height {
            let y = self.area.y + self.y;
            self.buffer.set_style(Rect { y, height: 1, ..self.area }, line.style);
            self.buffer.set_line(self.area.x, y, &line, self.area.width);
            self.y += 1;
        }
    }
    /// As many as fit, each as a whole: half a number is a wrong one.
    fn parts(&mut self, parts: Vec<Span<'_>>) {
        let mut room = usize::from(self.area.width);
        let fitting = parts.into_iter().filter(|part| {
            let fits = part.width() <= room;
            room -= if fits { part.width() } else { 0 };
            fits
        });
        self.line(Line::from_iter(fitting));
    }
}
