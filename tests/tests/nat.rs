//! Every connection that leaves names its user, and nothing leaves that names nobody.
//!
//! ```text
//!  client N ── access ── 192.0.2.1 gateway 198.51.100.1 ── router ── outside: a witness on 32 ports
//! ```
//!
//! Each client says its user's name in each connection. The checker sees what the witness wrote down, and `adit trace`.

#[path = "../src/traces.rs"]
mod traces;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread::scope;
use std::time::{SystemTime, UNIX_EPOCH};

use adit_testbed::{
    Gateway, Host, Network, OpenVpnClient, Rng, Scale, Sighting, Wire, Witness, eventually, ping_with,
};
use serde_json::Value;

use self::traces::{
    LATE, PORTS, both, call_often, connect, hold, must_all_be_traced, must_go_on, said, traced,
};

/// Calls that each client holds at a time.
const AT_ONCE: usize = 40;

fn witness(network: &Network) -> Witness {
    Witness::start(&network.outside, network.outside_address(), PORTS)
}

/// Milliseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// The block of an inner address.
#[track_caller]
fn block_of(gateway: &Gateway, inner: IpAddr) -> Value {
    let blocks = gateway.json(&["nat", "show"])["blocks"].as_array().expect("blocks").clone();
    let found = blocks.into_iter().find(|block| block["inner"] == inner.to_string());
    found.unwrap_or_else(|| panic!("{inner} has no block"))["block"].clone()
}

#[test]
fn every_connection_of_many_clients_is_traced_to_its_user() {
    let scale = Scale::get();
    let (count, calls) = (scale.pick(6, 50), scale.pick(100, 1000));
    let network = Network::with_clients(count);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, count);
    scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            let witness = &witness;
            scope.spawn(move || call_often(client, witness, &format!("user{number}"), calls, AT_ONCE));
        }
    });

    let seen = witness.seen();
    assert_eq!(seen.iter().filter(|seen| seen.name.contains('/')).count(), count * calls);
    assert!(seen.iter().all(|sighting| sighting.remote.ip() == network.exit_address()));
    for tcp in [true, false] {
        let mut ports: Vec<_> = seen.iter().filter(|seen| seen.tcp == tcp).map(|seen| seen.port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), PORTS, "tcp {tcp}");
    }
    must_all_be_traced(&gateway, &seen, "0s");
    for sighting in seen.iter().step_by(seen.len() / 10) {
        assert_eq!(traced(&gateway, sighting, "2s"), [said(sighting)], "{sighting:?}");
    }
    gateway.ok(&["trace", "verify"]);
}

#[test]
fn who_it_was_is_known_and_calls_go_on_across_a_restart_and_a_crash() {
    const CLIENTS: usize = 3;
    let network = Network::with_clients(CLIENTS);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, CLIENTS);
    let inner: Vec<_> = clients.iter().map(OpenVpnClient::inner4).collect();
    let call_all = || {
        for (number, client) in clients.iter().enumerate() {
            call_often(client, &witness, &format!("user{number}"), PORTS * 2, AT_ONCE);
        }
    };
    let mut held = hold(&clients, &witness, 0);

    for crash in [false, true] {
        call_all();
        let marks: Vec<_> = clients.iter().map(OpenVpnClient::mark).collect();
        if crash {
            gateway.kill();
        } else {
            gateway.stop();
        }
        gateway.up();
        for (client, mark) in clients.iter().zip(marks) {
            client.wait_until_connected_since(mark, LATE);
        }
        gateway.wait_for_sessions(CLIENTS, LATE);
        assert_eq!(clients.iter().map(OpenVpnClient::inner4).collect::<Vec<_>>(), inner, "crash {crash}");
        must_go_on(&mut held, if crash { "after a crash" } else { "after a restart" });
    }
    call_all();

    // Of the last moment before the crash too.
    must_all_be_traced(&gateway, &witness.seen(), "0s");
    gateway.ok(&["trace", "verify"]);
}

