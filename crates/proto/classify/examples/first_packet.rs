//! How long a verdict takes: `cargo run --release -p adit-classify --example first_packet`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the figures are the program's purpose")]
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::hint::black_box;
use std::time::Instant;

use adit_classify::{OpenVpnKey, Probe, Rule, Table, Transport};
use adit_openvpn::Role;
use adit_openvpn::gate::IdentityWrap;
use adit_openvpn::keyfile::{ServerKeyV2, StaticKey};
use adit_openvpn::packet::{Head, KeyId, Opcode, SessionId};
use adit_openvpn::wkc::{Metadata, Unwrapper};
use adit_openvpn::wrap::{Digest, Direction, PacketNumber, WrapKeys};

/// Judgements whose mean is one sample, and samples whose median is printed.
const BATCH: u32 = 100;
const SAMPLES: usize = 2001;

/// How an identity protects first packets: the server's side, a client's, and the client's wrapped key.
fn identity(n: u8) -> (IdentityWrap, WrapKeys, Vec<u8>) {
    let key = StaticKey::new(&[n; 256]);
    let auth = |digest| {
        let server = WrapKeys::tls_auth(&key, digest, Direction::Normal);
        (IdentityWrap::Shared(server), WrapKeys::tls_auth(&key, digest, Direction::Inverse), Vec::new())
    };
    match n {
        0..=2 => {
            let server = WrapKeys::tls_crypt(&key, Role::Server);
            (IdentityWrap::Shared(server), WrapKeys::tls_crypt(&key, Role::Client), Vec::new())
        }
        3 => auth(Digest::Sha1),
        4 | 5 => auth(Digest::Sha256),
        6 | 7 => auth(Digest::Sha512),
        _ => {
            let unwrapper = Unwrapper::new(&ServerKeyV2::new(&[n; 128]));
            let client = unwrapper.seal(&key, &Metadata::Timestamp(1));
            (IdentityWrap::PerClient(unwrapper), WrapKeys::tls_crypt(&key, Role::Client), client.wrapped)
        }
    }
}

fn first(client: &WrapKeys, wrapped: &[u8]) -> Vec<u8> {
    let opcode = if wrapped.is_empty() { Opcode::HardResetClientV2 } else { Opcode::HardResetClientV3 };
    let head = Head { opcode, key: KeyId::FIRST, session: SessionId::from_random([7; 8]) };
    let mut packet = Vec::new();
    client.wrap(&head, PacketNumber { id: 1, time: 1_800_000_000 }, &[0; 5], &mut packet);
    packet.extend(wrapped);
    packet
}

/// Median time of one judgement, in nanoseconds.
fn measure(table: &Table<u8>, transport: Transport, bytes: &[u8]) -> u128 {
    let mut samples: Vec<u128> = (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..BATCH {
                let _ = black_box(table.judge(transport, black_box(bytes), 443, false));
            }
            start.elapsed().as_nanos() / u128::from(BATCH)
        })
        .collect();
    samples.sort_unstable();
    samples.get(SAMPLES / 2).copied().unwrap_or_default()
}

fn main() {
    let identities: Vec<_> = (0..10).map(identity).collect();
    let rules = identities.iter().zip(0..).filter_map(|((server, ..), n)| {
        Some(Rule::new(format!("identity {n}"), Probe::OpenVpnKey(OpenVpnKey::of_identity(server)?), n))
    });
    let keys = Table::new(rules.clone().collect()).expect("a table");
    let mut all: Vec<_> = rules.collect();
    let names = [
        "openvpn",
        "tls sni=*.example.com",
        "tls",
        "ssh",
        "http",
        "wireguard",
        "quic",
        "dtls",
        "stun",
        "dns",
        "ike",
    ];
    all.extend(names.map(|name| Rule::new(name, name.parse().expect("a name"), 0)));
    let all = Table::new(all).expect("a table");

    println!("ns per datagram (median)            10 keys   10 keys and 11 forms");
    let show = |what: &str, bytes: &[u8]| {
        let [few, many] = [&keys, &all].map(|table| measure(table, Transport::Udp, bytes));
        println!("{what:34} {few:8} {many:8}");
    };
    for (n, (_, client, wrapped)) in identities.iter().enumerate() {
        let wrap = if wrapped.is_empty() { client.name() } else { "tls-crypt-v2" };
        let packet = first(client, wrapped);
        show(&format!("identity {n}, {wrap}, {} bytes", packet.len()), &packet);
    }
    let stranger = |n| StaticKey::new(&[n; 256]);
    show("foreign tls-crypt", &first(&WrapKeys::tls_crypt(&stranger(99), Role::Client), &[]));
    let foreign = Unwrapper::new(&ServerKeyV2::new(&[99; 128])).seal(&stranger(98), &Metadata::Timestamp(1));
    show("foreign tls-crypt-v2", &first(&WrapKeys::tls_crypt(&stranger(98), Role::Client), &foreign.wrapped));
    let mut longest = foreign.wrapped;
    longest.resize(1022, 1);
    longest.extend([4, 0]);
    show(
        "foreign tls-crypt-v2, longest",
        &first(&WrapKeys::tls_crypt(&stranger(98), Role::Client), &longest),
    );
    for (what, bytes) in [
        ("no key by length (0x38, 60 bytes)", &[&[0x38][..], &[9; 59]].concat()),
        ("no key by opcode (1200 bytes)", &vec![0xc1; 1200]),
        ("no key by opcode (data, 100 bytes)", &vec![0x48; 100]),
        ("one byte", &vec![0x38]),
    ] {
        show(what, bytes);
    }
    println!("ns per TCP beginning");
    let hello = include_bytes!("../../../../fuzz/seeds/stream-tls-openssl");
    for (what, bytes) in [
        ("TLS hello, name matches", &hello[..]),
        ("half a TLS hello", &hello[..100]),
        ("HTTP", b"GET / HTTP"),
    ] {
        println!(
            "{what:34} {:8} {:8}",
            measure(&keys, Transport::Tcp, bytes),
            measure(&all, Transport::Tcp, bytes)
        );
    }
}
