//! What the workload's ends must be told as, and how much less an older kernel tells.

use anyhow::{Result, bail};
use serde_json::Value;

/// What the workload announces, and the records that follow: end, role, state, cause, initiator,
/// the kernel's reason, the closer's call, the observer's call and error. `-` is none, `?` a task
/// whose call is not known, `~` an inferred observer.
pub const SCENARIOS: &[(&str, &[&str])] = &[
    (
        "a server resets a connection that its client keeps in a pool",
        &[
            "reset-sent     server ESTABLISHED close-with-unread-data       local-application TCP_ABORT_ON_CLOSE close -",
            "reset-received client ESTABLISHED server-abort-before-response peer-application  -                  -     -",
        ],
    ),
    (
        "a client reads the whole response, then aborts",
        &[
            "reset-sent     client ESTABLISHED linger-zero               local-application TCP_STATE close -",
            "reset-received server ESTABLISHED peer-abort-after-response peer-application  -         -     recvfrom:ECONNRESET",
        ],
    ),
    (
        "a client aborts in the middle of a response",
        &[
            "reset-sent     client ESTABLISHED close-with-unread-data  local-application TCP_ABORT_ON_CLOSE close -",
            "reset-received server ESTABLISHED peer-abort-mid-response peer-application  -                  -     recvfrom:ECONNRESET",
        ],
    ),
    (
        "a client sends its request and aborts before the response",
        &[
            "reset-sent     client ESTABLISHED linger-zero                local-application TCP_STATE close -",
            "reset-received server ESTABLISHED peer-abort-before-response peer-application  -         -     sendto:ECONNRESET",
        ],
    ),
    (
        "a server closes with the request unread",
        &[
            "reset-sent     server ESTABLISHED close-with-unread-data       local-application TCP_ABORT_ON_CLOSE close -",
            "reset-received client ESTABLISHED server-abort-before-response peer-application  -                  -     recvfrom:ECONNRESET",
        ],
    ),
    (
        "a server closes an idle connection",
        &[
            "reset-sent     server FIN_WAIT2  data-after-close       local-kernel TCP_ABORT_ON_DATA close -",
            "reset-received client CLOSE_WAIT write-after-peer-close peer-kernel  -                 -     sendto:EPIPE",
        ],
    ),
    (
        "a client connects to a port where nobody listens",
        &[
            "reset-sent     -      -        closed-port local-kernel NO_SOCKET - -",
            "reset-received client SYN_SENT refused     peer-kernel  -         - ~connect:ECONNREFUSED",
        ],
    ),
    (
        "the same with a non-blocking connect",
        &[
            "reset-sent     -      -        closed-port local-kernel NO_SOCKET - -",
            "reset-received client SYN_SENT refused     peer-kernel  -         - getsockopt:ECONNREFUSED",
        ],
    ),
    (
        "a server is killed with the request unread",
        &[
            "reset-sent     server ESTABLISHED close-with-unread-data       local-application TCP_ABORT_ON_CLOSE ? -",
            "reset-received client ESTABLISHED server-abort-before-response peer-application  -                  - recvfrom:ECONNRESET",
        ],
    ),
    (
        "a server closes its listener",
        &[
            "reset-sent     server ESTABLISHED listener-closed local-application TCP_STATE close -",
            "reset-sent     server ESTABLISHED listener-closed local-application TCP_STATE close -",
            "reset-received client ESTABLISHED connect-probe   peer-application  -         -     recvfrom:ECONNRESET",
            "reset-received client ESTABLISHED connect-probe   peer-application  -         -     recvfrom:ECONNRESET",
        ],
    ),
    (
        "a client disconnects by connect(AF_UNSPEC)",
        &[
            "reset-sent     client ESTABLISHED disconnect                local-application TCP_STATE connect -",
            "reset-received server ESTABLISHED peer-abort-after-response peer-application  -         -       recvfrom:ECONNRESET",
        ],
    ),
    (
        "a client aborts and the server closes without ever noticing",
        &[
            "reset-sent     client ESTABLISHED linger-zero               local-application TCP_STATE close -",
            "reset-received server ESTABLISHED peer-abort-after-response peer-application  -         -     -",
        ],
    ),
    (
        "an IPv6 client aborts",
        &[
            "reset-sent     client ESTABLISHED linger-zero               local-application TCP_STATE close -",
            "reset-received server ESTABLISHED peer-abort-after-response peer-application  -         -     recvfrom:ECONNRESET",
        ],
    ),
    (
        "a client stops reading; TCP_USER_TIMEOUT",
        &[
            "timeout    server ESTABLISHED user-timeout           local-kernel      -                  -     sendto:ETIMEDOUT",
            "reset-sent client ESTABLISHED close-with-unread-data local-application TCP_ABORT_ON_CLOSE close -",
        ],
    ),
    (
        "an administrator kills a connection",
        &[
            "reset-sent     server ESTABLISHED admin-kill                local-admin TCP_STATE sendto recvfrom:ECONNABORTED",
            "reset-received client ESTABLISHED server-abort-mid-response local-admin -         -      recvfrom:ECONNRESET",
        ],
    ),
    (
        "both ends close in order",
        &["fin client FIN_WAIT2 orderly local-application - shutdown -", "fin server LAST_ACK  orderly peer-application  - close    -"],
    ),
    ("the connection that was reset at the beginning", &["late-observation - - - - - - recvfrom:ECONNRESET"]),
];

