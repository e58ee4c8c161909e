//! Foreign back ends, and whether they answer.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::counters::counters;

/// How a back end learns who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyMode {
    /// Not at all: connections come from this machine.
    #[default]
    None,
    /// By a PROXY header of version 2 before the first byte; for UDP before each flow's first datagram, in one of its own.
    V2,
    /// By the source address: what it answers has to be routed back, see [`host_state`](crate::host_state).
    Transparent,
}

/// A back end as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendOptions {
    /// Its name, for people.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// See [`ProxyMode`].
    pub proxy: ProxyMode,
    /// Longest time to connect.
    pub connect_limit: Duration,
    /// Longest time that a connection may carry nothing; for UDP see
    /// [`DatagramOptions`](crate::DatagramOptions).
    pub idle_limit: Duration,
    /// The same once one side has said its last: the other may have gone without a word.
    pub half_closed_limit: Duration,
    /// After a failure clients are refused at once for so long; then one is the next attempt.
    pub retry: Duration,
}

impl BackendOptions {
    /// 3 seconds to connect, an hour idle, a minute when half closed, a second between attempts, and no word of the client.
    #[must_use]
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            address,
            proxy: ProxyMode::None,
            connect_limit: Duration::from_secs(3),
            idle_limit: Duration::from_secs(3600),
            half_closed_limit: Duration::from_secs(60),
            retry: Duration::from_secs(1),
        }
    }
}

/// Whether a back end answers, as far as the last client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It does, or nobody has asked yet.
    Up,
    /// It does not.
    Down {
        /// When the first of the attempts that failed in a row did.
        since: Instant,
        /// Why the last one did.
        error: String,
    },
}

counters! {
    /// What became of the clients of one back end.
    BackendCounters, BackendCounts {
        /// Connections or flows it has now.
        open,
        /// Those that reached it.
        connected,
        /// Those that could not be connected, or for UDP were told that nobody listens.
        failed,
        /// Those refused at once because it had just failed.
        refused,
        /// Connections given up because they carried nothing.
        idle,
        /// Bytes from clients.
        bytes_in,
        /// Bytes to clients.
        bytes_out,
    }
}

/// A back end and its state. Shared by all who use it.
#[derive(Debug)]
pub struct Backend {
    options: BackendOptions,
    down: AtomicBool,
    /// While it is down: when the next client may try, in the coarse clock's milliseconds.
    next_try: AtomicU64,
    failure: Mutex<Option<(Instant, String)>>,
    pub(crate) counters: BackendCounters,
}

impl Backend {
    /// A back end that nobody has asked yet.
    #[must_use]
    pub fn new(options: BackendOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            down: AtomicBool::new(false),
            next_try: AtomicU64::new(0),
            failure: Mutex::new(None),
            counters: BackendCounters::default(),
        })
    }

    /// As it is configured.
    #[must_use]
    pub fn options(&self) -> &BackendOptions {
        &self.options
    }

    /// Whether it answers.
    #[must_use]
    pub fn status(&self) -> Status {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((since, error)) => Status::Down { since: *since, error: error.clone() },
            None => Status::Up,
        }
    }

    /// What became of its clients.
    #[must_use]
    pub fn counts(&self) -> BackendCounts {
        self.counters.snapshot()
    }

    /// Whether a client may try to connect now. Of those that come while it is down one may in each period, so that
    /// connections do not pile up before a wall.
    pub(crate) fn admit(&self, now: u64) -> bool {
        if !self.down.load(Ordering::Acquire) {
            return true;
        }
        let due = self.next_try.load(Ordering::Acquire);
        // Should this client leave without an answer, another has its turn when it would have come.
        let later = now + millis(self.options.connect_limit) + millis(self.options.retry);
        now >= due && self.next_try.compare_exchange(due, later, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// An attempt failed; true when it is news.
    pub(crate) fn failed(&self, now: u64, error: &io::Error) -> bool {
        self.counters.failed.raise();
        self.next_try.store(now + millis(self.options.retry), Ordering::Release);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let since = failure.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *failure = Some((since, error.to_string()));
        !self.down.swap(true, Ordering::AcqRel)
    }

    /// It has answered; true when it is news.
    pub(crate) fn answered(&self) -> bool {
        if !self.down.load(Ordering::Acquire) {
            return false;
        }
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.down.swap(false, Ordering::AcqRel)
    }
}

/// Whole milliseconds, for the coarse clock.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Error {
        io::ErrorKind::ConnectionRefused.into()
    }

    #[test]
    fn after_a_failure_one_client_in_each_period_tries() {
        let options = BackendOptions {
            connect_limit: Duration::from_secs(3),
            ..BackendOptions::new("back", "127.0.0.1:1".parse().unwrap())
        };
        let backend = Backend::new(options);
        assert!(backend.admit(0) && backend.admit(0));
        assert!(backend.failed(1000, &refused()), "news");
        assert!(!backend.failed(1000, &refused()), "no news");

        assert!(!backend.admit(1999));
        assert!(backend.admit(2000), "the next attempt");
        assert!(!backend.admit(2000) && !backend.admit(5999), "while that one is under way");
        assert!(backend.admit(6000), "it gave no answer");
        assert!(matches!(backend.status(), Status::Down { error, .. } if error == "connection refused"));

        assert!(backend.answered());
        assert!(!backend.answered());
        assert!(backend.admit(6001) && backend.admit(6001));
        assert_eq!(backend.status(), Status::Up);
    }
}
