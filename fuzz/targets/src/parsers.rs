//! Parsers of strangers' bytes.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;

use adit_gateway::config;
use adit_openvpn::Role;
use adit_openvpn::data::{Channel, ChannelOptions, Cipher, Compression, DataKey, ReplayOptions};
use adit_openvpn::gate::{Gate, GateOptions, IdentityId, IdentityWrap, Moment, Verdict};
use adit_openvpn::kex::KeyMessage;
use adit_openvpn::keyfile::{ClientKeyV2, ServerKeyV2, StaticKey};
use adit_openvpn::packet::{Body, HEAD_LEN, Head, KeyId, Opcode, asks_for_wkc};
use adit_openvpn::peer_info::PeerInfo;
use adit_openvpn::profile::Profile;
use adit_openvpn::push::{Collector, PushOption, bundle};
use adit_openvpn::text::Splitter;
use adit_openvpn::tls::TlsSource;
use adit_openvpn::wkc::{self, Metadata, Unwrapper};
use adit_openvpn::wrap::{Digest, Direction, WrapKeys};
use adit_pki::{Authority, Certificate, Crl, KeyKind, Leaf, PrivateKey, Request, Signer, UnixTime};
use adit_plan::eduvpn::{Protocol, Rules};
use adit_plan::ports::PortSet;
use adit_tls::{Identity, ServerSettings, ServerTls, Trust};
use adit_tunnel::{DataChannel, TAILROOM};

