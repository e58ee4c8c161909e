//! The record of changes: a file that says what is to be undone should this process not live to do it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PlumbingFault;
use super::plan::Done;
use crate::netns::Netns;

/// The start of the machine, which makes all that was done before void.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file's content.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Which start of the machine the changes belong to.
    pub(super) boot: String,
    /// Which network namespace, by device and inode.
    pub(super) netns: (u64, u64),
    /// What may have been done, oldest first. Written before it is done, so some of it may not have been.
    pub(super) done: Vec<Done>,
}

/// Where a record is kept.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
}

impl RecordFile {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The record, if there is one.
    pub(super) fn read(&self) -> Result<Option<Record>, PlumbingFault> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.fault(error)),
        };
        let record = serde_json::from_slice(&text).map_err(|error| PlumbingFault::BadRecord {
            path: self.path.clone(),
            problem: error.to_string(),
        })?;
        Ok(Some(record))
    }

    /// Writes what may be done in `netns`, so that it survives a crash of the machine as well; with nothing
    /// done there is no file.
    pub(super) fn write(&self, netns: &Netns, done: &[Done]) -> Result<(), PlumbingFault> {
        if done.is_empty() {
            return self.remove();
        }
        let record = Record { boot: boot_id()?, netns: netns.identity()?, done: done.to_vec() };
        let text = serde_json::to_vec_pretty(&record).map_err(|error| self.fault(error.into()))?;
        self.replace(&text).map_err(|error| self.fault(error))
    }

    /// Removes the file, if it is there.
    pub(super) fn remove(&self) -> Result<(), PlumbingFault> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_directory().map_err(|error| self.fault(error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.fault(error)),
        }
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = self.path.with_file_name(name);
        // One that a crash left behind may have any mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn fault(&self, source: io::Error) -> PlumbingFault {
        PlumbingFault::Record { path: self.path.clone(), source }
    }
}

/// Which start of the machine this is.
pub(super) fn boot_id() -> Result<String, PlumbingFault> {
    let text = fs::read_to_string(BOOT_ID)
        .map_err(|source| PlumbingFault::Record { path: BOOT_ID.into(), source })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::netlink::Rule;

    #[test]
    fn a_record_survives_in_a_file_only_its_owner_can_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("changes.json");
        let file = RecordFile::at(&path);
        let netns = Netns::current().unwrap();
        fs::write(directory.path().join("changes.json.new"), "left by a crash").unwrap();
        assert_eq!(file.read().unwrap(), None);

        let done = vec![Done::Rule(Rule::new(true, 100, 42))];
        file.write(&netns, &done).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let record = Record { boot: boot_id().unwrap(), netns: netns.identity().unwrap(), done };
        assert_eq!(file.read().unwrap(), Some(record));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        file.write(&netns, &[]).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        file.remove().unwrap();
    }

    #[test]
    fn a_file_that_is_no_record_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("changes.json");
        fs::write(&path, "{\"boot\":").unwrap();

        let fault = RecordFile::at(&path).read().unwrap_err().to_string();

        assert!(fault.contains("changes.json cannot be read (EOF"), "{fault}");
    }
}
