//! UDP sockets against a real kernel. Each test has a namespace of its own, whose loopback interface also
//! holds 192.0.2.1, 192.0.2.2, 2001:db8::1 and 2001:db8::2.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use adit_host::netlink::{IfExists, InterfaceAddress, Mark, Netlink, Route, RouteKind, Rule};
use adit_host::netns::{Netns, TemporaryNetns};
use adit_host::poll::{Events, Interest, Poller};
use adit_host::udp::{PathMtu, RecvBatch, SendBatch, SendFault, Slots, UdpOptions, UdpSocket};
use rustix::net::sockopt;

const SLOTS: Slots = Slots { size: 2000, headroom: 128, tailroom: 32 };

fn in_namespace(work: impl FnOnce() + Send) {
    TemporaryNetns::create("adit-udp").unwrap().run_in(|| {
        let mut netlink = Netlink::open().unwrap();
        for address in ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128", "2001:db8::2/128"] {
            let address = InterfaceAddress { interface: "lo".to_owned(), address: address.parse().unwrap() };
            netlink.add_address(&address, IfExists::Fail).unwrap();
            assert!(netlink.wait_for_address(address.address.addr(), Duration::from_secs(10)).unwrap());
        }
        work();
    });
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(at(address), &UdpOptions::default()).unwrap()
}

fn client(address: &str) -> StdSocket {
    let socket = StdSocket::bind(at(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Queues `bytes`; false when the batch is full.
fn queue(batch: &mut SendBatch, bytes: &[u8], remote: SocketAddr, local: Option<SocketAddr>) -> bool {
    let Some(mut slot) = batch.reserve() else { return false };
    slot.payload()[..bytes.len()].copy_from_slice(bytes);
    let start = slot.headroom();
    slot.commit(start..start + bytes.len(), remote, local);
    true
}

/// Receives what comes next, waiting for it.
fn receive(socket: &UdpSocket, batch: &mut RecvBatch) -> usize {
    let poller = Poller::new().unwrap();
    poller.add(socket, 0, Interest::READ).unwrap();
    let ready = poller.wait(&mut Events::with_capacity(1), Some(Duration::from_secs(10))).unwrap();
    assert_eq!(ready, 1, "nothing arrived at {socket:?}");
    socket.recv_batch(batch).unwrap()
}

#[test]
fn a_batch_arrives_as_it_was_sent() {
    in_namespace(|| {
        for (sender, receiver) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")] {
            let (sender, receiver) = (bind(sender), bind(receiver));
            let mut out = SendBatch::new(50, SLOTS);
            let datagrams: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n; usize::from(n) * 30]).collect();
            for datagram in &datagrams {
                assert!(queue(&mut out, datagram, receiver.local_addr(), None));
            }
            assert!(!queue(&mut out, b"one too many", receiver.local_addr(), None));
            assert_eq!(out.len(), 50);

            let flushed = sender.flush(&mut out);

            assert_eq!((flushed.sent, flushed.dropped.total(), flushed.blocked), (50, 0, false));
            assert!(out.is_empty());
            // Two receives: the second batch must not show what is left of the first.
            let mut batch = RecvBatch::new(32, SLOTS);
            let mut arrived = Vec::new();
            while arrived.len() < 50 {
                let count = receive(&receiver, &mut batch);
                assert_eq!(count, batch.len());
                for mut received in batch.iter_mut() {
                    assert_eq!(received.remote(), sender.local_addr());
                    assert_eq!(received.local(), receiver.local_addr());
                    assert!(!received.truncated());
                    let segments: Vec<_> = received.segments().collect();
                    assert_eq!(segments.len(), 1);
                    assert_eq!(segments[0].start, 128);
                    assert_eq!(received.buffer().len(), 128 + 2000 + 32);
                    let bytes = received.bytes().to_vec();
                    assert_eq!(received.buffer()[segments[0].clone()], bytes);
                    arrived.push(bytes);
                }
            }
            assert_eq!(arrived, datagrams);
            let empty = receiver.recv_batch(&mut batch).unwrap_err();
            assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
            assert!(batch.is_empty() && batch.get_mut(0).is_none());
        }
    });
}

