//! The store as a whole: opening it, its clock, recovery, retention, settings, copies.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use adit_plan::nat::Block;
use adit_plan::pool::{Allocator, Pools};
use serde_json::json;

use crate::audit::{self, Entry};
use crate::epochs::Epochs;
use crate::fault::{ChangeFault, OpenFault, PoolsFault, StoreFault};
use crate::id::{GatewayId, LeaseId};
use crate::model::{Change, Recovered};
use crate::nat::{self, Nat, Open};
use crate::sqlite::{self, Database, Durability, Sql};
use crate::time::Timestamp;
use crate::trail::TrailTable;

/// The longest setting.
const LONGEST_SETTING: usize = 64 * 1024;

/// The database, open. Clones are handles of one and the same; any thread may use them.
///
/// Calls are short and return when they are done. Changes by operators, revocations among them, and
/// [`heartbeat`](Self::heartbeat) wait for the disk, some milliseconds; beginnings and ends of sessions and leases do
/// not, and take some tens of microseconds. So a killed gateway loses nothing, and a power cut at most the sessions
/// and leases that began or ended since the last heartbeat.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    gateway: GatewayId,
    state: Mutex<State>,
}

/// What one caller at a time may use.
pub(crate) struct State {
    pub(crate) db: Database,
    /// The pools, with the leases that the database has of them.
    pub(crate) allocator: Option<Allocator>,
    /// All epochs that the database has.
    pub(crate) epochs: Epochs,
    /// The blocks of the layout in force, with what the database has of them.
    pub(crate) nat: Option<Nat>,
    /// The blocks of leases that a new layout has moved, or taken away, since their handles were made.
    pub(crate) moved: HashMap<LeaseId, Option<Block>>,
    /// The latest time the store was told.
    pub(crate) told: Timestamp,
}

impl Store {
    /// Creates a database with a new gateway id, and opens it. The directory is made, with mode 0700, if there is
    /// none; the file has mode 0600 and appears under its name only when it is complete. Nothing is overwritten.
    pub fn create(path: &Path, now: Timestamp) -> Result<Self, OpenFault> {
        let gateway = GatewayId::random()?;
        sqlite::create(path, gateway, audit::FIRST, now)?;
        Self::open(path)
    }

    /// Opens a database for this process alone, checks that the file is whole, and brings its schema up to date,
    /// after keeping a copy beside it. Nothing is ever deleted, whatever is wrong.
    ///
    /// What a crash left open stays open until [`recover`](Self::recover) is called.
    pub fn open(path: &Path) -> Result<Self, OpenFault> {
        let db = sqlite::open(path)?;
        let (gateway, told) = (db.sql().gateway(), db.sql().heartbeat()?);
        let epochs = Epochs::read(&db.sql())?;
        let state = State { db, allocator: None, epochs, nat: None, moved: HashMap::new(), told };
        let state = Mutex::new(state);
        Ok(Self { shared: Arc::new(Shared { gateway, state }) })
    }

    /// The gateway whose journal this is.
    pub fn gateway(&self) -> GatewayId {
        self.shared.gateway
    }

    /// Writes down that the gateway is alive, and waits until everything written so far is on the disk. Call it every
    /// few seconds, where waiting harms nobody: after a crash the journal is closed by the last one.
    pub fn heartbeat(&self, now: Timestamp) -> Result<(), StoreFault> {
        let mut state = self.state();
        state.told = now;
        state.db.transaction(Durability::Now, |sql| sql.set_heartbeat(now))?;
        state.db.tidy()
    }

