//! Blocks of ports: who has which, and what a new layout does to those who have one.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use adit_plan::nat::{Block, Blocks, Choice, Layout, Replan};
use adit_plan::pool::{Allocator, Pools};

use crate::epochs::{Epochs, main_block};
use crate::fault::StoreFault;
use crate::id::{DeviceId, LeaseId, SessionId, UserId};
use crate::model::LeaseRecord;
use crate::name::Name;
use crate::sqlite::{BlockRow, Durability, Sql};
use crate::store::{State, Store};
use crate::time::Timestamp;
use crate::trail::TrailTable;

/// How many epochs back it is looked when blocks were last free: a block is given to somebody else as late as possible,
/// but the start does not take longer the older the gateway is.
const REMEMBERED: usize = 8;
/// How many leases are read at once.
const BATCH: usize = 1_000;

/// Blocks as they are now.
pub(crate) struct Nat {
    /// The place of the epoch.
    pub(crate) epoch: i64,
    pub(crate) blocks: Blocks,
}

/// Who holds a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockOwner {
    /// The lease.
    pub lease: LeaseId,
    /// The device.
    pub device: DeviceId,
    /// The session.
    pub session: SessionId,
    /// The inner address.
    pub inner: Ipv4Addr,
}

/// What a new layout does, or would do, to open leases: see [`Store::set_nat`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replanned {
    /// Whether a new epoch begins.
    pub changed: bool,
    /// How many leases keep their block.
    pub kept: usize,
    /// Leases that have another block now, or have one for the first time. The block they had is in quarantine, unless
    /// it is among the homeless.
    pub moved: Vec<Moved>,
    /// Ranges that cannot stay their owner's.
    pub homeless: Vec<Homeless>,
    /// Open leases with an address outside the pools, as far as pools are set: their sessions have to end.
    pub outside: Vec<LeaseRecord>,
}

/// A lease that moves to another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Whose lease.
    pub owner: BlockOwner,
    /// The block it had.
    pub from: Option<Block>,
    /// The block it has.
    pub to: Block,
}

/// A range that its owner loses at once: its connections have to be dropped before the new layout is put in force, see
/// [`Replan::homeless`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Homeless {
    /// Whose lease.
    pub owner: BlockOwner,
    /// The range; `None` for a lease that had no block and gets none.
    pub block: Option<Block>,
    /// The lease has no block any more, so its session has to end.
    pub ends: bool,
}

/// A range that its owner has left and still has connections from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantined {
    /// Whose lease.
    pub owner: BlockOwner,
    /// The range.
    pub block: Block,
}

/// How much of a layout is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatUsage {
    /// Blocks that are somebody's.
    pub in_use: u32,
    /// Blocks that there are.
    pub capacity: u32,
    /// Ports of a block.
    pub block_size: u16,
    /// Ranges in quarantine.
    pub quarantined: usize,
}

/// A block that is somebody's now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNow {
    /// Whose lease.
    pub owner: BlockOwner,
    /// The device's user.
    pub user: UserId,
    /// The user's name.
    pub user_name: Name,
    /// The device's name.
    pub device_name: Name,
    /// The block.
    pub block: Block,
    /// Since when.
    pub since: Timestamp,
    /// Its owner has moved on, and has connections from it still.
    pub quarantined: bool,
}

