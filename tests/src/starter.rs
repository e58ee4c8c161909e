//! Stock clients that say their first packet to nobody: for what tells them apart before any answer.

use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;

use adit_testbed::{Host, OpenVpnClient, TestPki, require};

/// Makes profiles of clients with one wrap.
#[derive(Debug)]
pub struct Starter {
    common: String,
}

impl Starter {
    /// `wrap` is `tls-auth DIGEST` or `tls-crypt`; the key is new.
    ///
    /// # Panics
    /// When OpenSSL or OpenVPN make no keys.
    #[must_use]
    pub fn new(wrap: &str) -> Self {
        require("openvpn");
        let pki = TestPki::new("P-256");
        let (cert, key) = pki.issue("starter", "clientAuth", "P-256");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("wrap.key");
        let made = Command::new("openvpn").args(["--genkey", "secret"]).arg(&path).output().expect("openvpn");
        assert!(made.status.success(), "{made:?}");
        let secret = std::fs::read_to_string(path).expect("a key");
        let wrap = match wrap.split_once(' ') {
            Some(("tls-auth", digest)) => {
                format!("auth {digest}\nkey-direction 1\n<tls-auth>\n{secret}</tls-auth>\n")
            }
            _ => format!("<tls-crypt>\n{secret}</tls-crypt>\n"),
        };
        let common = format!(
            "client\ndev tun\nnobind\nremote-cert-tls server\nverb 3\n{wrap}<ca>\n{}</ca>\n<cert>\n{cert}</cert>\n\
             <key>\n{key}</key>\n",
            pki.ca()
        );
        Self { common }
    }

    /// Starts a client.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, host: &Arc<Host>, to: IpAddr, port: u16, tcp: bool) -> OpenVpnClient {
        let proto = if tcp { "tcp-client" } else { "udp" };
        OpenVpnClient::start(host, &format!("{}remote {to} {port} {proto}\n", self.common))
    }
}
