//! How full the batches were that packets came and went in.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one shard; its thread alone writes them.
#[derive(Debug, Default)]
pub struct Batches {
    tun_reads: AtomicU64,
    tun_read_packets: AtomicU64,
    tun_writes: AtomicU64,
    tun_written_packets: AtomicU64,
    receives: AtomicU64,
    received_datagrams: AtomicU64,
    sends: AtomicU64,
    sent_datagrams: AtomicU64,
}

/// [`Batches`] at one moment: of each two figures, the second divided by the first is the mean size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchFigures {
    /// Packets and superpackets that tun gave for sessions, and packets that they stood for.
    pub tun_read: (u64, u64),
    /// Packets and superpackets that tun was given, and packets that they stood for.
    pub tun_written: (u64, u64),
    /// Trains and single datagrams that were received, and datagrams that they stood for.
    pub received: (u64, u64),
    /// Trains and single datagrams that were to be sent, and datagrams of them that went out.
    pub sent: (u64, u64),
}

impl Batches {
    /// The present figures.
    #[must_use]
    pub fn figures(&self) -> BatchFigures {
        let get = |calls: &AtomicU64, packets: &AtomicU64| {
            (calls.load(Ordering::Relaxed), packets.load(Ordering::Relaxed))
        };
        BatchFigures {
            tun_read: get(&self.tun_reads, &self.tun_read_packets),
            tun_written: get(&self.tun_writes, &self.tun_written_packets),
            received: get(&self.receives, &self.received_datagrams),
            sent: get(&self.sends, &self.sent_datagrams),
        }
    }

    pub(crate) fn tun_read(&self, packets: u64) {
        count(&self.tun_reads, 1, &self.tun_read_packets, packets);
    }

    pub(crate) fn tun_written(&self, packets: u64) {
        count(&self.tun_writes, 1, &self.tun_written_packets, packets);
    }

    pub(crate) fn received(&self, trains: u64, datagrams: u64) {
        count(&self.receives, trains, &self.received_datagrams, datagrams);
    }

    pub(crate) fn sent(&self, trains: u64, datagrams: u64) {
        count(&self.sends, trains, &self.sent_datagrams, datagrams);
    }
}

fn count(calls: &AtomicU64, n: u64, packets: &AtomicU64, m: u64) {
    calls.fetch_add(n, Ordering::Relaxed);
    packets.fetch_add(m, Ordering::Relaxed);
}
