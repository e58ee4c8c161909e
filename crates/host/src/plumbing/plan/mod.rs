//! What to change: a pure function of what is wanted, what was done and what is there.

pub(super) mod sysctls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{HostState, LinkSettings, NftTable, PlumbingFault, Sysctl};
use crate::netlink::{InterfaceAddress, Link, NetlinkFault, Route, Rule};
use crate::nft::{self, Family};

/// Something that was done, with what it takes to undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Done {
    /// A parameter was set.
    Sysctl {
        name: String,
        /// What was asked for.
        asked: String,
        /// How the kernel writes that.
        ours: String,
        /// Its value before anything was done.
        before: String,
    },
    /// A parameter may have been changed by the kernel when the parameter `with` was set.
    Along {
        name: String,
        with: String,
        /// Its value before anything was done.
        before: String,
        /// Its value after the other was set, as soon as that is known.
        caused: Option<String>,
    },
    /// A setting of an interface was changed.
    Link { interface: String, ours: LinkSetting, before: LinkSetting },
    /// Something was added.
    Address(InterfaceAddress),
    /// Something was added.
    Route(Route),
    /// Something was added.
    Rule(Rule),
    /// A table was made.
    Table { family: Family, name: String },
}

impl Done {
    /// Undoing this takes the change.
    pub(super) fn is_undone_by(&self, change: &Change) -> bool {
        match (self, change) {
            // Parameters hang together: any that is not put back keeps all of them in the record.
            (Self::Sysctl { .. } | Self::Along { .. }, Change::SetSysctl(_)) => true,
            (Self::Link { interface: one, before, .. }, Change::SetLink { interface: other, setting }) => {
                one == other && before.same_kind(*setting)
            }
            (Self::Address(one), Change::DeleteAddress(other)) => one == other,
            (Self::Route(one), Change::DeleteRoute(other)) => one == other,
            (Self::Rule(one), Change::DeleteRule(other)) => one == other,
            _ => false,
        }
    }

    /// They are about the same parameter, setting or object.
    fn same_thing(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sysctl { name: one, .. }, Self::Sysctl { name: other, .. }) => one == other,
            (Self::Along { name: one, with, .. }, Self::Along { name: other, with: other_with, .. }) => {
                (one, with) == (other, other_with)
            }
            (
                Self::Link { interface: one, ours: setting, .. },
                Self::Link { interface: other, ours: other_setting, .. },
            ) => one == other && setting.same_kind(*other_setting),
            _ => self == other,
        }
    }
}

/// One setting of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LinkSetting {
    Mtu(u32),
    TxQueueLen(u32),
    Up(bool),
}

impl LinkSetting {
    /// The interface's present value of this setting.
    fn on(self, link: &Link) -> Self {
        match self {
            Self::Mtu(_) => Self::Mtu(link.mtu),
            Self::TxQueueLen(_) => Self::TxQueueLen(link.tx_queue_len),
            Self::Up(_) => Self::Up(link.up),
        }
    }

    fn same_kind(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// One change to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    SetSysctl(Sysctl),
    SetLink { interface: String, setting: LinkSetting },
    AddAddress(InterfaceAddress),
    DeleteAddress(InterfaceAddress),
    AddRoute(Route),
    DeleteRoute(Route),
    AddRule(Rule),
    DeleteRule(Rule),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl(sysctl) => write!(f, "set {sysctl}"),
            Self::SetLink { interface, setting: LinkSetting::Mtu(mtu) } => {
                write!(f, "set link {interface} mtu {mtu}")
            }
            Self::SetLink { interface, setting: LinkSetting::TxQueueLen(packets) } => {
                write!(f, "set link {interface} txqueuelen {packets}")
            }
            Self::SetLink { interface, setting: LinkSetting::Up(up) } => {
                write!(f, "set link {interface} {}", if *up { "up" } else { "down" })
            }
            Self::AddAddress(address) => write!(f, "add {address}"),
            Self::DeleteAddress(address) => write!(f, "delete {address}"),
            Self::AddRoute(route) => write!(f, "add {route}"),
            Self::DeleteRoute(route) => write!(f, "delete {route}"),
            Self::AddRule(rule) => write!(f, "add {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete {rule}"),
        }
    }
}

