//! Genuine beginnings, and what is nearly one.

use super::{CORPUS, answer, framed, probe, protocols};
use crate::{Answer, Transport};

fn genuine(name: &str) -> &'static [u8] {
    CORPUS.iter().find(|(known, ..)| *known == name).unwrap().3
}

fn udp(name: &str, bytes: &[u8]) -> Answer {
    answer(&probe(name), Transport::Udp, bytes)
}

fn tcp(name: &str, bytes: &[u8]) -> Answer {
    answer(&probe(name), Transport::Tcp, bytes)
}

#[test]
fn each_genuine_beginning_is_known_by_its_own_probes_and_by_no_other() {
    let mut all: Vec<&str> = CORPUS.iter().flat_map(|(_, _, names, _)| names.iter().copied()).collect();
    all.extend([
        "tls sni=example.com",
        "tls sni=*.vpn.example.com",
        "tls alpn=h3",
        "tls sni=*.example.com alpn=h3",
    ]);
    all.extend(["openvpn tls-auth auth=SHA384", "silence"]);
    for (beginning, transport, own, bytes) in CORPUS {
        for name in &all {
            // What was recorded differs in how much TLS clients ask for; its own conditions are tested below.
            let expected = if own.contains(name) { Answer::Yes } else { Answer::No };
            let tls = name.starts_with("tls ") && own.contains(&"tls");
            if !tls || own.contains(name) {
                assert_eq!(answer(&probe(name), *transport, bytes), expected, "{name} of {beginning}");
            }
        }
    }
}

#[test]
fn no_genuine_beginning_is_known_by_two_protocols_and_none_on_the_wrong_transport() {
    for (beginning, transport, _, bytes) in CORPUS {
        let yes = |transport| {
            protocols().into_iter().filter(|probe| answer(probe, transport, bytes) == Answer::Yes).count()
        };
        assert_eq!(yes(*transport), 1, "{beginning}");
        let other = if *transport == Transport::Udp { Transport::Tcp } else { Transport::Udp };
        assert_eq!(yes(other), 0, "{beginning} over {other}");
    }
}

#[test]
fn what_contradicts_a_protocol_is_refused_at_once() {
    let cases: [(&str, &[u8]); 14] = [
        ("tls", b"\x16\x02"),
        ("tls", b"\x16\x03\x01\x40\x01"),
        ("tls", b"\x16\x03\x01\x00\x00"),
        ("tls", b"\x16\x03\x01\x02\x00\x02"),
        ("ssh", b"SSH-1.5"),
        ("http", b"Ge"),
        ("http", b"PROX"),
        ("http", b"PRI * HTTP/1"),
        ("socks4", b"\x04\x03"),
        ("socks5", b"\x05\x00"),
        ("proxy", b"PROXY UD"),
        ("proxy", b"\r\n\r\n\0\r\nQUIT\n\x22"),
        ("openvpn", b"\x00\x0f"),
        ("openvpn", b"\x00\x0e\x39"),
    ];
    for (name, bytes) in cases {
        assert_eq!(tcp(name, bytes), Answer::No, "{name} {bytes:02x?}");
        assert_eq!(tcp(name, &bytes[..bytes.len() - 1]), Answer::More, "{name} {bytes:02x?} before");
    }
}