#[test]
fn the_answer_comes_from_the_address_that_was_asked() {
    in_namespace(|| {
        let dual = UdpOptions { v6_only: false, ..UdpOptions::default() };
        let cases = [
            (UdpSocket::bind(at("0.0.0.0:0"), &UdpOptions::default()).unwrap(), "192.0.2.2", "192.0.2.1:0"),
            (
                UdpSocket::bind(at("[::]:0"), &UdpOptions::default()).unwrap(),
                "2001:db8::2",
                "[2001:db8::1]:0",
            ),
            (UdpSocket::bind(at("[::]:0"), &dual).unwrap(), "2001:db8::2", "[2001:db8::1]:0"),
            (UdpSocket::bind(at("[::]:0"), &dual).unwrap(), "192.0.2.2", "192.0.2.1:0"),
        ];
        for (server, dialled, client_address) in cases {
            let client = client(client_address);
            let dialled = SocketAddr::new(dialled.parse().unwrap(), server.local_addr().port());
            client.connect(dialled).unwrap();
            client.send(b"question").unwrap();

            let mut batch = RecvBatch::new(4, SLOTS);
            assert_eq!(receive(&server, &mut batch), 1);
            let received = batch.get_mut(0).unwrap();
            assert_eq!(received.local(), dialled);
            assert_eq!(received.remote(), client.local_addr().unwrap());

            // A connected socket takes nothing from any other address.
            let mut out = SendBatch::new(4, SLOTS);
            queue(&mut out, b"in a batch", received.remote(), Some(received.local()));
            assert_eq!(server.flush(&mut out).sent, 1);
            server.send_to(b"alone", received.remote(), Some(received.local())).unwrap();
            let mut buffer = [0; 32];
            for answer in [&b"in a batch"[..], b"alone"] {
                let length = client.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], answer);
            }
        }
    });
}

#[test]
fn a_datagram_longer_than_its_slot_is_marked_as_cut() {
    in_namespace(|| {
        let receiver = bind("127.0.0.1:0");
        client("127.0.0.1:0").send_to(&[7; 40], receiver.local_addr()).unwrap();
        let mut batch = RecvBatch::new(1, Slots { size: 39, headroom: 4, tailroom: 4 });

        receive(&receiver, &mut batch);

        let mut received = batch.get_mut(0).unwrap();
        assert!(received.truncated());
        assert_eq!(received.bytes(), [7; 39]);
        assert_eq!(received.buffer()[43..], [0; 4], "the tailroom stays free");
    });
}

#[test]
fn congestion_marks_are_seen_by_every_kind_of_socket() {
    in_namespace(|| {
        let dual =
            UdpSocket::bind(at("[::]:0"), &UdpOptions { v6_only: false, ..UdpOptions::default() }).unwrap();
        let dual_port = dual.local_addr().port();
        let (v4, v6) = (bind("127.0.0.1:0"), bind("[::1]:0"));
        let (from_v4, from_v6) = (client("127.0.0.1:0"), client("[::1]:0"));
        let mut batch = RecvBatch::new(1, SLOTS);
        for ecn in [1u8, 2, 3, 0] {
            sockopt::set_ip_tos(&from_v4, 0xb8 | ecn).unwrap();
            sockopt::set_ipv6_tclass(&from_v6, (0xb8 | ecn).into()).unwrap();
            for (receiver, sender, to) in [
                (&v4, &from_v4, v4.local_addr()),
                (&v6, &from_v6, v6.local_addr()),
                (&dual, &from_v4, SocketAddr::new("127.0.0.1".parse().unwrap(), dual_port)),
                (&dual, &from_v6, SocketAddr::new("::1".parse().unwrap(), dual_port)),
            ] {
                sender.send_to(b"x", to).unwrap();
                receive(receiver, &mut batch);
                assert_eq!(batch.get_mut(0).unwrap().ecn(), ecn, "to {to}");
            }
        }
    });
}

#[test]
fn a_datagram_that_cannot_be_sent_is_counted_and_the_others_go_out() {
    in_namespace(|| {
        let nft = Command::new("nft")
            .arg("table inet t { chain c { type filter hook output priority 0; udp dport 9 drop; }; }")
            .status();
        assert!(nft.unwrap().success());
        let (sender, receiver) = (bind("0.0.0.0:0"), bind("127.0.0.1:0"));
        let to = receiver.local_addr();
        let huge = Slots { size: 65_600, headroom: 0, tailroom: 0 };
        let mut out = SendBatch::new(16, huge);
        queue(&mut out, b"first", to, None);
        queue(&mut out, &[0; 65_508], to, None);
        queue(&mut out, b"no route", at("203.0.113.1:1"), None);
        queue(&mut out, b"filtered", at("127.0.0.1:9"), None);
        queue(&mut out, b"not my address", to, Some(at("203.0.113.9:0")));
        queue(&mut out, b"other version", at("[::1]:1"), None);
        queue(&mut out, b"other version's source", to, Some(at("[2001:db8::1]:0")));
        queue(&mut out, b"last", to, None);

        let flushed = sender.flush(&mut out);

        assert_eq!((flushed.sent, flushed.blocked, out.len()), (2, false, 0));
        let of = |fault| flushed.dropped.of(fault);
        assert_eq!((of(SendFault::TooBig), of(SendFault::Unreachable), of(SendFault::Forbidden)), (1, 2, 1));
        assert_eq!((of(SendFault::Other), flushed.dropped.total()), (2, 6));
        let mut batch = RecvBatch::new(4, SLOTS);
        let mut arrived = Vec::new();
        while arrived.len() < 2 {
            receive(&receiver, &mut batch);
            arrived.extend(batch.iter_mut().map(|received| received.bytes().to_vec()));
        }
        assert_eq!(arrived, [&b"first"[..], b"last"]);
        let single = sender.send_to(&[0; 65_508], to, None).unwrap_err();
        assert_eq!(SendFault::of(&single), SendFault::TooBig);
    });
}

