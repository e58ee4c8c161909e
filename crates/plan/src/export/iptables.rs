//! Rules for iptables-restore (IPv4).

use super::{
    Entrance, ExportFault, Lead, Plan, Server, leads_by_packet, leads_by_port, leads_to_haproxy, legend,
};

/// The ports that the published list of ten rules keeps apart.
const PUBLISHED: [u16; 3] = [5060, 5061, 5062];

/// By the port alone.
pub(super) fn by_port(
    plan: &Plan,
    servers: &[Server<'_>],
    others: Option<usize>,
) -> Result<String, ExportFault> {
    let default = servers.first().map_or(super::DEFAULT_PORT, |server| server.port);
    let own: Vec<u16> = servers.iter().skip(1).map(|server| server.port).collect();
    let free = PUBLISHED.into_iter().filter(|port| !own.contains(port) && *port != default);
    let count = others.unwrap_or(own.len());
    let apart: Vec<u16> = own.iter().copied().chain(free).take(count).collect();
    let mut comments = vec!["Each port leads to the server of one identity.".to_owned()];
    comments.extend(legend(servers, false));
    for server in servers.iter().skip(1).filter(|server| !apart.contains(&server.port)) {
        comments.push(format!("At this stage, no rule leads to {}.", server.identity.name));
    }
    for server in servers.iter().skip(1).filter(|server| apart.contains(&server.port)) {
        let within =
            |entrance: &Entrance| entrance.udp.contains(server.port) || entrance.tcp.contains(server.port);
        if !plan.entrances.iter().any(within) {
            let name = &server.identity.name;
            comments.push(format!("{name} is reached by its own port alone, which is in no entrance."));
        }
    }
    for port in apart.iter().filter(|port| !own.contains(port)) {
        comments.push(format!("Port {port} is kept apart as published; no identity here has it."));
    }
    if PUBLISHED.iter().all(|port| apart.contains(port)) {
        comments.push(
            "The published list of ten has 5061:29999 in its last UDP rule, a slip: those ports overlap"
                .into(),
        );
        comments.push(
            "the rules before it. It has to begin at 5063, as it does here and in the last TCP rule.".into(),
        );
    }
    render(plan, &comments, |entrance, tcp| {
        leads_by_port(if tcp { &entrance.tcp } else { &entrance.udp }, &apart, default)
    })
}

/// UDP by the first packet.
pub(super) fn by_packet(plan: &Plan, servers: &[Server<'_>]) -> Result<String, ExportFault> {
    let mut comments = vec![
        "UDP is led by its first packet, whatever its type of service and IP options; TCP to HAProxy, for which".into(),
        "see `adit export haproxy`.".to_owned(),
    ];
    comments.extend(legend(servers, true));
    comments.push("As published, which is right for IP headers without options only:".into());
    let leaders = servers.iter().filter(|server| server.leads);
    comments.extend(leaders.map(|server| format!("  {}: {}", server.identity.name, server.udp.u32())));
    render(plan, &comments, |entrance, tcp| match tcp {
        true => leads_to_haproxy(&entrance.tcp, servers),
        false => leads_by_packet(&entrance.udp, servers),
    })
}

fn render(
    plan: &Plan,
    comments: &[String],
    leads: impl Fn(&Entrance, bool) -> Vec<Lead>,
) -> Result<String, ExportFault> {
    let (entrances, left_out) = plan.entrances(std::net::IpAddr::is_ipv4);
    if entrances.is_empty() {
        return Err(ExportFault::NoEntrance("; iptables is for IPv4, nft is for both"));
    }
    let mut out = String::from("# Made by `adit export`, for iptables-restore --noflush.\n");
    for comment in comments {
        out += &format!("# {comment}\n");
    }
    for entrance in left_out {
        out += &format!("# Left out, being of another IP version: {}\n", entrance.address);
    }
    out += "*nat\n:PREROUTING ACCEPT [0:0]\n";
    for entrance in entrances {
        // Without an address, only what is for this host: not what it forwards.
        let dialled = match entrance.address.is_unspecified() {
            true => "-m addrtype --dst-type LOCAL".to_owned(),
            false => format!("-d {}", entrance.address),
        };
        for (tcp, protocol) in [(true, "tcp"), (false, "udp")] {
            for lead in leads(entrance, tcp) {
                let (from, to) = (lead.ports.start(), lead.ports.end());
                let ports = if from == to { from.to_string() } else { format!("{from}:{to}") };
                let target = plan.target(entrance, &lead);
                let packet = lead
                    .packet
                    .map(|packet| format!(" -m u32 --u32 \"{}\"", packet.u32_any_header()))
                    .unwrap_or_default();
                out += &format!(
                    "-A PREROUTING {dialled} -p {protocol} -m {protocol} --dport {ports}{packet} -j DNAT \
                     --to-destination {target}\n"
                );
            }
        }
    }
    out += "COMMIT\n";
    Ok(out)
}
