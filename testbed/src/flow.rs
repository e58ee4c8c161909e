//! Numbered datagrams both ways at a steady pace: whatever is lost or repeated is seen by its number.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Host, eventually};

/// Bytes of a datagram.
const SIZE: usize = 200;
/// How long a receiver waits before it looks whether the flow has ended.
const LOOK: Duration = Duration::from_millis(20);

/// A flow between a client, which speaks first, and a server.
#[derive(Debug)]
pub struct Flow {
    up: Arc<Way>,
    down: Arc<Way>,
    sending: Arc<AtomicBool>,
    receiving: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    sent: AtomicU64,
    arrived: Mutex<Arrived>,
}

#[derive(Debug, Default)]
struct Arrived {
    /// How often each number came.
    counts: Vec<u8>,
    distinct: u64,
    last: Option<Instant>,
    largest_gap: Duration,
}

/// What became of the datagrams of one direction.
#[derive(Debug, Clone)]
pub struct Tally {
    /// How many were sent.
    pub sent: u64,
    /// Numbers that never came.
    pub missing: Vec<u64>,
    /// How many came more than once.
    pub repeated: u64,
    /// The longest time without any.
    pub largest_gap: Duration,
    /// When the last one came.
    pub last: Option<Instant>,
}

/// What became of a flow.
#[derive(Debug, Clone)]
pub struct FlowTally {
    /// From the client to the server.
    pub up: Tally,
    /// From the server to the client.
    pub down: Tally,
}

impl FlowTally {
    /// Nothing was lost and nothing repeated.
    ///
    /// # Panics
    /// When something was.
    #[track_caller]
    pub fn must_be_complete(&self) {
        for (way, tally) in [("up", &self.up), ("down", &self.down)] {
            assert!(tally.sent > 0, "nothing was sent {way}");
            assert!(tally.missing.is_empty(), "lost {way}, of {}: {:?}", tally.sent, tally.missing);
            assert_eq!(tally.repeated, 0, "came twice, {way}");
        }
    }
}

impl Flow {
    /// Starts a flow from `client` to `address` of `server`, a datagram each `pace` in each direction. Returns when
    /// datagrams have arrived both ways.
    ///
    /// # Panics
    /// When none arrive.
    #[must_use]
    #[track_caller]
    pub fn start(client: &Host, server: &Host, address: IpAddr, pace: Duration) -> Self {
        let flow = Self::launch(client, server, address, pace);
        flow.wait_for(3, Duration::from_secs(10));
        flow
    }

    #[track_caller]
    fn launch(client: &Host, server: &Host, address: IpAddr, pace: Duration) -> Self {
        let listen = |host: &Host, address: SocketAddr| {
            let socket = host.run_in(|| UdpSocket::bind(address)).expect("a free port");
            socket.set_read_timeout(Some(LOOK)).expect("a timeout");
            Arc::new(socket)
        };
        let far = listen(server, SocketAddr::new(address, 0));
        let target = far.local_addr().expect("bound");
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let near = listen(client, SocketAddr::new(any, 0));
        let mut flow = Self {
            up: Arc::default(),
            down: Arc::default(),
            sending: Arc::new(AtomicBool::new(true)),
            receiving: Arc::new(AtomicBool::new(true)),
            threads: Vec::new(),
        };
        let to_server = Arc::new(Mutex::new(Some(target)));
        let to_client = Arc::new(Mutex::new(None));
        flow.send(Arc::clone(&near), to_server, Arc::clone(&flow.up), pace);
        flow.send(Arc::clone(&far), Arc::clone(&to_client), Arc::clone(&flow.down), pace);
        flow.receive(far, Arc::clone(&flow.up), Some(to_client));
        flow.receive(near, Arc::clone(&flow.down), None);
        flow
    }

