//! Who does not belong: refused, in one clear line if it is a client, in complete silence if it has proven nothing.
//!
//! ```text
//!  client 0 (good) ─── 198.18.0.2 ──┐
//!  client 1        ─── 198.18.1.2 ──┼─ access ─── gateway ─── router ─── outside
//!  client N        ─── 198.18.N.2 ──┘   │      192.0.2.1:1194          203.0.113.2
//!                                     proxy 192.0.2.254
//! ```
//!
//! In each test client 0 is connected and pings all the time: whatever is refused, it never notices.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_testbed::{
    Action, Direction, Gateway, Host, OpenVpnClient, Pinger, Proxy, Rng, Scale, TcpProxy, TestPki,
    eventually, ping, ping_with,
};
use adit_tests::Scene;

const SOON: Duration = Duration::from_secs(10);
/// A handshake on a busy machine.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// The text of a block of a profile.
fn block<'a>(profile: &'a str, name: &str) -> &'a str {
    let (begin, end) = (format!("<{name}>\n"), format!("</{name}>"));
    profile.split(&begin).nth(1).and_then(|rest| rest.split(&end).next()).expect("the block")
}

/// A profile with another certificate and key in it.
fn with_certificate(profile: &str, certificate: &str, key: &str) -> String {
    profile.replace(block(profile, "cert"), certificate).replace(block(profile, "key"), key)
}

/// A client that gives up when it is refused.
fn try_once(host: &Arc<Host>, profile: &str, options: &[&str]) -> OpenVpnClient {
    OpenVpnClient::start_with(host, profile, &[&["--tls-exit", "--connect-retry-max", "1"], options].concat())
}

#[test]
fn clients_with_keys_of_another_gateway_hear_nothing_over_udp_and_tcp() {
    let scene = Scene::new(7, |_| {});
    // The same names, addresses and kinds of identities; only the keys are others.
    let other = Gateway::new(&scene.network);
    other.add_identity("auth", "P-256", "tls-auth SHA256");
    other.ok(&["user", "add", "eve", "--device", "laptop"]);
    let words = scene.words_to(1..7);
    let before = scene.drops();
    let mut clients = Vec::new();
    for (number, identity) in ["default", "compat", "auth"].into_iter().enumerate() {
        for (at, transport) in ["udp", "tcp"].into_iter().enumerate() {
            let options = ["--identity", identity, "--transport", transport];
            let profile = other.profile("eve", "laptop", &options);
            let host = scene.network.client(1 + 2 * number + at);
            clients.push((transport, OpenVpnClient::start(host, &profile)));
        }
    }

    // Each over UDP tries twice within the first seconds; over TCP they are sent away, and told nothing either.
    for (transport, client) in &clients {
        if *transport == "tcp" {
            client.wait_for("Connection reset, restarting", HANDSHAKE);
        }
    }
    let drops = scene.wait_for_drops(&before, 9);

    assert_eq!(drops.keys().collect::<Vec<_>>(), ["no_key_verified"], "{drops:?}");
    assert_eq!(words.seen(), [], "the gateway has answered");
    assert!(clients.iter().all(|(_, client)| client.process().out.find("Initial packet").is_none()));
    scene.no_new_lines();
    scene.as_before();
    assert_eq!(scene.gateway.status("/logins_refused"), 0, "they have not even been clients");
}

