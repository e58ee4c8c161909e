//! Lengths and bytes at fixed places: for back ends of which nothing better is known.

use std::fmt;

use crate::answer::Answer;
use crate::{LOOKS_AT, Transport};

/// Bytes to compare under a mask.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Masked {
    offset: usize,
    /// Mask and value of each byte.
    bytes: Vec<(u8, u8)>,
}

/// A first packet's length, bytes in it, or both; all must hold.
///
/// A TCP length is that of the first record as it stands in the stream: a prefix of two bytes, which tells
/// how many follow, and those. So the answer does not depend on how the stream was cut, and is Yes once all
/// of the record has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pattern {
    length: Option<(Transport, usize)>,
    masked: Vec<Masked>,
}

/// Why there is no such pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternFault {
    /// A length that nothing can have.
    #[error(
        "a length of {0} bytes cannot be matched: over TCP 3 to {LOOKS_AT}, over UDP 0 to 65527 are possible"
    )]
    Length(usize),
    /// The bytes lie where nobody looks.
    #[error("bytes {0} to {1} cannot be matched: only the first {LOOKS_AT} of a flow are looked at")]
    Offset(usize, usize),
    /// Mask and value have different lengths, or no bytes.
    #[error("mask and value need one length of at least 1 byte; they have {0} and {1}")]
    Sizes(usize, usize),
    /// The value has a bit that the mask leaves out.
    #[error("byte {0} can never match: its value has bits that its mask leaves out")]
    Never(usize),
}

impl Pattern {
    /// A datagram of `len` bytes (UDP payload).
    ///
    /// # Errors
    /// [`PatternFault::Length`] when no datagram has it.
    pub fn udp_length(len: usize) -> Result<Self, PatternFault> {
        if len > 65_527 {
            return Err(PatternFault::Length(len));
        }
        Ok(Self { length: Some((Transport::Udp, len)), ..Self::default() })
    }

    /// A first record of `len` bytes, with its prefix.
    ///
    /// # Errors
    /// [`PatternFault::Length`] when it is shorter than a prefix and a byte, or longer than what is looked
    /// at.
    pub fn tcp_length(len: usize) -> Result<Self, PatternFault> {
        if !(3..=LOOKS_AT).contains(&len) {
            return Err(PatternFault::Length(len));
        }
        Ok(Self { length: Some((Transport::Tcp, len)), ..Self::default() })
    }

    /// A flow whose bytes at `offset` are `value` where `mask` has bits, over either transport.
    ///
    /// # Errors
    /// As [`Pattern::with_bytes`].
    pub fn bytes(offset: usize, mask: &[u8], value: &[u8]) -> Result<Self, PatternFault> {
        Self::default().with_bytes(offset, mask, value)
    }

    /// The same, if also the bytes at `offset` are `value` where `mask` has bits. Offsets count from the
    /// flow's first byte, over TCP that of the prefix.
    ///
    /// # Errors
    /// [`PatternFault`] when the bytes are not among those looked at, or nothing could match.
    pub fn with_bytes(mut self, offset: usize, mask: &[u8], value: &[u8]) -> Result<Self, PatternFault> {
        if mask.is_empty() || mask.len() != value.len() {
            return Err(PatternFault::Sizes(mask.len(), value.len()));
        }
        let end = offset.saturating_add(mask.len());
        if end > LOOKS_AT {
            return Err(PatternFault::Offset(offset, end - 1));
        }
        let bytes: Vec<_> = mask.iter().copied().zip(value.iter().copied()).collect();
        if let Some(at) = bytes.iter().position(|(mask, value)| value & !mask != 0) {
            return Err(PatternFault::Never(offset + at));
        }
        self.masked.push(Masked { offset, bytes });
        Ok(self)
    }

    /// The same, if also the packet's first byte is `byte`: with a TCP length that is the one after the
    /// prefix.
    ///
    /// # Errors
    /// None that could occur here; for use in a chain.
    pub fn with_first(self, byte: u8) -> Result<Self, PatternFault> {
        let prefix = if self.transport() == Some(Transport::Tcp) { 2 } else { 0 };
        self.with_bytes(prefix, &[0xff], &[byte])
    }

    /// The transport a length was given for.
    pub(crate) fn transport(&self) -> Option<Transport> {
        self.length.map(|(transport, _)| transport)
    }

    /// How many bytes of a TCP beginning are looked at.
    pub(crate) fn looks_at(&self) -> usize {
        let length = self.length.map_or(0, |(_, len)| len);
        self.masked.iter().map(|part| part.offset + part.bytes.len()).fold(length, usize::max)
    }

    /// Whether no byte that is there speaks against it.
    fn fits(&self, bytes: &[u8]) -> bool {
        self.masked.iter().all(|part| {
            let there = bytes.iter().skip(part.offset);
            there.zip(&part.bytes).all(|(byte, (mask, value))| byte & mask == *value)
        })
    }

    pub(crate) fn datagram(&self, bytes: &[u8]) -> bool {
        let length = match self.length {
            None => true,
            Some((transport, len)) => transport == Transport::Udp && len == bytes.len(),
        };
        let needed = self.masked.iter().map(|part| part.offset + part.bytes.len()).max().unwrap_or(0);
        length && bytes.len() >= needed && self.fits(bytes)
    }

    pub(crate) fn stream(&self, bytes: &[u8]) -> Answer {
        let prefix = match self.length {
            None => true,
            Some((Transport::Udp, _)) => false,
            Some((Transport::Tcp, len)) => {
                ((len - 2) as u16).to_be_bytes().iter().zip(bytes).all(|(own, byte)| own == byte)
            }
        };
        if !prefix || !self.fits(bytes) {
            Answer::No
        } else if bytes.len() < self.looks_at() {
            Answer::More
        } else {
            Answer::Yes
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some((transport, len)) = self.length {
            write!(f, "{transport}-length {len}")?;
            separator = ", ";
        }
        for part in &self.masked {
            write!(f, "{separator}byte {}:", part.offset)?;
            for (mask, value) in &part.bytes {
                match mask {
                    0xff => write!(f, " {value:02x}")?,
                    _ => write!(f, " {value:02x}/{mask:02x}")?,
                }
            }
            separator = ", ";
        }
        Ok(())
    }
}
