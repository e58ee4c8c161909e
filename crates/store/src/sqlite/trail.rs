//! The trail's records: written with their hashes, and read as they are hashed.

use rusqlite::types::ValueRef;
use rusqlite::{Row, params};

use super::Sql;
use super::row::time;
use crate::fault::StoreFault;
use crate::forwards::Forward;
use crate::id::SessionId;
use crate::model::LeaseRecord;
use crate::time::Timestamp;
use crate::trail::{Encoding, Hash, Link, STORED, TrailTable, sha256, stored, unstored};

/// A record, as the verification sees it.
pub(crate) struct Record {
    pub(crate) seq: i64,
    pub(crate) table: TrailTable,
    /// All that is hashed but the hash before.
    pub(crate) content: Encoding,
    pub(crate) hash: [u8; STORED],
    pub(crate) more: More,
}

/// What else the verification needs to know.
pub(crate) enum More {
    /// The record ends, or has ended already.
    Lasts { ended: Option<i64> },
    /// It is the end of the record at this place.
    Ends { of: i64, at: i64 },
    /// It is an epoch, which has the whole hash before; whether its digest is its layout's.
    Epoch { before: Hash, digest: bool },
    /// It is a moment.
    Moment,
}

/// A record, as the purge sees it: when it was over.
pub(crate) struct Past {
    pub(crate) seq: i64,
    pub(crate) table: TrailTable,
    pub(crate) over: Option<Timestamp>,
    pub(crate) hash: Option<[u8; STORED]>,
}

/// The tables of records.
pub(crate) const TABLES: [TrailTable; 6] = [
    TrailTable::Leases,
    TrailTable::Blocks,
    TrailTable::Epochs,
    TrailTable::Forwards,
    TrailTable::ClockSteps,
    TrailTable::Ends,
];

