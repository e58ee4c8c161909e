//! From one layout to the next.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::{Assign, Block, Blocks, Layout};

/// What a new layout does to those who have a block.
#[derive(Debug, Clone)]
pub struct Replan {
    /// The new state, with all that is in quarantine.
    pub blocks: Blocks,
    /// Whose block stays.
    pub kept: Vec<Ipv4Addr>,
    /// Who has another block now. The old one is in quarantine, unless it is among the homeless.
    pub moved: Vec<Move>,
    /// Ranges that could not be put in quarantine, with their owners: ports of them are somebody else's in the new
    /// state, or may be. Before that is put in force the owner's element has to be taken out of the kernel's map
    /// and all of the owner's connections dropped; then the owner's new block, if there is one, may be set. An
    /// owner that is neither in `kept` nor in `moved` has no block: its session has to end.
    ///
    /// A range here is the block that the owner had, or one it had before that and that was in quarantine: an owner
    /// may be here more than once, and in `kept` or `moved` as well.
    pub homeless: Vec<(Ipv4Addr, Block)>,
}

/// One address's way to another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The inner address.
    pub inner: Ipv4Addr,
    /// The block it had.
    pub from: Block,
    /// The block it has.
    pub to: Block,
    /// The number of that.
    pub number: u32,
}

impl Blocks {
    /// What a new layout makes of this state. `open` are all leases with a block, each with the one it has now.
    ///
    /// A lease whose block is there in the new layout, just so, keeps it. Another gets, in this order: a block that
    /// reaches into its old ports and into nobody else's, a block never used, the one free longest; nothing that is
    /// somebody else's or in quarantine for somebody else. If there is none it has none any more, and its old ports
    /// are free for those after it.
    ///
    /// With [`Assign::Static`] each has the block of its address, and only who had that already keeps it. Old ports
    /// that are then somebody else's cannot be kept for their owner.
    ///
    /// When blocks were last free is remembered port by port.
    #[must_use]
    pub fn replan(&self, layout: Layout, open: &[(Ipv4Addr, Block)]) -> Replan {
        let mut blocks = Self::new(layout);
        self.remember(&mut blocks);
        let (mut kept, mut moved, mut homeless) = (Vec::new(), Vec::new(), Vec::new());
        let before = self.quarantined().map(|(range, owner)| (owner, range));
        let mut left: BTreeSet<(Ipv4Addr, Block)> = before.collect();
        let mut searching = Vec::new();
        for &(inner, from) in open {
            let number = match blocks.layout.assign() {
                Assign::Lease => blocks.layout.number_of(from),
                Assign::Static => blocks.layout.static_number(inner),
            };
            match number.and_then(|number| Some((number, blocks.layout.block(number)?))) {
                Some((number, to)) => {
                    blocks.take(number, inner);
                    if to == from {
                        kept.push(inner);
                    } else {
                        moved.push(Move { inner, from, to, number });
                        left.insert((inner, from));
                    }
                }
                None if blocks.layout.assign() == Assign::Static => {
                    left.remove(&(inner, from));
                    homeless.push((inner, from));
                }
                None => {
                    searching.push((inner, from));
                    left.insert((inner, from));
                }
            }
        }
        for (owner, range) in left {
            let mut reached = blocks.layout.overlapping(range);
            if reached.any(|number| blocks.owners.get(&number).is_some_and(|other| *other != owner)) {
                homeless.push((owner, range));
            } else {
                blocks.quarantine(range, owner);
            }
        }
        for (inner, from) in searching {
            let mut near = blocks.layout.overlapping(from);
            let near = near.find(|number| blocks.is_free_for(*number, inner));
            let number = near.or_else(|| blocks.anything_for(inner));
            match number.and_then(|number| Some((number, blocks.layout.block(number)?))) {
                Some((number, to)) => {
                    blocks.take(number, inner);
                    moved.push(Move { inner, from, to, number });
                }
                None => {
                    blocks.clear(from, inner);
                    homeless.push((inner, from));
                }
            }
        }
        Replan { blocks, kept, moved, homeless }
    }

    /// Tells a new state when ports were last free.
    fn remember(&self, new: &mut Self) {
        for (number, since) in self.book.history() {
            let block = u32::try_from(number).ok().and_then(|number| self.layout.block(number));
            for number in block.into_iter().flat_map(|block| new.layout.overlapping(block)) {
                new.book.release(u128::from(number), since);
            }
        }
    }
}
