//! What leaves a device and what is let in to it, in the kernel: source ports, forwards, connections.
//!
//! The order is what keeps a late packet from being answered by the next owner of an address, and a connection from
//! being traced to them: at the end of a lease its elements go first, then its connections, and only then the journal
//! says that it is over. A lease that begins finds no connection of anybody else at its address and ports.

mod elements;
mod unclaimed;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use adit_host::conntrack::{Tracked, Usage};
use adit_plan::nat::{Block, Forwards, Layout};
use adit_plan::pool::Inner;
use ipnet::IpNet;

pub(crate) use self::elements::{Key, Outlet, TCP, UDP, Way, keys};
use self::unclaimed::Unclaimed;
use crate::machine_state::{ApplyFault, Machine};

/// Seconds for which packets of a connection that is over may still arrive: what NAT has to wait at least
/// (RFC 4787, REQ-5).
const LATE: u32 = 120;

/// What is in force of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Source ports are in blocks.
    pub(crate) blocks: bool,
    /// Where forwarded ports are, if any.
    pub(crate) forward: Option<Forwards>,
}

impl Rules {
    /// The rules of a layout of source ports.
    pub(crate) fn of(layout: Option<&Layout>) -> Self {
        Self { blocks: layout.is_some(), forward: layout.and_then(Layout::forward).cloned() }
    }
}

/// The kernel's side of all leases. One thread has it.
pub(crate) struct Exits {
    machine: Arc<Machine>,
    rules: Rules,
    unclaimed: Unclaimed,
    /// The kernel's table of connections is nearly full, and that was said.
    crowded: bool,
}

impl Exits {
    /// Takes up connections that are there from an earlier run.
    pub(crate) fn new(machine: Arc<Machine>, rules: Rules) -> Self {
        let unclaimed = match machine.connections() {
            Ok(connections) => Unclaimed::new(&connections),
            Err(fault) => {
                tracing::warn!(%fault, "cannot look at tracked connections");
                Unclaimed::default()
            }
        };
        Self { machine, rules, unclaimed, crowded: false }
    }

    /// Says when the kernel's table of connections is nearly full: what does not fit is dropped, whoever's it is.
    pub(crate) fn watch(&mut self) {
        let Ok(Usage { count, max }) = self.machine.connection_usage() else { return };
        let (count, most) = (u64::from(count), u64::from(max));
        let crowded = count * 10 > most * if self.crowded { 8 } else { 9 };
        if crowded && !self.crowded {
            tracing::warn!(
                count,
                max,
                "the kernel's table of connections is nearly full: raise net.netfilter.nf_conntrack_max"
            );
        }
        self.crowded = crowded;
    }

    /// Begins a lease: nobody else's connections are at its address and ports, and its own of an earlier run stay if the
    /// address was the same device's the time before (`was_last`).
    ///
    /// # Errors
    /// When the kernel refuses. Nothing leaves then.
    pub(crate) fn open(
        &mut self,
        inner: Inner,
        outlet: &Outlet,
        was_last: impl FnOnce() -> bool,
    ) -> Result<(), ApplyFault> {
        let strange = self.unclaimed.claim(inner, outlet.block, was_last);
        if !strange.is_empty() {
            self.machine.forget_connections(&strange)?;
        }
        self.change(&Outlet::default(), outlet)
    }

    /// Brings the kernel from one state of a lease to another.
    ///
    /// # Errors
    /// When the kernel refuses; it is as before then.
    pub(crate) fn change(&self, old: &Outlet, new: &Outlet) -> Result<(), ApplyFault> {
        self.change_all([(old, new)])
    }

