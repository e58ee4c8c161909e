//! The handle to the threads that accept connections.

use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use adit_host::poll::Waker;
use adit_host::tcp;
use ipnet::IpNet;

use crate::backend::millis;
use crate::budget::Budget;
use crate::counters::{Counters, Counts};
use crate::worker::Worker;
use crate::{Backend, Classify};

/// What is done with connections that are nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unknown {
    /// They get no answer until their time for inspection is up.
    #[default]
    Silence,
    /// They are closed.
    Close,
}

/// How connections are received.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads, at least one.
    pub threads: usize,
    /// Connections that may be undecided at a time.
    pub max_undecided: usize,
    /// Of them, those of one network (IPv4 /24, IPv6 /56). Proxies that are trusted have no such limit.
    pub max_undecided_per_network: u32,
    /// Bytes of an undecided connection that are read; at most [`Options::MOST_FIRST_BYTES`].
    pub first_bytes: usize,
    /// See [`Unknown`].
    pub unknown: Unknown,
    /// Whose PROXY headers are believed. For others such a header is bytes like any.
    pub trusted_proxies: Vec<IpNet>,
    /// Pipes of 1 MiB for large transfers; when all are in use, and each may hold that much of the kernel's memory for a
    /// peer that does not read, others are copied.
    pub pipes: usize,
}

impl Options {
    /// With everything else that is kept of an undecided connection, 4 KiB.
    pub const MOST_FIRST_BYTES: usize = 3072;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            max_undecided: 4096,
            max_undecided_per_network: 256,
            first_bytes: Self::MOST_FIRST_BYTES,
            unknown: Unknown::Silence,
            trusted_proxies: Vec::new(),
            pipes: 128,
        }
    }
}

/// What the operator may want to know. Told by the thread that it happens on, which waits meanwhile.
#[derive(Debug, Clone)]
pub enum Event {
    /// A back end has stopped to answer; clients are refused, and one after the other tries again.
    Down {
        /// Which.
        backend: Arc<Backend>,
        /// Why.
        error: String,
    },
    /// It answers again.
    Up(Arc<Backend>),
    /// The process or the machine has no descriptor or memory left: accepting pauses, and is
    /// tried ten times a second. Told once until a connection is accepted.
    Exhausted(String),
    /// A UDP flow could not be opened: no descriptor is left, or whoever has the port does not share it.
    NoFlow(String),
    /// A thread has ended although nobody told it to: what it had is gone.
    Ended,
}

/// Who is told of events.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// What a thread is told to do.
pub(crate) enum Order {
    Listen { listener: Arc<TcpListener>, number: usize, inspect: u64 },
    Close,
}

/// What a thread and the handle to it share.
pub(crate) struct Inbox {
    pub(crate) waker: Waker,
    pub(crate) orders: Mutex<Vec<Order>>,
}

/// What all threads share.
pub(crate) struct Shared<C> {
    pub(crate) classify: C,
    pub(crate) options: Options,
    pub(crate) events: Events,
    pub(crate) common: Arc<Common>,
}

/// What the handle needs of it.
pub(crate) struct Common {
    pub(crate) counters: Counters,
    pub(crate) undecided: Budget,
    pub(crate) stop: AtomicBool,
}

impl<C> Shared<C> {
    pub(crate) fn trusts(&self, remote: IpAddr) -> bool {
        self.options.trusted_proxies.iter().any(|net| net.contains(&remote))
    }
}

/// Accepts connections, finds out whose they are, and relays those of foreign back ends. Dropping it ends all of them but
/// those that were handed over.
pub struct Reception {
    common: Arc<Common>,
    threads: Vec<(Arc<Inbox>, Option<JoinHandle<()>>)>,
}

impl Reception {
    /// Starts the threads, in the network namespace of the caller.
    ///
    /// # Errors
    /// When the process has no descriptor or thread left.
    pub fn start<C: Classify>(options: Options, classify: C, events: Events) -> io::Result<Self> {
        let common = Arc::new(Common {
            counters: Counters::default(),
            undecided: Budget::new(options.max_undecided, options.max_undecided_per_network),
            stop: AtomicBool::new(false),
        });
        let mut reception = Self { common: Arc::clone(&common), threads: Vec::new() };
        let count = options.threads.max(1);
        let shared = Arc::new(Shared { classify, options, events, common });
        for number in 0..count {
            let inbox = Arc::new(Inbox { waker: Waker::new()?, orders: Mutex::default() });
            let worker = Worker::new(Arc::clone(&shared), Arc::clone(&inbox))?;
            let name = format!("entrance-{number}");
            let thread = std::thread::Builder::new().name(name).spawn(move || worker.run())?;
            reception.threads.push((inbox, Some(thread)));
        }
        Ok(reception)
    }

    /// Accepts connections of `listener` from now on; `number` is what [`Flow::listener`](crate::Flow::listener) says of
    /// them. A connection has `inspect` from its acceptance on to show whose it is.
    ///
    /// # Errors
    /// Not for a listening socket.
    pub fn listen(&self, listener: TcpListener, number: usize, inspect: Duration) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        // Accepted sockets inherit it.
        tcp::set_no_delay(&listener, true)?;
        let listener = Arc::new(listener);
        let inspect = millis(inspect);
        self.tell(|| Order::Listen { listener: Arc::clone(&listener), number, inspect });
        Ok(())
    }

    /// From now on nobody accepts new connections. Those that are there go on.
    pub fn close(&self) {
        self.tell(|| Order::Close);
    }

    /// What became of connections so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.common.counters.snapshot()
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for (inbox, _) in &self.threads {
            inbox.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order());
            inbox.waker.wake();
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.common.stop.store(true, Ordering::Release);
        for (inbox, _) in &self.threads {
            inbox.waker.wake();
        }
        for (_, thread) in &mut self.threads {
            // One that has panicked has told so itself.
            let _ = thread.take().map(JoinHandle::join);
        }
    }
}

impl fmt::Debug for Reception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reception").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
