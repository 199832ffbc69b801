//! What a stranger need not know: addresses, the host's name, and names of foreign processes.

use std::net::IpAddr;

use serde_json::Value;

use super::{report::Report, watch::THREAD};

const REDACTED: &str = "redacted";

pub fn redact(report: &mut Report) {
    let own = rustix::thread::name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let host = std::mem::replace(&mut report.host, REDACTED.to_owned());
    let exe = std::env::current_exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let clean = |text: &mut String| *text = without_addresses(&without_word(&without_word(text, &host), &exe));
    let clean_some = |text: &mut Option<String>| text.iter_mut().for_each(clean);
    for complaint in &mut report.degraded {
        clean(&mut complaint.why);
    }
    for check in &mut report.checks {
        clean(&mut check.detail);
        clean_some(&mut check.hint);
    }
    report.hooks.iter_mut().for_each(|hook| clean_some(&mut hook.why));
    report.fields.iter_mut().for_each(|field| clean_some(&mut field.why));
    report.ends.iter_mut().for_each(|end| clean_some(&mut end.why));
    for record in &mut report.records {
        let mut foreign = Vec::new();
        hide_names(record, &[&own, THREAD], &mut foreign);
        if let Some(Value::String(verdict)) = record.get_mut("verdict") {
            for name in &foreign {
                *verdict = without_word(verdict, name);
            }
            clean(verdict);
        }
    }
}

/// What tells how a machine is set up, even of ourselves.
const PLACES: [&str; 6] = ["exe", "user", "unit", "id", "pod", "netns_name"];

/// Addresses, places and process names of a record, at any depth; `foreign` gathers the names.
fn hide_names(value: &mut Value, own: &[&str], foreign: &mut Vec<String>) {
    let Value::Object(keys) = value else { return };
    for (key, inner) in keys {
        match (key.as_str(), inner) {
            ("addr", Value::String(addr)) => REDACTED.clone_into(addr),
            (key, Value::String(place)) if PLACES.contains(&key) => REDACTED.clone_into(place),
            ("comm", Value::String(comm)) if !own.contains(&comm.as_str()) => {
                foreign.push(std::mem::replace(comm, REDACTED.to_owned()));
            }
            (_, inner) => hide_names(inner, own, foreign),
        }
    }
}

/// Every occurrence of `word` that is not part of a longer one.
fn without_word(text: &str, word: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let joins = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    while let Some(at) = rest.find(word).filter(|_| !word.is_empty()) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let part = before.chars().next_back().or_else(|| out.chars().next_back()).is_some_and(joins) || after.starts_with(joins);
        out.push_str(before);
        out.push_str(if part { word } else { REDACTED });
        rest = after;
    }
    out.push_str(rest);
    out
}

fn without_addresses(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_of_address(c)).unwrap_or(rest.len());
        let token = &rest[..end];
        // The end of a sentence, or of "address: why".
        let trimmed = token.trim_end_matches(['.', ':']);
        match [token, trimmed].into_iter().find(|token| token.parse::<IpAddr>().is_ok()) {
            Some(address) => {
                out.push_str(REDACTED);
                out.push_str(&token[address.len()..]);
            }
            None => out.push_str(token),
        }
        let next = rest[end..].chars().next();
        out.extend(next);
        rest = &rest[end + next.map_or(0, char::len_utf8)..];
    }
    out
}

fn is_of_address(c: char) -> bool {
    c.is_ascii_hexdigit() || matches!(c, '.' | ':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn words_go_and_longer_words_stay() {
        assert_eq!(without_word("vm: vm-2 is no vm", "vm"), "redacted: vm-2 is no redacted");
        assert_eq!(without_word("vmvm", "vm"), "vmvm");
        assert_eq!(without_word("nothing", ""), "nothing");
    }

    #[test]
    fn addresses_go_and_numbers_stay() {
        assert_eq!(
            without_addresses("\"10.0.0.1\" instead of 127.0.0.1, ::1: and 6.18.44."),
            "\"redacted\" instead of redacted, redacted: and 6.18.44."
        );
        assert_eq!(without_addresses("fe80::1."), "redacted.");
    }

    #[test]
    fn names_of_others_go_from_the_sentence_too() {
        let mut record = json!({
            "local": { "addr": "10.1.2.3", "port": 1 },
            "owner": { "comm": "ours", "exe": "/home/me/rsttrace", "uid": 0, "container": { "id": "0123", "runtime": "docker" } },
            "peer": { "comm": "secret" },
            "verdict": "secret aborted",
        });
        let mut foreign = Vec::new();
        hide_names(&mut record, &["ours"], &mut foreign);
        assert_eq!(foreign, ["secret"]);
        assert_eq!(record["local"], json!({ "addr": "redacted", "port": 1 }));
        assert_eq!(record["peer"]["comm"], "redacted");
        let container = json!({ "id": "redacted", "runtime": "docker" });
        assert_eq!(record["owner"], json!({ "comm": "ours", "exe": "redacted", "uid": 0, "container": container }));
    }

    proptest! {
        #[test]
        fn no_address_survives(a in any::<IpAddr>(), before in "[ (\"]", after in "[ ),\"]") {
            let text = format!("x{before}{a}{after}y");
            prop_assert_eq!(without_addresses(&text), format!("x{before}redacted{after}y"));
        }

        #[test]
        fn any_text_is_survived(text in any::<String>(), word in any::<String>()) {
            without_addresses(&text);
            without_word(&text, &word);
        }
    }
}
