//! What every tunnel protocol shares.
//!
//! * [`Machine`]: the shape of a control machine that reads no clock, no socket and no random source.
//! * [`DataChannel`]: the shape of a data channel that shards share: sealing and opening in a caller's buffer.
//! * [`aead`], [`replay`], [`counter`]: the parts data channels are built from.
//! * [`drops`]: every reason a packet can be dropped for, with counters.
//! * `testing`: two machines, a virtual clock and a bad link (feature `testing`).
#![forbid(unsafe_code)]

pub mod aead;
pub mod channel;
pub mod counter;
pub mod drops;
pub mod machine;
pub mod replay;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use channel::{DataChannel, HEADROOM, Inner, Opened, TAILROOM};
pub use drops::{DropReason, Drops};
pub use machine::{Entropy, Machine, PeerFault};
