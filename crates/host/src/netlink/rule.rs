//! Rules that choose a routing table.

use std::fmt;

use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::{IfExists, Netlink, NetlinkFault, PROTOCOL};

/// Marks a rule is for: those whose bits under `mask` are `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The bits to be there.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

impl Mark {
    /// This mark and no other.
    #[must_use]
    pub fn exactly(value: u32) -> Self {
        Self { value, mask: u32::MAX }
    }
}

/// A rule: packets it is for look into `table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// It is about IPv6, else about IPv4.
    pub v6: bool,
    /// Rules are tried in this order; the kernel's own are 0, 32766 and 32767.
    pub priority: u32,
    /// The marks it is for; `None` is for all packets.
    pub mark: Option<Mark>,
    /// It is for all packets but those.
    pub invert: bool,
    /// The routing table to look into.
    pub table: u32,
    /// Routes found with a prefix no longer than this do not count: 0 passes over default routes.
    pub suppress_prefix_length: Option<u8>,
    /// Who made it; [`PROTOCOL`] is adit.
    pub protocol: u8,
}

impl Rule {
    /// A rule of adit's for all packets.
    #[must_use]
    pub fn new(v6: bool, priority: u32, table: u32) -> Self {
        Self {
            v6,
            priority,
            mark: None,
            invert: false,
            table,
            suppress_prefix_length: None,
            protocol: PROTOCOL,
        }
    }

    /// Whether `listed` is this rule, whoever made it.
    #[must_use]
    pub fn matches(&self, listed: &Self) -> bool {
        *self == Self { protocol: self.protocol, ..listed.clone() }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{} rule {}:", if self.v6 { 6 } else { 4 }, self.priority)?;
        if self.invert {
            f.write_str(" not")?;
        }
        match self.mark {
            Some(Mark { value, mask: u32::MAX }) => write!(f, " fwmark {value:#x}")?,
            Some(Mark { value, mask }) => write!(f, " fwmark {value:#x}/{mask:#x}")?,
            None => f.write_str(" from all")?,
        }
        write!(f, " lookup {}", self.table)?;
        if let Some(length) = self.suppress_prefix_length {
            write!(f, " suppress_prefixlength {length}")?;
        }
        Ok(())
    }
}

impl Netlink {
    /// All rules that choose a table by mark alone, IPv4 first, in the kernel's order. Rules with other
    /// conditions or actions are left out.
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn rules(&mut self) -> Result<Vec<Rule>, NetlinkFault> {
        let mut rules = Vec::new();
        for v6 in [false, true] {
            let mut request = RuleMessage::default();
            request.header.family = family(v6);
            let answers = self.dump(&RouteNetlinkMessage::GetRule(request), "list rules")?;
            rules.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRule(message) => read(&message, v6),
                _ => None,
            }));
        }
        Ok(rules)
    }

    /// Adds a rule; says whether it was not there.
    ///
    /// # Errors
    /// Without privilege.
    pub fn add_rule(&mut self, rule: &Rule, existing: IfExists) -> Result<bool, NetlinkFault> {
        self.add(RouteNetlinkMessage::NewRule(write(rule)), existing, || format!("add {rule}"))
    }

    /// Deletes a rule. Only one made by [`Rule::protocol`] is deleted.
    ///
    /// # Errors
    /// When it is not there, see [`NetlinkFault::is_missing`].
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), NetlinkFault> {
        self.request(RouteNetlinkMessage::DelRule(write(rule)), || format!("delete {rule}")).map(drop)
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn write(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.v6);
    message.header.action = RuleAction::ToTable;
    if rule.invert {
        message.header.flags = RuleFlags::Invert;
    }
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(rule.protocol)),
    ];
    if let Some(Mark { value, mask }) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(value));
        message.attributes.push(RuleAttribute::FwMask(mask));
    }
    let suppress = rule.suppress_prefix_length.map(|length| RuleAttribute::SuppressPrefixLen(length.into()));
    message.attributes.extend(suppress);
    message
}

fn read(message: &RuleMessage, v6: bool) -> Option<Rule> {
    let header = &message.header;
    if header.action != RuleAction::ToTable || header.src_len != 0 || header.dst_len != 0 || header.tos != 0 {
        return None;
    }
    let mut rule = Rule {
        invert: header.flags.contains(RuleFlags::Invert),
        protocol: 0,
        ..Rule::new(v6, 0, header.table.into())
    };
    let (mut value, mut mask) = (0, 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => value = *mark,
            RuleAttribute::FwMask(bits) => mask = *bits,
            RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
            // The kernel says "none" with all ones.
            RuleAttribute::SuppressPrefixLen(length) => {
                rule.suppress_prefix_length = u8::try_from(*length).ok();
            }
            RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::Realm(_) => {}
            _ => return None,
        }
    }
    rule.mark = (mask != 0).then_some(Mark { value, mask });
    Some(rule)
}
