//! IPv4 (RFC 791) and IPv6 (RFC 8200) packets behind one view.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Malformed;
use crate::bytes::{array, put, put16};
use crate::checksum;

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// The most IPv6 extension headers walked in one packet. RFC 8200 §4.1 allows seven in their order.
pub const MAX_EXTENSIONS: usize = 8;

/// Length of an IPv4 header without options.
pub(crate) const V4_HEADER: usize = 20;
/// Length of the fixed IPv6 header.
pub(crate) const V6_HEADER: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// A checked IP packet.
///
/// The view ends where the packet's own length field says; bytes behind that are ignored.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    header_len: usize,
    transport: usize,
    protocol: u8,
    hop_limit: u8,
    traffic_class: u8,
    fragment: Fragment,
    source_routed: bool,
}

/// What the packet says about fragmentation.
#[derive(Debug, Clone, Copy, Default)]
struct Fragment {
    dont: bool,
    more: bool,
    offset: u16,
}

impl<'a> Packet<'a> {
    /// Checks the header of the packet at the start of `bytes`.
    ///
    /// # Errors
    /// The first thing that does not fit. An IPv4 header's own checksum is not looked at: the kernel has done
    /// so.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed::Short)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed::Version),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<V4_HEADER>().ok_or(Malformed::Short)?;
        let [first, traffic_class, l0, l1, _, _, f0, f1, hop_limit, protocol, _, _, addresses @ ..] = *header;
        let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
        let header_len = usize::from(first & 0x0f) * 4;
        if header_len < V4_HEADER {
            return Err(Malformed::HeaderLength);
        }
        let total = usize::from(u16::from_be_bytes([l0, l1]));
        if total < header_len {
            return Err(Malformed::TotalLength);
        }
        let fragment = u16::from_be_bytes([f0, f1]);
        Ok(Self {
            bytes: bytes.get(..total).ok_or(Malformed::TotalLength)?,
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            header_len,
            transport: header_len,
            protocol,
            hop_limit,
            traffic_class,
            fragment: Fragment {
                dont: fragment & 0x4000 != 0,
                more: fragment & 0x2000 != 0,
                offset: (fragment & 0x1fff) * 8,
            },
            source_routed: false,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<V6_HEADER>().ok_or(Malformed::Short)?;
        let [b0, b1, _, _, l0, l1, next_header, hop_limit, addresses @ ..] = header;
        let (source, destination) = addresses.split_at(16);
        let address = |octets: &[u8]| octets.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
        let total = V6_HEADER + usize::from(u16::from_be_bytes([*l0, *l1]));
        let mut packet = Self {
            bytes: bytes.get(..total).ok_or(Malformed::TotalLength)?,
            source: address(source).ok_or(Malformed::Short)?,
            destination: address(destination).ok_or(Malformed::Short)?,
            header_len: V6_HEADER,
            transport: V6_HEADER,
            protocol: *next_header,
            hop_limit: *hop_limit,
            traffic_class: (b0 << 4) | (b1 >> 4),
            // Routers never fragment IPv6 (RFC 8200 §5).
            fragment: Fragment { dont: true, ..Fragment::default() },
            source_routed: false,
        };
        packet.walk_extensions()?;
        Ok(packet)
    }

    /// Moves `protocol` and `transport` behind the extension headers (RFC 8200 §4), or to the content of a
    /// fragment that is not the first.
    fn walk_extensions(&mut self) -> Result<(), Malformed> {
        for _ in 0..=MAX_EXTENSIONS {
            let unit = match self.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => 8,
                AUTHENTICATION => 4,
                FRAGMENT => 0,
                _ => return Ok(()),
            };
            let [next, length, b2, b3] = array(self.bytes, self.transport).ok_or(Malformed::Short)?;
            let length = match unit {
                // RFC 4302 §2.2: in 32-bit words, less two.
                4 => (usize::from(length) + 2) * 4,
                _ => 8 + usize::from(length) * unit,
            };
            let end = self.transport + length;
            if end > self.bytes.len() {
                return Err(Malformed::Short);
            }
            match self.protocol {
                // RFC 8200 §4.4: segments still to visit, so the destination is not yet the final one.
                ROUTING => self.source_routed |= b3 != 0,
                FRAGMENT => {
                    let field = u16::from_be_bytes([b2, b3]);
                    self.fragment.more = field & 1 != 0;
                    self.fragment.offset = field & 0xfff8;
                }
                _ => {}
            }
            self.protocol = next;
            self.transport = end;
            if self.fragment.offset != 0 {
                return Ok(());
            }
        }
        Err(Malformed::Extensions)
    }

