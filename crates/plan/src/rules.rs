//! The gateway's filter table, in nft's language.

use std::fmt::Write;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
}

/// Networks whose addresses mean nothing outside: RFC 1918, RFC 6598, RFC 3927.
fn is_private4(net: &Ipv4Net) -> bool {
    let address = net.network();
    let shared = Ipv4Net::new_assert([100, 64, 0, 0].into(), 10);
    address.is_private() || address.is_link_local() || shared.contains(&address)
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
/// * Private IPv4 addresses leave behind the host's own. IPv6 is never translated: unique local addresses that
///   would leave are refused at once, so that clients fall back to IPv4 instead of waiting.
#[must_use]
pub fn render(gateway: &Gateway) -> String {
    let Gateway { table, interface, pools, prefixes, client_to_client } = gateway;
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
    line(8, "type nat hook postrouting priority srcnat; policy accept;");
    if let Some(nets) = set(&masked) {
        line(8, &format!("iifname \"{interface}\" oifname != \"{interface}\" ip saddr {nets} masquerade"));
    }
    line(4, "}");
    line(0, "}");
    out
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
        }
    }

    #[test]
    fn private_addresses_leave_behind_the_hosts_own_and_public_ones_as_they_are() {
        let public = Gateway {
            pools: vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            ..gateway()
        };
        assert!(render(&gateway()).contains("ip saddr { 10.88.0.0/16 } masquerade"));
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
}
