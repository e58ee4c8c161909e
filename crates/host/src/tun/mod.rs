//! TUN interfaces: a network interface whose packets this process reads and writes.
#![expect(unsafe_code, reason = "TUN ioctls, which no safe wrapper covers")]

mod steering;

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_short};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::steering::queue_of;
use crate::errno::{uninterrupted, words};
use crate::socket::last_errno;

/// The longest name of an interface, in bytes.
pub const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// Bytes of the virtio network header before each packet, where there is one.
pub const VNET_HEADER_LEN: usize = 10;

/// Room for whatever an interface with offloads gives in one read: header and the longest superpacket.
pub const SUPERPACKET_LEN: usize = VNET_HEADER_LEN + 65_535;

const DEVICE: &str = "/dev/net/tun";

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunOptions {
    /// Name of the interface, at most [`MAX_NAME_LEN`] bytes. `%d` in it becomes the first free number.
    pub name: String,
    /// The interface has several queues: every [`Tun::open`] with the same name adds one.
    pub multi_queue: bool,
    /// Every packet carries a virtio network header of [`VNET_HEADER_LEN`] bytes in front. No offload is turned on by
    /// this.
    pub vnet_header: bool,
    /// The kernel leaves checksums and segmentation to this process, as far as it can: see [`Tun::offloads`]. This
    /// implies the header. All queues of an interface have to say the same.
    pub offloads: bool,
}

impl TunOptions {
    /// One queue, plain packets.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), multi_queue: false, vnet_header: false, offloads: false }
    }
}

