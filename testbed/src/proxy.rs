//! A bad network between two machines: it loses, delays, reorders, repeats, slows down and stops packets; and it
//! remembers, changes and adds some.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::listener::Listening;
use crate::{Host, Rng};

/// Packets remembered.
const REMEMBERED: usize = 256;
/// How long the proxy sleeps at most before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a client to the server.
    ToServer,
    /// From the server to a client.
    ToClient,
}

/// What becomes of a packet that a hook has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It goes on.
    Pass,
    /// It is gone.
    Drop,
    /// These go on in its place, at once and in this order.
    Instead(Vec<Vec<u8>>),
}

/// What a bad network does to packets, both ways. The default does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Impairment {
    /// Share of packets that are lost.
    pub loss: f64,
    /// Share of packets that come twice.
    pub duplicate: f64,
    /// How long each packet takes.
    pub delay: Duration,
    /// How much longer it may take, at random: packets overtake each other.
    pub jitter: Duration,
    /// Bytes per second, in each direction; 0 for no limit.
    pub rate: u64,
    /// Nothing passes.
    pub black_hole: bool,
}

type Hook = Box<dyn FnMut(Direction, usize, &[u8]) -> Action + Send>;

/// A relay for UDP with room for accidents. Each client gets a source port of its own towards the server.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Shared {
    ended: AtomicBool,
    rebind: AtomicBool,
    impairment: Mutex<Impairment>,
    hook: Mutex<Option<Hook>>,
    remembered: Mutex<Vec<(Direction, Vec<u8>)>>,
    injected: Mutex<Vec<Vec<u8>>>,
    upstream: Mutex<Vec<SocketAddr>>,
}

impl Proxy {
    /// Starts a relay on a free port of `address`, which `host` has; `seed` decides all accidents.
    ///
    /// # Panics
    /// When `host` does not have the address.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Arc<Host>, address: IpAddr, server: SocketAddr, seed: u64) -> Self {
        let front =
            host.run_in(|| UdpSocket::bind(SocketAddr::new(address, 0))).expect("an address of the host");
        front.set_nonblocking(true).expect("nonblocking");
        let address = front.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            ended: AtomicBool::new(false),
            rebind: AtomicBool::new(false),
            impairment: Mutex::default(),
            hook: Mutex::new(None),
            remembered: Mutex::default(),
            injected: Mutex::default(),
            upstream: Mutex::default(),
        });
        let relay = Relay {
            host: Arc::clone(host),
            front,
            server,
            clients: Vec::new(),
            by_address: HashMap::new(),
            rng: Rng::new(seed),
            due: BinaryHeap::new(),
            counter: 0,
            free_at: [Instant::now(); 2],
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::spawn(move || relay.run());
        Self { address, shared, thread: Some(thread) }
    }

    /// Where clients reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to packets from now on.
    pub fn impair(&self, impairment: Impairment) {
        *lock(&self.shared.impairment) = impairment;
    }

    /// Lets nothing pass, or everything again.
    pub fn black_hole(&self, on: bool) {
        lock(&self.shared.impairment).black_hole = on;
    }

    /// Forgets all source ports towards the server, as a NAT does that was restarted: the next packet of each
    /// client comes from a new one.
    pub fn rebind(&self) {
        self.shared.rebind.store(true, Ordering::Relaxed);
    }

    /// Calls `hook` for each packet with its direction and its number in that direction, from 0.
    pub fn hook(&self, hook: impl FnMut(Direction, usize, &[u8]) -> Action + Send + 'static) {
        *lock(&self.shared.hook) = Some(Box::new(hook));
    }

    /// The first packets as they came in, in order.
    #[must_use]
    pub fn remembered(&self) -> Vec<(Direction, Vec<u8>)> {
        lock(&self.shared.remembered).clone()
    }

    /// Sends a packet to the server as if the newest client had sent it. Nothing happens before there is one.
    pub fn inject(&self, packet: Vec<u8>) {
        lock(&self.shared.injected).push(packet);
    }

    /// Where the server sees the clients, in order of their first packets.
    #[must_use]
    pub fn upstream(&self) -> Vec<SocketAddr> {
        lock(&self.shared.upstream).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Client {
    address: SocketAddr,
    upstream: UdpSocket,
}

/// A packet with the time at which it goes on; the number keeps the order of equals.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    at: Instant,
    number: u64,
    client: usize,
    to_server: bool,
    bytes: Vec<u8>,
}

