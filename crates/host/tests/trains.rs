//! Trains of equal datagrams against a real kernel, each test in a namespace of its own.
#![expect(unsafe_code, reason = "a socket option for which a kernel refuses trains")]

use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use adit_host::ethtool::{Features, UDP_SEGMENTATION};
use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::{Netns, TemporaryNetns, veth};
use adit_host::poll::{Events, Interest, Poller};
use adit_host::udp::{
    Delivery, PathMtu, RecvBatch, SendBatch, SendFault, Slots, TRAIN_BYTES, TRAIN_SEGMENTS, TRAIN_SLOT,
    UdpOptions, UdpSocket,
};

const SLOTS: Slots = Slots { size: TRAIN_SLOT, headroom: 8, tailroom: 8 };

fn in_namespace(work: impl FnOnce() + Send) {
    TemporaryNetns::create("adit-trains").unwrap().run_in(work);
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(at(address), &UdpOptions::default()).unwrap()
}

fn joining(address: &str) -> UdpSocket {
    UdpSocket::bind(at(address), &UdpOptions { receive_trains: true, ..UdpOptions::default() }).unwrap()
}

fn plain(address: &str) -> StdSocket {
    let socket = StdSocket::bind(at(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Bytes that are different everywhere.
fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn queue(batch: &mut SendBatch, bytes: &[u8], delivery: Delivery) {
    let mut slot = batch.reserve().unwrap();
    slot.payload()[..bytes.len()].copy_from_slice(bytes);
    let start = slot.headroom();
    slot.commit_as(start..start + bytes.len(), delivery);
}

fn train(to: SocketAddr, segment: usize) -> Delivery {
    Delivery { segment, ..Delivery::new(to, None) }
}

/// The next datagrams, whatever slots they come in, with the number of datagrams in each slot.
fn receive(socket: &UdpSocket, count: usize) -> (Vec<Vec<u8>>, Vec<usize>) {
    let poller = Poller::new().unwrap();
    poller.add(socket, 0, Interest::READ).unwrap();
    let (mut datagrams, mut slots) = (Vec::new(), Vec::new());
    let mut batch = RecvBatch::new(4, SLOTS);
    while datagrams.len() < count {
        let ready = poller.wait(&mut Events::with_capacity(1), Some(Duration::from_secs(10))).unwrap();
        assert_eq!(ready, 1, "{} of {count} datagrams came", datagrams.len());
        socket.recv_batch(&mut batch).unwrap();
        for received in batch.iter_mut() {
            assert!(!received.truncated());
            slots.push(received.segments().count());
            datagrams.extend(received.into_segments().map(|segment| segment.to_vec()));
        }
    }
    (datagrams, slots)
}

/// The next datagrams at a socket that knows nothing of trains.
fn receive_plain(socket: &StdSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let mut next = |_| {
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    (0..count).map(&mut next).collect()
}

fn cut(bytes: &[u8], segment: usize) -> Vec<Vec<u8>> {
    bytes.chunks(segment).map(<[u8]>::to_vec).collect()
}

/// A namespace with 10.0.0.2, and a veth to it from 10.0.0.1 here, `left0`.
fn link() -> TemporaryNetns {
    let far = TemporaryNetns::create("adit-trains-far").unwrap();
    veth("left0", &Netns::current().unwrap(), "right0", &far).unwrap();
    let address = |interface: &str, address: &str| {
        let mut netlink = Netlink::open().unwrap();
        let interface_address =
            InterfaceAddress { interface: interface.to_owned(), address: address.parse().unwrap() };
        netlink.add_address(&interface_address, IfExists::Fail).unwrap();
        netlink.set_up(interface, true).unwrap();
    };
    address("left0", "10.0.0.1/24");
    far.run_in(|| address("right0", "10.0.0.2/24"));
    far
}

#[test]
fn a_train_arrives_as_equal_datagrams_at_a_plain_socket() {
    in_namespace(|| {
        let dual = UdpOptions { v6_only: false, ..UdpOptions::default() };
        for (sender, receiver) in [
            (bind("127.0.0.1:0"), plain("127.0.0.1:0")),
            (bind("[::1]:0"), plain("[::1]:0")),
            (UdpSocket::bind(at("[::]:0"), &dual).unwrap(), plain("127.0.0.1:0")),
        ] {
            let bytes = data(10 * 1000 + 300);
            let mut out = SendBatch::new(1, SLOTS);
            queue(&mut out, &bytes, train(receiver.local_addr().unwrap(), 1000));
            assert_eq!(out.len(), 11);

            let flushed = sender.flush(&mut out);

            assert_eq!((flushed.sent, flushed.dropped.total(), flushed.blocked), (11, 0, false));
            assert!(out.is_empty() && sender.trains());
            assert_eq!(receive_plain(&receiver, 11), cut(&bytes, 1000));
        }
    });
}

#[test]
fn a_receiver_that_joins_gets_a_train_in_one_slot() {
    in_namespace(|| {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (sender, receiver) = (bind(address), joining(address));
            let (bytes, single) = (data(45 * 1452 - 7), data(500));
            let mut out = SendBatch::new(3, SLOTS);
            queue(&mut out, &single, Delivery::new(receiver.local_addr(), None));
            queue(&mut out, &bytes, train(receiver.local_addr(), 1452));
            queue(&mut out, &single, train(receiver.local_addr(), 500));

            assert_eq!(sender.flush(&mut out).sent, 47);

            let (datagrams, slots) = receive(&receiver, 47);
            assert_eq!(slots, [1, 45, 1]);
            assert_eq!(datagrams[0], single);
            assert_eq!(datagrams[1..46], cut(&bytes, 1452));
            assert_eq!(datagrams[46], single);
        }
    });
}

#[test]
fn one_batch_holds_trains_and_datagrams_for_several_peers() {
    in_namespace(|| {
        let sender = bind("127.0.0.1:0");
        let (ann, bob) = (plain("127.0.0.1:0"), plain("127.0.0.1:0"));
        let (to_ann, to_bob) = (ann.local_addr().unwrap(), bob.local_addr().unwrap());
        let mut out = SendBatch::new(8, SLOTS);
        queue(&mut out, b"one", Delivery::new(to_ann, None));
        queue(&mut out, &data(2500), train(to_bob, 1200));
        queue(&mut out, b"", Delivery::new(to_ann, None));
        queue(&mut out, &data(3600), train(to_ann, 1200));
        queue(&mut out, b"", train(to_bob, 1200));
        queue(&mut out, &data(90), Delivery { local: Some(sender.local_addr()), ..train(to_bob, 30) });

        let flushed = sender.flush(&mut out);

        assert_eq!((flushed.sent, flushed.dropped.total()), (12, 0));
        let anns = [vec![b"one".to_vec(), vec![]], cut(&data(3600), 1200)].concat();
        assert_eq!(receive_plain(&ann, 5), anns);
        let bobs = [cut(&data(2500), 1200), vec![vec![]], cut(&data(90), 30)].concat();
        assert_eq!(receive_plain(&bob, 7), bobs);
    });
}

#[test]
fn a_train_longer_than_the_kernel_takes_goes_in_several() {
    in_namespace(|| {
        let sender = bind("127.0.0.1:0");
        let options =
            UdpOptions { receive_trains: true, recv_buffer: Some(4 << 20), ..UdpOptions::default() };
        let receiver = UdpSocket::bind(at("127.0.0.1:0"), &options).unwrap();
        let many = data(10 * (2 * TRAIN_SEGMENTS + 1));
        let large = data(2 * TRAIN_BYTES);
        let mut out = SendBatch::new(2, Slots { size: 200_000, headroom: 0, tailroom: 0 });
        queue(&mut out, &many, train(receiver.local_addr(), 10));
        queue(&mut out, &large, train(receiver.local_addr(), 5000));

        let flushed = sender.flush(&mut out);

        let expected = [cut(&many, 10), cut(&large, 5000)].concat();
        assert_eq!((flushed.sent, flushed.dropped.total(), sender.trains()), (expected.len(), 0, true));
        let (datagrams, slots) = receive(&receiver, expected.len());
        assert_eq!(datagrams, expected);
        assert_eq!(slots, [64, 64, 1, 13, 13, 1]);
    });
}

#[test]
fn a_socket_whose_trains_are_refused_sends_singly_from_then_on() {
    in_namespace(|| {
        let (sender, receiver) = (bind("127.0.0.1:0"), joining("127.0.0.1:0"));
        let on: libc::c_int = 1;
        let (value, length) = (&raw const on, size_of::<libc::c_int>() as libc::socklen_t);
        let fd = sender.as_fd().as_raw_fd();
        // SAFETY: `value` points to a live `int`, and `length` is its size.
        let result =
            unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, value.cast(), length) };
        assert_eq!(result, 0);
        let (first, second) = (data(95), data(40));
        let mut out = SendBatch::new(3, SLOTS);
        queue(&mut out, b"before", Delivery::new(receiver.local_addr(), None));
        queue(&mut out, &first, train(receiver.local_addr(), 10));
        queue(&mut out, &second, train(receiver.local_addr(), 10));

        let flushed = sender.flush(&mut out);

        assert_eq!((flushed.sent, flushed.dropped.total(), sender.trains()), (15, 0, false));
        let expected = [vec![b"before".to_vec()], cut(&first, 10), cut(&second, 10)].concat();
        let (datagrams, slots) = receive(&receiver, 15);
        assert_eq!((datagrams, slots), (expected, vec![1; 15]));
        queue(&mut out, &second, train(receiver.local_addr(), 10));
        assert_eq!(sender.flush(&mut out).sent, 4);
        sender.set_trains(true);
        assert!(sender.trains());
    });
}

#[test]
fn a_train_that_fails_for_another_reason_costs_no_other_its_speed() {
    in_namespace(|| {
        let (sender, receiver) = (bind("0.0.0.0:0"), joining("127.0.0.1:0"));
        let bytes = data(95);
        let mut out = SendBatch::new(3, SLOTS);
        let foreign = Some(at("203.0.113.9:0"));
        queue(&mut out, &bytes, Delivery { local: foreign, ..train(receiver.local_addr(), 10) });
        queue(&mut out, &bytes, train(at("203.0.113.1:1"), 10));
        queue(&mut out, &bytes, train(receiver.local_addr(), 10));

        let flushed = sender.flush(&mut out);

        assert_eq!((flushed.sent, flushed.dropped.total(), flushed.blocked), (10, 20, false));
        assert_eq!(flushed.dropped.of(SendFault::Unreachable) % 10, 0);
        assert!(sender.trains());
        assert_eq!(receive(&receiver, 10), (cut(&bytes, 10), vec![10]));
    });
}

#[test]
fn datagrams_larger_than_the_path_are_dropped_or_fragmented_and_the_shorter_one_goes() {
    in_namespace(|| {
        let far = link();
        let receiver = far.run_in(|| plain("10.0.0.2:0"));
        let to = receiver.local_addr().unwrap();
        let bytes = data(2 * 1473 + 100);
        let mut out = SendBatch::new(1, SLOTS);

        let sender = bind("10.0.0.1:0");
        queue(&mut out, &bytes, train(to, 1473));
        let flushed = sender.flush(&mut out);
        assert_eq!((flushed.sent, flushed.dropped.of(SendFault::TooBig), sender.trains()), (1, 2, true));
        assert_eq!(receive_plain(&receiver, 1), [&bytes[2 * 1473..]]);

        let fragmenting = UdpOptions { path_mtu: PathMtu::Fragment, ..UdpOptions::default() };
        let sender = UdpSocket::bind(at("10.0.0.1:0"), &fragmenting).unwrap();
        queue(&mut out, &bytes, train(to, 1473));
        assert_eq!((sender.flush(&mut out).sent, sender.trains()), (3, true));
        assert_eq!(receive_plain(&receiver, 3), cut(&bytes, 1473));
    });
}

#[test]
fn an_interface_that_cuts_nothing_makes_no_difference_but_to_speed() {
    in_namespace(|| {
        let far = link();
        let features = Features::of("left0").unwrap();
        let receiver = far.run_in(|| joining("10.0.0.2:0"));
        let sender = bind("10.0.0.1:0");
        let bytes = data(40 * 1400);
        let mut out = SendBatch::new(1, SLOTS);
        for cuts in [true, false] {
            features.set(UDP_SEGMENTATION, cuts).unwrap();
            assert_eq!(features.is_on(UDP_SEGMENTATION).unwrap(), cuts);
            queue(&mut out, &bytes, train(receiver.local_addr(), 1400));

            assert_eq!((sender.flush(&mut out).sent, sender.trains()), (40, true));

            let (datagrams, slots) = receive(&receiver, 40);
            assert_eq!(datagrams, cut(&bytes, 1400));
            assert!(cuts == (slots == [40]), "{slots:?}");
        }
    });
}

#[test]
fn congestion_marks_are_set_on_datagrams_and_trains_of_either_version() {
    in_namespace(|| {
        let dual = UdpOptions { v6_only: false, ..UdpOptions::default() };
        for (sender, receiver) in [
            (bind("127.0.0.1:0"), joining("127.0.0.1:0")),
            (bind("[::1]:0"), joining("[::1]:0")),
            (UdpSocket::bind(at("[::]:0"), &dual).unwrap(), joining("127.0.0.1:0")),
        ] {
            let mut out = SendBatch::new(8, SLOTS);
            let marks = [1, 0, 3, 2];
            for ecn in marks {
                queue(&mut out, b"x", Delivery { ecn, ..Delivery::new(receiver.local_addr(), None) });
                queue(&mut out, b"abcdef", Delivery { ecn, ..train(receiver.local_addr(), 2) });
            }
            assert_eq!(sender.flush(&mut out).sent, 16);

            let mut batch = RecvBatch::new(8, SLOTS);
            assert_eq!(receiver.recv_batch(&mut batch).unwrap(), 8);
            let seen: Vec<u8> = batch.iter_mut().map(|received| received.ecn()).collect();
            assert_eq!(seen, marks.map(|mark| [mark, mark]).concat());
        }
    });
}

#[test]
fn a_full_send_buffer_stops_between_trains_and_what_is_left_is_counted() {
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
        let options = UdpOptions { send_buffer: Some(10_000), ..UdpOptions::default() };
        let sender = UdpSocket::bind(at("10.0.0.1:0"), &options).unwrap();
        let mut out = SendBatch::new(3, Slots { size: 120_000, headroom: 0, tailroom: 0 });
        (0..3).for_each(|_| queue(&mut out, &data(120_000), train(at("10.0.0.2:1"), 1000)));
        assert_eq!(out.len(), 360);

        let flushed = sender.flush(&mut out);

        assert!(flushed.blocked && flushed.dropped.total() == 0 && sender.trains(), "{flushed:?}");
        assert!(!flushed.sent.is_multiple_of(120), "it stopped within a slot: {}", flushed.sent);
        assert_eq!(out.len(), 360 - flushed.sent);
        let again = sender.flush(&mut out);
        assert!(again.blocked && again.sent == 0, "{again:?}");
        assert_eq!((out.clear(), out.len()), (360 - flushed.sent, 0));
    });
}
