use proptest::prelude::*;

use super::*;
use crate::testing::{ACK, Out, SYN, USUAL, at, file, frame, socket, tcp, udp, usual};

const CLIENT: &str = "192.0.2.7:50000";
const SERVER: &str = "198.51.100.1:443";

/// A connection whose first sequence number is `isn`, with these client segments after the handshake.
fn connection(isn: u32, segments: &[(u32, &[u8])]) -> Vec<Vec<u8>> {
    let mut packets = vec![
        tcp(CLIENT, SERVER, SYN, isn, 0, b""),
        tcp(SERVER, CLIENT, SYN | ACK, 900, isn.wrapping_add(1), b""),
        tcp(CLIENT, SERVER, ACK, isn.wrapping_add(1), 901, b""),
    ];
    packets.extend(segments.iter().map(|(place, payload)| {
        tcp(CLIENT, SERVER, ACK, isn.wrapping_add(1).wrapping_add(*place), 901, payload)
    }));
    packets
}

fn only(bytes: &[u8]) -> Flow {
    let found = flows(bytes).unwrap();
    assert_eq!(found.flows.len(), 1, "{found:?}");
    found.flows[0].clone()
}

#[test]
fn the_first_datagram_of_a_udp_flow_is_kept_with_its_header() {
    let mut first = udp(CLIENT, SERVER, b"hello");
    first[1] = 0x48;
    let flow = only(&usual([first, udp(SERVER, CLIENT, b"welcome"), udp(CLIENT, SERVER, b"thanks")]));

    assert_eq!((flow.transport, flow.client, flow.server), (Transport::Udp, socket(CLIENT), socket(SERVER)));
    assert_eq!((flow.first.as_slice(), flow.first_length), (b"hello".as_slice(), 5));
    assert_eq!((flow.ip_length, flow.tos, flow.time), (33, 0x48, at(0)));
    assert_eq!((flow.packets, flow.sent, flow.received), (3, 11, 7));
    assert!(flow.from_start);
}

#[test]
fn a_socket_that_was_silent_begins_a_new_flow() {
    let packets = |gap: u64| {
        let packet = |payload: &[u8]| udp(CLIENT, SERVER, payload);
        file(USUAL, &[(at(0), packet(b"one")), (at(gap), packet(b"two")), (at(gap + 1), packet(b"3"))])
    };
    assert_eq!(flows(&packets(30_000)).unwrap().flows.len(), 1);
    let two = flows(&packets(30_001)).unwrap().flows;
    assert_eq!(two.iter().map(|flow| flow.first.as_slice()).collect::<Vec<_>>(), [b"one", b"two"]);
}

#[test]
fn a_tcp_beginning_is_put_together_in_order() {
    let orders: [&[(u32, &[u8])]; 5] = [
        &[(0, b"abcdefgh")],
        &[(0, b"abc"), (3, b"def"), (6, b"gh")],
        &[(6, b"gh"), (3, b"def"), (0, b"abc")],
        // Retransmitted, overlapping, and other bytes in a place that is known already.
        &[(0, b"abc"), (0, b"abcdef"), (2, b"????"), (5, b"fgh"), (0, b"abcdefgh")],
        // A keepalive probe stands before the beginning.
        &[(u32::MAX, b"?"), (0, b"abcdefgh"), (u32::MAX, b"?abc")],
    ];
    for segments in orders {
        for isn in [1000, u32::MAX - 4] {
            let flow = only(&usual(connection(isn, segments)));
            assert_eq!(flow.first, b"abcdefgh", "{segments:?}");
            let begins = segments.iter().find(|(place, _)| *place == 0).unwrap().1.len();
            assert_eq!((flow.first_length, flow.ip_length), (begins, 40 + begins), "{segments:?}");
            assert!(flow.from_start && flow.client == socket(CLIENT));
        }
    }
}

#[test]
fn a_gap_ends_what_is_known_and_enough_is_enough() {
    assert_eq!(only(&usual(connection(5, &[(0, b"ab"), (3, b"de")]))).first, b"ab");
    let long = vec![7; 2000];
    let flow = only(&usual(connection(5, &[(0, &long), (2000, &long), (4000, &long)])));
    assert_eq!((flow.first.len(), flow.first_length, flow.sent), (MAX_FIRST, 2000, 6000));
}

#[test]
fn segments_behind_a_gap_are_bounded() {
    let scattered: Vec<(u32, &[u8])> = (1..500).map(|n| (2 * n, b"x".as_slice())).collect();
    let flow = only(&usual(connection(5, &[scattered.as_slice(), &[(0, b"ab")]].concat())));
    assert_eq!(flow.first, b"abx");
}

