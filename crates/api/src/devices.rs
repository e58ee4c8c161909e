//! Devices.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Time;

/// Adds a device to a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDevice {
    /// The user's name.
    pub user: String,
    /// The device's name.
    pub device: String,
    /// A certificate request (PEM), if the key was made elsewhere.
    #[serde(default)]
    pub csr: Option<String>,
    /// Networks behind the device.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
    /// Free text.
    #[serde(default)]
    pub note: Option<String>,
}

/// How a device stands with its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyInForce {
    /// It has none.
    None,
    /// It can be used.
    Valid,
    /// Its time is over.
    Expired,
    /// It is revoked.
    Revoked,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Stays the same for ever.
    pub id: String,
    /// The user's name.
    pub user: String,
    /// The device's name.
    pub device: String,
    /// Networks behind it.
    pub prefixes: Vec<IpNet>,
    /// State of its certificate.
    pub certificate: KeyInForce,
    /// The certificate's serial number.
    pub certificate_serial: Option<String>,
    /// Until when the certificate is valid.
    pub certificate_expires: Option<Time>,
    /// When the device was revoked.
    pub revoked: Option<Time>,
    /// Free text.
    pub note: String,
    /// When the device was added.
    pub created: Time,
    /// The certificate (PEM), in the answer to adding a device by certificate request.
    pub certificate_pem: Option<String>,
}

/// All devices, of one user or of all, or a page of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// By user and name.
    pub devices: Vec<Device>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// A device was revoked, and every session of it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRevoked {
    /// The user's name.
    pub user: String,
    /// The device's name.
    pub device: String,
    /// Sessions that were ended by it.
    pub sessions_closed: u64,
    /// How long it took, from the call until no packet could pass any more.
    pub millis: u64,
}
