//! The port plan: what shares a port with something else is refused before it can do harm, and the machine's own source
//! ports keep out of the way.
//!
//! ```text
//!  inner ─────────────── gateway ─────────── router ─────────── outside
//!  10.77.0.2   10.77.0.1       198.51.100.1        203.0.113.1  203.0.113.2
//!  the attacker, a       a service listens on                   the victim's peer: asks the service,
//!  client behind NAT     198.51.100.1, any port                 and is written to by the attacker
//! ```
//!
//! The attack (port shadowing): NAT keeps the attacker's source port, which is that of the service. From then on what
//! the peer sends to the service is, for connection tracking, an answer to the attacker.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use adit_testbed::{Gateway, Host, Network, Outcome, eventually_some};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
/// What the gateway's machine is for the outside.
const EXIT: &str = "198.51.100.1";
/// What a peer tells the service.
const SECRET: &[u8] = b"a secret for the service";
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A client of the gateway's machine, behind its NAT as a router without a plan does it: source ports are kept.
fn client_behind_plain_nat(network: &Network) -> Arc<Host> {
    let inner = Arc::new(Host::new("inner"));
    network.gateway.sysctl("net.ipv4.ip_forward", "1");
    network.gateway.ip(&format!(
        "link add inner type veth peer name lan netns {}\nlink set inner up\naddress add 10.77.0.1/24 dev inner\n",
        inner.name()
    ));
    inner.ip("link set lan up\naddress add 10.77.0.2/24 dev lan\nroute add default via 10.77.0.1\n");
    network.gateway.nft(&format!(
        "table ip plain {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
         ip saddr 10.77.0.0/24 oifname \"back\" snat to {EXIT}; }}; }}"
    ));
    inner
}

fn udp(host: &Host, address: &str, port: u16) -> UdpSocket {
    let socket = host.run_in(|| UdpSocket::bind((address, port))).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// The next datagram.
#[track_caller]
fn received(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("a datagram within ten seconds");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Who gets what a peer sends to a service.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Service,
    Attacker,
}

/// The attack on the service that has `service`: who is reached by its peer afterwards.
fn shadow(attacker: &Host, outside: &Host, service: &UdpSocket) -> Reached {
    let target = SocketAddr::new(EXIT.parse().unwrap(), service.local_addr().unwrap().port());
    let peer = udp(outside, "203.0.113.2", 0);
    let peer_address = peer.local_addr().unwrap();
    let attacker = udp(attacker, "10.77.0.2", target.port());
    attacker.send_to(b"mine now", peer_address).unwrap();
    assert_eq!(received(&peer), "mine now");

    peer.send_to(SECRET, target).unwrap();
    let got = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        socket.set_nonblocking(true).unwrap();
        let got = socket.recv_from(&mut buffer).is_ok_and(|(length, _)| &buffer[..length] == SECRET);
        socket.set_nonblocking(false).unwrap();
        got
    };
    eventually_some("the secret arrives", SOON, || match (got(service), got(&attacker)) {
        (true, _) => Some(Reached::Service),
        (_, true) => Some(Reached::Attacker),
        _ => None,
    })
}

