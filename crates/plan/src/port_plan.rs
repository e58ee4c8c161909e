//! Who uses which port: entrances, customers' forwards, source ports of NAT, the host's services and the host's own
//! source ports are one constraint system for each address and protocol.
//!
//! Two uses of one port are an accident that waits: NAT that takes a listener's port as source port lets the peer of
//! a client reach the client instead of the listener. So a plan that overlaps is refused, and one that would work
//! suggested.
//!
//! ```
//! use adit_plan::port_plan::{Demands, Entrance, Nat, PortPlan};
//!
//! let address = "192.0.2.1".parse().unwrap();
//! let ports = |text: &str| text.parse().unwrap();
//! let demands = Demands {
//!     entrances: vec![Entrance { addresses: vec![address], tcp: ports("1-29999"), udp: ports("1-29999") }],
//!     nat: Some(Nat { addresses: vec![address], ports: ports("1280-65535"), block: 64 }),
//!     ..Demands::default()
//! };
//! let problems = PortPlan::solve(&demands).unwrap_err();
//! assert_eq!(problems[0].message, "nat 1280-65535 overlaps entrance 1-29999 on 192.0.2.1 tcp");
//! assert!(problems[0].hint.contains("[nat] ports = \"30000-64511\""));
//! ```

mod demand;
mod suggest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use self::demand::{Claim, covers};
pub use self::demand::{Demands, Entrance, Forward, Nat, Service};
use crate::ports::PortSet;

/// The default for entrances.
pub const ENTRANCES: RangeInclusive<u16> = 1..=29_999;
/// The default for customers' forwards.
pub const FORWARDS: RangeInclusive<u16> = 30_000..=39_999;
/// The default for source ports of clients' connections: 383 blocks of 64.
pub const NAT: RangeInclusive<u16> = 40_000..=64_511;
/// The default for source ports of the host's own connections.
pub const EPHEMERAL: RangeInclusive<u16> = 64_512..=65_535;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// Clients come in here.
    Entrance,
    /// Forwarded to a client.
    Forward,
    /// Source port of clients' connections.
    Nat,
    /// The host's own: a service, or source port of its connections.
    Host,
    /// Nothing.
    Free,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Entrance => "entrance",
            Self::Forward => "forward",
            Self::Nat => "nat",
            Self::Host => "host",
            Self::Free => "free",
        })
    }
}

/// Why demands cannot all be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The kind: `overlap`, `nat-ports` (NAT has no source ports), `host-ports` (the host has none).
    pub code: &'static str,
    /// What and where.
    pub message: String,
    /// What to do: if there is one, a plan that works, in the words of the configuration.
    pub hint: String,
}

/// A range of ports with one use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The address; an unspecified one stands for all of its family that have no ranges of their own.
    pub address: IpAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// First and last port.
    pub ports: RangeInclusive<u16>,
    /// What they are for.
    pub usage: Use,
}

/// A plan in which no port has two uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    ranges: Vec<Range>,
    protected: PortSet,
}

impl PortPlan {
    /// Meets all demands, or says what is in the way.
    ///
    /// Ports of services are left out of entrances. What is claimed inside the ephemeral range is no source port of
    /// the host: see [`protected`](Self::protected).
    ///
    /// # Errors
    /// Every [`Problem`], in the order in which a reader expects them: entrances, forwards, NAT, the host.
    pub fn solve(demands: &Demands) -> Result<Self, Vec<Problem>> {
        let claims = demands.claims();
        let mut problems = problems(demands, &claims);
        if problems.is_empty() {
            return Ok(Self::preview(demands));
        }
        if let Some(better) = suggest::suggest(demands) {
            let works = suggest::difference(demands, &better);
            for problem in &mut problems {
                problem.hint.push_str(&format!("; this would work: {works}"));
            }
        }
        Err(problems)
    }

    /// The plan in which of several who want a port the first gets it: entrances, forwards, NAT, the host. It shows
    /// what demands that cannot all be met amount to. What is bound already stays its program's.
    #[must_use]
    pub fn preview(demands: &Demands) -> Self {
        Self { ranges: ranges(demands, &demands.claims()), protected: demands.protected() }
    }

    /// All ranges: for each address and protocol every port from 1 to 65535 once, ascending.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The ports of one use on an address; one without ranges of its own has those of all addresses.
    #[must_use]
    pub fn ports(&self, address: IpAddr, protocol: Protocol, usage: Use) -> PortSet {
        let cell = match self.ranges.iter().any(|range| range.address == address) {
            true => address,
            false => demand::unspecified(address),
        };
        let fits = |range: &&Range| (range.address, range.protocol, range.usage) == (cell, protocol, usage);
        self.ranges.iter().filter(fits).map(|range| range.ports.clone()).collect()
    }

