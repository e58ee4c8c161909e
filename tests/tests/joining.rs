//! Who reaches whom: many clients, sites that are joined, clients among themselves, and people who are put out.
//!
//! ```text
//!  site 0 ─── client 0 ──┐
//!  site 1 ─── client 1 ──┼─ access ─── gateway ─── router ─── outside
//!  192.168.N.2   …       │           192.0.2.1:1194          203.0.113.2
//!  fd00:N::2             ┘
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use adit_testbed::{
    Flow, Gateway, Host, HttpServer, Layout, Network, OpenVpnClient, Pinger, Scale, Wire, eventually,
    http_get, ping, ping_with,
};

const PACE: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(60);
/// For pings that nobody answers.
const BRIEFLY: [&str; 4] = ["-c", "3", "-W", "1"];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn clients_behind_one_nat_are_told_apart() {
    let network = Layout::clients(2).behind_nat().build();
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let connect = |(number, user): (usize, &str)| {
        let profile = gateway.add_user(user, &["--transport", "udp"]);
        OpenVpnClient::connect(network.client(number), &profile)
    };
    let clients: Vec<_> = ["ann", "bob"].into_iter().enumerate().map(connect).collect();

    let sessions = ["ann", "bob"].map(|user| gateway.wait_for_session(user, SOON));

    let seen = network.access_address().to_string();
    assert_ne!(sessions[0]["remote_port"], sessions[1]["remote_port"]);
    for (client, session) in clients.iter().zip(&sessions) {
        assert_eq!(session["remote_address"], seen, "the gateway sees the NAT alone");
        assert_eq!(session["inner4"], client.inner4().to_string());
        ping(client.host(), network.outside_address()).must_all_return();
        ping(&network.gateway, client.inner4()).must_all_return();
    }
}

