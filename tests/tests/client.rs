//! adit's own client: against a stock server, against adit's gateway, and what it does to the machine it is on.
//!
//! ```text
//!                         ┌─ home 198.18.0.2 ─┐
//!  client 0, adit connect ┤                   ├─ access ─── gateway ─── router ─── outside
//!                         └─ away 198.19.0.2 ─┘           192.0.2.1:1194          203.0.113.2
//!                                                  2001:db8:2::1 (udp, tcp)       2001:db8:113::2
//! ```
//!
//! On the gateway's machine runs adit, or Debian's `openvpn` as a server: 10.77.0.1 and fd77::1 inside. Without a
//! tunnel the client reaches everybody, so that a leak is seen as one.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use adit_testbed::{
    AditClient, Flow, Gateway, Host, HttpServer, Network, OpenVpnServer, Pinger, Scale, Seen, ServerWrap,
    Snapshot, Wire, eventually, http_get, ping, ping_with,
};
use adit_tests::{CIPHERS, in_parallel};
use rustix::process::Signal;
use serde_json::Value;

const WORKERS: usize = 2;
const WRAPS: [ServerWrap; 6] = [
    ServerWrap::None,
    ServerWrap::TlsAuth("SHA1"),
    ServerWrap::TlsAuth("SHA256"),
    ServerWrap::TlsAuth("SHA512"),
    ServerWrap::TlsCrypt,
    ServerWrap::TlsCryptV2,
];
/// Bytes of a ping that fits, one that just fits into an outer packet or just not, and one that does not fit the
/// tunnel's MTU.
const SIZES: [&str; 3] = ["56", "1400", "3000"];
const SOON: Duration = Duration::from_secs(10);

/// How a stock server and the client's profile for it are set up.
#[derive(Debug, Clone)]
struct Case {
    tcp: bool,
    ipv6: bool,
    wrap: ServerWrap,
    cipher: &'static str,
    tls: &'static str,
}

#[track_caller]
fn must_be_as_before(before: &Snapshot, network: &Network) {
    let left = before.difference(&Snapshot::take(network.client(0)));
    assert!(left.is_empty(), "the client's machine is not as it was: {left:#?}");
}

/// A client of a stock server connects, everything passes both ways, the server knows it by name and sees it go.
fn run(network: &mut Network, case: &Case) {
    let (client_host, server_host) = (network.client(0), &network.gateway);
    let before = Snapshot::take(client_host);
    let address = if case.ipv6 { network.gateway_address6() } else { network.gateway_address() };
    let mut options = vec!["--data-ciphers", case.cipher];
    if case.tls == "1.2" {
        options.extend(["--tls-version-max", "1.2"]);
    }
    let server = OpenVpnServer::start(server_host, address, case.tcp, case.wrap, &options);
    let profile = format!("data-ciphers {}\n{}", case.cipher, server.profile("ann"));

    let client = AditClient::connect(client_host, &profile);

    let connected = client.connected();
    assert_eq!(connected["cipher"], case.cipher);
    assert_eq!(connected["transport"], if case.tcp { "tcp" } else { "udp" });
    assert_eq!(connected["remote"], std::net::SocketAddr::new(address, OpenVpnServer::PORT).to_string());
    let log = &server.process();
    let initiated = log.wait_for("[ann] Peer Connection Initiated", SOON);
    assert!(initiated.contains(if case.ipv6 { "2001:db8:18::2" } else { "198.18.0.2" }), "{initiated}");
    let control = log.wait_for("Control Channel: TLSv", SOON);
    assert!(control.contains(&format!("Control Channel: TLSv{}", case.tls)), "{control}");
    log.wait_for(&format!("Data Channel: cipher '{}'", case.cipher), SOON);
    for (inside, own) in [(OpenVpnServer::INNER, client.inner4()), (OpenVpnServer::INNER6, client.inner6())] {
        for size in SIZES {
            ping_with(client_host, inside, &["-c", "1", "-W", "10", "-s", size]).must_all_return();
            ping_with(server_host, own, &["-c", "1", "-W", "10", "-s", size]).must_all_return();
        }
        let web = HttpServer::start(server_host, inside);
        assert_eq!(http_get(client_host, web.address(), "/300000").expect("a page").len(), 300_000);
        assert_eq!(web.visits()[0].from.ip(), own);
    }

    client.stop();
    // It says goodbye instead of being missed: a server would wait eight seconds.
    let gone = if case.tcp { "Connection reset" } else { "CC-EEN exit message received" };
    log.wait_for(gone, Duration::from_secs(4));
    must_be_as_before(&before, network);
}

