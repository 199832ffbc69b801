//! The guest's root: a cpio archive, "newc" as Documentation/driver-api/early-userspace says.

use std::{fs, path::Path};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHAR_DEVICE: u32 = 0o020_600;

#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.entry(name, DIRECTORY, &[], (0, 0))
    }

    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHAR_DEVICE, &[], (major, minor))
    }

    pub fn link(&mut self, name: &str, to: &str) -> &mut Self {
        self.entry(name, LINK, to.as_bytes(), (0, 0))
    }

    pub fn file(&mut self, name: &str, from: &Path) -> Result<&mut Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
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
        archive.directory("dev").device("dev/console", 5, 1).link("bin/ss", "/init");
        let bytes = archive.finish();
        let starts: Vec<usize> = bytes.windows(6).enumerate().filter(|(_, window)| window == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0) && bytes.len() % 4 == 0);
        // Header of 110 bytes, name and padding, then the content.
        assert_eq!(&bytes[starts[2] + 110..][..13], b"bin/ss\0\0\0\0/in");
    }
}
