//! The corpus and what the tests share.

mod forms;
mod keys;
mod names;
mod properties;
mod tables;

use adit_openvpn::Role;
use adit_openvpn::keyfile::{ServerKeyV2, StaticKey};
use adit_openvpn::packet::{Body, Head, KeyId, Opcode, SessionId};
use adit_openvpn::wkc::{Metadata, Unwrapper};
use adit_openvpn::wrap::{Digest, Direction, PacketNumber, WrapKeys};
use adit_tunnel::testing::TestRng;

use crate::{Answer, Probe, Protocol, Table, Transport, Verdict};

/// A genuine beginning: name, transport, named probes that say Yes to it (of one protocol), bytes.
pub(crate) type Genuine = (&'static str, Transport, &'static [&'static str], &'static [u8]);

macro_rules! corpus {
    ($($transport:ident $name:literal $probes:expr,)*) => {
        &[$((
            $name,
            Transport::$transport,
            &$probes,
            include_bytes!(concat!("../../../../../fuzz/seeds/", $name)),
        )),*]
    };
}

/// OpenVPN, TLS, DTLS, SSH, HTTP, SOCKS, PROXY 1 and DNS were recorded from stock programs (OpenVPN 2.6,
/// OpenSSL 3.0, OpenSSH 9.2, curl 7.88, glibc); the others made by an independent program after their
/// specifications.
pub(crate) const CORPUS: &[Genuine] = corpus![
    Udp "datagram-openvpn-none" ["openvpn", "openvpn none"],
    Udp "datagram-openvpn-auth-sha1" ["openvpn", "openvpn tls-auth", "openvpn tls-auth auth=SHA1"],
    Udp "datagram-openvpn-auth-sha256" ["openvpn", "openvpn tls-auth", "openvpn tls-auth auth=SHA256"],
    Udp "datagram-openvpn-auth-sha512-both" ["openvpn", "openvpn tls-auth", "openvpn tls-auth auth=SHA512"],
    Udp "datagram-openvpn-crypt" ["openvpn", "openvpn tls-crypt"],
    Udp "datagram-openvpn-crypt-v2" ["openvpn", "openvpn tls-crypt-v2"],
    Udp "datagram-wireguard" ["wireguard"],
    Udp "datagram-quic-v1" ["quic"],
    Udp "datagram-quic-v2" ["quic"],
    Udp "datagram-dtls12" ["dtls"],
    Udp "datagram-stun" ["stun"],
    Udp "datagram-dns" ["dns"],
    Udp "datagram-dns-edns" ["dns"],
    Udp "datagram-ike-v1" ["ike"],
    Udp "datagram-ike-v2" ["ike"],
    Udp "datagram-ike-v2-natt" ["ike"],
    Tcp "stream-openvpn-none" ["openvpn", "openvpn none"],
    Tcp "stream-openvpn-auth-sha1" ["openvpn", "openvpn tls-auth", "openvpn tls-auth auth=SHA1"],
    Tcp "stream-openvpn-auth-sha256" ["openvpn", "openvpn tls-auth", "openvpn tls-auth auth=SHA256"],
    Tcp "stream-openvpn-auth-sha512-both" ["openvpn", "openvpn tls-auth", "openvpn tls-auth auth=SHA512"],
    Tcp "stream-openvpn-crypt" ["openvpn", "openvpn tls-crypt"],
    Tcp "stream-openvpn-crypt-v2" ["openvpn", "openvpn tls-crypt-v2"],
    Tcp "stream-tls-openssl" [
        "tls",
        "tls sni=vpn.example.com",
        "tls sni=*.example.com alpn=h2",
        "tls alpn=http/1.1",
    ],
    Tcp "stream-tls-small-records" ["tls", "tls sni=vpn.example.com"],
    Tcp "stream-tls-bare" ["tls"],
    Tcp "stream-tls-curl" ["tls", "tls sni=www.example.org alpn=h2"],
    Tcp "stream-ssh" ["ssh"],
    Tcp "stream-http" ["http"],
    Tcp "stream-http2" ["http"],
    Tcp "stream-http-connect" ["http"],
    Tcp "stream-socks4" ["socks4"],
    Tcp "stream-socks4a" ["socks4"],
    Tcp "stream-socks5" ["socks5"],
    Tcp "stream-socks5-auth" ["socks5"],
    Tcp "stream-proxy1" ["proxy"],
    Tcp "stream-proxy2" ["proxy"],
];

pub(crate) fn probe(name: &str) -> Probe {
    name.parse().unwrap()
}

/// One probe for each protocol.
pub(crate) fn protocols() -> Vec<Probe> {
    let mut all = vec![probe("openvpn"), probe("tls")];
    all.extend(Protocol::ALL.map(Probe::Form));
    all
}

/// Every probe there is but `any`, with several of each kind that has conditions.
pub(crate) fn probes() -> Vec<Probe> {
    let names = CORPUS.iter().flat_map(|(_, _, names, _)| names.iter().map(|name| probe(name)));
    let mut all: Vec<_> = names.chain([probe("silence"), probe("tls sni=*.org")]).collect();
    all.extend(keyed().into_iter().map(|identity| identity.probe));
    all.push(Probe::WireGuardKey(crate::WireGuardKey::new(&WIREGUARD_PUBLIC)));
    let pattern = |pattern: Result<crate::Pattern, crate::PatternFault>| Probe::Pattern(pattern.unwrap());
    all.push(pattern(crate::Pattern::tcp_length(88)));
    all.push(pattern(crate::Pattern::tcp_length(56).and_then(|p| p.with_first(0x38))));
    all.push(pattern(crate::Pattern::udp_length(86).and_then(|p| p.with_first(0x38))));
    all.push(pattern(crate::Pattern::bytes(3, b"\xff\x0f", b"G\x02")));
    all
}

pub(crate) fn answer(probe: &Probe, transport: Transport, bytes: &[u8]) -> Answer {
    probe.answer(transport, bytes, false)
}

/// The index of the rule that takes a flow; `None` when nobody does.
pub(crate) fn taken<T>(table: &Table<T>, transport: Transport, bytes: &[u8], port: u16) -> Option<usize> {
    match table.judge(transport, bytes, port, true) {
        Verdict::Matched(found) => Some(found.index),
        Verdict::Unknown => None,
        Verdict::Undecided => panic!("undecided, though no more comes"),
    }
}

/// The key of the packets in the corpus: bytes 00 to ff.
pub(crate) fn counting() -> StaticKey {
    StaticKey::new(&std::array::from_fn(|at| at as u8))
}

pub(crate) const WIREGUARD_PUBLIC: [u8; 32] = [
    0xc5, 0xd8, 0xa1, 0xb2, 0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc,
    0xdd, 0xee, 0xff, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67,
];

/// An OpenVPN identity: the server's probe, and how its clients protect their first packets.
pub(crate) struct Identity {
    pub(crate) probe: Probe,
    client: WrapKeys,
    wrapped: Option<Vec<u8>>,
}

/// Ten identities of all kinds; of most kinds two that differ only in their keys.
pub(crate) fn keyed() -> Vec<Identity> {
    use crate::OpenVpnKey;
    use adit_openvpn::gate::IdentityWrap;

    let shared = |server: WrapKeys, client| Identity {
        probe: Probe::OpenVpnKey(OpenVpnKey::of_identity(&IdentityWrap::Shared(server)).unwrap()),
        client,
        wrapped: None,
    };
    let crypt = |n: u8| {
        let key = StaticKey::new(&[n; 256]);
        shared(WrapKeys::tls_crypt(&key, Role::Server), WrapKeys::tls_crypt(&key, Role::Client))
    };
    let auth = |n: u8, digest| {
        let key = StaticKey::new(&std::array::from_fn(|at| n ^ at as u8));
        shared(
            WrapKeys::tls_auth(&key, digest, Direction::Normal),
            WrapKeys::tls_auth(&key, digest, Direction::Inverse),
        )
    };
    let per_client = |n: u8| {
        let unwrapper = Unwrapper::new(&ServerKeyV2::new(&[n; 128]));
        let client = unwrapper.seal(&StaticKey::new(&[n ^ 0x55; 256]), &Metadata::Timestamp(1));
        Identity {
            probe: Probe::OpenVpnKey(OpenVpnKey::of_identity(&IdentityWrap::PerClient(unwrapper)).unwrap()),
            client: WrapKeys::tls_crypt(&client.key, Role::Client),
            wrapped: Some(client.wrapped),
        }
    };
    vec![
        crypt(1),
        crypt(2),
        crypt(3),
        auth(4, Digest::Sha1),
        auth(5, Digest::Sha256),
        auth(6, Digest::Sha256),
        auth(7, Digest::Sha512),
        auth(8, Digest::Sha512),
        per_client(9),
        per_client(10),
    ]
}

impl Identity {
    /// A client's first packet, different each time.
    pub(crate) fn first(&self, rng: &mut TestRng, out: &mut Vec<u8>) {
        let opcode =
            if self.wrapped.is_some() { Opcode::HardResetClientV3 } else { Opcode::HardResetClientV2 };
        let session = SessionId::from_random(rng.next_u64().to_be_bytes());
        let number = PacketNumber { id: rng.next_u64() as u32, time: rng.next_u64() as u32 };
        let body = Body { acks: [].into_iter().collect(), acked_session: None, id: Some(0), payload: &[] };
        let mut bytes = Vec::new();
        body.write(&mut bytes);
        self.client.wrap(&Head { opcode, key: KeyId::FIRST, session }, number, &bytes, out);
        out.extend(self.wrapped.iter().flatten());
    }
}

/// As it stands in a TCP stream.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    [&(packet.len() as u16).to_be_bytes(), packet].concat()
}

/// How often a random test is repeated: `quick`, or more with `PROPTEST_CASES`.
pub(crate) fn repetitions(quick: usize) -> usize {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse::<usize>().ok());
    cases.map_or(quick, |cases| quick.max(cases * 50))
}
