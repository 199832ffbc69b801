//! The live screen on a pseudo-terminal: its numbers are those of the JSON records, and the terminal is given back,
//! whatever ends it.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use rsttrace_tests::{NetNs, Tracer, binary, peers::abort, require_root, wait_until};
use serde_json::Value;

/// A program on a terminal of its own, and what a person would see there.
struct Screen {
    child: Child,
    keyboard: File,
    /// Kept open, so that the terminal's settings outlive the program.
    terminal: OwnedFd,
    before: Settings,
    seen: Arc<Mutex<vt100::Parser>>,
}

/// Of the terminal: input, output, control, local, special characters.
#[derive(Debug, PartialEq, Eq)]
struct Settings(u32, u32, u32, u32, [u8; 32]);

impl Settings {
    fn of(terminal: &OwnedFd) -> Self {
        // SAFETY: plain data, for which zeroes are valid.
        let mut t: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: a valid descriptor; `t` is ours.
        assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut t) }, 0, "tcgetattr");
        Self(t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_cc)
    }
}

fn size(rows: u16, columns: u16) -> libc::winsize {
    libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Screen {
    /// Starts a command on a terminal.
    fn start(command: &mut Command, rows: u16, columns: u16) -> Self {
        let (mut ours, mut theirs) = (-1, -1);
        // SAFETY: the kernel writes two descriptors, and reads the size.
        let made = unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size(rows, columns)) };
        assert_eq!(made, 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: both are new, and nobody else's.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let before = Settings::of(&theirs);
        let end = || Stdio::from(theirs.try_clone().expect("dup"));
        if command.get_envs().all(|(name, _)| name != "STDIN") {
            command.stdin(end());
        }
        command.stdout(end()).stderr(end()).env("TERM", "screen-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        let number = theirs.as_raw_fd();
        // SAFETY: these calls are async-signal-safe, and the descriptor is open until the exec.
        unsafe {
            command.pre_exec(move || {
                if libc::setsid() < 0 || libc::ioctl(number, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let seen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 200)));
        let mut output = File::from(ours.try_clone().expect("dup"));
        let parser = Arc::clone(&seen);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut chunk) {
                parser.lock().unwrap_or_else(PoisonError::into_inner).process(&chunk[..n]);
            }
        });
        Self { child, keyboard: ours.into(), terminal: theirs, before, seen }
    }

    /// `rsttrace top ARGS` at 80 columns and 24 lines.
    fn top(args: &[&str]) -> Self {
        Self::start(Command::new(binary()).arg("top").args(args), 24, 80)
    }

    fn with<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.seen.lock().unwrap_or_else(PoisonError::into_inner).screen())
    }

    fn text(&self) -> String {
        self.with(vt100::Screen::contents)
    }

    #[track_caller]
    fn wait(&self, what: &str, mut condition: impl FnMut(&str) -> bool) {
        let mut last = String::new();
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, || {
                last = self.text();
                condition(&last)
            });
        }));
        assert!(waited.is_ok(), "{what} is not seen:\n{last}");
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a keyboard");
    }

    fn resize(&mut self, rows: u16, columns: u16) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).screen_mut().set_size(rows, columns);
        // SAFETY: a valid descriptor; the kernel reads the size.
        assert_eq!(unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size(rows, columns)) }, 0, "TIOCSWINSZ");
    }

    fn signal(&self, number: libc::c_int) {
        // SAFETY: no memory involved; the child is ours and has not been reaped.
        unsafe { libc::kill(self.child.id() as libc::pid_t, number) };
    }

    /// The tracer behind the screen.
    fn tracer(&self) -> libc::pid_t {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())).expect("/proc");
        children.split_whitespace().next().expect("a child").parse().expect("a number")
    }

    /// Waits for the end, and for these words on the ordinary screen; the terminal must be as it was.
    #[track_caller]
    fn gone(mut self, words: &str) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("it has ended", || {
            status = self.child.try_wait().expect("the child");
            status.is_some()
        });
        // What it wrote last may still be on its way.
        let ordinary = || self.with(|screen| !screen.alternate_screen() && !screen.hide_cursor());
        self.wait(&format!("{words:?} on the ordinary screen"), |text| ordinary() && text.contains(words));
        assert_eq!(Settings::of(&self.terminal), self.before, "the terminal's settings");
        (status.expect("a status"), self.text())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn v4(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A connection whose server aborts with a request unanswered.
fn aborted(address: SocketAddr) {
    let listener = TcpListener::bind(address).expect("a listener");
    let mut client = TcpStream::connect(address).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    client.write_all(b"request").expect("send");
    server.read_exact(&mut [0; 7]).expect("receive");
    abort(server);
    assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
}

/// One whose server closes with a request unread: bytes are lost.
fn unread(address: SocketAddr) {
    let listener = TcpListener::bind(address).expect("a listener");
    let mut client = TcpStream::connect(address).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    client.write_all(&[b'x'; 23]).expect("send");
    server.peek(&mut [0]).expect("it has arrived");
    drop(server);
    assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
}

fn refused(address: SocketAddr) {
    assert_eq!(TcpStream::connect(address).expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
}

/// The number before or behind a word of the totals.
fn totals(text: &str) -> BTreeMap<&'static str, u64> {
    let line = text.lines().nth(1).unwrap_or_default();
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |word: &str| word.replace(',', "").parse::<u64>().ok();
    let mut all = BTreeMap::from([("ends", words.first().and_then(|word| number(word)).unwrap_or(u64::MAX))]);
    for (word, harm) in [("LOST", "lost"), ("maybe", "possible"), ("?", "unknown"), ("ok", "none")] {
        let at = words.iter().position(|found| *found == word);
        all.extend(at.and_then(|at| words.get(at + 1)).and_then(|word| number(word)).map(|n| (harm, n)));
    }
    all
}

/// Name and ends of each row of the table.
fn table(text: &str) -> BTreeMap<String, u64> {
    let rows = text.lines().skip(5).take_while(|line| !line.contains("newest"));
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.replace(',', "").parse().ok()?))
    };
    rows.filter_map(row).collect()
}

