//! Client and server machines as pairs under a virtual clock.

mod closing;
mod renegotiation;

use adit_tunnel::testing::{Link, Pair, Side, TestRng};
use adit_tunnel::{DataChannel, HEADROOM, Inner, TAILROOM};

use super::*;
use crate::data::Cipher;
use crate::gate::IdentityWrap;
use crate::keyfile::{ServerKeyV2, StaticKey};
use crate::packet::KeyId;
use crate::push::PushOption;
use crate::testing::{FakeTlsSource, Server, UNIX};
use crate::wkc::{Metadata, Unwrapper};
use crate::wrap::{Digest, Direction, WrapKeys};

const SECOND: Duration = Duration::from_secs(1);

/// One way to protect control packets, both ends of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrap {
    None,
    TlsAuth,
    TlsCrypt,
    TlsCryptV2,
}

impl Wrap {
    const ALL: [Self; 4] = [Self::None, Self::TlsAuth, Self::TlsCrypt, Self::TlsCryptV2];

    fn ends(self) -> (ClientWrap, IdentityWrap) {
        let key = StaticKey::new(&[3; 256]);
        match self {
            Self::None => (ClientWrap::Shared(WrapKeys::none()), IdentityWrap::Shared(WrapKeys::none())),
            Self::TlsAuth => (
                ClientWrap::Shared(WrapKeys::tls_auth(&key, Digest::Sha256, Direction::Inverse)),
                IdentityWrap::Shared(WrapKeys::tls_auth(&key, Digest::Sha256, Direction::Normal)),
            ),
            Self::TlsCrypt => (
                ClientWrap::Shared(WrapKeys::tls_crypt(&key, Role::Client)),
                IdentityWrap::Shared(WrapKeys::tls_crypt(&key, Role::Server)),
            ),
            Self::TlsCryptV2 => {
                let server = Unwrapper::new(&ServerKeyV2::new(&[4; 128]));
                let client = server.seal(&key, &Metadata::Timestamp(u64::from(UNIX)));
                (ClientWrap::Own(client), IdentityWrap::PerClient(server))
            }
        }
    }
}

/// A pair to be: everything a test may want otherwise.
struct Setup {
    wrap: Wrap,
    link: Link,
    seed: u64,
    tcp: bool,
    client: Settings,
    server: Settings,
    server_tls: Arc<FakeTlsSource>,
    client_tls: Arc<FakeTlsSource>,
}

impl Setup {
    fn new(wrap: Wrap) -> Self {
        let client_tls = Arc::new(FakeTlsSource::new(Role::Client, b"client certificate", 1));
        let server_tls = Arc::new(FakeTlsSource::new(Role::Server, b"server certificate", 2).padded(3000));
        let mut client = Settings::new(client_tls.clone());
        client.renegotiate = None;
        let mut server = Settings::new(server_tls.clone());
        server.renegotiate = None;
        Self { wrap, link: Link::default(), seed: 1, tcp: false, client, server, server_tls, client_tls }
    }

    fn link(mut self, link: Link, seed: u64) -> Self {
        self.link = link;
        self.seed = seed;
        self
    }

    /// The client claims these abilities instead of its own.
    fn client_says(mut self, key: &str, value: &str) -> Self {
        self.client.peer_info = self.client.peer_info.with(key, value);
        self
    }

    fn pair(self) -> Pair<Machine, Server> {
        #[expect(clippy::disallowed_methods, reason = "the virtual clock has to start somewhere")]
        let now = Instant::now();
        let (client_wrap, server_wrap) = self.wrap.ends();
        let carrier = Carrier { tcp: self.tcp, ipv6: false };
        let entropy = Box::new(TestRng::new(self.seed));
        let client = Machine::client(Arc::new(self.client), client_wrap, carrier, entropy, now, UNIX);
        let mut server = Server::new(Arc::new(self.server), server_wrap, now, self.seed);
        if self.tcp {
            server = server.over_tcp();
        }
        Pair::new(client, server, now, self.link, self.seed)
    }
}

type Joined = Pair<Machine, Server>;

