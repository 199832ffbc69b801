//! A headless Chromium, driven over a pipe by its DevTools protocol: what a page shows, and every request that it makes.

use std::{
    io::{BufRead, BufReader, PipeReader, PipeWriter, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use serde_json::{Value, json};

use crate::DEADLINE;

/// One browser with one page, killed on drop.
pub struct Browser {
    child: Child,
    commands: PipeWriter,
    messages: Receiver<Value>,
    session: Value,
    last_id: u64,
    /// What a page asked for, in order.
    requests: Vec<String>,
    profile: PathBuf,
}

impl Browser {
    /// Starts it; `chromium` must be installed.
    pub fn start() -> Self {
        let profile = std::env::temp_dir().join(format!("rsttrace-browser-{}", std::process::id()));
        let (for_it, commands) = std::io::pipe().expect("a pipe");
        let (replies, from_it) = std::io::pipe().expect("a pipe");
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        // It reads commands from 3 and writes to 4; none of ours may stand there while they are put in place.
        let (for_it, from_it) = (high(&for_it), high(&from_it));
        let (read, write) = (for_it.as_raw_fd(), from_it.as_raw_fd());
        // SAFETY: dup2 and prctl are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::dup2(read, 3) < 0 || libc::dup2(write, 4) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run chromium: {error}"));
        let messages = receive(replies);
        let mut browser = Self { child, commands, messages, session: Value::Null, last_id: 0, requests: Vec::new(), profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}))["sessionId"].clone();
        browser.session = session;
        for domain in ["Page", "Network", "Runtime"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Opens a file and waits until it is loaded, with all that it asks for.
    pub fn open(&mut self, file: &Path) {
        self.requests.clear();
        self.call("Page.navigate", json!({"url": format!("file://{}", file.display())}));
        self.wait("the page is loaded", |message| message["method"] == "Page.loadEventFired");
    }

    /// Whether pages may run scripts.
    pub fn set_scripts(&mut self, on: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({"value": !on}));
    }

    /// The value of an expression of JavaScript in the page, or of what it promises.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let reply = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true, "awaitPromise": true}));
        assert!(reply["exceptionDetails"].is_null(), "{expression}: {}", reply["exceptionDetails"]);
        reply["result"]["value"].clone()
    }

    /// The addresses of everything that has been asked for since the page was opened, the page's own first.
    pub fn requests(&mut self) -> Vec<String> {
        // Whatever has happened until now is told before the reply.
        self.value("0");
        self.requests.clone()
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut command = json!({"id": id, "method": method, "params": params});
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("chromium takes commands");
        let reply = self.wait(method, |message| message["id"] == id);
        assert!(reply["error"].is_null(), "{method}: {}", reply["error"]);
        reply["result"].clone()
    }

    /// The next message that is `wanted`; requests are noted on the way.
    #[track_caller]
    fn wait(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self
                .messages
                .recv_timeout(DEADLINE)
                .unwrap_or_else(|_| panic!("deadline passed, or chromium ended, while waiting for {what}"));
            if message["method"] == "Network.requestWillBeSent" {
                self.requests.push(message["params"]["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            if wanted(&message) {
                return message;
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // SAFETY: no memory involved; the group is that of our child, which is not reaped yet.
        unsafe { libc::kill(-self.child.id().cast_signed(), libc::SIGKILL) };
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// A copy of a descriptor that is none of the lowest.
fn high(fd: &impl AsRawFd) -> OwnedFd {
    // SAFETY: no memory involved.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
    assert!(copy >= 0, "fcntl: {}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(copy) }
}

fn receive(replies: PipeReader) -> Receiver<Value> {
    let (send, messages) = mpsc::channel();
    thread::spawn(move || {
        for message in BufReader::new(replies).split(0) {
            let Ok(message) = message else { break };
            let Ok(message) = serde_json::from_slice(&message) else { continue };
            if send.send(message).is_err() {
                break;
            }
        }
    });
    messages
}
