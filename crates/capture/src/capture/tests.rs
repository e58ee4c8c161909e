use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::testing::{Out, Style, USUAL, at, file, frame, udp, usual};

fn read(bytes: &[u8]) -> (Vec<Frame<'_>>, Option<CaptureFault>, Option<usize>) {
    let mut capture = Capture::open(bytes).unwrap();
    let mut frames = Vec::new();
    let mut fault = None;
    for next in &mut capture {
        match next {
            Ok(frame) => frames.push(frame),
            Err(error) => fault = Some(error),
        }
    }
    (frames, fault, capture.truncated())
}

fn packets() -> Vec<(Duration, Vec<u8>)> {
    let packet = |payload: &[u8]| udp("192.0.2.7:5000", "198.51.100.1:53", payload);
    let v6 = udp("[2001:db8::7]:5000", "[2001:db8::1]:53", b"three");
    vec![(at(1), packet(b"one")), (at(2), packet(b"two2")), (at(3) + Duration::from_nanos(7), v6)]
}

#[test]
fn every_format_order_resolution_and_link_gives_the_same_packets() {
    for link in [0, 108, 1, 12, 14, 101, 113, 276] {
        for (big, nanoseconds, ng) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
            let style = Style { big, nanoseconds, ng, link };
            let bytes = file(style, &packets());

            let (frames, fault, truncated) = read(&bytes);

            assert_eq!((fault, truncated), (None, None), "{style:?}");
            for (frame, (time, packet)) in frames.iter().zip(&packets()) {
                let kept = if nanoseconds { *time } else { Duration::from_micros(time.as_micros() as u64) };
                assert_eq!(frame.time, kept, "{style:?}");
                assert_eq!(frame.link.unwrap().ip(frame.bytes).unwrap(), packet, "{style:?}");
                assert_eq!(frame.wire_length as usize, frame.bytes.len());
            }
            assert_eq!(frames.len(), 3);
        }
    }
}

#[test]
fn tags_before_the_packet_are_walked_and_other_protocols_left_alone() {
    let packet = udp("192.0.2.7:5000", "198.51.100.1:53", b"one");
    let plain = frame(1, &packet);
    for tags in 0..=4 {
        let tag = [0x81, 0, 0, 5].repeat(tags);
        let tagged = [&plain[..12], &tag, &plain[12..]].concat();
        assert_eq!(Link::Ethernet.ip(&tagged), Some(packet.as_slice()), "{tags}");
    }
    assert_eq!(Link::Ethernet.ip(&[&plain[..12], &[0x81, 0, 0, 5].repeat(5), &plain[12..]].concat()), None);
    assert_eq!(Link::Ethernet.ip(&[&plain[..12], &[8, 6], &packet].concat()), None, "ARP");
    assert_eq!(Link::Ethernet.ip(&plain[..13]), None);
}

#[test]
fn a_file_that_ends_within_a_packet_gives_those_before() {
    for ng in [false, true] {
        let bytes = file(Style { ng, ..USUAL }, &packets());
        let before = file(Style { ng, ..USUAL }, &packets()[..2]).len();
        for end in before + 1..bytes.len() {
            let (frames, fault, truncated) = read(&bytes[..end]);
            assert_eq!((frames.len(), fault, truncated), (2, None, Some(before)), "{ng} {end}");
        }
        assert_eq!(read(&bytes[..before]).2, None);
    }
}

#[test]
fn what_is_no_capture_is_said_to_be_none() {
    assert_eq!(Capture::open(b"").err(), Some(CaptureFault::Short(0)));
    assert_eq!(Capture::open(b"#!/bin/sh").err(), Some(CaptureFault::Unknown));
    let bytes = file(Style { link: 105, ..USUAL }, &[]);
    assert_eq!(Capture::open(&bytes).err(), Some(CaptureFault::LinkType(105)));
    assert_eq!(Capture::open(&bytes[..20]).err(), Some(CaptureFault::Short(20)));
    let mut old = usual([]);
    old[4] = 1;
    assert_eq!(Capture::open(&old).err(), Some(CaptureFault::Version(1, 4)));
    let text = Capture::open(b"#!/bin/sh").unwrap_err().to_string();
    assert!(text.contains("tcpdump -w"), "{text}");
}

