//! Looking at the machine, and changing it one thing at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::{Change, Done, LinkSetting, Machine};
use super::{HostState, PlumbingFault, Sysctl};
use crate::netlink::{IfExists, Netlink, NetlinkFault};
use crate::nft;
use crate::sysctl::{self, SysctlFault};

/// How long the kernel may take to start using an IPv6 address.
const TAKE_UP: Duration = Duration::from_millis(100);

impl Machine {
    /// Reads what matters for `wanted` and `done`; of the rest nothing is asked.
    pub(super) fn read(
        netlink: &mut Netlink,
        wanted: &HostState,
        done: &[Done],
    ) -> Result<Self, PlumbingFault> {
        let mut machine = Self::default();
        machine.read_sysctls(wanted, done)?;
        let any = |is: fn(&Done) -> bool| done.iter().any(is);
        if !wanted.links.is_empty() || any(|done| matches!(done, Done::Link { .. })) {
            machine.links = netlink.links()?;
        }
        if !wanted.addresses.is_empty() || any(|done| matches!(done, Done::Address(_))) {
            machine.addresses = netlink.addresses()?;
        }
        if !wanted.routes.is_empty() || any(|done| matches!(done, Done::Route(_))) {
            machine.routes = netlink.routes()?;
        }
        if !wanted.rules.is_empty() || any(|done| matches!(done, Done::Rule(_))) {
            machine.rules = netlink.rules()?;
        }
        if !wanted.tables.is_empty() || any(|done| matches!(done, Done::Table { .. })) {
            machine.tables = nft::tables()?;
        }
        Ok(machine)
    }

    fn read_sysctls(&mut self, wanted: &HostState, done: &[Done]) -> Result<(), SysctlFault> {
        let mut names = BTreeSet::new();
        for Sysctl { name, .. } in &wanted.sysctls {
            let along = sysctl::side_effects(name)?;
            names.extend(along.iter().cloned());
            names.insert(name.clone());
            self.along.insert(name.clone(), along);
        }
        for done in done {
            if let Done::Sysctl { name, .. } | Done::Along { name, .. } = done {
                names.insert(name.clone());
            }
        }
        for name in names {
            match sysctl::get(&name) {
                Ok(value) => {
                    self.sysctls.insert(name, value);
                }
                Err(SysctlFault::Missing(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }
}

/// Makes one change. To delete what is gone is no error.
pub(super) fn perform(netlink: &mut Netlink, change: &Change) -> Result<(), PlumbingFault> {
    match change {
        Change::SetSysctl(Sysctl { name, value }) => Ok(sysctl::set(name, value)?),
        Change::SetLink { interface, setting } => Ok(match setting {
            LinkSetting::Mtu(mtu) => netlink.set_mtu(interface, *mtu),
            LinkSetting::TxQueueLen(packets) => netlink.set_tx_queue_len(interface, *packets),
            LinkSetting::Up(up) => netlink.set_up(interface, *up),
        }?),
        // Someone else may add the same since the machine was read.
        Change::AddAddress(address) => {
            netlink.add_address(address, IfExists::Keep)?;
            if address.address.addr().is_ipv6() {
                // On an interface that is down this never comes, and the address is there all the same.
                let _ = netlink.wait_for_address(address.address.addr(), TAKE_UP);
            }
            Ok(())
        }
        Change::AddRule(rule) => Ok(netlink.add_rule(rule, IfExists::Keep).map(drop)?),
        // The kernel takes any route with this destination and metric for the same, which it need not be.
        Change::AddRoute(route) => match netlink.add_route(route, IfExists::Fail) {
            Err(fault) if fault.is_existing() => Err(PlumbingFault::RouteTaken(route.to_string())),
            added => Ok(added.map(drop)?),
        },
        Change::DeleteAddress(address) => gone(netlink.delete_address(address)),
        Change::DeleteRoute(route) => gone(netlink.delete_route(route)),
        Change::DeleteRule(rule) => gone(netlink.delete_rule(rule)),
    }
}

fn gone(deleted: Result<(), NetlinkFault>) -> Result<(), PlumbingFault> {
    match deleted {
        Err(fault) if fault.is_missing() => Ok(()),
        result => Ok(result?),
    }
}
