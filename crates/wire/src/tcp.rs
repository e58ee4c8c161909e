//! TCP segments (RFC 9293) and the MSS clamp.

use crate::Malformed;
use crate::bytes::{be16, put16};
use crate::checksum;
use crate::ip::{Packet, protocol};

/// Length of a TCP header without options.
pub const HEADER_LEN: usize = 20;

/// Where the checksum stands in the header.
pub(crate) const CHECKSUM: usize = 16;

/// Control bits of a segment (RFC 9293 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// The bits as they stand in the header, CWR highest, FIN lowest.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// No more data from the sender.
    #[must_use]
    pub fn fin(self) -> bool {
        self.0 & 0x01 != 0
    }

    /// Opens a connection.
    #[must_use]
    pub fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }

    /// Resets the connection.
    #[must_use]
    pub fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }

    /// Push.
    #[must_use]
    pub fn psh(self) -> bool {
        self.0 & 0x08 != 0
    }

    /// The acknowledgement number counts.
    #[must_use]
    pub fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// The urgent pointer counts.
    #[must_use]
    pub fn urg(self) -> bool {
        self.0 & 0x20 != 0
    }

    /// ECN echo (RFC 3168 §6.1).
    #[must_use]
    pub fn ece(self) -> bool {
        self.0 & 0x40 != 0
    }

    /// Congestion window reduced (RFC 3168 §6.1).
    #[must_use]
    pub fn cwr(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// A checked TCP segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Checks the header at the start of `transport`.
    ///
    /// # Errors
    /// Too few bytes, or a data offset that lies. The checksum is not verified, see
    /// [`transport_checksum_ok`](crate::checksum::transport_checksum_ok).
    pub fn parse(transport: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = transport.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Short)?;
        let [.., offset, _, _, _, _, _, _, _] = *header;
        let options =
            (usize::from(offset >> 4) * 4).checked_sub(HEADER_LEN).ok_or(Malformed::HeaderLength)?;
        let (options, payload) = rest.split_at_checked(options).ok_or(Malformed::HeaderLength)?;
        Ok(Self { header, options, payload })
    }

    fn word(&self, at: usize) -> u16 {
        // In range for every caller: the header's length is in its type.
        be16(self.header, at).unwrap_or_default()
    }

    fn double(&self, at: usize) -> u32 {
        u32::from(self.word(at)) << 16 | u32::from(self.word(at + 2))
    }

    /// Source port.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        self.word(0)
    }

    /// Destination port.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        self.word(2)
    }

    /// Sequence number of the first byte, or of the SYN.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.double(4)
    }

    /// The next sequence number the sender expects, when [`Flags::ack`] is set.
    #[must_use]
    pub fn acknowledgement(&self) -> u32 {
        self.double(8)
    }

    /// Bytes before the payload, 20 to 60.
    #[must_use]
    pub fn data_offset(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Control bits.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags(self.word(12) as u8)
    }

    /// The window field, before any scaling.
    #[must_use]
    pub fn window(&self) -> u16 {
        self.word(14)
    }

    /// The checksum field.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.word(CHECKSUM)
    }

    /// The urgent pointer.
    #[must_use]
    pub fn urgent_pointer(&self) -> u16 {
        self.word(18)
    }

    /// The options in their order, without padding.
    #[must_use]
    pub fn options(&self) -> Options<'a> {
        Options { bytes: self.options, position: 0 }
    }

    /// What the segment carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// One TCP option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOption<'a> {
    /// What it is, such as [`TcpOption::MSS`].
    pub kind: u8,
    /// Its content, without kind and length.
    pub data: &'a [u8],
    /// Where its content starts, in bytes from the first option.
    pub position: usize,
}

impl TcpOption<'_> {
    /// Maximum segment size, two bytes (RFC 9293 §3.7.1).
    pub const MSS: u8 = 2;
    /// Window scale, one byte (RFC 7323 §2).
    pub const WINDOW_SCALE: u8 = 3;
    /// Timestamps, eight bytes (RFC 7323 §3).
    pub const TIMESTAMPS: u8 = 8;
}

/// Iterates over options. It ends at the end-of-options mark and, without complaint, where an option's length
/// is impossible (RFC 9293 §3.1 has receivers bear such options).
#[derive(Debug, Clone)]
pub struct Options<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Iterator for Options<'a> {
    type Item = TcpOption<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.bytes.get(self.position..)?;
            match rest {
                [] | [0, ..] => return None,
                [1, ..] => self.position += 1,
                [kind, length, ..] => {
                    let data = rest.get(2..usize::from(*length))?;
                    let option = TcpOption { kind: *kind, data, position: self.position + 2 };
                    self.position += usize::from(*length);
                    return Some(option);
                }
                [_] => return None,
            }
        }
    }
}

/// What [`clamp_mss`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clamp {
    /// Not a whole TCP header with SYN set, or one without an MSS option: nothing to do.
    NotApplicable,
    /// The announced size was small enough.
    Fits(u16),
    /// The announced size was rewritten.
    Lowered {
        /// What the sender announced.
        from: u16,
        /// What stands there now.
        to: u16,
    },
}

