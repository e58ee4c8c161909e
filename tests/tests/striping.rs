//! Every port is an entrance: all identities answer on all ports, and what belongs to others stays theirs.
//!
//! ```text
//!  stock clients ─┐
//!  light clients ─┴─ access ─── gateway ─── router ─── outside
//!  198.18.100.7 …    192.0.2.254  192.0.2.1, 2001:db8:2::1: ports 1-29999, UDP and TCP
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use adit_testbed::{Flow, Gateway, LightClient, Network, OpenVpnClient, Rng, Scale, in_parallel, ping};

const SOON: Duration = Duration::from_secs(10);
const ALL: &str = "1-29999";
/// Name, key, wrap. Two differ only in their keys.
const IDENTITIES: [(&str, &str, &str); 8] = [
    ("rsa", "RSA-2048", "tls-auth SHA512"),
    ("ecc", "secp521r1", "tls-crypt"),
    ("ed25519", "Ed25519", "tls-crypt"),
    ("ed448", "Ed448", "tls-auth SHA256"),
    ("p256", "P-256", "tls-crypt-v2"),
    ("p384", "P-384", "tls-crypt-v2"),
    ("twin", "P-384", "tls-crypt-v2"),
    ("plain", "P-256", "none"),
];
/// All but the one without a key.
const KEYED: usize = IDENTITIES.len() - 1;

fn striped(network: &Network) -> Gateway {
    let gateway = Gateway::new(network);
    gateway.clear_identities();
    for (name, key, wrap) in IDENTITIES {
        gateway.add_identity(name, key, wrap);
    }
    stripe(&gateway);
    gateway
}

/// All ports of all addresses.
fn stripe(gateway: &Gateway) {
    gateway.edit(|document| {
        document.remove("entrance");
        let entrance = format!("[[entrance]]\nudp = \"{ALL}\"\ntcp = \"{ALL}\"\n");
        let entrance: toml_edit::DocumentMut = entrance.parse().expect("TOML");
        document.insert("entrance", entrance["entrance"].clone());
    });
}

/// A user of each identity, and the profile, which accepts that identity's certificate alone.
fn light_clients(gateway: &Gateway) -> Vec<LightClient> {
    IDENTITIES
        .iter()
        .map(|(name, ..)| {
            gateway.ok(&["user", "add", name, "--device", "d"]);
            let profile =
                gateway.profile(name, "d", &["--identity", name, "--transport", "udp", "--port", "1"]);
            let mut openssl = Command::new("openssl");
            openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]);
            openssl.arg(gateway.path("state/identities").join(name).join("cert.pem"));
            let printed = gateway.host().run(&mut openssl);
            let (_, fingerprint) = printed.trim().split_once('=').expect("a fingerprint");
            LightClient::new(&format!("{profile}\n<peer-fingerprint>\n{fingerprint}\n</peer-fingerprint>\n"))
        })
        .collect()
}

/// Sources in many networks: one alone would use up what a stranger may ask.
fn sources(network: &Network) -> Vec<IpAddr> {
    let all: Vec<Ipv4Addr> = (100..228).map(|n| Ipv4Addr::new(198, 18, n, 7)).collect();
    let commands: String = all.iter().map(|address| format!("addr add {address}/32 dev lo\n")).collect();
    network.access.ip(&commands);
    all.into_iter().map(IpAddr::from).collect()
}

fn must_be_right(results: Vec<Result<(), String>>) {
    let count = results.len();
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    let some: Vec<_> = wrong.iter().take(5).collect();
    assert!(wrong.is_empty(), "{} of {count} wrong: {some:#?}", wrong.len());
}

