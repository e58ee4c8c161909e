//! Options a server pushes: typed, with their text form.
//!
//! A pushed option is a line of a configuration without its newline. Options are separated by commas and there
//! is no escaping, so none may contain one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

/// Longest text of one `PUSH_REPLY` message, without its NUL: OpenVPN's 1024 less what it keeps in reserve.
pub const MAX_BUNDLE: usize = 1024 - 84;
/// Parts of one reply a client accepts.
const MAX_PARTS: usize = 64;

/// How `ifconfig` is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Topology {
    /// Address and peer, /30 each.
    #[default]
    Net30,
    /// Address and peer.
    PointToPoint,
    /// Address and netmask.
    Subnet,
}

/// What `redirect-gateway` covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redirect {
    /// IPv4 (absent with `!ipv4`).
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
    /// Two half-routes instead of replacing the default route.
    pub def1: bool,
    /// The client's own networks too are cut off.
    pub block_local: bool,
    /// A route keeps the DHCP server reachable.
    pub bypass_dhcp: bool,
}

/// Abilities the server switches on (`protocol-flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProtocolFlags {
    /// EXIT as a control message.
    pub cc_exit: bool,
    /// Data keys from the TLS exporter.
    pub tls_ekm: bool,
    /// Renegotiations under fresh tls-crypt keys.
    pub dyn_tls_crypt: bool,
}

/// Resolver settings (`dhcp-option`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DhcpOption {
    /// `DNS` or `DNS6`: a resolver.
    Dns(IpAddr),
    /// `DOMAIN`: the connection's own domain.
    Domain(String),
    /// `DOMAIN-SEARCH`: a search domain.
    DomainSearch(String),
    /// Anything else, as text.
    Other(String),
}

/// One pushed option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOption {
    /// `topology`.
    Topology(Topology),
    /// `ifconfig`: the client's address, and netmask or peer according to the topology.
    Ifconfig(Ipv4Addr, Ipv4Addr),
    /// `ifconfig-ipv6`: the client's address with its prefix, and the gateway.
    Ifconfig6(Ipv6Net, Ipv6Addr),
    /// `route-gateway`.
    RouteGateway(Ipv4Addr),
    /// `route` through the tunnel (or past it, with `net_gateway`).
    Route(Ipv4Net, Via),
    /// `route-ipv6` through the tunnel.
    Route6(Ipv6Net),
    /// `redirect-gateway`.
    RedirectGateway(Redirect),
    /// `block-ipv6`.
    BlockIpv6,
    /// `dhcp-option`.
    Dhcp(DhcpOption),
    /// `block-outside-dns`.
    BlockOutsideDns,
    /// `ping`, seconds.
    Ping(u32),
    /// `ping-restart`, seconds.
    PingRestart(u32),
    /// `ping-exit`, seconds.
    PingExit(u32),
    /// `peer-id`.
    PeerId(u32),
    /// `cipher`, by name.
    Cipher(String),
    /// `key-derivation tls-ekm`.
    KeyDerivationExporter,
    /// `protocol-flags`.
    ProtocolFlags(ProtocolFlags),
    /// `tun-mtu`.
    TunMtu(u16),
    /// `sndbuf`, bytes.
    SendBuffer(u32),
    /// `rcvbuf`, bytes.
    ReceiveBuffer(u32),
    /// `explicit-exit-notify`, times.
    ExplicitExitNotify(u8),
    /// `auth-token`.
    AuthToken(String),
    /// `comp-lzo no`: packets carry a byte for compression that is not done.
    CompLzoNo,
    /// `compress stub-v2`.
    CompressStubV2,
    /// `compress stub`, `lz4`, or anything that asks for real compression; the algorithm's name.
    Compress(String),
    /// An option this program does not know, as text.
    Other(String),
}

/// Where a pushed route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// Through the tunnel.
    #[default]
    Tunnel,
    /// Past it (`net_gateway`).
    Outside,
}

