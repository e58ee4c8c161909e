//! Server identities and the CA.

use serde::{Deserialize, Serialize};

use crate::Time;

/// Adds an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddIdentity {
    /// The name.
    pub name: String,
    /// Kind of key, for instance `P-256`.
    pub key: String,
    /// `none`, `tls-auth`, `tls-crypt` or `tls-crypt-v2`.
    pub wrap: String,
    /// Digest of tls-auth.
    #[serde(default)]
    pub auth: Option<String>,
    /// The port that profiles prefer.
    #[serde(default)]
    pub port: Option<u16>,
}

/// A server identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name.
    pub name: String,
    /// Kind of key.
    pub key: String,
    /// Protection of control packets.
    pub wrap: String,
    /// Digest of tls-auth.
    pub auth: Option<String>,
    /// The port that profiles prefer.
    pub port: Option<u16>,
    /// The certificate's serial number.
    pub certificate_serial: String,
    /// Until when the certificate is valid.
    pub certificate_expires: Time,
}

/// All identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityList {
    /// In the order of the configuration.
    pub identities: Vec<Identity>,
    /// Always `null`: there are few.
    pub next: Option<String>,
}

/// The state of the CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// Its subject.
    pub subject: String,
    /// Kind of key.
    pub key: String,
    /// Its serial number.
    pub serial: String,
    /// Until when it is valid.
    pub expires: Time,
    /// Certificates of devices that are revoked.
    pub revoked: u64,
    /// When the CRL was made.
    pub crl_updated: Option<Time>,
    /// When the CRL expires.
    pub crl_expires: Option<Time>,
}
