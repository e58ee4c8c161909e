//! Probes that have a key.

use adit_openvpn::keyfile::{KeyFileFault, ServerKeyV2};
use adit_openvpn::wrap::Digest;
use adit_tunnel::Entropy;
use adit_tunnel::testing::TestRng;

use super::{CORPUS, WIREGUARD_PUBLIC, answer, counting, framed, keyed, taken};
use crate::{
    Answer, KeyFault, OpenVpnForm, OpenVpnKey, Probe, Rule, Table, Transport, Verdict, WireGuardKey,
};

fn full() -> bool {
    std::env::var("ADIT_SCALE").as_deref() == Ok("full")
}

fn table() -> Table<()> {
    let rules =
        keyed().into_iter().enumerate().map(|(n, identity)| Rule::new(n.to_string(), identity.probe, ()));
    Table::new(rules.collect()).unwrap()
}

#[test]
fn no_client_reaches_another_identity() {
    let each = if full() { 1_000_000 } else { 10_000 };
    let table = table();
    let identities = keyed();
    let mut rng = TestRng::new(1);
    let mut packet = Vec::new();
    for _ in 0..each {
        for (own, identity) in identities.iter().enumerate() {
            identity.first(&mut rng, &mut packet);
            assert_eq!(taken(&table, Transport::Udp, &packet, 1), Some(own));
        }
    }
    assert_eq!(table.counts().matched, vec![each; identities.len()]);
}

#[test]
fn a_stream_reaches_the_same_identity_as_a_datagram() {
    let table = table();
    for other in [&b"\x06"[..], b"\0\x35", b"\0\x36\x39", b"\x01\x61\x38", b"\x04\x37"] {
        assert!(matches!(table.judge(Transport::Tcp, other, 1, false), Verdict::Unknown), "{other:02x?}");
    }
    let mut rng = TestRng::new(2);
    let mut packet = Vec::new();
    for (own, identity) in keyed().iter().enumerate() {
        identity.first(&mut rng, &mut packet);
        let stream = framed(&packet);
        for len in 0..stream.len() {
            assert!(matches!(table.judge(Transport::Tcp, &stream[..len], 1, false), Verdict::Undecided));
        }
        assert_eq!(taken(&table, Transport::Tcp, &stream, 1), Some(own));
        assert_eq!(taken(&table, Transport::Tcp, &[&stream, &b"more"[..]].concat(), 1), Some(own));
    }
}

