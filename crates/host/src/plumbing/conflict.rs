//! Whether addresses meant for the inside of a tunnel are in use on this machine.

use std::fmt;

use ipnet::IpNet;

use super::PlumbingFault;
use crate::netlink::{InterfaceAddress, Netlink, PROTOCOL, Route, RouteKind};

/// What a pool overlaps with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// The network of an interface's address.
    Address,
    /// A route.
    Route,
}

/// A pool that overlaps with what is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConflict {
    /// The pool.
    pub pool: IpNet,
    /// The network that is in use.
    pub network: IpNet,
    /// The interface it is on.
    pub interface: String,
    /// What it is.
    pub overlap: Overlap,
}

impl fmt::Display for InterfaceConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overlap = match self.overlap {
            Overlap::Address => "address",
            Overlap::Route => "route",
        };
        write!(f, "pool {} overlaps {} on {} ({overlap})", self.pool, self.network, self.interface)
    }
}

/// Finds everything on this machine that `pools` overlap with. What is on the interface `own`, which the
/// pools are for, and what adit made does not count, neither do default routes and what only refuses packets.
///
/// # Errors
/// When addresses and routes cannot be listed.
pub fn find_conflicts(pools: &[IpNet], own: Option<&str>) -> Result<Vec<InterfaceConflict>, PlumbingFault> {
    let mut netlink = Netlink::open()?;
    let (addresses, routes) = (netlink.addresses()?, netlink.routes()?);
    Ok(conflicts(pools, own, &addresses, &routes))
}

fn conflicts(
    pools: &[IpNet],
    own: Option<&str>,
    addresses: &[InterfaceAddress],
    routes: &[Route],
) -> Vec<InterfaceConflict> {
    let of_addresses = addresses
        .iter()
        .map(|address| (address.interface.as_str(), address.address.trunc(), Overlap::Address));
    let of_routes = routes.iter().filter(|route| counts(route)).filter_map(|route| {
        let interface = route.interface.as_deref()?;
        let network = route.destination;
        // The kernel's own route to an interface's network says nothing that the address has not said.
        let known = addresses
            .iter()
            .any(|address| address.interface == interface && address.address.trunc() == network);
        (!known).then_some((interface, network, Overlap::Route))
    });
    let in_use: Vec<_> =
        of_addresses.chain(of_routes).filter(|(interface, _, _)| Some(*interface) != own).collect();
    let mut found = Vec::new();
    for pool in pools {
        for (interface, network, overlap) in &in_use {
            if pool.contains(network) || network.contains(pool) {
                let interface = (*interface).to_owned();
                found.push(InterfaceConflict {
                    pool: *pool,
                    network: *network,
                    interface,
                    overlap: *overlap,
                });
            }
        }
    }
    found
}

fn counts(route: &Route) -> bool {
    route.kind == RouteKind::Unicast && route.protocol != PROTOCOL && route.destination.prefix_len() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, interface: &str) -> Route {
        Route { protocol: 3, ..Route::by_interface(destination.parse().unwrap(), interface) }
    }

    fn found(pools: &[&str], addresses: &[(&str, &str)], routes: &[Route]) -> Vec<String> {
        let pools: Vec<IpNet> = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        let address = |(interface, address): &(&str, &str)| InterfaceAddress {
            interface: (*interface).to_owned(),
            address: address.parse().unwrap(),
        };
        let addresses: Vec<_> = addresses.iter().map(address).collect();
        conflicts(&pools, Some("adit0"), &addresses, routes).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn overlaps_are_named_in_both_directions() {
        let addresses = [("eth0", "192.0.2.1/24"), ("eth2", "10.88.200.1/24")];
        let routes = [route("10.88.3.0/24", "eth1"), route("10.0.0.0/8", "eth3"), route("fd88::/48", "eth4")];

        assert_eq!(
            found(&["10.88.0.0/16", "fd88::/64"], &addresses, &routes),
            [
                "pool 10.88.0.0/16 overlaps 10.88.200.0/24 on eth2 (address)",
                "pool 10.88.0.0/16 overlaps 10.88.3.0/24 on eth1 (route)",
                "pool 10.88.0.0/16 overlaps 10.0.0.0/8 on eth3 (route)",
                "pool fd88::/64 overlaps fd88::/48 on eth4 (route)",
            ]
        );
    }

    #[test]
    fn what_is_no_conflict_is_not_named() {
        let addresses = [("adit0", "10.88.0.1/16"), ("eth0", "10.89.0.1/16")];
        let routes = [
            route("10.88.0.0/16", "adit0"),
            route("0.0.0.0/0", "eth0"),
            Route { kind: RouteKind::Blackhole, ..route("10.0.0.0/8", "lo") },
            Route { protocol: PROTOCOL, ..route("10.88.9.0/24", "eth0") },
        ];

        assert_eq!(found(&["10.88.0.0/16"], &addresses, &routes), Vec::<String>::new());
    }

    #[test]
    fn an_address_and_the_route_it_brings_are_one_conflict() {
        let routes = [Route { protocol: 2, ..route("10.88.0.0/24", "eth0") }];

        assert_eq!(
            found(&["10.88.0.0/16"], &[("eth0", "10.88.0.5/24")], &routes),
            ["pool 10.88.0.0/16 overlaps 10.88.0.0/24 on eth0 (address)"]
        );
    }
}
