//! Source ports of clients' connections, and who had which.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::Time;

/// A range of source ports on an address, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The address that connections leave from.
    pub address: Ipv4Addr,
    /// The first port, or ICMP echo identifier.
    pub from: u16,
    /// The last.
    pub to: u16,
}

/// A block that somebody has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInUse {
    /// Whose it is.
    pub user: String,
    /// By which device.
    pub device: String,
    /// The inner address whose connections leave by it.
    pub inner: Ipv4Addr,
    /// The ports.
    pub block: Block,
    /// The session that has it, or had it last.
    pub session: String,
    /// Since when.
    pub since: Time,
    /// True for ports that a change of the configuration has taken from the device, and that stay its own until its
    /// last connection by them is gone.
    pub leaving: bool,
}

/// Blocks in use, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockList {
    /// By address and port, highest first.
    pub blocks: Vec<BlockInUse>,
    /// Ports of a block.
    pub block_size: u16,
    /// How many blocks there are.
    pub capacity: u32,
    /// How many somebody has.
    pub in_use: u32,
    /// Since when this layout of blocks is in force.
    pub epoch: Option<Epoch>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// The time in which one layout of blocks was in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its place in the gateway's journal.
    pub id: String,
    /// SHA-256 of the layout, in hexadecimal.
    pub digest: String,
    /// When it began.
    pub from: Time,
    /// When the next one began; `null` while it is in force.
    pub to: Option<Time>,
}

/// Who was it?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    /// When a packet was seen.
    pub at: Time,
    /// Its source address, as seen outside.
    pub address: IpAddr,
    /// Its source port, or ICMP echo identifier.
    #[serde(default)]
    pub port: Option<u16>,
    /// Its protocol; any if it is not known.
    #[serde(default)]
    pub protocol: Option<TraceProtocol>,
    /// How far the clock that took the time may be off, in milliseconds.
    #[serde(default)]
    pub tolerance_ms: u64,
}

/// What a packet is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// TCP.
    Tcp,
    /// UDP, or UDP-Lite.
    Udp,
    /// ICMP echo.
    Icmp,
}

/// Several questions with one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// The questions.
    pub queries: Vec<TraceQuery>,
    /// Why it is asked, for the audit trail.
    #[serde(default)]
    pub reason: Option<String>,
}

/// By what somebody was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceKind {
    /// By the block of source ports.
    Nat,
    /// By a port that was forwarded to them.
    Forward,
    /// By the address itself, which is not translated.
    Ipv6,
    /// By the address itself, where IPv4 is not translated either.
    Ipv4,
    /// The gateway's own connections: no user.
    Host,
}

/// Somebody who had the address and port then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceMatch {
    /// By what they were found.
    pub kind: TraceKind,
    /// The gateway that they came through; `null` where old rule files answer.
    pub gateway: Option<String>,
    /// The user; `null` for the gateway itself.
    pub user: Option<String>,
    /// The device.
    pub device: Option<String>,
    /// Serial number of the certificate that the session was opened with.
    pub certificate_serial: Option<String>,
    /// The inner address.
    pub inner: Option<IpAddr>,
    /// The ports that they had.
    pub block: Option<PortRange>,
    /// The session.
    pub session: Option<String>,
    /// Since when they had it.
    pub from: Option<Time>,
    /// Until when; `null` while they have it.
    pub to: Option<Time>,
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The first.
    pub from: u16,
    /// The last.
    pub to: u16,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Who it may have been: nobody, one, or two where one had it until and the other since that moment.
    pub matches: Vec<TraceMatch>,
    /// The layout of blocks at that time.
    pub epoch: Option<Epoch>,
    /// By how much the gateway's clock was set about then, in milliseconds: how far its times may be off.
    pub clock_uncertainty_ms: u64,
}

/// The answers, in the order of the questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    /// One for each question.
    pub traces: Vec<Trace>,
}

/// Whether the record of who had what is as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailReport {
    /// True when nothing was changed, left out or put in.
    pub ok: bool,
    /// Records that fit each other.
    pub records: u64,
    /// Hash of the last one. Kept elsewhere, it shows later that nothing before was changed.
    pub head: Option<String>,
    /// Place in the journal of the first record that does not fit.
    pub broken_at: Option<i64>,
    /// What does not fit.
    pub problem: Option<String>,
}
