//! `rsttrace report`, `--summary` and `diff` of a real run: their numbers are those of its JSON records, and the page, opened
//! in a browser, asks for nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rsttrace::units::size;
use rsttrace_tests::{Actor, Browser, Flow, NetNs, Pair, Run, Tracer, binary, peers::abort, require_root, require_tool};
use serde_json::Value;

/// Fifteen bytes are all that a process's name has.
const HOSTILE_NAME: &str = "<script>evil()";
const HOSTILE_REQUEST: &str = "GET /\"><script>document.title='evil'</script> HTTP/1.1";

/// A directory of our own, gone on drop.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rsttrace-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends of several causes, between processes whose names and requests are hostile. Recorded in `recording` too.
fn trace(recording: &Path) -> Run {
    let pid = std::process::id().to_string();
    let tracer = Tracer::start(&["-a", "--http", "-p", &pid, "-w", recording.to_str().expect("a name")]);
    for n in 0..5 {
        let mut pair = Pair::between(Actor::spawn(HOSTILE_NAME), Actor::spawn("server"), "127.0.0.1:0");
        pair.client.send_to(&mut pair.server, 20);
        match n {
            // The request stays unanswered.
            0 => pair.client.abort(),
            // Unread data.
            1 => {
                pair.server.ok("send 3000");
                pair.client.wait_acknowledged();
                pair.client.ok("close");
            }
            2 => {
                pair.server.send_to(&mut pair.client, 100);
                pair.server.wait_acknowledged();
                pair.client.abort();
            }
            _ => pair.server.abort(),
        }
        let (flow, peer) = (pair.client.flow, pair.server.flow);
        drop(pair);
        tracer.teardown(flow);
        tracer.teardown(peer);
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    client.write_all(format!("{HOSTILE_REQUEST}\r\nHost: x\r\n\r\n").as_bytes()).expect("send");
    let _ = server.read(&mut [0; 1_000]).expect("receive");
    let flow = Flow::of(&server);
    abort(server);
    tracer.teardown(flow);
    tracer.teardown(flow.peer());
    tracer.stop()
}

fn save(run: &Run, file: &Path) {
    let lines: String = run.records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(file, lines).expect("a file");
}

fn rsttrace(args: &[&str], directory: &Path) -> Output {
    let output = Command::new(binary()).args(args).current_dir(directory).output().expect("rsttrace runs");
    assert!(output.status.success(), "{args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// How often each value of a key occurs.
fn counts<'r>(records: impl Iterator<Item = &'r Value>, key: impl Fn(&Value) -> String) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(key(record)).or_default() += 1;
    }
    counts
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn sum(run: &Run, key: &str) -> u64 {
    run.teardowns().map(|record| record[key].as_u64().expect("a number")).sum()
}

fn harms(run: &Run) -> [u64; 4] {
    let counts = counts(run.teardowns(), |record| word(&record["harm"]));
    ["lost", "possible", "unknown", "none"].map(|harm| counts.get(harm).copied().unwrap_or(0))
}

/// Two columns of a table of the page: what its rows are called, and how many ends they have.
fn table(browser: &mut Browser, id: &str) -> BTreeMap<String, u64> {
    let rows = browser.value(&format!(
        "[...document.querySelectorAll('#{id} tbody tr')].map(row => [row.cells[0].textContent, Number(row.cells[1].textContent.replaceAll(',', ''))])"
    ));
    rows.as_array().expect("rows").iter().map(|row| (word(&row[0]), row[1].as_u64().expect("a number"))).collect()
}

/// All that the page shows is what the records say.
fn require_equal(browser: &mut Browser, run: &Run) {
    let teardowns: Vec<_> = run.teardowns().collect();
    let card =
        |browser: &mut Browser, class: &str| word(&browser.value(&format!("document.querySelector('#totals .{class} b').textContent")));
    let [lost, possible, unknown, none] = harms(run).map(|n| n.to_string());
    for (class, expected) in [
        ("ends", teardowns.len().to_string()),
        ("lost", lost),
        ("possible", possible),
        ("unknown", unknown),
        ("none", none),
        ("lost-bytes", size(sum(run, "lost_bytes")).to_string()),
        ("unconfirmed-bytes", size(sum(run, "unconfirmed_bytes")).to_string()),
    ] {
        assert_eq!(card(browser, class), expected, "{class}");
    }
    let of = |key: fn(&Value) -> String| counts(run.teardowns(), key);
    assert_eq!(table(browser, "causes"), of(|record| word(&record["cause"])));
    assert_eq!(table(browser, "remotes"), of(|record| word(&record["remote"]["addr"])));
    let service = |record: &Value| record[if record["role"] == "client" { "remote" } else { "local" }]["port"].to_string();
    // Ten rows are shown, and the rest in one.
    let (ports, shown) = (of(service), table(browser, "ports"));
    assert_eq!(shown.len(), ports.len().min(10));
    assert!(shown.iter().all(|(port, ends)| ports.get(port) == Some(ends)), "{shown:?} of {ports:?}");
    assert_eq!(table(browser, "processes"), of(|record| word(&record["owner"]["comm"])));
    // Columns of the table of causes, the timeline and the table of verdicts add up to the same.
    let harms = harms(run).map(Value::from);
    let columns = browser.value(
        "[2, 3, 4, 5].map(at => [...document.querySelectorAll('#causes tbody tr')].reduce((sum, row) => sum + Number(row.cells[at].dataset.v), 0))",
    );
    assert_eq!(columns, Value::from(harms.to_vec()));
    let columns = browser.value(
        "[1, 2, 3, 4].map(at => [...document.querySelectorAll('#timeline tbody tr')].reduce((sum, row) => sum + Number(row.cells[at].textContent), 0))",
    );
    assert_eq!(columns, Value::from(harms.to_vec()));
    let shown = browser.value(
        "[...document.querySelectorAll('#verdicts tbody tr')].map(row => [row.querySelector('time').dateTime, row.cells[3].textContent, row.cells[6].textContent, row.querySelector('.verdict').firstChild.textContent])",
    );
    let mut shown: Vec<[String; 4]> = shown.as_array().expect("rows").iter().map(|row| [0, 1, 2, 3].map(|at| word(&row[at]))).collect();
    let instant = |time: &str| time.parse::<jiff::Timestamp>().expect("a time").to_string();
    let address = |end: &Value| format!("{}:{}", word(&end["addr"]), end["port"]);
    let mut expected: Vec<[String; 4]> = teardowns
        .iter()
        .map(|record| [instant(&word(&record["time"])), address(&record["local"]), word(&record["cause"]), word(&record["verdict"])])
        .collect();
    shown.iter_mut().for_each(|row| row[0] = instant(&row[0]));
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected);
    assert!(
        word(&browser.value("document.getElementById('verdicts').textContent")).contains(HOSTILE_REQUEST.replace('"', "\\\\\"").as_str())
    );
}

