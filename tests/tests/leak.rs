//! Nothing passes the tunnel by: with a full tunnel only packets to and from the gateway's entrance are on the wire.
//!
//! ```text
//!                           ┌─────────── router ─── outside, a resolver
//!  client 0 ─── access ─────┤               │      203.0.113.2, 2001:db8:113::2
//!  198.18.0.2      ^        └─ gateway ─────┘
//!             watched here    192.0.2.1:1194
//! ```
//!
//! Without a tunnel the client reaches the outside past the gateway, so that a leak is seen as one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_testbed::{
    Gateway, Host, HttpServer, Network, OpenVpnClient, Scale, Seen, Wire, eventually, http_get, ping,
    ping_with,
};

const SOON: Duration = Duration::from_secs(10);
const BRIEFLY: [&str; 4] = ["-c", "2", "-W", "1"];

const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// What never leaves a link: neighbour discovery (RFC 4861), and whatever is for all on the link (RFC 4291 section
/// 2.7).
fn is_local(packet: &Seen) -> bool {
    let discovery = packet.protocol == ICMP6 && matches!(packet.payload.first(), Some(133..=137));
    discovery || matches!(packet.to, IpAddr::V6(to) if to.segments()[0] == 0xff02)
}

/// True for what belongs to the tunnel to `gateway`.
fn is_tunnel(packet: &Seen, gateway: IpAddr) -> bool {
    let (from, to) = packet.ports;
    // All fragments of a datagram but the first have no ports.
    let rest = packet.protocol == UDP && packet.ports == (0, 0);
    rest && (packet.to == gateway || packet.from == gateway)
        || packet.to == gateway && to == 1194
        || packet.from == gateway && from == 1194
}

/// Everything on the wire outside the tunnel.
fn watch(network: &Network, gateway: IpAddr) -> Wire {
    Wire::watch(&network.access, move |packet| !is_tunnel(packet, gateway) && !is_local(packet))
}

/// What a resolver is asked.
struct Resolver {
    asked: Arc<Mutex<Vec<IpAddr>>>,
}

impl Resolver {
    /// Answers on an address of `host` as long as the process lives.
    fn start(host: &Host, address: IpAddr) -> Self {
        let socket = host.run_in(|| UdpSocket::bind((address, 53))).expect("port 53");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                log.lock().unwrap_or_else(PoisonError::into_inner).push(from.ip());
                // The question with the bit that makes it an answer.
                buffer[2] |= 0x80;
                let _ = socket.send_to(&buffer[..len], from);
            }
        });
        Self { asked }
    }

    /// Who has asked.
    fn asked(&self) -> Vec<IpAddr> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A question for the address of `example.org` (RFC 1035 section 4).
const QUESTION: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";

/// Asks a resolver; true when it answers.
fn resolve(host: &Host, resolver: IpAddr) -> bool {
    let any: IpAddr = if resolver.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = host.run_in(|| UdpSocket::bind((any, 0))).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let sent = socket.send_to(QUESTION, (resolver, 53)).is_ok();
    let mut buffer = [0; 512];
    sent && socket.recv(&mut buffer).is_ok_and(|len| len == QUESTION.len() && buffer[2] & 0x80 != 0)
}

/// A little of everything that people do, to both families.
fn browse(host: &Host, network: &Network, pages: &[SocketAddr], resolvers: &[IpAddr]) {
    for page in pages {
        assert_eq!(http_get(host, *page, "/50000").unwrap().len(), 50_000);
    }
    for resolver in resolvers {
        assert!(resolve(host, *resolver), "{resolver} does not answer");
    }
    ping(host, network.outside_address()).must_all_return();
    ping(host, network.outside_address6()).must_all_return();
    // As long as it takes a client to be bored.
    ping_with(host, network.outside_address(), &["-c", "3", "-s", "3000"]).must_all_return();
}

