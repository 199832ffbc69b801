//! Comparing records field by field.

use std::ops::RangeBounds;

use serde_json::Value;

/// Panics unless the record has every field of `expected` with that value; objects are compared
/// by the keys that `expected` names.
#[track_caller]
pub fn expect(record: &Value, expected: Value) {
    let mut differences = Vec::new();
    compare("", &expected, record, &mut differences);
    assert!(differences.is_empty(), "the record differs:\n  {}\nrecord: {record}", differences.join("\n  "));
}

fn compare(path: &str, expected: &Value, actual: &Value, differences: &mut Vec<String>) {
    match expected {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{path}.{key}");
                match actual.get(key) {
                    Some(actual) => compare(&path, value, actual, differences),
                    None => differences.push(format!("{path}: expected {value}, there is none")),
                }
            }
        }
        _ if expected == actual => {}
        _ => differences.push(format!("{path}: expected {expected}, is {actual}")),
    }
}

/// A number of the record by JSON pointer; panics if it is none.
#[track_caller]
pub fn number(record: &Value, pointer: &str) -> i64 {
    match record.pointer(pointer).and_then(Value::as_i64) {
        Some(number) => number,
        None => panic!("no number at {pointer}\nrecord: {record}"),
    }
}

/// A string of the record by JSON pointer; panics if it is none.
#[track_caller]
pub fn text<'a>(record: &'a Value, pointer: &str) -> &'a str {
    match record.pointer(pointer).and_then(Value::as_str) {
        Some(text) => text,
        None => panic!("no string at {pointer}\nrecord: {record}"),
    }
}

/// Panics unless a number of the record lies in a range.
#[track_caller]
pub fn in_range(record: &Value, pointer: &str, range: impl RangeBounds<i64> + std::fmt::Debug) -> i64 {
    let number = number(record, pointer);
    assert!(range.contains(&number), "{pointer} is {number}, not in {range:?}\nrecord: {record}");
    number
}
