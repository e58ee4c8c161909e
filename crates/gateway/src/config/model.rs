//! The configuration's tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use adit_host::capture::Means;
use adit_openvpn::data::{Cipher, ReplayOptions};
use adit_openvpn::wrap::Digest;
use adit_pki::KeyKind;
use adit_plan::pool::Pools;
use adit_plan::ports::PortSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer};

use super::duration;
use super::natfw::NatfwConfig;
use super::ports::{ForwardConfig, HostConfig, NatConfig};
use super::services::ServiceConfig;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gateway's name: it is in certificates and profiles.
    #[serde(default = "default_name")]
    pub name: String,
    /// Names or addresses that clients reach the gateway by.
    #[serde(default)]
    pub public: Vec<String>,
    /// Directory of everything that must survive, relative to the file.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The certificate authority.
    #[serde(default)]
    pub ca: CaConfig,
    /// Server identities.
    #[serde(default)]
    pub identity: Vec<IdentityConfig>,
    /// Where clients come in.
    #[serde(default)]
    pub entrance: Vec<EntranceConfig>,
    /// What becomes of first packets that nothing recognises.
    #[serde(default)]
    pub unknown: UnknownConfig,
    /// What clients get.
    #[serde(default)]
    pub tunnel: TunnelConfig,
    /// The database.
    #[serde(default)]
    pub store: StoreConfig,
    /// The API.
    #[serde(default)]
    pub api: ApiConfig,
    /// The machine's own ports.
    #[serde(default)]
    pub host: HostConfig,
    /// Foreign back ends behind the entrances.
    #[serde(default)]
    pub service: Vec<ServiceConfig>,
    /// Traceable source NAT.
    #[serde(default)]
    pub nat: Option<NatConfig>,
    /// Forwarded ports.
    #[serde(default)]
    pub forward: Option<ForwardConfig>,
    /// Rule files of `vpn-generate-natfw`.
    #[serde(default)]
    pub natfw: Option<NatfwConfig>,
}

fn default_name() -> String {
    "adit".into()
}

fn default_state() -> PathBuf {
    "state".into()
}

/// `[ca]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaConfig {
    /// Kind of the CA's key.
    #[serde(deserialize_with = "from_text")]
    pub key: KeyKind,
    /// How long the CA's own certificate is valid.
    #[serde(deserialize_with = "duration::deserialize")]
    pub lifetime: Duration,
    /// Kind of the keys made for devices.
    #[serde(deserialize_with = "from_text")]
    pub device_key: KeyKind,
    /// How long a device's certificate is valid.
    #[serde(deserialize_with = "duration::deserialize")]
    pub device_lifetime: Duration,
    /// How long a server's certificate is valid.
    #[serde(deserialize_with = "duration::deserialize")]
    pub server_lifetime: Duration,
}

const DAY: Duration = Duration::from_secs(86_400);

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            key: KeyKind::P384,
            lifetime: DAY * 7300,
            device_key: KeyKind::P256,
            device_lifetime: DAY * 1095,
            server_lifetime: DAY * 1095,
        }
    }
}

/// How an identity's control packets are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WrapKind {
    /// Not at all.
    None,
    /// An HMAC with one key for all clients.
    TlsAuth,
    /// Encryption with one key for all clients.
    TlsCrypt,
    /// Encryption with a key for each client.
    #[serde(rename = "tls-crypt-v2")]
    TlsCryptV2,
}

impl WrapKind {
    /// As written in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TlsAuth => "tls-auth",
            Self::TlsCrypt => "tls-crypt",
            Self::TlsCryptV2 => "tls-crypt-v2",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::None, Self::TlsAuth, Self::TlsCrypt, Self::TlsCryptV2]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// `[[identity]]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The name.
    pub name: String,
    /// Kind of the server's key.
    #[serde(deserialize_with = "from_text")]
    pub key: KeyKind,
    /// Protection of control packets.
    pub wrap: WrapKind,
    /// Digest of tls-auth.
    #[serde(default, deserialize_with = "digest")]
    pub auth: Option<Digest>,
    /// The port that profiles prefer.
    #[serde(default)]
    pub port: Option<u16>,
}

impl IdentityConfig {
    /// Digest of tls-auth, and of CBC data ciphers.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.auth.unwrap_or(Digest::Sha256)
    }
}

