//! Traceable NAT: which source ports each inner IPv4 address has when it is translated.
//!
//! A [`Layout`] cuts the port range of the NAT addresses into blocks of one size, counted from the highest ports of
//! the first address downwards, then the next address. [`Blocks`] says who has which block now and chooses:
//! 1. the block the inner address had last, if it is free;
//! 2. a block never used, highest ports first;
//! 3. the block that has been free longest.
//!
//! With [`Assign::Static`] the block follows from the inner address instead: its place among all addresses that can
//! be leased from the pools.
//!
//! When the layout changes, [`Blocks::replan`] says who keeps a block, who moves, and whose old ranges have to be
//! given up. A range that is left is in quarantine: it stays its owner's until the owner's last connection from it
//! has ended, so that nobody gets packets of somebody else's connections, and a trace finds who had them.
//!
//! Only private addresses are translated: pools of public ones have no part in a layout.
//!
//! ```
//! use adit_plan::nat::{Assign, Blocks, Layout, Size, Wanted};
//!
//! let layout = Layout::new(&Wanted {
//!     addresses: vec!["192.0.2.1".parse()?],
//!     ports: 40_000..=64_511,
//!     size: Size::Ports(64),
//!     assign: Assign::Lease,
//!     pools: vec!["10.88.0.0/16".parse()?],
//!     forward: None,
//!     host: 64_512..=65_535,
//! })?;
//! assert_eq!(layout.capacity(), 383);
//! assert_eq!(layout.number_at("192.0.2.1".parse()?, 64_500), Some(0));
//!
//! let mut blocks = Blocks::new(layout);
//! let choice = blocks.choose("10.88.0.2".parse()?, None, false)?;
//! assert_eq!(choice.block.to_string(), "192.0.2.1:64448-64511");
//! blocks.take(choice.number, "10.88.0.2".parse()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blocks;
mod replan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

pub use blocks::{Blocks, Choice, NoBlock};
pub use replan::{Move, Replan};

use crate::pool::{PoolFault, Pools};
use crate::ports::PortSet;
pub use crate::special::is_private4;
use crate::special::special;

/// More addresses than these are a mistake: it bounds what a stored text can make the gateway hold.
const MOST_ADDRESSES: usize = 4096;

/// Who gets which block.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assign {
    /// A block for each lease, as long as there are any: pools may be larger than the number of blocks.
    #[default]
    Lease,
    /// A block for each address of the pools, always the same.
    Static,
}

/// How large blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The largest power of two with which every address of the pools has a block.
    Auto,
    /// So many ports, a power of two.
    Ports(u16),
}

/// Where ports are forwarded to clients. A trace must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forwards {
    /// The addresses; none stands for every address of the host.
    pub addresses: Vec<Ipv4Addr>,
    /// The ports, TCP and UDP.
    pub ports: PortSet,
}

/// What a [`Layout`] is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Addresses that clients' connections leave from, in the order in which they are used.
    pub addresses: Vec<Ipv4Addr>,
    /// Their source ports, and identifiers of ICMP echo.
    pub ports: RangeInclusive<u16>,
    /// The size of a block.
    pub size: Size,
    /// Who gets which block.
    pub assign: Assign,
    /// The IPv4 pools, in their order. Public ones are left out.
    pub pools: Vec<Ipv4Net>,
    /// Where ports are forwarded to clients.
    pub forward: Option<Forwards>,
    /// Source ports of the host's own connections.
    pub host: RangeInclusive<u16>,
}

/// Source ports of one inner address. Ordered by address, then ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The NAT address.
    pub address: Ipv4Addr,
    /// The first port.
    pub from: u16,
    /// The last port.
    pub to: u16,
}

impl Block {
    /// Whether a port of an address is in the block.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr, port: u16) -> bool {
        self.address == address && (self.from..=self.to).contains(&port)
    }

    /// Whether the blocks share a port.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.address == other.address && self.from <= other.to && other.from <= self.to
    }
}