/// What is there, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// Values of parameters that are wanted, were set, or change along.
    pub(super) sysctls: BTreeMap<String, String>,
    /// What changes along with a parameter.
    pub(super) along: BTreeMap<String, Vec<String>>,
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<InterfaceAddress>,
    pub(super) routes: Vec<Route>,
    pub(super) rules: Vec<Rule>,
    pub(super) tables: Vec<(Family, String)>,
}

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Changes, in order.
    pub(super) changes: Vec<Change>,
    /// The nftables transaction that comes last; empty for none.
    pub(super) tables: String,
    /// What will have been done once the plan is carried out.
    pub(super) done: Vec<Done>,
}

/// Plans the way from what is there to what is wanted. `done` is what earlier plans did; `loaded` are the
/// tables they made.
///
/// # Errors
/// When something is wanted of what does not exist.
pub(super) fn plan(
    wanted: &HostState,
    done: &[Done],
    loaded: &[NftTable],
    mut machine: Machine,
) -> Result<Plan, PlumbingFault> {
    let mut plan = Plan::default();
    let (kept, dropped): (Vec<_>, Vec<_>) = done.iter().partition(|done| keeps(wanted, done));
    plan.changes.extend(undo_objects(&dropped, &mut machine));
    plan.tables.extend(dropped.iter().map(|done| table_deletion(done, &machine)));
    for done in kept {
        // After a call that failed there may be two values for one thing: the older one stands.
        if !plan.done.iter().any(|older| older.same_thing(done)) {
            plan.done.push(done.clone());
        }
    }
    plan.changes.extend(sysctls::plan(&wanted.sysctls, done, &machine, &mut plan.done)?);
    for link in &wanted.links {
        for setting in settings(link) {
            plan.add_link_setting(&link.interface, setting, &machine)?;
        }
    }
    for address in &wanted.addresses {
        if !machine.addresses.contains(address) {
            plan.add(Change::AddAddress(address.clone()), Done::Address(address.clone()));
        }
    }
    for route in &wanted.routes {
        if !machine.routes.iter().any(|listed| route.matches(listed)) {
            plan.add(Change::AddRoute(route.clone()), Done::Route(route.clone()));
        }
    }
    for rule in &wanted.rules {
        if !machine.rules.iter().any(|listed| rule.matches(listed)) {
            plan.add(Change::AddRule(rule.clone()), Done::Rule(rule.clone()));
        }
    }
    for table in &wanted.tables {
        let there = machine.tables.contains(&(table.family, table.name.clone()));
        if !there || !loaded.contains(table) {
            plan.tables += &nft::deletion(table.family, &table.name);
            plan.tables += &table.ruleset;
            plan.tables += "\n";
            plan.note(Done::Table { family: table.family, name: table.name.clone() });
        }
    }
    Ok(plan)
}

/// Whether `wanted` still has what was done.
fn keeps(wanted: &HostState, done: &Done) -> bool {
    match done {
        Done::Sysctl { name, .. } | Done::Along { with: name, .. } => {
            wanted.sysctls.iter().any(|sysctl| sysctl.name == *name)
        }
        Done::Link { interface, ours, .. } => wanted.links.iter().any(|link| {
            link.interface == *interface && settings(link).any(|setting| setting.same_kind(*ours))
        }),
        Done::Address(address) => wanted.addresses.contains(address),
        Done::Route(route) => wanted.routes.contains(route),
        Done::Rule(rule) => wanted.rules.contains(rule),
        Done::Table { family, name } => {
            wanted.tables.iter().any(|table| table.family == *family && table.name == *name)
        }
    }
}

/// The settings that are wanted of a link. Turning it on comes last.
fn settings(link: &LinkSettings) -> impl Iterator<Item = LinkSetting> {
    let mtu = link.mtu.map(LinkSetting::Mtu);
    let queue = link.tx_queue_len.map(LinkSetting::TxQueueLen);
    [mtu, queue, link.up.map(LinkSetting::Up)].into_iter().flatten()
}

/// The changes that take back those that were `executed`, so that the machine is as `before` them. `done` is
/// what a record of them would say.
pub(super) fn opposites(executed: &[Change], done: &[Done], before: &Machine) -> Vec<Change> {
    let opposite = |change: &Change| match change {
        Change::SetLink { interface, setting } => {
            let link = before.links.iter().find(|link| link.name == *interface)?;
            Some(Change::SetLink { interface: interface.clone(), setting: setting.on(link) })
        }
        Change::AddAddress(address) => Some(Change::DeleteAddress(address.clone())),
        Change::DeleteAddress(address) => Some(Change::AddAddress(address.clone())),
        Change::AddRoute(route) => Some(Change::DeleteRoute(route.clone())),
        Change::DeleteRoute(route) => Some(Change::AddRoute(route.clone())),
        Change::AddRule(rule) => Some(Change::DeleteRule(rule.clone())),
        Change::DeleteRule(rule) => Some(Change::AddRule(rule.clone())),
        Change::SetSysctl(_) => None,
    };
    let mut changes: Vec<Change> = executed.iter().rev().filter_map(opposite).collect();
    changes.extend(sysctls::opposites(executed, done, before));
    changes
}

