//! Who opens the files: this process, or, once it has given up its rights, the child that kept some.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::inotify::{self, WatchFlags};

/// A file that is open, and watched.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    pub watch: i32,
}

/// Opens files by their number.
pub trait Door: std::fmt::Debug {
    /// # Errors
    /// What the system says, or that it is no regular file.
    fn open(&mut self, number: usize) -> io::Result<Opened>;
}

/// Opens the files itself, as the user who named them.
#[derive(Clone, Debug)]
pub struct Doors {
    pub paths: Vec<PathBuf>,
    pub inotify: Arc<OwnedFd>,
}

impl Doors {
    /// # Errors
    /// When the kernel gives no inotify instance (fs.inotify.max_user_instances).
    pub fn new(paths: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        Ok(Self { paths, inotify: Arc::new(inotify) })
    }

    fn open_and_watch(&self, number: usize) -> io::Result<Opened> {
        let file = open(self.paths.get(number).ok_or(io::ErrorKind::NotFound)?)?;
        // By the descriptor: the path may have another file by now.
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        let changes = WatchFlags::MODIFY | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF | WatchFlags::ATTRIB;
        let watch = inotify::add_watch(&*self.inotify, itself, changes)?;
        Ok(Opened { file, watch })
    }
}

impl Door for Doors {
    fn open(&mut self, number: usize) -> io::Result<Opened> {
        crate::sandbox::as_the_user(|| self.open_and_watch(number))?
    }
}

/// Whether a path can be followed.
///
/// # Errors
/// What the system says, or that it is no regular file.
pub fn look_at(path: &Path) -> io::Result<()> {
    open(path).map(|_| ())
}

fn open(path: &Path) -> io::Result<File> {
    // A FIFO would wait for a writer, a terminal become ours.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let (what, hint) = match kind {
        _ if kind.is_dir() => ("a directory", ""),
        _ if kind.is_fifo() => ("a pipe", PIPE_HINT),
        _ => ("a device", PIPE_HINT),
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what} and no file{hint}")))
}

const PIPE_HINT: &str = "; as standard input it can be read: --error-log - < FILE";