#[test]
fn with_a_full_tunnel_nothing_but_the_tunnel_is_on_the_wire() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let outside = [network.outside_address(), network.outside_address6()];
    let inside: IpAddr = "10.88.0.1".parse().unwrap();
    gateway.set("tunnel", "dns", &format!(r#"["{inside}", "{}", "{}"]"#, outside[0], outside[1]));
    gateway.up();
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    let servers = outside.map(|address| HttpServer::start(&network.outside, address));
    let pages = [servers[0].address(), servers[1].address()];
    let resolvers = outside.map(|address| Resolver::start(&network.outside, address));
    let own_resolver = Resolver::start(&network.gateway, inside);
    let client = network.client(0);
    let own = [network.client_address(0), network.client_address6(0)];

    // Without a tunnel all of it is seen: the eyes are open.
    let wire = watch(&network, network.gateway_address());
    browse(client, &network, &pages, &outside);
    eventually("everything, without a tunnel", SOON, || {
        let seen = wire.seen();
        let has = |protocol: u8, port: u16, from: IpAddr| {
            seen.iter().any(|p| p.protocol == protocol && p.ports.1 == port && p.from == from)
        };
        own.iter().all(|from| has(6, 80, *from) && has(UDP, 53, *from))
            && has(1, 0, own[0])
            && has(ICMP6, 0, own[1])
    });
    drop(wire);
    assert_eq!([&servers[0], &servers[1]].map(|server| server.visits()[0].from.ip()), own);

    let ways = [("udp", false), ("tcp", false), ("udp", true), ("tcp", true)];
    for (transport, ipv6) in ways.into_iter().take(Scale::get().pick(3, 4)) {
        let remote = if ipv6 { network.gateway_address6() } else { network.gateway_address() };
        let options = ["--transport", transport, "--remote", &remote.to_string()];
        let profile = gateway.profile("ann", "laptop", &options);
        let connection = OpenVpnClient::connect(client, &profile);
        let pushed: Vec<IpAddr> = connection
            .pushed()
            .iter()
            .filter_map(|option| {
                option.strip_prefix("dhcp-option DNS")?.trim_start_matches('6').trim().parse().ok()
            })
            .collect();
        assert_eq!(pushed, [inside, outside[0], outside[1]]);
        let wire = watch(&network, remote);
        let tunnel = Wire::watch(&network.access, move |packet| is_tunnel(packet, remote));

        browse(client, &network, &pages, &pushed);

        let exits = [network.exit_address(), connection.inner6()];
        for ((server, resolver), exit) in servers.iter().zip(&resolvers).zip(exits) {
            assert_eq!(server.visits().last().unwrap().from.ip(), exit);
            assert_eq!(resolver.asked().last(), Some(&exit));
        }
        assert_eq!(own_resolver.asked().last(), Some(&connection.inner4()));
        // Both pages, each way, in packets of at most 1500 bytes, seen twice.
        eventually("the tunnel's own packets", SOON, || tunnel.seen().len() > 2 * 2 * 50_000 / 1500);
        assert_eq!(wire.seen(), [], "{transport} to {remote}");
        connection.stop();
        gateway.wait_for_sessions(0, SOON);
    }
}

/// Without IPv6 inside, or with addresses that mean nothing outside, IPv6 is refused: it does not go past.
#[test]
fn ipv6_that_cannot_go_through_the_tunnel_does_not_go_past_it() {
    let network = Network::with_clients(1);
    let client = network.client(0);
    let outside = [network.outside_address(), network.outside_address6()];
    let servers = outside.map(|address| HttpServer::start(&network.outside, address));
    for pool6 in ["[]", r#"["fd88::/64"]"#] {
        let mut gateway = Gateway::new(&network);
        gateway.set("tunnel", "pool6", pool6);
        gateway.up();
        let profile = gateway.add_user("ann", &["--transport", "udp"]);
        assert!(http_get(client, servers[1].address(), "/before").is_ok());
        let visits = servers[1].visits().len();
        let connection = OpenVpnClient::connect(client, &profile);
        let wire = watch(&network, network.gateway_address());

        let refused = http_get(client, servers[1].address(), "/past").unwrap_err();
        ping_with(client, outside[1], &BRIEFLY).must_not_return();
        assert!(http_get(client, servers[0].address(), "/through").is_ok());

        assert_eq!(servers[0].visits().last().unwrap().from.ip(), network.exit_address());
        assert_eq!(servers[1].visits().len(), visits);
        // At once, so that programs try IPv4 instead of waiting.
        assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "{pool6}: {refused}");
        assert_eq!(wire.seen(), [], "with pool6 = {pool6}");
        connection.stop();
        assert!(http_get(client, servers[1].address(), "/after").is_ok());
    }
}

#[test]
fn what_a_client_sends_under_a_false_name_never_reaches_the_outside() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let ann = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &["--transport", "udp"]));
    let bob = OpenVpnClient::connect(network.client(1), &gateway.add_user("bob", &["--transport", "tcp"]));
    const PORT: u16 = 4444;
    let outside = Wire::watch(&network.router, |packet| packet.ports.1 == PORT);
    let lies = |victim: &OpenVpnClient| {
        let v4 = ["10.88.0.1", "10.88.77.7", "10.99.0.1", "198.51.100.1", "203.0.113.77", "8.8.8.8"];
        let v6 = ["2001:db8:88::1", "2001:db8:88::7777", "fd00::1", "2001:db8:51::1", "2001:db8:113::77"];
        let addresses = v4.into_iter().chain(v6).map(|text| text.parse::<IpAddr>().unwrap());
        addresses.chain([victim.inner4(), victim.inner6()]).collect::<Vec<_>>()
    };

    for (liar, victim) in [(&ann, &bob), (&bob, &ann)] {
        let host = liar.host();
        let mut sent = 0;
        let before = gateway.drops("bad_source_address");
        for from in lies(victim) {
            let to = if from.is_ipv4() { network.outside_address() } else { network.outside_address6() };
            let length = if from.is_ipv4() { 32 } else { 128 };
            // Without `nodad` an IPv6 address may not be there at once.
            let at_once = if from.is_ipv6() { " nodad" } else { "" };
            host.ip(&format!("address add {from}/{length} dev lo{at_once}"));
            let socket = host.run_in(|| UdpSocket::bind((from, 0))).unwrap();
            for _ in 0..3 {
                socket.send_to(b"not me", (to, PORT)).unwrap();
                sent += 1;
            }
            host.ip(&format!("address delete {from}/{length} dev lo"));
        }
        eventually("all lies being dropped", SOON, || gateway.drops("bad_source_address") >= before + sent);
        assert_eq!(outside.seen().len(), 0, "{:?}", outside.seen());
    }

    // The truth arrives.
    for (client, to, from) in [
        (&ann, network.outside_address(), network.exit_address()),
        (&bob, network.outside_address6(), bob.inner6()),
    ] {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = client.host().run_in(|| UdpSocket::bind((any, 0))).unwrap();
        socket.send_to(b"me", (to, PORT)).unwrap();
        eventually("what is true", SOON, || outside.seen().iter().any(|packet| packet.from == from));
    }
    gateway.stop();
}