/// The changes that undo everything in `done`. Tables go in a transaction of their own, see
/// [`table_deletion`].
pub(super) fn undo(done: &[Done], mut machine: Machine) -> Vec<Change> {
    let mut changes = undo_objects(&done.iter().collect::<Vec<_>>(), &mut machine);
    changes.extend(sysctls::undo(done, &machine));
    changes
}

/// The changes that undo what was done to links, addresses, routes and rules, newest first. `machine` becomes
/// what it will be after them.
fn undo_objects(done: &[&Done], machine: &mut Machine) -> Vec<Change> {
    let mut settled: Vec<&Done> = Vec::new();
    let mut changes = Vec::new();
    for done in done.iter().rev() {
        // After a crash there may be two values for one setting, and only one of them was the last.
        if settled.iter().any(|newer| newer.same_thing(done)) {
            continue;
        }
        if let Some(change) = undo_object(done, machine) {
            settled.push(done);
            changes.push(change);
        }
    }
    changes
}

/// The change that undoes something; `None` when it is not there or not as it was left.
fn undo_object(done: &Done, machine: &mut Machine) -> Option<Change> {
    match done {
        Done::Link { interface, ours, before } => {
            let link = machine.links.iter_mut().find(|link| link.name == *interface)?;
            if ours.on(link) != *ours || ours == before {
                return None;
            }
            match *before {
                LinkSetting::Mtu(mtu) => link.mtu = mtu,
                LinkSetting::TxQueueLen(packets) => link.tx_queue_len = packets,
                LinkSetting::Up(up) => link.up = up,
            }
            Some(Change::SetLink { interface: interface.clone(), setting: *before })
        }
        Done::Address(address) => take(&mut machine.addresses, |listed| listed == address)
            .map(|_| Change::DeleteAddress(address.clone())),
        Done::Route(route) => {
            let ours = |listed: &Route| route.protocol == listed.protocol && route.matches(listed);
            take(&mut machine.routes, ours).map(|_| Change::DeleteRoute(route.clone()))
        }
        Done::Rule(rule) => {
            take(&mut machine.rules, |listed| listed == rule).map(|_| Change::DeleteRule(rule.clone()))
        }
        Done::Sysctl { .. } | Done::Along { .. } | Done::Table { .. } => None,
    }
}

/// Takes the first that fits out of the list.
fn take<T>(list: &mut Vec<T>, fits: impl FnMut(&T) -> bool) -> Option<T> {
    let at = list.iter().position(fits)?;
    Some(list.remove(at))
}

/// What deletes a table that was made, if it is still there; empty otherwise.
pub(super) fn table_deletion(done: &Done, machine: &Machine) -> String {
    match done {
        Done::Table { family, name } if machine.tables.contains(&(*family, name.clone())) => {
            nft::deletion(*family, name)
        }
        _ => String::new(),
    }
}

impl Plan {
    fn add(&mut self, change: Change, done: Done) {
        // Wanted twice is wanted once.
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
        self.note(done);
    }

    /// What is known as done already was done before and went missing.
    fn note(&mut self, done: Done) {
        if !self.done.contains(&done) {
            self.done.push(done);
        }
    }

    fn add_link_setting(
        &mut self,
        interface: &str,
        setting: LinkSetting,
        machine: &Machine,
    ) -> Result<(), PlumbingFault> {
        let change = Change::SetLink { interface: interface.to_owned(), setting };
        let Some(link) = machine.links.iter().find(|link| link.name == interface) else {
            let operation = change.to_string();
            return Err(NetlinkFault::NoInterface { operation, interface: interface.to_owned() }.into());
        };
        let before = setting.on(link);
        if before == setting {
            return Ok(());
        }
        self.changes.push(change);
        let known = self.done.iter_mut().find_map(|done| match done {
            Done::Link { interface: known, ours, .. } if known == interface && ours.same_kind(setting) => {
                Some(ours)
            }
            _ => None,
        });
        match known {
            Some(ours) => *ours = setting,
            None => self.done.push(Done::Link { interface: interface.to_owned(), ours: setting, before }),
        }
        Ok(())
    }
}
