//! The gateway as a router: what its clients' connections may expect of the path, and what nobody may.
//!
//! ```text
//!  site ── client ── access ── 192.0.2.1 gateway 198.51.100.1 ── router ── outside
//!                                  tunnel 10.88.0.0/16
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use adit_testbed::{
    Gateway, Host, HttpServer, Network, OpenVpnClient, Seen, Wire, Witness, eventually, eventually_some,
    http_get, ping, ping_with,
};
use adit_tests::calls::{forward, must_be_refused, must_reach, port, service};

const LATE: Duration = Duration::from_secs(60);
const ICMP: u8 = 1;
const TCP: u8 = 6;
/// Destination unreachable, fragmentation needed (RFC 792, RFC 1191).
const TOO_BIG: [u8; 2] = [3, 4];
/// A page that takes many segments.
const PAGE: usize = 2_000_000;

fn with_forwards(network: &Network) -> Gateway {
    let gateway = Gateway::new(network);
    gateway.set("forward", "per_user", "5");
    gateway
}

/// The largest segment that a SYN asks for (RFC 9293 section 3.7.1).
fn wanted_segment(packet: &Seen) -> Option<u16> {
    let tcp = packet.payload.as_slice();
    if packet.protocol != TCP || tcp.get(13)? & 2 == 0 {
        return None;
    }
    let mut options = tcp.get(20..usize::from(tcp.get(12)? >> 4) * 4)?;
    loop {
        match *options {
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([high, low])),
            [1, ref rest @ ..] => options = rest,
            [kind, length, ..] if kind > 1 => options = options.get(usize::from(length).max(2)..)?,
            _ => return None,
        }
    }
}

/// What SYNs to `to` ask for, coming or going, last of all.
#[track_caller]
fn last_wanted(wire: &Wire, to: IpAddr) -> u16 {
    eventually_some(&format!("a SYN to {to}"), LATE, || {
        wire.seen().iter().rev().filter(|packet| packet.to == to).find_map(wanted_segment)
    })
}

#[test]
fn segments_of_connections_through_the_tunnel_fit_into_it_both_ways() {
    let network = Network::with_clients(1);
    let mut gateway = with_forwards(&network);
    gateway.up();
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    let outside = Wire::watch(&network.outside, |packet| wanted_segment(packet).is_some());
    // The tunnel's own SYNs are not for inner addresses.
    let inside = Wire::watch(client.host(), |packet| wanted_segment(packet).is_some());
    // The carrier's headers (IPv4, UDP), opcode and peer, packet number, tag.
    let room = 1500 - (20 + 8) - 4 - 4 - 16;
    let fits = |segment: u16, headers: u16, whose: &str| {
        assert!(segment + headers <= room, "{whose}: a segment of {segment} does not fit");
        assert!(segment + headers > room - 100, "{whose}: {segment} is less than it has to be");
    };
    for (address, inner, headers) in
        [(network.outside_address(), client.inner4(), 40), (network.outside_address6(), client.inner6(), 60)]
    {
        let witness = Witness::start(&network.outside, address, 1);
        let _call = must_reach(client.host(), witness.address(0), true, "ann");
        fits(last_wanted(&outside, address), headers, "what the client asks for");
        fits(last_wanted(&inside, inner), headers, "what the outside answers");
    }

    let service = service(client.host());
    let made = forward(&gateway, "ann", service.address(0).port(), &["--proto", "tcp"]);
    let seen = inside.seen().len();
    let at = SocketAddr::new(network.exit_address(), port(&made[0]));
    let _call = must_reach(&network.outside, at, true, "an outsider");
    assert!(inside.seen().len() > seen);
    fits(last_wanted(&inside, client.inner4()), 40, "what an outsider asks for");
    fits(last_wanted(&outside, network.outside_address()), 40, "what the client answers");
    client.stop();
}

