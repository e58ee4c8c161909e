//! Foreign back ends behind the gateway's ports, all of them the real programs.
//!
//! ```text
//!  stock clients ─── access ─── gateway ─── router ─── outside
//!  198.18.0.2 …   192.0.2.254   192.0.2.1: ports 1-29999, UDP and TCP
//!                   haproxy     127.0.0.1: openvpn, sshd, nginx, stunnel
//!                                  └─── inside 172.30.0.2: openvpn, nginx
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use adit_testbed::{
    Flow, Gateway, Host, Network, OpenVpnClient, OpenVpnServer, Rng, ServerSpec, ServerWrap, Wire,
    eventually, ping,
};
use adit_tests::backends::{
    self, Daemon, Daemons, accept, ask, configure, curl, haproxy, listen, local, nginx, ssh, sshd, stunnel,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);
const SSH_LINE: &[u8] = b"SSH-2.0-test\r\n";
const STRIPED: &str = "[[entrance]]\nudp = \"1-29999\"\ntcp = \"1-29999\"\n";

/// 443 and ten others.
fn ports() -> Vec<u16> {
    let mut rng = Rng::new(21);
    let others = std::iter::repeat_with(|| 1 + rng.below(29_999) as u16);
    std::iter::once(443).chain(others.filter(|port| ![443, 5061].contains(port)).take(10)).collect()
}

fn service(gateway: &Gateway, name: &str) -> Value {
    let status = gateway.json(&["status"]);
    let services = status["services"].as_array().expect("services");
    services
        .iter()
        .find(|service| service["name"] == name)
        .unwrap_or_else(|| panic!("{name}: {status}"))
        .clone()
}

/// A client lands at the server that has this name, and its tunnel works.
fn must_land(network: &Network, server: &OpenVpnServer, name: &str, net: u8, port: u16) {
    let mark = server.process().out.mark();
    let remote = SocketAddr::new(network.gateway_address(), port);
    let profile = server.profile_to("guest", remote);
    let client = OpenVpnClient::connect(network.client(0), &profile);
    client.wait_for(&format!("VERIFY OK: depth=0, CN={name}"), SOON);
    // Nothing of the client's address is in OpenVPN's own protocol.
    let said = server.process().wait_for_since(mark, "[guest] Peer Connection Initiated", SOON);
    assert!(said.contains("[AF_INET]127.0.0.1:"), "{said}");
    ping(client.host(), IpAddr::from([10, net, 0, 1])).must_all_return();
    client.stop();
}

#[test]
fn four_foreign_servers_and_the_gateways_own_answer_on_the_same_ports() {
    let network = Network::with_clients(2);
    let mut gateway = Gateway::new(&network);
    let daemons = Daemons::start(&network.gateway);
    configure(&gateway, &format!("{STRIPED}{}", daemons.services()));
    gateway.up();

    let ports = ports();
    for (name, net) in [("rsa", 71), ("ecc", 72), ("ed25519", 73)] {
        for port in &ports {
            must_land(&network, daemons.named(name), name, net, *port);
        }
    }
    must_land(&network, daemons.named("ed448"), "ed448", 74, 5061);
    // A key that verifies goes before the port that was dialled.
    must_land(&network, daemons.named("rsa"), "rsa", 71, 5061);
    for (n, port) in ports.iter().chain(&[5061]).enumerate() {
        let user = format!("user{n}");
        let transport = if n % 2 == 0 { "udp" } else { "tcp" };
        let profile = gateway.add_user(&user, &["--transport", transport, "--port", &port.to_string()]);
        let client = OpenVpnClient::connect(network.client(1), &profile);
        let session = gateway.wait_for_session(&user, SOON);
        assert_eq!(session["local_port"].as_u64(), Some(u64::from(*port)));
        ping(client.host(), network.outside_address()).must_all_return();
        client.stop();
    }
    for name in ["rsa", "ecc", "ed25519", "ed448"] {
        let service = service(&gateway, name);
        assert!(service["connected"].as_u64() > Some(0) && service["failed"] == 0, "{service}");
    }
    // Before the daemons, whose interfaces were there before it.
    gateway.stop();
}

