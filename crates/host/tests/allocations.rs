//! The packet path allocates nothing: not for receiving, not for sending, not for failing.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use adit_host::allocations::Counting;
use adit_host::clock;
use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::TemporaryNetns;
use adit_host::poll::{Events, Interest, Poller, Waker};
use adit_host::tun::{SUPERPACKET_LEN, Tun, TunOptions};
use adit_host::udp::{Delivery, RecvBatch, SendBatch, SendFault, Slots, TRAIN_SLOT, UdpOptions, UdpSocket};
use adit_wire::coalesce::{Allowed, Coalescer, Output};
use adit_wire::ip::Packet;
use adit_wire::segment::Superpacket;
use adit_wire::virtio::Header;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Tests run one at a time: the allocator watches one thread.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How often this thread allocates in `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ALLOCATOR.during(work)
}

#[test]
fn the_count_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1, 2, 3]))), 1);
}

#[test]
fn datagrams_are_received_answered_and_dropped_without_allocating() {
    TemporaryNetns::create("adit-alloc").unwrap().run_in(|| {
        let slots = Slots { size: 2000, headroom: 128, tailroom: 32 };
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let bind = || UdpSocket::bind(address.parse().unwrap(), &UdpOptions::default()).unwrap();
            let (near, far) = (bind(), bind());
            let unroutable: SocketAddr =
                if near.local_addr().is_ipv4() { "203.0.113.1:9" } else { "[2001:db8::9]:9" }
                    .parse()
                    .unwrap();
            let (mut received, mut out) = (RecvBatch::new(32, slots), SendBatch::new(32, slots));
            let poller = Poller::new().unwrap();
            poller.add(&far, 1, Interest::READ).unwrap();
            let mut events = Events::with_capacity(8);
            let mut arrived = 0;

            let count = allocations(|| {
                for _ in 0..20 {
                    while let Some(mut slot) = out.reserve() {
                        slot.payload()[..100].fill(7);
                        let range = slot.headroom()..slot.headroom() + 100;
                        slot.commit(range, far.local_addr(), Some(near.local_addr()));
                    }
                    assert_eq!(near.flush(&mut out).sent, 32);
                    let mut this_round = 0;
                    while this_round < 32 {
                        poller.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
                        this_round += far.recv_batch(&mut received).unwrap();
                        for datagram in received.iter_mut() {
                            arrived += datagram.segments().count();
                            far.send_to(datagram.bytes(), datagram.remote(), Some(datagram.local())).unwrap();
                        }
                    }
                    assert!(far.recv_batch(&mut received).is_err());
                    let refused = far.send_to(b"x", unroutable, None).unwrap_err();
                    assert_eq!(SendFault::of(&refused), SendFault::Unreachable);
                    out.reserve().unwrap().commit(0..10, unroutable, None);
                    assert_eq!(near.flush(&mut out).dropped.of(SendFault::Unreachable), 1);
                    // What was answered is read, so that the receive buffer stays free.
                    while near.recv_batch(&mut received).is_ok() {}
                }
            });

            assert_eq!((arrived, count), (640, 0), "{address}");
        }
    });
}

#[test]
fn trains_are_sent_joined_and_given_up_without_allocating() {
    TemporaryNetns::create("adit-alloc").unwrap().run_in(|| {
        let slots = Slots { size: TRAIN_SLOT, headroom: 0, tailroom: 0 };
        let options = UdpOptions { receive_trains: true, ..UdpOptions::default() };
        let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        let (near, far) = (bind(), bind());
        let to =
            Delivery { segment: 1000, ecn: 2, ..Delivery::new(far.local_addr(), Some(near.local_addr())) };
        let foreign = Delivery { local: Some("203.0.113.9:1".parse().unwrap()), ..to };
        let (mut received, mut out) = (RecvBatch::new(4, slots), SendBatch::new(4, slots));
        let mut arrived = 0;

        let count = allocations(|| {
            for trains in [true, false] {
                near.set_trains(trains);
                for _ in 0..10 {
                    out.reserve().unwrap().commit_as(0..20_000, to);
                    out.reserve().unwrap().commit_as(0..20_000, foreign);
                    let flushed = near.flush(&mut out);
                    assert_eq!((flushed.sent, flushed.dropped.total()), (20, 20));
                    while far.recv_batch(&mut received).is_ok() {
                        for datagrams in 0..received.len() {
                            let datagrams = received.get_mut(datagrams).unwrap().into_segments();
                            arrived += datagrams.map(|datagram| assert_eq!(datagram.len(), 1000)).count();
                        }
                    }
                }
            }
        });

        assert_eq!((arrived, count), (400, 0));
    });
}

#[test]
fn superpackets_are_cut_and_put_together_without_allocating() {
    TemporaryNetns::create("adit-alloc").unwrap().run_in(|| {
        let tun = Tun::open(&TunOptions { offloads: true, ..TunOptions::new("adit0") }).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let address =
            InterfaceAddress { interface: "adit0".to_owned(), address: "10.88.0.1/24".parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
        netlink.set_up("adit0", true).unwrap();
        let slots = Slots { size: TRAIN_SLOT, headroom: 0, tailroom: 0 };
        let sender = UdpSocket::bind("0.0.0.0:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let to = Delivery { segment: 1000, ..Delivery::new("10.88.0.2:9".parse().unwrap(), None) };
        let mut out = SendBatch::new(1, slots);
        let (mut read, mut room) = (vec![0; SUPERPACKET_LEN], vec![0; 2 * SUPERPACKET_LEN]);
        let (mut packets, mut written) = (0, 0);

        let count = allocations(|| {
            for _ in 0..20 {
                out.reserve().unwrap().commit_as(0..40_000, to);
                assert_eq!(sender.flush(&mut out).sent, 40);
                while let Ok(length) = tun.recv(&mut read) {
                    let (header, bytes) = read[..length].split_first_chunk().unwrap();
                    let superpacket = Superpacket::new(&Header::parse(header), bytes).unwrap();
                    let step = superpacket.segment_len();
                    for (index, piece) in room.chunks_mut(step).take(superpacket.count()).enumerate() {
                        superpacket.write_segment(index, piece).unwrap();
                    }
                    packets += superpacket.count();
                    let mut write = |output: Output<'_>| {
                        written += output.packets();
                        tun.send_vectored(output.parts()).unwrap();
                    };
                    let mut coalescer = Coalescer::new(Allowed { tcp4: true, tcp6: true, udp: true });
                    for piece in room.chunks(step).take(superpacket.count()) {
                        coalescer.push(&Packet::parse(piece).unwrap(), &mut write);
                    }
                    coalescer.finish(&mut write);
                }
            }
        });

        assert!(packets >= 800, "{packets}");
        assert_eq!((written, count), (packets, 0));
    });
}

#[test]
fn tun_waker_and_clock_do_not_allocate() {
    TemporaryNetns::create("adit-alloc").unwrap().run_in(|| {
        let tun = Tun::open(&TunOptions::new("adit0")).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let address =
            InterfaceAddress { interface: "adit0".to_owned(), address: "10.88.0.1/24".parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
        netlink.set_up("adit0", true).unwrap();
        let sender = std::net::UdpSocket::bind("10.88.0.1:0").unwrap();
        let inside: SocketAddr = "10.88.0.2:9".parse().unwrap();
        let waker = Waker::new().unwrap();
        let mut buffer = [0; 2000];
        let mut count_read = 0;

        let count = allocations(|| {
            for _ in 0..50 {
                sender.send_to(b"x", inside).unwrap();
                while let Ok(length) = tun.recv(&mut buffer) {
                    count_read += 1;
                    tun.send(&buffer[..length]).unwrap();
                }
                waker.wake();
                waker.drain();
                std::hint::black_box(clock::monotonic_ms());
            }
        });

        assert!(count_read >= 50);
        assert_eq!(count, 0);
    });
}