#[test]
fn the_page_shows_the_records_runs_nothing_of_theirs_and_asks_no_network() {
    require_root!();
    require_tool!("chromium");
    let directory = Directory::new("report");
    let (recorded, saved) = (directory.0.join("recorded"), directory.0.join("saved"));
    fs::create_dir_all(&recorded).and_then(|()| fs::create_dir_all(&saved)).expect("directories");
    let run = trace(&recorded.join("run"));
    save(&run, &saved.join("run"));
    for directory in [&recorded, &saved] {
        rsttrace(&["report", "run", "-o", "page.html"], directory);
    }
    let page = saved.join("page.html");
    assert_eq!(fs::read_to_string(recorded.join("page.html")).ok(), fs::read_to_string(&page).ok(), "a recording says what JSON says");
    assert_eq!(text(&rsttrace(&["report", "run", "-o", "-"], &saved)).into_bytes(), fs::read(&page).expect("the page"));
    // A file that was full in the middle of the run.
    let lines = fs::read_to_string(saved.join("run")).expect("the records");
    let middle = lines.match_indices('\n').nth(lines.lines().count() / 2).expect("a line").0 + 1;
    fs::write(saved.join("run.1"), &lines[..middle]).and_then(|()| fs::write(saved.join("run.0"), &lines[middle..])).expect("two files");
    let both = text(&rsttrace(&["report", "run.1", "run.0", "-o", "-"], &saved));
    assert_eq!(both.replace("run.1, run.0", "run").into_bytes(), fs::read(&page).expect("the page"));

    let mut browser = Browser::start();
    // What this test rests on: a request is seen, whether or not it comes to anything.
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = format!("http://{}/x", elsewhere.local_addr().expect("an address"));
    let asking = directory.0.join("asking.html");
    fs::write(&asking, format!("<!doctype html><script>fetch('{address}').catch(() => 0)</script>")).expect("a page");
    browser.open(&asking);
    assert!(browser.requests().contains(&address), "{:?}", browser.requests());
    elsewhere.accept().expect("a connection");

    browser.open(&page);
    require_equal(&mut browser, &run);
    assert_eq!(browser.value("document.scripts.length"), 1);
    assert!(word(&browser.value("document.title")).starts_with("Why TCP connections ended on "));
    // Our script runs: the verdicts are sorted by cause, and searched, and a link opens its explanation.
    browser.value("[...document.querySelectorAll('#verdicts th button')].find(button => button.textContent === 'cause').click()");
    let causes = "[...document.querySelectorAll('#verdicts tbody tr:not([hidden])')].map(row => row.cells[6].textContent)";
    let sorted: Vec<_> = browser.value(causes).as_array().expect("rows").iter().map(word).collect();
    assert!(sorted.is_sorted(), "{sorted:?}");
    let (cause, n) = counts(run.teardowns(), |record| word(&record["cause"])).pop_first().expect("a cause");
    browser.value(&format!(
        "(() => {{ const input = document.querySelector('input[type=search]'); input.value = '{cause}'; input.dispatchEvent(new Event('input')); }})()"
    ));
    assert!(browser.value(causes).as_array().expect("rows").len() as u64 >= n);
    browser.value(&format!(
        "new Promise(done => {{ addEventListener('hashchange', done, {{once: true}}); location.hash = 'cause-{cause}'; }}).then(() => 0)"
    ));
    assert_eq!(browser.value(&format!("document.getElementById('cause-{cause}').open")), true);
    // After all of that it has asked for itself alone, and could not ask for more.
    assert_eq!(browser.requests(), [format!("file://{}", page.display())]);
    assert_eq!(browser.value(&format!("fetch('{address}').then(() => 'sent', () => 'refused')")), "refused");
    elsewhere.set_nonblocking(true).expect("a socket option");
    assert!(elsewhere.accept().is_err(), "the page reached the network");

    // The same without scripts.
    browser.set_scripts(false);
    browser.open(&page);
    require_equal(&mut browser, &run);
    assert_eq!(browser.requests(), [format!("file://{}", page.display())]);
}