#[test]
fn a_client_with_the_right_key_and_a_wrong_certificate_is_refused_with_one_line_that_says_why() {
    let scene = Scene::new(8, |gateway| {
        gateway.set("ca", "device_lifetime", "\"4s\"");
        gateway.ok(&["user", "add", "old", "--device", "laptop"]);
    });
    let (network, gateway) = (&scene.network, &scene.gateway);
    let options = ["--transport", "udp", "--identity", "compat"];
    let expired = gateway.profile("old", "laptop", &options);
    gateway.set("ca", "device_lifetime", "\"1y\"");
    gateway.ok(&["reload"]);
    let good = gateway.add_user("bob", &options);
    let pki = TestPki::new("P-256");
    let (certificate, key) = pki.issue("bob", "clientAuth", "P-256");
    let foreign = with_certificate(&good, &certificate, &key);
    let anew = Gateway::new(network).add_user("bob", &options);
    let anew = with_certificate(&good, block(&anew, "cert"), block(&anew, "key"));
    let ca = gateway.path("state/ca");
    let (certificate, key) = pki.issue_from(&ca, "bob", "serverAuth", "P-256");
    let server = with_certificate(&good, &certificate, &key);
    let (certificate, key) = pki.issue_from(&ca, "bob", "clientAuth", "P-256");
    let unknown = with_certificate(&good, &certificate, &key);
    let none =
        with_certificate(&good, "", "").replace("<cert>\n</cert>\n", "").replace("<key>\n</key>\n", "");
    let password = gateway.path("password");
    std::fs::write(&password, "bob\nsecret\n").unwrap();
    let password = ["--auth-user-pass", password.to_str().unwrap()];
    eventually("the end of a certificate", SOON, || {
        gateway.json(&["device", "list", "old"])["devices"][0]["certificate"] == "expired"
    });

    let cases: [(&str, &[&str], &str); 6] = [
        (&foreign, &[], "certificate not issued by this gateway's CA"),
        (&anew, &[], "the issuer has the same name but another key; if the CA was made anew"),
        (&server, &[], "not one of a client"),
        (&expired, &[], "certificate has expired"),
        (&none, &password, "the peer sent no certificate; a client needs one here"),
        (&unknown, &[], "login refused: the certificate or device is not known here"),
    ];
    let mut clients = Vec::new();
    for (number, (profile, options, why)) in cases.into_iter().enumerate() {
        clients.push((number + 1, try_once(network.client(number + 1), profile, options), why));
    }
    for (number, _, why) in &clients {
        eventually(&format!("a line about: {why}"), HANDSHAKE, || !scene.lines_about(*number).is_empty());
    }
    scene.as_before_but(clients.len() as u64);
    for (number, client, why) in &clients {
        assert_eq!(client.connections(), 0, "{why}");
        let lines = scene.lines_about(*number);
        assert_eq!(lines.len(), 1, "{why}: {lines:#?}");
        assert!(lines[0].contains(why) && lines[0].contains("WARN"), "{why}: {}", lines[0]);
    }
    // It was not for another reason: with its own certificate the same client gets in.
    let client = OpenVpnClient::connect(network.client(7), &good);
    ping(client.host(), network.outside_address()).must_all_return();
    client.stop();
}

#[test]
fn whoever_is_removed_while_away_is_told_so_at_the_next_handshake_and_stays_out() {
    let mut scene = Scene::new(5, |_| {});
    let options = ["--transport", "udp"];
    let profiles: Vec<_> = ["bob", "cyd", "dan"].map(|user| scene.gateway.add_user(user, &options)).into();
    let kim = scene.gateway.add_user("kim", &options);
    let kept = OpenVpnClient::connect(scene.network.client(4), &kim);

    scene.gateway.ok(&["user", "remove", "bob"]);
    scene.gateway.ok(&["device", "revoke", "cyd", "laptop"]);
    scene.gateway.ok(&["user", "suspend", "dan"]);
    let reasons = ["the user was removed", "the device is revoked", "the user is suspended"];
    let mut clients = Vec::new();
    for (number, profile) in profiles.iter().enumerate() {
        clients.push(OpenVpnClient::start(scene.network.client(number + 1), profile));
    }
    for (number, (client, why)) in clients.iter_mut().zip(reasons).enumerate() {
        let told = client.wait_for("AUTH_FAILED", HANDSHAKE);
        assert!(told.contains(why), "{told}");
        // It does not try for ever.
        client.process_mut().wait_for_end(SOON);
        let lines = scene.lines_about(number + 1);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains(&format!("login refused: {why}")), "{}", lines[0]);
    }
    assert_eq!(scene.gateway.status("/logins_refused"), 3);
    let crl = scene.gateway.path("state/ca/crl.pem");
    let crl = crl.to_str().unwrap();
    let text = ["crl", "-in", crl, "-noout", "-text"];
    let text = scene.gateway.host().run(std::process::Command::new("openssl").args(text));
    assert_eq!(text.matches("Serial Number:").count(), 2, "suspending is not for good: {text}");
    scene.gateway.ok(&["user", "resume", "dan"]);
    OpenVpnClient::connect(scene.network.client(3), &profiles[2]).stop();

    // Removed while the gateway is down: the client comes back by itself, and is told.
    assert_eq!(scene.good.connections(), 1);
    scene.gateway.kill();
    scene.gateway.ok(&["user", "remove", "kim"]);
    scene.gateway.up();
    let told = kept.wait_for("AUTH_FAILED", HANDSHAKE);
    assert!(told.contains("the user was removed"), "{told}");
    scene.good.wait_for_since(0, "Initialization Sequence Completed", HANDSHAKE);
    eventually("the good client is back", HANDSHAKE, || scene.good.connections() == 2);
    ping(scene.good.host(), scene.network.outside_address()).must_all_return();
}

