//! Many clients connect at once and stay: processor time of a handshake, memory of an idle session.
//!
//! Each is a full handshake with certificates of both sides: P-256, TLS 1.3, tls-crypt-v2, over UDP. Clients have
//! no tun interface and send nothing, not even keepalives within the time. They are at the other end of the gateway's
//! link: a router between them would be simulated at the expense of whoever sends. adit has issued their certificates
//! since it started, so it knows their chains and verifies only that each holds its key; OpenVPN has no such memory.
//!
//! Stock clients are processes whose start takes the machine far more than the server's part does, and leaves nothing
//! of the server in the processors' caches. [Light](LightClient) ones show what the server can do when it has much to do.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use adit_testbed::{AT_ONCE, LightClient, Network, OpenVpnClient, OpenVpnServer, Process, in_parallel};
use serde_json::json;

use crate::report::{Report, Table};
use crate::{peers, usage};

const PEERS: [&str; 2] = ["OpenVPN", "adit"];
/// No interface, no route.
const BARE: &[&str] = &["--dev", "null", "--ifconfig-noexec", "--route-noexec"];
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Stock,
    Light,
}

/// Measures and adds two tables.
pub(crate) fn run(report: &mut Report, rounds: u32, clients: u32) {
    let network = Network::with_clients(0);
    for kind in [Kind::Stock, Kind::Light] {
        let what = match kind {
            Kind::Stock => format!("{clients} stock clients connect at once"),
            Kind::Light => format!("{clients} light clients connect, {AT_ONCE} at a time"),
        };
        let mut figures = PEERS.map(|peer| (peer, Vec::new()));
        for round in 1..=rounds {
            for (peer, figures) in &mut figures {
                let figure = round_of(&network, peer, kind, clients);
                let [ms, kib, per_second] = figure;
                report.raw(
                    &format!("{peer}, {kind:?}, {round}: {ms:.2} ms, {kib:.0} KiB, {per_second:.0}/s"),
                    &json!({ "clients": clients, "ms_each": ms, "kib_each": kib, "per_second": per_second }),
                );
                figures.push(figure.to_vec());
            }
        }
        let mut table = Table::new(
            format!("{what}: P-256 on both sides, TLS 1.3, tls-crypt-v2, UDP"),
            &["ms CPU per handshake", "KiB per idle session", "handshakes/s"],
            "median (smallest-largest), then the ratio to the first row; processor time and growth of the resident \
             set of the server's process by the number of clients; the clients share the processors",
        );
        for (peer, figures) in &figures {
            table.row(peer, figures);
        }
        report.table(table);
    }
}

/// One server from its start to its end.
fn round_of(network: &Network, peer: &str, kind: Kind, clients: u32) -> [f64; 3] {
    if peer == "adit" {
        let gateway = peers::adit(network);
        let options = ["--transport", "udp", "--identity", "default"];
        let profiles: Vec<_> =
            (0..clients).map(|n| gateway.add_user(&format!("user{n}"), &options)).collect();
        let server = SocketAddr::new(network.gateway_address(), peers::ADIT_PORT);
        let figure = measure(network, gateway.process(), server, kind, &profiles);
        assert_eq!(gateway.sessions().len(), profiles.len(), "all sessions are there at once");
        figure
    } else {
        // A limit on new clients per second is what it has against floods; here all are wanted.
        let options = ["--duplicate-cn", "--max-clients", "1000", "--connect-freq-initial", "10000", "1"];
        let server = peers::openvpn(network, false, &options);
        let profiles = vec![server.profile("user"); clients as usize];
        let address = SocketAddr::new(network.gateway_address(), OpenVpnServer::PORT);
        measure(network, server.process(), address, kind, &profiles)
    }
}

/// Milliseconds per handshake, KiB per session, handshakes per second.
fn measure(
    network: &Network,
    process: &Process,
    server: SocketAddr,
    kind: Kind,
    profiles: &[String],
) -> [f64; 3] {
    let light: Vec<_> =
        profiles.iter().filter(|_| kind == Kind::Light).map(|text| LightClient::new(text)).collect();
    let (cpu, memory, start) = (usage::cpu_of_threads(process), process.memory(), std::time::Instant::now());
    let mut stock = Vec::new();
    if kind == Kind::Stock {
        let client = |profile: &String| OpenVpnClient::start_with(&network.access, profile, BARE);
        stock.extend(profiles.iter().map(client));
        for client in &stock {
            client.process().wait_for("Initialization Sequence Completed", LIMIT);
        }
    }
    let any = Ipv4Addr::UNSPECIFIED.into();
    let connected: Vec<_> = in_parallel(&network.access, light.len(), |n| {
        light.get(n).map(|client| client.connect(any, server, false).expect("all connect"))
    });
    let seconds = start.elapsed().as_secs_f64();
    let cpu = usage::cpu_of_threads(process) - cpu;
    let memory = process.memory().saturating_sub(memory);
    drop(connected);
    for client in stock {
        client.kill();
    }
    let each = profiles.len() as f64;
    [cpu.as_secs_f64() * 1e3 / each, memory as f64 / 1024.0 / each, each / seconds]
}
