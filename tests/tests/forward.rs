//! Ports of the gateway that lead to devices.
//!
//! ```text
//!  ann, bob … ── access ── 192.0.2.1 gateway 198.51.100.1 ── router ── outside
//!  a service on the device                                198.51.100.2  203.0.113.2
//! ```
//!
//! What the device's own service writes down decides who is reached, and who they seem to be.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_testbed::{Call, Gateway, Network, OpenVpnClient, Scale, Witness, eventually, ping};
use adit_tests::calls::{
    block, caller, forward, listed, must_be_over, must_be_refused, must_reach, named, now, port, service,
    trace,
};
use serde_json::{Value, json};

const LATE: Duration = Duration::from_secs(60);

/// A gateway that forwards ports; devices that are away have nothing.
fn gateway(network: &Network) -> Gateway {
    let gateway = Gateway::new(network);
    gateway.set("forward", "per_user", "5");
    gateway.set("tunnel", "linger", "\"0s\"");
    gateway
}

/// A user with a device that is connected.
fn join(network: &Network, gateway: &Gateway, client: usize, user: &str) -> OpenVpnClient {
    OpenVpnClient::connect(network.client(client), &gateway.add_user(user, &[]))
}

fn is_open(gateway: &Gateway, forward: &Value) -> bool {
    listed(gateway, forward)["open"] == true
}

#[test]
fn outsiders_reach_the_device_as_themselves_and_the_port_is_traced_to_it() {
    let network = Network::with_clients(1);
    let mut gateway = gateway(&network);
    gateway.up();
    let client = join(&network, &gateway, 0, "ann");
    let service = service(client.host());
    let to = service.address(0).port();
    let tcp = forward(&gateway, "ann", to, &["--proto", "tcp"]);
    let udp = forward(&gateway, "ann", to, &["--proto", "udp"]);
    let both = forward(&gateway, "ann", to, &["--port", "30022"]);
    assert_eq!((tcp.len(), udp.len(), both.len()), (1, 1, 2));
    assert_eq!((port(&both[0]), port(&both[1])), (30_022, 30_022));
    for one in [&tcp[..], &udp, &both].concat() {
        assert!((30_000..=39_999).contains(&port(&one)), "{one}");
        assert_eq!((&one["open"], &one["connections"], &one["to"]), (&json!(true), &json!(0), &json!(to)));
    }

    // The entrance is on all addresses, and so are the forwards.
    let mut calls = Vec::new();
    let both_protocols =
        [(tcp[0].clone(), true), (udp[0].clone(), false), (both[0].clone(), true), (both[1].clone(), false)];
    for (number, (one, over_tcp)) in both_protocols.iter().enumerate() {
        for (from, address) in [
            (&network.outside, network.outside_address()),
            (&network.router, "198.51.100.2".parse().unwrap()),
        ] {
            for exit in [network.exit_address(), network.gateway_address()] {
                let name = format!("{address}-{exit}-{number}");
                let call = must_reach(from, SocketAddr::new(exit, port(one)), *over_tcp, &name);
                let seen = caller(&service, &name);
                assert_eq!(seen.port(), call.local().port(), "{name}");
                // The router's own address towards the provider's network is another.
                assert!(from.role() == "router" || seen.ip() == address, "{name} seems to be {seen}");
                calls.push(call);
            }
        }
    }
    let at = |one: &Value| SocketAddr::new(network.exit_address(), port(one));
    must_be_refused(&network.outside, at(&tcp[0]), false);
    must_be_refused(&network.outside, at(&udp[0]), true);
    for (one, _) in &both_protocols {
        let count = listed(&gateway, one)["connections"].as_u64().unwrap();
        assert!((4..8).contains(&count), "four calls, and any that were lost: {count}");
    }

    // By the port it is ann's laptop, while it is open.
    let during = now();
    let answer = trace(&gateway, &during, at(&both[0]), true);
    assert_eq!(named(&answer), [["forward", "ann", "laptop"].map(str::to_owned)]);
    assert!(named(&trace(&gateway, &during, at(&tcp[0]), false)).is_empty(), "forwarded over TCP only");

    // One goes, with what came in by it; the others stay.
    gateway.ok(&["forward", "remove", both[0]["id"].as_str().unwrap()]);
    let (gone, kept): (Vec<_>, Vec<_>) = calls.iter_mut().enumerate().partition(|(n, _)| (8..12).contains(n));
    for (_, call) in kept {
        call.say("still here").unwrap();
    }
    for (_, call) in gone {
        must_be_over(call);
    }
    must_be_refused(&network.outside, at(&both[0]), true);
    must_reach(&network.outside, at(&both[1]), false, "the other protocol");
    assert!(named(&trace(&gateway, &now(), at(&both[0]), true)).is_empty());
    assert_eq!(named(&trace(&gateway, &during, at(&both[0]), true)).len(), 1, "it was hers before");
    gateway.ok(&["trace", "verify"]);
    client.stop();
}