#[test]
fn every_transport_wrap_cipher_and_tls_version_of_a_stock_server_works_with_every_other() {
    let mut cases = Vec::new();
    for wrap in WRAPS {
        for cipher in CIPHERS {
            for tcp in [false, true] {
                for tls in ["1.2", "1.3"] {
                    let ipv6 = cases.len() % 3 == 0;
                    cases.push(Case { tcp, ipv6, wrap, cipher, tls });
                }
            }
        }
    }
    let sample = Scale::get().sample(cases, 1, |case| {
        vec![
            format!("{:?} {}", case.wrap, case.tcp),
            format!("{} {}", case.cipher, case.tls),
            format!("{} {}", case.tcp, case.ipv6),
        ]
    });
    let (count, started) = (sample.len(), Instant::now());
    in_parallel(WORKERS, sample, |_| Network::with_clients(1), run);
    eprintln!("{count} servers in {:.1} s", started.elapsed().as_secs_f64());
}

/// A stock server over UDP, with these options, and a client of it called ann.
fn stock(network: &Network, options: &[&str], profile: &str) -> (OpenVpnServer, AditClient) {
    let address = network.gateway_address();
    let server = OpenVpnServer::start(&network.gateway, address, false, ServerWrap::TlsCrypt, options);
    let client = AditClient::connect(network.client(0), &format!("{profile}{}", server.profile("ann")));
    (server, client)
}

#[test]
fn no_packet_is_lost_when_either_side_renegotiates() {
    let network = Network::with_clients(1);
    let times = Scale::get().pick(3, 20);
    for (server_option, client_option) in [("2", "reneg-sec 0\n"), ("0", "reneg-sec 2\n")] {
        let (server, client) = stock(&network, &["--reneg-sec", server_option], client_option);
        let mark = server.process().out.mark();
        let flow =
            Flow::start(client.host(), &network.gateway, OpenVpnServer::INNER, Duration::from_millis(2));
        eventually("new keys", Duration::from_secs(60), || {
            let since = server.process().out.since(mark);
            since.iter().filter(|line| line.contains("Control Channel: TLSv")).count() >= times
        });
        flow.wait_for(500, SOON);
        flow.stop().must_be_complete();
        assert_eq!(client.states_since(0).last(), Some(&client.connected()), "one session all the time");
        client.stop();
    }
}

#[test]
fn a_client_whose_server_starts_anew_or_vanishes_comes_back_by_itself() {
    let network = Network::with_clients(1);
    let before = Snapshot::take(network.client(0));
    let (mut server, client) = stock(&network, &[], "");
    let link = || network.client(0).run(Command::new("ip").args(["-o", "link", "show", "adit0"]));
    let first = link();
    let index = first.split(':').next().expect("a number").to_owned();

    // SIGUSR1 makes it say RESTART to its clients and start anew.
    let mark = client.mark();
    server.process().signal(Signal::USR1);
    let lost = client.wait_for_state_since(mark, "reconnecting", SOON);
    assert_eq!(lost["why"], "the server told this client to connect again", "{lost}");
    client.wait_until_connected_since(mark, SOON);
    ping(client.host(), OpenVpnServer::INNER).must_all_return();

    let mark = client.mark();
    server.kill_and_restart();
    let lost = client.wait_for_state_since(mark, "reconnecting", SOON);
    assert!(lost["why"].as_str().is_some_and(|why| why.contains("ping-restart")), "{lost}");
    client.wait_until_connected_since(mark, SOON);
    ping(client.host(), OpenVpnServer::INNER6).must_all_return();

    assert!(link().starts_with(&format!("{index}: adit0")), "the same interface: {first}");
    client.stop();
    must_be_as_before(&before, &network);
}

#[test]
fn a_client_that_moves_to_another_network_keeps_its_session() {
    let network = Network::with_clients(1);
    let (server, client) = stock(&network, &["--push", "redirect-gateway def1"], "");
    let pinger = Pinger::start(client.host(), OpenVpnServer::INNER);
    pinger.wait_for_answers(5, SOON);
    let mark = client.mark();

    let address = network.roam(0);

    pinger.wait_for_answers(20, SOON);
    assert_eq!(client.states_since(mark), [Value::Null; 0]);
    client.stop();
    let goodbye = server.process().wait_for("CC-EEN exit message received", SOON);
    assert!(goodbye.contains(&format!("ann/{address}:")), "{goodbye}");
}

