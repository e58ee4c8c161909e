//! The data channel: what shards do with packets of an established session.

use std::fmt;
use std::ops::Range;

use crate::DropReason;

/// Bytes to leave free before a packet that is to be sealed: room for the largest header of any channel and the
/// length prefix of a stream carrier.
pub const HEADROOM: usize = 128;
/// Bytes to leave free after a packet, for sealing (padding, tags) and for opening.
pub const TAILROOM: usize = 32;

/// What came out of an opened datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inner {
    /// An inner packet, at this range of the buffer.
    Packet(Range<usize>),
    /// An inner packet put together from several datagrams.
    Assembled(Vec<u8>),
    /// Proof of life, or part of a packet whose rest is still to come: nothing to forward.
    Nothing,
    /// The peer says that it is leaving.
    Exit,
}

/// An authenticated datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its content.
    pub inner: Inner,
    /// It is newer than all before it: only such a datagram may move the session to another path.
    pub newest: bool,
    /// How many numbers behind the newest it came; 0 when it is the newest.
    pub backtrack: u32,
}

/// Seals and opens packets of one session. Implementations are shared by threads and take no lock that another
/// session could hold; keys are swapped whole when the control machine has new ones.
pub trait DataChannel: Send + Sync + fmt::Debug {
    /// Opens the datagram in `buf[..len]` in place. `buf` is at least [`TAILROOM`] longer than `len`.
    /// `now` is in seconds of a steady clock.
    ///
    /// # Errors
    /// The reason to drop it for; nothing about the session has changed then.
    fn open(&self, buf: &mut [u8], len: usize, now: u32) -> Result<Opened, DropReason>;

    /// Seals the inner packet at `packet` of `buf` in place and returns where the datagram is. There are at
    /// least [`HEADROOM`] bytes before the packet and [`TAILROOM`] behind it.
    ///
    /// # Errors
    /// The reason to drop it for.
    fn seal(&self, buf: &mut [u8], packet: Range<usize>) -> Result<Range<usize>, DropReason>;

    /// Seals a packet that one datagram is not to hold as several, handing each datagram to `emit`. `None` when
    /// the channel does not cut packets of this length; use [`seal`](Self::seal) then.
    fn seal_cut(&self, packet: &[u8], emit: &mut dyn FnMut(&[u8])) -> Option<Result<(), DropReason>> {
        let _ = (packet, emit);
        None
    }

    /// The largest TCP segment (bytes of payload) that fits a datagram of the path, for inner IPv4 and IPv6;
    /// `None` leaves TCP alone.
    fn max_segment(&self) -> Option<(u16, u16)> {
        None
    }
}
