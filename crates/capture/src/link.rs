//! Link layers: what stands before the IP packet in a frame.

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Tags that are followed by another type: 802.1Q, 802.1ad, and what came before it.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// The most tags that are walked in a frame.
const MAX_TAGS: usize = 4;

/// What a frame starts with (numbers: <https://www.tcpdump.org/linktypes.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Ethernet, with or without tags (1).
    Ethernet,
    /// An IP packet (101; 12 and 14 on some systems; 228 and 229 for one version only).
    Raw,
    /// Linux "cooked", as `tcpdump -i any` made it (113).
    Cooked,
    /// The same, version 2 (276).
    Cooked2,
    /// An address family in four bytes: BSD loopback (0, and 108 in network byte order).
    Loopback,
}

impl Link {
    /// The link layer with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 | 108 => Some(Self::Loopback),
            1 => Some(Self::Ethernet),
            12 | 14 | 101 | 228 | 229 => Some(Self::Raw),
            113 => Some(Self::Cooked),
            276 => Some(Self::Cooked2),
            _ => None,
        }
    }

    /// The IP packet in a frame and what pads it; `None` when there is none.
    #[must_use]
    pub fn ip(self, frame: &[u8]) -> Option<&[u8]> {
        let (kind, content) = match self {
            Self::Raw => return Some(frame),
            // Families have other numbers on each system; the packet says itself which version it has.
            Self::Loopback => return frame.get(4..),
            Self::Ethernet => (frame.get(12..14)?, frame.get(14..)?),
            Self::Cooked => (frame.get(14..16)?, frame.get(16..)?),
            Self::Cooked2 => (frame.get(..2)?, frame.get(20..)?),
        };
        let (mut kind, mut content) = (be16(kind)?, content);
        for _ in 0..=MAX_TAGS {
            match kind {
                ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => return Some(content),
                tag if TAGS.contains(&tag) => {
                    kind = be16(content.get(2..)?)?;
                    content = content.get(4..)?;
                }
                _ => return None,
            }
        }
        None
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|field| u16::from_be_bytes(*field))
}
