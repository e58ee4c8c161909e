//! What the tunnel is to be: a pure function of the profile, what the server pushes, and what the user wants.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use adit_openvpn::profile::{FilterAction, Profile};
use adit_openvpn::push::{DhcpOption, PushOption, PushReply, Redirect, Topology, Via};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The largest MTU the tunnel may have: what a client announces that it takes (`IV_MTU`).
pub(crate) const MAX_MTU: u16 = 1600;
const DEFAULT_MTU: u16 = 1500;

/// What goes through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// What the profile and the server say.
    #[default]
    AsTold,
    /// Everything.
    Full,
    /// These networks and nothing else.
    Split(Vec<IpNet>),
}

/// Why what the server pushes makes no tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TunnelFault {
    /// A `pull-filter reject` says so.
    #[error("the server pushes \"{0}\", which a pull-filter of the profile rejects")]
    Rejected(String),
    /// Neither `ifconfig` nor `ifconfig-ipv6`.
    #[error("the server gives no address")]
    NoAddress,
    /// `ifconfig` with a netmask that is none.
    #[error("the server gives address {0} with {1}, which is no netmask")]
    BadNetmask(Ipv4Addr, Ipv4Addr),
}

/// The tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tunnel {
    /// Own IPv4 address and the network around it.
    pub(crate) inner4: Option<Ipv4Net>,
    /// Own IPv6 address and the network around it.
    pub(crate) inner6: Option<Ipv6Net>,
    pub(crate) mtu: u16,
    /// Networks that are reached through the tunnel.
    pub(crate) inside: BTreeSet<IpNet>,
    /// Networks that belong into the tunnel and that it does not carry: refused, so that they do not leave past it.
    pub(crate) refused: BTreeSet<IpNet>,
    /// Networks that stay outside though a wider one goes through the tunnel.
    pub(crate) outside: BTreeSet<Ipv4Net>,
    /// This machine's own networks too are reached through the tunnel.
    pub(crate) block_local: bool,
    /// Resolvers the server names.
    pub(crate) resolvers: Vec<IpAddr>,
    /// Search domains the server names.
    pub(crate) domains: Vec<String>,
}

impl Tunnel {
    /// Before anything is known of the tunnel: what may belong into it is refused.
    pub(crate) fn shut(mode: &Mode) -> Self {
        let refused = match mode {
            Mode::Split(networks) => networks.iter().map(IpNet::trunc).collect(),
            Mode::Full | Mode::AsTold => everything().into(),
        };
        Self { refused, mtu: DEFAULT_MTU, ..Self::default() }
    }

    /// What it carries: whole IP versions, since whatever the server forwards may come from anywhere.
    pub(crate) fn carries(&self) -> Vec<IpNet> {
        let [all4, all6] = everything();
        let all4 = self.inner4.map(|_| all4);
        all4.into_iter().chain(self.inner6.map(|_| all6)).collect()
    }

    /// The tunnel that follows from all three.
    pub(crate) fn new(profile: &Profile, reply: &PushReply, mode: &Mode) -> Result<Self, TunnelFault> {
        let told = Told::gather(profile, reply)?;
        let (inner4, peer) = told.inner4()?;
        let inner6 = told.inner6;
        if inner4.is_none() && inner6.is_none() {
            return Err(TunnelFault::NoAddress);
        }
        let mtu = told.mtu.or(profile.tun_mtu).unwrap_or(DEFAULT_MTU).min(MAX_MTU);
        let mut tunnel = Self { inner4, inner6, mtu, ..Self::default() };
        let passes = |net: &IpNet| match net {
            IpNet::V4(_) => inner4.is_some(),
            IpNet::V6(_) => inner6.is_some() && !told.block_ipv6,
        };
        let mut wanted: BTreeSet<IpNet> = match mode {
            Mode::Split(networks) => networks.iter().map(IpNet::trunc).collect(),
            Mode::Full | Mode::AsTold => told.inside.clone(),
        };
        let [all4, all6] = everything();
        match mode {
            Mode::Full => wanted.extend([all4, all6]),
            Mode::AsTold => {
                wanted.extend(told.redirect.ipv4.then_some(all4));
                // Who sends all IPv4 through a tunnel does not want the same peer reached past it by IPv6.
                if told.redirect.ipv6 {
                    wanted.insert(all6);
                } else if told.redirect.ipv4 {
                    tunnel.refused.insert(all6);
                }
            }
            Mode::Split(_) => {}
        }
        let (inside, refused): (BTreeSet<_>, BTreeSet<_>) = wanted.into_iter().partition(passes);
        tunnel.inside = inside;
        tunnel.inside.extend(peer.map(|peer| IpNet::from(IpAddr::from(peer))));
        tunnel.refused.extend(refused);
        tunnel.refused.retain(|net| !tunnel.inside.contains(net));
        if !matches!(mode, Mode::Split(_)) {
            tunnel.outside = told.outside;
            tunnel.block_local = told.redirect.block_local;
        }
        tunnel.resolvers = told.resolvers;
        tunnel.domains = told.domains;
        Ok(tunnel)
    }
}