/// Why there is no TUN interface.
#[derive(Debug, Error)]
pub enum TunFault {
    /// The kernel has no TUN driver, or this container no device.
    #[error("{DEVICE} does not exist: load the tun module or give the container {DEVICE}")]
    NoDevice,
    /// Neither root nor `CAP_NET_ADMIN`.
    #[error("opening the interface {0} is not permitted: it needs root or CAP_NET_ADMIN")]
    NotPermitted(String),
    /// An interface of this name exists and is not ours to attach to.
    #[error("the interface name {0} is in use: choose another name or remove the interface")]
    NameInUse(String),
    /// Longer than [`MAX_NAME_LEN`].
    #[error("the interface name {0} is too long: {MAX_NAME_LEN} bytes are the most")]
    NameTooLong(String),
    /// Not a name for an interface.
    #[error("{0:?} is no name for an interface: letters, digits, '-' and '_' are safe")]
    BadName(String),
    /// Anything else.
    #[error("opening the interface {name}: {}", words(source))]
    Io {
        /// The name that was asked for.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// One queue of a TUN interface. The interface disappears with its last queue.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    index: u32,
    offloads: Offloads,
}

impl Tun {
    /// Opens the interface, which is created when it does not exist, in the calling thread's network
    /// namespace. It is down and has no address. Reading and writing never block.
    ///
    /// # Errors
    /// [`TunFault`], worded for the operator.
    pub fn open(options: &TunOptions) -> Result<Self, TunFault> {
        let name = check_name(&options.name)?;
        let fd = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => TunFault::NoDevice,
            Errno::ACCESS | Errno::PERM => TunFault::NotPermitted(options.name.clone()),
            errno => TunFault::Io { name: options.name.clone(), source: errno.into() },
        })?;
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
        if options.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        if options.vnet_header || options.offloads {
            flags |= libc::IFF_VNET_HDR;
        }
        let name = attach(&fd, name, flags).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS => TunFault::NotPermitted(options.name.clone()),
            // Not a TUN interface, or one with other queues.
            Errno::INVAL | Errno::BUSY | Errno::EXIST => TunFault::NameInUse(options.name.clone()),
            errno => TunFault::Io { name: options.name.clone(), source: errno.into() },
        })?;
        let fault = |errno: Errno| TunFault::Io { name: name.clone(), source: errno.into() };
        // Offloads belong to the device, not the descriptor: a device that outlived its maker keeps the old
        // ones.
        let steps = if options.offloads { STEPS } else { &[Offloads::NONE] };
        let offloads = negotiate(steps, |flags| set_offloads(&fd, flags)).map_err(fault)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(fault)?;
        let index = netdevice::name_to_index(&socket, &name).map_err(fault)?;
        Ok(Self { fd, name, index, offloads })
    }

    /// Puts together what [`into_parts`](Self::into_parts) took apart, in this or another process. Whether offloads are
    /// on is not known of it until [`negotiate_offloads`](Self::negotiate_offloads).
    #[must_use]
    pub fn from_parts(fd: OwnedFd, name: String, index: u32) -> Self {
        Self { fd, name, index, offloads: Offloads::NONE }
    }

    /// Turns on what the kernel can leave to this process, for an interface with a virtio header; without one, its
    /// packets would lose their checksums. Any owner of a queue may do so.
    ///
    /// # Errors
    /// When the interface has gone.
    pub fn negotiate_offloads(&mut self) -> io::Result<Offloads> {
        self.offloads = negotiate(STEPS, |flags| set_offloads(&self.fd, flags))?;
        Ok(self.offloads)
    }

    /// What the kernel leaves to this process, and takes from it.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// From now on, packets come out of the queue that [`queue_of`] their destination says (Linux 4.16).
    ///
    /// # Errors
    /// Without `CAP_BPF` and `CAP_NET_ADMIN`, or when the kernel cannot: then it chooses by flow.
    pub fn steer(&self) -> io::Result<()> {
        let program = steering::load()?;
        let number = program.as_raw_fd();
        let argument: *const c_int = &raw const number;
        // SAFETY: TUNSETSTEERINGEBPF reads one `int`, which lives through the call.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETSTEERINGEBPF as _, argument) };
        if result == 0 { Ok(()) } else { Err(last_errno().into()) }
    }

    /// Descriptor, name and index, to hand to another process.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, String, u32) {
        (self.fd, self.name, self.index)
    }

    /// Name of the interface when it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Index of the interface.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Reads the next packet the host sends into the interface, with the virtio header before it if there is one, and
    /// returns the length of both. What does not fit into `buffer` is cut off: with offloads, [`SUPERPACKET_LEN`] is
    /// enough.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; `EIO` while the interface is down.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(uninterrupted(|| rustix::io::read(&self.fd, &mut *buffer))?)
    }

    /// The same into several buffers, each filled before the next, such as one for the header.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(uninterrupted(|| rustix::io::readv(&self.fd, buffers))?)
    }

    /// Gives the host a packet, as if it came in by the interface, and returns its length. On an interface with a virtio
    /// header it stands first, and the packet may be a superpacket as far as [`offloads`](Self::offloads) go.
    ///
    /// # Errors
    /// `EINVAL` when it is no IP packet; `EIO` while the interface is down.
    pub fn send(&self, packet: &[u8]) -> io::Result<usize> {
        Ok(uninterrupted(|| rustix::io::write(&self.fd, packet))?)
    }

    /// The same from several parts that lie apart, such as virtio header, packet headers and payloads; at most 1024.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(uninterrupted(|| rustix::io::writev(&self.fd, parts))?)
    }
}

/// What the kernel leaves to the process behind a TUN interface: it hands over superpackets and incomplete checksums of
/// these kinds, and superpackets of these kinds may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Offloads {
    /// Checksums of TCP and UDP. All others need this.
    pub checksum: bool,
    /// Segmentation of TCP over IPv4 and over IPv6.
    pub tcp: bool,
    /// Also where the first segment alone has CWR set (RFC 3168 §6.1.2).
    pub tcp_ecn: bool,
    /// Segmentation of UDP datagrams of equal size (Linux 6.2).
    pub udp: bool,
}

impl Offloads {
    /// Every packet is complete.
    pub const NONE: Self = Self { checksum: false, tcp: false, tcp_ecn: false, udp: false };