/// What may be told instead, for both happen.
pub const ALTERNATIVES: &[(&str, &[&str])] = &[
    // The FIN was acknowledged after close() had let go of the socket: a TIME_WAIT one is left in its place.
    (
        "a server closes an idle connection",
        &[
            "fin            server FIN_WAIT2  orderly                local-application -                    close -",
            "reset-sent     -      TIME_WAIT  time-wait              local-kernel      TCP_TIMEWAIT_SOCKET  -     -",
            "reset-received client CLOSE_WAIT write-after-peer-close peer-kernel       -                    -     sendto:EPIPE",
        ],
    ),
];

/// What a kernel can tell.
pub struct Kernel {
    version: (u32, u32),
}

impl Kernel {
    /// `6.1.0-56-cloud-amd64`
    pub fn of(release: &str) -> Result<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            bail!("{release:?} is no kernel's release");
        };
        Ok(Self { version: (major, minor) })
    }

    /// `sock_recv_length` and `sock_send_length` are there.
    pub fn traces_calls(&self) -> bool {
        self.version >= (6, 3)
    }

    /// `tcp_send_reset` fires without a full socket too, and has a reason.
    pub fn traces_every_rst(&self) -> bool {
        self.version >= (6, 10)
    }

    /// `bpf_task_pt_regs()` is there, without which nobody knows which call a task is in.
    fn knows_calls(&self) -> bool {
        self.version >= (5, 15)
    }

    /// What an expectation becomes where less is known; `None`: nothing at all.
    fn adapt(&self, expected: &str) -> Option<String> {
        let words: Vec<&str> = expected.split_whitespace().collect();
        let [end, role, state, cause, initiator, mut reason, mut closer, observer] = words[..] else {
            return Some(expected.to_owned());
        };
        let (mut inferred, mut call, errno) = observed(observer);
        if !self.traces_calls() && !matches!(call, "connect" | "getsockopt") {
            (inferred, call) = ("~", "?");
        }
        if !self.traces_every_rst() {
            if end == "reset-sent" && role == "-" {
                return None;
            }
            reason = "-";
        }
        if !self.knows_calls() {
            call = "?";
            if closer != "-" {
                closer = "?";
            }
        }
        let observer = errno.map_or("-".to_owned(), |errno| format!("{inferred}{call}:{errno}"));
        Some(format!("{end} {role} {state} {cause} {initiator} {reason} {closer} {observer}"))
    }

    /// What is only expected, and what is only told, in any order.
    pub fn differences(&self, expected: &[&str], told: &[String]) -> Vec<String> {
        let mut surplus = told.to_vec();
        let mut missing: Vec<String> = expected.iter().filter_map(|expected| self.adapt(expected)).collect();
        missing.retain(|expected| surplus.iter().position(|told| told == expected).map(|at| surplus.remove(at)).is_none());
        let missing = missing.iter().map(|line| format!("  expected {line}"));
        missing.chain(surplus.iter().map(|line| format!("  told     {line}"))).collect()
    }
}