#[test]
fn many_clients_come_at_once_and_each_has_its_own_address() {
    let count = Scale::get().pick(20, 50);
    let network = Network::with_clients(count);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let names: Vec<_> = (0..count).map(|n| (format!("user{n}"), format!("device{n}"))).collect();
    let profile = |(number, (user, device)): (usize, &(String, String))| {
        gateway.ok(&["user", "add", user, "--device", device]);
        let transport = if number % 2 == 0 { "udp" } else { "tcp" };
        gateway.profile(user, device, &["--transport", transport])
    };
    let profiles: Vec<_> = names.iter().enumerate().map(profile).collect();

    let clients: Vec<_> =
        profiles.iter().enumerate().map(|(n, text)| OpenVpnClient::start(network.client(n), text)).collect();

    for client in &clients {
        client.wait_until_connected();
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let listed: BTreeSet<_> = gateway
        .sessions()
        .iter()
        .map(|s| ["user", "device", "inner4", "inner6"].map(|key| text(&s[key])))
        .collect();
    let expected: BTreeSet<_> = names
        .iter()
        .zip(&clients)
        .map(|((user, device), client)| {
            [user.clone(), device.clone(), client.inner4().to_string(), client.inner6().to_string()]
        })
        .collect();
    assert_eq!(listed, expected);
    for inner in [OpenVpnClient::inner4, OpenVpnClient::inner6] {
        assert_eq!(clients.iter().map(inner).collect::<BTreeSet<_>>().len(), count);
    }
    for client in &clients {
        ping(client.host(), network.outside_address()).must_all_return();
        ping(client.host(), network.outside_address6()).must_all_return();
        ping(&network.gateway, client.inner4()).must_all_return();
    }
    assert!(clients.iter().all(|client| client.connections() == 1));

    for client in &clients {
        client.process().terminate();
    }
    for mut client in clients {
        client.process_mut().wait_for_end(LATE);
    }
    gateway.wait_for_sessions(0, SOON);
}

/// Networks behind the devices `office` of ann and bob.
const SITES: [(&str, u8); 2] = [("ann", 7), ("bob", 8)];

fn add_site(gateway: &Gateway, user: &str, net: u8) -> String {
    gateway.ok(&["user", "add", user]);
    let (v4, v6) = (format!("192.168.{net}.0/24"), format!("fd00:{net:x}::/64"));
    gateway.ok(&["device", "add", user, "office", "--prefix", &v4, "--prefix", &v6]);
    gateway.profile(user, "office", &["--transport", "udp"])
}

/// Sends datagrams from an address that `host` has not been given by anybody.
fn spoof(host: &Host, from: IpAddr, to: IpAddr, count: usize) {
    let interface_address = format!("{from}/{} dev lo", if from.is_ipv4() { 32 } else { 128 });
    // Without `nodad` an IPv6 address may not be there at once.
    let at_once = if from.is_ipv6() { " nodad" } else { "" };
    host.ip(&format!("address add {interface_address}{at_once}"));
    let socket = host.run_in(|| UdpSocket::bind((from, 0))).expect("an address of the host");
    for _ in 0..count {
        socket.send_to(b"who am I?", (to, 4444)).expect("a way to the outside");
    }
    host.ip(&format!("address delete {interface_address}"));
}

#[test]
fn two_sites_are_joined_through_the_gateway() {
    let network = Network::with_clients(3);
    let sites = [network.site(0, 7), network.site(1, 8)];
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let profiles = SITES.map(|(user, net)| add_site(&gateway, user, net));
    let ann = OpenVpnClient::connect(network.client(0), &profiles[0]);
    let bob = OpenVpnClient::connect(network.client(1), &profiles[1]);
    let eve = OpenVpnClient::connect(network.client(2), &gateway.add_user("eve", &["--transport", "tcp"]));

    let servers = SITES.map(|(_, net)| address(&format!("192.168.{net}.2")));
    let servers6 = SITES.map(|(_, net)| address(&format!("fd00:{net:x}::2")));
    for (from, to) in [(0, 1), (1, 0)] {
        for far in [servers[to], servers6[to]] {
            ping_with(&sites[from], far, &["-c", "3", "-s", "3000", "-W", "5"]).must_all_return();
            ping(&sites[from], network.outside_address()).must_all_return();
        }
        for (own, far) in [(servers[from], servers[to]), (servers6[from], servers6[to])] {
            let server = HttpServer::start(&sites[to], far);
            assert_eq!(http_get(&sites[from], server.address(), "/100000").unwrap().len(), 100_000);
            assert_eq!(server.visits()[0].from.ip(), own, "between sites nothing is translated");
        }
    }
    // Whoever may come in reaches what is behind devices; nobody is the other for that.
    ping(eve.host(), servers[0]).must_all_return();
    ping(eve.host(), servers6[1]).must_all_return();

    let outer = Wire::watch(&network.router, |packet| packet.protocol == 17);
    let inside = Wire::watch(&network.gateway, |packet| packet.ports.1 == 4444);
    let outside = network.outside_address();
    let borrowed = [address("10.99.0.1"), address("192.168.9.2"), servers[1], bob.inner4(), outside];
    for (number, from) in borrowed.into_iter().enumerate() {
        let before = gateway.drops("bad_source_address");
        spoof(ann.host(), from, address("203.0.113.1"), 5);
        eventually("packets that are dropped", SOON, || gateway.drops("bad_source_address") >= before + 5);
        assert_eq!(inside.seen(), [], "source {number}: {from}");
    }
    for from in [address("fd00:9::2"), servers6[1], bob.inner6()] {
        let before = gateway.drops("bad_source_address");
        spoof(ann.host(), from, network.outside_address6(), 5);
        eventually("packets that are dropped", SOON, || gateway.drops("bad_source_address") >= before + 5);
        assert_eq!(inside.seen(), [], "{from}");
    }
    let before = gateway.drops("bad_source_address");
    let socket = sites[0].run_in(|| UdpSocket::bind((servers[0], 0))).unwrap();
    socket.send_to(b"it is me", (outside, 4444)).unwrap();
    eventually("a packet from behind the device", SOON, || {
        outer.seen().iter().any(|packet| packet.ports.1 == 4444 && packet.from == network.exit_address())
    });
    assert_eq!(gateway.drops("bad_source_address"), before);

    // While a device is away, nothing for its networks leaves by another way.
    bob.stop();
    gateway.wait_for_sessions(2, SOON);
    let astray = Wire::watch(&network.router, move |packet| packet.to == servers[1]);
    let dropped = gateway.drops("no_route");
    ping_with(&sites[0], servers[1], &BRIEFLY).must_not_return();
    assert!(gateway.drops("no_route") >= dropped + 3);
    ping(&sites[0], outside).must_all_return();
    assert_eq!(astray.seen(), []);

    // A device that is revoked takes its networks along; the others stay.
    gateway.ok(&["device", "revoke", "bob", "office"]);
    let routes = || gateway.host().run(std::process::Command::new("ip").args(["route"]));
    assert!(routes().contains("192.168.7.0/24") && !routes().contains("192.168.8.0/24"));
    ping(eve.host(), servers[0]).must_all_return();
    gateway.stop();
}

#[test]
fn clients_reach_each_other_only_if_that_is_wanted() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let ann = OpenVpnClient::connect(network.client(0), &gateway.add_user("ann", &["--transport", "udp"]));
    let bob = OpenVpnClient::connect(network.client(1), &gateway.add_user("bob", &["--transport", "tcp"]));
    let ids = || gateway.sessions().iter().map(|session| session["id"].clone()).collect::<Vec<_>>();
    let before = ids();

    for wanted in [false, true, false] {
        gateway.set("tunnel", "client_to_client", if wanted { "true" } else { "false" });
        gateway.ok(&["reload"]);
        for (from, to) in [(&ann, &bob), (&bob, &ann)] {
            for inner in [to.inner4(), to.inner6()] {
                let result = ping_with(from.host(), inner, &BRIEFLY);
                if wanted {
                    result.must_all_return();
                } else {
                    result.must_not_return();
                    // Refused, not lost.
                    assert!(result.text.contains("errors"), "{}", result.text);
                }
            }
            ping(from.host(), network.outside_address()).must_all_return();
        }
    }
    assert_eq!(ids(), before);
    gateway.stop();
}

