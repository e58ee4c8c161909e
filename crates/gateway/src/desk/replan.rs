//! From one layout of source ports and pools to the next, while connections go on.

use std::collections::{HashMap, HashSet};

use adit_plan::nat::Layout;
use adit_plan::pool::Pools;
use adit_store::{DeviceId, Replanned, SessionId, Store};

use super::clerk::Clerk;
use crate::clock;
use crate::exit::{Outlet, Rules};

/// What is to be in force.
#[derive(Debug, Clone)]
pub(crate) struct Replan {
    pub(crate) pools: Pools,
    pub(crate) layout: Option<Layout>,
}

/// What it has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// What has become of whom, in words.
    pub(crate) changes: Vec<String>,
    /// Sessions that have no address or no source ports any more.
    pub(crate) ends: Vec<SessionId>,
}

impl Clerk {
    /// Puts other pools and another layout in force. Leases that keep their ports notice nothing.
    pub(super) fn replan(&mut self, replan: &Replan) -> Result<Done, String> {
        let words = |fault: &dyn std::fmt::Display| fault.to_string();
        let old = Replan { pools: self.store.pools().ok_or("there are no pools")?, layout: self.store.nat() };
        self.store.set_pools(replan.pools.clone()).map_err(|fault| words(&fault))?;
        let replanned = match self.store.set_nat(replan.layout.as_ref(), clock::now()) {
            Ok(replanned) => replanned,
            Err(fault) => {
                let _ = self.store.set_pools(old.pools);
                return Err(words(&fault));
            }
        };
        if let Err(fault) = self.follow(&replanned, replan.layout.as_ref()) {
            // The blocks that were left are their owners' still, so they all go back.
            let back = self.store.set_nat(old.layout.as_ref(), clock::now()).map_err(|fault| words(&fault));
            let back = back.and_then(|_| self.store.set_pools(old.pools).map_err(|fault| words(&fault)));
            if let Err(error) = back {
                tracing::error!(error, "the old source ports could not be put back in force");
            }
            return Err(fault);
        }
        let ends = ending(&replanned);
        let away = |device: &&DeviceId| self.held.get(device).is_some_and(|held| held.session().is_none());
        let away: Vec<_> = ends.iter().filter(away).copied().collect();
        self.give_back(&away);
        let sessions = ends.iter().filter_map(|device| self.held.get(device)?.session()).collect();
        Ok(Done { changes: described(&self.store, &replanned), ends: sessions })
    }

    /// The kernel follows: first nobody has what is taken from them, then everybody has what they got.
    fn follow(&mut self, replanned: &Replanned, layout: Option<&Layout>) -> Result<(), String> {
        for lost in &replanned.homeless {
            let Some(held) = self.held.get_mut(&lost.owner.device) else { continue };
            let without = Outlet { block: None, ..held.outlet.clone() };
            self.exits.change(&held.outlet, &without).map_err(|fault| fault.to_string())?;
            held.outlet = without;
            let sites: Vec<_> = held.outlet.sites.iter().copied().map(Into::into).collect();
            self.exits.forget(&[held.lease.inner()], &sites);
        }
        let mut after: HashMap<DeviceId, Outlet> = HashMap::new();
        for (device, held) in &self.held {
            after.insert(*device, Outlet { block: held.lease.block(), ..held.outlet.clone() });
        }
        let pairs: Vec<_> = (self.held.iter())
            .filter_map(|(device, held)| Some((held.outlet.clone(), after.get(device)?.clone())))
            .collect();
        self.exits.set_rules(Rules::of(layout), &pairs).map_err(|fault| fault.to_string())?;
        for (device, outlet) in after {
            if let Some(held) = self.held.get_mut(&device) {
                held.outlet = outlet;
            }
        }
        Ok(())
    }

    /// Ports that were left go back when the last connection by them is gone.
    pub(super) fn clear_quarantine(&mut self) {
        let left = match self.store.quarantined() {
            Ok(left) if left.is_empty() => return,
            Ok(left) => left,
            Err(error) => return tracing::error!(%error, "the journal could not be read"),
        };
        let ranges: Vec<_> = left.iter().map(|left| (left.owner.inner, left.block)).collect();
        let in_use = match self.exits.in_use(&ranges) {
            Ok(in_use) => in_use,
            Err(fault) => return tracing::warn!(%fault, "cannot look at tracked connections"),
        };
        for (left, _) in left.iter().zip(in_use).filter(|(_, in_use)| !in_use) {
            if let Err(error) = self.store.release_block(left.block, left.owner.inner, clock::now()) {
                tracing::error!(%error, "the end of a block could not be written; it stays taken");
            }
        }
    }
}

/// The devices that have no address or no ports any more.
fn ending(replanned: &Replanned) -> HashSet<DeviceId> {
    let homeless = replanned.homeless.iter().filter(|lost| lost.ends).map(|lost| lost.owner.device);
    homeless.chain(replanned.outside.iter().map(|lease| lease.device)).collect()
}

/// What a change does to whom, in words.
pub(crate) fn described(store: &Store, replanned: &Replanned) -> Vec<String> {
    let name = |device: DeviceId| {
        let device = store.device(device).ok().flatten();
        let user = device.as_ref().and_then(|device| store.user(device.user).ok().flatten());
        match (user, device) {
            (Some(user), Some(device)) => format!("{}/{}", user.name, device.name),
            _ => "a device".to_owned(),
        }
    };
    let ends = ending(replanned);
    let mut words = Vec::new();
    for moved in &replanned.moved {
        let whose = name(moved.owner.device);
        words.push(match moved.from {
            Some(from) => {
                format!("{whose} moves from {from} to {}; its connections stay until they end", moved.to)
            }
            None => format!("{whose} gets {}", moved.to),
        });
    }
    for lost in replanned.homeless.iter().filter(|lost| !ends.contains(&lost.owner.device)) {
        if let Some(block) = lost.block {
            words.push(format!(
                "{} loses {block} at once, with its connections by it",
                name(lost.owner.device)
            ));
        }
    }
    for device in ends {
        words.push(format!("{} connects anew: there are no source ports or no address for it", name(device)));
    }
    words
}
