//! Sessions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::Time;

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The session's id.
    pub id: String,
    /// The gateway it is at.
    pub gateway: String,
    /// The user's name.
    pub user: String,
    /// The device's name.
    pub device: String,
    /// `openvpn`.
    pub protocol: String,
    /// Name of the identity that answered.
    pub identity: String,
    /// What carries it.
    pub transport: Transport,
    /// Where the client is.
    pub remote_address: IpAddr,
    /// Its port.
    pub remote_port: u16,
    /// The address it dialled.
    pub local_address: IpAddr,
    /// The port it dialled.
    pub local_port: u16,
    /// Its inner IPv4 address.
    pub inner4: Option<Ipv4Addr>,
    /// Its inner IPv6 address.
    pub inner6: Option<Ipv6Addr>,
    /// The data cipher.
    pub cipher: String,
    /// When it began.
    pub since: Time,
    /// When something was last received.
    pub last_seen: Time,
    /// Bytes of inner packets received from the client.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent to the client.
    pub tx_bytes: u64,
    /// Packets from the client that arrived behind newer ones ("replay-window backtrack occurred").
    pub late_packets: u64,
    /// The furthest that one of them was behind, in packets; near the replay window, packets get lost.
    pub worst_backtrack: u64,
    /// What the client says of itself, for instance `2.6.14 linux`.
    pub client: Option<String>,
    /// TLS version and suite of the control channel.
    pub tls: Option<String>,
}

/// All live sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// By beginning.
    pub sessions: Vec<Session>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// A session was closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionClosed {
    /// The session's id.
    pub id: String,
    /// How long it took until no packet could pass any more.
    pub millis: u64,
}