fn grouped<'a>(records: &'a [Value], key: impl Fn(&'a Value) -> String) -> BTreeMap<String, u64> {
    records.iter().fold(BTreeMap::new(), |mut all, record| {
        *all.entry(key(record)).or_default() += 1;
        all
    })
}

#[test]
fn the_screen_says_what_the_json_records_say() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    let tracer = Tracer::start(&["--netns", &inode]);
    let mut screen = Screen::top(&["--netns", &inode, "--time", "utc"]);
    screen.wait("an empty screen", |text| text.contains("no record yet"));
    netns.run_in(|| {
        (0..7).for_each(|_| aborted(v4(8201)));
        (0..5).for_each(|_| unread(v4(8202)));
        (0..3).for_each(|_| refused(v4(8203)));
    });
    let records = tracer.wait_n("both ends of each", 30, |record| record["record"] == "teardown");
    screen.wait("all of them", |text| totals(text)["ends"] == 30);

    let text = screen.text();
    let mut expected = BTreeMap::from([("ends", 30), ("lost", 0), ("possible", 0), ("unknown", 0), ("none", 0)]);
    for record in &records {
        let harm = record["harm"].as_str().expect("a harm");
        *expected.iter_mut().find(|(name, _)| **name == harm).expect("a known harm").1 += 1;
    }
    assert_eq!(totals(&text), expected, "{text}");
    let lost: u64 = records.iter().map(|record| record["lost_bytes"].as_u64().expect("a number")).sum();
    assert!(lost > 0 && text.contains(&format!(" lost {lost} B ")), "{lost} B are lost:\n{text}");
    assert_eq!(table(&text), grouped(&records, |record| record["cause"].as_str().expect("a cause").to_owned()), "{text}");

    // Tab goes through the tables.
    screen.press("\t\t\t");
    screen.wait("the ports", |text| text.contains("[service port]"));
    let port = |record: &Value| {
        let end = if record["role"] == "client" { "remote" } else { "local" };
        format!(":{}", record[end]["port"])
    };
    assert_eq!(table(&screen.text()), grouped(&records, port), "{}", screen.text());
    screen.press("3");
    screen.wait("the addresses", |text| text.contains("[remote address]"));
    let remote = |record: &Value| record["remote"]["addr"].as_str().expect("an address").to_owned();
    assert_eq!(table(&screen.text()), grouped(&records, remote), "{}", screen.text());

    // A filter counts the same records again.
    screen.press("f:8202 lost\r");
    let matching = |record: &&Value| record["harm"] == "lost" && (record["local"]["port"] == 8202 || record["remote"]["port"] == 8202);
    let matching = records.iter().filter(matching).count() as u64;
    screen.wait("what matches", |text| totals(text)["ends"] == matching && text.contains(&format!("{matching} of 30 match")));

    // The tracer's own losses are told while it runs.
    screen.wait("no losses", |text| text.contains("tracer lost 0 events"));

    // Details have the sentence of the record and the page of its cause; how long the record is depends on names.
    screen.resize(60, 80);
    screen.press("\r");
    let unread = records.iter().rfind(|record| record["harm"] == "lost").expect("a record");
    screen
        .wait("the cause", |text| text.contains("details") && text.contains(&format!("# {}", unread["cause"].as_str().expect("a cause"))));
    screen.press("qq");
    // The summary of the run is what stays.
    let (status, after) = screen.gone("30 sockets ended");
    assert!(status.success(), "{status}: {after}");
    tracer.stop();
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    require_root!();
    let netns = NetNs::new();
    let inode = netns.inode().to_string();
    type End = fn(&mut Screen);
    let ends: [(&str, End); 6] = [
        ("q", |screen| screen.press("q")),
        ("Esc", |screen| screen.press("\x1b")),
        ("Ctrl-C", |screen| screen.press("\x03")),
        ("SIGTERM", |screen| screen.signal(libc::SIGTERM)),
        ("SIGINT", |screen| screen.signal(libc::SIGINT)),
        ("SIGHUP", |screen| screen.signal(libc::SIGHUP)),
    ];
    for (name, end) in ends {
        let mut screen = Screen::top(&["--netns", &inode]);
        screen.wait("the screen", |text| text.contains("no record yet"));
        assert!(screen.with(vt100::Screen::alternate_screen), "{name}");
        assert_ne!(Settings::of(&screen.terminal), screen.before, "{name}: raw");
        end(&mut screen);
        let (status, after) = screen.gone("tracer lost 0 events");
        assert!(status.success(), "{name}: {status}");
        assert!(!after.contains("no record yet"), "{name}: {after}");
    }
}