impl Store {
    /// Puts a layout of NAT blocks in force, or none, at the start and after each change of the configuration. If it
    /// differs from the last one a new epoch begins, and open leases move by [`Blocks::replan`]; the ranges they left
    /// stay theirs until [`release_block`](Self::release_block) or the lease's end. It may come before or after
    /// [`set_pools`](Self::set_pools).
    pub fn set_nat(&self, layout: Option<&Layout>, now: Timestamp) -> Result<Replanned, StoreFault> {
        let mut state = self.state();
        state.told = now;
        let State { db, allocator, epochs, nat, moved, .. } = &mut *state;
        let current = epochs.last().map(|epoch| (epoch.seq, epoch.layout.as_ref()));
        if current.map(|(_, layout)| layout).unwrap_or_default() == layout {
            *nat = match current {
                Some((epoch, Some(layout))) if nat.is_none() => {
                    let open = open_leases(&db.sql(), epochs)?;
                    Some(Nat { epoch, blocks: remembering(layout.clone(), epochs, &open, &db.sql())? })
                }
                _ => nat.take(),
            };
            let outside = outside(&db.sql(), allocator.as_ref().map(Allocator::pools))?;
            return Ok(Replanned {
                kept: nat.as_ref().map_or(0, |nat| nat.blocks.in_use() as usize),
                outside,
                ..Default::default()
            });
        }
        let (plan, read, next) = db.transaction(Durability::Now, |sql| {
            let plan = plan(sql, allocator.as_ref(), epochs, nat.as_ref(), layout)?;
            let started = now.max(epochs.last().map_or(now, |epoch| epoch.from));
            let epoch = sql.insert_epoch(started, layout.map(Layout::canonical).as_deref())?;
            plan.write(sql, epoch, now)?;
            // After a crash the journal is not closed before this.
            sql.set_heartbeat(now)?;
            Ok::<_, StoreFault>((plan, Epochs::read(sql)?, epoch))
        })?;
        *epochs = read;
        if layout.is_none() {
            moved.extend(plan.open.values().map(|open| (open.owner.lease, None)));
        }
        *nat = plan.blocks.map(|blocks| Nat { epoch: next, blocks });
        for change in &plan.told.moved {
            moved.insert(change.owner.lease, Some(change.to));
        }
        for change in plan.told.homeless.iter().filter(|homeless| homeless.ends) {
            moved.insert(change.owner.lease, None);
        }
        Ok(plan.told)
    }

    /// What [`set_nat`](Self::set_nat) would do with this layout now. Nothing is changed.
    pub fn plan_nat(&self, layout: &Layout) -> Result<Replanned, StoreFault> {
        let state = self.state();
        let sql = state.db.sql();
        if state.epochs.last().and_then(|epoch| epoch.layout.as_ref()) == Some(layout) {
            let open = open_leases(&sql, &state.epochs)?;
            let kept = open.iter().filter(|open| open.main.is_some()).count();
            return Ok(Replanned {
                kept,
                outside: outside(&sql, state.allocator.as_ref().map(Allocator::pools))?,
                ..Default::default()
            });
        }
        let plan = plan(&sql, state.allocator.as_ref(), &state.epochs, state.nat.as_ref(), Some(layout))?;
        Ok(plan.told)
    }

    /// The layout that is in force, if one was set.
    pub fn nat(&self) -> Option<Layout> {
        self.state().nat.as_ref().map(|nat| nat.blocks.layout().clone())
    }

    /// How many blocks are somebody's, and how many ranges are in quarantine; `None` without NAT.
    pub fn nat_usage(&self) -> Option<NatUsage> {
        let state = self.state();
        let blocks = &state.nat.as_ref()?.blocks;
        Some(NatUsage {
            in_use: blocks.in_use(),
            capacity: blocks.layout().capacity(),
            block_size: blocks.layout().block_size(),
            quarantined: blocks.quarantined().count(),
        })
    }

    /// Open leases with an address that is in no pool any more. None while no pools are set.
    pub fn outside_pools(&self) -> Result<Vec<LeaseRecord>, StoreFault> {
        let state = self.state();
        outside(&state.db.sql(), state.allocator.as_ref().map(Allocator::pools))
    }

    /// Open leases with an address that is in none of these pools.
    pub fn outside_of(&self, pools: &Pools) -> Result<Vec<LeaseRecord>, StoreFault> {
        outside(&self.state().db.sql(), Some(pools))
    }

    /// The ranges that open leases have left and that are still theirs.
    pub fn quarantined(&self) -> Result<Vec<Quarantined>, StoreFault> {
        let state = self.state();
        if state.nat.as_ref().is_none_or(|nat| nat.blocks.quarantined().next().is_none()) {
            return Ok(Vec::new());
        }
        let open = open_leases(&state.db.sql(), &state.epochs)?;
        let left = |open: &Open| {
            let owner = open.owner;
            open.left.iter().map(move |(_, block)| Quarantined { owner, block: *block }).collect::<Vec<_>>()
        };
        Ok(open.iter().flat_map(left).collect())
    }

