//! ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443): a view of messages, and the errors a gateway sends.

use std::net::IpAddr;

use crate::Malformed;
use crate::bytes::{put, put16};
use crate::checksum::Sum;
use crate::ip::{self, HeaderFields, Packet, protocol};

/// Length of the header that all messages share, with the four bytes whose meaning the type decides.
pub const HEADER_LEN: usize = 8;

/// The longest packet [`error`] writes: a buffer of this size is enough.
pub const MAX_ERROR_LEN: usize = MAX_V6;

/// RFC 1812 §4.3.2.3: as much of the offending packet as fits without exceeding 576 bytes.
const MAX_V4: usize = 576;
/// RFC 4443 §3.1: as much as fits without exceeding the minimum IPv6 MTU.
const MAX_V6: usize = 1280;

const V4_DESTINATION_UNREACHABLE: u8 = 3;
const V6_DESTINATION_UNREACHABLE: u8 = 1;
const V6_PACKET_TOO_BIG: u8 = 2;
const V6_REDIRECT: u8 = 137;

/// A checked ICMP or ICMPv6 message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    kind: u8,
    code: u8,
    checksum: u16,
    rest: [u8; 4],
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Checks the header at the start of `transport`.
    ///
    /// # Errors
    /// Fewer than eight bytes. The checksum is not verified, see
    /// [`transport_checksum_ok`](crate::checksum::transport_checksum_ok).
    pub fn parse(transport: &'a [u8]) -> Result<Self, Malformed> {
        let (header, body) = transport.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Short)?;
        let [kind, code, c0, c1, rest @ ..] = *header;
        Ok(Self { kind, code, checksum: u16::from_be_bytes([c0, c1]), rest, body })
    }

    /// The type field.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The code field.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }

    /// The checksum field.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.checksum
    }

    /// The second four bytes, whose meaning depends on the type: identifier and sequence, an MTU, nothing.
    #[must_use]
    pub fn rest(&self) -> [u8; 4] {
        self.rest
    }

    /// Identifier of an echo request or reply.
    #[must_use]
    pub fn identifier(&self) -> u16 {
        let [high, low, ..] = self.rest;
        u16::from_be_bytes([high, low])
    }

    /// Sequence number of an echo request or reply.
    #[must_use]
    pub fn sequence(&self) -> u16 {
        let [.., high, low] = self.rest;
        u16::from_be_bytes([high, low])
    }

    /// What follows the header: echo data, or the start of the offending packet.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Why a packet could not go on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is larger than the next hop takes. IPv4: fragmentation needed and DF set (RFC 1191 §4); IPv6:
    /// packet too big (RFC 4443 §3.2). For IPv4 the caller has seen that DF is set.
    TooBig {
        /// The next hop's MTU in bytes, counting the IP header.
        mtu: u32,
    },
    /// There is no route to the destination: IPv4 network unreachable (RFC 1812 §5.2.7.1), IPv6 no route
    /// (RFC 4443 §3.1).
    NoRoute,
    /// A filter forbids it: IPv4 communication administratively prohibited (RFC 1812 §5.2.7.1), IPv6 code 1
    /// (RFC 4443 §3.1).
    Prohibited,
}

/// Writes the ICMP error that tells the sender of `offending` about `reason`, as a whole IP packet from
/// `source`, and returns its length. [`MAX_ERROR_LEN`] bytes of `out` are always enough.
///
/// `None` where no error may be sent (RFC 1812 §4.3.2.7, RFC 4443 §2.4(e)): about an ICMP error or a fragment
/// other than the first, to a source that is not one host, about a packet to many hosts (but too big is
/// reported for IPv6 multicast, which needs it to find the path's MTU); also when `source` is of the other IP
/// version or `out` is too small. How many are sent is the caller's to limit (RFC 1812 §4.3.2.8).
pub fn error(out: &mut [u8], offending: &Packet<'_>, reason: Reason, source: IpAddr) -> Option<usize> {
    if !may_answer(offending, reason) {
        return None;
    }
    let v4 = offending.version() == 4;
    let (kind, code, field) = match (reason, v4) {
        (Reason::TooBig { mtu }, true) => (V4_DESTINATION_UNREACHABLE, 4, mtu.min(u32::from(u16::MAX))),
        (Reason::TooBig { mtu }, false) => (V6_PACKET_TOO_BIG, 0, mtu),
        (Reason::NoRoute, true) => (V4_DESTINATION_UNREACHABLE, 0, 0),
        (Reason::NoRoute, false) => (V6_DESTINATION_UNREACHABLE, 0, 0),
        (Reason::Prohibited, true) => (V4_DESTINATION_UNREACHABLE, 13, 0),
        (Reason::Prohibited, false) => (V6_DESTINATION_UNREACHABLE, 1, 0),
    };
    let (icmp, room, traffic_class) = if v4 {
        // RFC 1812 §4.3.2.5: precedence 6, internetwork control.
        (protocol::ICMP, MAX_V4 - ip::V4_HEADER - HEADER_LEN, 0xc0)
    } else {
        (protocol::ICMPV6, MAX_V6 - ip::V6_HEADER - HEADER_LEN, 0)
    };
    let quote = offending.bytes().get(..room).unwrap_or(offending.bytes());
    let length = HEADER_LEN + quote.len();
    let fields = HeaderFields { protocol: icmp, hop_limit: 64, traffic_class };
    let header = ip::write_header(out, source, offending.source(), fields, length)?;
    let message = out.get_mut(header..header + length)?;
    put(message, 0, &[kind, code, 0, 0])?;
    put(message, 4, &field.to_be_bytes())?;
    put(message, HEADER_LEN, quote)?;
    let pseudo = if v4 {
        Sum::new()
    } else {
        Sum::new().with_pseudo_header(source, offending.source(), icmp, u32::try_from(length).ok()?)
    };
    let sum = pseudo.with(message).checksum();
    put16(message, 2, sum)?;
    Some(header + length)
}

