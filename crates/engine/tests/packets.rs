//! The packet loop on a real tun interface: packets pass both ways, over UDP and TCP, and none is allocated for.
//!
//! ```text
//!  this test (the client's end, by hand) ── loopback ── shard ── tun (10.9.0.1/24) ── kernel (a UDP socket)
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use adit_engine::{Command, Engine, Event, Parts, Path, Session, Sources, start};
use adit_host::allocations::{Counting, thread_named};
use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::TemporaryNetns;
use adit_host::tun::{Tun, TunOptions};
use adit_host::udp::{UdpOptions, UdpSocket as Carrier};
use adit_openvpn::Role;
use adit_openvpn::data::{Channel, ChannelOptions, Cipher, DataKey, ReplayOptions};
use adit_openvpn::keyfile::StaticKey;
use adit_openvpn::packet::KeyId;
use adit_openvpn::wrap::Digest;
use adit_tunnel::{DataChannel, DropReason, HEADROOM, Inner, TAILROOM};
use adit_wire::ip::Packet;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// The shard's thread has one name: tests run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PEER: u32 = 4711;
/// P_CONTROL_V1 with key 0.
const CONTROL: u8 = 4 << 3;
const LIMIT: Duration = Duration::from_secs(10);

fn channel_of(role: Role, cipher: Cipher) -> Arc<Channel> {
    let options =
        ChannelOptions { peer_id: Some(PEER), mssfix: Some(1492), outer: 28, ..ChannelOptions::default() };
    let channel = Channel::new(options);
    let (material, replay) = (StaticKey::new(&[7; 256]), ReplayOptions::default());
    channel.install(DataKey::new(KeyId::FIRST, role, cipher, Digest::Sha256, &material, replay, &[1; 32]));
    Arc::new(channel)
}

/// How the client's end reaches the shard.
enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

struct Rig {
    engine: Engine,
    events: Receiver<Event>,
    failure: Receiver<String>,
    session: Arc<Session>,
    client: Arc<Channel>,
    wire: Wire,
    /// Somebody inside.
    inside: UdpSocket,
}

