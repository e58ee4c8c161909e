//! Reading certificates (RFC 5280 §4).

use std::fmt;

use aws_lc_rs::digest;
use der::asn1::AnyRef;
use der::oid::AssociatedOid;
use der::{Decode, Encode, Reader, SliceReader, Tag};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};
use x509_cert::TbsCertificate;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;

use crate::algorithm;
use crate::kind::KeyKind;
use crate::name;
use crate::pem::{self, PemError};
use crate::serial::Serial;
use crate::time::UnixTime;

/// Armour label of certificates (RFC 7468 §5).
const LABEL: &str = "CERTIFICATE";

/// id-kp-serverAuth and id-kp-clientAuth (RFC 5280 §4.2.1.12).
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// What a certificate may be used for in TLS, by its extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// "TLS Web Server Authentication".
    Server,
    /// "TLS Web Client Authentication".
    Client,
}

impl Purpose {
    pub(crate) fn oid(self) -> ObjectIdentifier {
        match self {
            Self::Server => SERVER_AUTH,
            Self::Client => CLIENT_AUTH,
        }
    }
}

/// Why bytes or text are not a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Damaged armour.
    #[error("the PEM text is damaged: {0}")]
    Pem(#[from] PemError),
    /// Armour, but no certificate in it.
    #[error("no certificate found; a block that begins with -----BEGIN CERTIFICATE----- is expected")]
    Missing,
    /// Not the structure of RFC 5280, or not DER.
    #[error("the certificate is damaged: {0}")]
    Malformed(String),
}

/// A certificate that was read. Nothing about it has been verified: neither signature nor dates nor issuer.
#[derive(Clone)]
pub struct Certificate {
    der: Vec<u8>,
    serial: Serial,
    subject: Name,
    subject_der: Vec<u8>,
    issuer: Name,
    issuer_der: Vec<u8>,
    not_before: UnixTime,
    not_after: UnixTime,
    public_key: Vec<u8>,
    key_kind: Option<KeyKind>,
    is_authority: bool,
    key_usage: Option<KeyUsage>,
    extended_key_usages: Vec<ObjectIdentifier>,
    key_id: Option<Vec<u8>>,
    issuer_key_id: Option<Vec<u8>>,
}

