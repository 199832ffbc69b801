//! A record as OpenTelemetry's data model has it.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value},
    logs::v1::{LogRecord, SeverityNumber},
    resource::v1::Resource,
};
use serde_json::{Map, Value};

use super::settings::Settings;
use crate::{
    input::json::Saved,
    model::{Harm, LateObservation},
};

/// The version of the semantic conventions that the names below are from.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.42.0";

/// What the semantic conventions have a name for. Everything else is called `rsttrace.` and its path in the record.
const CONVENTIONS: [(&str, &str); 15] = [
    ("family", "network.type"),
    ("local.addr", "network.local.address"),
    ("local.port", "network.local.port"),
    ("remote.addr", "network.peer.address"),
    ("remote.port", "network.peer.port"),
    ("owner.tgid", "process.pid"),
    ("owner.ns_tgid", "process.vpid"),
    ("owner.exe", "process.executable.path"),
    ("owner.user", "process.owner"),
    ("owner.uid", "process.user.id"),
    ("owner.container.id", "container.id"),
    ("owner.container.runtime", "container.runtime.name"),
    ("owner.pod", "k8s.pod.uid"),
    ("observer.errno", "error.type"),
    ("http.status", "http.response.status_code"),
];

/// Methods that have a name of their own; others are `_OTHER`.
const METHODS: [&str; 10] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "QUERY"];

/// The log record of an end or of a late observation, which was read from `line`; `None` for what is neither. `observed_ns`:
/// now, since 1970.
pub fn log_record(line: &[u8], saved: &Saved, observed_ns: u64) -> Option<LogRecord> {
    let (at_ns, name, severity, word, body) = match saved {
        Saved::Teardown(judged) => {
            let harm = judged.verdict.harm;
            (judged.teardown.at_ns, "rsttrace.teardown", severity(harm), harm.name(), judged.verdict.words.clone())
        }
        Saved::Late(late, _) => (late.at_ns, "rsttrace.late_observation", SeverityNumber::Info, "late", late_words(late)),
        _ => return None,
    };
    let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let mut attributes = vec![attribute("network.transport", "tcp".to_owned())];
    for (name, value) in fields {
        // The record's own place in the data model.
        if !matches!(name.as_str(), "schema" | "record" | "time" | "verdict") {
            add(&mut attributes, &name, value);
        }
    }
    Some(LogRecord {
        time_unix_nano: at_ns,
        observed_time_unix_nano: observed_ns,
        severity_number: severity.into(),
        severity_text: word.to_owned(),
        body: Some(text(body)),
        attributes,
        event_name: name.to_owned(),
        ..LogRecord::default()
    })
}

/// What did no harm is for those who look for it; what certainly lost data is an error.
fn severity(harm: Harm) -> SeverityNumber {
    match harm {
        Harm::Lost => SeverityNumber::Error,
        Harm::Possible => SeverityNumber::Warn,
        Harm::Unknown => SeverityNumber::Info,
        Harm::None => SeverityNumber::Debug,
    }
}

fn late_words(late: &LateObservation) -> String {
    format!("{} noticed {} after the connection's record was written", late.observer.task.process_comm.text(), late.observer.errno)
}

/// Objects by the paths of their members; what is unknown is left out.
fn add(attributes: &mut Vec<KeyValue>, path: &str, value: Value) {
    match value {
        Value::Null => {}
        Value::Object(members) => members.into_iter().for_each(|(name, value)| add(attributes, &format!("{path}.{name}"), value)),
        Value::Array(values) if values.is_empty() => {}
        Value::String(line) if path == "http.request" => add_request(attributes, line),
        value => {
            if let (Value::String(exe), "owner.exe") = (&value, path) {
                let name = exe.rsplit('/').next().unwrap_or(exe).to_owned();
                attributes.push(attribute("process.executable.name", name));
            }
            let convention = CONVENTIONS.iter().find(|(known, _)| *known == path);
            let key = convention.map_or_else(|| format!("rsttrace.{path}"), |(_, name)| (*name).to_owned());
            attributes.push(KeyValue { key, value: Some(any(value)), ..KeyValue::default() });
        }
    }
}

/// `GET /index?x=1 HTTP/1.1`, as far as it is one.
fn add_request(attributes: &mut Vec<KeyValue>, line: String) {
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        attributes.push(attribute("rsttrace.http.request", line));
        return;
    };
    if METHODS.contains(&method) {
        attributes.push(attribute("http.request.method", method.to_owned()));
    } else {
        attributes.push(attribute("http.request.method", "_OTHER".to_owned()));
        attributes.push(attribute("http.request.method_original", method.to_owned()));
    }
    match path_and_query(target) {
        Some(target) => {
            let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
            attributes.push(attribute("url.path", path.to_owned()));
            attributes.extend(query.map(|query| attribute("url.query", query.to_owned())));
        }
        // The only place where it stands.
        None => attributes.push(attribute("rsttrace.http.request", line.clone())),
    }
    if let Some(version) = version.strip_prefix("HTTP/") {
        attributes.push(attribute("network.protocol.name", "http".to_owned()));
        attributes.push(attribute("network.protocol.version", version.to_owned()));
    }
}

