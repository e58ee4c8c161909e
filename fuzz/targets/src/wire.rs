//! Inner packets.

use std::net::IpAddr;

use adit_wire::checksum::transport_checksum_ok;
use adit_wire::icmp::{self, Reason};
use adit_wire::ip::Packet;
use adit_wire::proxy::{self, Preamble};
use adit_wire::tcp;

/// Views stay within their packet.
pub(crate) fn ip_packet(bytes: &[u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    assert!(packet.total_len() <= bytes.len());
    assert!(packet.header_len() <= packet.total_len());
    assert!(packet.transport().len() <= packet.total_len());
    let _ = (tcp::Segment::parse(packet.transport()), adit_wire::udp::Datagram::parse(packet.transport()));
    let _ = transport_checksum_ok(&packet);
}

/// Clamping keeps length and checksum, and doing it again changes nothing.
pub(crate) fn clamp_mss(bytes: &[u8]) {
    let mut packet = bytes.to_vec();
    let good = |bytes: &[u8]| Packet::parse(bytes).ok().and_then(|packet| transport_checksum_ok(&packet));
    let before = good(&packet);
    tcp::clamp_mss(&mut packet, 1300, 1280);
    assert_eq!(good(&packet), before);
    let once = packet.clone();
    tcp::clamp_mss(&mut packet, 1300, 1280);
    assert_eq!(packet, once);
}

/// An error that is built is a good packet, and is never answered by another.
pub(crate) fn icmp_error(bytes: &[u8]) {
    let Ok(packet) = Packet::parse(bytes) else { return };
    let source: IpAddr = match packet.source() {
        IpAddr::V4(_) => [10, 0, 0, 1].into(),
        IpAddr::V6(_) => [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
    };
    let mut out = [0; 2048];
    for reason in [Reason::TooBig { mtu: 1280 }, Reason::NoRoute, Reason::Prohibited] {
        let Some(len) = icmp::error(&mut out, &packet, reason, source) else { continue };
        let error = Packet::parse(&out[..len]).expect("a good packet");
        assert_eq!(transport_checksum_ok(&error), Some(true));
        let mut again = [0; 2048];
        assert_eq!(icmp::error(&mut again, &error, reason, packet.source()), None);
    }
}

/// A header stays within its bytes, is the same without what follows it, and its addresses survive being written anew.
pub(crate) fn proxy(bytes: &[u8]) {
    let Preamble::Header { length, addresses } = proxy::parse(bytes) else { return };
    assert!(length <= bytes.len().min(proxy::MAX_LEN));
    assert_eq!(proxy::parse(&bytes[..length]), Preamble::Header { length, addresses });
    let Some(found) = addresses else { return };
    let mut out = [0; proxy::MAX_BUILT];
    let length =
        proxy::build(&mut out, found.source, found.destination, proxy::Kind::Stream).expect("room for it");
    assert_eq!(proxy::parse(&out[..length]), Preamble::Header { length, addresses });
}
