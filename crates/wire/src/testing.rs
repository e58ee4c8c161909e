//! Packets for the tests of this crate, written without the builders they help to test.

/// An IPv4 packet from 10.88.0.2 to 198.51.100.7 with `payload`; no header checksum.
pub(crate) fn v4_header(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 88, 0, 2, 198, 51, 100, 7];
    bytes.extend(payload);
    let total = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes
}

/// An IPv6 packet from fd88::2 to 2001:db8::7 with `payload`.
pub(crate) fn v6_packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next_header, 64]);
    bytes.extend("fd88::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    bytes.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    bytes.extend(payload);
    bytes
}

/// Bytes of a packet of either version.
pub(crate) fn packet(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if v6 { v6_packet(protocol, payload) } else { v4_header(protocol, payload) }
}

/// Puts the right checksum at `at` bytes into the transport header of `packet`, summing the pseudo header
/// word by word.
pub(crate) fn fill_checksum(packet: &mut [u8], at: usize) {
    let (header, protocol, addresses) =
        if packet[0] >> 4 == 4 { (20, packet[9], 12..20) } else { (40, packet[6], 8..40) };
    packet[header + at..header + at + 2].fill(0);
    let mut covered = packet[addresses].to_vec();
    covered.extend([0, protocol]);
    covered.extend(((packet.len() - header) as u16).to_be_bytes());
    covered.extend(&packet[header..]);
    let mut sum = 0u32;
    for pair in covered.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[header + at..header + at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
