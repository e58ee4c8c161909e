//! The gateway's tables, in nft's language: the filter table and, for traceable NAT, one that translates.

mod nat;

use std::fmt::Write;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use nat::{BLOCKS, FORWARDS, FORWARDS_ANY, FULL, PROTOCOLS, SITES, UNTRANSLATED, render_nat};

use crate::ports::PortSet;
use crate::special::is_private4;

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Name of the table.
    pub table: String,
    /// The tun interface.
    pub interface: String,
    /// Inner networks of clients.
    pub pools: Vec<IpNet>,
    /// Networks behind devices.
    pub prefixes: Vec<IpNet>,
    /// Clients may reach each other's inner addresses.
    pub client_to_client: bool,
    /// Where clients come in.
    pub entrances: Vec<Entrance>,
    /// Another table translates: [`render_nat`]. Without it all private addresses leave behind the host's own.
    pub nat: Option<Nat>,
}

/// What traceable NAT asks of the filter table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nat {
    /// Ports are forwarded to clients: what is led to them may pass.
    pub forwards: bool,
}

/// Ports that clients come in by, as far as nobody else has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// Where.
    pub at: At,
    /// UDP ports.
    pub udp: PortSet,
    /// TCP ports.
    pub tcp: PortSet,
}

/// What of the packets that are for this machine an entrance takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// All of them.
    Everywhere,
    /// Those of IPv4.
    Ipv4,
    /// Those to an address.
    Address(IpAddr),
    /// Those that arrive by an interface.
    Interface(String),
}

/// The first source ports that are looked for, for clients' connections.
const PREFERRED: RangeInclusive<u16> = 40_000..=64_511;
/// Ports below are for services.
const UNPRIVILEGED: RangeInclusive<u16> = 1024..=65_535;
/// Fewer source ports than these are not worth choosing.
const ENOUGH: usize = 4096;

/// Source ports for clients' connections that are in no entrance: an answer to one that is would go to the gateway.
fn source_ports(entrances: &[Entrance]) -> Option<RangeInclusive<u16>> {
    let used = entrances.iter().fold(PortSet::default(), |used, one| used.either(&one.udp).either(&one.tcp));
    [PREFERRED, UNPRIVILEGED].into_iter().find_map(|range| {
        let free = PortSet::from_iter([range]).without(&used);
        let longest = free.ranges().iter().max_by_key(|range| range.len()).cloned();
        longest.filter(|range| range.len() >= ENOUGH)
    })
}

/// Unique local addresses (RFC 4193).
fn is_local6(net: &Ipv6Net) -> bool {
    net.network().segments()[0] & 0xfe00 == 0xfc00
}