/// Five addresses for eight users on four machines: who comes gets what others had a moment ago.
fn users_come_and_go(linger: &str) {
    const MACHINES: usize = 4;
    const USERS: usize = 8;
    let network = Network::with_clients(MACHINES);
    let mut gateway = Gateway::with(&network, &["--pool4", "10.88.0.0/29", "--pool6", "2001:db8:88::/64"]);
    gateway.set("tunnel", "linger", linger);
    gateway.set("nat", "ports", "\"40000-40319\"");
    gateway.up();
    let witness = witness(&network);
    let profiles: Vec<_> =
        (0..USERS).map(|user| gateway.add_user(&format!("user{user}"), &["--transport", "udp"])).collect();
    let mut rng = Rng::new(5);
    let mut away: Vec<_> = (0..USERS).collect();
    rng.shuffle(&mut away);
    let start = |machine: usize, user: usize| {
        let client = OpenVpnClient::connect(network.client(machine), &profiles[user]);
        call_often(&client, &witness, &format!("user{user}"), PORTS, AT_ONCE);
        (user, client)
    };
    let mut here: Vec<_> =
        (0..MACHINES).map(|machine| Some(start(machine, away.pop().expect("a user")))).collect();
    let (mut taken_over, mut last): (usize, Vec<(IpAddr, usize)>) = (0, Vec::new());
    for _ in 0..Scale::get().pick(6, 60) {
        let machine = rng.below(MACHINES);
        let (user, client) = here[machine].take().expect("somebody");
        // Who says nothing is missed later, and has addresses and ports until then.
        if rng.chance(0.3) {
            client.kill();
        } else {
            client.stop();
        }
        eventually("the end of a session", LATE, || gateway.session_of(&format!("user{user}")).is_none());
        let next = away.swap_remove(rng.below(away.len()));
        away.push(user);
        let (_, client) = here[machine].insert(start(machine, next));
        let inner = client.inner4();
        taken_over += usize::from(last.iter().any(|(address, user)| *address == inner && *user != next));
        last.retain(|(address, _)| *address != inner);
        last.push((inner, next));
        for (user, client) in here.iter().flatten() {
            call_often(client, &witness, &format!("user{user}"), 4, AT_ONCE);
        }
    }

    if Scale::get() == Scale::Full {
        assert!(taken_over > 0, "addresses went from one user to another");
    }
    must_all_be_traced(&gateway, &witness.seen(), "0s");
    gateway.ok(&["trace", "verify"]);
}

#[test]
fn users_who_get_what_others_had_at_once_are_told_apart() {
    users_come_and_go("\"0s\"");
}

#[test]
fn users_who_get_what_others_are_keeping_are_told_apart() {
    users_come_and_go("\"2m\"");
}

#[test]
fn connections_stay_open_over_a_reload() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, 2);
    let mut held = hold(&clients, &witness, 0);
    let before = gateway.json(&["nat", "show"]);

    gateway.set("tunnel", "dns", "[\"10.88.0.1\"]");
    assert_eq!(gateway.json(&["reload"])["applied"], true);

    must_go_on(&mut held, "after a reload");
    assert_eq!(gateway.json(&["nat", "show"]), before);
    let seen = witness.seen();
    let mut ends: Vec<_> = seen.iter().map(|seen| (seen.tcp, seen.remote)).collect();
    ends.sort_unstable();
    ends.dedup();
    assert_eq!(ends.len(), 4, "as they came, so they stay: {seen:?}");
    must_all_be_traced(&gateway, &seen, "0s");
}

#[test]
fn a_question_about_nobody_is_answered_with_nobody() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, 1);
    call_often(&clients[0], &witness, "user0", 2, AT_ONCE);
    let seen = witness.seen();
    must_all_be_traced(&gateway, &seen, "0s");
    let block = block_of(&gateway, clients[0].inner4());
    let below = block["from"].as_u64().expect("a port") - 1;

    let (now, exit) = ((seen[0].at / 1000).to_string(), network.exit_address().to_string());
    let (early, port) = ((seen[0].at / 1000 - 3600).to_string(), seen[0].remote.port().to_string());
    let below = below.to_string();
    for (what, at, address, port) in [
        ("before anybody came", &early, exit.as_str(), &port),
        ("another address", &now, "198.51.100.77", &port),
        ("a block nobody has", &now, exit.as_str(), &below),
        ("below the range", &now, exit.as_str(), &"29999".to_owned()),
    ] {
        let question = ["trace", "--at", at, "--address", address, "--port", port, "--json"];
        let outcome = gateway.cli(&question);
        let answer: Value =
            serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((outcome.code, &answer["matches"]), (Some(3), &Value::Array(Vec::new())), "{what}");
    }
}

/// The identifier in an echo request, and who the pattern in it says it is.
fn echo(packet: &adit_testbed::Seen) -> Option<(u16, u8)> {
    let id = packet.payload.get(4..6)?;
    Some((u16::from_be_bytes([id[0], id[1]]), *packet.payload.last()?))
}