#[test]
fn the_table_and_the_comparison_count_what_the_records_say() {
    require_root!();
    let directory = Directory::new("summary");
    let run = trace(&directory.0.join("recording"));
    save(&run, &directory.0.join("json"));
    let n = run.teardowns().count();
    let [lost, possible, unknown, none] = harms(&run).map(|n| if n == 0 { "-".to_owned() } else { n.to_string() });
    let bytes = |key: &str| match sum(&run, key) {
        0 => "-".to_owned(),
        n => size(n).to_string(),
    };
    let expected = format!("all {n} {lost} {possible} {none} {unknown} {} {}", bytes("lost_bytes"), bytes("unconfirmed_bytes"));
    for file in ["json", "recording"] {
        let table = text(&rsttrace(&["replay", file, "--summary", "-q"], &directory.0));
        let all = table.lines().find(|line| line.starts_with("all ")).expect("a row of sums");
        assert_eq!(all.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{table}");
        assert!(table.contains("rsttrace explain ") && !table.contains('\u{1b}'), "{table}");
    }
    let rows = counts(run.teardowns(), |record| format!("{} {}", word(&record["cause"]), word(&record["owner"]["comm"])));
    let table = text(&rsttrace(&["replay", "json", "--summary", "-q"], &directory.0));
    for (row, n) in rows {
        let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).find(|line| line.starts_with(&row));
        let line = line.unwrap_or_else(|| panic!("no row {row}: {table}"));
        assert!(line.starts_with(&format!("{row} 127.0.0.1 {n} ")), "{line}");
    }

    let diff: Value = serde_json::from_str(&text(&rsttrace(&["diff", "json", "recording", "--json"], &directory.0))).expect("JSON");
    let causes = counts(run.teardowns(), |record| word(&record["cause"]));
    let rows = diff["changes"]["cause"]["rows"].as_array().expect("rows");
    let compared = |side: &str| rows.iter().map(|row| (word(&row["key"]), row[side].as_u64().unwrap_or(0))).collect::<BTreeMap<_, _>>();
    assert_eq!(compared("before"), causes);
    assert_eq!(compared("after"), causes);
    assert!(rows.iter().all(|row| row["p"].is_null() || row["p"] == 1.0), "the same run twice: {diff}");
    for side in ["before", "after"] {
        assert_eq!(diff[side]["teardowns"], n);
        assert_eq!(diff[side]["lost_bytes"], sum(&run, "lost_bytes"));
    }
}