#[test]
fn shells_and_web_servers_share_the_ports_and_learn_who_the_client_is() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let host = &network.gateway;
    let shell = sshd(host, local(10_022));
    let plain = nginx(host, "plain", local(10_441), false);
    let proxied = nginx(host, "proxied", local(10_442), true);
    let second = nginx(host, "second", local(10_443), true);
    configure(
        &gateway,
        &format!(
            "{STRIPED}\
             [[service]]\nname = \"ssh\"\nmatch = \"ssh\"\nto = \"127.0.0.1:10022\"\n\
             [[service]]\nname = \"web\"\nmatch = \"tls\"\nto = \"127.0.0.1:10441\"\n\
             [[service]]\nname = \"shop\"\nmatch = \"tls sni=*.example.org\"\nto = \"127.0.0.1:10442\"\nproxy = \"v2\"\n\
             [[service]]\nname = \"h2\"\nmatch = \"tls alpn=h2\"\nto = \"127.0.0.1:10443\"\nproxy = \"v2\"\n"
        ),
    );
    gateway.up();
    let client = network.client(0);
    for port in ports() {
        let server = SocketAddr::new(network.gateway_address(), port);
        let said = client.run(ssh(&shell, server).arg("echo $SSH_CONNECTION"));
        assert!(said.starts_with("127.0.0.1 "), "{said}");
        for (name, options, whose) in [
            ("shop.example.org", &["--http1.1"][..], "proxied"),
            ("example.net", &["--http1.1"], "plain"),
            ("example.net", &["--http2"], "second"),
        ] {
            assert_eq!(curl(client, server, name, options).as_deref(), Some(whose), "{name} on {port}");
        }
    }
    let own = network.client_address(0);
    for (daemon, seen) in [
        (&proxied, format!("proxied client {own} shop.example.org http/1.1")),
        (&second, format!("second client {own} example.net h2")),
        (&plain, "plain client 127.0.0.1 example.net http/1.1".to_owned()),
    ] {
        eventually(&seen, SOON, || {
            std::fs::read_to_string(daemon.path("access.log")).unwrap().lines().any(|line| line == seen)
        });
    }
    // Without a name, which is how one looks at a server by hand.
    let server = SocketAddr::new(network.gateway_address6(), 443).to_string();
    let mut openssl = Command::new("openssl");
    let said = client.run(openssl.args(["s_client", "-noservername", "-connect", &server]));
    assert!(said.contains("CN = plain"), "{said}");
}

#[test]
fn a_full_tunnel_works_inside_ssh_and_inside_tls() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let host = &network.gateway;
    let shell = sshd(host, local(10_022));
    let end = stunnel(host, None, local(10_444), local(30_001));
    configure(
        &gateway,
        &format!(
            "{STRIPED}[[entrance]]\naddress = \"127.0.0.1\"\ntcp = \"30001\"\n\
             [[service]]\nname = \"ssh\"\nmatch = \"ssh\"\nto = \"127.0.0.1:10022\"\n\
             [[service]]\nname = \"stunnel\"\nmatch = \"tls sni=vpn.example.org\"\nto = \"127.0.0.1:10444\"\n"
        ),
    );
    gateway.up();
    let client = network.client(0);
    let mut rng = Rng::new(22);
    let mut random = || SocketAddr::new(network.gateway_address(), 1 + rng.below(29_999) as u16);
    let (over_ssh, over_tls) = (random(), random());
    let own = gateway.add_user("ann", &["--transport", "tcp", "--remote", "127.0.0.1", "--port", "6000"]);
    // The way to what the tunnel is in must not lead through the tunnel.
    let own = format!("{own}\nroute {} 255.255.255.255 net_gateway\n", network.gateway_address());

    let forwarding = client.spawn(
        "ssh",
        ssh(&shell, over_ssh).args([
            "-N",
            "-L",
            "127.0.0.1:6000:127.0.0.1:30001",
            "-o",
            "ExitOnForwardFailure=yes",
        ]),
    );
    backends::wait_until_listening(client, local(6000));
    must_reach_outside(&network, &gateway, &own);
    drop(forwarding);

    let tls = stunnel(client, Some("vpn.example.org"), local(6001), over_tls);
    must_reach_outside(&network, &gateway, &own.replace("127.0.0.1 6000", "127.0.0.1 6001"));
    assert_eq!(service(&gateway, "stunnel")["connected"], 1);
    drop((tls, end));
}

