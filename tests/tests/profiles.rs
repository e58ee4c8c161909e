//! Every kind of profile that adit prints, as the stock client reads it.
//!
//! ```text
//!  client 0 ─── access ─╳─ gateway
//!             (forwards nothing)
//! ```

use std::time::Duration;

use adit_testbed::{Gateway, Network, OpenVpnClient};

#[test]
fn the_stock_client_takes_every_profile_unchanged_and_without_a_warning() {
    let network = Network::with_clients(1);
    let gateway = Gateway::new(&network);
    gateway.add_identity("auth", "Ed25519", "tls-auth SHA512");
    gateway.add_identity("bare", "secp521r1", "none");
    gateway.set("tunnel", "dns", "[\"10.88.0.1\"]");
    gateway.set("tunnel", "fallback", "\"AES-256-CBC\"");
    gateway.ok(&["user", "add", "ann", "--device", "laptop"]);
    let host = network.client(0);
    // Nobody answers: it is about what the client makes of the file.
    network
        .access
        .nft("table inet wall { chain forward { type filter hook forward priority filter; drop; }; }");
    let mut variants = Vec::new();
    for identity in ["default", "compat", "auth", "bare"] {
        for transport in ["udp", "tcp", "both"] {
            variants.push(vec!["--identity", identity, "--transport", transport]);
        }
    }
    for route in ["full", "split", "none"] {
        variants.push(vec!["--route", route]);
    }
    variants.push(vec!["--port", "random"]);
    variants.push(vec!["--remote", "2001:db8:2::1"]);
    for variant in variants {
        let profile = gateway.profile("ann", "laptop", &variant);
        let client = OpenVpnClient::start(host, &profile);
        // By now it has read everything, keys and certificates too.
        let trying = if variant.contains(&"tcp") { "Attempting to establish TCP" } else { "UDPv" };
        client.wait_for(trying, Duration::from_secs(20));
        for bad in ["Options error", "WARNING", "DEPRECATED", "Unrecognized", "Error", "Cannot load"] {
            let line = client.process().out.find(bad);
            assert!(line.is_none(), "{variant:?}: {line:?}");
        }
        client.kill();
    }
}