    /// As TUNSETOFFLOAD wants them (linux/if_tun.h).
    fn flags(self) -> libc::c_ulong {
        let flag = |on: bool, flags: libc::c_uint| if on { libc::c_ulong::from(flags) } else { 0 };
        flag(self.checksum, libc::TUN_F_CSUM)
            | flag(self.tcp, libc::TUN_F_TSO4 | libc::TUN_F_TSO6)
            | flag(self.tcp_ecn, libc::TUN_F_TSO_ECN)
            | flag(self.udp, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }
}

impl fmt::Display for Offloads {
    /// For the operator, such as "checksums, TCP segments (ECN too), UDP segments".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.checksum {
            return f.write_str("none");
        }
        f.write_str("checksums")?;
        match (self.tcp, self.tcp_ecn) {
            (true, true) => f.write_str(", TCP segments (ECN too)")?,
            (true, false) => f.write_str(", TCP segments")?,
            (false, _) => {}
        }
        if self.udp { f.write_str(", UDP segments") } else { Ok(()) }
    }
}

/// From everything to nothing.
const STEPS: &[Offloads] = &[
    Offloads { checksum: true, tcp: true, tcp_ecn: true, udp: true },
    Offloads { checksum: true, tcp: true, tcp_ecn: true, udp: false },
    Offloads { checksum: true, tcp: true, tcp_ecn: false, udp: false },
    Offloads { checksum: true, tcp: false, tcp_ecn: false, udp: false },
    Offloads::NONE,
];

/// The first of `steps` that the kernel takes.
fn negotiate(
    steps: &[Offloads],
    mut attempt: impl FnMut(libc::c_ulong) -> Result<(), Errno>,
) -> Result<Offloads, Errno> {
    for step in steps {
        match attempt(step.flags()) {
            Ok(()) => return Ok(*step),
            // A flag that this kernel does not know.
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::INVAL)
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The name as the kernel wants it: padded with at least one zero byte.
pub(crate) fn check_name(name: &str) -> Result<[u8; libc::IFNAMSIZ], TunFault> {
    if name.len() > MAX_NAME_LEN {
        return Err(TunFault::NameTooLong(name.to_owned()));
    }
    let odd =
        |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte.is_ascii_control();
    if name.is_empty() || name == "." || name == ".." || name.bytes().any(odd) {
        return Err(TunFault::BadName(name.to_owned()));
    }
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Ok(padded)
}

/// `struct ifreq` as TUNSETIFF uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() >= size_of::<libc::ifreq>());

/// Makes `fd` a queue of the interface and returns the interface's name.
fn attach(fd: &OwnedFd, name: [u8; libc::IFNAMSIZ], flags: c_int) -> Result<String, Errno> {
    // The flags' values fit 16 bits; the field is signed for history's sake.
    let mut request = InterfaceRequest { name, flags: flags as c_short, rest: [0; 22] };
    let argument: *mut InterfaceRequest = &raw mut request;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`; `request` is laid out like it, is no smaller,
    // and lives through the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, argument) };
    if result != 0 {
        return Err(last_errno());
    }
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn set_offloads(fd: &OwnedFd, offloads: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself and touches no memory.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        assert_eq!(&check_name("adit0").unwrap()[..6], b"adit0\0");
        assert_eq!(check_name("exactly15bytes!").unwrap()[15], 0);

        let fault = check_name("sixteen-bytes-xx").unwrap_err();
        assert_eq!(
            fault.to_string(),
            "the interface name sixteen-bytes-xx is too long: 15 bytes are the most"
        );
        for bad in ["", ".", "..", "a/b", "a b", "a\nb", "eth0:1"] {
            assert!(matches!(check_name(bad), Err(TunFault::BadName(_))), "{bad:?}");
        }
    }

    #[test]
    fn offloads_fall_back_step_by_step() {
        let old_kernel = |known: libc::c_uint| {
            negotiate(STEPS, |flags| {
                if flags & !libc::c_ulong::from(known) == 0 { Ok(()) } else { Err(Errno::INVAL) }
            })
        };
        let said = |known| old_kernel(known).unwrap().to_string();
        assert_eq!(said(0x7f), "checksums, TCP segments (ECN too), UDP segments");
        assert_eq!(said(0x0f), "checksums, TCP segments (ECN too)");
        assert_eq!(said(0x07), "checksums, TCP segments");
        assert_eq!((said(0x03), said(0)), ("checksums".to_owned(), "none".to_owned()));
        assert_eq!(negotiate(STEPS, |_| Err(Errno::NODEV)), Err(Errno::NODEV));
    }
}