#[test]
fn a_full_send_buffer_is_told_and_keeps_what_is_left() {
    in_namespace(|| {
        // The other end has no address, so nobody answers for it and the kernel holds what is to be sent.
        let here = Netns::current().unwrap();
        let mut netlink = Netlink::open().unwrap();
        netlink.add_veth("left0", "right0", here.as_fd()).unwrap();
        let address =
            InterfaceAddress { interface: "left0".to_owned(), address: "10.0.0.1/24".parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
        netlink.set_up("left0", true).unwrap();
        netlink.set_up("right0", true).unwrap();
        let options = UdpOptions { send_buffer: Some(2048), ..UdpOptions::default() };
        let sender = UdpSocket::bind(at("10.0.0.1:0"), &options).unwrap();
        let mut out = SendBatch::new(64, SLOTS);
        let fill = |out: &mut SendBatch| while queue(out, &[0; 1400], at("10.0.0.2:1"), None) {};
        fill(&mut out);

        let flushed = sender.flush(&mut out);

        assert!(flushed.blocked && flushed.sent > 0 && flushed.dropped.total() == 0, "{flushed:?}");
        assert_eq!(out.len(), 64 - flushed.sent);
        let again = sender.flush(&mut out);
        assert!(again.blocked && again.sent == 0 && out.len() == 64 - flushed.sent, "{again:?}");
        assert_eq!(out.clear(), 64 - flushed.sent);
        fill(&mut out);
        assert_eq!(out.len(), 64);
    });
}

#[test]
fn datagrams_are_fragmented_only_when_asked_for() {
    in_namespace(|| {
        let here = Netns::current().unwrap();
        let mut netlink = Netlink::open().unwrap();
        netlink.add_veth("left0", "right0", here.as_fd()).unwrap();
        for address in ["10.0.0.1/24", "fd00::1/64"] {
            let address =
                InterfaceAddress { interface: "left0".to_owned(), address: address.parse().unwrap() };
            netlink.add_address(&address, IfExists::Fail).unwrap();
        }
        netlink.set_up("left0", true).unwrap();
        netlink.set_up("right0", true).unwrap();
        let dual = UdpOptions { v6_only: false, ..UdpOptions::default() };
        for path_mtu in [PathMtu::Probe, PathMtu::Enforce] {
            for (from, to, fits) in [
                ("0.0.0.0:0", "10.0.0.2:1", 1472),
                ("[::]:0", "10.0.0.2:1", 1472),
                ("[::]:0", "[fd00::2]:1", 1452),
            ] {
                let sender = UdpSocket::bind(at(from), &UdpOptions { path_mtu, ..dual }).unwrap();
                sender.send_to(&vec![0; fits], at(to), None).unwrap();
                let refused = sender.send_to(&vec![0; fits + 1], at(to), None).unwrap_err();
                assert_eq!(SendFault::of(&refused), SendFault::TooBig, "{from} to {to}");
                let fragmenting = UdpOptions { path_mtu: PathMtu::Fragment, ..dual };
                let sender = UdpSocket::bind(at(from), &fragmenting).unwrap();
                sender.send_to(&vec![0; fits + 1], at(to), None).unwrap();
            }
        }
    });
}

#[test]
fn the_mark_decides_about_routing() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        netlink.delete_rule(&Rule { protocol: 2, ..Rule::new(false, 0, 255) }).unwrap();
        let rule = Rule { mark: Some(Mark::exactly(5)), ..Rule::new(false, 1, 77) };
        netlink.add_rule(&rule, IfExists::Fail).unwrap();
        netlink.add_rule(&Rule::new(false, 2, 255), IfExists::Fail).unwrap();
        let refuse = Route { table: 77, ..Route::new("0.0.0.0/0".parse().unwrap(), RouteKind::Unreachable) };
        netlink.add_route(&refuse, IfExists::Fail).unwrap();
        let marked = UdpOptions { mark: Some(5), ..UdpOptions::default() };

        let plain = bind("0.0.0.0:0").send_to(b"x", at("192.0.2.2:1"), None);
        let marked =
            UdpSocket::bind(at("0.0.0.0:0"), &marked).unwrap().send_to(b"x", at("192.0.2.2:1"), None);

        plain.unwrap();
        assert_eq!(SendFault::of(&marked.unwrap_err()), SendFault::Unreachable);
    });
}