fn must_reach_outside(network: &Network, gateway: &Gateway, profile: &str) {
    let client = OpenVpnClient::connect(network.client(0), profile);
    let session = gateway.wait_for_session("ann", SOON);
    assert_eq!((&session["remote_address"], &session["local_port"]), (&"127.0.0.1".into(), &30_001.into()));
    let wire = Wire::watch(&network.outside, |seen| seen.protocol == 1 || seen.protocol == 58);
    ping(client.host(), network.outside_address()).must_all_return();
    ping(client.host(), network.outside_address6()).must_all_return();
    eventually("pings that have taken the tunnel", SOON, || {
        wire.seen().iter().any(|seen| seen.from == network.exit_address())
    });
    let flow =
        Flow::start(client.host(), &network.outside, network.outside_address(), Duration::from_millis(2));
    // A tunnel in a stream drops what the stream does not take at once, so nothing is said of each datagram.
    flow.wait_for(200, SOON);
    drop(flow);
    client.stop();
    gateway.wait_for_sessions(0, SOON);
}

#[test]
fn a_back_end_that_is_gone_is_told_once_and_clients_do_not_wait() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let services = "[[service]]\nname = \"ssh\"\nmatch = \"ssh\"\nto = \"127.0.0.1:10022\"\n\
         [[service]]\nname = \"web\"\nmatch = \"http\"\nto = \"198.51.100.77:80\"\n\
         [[service]]\nname = \"mute\"\nmatch = \"socks5\"\nto = \"127.0.0.1:10080\"\n\
         [[service]]\nname = \"names\"\nmatch = \"dns\"\nto = \"127.0.0.1:10053\"\n";
    configure(&gateway, &format!("{STRIPED}{services}"));
    let mute = listen(&network.gateway, 10_080);
    gateway.up();
    let client = network.client(0);
    let server = SocketAddr::new(network.gateway_address(), 443);

    assert_eq!(service(&gateway, "ssh")["up"], true, "nobody has asked");
    for _ in 0..5 {
        let (answer, took) = ask(client, server, SSH_LINE);
        assert!(answer.is_empty() && took < Duration::from_secs(2), "{took:?}");
    }
    let dead = service(&gateway, "ssh");
    assert_eq!(dead["up"], false);
    assert!(dead["error"].as_str().unwrap().contains("refused"), "{dead}");
    let (answer, took) = ask(client, server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.is_empty() && took < Duration::from_secs(8), "{took:?}");
    assert_eq!(service(&gateway, "web")["up"], false);

    let asking = client.run_in(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
    eventually("the end of a dead UDP back end", SOON, || {
        asking.send_to(query, server).unwrap();
        service(&gateway, "names")["up"] == false
    });

    // One that never answers is its clients' affair, and nobody else's.
    let mut waiting = client.run_in(|| TcpStream::connect(server)).unwrap();
    waiting.write_all(&[5, 1, 0]).unwrap();
    eventually("a connection to the mute one", SOON, || service(&gateway, "mute")["open"] == 1);
    assert_eq!(service(&gateway, "mute")["up"], true);

    let mut back = sshd(&network.gateway, local(10_022));
    eventually("an answer of the back end that is back", SOON, || ask_once(client, &back, server));
    assert_eq!(service(&gateway, "ssh")["up"], true);
    assert_eq!(service(&gateway, "ssh")["error"], Value::Null);
    let resolver = network.gateway.run_in(|| UdpSocket::bind(local(10_053))).unwrap();
    resolver.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];
    let (_, from) = adit_testbed::eventually_some("a query", SOON, || {
        asking.send_to(query, server).unwrap();
        resolver.recv_from(&mut buffer).ok()
    });
    resolver.send_to(b"answer", from).unwrap();
    asking.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(asking.recv_from(&mut buffer).unwrap(), (6, server));
    assert_eq!(service(&gateway, "names")["up"], true);

    drop(mute);
    eventually("the end of the mute connection", SOON, || service(&gateway, "mute")["open"] == 0);
    back.kill();
    for name in ["ssh", "web", "names"] {
        let said = |what: &str| {
            let lines = gateway.logged(what);
            lines.iter().filter(|line| line.contains(&format!("service=\"{name}\""))).count()
        };
        assert_eq!(said("does not answer"), 1, "{name}");
        assert_eq!(said("answers again"), usize::from(name != "web"), "{name}");
    }
    drop(waiting);
}

/// Whether a command through the port succeeds.
fn ask_once(from: &Host, shell: &Daemon, server: SocketAddr) -> bool {
    from.output(ssh(shell, server).arg("true")).status.success()
}