fn key(n: u8) -> StaticKey {
    StaticKey::new(&[n; 256])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What parses is written as it was read.
pub(crate) fn control_packet(bytes: &[u8]) {
    if let Some(head) = Head::parse(bytes)
        && let Some(body) = Body::parse(head.opcode, bytes.get(HEAD_LEN..).unwrap_or_default())
    {
        let mut out = head.bytes().to_vec();
        body.write(&mut out);
        assert_eq!(out, bytes);
    }
    let _ = asks_for_wkc(bytes);
}

/// Nothing verifies that was not made with the key; what was, comes back.
pub(crate) fn control_wrap(bytes: &[u8]) {
    let pairs = [
        (WrapKeys::tls_crypt(&key(1), Role::Client), WrapKeys::tls_crypt(&key(1), Role::Server)),
        (
            WrapKeys::tls_auth(&key(2), Digest::Sha512, Direction::Inverse),
            WrapKeys::tls_auth(&key(2), Digest::Sha512, Direction::Normal),
        ),
    ];
    let mut body = Vec::new();
    let mut wrapped = Vec::new();
    for (client, server) in pairs {
        assert!(server.unwrap(bytes, &mut body).is_none());
        if let Some(head) = Head::parse(bytes) {
            let number = adit_openvpn::wrap::PacketNumber { id: 7, time: 8 };
            client.wrap(&head, number, bytes, &mut wrapped);
            assert!(server.unwrap(&wrapped, &mut body).is_some());
            assert_eq!(body, bytes);
        }
    }
    let _ = WrapKeys::none().unwrap(bytes, &mut body);
}

/// Nothing opens that was not made with the server's key; whatever metadata is put in comes out, as far as it fits.
pub(crate) fn wrapped_client_key(bytes: &[u8]) {
    let unwrapper = Unwrapper::new(&ServerKeyV2::new(&[3; 128]));
    assert!(unwrapper.open(bytes).is_none());
    let _ = wkc::split(bytes);
    let sealed = unwrapper.seal(&key(4), &Metadata::User(bytes.to_vec()));
    let fits = bytes.get(..bytes.len().min(wkc::MAX_METADATA - 1)).unwrap_or_default();
    let opened = unwrapper.open(&sealed.wrapped).expect("what was sealed opens");
    assert_eq!(opened, (key(4), Metadata::User(fits.to_vec())));
}

pub(crate) fn key_files(bytes: &[u8]) {
    let text = text(bytes);
    let _ = (StaticKey::parse(&text), ServerKeyV2::parse(&text), ClientKeyV2::parse(&text));
    let wrapped =
        format!("-----BEGIN OpenVPN Static key V1-----\n{text}\n-----END OpenVPN Static key V1-----\n");
    let _ = StaticKey::parse(&wrapped);
}

/// What parses uses no more than there is; names and peer info hold nothing that could disturb a log.
pub(crate) fn key_message(bytes: &[u8]) {
    for sender in [Role::Client, Role::Server] {
        if let Ok(Some((message, used))) = KeyMessage::parse(bytes, sender) {
            assert!(used <= bytes.len());
            assert!(message.peer_info.iter().all(|(k, v)| printable(k) && printable(v)));
        }
    }
    let info = PeerInfo::parse(&text(bytes));
    let _ = (info.abilities(), info.ciphers());
    assert!(info.iter().count() <= 64);
}

fn printable(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// Control messages are printable, however they arrive.
pub(crate) fn control_text(bytes: &[u8]) {
    let mut splitter = Splitter::default();
    for piece in bytes.chunks(7) {
        let Ok(messages) = splitter.push(piece) else { return };
        for message in messages {
            let written = message.to_bytes();
            assert!(printable(&text(&written).replace('\0', "")));
        }
    }
}

/// What is understood is written in a way that is understood the same.
pub(crate) fn push_reply(bytes: &[u8]) {
    let Some(reply) = Collector::default().push(&text(bytes)) else { return };
    let understood = |option: &&PushOption| !matches!(option, PushOption::Other(_));
    let options: Vec<_> = reply.options.iter().filter(understood).cloned().collect();
    let (parts, refused) = bundle(&options);
    let mut collector = Collector::default();
    let again: Vec<_> =
        parts.iter().filter_map(|part| collector.push(part)).flat_map(|reply| reply.options).collect();
    assert_eq!(again.len() + refused, options.len());
}

/// Nothing opens that was not sealed.
pub(crate) fn data_packet(bytes: &[u8]) {
    for cipher in Cipher::ALL {
        for compression in [Compression::None, Compression::Lzo, Compression::Stub, Compression::StubV2] {
            let channel = Channel::new(ChannelOptions {
                compression,
                fragment: Some(1300),
                ..ChannelOptions::default()
            });
            channel.install(DataKey::new(
                KeyId::FIRST,
                Role::Server,
                cipher,
                Digest::Sha256,
                &key(5),
                ReplayOptions::default(),
                &[6; 32],
            ));
            for first in [Opcode::DataV1, Opcode::DataV2] {
                let mut packet = bytes.to_vec();
                if let Some(byte) = packet.first_mut() {
                    *byte = first.with(KeyId::FIRST);
                }
                let len = packet.len();
                packet.resize(len + TAILROOM, 0);
                assert!(channel.open(&mut packet, len, 0).is_err());
            }
        }
    }
}

/// The peer itself sends nonsense inside valid packets: frames and fragments.
pub(crate) fn fragments(bytes: &[u8]) {
    let channel = |role, options| {
        let channel = Channel::new(options);
        let (replay, iv) = (ReplayOptions::default(), [6; 32]);
        channel.install(DataKey::new(
            KeyId::FIRST,
            role,
            Cipher::Aes128Gcm,
            Digest::Sha256,
            &key(5),
            replay,
            &iv,
        ));
        channel
    };
    for compression in [Compression::None, Compression::Lzo, Compression::Stub, Compression::StubV2] {
        let plain = channel(Role::Client, ChannelOptions::default());
        let options = ChannelOptions { compression, fragment: Some(1300), ..ChannelOptions::default() };
        let server = channel(Role::Server, options);
        for piece in bytes.chunks(37) {
            let head = adit_tunnel::HEADROOM;
            let mut buf = vec![0; head + piece.len() + TAILROOM];
            buf[head..head + piece.len()].copy_from_slice(piece);
            let range = plain.seal(&mut buf, head..head + piece.len()).expect("a key is there");
            let mut packet = buf[range].to_vec();
            let len = packet.len();
            packet.resize(len + TAILROOM, 0);
            let _ = server.open(&mut packet, len, 0);
        }
    }
}

/// No stranger's bytes get an answer.
pub(crate) fn gate(bytes: &[u8]) {
    static GATE: LazyLock<Gate> = LazyLock::new(|| {
        let wraps = vec![
            IdentityWrap::Shared(WrapKeys::tls_crypt(&key(1), Role::Server)),
            IdentityWrap::Shared(WrapKeys::tls_auth(&key(2), Digest::Sha1, Direction::Normal)),
            IdentityWrap::PerClient(Unwrapper::new(&ServerKeyV2::new(&[3; 128]))),
        ];
        let identities =
            wraps.into_iter().enumerate().map(|(n, wrap)| (IdentityId(n as u32), wrap)).collect();
        Gate::new(identities, &[9; 32], GateOptions { per_network: 400_000_000, ..GateOptions::default() })
    });
    let (from, to) = (SocketAddr::from(([192, 0, 2, 1], 1)), SocketAddr::from(([192, 0, 2, 2], 2)));
    let now = Moment { steady: 1, unix: 2 };
    assert!(matches!(GATE.datagram(bytes, from, to, now), Verdict::Drop(_)));
    assert!(matches!(GATE.record(bytes, [1; 8]), Verdict::Drop(_)));
}

pub(crate) fn profile(bytes: &[u8]) {
    let text = text(bytes);
    let mut no_files = |name: &str| Err(format!("no {name}"));
    let with_basics = format!("client\nremote a\n<ca>\nx\n</ca>\n{text}");
    for text in [text, with_basics] {
        if let Err(fault) = Profile::parse(&text, &mut no_files) {
            assert!(!fault.to_string().is_empty());
        }
    }
}

pub(crate) fn config(bytes: &[u8]) {
    let _ = config::parse(&text(bytes), Path::new("adit.toml"));
}

/// A set is written as it is read.
pub(crate) fn ports(bytes: &[u8]) {
    if let Ok(set) = text(bytes).parse::<PortSet>() {
        assert_eq!(set.to_string().parse::<PortSet>().expect("own text"), set);
        assert!(!set.contains(0));
    }
}

/// A rule that is read is found by its ports, and by no others.
pub(crate) fn natfw(bytes: &[u8]) {
    let Ok(rules) = Rules::parse(bytes) else { return };
    let address = Ipv4Addr::new(192, 0, 2, 1);
    for port in [0, 1, 1280, 65_279, 65_280, 65_535] {
        for found in rules.find(address, port, None) {
            assert!(found.ports.contains(&port) && port != 0);
            let again = rules.find(address, *found.ports.end(), None);
            assert!(again.contains(&found));
        }
        assert!(rules.find(address, port, Some(Protocol::Icmp)).is_empty());
    }
}

pub(crate) fn certificates(bytes: &[u8]) {
    let _ = (Certificate::from_der(bytes), Crl::from_der(bytes), Request::from_der(bytes));
    let _ = PrivateKey::from_pkcs8_der(bytes);
    let text = text(bytes);
    let _ = (Certificate::bundle_from_pem(&text), Crl::bundle_from_pem(&text), Request::from_pem(&text));
    let _ = PrivateKey::from_pem(&text);
}

/// A TLS server that is fed nonsense never comes up.
pub(crate) fn tls_records(bytes: &[u8]) {
    static SERVER: LazyLock<ServerTls> = LazyLock::new(|| {
        let now = UnixTime::from_secs(1_800_000_000);
        let lifetime = std::time::Duration::from_secs(1_000_000);
        let ca_key = PrivateKey::generate(KeyKind::P256).expect("a key");
        let authority = Authority::create("CA", Box::new(ca_key), now, lifetime).expect("a CA");
        let key = PrivateKey::generate(KeyKind::P256).expect("a key");
        let profile = adit_pki::Profile::Server { names: Vec::new() };
        let leaf = Leaf { public_key: key.public_key(), common_name: "server", profile, now, lifetime };
        let certificate = authority.issue(&leaf).expect("a certificate");
        ServerTls::new(ServerSettings {
            identities: vec![Identity::new(&[certificate], &key).expect("an identity")],
            client_authorities: Trust::new(vec![authority.certificate().clone()]).expect("a root").into(),
            ..ServerSettings::default()
        })
        .expect("a server")
    });
    let mut connection = SERVER.start().expect("a connection");
    for piece in bytes.chunks(50) {
        let fed = connection.feed(piece);
        let mut out = Vec::new();
        while connection.drain(&mut out, 1000) > 0 {}
        if fed.is_err() {
            break;
        }
    }
    assert!(!connection.established());
}
