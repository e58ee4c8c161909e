//! Superpackets cut into the packets they stand for.
//!
//! The kernel hands a tun with offloads up to 64 KiB of one TCP stream, or a run of UDP datagrams, behind one
//! header, and a [virtio header](crate::virtio) that says how to cut. [`Superpacket`] writes any one of the
//! segments into a buffer of the caller's, so that it can be sealed where it was written; the bytes of a segment
//! are moved once and summed once.
//!
//! ```
//! use adit_wire::{segment::Superpacket, udp, virtio::Header};
//!
//! # let mut packet = [0; 64];
//! # let from = "192.0.2.1:1194".parse().unwrap();
//! # let to = "198.51.100.7:40000".parse().unwrap();
//! # let length = udp::build(&mut packet, from, to, b"hello").unwrap();
//! # let (header, packet) = (Header::default(), &packet[..length]);
//! let superpacket = Superpacket::new(&header, packet).unwrap();
//! let mut out = [0; 1500];
//! for index in 0..superpacket.count() {
//!     let length = superpacket.write_segment(index, &mut out).unwrap();
//!     // seal and send &out[..length]
//! #   assert_eq!(&out[..length], packet);
//! }
//! ```

use std::error::Error;
use std::fmt;

use crate::bytes::{array, be16, put, put16};
use crate::checksum::{self, Sum};
use crate::ip::{Packet, V6_HEADER, protocol};
use crate::virtio::{Header, kind};
use crate::{Malformed, tcp, udp};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Why a packet with its virtio header cannot be sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The IP header, or the TCP or UDP header of what is to be cut.
    Malformed(Malformed),
    /// A kind of superpacket that is unknown, or that was not asked for.
    Kind,
    /// The kind is of another protocol or IP version than the packet.
    OtherProtocol,
    /// A fragment that is to be cut.
    Fragment,
    /// Segments of no bytes.
    SegmentSize,
    /// The checksum would lie outside the packet, or where its protocol has none.
    ChecksumPlace,
    /// A superpacket on its way through an IPv6 routing header, whose checksum does not name the last stop.
    SourceRouted,
}

impl Refusal {
    /// A name for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Kind => "offload_kind",
            Self::OtherProtocol => "offload_protocol",
            Self::Fragment => "offload_fragment",
            Self::SegmentSize => "offload_segment_size",
            Self::ChecksumPlace => "offload_checksum_place",
            Self::SourceRouted => "offload_source_routed",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(malformed) => return malformed.fmt(f),
            Self::Kind => "a kind of superpacket that was not asked for",
            Self::OtherProtocol => "not of the protocol its virtio header says",
            Self::Fragment => "a fragment that is to be segmented",
            Self::SegmentSize => "to be cut into segments of no bytes",
            Self::ChecksumPlace => "a checksum place outside the packet or its protocol",
            Self::SourceRouted => "a superpacket with a routing header and no sum of its pseudo header",
        })
    }
}

impl Error for Refusal {}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// A packet as a tun with a virtio header gives it: one that stands for several, one whose checksum is missing,
/// or one that is complete.
#[derive(Debug, Clone, Copy)]
pub struct Superpacket<'a> {
    packet: Packet<'a>,
    work: Work,
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy)]
enum Work {
    Nothing,
    Checksum { start: usize, at: usize },
    Cut(Cut),
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    tcp: bool,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
    /// The sum of the pseudo header but for its length; none for UDP without checksums (RFC 768).
    pseudo: Option<Sum>,
}

impl<'a> Superpacket<'a> {
    /// Checks `bytes` against the header that came with them.
    ///
    /// # Errors
    /// The first thing that does not fit together.
    pub fn new(header: &Header, bytes: &'a [u8]) -> Result<Self, Refusal> {
        let packet = Packet::parse(bytes)?;
        let v4 = packet.version() == 4;
        let (cut, expected) = match header.kind & !kind::ECN {
            kind::NONE if header.kind == kind::NONE => (false, 0),
            kind::TCP4 if v4 => (true, protocol::TCP),
            kind::TCP6 if !v4 => (true, protocol::TCP),
            kind::UDP if header.kind == kind::UDP => (true, protocol::UDP),
            kind::TCP4 | kind::TCP6 => return Err(Refusal::OtherProtocol),
            _ => return Err(Refusal::Kind),
        };
        let work = if cut {
            Work::Cut(Cut::new(header, &packet, expected)?)
        } else if header.needs_checksum() {
            let (start, at) = checksum_place(header, &packet)?;
            Work::Checksum { start, at }
        } else {
            Work::Nothing
        };
        Ok(Self { packet, work })
    }

    /// Headers for all segments together: addresses and protocol are each segment's, lengths and checksums are
    /// not.
    #[must_use]
    pub fn packet(&self) -> &Packet<'a> {
        &self.packet
    }

    /// How many packets it stands for; at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        match &self.work {
            Work::Cut(cut) => (self.packet.total_len() - cut.headers).div_ceil(cut.size).max(1),
            _ => 1,
        }
    }

    /// Bytes of the first segment. All have as many but the last, which may be shorter.
    #[must_use]
    pub fn segment_len(&self) -> usize {
        match &self.work {
            Work::Cut(cut) => self.packet.total_len().min(cut.headers + cut.size),
            _ => self.packet.total_len(),
        }
    }

    /// Writes segment number `index` with its headers and checksums to the start of `out`, and returns its length.
    /// What is behind it in `out` is left alone.
    ///
    /// `None` when there is no such segment, or `out` has no room for it.
    pub fn write_segment(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        if let Work::Cut(cut) = &self.work {
            return cut.write(&self.packet, index, out);
        }
        let length = self.packet.total_len();
        let out = out.get_mut(..length).filter(|_| index == 0)?;
        out.copy_from_slice(self.packet.bytes());
        if let Work::Checksum { start, at } = self.work {
            finish(out, start, at)?;
        }
        Some(length)
    }
}

