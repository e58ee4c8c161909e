//! UDP flows to foreign back ends.
//!
//! A flow is two sockets: one with the address that was dialled, connected to the client, and one connected to the back
//! end. The kernel gives a connected socket what its peer sends before it looks at any other of that port, so whoever has
//! the port sees a flow's first datagram only; and what goes back comes from where the client sent to.

mod worker;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use adit_host::poll::Waker;

use self::worker::Worker;
use crate::counters::counters;
use crate::{Backend, Events};

/// How many flows there may be, and how long.
#[derive(Debug, Clone)]
pub struct DatagramOptions {
    /// Flows at a time; a new one replaces the one that has carried nothing for the longest time, one that was never
    /// answered before all others.
    pub max_flows: usize,
    /// Of them, those of one network (IPv4 /24, IPv6 /56).
    pub max_flows_per_network: u32,
    /// How long a flow that carries nothing is kept.
    pub idle_limit: Duration,
    /// How long a flow is kept that the back end has never answered.
    pub answer_limit: Duration,
    /// First datagrams that may wait for their flow.
    pub queue: usize,
}

impl Default for DatagramOptions {
    fn default() -> Self {
        Self {
            max_flows: 4096,
            max_flows_per_network: 256,
            idle_limit: Duration::from_secs(180),
            answer_limit: Duration::from_secs(10),
            queue: 1024,
        }
    }
}

counters! {
    /// What became of flows and their datagrams.
    DatagramCounters, DatagramCounts {
        /// Flows there are.
        open,
        /// Flows there were.
        opened,
        /// Flows that ended because they carried nothing, or were never answered.
        expired,
        /// Flows that ended to make room.
        replaced,
        /// Flows whose back end or client said that nobody listens.
        closed,
        /// First datagrams dropped: too many wait.
        refused_queue,
        /// Flows refused: too many of one network.
        refused_network,
        /// Flows that could not be opened: no descriptor is left, or whoever has the port does not share it.
        failed,
        /// Datagrams from clients to back ends.
        datagrams_in,
        /// Datagrams from back ends to clients.
        datagrams_out,
        /// Datagrams lost on the way: too long, of somebody else, or not taken by the kernel.
        dropped,
    }
}

/// The first datagram of a flow.
struct First {
    bytes: Vec<u8>,
    remote: SocketAddr,
    dialled: SocketAddr,
    backend: Arc<Backend>,
}

/// What the thread and the handle share.
struct Shared {
    options: DatagramOptions,
    events: Events,
    counters: DatagramCounters,
    waker: Waker,
    queue: Mutex<Vec<First>>,
    stop: AtomicBool,
}

/// Relays datagrams on a thread of its own. Dropping it ends all flows.
pub struct DatagramRelays {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramRelays {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// When the process has no descriptor or thread left.
    pub fn start(options: DatagramOptions, events: Events) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            options,
            events,
            counters: DatagramCounters::default(),
            waker: Waker::new()?,
            queue: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let worker = Worker::new(Arc::clone(&shared))?;
        let thread =
            std::thread::Builder::new().name("entrance-udp".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Gives `backend` a datagram that `remote` has sent to `dialled`, and what else comes from there. Waits for nothing;
    /// false when the datagram was dropped because too many wait. The socket that has `dialled` must share it
    /// ([`reuse_address`](adit_host::udp::UdpOptions::reuse_address)).
    pub fn relay(
        &self,
        first: &[u8],
        remote: SocketAddr,
        dialled: SocketAddr,
        backend: &Arc<Backend>,
    ) -> bool {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= self.shared.options.queue {
            self.shared.counters.refused_queue.raise();
            return false;
        }
        queue.push(First { bytes: first.to_vec(), remote, dialled, backend: Arc::clone(backend) });
        drop(queue);
        self.shared.waker.wake();
        true
    }

    /// What became of flows so far.
    #[must_use]
    pub fn counts(&self) -> DatagramCounts {
        self.shared.counters.snapshot()
    }
}

impl Drop for DatagramRelays {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        // One that has panicked has told so itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl fmt::Debug for DatagramRelays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramRelays").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