    /// Ends the quarantine of a range that the owner of an inner address has left: the last connection from it is gone.
    /// Says whether it was in quarantine.
    pub fn release_block(&self, block: Block, inner: Ipv4Addr, now: Timestamp) -> Result<bool, StoreFault> {
        let mut state = self.state();
        state.told = now;
        let State { db, epochs, nat, .. } = &mut *state;
        let released = db.transaction(Durability::Soon, |sql| {
            let Some(lease) = sql.last_lease_of(inner)?.filter(|lease| lease.ended.is_none()) else {
                return Ok::<_, StoreFault>(false);
            };
            let open = Open::read(sql, epochs, lease)?;
            let Some(open) = open else { return Ok(false) };
            let mut found = false;
            for (row, _) in open.left.iter().filter(|(_, range)| *range == block) {
                found |= sql.end_record(TrailTable::Blocks, row.seq, now.max(row.started))?;
            }
            Ok(found)
        })?;
        if released && let Some(nat) = nat {
            nat.blocks.clear(block, inner);
        }
        Ok(released)
    }

    /// The blocks that are somebody's now, of one user or of all, by device.
    pub fn blocks_now(&self, user: Option<UserId>) -> Result<Vec<BlockNow>, StoreFault> {
        let state = self.state();
        let sql = state.db.sql();
        let mut names = HashMap::new();
        let mut found = Vec::new();
        for open in open_leases(&sql, &state.epochs)? {
            let Some(device) = sql.device(open.owner.device)? else { continue };
            if user.is_some_and(|user| device.user != user) {
                continue;
            }
            if !names.contains_key(&device.user)
                && let Some(user) = sql.user(device.user)?
            {
                names.insert(user.id, user.name);
            }
            let Some(user_name) = names.get(&device.user) else { continue };
            let of = |(row, block): &(BlockRow, Block), quarantined| BlockNow {
                owner: open.owner,
                user: device.user,
                user_name: user_name.clone(),
                device_name: device.name.clone(),
                block: *block,
                since: row.started,
                quarantined,
            };
            found.extend(open.main.iter().map(|main| of(main, false)));
            found.extend(open.left.iter().map(|left| of(left, true)));
        }
        Ok(found)
    }
}

/// An open lease with a translated address.
pub(crate) struct Open {
    owner: BlockOwner,
    lease: i64,
    started: Timestamp,
    /// The block its connections leave from.
    main: Option<(BlockRow, Block)>,
    /// The ranges it has left.
    left: Vec<(BlockRow, Block)>,
}

impl Open {
    /// Reads the blocks of an open lease, if it has an address that could have one.
    pub(crate) fn read(
        sql: &Sql<'_>,
        epochs: &Epochs,
        lease: LeaseRecord,
    ) -> Result<Option<Self>, StoreFault> {
        let Some(inner) = lease.inner.v4 else { return Ok(None) };
        let LeaseRecord { id, device, session, seq, started, .. } = lease;
        let owner = BlockOwner { lease: id, device, session, inner };
        let rows = sql.blocks_of(seq)?;
        let main = main_block(&rows).copied();
        let (mut open, mut rows) =
            (Self { owner, lease: seq, started, main: None, left: Vec::new() }, rows.into_iter());
        while let Some(row) = rows.find(|row| row.ended.is_none()) {
            let block = epochs.block(&row);
            let block =
                block.ok_or_else(|| sql.damaged(format!("the block at place {} has no epoch", row.seq)))?;
            if main == Some(row) {
                open.main = Some((row, block));
            } else {
                open.left.push((row, block));
            }
        }
        Ok(Some(open))
    }

    /// Writes the same blocks for a lease that takes this one's place; ends none.
    pub(crate) fn carry(&self, sql: &Sql<'_>, lease: i64, at: Timestamp) -> Result<(), StoreFault> {
        for (row, _) in self.main.iter().chain(&self.left) {
            sql.insert_block(lease, row.epoch, row.number, at)?;
        }
        Ok(())
    }

    /// The same for all but the block its connections leave from.
    pub(crate) fn carry_left(&self, sql: &Sql<'_>, lease: i64, at: Timestamp) -> Result<(), StoreFault> {
        for (row, _) in &self.left {
            sql.insert_block(lease, row.epoch, row.number, at)?;
        }
        Ok(())
    }

    /// When the lease or the last of its blocks began: it does not end before, whatever the clock says.
    pub(crate) fn latest(&self) -> Timestamp {
        let blocks = self.main.iter().chain(&self.left).map(|(row, _)| row.started);
        blocks.fold(self.started, Timestamp::max)
    }