/// `[[entrance]]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntranceConfig {
    /// The address; `::` stands for all, IPv4 too.
    #[serde(default = "any_address")]
    pub address: IpAddr,
    /// What arrives by this interface, whatever the address of this machine.
    #[serde(default)]
    pub interface: Option<String>,
    /// UDP ports.
    #[serde(default, deserialize_with = "ports")]
    pub udp: PortSet,
    /// TCP ports.
    #[serde(default, deserialize_with = "ports")]
    pub tcp: PortSet,
    /// By what the ports are captured. Unless it is left open, few ports have no sockets of their own either.
    #[serde(default)]
    pub capture: Means,
    /// Ports that are left to others.
    #[serde(default, deserialize_with = "ports")]
    pub except: PortSet,
    /// Networks whose PROXY headers are believed.
    #[serde(default)]
    pub proxies: Vec<IpNet>,
    /// How long a TCP client may take for its first packet.
    #[serde(default = "default_inspect", deserialize_with = "duration::deserialize")]
    pub inspect: Duration,
}

fn any_address() -> IpAddr {
    Ipv6Addr::UNSPECIFIED.into()
}

fn default_inspect() -> Duration {
    Duration::from_secs(2)
}

impl EntranceConfig {
    /// The addresses to bind: both families for `::`.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self.address {
            IpAddr::V6(address) if address.is_unspecified() => {
                vec![Ipv4Addr::UNSPECIFIED.into(), self.address]
            }
            address => vec![address],
        }
    }
}

/// `[unknown]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnknownConfig {
    /// What is answered.
    #[serde(default)]
    pub answer: UnknownAnswer,
}

/// What becomes of a TCP connection whose first packet nothing recognises.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "String")]
pub enum UnknownAnswer {
    /// It is read and never answered, until its time is up.
    #[default]
    Silence,
    /// It is closed.
    Close,
    /// The service with this name gets it.
    Service(String),
}

impl From<String> for UnknownAnswer {
    fn from(word: String) -> Self {
        match word.as_str() {
            "silence" => Self::Silence,
            "close" => Self::Close,
            _ => Self::Service(word),
        }
    }
}

/// Which traffic goes through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routes {
    /// All.
    Full,
    /// That to these networks.
    Split(Vec<IpNet>),
}

/// `[tunnel]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// Name of the tun interface.
    pub interface: String,
    /// IPv4 addresses for clients.
    pub pool4: Vec<Ipv4Net>,
    /// IPv6 addresses for clients.
    pub pool6: Vec<Ipv6Net>,
    /// Resolvers for clients.
    pub dns: Vec<IpAddr>,
    /// Search domains for clients; the first is the connection's own.
    pub search: Vec<String>,
    /// Windows clients use no other resolver.
    pub block_outside: bool,
    /// What goes through the tunnel.
    #[serde(deserialize_with = "routes")]
    pub routes: Routes,
    /// Clients may reach each other.
    pub client_to_client: bool,
    /// MTU inside.
    pub mtu: u16,
    /// Largest outer packet that TCP inside leads to; 0 leaves TCP alone.
    pub mssfix: u16,
    /// Largest datagram before packets are cut by OpenVPN's own means; 0 never. Profiles carry it.
    pub fragment: u16,
    /// Packets, or packets and seconds, of tolerated disorder.
    #[serde(deserialize_with = "replay_window")]
    pub replay_window: ReplayOptions,
    /// Bytes of the sockets' send buffers; 0 leaves the system's.
    pub sndbuf: usize,
    /// Bytes of the sockets' receive buffers; 0 leaves the system's.
    pub rcvbuf: usize,
    /// Send and receive buffers clients are told to use; 0 leaves theirs.
    pub push_sndbuf: u32,
    /// See `push_sndbuf`.
    pub push_rcvbuf: u32,
    /// How often keys are renegotiated; 0 never.
    #[serde(deserialize_with = "duration::deserialize")]
    pub reneg: Duration,
    /// Silence after which a keepalive is sent, both ways.
    #[serde(deserialize_with = "duration::deserialize")]
    pub ping: Duration,
    /// Silence after which a client connects anew; the gateway waits twice as long.
    #[serde(deserialize_with = "duration::deserialize")]
    pub ping_restart: Duration,
    /// Data ciphers, best first.
    #[serde(deserialize_with = "ciphers")]
    pub ciphers: Vec<Cipher>,
    /// Data cipher for clients that do not negotiate.
    #[serde(deserialize_with = "cipher")]
    pub fallback: Option<Cipher>,
    /// Clients of OpenVPN 2.5 may use tls-crypt-v2, at the price of a small table of keys.
    pub old_clients: bool,
    /// Handshakes under way at most.
    pub max_handshakes: usize,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            interface: "adit0".into(),
            pool4: vec![],
            pool6: vec![],
            dns: vec![],
            search: vec![],
            block_outside: true,
            routes: Routes::Full,
            client_to_client: false,
            mtu: 1500,
            mssfix: 1492,
            fragment: 0,
            replay_window: ReplayOptions::default(),
            // 10 Gbit/s for 3 ms in, for 1 ms out: what arrives while the packet loop does something else.
            sndbuf: 1 << 20,
            rcvbuf: 4 << 20,
            push_sndbuf: 0,
            push_rcvbuf: 0,
            reneg: Duration::from_secs(3600),
            ping: Duration::from_secs(3),
            ping_restart: Duration::from_secs(7),
            ciphers: vec![Cipher::Aes256Gcm, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305],
            fallback: None,
            old_clients: true,
            max_handshakes: 1024,
        }
    }
}

