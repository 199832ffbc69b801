use std::net::IpAddr;

use jiff::{Timestamp, tz::TimeZone};
use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json};

use super::{
    keys::Key,
    model::{BUCKETS, By, MAX_ROWS, Model, Of, Pane, Sort},
    view::View,
};
use crate::{
    input::json::{Saved, read},
    model::{Cause, Harm},
    output::text::{Appearance, TimeFormat},
};

const RECORD: &str = include_str!("../../tests/corpus/record.json");
const LATER: u64 = 100;

/// The record of the corpus, with other values.
fn record(second: u64, changes: &[(&str, Value)]) -> Saved {
    let mut value: Value = serde_json::from_str(RECORD).unwrap();
    value["time"] = format!("2026-11-26T15:{:02}:{:02}.123456789Z", 47 + second / 60, second % 60).into();
    for (pointer, to) in changes {
        *value.pointer_mut(pointer).unwrap() = to.clone();
    }
    read(value.to_string().as_bytes()).unwrap()
}

fn of(second: u64, cause: &str, harm: &str, comm: &str, remote: &str) -> Saved {
    let lost = if harm == "lost" { 1_234 } else { 0 };
    record(
        second,
        &[
            ("/cause", cause.into()),
            ("/harm", harm.into()),
            ("/lost_bytes", lost.into()),
            ("/owner/comm", comm.into()),
            ("/remote/addr", remote.into()),
        ],
    )
}

fn summary(lost: u64) -> Saved {
    let line = json!({
        "schema": 1, "record": "summary", "started": "2026-11-26T15:47:00Z", "stopped": "2026-11-26T15:49:00Z", "orderly": 3120,
        "lost": { "total": lost, "records": lost / 4, "by_hook": {} }, "undecodable": 0, "evicted": 0, "filtered": 6,
    });
    read(line.to_string().as_bytes()).unwrap()
}

fn start() -> Saved {
    let line = json!({
        "schema": 1, "record": "start", "time": "2026-11-26T15:47:00Z", "version": "0.1.0", "kernel": "6.18.0", "host": "web-1",
        "filters": ["pid=nginx"],
    });
    read(line.to_string().as_bytes()).unwrap()
}

/// A run with something of everything.
fn model() -> Model {
    let mut model = Model::new(None);
    model.take(start(), LATER);
    for n in 0..90 {
        let second = LATER + n;
        if n % 3 == 0 {
            model.take(of(n, "peer-abort-after-response", "none", "nginx", "10.255.252.31"), second);
        }
        if n % 7 == 0 {
            model.take(of(n, "keepalive-race", "possible", "nginx", "10.36.0.9"), second);
        }
        if n > 60 {
            model.take(of(n, "close-with-unread-data", "lost", "php-fpm", "2001:db8:85a3:8d3:1319:8a2e:370:7348"), second);
        }
        if n == 80 {
            model.take(of(n, "unknown", "unknown", "a\u{1b}[2Jb\\", "192.0.2.7"), second);
        }
    }
    model.take(summary(0), LATER + 90);
    model
}

fn look(color: bool, unicode: bool) -> Appearance {
    Appearance { time: TimeFormat::Zoned(TimeZone::UTC), color, unicode, cjk: false, timeline: false, silence: false }
}

fn screen(model: &mut Model, look: Appearance, width: u16, height: u16) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let mut view = View::new(look, true);
    terminal.draw(|frame| view.draw(frame, model)).unwrap();
    terminal.backend().clone()
}

