//! The choice itself, and the memory of past leases that makes it fair.

use std::net::Ipv6Addr;

use ipnet::IpNet;

use super::{Inner, Pool, Pools, v4_address};
use crate::book::Book;

/// Every address of the wanted family is leased.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} full: {}; add a pool, or end sessions that are not needed",
    named(.pools),
    counted(*.addresses)
)]
pub struct Full {
    /// The pools of the family, all of them full.
    pub pools: Vec<IpNet>,
    /// How many addresses these pools can lease together.
    pub addresses: u128,
}

fn named(pools: &[IpNet]) -> String {
    let list: Vec<String> = pools.iter().map(IpNet::to_string).collect();
    if list.len() == 1 {
        format!("the pool {} is", list.concat())
    } else {
        format!("the pools {} are", list.join(", "))
    }
}

fn counted(addresses: u128) -> String {
    if addresses == 1 {
        "its only address is leased".to_owned()
    } else {
        format!("all {addresses} addresses are leased")
    }
}

/// What [`Allocator::choose`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The addresses: one in each family that has a pool.
    pub inner: Inner,
    /// The later of the stamps with which the addresses were last released; `None` if neither ever was. A new lease
    /// that starts before it would overlap the lease before.
    pub free_since: Option<i64>,
}

/// Pools together with what is leased from them now and what was leased before.
///
/// The allocator decides and remembers; it writes nothing down. Its owner asks [`choose`](Self::choose), writes the
/// lease to the journal, and only then calls [`take`](Self::take); a lease that ends is written, then
/// [`release`](Self::release)d. After a restart the owner replays past leases: `release` for those that ended, in
/// the order in which they ended, and `take` for those still open.
#[derive(Debug, Clone)]
pub struct Allocator {
    pools: Pools,
    v4: Book,
    v6: Book,
}

impl Allocator {
    /// An allocator that has leased nothing yet.
    pub fn new(pools: Pools) -> Self {
        let (v4, v6) = (Book::new(pools.ranges4()), Book::new(pools.ranges6()));
        Self { pools, v4, v6 }
    }

    /// The pools it chooses from.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// The addresses for a device, by the rules of the [module](super). Nothing is taken yet.
    ///
    /// `preferred` are the addresses the device had last. With `held` they are its own still: they count as free,
    /// so that a device keeps its addresses from one lease to the next while others cannot slip in between.
    pub fn choose(&self, preferred: Inner, held: bool) -> Result<Choice, Full> {
        let old4 = preferred.v4.map(|v4| u128::from(v4.to_bits()));
        let v4 = self.pick(&self.v4, &self.pools.v4, [old4, None], held)?.map(v4_address);

        let old6 = preferred.v6.map(Ipv6Addr::to_bits);
        let mirror = v4.and_then(|v4| self.pools.mirror(v4)).map(Ipv6Addr::to_bits);
        let v6 = self.pick(&self.v6, &self.pools.v6, [old6, mirror], held)?.map(Ipv6Addr::from_bits);

        let inner = Inner { v4, v6 };
        Ok(Choice { inner, free_since: self.free_since(inner) })
    }

    /// Marks addresses as leased. Addresses outside the pools (left from an earlier configuration) are passed over.
    pub fn take(&mut self, inner: Inner) {
        if let Some(v4) = inner.v4 {
            self.v4.take(u128::from(v4.to_bits()));
        }
        if let Some(v6) = inner.v6 {
            self.v6.take(v6.to_bits());
        }
    }

    /// Marks addresses as free. `stamp` is the time at which their lease ended, in whatever unit the owner counts;
    /// it is only handed back in [`Choice::free_since`]: the order of the calls decides which is free longest.
    pub fn release(&mut self, inner: Inner, stamp: i64) {
        if let Some(v4) = inner.v4 {
            self.v4.release(u128::from(v4.to_bits()), Some(stamp));
        }
        if let Some(v6) = inner.v6 {
            self.v6.release(v6.to_bits(), Some(stamp));
        }
    }

    /// One family's choice; `None` when the family has no pool.
    fn pick(
        &self,
        book: &Book,
        pools: &[Pool],
        [old, mirror]: [Option<u128>; 2],
        held: bool,
    ) -> Result<Option<u128>, Full> {
        if pools.is_empty() {
            return Ok(None);
        }
        let old = old.filter(|&number| book.covers(number) && (held || book.is_free(number)));
        let mirror = mirror.filter(|&number| book.is_free(number));
        match old.or(mirror).or_else(|| book.free_longest()) {
            Some(number) => Ok(Some(number)),
            None => Err(Full {
                pools: pools.iter().map(Pool::net).collect(),
                addresses: pools.iter().map(Pool::capacity).fold(0, u128::saturating_add),
            }),
        }
    }

    fn free_since(&self, inner: Inner) -> Option<i64> {
        let v4 = inner.v4.and_then(|v4| self.v4.released(u128::from(v4.to_bits())));
        let v6 = inner.v6.and_then(|v6| self.v6.released(v6.to_bits()));
        v4.max(v6)
    }
}