    fn send(
        &mut self,
        socket: Arc<UdpSocket>,
        target: Arc<Mutex<Option<SocketAddr>>>,
        way: Arc<Way>,
        pace: Duration,
    ) {
        let sending = Arc::clone(&self.sending);
        self.threads.push(std::thread::spawn(move || {
            let mut datagram = [0; SIZE];
            let mut due = Instant::now();
            while sending.load(Ordering::Relaxed) {
                let to = *lock(&target);
                if let Some(to) = to {
                    let number = way.sent.fetch_add(1, Ordering::Relaxed);
                    datagram[..8].copy_from_slice(&number.to_be_bytes());
                    // What cannot be sent will be missing.
                    let _ = socket.send_to(&datagram, to);
                }
                // No bursts after a pause: the pace is part of what is promised.
                due = (due + pace).max(Instant::now());
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }));
    }

    fn receive(
        &mut self,
        socket: Arc<UdpSocket>,
        way: Arc<Way>,
        learn: Option<Arc<Mutex<Option<SocketAddr>>>>,
    ) {
        let receiving = Arc::clone(&self.receiving);
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while receiving.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(learn) = &learn {
                    *lock(learn) = Some(from);
                }
                if let (SIZE, Some(number)) = (len, buffer.first_chunk()) {
                    way.note(u64::from_be_bytes(*number));
                }
            }
        }));
    }

    /// How many different datagrams have arrived up and down.
    #[must_use]
    pub fn arrived(&self) -> (u64, u64) {
        (lock(&self.up.arrived).distinct, lock(&self.down.arrived).distinct)
    }

    /// Waits until this many more have arrived in each direction.
    ///
    /// # Panics
    /// When they do not within `limit`.
    #[track_caller]
    pub fn wait_for(&self, more: u64, limit: Duration) {
        let (up, down) = self.arrived();
        eventually(&format!("{more} more datagrams each way after {up} and {down}"), limit, || {
            let (now_up, now_down) = self.arrived();
            now_up >= up + more && now_down >= down + more
        });
    }

    /// Ends it. What is still under way has two seconds to arrive.
    #[must_use]
    pub fn stop(mut self) -> FlowTally {
        self.sending.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && !(self.up.is_complete() && self.down.is_complete()) {
            std::thread::sleep(LOOK);
        }
        self.end();
        FlowTally { up: self.up.tally(), down: self.down.tally() }
    }

    fn end(&mut self) {
        self.sending.store(false, Ordering::Relaxed);
        self.receiving.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.end();
    }
}

impl Way {
    fn note(&self, number: u64) {
        let mut arrived = lock(&self.arrived);
        let at = number as usize;
        if at >= arrived.counts.len() {
            arrived.counts.resize(at + 1, 0);
        }
        if arrived.counts[at] == 0 {
            arrived.distinct += 1;
        }
        arrived.counts[at] = arrived.counts[at].saturating_add(1);
        let now = Instant::now();
        let gap = arrived.last.map_or(Duration::ZERO, |last| now - last);
        arrived.largest_gap = arrived.largest_gap.max(gap);
        arrived.last = Some(now);
    }

    fn is_complete(&self) -> bool {
        lock(&self.arrived).distinct == self.sent.load(Ordering::Relaxed)
    }

    fn tally(&self) -> Tally {
        let arrived = lock(&self.arrived);
        let sent = self.sent.load(Ordering::Relaxed);
        let came = |number: &u64| arrived.counts.get(*number as usize).is_some_and(|count| *count > 0);
        Tally {
            sent,
            missing: (0..sent).filter(|number| !came(number)).collect(),
            repeated: arrived.counts.iter().filter(|count| **count > 1).count() as u64,
            largest_gap: arrived.largest_gap,
            last: arrived.last,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Impairment, Proxy};

    const PACE: Duration = Duration::from_millis(1);

    #[test]
    fn what_arrives_is_complete_on_a_good_path() {
        let host = Host::new("flow");
        let flow = Flow::start(&host, &host, [127, 0, 0, 1].into(), PACE);
        flow.wait_for(50, Duration::from_secs(10));
        flow.stop().must_be_complete();
    }

    #[test]
    fn loss_and_repetition_are_seen() {
        let host = Arc::new(Host::new("flow"));
        // A flow's own server cannot be behind a proxy, so numbers are sent by hand.
        let server = host.run_in(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let proxy = Proxy::start(&host, [127, 0, 0, 1].into(), server.local_addr().unwrap(), 5);
        proxy.impair(Impairment { loss: 0.3, duplicate: 0.3, ..Impairment::default() });
        let client = host.run_in(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let way = Way::default();
        for number in 0..200_u64 {
            way.sent.fetch_add(1, Ordering::Relaxed);
            client.send_to(&number.to_be_bytes(), proxy.address()).unwrap();
        }
        let mut buffer = [0; 64];
        while let Ok(len) = server.recv(&mut buffer) {
            assert_eq!(len, 8);
            way.note(u64::from_be_bytes(*buffer.first_chunk().unwrap()));
        }
        let tally = way.tally();
        assert!((30..=90).contains(&tally.missing.len()), "{tally:?}");
        assert!((20..=70).contains(&tally.repeated), "{tally:?}");
    }
}
