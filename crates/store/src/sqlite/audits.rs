//! The audit trail's rows, as text: what they mean and how they are chained is the business of the layer above.

use rusqlite::params;

use super::row::time;
use super::{Sql, rows};
use crate::fault::StoreFault;
use crate::time::Timestamp;

/// An audit row, each field as it is stored and hashed.
#[derive(Debug, Clone)]
pub(crate) struct AuditText {
    pub(crate) seq: i64,
    pub(crate) at: Timestamp,
    pub(crate) actor: String,
    pub(crate) action: String,
    pub(crate) subject: String,
    pub(crate) detail: String,
    pub(crate) prev_hash: String,
    pub(crate) hash: String,
}

impl Sql<'_> {
    /// The hash of the last audit row.
    pub(crate) fn audit_head(&self) -> Result<String, StoreFault> {
        self.first("SELECT audit_head FROM gateways", [], |row| row.get(0))?
            .ok_or_else(|| self.missing("the gateway's row"))
    }

    /// Adds a row and makes it the head.
    pub(crate) fn insert_audit(&self, row: &AuditText) -> Result<(), StoreFault> {
        let gateway = self.gateway.hex();
        let sql = "INSERT INTO audits (gateway_id, seq, at, actor, action, subject, detail, prev_hash, hash) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        self.run(
            sql,
            params![
                gateway.as_str(),
                row.seq,
                row.at.as_millis(),
                row.actor,
                row.action,
                row.subject,
                row.detail,
                row.prev_hash,
                row.hash,
            ],
        )?;
        self.run("UPDATE gateways SET audit_head = ?2 WHERE id = ?1", [gateway.as_str(), &row.hash])?;
        Ok(())
    }

    /// Rows after a place in the journal, in its order.
    pub(crate) fn audits_after(&self, seq: i64, limit: usize) -> Result<Vec<AuditText>, StoreFault> {
        let sql = "SELECT seq, at, actor, action, subject, detail, prev_hash, hash FROM audits \
                   WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        self.audit_rows(sql, seq, limit)
    }

    /// Rows before a place in the journal, newest first.
    pub(crate) fn audits_before(&self, seq: i64, limit: usize) -> Result<Vec<AuditText>, StoreFault> {
        let sql = "SELECT seq, at, actor, action, subject, detail, prev_hash, hash FROM audits \
                   WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2";
        self.audit_rows(sql, seq, limit)
    }

    fn audit_rows(&self, sql: &str, seq: i64, limit: usize) -> Result<Vec<AuditText>, StoreFault> {
        self.rows(sql, params![seq, rows(limit)], |row| {
            Ok(AuditText {
                seq: row.get(0)?,
                at: time(row, 1)?,
                actor: row.get(2)?,
                action: row.get(3)?,
                subject: row.get(4)?,
                detail: row.get(5)?,
                prev_hash: row.get(6)?,
                hash: row.get(7)?,
            })
        })
    }
}
