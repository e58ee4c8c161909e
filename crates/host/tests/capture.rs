//! Ranges of ports captured with a handful of sockets: by a program, and diverted, which nobody can tell apart.
//!
//! ```text
//!  a namespace of its own: lo with 127.0.0.1, ::1, 192.0.2.1, 192.0.2.2, 2001:db8::1
//!  clients (ordinary sockets) ── lo ── the capture, and services beside it
//! ```

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use adit_host::capture::{
    CaptureFault, CaptureOptions, CapturePlan, Captured, Means, Ports, Spared, Target, diversion::Diversion,
    shard_of,
};
use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::{Netns, TemporaryNetns};
use adit_host::plumbing::{InProcess, Plumbing, PlumbingFault};
use adit_host::poll::{Events, Interest, Poller};
use adit_host::services::Transport;
use adit_host::sysctl;
use adit_host::tcp::{self, ListenOptions};
use adit_host::udp::{RecvBatch, SendBatch, Slots, UdpOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Descriptors of the process are counted.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const LIMIT: Duration = Duration::from_secs(10);
const ADDRESSES: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];

fn in_netns(test: impl FnOnce() + Send) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    TemporaryNetns::create("adit-capture").unwrap().run_in(|| {
        let mut netlink = Netlink::open().unwrap();
        netlink.set_up("lo", true).unwrap();
        for address in ADDRESSES {
            let length = if address.contains(':') { 128 } else { 32 };
            let address = format!("{address}/{length}").parse().unwrap();
            let address = InterfaceAddress { interface: "lo".into(), address };
            netlink.add_address(&address, IfExists::Fail).unwrap();
            assert!(netlink.wait_for_address(address.address.addr(), LIMIT).unwrap());
        }
        test();
    });
}

/// By a program, and then diverted.
fn by_both_means(test: impl Fn(Means) + Sync) {
    for means in [Means::SkLookup, Means::Tproxy] {
        in_netns(|| test(means));
    }
}

fn options() -> CaptureOptions {
    CaptureOptions { udp: UdpOptions::default(), tcp: ListenOptions::default(), shards: 1, answering: 16 }
}

fn all(range: RangeInclusive<u16>) -> Ports {
    ports(Target::Everything, range.clone(), range)
}

fn ports(target: Target, udp: RangeInclusive<u16>, tcp: RangeInclusive<u16>) -> Ports {
    Ports { target, means: Means::Auto, udp: vec![udp], tcp: vec![tcp] }
}

fn plan(entrances: Vec<Ports>) -> CapturePlan {
    CapturePlan { entrances, spared: Vec::new() }
}

/// No ports.
#[expect(clippy::reversed_empty_ranges, reason = "that is what it says")]
const NONE: RangeInclusive<u16> = 1..=0;

/// A capture as a gateway has it: by its plumbing. Undone when it is dropped.
#[derive(Debug)]
struct Capture {
    plumbing: InProcess,
    diversion: Diversion,
    means: Means,
    _directory: tempfile::TempDir,
}

impl Capture {
    fn start(
        means: Means,
        plan: &CapturePlan,
        options: &CaptureOptions,
    ) -> Result<(Self, Captured), PlumbingFault> {
        let directory = tempfile::tempdir().unwrap();
        let (mut plumbing, _) = InProcess::start(&directory.path().join("changes.json")).unwrap();
        let plan = by(means, plan);
        let captured = plumbing.capture(&plan, options)?;
        let diversion = captured.diversion.clone();
        plumbing.apply(&diversion.host_state(&plan)).unwrap();
        Ok((Self { plumbing, diversion, means, _directory: directory }, captured))
    }

    fn change(&mut self, plan: &CapturePlan) -> Result<(), PlumbingFault> {
        let plan = by(self.means, plan);
        self.plumbing.recapture(&plan)?;
        self.plumbing.apply(&self.diversion.host_state(&plan))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.plumbing.undo().unwrap();
    }
}

fn by(means: Means, plan: &CapturePlan) -> CapturePlan {
    let mut plan = plan.clone();
    plan.entrances.iter_mut().for_each(|entrance| entrance.means = means);
    plan
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
        self.must_answer_udp(&udp_client(to));
    }

    fn must_answer_udp(&mut self, client: &UdpSocket) {
        let to = client.peer_addr().unwrap();
        client.send(b"hello").unwrap();
        self.turn();
        let mut answer = [0; 200];
        // A connected socket takes answers from `to` alone.
        let len = client.recv(&mut answer).unwrap();
        let expected = format!("{} to {to}", client.local_addr().unwrap());
        assert_eq!(std::str::from_utf8(&answer[..len]), Ok(&*expected));
    }

    fn check_tcp(&mut self, to: SocketAddr) {
        self.must_answer_tcp(TcpStream::connect_timeout(&to, LIMIT).unwrap());
    }

    fn must_answer_tcp(&mut self, mut client: TcpStream) {
        let to = client.peer_addr().unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        self.turn();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{} to {to}", client.local_addr().unwrap()));
    }
}