fn report(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// Entrance and NAT on the address that the outside sees.
fn plan(gateway: &Gateway, entrance: &str, nat: &str) {
    let text = gateway.config_text();
    let head = text.split("[[entrance]]").next().unwrap();
    let tail = &text[text.find("[tunnel]").unwrap()..];
    let tables = format!(
        "[[entrance]]\naddress = \"{EXIT}\"\nudp = \"{entrance}\"\ntcp = \"{entrance}\"\n\
         [nat]\naddresses = [\"{EXIT}\"]\nports = \"{nat}\"\n"
    );
    // In the place of the one that `init` has written.
    let tail = match tail.split_once("[nat]") {
        Some((before, rest)) => format!("{before}{}", &rest[rest.find("\n[store]").unwrap()..]),
        None => tail.to_owned(),
    };
    std::fs::write(gateway.config(), format!("{head}{tables}{tail}")).unwrap();
}

#[test]
fn a_client_behind_nat_cannot_take_over_a_port_of_the_gateway() {
    let network = Network::with_clients(1);
    let inner = client_behind_plain_nat(&network);
    let service = udp(&network.gateway, "0.0.0.0", 0);

    // Without adit: the attack succeeds, or the rest would prove nothing.
    let before = udp(&network.outside, "203.0.113.2", 0);
    before.send_to(b"before", (EXIT, service.local_addr().unwrap().port())).unwrap();
    assert_eq!(received(&service), "before", "the service is reached as long as nobody attacks");
    assert_eq!(shadow(&inner, &network.outside, &service), Reached::Attacker);

    // With adit: the plan that makes it possible is refused.
    let gateway = Gateway::new(&network);
    plan(&gateway, "1-29999", "1280-65535");
    let check = gateway.cli(&["check", "--json"]);
    assert_eq!(check.code, Some(1), "{check:?}");
    let problems = report(&check)["problems"].clone();
    for protocol in ["tcp", "udp"] {
        let message = format!("nat 1280-65535 overlaps entrance 1-29999 on {EXIT} {protocol}");
        let problem = problems.as_array().unwrap().iter().find(|problem| problem["message"] == message);
        let problem = problem.unwrap_or_else(|| panic!("{message}: {problems}"));
        assert_eq!(problem["code"], "overlap");
        assert!(problem["hint"].as_str().unwrap().contains("[nat] ports = \""), "{problem}");
    }
    let text = gateway.cli(&["check"]);
    assert_eq!(text.code, Some(1));
    assert!(text.out.contains("overlap: nat 1280-65535 overlaps entrance 1-29999"), "{text:?}");

    // What is suggested is no overlap any more.
    let hint = problems[0]["hint"].as_str().unwrap();
    let nat = hint.split("[nat] ports = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    plan(&gateway, "1-29999", nat);
    let check = report(&gateway.cli(&["check", "--json"]));
    assert_eq!(check["ok"], true, "{check}");
    for protocol in ["tcp", "udp"] {
        let ranges = check["plan"].as_array().unwrap();
        let ranges = ranges.iter().filter(|r| r["address"] == EXIT && r["protocol"] == protocol);
        let next = ranges.fold(1, |next, range| {
            assert_eq!(range["from"], next, "each port once: {check}");
            range["to"].as_u64().unwrap() + 1
        });
        assert_eq!(next, 65_536);
    }
}

/// A client's first packet (P_CONTROL_HARD_RESET_CLIENT_V2): the gateway answers it as it is.
const HELLO: [u8; 14] = [0x38, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0];
/// The first byte of the answer (P_CONTROL_HARD_RESET_SERVER_V2).
const WELCOME: u8 = 0x40;

/// Who is reached by a client at `client` that says hello to the gateway; nobody but the gateway welcomes it, and from
/// where it was sent to.
fn hello(client: &UdpSocket, attacker: &UdpSocket, port: u16) -> Reached {
    client.send_to(&HELLO, (EXIT, port)).unwrap();
    let (mut answer, mut stolen) = ([0; 64], [0; 64]);
    for socket in [client, attacker] {
        socket.set_nonblocking(true).unwrap();
    }
    let reached = eventually_some("somebody has the hello", SOON, || {
        if let Ok((length, from)) = client.recv_from(&mut answer) {
            assert_eq!(from, SocketAddr::new(EXIT.parse().unwrap(), port));
            assert!(length >= 14 && answer[0] == WELCOME, "{:?}", &answer[..length]);
            assert!(attacker.recv(&mut stolen).is_err(), "one of them has it");
            return Some(Reached::Service);
        }
        attacker.recv(&mut stolen).is_ok_and(|length| stolen[..length] == HELLO).then_some(Reached::Attacker)
    });
    for socket in [client, attacker] {
        socket.set_nonblocking(false).unwrap();
    }
    reached
}

#[test]
fn with_nat_from_the_entrances_ports_clients_still_reach_the_gateway() {
    const PORT: u16 = 1194;
    let network = Network::with_clients(1);
    let inner = client_behind_plain_nat(&network);
    let service = udp(&network.gateway, "0.0.0.0", PORT);
    assert_eq!(shadow(&inner, &network.outside, &service), Reached::Attacker, "without adit");
    drop(service);

    // Nobody asks adit whether this translation, made by hand, is wise.
    let mut gateway = Gateway::new(&network);
    gateway.clear_identities();
    gateway.add_identity("plain", "P-256", "none");
    gateway.edit(|document| {
        document["entrance"][0]["udp"] = "1-29999".into();
        document["entrance"][0]["tcp"] = "1-29999".into();
    });
    gateway.up();
    let attack = |client: &UdpSocket, port| {
        let attacker = udp(&inner, "10.77.0.2", port);
        attacker.send_to(b"mine now", client.local_addr().unwrap()).unwrap();
        let (mut buffer, claimed) = ([0; 64], SocketAddr::new(EXIT.parse().unwrap(), port));
        // The gateway may have repeated itself meanwhile.
        while client.recv_from(&mut buffer).unwrap() != (8, claimed) || !buffer.starts_with(b"mine now") {}
        attacker
    };
    for port in [PORT, 443, 29_999] {
        let client = udp(&network.outside, "203.0.113.2", 0);
        let attacker = attack(&client, port);
        assert_eq!(hello(&client, &attacker, port), Reached::Service, "a client that is new");
        let other = udp(&network.outside, "203.0.113.2", 0);
        assert_eq!(hello(&other, &attacker, port), Reached::Service, "one that he does not know");
        drop(attacker);
        let attacker = attack(&other, port);
        assert_eq!(hello(&other, &attacker, port), Reached::Service, "one that was there before him");
    }

    // It is for the rules that keep entrances out of connection tracking.
    network.gateway.nft("flush chain inet adit entrances");
    let client = udp(&network.outside, "203.0.113.2", 0);
    let attacker = attack(&client, PORT);
    assert_eq!(hello(&client, &attacker, PORT), Reached::Attacker, "without the rules");
    gateway.stop();
}

fn read(host: &Host, path: &str) -> String {
    let value = host.run_in(|| std::fs::read_to_string(path)).unwrap();
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn source_ports_are_set_for_the_plan_and_put_back_after_an_end_and_a_crash() {
    let network = Network::with_clients(1);
    let host = Arc::clone(&network.gateway);
    host.sysctl("net.ipv4.ip_local_reserved_ports", "8080,50000-50010");
    let before = (read(&host, RANGE), read(&host, RESERVED));
    let now = || (read(&host, RANGE), read(&host, RESERVED));
    let mut gateway = Gateway::new(&network);
    gateway.set("host", "ephemeral", "\"1190-2001\"");
    gateway.edit(|document| drop(document.remove("nat")));
    let wanted = ("1190 2001".to_owned(), "1194,8080,50000-50010".to_owned());

    let check = report(&gateway.cli(&["check", "--json"]));
    assert_eq!(check["ok"], true, "{check}");
    let notes = check["notes"].to_string();
    assert!(notes.contains("ip_local_port_range = 1190 2001"), "{notes}");
    assert!(notes.contains("ip_local_reserved_ports = 1194,8080,50000-50010"), "{notes}");
    assert_eq!(now(), before, "a check changes nothing");

    gateway.up();
    assert_eq!(now(), wanted);
    // Networks behind devices change the machine's state, and not this part of it.
    gateway.add_user("ann", &[]);
    gateway.ok(&["device", "add", "ann", "router", "--prefix", "192.168.7.0/24"]);
    assert_eq!(now(), wanted);
    let running = report(&gateway.cli(&["check", "--json"]));
    assert_eq!((&running["ok"], &running["notes"]), (&json!(true), &json!([])), "its own ports are its own");
    gateway.stop();
    assert_eq!(now(), before);

    gateway.up();
    gateway.kill();
    assert_eq!(now(), wanted, "as a crash leaves it");
    gateway.up();
    assert_eq!(now(), wanted);
    gateway.stop();
    assert_eq!(now(), before);

    gateway.set("host", "manage_sysctl", "false");
    gateway.set("host", "ephemeral", "\"64512-65535\"");
    host.sysctl("net.ipv4.ip_local_port_range", "1194 1195");
    gateway.edit(|document| {
        document["entrance"][0]["udp"] = "1194-1195".into();
    });
    let refused = gateway.cli(&["up"]);
    let line = refused.refusal();
    assert!(line.contains("1194-1195, where 1194-1195 is for others"), "{line}");
    assert!(line.contains("net.ipv4.ip_local_port_range=\"64512 65535\""), "{line}");
    let check = report(&gateway.cli(&["check", "--json"]));
    assert_eq!(check["problems"][0]["code"], "sysctl", "{check}");
}

#[test]
fn services_inside_an_entrance_stay_the_hosts_and_are_named() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let (listener, local) = network
        .gateway
        .run_in(|| (TcpListener::bind("[::]:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()));
    let (tcp, udp) = (listener.local_addr().unwrap().port(), local.local_addr().unwrap().port());
    gateway.edit(|document| {
        document.remove("nat");
        document["entrance"][0]["udp"] = "1-60999".into();
        document["entrance"][0]["tcp"] = "1-60999".into();
    });

    let check = gateway.cli(&["check", "--json"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    let check = report(&check);
    let usage = |address: &str, protocol: &str, port: u16| {
        let holds = |range: &&Value| {
            range["address"] == address
                && range["protocol"] == protocol
                && (range["from"].as_u64()..=range["to"].as_u64()).contains(&Some(port.into()))
        };
        let found: Vec<_> = check["plan"].as_array().unwrap().iter().filter(holds).collect();
        assert_eq!(found.len(), 1, "{address} {port}/{protocol}: {check}");
        found[0]["use"].as_str().unwrap().to_owned()
    };
    assert_eq!(usage("0.0.0.0", "tcp", tcp), "host");
    assert_eq!(usage("::", "tcp", tcp), "host");
    assert_eq!(usage("0.0.0.0", "udp", udp), "entrance", "only the loopback has it");
    assert_eq!(usage("127.0.0.1", "udp", udp), "host");
    assert_eq!(usage("0.0.0.0", "udp", 64_512), "host", "its source ports have moved");
    let text = gateway.ok(&["check"]);
    assert!(text.contains(&format!("note: port {tcp} tcp is port_plan")), "{text}");
    assert!(text.contains(&format!("note: port {udp} udp of 127.0.0.1 is port_plan")), "{text}");
    assert!(text.contains("`except`, or `adit entrance release PORT`") && text.ends_with("ok\n"), "{text}");

    // With nothing but the taken port there is no entrance.
    gateway.edit(|document| {
        document["entrance"][0]["tcp"] = i64::from(tcp).into();
    });
    let check = gateway.cli(&["check", "--json"]);
    assert_eq!((check.code, &report(&check)["problems"][0]["code"]), (Some(1), &json!("entrance")));

    // The gateway starts beside it.
    gateway.edit(|document| {
        document["entrance"][0]["tcp"] = format!("1194,{tcp}").into();
        document["entrance"][0]["udp"] = 1194.into();
    });
    gateway.up();
    gateway.wait_for_log(&format!("port {tcp} tcp is port_plan"), SOON);
    let listening = network.gateway.run(Command::new("ss").args(["-Hltn", "sport = :1194"]));
    assert!(listening.contains(":1194"), "{listening}");
    gateway.stop();
}
