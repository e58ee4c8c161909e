//! Who has which block, and who had it.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::{Assign, Block, Layout};
use crate::book::Book;

/// What [`Blocks::choose`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The number of the block.
    pub number: u32,
    /// The block.
    pub block: Block,
    /// The stamp (milliseconds, as given to [`Blocks::release`]) with which its ports were last released; `None` if
    /// they never were. A new lease that starts before it would overlap the one before.
    pub free_since: Option<i64>,
}

/// There is no block for an inner address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoBlock {
    /// All are taken or in quarantine.
    #[error(
        "no free port block: of {blocks} blocks of {size} ports {taken} are taken{}; end sessions, or give [nat] \
         more addresses, a wider range or smaller blocks",
        if taken < blocks { ", and the rest still carries connections of those who had it before" } else { "" }
    )]
    Full {
        /// How many there are.
        blocks: u32,
        /// Ports of a block.
        size: u16,
        /// How many are somebody's.
        taken: u32,
    },
    /// Blocks are static, and the address is in none of the pools that they were made for.
    #[error("no port block: {0} is in no pool of the NAT layout")]
    Outside(Ipv4Addr),
    /// Blocks are static, and somebody else still has connections from ports of this one, since the layout changed.
    /// Who drops the connections of `others` and [`clear`](Blocks::clear)s their ranges can choose again.
    #[error("no port block: others still have connections from ports of {block}; they end by themselves")]
    Busy {
        /// The block of the inner address.
        block: Block,
        /// The ranges in quarantine that reach into it, with their owners; empty if the block itself is taken.
        others: Vec<(Block, Ipv4Addr)>,
    },
}

/// A layout, together with who has which block now, who had which before, and what is in quarantine. The owner of a
/// block is an inner address.
///
/// It decides and remembers; it writes nothing down. Its owner asks [`choose`](Self::choose), writes the lease to
/// the journal, and only then calls [`take`](Self::take); a lease that ends is written, then
/// [`release`](Self::release)d. After a restart past leases are replayed: `release` for those that ended, in the
/// order in which they ended, `take` for those still open, `quarantine` for what was left and is not clear yet.
///
/// Nothing here looks at all blocks, but for [`replan`](Self::replan). A range in quarantine costs as many steps as
/// there are blocks that it reaches into.
#[derive(Debug, Clone)]
pub struct Blocks {
    pub(super) layout: Layout,
    /// Blocks that are somebody's or that a quarantine reaches into count as leased here.
    pub(super) book: Book,
    pub(super) owners: HashMap<u32, Ipv4Addr>,
    /// Ranges that were left, by owner.
    left: BTreeSet<(Ipv4Addr, Block)>,
    /// For each block that a quarantine reaches into: how many ranges of whom do.
    reached: HashMap<u32, HashMap<Ipv4Addr, u32>>,
}

