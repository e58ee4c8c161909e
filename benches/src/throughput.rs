//! One TCP stream through the tunnel of a stock client, up and down, with adit or OpenVPN as the server.
//!
//! ```text
//!  client: openvpn, iperf3 -c ── access ── gateway: adit :1195, openvpn :1194 ── router ── outside: iperf3 -s
//! ```
//!
//! Both servers hand packets to the same kernel, which translates and forwards them to the outside; the client
//! sends only what is for the outside server through the tunnel. One tunnel is up at a time.

use std::sync::Arc;
use std::time::Duration;

use adit_testbed::{Gateway, IperfServer, Network, OpenVpnClient, OpenVpnServer, Process, iperf3};
use serde_json::Value;

use crate::report::{Report, Table};
use crate::{peers, usage};

const CIPHER: &str = "AES-256-GCM";
const OPENVPN: &str = "OpenVPN";
const TUNED: &str = "OpenVPN tuned";
const ADIT: &str = "adit";
/// As both servers hand them out without being asked: what OpenVPN recommends for speed is a row of its own.
const TUNED_UDP: &[&str] = &["--fast-io", "--sndbuf", "0", "--rcvbuf", "0"];
const TUNED_TCP: &[&str] = &["--tcp-nodelay", "--sndbuf", "0", "--rcvbuf", "0"];

/// A server to connect to.
enum Server {
    Adit(Gateway),
    OpenVpn(OpenVpnServer),
}

impl Server {
    fn start(network: &Network, peer: &str, tcp: bool) -> (Self, String) {
        let options: &[&str] = match (peer, tcp) {
            (ADIT, _) => {
                let gateway = peers::adit(network);
                let transport = if tcp { "tcp" } else { "udp" };
                let profile = gateway.add_user("ann", &["--transport", transport, "--identity", "default"]);
                return (Self::Adit(gateway), profile);
            }
            (TUNED, false) => TUNED_UDP,
            (TUNED, true) => TUNED_TCP,
            _ => &[],
        };
        let server = peers::openvpn(network, tcp, options);
        let profile = server.profile("ann");
        (Self::OpenVpn(server), profile)
    }

    fn process(&self) -> &Process {
        match self {
            Self::Adit(gateway) => gateway.process(),
            Self::OpenVpn(server) => server.process(),
        }
    }
}

/// Measures and adds a table for each transport.
pub(crate) fn run(report: &mut Report, rounds: u32, seconds: u32) {
    let network = Network::with_clients(1);
    // adit does the same for its own pool.
    network.gateway.sysctl("net.ipv4.ip_forward", "1");
    network.gateway.nft(
        "table ip bench { chain post { type nat hook postrouting priority srcnat; \
         ip saddr 10.77.0.0/24 masquerade; }; }",
    );
    for (tcp, title) in [(false, "UDP"), (true, "TCP")] {
        let peers = [TUNED, OPENVPN, ADIT];
        let mut figures = peers.map(|_| Vec::new());
        for round in 1..=rounds {
            for (peer, figures) in peers.iter().zip(&mut figures) {
                let figure = measure(report, &network, peer, tcp, round, seconds);
                figures.push(figure);
            }
        }
        let mut table = Table::new(
            format!("One TCP stream through a tunnel over {title}, {CIPHER}, stock client"),
            &[
                "up Mbit/s",
                "down Mbit/s",
                "server s/GB up",
                "server s/GB down",
                "machine s/GB up",
                "machine s/GB down",
            ],
            "median (smallest-largest), then the ratio to the first row; server: processor time of its process; \
             machine: both cores, client and iperf3 included",
        );
        for (peer, figures) in peers.iter().zip(&figures) {
            table.row(peer, figures);
        }
        report.table(table);
    }
}

/// One turn of a peer: connect, send up, send down.
fn measure(
    report: &mut Report,
    network: &Network,
    peer: &str,
    tcp: bool,
    round: u32,
    seconds: u32,
) -> Vec<f64> {
    let (server, profile) = Server::start(network, peer, tcp);
    // One that lost the end of a test with the tunnel would keep the next peer waiting.
    let _outside = IperfServer::start(&network.outside);
    let host = Arc::clone(network.client(0));
    let options = ["--dev", "bench0", "--dev-type", "tun", "--route-nopull", "--verb", "3"];
    let client = OpenVpnClient::connect_with(&host, &profile, &options);
    // All are measured with one cipher.
    client.wait_for(&format!("cipher '{CIPHER}'"), Duration::from_secs(5));
    host.ip(&format!("route add {} dev bench0", network.outside_address()));
    let transport = if tcp { "tcp" } else { "udp" };
    let mut up = transfer(report, network, &server, &format!("{peer} {transport} up {round}"), seconds, &[]);
    let down =
        transfer(report, network, &server, &format!("{peer} {transport} down {round}"), seconds, &["-R"]);
    client.stop();
    up.extend(down);
    // up, down of each kind side by side
    [0, 3, 1, 4, 2, 5].map(|at| up[at]).to_vec()
}

/// Mbit/s, server seconds per GB, machine seconds per GB.
fn transfer(
    report: &mut Report,
    network: &Network,
    server: &Server,
    what: &str,
    seconds: u32,
    options: &[&str],
) -> Vec<f64> {
    let seconds = seconds.to_string();
    let options = [&["-t", &seconds], options].concat();
    let (cpu, busy) = (usage::cpu(server.process()), usage::busy());
    let result = iperf3(network.client(0), network.outside_address(), &options);
    let cpu = usage::cpu(server.process()) - cpu;
    let busy = usage::busy() - busy;
    let figure = |name: &str| {
        let pointer = format!("/end/sum_received/{name}");
        result.pointer(&pointer).and_then(Value::as_f64).expect("iperf3 reports what was received")
    };
    let gigabytes = figure("bytes") / 1e9;
    let rate = figure("bits_per_second") / 1e6;
    let per_gigabyte = |time: Duration| time.as_secs_f64() / gigabytes;
    report.raw(&format!("{what}: {rate:.0} Mbit/s, {:.2} s/GB", per_gigabyte(cpu)), &result);
    vec![rate, per_gigabyte(cpu), per_gigabyte(busy)]
}
