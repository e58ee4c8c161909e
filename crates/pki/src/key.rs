//! Private keys: making, reading, writing and signing.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Encode, Tag, Tagged};
use pkcs8::PrivateKeyInfoRef;
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};
use zeroize::Zeroizing;

use crate::algorithm::{self, RSA_SHA512_FROM};
use crate::ed448;
use crate::kind::KeyKind;
use crate::pem::{self, PemError};

/// Something that signs as one key: a [`PrivateKey`] in memory, or a token that never gives its key away.
pub trait Signer: Send + Sync {
    /// The key's kind, which fixes the signature algorithm: RSA PKCS#1 v1.5 with SHA-256 (SHA-512 from 4096
    /// bits on), ECDSA with the hash of the curve's size, pure EdDSA.
    fn kind(&self) -> KeyKind;

    /// The public key as DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    fn public_key(&self) -> &[u8];

    /// The signature over `message` (not over its hash) as X.509 carries it: ECDSA as DER (RFC 3279 §2.2.3).
    ///
    /// # Errors
    /// [`SignFault`] when the key is out of reach or refuses.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault>;
}

/// A key did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {kind} key did not sign: {reason}")]
pub struct SignFault {
    /// The key's kind.
    pub kind: KeyKind,
    /// What the library or the token said.
    pub reason: String,
}

/// Why a private key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text holds no key, or damaged armour.
    #[error("the PEM text is damaged: {0}")]
    Pem(#[from] PemError),
    /// Armour, but no key in it.
    #[error("no private key found; a block that begins with -----BEGIN PRIVATE KEY----- is expected")]
    Missing,
    /// Protected by a pass phrase.
    #[error("the private key is encrypted; decrypt it first: openssl pkey -in KEY.pem -out PLAIN.pem")]
    Encrypted,
    /// The structure is damaged, or a number in it is inconsistent.
    #[error("the private key is damaged or inconsistent")]
    Malformed,
    /// A key of an algorithm, curve or size that adit does not have.
    #[error(
        "private keys of this kind are not supported ({0}); supported are RSA from 2048 to 8192 bits, P-256, \
         P-384, secp521r1, Ed25519 and Ed448"
    )]
    Unsupported(String),
    /// A size that can be used but not generated.
    #[error("{0} keys cannot be generated here; RSA comes in 2048, 3072, 4096 and 8192 bits")]
    NotGenerated(KeyKind),
    /// The random source failed.
    #[error("the system's random source failed")]
    Random,
}

/// A private key in memory. Wiped when dropped; `Debug` prints the kind only.
pub struct PrivateKey {
    material: Material,
    kind: KeyKind,
    public_key: Vec<u8>,
}

enum Material {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Ed448(ed448::SecretKey),
}

