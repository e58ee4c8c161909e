//! Inner address pools and the choice of the address a device leases.
//!
//! [`Pools`] is the configuration, checked: which addresses may be leased at all. The network address, the IPv4
//! broadcast address (in IPv6 the subnet-router anycast address, RFC 4291 section 2.6.1) and the gateway's own
//! address, the first host address of each pool, never are.
//!
//! [`Allocator`] remembers what was leased before and chooses:
//! 1. the address the device had last, if it is free and still in a pool;
//! 2. for IPv6, the mirror of the IPv4 address chosen beside it: the same host number, so that `10.88.1.2` comes
//!    with `fd88::102` and an operator sees the pair (a second IPv4 pool counts on where the first ends);
//! 3. an address never leased, pool after pool, lowest first (IPv6 begins after the mirrors);
//! 4. the address that has been free longest.
//!
//! An address is thus given to somebody else as late as possible: late packets of its former owner, and mistakes
//! about the time in a question "who had it?", hit nobody. No step scans a pool, however large.
//!
//! ```
//! use adit_plan::pool::{Allocator, Inner, Pools};
//!
//! let pools = Pools::new(&["10.88.0.0/16".parse()?], &["fd88::/64".parse()?])?;
//! let mut allocator = Allocator::new(pools);
//! let first = allocator.choose(Inner::default(), false)?.inner;
//! allocator.take(first);
//! assert_eq!(first.to_string(), "10.88.0.2, fd88::2");
//!
//! allocator.release(first, 1_000);
//! let again = allocator.choose(first, false)?;
//! assert_eq!((again.inner, again.free_since), (first, Some(1_000)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocator;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use allocator::{Allocator, Choice, Full};

use crate::special::{overlap, special};

/// The longest IPv4 prefix with room for a network, a broadcast, a gateway and one leased address.
const LONGEST_V4: u8 = 30;
/// The longest IPv6 prefix with room for an anycast, a gateway and two leased addresses.
const LONGEST_V6: u8 = 126;

/// Why a list of pools cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolFault {
    /// There is no pool in either family.
    #[error("there is no address pool; give at least one IPv4 or IPv6 network")]
    Empty,
    /// Address bits are set beyond the prefix length.
    #[error("the pool {pool} has address bits beyond its length; write {canonical}")]
    HostBits {
        /// The pool as given.
        pool: IpNet,
        /// The same network in canonical form.
        canonical: IpNet,
    },
    /// The pool has no room for a device.
    #[error("the pool {pool} is too small; the longest prefix with room for a device is /{longest}")]
    TooSmall {
        /// The pool as given.
        pool: IpNet,
        /// The longest prefix length that can be used.
        longest: u8,
    },
    /// The pool reaches into a range with a meaning of its own.
    #[error("the pool {pool} includes {range}, which cannot be leased")]
    Special {
        /// The pool as given.
        pool: IpNet,
        /// The range it touches, by name.
        range: &'static str,
    },
    /// Two pools share addresses.
    #[error("the pools {first} and {second} overlap; each address may be in one pool only")]
    Overlap {
        /// The pool given first.
        first: IpNet,
        /// The pool given later.
        second: IpNet,
    },
}

/// One address pool, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    net: IpNet,
}

impl Pool {
    fn new(net: IpNet) -> Result<Self, PoolFault> {
        let longest = if matches!(net, IpNet::V4(_)) { LONGEST_V4 } else { LONGEST_V6 };
        if net.trunc() != net {
            return Err(PoolFault::HostBits { pool: net, canonical: net.trunc() });
        }
        if net.prefix_len() > longest {
            return Err(PoolFault::TooSmall { pool: net, longest });
        }
        match special(&net) {
            Some(range) => Err(PoolFault::Special { pool: net, range }),
            None => Ok(Self { net }),
        }
    }

    /// The network the pool covers.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// The gateway's own address in this pool: the first host address.
    pub fn gateway(&self) -> IpAddr {
        address(&self.net, self.base() + 1)
    }

    /// How many addresses can be leased at once.
    pub fn capacity(&self) -> u128 {
        self.last() - self.first() + 1
    }

    /// Whether the address may be leased from this pool.
    pub fn leases(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && (self.first()..=self.last()).contains(&number(address))
    }

    /// The network address as a number.
    fn base(&self) -> u128 {
        number(self.net.network())
    }

    /// How many addresses the network covers. A pool is never a whole family: that touches special ranges.
    fn size(&self) -> u128 {
        1 << (self.net.max_prefix_len() - self.net.prefix_len())
    }

    /// The first address that can be leased: after the network address and the gateway.
    fn first(&self) -> u128 {
        self.base() + 2
    }

    /// The last address that can be leased: in IPv4 the one before the broadcast address.
    fn last(&self) -> u128 {
        let broadcast = u128::from(matches!(self.net, IpNet::V4(_)));
        self.base() + self.size() - 1 - broadcast
    }
}

/// All pools of a gateway, in the order in which they are filled. Either family may be empty, not both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pools {
    v4: Vec<Pool>,
    v6: Vec<Pool>,
}