    /// 4 or 6.
    #[must_use]
    pub fn version(&self) -> u8 {
        if self.source.is_ipv4() { 4 } else { 6 }
    }

    /// Where it comes from.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// What [`transport`](Self::transport) is: for IPv6 the number behind all extension headers. In a
    /// fragment other than the first it is what the fragment header says, which may be a further extension
    /// header.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Bytes of the IPv4 header with its options, or 40: IPv6 extension headers are not counted.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes before [`transport`](Self::transport): the header and all IPv6 extension headers.
    #[must_use]
    pub fn transport_offset(&self) -> usize {
        self.transport
    }

    /// Bytes of the whole packet.
    #[must_use]
    pub fn total_len(&self) -> usize {
        self.bytes.len()
    }

    /// The whole packet.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The transport header and what follows. In a fragment other than the first there is no transport
    /// header: see [`has_transport_header`](Self::has_transport_header).
    #[must_use]
    pub fn transport(&self) -> &'a [u8] {
        self.bytes.get(self.transport..).unwrap_or_default()
    }

    /// Time to live (IPv4) or hop limit (IPv6).
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Differentiated services code point, 6 bits (RFC 2474).
    #[must_use]
    pub fn dscp(&self) -> u8 {
        self.traffic_class >> 2
    }

    /// Explicit congestion notification, 2 bits (RFC 3168 §5): 0 not capable, 1 ECT(1), 2 ECT(0), 3
    /// congestion.
    #[must_use]
    pub fn ecn(&self) -> u8 {
        self.traffic_class & 3
    }

    /// Routers must not fragment it: the DF bit of IPv4, always for IPv6.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.fragment.dont
    }

    /// More fragments of the same packet follow.
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        self.fragment.more
    }

    /// Where this fragment's content belongs, in bytes; 0 in the first fragment and in a whole packet.
    #[must_use]
    pub fn fragment_offset(&self) -> usize {
        usize::from(self.fragment.offset)
    }

    /// It is one of several fragments.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment.more || self.fragment.offset != 0
    }

    /// [`transport`](Self::transport) starts with a transport header: true for all but later fragments.
    #[must_use]
    pub fn has_transport_header(&self) -> bool {
        self.fragment.offset == 0
    }

    /// It is on its way through an IPv6 routing header, so [`destination`](Self::destination) is only the
    /// next stop.
    #[must_use]
    pub fn is_source_routed(&self) -> bool {
        self.source_routed
    }
}

/// What [`write_header`] puts into the fields that are the sender's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderFields {
    /// What follows the header, see [`protocol`].
    pub protocol: u8,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN in one byte.
    pub traffic_class: u8,
}

