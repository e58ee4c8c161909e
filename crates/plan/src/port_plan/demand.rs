//! What is wanted of the ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::{EPHEMERAL, Protocol, Use};
use crate::ports::PortSet;

/// Ports that clients come in by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entrance {
    /// The addresses; an unspecified one is every address of its family, and of no other.
    pub addresses: Vec<IpAddr>,
    /// TCP ports, without those that are left to others.
    pub tcp: PortSet,
    /// UDP ports, without those that are left to others.
    pub udp: PortSet,
}

/// Ports that are forwarded to clients, TCP and UDP.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forward {
    /// The addresses, as for an entrance.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: PortSet,
}

/// Source ports of clients' connections, TCP and UDP.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nat {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: PortSet,
    /// Ports of a block: fewer are of no use.
    pub block: u16,
}

/// A port that a program of the host has bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The addresses: both unspecified ones for a socket of both families.
    pub addresses: Vec<IpAddr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// All that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demands {
    /// Entrances.
    pub entrances: Vec<Entrance>,
    /// Forwards.
    pub forward: Option<Forward>,
    /// NAT.
    pub nat: Option<Nat>,
    /// What is bound already.
    pub services: Vec<Service>,
    /// Where the kernel chooses source ports of the host's own connections from.
    pub ephemeral: RangeInclusive<u16>,
    /// Ports in there that it does not choose anyway.
    pub reserved: PortSet,
}

impl Default for Demands {
    fn default() -> Self {
        Self {
            entrances: Vec::new(),
            forward: None,
            nat: None,
            services: Vec::new(),
            ephemeral: EPHEMERAL,
            reserved: PortSet::default(),
        }
    }
}

/// Ports that one part of the configuration wants for itself.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) usage: Use,
    pub(super) addresses: &'a [IpAddr],
    pub(super) protocol: Protocol,
    pub(super) ports: &'a PortSet,
}

impl Claim<'_> {
    /// The most specific address that both have.
    pub(super) fn shared_address(&self, other: &Claim<'_>) -> Option<IpAddr> {
        if self.protocol != other.protocol {
            return None;
        }
        let shared = |addresses: &[IpAddr], others: &[IpAddr]| {
            let mut specific_last = addresses.to_vec();
            specific_last.sort_by_key(|address| !address.is_unspecified());
            specific_last.into_iter().rev().find(|a| others.iter().any(|other| covers(*other, *a)))
        };
        shared(self.addresses, other.addresses).or_else(|| shared(other.addresses, self.addresses))
    }

    /// True when a service has a port of this claim. What listens on the loopback is not in the way of what is for
    /// all addresses: nothing comes in there.
    pub(super) fn is_hit_by(&self, service: &Service) -> bool {
        let hit = |own: &IpAddr| {
            let mut theirs = service.addresses.iter();
            theirs.any(|other| covers(*other, *own) || covers(*own, *other) && !other.is_loopback())
        };
        self.protocol == service.protocol
            && self.ports.contains(service.port)
            && self.addresses.iter().any(hit)
    }

    /// Where a service that hits it does.
    pub(super) fn address_of(&self, service: &Service) -> IpAddr {
        let theirs = Claim { addresses: &service.addresses, ..*self };
        self.shared_address(&theirs).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }
}

/// The address that stands for all of its family.
pub(super) fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// True when what is bound to `wide` has packets to `address`.
pub(super) fn covers(wide: IpAddr, address: IpAddr) -> bool {
    wide == address || wide == unspecified(address)
}

