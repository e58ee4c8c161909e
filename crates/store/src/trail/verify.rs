//! Following the chain from its base to its end.

use std::collections::HashMap;

use data_encoding::HEXLOWER;

use super::{Link, TrailTable, follows, unstored};
use crate::fault::StoreFault;
use crate::sqlite::{More, Record, Sql};
use crate::store::Store;

/// How many places are looked at before others have a turn.
const BATCH: i64 = 2_000;

/// What [`Store::verify_trail`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrailCheck {
    /// The chain holds.
    Intact {
        /// How many records there are.
        records: u64,
        /// The place of the last record; 0 before the first.
        seq: i64,
        /// The hash of the last record. Kept elsewhere, it shows later that no record up to it was changed.
        head: String,
        /// The place up to which records were purged, or precede the chain; 0 if there were none.
        base: i64,
    },
    /// The chain is broken.
    Broken {
        /// The first place that does not fit. Of a cut-off end, the place that should be there.
        seq: i64,
        /// The table it is in.
        table: TrailTable,
        /// What does not fit.
        what: TrailFault,
    },
}

/// How the trail is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrailFault {
    /// The record's content, or what it refers to, is not what was hashed.
    #[error("the content is not what was written")]
    Content,
    /// The record does not follow the one before it: records were left out or put in.
    #[error("it does not follow the record before: records were left out or put in")]
    Order,
    /// The last records are missing, or are others than the gateway's row says.
    #[error("the last records are missing or were replaced")]
    End,
    /// The column that look-ups use for the end says otherwise than the trail.
    #[error("the column `ended`, which look-ups use, does not agree with the trail")]
    LookUp,
}

/// How far the verification has come.
struct Walk {
    last: Link,
    base: i64,
    records: u64,
    /// What the gateway's row promises.
    promised: Link,
    /// Records whose end has not been met yet, with what their look-up column says.
    open: HashMap<i64, (TrailTable, Option<i64>)>,
}

type Found = Result<(), (i64, TrailTable, TrailFault)>;

impl Store {
    /// Follows the chain from its base to the last record, and names the first place where it is broken. Records added
    /// meanwhile are verified too; others have their turn between batches. `progress` is told now and then how many
    /// records were verified so far.
    pub fn verify_trail(&self, mut progress: impl FnMut(u64)) -> Result<TrailCheck, StoreFault> {
        let (promised, base) = self.read(|sql| sql.trail_ends())?;
        let mut walk = Walk { last: base, base: base.seq, records: 0, promised, open: HashMap::new() };
        let mut place = base.seq;
        if let Err(broken) = self.read(|sql| walk.outliving(sql))? {
            return Ok(broken.into());
        }
        loop {
            // The walk and the purge may meet.
            let (found, last) = self.read(|sql| {
                let (_, base) = sql.trail_ends()?;
                if base.seq > place {
                    walk.restart(base);
                    place = base.seq;
                }
                let last = sql.places()?.1;
                let to = last.min(place.saturating_add(BATCH));
                let mut batch = sql.records(place, to)?;
                batch.sort_by_key(|record| record.seq);
                place = to.max(place);
                let found = batch.into_iter().try_for_each(|record| walk.step(sql, record));
                Ok::<_, StoreFault>((found, last))
            })?;
            match found {
                Ok(()) => {}
                Err(Stop::Broken(broken)) => return Ok(broken.into()),
                Err(Stop::Failed(fault)) => return Err(fault),
            }
            progress(walk.records);
            if place >= last {
                return Ok(walk.finish());
            }
        }
    }
}

/// Why a walk stops early.
enum Stop {
    Broken((i64, TrailTable, TrailFault)),
    Failed(StoreFault),
}

impl From<StoreFault> for Stop {
    fn from(fault: StoreFault) -> Self {
        Self::Failed(fault)
    }
}

impl From<(i64, TrailTable, TrailFault)> for TrailCheck {
    fn from((seq, table, what): (i64, TrailTable, TrailFault)) -> Self {
        Self::Broken { seq, table, what }
    }
}

impl Walk {
    /// Epochs before the base that are still needed prove themselves; blocks that refer to them contain their hash.
    fn outliving(&self, sql: &Sql<'_>) -> Result<Found, StoreFault> {
        for record in sql.epoch_records(0, self.base)? {
            let More::Epoch { before, digest } = record.more else { continue };
            let (link, hash) = unstored(&record.hash);
            if !digest || record.content.hash(&before) != hash || !follows(link, &before) {
                return Ok(Err((record.seq, record.table, TrailFault::Content)));
            }
        }
        Ok(Ok(()))
    }

    /// Goes on from a base that has moved past this place.
    fn restart(&mut self, base: Link) {
        self.last = base;
        self.base = base.seq;
        self.open.retain(|&seq, _| seq > base.seq);
    }

    fn step(&mut self, sql: &Sql<'_>, record: Record) -> Result<(), Stop> {
        let Record { seq, table, content, hash, more } = record;
        let broken = |what| Stop::Broken((seq, table, what));
        let (link, hash) = unstored(&hash);
        // Two records of one place were put there by hand.
        if seq <= self.last.seq || !follows(link, &self.last.hash) {
            return Err(broken(TrailFault::Order));
        }
        if content.hash(&self.last.hash) != hash {
            return Err(broken(TrailFault::Content));
        }
        // The place may have been purged since the walk began.
        if self.promised.seq > self.last.seq
            && self.promised.seq > self.base
            && self.promised.seq <= seq
            && (self.promised.seq, self.promised.hash) != (seq, hash)
        {
            let gateways = (self.promised.seq, TrailTable::Gateways, TrailFault::End);
            return Err(Stop::Broken(gateways));
        }
        match more {
            More::Lasts { ended } => {
                self.open.insert(seq, (table, ended));
            }
            More::Ends { of, at } => {
                // What precedes the chain, and is here still, is a lease.
                let (table, known) = self.open.remove(&of).unwrap_or((TrailTable::Leases, None));
                // What was open when it was read may have ended since.
                if known != Some(at) {
                    match sql.ended_of(of)? {
                        Some(ended) if ended == Some(at) => {}
                        None if of <= self.base => {}
                        _ => return Err(Stop::Broken((of, table, TrailFault::LookUp))),
                    }
                }
            }
            More::Epoch { before, digest } => {
                if !digest || before != self.last.hash {
                    return Err(broken(TrailFault::Content));
                }
            }
            More::Moment => {}
        }
        self.last = Link { seq, hash };
        self.records += 1;
        Ok(())
    }

    fn finish(self) -> TrailCheck {
        if self.promised.seq > self.last.seq {
            return (self.promised.seq, TrailTable::Gateways, TrailFault::End).into();
        }
        let disagrees =
            self.open.iter().filter(|(_, (_, ended))| ended.is_some()).min_by_key(|(seq, _)| **seq);
        match disagrees {
            Some((&seq, &(table, _))) => (seq, table, TrailFault::LookUp).into(),
            None => TrailCheck::Intact {
                records: self.records,
                seq: self.last.seq,
                head: HEXLOWER.encode(&self.last.hash),
                base: self.base,
            },
        }
    }
}
