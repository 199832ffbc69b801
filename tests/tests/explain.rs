//! The pages behind `rsttrace explain`, docs/causes: their form, which a program parses, and that
//! whatever they tell a reader to type exists: nginx's directives, sysctls, counters, our own flags.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rsttrace_tests::{NetNs, binary, require_root, require_tool};

const SECTIONS: [&str; 5] = ["On the wire", "What the application sees", "Why it happens", "What to change", "How to confirm it"];

/// What a terminal of 80 columns shows whole, with an indentation of ours.
const WIDTH: usize = 76;
const MAX_WIDTH: usize = 80;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/causes")
}

/// One file: a cause, or the chapter's head.
struct Page {
    /// Without ".md".
    name: String,
    text: String,
}

/// A line and where it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Heading,
    Prose,
    /// Indented by four.
    Code,
    Table,
    /// A fence's own line, opening or closing.
    Fence,
    /// Between fences of this language.
    Inside(&'a str),
}

impl Page {
    fn all() -> Vec<Self> {
        let files = fs::read_dir(directory()).expect("docs/causes");
        let mut pages: Vec<_> = files
            .map(|file| file.expect("a file").path())
            .map(|path| {
                assert_eq!(path.extension().and_then(|end| end.to_str()), Some("md"), "{}", path.display());
                let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
                Self { name, text: fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) }
            })
            .collect();
        pages.sort_by(|a, b| a.name.cmp(&b.name));
        pages
    }

    fn causes() -> Vec<Self> {
        let mut pages = Self::all();
        pages.retain(|page| page.name != "README");
        assert!(!pages.is_empty());
        pages
    }

    fn readme() -> Self {
        Self::all().into_iter().find(|page| page.name == "README").expect("docs/causes/README.md")
    }

    fn lines(&self) -> Vec<(Place<'_>, &str)> {
        let mut fence = None;
        let mut place = |line| match (fence, line) {
            (Some(_), "```") => {
                fence = None;
                Place::Fence
            }
            (Some(language), _) => Place::Inside(language),
            (None, line) if line.starts_with("```") => {
                fence = line.strip_prefix("```");
                Place::Fence
            }
            (None, line) if line.starts_with('#') => Place::Heading,
            (None, line) if line.starts_with("    ") => Place::Code,
            (None, line) if line.starts_with('|') => Place::Table,
            (None, _) => Place::Prose,
        };
        let lines = self.text.lines().map(|line| (place(line), line)).collect();
        assert!(fence.is_none(), "{}: a fence that is not closed", self.name);
        lines
    }

    /// The line of `rsttrace explain` without an argument.
    fn sentence(&self) -> &str {
        self.text.lines().nth(2).unwrap_or_default()
    }

    /// Lines below a heading of the second level, without the blank ones around.
    fn section(&self, title: &str) -> Vec<&str> {
        let heading = format!("## {title}");
        let rest = self.text.lines().skip_while(|line| *line != heading).skip(1);
        let body: Vec<_> = rest.take_while(|line| !line.starts_with("## ")).collect();
        let blank = |line: &&&str| line.is_empty();
        let before = body.iter().take_while(blank).count();
        let after = body.iter().rev().take_while(blank).count();
        body[before..body.len().saturating_sub(after).max(before)].to_vec()
    }

    fn snippets(&self) -> Vec<String> {
        let mut snippets = Vec::new();
        let mut open = false;
        for (place, line) in self.lines() {
            match place {
                Place::Fence if !open => {
                    assert_eq!(line, "```nginx", "{}: another language", self.name);
                    snippets.push(String::new());
                }
                Place::Inside(_) => {
                    let snippet = snippets.last_mut().expect("a fence");
                    snippet.push_str(line);
                    snippet.push('\n');
                    continue;
                }
                Place::Fence => {}
                _ => continue,
            }
            open = !open;
        }
        snippets
    }

    /// Everything that stands as code in a line of its own or between backticks.
    fn code(&self) -> Vec<String> {
        let mut code = Vec::new();
        let mut prose = String::new();
        for (place, line) in self.lines() {
            match place {
                Place::Code => code.push(line.trim().to_owned()),
                Place::Prose | Place::Table => {
                    prose.push_str(line.trim());
                    prose.push(' ');
                }
                _ => prose.push('\n'),
            }
        }
        for paragraph in prose.lines() {
            assert_eq!(paragraph.matches('`').count() % 2, 0, "{}: a backtick without its other half: {paragraph}", self.name);
            code.extend(paragraph.split('`').skip(1).step_by(2).map(str::to_owned));
        }
        code
    }

    /// The arguments of one program's calls, up to a pipe.
    fn calls<'a>(&self, code: &'a [String], program: &str) -> Vec<Vec<&'a str>> {
        let call = |line: &'a String| {
            let line = line.strip_prefix("sudo ").unwrap_or(line);
            let arguments = line.strip_prefix(program)?.strip_prefix(' ')?;
            let arguments = arguments.split(" | ").next()?;
            Some(arguments.split_whitespace().map(|word| word.trim_matches('\'')).collect())
        };
        code.iter().filter_map(call).collect()
    }
}

