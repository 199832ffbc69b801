//! Names of users, from /etc/passwd: read directly, because a static program cannot load what else a host
//! may be configured to ask.

use std::{collections::HashMap, fs::File, io::Read as _, sync::Arc};

/// More of the file is not read.
const MAX_FILE: u64 = 4 << 20;
/// `LOGIN_NAME_MAX`.
const MAX_NAME: usize = 256;

#[derive(Debug, Default)]
pub struct Users(HashMap<u32, Arc<str>>);

impl Users {
    /// Empty where there is no such file.
    pub fn read() -> Self {
        let mut bytes = Vec::new();
        let _ = File::open("/etc/passwd").and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// The first name of a number counts, as for getpwuid().
    fn parse(text: &str) -> Self {
        let mut users = HashMap::new();
        for (uid, name) in text.lines().filter_map(user) {
            users.entry(uid).or_insert_with(|| Arc::from(name));
        }
        Self(users)
    }

    pub fn name(&self, uid: u32) -> Option<Arc<str>> {
        self.0.get(&uid).cloned()
    }
}

/// `name:password:uid:...`
fn user(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with(['#', '+', '-']))?;
    Some((fields.nth(1)?.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_the_first_name_that_the_file_gives_them() {
        let users = Users::parse(
            "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\n# a comment:x:7:\n+nis:x:8:\nwww-data:x:33:33:\nbad:x:-1:\ncut:x\n",
        );
        assert_eq!(users.name(0).as_deref(), Some("root"));
        assert_eq!(users.name(33).as_deref(), Some("www-data"));
        for unknown in [7, 8, 1] {
            assert_eq!(users.name(unknown), None);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = Users::parse(&text);
        }
    }
}
