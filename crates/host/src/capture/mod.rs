//! Whole ranges of ports with a handful of sockets: every datagram and connection to them arrives at one socket for
//! each family and protocol, which knows the dialled address and port and answers from there.
//!
//! A BPF program in the network namespace (`BPF_PROG_TYPE_SK_LOOKUP`) chooses the socket for what belongs to no
//! connection yet. The configured ports are bits in a map, so thirty thousand cost as much as one. What services of
//! this machine are bound to is spared, by address; they are served as if nobody captured anything.
//!
//! ```text
//!  packet → connected sockets → the program: captured? not spared? → one of four sockets (TCP/UDP, IPv4/IPv6)
//!                                     └─ no → bound sockets, as ever
//! ```
//!
//! What does not come by that way is diverted: see [`diversion`].
//!
//! Programs are put into effect one generation at a time: a new one is complete before the old one goes, both lead to
//! the same sockets, so no flow notices. All of it ends with the process.

pub mod diversion;
mod program;
mod shards;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::diversion::Diversion;
use crate::bpf::{self, Map, MapKind};
use crate::errno::words;
use crate::netlink::Netlink;
use crate::netns::{Netns, NetnsFault};
use crate::services::{Bound, Transport};
use crate::socket::BindFault;
use crate::tcp::{self, ListenOptions};
use crate::udp::{Answering, UdpOptions, UdpSocket};

pub use self::shards::shard_of;

/// What of the packets that are for this machine an entrance takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Those to any of its addresses.
    Everything,
    /// Those to any of its IPv4 addresses.
    Ipv4,
    /// Those to one address.
    Address(IpAddr),
    /// Those that arrive by this interface.
    Interface(String),
}

/// By what ports are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// By a program; diverted where the kernel takes none, and where the address is not this machine's.
    #[default]
    Auto,
    /// By a program or not at all.
    SkLookup,
    /// [Diverted](diversion).
    Tproxy,
}

/// Ports to be captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Whose.
    pub target: Target,
    /// By what.
    pub means: Means,
    /// UDP ports.
    pub udp: Vec<RangeInclusive<u16>>,
    /// TCP ports.
    pub tcp: Vec<RangeInclusive<u16>>,
}

/// An address of a service of this machine that is left to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spared {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its address; the unspecified one stands for all of that family.
    pub address: SocketAddr,
}

impl Spared {
    /// What spares a bound socket.
    #[must_use]
    pub fn of(bound: &Bound) -> Vec<Self> {
        let at = |address| Self { transport: bound.transport, address: SocketAddr::new(address, bound.port) };
        bound.addresses().into_iter().map(at).collect()
    }
}

/// What is captured and what is spared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CapturePlan {
    /// The entrances.
    pub entrances: Vec<Ports>,
    /// Services that keep their ports although an entrance has them.
    pub spared: Vec<Spared>,
}

/// How to open the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureOptions {
    /// The UDP sockets, for receiving and for answers.
    pub udp: UdpOptions,
    /// The TCP listeners.
    pub tcp: ListenOptions,
    /// UDP sockets for each family, at least one. A peer's packets come to the one that its number in them says, see
    /// [`shard_of`]; those without a number, and what is diverted, to one by their addresses and ports.
    pub shards: usize,
    /// Dialled addresses and ports that answers may leave from at a time, each with a descriptor of its own. Beyond
    /// that the one unused for longest is closed and, if need be, made anew.
    pub answering: usize,
}

/// Where everything captured arrives.
#[derive(Debug, Default)]
pub struct Captured {
    /// For each family of this machine as many as there are shards, in their order.
    pub udp: Vec<UdpSocket>,
    /// One for each family of this machine.
    pub tcp: Vec<TcpListener>,
    /// What the machine has to be told for the rest.
    pub diversion: Diversion,
}

/// Why ports cannot be captured.
#[derive(Debug, Error)]
pub enum CaptureFault {
    /// A socket cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindFault),
    /// The network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsFault),
    /// There is no such interface.
    #[error("there is no interface {0}: correct the entrance, or make the interface first")]
    NoInterface(String),
    /// Too many different addresses.
    #[error(
        "entrances on {0} different addresses and interfaces: the kernel takes {MAX_TARGETS}; use \"::\" for all \
         addresses"
    )]
    TooMany(usize),
    /// The kernel does not do it.
    #[error(
        "cannot capture ports: {}; this needs Linux 5.9, and CAP_BPF and CAP_NET_ADMIN or root; or capture = \
         \"tproxy\"", words(.0)
    )]
    Kernel(#[from] io::Error),
}

