//! The servers that are measured, on the gateway of one network.

use adit_testbed::{Gateway, Network, OpenVpnServer, ServerWrap};

/// A port of adit's, since OpenVPN's server has its own.
pub(crate) const ADIT_PORT: u16 = 1195;
/// Both peers' keepalive and patience, in seconds: what is measured is not to be keepalives.
const KEEPALIVE: [&str; 2] = ["60", "300"];

/// adit on a port of its own, for UDP and TCP, with the identity `default`: P-256, tls-crypt-v2.
pub(crate) fn adit(network: &Network) -> Gateway {
    let mut gateway = Gateway::new(network);
    gateway.edit(|document| {
        let entrances = document["entrance"].as_array_of_tables_mut().expect("init writes an entrance");
        let entrance = entrances.get_mut(0).expect("init writes an entrance");
        entrance["udp"] = toml_edit::value(i64::from(ADIT_PORT));
        entrance["tcp"] = toml_edit::value(i64::from(ADIT_PORT));
    });
    // OpenVPN's server has a CA of that kind too.
    gateway.replace_ca("P-256");
    gateway.set("tunnel", "ping", &format!("\"{}s\"", KEEPALIVE[0]));
    gateway.set("tunnel", "ping_restart", &format!("\"{}s\"", KEEPALIVE[1]));
    gateway.env("ADIT_LOG", "warn");
    gateway.up();
    gateway
}

/// OpenVPN's server at the gateway's address, with P-256 and tls-crypt-v2 as well.
pub(crate) fn openvpn(network: &Network, tcp: bool, options: &[&str]) -> OpenVpnServer {
    OpenVpnServer::start(
        &network.gateway,
        network.gateway_address(),
        tcp,
        ServerWrap::TlsCryptV2,
        &[&["--verb", "1", "--keepalive", KEEPALIVE[0], KEEPALIVE[1]], options].concat(),
    )
}
