//! UDP datagrams (RFC 768).

use std::net::SocketAddr;

use crate::Malformed;
use crate::bytes::{put, put16};
use crate::checksum::Sum;
use crate::ip::{self, HeaderFields, protocol};

/// Length of a UDP header.
pub const HEADER_LEN: usize = 8;

/// Where the checksum stands in the header.
pub(crate) const CHECKSUM: usize = 6;

/// A checked UDP datagram.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    source_port: u16,
    destination_port: u16,
    checksum: u16,
    payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Checks the header at the start of `transport`; what follows the datagram's own length is ignored.
    ///
    /// # Errors
    /// Bytes or length field too short. The checksum is not verified, see
    /// [`transport_checksum_ok`](crate::checksum::transport_checksum_ok).
    pub fn parse(transport: &'a [u8]) -> Result<Self, Malformed> {
        let [s0, s1, d0, d1, l0, l1, c0, c1] = *transport.first_chunk().ok_or(Malformed::Short)?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        Ok(Self {
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            checksum: u16::from_be_bytes([c0, c1]),
            payload: transport.get(HEADER_LEN..length).ok_or(Malformed::TotalLength)?,
        })
    }

    /// Source port; 0 when the sender expects no answer.
    #[must_use]
    pub fn source_port(&self) -> u16 {
        self.source_port
    }

    /// Destination port.
    #[must_use]
    pub fn destination_port(&self) -> u16 {
        self.destination_port
    }

    /// The checksum field; 0 stands for none.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.checksum
    }

    /// What the datagram carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Writes a whole packet, IP header, UDP header and `payload`, with its checksums, and returns its length.
/// Hop limit 64, traffic class 0.
///
/// `None` when the addresses are of two families, or `out` or a length field has no room.
pub fn build(out: &mut [u8], source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<usize> {
    let length = HEADER_LEN + payload.len();
    let fields = HeaderFields { protocol: protocol::UDP, hop_limit: 64, traffic_class: 0 };
    let header = ip::write_header(out, source.ip(), destination.ip(), fields, length)?;
    let udp = out.get_mut(header..header + length)?;
    put16(udp, 0, source.port())?;
    put16(udp, 2, destination.port())?;
    put16(udp, 4, u16::try_from(length).ok()?)?;
    put16(udp, 6, 0)?;
    put(udp, HEADER_LEN, payload)?;
    let sum = Sum::new()
        .with_pseudo_header(source.ip(), destination.ip(), protocol::UDP, u32::try_from(length).ok()?)
        .with(udp)
        .checksum();
    // A sum of zero is sent as all ones, since zero means that there is none (RFC 768).
    put16(udp, 6, if sum == 0 { 0xffff } else { sum })?;
    Some(header + length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::transport_checksum_ok;
    use crate::ip::Packet;
    use crate::testing::{fill_checksum, packet};

    #[test]
    fn a_length_field_that_lies_is_refused() {
        let datagram =
            |length: u8| Datagram::parse(&[0, 1, 0, 2, 0, length, 0, 0, 5, 6]).map(|d| d.payload().len());

        assert_eq!(datagram(7), Err(Malformed::TotalLength));
        assert_eq!(datagram(11), Err(Malformed::TotalLength));
        assert_eq!((datagram(8), datagram(10)), (Ok(0), Ok(2)));
        assert_eq!(Datagram::parse(&[0; 7]).err(), Some(Malformed::Short));
    }

    #[test]
    fn a_missing_checksum_is_allowed_in_ipv4_only() {
        let datagram = [0, 1, 0, 2, 0, 9, 0, 0, 5];

        let v4 = packet(false, protocol::UDP, &datagram);
        let v6 = packet(true, protocol::UDP, &datagram);

        assert_eq!(transport_checksum_ok(&Packet::parse(&v4).unwrap()), None);
        assert_eq!(transport_checksum_ok(&Packet::parse(&v6).unwrap()), Some(false));
    }

    #[test]
    fn the_checksum_covers_the_datagram_and_not_what_pads_the_packet() {
        let mut bytes = packet(false, protocol::UDP, &[0, 1, 0, 2, 0, 9, 0, 0, 5]);
        fill_checksum(&mut bytes, 6);
        bytes.extend([9, 9]);
        bytes[3] += 2;

        assert_eq!(transport_checksum_ok(&Packet::parse(&bytes).unwrap()), Some(true));
        bytes[28] ^= 1;
        assert_eq!(transport_checksum_ok(&Packet::parse(&bytes).unwrap()), Some(false));
    }

    #[test]
    fn a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
        let (from, to) = ("10.88.0.2:1".parse().unwrap(), "198.51.100.7:2".parse().unwrap());
        let mut out = [0; 64];
        let checksum = |out: &[u8]| Datagram::parse(&out[20..]).unwrap().checksum();
        build(&mut out, from, to, &[0, 0]).unwrap();
        // These two bytes add what is missing to a sum of all ones.
        let missing = checksum(&out).to_be_bytes();

        let length = build(&mut out, from, to, &missing).unwrap();

        assert_eq!(checksum(&out), 0xffff);
        assert_eq!(transport_checksum_ok(&Packet::parse(&out[..length]).unwrap()), Some(true));
    }

    proptest! {
        #[test]
        fn a_built_datagram_is_read_back_with_a_right_checksum(
            v6: bool,
            ports: (u16, u16),
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let (source, destination): (std::net::IpAddr, std::net::IpAddr) = if v6 {
                ("fd88::2".parse().unwrap(), "2001:db8::7".parse().unwrap())
            } else {
                ("10.88.0.2".parse().unwrap(), "198.51.100.7".parse().unwrap())
            };
            let mut out = [0x55; 256];

            let length =
                build(&mut out, (source, ports.0).into(), (destination, ports.1).into(), &payload).unwrap();

            let packet = Packet::parse(&out[..length]).unwrap();
            let datagram = Datagram::parse(packet.transport()).unwrap();
            prop_assert_eq!((packet.source(), packet.destination()), (source, destination));
            prop_assert_eq!((datagram.source_port(), datagram.destination_port()), ports);
            prop_assert_eq!(datagram.payload(), &payload);
            prop_assert_ne!(datagram.checksum(), 0);
            prop_assert_eq!(transport_checksum_ok(&packet), Some(true));
            prop_assert_eq!(build(&mut out[..length - 1], (source, 1).into(), (destination, 1).into(), &payload), None);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..32)) {
            let _ = Datagram::parse(&bytes);
        }
    }
}