    /// The same for several leases at once: all of it or nothing.
    ///
    /// # Errors
    /// When the kernel refuses; it is as before then.
    pub(crate) fn change_all<'a>(
        &self,
        pairs: impl IntoIterator<Item = (&'a Outlet, &'a Outlet)>,
    ) -> Result<(), ApplyFault> {
        let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
        for (before, after) in pairs {
            old.extend(self.elements(before));
            new.extend(self.elements(after));
        }
        self.apply(&old, &new)
    }

    /// Puts other rules in force for all leases, with what each has before and after: all of it or nothing.
    ///
    /// # Errors
    /// When the kernel refuses; everything is as before then.
    pub(crate) fn set_rules(&mut self, rules: Rules, leases: &[(Outlet, Outlet)]) -> Result<(), ApplyFault> {
        let old: BTreeMap<_, _> = leases.iter().flat_map(|(before, _)| self.elements(before)).collect();
        let before = std::mem::replace(&mut self.rules, rules);
        let new: BTreeMap<_, _> = leases.iter().flat_map(|(_, after)| self.elements(after)).collect();
        let result = self.apply(&old, &new);
        if result.is_err() {
            self.rules = before;
        }
        result
    }

    fn elements(&self, outlet: &Outlet) -> BTreeMap<Key, Vec<u8>> {
        match self.rules.blocks {
            true => elements::of(outlet, self.rules.forward.as_ref()),
            false => BTreeMap::new(),
        }
    }

    fn apply(&self, old: &BTreeMap<Key, Vec<u8>>, new: &BTreeMap<Key, Vec<u8>>) -> Result<(), ApplyFault> {
        let changes = elements::difference(old, new);
        if changes.is_empty() { Ok(()) } else { self.machine.change_elements(&changes) }
    }

    /// Ends leases: nothing new leaves or comes in, and what was under way is forgotten. What fails is logged.
    pub(crate) fn close<'a>(&self, leases: impl IntoIterator<Item = (Inner, &'a Outlet)>) {
        let leases: Vec<_> = leases.into_iter().collect();
        self.suspend(leases.iter().map(|(_, outlet)| *outlet));
        let left = match leases.iter().any(|(_, outlet)| outlet.block.is_some()) {
            true => self.left_by(&leases),
            false => Vec::new(),
        };
        let inner: Vec<_> = leases.iter().map(|(inner, _)| *inner).collect();
        let sites: Vec<_> =
            leases.iter().flat_map(|(_, outlet)| &outlet.sites).copied().map(IpNet::V4).collect();
        self.forget(&inner, &sites);
        if let Err(fault) = self.machine.occupy(&left, LATE) {
            tracing::error!(%fault, "ports of connections that are over may be used at once");
        }
    }

    /// The translated connections of leases: what is under way to them is not to reach who gets their ports next.
    fn left_by(&self, leases: &[(Inner, &Outlet)]) -> Vec<Tracked> {
        let inner: HashSet<IpAddr> =
            leases.iter().filter_map(|(inner, _)| inner.v4.map(IpAddr::V4)).collect();
        let mut connections = self.machine.connections().unwrap_or_else(|fault| {
            tracing::error!(%fault, "cannot look at tracked connections");
            Vec::new()
        });
        connections.retain(|tracked| {
            let from = tracked.original.source.ip();
            inner.contains(&from) && tracked.reply.destination.ip() != from
        });
        connections
    }

    /// Forgets connections of addresses and of networks behind them.
    pub(crate) fn forget(&self, inner: &[Inner], sites: &[IpNet]) {
        let addresses: Vec<IpAddr> = inner.iter().flat_map(addresses).collect();
        if addresses.is_empty() {
            return;
        }
        let forgotten = self.machine.forget_connections(&addresses).and_then(|()| match sites {
            [] => Ok(()),
            sites => self.machine.forget_those(|tracked| {
                let ends = [tracked.original.source.ip(), tracked.reply.source.ip()];
                sites.iter().any(|net| ends.iter().any(|end| net.contains(end)))
            }),
        });
        if let Err(fault) = forgotten {
            tracing::error!(%fault, ?inner, "tracked connections could not be deleted");
        }
    }

    /// Forgets what came in by ports that are forwarded no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn cut(&self, inner: Inner, ways: &[Way]) -> Result<(), ApplyFault> {
        let Some(inner) = inner.v4.filter(|_| !ways.is_empty()) else { return Ok(()) };
        self.machine.forget_those(|tracked| {
            let (outside, inside) = (tracked.original.destination.port(), tracked.reply.source);
            let came_by =
                |way: &Way| (way.protocol, way.port, way.to) == (tracked.protocol, outside, inside.port());
            inside.ip() == IpAddr::V4(inner) && ways.iter().any(came_by)
        })
    }

    /// Forgets the connections that an address has from a range of ports.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn clear(&self, owner: Ipv4Addr, block: Block) -> Result<(), ApplyFault> {
        self.machine.forget_those(|tracked| is_by(tracked, owner, block))
    }

    /// Takes all elements out at once, without touching connections: their owners may be back in a moment, and until
    /// then nothing passes.
    pub(crate) fn suspend<'a>(&self, outlets: impl IntoIterator<Item = &'a Outlet>) {
        let nothing = Outlet::default();
        if let Err(fault) = self.change_all(outlets.into_iter().map(|outlet| (outlet, &nothing))) {
            tracing::error!(%fault, "source ports could not be taken out");
        }
    }

    /// Which of these ranges still have connections of their owner.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn in_use(&self, ranges: &[(Ipv4Addr, Block)]) -> Result<Vec<bool>, ApplyFault> {
        let connections = self.machine.connections()?;
        let has = |(owner, block): &(Ipv4Addr, Block)| {
            connections.iter().any(|tracked| is_by(tracked, *owner, *block))
        };
        Ok(ranges.iter().map(has).collect())
    }
}

/// Whether a connection is an address's own and leaves from a range of ports.
fn is_by(tracked: &Tracked, owner: Ipv4Addr, block: Block) -> bool {
    let end = tracked.reply.destination;
    tracked.original.source.ip() == IpAddr::V4(owner)
        && matches!(end.ip(), IpAddr::V4(to) if block.contains(to, end.port()))
}

fn addresses(inner: &Inner) -> impl Iterator<Item = IpAddr> + use<> {
    inner.v4.map(IpAddr::V4).into_iter().chain(inner.v6.map(IpAddr::V6))
}

#[cfg(test)]
mod tests;
