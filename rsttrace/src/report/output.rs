//! Where a page goes. A mistyped name must not cost anybody a recording, nor a full disk the page of yesterday.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process,
};

/// What every page begins with, in any case.
const BEGINNING: &[u8] = b"<!doctype html";

/// A place for a page.
#[derive(Debug)]
pub enum Output {
    /// A pipe or a device.
    Stream(PathBuf),
    /// A name without a file, or a file whose permissions the page gets.
    File(PathBuf, Option<Permissions>),
}

impl Output {
    /// Looks at what is there; nothing is changed yet.
    ///
    /// # Errors
    /// When it is something else than a page or an empty file, or cannot be looked at.
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(path.to_owned(), None)),
            found => found?,
        };
        if !found.is_file() {
            return Ok(Self::Stream(path.to_owned()));
        }
        let mut beginning = Vec::new();
        // What may not be written to is not replaced either.
        let file = File::options().read(true).write(true).open(path)?;
        file.take(BEGINNING.len() as u64).read_to_end(&mut beginning)?;
        if !beginning.is_empty() && !beginning.eq_ignore_ascii_case(BEGINNING) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is there, and is no page: give the page another name"));
        }
        // Of a link, what it leads to is replaced.
        Ok(Self::File(fs::canonicalize(path)?, Some(found.permissions())))
    }

    /// Writes the page: of a file all or nothing.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn write(&self, page: &[u8]) -> io::Result<()> {
        let (path, permissions) = match self {
            Self::Stream(path) => return File::options().write(true).open(path)?.write_all(page),
            Self::File(path, permissions) => (path, permissions),
        };
        let beside = path.with_file_name(format!(".rsttrace-report-{}", process::id()));
        let mut file = File::create_new(&beside)?;
        let written = permissions
            .iter()
            .try_for_each(|permissions| file.set_permissions(permissions.clone()))
            .and_then(|()| file.write_all(page))
            .and_then(|()| fs::rename(&beside, path));
        written.inspect_err(|_| drop(fs::remove_file(&beside)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::recording::format;

    /// A directory of its own, gone with its test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("rsttrace-output-{name}-{}", process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const PAGE: &[u8] = b"<!DOCTYPE html><html></html>";

    #[test]
    fn what_is_no_page_stays() {
        let directory = Directory::new("stays");
        let path = directory.0.join("a");
        let recording = format::encode(b"{}\n").unwrap();
        for content in [&recording[..], &recording[..10], b"{\"schema\":1}\n", b"\n{}", b"<", b"notes"] {
            fs::write(&path, content).unwrap();
            fs::hard_link(&path, directory.0.join("b")).unwrap();
            symlink(&path, directory.0.join("c")).unwrap();
            for name in ["a", "b", "c"] {
                let error = Output::at(&directory.0.join(name)).unwrap_err();
                assert!(error.to_string().contains("is no page: give the page another name"), "{error}");
            }
            assert_eq!(fs::read(&path).unwrap(), content);
            ["a", "b", "c"].iter().for_each(|name| fs::remove_file(directory.0.join(name)).unwrap());
        }
    }

    #[test]
    fn a_page_is_replaced_as_a_whole_with_its_permissions_behind_a_link_too() {
        let directory = Directory::new("replaced");
        let (path, link) = (directory.0.join("page"), directory.0.join("link"));
        symlink(&path, &link).unwrap();
        for before in [None, Some(&b""[..]), Some(&PAGE[..20])] {
            if let Some(before) = before {
                fs::write(&path, before).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            }
            let output = Output::at(if before.is_some() { &link } else { &path }).unwrap();
            output.write(PAGE).unwrap();
            assert_eq!(fs::read(&path).unwrap(), PAGE);
            assert!(before.is_none() || path.metadata().unwrap().permissions().mode() & 0o777 == 0o640);
        }
        assert!(link.is_symlink());
        assert_eq!(directory.names(), 2, "nothing is left behind");
    }

    #[test]
    fn where_a_page_cannot_be_written_the_old_one_stays() {
        let directory = Directory::new("fails");
        let path = directory.0.join("page");
        fs::write(&path, PAGE).unwrap();
        let output = Output::at(&path).unwrap();
        // It has become something that no file can replace.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        output.write(PAGE).unwrap_err();
        assert_eq!(directory.names(), 1);
        assert!(matches!(Output::at(Path::new("/dev/null")), Ok(Output::Stream(_))));
    }
}
