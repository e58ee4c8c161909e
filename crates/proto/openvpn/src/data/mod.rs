//! The data channel: DATA_V1 and DATA_V2 packets.
//!
//! ```text
//! header: V1 byte0 | V2 byte0, peer-id 3
//! AEAD  : header | packet id 4 | tag 16 | ciphertext         AAD = V2: header, id; V1: id
//!         nonce = packet id | first 8 bytes of the direction's hmac slot
//! CBC   : header | HMAC | IV 16 | CBC(packet id 4 | content | padding)     HMAC(IV, ciphertext)
//! content = [fragment header 4] [compression byte] inner packet
//! ```

mod cbc;
mod channel;
mod fragment;
mod framing;
mod key;

pub use channel::{Channel, ChannelOptions, MAX_PEER_ID};
pub use framing::{Compression, PING};
pub use key::{DataKey, ReplayOptions};

use adit_tunnel::aead;

/// Data ciphers. What is not here (`none`, 64-bit block ciphers, CFB, OFB) is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the ciphers")]
pub enum Cipher {
    Aes256Gcm,
    Aes192Gcm,
    Aes128Gcm,
    ChaCha20Poly1305,
    Aes256Cbc,
    Aes192Cbc,
    Aes128Cbc,
}

impl Cipher {
    /// All ciphers.
    pub const ALL: [Self; 7] = [
        Self::Aes256Gcm,
        Self::Aes192Gcm,
        Self::Aes128Gcm,
        Self::ChaCha20Poly1305,
        Self::Aes256Cbc,
        Self::Aes192Cbc,
        Self::Aes128Cbc,
    ];

    /// OpenVPN's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::Aes192Gcm => "AES-192-GCM",
            Self::Aes128Gcm => "AES-128-GCM",
            Self::ChaCha20Poly1305 => "CHACHA20-POLY1305",
            Self::Aes256Cbc => "AES-256-CBC",
            Self::Aes192Cbc => "AES-192-CBC",
            Self::Aes128Cbc => "AES-128-CBC",
        }
    }

    /// The cipher with this name, in any case; `None` when it is unknown or refused.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name().eq_ignore_ascii_case(name))
    }

    /// Key length in bytes.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes256Gcm | Self::ChaCha20Poly1305 | Self::Aes256Cbc => 32,
            Self::Aes192Gcm | Self::Aes192Cbc => 24,
            Self::Aes128Gcm | Self::Aes128Cbc => 16,
        }
    }

    /// True for ciphers that authenticate by themselves.
    #[must_use]
    pub const fn is_aead(self) -> bool {
        self.aead().is_some()
    }

    const fn aead(self) -> Option<aead::Algorithm> {
        match self {
            Self::Aes256Gcm => Some(aead::Algorithm::Aes256Gcm),
            Self::Aes192Gcm => Some(aead::Algorithm::Aes192Gcm),
            Self::Aes128Gcm => Some(aead::Algorithm::Aes128Gcm),
            Self::ChaCha20Poly1305 => Some(aead::Algorithm::ChaCha20Poly1305),
            Self::Aes256Cbc | Self::Aes192Cbc | Self::Aes128Cbc => None,
        }
    }
}

#[cfg(test)]
mod tests;
