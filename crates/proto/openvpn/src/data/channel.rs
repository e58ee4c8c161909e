//! The data channel of a session: keys come and go, the channel stays.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use adit_tunnel::{DataChannel, DropReason, HEADROOM, Inner, Opened, TAILROOM};
use arc_swap::ArcSwap;

use super::fragment::{self, FRAGMENT_HEADER, Reassembler, Step};
use super::framing::{self, Compression, Content};
use super::key::DataKey;
use crate::packet::{KeyId, Opcode};

/// Properties of a channel that hold for its whole life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelOptions {
    /// Sends DATA_V2 with this peer-id, else DATA_V1.
    pub peer_id: Option<u32>,
    /// The compression frame.
    pub compression: Compression,
    /// `fragment`: the largest datagram payload; both sides must have it.
    pub fragment: Option<u16>,
    /// `mssfix n mtu`: the largest outer packet a TCP segment inside should lead to.
    pub mssfix: Option<u16>,
    /// Bytes of outer headers: IPv4 and UDP 28, IPv6 and UDP 48, IPv4 and TCP with length prefix 42, IPv6 62.
    pub outer: u16,
}

/// Largest value of a peer-id.
pub const MAX_PEER_ID: u32 = 0x00ff_fffe;

#[derive(Debug, Clone, Default)]
struct Ring {
    /// By key id; the number is the order of installation.
    keys: [Option<(u64, Arc<DataKey>)>; 8],
    send: Option<KeyId>,
}

impl Ring {
    fn key(&self, id: KeyId) -> Option<&(u64, Arc<DataKey>)> {
        self.keys.get(id.index())?.as_ref()
    }

    fn sending(&self) -> Option<&(u64, Arc<DataKey>)> {
        self.key(self.send?)
    }
}