#[test]
fn a_reload_adds_changes_and_removes_services_and_no_flow_notices() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let host = &network.gateway;
    let (first, second) = (listen(host, 10_001), listen(host, 10_002));
    let resolver = host.run_in(|| UdpSocket::bind(local(10_053))).unwrap();
    resolver.set_read_timeout(Some(SOON)).unwrap();
    let to = |gateway: &Gateway, port: u16, rest: &str| {
        let ssh = format!("[[service]]\nname = \"a\"\nmatch = \"ssh\"\nto = \"127.0.0.1:{port}\"\n");
        configure(gateway, &format!("{STRIPED}{ssh}{rest}"));
    };
    configure(&gateway, STRIPED);
    gateway.up();
    // The first services.
    to(&gateway, 10_001, "[[service]]\nname = \"names\"\nmatch = \"dns\"\nto = \"127.0.0.1:10053\"\n");
    assert_eq!(gateway.json(&["reload"])["applied"], true);
    let server = SocketAddr::new(network.gateway_address(), 443);
    let dial = || {
        let mut stream = network.client(0).run_in(|| TcpStream::connect(server)).unwrap();
        stream.write_all(SSH_LINE).unwrap();
        stream
    };
    let talk = |near: &mut TcpStream, far: &mut TcpStream| {
        let mut buffer = [0; 4];
        near.write_all(b"ask?").unwrap();
        far.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"ask?");
    };
    let accept = |listener: &TcpListener| {
        let mut stream = accept(listener);
        let mut line = [0; SSH_LINE.len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, SSH_LINE);
        stream
    };
    let asking = network.client(0).run_in(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
    let mut buffer = [0; 64];
    asking.send_to(query, server).unwrap();
    let (_, flow) = resolver.recv_from(&mut buffer).unwrap();
    let mut old = dial();
    let mut old_end = accept(&first);
    let reload = || {
        let report = gateway.json(&["reload"]);
        assert_eq!(report["applied"], true, "{report}");
    };

    // Another back end for the same clients, and another service.
    to(&gateway, 10_002, "[[service]]\nname = \"b\"\nmatch = \"http\"\nto = \"127.0.0.1:10001\"\n");
    reload();
    let (mut new, mut web) = (dial(), network.client(0).run_in(|| TcpStream::connect(server)).unwrap());
    let mut new_end = accept(&second);
    web.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut web_end = adit_testbed::eventually_some("a connection", SOON, || first.accept().ok()).0;
    web_end.set_nonblocking(false).unwrap();
    web_end.read_exact(&mut buffer[..16]).unwrap();
    talk(&mut old, &mut old_end);
    asking.send_to(b"of the same flow", server).unwrap();
    assert_eq!(resolver.recv_from(&mut buffer).unwrap(), (16, flow), "its service is gone, the flow is not");

    // One that makes no sense changes nothing.
    to(&gateway, 10_002, "[[service]]\nname = \"b\"\nmatch = \"htpp\"\nto = \"127.0.0.1:10001\"\n");
    let refused = gateway.cli(&["reload"]);
    assert!(refused.refusal().contains("did you mean \"http\""), "{}", refused.refusal());
    let refused = gateway.cli(&["check"]);
    assert!(refused.code == Some(1) && format!("{refused:?}").contains("service b: match"), "{refused:?}");
    talk(&mut new, &mut new_end);

    let before = service(&gateway, "a")["connected"].clone();
    to(&gateway, 10_002, "");
    reload();
    assert_eq!(service(&gateway, "a")["connected"], before, "one that stays keeps its state");
    talk(&mut web, &mut web_end);
    talk(&mut old_end, &mut old);
    let status = gateway.json(&["status"]);
    assert_eq!(status["services"].as_array().map(Vec::len), Some(1), "{status}");

    gateway.edit(|document| {
        document.remove("service");
    });
    reload();
    talk(&mut new, &mut new_end);
    let (answer, _) = ask(network.client(0), server, SSH_LINE);
    assert!(answer.is_empty());
    assert!(second.accept().is_err(), "nobody's connections end here");
}

/// Everything that the gateway sends to the client over UDP, and its machine's complaints.
fn answers(network: &Network) -> Wire {
    let client = network.client_address(0);
    Wire::watch(network.client(0), move |seen| seen.to == client && [1, 17].contains(&seen.protocol))
}

/// Datagrams of clients that prove nothing, of every form there is a service or an identity for.
fn knocks() -> Vec<Vec<u8>> {
    let mut rng = Rng::new(9);
    let mut all: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01".to_vec(),
        SSH_LINE.to_vec(),
    ];
    for length in [1, 14, 42, 54, 86, 148, 1200] {
        for first in [0x38, 0x50, 0x01, 0xc3, 0x00] {
            let mut packet: Vec<u8> = (0..length).map(|_| rng.below(256) as u8).collect();
            packet[0] = first;
            all.push(packet);
        }
    }
    all
}