#[test]
fn damage_is_told_with_its_place() {
    let mut bytes = file(USUAL, &packets());
    let second = file(USUAL, &packets()[..1]).len();
    bytes[second + 8..second + 12].copy_from_slice(&300_000_u32.to_le_bytes());
    let fault = CaptureFault::PacketLength { offset: second, length: 300_000 };
    let (frames, found, _) = read(&bytes);
    assert_eq!((frames.len(), found), (1, Some(fault)));
    assert!(fault.to_string().contains(&second.to_string()));

    let ng = Style { ng: true, ..USUAL };
    let good = file(ng, &packets());
    let second = file(ng, &packets()[..1]).len();
    let damages: [(usize, u32, &str); 5] = [
        (second + 4, 7, "its length cannot be"),
        (second + 4, 1 << 30, "its length cannot be"),
        (second + 8, 9, "a packet of no interface"),
        (second + 20, 70_000, "longer than its block"),
        (second + 20, 300_000, "too long"),
    ];
    for (place, value, why) in damages {
        let mut bytes = good.clone();
        bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
        let (frames, fault, _) = read(&bytes);
        let fault = fault.unwrap().to_string();
        assert_eq!(frames.len(), 1, "{fault}");
        assert!(fault.contains(why) && fault.contains(&format!("offset {second}")), "{fault}");
    }
    let mut bytes = good.clone();
    let end = good.len() - 2;
    bytes[end] ^= 1;
    assert!(read(&bytes).1.unwrap().to_string().contains("two lengths differ"));
}

#[test]
fn several_interfaces_and_sections_keep_their_own_times_links_and_orders() {
    let packet = udp("192.0.2.7:5000", "198.51.100.1:53", b"one");
    let ethernet = frame(1, &packet);
    let mut out = Out::new(true);
    out.section()
        .interface(1, 0, &[(2, b"eth0"), (9, &[3])])
        .interface(101, 40, &[(9, &[0x80 | 10]), (14, &100_i64.to_be_bytes()), (0, &[])])
        .interface(147, 0, &[])
        .block(4, b"names")
        .enhanced(0, 1_700_000_000_250, &ethernet)
        .enhanced(1, 5 * 1024 + 256, &packet)
        .enhanced(2, 0, b"whatever");
    let mut second = Out::new(false);
    second.section().interface(1, 34, &[]).simple(ethernet.len() as u32, &ethernet[..34]);
    let bytes = [out.bytes, second.bytes].concat();

    let (frames, fault, truncated) = read(&bytes);

    assert_eq!((frames.len(), fault, truncated), (4, None, None));
    assert_eq!(frames[0].time, Duration::from_millis(1_700_000_000_250));
    assert_eq!(frames[1].time, Duration::from_millis(105_250));
    assert_eq!(frames[1].link, Some(Link::Raw));
    assert_eq!(frames[2].link, None);
    assert_eq!((frames[3].bytes, frames[3].wire_length), (&ethernet[..34], ethernet.len() as u32));
}

#[test]
fn a_resolution_that_cannot_be_is_refused_and_a_fine_one_is_not() {
    let capture = |resolution: u8| {
        let mut out = Out::new(false);
        out.section().interface(1, 0, &[(9, &[resolution])]).enhanced(0, u64::MAX, b"frame");
        out.bytes
    };
    assert!(read(&capture(127)).1.unwrap().to_string().contains("resolution"));
    for resolution in [0, 38, 0x80, 0xff] {
        assert_eq!(read(&capture(resolution)).0.len(), 1);
    }
    assert_eq!(read(&capture(0)).0[0].time, Duration::from_secs(u64::MAX));
}

proptest! {
    #[test]
    fn damaged_captures_never_panic(
        style in (any::<bool>(), any::<bool>(), any::<bool>(), prop_oneof![Just(1u32), Just(101), Just(276)]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        end in any::<prop::sample::Index>(),
    ) {
        let (big, nanoseconds, ng, link) = style;
        let mut bytes = file(Style { big, nanoseconds, ng, link }, &packets());
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(end.index(bytes.len()) + 1);
        if let Ok(capture) = Capture::open(&bytes) {
            for frame in capture.flatten() {
                prop_assert!(frame.bytes.len() <= bytes.len());
                let _ = frame.link.and_then(|link| link.ip(frame.bytes));
            }
        }
    }
}