/// Writes to `to` until `PAGE` bytes have been read at the other end.
fn upload(from: &Host, server: &Host, address: IpAddr) {
    let listener = server.run_in(|| TcpListener::bind((address, 0))).expect("a listener");
    let to = listener.local_addr().expect("bound");
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(LATE)).expect("a timeout");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map(|_| all.len())
    });
    let mut stream = from.run_in(|| TcpStream::connect_timeout(&to, LATE)).expect("a connection");
    stream.set_write_timeout(Some(LATE)).expect("a timeout");
    stream.write_all(&vec![7; PAGE]).expect("all is taken");
    drop(stream);
    assert_eq!(reader.join().expect("no panic").expect("all arrives in time"), PAGE);
}

/// ICMP errors that say that a packet was too big, with the size that fits.
fn too_big(wire: &Wire) -> Vec<(IpAddr, u16)> {
    let seen = wire.seen();
    let errors = seen.iter().filter(|packet| packet.protocol == ICMP && packet.payload.starts_with(&TOO_BIG));
    errors.map(|packet| (packet.from, u16::from_be_bytes([packet.payload[6], packet.payload[7]]))).collect()
}

/// The machine knows nothing of paths any more.
fn forget_paths(host: &Host) {
    for family in ["-4", "-6"] {
        host.run(Command::new("ip").args([family, "route", "flush", "cache"]));
    }
}

#[test]
fn a_client_learns_of_a_narrow_link_behind_the_gateway() {
    let network = Network::with_clients(1);
    let mut gateway = with_forwards(&network);
    gateway.up();
    let client = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &[]));
    let outside = [network.outside_address(), network.outside_address6()];
    for address in outside {
        ping_with(client.host(), address, &["-M", "do", "-s", "1350", "-c", "2", "-W", "5"])
            .must_all_return();
    }
    // The outside keeps to it, and still asks for full segments, so that the path alone says what fits.
    network.router.ip("link set out mtu 1300");
    network.outside.ip("route change default via 203.0.113.1 mtu 1300 advmss 1460\n\
         route change default via 2001:db8:113::1 mtu 1300 advmss 1440\n");
    for address in outside {
        eventually(&format!("an error with the size, to {address}"), LATE, || {
            let options = ["-M", "do", "-s", "1350", "-c", "1", "-W", "2"];
            let result = ping_with(client.host(), address, &options);
            assert_eq!(result.received, 0, "{}", result.text);
            result.text.contains("mtu = 1300") || result.text.contains("mtu=1300")
        });
        forget_paths(client.host());
        upload(client.host(), &network.outside, address);
        let server = HttpServer::start(&network.outside, address);
        let page = http_get(client.host(), server.address(), &format!("/{PAGE}")).expect("the page");
        assert_eq!(page.len(), PAGE);
    }
    client.stop();
}

#[test]
fn the_outside_learns_of_a_narrow_link_behind_a_client_and_of_a_narrow_tunnel() {
    let network = Network::with_clients(2);
    let mut gateway = with_forwards(&network);
    gateway.up();
    let client = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &[]));
    let site = network.site(0, 7);
    client.host().nft(
        "table ip share { chain postrouting { type nat hook postrouting priority srcnat; \
         iifname \"site\" oifname \"tun*\" masquerade; }; }",
    );
    client.host().ip("link set site mtu 1200");
    let exit = network.exit_address();
    let wire = Wire::watch(&network.outside, |packet| packet.protocol == ICMP);
    let server = HttpServer::start(&network.outside, network.outside_address());
    let page = http_get(&site, server.address(), &format!("/{PAGE}")).expect("the page");
    assert_eq!(page.len(), PAGE);
    let errors = too_big(&wire);
    assert!(!errors.is_empty() && errors.iter().all(|error| *error == (exit, 1200)), "{errors:?}");
    client.stop();
    gateway.stop();

    forget_paths(&network.outside);
    gateway.set("tunnel", "mtu", "1300");
    gateway.up();
    let bob = OpenVpnClient::connect(network.client(1), &gateway.add_user("bob", &[]));
    let socket = bob.host().run_in(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    socket.set_nonblocking(true).expect("nonblocking");
    let to = socket.local_addr().expect("bound").port();
    let made = forward(&gateway, "bob", to, &["--proto", "udp"]);
    // Linux forbids fragments of datagrams until it has learnt of a smaller path.
    let sender =
        network.outside.run_in(|| UdpSocket::bind((network.outside_address(), 0))).expect("a socket");
    let wire = Wire::watch(&network.outside, |packet| packet.protocol == ICMP);
    eventually("a datagram that is larger than the tunnel", LATE, || {
        let sent = sender.send_to(&[7; 1400], (exit, port(&made[0])));
        let mut buffer = [0; 2000];
        sent.is_ok() && socket.recv(&mut buffer).is_ok_and(|length| length == 1400)
    });
    let errors = too_big(&wire);
    assert!(!errors.is_empty() && errors.iter().all(|error| *error == (exit, 1300)), "{errors:?}");
    bob.stop();
}