struct Relay {
    host: Arc<Host>,
    front: UdpSocket,
    server: SocketAddr,
    clients: Vec<Client>,
    by_address: HashMap<SocketAddr, usize>,
    rng: Rng,
    due: BinaryHeap<Reverse<Waiting>>,
    counter: u64,
    /// When the link is free again, to the server and to the client.
    free_at: [Instant; 2],
    shared: Arc<Shared>,
}

impl Relay {
    fn run(mut self) {
        let mut numbers = [0; 2];
        while !self.shared.ended.load(Ordering::Relaxed) {
            self.wait();
            self.obey();
            let mut buffer = [0; 65536];
            while let Ok((len, from)) = self.front.recv_from(&mut buffer) {
                let client = self.client(from);
                self.packet(client, Direction::ToServer, &buffer[..len], &mut numbers);
            }
            for client in 0..self.clients.len() {
                while let Ok(len) = self.clients[client].upstream.recv(&mut buffer) {
                    self.packet(client, Direction::ToClient, &buffer[..len], &mut numbers);
                }
            }
            self.deliver();
        }
    }

    /// Waits for a packet, or until one is due.
    fn wait(&self) {
        let now = Instant::now();
        let next =
            self.due.peek().map_or(LOOK, |Reverse(next)| next.at.saturating_duration_since(now).min(LOOK));
        let sockets = self.clients.iter().map(|client| &client.upstream).chain([&self.front]);
        let mut fds: Vec<_> =
            sockets.map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(next.subsec_nanos()) };
        let _ = poll(&mut fds, Some(&timeout));
    }

    fn obey(&mut self) {
        if self.shared.rebind.swap(false, Ordering::Relaxed) {
            for at in 0..self.clients.len() {
                self.clients[at].upstream = self.connect();
            }
            self.publish();
        }
        let injected = std::mem::take(&mut *lock(&self.shared.injected));
        for packet in injected {
            match self.clients.last() {
                Some(client) => drop(client.upstream.send(&packet)),
                None => lock(&self.shared.injected).push(packet),
            }
        }
    }

    fn connect(&self) -> UdpSocket {
        let address = SocketAddr::new(self.front.local_addr().expect("bound").ip(), 0);
        let socket = self.host.run_in(|| {
            let socket = UdpSocket::bind(address)?;
            socket.connect(self.server)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        });
        socket.expect("a way to the server")
    }

    fn publish(&self) {
        let addresses = self.clients.iter().filter_map(|client| client.upstream.local_addr().ok());
        *lock(&self.shared.upstream) = addresses.collect();
    }

    fn client(&mut self, from: SocketAddr) -> usize {
        if let Some(known) = self.by_address.get(&from) {
            return *known;
        }
        let upstream = self.connect();
        self.clients.push(Client { address: from, upstream });
        self.by_address.insert(from, self.clients.len() - 1);
        self.publish();
        self.clients.len() - 1
    }

    fn packet(&mut self, client: usize, direction: Direction, bytes: &[u8], numbers: &mut [usize; 2]) {
        let number = &mut numbers[usize::from(direction == Direction::ToClient)];
        let action = match lock(&self.shared.hook).as_mut() {
            Some(hook) => hook(direction, *number, bytes),
            None => Action::Pass,
        };
        *number += 1;
        let mut remembered = lock(&self.shared.remembered);
        if remembered.len() < REMEMBERED {
            remembered.push((direction, bytes.to_vec()));
        }
        drop(remembered);
        let packets = match action {
            Action::Pass => vec![bytes.to_vec()],
            Action::Drop => Vec::new(),
            Action::Instead(packets) => packets,
        };
        for packet in packets {
            self.accident(client, direction, &packet);
        }
    }

    fn accident(&mut self, client: usize, direction: Direction, bytes: &[u8]) {
        let bad = *lock(&self.shared.impairment);
        if bad.black_hole || self.rng.chance(bad.loss) {
            return;
        }
        let copies = if self.rng.chance(bad.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = Instant::now() + bad.delay;
            if !bad.jitter.is_zero() {
                at += Duration::from_nanos(self.rng.next_u64() % bad.jitter.as_nanos() as u64);
            }
            if bad.rate > 0 {
                let free = &mut self.free_at[usize::from(direction == Direction::ToClient)];
                let start = (*free).max(Instant::now());
                *free = start + Duration::from_secs_f64(bytes.len() as f64 / bad.rate as f64);
                at = at.max(*free);
            }
            self.counter += 1;
            let to_server = direction == Direction::ToServer;
            self.due.push(Reverse(Waiting {
                at,
                number: self.counter,
                client,
                to_server,
                bytes: bytes.to_vec(),
            }));
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(packet)) = self.due.pop() {
            if packet.at > now {
                self.due.push(Reverse(packet));
                return;
            }
            let client = &self.clients[packet.client];
            // What a network refuses is lost, as it would be further on.
            let _ = if packet.to_server {
                client.upstream.send(&packet.bytes)
            } else {
                self.front.send_to(&packet.bytes, client.address)
            };
        }
    }
}

