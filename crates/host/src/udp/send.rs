//! Sending in batches.
#![expect(unsafe_code, reason = "sendmmsg, which no safe wrapper covers")]

use std::fmt;
use std::io;
use std::iter::zip;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::Slots;
use super::ancillary::{Control, Name};
use super::messages::{Address, Envelope, Messages, Part};
use crate::errno::{self, uninterrupted};
use crate::socket::last_errno;

/// Datagrams waiting to be sent. Made once, used again and again.
pub struct SendBatch {
    slots: Slots,
    storage: Box<[u8]>,
    messages: Messages,
    /// One entry for each committed slot, in order.
    queued: Vec<Outgoing>,
    /// How many of them are dealt with already.
    done: usize,
}

#[derive(Debug, Clone)]
struct Outgoing {
    range: Range<usize>,
    remote: SocketAddr,
    local: Option<SocketAddr>,
}

impl SendBatch {
    /// Room for `count` slots. The memory for all of them is taken at once.
    #[must_use]
    pub fn new(count: usize, slots: Slots) -> Self {
        let slots = Slots { size: slots.size.max(1), ..slots };
        Self {
            slots,
            storage: vec![0; slots.stride() * count].into(),
            messages: Messages::new(count),
            queued: Vec::with_capacity(count),
            done: 0,
        }
    }

    /// The next free slot; `None` when the batch has to be flushed first. A slot that is dropped without
    /// [`SendSlot::commit`] stays free.
    pub fn reserve(&mut self) -> Option<SendSlot<'_>> {
        let buffer = self.storage.chunks_exact_mut(self.slots.stride()).nth(self.queued.len())?;
        Some(SendSlot { buffer, slots: self.slots, queued: &mut self.queued })
    }

    /// How many datagrams wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queued.len() - self.done
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what waits; returns how many datagrams that were.
    pub fn clear(&mut self) -> usize {
        let waiting = self.len();
        self.queued.clear();
        self.done = 0;
        waiting
    }

    /// Sends what waits through one socket.
    pub(super) fn flush(&mut self, fd: BorrowedFd<'_>, v6_socket: bool) -> Flushed {
        let mut flushed = Flushed::default();
        let count = self.prepare(v6_socket, true);
        let at = self.transmit(fd, 0..count, &mut flushed);
        self.done += at;
        if !flushed.blocked {
            self.clear();
        }
        flushed
    }

    /// Sends what waits, each datagram through the socket for the address and port that it leaves from. One whose
    /// socket is full or cannot be made is dropped, so that it does not hold up the others.
    pub(super) fn flush_by(
        &mut self,
        v6_socket: bool,
        socket_for: impl Fn(SocketAddr) -> io::Result<Arc<OwnedFd>>,
    ) -> Flushed {
        let mut flushed = Flushed::default();
        let count = self.prepare(v6_socket, false);
        let mut at = 0;
        while let Some(first) = self.queued.get(self.done + at).filter(|_| at < count) {
            let local = first.local;
            let run = self.queued.iter().skip(self.done + at).take_while(|next| next.local == local).count();
            let end = (at + run).min(count);
            let sent = match local.map(&socket_for) {
                Some(Ok(socket)) => self.transmit(socket.as_fd(), at..end, &mut flushed),
                Some(Err(error)) => {
                    (at..end).for_each(|_| flushed.dropped.count(SendFault::of(&error)));
                    end - at
                }
                None => 0,
            };
            (at + sent..end).for_each(|_| flushed.dropped.count(SendFault::NoBuffers));
            at = end;
        }
        flushed.blocked = false;
        self.clear();
        flushed
    }

    /// Sends these prepared messages; returns how many are dealt with.
    fn transmit(&mut self, fd: BorrowedFd<'_>, range: Range<usize>, flushed: &mut Flushed) -> usize {
        let mut at = range.start;
        while let Some(rest) = self.messages.headers.get_mut(at..range.end).filter(|rest| !rest.is_empty()) {
            match send(fd, rest) {
                Ok(sent) => {
                    flushed.sent += sent;
                    at += sent.max(1);
                }
                Err(Errno::WOULDBLOCK) => {
                    flushed.blocked = true;
                    break;
                }
                // The error is about the first message of the call: that one goes, the others have their
                // turn.
                Err(errno) => {
                    flushed.dropped.count(SendFault::from_errno(errno));
                    at += 1;
                }
            }
        }
        at - range.start
    }

    /// Points the message headers to what waits; returns how many messages that are. `choose_source` is for a socket
    /// that leaves the source address open.
    fn prepare(&mut self, v6_socket: bool, choose_source: bool) -> usize {
        let buffers = self.storage.chunks_exact_mut(self.slots.stride());
        let parts = zip(buffers, &self.queued).skip(self.done).map(|(buffer, outgoing)| {
            let local = outgoing.local.filter(|_| choose_source).map(|local| local.ip());
            Part {
                bytes: buffer.get_mut(outgoing.range.clone()).unwrap_or_default(),
                envelope: Envelope::To(Address { remote: outgoing.remote, local, v6_socket }),
            }
        });
        self.messages.point(parts)
    }
}

