//! The tables of the port plan.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use adit_plan::nat::{Assign, Size};
use adit_plan::port_plan;
use adit_plan::ports::PortSet;
use serde::{Deserialize, Deserializer};

use super::duration;
use super::model::{Config, ports};

/// `[host]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Source ports of the machine's own connections; `None` leaves them as they are if they are in nobody's way.
    #[serde(deserialize_with = "range")]
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// The kernel's parameters are set, and put back; else a plan that needs others is refused.
    pub manage_sysctl: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { ephemeral: None, manage_sysctl: true }
    }
}

/// `[nat]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatConfig {
    /// The addresses that clients' connections leave from.
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
    /// Their source ports.
    #[serde(default = "nat_ports", deserialize_with = "ports")]
    pub ports: PortSet,
    /// How many of them a client has.
    #[serde(default)]
    pub block: Block,
    /// Which block a client has.
    #[serde(default)]
    pub assign: Assign,
    /// How long it is kept who had which.
    #[serde(default = "retention", deserialize_with = "duration::deserialize")]
    pub retention: Duration,
}

/// How many source ports a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// As many as there are for every address of the pools.
    Auto,
    /// This many, a power of two.
    Ports(u16),
}

impl Default for Block {
    fn default() -> Self {
        Self::Ports(64)
    }
}

impl From<Block> for Size {
    fn from(block: Block) -> Self {
        match block {
            Block::Auto => Self::Auto,
            Block::Ports(ports) => Self::Ports(ports),
        }
    }
}

impl Block {
    /// The fewest ports that are of use.
    #[must_use]
    pub fn least(self) -> u16 {
        match self {
            Self::Auto => 1,
            Self::Ports(ports) => ports,
        }
    }
}

/// `[forward]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardConfig {
    /// The addresses that they are ports of; with none, those of the entrances.
    pub addresses: Vec<Ipv4Addr>,
    /// The ports.
    #[serde(deserialize_with = "ports")]
    pub ports: PortSet,
    /// How many a user may have.
    pub per_user: u16,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: [port_plan::FORWARDS].into_iter().collect(), per_user: 5 }
    }
}

/// `[trace]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// Nobody is named without a reason for the audit trail.
    pub require_reason: bool,
}

fn nat_ports() -> PortSet {
    [port_plan::NAT].into_iter().collect()
}

fn retention() -> Duration {
    Duration::from_secs(30 * 86_400)
}

fn range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RangeInclusive<u16>>, D::Error> {
    let written = ports(deserializer)?;
    match written.ranges() {
        [range] if range.start() < range.end() => Ok(Some(range.clone())),
        _ => Err(serde::de::Error::custom(format!(
            "ephemeral = \"{written}\": one range of at least two ports, such as \"64512-65535\""
        ))),
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Ports(i64),
            Word(String),
        }
        let wrong = |written: String| {
            serde::de::Error::custom(format!("block = {written}: a power of two up to 32768, or \"auto\""))
        };
        match Written::deserialize(deserializer)? {
            Written::Word(word) if word == "auto" => Ok(Self::Auto),
            Written::Word(word) => Err(wrong(format!("\"{word}\""))),
            Written::Ports(ports) => match u16::try_from(ports) {
                Ok(ports) if ports.is_power_of_two() => Ok(Self::Ports(ports)),
                _ => Err(wrong(ports.to_string())),
            },
        }
    }
}

impl Config {
    /// How long it is kept who had what.
    #[must_use]
    pub fn retention(&self) -> Duration {
        self.nat.as_ref().map_or_else(retention, |nat| nat.retention)
    }

    /// What is wrong within the tables; what is wrong between them is the port plan's to say.
    pub(super) fn validate_ports(&self) -> Result<(), String> {
        for entrance in &self.entrance {
            if let Some(interface) = &entrance.interface
                && !entrance.address.is_unspecified()
            {
                return Err(format!(
                    "[[entrance]] address = \"{}\" and interface = \"{interface}\": one of the two",
                    entrance.address
                ));
            }
        }
        if let Some(nat) = &self.nat {
            if nat.addresses.is_empty() {
                return Err("[nat] has no addresses: name those that clients' connections leave from".into());
            }
            own_addresses("[nat]", &nat.addresses)?;
            if nat.ports.ranges().len() != 1 {
                return Err(format!("[nat] ports = \"{}\": one range, such as \"40000-64511\"", nat.ports));
            }
            if nat.ports.count() < usize::from(nat.block.least()) {
                return Err(format!(
                    "[nat] ports = \"{}\" holds no block of {}",
                    nat.ports,
                    nat.block.least()
                ));
            }
            if nat.retention.is_zero() {
                return Err("[nat] retention = 0: nothing could be traced; for instance \"30d\"".into());
            }
        }
        if let Some(natfw) = &self.natfw {
            natfw.validate()?;
        }
        if let Some(forward) = &self.forward {
            own_addresses("[forward]", &forward.addresses)?;
            if forward.ports.is_empty() {
                return Err("[forward] ports is empty: for instance \"30000-39999\"".into());
            }
            if forward.per_user == 0 || usize::from(forward.per_user) > forward.ports.count() {
                return Err(format!(
                    "[forward] per_user = {}: at least 1, and no more than there are ports",
                    forward.per_user
                ));
            }
        }
        Ok(())
    }
}

/// Addresses that a machine can have for others.
pub(super) fn own_addresses(table: &str, addresses: &[Ipv4Addr]) -> Result<(), String> {
    for (index, address) in addresses.iter().enumerate() {
        if address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_broadcast()
        {
            return Err(format!("{table} addresses: {address} is no address of this machine towards others"));
        }
        if addresses.iter().take(index).any(|other| other == address) {
            return Err(format!("{table} addresses: {address} is there twice"));
        }
    }
    Ok(())
}
