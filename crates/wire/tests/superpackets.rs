//! Cutting and putting together undo each other, and what comes out is right by an independent look at it.

use adit_wire::coalesce::{Allowed, Coalescer, FLOWS, PACKETS};
use adit_wire::ip::Packet;
use adit_wire::segment::{Refusal, Superpacket, complete};
use adit_wire::virtio::{self, Header, kind};
use proptest::prelude::*;

const ALL: Allowed = Allowed { tcp4: true, tcp6: true, udp: true };
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;
const ECE: u8 = 64;
const CWR: u8 = 128;

/// A packet in numbers. `bytes` writes it without any help of the crate's.
#[derive(Debug, Clone)]
struct Sketch {
    v6: bool,
    protocol: u8,
    flow: u16,
    class: u8,
    hop_limit: u8,
    dont_fragment: bool,
    identification: u16,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    /// TCP options, a multiple of four bytes.
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Sketch {
    fn tcp(v6: bool, payload: &[u8]) -> Self {
        Self {
            v6,
            protocol: TCP,
            flow: 1,
            class: 2,
            hop_limit: 64,
            dont_fragment: true,
            identification: 100,
            sequence: 1000,
            acknowledgement: 7,
            flags: ACK,
            window: 500,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: payload.to_vec(),
        }
    }

    fn udp(v6: bool, payload: &[u8]) -> Self {
        Self { protocol: UDP, ..Self::tcp(v6, payload) }
    }

    fn transport(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn headers(&self) -> usize {
        self.transport() + if self.protocol == TCP { 20 + self.options.len() } else { 8 }
    }

    fn checksum_at(&self) -> usize {
        self.transport() + if self.protocol == TCP { 16 } else { 6 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut transport = vec![0x9c, self.flow as u8, (self.flow >> 8) as u8, 80];
        if self.protocol == TCP {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            transport.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&self.options);
        } else {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0; 2]);
        }
        transport.extend(&self.payload);
        let mut bytes = if self.v6 {
            let mut bytes = vec![0x60 | self.class >> 4, self.class << 4, 0, 9];
            bytes.extend((transport.len() as u16).to_be_bytes());
            bytes.extend([self.protocol, self.hop_limit]);
            bytes.extend([0xfd; 32]);
            bytes
        } else {
            let mut bytes = vec![0x45, self.class];
            bytes.extend(((20 + transport.len()) as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hop_limit, self.protocol, 0, 0]);
            bytes.extend([10, 88, 0, 2, 198, 51, 100, 7]);
            bytes
        };
        bytes.extend(transport);
        fill(&mut bytes);
        bytes
    }

    /// The same as a superpacket of segments of `size` bytes, as a kernel would hand it over.
    fn superpacket(&self, size: usize) -> (Header, Vec<u8>) {
        let mut bytes = self.bytes();
        let (start, at) = (self.transport(), self.checksum_at());
        bytes[at..at + 2].fill(0);
        let partial = word_sum(&[&pseudo(&bytes)]);
        bytes[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let ecn = if self.protocol == TCP && self.flags & CWR != 0 { kind::ECN } else { 0 };
        let header = Header {
            flags: virtio::NEEDS_CHECKSUM,
            kind: ecn
                | match (self.protocol, self.v6) {
                    (UDP, _) => kind::UDP,
                    (_, false) => kind::TCP4,
                    (_, true) => kind::TCP6,
                },
            header_len: self.headers() as u16,
            segment_size: size as u16,
            checksum_start: start as u16,
            checksum_offset: (at - start) as u16,
        };
        (header, bytes)
    }
}

/// The definition of RFC 1071, word by word, over parts of even length but the last.
fn word_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Pseudo header of a packet without extension headers.
fn pseudo(bytes: &[u8]) -> Vec<u8> {
    let (header, protocol, addresses) =
        if bytes[0] >> 4 == 4 { (20, bytes[9], 12..20) } else { (40, bytes[6], 8..40) };
    let mut covered = bytes[addresses].to_vec();
    covered.extend([0, protocol]);
    covered.extend(((bytes.len() - header) as u16).to_be_bytes());
    covered
}

/// Puts right checksums into a packet without extension headers or options.
fn fill(bytes: &mut [u8]) {
    let v4 = bytes[0] >> 4 == 4;
    if v4 {
        bytes[10..12].fill(0);
        let sum = !word_sum(&[&bytes[..20]]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let transport = if v4 { 20 } else { 40 };
    let protocol = if v4 { bytes[9] } else { bytes[6] };
    let at = transport + if protocol == TCP { 16 } else { 6 };
    bytes[at..at + 2].fill(0);
    let sum = !word_sum(&[&pseudo(bytes), &bytes[transport..]]);
    let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Lengths and checksums are right.
fn check(bytes: &[u8]) {
    let v4 = bytes[0] >> 4 == 4;
    if v4 {
        assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), bytes.len());
        assert_eq!(word_sum(&[&bytes[..20]]), 0xffff);
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([bytes[4], bytes[5]])), bytes.len() - 40);
    }
    let transport = &bytes[if v4 { 20 } else { 40 }..];
    assert_eq!(word_sum(&[&pseudo(bytes), transport]), 0xffff);
    if bytes[if v4 { 9 } else { 6 }] == UDP {
        assert_eq!(usize::from(u16::from_be_bytes([transport[4], transport[5]])), transport.len());
        assert_ne!(transport[6..8], [0, 0]);
    }
}

