//! Sending in batches.
#![expect(unsafe_code, reason = "sendmmsg, which no safe wrapper covers")]

use std::fmt;
use std::io;
use std::iter::zip;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::Slots;
use super::ancillary::{Control, Name};
use super::messages::{Address, Envelope, Messages, Part};
use crate::errno::{self, uninterrupted};
use crate::socket::last_errno;

/// Most datagrams that one call hands to the kernel in one piece: what every kernel with the option takes.
pub const TRAIN_SEGMENTS: usize = 64;

/// Most bytes of such a train, so that with the headers of Ethernet and IPv6 it is below the 64 KiB from which on an
/// interface does not cut it by itself.
pub const TRAIN_BYTES: usize = 65_400;

/// Datagrams waiting to be sent. Made once, used again and again.
pub struct SendBatch {
    slots: Slots,
    storage: Box<[u8]>,
    messages: Messages,
    /// One entry for each committed slot, in order.
    queued: Vec<Outgoing>,
    /// How many of them are dealt with already.
    done: usize,
    /// How many bytes of the next one are dealt with.
    offset: usize,
    /// The next one goes out datagram by datagram.
    singly: Singly,
}

#[derive(Debug, Clone)]
struct Outgoing {
    range: Range<usize>,
    delivery: Delivery,
}

/// Whether the entry that is under way goes out as a train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Singly {
    No,
    /// The train was too large for the path; its datagrams may be too.
    TooBig,
    /// The kernel refused it, for being a train or for another reason: if its datagrams go, then for that.
    Refused,
}

/// Where the bytes of a slot go, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// To whom.
    pub remote: SocketAddr,
    /// From where, else from what routing chooses. The port counts for sockets that [capture](crate::capture) ports;
    /// others have one.
    pub local: Option<SocketAddr>,
    /// The bytes are several datagrams of this length, one behind the other, the last one perhaps shorter. 0: they are
    /// one.
    pub segment: usize,
    /// Explicit congestion notification, 2 bits (RFC 3168 §5).
    pub ecn: u8,
}

impl Delivery {
    /// One datagram without ECN.
    #[must_use]
    pub fn new(remote: SocketAddr, local: Option<SocketAddr>) -> Self {
        Self { remote, local, segment: 0, ecn: 0 }
    }

    /// How many datagrams `length` bytes are.
    fn datagrams(&self, length: usize) -> usize {
        if self.segment == 0 { 1 } else { length.div_ceil(self.segment).max(1) }
    }

    /// Most bytes that go out in one message.
    fn piece(&self, length: usize, trains: bool) -> usize {
        match self.segment {
            0 => length.max(1),
            size if trains => size * (TRAIN_BYTES / size).clamp(1, TRAIN_SEGMENTS),
            size => size,
        }
    }
}