impl Rig {
    /// Builds everything in the calling thread's namespace.
    fn build(tcp: bool, cipher: Cipher) -> Self {
        let tun = Tun::open(&TunOptions::new("adit0")).unwrap();
        let mut netlink = Netlink::open().unwrap();
        netlink.set_up("adit0", true).unwrap();
        let address = InterfaceAddress { interface: "adit0".into(), address: "10.9.0.1/24".parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
        let carrier = Carrier::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let dialled = carrier.local_addr();
        let (sink, events) = channel();
        let (failed, failure) = channel();
        let engine = start(Parts {
            tun,
            sockets: vec![carrier],
            gate: None,
            foreign: None,
            mtu: 1500,
            max_half_open: 10,
            events: Box::new(move |event| sink.send(event).is_ok()),
            failed: Box::new(move |why| failed.send(why).unwrap()),
        })
        .unwrap();
        let handle = engine.new_handle();
        let (wire, path) = if tcp {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let (accepted, remote) = listener.accept().unwrap();
            let local = accepted.local_addr().unwrap();
            engine.tell(Command::Adopt { handle, stream: accepted, remote, local, leftover: Vec::new() });
            // As in life, a control packet comes first: the shard has obeyed, and waits, when the session is attached.
            stream.write_all(&[0, 1, CONTROL]).unwrap();
            assert!(matches!(events.recv_timeout(LIMIT).unwrap(), Event::Control { .. }));
            (Wire::Tcp(stream), Path::Stream { connection: handle, remote, local })
        } else {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(dialled).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let remote = socket.local_addr().unwrap();
            (Wire::Udp(socket), Path::Udp { socket: 0, remote, local: dialled })
        };
        let sources = Sources::new(vec![IpAddr::from(CLIENT).into()]);
        let server = channel_of(Role::Server, cipher);
        let session = Arc::new(Session::new(handle, server, Some(PEER), sources, path));
        engine.tell(Command::Attach(Arc::clone(&session)));
        let inside = UdpSocket::bind((INSIDE, 5000)).unwrap();
        inside.set_read_timeout(Some(LIMIT)).unwrap();
        Self { engine, events, failure, session, client: channel_of(Role::Client, cipher), wire, inside }
    }

    fn send(&mut self, datagram: &[u8]) {
        match &mut self.wire {
            Wire::Udp(socket) => assert_eq!(socket.send(datagram).unwrap(), datagram.len()),
            Wire::Tcp(stream) => {
                let record = [&(datagram.len() as u16).to_be_bytes(), datagram].concat();
                stream.write_all(&record).unwrap();
            }
        }
    }

    /// The next datagram from the shard, with room behind it.
    fn receive(&mut self) -> (Vec<u8>, usize) {
        let mut buf = vec![0; 2048 + TAILROOM];
        let len = match &mut self.wire {
            Wire::Udp(socket) => socket.recv(&mut buf[..2048]).unwrap(),
            Wire::Tcp(stream) => {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let len = usize::from(u16::from_be_bytes(length));
                stream.read_exact(&mut buf[..len]).unwrap();
                len
            }
        };
        (buf, len)
    }

    /// Sends `payload` through the tunnel, from `source`.
    fn up(&mut self, source: Ipv4Addr, payload: &[u8]) {
        let mut buf = vec![0; HEADROOM + 1500 + TAILROOM];
        let (from, to) = (SocketAddr::from((source, 6000)), SocketAddr::from((INSIDE, 5000)));
        let len = adit_wire::udp::build(&mut buf[HEADROOM..HEADROOM + 1500], from, to, payload).unwrap();
        let range = self.client.seal(&mut buf, HEADROOM..HEADROOM + len).unwrap();
        self.send(&buf[range]);
    }

    /// Sends `payload` from inside to the client; what the client gets.
    fn down(&mut self, payload: &[u8]) -> Vec<u8> {
        self.inside.send_to(payload, (CLIENT, 6000)).unwrap();
        let (mut buf, len) = self.receive();
        let Inner::Packet(range) = self.client.open(&mut buf, len, 0).unwrap().inner else {
            panic!("no packet")
        };
        let packet = Packet::parse(&buf[range]).unwrap();
        adit_wire::udp::Datagram::parse(packet.transport()).unwrap().payload().to_vec()
    }

    /// What arrives inside.
    fn arrives(&self) -> Vec<u8> {
        let mut buf = [0; 2000];
        match self.inside.recv(&mut buf) {
            Ok(len) => buf[..len].to_vec(),
            Err(error) => panic!("{error}; {:?}, {:?}", self.session.counters(), self.engine.drops()),
        }
    }

    /// Waits until so many packets were dropped for this reason.
    fn dropped(&self, reason: DropReason, count: u64) {
        let deadline = Instant::now() + LIMIT;
        while self.engine.drops().get(reason) != count {
            assert!(Instant::now() < deadline, "{}: {}", reason.name(), self.engine.drops().get(reason));
            std::thread::yield_now();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

fn with_rig(tcp: bool, cipher: Cipher, test: impl FnOnce(Rig) + Send) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    TemporaryNetns::create("adit-engine").unwrap().run_in(|| test(Rig::build(tcp, cipher)));
}

#[test]
fn packets_pass_both_ways_over_udp_and_tcp() {
    for tcp in [false, true] {
        with_rig(tcp, Cipher::Aes256Gcm, |mut rig| {
            for n in 0..20u8 {
                rig.up(CLIENT, &[n; 100]);
                assert_eq!(rig.arrives(), [n; 100]);
                assert_eq!(rig.down(&[n; 900]), [n; 900]);
            }
            let counters = rig.session.counters();
            assert_eq!((counters.received_packets, counters.sent_packets), (20, 20));
            assert_eq!((counters.received_bytes, counters.sent_bytes), (20 * 128, 20 * 928));
        });
    }
}

#[test]
fn no_packet_is_allocated_for() {
    for (tcp, cipher) in [
        (false, Cipher::Aes256Gcm),
        (false, Cipher::ChaCha20Poly1305),
        (false, Cipher::Aes256Cbc),
        (true, Cipher::Aes256Gcm),
    ] {
        with_rig(tcp, cipher, |mut rig| {
            let mut round = |count: usize| {
                for _ in 0..count {
                    rig.up(CLIENT, &[1; 700]);
                    rig.arrives();
                    rig.down(&[2; 700]);
                }
            };
            // The first packets make what is kept: buffers of the connection, the library's own state.
            round(20);
            ALLOCATOR.watch(thread_named("shard-0").unwrap());
            round(300);
            let count = ALLOCATOR.watched();
            ALLOCATOR.watch(0);
            assert_eq!(count, 0, "{cipher:?} over {}", if tcp { "TCP" } else { "UDP" });
        });
    }
}

#[test]
fn a_packet_from_an_address_of_somebody_else_goes_nowhere() {
    with_rig(false, Cipher::Aes256Gcm, |mut rig| {
        rig.up(Ipv4Addr::new(10, 9, 0, 3), b"forged");
        rig.up(CLIENT, b"own");
        assert_eq!(rig.arrives(), b"own");
        assert_eq!(rig.engine.drops().get(DropReason::BadSource), 1);
    });
}

#[test]
fn only_an_authentic_newer_packet_moves_a_session() {
    with_rig(false, Cipher::Aes256Gcm, |mut rig| {
        rig.up(CLIENT, b"first");
        assert_eq!(rig.arrives(), b"first");
        let home = rig.session.path();
        let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
        elsewhere.connect(home.local()).unwrap();
        elsewhere.set_read_timeout(Some(LIMIT)).unwrap();
        let seal = |payload: &[u8]| {
            let mut buf = vec![0; HEADROOM + 1500 + TAILROOM];
            let (from, to) = (SocketAddr::from((CLIENT, 6000)), SocketAddr::from((INSIDE, 5000)));
            let len = adit_wire::udp::build(&mut buf[HEADROOM..HEADROOM + 1500], from, to, payload).unwrap();
            let range = rig.client.seal(&mut buf, HEADROOM..HEADROOM + len).unwrap();
            buf[range].to_vec()
        };
        let (older, newer, newest) = (seal(b"older"), seal(b"newer"), seal(b"newest"));
        // A forged packet, then a genuine one that arrives late: neither moves anything.
        let mut forged = newest.clone();
        *forged.last_mut().unwrap() ^= 1;
        elsewhere.send(&forged).unwrap();
        rig.send(&newer);
        assert_eq!(rig.arrives(), b"newer");
        elsewhere.send(&older).unwrap();
        assert_eq!(rig.arrives(), b"older");
        // A replay of what has been seen.
        elsewhere.send(&newer).unwrap();
        // The next genuine one moves the session, and answers go there.
        assert_eq!(rig.session.path(), home);
        elsewhere.send(&newest).unwrap();
        assert_eq!(rig.arrives(), b"newest");
        match rig.events.recv_timeout(LIMIT).unwrap() {
            Event::Moved { path, .. } => assert_eq!(path.remote(), elsewhere.local_addr().unwrap()),
            other => panic!("{other:?}"),
        }
        rig.inside.send_to(b"to the new place", (CLIENT, 6000)).unwrap();
        assert!(elsewhere.recv(&mut [0; 2000]).unwrap() > 0);
        assert_eq!(rig.engine.drops().get(DropReason::Authentication), 1);
        assert_eq!(rig.engine.drops().get(DropReason::Replay), 1);
    });
}

#[test]
fn after_a_session_is_forgotten_no_packet_of_it_passes() {
    with_rig(false, Cipher::Aes256Gcm, |mut rig| {
        rig.up(CLIENT, b"before");
        assert_eq!(rig.arrives(), b"before");
        rig.session.close();
        rig.up(CLIENT, b"closed");
        // Commands may overtake packets that wait in a socket.
        rig.dropped(DropReason::SessionClosed, 1);
        rig.engine.forget_and_wait(rig.session.handle());
        rig.up(CLIENT, b"forgotten");
        rig.inside.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(rig.inside.recv(&mut [0; 100]).is_err());
        rig.dropped(DropReason::UnknownPeer, 1);
        assert_eq!(rig.engine.drops().get(DropReason::SessionClosed), 1);
    });
}

#[test]
fn the_tun_interface_going_away_is_told_once_and_does_not_spin() {
    with_rig(false, Cipher::Aes256Gcm, |rig| {
        Netlink::open().unwrap().delete_link("adit0").unwrap();
        let why = rig.failure.recv_timeout(LIMIT).unwrap();
        assert!(why.starts_with("the tun interface is gone: "), "{why}");
        assert!(rig.failure.recv_timeout(Duration::from_millis(100)).is_err());
    });
}
