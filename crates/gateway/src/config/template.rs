//! The file that `adit init` writes.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

/// What `adit init` was told.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Names or addresses that clients reach the gateway by.
    pub public: Vec<String>,
    /// The gateway's name.
    pub name: Option<String>,
    /// IPv4 pools.
    pub pool4: Vec<Ipv4Net>,
    /// IPv6 pools.
    pub pool6: Vec<Ipv6Net>,
    /// The address that clients' connections leave from.
    pub exit: Option<Ipv4Addr>,
}

fn list<T: ToString>(items: &[T]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{}\"", item.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

/// The text of a new configuration.
#[must_use]
pub fn render(options: &InitOptions) -> String {
    let default4: Ipv4Net = Ipv4Net::new_assert([10, 88, 0, 0].into(), 16);
    let default6: Ipv6Net = Ipv6Net::new_assert([0xfd88, 0, 0, 0, 0, 0, 0, 0].into(), 64);
    let pool4 = if options.pool4.is_empty() { vec![default4] } else { options.pool4.clone() };
    let pool6 = if options.pool6.is_empty() { vec![default6] } else { options.pool6.clone() };
    let name = options.name.as_deref().unwrap_or("adit");
    let (public, pool4, pool6) = (list(&options.public), list(&pool4), list(&pool6));
    let (off, exit) = match options.exit {
        Some(exit) => ("", exit),
        None => ("# ", Ipv4Addr::new(192, 0, 2, 1)),
    };
    format!(
        r#"# The gateway's configuration. `adit check` explains what is wrong with it, `adit reload` applies changes.

# In certificates and profiles.
name = "{name}"
# Names or addresses that clients reach this gateway by; profiles name them.
public = {public}

[ca]
key = "P-384"                  # or P-256, secp521r1, Ed25519, Ed448, RSA-2048 … RSA-8192

# Server identities. All of them answer on all entrances; the key of a client's first packet decides which.
[[identity]]
name = "default"
key = "P-256"
wrap = "tls-crypt-v2"          # a key for each client; OpenVPN 2.5 and newer

[[identity]]
name = "compat"
key = "RSA-2048"
wrap = "tls-crypt"             # one key for all clients; OpenVPN 2.4 and newer. Others: tls-auth, none

# Where clients come in. Ports: "443", "53,443", or all that nobody has yet: "1-29999".
[[entrance]]
address = "::"                 # all addresses, IPv4 too
udp = "1194"
tcp = "1194"

# Source ports of this machine's own connections. Without this they stay as they are, unless an entrance needs them.
# [host]
# ephemeral = "64512-65535"

[tunnel]
pool4 = {pool4}
pool6 = {pool6}
# dns = ["10.88.0.1"]          # resolvers for clients
# search = ["example.org"]
routes = "full"                # or a list of networks: ["10.0.0.0/8"]
client_to_client = false
mtu = 1500
# ping = "3s"                  # a dead path is noticed within ping_restart
# ping_restart = "7s"
# ciphers = ["AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305"]
# fallback = "AES-256-CBC"     # for clients that do not negotiate (before OpenVPN 2.4)

# Every device has source ports of its own, so that `adit trace` names the user behind any connection. Without this
# clients leave behind this machine's address and nobody can say who it was.
{off}[nat]
{off}addresses = ["{exit}"]
# ports = "40000-64511"        # 383 clients at once with 64 ports each
# block = 64
# retention = "30d"            # how long it is kept who had which

# Ports that lead to devices: `adit forward add USER DEVICE --to PORT`.
# [forward]
# ports = "30000-39999"
# per_user = 5

[store]
url = "sqlite"

[api]
socket = "adit.sock"
"#
    )
}
