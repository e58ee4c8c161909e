//! One daemon at a time: a file that the running one holds locked.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

use crate::errno::words;

/// Why the lock was not taken.
#[derive(Debug, Error)]
pub enum LockFault {
    /// Another process has it.
    #[error("{} is held by {holder}: adit is already running with this directory", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// "process 1234", or "another process" when the file does not say.
        holder: String,
    },
    /// The file could not be opened, locked or written.
    #[error("lock file {}: {}", path.display(), words(source))]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A lock that ends with this value, or with the process however it ends.
///
/// The file stays behind: removing it would let two processes lock two files of one name.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Locks the file at `path`, which is created when missing, and writes this process's id into it.
    ///
    /// # Errors
    /// [`LockFault::Held`] names the process that has the lock.
    pub fn acquire(path: &Path) -> Result<Self, LockFault> {
        let fault = |source| LockFault::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(fault)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockFault::Held { path: path.to_owned(), holder: holder(&mut file) });
            }
            Err(errno) => return Err(fault(errno.into())),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(fault)?;
        Ok(Self { _file: file })
    }
}

/// Who holds the lock, as far as the file tells: it is empty for a moment while the holder writes it.
fn holder(file: &mut File) -> String {
    written(file).map_or_else(|| "another process".to_owned(), |process| format!("process {process}"))
}

/// The process that the file names.
fn written(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    // A process id has at most seven digits; whatever else the file holds is not read.
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The process that has locked the file at `path`, without trying to lock it; `None` when there is no such file, or
/// when the process it names does not have it open: an ended one's number may be another's by now.
///
/// # Errors
/// When the process may not be looked into.
pub fn locked_by(path: &Path) -> io::Result<Option<u32>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let Some(process) = written(&mut file) else { return Ok(None) };
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let wanted = identity(file.metadata()?);
    // The process may be this one.
    drop(file);
    let descriptors = match fs::read_dir(format!("/proc/{process}/fd")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        descriptors => descriptors?,
    };
    for descriptor in descriptors.map_while(Result::ok) {
        if fs::metadata(descriptor.path()).map(identity).is_ok_and(|found| found == wanted) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.lock");
        let _held = LockFile::acquire(&path).unwrap();

        let refused = LockFile::acquire(&path).unwrap_err();

        let expected = format!("adit.lock is held by process {}: adit is already", std::process::id());
        assert!(refused.to_string().contains(&expected), "{refused}");
    }

    #[test]
    fn a_dropped_lock_can_be_taken_again_and_old_text_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.lock");
        fs::write(&path, "4194304 and more").unwrap();
        drop(LockFile::acquire(&path).unwrap());

        let _again = LockFile::acquire(&path).unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn the_holder_is_found_without_locking_and_one_that_has_ended_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.lock");
        assert_eq!(locked_by(&path).unwrap(), None);
        let held = LockFile::acquire(&path).unwrap();
        assert_eq!(locked_by(&path).unwrap(), Some(std::process::id()));
        drop(held);
        assert_eq!(locked_by(&path).unwrap(), None, "the process is there, without the file");
        fs::write(&path, "4194305\n").unwrap();
        assert_eq!(locked_by(&path).unwrap(), None, "there is no such process");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let fault = LockFile::acquire(Path::new("/nonexistent/adit.lock")).unwrap_err();

        assert_eq!(fault.to_string(), "lock file /nonexistent/adit.lock: No such file or directory");
    }
}
