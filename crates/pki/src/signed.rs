//! The outer shape that certificates, requests and revocation lists share: contents, algorithm, signature
//! (RFC 5280 §4.1.1, §5.1.1, RFC 2986 §4.2).

use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierOwned, ObjectIdentifier};

use crate::algorithm::{self, BadSignature};
use crate::key::{SignFault, Signer};

/// A signed structure whose contents are still encoded, so that a signature is checked over the bytes that
/// were signed.
#[derive(Sequence)]
pub(crate) struct Signed<'a> {
    contents: AnyRef<'a>,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitStringRef<'a>,
}

impl<'a> Signed<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, der::Error> {
        Self::from_der(der)
    }

    /// The encoded contents. DER leaves no choice in writing tag and length, so these are the bytes read.
    pub(crate) fn contents(&self) -> Result<Vec<u8>, der::Error> {
        self.contents.to_der()
    }

    pub(crate) fn algorithm(&self) -> ObjectIdentifier {
        self.algorithm.oid
    }

    /// Checks the signature against the public key `spki`.
    pub(crate) fn verify(&self, spki: &[u8]) -> Result<(), BadSignature> {
        let signature = self.signature.as_bytes().ok_or(BadSignature::Wrong)?;
        let contents = self.contents().map_err(|_| BadSignature::Wrong)?;
        algorithm::verify(spki, self.algorithm(), &contents, signature)
    }
}

/// Why something could not be signed.
#[derive(Debug)]
pub(crate) enum SealFault {
    Encoding(der::Error),
    Signing(SignFault),
}

/// Signs the encoded `contents`, in which the signer's algorithm must already be named; gives the DER of the
/// whole.
pub(crate) fn seal(contents: &[u8], signer: &dyn Signer) -> Result<Vec<u8>, SealFault> {
    let signature = signer.sign(contents).map_err(SealFault::Signing)?;
    let whole = || {
        Signed {
            contents: AnyRef::from_der(contents)?,
            algorithm: algorithm::signature_algorithm(signer.kind()),
            signature: BitStringRef::from_bytes(&signature)?,
        }
        .to_der()
    };
    whole().map_err(SealFault::Encoding)
}
