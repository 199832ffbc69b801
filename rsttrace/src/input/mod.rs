//! Records that were saved. Hostile: a file may come from anywhere.

pub mod json;