#[test]
fn a_forward_follows_its_device_and_is_closed_while_it_is_away() {
    let network = Network::with_clients(2);
    let mut gateway = gateway(&network);
    gateway.set("tunnel", "linger", "\"2m\"");
    // Written down without a running gateway, and open as soon as the device is there.
    let profile = gateway.add_user("ann", &[]);
    let early = forward(&gateway, "ann", 7, &["--proto", "udp"]);
    gateway.up();
    assert!(!is_open(&gateway, &early[0]));
    let ann = OpenVpnClient::connect(network.client(0), &profile);
    let service = service(network.client(0));
    let to = service.address(0).port();
    assert!(is_open(&gateway, &early[0]));
    let both = forward(&gateway, "ann", to, &[]);
    let at = SocketAddr::new(network.exit_address(), port(&both[0]));
    let first = ann.inner4();
    let reach = |name: &str| [true, false].map(|tcp| must_reach(&network.outside, at, tcp, name));
    let mut calls = reach("at first");

    // Another pool: ann comes back at another address by herself, and what was under way is over.
    let mark = ann.mark();
    gateway.set("tunnel", "pool4", "[\"10.89.0.0/24\"]");
    gateway.ok(&["reload"]);
    ann.wait_until_connected_since(mark, LATE);
    eventually("another address", LATE, || ann.inner4() != first);
    reach("at another address");
    // A datagram opens the new way by itself; a stream cannot.
    must_be_over(&mut calls[0]);

    // Away for a moment, and back: nobody answers meanwhile.
    let mut calls = reach("before");
    ann.stop();
    gateway.wait_for_sessions(0, LATE);
    for tcp in [true, false] {
        let silent = network.outside.run_in(|| Call::dial(at, tcp, "too early"));
        silent.expect_err("the device is away");
    }
    let ann = OpenVpnClient::connect(network.client(0), &profile);
    reach("after");
    for call in &mut calls {
        call.say("the same call").expect("it was away for a moment only");
    }

    // Away for good: refused. The address is another's then, and the port still leads to ann alone.
    ann.stop();
    gateway.wait_for_sessions(0, LATE);
    gateway.set("tunnel", "linger", "\"0s\"");
    gateway.set("tunnel", "pool4", "[\"10.89.0.0/30\"]");
    gateway.ok(&["reload"]);
    let bob = join(&network, &gateway, 1, "bob");
    assert_eq!(bob.inner4(), "10.89.0.2".parse::<IpAddr>().unwrap(), "the only one there is");
    let other = Witness::start(bob.host(), bob.inner4(), 1);
    must_be_refused(&network.outside, at, true);
    must_be_refused(&network.outside, at, false);
    assert!(!is_open(&gateway, &both[0]));
    assert!(named(&trace(&gateway, &now(), at, true)).is_empty(), "nobody's while ann is away");
    let his = forward(&gateway, "bob", other.address(0).port(), &["--proto", "tcp"]);
    must_reach(&network.outside, SocketAddr::new(at.ip(), port(&his[0])), true, "bob's own");
    assert_eq!(other.seen().len(), 1);
    bob.stop();
    gateway.wait_for_sessions(0, LATE);
    let ann = OpenVpnClient::connect(network.client(0), &profile);
    reach("where bob was");
    must_be_refused(&network.outside, SocketAddr::new(at.ip(), port(&his[0])), true);
    ann.stop();
}

