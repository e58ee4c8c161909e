//! Ed448 (RFC 8032 §5.2), which the cryptographic provider of everything else does not have.
//!
//! This is the only module that touches the pure-Rust implementation; keys, certificates and TLS all come
//! here.

use std::fmt;

use aws_lc_rs::error::Unspecified;
use der::asn1::OctetStringRef;
use ed448_goldilocks::{Signature, SigningKey, VerifyingKey};
use pkcs8::{PrivateKeyInfoRef, SecretDocument};
use spki::{AlgorithmIdentifierRef, ObjectIdentifier};
use zeroize::Zeroizing;

/// Bytes of a secret key, and of a public key.
pub const KEY_LEN: usize = 57;

/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 114;

/// `id-Ed448` (RFC 8410 §3): names the key and the signature alike.
pub(crate) const OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.113");

/// An Ed448 secret key. Wiped when dropped; `Debug` prints nothing of it.
pub struct SecretKey {
    /// On the heap, so that moving this type does not leave copies behind.
    key: Box<SigningKey>,
}

impl SecretKey {
    /// A new key from the system's random source.
    ///
    /// # Errors
    /// [`Unspecified`] when the random source fails.
    pub fn generate() -> Result<Self, Unspecified> {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        aws_lc_rs::rand::fill(seed.as_mut())?;
        Ok(Self::from_seed(&seed))
    }

    /// The key with this RFC 8032 §5.2.5 private key.
    pub fn from_seed(seed: &[u8; KEY_LEN]) -> Self {
        let key = SigningKey::try_from(seed.as_slice()).expect("the length is that of a secret key");
        Self { key: Box::new(key) }
    }

    /// The public key as RFC 8032 §5.2.2 encodes it.
    pub fn public_key(&self) -> [u8; KEY_LEN] {
        self.key.verifying_key().to_bytes()
    }

    /// Signs `message` in pure mode, without context (RFC 8032 §5.2.6).
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.key.sign_raw(message).to_bytes()
    }

    /// Reads the private key of a PKCS#8 structure (RFC 8410 §7); `None` when it holds no Ed448 key.
    pub(crate) fn from_pkcs8(info: &PrivateKeyInfoRef<'_>) -> Option<Self> {
        match info.private_key.as_bytes() {
            [0x04, 0x39, seed @ ..] if info.algorithm == ALGORITHM => {
                Some(Self::from_seed(seed.try_into().ok()?))
            }
            _ => None,
        }
    }

    /// As PKCS#8, version 1 like other programs write it: OpenSSL 3.0 does not read the form with a public
    /// key (RFC 8410 §7).
    pub(crate) fn to_pkcs8(&self) -> Result<SecretDocument, der::Error> {
        let mut octets = Zeroizing::new([0; KEY_LEN + 2]);
        octets[..2].copy_from_slice(&[0x04, 0x39]);
        octets[2..].copy_from_slice(self.key.as_bytes());
        let private_key = OctetStringRef::new(octets.as_slice())?;
        SecretDocument::encode_msg(&PrivateKeyInfoRef::new(ALGORITHM, private_key))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ed448::SecretKey")
    }
}

/// Checks a pure-mode signature without context (RFC 8032 §5.2.7).
///
/// # Errors
/// [`Unspecified`] when key or signature are malformed, or the signature is not this key's over `message`.
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), Unspecified> {
    let public_key: &[u8; KEY_LEN] = public_key.try_into().map_err(|_| Unspecified)?;
    let key = VerifyingKey::from_bytes(public_key).map_err(|_| Unspecified)?;
    let signature = Signature::try_from(signature).map_err(|_| Unspecified)?;
    key.verify_raw(&signature, message).map_err(|_| Unspecified)
}

/// The parameters are absent (RFC 8410 §3).
const ALGORITHM: AlgorithmIdentifierRef<'static> = AlgorithmIdentifierRef { oid: OID, parameters: None };

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
    }

    /// RFC 8032 §7.4, "1 octet".
    const SECRET: &str = "c4eab05d357007c632f3dbb48489924d552b08fe0c353a0d4a1f00acda2c463afbea67c5e8d2877c5e3bc39\
                          7a659949ef8021e954e0a12274e";
    const PUBLIC: &str = "43ba28f430cdff456ae531545f7ecd0ac834a55d9358c0372bfa0c6c6798c0866aea01eb00742802b8438ea4\
                          cb82169c235160627b4c3a9480";
    const SIGNATURE: &str = "26b8f91727bd62897af15e41eb43c377efb9c610d48f2335cb0bd0087810f4352541b143c4b981b7e18f62d\
                             e8ccdf633fc1bf037ab7cd779805e0dbcc0aae1cbcee1afb2e027df36bc04dcecbf154336c19f0af7e0a6\
                             472905e799f1953d2a0ff3348ab21aa4adafd1d234441cf807c03a00";

    #[test]
    fn the_rfc_8032_vector_is_reproduced() {
        let key = SecretKey::from_seed(&bytes(SECRET));

        assert_eq!(key.public_key(), bytes(PUBLIC));
        assert_eq!(key.sign(&[0x03]), bytes(SIGNATURE));
        verify(&bytes::<57>(PUBLIC), &[0x03], &bytes::<114>(SIGNATURE)).unwrap();
    }

    #[test]
    fn any_changed_bit_makes_a_signature_invalid() {
        let key = SecretKey::generate().unwrap();
        let signature = key.sign(b"message");

        for at in [0, 56, 57, 80, 112, 113] {
            let mut wrong = signature;
            wrong[at] ^= 1;
            assert!(verify(&key.public_key(), b"message", &wrong).is_err(), "byte {at}");
        }
        assert!(verify(&key.public_key(), b"massage", &signature).is_err());
    }

    /// The order of the group added to S gives a second encoding of the same signature, which RFC 8032
    /// §5.2.7 step 1 refuses.
    #[test]
    fn a_signature_with_s_beyond_the_group_order_is_refused() {
        let order: [u8; 57] = bytes(
            "f34458ab92c27823558fc58d72c26c219036d6ae49db4ec4e923ca7cffffffffffffffffffffffffffffffffffffffffffff\
             ffffffffff3f00",
        );
        let key = SecretKey::from_seed(&bytes(SECRET));
        let mut signature = key.sign(b"message");
        let mut carry = 0;
        for (byte, more) in signature[57..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }

        assert!(verify(&key.public_key(), b"message", &signature).is_err());
    }

    #[test]
    fn debug_shows_nothing_of_the_key() {
        assert_eq!(format!("{:?}", SecretKey::from_seed(&[7; 57])), "ed448::SecretKey");
    }

    proptest! {
        #[test]
        fn strangers_bytes_are_refused_without_panic(
            key in proptest::collection::vec(any::<u8>(), 55..60),
            signature in proptest::collection::vec(any::<u8>(), 112..117),
        ) {
            prop_assert!(verify(&key, b"m", &signature).is_err());
        }
    }
}
