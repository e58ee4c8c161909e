//! Routes.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::address::family;
use super::{IfExists, MAIN_TABLE, Netlink, NetlinkFault, PROTOCOL};

/// What a route does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Sends them on.
    Unicast,
    /// Takes them for this machine's own.
    Local,
    /// Answers that there is no way.
    Unreachable,
    /// Drops them silently.
    Blackhole,
    /// Something else; routes of this kind are listed and not made.
    Other(u8),
}

/// A path MTU that is set by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PathMtu {
    /// The largest packet, in bytes.
    pub bytes: u32,
    /// What ICMP reports does not change it.
    pub locked: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Where packets are to go.
    pub destination: IpNet,
    /// What happens to them.
    pub kind: RouteKind,
    /// The routing table.
    pub table: u32,
    /// The interface they leave by; none for unreachable and blackhole.
    pub interface: Option<String>,
    /// The next router; none when the destination is on the interface's own network.
    pub gateway: Option<IpAddr>,
    /// Of several routes to one destination the one with the smallest counts. `None` is the kernel's default:
    /// 0 for IPv4, 1024 for IPv6.
    pub metric: Option<u32>,
    /// The source address of packets that have none yet.
    pub source: Option<IpAddr>,
    /// Path MTU, when not the interface's.
    pub mtu: Option<PathMtu>,
    /// Who made it; [`PROTOCOL`] is adit.
    pub protocol: u8,
}

impl Route {
    /// A route of adit's in the main table.
    #[must_use]
    pub fn new(destination: IpNet, kind: RouteKind) -> Self {
        Self {
            destination: destination.trunc(),
            kind,
            table: MAIN_TABLE,
            interface: None,
            gateway: None,
            metric: None,
            source: None,
            mtu: None,
            protocol: PROTOCOL,
        }
    }

    /// A route of adit's in the main table to what is reached directly by `interface`.
    #[must_use]
    pub fn by_interface(destination: IpNet, interface: &str) -> Self {
        Self { interface: Some(interface.to_owned()), ..Self::new(destination, RouteKind::Unicast) }
    }

    /// A route of adit's in the main table by way of `gateway`.
    #[must_use]
    pub fn by_gateway(destination: IpNet, gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..Self::new(destination, RouteKind::Unicast) }
    }

    /// Whether `listed`, as the kernel tells it, is this route: what this route leaves open may be anything,
    /// and who made it makes no difference.
    #[must_use]
    pub fn matches(&self, listed: &Self) -> bool {
        fn open<T: PartialEq>(wanted: Option<&T>, listed: Option<&T>) -> bool {
            wanted.is_none() || wanted == listed
        }
        self.destination.trunc() == listed.destination
            && self.kind == listed.kind
            && self.table == listed.table
            && self.effective_metric() == listed.effective_metric()
            && self.gateway == listed.gateway
            && open(self.interface.as_ref(), listed.interface.as_ref())
            && open(self.source.as_ref(), listed.source.as_ref())
            && open(self.mtu.as_ref(), listed.mtu.as_ref())
    }

    fn effective_metric(&self) -> u32 {
        // The kernel reads 0 as its default for IPv6.
        match (self.metric.unwrap_or(0), self.destination) {
            (0, IpNet::V6(_)) => 1024,
            (metric, _) => metric,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("route ")?;
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Other(kind) => write!(f, "type {kind} ")?,
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " dev {interface}")?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {}{}", if mtu.locked { "lock " } else { "" }, mtu.bytes)?;
        }
        Ok(())
    }
}

/// How the kernel would send a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTo {
    /// [`RouteKind::Local`] when the destination is this machine itself.
    pub kind: RouteKind,
    /// Number of the interface it leaves by.
    pub interface_index: u32,
    /// Its name.
    pub interface: String,
    /// The next router; none when the destination is on the interface's own network.
    pub gateway: Option<IpAddr>,
    /// The source address it would get.
    pub source: Option<IpAddr>,
}