#[test]
fn a_tracer_that_fails_is_told_where_it_stays() {
    require_root!();
    // Before there is anything to see.
    let (status, after) = Screen::top(&["--without", "tcp_receive_reset"]).gone("required");
    assert_eq!(status.code(), Some(3), "{after}");
    assert!(after.contains("tcp_receive_reset"), "{after}");
    // And later.
    let screen = Screen::top(&[]);
    screen.wait("the screen", |text| text.contains("newest"));
    // SAFETY: no memory involved; it is the child of our child, which has not reaped it.
    unsafe { libc::kill(screen.tracer(), libc::SIGKILL) };
    // What it said is there.
    let (status, after) = screen.gone("rsttrace: ready");
    assert_eq!(status.code(), Some(128 + libc::SIGKILL), "{after}");
}

#[test]
fn a_command_that_fails_leaves_the_screen_where_it_is() {
    require_root!();
    let mut screen = Screen::top(&["--", "sh", "-c", "exit 3"]);
    screen.wait("its status", |text| text.contains("newest") && text.contains("sh exited with status 3"));
    screen.press("q");
    let (status, after) = screen.gone("sh exited with status 3");
    assert_eq!(status.code(), Some(3), "{after}");
}

#[test]
fn what_shows_the_records_has_no_rights() {
    require_root!();
    let screen = Screen::top(&[]);
    screen.wait("the screen", |text| text.contains("newest"));
    let status = fs::read_to_string(format!("/proc/{}/status", screen.child.id())).expect("/proc");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

/// Not a test of its own: what a panic does to a terminal, run by the next one.
#[test]
fn a_screen_that_panics() {
    if env::var_os("RSTTRACE_TEST_PANICS").is_some() {
        let _screen = rsttrace::top::Screen::enter().expect("a terminal");
        thread::spawn(|| panic!("of another thread")).join().expect("it does not come back");
    }
}

#[test]
fn a_panic_gives_the_terminal_back_and_says_why() {
    let mut command = Command::new(env::current_exe().expect("this test"));
    command.args(["--exact", "a_screen_that_panics", "--nocapture"]).env("RSTTRACE_TEST_PANICS", "1");
    let (status, after) = Screen::start(&mut command, 24, 80).gone("of another thread");
    assert_eq!(status.code(), Some(101), "{after}");
}

#[test]
fn it_fills_whatever_the_terminal_is() {
    let file = saved(3);
    let mut screen = Screen::top(&[file.to_str().expect("UTF-8"), "--time", "utc"]);
    screen.wait("all records", |text| text.contains("3 ends") && text.contains("all read"));
    screen.resize(50, 160);
    screen.wait("more columns", |text| text.contains("unconf.") && text.lines().count() == 50);
    screen.resize(24, 80);
    screen.wait("fewer columns", |text| !text.contains("unconf.") && text.contains("? help"));
    screen.press("q");
    let (status, _) = screen.gone("");
    let _ = fs::remove_file(file);
    assert!(status.success(), "{status}");
}

/// The record of the corpus, so many times.
fn saved(n: usize) -> std::path::PathBuf {
    let path = env::temp_dir().join(format!("rsttrace-top-{}-{n}.jsonl", std::process::id()));
    let record = include_str!("../../rsttrace/tests/corpus/record.json");
    fs::write(&path, format!("{}\n", record.trim_end()).repeat(n)).expect("a file");
    path
}

#[test]
fn a_flood_does_not_keep_a_key_waiting() {
    let (read, write) = std::io::pipe().expect("a pipe");
    let mut command = Command::new(binary());
    // Records come from standard input, keys from the terminal.
    command.args(["top", "-", "--time", "utc"]).stdin(read).env("STDIN", "a pipe");
    let mut screen = Screen::start(&mut command, 24, 80);
    drop(command);
    thread::spawn(move || {
        let mut write = write;
        let record = include_str!("../../rsttrace/tests/corpus/record.json");
        let many = format!("{}\n", record.trim_end()).repeat(100);
        while write.write_all(many.as_bytes()).is_ok() {}
    });
    screen.wait("many records", |text| totals(text)["ends"] >= 1_000 && text.contains("reading"));
    screen.press("2");
    screen.wait("another table", |text| text.contains("[process]"));
    screen.press("q");
    let (status, after) = screen.gone("");
    assert!(status.success(), "{status}: {after}");
}

#[test]
fn without_a_terminal_there_is_a_summary() {
    let file = saved(4);
    let output = Command::new(binary()).arg("top").arg(&file).stdin(Stdio::null()).output().expect("rsttrace");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let _ = fs::remove_file(file);
    assert!(output.status.success(), "{said}");
    assert!(!output.stdout.contains(&0x1b), "no screen: {}", String::from_utf8_lossy(&output.stdout));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("server-abort-mid-response"), "{table}{said}");
}
