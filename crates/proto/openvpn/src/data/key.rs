//! Keys of one negotiation: both directions, the packet counter and the replay window.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use adit_tunnel::counter::SendCounter;
use adit_tunnel::replay::{Order, ReplayWindow};
use adit_tunnel::{DropReason, aead};

use super::Cipher;
use super::cbc::{BLOCK, CbcKey};
use crate::Role;
use crate::keyfile::{Slot, StaticKey};
use crate::packet::KeyId;
use crate::wrap::Digest;

/// Packet ids are 32 bits and never wrap.
const LAST_ID: u64 = u32::MAX as u64;
/// A renegotiation is wanted from this packet id on.
const RENEW_ID: u64 = 0xff00_0000;
/// AES-GCM: blocks and packets sealed under one key stay below 2^36 (the bound OpenVPN 2.7 keeps).
const GCM_BLOCKS: u64 = (1 << 36) - 1;

const ID_LEN: usize = 4;

/// `replay-window n t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Packets of tolerated disorder, at most 65,536; 0 accepts strictly ascending packets only.
    pub packets: u32,
    /// Seconds of tolerated delay; 0 sets no limit.
    pub seconds: u32,
}

impl Default for ReplayOptions {
    /// OpenVPN's default.
    fn default() -> Self {
        Self { packets: 64, seconds: 15 }
    }
}

enum Direction {
    Aead { key: aead::Key, implicit_iv: [u8; 8] },
    Cbc(Box<CbcKey>),
}

impl Direction {
    fn new(cipher: Cipher, auth: Digest, keys: &StaticKey, slot: Slot, iv: &[u8; 32]) -> Option<Self> {
        let hmac = keys.hmac(slot);
        match cipher.aead() {
            Some(algorithm) => Some(Self::Aead {
                key: aead::Key::new(algorithm, keys.cipher(slot))?,
                implicit_iv: *hmac.first_chunk()?,
            }),
            None => {
                CbcKey::new(cipher, auth, keys.cipher(slot), hmac, iv).map(|key| Self::Cbc(Box::new(key)))
            }
        }
    }
}

/// The keys of one negotiation. Shared by threads.
pub struct DataKey {
    id: KeyId,
    cipher: Cipher,
    send: Direction,
    receive: Direction,
    counter: SendCounter,
    blocks: AtomicU64,
    window: Mutex<ReplayWindow>,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({}, {})", self.id.index(), self.cipher.name())
    }
}

impl DataKey {
    /// Keys for this side's `role` out of 256 bytes of material; `iv` is random and used by CBC alone.
    #[must_use]
    pub fn new(
        id: KeyId,
        role: Role,
        cipher: Cipher,
        auth: Digest,
        material: &StaticKey,
        replay: ReplayOptions,
        iv: &[u8; 32],
    ) -> Self {
        // Client to server is slot 0, whoever this side is.
        let (send, receive) = match role {
            Role::Client => (Slot::Zero, Slot::One),
            Role::Server => (Slot::One, Slot::Zero),
        };
        let direction =
            |slot| Direction::new(cipher, auth, material, slot, iv).expect("64 bytes hold any cipher's key");
        Self {
            id,
            cipher,
            send: direction(send),
            receive: direction(receive),
            counter: SendCounter::new(LAST_ID),
            blocks: AtomicU64::new(0),
            window: Mutex::new(ReplayWindow::new(replay.packets, replay.seconds)),
        }
    }

    /// The negotiation this key came from.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The cipher.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// True when the key is close to a limit and another should be negotiated.
    #[must_use]
    pub fn wants_renewal(&self) -> bool {
        self.counter.used() >= RENEW_ID || self.blocks.load(Ordering::Relaxed) >= GCM_BLOCKS / 8 * 7
    }

    /// Bytes in front of the content, without the packet header.
    pub(super) fn head(&self) -> usize {
        match &self.send {
            Direction::Aead { .. } => ID_LEN + aead::TAG,
            Direction::Cbc(key) => key.head() + ID_LEN,
        }
    }

    /// Largest content that makes a packet body (without header) of at most `limit` bytes.
    pub(super) fn room(&self, limit: usize) -> usize {
        let room = limit.saturating_sub(self.head());
        match &self.send {
            Direction::Aead { .. } => room,
            // The ciphertext (id and content) is whole blocks, of which at least one byte is padding.
            Direction::Cbc(_) => ((room + ID_LEN) / BLOCK * BLOCK).saturating_sub(ID_LEN + 1),
        }
    }