#[test]
fn a_certificate_that_ends_within_a_session_ends_it_at_the_next_renegotiation() {
    let scene = Scene::new(2, |gateway| gateway.set("tunnel", "reneg", "\"3s\""));
    scene.gateway.set("ca", "device_lifetime", "\"9s\"");
    scene.gateway.ok(&["reload"]);
    let profile = scene.gateway.add_user("old", &["--transport", "udp"]);
    let client = OpenVpnClient::connect_with(scene.network.client(1), &profile, &["--tls-exit"]);
    // Nobody but the gateway has this address: without a tunnel no answer can come.
    let pinger = Pinger::start(client.host(), [10, 88, 0, 1].into());
    pinger.wait_for_answers(5, SOON);
    let mark = client.mark();
    client.wait_for_since(mark, "Control Channel: TLSv", HANDSHAKE);
    pinger.wait_for_answers(5, SOON);

    eventually("the end of the session", HANDSHAKE, || scene.gateway.session_of("old").is_none());

    pinger.wait_for_silence(Duration::from_secs(1), SOON);
    let lines = scene.gateway.logged("DISCONNECT");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("old") && lines[0].contains("has expired"), "{}", lines[0]);
    // Everybody else renegotiates and stays.
    scene.as_before_but(1);
    client.kill();
}

/// Sends through a proxy until a session is up, and returns what the client has sent by then.
fn recorded(
    scene: &Scene,
    client: usize,
    user: &str,
    identity: &str,
) -> (Proxy, OpenVpnClient, Vec<Vec<u8>>) {
    let proxy = Proxy::start(&scene.network.access, scene.network.access_address(), scene.entrance(), 1);
    let (host, port) = (proxy.address().ip().to_string(), proxy.address().port().to_string());
    let options = ["--identity", identity, "--transport", "udp", "--remote", &host, "--port", &port];
    let profile = scene.gateway.add_user(user, &options);
    let client = OpenVpnClient::connect(scene.network.client(client), &profile);
    ping(client.host(), scene.network.outside_address()).must_all_return();
    let packets = proxy.remembered().into_iter();
    let sent = packets.filter(|(direction, _)| *direction == Direction::ToServer).map(|(_, packet)| packet);
    let sent = sent.collect();
    (proxy, client, sent)
}

/// Opcode of a packet.
fn opcode(packet: &[u8]) -> u8 {
    packet[0] >> 3
}

const DATA_V2: u8 = 9;