#[test]
fn echo_identifiers_and_ipv6_addresses_name_their_users() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let exit = network.exit_address();
    let wire = Wire::watch(&network.router, move |seen| {
        seen.protocol == 1 && seen.from == exit && seen.payload.first() == Some(&8)
    });
    let clients = connect(&network, &gateway, 2);
    scope(|scope| {
        for (pattern, client) in ["a0", "a1"].iter().zip(&clients) {
            let outside = network.outside_address();
            scope.spawn(move || {
                let options = ["-c", "3", "-W", "30", "-p", pattern];
                ping_with(client.host(), outside, &options).must_all_return();
            });
        }
    });

    let (now, exit) = ((now() / 1000).to_string(), exit.to_string());
    for number in 0..2_u8 {
        let seen = wire.seen();
        let found = seen.iter().filter_map(echo).find(|(_, pattern)| *pattern == 0xa0 + number);
        let (id, _) = found.unwrap_or_else(|| panic!("no echo request of user{number}"));
        let id = id.to_string();
        let trace =
            gateway.json(&["trace", "--at", &now, "--address", &exit, "--id", &id, "--tolerance", "60s"]);
        assert_eq!(trace["matches"].as_array().map(Vec::len), Some(1), "{trace}");
        assert_eq!(trace["matches"][0]["user"], format!("user{number}"), "{trace}");
    }

    let witness = Witness::start(&network.outside, network.outside_address6(), 1);
    for (number, client) in clients.iter().enumerate() {
        both(client, &witness, &format!("user{number}"), 0);
    }
    for seen in witness.seen() {
        let (at, inner) = ((seen.at / 1000).to_string(), seen.remote.ip().to_string());
        let trace = gateway.json(&["trace", "--at", &at, "--address", &inner]);
        let found = &trace["matches"][0];
        assert_eq!((&found["kind"], &found["user"]), (&"ipv6".into(), &seen.name.as_str().into()), "{trace}");
        let client = &clients[usize::from(seen.name == "user1")];
        assert_eq!(seen.remote.ip(), client.inner6());
    }
}

fn udp(host: &Host, from: (IpAddr, u16)) -> UdpSocket {
    let socket = host.run_in(|| UdpSocket::bind(from)).expect("a free port");
    socket.set_read_timeout(Some(LATE)).expect("a socket");
    socket
}

/// The next datagram: what it says, and where it comes from.
#[track_caller]
fn received(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
}

/// One address and one block for two users: ann leaves, and bob, who comes at once, calls the same server from the
/// same inner address and port, while the server still talks to ann.
fn hand_over(linger: &str, quiet: bool) {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::with(&network, &["--pool4", "10.88.0.0/30", "--pool6", "2001:db8:88::/64"]);
    gateway.set("tunnel", "linger", linger);
    gateway.set("nat", "ports", "\"40000-40063\"");
    gateway.up();
    let profiles = ["ann", "bob"].map(|user| gateway.add_user(user, &["--transport", "udp"]));
    let server = udp(&network.outside, (network.outside_address(), 0));
    let to = server.local_addr().expect("bound");
    let sighting = |name: &str, remote: SocketAddr| Sighting {
        tcp: false,
        remote,
        port: to.port(),
        name: name.to_owned(),
        at: now(),
    };

    let ann = OpenVpnClient::connect(network.client(0), &profiles[0]);
    let inner = ann.inner4();
    let block = block_of(&gateway, inner);
    // One inner port that NAT leaves as it is, and one that it does not.
    let ports = [40_007, 1_007];
    let of_ann: Vec<_> = ports
        .iter()
        .map(|port| {
            let socket = udp(network.client(0), (inner, *port));
            socket.send_to(b"ann", to).expect("a way out");
            let (word, remote) = received(&server);
            assert_eq!(word, "ann");
            server.send_to(b"for ann", remote).expect("a way back");
            assert_eq!(received(&socket).0, "for ann");
            sighting("ann", remote)
        })
        .collect();
    let late = || {
        for flow in &of_ann {
            server.send_to(b"for ann", flow.remote).expect("a way back");
        }
    };
    let early = || {
        if !quiet {
            late();
        }
    };
    ann.stop();
    gateway.wait_for_sessions(0, LATE);
    early();
    let bob = OpenVpnClient::start(network.client(1), &profiles[1]);
    early();
    bob.wait_until_connected();
    assert_eq!((bob.inner4(), block_of(&gateway, inner)), (inner, block));

    let sockets = ports.map(|port| udp(network.client(1), (inner, port)));
    early();
    let mut of_bob = Vec::new();
    for socket in &sockets {
        early();
        socket.send_to(b"bob", to).expect("a way out");
        let (word, remote) = received(&server);
        assert_eq!(word, "bob");
        of_bob.push(sighting("bob", remote));
        late();
        server.send_to(b"for bob", remote).expect("a way back");
    }
    for (port, socket) in ports.iter().zip(&sockets) {
        assert_eq!(received(socket).0, "for bob", "linger {linger}, inner port {port}");
    }

    must_all_be_traced(&gateway, &[&of_ann[..], &of_bob[..]].concat(), "0s");
    assert_eq!(traced(&gateway, &of_bob[0], "5m"), ["ann", "bob"], "near a boundary both are named");
}