impl Certificate {
    /// Reads one certificate.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], also when an extension that this crate reads is damaged or repeated.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |error: der::Error| CertificateError::Malformed(error.to_string());
        let whole = x509_cert::Certificate::from_der(der).map_err(malformed)?;
        let tbs = whole.tbs_certificate();
        let public_key = tbs.subject_public_key_info().to_der().map_err(malformed)?;
        let spki = SubjectPublicKeyInfoRef::try_from(public_key.as_slice())
            .map_err(|error| CertificateError::Malformed(error.to_string()))?;
        let key_kind = algorithm::key_kind(&spki);
        Ok(Self {
            der: der.to_vec(),
            serial: Serial::from_x509(tbs.serial_number()),
            subject: tbs.subject().clone(),
            subject_der: tbs.subject().to_der().map_err(malformed)?,
            issuer: tbs.issuer().clone(),
            issuer_der: tbs.issuer().to_der().map_err(malformed)?,
            not_before: UnixTime::from_x509(tbs.validity().not_before),
            not_after: UnixTime::from_x509(tbs.validity().not_after),
            key_kind,
            is_authority: extension::<BasicConstraints>(tbs)?.is_some_and(|basic| basic.ca),
            key_usage: extension(tbs)?,
            extended_key_usages: extension::<ExtendedKeyUsage>(tbs)?.map(|eku| eku.0).unwrap_or_default(),
            key_id: extension::<SubjectKeyIdentifier>(tbs)?.map(|id| id.0.into_bytes().into()),
            issuer_key_id: extension::<AuthorityKeyIdentifier>(tbs)?
                .and_then(|id| id.key_identifier)
                .map(|id| id.into_bytes().into()),
            public_key,
        })
    }

    /// Serial number and key hash alone, which tell whose a certificate is. Only for one that has been verified:
    /// the rest of it is passed over.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn serial_and_key_hash(der: &[u8]) -> Result<(Serial, [u8; 32]), CertificateError> {
        let read = || {
            let whole = AnyRef::from_der(der)?;
            let body = AnyRef::decode(&mut SliceReader::new(whole.value())?)?;
            let mut fields = SliceReader::new(body.value())?;
            if Tag::peek(&fields)? != Tag::Integer {
                let _version = fields.tlv_bytes()?;
            }
            let serial = SerialNumber::decode(&mut fields)?;
            for _algorithm_issuer_validity_subject in 0..4 {
                fields.tlv_bytes()?;
            }
            Ok((Serial::from_x509(&serial), sha256(fields.tlv_bytes()?)))
        };
        read().map_err(|error: der::Error| CertificateError::Malformed(error.to_string()))
    }

    /// The first certificate in PEM text.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        Self::bundle_from_pem(text)?.into_iter().next().ok_or(CertificateError::Missing)
    }

    /// All certificates in PEM text, in order; none when there are none. Blocks of other kinds are passed
    /// over.
    ///
    /// # Errors
    /// [`CertificateError`] when one of them is damaged.
    pub fn bundle_from_pem(text: &str) -> Result<Vec<Self>, CertificateError> {
        let blocks = pem::parse(text)?;
        blocks.iter().filter(|block| block.label == LABEL).map(|block| Self::from_der(&block.der)).collect()
    }

    /// The certificate in armour.
    pub fn to_pem(&self) -> String {
        pem::encode(LABEL, &self.der)
    }

    /// The bytes it was read from.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Serial number: unique among the certificates of one issuer.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Common name of the subject; of several the last, as in OpenVPN. Whoever asked for the certificate may
    /// have chosen it, control characters included.
    pub fn common_name(&self) -> Option<String> {
        name::common_name(&self.subject)
    }

    /// The subject as OpenVPN prints and compares it: `C=NG, ST=…, CN=…`, control characters as `\XX`.
    pub fn subject(&self) -> String {
        name::print(&self.subject)
    }

    /// The issuer in the same form.
    pub fn issuer(&self) -> String {
        name::print(&self.issuer)
    }

    /// The subject's DER, by which issuers are found.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject_der
    }

    /// The issuer's DER.
    pub fn issuer_der(&self) -> &[u8] {
        &self.issuer_der
    }

    pub(crate) fn subject_name(&self) -> &Name {
        &self.subject
    }

    /// First second of validity.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// Last second of validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The public key as DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// SHA-256 of [`Certificate::public_key`]: the same for every certificate of one key.
    pub fn key_hash(&self) -> [u8; 32] {
        sha256(&self.public_key)
    }

    /// SHA-256 of the whole certificate: what OpenVPN's `peer-fingerprint` names.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// Kind of the public key; `None` for one adit does not have.
    pub fn key_kind(&self) -> Option<KeyKind> {
        self.key_kind
    }

    /// True when basicConstraints say that it may issue certificates (RFC 5280 §4.2.1.9).
    pub fn is_authority(&self) -> bool {
        self.is_authority
    }

    /// True when the keyUsage extension is there at all, which `remote-cert-tls` asks.
    pub fn has_key_usage(&self) -> bool {
        self.key_usage.is_some()
    }

    /// True when keyUsage is there and has digitalSignature, which TLS 1.3 and ECDHE need (RFC 8446 §4.4.2.2).
    pub fn may_sign(&self) -> bool {
        self.key_usage.is_some_and(|usage| usage.digital_signature())
    }

    /// True unless keyUsage forbids signing revocation lists (RFC 5280 §4.2.1.3).
    pub(crate) fn may_sign_crls(&self) -> bool {
        self.key_usage.is_none_or(|usage| usage.crl_sign())
    }

    /// True when the extended key usage is there and names `purpose`.
    pub fn has_purpose(&self, purpose: Purpose) -> bool {
        self.extended_key_usages.contains(&purpose.oid())
    }

    /// The extended key usages as dotted numbers; empty when the extension is missing.
    pub fn extended_key_usages(&self) -> Vec<String> {
        self.extended_key_usages.iter().map(ToString::to_string).collect()
    }

    /// Subject key identifier (RFC 5280 §4.2.1.2).
    pub fn key_id(&self) -> Option<&[u8]> {
        self.key_id.as_deref()
    }

    /// Authority key identifier (RFC 5280 §4.2.1.1).
    pub fn issuer_key_id(&self) -> Option<&[u8]> {
        self.issuer_key_id.as_deref()
    }
}

/// Equal when the bytes are.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({}, serial {})", self.subject(), self.serial)
    }
}

fn extension<'a, T>(tbs: &'a TbsCertificate) -> Result<Option<T>, CertificateError>
where
    T: Decode<'a, Error = der::Error> + AssociatedOid,
{
    tbs.get_extension::<T>()
        .map(|found| found.map(|(_, extension)| extension))
        .map_err(|error| CertificateError::Malformed(format!("extension {}: {error}", T::OID)))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 is 32 bytes long")
}

#[cfg(test)]
mod tests;