#[test]
fn a_slot_that_is_not_committed_is_not_sent() {
    in_namespace(|| {
        let sender = bind("127.0.0.1:0");
        let mut out = SendBatch::new(1, SLOTS);

        out.reserve().unwrap().payload().fill(7);

        assert!(out.is_empty());
        assert_eq!(sender.flush(&mut out).sent, 0);
        assert!(out.reserve().is_some());
    });
}

#[test]
fn buffers_may_be_larger_than_the_systems_limit_and_are_told() {
    in_namespace(|| {
        let options =
            UdpOptions { recv_buffer: Some(12 << 20), send_buffer: Some(3 << 20), ..UdpOptions::default() };

        let sizes = UdpSocket::bind(at("127.0.0.1:0"), &options).unwrap().buffer_sizes().unwrap();

        assert_eq!((sizes.receive, sizes.send), (12 << 20, 3 << 20));
    });
}

#[test]
fn addresses_that_cannot_be_had_are_named() {
    in_namespace(|| {
        let first = bind("192.0.2.1:0");
        let taken = UdpSocket::bind(first.local_addr(), &UdpOptions::default()).unwrap_err().to_string();
        assert_eq!(
            taken,
            format!("{}/udp is in use by another program: stop it or leave the port out", first.local_addr())
        );
        let foreign = UdpSocket::bind(at("203.0.113.1:5"), &UdpOptions::default()).unwrap_err().to_string();
        assert!(
            foreign.starts_with("203.0.113.1:5/udp: 203.0.113.1 is not an address of this machine"),
            "{foreign}"
        );

        let free = UdpOptions { free_bind: true, ..UdpOptions::default() };
        UdpSocket::bind(at("203.0.113.1:5"), &free).unwrap();
        UdpSocket::bind(at("[2001:db8:ffff::1]:5"), &free).unwrap();
        let shared = UdpOptions { reuse_port: true, ..UdpOptions::default() };
        let one = UdpSocket::bind(at("192.0.2.2:0"), &shared).unwrap();
        UdpSocket::bind(one.local_addr(), &shared).unwrap();
    });
}

#[test]
fn a_socket_can_be_handed_on_as_a_descriptor() {
    in_namespace(|| {
        let socket = bind("[2001:db8::1]:0");
        let address = socket.local_addr();

        let received = UdpSocket::from_fd(socket.into_fd()).unwrap();

        assert_eq!(received.local_addr(), address);
        received.send_to(b"x", address, None).unwrap();
    });
}

#[test]
fn a_connected_socket_goes_before_the_wildcard_and_forwards_what_its_peer_sends() {
    in_namespace(|| {
        let shared = UdpOptions { reuse_address: true, ..UdpOptions::default() };
        let wildcard = UdpSocket::bind(at("0.0.0.0:0"), &shared).unwrap();
        let port = wildcard.local_addr().port();
        let (ann, bob, back) = (client("192.0.2.2:0"), client("192.0.2.2:0"), client("192.0.2.2:0"));
        let near = UdpSocket::bind(SocketAddr::new("192.0.2.1".parse().unwrap(), port), &shared).unwrap();
        near.connect(ann.local_addr().unwrap()).unwrap();
        let far = UdpSocket::bind(at("192.0.2.2:0"), &UdpOptions::default()).unwrap();
        far.connect(back.local_addr().unwrap()).unwrap();

        let dialled = ("192.0.2.1", port);
        bob.send_to(b"bob", dialled).unwrap();
        ann.send_to(b"one", dialled).unwrap();
        ann.send_to(b"two", dialled).unwrap();
        let (mut batch, mut others) = (RecvBatch::new(4, SLOTS), RecvBatch::new(4, SLOTS));
        assert_eq!(receive(&near, &mut batch), 2);
        assert_eq!(receive(&wildcard, &mut others), 1);

        assert_eq!(far.forward(&mut others, ann.local_addr().unwrap(), b"").sent, 0, "another client's");
        assert_eq!(far.forward(&mut batch, ann.local_addr().unwrap(), b"> ").sent, 2);
        let mut got = [0; 8];
        for expected in [b"> one", b"> two"] {
            let (length, from) = back.recv_from(&mut got).unwrap();
            assert_eq!((&got[..length], from), (&expected[..], far.local_addr()));
        }

        near.send(b"answer").unwrap();
        let (length, from) = ann.recv_from(&mut got).unwrap();
        assert_eq!((&got[..length], from), (&b"answer"[..], near.local_addr()));

        drop(back);
        far.send(b"into the void").unwrap();
        let refused = far.send(b"again").unwrap_err();
        assert_eq!(SendFault::of(&refused), SendFault::Refused);
    });
}
