//! Leases of inner addresses.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use adit_plan::nat::{self, Block};
use adit_plan::pool::{Allocator, Inner};

use crate::epochs::{Epochs, main_block};
use crate::fault::{LeaseFault, StoreFault};
use crate::id::{DeviceId, LeaseId, SessionId};
use crate::model::LeaseRecord;
use crate::nat::{Nat, Open};
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::{Durability, Sql};
use crate::store::{State, Store};
use crate::time::Timestamp;
use crate::trail::TrailTable;

/// Who asks for addresses.
#[derive(Debug, Clone, Copy)]
pub struct LeaseRequest {
    /// Whose addresses they will be.
    pub device: DeviceId,
    /// For which session, an open one of this device.
    pub session: SessionId,
    /// When the lease begins.
    pub now: Timestamp,
}

/// Inner addresses, and with NAT a block of ports, that are a device's for as long as this handle lives.
///
/// Taking the lease wrote its beginning to the journal. [`end`](Self::end) writes its end; so does dropping it, with
/// the latest time the store was told. Before either, the addresses must be out of use: gone from the kernel's maps
/// and its table of connections, or a late packet would be answered by their next owner.
///
/// A lease that went to a newer session of the device, by [`Store::lease`], is over for the older handle: ending or
/// dropping that changes nothing.
#[must_use = "the addresses are given back when the lease is dropped"]
pub struct Lease {
    store: Store,
    record: LeaseRecord,
    over: bool,
}

impl Lease {
    /// The lease's id.
    pub fn id(&self) -> LeaseId {
        self.record.id
    }

    /// Whose lease it is.
    pub fn device(&self) -> DeviceId {
        self.record.device
    }

    /// For which session.
    pub fn session(&self) -> SessionId {
        self.record.session
    }

    /// The addresses: one in each family that has a pool.
    pub fn inner(&self) -> Inner {
        self.record.inner
    }

    /// The block of ports that connections from its IPv4 address leave from, as it is now: a new layout may move it or
    /// take it away. `None` without NAT, and for addresses that are not translated.
    pub fn block(&self) -> Option<Block> {
        self.store.state().moved.get(&self.record.id).copied().unwrap_or(self.record.block)
    }

    /// When it began. Later than asked for if the clock was set back meanwhile: no two leases of an address overlap.
    pub fn started(&self) -> Timestamp {
        self.record.started
    }

    /// Gives the addresses back, and all blocks with them. If the journal cannot be written, the addresses stay leased
    /// until their device comes back or the store recovers.
    pub fn end(mut self, now: Timestamp) -> Result<(), StoreFault> {
        self.over = true;
        self.store.end_lease(&self.record, now)
    }

    /// Hands the addresses, and all blocks with them, to another open session of the same device. In the journal one
    /// lease ends and another begins at the same instant. If that fails, the lease is what it was.
    pub fn transfer(&mut self, session: SessionId, now: Timestamp) -> Result<(), LeaseFault> {
        let mut state = self.store.state();
        state.told = now;
        let State { db, epochs, moved, .. } = &mut *state;
        let LeaseRecord { id, device, .. } = self.record;
        let mut next = db.transaction(Durability::Soon, |sql| {
            if sql.open_session_device(session)? != Some(device) {
                return Err(LeaseFault::NoSession);
            }
            let old = open_lease(sql, &self.record)?.ok_or(LeaseFault::Ended)?;
            let to = LeaseRecord { id: LeaseId::random()?, session, ..old };
            Ok(renew(sql, epochs, &old, to, now)?)
        })?;
        next.block = moved.remove(&id).unwrap_or(self.record.block);
        drop(state);
        self.record = next;
        Ok(())
    }
}

/// The row of a lease that is not over: it may have been written anew since the handle was made.
fn open_lease(sql: &Sql<'_>, lease: &LeaseRecord) -> Result<Option<LeaseRecord>, StoreFault> {
    let last = sql.last_lease(lease.device)?;
    Ok(last.filter(|last| last.id == lease.id && last.ended.is_none()))
}

