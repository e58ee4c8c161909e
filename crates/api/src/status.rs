//! Totals, and what a reload does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Time;

/// How the gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The gateway's id.
    pub gateway: String,
    /// The gateway's name.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// Since when it runs.
    pub since: Time,
    /// Live sessions by protocol.
    pub sessions: BTreeMap<String, u64>,
    /// Handshakes under way.
    pub handshakes: u64,
    /// Bytes of inner packets received from clients since the start.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent to clients since the start.
    pub tx_bytes: u64,
    /// Bytes per second received in the last ten seconds.
    pub rx_rate: u64,
    /// Bytes per second sent in the last ten seconds.
    pub tx_rate: u64,
    /// Dropped packets by reason, since the start.
    pub drops: BTreeMap<String, u64>,
    /// Sessions that have begun since the start.
    pub sessions_started: u64,
    /// Logins refused since the start.
    pub logins_refused: u64,
    /// What became of TCP connections until it was clear whose they are, since the start; `undecided` now.
    pub connections: BTreeMap<String, u64>,
    /// What became of UDP flows of foreign back ends, since the start; `open` now.
    pub flows: BTreeMap<String, u64>,
    /// First packets by the rule that took them, and `unknown`, since the rules are in force. UDP packets of identities
    /// are not among them.
    pub classified: BTreeMap<String, u64>,
    /// Foreign back ends, in the configuration's order.
    pub services: Vec<ServiceStatus>,
    /// Source ports of clients' connections; `null` without [nat].
    pub nat: Option<NatStatus>,
    /// Connections that the kernel tracks, of the whole machine; `null` when it cannot be asked.
    pub tracked: Option<TrackedStatus>,
}

/// How source ports are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// Blocks that there are.
    pub capacity: u32,
    /// Blocks that somebody has.
    pub in_use: u32,
    /// Ports of a block.
    pub block_size: u16,
    /// Ranges that stay their owners' until the last connection by them is gone.
    pub leaving: u64,
    /// What was refused since the start: `full` (connections for which no port was left towards their destination),
    /// `protocols` (packets of protocols without ports), `untranslated` (packets that would have left as they were).
    pub refused: BTreeMap<String, u64>,
}

/// How full the kernel's table of connections is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedStatus {
    /// Connections.
    pub count: u64,
    /// As many as there may be.
    pub max: u64,
}

/// How a foreign back end is. Counts are since the start, or since it was configured otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub to: String,
    /// It answers, as far as the last client knows.
    pub up: bool,
    /// Why it does not.
    pub error: Option<String>,
    /// Connections and flows it has now.
    pub open: u64,
    /// Those that reached it.
    pub connected: u64,
    /// Those that did not.
    pub failed: u64,
    /// Those that were refused at once because it had just failed.
    pub refused: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// What a reload does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// True when it was done.
    pub applied: bool,
    /// Each change in words.
    pub changes: Vec<String>,
    /// Ids of sessions that the changes touch.
    pub sessions_touched: Vec<String>,
    /// Changes that need the gateway to be started anew; nothing is done if there are any.
    pub needs_restart: Vec<String>,
}