impl Blocks {
    /// Nobody has a block yet, or had one.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let book = Book::new(vec![(0, u128::from(layout.capacity()) - 1)]);
        Self { layout, book, owners: HashMap::new(), left: BTreeSet::new(), reached: HashMap::new() }
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many blocks are somebody's.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        // As many entries as blocks at most.
        self.owners.len() as u32
    }

    /// The block for an inner address, by the rules of the [module](super). Nothing is taken yet.
    ///
    /// `preferred` is the block it had last. With `held` it is this address's own still and counts as free, so that
    /// it stays from one lease to the next.
    ///
    /// # Errors
    /// When there is no block that is nobody else's.
    pub fn choose(&self, inner: Ipv4Addr, preferred: Option<Block>, held: bool) -> Result<Choice, NoBlock> {
        let own = |number: &u32| held && self.owners.get(number) == Some(&inner);
        let usable = |number: &u32| own(number) || self.is_free_for(*number, inner);
        let number = match self.layout.assign() {
            Assign::Lease => preferred
                .and_then(|block| self.layout.number_of(block))
                .filter(usable)
                .or_else(|| self.anything_for(inner))
                .ok_or_else(|| NoBlock::Full {
                    blocks: self.layout.capacity(),
                    size: self.layout.block_size(),
                    taken: self.in_use(),
                })?,
            Assign::Static => {
                let number = self.layout.static_number(inner).ok_or(NoBlock::Outside(inner))?;
                if !usable(&number) {
                    return Err(self.busy(number, inner));
                }
                number
            }
        };
        let block = self.layout.block(number).ok_or(NoBlock::Outside(inner))?;
        Ok(Choice { number, block, free_since: self.book.released(u128::from(number)) })
    }

    /// Gives a block to an inner address. Numbers that the layout does not have are passed over.
    pub fn take(&mut self, number: u32, inner: Ipv4Addr) {
        if number < self.layout.capacity() {
            self.owners.insert(number, inner);
            self.book.take(u128::from(number));
        }
    }

    /// Marks a block as nobody's. `at_ms` is when its lease ended; it is only handed back in
    /// [`Choice::free_since`]: the order of the calls decides which is free longest.
    pub fn release(&mut self, number: u32, at_ms: i64) {
        self.owners.remove(&number);
        self.book.release(u128::from(number), Some(at_ms));
        if self.reached.contains_key(&number) {
            self.book.take(u128::from(number));
        }
    }

    /// Keeps a range that its owner has left from everybody else, until it is [`clear`](Self::clear).
    pub fn quarantine(&mut self, block: Block, owner: Ipv4Addr) {
        if !self.left.insert((owner, block)) {
            return;
        }
        for number in self.layout.overlapping(block) {
            *self.reached.entry(number).or_default().entry(owner).or_default() += 1;
            self.book.take(u128::from(number));
        }
    }

    /// Ends the quarantine of a range: no connection of its owner leaves from it any more.
    pub fn clear(&mut self, block: Block, owner: Ipv4Addr) {
        if !self.left.remove(&(owner, block)) {
            return;
        }
        for number in self.layout.overlapping(block) {
            let Some(ranges) = self.reached.get_mut(&number) else { continue };
            if let Some(count) = ranges.get_mut(&owner) {
                *count -= 1;
                if *count == 0 {
                    ranges.remove(&owner);
                }
            }
            if ranges.is_empty() {
                self.reached.remove(&number);
                if !self.owners.contains_key(&number) {
                    self.book.release(u128::from(number), None);
                }
            }
        }
    }

    /// What is in quarantine, with its owner, by owner.
    pub fn quarantined(&self) -> impl Iterator<Item = (Block, Ipv4Addr)> {
        self.left.iter().map(|&(owner, block)| (block, owner))
    }

    /// Whether a block is nobody's, and no quarantine of somebody else reaches into it.
    pub(super) fn is_free_for(&self, number: u32, inner: Ipv4Addr) -> bool {
        !self.owners.contains_key(&number)
            && self.reached.get(&number).is_none_or(|ranges| ranges.keys().all(|owner| *owner == inner))
    }

    /// The block free longest, else one that only quarantines of this address reach into.
    pub(super) fn anything_for(&self, inner: Ipv4Addr) -> Option<u32> {
        let free = self.book.free_longest().and_then(|number| u32::try_from(number).ok());
        free.or_else(|| {
            let mut own = self.left_by(inner).flat_map(|block| self.layout.overlapping(block));
            own.find(|number| self.is_free_for(*number, inner))
        })
    }

    /// The ranges that an address has left.
    fn left_by(&self, owner: Ipv4Addr) -> impl Iterator<Item = Block> {
        let lowest = Block { address: Ipv4Addr::UNSPECIFIED, from: 0, to: 0 };
        let own = self.left.range((owner, lowest)..).take_while(move |(other, _)| *other == owner);
        own.map(|&(_, block)| block)
    }

    /// Who is in the way of a static block.
    fn busy(&self, number: u32, inner: Ipv4Addr) -> NoBlock {
        let Some(block) = self.layout.block(number) else { return NoBlock::Outside(inner) };
        let owners = self.reached.get(&number).into_iter().flat_map(HashMap::keys);
        let others = owners.filter(|owner| **owner != inner);
        let mut others: Vec<_> = others
            .flat_map(|&owner| self.left_by(owner).map(move |range| (range, owner)))
            .filter(|(range, _)| range.overlaps(&block))
            .collect();
        others.sort();
        NoBlock::Busy { block, others }
    }
}