impl PrivateKey {
    /// A new key from the system's random source. RSA takes its time: seconds for 8192 bits.
    ///
    /// # Errors
    /// [`KeyError::NotGenerated`] for RSA sizes outside [`KeyKind::ALL`], [`KeyError::Random`].
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let random = |_| KeyError::Random;
        let material = match kind {
            KeyKind::Rsa(bits) => {
                let size = match bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    8192 => KeySize::Rsa8192,
                    _ => return Err(KeyError::NotGenerated(kind)),
                };
                Material::Rsa(RsaKeyPair::generate(size).map_err(random)?)
            }
            KeyKind::P256 => Material::Ecdsa(EcdsaKeyPair::generate(P256).map_err(random)?),
            KeyKind::P384 => Material::Ecdsa(EcdsaKeyPair::generate(P384).map_err(random)?),
            KeyKind::P521 => Material::Ecdsa(EcdsaKeyPair::generate(P521).map_err(random)?),
            KeyKind::Ed25519 => Material::Ed25519(Ed25519KeyPair::generate().map_err(random)?),
            KeyKind::Ed448 => Material::Ed448(ed448::SecretKey::generate().map_err(random)?),
        };
        Self::new(material)
    }

    /// The first private key in `text`: PKCS#8 (`PRIVATE KEY`), SEC1 (`EC PRIVATE KEY`) or PKCS#1
    /// (`RSA PRIVATE KEY`). Other blocks and text around it are passed over.
    ///
    /// # Errors
    /// [`KeyError`]; keys under a pass phrase are named as such.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        for block in pem::parse(text)? {
            let read: fn(&[u8]) -> Result<Self, KeyError> = match block.label.as_str() {
                "PRIVATE KEY" => Self::from_pkcs8_der,
                "EC PRIVATE KEY" => Self::from_sec1_der,
                "RSA PRIVATE KEY" => Self::from_pkcs1_der,
                "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
                label if label.ends_with("PRIVATE KEY") => {
                    return Err(KeyError::Unsupported(format!("armour label {label:?}")));
                }
                _ => continue,
            };
            return if block.encrypted { Err(KeyError::Encrypted) } else { read(&block.der) };
        }
        Err(KeyError::Missing)
    }

    /// A PKCS#8 key (RFC 5958), version 1 or 2.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let info = PrivateKeyInfoRef::try_from(der).map_err(|_| match is_encrypted_pkcs8(der) {
            true => KeyError::Encrypted,
            false => KeyError::Malformed,
        })?;
        let material = match info.algorithm.oid {
            algorithm::RSA => Material::Rsa(RsaKeyPair::from_pkcs8(der).map_err(|_| rsa_refused(&info))?),
            algorithm::EC => {
                let curve = ecdsa(&info.algorithm)?;
                Material::Ecdsa(EcdsaKeyPair::from_pkcs8(curve, der).map_err(|_| KeyError::Malformed)?)
            }
            algorithm::ED25519 => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
                Material::Ed25519(pair.map_err(|_| KeyError::Malformed)?)
            }
            ed448::OID => Material::Ed448(ed448::SecretKey::from_pkcs8(&info).ok_or(KeyError::Malformed)?),
            other => return Err(KeyError::Unsupported(format!("algorithm {other}"))),
        };
        Self::new(material)
    }

    /// A SEC1 EC private key (RFC 5915).
    fn from_sec1_der(der: &[u8]) -> Result<Self, KeyError> {
        // Without curve parameters inside only the length of the scalar tells; the smallest curve that takes
        // it is the right one.
        let pair = [P256, P384, P521]
            .into_iter()
            .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, der).ok())
            .ok_or_else(|| match AnyRef::from_der(der) {
                Ok(any) if any.tag() == Tag::Sequence => KeyError::Unsupported("an elliptic curve".into()),
                _ => KeyError::Malformed,
            })?;
        Self::new(Material::Ecdsa(pair))
    }

    /// A PKCS#1 RSA private key (RFC 8017 appendix A.1.2).
    fn from_pkcs1_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = RsaKeyPair::from_der(der).map_err(|_| rsa_size_refused(der))?;
        Self::new(Material::Rsa(pair))
    }

    fn new(material: Material) -> Result<Self, KeyError> {
        let malformed = |_| KeyError::Malformed;
        let public_key = match &material {
            Material::Rsa(pair) => spki_of(pair.public_key()).map_err(malformed)?,
            Material::Ecdsa(pair) => spki_of(pair.public_key()).map_err(malformed)?,
            Material::Ed25519(pair) => spki_of(pair.public_key()).map_err(malformed)?,
            Material::Ed448(key) => ed448_spki(&key.public_key()).map_err(|_| KeyError::Malformed)?,
        };
        let kind = SubjectPublicKeyInfoRef::try_from(public_key.as_slice())
            .ok()
            .and_then(|spki| algorithm::key_kind(&spki))
            .ok_or_else(|| KeyError::Unsupported("its size".into()))?;
        Ok(Self { material, kind, public_key })
    }

    /// The key as PKCS#8 version 1 (RFC 5958).
    ///
    /// # Errors
    /// [`KeyError::Malformed`] when the library cannot encode it, which a key that was read or made cannot
    /// cause.
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let malformed = |_| KeyError::Malformed;
        let der = match &self.material {
            Material::Rsa(pair) => {
                AsDer::<Pkcs8V1Der<'_>>::as_der(pair).map_err(malformed)?.as_ref().to_vec()
            }
            Material::Ecdsa(pair) => pair.to_pkcs8v1().map_err(malformed)?.as_ref().to_vec(),
            Material::Ed25519(pair) => pair.to_pkcs8v1().map_err(malformed)?.as_ref().to_vec(),
            Material::Ed448(key) => key.to_pkcs8().map_err(|_| KeyError::Malformed)?.as_bytes().to_vec(),
        };
        Ok(Zeroizing::new(der))
    }

    /// The key as armoured PKCS#8.
    ///
    /// # Errors
    /// As [`PrivateKey::to_pkcs8_der`].
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(Zeroizing::new(pem::encode("PRIVATE KEY", &self.to_pkcs8_der()?)))
    }
}

