//! The set of revoked certificates that a handshake is checked against.

use std::collections::{HashMap, HashSet};

use crate::certificate::Certificate;
use crate::crl::{Crl, CrlError};
use crate::serial::Serial;
use crate::time::UnixTime;

/// Revoked certificates, found by issuer and serial in constant time.
///
/// A set says nothing about dates: what a list once revoked stays revoked when the list has expired, and
/// [`Revocations::next_update`] tells when a newer one was due. (Stock OpenVPN refuses everybody then.)
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    /// By the issuer's DER name; the lists of several authorities of one name are kept apart by key.
    issuers: HashMap<Vec<u8>, Vec<Issued>>,
    next_update: Option<UnixTime>,
}

#[derive(Debug, Clone)]
struct Issued {
    key_id: Option<Vec<u8>>,
    serials: HashSet<Serial>,
}

impl Revocations {
    /// Nothing revoked.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what `list` revokes, if `issuer` signed it.
    ///
    /// # Errors
    /// As [`Crl::verify`]; nothing is added then.
    pub fn add_crl(&mut self, list: &Crl, issuer: &Certificate) -> Result<(), CrlError> {
        list.verify(issuer)?;
        let key_id = list.issuer_key_id().or(issuer.key_id());
        let serials = self.serials_of(list.issuer_der(), key_id);
        serials.extend(list.revoked().iter().map(|entry| entry.serial.clone()));
        self.next_update = match (self.next_update, list.next_update()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Ok(())
    }

    /// Adds one certificate of `issuer`, known by its serial.
    pub fn add(&mut self, issuer: &Certificate, serial: Serial) {
        self.serials_of(issuer.subject_der(), issuer.key_id()).insert(serial);
    }

    /// True when `certificate` is in the set.
    pub fn contains(&self, certificate: &Certificate) -> bool {
        let Some(issued) = self.issuers.get(certificate.issuer_der()) else {
            return false;
        };
        let key_id = certificate.issuer_key_id();
        issued
            .iter()
            // Without identifiers on both sides, the name alone decides: rather one refusal too many.
            .filter(|issued| {
                key_id.is_none() || issued.key_id.is_none() || issued.key_id.as_deref() == key_id
            })
            .any(|issued| issued.serials.contains(certificate.serial()))
    }

    /// How many certificates are revoked.
    pub fn len(&self) -> usize {
        self.issuers.values().flatten().map(|issued| issued.serials.len()).sum()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The earliest moment at which one of the lists should have been replaced by a newer one.
    pub fn next_update(&self) -> Option<UnixTime> {
        self.next_update
    }

    fn serials_of(&mut self, name: &[u8], key_id: Option<&[u8]>) -> &mut HashSet<Serial> {
        let issued = self.issuers.entry(name.to_vec()).or_default();
        let at = issued.iter().position(|issued| issued.key_id.as_deref() == key_id).unwrap_or_else(|| {
            issued.push(Issued { key_id: key_id.map(<[u8]>::to_vec), serials: HashSet::new() });
            issued.len() - 1
        });
        &mut issued[at].serials
    }
}