#[test]
fn a_forward_ends_with_its_time_its_device_and_its_user() {
    let network = Network::with_clients(4);
    let mut gateway = gateway(&network);
    gateway.up();
    let users = ["ann", "bob", "carl", "dora"];
    let profiles = users.map(|user| gateway.add_user(user, &[]));
    let mut clients: Vec<_> = profiles
        .iter()
        .enumerate()
        .map(|(n, profile)| OpenVpnClient::start(network.client(n), profile))
        .collect();
    clients.iter().for_each(OpenVpnClient::wait_until_connected);
    let services: Vec<_> = clients.iter().map(|client| service(client.host())).collect();
    let open = |n: usize, options: &[&str]| {
        let made = forward(&gateway, users[n], services[n].address(0).port(), options);
        let at = SocketAddr::new(network.exit_address(), port(&made[0]));
        (at, [true, false].map(|tcp| must_reach(&network.outside, at, tcp, users[n])))
    };
    let closed = |at: SocketAddr, calls: &mut [Call]| {
        for call in calls {
            must_be_over(call);
        }
        must_be_refused(&network.outside, at, true);
        must_be_refused(&network.outside, at, false);
        assert!(named(&trace(&gateway, &now(), at, true)).is_empty());
    };
    let (by_device, mut calls_by_device) = open(1, &[]);
    let (by_user, mut calls_by_user) = open(2, &[]);
    let (by_time, mut calls_by_time) = open(0, &["--expires", "3s"]);
    let (suspended, mut suspended_calls) = open(3, &["--expires", "7d"]);

    gateway.ok(&["device", "revoke", "bob", "laptop"]);
    closed(by_device, &mut calls_by_device);
    gateway.ok(&["user", "remove", "carl"]);
    closed(by_user, &mut calls_by_user);

    gateway.ok(&["user", "suspend", "dora"]);
    closed(suspended, &mut suspended_calls);
    gateway.ok(&["user", "resume", "dora"]);
    clients[3].process_mut().wait_for_end(LATE);
    let dora = OpenVpnClient::connect(network.client(3), &profiles[3]);
    for tcp in [true, false] {
        must_reach(&network.outside, suspended, tcp, "dora is back");
    }

    for call in &mut calls_by_time {
        eventually("the end of three seconds", LATE, || call.say("still here").is_err());
    }
    closed(by_time, &mut calls_by_time);
    assert_eq!(gateway.json(&["forward", "list", "ann"])["forwards"], json!([]));
    let left = gateway.json(&["forward", "list"])["forwards"].as_array().unwrap().clone();
    assert!(left.len() == 2 && left.iter().all(|row| row["user"] == "dora"), "{left:?}");
    // Who has lost a forward has lost nothing else.
    ping(network.client(0), network.outside_address()).must_all_return();
    gateway.ok(&["trace", "verify"]);
    drop(dora);
}

/// What a device reaches by a public address of the gateway, from within the tunnel.
#[test]
fn from_inside_a_forward_is_reached_by_the_callers_own_source_ports() {
    let network = Network::with_clients(2);
    let mut gateway = gateway(&network);
    gateway.up();
    let ann = join(&network, &gateway, 0, "ann");
    let bob = join(&network, &gateway, 1, "bob");
    let service = service(ann.host());
    let made = forward(&gateway, "ann", service.address(0).port(), &[]);
    let at = SocketAddr::new(network.exit_address(), port(&made[0]));
    let mut calls = Vec::new();
    for (client, user) in [(&bob, "bob"), (&ann, "ann")] {
        let (address, from, to) = block(&gateway, user);
        for tcp in [true, false] {
            let name = format!("{user}-{tcp}");
            calls.push(must_reach(client.host(), at, tcp, &name));
            let seen = caller(&service, &name);
            assert_eq!(seen.ip(), address, "{name}");
            assert!((from..=to).contains(&seen.port()), "{name} comes from {seen}, not from {from}-{to}");
            assert_eq!(
                named(&trace(&gateway, &now(), seen, tcp)),
                [["nat", user, "laptop"].map(str::to_owned)]
            );
        }
    }
    // Clients do not reach each other otherwise.
    let past = SocketAddr::new(ann.inner4(), service.address(0).port());
    bob.host().run_in(|| Call::dial(past, true, "past the forward")).expect_err("client_to_client is off");
    for call in &mut calls {
        call.say("still here").unwrap();
    }
    gateway.ok(&["forward", "remove", made[0]["id"].as_str().unwrap()]);
    gateway.ok(&["forward", "remove", made[1]["id"].as_str().unwrap()]);
    for call in &mut calls {
        must_be_over(call);
    }
    must_be_refused(bob.host(), at, true);
    ann.stop();
    bob.stop();
}