    /// Seals `buf[content]` behind `header`, which is written in front; returns the range of the packet.
    pub(super) fn seal(
        &self,
        buf: &mut [u8],
        content: Range<usize>,
        header: &[u8],
    ) -> Result<Range<usize>, DropReason> {
        let exhausted = DropReason::KeyExhausted;
        let id = u32::try_from(self.counter.take().ok_or(exhausted)?).map_err(|_| exhausted)?;
        let body = match &self.send {
            Direction::Aead { key, implicit_iv } => {
                self.spend(content.len())?;
                let id = id.to_be_bytes();
                let text = buf.get_mut(content.clone()).ok_or(DropReason::TooBig)?;
                let mut aad = [0; 8];
                let aad = additional_data(header, id, &mut aad);
                let tag = key.seal(nonce(id, implicit_iv), aad, text).map_err(|_| exhausted)?;
                let start = content.start.checked_sub(ID_LEN + aead::TAG).ok_or(DropReason::TooBig)?;
                let head = buf.get_mut(start..content.start).ok_or(DropReason::TooBig)?;
                head[..ID_LEN].copy_from_slice(&id);
                head[ID_LEN..].copy_from_slice(&tag);
                start..content.end
            }
            Direction::Cbc(key) => {
                let start = content.start.checked_sub(ID_LEN).ok_or(DropReason::TooBig)?;
                let place = buf.get_mut(start..content.start).ok_or(DropReason::TooBig)?;
                place.copy_from_slice(&id.to_be_bytes());
                key.seal(buf, start..content.end, id).ok_or(DropReason::TooBig)?
            }
        };
        let start = body.start.checked_sub(header.len()).ok_or(DropReason::TooBig)?;
        buf.get_mut(start..body.start).ok_or(DropReason::TooBig)?.copy_from_slice(header);
        Ok(start..body.end)
    }

    /// Opens the packet in `buf[..len]`, whose header takes `header` bytes, in place. Returns where its content
    /// is, and its order among the packets of this key.
    pub(super) fn open(
        &self,
        buf: &mut [u8],
        len: usize,
        header: usize,
        now: u32,
    ) -> Result<(Range<usize>, Order), DropReason> {
        let malformed = DropReason::Malformed;
        match &self.receive {
            Direction::Aead { key, implicit_iv } => {
                let text = header + ID_LEN + aead::TAG;
                if len < text {
                    return Err(malformed);
                }
                let packet = buf.get_mut(..len + aead::TAG).ok_or(malformed)?;
                let (head, text_and_room) = packet.split_at_mut_checked(text).ok_or(malformed)?;
                let (head, tag) = head.split_last_chunk::<{ aead::TAG }>().ok_or(malformed)?;
                let (head, id) = head.split_last_chunk::<ID_LEN>().ok_or(malformed)?;
                // The library wants the tag behind the text.
                *text_and_room.last_chunk_mut().ok_or(malformed)? = *tag;
                let mut aad = [0; 8];
                let aad = additional_data(head, *id, &mut aad);
                key.open(nonce(*id, implicit_iv), aad, text_and_room)
                    .map_err(|_| DropReason::Authentication)?;
                let order = self.fresh(u32::from_be_bytes(*id), now)?;
                Ok((text..len, order))
            }
            Direction::Cbc(key) => {
                let packet = buf.get_mut(header..len).ok_or(malformed)?;
                let text = key.open(packet).ok_or(DropReason::Authentication)?;
                let id = packet.get(text.clone()).and_then(<[u8]>::first_chunk).ok_or(malformed)?;
                let order = self.fresh(u32::from_be_bytes(*id), now)?;
                Ok((header + text.start + ID_LEN..header + text.end, order))
            }
        }
    }

    fn fresh(&self, id: u32, now: u32) -> Result<Order, DropReason> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).accept(u64::from(id), now)
    }

    fn spend(&self, bytes: usize) -> Result<(), DropReason> {
        if self.cipher == Cipher::ChaCha20Poly1305 {
            return Ok(());
        }
        let blocks = bytes.div_ceil(16) as u64 + 1;
        let before = self.blocks.fetch_add(blocks, Ordering::Relaxed);
        if before + blocks > GCM_BLOCKS { Err(DropReason::KeyExhausted) } else { Ok(()) }
    }

    #[cfg(test)]
    pub(super) fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }
}

fn nonce(id: [u8; ID_LEN], implicit_iv: &[u8; 8]) -> [u8; aead::NONCE] {
    let mut nonce = [0; aead::NONCE];
    nonce[..ID_LEN].copy_from_slice(&id);
    nonce[ID_LEN..].copy_from_slice(implicit_iv);
    nonce
}

/// DATA_V2 authenticates its header; DATA_V1 does not.
fn additional_data<'a>(header: &[u8], id: [u8; ID_LEN], out: &'a mut [u8; 8]) -> &'a [u8] {
    match <&[u8; 4]>::try_from(header) {
        Ok(header) => {
            out[..4].copy_from_slice(header);
            out[4..].copy_from_slice(&id);
            out
        }
        Err(_) => {
            out[..4].copy_from_slice(&id);
            &out[..4]
        }
    }
}