fn cut(header: &Header, bytes: &[u8]) -> Vec<Vec<u8>> {
    let superpacket = Superpacket::new(header, bytes).unwrap();
    let mut out = vec![0xaa; superpacket.segment_len() + 1];
    let write = |index| {
        let length = superpacket.write_segment(index, &mut out).unwrap();
        assert_eq!(out[superpacket.segment_len()], 0xaa, "bytes behind the segment are left alone");
        out[..length].to_vec()
    };
    let segments = (0..superpacket.count()).map(write).collect();
    assert_eq!(superpacket.write_segment(superpacket.count(), &mut out), None);
    segments
}

/// What leaves a coalescer: virtio header, bytes, how many packets are in it.
fn merge(packets: &[Vec<u8>], allowed: Allowed) -> Vec<(Header, Vec<u8>, usize)> {
    let mut written = Vec::new();
    let mut write = |output: adit_wire::coalesce::Output<'_>| {
        let whole: Vec<u8> = output.parts().iter().flat_map(|part| part.to_vec()).collect();
        let (header, bytes) = whole.split_first_chunk().unwrap();
        written.push((Header::parse(header), bytes.to_vec(), output.packets()));
    };
    let mut coalescer = Coalescer::new(allowed);
    for bytes in packets {
        coalescer.push(&Packet::parse(bytes).unwrap(), &mut write);
    }
    coalescer.finish(&mut write);
    written
}

fn train(first: &Sketch, count: usize) -> Vec<Sketch> {
    (0..count)
        .map(|n| Sketch {
            sequence: first.sequence.wrapping_add((n * first.payload.len()) as u32),
            identification: first.identification.wrapping_add(n as u16),
            ..first.clone()
        })
        .collect()
}

fn counts(packets: &[Sketch]) -> Vec<usize> {
    let packets: Vec<_> = packets.iter().map(Sketch::bytes).collect();
    merge(&packets, ALL).iter().map(|(_, _, packets)| *packets).collect()
}

#[test]
fn a_train_becomes_one_superpacket() {
    for first in [
        Sketch::tcp(false, &[1; 100]),
        Sketch::tcp(true, &[2; 99]),
        Sketch::udp(false, &[3; 100]),
        Sketch::udp(true, &[4; 99]),
    ] {
        assert_eq!(counts(&train(&first, 40)), [40], "{first:?}");
    }
}

#[test]
fn the_last_may_be_shorter_or_end_the_stream_and_the_first_may_have_reduced_its_window() {
    for v6 in [false, true] {
        let mut packets = train(&Sketch::tcp(v6, &[1; 100]), 5);
        packets[0].flags |= CWR;
        packets[2].flags |= PSH;
        packets[4].flags |= FIN;
        packets[4].payload.truncate(7);
        let bytes: Vec<_> = packets.iter().map(Sketch::bytes).collect();

        let written = merge(&bytes, ALL);

        let flags = |bytes: &[u8]| bytes[packets[0].transport() + 13];
        assert_eq!(written.iter().map(|(_, _, count)| *count).collect::<Vec<_>>(), [3, 2]);
        assert_eq!((flags(&written[0].1), flags(&written[1].1)), (ACK | CWR | PSH, ACK | FIN));
        assert_eq!(written[0].0.kind & kind::ECN, kind::ECN);
        assert_eq!(written[1].0.kind & kind::ECN, 0);
    }
}

