//! What the tests are made with: a shard on a tun interface, and the client's end by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use adit_engine::{Command, Engine, Event, Parts, Path, Session, Sources, start};
use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::TemporaryNetns;
use adit_host::tun::{Tun, TunOptions};
use adit_host::udp::{Delivery, PathMtu, SendBatch, Slots, TRAIN_SLOT, UdpOptions, UdpSocket as Carrier};
use adit_openvpn::Role;
use adit_openvpn::data::{Channel, ChannelOptions, Cipher, DataKey, ReplayOptions};
use adit_openvpn::keyfile::StaticKey;
use adit_openvpn::packet::KeyId;
use adit_openvpn::wrap::Digest;
use adit_tunnel::{DataChannel, DropReason, HEADROOM, Inner, TAILROOM};
use adit_wire::checksum::transport_checksum_ok;
use adit_wire::ip::Packet;

/// The shard's thread has one name: tests run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub(crate) const PEER: u32 = 4711;
/// P_CONTROL_V1 with key 0.
pub(crate) const CONTROL: u8 = 4 << 3;
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn channel_of(role: Role, cipher: Cipher) -> Arc<Channel> {
    let options =
        ChannelOptions { peer_id: Some(PEER), mssfix: Some(1492), outer: 28, ..ChannelOptions::default() };
    let channel = Channel::new(options);
    let (material, replay) = (StaticKey::new(&[7; 256]), ReplayOptions::default());
    channel.install(DataKey::new(KeyId::FIRST, role, cipher, Digest::Sha256, &material, replay, &[1; 32]));
    Arc::new(channel)
}

/// How the client's end reaches the shard.
pub(crate) enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// What a rig is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) tcp: bool,
    pub(crate) cipher: Cipher,
    /// The kernel cuts and joins packets for the interface.
    pub(crate) offloads: bool,
    pub(crate) path_mtu: PathMtu,
}

impl Default for Setup {
    fn default() -> Self {
        Self { tcp: false, cipher: Cipher::Aes256Gcm, offloads: true, path_mtu: PathMtu::default() }
    }
}

pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) events: Receiver<Event>,
    pub(crate) failure: Receiver<String>,
    pub(crate) session: Arc<Session>,
    pub(crate) client: Arc<Channel>,
    pub(crate) wire: Wire,
    /// Somebody inside.
    pub(crate) inside: UdpSocket,
    /// While this is locked, the shard waits with its next event.
    held: Arc<Mutex<()>>,
}

/// An interface in the calling thread's namespace.
pub(crate) fn open_tun(address: &str, offloads: bool) -> Tun {
    let tun = Tun::open(&TunOptions { offloads, vnet_header: true, ..TunOptions::new("adit0") }).unwrap();
    let mut netlink = Netlink::open().unwrap();
    netlink.set_up("adit0", true).unwrap();
    let address = InterfaceAddress { interface: "adit0".into(), address: address.parse().unwrap() };
    netlink.add_address(&address, IfExists::Fail).unwrap();
    tun
}

/// A UDP socket for a shard.
pub(crate) fn carrier(path_mtu: PathMtu) -> Carrier {
    let options = UdpOptions { receive_trains: true, path_mtu, ..UdpOptions::default() };
    Carrier::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap()
}

pub(crate) fn parts(tun: Tun, carrier: Carrier) -> Parts {
    Parts {
        tun,
        sockets: vec![carrier],
        gate: None,
        foreign: None,
        mtu: 1500,
        max_half_open: 10,
        events: Box::new(|_| true),
        failed: Box::new(|_| {}),
    }
}