#[test]
fn late_packets_of_one_user_do_not_reach_the_next_who_has_the_same_address_and_ports() {
    hand_over("\"0s\"", false);
}

#[test]
fn late_packets_do_not_reach_who_gets_address_and_ports_of_one_who_may_come_back() {
    hand_over("\"2m\"", false);
}

#[test]
fn a_packet_that_was_under_way_all_the_time_does_not_reach_the_next_user() {
    hand_over("\"0s\"", true);
}

/// An IPv4 packet; the kernel fills in its length and header checksum.
fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let head = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    [&head[..], &from.octets(), &to.octets(), payload].concat()
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

/// A TCP segment out of nothing, with these flags.
fn segment(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let (source, destination) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    let rest = [1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    let mut tcp = [&source[..], &destination, &rest].concat();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, 20]].concat();
    let sum = checksum(&[&pseudo[..], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    packet(from, to, 6, &tcp)
}

fn datagram(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let (source, destination) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    packet(from, to, 17, &[&source[..], &destination, &[0, 12, 0, 0], b"fake"].concat())
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is no IPv4 address"),
    }
}

#[test]
fn what_could_not_be_traced_does_not_leave() {
    const GRE: u8 = 47;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let (outside, exit) = (v4(network.outside_address()), network.exit_address());
    let wire = Wire::watch(&network.router, move |seen| seen.to == IpAddr::V4(outside));
    let witness = witness(&network);
    let clients = connect(&network, &gateway, 1);
    let (client, inner) = (&clients[0], v4(clients[0].inner4()));
    let block = block_of(&gateway, inner.into());
    let refusals = Wire::watch(client.host(), |seen| seen.protocol == 1 && seen.payload.starts_with(&[3, 2]));
    let mut held = hold(&clients, &witness, 0);

    let ports = (4444, witness.address(0).port());
    let mut packets = vec![packet(inner, outside, GRE, &[0; 8])];
    // No flags, SYN with FIN, an end and an acknowledgement of nothing.
    packets.extend([0, 3, RST, RST | ACK, ACK].map(|flags| segment(inner, outside, ports, flags)));
    let mut broken = segment(inner, outside, ports, ACK);
    broken[36] ^= 0x55;
    packets.push(broken);
    // The destination of what was never sent is unreachable.
    let cited = datagram(outside, inner, ports);
    let mut error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &cited].concat();
    let sum = checksum(&error);
    error[2..4].copy_from_slice(&sum);
    packets.push(packet(inner, outside, 1, &error));
    for spoofed in ["10.88.77.7", "192.168.7.7", "198.51.100.1", "203.0.113.77"] {
        packets.push(datagram(spoofed.parse().expect("an address"), outside, ports));
    }
    let raw = client.host().run_in(|| {
        let kind = rustix::net::SocketType::RAW;
        rustix::net::socket(rustix::net::AddressFamily::INET, kind, Some(rustix::net::ipproto::RAW))
    });
    let raw = raw.expect("a raw socket");
    let to = SocketAddr::from((outside, 0));
    for packet in packets.iter().chain(&packets) {
        rustix::net::sendto(&raw, packet, rustix::net::SendFlags::empty(), &to).expect("a way out");
        must_go_on(&mut held, "beside what is refused");
    }
    // What was sent before this has left by now, or never will.
    both(client, &witness, "user0/last", 1);
    let last = witness.seen().last().expect("calls").remote.port();
    eventually("the last call on the wire", LATE, || wire.seen().iter().any(|seen| seen.ports.0 == last));

    let within = block["from"].as_u64().zip(block["to"].as_u64()).expect("ports");
    for seen in wire.seen() {
        let traceable = seen.from == exit
            && [6, 17].contains(&seen.protocol)
            && (within.0..=within.1).contains(&seen.ports.0.into());
        assert!(traceable && !seen.payload.ends_with(b"fake"), "this has left: {seen:?}");
    }
    eventually("protocol unreachable", LATE, || !refusals.seen().is_empty());

    // It is for the rules.
    network.gateway.nft(
        "flush chain inet adit_nat forward\nflush chain inet adit_nat postrouting\nflush chain inet adit postrouting",
    );
    rustix::net::sendto(&raw, &packets[0], rustix::net::SendFlags::empty(), &to).expect("a way out");
    eventually("what nobody translates", LATE, || wire.seen().iter().any(|seen| seen.protocol == GRE));
}