impl TunnelConfig {
    /// The pools.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn pools(&self) -> Result<Pools, String> {
        Pools::new(&self.pool4, &self.pool6).map_err(|fault| fault.to_string())
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// `sqlite`.
    pub url: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { url: "sqlite".into() }
    }
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// The Unix socket, relative to the file.
    pub socket: PathBuf,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { socket: "/run/adit/adit.sock".into() }
    }
}

impl Config {
    /// What serde cannot see: values that do not fit each other.
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.store.url != "sqlite" {
            return Err(format!(
                "[store] url = \"{}\": this version of adit knows only \"sqlite\"",
                self.store.url
            ));
        }
        if self.name.is_empty()
            || self.name.len() > 64
            || !self.name.bytes().all(|b| b.is_ascii_graphic() && b != b'"')
        {
            return Err("name: 1 to 64 letters, digits or signs, without spaces and quotes".into());
        }
        self.validate_tunnel()?;
        self.validate_identities()?;
        self.validate_services()?;
        self.validate_ports()
    }

    /// What the file has and `adit up` cannot do yet, in words.
    pub(crate) fn unsupported(&self) -> Vec<String> {
        let tables = [("[nat]", self.nat.is_some()), ("[forward]", self.forward.is_some())];
        tables.into_iter().filter(|(_, present)| *present).map(|(table, _)| unsupported(table)).collect()
    }

    fn validate_tunnel(&self) -> Result<(), String> {
        let tunnel = &self.tunnel;
        let no_pools = tunnel.pool4.is_empty() && tunnel.pool6.is_empty();
        // For rule files alone no pools are needed; `adit up` asks for them again.
        let only_natfw = self.natfw.as_ref().is_some_and(|natfw| !natfw.profiles.is_empty());
        if no_pools && !only_natfw {
            return Err("[tunnel] has neither pool4 nor pool6: clients need addresses".into());
        }
        if !no_pools {
            tunnel.pools().map_err(|why| format!("[tunnel] {why}"))?;
        }
        let name = tunnel.interface.as_bytes();
        if name.is_empty() || name.len() > 15 || !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        {
            return Err("[tunnel] interface: 1 to 15 letters, digits or dashes".into());
        }
        if !(1280..=9000).contains(&tunnel.mtu) {
            return Err(format!("[tunnel] mtu = {}: between 1280 and 9000", tunnel.mtu));
        }
        if tunnel.fragment != 0 && tunnel.fragment < 200 {
            return Err(format!("[tunnel] fragment = {}: 0, or at least 200", tunnel.fragment));
        }
        if tunnel.ping.as_secs() == 0 || tunnel.ping_restart <= tunnel.ping {
            return Err("[tunnel] ping is at least 1s, and ping_restart longer than ping".into());
        }
        if tunnel.max_handshakes == 0 {
            return Err("[tunnel] max_handshakes = 0: nobody could connect; at least 1".into());
        }
        if tunnel.ciphers.is_empty() {
            return Err("[tunnel] ciphers is empty".into());
        }
        if let Some(domain) = tunnel.search.iter().find(|domain| !is_domain(domain)) {
            return Err(format!("[tunnel] search: \"{domain}\" is not a domain name"));
        }
        Ok(())
    }

    fn validate_services(&self) -> Result<(), String> {
        for (index, service) in self.service.iter().enumerate() {
            service.validate()?;
            if self.service.iter().take(index).any(|other| other.name == service.name) {
                return Err(format!("there are two services named {}", service.name));
            }
        }
        match &self.unknown.answer {
            UnknownAnswer::Service(name) if self.service.iter().all(|service| service.name != *name) => {
                Err(format!(
                    "[unknown] answer = \"{name}\": \"silence\", \"close\", or the name of a [[service]]"
                ))
            }
            _ => Ok(()),
        }
    }

    fn validate_identities(&self) -> Result<(), String> {
        for (index, identity) in self.identity.iter().enumerate() {
            let name = &identity.name;
            if name.is_empty()
                || name.len() > 64
                || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            {
                return Err(format!("identity \"{name}\": a name is 1 to 64 letters, digits or dashes"));
            }
            if self.identity.iter().take(index).any(|other| other.name == *name) {
                return Err(format!("there are two identities named {name}"));
            }
            if identity.auth.is_some() && identity.wrap != WrapKind::TlsAuth {
                return Err(format!("identity {name}: auth is for wrap = \"tls-auth\" only"));
            }
        }
        let unkeyed: Vec<_> = self.identity.iter().filter(|i| i.wrap == WrapKind::None).collect();
        for (index, identity) in unkeyed.iter().enumerate() {
            if let Some(other) = unkeyed.iter().take(index).find(|other| other.key == identity.key) {
                return Err(format!(
                    "identities {} and {} have no wrap and keys of one kind, so that nothing tells their clients \
                     apart; give one of them a wrap or another kind of key",
                    other.name, identity.name
                ));
            }
        }
        Ok(())
    }
}