#[test]
fn no_strangers_datagram_verifies() {
    let mut keyed: Vec<_> = keyed().into_iter().map(|identity| identity.probe).collect();
    keyed.push(Probe::WireGuardKey(WireGuardKey::new(&WIREGUARD_PUBLIC)));
    let mut rng = TestRng::new(3);
    let shapes: [(&[u8], usize); 6] =
        [(&[0x38], 42), (&[0x38], 54), (&[0x38], 86), (&[0x50], 353), (&[1, 0, 0, 0], 148), (&[], 100)];
    let mut bytes = Vec::new();
    for round in 0..if full() { 10_000_000 } else { 100_000 } {
        let (first, len) = shapes[round % shapes.len()];
        bytes.resize(len, 0);
        rng.fill(&mut bytes);
        bytes[..first.len()].copy_from_slice(first);
        if len == 353 {
            bytes[351..].copy_from_slice(&299u16.to_be_bytes());
        }
        // What ends a tls-auth packet, so that its MAC is computed.
        if round % 2 == 0 && [42, 54, 86].contains(&len) {
            bytes[len - 5..].fill(0);
        }
        for probe in &keyed {
            assert_eq!(answer(probe, Transport::Udp, &bytes), Answer::No);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_first_packet_is_noticed() {
    let mut rng = TestRng::new(4);
    let mut packet = Vec::new();
    for identity in keyed() {
        identity.first(&mut rng, &mut packet);
        for bit in 0..packet.len() * 8 {
            packet[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(answer(&identity.probe, Transport::Udp, &packet), Answer::No, "bit {bit}");
            packet[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(answer(&identity.probe, Transport::Udp, &packet), Answer::Yes);
    }
}

#[test]
fn a_key_file_alone_recognises_stock_clients_in_every_way_it_may_be_used() {
    let any = OpenVpnKey::from_file(&counting().to_text(), OpenVpnForm::Any).unwrap();
    let v2 = ServerKeyV2::new(&std::array::from_fn(|at| 255 - at as u8));
    let v2 = OpenVpnKey::from_file(&v2.to_text(), OpenVpnForm::Any).unwrap();
    for (name, transport, _, bytes) in CORPUS {
        let expected = match name.split_once("openvpn-").map(|(_, kind)| kind) {
            Some("crypt-v2") => (false, true),
            Some("none") | None => (false, false),
            Some(_) => (true, false),
        };
        let yes =
            |key: &OpenVpnKey| answer(&Probe::OpenVpnKey(key.clone()), *transport, bytes) == Answer::Yes;
        assert_eq!((yes(&any), yes(&v2)), expected, "{name}");
    }
}

#[test]
fn a_socks_request_that_could_be_a_long_first_packet_is_told_when_no_more_comes() {
    let socks = || Rule::new("socks", "socks4".parse().unwrap(), ());
    let key = Rule::new("key", keyed().remove(9).probe, ());
    let (.., request) = CORPUS.iter().find(|(name, ..)| *name == "stream-socks4").unwrap();
    let table = Table::new(vec![socks(), key]).unwrap();
    assert!(matches!(table.judge(Transport::Tcp, request, 1, false), Verdict::Undecided));
    assert_eq!(taken(&table, Transport::Tcp, request, 1), Some(0));
    // By form no such packet is expected, so nothing is waited for.
    let form = Rule::new("form", "openvpn".parse().unwrap(), ());
    let table = Table::new(vec![form, socks()]).unwrap();
    assert!(
        matches!(table.judge(Transport::Tcp, request, 1, false), Verdict::Matched(found) if found.index == 1)
    );
}

#[test]
fn a_key_is_used_only_as_told() {
    let text = counting().to_text();
    for (form, known) in [
        (OpenVpnForm::TlsCrypt, &["crypt"][..]),
        (OpenVpnForm::TlsAuth(None), &["auth-sha1", "auth-sha256", "auth-sha512-both"]),
        (OpenVpnForm::TlsAuth(Some(Digest::Sha256)), &["auth-sha256"]),
    ] {
        let probe = Probe::OpenVpnKey(OpenVpnKey::from_file(&text, form).unwrap());
        for (name, transport, _, bytes) in CORPUS {
            let yes = name.split_once("openvpn-").is_some_and(|(_, kind)| known.contains(&kind));
            assert_eq!(answer(&probe, *transport, bytes), Answer::whether(yes), "{form} of {name}");
        }
    }
}

#[test]
fn a_file_without_the_key_that_is_needed_is_refused_with_the_reason() {
    let refused = |text: &str, form| OpenVpnKey::from_file(text, form).unwrap_err();
    assert_eq!(refused("", OpenVpnForm::Plain), KeyFault::Plain);
    let static_key = counting().to_text();
    let server_key = ServerKeyV2::new(&[1; 128]).to_text();
    for (text, form) in [
        (static_key.as_str(), OpenVpnForm::TlsCryptV2),
        (server_key.as_str(), OpenVpnForm::TlsCrypt),
        ("nothing", OpenVpnForm::Any),
    ] {
        let KeyFault::File { fault: KeyFileFault::NoBlock(_), .. } = refused(text, form) else {
            panic!("{form}")
        };
    }
    let damaged = server_key.replace("AQEB", "!!!!");
    let fault = refused(&damaged, OpenVpnForm::Any);
    assert_eq!(fault.to_string(), "no key for \"openvpn\": the key between the markers is damaged");
}

#[test]
fn mac1_is_verified_as_specified() {
    // The packet's mac1 was computed by another implementation of keyed BLAKE2s.
    let (.., bytes) = CORPUS.iter().find(|(name, ..)| *name == "datagram-wireguard").unwrap();
    let own = Probe::WireGuardKey(WireGuardKey::new(&WIREGUARD_PUBLIC));
    let mut public = WIREGUARD_PUBLIC;
    public[31] ^= 1;
    let other = Probe::WireGuardKey(WireGuardKey::new(&public));
    assert_eq!(answer(&own, Transport::Udp, bytes), Answer::Yes);
    assert_eq!(answer(&other, Transport::Udp, bytes), Answer::No);
    for bit in 0..132 * 8 {
        let mut bad = bytes.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(answer(&own, Transport::Udp, &bad), Answer::No, "bit {bit}");
    }
    // mac2 is the server's business.
    let mut cookied = bytes.to_vec();
    cookied[140] = 1;
    assert_eq!(answer(&own, Transport::Udp, &cookied), Answer::Yes);
}

#[test]
fn keys_do_not_show_in_debug_output() {
    let key = OpenVpnKey::from_file(&counting().to_text(), OpenVpnForm::Any).unwrap();
    let probes = (Probe::OpenVpnKey(key.clone()), Probe::WireGuardKey(WireGuardKey::new(&[7; 32])));
    assert_eq!(format!("{probes:?}"), "(OpenVpnKey(OpenVpnKey(..)), WireGuardKey(WireGuardKey(..)))");
    assert_eq!(key.to_string(), "openvpn tls-crypt or tls-auth key");
}