#[test]
fn on_every_port_the_identity_answers_whose_key_the_client_has() {
    let network = Network::with_clients(0);
    let mut gateway = striped(&network);
    gateway.up();
    let clients = light_clients(&gateway);
    let sources = sources(&network);
    let mut rng = Rng::new(3);
    let mut ports: Vec<u16> = (1..30_000).collect();
    if Scale::get() == Scale::Quick {
        rng.shuffle(&mut ports);
        ports.truncate(600);
        ports.extend([1, 53, 443, 5060, 29_999]);
    }
    let cases: Vec<(u16, bool, usize)> =
        ports.iter().flat_map(|port| [false, true].map(|tcp| (*port, tcp, rng.below(KEYED)))).collect();

    must_be_right(in_parallel(&network.access, cases.len(), |n| {
        let (port, tcp, identity) = cases[n];
        let server = SocketAddr::new(network.gateway_address(), port);
        clients[identity].knock(sources[n % sources.len()], server, tcp).map_err(|why| {
            format!("{} over {}: {why}", IDENTITIES[identity].0, if tcp { "TCP" } else { "UDP" })
        })
    }));
    assert_eq!(gateway.drops("no_key_verified"), 0);
    let status = gateway.json(&["status"]);
    assert_eq!(status["connections"]["native"], ports.len());
    let of_keys = |name: &str| status["classified"][&format!("identity {name}")].as_u64().unwrap();
    let by_name: u64 = IDENTITIES.iter().map(|(name, ..)| of_keys(name)).sum();
    assert_eq!((by_name, of_keys("plain")), (ports.len() as u64, 0));

    let count = Scale::get().pick(60, 1000);
    let cases: Vec<(u16, bool, usize)> =
        (0..count).map(|n| (1 + rng.below(29_999) as u16, rng.chance(0.5), n % IDENTITIES.len())).collect();
    must_be_right(in_parallel(&network.access, count, |n| {
        let (port, tcp, identity) = cases[n];
        let server = SocketAddr::new(network.gateway_address(), port);
        let connected = clients[identity].connect(sources[n % sources.len()], server, tcp);
        connected.map(drop).map_err(|why| format!("{}: {why}", IDENTITIES[identity].0))
    }));
}

#[test]
fn stock_clients_work_on_any_port_and_the_session_says_which() {
    let network = Network::with_clients(1);
    let mut gateway = striped(&network);
    gateway.up();
    let mut rng = Rng::new(11);
    let rounds = Scale::get().pick(1, 4);
    for (name, ..) in IDENTITIES {
        gateway.ok(&["user", "add", name, "--device", "d"]);
    }
    for round in 0..rounds {
        for (n, (name, ..)) in IDENTITIES.iter().enumerate() {
            let (tcp, ipv6) = ((n + round) % 2 == 0, (n / 2 + round) % 2 == 0);
            let port = 1 + rng.below(29_999);
            let address = if ipv6 { network.gateway_address6() } else { network.gateway_address() };
            let transport = if tcp { "tcp" } else { "udp" };
            let options = [
                "--identity",
                name,
                "--transport",
                transport,
                "--port",
                &port.to_string(),
                "--remote",
                &address.to_string(),
            ];
            let client = OpenVpnClient::connect(network.client(0), &gateway.profile(name, "d", &options));

            let session = gateway.wait_for_session(name, SOON);

            assert_eq!(
                (session["identity"].as_str(), session["local_port"].as_u64()),
                (Some(*name), Some(port as u64))
            );
            assert_eq!(session["local_address"], address.to_string());
            assert_eq!(session["transport"], transport);
            ping(client.host(), network.outside_address()).must_all_return();
            ping(client.host(), network.outside_address6()).must_all_return();
            client.stop();
            gateway.wait_for_sessions(0, SOON);
        }
    }
}

