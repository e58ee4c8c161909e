//! The virtio network header that stands before every packet of a tun opened with one (`IFF_VNET_HDR`):
//! `struct virtio_net_hdr`, VIRTIO 1.2 §5.1.6.
//!
//! It says what the sender left to the device: completing a checksum, cutting a long packet into segments.

use crate::bytes::{array, put};

/// Length of the header in bytes.
pub const LEN: usize = 10;

/// Bit of [`Header::flags`]: the checksum is to be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const NEEDS_CHECKSUM: u8 = 1;

/// Values of [`Header::kind`] (`VIRTIO_NET_HDR_GSO_*`).
pub mod kind {
    /// One packet.
    pub const NONE: u8 = 0;
    /// TCP over IPv4, to be cut.
    pub const TCP4: u8 = 1;
    /// TCP over IPv6, to be cut.
    pub const TCP6: u8 = 4;
    /// UDP datagrams of one size behind one header, to be cut.
    pub const UDP: u8 = 5;
    /// Added to the TCP kinds: the first segment alone has CWR set (RFC 3168 §6.1.2).
    pub const ECN: u8 = 0x80;
}

/// The fields as they stand in the header. All zero: a packet that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// See [`NEEDS_CHECKSUM`]; other bits are the receiver's affair.
    pub flags: u8,
    /// See [`kind`].
    pub kind: u8,
    /// Bytes of all headers. A hint: the kernel may count payload in.
    pub header_len: u16,
    /// Bytes of payload in each segment but the last.
    pub segment_size: u16,
    /// With [`NEEDS_CHECKSUM`]: the first byte that the checksum covers, counted from the start of the packet.
    pub checksum_start: u16,
    /// With [`NEEDS_CHECKSUM`]: where the checksum goes, counted from there. The sum of the pseudo header stands
    /// there already.
    pub checksum_offset: u16,
}

impl Header {
    /// Reads a header; its numbers have the machine's byte order.
    #[must_use]
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let [flags, kind, ..] = *bytes;
        // In range: the header's length is in its type.
        let word = |at| array(bytes, at).map(u16::from_ne_bytes).unwrap_or_default();
        Self {
            flags,
            kind,
            header_len: word(2),
            segment_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// The header as it goes before the packet.
    #[must_use]
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let words = [self.header_len, self.segment_size, self.checksum_start, self.checksum_offset];
        put(&mut bytes, 0, &[self.flags, self.kind]);
        for (at, word) in [2, 4, 6, 8].into_iter().zip(words) {
            put(&mut bytes, at, &word.to_ne_bytes());
        }
        bytes
    }

    /// The checksum is to be completed.
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CHECKSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_as_it_was_read() {
        let bytes = [1, 0x81, 66, 0, 0x58, 5, 20, 0, 16, 0];

        let header = Header::parse(&bytes);

        assert!(header.needs_checksum());
        assert_eq!(header.kind, kind::TCP4 | kind::ECN);
        assert_eq!(header.segment_size, u16::from_ne_bytes([0x58, 5]));
        assert_eq!(header.bytes(), bytes);
        assert_eq!(Header::default().bytes(), [0; LEN]);
    }
}
