//! System call numbers to names.

use syscalls::{x86, x86_64};

/// Name of a call by its number in the 64-bit or (compat) the 32-bit table; `None` for -1 and for
/// numbers that the tables do not have.
pub fn name(number: i32, compat: bool) -> Option<&'static str> {
    let number = usize::try_from(number).ok()?;
    if compat { x86::Sysno::new(number).map(|call| call.name()) } else { x86_64::Sysno::new(number).map(|call| call.name()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_known() {
        assert_eq!(name(45, false), Some("recvfrom"));
        assert_eq!(name(371, true), Some("recvfrom"));
        assert_eq!(name(102, true), Some("socketcall"));
        assert_eq!(name(-1, false), None);
        assert_eq!(name(i32::MAX, false), None);
    }
}
