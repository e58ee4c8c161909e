//! Many stock clients connect at once and stay: processor time of a handshake, memory of an idle session.
//!
//! They are at the other end of the gateway's link: a router between them would be simulated at the expense of whoever
//! sends. Each is a full handshake with certificates of both sides: P-256, TLS 1.3, tls-crypt-v2, over UDP. Clients have
//! no tun interface and send nothing, not even keepalives within the time. Their number is bounded by what one machine
//! can start.

use std::time::Duration;

use adit_testbed::{Network, OpenVpnClient, Process};
use serde_json::json;

use crate::report::{Report, Table};
use crate::{peers, usage};

const OPENVPN: &str = "OpenVPN";
const ADIT: &str = "adit";
/// No interface, no route.
const BARE: &[&str] = &["--dev", "null", "--ifconfig-noexec", "--route-noexec"];
const LIMIT: Duration = Duration::from_secs(120);

/// Measures and adds a table.
pub(crate) fn run(report: &mut Report, rounds: u32, clients: u32) {
    let network = Network::with_clients(0);
    let mut figures = [(OPENVPN, Vec::new()), (ADIT, Vec::new())];
    for round in 1..=rounds {
        for (peer, figures) in &mut figures {
            let figure = if *peer == ADIT {
                let gateway = peers::adit(&network);
                let profiles: Vec<String> = (0..clients)
                    .map(|n| {
                        gateway
                            .add_user(&format!("user{n}"), &["--transport", "udp", "--identity", "default"])
                    })
                    .collect();
                measure(&network, gateway.process(), &profiles, || gateway.sessions().len())
            } else {
                // A limit on new clients per second is what it has against floods; here all are wanted.
                let options =
                    ["--duplicate-cn", "--max-clients", "1000", "--connect-freq-initial", "10000", "1"];
                let server = peers::openvpn(&network, false, &options);
                let profiles = vec![server.profile("user"); clients as usize];
                measure(&network, server.process(), &profiles, || clients as usize)
            };
            let what = format!("{peer} handshakes {round}: {:.2} ms, {:.0} KiB", figure[0], figure[1]);
            report.raw(&what, &json!({ "clients": clients, "ms_each": figure[0], "kib_each": figure[1] }));
            figures.push(figure);
        }
    }
    let mut table = Table::new(
        format!("{clients} stock clients connect at once: P-256 on both sides, TLS 1.3, tls-crypt-v2, UDP"),
        &["ms CPU per handshake", "KiB per idle session"],
        "median (smallest-largest), then the ratio to the first row; processor time and growth of the resident \
         set of the server's process by the number of clients",
    );
    for (peer, figures) in &figures {
        table.row(peer, figures);
    }
    report.table(table);
}

/// Milliseconds per handshake, KiB per session.
fn measure(
    network: &Network,
    server: &Process,
    profiles: &[String],
    sessions: impl Fn() -> usize,
) -> Vec<f64> {
    let (cpu, memory) = (usage::cpu(server), server.memory());
    let clients: Vec<OpenVpnClient> =
        profiles.iter().map(|profile| OpenVpnClient::start_with(&network.access, profile, BARE)).collect();
    for client in &clients {
        client.process().wait_for("Initialization Sequence Completed", LIMIT);
    }
    let cpu = usage::cpu(server) - cpu;
    let memory = server.memory().saturating_sub(memory);
    assert_eq!(sessions(), profiles.len(), "all sessions are there at once");
    for client in clients {
        client.kill();
    }
    let each = profiles.len() as f64;
    vec![cpu.as_secs_f64() * 1e3 / each, memory as f64 / 1024.0 / each]
}
