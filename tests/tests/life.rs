//! What a session lives through: new keys, new addresses, bad links, clients and gateways that die.
//!
//! ```text
//!  client 0 ──┐ home 198.18.0.2, away 198.19.0.2
//!  client 1 ──┼─ access ─── gateway ─── router ─── outside
//!      …      │ (proxy)   192.0.2.1:1194          203.0.113.2
//!             ┘           2001:db8:2::1
//! ```

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use adit_testbed::{
    Action, Direction, Flow, Gateway, HttpServer, Impairment, Network, OpenVpnClient, Pinger, Proxy, Scale,
    eventually, http_get, ping, ping_with, require,
};
use serde_json::Value;

const PACE: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(60);

/// Opcode of a data packet with a peer id, in the upper five bits of the first byte.
const DATA_V2: u8 = 9;

/// Identity and transport: a key for each client, and one for all; each by UDP and TCP.
const CARRIERS: [(&str, &str); 4] =
    [("default", "udp"), ("default", "tcp"), ("compat", "udp"), ("compat", "tcp")];

/// How often a client has agreed on keys, the first time included.
fn negotiations(client: &OpenVpnClient) -> usize {
    client.process().out.count("Control Channel: TLSv")
}

/// A gateway and clients that renegotiate every few seconds, with traffic both ways.
fn renegotiate_under_traffic(server_interval: &str, client_options: &[&str]) {
    let network = Network::with_clients(CARRIERS.len());
    let mut gateway = Gateway::new(&network);
    gateway.set("tunnel", "reneg", server_interval);
    gateway.up();
    let start = |(number, (identity, transport)): (usize, &(&str, &str))| {
        let options = ["--identity", identity, "--transport", transport];
        let profile = gateway.add_user(&format!("user{number}"), &options);
        // What protects a renegotiation is told from this level on.
        let options = [client_options, &["--verb", "4"]].concat();
        OpenVpnClient::start_with(network.client(number), &profile, &options)
    };
    let clients: Vec<_> = CARRIERS.iter().enumerate().map(start).collect();
    let flows: Vec<_> = clients
        .iter()
        .map(|client| {
            client.wait_until_connected();
            Flow::start(client.host(), &network.outside, network.outside_address(), PACE)
        })
        .collect();
    let before = gateway.sessions();
    assert_eq!(before.len(), CARRIERS.len());

    let more = Scale::get().pick(2, 30);
    let goals: Vec<_> = clients.iter().map(|client| negotiations(client) + more).collect();
    for (client, goal) in clients.iter().zip(goals) {
        eventually("renegotiations", LATE * 3, || negotiations(client) >= goal);
    }

    for (flow, carrier) in flows.into_iter().zip(CARRIERS) {
        eprintln!("{carrier:?}");
        flow.stop().must_be_complete();
    }
    for client in &clients {
        let log = &client.process().out;
        assert_eq!(client.connections(), 1);
        // Older clients cannot do that.
        if log.find(" OpenVPN 2.6").is_some() {
            assert!(log.find("Outgoing dynamic tls-crypt: Cipher").is_some());
        }
        for bad in ["TLS Error", "out of sync", "Authenticate/Decrypt packet error", "bad packet ID"] {
            assert_eq!(log.find(bad), None);
        }
    }
    let id = |session: &Value| session["id"].clone();
    assert_eq!(
        gateway.sessions().iter().map(id).collect::<Vec<_>>(),
        before.iter().map(id).collect::<Vec<_>>()
    );
    for reason in ["keys_out_of_sync", "decrypt_error", "control_authentication", "replay"] {
        assert_eq!(gateway.drops(reason), 0, "{reason}");
    }
    gateway.stop();
}

#[test]
fn clients_that_change_keys_every_few_seconds_lose_no_packet() {
    renegotiate_under_traffic("\"0\"", &["--reneg-sec", "2"]);
}

#[test]
fn a_gateway_that_changes_keys_every_few_seconds_loses_no_packet() {
    renegotiate_under_traffic("\"2s\"", &["--reneg-sec", "0"]);
}