/// All of IPv4, all of IPv6.
fn everything() -> [IpNet; 2] {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

impl fmt::Display for Tunnel {
    /// Addresses, and what goes where.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |items: Vec<String>| items.join(", ");
        let own =
            self.inner4.map(|net| net.to_string()).into_iter().chain(self.inner6.map(|net| net.to_string()));
        write!(f, "{}", words(own.collect()))?;
        for (name, nets) in [("inside", &self.inside), ("refused", &self.refused)] {
            if !nets.is_empty() {
                write!(f, "; {name}: {}", words(nets.iter().map(ToString::to_string).collect()))?;
            }
        }
        Ok(())
    }
}

/// What profile and server say together.
#[derive(Debug, Default)]
struct Told {
    topology: Option<Topology>,
    ifconfig: Option<(Ipv4Addr, Ipv4Addr)>,
    inner6: Option<Ipv6Net>,
    mtu: Option<u16>,
    redirect: Redirect,
    inside: BTreeSet<IpNet>,
    outside: BTreeSet<Ipv4Net>,
    block_ipv6: bool,
    resolvers: Vec<IpAddr>,
    domains: Vec<String>,
}

impl Told {
    fn gather(profile: &Profile, reply: &PushReply) -> Result<Self, TunnelFault> {
        let mut told = Self::default();
        for option in profile.options.iter().chain(profile.redirect.map(PushOption::RedirectGateway).as_ref())
        {
            told.note(option);
        }
        for option in &reply.options {
            match profile.filter(option) {
                FilterAction::Accept => told.note(option),
                FilterAction::Ignore => tracing::debug!(%option, "pushed, and ignored as the profile says"),
                FilterAction::Reject => return Err(TunnelFault::Rejected(option.to_string())),
            }
        }
        Ok(told)
    }

    fn note(&mut self, option: &PushOption) {
        match option {
            PushOption::Topology(topology) => self.topology = Some(*topology),
            PushOption::Ifconfig(local, second) => self.ifconfig = Some((*local, *second)),
            PushOption::Ifconfig6(net, _) => self.inner6 = Some(*net),
            PushOption::TunMtu(mtu) => self.mtu = Some(*mtu),
            PushOption::Route(net, Via::Tunnel) => {
                self.inside.insert(IpNet::V4(*net));
            }
            PushOption::Route(net, Via::Outside) => {
                self.outside.insert(*net);
            }
            PushOption::Route6(net) => {
                self.inside.insert(IpNet::V6(net.trunc()));
            }
            PushOption::RedirectGateway(redirect) => {
                self.redirect.ipv4 |= redirect.ipv4;
                self.redirect.ipv6 |= redirect.ipv6;
                self.redirect.block_local |= redirect.block_local;
            }
            PushOption::BlockIpv6 => self.block_ipv6 = true,
            PushOption::Dhcp(DhcpOption::Dns(address)) => self.resolvers.push(*address),
            PushOption::Dhcp(DhcpOption::Domain(name) | DhcpOption::DomainSearch(name)) => {
                self.domains.push(name.clone());
            }
            _ => {}
        }
    }

    /// The own address with its network; and the peer's, where the tunnel has two ends and no network.
    fn inner4(&self) -> Result<(Option<Ipv4Net>, Option<Ipv4Addr>), TunnelFault> {
        let Some((local, second)) = self.ifconfig else { return Ok((None, None)) };
        // Servers that forget to push a topology give themselves away by the netmask.
        let looks_like_netmask = second.octets()[0] == 255;
        let subnet = match self.topology {
            Some(topology) => topology == Topology::Subnet,
            None => looks_like_netmask,
        };
        if !subnet {
            return Ok((Some(Ipv4Net::from(local)), Some(second)));
        }
        let net = Ipv4Net::with_netmask(local, second);
        net.map(|net| (Some(net), None)).map_err(|_| TunnelFault::BadNetmask(local, second))
    }
}