#[test]
fn nobodys_connections_go_to_the_decoy_and_nobodys_datagrams_nowhere() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let host = &network.gateway;
    let decoy = nginx(host, "decoy", local(10_443), false);
    // A decoy is for connections: over UDP it would be a voice in the name of the gateway.
    let ear = host.run_in(|| UdpSocket::bind(local(10_443))).unwrap();
    ear.set_nonblocking(true).unwrap();
    let foreign = OpenVpnServer::start_as(
        host,
        &ServerSpec {
            name: "foreign",
            key: "P-256",
            net: 75,
            listen: local(11_075),
            tcp: false,
            wrap: ServerWrap::TlsAuth("SHA256"),
            options: &[],
        },
    );
    let services = format!(
        "[[service]]\nname = \"decoy\"\nmatch = \"tls sni=www.example.org\"\nto = \"127.0.0.1:10443\"\n\
         [[service]]\nname = \"foreign\"\nkey = \"{}\"\nto = \"127.0.0.1:11075\"\n",
        foreign.wrap_key().display()
    );
    configure(&gateway, &format!("{STRIPED}[unknown]\nanswer = \"decoy\"\n{services}"));
    gateway.up();
    let client = network.client(0);
    let server = SocketAddr::new(network.gateway_address(), 443);
    assert_eq!(curl(client, server, "nobody.example.net", &["--http1.1"]).as_deref(), Some("decoy"));
    // What is no TLS gets what that web server says to it.
    let (answer, _) = ask(client, server, b"GET / HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");

    let must_be_silent = |answer: &str| {
        let wire = answers(&network);
        let asking = client.run_in(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for packet in knocks() {
            asking.send_to(&packet, server).unwrap();
        }
        // The control: by the time a tunnel is up, the watch has seen answers and the gateway those datagrams.
        let control = asking.local_addr().unwrap().port();
        let remote = SocketAddr::new(network.gateway_address(), 443);
        let tunnel = OpenVpnClient::connect(client, &foreign.profile_to("guest", remote));
        let seen = wire.seen();
        assert!(seen.iter().any(|seen| seen.ports.0 == 443), "{answer}: the tunnel is seen");
        let wrong: Vec<_> =
            seen.iter().filter(|seen| seen.protocol == 1 || seen.ports.1 == control).collect();
        assert!(wrong.is_empty(), "{answer}: {wrong:?}");
        tunnel.stop();
    };
    must_be_silent("decoy");

    for (word, quick) in [("close", true), ("silence", false)] {
        gateway.stop();
        configure(&gateway, &format!("[unknown]\nanswer = \"{word}\"\n"));
        gateway.up();
        let (answer, took) = ask(client, server, b"\x00\x07who are you");
        assert!(answer.is_empty(), "{answer:?}");
        assert_eq!(took < Duration::from_secs(1), quick, "{word} took {took:?}");
        must_be_silent(word);
    }
    assert!(ear.recv(&mut [0; 10]).is_err(), "the decoy has got a datagram");
    gateway.stop();
    drop((foreign, decoy));
}

#[test]
fn a_proxys_word_for_the_client_counts_when_the_proxy_is_trusted() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let trusting = |networks: &str| format!("{STRIPED}proxies = [{networks}]\n");
    configure(&gateway, &trusting("\"192.0.2.254/32\""));
    gateway.up();
    let server = SocketAddr::new(network.gateway_address(), 443);
    let proxies = [("v1", 5001, "send-proxy"), ("v2", 5002, "send-proxy-v2")]
        .map(|(name, port, header)| (name, port, haproxy(&network.access, port, server, header)));
    let mut profiles = Vec::new();
    for (name, port, _) in &proxies {
        let options = ["--transport", "tcp", "--remote", "192.0.2.254", "--port", &port.to_string()];
        profiles.push(gateway.add_user(name, &options));
        let client = OpenVpnClient::connect(network.client(0), profiles.last().unwrap());
        let session = gateway.wait_for_session(name, SOON);
        assert_eq!(session["remote_address"], network.client_address(0).to_string());
        ping(client.host(), network.outside_address()).must_all_return();
        client.stop();
        gateway.wait_for_sessions(0, SOON);
    }

    configure(&gateway, &trusting("\"192.0.2.1/32\""));
    let refused = gateway.cli(&["reload"]);
    assert!(refused.out.contains("[[entrance]] has changed"), "{refused:?}");
    gateway.stop();
    gateway.up();
    for profile in &profiles {
        let before = gateway.drops("no_key_verified");
        let client = OpenVpnClient::start(network.client(0), profile);
        client.wait_for("Connection reset", Duration::from_secs(30));
        assert!(gateway.drops("no_key_verified") > before);
        assert_eq!(client.connections(), 0);
        client.stop();
    }
}

