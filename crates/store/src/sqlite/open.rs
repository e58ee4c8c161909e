//! Creating, opening, checking, migrating and copying the database file.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};

use super::trail::TABLES;
use super::{Database, Durability, fault};
use crate::fault::{OpenFault, StoreFault};
use crate::id::GatewayId;
use crate::time::Timestamp;
use crate::trail::{Link, STORED, TrailTable, unstored};

/// Marks the file as adit's: the letters `adit`.
const APPLICATION: i32 = i32::from_be_bytes(*b"adit");

/// Each entry brings the schema one version further. Entries are only ever added.
const MIGRATIONS: &[&str] = &[include_str!("v1.sql"), include_str!("v2.sql")];

/// How long another process may take to let go of the file, such as a gateway that is just ending.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many statements stay prepared: all there are.
const STATEMENTS: usize = 128;

/// The bytes of a page of a new database. A row of the journal is small and touches several pages, each of which is
/// logged whole: half the usual size saves a sixth of the time.
const PAGE: u32 = 2048;

/// The length up to which a file is checked as a whole before it is used, which takes about 2 ms per MiB.
const CHECKED_WHOLE: u64 = 128 << 20;

/// The tables that decide who may come in.
const ACCESS_TABLES: [&str; 6] =
    ["gateways", "users", "devices", "device_prefixes", "certificates", "revocations"];

/// The pages of log after which a commit moves the log into the file itself; the heartbeat normally comes first.
const LOG_PAGES: u32 = 20_000;

/// Makes a new database with one gateway. It appears under its name only when it is complete.
pub(crate) fn create(
    path: &Path,
    gateway: GatewayId,
    audit_head: &str,
    now: Timestamp,
) -> Result<(), OpenFault> {
    let path = absolute(path)?;
    if path.exists() {
        return Err(OpenFault::Exists { path });
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |error| OpenFault::Io { doing, path, error }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io("create", directory))?;

    let draft = beside(&path, &format!("new-{gateway}"));
    private_file(&draft).map_err(io("create", &draft))?;
    let made = fill(&draft, gateway, audit_head, now)
        .and_then(|()| File::open(&draft).and_then(|file| file.sync_all()).map_err(io("write", &draft)))
        // Unlike a rename, a link never replaces a file that appeared in the meantime.
        .and_then(|()| match fs::hard_link(&draft, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(OpenFault::Exists { path: path.clone() })
            }
            other => other.map_err(io("create", &path)),
        });
    fs::remove_file(&draft).map_err(io("remove", &draft))?;
    made?;
    sync_directory(directory).map_err(io("write", directory))
}

fn fill(path: &Path, gateway: GatewayId, audit_head: &str, now: Timestamp) -> Result<(), OpenFault> {
    let mut connection = connect(path).map_err(|error| fault(error, path))?;
    connection.pragma_update(None, "page_size", PAGE).map_err(|error| fault(error, path))?;
    migrate(&mut connection, path, MIGRATIONS)?;
    let row = "INSERT INTO gateways (id, created, heartbeat, seq, audit_head) VALUES (?1, ?2, ?2, 0, ?3)";
    connection
        .execute(row, params![gateway.hex().as_str(), now.as_millis(), audit_head])
        .map_err(|error| fault(error, path))?;
    connection.close().map_err(|(_, error)| fault(error, path))?;
    Ok(())
}

/// Opens a database: takes it for this process alone, checks that it is whole, and brings its schema up to date.
pub(crate) fn open(path: &Path) -> Result<Database, OpenFault> {
    open_with(path, PATIENCE, MIGRATIONS)
}