/// Writes an IP header without options for `payload_len` bytes that follow it, and returns its length. IPv4
/// packets get DF set and identification 0, as RFC 6864 §4.1 allows for what is never fragmented.
///
/// `None` when the addresses are of two families, or `out` or the length field has no room.
pub fn write_header(
    out: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    fields: HeaderFields,
    payload_len: usize,
) -> Option<usize> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = out.first_chunk_mut::<V4_HEADER>()?;
            header.fill(0);
            put(header, 0, &[0x45, fields.traffic_class])?;
            put16(header, 2, u16::try_from(V4_HEADER + payload_len).ok()?)?;
            put16(header, 6, 0x4000)?;
            put(header, 8, &[fields.hop_limit, fields.protocol])?;
            put(header, 12, &source.octets())?;
            put(header, 16, &destination.octets())?;
            let sum = checksum::checksum(header);
            put16(header, 10, sum)?;
            Some(V4_HEADER)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = out.first_chunk_mut::<V6_HEADER>()?;
            put(header, 0, &[0x60 | (fields.traffic_class >> 4), fields.traffic_class << 4, 0, 0])?;
            put16(header, 4, u16::try_from(payload_len).ok()?)?;
            put(header, 6, &[fields.protocol, fields.hop_limit])?;
            put(header, 8, &source.octets())?;
            put(header, 24, &destination.octets())?;
            Some(V6_HEADER)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{v4_header, v6_packet};

    #[test]
    fn every_field_of_an_ipv4_header_is_read() {
        let mut bytes = v4_header(protocol::TCP, &[1, 2, 3, 4]);
        bytes[1] = (46 << 2) | 2;
        bytes[6..8].copy_from_slice(&(0x4000u16 | 0x2000 | 185).to_be_bytes());
        bytes[8] = 57;
        bytes.extend([0xee; 7]);

        let packet = Packet::parse(&bytes).unwrap();

        assert_eq!(packet.version(), 4);
        assert_eq!(packet.source().to_string(), "10.88.0.2");
        assert_eq!(packet.destination().to_string(), "198.51.100.7");
        assert_eq!((packet.dscp(), packet.ecn(), packet.hop_limit()), (46, 2, 57));
        assert!(packet.dont_fragment() && packet.more_fragments() && packet.is_fragment());
        assert_eq!(packet.fragment_offset(), 1480);
        assert!(!packet.has_transport_header());
        assert_eq!((packet.header_len(), packet.total_len()), (20, 24));
        assert_eq!(packet.transport(), [1, 2, 3, 4]);
    }

    #[test]
    fn ipv4_options_belong_to_the_header() {
        let mut bytes = v4_header(protocol::UDP, &[0x94, 0x04, 0, 0, 9, 9]);
        bytes[0] = 0x46;

        let packet = Packet::parse(&bytes).unwrap();

        assert_eq!((packet.header_len(), packet.transport()), (24, &[9, 9][..]));
    }

    #[test]
    fn an_ipv4_length_field_that_lies_is_refused() {
        let good = v4_header(protocol::UDP, &[0; 8]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Packet::parse(&bytes).map(|packet| packet.total_len())
        };

        assert_eq!(with(0, 0x44), Err(Malformed::HeaderLength));
        assert_eq!(with(3, 19), Err(Malformed::TotalLength));
        assert_eq!(with(3, 29), Err(Malformed::TotalLength));
        assert_eq!(with(3, 27), Ok(27));
        assert_eq!(with(0, 0x55), Err(Malformed::Version));
        assert_eq!(Packet::parse(&good[..19]).err(), Some(Malformed::Short));
        assert_eq!(Packet::parse(&[]).err(), Some(Malformed::Short));
    }

    #[test]
    fn ipv6_extension_headers_are_walked_to_the_transport() {
        let mut body = vec![DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0];
        body.extend([AUTHENTICATION, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        body.extend([protocol::UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        body.extend([7; 9]);
        let bytes = v6_packet(HOP_BY_HOP, &body);

        let packet = Packet::parse(&bytes).unwrap();

        assert_eq!((packet.protocol(), packet.transport()), (protocol::UDP, &[7; 9][..]));
        assert_eq!((packet.header_len(), packet.transport_offset()), (40, 76));
        assert!(packet.dont_fragment() && !packet.is_fragment() && !packet.is_source_routed());
    }

    #[test]
    fn a_later_ipv6_fragment_has_no_transport_header() {
        let bytes = v6_packet(FRAGMENT, &[DESTINATION_OPTIONS, 0, 0x05, 0xa9, 0, 0, 0, 1, 0xff, 0xff]);

        let packet = Packet::parse(&bytes).unwrap();

        assert_eq!((packet.fragment_offset(), packet.more_fragments()), (0x05a8, true));
        assert!(!packet.has_transport_header());
        assert_eq!((packet.protocol(), packet.transport()), (DESTINATION_OPTIONS, &[0xff, 0xff][..]));
    }

    #[test]
    fn a_routing_header_with_segments_left_says_so() {
        let header = |left| v6_packet(ROUTING, &[protocol::TCP, 0, 4, left, 0, 0, 0, 0]);

        assert!(Packet::parse(&header(1)).unwrap().is_source_routed());
        assert!(!Packet::parse(&header(0)).unwrap().is_source_routed());
    }

    #[test]
    fn the_chain_of_extension_headers_is_bounded_and_may_not_leave_the_packet() {
        let chain = |n: usize| {
            let mut body = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(n);
            body[(n - 1) * 8] = protocol::UDP;
            v6_packet(HOP_BY_HOP, &body)
        };

        assert_eq!(Packet::parse(&chain(MAX_EXTENSIONS)).unwrap().protocol(), protocol::UDP);
        assert_eq!(Packet::parse(&chain(MAX_EXTENSIONS + 1)).err(), Some(Malformed::Extensions));
        let beyond = v6_packet(HOP_BY_HOP, &[protocol::UDP, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Packet::parse(&beyond).err(), Some(Malformed::Short));
    }

    #[test]
    fn an_ipv6_payload_longer_than_the_bytes_is_refused() {
        let bytes = v6_packet(protocol::UDP, &[0; 8]);

        assert_eq!(Packet::parse(&bytes[..47]).err(), Some(Malformed::TotalLength));
    }

    #[test]
    fn a_written_header_is_read_back() {
        let mut out = [0xaa; 60];
        let fields = HeaderFields { protocol: 58, hop_limit: 9, traffic_class: 0xc1 };
        for (source, destination, length) in [("192.0.2.1", "192.0.2.2", 20), ("fd88::1", "2001:db8::2", 40)]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());

            assert_eq!(write_header(&mut out, source, destination, fields, 11), Some(length));

            let packet = Packet::parse(&out).unwrap();
            assert_eq!((packet.source(), packet.destination()), (source, destination));
            assert_eq!((packet.protocol(), packet.hop_limit(), packet.dscp(), packet.ecn()), (58, 9, 48, 1));
            assert_eq!((packet.total_len(), packet.transport().len()), (length + 11, 11));
            assert!(source.is_ipv6() || checksum::checksum(&out[..20]) == 0);
        }
    }

    #[test]
    fn a_header_that_does_not_fit_is_not_written() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "fd88::1".parse().unwrap());
        let fields = HeaderFields { protocol: 17, hop_limit: 64, traffic_class: 0 };

        assert_eq!(write_header(&mut [0; 60], v4, v6, fields, 1), None);
        assert_eq!(write_header(&mut [0; 19], v4, v4, fields, 1), None);
        assert_eq!(write_header(&mut [0; 60], v4, v4, fields, 65516), None);
        assert_eq!(write_header(&mut [0; 60], v6, v6, fields, 65536), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_a_view_stays_inside_them(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            version in prop_oneof![Just(0x45u8), Just(0x4f), Just(0x60), any::<u8>()],
            length in 0..300u16,
        ) {
            if let Some(first) = bytes.first_mut() { *first = version; }
            let at = if version == 0x60 { 4 } else { 2 };
            let _ = put16(&mut bytes, at, length);

            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.total_len() <= bytes.len());
                prop_assert!(packet.header_len() <= packet.transport_offset());
                prop_assert_eq!(packet.transport_offset() + packet.transport().len(), packet.total_len());
                let _ = checksum::transport_checksum_ok(&packet);
            }
        }

        #[test]
        fn random_extension_headers_never_panic(
            body in prop::collection::vec(prop_oneof![0..5u8, Just(43), Just(44), Just(51), Just(60)], 0..120),
            first in prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60)],
        ) {
            let bytes = v6_packet(first, &body);

            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.transport_offset() <= packet.total_len());
            }
        }
    }
}
