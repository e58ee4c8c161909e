//! Authenticated encryption of single packets, in place (RFC 5116).

use std::fmt;

use aws_lc_rs::aead;

/// Length of every tag, in bytes.
pub const TAG: usize = 16;
/// Length of every nonce, in bytes.
pub const NONCE: usize = 12;

/// The AEAD algorithms tunnels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES-128 in Galois/Counter mode.
    Aes128Gcm,
    /// AES-192 in Galois/Counter mode.
    Aes192Gcm,
    /// AES-256 in Galois/Counter mode.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Algorithm {
    /// Key length in bytes.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes192Gcm => 24,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    fn provider(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes192Gcm => &aead::AES_192_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

/// A key for one direction. It may be used from several threads at once.
pub struct Key {
    algorithm: Algorithm,
    inner: aead::LessSafeKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.algorithm)
    }
}

/// The packet was not made with this key, or was changed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Forged;

impl Key {
    /// Makes a key from the first [`Algorithm::key_len`] bytes of `material`; `None` when it is shorter.
    #[must_use]
    pub fn new(algorithm: Algorithm, material: &[u8]) -> Option<Self> {
        let bytes = material.get(..algorithm.key_len())?;
        let unbound = aead::UnboundKey::new(algorithm.provider(), bytes).ok()?;
        Some(Self { algorithm, inner: aead::LessSafeKey::new(unbound) })
    }

    /// The algorithm of this key.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Encrypts `text` in place and returns its tag. The caller never repeats a nonce under one key.
    ///
    /// # Errors
    /// Only when `text` is longer than the algorithm allows (2^36 bytes), which no packet is.
    pub fn seal(&self, nonce: [u8; NONCE], aad: &[u8], text: &mut [u8]) -> Result<[u8; TAG], Forged> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag =
            self.inner.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), text).map_err(|_| Forged)?;
        tag.as_ref().try_into().map_err(|_| Forged)
    }

    /// Decrypts `text || tag` in place; the plaintext is the part before the tag.
    ///
    /// # Errors
    /// [`Forged`] when the tag does not fit; the bytes of `text` are then of no use.
    pub fn open(&self, nonce: [u8; NONCE], aad: &[u8], text_and_tag: &mut [u8]) -> Result<(), Forged> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        self.inner.open_in_place(nonce, aead::Aad::from(aad), text_and_tag).map(|_| ()).map_err(|_| Forged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Algorithm; 4] =
        [Algorithm::Aes128Gcm, Algorithm::Aes192Gcm, Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305];

    #[test]
    fn what_is_sealed_opens_and_a_changed_bit_does_not() {
        for algorithm in ALL {
            let key = Key::new(algorithm, &[7; 32]).unwrap();
            let mut packet = b"forty-two bytes of tunnel".to_vec();
            let tag = key.seal([1; 12], b"head", &mut packet).unwrap();
            packet.extend_from_slice(&tag);
            let good = packet.clone();
            key.open([1; 12], b"head", &mut packet).unwrap();
            assert_eq!(&packet[..25], b"forty-two bytes of tunnel");
            for bit in [0, 8 * 30] {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1;
                assert_eq!(key.open([1; 12], b"head", &mut bad), Err(Forged));
            }
            assert_eq!(key.open([2; 12], b"head", &mut good.clone()), Err(Forged));
            assert_eq!(key.open([1; 12], b"tail", &mut good.clone()), Err(Forged));
        }
    }

    #[test]
    fn short_material_makes_no_key() {
        for algorithm in ALL {
            assert!(Key::new(algorithm, &vec![0; algorithm.key_len() - 1]).is_none());
        }
    }
}
