//! A configuration of HAProxy.

use std::net::{IpAddr, Ipv4Addr};

use super::{DEFAULT_PORT, ExportFault, Plan, Server, legend};

/// Where SSH and HTTPS are expected; both are found on the same port by what their clients say first.
const SSH: u16 = 22;
const HTTPS: u16 = 8443;

/// TCP by the first packet.
pub(super) fn render(plan: &Plan, servers: &[Server<'_>], measure: bool) -> Result<String, ExportFault> {
    let binds: Vec<String> = plan
        .entrances
        .iter()
        .filter(|entrance| !entrance.tcp.is_empty())
        .map(|entrance| match entrance.address {
            IpAddr::V6(address) if address.is_unspecified() => format!(":::{DEFAULT_PORT} v6only"),
            IpAddr::V4(address) if address.is_unspecified() => format!("*:{DEFAULT_PORT}"),
            address => std::net::SocketAddr::new(address, DEFAULT_PORT).to_string(),
        })
        .collect();
    if binds.is_empty() {
        return Err(ExportFault::NoEntrance(": none has tcp"));
    }
    let mut lines = vec![
        "# Made by `adit export haproxy`; the rules of `adit export nft` or `iptables-v2` lead TCP here."
            .to_owned(),
    ];
    lines.extend(legend(servers, true).iter().map(|line| format!("# {line}")));
    lines.push(format!("# SSH is passed on to port {SSH} and HTTPS to port {HTTPS} of this host."));
    if measure {
        lines.extend(["global", "    log stdout format raw local0 debug"].map(str::to_owned));
    }
    lines.extend(
        [
            "defaults",
            "    mode tcp",
            "    timeout connect 5s",
            "    timeout client 1h",
            "    timeout server 1h",
            "frontend adit",
        ]
        .map(str::to_owned),
    );
    let mut seen = Vec::new();
    for bind in binds {
        if !seen.contains(&bind) {
            lines.push(format!("    bind {bind}"));
            seen.push(bind);
        }
    }
    lines.push("    tcp-request inspect-delay 2s".into());
    if measure {
        // `capture` would wait for the end of the inspection, when a client has long said it all again.
        lines.extend(
            [
                "    log global",
                "    tcp-request content set-var(txn.len) req.len if { req.len gt 0 }",
                "    log-format \"%ci:%cp req.len=%[var(txn.len)] %b\"",
            ]
            .map(str::to_owned),
        );
    }
    let leaders: Vec<_> = servers
        .iter()
        .filter(|server| server.leads)
        .map(|server| (format!("openvpn_{}", server.identity.name), server.tcp.haproxy()))
        .collect();
    let tls = "{ req.ssl_hello_type 1 }";
    let ssh = "{ req.payload(0,4) -m str SSH- }";
    // Whoever is recognised does not wait for the end of the inspection, when a client says it all again. In one
    // rule: a rule with a length that is not there yet ends the search, since more bytes may come.
    let known: Vec<&str> =
        [tls, ssh].into_iter().chain(leaders.iter().map(|(_, packet)| packet.as_str())).collect();
    lines.push(format!("    tcp-request content accept if {}", known.join(" or ")));
    for (name, packet) in &leaders {
        lines.push(format!("    use_backend {name} if !{tls} {packet}"));
    }
    lines.push(format!("    use_backend https if {tls}"));
    lines.push(format!("    use_backend ssh if {ssh}"));
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let backend = |name: &str, server: &str, address: IpAddr, port: u16| {
        let at = std::net::SocketAddr::new(address, port);
        [format!("backend {name}"), format!("    server {server} {at}")]
    };
    for server in servers.iter().filter(|server| server.leads) {
        let name = format!("openvpn_{}", server.identity.name);
        let at = plan.to.unwrap_or(here);
        // Only a server beside HAProxy gives way to it.
        let port = if plan.to.is_some() { server.port } else { server.tcp_port };
        lines.extend(backend(&name, "openvpn", at, port));
    }
    lines.extend(backend("https", "https", here, HTTPS));
    lines.extend(backend("ssh", "ssh", here, SSH));
    Ok(lines.join("\n") + "\n")
}