/// What is on the screen, a line each, without trailing spaces.
fn text(model: &mut Model, look: Appearance, width: u16, height: u16) -> String {
    let backend = screen(model, look, width, height);
    let rows = backend.buffer().content.chunks(usize::from(width));
    let lines = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn press(model: &mut Model, keys: &[Key]) {
    keys.iter().for_each(|key| assert!(model.press(*key), "{key:?} ends it"));
}

fn write(model: &mut Model, words: &str) {
    words.chars().for_each(|c| press(model, &[Key::Char(c)]));
}

// ---- what is counted ----

#[test]
fn no_text_of_a_kept_record_is_long() {
    let long = Value::from("x".repeat(100_000));
    let lines: Value = vec![long.clone(); 5].into();
    let log = ["side", "client", "upstream", "request", "host", "phrase", "line"].map(|key| (key.to_owned(), long.clone()));
    let mut log = Value::Object(log.into_iter().collect());
    log["further"] = lines.clone();
    let mut changes = vec![
        ("/log".to_owned(), log),
        ("/log_candidates".to_owned(), lines),
        ("/owner/container".to_owned(), json!({ "id": long, "runtime": long })),
        ("/evidence/timer".to_owned(), json!({ "seconds": 1, "name": long })),
    ];
    // Every text, and whatever may be one.
    let mut inner = vec![(String::new(), serde_json::from_str::<Value>(RECORD).unwrap())];
    while let Some((pointer, value)) = inner.pop() {
        match value {
            Value::Object(keys) => inner.extend(keys.into_iter().map(|(key, value)| (format!("{pointer}/{key}"), value))),
            Value::String(_) | Value::Null => changes.push((pointer, long.clone())),
            _ => {}
        }
    }
    let mut taken = 0;
    for (pointer, to) in changes {
        let mut value: Value = serde_json::from_str(RECORD).unwrap();
        *value.pointer_mut(&pointer).unwrap() = to;
        let Ok(saved) = read(value.to_string().as_bytes()) else { continue };
        let mut model = Model::new(None);
        model.take(saved, LATER);
        let Some(row) = model.selected_row() else { continue };
        let kept = format!("{:?}", row.judged);
        assert!(kept.len() < 30_000, "{pointer}: {}", kept.len());
        taken += 1;
    }
    assert!(taken > 15, "{taken}");
}

#[test]
fn every_table_adds_up_to_all_records() {
    let model = model();
    let part = model.shown().shown();
    assert_eq!(part.total.ends, 30 + 13 + 29 + 1);
    assert_eq!((part.total.of(Harm::Lost), part.total.of(Harm::Possible), part.total.of(Harm::Unknown)), (29, 13, 1));
    assert_eq!(part.total.lost_bytes, 29 * 1_234);
    for by in By::ALL {
        let lines = part.lines(by, Sort::Ends, BUCKETS);
        assert_eq!(lines.iter().map(|line| line.group.ends).sum::<u64>(), part.total.ends, "{by:?}");
        assert_eq!(lines.iter().map(|line| line.group.lost_bytes).sum::<u64>(), part.total.lost_bytes, "{by:?}");
    }
}

#[test]
fn the_order_is_the_one_that_was_asked_for() {
    let mut model = model();
    let mut first = |sort| {
        model.sort = sort;
        model.shown().shown().lines(By::Cause, sort, BUCKETS).iter().map(|line| line.of.unwrap()).collect::<Vec<_>>()[0]
    };
    assert_eq!(first(Sort::Ends), Of::Cause(Cause::PeerAbortAfterResponse));
    assert_eq!(first(Sort::Harm), Of::Cause(Cause::CloseWithUnreadData));
    assert_eq!(first(Sort::Bytes), Of::Cause(Cause::CloseWithUnreadData));
    assert_eq!(first(Sort::Recent), Of::Cause(Cause::CloseWithUnreadData));
}

#[test]
fn a_flood_is_counted_and_only_its_end_is_kept() {
    let mut model = Model::new(None);
    let all = MAX_ROWS + 5_000;
    for n in 0..all {
        let remote = IpAddr::from([10, 0, (n >> 8) as u8, n as u8]).to_string();
        model.take(of(0, "refused", "none", "curl", &remote), LATER);
    }
    let part = model.shown().shown();
    assert_eq!((part.total.ends, part.rows.len()), (all as u64, MAX_ROWS));
    assert_eq!(part.rows[0].number, 5_000, "the oldest that is kept");
    let lines = part.lines(By::Remote, Sort::Ends, BUCKETS);
    assert_eq!(lines.len(), crate::rollup::MAX_GROUPS + 1);
    assert_eq!(lines.last().map(|line| (line.of, line.group.ends)), Some((None, (all - crate::rollup::MAX_GROUPS) as u64)));
    assert_eq!(part.total.ends, lines.iter().map(|line| line.group.ends).sum::<u64>());
}

// ---- the time that is shown ----

fn series(model: &Model) -> Vec<(usize, u32)> {
    let series = model.shown().shown().series;
    series.0.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect()
}

#[test]
fn live_the_last_minute_is_shown() {
    let mut model = Model::new(None);
    assert!(!model.moves_by_itself(), "nothing there that could move");
    model.take(record(0, &[]), LATER);
    model.take(record(0, &[]), LATER + 1);
    assert_eq!(series(&model), [(BUCKETS - 2, 1), (BUCKETS - 1, 1)]);
    assert!(model.tick(LATER + 11));
    assert_eq!(series(&model), [(BUCKETS - 12, 1), (BUCKETS - 11, 1)]);
    model.take(record(0, &[]), LATER + 11);
    model.tick(LATER + 60);
    assert_eq!(series(&model), [(0, 1), (10, 1)], "the oldest has gone");
    model.tick(u64::MAX - 1);
    assert_eq!(series(&model), []);
    assert!(!model.moves_by_itself(), "at rest nobody wakes up");
    assert_eq!(model.shown().all.total.ends, 3);
}

#[test]
fn of_a_file_all_of_it_is_shown() {
    let mut model = Model::new(Some("run.jsonl".to_owned()));
    for second in 0..180 {
        model.take(record(second, &[]), 0);
    }
    assert_eq!(model.shown().bucket_seconds(), 4);
    assert_eq!(series(&model), (0..45).map(|at| (at, 4)).collect::<Vec<_>>());
    assert!(!model.moves_by_itself());
    // A stamp that lies is no reason to count forever.
    model.take(record(0, &[("/time", "2500-01-01T00:00:00Z".into())]), 0);
    model.take(record(0, &[("/time", "1970-01-01T00:00:00Z".into())]), 0);
    assert_eq!(model.shown().shown().series.0.iter().sum::<u32>(), 182);
}

// ---- the filter ----

#[test]
fn a_word_is_a_part_and_a_number_is_whole() {
    let mut model = Model::new(None);
    model.take(of(0, "keepalive-race", "possible", "nginx", "10.0.0.1"), LATER);
    model.take(of(1, "refused", "none", "Curl", "10.0.0.12"), LATER);
    model.take(of(2, "close-with-unread-data", "lost", "nginx", "2001:db8::1"), LATER);
    let mut matching = |words: &str| {
        model.set_filter(words.to_owned());
        model.shown().shown().total.ends
    };
    for (words, n) in [
        ("", 3),
        ("race", 1),
        ("NGINX", 2),
        ("curl", 1),
        ("nginx lost", 1),
        ("lost", 1),
        ("maybe", 1),
        ("possible", 1),
        ("ok", 1),
        ("10.0.0.1", 2),
        ("10.0.0.12", 1),
        ("2001:db8::", 1),
        ("9000", 3),
        (":9000", 3),
        ("900", 0),
        ("60972", 3),
        ("29339", 3),
        (":29339", 0),
        ("reset-received", 3),
        ("nobody-has-this", 0),
    ] {
        assert_eq!(matching(words), n, "{words:?}");
    }
}

#[test]
fn what_comes_later_is_filtered_too_and_nothing_is_lost_by_it() {
    let mut model = model();
    let all = model.shown().all.total.ends;
    model.set_filter("php".to_owned());
    assert_eq!(model.shown().shown().total.ends, 29);
    // What is older than the sparklines leaves no mark on them.
    model.take(of(90, "close-with-unread-data", "lost", "php-fpm", "10.0.0.1"), LATER + 95);
    model.take(of(90, "refused", "none", "curl", "10.0.0.1"), LATER + 95);
    assert_eq!(model.shown().shown().total.ends, 30);
    assert_eq!(model.shown().all.total.ends, all + 2);
    model.set_filter(String::new());
    assert_eq!(model.shown().shown().total.ends, all + 2);
}

// ---- the keys ----

#[test]
fn the_newest_is_followed_and_any_other_stays() {
    let mut model = model();
    let number = |model: &Model| model.selected_row().unwrap().number;
    let newest = number(&model);
    model.take(record(91, &[]), LATER + 91);
    assert_eq!(number(&model), newest + 1);
    press(&mut model, &[Key::Down, Key::Char('j')]);
    assert_eq!(number(&model), newest - 1);
    model.take(record(92, &[]), LATER + 92);
    assert_eq!((number(&model), model.place()), (newest - 1, 3));
    press(&mut model, &[Key::Char('G')]);
    assert_eq!(number(&model), 0);
    press(&mut model, &[Key::Down, Key::PageDown]);
    assert_eq!(number(&model), 0);
    press(&mut model, &[Key::Home]);
    assert_eq!((number(&model), model.selected), (newest + 2, None));
}

#[test]
fn what_is_held_stays_and_counting_goes_on() {
    let mut model = model();
    let held = text(&mut model, look(false, true), 80, 24);
    press(&mut model, &[Key::Char('p')]);
    model.take(of(91, "refused", "none", "curl", "10.0.0.1"), LATER + 91);
    model.tick(LATER + 120);
    let lines = |text: &str| text.lines().skip(1).take(22).map(str::to_owned).collect::<Vec<_>>();
    let paused = text(&mut model, look(false, true), 80, 24);
    assert_eq!(lines(&paused), lines(&held));
    assert!(paused.lines().next().unwrap().ends_with("PAUSED, 1 more since"), "{paused}");
    assert!(!model.moves_by_itself());
    press(&mut model, &[Key::Char(' ')]);
    assert!(text(&mut model, look(false, true), 80, 24).contains(" 74 ends "));
}

#[test]
fn a_key_does_what_the_footer_says() {
    let mut model = model();
    press(&mut model, &[Key::Tab]);
    assert_eq!(model.by, By::Process);
    press(&mut model, &[Key::BackTab, Key::BackTab]);
    assert_eq!(model.by, By::Port);
    press(&mut model, &[Key::Char('3')]);
    assert_eq!(model.by, By::Remote);
    press(&mut model, &[Key::Char('s')]);
    assert_eq!(model.sort, Sort::Ends);

    // What is typed is text, also where it is a key elsewhere.
    press(&mut model, &[Key::Char('f')]);
    write(&mut model, "pq ");
    press(&mut model, &[Key::Backspace, Key::Backspace]);
    assert_eq!((model.filter.as_str(), model.typing), ("p", true));
    press(&mut model, &[Key::Enter]);
    assert_eq!((model.filter.as_str(), model.typing), ("p", false));
    press(&mut model, &[Key::Char('/'), Key::Escape]);
    assert_eq!((model.filter.as_str(), model.typing), ("", false));

    press(&mut model, &[Key::Enter]);
    assert_eq!(model.pane, Pane::Details);
    let newest = model.selected;
    press(&mut model, &[Key::Left]);
    assert_ne!(model.selected, newest);
    press(&mut model, &[Key::Right, Key::Right]);
    assert_eq!(model.selected, newest);
    press(&mut model, &[Key::Char('q'), Key::Char('?'), Key::Char('x')]);
    assert_eq!(model.pane, Pane::Tables);

    for key in [Key::Char('q'), Key::Escape, Key::Interrupt] {
        assert!(!model.press(key), "{key:?}");
    }
    press(&mut model, &[Key::Char('f')]);
    assert!(!model.press(Key::Interrupt), "also while typing");
}

#[test]
fn the_end_of_the_details_can_be_reached_and_no_more() {
    let mut model = model();
    press(&mut model, &[Key::Enter, Key::End]);
    let last = text(&mut model, look(false, true), 80, 24);
    press(&mut model, &[Key::Down, Key::PageDown]);
    assert_eq!(text(&mut model, look(false, true), 80, 24), last);
    let page = crate::explain::page(Cause::CloseWithUnreadData);
    assert!(last.contains(page.lines().last().unwrap().trim_end()), "{last}");
}

// ---- what is seen ----

#[test]
fn the_screen_at_80_columns() {
    insta::assert_snapshot!(text(&mut model(), look(false, true), 80, 24));
}

#[test]
fn the_screen_at_160_columns() {
    insta::assert_snapshot!(text(&mut model(), look(false, true), 160, 50));
}

#[test]
fn the_screen_in_ascii() {
    let mut model = model();
    press(&mut model, &[Key::Char('3')]);
    let screen = text(&mut model, look(false, false), 80, 24);
    assert!(screen.is_ascii(), "{screen}");
    insta::assert_snapshot!(screen);
}

#[test]
fn the_details_at_80_columns() {
    let mut model = model();
    press(&mut model, &[Key::Enter]);
    insta::assert_snapshot!(text(&mut model, look(false, true), 80, 24));
}

#[test]
fn the_help_at_80_columns() {
    let mut model = model();
    press(&mut model, &[Key::Char('?')]);
    insta::assert_snapshot!(text(&mut model, look(false, true), 80, 24));
    // Arrows are those of the screen.
    assert!(text(&mut model, look(false, false), 80, 24).contains("-> from ours"));
}

#[test]
fn a_filter_losses_and_a_warning_at_80_columns() {
    let mut model = model();
    model.take(summary(1_234), LATER);
    model.origin.warning = Some("1,234 events lost: the ring buffer was full (--buffer)".to_owned());
    press(&mut model, &[Key::Char('f')]);
    write(&mut model, "nginx maybe");
    insta::assert_snapshot!(text(&mut model, look(false, true), 80, 24));
}

#[test]
fn colours_are_for_harm_and_can_be_left_out() {
    use ratatui::style::Color;
    let colors = |color| {
        let backend = screen(&mut model(), look(color, true), 80, 24);
        backend.buffer().content.iter().map(|cell| cell.fg).filter(|color| *color != Color::Reset).collect::<Vec<_>>()
    };
    assert!(colors(true).contains(&Color::Red) && colors(true).contains(&Color::Yellow));
    assert_eq!(colors(false), []);
    // The words are the same.
    assert_eq!(text(&mut model(), look(true, true), 80, 24), text(&mut model(), look(false, true), 80, 24));
}

#[test]
fn a_file_without_a_summary_says_so() {
    let mut model = Model::new(Some("run.jsonl".to_owned()));
    model.take(record(0, &[]), 0);
    model.origin.ended = Some("all read".to_owned());
    let screen = text(&mut model, look(false, true), 80, 24);
    assert!(screen.contains("no summary: the tracer's losses are not known"), "{screen}");
    assert!(screen.lines().next().unwrap().ends_with("all read"), "{screen}");
}

#[test]
fn losses_of_all_runs_in_a_file_are_told() {
    let mut model = Model::new(Some("runs.jsonl".to_owned()));
    let sums = |lost: u64| {
        let line = format!(
            r#"{{"schema":1,"record":"summary","started":"2026-11-26T10:00:00Z","stopped":"2026-11-26T10:00:09Z","orderly":4,"lost":{{"total":{lost},"by_hook":{{}}}},"undecodable":0,"evicted":0,"filtered":0}}"#
        );
        read(line.as_bytes()).unwrap()
    };
    [start(), sums(9_000), sums(10_000), start(), record(0, &[]), sums(0)].into_iter().for_each(|saved| model.take(saved, 0));
    model.origin.ended = Some("all read".to_owned());
    let screen = text(&mut model, look(false, true), 120, 30);
    assert!(screen.contains("tracer lost 10,000 events") && screen.contains("in order 8"), "{screen}");
    // One that was killed.
    model.take(start(), 0);
    let screen = text(&mut model, look(false, true), 160, 30);
    assert!(screen.contains("the tracer's losses are not known  tracer lost 10,000 events"), "{screen}");
}

#[test]
fn any_size_will_do() {
    let mut model = model();
    for keys in [&[][..], &[Key::End], &[Key::Enter], &[Key::Char('q'), Key::Char('?')]] {
        press(&mut model, keys);
        for (width, height) in [(0, 0), (1, 1), (39, 50), (40, 12), (41, 13), (79, 24), (100, 14), (119, 25), (121, 60), (300, 100)] {
            let _ = screen(&mut model, look(true, width % 2 == 0), width, height);
        }
    }
}

proptest! {
    #[test]
    fn no_name_does_harm(comm: String, words: String, host: String, file: String, warning: String, filter: String) {
        let mut model = Model::new(Some(file));
        if let Saved::Start(mut start) = start() {
            start.host = host;
            model.take(Saved::Start(start), 0);
        }
        model.origin.warning = Some(warning);
        if let Saved::Teardown(mut judged) = record(0, &[("/owner/comm", comm.into())]) {
            judged.verdict.words = words;
            model.take(Saved::Teardown(judged), 0);
        }
        for keys in [&[][..], &[Key::Char('2')], &[Key::Enter]] {
            press(&mut model, keys);
            for unicode in [true, false] {
                let screen = text(&mut model, look(false, unicode), 100, 30);
                prop_assert!(!screen.chars().any(|c| c.is_control() && c != '\n'), "{screen:?}");
                prop_assert!(unicode || screen.is_ascii(), "{screen:?}");
            }
        }
        model.set_filter(filter);
        let _ = text(&mut model, look(false, false), 80, 24);
    }
}

#[test]
fn the_time_is_as_asked_for() {
    let mut model = model();
    let relative = TimeFormat::Relative("2026-11-26T15:47:00Z".parse::<Timestamp>().unwrap());
    let screen = text(&mut model, Appearance { time: relative, ..look(false, true) }, 80, 24);
    assert!(screen.contains(">      89 LOST"), "{screen}");
}
