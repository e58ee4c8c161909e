//! Files of the published format, read.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::render::PER_CLIENT;

/// Larger files are not of this format: the most clients that fit make 6 MB.
pub const MAX_FILE: usize = 16 << 20;

/// What a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, which has no ports in this format: all clients look the same.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Why a file cannot be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesFault {
    /// Far larger than any file of this format.
    #[error("it is larger than {} MiB, and no file of vpn-generate-natfw", MAX_FILE >> 20)]
    TooLarge,
    /// A line that is not of this format.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The end is missing.
    #[error("it ends before a COMMIT: its end is missing")]
    CutOff,
    /// It is about something else.
    #[error("it has no nat table: it is no file of vpn-generate-natfw")]
    NoNat,
}

/// A client's ports for TCP or UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    inner: Ipv4Addr,
    protocol: Protocol,
    address: Ipv4Addr,
    ports: RangeInclusive<u16>,
}

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The client's inner address.
    pub inner: Ipv4Addr,
    /// All of its ports.
    pub ports: RangeInclusive<u16>,
}

/// The translations of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    /// Reads a file as it was generated, or as iptables-save writes the same rules. Other tables and chains may hold
    /// anything; what translates source addresses in any other way is an error, since it could not be traced.
    ///
    /// # Errors
    /// [`RulesFault`]: the file is damaged, cut off, or of another kind.
    pub fn parse(file: &[u8]) -> Result<Self, RulesFault> {
        if file.len() > MAX_FILE {
            return Err(RulesFault::TooLarge);
        }
        let mut reader = Reader::default();
        for (number, line) in file.split(|byte| *byte == b'\n').enumerate() {
            let line = std::str::from_utf8(line).map_err(|_| "it is not text");
            line.and_then(|line| reader.read(line))
                .map_err(|what| RulesFault::Line { line: number + 1, what })?;
        }
        match reader.table {
            Some(_) => Err(RulesFault::CutOff),
            None if !reader.has_nat => Err(RulesFault::NoNat),
            None => Ok(Self { rules: reader.rules }),
        }
    }

    /// Who has this port of this address. `None` stands for TCP and UDP. Nobody has a port of ICMP.
    #[must_use]
    pub fn find(&self, address: Ipv4Addr, port: u16, protocol: Option<Protocol>) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for rule in &self.rules {
            let fits = protocol.is_none_or(|protocol| protocol == rule.protocol);
            if fits && rule.address == address && rule.ports.contains(&port) {
                let new = Found { inner: rule.inner, ports: rule.ports.clone() };
                if !found.contains(&new) {
                    found.push(new);
                }
            }
        }
        found
    }
}

#[derive(Default)]
struct Reader {
    /// The table that has begun and not ended: whether it is `nat`.
    table: Option<bool>,
    has_nat: bool,
    /// What the file says that each client has.
    block: Option<usize>,
    rules: Vec<Rule>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<(), &'static str> {
        if let Some(ports) = line.strip_prefix(PER_CLIENT) {
            self.block = Some(decimal(ports).ok_or("it does not say how many ports a client has")?);
            return Ok(());
        }
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('*') {
            let is_nat = name == "nat";
            if self.table.is_some() || (is_nat && self.has_nat) {
                return Err("a table begins within another, or again");
            }
            (self.table, self.has_nat) = (Some(is_nat), self.has_nat || is_nat);
            return Ok(());
        }
        let in_nat = self.table.ok_or("it belongs to no table")?;
        if line == "COMMIT" {
            self.table = None;
        } else if in_nat && line.starts_with("-A POSTROUTING ") {
            self.rules.extend(rule(line).ok_or("it is no rule of vpn-generate-natfw")?);
            let ports = self.rules.last().map(|rule| rule.ports.len());
            if self.block.is_some_and(|block| ports.is_some_and(|ports| ports != block)) {
                return Err("its ports are not as many as the file says for each client");
            }
        } else if in_nat && !line.starts_with(':') && !line.starts_with("-A ") {
            return Err("it is neither a chain nor a rule");
        }
        Ok(())
    }
}

/// The rule for a client; that for ICMP has none.
fn rule(line: &str) -> Option<Option<Rule>> {
    let words: Vec<&str> = line.split(' ').skip(2).take(9).collect();
    match words.as_slice() {
        ["-p", "icmp", "-j", "SNAT", "--to-source", address] => {
            address.parse::<Ipv4Addr>().ok().map(|_| None)
        }
        ["-s", inner, "-p", protocol @ ("tcp" | "udp"), "-j", "SNAT", "--to-source", target] => {
            let (address, ports) = target.split_once(':')?;
            let (first, last) = ports.split_once('-')?;
            let ports = decimal(first)?..=decimal(last)?;
            Some(Some(Rule {
                inner: inner.strip_suffix("/32").unwrap_or(inner).parse().ok()?,
                protocol: if *protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp },
                address: address.parse().ok()?,
                ports: (*ports.start() > 0 && !ports.is_empty()).then_some(ports)?,
            }))
        }
        _ => None,
    }
}

/// Digits only.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Which of the files with these times (seconds since 1970 began) were in force at a moment from `from` to `to`
/// (since then), the oldest first.
///
/// As published, a file counts from after the second that it is named by: the highest number that is lower than the
/// moment.
#[must_use]
pub fn in_force(times: &[u64], from: Duration, to: Duration) -> Vec<u64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.dedup();
    let second = Duration::from_secs;
    let first = times.partition_point(|time| second(*time) < from).saturating_sub(1);
    let end = times.partition_point(|time| second(*time) < to);
    times.get(first..end).unwrap_or_default().to_vec()
}
