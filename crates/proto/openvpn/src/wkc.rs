//! The wrapped client key of tls-crypt-v2.
//!
//! ```text
//! WKc = T 32 | AES-256-CTR(Ke, T[0..16], Kc 256 | metadata) | length 2
//! T   = HMAC-SHA256(Ka, length | Kc | metadata);  length counts all of WKc
//! ```

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::Role;
use crate::keyfile::{ClientKeyV2, ServerKeyV2, StaticKey};
use crate::packet::{KeyId, Opcode};
use crate::wrap::{PacketNumber, SivKey, TAG_LEN, WrapKeys, fingerprint};

/// Smallest wrapped key: no metadata.
pub const MIN_LEN: usize = TAG_LEN + 256 + 2;
/// Largest wrapped key.
pub const MAX_LEN: usize = 1024;
/// Length of a client's first packet without its wrapped key.
pub const FIRST_LEN: usize = 54;
/// Most metadata bytes, with the type byte.
pub const MAX_METADATA: usize = MAX_LEN - MIN_LEN;

/// The server's side of tls-crypt-v2: makes and opens wrapped client keys. Shared by all.
#[derive(Clone)]
pub struct Unwrapper(Arc<SivKey>);

impl fmt::Debug for Unwrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unwrapper(..)")
    }
}

/// What a client's wrapped key carries besides the key (`--tls-crypt-v2` metadata).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metadata {
    /// Nothing.
    None,
    /// Free bytes.
    User(Vec<u8>),
    /// When the key was made, Unix seconds.
    Timestamp(u64),
    /// A type this program does not know.
    Unknown(u8),
}

impl Metadata {
    fn parse(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            None => Self::None,
            Some((0, value)) => Self::User(value.to_vec()),
            Some((1, value)) => {
                value.try_into().map_or(Self::Unknown(1), |value| Self::Timestamp(u64::from_be_bytes(value)))
            }
            Some((&kind, _)) => Self::Unknown(kind),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::User(bytes) => {
                out.push(0);
                out.extend_from_slice(bytes.get(..bytes.len().min(MAX_METADATA - 1)).unwrap_or(&[]));
            }
            Self::Timestamp(seconds) => {
                out.push(1);
                out.extend_from_slice(&seconds.to_be_bytes());
            }
            Self::Unknown(kind) => out.push(*kind),
        }
    }
}

/// Cuts the wrapped key off the end of a packet that carries one; `None` when its length makes no sense.
#[must_use]
pub fn split(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(u16::from_be_bytes(*packet.last_chunk()?));
    if !(MIN_LEN..=MAX_LEN).contains(&len) {
        return None;
    }
    packet.split_at_checked(packet.len().checked_sub(len)?)
}

impl Unwrapper {
    /// From the server key.
    #[must_use]
    pub fn new(key: &ServerKeyV2) -> Self {
        Self(Arc::new(SivKey::new(key.cipher(), key.hmac())))
    }

    /// Opens a wrapped key. `None` when it was not made with this server key.
    #[must_use]
    pub fn open(&self, wrapped: &[u8]) -> Option<(StaticKey, Metadata)> {
        if wrapped.len() < MIN_LEN || wrapped.len() > MAX_LEN {
            return None;
        }
        let (tag, rest) = wrapped.split_first_chunk::<TAG_LEN>()?;
        let (sealed, len) = rest.split_last_chunk::<2>()?;
        if usize::from(u16::from_be_bytes(*len)) != wrapped.len() {
            return None;
        }
        // Strangers' keys are opened too: no allocation.
        let mut buffer = [0; MAX_LEN];
        let plain = buffer.get_mut(..sealed.len())?;
        plain.copy_from_slice(sealed);
        self.0.crypt(tag, plain);
        let opened = if self.tag(*len, plain).ct_eq(tag).into() {
            plain.split_first_chunk().map(|(key, metadata)| (StaticKey::new(key), Metadata::parse(metadata)))
        } else {
            None
        };
        plain.zeroize();
        opened
    }

    /// The keys and packet number of a client's first packet, if its wrapped key opens and verifies the rest.
    /// Its form decides about most strangers' packets.
    #[must_use]
    pub fn verify_first(&self, packet: &[u8]) -> Option<(WrapKeys, PacketNumber)> {
        if packet.first() != Some(&Opcode::HardResetClientV3.with(KeyId::FIRST)) {
            return None;
        }
        let (rest, wrapped) = split(packet).filter(|(rest, _)| rest.len() == FIRST_LEN)?;
        let (key, _) = self.open(wrapped)?;
        let keys = WrapKeys::tls_crypt(&key, Role::Server);
        let (_, number) = keys.verify_first(Opcode::HardResetClientV3, rest)?;
        Some((keys, number?))
    }