#[test]
fn whatever_a_receiver_could_tell_apart_splits_a_train() {
    type Change = (&'static str, fn(&mut Sketch));
    let changes: &[Change] = &[
        ("sequence", |p| p.sequence += 1),
        ("acknowledgement", |p| p.acknowledgement += 1),
        ("window", |p| p.window += 1),
        ("options", |p| p.options[7] += 1),
        ("number of options", |p| p.options.truncate(4)),
        ("ECN echo", |p| p.flags |= ECE),
        ("window reduced in the middle", |p| p.flags |= CWR),
        ("reset", |p| p.flags |= 4),
        ("SYN", |p| p.flags |= SYN),
        ("urgent", |p| p.flags |= 32),
        ("no acknowledgement", |p| p.flags = 0),
        ("traffic class", |p| p.class ^= 0x80),
        ("congestion", |p| p.class |= 3),
        ("hop limit", |p| p.hop_limit -= 1),
        ("don't fragment", |p| p.dont_fragment ^= !p.v6),
        ("longer", |p| p.payload.push(0)),
        ("empty", |p| p.payload.clear()),
    ];
    for v6 in [false, true] {
        for (what, change) in changes {
            if v6 && *what == "don't fragment" {
                continue;
            }
            let mut packets = train(&Sketch::tcp(v6, &[1; 100]), 4);
            change(&mut packets[2]);
            let counts = counts(&packets);
            assert!(counts[0] == 2 && counts.iter().sum::<usize>() == 4, "{what}: {counts:?}");
        }
        for (what, change) in
            &changes[changes.iter().position(|(what, _)| *what == "traffic class").unwrap()..]
        {
            if v6 && *what == "don't fragment" {
                continue;
            }
            let mut packets = train(&Sketch::udp(v6, &[1; 100]), 4);
            change(&mut packets[2]);
            let counts = counts(&packets);
            assert!(counts[0] == 2 && counts.iter().sum::<usize>() == 4, "UDP {what}: {counts:?}");
        }
    }
}

#[test]
fn identifications_have_to_be_consecutive_where_they_mean_something() {
    for (dont_fragment, expected) in [(true, vec![3]), (false, vec![1, 1, 1])] {
        let first = Sketch { dont_fragment, ..Sketch::tcp(false, &[1; 100]) };
        let mut packets = train(&first, 3);
        packets.iter_mut().for_each(|packet| packet.identification = 0);
        assert_eq!(counts(&packets), expected);
    }
}

#[test]
fn a_damaged_packet_goes_out_as_it_came() {
    for (what, at) in [("payload", 70), ("TCP header", 33), ("IP header", 8)] {
        let mut packets: Vec<_> =
            train(&Sketch::tcp(false, &[1; 100]), 3).iter().map(Sketch::bytes).collect();
        packets[1][at] ^= 0x10;

        let written = merge(&packets, ALL);

        assert_eq!(written.len(), 3, "{what}");
        assert_eq!(written[1], (Header::default(), packets[1].clone(), 1), "{what}");
    }
    let mut unchecked =
        train(&Sketch::udp(false, &[1; 100]), 2).iter().map(Sketch::bytes).collect::<Vec<_>>();
    unchecked.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(merge(&unchecked, ALL).len(), 2, "UDP without checksum");
}

#[test]
fn a_superpacket_ends_at_the_length_fields_and_at_the_number_of_packets() {
    assert_eq!(counts(&train(&Sketch::tcp(false, &[1; 1400]), 48)), [46, 2]);
    assert_eq!(counts(&train(&Sketch::udp(true, &[1; 10]), PACKETS + 1)), [PACKETS, 1]);
}

#[test]
fn what_the_receiver_does_not_take_is_not_merged() {
    for (sketch, allowed) in [
        (Sketch::tcp(false, &[1; 10]), Allowed { tcp4: false, ..ALL }),
        (Sketch::tcp(true, &[1; 10]), Allowed { tcp6: false, ..ALL }),
        (Sketch::udp(true, &[1; 10]), Allowed { udp: false, ..ALL }),
    ] {
        let packets: Vec<_> = train(&sketch, 3).iter().map(Sketch::bytes).collect();
        let written = merge(&packets, allowed);
        assert_eq!(written.iter().map(|(_, bytes, _)| bytes.clone()).collect::<Vec<_>>(), packets);
        assert!(written.iter().all(|(header, _, _)| *header == Header::default()));
    }
}

#[test]
fn interleaved_flows_are_merged_each_as_long_as_there_is_room() {
    let flows = |count: u16| -> Vec<Sketch> {
        let flow = |n| Sketch { flow: n, ..Sketch::tcp(false, &[1; 100]) };
        let trains: Vec<_> = (0..count).map(|n| train(&flow(n), 3)).collect();
        (0..3).flat_map(|at| trains.iter().map(move |train| train[at].clone())).collect()
    };
    assert_eq!(counts(&flows(FLOWS as u16)), [3; FLOWS]);
    let crowded = counts(&flows(FLOWS as u16 + 1));
    assert_eq!(crowded.iter().sum::<usize>(), (FLOWS + 1) * 3);
}

#[test]
fn a_fragment_does_not_overtake_its_flow() {
    let held = Sketch::udp(false, &[1; 100]).bytes();
    let mut fragment = Sketch::udp(false, &[2; 50]).bytes();
    fragment[6] = 0x20;
    let written = merge(&[held.clone(), fragment.clone()], ALL);
    assert_eq!(written.iter().map(|(_, bytes, _)| bytes.clone()).collect::<Vec<_>>(), [held, fragment]);
}

#[test]
fn a_missing_checksum_is_completed_in_a_copy_and_in_place() {
    for sketch in [Sketch::tcp(false, b"odd"), Sketch::udp(true, b"even")] {
        let (header, mut bytes) = sketch.superpacket(0);
        let header = Header { kind: kind::NONE, ..header };

        assert_eq!(cut(&header, &bytes), [sketch.bytes()]);
        complete(&header, &mut bytes).unwrap();
        assert_eq!(bytes, sketch.bytes());
    }
}

#[test]
fn udp_that_came_without_checksums_stays_so() {
    let (header, mut bytes) = Sketch::udp(false, &[1; 30]).superpacket(10);
    bytes[26..28].fill(0);
    let segments = cut(&Header { flags: 0, ..header }, &bytes);
    assert_eq!(segments.len(), 3);
    assert!(segments.iter().all(|segment| segment[26..28] == [0, 0] && segment[25] == 18));
}

#[test]
fn headers_that_lie_are_refused_with_a_reason() {
    let sketch = Sketch::tcp(false, &[1; 300]);
    let (header, bytes) = sketch.superpacket(100);
    let refusal = |header: Header, bytes: &[u8]| Superpacket::new(&header, bytes).unwrap_err();
    assert_eq!(refusal(Header { kind: kind::TCP6, ..header }, &bytes), Refusal::OtherProtocol);
    assert_eq!(refusal(Header { kind: kind::UDP, ..header }, &bytes), Refusal::OtherProtocol);
    for odd in [2, 3, 6, 0x7f, kind::ECN, kind::ECN | kind::UDP] {
        assert_eq!(refusal(Header { kind: odd, ..header }, &bytes), Refusal::Kind, "kind {odd}");
    }
    assert_eq!(refusal(Header { segment_size: 0, ..header }, &bytes), Refusal::SegmentSize);
    for (start, offset) in [(20, 6), (24, 16), (20, 400), (u16::MAX, u16::MAX)] {
        let header = Header { checksum_start: start, checksum_offset: offset, ..header };
        assert_eq!(refusal(header, &bytes), Refusal::ChecksumPlace);
    }
    let place = Header { kind: kind::NONE, checksum_start: 4, ..header };
    assert_eq!(refusal(place, &bytes), Refusal::ChecksumPlace);
    let mut fragment = bytes.clone();
    fragment[6] = 0x20;
    assert_eq!(refusal(header, &fragment), Refusal::Fragment);
    let mut offset = bytes.clone();
    offset[32] = 0xf0;
    assert_eq!(cut(&header, &offset).len(), 3, "60 bytes of TCP header fit");
    offset[32] = 0x40;
    assert!(matches!(refusal(header, &offset), Refusal::Malformed(_)));
    assert!(matches!(refusal(header, &bytes[..50]), Refusal::Malformed(_)));
    assert_eq!(complete(&header, &mut offset), Err(Refusal::Kind));
}

#[test]
fn a_routing_headers_last_stop_is_in_every_checksum() {
    // A routing header with one segment left; the sender summed the last stop, 2001:db8::9.
    let inner = Sketch::tcp(true, &[5; 250]);
    let (header, bytes) = inner.superpacket(100);
    let mut last_stop = bytes.clone();
    last_stop[24..40].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let partial = word_sum(&[&pseudo(&last_stop)]);
    let mut routed = bytes[..40].to_vec();
    routed[6] = 43;
    routed[4..6].copy_from_slice(&((bytes.len() - 40 + 8) as u16).to_be_bytes());
    routed.extend([TCP, 0, 4, 1, 0, 0, 0, 0]);
    routed.extend(&bytes[40..]);
    routed[48 + 16..48 + 18].copy_from_slice(&partial.to_be_bytes());
    let header = Header { checksum_start: 48, ..header };

    for segment in cut(&header, &routed) {
        let mut arrived = last_stop[..40].to_vec();
        arrived.extend(&segment[48..]);
        assert_eq!(word_sum(&[&pseudo(&arrived), &arrived[40..]]), 0xffff);
    }
    let without = Superpacket::new(&Header { flags: 0, ..header }, &routed).unwrap_err();
    assert_eq!(without, Refusal::SourceRouted);
}

fn sketches() -> impl Strategy<Value = Sketch> {
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), any::<u16>(), any::<u8>());
    let options = prop_oneof![Just(vec![]), prop::collection::vec(any::<u8>(), 12), Just(vec![1; 40])];
    (any::<(bool, bool, bool)>(), numbers, options, 0..4u16, prop::collection::vec(any::<u8>(), 1..3000))
        .prop_map(|((v6, tcp, dont_fragment), numbers, options, flow, payload)| {
            let (identification, sequence, acknowledgement, window, class) = numbers;
            Sketch {
                v6,
                protocol: if tcp { TCP } else { UDP },
                flow,
                class,
                hop_limit: 64,
                dont_fragment,
                identification,
                sequence,
                acknowledgement,
                flags: ACK,
                window,
                options: if tcp { options } else { vec![] },
                payload,
            }
        })
}