/// Only the outside server's networks lead through the tunnel: the way to the gateway is the system's own, and
/// may change.
fn split(gateway: &Gateway) {
    gateway.set("tunnel", "routes", r#"["203.0.113.0/24", "2001:db8:113::/64"]"#);
}

/// What must stay while a client moves.
fn kept(session: &Value) -> [Value; 4] {
    ["id", "since", "inner4", "inner6"].map(|key| session[key].clone())
}

#[test]
fn a_client_that_moves_to_another_network_keeps_its_session() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    split(&gateway);
    gateway.up();
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    let pinger = Pinger::start(client.host(), network.outside_address());
    pinger.wait_for_answers(10, SOON);
    let before = gateway.wait_for_session("ann", SOON);
    assert_eq!(before["remote_address"], network.client_address(0).to_string());

    let moved_to = network.roam(0).to_string();

    pinger.wait_for_answers(50, SOON);
    let after = gateway.wait_for_session("ann", SOON);
    assert_eq!(after["remote_address"], moved_to);
    assert_eq!(kept(&after), kept(&before));
    ping(client.host(), network.outside_address6()).must_all_return();
    assert_eq!(client.connections(), 1);
    // Its farewell is a control packet: they come by the new way as well.
    client.stop();
    gateway.wait_for_sessions(0, SOON);
    assert_eq!(gateway.logged("CONNECT").iter().filter(|line| line.contains("ann")).count(), 2);
}

/// A profile that leads to another address and port of the gateway.
fn through(profile: &str, address: SocketAddr) -> String {
    let changed = profile.replace("192.0.2.1 1194", &format!("{} {}", address.ip(), address.port()));
    assert_ne!(changed, profile, "the profile names the gateway");
    changed
}

/// A relay in front of the gateway.
fn proxy(network: &Network, seed: u64) -> Proxy {
    let gateway = SocketAddr::new(network.gateway_address(), 1194);
    Proxy::start(&network.access, network.access_address(), gateway, seed)
}

#[test]
fn a_session_follows_new_packets_to_a_new_port_and_no_old_ones() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let proxy = proxy(&network, 1);
    let profile = through(&gateway.add_user("ann", &["--transport", "udp"]), proxy.address());
    let client = OpenVpnClient::connect(network.client(0), &profile);
    let outside = network.outside_address();
    let port = || gateway.session_of("ann").expect("a session")["remote_port"].clone();
    let home = port();
    assert_eq!(home, proxy.upstream()[0].port());
    let elsewhere = network.access.run_in(|| UdpSocket::bind((network.access_address(), 0))).unwrap();
    let target = (network.gateway_address(), 1194);

    // The first of some data packets is kept back, the others pass.
    let (send, packets) = channel();
    let mut number = 0;
    proxy.hook(move |direction, _, packet| {
        if direction == Direction::ToServer && packet.first().is_some_and(|byte| byte >> 3 == DATA_V2) {
            // The test may have enough of them.
            let _ = send.send(packet.to_vec());
            number += 1;
            if number == 1 {
                return Action::Drop;
            }
        }
        Action::Pass
    });
    let result = ping_with(client.host(), outside, &["-c", "10", "-W", "5"]);
    assert!(result.received >= 5, "{}", result.text);
    let late = packets.recv_timeout(SOON).unwrap();
    let seen = packets.recv_timeout(SOON).unwrap();

    let count = |key: &str| gateway.session_of("ann").expect("a session")[key].as_u64();
    assert_eq!(count("late_packets"), Some(0));
    elsewhere.send_to(&late, target).unwrap();
    eventually("the late packet", SOON, || count("late_packets") == Some(1));
    assert_eq!(port(), home, "a packet that is good but old moves nobody");
    let replays = gateway.drops("replay");
    elsewhere.send_to(&seen, target).unwrap();
    eventually("the repeated packet", SOON, || gateway.drops("replay") == replays + 1);
    assert_eq!(port(), home, "nor does one that has been seen");
    ping(client.host(), outside).must_all_return();

    let before = gateway.session_of("ann").unwrap();
    let flow = Flow::start(client.host(), &network.outside, outside, PACE);
    for _ in 0..Scale::get().pick(3, 30) {
        let old = port();
        proxy.rebind();
        eventually("the new port", SOON, || port() != old);
        assert_eq!(port(), proxy.upstream()[0].port());
        flow.wait_for(20, SOON);
    }
    assert_eq!(kept(&gateway.session_of("ann").unwrap()), kept(&before));
    assert_eq!(client.connections(), 1);
    drop(flow.stop());
    client.stop();
    gateway.wait_for_sessions(0, SOON);
}

