//! A tunnel as addresses, routes and rules of this machine: a pure function.
//!
//! The tunnel's routes are in tables of their own, and rules say who looks into them: everybody but this process,
//! whose sockets carry [`MARK`]. So no route to the server is needed, which somebody in the local network could
//! abuse to pull traffic out of the tunnel, and the tunnel never carries itself.
//!
//! Between the machine's own routes and the tunnel's the longest prefix decides, as if all were in one table: there
//! is a table for each length of prefix, the longest first, and before each the main table is asked for anything
//! longer. With everything in the tunnel that makes two rules:
//!
//! ```text
//! 17300: from all lookup main suppress_prefixlength 0          the LAN stays reachable
//! 17301: not from all fwmark 0xad17 lookup 173007000           all else goes through the tunnel
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use adit_host::netlink::{InterfaceAddress, MAIN_TABLE, Mark, Route, RouteKind, RouteTo, Rule};
use adit_host::plumbing::{HostState, LinkSettings, Sysctl};
use adit_host::sysctl;
use ipnet::IpNet;

use crate::tunnel::Tunnel;

/// The mark of this process's own packets, the same for every client on a machine: what one of them sends does not
/// go through the tunnel of another, which might go through the first one's.
pub(crate) const MARK: u32 = 0xad17;

/// Priorities of the rules begin here. Two for each length of prefix, at most.
const PRIORITY: u32 = 17_300;
/// Numbers of tables begin here. A thousand for each interface; the last digits are the length of prefix.
const TABLES: u32 = 173_000_000;
/// Metric of routes around the tunnel, so that they are nobody else's.
const OUTSIDE_METRIC: u32 = 173;

/// Metric of routes that count when the tunnel's own are gone.
const LAST_METRIC: u32 = 1 << 30;

/// What else decides about the state.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The tun interface.
    pub(crate) interface: &'a str,
    /// Its number.
    pub(crate) index: u32,
    /// This machine speaks IPv6.
    pub(crate) ipv6: bool,
    /// The server that is tried or connected.
    pub(crate) server: Option<IpAddr>,
    /// How what stays outside leaves.
    pub(crate) uplink: Option<&'a RouteTo>,
    /// Interfaces whose reverse path filter would drop the servers' answers.
    pub(crate) strict: &'a BTreeSet<String>,
    /// What belongs into the tunnel is refused when the interface is gone, even after a crash.
    pub(crate) kill_switch: bool,
}

/// What the machine is to look like.
pub(crate) fn wanted(tunnel: Option<&Tunnel>, around: &Surroundings<'_>) -> HostState {
    let mut state = HostState::default();
    let interface = around.interface;
    for strict in around.strict {
        state.sysctls.push(Sysctl::new(&sysctl::of_interface(4, strict, "rp_filter"), "2"));
    }
    let Some(tunnel) = tunnel else { return state };
    let inner6 = tunnel.inner6.filter(|_| around.ipv6);
    if around.ipv6 {
        // Without a link-local address the kernel does not chatter into the tunnel.
        state.sysctls.push(Sysctl::new(&sysctl::of_interface(6, interface, "addr_gen_mode"), "1"));
    }
    if inner6.is_some() {
        // Machines that have IPv6 switched off elsewhere still have it in the tunnel.
        state.sysctls.push(Sysctl::new(&sysctl::of_interface(6, interface, "disable_ipv6"), "0"));
    }
    state.links.push(LinkSettings {
        mtu: Some(tunnel.mtu.into()),
        tx_queue_len: Some(1000),
        up: Some(true),
        ..LinkSettings::of(interface)
    });
    let addresses = tunnel.inner4.map(IpNet::from).into_iter().chain(inner6.map(IpNet::from));
    state
        .addresses
        .extend(addresses.map(|address| InterfaceAddress { interface: interface.to_owned(), address }));
    state.routes.extend(outside(tunnel, around.uplink));
    for (v6, networks) in by_length(tunnel, around) {
        for (turn, (&length, networks)) in (0..).zip(networks.iter().rev()) {
            let table = TABLES + around.index % 100_000 * 1000 + u32::from(length);
            state.routes.extend(networks.iter().map(|(network, kind)| Route {
                table,
                interface: (*kind == RouteKind::Unicast).then(|| interface.to_owned()),
                ..Route::new(*network, *kind)
            }));
            // The interface takes its routes along when it goes; these stay.
            let passing =
                networks.iter().filter(|(_, kind)| around.kill_switch && *kind == RouteKind::Unicast);
            state.routes.extend(passing.map(|(network, _)| Route {
                table,
                metric: Some(LAST_METRIC),
                ..Route::new(*network, RouteKind::Unreachable)
            }));
            let own = Rule {
                suppress_prefix_length: Some(length),
                ..Rule::new(v6, PRIORITY + 2 * turn, MAIN_TABLE)
            };
            state.rules.extend((!tunnel.block_local).then_some(own));
            state.rules.push(Rule {
                mark: Some(Mark::exactly(MARK)),
                invert: true,
                ..Rule::new(v6, PRIORITY + 2 * turn + 1, table)
            });
        }
    }
    state
}

