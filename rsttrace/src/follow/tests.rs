//! Real files, renamed and cut under the reader's eyes.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use jiff::Timestamp;

use super::*;
use crate::model::{Fault, LogTime, Stamp};

/// Every line that begins with a number is about an end.
#[derive(Debug)]
struct Numbers;

impl LogFormat for Numbers {
    fn parse(&self, line: &[u8]) -> Parsed {
        let raw = String::from_utf8_lossy(line).into_owned();
        if raw.parse::<u64>().is_err() {
            return Parsed::Malformed;
        }
        let time = LogTime { stamp: Stamp::Absolute(Timestamp::now()), precision: Duration::from_secs(1) };
        Parsed::About(Box::new(LogLine::new(time, Fault::EndOfFile, raw)))
    }
}

struct Scene {
    path: PathBuf,
    logs: Logs,
    read: Vec<String>,
}

impl Scene {
    /// `before`: what the log has already; `None`: it is not there.
    fn new(before: Option<&str>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rsttrace-follow-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        let path = path.join("error.log");
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
        let doors = Doors::new(vec![path.clone()]).unwrap();
        let inotify = Arc::clone(&doors.inotify);
        let (logs, missing) = Logs::open(vec![(Place::File(0), Box::new(Numbers))], inotify, Box::new(doors), 0);
        assert_eq!(missing.len(), usize::from(before.is_none()));
        Self { path, logs, read: Vec::new() }
    }

    /// A file that its writer has open.
    fn writer(&self) -> File {
        File::options().append(true).create(true).open(&self.path).unwrap()
    }

    fn poll(&mut self) -> Counts {
        let read = &mut self.read;
        self.logs.poll(|| 0, 0, |_, line, _| read.push(line.raw))
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.read.len() < lines.len() && Instant::now() < deadline {
            self.poll();
            std::thread::yield_now();
        }
        self.poll();
        assert_eq!(self.read, lines);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.path.parent().unwrap());
    }
}

#[test]
fn what_is_appended_is_read_and_nothing_from_before() {
    let mut scene = Scene::new(Some("1\n2\n"));
    let mut log = scene.writer();
    log.write_all(b"3\nnonsense\n4").unwrap();
    scene.expect(&["3"]);
    log.write_all(b"4\n").unwrap();
    scene.expect(&["3", "44"]);
    assert_eq!(scene.poll(), Counts { lines: 3, malformed: 1, too_long: 0 });
}

#[test]
fn a_line_that_was_half_written_at_the_start_is_no_line() {
    let mut scene = Scene::new(Some("1\n2"));
    scene.writer().write_all(b"3\n4\n").unwrap();
    scene.expect(&["4"]);
}

#[test]
fn a_rotated_file_is_read_until_its_writer_has_left_it() {
    let mut scene = Scene::new(Some(""));
    let mut old = scene.writer();
    old.write_all(b"1\n").unwrap();
    scene.expect(&["1"]);
    fs::rename(&scene.path, scene.path.with_extension("1")).unwrap();
    // Nothing has told the writer yet.
    old.write_all(b"2\n").unwrap();
    scene.expect(&["1", "2"]);
    let mut new = scene.writer();
    new.write_all(b"3\n").unwrap();
    scene.expect(&["1", "2", "3"]);
    old.write_all(b"4\n").unwrap();
    new.write_all(b"5\n").unwrap();
    scene.expect(&["1", "2", "3", "4", "5"]);
    assert!(!scene.logs.is_searching());
}

#[test]
fn a_file_that_is_removed_and_made_again_is_read_from_its_beginning() {
    let mut scene = Scene::new(Some("0\n"));
    let mut old = scene.writer();
    fs::remove_file(&scene.path).unwrap();
    old.write_all(b"1\n").unwrap();
    scene.expect(&["1"]);
    scene.writer().write_all(b"2\n3\n").unwrap();
    scene.expect(&["1", "2", "3"]);
}

#[test]
fn a_truncated_file_is_read_from_its_beginning() {
    let mut scene = Scene::new(Some("0\n"));
    let mut log = scene.writer();
    log.write_all(b"1\n2\n").unwrap();
    scene.expect(&["1", "2"]);
    log.set_len(0).unwrap();
    log.write_all(b"3\n").unwrap();
    scene.expect(&["1", "2", "3"]);
}

#[test]
fn a_file_that_is_not_there_yet_is_waited_for() {
    let mut scene = Scene::new(None);
    assert!(scene.logs.is_searching());
    scene.poll();
    scene.writer().write_all(b"1\n").unwrap();
    scene.expect(&["1"]);
    assert!(!scene.logs.is_searching());
}

#[test]
fn what_is_no_file_is_refused_with_a_way_out() {
    let directory = look_at(&std::env::temp_dir()).unwrap_err();
    assert_eq!(directory.to_string(), "it is a directory and no file");
    let device = look_at(std::path::Path::new("/dev/null")).unwrap_err();
    assert!(device.to_string().contains("--error-log - <"), "{device}");
}