    pub(crate) fn inner(&self) -> Ipv4Addr {
        self.owner.inner
    }

    /// The block its connections leave from.
    pub(crate) fn block(&self) -> Option<Block> {
        self.main.map(|(_, block)| block)
    }

    /// Tells the allocator that all its blocks are free.
    pub(crate) fn leave(&self, nat: &mut Nat, at: Timestamp) {
        for (_, block) in &self.left {
            nat.blocks.clear(*block, self.owner.inner);
        }
        if let Some(number) = self.block().and_then(|block| nat.blocks.layout().number_of(block)) {
            nat.blocks.release(number, at.as_millis());
        }
    }

    /// Takes that back.
    pub(crate) fn stay(&self, nat: &mut Nat) {
        if let Some(number) = self.block().and_then(|block| nat.blocks.layout().number_of(block)) {
            nat.blocks.take(number, self.owner.inner);
        }
        for (_, block) in &self.left {
            nat.blocks.quarantine(*block, self.owner.inner);
        }
    }
}

/// All open leases with an IPv4 address.
fn open_leases(sql: &Sql<'_>, epochs: &Epochs) -> Result<Vec<Open>, StoreFault> {
    let mut open = Vec::new();
    for lease in all_open(sql)? {
        open.extend(Open::read(sql, epochs, lease)?);
    }
    Ok(open)
}

/// All open leases, by device.
pub(crate) fn all_open(sql: &Sql<'_>) -> Result<Vec<LeaseRecord>, StoreFault> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let batch = sql.open_leases(&after, BATCH)?;
        match batch.last() {
            Some(last) => after = last.device.to_string(),
            None => return Ok(all),
        }
        all.extend(batch);
    }
}

fn outside(sql: &Sql<'_>, pools: Option<&Pools>) -> Result<Vec<LeaseRecord>, StoreFault> {
    let Some(pools) = pools else { return Ok(Vec::new()) };
    let mut outside = all_open(sql)?;
    outside.retain(|lease| {
        let v4 = lease.inner.v4.is_some_and(|v4| !pools.leases(v4.into()));
        v4 || lease.inner.v6.is_some_and(|v6| !pools.leases(v6.into()))
    });
    Ok(outside)
}

/// Blocks that know what the trail has of this layout's.
fn remembering(layout: Layout, epochs: &Epochs, open: &[Open], sql: &Sql<'_>) -> Result<Blocks, StoreFault> {
    let mut blocks = Blocks::new(layout);
    let mut free = Vec::new();
    for epoch in epochs.iter().rev().take(REMEMBERED) {
        let Some(old) = &epoch.layout else { continue };
        for (number, ended, seq) in sql.last_blocks(epoch.seq)? {
            let number = old.block(number).and_then(|block| blocks.layout().number_of(block));
            free.extend(number.zip(ended).map(|(number, ended)| (ended, seq, number)));
        }
    }
    free.sort_unstable();
    for (ended, _, number) in free {
        blocks.release(number, ended.as_millis());
    }
    let mut nat = Nat { epoch: 0, blocks };
    open.iter().for_each(|open| open.stay(&mut nat));
    Ok(nat.blocks)
}

/// A change of layout that is thought out, and not written yet.
struct Plan {
    blocks: Option<Blocks>,
    told: Replanned,
    /// Open leases, by inner address.
    open: HashMap<Ipv4Addr, Open>,
    /// The places of blocks that end.
    ending: Vec<(i64, Timestamp)>,
    /// The numbers of new blocks.
    beginning: Vec<(Ipv4Addr, u32)>,
}

