//! A session as shards see it: immutable but for counters and its present path.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use adit_tunnel::DataChannel;
use ipnet::IpNet;

use crate::{Handle, Path};

/// Addresses a session owns: it may send from them, and packets to them go to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    networks: Vec<IpNet>,
}

impl Sources {
    /// The session owns these networks; a single address is a /32 or /128.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks }
    }

    /// True when `address` is one of them.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The networks.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }
}

/// What a session has carried.
#[derive(Debug, Default)]
pub struct Counters {
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    last_received: AtomicU64,
    last_sent: AtomicU64,
    late_packets: AtomicU64,
    worst_backtrack: AtomicU64,
}

/// [`Counters`] at one moment. Bytes are those of inner packets; times are milliseconds of
/// [`adit_host::clock::monotonic_ms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Snapshot {
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub last_received: u64,
    pub last_sent: u64,
    /// Packets that arrived behind newer ones and were accepted ("replay-window backtrack occurred").
    pub late_packets: u64,
    /// The furthest that one of them was behind, in packets.
    pub worst_backtrack: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Session {
    handle: Handle,
    channel: Arc<dyn DataChannel>,
    peer_id: Option<u32>,
    sources: Sources,
    path: Mutex<Path>,
    closed: AtomicBool,
    counters: Counters,
}

impl Session {
    /// A session whose data packets pass through `channel`, and are recognised by `peer_id`, or by their remote
    /// address without one.
    #[must_use]
    pub fn new(
        handle: Handle,
        channel: Arc<dyn DataChannel>,
        peer_id: Option<u32>,
        sources: Sources,
        path: Path,
    ) -> Self {
        let counters = Counters::default();
        let now = adit_host::clock::monotonic_ms();
        counters.last_received.store(now, Ordering::Relaxed);
        counters.last_sent.store(now, Ordering::Relaxed);
        Self {
            handle,
            channel,
            peer_id,
            sources,
            path: Mutex::new(path),
            closed: AtomicBool::new(false),
            counters,
        }
    }

    /// The session's name.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// What its data packets carry to be recognised.
    #[must_use]
    pub fn peer_id(&self) -> Option<u32> {
        self.peer_id
    }

    /// Its data channel.
    #[must_use]
    pub fn channel(&self) -> &Arc<dyn DataChannel> {
        &self.channel
    }

    /// The addresses it owns.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Where its packets go at present.
    #[must_use]
    pub fn path(&self) -> Path {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_path(&self, path: Path) {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner) = path;
    }

    /// Lets no packet pass any more, from this moment on and on every thread.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// True once closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// What it has carried so far.
    #[must_use]
    pub fn counters(&self) -> Snapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            received_packets: get(&self.counters.received_packets),
            received_bytes: get(&self.counters.received_bytes),
            sent_packets: get(&self.counters.sent_packets),
            sent_bytes: get(&self.counters.sent_bytes),
            last_received: get(&self.counters.last_received),
            last_sent: get(&self.counters.last_sent),
            late_packets: get(&self.counters.late_packets),
            worst_backtrack: get(&self.counters.worst_backtrack),
        }
    }

    /// Notes an authenticated packet; `bytes` of an inner packet, 0 for a keepalive.
    pub(crate) fn count_received(&self, bytes: usize, now: u64) {
        self.counters.last_received.store(now, Ordering::Relaxed);
        if bytes > 0 {
            self.counters.received_packets.fetch_add(1, Ordering::Relaxed);
            self.counters.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Notes a packet that arrived `backtrack` numbers behind the newest.
    pub(crate) fn count_late(&self, backtrack: u32) {
        self.counters.late_packets.fetch_add(1, Ordering::Relaxed);
        self.counters.worst_backtrack.fetch_max(u64::from(backtrack), Ordering::Relaxed);
    }

    pub(crate) fn count_sent(&self, bytes: usize, now: u64) {
        self.counters.last_sent.store(now, Ordering::Relaxed);
        self.counters.sent_packets.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