fn channel(events: &[Event]) -> Option<(Arc<Channel>, Agreement)> {
    events.iter().find_map(|event| match event {
        Event::Established(channel, agreement) => Some((Arc::clone(channel), *agreement)),
        _ => None,
    })
}

fn channels(pair: &Joined) -> Option<(Arc<Channel>, Arc<Channel>)> {
    Some((channel(&pair.a_events)?.0, channel(&pair.b_events)?.0))
}

fn connect(pair: &mut Joined) -> (Arc<Channel>, Arc<Channel>) {
    let up = pair.run_until(60 * SECOND, |pair| channels(pair).is_some());
    assert!(up, "no session; client {:?}, server {:?}, {:?}", pair.a_events, pair.b_events, pair.faults);
    channels(pair).unwrap()
}

fn ended(events: &[Event]) -> Option<&Ended> {
    events.iter().find_map(|event| match event {
        Event::Ended(why) => Some(why),
        _ => None,
    })
}

fn seal(from: &Channel, packet: &[u8]) -> Option<Vec<u8>> {
    let mut buf = vec![0; HEADROOM + packet.len() + TAILROOM];
    buf[HEADROOM..HEADROOM + packet.len()].copy_from_slice(packet);
    let range = from.seal(&mut buf, HEADROOM..HEADROOM + packet.len()).ok()?;
    Some(buf[range].to_vec())
}

/// Carries a packet over a data channel without a link in between.
fn carry(from: &Channel, to: &Channel, packet: &[u8]) -> Option<Vec<u8>> {
    let mut datagram = seal(from, packet)?;
    let len = datagram.len();
    datagram.resize(len + TAILROOM, 0);
    match to.open(&mut datagram, len, 0).ok()?.inner {
        Inner::Packet(range) => Some(datagram[range].to_vec()),
        _ => None,
    }
}

#[track_caller]
fn assert_carries(client: &Channel, server: &Channel) {
    assert_eq!(carry(client, server, b"\x45 up").as_deref(), Some(b"\x45 up".as_slice()));
    assert_eq!(carry(server, client, b"\x45 down").as_deref(), Some(b"\x45 down".as_slice()));
}

/// Sends a packet each way every 50 ms for `time` and returns how many of how many arrived.
fn traffic(pair: &mut Joined, client: &Channel, server: &Channel, time: Duration) -> (usize, usize) {
    let end = pair.now + time;
    let (mut sent, mut arrived) = (0, 0);
    while pair.now < end {
        pair.run_for(SECOND / 20);
        for (from, to) in [(client, server), (server, client)] {
            sent += 1;
            arrived += usize::from(carry(from, to, b"\x45").is_some());
        }
        let now = pair.now;
        pair.a.note_activity(now, now);
        pair.b.machine.as_mut().unwrap().note_activity(now, now);
    }
    (arrived, sent)
}

#[test]
fn a_session_comes_up_with_every_protection_over_udp_and_tcp() {
    for wrap in Wrap::ALL {
        for tcp in [false, true] {
            let mut pair = Setup { tcp, ..Setup::new(wrap) }.pair();
            let (client, server) = connect(&mut pair);
            assert_carries(&client, &server);
            assert_eq!(pair.faults, [], "{wrap:?}");
            let (_, agreement) = channel(&pair.a_events).unwrap();
            assert_eq!(channel(&pair.b_events).unwrap().1, agreement);
            assert!(agreement.exporter && agreement.cc_exit && agreement.dynamic_tls_crypt);
            assert_eq!((agreement.cipher, agreement.peer_id), (Cipher::Aes256Gcm, Some(7)));
        }
    }
}

#[test]
fn no_control_packet_is_longer_than_a_small_path_takes() {
    for wrap in Wrap::ALL {
        let mut pair = Setup::new(wrap).pair();
        connect(&mut pair);
        pair.run_for(5 * SECOND);
        assert!(pair.wire.iter().all(|(_, bytes)| bytes.len() <= MAX_DATAGRAM), "{wrap:?}");
    }
}

