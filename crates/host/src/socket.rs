//! What UDP and TCP sockets have in common: opening, binding, and the options that no safe wrapper covers.
#![expect(unsafe_code, reason = "setsockopt for the options that rustix lacks")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::c_int;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use crate::errno::words;

/// Why a socket could not be opened on an address. Fields hold the address and "udp" or "tcp".
#[derive(Debug, Error)]
pub enum BindFault {
    /// Another socket has the address.
    #[error("{address}/{protocol} is in use by another program: stop it or leave the port out")]
    InUse {
        /// What was asked for.
        address: SocketAddr,
        /// "udp" or "tcp".
        protocol: &'static str,
    },
    /// No interface has the address.
    #[error(
        "{address}/{protocol}: {} is not an address of this machine: add it to an interface or correct it",
        address.ip()
    )]
    NotLocal {
        /// What was asked for.
        address: SocketAddr,
        /// "udp" or "tcp".
        protocol: &'static str,
    },
    /// The port, or an option, is for privileged processes only.
    #[error("{address}/{protocol}: not permitted: this needs root, CAP_NET_ADMIN or CAP_NET_BIND_SERVICE")]
    NotPermitted {
        /// What was asked for.
        address: SocketAddr,
        /// "udp" or "tcp".
        protocol: &'static str,
    },
    /// Anything else.
    #[error("{address}/{protocol}: {}", words(source))]
    Io {
        /// What was asked for.
        address: SocketAddr,
        /// "udp" or "tcp".
        protocol: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BindFault {
    pub(crate) fn new(address: SocketAddr, protocol: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::InUse { address, protocol },
            Errno::ADDRNOTAVAIL => Self::NotLocal { address, protocol },
            Errno::ACCESS | Errno::PERM => Self::NotPermitted { address, protocol },
            errno => Self::Io { address, protocol, source: errno.into() },
        }
    }
}

/// Sets the mark that routing rules and nftables see on packets of this socket (`SO_MARK`).
///
/// # Errors
/// Without `CAP_NET_ADMIN`.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    Ok(set_int(socket, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())?)
}

/// Lets the socket send and receive by this interface only (`SO_BINDTODEVICE`), whatever its routes are.
///
/// # Errors
/// When there is no such interface.
pub fn set_interface(socket: impl AsFd, interface: &str) -> io::Result<()> {
    let (name, length) = (interface.as_ptr(), interface.len() as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `name` points to `length` bytes that live for the whole call; the kernel wants no zero at the end.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.cast(), length) };
    if result == 0 { Ok(()) } else { Err(last_errno().into()) }
}

/// The largest receive and send buffer in bytes that the kernel lets datagrams or segments take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferSizes {
    /// Bytes that may wait to be read.
    pub receive: usize,
    /// Bytes that may wait to be sent.
    pub send: usize,
}

/// The sizes as they are, in the unit they are asked for: the kernel's doubled figures, halved.
///
/// # Errors
/// Not for a socket.
pub fn buffer_sizes(socket: impl AsFd) -> io::Result<BufferSizes> {
    Ok(BufferSizes {
        receive: sockopt::socket_recv_buffer_size(&socket)? / 2,
        send: sockopt::socket_send_buffer_size(&socket)? / 2,
    })
}

/// Asks for a receive buffer of `bytes`: past `net.core.rmem_max` with `CAP_NET_ADMIN`, else up to it.
pub(crate) fn set_receive_buffer(socket: impl AsFd, bytes: usize) -> rustix::io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(&socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, bytes))
}

/// Asks for a send buffer of `bytes`: past `net.core.wmem_max` with `CAP_NET_ADMIN`, else up to it.
pub(crate) fn set_send_buffer(socket: impl AsFd, bytes: usize) -> rustix::io::Result<()> {
    sockopt::set_socket_send_buffer_size_force(&socket, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, bytes))
}

/// A nonblocking close-on-exec socket of the address's family.
pub(crate) fn open(address: IpAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// The address a socket is bound to.
pub(crate) fn local_address(socket: impl AsFd) -> rustix::io::Result<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(socket)?)
}

/// Sets an option whose value is an `int`.
pub(crate) fn set_int(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> rustix::io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    let value: *const c_int = &raw const value;
    // SAFETY: `value` points to a live `int` for the whole call, and `length` is its size.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.cast(), length) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Reads an option whose value is an `int`.
pub(crate) fn get_int(socket: impl AsFd, level: c_int, name: c_int) -> rustix::io::Result<c_int> {
    let (mut value, mut length): (c_int, _) = (0, size_of::<c_int>() as libc::socklen_t);
    let (to, fd) = (&raw mut value, socket.as_fd().as_raw_fd());
    // SAFETY: `to` points to a live `int`, `length` is its size, and both live through the call.
    let result = unsafe { libc::getsockopt(fd, level, name, to.cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(last_errno()) }
}

/// The error of the libc call that just failed.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Lets the socket receive nothing: a filter drops whatever comes.
pub(crate) fn drop_everything(socket: impl AsFd) -> rustix::io::Result<()> {
    // BPF_RET | BPF_K: of every packet, so many bytes are kept.
    let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    attach(socket, libc::SO_ATTACH_FILTER, &mut code)
}

/// Chooses among the sockets of the group (`SO_REUSEPORT`) by a classic BPF program: what it returns is the number of the
/// socket, in the order in which they were bound; any other number leaves the choice to the kernel.
pub(crate) fn choose_by(socket: impl AsFd, code: &mut [libc::sock_filter]) -> rustix::io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, code)
}

/// Attaches a classic BPF program.
fn attach(socket: impl AsFd, option: c_int, code: &mut [libc::sock_filter]) -> rustix::io::Result<()> {
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    let (pointer, length) = (&raw const program, size_of::<libc::sock_fprog>() as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `program` says how many instructions there are and where; it and they live for the whole call.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, pointer.cast(), length) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