/// No answer comes from there, be it that the kernel refuses to send or that nobody answers.
#[track_caller]
fn must_not_reach(host: &Host, to: IpAddr) {
    let output =
        host.output(Command::new("ping").args(["-n", "-c", "2", "-i", "0.1", "-W", "1", &to.to_string()]));
    assert!(!output.status.success(), "{to} was reached: {}", String::from_utf8_lossy(&output.stdout));
}

/// What the client's machine sends past the tunnel: packets of its own to anybody but the server, neighbour
/// discovery and the like apart.
fn watch_leaks(network: &Network) -> Wire {
    let server = [network.gateway_address(), network.gateway_address6()];
    let own = [network.client_address(0), network.client_address6(0)];
    Wire::watch(&network.access, move |packet| {
        own.contains(&packet.from) && !server.contains(&packet.to) && !is_neighbourly(packet)
    })
}

/// ICMPv6 between neighbours (RFC 4861), which never leaves a link.
fn is_neighbourly(packet: &Seen) -> bool {
    packet.protocol == 58 && matches!(packet.payload.first(), Some(133..=137 | 143))
}

#[test]
fn nothing_but_packets_to_the_server_leaves_past_a_full_tunnel() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    let before = Snapshot::take(host);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let profile = gateway.add_user("ann", &["--route", "none"]);
    // Without the tunnel it would be a leak, and seen as one.
    let leaks = watch_leaks(&network);
    for to in [network.outside_address(), network.outside_address6()] {
        ping(host, to).must_all_return();
    }
    eventually("leaks by both IP versions", SOON, || {
        let seen = leaks.seen();
        seen.iter().any(|packet| packet.to.is_ipv4()) && seen.iter().any(|packet| packet.to.is_ipv6())
    });

    let client = AditClient::connect_with(host, &profile, &["--full"]);
    let leaks = watch_leaks(&network);
    for to in [network.outside_address(), network.outside_address6()] {
        ping_with(host, to, &["-c", "3", "-s", "3000"]).must_all_return();
        let server = HttpServer::start(&network.outside, to);
        assert_eq!(http_get(host, server.address(), "/1000000").expect("a page").len(), 1_000_000);
        let expected = if to.is_ipv4() { network.exit_address() } else { client.inner6() };
        assert_eq!(server.visits()[0].from.ip(), expected);
    }
    // While it is being connected again nothing goes past it either.
    let mark = client.mark();
    gateway.kill();
    client.wait_for_state_since(mark, "reconnecting", Duration::from_secs(20));
    for to in [network.outside_address(), network.outside_address6()] {
        must_not_reach(host, to);
    }
    gateway.up();
    client.wait_until_connected_since(mark, Duration::from_secs(20));
    ping(host, network.outside_address()).must_all_return();
    assert_eq!(leaks.seen(), []);
    client.stop();

    // A tunnel without IPv6 lets none past.
    let address = network.gateway_address();
    let options = ["--push", "redirect-gateway def1", "--push", "block-ipv6"];
    gateway.stop();
    let server = OpenVpnServer::start(&network.gateway, address, false, ServerWrap::None, &options);
    let client = AditClient::connect(host, &server.profile("ann"));
    let leaks = watch_leaks(&network);
    ping(host, OpenVpnServer::INNER).must_all_return();
    must_not_reach(host, network.outside_address6());
    ping(host, network.outside_address()).must_not_return();
    assert_eq!(leaks.seen(), []);
    client.stop();
    must_be_as_before(&before, &network);
}