/// Words made of what `part` accepts.
fn words(text: &str, part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split(move |c| !part(c)).filter(|word| !word.is_empty())
}

/// Gathers what is wrong with all pages, so that one run shows everything.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn unless(&mut self, good: bool, page: &Page, what: impl AsRef<str>) {
        if !good {
            self.0.push(format!("{}: {}", page.name, what.as_ref()));
        }
    }
}

impl Drop for Problems {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "{} problems:\n{}", self.0.len(), self.0.join("\n"));
        }
    }
}

#[test]
fn every_page_has_the_form_that_explain_parses() {
    let mut problems = Problems::default();
    for page in &Page::causes() {
        let lines: Vec<_> = page.text.lines().collect();
        let head = [&*format!("# {}", page.name), "", page.sentence(), "", "## On the wire", ""];
        problems.unless(lines.starts_with(&head), page, "does not begin with name, sentence and the first heading");

        let sentence = page.sentence();
        problems.unless((1..=WIDTH).contains(&sentence.chars().count()), page, format!("the sentence has {} characters", sentence.len()));
        problems.unless(sentence.starts_with(|c: char| c.is_lowercase()), page, "the sentence begins with a capital");
        problems.unless(!sentence.ends_with('.'), page, "the sentence ends with a full stop");

        let places = page.lines();
        let headings: Vec<_> = places.iter().filter(|(place, _)| *place == Place::Heading).map(|(_, line)| *line).collect();
        let expected: Vec<_> = std::iter::once(head[0].to_owned()).chain(SECTIONS.iter().map(|title| format!("## {title}"))).collect();
        problems.unless(headings == expected, page, format!("headings are {headings:?}"));
        for title in SECTIONS {
            problems.unless(!page.section(title).is_empty(), page, format!("nothing below \"{title}\""));
        }
        problems.unless(page.text.ends_with('\n') && !page.text.ends_with("\n\n"), page, "does not end with one newline");
    }
}

#[test]
fn every_page_begins_with_a_ladder_that_any_terminal_can_draw() {
    let mut problems = Problems::default();
    for page in &Page::causes() {
        let ladder: Vec<_> = page.section("On the wire").into_iter().take_while(|line| line.starts_with("    ")).collect();
        problems.unless(ladder.len() >= 2, page, "no ladder");
        for line in ladder {
            problems.unless(line.is_ascii(), page, format!("not ASCII: {line}"));
            problems.unless(line.len() <= WIDTH, page, format!("{} columns: {line}", line.len()));
        }
    }
}

#[test]
fn no_line_is_too_wide_for_a_terminal() {
    let mut problems = Problems::default();
    for page in &Page::all() {
        for (place, line) in page.lines() {
            let free = matches!(place, Place::Table | Place::Inside(_));
            let width = line.chars().count();
            problems.unless(free || width <= MAX_WIDTH, page, format!("{width} columns: {line}"));
            problems.unless(place != Place::Prose || width <= WIDTH, page, format!("prose of {width} columns: {line}"));
            problems.unless(line.trim_end() == line && !line.contains('\t'), page, format!("tabs or spaces at the end: {line}"));
        }
    }
}

#[test]
fn the_chapters_table_has_every_page_and_its_sentence() {
    let readme = Page::readme();
    let mut table = BTreeMap::new();
    for (place, line) in readme.lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [link, sentence, benign] = cells[..] else { continue };
        if place != Place::Table || link == "cause" || link.starts_with('-') {
            continue;
        }
        let name = link.strip_prefix('[').and_then(|link| link.split_once(']')).expect("a link").0;
        assert_eq!(link, format!("[{name}]({name}.md)"));
        assert!(["yes", "no", "depends"].contains(&benign), "{line}");
        assert!(table.insert(name.to_owned(), sentence.to_owned()).is_none(), "{name} is there twice");
    }
    let pages: BTreeMap<_, _> = Page::causes().iter().map(|page| (page.name.clone(), page.sentence().to_owned())).collect();
    assert_eq!(table, pages);
}

#[test]
fn causes_that_are_named_have_a_page() {
    let names: BTreeSet<_> = Page::causes().into_iter().map(|page| page.name).collect();
    let mut problems = Problems::default();
    for page in &Page::all() {
        let code = page.code();
        for arguments in page.calls(&code, "rsttrace") {
            let values = arguments.windows(2).filter(|pair| matches!(pair[0], "--cause" | "explain")).flat_map(|pair| pair[1].split(','));
            for name in values.filter(|name| *name != "CAUSE") {
                problems.unless(names.contains(name), page, format!("no cause: {name}"));
            }
        }
    }
}

