//! What the keys do.

use super::model::{By, Model, Pane, Sort};

/// A key, as far as it means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    /// Ctrl-C.
    Interrupt,
    Enter,
    Escape,
    Backspace,
    Tab,
    BackTab,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
}

/// What the help says.
pub const HELP: &[(&str, &str)] = &[
    ("Tab, 1 2 3 4", "the table: by cause, process, remote address, service port"),
    ("s", "the order of the table: harm, ends, lost bytes, what is busy now"),
    (
        "f or /",
        "show only what matches: parts of a cause, process, address or kind of end, a port or process number, LOST, maybe, ok; \
      several words must all match. Counts are then those of the kept records",
    ),
    ("p or space", "hold what is shown; counting goes on"),
    ("up down, j k", "select a record; the newest is followed while it is selected"),
    ("PgUp PgDn", "select a page further; Home, g: the newest; End, G: the oldest that is kept"),
    ("Enter", "details: the record, its evidence in the order of time, and what its cause means"),
    ("left right", "in the details: the record before, the record after"),
    ("q, Esc", "back; from the tables: quit. Ctrl-C quits from everywhere"),
];

/// Longer filters are not typed.
const MAX_FILTER: usize = 200;

impl Model {
    /// What a key does. Returns whether the screen is to stay.
    pub fn press(&mut self, key: Key) -> bool {
        if key == Key::Interrupt {
            return false;
        }
        if self.typing {
            self.type_filter(key);
            return true;
        }
        match (self.pane, key) {
            (Pane::Tables, Key::Char('q') | Key::Escape) => return false,
            (_, Key::Char('q') | Key::Escape) | (Pane::Details, Key::Enter) => self.show(Pane::Tables),
            (Pane::Help, _) => self.show(Pane::Tables),
            (_, Key::Char('?')) => self.show(Pane::Help),
            (_, Key::Char('p' | ' ')) => self.pause(),
            (Pane::Details, _) => self.read_on(key),
            (Pane::Tables, _) => self.look_around(key),
        }
        true
    }

    fn show(&mut self, pane: Pane) {
        self.pane = pane;
        self.scroll = 0;
    }

    fn look_around(&mut self, key: Key) {
        let (place, page) = (self.place(), self.page.max(1));
        match key {
            Key::Tab | Key::Right => self.by = next(&By::ALL, self.by, 1),
            Key::BackTab | Key::Left => self.by = next(&By::ALL, self.by, By::ALL.len() - 1),
            Key::Char(digit @ '1'..='4') => self.by = By::ALL[digit as usize - '1' as usize],
            Key::Char('s') => self.sort = next(&Sort::ALL, self.sort, 1),
            Key::Char('f' | '/') => self.typing = true,
            Key::Up | Key::Char('k') => self.select(place.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(place + 1),
            Key::PageUp => self.select(place.saturating_sub(page)),
            Key::PageDown => self.select(place + page),
            Key::Home | Key::Char('g') => self.select(0),
            Key::End | Key::Char('G') => self.select(usize::MAX),
            Key::Enter => {
                // It stays the same while others come.
                self.selected = self.selected_row().map(|row| row.number);
                if self.selected.is_some() {
                    self.show(Pane::Details);
                }
            }
            _ => {}
        }
    }

    fn read_on(&mut self, key: Key) {
        let page = self.page.max(1);
        match key {
            Key::Up | Key::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            Key::Down | Key::Char('j') => self.scroll = self.scroll.saturating_add(1),
            Key::PageUp => self.scroll = self.scroll.saturating_sub(page),
            Key::PageDown => self.scroll = self.scroll.saturating_add(page),
            Key::Home | Key::Char('g') => self.scroll = 0,
            Key::End | Key::Char('G') => self.scroll = usize::MAX,
            Key::Left => self.step(self.place() + 1),
            Key::Right => self.step(self.place().saturating_sub(1)),
            _ => {}
        }
    }

    /// To another record in the details: it stays, also where it is the newest.
    fn step(&mut self, place: usize) {
        self.select(place);
        self.selected = self.selected_row().map(|row| row.number);
    }

    fn type_filter(&mut self, key: Key) {
        let mut text = self.filter.clone();
        match key {
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.set_filter(String::new());
            }
            Key::Backspace => {
                text.pop();
                self.set_filter(text);
            }
            Key::Char(c) if text.len() < MAX_FILTER => {
                text.push(c);
                self.set_filter(text);
            }
            _ => {}
        }
    }
}

fn next<T: Copy + PartialEq>(all: &[T], now: T, by: usize) -> T {
    let at = all.iter().position(|value| *value == now).unwrap_or(0);
    all[(at + by) % all.len()]
}
