//! The trail: who had which block of ports when, in records that prove each other.
//!
//! Leases, blocks, epochs, forwards, clock steps and ends form one chain in the order of their places in the journal.
//! A record that is altered, left out or put in breaks it; the gateway's row has the place and hash of a late record,
//! written with each heartbeat, so a cut-off end is found as well. As with the audit trail, whoever can write the
//! database can compute a whole new chain: a head that [`Store::verify_trail`] gave and that is kept elsewhere shows
//! that.
//!
//! **Encoding.** A record's hash is the SHA-256 of its fields, each preceded by its length in octets as a 64-bit
//! big-endian number. Numbers and times (milliseconds since 1970) are 64-bit big-endian, texts are as stored, and an
//! absent value is a length of 64 one bits with nothing behind it. The fields are `adit-trail-1`, the gateway's id,
//! the table's name, the place, those that follow, and last the 32 octets of the hash before (zeros before the first):
//! - `leases`: gateway_id, id, device_id, session_id, the session's certificate serial, inner4, inner6, started
//! - `blocks`: gateway_id, lease, epoch, the epoch's hash (32 octets, absent when there is no such epoch), number,
//!   started
//! - `epochs`: gateway_id, started, layout, digest (the SHA-256 of the layout's text, of nothing without a layout)
//! - `forwards`: gateway_id, id, device_id, protocol, port, to_port, started, expires
//! - `clock_steps`: gateway_id, at, step_ms
//! - `ends`: of, at
//!
//! A stored hash has the first four octets of the hash before in front of it: they tell a record that was changed
//! from one whose neighbour is gone.

mod verify;

use aws_lc_rs::digest;

use crate::id::GatewayId;

pub use verify::{TrailCheck, TrailFault};

/// A hash of the chain.
pub(crate) type Hash = [u8; 32];

/// The hash before the first record.
pub(crate) const FIRST: Hash = [0; 32];

/// The octets of a stored hash: a part of the one before, and the whole.
pub(crate) const STORED: usize = LINK + 32;
const LINK: usize = 4;

/// A place in the chain, and the hash of the record there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) seq: i64,
    pub(crate) hash: Hash,
}

/// A kind of record: the table it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrailTable {
    /// Inner addresses that were a device's.
    Leases,
    /// Blocks that were a lease's.
    Blocks,
    /// Layouts of blocks.
    Epochs,
    /// Ports that were handed to a device.
    Forwards,
    /// Jumps of the gateway's clock.
    ClockSteps,
    /// Ends of leases, blocks and forwards.
    Ends,
    /// The gateway's own row, which has the chain's head and base.
    Gateways,
}

impl TrailTable {
    /// The table's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leases => "leases",
            Self::Blocks => "blocks",
            Self::Epochs => "epochs",
            Self::Forwards => "forwards",
            Self::ClockSteps => "clock_steps",
            Self::Ends => "ends",
            Self::Gateways => "gateways",
        }
    }
}

/// A record's fields as they are hashed.
pub(crate) struct Encoding(Vec<u8>);

impl Encoding {
    /// Begins a record.
    pub(crate) fn new(gateway: GatewayId, table: TrailTable, seq: i64) -> Self {
        let mut encoding = Self(Vec::with_capacity(384));
        encoding.text("adit-trail-1").text(gateway.hex().as_str()).text(table.as_str()).number(seq);
        encoding
    }

    pub(crate) fn octets(&mut self, octets: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&(octets.len() as u64).to_be_bytes());
        self.0.extend_from_slice(octets);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.octets(text.as_bytes())
    }

    pub(crate) fn number(&mut self, number: i64) -> &mut Self {
        self.octets(&number.to_be_bytes())
    }

    pub(crate) fn text_or_absent(&mut self, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.text(text),
            None => self.absent(),
        }
    }

    pub(crate) fn number_or_absent(&mut self, number: Option<i64>) -> &mut Self {
        match number {
            Some(number) => self.number(number),
            None => self.absent(),
        }
    }

    pub(crate) fn absent(&mut self) -> &mut Self {
        self.0.extend_from_slice(&u64::MAX.to_be_bytes());
        self
    }

    /// The record's hash, behind the one before.
    pub(crate) fn hash(mut self, before: &Hash) -> Hash {
        self.octets(before);
        sha256(&self.0)
    }
}

/// The SHA-256 of some octets.
pub(crate) fn sha256(octets: &[u8]) -> Hash {
    let mut hash = FIRST;
    hash.copy_from_slice(digest::digest(&digest::SHA256, octets).as_ref());
    hash
}

/// The form in which a hash is stored.
pub(crate) fn stored(before: &Hash, hash: &Hash) -> [u8; STORED] {
    let mut stored = [0; STORED];
    let (link, own) = stored.split_at_mut(LINK);
    link.copy_from_slice(before.split_at(LINK).0);
    own.copy_from_slice(hash);
    stored
}

/// The part of the hash before, and the hash itself, of the stored form.
pub(crate) fn unstored(stored: &[u8; STORED]) -> (&[u8], Hash) {
    let (link, own) = stored.split_at(LINK);
    let mut hash = FIRST;
    hash.copy_from_slice(own);
    (link, hash)
}

/// Whether the stored form follows this hash.
pub(crate) fn follows(link: &[u8], before: &Hash) -> bool {
    before.starts_with(link)
}

#[cfg(test)]
mod tests;
