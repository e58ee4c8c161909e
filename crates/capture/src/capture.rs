//! Capture files: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng).

use std::time::Duration;

use crate::link::Link;
use crate::pcapng::Section;

/// The most bytes of one captured packet; what tcpdump and Wireshark take at most.
pub const MAX_PACKET: usize = 262_144;

const PCAP_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// Why bytes are no capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaptureFault {
    /// The file starts like neither format.
    #[error("this is no capture: neither pcap nor pcapng; make one with `tcpdump -w FILE`")]
    Unknown,
    /// Fewer bytes than a file header needs.
    #[error("this is no capture: {0} bytes are too few for a header")]
    Short(usize),
    /// A version that is not the published one.
    #[error("version {0}.{1} of the capture format is not known")]
    Version(u16, u16),
    /// Packets of a network that is not understood.
    #[error(
        "link type {0} is not understood (offset 20); Ethernet, raw IP, Linux cooked and loopback captures are"
    )]
    LinkType(u32),
    /// A packet longer than any can be.
    #[error("a packet of {length} bytes at offset {offset}: more than {MAX_PACKET}; the file is damaged")]
    PacketLength {
        /// Where its record starts.
        offset: usize,
        /// What it says.
        length: u32,
    },
    /// A pcapng block whose length cannot be, or that contradicts itself.
    #[error("damaged block at offset {offset}: {why}")]
    Block {
        /// Where it starts.
        offset: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// Byte order of a file or section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Big,
    Little,
}

impl Order {
    /// The 16-bit field at `at`.
    pub(crate) fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u16::from_be_bytes(field) } else { u16::from_le_bytes(field) })
    }

    /// The 32-bit field at `at`.
    pub(crate) fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u32::from_be_bytes(field) } else { u32::from_le_bytes(field) })
    }

    /// The 64-bit field at `at`.
    pub(crate) fn u64(self, bytes: &[u8], at: usize) -> Option<u64> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u64::from_be_bytes(field) } else { u64::from_le_bytes(field) })
    }
}

/// A captured packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When it was captured, since the Unix epoch; zero when the file does not say.
    pub time: Duration,
    /// What `bytes` starts with; `None` when that is not understood.
    pub link: Option<Link>,
    /// Bytes it had on the wire; more than `bytes` when the capture was told to cut packets.
    pub wire_length: u32,
    /// What was captured of it.
    pub bytes: &'a [u8],
}

#[derive(Debug, Clone)]
enum Format {
    Pcap { order: Order, nanoseconds: bool, link: Link },
    Pcapng(Section),
}

/// A capture: an iterator of its frames. It ends behind the first error.
#[derive(Debug, Clone)]
pub struct Capture<'a> {
    bytes: &'a [u8],
    at: usize,
    format: Format,
    truncated: Option<usize>,
}

impl<'a> Capture<'a> {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// It is neither pcap nor pcapng, or of a kind that is not understood.
    pub fn open(bytes: &'a [u8]) -> Result<Self, CaptureFault> {
        let magic = *bytes.first_chunk::<4>().ok_or(CaptureFault::Short(bytes.len()))?;
        let (order, nanoseconds) = match magic {
            [0xa1, 0xb2, 0xc3, 0xd4] => (Order::Big, false),
            [0xd4, 0xc3, 0xb2, 0xa1] => (Order::Little, false),
            [0xa1, 0xb2, 0x3c, 0x4d] => (Order::Big, true),
            [0x4d, 0x3c, 0xb2, 0xa1] => (Order::Little, true),
            [0x0a, 0x0d, 0x0d, 0x0a] => {
                let format = Format::Pcapng(Section::open(bytes)?);
                return Ok(Self { bytes, at: 0, format, truncated: None });
            }
            _ => return Err(CaptureFault::Unknown),
        };
        let short = CaptureFault::Short(bytes.len());
        let word = |at| order.u16(bytes, at).ok_or(short);
        let version = (word(4)?, word(6)?);
        if version.0 != 2 {
            return Err(CaptureFault::Version(version.0, version.1));
        }
        // The upper bits say whether frames end with a checksum, which IP's own length leaves out anyway.
        let number = order.u32(bytes, 20).ok_or(short)? & 0x0fff_ffff;
        let link = Link::from_number(number).ok_or(CaptureFault::LinkType(number))?;
        Ok(Self {
            bytes,
            at: PCAP_HEADER,
            format: Format::Pcap { order, nanoseconds, link },
            truncated: None,
        })
    }

    /// Where the last packet starts, in bytes from the start of the file, if the file ends within it. Known when
    /// the iterator is at its end. Such a packet is left out: a capture that was interrupted is still good.
    #[must_use]
    pub fn truncated(&self) -> Option<usize> {
        self.truncated
    }

    /// The next record of a pcap file; `None` at its end.
    fn record(
        &mut self,
        order: Order,
        nanoseconds: bool,
        link: Link,
    ) -> Option<Result<Frame<'a>, CaptureFault>> {
        let offset = self.at;
        let rest = self.bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let fields = rest.first_chunk::<RECORD_HEADER>().and_then(|header| {
            let field = |at| order.u32(header, at);
            Some((field(0)?, field(4)?, field(8)?, field(12)?))
        });
        let Some((seconds, fraction, length, wire_length)) = fields else {
            self.truncated = Some(offset);
            return None;
        };
        let end = RECORD_HEADER + length as usize;
        if length as usize > MAX_PACKET {
            return Some(Err(CaptureFault::PacketLength { offset, length }));
        }
        let Some(bytes) = rest.get(RECORD_HEADER..end) else {
            self.truncated = Some(offset);
            return None;
        };
        self.at = offset + end;
        let nanos = u64::from(fraction) * if nanoseconds { 1 } else { 1000 };
        let time = Duration::from_secs(seconds.into()) + Duration::from_nanos(nanos);
        Some(Ok(Frame { time, link: Some(link), wire_length, bytes }))
    }
}

impl<'a> Iterator for Capture<'a> {
    type Item = Result<Frame<'a>, CaptureFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match &mut self.format {
            Format::Pcap { order, nanoseconds, link } => {
                let (order, nanoseconds, link) = (*order, *nanoseconds, *link);
                self.record(order, nanoseconds, link)
            }
            Format::Pcapng(section) => section.next(self.bytes, &mut self.at, &mut self.truncated),
        };
        if !matches!(next, Some(Ok(_))) {
            self.at = self.bytes.len();
        }
        next
    }
}

#[cfg(test)]
mod tests;
