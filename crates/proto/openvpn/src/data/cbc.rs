//! AES-CBC with HMAC, encrypt-then-MAC, for clients too old for an AEAD.

use std::fmt;
use std::ops::Range;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{Array, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use aws_lc_rs::hmac;

use super::Cipher;
use crate::wrap::Digest;

/// Block and IV length.
pub(super) const BLOCK: usize = 16;

enum Aes {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

impl Aes {
    fn new(cipher: Cipher, key: &[u8]) -> Option<Self> {
        let key = key.get(..cipher.key_len())?;
        match cipher {
            Cipher::Aes128Cbc => Aes128::new_from_slice(key).ok().map(Self::Aes128),
            Cipher::Aes192Cbc => Aes192::new_from_slice(key).ok().map(Self::Aes192),
            Cipher::Aes256Cbc => Aes256::new_from_slice(key).ok().map(Self::Aes256),
            _ => None,
        }
    }

    /// Pads and encrypts the first `len` bytes of `buf`; the ciphertext's length, or `None` without room.
    fn encrypt(&self, iv: &[u8; BLOCK], buf: &mut [u8], len: usize) -> Option<usize> {
        let iv = iv.into();
        let out = match self {
            Self::Aes128(aes) => {
                cbc::Encryptor::inner_iv_init(aes.clone(), iv).encrypt_padded::<Pkcs7>(buf, len)
            }
            Self::Aes192(aes) => {
                cbc::Encryptor::inner_iv_init(aes.clone(), iv).encrypt_padded::<Pkcs7>(buf, len)
            }
            Self::Aes256(aes) => {
                cbc::Encryptor::inner_iv_init(aes.clone(), iv).encrypt_padded::<Pkcs7>(buf, len)
            }
        };
        out.ok().map(<[u8]>::len)
    }

    /// Decrypts in place; the plaintext's length, or `None` when length or padding are wrong.
    fn decrypt(&self, iv: &[u8; BLOCK], buf: &mut [u8]) -> Option<usize> {
        let iv = iv.into();
        let out = match self {
            Self::Aes128(aes) => cbc::Decryptor::inner_iv_init(aes.clone(), iv).decrypt_padded::<Pkcs7>(buf),
            Self::Aes192(aes) => cbc::Decryptor::inner_iv_init(aes.clone(), iv).decrypt_padded::<Pkcs7>(buf),
            Self::Aes256(aes) => cbc::Decryptor::inner_iv_init(aes.clone(), iv).decrypt_padded::<Pkcs7>(buf),
        };
        out.ok().map(<[u8]>::len)
    }
}

/// Keys of one direction.
pub(super) struct CbcKey {
    aes: Aes,
    mac: hmac::Key,
    mac_len: usize,
    /// Makes initialisation vectors that nobody can foresee out of packet ids (NIST SP 800-38A, appendix C).
    iv: Aes256,
}

impl fmt::Debug for CbcKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CbcKey(..)")
    }
}

impl CbcKey {
    /// From a direction's cipher and hmac slots, and 32 random bytes for the IVs of sent packets.
    pub(super) fn new(cipher: Cipher, digest: Digest, key: &[u8], mac: &[u8], iv: &[u8; 32]) -> Option<Self> {
        Some(Self {
            aes: Aes::new(cipher, key)?,
            mac: digest.key(mac),
            mac_len: digest.size(),
            iv: Aes256::new(iv.into()),
        })
    }

    /// Bytes between the packet header and the ciphertext.
    pub(super) fn head(&self) -> usize {
        self.mac_len + BLOCK
    }

    /// Encrypts `buf[text]` (packet id and content); MAC and IV are put before it. Returns the range of all.
    pub(super) fn seal(&self, buf: &mut [u8], text: Range<usize>, id: u32) -> Option<Range<usize>> {
        let mut iv = [0; BLOCK];
        iv[..4].copy_from_slice(&id.to_be_bytes());
        let block: &mut Array<u8, _> = (&mut iv).into();
        self.iv.encrypt_block(block);
        let start = text.start.checked_sub(self.head())?;
        let sealed = self.aes.encrypt(&iv, buf.get_mut(text.start..)?, text.len())?;
        let end = text.start + sealed;
        let (mac, rest) = buf.get_mut(start..end)?.split_at_mut_checked(self.mac_len)?;
        rest.first_chunk_mut::<BLOCK>().map(|place| *place = iv)?;
        mac.copy_from_slice(hmac::sign(&self.mac, rest).as_ref());
        Some(start..end)
    }

    /// Verifies and decrypts `MAC | IV | ciphertext`; the plaintext's range within `packet`.
    pub(super) fn open(&self, packet: &mut [u8]) -> Option<Range<usize>> {
        let (mac, rest) = packet.split_at_mut_checked(self.mac_len)?;
        hmac::verify(&self.mac, rest, mac).ok()?;
        let (iv, text) = rest.split_first_chunk_mut::<BLOCK>()?;
        let len = self.aes.decrypt(iv, text)?;
        Some(self.head()..self.head() + len)
    }
}
