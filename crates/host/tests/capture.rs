//! Ranges of ports captured with a handful of sockets.
//!
//! ```text
//!  a namespace of its own: lo with 127.0.0.1, ::1, 192.0.2.1, 192.0.2.2, 2001:db8::1
//!  clients (ordinary sockets) ── lo ── the capture, and services beside it
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use adit_host::capture::{
    Capture, CaptureFault, CaptureOptions, CapturePlan, Captured, Ports, Spared, Target,
};
use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::TemporaryNetns;
use adit_host::poll::{Events, Interest, Poller};
use adit_host::services::Transport;
use adit_host::tcp::{self, ListenOptions};
use adit_host::udp::{RecvBatch, SendBatch, Slots, UdpOptions};

/// Descriptors of the process are counted.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const LIMIT: Duration = Duration::from_secs(10);
const ADDRESSES: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];

fn in_netns(test: impl FnOnce() + Send) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    TemporaryNetns::create("adit-capture").unwrap().run_in(|| {
        let mut netlink = Netlink::open().unwrap();
        for address in ADDRESSES {
            let length = if address.contains(':') { 128 } else { 32 };
            let address = format!("{address}/{length}").parse().unwrap();
            netlink
                .add_address(&InterfaceAddress { interface: "lo".into(), address }, IfExists::Fail)
                .unwrap();
        }
        test();
    });
}

fn options() -> CaptureOptions {
    CaptureOptions { udp: UdpOptions::default(), tcp: ListenOptions::default(), answering: 16 }
}

fn all(range: RangeInclusive<u16>) -> Ports {
    Ports { target: Target::Everything, udp: vec![range.clone()], tcp: vec![range] }
}

fn plan(entrances: Vec<Ports>) -> CapturePlan {
    CapturePlan { entrances, spared: Vec::new() }
}

/// Answers what arrives with what it saw of it.
struct Echo {
    captured: Captured,
    poller: Poller,
    received: RecvBatch,
    answers: SendBatch,
}

impl Echo {
    fn new(captured: Captured) -> Self {
        let poller = Poller::new().unwrap();
        for (token, socket) in (0..).zip(&captured.udp) {
            poller.add(socket, token, Interest::READ).unwrap();
        }
        for (token, listener) in (100..).zip(&captured.tcp) {
            poller.add(listener, token, Interest::READ).unwrap();
        }
        let slots = Slots { size: 2000, headroom: 0, tailroom: 0 };
        Self { captured, poller, received: RecvBatch::new(16, slots), answers: SendBatch::new(16, slots) }
    }

    /// Waits until something has arrived and been answered.
    fn turn(&mut self) -> usize {
        let mut events = Events::with_capacity(8);
        self.poller.wait(&mut events, Some(LIMIT)).unwrap();
        let mut count = 0;
        for event in events.iter() {
            if let Some(socket) = self.captured.udp.get(event.token as usize) {
                count += socket.recv_batch(&mut self.received).unwrap();
                for datagram in self.received.iter_mut() {
                    let text = format!("{} to {}", datagram.remote(), datagram.local());
                    let mut slot = self.answers.reserve().unwrap();
                    slot.buffer()[..text.len()].copy_from_slice(text.as_bytes());
                    slot.commit(0..text.len(), datagram.remote(), Some(datagram.local()));
                }
                let flushed = socket.flush(&mut self.answers);
                assert_eq!((flushed.dropped.total(), flushed.blocked), (0, false), "{flushed:?}");
            } else {
                let (mut stream, remote) =
                    tcp::accept(&self.captured.tcp[event.token as usize - 100]).unwrap();
                write!(stream, "{remote} to {}", stream.local_addr().unwrap()).unwrap();
                count += 1;
            }
        }
        assert!(count > 0, "nothing arrived");
        count
    }