/// The table:
///
/// * Nobody outside reaches a client, unless a client spoke first. Packets that claim to be for private inner
///   addresses are refused on outer interfaces before anything else looks at them.
/// * Clients do not reach each other, unless that is wanted; networks behind devices are reached by all clients.
/// * Private IPv4 addresses leave behind the host's own, or as the other table has translated them: what that has
///   left as it is, and what connection tracking makes nothing of, does not leave. IPv6 is never translated: unique local addresses that
///   would leave are refused at once, so that clients fall back to IPv4 instead of waiting.
#[must_use]
pub fn render(gateway: &Gateway) -> String {
    let Gateway { table, interface, pools, prefixes, client_to_client, entrances, nat } = gateway;
    let inner = |nets: &[IpNet]| {
        let v4: Vec<Ipv4Net> =
            nets.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect();
        let v6: Vec<Ipv6Net> =
            nets.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect();
        (v4, v6)
    };
    let (pools4, pools6) = inner(pools);
    let (prefixes4, prefixes6) = inner(prefixes);
    let hidden4: Vec<_> = pools4.iter().copied().filter(is_private4).collect();
    let hidden6: Vec<_> = pools6.iter().copied().filter(is_local6).collect();
    let masked: Vec<_> = pools4.iter().chain(&prefixes4).copied().filter(is_private4).collect();
    let mut out = String::new();
    let mut line = |indent: usize, text: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:indent$}{text}", "");
    };
    line(0, &format!("table inet {table} {{"));
    if nat.is_some() {
        line(4, &format!("counter {UNTRANSLATED} {{ }}"));
    }
    for (chain, hook) in [("entrances", Hook::Prerouting), ("answers", Hook::Output)] {
        line(4, &format!("chain {chain} {{"));
        line(8, &format!("type filter hook {} priority raw; policy accept;", hook.name()));
        for rule in entrances.iter().flat_map(|entrance| untracked(entrance, hook)) {
            line(8, &rule);
        }
        line(4, "}");
    }
    line(4, "chain prerouting {");
    line(8, "type filter hook prerouting priority raw; policy accept;");
    for (family, nets) in [("ip", set(&hidden4)), ("ip6", set(&hidden6))] {
        if let Some(nets) = nets {
            line(8, &format!("iifname != {{ \"lo\", \"{interface}\" }} {family} daddr {nets} counter drop"));
        }
    }
    line(4, "}");
    line(4, "chain forward {");
    line(8, "type filter hook forward priority filter; policy accept;");
    line(8, &format!("oifname \"{interface}\" ct state established,related accept"));
    if nat.is_some_and(|nat| nat.forwards) {
        line(8, &format!("oifname \"{interface}\" ct status dnat accept"));
    }
    for (family, nets) in [("ip", set(&prefixes4)), ("ip6", set(&prefixes6))] {
        if let Some(nets) = nets {
            line(8, &format!("iifname \"{interface}\" oifname \"{interface}\" {family} daddr {nets} accept"));
        }
    }
    if *client_to_client {
        line(8, &format!("iifname \"{interface}\" oifname \"{interface}\" accept"));
    }
    line(8, &format!("oifname \"{interface}\" counter reject with icmpx admin-prohibited"));
    if let Some(nets) = set(&hidden6) {
        line(
            8,
            &format!(
                "iifname \"{interface}\" ip6 saddr {nets} ip6 daddr 2000::/3 counter reject with icmpv6 no-route"
            ),
        );
    }
    line(4, "}");
    line(4, "chain postrouting {");
    let hook = match nat {
        None => "type nat hook postrouting priority srcnat",
        Some(_) => "type filter hook postrouting priority srcnat + 10",
    };
    line(8, &format!("{hook}; policy accept;"));
    if let Some(nets) = set(&masked) {
        let leaving = format!("iifname \"{interface}\" oifname != \"{interface}\" ip saddr {nets}");
        match (nat, source_ports(entrances)) {
            (Some(_), _) => line(8, &format!("{leaving} counter name {UNTRANSLATED} drop")),
            (None, Some(ports)) => {
                let (from, to) = ports.into_inner();
                line(8, &format!("{leaving} meta l4proto {{ tcp, udp }} masquerade to :{from}-{to}"));
                line(8, &format!("{leaving} masquerade"));
            }
            (None, None) => line(8, &format!("{leaving} masquerade")),
        }
    }
    line(4, "}");
    line(0, "}");
    out
}

#[derive(Clone, Copy)]
enum Hook {
    Prerouting,
    Output,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        }
    }
}

/// Rules that keep an entrance's packets out of connection tracking: they need none, and what it knows of them
/// somebody else could have put there.
fn untracked(entrance: &Entrance, hook: Hook) -> Vec<String> {
    let condition = match (hook, &entrance.at) {
        (Hook::Prerouting, At::Everywhere) => "fib daddr type local ".to_owned(),
        (Hook::Prerouting, At::Ipv4) => "meta nfproto ipv4 fib daddr type local ".to_owned(),
        (Hook::Prerouting, At::Interface(name)) => format!("iifname \"{name}\" fib daddr type local "),
        (Hook::Prerouting, At::Address(IpAddr::V4(address))) => format!("ip daddr {address} "),
        (Hook::Prerouting, At::Address(IpAddr::V6(address))) => format!("ip6 daddr {address} "),
        (Hook::Output, At::Everywhere | At::Interface(_)) => String::new(),
        (Hook::Output, At::Ipv4) => "meta nfproto ipv4 ".to_owned(),
        (Hook::Output, At::Address(IpAddr::V4(address))) => format!("ip saddr {address} "),
        (Hook::Output, At::Address(IpAddr::V6(address))) => format!("ip6 saddr {address} "),
    };
    let port = match hook {
        Hook::Prerouting => "dport",
        Hook::Output => "sport",
    };
    [("udp", &entrance.udp), ("tcp", &entrance.tcp)]
        .into_iter()
        .filter(|(_, ports)| !ports.is_empty())
        .map(|(protocol, ports)| {
            format!("{condition}{protocol} {port} {{ {} }} notrack", ports.to_string().replace(',', ", "))
        })
        .collect()
}

