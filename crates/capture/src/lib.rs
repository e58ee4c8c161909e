//! Captured packets: read, grouped into flows, and compared.
//!
//! Bytes of a file go in; nothing here opens one. Captures come from strangers: whatever the bytes are, the
//! answer is packets or a [`CaptureFault`] with its offset, never a panic, and memory stays within a small
//! multiple of the input.
//!
//! - [`capture`]: pcap and pcapng, as an iterator of frames.
//! - [`link`]: the IP packet in a frame.
//! - [`flows`]: UDP and TCP flows with what their clients say first.
//! - [`learn`]: what tells the first packets of kinds of clients apart.
//!
//! ```
//! let empty = [
//!     [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0].as_slice(), // pcap, little-endian, version 2.4
//!     &[0; 8],
//!     &[0, 0, 4, 0, 1, 0, 0, 0], // at most 262144 bytes of a packet, Ethernet
//! ]
//! .concat();
//! let flows = adit_capture::flows::flows(&empty).unwrap();
//! assert_eq!((flows.packets, flows.flows.len()), (0, 0));
//! ```
#![forbid(unsafe_code)]

pub mod capture;
pub mod flows;
pub mod learn;
pub mod link;
mod pcapng;
#[cfg(test)]
mod testing;

pub use capture::{Capture, CaptureFault, Frame};
pub use flows::{Flow, Flows, Transport};
pub use link::Link;
