//! Certificates, revocation, and who may come in.

use serde_json::json;

use crate::audit::Entry;
use crate::credential::{Issuer, KeyHash, Reason, Serial};
use crate::devices::{full_name, usable};
use crate::fault::{AccessFault, ChangeFault, Refusal, StoreFault};
use crate::id::DeviceId;
use crate::model::{Authorized, Certificate, Change, Device, Holder, Revocation, Revoked, User};
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::Sql;
use crate::store::Store;
use crate::time::Timestamp;

/// The longest certificate, in octets of DER. The largest keys make some 5,000.
const LONGEST_CERTIFICATE: usize = 64 * 1024;

impl Store {
    /// Writes down a certificate issued to a device that is not revoked. Its `revocation` is not written: a serial
    /// number that is on the revocation list already is revoked.
    pub fn add_certificate(&self, change: &Change<'_>, certificate: &Certificate) -> Result<(), ChangeFault> {
        if certificate.der.len() > LONGEST_CERTIFICATE {
            return Err(StoreFault::TooLong { what: "the certificate", max: LONGEST_CERTIFICATE }.into());
        }
        let Certificate { issuer, serial, key, .. } = certificate;
        self.change(change, |sql| {
            let device = usable(sql, certificate.device)?;
            if sql.certificate(issuer, serial)?.is_some() || sql.identity(serial, key)?.is_some() {
                return Err(ChangeFault::SerialTaken(serial.to_string()));
            }
            sql.insert_certificate(certificate)?;
            let detail = json!({ "serial": serial, "issuer": issuer, "key": key });
            let entry = Entry::new("certificate.add", full_name(sql, &device)?, detail);
            Ok(((), Some(entry)))
        })
    }

    /// The certificate with this serial number, with its device and user.
    pub fn certificate(&self, issuer: &Issuer, serial: &Serial) -> Result<Option<Holder>, StoreFault> {
        self.read(|sql| sql.certificate(issuer, serial))
    }

    /// A device's certificates, the one that lasts longest first.
    pub fn certificates(&self, device: DeviceId) -> Result<Vec<Certificate>, StoreFault> {
        self.read(|sql| sql.certificates_of(device))
    }

    /// Puts a serial number on the revocation list for good, whether or not its certificate is known here. Gives the
    /// revocation as it stands; revoking twice keeps the first.
    pub fn revoke_certificate(
        &self,
        change: &Change<'_>,
        issuer: &Issuer,
        serial: &Serial,
        reason: Reason,
    ) -> Result<Revocation, ChangeFault> {
        self.change(change, |sql| {
            if let Some(earlier) = sql.revocation(issuer, serial)? {
                return Ok((earlier, None));
            }
            let revocation = Revocation { at: change.now, reason };
            sql.insert_revocation(issuer, serial, revocation)?;
            let detail = json!({ "issuer": issuer, "reason": reason });
            Ok((revocation, Some(Entry::new("certificate.revoke", serial.as_str(), detail))))
        })
    }

    /// The revoked serial numbers of one issuer.
    pub fn revocations(&self, issuer: &Issuer, page: &Page) -> Result<Listed<Revoked>, StoreFault> {
        let ([after], limit) = (page.text_keys()?, page.limit());
        let rows = self.read(|sql| sql.revocations(issuer, after, limit + 1))?;
        Ok(Listed::new(rows, limit, |row: &Revoked| Cursor::at(&[row.serial.as_str()])))
    }

    /// Counts on and gives the number of the issuer's next revocation list (RFC 5280 section 5.2.3): 1, 2, 3 and so
    /// on, and never one of them twice.
    pub fn next_crl_number(&self, issuer: &Issuer) -> Result<u64, StoreFault> {
        let number = self.write(crate::sqlite::Durability::Now, |sql| sql.next_crl_number(issuer))?;
        Ok(number.unsigned_abs())
    }

    /// Whether the holder of a certificate may come in, and who that is. A certificate is known by its serial number
    /// and the hash of its key, never by a name written in it. The caller has verified the certificate's signature
    /// and `not_before`; that it is not expired is checked here again.
    pub fn authorize(
        &self,
        serial: &Serial,
        key: &KeyHash,
        now: Timestamp,
    ) -> Result<Authorized, AccessFault> {
        self.read(|sql| {
            let Holder { device, user, .. } = admitted(sql, serial, key, now)?;
            let prefixes = sql.prefixes(device.id)?;
            Ok(Authorized { device, user, prefixes })
        })
    }
}

/// The holder of the certificate, who may come in.
pub(crate) fn admitted(
    sql: &Sql<'_>,
    serial: &Serial,
    key: &KeyHash,
    now: Timestamp,
) -> Result<Holder, AccessFault> {
    let Some(holder) = sql.identity(serial, key)? else {
        let refusal = if sql.serial_known(serial)? { Refusal::KeyMismatch } else { Refusal::Unknown };
        return Err(refusal.into());
    };
    let Holder { certificate, device, user } = &holder;
    welcome(device, user)?;
    if certificate.revocation.is_some() {
        return Err(Refusal::CertificateRevoked.into());
    }
    if certificate.not_after < now {
        return Err(Refusal::Expired.into());
    }
    Ok(holder)
}

/// Whether the device of the user may come in. What is final is named first.
pub(crate) fn welcome(device: &Device, user: &User) -> Result<(), Refusal> {
    if user.removed.is_some() {
        Err(Refusal::UserRemoved)
    } else if device.revoked.is_some() {
        Err(Refusal::DeviceRevoked)
    } else if user.suspended.is_some() {
        Err(Refusal::UserSuspended)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