/// As `192.0.2.1:40000-40063`.
impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}", self.address, self.from, self.to)
    }
}

/// Why there is no such layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutFault {
    /// No address was given.
    #[error("[nat] has no addresses; name at least one IPv4 address of this host")]
    NoAddress,
    /// More addresses than anybody can mean.
    #[error("[nat] has {0} addresses; at most {MOST_ADDRESSES} can be used")]
    TooManyAddresses(usize),
    /// An address is there twice.
    #[error("[nat] has the address {0} twice; name each address once")]
    AddressTwice(Ipv4Addr),
    /// Nobody can be reached by this address.
    #[error("[nat] has {0}, which is one of the {1}; name addresses that answers come back to")]
    Unusable(Ipv4Addr, &'static str),
    /// A range that is none.
    #[error("{what} {first}-{last} is no range of ports; write the lower port first, and none below 1")]
    NoRange {
        /// Which range.
        what: &'static str,
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
    /// A size of blocks that is no power of two.
    #[error("[nat] block = {0} is no power of two; write for instance 64")]
    NotPowerOfTwo(u16),
    /// The range is smaller than a block.
    #[error(
        "[nat] ports {first}-{last} hold no block of {block} ports; take a wider range or smaller blocks"
    )]
    NoBlock {
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
        /// The size of a block.
        block: u16,
    },
    /// There are more addresses that can be leased than blocks, and each was to have one.
    #[error(
        "[nat] has blocks of {block} ports for {blocks} users, and the pools have {users} addresses; {}",
        remedy(*.fits)
    )]
    TooManyUsers {
        /// How many addresses the private pools have.
        users: u128,
        /// How many blocks there are: so many users fit.
        blocks: u32,
        /// The size of a block; 1 when no size is small enough.
        block: u16,
        /// The largest block with which all users fit.
        fits: Option<u16>,
    },
    /// No pool has private addresses.
    #[error("no IPv4 pool has private addresses, so there is nothing to translate; leave [nat] out")]
    NoPool,
    /// The pools cannot be used.
    #[error(transparent)]
    Pool(#[from] PoolFault),
    /// The text is no layout.
    #[error("not the text of a NAT layout: {0}")]
    Text(String),
}

fn remedy(fits: Option<u16>) -> String {
    let fits = fits.map_or_else(String::new, |ports| format!("take blocks of {ports} ports, or "));
    format!(
        "{fits}make the pools smaller, add NAT addresses, widen the range of ports, or give blocks to leases \
         instead of addresses (a block size as a number and assign = \"lease\")"
    )
}

/// What is stored of a layout; the order of the fields is that of its canonical text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    addresses: Vec<Ipv4Addr>,
    first: u16,
    last: u16,
    block: u16,
    assign: Assign,
    pools: Vec<Ipv4Net>,
    forward: Option<Forwards>,
    host: (u16, u16),
}

/// Which ports make which block, and what else of the ports of this host a trace must know. It never changes: another
/// one takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Layout {
    fields: Fields,
    pools: Pools,
}

impl Layout {
    /// The layout that is wanted.
    ///
    /// # Errors
    /// When it cannot be: the fault says how many users fit and what to change.
    pub fn new(wanted: &Wanted) -> Result<Self, LayoutFault> {
        let Wanted { addresses, ports, size, assign, pools, forward, host } = wanted;
        let pools: Vec<Ipv4Net> = pools.iter().copied().filter(is_private4).collect();
        let forward = forward.clone().map(|mut forward| {
            forward.addresses.sort();
            forward.addresses.dedup();
            forward
        });
        let block = match *size {
            Size::Ports(block) => block,
            // With a fault that has nothing to do with the size, any size finds it.
            Size::Auto => {
                let users = pools_of(&pools)?.capacity().v4;
                largest_for(users, ports.len(), addresses.len()).unwrap_or(1)
            }
        };
        let fields = Fields {
            addresses: addresses.clone(),
            first: *ports.start(),
            last: *ports.end(),
            block,
            assign: *assign,
            pools,
            forward,
            host: (*host.start(), *host.end()),
        };
        let layout = Self::try_from(fields)?;
        if *size == Size::Auto {
            layout.for_everybody()?;
        }
        Ok(layout)
    }

