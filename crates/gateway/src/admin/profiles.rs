//! Profiles: the one file a client needs.

use adit_api::Problem;
use adit_openvpn::keyfile::StaticKey;
use adit_openvpn::profile::{
    Family, FilterAction, Profile, ProfileWrap, Remote, Rendering, Transport, VerifyName, render,
};
use adit_openvpn::push::{PushOption, Redirect, Via};
use adit_openvpn::wkc::{Metadata, Unwrapper};
use adit_openvpn::wrap::Direction;
use adit_pki::Certificate;
use adit_plan::ports::PortSet;
use ipnet::IpNet;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Admin, internal, invalid, not_found};
use crate::clock;
use crate::config::{Config, IdentityConfig, Routes, WrapKind};
use crate::entrances::{self, Others};
use crate::keyring::WrapKey;

/// What carries the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileTransport {
    /// UDP alone.
    Udp,
    /// TCP alone.
    Tcp,
    /// UDP first, then TCP.
    #[default]
    Both,
}

/// What goes through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileRoute {
    /// Everything.
    Full,
    /// What the gateway's pools and configured networks are.
    Split,
    /// Nothing by itself.
    None,
}

/// How a profile is to be made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileOptions {
    /// The identity; the first one of the configuration otherwise.
    #[serde(default)]
    pub identity: Option<String>,
    /// UDP, TCP or both.
    #[serde(default)]
    pub transport: ProfileTransport,
    /// A port, or `random`: one of the entrances'.
    #[serde(default)]
    pub port: Option<String>,
    /// The gateway's name or address, instead of the configured ones.
    #[serde(default)]
    pub remote: Option<String>,
    /// What goes through the tunnel; otherwise what the gateway pushes.
    #[serde(default)]
    pub route: Option<ProfileRoute>,
}

impl Admin {
    /// A device's profile.
    ///
    /// # Errors
    /// [`Problem`], worded for people.
    pub fn profile(
        &self,
        user: &str,
        device: &str,
        options: &ProfileOptions,
    ) -> Result<Zeroizing<String>, Problem> {
        let loaded = self.loaded();
        let config = &loaded.config;
        let identity = choose_identity(config, options.identity.as_deref())?;
        let found = self.find_device(user, device)?;
        let now = clock::now();
        let certificates = self.store.certificates(found.id).map_err(internal)?;
        let usable = certificates.iter().filter(|c| c.revocation.is_none() && c.not_after > now);
        let newest = usable.max_by_key(|certificate| certificate.not_after);
        let newest = newest.ok_or_else(|| invalid(format!("{user}/{device} has no certificate in force")))?;
        let cert = Certificate::from_der(&newest.der).map_err(internal)?;
        let key = self.keyring().device_key(found.id).map_err(internal)?;
        let mut comments = vec![
            format!("{user}/{device} at {}: for this device only, and secret", config.name),
            "Use it as it is, for instance: openvpn --config FILE".to_owned(),
        ];
        if key.is_none() {
            comments.push("The device made its key itself: add it as a <key> block".to_owned());
        }
        let others = self.live().map(|live| live.machine.others()).unwrap_or_default();
        let profile = Profile {
            remotes: remotes(config, &others, identity, options)?,
            remote_random: false,
            ca: Some(self.keyring().trusted_pem()),
            cert: Some(cert.to_pem()),
            key,
            crl: None,
            peer_fingerprints: Vec::new(),
            wrap: self.profile_wrap(config, identity)?,
            auth: identity.digest(),
            ciphers: config.tunnel.ciphers.clone(),
            fallback: config.tunnel.fallback,
            remote_cert_tls: true,
            verify_name: Some(VerifyName::Name(config.name.clone())),
            tls13_only: false,
            tls_groups: Vec::new(),
            credentials: None,
            ask_credentials: false,
            dev: None,
            tun_mtu: Some(config.tunnel.mtu).filter(|mtu| *mtu != 1500),
            mssfix: Some(config.tunnel.mssfix).filter(|n| *n != 1492),
            fragment: Some(config.tunnel.fragment).filter(|n| *n > 0),
            replay: config.tunnel.replay_window,
            reneg_sec: Some(0),
            hand_window: None,
            ping: None,
            ping_restart: None,
            redirect: None,
            options: Vec::new(),
            route_nopull: false,
            pull_filters: Vec::new(),
            notes: Vec::new(),
        };
        let profile = route(profile, config, options.route);
        Ok(render(&profile, &Rendering { comments }))
    }

    fn profile_wrap(&self, config: &Config, identity: &IdentityConfig) -> Result<ProfileWrap, Problem> {
        let keys = self
            .keyring()
            .identity(identity, &config.name, config.ca.server_lifetime, clock::unix())
            .map_err(internal)?;
        Ok(match keys.wrap {
            WrapKey::None => ProfileWrap::None,
            WrapKey::Shared(key) if identity.wrap == WrapKind::TlsAuth => {
                ProfileWrap::TlsAuth(key, Direction::Inverse)
            }
            WrapKey::Shared(key) => ProfileWrap::TlsCrypt(key),
            WrapKey::PerClient(server) => {
                let key = StaticKey::new(&crate::keyring::random());
                let made = Metadata::Timestamp(clock::unix().as_secs());
                ProfileWrap::TlsCryptV2(Unwrapper::new(&server).seal(&key, &made))
            }
        })
    }
}

fn choose_identity<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a IdentityConfig, Problem> {
    match name {
        Some(name) => {
            config.identity.iter().find(|i| i.name == name).ok_or_else(|| not_found("identity", name))
        }
        None => config.identity.first().ok_or_else(|| invalid("the configuration has no [[identity]]")),
    }
}

