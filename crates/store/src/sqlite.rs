//! The SQLite backend: the only module that knows SQL. It takes and gives the store's own types.
//!
//! **One connection behind the store's lock**, which holds the file exclusively: the wal-index stays in memory, no
//! other process can write behind the gateway's back, and a call costs no more than its own statements.
//!
//! **What a power cut can lose.** The database is in WAL mode. Whatever is lost, the file stays consistent and the
//! rows that remain are the first ones, without gaps.
//! - [`Durability::Now`] (changes by operators: users, devices, certificates, revocations, settings, audit rows; and
//!   the heartbeat) waits until the log is on the disk. Nothing of it is lost.
//! - [`Durability::Soon`] (beginnings and ends of sessions and leases) is handed to the operating system and not
//!   waited for: a crash of the gateway loses nothing, a power cut loses what was written since the last `Now`, so at
//!   most one heartbeat's worth. Recovery closes the journal at that heartbeat in any case.

mod audits;
mod blocks;
mod credentials;
mod forwards;
mod journal;
mod open;
mod people;
mod row;
mod trail;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use rusqlite::{CachedStatement, Connection, ErrorCode, Params, Row};

use crate::fault::StoreFault;
use crate::id::GatewayId;
use crate::trail::Link;

pub(crate) use audits::AuditText;
pub(crate) use blocks::BlockRow;
pub(crate) use open::{create, open};
pub(crate) use trail::{More, Record};

/// The transactions after which the log is moved into the file at the next occasion.
const LOGGED: u32 = 200;

/// When a transaction must be on the disk. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Before the call returns.
    Now,
    /// By the next heartbeat.
    Soon,
}

/// The open database.
pub(crate) struct Database {
    connection: Connection,
    path: PathBuf,
    gateway: GatewayId,
    /// What stands for the gateway in records.
    number: i64,
    /// The last place given in the gateway's journal.
    seq: Cell<i64>,
    /// The last record of the trail.
    head: Cell<Link>,
    durability: Durability,
    /// Transactions since the log was last moved into the file.
    logged: u32,
}

impl Database {
    /// Runs one transaction: all of `work` is written, or, if it gives an error or panics, nothing.
    pub(crate) fn transaction<T, E: From<StoreFault>>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Sql<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.set_durability(durability)?;
        self.logged += 1;
        let sql = self.sql();
        sql.control("BEGIN IMMEDIATE")?;
        let mut unfinished = Unfinished {
            connection: sql.connection,
            head: sql.head,
            before: sql.head.get(),
            committed: false,
        };
        let result = work(&sql)?;
        sql.control("COMMIT")?;
        unfinished.committed = true;
        Ok(result)
    }

    /// Reading, outside a transaction: nobody else writes while the store's lock is held.
    pub(crate) fn sql(&self) -> Sql<'_> {
        Sql {
            connection: &self.connection,
            path: &self.path,
            gateway: self.gateway,
            number: self.number,
            seq: &self.seq,
            head: &self.head,
        }
    }

    /// Moves a log that has grown into the database file, so that this happens here and not within some lease.
    pub(crate) fn tidy(&mut self) -> Result<(), StoreFault> {
        if self.logged < LOGGED {
            return Ok(());
        }
        self.logged = 0;
        self.set_durability(Durability::Now)?;
        let moved = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        moved.map_err(|error| fault(error, &self.path))
    }

    fn set_durability(&mut self, durability: Durability) -> Result<(), StoreFault> {
        if self.durability != durability {
            let level = match durability {
                Durability::Now => "FULL",
                Durability::Soon => "NORMAL",
            };
            self.connection
                .pragma_update(None, "synchronous", level)
                .map_err(|error| fault(error, &self.path))?;
            self.durability = durability;
        }
        Ok(())
    }
}

/// A transaction that is undone when this goes, unless it was committed; the trail's head goes back with it.
struct Unfinished<'c> {
    connection: &'c Connection,
    head: &'c Cell<Link>,
    before: Link,
    committed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        self.head.set(self.before);
        // The database undoes a transaction by itself when the disk is full.
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be undone");
        }
    }
}

/// The statements, within a transaction or for reading alone.
pub(crate) struct Sql<'c> {
    connection: &'c Connection,
    path: &'c Path,
    gateway: GatewayId,
    number: i64,
    seq: &'c Cell<i64>,
    head: &'c Cell<Link>,
}

impl Sql<'_> {
    /// The gateway whose journal this is.
    pub(crate) fn gateway(&self) -> GatewayId {
        self.gateway
    }

    /// Begins or ends a transaction.
    fn control(&self, sql: &'static str) -> Result<(), StoreFault> {
        let run = || self.connection.prepare_cached(sql)?.execute([]);
        run().map(drop).map_err(|error| fault(error, self.path))
    }

    /// Changes rows; gives how many.
    fn run(&self, sql: &str, values: impl Params) -> Result<usize, StoreFault> {
        let run = || self.prepared(sql)?.execute(values);
        run().map_err(|error| fault(error, self.path))
    }

    /// The first row, if there is one.
    fn first<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreFault> {
        let run = || {
            let mut statement = self.prepared(sql)?;
            let mut rows = statement.query(values)?;
            rows.next()?.map(read).transpose()
        };
        run().map_err(|error| fault(error, self.path))
    }

    /// All rows.
    fn rows<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreFault> {
        let run = || self.prepared(sql)?.query_map(values, read)?.collect::<Result<_, _>>();
        run().map_err(|error| fault(error, self.path))
    }

    /// Rows up to the first that is read as `None`.
    fn rows_while<T>(
        &self,
        sql: &str,
        values: impl Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<Option<T>>,
    ) -> Result<Vec<T>, StoreFault> {
        let run = || {
            let mut statement = self.prepared(sql)?;
            let mut rows = statement.query(values)?;
            let mut found = Vec::new();
            while let Some(item) = rows.next()?.map(&mut read).transpose()?.flatten() {
                found.push(item);
            }
            Ok(found)
        };
        run().map_err(|error| fault(error, self.path))
    }

    /// The statement, compiled at its first use.
    fn prepared(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        #[cfg(test)]
        tests::USED.with_borrow_mut(|used| used.insert(sql.to_owned()));
        self.connection.prepare_cached(sql)
    }

    /// The fault of a row that must be there and is not.
    fn missing(&self, what: &str) -> StoreFault {
        self.damaged(format!("{what} is missing"))
    }

    /// The fault of content that was not written by the store.
    pub(crate) fn damaged(&self, detail: String) -> StoreFault {
        StoreFault::Damaged { path: self.path.to_owned(), detail }
    }
}

/// A number of rows, as SQL takes it.
fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Says what a failure means to whoever runs the gateway.
fn fault(error: rusqlite::Error, path: &Path) -> StoreFault {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreFault::Damaged { path, detail: error.to_string() }
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreFault::Locked { path },
        Some(ErrorCode::DiskFull) => StoreFault::DiskFull { path },
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            StoreFault::ReadOnly { path }
        }
        _ => match error {
            // A value that does not read back as what it was written from.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => StoreFault::Damaged { path, detail: error.to_string() },
            error => StoreFault::Failed { path, detail: error.to_string() },
        },
    }
}

#[cfg(test)]
impl Database {
    /// The connection itself, for tests that look at or damage what lies below.
    pub(crate) fn raw(&self) -> &Connection {
        &self.connection
    }
}

#[cfg(test)]
mod tests;