#[test]
fn whoever_is_put_out_is_out_at_once_and_nobody_else_notices() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let bob = OpenVpnClient::connect(network.client(1), &gateway.add_user("bob", &["--transport", "udp"]));
    let flow = Flow::start(bob.host(), &network.outside, network.outside_address(), PACE);
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    let wire = Wire::watch(&network.outside, |packet| packet.protocol == 58);

    for transport in ["udp", "tcp"] {
        let commands: [(&[&str], Option<&[&str]>); 2] = [
            (&["user", "suspend", "ann"], Some(&["user", "resume", "ann"])),
            (
                &["user", "remove", "ann"],
                (transport == "udp").then_some(&["user", "add", "ann", "--device", "laptop"]),
            ),
        ];
        for (command, back) in commands {
            let profile = gateway.profile("ann", "laptop", &["--transport", transport]);
            let mut ann = OpenVpnClient::connect(network.client(0), &profile);
            let pinger = Pinger::start(ann.host(), network.outside_address6());
            pinger.wait_for_answers(10, SOON);
            let inner = ann.inner6();
            let passed = || wire.seen().iter().filter(|packet| packet.from == inner).count();
            assert!(passed() >= 10);

            let cut = gateway.json(command);

            assert_eq!(cut["sessions_closed"], 1, "{command:?}");
            assert!(gateway.session_of("ann").is_none());
            let by_then = passed();
            flow.wait_for(50, SOON);
            // What was on its way already may have been seen a little later.
            assert!(passed() <= by_then + 1, "{} packets passed after {command:?}", passed() - by_then);
            let in_the_end = passed();
            flow.wait_for(50, SOON);
            assert_eq!(passed(), in_the_end);
            ann.wait_for("AUTH_FAILED", SOON);
            ann.process_mut().wait_for_end(LATE);
            let again = OpenVpnClient::start(network.client(0), &profile);
            again.wait_for("AUTH_FAILED", LATE);
            again.stop();
            assert!(gateway.session_of("ann").is_none());
            if let Some(back) = back {
                gateway.ok(back);
            }
        }
    }
    flow.stop().must_be_complete();
    assert_eq!(bob.connections(), 1);
    gateway.stop();
}

#[test]
fn a_session_that_is_closed_comes_back_and_a_device_that_is_revoked_does_not() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let laptop = gateway.add_user("ann", &["--transport", "udp"]);
    gateway.ok(&["device", "add", "ann", "phone"]);
    let phone = gateway.profile("ann", "phone", &["--transport", "tcp"]);
    let laptop = OpenVpnClient::connect(network.client(0), &laptop);
    let mut phone = OpenVpnClient::connect(network.client(1), &phone);
    let flow = Flow::start(phone.host(), &network.outside, network.outside_address(), PACE);
    let session = |device: &str| gateway.sessions().into_iter().find(|session| session["device"] == device);
    let before = session("laptop").unwrap();
    let mark = laptop.mark();

    gateway.ok(&["session", "close", before["id"].as_str().unwrap()]);

    laptop.wait_until_connected_since(mark, LATE);
    let after = session("laptop").unwrap();
    assert_ne!(after["id"], before["id"]);
    assert_eq!(after["inner4"], before["inner4"]);
    ping(laptop.host(), network.outside_address()).must_all_return();
    flow.stop().must_be_complete();

    gateway.ok(&["device", "revoke", "ann", "phone"]);
    assert!(session("phone").is_none() && session("laptop").is_some());
    phone.wait_for("AUTH_FAILED", SOON);
    phone.process_mut().wait_for_end(LATE);
    ping(laptop.host(), network.outside_address()).must_all_return();
    gateway.stop();
}