type Networks = BTreeMap<u8, Vec<(IpNet, RouteKind)>>;

/// The tunnel's networks by IP version and length of prefix.
///
/// Where the kernel refuses what goes to the server it also refuses what comes from there, if it has any reverse path
/// filter for IPv4. So a refused network with the server in it is led into the tunnel, which carries nothing of an IP
/// version it has no address of.
fn by_length(tunnel: &Tunnel, around: &Surroundings<'_>) -> BTreeMap<bool, Networks> {
    let inside = tunnel.inside.iter().map(|network| (*network, RouteKind::Unicast));
    let has_server =
        |network: &IpNet| around.server.is_some_and(|server| server.is_ipv4() && network.contains(&server));
    let refused = tunnel.refused.iter().map(|network| match has_server(network) {
        true => (*network, RouteKind::Unicast),
        false => (*network, RouteKind::Unreachable),
    });
    let mut all: BTreeMap<bool, Networks> = BTreeMap::new();
    for (network, kind) in inside.chain(refused) {
        let v6 = network.addr().is_ipv6();
        if around.ipv6 || !v6 {
            all.entry(v6).or_default().entry(network.prefix_len()).or_default().push((network, kind));
        }
    }
    all
}

/// Routes for what stays outside: by where it would leave now.
fn outside<'a>(tunnel: &'a Tunnel, uplink: Option<&'a RouteTo>) -> impl Iterator<Item = Route> + 'a {
    let routes = uplink.into_iter().flat_map(|uplink| {
        tunnel.outside.iter().map(|network| Route {
            interface: Some(uplink.interface.clone()),
            gateway: uplink.gateway.filter(IpAddr::is_ipv4),
            metric: Some(OUTSIDE_METRIC),
            ..Route::new(IpNet::V4(*network), RouteKind::Unicast)
        })
    });
    routes.filter(|_| !tunnel.block_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<T: std::str::FromStr<Err: std::fmt::Debug> + Ord>(items: &[&str]) -> BTreeSet<T> {
        items.iter().map(|item| item.parse().unwrap()).collect()
    }

    fn tunnel(inside: &[&str], refused: &[&str]) -> Tunnel {
        Tunnel {
            inner4: Some("10.9.0.2/24".parse().unwrap()),
            inner6: Some("fd09::2/64".parse().unwrap()),
            mtu: 1420,
            inside: set(inside),
            refused: set(refused),
            ..Tunnel::default()
        }
    }

    fn around(strict: &BTreeSet<String>) -> Surroundings<'_> {
        Surroundings {
            interface: "adit0",
            index: 7,
            ipv6: true,
            server: None,
            uplink: None,
            strict,
            kill_switch: false,
        }
    }

    fn lines<T: ToString>(items: &[T]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_full_tunnel_is_two_rules_and_a_default_route_for_each_ip_version() {
        let state = wanted(Some(&tunnel(&["0.0.0.0/0"], &["::/0"])), &around(&BTreeSet::new()));
        assert_eq!(
            lines(&state.rules),
            [
                "IPv4 rule 17300: from all lookup 254 suppress_prefixlength 0",
                "IPv4 rule 17301: not fwmark 0xad17 lookup 173007000",
                "IPv6 rule 17300: from all lookup 254 suppress_prefixlength 0",
                "IPv6 rule 17301: not fwmark 0xad17 lookup 173007000",
            ]
        );
        assert_eq!(
            lines(&state.routes),
            ["route 0.0.0.0/0 dev adit0 table 173007000", "route unreachable ::/0 table 173007000"]
        );
        assert_eq!(
            lines(&state.addresses),
            ["address 10.9.0.2/24 dev adit0", "address fd09::2/64 dev adit0"]
        );
        assert_eq!((state.links[0].mtu, state.links[0].up), (Some(1420), Some(true)));
    }

    #[test]
    fn with_several_lengths_of_prefix_the_longest_is_asked_first() {
        let nets = ["10.0.0.0/8", "172.16.5.0/24", "172.16.6.0/24"];
        let state = wanted(Some(&tunnel(&nets, &[])), &around(&BTreeSet::new()));
        assert_eq!(
            lines(&state.rules),
            [
                "IPv4 rule 17300: from all lookup 254 suppress_prefixlength 24",
                "IPv4 rule 17301: not fwmark 0xad17 lookup 173007024",
                "IPv4 rule 17302: from all lookup 254 suppress_prefixlength 8",
                "IPv4 rule 17303: not fwmark 0xad17 lookup 173007008",
            ]
        );
        assert_eq!(
            lines(&state.routes),
            [
                "route 172.16.5.0/24 dev adit0 table 173007024",
                "route 172.16.6.0/24 dev adit0 table 173007024",
                "route 10.0.0.0/8 dev adit0 table 173007008",
            ]
        );
    }

    #[test]
    fn the_kill_switch_leaves_a_refusal_behind_each_route_and_needs_no_tunnel() {
        let strict = BTreeSet::new();
        let around = Surroundings { kill_switch: true, ..around(&strict) };
        let up = wanted(Some(&tunnel(&["0.0.0.0/0"], &["::/0"])), &around);
        assert_eq!(
            lines(&up.routes),
            [
                "route 0.0.0.0/0 dev adit0 table 173007000",
                "route unreachable 0.0.0.0/0 table 173007000 metric 1073741824",
                "route unreachable ::/0 table 173007000",
            ]
        );
        let shut = wanted(Some(&Tunnel::shut(&crate::tunnel::Mode::AsTold)), &around);
        assert_eq!(
            lines(&shut.routes),
            ["route unreachable 0.0.0.0/0 table 173007000", "route unreachable ::/0 table 173007000"]
        );
        assert_eq!((&shut.rules, shut.addresses.len()), (&up.rules, 0));
        // So that the server's answers pass the reverse path filter.
        let around = Surroundings { server: Some("192.0.2.1".parse().unwrap()), ..around };
        let tried = wanted(Some(&Tunnel::shut(&crate::tunnel::Mode::AsTold)), &around);
        assert_eq!(lines(&tried.routes), lines(&up.routes));
    }

    #[test]
    fn block_local_leaves_the_machines_own_routes_unasked() {
        let tunnel = Tunnel { block_local: true, ..tunnel(&["0.0.0.0/0"], &[]) };
        let state = wanted(Some(&tunnel), &around(&BTreeSet::new()));
        assert_eq!(lines(&state.rules), ["IPv4 rule 17301: not fwmark 0xad17 lookup 173007000"]);
    }

    #[test]
    fn what_stays_outside_goes_where_it_would_go_now() {
        let tunnel = Tunnel { outside: set(&["192.0.2.0/24"]), ..tunnel(&["0.0.0.0/0"], &[]) };
        let uplink = RouteTo {
            kind: RouteKind::Unicast,
            interface_index: 2,
            interface: "eth0".into(),
            gateway: Some("198.51.100.1".parse().unwrap()),
            source: None,
        };
        let strict = BTreeSet::new();
        let state = wanted(Some(&tunnel), &Surroundings { uplink: Some(&uplink), ..around(&strict) });
        assert_eq!(state.routes[0].to_string(), "route 192.0.2.0/24 via 198.51.100.1 dev eth0 metric 173");
        assert_eq!(
            wanted(Some(&tunnel), &around(&strict)).routes.len(),
            1,
            "without an uplink there is no way outside"
        );
    }

    #[test]
    fn a_machine_without_ipv6_gets_none() {
        let strict = set(&["eth0.7"]);
        let without = Surroundings { ipv6: false, ..around(&strict) };
        assert_eq!(lines(&wanted(None, &without).sysctls), ["sysctl net.ipv4.conf.eth0/7.rp_filter = 2"]);
        let state = wanted(Some(&tunnel(&["0.0.0.0/0", "2000::/3"], &["::/0"])), &without);
        assert_eq!(lines(&state.sysctls), ["sysctl net.ipv4.conf.eth0/7.rp_filter = 2"]);
        assert_eq!(lines(&state.addresses), ["address 10.9.0.2/24 dev adit0"]);
        assert!(state.rules.iter().all(|rule| !rule.v6) && state.routes.len() == 1);
    }
}