fn remotes(
    config: &Config,
    others: &Others,
    identity: &IdentityConfig,
    options: &ProfileOptions,
) -> Result<Vec<Remote>, Problem> {
    let hosts = match &options.remote {
        Some(host) if is_host(host) => vec![host.clone()],
        Some(host) => return Err(invalid(format!("\"{host}\" is neither a name nor an address"))),
        None => config.public.clone(),
    };
    if hosts.is_empty() {
        return Err(invalid(
            "the gateway does not know its public address: set `public` in the configuration, or use --remote",
        ));
    }
    let transports: &[Transport] = match options.transport {
        ProfileTransport::Udp => &[Transport::Udp],
        ProfileTransport::Tcp => &[Transport::Tcp],
        ProfileTransport::Both => &[Transport::Udp, Transport::Tcp],
    };
    let mut remotes = Vec::new();
    for transport in transports {
        let open = open_ports(config, others, *transport);
        let Some(port) = choose_port(&open, identity, options.port.as_deref())? else {
            continue;
        };
        remotes.extend(hosts.iter().map(|host| Remote {
            host: host.clone(),
            port,
            transport: *transport,
            family: Family::Any,
        }));
    }
    if remotes.is_empty() {
        return Err(invalid("no [[entrance]] has a port for this transport"));
    }
    Ok(remotes)
}

/// Ports that clients know, best first: a profile that names no port gets one of them if it can.
const KNOWN: [u16; 2] = [1194, 443];

/// The port to put in a profile; `None` when there is no entrance for the transport.
fn choose_port(
    open: &PortSet,
    identity: &IdentityConfig,
    wanted: Option<&str>,
) -> Result<Option<u16>, Problem> {
    match wanted {
        Some("random") => {
            let at = u64::from_be_bytes(crate::keyring::random()) % open.count().max(1) as u64;
            Ok(open.iter().nth(at as usize))
        }
        Some(text) => {
            let port = text.parse().ok().filter(|port: &u16| *port > 0);
            port.map(Some).ok_or_else(|| invalid(format!("\"{text}\" is neither a port nor \"random\"")))
        }
        None => {
            let mut preferred = identity.port.into_iter().chain(KNOWN);
            Ok(preferred.find(|port| open.contains(*port)).or_else(|| open.iter().next()))
        }
    }
}

/// The ports that clients reach the gateway by.
fn open_ports(config: &Config, others: &Others, transport: Transport) -> PortSet {
    entrances::for_rules(config, others).iter().fold(PortSet::default(), |open, entrance| {
        open.either(match transport {
            Transport::Udp => &entrance.udp,
            Transport::Tcp => &entrance.tcp,
        })
    })
}

fn is_host(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
        || (1..=253).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

/// What differs from what the gateway pushes is in the profile.
fn route(mut profile: Profile, config: &Config, wanted: Option<ProfileRoute>) -> Profile {
    let ignore = |text: &str| (FilterAction::Ignore, text.to_owned());
    match (wanted, &config.tunnel.routes) {
        (None, _)
        | (Some(ProfileRoute::Full), Routes::Full)
        | (Some(ProfileRoute::Split), Routes::Split(_)) => {}
        (Some(ProfileRoute::Full), Routes::Split(_)) => {
            profile.redirect =
                Some(Redirect { ipv4: true, ipv6: true, def1: true, block_local: false, bypass_dhcp: true });
        }
        (Some(ProfileRoute::Split), Routes::Full) => {
            profile.pull_filters = vec![ignore("redirect-gateway"), ignore("block-ipv6")];
            let pools = config.tunnel.pool4.iter().map(|net| IpNet::V4(*net));
            profile.options = pools
                .filter_map(|net| match net {
                    IpNet::V4(net) => Some(PushOption::Route(net.trunc(), Via::Tunnel)),
                    IpNet::V6(_) => None,
                })
                .collect();
        }
        (Some(ProfileRoute::None), _) => {
            let kinds = [
                "redirect-gateway",
                "block-ipv6",
                "route ",
                "route-ipv6",
                "dhcp-option",
                "block-outside-dns",
            ];
            profile.pull_filters = kinds.into_iter().map(ignore).collect();
        }
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_and_nothing_else() {
        for good in ["vpn.example.org", "192.0.2.1", "2001:db8::1", "a-b"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a b", "a\nremote evil", "a;b", &"x".repeat(300)] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn a_profile_gets_a_port_that_leads_to_the_gateway() {
        let identity = |port| IdentityConfig {
            name: "a".into(),
            key: "P-256".parse().unwrap(),
            wrap: WrapKind::TlsCrypt,
            auth: None,
            port,
        };
        let chosen =
            |open: &str, port, wanted| choose_port(&open.parse().unwrap(), &identity(port), wanted).unwrap();
        assert_eq!(chosen("1-29999", Some(5060), None), Some(5060));
        assert_eq!(chosen("1-29999", Some(40_000), None), Some(1194));
        assert_eq!(chosen("53,443", None, None), Some(443));
        assert_eq!(chosen("53,80", None, None), Some(53));
        assert_eq!(chosen("1-29999", Some(5060), Some("7")), Some(7));
        for _ in 0..100 {
            assert!(matches!(chosen("5,8", Some(6), Some("random")), Some(5 | 8)));
        }
        assert_eq!(choose_port(&PortSet::default(), &identity(None), None).unwrap(), None);
    }
}