    /// Ports in the ephemeral range that the kernel must not choose for the host's own connections.
    #[must_use]
    pub fn protected(&self) -> &PortSet {
        &self.protected
    }
}

fn problems(demands: &Demands, claims: &[Claim<'_>]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut problem = |code, message, hint: &str| {
        found.push(Problem { code, message, hint: hint.to_owned() });
    };
    for (index, one) in claims.iter().enumerate() {
        for earlier in claims.iter().take(index) {
            let Some(address) = one.shared_address(earlier) else { continue };
            let Some((mine, theirs)) = one.ports.overlap(earlier.ports) else { continue };
            let (mine, theirs) = (described(one.usage, &mine), described(earlier.usage, &theirs));
            let same = one.usage == earlier.usage;
            let (first, second) = if same { (theirs, mine) } else { (mine, theirs) };
            let protocol = one.protocol;
            problem(
                "overlap",
                format!("{first} overlaps {second} on {address} {protocol}"),
                "take the ports out of one of the two",
            );
        }
    }
    for claim in claims.iter().filter(|claim| claim.usage != Use::Entrance) {
        for service in demands.services.iter().filter(|service| claim.is_hit_by(service)) {
            let port = service.port..=service.port;
            let range = claim.ports.ranges().iter().find(|range| range.contains(&service.port));
            let claimed = described(claim.usage, range.unwrap_or(&port));
            problem(
                "overlap",
                format!(
                    "{claimed} overlaps {} on {} {}",
                    described(Use::Host, &port),
                    claim.address_of(service),
                    claim.protocol
                ),
                "stop the program that uses the port, or take the port out of the range",
            );
        }
    }
    if let Some(nat) = &demands.nat
        && (nat.addresses.is_empty() || nat.ports.is_empty() || nat.ports.count() < usize::from(nat.block))
    {
        let (ports, block) = (&nat.ports, nat.block);
        let message = match (nat.addresses.is_empty(), nat.ports.is_empty()) {
            (true, _) => "nat has no address".to_owned(),
            (_, true) => "nat has no source ports".to_owned(),
            _ => format!("nat {ports} holds no block of {block} ports"),
        };
        problem("nat-ports", message, "give NAT an address and a range of at least one block");
    }
    if demands.source_ports().is_empty() {
        let (from, to) = demands.ephemeral.clone().into_inner();
        problem(
            "host-ports",
            format!("the host has no source ports for its own connections: all of {from}-{to} is taken"),
            "leave a range such as 64512-65535 out of entrances, forwards and NAT",
        );
    }
    found
}

/// A use with a range, as `nat 1280-65535`.
fn described(usage: Use, range: &RangeInclusive<u16>) -> String {
    let set: PortSet = [range.clone()].into_iter().collect();
    format!("{usage} {set}")
}

fn ranges(demands: &Demands, claims: &[Claim<'_>]) -> Vec<Range> {
    let mut all = Vec::new();
    let source_ports = demands.source_ports();
    for address in demands.cells() {
        for protocol in Protocol::ALL {
            let services = demands.services.iter().filter(|service| service.protocol == protocol);
            let services = services.filter(|s| s.addresses.iter().any(|other| covers(*other, address)));
            let services: PortSet = services.map(|service| service.port).collect();
            let claimed = |usage| {
                let mine = claims.iter().filter(|claim| claim.usage == usage && claim.protocol == protocol);
                let mine = mine.filter(|claim| claim.addresses.iter().any(|other| covers(*other, address)));
                let ports: PortSet = mine.flat_map(|claim| claim.ports.ranges().iter().cloned()).collect();
                ports.without(&services)
            };
            let entrance = claimed(Use::Entrance);
            let forward = claimed(Use::Forward).without(&entrance);
            let taken = entrance.either(&forward);
            let nat = claimed(Use::Nat).without(&taken);
            let taken = taken.either(&nat);
            let host = services.either(&source_ports).without(&taken);
            let free = taken.either(&host).others();
            let uses = [
                (Use::Entrance, entrance),
                (Use::Forward, forward),
                (Use::Nat, nat),
                (Use::Host, host),
                (Use::Free, free),
            ];
            let first = all.len();
            for (usage, ports) in uses {
                let new = ports.ranges().iter().cloned();
                all.extend(new.map(|ports| Range { address, protocol, ports, usage }));
            }
            if let Some(new) = all.get_mut(first..) {
                new.sort_by_key(|range: &Range| *range.ports.start());
            }
        }
    }
    all
}