#[cfg(test)]
mod tests {
    use adit_openvpn::push::Collector;

    use super::*;

    fn profile(extra: &str) -> Profile {
        let text = format!("client\nremote vpn.example.org\n<ca>\nx\n</ca>\n{extra}\n");
        Profile::parse(&text, &mut |_| Err("no files".into())).unwrap()
    }

    fn tunnel_of(extra: &str, pushed: &str, mode: &Mode) -> Result<Tunnel, TunnelFault> {
        let reply = Collector::default().push(pushed).unwrap();
        assert_eq!(reply.malformed, [""; 0]);
        Tunnel::new(&profile(extra), &reply, mode)
    }

    fn tunnel(pushed: &str) -> Tunnel {
        tunnel_of("", pushed, &Mode::AsTold).unwrap()
    }

    fn nets<T: ToString>(nets: &BTreeSet<T>) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    const DUAL: &str = "topology subnet,ifconfig 10.9.0.2 255.255.255.0,ifconfig-ipv6 fd09::2/64 fd09::1";
    const V4: &str = "topology subnet,ifconfig 10.9.0.2 255.255.255.0";

    #[test]
    fn addresses_follow_the_topology() {
        let subnet = tunnel(DUAL);
        assert_eq!(subnet.inner4, Some("10.9.0.2/24".parse().unwrap()));
        assert_eq!(subnet.inner6, Some("fd09::2/64".parse().unwrap()));
        assert_eq!(subnet.carries(), everything());
        assert_eq!(tunnel(V4).carries(), everything()[..1]);
        assert_eq!(nets(&subnet.inside), [""; 0]);

        for pair in ["topology net30,ifconfig 10.9.0.6 10.9.0.5", "ifconfig 10.9.0.6 10.9.0.5"] {
            let two_ends = tunnel(pair);
            assert_eq!(two_ends.inner4, Some("10.9.0.6/32".parse().unwrap()));
            assert_eq!(nets(&two_ends.inside), ["10.9.0.5/32"]);
        }
        assert_eq!(tunnel("ifconfig 10.9.0.2 255.255.0.0").inner4, Some("10.9.0.2/16".parse().unwrap()));

        let fault = |pushed| tunnel_of("", pushed, &Mode::AsTold).unwrap_err();
        assert_eq!(fault("ping 10"), TunnelFault::NoAddress);
        assert!(matches!(
            fault("topology subnet,ifconfig 10.9.0.2 255.0.255.0"),
            TunnelFault::BadNetmask(..)
        ));
    }

