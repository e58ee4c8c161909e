//! First packets of clients, judged without allocating: strangers make most of them.

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;

use super::{Kind, PacketNumber, TAG_LEN, WrapKeys};
use crate::packet::{HEAD_LEN, Head, KeyId, Opcode};

/// Body of every client's first packet: no acks, message 0, no payload.
const EMPTY_BODY: [u8; 5] = [0; 5];

/// What [`WrapKeys::fingerprint`] authenticates: no packet is that short.
const FINGERPRINTED: &[u8] = b"same?";

impl WrapKeys {
    /// Length of a client's first packet: all of one kind of protection have the same.
    #[must_use]
    pub fn first_len(&self) -> usize {
        HEAD_LEN + self.overhead() + EMPTY_BODY.len()
    }

    /// The head and packet number (`None` without protection) of a client's first packet, if `packet` is one
    /// and these keys verify it. Most others are told by their length, without a hash. `opcode` is
    /// [`Opcode::HardResetClientV2`], or [`Opcode::HardResetClientV3`] for a key that came with the packet.
    #[must_use]
    pub fn verify_first(&self, opcode: Opcode, packet: &[u8]) -> Option<(Head, Option<PacketNumber>)> {
        if packet.len() != self.first_len() {
            return None;
        }
        let head = Head::parse(packet).filter(|head| head.opcode == opcode && head.key == KeyId::FIRST)?;
        let (clear, rest) = packet.split_at_checked(HEAD_LEN)?;
        let number = match &self.inner {
            Kind::None => (rest == EMPTY_BODY).then_some(None)?,
            Kind::TlsAuth(keys) => {
                let (tag, rest) = rest.split_at_checked(keys.len)?;
                let (number, body) = rest.split_first_chunk()?;
                if body != EMPTY_BODY || !signed(&keys.receive, &[number, clear, body], tag) {
                    return None;
                }
                Some(number)
            }
            Kind::TlsCrypt { receive, .. } => {
                let (number, rest) = rest.split_first_chunk()?;
                let (tag, sealed) = rest.split_first_chunk::<TAG_LEN>()?;
                // The tag covers the plain body, and that is known: only what is genuine is ever decrypted.
                if !signed(&receive.mac, &[clear, number, &EMPTY_BODY], tag) {
                    return None;
                }
                let mut body: [u8; EMPTY_BODY.len()] = sealed.try_into().ok()?;
                receive.crypt(tag, &mut body);
                (body == EMPTY_BODY).then_some(Some(number))?
            }
        };
        Some((head, number.map(PacketNumber::parse)))
    }

    /// Equal for two keys of one kind of protection when both verify the same packets; tells nothing else of
    /// them.
    #[must_use]
    pub fn fingerprint(&self) -> Option<[u8; 16]> {
        match &self.inner {
            Kind::None => None,
            Kind::TlsAuth(keys) => Some(fingerprint(&keys.receive)),
            Kind::TlsCrypt { receive, .. } => Some(fingerprint(&receive.mac)),
        }
    }
}

pub(crate) fn fingerprint(key: &hmac::Key) -> [u8; 16] {
    let tag = hmac::sign(key, FINGERPRINTED);
    tag.as_ref().first_chunk().copied().unwrap_or_default()
}

fn signed(key: &hmac::Key, parts: &[&[u8]], tag: &[u8]) -> bool {
    let mut mac = hmac::Context::with_key(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.sign().as_ref().ct_eq(tag).into()
}
