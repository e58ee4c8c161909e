//! Where running clients keep what is to be undone: a record and a lock for each, named by interface.

use std::fs;
use std::path::{Path, PathBuf};

use adit_host::lock::{LockFault, LockFile};
use adit_host::netns::{Netns, NetnsFault};
use adit_host::plumbing::{Recovery, recover};

const SYSTEM: &str = "/run/adit";
const PREFIX: &str = "client-";

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceFault {
    /// No directory can be written.
    #[error("cannot keep state in {}: {error}", directory.display())]
    Directory {
        /// What was tried.
        directory: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The network namespace is not known.
    #[error(transparent)]
    Netns(#[from] NetnsFault),
    /// Another client has the interface.
    #[error(transparent)]
    Lock(#[from] LockFault),
}

/// See the module's text. Interfaces of other network namespaces have other files.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    /// End of the names of this namespace's files, without extension.
    suffix: String,
}

impl Place {
    /// `/run/adit`, or `adit` in `$XDG_RUNTIME_DIR` for those who may not write there.
    pub(crate) fn find() -> Result<Self, PlaceFault> {
        let own = std::env::var_os("XDG_RUNTIME_DIR").map(|own| Path::new(&own).join("adit"));
        match Self::within(Path::new(SYSTEM)) {
            Err(PlaceFault::Directory { error, .. })
                if error.kind() == std::io::ErrorKind::PermissionDenied && own.is_some() =>
            {
                Self::within(&own.unwrap_or_default())
            }
            result => result,
        }
    }

    /// In this directory, which is made if it is missing.
    pub(crate) fn within(directory: &Path) -> Result<Self, PlaceFault> {
        let fault = |error| PlaceFault::Directory { directory: directory.to_owned(), error };
        fs::create_dir_all(directory).map_err(fault)?;
        let (_, inode) = Netns::current()?.identity()?;
        let place = Self { directory: directory.to_owned(), suffix: format!("@{inode}") };
        // A directory that may be read only would be noticed too late.
        let probe = place.file("probe", &std::process::id().to_string());
        fs::write(&probe, "").and_then(|()| fs::remove_file(&probe)).map_err(fault)?;
        Ok(place)
    }

    /// The record of what was changed for `interface`.
    pub(crate) fn record(&self, interface: &str) -> PathBuf {
        self.file(interface, "json")
    }

    /// Takes `interface` for this process.
    pub(crate) fn lock(&self, interface: &str) -> Result<LockFile, PlaceFault> {
        Ok(LockFile::acquire(&self.file(interface, "lock"))?)
    }

    /// Undoes what clients have left that did not live to do it themselves.
    pub(crate) fn clean_up(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let interface = name
                .strip_prefix(PREFIX)
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|name| name.strip_suffix(&self.suffix));
            // What is locked belongs to one that lives.
            let Some((interface, _lock)) = interface.and_then(|name| Some((name, self.lock(name).ok()?)))
            else {
                continue;
            };
            match recover(&self.record(interface)) {
                Ok(Recovery::Clean) => {}
                Ok(recovery) => tracing::warn!(interface, "{recovery}"),
                Err(fault) => tracing::warn!(interface, "left by a client that ended: {fault}"),
            }
        }
    }

    fn file(&self, interface: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{PREFIX}{interface}{}.{extension}", self.suffix))
    }
}
