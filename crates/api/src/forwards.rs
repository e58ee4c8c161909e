//! Ports that are forwarded to devices.

use serde::{Deserialize, Serialize};

use crate::Time;

/// TCP, UDP or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ForwardProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Both, on one port.
    #[default]
    Both,
}

/// Forwards a port to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddForward {
    /// Whose device.
    pub user: String,
    /// The device.
    pub device: String,
    /// What is forwarded.
    #[serde(default)]
    pub protocol: ForwardProtocol,
    /// The port outside; a free one if none is named.
    #[serde(default)]
    pub port: Option<u16>,
    /// The port on the device.
    pub to: u16,
    /// After how many seconds it ends by itself.
    #[serde(default)]
    pub expires_in: Option<u64>,
}

/// A forwarded port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Stays the same for ever.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// The device that it leads to.
    pub device: String,
    /// TCP or UDP.
    pub protocol: ForwardProtocol,
    /// The addresses outside; empty for every address of the gateway.
    pub addresses: Vec<std::net::Ipv4Addr>,
    /// The port outside.
    pub port: u16,
    /// The port on the device.
    pub to: u16,
    /// True while the device is connected.
    pub open: bool,
    /// Connections, and UDP flows, that it has let in since the device connected.
    pub connections: u64,
    /// Since when there is this forward.
    pub created: Time,
    /// When it ends by itself.
    pub expires: Option<Time>,
}

/// Forwarded ports, or a page of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardList {
    /// By port.
    pub forwards: Vec<Forward>,
    /// Where the next page begins.
    pub next: Option<String>,
}
