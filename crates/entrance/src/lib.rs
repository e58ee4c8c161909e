//! What comes to a port before anyone knows whose it is, and what goes from there to foreign back ends.
//!
//! [`Reception`] accepts TCP connections on threads of its own, reads their first bytes and asks a [`Classify`] whose
//! they are. It hands over what belongs to this process and relays the rest to a [`Backend`] without copying it.
//! [`DatagramRelays`] does the latter for UDP: whoever receives a first datagram of a foreign protocol gives it to them,
//! and the kernel gives them the rest of the flow.
//!
//! Strangers cost little: a connection that is not decided takes at most 4 KiB of memory besides the kernel's, ends in
//! time however slowly it sends, and there are so many of them and no more, of each network and altogether.
#![forbid(unsafe_code)]

mod backend;
mod budget;
mod classify;
mod counters;
mod datagrams;
mod deadlines;
mod reception;
mod relay;
mod tools;
mod transparent;
mod worker;

#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendCounts, BackendOptions, ProxyMode, Status};
pub use classify::{Classify, Flow, Judgement};
pub use counters::Counts;
pub use datagrams::{DatagramCounts, DatagramOptions, DatagramRelays};
pub use reception::{Event, Events, Options, Reception, Unknown};
pub use transparent::{TransparentRoute, host_state};