/// Through what a batch is sent.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) v6_socket: bool,
    /// Whether the kernel cuts trains. Turned off by the first that it refuses.
    pub(super) trains: &'a AtomicBool,
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
            offset: 0,
            singly: Singly::No,
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
        let all = self.queued.iter().skip(self.done);
        let all: usize = all.map(|entry| entry.delivery.datagrams(entry.range.len())).sum();
        let begun = self.queued.get(self.done).filter(|_| self.offset != 0);
        all - begun.map_or(0, |entry| entry.delivery.datagrams(self.offset))
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done == self.queued.len()
    }

    /// Forgets what waits; returns how many datagrams that were.
    pub fn clear(&mut self) -> usize {
        let waiting = self.len();
        self.queued.clear();
        (self.done, self.offset, self.singly) = (0, 0, Singly::No);
        waiting
    }

    /// Sends what waits through one socket.
    pub(super) fn flush(&mut self, fd: BorrowedFd<'_>, way: Way<'_>) -> Flushed {
        let mut flushed = Flushed::default();
        self.send_until(self.queued.len(), fd, way, true, &mut flushed);
        if !flushed.blocked {
            self.clear();
        }
        flushed
    }

    /// Sends what waits, each datagram through the socket for the address and port that it leaves from. One whose
    /// socket is full or cannot be made is dropped, so that it does not hold up the others.
    pub(super) fn flush_by(
        &mut self,
        way: Way<'_>,
        socket_for: impl Fn(SocketAddr) -> io::Result<Arc<OwnedFd>>,
    ) -> Flushed {
        let mut flushed = Flushed::default();
        while let Some(first) = self.queued.get(self.done) {
            let local = first.delivery.local;
            let run =
                self.queued.iter().skip(self.done).take_while(|next| next.delivery.local == local).count();
            let end = self.done + run;
            let mut fault = SendFault::NoBuffers;
            match local.map(&socket_for) {
                Some(Ok(socket)) => self.send_until(end, socket.as_fd(), way, false, &mut flushed),
                Some(Err(error)) => fault = SendFault::of(&error),
                None => {}
            }
            while let Some(entry) = self.queued.get(self.done).filter(|_| self.done < end) {
                let dropped = self.advance(entry.range.len() - self.offset);
                flushed.dropped.count(fault, dropped);
            }
            flushed.blocked = false;
        }
        self.clear();
        flushed
    }

    /// Sends the entries before number `end`, until the socket is full. `choose_source` is for a socket that leaves the
    /// source address open.
    fn send_until(
        &mut self,
        end: usize,
        fd: BorrowedFd<'_>,
        way: Way<'_>,
        choose_source: bool,
        flushed: &mut Flushed,
    ) {
        while self.done < end && !flushed.blocked {
            let count = self.prepare(end, way, choose_source);
            self.transmit(fd, count, way, flushed);
        }
    }

    /// Sends prepared messages, until the socket is full or the rest has to be prepared anew.
    fn transmit(&mut self, fd: BorrowedFd<'_>, count: usize, way: Way<'_>, flushed: &mut Flushed) {
        let mut at = 0;
        while let Some(rest) = self.messages.headers.get_mut(at..count).filter(|rest| !rest.is_empty()) {
            match send(fd, rest) {
                Ok(sent) => {
                    if self.singly == Singly::Refused && sent > 0 {
                        way.trains.store(false, Ordering::Relaxed);
                    }
                    for message in at..at + sent.max(1) {
                        flushed.sent += self.advance(self.messages.length(message));
                    }
                    at += sent.max(1);
                }
                Err(Errno::WOULDBLOCK) => {
                    flushed.blocked = true;
                    return;
                }
                // The error is about the first message of the call.
                Err(errno) if self.is_train(at) && self.give_up_train(errno) => return,
                // That one goes, the others have their turn.
                Err(errno) => {
                    let dropped = self.advance(self.messages.length(at));
                    flushed.dropped.count(SendFault::from_errno(errno), dropped);
                    at += 1;
                }
            }
        }
    }

    /// One message of so many bytes is dealt with; returns how many datagrams it was.
    fn advance(&mut self, length: usize) -> usize {
        let Some(entry) = self.queued.get(self.done) else { return 0 };
        self.offset += length;
        let datagrams = entry.delivery.datagrams(length);
        if self.offset >= entry.range.len() {
            self.done += 1;
            (self.offset, self.singly) = (0, Singly::No);
        }
        datagrams
    }

    /// Message number `at`, which is the next one, is several datagrams.
    fn is_train(&self, at: usize) -> bool {
        let length = self.messages.length(at);
        self.queued.get(self.done).is_some_and(|entry| entry.delivery.datagrams(length) > 1)
    }

    /// Whether this error of a train is none of its datagrams', as far as one can tell: then they are tried singly.
    fn give_up_train(&mut self, errno: Errno) -> bool {
        self.singly = match errno {
            Errno::MSGSIZE => Singly::TooBig,
            // A socket or route whose packets are not cut, such as one with IPsec; a kernel that takes fewer.
            Errno::INVAL | Errno::IO => Singly::Refused,
            _ => return false,
        };
        true
    }

    /// Points the message headers to what waits before entry number `end`; returns how many messages that are.
    fn prepare(&mut self, end: usize, way: Way<'_>, choose_source: bool) -> usize {
        let trains = way.trains.load(Ordering::Relaxed);
        let (done, offset, singly) = (self.done, self.offset, self.singly);
        let buffers = self.storage.chunks_exact_mut(self.slots.stride());
        let entries = zip(buffers, &self.queued).enumerate().take(end).skip(done);
        let parts = entries.flat_map(|(index, (buffer, entry))| {
            let Outgoing { range, delivery } = entry;
            let Delivery { remote, local, segment, ecn } = *delivery;
            let first = index == done;
            let start = range.start + if first { offset } else { 0 };
            let bytes = buffer.get_mut(start..range.end).unwrap_or_default();
            let piece = delivery.piece(bytes.len(), trains && !(first && singly != Singly::No));
            let local = local.filter(|_| choose_source).map(|local| local.ip());
            // An empty datagram is one datagram.
            let empty: Option<&mut [u8]> = bytes.is_empty().then_some(&mut []);
            bytes.chunks_mut(piece).chain(empty).map(move |bytes| {
                let segment = if bytes.len() > segment { segment as u16 } else { 0 };
                let address = Address { remote, local, v6_socket: way.v6_socket, ecn, segment };
                Part { bytes, envelope: Envelope::To(address) }
            })
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

    /// Queues the bytes at `range` of [`buffer`](Self::buffer) as one datagram for `remote`, to be sent from `local` if
    /// given, else from what routing chooses. The port of `local` counts for sockets that [capture](crate::capture)
    /// ports; others have one.
    ///
    /// # Panics
    /// When `range` is not inside the buffer.
    pub fn commit(self, range: Range<usize>, remote: SocketAddr, local: Option<SocketAddr>) {
        self.commit_as(range, Delivery::new(remote, local));
    }

    /// Queues the bytes at `range` of [`buffer`](Self::buffer), which may be several datagrams: they go to the kernel in
    /// one piece where it takes that, in pieces of at most [`TRAIN_SEGMENTS`] and [`TRAIN_BYTES`], and else one by one.
    ///
    /// # Panics
    /// When `range` is not inside the buffer, or a segment is longer than a datagram can be.
    pub fn commit_as(self, range: Range<usize>, delivery: Delivery) {
        assert!(self.buffer.get(range.clone()).is_some(), "a range inside the slot");
        assert!(delivery.segment <= TRAIN_BYTES, "segments of {} bytes", delivery.segment);
        self.queued.push(Outgoing { range, delivery });
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

    pub(super) fn count(&mut self, fault: SendFault, datagrams: usize) {
        if let Some(count) = self.counts.get_mut(fault as usize) {
            *count += datagrams;
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
    let address = Address { remote, local, v6_socket, ecn: 0, segment: 0 };
    let (name_len, control_len) = address.write(&mut name, &mut control);
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
