//! What `adit check` finds.

use serde::{Deserialize, Serialize};

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// What ports are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanUse {
    /// Clients come in here.
    Entrance,
    /// Forwarded to clients.
    Forward,
    /// Source ports of clients' connections.
    Nat,
    /// The host's own.
    Host,
    /// Nothing.
    Free,
}

/// Something wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Names the kind of problem.
    pub code: String,
    /// What and where.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A range of ports and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// The address.
    pub address: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// First port.
    pub from: u16,
    /// Last port.
    pub to: u16,
    /// What it is for.
    #[serde(rename = "use")]
    pub usage: PlanUse,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Nothing is wrong.
    pub ok: bool,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// All ranges: for each address and protocol every port from 1 to 65535 once.
    pub plan: Vec<PlanEntry>,
    /// What is no problem, and good to know.
    #[serde(default)]
    pub notes: Vec<String>,
}
