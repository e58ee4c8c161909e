//! The audit trail: who changed what when, in rows that are added and never changed.
//!
//! Each row contains the hash of the row before, so a row that is altered, left out or put in breaks the chain, and
//! the gateway's row in the database contains the hash of the last, so a cut-off end is found as well. Somebody who
//! can write the database can compute a whole new chain: the trail shows mistakes and clumsy hands by itself, and
//! clever ones when the last hash, which [`Store::verify_audit`] gives, is kept elsewhere.
//!
//! **Encoding.** The hash is the SHA-256 of nine texts, each preceded by its length in bytes as a 64-bit big-endian
//! number: `adit-audit-1`, the gateway's id, the place in the journal and the time in milliseconds since 1970 (both
//! decimal), actor, action, subject, detail, and the hash before (64 zeros before the first row). Hashes are
//! written in lower-case hexadecimal, and the detail is hashed as it is stored, byte for byte.

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::fault::StoreFault;
use crate::id::GatewayId;
use crate::model::Change;
use crate::page::{Cursor, Listed, Page};
use crate::sqlite::{AuditText, Durability, Sql};
use crate::store::{Store, bounded};
use crate::time::Timestamp;

/// The hash before the first row.
pub(crate) const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

const LONGEST_ACTOR: usize = 128;
const LONGEST_ACTION: usize = 64;
const LONGEST_SUBJECT: usize = 256;
const LONGEST_DETAIL: usize = 16 * 1024;
/// How many rows are verified before others have a turn.
const VERIFY_BATCH: usize = 1_000;

/// What an audit row says was done.
pub(crate) struct Entry {
    action: &'static str,
    subject: String,
    detail: Value,
}

impl Entry {
    pub(crate) fn new(action: &'static str, subject: impl Into<String>, detail: Value) -> Self {
        Self { action, subject: subject.into(), detail }
    }
}

/// A row of the audit trail.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// Its place in the gateway's journal.
    pub seq: i64,
    /// When it was done.
    pub at: Timestamp,
    /// Who did it.
    pub actor: String,
    /// What was done, as `thing.verb`.
    pub action: String,
    /// To whom or what it was done.
    pub subject: String,
    /// Particulars.
    pub detail: Value,
    /// The row's hash, in hexadecimal.
    pub hash: String,
}

/// What [`Store::verify_audit`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditCheck {
    /// The chain holds.
    Intact {
        /// How many rows there are.
        rows: u64,
        /// The hash of the last row. Kept elsewhere, it shows later that no row up to it was changed.
        head: String,
    },
    /// The chain is broken.
    Broken {
        /// The first row that does not fit: its place in the journal. `None` when rows are missing at the end.
        seq: Option<i64>,
        /// What does not fit.
        what: BrokenLink,
    },
}

/// How a chain of audit rows is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenLink {
    /// The row's content is not what was hashed.
    Content,
    /// The row does not follow the row before it: rows were left out or put in.
    Order,
    /// The last rows are missing.
    End,
}

impl Store {
    /// Adds a row for something that changes nothing in the store itself, such as a reload of the configuration or a
    /// question to the journal and the reason given for it.
    pub fn record(
        &self,
        change: &Change<'_>,
        action: &'static str,
        subject: &str,
        detail: Value,
    ) -> Result<(), StoreFault> {
        self.change(change, |_| Ok(((), Some(Entry::new(action, subject, detail)))))
    }

    /// Adds such rows for several things, subject and detail of each: all of them or none.
    pub fn record_all(
        &self,
        change: &Change<'_>,
        action: &'static str,
        entries: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<(), StoreFault> {
        self.write(Durability::Now, |sql| {
            let mut entries = entries.into_iter();
            entries
                .try_for_each(|(subject, detail)| append(sql, change, &Entry::new(action, subject, detail)))
        })
    }

    /// The audit trail of this gateway, newest row first.
    pub fn audit_trail(&self, page: &Page) -> Result<Listed<AuditRow>, StoreFault> {
        let (before, limit) = (page.seq_key()?.unwrap_or(i64::MAX), page.limit());
        let rows = self.read(|sql| sql.audits_before(before, limit + 1))?;
        let rows = rows.into_iter().map(AuditRow::from).collect();
        Ok(Listed::new(rows, limit, |row: &AuditRow| Cursor::at(&[&row.seq.to_string()])))
    }

    /// Follows the chain from the first row to the last, and names the first place where it is broken. Rows added
    /// meanwhile are verified too; others have their turn between batches.
    pub fn verify_audit(&self) -> Result<AuditCheck, StoreFault> {
        let gateway = self.gateway();
        let (mut rows, mut last, mut head) = (0, 0, FIRST.to_owned());
        loop {
            let (batch, expected) = self.read(|sql| {
                Ok::<_, StoreFault>((sql.audits_after(last, VERIFY_BATCH)?, sql.audit_head()?))
            })?;
            for row in &batch {
                let broken = |what| AuditCheck::Broken { seq: Some(row.seq), what };
                if row.prev_hash != head {
                    return Ok(broken(BrokenLink::Order));
                }
                if row.hash != hash(gateway, row) {
                    return Ok(broken(BrokenLink::Content));
                }
                head.clone_from(&row.hash);
                last = row.seq;
                rows += 1;
            }
            if batch.len() < VERIFY_BATCH {
                return Ok(if head == expected {
                    AuditCheck::Intact { rows, head }
                } else {
                    AuditCheck::Broken { seq: None, what: BrokenLink::End }
                });
            }
        }
    }
}

/// Adds a row at the end of the gateway's chain, within the transaction that makes the change.
pub(crate) fn append(sql: &Sql<'_>, change: &Change<'_>, entry: &Entry) -> Result<(), StoreFault> {
    let detail = entry.detail.to_string();
    bounded("the actor's name", change.actor, LONGEST_ACTOR)?;
    bounded("the action", entry.action, LONGEST_ACTION)?;
    bounded("the subject", &entry.subject, LONGEST_SUBJECT)?;
    bounded("the detail", &detail, LONGEST_DETAIL)?;
    let mut row = AuditText {
        seq: sql.next_seq(),
        at: change.now,
        actor: change.actor.to_owned(),
        action: entry.action.to_owned(),
        subject: entry.subject.clone(),
        detail,
        prev_hash: sql.audit_head()?,
        hash: String::new(),
    };
    row.hash = hash(sql.gateway(), &row);
    sql.insert_audit(&row)
}

fn hash(gateway: GatewayId, row: &AuditText) -> String {
    let (gateway, seq, at) = (gateway.to_string(), row.seq.to_string(), row.at.as_millis().to_string());
    let mut context = digest::Context::new(&digest::SHA256);
    let texts = [
        "adit-audit-1",
        &gateway,
        &seq,
        &at,
        &row.actor,
        &row.action,
        &row.subject,
        &row.detail,
        &row.prev_hash,
    ];
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    HEXLOWER.encode(context.finish().as_ref())
}

impl From<AuditText> for AuditRow {
    fn from(row: AuditText) -> Self {
        // Text that is no JSON was not written by this program; it is shown as it is, and the hash tells the rest.
        let detail = serde_json::from_str(&row.detail).unwrap_or(Value::String(row.detail));
        let AuditText { seq, at, actor, action, subject, hash, .. } = row;
        Self { seq, at, actor, action, subject, detail, hash }
    }
}

#[cfg(test)]
mod tests;
