//! Where the files of a recording stand: FILE is the newest, FILE.1 the one before.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, open, openat, renameat, unlinkat},
    io::Errno,
};

use super::format::{self, HEADER};

/// Somebody who opens the next file.
pub trait Shelf: fmt::Debug {
    /// Opens FILE to append to it: by its name again, or `fresh`, after the others have moved on by one.
    ///
    /// # Errors
    /// What the file system refuses.
    fn open(&mut self, fresh: bool) -> io::Result<File>;
}

/// A name in a directory.
#[derive(Debug)]
pub struct Place {
    directory: OwnedFd,
    name: OsString,
    /// Files that are kept, with the newest.
    files: u32,
}

/// Records tell of addresses and requests: they are for whoever made them.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Place {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it cannot be opened, or the path names no file.
    pub fn new(path: &Path, files: u32) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "is no name of a file"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { directory, name: name.to_owned(), files })
    }

    /// The directory, for whoever confines its user to it.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Opens FILE for the first time: an empty one, or a recording, which is appended to.
    ///
    /// # Errors
    /// When it cannot be opened, or is something else.
    pub fn begin(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut file = File::from(openat(&self.directory, &self.name, flags, MODE)?);
        if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile {
            let mut beginning = Vec::new();
            file.by_ref().take(HEADER as u64).read_to_end(&mut beginning)?;
            if !beginning.is_empty() && !format::begins(&beginning) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there, and is no recording: give another name"));
            }
        }
        Ok(file)
    }

    fn numbered(&self, number: u32) -> OsString {
        if number == 0 {
            return self.name.clone();
        }
        let mut name = self.name.clone();
        name.push(OsStr::new(&format!(".{number}")));
        name
    }
}

impl Shelf for Place {
    fn open(&mut self, fresh: bool) -> io::Result<File> {
        if fresh {
            // From the oldest on; what is not there does not matter.
            match unlinkat(&self.directory, self.numbered(self.files - 1), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            for number in (1..self.files).rev() {
                match renameat(&self.directory, self.numbered(number - 1), &self.directory, self.numbered(number)) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // Somebody else may have put a link there meanwhile.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(openat(&self.directory, &self.name, flags, MODE)?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn files_move_on_and_the_oldest_goes() {
        let directory = std::env::temp_dir().join(format!("rsttrace-shelf-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut place = Place::new(&directory.join("a"), 3).unwrap();
        place.begin().unwrap().write_all(b"").unwrap();
        for n in 0..5 {
            let mut file = place.open(true).unwrap();
            file.write_all(n.to_string().as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
        assert_eq!([read("a"), read("a.1"), read("a.2"), read("a.3")].map(Option::unwrap_or_default), ["4", "3", "2", ""]);
        place.open(false).unwrap().write_all(b"+").unwrap();
        assert_eq!(read("a").unwrap(), "4+");
        assert_eq!(place.begin().unwrap_err().kind(), io::ErrorKind::AlreadyExists, "it is no recording");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
