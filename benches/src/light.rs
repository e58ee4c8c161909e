//! Clients that cost next to nothing: adit's control machine over a socket, without a process of their own.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_client::profile::Profile;
use adit_engine::OsEntropy;
use adit_openvpn::Machine;
use adit_openvpn::machine::{Carrier, ClientWrap, Event, Settings};
use adit_openvpn::tls::Group;
use adit_testbed::Host;

/// Handshakes under way at the same time.
pub(crate) const AT_ONCE: usize = 16;
/// For the answer to one packet.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that is ready to connect.
pub(crate) struct Light {
    settings: Arc<Settings>,
    wrap: ClientWrap,
}

/// A session; the server is not told when it goes.
pub(crate) struct Connected {
    _socket: UdpSocket,
    _machine: Machine,
}

impl Light {
    pub(crate) fn new(profile: &str) -> Self {
        let mut profile = Profile::parse(profile, &mut |_| Err("no files".into())).expect("a profile");
        // What the stock client and both servers agree on; with adit's gateway there would be ML-KEM besides.
        profile.tls_groups = vec![Group::X25519];
        let (settings, wrap) = adit_client::settings(&profile).expect("a profile that can be used");
        Self { settings: Arc::new(settings), wrap }
    }

    fn connect(&self, server: SocketAddr) -> Connected {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect(server).expect("a way to the server");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let carrier = Carrier { tcp: false, ipv6: false };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as u32;
        let (settings, wrap) = (Arc::clone(&self.settings), self.wrap.clone());
        let mut machine = Machine::client(settings, wrap, carrier, Box::new(OsEntropy), Instant::now(), unix);
        let (mut packet, mut received) = (Vec::new(), [0; 2048]);
        let mut connected = false;
        loop {
            while let Some(event) = machine.poll_event() {
                match event {
                    Event::Established(..) => connected = true,
                    Event::Ended(why) => panic!("a client could not connect: {why}"),
                    _ => {}
                }
            }
            while machine.poll_transmit(&mut packet, Instant::now()).is_some() {
                socket.send(&packet).expect("the server listens");
            }
            if connected {
                return Connected { _socket: socket, _machine: machine };
            }
            let len = socket.recv(&mut received).expect("the server answers");
            machine.handle_datagram(&received[..len], Instant::now()).expect("a packet of the server's");
        }
    }
}

/// Connects all of them from `host`, [`AT_ONCE`] at a time.
pub(crate) fn connect_all(host: &Host, server: SocketAddr, clients: &[Light]) -> Vec<Connected> {
    let next = AtomicUsize::new(0);
    let take_turns = || -> Vec<Connected> {
        let turns = std::iter::from_fn(|| clients.get(next.fetch_add(1, Ordering::Relaxed)));
        turns.map(|client| client.connect(server)).collect()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| host.run_in(take_turns))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("all connect")).collect()
    })
}