#[test]
fn a_split_tunnel_takes_its_networks_and_leaves_the_others() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    let before = Snapshot::take(host);
    let mut gateway = Gateway::new(&network);
    gateway.set("tunnel", "dns", "[\"10.88.0.1\"]");
    gateway.up();
    let profile = gateway.add_user("ann", &[]);
    let servers = [network.outside_address(), network.outside_address6()]
        .map(|address| HttpServer::start(&network.outside, address));

    let client =
        AditClient::connect_with(host, &profile, &["--split", "203.0.113.0/24,10.88.0.0/16", "--json"]);
    let from = |server: &HttpServer| {
        http_get(host, server.address(), "/").expect("a page");
        server.visits().last().expect("a visit").from.ip()
    };
    assert_eq!(from(&servers[0]), network.exit_address());
    assert_eq!(from(&servers[1]), network.client_address6(0), "past the tunnel");
    ping(host, "10.88.0.1".parse().expect("an address")).must_all_return();
    assert_eq!(client.connected()["resolvers"][0], "10.88.0.1");
    client.wait_for_log("they are not applied", SOON);
    assert_eq!(gateway.wait_for_session("ann", SOON)["inner4"], client.inner4().to_string());
    client.stop();

    // What the gateway says: everything. A gateway that ends and starts in order finds its clients again.
    let client = AditClient::connect(host, &profile);
    for _ in 0..2 {
        assert_eq!(from(&servers[0]), network.exit_address());
        assert_eq!(from(&servers[1]), client.inner6());
        let mark = client.mark();
        gateway.stop();
        gateway.up();
        client.wait_until_connected_since(mark, SOON);
    }
    client.stop();
    must_be_as_before(&before, &network);
}

#[test]
fn a_client_that_cannot_use_udp_gets_in_by_tcp_and_one_told_so_at_once() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let profile = gateway.add_user("ann", &[]);
    network.access.nft(
        "table inet wall { chain forward { type filter hook forward priority filter; \
         ip daddr 192.0.2.1 meta l4proto udp drop; }; }",
    );
    let client = AditClient::connect(network.client(0), &profile);
    assert_eq!(client.connected()["transport"], "tcp");
    client.wait_for_log("no answer for 10s", SOON);
    assert_eq!(gateway.wait_for_session("ann", SOON)["transport"], "tcp");
    ping(client.host(), network.outside_address()).must_all_return();
    client.stop();

    let client = AditClient::connect_with(network.client(0), &profile, &["--transport", "tcp"]);
    let tried = client.states_since(0);
    assert!(tried.iter().all(|state| state["transport"] != "udp"), "{tried:?}");
    client.stop();
}

#[test]
fn a_user_who_is_removed_is_told_and_the_kill_switch_outlives_the_tunnel() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    let before = Snapshot::take(host);
    let mut gateway = Gateway::new(&network);
    gateway.up();

    let profile = gateway.add_user("ann", &[]);
    let mut client = AditClient::connect(host, &profile);
    gateway.ok(&["user", "remove", "ann"]);
    let status = client.process_mut().wait_for_end(SOON);
    assert_eq!(status.code(), Some(1));
    let said = client.process().err.lines();
    assert!(said.last().is_some_and(|line| line.contains("AUTH_FAILED")), "{said:?}");
    let last = client.states_since(0).pop().expect("a state");
    assert_eq!(last["state"], "disconnected");
    assert!(last["why"].as_str().is_some_and(|why| why.contains("AUTH_FAILED")), "{last}");
    must_be_as_before(&before, &network);
    ping(host, network.outside_address()).must_all_return();

    let profile = gateway.add_user("bob", &[]);
    let mut client = AditClient::connect_with(host, &profile, &["--kill-switch"]);
    ping(host, network.outside_address()).must_all_return();
    let leaks = watch_leaks(&network);
    gateway.ok(&["device", "revoke", "bob", "laptop"]);
    let blocked = client.wait_for_state_since(0, "blocked", SOON);
    assert!(blocked["why"].as_str().is_some_and(|why| why.contains("AUTH_FAILED")), "{blocked}");
    for to in [network.outside_address(), network.outside_address6()] {
        must_not_reach(host, to);
    }
    assert_eq!(leaks.seen(), []);
    client.process().terminate();
    assert_eq!(client.process_mut().wait_for_end(SOON).code(), Some(1));
    must_be_as_before(&before, &network);
    ping(host, network.outside_address()).must_all_return();

    let again = AditClient::run_to_end(host, &profile, &[]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.lines().last().is_some_and(|line| line.contains("AUTH_FAILED")), "{again:?}");
    must_be_as_before(&before, &network);
}