/// See the module's text. All methods may be called from any thread.
pub struct Channel {
    options: ChannelOptions,
    ring: ArcSwap<Ring>,
    installed: AtomicU64,
    reassembler: Option<Mutex<Reassembler>>,
    sequence: AtomicU32,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Channel {
    /// A channel without keys.
    #[must_use]
    pub fn new(options: ChannelOptions) -> Self {
        Self {
            options,
            ring: ArcSwap::default(),
            installed: AtomicU64::new(0),
            reassembler: options.fragment.map(|_| Mutex::default()),
            sequence: AtomicU32::new(0),
        }
    }

    /// The channel's properties.
    #[must_use]
    pub fn options(&self) -> &ChannelOptions {
        &self.options
    }

    /// Adds a key for receiving. The first one is used for sending at once; a later one when a packet under it
    /// has arrived, or by [`promote`](Self::promote).
    pub fn install(&self, key: DataKey) {
        let order = self.installed.fetch_add(1, Ordering::Relaxed);
        let key = Arc::new(key);
        self.ring.rcu(|ring| {
            let mut ring = Ring::clone(ring);
            let id = key.id();
            if let Some(slot) = ring.keys.get_mut(id.index()) {
                *slot = Some((order, Arc::clone(&key)));
            }
            ring.send = ring.send.or(Some(id));
            ring
        });
    }

    /// Sends under key `id` from now on, unless a newer one is in use.
    pub fn promote(&self, id: KeyId) {
        self.ring.rcu(|ring| {
            let mut ring = Ring::clone(ring);
            let newer = match (ring.key(id), ring.sending()) {
                (Some((new, _)), Some((old, _))) => new > old,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if newer {
                ring.send = Some(id);
            }
            ring
        });
    }

    /// Forgets key `id`. If it was the one for sending, the newest that remains takes over.
    pub fn retire(&self, id: KeyId) {
        self.ring.rcu(|ring| {
            let mut ring = Ring::clone(ring);
            if let Some(slot) = ring.keys.get_mut(id.index()) {
                *slot = None;
            }
            if ring.send == Some(id) {
                ring.send =
                    ring.keys.iter().flatten().max_by_key(|(order, _)| *order).map(|(_, key)| key.id());
            }
            ring
        });
    }

    /// Forgets all keys: nothing is opened or sealed any more.
    pub fn close(&self) {
        self.ring.store(Arc::default());
    }

    /// The key in use for sending.
    #[must_use]
    pub fn sending_key(&self) -> Option<Arc<DataKey>> {
        self.ring.load().sending().map(|(_, key)| Arc::clone(key))
    }

    /// A sealed keepalive packet.
    ///
    /// # Errors
    /// As [`DataChannel::seal`].
    pub fn seal_ping(&self) -> Result<Vec<u8>, DropReason> {
        self.seal_message(&framing::PING)
    }

    /// A sealed farewell, for peers that take none on the control channel.
    ///
    /// # Errors
    /// As [`DataChannel::seal`].
    pub fn seal_exit(&self) -> Result<Vec<u8>, DropReason> {
        self.seal_message(&framing::EXIT)
    }

    fn seal_message(&self, message: &[u8]) -> Result<Vec<u8>, DropReason> {
        let packet = HEADROOM..HEADROOM + message.len();
        let mut buf = vec![0; packet.end + TAILROOM];
        buf.get_mut(packet.clone()).ok_or(DropReason::TooBig)?.copy_from_slice(message);
        let range = self.seal(&mut buf, packet)?;
        buf.truncate(range.end);
        buf.drain(..range.start);
        Ok(buf)
    }

    fn header(&self, key: KeyId) -> ([u8; 4], usize) {
        match self.options.peer_id {
            Some(peer) => {
                let mut header = peer.to_be_bytes();
                header[0] = Opcode::DataV2.with(key);
                (header, 4)
            }
            None => ([Opcode::DataV1.with(key), 0, 0, 0], 1),
        }
    }

    fn seal_content(
        &self,
        key: &DataKey,
        buf: &mut [u8],
        content: Range<usize>,
    ) -> Result<Range<usize>, DropReason> {
        let (header, len) = self.header(key.id());
        key.seal(buf, content, header.get(..len).unwrap_or(&header))
    }

    /// Bytes of content that make a datagram of at most `limit` bytes.
    fn room(&self, key: &DataKey, limit: usize) -> usize {
        let (_, header) = self.header(key.id());
        key.room(limit.saturating_sub(header))
    }

    fn deframe(&self, buf: &mut [u8], content: Range<usize>, now: u32) -> Result<Inner, DropReason> {
        let Some(reassembler) = &self.reassembler else {
            return self.unframe(buf, content);
        };
        let bytes = buf.get(content.clone()).ok_or(DropReason::Malformed)?;
        let step = reassembler.lock().unwrap_or_else(PoisonError::into_inner).push(bytes, now)?;
        match step {
            Step::Whole => self.unframe(buf, content.start + FRAGMENT_HEADER..content.end),
            Step::Incomplete => Ok(Inner::Nothing),
            Step::Complete(mut packet) => {
                let all = 0..packet.len();
                Ok(match self.unframe(&mut packet, all)? {
                    Inner::Packet(range) => {
                        packet.truncate(range.end);
                        packet.drain(..range.start);
                        Inner::Assembled(packet)
                    }
                    other => other,
                })
            }
        }
    }

    fn unframe(&self, buf: &mut [u8], content: Range<usize>) -> Result<Inner, DropReason> {
        let packet = self.options.compression.unframe(buf, content)?;
        let bytes = buf.get(packet.clone()).ok_or(DropReason::Malformed)?;
        Ok(match framing::classify(bytes) {
            Content::Packet if bytes.is_empty() => Inner::Nothing,
            Content::Packet => Inner::Packet(packet),
            Content::Ping | Content::Ignored => Inner::Nothing,
            Content::Exit => Inner::Exit,
        })
    }
}

impl DataChannel for Channel {
    fn open(&self, buf: &mut [u8], len: usize, now: u32) -> Result<Opened, DropReason> {
        let (opcode, id) = buf.first().and_then(|&b| Opcode::split(b)).ok_or(DropReason::Malformed)?;
        let header = match opcode {
            Opcode::DataV1 => 1,
            Opcode::DataV2 => 4,
            _ => return Err(DropReason::Malformed),
        };
        let ring = self.ring.load();
        let (order, key) = ring.key(id).ok_or(DropReason::NoKey)?;
        let (content, place) = key.open(buf, len, header, now)?;
        if ring.sending().is_none_or(|(sending, _)| order > sending) {
            self.promote(id);
        }
        let inner = self.deframe(buf, content, now)?;
        let backtrack = u32::try_from(place.backtrack).unwrap_or(u32::MAX);
        Ok(Opened { inner, newest: place.newest, backtrack })
    }

    fn seal(&self, buf: &mut [u8], packet: Range<usize>) -> Result<Range<usize>, DropReason> {
        let ring = self.ring.load();
        let (_, key) = ring.sending().ok_or(DropReason::NoKey)?;
        let mut content = self.options.compression.frame(buf, packet).ok_or(DropReason::TooBig)?;
        if self.options.fragment.is_some() {
            let start = content.start.checked_sub(FRAGMENT_HEADER).ok_or(DropReason::TooBig)?;
            let place = buf.get_mut(start..content.start).ok_or(DropReason::TooBig)?;
            place.copy_from_slice(&fragment::WHOLE_HEADER);
            content.start = start;
        }
        self.seal_content(key, buf, content)
    }

    fn seal_cut(&self, packet: &[u8], emit: &mut dyn FnMut(&[u8])) -> Option<Result<(), DropReason>> {
        let limit = usize::from(self.options.fragment?);
        let ring = self.ring.load();
        let (_, key) = ring.sending()?;
        let room = self.room(key, limit).checked_sub(FRAGMENT_HEADER)?;
        let framed_len = packet.len()
            + match self.options.compression {
                Compression::Lzo | Compression::Stub => 1,
                Compression::None | Compression::StubV2 => 0,
            };
        let (size, count) = fragment::cut(framed_len, room)?;
        // Cutting is for broken paths; it may allocate.
        let mut framed = vec![0; packet.len() + 2 * framing::MAX_BEFORE];
        let start = framing::MAX_BEFORE;
        framed.get_mut(start..start + packet.len())?.copy_from_slice(packet);
        let range = self.options.compression.frame(&mut framed, start..start + packet.len())?;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) as u8;
        let mut buf = vec![0; HEADROOM + FRAGMENT_HEADER + size + TAILROOM];
        for (index, piece) in framed.get(range)?.chunks(size).enumerate() {
            let content = HEADROOM..HEADROOM + FRAGMENT_HEADER + piece.len();
            let (header, body) = buf.get_mut(content.clone())?.split_at_mut_checked(FRAGMENT_HEADER)?;
            header.copy_from_slice(&fragment::header(sequence, index, count, size));
            body.copy_from_slice(piece);
            match self.seal_content(key, &mut buf, content) {
                Ok(datagram) => emit(buf.get(datagram)?),
                Err(reason) => return Some(Err(reason)),
            }
        }
        Some(Ok(()))
    }

    fn max_segment(&self) -> Option<(u16, u16)> {
        let budget = self.options.mssfix?.checked_sub(self.options.outer)?;
        let ring = self.ring.load();
        let (_, key) = ring.sending()?;
        let frame = if self.options.fragment.is_some() { FRAGMENT_HEADER } else { 0 }
            + match self.options.compression {
                Compression::Lzo => 1,
                Compression::None | Compression::Stub | Compression::StubV2 => 0,
            };
        let room = self.room(key, usize::from(budget)).checked_sub(frame)?;
        let segment = |headers: usize| u16::try_from(room.checked_sub(headers)?).ok();
        Some((segment(40)?, segment(60)?))
    }
}
