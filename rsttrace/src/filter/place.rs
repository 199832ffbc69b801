//! Which containers and units are meant by `--container` and `--unit`.

use std::{fmt, str::FromStr};

use crate::model::Container;

/// Fewer digits than these mean too many containers.
const MIN_DIGITS: usize = 4;
/// An id of Docker, containerd, CRI-O or Podman.
const ID_DIGITS: usize = 64;
/// `UNIT_NAME_MAX` of systemd.
const MAX_UNIT: usize = 255;
/// Units that hold processes of their own.
const HOLDERS: [&str; 2] = [".service", ".scope"];
/// Other units: a name that ends so cannot be a service's without saying so.
const OTHERS: [&str; 9] = [".slice", ".socket", ".target", ".timer", ".mount", ".automount", ".path", ".device", ".swap"];

/// A container's id, or its first digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    pub fn matches(&self, container: &Container) -> bool {
        container.id.starts_with(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.to_ascii_lowercase();
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!(
                "{text:?} is no container id: expected its first hexadecimal digits, as `docker ps`, `podman ps` and `crictl ps` show them; names are not known here"
            ));
        }
        if !(MIN_DIGITS..=ID_DIGITS).contains(&digits.len()) {
            return Err(format!("{text:?} has {} digits: expected {MIN_DIGITS} to {ID_DIGITS} of a container id", digits.len()));
        }
        Ok(Self(digits))
    }
}

impl fmt::Display for ContainerId {
    /// With a precision, no more digits than that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The full name of a service or scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName(String);

impl UnitName {
    pub fn matches(&self, unit: &str) -> bool {
        self.0 == unit
    }
}

impl FromStr for UnitName {
    type Err = String;

    /// Without a suffix it is a service, as for systemctl.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(other) = OTHERS.iter().find(|suffix| text.ends_with(*suffix)) {
            return Err(format!("{text:?}: a {} holds no processes of its own: expected a service or a scope", &other[1..]));
        }
        let full = if HOLDERS.iter().any(|suffix| text.ends_with(suffix)) { text.to_owned() } else { format!("{text}.service") };
        let named = HOLDERS.iter().all(|suffix| full != *suffix);
        // systemd's VALID_CHARS.
        let valid = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
        if named && full.len() <= MAX_UNIT && full.bytes().all(valid) {
            Ok(Self(full))
        } else {
            Err(format!("{text:?} is no unit's name: expected something like nginx, nginx.service or session-3.scope"))
        }
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_meant_by_the_first_digits_of_its_id() {
        let container = Container { id: "0123abcd".repeat(8), runtime: None };
        for text in ["0123", "0123ABCD0123", &container.id] {
            assert!(text.parse::<ContainerId>().unwrap().matches(&container), "{text}");
        }
        assert!(!"123a".parse::<ContainerId>().unwrap().matches(&container));
    }

    #[test]
    fn what_cannot_be_a_container_id_is_refused() {
        for (text, word) in
            [("web", "names are not known"), ("my-db", "names"), ("abc", "3 digits"), ("", "0 digits"), (&"a".repeat(65), "65")]
        {
            let error = text.parse::<ContainerId>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_unit_without_a_suffix_is_a_service() {
        let unit = |text: &str| text.parse::<UnitName>().unwrap();
        assert!(unit("nginx").matches("nginx.service") && unit("nginx.service").matches("nginx.service"));
        assert!(unit("session-3.scope").matches("session-3.scope"));
        assert!(unit("php8.2-fpm").matches("php8.2-fpm.service") && unit("getty@tty1").matches("getty@tty1.service"));
        assert!(!unit("nginx").matches("nginx-debug.service"));
    }

    #[test]
    fn what_cannot_be_a_service_or_a_scope_is_refused() {
        for (text, word) in [
            ("system.slice", "a slice holds no"),
            ("ssh.socket", "a socket"),
            ("", "no unit"),
            ("a b", "a b"),
            ("a/b", "a/b"),
            (".scope", ".scope"),
        ] {
            let error = text.parse::<UnitName>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