/// The first packet of a client (P_CONTROL_HARD_RESET_CLIENT_V2), and how the answer begins.
const HELLO: [u8; 14] = [0x38, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0];
const WELCOME: char = '\u{40}';

#[test]
fn ports_of_the_gateway_cannot_be_taken_over_from_inside() {
    const FORWARDED: u16 = 30_022;
    let network = Network::with_clients(2);
    let exit = network.exit_address();
    let mut gateway = Gateway::new(&network);
    gateway.clear_identities();
    gateway.add_identity("plain", "P-256", "none");
    // Everything on one address.
    gateway.edit(|document| {
        document["public"] = toml_edit::value(toml_edit::Array::from_iter([exit.to_string()]));
        document["entrance"][0]["address"] = toml_edit::value(exit.to_string());
        document["entrance"][0]["udp"] = toml_edit::value("1-29999");
        document["entrance"][0]["tcp"] = toml_edit::value("1-29999");
    });
    gateway.set("forward", "ports", "\"30000-39999\"");
    gateway.up();
    let clients = connect(&network, &gateway, 2);
    let (attacker, owner) = (&clients[0], &clients[1]);
    let device = udp(owner.host(), (owner.inner4(), 0));
    let inside = device.local_addr().expect("bound").port().to_string();
    let forwarded = FORWARDED.to_string();
    gateway
        .ok(&["forward", "add", "user1", "laptop", "--proto", "udp", "--to", &inside, "--port", &forwarded]);
    let service = udp(&network.gateway, (Ipv4Addr::UNSPECIFIED.into(), 0));
    let own = service.local_addr().expect("bound").port();

    for port in [53, 443, 1194, 29_999, FORWARDED, own] {
        let peer = udp(&network.outside, (network.outside_address(), 0));
        let shadow = udp(attacker.host(), (attacker.inner4(), port));
        shadow.send_to(b"mine now", peer.local_addr().expect("bound")).expect("a way out");
        let (word, from) = received(&peer);
        assert_eq!((word.as_str(), from.ip()), ("mine now", exit));
        assert_ne!(from.port(), port, "the port of somebody else");

        peer.send_to(&HELLO, (exit, port)).expect("a way to the gateway");
        match port {
            FORWARDED => assert_eq!(received(&device).0.as_bytes(), HELLO),
            port if port == own => assert_eq!(received(&service).0.as_bytes(), HELLO),
            _ => {
                let (word, from) = received(&peer);
                assert!(word.starts_with(WELCOME) && from == (exit, port).into(), "{from}: {word:?}");
            }
        }
        peer.send_to(b"an answer", from).expect("a way back");
        assert_eq!(received(&shadow).0, "an answer", "nothing else has come to port {port}");
    }
}

#[test]
fn who_has_no_port_left_towards_a_server_is_refused_and_everything_else_goes_on() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.set("nat", "block", "4");
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, 2);
    let call = |client: usize, number: usize| {
        let user = format!("user{client}");
        let call = clients[client].host().run_in(|| witness.call(&format!("{user}/x"), true, number));
        call.map(|call| (user, call))
    };
    let mut held: Vec<_> = (0..4).map(|_| call(0, 0).expect("a port of the block")).collect();

    for _ in 0..2 {
        // An attempt that the client gives up before its packet is repeated says nothing.
        eventually("a reset", LATE, || {
            let outcome = call(0, 0).map_err(|error| error.kind());
            assert!(outcome.is_err(), "there are no more than four ports");
            matches!(outcome, Err(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset))
        });
    }

    held.push(call(0, 1).expect("another server has a port"));
    held.push(call(1, 0).expect("another user has a port"));
    must_go_on(&mut held, "beside what is refused");
    must_all_be_traced(&gateway, &witness.seen(), "0s");
}
