//! Links, addresses, routes and rules over rtnetlink, one question at a time.
//!
//! A [`Netlink`] works in the network namespace in which it was opened. Errors say what was attempted, in the
//! words of the `ip` command.

mod address;
mod link;
mod route;
mod rule;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};
use thiserror::Error;

pub use self::address::InterfaceAddress;
pub use self::link::Link;
pub use self::route::{PathMtu, Route, RouteKind, RouteTo};
pub use self::rule::{Mark, Rule};
use crate::errno::{uninterrupted, words};
use crate::socket::set_int;

/// The protocol number of routes and rules that adit makes, so that they can be told from others'.
pub const PROTOCOL: u8 = 0xad;

/// The routing table that is used when nothing else is said.
pub const MAIN_TABLE: u32 = 254;

/// Why something about links, addresses, routes or rules failed.
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
    socket: OwnedFd,
    sequence: u32,
}

/// What the kernel said to a request.
enum Failure {
    Kernel {
        errno: Errno,
        detail: String,
    },
    Answer(String),
    /// What was listed changed meanwhile.
    Interrupted,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Kernel { errno, detail: String::new() }
    }
}

impl Failure {
    fn about(self, operation: String) -> NetlinkFault {
        match self {
            Self::Kernel { errno, detail } => NetlinkFault::Refused { operation, errno, detail },
            Self::Answer(problem) => NetlinkFault::Answer { operation, problem },
            Self::Interrupted => {
                NetlinkFault::Answer { operation, problem: "it kept changing while it was read".to_owned() }
            }
        }
    }
}

impl Netlink {
    /// Opens a connection to the calling thread's network namespace.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn open() -> Result<Self, NetlinkFault> {
        let connect = || {
            // No protocol is protocol 0, which is rtnetlink.
            let socket = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // Error messages with the kernel's words, and without a copy of the request. Both are a courtesy.
            let _ = set_int(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
            let _ = set_int(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
            Ok(socket)
        };
        let socket = connect()
            .map_err(|errno: Errno| Failure::from(errno).about("open a netlink socket".to_owned()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// [`NetlinkFault::NoInterface`].
    pub fn link_index(&self, interface: &str) -> Result<u32, NetlinkFault> {
        self.index_for(interface, || format!("look up {interface}"))
    }

    fn index_for(&self, interface: &str, operation: impl Fn() -> String) -> Result<u32, NetlinkFault> {
        match netdevice::name_to_index(&self.socket, interface) {
            Ok(index) => Ok(index),
            // A name that is too long is nobody's either.
            Err(Errno::NODEV | Errno::INVAL | Errno::NAMETOOLONG) => {
                Err(NetlinkFault::NoInterface { operation: operation(), interface: interface.to_owned() })
            }
            Err(errno) => Err(Failure::from(errno).about(operation())),
        }
    }

    /// Lists things; starts again when they change meanwhile.
    fn dump(
        &mut self,
        request: &RouteNetlinkMessage,
        operation: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkFault> {
        let mut attempts = 0;
        loop {
            match self.exchange(request.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Err(Failure::Interrupted) if attempts < 10 => attempts += 1,
                result => return result.map_err(|failure| failure.about(operation.to_owned())),
            }
        }
    }

    /// Asks for or changes one thing.
    fn request(
        &mut self,
        request: RouteNetlinkMessage,
        operation: impl FnOnce() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkFault> {
        self.exchange(request, NLM_F_REQUEST | NLM_F_ACK).map_err(|failure| failure.about(operation()))
    }

    /// Adds one thing; says whether it was not there before.
    fn add(
        &mut self,
        request: RouteNetlinkMessage,
        existing: IfExists,
        operation: impl FnOnce() -> String,
    ) -> Result<bool, NetlinkFault> {
        match self.exchange(request, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => Ok(true),
            Err(Failure::Kernel { errno: Errno::EXIST, .. }) if existing == IfExists::Keep => Ok(false),
            Err(failure) => Err(failure.about(operation())),
        }
    }

    /// Sends a request and gathers the answers up to the one that ends them.
    fn exchange(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        uninterrupted(|| rustix::net::send(&self.socket, &bytes, SendFlags::empty()))?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = self.receive()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| Failure::Answer(error.to_string()))?;
                let length = (answer.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    // The end of an exchange that was given up.
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) => return finish(&error, answers),
                    NetlinkPayload::Done(_) if interrupted => return Err(Failure::Interrupted),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(Errno::from_raw_os_error(-done.code).into());
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }

    /// One datagram from the kernel, however long.
    fn receive(&self) -> Result<Vec<u8>, Errno> {
        let mut buffer = Vec::new();
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let (_, length) = uninterrupted(|| rustix::net::recv(&self.socket, &mut [0; 0][..], peek))?;
        buffer.resize(length, 0);
        let (_, length) =
            uninterrupted(|| rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()))?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// Ends an exchange with an acknowledgement or an error.
fn finish(
    error: &ErrorMessage,
    answers: Vec<RouteNetlinkMessage>,
) -> Result<Vec<RouteNetlinkMessage>, Failure> {
    match error.code {
        None => Ok(answers),
        Some(code) => Err(Failure::Kernel {
            errno: Errno::from_raw_os_error(code.get().saturating_abs()),
            detail: kernel_words(&error.header).map(|words| format!(" ({words})")).unwrap_or_default(),
        }),
    }
}

/// The kernel's explanation behind the request's header in an error message (`NLMSGERR_ATTR_MSG`).
fn kernel_words(after_code: &[u8]) -> Option<String> {
    const REQUEST_HEADER: usize = 16;
    const MESSAGE: u16 = 1;
    let attributes = NlasIterator::new(after_code.get(REQUEST_HEADER..)?);
    let message = attributes.flatten().find(|attribute| attribute.kind() == MESSAGE)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches(['\0', '.']).to_owned()).filter(|text| !text.is_empty())
}
