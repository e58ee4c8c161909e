//! UDP flows to back ends. The one who has the port gives each datagram that reaches it to the relays.

use std::net::UdpSocket as StdSocket;

use adit_host::poll::{Events, Interest, Poller};
use adit_host::udp::{RecvBatch, Slots, UdpOptions, UdpSocket};
use adit_wire::proxy::{self, Preamble};

use super::*;

struct Port {
    socket: UdpSocket,
    poller: Poller,
    batch: RecvBatch,
    relays: DatagramRelays,
    events: Receiver<Event>,
}

impl Port {
    fn new(options: DatagramOptions) -> Self {
        let (events, receiver) = channel();
        let events = Mutex::new(events);
        let tell = Arc::new(move |event| {
            let _ = events.lock().unwrap().send(event);
        });
        let shared = UdpOptions { reuse_address: true, ..UdpOptions::default() };
        let socket = UdpSocket::bind("0.0.0.0:0".parse().unwrap(), &shared).unwrap();
        let poller = Poller::new().unwrap();
        poller.add(&socket, 0, Interest::READ).unwrap();
        Self {
            socket,
            poller,
            batch: RecvBatch::new(16, Slots { size: 2048, headroom: 0, tailroom: 0 }),
            relays: DatagramRelays::start(options, tell).unwrap(),
            events: receiver,
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), self.socket.local_addr().port())
    }

    /// Gives what has come to the relays, waiting for it; how many datagrams that are.
    fn pass(&mut self, backend: &Arc<Backend>) -> usize {
        self.poller.wait(&mut Events::with_capacity(1), Some(PATIENCE)).unwrap();
        let count = self.socket.recv_batch(&mut self.batch).unwrap();
        for datagram in self.batch.iter_mut() {
            assert!(self.relays.relay(datagram.bytes(), datagram.remote(), datagram.local(), backend));
        }
        count
    }

    /// Nothing has come to it.
    fn is_quiet(&mut self) -> bool {
        self.socket.recv_batch(&mut self.batch).is_err()
    }

    fn counts(&self, good: impl Fn(&DatagramCounts) -> bool) -> DatagramCounts {
        eventually(|| self.relays.counts(), good)
    }
}

fn client() -> StdSocket {
    let socket = StdSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn back_end(change: impl FnOnce(&mut BackendOptions)) -> (StdSocket, Arc<Backend>) {
    let socket = client();
    let mut options = BackendOptions::new("back", socket.local_addr().unwrap());
    change(&mut options);
    (socket, Backend::new(options))
}

fn receive(socket: &StdSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_535];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    bytes.truncate(length);
    (bytes, from)
}

#[test]
fn flows_go_both_ways_from_the_dialled_port_and_past_the_one_who_has_it() {
    let mut port = Port::new(DatagramOptions::default());
    let (server, backend) = back_end(|_| {});
    let clients = [client(), client()];
    let mut flows = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], port.address()).unwrap();
        assert_eq!(port.pass(&backend), 1);
        let (bytes, from) = receive(&server);
        assert_eq!(bytes, [number as u8]);
        flows.push(from);
    }
    assert_ne!(flows[0], flows[1]);
    for (client, flow) in clients.iter().zip(&flows) {
        // Long ones and empty ones too.
        for length in [0, 1, 1400, 60_000] {
            client.send_to(&vec![7; length], port.address()).unwrap();
            assert_eq!(receive(&server), (vec![7; length], *flow));
            server.send_to(&vec![8; length], flow).unwrap();
            assert_eq!(receive(client), (vec![8; length], port.address()));
        }
    }
    assert!(port.is_quiet(), "the kernel gives the flow to its own socket");
    let counts = port.counts(|counts| counts.datagrams_in == 10 && counts.datagrams_out == 8);
    assert_eq!((counts.open, counts.opened, counts.dropped), (2, 2, 0));
    assert_eq!((backend.counts().open, backend.counts().connected), (2, 2));
}

#[test]
fn datagrams_that_were_under_way_before_the_flow_was_known_join_it() {
    let mut port = Port::new(DatagramOptions::default());
    let (server, backend) = back_end(|_| {});
    let client = client();
    for byte in 0..5 {
        client.send_to(&[byte], port.address()).unwrap();
    }
    let mut passed = 0;
    while passed < 5 {
        passed += port.pass(&backend);
    }
    let got: Vec<_> = (0..5).map(|_| receive(&server)).collect();
    assert!(got.iter().enumerate().all(|(byte, (bytes, from))| bytes == &[byte as u8] && *from == got[0].1));
    assert_eq!(port.relays.counts().opened, 1);
}