#[test]
fn recorded_packets_open_no_session_from_elsewhere_or_later_and_change_none() {
    for identity in ["default", "compat", "auth"] {
        let scene = Scene::new(3, |_| {});
        let (proxy, client, sent) = recorded(&scene, 1, "bob", identity);
        let session = scene.gateway.wait_for_session("bob", SOON);
        let stranger = scene.stranger(2);
        let words = scene.words_to(2..3);

        // Whoever repeats a first packet has a packet of somebody with the key: one small answer, nothing kept.
        stranger.send(&sent[0]).unwrap();
        eventually("the answer", SOON, || !words.seen().is_empty());
        let answers = words.seen();
        assert_eq!(answers.len(), 1);
        assert!(answers[0].payload.len() - 8 <= 98, "{} bytes", answers[0].payload.len() - 8);
        assert_eq!(scene.gateway.status("/handshakes"), 0);
        // All the rest proves nothing from there.
        let rest: Vec<_> = sent[1..].iter().filter(|packet| opcode(packet) != DATA_V2).collect();
        let before = scene.drops();
        for packet in &rest {
            stranger.send(packet).unwrap();
        }
        let drops = scene.wait_for_drops(&before, rest.len() as u64);
        assert!(drops.contains_key("bad_cookie"), "{drops:?}");
        assert_eq!(words.seen().len(), 1, "no more answers");

        // Data packets repeated by someone on the way, and by someone elsewhere, are recognised and move nothing.
        let data: Vec<_> = sent.iter().filter(|packet| opcode(packet) == DATA_V2).cloned().collect();
        assert!(!data.is_empty());
        let before = scene.drops();
        for packet in &data {
            proxy.inject(packet.clone());
            stranger.send(packet).unwrap();
        }
        let drops = scene.wait_for_drops(&before, 2 * data.len() as u64);
        assert!(drops.keys().all(|name| name.starts_with("replay")), "{drops:?}");
        let now = scene.gateway.wait_for_session("bob", SOON);
        assert_eq!((&now["id"], &now["remote_port"]), (&session["id"], &session["remote_port"]));
        ping(client.host(), scene.network.outside_address()).must_all_return();

        // Later, when the session is over, everything once more from the very same address and port: that is as far
        // as a handshake that never ends, because its answers are for another.
        client.stop();
        eventually("the end of bob's session", SOON, || scene.gateway.session_of("bob").is_none());
        for packet in sent {
            proxy.inject(packet);
        }
        let before = scene.drops();
        proxy.inject(vec![DATA_V2 << 3, 0, 0, 1, 0]);
        scene.wait_for_drops(&before, 1);
        assert!(scene.gateway.status("/handshakes") <= 1);
        assert!(scene.gateway.session_of("bob").is_none());
        scene.pinger.wait_for_answers(5, SOON);
        assert_eq!(scene.good.connections(), 1);
        if Scale::get() == Scale::Quick {
            break;
        }
    }
}

/// What a stranger may come up with: noise behind every opcode, and pieces and variations of real packets.
fn nonsense(rng: &mut Rng, real: &[Vec<u8>], count: usize) -> Vec<Vec<u8>> {
    let lengths = [1, 2, 9, 13, 14, 42, 54, 62, 86, 90, 353, 600, 1400];
    (0..count)
        .map(|number| {
            let len = *rng.pick(&lengths);
            let mut noise = rng.bytes(len);
            match number % 4 {
                0 => noise,
                1 => {
                    // An opcode that exists, and the key id of a first packet.
                    noise[0] = rng.pick(&[1_u8, 3, 4, 5, 6, 7, 8, 9, 10, 11]) << 3;
                    noise
                }
                2 => {
                    let packet = rng.pick(real);
                    packet[..rng.below(packet.len()).max(1)].to_vec()
                }
                _ => {
                    let mut packet = rng.pick(real).clone();
                    let at = 1 + rng.below(packet.len() - 1);
                    packet[at] ^= 1 << rng.below(8);
                    packet
                }
            }
        })
        .collect()
}

