//! The plan as plain rules for a host without adit: every port leads to the server of the right identity, each of
//! which listens on its own port.
//!
//! Two ways to tell identities apart, as they were published for this purpose ("port striping"): by the port that
//! is dialled, or by the first packet, whose length and opcode differ between wraps. By the first packet, the
//! identities with one wrap look alike; one of them leads and gets all ports but the others' own.

mod haproxy;
mod iptables;
mod nft;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::pattern::{FixedByte, Pattern};
use crate::ports::PortSet;

/// The server of the identity without a port of its own, and where HAProxy listens.
const DEFAULT_PORT: u16 = 443;
/// That server's TCP port behind HAProxy.
const BEHIND_HAPROXY: u16 = 1194;
/// Ports for further identities that have none; the published rules use these.
const FURTHER_PORTS: RangeInclusive<u16> = 5060..=5999;

/// Where clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// The address; unspecified for all of its family.
    pub address: IpAddr,
    /// UDP ports.
    pub udp: PortSet,
    /// TCP ports.
    pub tcp: PortSet,
}

/// How control packets are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrap {
    /// Not at all.
    None,
    /// With an HMAC of so many bytes.
    TlsAuth(usize),
    /// With one key for all.
    TlsCrypt,
    /// With a key for each client, which the first packet carries.
    TlsCryptV2,
}

/// A server identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// How its clients wrap control packets.
    pub wrap: Wrap,
    /// The port of its server; the first identity without one is on 443.
    pub port: Option<u16>,
}

/// What is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where clients come in.
    pub entrances: Vec<Entrance>,
    /// Whom they may want.
    pub identities: Vec<Identity>,
    /// Where the servers are; `None` for the host that the rules are for.
    pub to: Option<IpAddr>,
}

/// For what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// nftables: UDP by first packet, TCP to HAProxy.
    Nft,
    /// iptables-restore: by port. With a stage, for so many ports besides the default one.
    IptablesV1 {
        /// 0, 1 or 3 for the published lists of two, six and ten rules.
        others: Option<usize>,
    },
    /// iptables-restore: UDP by first packet, TCP to HAProxy.
    IptablesV2,
    /// HAProxy: TCP by first packet.
    Haproxy {
        /// Log what first packets measure.
        measure: bool,
    },
}

/// Why there is nothing to export.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportFault {
    /// Nobody could be reached.
    #[error("there is no [[identity]]: nothing to send clients to; add one")]
    NoIdentity,
    /// No ports, or none of the family that the format is for.
    #[error("no [[entrance]] has ports that these rules could be for{0}")]
    NoEntrance(&'static str),
    /// Two servers on one port.
    #[error("identities {0} and {1} both have port {2}: a host without adit needs a port for each server")]
    SamePort(String, String, u16),
}

/// An identity with its place.
#[derive(Debug, Clone)]
struct Server<'a> {
    identity: &'a Identity,
    /// UDP, and TCP without HAProxy before it.
    port: u16,
    /// TCP behind HAProxy.
    tcp_port: u16,
    /// The configuration gives no port.
    chosen: bool,
    /// First packets of its clients.
    udp: Pattern,
    tcp: Pattern,
    /// Others with the same first packets are reached by their ports only.
    leads: bool,
}

impl Wrap {
    /// Bytes of a client's first packet. tls-crypt-v2 adds a key whose length is the server's choice.
    fn length(self) -> Option<usize> {
        // Opcode and session id; number of acknowledgements and packet id.
        let bare = 1 + 8 + 1 + 4;
        // Packet number and time stand before both kinds of authentication.
        match self {
            Self::None => Some(bare),
            Self::TlsAuth(digest) => Some(bare + 8 + digest),
            Self::TlsCrypt => Some(bare + 8 + 32),
            Self::TlsCryptV2 => None,
        }
    }

    /// P_CONTROL_HARD_RESET_CLIENT_V2 or _V3, with key 0.
    fn first_byte(self) -> u8 {
        if self == Self::TlsCryptV2 { 10 << 3 } else { 7 << 3 }
    }

