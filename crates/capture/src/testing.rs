//! A writer of captures, for tests.

use std::net::SocketAddr;
use std::time::Duration;

use adit_wire::ip::{self, HeaderFields};

/// What [`file`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) big: bool,
    pub(crate) nanoseconds: bool,
    pub(crate) ng: bool,
    pub(crate) link: u32,
}

/// As tcpdump writes it here.
pub(crate) const USUAL: Style = Style { big: false, nanoseconds: false, ng: false, link: 1 };

/// Numbers in a byte order.
pub(crate) struct Out {
    pub(crate) bytes: Vec<u8>,
    big: bool,
}

impl Out {
    pub(crate) fn new(big: bool) -> Self {
        Self { bytes: Vec::new(), big }
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes.extend(if self.big { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(if self.big { value.to_be_bytes() } else { value.to_le_bytes() });
        self
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self
    }

    /// A pcapng block around `body`, which is padded.
    pub(crate) fn block(&mut self, kind: u32, body: &[u8]) -> &mut Self {
        let length = 12 + body.len().next_multiple_of(4);
        let padding = vec![0; length - 12 - body.len()];
        self.u32(kind).u32(length as u32).raw(body).raw(&padding).u32(length as u32)
    }

    pub(crate) fn section(&mut self) -> &mut Self {
        let mut body = Self::new(self.big);
        body.u32(0x1a2b_3c4d).u16(1).u16(0).raw(&[0xff; 8]);
        self.block(0x0a0d_0d0a, &body.bytes)
    }

    /// `options` are pairs of code and value.
    pub(crate) fn interface(&mut self, link: u16, snap: u32, options: &[(u16, &[u8])]) -> &mut Self {
        let mut body = Self::new(self.big);
        body.u16(link).u16(0).u32(snap);
        for (code, value) in options {
            let padding = vec![0; value.len().next_multiple_of(4) - value.len()];
            body.u16(*code).u16(value.len() as u16).raw(value).raw(&padding);
        }
        self.block(1, &body.bytes)
    }

    pub(crate) fn enhanced(&mut self, interface: u32, units: u64, frame: &[u8]) -> &mut Self {
        let mut body = Self::new(self.big);
        body.u32(interface).u32((units >> 32) as u32).u32(units as u32);
        body.u32(frame.len() as u32).u32(frame.len() as u32).raw(frame);
        self.block(6, &body.bytes)
    }

    pub(crate) fn simple(&mut self, wire_length: u32, captured: &[u8]) -> &mut Self {
        let mut body = Self::new(self.big);
        body.u32(wire_length).raw(captured);
        self.block(3, &body.bytes)
    }

    pub(crate) fn pcap_header(&mut self, nanoseconds: bool, link: u32) -> &mut Self {
        let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        self.u32(magic).u16(2).u16(4).u32(0).u32(0).u32(262_144).u32(link)
    }
}

/// A capture of IP packets with their times.
pub(crate) fn file(style: Style, packets: &[(Duration, Vec<u8>)]) -> Vec<u8> {
    let mut out = Out::new(style.big);
    if style.ng {
        let resolution: &[(u16, &[u8])] = if style.nanoseconds { &[(9, &[9])] } else { &[] };
        out.section().interface(style.link as u16, 0, resolution);
    } else {
        out.pcap_header(style.nanoseconds, style.link);
    }
    for (time, packet) in packets {
        let frame = frame(style.link, packet);
        let fraction = if style.nanoseconds { time.subsec_nanos() } else { time.subsec_micros() };
        if style.ng {
            let units = if style.nanoseconds { time.as_nanos() } else { time.as_micros() };
            out.enhanced(0, units as u64, &frame);
        } else {
            out.u32(time.as_secs() as u32).u32(fraction);
            out.u32(frame.len() as u32).u32(frame.len() as u32).raw(&frame);
        }
    }
    out.bytes
}

/// A capture with one packet each millisecond.
pub(crate) fn usual(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let timed: Vec<_> = packets.into_iter().enumerate().map(|(n, p)| (at(n as u64), p)).collect();
    file(USUAL, &timed)
}

/// Some day, and milliseconds.
pub(crate) fn at(millis: u64) -> Duration {
    Duration::from_secs(1_700_000_000) + Duration::from_millis(millis)
}

/// The packet behind a link header.
pub(crate) fn frame(link: u32, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
    let mut frame = match link {
        0 => vec![2, 0, 0, 0],
        108 => vec![0, 0, 0, 2],
        1 => [&[2; 12], kind.as_slice()].concat(),
        113 => [&[0; 14], kind.as_slice()].concat(),
        276 => [kind.as_slice(), &[0; 18]].concat(),
        _ => vec![],
    };
    frame.extend(packet);
    frame
}

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A UDP packet.
pub(crate) fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; payload.len() + 60];
    let len = adit_wire::udp::build(&mut packet, socket(from), socket(to), payload).unwrap();
    packet.truncate(len);
    packet
}

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;

/// A TCP packet.
pub(crate) fn tcp(
    from: &str,
    to: &str,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let (from, to) = (socket(from), socket(to));
    let mut packet = vec![0; payload.len() + 60];
    let fields = HeaderFields { protocol: ip::protocol::TCP, hop_limit: 64, traffic_class: 0 };
    let len = ip::write_header(&mut packet, from.ip(), to.ip(), fields, 20 + payload.len()).unwrap();
    packet.truncate(len);
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(acknowledgement.to_be_bytes());
    packet.extend([0x50, flags, 255, 255, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}