/// Lowers the maximum segment size that a SYN or SYN/ACK announces (RFC 9293 §3.7.1) to `max_segment_v4` or
/// `max_segment_v6`, bytes of TCP payload, whichever the packet's version asks for. It never raises one. The
/// TCP checksum is updated in place; a wrong one stays wrong.
///
/// The checksum has to be complete: a packet that leaves it to the device (`NEEDS_CSUM` in a virtio header)
/// is to be completed first.
pub fn clamp_mss(packet: &mut [u8], max_segment_v4: u16, max_segment_v6: u16) -> Clamp {
    let Some((transport, max)) = syn_header(packet, max_segment_v4, max_segment_v6) else {
        return Clamp::NotApplicable;
    };
    let Some(transport) = packet.get_mut(transport..) else {
        return Clamp::NotApplicable;
    };
    let mut result = Clamp::NotApplicable;
    // A second MSS option is odd, and which one a receiver takes is its own affair: all are lowered.
    let mut from = 0;
    while let Some((at, mss)) = next_mss(transport, from) {
        from = at;
        if mss <= max {
            if result == Clamp::NotApplicable {
                result = Clamp::Fits(mss);
            }
        } else if lower(transport, at, mss, max).is_some() {
            result = Clamp::Lowered { from: mss, to: max };
        }
    }
    result
}

/// Where the TCP header of a SYN starts, and the limit for its IP version.
fn syn_header(packet: &[u8], max_v4: u16, max_v6: u16) -> Option<(usize, u16)> {
    let packet = Packet::parse(packet).ok()?;
    if packet.protocol() != protocol::TCP || !packet.has_transport_header() {
        return None;
    }
    let syn = Segment::parse(packet.transport()).ok()?.flags().syn();
    syn.then_some((packet.transport_offset(), if packet.version() == 4 { max_v4 } else { max_v6 }))
}

/// The first MSS value behind byte `after` of the TCP header, and where it stands.
fn next_mss(transport: &[u8], after: usize) -> Option<(usize, u16)> {
    let mut options = Segment::parse(transport).ok()?.options();
    options.find_map(|option| match (option.kind, option.data) {
        (TcpOption::MSS, [high, low]) => {
            let at = HEADER_LEN + option.position;
            (at > after).then_some((at, u16::from_be_bytes([*high, *low])))
        }
        _ => None,
    })
}