    /// Where the packet number is, whose upper three bytes are zero in a first packet.
    fn packet_number(self) -> Option<usize> {
        match self {
            Self::TlsAuth(digest) => Some(1 + 8 + digest),
            Self::TlsCrypt => Some(1 + 8),
            Self::None | Self::TlsCryptV2 => None,
        }
    }

    /// First packets with this wrap, behind `before` bytes of framing. Where another wrap among `all` makes them as
    /// long, the place of the packet number tells the two apart.
    fn pattern(self, all: &[Self], before: usize) -> Pattern {
        let byte = |offset, value| FixedByte { offset: before + offset, mask: 0xff, value };
        let mut bytes = vec![byte(0, self.first_byte())];
        let ambiguous = all.iter().any(|other| *other != self && other.length() == self.length());
        if let (true, Some(at)) = (ambiguous, self.packet_number()) {
            bytes.extend((at..at + 3).map(|offset| byte(offset, 0)));
        }
        Pattern { length: self.length().map(|length| before + length), bytes }
    }
}

/// Renders the plan.
///
/// # Errors
/// [`ExportFault`]: there is nothing to lead to or from, or two servers would share a port.
pub fn export(plan: &Plan, format: Format) -> Result<String, ExportFault> {
    let servers = servers(&plan.identities)?;
    match format {
        Format::Nft => nft::render(plan, &servers),
        Format::IptablesV1 { others } => iptables::by_port(plan, &servers, others),
        Format::IptablesV2 => iptables::by_packet(plan, &servers),
        Format::Haproxy { measure } => haproxy::render(plan, &servers, measure),
    }
}

/// The servers; the default one, which gets what is left, is the first.
fn servers(identities: &[Identity]) -> Result<Vec<Server<'_>>, ExportFault> {
    let default = identities.iter().position(|identity| identity.port.is_none()).unwrap_or(0);
    let first = identities.get(default).ok_or(ExportFault::NoIdentity)?;
    let others = identities.iter().enumerate().filter(|(index, _)| *index != default);
    let ordered: Vec<&Identity> = std::iter::once(first).chain(others.map(|(_, other)| other)).collect();
    let mut taken: PortSet = ordered.iter().filter_map(|identity| identity.port).collect();
    let mut next = |range: RangeInclusive<u16>| {
        let port = range.clone().find(|port| !taken.contains(*port)).unwrap_or(*range.end());
        taken = taken.iter().chain([port]).collect();
        port
    };
    let wraps: Vec<Wrap> = ordered.iter().map(|identity| identity.wrap).collect();
    let mut servers: Vec<Server<'_>> = Vec::new();
    for identity in &ordered {
        let port = match identity.port {
            Some(port) => port,
            None if servers.is_empty() => DEFAULT_PORT,
            None => next(FURTHER_PORTS),
        };
        if let Some(other) = servers.iter().find(|other| other.port == port) {
            let name = |identity: &Identity| identity.name.clone();
            return Err(ExportFault::SamePort(name(other.identity), name(identity), port));
        }
        servers.push(Server {
            identity,
            port,
            tcp_port: port,
            chosen: identity.port.is_none() && port != DEFAULT_PORT,
            udp: identity.wrap.pattern(&wraps, 0),
            tcp: identity.wrap.pattern(&wraps, 2),
            leads: !servers.iter().any(|other| other.identity.wrap == identity.wrap),
        });
    }
    // HAProxy has this port itself.
    if let Some(server) = servers.iter_mut().find(|server| server.port == DEFAULT_PORT) {
        server.tcp_port = next(BEHIND_HAPROXY..=BEHIND_HAPROXY + 100);
    }
    Ok(servers)
}

/// A rule: these ports, with this first packet if any, lead to this port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lead {
    ports: RangeInclusive<u16>,
    packet: Option<Pattern>,
    to: u16,
    /// On the host that the rules are for, wherever the servers are.
    here: bool,
}