/// A packet as it may differ on its way: identifications that have no meaning are taken out.
fn comparable(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[0] == 0x45 && bytes[6] & 0x40 != 0 && word_sum(&[&bytes[..20]]) == 0xffff {
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
    }
    bytes
}

fn flow_of(bytes: &[u8]) -> Vec<u8> {
    let (protocol, transport) = if bytes[0] >> 4 == 4 { (bytes[9], 20) } else { (bytes[6], 40) };
    [&[bytes[0] >> 4, protocol], &bytes[transport..transport + 4]].concat()
}

proptest! {
    #[test]
    fn cut_and_put_together_is_the_same_again(
        mut sketch in sketches(),
        size in 1..1500usize,
        flags: (bool, bool, bool, bool),
    ) {
        let count = sketch.payload.len().div_ceil(size);
        prop_assume!((2..=PACKETS).contains(&count));
        for (on, bit) in [(flags.0, FIN), (flags.1, PSH), (flags.2, ECE), (flags.3, CWR)] {
            sketch.flags |= if on { bit } else { 0 };
        }
        let (header, bytes) = sketch.superpacket(size);

        let segments = cut(&header, &bytes);

        prop_assert_eq!(segments.len(), count);
        for (index, segment) in segments.iter().enumerate() {
            check(segment);
            let payload = &sketch.payload[index * size..sketch.payload.len().min((index + 1) * size)];
            let mut flags = sketch.flags;
            if index != 0 { flags &= !CWR; }
            if index != count - 1 { flags &= !(FIN | PSH); }
            let expected = Sketch {
                sequence: sketch.sequence.wrapping_add((index * size) as u32),
                identification: sketch.identification.wrapping_add(index as u16),
                flags,
                payload: payload.to_vec(),
                ..sketch.clone()
            };
            prop_assert_eq!(segment, &expected.bytes());
        }
        let merged = merge(&segments, ALL);
        prop_assert_eq!(merged, vec![(header, bytes, count)]);
    }

    #[test]
    fn put_together_and_cut_is_the_same_again_in_every_flow(
        firsts in prop::collection::vec(sketches(), 1..12),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0..40u8, any::<prop::sample::Index>()), 1..120),
    ) {
        // Each step sends the next packet of a flow, now and then a strange one.
        let mut flows: Vec<Sketch> =
            firsts.into_iter().map(|mut first| { first.payload.truncate(200); first }).collect();
        let mut packets = Vec::new();
        for (flow, oddity, at) in steps {
            let flow_at = flow.index(flows.len());
            let flow = &mut flows[flow_at];
            let mut packet = flow.clone();
            match oddity {
                0 => packet.flags |= PSH,
                1 => packet.flags |= FIN,
                2 => packet.flags = SYN,
                3 => packet.flags |= CWR,
                4 => packet.class ^= 1,
                5 => packet.payload.clear(),
                6 => packet.payload.truncate(3),
                7 => packet.window ^= 1,
                8 => packet.sequence ^= 1,
                9 => packet.dont_fragment ^= true,
                _ => {}
            }
            flow.sequence = flow.sequence.wrapping_add(packet.payload.len() as u32);
            flow.identification = flow.identification.wrapping_add(1);
            let mut bytes = packet.bytes();
            if oddity == 10 {
                // Behind the ports: addresses would make it another flow's.
                let from = packet.transport() + 4;
                bytes[from + at.index(packet.bytes().len() - from)] ^= 0x04;
            }
            if oddity == 11 && !packet.v6 {
                bytes[8] ^= 1;
            }
            packets.push(bytes);
        }

        let mut back = Vec::new();
        for (header, bytes, count) in merge(&packets, ALL) {
            let segments = cut(&header, &bytes);
            prop_assert_eq!(segments.len(), count);
            back.extend(segments);
        }

        prop_assert_eq!(packets.len(), back.len());
        let keys: std::collections::BTreeSet<_> = packets.iter().map(|bytes| flow_of(bytes)).collect();
        for key in keys {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                all.iter().filter(|bytes| flow_of(bytes) == key).map(|bytes| comparable(bytes)).collect()
            };
            prop_assert_eq!(of(&packets), of(&back));
        }
    }

    #[test]
    fn any_header_before_any_packet_is_cut_within_bounds_or_refused(
        sketch in sketches(),
        changes in prop::collection::vec((0..80usize, any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
        mut raw: [u8; virtio::LEN],
        sane: bool,
    ) {
        let (header, mut bytes) = sketch.superpacket(7);
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
        }
        bytes.truncate(if sane { bytes.len() } else { length.index(bytes.len() + 1) });
        if sane { raw = header.bytes(); }
        raw[1] &= 0x87;
        let header = Header::parse(&raw);
        if let Ok(superpacket) = Superpacket::new(&header, &bytes) {
            let (count, length) = (superpacket.count(), superpacket.segment_len());
            prop_assert!(count >= 1 && length <= bytes.len());
            let mut out = vec![0; length];
            let mut total = 0;
            for index in 0..count {
                let written = superpacket.write_segment(index, &mut out).unwrap();
                prop_assert!(written == length || index == count - 1);
                prop_assert!(Packet::parse(&out[..written]).is_ok_and(|packet| packet.total_len() == written));
                total += written;
            }
            prop_assert!(total >= superpacket.packet().total_len());
            for index in [count, usize::MAX] {
                prop_assert_eq!(superpacket.write_segment(index, &mut out), None);
            }
            if length > 0 {
                prop_assert_eq!(superpacket.write_segment(0, &mut out[..length - 1]), None);
            }
        }
        let before = bytes.clone();
        if complete(&header, &mut bytes).is_err() { prop_assert_eq!(bytes, before); }
    }
}