#[test]
fn nonsense_over_udp_disturbs_nobody_before_during_and_after_a_handshake() {
    let scene = Scene::new(4, |_| {});
    let count = Scale::get().pick(300, 1500);
    let mut rng = Rng::new(20);
    let (proxy, client, sent) = recorded(&scene, 1, "bob", "default");
    let session = scene.gateway.wait_for_session("bob", SOON);

    // From a stranger, while nobody is expected: not a byte comes back.
    let words = scene.words_to(3..4);
    let before = scene.drops();
    let lines = scene.gateway.logged("").len();
    let stranger = scene.stranger(3);
    for packet in nonsense(&mut rng, &sent, count) {
        stranger.send(&packet).unwrap();
    }
    let drops = scene.wait_for_drops(&before, count as u64);
    for name in ["malformed", "no_key_verified", "unknown_peer", "decrypt_error"] {
        assert!(drops.contains_key(name), "{name}: {drops:?}");
    }
    assert_eq!(words.seen(), [], "a stranger was answered");
    assert_eq!(stranger.recv(&mut [0; 2048]).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    assert_eq!(scene.gateway.logged("").len(), lines, "strangers fill the log");

    // In the middle of a session, from the client's own address and port.
    let before = scene.drops();
    for packet in nonsense(&mut rng, &sent, count) {
        proxy.inject(packet);
    }
    scene.wait_for_drops(&before, count as u64 / 2);
    ping(client.host(), scene.network.outside_address()).must_all_return();
    assert_eq!(scene.gateway.wait_for_session("bob", SOON)["id"], session["id"]);
    assert_eq!(client.connections(), 1);
    client.stop();

    // In front of and behind every packet of a handshake, both ways.
    let proxy = Proxy::start(&scene.network.access, scene.network.access_address(), scene.entrance(), 2);
    let mut noise = Rng::new(21);
    let handshakes = sent;
    proxy.hook(move |_, _, packet| {
        let real = [packet.to_vec()];
        let mut out = nonsense(&mut noise, &handshakes, 4);
        out.extend(nonsense(&mut noise, &real, 4));
        out.push(packet.to_vec());
        out.extend(nonsense(&mut noise, &real, 4));
        Action::Instead(out)
    });
    let (host, port) = (proxy.address().ip().to_string(), proxy.address().port().to_string());
    for identity in ["default", "compat", "auth"] {
        let options = ["--identity", identity, "--transport", "udp", "--remote", &host, "--port", &port];
        let profile = scene.gateway.profile("bob", "laptop", &options);
        let client = OpenVpnClient::connect(scene.network.client(2), &profile);
        ping(client.host(), scene.network.outside_address()).must_all_return();
        client.stop();
    }
    drop(proxy);
    scene.as_before();
}

/// Says something over TCP and reads until the end; what came back, and how long that took.
fn converse(host: &Host, to: SocketAddr, words: &[u8], finish: bool) -> (Vec<u8>, Duration) {
    let mut stream = host.run_in(|| TcpStream::connect_timeout(&to, SOON)).expect("a connection");
    stream.set_read_timeout(Some(HANDSHAKE)).expect("a timeout");
    let started = Instant::now();
    // Both may fail when the other side has closed meanwhile.
    let _ = stream.write_all(words);
    if finish {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the connection was never closed"),
        // Closed with something unread.
        _ => (answer, started.elapsed()),
    }
}

/// A packet as TCP carries it.
fn record(packet: &[u8]) -> Vec<u8> {
    [&(packet.len() as u16).to_be_bytes()[..], packet].concat()
}

#[test]
fn nonsense_over_tcp_is_sent_away_without_a_byte_and_disturbs_nobody() {
    let scene = Scene::new(3, |_| {});
    let mut rng = Rng::new(30);
    let proxy = TcpProxy::start(
        &scene.network.access,
        scene.network.access_address(),
        scene.entrance(),
        Duration::ZERO,
    );
    let (host, port) = (proxy.address().ip().to_string(), proxy.address().port().to_string());
    let options = ["--identity", "compat", "--transport", "tcp", "--remote", &host, "--port", &port];
    let profile = scene.gateway.add_user("bob", &options);
    let client = OpenVpnClient::connect(scene.network.client(1), &profile);
    ping(client.host(), scene.network.outside_address()).must_all_return();
    client.stop();
    eventually("the end of bob's session", SOON, || scene.gateway.session_of("bob").is_none());
    let said = proxy.said();
    let first = said[..2 + usize::from(u16::from_be_bytes([said[0], said[1]]))].to_vec();

    let lines = scene.gateway.logged("").len();
    let mut words: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &rng.bytes(500)].concat(),
        vec![0, 0],
        vec![0xff; 4000],
        first[..first.len() / 2].to_vec(),
        first[..3].to_vec(),
        record(&[&[0x38][..], &rng.bytes(53)].concat()),
        record(&[&[0x50][..], &rng.bytes(352)].concat()),
    ];
    for at in [2, 5, 12, first.len() - 1] {
        let mut changed = first.clone();
        changed[at] ^= 0x10;
        words.push(changed);
    }
    for _ in 0..Scale::get().pick(20, 200) {
        let len = 1 + rng.below(1500);
        words.push(rng.bytes(len));
    }
    let heard = scene.words_to(2..3);
    let (stranger, entrance) = (scene.network.client(2), scene.entrance());
    std::thread::scope(|scope| {
        let talks = words
            .iter()
            .enumerate()
            .map(|(number, words)| scope.spawn(move || converse(stranger, entrance, words, number % 2 == 0)));
        for talk in talks.collect::<Vec<_>>() {
            let (answer, took) = talk.join().expect("a talk");
            assert_eq!(answer, b"", "a stranger was answered");
            assert!(took < Duration::from_secs(12), "a stranger was listened to for {took:?}");
        }
    });
    assert_eq!(heard.seen(), []);
    assert_eq!(scene.gateway.logged("").len(), lines, "strangers fill the log");
    assert!(scene.gateway.drops("no_key_verified") >= 10);

    // Behind a good first packet: it has proven that it knows the key, and nothing more.
    for _ in 0..Scale::get().pick(4, 40) {
        let len = 1 + rng.below(3000);
        let words = [first.clone(), rng.bytes(len)].concat();
        converse(stranger, scene.entrance(), &words, true);
    }
    scene.as_before();
    // The same client over TCP still gets in.
    OpenVpnClient::connect(scene.network.client(1), &profile).stop();
}