impl Cut {
    fn new(header: &Header, packet: &Packet<'_>, expected: u8) -> Result<Self, Refusal> {
        if packet.is_fragment() {
            return Err(Refusal::Fragment);
        }
        if packet.protocol() != expected {
            return Err(Refusal::OtherProtocol);
        }
        if header.segment_size == 0 {
            return Err(Refusal::SegmentSize);
        }
        let (transport, tcp) = (packet.transport(), expected == protocol::TCP);
        let (own, checksum_offset) = if tcp {
            (tcp::Segment::parse(transport)?.data_offset(), tcp::CHECKSUM)
        } else {
            (udp::HEADER_LEN, udp::CHECKSUM)
        };
        // UDP's own length field counts all segments or one, depending on where the kernel made the superpacket.
        let partial = be16(transport, checksum_offset).filter(|_| transport.len() >= own);
        let partial = partial.ok_or(Malformed::Short)?;
        if header.needs_checksum() {
            let (start, at) = checksum_place(header, packet)?;
            if start != packet.transport_offset() || at != start + checksum_offset {
                return Err(Refusal::ChecksumPlace);
            }
        }
        let pseudo = if !tcp && !header.needs_checksum() && partial == 0 {
            None
        } else if !packet.is_source_routed() {
            Some(Sum::new().with_pseudo_header(packet.source(), packet.destination(), expected, 0))
        } else if header.needs_checksum() {
            // The sender summed the last stop, which is not the destination here; its length is taken out again.
            Some(Sum::new().with_word(partial).with_word(!(transport.len() as u16)))
        } else {
            return Err(Refusal::SourceRouted);
        };
        let headers = packet.transport_offset() + own;
        Ok(Self { tcp, headers, size: usize::from(header.segment_size), pseudo })
    }

    fn write(&self, whole: &Packet<'_>, index: usize, out: &mut [u8]) -> Option<usize> {
        let (headers, payload) = whole.bytes().split_at_checked(self.headers)?;
        let from = index.checked_mul(self.size)?;
        let rest = payload.get(from..).filter(|rest| !rest.is_empty() || index == 0)?;
        let part = rest.get(..self.size).unwrap_or(rest);
        let last = part.len() == rest.len();
        let length = headers.len() + part.len();

        let out = out.get_mut(..length)?;
        let (head, body) = out.split_at_mut_checked(headers.len())?;
        head.copy_from_slice(headers);
        body.copy_from_slice(part);
        if whole.version() == 4 {
            put16(out, 2, length as u16)?;
            // Consecutive identifications (RFC 6864 §4.2 asks for different ones).
            put16(out, 4, be16(headers, 4)?.wrapping_add(index as u16))?;
            put16(out, 10, 0)?;
            let sum = checksum::checksum(out.get(..whole.header_len())?);
            put16(out, 10, sum)?;
        } else {
            put16(out, 4, (length - V6_HEADER) as u16)?;
        }

        let transport = out.get_mut(whole.transport_offset()..)?;
        let at = if self.tcp {
            let sequence = u32::from_be_bytes(array(transport, 4)?).wrapping_add(from as u32);
            put(transport, 4, &sequence.to_be_bytes())?;
            let flags = transport.get_mut(13)?;
            if !last {
                *flags &= !(FIN | PSH);
            }
            if index != 0 {
                *flags &= !CWR;
            }
            tcp::CHECKSUM
        } else {
            put16(transport, 4, transport.len() as u16)?;
            udp::CHECKSUM
        };
        put16(transport, at, 0)?;
        if let Some(pseudo) = self.pseudo {
            let sum = pseudo.with_word(transport.len() as u16).with(transport).checksum();
            put16(transport, at, if self.tcp { sum } else { never_zero(sum) })?;
        }
        Some(length)
    }
}

/// Completes in place the checksum of a packet that is not to be cut, as the header that came with it asks.
///
/// # Errors
/// Malformed, a superpacket ([`Refusal::Kind`]), or [`Refusal::ChecksumPlace`].
pub fn complete(header: &Header, bytes: &mut [u8]) -> Result<(), Refusal> {
    if header.kind != kind::NONE {
        return Err(Refusal::Kind);
    }
    if header.needs_checksum() {
        let packet = Packet::parse(bytes)?;
        let (length, (start, at)) = (packet.total_len(), checksum_place(header, &packet)?);
        bytes.get_mut(..length).and_then(|bytes| finish(bytes, start, at)).ok_or(Refusal::ChecksumPlace)?;
    }
    Ok(())
}

/// Where the checksum's cover starts, and where it goes, both from the start of the packet.
fn checksum_place(header: &Header, packet: &Packet<'_>) -> Result<(usize, usize), Refusal> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    let inside = start >= packet.transport_offset() && at + 2 <= packet.total_len();
    if inside { Ok((start, at)) } else { Err(Refusal::ChecksumPlace) }
}

/// Sums from `start` on, the sum of the pseudo header included, which stands where the result goes.
fn finish(packet: &mut [u8], start: usize, at: usize) -> Option<()> {
    let sum = checksum::checksum(packet.get(start..)?);
    put16(packet, at, never_zero(sum))
}

/// Zero says in UDP that there is no checksum; its other form is as good everywhere (RFC 768).
fn never_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}