/// The mark of an inferred observer, its call, its error.
fn observed(text: &str) -> (&str, &str, Option<&str>) {
    let call = text.trim_start_matches('~');
    let inferred = &text[..text.len() - call.len()];
    match call.split_once(':') {
        Some((call, errno)) => (inferred, call, Some(errno)),
        None => (inferred, call, None),
    }
}

/// A record in the words of [`SCENARIOS`].
pub fn told(record: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let call = |task: &Value| if task.is_null() { "-".to_owned() } else { task["syscall"].as_str().unwrap_or("?").to_owned() };
    let observer = &record["observer"];
    let inferred = if observer["inferred"] == true { "~" } else { "" };
    let observer = if observer.is_null() { "-".to_owned() } else { format!("{inferred}{}:{}", call(observer), word(&observer["errno"])) };
    if record["record"] == "late-observation" {
        return format!("late-observation - - - - - - {observer}");
    }
    let words = ["end", "role", "state", "cause", "initiator", "reason"].map(|key| word(&record[key]));
    format!("{} {} {observer}", words.join(" "), call(&record["closer"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIVED: &str = "reset-received client ESTABLISHED refused peer-kernel - - recvfrom:ECONNRESET";
    const DISCONNECT: &str = "reset-sent client ESTABLISHED disconnect local-application TCP_STATE connect -";

    #[track_caller]
    fn assert_adapted(release: &str, expected: &str, adapted: Option<&str>) {
        let kernel = Kernel::of(release).expect("a release");
        assert_eq!(kernel.adapt(expected).as_deref(), adapted);
    }

    #[test]
    fn older_kernels_tell_less() {
        assert_adapted("6.12.117+deb12-cloud-amd64", RECEIVED, Some(RECEIVED));
        assert_adapted("6.1.0-56-cloud-amd64", RECEIVED, Some("reset-received client ESTABLISHED refused peer-kernel - - ~?:ECONNRESET"));
        assert_adapted("6.1.0", DISCONNECT, Some("reset-sent client ESTABLISHED disconnect local-application - connect -"));
        assert_adapted("5.10.0", DISCONNECT, Some("reset-sent client ESTABLISHED disconnect local-application - ? -"));
        assert_adapted("5.10.0", "x client SYN_SENT y z - - getsockopt:E", Some("x client SYN_SENT y z - - ?:E"));
        assert_adapted("6.9.1", "reset-sent - - closed-port local-kernel NO_SOCKET - -", None);
    }

    #[test]
    fn every_expectation_has_eight_words() {
        let lines = SCENARIOS.iter().chain(ALTERNATIVES).flat_map(|(_, expected)| *expected);
        lines.for_each(|line| assert_eq!(line.split_whitespace().count(), 8, "{line}"));
    }

    #[test]
    fn a_record_is_told_in_the_same_words() {
        let record = serde_json::json!({
            "record": "teardown", "end": "reset-received", "role": "client", "state": "ESTABLISHED", "cause": "refused",
            "initiator": "peer-kernel", "reason": null, "closer": null,
            "observer": {"syscall": null, "errno": "ECONNRESET", "inferred": true},
        });
        assert_eq!(told(&record), "reset-received client ESTABLISHED refused peer-kernel - - ~?:ECONNRESET");
    }
}