#[test]
fn a_flood_of_nonsense_costs_no_memory_fills_no_log_and_keeps_nobody_out() {
    let scene = Scene::new(4, |_| {});
    let (_proxy, client, sent) = recorded(&scene, 1, "bob", "compat");
    client.stop();
    eventually("the end of bob's session", SOON, || scene.gateway.session_of("bob").is_none());
    let profile = scene.gateway.profile("bob", "laptop", &["--transport", "udp"]);
    let lines = scene.gateway.logged("").len();
    let before = scene.drops();
    let words = scene.words_to(3..4);
    let count: usize = Scale::get().pick(30_000, 600_000);
    let packets = nonsense(&mut Rng::new(40), &sent, 4000);
    let sockets: Vec<_> = (0..16).map(|_| scene.stranger(3)).collect();

    let flood = std::thread::spawn(move || {
        for (number, packet) in packets.iter().cycle().take(count).enumerate() {
            // What the network does not take is part of a flood.
            let _ = sockets[number % sockets.len()].send(packet);
        }
    });
    // In the middle of it somebody connects.
    let client = OpenVpnClient::connect(scene.network.client(2), &profile);
    ping_with(client.host(), scene.network.outside_address(), &["-c", "3", "-W", "5"]).must_all_return();
    flood.join().expect("the flood");
    client.stop();

    // Some are lost where they arrive faster than anybody could read them.
    let drops = scene.wait_for_drops(&before, count as u64 / 4);
    assert!(drops.contains_key("source_budget"), "one network has a budget: {drops:?}");
    assert_eq!(words.seen(), [], "a stranger was answered");
    let new = scene.gateway.logged("").split_off(lines);
    assert!(new.iter().all(|line| line.contains("CONNECT") && line.contains("bob")), "{new:#?}");
    scene.as_before();
}

