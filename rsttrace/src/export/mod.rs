//! What others fetch from a running trace, or are sent by it.

pub mod otlp;
