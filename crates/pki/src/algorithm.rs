//! Algorithm identifiers of keys and signatures, and the checking of signatures.

use aws_lc_rs::signature::{self as sig, UnparsedPublicKey, VerificationAlgorithm};
use der::asn1::{Any, AnyRef, Null, UintRef};
use der::{Decode, Sequence, SliceReader};
use spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoRef};

use crate::ed448;
use crate::kind::KeyKind;

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

/// Keys: RFC 8017 appendix C, RFC 5480 §2.1, RFC 8410 §3.
pub(crate) const RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.1");
pub(crate) const EC: ObjectIdentifier = oid("1.2.840.10045.2.1");
pub(crate) const ED25519: ObjectIdentifier = oid("1.3.101.112");
const CURVE_P256: ObjectIdentifier = oid("1.2.840.10045.3.1.7");
const CURVE_P384: ObjectIdentifier = oid("1.3.132.0.34");
const CURVE_P521: ObjectIdentifier = oid("1.3.132.0.35");

/// Signatures: RFC 8017 appendix C, RFC 5758 §3.2.
const RSA_SHA1: ObjectIdentifier = oid("1.2.840.113549.1.1.5");
const RSA_SHA256: ObjectIdentifier = oid("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = oid("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = oid("1.2.840.113549.1.1.13");
const ECDSA_SHA1: ObjectIdentifier = oid("1.2.840.10045.4.1");
const ECDSA_SHA256: ObjectIdentifier = oid("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = oid("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = oid("1.2.840.10045.4.3.4");

/// RSA keys from this size on sign with SHA-512, smaller ones with SHA-256.
pub(crate) const RSA_SHA512_FROM: u16 = 4096;

/// Why a signature does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// The signature is not this key's over these bytes.
    #[error("the signature is wrong")]
    Wrong,
    /// SHA-1 no longer proves anything.
    #[error("the signature uses SHA-1, which is broken; have it signed again with SHA-256 or better")]
    Sha1,
    /// An algorithm that adit does not have, or one that does not go with the key.
    #[error("the signature algorithm {0} is not supported for this key")]
    Unsupported(ObjectIdentifier),
}

/// The algorithm that a key of `kind` signs certificates, requests and lists with.
pub(crate) fn signature_algorithm(kind: KeyKind) -> AlgorithmIdentifierOwned {
    let oid = match kind {
        KeyKind::Rsa(bits) if bits < RSA_SHA512_FROM => RSA_SHA256,
        KeyKind::Rsa(_) => RSA_SHA512,
        KeyKind::P256 => ECDSA_SHA256,
        KeyKind::P384 => ECDSA_SHA384,
        KeyKind::P521 => ECDSA_SHA512,
        KeyKind::Ed25519 => ED25519,
        KeyKind::Ed448 => ed448::OID,
    };
    // RSA's parameters are NULL (RFC 4055 §5), the others' absent (RFC 5758 §3.2, RFC 8410 §3).
    AlgorithmIdentifierOwned { oid, parameters: kind.is_rsa().then(|| Any::from(Null)) }
}

/// The kind of a public key, `None` when it is none of ours (RSA outside 2048 to 8192 bits included).
pub(crate) fn key_kind(spki: &SubjectPublicKeyInfoRef<'_>) -> Option<KeyKind> {
    match spki.algorithm.oid {
        RSA => rsa_bits(spki.subject_public_key.as_bytes()?).map(KeyKind::Rsa),
        EC => curve_kind(spki.algorithm.parameters_oid().ok()?),
        ED25519 => Some(KeyKind::Ed25519),
        ed448::OID => Some(KeyKind::Ed448),
        _ => None,
    }
}

/// The kind of the keys on a named curve.
pub(crate) fn curve_kind(curve: ObjectIdentifier) -> Option<KeyKind> {
    match curve {
        CURVE_P256 => Some(KeyKind::P256),
        CURVE_P384 => Some(KeyKind::P384),
        CURVE_P521 => Some(KeyKind::P521),
        _ => None,
    }
}

/// Bits of the modulus of a public key (RFC 8017 appendix A.1.1), when they are in the range we use.
fn rsa_bits(key: &[u8]) -> Option<u16> {
    #[derive(Sequence)]
    struct RsaPublicKey<'a> {
        modulus: UintRef<'a>,
        exponent: UintRef<'a>,
    }

    let bits = bits(&RsaPublicKey::from_der(key).ok()?.modulus)?;
    (2048..=8192).contains(&bits).then_some(bits as u16)
}

/// Bits of the modulus of a private key (RFC 8017 appendix A.1.2), whatever they are.
pub(crate) fn rsa_private_key_bits(key: &[u8]) -> Option<usize> {
    let mut fields = SliceReader::new(AnyRef::from_der(key).ok()?.value()).ok()?;
    let _version = UintRef::decode(&mut fields).ok()?;
    bits(&UintRef::decode(&mut fields).ok()?)
}

fn bits(number: &UintRef<'_>) -> Option<usize> {
    let bytes = number.as_bytes();
    Some(bytes.len() * 8 - bytes.first()?.leading_zeros() as usize)
}

/// Checks that `signature` is one of the key `spki` over `message`.
pub(crate) fn verify(
    spki: &[u8],
    algorithm: ObjectIdentifier,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    if matches!(algorithm, RSA_SHA1 | ECDSA_SHA1) {
        return Err(BadSignature::Sha1);
    }
    let unsupported = BadSignature::Unsupported(algorithm);
    let spki = SubjectPublicKeyInfoRef::try_from(spki).map_err(|_| unsupported)?;
    let kind = key_kind(&spki).ok_or(unsupported)?;
    let key = spki.subject_public_key.as_bytes().ok_or(unsupported)?;

    let verifier: &'static dyn VerificationAlgorithm = match (kind, algorithm) {
        (KeyKind::Rsa(_), RSA_SHA256) => &sig::RSA_PKCS1_2048_8192_SHA256,
        (KeyKind::Rsa(_), RSA_SHA384) => &sig::RSA_PKCS1_2048_8192_SHA384,
        (KeyKind::Rsa(_), RSA_SHA512) => &sig::RSA_PKCS1_2048_8192_SHA512,
        (KeyKind::P256, ECDSA_SHA256) => &sig::ECDSA_P256_SHA256_ASN1,
        (KeyKind::P256, ECDSA_SHA384) => &sig::ECDSA_P256_SHA384_ASN1,
        (KeyKind::P256, ECDSA_SHA512) => &sig::ECDSA_P256_SHA512_ASN1,
        (KeyKind::P384, ECDSA_SHA256) => &sig::ECDSA_P384_SHA256_ASN1,
        (KeyKind::P384, ECDSA_SHA384) => &sig::ECDSA_P384_SHA384_ASN1,
        (KeyKind::P384, ECDSA_SHA512) => &sig::ECDSA_P384_SHA512_ASN1,
        (KeyKind::P521, ECDSA_SHA256) => &sig::ECDSA_P521_SHA256_ASN1,
        (KeyKind::P521, ECDSA_SHA384) => &sig::ECDSA_P521_SHA384_ASN1,
        (KeyKind::P521, ECDSA_SHA512) => &sig::ECDSA_P521_SHA512_ASN1,
        (KeyKind::Ed25519, ED25519) => &sig::ED25519,
        (KeyKind::Ed448, ed448::OID) => {
            return ed448::verify(key, message, signature).map_err(|_| BadSignature::Wrong);
        }
        _ => return Err(unsupported),
    };
    UnparsedPublicKey::new(verifier, key).verify(message, signature).map_err(|_| BadSignature::Wrong)
}