fn may_answer(offending: &Packet<'_>, reason: Reason) -> bool {
    let to_many = match offending.destination() {
        IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_multicast() && !matches!(reason, Reason::TooBig { .. }),
    };
    offending.has_transport_header()
        && !to_many
        && is_one_host(offending.source())
        && !is_error_or_unknown(offending)
}

/// Not unspecified, loopback, multicast, broadcast or reserved.
fn is_one_host(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => {
            // 0.0.0.0/8 is "this network" (RFC 1122 §3.2.1.3); 240.0.0.0/4 holds class E and broadcast.
            let [first, ..] = v4.octets();
            first != 0 && first < 240 && !v4.is_loopback() && !v4.is_multicast()
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}

/// An ICMP message that is an error, or of a type not known to be a question or an answer.
fn is_error_or_unknown(packet: &Packet<'_>) -> bool {
    let kind = packet.transport().first();
    match packet.protocol() {
        // Echo, router discovery, timestamp, information, address mask (RFC 792, 950, 1256), extended echo
        // (RFC 8335).
        protocol::ICMP if packet.version() == 4 => {
            !matches!(kind, Some(0 | 8 | 9 | 10 | 13 | 14 | 15 | 16 | 17 | 18 | 42 | 43))
        }
        // RFC 4443 §2.1: the upper half is informational; redirects are named apart in §2.4(e.2).
        protocol::ICMPV6 if packet.version() == 6 => {
            kind.is_none_or(|kind| *kind < 128 || *kind == V6_REDIRECT)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::{checksum, transport_checksum_ok};
    use crate::testing::packet;

    const ECHO_V4: [u8; 8] = [8, 0, 0, 0, 0x12, 0x34, 0, 7];

    fn gateway(v6: bool) -> IpAddr {
        if v6 { "fd88::1".parse().unwrap() } else { "10.88.0.1".parse().unwrap() }
    }

    fn answer(bytes: &[u8], reason: Reason) -> Option<Vec<u8>> {
        let offending = Packet::parse(bytes).unwrap();
        let mut out = [0x77; MAX_ERROR_LEN];
        let length = error(&mut out, &offending, reason, gateway(offending.version() == 6))?;
        Some(out[..length].to_vec())
    }

    #[test]
    fn an_echo_request_is_read() {
        let message = Message::parse(&ECHO_V4).unwrap();

        assert_eq!((message.kind(), message.code()), (8, 0));
        assert_eq!((message.identifier(), message.sequence()), (0x1234, 7));
        assert_eq!(Message::parse(&ECHO_V4[..7]).err(), Some(Malformed::Short));
    }

    #[test]
    fn fragmentation_needed_carries_the_mtu_in_its_low_half() {
        let bytes = answer(&packet(false, 17, &[1; 1480]), Reason::TooBig { mtu: 1400 }).unwrap();

        let packet = Packet::parse(&bytes).unwrap();
        let message = Message::parse(packet.transport()).unwrap();
        assert_eq!((message.kind(), message.code(), message.rest()), (3, 4, [0, 0, 0x05, 0x78]));
        assert_eq!((packet.source(), packet.destination().to_string()), (gateway(false), "10.88.0.2".into()));
        assert_eq!((packet.total_len(), packet.dscp()), (576, 48));
        assert_eq!(checksum(&bytes[..20]), 0);
    }

    #[test]
    fn packet_too_big_carries_the_whole_mtu() {
        let bytes = answer(&packet(true, 17, &[1; 1480]), Reason::TooBig { mtu: 0x0001_0600 }).unwrap();

        let packet = Packet::parse(&bytes).unwrap();
        let message = Message::parse(packet.transport()).unwrap();
        assert_eq!((message.kind(), message.code(), message.rest()), (2, 0, [0, 1, 6, 0]));
        assert_eq!(packet.total_len(), 1280);
    }

    #[test]
    fn unreachable_has_the_codes_of_each_version() {
        let codes = |v6, reason| {
            let bytes = answer(&packet(v6, 17, &[1; 8]), reason).unwrap();
            let packet = Packet::parse(&bytes).unwrap();
            let message = Message::parse(packet.transport()).unwrap();
            (message.kind(), message.code(), message.rest())
        };

        assert_eq!(codes(false, Reason::NoRoute), (3, 0, [0; 4]));
        assert_eq!(codes(false, Reason::Prohibited), (3, 13, [0; 4]));
        assert_eq!(codes(true, Reason::NoRoute), (1, 0, [0; 4]));
        assert_eq!(codes(true, Reason::Prohibited), (1, 1, [0; 4]));
    }

    #[test]
    fn questions_are_answered_and_icmp_errors_are_not() {
        for kind in 0..=255u8 {
            let v4 = answer(&packet(false, protocol::ICMP, &[kind, 0, 0, 0, 0, 0, 0, 0]), Reason::NoRoute);
            let v6 = answer(&packet(true, protocol::ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0]), Reason::NoRoute);

            let question = [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43].contains(&kind);
            assert_eq!(v4.is_some(), question, "ICMP type {kind}");
            assert_eq!(v6.is_some(), kind >= 128 && kind != 137, "ICMPv6 type {kind}");
        }
        assert_eq!(answer(&packet(false, protocol::ICMP, &[]), Reason::NoRoute), None);
    }

    #[test]
    fn an_icmpv6_error_behind_extension_headers_is_recognised() {
        let hidden = packet(true, 60, &[protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0]);

        assert_eq!(answer(&hidden, Reason::NoRoute), None);
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        let mut first = packet(false, 17, &[1; 8]);
        first[6] = 0x20;
        let mut later = first.clone();
        later[7] = 1;

        assert!(answer(&first, Reason::NoRoute).is_some());
        assert_eq!(answer(&later, Reason::NoRoute), None);
        assert_eq!(answer(&packet(true, 44, &[17, 0, 0, 8, 0, 0, 0, 1]), Reason::TooBig { mtu: 1280 }), None);
    }

    #[test]
    fn a_source_that_is_not_one_host_gets_no_answer() {
        for source in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
            let mut bytes = packet(false, 17, &[1; 8]);
            bytes[12..16].copy_from_slice(&source.parse::<std::net::Ipv4Addr>().unwrap().octets());
            assert_eq!(answer(&bytes, Reason::NoRoute), None, "{source}");
        }
        for source in ["::", "::1", "ff02::1"] {
            let mut bytes = packet(true, 17, &[1; 8]);
            bytes[8..24].copy_from_slice(&source.parse::<std::net::Ipv6Addr>().unwrap().octets());
            assert_eq!(answer(&bytes, Reason::NoRoute), None, "{source}");
        }
    }

    #[test]
    fn what_went_to_many_hosts_gets_no_answer_but_packet_too_big() {
        for destination in ["224.0.0.5", "255.255.255.255"] {
            let mut bytes = packet(false, 17, &[1; 8]);
            bytes[16..20].copy_from_slice(&destination.parse::<std::net::Ipv4Addr>().unwrap().octets());
            assert_eq!(answer(&bytes, Reason::NoRoute), None, "{destination}");
        }
        let mut multicast = packet(true, 17, &[1; 8]);
        multicast[24] = 0xff;
        assert_eq!(answer(&multicast, Reason::Prohibited), None);
        assert!(answer(&multicast, Reason::TooBig { mtu: 1280 }).is_some());
    }

    #[test]
    fn a_source_of_the_other_version_or_a_small_buffer_gives_nothing() {
        let bytes = packet(false, 17, &[1; 8]);
        let offending = Packet::parse(&bytes).unwrap();

        assert_eq!(error(&mut [0; 576], &offending, Reason::NoRoute, gateway(true)), None);
        assert_eq!(error(&mut [0; 55], &offending, Reason::NoRoute, gateway(false)), None);
        assert_eq!(error(&mut [0; 56], &offending, Reason::NoRoute, gateway(false)), Some(56));
    }

    proptest! {
        #[test]
        fn an_error_is_read_back_with_right_checksums_and_quotes_the_packet(
            v6: bool,
            payload in prop::collection::vec(any::<u8>(), 0..1400),
            reason in prop_oneof![
                any::<u32>().prop_map(|mtu| Reason::TooBig { mtu }), Just(Reason::NoRoute), Just(Reason::Prohibited),
            ],
        ) {
            let offending = packet(v6, protocol::UDP, &payload);

            let bytes = answer(&offending, reason).unwrap();

            let packet = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(transport_checksum_ok(&packet), Some(true));
            let limit = if v6 { 1280 } else { 576 };
            prop_assert!(packet.total_len() <= limit);
            let quote = Message::parse(packet.transport()).unwrap().body();
            prop_assert!(offending.starts_with(quote));
            prop_assert!(quote.len() == offending.len() || packet.total_len() == limit);
            prop_assert_eq!(answer(&bytes, reason), None, "an error about an error");
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::parse(&bytes);
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = error(&mut [0; 600], &packet, Reason::NoRoute, gateway(false));
            }
        }
    }
}
