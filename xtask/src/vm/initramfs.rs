//! The guest's root: a cpio archive, "newc" as Documentation/driver-api/early-userspace says.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHAR_DEVICE: u32 = 0o020_600;

#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// With all that it is in.
    pub fn directory(&mut self, name: &str) -> &mut Self {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        if self.directories.insert(name.to_owned()) { self.entry(name, DIRECTORY, &[], (0, 0)) } else { self }
    }

    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHAR_DEVICE, &[], (major, minor))
    }

    pub fn file(&mut self, name: &str, from: &Path) -> Result<&mut Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        Ok(self.entry(name, PROGRAM, &content, (0, 0)))
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) -> &mut Self {
        self.entries += 1;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let name = [name.as_bytes(), &[0]].concat();
        // Inode, mode, user, group, links, time, size, device of the file system, of the node, name, sum.
        let fields = [self.entries, mode, 0, 0, 1, 0, length(content), 0, 0, major, minor, length(&name), 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        for part in [&name, content] {
            self.bytes.extend(part);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.directory("a/bc").device("a/bc/console", 5, 1);
        let bytes = archive.finish();
        let starts: Vec<usize> = bytes.windows(6).enumerate().filter(|(_, window)| window == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0) && bytes.len() % 4 == 0);
        // Header of 110 bytes, then the name.
        assert_eq!(&bytes[starts[0] + 110..][..2], b"a\0");
        assert_eq!(&bytes[starts[1] + 110..][..5], b"a/bc\0");
    }
}