impl Demands {
    /// Everything that wants ports for itself, as it stands in the configuration.
    pub(super) fn claims(&self) -> Vec<Claim<'_>> {
        let mut claims = Vec::new();
        for Entrance { addresses, tcp, udp } in &self.entrances {
            for (protocol, ports) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
                claims.push(Claim { usage: Use::Entrance, addresses, protocol, ports });
            }
        }
        let forward = self.forward.iter().map(|forward| (Use::Forward, &forward.addresses, &forward.ports));
        let nat = self.nat.iter().map(|nat| (Use::Nat, &nat.addresses, &nat.ports));
        for (usage, addresses, ports) in forward.chain(nat) {
            claims.extend(Protocol::ALL.map(|protocol| Claim { usage, addresses, protocol, ports }));
        }
        claims
    }

    /// The addresses that the plan has ranges for: those named, and those of services inside an entrance for all
    /// addresses, which are different there.
    pub(super) fn cells(&self) -> Vec<IpAddr> {
        let claims = self.claims();
        let mut cells: Vec<IpAddr> = claims.iter().flat_map(|claim| claim.addresses).copied().collect();
        let entrances = || claims.iter().filter(|claim| claim.usage == Use::Entrance);
        for service in &self.services {
            let inside = |address: &&IpAddr| {
                entrances().any(|claim| {
                    let covered = claim.addresses.iter().any(|wide| covers(*wide, **address));
                    claim.protocol == service.protocol && claim.ports.contains(service.port) && covered
                })
            };
            cells.extend(service.addresses.iter().filter(inside));
        }
        cells.sort();
        cells.dedup();
        cells
    }

    /// True when a service has a port of an entrance, on an address of it.
    #[must_use]
    pub fn is_inside_entrance(&self, service: &Service) -> bool {
        let one: PortSet = [service.port].into_iter().collect();
        let theirs = Claim {
            usage: Use::Host,
            addresses: &service.addresses,
            protocol: service.protocol,
            ports: &one,
        };
        self.claims().iter().any(|claim| {
            claim.usage == Use::Entrance
                && claim.ports.contains(service.port)
                && claim.shared_address(&theirs).is_some()
        })
    }

    /// The ephemeral range, as a set.
    fn ephemeral_set(&self) -> PortSet {
        [self.ephemeral.clone()].into_iter().collect()
    }

    /// What is claimed of the ephemeral range where the host has connections of its own; `None` when it has nowhere
    /// left to have them.
    ///
    /// An address of which forwards and NAT take the whole range is theirs: the host leaves it to them, as long as
    /// it has another one of this family. The parameter counts for all addresses, so elsewhere their ports need not
    /// be protected.
    fn claimed(&self) -> Option<PortSet> {
        let claims = self.claims();
        let ephemeral = self.ephemeral_set();
        let mut all = PortSet::default();
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let named: Vec<IpAddr> = claims.iter().flat_map(|claim| claim.addresses).copied().collect();
            let own = |address: &&IpAddr| address.is_ipv4() == any.is_ipv4();
            let mut addresses: Vec<IpAddr> = named.iter().filter(own).copied().collect();
            if addresses.is_empty() {
                continue;
            }
            if addresses.iter().any(|address| *address != any) {
                addresses.retain(|address| *address != any);
            }
            let mut kept = false;
            for address in addresses {
                let on = |entrances: bool| {
                    let on = claims.iter().filter(|claim| {
                        (entrances || claim.usage != Use::Entrance)
                            && claim.addresses.iter().any(|other| covers(*other, address))
                    });
                    let ports: PortSet = on.flat_map(|claim| claim.ports.ranges().iter().cloned()).collect();
                    ports.both(&ephemeral)
                };
                if on(false) != ephemeral {
                    kept = true;
                    all = all.either(&on(true));
                }
            }
            if !kept {
                return None;
            }
        }
        Some(all)
    }

    /// What the kernel must not choose of the ephemeral range.
    #[must_use]
    pub fn protected(&self) -> PortSet {
        self.claimed().unwrap_or_else(|| self.ephemeral_set())
    }

    /// Source ports that are left for the host's own connections.
    #[must_use]
    pub fn source_ports(&self) -> PortSet {
        self.ephemeral_set().without(&self.protected()).without(&self.reserved)
    }
}