/// Programs the kernel takes in a namespace (`NETNS_BPF_MAX_LINKS`), half of them for the next generation.
const MAX_TARGETS: usize = 32;
/// Services that can be spared.
const MAX_SPARED: u32 = 16 * 1024;
/// Ports for each entry of the map of ports.
const WORD: u16 = 64;
/// Entries for each protocol.
const WORDS: u32 = 65_536 / WORD as u32;

/// Captured and special ports, 64 at a time. Special are those whose address has to be looked up among the spared.
type PortMap = Map<4, 16>;
/// Address, then port and protocol: see [`spared_key`].
type SparedMap = Map<20, 1>;

/// Captures until it is dropped.
#[derive(Debug)]
pub struct Capture {
    /// Or why the kernel takes no programs.
    lookup: io::Result<Lookup>,
    answering: Arc<Answering>,
}

impl Capture {
    /// Opens the sockets and captures what the plan says, in the calling thread's network namespace. What is diverted
    /// comes when the machine is as [`Diversion::host_state`] says.
    ///
    /// # Errors
    /// [`CaptureFault`], worded for the operator; nothing is captured then.
    pub fn start(plan: &CapturePlan, options: &CaptureOptions) -> Result<(Self, Captured), CaptureFault> {
        let lookup = Lookup::probe(Netns::current()?);
        let answering = Arc::new(Answering::new(options.udp, options.answering));
        let mut captured = Captured::default();
        captured.diversion.all = lookup.is_err();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            // A machine without IPv6 has nothing to be captured there.
            if address.is_ipv6() && !std::path::Path::new("/proc/sys/net/ipv6").exists() {
                continue;
            }
            // Where they are bound does not matter: they get what they are given. Nobody else finds them here.
            let udp = shards::open(address, options, &answering)?;
            let listen = ListenOptions { transparent: true, ..options.tcp };
            let tcp = tcp::listen(SocketAddr::new(address, 0), &listen)?;
            let family = if address.is_ipv6() { program::IPV6 } else { program::IPV4 };
            if let Ok(lookup) = &lookup {
                bpf::put_socket(&lookup.sockets, family + program::TCP, &tcp)?;
                // The others of its group are found by it.
                udp.first()
                    .map_or(Ok(()), |udp| bpf::put_socket(&lookup.sockets, family + program::UDP, udp))?;
            }
            captured.diversion.add(Transport::Tcp, tcp.local_addr()?);
            udp.first().into_iter().for_each(|udp| captured.diversion.add(Transport::Udp, udp.local_addr()));
            captured.udp.extend(udp);
            captured.tcp.push(tcp);
        }
        let mut capture = Self { lookup, answering };
        capture.change(plan)?;
        if let Err(error) = &capture.lookup
            && plan.entrances.iter().any(|entrance| entrance.means == Means::Auto)
        {
            tracing::warn!(
                "the kernel takes no program that chooses sockets ({error}): ports are captured by TPROXY"
            );
        }
        Ok((capture, captured))
    }

    /// Captures what the plan says instead of what was captured so far. What is in both plans is captured throughout.
    ///
    /// # Errors
    /// [`CaptureFault`]; everything is as before then.
    pub fn change(&mut self, plan: &CapturePlan) -> Result<(), CaptureFault> {
        // A diverted one with a wrong interface is wrong as well.
        plan.entrances.iter().try_for_each(|entrance| only(&entrance.target).map(drop))?;
        match &mut self.lookup {
            Ok(lookup) => lookup.change(plan)?,
            Err(error) if plan.entrances.iter().any(|entrance| entrance.means == Means::SkLookup) => {
                return Err(io::Error::new(error.kind(), error.to_string()).into());
            }
            Err(_) => {}
        }
        // Whoever gets a port back wants to bind it; the others' are made anew.
        self.answering.close();
        Ok(())
    }
}

/// The programs.
#[derive(Debug)]
struct Lookup {
    sockets: Map<4, 8>,
    netns: Netns,
    /// In effect as long as they are open.
    links: Vec<OwnedFd>,
}