/// A relay for TCP that takes its time, and remembers what clients say first.
#[derive(Debug)]
pub struct TcpProxy {
    listening: Listening,
    said: Arc<Mutex<Vec<u8>>>,
}

impl TcpProxy {
    /// Starts a relay on a free port of `address`, which `host` has; everything takes `delay` longer, each way.
    ///
    /// # Panics
    /// When `host` does not have the address.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Arc<Host>, address: IpAddr, server: SocketAddr, delay: Duration) -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        let (inside, log) = (Arc::clone(host), Arc::clone(&said));
        let listening = Listening::start(host, SocketAddr::new(address, 0), move |client| {
            if let Ok(server) = inside.run_in(|| TcpStream::connect(server)) {
                relay(&client, &server, delay, Some(Arc::clone(&log)));
                relay(&server, &client, delay, None);
            }
        });
        Self { listening, said }
    }

    /// Where clients reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// What clients have sent, all in one; the beginning of it.
    #[must_use]
    pub fn said(&self) -> Vec<u8> {
        lock(&self.said).clone()
    }
}

fn relay(from: &TcpStream, to: &TcpStream, delay: Duration, log: Option<Arc<Mutex<Vec<u8>>>>) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
    let _ = to.set_nodelay(true);
    let (late, waiting): (Sender<(Instant, Vec<u8>)>, Receiver<_>) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(len) = from.read(&mut buffer) {
            if len == 0 || late.send((Instant::now() + delay, buffer[..len].to_vec())).is_err() {
                return;
            }
            if let Some(log) = &log {
                let mut log = lock(log);
                let room = (1_usize << 16).saturating_sub(log.len());
                log.extend_from_slice(&buffer[..len.min(room)]);
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in waiting {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    struct Line {
        host: Arc<Host>,
        proxy: Proxy,
        client: UdpSocket,
        server: UdpSocket,
    }

    fn line(seed: u64) -> Line {
        let host = Arc::new(Host::new("proxy"));
        let bind = || {
            let socket = host.run_in(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket
        };
        let (client, server) = (bind(), bind());
        let proxy = Proxy::start(&host, [127, 0, 0, 1].into(), server.local_addr().unwrap(), seed);
        client.connect(proxy.address()).unwrap();
        Line { host, proxy, client, server }
    }

    fn arrives(socket: &UdpSocket) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())
    }

    #[test]
    fn packets_pass_both_ways_and_are_remembered() {
        let line = line(1);
        line.client.send(b"ask").unwrap();
        let mut buffer = [0; 16];
        let (_, from) = line.server.recv_from(&mut buffer).unwrap();
        assert_eq!(line.proxy.upstream(), [from]);
        line.server.send_to(b"answer", from).unwrap();
        assert_eq!(arrives(&line.client).unwrap(), b"answer");
        let expected = [(Direction::ToServer, b"ask".to_vec()), (Direction::ToClient, b"answer".to_vec())];
        assert_eq!(line.proxy.remembered(), expected);
        line.proxy.rebind();
        line.client.send(b"again").unwrap();
        let (_, moved) = line.server.recv_from(&mut buffer).unwrap();
        assert_ne!(from.port(), moved.port());
        assert_eq!(line.host.role(), "proxy");
    }

    #[test]
    fn a_delay_delays_and_a_black_hole_swallows() {
        let line = line(2);
        line.proxy.impair(Impairment { delay: Duration::from_millis(80), ..Impairment::default() });
        let sent = Instant::now();
        line.client.send(b"late").unwrap();
        assert_eq!(arrives(&line.server).unwrap(), b"late");
        assert!(sent.elapsed() >= Duration::from_millis(80));
        line.proxy.black_hole(true);
        line.client.send(b"never").unwrap();
        assert_eq!(arrives(&line.server), None);
        line.proxy.black_hole(false);
        line.client.send(b"back").unwrap();
        assert_eq!(arrives(&line.server).unwrap(), b"back");
    }

    #[test]
    fn jitter_reorders_and_a_rate_slows_down() {
        let line = line(3);
        line.proxy.impair(Impairment { jitter: Duration::from_millis(50), ..Impairment::default() });
        for number in 0..50_u8 {
            line.client.send(&[number]).unwrap();
        }
        let order: Vec<u8> = (0..50).map(|_| arrives(&line.server).unwrap()[0]).collect();
        assert!(!order.is_sorted());
        line.proxy.impair(Impairment { rate: 100_000, ..Impairment::default() });
        let started = Instant::now();
        for _ in 0..20 {
            line.client.send(&[0; 1000]).unwrap();
        }
        for _ in 0..20 {
            arrives(&line.server).unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(180));
    }

    #[test]
    fn a_hook_changes_drops_and_adds() {
        let line = line(4);
        line.proxy.hook(|direction, number, bytes| match (direction, number) {
            (Direction::ToServer, 0) => Action::Drop,
            (Direction::ToServer, 1) => Action::Instead(vec![b"other".to_vec(), bytes.to_vec()]),
            _ => Action::Pass,
        });
        for word in [b"one", b"two"] {
            line.client.send(word).unwrap();
        }
        assert_eq!(arrives(&line.server).unwrap(), b"other");
        assert_eq!(arrives(&line.server).unwrap(), b"two");
        line.proxy.inject(b"strange".to_vec());
        assert_eq!(arrives(&line.server).unwrap(), b"strange");
    }

    #[test]
    fn a_stream_takes_its_time_and_arrives_whole() {
        let host = Arc::new(Host::new("proxy"));
        let listener = host.run_in(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let server = listener.local_addr().unwrap();
        let proxy = TcpProxy::start(&host, [127, 0, 0, 1].into(), server, Duration::from_millis(60));
        let mut client = host.run_in(|| TcpStream::connect(proxy.address())).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let sent = Instant::now();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), proxy.said().as_slice()), ("hello", &b"hello"[..]));
        assert!(sent.elapsed() >= Duration::from_millis(60));
    }
}
