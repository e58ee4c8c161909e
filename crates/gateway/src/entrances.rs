//! Entrances: where clients come in, and what of this machine keeps its ports although an entrance has them.
//!
//! A few ports have a socket each. More than [`SOCKETS`] of them, those of an interface, and those that are to be captured
//! by a certain means, are captured: see [`adit_host::capture`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use adit_host::capture::diversion::Diversion;
use adit_host::capture::{CaptureOptions, CapturePlan, Captured, Means, Ports, Spared, Target};
use adit_host::plumbing::{Plumbing, PlumbingFault};
use adit_host::services::{self, Bound, Transport};
use adit_host::tcp::ListenOptions;
use adit_host::udp::{PathMtu, UdpOptions, UdpSocket};
use adit_plan::ports::PortSet;
use adit_plan::rules;

use crate::config::{Config, EntranceConfig, TunnelConfig};

/// Ports of an entrance and a protocol that have a socket each, so that one that another program has is an error and
/// not passed over.
pub(crate) const SOCKETS: usize = 64;
/// Dialled addresses and ports that answers leave from at a time, with a descriptor each, where there are enough.
pub(crate) const ANSWERING: usize = 1024;

/// Sockets, ready.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// For datagrams.
    pub(crate) udp: Vec<UdpSocket>,
    /// For connections, with the time their first bytes may take.
    pub(crate) tcp: Vec<(TcpListener, Duration)>,
    /// What the machine has to be told so that all that is captured arrives.
    pub(crate) diversion: Diversion,
}

/// What is not captured although the configuration says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// What was bound before the gateway started.
    pub(crate) services: Vec<Bound>,
    /// What was given back since.
    pub(crate) released: BTreeSet<u16>,
}

/// Opens all sockets of the configuration; `answering` see [`CaptureOptions::answering`]. Of the ports that have a socket each, only those that are in `left` too: the
/// configuration without what others have.
///
/// # Errors
/// [`PlumbingFault`] when a port is taken, an address is not there, or the kernel does not capture.
pub(crate) fn open(
    config: &Config,
    left: &Config,
    others: &Others,
    answering: usize,
    plumbing: &mut dyn Plumbing,
) -> Result<Opened, PlumbingFault> {
    // Flows of foreign back ends get sockets of their own on the dialled ports.
    let udp = UdpOptions { reuse_address: !config.service.is_empty(), ..udp_options(&config.tunnel) };
    let listen = ListenOptions::default();
    let mut opened = Opened::default();
    for (entrance, left) in config.entrance.iter().zip(&left.entrance) {
        let own = |transport| own_sockets(entrance, transport).both(&wanted(left, transport));
        for address in addresses(entrance) {
            for port in own(Transport::Udp).iter() {
                match plumbing.bind_udp(SocketAddr::new(address, port), &udp) {
                    Ok(socket) => opened.udp.push(socket),
                    Err(fault) => tolerate_missing_ipv6(address, fault)?,
                }
            }
            for port in own(Transport::Tcp).iter() {
                match plumbing.listen_tcp(SocketAddr::new(address, port), &listen) {
                    Ok(listener) => opened.tcp.push((listener, entrance.inspect)),
                    Err(fault) => tolerate_missing_ipv6(address, fault)?,
                }
            }
        }
    }
    let plan = capture_plan(config, others);
    if !plan.entrances.is_empty() {
        // Here it costs nothing: a program that has not asked to share does not get the port of an answer either way.
        let udp = UdpOptions { reuse_address: true, ..udp };
        let options = CaptureOptions { udp, tcp: listen, shards: 1, answering };
        let Captured { udp, tcp, diversion } = plumbing.capture(&plan, &options)?;
        let capturing = config.entrance.iter().filter(|entrance| captures(entrance, Transport::Tcp));
        let inspect = capturing.map(|entrance| entrance.inspect).max().unwrap_or_default();
        opened.udp.extend(udp);
        opened.diversion = diversion;
        opened.tcp.extend(tcp.into_iter().map(|listener| (listener, inspect)));
    }
    Ok(opened)
}

