//! Leases of inner addresses.

use std::fmt;
use std::net::IpAddr;

use adit_plan::pool::{Allocator, Inner};

use crate::fault::{LeaseFault, StoreFault};
use crate::id::{DeviceId, LeaseId, SessionId};
use crate::model::LeaseRecord;
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::{Durability, Sql};
use crate::store::{State, Store};
use crate::time::Timestamp;

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

/// Inner addresses that are a device's for as long as this handle lives.
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

    /// When it began. Later than asked for if the clock was set back meanwhile: no two leases of an address overlap.
    pub fn started(&self) -> Timestamp {
        self.record.started
    }

    /// Gives the addresses back. If the journal cannot be written, the addresses stay leased until their device
    /// comes back or the store recovers.
    pub fn end(mut self, now: Timestamp) -> Result<(), StoreFault> {
        self.over = true;
        self.store.end_lease(&self.record, now)
    }

    /// Hands the addresses to another open session of the same device. In the journal one lease ends and another
    /// begins at the same instant. If that fails, the lease is what it was.
    pub fn transfer(&mut self, session: SessionId, now: Timestamp) -> Result<(), LeaseFault> {
        let mut state = self.store.state();
        state.told = now;
        let old = self.record;
        let next = state.db.transaction(Durability::Soon, |sql| {
            if sql.open_session_device(session)? != Some(old.device) {
                return Err(LeaseFault::NoSession);
            }
            let at = now.max(old.started);
            if !sql.end_lease(old.seq, at)? {
                return Err(LeaseFault::Ended);
            }
            let seq = sql.next_seq();
            let next = LeaseRecord { id: LeaseId::random()?, seq, session, started: at, ..old };
            sql.insert_lease(&next)?;
            Ok(next)
        })?;
        drop(state);
        self.record = next;
        Ok(())
    }
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
    /// Leases inner addresses to a device for a session, and writes it to the journal: the addresses it had last if
    /// they are free, else those free longest (see [`adit_plan::pool`]). A device has one lease: if it has one
    /// already, that ends, the addresses stay, and the new lease begins at the same instant.
    pub fn lease(&self, request: &LeaseRequest) -> Result<Lease, LeaseFault> {
        let record = self.grant(request)?;
        Ok(Lease::new(self.clone(), record))
    }

    /// A device's leases, newest first.
    pub fn leases(&self, device: DeviceId, page: &Page) -> Result<Listed<LeaseRecord>, StoreFault> {
        let (before, limit) = (page.seq_key()?.unwrap_or(i64::MAX), page.limit());
        let rows = self.read(|sql| sql.leases_of(device, before, limit + 1))?;
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
        self.read(|sql| sql.leases_at(address, from, to))
    }

    fn grant(&self, request: &LeaseRequest) -> Result<LeaseRecord, LeaseFault> {
        let mut state = self.state();
        state.told = request.now;
        let State { db, allocator, .. } = &mut *state;
        let allocator = allocator.as_mut().ok_or(LeaseFault::NoPools)?;
        let change = db.transaction(Durability::Soon, |sql| {
            if sql.open_session_device(request.session)? != Some(request.device) {
                return Err(LeaseFault::NoSession);
            }
            let chosen = choose(sql, allocator, request.device, request.now)?;
            Ok(begin(sql, &chosen, request.device, request.session)?)
        })?;
        Ok(change.settle(allocator))
    }

    fn end_lease(&self, record: &LeaseRecord, now: Timestamp) -> Result<(), StoreFault> {
        let mut state = self.state();
        state.told = now;
        let at = now.max(record.started);
        let was_open = state.db.transaction(Durability::Soon, |sql| sql.end_lease(record.seq, at))?;
        if was_open && let Some(allocator) = &mut state.allocator {
            allocator.release(record.inner, at.as_millis());
        }
        Ok(())
    }
}

/// Addresses chosen for a device; nothing is written yet.
pub(crate) struct Chosen {
    inner: Inner,
    started: Timestamp,
    /// The lease that the device has until then.
    held: Option<LeaseRecord>,
}

/// A lease that was written, within a transaction.
pub(crate) struct Begun {
    record: LeaseRecord,
    /// The lease that the device had until then.
    replaced: Option<LeaseRecord>,
}

impl Begun {
    /// Tells the allocator.
    pub(crate) fn settle(&self, allocator: &mut Allocator) -> LeaseRecord {
        if let Some(replaced) = &self.replaced {
            allocator.release(replaced.inner, self.record.started.as_millis());
        }
        allocator.take(self.record.inner);
        self.record
    }

    /// Takes that back, for the transaction was not committed.
    pub(crate) fn unsettle(&self, allocator: &mut Allocator) {
        allocator.release(self.record.inner, self.record.started.as_millis());
        if let Some(replaced) = &self.replaced {
            allocator.take(replaced.inner);
        }
    }
}

/// Chooses addresses for a lease that begins now, or as soon as they are free.
pub(crate) fn choose(
    sql: &Sql<'_>,
    allocator: &Allocator,
    device: DeviceId,
    now: Timestamp,
) -> Result<Chosen, LeaseFault> {
    let last = sql.last_lease(device)?;
    let held = last.filter(|lease| lease.ended.is_none());
    let preferred = last.map(|lease| lease.inner).unwrap_or_default();
    let choice = allocator.choose(preferred, held.is_some())?;

    let free_since = choice.free_since.map(Timestamp::from_millis);
    let started = now.max(free_since.unwrap_or(now)).max(held.map_or(now, |lease| lease.started));
    Ok(Chosen { inner: choice.inner, started, held })
}

/// Writes the lease, within the transaction in which the addresses were chosen, for a session that is known to be open
/// and the device's.
pub(crate) fn begin(
    sql: &Sql<'_>,
    chosen: &Chosen,
    device: DeviceId,
    session: SessionId,
) -> Result<Begun, StoreFault> {
    let Chosen { inner, started, held } = *chosen;
    if let Some(held) = held {
        sql.end_lease(held.seq, started)?;
    }
    let (id, seq, gateway) = (LeaseId::random()?, sql.next_seq(), sql.gateway());
    let record = LeaseRecord { id, gateway, seq, device, session, inner, started, ended: None };
    sql.insert_lease(&record)?;
    Ok(Begun { record, replaced: held })
}

impl Lease {
    pub(crate) fn new(store: Store, record: LeaseRecord) -> Self {
        Self { store, record, over: false }
    }
}

#[cfg(test)]
mod tests;