/// An anonymous set; `None` when there is nothing in it, which nft does not take.
fn set<T: std::fmt::Display>(nets: &[T]) -> Option<String> {
    let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
    (!nets.is_empty()).then(|| format!("{{ {} }}", nets.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Gateway {
        Gateway {
            table: "adit".into(),
            interface: "adit0".into(),
            pools: vec!["10.88.0.0/16".parse().unwrap(), "fd88::/64".parse().unwrap()],
            prefixes: vec![],
            client_to_client: false,
            entrances: vec![],
            nat: None,
        }
    }

    #[test]
    fn private_addresses_leave_behind_the_hosts_own_and_public_ones_as_they_are() {
        let public = Gateway {
            pools: vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            ..gateway()
        };
        assert!(render(&gateway()).contains("ip saddr { 10.88.0.0/16 } masquerade\n"));
        let text = render(&public);
        assert!(!text.contains("masquerade") && !text.contains("no-route") && !text.contains("drop"));
    }

    #[test]
    fn clients_reach_each_other_only_if_wanted_and_networks_behind_devices_always() {
        let between = "iifname \"adit0\" oifname \"adit0\" accept";
        assert!(!render(&gateway()).contains(between));
        assert!(render(&Gateway { client_to_client: true, ..gateway() }).contains(between));
        let sites = Gateway { prefixes: vec!["192.168.7.0/24".parse().unwrap()], ..gateway() };
        let text = render(&sites);
        assert!(text.contains("ip daddr { 192.168.7.0/24 } accept"));
        let order = |needle: &str| text.find(needle).unwrap();
        assert!(order("192.168.7.0/24 } accept") < order("reject with icmpx"));
    }

    #[test]
    fn an_empty_gateway_makes_a_table_without_empty_sets() {
        let text = render(&Gateway { pools: vec![], ..gateway() });
        assert!(!text.contains("{ }") && !text.contains("{  }"), "{text}");
    }

    #[test]
    fn entrances_are_not_tracked_and_clients_connections_leave_from_other_ports() {
        let entrance =
            |at, ports: &str| Entrance { at, udp: ports.parse().unwrap(), tcp: PortSet::default() };
        let with = |entrances| render(&Gateway { entrances, ..gateway() });
        let text = with(vec![
            entrance(At::Everywhere, "1-52,54-29999"),
            entrance(At::Address("2001:db8::1".parse().unwrap()), "5"),
        ]);
        assert!(text.contains("fib daddr type local udp dport { 1-52, 54-29999 } notrack"));
        assert!(text.contains("ip6 saddr 2001:db8::1 udp sport { 5 } notrack"));
        assert!(text.contains("masquerade to :40000-64511\n"));
        let text = with(vec![entrance(At::Everywhere, "1-49999")]);
        assert!(text.contains("masquerade to :50000-64511\n"));
        let text = with(vec![entrance(At::Ipv4, "30000-65535")]);
        assert!(text.contains("masquerade to :1024-29999\n"));
        assert!(!with(vec![entrance(At::Ipv4, "1-65535")]).contains("masquerade to"));
    }

    #[test]
    fn what_another_table_translates_is_not_hidden_twice_and_leaves_translated_only() {
        let with = |forwards| render(&Gateway { nat: Some(Nat { forwards }), ..gateway() });
        for text in [with(false), with(true)] {
            assert!(!text.contains("masquerade") && !text.contains("type nat"), "{text}");
            let drop = "oifname != \"adit0\" ip saddr { 10.88.0.0/16 } counter name untranslated drop";
            assert!(text.contains(drop), "{text}");
        }
        let accept = "oifname \"adit0\" ct status dnat accept";
        assert!(
            with(true).find(accept) < with(true).find("reject with icmpx") && with(true).contains(accept)
        );
        assert!(!with(false).contains("dnat") && !render(&gateway()).contains("dnat"));
    }

    #[test]
    fn the_set_of_private_networks_is_what_is_private() {
        let nets = crate::special::PRIVATE4.trim_matches(['{', '}', ' ']).split(", ");
        let nets: Vec<Ipv4Net> = nets.map(|net| net.parse().unwrap()).collect();
        for first in 0..=255u8 {
            for second in 0..=255 {
                let net = Ipv4Net::new([first, second, 0, 0].into(), 16).unwrap();
                assert_eq!(nets.iter().any(|private| private.contains(&net)), is_private4(&net), "{net}");
            }
        }
    }
}