/// What is to be captured.
pub(crate) fn capture_plan(config: &Config, others: &Others) -> CapturePlan {
    let captured = |entrance: &EntranceConfig, transport| {
        if captures(entrance, transport) {
            without_released(&wanted(entrance, transport), others).ranges().to_vec()
        } else {
            Vec::new()
        }
    };
    let entrances: Vec<Ports> = config
        .entrance
        .iter()
        .map(|entrance| Ports {
            target: target(entrance),
            means: entrance.capture,
            udp: captured(entrance, Transport::Udp),
            tcp: captured(entrance, Transport::Tcp),
        })
        .filter(|ports| !ports.udp.is_empty() || !ports.tcp.is_empty())
        .collect();
    // Else this machine's connections to a back end that is not there would end in the entrance, and each be relayed
    // to the back end again.
    let backends = config.service.iter().flat_map(|service| {
        [Transport::Udp, Transport::Tcp].map(|transport| Spared { transport, address: service.to })
    });
    CapturePlan { entrances, spared: others.services.iter().flat_map(Spared::of).chain(backends).collect() }
}

/// Entrances for the filter table, without what others have.
pub(crate) fn for_rules(config: &Config, others: &Others) -> Vec<rules::Entrance> {
    let ports = |entrance: &EntranceConfig, transport| {
        let taken = others.services.iter().filter(|bound| bound.transport == transport);
        let taken: PortSet = taken.map(|bound| bound.port).collect();
        let all = wanted(entrance, transport);
        if captures(entrance, transport) { without_released(&all, others).without(&taken) } else { all }
    };
    config
        .entrance
        .iter()
        .map(|entrance| rules::Entrance {
            at: match target(entrance) {
                Target::Everything => rules::At::Everywhere,
                Target::Ipv4 => rules::At::Ipv4,
                Target::Address(address) => rules::At::Address(address),
                Target::Interface(name) => rules::At::Interface(name),
            },
            udp: ports(entrance, Transport::Udp),
            tcp: ports(entrance, Transport::Tcp),
        })
        .collect()
}

/// Services that keep captured ports, and those that came too late for it: the gateway's own sockets are not among
/// them.
pub(crate) fn within<'a>(config: &Config, services: impl IntoIterator<Item = &'a Bound>) -> Vec<&'a Bound> {
    let inside = |bound: &&Bound| {
        config.entrance.iter().any(|entrance| {
            captures(entrance, bound.transport)
                && wanted(entrance, bound.transport).contains(bound.port)
                && concerns(entrance, bound)
        })
    };
    services.into_iter().filter(inside).collect()
}

/// What others than the process `own` have bound since to ports that are captured. Best effort: what cannot be read
/// is not named.
pub(crate) fn latecomers(config: &Config, others: &Others, own: u32) -> Vec<Bound> {
    let bound = services::bound().unwrap_or_default();
    let new = bound.iter().filter(|bound| {
        let address = SocketAddr::new(bound.address, bound.port);
        !others.released.contains(&bound.port)
            && config.service.iter().all(|service| service.to != address)
            && !others.services.iter().any(|known| {
                known.transport == bound.transport
                    && known.address == bound.address
                    && known.port == bound.port
            })
    });
    let found = within(config, new);
    if found.is_empty() {
        return Vec::new();
    }
    // The sockets that answers leave from are bound to captured ports as well.
    let own = services::of_process(own).unwrap_or_default();
    found.into_iter().filter(|bound| !own.contains(&bound.inode)).cloned().collect()
}

/// Whether only captured ports differ, which can change while the gateway runs.
pub(crate) fn can_follow(old: &Config, new: &Config) -> bool {
    let sockets = |config: &Config| {
        let mut all = Vec::new();
        for entrance in &config.entrance {
            let ports = [Transport::Udp, Transport::Tcp].map(|transport| own_sockets(entrance, transport));
            if ports.iter().any(|ports| !ports.is_empty()) {
                all.push((addresses(entrance), ports, entrance.inspect));
            }
        }
        let capturing = config.entrance.iter().filter(|entrance| captures(entrance, Transport::Tcp));
        let proxies: Vec<_> = config.entrance.iter().flat_map(|entrance| entrance.proxies.clone()).collect();
        (all, capturing.map(|entrance| entrance.inspect).max(), proxies)
    };
    let captures_any = |config| !capture_plan(config, &Others::default()).entrances.is_empty();
    old.entrance == new.entrance || captures_any(old) && captures_any(new) && sockets(old) == sockets(new)
}

/// Whether the first service can come, or the last one go, while the gateway runs: sockets of single ports are shared
/// with flows of services, or not, from the beginning.
pub(crate) fn services_can_come_and_go(config: &Config) -> bool {
    config.entrance.iter().all(|entrance| own_sockets(entrance, Transport::Udp).is_empty())
}