#[test]
fn a_datagram_of_the_wrong_length_or_version_is_none_of_a_protocol() {
    let change = |name: &str, at: usize, value: u8| {
        let mut bytes = genuine(name).to_vec();
        bytes[at] = value;
        bytes
    };
    for (beginning, transport, _, bytes) in CORPUS.iter().filter(|(_, t, ..)| *t == Transport::Udp) {
        // A shorter or longer one is none; DTLS may have further records, EDNS further options.
        let shorter = &bytes[..bytes.len() - 1];
        let yes =
            protocols().iter().filter(|probe| answer(probe, *transport, shorter) == Answer::Yes).count();
        assert_eq!(yes, 0, "{beginning} without its last byte");
    }
    assert_eq!(udp("quic", &change("datagram-quic-v1", 4, 2)), Answer::No);
    assert_eq!(udp("quic", &change("datagram-quic-v1", 0, 0xe3)), Answer::No);
    assert_eq!(udp("quic", &change("datagram-quic-v1", 5, 7)), Answer::No);
    assert_eq!(udp("quic", &change("datagram-quic-v1", 14, 21)), Answer::No);
    assert_eq!(udp("dtls", &change("datagram-dtls12", 4, 1)), Answer::No);
    assert_eq!(udp("dtls", &change("datagram-dtls12", 13, 2)), Answer::No);
    assert_eq!(udp("stun", &change("datagram-stun", 0, 1)), Answer::No);
    assert_eq!(udp("stun", &change("datagram-stun", 4, 0x20)), Answer::No);
    assert_eq!(udp("dns", &change("datagram-dns", 2, 0x81)), Answer::No);
    assert_eq!(udp("dns", &change("datagram-dns", 5, 2)), Answer::No);
    assert_eq!(udp("dns", &change("datagram-dns", 12, 0xc0)), Answer::No);
    assert_eq!(udp("ike", &change("datagram-ike-v2", 17, 0x30)), Answer::No);
    assert_eq!(udp("ike", &change("datagram-ike-v2", 18, 35)), Answer::No);
    assert_eq!(udp("ike", &change("datagram-ike-v2", 9, 1)), Answer::No);
    assert_eq!(udp("ike", &change("datagram-ike-v1", 19, 1)), Answer::No);
    assert_eq!(udp("wireguard", &change("datagram-wireguard", 1, 1)), Answer::No);
    for greased in [[0x1a, 0x2a, 0x3a, 0x4a], [0xff, 0, 0, 0x1d]] {
        let mut bytes = genuine("datagram-quic-v1").to_vec();
        bytes[1..5].copy_from_slice(&greased);
        assert_eq!(udp("quic", &bytes), Answer::Yes);
    }
}

#[test]
fn first_packets_of_openvpn_have_exact_lengths_and_constants() {
    for (_, transport, own, bytes) in CORPUS.iter().filter(|(_, _, own, _)| own.contains(&"openvpn")) {
        let base = if *transport == Transport::Tcp { 2 } else { 0 };
        let last = bytes.len() - 1;
        let mut wrong = vec![(base, 0x40), (base, bytes[base] | 1)];
        match own[1] {
            "openvpn none" => wrong.extend([(base + 9, 1), (last, 1)]),
            "openvpn tls-auth" => wrong.extend([(last, 1), (last - 12, 1), (last - 9, 0)]),
            "openvpn tls-crypt" => wrong.extend([(base + 9, 1), (base + 12, 0)]),
            _ => wrong.extend([(base + 9, 1), (base + 11, 1), (base + 12, 0), (last, bytes[last] ^ 1)]),
        }
        for (at, value) in wrong {
            let mut bytes = bytes.to_vec();
            bytes[at] = value;
            assert_eq!(answer(&probe(own[0]), *transport, &bytes), Answer::No, "{} at {at}", own[1]);
        }
        let mut sessionless = bytes.to_vec();
        sessionless[base + 1..base + 9].fill(0);
        assert_eq!(answer(&probe(own[0]), *transport, &sessionless), Answer::No);
    }
}

#[test]
fn tls_auth_without_a_digest_takes_the_old_ones_too() {
    for mac in [16, 28] {
        let mut packet = [&[0x38][..], &[7; 8], &vec![9; mac], &[0, 0, 0, 1], &[0x65; 4], &[0; 5]].concat();
        assert_eq!(udp("openvpn tls-auth", &packet), Answer::Yes);
        assert_eq!(udp("openvpn tls-auth auth=SHA1", &packet), Answer::No);
        assert_eq!(tcp("openvpn", &framed(&packet)), Answer::Yes);
        packet.insert(9, 9);
        assert_eq!(udp("openvpn tls-auth", &packet), Answer::No);
    }
}

#[test]
fn a_query_for_a_name_whose_id_looks_like_an_opcode_stays_a_query() {
    let mut query = genuine("datagram-dns").to_vec();
    // 54 bytes, as a first packet of tls-crypt.
    query.splice(12..12, [&[20][..], &[b'x'; 20]].concat());
    query[0] = 0x38;
    assert_eq!(query.len(), 54);
    assert_eq!(udp("dns", &query), Answer::Yes);
    assert_eq!(udp("openvpn", &query), Answer::No);
}

