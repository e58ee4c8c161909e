//! Every connection that leaves names its user.
//!
//! ```text
//!  client N ── access ── 192.0.2.1 gateway 198.51.100.1 ── router ── outside: a witness on 32 ports
//! ```
//!
//! Each client says its user's name in each connection. The checker sees what the witness wrote down, and `adit trace`.

use std::time::Duration;

use adit_testbed::{Gateway, Network, OpenVpnClient, Sighting, Witness};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// Who the gateway says it was.
fn traced(gateway: &Gateway, seen: &Sighting) -> Vec<String> {
    let at = format!("{}.{:03}", seen.at / 1000, seen.at % 1000);
    let (address, port) = (seen.remote.ip().to_string(), seen.remote.port().to_string());
    let protocol = if seen.tcp { "tcp" } else { "udp" };
    let trace = gateway.json(&[
        "trace",
        "--at",
        &at,
        "--address",
        &address,
        "--port",
        &port,
        "--proto",
        protocol,
        "--tolerance",
        "0s",
    ]);
    let matches = trace["matches"].as_array().cloned().unwrap_or_default();
    matches.iter().map(|found: &Value| found["user"].as_str().unwrap_or("nobody").to_owned()).collect()
}

#[test]
fn every_connection_is_traced_to_its_user() {
    let network = Network::with_clients(3);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = Witness::start(&network.outside, network.outside_address(), 32);
    let clients: Vec<_> = (0..3)
        .map(|n| {
            let user = format!("user{n}");
            let profile = gateway.add_user(&user, &[]);
            OpenVpnClient::connect(network.client(n), &profile)
        })
        .collect();
    gateway.wait_for_sessions(3, PATIENCE);
    for (n, client) in clients.iter().enumerate() {
        let done = client.host().run_in(|| witness.call_often(&format!("user{n}"), 60, 40));
        assert_eq!(done, 60);
    }
    let seen = witness.seen();
    assert_eq!(seen.len(), 180);
    for sighting in &seen {
        assert_eq!(sighting.remote.ip(), network.exit_address());
        assert_eq!(traced(&gateway, sighting), [sighting.name.clone()], "{sighting:?}");
    }
    println!("{}", gateway.ok(&["nat", "show"]));
    println!("{}", gateway.ok(&["trace", "verify"]));
}