fn open_with(path: &Path, patience: Duration, migrations: &[&str]) -> Result<Database, OpenFault> {
    let path = absolute(path)?;
    let file = match fs::metadata(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenFault::Missing { path }),
        Err(error) => {
            return Err(OpenFault::Io { doing: "open", path, error });
        }
    };
    if file.len() == 0 {
        // SQLite would take it for a new database, and the gateway would forget everything it knew.
        return Err(StoreFault::Damaged { path, detail: "the file is empty".to_owned() }.into());
    }
    if file.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the database was open to other users; closing it to them");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(|error| OpenFault::Io {
            doing: "set the mode of",
            path: path.clone(),
            error,
        })?;
    }

    let mut connection = connect(&path).map_err(|error| fault(error, &path))?;
    take(&connection, &path, patience)?;
    check(&connection, &path, file.len())?;
    migrate(&mut connection, &path, migrations)?;
    settle(&connection).map_err(|error| fault(error, &path))?;
    let (gateway, number, seq) = identity(&connection, &path)?;
    let head = Cell::new(head(&connection).map_err(|error| fault(error, &path))?);
    let (seq, durability) = (Cell::new(seq), Durability::Soon);
    Ok(Database { connection, path, gateway, number, seq, head, durability, logged: 0 })
}

/// The gateway that owns the file, what stands for it in records, and the last place given in its journal.
fn identity(connection: &Connection, path: &Path) -> Result<(GatewayId, i64, i64), StoreFault> {
    let damaged = |detail: String| StoreFault::Damaged { path: path.to_owned(), detail };
    let row = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?));
    // Rows may be younger than the number in the gateway's own row, or deleted already.
    let tables = ["sessions", "audits", "leases", "blocks", "epochs", "forwards", "clock_steps", "ends"];
    let last = tables.map(|table| format!("coalesce((SELECT max(seq) FROM {table}), 0)")).join(", ");
    let sql = format!("SELECT id, number, max(seq, base_seq, {last}) FROM gateways");
    let (id, number, seq) = connection.query_row(&sql, [], row).map_err(|error| match error {
        rusqlite::Error::QueryReturnedNoRows => damaged("it has no gateway".to_owned()),
        error => fault(error, path),
    })?;
    let id = id.parse().map_err(|error| damaged(format!("its gateway's id is {error}")))?;
    Ok((id, number, seq))
}

/// The last record of the trail; without one, its base.
fn head(connection: &Connection) -> rusqlite::Result<Link> {
    let base = "SELECT base_seq, base_hash FROM gateways";
    let mut head = connection.query_row(base, [], |row| Ok(Link { seq: row.get(0)?, hash: row.get(1)? }))?;
    for table in TABLES.map(TrailTable::as_str) {
        let sql = format!("SELECT seq, hash FROM {table} WHERE seq > ?1 ORDER BY seq DESC LIMIT 1");
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Option<[u8; STORED]>>(1)?));
        if let Some((seq, Some(hash))) = connection.query_row(&sql, [head.seq], row).optional()? {
            head = Link { seq, hash: unstored(&hash).1 };
        }
    }
    Ok(head)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // The store's lock serialises all use, so SQLite's own mutexes are left out.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // References are checked after each migration as a whole, and after the last one all the time.
    connection.pragma_update(None, "foreign_keys", false)?;
    Ok(connection)
}

/// Takes the file for this process alone. The kernel lets go of it when the process ends, however it ends.
fn take(connection: &Connection, path: &Path, patience: Duration) -> Result<(), OpenFault> {
    let run = || {
        connection.busy_timeout(patience)?;
        connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        if application == APPLICATION {
            let mode: String =
                connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
            connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
            if mode != "wal" {
                return Ok(Err(format!("its journal mode stays {mode}; use a local file system")));
            }
        }
        Ok(Ok(application))
    };
    let path = || path.to_owned();
    match run().map_err(|error| fault(error, &path()))? {
        Ok(APPLICATION) => Ok(()),
        Ok(_) => Err(OpenFault::Foreign { path: path() }),
        Err(detail) => Err(StoreFault::Failed { path: path(), detail }.into()),
    }
}

