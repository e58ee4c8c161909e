//! Rules in their order, and the verdict.

use std::sync::atomic::{AtomicU64, Ordering};

use adit_plan::ports::PortSet;

use crate::answer::Answer;
use crate::probe::{Evidence, Probe};
use crate::{LOOKS_AT, Transport};

/// What is done with flows that a probe says Yes to.
#[derive(Debug, Clone)]
pub struct Rule<T> {
    /// Names the rule in messages.
    pub name: String,
    /// What is asked of the first bytes.
    pub probe: Probe,
    /// Only flows over this transport; `None` for both.
    pub transport: Option<Transport>,
    /// Only flows whose client dialled one of these ports; `None` for every port.
    pub ports: Option<PortSet>,
    /// What the flow is given to.
    pub target: T,
}

impl<T> Rule<T> {
    /// A rule for every port and transport.
    #[must_use]
    pub fn new(name: impl Into<String>, probe: Probe, target: T) -> Self {
        Self { name: name.into(), probe, transport: None, ports: None, target }
    }

    /// The transports it can match: with the answer for UDP, then for TCP.
    fn on(&self, transport: Transport) -> bool {
        let agrees = |own: Option<Transport>| own.is_none_or(|own| own == transport);
        agrees(self.transport) && agrees(self.probe.transport())
    }

    fn applies_to(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(port))
    }

    fn meets<U>(&self, other: &Rule<U>) -> bool {
        let transports = Transport::BOTH.into_iter().any(|t| self.on(t) && other.on(t));
        let ports = match (&self.ports, &other.ports) {
            (Some(own), Some(other)) => own.overlap(other).is_some(),
            _ => true,
        };
        transports && ports
    }
}

/// Why rules are no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableFault {
    /// Two rules ask the same of the same flows.
    #[error(
        "\"{first}\" and \"{second}\" both take \"{probe}\" on the same ports: keep one, or give them different \
         ports"
    )]
    Same {
        /// Name of a rule.
        first: String,
        /// Name of another.
        second: String,
        /// What both ask.
        probe: String,
    },
    /// One key for two targets.
    #[error(
        "\"{first}\" and \"{second}\" have the same key, so nothing tells their clients apart: make a new key"
    )]
    SameKey {
        /// Name of a rule.
        first: String,
        /// Name of another.
        second: String,
    },
    /// tls-crypt and tls-auth without keys.
    #[error(
        "\"{first}\" and \"{second}\" cannot be told apart: first packets of tls-crypt and of tls-auth \
         with SHA256 both have 54 bytes; give one of them its key, or write the digest if it is another \
         (\"openvpn tls-auth auth=SHA512\")"
    )]
    LookAlike {
        /// Name of a rule.
        first: String,
        /// Name of another.
        second: String,
    },
    /// Nothing can match.
    #[error("\"{0}\" can never match: \"{1}\" is not said of flows over {2}")]
    Transport(String, String, Transport),
    /// Nothing can match.
    #[error("\"{0}\" can never match: its set of ports is empty")]
    NoPorts(String),
}

/// What became of a flow.
#[derive(Debug)]
pub enum Verdict<'t, T> {
    /// More bytes, or the end of the time for inspection, will tell. Never said of a datagram.
    Undecided,
    /// It belongs to a rule.
    Matched(Match<'t, T>),
    /// It belongs to nobody.
    Unknown,
}

/// A rule that took a flow.
#[derive(Debug)]
pub struct Match<'t, T> {
    /// The rule's place in the list the table was made of.
    pub index: usize,
    /// The rule.
    pub rule: &'t Rule<T>,
    /// Why.
    pub evidence: Evidence,
}

/// How often each outcome was reached since the table was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Per rule, in the order the table was made of.
    pub matched: Vec<u64>,
    /// Judgements that asked for more.
    pub undecided: u64,
    /// Flows of nobody.
    pub unknown: u64,
}

/// The rules of a gateway. Shared by threads; replaced whole when the configuration changes. See the crate's
/// text for the order in which rules are asked.
#[derive(Debug)]
pub struct Table<T> {
    rules: Vec<Rule<T>>,
    /// Indices of the rules that can match, first asked first.
    udp: Vec<usize>,
    tcp: Vec<usize>,
    matched: Vec<AtomicU64>,
    undecided: AtomicU64,
    unknown: AtomicU64,
}

