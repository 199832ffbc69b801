//! What the record of a made end must say, and whether it does.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// What one field must be.
#[derive(Clone, Debug)]
pub enum Must {
    Be(Value),
    /// One of several, all of them true of what was done.
    BeOneOf(Vec<Value>),
    /// A number within these bounds.
    BeBetween(u64, u64),
    /// Known, whatever it is.
    BeKnown,
    /// `true` exactly where this hook is not attached: what it would have caught is concluded.
    TellWithout(&'static str),
}

/// How a field compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Right,
    Null,
    Wrong(String),
}

impl Must {
    /// Compares with a record's value; `attached` tells of hooks.
    pub fn compare(&self, value: &Value, attached: impl Fn(&str) -> bool) -> Finding {
        // A verdict that says "unknown" is as silent as null.
        if value.is_null() || value == "unknown" {
            return Finding::Null;
        }
        let right = match self {
            Self::Be(expected) => value == expected,
            Self::BeOneOf(expected) => expected.contains(value),
            Self::BeBetween(low, high) => value.as_u64().is_some_and(|n| (*low..=*high).contains(&n)),
            Self::BeKnown => true,
            Self::TellWithout(hook) => *value == json!(!attached(hook)),
        };
        if right { Finding::Right } else { Finding::Wrong(format!("{value} instead of {}", self.words(attached))) }
    }

    fn words(&self, attached: impl Fn(&str) -> bool) -> String {
        match self {
            Self::Be(expected) => expected.to_string(),
            Self::BeOneOf(expected) => expected.iter().map(Value::to_string).collect::<Vec<_>>().join(" or "),
            Self::BeBetween(low, high) => format!("{low} to {high}"),
            Self::BeKnown => "anything".to_owned(),
            Self::TellWithout(hook) => (!attached(hook)).to_string(),
        }
    }
}

/// One record that is expected: whose it is, and what it must say.
#[derive(Clone, Debug)]
pub struct Half {
    /// Which end, in a word.
    pub whose: &'static str,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// A RST that ends no full socket.
    pub stray: bool,
    pub must: Vec<(&'static str, Must)>,
}

impl Half {
    pub fn new(whose: &'static str, local: SocketAddr, remote: SocketAddr) -> Self {
        let half = Self { whose, local, remote, stray: false, must: Vec::new() };
        let family = if local.is_ipv4() { "ipv4" } else { "ipv6" };
        half.is("schema", 1)
            .is("record", "teardown")
            .is("family", family)
            .is("local.addr", local.ip().to_string())
            .is("local.port", local.port())
            .is("remote.addr", remote.ip().to_string())
            .is("remote.port", remote.port())
    }

    pub fn is(self, field: &'static str, value: impl Into<Value>) -> Self {
        self.must(field, Must::Be(value.into()))
    }

    /// Later words replace earlier ones.
    pub fn must(mut self, field: &'static str, must: Must) -> Self {
        self.must.retain(|(name, _)| *name != field);
        self.must.push((field, must));
        self
    }

    /// Whether a record is this one.
    pub fn matches(&self, record: &Value) -> bool {
        let endpoint = |of: &str, address: SocketAddr| {
            record[of]["addr"] == json!(address.ip().to_string()) && record[of]["port"] == json!(address.port())
        };
        record["record"] == "teardown"
            && endpoint("local", self.local)
            && endpoint("remote", self.remote)
            && record["bytes"].is_null() == self.stray
    }
}

/// The value behind a dotted name; null where something on the way is.
pub fn at<'a>(record: &'a Value, field: &str) -> &'a Value {
    field.split('.').fold(record, |value, key| &value[key])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_right_null_or_wrong() {
        let attached = |hook: &str| hook == "there";
        let compare = |must: Must, value: Value| must.compare(&value, attached);
        assert_eq!(compare(Must::Be(json!("close")), json!("close")), Finding::Right);
        assert_eq!(compare(Must::Be(json!("close")), Value::Null), Finding::Null);
        assert_eq!(compare(Must::Be(json!("lost")), json!("unknown")), Finding::Null);
        assert_eq!(compare(Must::Be(json!(7)), json!(8)), Finding::Wrong("8 instead of 7".to_owned()));
        assert_eq!(compare(Must::BeBetween(1, 3), json!(3)), Finding::Right);
        assert_eq!(compare(Must::BeBetween(1, 3), json!(0)), Finding::Wrong("0 instead of 1 to 3".to_owned()));
        assert_eq!(compare(Must::TellWithout("there"), json!(false)), Finding::Right);
        assert_eq!(compare(Must::TellWithout("elsewhere"), json!(true)), Finding::Right);
        assert_eq!(compare(Must::TellWithout("elsewhere"), json!(false)), Finding::Wrong("false instead of true".to_owned()));
    }

    #[test]
    fn dotted_names_lead_through_null() {
        let record = json!({ "observer": { "fd": 7 }, "evidence": null });
        assert_eq!(at(&record, "observer.fd"), &json!(7));
        assert_eq!(at(&record, "evidence.rst.ttl"), &Value::Null);
    }
}