/// Looks whether the pages of the file fit together: all of a small file; of a large one, whose journal would keep the
/// gateway from starting for seconds, the tables that decide who may come in.
fn check(connection: &Connection, path: &Path, length: u64) -> Result<(), OpenFault> {
    let scopes: &[&str] = if length <= CHECKED_WHOLE { &["1"] } else { &ACCESS_TABLES };
    for scope in scopes {
        let found: String = connection
            .query_row(&format!("PRAGMA quick_check({scope})"), [], |row| row.get(0))
            .map_err(|error| fault(error, path))?;
        if found != "ok" {
            return Err(StoreFault::Damaged { path: path.to_owned(), detail: found }.into());
        }
    }
    Ok(())
}

/// Settings of this connection. The cache of pages keeps its small usual size: whenever a page is split, SQLite walks
/// through all of it.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Without this, statements near a partial index are compiled anew for each value bound to them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted when its retention ends is overwritten, not only unlinked.
    connection.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))?;
    Ok(())
}

/// Brings the schema from the version found to the newest, one transaction for each step. Data that exists is
/// copied to a file beside the database first; the copy is kept.
fn migrate(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), OpenFault> {
    let known = migrations.len() as u32;
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| fault(error, path))?;
    if found > known {
        return Err(OpenFault::Newer { path: path.to_owned(), found, known });
    }
    if found > 0 && found < known {
        let copy = keep_copy(connection, path, known).map_err(|error| OpenFault::Migration {
            path: path.to_owned(),
            from: found,
            to: known,
            detail: format!("no copy could be made beside it: {error}"),
        })?;
        tracing::info!(from = found, to = known, copy = %copy.display(), "migrating the database; a copy is kept");
    }
    for (version, statements) in (1u32..).zip(migrations).skip(found as usize) {
        let mut step = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(statements)?;
            if let Some(table) = dangling(&transaction)? {
                return Ok(Err(format!("it would leave rows of {table} that refer to nothing")));
            }
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit().map(Ok)
        };
        step().unwrap_or_else(|error: rusqlite::Error| Err(error.to_string())).map_err(|detail| {
            OpenFault::Migration { path: path.to_owned(), from: version - 1, to: version, detail }
        })?;
    }
    Ok(())
}

/// A table with a row that refers to a row that is not there.
fn dangling(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.query_row("PRAGMA foreign_key_check", [], |row| row.get(0)).optional()
}

impl Database {
    /// Checks every page, every index and every reference.
    pub(crate) fn check(&self) -> Result<(), StoreFault> {
        let found: String = self
            .connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(|error| fault(error, &self.path))?;
        let damaged = |detail| Err(StoreFault::Damaged { path: self.path.clone(), detail });
        match dangling(&self.connection).map_err(|error| fault(error, &self.path))? {
            _ if found != "ok" => damaged(found),
            Some(table) => damaged(format!("a row of {table} refers to nothing")),
            None => Ok(()),
        }
    }

    /// Writes a consistent copy to a new file, which must not exist.
    pub(crate) fn copy_to(&self, path: &Path) -> Result<(), OpenFault> {
        let path = absolute(path)?;
        match copy_to(&self.connection, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(OpenFault::Exists { path }),
            other => other.map_err(|error| OpenFault::Io { doing: "write the copy", path, error }),
        }
    }
}

/// Copies the database to a new file beside it, numbered on from copies that exist.
fn keep_copy(connection: &Connection, path: &Path, version: u32) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let copy = beside(path, &format!("before-v{version}.{number}"));
        match copy_to(connection, &copy) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => return other.map(|()| copy),
        }
    }
}

fn copy_to(connection: &Connection, path: &Path) -> io::Result<()> {
    private_file(path)?;
    let name = path.to_str().ok_or_else(|| io::Error::other("the path is not UTF-8"))?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(io::Error::other)?;
    File::open(path)?.sync_all()?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Makes an empty file that only its owner can read, which must not exist.
fn private_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The path from the root: SQLite reads some relative names as URIs.
fn absolute(path: &Path) -> Result<PathBuf, OpenFault> {
    std::path::absolute(path).map_err(|error| OpenFault::Io { doing: "find", path: path.to_owned(), error })
}

/// A name beside the file: `adit.db` becomes `adit.db.suffix`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