impl Lookup {
    /// Whether the kernel takes programs.
    fn probe(netns: Netns) -> io::Result<Self> {
        let sockets = Map::create(MapKind::Sockets, 4)?;
        bpf::attach_socket_lookup(&program::nothing(), netns.as_fd())?;
        Ok(Self { sockets, netns, links: Vec::new() })
    }

    fn change(&mut self, plan: &CapturePlan) -> Result<(), CaptureFault> {
        let mut targets: BTreeMap<&Target, Bits> = BTreeMap::new();
        for entrance in plan.entrances.iter().filter(|entrance| entrance.means != Means::Tproxy) {
            let bits = targets.entry(&entrance.target).or_default();
            bits.capture(Transport::Tcp, &entrance.tcp);
            bits.capture(Transport::Udp, &entrance.udp);
        }
        if targets.len() > MAX_TARGETS {
            return Err(CaptureFault::TooMany(targets.len()));
        }
        let spared = SparedMap::create(MapKind::Hash, MAX_SPARED)?;
        for service in &plan.spared {
            spared.put(spared_key(service), [1])?;
            for bits in targets.values_mut() {
                bits.look_up(service.transport, service.address.port());
            }
        }
        let mut links = Vec::new();
        for (target, bits) in targets {
            let ports = bits.into_map()?;
            let program = program::build(&program::Parts {
                only: only(target)?,
                ports: ports.number(),
                spared: spared.number(),
                sockets: self.sockets.number(),
            });
            links.push(bpf::attach_socket_lookup(&program, self.netns.as_fd())?);
        }
        // The old ones end here, and not before.
        self.links = links;
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.answering.close();
    }
}

fn only(target: &Target) -> Result<program::Only, CaptureFault> {
    Ok(match target {
        Target::Everything => program::Only::Everything,
        Target::Ipv4 => program::Only::AllIpv4,
        Target::Address(IpAddr::V4(address)) => program::Only::Ipv4(*address),
        Target::Address(IpAddr::V6(address)) => program::Only::Ipv6(*address),
        Target::Interface(name) => match Netlink::open().and_then(|netlink| netlink.link_index(name)) {
            Ok(index) => program::Only::Interface(index),
            Err(_) => return Err(CaptureFault::NoInterface(name.clone())),
        },
    })
}

/// The key of a service: 16 bytes of address, IPv4 in its mapped form, then a number, port and protocol.
fn spared_key(service: &Spared) -> [u8; 20] {
    let address = match service.address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let transport = program::number_of(service.transport);
    let number = (u32::from(service.address.port()) | transport << 16).to_ne_bytes();
    let mut key = [0; 20];
    for (to, from) in key.iter_mut().zip(address.octets().into_iter().chain(number)) {
        *to = from;
    }
    key
}

/// The ports of one target.
#[derive(Debug)]
struct Bits {
    /// For each protocol and 64 ports: captured ones, and those with a spared service on some address.
    words: Vec<(u64, u64)>,
}

impl Default for Bits {
    fn default() -> Self {
        Self { words: vec![(0, 0); 2 * WORDS as usize] }
    }
}

impl Bits {
    fn word(&mut self, transport: Transport, port: u16) -> Option<&mut (u64, u64)> {
        let index = program::number_of(transport) * WORDS + u32::from(port / WORD);
        self.words.get_mut(index as usize)
    }

    fn capture(&mut self, transport: Transport, ranges: &[RangeInclusive<u16>]) {
        for port in ranges.iter().cloned().flatten().filter(|port| *port != 0) {
            if let Some((captured, _)) = self.word(transport, port) {
                *captured |= 1 << (port % WORD);
            }
        }
    }

    fn look_up(&mut self, transport: Transport, port: u16) {
        if let Some((_, special)) = self.word(transport, port) {
            *special |= 1 << (port % WORD);
        }
    }

    fn into_map(self) -> io::Result<PortMap> {
        let map = PortMap::create(MapKind::Array, 2 * WORDS)?;
        for (index, (captured, special)) in (0u32..).zip(self.words).filter(|(_, word)| *word != (0, 0)) {
            let mut value = [0; 16];
            let bytes = captured.to_ne_bytes().into_iter().chain(special.to_ne_bytes());
            for (to, from) in value.iter_mut().zip(bytes) {
                *to = from;
            }
            map.put(index.to_ne_bytes(), value)?;
        }
        Ok(map)
    }
}