#[test]
fn a_stock_client_notices_nothing_of_diverted_ports_whose_rules_go_with_the_gateway() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    stripe(&gateway);
    gateway.edit(|document| {
        document["entrance"][0]["capture"] = "tproxy".into();
    });
    let shell = network.gateway.run_in(|| TcpListener::bind("0.0.0.0:22").unwrap());
    gateway.up();
    let tables = || network.gateway.run(Command::new("nft").args(["list", "tables"]));
    assert!(tables().contains("adit-entrance"));
    let to = SocketAddr::new(network.gateway_address(), 22);
    let stream = network.client(0).run_in(|| TcpStream::connect(to).unwrap());
    assert_eq!(shell.accept().unwrap().1, stream.local_addr().unwrap());
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    for (transport, address, port) in [
        ("udp", network.gateway_address(), 22),
        ("tcp", network.gateway_address(), 443),
        ("udp", network.gateway_address6(), 29_999),
        ("tcp", network.gateway_address6(), 1),
    ] {
        let (port_text, address_text) = (port.to_string(), address.to_string());
        let options = ["--transport", transport, "--port", &port_text, "--remote", &address_text];
        let client = OpenVpnClient::connect(network.client(0), &gateway.profile("ann", "laptop", &options));
        let session = gateway.wait_for_session("ann", SOON);
        assert_eq!(
            (&session["transport"], &session["local_address"], &session["local_port"]),
            (&transport.into(), &address_text.into(), &port.into())
        );
        ping(client.host(), network.outside_address()).must_all_return();
        client.stop();
        gateway.wait_for_sessions(0, SOON);
    }
    // A crash leaves the table, and the next start another port of its own.
    gateway.kill();
    assert!(tables().contains("adit-entrance"));
    gateway.up();
    let profile = gateway.profile("ann", "laptop", &["--transport", "udp", "--port", "7"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    ping(client.host(), network.outside_address()).must_all_return();
    client.stop();
    gateway.stop();
    assert!(!tables().contains("adit"));
}

#[test]
fn what_was_there_before_stays_and_what_comes_later_is_named_and_can_have_its_port() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    stripe(&gateway);
    let shell = network.gateway.run_in(|| TcpListener::bind("0.0.0.0:22").unwrap());
    let resolver = network.gateway.run_in(|| UdpSocket::bind("127.0.0.53:53").unwrap());
    gateway.up();

    let to = |port| SocketAddr::new(network.gateway_address(), port);
    let stream = network.client(0).run_in(|| TcpStream::connect(to(22)).unwrap());
    assert_eq!(shell.accept().unwrap().1, stream.local_addr().unwrap());
    network.gateway.run_in(|| {
        let asking = UdpSocket::bind("127.0.0.1:0").unwrap();
        asking.send_to(b"name?", "127.0.0.53:53").unwrap();
        assert_eq!(resolver.recv(&mut [0; 10]).unwrap(), 5);
    });
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    let profile = gateway.profile("ann", "laptop", &["--transport", "udp", "--port", "53"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    ping(client.host(), network.outside_address()).must_all_return();

    let late = network.gateway.run_in(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let said = gateway.wait_for_log("adit entrance release 8080", SOON);
    assert!(said.contains("has bound a captured port"), "{said}");
    assert!(gateway.logged("release 53").is_empty(), "where answers leave from is no program of others");
    let released = gateway.json(&["entrance", "release", "8080"]);
    assert_eq!(
        (released["port"].as_u64(), released["sessions_touched"].as_array().map(Vec::len)),
        (Some(8080), Some(0))
    );
    let stream = network.client(0).run_in(|| TcpStream::connect(to(8080)).unwrap());
    assert_eq!(late.accept().unwrap().1, stream.local_addr().unwrap());
    for (port, why) in [("8080", "was given back"), ("30000", "is in no [[entrance]]")] {
        let refused = gateway.cli(&["entrance", "release", port]);
        assert!(refused.refusal().contains(why), "{}", refused.refusal());
    }
    ping(client.host(), network.outside_address()).must_all_return();
    assert_eq!(client.connections(), 1);

    client.stop();
    drop((shell, resolver, late));
    gateway.stop();
}

#[test]
fn a_reload_changes_captured_ports_and_no_flow_notices() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    stripe(&gateway);
    gateway.up();
    let profile = |user: &str, transport| {
        gateway.ok(&["user", "add", user, "--device", "laptop"]);
        gateway.profile(user, "laptop", &["--transport", transport, "--port", "2000"])
    };
    let profiles = [profile("ann", "udp"), profile("bob", "tcp")];
    let clients: Vec<_> = profiles
        .iter()
        .enumerate()
        .map(|(n, text)| OpenVpnClient::connect(network.client(n), text))
        .collect();
    let flows: Vec<_> = clients
        .iter()
        .map(|client| {
            Flow::start(client.host(), &network.outside, network.outside_address(), Duration::from_millis(2))
        })
        .collect();
    for (from, to) in [(100, 3000), (2000, 2100), (1, 29_999)] {
        gateway.edit(|document| {
            document["entrance"][0]["udp"] = toml_edit::value(format!("{from}-{to}"));
            document["entrance"][0]["tcp"] = toml_edit::value(format!("{from}-{to}"));
        });
        let report = gateway.json(&["reload"]);
        assert_eq!(
            (report["applied"].as_bool(), report["sessions_touched"].as_array().map(Vec::len)),
            (Some(true), Some(0))
        );
        for flow in &flows {
            flow.wait_for(20, SOON);
        }
        let reached = |port| {
            let to = SocketAddr::new(network.gateway_address(), port);
            network.client(0).run_in(|| TcpStream::connect(to).is_ok())
        };
        assert!(reached(from) && reached(to));
        assert_eq!(reached(99), from == 1);
    }
    for flow in flows {
        flow.stop().must_be_complete();
    }
    assert!(clients.iter().all(|client| client.connections() == 1));
}

#[test]
fn sixty_thousand_ports_are_served_with_few_descriptors() {
    for files in [1024, 4096] {
        let network = Network::with_clients(0);
        let mut gateway = striped(&network);
        gateway.limit_open_files(files);
        gateway.up();
        let process = gateway.process().id();
        let descriptors = || std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
        let before = descriptors();
        assert!(before < 60, "{before} descriptors for sixty thousand ports");
        let clients = light_clients(&gateway);
        let sources = sources(&network);
        // More ports than there are descriptors to answer from.
        let count = Scale::get().pick(1200, 5000);
        must_be_right(in_parallel(&network.access, count, |n| {
            let server = SocketAddr::new(network.gateway_address(), 1 + (n * 5) as u16);
            clients[n % KEYED].connect(sources[n % sources.len()], server, false).map(drop)
        }));
        let quarter = files as usize / 4;
        assert!(descriptors() <= before + quarter, "{} of {files} descriptors", descriptors());
    }
}

#[test]
fn flows_of_entrances_are_not_tracked_and_those_of_clients_leave_from_other_ports() {
    let network = Network::with_clients(1);
    let mut gateway = striped(&network);
    gateway.up();
    let tracked = || -> usize {
        let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        network.gateway.run_in(read).trim().parse().unwrap()
    };
    let clients = light_clients(&gateway);
    let sources = sources(&network);
    let before = tracked();
    must_be_right(in_parallel(&network.access, 200, |n| {
        let server = SocketAddr::new(network.gateway_address(), 1 + (n * 149) as u16);
        clients[n % KEYED].knock(sources[n % sources.len()], server, n % 2 == 0)
    }));
    assert_eq!(tracked(), before);

    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    let profile = gateway.profile("ann", "laptop", &["--transport", "udp", "--port", "random"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    let server = network.outside.run_in(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    server.set_read_timeout(Some(SOON)).unwrap();
    let to = SocketAddr::new(network.outside_address(), server.local_addr().unwrap().port());
    for port in [443, 5060, 20_000, 41_000] {
        client.host().run_in(|| {
            let socket = UdpSocket::bind((client.inner4(), port)).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket.send_to(b"to the outside", to).unwrap();
            let (_, from) = server.recv_from(&mut [0; 100]).unwrap();
            assert!(from.port() >= 30_000, "{from} would be the gateway's");
            server.send_to(b"and back", from).unwrap();
            assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 8);
        });
    }
    assert!(tracked() >= before + 4, "those of clients are");
}