#[test]
fn what_a_killed_client_left_is_put_back_by_the_next() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    let before = Snapshot::take(host);
    host.sysctl("net.ipv4.conf.home.rp_filter", "1");
    let strict = Snapshot::take(host);
    let address = network.gateway_address();
    let server = OpenVpnServer::start(
        &network.gateway,
        address,
        true,
        ServerWrap::TlsCryptV2,
        &["--push", "route 203.0.113.0 255.255.255.0"],
    );
    let profile = server.profile("ann");

    // With the interface its routes go, and what went through the tunnel is reached without.
    let client = AditClient::connect_with(host, &profile, &["--full"]);
    ping(host, OpenVpnServer::INNER).must_all_return();
    client.kill();
    assert!(!strict.difference(&Snapshot::take(host)).is_empty(), "it had no time to put anything back");
    ping(host, network.outside_address()).must_all_return();

    // With a kill switch nothing passes until somebody says so.
    let client = AditClient::connect_with(host, &profile, &["--full", "--kill-switch"]);
    client.wait_for_log("adit had ended without undoing its changes", SOON);
    ping(host, OpenVpnServer::INNER).must_all_return();
    client.kill();
    for to in [network.outside_address(), network.outside_address6()] {
        must_not_reach(host, to);
    }

    // Even one that cannot connect puts back what is left.
    let nowhere = profile.replace("remote 192.0.2.1 1194", "remote 192.0.2.1 9");
    let mut client = AditClient::start(host, &nowhere);
    client.wait_for_log("adit had ended without undoing its changes", SOON);
    client.wait_for_log("Connection refused", SOON);
    let mut left = strict.difference(&Snapshot::take(host));
    left.retain(|line| !line.contains("adit0"));
    assert!(left.is_empty(), "all that is there is its own interface: {left:#?}");
    client.process().terminate();
    let status = client.process_mut().wait_for_end(SOON);
    assert_eq!(status.code(), Some(1));
    let said = client.process().err.lines().pop().unwrap_or_default();
    assert!(said.contains("stopped before it was connected; at last: Connection refused"), "{said}");
    assert_eq!(strict, Snapshot::take(host));

    let client = AditClient::connect(host, &profile);
    ping(host, OpenVpnServer::INNER6).must_all_return();
    client.stop();
    host.sysctl("net.ipv4.conf.home.rp_filter", "0");
    must_be_as_before(&before, &network);
}

#[test]
fn two_clients_on_one_machine_have_a_tunnel_each() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    let before = Snapshot::take(host);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let clients =
        [("ann", "203.0.113.0/24"), ("bob", "2001:db8:113::/48,10.99.0.0/24")].map(|(user, split)| {
            let profile = gateway.add_user(user, &[]);
            AditClient::connect_with(host, &profile, &["--split", split])
        });
    assert_ne!(clients[0].connected()["interface"], clients[1].connected()["interface"]);
    for (address, expected) in [
        (network.outside_address(), network.exit_address()),
        (network.outside_address6(), clients[1].inner6()),
    ] {
        let server = HttpServer::start(&network.outside, address);
        http_get(host, server.address(), "/").expect("a page");
        assert_eq!(server.visits()[0].from.ip(), expected);
    }
    let [first, second] = clients;
    first.stop();
    ping(host, network.outside_address6()).must_all_return();
    second.stop();
    must_be_as_before(&before, &network);
}

#[test]
fn a_client_that_is_bound_leaves_by_that_way_and_no_other() {
    let network = Network::with_clients(1);
    let host = network.client(0);
    host.sysctl("net.ipv4.conf.away.rp_filter", "1");
    host.ip(
        "link set away up\naddress add 198.19.0.2/24 dev away\nroute add default via 198.19.0.1 metric 900",
    );
    let before = Snapshot::take(host);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    for (transport, bind, expected) in [
        ("udp", "away", "198.19.0.2"),
        ("tcp", "away", "198.19.0.2"),
        ("udp", "198.18.0.2", "198.18.0.2"),
        ("tcp", "198.18.0.2", "198.18.0.2"),
    ] {
        let user = format!("{transport}-{expected}").replace('.', "-");
        let profile = gateway.add_user(&user, &["--transport", transport]);
        let client = AditClient::connect_with(host, &profile, &["--full", "--bind", bind]);
        assert_eq!(gateway.wait_for_session(&user, SOON)["remote_address"], expected);
        ping(host, network.outside_address()).must_all_return();
        client.stop();
        must_be_as_before(&before, &network);
    }
}
