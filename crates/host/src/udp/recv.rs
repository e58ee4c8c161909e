//! Receiving in batches.
#![expect(unsafe_code, reason = "recvmmsg, which no safe wrapper covers")]

use std::fmt;
use std::io;
use std::iter::zip;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::Slots;
use super::messages::{Envelope, Messages, Part};
use super::send::{Flushed, SendFault, send};
use crate::errno::uninterrupted;
use crate::socket::last_errno;

/// Memory for datagrams to be received into. Made once, used again and again.
pub struct RecvBatch {
    slots: Slots,
    storage: Box<[u8]>,
    messages: Messages,
    arrived: Vec<Meta>,
}

/// What is known of a received slot besides its bytes.
#[derive(Debug, Clone, Copy)]
struct Meta {
    len: usize,
    /// Length of all datagrams in the slot but the last, which may be shorter.
    segment: usize,
    remote: SocketAddr,
    local: SocketAddr,
    ecn: u8,
    truncated: bool,
}

impl RecvBatch {
    /// Room for `count` slots. The memory for all of them is taken at once.
    #[must_use]
    pub fn new(count: usize, slots: Slots) -> Self {
        let slots = Slots { size: slots.size.max(1), ..slots };
        Self {
            slots,
            storage: vec![0; slots.stride() * count].into(),
            messages: Messages::new(count),
            arrived: Vec::with_capacity(count),
        }
    }

    /// How many slots the last receive filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.arrived.len()
    }

    /// The last receive filled no slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arrived.is_empty()
    }

    /// What the last receive brought, in the order of arrival.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Received<'_>> {
        let headroom = self.slots.headroom;
        zip(self.storage.chunks_exact_mut(self.slots.stride()), &self.arrived)
            .map(move |(buffer, meta)| Received { buffer, headroom, meta: *meta })
    }

    /// The slot number `index` of the last receive.
    pub fn get_mut(&mut self, index: usize) -> Option<Received<'_>> {
        let meta = *self.arrived.get(index)?;
        let buffer = self.storage.chunks_exact_mut(self.slots.stride()).nth(index)?;
        Some(Received { buffer, headroom: self.slots.headroom, meta })
    }

    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, bound: SocketAddr) -> io::Result<usize> {
        self.arrived.clear();
        let Slots { size, headroom, .. } = self.slots;
        let parts = self.storage.chunks_exact_mut(self.slots.stride()).map(|buffer| Part {
            bytes: buffer.get_mut(headroom..headroom + size).unwrap_or_default(),
            envelope: Envelope::Receive,
        });
        let count = self.messages.point(parts) as libc::c_uint;
        let headers = self.messages.headers.as_mut_ptr();
        let filled = uninterrupted(|| {
            // SAFETY: the first `count` headers were just pointed to slots of `storage`, names and controls,
            // with their lengths; all of these live in `self`, which is borrowed for the whole call.
            let result = unsafe {
                libc::recvmmsg(fd.as_raw_fd(), headers, count, libc::MSG_DONTWAIT as _, std::ptr::null_mut())
            };
            usize::try_from(result).map_err(|_| last_errno())
        })?;
        let messages = zip(&self.messages.headers, zip(&self.messages.names, &self.messages.controls));
        self.arrived.extend(messages.take(filled).map(|(header, (name, control))| {
            let message = &header.msg_hdr;
            let arrival = control.read(message.msg_controllen as _);
            Meta {
                len: (header.msg_len as usize).min(size),
                segment: arrival.segment,
                // The kernel names the sender of every UDP datagram.
                remote: name.read(message.msg_namelen as usize).unwrap_or_else(unspecified),
                local: arrival
                    .dialled
                    .unwrap_or(SocketAddr::new(arrival.local.unwrap_or(bound.ip()), bound.port())),
                ecn: arrival.traffic_class & 3,
                truncated: message.msg_flags & libc::MSG_TRUNC != 0,
            }
        }));
        Ok(filled)
    }

    pub(super) fn forward(&mut self, fd: BorrowedFd<'_>, remote: SocketAddr, prefix: &[u8]) -> Flushed {
        let headroom = self.slots.headroom;
        let slots = zip(self.storage.chunks_exact_mut(self.slots.stride()), &self.arrived);
        let parts = slots
            .filter(|(_, meta)| meta.remote == remote && !meta.truncated && meta.segment == 0)
            .filter_map(|(buffer, meta)| {
                let bytes = buffer.get_mut(headroom.checked_sub(prefix.len())?..headroom + meta.len)?;
                bytes.get_mut(..prefix.len())?.copy_from_slice(prefix);
                Some(Part { bytes, envelope: Envelope::Peer })
            });
        let count = self.messages.point(parts);
        let mut flushed = Flushed::default();
        while let Some(rest) =
            self.messages.headers.get_mut(flushed.done()..count).filter(|rest| !rest.is_empty())
        {
            match send(fd, rest) {
                // The kernel sends at least one or says why not.
                Ok(sent) => flushed.sent += sent.max(1),
                Err(errno) => {
                    flushed.blocked |= errno == Errno::WOULDBLOCK;
                    flushed.dropped.count(SendFault::from_errno(errno), 1);
                }
            }
        }
        flushed
    }
}

