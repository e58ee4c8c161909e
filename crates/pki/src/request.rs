//! Certificate signing requests (PKCS#10, RFC 2986).

use der::{Decode, Encode};
use spki::SubjectPublicKeyInfoRef;
use x509_cert::request::CertReqInfo;

use crate::algorithm::{self, BadSignature};
use crate::kind::KeyKind;
use crate::name;
use crate::pem::{self, PemError};
use crate::signed::Signed;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Damaged armour.
    #[error("the PEM text is damaged: {0}")]
    Pem(#[from] PemError),
    /// Armour, but no request in it.
    #[error("no request found; a block that begins with -----BEGIN CERTIFICATE REQUEST----- is expected")]
    Missing,
    /// Not the structure of RFC 2986, or not DER.
    #[error("the certificate request is damaged: {0}")]
    Malformed(String),
    /// A key that adit does not have.
    #[error(
        "the key of the request is not supported; use RSA from 2048 to 8192 bits, P-256, P-384, secp521r1, \
         Ed25519 or Ed448"
    )]
    UnsupportedKey,
    /// Whoever made it does not hold the key.
    #[error("certificate request: {0}")]
    Signature(#[from] BadSignature),
}

/// A request whose signature holds: whoever made it has the private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    public_key: Vec<u8>,
    kind: KeyKind,
    common_name: Option<String>,
}

impl Request {
    /// Reads the first request in PEM text and checks its signature.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn from_pem(text: &str) -> Result<Self, RequestError> {
        let blocks = pem::parse(text)?;
        // The second label is that of old Netscape and Microsoft tools (RFC 7468 §7).
        let mut requests =
            blocks.iter().filter(|block| block.label.trim_start_matches("NEW ") == "CERTIFICATE REQUEST");
        Self::from_der(&requests.next().ok_or(RequestError::Missing)?.der)
    }

    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        let malformed = |error: der::Error| RequestError::Malformed(error.to_string());
        let signed = Signed::parse(der).map_err(malformed)?;
        let info = CertReqInfo::from_der(&signed.contents().map_err(malformed)?).map_err(malformed)?;
        let public_key = info.public_key.to_der().map_err(malformed)?;
        let kind = SubjectPublicKeyInfoRef::try_from(public_key.as_slice())
            .ok()
            .and_then(|spki| algorithm::key_kind(&spki))
            .ok_or(RequestError::UnsupportedKey)?;
        signed.verify(&public_key)?;
        Ok(Self { common_name: name::common_name(&info.subject), public_key, kind })
    }

    /// The key to certify, as DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The common name the requester wishes for. Nobody vouches for it.
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }
}

#[cfg(test)]
mod tests;
