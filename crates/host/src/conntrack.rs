//! Connections the kernel tracks, which is also what network address translation remembers.
//!
//! Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use netlink_packet_core::{DecodeError, DefaultNla};
use rustix::io::Errno;

use crate::netfilter::{Message, Netfilter, attribute, attributes, be, find, nest, write};
use crate::netlink::NetlinkFault;
use crate::netlink::connection::{Failure, ignore};

const SUBSYSTEM: u16 = 1;
const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const GET_STATISTICS: u16 = SUBSYSTEM << 8 | 5;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TIMEOUT: u16 = 7;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// The bit of a filter that says that the source address counts.
const BY_SOURCE: u32 = 1;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ICMP_ID: u16 = 4;
const ICMPV6_ID: u16 = 7;
const STATISTICS_ENTRIES: u16 = 1;
const STATISTICS_MAX: u16 = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;

const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// For up to so many addresses the kernel goes through all connections twice each; for more it lists all
/// once.
const FEW: usize = 3;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Direction {
    /// Where its packets come from. The port is the identifier for ICMP, and 0 for protocols that have
    /// neither.
    pub source: SocketAddr,
    /// Where they go; the same goes for the port.
    pub destination: SocketAddr,
}

/// A connection, or what the kernel takes for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tracked {
    /// The number of the protocol, such as 6 for TCP.
    pub protocol: u8,
    /// Packets of the side that began, before their addresses are changed.
    pub original: Direction,
    /// The answers, before their addresses are changed back: with a changed source address, this goes to that
    /// one.
    pub reply: Direction,
}

impl Tracked {
    /// Who began it, and who answers before addresses are changed back.
    pub(crate) fn sources(&self) -> [IpAddr; 2] {
        [self.original.source.ip(), self.reply.source.ip()]
    }
}

/// How full connection tracking is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Connections of this network namespace.
    pub count: u32,
    /// The most there may be in each network namespace; set by `net.netfilter.nf_conntrack_max` in the first
    /// one, see
    /// [`netns::is_initial`](crate::netns::is_initial).
    pub max: u32,
}