fn unsupported(table: &str) -> String {
    format!("{table} is not supported by this version of adit; remove it")
}

fn is_domain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenPorts {
    One(u16),
    Text(String),
}

pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    match WrittenPorts::deserialize(deserializer)? {
        WrittenPorts::One(port) => Ok([port].into_iter().collect()),
        WrittenPorts::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let digest = Digest::named(&name);
    let names = "one of SHA1, SHA256, SHA384, SHA512";
    digest.map(Some).ok_or_else(|| serde::de::Error::custom(format!("\"{name}\" is not {names}")))
}

fn cipher<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cipher>, D::Error> {
    let name = String::deserialize(deserializer)?;
    named_cipher(&name).map(Some).map_err(serde::de::Error::custom)
}

fn ciphers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cipher>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    names.iter().map(|name| named_cipher(name)).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

fn named_cipher(name: &str) -> Result<Cipher, String> {
    let names: Vec<&str> = Cipher::ALL.iter().map(|cipher| cipher.name()).collect();
    Cipher::named(name).ok_or_else(|| format!("\"{name}\" is not one of {}", names.join(", ")))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenRoutes {
    Word(String),
    List(Vec<IpNet>),
}

fn routes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Routes, D::Error> {
    match WrittenRoutes::deserialize(deserializer)? {
        WrittenRoutes::Word(word) if word == "full" => Ok(Routes::Full),
        WrittenRoutes::Word(word) => Err(serde::de::Error::custom(format!(
            "routes = \"{word}\": \"full\", or a list of networks such as [\"10.0.0.0/8\"]"
        ))),
        WrittenRoutes::List(networks) => Ok(Routes::Split(networks.iter().map(IpNet::trunc).collect())),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenReplay {
    Packets(u32),
    Both([u32; 2]),
}

fn replay_window<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ReplayOptions, D::Error> {
    let defaults = ReplayOptions::default();
    let options = match WrittenReplay::deserialize(deserializer)? {
        WrittenReplay::Packets(packets) => ReplayOptions { packets, ..defaults },
        WrittenReplay::Both([packets, seconds]) => ReplayOptions { packets, seconds },
    };
    if options.packets > 65_536 || options.seconds > 600 {
        return Err(serde::de::Error::custom("replay_window: at most 65536 packets and 600 seconds"));
    }
    Ok(options)
}
