//! What the store hands out: plain values, copies of what was written at the moment of asking.

use adit_plan::nat::Block;
use adit_plan::pool::Inner;
use ipnet::IpNet;

use crate::credential::{Issuer, KeyHash, Reason, Serial};
use crate::id::{DeviceId, GatewayId, LeaseId, SessionId, UserId};
use crate::name::Name;
use crate::time::Timestamp;

/// Who makes a change, and when: goes into the audit row that is written together with the change.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Who: an operator's name, an API token's name, or the part of the gateway that acts by itself.
    pub actor: &'a str,
    /// When.
    pub now: Timestamp,
}

/// A user: the owner of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The id, which stays the same for ever.
    pub id: UserId,
    /// The name, unique among users that are not removed.
    pub name: Name,
    /// Free text for operators.
    pub note: String,
    /// When the user was added.
    pub created: Timestamp,
    /// Since when the user may not connect.
    pub suspended: Option<Timestamp>,
    /// When the user was removed for good.
    pub removed: Option<Timestamp>,
}

/// A device of a user: the owner of certificates, prefixes and inner addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The id, which stays the same for ever.
    pub id: DeviceId,
    /// Whose device it is.
    pub user: UserId,
    /// The name, unique among the user's devices that are not revoked.
    pub name: Name,
    /// Free text for operators.
    pub note: String,
    /// When the device was added.
    pub created: Timestamp,
    /// When the device was revoked for good.
    pub revoked: Option<Timestamp>,
}

/// That and why a certificate is revoked. Final: a revocation is never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub reason: Reason,
}

/// A device's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Who issued it.
    pub issuer: Issuer,
    /// Its serial number, unique for the issuer.
    pub serial: Serial,
    /// The hash of its public key.
    pub key: KeyHash,
    /// Whose certificate it is.
    pub device: DeviceId,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// The certificate itself, DER-encoded.
    pub der: Vec<u8>,
    /// Its revocation, if it is revoked.
    pub revocation: Option<Revocation>,
}

/// A certificate with the device and user it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The certificate.
    pub certificate: Certificate,
    /// Its device.
    pub device: Device,
    /// The device's user.
    pub user: User,
}

/// One row of a revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The serial number.
    pub serial: Serial,
    /// When and why.
    pub revocation: Revocation,
}

/// What a peer that proved who it is may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    /// The device.
    pub device: Device,
    /// The device's user.
    pub user: User,
    /// The networks behind the device, sorted.
    pub prefixes: Vec<IpNet>,
}

/// A row of the list of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The user.
    pub user: User,
    /// How many devices the user has that are not revoked.
    pub devices: u64,
}

/// A row of the list of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device.
    pub device: Device,
    /// The name of its user.
    pub user: Name,
    /// The networks behind it, sorted.
    pub prefixes: Vec<IpNet>,
    /// Its certificate's state.
    pub certificate: CertificateState,
}

/// How a device stands with certificates: told by the one that can be used longest, or, if none can be used, by the
/// newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateState {
    /// The device never had one.
    None,
    /// It can be used.
    Valid {
        /// The serial number.
        serial: Serial,
        /// Until when.
        not_after: Timestamp,
    },
    /// Its time is over.
    Expired {
        /// The serial number.
        serial: Serial,
        /// Since when.
        not_after: Timestamp,
    },
    /// It is revoked.
    Revoked {
        /// The serial number.
        serial: Serial,
        /// Since when and why.
        revocation: Revocation,
    },
}

/// What [`Store::open_session`](crate::Store::open_session) writes down.
#[derive(Debug, Clone, Copy)]
pub struct SessionStart<'a> {
    /// Whose session.
    pub device: DeviceId,
    /// The serial number and key hash by which the device proved itself, if it did so by certificate.
    pub certificate: Option<(&'a Serial, &'a KeyHash)>,
    /// The protocol's name.
    pub protocol: &'a str,
    /// The name of the gateway's identity that answered.
    pub identity: &'a str,
    /// The transport's name.
    pub transport: &'a str,
    /// When the session begins.
    pub now: Timestamp,
}

/// A session as the journal has it. Where the device was, and whom it talked to, is never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The id.
    pub id: SessionId,
    /// The gateway it was at.
    pub gateway: GatewayId,
    /// Its place in the gateway's journal.
    pub seq: i64,
    /// Whose session.
    pub device: DeviceId,
    /// The serial number of the certificate shown.
    pub certificate: Option<Serial>,
    /// The protocol's name.
    pub protocol: String,
    /// The name of the gateway's identity.
    pub identity: String,
    /// The transport's name.
    pub transport: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; `None` while it is open.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<String>,
}

/// A lease as the journal has it: these addresses were this device's from `started` until just before `ended`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The id.
    pub id: LeaseId,
    /// The gateway whose pools the addresses are from.
    pub gateway: GatewayId,
    /// Its place in the gateway's journal.
    pub seq: i64,
    /// Whose lease.
    pub device: DeviceId,
    /// For which session.
    pub session: SessionId,
    /// The addresses.
    pub inner: Inner,
    /// The block of ports that its connections leave from, or left from last; `None` without translation.
    pub block: Option<Block>,
    /// The first moment.
    pub started: Timestamp,
    /// The first moment after it; `None` while it is open.
    pub ended: Option<Timestamp>,
}

/// What [`Store::recover`](crate::Store::recover) closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Sessions that were open.
    pub sessions: u64,
    /// Leases that were open.
    pub leases: u64,
    /// When the journal was closed. Rows begun later were closed at their own beginning.
    pub at: Timestamp,
}

/// What [`Store::purge`](crate::Store::purge) deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    /// Sessions.
    pub sessions: u64,
    /// Leases.
    pub leases: u64,
    /// Blocks.
    pub blocks: u64,
    /// Forwards.
    pub forwards: u64,
}

/// What [`Store::roll`](crate::Store::roll) wrote anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rolled {
    /// Leases.
    pub leases: u64,
    /// Forwards.
    pub forwards: u64,
}