#[test]
fn a_server_answers_with_as_few_packets_as_it_can() {
    for wrap in Wrap::ALL {
        let mut setup = Setup::new(wrap);
        setup.server_tls = Arc::new(FakeTlsSource::new(Role::Server, b"server certificate", 2));
        setup.server.tls = setup.server_tls.clone();
        let mut pair = setup.pair();
        connect(&mut pair);
        let from_server = pair.wire.iter().filter(|(from, _)| *from == Side::B).count();
        // The reset, TLS's flight, and key message with push reply. Acknowledgements ride along.
        assert_eq!(from_server, 3, "{wrap:?}");
    }
}

#[test]
fn a_bad_link_delays_the_session_but_does_not_prevent_it() {
    for seed in 0..60 {
        let wrap = Wrap::ALL[seed as usize % 4];
        let link =
            Link { loss: 0.2, duplicate: 0.1, jitter: SECOND / 5, delay: SECOND / 20, ..Link::default() };
        let mut pair = Setup::new(wrap).link(link, seed).pair();
        let (client, server) = connect(&mut pair);
        assert_carries(&client, &server);
        assert_eq!(pair.b.admitted, 1);
    }
}

#[test]
fn a_dead_link_ends_the_client_after_the_hand_window() {
    let mut pair = Setup::new(Wrap::TlsCrypt).link(Link { loss: 1.0, ..Link::default() }, 1).pair();
    let start = pair.now;
    assert!(pair.run_until(100 * SECOND, |pair| ended(&pair.a_events).is_some()));
    assert!(matches!(ended(&pair.a_events), Some(Ended::Timeout("the handshake", _))));
    assert!(pair.now - start >= 60 * SECOND);
    assert!(pair.wire.len() < 12, "retransmissions back off");
}

#[test]
fn a_client_that_vanishes_half_way_leaves_the_server_in_time() {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    assert!(pair.run_until(SECOND, |pair| pair.b.machine.is_some()));
    pair.link.loss = 1.0;
    assert!(pair.run_until(100 * SECOND, |pair| ended(&pair.b_events).is_some()));
    assert!(matches!(ended(&pair.b_events), Some(Ended::Timeout("the handshake", _))));
}

#[test]
fn clients_without_newer_abilities_are_served_as_far_as_theirs_go() {
    // DATA_V2 alone: keys come from the key exchange, EXIT goes over the data channel.
    let mut pair = Setup::new(Wrap::TlsAuth).client_says("IV_PROTO", "2").pair();
    let (client, server) = connect(&mut pair);
    assert_carries(&client, &server);
    let (_, agreement) = channel(&pair.b_events).unwrap();
    assert!(!agreement.exporter && !agreement.cc_exit && !agreement.dynamic_tls_crypt);
    assert_eq!(agreement.peer_id, Some(7));
    // Nothing at all: DATA_V1.
    let mut pair = Setup::new(Wrap::TlsAuth).client_says("IV_PROTO", "0").pair();
    let (client, server) = connect(&mut pair);
    assert_carries(&client, &server);
    assert_eq!(channel(&pair.b_events).unwrap().1.peer_id, None);
    assert_eq!(seal(&server, b"\x45").unwrap()[0], 0x30);
    // The exporter without EXIT messages.
    let mut pair = Setup::new(Wrap::TlsAuth).client_says("IV_PROTO", "10").pair();
    let (client, server) = connect(&mut pair);
    assert_carries(&client, &server);
    assert!(channel(&pair.a_events).unwrap().1.exporter);
}

#[test]
fn the_servers_order_of_ciphers_decides() {
    for cipher in Cipher::ALL {
        let mut setup = Setup::new(Wrap::TlsCrypt);
        setup.server.ciphers = vec![Cipher::Aes192Cbc, cipher, Cipher::Aes256Gcm];
        setup.client.ciphers = vec![Cipher::Aes256Gcm, cipher];
        let mut pair = setup.pair();
        let (client, server) = connect(&mut pair);
        assert_carries(&client, &server);
        assert_eq!(channel(&pair.a_events).unwrap().1.cipher, cipher);
    }
}

