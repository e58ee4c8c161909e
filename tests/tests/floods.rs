//! Strangers in masses: they get nothing, cost little, and hold up nobody.
//!
//! ```text
//!  client 0, connected ──┐
//!  strangers: clients 1, 2 ──┴─ access ─── gateway ─── router ─── outside
//!  198.18.100.7 … 198.18.227.7: strangers and others, on access    192.0.2.1: ports 1-29999, UDP and TCP
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use adit_host::tcp::{self, Origin};
use adit_testbed::{Gateway, LightClient, OpenVpnClient, Rng, Scale, eventually, ping};
use adit_tests::Scene;

const SOON: Duration = Duration::from_secs(10);
/// Bytes that an undecided connection may cost.
const EACH: u64 = 4096;
/// What memory may differ by anyway.
const SLACK: u64 = 2 << 20;
/// Undecided connections that a network may have.
const PER_NETWORK: usize = 256;
/// First packets of a network that are looked at in a second, and for how many seconds they may come at once.
const PER_SECOND: u64 = 200;
const BURST: u64 = 10;
/// How many times slower others may connect while strangers come in masses: both ends share this machine's processors.
const SLOWER: u32 = 10;
/// Below that, it is no delay.
const NO_DELAY: Duration = Duration::from_millis(50);
/// What strangers ask in UDP: forms of protocols that this gateway does not have, and nothing at all.
const FORMS: [&[u8]; 5] = [
    include_bytes!("../../fuzz/seeds/datagram-dns"),
    include_bytes!("../../fuzz/seeds/datagram-quic-v1"),
    include_bytes!("../../fuzz/seeds/datagram-stun"),
    include_bytes!("../../fuzz/seeds/datagram-openvpn-crypt"),
    &[0xa5; 100],
];

/// An address in a network of its own.
fn source(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 100 + n as u8, 7)
}

/// A gateway with all ports, and a light client that is a user of it.
struct Striped {
    scene: Scene,
    user: LightClient,
    profile: String,
    lines_before: usize,
}

impl Striped {
    fn new(inspect: Duration) -> Self {
        Self::with(inspect, |_| {})
    }

    fn with(inspect: Duration, prepare: impl FnOnce(&mut Gateway)) -> Self {
        adit_host::limits::raise_open_files().unwrap();
        let scene = Scene::new(3, |gateway| {
            prepare(gateway);
            gateway.edit(|document| {
                let all = "1-29999";
                let entrance = format!(
                    "[[entrance]]\nudp = \"{all}\"\ntcp = \"{all}\"\ninspect = \"{}s\"\n",
                    inspect.as_secs()
                );
                let entrance: toml_edit::DocumentMut = entrance.parse().unwrap();
                document["entrance"] = entrance["entrance"].clone();
            });
        });
        let profile = scene.gateway.add_user("user", &["--transport", "tcp", "--port", "443"]);
        let commands: String = (0..128).map(|n| format!("addr add {}/32 dev lo\n", source(n))).collect();
        scene.network.access.ip(&commands);
        let mut striped = Self { scene, user: LightClient::new(&profile), profile, lines_before: 0 };
        striped.lines_before = striped.lines().len();
        striped
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.scene.network.gateway_address(), port)
    }

    fn memory(&self) -> u64 {
        self.scene.gateway.process().memory()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.scene.gateway.process().id())).unwrap().count()
    }

    /// The time that the user needs to connect from a network without strangers, in the middle of several.
    fn takes(&self) -> Duration {
        let mut times: Vec<Duration> = (0..9)
            .map(|n| {
                let start = Instant::now();
                let connect = || self.user.connect(source(110 + n).into(), self.at(443), true).map(drop);
                self.scene.network.access.run_in(connect).unwrap();
                start.elapsed()
            })
            .collect();
        self.scene.gateway.wait_for_sessions(1, SOON);
        times.sort();
        times[times.len() / 2]
    }

    fn must_take(&self, before: Duration) {
        let now = self.takes();
        eprintln!("a client needs {now:?} to connect, {before:?} without strangers");
        assert!(now <= NO_DELAY.max(before * SLOWER), "{now:?} to connect, {before:?} without strangers");
    }

    /// Connections from sources that take turns, to ports that do so; without those that are refused at once.
    fn open(&self, count: usize, from: &[usize], ports: &[u16]) -> Vec<Stranger> {
        let connect = |n: usize| {
            let origin = Origin { address: Some(source(from[n % from.len()]).into()), ..Origin::default() };
            match tcp::connect(self.at(ports[n % ports.len()]), &origin, SOON) {
                Ok(stream) => Some(Stranger(stream)),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
                Err(error) => panic!("connection {n}: {error}"),
            }
        };
        self.scene.network.access.run_in(|| (0..count).filter_map(connect).collect())
    }

    /// Lines of the log that are not about the user.
    fn lines(&self) -> Vec<String> {
        let mut lines = self.scene.gateway.logged("");
        lines.retain(|line| !line.contains("user=\"user\""));
        lines
    }

    /// All is as before, when the user has gone.
    fn as_before(&self) {
        self.scene.gateway.wait_for_sessions(1, SOON);
        self.scene.as_before();
        let lines = self.lines();
        assert_eq!(lines.len(), self.lines_before, "{:#?}", &lines[self.lines_before..]);
    }
}

