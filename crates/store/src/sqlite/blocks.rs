//! Epochs, and the blocks that leases had in them.

use rusqlite::{Row, params};

use super::Sql;
use super::row::{LEASE_WIDTH, lease, lease_columns, time, time_option};
use crate::fault::StoreFault;
use crate::model::LeaseRecord;
use crate::time::Timestamp;

/// A block that is or was a lease's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockRow {
    pub(crate) seq: i64,
    pub(crate) epoch: i64,
    pub(crate) number: u32,
    pub(crate) started: Timestamp,
    /// Its own end, before that of its lease.
    pub(crate) ended: Option<Timestamp>,
}

/// An epoch as it is stored: place, beginning, layout, digest.
pub(crate) type EpochRow = (i64, Timestamp, Option<String>, [u8; 32]);

/// The columns of a block `b`, as [`block`] reads them.
macro_rules! block_columns {
    () => {
        "b.seq, b.epoch, b.number, b.started, b.ended"
    };
}

fn block(row: &Row<'_>, at: usize) -> rusqlite::Result<BlockRow> {
    Ok(BlockRow {
        seq: row.get(at)?,
        epoch: row.get(at + 1)?,
        number: row.get(at + 2)?,
        started: time(row, at + 3)?,
        ended: time_option(row, at + 4)?,
    })
}

impl Sql<'_> {
    /// All epochs, the first one first.
    pub(crate) fn epochs(&self) -> Result<Vec<EpochRow>, StoreFault> {
        let sql = "SELECT seq, started, layout, digest FROM epochs ORDER BY seq";
        self.rows(sql, [], |row| Ok((row.get(0)?, time(row, 1)?, row.get(2)?, row.get(3)?)))
    }

    /// The blocks of the lease at a place, the first one first.
    pub(crate) fn blocks_of(&self, lease: i64) -> Result<Vec<BlockRow>, StoreFault> {
        let first =
            concat!("SELECT ", block_columns!(), " FROM blocks b WHERE b.seq = ?1 + 1 AND b.lease = ?1");
        let further = concat!(
            "SELECT ",
            block_columns!(),
            " FROM blocks b WHERE b.lease = ?1 AND b.seq <> b.lease + 1 ORDER BY b.seq"
        );
        let mut blocks = self.rows(first, [lease], |row| block(row, 0))?;
        blocks.extend(self.rows(further, [lease], |row| block(row, 0))?);
        Ok(blocks)
    }

    /// Who had a block of an epoch at any moment from `from` to `to`, both included, latest first.
    pub(crate) fn blocks_at(
        &self,
        epoch: i64,
        number: u32,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<(BlockRow, LeaseRecord)>, StoreFault> {
        let sql = concat!(
            "SELECT ",
            lease_columns!(),
            ", ",
            block_columns!(),
            " FROM blocks b CROSS JOIN leases l ON l.seq = b.lease \
             WHERE b.epoch = ?1 AND b.number = ?2 AND b.started <= ?3 ORDER BY b.started DESC, b.seq DESC"
        );
        // Owners of one block do not overlap: before one that ended too early there are only others that did.
        self.rows_while(sql, params![epoch, number, to.as_millis()], |row| {
            let (lease, block) = (lease(row)?, block(row, LEASE_WIDTH)?);
            let ended = block.ended.or(lease.ended);
            Ok(ended.is_none_or(|ended| ended >= from).then_some((block, lease)))
        })
    }

    /// For each block of an epoch that was ever somebody's: its number, when its last owner's time ended, and the place.
    /// It steps from number to number through the index.
    pub(crate) fn last_blocks(&self, epoch: i64) -> Result<Vec<(u32, Option<Timestamp>, i64)>, StoreFault> {
        let sql = "WITH RECURSIVE numbers (number) AS (SELECT min(number) FROM blocks WHERE epoch = ?1 UNION ALL \
                   SELECT (SELECT min(number) FROM blocks WHERE epoch = ?1 AND number > numbers.number) FROM numbers \
                   WHERE number IS NOT NULL) \
                   SELECT numbers.number, coalesce(b.ended, l.ended), b.seq FROM numbers CROSS JOIN blocks b ON b.seq = \
                   (SELECT seq FROM blocks WHERE epoch = ?1 AND number = numbers.number \
                   ORDER BY started DESC, seq DESC LIMIT 1) LEFT JOIN leases l ON l.seq = b.lease";
        self.rows(sql, [epoch], |row| Ok((row.get(0)?, time_option(row, 1)?, row.get(2)?)))
    }
}