    /// The layout as JSON with its fields in a fixed order: equal layouts have equal texts, and no others have.
    #[must_use]
    pub fn canonical(&self) -> String {
        // Numbers, addresses and lists of them: nothing in there can fail.
        serde_json::to_string(&self.fields).unwrap_or_default()
    }

    /// The layout with this [`canonical`](Self::canonical) text.
    ///
    /// # Errors
    /// When the text is none, or says what cannot be.
    pub fn parse(text: &str) -> Result<Self, LayoutFault> {
        let fields: Fields =
            serde_json::from_str(text).map_err(|error| LayoutFault::Text(error.to_string()))?;
        Self::try_from(fields)
    }

    /// How many blocks there are.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        // At most 4096 addresses of 65535 blocks.
        self.per_address() * self.fields.addresses.len() as u32
    }

    /// Ports of a block.
    #[must_use]
    pub fn block_size(&self) -> u16 {
        self.fields.block
    }

    /// Who gets which block.
    #[must_use]
    pub fn assign(&self) -> Assign {
        self.fields.assign
    }

    /// The NAT addresses, in the order in which they are used.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.fields.addresses
    }

    /// The source ports that blocks are made of. The lowest may be too few for a block.
    #[must_use]
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.fields.first..=self.fields.last
    }

    /// Where ports are forwarded to clients.
    #[must_use]
    pub fn forward(&self) -> Option<&Forwards> {
        self.fields.forward.as_ref()
    }

    /// Source ports of the host's own connections.
    #[must_use]
    pub fn host_ports(&self) -> RangeInclusive<u16> {
        self.fields.host.0..=self.fields.host.1
    }

    /// Whether an inner address is translated: a private one that can be leased from the pools.
    #[must_use]
    pub fn translates(&self, inner: Ipv4Addr) -> bool {
        self.pools.place4(inner).is_some()
    }

    /// The block with this number.
    #[must_use]
    pub fn block(&self, number: u32) -> Option<Block> {
        let per = self.per_address();
        let address = *self.fields.addresses.get((number / per) as usize)?;
        // Below the number of ports.
        let offset = (number % per) as u16 * self.fields.block;
        let to = self.fields.last - offset;
        Some(Block { address, from: to - (self.fields.block - 1), to })
    }

    /// The number of the block that holds a port of an address.
    #[must_use]
    pub fn number_at(&self, address: Ipv4Addr, port: u16) -> Option<u32> {
        let mut numbers = self.overlapping(Block { address, from: port, to: port });
        numbers.next()
    }

    /// The number of exactly this block.
    #[must_use]
    pub fn number_of(&self, block: Block) -> Option<u32> {
        self.number_at(block.address, block.to).filter(|&number| self.block(number) == Some(block))
    }

    /// The number that is an inner address's own with [`Assign::Static`]: its place among all that can be leased
    /// from the pools. `None` for an address outside, and beyond the last block.
    #[must_use]
    pub fn static_number(&self, inner: Ipv4Addr) -> Option<u32> {
        let number = u32::try_from(self.pools.place4(inner)?).ok()?;
        (number < self.capacity()).then_some(number)
    }

    /// What is worth knowing about a layout that works, for the operator.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let (blocks, users) = (u128::from(self.capacity()), self.pools.capacity().v4);
        let mut notes = Vec::new();
        if blocks < users {
            let s = if blocks == 1 { "client has" } else { "clients at once have" };
            notes.push(format!("{blocks} {s} a block; the pools have {users} addresses"));
        }
        let lowest = self.block(self.per_address() - 1).map_or(self.fields.first, |block| block.from);
        if self.fields.first < lowest {
            let left: PortSet = [self.fields.first..=lowest - 1].into_iter().collect();
            notes.push(format!("ports {left} make no block of {} and stay unused", self.fields.block));
        }
        notes
    }

    /// The numbers of all blocks that share a port with a range.
    fn overlapping(&self, range: Block) -> impl Iterator<Item = u32> + use<> {
        let Fields { addresses, first, last, block, .. } = &self.fields;
        let place = addresses.iter().position(|&address| address == range.address);
        let per = self.per_address();
        let numbers = place.and_then(|place| {
            let (from, to) = (range.from.max(*first), range.to.min(*last));
            (from <= to).then(|| {
                let number = |port: u16| u32::from((last - port) / block);
                let base = place as u32 * per;
                // The lowest ports may be in no block.
                base + number(to)..(base + number(from) + 1).min(base + per)
            })
        });
        numbers.into_iter().flatten()
    }

    /// Blocks of one address: at least one.
    fn per_address(&self) -> u32 {
        let Fields { first, last, block, .. } = &self.fields;
        (u32::from(last - first) + 1) / u32::from(*block)
    }

    /// Fails when there are more users than blocks.
    fn for_everybody(&self) -> Result<(), LayoutFault> {
        let (users, blocks) = (self.pools.capacity().v4, self.capacity());
        if users <= u128::from(blocks) {
            return Ok(());
        }
        let fits = largest_for(users, self.ports().len(), self.fields.addresses.len());
        Err(LayoutFault::TooManyUsers { users, blocks, block: self.fields.block, fits })
    }
}

