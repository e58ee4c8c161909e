//! When retention ends: purging the journal from its beginning, and writing anew what lasts, so that it can be.

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use serde_json::json;

use crate::audit::{self, Entry};
use crate::epochs::Epochs;
use crate::fault::StoreFault;
use crate::forwards;
use crate::lease::renew;
use crate::model::{Change, Purged, Rolled};
use crate::nat::all_open;
use crate::sqlite::Durability;
use crate::store::{State, Store};
use crate::time::Timestamp;
use crate::trail::{Link, TrailTable, unstored};

/// How many places of the journal are looked at before others have a turn.
const PLACES: i64 = 2_000;
/// How many leases or forwards are written anew before others have a turn.
const ROLLED: usize = 200;
/// The age at which what is open is written anew, in milliseconds: a day. A purge waits for it at most so long.
const OLD: i64 = 24 * 60 * 60 * 1_000;

/// The first part of the trail that is over.
struct Prefix {
    /// The place before the first record, and the last record.
    after: i64,
    last: Link,
    purged: Purged,
}

impl Store {
    /// Deletes the records of the trail up to the first that did not end before a moment, when their retention is over,
    /// and the sessions that ended before it and have no lease any more. What is deleted is overwritten in the file.
    /// The trail begins behind it from then on, which is written to the audit trail. Others have their turn between
    /// batches.
    ///
    /// What stays open keeps what was written after it: call [`roll`](Self::roll) before.
    pub fn purge(&self, before: Timestamp) -> Result<Purged, StoreFault> {
        let prefix = self.prefix(before)?;
        let Prefix { after, last, mut purged } = prefix;
        let told = self.state().told;
        self.write(Durability::Now, |sql| {
            let (_, base) = sql.trail_ends()?;
            if last.seq <= base.seq {
                return Ok::<_, StoreFault>(());
            }
            sql.set_trail_base(last)?;
            let Purged { leases, blocks, forwards, .. } = purged;
            let detail = json!({
                "base": last.seq, "hash": HEXLOWER.encode(&last.hash), "before_ms": before.as_millis(),
                "leases": leases, "blocks": blocks, "forwards": forwards,
            });
            let change = Change { actor: "gateway", now: told };
            audit::append(sql, &change, &Entry::new("trail.purge", "trail", detail))
        })?;
        let mut place = after;
        while place < last.seq {
            let to = last.seq.min(place.saturating_add(PLACES));
            self.write(Durability::Soon, |sql| sql.forget_records(place, to, before))?;
            place = to;
        }
        purged.sessions = self.purge_sessions(before)?;
        let mut state = self.state();
        state.epochs = Epochs::read(&state.db.sql())?;
        Ok(purged)
    }

    /// Finds the records that are over, from the first that is there.
    fn prefix(&self, before: Timestamp) -> Result<Prefix, StoreFault> {
        let ((first, _), (_, base)) =
            self.read(|sql| Ok::<_, StoreFault>((sql.places()?, sql.trail_ends()?)))?;
        let after = first.saturating_sub(1);
        let last = Link { seq: base.seq.min(after), ..base };
        let mut prefix = Prefix { after, last, purged: Purged::default() };
        let mut place = after;
        loop {
            let (past, last) = self.read(|sql| {
                let last = sql.places()?.1;
                let to = last.min(place.saturating_add(PLACES));
                let past = sql.past(place, to)?;
                place = to.max(place);
                Ok::<_, StoreFault>((past, last))
            })?;
            for record in past {
                if record.over.is_none_or(|over| over >= before) {
                    return Ok(prefix);
                }
                // Leases that precede the chain have no hash, and are before the base.
                let hash = record.hash.map_or(base.hash, |stored| unstored(&stored).1);
                prefix.last = Link { seq: record.seq, hash };
                match record.table {
                    TrailTable::Leases => prefix.purged.leases += 1,
                    TrailTable::Blocks => prefix.purged.blocks += 1,
                    TrailTable::Forwards => prefix.purged.forwards += 1,
                    _ => {}
                }
            }
            if place >= last {
                return Ok(prefix);
            }
        }
    }

    /// Deletes the sessions that ended before a moment, up to the first that began later, but those that a lease is of.
    fn purge_sessions(&self, before: Timestamp) -> Result<u64, StoreFault> {
        let last = self.read(|sql| sql.places())?.1;
        let (mut over, mut place) = (BTreeSet::new(), 0);
        while place < last {
            let to = last.min(place.saturating_add(PLACES));
            let (ended, younger) = self.read(|sql| {
                let ended = sql.sessions_ended(place, to, before)?;
                Ok::<_, StoreFault>((ended, sql.has_session_since(place, to, before)?))
            })?;
            over.extend(ended);
            place = if younger { last } else { to };
        }
        // No index leads from a session to its leases: it would cost each login a page.
        place = over.first().map_or(last, |first| *first);
        while place < last {
            let to = last.min(place.saturating_add(PLACES));
            for session in self.read(|sql| sql.leased_sessions(place, to))? {
                over.remove(&session.seq());
            }
            place = to;
        }
        let over: Vec<i64> = over.into_iter().collect();
        for batch in over.chunks(ROLLED) {
            self.write(Durability::Soon, |sql| batch.iter().try_for_each(|&seq| sql.forget_session(seq)))?;
        }
        Ok(over.len() as u64)
    }

    /// Writes leases and forwards anew that are open and older than a day: one ends and another begins at the same
    /// instant, with the same id, addresses and blocks. So what lasts does not keep the records of others from being
    /// purged. Handles of leases stay valid; nobody notices. Others have their turn between batches.
    pub fn roll(&self, now: Timestamp) -> Result<Rolled, StoreFault> {
        let before = Timestamp::from_millis(now.as_millis().saturating_sub(OLD));
        let old = |started: Timestamp| started < before;
        let mut rolled = Rolled::default();
        let leases = self.read(all_open)?;
        let leases: Vec<_> = leases.into_iter().filter(|lease| old(lease.started)).collect();
        for batch in leases.chunks(ROLLED) {
            let mut state = self.state();
            let State { db, epochs, .. } = &mut *state;
            rolled.leases += db.transaction(Durability::Soon, |sql| {
                let mut done = 0;
                for lease in batch {
                    // It may have ended in the meantime.
                    if sql.last_lease(lease.device)?.is_some_and(|last| last == *lease) {
                        renew(sql, epochs, lease, *lease, now)?;
                        done += 1;
                    }
                }
                Ok::<_, StoreFault>(done)
            })?;
        }
        let forwards = self.read(|sql| sql.open_forwards())?;
        let forwards: Vec<_> = forwards.into_iter().filter(|forward| old(forward.started)).collect();
        for batch in forwards.chunks(ROLLED) {
            rolled.forwards += self.write(Durability::Soon, |sql| forwards::renew(sql, batch, now))?;
        }
        Ok(rolled)
    }
}

#[cfg(test)]
mod tests;
