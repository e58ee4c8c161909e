//! The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.

use std::net::IpAddr;

use crate::bytes::be16;
use crate::ip::{Packet, protocol};

/// A running one's complement sum.
///
/// Parts may have any length: a part that starts at an odd position of the whole is swapped into place
/// (RFC 1071 §2(B)), so headers and payload can be added as they come.
///
/// ```
/// use adit_wire::checksum::Sum;
///
/// let whole = Sum::new().with(&[1, 2, 3, 4, 5]);
/// let parts = Sum::new().with(&[1, 2, 3]).with(&[4, 5]);
/// assert_eq!(whole.checksum(), parts.checksum());
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Kept in the machine's byte order and turned round once, in `fold`.
    words: u64,
    /// An odd number of bytes went in so far.
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: 0, odd: false }
    }

    /// Adds `bytes`, which follow what was added before.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let sum = if self.odd { fold16(raw(bytes)).swap_bytes() } else { fold16(raw(bytes)) };
        // Each part adds 16 bits, so 2^48 parts go in before `words` could overflow.
        Self { words: self.words.wrapping_add(u64::from(sum)), odd: self.odd ^ (bytes.len() % 2 == 1) }
    }

    /// Adds one 16-bit word, given as a number.
    #[must_use]
    pub fn with_word(self, word: u16) -> Self {
        let word = if self.odd { word.to_be().swap_bytes() } else { word.to_be() };
        Self { words: self.words.wrapping_add(u64::from(word)), odd: self.odd }
    }

    /// Adds the pseudo header of TCP, UDP or ICMPv6: RFC 9293 §3.1 for IPv4, RFC 8200 §8.1 for IPv6.
    /// `length` counts the transport header and its payload, in bytes.
    #[must_use]
    pub fn with_pseudo_header(self, source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> Self {
        let address = |sum: Self, address: IpAddr| match address {
            IpAddr::V4(v4) => sum.with(&v4.octets()),
            IpAddr::V6(v6) => sum.with(&v6.octets()),
        };
        // A 16-bit length with an 8-bit protocol (IPv4) and two 32-bit fields (IPv6) add up to the same.
        address(address(self, source), destination).with(&length.to_be_bytes()).with_word(u16::from(protocol))
    }

    /// The sum in 16 bits, not complemented. A correct packet with its checksum in place folds to `0xffff`.
    #[must_use]
    pub fn fold(self) -> u16 {
        u16::from_be(fold16(self.words))
    }

    /// What goes into a checksum field: the complement of the folded sum.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The sum over `bytes` in the machine's byte order. 32-bit words into a 64-bit accumulator: compilers turn
/// this into vector instructions, which a loop carrying an overflow bit does not become.
fn raw(bytes: &[u8]) -> u64 {
    let (quads, tail) = bytes.as_chunks::<4>();
    let sum = quads.iter().fold(0u64, |sum, quad| sum.wrapping_add(u64::from(u32::from_ne_bytes(*quad))));
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    sum.wrapping_add(u64::from(u32::from_ne_bytes(last)))
}

/// Adds the carries back in until 16 bits are left.
fn fold16(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The checksum of `bytes` on their own, as in an IPv4 header or an ICMPv4 message whose checksum field is
/// zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::new().with(bytes).checksum()
}

/// The checksum after one 16-bit word of what it covers went from `old` to `new` (RFC 1624 §3, equation 3).
/// For a word at an odd position give both byte-swapped.
#[must_use]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !Sum::new().with_word(!checksum).with_word(!old).with_word(new).fold()
}

/// Whether the checksum of the TCP, UDP, ICMP or ICMPv6 message in `packet` is right.
///
/// `None` where that cannot be told: a fragment, another protocol, UDP over IPv4 sent without a checksum (RFC
/// 768), or an IPv6 packet still on its way through a routing header. UDP over IPv6 without a checksum is
/// wrong (RFC 8200 §8.1).
#[must_use]
pub fn transport_checksum_ok(packet: &Packet<'_>) -> Option<bool> {
    if packet.is_fragment() || packet.is_source_routed() {
        return None;
    }
    let mut message = packet.transport();
    let v4 = packet.source().is_ipv4();
    match packet.protocol() {
        protocol::ICMP if v4 => return Some(Sum::new().with(message).fold() == 0xffff),
        protocol::ICMPV6 if !v4 => {}
        protocol::TCP => {}
        protocol::UDP => {
            let (length, sent) = (be16(message, 4)?, be16(message, 6)?);
            if sent == 0 {
                return if v4 { None } else { Some(false) };
            }
            match message.get(..usize::from(length)) {
                Some(datagram) if datagram.len() >= 8 => message = datagram,
                _ => return Some(false),
            }
        }
        _ => return None,
    }
    let length = u32::try_from(message.len()).ok()?;
    let sum = Sum::new()
        .with_pseudo_header(packet.source(), packet.destination(), packet.protocol(), length)
        .with(message);
    Some(sum.fold() == 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_section_3_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

        assert_eq!(Sum::new().with(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4_gives_zero() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn a_word_is_added_where_it_stands() {
        let word = Sum::new().with(&[1]).with_word(0x0203).with(&[4]);

        assert_eq!(word.fold(), Sum::new().with(&[1, 2, 3, 4]).fold());
        assert_eq!(Sum::new().with_word(0x0102).fold(), 0x0102);
    }

    #[test]
    fn a_megabyte_of_ones_keeps_its_carries() {
        let bytes = vec![0xff; 1 << 20];

        assert_eq!(Sum::new().with(&bytes).fold(), 0xffff);
        assert_eq!(Sum::new().with(&bytes).with(&bytes).with(&[0, 1]).fold(), 0x0001);
    }

    proptest! {
        #[test]
        fn the_sum_is_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::new().with(&bytes).fold(), reference(&bytes));
        }

        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();

            let parts = cuts.windows(2).fold(Sum::new(), |sum, at| sum.with(&bytes[at[0]..at[1]]));

            prop_assert_eq!(parts.fold(), reference(&bytes));
        }

        #[test]
        fn an_update_verifies_like_a_new_checksum(
            mut bytes in prop::collection::vec(any::<u8>(), 4..64),
            new: u16,
            at: prop::sample::Index,
        ) {
            // A checksum field at 0, and a word somewhere behind it, at an odd position as well.
            bytes[..2].fill(0);
            let before = checksum(&bytes);
            let at = 2 + at.index(bytes.len() - 3);
            let turn = |word: u16| if at % 2 == 1 { word.swap_bytes() } else { word };
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);

            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            bytes[..2].copy_from_slice(&update(before, turn(old), turn(new)).to_be_bytes());

            // With all words zero a sum has no negative zero to be: then both forms of zero are right.
            let folded = Sum::new().with(&bytes).fold();
            prop_assert!(folded == 0xffff || bytes.iter().all(|byte| *byte == 0));
        }
    }
}