#[test]
fn without_a_common_cipher_the_client_is_told() {
    let mut setup = Setup::new(Wrap::TlsCrypt);
    setup.server.ciphers = vec![Cipher::ChaCha20Poly1305];
    setup.client.ciphers = vec![Cipher::Aes256Gcm];
    let mut pair = setup.pair();
    assert!(pair.run_until(60 * SECOND, |pair| ended(&pair.b_events).is_some()));
    let told = "Data channel cipher negotiation failed (no shared cipher)";
    assert_eq!(ended(&pair.a_events), Some(&Ended::AuthFailed(told.into())));
}

#[test]
fn a_client_framed_for_compression_is_told_the_cheapest_frame() {
    use super::server::frame_for;
    let old = PeerInfo::parse("IV_LZO=1\nIV_LZO_STUB=1\n");
    let new = PeerInfo::parse("IV_COMP_STUBv2=1\n");
    use crate::data::Compression;
    assert_eq!(
        frame_for(&old, "V4,comp-lzo,cipher AES-256-CBC"),
        (Compression::Lzo, Some(PushOption::CompLzoNo))
    );
    assert_eq!(frame_for(&new, "V4,comp-lzo"), (Compression::StubV2, Some(PushOption::CompressStubV2)));
    assert_eq!(frame_for(&new, "V4"), (Compression::None, None));
}

#[test]
fn clients_that_do_not_negotiate_get_the_cipher_they_name_or_the_fallback() {
    let mut setup = Setup::new(Wrap::TlsCrypt);
    setup.server.ciphers = vec![Cipher::Aes256Gcm, Cipher::Aes256Cbc];
    setup.server.fallback = Some(Cipher::Aes128Cbc);
    let mut pair = setup.pair();
    connect(&mut pair);
    let machine = pair.b.machine.as_ref().unwrap();
    let none = PeerInfo::parse("IV_VER=2.3\n");
    assert_eq!(machine.choose_cipher(&none, "V4,cipher AES-256-CBC"), Some(Cipher::Aes256Cbc));
    assert_eq!(machine.choose_cipher(&none, "V4,cipher BF-CBC"), Some(Cipher::Aes128Cbc));
    let ncp = PeerInfo::parse("IV_NCP=2\n");
    assert_eq!(machine.choose_cipher(&ncp, "V4,cipher BF-CBC"), Some(Cipher::Aes256Gcm));
}

#[test]
fn a_slow_decision_is_waited_for_and_push_requests_meanwhile_do_no_harm() {
    // CVE-2020-15078, CVE-2022-0547: what is undecided is not granted.
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    pair.b.decision = None;
    pair.run_for(20 * SECOND);
    assert!(channel(&pair.a_events).is_none() && channel(&pair.b_events).is_none());
    let questions = pair.b_events.iter().filter(|e| matches!(e, Event::Authenticate(_))).count();
    assert_eq!(questions, 1);
    let grant = Grant { peer_id: 9, options: vec![] };
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().authorize(&grant, now);
    let (client, server) = connect(&mut pair);
    assert_carries(&client, &server);
    assert_eq!(channel(&pair.a_events).unwrap().1.peer_id, Some(9));
}

#[test]
fn granting_twice_or_unasked_changes_nothing() {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    let grant = Grant { peer_id: 1, options: vec![] };
    assert!(pair.run_until(SECOND, |pair| pair.b.machine.is_some()));
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().authorize(&grant, now);
    assert!(channel(&pair.b_events).is_none());
    connect(&mut pair);
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().authorize(&grant, now);
    pair.run_for(SECOND);
    assert_eq!(pair.b_events.iter().filter(|e| matches!(e, Event::Established(..))).count(), 1);
}

#[test]
fn a_refused_client_is_told_why_even_over_a_bad_link() {
    for seed in 0..20 {
        let link = Link { loss: 0.3, jitter: SECOND / 10, ..Link::default() };
        let mut pair = Setup::new(Wrap::TlsCryptV2).link(link, seed).pair();
        pair.b.decision = Some(Err("certificate revoked".into()));
        pair.run_until(120 * SECOND, |pair| ended(&pair.a_events).is_some());
        assert_eq!(
            ended(&pair.a_events),
            Some(&Ended::AuthFailed("certificate revoked".into())),
            "seed {seed}"
        );
        pair.run_for(LINGER);
        assert_eq!(ended(&pair.b_events), Some(&Ended::Refused("certificate revoked".into())));
        assert!(channel(&pair.b_events).is_none());
    }
}