impl Rig {
    /// Builds everything in the calling thread's namespace.
    pub(crate) fn build(setup: Setup) -> Self {
        let Setup { tcp, cipher, offloads, path_mtu } = setup;
        let tun = open_tun("10.9.0.1/24", offloads);
        let carrier = carrier(path_mtu);
        let dialled = carrier.local_addr();
        let (sink, events) = channel();
        let (failed, failure) = channel();
        let held = Arc::<Mutex<()>>::default();
        let hold = Arc::clone(&held);
        let engine = start(Parts {
            events: Box::new(move |event| {
                let taken = sink.send(event).is_ok();
                drop(hold.lock());
                taken
            }),
            failed: Box::new(move |why| failed.send(why).unwrap()),
            ..parts(tun, carrier)
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
        let client = channel_of(Role::Client, cipher);
        Self { engine, events, failure, session, client, wire, inside, held }
    }

    pub(crate) fn send(&mut self, datagram: &[u8]) {
        match &mut self.wire {
            Wire::Udp(socket) => assert_eq!(socket.send(datagram).unwrap(), datagram.len()),
            Wire::Tcp(stream) => {
                let record = [&(datagram.len() as u16).to_be_bytes(), datagram].concat();
                stream.write_all(&record).unwrap();
            }
        }
    }

    /// The next datagram from the shard, with room behind it.
    pub(crate) fn receive(&mut self) -> (Vec<u8>, usize) {
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

    /// What the client sends to carry `payload` from `source`.
    pub(crate) fn seal(&self, source: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut buf = vec![0; HEADROOM + 1500 + TAILROOM];
        let (from, to) = (SocketAddr::from((source, 6000)), SocketAddr::from((INSIDE, 5000)));
        let len = adit_wire::udp::build(&mut buf[HEADROOM..HEADROOM + 1500], from, to, payload).unwrap();
        let range = self.client.seal(&mut buf, HEADROOM..HEADROOM + len).unwrap();
        buf[range].to_vec()
    }

    /// Sends `payload` through the tunnel, from `source`.
    pub(crate) fn up(&mut self, source: Ipv4Addr, payload: &[u8]) {
        let datagram = self.seal(source, payload);
        self.send(&datagram);
    }

    /// Sends datagrams, equally long but for the last, in one piece.
    pub(crate) fn send_train(&self, datagrams: &[Vec<u8>]) {
        let Wire::Udp(socket) = &self.wire else { panic!("trains are for UDP") };
        let socket = Carrier::from_fd(socket.try_clone().unwrap().into()).unwrap();
        send_train(&socket, self.session.path().local(), &datagrams.concat(), datagrams[0].len());
    }

    /// Sends `payload` from inside to the client as datagrams of `segment` bytes, in one piece.
    pub(crate) fn down_train(&self, payload: &[u8], segment: usize) {
        let socket = Carrier::from_fd(self.inside.try_clone().unwrap().into()).unwrap();
        send_train(&socket, (CLIENT, 6000).into(), payload, segment);
    }

    /// Sends `payload` from inside to the client; what the client gets.
    pub(crate) fn down(&mut self, payload: &[u8]) -> Vec<u8> {
        self.inside.send_to(payload, (CLIENT, 6000)).unwrap();
        self.gets()
    }

    /// What the client gets.
    pub(crate) fn gets(&mut self) -> Vec<u8> {
        let (mut buf, len) = self.receive();
        let Inner::Packet(range) = self.client.open(&mut buf, len, 0).unwrap().inner else {
            panic!("no packet")
        };
        let packet = Packet::parse(&buf[range]).unwrap();
        assert_eq!(transport_checksum_ok(&packet), Some(true));
        adit_wire::udp::Datagram::parse(packet.transport()).unwrap().payload().to_vec()
    }

    /// While `work` goes on, the shard does nothing: what is sent meanwhile, it finds all at once.
    pub(crate) fn while_held(&mut self, work: impl FnOnce(&mut Self)) {
        let held = Arc::clone(&self.held);
        let hold = held.lock().unwrap();
        self.engine.tell(Command::Watch(self.session.path().remote(), self.session.handle()));
        self.send(&[CONTROL]);
        assert!(matches!(self.events.recv_timeout(LIMIT).unwrap(), Event::Control { .. }));
        work(self);
        drop(hold);
    }

    /// What arrives inside.
    pub(crate) fn arrives(&self) -> Vec<u8> {
        let mut buf = [0; 2000];
        match self.inside.recv(&mut buf) {
            Ok(len) => buf[..len].to_vec(),
            Err(error) => panic!("{error}; {:?}, {:?}", self.session.counters(), self.engine.drops()),
        }
    }

    /// Waits until so many packets were dropped for this reason.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
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

fn send_train(socket: &Carrier, to: SocketAddr, bytes: &[u8], segment: usize) {
    let mut batch = SendBatch::new(1, Slots { size: TRAIN_SLOT, headroom: 0, tailroom: 0 });
    let mut slot = batch.reserve().unwrap();
    slot.payload()[..bytes.len()].copy_from_slice(bytes);
    slot.commit_as(0..bytes.len(), Delivery { segment, ..Delivery::new(to, None) });
    assert_eq!(socket.flush(&mut batch).sent, bytes.len().div_ceil(segment));
    assert!(socket.trains());
}

/// Runs a test in a namespace of its own.
pub(crate) fn alone(test: impl FnOnce() + Send) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    TemporaryNetns::create("adit-engine").unwrap().run_in(test);
}

pub(crate) fn with_rig(setup: Setup, test: impl FnOnce(Rig) + Send) {
    alone(|| test(Rig::build(setup)));
}
