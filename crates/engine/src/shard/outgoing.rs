//! What is to leave through one UDP socket: datagrams for one peer that follow each other go to the kernel as a train.

use std::net::SocketAddr;
use std::ops::Range;

use adit_host::udp::{Delivery, SendBatch, SendFault, Slots, TRAIN_BYTES, TRAIN_SEGMENTS, UdpSocket};
use adit_tunnel::{DropReason, Drops, HEADROOM, TAILROOM};

use crate::counters::Batches;

/// Trains and single datagrams per system call.
const SLOTS: usize = 32;
/// Bytes from which on nothing more is waited for: they are to be sent while a core's cache holds them.
const ENOUGH: usize = 256 * 1024;

/// See the module's text. The memory of a slot is touched as far as it was ever filled.
#[derive(Debug)]
pub(super) struct Outgoing {
    batch: SendBatch,
    /// Bytes of a slot's datagrams at most.
    room: usize,
    /// Bytes that wait.
    waiting: usize,
    /// Slots that are committed.
    committed: u64,
    /// What lies in the batch's next free slot and is not committed.
    train: Option<Train>,
}

/// Datagrams of one length, one behind the other; the last one may be shorter.
#[derive(Debug, Clone)]
struct Train {
    remote: SocketAddr,
    local: SocketAddr,
    range: Range<usize>,
    segment: usize,
    count: usize,
    /// Nothing may follow.
    closed: bool,
}

/// Where datagrams leave, and who counts what becomes of them.
#[derive(Clone, Copy)]
pub(super) struct Exit<'a> {
    pub(super) socket: &'a UdpSocket,
    pub(super) drops: &'a Drops,
    pub(super) batches: &'a Batches,
}

/// A datagram to be queued.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parcel {
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    /// Its length in bytes.
    pub(super) len: usize,
    /// It fits the path whole, as far as is known: kernels do not cut trains of larger ones, and some of them say so
    /// in the words they have for being unable to cut any.
    pub(super) joins: bool,
}

impl Train {
    fn takes(&self, parcel: &Parcel, room: usize) -> bool {
        !self.closed
            && parcel.joins
            && parcel.len <= self.segment
            && self.count < TRAIN_SEGMENTS
            && self.range.len() + parcel.len <= room
            && (self.remote, self.local) == (parcel.remote, parcel.local)
    }
}

impl Outgoing {
    /// `longest`: bytes of the longest datagram.
    pub(super) fn new(longest: usize) -> Self {
        let room = TRAIN_BYTES.max(longest);
        let slots = Slots { size: room, headroom: HEADROOM, tailroom: TAILROOM };
        Self { batch: SendBatch::new(SLOTS, slots), room, waiting: 0, committed: 0, train: None }
    }

    /// Queues a datagram: `write` gets a buffer and the place in it that the datagram has to fill. It leaves alone what
    /// is before that place.
    pub(super) fn push(
        &mut self,
        exit: Exit<'_>,
        parcel: Parcel,
        write: impl FnOnce(&mut [u8], Range<usize>) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        let Parcel { remote, local, len, joins } = parcel;
        if len > self.room {
            return Err(DropReason::TooBig);
        }
        if self.train.as_ref().is_some_and(|train| !train.takes(&parcel, self.room.min(TRAIN_BYTES))) {
            self.commit();
            if self.waiting > ENOUGH {
                self.flush(exit);
            }
        }
        if self.batch.reserve().is_none() {
            self.flush(exit);
        }
        let mut slot = self.batch.reserve().ok_or(DropReason::OutputSaturation)?;
        let start = self.train.as_ref().map_or(slot.headroom(), |train| train.range.end);
        write(slot.buffer(), start..start + len)?;
        self.waiting += len;
        let train = self.train.get_or_insert(Train {
            remote,
            local,
            range: start..start,
            segment: len,
            count: 0,
            closed: !joins,
        });
        train.range.end += len;
        train.count += 1;
        train.closed |= len < train.segment || len == 0;
        Ok(())
    }

    /// Sends what has been queued.
    pub(super) fn flush(&mut self, exit: Exit<'_>) {
        self.commit();
        self.waiting = 0;
        if self.batch.is_empty() {
            return;
        }
        let flushed = exit.socket.flush(&mut self.batch);
        exit.batches.sent(std::mem::take(&mut self.committed), flushed.sent as u64);
        if flushed.blocked {
            // Waiting would make a queue of it; a full link drops as well.
            exit.drops.add(DropReason::OutputSaturation, self.batch.clear() as u64);
        }
        let saturated = flushed.dropped.of(SendFault::NoBuffers);
        exit.drops.add(DropReason::OutputSaturation, saturated as u64);
        exit.drops.add(DropReason::SendError, (flushed.dropped.total() - saturated) as u64);
    }

    fn commit(&mut self) {
        let Some(Train { remote, local, range, segment, count, .. }) = self.train.take() else { return };
        let Some(slot) = self.batch.reserve() else { return };
        let segment = if count > 1 { segment } else { 0 };
        self.committed += 1;
        slot.commit_as(range, Delivery { segment, ..Delivery::new(remote, Some(local)) });
    }
}
