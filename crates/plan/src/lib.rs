//! Pure decisions of the gateway: what may be given to whom.
//!
//! Nothing here reads a clock, a file or a socket, so each decision can be tested against a model and asked
//! again later with the same answer. The layers above carry the decisions out and write them down.
//!
//! - [`ports`]: sets of ports; [`port_plan`]: who uses which.
//! - [`pool`]: the inner address pools and the choice of the address a device leases.
//! - [`nat`]: which source ports each inner address has when it is translated.
//! - [`rules`]: the filter table, as text.
//! - [`pattern`]: what first packets of a kind have in common, in the languages that can tell them by it.
//! - [`export`]: the plan as rules for a host without adit.
//! - [`eduvpn`]: every inner address with its source ports, as a file of iptables-restore, and such files read.
//! - [`prefix`]: which networks may stand behind a device.
#![forbid(unsafe_code)]

mod book;
pub mod eduvpn;
pub mod export;
pub mod nat;
pub mod pattern;
pub mod pool;
pub mod port_plan;
pub mod ports;
pub mod prefix;
pub mod rules;
mod special;
