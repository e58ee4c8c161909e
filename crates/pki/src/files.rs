//! Files of keys and certificates: the only place of this crate that touches the file system.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

/// Larger files hold no key.
const MAX_SECRET: u64 = 1 << 20;

/// Why a file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried: `read` or `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others than the owner have access to a secret.
    #[error("{} is open to others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Far larger than any key.
    #[error("{} is larger than 1 MiB and cannot be a key file", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
}

/// Replaces `path` by a file with `bytes` that only its owner can read and write. It appears whole or not at
/// all, also after a crash, and is never open to others on the way.
///
/// # Errors
/// [`FileError::Io`]; the old file is then still in place.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write(path, bytes, 0o600)
}

/// Replaces `path` by a file with `bytes` that everybody can read, whatever the umask. It appears whole or
/// not at all.
///
/// # Errors
/// [`FileError::Io`]; the old file is then still in place.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write(path, bytes, 0o644)
}

/// Reads a file that only its owner may have access to.
///
/// # Errors
/// [`FileError::TooOpen`] when group or others can read or write it, [`FileError::TooLarge`],
/// [`FileError::Io`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let fault = |error| FileError::Io { action: "read", path: path.to_owned(), error };
    // Asked of the open file, so that nobody can put another in its place in between.
    let file = File::open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    if metadata.len() > MAX_SECRET {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    // Room for one byte more than there is: the buffer never moves and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
    file.take(metadata.len()).read_to_end(&mut bytes).map_err(fault)?;
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = beside(path)?;
    let written = fill(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path)).and_then(|()| {
        // The directory holds the new name; without this a power failure can bring the old one back.
        File::open(directory(path))?.sync_all()
    });
    written.map_err(|error| {
        // Gone already when the rename succeeded, and nothing more to be done when it cannot be removed.
        let _ = fs::remove_file(&temporary);
        FileError::Io { action: "write", path: path.to_owned(), error }
    })
}

fn fill(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A fresh name in the same directory, so that the rename stays within one file system.
fn beside(path: &Path) -> Result<PathBuf, FileError> {
    let fault = |error| FileError::Io { action: "write", path: path.to_owned(), error };
    let name = path.file_name().ok_or_else(|| fault(io::ErrorKind::InvalidInput.into()))?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| fault(io::Error::other("no random bytes")))?;
    let name = format!(".{}.{}.tmp", name.to_string_lossy(), HEXLOWER.encode(&random));
    Ok(path.with_file_name(name))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_secret_is_written_for_its_owner_only_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");

        write_secret(&path, b"secret").unwrap();

        assert_eq!(mode(&path), 0o600);
        assert_eq!(read_secret(&path).unwrap().as_slice(), b"secret");
    }

    #[test]
    fn an_open_file_becomes_private_when_a_secret_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_public(&path, b"public").unwrap();
        assert_eq!(mode(&path), 0o644);

        write_secret(&path, b"secret").unwrap();

        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn nothing_but_the_file_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        write_secret(&dir.path().join("a"), b"1").unwrap();
        write_public(&dir.path().join("a"), b"2").unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();

        let error = write_secret(&dir.path().join("b"), b"a directory is in the way").unwrap_err();

        assert!(error.to_string().starts_with("cannot write "), "{error}");
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_secret(&path, b"secret").unwrap();
        for open in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();

            let error = read_secret(&path).unwrap_err().to_string();

            assert!(error.contains(&format!("mode {open:04o}")), "{error}");
            assert!(error.ends_with(&format!("chmod 600 {}", path.display())), "{error}");
        }
    }

    #[test]
    fn a_missing_or_huge_secret_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert!(read_secret(&path).unwrap_err().to_string().contains("key.pem"));

        write_secret(&path, &vec![0; MAX_SECRET as usize + 1]).unwrap();

        assert!(matches!(read_secret(&path), Err(FileError::TooLarge { .. })));
    }
}