#[test]
fn a_live_table_comes_when_asked_for_and_at_the_end() {
    require_root!();
    // Of its own: this process makes the connections of the other tests too.
    let netns = NetNs::new();
    // Stdout is no JSON here.
    let mut command = Command::new(binary());
    command
        .args(["-a", "--summary", "--netns", &netns.inode().to_string()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut tracer = command.spawn().expect("rsttrace runs");
    let mut stderr = std::io::BufReader::new(tracer.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("rsttrace: ready") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).expect("stderr") > 0, "it ended");
    }
    let id = tracer.id().cast_signed();
    let signal = |signal| {
        // SAFETY: no memory involved; our child is not reaped yet.
        unsafe { libc::kill(id, signal) };
    };
    let mut pair = Pair::inside(&netns);
    pair.client.send_to(&mut pair.server, 20);
    pair.client.abort();
    drop(pair);
    let mut stdout = std::io::BufReader::new(tracer.stdout.take().expect("a pipe"));
    let mut read_table = || {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(std::io::BufRead::read_line(&mut stdout, &mut line).expect("stdout") > 0, "no table: {all}");
            all += &line;
            if let Some(rest) = line.strip_prefix("all ") {
                return (rest.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number"), all);
            }
        }
    };
    // Both ends are counted as soon as they are told.
    rsttrace_tests::wait_until("both ends are in the table", || {
        signal(libc::SIGUSR1);
        read_table().0 == 2
    });
    signal(libc::SIGTERM);
    let mut last = None;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("stdout");
    for line in rest.lines().filter(|line| line.starts_with("all ")) {
        last = line.split_whitespace().nth(1).map(str::to_owned);
    }
    assert_eq!(last.as_deref(), Some("2"), "{rest}");
    // Each of them says of what time it is.
    let heads = rest.lines().filter(|line| line.starts_with("20") && line.contains(" to ") && line.ends_with('s'));
    assert_eq!(heads.count(), rest.lines().filter(|line| line.starts_with("all ")).count(), "{rest}");
    assert!(!rest.contains("RST received"), "no line per record: {rest}");
    assert!(tracer.wait().expect("it ends").success());
}
