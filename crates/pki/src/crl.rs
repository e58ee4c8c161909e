//! Certificate revocation lists (RFC 5280 §5).

use std::fmt;

use der::asn1::OctetString;
use der::oid::AssociatedOid;
use der::{Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierOwned, ObjectIdentifier};
use x509_cert::Version;
use x509_cert::crl::RevokedCert;
use x509_cert::ext::pkix::crl::dp::IssuingDistributionPoint;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, CrlNumber, CrlReason};
use x509_cert::ext::{Extension, Extensions};
use x509_cert::name::Name;
use x509_cert::time::Time;

use crate::algorithm::{self, BadSignature};
use crate::authority::{Authority, AuthorityError};
use crate::certificate::Certificate;
use crate::name;
use crate::pem::{self, PemError};
use crate::serial::Serial;
use crate::signed::{Signed, seal};
use crate::time::UnixTime;

/// Why a certificate was revoked (RFC 5280 §5.3.1).
pub use x509_cert::ext::pkix::CrlReason as Reason;

/// Armour label of revocation lists (RFC 7468 §6).
const LABEL: &str = "X509 CRL";

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial.
    pub serial: Serial,
    /// When it was revoked.
    pub time: UnixTime,
    /// Why.
    pub reason: Reason,
}

/// Why a revocation list cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Damaged armour.
    #[error("the PEM text is damaged: {0}")]
    Pem(#[from] PemError),
    /// Armour, but no list in it.
    #[error("no revocation list found; a block that begins with -----BEGIN X509 CRL----- is expected")]
    Missing,
    /// Not the structure of RFC 5280, or not DER.
    #[error("the revocation list is damaged: {0}")]
    Malformed(String),
    /// A delta list, an indirect list or one for some reasons only: it does not say all there is to say.
    #[error("the revocation list is partial or indirect (extension {0}); a complete list is needed")]
    Partial(ObjectIdentifier),
    /// Signed by somebody else than the certificate given.
    #[error("the revocation list was issued by {list:?}, not by {issuer:?}")]
    OtherIssuer {
        /// Issuer in the list.
        list: String,
        /// Subject of the certificate.
        issuer: String,
    },
    /// The issuer's certificate may not sign lists.
    #[error("the key usage of the issuer's certificate does not allow it to sign revocation lists")]
    NotAllowed,
    /// The signature does not hold.
    #[error("revocation list: {0}")]
    Signature(#[from] BadSignature),
}

/// A revocation list that was read or made. Its signature is checked by [`Crl::verify`] only.
#[derive(Clone)]
pub struct Crl {
    der: Vec<u8>,
    issuer: Name,
    issuer_der: Vec<u8>,
    issuer_key_id: Option<Vec<u8>>,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    revoked: Vec<Revoked>,
}

impl Crl {
    /// Reads one complete list, of version 1 or 2.
    ///
    /// # Errors
    /// [`CrlError::Malformed`]; [`CrlError::Partial`] for lists that are not the whole truth about their
    /// issuer.
    pub fn from_der(der: &[u8]) -> Result<Self, CrlError> {
        let malformed = |error: der::Error| CrlError::Malformed(error.to_string());
        let signed = Signed::parse(der).map_err(malformed)?;
        let contents = Contents::from_der(&signed.contents().map_err(malformed)?).map_err(malformed)?;
        if contents.algorithm.oid != signed.algorithm() {
            return Err(CrlError::Malformed("it names two different signature algorithms".into()));
        }
        let extensions = contents.extensions.unwrap_or_default();
        refuse_partial(&extensions)?;
        Ok(Self {
            der: der.to_vec(),
            issuer_der: contents.issuer.to_der().map_err(malformed)?,
            issuer: contents.issuer,
            issuer_key_id: find::<AuthorityKeyIdentifier>(&extensions)?
                .and_then(|id| id.key_identifier)
                .map(|id| id.into_bytes().into()),
            this_update: UnixTime::from_x509(contents.this_update),
            next_update: contents.next_update.map(UnixTime::from_x509),
            revoked: contents.revoked.unwrap_or_default().iter().map(read_entry).collect::<Result<_, _>>()?,
        })
    }

    /// All lists in PEM text, in order. Blocks of other kinds are passed over.
    ///
    /// # Errors
    /// [`CrlError`] when there is none or one of them cannot be used.
    pub fn bundle_from_pem(text: &str) -> Result<Vec<Self>, CrlError> {
        let blocks = pem::parse(text)?;
        let lists =
            blocks.iter().filter(|block| block.label == LABEL).map(|block| Self::from_der(&block.der));
        let lists = lists.collect::<Result<Vec<_>, _>>()?;
        if lists.is_empty() { Err(CrlError::Missing) } else { Ok(lists) }
    }

    /// The list in armour.
    pub fn to_pem(&self) -> String {
        pem::encode(LABEL, &self.der)
    }

    /// The bytes it was read from.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Checks that `issuer` signed this list. Dates are not looked at.
    ///
    /// # Errors
    /// [`CrlError::OtherIssuer`], [`CrlError::NotAllowed`], [`CrlError::Signature`].
    pub fn verify(&self, issuer: &Certificate) -> Result<(), CrlError> {
        if self.issuer_der != issuer.subject_der() {
            return Err(CrlError::OtherIssuer { list: self.issuer(), issuer: issuer.subject() });
        }
        if !issuer.may_sign_crls() {
            return Err(CrlError::NotAllowed);
        }
        let signed = Signed::parse(&self.der).map_err(|error| CrlError::Malformed(error.to_string()))?;
        Ok(signed.verify(issuer.public_key())?)
    }

    /// The issuer in OpenVPN's print form.
    pub fn issuer(&self) -> String {
        name::print(&self.issuer)
    }

    /// The issuer's DER.
    pub fn issuer_der(&self) -> &[u8] {
        &self.issuer_der
    }

    /// Authority key identifier, when the list has one.
    pub fn issuer_key_id(&self) -> Option<&[u8]> {
        self.issuer_key_id.as_deref()
    }

    /// When it was made.
    pub fn this_update(&self) -> UnixTime {
        self.this_update
    }

    /// When the next one is due. Stock OpenVPN refuses every client after this moment.
    pub fn next_update(&self) -> Option<UnixTime> {
        self.next_update
    }

    /// The revoked certificates, in the list's order.
    pub fn revoked(&self) -> &[Revoked] {
        &self.revoked
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crl({}, {} revoked, of {})", self.issuer(), self.revoked.len(), self.this_update)
    }
}

impl Authority {
    /// A revocation list with `revoked`, made at `this_update` and replaced before `next_update`. `number`
    /// must grow from list to list (RFC 5280 §5.2.3).
    ///
    /// # Errors
    /// [`AuthorityError`] when the times are in the wrong order, a serial is negative, or the key does not
    /// sign.
    pub fn crl(
        &self,
        revoked: &[Revoked],
        this_update: UnixTime,
        next_update: UnixTime,
        number: u64,
    ) -> Result<Crl, AuthorityError> {
        if next_update <= this_update {
            return Err(AuthorityError::BadUpdateTimes);
        }
        let number = CrlNumber::try_from(number)?;
        let entries = revoked.iter().map(write_entry).collect::<Result<Vec<_>, _>>()?;
        let contents = Contents {
            version: Some(Version::V2),
            algorithm: algorithm::signature_algorithm(self.signer().kind()),
            issuer: self.certificate().subject_name().clone(),
            this_update: this_update.to_x509(),
            next_update: Some(next_update.to_x509()),
            // An empty sequence is not allowed; it must be absent (RFC 5280 §5.1.2.6).
            revoked: Some(entries).filter(|entries| !entries.is_empty()),
            extensions: Some(vec![extension(&self.authority_key_id()?)?, extension(&number)?]),
        };
        let der = seal(&contents.to_der()?, self.signer())?;
        Crl::from_der(&der).map_err(|error| AuthorityError::Encoding(error.to_string()))
    }
}

/// TBSCertList (RFC 5280 §5.1.2).
#[derive(Sequence)]
struct Contents {
    #[asn1(optional = "true")]
    version: Option<Version>,
    algorithm: AlgorithmIdentifierOwned,
    issuer: Name,
    this_update: Time,
    #[asn1(optional = "true")]
    next_update: Option<Time>,
    #[asn1(optional = "true")]
    revoked: Option<Vec<RevokedCert>>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Extensions>,
}

fn write_entry(entry: &Revoked) -> Result<RevokedCert, AuthorityError> {
    // No reason is written as no extension (RFC 5280 §5.3.1).
    let reason = Some(entry.reason).filter(|reason| *reason != CrlReason::Unspecified);
    Ok(RevokedCert {
        serial_number: entry.serial.to_x509().map_err(|_| AuthorityError::BadSerial(entry.serial.clone()))?,
        revocation_date: entry.time.to_x509(),
        crl_entry_extensions: reason.map(|reason| extension(&reason)).transpose()?.map(|reason| vec![reason]),
    })
}

fn read_entry(entry: &RevokedCert) -> Result<Revoked, CrlError> {
    let extensions = entry.crl_entry_extensions.as_deref().unwrap_or_default();
    // The one critical extension of entries names another issuer: the list is indirect (RFC 5280 §5.3.3).
    if let Some(other) = extensions.iter().find(|extension| extension.critical) {
        return Err(CrlError::Partial(other.extn_id));
    }
    Ok(Revoked {
        serial: Serial::from_x509(&entry.serial_number),
        time: UnixTime::from_x509(entry.revocation_date),
        reason: find(extensions)?.unwrap_or(CrlReason::Unspecified),
    })
}

/// A list is used only when each of its critical extensions is understood (RFC 5280 §5.2). An issuing
/// distribution point may say which certificates a list is about, but not that it leaves out revocations.
fn refuse_partial(extensions: &[Extension]) -> Result<(), CrlError> {
    for extension in extensions.iter().filter(|extension| extension.critical) {
        let complete = extension.extn_id == IssuingDistributionPoint::OID
            && find::<IssuingDistributionPoint>(extensions)?
                .is_some_and(|point| !point.indirect_crl && point.only_some_reasons.is_none());
        if !complete {
            return Err(CrlError::Partial(extension.extn_id));
        }
    }
    Ok(())
}

fn find<'a, T>(extensions: &'a [Extension]) -> Result<Option<T>, CrlError>
where
    T: Decode<'a, Error = der::Error> + AssociatedOid,
{
    let found = extensions.iter().find(|extension| extension.extn_id == T::OID);
    found
        .map(|extension| T::from_der(extension.extn_value.as_bytes()))
        .transpose()
        .map_err(|error| CrlError::Malformed(format!("extension {}: {error}", T::OID)))
}

fn extension<T: Encode + AssociatedOid>(value: &T) -> Result<Extension, der::Error> {
    Ok(Extension { extn_id: T::OID, critical: false, extn_value: OctetString::new(value.to_der()?)? })
}

#[cfg(test)]
mod tests;
