//! An outside server that writes down who came from where: all that a trace may be checked against.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_host::poll::{Events, Interest, Poller, Waker};

use crate::Host;

/// The token of what ends the thread.
const END: u64 = u64::MAX;
/// How long a caller waits for what comes back.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest name, in bytes.
const LONGEST: usize = 256;

/// A connection, or the first datagram of a flow, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// It was over TCP; else UDP.
    pub tcp: bool,
    /// Where it came from.
    pub remote: SocketAddr,
    /// The server's port.
    pub port: u16,
    /// What the caller called itself.
    pub name: String,
    /// When, in milliseconds since 1970.
    pub at: i64,
}

/// The server: echoes everything, on TCP and UDP of several ports.
#[derive(Debug)]
pub struct Witness {
    address: IpAddr,
    ports: Vec<u16>,
    seen: Arc<Mutex<Vec<Sighting>>>,
    end: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

/// A call that is held. It ends when this goes.
#[derive(Debug)]
pub enum Call {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over UDP.
    Udp(UdpSocket),
}

impl Call {
    /// Calls from this thread's network, says the name, and waits until it comes back.
    ///
    /// # Errors
    /// When nothing does.
    pub fn dial(to: SocketAddr, tcp: bool, name: &str) -> io::Result<Self> {
        let mut call = match tcp {
            true => {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Self::Tcp(stream)
            }
            false => {
                let any: SocketAddr = match to {
                    SocketAddr::V4(_) => ([0; 4], 0).into(),
                    SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Self::Udp(socket)
            }
        };
        call.say(&format!("{name}\n"))?;
        Ok(call)
    }

    /// Says something and waits until it comes back.
    ///
    /// # Errors
    /// When the call has ended, or nothing comes.
    pub fn say(&mut self, word: &str) -> io::Result<()> {
        let mut back = [0; LONGEST];
        let length = match self {
            Self::Tcp(stream) => {
                stream.write_all(word.as_bytes())?;
                let back = back.get_mut(..word.len()).ok_or(ErrorKind::InvalidInput)?;
                stream.read_exact(back)?;
                word.len()
            }
            Self::Udp(socket) => {
                socket.send(word.as_bytes())?;
                socket.recv(&mut back)?
            }
        };
        match back.get(..length) == Some(word.as_bytes()) {
            true => Ok(()),
            false => Err(io::Error::new(ErrorKind::InvalidData, "something else came back")),
        }
    }

    /// Where it comes from, as the caller sees it.
    ///
    /// # Panics
    /// Never: the sockets are bound.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        let local = match self {
            Self::Tcp(stream) => stream.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        };
        local.expect("bound")
    }
}

impl Witness {
    /// Listens on `address` of `host`, TCP and UDP, on so many ports.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    #[track_caller]
    pub fn start(host: &Host, address: IpAddr, ports: usize) -> Self {
        let sockets: Vec<_> = host
            .run_in(|| (0..ports).map(|_| pair(address)).collect::<io::Result<_>>())
            .unwrap_or_else(|error| panic!("{}: listen on {address}: {error}", host.role()));
        let ports = sockets.iter().map(|(port, ..)| *port).collect();
        let seen = Arc::<Mutex<Vec<Sighting>>>::default();
        let end = Arc::new(Waker::new().expect("a descriptor"));
        let (log, ended) = (Arc::clone(&seen), Arc::clone(&end));
        let thread = std::thread::spawn(move || serve(&sockets, &log, &ended));
        Self { address, ports, seen, end, thread: Some(thread) }
    }

    /// Where it listens: the address and one of the ports.
    ///
    /// # Panics
    /// When there are no ports.
    #[must_use]
    pub fn address(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.address, self.ports[number % self.ports.len()])
    }

    /// What was seen until now.
    #[must_use]
    pub fn seen(&self) -> Vec<Sighting> {
        lock(&self.seen).clone()
    }

    /// Calls from this thread's network, says the name, and waits until it comes back.
    ///
    /// # Errors
    /// When nothing does.
    pub fn call(&self, name: &str, tcp: bool, number: usize) -> io::Result<Call> {
        Call::dial(self.address(number), tcp, name)
    }

    /// Makes so many calls from this thread's network, TCP and UDP in turn, to all ports in turn, `at_once` of them held
    /// at a time; gives how many came through.
    #[must_use]
    pub fn call_often(&self, name: &str, count: usize, at_once: usize) -> usize {
        let mut done = 0;
        let mut held = Vec::with_capacity(at_once);
        for number in 0..count {
            if held.len() == at_once {
                held.clear();
            }
            if let Ok(call) = self.call(name, number % 2 == 0, number) {
                done += 1;
                held.push(call);
            }
        }
        done
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Vec<Sighting>>) -> MutexGuard<'_, Vec<Sighting>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