/// Words that may be names of sysctls, in full or short.
fn dotted(text: &str) -> impl Iterator<Item = &str> {
    words(text, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')).map(|word| word.trim_end_matches('.'))
}

#[test]
fn sysctls_exist_and_are_written_in_full() {
    let in_full = |word: &&str| word.starts_with("net.ipv4.") || word.starts_with("net.core.");
    let short = |word: &&str| word.starts_with("tcp_") && Path::new("/proc/sys/net/ipv4").join(word).is_file();
    let mut problems = Problems::default();
    let mut found = 0;
    for page in &Page::all() {
        let code = page.code();
        let quoted: Vec<_> = code.iter().flat_map(|line| dotted(line)).filter(in_full).collect();
        for word in &quoted {
            let path = Path::new("/proc/sys").join(word.replace('.', "/"));
            problems.unless(path.is_file(), page, format!("no {}", path.display()));
        }
        found += quoted.len();
        let all = page.text.lines().flat_map(dotted).filter(in_full).count();
        problems.unless(all == quoted.len(), page, "a sysctl without backticks");
        // Short names are for the ladders and for the sentence; elsewhere a reader wants to copy.
        let prose = page.lines().into_iter().skip(3).filter(|(place, _)| *place == Place::Prose);
        for word in prose.flat_map(|(_, line)| dotted(line)).filter(short) {
            problems.unless(false, page, format!("not in full: {word}"));
        }
    }
    assert!(found > 10, "only {found} sysctls were found");
}

/// Names as nstat writes them: "TcpExt" and "ListenDrops".
fn kernel_counters() -> BTreeSet<String> {
    let mut counters = BTreeSet::new();
    for file in ["/proc/net/netstat", "/proc/net/snmp"] {
        let text = fs::read_to_string(file).expect(file);
        for line in text.lines().step_by(2) {
            let (group, names) = line.split_once(": ").expect("a group");
            counters.extend(names.split_whitespace().map(|name| format!("{group}{name}")));
        }
    }
    counters
}

#[test]
fn counters_exist() {
    let counters = kernel_counters();
    let looks_like_one = |word: &str| {
        let group = ["TcpExt", "Tcp", "IcmpMsg", "Icmp", "IpExt"].iter().find_map(|group| word.strip_prefix(group));
        group.is_some_and(|name| name.starts_with(|c: char| c.is_ascii_uppercase()))
    };
    let mut problems = Problems::default();
    let mut found = 0;
    for page in &Page::all() {
        for (_, line) in page.lines() {
            for word in words(line, |c| c.is_ascii_alphanumeric()).filter(|word| looks_like_one(word)) {
                problems.unless(counters.contains(word), page, format!("no counter: {word}"));
            }
        }
        let code = page.code();
        for arguments in page.calls(&code, "nstat") {
            for name in arguments.iter().filter(|name| !name.starts_with('-')) {
                found += 1;
                problems.unless(counters.contains(*name), page, format!("no counter: {name}"));
            }
        }
    }
    assert!(found > 10, "only {found} counters were found");
}

#[test]
fn flags_of_rsttrace_exist() {
    /// Documented before they are there.
    const COMING: [&str; 4] = ["--cause", "--harm", "--fail-on", "--timers"];
    let help = Command::new(binary()).arg("--help").output().unwrap_or_else(|error| panic!("{}: {error}", binary().display()));
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let known: BTreeSet<_> = words(&help, |c| c.is_ascii_alphanumeric() || c == '-').chain(COMING).collect();
    let mut problems = Problems::default();
    let mut found = 0;
    for page in &Page::all() {
        let code = page.code();
        for arguments in page.calls(&code, "rsttrace") {
            // What follows "--" is another program's.
            for word in arguments.into_iter().take_while(|word| *word != "--").filter(|word| word.starts_with('-')) {
                found += 1;
                let flag = word.split('=').next().unwrap_or(word);
                problems.unless(known.contains(flag), page, format!("rsttrace has no {flag}"));
            }
        }
    }
    assert!(found > 10, "only {found} flags were found");
}

#[test]
fn nginx_accepts_every_snippet() {
    require_root!();
    require_tool!("nginx");
    let directory = std::env::temp_dir().join(format!("rsttrace-explain-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a temporary directory");
    let mut prefix = directory.clone().into_os_string();
    prefix.push("/");
    // `nginx -t` binds what it would listen on; here nobody else does.
    let netns = NetNs::new();
    let mut problems = Problems::default();
    let mut found = 0;
    for page in &Page::all() {
        for snippet in page.snippets() {
            found += 1;
            let config = format!(
                "pid nginx.pid;\nerror_log error.log;\nevents {{}}\nhttp {{\naccess_log off;\nclient_body_temp_path body;\n\
                 proxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n{snippet}}}\n"
            );
            let file = directory.join("nginx.conf");
            fs::write(&file, &config).expect("nginx.conf");
            let mut command = Command::new("nginx");
            command.arg("-t").arg("-p").arg(&prefix).arg("-c").arg(&file).arg("-e").arg(directory.join("error.log"));
            netns.enter(&mut command);
            let output = command.output().expect("nginx");
            let said = String::from_utf8_lossy(&output.stderr);
            // A warning is a mistake too: a directive that is out of date, or that another one overrides.
            let good = output.status.success() && !said.contains("[warn]");
            problems.unless(good, page, format!("{said}{snippet}"));
        }
    }
    let _ = fs::remove_dir_all(&directory);
    assert!(found > 5, "only {found} snippets were found");
}