/// A captured port, on any address.
pub(crate) fn is_captured(config: &Config, others: &Others, port: u16) -> bool {
    capture_plan(config, others)
        .entrances
        .iter()
        .any(|ports| ports.udp.iter().chain(&ports.tcp).any(|range| range.contains(&port)))
}

/// Whether a socket of an entrance is all there can be at this address.
pub(crate) fn has_socket(config: &Config, transport: Transport, address: SocketAddr) -> bool {
    let at = |entrance: &EntranceConfig| match target(entrance) {
        Target::Everything => address.ip().is_loopback(),
        Target::Ipv4 => address.ip() == Ipv4Addr::LOCALHOST,
        Target::Address(own) => own == address.ip(),
        Target::Interface(_) => false,
    };
    config
        .entrance
        .iter()
        .any(|entrance| at(entrance) && own_sockets(entrance, transport).contains(address.port()))
}

fn concerns(entrance: &EntranceConfig, bound: &Bound) -> bool {
    match target(entrance) {
        Target::Everything | Target::Interface(_) => true,
        Target::Ipv4 => bound.addresses().iter().any(IpAddr::is_ipv4),
        Target::Address(address) => bound
            .addresses()
            .iter()
            .any(|other| *other == address || other.is_unspecified() && other.is_ipv4() == address.is_ipv4()),
    }
}

fn without_released(ports: &PortSet, others: &Others) -> PortSet {
    ports.without(&others.released.iter().copied().collect())
}

/// The configured ports.
fn wanted(entrance: &EntranceConfig, transport: Transport) -> PortSet {
    let ports = match transport {
        Transport::Udp => &entrance.udp,
        Transport::Tcp => &entrance.tcp,
    };
    ports.without(&entrance.except)
}

fn captures(entrance: &EntranceConfig, transport: Transport) -> bool {
    let certain = entrance.interface.is_some() || entrance.capture != Means::Auto;
    certain || wanted(entrance, transport).count() > SOCKETS
}

/// The ports that have a socket each.
fn own_sockets(entrance: &EntranceConfig, transport: Transport) -> PortSet {
    if captures(entrance, transport) { PortSet::default() } else { wanted(entrance, transport) }
}