impl Signer for PrivateKey {
    fn kind(&self) -> KeyKind {
        self.kind
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignFault> {
        let random = SystemRandom::new();
        let signed = match &self.material {
            Material::Rsa(pair) => {
                let padding = match self.kind {
                    KeyKind::Rsa(bits) if bits < RSA_SHA512_FROM => &sig::RSA_PKCS1_SHA256,
                    _ => &sig::RSA_PKCS1_SHA512,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature).map(|()| signature)
            }
            Material::Ecdsa(pair) => pair.sign(&random, message).map(|signature| signature.as_ref().to_vec()),
            Material::Ed25519(pair) => pair.try_sign(message).map(|signature| signature.as_ref().to_vec()),
            Material::Ed448(key) => Ok(key.sign(message).to_vec()),
        };
        signed.map_err(|_| SignFault { kind: self.kind, reason: "the operation failed".into() })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.kind)
    }
}

const P256: &EcdsaSigningAlgorithm = &sig::ECDSA_P256_SHA256_ASN1_SIGNING;
const P384: &EcdsaSigningAlgorithm = &sig::ECDSA_P384_SHA384_ASN1_SIGNING;
const P521: &EcdsaSigningAlgorithm = &sig::ECDSA_P521_SHA512_ASN1_SIGNING;

fn ecdsa(algorithm: &AlgorithmIdentifierRef<'_>) -> Result<&'static EcdsaSigningAlgorithm, KeyError> {
    let curve = algorithm.parameters_oid().map_err(|_| KeyError::Unsupported("an unnamed curve".into()))?;
    match algorithm::curve_kind(curve) {
        Some(KeyKind::P256) => Ok(P256),
        Some(KeyKind::P384) => Ok(P384),
        Some(KeyKind::P521) => Ok(P521),
        _ => Err(KeyError::Unsupported(format!("curve {curve}"))),
    }
}

fn spki_of<K>(key: &K) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified>
where
    K: AsDer<PublicKeyX509Der<'static>>,
{
    Ok(key.as_der()?.as_ref().to_vec())
}

fn ed448_spki(public_key: &[u8]) -> Result<Vec<u8>, der::Error> {
    let algorithm = AlgorithmIdentifierRef { oid: ed448::OID, parameters: None };
    SubjectPublicKeyInfoRef { algorithm, subject_public_key: BitStringRef::from_bytes(public_key)? }.to_der()
}

/// EncryptedPrivateKeyInfo (RFC 5958 §3) begins with an algorithm where PrivateKeyInfo has its version.
fn is_encrypted_pkcs8(der: &[u8]) -> bool {
    matches!(AnyRef::from_der(der), Ok(any) if any.tag() == Tag::Sequence && any.value().first() == Some(&0x30))
}

fn rsa_refused(info: &PrivateKeyInfoRef<'_>) -> KeyError {
    rsa_size_refused(info.private_key.as_bytes())
}

/// Names the size when that is why the library did not take the key.
fn rsa_size_refused(pkcs1: &[u8]) -> KeyError {
    match algorithm::rsa_private_key_bits(pkcs1) {
        Some(bits) if !(2048..=8192).contains(&bits) => KeyError::Unsupported(format!("RSA-{bits}")),
        _ => KeyError::Malformed,
    }
}

#[cfg(test)]
mod tests;
