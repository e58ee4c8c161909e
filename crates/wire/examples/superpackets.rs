//! How fast superpackets are cut and put together: GB/s of payload and nanoseconds per packet, on one core.
//!
//! `cargo run --release -p adit-wire --example superpackets`
#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use adit_wire::checksum::Sum;
use adit_wire::coalesce::{Allowed, Coalescer};
use adit_wire::ip::Packet;
use adit_wire::segment::Superpacket;
use adit_wire::virtio::Header;
use adit_wire::{ip, tcp};

/// How long each figure is measured.
const TIME: Duration = Duration::from_millis(500);
/// Figures are the median of so many.
const ROUNDS: usize = 5;

fn main() {
    println!("{:<34}{:>9}{:>12}", "", "GB/s", "ns/packet");
    for size in [64, 536, 1400] {
        let packets = train(size, (61_000 / (size + 32 + 20)).min(64));
        let (header, superpacket) = joined(&packets);
        let mut out = vec![0; 2048];
        report(&format!("cut, {size} bytes"), size, packets.len(), || {
            let superpacket = Superpacket::new(&header, &superpacket).expect("a superpacket");
            for index in 0..superpacket.count() {
                black_box(superpacket.write_segment(index, &mut out));
            }
        });
        report(&format!("put together, {size} bytes"), size, packets.len(), || {
            black_box(join(&packets));
        });
    }
    let single = train(100, 1);
    report("pass one packet on", 100, 1, || {
        black_box(join(&single));
    });
    let payload = vec![7; 1400];
    report("checksum alone, 1400 bytes", 1400, 1, || {
        black_box(Sum::new().with(black_box(&payload)).fold());
    });
    let mut copy = vec![0; 1400];
    report("copy alone, 1400 bytes", 1400, 1, || {
        copy.copy_from_slice(black_box(&payload));
        black_box(&mut copy);
    });
}

/// Runs `work`, which moves `packets` packets of `size` bytes of payload, and prints its speed.
fn report(name: &str, size: usize, packets: usize, mut work: impl FnMut()) {
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (start, mut count) = (Instant::now(), 0u32);
            while start.elapsed() < TIME {
                (0..64).for_each(|_| work());
                count += 64;
            }
            start.elapsed().as_secs_f64() / f64::from(count) / packets as f64
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(ROUNDS / 2).copied().unwrap_or_default();
    println!("{name:<34}{:>9.2}{:>12.1}", size as f64 / median / 1e9, median * 1e9);
}

/// `count` packets of one TCP stream over IPv4, with timestamps and right checksums.
fn train(size: usize, count: usize) -> Vec<Vec<u8>> {
    let addresses = ([10, 88, 0, 2].into(), [198, 51, 100, 7].into());
    let fields = ip::HeaderFields { protocol: ip::protocol::TCP, hop_limit: 64, traffic_class: 0 };
    let packet = |index: usize| {
        let mut bytes = vec![0; 20];
        ip::write_header(&mut bytes, addresses.0, addresses.1, fields, 32 + size).expect("room");
        let mut segment = vec![0x9c, 0x40, 1, 0xbb];
        segment.extend((index as u32 * size as u32).to_be_bytes());
        segment.extend([0, 0, 0, 7, 0x80, 0x10, 1, 0xf4, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        segment.extend((0..size).map(|at| (at * 7 + index) as u8));
        let sum = Sum::new()
            .with_pseudo_header(addresses.0, addresses.1, ip::protocol::TCP, segment.len() as u32)
            .with(&segment)
            .checksum();
        segment.splice(16..18, sum.to_be_bytes());
        assert!(tcp::Segment::parse(&segment).is_ok(), "a segment");
        bytes.extend(segment);
        bytes
    };
    (0..count).map(packet).collect()
}

/// Puts packets together; returns how many parts are written.
fn join(packets: &[Vec<u8>]) -> usize {
    let mut parts = 0;
    let mut write = |output: adit_wire::coalesce::Output<'_>| parts += black_box(output.parts()).len();
    let mut coalescer = Coalescer::new(Allowed { tcp4: true, tcp6: true, udp: true });
    for bytes in packets {
        coalescer.push(&Packet::parse(bytes).expect("a packet"), &mut write);
    }
    coalescer.finish(&mut write);
    parts
}

/// The superpacket of a train, copied together.
fn joined(packets: &[Vec<u8>]) -> (Header, Vec<u8>) {
    let mut whole = Vec::new();
    let mut write = |output: adit_wire::coalesce::Output<'_>| {
        assert_eq!(output.packets(), packets.len(), "one superpacket");
        output.parts().iter().for_each(|part| whole.extend_from_slice(part));
    };
    let mut coalescer = Coalescer::new(Allowed { tcp4: true, tcp6: true, udp: true });
    for bytes in packets {
        coalescer.push(&Packet::parse(bytes).expect("a packet"), &mut write);
    }
    coalescer.finish(&mut write);
    let (header, bytes) = whole.split_first_chunk().expect("a header");
    (Header::parse(header), bytes.to_vec())
}
