//! A plan that works, near the one that does not.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::demand::{Claim, Demands};
use super::{ENTRANCES, EPHEMERAL, FORWARDS, NAT, Protocol, Use, problems};
use crate::ports::PortSet;

/// Demands that can be met and are like these: first what is wanted is only made smaller, in the order NAT,
/// forwards, later entrances, earlier entrances; if that does not do, each kind gets its default range.
pub(super) fn suggest(demands: &Demands) -> Option<Demands> {
    let anything = PortSet::default().others();
    let small = |ephemeral: RangeInclusive<u16>| {
        let demands = Demands { ephemeral, ..demands.clone() };
        let forward = demands.forward.as_ref().map_or(PortSet::default(), |forward| forward.ports.clone());
        let nat = demands.nat.as_ref().map_or(PortSet::default(), |nat| nat.ports.clone());
        smaller(&demands, &anything, &forward, &nat)
    };
    let defaults = || {
        let demands = Demands { ephemeral: EPHEMERAL, ..demands.clone() };
        smaller(&demands, &set(ENTRANCES), &set(FORWARDS), &set(NAT))
    };
    let candidates = [small(demands.ephemeral.clone()), small(EPHEMERAL), defaults()];
    candidates.into_iter().flatten().find(|candidate| problems(candidate, &candidate.claims()).is_empty())
}

fn set(range: RangeInclusive<u16>) -> PortSet {
    [range].into_iter().collect()
}

/// Gives in the order of rank what is still there of `entrances`, `forward` and `nat`. The host keeps all of its
/// ephemeral range if it would have nothing else. `None` when somebody would get nothing.
fn smaller(demands: &Demands, entrances: &PortSet, forward: &PortSet, nat: &PortSet) -> Option<Demands> {
    let host =
        if demands.source_ports().is_empty() { set(demands.ephemeral.clone()) } else { PortSet::default() };
    let mut better = Demands { entrances: Vec::new(), forward: None, nat: None, ..demands.clone() };
    for entrance in &demands.entrances {
        let given = |protocol, ports: &PortSet| {
            let wanted = ports.both(entrances).without(&host);
            left(&better, Use::Entrance, &entrance.addresses, protocol, &wanted)
        };
        let (tcp, udp) = (given(Protocol::Tcp, &entrance.tcp), given(Protocol::Udp, &entrance.udp));
        let nothing = tcp.is_empty() && udp.is_empty();
        if nothing && !(entrance.tcp.is_empty() && entrance.udp.is_empty()) {
            return None;
        }
        better.entrances.push(super::Entrance { tcp, udp, addresses: entrance.addresses.clone() });
    }
    let both = |better: &Demands, usage, addresses: &[IpAddr], wanted: &PortSet| {
        let given = |protocol| left(better, usage, addresses, protocol, wanted);
        given(Protocol::Tcp).both(&given(Protocol::Udp))
    };
    if let Some(wanted) = &demands.forward {
        let ports = both(&better, Use::Forward, &wanted.addresses, &forward.without(&host));
        if ports.is_empty() {
            return None;
        }
        better.forward = Some(super::Forward { ports, addresses: wanted.addresses.clone() });
    }
    if let Some(wanted) = &demands.nat {
        let ports = both(&better, Use::Nat, &wanted.addresses, &nat.without(&host));
        let longest = ports.ranges().iter().max_by_key(|range| range.end() - range.start())?;
        better.nat = Some(super::Nat { ports: set(longest.clone()), ..wanted.clone() });
    }
    Some(better)
}

/// Those of the ports that nobody in `given` has, nor a program of the host if they are not for an entrance.
fn left(given: &Demands, usage: Use, addresses: &[IpAddr], protocol: Protocol, wanted: &PortSet) -> PortSet {
    let all = PortSet::default().others();
    let claim = Claim { usage, addresses, protocol, ports: &all };
    let others = given.claims();
    let others = others.iter().filter(|other| claim.shared_address(other).is_some());
    let mut left = others.fold(wanted.clone(), |left, other| left.without(other.ports));
    if usage != Use::Entrance {
        let services = given.services.iter().filter(|service| claim.is_hit_by(service));
        left = left.without(&services.map(|service| service.port).collect());
    }
    left
}

/// What is different in `better`, as it is written in the configuration.
pub(super) fn difference(demands: &Demands, better: &Demands) -> String {
    let mut lines = Vec::new();
    let several = demands.entrances.len() > 1;
    for (index, (old, new)) in demands.entrances.iter().zip(&better.entrances).enumerate() {
        let number = if several { format!(" number {}", index + 1) } else { String::new() };
        for (protocol, old, new) in [("tcp", &old.tcp, &new.tcp), ("udp", &old.udp, &new.udp)] {
            if old != new {
                lines.push(format!("[[entrance]]{number} {protocol} = \"{new}\""));
            }
        }
    }
    let ports = |one: &Option<super::Forward>| one.as_ref().map(|forward| forward.ports.clone());
    if let Some(new) = ports(&better.forward).filter(|new| ports(&demands.forward).as_ref() != Some(new)) {
        lines.push(format!("[forward] ports = \"{new}\""));
    }
    let ports = |one: &Option<super::Nat>| one.as_ref().map(|nat| nat.ports.clone());
    if let Some(new) = ports(&better.nat).filter(|new| ports(&demands.nat).as_ref() != Some(new)) {
        lines.push(format!("[nat] ports = \"{new}\""));
    }
    if demands.ephemeral != better.ephemeral {
        lines.push(format!("[host] ephemeral = \"{}\"", set(better.ephemeral.clone())));
    }
    lines.join(", ")
}
