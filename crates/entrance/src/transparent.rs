//! The way back for connections that carry their clients' addresses.

use std::fmt::Write;
use std::net::SocketAddr;

use adit_host::netlink::{Mark, Route, RouteKind, Rule};
use adit_host::nft::Family;
use adit_host::plumbing::{HostState, NftTable};
use ipnet::IpNet;

use crate::{BackendOptions, ProxyMode};

/// What the machine has free for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransparentRoute {
    /// Mark of the packets that come back.
    pub mark: u32,
    /// Routing table with nothing else in it.
    pub table: u32,
    /// Priority of the rule that leads there.
    pub priority: u32,
    /// Name of the nftables table.
    pub name: String,
}

/// What brings the answers of [`ProxyMode::Transparent`] back ends, which are addressed to clients, to the sockets here:
/// what comes from a back end and belongs to a transparent socket is marked, and marked packets are this machine's own.
/// Nothing where there are no such back ends. They are on other machines, whose way to the clients leads through this one.
#[must_use]
pub fn host_state<'a>(
    backends: impl IntoIterator<Item = &'a BackendOptions>,
    route: &TransparentRoute,
) -> HostState {
    let transparent = backends.into_iter().filter(|backend| backend.proxy == ProxyMode::Transparent);
    let mut addresses: Vec<SocketAddr> = transparent.map(|backend| backend.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let mut state = HostState::default();
    if addresses.is_empty() {
        return state;
    }
    let mut rules = String::new();
    for address in &addresses {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        // Writing to a string does not fail.
        let _ = writeln!(
            rules,
            "        {family} saddr {} meta l4proto {{ tcp, udp }} th sport {} socket transparent 1 meta mark set {:#x}",
            address.ip(),
            address.port(),
            route.mark,
        );
    }
    let ruleset = format!(
        "table inet {} {{\n    chain back {{\n        type filter hook prerouting priority mangle;\n{rules}    }}\n}}\n",
        route.name
    );
    state.tables.push(NftTable { family: Family::Inet, name: route.name.clone(), ruleset });
    for v6 in [false, true].into_iter().filter(|v6| addresses.iter().any(|address| address.is_ipv6() == *v6))
    {
        let everything = if v6 { IpNet::V6(Default::default()) } else { IpNet::V4(Default::default()) };
        let local = Route::new(everything, RouteKind::Local);
        state.routes.push(Route { table: route.table, interface: Some("lo".to_owned()), ..local });
        let mark = Some(Mark::exactly(route.mark));
        state.rules.push(Rule { mark, ..Rule::new(v6, route.priority, route.table) });
    }
    state
}
