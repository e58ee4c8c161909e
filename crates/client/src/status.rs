//! What the client is doing, for people and programs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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
    /// The server does not want this client, and the kill switch lets nothing pass until the client is stopped.
    Blocked,
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
    /// Resolvers the server names; they are not applied.
    pub resolvers: Vec<IpAddr>,
    /// Search domains the server names; they are not applied.
    pub domains: Vec<String>,
    /// What led here, when something went wrong.
    pub why: Option<String>,
}

impl Status {
    /// A state with a server.
    pub(crate) fn at(state: State, remote: SocketAddr, transport: Transport) -> Self {
        Self { state, remote: Some(remote), transport: Some(transport.name()), ..Self::default() }
    }
}

impl fmt::Display for Status {
    /// As people read it, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Connecting => "connecting",
            State::Connected => "connected",
            State::Reconnecting => "reconnecting",
            State::Blocked => "blocked by the kill switch, until this program is stopped",
            State::Disconnected => "disconnected",
        })?;
        if let Some(remote) = self.remote {
            write!(f, " to {remote}")?;
        }
        if let Some(transport) = self.transport {
            write!(f, " ({transport})")?;
        }
        if self.state == State::Connected {
            let inner4 = self.inner4.map(|address| address.to_string());
            let own: Vec<String> = inner4.into_iter().chain(self.inner6.map(|a| a.to_string())).collect();
            let (interface, cipher) = (self.interface.as_deref().unwrap_or_default(), self.cipher);
            write!(f, " as {} on {interface}, {}", own.join(", "), cipher.unwrap_or_default())?;
        }
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_one_line_for_each_state() {
        let at = |state| Status::at(state, "192.0.2.1:1194".parse().unwrap(), Transport::Udp);
        assert_eq!(Status::default().to_string(), "connecting");
        assert_eq!(at(State::Connecting).to_string(), "connecting to 192.0.2.1:1194 (udp)");
        let connected = Status {
            inner4: Some("10.9.0.2".parse().unwrap()),
            inner6: Some("fd09::2".parse().unwrap()),
            cipher: Some("AES-256-GCM"),
            interface: Some("adit0".into()),
            ..at(State::Connected)
        };
        let line = "connected to 192.0.2.1:1194 (udp) as 10.9.0.2, fd09::2 on adit0, AES-256-GCM";
        assert_eq!(connected.to_string(), line);
        let lost = Status { why: Some("the server left".into()), ..at(State::Reconnecting) };
        assert_eq!(lost.to_string(), "reconnecting to 192.0.2.1:1194 (udp): the server left");
        assert_eq!(Status { state: State::Disconnected, ..Status::default() }.to_string(), "disconnected");
    }

    #[test]
    fn programs_read_every_key_every_time() {
        let json = serde_json::to_value(Status::default()).unwrap();
        let keys = ["state", "remote", "transport", "inner4", "inner6", "cipher", "interface", "why"];
        for key in keys.into_iter().chain(["resolvers", "domains"]) {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!((&json["state"], &json["remote"]), (&"connecting".into(), &serde_json::Value::Null));
    }
}