    /// A UDP client at `to` is answered from there.
    fn check_udp(&mut self, to: SocketAddr) {
        let client = udp_socket(to);
        client.send_to(b"hello", to).unwrap();
        self.turn();
        let mut answer = [0; 200];
        let (len, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!(from, to);
        let text = std::str::from_utf8(&answer[..len]).unwrap();
        let (remote, dialled) = text.split_once(" to ").unwrap();
        let remote: SocketAddr = remote.parse().unwrap();
        assert_eq!((remote.port(), dialled), (client.local_addr().unwrap().port(), &*to.to_string()));
    }

    fn check_tcp(&mut self, to: SocketAddr) {
        let mut client = TcpStream::connect_timeout(&to, LIMIT).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        self.turn();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{} to {to}", client.local_addr().unwrap()));
    }
}

fn udp_socket(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
}

fn udp_client(to: SocketAddr) -> UdpSocket {
    let client = udp_socket(to);
    client.connect(to).unwrap();
    client
}

/// Nobody is there: the kernel says so.
fn check_refused(to: SocketAddr) {
    let deadline = Instant::now() + LIMIT;
    // A socket that is connected to a new IPv6 address at once may get nothing through, ever: then another does.
    let refused = || {
        let client = udp_client(to);
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        client.send(b"hello").unwrap();
        client.recv(&mut [0; 10]).unwrap_err().kind() == ErrorKind::ConnectionRefused
    };
    while !refused() {
        assert!(Instant::now() < deadline, "{to}");
    }
    assert_eq!(TcpStream::connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_port_of_a_range_is_answered_from_the_address_and_port_that_was_dialled() {
    in_netns(|| {
        let before = descriptors();
        let (capture, captured) = Capture::start(&plan(vec![all(1..=29_999)]), &options()).unwrap();
        assert!(descriptors() - before < 20, "sixty thousand ports on all addresses");
        let mut echo = Echo::new(captured);
        for port in [1, 22, 53, 63, 64, 65, 443, 1194, 8191, 8192, 29_998, 29_999] {
            for address in ADDRESSES {
                echo.check_udp(at(address, port));
                echo.check_tcp(at(address, port));
            }
        }
        for port in [30_000, 30_001, 65_535] {
            check_refused(at("192.0.2.1", port));
            check_refused(at("2001:db8::1", port));
        }
        drop(capture);
        check_refused(at("192.0.2.1", 443));
        check_refused(at("2001:db8::1", 443));
    });
}

#[test]
fn services_keep_the_addresses_that_they_are_bound_to_and_no_others() {
    in_netns(|| {
        let name_server = UdpSocket::bind("192.0.2.1:53").unwrap();
        name_server.set_read_timeout(Some(LIMIT)).unwrap();
        let shell = TcpListener::bind("0.0.0.0:22").unwrap();
        let plan = CapturePlan {
            entrances: vec![all(1..=29_999)],
            spared: vec![
                Spared { transport: Transport::Udp, address: name_server.local_addr().unwrap() },
                Spared { transport: Transport::Tcp, address: shell.local_addr().unwrap() },
            ],
        };
        let (_capture, captured) = Capture::start(&plan, &options()).unwrap();
        let mut echo = Echo::new(captured);

        udp_client(at("192.0.2.1", 53)).send(b"query").unwrap();
        assert_eq!(name_server.recv(&mut [0; 10]).unwrap(), 5);
        echo.check_udp(at("192.0.2.2", 53));
        echo.check_udp(at("2001:db8::1", 53));
        echo.check_tcp(at("192.0.2.1", 53));

        for address in ["192.0.2.1", "192.0.2.2"] {
            let client = TcpStream::connect(at(address, 22)).unwrap();
            assert_eq!(shell.accept().unwrap().1, client.local_addr().unwrap());
            echo.check_udp(at(address, 22));
        }
        echo.check_tcp(at("2001:db8::1", 22));
    });
}

#[test]
fn an_entrance_takes_only_what_is_for_its_address_or_interface() {
    in_netns(|| {
        let (v4, v6) = ("192.0.2.2".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let entrances = vec![
            Ports { target: Target::Address(v4), udp: vec![5..=9], tcp: vec![7..=9] },
            Ports { target: Target::Address(v4), udp: vec![20..=20], tcp: vec![] },
            Ports { target: Target::Address(v6), udp: vec![5..=6], tcp: vec![6..=6] },
        ];
        let (mut capture, captured) = Capture::start(&plan(entrances), &options()).unwrap();
        let mut echo = Echo::new(captured);
        echo.check_udp(at("192.0.2.2", 5));
        echo.check_udp(at("192.0.2.2", 20));
        echo.check_tcp(at("192.0.2.2", 7));
        echo.check_udp(at("2001:db8::1", 5));
        echo.check_tcp(at("2001:db8::1", 6));
        check_refused(at("192.0.2.1", 7));
        check_refused(at("2001:db8::1", 7));
        check_refused(at("::1", 6));

        let by_lo = Ports { target: Target::Interface("lo".into()), udp: vec![7..=7], tcp: vec![7..=7] };
        capture.change(&plan(vec![by_lo])).unwrap();
        echo.check_udp(at("192.0.2.1", 7));
        echo.check_tcp(at("2001:db8::1", 7));
        check_refused(at("192.0.2.2", 5));

        let v4 = Ports { target: Target::Ipv4, udp: vec![7..=7], tcp: vec![7..=7] };
        capture.change(&plan(vec![v4])).unwrap();
        echo.check_udp(at("192.0.2.1", 7));
        check_refused(at("2001:db8::1", 7));

        let nowhere = Ports { target: Target::Interface("eth7".into()), udp: vec![5..=5], tcp: vec![] };
        let fault = capture.change(&plan(vec![nowhere])).unwrap_err();
        assert!(matches!(fault, CaptureFault::NoInterface(_)), "{fault}");
        echo.check_udp(at("192.0.2.1", 7));
    });
}

#[test]
fn a_change_leaves_flows_of_both_plans_alone() {
    in_netns(|| {
        let (mut capture, captured) = Capture::start(&plan(vec![all(1..=100)]), &options()).unwrap();
        let mut echo = Echo::new(captured);
        let to = at("192.0.2.1", 80);
        let mut stream = TcpStream::connect(to).unwrap();
        let datagrams = udp_client(to);
        datagrams.send(b"before").unwrap();
        echo.turn();
        for last in 100..120 {
            capture.change(&plan(vec![all(50..=last)])).unwrap();
            datagrams.send(b"after").unwrap();
            echo.turn();
            assert!(datagrams.recv(&mut [0; 100]).is_ok());
        }
        let mut text = String::new();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("to 192.0.2.1:80"), "{text}");
        check_refused(at("192.0.2.1", 49));
        echo.check_udp(at("192.0.2.1", 119));
    });
}

#[test]
fn answers_leave_from_a_bounded_number_of_sockets_that_receive_nothing() {
    in_netns(|| {
        let (mut capture, captured) = Capture::start(&plan(vec![all(1..=29_999)]), &options()).unwrap();
        let mut echo = Echo::new(captured);
        echo.check_udp(at("192.0.2.1", 1000));
        let before = descriptors();
        for port in 1001..1100 {
            echo.check_udp(at("192.0.2.1", port));
        }
        // One was open before; a client's socket is not.
        assert_eq!(descriptors(), before + 15);
        let client = udp_client(at("192.0.2.1", 2000));
        let socket = &echo.captured.udp[0];
        for port in 2000..2050 {
            socket.send_once(b"x", client.local_addr().unwrap(), at("192.0.2.1", port)).unwrap();
        }
        assert_eq!(descriptors(), before + 16, "and the client");
        assert_eq!(client.recv(&mut [0; 10]).unwrap(), 1);

        // A port that is given back can be bound. A socket that is made too late swallows, and nobody is answered.
        capture.change(&plan(vec![all(1..=9)])).unwrap();
        drop(UdpSocket::bind("192.0.2.1:1099").unwrap());
        socket.send_to(b"y", client.local_addr().unwrap(), Some(at("192.0.2.1", 1099))).unwrap();
        let late = udp_client(at("192.0.2.1", 1099));
        late.send(b"late").unwrap();
        late.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(late.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(socket.recv_batch(&mut echo.received).is_err());
    });
}

#[test]
fn a_port_in_use_takes_less_than_four_kilobytes() {
    const PORTS: u16 = 2000;
    in_netns(|| {
        let options = CaptureOptions { answering: PORTS.into(), ..options() };
        let (_capture, captured) = Capture::start(&plan(vec![all(1..=29_999)]), &options).unwrap();
        let client = udp_client(at("2001:db8::1", 1));
        let socket = captured.udp.last().unwrap();
        let answer = |port| {
            socket.send_to(b"x", client.local_addr().unwrap(), Some(at("2001:db8::1", port))).unwrap();
        };
        answer(1);
        let (before, open) = (resident(), descriptors());
        (2..=PORTS).for_each(answer);
        let ours = resident().saturating_sub(before) / usize::from(PORTS);
        assert_eq!(descriptors() - open, usize::from(PORTS) - 1);
        // What the kernel keeps of a socket that holds no data.
        let kernel: usize = ["UDPv6", "sock_inode_cache", "filp", "dentry"].map(size_of_slab).iter().sum();
        assert!(ours + kernel < 4096, "{ours} bytes here and {kernel} in the kernel");
    });
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Bytes of one of the kernel's objects.
fn size_of_slab(name: &str) -> usize {
    let table = std::fs::read_to_string("/proc/slabinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().nth(3).unwrap().parse().unwrap()
}