impl fmt::Debug for SendBatch {
    /// Without the contents, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBatch").field("slots", &self.slots).field("waiting", &self.len()).finish()
    }
}

/// A free slot of a [`SendBatch`].
pub struct SendSlot<'a> {
    buffer: &'a mut [u8],
    slots: Slots,
    queued: &'a mut Vec<Outgoing>,
}

impl SendSlot<'_> {
    /// The whole slot: headroom, room for the longest datagram, tailroom.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// Bytes of [`buffer`](Self::buffer) to leave free in front.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.slots.headroom
    }

    /// The part of [`buffer`](Self::buffer) between headroom and tailroom: where a packet is read to.
    pub fn payload(&mut self) -> &mut [u8] {
        let Slots { headroom, size, .. } = self.slots;
        self.buffer.get_mut(headroom..headroom + size).unwrap_or_default()
    }

    /// Queues the bytes at `range` of [`buffer`](Self::buffer) for `remote`, to be sent from `local` if
    /// given, else from what routing chooses. The port of `local` counts for sockets that
    /// [capture](crate::capture) ports; others have one.
    ///
    /// # Panics
    /// When `range` is not inside the buffer.
    pub fn commit(self, range: Range<usize>, remote: SocketAddr, local: Option<SocketAddr>) {
        assert!(self.buffer.get(range.clone()).is_some(), "a range inside the slot");
        self.queued.push(Outgoing { range, remote, local });
    }
}

impl fmt::Debug for SendSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendSlot").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// Why a datagram could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendFault {
    /// It is larger than the path takes (`EMSGSIZE`).
    TooBig,
    /// A filter or the system's policy forbids it (`EPERM`, `EACCES`).
    Forbidden,
    /// No route leads there, also from a source that is not this machine's, or the interface is down
    /// (`ENETUNREACH`, `EHOSTUNREACH`, `ENETDOWN`).
    Unreachable,
    /// The remote host said that nobody listens (`ECONNREFUSED`).
    Refused,
    /// The kernel or the interface's queue has no memory left (`ENOBUFS`, `ENOMEM`).
    NoBuffers,
    /// Anything else, such as an address of the wrong IP version (`EINVAL`, `EAFNOSUPPORT`).
    Other,
}

impl SendFault {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::TooBig, Self::Forbidden, Self::Unreachable, Self::Refused, Self::NoBuffers, Self::Other];

    /// Sorts an error of [`UdpSocket::send_to`](super::UdpSocket::send_to).
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        errno::of(error).map_or(Self::Other, Self::from_errno)
    }

    /// A name for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TooBig => "too_big",
            Self::Forbidden => "forbidden",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::NoBuffers => "no_buffers",
            Self::Other => "other",
        }
    }

    pub(super) fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::MSGSIZE => Self::TooBig,
            Errno::PERM | Errno::ACCESS => Self::Forbidden,
            Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN => Self::Unreachable,
            Errno::CONNREFUSED => Self::Refused,
            Errno::NOBUFS | Errno::NOMEM => Self::NoBuffers,
            _ => Self::Other,
        }
    }
}

/// How many datagrams of a flush were dropped, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendDrops {
    counts: [usize; SendFault::ALL.len()],
}

impl SendDrops {
    /// How many for this reason.
    #[must_use]
    pub fn of(&self, fault: SendFault) -> usize {
        self.counts.get(fault as usize).copied().unwrap_or_default()
    }

    /// How many altogether.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    pub(super) fn count(&mut self, fault: SendFault) {
        if let Some(count) = self.counts.get_mut(fault as usize) {
            *count += 1;
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// Datagrams handed to the kernel.
    pub sent: usize,
    /// Datagrams given up.
    pub dropped: SendDrops,
    /// The send buffer is full (`EAGAIN`); what is left stays in the batch.
    pub blocked: bool,
}

impl Flushed {
    /// Datagrams that need no more attention.
    pub(super) fn done(&self) -> usize {
        self.sent + self.dropped.total()
    }
}

/// Sends the messages in one call as far as that goes; returns how many went.
pub(super) fn send(fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno> {
    let count = headers.len() as libc::c_uint;
    uninterrupted(|| {
        // SAFETY: `headers` are `count` headers that `Messages::point` filled in; what they point to is
        // borrowed by the caller for the whole call.
        let result =
            unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT as _) };
        usize::try_from(result).map_err(|_| last_errno())
    })
}

/// Sends one datagram that lies outside of any batch.
pub(super) fn one(
    fd: BorrowedFd<'_>,
    v6_socket: bool,
    bytes: &[u8],
    remote: SocketAddr,
    local: Option<IpAddr>,
) -> io::Result<()> {
    let (mut name, mut control) = (Name::EMPTY, Control::EMPTY);
    let (name_len, control_len) = Address { remote, local, v6_socket }.write(&mut name, &mut control);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all fields are numbers and pointers, for which all bits zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len as libc::socklen_t;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = control_len as _;
    uninterrupted(|| {
        // SAFETY: `message` points to `bytes`, `name` and `control` with their lengths, all alive through the
        // call; sending only reads them.
        let result = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if result < 0 { Err(last_errno()) } else { Ok(()) }
    })?;
    Ok(())
}
