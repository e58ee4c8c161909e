//! Who has which of many numbered places, and who had them before: no step looks at all of them.

use std::collections::{BTreeMap, HashMap};

/// Numbered places of which each has one tenant at a time: those leased, those leased before, and where the
/// untouched ones begin.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    /// The places that can be leased, in the order of first use; the ranges are disjoint.
    ranges: Vec<(u128, u128)>,
    /// The next place never leased, as (range, number). Every place before it has an entry in `uses`.
    cursor: Option<(usize, u128)>,
    /// Every place that was ever leased: as many entries as tenants, not as places.
    uses: HashMap<u128, Use>,
    /// Free places by the order in which they were released.
    free: BTreeMap<u64, u128>,
    releases: u64,
}

#[derive(Debug, Clone, Copy)]
enum Use {
    Leased { before: Option<i64> },
    Free { order: u64, since: Option<i64> },
}

impl Book {
    /// Nothing is leased yet, or was.
    pub(crate) fn new(ranges: Vec<(u128, u128)>) -> Self {
        let cursor = ranges.first().map(|&(first, _)| (0, first));
        Self { ranges, cursor, uses: HashMap::new(), free: BTreeMap::new(), releases: 0 }
    }

    /// Whether there is such a place.
    pub(crate) fn covers(&self, number: u128) -> bool {
        self.ranges.iter().any(|&(first, last)| (first..=last).contains(&number))
    }

    /// Whether the number, known to be covered, is not leased.
    pub(crate) fn is_free(&self, number: u128) -> bool {
        !matches!(self.uses.get(&number), Some(Use::Leased { .. }))
    }

    /// When the number was last released.
    pub(crate) fn released(&self, number: u128) -> Option<i64> {
        match *self.uses.get(&number)? {
            Use::Leased { before } => before,
            Use::Free { since, .. } => since,
        }
    }

    /// A place never leased, else the one that has been free longest.
    pub(crate) fn free_longest(&self) -> Option<u128> {
        let never_used = self.cursor.map(|(_, number)| number);
        never_used.or_else(|| self.free.first_key_value().map(|(_, &number)| number))
    }

    /// Leases a place. Numbers outside are passed over.
    pub(crate) fn take(&mut self, number: u128) {
        if !self.covers(number) {
            return;
        }
        let before = self.released(number);
        if let Some(Use::Free { order, .. }) = self.uses.insert(number, Use::Leased { before }) {
            self.free.remove(&order);
        }
        self.advance();
    }

    /// Ends a lease; `None` when nobody knows when. Numbers outside are passed over.
    pub(crate) fn release(&mut self, number: u128, since: Option<i64>) {
        if !self.covers(number) {
            return;
        }
        let order = self.releases;
        self.releases += 1;
        let since = self.released(number).max(since);
        if let Some(Use::Free { order, .. }) = self.uses.insert(number, Use::Free { order, since }) {
            self.free.remove(&order);
        }
        self.free.insert(order, number);
        self.advance();
    }

    /// When places were last released: those that are free in the order of their release, then those leased.
    pub(crate) fn history(&self) -> impl Iterator<Item = (u128, Option<i64>)> {
        let leased = self.uses.iter().filter_map(|(&number, one)| match one {
            Use::Leased { before: Some(before) } => Some((number, Some(*before))),
            _ => None,
        });
        let mut leased: Vec<_> = leased.collect();
        leased.sort();
        self.free.values().map(|&number| (number, self.released(number))).chain(leased)
    }

    /// Moves the cursor to the next place without an entry. Each entry is stepped over once in a lifetime.
    fn advance(&mut self) {
        while let Some((range, number)) = self.cursor
            && self.uses.contains_key(&number)
        {
            let at_end = self.ranges.get(range).is_none_or(|&(_, last)| number >= last);
            self.cursor = if at_end {
                self.ranges.get(range + 1).map(|&(first, _)| (range + 1, first))
            } else {
                Some((range, number + 1))
            };
        }
    }
}
