//! What a client is told about its tunnel.

use std::time::Duration;

use adit_openvpn::push::{DhcpOption, PushOption, Redirect, Topology, Via};
use adit_plan::pool::{Inner, Pools};
use ipnet::{IpNet, Ipv6Net};

use crate::config::{Routes, TunnelConfig};

/// The options for a client with these addresses; `sites` are networks behind other devices.
pub(crate) fn options(
    tunnel: &TunnelConfig,
    pools: &Pools,
    inner: Inner,
    sites: &[IpNet],
    tcp: bool,
) -> Vec<PushOption> {
    let mut options = Vec::new();
    if let Some(address) = inner.v4 {
        let pool = pools.iter().find(|pool| pool.leases(address.into()));
        if let Some((IpNet::V4(net), std::net::IpAddr::V4(gateway))) = pool.map(|p| (p.net(), p.gateway())) {
            options.push(PushOption::Topology(Topology::Subnet));
            options.push(PushOption::RouteGateway(gateway));
            options.push(PushOption::Ifconfig(address, net.netmask()));
        }
    }
    if let Some(address) = inner.v6 {
        let pool = pools.iter().find(|pool| pool.leases(address.into()));
        if let Some((net, std::net::IpAddr::V6(gateway))) = pool.map(|p| (p.net(), p.gateway()))
            && let Ok(own) = Ipv6Net::new(address, net.prefix_len())
        {
            options.push(PushOption::Ifconfig6(own, gateway));
        }
    }
    match &tunnel.routes {
        Routes::Full => {
            options.push(PushOption::RedirectGateway(Redirect {
                ipv4: true,
                // Also without inner IPv6: what cannot go through the tunnel must not go past it.
                ipv6: true,
                def1: true,
                block_local: false,
                bypass_dhcp: true,
            }));
            if inner.v6.is_none() {
                options.push(PushOption::BlockIpv6);
            }
        }
        Routes::Split(networks) => options.extend(networks.iter().filter_map(|net| route(*net, inner))),
    }
    options.extend(sites.iter().filter_map(|net| route(*net, inner)));
    options.extend(tunnel.dns.iter().map(|address| PushOption::Dhcp(DhcpOption::Dns(*address))));
    if let Some((first, rest)) = tunnel.search.split_first() {
        options.push(PushOption::Dhcp(DhcpOption::Domain(first.clone())));
        options.extend(rest.iter().map(|name| PushOption::Dhcp(DhcpOption::DomainSearch(name.clone()))));
    }
    if tunnel.block_outside && !tunnel.dns.is_empty() && tunnel.routes == Routes::Full {
        options.push(PushOption::BlockOutsideDns);
    }
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    options.push(PushOption::Ping(seconds(tunnel.ping)));
    options.push(PushOption::PingRestart(seconds(tunnel.ping_restart)));
    if !tcp {
        options.push(PushOption::ExplicitExitNotify(1));
    }
    if tunnel.mtu != 1500 {
        options.push(PushOption::TunMtu(tunnel.mtu));
    }
    if tunnel.push_sndbuf > 0 {
        options.push(PushOption::SendBuffer(tunnel.push_sndbuf));
    }
    if tunnel.push_rcvbuf > 0 {
        options.push(PushOption::ReceiveBuffer(tunnel.push_rcvbuf));
    }
    options
}

/// A route, if the client has an address of its family.
fn route(network: IpNet, inner: Inner) -> Option<PushOption> {
    match network {
        IpNet::V4(network) => inner.v4.map(|_| PushOption::Route(network.trunc(), Via::Tunnel)),
        IpNet::V6(network) => inner.v6.map(|_| PushOption::Route6(network.trunc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(tunnel: &TunnelConfig, v6: bool, sites: &[&str], tcp: bool) -> String {
        let pools = tunnel.pools().unwrap();
        let inner = Inner { v4: Some([10, 88, 0, 2].into()), v6: v6.then(|| "fd88::2".parse().unwrap()) };
        let sites: Vec<IpNet> = sites.iter().map(|net| net.parse().unwrap()).collect();
        let options = options(tunnel, &pools, inner, &sites, tcp);
        options.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn tunnel() -> TunnelConfig {
        TunnelConfig {
            pool4: vec!["10.88.0.0/16".parse().unwrap()],
            pool6: vec!["fd88::/64".parse().unwrap()],
            ..TunnelConfig::default()
        }
    }

    #[test]
    fn a_full_tunnel_takes_both_families_and_lets_neither_past() {
        assert_eq!(
            pushed(&tunnel(), true, &[], false),
            "topology subnet,route-gateway 10.88.0.1,ifconfig 10.88.0.2 255.255.0.0,ifconfig-ipv6 fd88::2/64 fd88::1,\
             redirect-gateway def1 ipv6 bypass-dhcp,ping 3,ping-restart 7,explicit-exit-notify 1"
        );
        let v4_only = TunnelConfig { pool6: vec![], ..tunnel() };
        assert!(
            pushed(&v4_only, false, &[], false).contains("redirect-gateway def1 ipv6 bypass-dhcp,block-ipv6")
        );
    }

    #[test]
    fn a_split_tunnel_has_its_routes_and_those_to_other_sites() {
        let split = TunnelConfig {
            routes: Routes::Split(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]),
            dns: vec!["10.88.0.1".parse().unwrap()],
            search: vec!["example.org".into(), "lab.example.org".into()],
            ..tunnel()
        };
        let text = pushed(&split, true, &["192.168.7.0/24"], true);
        assert!(text.contains(
            "route 10.0.0.0 255.0.0.0,route-ipv6 fd00::/8,route 192.168.7.0 255.255.255.0,dhcp-option DNS 10.88.0.1,\
             dhcp-option DOMAIN example.org,dhcp-option DOMAIN-SEARCH lab.example.org,ping"
        ));
        assert!(
            !text.contains("redirect") && !text.contains("explicit-exit") && !text.contains("block-outside")
        );
    }
}