fn unspecified() -> SocketAddr {
    SocketAddr::new(IpAddr::from([0; 4]), 0)
}

impl fmt::Debug for RecvBatch {
    /// Without the contents, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBatch").field("slots", &self.slots).field("arrived", &self.arrived).finish()
    }
}

/// One received slot.
pub struct Received<'a> {
    buffer: &'a mut [u8],
    headroom: usize,
    meta: Meta,
}

impl<'a> Received<'a> {
    /// The whole slot: headroom, room for the longest datagram, tailroom. The datagrams lie where
    /// [`segments`](Self::segments) says.
    pub fn buffer(&mut self) -> &mut [u8] {
        self.buffer
    }

    /// Where in [`buffer`](Self::buffer) the datagrams are: several of equal length, the last one perhaps shorter,
    /// where the kernel [joined](super::UdpOptions::receive_trains) datagrams of one sender, and else one.
    pub fn segments(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (start, end) = (self.headroom, self.headroom + self.meta.len);
        let step = self.step();
        // An empty datagram is one datagram.
        (start..end.max(start + 1)).step_by(step).map(move |from| from..(from + step).min(end))
    }

    fn step(&self) -> usize {
        if self.meta.segment == 0 { self.meta.len.max(1) } else { self.meta.segment }
    }

    /// The bytes that arrived.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.headroom..self.headroom + self.meta.len).unwrap_or_default()
    }

    /// The datagrams as pieces that can be worked on, and kept, each on its own. An empty datagram is not among them.
    pub fn into_segments(self) -> impl Iterator<Item = &'a mut [u8]> {
        let step = self.step();
        let end = self.headroom + self.meta.len;
        self.buffer.get_mut(self.headroom..end).unwrap_or_default().chunks_mut(step)
    }

    /// Who sent it.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.meta.remote
    }

    /// The address and port it was sent to: where the answer is to come from.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.meta.local
    }

    /// Explicit congestion notification, 2 bits (RFC 3168 §5).
    #[must_use]
    pub fn ecn(&self) -> u8 {
        self.meta.ecn
    }

    /// It was longer than the slot: the rest is lost.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.meta.truncated
    }
}

impl fmt::Debug for Received<'_> {
    /// Without the contents, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Received").field(&self.meta).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(buffer: &mut [u8], len: usize, segment: usize) -> Vec<(usize, usize)> {
        let meta =
            Meta { len, segment, remote: unspecified(), local: unspecified(), ecn: 0, truncated: false };
        Received { buffer, headroom: 4, meta }.segments().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn a_slot_is_one_datagram_unless_the_kernel_joined_several() {
        let buffer = &mut [0; 64];

        assert_eq!(received(buffer, 10, 0), [(4, 14)]);
        assert_eq!(received(buffer, 10, 4), [(4, 8), (8, 12), (12, 14)]);
        assert_eq!(received(buffer, 8, 4), [(4, 8), (8, 12)]);
        assert_eq!(received(buffer, 0, 0), [(4, 4)]);
    }

    #[test]
    fn pieces_lie_where_the_segments_are() {
        let buffer: &mut [u8; 16] = &mut std::array::from_fn(|at| at as u8);
        let (remote, local) = (unspecified(), unspecified());
        let meta = Meta { len: 10, segment: 4, remote, local, ecn: 0, truncated: false };

        let mut pieces = Received { buffer, headroom: 4, meta }.into_segments();

        let first = pieces.next().unwrap();
        first[0] = 99;
        let rest: Vec<&mut [u8]> = pieces.collect();
        assert_eq!((&*first, rest), (&[99, 5, 6, 7][..], vec![&mut [8, 9, 10, 11][..], &mut [12, 13]]));
    }
}