#[test]
fn back_ends_on_another_machine_see_the_clients_own_address() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let inside = Arc::new(Host::new("inside"));
    network.gateway.ip(&format!(
        "link add dmz type veth peer name lan netns {}\nlink set dmz up\naddress add 172.30.0.1/24 dev dmz\n",
        inside.name()
    ));
    inside.ip("link set lan up\naddress add 172.30.0.2/24 dev lan\nroute add default via 172.30.0.1\n");
    let web = nginx(&inside, "web", "172.30.0.2:443".parse().unwrap(), false);
    let vpn = OpenVpnServer::start_as(
        &inside,
        &ServerSpec {
            name: "inner",
            key: "P-256",
            net: 76,
            listen: "172.30.0.2:1194".parse().unwrap(),
            tcp: false,
            wrap: ServerWrap::TlsCryptV2,
            options: &[],
        },
    );
    // A few ports, with a socket each.
    let services = format!(
        "[[entrance]]\nudp = \"443,1194\"\ntcp = \"443\"\n\
         [[service]]\nname = \"web\"\nmatch = \"tls\"\nto = \"172.30.0.2:443\"\nproxy = \"none\"\n\
         [[service]]\nname = \"vpn\"\nkey = \"{}\"\nto = \"172.30.0.2:1194\"\nproxy = \"none\"\n",
        vpn.wrap_key().display()
    );
    configure(&gateway, &services);
    gateway.up();
    let (client, own) = (network.client(0), network.client_address(0));
    let server = SocketAddr::new(network.gateway_address(), 443);
    let must_be_seen_as = |address: &str| {
        assert_eq!(curl(client, server, "example.net", &["--http1.1"]).as_deref(), Some("web"));
        eventually(&format!("{address} in the web server's log"), SOON, || {
            let log = std::fs::read_to_string(web.path("access.log")).unwrap();
            log.lines().last().is_some_and(|line| line.contains(&format!("web client {address} ")))
        });
    };
    must_be_seen_as("172.30.0.1");
    configure(&gateway, &services.replace("\"none\"", "\"transparent\""));
    assert_eq!(gateway.json(&["reload"])["applied"], true);
    must_be_seen_as(&own.to_string());
    gateway.stop();
    gateway.up();
    must_be_seen_as(&own.to_string());
    let tunnel = OpenVpnClient::connect(client, &vpn.profile_to("guest", server));
    let said = vpn.process().wait_for_since(0, "[guest] Peer Connection Initiated", SOON);
    assert!(said.contains(&format!("[AF_INET]{own}:")), "{said}");
    ping(client, IpAddr::from([10, 76, 0, 1])).must_all_return();
    tunnel.stop();
    gateway.stop();
}

#[test]
fn a_port_of_the_gateway_as_its_own_back_end_is_no_loop() {
    let network = Network::with_clients(1);
    let mut gateway = Gateway::new(&network);
    let loop_on = |tcp: &str| {
        format!(
            "[[entrance]]\nudp = \"1194\"\ntcp = \"{tcp}\"\n\
             [[service]]\nname = \"loop\"\nmatch = \"openvpn none\"\nto = \"127.0.0.1:1194\"\n"
        )
    };
    configure(&gateway, &loop_on("1194"));
    let refused = gateway.cli(&["check"]);
    assert!(format!("{refused:?}").contains("no other program can listen there"), "{refused:?}");
    // Over UDP there may be somebody; over TCP there is the gateway.
    configure(&gateway, &loop_on("443,1194").replace("udp = \"1194\"", "udp = \"443\""));
    gateway.up();
    let hello = b"\x00\x0e\x38abcdefgh\x00\x00\x00\x00\x00";
    let (answer, _) = ask(network.client(0), SocketAddr::new(network.gateway_address(), 443), hello);
    assert!(answer.is_empty());
    assert_eq!(service(&gateway, "loop")["connected"], 1);
}
