//! Control packets without their protection: opcodes, session ids, acknowledgements, message ids.
//!
//! ```text
//! byte 0 = opcode << 3 | key_id
//! control: byte 0 | session id of the sender 8 | [protection] | n | n × 4 acked ids
//!          | session id of the receiver 8, when n > 0 | message id 4, unless ACK_V1 | payload
//! ```

use std::fmt;

/// The kinds of packet, by the upper five bits of the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Start of a renegotiation.
    SoftResetV1 = 3,
    /// Reliable message with TLS bytes.
    ControlV1 = 4,
    /// Acknowledgements alone.
    AckV1 = 5,
    /// Data without a peer-id.
    DataV1 = 6,
    /// First packet of a client.
    HardResetClientV2 = 7,
    /// The server's answer to a first packet.
    HardResetServerV2 = 8,
    /// Data with a peer-id.
    DataV2 = 9,
    /// First packet of a client with tls-crypt-v2; its wrapped key follows.
    HardResetClientV3 = 10,
    /// [`Opcode::ControlV1`] with the wrapped key appended once more.
    ControlWkcV1 = 11,
}

impl Opcode {
    /// The opcode and key id of a first byte; `None` for opcodes that are dead or unknown.
    #[must_use]
    pub fn split(byte: u8) -> Option<(Self, KeyId)> {
        let opcode = match byte >> 3 {
            3 => Self::SoftResetV1,
            4 => Self::ControlV1,
            5 => Self::AckV1,
            6 => Self::DataV1,
            7 => Self::HardResetClientV2,
            8 => Self::HardResetServerV2,
            9 => Self::DataV2,
            10 => Self::HardResetClientV3,
            11 => Self::ControlWkcV1,
            _ => return None,
        };
        Some((opcode, KeyId(byte & 7)))
    }

    /// The first byte for this opcode and `key`.
    #[must_use]
    pub fn with(self, key: KeyId) -> u8 {
        (self as u8) << 3 | key.0
    }

    /// True for data packets.
    #[must_use]
    pub fn is_data(self) -> bool {
        matches!(self, Self::DataV1 | Self::DataV2)
    }

    /// True when a wrapped client key follows the packet.
    #[must_use]
    pub fn carries_wkc(self) -> bool {
        matches!(self, Self::HardResetClientV3 | Self::ControlWkcV1)
    }
}

/// Which key negotiation of a session a packet belongs to, 0..=7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct KeyId(u8);

impl KeyId {
    /// The first negotiation's id.
    pub const FIRST: Self = Self(0);

    /// A key id from its number, taken modulo 8.
    #[must_use]
    pub fn new(n: u8) -> Self {
        Self(n & 7)
    }

    /// The next negotiation's id: 0 is never used again within a session.
    #[must_use]
    pub fn next(self) -> Self {
        if self.0 == 7 { Self(1) } else { Self(self.0 + 1) }
    }

    /// As an index 0..8.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The random id each side picks for a session; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; 8]);

impl SessionId {
    /// Checks that the id is not all zero.
    #[must_use]
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// Makes an id of random bytes. The one value that is not allowed is replaced.
    #[must_use]
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self::new(bytes).unwrap_or(Self([1; 8]))
    }

    /// The id as on the wire.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// The id of a control packet's sender: bytes 1..9 of every control packet, whatever protects it.
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        Self::new(*packet.get(1..)?.first_chunk()?)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Most acknowledgements one packet may carry.
pub const MAX_ACKS: usize = 8;

/// Up to [`MAX_ACKS`] acknowledged message ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acks {
    ids: [u32; MAX_ACKS],
    len: usize,
}

impl Acks {
    /// Adds an id; false when the list is full.
    pub fn push(&mut self, id: u32) -> bool {
        let Some(slot) = self.ids.get_mut(self.len) else {
            return false;
        };
        *slot = id;
        self.len += 1;
        true
    }

    /// The ids.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        self.ids.get(..self.len).unwrap_or(&[])
    }

    /// True without ids.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl FromIterator<u32> for Acks {
    /// Takes the first [`MAX_ACKS`] ids.
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        let mut acks = Self::default();
        for id in ids.into_iter().take(MAX_ACKS) {
            acks.push(id);
        }
        acks
    }
}

/// What stands in clear at the start of every control packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The kind of packet.
    pub opcode: Opcode,
    /// The negotiation it belongs to.
    pub key: KeyId,
    /// The sender's session id.
    pub session: SessionId,
}

/// Length of [`Head`] on the wire.
pub const HEAD_LEN: usize = 9;

impl Head {
    /// Reads the head of a control packet; `None` for data packets and anything malformed.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (opcode, key) = Opcode::split(*packet.first()?)?;
        if opcode.is_data() {
            return None;
        }
        Some(Self { opcode, key, session: SessionId::of_packet(packet)? })
    }

    /// The head as on the wire.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[0] = self.opcode.with(self.key);
        out[1..].copy_from_slice(self.session.bytes());
        out
    }
}

/// The part of a control packet that protection covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// Message ids the sender has received.
    pub acks: Acks,
    /// Whose messages are acknowledged; present with acks.
    pub acked_session: Option<SessionId>,
    /// The message's own id; absent in [`Opcode::AckV1`].
    pub id: Option<u32>,
    /// TLS bytes, or early-negotiation TLVs in a server's reset.
    pub payload: &'a [u8],
}

