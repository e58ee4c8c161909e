//! Everything for long: does memory grow, are descriptors lost, does anything break?
//!
//! ```text
//!  client 0: openvpn udp, renegotiates each 5 s ───────────────┐
//!  client 1: openvpn tcp, renegotiates each 7 s ───────────────┼── access ── gateway ── router ── outside
//!  client 2: openvpn udp, behind a proxy that loses, repeats ──┤
//!  client 3: openvpn udp, connects, pings, is removed, again ──┘
//! ```
//!
//! The first three carry a flow all the time and must still carry it at the end. In each cycle the fourth one's
//! user is added, comes, pings, leaves in order or is killed, and is removed; the configuration is loaded again;
//! strangers send first packets. The first quarter is warming up; what is used after it must not grow.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use adit_testbed::{Flow, Gateway, Impairment, Network, OpenVpnClient, Proxy, Rng, ping};

use crate::usage;

/// Memory may differ this much from one quarter to the next: what sessions of the moment take, and the
/// allocator's habits.
const SLACK: u64 = 4 << 20;
/// Strangers' packets in each cycle.
const STRANGERS: usize = 2000;
const CYCLE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 1194;

/// What the gateway uses between two cycles.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    memory: u64,
    descriptors: usize,
    threads: usize,
}

/// Runs for `length` and reports on standard error.
///
/// # Panics
/// When something broke or grew.
pub(crate) fn run(length: Duration) {
    let network = Network::with_clients(4);
    let mut gateway = Gateway::new(&network);
    gateway.env("ADIT_LOG", "warn");
    gateway.up();
    let server = SocketAddr::new(network.gateway_address(), PORT);
    let proxy = Proxy::start(&network.access, network.access_address(), server, 1);
    proxy.impair(Impairment {
        loss: 0.02,
        duplicate: 0.02,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(5),
        ..Impairment::default()
    });
    let relay = ["--remote", &proxy.address().ip().to_string(), &proxy.address().port().to_string()]
        .map(String::from);
    let relay: Vec<&str> = relay.iter().map(String::as_str).collect();
    let long = [
        ("ann", "udp", vec!["--reneg-sec", "5"]),
        ("ben", "tcp", vec!["--reneg-sec", "7"]),
        ("cay", "udp", [vec!["--reneg-sec", "11"], relay].concat()),
    ];
    let long: Vec<(OpenVpnClient, Flow)> = long
        .iter()
        .enumerate()
        .map(|(number, (user, transport, options))| {
            let profile = gateway.add_user(user, &["--transport", transport]);
            // The proxy is the only way.
            let profile = if number == 2 { without_remotes(&profile) } else { profile };
            let client = OpenVpnClient::connect_with(network.client(number), &profile, options);
            let outside = (&network.outside, network.outside_address());
            let flow = Flow::start(network.client(number), outside.0, outside.1, Duration::from_millis(5));
            (client, flow)
        })
        .collect();

    let mut rng = Rng::new(2);
    let begin = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    while begin.elapsed() < length {
        let cycle = Instant::now();
        visit(&network, &gateway, samples.len());
        strangers(&network, server, &mut rng);
        gateway.ok(&["reload"]);
        for (_, flow) in &long {
            flow.wait_for(20, LIMIT);
        }
        std::thread::sleep(CYCLE.saturating_sub(cycle.elapsed()));
        let sample = Sample {
            at: begin.elapsed(),
            memory: gateway.process().memory(),
            descriptors: usage::descriptors(gateway.process()),
            threads: usage::threads(gateway.process()),
        };
        eprintln!(
            "{:>6} s: {} KiB, {} descriptors, {} threads, {} connections of the fourth client",
            sample.at.as_secs(),
            sample.memory / 1024,
            sample.descriptors,
            sample.threads,
            samples.len() + 1
        );
        samples.push(sample);
    }

    for (client, flow) in long {
        let name = client.process().name().to_owned();
        assert_eq!(client.connections(), 1, "{name} had to connect again");
        let tally = flow.stop();
        eprintln!("{name}: up {:?}, down {:?}", tally.up, tally.down);
        client.stop();
    }
    gateway.stop();
    must_not_grow(&samples);
    eprintln!("nothing grew in {} cycles", samples.len());
}

/// The fourth client's visit: comes, is seen to work, goes, and its user is removed.
fn visit(network: &Network, gateway: &Gateway, cycle: usize) {
    let user = format!("guest{cycle}");
    let transport = if cycle.is_multiple_of(2) { "udp" } else { "tcp" };
    let profile = gateway.add_user(&user, &["--transport", transport]);
    let client = OpenVpnClient::connect(network.client(3), &profile);
    ping(network.client(3), network.outside_address()).must_all_return();
    match cycle % 3 {
        0 => {
            client.stop();
            gateway.ok(&["user", "remove", &user]);
        }
        1 => {
            client.kill();
            gateway.ok(&["user", "remove", &user]);
        }
        _ => {
            gateway.ok(&["user", "remove", &user]);
            client.stop();
        }
    }
    assert!(gateway.session_of(&user).is_none(), "{user} was removed");
}

/// Packets of people who have no key: random ones, and some that begin as a handshake does.
fn strangers(network: &Network, server: SocketAddr, rng: &mut Rng) {
    network.client(3).run_in(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for _ in 0..STRANGERS {
            let length = 1 + rng.below(1200);
            let mut packet = rng.bytes(length);
            if rng.chance(0.5) {
                packet[0] = 7 << 3;
            }
            socket.send_to(&packet, server).expect("it is sent");
        }
    });
}

fn without_remotes(profile: &str) -> String {
    profile.lines().filter(|line| !line.starts_with("remote ")).map(|line| format!("{line}\n")).collect()
}

/// Compares the last quarter with the second one.
fn must_not_grow(samples: &[Sample]) {
    let quarter = samples.len() / 4;
    if quarter == 0 {
        eprintln!("too short to say whether anything grows");
        return;
    }
    let (before, after) = (&samples[quarter..2 * quarter], &samples[samples.len() - quarter..]);
    let memory = |part: &[Sample]| part.iter().map(|sample| sample.memory).max().unwrap_or(0);
    let descriptors = |part: &[Sample]| part.iter().map(|sample| sample.descriptors).min().unwrap_or(0);
    let threads = |part: &[Sample]| part.iter().map(|sample| sample.threads).max().unwrap_or(0);
    assert!(
        memory(after) <= memory(before) + SLACK,
        "memory grows: {} KiB, later {} KiB",
        memory(before) / 1024,
        memory(after) / 1024
    );
    assert!(descriptors(after) <= descriptors(before), "descriptors are lost: {before:?}, later {after:?}");
    assert!(threads(after) <= threads(before), "threads are lost: {before:?}, later {after:?}");
}