#[test]
fn nobody_outside_reaches_an_inner_address_whatever_routes_there_are() {
    let network = Network::with_clients(2);
    let mut gateway = with_forwards(&network);
    gateway.up();
    let ann = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &[]));
    let service = service(ann.host());
    let to = service.address(0).port();
    let made = forward(&gateway, "ann", to, &[]);
    network.router.ip("route add 10.88.0.0/16 via 198.51.100.1");
    network.access.ip("route add 10.88.0.0/16 via 192.0.2.1");
    let (inner4, inner6) = (ann.inner4(), ann.inner6());
    // Each of these says where it is.
    let strangers: [(&Host, &str); 3] =
        [(&network.outside, "outside"), (&network.router, "router"), (network.client(1), "neighbour")];
    let wire = Wire::watch(ann.host(), |packet| packet.payload.windows(8).any(|word| word == b"intruder"));

    // An answer by the way that is open, and beside it one to the inner address itself.
    let peer = network.outside.run_in(|| UdpSocket::bind((network.outside_address(), 0))).expect("a socket");
    let own = ann.host().run_in(|| UdpSocket::bind((inner4, 0))).expect("a socket");
    peer.set_read_timeout(Some(LATE)).expect("a timeout");
    own.set_read_timeout(Some(LATE)).expect("a timeout");
    let mut buffer = [0; 64];
    own.send_to(b"hello", peer.local_addr().expect("bound")).expect("sent");
    let (_, translated) = peer.recv_from(&mut buffer).expect("a hello");
    assert_eq!(translated.ip(), network.exit_address());
    peer.send_to(b"intruder", own.local_addr().expect("bound")).expect("sent");
    peer.send_to(b"welcome", translated).expect("sent");
    let length = own.recv(&mut buffer).expect("the answer");
    assert_eq!(&buffer[..length], b"welcome", "what was sent first is not what arrives");

    for (stranger, name) in strangers {
        for address in [inner4, inner6, "10.88.0.1".parse().expect("an address")] {
            ping_with(stranger, address, &["-c", "2", "-W", "1", "-p", "696e747275646572"]).must_not_return();
        }
        for address in [inner4, inner6] {
            let at = SocketAddr::new(address, to);
            let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let socket = stranger.run_in(|| UdpSocket::bind((any, 0))).expect("a socket");
            for _ in 0..3 {
                // An earlier one may have been refused.
                let _ = socket.send_to(b"intruder", at);
            }
            let tcp = stranger.run_in(|| TcpStream::connect_timeout(&at, Duration::from_secs(2)));
            assert!(tcp.is_err(), "{name} reaches {at}");
        }
        // What was sent before has come as far as it will.
        let name = format!("{name} by the forward");
        must_reach(stranger, SocketAddr::new(network.exit_address(), port(&made[0])), false, &name);
    }
    assert_eq!(wire.seen(), [], "in the tunnel");
    let seen = service.seen();
    assert!(seen.iter().all(|sighting| sighting.name.ends_with("by the forward")), "{seen:?}");
    ann.stop();
}