fn plan(
    sql: &Sql<'_>,
    allocator: Option<&Allocator>,
    epochs: &Epochs,
    nat: Option<&Nat>,
    layout: Option<&Layout>,
) -> Result<Plan, StoreFault> {
    let open = open_leases(sql, epochs)?;
    let with_block: Vec<_> = open.iter().filter_map(|open| Some((open.owner.inner, open.block()?))).collect();
    let old = match (nat, epochs.last().and_then(|epoch| epoch.layout.clone())) {
        (Some(nat), _) => Some(nat.blocks.clone()),
        (None, Some(layout)) => Some(remembering(layout, epochs, &open, sql)?),
        (None, None) => None,
    };
    let replan = match (layout, old) {
        (None, _) => None,
        (Some(layout), Some(old)) => Some(old.replan(layout.clone(), &with_block)),
        (Some(layout), None) => {
            let blocks = remembering(layout.clone(), epochs, &[], sql)?;
            Some(Replan { blocks, kept: Vec::new(), moved: Vec::new(), homeless: Vec::new() })
        }
    };
    let mut plan = Plan {
        blocks: None,
        told: Replanned {
            changed: true,
            outside: outside(sql, allocator.map(Allocator::pools))?,
            ..Default::default()
        },
        open: open.into_iter().map(|open| (open.owner.inner, open)).collect(),
        ending: Vec::new(),
        beginning: Vec::new(),
    };
    match replan {
        Some(replan) => plan.take(replan),
        None => plan.nothing(),
    }
    Ok(plan)
}

impl Plan {
    /// Without a layout nobody has a block.
    fn nothing(&mut self) {
        for open in self.open.values() {
            self.ending.extend(open.main.iter().chain(&open.left).map(|(row, _)| (row.seq, row.started)));
        }
    }

    fn take(&mut self, replan: Replan) {
        let Replan { mut blocks, kept, moved, homeless } = replan;
        self.told.kept = kept.len();
        let mut housed: HashSet<Ipv4Addr> = kept.into_iter().collect();
        for change in moved {
            housed.insert(change.inner);
            self.beginning.push((change.inner, change.number));
            let owner = self.open.get(&change.inner).map(|open| open.owner);
            self.told.moved.extend(owner.map(|owner| Moved {
                owner,
                from: Some(change.from),
                to: change.to,
            }));
        }
        let mut ended = HashSet::new();
        for (inner, range) in homeless {
            let Some(open) = self.open.get(&inner) else { continue };
            let rows = open.main.iter().chain(&open.left).filter(|(_, block)| *block == range);
            self.ending.extend(rows.map(|(row, _)| (row.seq, row.started)));
            let ends = !housed.contains(&inner);
            self.told.homeless.push(Homeless { owner: open.owner, block: Some(range), ends });
            if ends {
                ended.insert(inner);
            }
        }
        // Its session ends, and all its connections with it.
        for open in ended.iter().filter_map(|inner| self.open.get(inner)) {
            let rows = open.main.iter().chain(&open.left).map(|(row, _)| (row.seq, row.started));
            self.ending.extend(rows);
            open.left.iter().for_each(|(_, block)| blocks.clear(*block, open.owner.inner));
        }
        self.ending.sort_unstable();
        self.ending.dedup();

        let mut without: Vec<&Open> = self.open.values().filter(|open| open.main.is_none()).collect();
        without.sort_by_key(|open| open.lease);
        for owner in without.into_iter().map(|open| open.owner) {
            let inner = owner.inner;
            if !blocks.layout().translates(inner) {
                continue;
            }
            match blocks.choose(inner, None, false) {
                Ok(Choice { number, block: to, .. }) => {
                    blocks.take(number, inner);
                    self.beginning.push((inner, number));
                    self.told.moved.push(Moved { owner, from: None, to });
                }
                Err(_) => self.told.homeless.push(Homeless { owner, block: None, ends: true }),
            }
        }
        self.blocks = Some(blocks);
    }

    fn write(&self, sql: &Sql<'_>, epoch: i64, now: Timestamp) -> Result<(), StoreFault> {
        for &(row, started) in &self.ending {
            sql.end_record(TrailTable::Blocks, row, now.max(started))?;
        }
        for (inner, number) in &self.beginning {
            if let Some(open) = self.open.get(inner) {
                sql.insert_block(open.lease, epoch, *number, now.max(open.started))?;
            }
        }
        Ok(())
    }
}

/// The blocks of an open layout, anew from the trail.
pub(crate) fn reread(sql: &Sql<'_>, epochs: &Epochs) -> Result<Option<Nat>, StoreFault> {
    let Some((epoch, layout)) = epochs.last().and_then(|epoch| Some((epoch.seq, epoch.layout.clone()?)))
    else {
        return Ok(None);
    };
    let open = open_leases(sql, epochs)?;
    Ok(Some(Nat { epoch, blocks: remembering(layout, epochs, &open, sql)? }))
}

#[cfg(test)]
mod tests;