fn target(entrance: &EntranceConfig) -> Target {
    match (&entrance.interface, entrance.address) {
        (Some(interface), _) => Target::Interface(interface.clone()),
        (None, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => Target::Everything,
        (None, IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Target::Ipv4,
        (None, address) => Target::Address(address),
    }
}

fn addresses(entrance: &EntranceConfig) -> Vec<IpAddr> {
    match &entrance.interface {
        Some(_) => Vec::new(),
        None => entrance.addresses(),
    }
}

fn udp_options(tunnel: &TunnelConfig) -> UdpOptions {
    let size = |bytes: usize| (bytes > 0).then_some(bytes);
    UdpOptions {
        recv_buffer: size(tunnel.rcvbuf),
        send_buffer: size(tunnel.sndbuf),
        path_mtu: PathMtu::Fragment,
        ..UdpOptions::default()
    }
}

/// "All addresses" means those there are: a machine without IPv6 has none of them.
fn tolerate_missing_ipv6(address: IpAddr, fault: PlumbingFault) -> Result<(), PlumbingFault> {
    let no_ipv6 = !Path::new("/proc/sys/net/ipv6").exists();
    if no_ipv6 && address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return Ok(());
    }
    Err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn config(entrances: &str) -> Config {
        let text = format!(
            "name = \"x\"\n[tunnel]\npool4 = [\"10.88.0.0/16\"]\n[[identity]]\nname = \"a\"\nkey = \"P-256\"\nwrap = \
             \"tls-crypt\"\n{entrances}"
        );
        parse(&text, Path::new("adit.toml")).unwrap()
    }

    fn bound(transport: Transport, address: &str, port: u16) -> Bound {
        Bound { transport, address: address.parse().unwrap(), port, inode: 1 }
    }

    #[test]
    fn few_ports_have_a_socket_each_and_many_are_captured() {
        let config = config(
            "[[entrance]]\nudp = \"1-29999\"\ntcp = \"443\"\nexcept = \"53\"\n[[entrance]]\naddress = \
             \"192.0.2.1\"\nudp = \"7\"\ntcp = \"1000-2000\"\ncapture = \"tproxy\"\n[[entrance]]\ninterface = \"eth7\"\nudp = \"40000\"",
        );
        assert_eq!(own_sockets(&config.entrance[0], Transport::Tcp).to_string(), "443");
        let plan = capture_plan(&config, &Others { released: [1500].into(), ..Others::default() });
        let ports = |target, means, udp, tcp| Ports { target, means, udp, tcp };
        let everything =
            ports(Target::Everything, Means::Auto, vec![1..=52, 54..=1499, 1501..=29_999], vec![]);
        let address = Target::Address("192.0.2.1".parse().unwrap());
        let one = ports(address, Means::Tproxy, vec![7..=7], vec![1000..=1499, 1501..=2000]);
        let by = ports(Target::Interface("eth7".into()), Means::Auto, vec![40_000..=40_000], vec![]);
        assert_eq!(plan.entrances, [everything, one, by]);
    }

    #[test]
    fn captured_ports_can_follow_and_trust_cannot() {
        let old = config("[[entrance]]\nudp = \"1-29999\"\ntcp = \"1-29999\"");
        let fewer = config("[[entrance]]\nudp = \"1-20000\"\ntcp = \"1-29999\"");
        let trusting =
            config("[[entrance]]\nudp = \"1-29999\"\ntcp = \"1-29999\"\nproxies = [\"192.0.2.0/24\"]");
        assert!(can_follow(&old, &fewer));
        assert!(!can_follow(&old, &trusting));
        assert!(services_can_come_and_go(&old));
        assert!(!services_can_come_and_go(&config("[[entrance]]\nudp = \"443\"")));
    }

    #[test]
    fn services_are_spared_and_left_to_the_kernels_own_ways() {
        let config = config("[[entrance]]\nudp = \"1-29999\"\ntcp = \"1-29999\"");
        let services = vec![bound(Transport::Tcp, "::", 22), bound(Transport::Udp, "127.0.0.53", 53)];
        let others = Others { services, ..Others::default() };
        let spared: Vec<_> =
            capture_plan(&config, &others).spared.iter().map(|spared| spared.address.to_string()).collect();
        assert_eq!(spared, ["0.0.0.0:22", "[::]:22", "127.0.0.53:53"]);
        let rules = for_rules(&config, &others);
        assert_eq!(
            (rules[0].udp.to_string(), rules[0].tcp.to_string()),
            ("1-52,54-29999".to_owned(), "1-21,23-29999".to_owned())
        );
    }

    #[test]
    fn the_way_to_a_back_end_is_no_entrance_even_while_it_is_not_there() {
        let config = config(
            "[[entrance]]\nudp = \"1-29999\"\n[[service]]\nname = \"a\"\nmatch = \"dns\"\nto = \"127.0.0.1:10053\"",
        );
        let spared = capture_plan(&config, &Others::default()).spared;
        let address = "127.0.0.1:10053".parse().unwrap();
        assert_eq!(spared, [Transport::Udp, Transport::Tcp].map(|transport| Spared { transport, address }));
    }

    #[test]
    fn what_is_bound_outside_of_an_entrance_is_no_concern() {
        let config = config("[[entrance]]\naddress = \"192.0.2.1\"\ntcp = \"1-29999\"");
        let services = [
            bound(Transport::Tcp, "192.0.2.1", 22),
            bound(Transport::Tcp, "0.0.0.0", 23),
            bound(Transport::Tcp, "192.0.2.2", 24),
            bound(Transport::Tcp, "::1", 25),
            bound(Transport::Udp, "0.0.0.0", 26),
            bound(Transport::Tcp, "0.0.0.0", 30_000),
        ];
        let ports: Vec<_> = within(&config, &services).iter().map(|bound| bound.port).collect();
        assert_eq!(ports, [22, 23]);
    }

    #[test]
    fn only_captured_ports_change_while_the_gateway_runs() {
        let of = |ports: &str, more: &str| config(&format!("[[entrance]]\nudp = \"{ports}\"\n{more}"));
        let follows = |old: &Config, new: &Config| can_follow(old, new);
        assert!(follows(&of("1-29999", ""), &of("100-2000", "except = \"500\"")));
        assert!(follows(&of("443", ""), &of("443", "")));
        assert!(!follows(&of("443", ""), &of("444", "")), "a socket");
        assert!(!follows(&of("1-29999", ""), &of("443", "")), "nothing captured any more");
        assert!(!follows(&of("443", ""), &of("1-29999", "")), "nothing captured so far");
        assert!(!follows(&of("1-29999", ""), &of("1-29999", "proxies = [\"10.0.0.0/8\"]")));
        let slow = of("1-29999", "tcp = \"1-29999\"\ninspect = \"9s\"");
        assert!(!follows(&of("1-29999", "tcp = \"1-29999\""), &slow));
    }
}
