//! What the client is doing, for people and programs.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_openvpn::profile::Transport;
use serde::Serialize;

/// How far the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Connecting for the first time.
    #[default]
    Connecting,
    /// Packets pass.
    Connected,
    /// The connection was lost; interface, addresses and routes stay meanwhile.
    Reconnecting,
    /// It is over.
    Disconnected,
}

/// A change of state. What is not known, or does not apply, is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Status {
    /// How far.
    pub state: State,
    /// The server that is tried or connected.
    pub remote: Option<SocketAddr>,
    /// `udp` or `tcp`.
    pub transport: Option<&'static str>,
    /// Own IPv4 address inside the tunnel.
    pub inner4: Option<Ipv4Addr>,
    /// Own IPv6 address inside the tunnel.
    pub inner6: Option<Ipv6Addr>,
    /// The data cipher.
    pub cipher: Option<&'static str>,
    /// Name of the tun interface.
    pub interface: Option<String>,
    /// What led here, when something went wrong.
    pub why: Option<String>,
}

impl Status {
    /// A state with a server.
    pub(crate) fn at(state: State, remote: SocketAddr, transport: Transport) -> Self {
        Self { state, remote: Some(remote), transport: Some(transport.name()), ..Self::default() }
    }
}