fn lower(transport: &mut [u8], at: usize, old: u16, new: u16) -> Option<()> {
    let before = be16(transport, CHECKSUM)?;
    // Options need no alignment: at an odd position the value lies across two words of the sum.
    let turn = |word: u16| if at % 2 == 1 { word.swap_bytes() } else { word };
    put16(transport, at, new)?;
    put16(transport, CHECKSUM, checksum::update(before, turn(old), turn(new)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::transport_checksum_ok;
    use crate::testing::{fill_checksum, packet};

    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    /// A TCP packet with the given flags and options (padded), and a right checksum.
    fn segment(v6: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0x9c, 0x40, 0x01, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8, 0, flags, 0xfa, 0xf0, 0, 0, 0, 9];
        tcp.extend(options);
        tcp.resize(tcp.len().next_multiple_of(4), 0);
        tcp[12] = (tcp.len() as u8 / 4) << 4;
        tcp.extend(b"data!");
        let mut bytes = packet(v6, protocol::TCP, &tcp);
        fill_checksum(&mut bytes, CHECKSUM);
        bytes
    }

    fn announced(bytes: &[u8]) -> Vec<u16> {
        let packet = Packet::parse(bytes).unwrap();
        let options = Segment::parse(packet.transport()).unwrap().options();
        options
            .filter(|option| option.kind == TcpOption::MSS && option.data.len() == 2)
            .map(|option| be16(option.data, 0).unwrap())
            .collect()
    }

    #[test]
    fn every_field_of_a_segment_is_read() {
        let bytes = segment(false, SYN | ACK, &[2, 4, 5, 180, 1, 3, 3, 7]);

        let packet = Packet::parse(&bytes).unwrap();
        let segment = Segment::parse(packet.transport()).unwrap();

        assert_eq!((segment.source_port(), segment.destination_port()), (40000, 443));
        assert_eq!((segment.sequence(), segment.acknowledgement()), (0x0102_0304, 0x0506_0708));
        assert_eq!((segment.window(), segment.urgent_pointer(), segment.data_offset()), (64240, 9, 28));
        assert!(segment.flags().syn() && segment.flags().ack() && !segment.flags().rst());
        let options: Vec<_> =
            segment.options().map(|option| (option.kind, option.data, option.position)).collect();
        assert_eq!(options, [(2, &[5, 180][..], 2), (3, &[7][..], 7)]);
        assert_eq!(segment.payload(), b"data!");
        assert_eq!(transport_checksum_ok(&packet), Some(true));
    }

    #[test]
    fn an_impossible_data_offset_is_refused() {
        let mut header = [0; 24];
        for (offset, result) in
            [(4, Some(Malformed::HeaderLength)), (5, None), (6, None), (7, Some(Malformed::HeaderLength))]
        {
            header[12] = offset << 4;
            assert_eq!(Segment::parse(&header).err(), result, "data offset {offset}");
        }
        assert_eq!(Segment::parse(&header[..19]).err(), Some(Malformed::Short));
    }

    #[test]
    fn a_syn_and_a_syn_ack_are_lowered_to_the_limit_of_their_version() {
        for (v6, flags, to) in [(false, SYN, 1300), (false, SYN | ACK, 1300), (true, SYN, 1280)] {
            let mut bytes = segment(v6, flags, &[2, 4, 5, 180]);

            assert_eq!(clamp_mss(&mut bytes, 1300, 1280), Clamp::Lowered { from: 1460, to });

            assert_eq!(announced(&bytes), [to]);
            assert_eq!(transport_checksum_ok(&Packet::parse(&bytes).unwrap()), Some(true));
        }
    }

    #[test]
    fn a_smaller_size_is_never_raised() {
        let mut bytes = segment(false, SYN, &[2, 4, 2, 0x18]);
        let before = bytes.clone();

        assert_eq!(clamp_mss(&mut bytes, 1300, 1280), Clamp::Fits(536));

        assert_eq!(bytes, before);
    }

    #[test]
    fn an_option_at_an_odd_position_is_lowered_too() {
        let mut bytes = segment(false, SYN, &[1, 2, 4, 5, 180]);

        assert_eq!(clamp_mss(&mut bytes, 1300, 1280), Clamp::Lowered { from: 1460, to: 1300 });

        assert_eq!(announced(&bytes), [1300]);
        assert_eq!(transport_checksum_ok(&Packet::parse(&bytes).unwrap()), Some(true));
    }

    #[test]
    fn every_copy_of_a_repeated_option_is_lowered() {
        let mut bytes = segment(false, SYN, &[2, 4, 5, 180, 1, 2, 4, 9, 9]);

        clamp_mss(&mut bytes, 1300, 1280);

        assert_eq!(announced(&bytes), [1300, 1300]);
        assert_eq!(transport_checksum_ok(&Packet::parse(&bytes).unwrap()), Some(true));
    }

    #[test]
    fn what_is_not_a_syn_with_the_option_is_left_alone() {
        let mut later_fragment = segment(false, SYN, &[2, 4, 5, 180]);
        later_fragment[7] = 1;
        let mut udp = segment(false, SYN, &[2, 4, 5, 180]);
        udp[9] = protocol::UDP;
        let untouched = [
            segment(false, ACK, &[2, 4, 5, 180]),
            segment(false, SYN, &[]),
            segment(false, SYN, &[0, 2, 4, 5, 180]),
            segment(false, SYN, &[2, 3, 5, 1, 1]),
            segment(false, SYN, &[8, 0, 2, 4, 5, 180]),
            segment(false, SYN, &[1, 1, 2, 40]),
            later_fragment,
            udp,
            vec![0x45],
            vec![],
        ];
        for bytes in untouched {
            let mut after = bytes.clone();
            assert_eq!(clamp_mss(&mut after, 500, 500), Clamp::NotApplicable, "{bytes:?}");
            assert_eq!(after, bytes);
        }
    }

    proptest! {
        #[test]
        fn clamping_twice_is_clamping_once_and_checksums_stay_right(
            v6: bool,
            max in 1..u16::MAX,
            options in prop::collection::vec(prop_oneof![
                Just(vec![1]),
                Just(vec![3, 3, 7]),
                Just(vec![2, 3, 9]),
                any::<[u8; 2]>().prop_map(|mss| vec![2, 4, mss[0], mss[1]]),
            ], 0..9),
            damage: bool,
        ) {
            let mut bytes = segment(v6, SYN, &options.concat());
            if damage { *bytes.last_mut().unwrap() ^= 0x40; }
            let announced_before = announced(&bytes);

            let first = clamp_mss(&mut bytes, max, max);
            let once = bytes.clone();
            let second = clamp_mss(&mut bytes, max, max);

            prop_assert_eq!(&bytes, &once);
            prop_assert!(!matches!(second, Clamp::Lowered { .. }), "{:?} after {:?}", second, first);
            let lowered: Vec<_> = announced_before.iter().map(|mss| *mss.min(&max)).collect();
            prop_assert_eq!(announced(&bytes), lowered);
            prop_assert_eq!(transport_checksum_ok(&Packet::parse(&bytes).unwrap()), Some(!damage));
        }

        #[test]
        fn random_segments_never_panic(
            v6: bool,
            mut tcp in prop::collection::vec(prop_oneof![0..6u8, any::<u8>()], 0..70),
        ) {
            if let Some(flags) = tcp.get_mut(13) { *flags |= SYN; }
            let mut bytes = packet(v6, protocol::TCP, &tcp);

            clamp_mss(&mut bytes, 1, 1);
            if let Ok(segment) = Segment::parse(&tcp) {
                prop_assert!(segment.options().count() <= 20);
                prop_assert_eq!(segment.data_offset() + segment.payload().len(), tcp.len());
            }
        }
    }
}