/// Zeros, with bytes put in at their places.
fn made(len: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

#[test]
fn what_fits_two_protocols_but_for_the_conditions_between_them_is_one_of_them() {
    // A message of IKE from its 17th byte on; what is before has zeros in bytes 8 to 15.
    let ike = |len: u16| [&[33, 0x20, 34, 8][..], &[0; 6], &len.to_be_bytes()].concat();
    let cases = [
        ("ike", made(54, &[(0, &[0x38, 1, 2, 3]), (16, &ike(54)), (44, &[1])])),
        ("ike", made(148, &[(0, &[1, 0, 0, 0, 9]), (16, &ike(148))])),
        ("ike", made(1200, &[(0, &[0xc3, 0, 0, 0, 1, 8, 9, 9]), (16, &ike(1200))])),
        ("ike", made(148, &[(0, &[0, 1, 0, 128, 0x21, 0x12, 0xa4, 0x42]), (16, &ike(148))])),
        ("dns", made(148, &[(0, &[1]), (5, &[1]), (12, &[63]), (76, &[63]), (140, &[2]), (145, &[1, 0, 1])])),
    ];
    for (name, bytes) in cases {
        for probe in protocols() {
            let expected = Answer::whether(probe.to_string() == name);
            assert_eq!(answer(&probe, Transport::Udp, &bytes), expected, "{probe}: {bytes:02x?}");
        }
        // Each fits the other protocol as well once the zeros, or the counts, are gone.
        let mut other = bytes;
        other[8..16].fill(if name == "dns" { 0xee } else { 5 });
        other[14] = 0;
        let yes =
            protocols().iter().filter(|probe| answer(probe, Transport::Udp, &other) == Answer::Yes).count();
        assert_eq!(yes, 1, "{other:02x?}");
        assert_eq!(udp(name, &other), Answer::No);
    }
    let unused = made(20, &[(4, &[0x21, 0x12, 0xa4, 0x42, 1])]);
    assert_eq!(udp("stun", &unused), Answer::No, "method 0");
}

#[test]
fn conditions_of_tls_hold_for_the_names_and_protocols_that_are_asked_for() {
    let hello = genuine("stream-tls-openssl");
    for (condition, holds) in [
        ("tls sni=VPN.Example.COM", true),
        ("tls sni=*.Example.com", true),
        ("tls sni=*.com alpn=http/1.1", true),
        ("tls sni=example.com", false),
        ("tls sni=*.vpn.example.com", false),
        ("tls sni=*.pn.example.com", false),
        ("tls sni=vpn.example.co", false),
        ("tls alpn=h3", false),
        ("tls alpn=http/1", false),
        ("tls sni=vpn.example.com alpn=h3", false),
    ] {
        let expected = if holds { Answer::Yes } else { Answer::No };
        assert_eq!(tcp(condition, hello), expected, "{condition}");
    }
    let bare = genuine("stream-tls-bare");
    assert_eq!((tcp("tls sni=a.b", bare), tcp("tls alpn=h2", bare)), (Answer::No, Answer::No));
}

#[test]
fn a_name_is_found_however_the_hello_is_cut_into_records() {
    let hello = genuine("stream-tls-openssl");
    for size in [1, 2, 3, 7, 50, 200, 333] {
        let mut cut = Vec::new();
        for piece in hello[5..].chunks(size) {
            cut.extend([0x16, 3, 1]);
            cut.extend((piece.len() as u16).to_be_bytes());
            cut.extend(piece);
        }
        assert_eq!(tcp("tls", &cut), Answer::Yes, "{size}");
        assert_eq!(tcp("tls sni=vpn.example.com alpn=h2", &cut), Answer::Yes, "{size}");
        assert_eq!(tcp("tls sni=www.example.com", &cut), Answer::No, "{size}");
    }
}

#[test]
fn a_hello_without_an_end_is_decided_when_enough_was_looked_at() {
    let mut hello = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3];
    hello.extend([0; 32]);
    hello.extend([0, 0, 2, 0x13, 1, 1, 0, 0x3f, 0]);
    hello.extend([0xff, 1, 0x3e, 0]);
    hello.resize(crate::LOOKS_AT - 1, 0);
    assert_eq!(tcp("tls", &hello), Answer::Yes);
    assert_eq!(tcp("tls sni=a.b", &hello), Answer::More);
    hello.push(0);
    assert_eq!(tcp("tls sni=a.b", &hello), Answer::No);
    hello.resize(20_000, 0);
    assert_eq!(tcp("tls sni=a.b", &hello), Answer::No);
}

