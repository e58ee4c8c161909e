//! What can go wrong, by area.

use std::io;
use std::path::PathBuf;

use adit_plan::nat::NoBlock;
use adit_plan::pool::Full;
use adit_plan::prefix::PrefixFault;

use crate::model::Authorized;
use crate::name::NameFault;

/// The database itself fails: the host's trouble, not the caller's.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// The file's content is not what was written.
    #[error(
        "the database {} is damaged ({detail}); stop adit, move the file and its -wal file away for examination and \
         restore a backup. Nothing was changed or deleted", .path.display()
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Another process uses the database.
    #[error("the database {} is in use by another process; is adit running already?", .path.display())]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// There is no room to write.
    #[error("no space left to write the database {}; free some, then try again", .path.display())]
    DiskFull {
        /// The database file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("the database {} cannot be written; check its owner, mode and file system", .path.display())]
    ReadOnly {
        /// The database file.
        path: PathBuf,
    },
    /// Any other failure.
    #[error("the database {} failed: {detail}", .path.display())]
    Failed {
        /// The database file.
        path: PathBuf,
        /// What the database says.
        detail: String,
    },
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for a new id")]
    Randomness,
    /// A cursor that this list never gave.
    #[error("this cursor belongs to no page of this list; start again from the first page")]
    Cursor,
    /// A text longer than the journal keeps.
    #[error("{what} is longer than {max} bytes")]
    TooLong {
        /// Which text.
        what: &'static str,
        /// How long it may be.
        max: usize,
    },
}

/// Why a database could not be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    /// There is no file.
    #[error("there is no database {}; create it with `adit init`, or restore a backup", .path.display())]
    Missing {
        /// The database file.
        path: PathBuf,
    },
    /// There is a file where a new one should be made.
    #[error("{} exists already and is not overwritten", .path.display())]
    Exists {
        /// The database file.
        path: PathBuf,
    },
    /// The file is a database of another program.
    #[error("{} is not a database of adit", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer adit wrote the file.
    #[error(
        "the database {} has schema version {found}, written by a newer adit; this one knows versions up to {known}. \
         Install the newer adit again, or restore a backup made before its first start", .path.display()
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// A migration failed and was undone.
    #[error(
        "the database {} could not be brought from schema version {from} to {to} and is unchanged: {detail}",
        .path.display()
    )]
    Migration {
        /// The database file.
        path: PathBuf,
        /// The version before.
        from: u32,
        /// The version that was to be reached.
        to: u32,
        /// What went wrong.
        detail: String,
    },
    /// The file system refused.
    #[error("cannot {doing} {}: {error}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The database itself fails.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Why a change was not made. Nothing is changed when one of these comes back.
#[derive(Debug, thiserror::Error)]
pub enum ChangeFault {
    /// The thing to be changed does not exist (any more).
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The name belongs to another.
    #[error("there is a {what} named {name} already")]
    NameTaken {
        /// A user or a device.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The name cannot be a name.
    #[error(transparent)]
    Name(#[from] NameFault),
    /// A certificate with this serial number and issuer, or this serial number and key, exists.
    #[error("there is a certificate with serial number {0} already")]
    SerialTaken(String),
    /// A prefix that cannot stand behind the device.
    #[error(transparent)]
    Prefix(#[from] PrefixFault),
    /// The database itself fails.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Why a peer that proved who it is may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such certificate was issued, or no such device added, here.
    #[error("the certificate or device is not known here")]
    Unknown,
    /// The serial number is known, with another key.
    #[error("the certificate's key is not the one that was certified")]
    KeyMismatch,
    /// The certificate was revoked.
    #[error("the certificate is revoked")]
    CertificateRevoked,
    /// The device was revoked.
    #[error("the device is revoked")]
    DeviceRevoked,
    /// The user is suspended for the time being.
    #[error("the user is suspended")]
    UserSuspended,
    /// The user was removed.
    #[error("the user was removed")]
    UserRemoved,
    /// The certificate's time is over.
    #[error("the certificate has expired")]
    Expired,
}

/// Why a peer does not come in: refused, or nobody could tell.
#[derive(Debug, thiserror::Error)]
pub enum AccessFault {
    /// The peer is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The database itself fails; the peer stays outside.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

/// Why nobody came in. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionFault {
    /// The peer is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No pools were set.
    #[error("no address pools are set")]
    NoPools,
    /// The peer may come in, but there are no addresses or ports for it.
    #[error("{}/{} gets no {}: {fault}", .who.user.name, .who.device.name, .fault.lacking())]
    NoLease {
        /// Who it is.
        who: Box<Authorized>,
        /// Why.
        fault: LeaseFault,
    },
    /// The database itself fails.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

impl From<AccessFault> for AdmissionFault {
    fn from(fault: AccessFault) -> Self {
        match fault {
            AccessFault::Refused(refusal) => Self::Refused(refusal),
            AccessFault::Store(fault) => Self::Store(fault),
        }
    }
}

/// Why a device has no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseFault {
    /// No pools were set.
    #[error("no address pools are set")]
    NoPools,
    /// Every address of a family is leased.
    #[error(transparent)]
    Full(#[from] Full),
    /// There is no block of ports.
    #[error(transparent)]
    NoBlock(#[from] NoBlock),
    /// The session is not an open one of this device.
    #[error("the session is not an open session of the device")]
    NoSession,
    /// The lease ended, or went to another session, before.
    #[error("the lease has ended already")]
    Ended,
    /// The database itself fails.
    #[error(transparent)]
    Store(#[from] StoreFault),
}

impl LeaseFault {
    /// What the device does not get.
    fn lacking(&self) -> &'static str {
        if matches!(self, Self::NoBlock(_)) { "ports" } else { "address" }
    }
}

/// Why pools cannot be used with what the store holds.
#[derive(Debug, thiserror::Error)]
pub enum PoolsFault {
    /// A prefix behind a device lies in a pool.
    #[error(
        "the address pool {pool} overlaps {prefix}, which is behind {owner}; choose another pool, or take the prefix \
         from the device"
    )]
    OverlapsPrefix {
        /// The pool.
        pool: ipnet::IpNet,
        /// The prefix.
        prefix: ipnet::IpNet,
        /// The device, as `user/device`.
        owner: String,
    },
    /// The database itself fails.
    #[error(transparent)]
    Store(#[from] StoreFault),
}