#[test]
fn a_killed_client_is_back_at_its_addresses_and_has_one_session() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.set("tunnel", "ping", "\"1s\"");
    gateway.set("tunnel", "ping_restart", "\"4s\"");
    gateway.up();
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    for transport in ["udp", "tcp"] {
        let profile = gateway.profile("ann", "laptop", &["--transport", transport]);
        let client = OpenVpnClient::connect(network.client(0), &profile);
        let addresses = (client.inner4(), client.inner6());
        let before = gateway.wait_for_session("ann", SOON);
        client.kill();

        let client = OpenVpnClient::connect(network.client(0), &profile);

        assert_eq!((client.inner4(), client.inner6()), addresses);
        ping(client.host(), network.outside_address()).must_all_return();
        let [after] = gateway.sessions().try_into().expect("one session");
        assert_ne!(after["id"], before["id"]);
        ping(client.host(), network.outside_address6()).must_all_return();
        client.kill();
        // Nobody has said goodbye, and nobody comes back: silence ends it too.
        gateway.wait_for_sessions(0, LATE);
    }
}

/// The machine's settings that differ from those before the gateway's first start.
fn differs(gateway: &Gateway, what: &str) -> bool {
    gateway.left_behind().iter().any(|line| line.contains(what))
}

#[test]
fn after_a_crash_of_the_gateway_everybody_is_back_at_once_and_nothing_is_left_of_it() {
    let network = Network::with_clients(4);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let mut clients = Vec::new();
    for number in 0..4 {
        let transport = if number < 2 { "udp" } else { "tcp" };
        let profile = gateway.add_user(&format!("user{number}"), &["--transport", transport]);
        clients.push(OpenVpnClient::connect(network.client(number), &profile));
    }
    let addresses = |client: &OpenVpnClient| (client.inner4(), client.inner6());
    let before: Vec<_> = clients.iter().map(addresses).collect();
    let marks: Vec<_> = clients.iter().map(OpenVpnClient::mark).collect();

    gateway.kill();
    for left in ["table inet adit", "net/ipv4/ip_forward = 1", "net/ipv6/conf/all/forwarding = 1"] {
        assert!(differs(&gateway, left), "{left} is not left by a gateway that is killed");
    }
    gateway.up();
    let restart = Instant::now();

    for (client, mark) in clients.iter().zip(marks) {
        client.wait_until_connected_since(mark, SOON.saturating_sub(restart.elapsed()));
        eprintln!("{} is back within {:?}", client.host().role(), restart.elapsed());
    }
    assert_eq!(clients.iter().map(addresses).collect::<Vec<_>>(), before);
    for client in &clients {
        ping(client.host(), network.outside_address()).must_all_return();
        ping(client.host(), network.outside_address6()).must_all_return();
    }
    assert_eq!(gateway.sessions().len(), clients.len());
    for client in clients {
        client.stop();
    }

    // One that starts after a crash and wants less has less.
    gateway.kill();
    gateway.set("tunnel", "pool6", "[]");
    gateway.up();
    assert!(differs(&gateway, "net/ipv4/ip_forward = 1"));
    assert!(!differs(&gateway, "net/ipv6/conf/all/forwarding"));
    gateway.stop();
    assert_eq!(gateway.left_behind(), Vec::<String>::new());
}

