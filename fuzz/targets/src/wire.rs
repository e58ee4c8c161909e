//! Inner packets.

use std::net::IpAddr;

use adit_wire::checksum::transport_checksum_ok;
use adit_wire::coalesce::{Allowed, Coalescer, Output};
use adit_wire::icmp::{self, Reason};
use adit_wire::ip::{Packet, protocol};
use adit_wire::proxy::{self, Preamble};
use adit_wire::segment::{Superpacket, complete};
use adit_wire::tcp;
use adit_wire::virtio::{self, Header, kind};

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

/// A virtio header and a packet: the packet is cut within bounds, into whole packets whose checksums are right.
pub(crate) fn segment(bytes: &[u8]) {
    let Some((header, bytes)) = bytes.split_first_chunk() else { return };
    let header = Header::parse(header);
    assert_eq!(Header::parse(&header.bytes()), header);
    let mut in_place = bytes.to_vec();
    if complete(&header, &mut in_place).is_err() {
        assert_eq!(in_place, bytes);
    }
    let Ok(superpacket) = Superpacket::new(&header, bytes) else { return };
    let (count, length) = (superpacket.count(), superpacket.segment_len());
    let mut out = vec![0; length];
    for index in 0..count {
        let written = superpacket.write_segment(index, &mut out).expect("room for it");
        assert!(written == length || (index == count - 1 && written < length));
        let packet = Packet::parse(&out[..written]).expect("a packet");
        assert_eq!(packet.total_len(), written);
        if header.kind != kind::NONE && !packet.is_source_routed() {
            assert_ne!(transport_checksum_ok(&packet), Some(false));
        }
    }
    assert_eq!(superpacket.write_segment(count, &mut out), None);
    if count == 1 && !header.needs_checksum() && header.kind == kind::NONE {
        assert_eq!(out, superpacket.packet().bytes());
    }
}

/// Packets, each behind two bytes of length, that are put together: what goes out stands for as many, and for the
/// same payloads.
pub(crate) fn coalesce(bytes: &[u8]) {
    let mut packets = Vec::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (packet, after) = after.split_at(length);
        packets.extend(Packet::parse(packet));
        rest = after;
    }
    let (mut out, mut count) = (vec![0; 1 << 16], 0);
    let mut write = |output: Output<'_>| {
        let whole = output.parts().iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>();
        let (header, bytes) = whole.split_first_chunk::<{ virtio::LEN }>().expect("a header");
        let superpacket = Superpacket::new(&Header::parse(header), bytes).expect("a good superpacket");
        assert_eq!(superpacket.count(), output.packets());
        for index in 0..superpacket.count() {
            let written = superpacket.write_segment(index, &mut out).expect("room for it");
            let packet = Packet::parse(&out[..written]).expect("a packet");
            assert!(packets.iter().any(|came| same(came, &packet)), "{packet:?} did not come");
        }
        count += output.packets();
    };
    let mut coalescer = Coalescer::new(Allowed { tcp4: true, tcp6: true, udp: true });
    packets.iter().for_each(|packet| coalescer.push(packet, &mut write));
    coalescer.finish(&mut write);
    assert_eq!(count, packets.len());
}

/// Equal but for what nobody may rely on.
fn same(one: &Packet<'_>, other: &Packet<'_>) -> bool {
    let fixed = |packet: &Packet<'_>| {
        let mut transport = packet.transport().to_vec();
        // All ones and all zeros are the same TCP checksum.
        if packet.protocol() == protocol::TCP && transport.get(16..18) == Some(&[0xff; 2]) {
            transport[16..18].fill(0);
        }
        (transport, packet.source(), packet.destination(), packet.hop_limit(), packet.dscp(), packet.ecn())
    };
    fixed(one) == fixed(other)
}