    /// Equal for two server keys exactly when they open the same wrapped keys; tells nothing else of them.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 16] {
        fingerprint(&self.0.mac)
    }

    /// Wraps `key` for a client. User metadata beyond the format's 733 bytes is cut off.
    #[must_use]
    pub fn seal(&self, key: &StaticKey, metadata: &Metadata) -> ClientKeyV2 {
        let mut plain = Zeroizing::new(key.bytes().to_vec());
        metadata.write(&mut plain);
        let len = ((TAG_LEN + plain.len() + 2) as u16).to_be_bytes();
        let tag = self.tag(len, &plain);
        self.0.crypt(&tag, &mut plain);
        let mut wrapped = Vec::with_capacity(TAG_LEN + plain.len() + 2);
        wrapped.extend_from_slice(&tag);
        wrapped.extend_from_slice(&plain);
        wrapped.extend_from_slice(&len);
        ClientKeyV2 { key: key.clone(), wrapped }
    }

    fn tag(&self, len: [u8; 2], plain: &[u8]) -> [u8; TAG_LEN] {
        let mut mac = hmac::Context::with_key(&self.0.mac);
        mac.update(&len);
        mac.update(plain);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(mac.sign().as_ref());
        tag
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{Head, SessionId};
    use crate::wrap::EARLY_NEGOTIATION_START;

    fn server() -> Unwrapper {
        Unwrapper::new(&ServerKeyV2::new(&std::array::from_fn(|i| 255 - i as u8)))
    }

    fn counting() -> StaticKey {
        StaticKey::new(&std::array::from_fn(|i| i as u8))
    }

    fn sha256(bytes: &[u8]) -> String {
        HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref())
    }

    #[test]
    fn the_wrapped_key_and_first_packet_are_those_of_the_stock_tool() {
        let client = server().seal(&counting(), &Metadata::Timestamp(0x6500_0000));
        assert_eq!(client.wrapped.len(), 299);
        assert_eq!(
            sha256(&client.wrapped),
            "0d864427f0ccb9990606fc7e086903da4070d654983d41ae81ca36f73ef92b74"
        );
        let head = Head {
            opcode: Opcode::HardResetClientV3,
            key: KeyId::FIRST,
            session: SessionId::new([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]).unwrap(),
        };
        let number = PacketNumber { id: EARLY_NEGOTIATION_START, time: 0x6500_0000 };
        let mut packet = Vec::new();
        WrapKeys::tls_crypt(&client.key, Role::Client).wrap(&head, number, &[0; 5], &mut packet);
        packet.extend_from_slice(&client.wrapped);
        assert_eq!(packet.len(), 353);
        assert_eq!(sha256(&packet), "ffdd5a9411409cc34b1e6c8dd1c4195ff5c9719049cc0f73b0cb611daf452b5f");
        let (rest, wrapped) = split(&packet).unwrap();
        assert_eq!(rest.len(), 54);
        let (key, metadata) = server().open(wrapped).unwrap();
        assert_eq!((key, metadata), (counting(), Metadata::Timestamp(0x6500_0000)));
    }

    #[test]
    fn a_key_wrapped_for_another_server_does_not_open() {
        let other = Unwrapper::new(&ServerKeyV2::new(&[7; 128]));
        let client = other.seal(&counting(), &Metadata::User(b"ann/laptop".to_vec()));
        assert!(server().open(&client.wrapped).is_none());
        assert_eq!(other.open(&client.wrapped).unwrap().1, Metadata::User(b"ann/laptop".to_vec()));
    }

    #[test]
    fn the_largest_metadata_fits_and_more_is_cut() {
        let client = server().seal(&counting(), &Metadata::User(vec![9; 2000]));
        assert_eq!(client.wrapped.len(), MAX_LEN);
        assert!(server().open(&client.wrapped).is_some());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = server().seal(&counting(), &Metadata::None).wrapped;
        assert_eq!(good.len(), MIN_LEN);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(server().open(&bad).is_none(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn strangers_bytes_open_nothing(mut bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            prop_assert!(server().open(&bytes).is_none());
            let len = bytes.len() as u16;
            if let Some(last) = bytes.last_chunk_mut() {
                *last = len.to_be_bytes();
            }
            prop_assert!(server().open(&bytes).is_none());
            let _ = split(&bytes);
        }
    }
}