/// Of `/index?x=1`, or of `http://example.org/index?x=1` as proxies are asked; CONNECT and `OPTIONS *` have none.
fn path_and_query(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return Some(target);
    }
    let (_, authority) = target.split_once("://")?;
    Some(authority.find(['/', '?']).map_or("/", |end| &authority[end..]))
}

/// An integer beyond 63 bits is text, as OpenTelemetry has it.
fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(is) => Some(any_value::Value::BoolValue(is)),
        Value::Number(number) => match (number.as_i64(), number.is_f64()) {
            (Some(integer), _) => Some(any_value::Value::IntValue(integer)),
            (None, true) => number.as_f64().map(any_value::Value::DoubleValue),
            (None, false) => Some(any_value::Value::StringValue(number.to_string())),
        },
        Value::String(text) => Some(any_value::Value::StringValue(text)),
        Value::Array(values) => Some(any_value::Value::ArrayValue(ArrayValue { values: values.into_iter().map(any).collect() })),
        Value::Object(members) => {
            let member = |(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() };
            Some(any_value::Value::KvlistValue(KeyValueList { values: members.into_iter().map(member).collect() }))
        }
    };
    AnyValue { value }
}

pub(super) fn attribute(key: &str, value: String) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(text(value)), ..KeyValue::default() }
}

fn text(value: String) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(value)) }
}

/// Who sends: this host and this program, and what the settings add or say otherwise.
pub fn resource(settings: &Settings) -> Resource {
    let uname = rustix::system::uname();
    let own = [
        ("service.name", "rsttrace".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host.name", uname.nodename().to_string_lossy().into_owned()),
        ("os.type", "linux".to_owned()),
        ("os.version", uname.release().to_string_lossy().into_owned()),
    ];
    let own = own.into_iter().filter(|(name, _)| settings.resource.iter().all(|(given, _)| given != name));
    let given = settings.resource.iter().map(|(name, value)| attribute(name, value.clone()));
    Resource { attributes: own.map(|(name, value)| attribute(name, value)).chain(given).collect(), ..Resource::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::json;

    const LINE: &str = include_str!("../../../tests/corpus/record.json");

    fn record(line: &str) -> LogRecord {
        log_record(line.as_bytes(), &json::read(line.as_bytes()).unwrap(), 7).unwrap()
    }

    fn get<'a>(record: &'a LogRecord, key: &str) -> Option<&'a any_value::Value> {
        record.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
    }

    #[test]
    fn a_record_has_the_names_of_the_conventions() {
        let record = record(LINE);
        assert_eq!((record.time_unix_nano, record.observed_time_unix_nano), (1_795_708_052_978_934_154, 7));
        assert_eq!((record.severity_text.as_str(), record.severity_number()), ("possible", SeverityNumber::Warn));
        for (key, value) in [
            ("network.transport", "tcp"),
            ("network.type", "ipv4"),
            ("process.executable.name", "nginx"),
            ("error.type", "ECONNRESET"),
            ("http.request.method", "GET"),
            ("url.path", "/up/mid"),
            ("network.protocol.version", "1.0"),
            ("rsttrace.cause", "server-abort-mid-response"),
        ] {
            assert_eq!(get(&record, key), Some(&any_value::Value::StringValue(value.to_owned())), "{key}");
        }
        assert_eq!(get(&record, "network.peer.port"), Some(&any_value::Value::IntValue(9_000)));
        assert_eq!(get(&record, "rsttrace.fin.first"), None);
    }

    #[test]
    fn no_attribute_stands_twice() {
        let mut keys: Vec<_> = record(LINE).attributes.into_iter().map(|attribute| attribute.key).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn strange_requests_are_kept() {
        let with = |request: &str| record(&LINE.replace("GET /up/mid HTTP/1.0", request));
        assert_eq!(get(&with("GET"), "rsttrace.http.request"), Some(&any_value::Value::StringValue("GET".to_owned())));
        let strange = with("BREW /pot?milk=no HTTP/1.1");
        for (key, value) in [("http.request.method", "_OTHER"), ("http.request.method_original", "BREW"), ("url.query", "milk=no")] {
            assert_eq!(get(&strange, key), Some(&any_value::Value::StringValue(value.to_owned())), "{key}");
        }
        let proxied = with("GET http://example.org:8080/a/b?c=http://d/e HTTP/1.1");
        for (key, value) in [("url.path", "/a/b"), ("url.query", "c=http://d/e")] {
            assert_eq!(get(&proxied, key), Some(&any_value::Value::StringValue(value.to_owned())), "{key}");
        }
        assert_eq!(get(&with("GET http://example.org HTTP/1.1"), "url.path"), Some(&any_value::Value::StringValue("/".to_owned())));
        let tunnel = with("CONNECT example.org:443 HTTP/1.1");
        assert_eq!(get(&tunnel, "url.path"), None);
        let line = any_value::Value::StringValue("CONNECT example.org:443 HTTP/1.1".to_owned());
        assert_eq!(get(&tunnel, "rsttrace.http.request"), Some(&line));
        let large = record(&LINE.replace("5175041", "18446744073709551615"));
        assert_eq!(get(&large, "rsttrace.cookie"), Some(&any_value::Value::StringValue(u64::MAX.to_string())));
    }
}