    #[test]
    fn what_is_pushed_goes_through_the_tunnel_and_nothing_else() {
        let pushed =
            format!("{DUAL},route 10.0.0.0 255.0.0.0,route-ipv6 2001:db8::/32,dhcp-option DNS 10.9.0.1");
        let split = tunnel(&pushed);
        assert_eq!(nets(&split.inside), ["10.0.0.0/8", "2001:db8::/32"]);
        assert_eq!((nets(&split.refused), nets(&split.outside)), (vec![], vec![]));
        assert_eq!(split.resolvers, ["10.9.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_full_tunnel_lets_neither_version_past() {
        let both = tunnel(&format!("{DUAL},redirect-gateway def1 ipv6"));
        assert_eq!(
            (nets(&both.inside), nets(&both.refused)),
            (vec!["0.0.0.0/0".into(), "::/0".into()], vec![])
        );
        for pushed in [
            format!("{V4},redirect-gateway def1"),
            format!("{V4},redirect-gateway def1 ipv6"),
            format!("{V4},redirect-gateway def1,block-ipv6"),
            format!("{DUAL},redirect-gateway def1"),
            format!("{DUAL},redirect-gateway def1 ipv6,block-ipv6"),
        ] {
            let tunnel = tunnel(&pushed);
            assert_eq!(nets(&tunnel.inside), ["0.0.0.0/0"], "{pushed}");
            assert_eq!(nets(&tunnel.refused), ["::/0"], "{pushed}");
        }
    }

    #[test]
    fn ipv4_may_be_left_out_of_a_redirection_explicitly() {
        let v6_only = tunnel(&format!("{DUAL},redirect-gateway !ipv4 ipv6"));
        assert_eq!((nets(&v6_only.inside), nets(&v6_only.refused)), (vec!["::/0".into()], vec![]));
        let private = tunnel(&format!("{DUAL},redirect-private def1,route 10.1.0.0 255.255.0.0"));
        assert_eq!((nets(&private.inside), nets(&private.refused)), (vec!["10.1.0.0/16".into()], vec![]));
    }

    #[test]
    fn the_users_choice_replaces_the_servers() {
        let pushed = format!(
            "{V4},redirect-gateway def1 block-local,route 10.0.0.0 255.0.0.0,route 192.0.2.0 255.255.255.0 net_gateway"
        );
        let split = Mode::Split(vec!["172.16.5.9/12".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
        let split = tunnel_of("", &pushed, &split).unwrap();
        assert_eq!(nets(&split.inside), ["172.16.0.0/12"]);
        assert_eq!(nets(&split.refused), ["2001:db8::/32"], "asked for, and the tunnel has no IPv6");
        assert_eq!((nets(&split.outside), split.block_local), (vec![], false));

        let told = tunnel(&pushed);
        assert_eq!((nets(&told.outside), told.block_local), (vec!["192.0.2.0/24".into()], true));

        let full = tunnel_of("", &format!("{V4},route 10.0.0.0 255.0.0.0"), &Mode::Full).unwrap();
        assert_eq!(nets(&full.inside), ["0.0.0.0/0", "10.0.0.0/8"]);
        assert_eq!(nets(&full.refused), ["::/0"]);
        let full = tunnel_of("", DUAL, &Mode::Full).unwrap();
        assert_eq!(nets(&full.inside), ["0.0.0.0/0", "::/0"]);
    }

    #[test]
    fn a_tunnel_that_is_shut_refuses_what_may_belong_into_it() {
        for mode in [Mode::AsTold, Mode::Full] {
            assert_eq!(nets(&Tunnel::shut(&mode).refused), ["0.0.0.0/0", "::/0"]);
        }
        let split = Tunnel::shut(&Mode::Split(vec!["172.16.5.9/12".parse().unwrap()]));
        assert_eq!(nets(&split.refused), ["172.16.0.0/12"]);
        assert_eq!((split.inner4, split.inner6, split.inside.len()), (None, None, 0));
    }

    #[test]
    fn the_profiles_filters_and_its_own_routes_count() {
        let pushed = format!("{V4},redirect-gateway def1,route 10.0.0.0 255.0.0.0,dhcp-option DNS 10.9.0.1");
        let own = "route 172.16.0.0 255.240.0.0";
        let nopull = tunnel_of(&format!("route-nopull\n{own}"), &pushed, &Mode::AsTold).unwrap();
        assert_eq!(nets(&nopull.inside), ["172.16.0.0/12"]);
        assert_eq!(nopull.resolvers, [IpAddr::V4(Ipv4Addr::LOCALHOST); 0]);

        let ignore = "pull-filter ignore \"redirect-gateway\"";
        let filtered = tunnel_of(ignore, &pushed, &Mode::AsTold).unwrap();
        assert_eq!((nets(&filtered.inside), nets(&filtered.refused)), (vec!["10.0.0.0/8".into()], vec![]));

        let reject = "pull-filter reject \"route \"";
        let fault = tunnel_of(reject, &pushed, &Mode::AsTold).unwrap_err();
        assert_eq!(fault, TunnelFault::Rejected("route 10.0.0.0 255.0.0.0".into()));

        let redirected = tunnel_of("redirect-gateway def1 ipv6", V4, &Mode::AsTold).unwrap();
        assert_eq!(
            (nets(&redirected.inside), nets(&redirected.refused)),
            (vec!["0.0.0.0/0".into()], vec!["::/0".into()])
        );
    }

    #[test]
    fn the_servers_mtu_counts_as_far_as_it_fits() {
        let mtu = |extra: &str, pushed: &str| {
            tunnel_of(extra, &format!("{V4}{pushed}"), &Mode::AsTold).unwrap().mtu
        };
        assert_eq!(
            [mtu("", ""), mtu("tun-mtu 1400", ""), mtu("tun-mtu 1400", ",tun-mtu 1420")],
            [1500, 1400, 1420]
        );
        assert_eq!(mtu("", ",tun-mtu 9000"), MAX_MTU);
    }
}