#[test]
fn a_client_cannot_send_in_anothers_name() {
    let network = Network::with_clients(2);
    let mut gateway = with_forwards(&network);
    gateway.up();
    let ann = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &[]));
    let bob = OpenVpnClient::connect(network.client(1), &gateway.add_user("bob", &[]));
    let witness = Witness::start(&network.outside, network.outside_address(), 1);
    let mut good = must_reach(ann.host(), witness.address(0), false, "ann");
    let device = "tun0";
    let before = gateway.drops("bad_source_address");
    let mut sent = 0;
    for address in [
        bob.inner4(),
        "10.88.200.7".parse().expect("an address"),
        "203.0.113.77".parse().expect("an address"),
    ] {
        ann.host().ip(&format!("address add {address}/32 dev {device}"));
        let socket = ann.host().run_in(|| UdpSocket::bind((address, 0))).expect("a socket");
        for _ in 0..5 {
            socket.send_to(b"false\n", witness.address(0)).expect("sent");
            sent += 1;
        }
        ann.host().ip(&format!("address del {address}/32 dev {device}"));
    }
    good.say("still here").expect("what is true passes");
    eventually("all are counted", LATE, || gateway.drops("bad_source_address") >= before + sent);
    assert!(witness.seen().iter().all(|sighting| sighting.name != "false"), "{:?}", witness.seen());
    must_reach(bob.host(), witness.address(0), false, "bob");
    ann.stop();
    bob.stop();
}

/// What connection tracking expects to come in besides, on this machine.
fn expectations(host: &Host) -> String {
    host.run(Command::new("cat").arg("/proc/net/nf_conntrack_expect"))
}

#[test]
fn what_a_protocol_says_of_ports_opens_none() {
    let network = Network::with_clients(1);
    let mut gateway = with_forwards(&network);
    gateway.up();
    let ann = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &[]));
    let inner = ann.inner4();
    let data = ann.host().run_in(|| TcpListener::bind((inner, 0))).expect("a listener");
    data.set_nonblocking(true).expect("nonblocking");
    let port = data.local_addr().expect("bound").port();
    let IpAddr::V4(address) = inner else { panic!("{inner}") };
    let words = |address: Ipv4Addr, port: u16| {
        let [a, b, c, d] = address.octets();
        format!("{a},{b},{c},{d},{},{}", port >> 8, port & 255)
    };
    let server =
        network.outside.run_in(|| TcpListener::bind((network.outside_address(), 21))).expect("port 21");
    let to = server.local_addr().expect("bound");
    let mut control = ann.host().run_in(|| TcpStream::connect_timeout(&to, LATE)).expect("a connection");
    let (mut stream, from) = server.accept().expect("the connection");
    stream.set_read_timeout(Some(LATE)).expect("a timeout");
    let command = format!("PORT {}\r\n", words(address, port));
    control.write_all(command.as_bytes()).expect("sent");
    let mut read = vec![0; command.len()];
    stream.read_exact(&mut read).expect("the command");
    assert_eq!(String::from_utf8_lossy(&read), command, "nobody rewrites what a client says");
    assert_eq!(expectations(&network.gateway), "");
    must_be_refused(&network.outside, SocketAddr::new(from.ip(), port), true);
    assert!(data.accept().is_err(), "nobody has come");

    // The other way round: a server on the device, by a forward.
    let listener = ann.host().run_in(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 21))).expect("port 21");
    let made = forward(&gateway, "ann", 21, &["--proto", "tcp"]);
    let at = SocketAddr::new(network.exit_address(), adit_tests::calls::port(&made[0]));
    let mut caller = network.outside.run_in(|| TcpStream::connect_timeout(&at, LATE)).expect("a connection");
    caller.set_read_timeout(Some(LATE)).expect("a timeout");
    let (mut device, _) = listener.accept().expect("the connection");
    let answer = format!("227 Entering Passive Mode ({}).\r\n", words(address, port));
    device.write_all(answer.as_bytes()).expect("sent");
    let mut read = vec![0; answer.len()];
    caller.read_exact(&mut read).expect("the answer");
    assert_eq!(String::from_utf8_lossy(&read), answer);
    assert_eq!(expectations(&network.gateway), "");
    must_be_refused(&network.outside, SocketAddr::new(at.ip(), port), true);
    assert!(data.accept().is_err(), "nobody has come");
    ping(ann.host(), network.outside_address()).must_all_return();
    ann.stop();
}
