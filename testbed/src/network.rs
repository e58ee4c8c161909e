//! The topology of the tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::Host;

/// The gateway as clients dial it.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// The gateway as the outside sees it.
const EXIT4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The outside server.
const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2);

/// How a [`Network`] is to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Layout {
    clients: usize,
    nat: bool,
}

impl Layout {
    /// With this many clients.
    #[must_use]
    pub fn clients(clients: usize) -> Self {
        Self { clients, nat: false }
    }

    /// All clients are behind one source NAT.
    #[must_use]
    pub fn behind_nat(mut self) -> Self {
        self.nat = true;
        self
    }

    /// Builds it.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    #[track_caller]
    pub fn build(self) -> Network {
        Network::build(self)
    }
}

/// Clients, their provider, the gateway, a router and an outside server, IPv4 and IPv6 everywhere:
///
/// ```text
///  client 0 ─── home 198.18.0.0/24 ───┐
///           └── away 198.19.0.0/24 ───┤            192.0.2.0/24            198.51.100.0/24
///  client 1 ─── home 198.18.1.0/24 ───┼── access ─────────────── gateway ─────────────── router ── outside
///           └── away 198.19.1.0/24 ───┤      │ .254          .1         .1            .2   │  203.0.113.0/24
///                     …               ┘      └───────────────── 198.51.101.0/24 ───────────┘          .2
///  IPv6: 2001:db8:18:N::/64, 2001:db8:19:N::/64, 2001:db8:2::/64, 2001:db8:51::/64, 2001:db8:52::/64,
///        2001:db8:113::/64; the router leads 2001:db8:88::/48 to the gateway
/// ```
///
/// A client's interface to its second network, `away`, is down until [`roam`](Self::roam). Without a tunnel a
/// client reaches the outside past the gateway, so that a leak is seen as one.
#[derive(Debug)]
pub struct Network {
    /// The clients' provider: a router between them and everything else.
    pub access: Arc<Host>,
    /// Where adit runs.
    pub gateway: Arc<Host>,
    /// Between the gateway and the outside.
    pub router: Arc<Host>,
    /// Where servers run.
    pub outside: Arc<Host>,
    clients: Vec<Arc<Host>>,
}

impl Network {
    /// With this many clients and no NAT.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    #[track_caller]
    pub fn with_clients(clients: usize) -> Self {
        Layout::clients(clients).build()
    }

    #[track_caller]
    fn build(layout: Layout) -> Self {
        let host = |role: &str| Arc::new(Host::new(role));
        let network = Self {
            access: host("access"),
            gateway: host("gateway"),
            router: host("router"),
            outside: host("outside"),
            clients: (0..layout.clients).map(|n| host(&format!("client{n}"))).collect(),
        };
        for forwarding in [&network.access, &network.router] {
            forwarding.sysctl("net.ipv4.ip_forward", "1");
            forwarding.sysctl("net.ipv6.conf.all.forwarding", "1");
            forwarding.sysctl("net.ipv4.conf.all.rp_filter", "0");
            forwarding.sysctl("net.ipv4.conf.default.rp_filter", "0");
        }
        let [gateway, router, outside] =
            [&network.gateway, &network.router, &network.outside].map(|host| host.name());
        network.access.ip(&format!(
            "link add gw type veth peer name front netns {gateway}\n\
             link add inet type veth peer name isp netns {router}\n\
             {}{}\
             route add default via 198.51.101.2\n\
             route add default via 2001:db8:52::2\n",
            up("gw", "192.0.2.254/24", "2001:db8:2::254/64"),
            up("inet", "198.51.101.1/24", "2001:db8:52::1/64"),
        ));
        network.router.ip(&format!(
            "link add out type veth peer name in netns {outside}\n\
             link add gw type veth peer name back netns {gateway}\n\
             {}{}{}\
             route add 198.18.0.0/15 via 198.51.101.1\n\
             route add 192.0.2.0/24 via 198.51.101.1\n\
             route add 2001:db8:18::/47 via 2001:db8:52::1\n\
             route add 2001:db8:2::/64 via 2001:db8:52::1\n\
             route add 2001:db8:88::/48 via 2001:db8:51::1\n",
            up("out", "203.0.113.1/24", "2001:db8:113::1/64"),
            up("gw", "198.51.100.2/24", "2001:db8:51::2/64"),
            up("isp", "198.51.101.2/24", "2001:db8:52::2/64"),
        ));
        network.outside.ip(&format!(
            "{}route add default via 203.0.113.1\nroute add default via 2001:db8:113::1\n",
            up("in", "203.0.113.2/24", "2001:db8:113::2/64")
        ));
        network.gateway.ip(&format!(
            "{}{}\
             route add 198.18.0.0/15 via 192.0.2.254\n\
             route add 2001:db8:18::/47 via 2001:db8:2::254\n\
             route add default via 198.51.100.2\n\
             route add default via 2001:db8:51::2\n",
            up("front", "192.0.2.1/24", "2001:db8:2::1/64"),
            up("back", "198.51.100.1/24", "2001:db8:51::1/64"),
        ));
        for (n, client) in network.clients.iter().enumerate() {
            let name = client.name();
            network.access.ip(&format!(
                "link add home{n} type veth peer name home netns {name}\n\
                 link add away{n} type veth peer name away netns {name}\n\
                 {}{}",
                up(&format!("home{n}"), &format!("198.18.{n}.1/24"), &format!("2001:db8:18:{n:x}::1/64")),
                up(&format!("away{n}"), &format!("198.19.{n}.1/24"), &format!("2001:db8:19:{n:x}::1/64")),
            ));
            client.ip(&join("home", n, 18));
        }
        if layout.nat {
            network.access.nft(
                "table ip nat { chain postrouting { type nat hook postrouting priority srcnat; \
                 ip saddr 198.18.0.0/15 masquerade random; }; }",
            );
        }
        network
    }

