//! Clients that cost next to nothing: adit's control machine over a socket, without a process of their own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_client::profile::Profile;
use adit_engine::OsEntropy;
use adit_host::tcp::Origin;
use adit_openvpn::Machine;
use adit_openvpn::machine::{Carrier, ClientWrap, Event, Settings};
use adit_openvpn::tls::Group;

use crate::Host;

/// Light clients that work at the same time.
pub const AT_ONCE: usize = 16;
/// For the answer to one packet.
const PATIENCE: Duration = Duration::from_secs(10);
/// First packets that are sent again when there was no answer, as every client does.
const TRIES: u32 = 5;

/// A client that is ready to connect.
pub struct LightClient {
    settings: Arc<Settings>,
    wrap: ClientWrap,
}

/// A session; the server is not told when it goes.
pub struct LightSession {
    _wire: Wire,
    _machine: Machine,
}

enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Wire {
    fn open(from: IpAddr, server: SocketAddr, tcp: bool) -> std::io::Result<Self> {
        if tcp {
            let origin = Origin { address: Some(from), ..Origin::default() };
            let stream = adit_host::tcp::connect(server, &origin, PATIENCE)?;
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            return Ok(Self::Tcp(stream));
        }
        let socket = UdpSocket::bind((from, 0))?;
        // Answers from anywhere else do not arrive.
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE / TRIES))?;
        Ok(Self::Udp(socket))
    }

    fn send(&mut self, packet: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(packet).map(|_| ()),
            Self::Tcp(stream) => stream.write_all(&[&(packet.len() as u16).to_be_bytes(), packet].concat()),
        }
    }

    fn receive(&mut self, packet: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(packet),
            Self::Tcp(stream) => {
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                let length = usize::from(u16::from_be_bytes(length));
                let place = packet.get_mut(..length).ok_or(std::io::ErrorKind::InvalidData)?;
                stream.read_exact(place)?;
                Ok(length)
            }
        }
    }
}

impl LightClient {
    /// A client with this profile.
    ///
    /// # Panics
    /// When it cannot be used.
    #[must_use]
    #[track_caller]
    pub fn new(profile: &str) -> Self {
        let mut profile = Profile::parse(profile, &mut |_| Err("no files".into())).expect("a profile");
        // What the stock client and both servers agree on; with adit's gateway there would be ML-KEM besides.
        profile.tls_groups = vec![Group::X25519];
        let (settings, wrap) = adit_client::settings(&profile).expect("a profile that can be used");
        Self { settings: Arc::new(settings), wrap }
    }

    /// A new client's first packet, not sent anywhere.
    #[must_use]
    pub fn first_packet(&self, server: SocketAddr, tcp: bool) -> Vec<u8> {
        let mut packet = Vec::new();
        self.machine(server, tcp).poll_transmit(&mut packet, Instant::now());
        packet
    }

    /// Sends a first packet and takes the answer: it comes from the dialled address and port, and the profile's key
    /// verifies it. The session goes no further.
    ///
    /// # Errors
    /// What happened instead.
    pub fn knock(&self, from: IpAddr, server: SocketAddr, tcp: bool) -> Result<(), String> {
        let mut machine = self.machine(server, tcp);
        let mut wire = Wire::open(from, server, tcp).map_err(|error| format!("{server}: {error}"))?;
        let (mut packet, mut received) = (Vec::new(), [0; 2048]);
        machine.poll_transmit(&mut packet, Instant::now()).ok_or("no first packet")?;
        for _ in 0..TRIES {
            wire.send(&packet).map_err(|error| format!("{server}: {error}"))?;
            match wire.receive(&mut received) {
                Ok(len) => {
                    let answer = received.get(..len).unwrap_or_default();
                    machine
                        .handle_datagram(answer, Instant::now())
                        .map_err(|fault| format!("{server}: another key's answer: {fault}"))?;
                    return match machine.remote() {
                        Some(_) => Ok(()),
                        None => Err(format!("{server}: no answer of a server")),
                    };
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !tcp => {}
                Err(error) => return Err(format!("{server}: {error}")),
            }
        }
        Err(format!("{server}: no answer"))
    }

    /// Connects.
    ///
    /// # Errors
    /// What happened instead.
    pub fn connect(&self, from: IpAddr, server: SocketAddr, tcp: bool) -> Result<LightSession, String> {
        let mut machine = self.machine(server, tcp);
        let mut wire = Wire::open(from, server, tcp).map_err(|error| format!("{server}: {error}"))?;
        let (mut packet, mut received) = (Vec::new(), [0; 2048]);
        let mut connected = false;
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = machine.poll_event() {
                match event {
                    Event::Established(..) => connected = true,
                    Event::Ended(why) => return Err(format!("{server}: {why}")),
                    _ => {}
                }
            }
            while machine.poll_transmit(&mut packet, Instant::now()).is_some() {
                wire.send(&packet).map_err(|error| format!("{server}: {error}"))?;
            }
            if connected {
                return Ok(LightSession { _wire: wire, _machine: machine });
            }
            match wire.receive(&mut received) {
                Ok(len) => {
                    let packet = received.get(..len).unwrap_or_default();
                    machine
                        .handle_datagram(packet, Instant::now())
                        .map_err(|fault| format!("{server}: {fault}"))?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    machine.handle_timeout(Instant::now());
                }
                Err(error) => return Err(format!("{server}: {error}")),
            }
        }
    }

    fn machine(&self, server: SocketAddr, tcp: bool) -> Machine {
        let carrier = Carrier { tcp, ipv6: server.is_ipv6() };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as u32;
        let (settings, wrap) = (Arc::clone(&self.settings), self.wrap.clone());
        Machine::client(settings, wrap, carrier, Box::new(OsEntropy), Instant::now(), unix)
    }
}

/// Does `work` for each number below `count`, [`AT_ONCE`] at a time, in the host's namespace.
pub fn in_parallel<T: Send>(host: &Host, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take_turns = || -> Vec<T> {
        let turns = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count));
        turns.map(&work).collect()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| host.run_in(take_turns))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker's end")).collect()
    })
}