impl Pools {
    /// Checks the networks and takes them as pools, each family in the order given.
    pub fn new(v4: &[Ipv4Net], v6: &[Ipv6Net]) -> Result<Self, PoolFault> {
        let pools = Self {
            v4: v4.iter().map(|&net| Pool::new(net.into())).collect::<Result<_, _>>()?,
            v6: v6.iter().map(|&net| Pool::new(net.into())).collect::<Result<_, _>>()?,
        };
        if pools.iter().next().is_none() {
            return Err(PoolFault::Empty);
        }
        let nets: Vec<IpNet> = pools.iter().map(Pool::net).collect();
        for (place, second) in nets.iter().enumerate() {
            if let Some(first) = nets.iter().take(place).find(|first| overlap(first, second)) {
                return Err(PoolFault::Overlap { first: *first, second: *second });
            }
        }
        Ok(pools)
    }

    /// All pools: IPv4, then IPv6, each in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(&self.v6)
    }

    /// The gateway's own IPv4 address in each IPv4 pool.
    pub fn gateway4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.v4.iter().map(|pool| v4_address(pool.base() + 1))
    }

    /// The gateway's own IPv6 address in each IPv6 pool.
    pub fn gateway6(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.v6.iter().map(|pool| Ipv6Addr::from_bits(pool.base() + 1))
    }

    /// The pool whose network holds the address, whether or not the address can be leased.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.iter().find(|pool| pool.net.contains(&address))
    }

    /// Whether the address may be leased from one of the pools.
    pub fn leases(&self, address: IpAddr) -> bool {
        self.pool_of(address).is_some_and(|pool| pool.leases(address))
    }

    /// The first pool that shares an address with the network.
    pub fn overlapping(&self, net: &IpNet) -> Option<IpNet> {
        self.iter().map(Pool::net).find(|pool| overlap(pool, net))
    }

    /// The place of an IPv4 address among all that can be leased, counted from 0 over the pools in their order.
    pub(crate) fn place4(&self, v4: Ipv4Addr) -> Option<u128> {
        let mut before = 0;
        for (first, last) in self.ranges4() {
            let number = u128::from(v4.to_bits());
            if (first..=last).contains(&number) {
                return Some(before + number - first);
            }
            before += last - first + 1;
        }
        None
    }

    /// How many addresses can be leased at once, by family.
    pub fn capacity(&self) -> Capacity {
        let total = |pools: &[Pool]| pools.iter().map(Pool::capacity).fold(0, u128::saturating_add);
        Capacity { v4: total(&self.v4), v6: total(&self.v6) }
    }

    /// The IPv6 address with the host number of the IPv4 address. Host numbers of later IPv4 pools count on from
    /// the size of the earlier ones, so two IPv4 addresses never have one mirror.
    fn mirror(&self, v4: Ipv4Addr) -> Option<Ipv6Addr> {
        let mut before = 0;
        for pool in &self.v4 {
            if pool.net.contains(&IpAddr::V4(v4)) {
                let host = before + (u128::from(v4.to_bits()) - pool.base());
                let target = self.v6.first().filter(|target| host < target.size())?;
                let mirror = Ipv6Addr::from_bits(target.base() + host);
                return target.leases(IpAddr::V6(mirror)).then_some(mirror);
            }
            before += pool.size();
        }
        None
    }

    /// The ranges of IPv4 addresses that can be leased, in the order in which they are first used.
    fn ranges4(&self) -> Vec<(u128, u128)> {
        self.v4.iter().map(|pool| (pool.first(), pool.last())).collect()
    }

    /// The ranges of IPv6 addresses that can be leased, in the order in which they are first used: the places of
    /// mirrors come last.
    fn ranges6(&self) -> Vec<(u128, u128)> {
        let mirrors: u128 = self.v4.iter().map(Pool::size).sum();
        let mut ranges: Vec<_> = self.v6.iter().map(|pool| (pool.first(), pool.last())).collect();
        if let Some(range) = ranges.first_mut() {
            let (first, last) = *range;
            let after_mirrors = first - 2 + mirrors;
            if after_mirrors > first && after_mirrors <= last {
                *range = (after_mirrors, last);
                ranges.push((first, after_mirrors - 1));
            }
        }
        ranges
    }
}

/// How many addresses can be leased at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// IPv4 addresses.
    pub v4: u128,
    /// IPv6 addresses.
    pub v6: u128,
}

/// The inner addresses of one device: one in each family that has a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Inner {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

/// Both addresses, separated by a comma, or `none`.
impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4}, {v6}"),
            (Some(v4), None) => write!(f, "{v4}"),
            (None, Some(v6)) => write!(f, "{v6}"),
            (None, None) => f.write_str("none"),
        }
    }
}

/// The address as a number within its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with this number, in the family of the network.
fn address(family: &IpNet, number: u128) -> IpAddr {
    match family {
        IpNet::V4(_) => v4_address(number).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

/// The IPv4 address with this number; the number comes from an IPv4 pool, so the upper bits are zero.
fn v4_address(number: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(number as u32)
}