    /// A client's machine.
    ///
    /// # Panics
    /// When there is none of this number.
    #[must_use]
    #[track_caller]
    pub fn client(&self, number: usize) -> &Arc<Host> {
        &self.clients[number]
    }

    /// The gateway as clients dial it, IPv4.
    #[must_use]
    pub fn gateway_address(&self) -> IpAddr {
        GATEWAY4.into()
    }

    /// The gateway as clients dial it, IPv6.
    #[must_use]
    pub fn gateway_address6(&self) -> IpAddr {
        GATEWAY6.into()
    }

    /// The address that what leaves the gateway comes from.
    #[must_use]
    pub fn exit_address(&self) -> IpAddr {
        EXIT4.into()
    }

    /// The outside server.
    #[must_use]
    pub fn outside_address(&self) -> IpAddr {
        OUTSIDE4.into()
    }

    /// The outside server, IPv6.
    #[must_use]
    pub fn outside_address6(&self) -> IpAddr {
        OUTSIDE6.into()
    }

    /// The address of `access` on the way to the gateway: where a [`Proxy`](crate::Proxy) can stand.
    #[must_use]
    pub fn access_address(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 254).into()
    }

    /// A client's own address at home.
    #[must_use]
    pub fn client_address(&self, number: usize) -> IpAddr {
        Ipv4Addr::new(198, 18, number as u8, 2).into()
    }

    /// A client's own IPv6 address at home.
    #[must_use]
    pub fn client_address6(&self, number: usize) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0x18, number as u16, 0, 0, 0, 2).into()
    }

    /// The client leaves its network for the other one; its new address.
    ///
    /// # Panics
    /// When it has roamed before.
    #[track_caller]
    pub fn roam(&self, number: usize) -> IpAddr {
        self.client(number).ip(&format!("link set home down\n{}", join("away", number, 19)));
        Ipv4Addr::new(198, 19, number as u8, 2).into()
    }

    /// A machine behind a client, in a network of its own: 192.168.`net`.2 and fd00:`net`::2, with the client as
    /// .1 and ::1, which forwards.
    ///
    /// # Panics
    /// When there is one already.
    #[must_use]
    #[track_caller]
    pub fn site(&self, client: usize, net: u8) -> Arc<Host> {
        let site = Arc::new(Host::new(&format!("site{client}")));
        let client = self.client(client);
        client.sysctl("net.ipv4.ip_forward", "1");
        client.sysctl("net.ipv6.conf.all.forwarding", "1");
        client.sysctl("net.ipv4.conf.all.rp_filter", "0");
        client.ip(&format!(
            "link add site type veth peer name lan netns {}\n{}",
            site.name(),
            up("site", &format!("192.168.{net}.1/24"), &format!("fd00:{net:x}::1/64"))
        ));
        site.ip(&format!(
            "{}route add default via 192.168.{net}.1\nroute add default via fd00:{net:x}::1\n",
            up("lan", &format!("192.168.{net}.2/24"), &format!("fd00:{net:x}::2/64"))
        ));
        site
    }
}

/// Commands that bring an interface up with its addresses.
fn up(interface: &str, v4: &str, v6: &str) -> String {
    format!(
        "link set {interface} up\n\
         address add {v4} dev {interface}\n\
         address add {v6} dev {interface} nodad\n"
    )
}

/// Commands that put a client into one of its networks.
fn join(interface: &str, number: usize, net: u8) -> String {
    format!(
        "{}route add default via 198.{net}.{number}.1 dev {interface}\n\
         route add default via 2001:db8:{net}:{number:x}::1 dev {interface}\n",
        up(interface, &format!("198.{net}.{number}.2/24"), &format!("2001:db8:{net}:{number:x}::2/64")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ping;

    #[test]
    fn everybody_reaches_everybody_by_ipv4_and_ipv6() {
        let network = Network::with_clients(2);
        for client in 0..2 {
            let host = network.client(client);
            for address in [
                network.gateway_address(),
                network.gateway_address6(),
                network.outside_address(),
                network.outside_address6(),
            ] {
                ping(host, address).must_all_return();
            }
        }
        network.roam(1);
        ping(network.client(1), network.gateway_address()).must_all_return();
        ping(network.client(1), network.outside_address6()).must_all_return();
        let site = network.site(0, 7);
        ping(&site, "192.168.7.1".parse().unwrap()).must_all_return();
        ping(network.client(0), "fd00:7::2".parse().unwrap()).must_all_return();
    }
}