/// Ends a lease and begins another with the same addresses and blocks at the same instant; gives that.
pub(crate) fn renew(
    sql: &Sql<'_>,
    epochs: &Epochs,
    old: &LeaseRecord,
    to: LeaseRecord,
    now: Timestamp,
) -> Result<LeaseRecord, StoreFault> {
    let open = Open::read(sql, epochs, *old)?;
    let at = now.max(open.as_ref().map_or(old.started, Open::latest));
    sql.end_record(TrailTable::Leases, old.seq, at)?;
    let next = LeaseRecord { seq: sql.next_seq(), started: at, ended: None, ..to };
    sql.insert_lease(&next)?;
    if let Some(open) = open {
        open.carry(sql, next.seq, at)?;
    }
    Ok(next)
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let told = self.store.state().told;
        if let Err(error) = self.store.end_lease(&self.record, told) {
            tracing::error!(lease = %self.record.id, %error, "a lease's end could not be written; its addresses stay leased");
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Store {
    /// Leases inner addresses to a device for a session, and with NAT a block of ports, and writes it to the journal: the
    /// addresses and the block it had last if they are free, else those free longest (see [`adit_plan::pool`] and
    /// [`adit_plan::nat`]). A device has one lease: if it has one already, that ends, addresses and blocks stay, and
    /// the new lease begins at the same instant.
    pub fn lease(&self, request: &LeaseRequest) -> Result<Lease, LeaseFault> {
        let record = self.grant(request)?;
        Ok(Lease::new(self.clone(), record))
    }

    /// A device's leases, newest first.
    pub fn leases(&self, device: DeviceId, page: &Page) -> Result<Listed<LeaseRecord>, StoreFault> {
        let (before, limit) = (page.seq_key()?.unwrap_or(i64::MAX), page.limit());
        let rows = self.state().with_blocks(|sql| sql.leases_of(device, before, limit + 1))?;
        Ok(Listed::new(rows, limit, |lease: &LeaseRecord| Cursor::at(&[&lease.seq.to_string()])))
    }

    /// The leases of an address at this gateway at any moment from `from` to `to`, both included, latest first: who
    /// had it then. At the instant at which one lease ended and the next began, both are given.
    pub fn leases_of_address(
        &self,
        address: IpAddr,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<LeaseRecord>, StoreFault> {
        self.state().with_blocks(|sql| sql.leases_at(address, from, to))
    }

    fn grant(&self, request: &LeaseRequest) -> Result<LeaseRecord, LeaseFault> {
        let mut state = self.state();
        state.told = request.now;
        let State { db, allocator, epochs, nat, moved, .. } = &mut *state;
        let mut stock =
            Stock { allocator: allocator.as_mut().ok_or(LeaseFault::NoPools)?, nat: nat.as_mut(), epochs };
        let change = db.transaction(Durability::Soon, |sql| {
            if sql.open_session_device(request.session)? != Some(request.device) {
                return Err(LeaseFault::NoSession);
            }
            let chosen = stock.choose(sql, request.device, request.now)?;
            Ok(stock.begin(sql, chosen, request.device, request.session)?)
        })?;
        stock.settle(&change);
        change.forget_replaced(moved);
        Ok(change.record)
    }

    fn end_lease(&self, record: &LeaseRecord, now: Timestamp) -> Result<(), StoreFault> {
        let mut state = self.state();
        state.told = now;
        let State { db, allocator, epochs, nat, moved, .. } = &mut *state;
        let ended = db.transaction(Durability::Soon, |sql| {
            let Some(lease) = open_lease(sql, record)? else { return Ok::<_, StoreFault>(None) };
            let open = Open::read(sql, epochs, lease)?;
            let at = now.max(open.as_ref().map_or(lease.started, Open::latest));
            sql.end_record(TrailTable::Leases, lease.seq, at)?;
            Ok(Some((at, open)))
        })?;
        let Some((at, open)) = ended else { return Ok(()) };
        moved.remove(&record.id);
        if let Some(allocator) = allocator {
            allocator.release(record.inner, at.as_millis());
        }
        if let Some((open, nat)) = open.zip(nat.as_mut()) {
            open.leave(nat, at);
        }
        Ok(())
    }
}

impl State {
    /// Leases with their blocks.
    fn with_blocks(
        &self,
        read: impl FnOnce(&Sql<'_>) -> Result<Vec<LeaseRecord>, StoreFault>,
    ) -> Result<Vec<LeaseRecord>, StoreFault> {
        let sql = self.db.sql();
        let mut leases = read(&sql)?;
        for lease in &mut leases {
            lease.block = last_block(&sql, &self.epochs, lease)?;
        }
        Ok(leases)
    }
}

/// The block that a lease's connections leave from, or left from last.
fn last_block(sql: &Sql<'_>, epochs: &Epochs, lease: &LeaseRecord) -> Result<Option<Block>, StoreFault> {
    let rows = sql.blocks_of(lease.seq)?;
    let last = match lease.ended {
        None => main_block(&rows),
        Some(_) => rows.iter().max_by_key(|row| (row.epoch, row.seq)),
    };
    Ok(last.and_then(|row| epochs.block(row)))
}

/// What leases are made of.
pub(crate) struct Stock<'s> {
    pub(crate) allocator: &'s mut Allocator,
    pub(crate) nat: Option<&'s mut Nat>,
    pub(crate) epochs: &'s Epochs,
}

/// Addresses and a block chosen for a device; nothing is written yet.
pub(crate) struct Chosen {
    inner: Inner,
    block: Option<nat::Choice>,
    started: Timestamp,
    /// The lease that the device has until then.
    held: Option<LeaseRecord>,
    /// That lease's blocks.
    open: Option<Open>,
}

/// A lease that was written, within a transaction.
pub(crate) struct Begun {
    pub(crate) record: LeaseRecord,
    number: Option<u32>,
    /// The lease that the device had until then.
    replaced: Option<LeaseRecord>,
    /// That lease's blocks, if they did not stay with the address.
    left: Option<Open>,
    /// Whether the block was this address's already.
    stayed: bool,
}

impl Begun {
    pub(crate) fn forget_replaced(&self, moved: &mut HashMap<LeaseId, Option<Block>>) {
        if let Some(replaced) = self.replaced {
            moved.remove(&replaced.id);
        }
    }
}

impl Stock<'_> {
    /// Chooses addresses and a block for a lease that begins now, or as soon as they are free.
    pub(crate) fn choose(
        &self,
        sql: &Sql<'_>,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<Chosen, LeaseFault> {
        let last = sql.last_lease(device)?;
        let held = last.filter(|lease| lease.ended.is_none());
        let preferred = last.map(|lease| lease.inner).unwrap_or_default();
        let choice = self.allocator.choose(preferred, held.is_some())?;
        let open = held.map(|held| Open::read(sql, self.epochs, held)).transpose()?.flatten();

        let translated = self.nat.as_ref().zip(choice.inner.v4);
        let translated = translated.filter(|(nat, inner)| nat.blocks.layout().translates(*inner));
        let block = match translated {
            Some((nat, inner)) => {
                let stays = open.as_ref().filter(|open| open.inner() == inner).and_then(Open::block);
                let preferred = match (stays, &last) {
                    (Some(block), _) => Some(block),
                    (None, Some(last)) => last_block(sql, self.epochs, last)?,
                    (None, None) => None,
                };
                Some(nat.blocks.choose(inner, preferred, stays.is_some())?)
            }
            None => None,
        };
        let free_since = choice.free_since.max(block.and_then(|block| block.free_since));
        let free_since = free_since.map_or(now, Timestamp::from_millis);
        let held_until = open.as_ref().map(Open::latest).or(held.map(|held| held.started));
        let started = now.max(free_since).max(held_until.unwrap_or(now));
        Ok(Chosen { inner: choice.inner, block, started, held, open })
    }

    /// Writes the lease, within the transaction in which it was chosen, for a session that is known to be open and the
    /// device's.
    pub(crate) fn begin(
        &self,
        sql: &Sql<'_>,
        chosen: Chosen,
        device: DeviceId,
        session: SessionId,
    ) -> Result<Begun, StoreFault> {
        let Chosen { inner, block, started, held, open } = chosen;
        if let Some(held) = held {
            sql.end_record(TrailTable::Leases, held.seq, started)?;
        }
        let (id, seq, gateway) = (LeaseId::random()?, sql.next_seq(), sql.gateway());
        let (number, block) = (block.map(|choice| choice.number), block.map(|choice| choice.block));
        let record = LeaseRecord { id, gateway, seq, device, session, inner, block, started, ended: None };
        sql.insert_lease(&record)?;
        if let Some((number, nat)) = number.zip(self.nat.as_ref()) {
            sql.insert_block(seq, nat.epoch, number, started)?;
        }
        // What the address has left stays its own.
        let same = open.as_ref().is_some_and(|open| Some(open.inner()) == inner.v4);
        if same && let Some(open) = &open {
            open.carry_left(sql, seq, started)?;
        }
        let stayed = same && open.as_ref().is_some_and(|open| open.block() == block);
        Ok(Begun { record, number, replaced: held, left: open.filter(|_| !same), stayed })
    }

    /// Tells the allocators.
    pub(crate) fn settle(&mut self, begun: &Begun) {
        let at = begun.record.started;
        if let Some(replaced) = &begun.replaced {
            self.allocator.release(replaced.inner, at.as_millis());
        }
        self.allocator.take(begun.record.inner);
        if let Some(nat) = &mut self.nat {
            if let Some(left) = &begun.left {
                left.leave(nat, at);
            }
            if let Some((number, inner)) = begun.number.zip(begun.record.inner.v4) {
                nat.blocks.take(number, inner);
            }
        }
    }

    /// Takes that back, for the transaction was not committed.
    pub(crate) fn unsettle(&mut self, begun: &Begun) {
        let at = begun.record.started.as_millis();
        self.allocator.release(begun.record.inner, at);
        if let Some(replaced) = &begun.replaced {
            self.allocator.take(replaced.inner);
        }
        if let Some(nat) = &mut self.nat {
            if let Some(number) = begun.number.filter(|_| !begun.stayed) {
                nat.blocks.release(number, at);
            }
            if let Some(left) = &begun.left {
                left.stay(nat);
            }
        }
    }
}

impl Lease {
    pub(crate) fn new(store: Store, record: LeaseRecord) -> Self {
        Self { store, record, over: false }
    }
}

#[cfg(test)]
mod tests;
