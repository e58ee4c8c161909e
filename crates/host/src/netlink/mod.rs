//! Links, addresses, routes and rules over rtnetlink, one question at a time.
//!
//! A [`Netlink`] works in the network namespace in which it was opened. Errors say what was attempted, in the
//! words of the `ip` command.

mod address;
pub(crate) mod connection;
mod link;
mod route;
mod rule;
#[cfg(test)]
mod tests;

use std::io;

use netlink_packet_core::DecodeError;
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netdevice;
use thiserror::Error;

pub use self::address::InterfaceAddress;
use self::connection::{Connection, Failure};
pub use self::link::Link;
pub use self::route::{PathMtu, Route, RouteKind, RouteTo};
pub use self::rule::{Mark, Rule};
use crate::errno::words;

/// The protocol number of routes and rules that adit makes, so that they can be told from others'.
pub const PROTOCOL: u8 = 0xad;

/// The routing table that is used when nothing else is said.
pub const MAIN_TABLE: u32 = 254;

/// Why something about links, addresses, routes or rules failed, or about elements of filter tables and
/// tracked connections.
#[derive(Debug, Error)]
pub enum NetlinkFault {
    /// The kernel refused.
    #[error("{operation}: {}{detail}", words(&io::Error::from(*errno)))]
    Refused {
        /// What was attempted.
        operation: String,
        /// Why not.
        errno: Errno,
        /// The kernel's own words in brackets, or nothing.
        detail: String,
    },
    /// There is no such interface.
    #[error("{operation}: there is no interface {interface}")]
    NoInterface {
        /// What was attempted.
        operation: String,
        /// The name that was looked for.
        interface: String,
    },
    /// The kernel's answer was not understood.
    #[error("{operation}: unexpected answer from the kernel: {problem}")]
    Answer {
        /// What was attempted.
        operation: String,
        /// What was wrong with it.
        problem: String,
    },
}

impl NetlinkFault {
    /// The thing was not there: removing it is already done.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::NoInterface { .. } => true,
            Self::Refused { errno, .. } => {
                matches!(*errno, Errno::NODEV | Errno::SRCH | Errno::NOENT | Errno::ADDRNOTAVAIL)
            }
            Self::Answer { .. } => false,
        }
    }

    /// Something of this kind is there already.
    #[must_use]
    pub fn is_existing(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::EXIST, .. })
    }
}

/// What to do when the thing to add is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Fail.
    Fail,
    /// Leave it as it is.
    Keep,
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Netlink {
    connection: Connection,
}

impl Netlink {
    /// Opens a connection to the calling thread's network namespace.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn open() -> Result<Self, NetlinkFault> {
        Ok(Self { connection: Connection::open(None)? })
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// [`NetlinkFault::NoInterface`].
    pub fn link_index(&self, interface: &str) -> Result<u32, NetlinkFault> {
        self.index_for(interface, || format!("look up {interface}"))
    }

    fn index_for(&self, interface: &str, operation: impl Fn() -> String) -> Result<u32, NetlinkFault> {
        match netdevice::name_to_index(&self.connection, interface) {
            Ok(index) => Ok(index),
            // A name that is too long is nobody's either.
            Err(Errno::NODEV | Errno::INVAL | Errno::NAMETOOLONG) => {
                Err(NetlinkFault::NoInterface { operation: operation(), interface: interface.to_owned() })
            }
            Err(errno) => Err(Failure::from(errno).about(operation())),
        }
    }

    fn dump(
        &mut self,
        request: &RouteNetlinkMessage,
        operation: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkFault> {
        self.connection.list(request, keep).map_err(|failure| failure.about(operation.to_owned()))
    }

    /// Asks for or changes one thing.
    fn request(
        &mut self,
        request: RouteNetlinkMessage,
        operation: impl FnOnce() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkFault> {
        self.connection.request(request, keep).map_err(|failure| failure.about(operation()))
    }

    /// Adds one thing; says whether it was not there before.
    fn add(
        &mut self,
        request: RouteNetlinkMessage,
        existing: IfExists,
        operation: impl FnOnce() -> String,
    ) -> Result<bool, NetlinkFault> {
        match self.connection.create(request) {
            Ok(()) => Ok(true),
            Err(Failure::Kernel { errno: Errno::EXIST, .. }) if existing == IfExists::Keep => Ok(false),
            Err(failure) => Err(failure.about(operation())),
        }
    }
}

fn keep(message: RouteNetlinkMessage, all: &mut Vec<RouteNetlinkMessage>) -> Result<(), DecodeError> {
    all.push(message);
    Ok(())
}
