//! A ruleset of nftables, IPv4 and IPv6.

use super::{ExportFault, Plan, Server, leads_by_packet, leads_to_haproxy, legend};

/// The name of the tables.
const TABLE: &str = "adit_export";

/// UDP by the first packet, TCP to HAProxy.
pub(super) fn render(plan: &Plan, servers: &[Server<'_>]) -> Result<String, ExportFault> {
    let (entrances, left_out) = plan.entrances(|_| true);
    if entrances.is_empty() {
        return Err(ExportFault::NoEntrance(""));
    }
    let mut out = String::from(
        "# Made by `adit export nft`, for nft -f; loading it again replaces it.\n\
         # UDP is led by its first packet; TCP to HAProxy, for which see `adit export haproxy`.\n",
    );
    for comment in legend(servers, true) {
        out += &format!("# {comment}\n");
    }
    for entrance in left_out {
        out += &format!("# Left out, being of another IP version: {}\n", entrance.address);
    }
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let mut rules = String::new();
        for entrance in entrances.iter().filter(|entrance| entrance.address.is_ipv4() == v4) {
            // Without an address, only what is for this host: not what it forwards.
            let dialled = match entrance.address.is_unspecified() {
                true => "fib daddr type local".to_owned(),
                false => format!("{family} daddr {}", entrance.address),
            };
            let udp = leads_by_packet(&entrance.udp, servers).into_iter().map(|lead| ("udp", lead));
            let tcp = leads_to_haproxy(&entrance.tcp, servers).into_iter().map(|lead| ("tcp", lead));
            for (protocol, lead) in tcp.chain(udp) {
                let (from, to) = (lead.ports.start(), lead.ports.end());
                let ports = if from == to { from.to_string() } else { format!("{from}-{to}") };
                let packet = lead.packet.as_ref().map(|packet| packet.nft() + " ").unwrap_or_default();
                let target = plan.target(entrance, &lead);
                rules +=
                    &format!("        {dialled} {protocol} dport {ports} {packet}counter dnat to {target}\n");
            }
        }
        if !rules.is_empty() {
            out += &format!(
                "table {family} {TABLE}\ndelete table {family} {TABLE}\ntable {family} {TABLE} {{\n    \
                 chain prerouting {{\n        type nat hook prerouting priority dstnat; policy accept;\n\
                 {rules}    }}\n}}\n"
            );
        }
    }
    Ok(out)
}
