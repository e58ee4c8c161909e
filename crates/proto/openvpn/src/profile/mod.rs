//! Client profiles: the `.ovpn` file, read and written.
//!
//! A profile is lines of directives (`#` and `;` start comments, quotes and backslashes as in a shell), with
//! inline blocks such as `<ca>…</ca>` and `<connection>…</connection>`. Nothing in a profile is ever executed:
//! directives that would run a program are named in [`Profile::notes`] and have no effect.

mod lexer;
mod read;
mod write;

use std::fmt;

use zeroize::Zeroizing;

pub use read::ProfileFault;
pub use write::{Rendering, render};

use crate::data::{Cipher, ReplayOptions};
use crate::kex::Credentials;
use crate::keyfile::{ClientKeyV2, StaticKey};
use crate::push::{PushOption, Redirect};
use crate::tls::Group;
use crate::wrap::{Digest, Direction};

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP datagrams.
    Udp,
    /// A TCP stream.
    Tcp,
}

impl Transport {
    /// `udp` or `tcp`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Which IP version a remote is to be reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// Either.
    #[default]
    Any,
    /// IPv4 (`udp4`, `tcp4`).
    V4,
    /// IPv6 (`udp6`, `tcp6`).
    V6,
}

/// A server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// UDP or TCP.
    pub transport: Transport,
    /// IP version.
    pub family: Family,
}

/// How control packets are protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProfileWrap {
    /// Not at all.
    #[default]
    None,
    /// tls-auth; its digest is the profile's `auth`.
    TlsAuth(StaticKey, Direction),
    /// tls-crypt.
    TlsCrypt(StaticKey),
    /// tls-crypt-v2.
    TlsCryptV2(ClientKeyV2),
}

/// `verify-x509-name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyName {
    /// The whole subject, as OpenVPN prints it.
    Subject(String),
    /// The common name.
    Name(String),
    /// The beginning of the common name.
    NamePrefix(String),
}

/// Whether a pushed option counts (`pull-filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterAction {
    /// It counts.
    Accept,
    /// It is ignored.
    Ignore,
    /// The connection is given up.
    Reject,
}

/// Something in the profile that has no effect, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Line number, from 1.
    pub line: usize,
    /// The directive.
    pub directive: String,
    /// Why it has no effect.
    pub why: &'static str,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.directive, self.why)
    }
}

/// A client's profile.
#[derive(Clone, PartialEq, Eq)]
pub struct Profile {
    /// Servers, in order.
    pub remotes: Vec<Remote>,
    /// Try the remotes in random order.
    pub remote_random: bool,
    /// Certificates of trusted authorities, PEM.
    pub ca: Option<String>,
    /// The client's certificate chain, PEM.
    pub cert: Option<String>,
    /// The client's private key, PEM.
    pub key: Option<Zeroizing<String>>,
    /// Revoked servers, PEM.
    pub crl: Option<String>,
    /// SHA-256 fingerprints of acceptable server certificates, lower-case hex without colons.
    pub peer_fingerprints: Vec<String>,
    /// Protection of control packets.
    pub wrap: ProfileWrap,
    /// Digest of tls-auth and CBC ciphers.
    pub auth: Digest,
    /// Data ciphers, best first.
    pub ciphers: Vec<Cipher>,
    /// The cipher for servers that do not negotiate.
    pub fallback: Option<Cipher>,
    /// The server's certificate must be one for servers (`remote-cert-tls server`).
    pub remote_cert_tls: bool,
    /// The name the server's certificate must have.
    pub verify_name: Option<VerifyName>,
    /// TLS 1.3 is required.
    pub tls13_only: bool,
    /// Key exchanges of TLS, best first (`tls-groups`); empty when the profile leaves it open.
    pub tls_groups: Vec<Group>,
    /// User name and password, when they are in the profile.
    pub credentials: Option<Credentials>,
    /// User name and password are to be asked for.
    pub ask_credentials: bool,
    /// Name of the tun interface, when it names one.
    pub dev: Option<String>,
    /// MTU of the tun interface.
    pub tun_mtu: Option<u16>,
    /// `mssfix`: largest outer packet; 0 switches it off.
    pub mssfix: Option<u16>,
    /// `fragment`.
    pub fragment: Option<u16>,
    /// `replay-window`.
    pub replay: ReplayOptions,
    /// `reneg-sec`; 0 never.
    pub reneg_sec: Option<u32>,
    /// `hand-window`, seconds.
    pub hand_window: Option<u32>,
    /// `ping`, seconds, unless the server pushes another.
    pub ping: Option<u32>,
    /// `ping-restart`, seconds, unless the server pushes another.
    pub ping_restart: Option<u32>,
    /// `redirect-gateway` of the profile itself.
    pub redirect: Option<Redirect>,
    /// Options the profile itself has: routes and resolver settings.
    pub options: Vec<PushOption>,
    /// Pushed routes and resolver settings are not taken (`route-nopull`).
    pub route_nopull: bool,
    /// Filters of pushed options: the first whose text begins the option counts.
    pub pull_filters: Vec<(FilterAction, String)>,
    /// What has no effect here.
    pub notes: Vec<Note>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("remotes", &self.remotes).finish_non_exhaustive()
    }
}

impl Profile {
    /// Reads a profile. `load` fetches a file that a directive names; it gets the name as written.
    ///
    /// # Errors
    /// [`ProfileFault`] with line, directive and what to do.
    pub fn parse(
        text: &str,
        load: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<Self, ProfileFault> {
        read::parse(text, load)
    }

    /// What becomes of a pushed option, by the profile's filters.
    #[must_use]
    pub fn filter(&self, option: &PushOption) -> FilterAction {
        let text = option.to_string();
        let filter = self.pull_filters.iter().find(|(_, prefix)| text.starts_with(prefix.as_str()));
        match filter {
            Some((action, _)) => *action,
            None if self.route_nopull && concerns_routes(option) => FilterAction::Ignore,
            None => FilterAction::Accept,
        }
    }
}

/// Options that `route-nopull` leaves out.
fn concerns_routes(option: &PushOption) -> bool {
    matches!(
        option,
        PushOption::Route(..)
            | PushOption::Route6(_)
            | PushOption::RedirectGateway(_)
            | PushOption::BlockIpv6
            | PushOption::Dhcp(_)
            | PushOption::BlockOutsideDns
    )
}

#[cfg(test)]
mod tests;