#[test]
fn a_client_that_is_put_off_is_told_so_in_words_it_understands() {
    for (abilities, expected) in [
        ("990", Ended::AuthFailed("TEMP[backoff 10]: no free addresses".into())),
        ("2", Ended::Told(Stop::Restart, "no free addresses".into())),
    ] {
        let mut pair = Setup::new(Wrap::TlsCrypt).client_says("IV_PROTO", abilities).pair();
        pair.b.decision = None;
        assert!(pair.run_until(10 * SECOND, |pair| !pair.b_events.is_empty()));
        let now = pair.now;
        pair.b.machine.as_mut().unwrap().put_off("no free addresses", 10, now);
        assert!(pair.run_until(10 * SECOND, |pair| ended(&pair.a_events).is_some()));
        assert_eq!(ended(&pair.a_events), Some(&expected));
    }
}

#[test]
fn a_refused_certificate_ends_both_sides_with_the_alert_delivered() {
    let setup = Setup::new(Wrap::TlsCrypt);
    setup.server_tls.refuse_peers();
    let mut pair = setup.pair();
    assert!(pair.run_until(60 * SECOND, |pair| ended(&pair.a_events).is_some()));
    assert!(matches!(ended(&pair.a_events), Some(Ended::Tls(_))));
    pair.run_for(10 * SECOND);
    assert_eq!(ended(&pair.b_events), Some(&Ended::Tls(TlsFault::Peer("certificate revoked".into()))));
}

#[test]
fn a_client_that_refuses_its_server_does_not_wait_long_and_not_at_all_when_told_so() {
    for told in [false, true] {
        let setup = Setup::new(Wrap::TlsCrypt);
        setup.client_tls.refuse_peers();
        let mut pair = setup.pair();
        assert!(pair.run_until(60 * SECOND, |pair| pair.a.closing.is_some()));
        // The server acknowledges nothing.
        pair.link.loss = 1.0;
        let start = pair.now;
        if told {
            pair.a.close(&Farewell::Silent, start);
        }
        assert!(pair.run_until(60 * SECOND, |pair| ended(&pair.a_events).is_some()));
        assert!(matches!(ended(&pair.a_events), Some(Ended::Tls(_))), "and it says why");
        assert!(pair.now - start <= if told { Duration::ZERO } else { CLIENT_LINGER });
    }
}

#[test]
fn silence_is_filled_with_pings_and_a_dead_peer_is_noticed() {
    let mut setup = Setup::new(Wrap::TlsCrypt);
    setup.server.ping = Some(10 * SECOND);
    setup.server.ping_restart = Some(120 * SECOND);
    let mut pair = setup.pair();
    connect(&mut pair);
    pair.wire.clear();
    pair.run_for(55 * SECOND);
    let pings = |side| pair.wire.iter().filter(|(from, p)| *from == side && p[0] & 0xf8 == 0x48).count();
    assert_eq!((pings(Side::A), pings(Side::B)), (5, 5));
    // The machines were told of no data packets, so the client gives up first, at its pushed 60 seconds.
    assert!(pair.run_until(10 * SECOND, |pair| ended(&pair.a_events).is_some()));
    assert_eq!(ended(&pair.a_events), Some(&Ended::Silent(60 * SECOND)));
    assert!(pair.run_until(100 * SECOND, |pair| ended(&pair.b_events).is_some()));
    assert_eq!(ended(&pair.b_events), Some(&Ended::Silent(120 * SECOND)));
}

#[test]
fn activity_keeps_a_session_alive_and_quiet() {
    let mut setup = Setup::new(Wrap::TlsCrypt);
    setup.server.ping = Some(10 * SECOND);
    setup.server.ping_restart = Some(30 * SECOND);
    let mut pair = setup.pair();
    let (client, server) = connect(&mut pair);
    pair.wire.clear();
    traffic(&mut pair, &client, &server, 200 * SECOND);
    assert!(ended(&pair.a_events).is_none() && ended(&pair.b_events).is_none());
    assert_eq!(pair.wire.iter().filter(|(_, p)| p[0] & 0xf8 == 0x48).count(), 0);
}

