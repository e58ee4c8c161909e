//! Capture without a program: filter rules divert packets to the sockets (TPROXY).
//!
//! It serves kernels that take no program, and addresses that are not this machine's but are routed to it: packets to
//! those are marked, and what is marked is for this machine. Connections and connected sockets keep what is theirs, and
//! everything else is as with the program: bound sockets come second, spared services first.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::{CapturePlan, Means, Ports, Spared, Target};
use crate::netlink::{Mark, Netlink, Route, RouteKind, Rule};
use crate::nft::Family;
use crate::plumbing::{HostState, NftTable};
use crate::services::Transport;
use crate::udp::{UdpOptions, UdpSocket};

/// Name of the filter table.
const NAME: &str = "adit-entrance";
/// Mark of packets to addresses that are not this machine's, their routing table, and the rule that leads there.
const MARK: u32 = 0xad18;
const TABLE: u32 = 44_312;
const PRIORITY: u32 = 4432;

/// Where to divert to. Without sockets, as it is by default, nothing is diverted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diversion {
    sockets: Vec<(Transport, SocketAddr)>,
    /// The kernel takes no programs.
    pub(super) all: bool,
}

impl Diversion {
    pub(super) fn add(&mut self, transport: Transport, socket: SocketAddr) {
        self.sockets.push((transport, socket));
    }

    /// What the machine has to have so that the plan's diverted ports arrive, in the calling thread's network namespace:
    /// nothing when all is left to programs.
    #[must_use]
    pub fn host_state(&self, plan: &CapturePlan) -> HostState {
        let mut state = HostState::default();
        if self.sockets.is_empty() {
            return state;
        }
        let diverted: Vec<&Ports> = plan.entrances.iter().filter(|entrance| self.diverts(entrance)).collect();
        if diverted.is_empty() {
            return state;
        }
        state.tables.push(NftTable {
            family: Family::Inet,
            name: NAME.to_owned(),
            ruleset: self.ruleset(&diverted, &plan.spared),
        });
        for everything in [IpNet::V4(Default::default()), IpNet::V6(Default::default())] {
            let v6 = matches!(everything, IpNet::V6(_));
            let marks = |entrance: &&Ports| match entrance.target {
                Target::Address(address) => address.is_ipv6() == v6,
                _ => false,
            };
            if diverted.iter().any(marks) {
                let local = Route::new(everything, RouteKind::Local);
                state.routes.push(Route { table: TABLE, interface: Some("lo".to_owned()), ..local });
                let mark = Some(Mark::exactly(MARK));
                state.rules.push(Rule { mark, ..Rule::new(v6, PRIORITY, TABLE) });
            }
        }
        state
    }

    fn diverts(&self, entrance: &Ports) -> bool {
        match (entrance.means, &entrance.target) {
            (Means::SkLookup, _) => false,
            (Means::Tproxy, _) => true,
            (Means::Auto, _) if self.all => true,
            (Means::Auto, Target::Address(address)) => is_foreign(*address),
            (Means::Auto, _) => false,
        }
    }

    fn ruleset(&self, diverted: &[&Ports], spared: &[Spared]) -> String {
        let mut rules = String::new();
        let mut rule = |text: String| {
            // Writing to a string does not fail.
            let _ = writeln!(rules, "        {text}");
        };
        for transport in [Transport::Udp, Transport::Tcp] {
            let protocol = name_of(transport);
            let of_all = |v6: bool| {
                let ports = spared.iter().filter(|service| {
                    service.transport == transport
                        && service.address.ip().is_unspecified()
                        && service.address.is_ipv6() == v6
                });
                set(ports.map(|service| service.address.port()))
            };
            let of_one = |v6: bool| {
                let services = spared.iter().filter(|service| {
                    service.transport == transport
                        && !service.address.ip().is_unspecified()
                        && service.address.is_ipv6() == v6
                });
                set(services.map(|service| format!("{} . {}", service.address.ip(), service.address.port())))
            };
            for (v6, family, version) in [(false, "ip", "ipv4"), (true, "ip6", "ipv6")] {
                if let Some(ports) = of_all(v6) {
                    rule(format!("meta nfproto {version} {protocol} dport {ports} return"));
                }
                if let Some(services) = of_one(v6) {
                    rule(format!("{family} daddr . {protocol} dport {services} return"));
                }
            }
        }
        for entrance in diverted {
            for (transport, socket) in &self.sockets {
                let (family, version) = if socket.is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
                let local = format!("meta nfproto {version} fib daddr type local");
                let (condition, mark) = match &entrance.target {
                    Target::Everything => (local, String::new()),
                    Target::Ipv4 if socket.is_ipv4() => (local, String::new()),
                    Target::Interface(name) => (format!("iifname \"{name}\" {local}"), String::new()),
                    Target::Address(address) if address.is_ipv4() == socket.is_ipv4() => {
                        (format!("{family} daddr {address}"), format!(" meta mark set {MARK:#x}"))
                    }
                    Target::Ipv4 | Target::Address(_) => continue,
                };
                let ports = match transport {
                    Transport::Udp => &entrance.udp,
                    Transport::Tcp => &entrance.tcp,
                };
                if let Some(ports) = set(merged(ports)) {
                    let protocol = name_of(*transport);
                    rule(format!(
                        "{condition} {protocol} dport {ports} tproxy {family} to {socket}{mark} accept"
                    ));
                }
            }
        }
        format!(
            "table inet {NAME} {{\n    chain divert {{\n        type filter hook prerouting priority mangle;\n{rules}    \
             }}\n}}\n"
        )
    }
}

/// No address of this machine; one that is about to be is none either.
fn is_foreign(address: IpAddr) -> bool {
    if UdpSocket::bind(SocketAddr::new(address, 0), &UdpOptions::default()).is_ok() {
        return false;
    }
    // An IPv6 address cannot be bound while it is being checked for duplicates.
    let addresses = Netlink::open().and_then(|mut netlink| netlink.addresses());
    !addresses.is_ok_and(|all| all.iter().any(|known| known.address.addr() == address))
}

fn name_of(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

/// Ranges in order that do not overlap, which a set takes; nobody dials port 0.
fn merged(ranges: &[RangeInclusive<u16>]) -> Vec<String> {
    let mut sorted: Vec<(u16, u16)> = ranges
        .iter()
        .map(|range| ((*range.start()).max(1), *range.end()))
        .filter(|(from, to)| from <= to)
        .collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (from, to) in sorted {
        match merged.last_mut() {
            Some((_, last)) if from <= last.saturating_add(1) => *last = to.max(*last),
            _ => merged.push((from, to)),
        }
    }
    merged
        .into_iter()
        .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
        .collect()
}

/// An anonymous set, each element once; `None` when there is nothing in it, which nft does not take.
fn set<T: std::fmt::Display + Ord>(elements: impl IntoIterator<Item = T>) -> Option<String> {
    let mut elements: Vec<T> = elements.into_iter().collect();
    elements.sort_unstable();
    elements.dedup();
    let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
    (!elements.is_empty()).then(|| format!("{{ {} }}", elements.join(", ")))
}
