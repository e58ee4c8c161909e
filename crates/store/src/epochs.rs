//! Epochs: the times during which one layout of NAT blocks is in force.

use adit_plan::nat::{Block, Layout};
use data_encoding::HEXLOWER;

use crate::fault::StoreFault;
use crate::sqlite::{BlockRow, Sql};
use crate::time::Timestamp;

/// A time during which one layout of NAT blocks is, or was, in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Its place in the gateway's journal.
    pub seq: i64,
    /// The SHA-256 of the layout's canonical text, in hexadecimal; of nothing if there was no layout.
    pub digest: String,
    /// The layout; `None` when addresses were not translated traceably.
    pub layout: Option<Layout>,
    /// The first moment.
    pub from: Timestamp,
    /// The first moment of the next epoch; `None` if there is none.
    pub to: Option<Timestamp>,
}

/// All epochs that are known, the first one first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epochs(Vec<Epoch>);

impl Epochs {
    pub(crate) fn read(sql: &Sql<'_>) -> Result<Self, StoreFault> {
        let mut epochs: Vec<Epoch> = Vec::new();
        for (seq, from, layout, digest) in sql.epochs()? {
            let layout = layout.map(|text| Layout::parse(&text)).transpose();
            let layout = layout.map_err(|fault| sql.damaged(format!("the epoch at place {seq}: {fault}")))?;
            if let Some(last) = epochs.last_mut() {
                last.to = Some(from);
            }
            epochs.push(Epoch { seq, digest: HEXLOWER.encode(&digest), layout, from, to: None });
        }
        Ok(Self(epochs))
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Epoch> {
        self.0.iter()
    }

    /// The epoch that is in force.
    pub(crate) fn last(&self) -> Option<&Epoch> {
        self.0.last()
    }

    /// The epoch that was in force at a moment.
    pub(crate) fn at(&self, at: Timestamp) -> Option<&Epoch> {
        self.0.iter().rev().find(|epoch| epoch.from <= at)
    }

    /// The block of a row.
    pub(crate) fn block(&self, row: &BlockRow) -> Option<Block> {
        let place = self.0.binary_search_by_key(&row.epoch, |epoch| epoch.seq).ok()?;
        self.0.get(place)?.layout.as_ref()?.block(row.number)
    }
}

/// The block that a lease's connections leave from, of all its open rows: the latest epoch's. Others are in quarantine.
pub(crate) fn main_block(rows: &[BlockRow]) -> Option<&BlockRow> {
    rows.iter().filter(|row| row.ended.is_none()).max_by_key(|row| (row.epoch, row.seq))
}