/// A known option with parameters that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pushed option \"{0}\" is malformed")]
pub struct Malformed(String);

impl fmt::Display for PushOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topology(Topology::Net30) => f.write_str("topology net30"),
            Self::Topology(Topology::PointToPoint) => f.write_str("topology p2p"),
            Self::Topology(Topology::Subnet) => f.write_str("topology subnet"),
            Self::Ifconfig(local, second) => write!(f, "ifconfig {local} {second}"),
            Self::Ifconfig6(net, gateway) => write!(f, "ifconfig-ipv6 {net} {gateway}"),
            Self::RouteGateway(gateway) => write!(f, "route-gateway {gateway}"),
            Self::Route(net, via) => {
                write!(f, "route {} {}", net.network(), net.netmask())?;
                f.write_str(if *via == Via::Outside { " net_gateway" } else { "" })
            }
            Self::Route6(net) => write!(f, "route-ipv6 {}", net.trunc()),
            Self::RedirectGateway(redirect) => redirect.fmt(f),
            Self::BlockIpv6 => f.write_str("block-ipv6"),
            Self::Dhcp(DhcpOption::Dns(IpAddr::V4(a))) => write!(f, "dhcp-option DNS {a}"),
            Self::Dhcp(DhcpOption::Dns(IpAddr::V6(a))) => write!(f, "dhcp-option DNS6 {a}"),
            Self::Dhcp(DhcpOption::Domain(name)) => write!(f, "dhcp-option DOMAIN {name}"),
            Self::Dhcp(DhcpOption::DomainSearch(name)) => write!(f, "dhcp-option DOMAIN-SEARCH {name}"),
            Self::Dhcp(DhcpOption::Other(text)) => write!(f, "dhcp-option {text}"),
            Self::BlockOutsideDns => f.write_str("block-outside-dns"),
            Self::Ping(seconds) => write!(f, "ping {seconds}"),
            Self::PingRestart(seconds) => write!(f, "ping-restart {seconds}"),
            Self::PingExit(seconds) => write!(f, "ping-exit {seconds}"),
            Self::PeerId(id) => write!(f, "peer-id {id}"),
            Self::Cipher(name) => write!(f, "cipher {name}"),
            Self::KeyDerivationExporter => f.write_str("key-derivation tls-ekm"),
            Self::ProtocolFlags(flags) => {
                f.write_str("protocol-flags")?;
                f.write_str(if flags.cc_exit { " cc-exit" } else { "" })?;
                f.write_str(if flags.tls_ekm { " tls-ekm" } else { "" })?;
                f.write_str(if flags.dyn_tls_crypt { " dyn-tls-crypt" } else { "" })
            }
            Self::TunMtu(mtu) => write!(f, "tun-mtu {mtu}"),
            Self::SendBuffer(bytes) => write!(f, "sndbuf {bytes}"),
            Self::ReceiveBuffer(bytes) => write!(f, "rcvbuf {bytes}"),
            Self::ExplicitExitNotify(times) => write!(f, "explicit-exit-notify {times}"),
            Self::AuthToken(token) => write!(f, "auth-token {token}"),
            Self::CompLzoNo => f.write_str("comp-lzo no"),
            Self::CompressStubV2 => f.write_str("compress stub-v2"),
            Self::Compress(algorithm) => write!(f, "compress {algorithm}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redirect-gateway")?;
        for (on, word) in [
            (self.def1, "def1"),
            (self.ipv6, "ipv6"),
            (!self.ipv4, "!ipv4"),
            (self.block_local, "block-local"),
            (self.bypass_dhcp, "bypass-dhcp"),
        ] {
            if on {
                write!(f, " {word}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for PushOption {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let text = text.trim();
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (name, args) = words.split_first().map_or(("", [].as_slice()), |(name, args)| (*name, args));
        let option = match name {
            "topology" => match args {
                ["net30"] => Some(Self::Topology(Topology::Net30)),
                ["p2p"] => Some(Self::Topology(Topology::PointToPoint)),
                ["subnet"] => Some(Self::Topology(Topology::Subnet)),
                _ => None,
            },
            "ifconfig" => pair(args).map(|(local, second)| Self::Ifconfig(local, second)),
            "ifconfig-ipv6" => pair(args).map(|(net, gateway)| Self::Ifconfig6(net, gateway)),
            "route-gateway" => one(args).map(Self::RouteGateway),
            "route" => route(args),
            "route-ipv6" => args.first().and_then(|net| net.parse().ok()).map(Self::Route6),
            "redirect-gateway" | "redirect-private" => Some(Self::RedirectGateway(Redirect {
                // redirect-private changes nothing but adds the routes that come with it.
                ipv4: name == "redirect-gateway" && !args.contains(&"!ipv4"),
                ipv6: name == "redirect-gateway" && args.contains(&"ipv6"),
                def1: args.contains(&"def1"),
                block_local: args.contains(&"block-local"),
                bypass_dhcp: args.contains(&"bypass-dhcp"),
            })),
            "block-ipv6" => Some(Self::BlockIpv6),
            "block-outside-dns" => Some(Self::BlockOutsideDns),
            "dhcp-option" => match args {
                ["DNS" | "DNS6", address] => {
                    address.parse().ok().map(|address| Self::Dhcp(DhcpOption::Dns(address)))
                }
                ["DOMAIN", name] => Some(Self::Dhcp(DhcpOption::Domain((*name).to_owned()))),
                ["DOMAIN-SEARCH", name] => Some(Self::Dhcp(DhcpOption::DomainSearch((*name).to_owned()))),
                [] => None,
                _ => Some(Self::Dhcp(DhcpOption::Other(args.join(" ")))),
            },
            "ping" => one(args).map(Self::Ping),
            "ping-restart" => one(args).map(Self::PingRestart),
            "ping-exit" => one(args).map(Self::PingExit),
            "peer-id" => one(args).filter(|&id| id <= crate::data::MAX_PEER_ID).map(Self::PeerId),
            "cipher" => one(args).map(Self::Cipher),
            "key-derivation" => (args == ["tls-ekm"]).then_some(Self::KeyDerivationExporter),
            "protocol-flags" => Some(Self::ProtocolFlags(ProtocolFlags {
                cc_exit: args.contains(&"cc-exit"),
                tls_ekm: args.contains(&"tls-ekm"),
                dyn_tls_crypt: args.contains(&"dyn-tls-crypt"),
            })),
            "tun-mtu" => args.first().and_then(|mtu| mtu.parse().ok()).map(Self::TunMtu),
            "sndbuf" => one(args).map(Self::SendBuffer),
            "rcvbuf" => one(args).map(Self::ReceiveBuffer),
            "explicit-exit-notify" => match args {
                [] => Some(Self::ExplicitExitNotify(1)),
                _ => one(args).map(Self::ExplicitExitNotify),
            },
            "auth-token" => one(args).map(Self::AuthToken),
            "comp-lzo" => Some(match args {
                ["no"] => Self::CompLzoNo,
                _ => Self::Compress("lzo".to_owned()),
            }),
            "compress" => Some(match args {
                ["stub-v2"] => Self::CompressStubV2,
                _ => Self::Compress(args.first().unwrap_or(&"lzo").to_string()),
            }),
            _ => Some(Self::Other(text.to_owned())),
        };
        option.ok_or_else(|| Malformed(text.to_owned()))
    }
}

fn one<T: FromStr>(args: &[&str]) -> Option<T> {
    match args {
        [only] => only.parse().ok(),
        _ => None,
    }
}

fn pair<A: FromStr, B: FromStr>(args: &[&str]) -> Option<(A, B)> {
    match args {
        [a, b] => Some((a.parse().ok()?, b.parse().ok()?)),
        _ => None,
    }
}

/// `route net [mask [gateway [metric]]]`.
fn route(args: &[&str]) -> Option<PushOption> {
    let net: Ipv4Addr = args.first()?.parse().ok()?;
    let mask = match args.get(1) {
        None | Some(&"default") => Ipv4Addr::BROADCAST,
        Some(mask) => mask.parse().ok()?,
    };
    let via = match args.get(2) {
        Some(&"net_gateway") => Via::Outside,
        _ => Via::Tunnel,
    };
    Some(PushOption::Route(Ipv4Net::with_netmask(net, mask).ok()?.trunc(), via))
}

/// The texts behind `PUSH_REPLY,`, one per message, each short enough for every client.
///
/// Options that are longer than a message or contain a comma cannot be pushed and are left out; the number of
/// those is returned too.
#[must_use]
pub fn bundle(options: &[PushOption]) -> (Vec<String>, usize) {
    // The longest marker is ",push-continuation 2".
    const RESERVE: usize = "PUSH_REPLY,".len() + ",push-continuation 2".len();
    let mut parts = vec![String::new()];
    let mut refused = 0;
    for option in options {
        let text = option.to_string();
        if text.len() + RESERVE > MAX_BUNDLE
            || text.contains(',')
            || !text.bytes().all(|b| (32..127).contains(&b))
        {
            refused += 1;
            continue;
        }
        let full = parts.last().is_some_and(|part| part.len() + 1 + text.len() + RESERVE > MAX_BUNDLE);
        if full {
            parts.push(String::new());
        }
        if let Some(part) = parts.last_mut() {
            if !part.is_empty() {
                part.push(',');
            }
            part.push_str(&text);
        }
    }
    let count = parts.len();
    if count > 1 {
        for (index, part) in parts.iter_mut().enumerate() {
            part.push_str(if index + 1 == count { ",push-continuation 1" } else { ",push-continuation 2" });
        }
    }
    (parts, refused)
}

/// Collects the parts of a reply.
#[derive(Debug, Default)]
pub struct Collector {
    options: Vec<PushOption>,
    /// Options that could not be understood, as they came.
    malformed: Vec<String>,
    parts: usize,
}

/// A complete reply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushReply {
    /// The options, in order.
    pub options: Vec<PushOption>,
    /// Known options with senseless parameters; they have no effect.
    pub malformed: Vec<String>,
}