#[test]
fn replaying_a_handshake_neither_harms_a_live_session_nor_starts_another() {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    let (client, server) = connect(&mut pair);
    pair.run_for(SECOND);
    let recorded: Vec<_> =
        pair.wire.iter().filter(|(from, _)| *from == Side::A).map(|(_, bytes)| bytes.clone()).collect();
    for _ in 0..3 {
        for packet in &recorded {
            let now = pair.now;
            let result = adit_tunnel::Machine::handle_datagram(&mut pair.b, packet, now);
            let ok =
                result.is_ok() && Head::parse(packet).is_some_and(|h| h.opcode == Opcode::HardResetClientV2);
            assert!(ok || matches!(result, Err(PeerFault::Dropped(DropReason::ControlReplay))), "{result:?}");
        }
    }
    assert_eq!(pair.b.admitted, 1);
    assert_carries(&client, &server);
    // From another address, after the session is gone: the cookie does not fit.
    pair.b.machine = None;
    pair.b.client_moves();
    for packet in &recorded {
        let now = pair.now;
        let _ = adit_tunnel::Machine::handle_datagram(&mut pair.b, packet, now);
    }
    assert_eq!(pair.b.admitted, 1);
}

#[test]
fn damaged_and_truncated_packets_at_every_stage_change_nothing() {
    for wrap in [Wrap::TlsAuth, Wrap::TlsCrypt, Wrap::TlsCryptV2] {
        let mut pair = Setup::new(wrap).pair();
        let mut rng = TestRng::new(5);
        let mut tried = 0;
        for _ in 0..200 {
            let recorded: Vec<_> = pair.wire.drain(..).collect();
            for (from, packet) in recorded {
                let mut damaged = packet.clone();
                let at = rng.next_u64() as usize % damaged.len();
                damaged[at] ^= 1 << (rng.next_u64() % 8);
                let cut = packet[..at].to_vec();
                for bad in [damaged, cut] {
                    // What follows tls-crypt-v2's protected part is not protected by it.
                    let unprotected =
                        bad.first().is_some_and(|b| matches!(b >> 3, 10 | 11)) && wrap == Wrap::TlsCryptV2;
                    let now = pair.now;
                    let result = match from {
                        Side::A => adit_tunnel::Machine::handle_datagram(&mut pair.b, &bad, now),
                        Side::B => pair.a.handle_datagram(&bad, now),
                    };
                    assert!(
                        unprotected || matches!(result, Err(PeerFault::Dropped(_))),
                        "{wrap:?} {result:?}"
                    );
                    tried += 1;
                }
            }
            if channels(&pair).is_some() || !pair.step() {
                break;
            }
        }
        assert!(tried > 15, "{wrap:?} {tried}");
        let (client, server) = connect(&mut pair);
        assert!(
            carry(&client, &server, b"\x45").is_some(),
            "{wrap:?} {:?} {:?} {}",
            pair.a_events,
            pair.b_events,
            pair.b.admitted
        );
        assert_carries(&client, &server);
    }
}

#[test]
fn a_server_that_wants_compression_is_refused() {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    pair.b.decision = Some(Ok(Grant { peer_id: 1, options: vec![PushOption::Compress("zstd".into())] }));
    assert!(pair.run_until(60 * SECOND, |pair| ended(&pair.a_events).is_some()));
    assert!(ended(&pair.a_events).unwrap().to_string().contains("compression (zstd)"));
}

#[test]
fn one_sessions_buffers_hold_nothing_of_another() {
    // CVE-2026-40215: a race in the handshake showed bytes of an earlier one. Machines share no buffers, so the
    // bytes of a handshake depend on nothing but its own seed.
    let run = || {
        let mut pair = Setup::new(Wrap::TlsCrypt).pair();
        connect(&mut pair);
        pair.wire
    };
    let first = run();
    let mut other = Setup::new(Wrap::TlsCryptV2).link(Link::default(), 99).pair();
    connect(&mut other);
    assert_eq!(run(), first);
}