/// A connection of somebody who is nobody's client.
struct Stranger(TcpStream);

impl Stranger {
    /// The gateway has not ended it. It has not said anything either.
    fn is_held(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(0) => false,
            Ok(_) => panic!("a stranger has got an answer"),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn slow_first_bytes_are_held_for_their_time_and_hold_up_nobody() {
    // All that there can be at a time, and many that cannot.
    let (count, networks, inspect) = Scale::get().pick((500, 4, 4), (10_000, 40, 10));
    let inspect = Duration::from_secs(inspect);
    let striped = Striped::new(inspect);
    let before = striped.takes();
    let (memory, descriptors) = (striped.memory(), striped.descriptors());
    let from: Vec<usize> = (0..networks).collect();
    // The beginning of a first packet of tls-crypt, and of something that nobody here knows.
    let beginning = [&[0, 54, 0x38][..], &Rng::new(5).bytes(50)].concat();
    let beginnings: [&[u8]; 2] =
        [&beginning, b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: a/1.0\r\n"];

    let start = Instant::now();
    let mut crowd = striped.open(count, &from, &[443, 5060, 17_000]);
    let opened = Instant::now();
    let mut most = 0;
    for second in 0.. {
        eventually("the next second", SOON, || start.elapsed() >= Duration::from_secs(second as u64));
        for (n, stranger) in crowd.iter_mut().enumerate() {
            // Those that were closed are taken out below.
            let _ = stranger.0.write(&beginnings[n % 2][second..=second]);
        }
        crowd.retain_mut(Stranger::is_held);
        let held = striped.descriptors().saturating_sub(descriptors);
        most = most.max(held);
        let grown = striped.memory().saturating_sub(memory);
        assert!(grown <= most as u64 * EACH + SLACK, "{grown} bytes for {most} connections");
        if second == 1 {
            eprintln!("{held} of {count} held, {grown} bytes; opened within {:?}", opened - start);
            assert!(held >= count.min(4096) / 2, "{held} of {count} are held");
            striped.must_take(before);
            let client = OpenVpnClient::connect(striped.scene.network.client(2), &striped.profile);
            ping(client.host(), striped.scene.network.outside_address()).must_all_return();
            client.stop();
        }
        if crowd.is_empty() {
            break;
        }
        assert!(opened.elapsed() < inspect + Duration::from_secs(3), "{} are still there", crowd.len());
    }
    assert!(start.elapsed() >= inspect, "nobody was given the time for inspection");
    striped.must_take(before);
    striped.as_before();
}

#[test]
fn strangers_leave_descriptors_for_clients() {
    let files = 1024;
    let striped = Striped::with(Duration::from_secs(2), |gateway| gateway.limit_open_files(files));
    let before = striped.takes();
    let descriptors = striped.descriptors();

    let mut crowd = striped.open(2000, &(0..20).collect::<Vec<_>>(), &[443]);

    assert!(striped.descriptors() <= descriptors + files as usize / 4 + 8, "{}", striped.descriptors());
    striped.must_take(before);
    eventually("the end of all", SOON, || {
        crowd.retain_mut(Stranger::is_held);
        crowd.is_empty()
    });
    striped.as_before();
}

#[test]
fn connections_that_are_never_completed_cost_the_gateway_nothing() {
    let striped = Striped::new(Duration::from_secs(2));
    let before = striped.takes();
    let (memory, descriptors) = (striped.memory(), striped.descriptors());
    // Strangers that never hear the answer to their SYN: they repeat it, and do not confirm it.
    striped.scene.network.access.nft(
        "table ip strangers { chain prerouting { type filter hook prerouting priority raw; \
         ip saddr 192.0.2.1 ip daddr 198.18.100.0-198.18.139.255 tcp flags & (syn | ack) == syn | ack counter drop; }; }",
    );
    let count = Scale::get().pick(2000, 15_000);
    let open = |n: usize| {
        let to = striped.at(1 + (n % 29_999) as u16);
        tcp::start_connect(to, Some(source(n % 40).into())).unwrap()
    };
    let half_open: Vec<TcpStream> = striped.scene.network.access.run_in(|| (0..count).map(open).collect());

    striped.must_take(before);

    let dropped =
        striped.scene.network.access.run(std::process::Command::new("nft").args(["list", "ruleset"]));
    let dropped =
        dropped.split("packets ").nth(1).and_then(|text| text.split(' ').next()?.parse::<usize>().ok());
    assert!(dropped >= Some(count / 2), "the gateway's machine has answered {dropped:?} of {count}");
    assert!(striped.descriptors() <= descriptors + 8, "half-open connections are the kernel's");
    assert!(striped.memory() < memory + SLACK);
    drop(half_open);
    striped.as_before();
}

#[test]
fn a_scan_of_all_udp_ports_hears_nothing() {
    // With a back end every datagram is worth a look, within the budget for that.
    let striped = Striped::with(Duration::from_secs(2), |gateway| {
        gateway.edit(|document| {
            let service =
                "[[service]]\nname = \"other\"\nmatch = { udp-length = 1 }\nto = \"127.0.0.1:40009\"\n";
            let service: toml_edit::DocumentMut = service.parse().unwrap();
            document["service"] = service["service"].clone();
        });
    });
    let scene = &striped.scene;
    let memory = striped.memory();
    let words = scene.words_to(1..3);
    let scanner = scene.stranger(1);
    let sparse = Scale::get().pick(30, 1);
    let before = scene.drops();
    let start = Instant::now();
    let mut sent = 0;
    let ports: Vec<u16> = (1..30_000).step_by(sparse).collect();
    for some in ports.chunks(40) {
        for (port, form) in some.iter().flat_map(|port| FORMS.map(|form| (*port, form))) {
            // The socket is connected elsewhere.
            scanner.send_to(form, striped.at(port)).unwrap();
            sent += 1;
        }
        scene.wait_for_drops(&before, sent);
    }
    let drops = scene.wait_for_drops(&before, sent);
    eprintln!("{sent} datagrams: {drops:?}");
    assert_eq!(drops.values().sum::<u64>(), sent);
    let looked_at = sent - drops.get("source_budget").copied().unwrap_or(0);
    let most = PER_SECOND * (BURST + 1 + start.elapsed().as_secs());
    let all_at_once = PER_SECOND * BURST;
    assert!(sent > most, "too few to reach the limit");
    assert!((all_at_once..=most).contains(&looked_at), "{looked_at} of {sent} datagrams were looked at");
    assert!(striped.memory() < memory + SLACK);

    // Somebody with a key is answered, and that is seen.
    let profile = scene.gateway.profile("user", "laptop", &["--transport", "udp", "--port", "53"]);
    let knock = || LightClient::new(&profile).knock(scene.network.client_address(2), striped.at(53), false);
    scene.network.client(2).run_in(knock).unwrap();
    let seen = |client| {
        let to = scene.network.client_address(client);
        words.seen().iter().filter(|packet| packet.to == to).count()
    };
    eventually("the answer to a client", SOON, || seen(2) > 0);
    assert_eq!(seen(1), 0, "a stranger was answered");
    striped.as_before();
}

#[test]
fn a_scan_of_tcp_ports_from_one_network_takes_that_networks_places_only() {
    let inspect = Duration::from_secs(Scale::get().pick(4, 10));
    let striped = Striped::new(inspect);
    let before = striped.takes();
    let descriptors = striped.descriptors();
    let count = Scale::get().pick(1000, 10_000);
    let ports: Vec<u16> = (1..30_000).collect();

    let start = Instant::now();
    let mut scan = striped.open(count, &[0], &ports);

    eventually("the end of what is too much", SOON, || {
        scan.retain_mut(Stranger::is_held);
        scan.len() <= PER_NETWORK
    });
    let took = start.elapsed();
    assert!(took < inspect && scan.len() == PER_NETWORK, "{} are held after {took:?}", scan.len());
    assert!(striped.descriptors() <= descriptors + PER_NETWORK + 8);
    striped.must_take(before);
    eventually("the end of all", inspect + SOON, || {
        scan.retain_mut(Stranger::is_held);
        scan.is_empty()
    });
    assert!(start.elapsed() >= inspect, "those that had a place were given their time");
    striped.as_before();
}