type Pair = (u16, TcpListener, UdpSocket);

/// A port that is free for both.
fn pair(address: IpAddr) -> io::Result<Pair> {
    for _ in 0..64 {
        let tcp = TcpListener::bind((address, 0))?;
        let port = tcp.local_addr()?.port();
        if let Ok(udp) = UdpSocket::bind((address, port)) {
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            return Ok((port, tcp, udp));
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

fn serve(sockets: &[Pair], seen: &Mutex<Vec<Sighting>>, end: &Waker) {
    let poller = Poller::new().expect("a descriptor");
    poller.add(end, END, Interest::READ).expect("a descriptor");
    for ((_, tcp, udp), number) in sockets.iter().zip(0_u64..) {
        poller.add(tcp, number * 2, Interest::READ).expect("a listener");
        poller.add(udp, number * 2 + 1, Interest::READ).expect("a socket");
    }
    let first = sockets.len() as u64 * 2;
    let mut next = first;
    let mut streams: HashMap<u64, Stream> = HashMap::new();
    let mut events = Events::with_capacity(256);
    let mut known: HashMap<(SocketAddr, u16), ()> = HashMap::new();
    loop {
        if poller.wait(&mut events, None).is_err() {
            return;
        }
        for event in events.iter() {
            match event.token {
                END => return,
                token if token >= first => {
                    let over = streams.get_mut(&token).is_some_and(|stream| !stream.go_on(seen));
                    if over && let Some(stream) = streams.remove(&token) {
                        let _ = poller.remove(&stream.stream);
                    }
                }
                token => {
                    let Some((port, tcp, udp)) = sockets.get((token / 2) as usize) else { continue };
                    if token % 2 == 1 {
                        answer(udp, *port, seen, &mut known);
                        continue;
                    }
                    while let Ok((stream, remote)) = tcp.accept() {
                        let _ = stream.set_nonblocking(true);
                        let _ = stream.set_nodelay(true);
                        if poller.add(&stream, next, Interest::READ).is_ok() {
                            streams.insert(next, Stream { stream, remote, port: *port, named: false });
                            next += 1;
                        }
                    }
                }
            }
        }
    }
}

struct Stream {
    stream: TcpStream,
    remote: SocketAddr,
    port: u16,
    named: bool,
}

impl Stream {
    /// Echoes what there is; false when there will be no more.
    fn go_on(&mut self, seen: &Mutex<Vec<Sighting>>) -> bool {
        let mut bytes = [0; LONGEST];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                let said = bytes.get(..length).unwrap_or_default();
                if !std::mem::replace(&mut self.named, true) {
                    note(seen, true, self.remote, self.port, said);
                }
                self.stream.write_all(said).is_ok()
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

fn answer(
    udp: &UdpSocket,
    port: u16,
    seen: &Mutex<Vec<Sighting>>,
    known: &mut HashMap<(SocketAddr, u16), ()>,
) {
    let mut bytes = [0; LONGEST];
    while let Ok((length, remote)) = udp.recv_from(&mut bytes) {
        let said = bytes.get(..length).unwrap_or_default();
        // A name again, from one port: somebody else's flow, or the same one's next.
        if said.ends_with(b"\n") || known.insert((remote, port), ()).is_none() {
            note(seen, false, remote, port, said);
        }
        let _ = udp.send_to(said, remote);
    }
}

fn note(seen: &Mutex<Vec<Sighting>>, tcp: bool, remote: SocketAddr, port: u16, said: &[u8]) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let name = String::from_utf8_lossy(said).trim_end().to_owned();
    lock(seen).push(Sighting { tcp, remote, port, name, at });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_seen_with_its_name_and_where_it_came_from() {
        let host = Host::new("witness");
        host.ip("link set lo up");
        let witness = Witness::start(&host, "127.0.0.1".parse().unwrap(), 4);
        host.run_in(|| {
            let mut call = witness.call("ann", true, 0).unwrap();
            call.say("more").unwrap();
            let other = witness.call("bob", false, 1).unwrap();
            assert_eq!(witness.call_often("carl", 20, 8), 20);
            let seen = witness.seen();
            assert_eq!(seen.len(), 22);
            assert_eq!((seen[0].name.as_str(), seen[0].tcp, seen[0].remote), ("ann", true, call.local()));
            assert_eq!((seen[1].name.as_str(), seen[1].tcp), ("bob", false));
            assert_eq!(seen[1].remote.port(), other.local().port());
        });
    }
}
