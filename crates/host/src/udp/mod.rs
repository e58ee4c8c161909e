//! UDP sockets for tunnels: batches in and out, and replies from the address that was dialled.
//!
//! ```no_run
//! use adit_host::udp::{RecvBatch, SendBatch, Slots, UdpOptions, UdpSocket};
//!
//! let socket = UdpSocket::bind("[::]:1194".parse()?, &UdpOptions::default())?;
//! let mut received = RecvBatch::new(64, Slots { size: 2048, headroom: 0, tailroom: 32 });
//! let mut replies = SendBatch::new(64, Slots { size: 2048, headroom: 128, tailroom: 32 });
//! socket.recv_batch(&mut received)?;
//! for datagram in received.iter_mut() {
//!     let Some(mut slot) = replies.reserve() else { break };
//!     let start = slot.headroom();
//!     slot.buffer()[start..start + 2].copy_from_slice(b"ok");
//!     slot.commit(start..start + 2, datagram.remote(), Some(datagram.local()));
//! }
//! let flushed = socket.flush(&mut replies);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Batches own their memory and are made once: receiving, sending and failing to send allocate nothing.
//!
//! A slot holds what one entry of a system call moves: a datagram, or a train of several that are equally long but
//! for the last. The kernel takes a train through its stack as one packet, which is most of what there is to be gained.
//! To send one, put the datagrams one behind the other into a slot and [commit](SendSlot::commit_as) them with their
//! length; where the kernel refuses, they go one by one. To receive them, turn on
//! [`receive_trains`](UdpOptions::receive_trains) and go through [`Received::segments`].

mod ancillary;
mod answering;
mod messages;
mod recv;
mod send;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{SendFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

pub(crate) use self::answering::Answering;
pub use self::recv::{Received, RecvBatch};
use self::send::Way;
pub use self::send::{
    Delivery, Flushed, SendBatch, SendDrops, SendFault, SendSlot, TRAIN_BYTES, TRAIN_SEGMENTS,
};
use crate::errno::uninterrupted;
pub use crate::socket::{BindFault, BufferSizes, set_mark};
use crate::socket::{
    buffer_sizes, get_int, local_address, open, set_int, set_receive_buffer, set_send_buffer,
};

/// What the kernel does about datagrams larger than the path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PathMtu {
    /// Fragment them, here or on the way (`IP_PMTUDISC_DONT`): what peers expect that know nothing of path
    /// MTU.
    Fragment,
    /// Send whatever fits the first hop and pay no heed to ICMP, which anyone can forge: the tunnel finds the
    /// path's MTU itself (`IP_PMTUDISC_PROBE`).
    #[default]
    Probe,
    /// Refuse datagrams larger than what ICMP reported for the path (`IP_PMTUDISC_DO`).
    Enforce,
}

/// How to open a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpOptions {
    /// Bytes of datagrams that may wait to be received; `None` leaves the system's default. The kernel may
    /// give less, see [`UdpSocket::buffer_sizes`]. Rule of thumb: line rate times the longest time between
    /// two receives, so 12.5 MB for 10 Gb/s and 10 ms.
    pub recv_buffer: Option<usize>,
    /// Bytes of datagrams that may wait to be sent.
    pub send_buffer: Option<usize>,
    /// Several sockets may share the address; the kernel spreads datagrams over them by their source.
    pub reuse_port: bool,
    /// Sockets that all say so may share the address (`SO_REUSEADDR`): of those that are not connected the most
    /// particular address counts, and one that is connected goes before them all.
    pub reuse_address: bool,
    /// An IPv6 socket takes no IPv4 datagrams. Meaningless for an IPv4 address.
    pub v6_only: bool,
    /// The address need not belong to this machine (yet).
    pub free_bind: bool,
    /// The address may be another machine's, and datagrams are sent from it (`IP_TRANSPARENT`): what comes back has to be
    /// routed here.
    pub transparent: bool,
    /// See [`PathMtu`].
    pub path_mtu: PathMtu,
    /// ICMP errors about sent datagrams make later calls fail (`IP_RECVERR`). Off, since anyone can forge
    /// them.
    pub receive_errors: bool,
    /// Mark of outgoing packets, see [`set_mark`].
    pub mark: Option<u32>,
    /// The kernel joins equal datagrams of one sender, and a slot receives them together (`UDP_GRO`): slots of less
    /// than [`TRAIN_SLOT`] bytes lose what does not fit. A kernel that cannot gives them one by one.
    pub receive_trains: bool,
}

