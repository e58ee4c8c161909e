//! What lies between the cipher and the inner packet: the compression byte and in-band messages.
//!
//! adit never compresses and never decompresses: secrets and guesses in one compressed stream betray each other.
//! But clients configured for compression frame their packets for it, and the frame must be understood.

use std::ops::Range;

use adit_tunnel::DropReason;

/// The keepalive packet.
pub const PING: [u8; 16] =
    [0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48];

/// Starts in-band messages of old clients.
const OCC: [u8; 16] =
    [0x28, 0x7f, 0x34, 0x6b, 0xd4, 0xef, 0x7a, 0x81, 0x2d, 0x56, 0xb8, 0xd3, 0xaf, 0xc5, 0x45, 0x9c];
const OCC_EXIT: u8 = 6;

/// The in-band farewell.
pub(super) const EXIT: [u8; 17] = {
    let mut out = [OCC_EXIT; 17];
    let mut i = 0;
    while i < OCC.len() {
        out[i] = OCC[i];
        i += 1;
    }
    out
};

/// How packets are framed for compression that is never done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// No frame.
    #[default]
    None,
    /// `comp-lzo`: one byte in front.
    Lzo,
    /// `compress stub` or `lz4`: a byte replaces the first, which moves to the end.
    Stub,
    /// `compress stub-v2` or `lz4-v2`: nothing, unless the packet starts with the escape byte.
    StubV2,
}

const LZO_PLAIN: u8 = 0xfa;
const STUB_PLAIN: u8 = 0xfb;
const LZO_COMPRESSED: u8 = 0x66;
const LZ4_COMPRESSED: u8 = 0x69;
const V2_ESCAPE: u8 = 0x50;
const V2_PLAIN: u8 = 0x00;
/// What OpenVPN itself sends where it expects [`V2_PLAIN`].
const V2_PLAIN_SENT: u8 = 0x0a;

/// Bytes a frame may add before and after the packet.
pub(super) const MAX_BEFORE: usize = 1;

impl Compression {
    /// Frames `buf[packet]`; there is room for one byte on either side.
    pub(super) fn frame(self, buf: &mut [u8], packet: Range<usize>) -> Option<Range<usize>> {
        match self {
            Self::None | Self::StubV2 => Some(packet),
            Self::Lzo => {
                let start = packet.start.checked_sub(1)?;
                *buf.get_mut(start)? = LZO_PLAIN;
                Some(start..packet.end)
            }
            Self::Stub => {
                let first = std::mem::replace(buf.get_mut(packet.start)?, STUB_PLAIN);
                *buf.get_mut(packet.end)? = first;
                Some(packet.start..packet.end + 1)
            }
        }
    }

    /// Removes the frame from `buf[content]`.
    pub(super) fn unframe(self, buf: &mut [u8], content: Range<usize>) -> Result<Range<usize>, DropReason> {
        let short = DropReason::Malformed;
        match self {
            Self::None => Ok(content),
            Self::Lzo => match buf.get(content.start).filter(|_| !content.is_empty()) {
                Some(&LZO_PLAIN) => Ok(content.start + 1..content.end),
                Some(_) => Err(DropReason::Compressed),
                None => Err(short),
            },
            Self::Stub => {
                if content.len() < 2 {
                    return Err(short);
                }
                let last = *buf.get(content.end - 1).ok_or(short)?;
                match buf.get_mut(content.start) {
                    Some(first) if *first == STUB_PLAIN => *first = last,
                    Some(_) => return Err(DropReason::Compressed),
                    None => return Err(short),
                }
                Ok(content.start..content.end - 1)
            }
            Self::StubV2 => match buf.get(content.clone()) {
                Some([V2_ESCAPE, V2_PLAIN | V2_PLAIN_SENT, ..]) => Ok(content.start + 2..content.end),
                Some([V2_ESCAPE, ..]) => Err(DropReason::Compressed),
                Some(bytes) if is_old_frame(bytes) => Err(DropReason::Compressed),
                Some(_) => Ok(content),
                None => Err(short),
            },
        }
    }
}

/// True for packets of a client that goes on with `comp-lzo` or `compress lz4` although it was told otherwise.
fn is_old_frame(content: &[u8]) -> bool {
    match content.first() {
        Some(&(LZO_PLAIN | STUB_PLAIN)) => true,
        // An IPv6 packet may begin like that too, but has its length in it.
        Some(&(LZO_COMPRESSED | LZ4_COMPRESSED)) => {
            let length = content.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
            length.is_none_or(|length| 40 + usize::from(length) != content.len())
        }
        _ => false,
    }
}

/// What unframed content is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Packet,
    Ping,
    Exit,
    Ignored,
}

/// Tells in-band messages from packets.
pub(super) fn classify(content: &[u8]) -> Content {
    if content == PING {
        return Content::Ping;
    }
    match content.strip_prefix(&OCC) {
        Some([OCC_EXIT, ..]) => Content::Exit,
        Some(_) => Content::Ignored,
        None => Content::Packet,
    }
}