impl<'a> Body<'a> {
    /// Parses the body of a packet with this `opcode`.
    #[must_use]
    pub fn parse(opcode: Opcode, bytes: &'a [u8]) -> Option<Self> {
        let (&count, mut rest) = bytes.split_first()?;
        let mut acks = Acks::default();
        for _ in 0..count {
            let (id, tail) = rest.split_first_chunk()?;
            if !acks.push(u32::from_be_bytes(*id)) {
                return None;
            }
            rest = tail;
        }
        let mut acked_session = None;
        if count > 0 {
            let (session, tail) = rest.split_first_chunk()?;
            acked_session = Some(SessionId::new(*session)?);
            rest = tail;
        }
        let mut id = None;
        if opcode != Opcode::AckV1 {
            let (bytes, tail) = rest.split_first_chunk()?;
            id = Some(u32::from_be_bytes(*bytes));
            rest = tail;
        }
        Some(Self { acks, acked_session, id, payload: rest })
    }

    /// Appends the body to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let session = self.acked_session.filter(|_| !self.acks.is_empty());
        let acks = if session.is_some() { self.acks.as_slice() } else { &[] };
        out.push(acks.len() as u8);
        for id in acks {
            out.extend_from_slice(&id.to_be_bytes());
        }
        if let Some(session) = session {
            out.extend_from_slice(session.bytes());
        }
        if let Some(id) = self.id {
            out.extend_from_slice(&id.to_be_bytes());
        }
        out.extend_from_slice(self.payload);
    }
}

/// Early-negotiation flag: the client is to send its wrapped key once more.
const RESEND_WKC: u16 = 1;
const TLV_EARLY_FLAGS: u16 = 1;

/// The payload of a server's reset that asks for the wrapped client key.
#[must_use]
pub fn resend_wkc_payload() -> [u8; 6] {
    let mut out = [0; 6];
    out[..2].copy_from_slice(&TLV_EARLY_FLAGS.to_be_bytes());
    out[2..4].copy_from_slice(&2u16.to_be_bytes());
    out[4..].copy_from_slice(&RESEND_WKC.to_be_bytes());
    out
}

/// True when a server's reset asks for the wrapped client key. Unknown TLVs are skipped; `None` when malformed.
#[must_use]
pub fn asks_for_wkc(mut payload: &[u8]) -> Option<bool> {
    let mut asked = false;
    while !payload.is_empty() {
        let (kind, rest) = payload.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        if u16::from_be_bytes(*kind) == TLV_EARLY_FLAGS {
            asked |= u16::from_be_bytes(value.try_into().ok()?) & RESEND_WKC != 0;
        }
        payload = rest;
    }
    Some(asked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sid(n: u8) -> SessionId {
        SessionId::new([n; 8]).unwrap()
    }

    #[test]
    fn sizes_follow_from_the_layout() {
        let head = Head { opcode: Opcode::HardResetClientV2, key: KeyId::FIRST, session: sid(1) };
        let sizes = [
            (Body { acks: Acks::default(), acked_session: None, id: Some(0), payload: &[] }, 14),
            (Body { acks: Acks::from_iter([0]), acked_session: Some(sid(2)), id: Some(0), payload: &[] }, 26),
            (Body { acks: Acks::from_iter([0]), acked_session: Some(sid(2)), id: None, payload: &[] }, 22),
        ];
        for (body, expected) in sizes {
            let mut out = head.bytes().to_vec();
            body.write(&mut out);
            assert_eq!(out.len(), expected);
        }
    }

    #[test]
    fn the_plain_first_packet_of_a_client_is_as_captured() {
        let golden = data_encoding::HEXLOWER.decode(b"3811223344556677880000000000").unwrap();
        let head = Head::parse(&golden).unwrap();
        assert_eq!(head.opcode, Opcode::HardResetClientV2);
        let body = Body::parse(head.opcode, &golden[HEAD_LEN..]).unwrap();
        assert_eq!(body, Body { acks: Acks::default(), acked_session: None, id: Some(0), payload: &[] });
    }

    #[test]
    fn more_than_eight_acks_are_refused() {
        let mut bytes = vec![9];
        bytes.extend_from_slice(&[1; 9 * 4 + 8 + 4]);
        assert_eq!(Body::parse(Opcode::ControlV1, &bytes), None);
    }

    #[test]
    fn dead_and_unknown_opcodes_are_refused() {
        for opcode in [0u8, 1, 2, 12, 31] {
            assert!(Opcode::split(opcode << 3).is_none());
        }
    }

    #[test]
    fn key_ids_skip_zero_when_they_wrap() {
        let mut key = KeyId::FIRST;
        let seen: Vec<_> = (0..9)
            .map(|_| {
                key = key.next();
                key.index()
            })
            .collect();
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 1, 2]);
    }

    #[test]
    fn the_request_for_the_wrapped_key_is_as_seen_on_the_wire() {
        assert_eq!(resend_wkc_payload(), [0, 1, 0, 2, 0, 1]);
        assert_eq!(asks_for_wkc(&[0, 1, 0, 2, 0, 1]), Some(true));
        assert_eq!(asks_for_wkc(&[0, 9, 0, 1, 7, 0, 1, 0, 2, 0, 0]), Some(false));
        assert_eq!(asks_for_wkc(&[0, 1, 0, 9, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(head) = Head::parse(&bytes)
                && let Some(body) = Body::parse(head.opcode, &bytes[HEAD_LEN..])
            {
                let mut out = head.bytes().to_vec();
                body.write(&mut out);
                prop_assert_eq!(out, bytes.clone());
            }
            let _ = asks_for_wkc(&bytes);
        }
    }
}