#[test]
fn a_bad_link_is_slow_and_no_more() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let profile = gateway.add_user("ann", &["--transport", "udp"]);
    let server = HttpServer::start(&network.outside, network.outside_address());
    for seed in 0..Scale::get().pick(2, 12) {
        let proxy = proxy(&network, seed);
        let ms = Duration::from_millis;
        let bad =
            Impairment { loss: 0.1, duplicate: 0.1, delay: ms(20), jitter: ms(30), ..Impairment::default() };
        proxy.impair(bad);
        let client = OpenVpnClient::connect(network.client(0), &through(&profile, proxy.address()));
        let result = ping_with(client.host(), network.outside_address(), &["-c", "100", "-i", "0.01"]);
        // 81 are to be expected.
        assert!((50..=98).contains(&result.received), "{}", result.text);
        let page = http_get(client.host(), server.address(), "/20000").unwrap();
        assert_eq!(page.len(), 20_000);
        let session = gateway.wait_for_session("ann", SOON);
        assert!(session["late_packets"].as_u64() > Some(0), "{session}");
        client.stop();
        gateway.wait_for_sessions(0, LATE);
    }
    assert!(gateway.drops("replay") > 0, "packets came twice");
    assert_eq!(gateway.drops("decrypt_error"), 0);
}

/// A wall clock of the gateway's own, that jumps. The clock that only counts goes on.
struct Clock(tempfile::NamedTempFile);

impl Clock {
    fn of(gateway: &mut Gateway) -> Self {
        require("faketime");
        let output = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let library = String::from_utf8(output.expect("faketime runs").stdout).expect("a path");
        let clock = Self(tempfile::NamedTempFile::new().expect("a file"));
        clock.jump("+0");
        gateway.env("LD_PRELOAD", library.trim());
        gateway.env("FAKETIME_TIMESTAMP_FILE", &clock.0.path().to_string_lossy());
        gateway.env("FAKETIME_NO_CACHE", "1");
        gateway.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        clock
    }

    /// This far from the true time, for instance `+2d`.
    fn jump(&self, offset: &str) {
        std::fs::write(self.0.path(), format!("{offset}\n")).expect("a file can be written");
    }
}

/// The year on the gateway's clock: when it says that it has added this user.
fn year_at(gateway: &Gateway, user: &str) -> i32 {
    let added = gateway.json(&["user", "add", user]);
    added["created"].as_str().and_then(|time| time.get(..4)?.parse().ok()).expect("a time")
}

/// Clients of a gateway whose clock jumps by so many years, forth and back, under traffic. `meanwhile` takes its
/// time after each jump.
fn jump_under_traffic(reneg: &str, years: [i32; 2], meanwhile: impl Fn(&[OpenVpnClient], &[Flow])) {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    for (key, value) in [("reneg", reneg), ("ping", "1s"), ("ping_restart", "3s")] {
        gateway.set("tunnel", key, &format!("{value:?}"));
    }
    let clock = Clock::of(&mut gateway);
    gateway.up();
    let mut clients = Vec::new();
    for (number, transport) in ["udp", "tcp"].into_iter().enumerate() {
        let profile = gateway.add_user(&format!("user{number}"), &["--transport", transport]);
        clients.push(OpenVpnClient::connect(network.client(number), &profile));
    }
    let flows: Vec<_> = clients
        .iter()
        .map(|client| Flow::start(client.host(), &network.outside, network.outside_address(), PACE))
        .collect();
    let since: Vec<_> = gateway.sessions().iter().map(|session| session["since"].clone()).collect();
    let this_year = year_at(&gateway, "witness");
    for year in years {
        clock.jump(&format!("{:+}d", 366 * year));
        assert_eq!(year_at(&gateway, &format!("witness{}", year + 1)), this_year + year);
        meanwhile(&clients, &flows);
        let now: Vec<_> = gateway.sessions().iter().map(|session| session["since"].clone()).collect();
        assert_eq!(now, since);
    }
    for flow in flows {
        flow.stop().must_be_complete();
    }
    assert!(clients.iter().all(|client| client.connections() == 1));
    gateway.stop();
}

#[test]
fn a_clock_that_jumps_ends_no_session() {
    // Longer than silence is borne.
    jump_under_traffic("0", [-1, 1], |_, flows| {
        for (flow, more) in flows.iter().zip([800, 1]) {
            flow.wait_for(more, LATE);
        }
    });
}

#[test]
fn keys_are_renewed_whatever_the_clock_says() {
    // Certificates are valid for three years, and not before they were made.
    jump_under_traffic("2s", [1, 0], |clients, _| {
        let goals: Vec<_> = clients.iter().map(|client| negotiations(client) + 2).collect();
        for (client, goal) in clients.iter().zip(goals) {
            eventually("renegotiations", LATE, || negotiations(client) >= goal);
        }
    });
}
