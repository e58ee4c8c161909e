//! A TCP stream that never stops: bytes in a known order both ways, with the longest pause remembered.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Host, eventually};

/// Bytes written at a time.
const CHUNK: usize = 1000;
/// The bytes repeat after this many, which no chunk or segment size divides.
const PERIOD: u64 = 251;

/// A running stream.
#[derive(Debug)]
pub struct TcpFlow {
    ways: [Arc<Way>; 2],
    writing: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    streams: [TcpStream; 2],
}

#[derive(Debug, Default)]
struct Way {
    written: AtomicU64,
    read: AtomicU64,
    wrong: AtomicBool,
    pauses: Mutex<(Option<Instant>, Duration)>,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy)]
pub struct TcpTally {
    /// Bytes from the client to the server.
    pub up: u64,
    /// Bytes from the server to the client.
    pub down: u64,
    /// The longest time in which nothing arrived, in either direction.
    pub largest_gap: Duration,
}

impl TcpFlow {
    /// Connects `client` to `address` of `server`; each side writes a thousand bytes each `pace`.
    ///
    /// # Panics
    /// When no connection is made.
    #[must_use]
    #[track_caller]
    pub fn start(client: &Host, server: &Host, address: IpAddr, pace: Duration) -> Self {
        let listener = server.run_in(|| TcpListener::bind(SocketAddr::new(address, 0))).expect("a free port");
        let target = listener.local_addr().expect("bound");
        let near = client.run_in(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)));
        let near = near.unwrap_or_else(|error| panic!("{}: connect to {target}: {error}", client.role()));
        let (far, _) = listener.accept().expect("the connection");
        let writing = Arc::new(AtomicBool::new(true));
        let ways = [Arc::new(Way::default()), Arc::new(Way::default())];
        let mut threads = Vec::new();
        for (way, from, to) in [(&ways[0], &near, &far), (&ways[1], &far, &near)] {
            let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
            let (from, to) = (clone(from), clone(to));
            let (out, into, on) = (Arc::clone(way), Arc::clone(way), Arc::clone(&writing));
            threads.push(std::thread::spawn(move || write(from, &out, &on, pace)));
            threads.push(std::thread::spawn(move || read(to, &into)));
        }
        Self { ways, writing, threads, streams: [near, far] }
    }

    /// Bytes that have arrived up and down.
    #[must_use]
    pub fn arrived(&self) -> (u64, u64) {
        let [up, down] = &self.ways;
        (up.read.load(Ordering::Relaxed), down.read.load(Ordering::Relaxed))
    }

    /// Waits until this many more bytes have arrived each way.
    ///
    /// # Panics
    /// When they do not within `limit`.
    #[track_caller]
    pub fn wait_for(&self, more: u64, limit: Duration) {
        let (up, down) = self.arrived();
        eventually(&format!("{more} more bytes each way"), limit, || {
            let (now_up, now_down) = self.arrived();
            now_up >= up + more && now_down >= down + more
        });
    }

    /// Ends it and checks that every byte has arrived as it was sent.
    ///
    /// # Panics
    /// When bytes are missing or wrong.
    #[track_caller]
    pub fn stop(mut self) -> TcpTally {
        self.writing.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let mut largest_gap = Duration::ZERO;
        for way in &self.ways {
            assert!(!way.wrong.load(Ordering::Relaxed), "a byte is not the one that was sent");
            let (written, read) = (way.written.load(Ordering::Relaxed), way.read.load(Ordering::Relaxed));
            assert_eq!(written, read, "bytes are missing");
            largest_gap = largest_gap.max(way.pauses.lock().unwrap_or_else(PoisonError::into_inner).1);
        }
        let (up, down) = self.arrived();
        TcpTally { up, down, largest_gap }
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        self.writing.store(false, Ordering::Relaxed);
        for stream in &self.streams {
            // Already closed when it was stopped.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn write(mut stream: TcpStream, way: &Way, on: &AtomicBool, pace: Duration) {
    let mut at = 0_u64;
    while on.load(Ordering::Relaxed) {
        let chunk: Vec<u8> = (at..at + CHUNK as u64).map(|n| (n % PERIOD) as u8).collect();
        if stream.write_all(&chunk).is_err() {
            return;
        }
        at += CHUNK as u64;
        way.written.store(at, Ordering::Relaxed);
        std::thread::sleep(pace);
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn read(mut stream: TcpStream, way: &Way) {
    // A stream that stands still for so long is as good as broken.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let mut buffer = [0; 4096];
    let mut at = 0_u64;
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let right =
            buffer[..len].iter().enumerate().all(|(n, byte)| u64::from(*byte) == (at + n as u64) % PERIOD);
        if !right {
            way.wrong.store(true, Ordering::Relaxed);
        }
        at += len as u64;
        way.read.store(at, Ordering::Relaxed);
        let mut pauses = way.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gap = pauses.0.map_or(Duration::ZERO, |last| now - last);
        *pauses = (Some(now), pauses.1.max(gap));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives() {
        let host = Host::new("tcp");
        let flow = TcpFlow::start(&host, &host, [127, 0, 0, 1].into(), Duration::from_millis(1));
        flow.wait_for(20_000, Duration::from_secs(10));
        let tally = flow.stop();
        assert!(tally.up >= 20_000 && tally.down >= 20_000, "{tally:?}");
        assert!(tally.largest_gap > Duration::ZERO);
    }
}