#[test]
fn a_connection_without_its_syn_says_so() {
    let packets = connection(5, &[(0, b"hello")]);
    let late = only(&usual(packets[2..].to_vec()));
    assert_eq!((late.from_start, late.first.as_slice()), (false, b"".as_slice()));
    let answered = only(&usual(packets[1..].to_vec()));
    assert_eq!((answered.client, answered.first.as_slice()), (socket(CLIENT), b"hello".as_slice()));
    assert!(answered.from_start);
}

#[test]
fn a_port_that_is_used_again_is_another_connection_and_a_repeated_syn_is_not() {
    let mut packets = connection(5, &[(0, b"one")]);
    packets.insert(1, packets[0].clone());
    packets.extend(connection(70_000, &[(0, b"two")]));
    let found = flows(&usual(packets)).unwrap().flows;
    assert_eq!(found.iter().map(|flow| flow.first.as_slice()).collect::<Vec<_>>(), [b"one", b"two"]);
}

#[test]
fn what_cannot_be_used_is_counted() {
    let whole = frame(1, &udp(CLIENT, SERVER, b"hello"));
    let mut fragment = udp(CLIENT, SERVER, b"hello");
    fragment[6] = 0x20;
    let mut bytes = usual([fragment, vec![0x45; 20], udp(CLIENT, SERVER, b"fine")]);
    let mut out = Out::new(false);
    out.u32(1).u32(0).u32(40).u32(whole.len() as u32).raw(&whole[..40]).u32(5);
    let last = bytes.len() + 56;
    bytes.extend(out.bytes);

    let found = flows(&bytes).unwrap();

    assert_eq!((found.packets, found.ignored, found.cut, found.flows.len()), (4, 2, 1, 1));
    assert_eq!(found.truncated, Some(last));
}

/// A file, and what its flows are: transport, number, bytes of the first packet, and how it starts.
type Golden<'a> = (&'a [u8], Transport, usize, usize, &'a [u8]);

/// What tcpdump has captured of five starts of OpenVPN 2.6 each, and one of them as pcapng.
#[test]
fn captures_of_real_clients_are_read() {
    let captures: [Golden<'_>; 5] = [
        (include_bytes!("../../../../fuzz/seeds/capture-udp-tls-auth"), Transport::Udp, 5, 86, b"\x38"),
        (include_bytes!("../../../../fuzz/seeds/capture-udp-tls-crypt"), Transport::Udp, 5, 54, b"\x38"),
        (include_bytes!("../../../../fuzz/seeds/capture-tcp-tls-auth"), Transport::Tcp, 5, 88, b"\0\x56\x38"),
        (
            include_bytes!("../../../../fuzz/seeds/capture-tcp-tls-crypt"),
            Transport::Tcp,
            5,
            56,
            b"\0\x36\x38",
        ),
        (include_bytes!("../../../../fuzz/seeds/capture-pcapng"), Transport::Udp, 1, 54, b"\x38"),
    ];
    for (bytes, transport, count, length, start) in captures {
        let found = flows(bytes).unwrap();
        assert_eq!((found.flows.len(), found.ignored, found.truncated), (count, 0, None));
        for flow in &found {
            assert_eq!((flow.transport, flow.server), (transport, socket("127.0.0.1:443")));
            assert_eq!((flow.first_length, flow.first.len()), (length, length));
            assert!(flow.first.starts_with(start));
            let headers = if transport == Transport::Udp { 28 } else { 52 };
            assert_eq!((flow.ip_length, flow.tos), (length + headers, 0));
        }
    }
}

proptest! {
    #[test]
    fn any_cutting_and_order_gives_the_same_beginning(
        stream in prop::collection::vec(any::<u8>(), 1..400),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 1usize..200), 0..20),
        isn: u32,
        seed in any::<u64>(),
    ) {
        // The cuts overlap as they like; the last segments make the stream whole.
        let mut segments: Vec<(u32, &[u8])> = cuts.iter().map(|(start, len)| {
            let start = start.index(stream.len());
            (start as u32, &stream[start..(start + len).min(stream.len())])
        }).collect();
        let (a, b) = stream.split_at(stream.len() / 2);
        segments.push((0, a));
        segments.push((a.len() as u32, b));
        let len = segments.len();
        segments.rotate_left((seed % len as u64) as usize);

        let flow = only(&usual(connection(isn, &segments)));

        prop_assert_eq!(flow.first, stream);
    }

    #[test]
    fn random_frames_never_panic(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..10),
        good in any::<bool>(),
    ) {
        let mut packets: Vec<_> = frames;
        for packet in &mut packets {
            if good && packet.len() > 24 {
                let len = packet.len() as u16;
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&len.to_be_bytes());
                packet[6..8].fill(0);
                packet[9] = if packet[9] % 2 == 0 { 6 } else { 17 };
            }
            packet.push(0);
        }
        let bytes = usual(packets.clone());
        let found = flows(&bytes).unwrap();
        prop_assert_eq!(found.packets, packets.len() as u64);
        for flow in &found {
            prop_assert!(flow.first.len() <= bytes.len());
        }
    }
}
