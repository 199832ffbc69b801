//! Every record that a test sees obeys the contract of docs/json.md.

use std::sync::OnceLock;

use jsonschema::Validator;
use serde_json::Value;

/// Keys of a teardown, all always present; nested keys after their parent.
const TEARDOWN: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "schema",
            "record",
            "time",
            "end",
            "family",
            "local",
            "remote",
            "nat",
            "netns",
            "netns_name",
            "cookie",
            "inode",
            "role",
            "state",
            "age_us",
            "idle_ms",
            "bytes",
            "rtt_us",
            "retransmits",
            "reason",
            "owner",
            "observer",
            "seen",
            "closer",
            "released",
            "peer",
            "fin",
            "http",
            "phase",
            "cause",
            "initiator",
            "harm",
            "lost_bytes",
            "unconfirmed_bytes",
            "evidence",
            "verdict",
            "log",
            "log_candidates",
        ],
    ),
    ("/local", &["addr", "port"]),
    ("/remote", &["addr", "port"]),
    ("/idle_ms", &["sent", "received"]),
    ("/bytes", &["sent", "acked", "unacked", "unsent", "received", "unread"]),
    ("/nat", &["original", "translated"]),
    ("/owner", &["tgid", "comm", "exe", "user", "uid", "ns_tgid", "unit", "container", "pod"]),
    ("/owner/container", &["id", "runtime"]),
    ("/observer", &["tgid", "tid", "comm", "syscall", "fd", "errno", "delay_us", "inferred"]),
    ("/closer", &["tgid", "tid", "comm", "syscall", "exiting"]),
    ("/released", &["tgid", "tid", "comm", "syscall", "exiting", "after_us"]),
    ("/http", &["request", "status", "answer"]),
    ("/log", &["side", "client", "upstream", "request", "host", "phrase", "line", "further"]),
    ("/fin", &["first", "local", "remote", "remote_data_bytes", "half_closed_us", "since_us"]),
];

const FOLDED: &[&str] = &[
    "schema",
    "record",
    "time",
    "first",
    "count",
    "like",
    "end",
    "cause",
    "harm",
    "role",
    "process",
    "service_port",
    "remote_addr",
    "lost_bytes",
    "unconfirmed_bytes",
];

const SUMMARY: &[&str] = &[
    "schema",
    "record",
    "started",
    "stopped",
    "sockets",
    "causes",
    "harm",
    "orderly",
    "lost",
    "undecodable",
    "evicted",
    "filtered",
    "audit",
    "not_audited",
    "foreign_resets",
    "log",
];

/// What is wrong with a record, if anything.
pub fn check_record(record: &Value) -> Result<(), String> {
    match record["record"].as_str() {
        Some("teardown") => {
            for (parent, keys) in TEARDOWN {
                require_keys(record, parent, keys)?;
            }
        }
        Some("folded") => require_keys(record, "", FOLDED)?,
        Some("summary") => require_keys(record, "", SUMMARY)?,
        Some(_) => {}
        None => return Err("it has no \"record\"".into()),
    }
    // Saying what is wrong is much slower than saying that nothing is.
    let validator = validator();
    if !validator.is_valid(record) {
        let problems: Vec<_> = validator.iter_errors(record).map(|error| format!("{error} at {}", error.instance_path)).collect();
        return Err(problems.join("; "));
    }
    Ok(())
}

fn require_keys(record: &Value, parent: &str, keys: &[&str]) -> Result<(), String> {
    let Some(object) = record.pointer(parent).filter(|value| !value.is_null()) else {
        return Ok(());
    };
    let missing: Vec<_> = keys.iter().filter(|key| object.get(**key).is_none()).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("keys are missing in \"{parent}\": {missing:?}")) }
}

/// The shipped schema.
fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        let schema = serde_json::from_str(include_str!("../../docs/rsttrace.schema.json")).expect("docs/rsttrace.schema.json is JSON");
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("docs/rsttrace.schema.json is no valid schema: {error}"))
    })
}
