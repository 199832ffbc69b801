//! The formats by the names that people give them.

use std::str::FromStr;

use super::{Envoy, HaProxy, LogFormat, NginxAccess, NginxError};

/// A format that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Nginx,
    NginxAccess,
    HaProxy,
    Envoy,
}

impl Format {
    pub const ALL: [Self; 4] = [Self::Nginx, Self::NginxAccess, Self::HaProxy, Self::Envoy];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxAccess => "nginx-access",
            Self::HaProxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// What takes its lines apart.
    pub fn parser(self) -> Box<dyn LogFormat> {
        match self {
            Self::Nginx => Box::new(NginxError),
            Self::NginxAccess => Box::new(NginxAccess),
            Self::HaProxy => Box::new(HaProxy),
            Self::Envoy => Box::new(Envoy),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no log format is called {text:?}: expected one of {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_name() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        let error = "apache".parse::<Format>().expect_err("no such format");
        assert_eq!(error, "no log format is called \"apache\": expected one of nginx, nginx-access, haproxy, envoy");
    }
}