fn udp_client(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.connect(to).unwrap();
    client
}

/// Nobody is there: the kernel says so.
fn check_refused(to: SocketAddr) {
    let client = udp_client(to);
    client.send(b"hello").unwrap();
    assert_eq!(client.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
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
    by_both_means(|means| {
        let before = descriptors();
        let (capture, captured) = Capture::start(means, &plan(vec![all(1..=29_999)]), &options()).unwrap();
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
    by_both_means(|means| {
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
        let (_capture, captured) = Capture::start(means, &plan, &options()).unwrap();
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
    by_both_means(|means| {
        let (v4, v6) = ("192.0.2.2".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let entrances = vec![
            ports(Target::Address(v4), 5..=9, 7..=9),
            ports(Target::Address(v4), 20..=20, NONE),
            ports(Target::Address(v6), 5..=6, 6..=6),
        ];
        let (mut capture, captured) = Capture::start(means, &plan(entrances), &options()).unwrap();
        let mut echo = Echo::new(captured);
        echo.check_udp(at("192.0.2.2", 5));
        echo.check_udp(at("192.0.2.2", 20));
        echo.check_tcp(at("192.0.2.2", 7));
        echo.check_udp(at("2001:db8::1", 5));
        echo.check_tcp(at("2001:db8::1", 6));
        check_refused(at("192.0.2.1", 7));
        check_refused(at("2001:db8::1", 7));
        check_refused(at("::1", 6));

        let by_lo = ports(Target::Interface("lo".into()), 7..=7, 7..=7);
        capture.change(&plan(vec![by_lo])).unwrap();
        echo.check_udp(at("192.0.2.1", 7));
        echo.check_tcp(at("2001:db8::1", 7));
        check_refused(at("192.0.2.2", 5));

        let v4 = ports(Target::Ipv4, 7..=7, 7..=7);
        capture.change(&plan(vec![v4])).unwrap();
        echo.check_udp(at("192.0.2.1", 7));
        check_refused(at("2001:db8::1", 7));

        let nowhere = ports(Target::Interface("eth7".into()), 5..=5, NONE);
        let fault = capture.change(&plan(vec![nowhere])).unwrap_err();
        assert!(matches!(fault, PlumbingFault::Capture(CaptureFault::NoInterface(_))), "{fault}");
        echo.check_udp(at("192.0.2.1", 7));
    });
}

#[test]
fn a_change_leaves_flows_of_both_plans_alone() {
    by_both_means(|means| {
        let (mut capture, captured) = Capture::start(means, &plan(vec![all(1..=100)]), &options()).unwrap();
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
    by_both_means(|means| {
        let (mut capture, captured) =
            Capture::start(means, &plan(vec![all(1..=29_999)]), &options()).unwrap();
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

/// Two machines: the other one reaches 203.0.113.0/24 and 2001:db8:7::/64 by way of this one, which has none of it.
fn beside_a_client(test: impl FnOnce(&Netns) + Send) {
    in_netns(|| {
        let other = TemporaryNetns::create("adit-client").unwrap();
        let ip = |arguments: &str| {
            let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(done.success(), "ip {arguments}");
        };
        ip(&format!("link add near type veth peer name far netns {}", other.name()));
        ip("link set near up");
        ip("address add 198.51.100.1/24 dev near");
        ip("address add 2001:db8:5::1/64 dev near nodad");
        // What is not taken has nowhere to go, and the sender hears of it.
        sysctl::set("net.ipv4.ip_forward", "1").unwrap();
        other.run_in(|| {
            ip("link set far up");
            ip("address add 198.51.100.2/24 dev far");
            ip("address add 2001:db8:5::2/64 dev far nodad");
            ip("route add 203.0.113.0/24 via 198.51.100.1");
            ip("route add 2001:db8:7::/64 via 2001:db8:5::1");
        });
        test(&other);
    });
}

#[test]
fn foreign_addresses_that_are_routed_here_are_answered_from_there() {
    for means in [Means::Auto, Means::Tproxy] {
        beside_a_client(|other| {
            let entrances: Vec<Ports> = ["203.0.113.9", "2001:db8:7::9", "198.51.100.1"]
                .into_iter()
                .map(|address| ports(Target::Address(address.parse().unwrap()), 5..=29_999, 5..=29_999))
                .collect();
            let (mut capture, captured) =
                Capture::start(means, &plan(entrances.clone()), &options()).unwrap();
            let mut echo = Echo::new(captured);
            let connect = |to| other.run_in(|| TcpStream::connect_timeout(&to, LIMIT));
            for address in ["203.0.113.9", "2001:db8:7::9", "198.51.100.1"] {
                for port in [5, 1194, 29_999] {
                    let to = at(address, port);
                    echo.must_answer_udp(&other.run_in(|| udp_client(to)));
                    echo.must_answer_tcp(connect(to).unwrap());
                }
            }
            // Neither its other ports nor its neighbours.
            for to in [at("203.0.113.9", 4), at("203.0.113.8", 5)] {
                assert_eq!(connect(to).unwrap_err().kind(), ErrorKind::NetworkUnreachable, "{to}");
            }
            capture.change(&plan(entrances[1..].to_vec())).unwrap();
            assert_eq!(connect(at("203.0.113.9", 5)).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
            echo.must_answer_tcp(connect(at("2001:db8:7::9", 5)).unwrap());
            drop(capture);
            let look = "nft list tables; ip rule; ip route show table 44312";
            let left = Command::new("sh").args(["-c", look]).output().unwrap();
            let left = String::from_utf8_lossy(&left.stdout).into_owned();
            assert!(
                !left.contains("adit") && !left.contains("44312") && !left.contains("local default"),
                "{left}"
            );
        });
    }
}

#[test]
fn where_the_kernel_takes_no_programs_ports_are_diverted_unless_a_program_is_asked_for() {
    in_netns(|| {
        let before = rustix::thread::capabilities(None).unwrap();
        let without = CapabilitySets {
            effective: before.effective - CapabilitySet::BPF - CapabilitySet::SYS_ADMIN,
            ..before
        };
        let without_programs = |means| {
            rustix::thread::set_capabilities(None, without).unwrap();
            let result = Capture::start(means, &plan(vec![all(1..=29_999)]), &options());
            rustix::thread::set_capabilities(None, before).unwrap();
            result
        };
        let fault = without_programs(Means::SkLookup).unwrap_err().to_string();
        assert!(fault.contains("CAP_BPF") && fault.contains("capture = \"tproxy\""), "{fault}");
        let (mut capture, captured) = without_programs(Means::Auto).unwrap();
        let mut echo = Echo::new(captured);
        for address in ADDRESSES {
            echo.check_udp(at(address, 1194));
            echo.check_tcp(at(address, 443));
        }
        capture.means = Means::SkLookup;
        assert!(capture.change(&plan(vec![all(1..=9)])).is_err());
        echo.check_udp(at("192.0.2.1", 1194));
    });
}

#[test]
fn packets_of_one_peer_come_to_one_shard_and_others_spread_over_all() {
    const SHARDS: usize = 4;
    in_netns(|| {
        let options = CaptureOptions { shards: SHARDS, ..options() };
        let (_capture, captured) =
            Capture::start(Means::SkLookup, &plan(vec![all(1..=29_999)]), &options).unwrap();
        assert_eq!(captured.udp.len(), 2 * SHARDS);
        let mut echo = Echo::new(captured);
        // The number of the shard that a datagram from a new source comes to.
        let mut shard = |datagram: &[u8], to: SocketAddr| {
            let client = udp_client(to);
            client.send(datagram).unwrap();
            let mut events = Events::with_capacity(8);
            echo.poller.wait(&mut events, Some(LIMIT)).unwrap();
            let [event] = events.iter().collect::<Vec<_>>()[..] else { panic!("one socket has it") };
            let number = event.token as usize;
            assert_eq!(echo.captured.udp[number].recv_batch(&mut echo.received).unwrap(), 1);
            assert_eq!(number / SHARDS, usize::from(to.is_ipv6()));
            number % SHARDS
        };
        for address in ["192.0.2.1", "2001:db8::1"] {
            for (n, number) in (0..).zip([0u32, 1, 2, 3, 7, 0x0001_0203, 0x00ff_fffe]) {
                let openvpn = [&(0x4800_0000 | number).to_be_bytes()[..], b"sealed"].concat();
                let [data, cookie] =
                    [4u8, 3].map(|kind| [&[kind, 0, 0, 0], &number.to_le_bytes()[..], b"sealed"].concat());
                let response = [&[2, 0, 0, 0, 9, 9, 9, 9], &number.to_le_bytes()[..]].concat();
                for datagram in [openvpn, data, cookie, response] {
                    let expected = shard_of(&datagram, SHARDS).unwrap();
                    assert_eq!(expected, number as usize % SHARDS);
                    for port in 0..5 {
                        assert_eq!(
                            shard(&datagram, at(address, 1 + 100 * n + port)),
                            expected,
                            "{datagram:?}"
                        );
                    }
                }
            }
            for other in
                [&[0x38, 1, 2, 3, 4][..], &[0x48, 0, 0], &[4, 0, 0, 0, 1], &[2, 0, 0, 0, 1, 0, 0, 0, 1]]
            {
                let reached: BTreeSet<usize> = (0..100).map(|n| shard(other, at(address, 1 + n))).collect();
                assert_eq!(reached.len(), SHARDS, "{other:?}");
            }
        }
    });
}