/// Entrances on 1-29999 of 192.0.2.1, forwards on other ports of it, NAT on ports of `exit`: traffic by all.
fn everything_together(exit: IpAddr, nat: &str, forwards: &str, wanted: &[u16]) {
    let count = Scale::get().pick(3, 8);
    let network = Network::with_clients(count);
    // Answers to 192.0.2.1 come by the provider's network, requests leave by the other.
    network.gateway.sysctl("net.ipv4.conf.all.rp_filter", "0");
    network.gateway.sysctl("net.ipv4.conf.default.rp_filter", "0");
    let mut gateway = gateway(&network);
    let public = network.gateway_address();
    gateway.edit(|document| {
        let entrance = &mut document["entrance"][0];
        for (key, value) in [("address", public.to_string().as_str()), ("udp", "1-29999"), ("tcp", "1-29999")]
        {
            entrance[key] = toml_edit::value(value);
        }
    });
    gateway.set("nat", "addresses", &format!("[\"{exit}\"]"));
    gateway.set("nat", "ports", &format!("\"{nat}\""));
    gateway.set("forward", "ports", &format!("\"{forwards}\""));
    let check = gateway.json(&["check"]);
    assert_eq!((&check["ok"], &check["problems"]), (&json!(true), &json!([])), "{check}");
    gateway.up();
    let clients: Vec<_> = (0..count)
        .map(|n| {
            let transport = ["udp", "tcp"][n % 2];
            let profile =
                gateway.add_user(&format!("user{n}"), &["--port", "random", "--transport", transport]);
            OpenVpnClient::start(network.client(n), &profile)
        })
        .collect();
    clients.iter().for_each(OpenVpnClient::wait_until_connected);
    let witness = Witness::start(&network.outside, network.outside_address(), 32);
    for (n, client) in clients.iter().enumerate() {
        let user = format!("user{n}");
        let service = service(client.host());
        let wanted = wanted.get(n).copied().unwrap_or(wanted[0] + u16::try_from(n).unwrap());
        let made = forward(&gateway, &user, service.address(0).port(), &["--port", &wanted.to_string()]);
        let at = SocketAddr::new(public, port(&made[0]));
        for tcp in [true, false] {
            let call = must_reach(&network.outside, at, tcp, "outsider");
            assert_eq!(
                caller(&service, "outsider"),
                SocketAddr::new(network.outside_address(), call.local().port())
            );
            let forwarded = ["forward", &user, "laptop"].map(str::to_owned);
            assert_eq!(named(&trace(&gateway, &now(), at, tcp)), [forwarded]);
        }
        let done = client.host().run_in(|| witness.call_often(&user, 40, 20));
        assert_eq!(done, 40, "{user}");
    }
    let seen = witness.seen();
    for sighting in &seen {
        assert_eq!(sighting.remote.ip(), exit, "{sighting:?}");
    }
    for sighting in seen.iter().step_by(13) {
        let user = sighting.name.as_str();
        let found = named(&trace(&gateway, &now(), sighting.remote, sighting.tcp));
        assert_eq!(found, [["nat", user, "laptop"].map(str::to_owned)], "{sighting:?}");
    }
    clients.into_iter().for_each(OpenVpnClient::stop);
}

#[test]
fn one_address_has_entrances_forwards_and_nat_at_once() {
    everything_together(
        "192.0.2.1".parse().unwrap(),
        "40000-64511",
        "30000-39999",
        &[30_000, 39_999, 35_000],
    );
}