/// Each of `others` leads to itself, the rest to `default`; ascending.
fn leads_by_port(ports: &PortSet, others: &[u16], default: u16) -> Vec<Lead> {
    let mut others: Vec<u16> = others.iter().copied().filter(|port| ports.contains(*port)).collect();
    others.sort_unstable();
    let own: PortSet = others.iter().copied().collect();
    let rest = ports.without(&own);
    let rest = rest.ranges().iter().map(|range| Lead {
        ports: range.clone(),
        packet: None,
        to: default,
        here: false,
    });
    let own = others.iter().map(|port| Lead { ports: *port..=*port, packet: None, to: *port, here: false });
    let mut all: Vec<Lead> = rest.chain(own).collect();
    all.sort_by_key(|lead| *lead.ports.start());
    all
}

/// What tells by the first packet comes first; then the ports of those it cannot tell.
fn leads_by_packet(ports: &PortSet, servers: &[Server<'_>]) -> Vec<Lead> {
    let followers = || servers.iter().filter(|server| !server.leads);
    let mut all = Vec::new();
    for leader in servers.iter().filter(|server| server.leads) {
        let alike: PortSet = followers()
            .filter(|follower| follower.identity.wrap == leader.identity.wrap)
            .map(|follower| follower.port)
            .collect();
        let packet = Some(leader.udp.clone());
        all.extend(ports.without(&alike).ranges().iter().map(|range| Lead {
            ports: range.clone(),
            packet: packet.clone(),
            to: leader.port,
            here: false,
        }));
    }
    let own = followers().filter(|server| ports.contains(server.port));
    all.extend(own.map(|server| Lead {
        ports: server.port..=server.port,
        packet: None,
        to: server.port,
        here: false,
    }));
    all
}

/// TCP: to HAProxy, but for those that it could not tell either.
fn leads_to_haproxy(ports: &PortSet, servers: &[Server<'_>]) -> Vec<Lead> {
    let own: Vec<u16> = servers.iter().filter(|server| !server.leads).map(|server| server.port).collect();
    let mut leads = leads_by_port(ports, &own, DEFAULT_PORT);
    for lead in &mut leads {
        lead.here = !own.contains(&lead.to);
    }
    leads
}

/// Lines that say which server is to listen where.
fn legend(servers: &[Server<'_>], behind_haproxy: bool) -> Vec<String> {
    let mut lines = vec!["The servers, on all addresses of their host:".to_owned()];
    for server in servers {
        let Server { identity, port, tcp_port, .. } = server;
        let place = match behind_haproxy && tcp_port != port {
            true => format!("UDP {port}, TCP {tcp_port} behind HAProxy"),
            false => format!("UDP and TCP {port}"),
        };
        let chosen = if server.chosen { " (chosen here: the configuration has no port)" } else { "" };
        lines.push(format!("  {}: {place}{chosen}", identity.name));
    }
    lines.push(
        "Services of this host within the ports below go on only where the entrance excepts them.".into(),
    );
    lines
}

impl Plan {
    /// The entrances of the family that the servers are reached by, and those of the other one.
    fn entrances(&self, usable: impl Fn(&IpAddr) -> bool) -> (Vec<&Entrance>, Vec<&Entrance>) {
        let fits = |address: &IpAddr| self.to.is_none_or(|to| to.is_ipv4() == address.is_ipv4());
        self.entrances
            .iter()
            .filter(|entrance| !entrance.udp.is_empty() || !entrance.tcp.is_empty())
            .partition(|entrance| usable(&entrance.address) && fits(&entrance.address))
    }

    /// Where a rule leads: another host, or the address that was dialled; without one, whichever it was.
    fn target(&self, entrance: &Entrance, lead: &Lead) -> String {
        let dialled = (!entrance.address.is_unspecified()).then_some(entrance.address);
        match self.to.filter(|_| !lead.here).or(dialled) {
            Some(address) => SocketAddr::new(address, lead.to).to_string(),
            None => format!(":{}", lead.to),
        }
    }
}
