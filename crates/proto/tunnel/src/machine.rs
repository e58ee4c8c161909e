//! The shape of a control machine.

use std::time::Instant;

use crate::DropReason;

/// Where randomness comes from. Seed it in tests and a failing run can be repeated.
pub trait Entropy: Send {
    /// Fills `out` with random bytes fit for keys.
    fn fill(&mut self, out: &mut [u8]);
}

/// What went wrong with input, and how to react.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// The input is dropped and counted; the machine is as before.
    #[error("dropped: {}", .0.name())]
    Dropped(DropReason),
    /// The peer did something that ends the session.
    #[error("{0}")]
    Fatal(String),
}

impl From<DropReason> for PeerFault {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

/// A protocol machine: input and time in, datagrams and events out.
///
/// After each call of `handle_datagram`, `handle_timeout` or a method that changes the machine, call
/// `poll_transmit` and `poll_event` until they return `None`, then wait until `poll_timeout` or the next input.
pub trait Machine {
    /// What the machine tells its owner.
    type Event;

    /// Takes one datagram from the peer.
    ///
    /// # Errors
    /// [`PeerFault::Dropped`] is to be counted; after [`PeerFault::Fatal`] the events say that it is over.
    fn handle_datagram(&mut self, datagram: &[u8], now: Instant) -> Result<(), PeerFault>;

    /// Does what is due at `now`.
    fn handle_timeout(&mut self, now: Instant);

    /// Writes the next datagram for the peer into `out` (cleared first); `None` when there is none now.
    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<()>;

    /// The next event.
    fn poll_event(&mut self) -> Option<Self::Event>;

    /// When to call `handle_timeout`, and what for.
    fn poll_timeout(&self) -> Option<(Instant, &'static str)>;
}