#[test]
fn with_an_address_of_its_own_for_nat_all_ports_behind_the_entrances_are_forwarded() {
    everything_together(
        "198.51.100.1".parse().unwrap(),
        "1024-64511",
        "30000-65535",
        &[30_000, 65_535, 50_000],
    );
}

#[test]
fn what_cannot_be_forwarded_is_refused_in_one_line_that_says_why() {
    let network = Network::with_clients(0);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    gateway.ok(&["device", "add", "ann", "phone"]);
    gateway.ok(&["user", "add", "bob", "--device", "laptop"]);
    let says = |arguments: &[&str], words: &str| {
        let outcome = gateway.cli(&[&["forward"], arguments].concat());
        let line = outcome.refusal();
        assert!(line.contains(words), "{arguments:?}: {line}");
    };

    // Without the table there is nothing to forward.
    says(&["add", "ann", "laptop", "--to", "22"], "add [forward] to the configuration and reload");
    gateway.set("forward", "per_user", "2");
    gateway.set("forward", "ports", "\"30000-30002\"");
    gateway.ok(&["reload"]);

    says(&["add", "carl", "laptop", "--to", "22"], "carl");
    says(&["add", "ann", "desktop", "--to", "22"], "desktop");
    says(&["add", "ann", "laptop", "--to", "22", "--port", "29999"], "choose one of 30000-30002");
    says(&["add", "ann", "laptop", "--to", "22", "--port", "443"], "port 443 cannot be forwarded");
    let first = forward(&gateway, "ann", 22, &["--port", "30000", "--proto", "tcp"]);
    says(
        &["add", "bob", "laptop", "--to", "22", "--port", "30000"],
        "tcp port 30000 is forwarded to ann/laptop already",
    );
    // The other protocol of the same port is free, and is the same port for the limit.
    let _ = forward(&gateway, "ann", 22, &["--port", "30000", "--proto", "udp"]);
    let second = forward(&gateway, "ann", 22, &["--proto", "tcp"]);
    for device in ["laptop", "phone"] {
        says(&["add", "ann", device, "--to", "22"], "ann has 2 forwarded ports, as many as a user may have");
    }
    let third = forward(&gateway, "bob", 22, &[]);
    assert_eq!(third.len(), 2);
    assert!([30_001, 30_002].contains(&port(&third[0])) && port(&third[0]) != port(&second[0]));
    says(&["add", "bob", "laptop", "--to", "22"], "all ports of 30000-30002 are forwarded");
    gateway.ok(&["device", "revoke", "ann", "phone"]);
    says(&["add", "ann", "phone", "--to", "22"], "phone");

    says(&["list", "carl"], "carl");
    for id in ["0f37c1d2a4b5968778695a4b3c2d1e0f", "1", "../users/ann", "ä"] {
        says(&["remove", id], "forward");
    }
    let id = first[0]["id"].as_str().unwrap();
    gateway.ok(&["forward", "remove", id]);
    says(&["remove", id], "forward");

    // What the command line itself does not take.
    for wrong in [
        &["--to", "0"][..],
        &["--to", "65536"],
        &["--to", "ssh"],
        &["--to", "22", "--port", "0"],
        &["--to", "22", "--proto", "sctp"],
        &["--to", "22", "--expires", "0s"],
        &["--to", "22", "--expires", "soon"],
        &["--port", "30001"],
    ] {
        let outcome = gateway.cli(&[&["forward", "add", "ann", "laptop"], wrong].concat());
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        let named = outcome.err.contains(wrong[wrong.len() - 2]) || outcome.err.contains("--to <PORT>");
        assert!(outcome.out.is_empty() && named, "{outcome:?}");
    }
    // Both ports are hers already, so that this is none more.
    let longest =
        forward(&gateway, "ann", 65_535, &["--proto", "tcp", "--port", "30000", "--expires", "3650d"]);
    assert!(longest[0]["expires"].is_string(), "{longest:?}");
    assert_eq!(gateway.json(&["forward", "list", "ann"])["forwards"].as_array().unwrap().len(), 3);
    assert_eq!(gateway.logged("ERROR"), Vec::<String>::new());
}