impl Sql<'_> {
    /// Begins a record at a place of this gateway's journal.
    fn record(&self, table: TrailTable, seq: i64) -> Encoding {
        Encoding::new(self.gateway, table, seq)
    }

    /// Chains a record that is written now; gives its hash as it is stored.
    fn chain(&self, seq: i64, content: Encoding) -> [u8; STORED] {
        let before = self.head.get().hash;
        let hash = content.hash(&before);
        self.head.set(Link { seq, hash });
        stored(&before, &hash)
    }

    /// The record that the gateway's row names, and the base.
    pub(crate) fn trail_ends(&self) -> Result<(Link, Link), StoreFault> {
        let sql = "SELECT trail_seq, trail_hash, base_seq, base_hash FROM gateways";
        self.first(sql, [], |row| {
            Ok((Link { seq: row.get(0)?, hash: row.get(1)? }, Link { seq: row.get(2)?, hash: row.get(3)? }))
        })?
        .ok_or_else(|| self.missing("the gateway's row"))
    }

    /// Moves the base. Records up to it may be deleted then.
    pub(crate) fn set_trail_base(&self, base: Link) -> Result<(), StoreFault> {
        self.run("UPDATE gateways SET base_seq = ?1, base_hash = ?2", params![base.seq, base.hash])?;
        Ok(())
    }

    /// The serial of the certificate that a session was opened with, if it is here.
    pub(crate) fn session_serial(&self, session: &str) -> Result<Option<String>, StoreFault> {
        let Ok(id) = session.parse::<SessionId>() else {
            return Ok(None);
        };
        let sql = "SELECT certificate_serial FROM sessions WHERE seq = ?1 AND id = ?2";
        Ok(self.first(sql, params![id.seq(), session], |row| row.get(0))?.flatten())
    }

    pub(crate) fn insert_lease(&self, lease: &LeaseRecord) -> Result<(), StoreFault> {
        let sql = "INSERT INTO leases (id, gateway_id, seq, device_id, session_id, inner4, inner6, started, hash) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let (id, gateway) = (lease.id.hex(), lease.gateway.hex());
        let (device, session) = (lease.device.hex(), lease.session.hex());
        let (v4, v6) = (lease.inner.v4.map(|v4| v4.to_string()), lease.inner.v6.map(|v6| v6.to_string()));
        let serial = self.session_serial(session.as_str())?;
        let mut content = self.record(TrailTable::Leases, lease.seq);
        content
            .text(gateway.as_str())
            .text(id.as_str())
            .text(device.as_str())
            .text(session.as_str())
            .text_or_absent(serial.as_deref())
            .text_or_absent(v4.as_deref())
            .text_or_absent(v6.as_deref())
            .number(lease.started.as_millis());
        self.run(
            sql,
            params![
                id.as_str(),
                gateway.as_str(),
                lease.seq,
                device.as_str(),
                session.as_str(),
                v4,
                v6,
                lease.started.as_millis(),
                self.chain(lease.seq, content),
            ],
        )?;
        Ok(())
    }

    /// Writes that a block is a lease's from now on.
    pub(crate) fn insert_block(
        &self,
        lease: i64,
        epoch: i64,
        number: u32,
        started: Timestamp,
    ) -> Result<(), StoreFault> {
        let (seq, started) = (self.next_seq(), started.as_millis());
        let mut content = self.record(TrailTable::Blocks, seq);
        content.number(self.number).number(lease).number(epoch);
        encode_epoch(&mut content, self.epoch_hash(epoch)?.as_ref());
        content.number(number.into()).number(started);
        let sql = "INSERT INTO blocks (seq, gateway_id, lease, epoch, number, started, hash) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let hash = self.chain(seq, content);
        self.run(sql, params![seq, self.number, lease, epoch, number, started, hash])?;
        Ok(())
    }

    /// Writes that a layout is in force from now on, or none; gives the epoch's place.
    pub(crate) fn insert_epoch(&self, started: Timestamp, layout: Option<&str>) -> Result<i64, StoreFault> {
        let (seq, started) = (self.next_seq(), started.as_millis());
        let digest = sha256(layout.unwrap_or_default().as_bytes());
        let before = self.head.get().hash;
        let mut content = self.record(TrailTable::Epochs, seq);
        content.number(self.number).number(started).text_or_absent(layout).octets(&digest);
        let sql = "INSERT INTO epochs (seq, gateway_id, started, layout, digest, prev_hash, hash) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let hash = self.chain(seq, content);
        self.run(sql, params![seq, self.number, started, layout, digest, before, hash])?;
        Ok(seq)
    }

    pub(crate) fn insert_forward(&self, forward: &Forward) -> Result<(), StoreFault> {
        let (id, device) = (forward.id.hex(), forward.device.hex());
        let expires = forward.expires.map(Timestamp::as_millis);
        let mut content = self.record(TrailTable::Forwards, forward.seq);
        content
            .number(self.number)
            .text(id.as_str())
            .text(device.as_str())
            .text(forward.protocol.as_str())
            .number(forward.port.into())
            .number(forward.to_port.into())
            .number(forward.started.as_millis())
            .number_or_absent(expires);
        let sql = "INSERT INTO forwards (seq, gateway_id, id, device_id, protocol, port, to_port, started, expires, \
                   hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        self.run(
            sql,
            params![
                forward.seq,
                self.number,
                id.as_str(),
                device.as_str(),
                forward.protocol.as_str(),
                forward.port,
                forward.to_port,
                forward.started.as_millis(),
                expires,
                self.chain(forward.seq, content),
            ],
        )?;
        Ok(())
    }

    pub(crate) fn insert_clock_step(&self, at: Timestamp, step_ms: i64) -> Result<(), StoreFault> {
        let (seq, at) = (self.next_seq(), at.as_millis());
        let mut content = self.record(TrailTable::ClockSteps, seq);
        content.number(self.number).number(at).number(step_ms);
        let sql = "INSERT INTO clock_steps (seq, gateway_id, at, step_ms, hash) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.run(sql, params![seq, self.number, at, step_ms, self.chain(seq, content)])?;
        Ok(())
    }

    /// Writes that the lease, block or forward at a place is over, if it is open; says whether it was. `at` is not
    /// before it began.
    pub(crate) fn end_record(&self, table: TrailTable, of: i64, at: Timestamp) -> Result<bool, StoreFault> {
        let sql = match table {
            TrailTable::Leases => "UPDATE leases SET ended = ?2 WHERE seq = ?1 AND ended IS NULL",
            TrailTable::Blocks => "UPDATE blocks SET ended = ?2 WHERE seq = ?1 AND ended IS NULL",
            TrailTable::Forwards => "UPDATE forwards SET ended = ?2 WHERE seq = ?1 AND ended IS NULL",
            _ => return Ok(false),
        };
        if self.run(sql, params![of, at.as_millis()])? == 0 {
            return Ok(false);
        }
        let seq = self.next_seq();
        let mut content = self.record(TrailTable::Ends, seq);
        content.number(of).number(at.as_millis());
        let sql = "INSERT INTO ends (seq, of, at, hash) VALUES (?1, ?2, ?3, ?4)";
        self.run(sql, params![seq, of, at.as_millis(), self.chain(seq, content)])?;
        Ok(true)
    }

    /// The hash of the epoch at a place, if there is one.
    fn epoch_hash(&self, epoch: i64) -> Result<Option<Hash>, StoreFault> {
        let stored = self.first("SELECT hash FROM epochs WHERE seq = ?1", [epoch], |row| row.get(0))?;
        Ok(stored.map(|stored| unstored(&stored).1))
    }

    /// When the look-up column says that the lease, block or forward at a place ended; `None` when there is no such.
    pub(crate) fn ended_of(&self, of: i64) -> Result<Option<Option<i64>>, StoreFault> {
        let sql = "SELECT ended FROM leases WHERE seq = ?1 UNION ALL SELECT ended FROM blocks WHERE seq = ?1 \
                   UNION ALL SELECT ended FROM forwards WHERE seq = ?1";
        self.first(sql, [of], |row| row.get(0))
    }

    /// The records at places after `after`, up to `to`, in no order.
    pub(crate) fn records(&self, after: i64, to: i64) -> Result<Vec<Record>, StoreFault> {
        let range = [after, to];
        let mut records = self.rows(
            "SELECT seq, hash, gateway_id, id, device_id, session_id, inner4, inner6, started, ended FROM leases \
             WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            range,
            |row| {
                self.read_record(row, TrailTable::Leases, |content| {
                    let session = text(row, 5)?;
                    content.text(text(row, 2)?).text(text(row, 3)?).text(text(row, 4)?).text(session);
                    let serial = self.session_serial(session).map_err(|_| rusqlite::Error::InvalidQuery)?;
                    content.text_or_absent(serial.as_deref());
                    content.text_or_absent(text_option(row, 6)?).text_or_absent(text_option(row, 7)?);
                    content.number(row.get(8)?);
                    Ok(More::Lasts { ended: row.get(9)? })
                })
            },
        )?;
        records.extend(self.rows(
            "SELECT b.seq, b.hash, b.gateway_id, b.lease, b.epoch, b.number, b.started, b.ended, e.hash FROM blocks b \
             LEFT JOIN epochs e ON e.seq = b.epoch WHERE b.seq > ?1 AND b.seq <= ?2 ORDER BY b.seq",
            range,
            |row| {
                self.read_record(row, TrailTable::Blocks, |content| {
                    content.number(row.get(2)?).number(row.get(3)?).number(row.get(4)?);
                    let epoch: Option<[u8; STORED]> = row.get(8)?;
                    encode_epoch(content, epoch.map(|stored| unstored(&stored).1).as_ref());
                    content.number(row.get(5)?).number(row.get(6)?);
                    Ok(More::Lasts { ended: row.get(7)? })
                })
            },
        )?);
        records.extend(self.epoch_records(after, to)?);
        records.extend(self.rows(
            "SELECT seq, hash, gateway_id, id, device_id, protocol, port, to_port, started, expires, ended \
             FROM forwards WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            range,
            |row| {
                self.read_record(row, TrailTable::Forwards, |content| {
                    content.number(row.get(2)?).text(text(row, 3)?).text(text(row, 4)?).text(text(row, 5)?);
                    content.number(row.get(6)?).number(row.get(7)?).number(row.get(8)?);
                    content.number_or_absent(row.get(9)?);
                    Ok(More::Lasts { ended: row.get(10)? })
                })
            },
        )?);
        records.extend(self.rows(
            "SELECT seq, hash, gateway_id, at, step_ms FROM clock_steps WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            range,
            |row| {
                self.read_record(row, TrailTable::ClockSteps, |content| {
                    content.number(row.get(2)?).number(row.get(3)?).number(row.get(4)?);
                    Ok(More::Moment)
                })
            },
        )?);
        records.extend(self.rows(
            "SELECT seq, hash, of, at FROM ends WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            range,
            |row| {
                self.read_record(row, TrailTable::Ends, |content| {
                    let (of, at) = (row.get(2)?, row.get(3)?);
                    content.number(of).number(at);
                    Ok(More::Ends { of, at })
                })
            },
        )?);
        Ok(records)
    }

    /// The epochs at places after `after`, up to `to`.
    pub(crate) fn epoch_records(&self, after: i64, to: i64) -> Result<Vec<Record>, StoreFault> {
        self.rows(
            "SELECT seq, hash, gateway_id, started, layout, digest, prev_hash FROM epochs \
             WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            [after, to],
            |row| {
                self.read_record(row, TrailTable::Epochs, |content| {
                    let (layout, digest) = (text_option(row, 4)?, row.get_ref(5)?.as_blob()?);
                    content.number(row.get(2)?).number(row.get(3)?).text_or_absent(layout).octets(digest);
                    let digest = digest == sha256(layout.unwrap_or_default().as_bytes());
                    Ok(More::Epoch { before: row.get(6)?, digest })
                })
            },
        )
    }

    /// Reads a record from a row that begins with place and hash. Records after the base that have no hash, which are
    /// not the store's, read as a hash that nothing has.
    fn read_record(
        &self,
        row: &Row<'_>,
        table: TrailTable,
        fields: impl FnOnce(&mut Encoding) -> rusqlite::Result<More>,
    ) -> rusqlite::Result<Record> {
        let seq = row.get(0)?;
        let mut content = self.record(table, seq);
        let more = fields(&mut content)?;
        let hash = row.get::<_, Option<[u8; STORED]>>(1)?.unwrap_or([0; STORED]);
        Ok(Record { seq, table, content, hash, more })
    }

    /// The records at places after `after`, up to `to`, and when each was over, in their order.
    pub(crate) fn past(&self, after: i64, to: i64) -> Result<Vec<Past>, StoreFault> {
        let mut past = Vec::new();
        for table in TABLES {
            let sql = match table {
                TrailTable::Leases => {
                    "SELECT seq, ended, hash FROM leases WHERE seq > ?1 AND seq <= ?2 ORDER BY seq"
                }
                TrailTable::Blocks => {
                    "SELECT b.seq, coalesce(b.ended, l.ended), b.hash FROM blocks b \
                     LEFT JOIN leases l ON l.seq = b.lease WHERE b.seq > ?1 AND b.seq <= ?2 ORDER BY b.seq"
                }
                TrailTable::Epochs => {
                    "SELECT seq, started, hash FROM epochs WHERE seq > ?1 AND seq <= ?2 ORDER BY seq"
                }
                TrailTable::Forwards => {
                    "SELECT seq, ended, hash FROM forwards WHERE seq > ?1 AND seq <= ?2 ORDER BY seq"
                }
                TrailTable::ClockSteps => {
                    "SELECT seq, at, hash FROM clock_steps WHERE seq > ?1 AND seq <= ?2 ORDER BY seq"
                }
                TrailTable::Ends | TrailTable::Gateways => {
                    "SELECT seq, at, hash FROM ends WHERE seq > ?1 AND seq <= ?2 ORDER BY seq"
                }
            };
            past.extend(self.rows(sql, [after, to], |row| {
                let over = row.get::<_, Option<i64>>(1)?.map(Timestamp::from_millis);
                Ok(Past { seq: row.get(0)?, table, over, hash: row.get(2)? })
            })?);
        }
        past.sort_unstable_by_key(|record| record.seq);
        Ok(past)
    }

    /// Deletes the records at places after `after`, up to `to`, which the base has passed or which precede the chain;
    /// epochs only if they are neither needed for what remains nor in force at `before` or later.
    pub(crate) fn forget_records(&self, after: i64, to: i64, before: Timestamp) -> Result<(), StoreFault> {
        let range = [after, to];
        for sql in [
            "DELETE FROM leases WHERE seq > ?1 AND seq <= ?2",
            "DELETE FROM blocks WHERE seq > ?1 AND seq <= ?2",
            "DELETE FROM forwards WHERE seq > ?1 AND seq <= ?2",
            "DELETE FROM clock_steps WHERE seq > ?1 AND seq <= ?2",
            "DELETE FROM ends WHERE seq > ?1 AND seq <= ?2",
        ] {
            self.run(sql, range)?;
        }
        let sql = "DELETE FROM epochs WHERE seq <= ?1 AND NOT EXISTS (SELECT 1 FROM blocks b WHERE b.epoch = epochs.seq) \
                   AND (SELECT n.started FROM epochs n WHERE n.seq > epochs.seq ORDER BY n.seq LIMIT 1) < ?2";
        self.run(sql, params![to, before.as_millis()])?;
        Ok(())
    }

    /// The first place that a record or session has, and the last that was given.
    pub(crate) fn places(&self) -> Result<(i64, i64), StoreFault> {
        let sql = "SELECT min(coalesce((SELECT min(seq) FROM leases), ?1), coalesce((SELECT min(seq) FROM blocks), ?1), \
                   coalesce((SELECT min(seq) FROM forwards), ?1), coalesce((SELECT min(seq) FROM clock_steps), ?1), \
                   coalesce((SELECT min(seq) FROM ends), ?1))";
        let last = self.seq.get();
        let first = self.first(sql, [last], |row| row.get(0))?;
        Ok((first.unwrap_or(last), last))
    }

    /// The steps of the clock after which it was between two times, both included.
    pub(crate) fn clock_steps(
        &self,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<(Timestamp, i64)>, StoreFault> {
        let sql = "SELECT at, step_ms FROM clock_steps WHERE at >= ?1 AND at <= ?2 ORDER BY at";
        self.rows(sql, [from.as_millis(), to.as_millis()], |row| Ok((time(row, 0)?, row.get(1)?)))
    }
}

fn encode_epoch(content: &mut Encoding, hash: Option<&Hash>) {
    match hash {
        Some(hash) => content.octets(hash),
        None => content.absent(),
    };
}

/// A text column, where it lies.
fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<&'r str> {
    Ok(row.get_ref(column)?.as_str()?)
}

fn text_option<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<Option<&'r str>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        value => Ok(Some(value.as_str()?)),
    }
}