#[test]
fn old_tls_is_refused_with_a_line_that_says_what_to_change() {
    let scene = Scene::new(5, |_| {});
    let options = ["--transport", "udp", "--identity", "compat"];
    let profile = scene.gateway.add_user("bob", &options);
    let weak =
        ["--tls-version-min", "1.0", "--tls-version-max", "1.1", "--tls-cipher", "DEFAULT:@SECLEVEL=0"];
    let dhe = ["--tls-version-max", "1.2", "--tls-cipher", "TLS-DHE-RSA-WITH-AES-256-GCM-SHA384"];
    let rsa = ["--tls-version-max", "1.2", "--tls-cipher", "TLS-RSA-WITH-AES-256-GCM-SHA384"];
    let sha1 = format!("{profile}\ntls-version-max 1.2\ntls-cipher DEFAULT:@SECLEVEL=0\n");
    let clients = [
        (try_once(scene.network.client(1), &profile, &weak), "at most TLS 1.1; adit needs 1.2"),
        (try_once(scene.network.client(2), &profile, &dhe), "adit needs ECDHE"),
        (try_once(scene.network.client(3), &profile, &rsa), "adit needs ECDHE"),
        (
            OpenVpnClient::start_offering(scene.network.client(4), &sha1, "RSA+SHA1:ECDSA+SHA1"),
            "no common signature algorithm: the peer offers only SHA-1",
        ),
    ];
    for (number, (client, why)) in clients.into_iter().enumerate() {
        // At once, although the client has gone and never acknowledges what it was told.
        eventually(&format!("a line about: {why}"), SOON, || !scene.lines_about(number + 1).is_empty());
        client.kill();
        let lines = scene.lines_about(number + 1);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains("handshake failed: TLS: "), "{}", lines[0]);
        assert!(lines[0].contains(why) && lines[0].contains("use a newer client"), "{why}: {}", lines[0]);
    }
    scene.as_before_but(4);
}

#[test]
fn a_client_that_compresses_all_the_same_is_named_and_its_packets_are_counted() {
    let scene = Scene::new(2, |_| {});
    let profile = scene.gateway.add_user("bob", &["--transport", "udp", "--route", "full"]);
    let outside = scene.network.outside_address();
    let allowed = ["--allow-compression", "yes"];
    let stubborn = ["--pull-filter", "ignore", "compress"];
    let set_up: [&[&str]; 3] = [&["--compress", "lz4"], &["--comp-lzo", "yes"], &["--compress", "lz4-v2"]];
    for (number, compression) in set_up.into_iter().take(Scale::get().pick(2, 3)).enumerate() {
        // One that does as it is told.
        let client =
            OpenVpnClient::connect_with(scene.network.client(1), &profile, &[&allowed, compression].concat());
        let easy = ["-c", "3", "-W", "5", "-s", "1000", "-p", "00"];
        ping_with(client.host(), outside, &easy).must_all_return();
        client.stop();
        let lines = scene.gateway.logged("set up for compression");
        assert_eq!(lines.len(), 2 * number + 1, "{lines:#?}");
        for words in ["bob", "take comp-lzo and compress out of its configuration", "counted as compressed"] {
            assert!(lines[2 * number].contains(words), "{words}: {}", lines[2 * number]);
        }

        // One that does not.
        let before = scene.gateway.drops("compressed");
        let options = [&allowed[..], &stubborn, compression].concat();
        let client = OpenVpnClient::connect_with(scene.network.client(1), &profile, &options);
        ping_with(client.host(), outside, &["-c", "3", "-W", "1", "-s", "1000", "-p", "00"])
            .must_not_return();
        eventually("packets are counted", SOON, || scene.gateway.drops("compressed") >= before + 3);
        client.stop();
        scene.gateway.wait_for_sessions(1, SOON);
        assert_eq!(scene.gateway.logged("set up for compression").len(), 2 * number + 2);
    }
    scene.as_before();
}
