//! Waiting for many descriptors at once, and being woken by another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::errno::uninterrupted;

/// What to be told about a descriptor. Errors and hang-ups are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    flags: EventFlags,
}

impl Interest {
    /// There is something to read, or the peer will send no more.
    pub const READ: Self = Self { flags: EventFlags::IN.union(EventFlags::RDHUP) };
    /// There is room to write.
    pub const WRITE: Self = Self { flags: EventFlags::OUT };
    /// Both.
    pub const READ_WRITE: Self = Self { flags: Self::READ.flags.union(Self::WRITE.flags) };
    /// Neither; errors and hang-ups only.
    pub const NONE: Self = Self { flags: EventFlags::empty() };

    /// Told once per change instead of for as long as it is so: whoever is told must read or write until the
    /// call would block.
    #[must_use]
    pub const fn edge(self) -> Self {
        Self { flags: self.flags.union(EventFlags::ET) }
    }

    /// Of several threads that wait for one listener, each in a poller of its own, one is woken and not all. Such an
    /// interest cannot be modified, only removed.
    #[must_use]
    pub const fn exclusive(self) -> Self {
        // With this flag the kernel takes no other but those of reading, writing and edges.
        let flags = self.flags.difference(EventFlags::RDHUP);
        Self { flags: flags.union(EventFlags::EXCLUSIVE) }
    }
}

/// One descriptor that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The token it was added with.
    pub token: u64,
    /// Reading will not block: there is data, an end or an error.
    pub readable: bool,
    /// Writing will not block: there is room or an error.
    pub writable: bool,
    /// The peer sends no more, or the connection is gone.
    pub closed: bool,
}

/// A set of events that [`Poller::wait`] fills; its size bounds how many one call reports.
pub struct Events {
    list: Vec<epoll::Event>,
}

impl Events {
    /// Room for `capacity` events, at least one.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { list: Vec::with_capacity(capacity.max(1)) }
    }

    /// What the last wait reported.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.list.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Event {
                token: data.u64(),
                readable: broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                writable: broken || flags.contains(EventFlags::OUT),
                closed: flags.intersects(EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR),
            }
        })
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// An epoll instance. Descriptors are added with a token of the caller's choice and removed before they are
/// closed.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Adds `fd`.
    ///
    /// # Errors
    /// When it is there already, or cannot be waited for.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest.flags)?)
    }

    /// Changes token and interest of `fd`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), interest.flags)?)
    }

    /// Removes `fd`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until something is ready, at most for `timeout` (rounded up to milliseconds; `None` waits for
    /// ever, zero not at all), fills `events` and returns how many there are. A signal may end the wait early
    /// with none.
    ///
    /// # Errors
    /// Only for a bug: the epoll descriptor is valid as long as this value lives.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|duration| {
            // What older kernels take: a positive 32-bit number of milliseconds.
            let millis = duration.as_nanos().div_ceil(1_000_000).min(i32::MAX.unsigned_abs().into()) as i64;
            Timespec { tv_sec: millis / 1000, tv_nsec: (millis % 1000) * 1_000_000 }
        });
        events.list.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events.list), timeout.as_ref()) {
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Wakes a thread that waits in [`Poller::wait`]. Add it to the poller for reading, share it, and call
/// [`drain`](Self::drain) when its token is reported.
#[derive(Debug)]
pub struct Waker {
    eventfd: OwnedFd,
    /// It was rung and not drained since: ringing it again would be a system call for nothing.
    rung: AtomicBool,
}

impl Waker {
    /// A waker that nobody has rung yet.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { eventfd, rung: AtomicBool::new(false) })
    }

    /// Makes it readable. Any number of calls before a [`drain`](Self::drain) are one.
    pub fn wake(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        // The only failure is a counter that is full, and then the waker is readable already.
        let _ = uninterrupted(|| rustix::io::write(&self.eventfd, &1u64.to_ne_bytes()));
    }

    /// Makes it unreadable again; says whether it was readable. Look for what it announces afterwards: whoever finds
    /// it rung relies on that.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        let readable = uninterrupted(|| rustix::io::read(&self.eventfd, &mut count)).is_ok();
        // Last, so that whoever rings from here on writes again.
        self.rung.swap(false, Ordering::AcqRel);
        readable
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    fn ready(poller: &Poller) -> Vec<Event> {
        let mut events = Events::with_capacity(8);
        poller.wait(&mut events, NOW).unwrap();
        events.iter().collect()
    }

    #[test]
    fn level_tells_until_it_is_read_and_edge_once() {
        for (interest, second) in [(Interest::READ, 1), (Interest::READ.edge(), 0)] {
            let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
            poller.add(&waker, 7, interest).unwrap();
            assert_eq!(ready(&poller), []);

            waker.wake();

            assert_eq!(ready(&poller), [Event { token: 7, readable: true, writable: false, closed: false }]);
            assert_eq!(ready(&poller).len(), second);
            assert!(waker.drain());
            assert!(!waker.drain());
            assert_eq!(ready(&poller), []);
        }
    }

    #[test]
    fn an_exclusive_interest_is_told_and_cannot_be_modified() {
        let poller = Poller::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        poller.add(&listener, 0, Interest::READ.exclusive()).unwrap();
        assert_eq!(ready(&poller), []);

        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();

        assert_eq!(ready(&poller), [Event { token: 0, readable: true, writable: false, closed: false }]);
        assert!(poller.modify(&listener, 0, Interest::READ).is_err());
    }

    #[test]
    fn a_waker_ends_the_wait_of_another_thread() {
        let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(&waker, 1, Interest::READ).unwrap();

        let woken = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut events = Events::with_capacity(1);
                poller.wait(&mut events, None).unwrap()
            });
            waker.wake();
            waiting.join().unwrap()
        });

        assert_eq!(woken, 1);
    }

    #[test]
    fn interest_can_be_changed_and_a_hang_up_is_told() {
        let poller = Poller::new().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        poller.add(&near, 3, Interest::NONE).unwrap();
        assert_eq!(ready(&poller), []);

        poller.modify(&near, 4, Interest::READ_WRITE).unwrap();
        assert_eq!(ready(&poller), [Event { token: 4, readable: false, writable: true, closed: false }]);

        // A child that another test has just forked may hold it still: dropping it would not do.
        far.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(ready(&poller), [Event { token: 4, readable: true, writable: true, closed: true }]);

        poller.remove(&near).unwrap();
        assert_eq!(ready(&poller), []);
    }

    #[test]
    fn a_short_timeout_is_never_rounded_down_to_none() {
        let poller = Poller::new().unwrap();
        let start = std::time::Instant::now();

        let count = poller.wait(&mut Events::with_capacity(1), Some(Duration::from_micros(300))).unwrap();

        assert_eq!(count, 0);
        assert!(start.elapsed() >= Duration::from_micros(300));
    }
}
