//! The operating system, as far as a tunnel gateway needs it. Everything here is Linux.
//!
//! This is the one crate that may contain unsafe code: what the kernel offers and no safe wrapper covers. It
//! knows no tunnel protocol, runs no async runtime and never waits unless asked to.
//!
//! What moves packets, without an allocation per packet:
//! * [`tun`]: a network interface whose packets this process reads and writes.
//! * [`udp`]: sockets that receive and send in batches, and say which local address a datagram was sent to.
//! * [`tcp`]: listeners and the options a tunnel wants on its streams.
//! * [`pipe`]: bytes from one socket to another without a copy.
//! * [`poll`]: waiting for many descriptors; [`clock`]: cheap time for the packet path.
//! * [`capture`]: all ports of a range with a handful of sockets.
//!
//! What arranges the machine, and puts it back:
//! * [`plumbing`]: the wanted state as a value, applied as a difference and undone after a crash as well.
//!   Start here; the modules below are its tools.
//! * [`netlink`] (links, addresses, routes, rules), [`nft`], [`conntrack`], [`sysctl`], [`netns`].
//!
//! What a daemon checks and sets when it starts: [`lock`], [`limits`], [`privilege`]; and [`services`]: which ports
//! others have; [`ethtool`]: what an interface does by itself.
//!
//! Everything network happens in the network namespace of the calling thread.

#[cfg(any(test, feature = "testing"))]
pub mod allocations;
mod bpf;
pub mod capture;
pub mod clock;
pub mod conntrack;
mod errno;
pub mod ethtool;
pub mod limits;
pub mod lock;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod pipe;
pub mod plumbing;
pub mod poll;
pub mod privilege;
pub mod process;
pub mod services;
pub mod socket;
pub mod sysctl;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod tun;
pub mod udp;