/// Bytes of a slot that holds whatever the kernel joins.
pub const TRAIN_SLOT: usize = 65_535;

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            recv_buffer: None,
            send_buffer: None,
            reuse_port: false,
            reuse_address: false,
            v6_only: true,
            free_bind: false,
            transparent: false,
            path_mtu: PathMtu::Probe,
            receive_errors: false,
            mark: None,
            receive_trains: false,
        }
    }
}

/// Size of a batch's slots, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// The longest datagram a slot takes.
    pub size: usize,
    /// Free bytes before the datagram, for headers that are put in front of it.
    pub headroom: usize,
    /// Free bytes behind the longest datagram, for what is put behind it.
    pub tailroom: usize,
}

impl Slots {
    fn stride(self) -> usize {
        self.headroom + self.size + self.tailroom
    }
}

/// A bound, nonblocking UDP socket. All methods take `&self`: threads may share it, each with its own
/// batches.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    local: SocketAddr,
    /// Of a socket that captures: what it answers through.
    answering: Option<Arc<Answering>>,
    /// The kernel cuts trains into datagrams.
    trains: AtomicBool,
}

impl UdpSocket {
    /// Opens a socket on `address`.
    ///
    /// # Errors
    /// [`BindFault`], worded for the operator.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> Result<Self, BindFault> {
        let attempt = || {
            let fd = open(address.ip(), SocketType::DGRAM)?;
            configure(&fd, address.ip(), options)?;
            rustix::net::bind(&fd, &address)?;
            Self::own(fd)
        };
        attempt().map_err(|errno| BindFault::new(address, "udp", errno))
    }

    /// Opens a socket that ports are [captured](crate::capture) with: it says which address and port each datagram
    /// was sent to, and answers from there through `answering`. It is bound to `address` for want of a better place.
    pub(crate) fn capturing(
        address: SocketAddr,
        options: &UdpOptions,
        answering: Arc<Answering>,
    ) -> Result<Self, BindFault> {
        let options = UdpOptions { transparent: true, v6_only: true, ..*options };
        let mut socket = Self::bind(address, &options)?;
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
        };
        set_int(&socket.fd, level, name, 1).map_err(|errno| BindFault::new(address, "udp", errno))?;
        socket.answering = Some(answering);
        Ok(socket)
    }

    /// From now on it receives from `remote` alone, and before every socket of its port that is not connected; datagrams
    /// that came earlier still lie there. What [`forward`](Self::forward) sends goes to `remote`, and the remote's word
    /// that nobody listens fails the next call ([`io::ErrorKind::ConnectionRefused`]).
    ///
    /// # Errors
    /// When there is no way to `remote`.
    pub fn connect(&self, remote: SocketAddr) -> io::Result<()> {
        Ok(rustix::net::connect(&self.fd, &remote)?)
    }

    /// Sends what `batch` has received from `remote` on to the peer of this [connected](Self::connect) socket, each
    /// datagram with `prefix` before it, in as few calls as possible. Datagrams of others, truncated and joined ones, and
    /// all where the batch's headroom does not hold the prefix, stay behind. What cannot be sent is dropped and counted: also what
    /// finds the send buffer full, as on a full link.
    pub fn forward(&self, batch: &mut RecvBatch, remote: SocketAddr, prefix: &[u8]) -> Flushed {
        batch.forward(self.fd.as_fd(), remote, prefix)
    }

    /// Sends one datagram to the peer of this [connected](Self::connect) socket.
    ///
    /// # Errors
    /// What the system says: [`SendFault::of`] sorts it.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        uninterrupted(|| rustix::net::send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Takes over a socket that was [`bind`](Self::bind)-ed elsewhere, such as in another process.
    ///
    /// # Errors
    /// When it is not a socket on an IP address.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::own(fd)?)
    }

    fn own(fd: OwnedFd) -> rustix::io::Result<Self> {
        let local = local_address(&fd)?;
        // Linux 4.18 can, which is when it learned the option.
        let trains = AtomicBool::new(get_int(&fd, libc::SOL_UDP, libc::UDP_SEGMENT).is_ok());
        Ok(Self { fd, local, answering: None, trains })
    }

    /// The descriptor, to hand to another process.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The address it is bound to, with the port the kernel chose if it was to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether trains go to the kernel in one piece. False once it has refused one whose datagrams it took singly; that
    /// is remembered until [`set_trains`](Self::set_trains).
    #[must_use]
    pub fn trains(&self) -> bool {
        self.trains.load(Ordering::Relaxed)
    }

    /// Turns trains off, or on again, such as when another way to the peers has been found.
    pub fn set_trains(&self, on: bool) {
        self.trains.store(on, Ordering::Relaxed);
    }

    /// How much may wait, as the kernel granted it.
    ///
    /// # Errors
    /// Only for a bug: the descriptor is a socket.
    pub fn buffer_sizes(&self) -> io::Result<BufferSizes> {
        buffer_sizes(&self.fd)
    }

    /// Receives what waits, as many datagrams as the batch has slots, and returns how many there are. Never
    /// waits. What the batch held before is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing waits. With
    /// [`receive_errors`](UdpOptions::receive_errors), what ICMP reported about an earlier datagram.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.receive(self.fd.as_fd(), self.local)
    }

    /// Sends the batch, trains in one piece where the kernel takes them. A datagram that cannot be sent is dropped and counted by kind; the others go out.
    /// Never waits: when the send buffer is full, [`Flushed::blocked`] is set and the rest stays in the
    /// batch, to be flushed again or [cleared](SendBatch::clear).
    pub fn flush(&self, batch: &mut SendBatch) -> Flushed {
        let way = Way { v6_socket: self.local.is_ipv6(), trains: &self.trains };
        match &self.answering {
            Some(answering) => batch.flush_by(way, |local| answering.socket(local)),
            None => batch.flush(self.fd.as_fd(), way),
        }
    }

    /// Sends one datagram to `remote`, from `local` if given, else from what routing chooses. The port of `local`
    /// counts for sockets that [capture](crate::capture) ports; these need it.
    ///
    /// # Errors
    /// What the system says: [`SendFault::of`] sorts it.
    pub fn send_to(&self, bytes: &[u8], remote: SocketAddr, local: Option<SocketAddr>) -> io::Result<()> {
        self.send_through(bytes, remote, local, Answering::socket)
    }

    /// As [`send_to`](Self::send_to), to somebody who has proven nothing yet: no place to answer from is kept for
    /// him.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to).
    pub fn send_once(&self, bytes: &[u8], remote: SocketAddr, local: SocketAddr) -> io::Result<()> {
        self.send_through(bytes, remote, Some(local), Answering::socket_for_once)
    }

    fn send_through(
        &self,
        bytes: &[u8],
        remote: SocketAddr,
        local: Option<SocketAddr>,
        choose: impl Fn(&Answering, SocketAddr) -> io::Result<Arc<OwnedFd>>,
    ) -> io::Result<()> {
        let v6 = self.local.is_ipv6();
        match (&self.answering, local) {
            (Some(answering), Some(local)) => {
                send::one(choose(answering, local)?.as_fd(), v6, bytes, remote, None)
            }
            (Some(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
            (None, local) => send::one(self.fd.as_fd(), v6, bytes, remote, local.map(|local| local.ip())),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn configure(fd: &OwnedFd, address: IpAddr, options: &UdpOptions) -> rustix::io::Result<()> {
    // An IPv6 socket may carry IPv4 as well, and then the options of both levels count.
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(fd, options.v6_only)?;
        sockopt::set_ipv6_recvtclass(fd, true)?;
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, options.receive_errors.into())?;
        let discovery = match options.path_mtu {
            PathMtu::Fragment => Ipv6PathMtuDiscovery::DONT,
            PathMtu::Probe => Ipv6PathMtuDiscovery::PROBE,
            PathMtu::Enforce => Ipv6PathMtuDiscovery::DO,
        };
        sockopt::set_ipv6_mtu_discover(fd, discovery)?;
    } else {
        set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    }
    sockopt::set_ip_recvtos(fd, true)?;
    set_int(fd, libc::IPPROTO_IP, libc::IP_RECVERR, options.receive_errors.into())?;
    let discovery = match options.path_mtu {
        PathMtu::Fragment => Ipv4PathMtuDiscovery::DONT,
        PathMtu::Probe => Ipv4PathMtuDiscovery::PROBE,
        PathMtu::Enforce => Ipv4PathMtuDiscovery::DO,
    };
    sockopt::set_ip_mtu_discover(fd, discovery)?;
    if options.free_bind {
        // For IPv6 sockets too: the kernel keeps one flag for both.
        sockopt::set_ip_freebind(fd, true)?;
    }
    if options.transparent {
        // Likewise.
        set_int(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1)?;
    }
    if options.reuse_address {
        sockopt::set_socket_reuseaddr(fd, true)?;
    }
    if options.reuse_port {
        sockopt::set_socket_reuseport(fd, true)?;
    }
    if options.receive_trains {
        match set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1) {
            // Before Linux 5.0.
            Ok(()) | Err(Errno::NOPROTOOPT) => {}
            Err(errno) => return Err(errno),
        }
    }
    if let Some(bytes) = options.recv_buffer {
        set_receive_buffer(fd, bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        set_send_buffer(fd, bytes)?;
    }
    match options.mark {
        Some(mark) => set_int(fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed()),
        None => Ok(()),
    }
}