impl<T> Table<T> {
    /// A table of these rules. Among rules of equal rank the earlier is asked first.
    ///
    /// # Errors
    /// [`TableFault`] when two rules cannot be told apart, or one can never match.
    pub fn new(rules: Vec<Rule<T>>) -> Result<Self, TableFault> {
        for (at, rule) in rules.iter().enumerate() {
            check(rule)?;
            rules.iter().take(at).try_for_each(|earlier| check_pair(earlier, rule))?;
        }
        let order = |transport| {
            let mut order: Vec<_> = rules.iter().enumerate().filter(|(_, rule)| rule.on(transport)).collect();
            order.sort_by_key(|(index, rule)| (rule.probe.precedence(), rule.ports.is_none(), *index));
            order.into_iter().map(|(index, _)| index).collect()
        };
        Ok(Self {
            udp: order(Transport::Udp),
            tcp: order(Transport::Tcp),
            matched: rules.iter().map(|_| AtomicU64::new(0)).collect(),
            undecided: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            rules,
        })
    }

    /// Judges a flow by its beginning: the first datagram, or all that has come of a connection (of which no
    /// more than [`LOOKS_AT`] bytes are looked at). `port` is the one the client dialled. `silent`: no more
    /// bytes will come, because the time for inspection is over or the client has ended its side; then the
    /// verdict is final.
    ///
    /// The verdict does not depend on how a connection's bytes were cut, and strangers make nothing be
    /// allocated.
    pub fn judge(&self, transport: Transport, bytes: &[u8], port: u16, silent: bool) -> Verdict<'_, T> {
        let (order, bytes, last) = match transport {
            Transport::Udp => (&self.udp, bytes, true),
            Transport::Tcp => {
                (&self.tcp, bytes.get(..LOOKS_AT).unwrap_or(bytes), silent || bytes.len() >= LOOKS_AT)
            }
        };
        for &index in order {
            let Some(rule) = self.rules.get(index).filter(|rule| rule.applies_to(port)) else { continue };
            match rule.probe.evidence(transport, bytes, silent) {
                Ok(evidence) => {
                    if let Some(count) = self.matched.get(index) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    return Verdict::Matched(Match { index, rule, evidence });
                }
                Err(Answer::More) if !last => {
                    self.undecided.fetch_add(1, Ordering::Relaxed);
                    return Verdict::Undecided;
                }
                Err(_) => {}
            }
        }
        self.unknown.fetch_add(1, Ordering::Relaxed);
        Verdict::Unknown
    }

    /// The rules, in the order the table was made of.
    #[must_use]
    pub fn rules(&self) -> &[Rule<T>] {
        &self.rules
    }

    /// How often each outcome was reached.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            matched: self.matched.iter().map(read).collect(),
            undecided: read(&self.undecided),
            unknown: read(&self.unknown),
        }
    }
}

fn check<T>(rule: &Rule<T>) -> Result<(), TableFault> {
    if let Some(transport) = rule.transport.filter(|&transport| !rule.on(transport)) {
        return Err(TableFault::Transport(rule.name.clone(), rule.probe.to_string(), transport));
    }
    if rule.ports.as_ref().is_some_and(PortSet::is_empty) {
        return Err(TableFault::NoPorts(rule.name.clone()));
    }
    Ok(())
}

fn check_pair<T>(earlier: &Rule<T>, later: &Rule<T>) -> Result<(), TableFault> {
    let (first, second) = (earlier.name.clone(), later.name.clone());
    if !earlier.meets(later) {
        return Ok(());
    }
    let same_ports = earlier.ports.is_some() == later.ports.is_some();
    match (&earlier.probe, &later.probe) {
        (Probe::OpenVpn(own), Probe::OpenVpn(other)) if own.looks_like(*other) => {
            Err(TableFault::LookAlike { first, second })
        }
        // A rule for some ports goes before one for all.
        _ if !same_ports => Ok(()),
        (Probe::OpenVpnKey(own), Probe::OpenVpnKey(other)) if own.shares_a_key_with(other) => {
            Err(TableFault::SameKey { first, second })
        }
        (Probe::WireGuardKey(own), Probe::WireGuardKey(other)) if own.is(other) => {
            Err(TableFault::SameKey { first, second })
        }
        (Probe::OpenVpnKey(_) | Probe::WireGuardKey(_), _) => Ok(()),
        (own, other) if own.to_string() == other.to_string() => {
            Err(TableFault::Same { first, second, probe: own.to_string() })
        }
        _ => Ok(()),
    }
}