#[test]
fn a_flow_ends_when_it_is_idle_and_sooner_when_it_was_never_answered() {
    let options = DatagramOptions {
        answer_limit: Duration::from_millis(100),
        idle_limit: Duration::from_millis(500),
        ..DatagramOptions::default()
    };
    let mut port = Port::new(options);
    let (server, backend) = back_end(|_| {});
    let (mute, heard, start) = (client(), client(), Instant::now());
    mute.send_to(b"mute", port.address()).unwrap();
    port.pass(&backend);
    receive(&server);
    heard.send_to(b"heard", port.address()).unwrap();
    port.pass(&backend);
    let (_, flow) = receive(&server);
    server.send_to(b"answer", flow).unwrap();
    receive(&heard);

    port.counts(|counts| counts.expired == 1);
    assert_lasted(start, Duration::from_millis(100));
    if start.elapsed() < Duration::from_millis(400) {
        assert_eq!(port.relays.counts().open, 1);
    }
    port.counts(|counts| counts.expired == 2 && counts.open == 0);
    assert_lasted(start, Duration::from_millis(500));

    // The next datagram is a first one again.
    heard.send_to(b"again", port.address()).unwrap();
    assert_eq!(port.pass(&backend), 1);
    assert_eq!(receive(&server).0, b"again");
}

#[test]
fn the_oldest_flow_without_an_answer_makes_room_and_networks_are_bounded() {
    let mut port = Port::new(DatagramOptions { max_flows: 2, ..DatagramOptions::default() });
    let (server, backend) = back_end(|_| {});
    let answered = client();
    answered.send_to(b"first", port.address()).unwrap();
    port.pass(&backend);
    let (_, flow) = receive(&server);
    server.send_to(b"answer", flow).unwrap();
    receive(&answered);
    for number in 0..3u8 {
        client().send_to(&[number], port.address()).unwrap();
        port.pass(&backend);
        receive(&server);
    }
    let counts = port.counts(|counts| counts.opened == 4);
    assert_eq!((counts.replaced, counts.open), (2, 2));
    server.send_to(b"still", flow).unwrap();
    assert_eq!(receive(&answered).0, b"still");

    let mut port = Port::new(DatagramOptions { max_flows_per_network: 1, ..DatagramOptions::default() });
    for _ in 0..2 {
        client().send_to(b"x", port.address()).unwrap();
        port.pass(&backend);
    }
    let counts = port.counts(|counts| counts.refused_network == 1);
    assert_eq!(counts.open, 1);
}

#[test]
fn a_dead_back_end_is_told_and_ends_the_flow() {
    let mut port = Port::new(DatagramOptions::default());
    let (server, backend) = back_end(|options| options.retry = Duration::from_millis(100));
    let address = server.local_addr().unwrap();
    drop(server);
    let client = client();
    client.send_to(b"anyone?", port.address()).unwrap();
    port.pass(&backend);
    port.counts(|counts| counts.closed == 1 && counts.open == 0);
    let Event::Down { error, .. } = port.events.recv_timeout(PATIENCE).unwrap() else {
        panic!("another event")
    };
    assert!(error.contains("refused"), "{error}");
    assert!(matches!(backend.status(), Status::Down { .. }));

    let server = StdSocket::bind(address).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 16];
    let from = loop {
        client.send_to(b"back?", port.address()).unwrap();
        // Refused ones are dropped, and once there is a flow nothing comes here any more.
        while !port.is_quiet() {
            for datagram in port.batch.iter_mut() {
                port.relays.relay(datagram.bytes(), datagram.remote(), datagram.local(), &backend);
            }
        }
        if let Ok((_, from)) = server.recv_from(&mut buffer) {
            break from;
        }
    };
    server.send_to(b"here", from).unwrap();
    assert_eq!(receive(&client).0, b"here");
    assert!(matches!(port.events.recv_timeout(PATIENCE).unwrap(), Event::Up(_)));
    assert_eq!(backend.status(), Status::Up);
}

#[test]
fn each_datagram_tells_a_back_end_that_asks_for_it_who_the_client_is() {
    let mut port = Port::new(DatagramOptions::default());
    let (server, backend) = back_end(|options| options.proxy = ProxyMode::V2);
    let client = client();
    for number in 0..3 {
        client.send_to(b"hello", port.address()).unwrap();
        if number == 0 {
            port.pass(&backend);
        }
        let (bytes, _) = receive(&server);
        let Preamble::Header { length, addresses: Some(addresses) } = proxy::parse(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!((addresses.source, addresses.destination), (client.local_addr().unwrap(), port.address()));
        assert_eq!(&bytes[length..], b"hello");
    }
}

#[test]
fn a_port_that_is_not_shared_is_an_error_and_no_flow() {
    let mut port = Port::new(DatagramOptions::default());
    let (_, backend) = back_end(|_| {});
    let alone = StdSocket::bind("127.0.0.1:0").unwrap();
    let dialled = alone.local_addr().unwrap();
    assert!(port.relays.relay(b"x", client().local_addr().unwrap(), dialled, &backend));
    let Event::NoFlow(error) = port.events.recv_timeout(PATIENCE).unwrap() else { panic!("another event") };
    assert!(error.contains("in use"), "{error}");
    assert_eq!((port.relays.counts().failed, port.relays.counts().open), (1, 0));
    assert!(port.is_quiet());
}
