//! The gateway's memory: users, devices, certificates and revocations; the journal of sessions; the trail of leases,
//! blocks of ports and forwards, which is evidence; the audit trail.
//!
//! A [`Store`] is one database. Today that is an SQLite file of this gateway alone; all SQL is in one private module
//! behind the plain types handed out here, so that a database shared by several gateways can take its place: every
//! row of the journal carries the gateway that wrote it and its place in that gateway's journal.
//!
//! The store reads no clock and holds no secrets: callers pass the time, keys are files elsewhere. It knows nothing
//! of any one protocol, and never learns where a device is or what it talks to.
//!
//! ```
//! use adit_plan::pool::Pools;
//! use adit_store::{Change, LeaseRequest, NewDevice, SessionStart, Store, Timestamp};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("adit.db");
//! let now = Timestamp::from_millis(1_700_000_000_000);
//! let store = Store::create(&path, now)?;
//! store.recover(now, 0)?;
//! store.set_pools(Pools::new(&["10.88.0.0/16".parse()?], &["fd88::/64".parse()?])?)?;
//!
//! let operator = Change { actor: "root", now };
//! let ann = store.add_user(&operator, "ann", "")?;
//! let laptop = store.add_device(&operator, ann.id, &NewDevice { name: "laptop", ..Default::default() })?;
//!
//! let session = store.open_session(&SessionStart {
//!     device: laptop.id,
//!     certificate: None,
//!     protocol: "example",
//!     identity: "default",
//!     transport: "udp",
//!     now,
//! })?;
//! let lease = store.lease(&LeaseRequest { device: laptop.id, session: session.id, now })?;
//! assert_eq!(lease.inner().to_string(), "10.88.0.2, fd88::2");
//!
//! lease.end(now)?;
//! store.close_session(session.id, now, "client left")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod admission;
mod audit;
mod certificates;
mod credential;
mod devices;
mod epochs;
mod fault;
mod forwards;
mod id;
mod lease;
mod model;
mod name;
mod nat;
mod page;
mod retention;
mod sessions;
mod sqlite;
mod store;
#[cfg(test)]
mod testing;
mod time;
mod trace;
mod trail;
mod users;

pub use admission::{Admission, Admitted};
pub use audit::{AuditCheck, AuditRow, BrokenLink};
pub use credential::{CredentialFault, Issuer, KeyHash, Reason, Serial};
pub use devices::NewDevice;
pub use epochs::Epoch;
pub use fault::{
    AccessFault, AdmissionFault, ChangeFault, LeaseFault, OpenFault, PoolsFault, Refusal, StoreFault,
};
pub use forwards::{Forward, ForwardFault, ForwardProtocol, ForwardProtocolFault, ForwardRow, NewForward};
pub use id::{DeviceId, ForwardId, GatewayId, IdFault, LeaseId, SessionId, UserId};
pub use lease::{Lease, LeaseRequest};
pub use model::{
    Authorized, Certificate, CertificateState, Change, Device, DeviceRow, Holder, LeaseRecord, Purged,
    Recovered, Revocation, Revoked, Rolled, Session, SessionStart, User, UserRow,
};
pub use name::{Name, NameFault};
pub use nat::{BlockNow, BlockOwner, Homeless, Moved, NatUsage, Quarantined, Replanned};
pub use page::{Cursor, LARGEST_PAGE, Listed, Page, USUAL_PAGE};
pub use store::Store;
pub use time::Timestamp;
pub use trace::{Trace, TraceKind, TraceMatch, TraceOwner, TraceProtocol, TraceQuery};
pub use trail::{TrailCheck, TrailFault, TrailTable};