    /// Closes what a crash left open: sessions and leases of this gateway, with their blocks, end `unseen_ms` after its
    /// last heartbeat, for so long it may have lived on, or now if that is earlier, or where they began if that was
    /// later. Forwards stay. Call it once after opening, before the first lease; lease handles still held lose their
    /// leases.
    pub fn recover(&self, now: Timestamp, unseen_ms: i64) -> Result<Recovered, StoreFault> {
        let mut state = self.state();
        let State { db, epochs, .. } = &mut *state;
        let recovered = db.transaction(Durability::Now, |sql| {
            // A heartbeat from the future tells of a clock that was wrong.
            let heartbeat = sql.heartbeat()?.as_millis();
            let at = Timestamp::from_millis(heartbeat.saturating_add(unseen_ms)).min(now);
            let open = nat::all_open(sql)?;
            for lease in &open {
                let blocks = Open::read(sql, epochs, *lease)?;
                let began = blocks.as_ref().map_or(lease.started, Open::latest);
                sql.end_record(TrailTable::Leases, lease.seq, at.max(began))?;
            }
            let leases = open.len() as u64;
            let sessions = sql.end_all_sessions(at, "gateway stopped")?;
            sql.set_heartbeat(now)?;
            Ok::<_, StoreFault>(Recovered { sessions, leases, at })
        })?;
        state.told = now;
        state.moved.clear();
        if let Some(pools) = state.allocator.as_ref().map(|allocator| allocator.pools().clone()) {
            state.allocator = Some(remembering(pools, &state.db.sql())?);
        }
        if state.nat.is_some() {
            state.nat = nat::reread(&state.db.sql(), &state.epochs)?;
        }
        Ok(recovered)
    }

    /// Sets the pools that leases are taken from, at the start and after each change of the configuration. Open
    /// leases stay as they are, inside the new pools or not.
    pub fn set_pools(&self, pools: Pools) -> Result<(), PoolsFault> {
        let mut state = self.state();
        for (_, owner, prefix) in state.db.sql().all_prefixes()? {
            if let Some(pool) = pools.overlapping(&prefix) {
                return Err(PoolsFault::OverlapsPrefix { pool, prefix, owner });
            }
        }
        state.allocator = Some(remembering(pools, &state.db.sql())?);
        Ok(())
    }

    /// The pools that leases are taken from, if they are set.
    pub fn pools(&self) -> Option<Pools> {
        self.state().allocator.as_ref().map(|allocator| allocator.pools().clone())
    }

    /// A setting's value.
    pub fn setting(&self, key: &str) -> Result<Option<String>, StoreFault> {
        self.read(|sql| sql.setting(key))
    }

    /// Sets a setting, or with `None` removes it. The audit row names the key, not the value. Not a place for secrets.
    pub fn set_setting(
        &self,
        change: &Change<'_>,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), ChangeFault> {
        bounded("the setting", value.unwrap_or_default(), LONGEST_SETTING)?;
        self.change(change, |sql| {
            sql.set_setting(key, value)?;
            Ok(((), Some(Entry::new("setting.set", key, json!({ "removed": value.is_none() })))))
        })
    }

    /// Checks the whole database, which takes some 10 ms per MiB, and nobody else has a turn meanwhile. Opening checks
    /// as much as can be checked at once.
    pub fn check(&self) -> Result<(), StoreFault> {
        self.state().db.check()
    }

    /// Writes a consistent copy of the database to a new file with mode 0600, which must not exist. Work goes on
    /// when the copy is complete.
    pub fn backup(&self, path: &Path) -> Result<(), OpenFault> {
        self.state().db.copy_to(path)
    }

    /// Takes the state. A caller that panicked left no transaction half done, so the state is as good as ever.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, work: impl FnOnce(&Sql<'_>) -> T) -> T {
        work(&self.state().db.sql())
    }

    pub(crate) fn write<T, E: From<StoreFault>>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Sql<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.state().db.transaction(durability, work)
    }

    /// Makes a change and writes its audit row in one transaction. A change that finds nothing to do gives no entry.
    pub(crate) fn change<T, E: From<StoreFault>>(
        &self,
        change: &Change<'_>,
        work: impl FnOnce(&Sql<'_>) -> Result<(T, Option<Entry>), E>,
    ) -> Result<T, E> {
        self.write(Durability::Now, |sql| {
            let (result, entry) = work(sql)?;
            if let Some(entry) = entry {
                audit::append(sql, change, &entry)?;
            }
            Ok(result)
        })
    }
}

/// An allocator that knows what the journal has of these pools' addresses.
fn remembering(pools: Pools, sql: &Sql<'_>) -> Result<Allocator, StoreFault> {
    let mut allocator = Allocator::new(pools);
    for (inner, ended) in sql.known_addresses()? {
        match ended {
            Some(ended) => allocator.release(inner, ended.as_millis()),
            None => allocator.take(inner),
        }
    }
    Ok(allocator)
}

/// Refuses a text that is longer than the database keeps.
pub(crate) fn bounded(what: &'static str, text: &str, max: usize) -> Result<(), StoreFault> {
    if text.len() > max { Err(StoreFault::TooLong { what, max }) } else { Ok(()) }
}
