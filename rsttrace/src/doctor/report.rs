//! What the doctor has to say, as data: docs/doctor.schema.json is its form.

use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::Value;

/// How one check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Degraded,
    Failed,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), hint: None }
    }

    pub fn degraded(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, status: Status::Degraded, detail: detail.into(), hint: Some(hint.into()) }
    }

    pub fn failed(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, status: Status::Failed, detail: detail.into(), hint: Some(hint.into()) }
    }
}

/// How a hook is attached, or why not.
#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    #[serde(skip)]
    pub name: &'static str,
    pub how: Option<&'static str>,
    pub why: Option<String>,
    /// Nobody misses it: only more evidence, or not for this kernel.
    #[serde(skip)]
    pub extra: bool,
}

/// What real records had of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// Right wherever a made end must show it.
    Delivered,
    /// Absent where it must be there.
    Null,
    /// It contradicts what was done.
    Wrong,
    NotTried,
}

impl Delivery {
    pub fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Null => "null",
            Self::Wrong => "wrong",
            Self::NotTried => "not-tried",
        }
    }
}

/// One field of a teardown record.
#[derive(Clone, Debug, Serialize)]
pub struct Field {
    #[serde(skip)]
    pub name: &'static str,
    pub status: Delivery,
    /// What feeds it here.
    pub from: Option<String>,
    pub why: Option<String>,
}

/// How a made end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its records are there and say what was done.
    Right,
    /// A field is null or wrong.
    Partial,
    NoRecord,
    NotMade,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Partial => "partial",
            Self::NoRecord => "no-record",
            Self::NotMade => "not-made",
        }
    }
}

/// One kind of end that was made.
#[derive(Clone, Debug, Serialize)]
pub struct End {
    pub name: &'static str,
    pub what: &'static str,
    pub outcome: Outcome,
    pub why: Option<String>,
}

/// One program of the kernel half.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    pub name: String,
    pub verified_instructions: Option<u32>,
    pub bytes: Option<u32>,
}

/// What is missing, and what follows from it.
#[derive(Clone, Debug, Serialize)]
pub struct Complaint {
    pub what: String,
    pub why: String,
}

/// Everything; exactly one JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub record: &'static str,
    pub time: String,
    /// Of rsttrace.
    pub version: &'static str,
    /// `uname -r`, `-v`, `-m`, `-n`.
    pub kernel: String,
    pub kernel_version: String,
    pub machine: String,
    pub host: String,
    /// The exit status: 0 all fine, 1 degraded, 3 unusable.
    pub status: u8,
    pub degraded: Vec<Complaint>,
    pub checks: Vec<Check>,
    #[serde(serialize_with = "hooks_by_name")]
    pub hooks: Vec<Hook>,
    #[serde(serialize_with = "fields_by_name")]
    pub fields: Vec<Field>,
    pub ends: Vec<End>,
    pub programs: Vec<Program>,
    /// The records of the made ends; they have their own file in a bundle.
    #[serde(skip)]
    pub records: Vec<Value>,
}

fn hooks_by_name<S: Serializer>(hooks: &[Hook], serializer: S) -> Result<S::Ok, S::Error> {
    by_name(hooks.iter().map(|hook| (hook.name, hook)), hooks.len(), serializer)
}

fn fields_by_name<S: Serializer>(fields: &[Field], serializer: S) -> Result<S::Ok, S::Error> {
    by_name(fields.iter().map(|field| (field.name, field)), fields.len(), serializer)
}

fn by_name<'a, T: Serialize + 'a, S: Serializer>(
    pairs: impl Iterator<Item = (&'static str, &'a T)>,
    len: usize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(len))?;
    for (name, value) in pairs {
        map.serialize_entry(name, value)?;
    }
    map.end()
}