impl TryFrom<Fields> for Layout {
    type Error = LayoutFault;

    fn try_from(fields: Fields) -> Result<Self, LayoutFault> {
        let Fields { addresses, first, last, block, assign, pools, host, .. } = &fields;
        check_addresses(addresses)?;
        for (what, (first, last)) in [("[nat] ports", (*first, *last)), ("[host] ephemeral", *host)] {
            if first == 0 || first > last {
                return Err(LayoutFault::NoRange { what, first, last });
            }
        }
        if !block.is_power_of_two() {
            return Err(LayoutFault::NotPowerOfTwo(*block));
        }
        if last - first < block - 1 {
            return Err(LayoutFault::NoBlock { first: *first, last: *last, block: *block });
        }
        let (pools, assign) = (pools_of(pools)?, *assign);
        let layout = Self { fields, pools };
        if assign == Assign::Static {
            layout.for_everybody()?;
        }
        Ok(layout)
    }
}

impl From<Layout> for Fields {
    fn from(layout: Layout) -> Self {
        layout.fields
    }
}

fn check_addresses(addresses: &[Ipv4Addr]) -> Result<(), LayoutFault> {
    match addresses.len() {
        0 => return Err(LayoutFault::NoAddress),
        many if many > MOST_ADDRESSES => return Err(LayoutFault::TooManyAddresses(many)),
        _ => {}
    }
    let mut sorted = addresses.to_vec();
    sorted.sort();
    for pair in sorted.windows(2) {
        if let [one, other] = pair
            && one == other
        {
            return Err(LayoutFault::AddressTwice(*one));
        }
    }
    let unusable =
        |address: &Ipv4Addr| Some((*address, special(&IpNet::new(address.to_owned().into(), 32).ok()?)?));
    match addresses.iter().find_map(unusable) {
        Some((address, what)) => Err(LayoutFault::Unusable(address, what)),
        None => Ok(()),
    }
}

fn pools_of(pools: &[Ipv4Net]) -> Result<Pools, LayoutFault> {
    if pools.is_empty() {
        return Err(LayoutFault::NoPool);
    }
    Ok(Pools::new(pools, &[])?)
}

/// The largest power of two of which `ports` on each of the addresses make a block for every user.
fn largest_for(users: u128, ports: usize, addresses: usize) -> Option<u16> {
    let powers = (0..u16::BITS).rev().map(|bit| 1u16 << bit);
    let mut fitting = powers.filter(|&block| (ports / usize::from(block) * addresses) as u128 >= users);
    fitting.next()
}
