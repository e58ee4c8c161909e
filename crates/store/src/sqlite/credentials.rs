//! Certificates and revocations.

use rusqlite::{Params, params};

use super::row::{
    CERTIFICATE_WIDTH, DEVICE_WIDTH, certificate, certificate_columns, device, device_columns, parsed,
    revocation, user, user_columns,
};
use super::{Sql, rows};
use crate::credential::{Issuer, KeyHash, Serial};
use crate::fault::StoreFault;
use crate::id::DeviceId;
use crate::model::{Certificate, Holder, Revocation, Revoked};

/// A certificate with its device and its user; a condition on the certificate `c` follows.
macro_rules! holder {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            certificate_columns!(),
            ", ",
            device_columns!(),
            ", ",
            user_columns!(),
            " FROM certificates c LEFT JOIN revocations r ON r.issuer = c.issuer AND r.serial = c.serial \
              JOIN devices d ON d.id = c.device_id JOIN users u ON u.id = d.user_id WHERE ",
            $condition
        )
    };
}

impl Sql<'_> {
    pub(crate) fn insert_certificate(&self, certificate: &Certificate) -> Result<(), StoreFault> {
        let sql = "INSERT INTO certificates (issuer, serial, key_hash, device_id, not_before, not_after, der) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let Certificate { issuer, serial, key, device, not_before, not_after, der, revocation: _ } =
            certificate;
        let (from, to, device) = (not_before.as_millis(), not_after.as_millis(), device.hex());
        let key = key.to_string();
        self.run(sql, params![issuer.as_str(), serial.as_str(), key, device.as_str(), from, to, der])?;
        Ok(())
    }

    pub(crate) fn certificate(&self, issuer: &Issuer, serial: &Serial) -> Result<Option<Holder>, StoreFault> {
        self.holder(holder!("c.issuer = ?1 AND c.serial = ?2"), [issuer.as_str(), serial.as_str()])
    }

    /// The certificate with this serial number and this key; there is at most one.
    pub(crate) fn identity(&self, serial: &Serial, key: &KeyHash) -> Result<Option<Holder>, StoreFault> {
        self.holder(holder!("c.serial = ?1 AND c.key_hash = ?2"), [serial.as_str(), &key.to_string()])
    }

    /// Whether any issuer gave this serial number to any key.
    pub(crate) fn serial_known(&self, serial: &Serial) -> Result<bool, StoreFault> {
        let sql = "SELECT 1 FROM certificates WHERE serial = ?1 LIMIT 1";
        Ok(self.first(sql, [serial.as_str()], |_| Ok(()))?.is_some())
    }

    /// A device's certificates, the one that lasts longest first.
    pub(crate) fn certificates_of(&self, device: DeviceId) -> Result<Vec<Certificate>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            certificate_columns!(),
            " FROM certificates c LEFT JOIN revocations r ON r.issuer = c.issuer AND r.serial = c.serial \
              WHERE c.device_id = ?1 ORDER BY c.not_after DESC, c.not_before DESC, c.serial"
        );
        self.rows(sql, [device.hex().as_str()], |row| certificate(row, 0))
    }

    pub(crate) fn insert_revocation(
        &self,
        issuer: &Issuer,
        serial: &Serial,
        revocation: Revocation,
    ) -> Result<(), StoreFault> {
        let sql = "INSERT INTO revocations (issuer, serial, revoked_at, reason) VALUES (?1, ?2, ?3, ?4)";
        let (at, reason) = (revocation.at.as_millis(), revocation.reason.code());
        self.run(sql, params![issuer.as_str(), serial.as_str(), at, reason])?;
        Ok(())
    }

    pub(crate) fn revocation(
        &self,
        issuer: &Issuer,
        serial: &Serial,
    ) -> Result<Option<Revocation>, StoreFault> {
        let sql = "SELECT revoked_at, reason FROM revocations WHERE issuer = ?1 AND serial = ?2";
        self.first(sql, [issuer.as_str(), serial.as_str()], |row| revocation(row, 0))
    }

    /// Revoked serial numbers of one issuer after a serial number, in its order.
    pub(crate) fn revocations(
        &self,
        issuer: &Issuer,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Revoked>, StoreFault> {
        let sql = "SELECT serial, revoked_at, reason FROM revocations WHERE issuer = ?1 AND serial > ?2 \
                   ORDER BY serial LIMIT ?3";
        self.rows(sql, params![issuer.as_str(), after, rows(limit)], |row| {
            Ok(Revoked { serial: parsed(row, 0)?, revocation: revocation(row, 1)? })
        })
    }

    /// Counts on and gives the next number of the issuer's revocation list.
    pub(crate) fn next_crl_number(&self, issuer: &Issuer) -> Result<i64, StoreFault> {
        let sql = "INSERT INTO issuers (id, crl_number) VALUES (?1, 1) \
                   ON CONFLICT (id) DO UPDATE SET crl_number = crl_number + 1 RETURNING crl_number";
        self.first(sql, [issuer.as_str()], |row| row.get(0))?
            .ok_or_else(|| self.missing("the revocation list's number"))
    }

    fn holder(&self, sql: &str, values: impl Params) -> Result<Option<Holder>, StoreFault> {
        self.first(sql, values, |row| {
            Ok(Holder {
                certificate: certificate(row, 0)?,
                device: device(row, CERTIFICATE_WIDTH)?,
                user: user(row, CERTIFICATE_WIDTH + DEVICE_WIDTH)?,
            })
        })
    }
}
