//! What the workload's ends must be told as, by every kernel.

use serde_json::Value;

/// What the workload announces, and the records that follow: end, role, state, cause, initiator,
/// the reason of a RST that we sent, the closer's call, the observer's call and error. `-` is none, `?` a task
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
            "reset-sent     server ESTABLISHED admin-kill                local-admin TCP_STATE sendmsg recvfrom:ECONNABORTED",
            "reset-received client ESTABLISHED server-abort-mid-response local-admin -         -       recvfrom:ECONNRESET",
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

/// What is only expected, and what is only told, in any order.
pub fn differences(expected: &[String], told: &[String]) -> Vec<String> {
    let mut surplus = told.to_vec();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut missing: Vec<String> = expected.iter().map(|line| words(line)).collect();
    missing.retain(|expected| surplus.iter().position(|told| told == expected).map(|at| surplus.remove(at)).is_none());
    let missing = missing.iter().map(|line| format!("  expected {line}"));
    missing.chain(surplus.iter().map(|line| format!("  told     {line}"))).collect()
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
