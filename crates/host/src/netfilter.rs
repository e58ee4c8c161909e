//! The kernel's packet filter and connection tracking over netlink (`NETLINK_NETFILTER`).
//!
//! A [`Netfilter`] works in the network namespace in which it was opened. What it does stands beside what it
//! is about: elements of sets and maps in [`crate::nft`], connections in [`crate::conntrack`].
//!
//! Messages are written here: their numbers are those of `linux/netfilter/nfnetlink.h`.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlasIterator,
};
use rustix::net::netlink;

use crate::netlink::NetlinkFault;
use crate::netlink::connection::Connection;

/// Bytes before the attributes.
const HEADER: usize = 4;

/// A connection to the kernel's packet filter.
#[derive(Debug)]
pub struct Netfilter {
    pub(crate) connection: Connection,
}

impl Netfilter {
    /// Opens a connection to the calling thread's network namespace.
    ///
    /// # Errors
    /// When the process has no descriptor left, or the kernel no packet filter.
    pub fn open() -> Result<Self, NetlinkFault> {
        Ok(Self { connection: Connection::open(Some(netlink::NETFILTER))? })
    }
}

/// A message of any of netfilter's parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Message {
    /// The part in the upper byte, and which of its messages it is in the lower.
    pub(crate) kind: u16,
    /// What packets it is about, `NFPROTO_…`.
    pub(crate) family: u8,
    /// Which part a batch is for.
    pub(crate) resource: u16,
    /// Attributes as they are on the wire.
    pub(crate) attributes: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        let (header, attributes) = buffer.split_at_mut(HEADER);
        // The second byte is the version, of which there is one.
        header.copy_from_slice(&[self.family, 0, high, low]);
        attributes.copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[family, _, high, low], attributes)) = payload.split_first_chunk::<HEADER>() else {
            return Err("a netfilter message is too short".into());
        };
        Ok(Self {
            kind: header.message_type,
            family,
            resource: u16::from_be_bytes([high, low]),
            attributes: attributes.to_vec(),
        })
    }
}

/// An attribute with a value of no more than 65,531 bytes.
pub(crate) fn attribute(kind: u16, value: impl Into<Vec<u8>>) -> DefaultNla {
    DefaultNla::new(kind, value.into())
}

/// A name as attributes have it, with a zero at its end.
pub(crate) fn name(kind: u16, name: &str) -> DefaultNla {
    attribute(kind, [name.as_bytes(), &[0]].concat())
}

/// An attribute that consists of others.
pub(crate) fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    attribute(kind | NLA_F_NESTED, write(inner))
}

/// Attributes as they are on the wire.
pub(crate) fn write(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The attributes in `bytes`, their kinds without flags.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), DecodeError>> {
    NlasIterator::new(bytes).map(|next| {
        let attribute = next?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Ok((kind, attribute.into_inner().get(4..end).unwrap_or_default()))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Result<Option<&[u8]>, DecodeError> {
    for next in attributes(bytes) {
        let (found, value) = next?;
        if found == kind {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// A number as attributes have it.
pub(crate) fn be<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| format!("a number has {} bytes and not {N}", value.len()).into())
}
