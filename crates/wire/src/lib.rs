//! Header views and builders: pure functions over bytes.
//!
//! A view checks a header once and then answers questions about it; a builder writes a packet into the
//! caller's buffer and says how long it became. Nothing here reads a clock, a socket or a file, allocates, or
//! panics on any input, so strangers' bytes may go straight in.
//!
//! * [`ip`]: [`ip::Packet`], IPv4 and IPv6 behind one type, with IPv6 extension headers walked.
//! * [`checksum`]: the Internet checksum: sums, pseudo headers, incremental update.
//! * [`tcp`], [`udp`], [`icmp`]: views of what an IP packet carries, the MSS clamp, ICMP errors.
//! * [`segment`], [`coalesce`]: superpackets of a tun with a [`virtio`] header, cut and put together.
//! * [`proxy`]: the PROXY protocol, read and written.
//!
//! ```
//! use adit_wire::{ip::{self, Packet}, udp};
//!
//! let mut buffer = [0; 64];
//! let from = "192.0.2.1:1194".parse().unwrap();
//! let to = "198.51.100.7:40000".parse().unwrap();
//! let length = udp::build(&mut buffer, from, to, b"hello").unwrap();
//!
//! let packet = Packet::parse(&buffer[..length]).unwrap();
//! assert_eq!(packet.protocol(), ip::protocol::UDP);
//! assert_eq!(udp::Datagram::parse(packet.transport()).unwrap().payload(), b"hello");
//! ```
#![forbid(unsafe_code)]

mod bytes;
pub mod checksum;
pub mod coalesce;
pub mod icmp;
pub mod ip;
mod malformed;
pub mod proxy;
pub mod segment;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod udp;
pub mod virtio;

pub use malformed::Malformed;