#[test]
fn socks_requests_end_where_they_say() {
    let named = [b"\x04\x01\x00\x50\xc0\x00\x02\x01".as_slice(), &[b'a'; 255]].concat();
    assert_eq!(tcp("socks4", &named), Answer::More);
    assert_eq!(tcp("socks4", &[&named[..], &[0]].concat()), Answer::Yes);
    assert_eq!(tcp("socks4", &[&named[..], b"a"].concat()), Answer::No);
    assert_eq!(tcp("socks4", b"\x04\x01\x00\x50\xc0\x00\x02\x01\x01"), Answer::No);
    assert_eq!(tcp("socks5", b"\x05\x02\x00\xff"), Answer::No);
    assert_eq!(tcp("socks5", &[&[5, 255][..], &[0; 254]].concat()), Answer::More);
    assert_eq!(tcp("socks5", &[&[5, 255][..], &[0; 255]].concat()), Answer::Yes);
}

#[test]
fn patterns_hold_for_exact_lengths_and_masked_bytes() {
    use crate::{Pattern, PatternFault, Probe};
    let rsa_tcp = Probe::Pattern(Pattern::tcp_length(88).unwrap());
    let rsa_udp = Probe::Pattern(Pattern::udp_length(86).unwrap().with_first(0x38).unwrap());
    for (name, transport, _, bytes) in CORPUS {
        let expected = |own| Answer::whether(*name == own);
        assert_eq!(
            answer(&rsa_tcp, *transport, bytes),
            expected("stream-openvpn-auth-sha512-both"),
            "{name}"
        );
        assert_eq!(
            answer(&rsa_udp, *transport, bytes),
            expected("datagram-openvpn-auth-sha512-both"),
            "{name}"
        );
    }
    let first = Probe::Pattern(Pattern::tcp_length(88).unwrap().with_first(0x39).unwrap());
    assert_eq!(answer(&first, Transport::Tcp, b"\x00\x56\x38"), Answer::No);
    assert_eq!(answer(&first, Transport::Tcp, b"\x00\x56\x39"), Answer::More);
    let masked = Probe::Pattern(Pattern::bytes(1, &[0xf0, 0xff], &[0x40, 7]).unwrap());
    for transport in Transport::BOTH {
        assert_eq!(answer(&masked, transport, b"x\x4f\x07"), Answer::Yes);
        assert_eq!(answer(&masked, transport, b"x\x5f\x07"), Answer::No);
    }
    assert_eq!(answer(&masked, Transport::Udp, b"x\x4f"), Answer::No);
    assert_eq!(answer(&masked, Transport::Tcp, b"x\x4f"), Answer::More);

    assert_eq!(Pattern::tcp_length(2), Err(PatternFault::Length(2)));
    assert_eq!(Pattern::tcp_length(3073), Err(PatternFault::Length(3073)));
    assert_eq!(Pattern::udp_length(65_528), Err(PatternFault::Length(65_528)));
    assert_eq!(Pattern::bytes(3071, &[1, 1], &[1, 1]), Err(PatternFault::Offset(3071, 3072)));
    assert_eq!(Pattern::bytes(usize::MAX, &[1], &[1]), Err(PatternFault::Offset(usize::MAX, usize::MAX - 1)));
    assert_eq!(Pattern::bytes(0, &[], &[]), Err(PatternFault::Sizes(0, 0)));
    assert_eq!(Pattern::bytes(5, &[0xff, 0x0f], &[1, 0x10]), Err(PatternFault::Never(6)));
}