impl Collector {
    /// Adds the text behind `PUSH_REPLY,`; the reply when it is complete. Parts beyond the limit are ignored.
    pub fn push(&mut self, text: &str) -> Option<PushReply> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return None;
        }
        let mut more = false;
        for item in text.split(',').filter(|item| !item.trim().is_empty()) {
            if let Some(flag) = item.trim().strip_prefix("push-continuation ") {
                more = flag.trim() == "2";
                continue;
            }
            match item.parse() {
                Ok(option) => self.options.push(option),
                Err(Malformed(text)) => self.malformed.push(text),
            }
        }
        if more {
            return None;
        }
        let Self { options, malformed, .. } = std::mem::take(self);
        Some(PushReply { options, malformed })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OBSERVED: &str = "route 10.77.0.0 255.255.0.0,topology subnet,route-gateway 10.9.0.1,\
        dhcp-option DNS 10.9.0.1,redirect-gateway def1 ipv6 bypass-dhcp,block-outside-dns,block-ipv6,ping 10,\
        ping-restart 60,ifconfig 10.9.0.2 255.255.255.0,peer-id 0,cipher AES-256-GCM,\
        protocol-flags cc-exit tls-ekm dyn-tls-crypt,tun-mtu 1500";

    #[test]
    fn the_reply_of_a_stock_server_is_understood_and_written_alike() {
        let reply = Collector::default().push(OBSERVED).unwrap();
        assert!(reply.malformed.is_empty());
        assert!(!reply.options.iter().any(|o| matches!(o, PushOption::Other(_))));
        assert_eq!(reply.options[0], PushOption::Route("10.77.0.0/16".parse().unwrap(), Via::Tunnel));
        assert_eq!(bundle(&reply.options).0, [OBSERVED]);
    }

    #[test]
    fn long_replies_come_in_parts_that_every_client_takes() {
        let options: Vec<_> = (0..200u8)
            .map(|n| PushOption::Route(Ipv4Net::new(Ipv4Addr::new(10, n, 0, 0), 16).unwrap(), Via::Tunnel))
            .collect();
        let (parts, refused) = bundle(&options);
        assert!(parts.len() > 1 && refused == 0);
        assert!(parts.iter().all(|part| "PUSH_REPLY,".len() + part.len() <= MAX_BUNDLE));
        let mut collector = Collector::default();
        let replies: Vec<_> = parts.iter().filter_map(|part| collector.push(part)).collect();
        assert_eq!(replies, [PushReply { options, malformed: vec![] }]);
    }

    #[test]
    fn what_cannot_be_pushed_is_counted_and_left_out() {
        let options = [
            PushOption::Other("x".repeat(2000)),
            PushOption::Other("a,route 0.0.0.0 0.0.0.0".into()),
            PushOption::Other("echo \u{1b}".into()),
            PushOption::Ping(10),
        ];
        assert_eq!(bundle(&options), (vec!["ping 10".to_owned()], 3));
    }

    #[test]
    fn malformed_options_are_named_and_have_no_effect() {
        let reply =
            Collector::default().push("ping ten,route 10.0.0.0 255.0.255.0,peer-id 16777215,ping 9").unwrap();
        assert_eq!(reply.options, [PushOption::Ping(9)]);
        assert_eq!(reply.malformed, ["ping ten", "route 10.0.0.0 255.0.255.0", "peer-id 16777215"]);
    }

    #[test]
    fn an_endless_reply_never_completes() {
        let mut collector = Collector::default();
        assert!((0..1000).all(|_| collector.push("ping 1,push-continuation 2").is_none()));
        assert!(collector.options.len() <= MAX_PARTS);
    }

    proptest! {
        #[test]
        fn any_text_parses_and_what_parses_is_written_alike(text in "[a-z0-9 ./:!-]{0,60}") {
            if let Ok(option) = text.parse::<PushOption>() {
                let again: PushOption = option.to_string().parse().unwrap();
                prop_assert_eq!(again, option);
            }
        }

        #[test]
        fn every_known_option_survives(a: u32, b: u32, bits in 0u8..=32, c: u128, flags: [bool; 5], n: u16) {
            let (x, y) = (Ipv4Addr::from(a), Ipv4Addr::from(b));
            let net = Ipv4Net::new(x, bits).unwrap().trunc();
            let net6 = Ipv6Net::new(Ipv6Addr::from(c), bits).unwrap();
            let options = [
                PushOption::Ifconfig(x, y),
                PushOption::Ifconfig6(net6, Ipv6Addr::from(c)),
                PushOption::Route(net, if flags[0] { Via::Tunnel } else { Via::Outside }),
                PushOption::Route6(net6.trunc()),
                PushOption::RedirectGateway(Redirect {
                    ipv4: flags[0], ipv6: flags[1], def1: flags[2], block_local: flags[3], bypass_dhcp: flags[4],
                }),
                PushOption::ProtocolFlags(ProtocolFlags {
                    cc_exit: flags[0], tls_ekm: flags[1], dyn_tls_crypt: flags[2],
                }),
                PushOption::Dhcp(DhcpOption::Dns(Ipv6Addr::from(c).into())),
                PushOption::TunMtu(n),
                PushOption::PeerId(a & 0x00ff_ffff).min_peer(),
                PushOption::PingRestart(b),
            ];
            for option in options {
                prop_assert_eq!(option.to_string().parse::<PushOption>().unwrap(), option);
            }
        }
    }

    impl PushOption {
        fn min_peer(self) -> Self {
            match self {
                Self::PeerId(id) => Self::PeerId(id.min(crate::data::MAX_PEER_ID)),
                other => other,
            }
        }
    }
}