impl Netfilter {
    /// Forgets all connections that one of the addresses began, or answers before addresses are changed back.
    /// Their next packets begin new ones.
    ///
    /// # Errors
    /// Without privilege, or when the kernel does not track connections.
    pub fn forget_connections(&mut self, addresses: &[IpAddr]) -> Result<(), NetlinkFault> {
        let (mut v4, mut v6) = (HashSet::new(), HashSet::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.insert(*address),
                IpAddr::V6(address) => v6.insert(*address),
            };
        }
        self.forget_v4(&v4).map_err(|failure| failure.about(operation(addresses)))?;
        if v6.is_empty() {
            return Ok(());
        }
        // The kernel compares IPv6 addresses the wrong way round (Linux 6.18): its filter deletes all the others.
        let is_of = |source| matches!(source, IpAddr::V6(source) if v6.contains(&source));
        self.forget_listed(IPV6, |found| found.sources().into_iter().any(is_of))
            .map_err(|failure| failure.about(operation(addresses)))
    }

    /// Forgets these connections, as [`connections`](Self::connections) has listed them. Those that have ended meanwhile
    /// are passed over.
    ///
    /// # Errors
    /// As [`forget_connections`](Self::forget_connections).
    pub fn forget(&mut self, connections: &[Tracked]) -> Result<(), NetlinkFault> {
        if connections.is_empty() {
            return Ok(());
        }
        let wanted: HashSet<&Tracked> = connections.iter().collect();
        self.forget_listed(0, |found| wanted.contains(found))
            .map_err(|failure| failure.about("forget tracked connections".to_owned()))
    }

    fn forget_v4(&mut self, addresses: &HashSet<Ipv4Addr>) -> Result<(), Failure> {
        if addresses.len() <= FEW {
            match self.forget_filtered(addresses) {
                // An older kernel knows no filter for deleting, and takes what comes with it for half an
                // address pair.
                Err(Failure::Kernel { errno: Errno::INVAL | Errno::OPNOTSUPP, .. }) => {}
                result => return result,
            }
        }
        let is_of = |source| matches!(source, IpAddr::V4(source) if addresses.contains(&source));
        self.forget_listed(IPV4, |found| found.sources().into_iter().any(is_of))
    }

    fn forget_filtered(&mut self, addresses: &HashSet<Ipv4Addr>) -> Result<(), Failure> {
        for address in addresses {
            for tuple in [TUPLE_ORIGINAL, TUPLE_REPLY] {
                self.connection.request(filtered(*address, tuple), ignore)?;
            }
        }
        Ok(())
    }

    fn forget_listed(&mut self, family: u8, is_wanted: impl Fn(&Tracked) -> bool) -> Result<(), Failure> {
        let deletions = self.connection.list(&list(family), |message: Message, all| {
            if tracked(&message.attributes)?.is_some_and(|found| is_wanted(&found)) {
                all.push(deletion(&message)?);
            }
            Ok(())
        })?;
        for deletion in deletions {
            match self.connection.request(deletion, ignore) {
                // It ended meanwhile.
                Ok(_) | Err(Failure::Kernel { errno: Errno::NOENT, .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Keeps the translated ends of these connections, as [`connections`](Self::connections) has listed them, from being
    /// used for others for so many seconds: the kernel takes them for connections of this machine's own, so that what
    /// still arrives for them is answered by nobody. IPv4, TCP and UDP only; of others, and of those that are used
    /// already, nothing is changed.
    ///
    /// # Errors
    /// Without privilege, or when the kernel does not track connections.
    pub fn occupy(&mut self, connections: &[Tracked], seconds: u32) -> Result<(), NetlinkFault> {
        for placeholder in connections.iter().filter_map(|connection| placeholder(connection, seconds)) {
            match self.connection.create(placeholder) {
                Ok(()) | Err(Failure::Kernel { errno: Errno::EXIST, .. }) => {}
                Err(failure) => return Err(failure.about("keep ports of forgotten connections".to_owned())),
            }
        }
        Ok(())
    }

    /// All connections of this network namespace. What begins or ends meanwhile may be among them or not.
    ///
    /// # Errors
    /// Without privilege, or when the kernel does not track connections.
    pub fn connections(&mut self) -> Result<Vec<Tracked>, NetlinkFault> {
        let listed = self.connection.list(&list(0), |message: Message, all| {
            all.extend(tracked(&message.attributes)?);
            Ok(())
        });
        listed.map_err(|failure| failure.about("list tracked connections".to_owned()))
    }

    /// How many connections there are and may be.
    ///
    /// # Errors
    /// Without privilege, or when the kernel does not track connections or does not say how many.
    pub fn connection_usage(&mut self) -> Result<Usage, NetlinkFault> {
        let request = Message { kind: GET_STATISTICS, ..Message::default() };
        let take = |message: Message, all: &mut Vec<Usage>| {
            all.push(usage(&message.attributes)?);
            Ok(())
        };
        let answers = self.connection.request(request, take);
        let answer = answers.and_then(|answers| {
            answers.first().copied().ok_or_else(|| Failure::Answer("it does not say".to_owned()))
        });
        answer.map_err(|failure| failure.about("count tracked connections".to_owned()))
    }
}

/// A connection from the translated end itself to the other one.
fn placeholder(connection: &Tracked, seconds: u32) -> Option<Message> {
    let Tracked { protocol: protocol @ (TCP | UDP), reply, .. } = *connection else { return None };
    let (SocketAddr::V4(end), SocketAddr::V4(other)) = (reply.destination, reply.source) else { return None };
    let tuple = |kind, from: SocketAddrV4, to: SocketAddrV4| {
        let addresses = [attribute(1, from.ip().octets()), attribute(2, to.ip().octets())];
        let ports = [
            attribute(PROTOCOL_NUMBER, [protocol]),
            attribute(SOURCE_PORT, from.port().to_be_bytes()),
            attribute(DESTINATION_PORT, to.port().to_be_bytes()),
        ];
        nest(kind, &[nest(TUPLE_IP, &addresses), nest(TUPLE_PROTOCOL, &ports)])
    };
    let attributes = [
        tuple(TUPLE_ORIGINAL, end, other),
        tuple(TUPLE_REPLY, other, end),
        attribute(TIMEOUT, seconds.to_be_bytes()),
    ];
    Some(Message { kind: NEW, family: IPV4, resource: 0, attributes: write(&attributes) })
}

fn operation(addresses: &[IpAddr]) -> String {
    match addresses {
        [address] => format!("forget the connections of {address}"),
        _ => format!("forget the connections of {} addresses", addresses.len()),
    }
}

/// Lists the connections of a family; 0 is every one.
fn list(family: u8) -> Message {
    Message { kind: GET, family, ..Message::default() }
}

/// Deletes the connections with this source address in one direction. Never without the half pair of
/// addresses: an older kernel, which ignores the filter, would otherwise delete everything.
fn filtered(address: Ipv4Addr, tuple: u16) -> Message {
    let flags = |of: u16| if of == tuple { BY_SOURCE } else { 0 }.to_ne_bytes();
    let attributes = [
        nest(tuple, &[nest(TUPLE_IP, &[attribute(1, address.octets())])]),
        nest(
            FILTER,
            &[attribute(FILTER_ORIGINAL, flags(TUPLE_ORIGINAL)), attribute(FILTER_REPLY, flags(TUPLE_REPLY))],
        ),
    ];
    Message { kind: DELETE, family: IPV4, resource: 0, attributes: write(&attributes) }
}

/// Deletes a listed connection and no later one with the same addresses and ports.
fn deletion(listed: &Message) -> Result<Message, DecodeError> {
    let mut known_by: Vec<DefaultNla> = Vec::new();
    for kind in [TUPLE_ORIGINAL, ID, ZONE] {
        if let Some(value) = find(&listed.attributes, kind)? {
            // Attributes of attributes are as they came, flags and all.
            known_by.push(match kind {
                TUPLE_ORIGINAL => attribute(kind | netlink_packet_core::NLA_F_NESTED, value),
                _ => attribute(kind, value),
            });
        }
    }
    Ok(Message { kind: DELETE, family: listed.family, resource: 0, attributes: write(&known_by) })
}

/// Reads a connection; `None` for one without addresses.
fn tracked(bytes: &[u8]) -> Result<Option<Tracked>, DecodeError> {
    let (Some(original), Some(reply)) = (find(bytes, TUPLE_ORIGINAL)?, find(bytes, TUPLE_REPLY)?) else {
        return Ok(None);
    };
    let (Some((protocol, original)), Some((_, reply))) = (direction(original)?, direction(reply)?) else {
        return Ok(None);
    };
    Ok(Some(Tracked { protocol, original, reply }))
}

fn direction(tuple: &[u8]) -> Result<Option<(u8, Direction)>, DecodeError> {
    let (mut source, mut destination) = (None, None);
    for next in attributes(find(tuple, TUPLE_IP)?.unwrap_or_default()) {
        match next? {
            (1, value) => source = Some(IpAddr::from(be::<4>(value)?)),
            (2, value) => destination = Some(IpAddr::from(be::<4>(value)?)),
            (3, value) => source = Some(IpAddr::from(be::<16>(value)?)),
            (4, value) => destination = Some(IpAddr::from(be::<16>(value)?)),
            _ => {}
        }
    }
    let (mut protocol, mut from, mut to) = (0, 0, 0);
    for next in attributes(find(tuple, TUPLE_PROTOCOL)?.unwrap_or_default()) {
        match next? {
            (PROTOCOL_NUMBER, value) => [protocol] = be(value)?,
            (SOURCE_PORT, value) => from = u16::from_be_bytes(be(value)?),
            (DESTINATION_PORT, value) => to = u16::from_be_bytes(be(value)?),
            (ICMP_ID | ICMPV6_ID, value) => {
                from = u16::from_be_bytes(be(value)?);
                to = from;
            }
            _ => {}
        }
    }
    let (Some(source), Some(destination)) = (source, destination) else { return Ok(None) };
    let direction = Direction { source: (source, from).into(), destination: (destination, to).into() };
    Ok(Some((protocol, direction)))
}

fn usage(bytes: &[u8]) -> Result<Usage, DecodeError> {
    let number = |kind| match find(bytes, kind)? {
        Some(value) => Ok(u32::from_be_bytes(be(value)?)),
        None => Err(DecodeError::from(format!("attribute {kind} is missing"))),
    };
    Ok(Usage { count: number(STATISTICS_ENTRIES)?, max: number(STATISTICS_MAX)? })
}

#[cfg(test)]
mod tests;