impl Netlink {
    /// All routes of all tables, IPv4 first. Routes over several next hops are left out.
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkFault> {
        let names = self.link_names()?;
        let mut routes = Vec::new();
        for any in [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())] {
            let mut request = RouteMessage::default();
            request.header.address_family = family(any.addr());
            let answers = self.dump(&RouteNetlinkMessage::GetRoute(request), "list routes")?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => read(&message, &names, any),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Adds a route; says whether it was not there. With [`IfExists::Keep`] any route to the same destination
    /// with the same table and metric counts as being there.
    ///
    /// # Errors
    /// When its interface does not exist or its gateway cannot be reached, or without privilege.
    pub fn add_route(&mut self, route: &Route, existing: IfExists) -> Result<bool, NetlinkFault> {
        let operation = || format!("add {route}");
        let message = self.route_message(route, operation)?;
        self.add(RouteNetlinkMessage::NewRoute(message), existing, operation)
    }

    /// Deletes a route. Only one made by [`Route::protocol`] is deleted.
    ///
    /// # Errors
    /// When it is not there, see [`NetlinkFault::is_missing`].
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkFault> {
        let operation = || format!("delete {route}");
        let message = self.route_message(route, operation)?;
        self.request(RouteNetlinkMessage::DelRoute(message), operation).map(drop)
    }

    /// How the kernel would send a packet to `address` that carries `mark` (0 for none); `None` when it would
    /// not. See [`route_by`](Self::route_by).
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn route_to(&mut self, address: IpAddr, mark: u32) -> Result<Option<RouteTo>, NetlinkFault> {
        self.route_by(address, mark, None)
    }

    /// The same for a socket that may use only the interface with this index.
    ///
    /// # Errors
    /// As [`route_to`](Self::route_to).
    pub fn route_by(
        &mut self,
        address: IpAddr,
        mark: u32,
        interface: Option<u32>,
    ) -> Result<Option<RouteTo>, NetlinkFault> {
        let operation = || format!("find the route to {address}");
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(address.into()));
        if mark != 0 {
            message.attributes.push(RouteAttribute::Mark(mark));
        }
        if let Some(index) = interface {
            message.attributes.push(RouteAttribute::Oif(index));
        }
        let answers = match self.request(RouteNetlinkMessage::GetRoute(message), operation) {
            Ok(answers) => answers,
            // Unreachable, blackhole and prohibit routes answer with these.
            Err(NetlinkFault::Refused {
                errno: Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL | Errno::ACCESS,
                ..
            }) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let mut to = RouteTo {
            kind: RouteKind::Unicast,
            interface_index: 0,
            interface: String::new(),
            gateway: None,
            source: None,
        };
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(message) = answer else {
                continue;
            };
            to.kind = kind_from_kernel(message.header.kind);
            if !matches!(to.kind, RouteKind::Unicast | RouteKind::Local) {
                return Ok(None);
            }
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => to.interface_index = index,
                    RouteAttribute::Gateway(gateway) => to.gateway = ip(&gateway),
                    RouteAttribute::PrefSource(source) => to.source = ip(&source),
                    _ => {}
                }
            }
        }
        if let Some(name) = self.link_names()?.remove(&to.interface_index) {
            to.interface = name;
        }
        Ok(Some(to))
    }

    fn route_message(
        &self,
        route: &Route,
        operation: impl Fn() -> String,
    ) -> Result<RouteMessage, NetlinkFault> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(route.destination.addr()),
            destination_prefix_length: route.destination.prefix_len(),
            protocol: RouteProtocol::from(route.protocol),
            scope: scope(route),
            kind: kind_to_kernel(route.kind),
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(route.table));
        attributes.push(RouteAttribute::Destination(route.destination.network().into()));
        if let Some(interface) = &route.interface {
            attributes.push(RouteAttribute::Oif(self.index_for(interface, operation)?));
        }
        attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(route.metric.map(RouteAttribute::Priority));
        if let Some(PathMtu { bytes, locked }) = route.mtu {
            let mut metrics = vec![RouteMetric::Mtu(bytes)];
            if locked {
                metrics.push(RouteMetric::Lock(MTU_LOCK));
            }
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        Ok(message)
    }
}

/// The bit of `RTAX_LOCK` that stands for `RTAX_MTU`, which is metric 2.
const MTU_LOCK: u32 = 1 << 2;

/// How far away an IPv4 destination is; the kernel ignores it for IPv6.
fn scope(route: &Route) -> RouteScope {
    match (route.kind, route.gateway) {
        (RouteKind::Local, _) => RouteScope::Host,
        (RouteKind::Unicast, None) => RouteScope::Link,
        _ => RouteScope::Universe,
    }
}

fn kind_to_kernel(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Other(kind) => RouteType::from(kind),
    }
}

fn kind_from_kernel(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::BlackHole => RouteKind::Blackhole,
        other => RouteKind::Other(other.into()),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn read(message: &RouteMessage, names: &HashMap<u32, String>, any: IpNet) -> Option<Route> {
    // A cached answer is no route.
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut route = Route {
        table: message.header.table.into(),
        protocol: message.header.protocol.into(),
        ..Route::new(any, kind_from_kernel(message.header.kind))
    };
    let mut destination = any.addr();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => route.interface = names.get(index).cloned(),
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::MultiPath(_) => return None,
            RouteAttribute::Metrics(metrics) => route.mtu = read_mtu(metrics),
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(route)
}

fn read_mtu(metrics: &[RouteMetric]) -> Option<PathMtu> {
    let bytes = metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(bytes) => Some(*bytes),
        _ => None,
    })?;
    let locked =
        metrics.iter().any(|metric| matches!(metric, RouteMetric::Lock(bits) if bits & MTU_LOCK != 0));
    Some(PathMtu { bytes, locked })
}
