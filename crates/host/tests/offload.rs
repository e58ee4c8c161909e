//! TUN interfaces with offloads: real kernel streams through two of them, joined by a loop that does what a tunnel does.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::TemporaryNetns;
use adit_host::poll::{Events, Interest, Poller, Waker};
use adit_host::tun::{Offloads, SUPERPACKET_LEN, Tun, TunOptions, VNET_HEADER_LEN, queue_of};
use adit_host::udp::{Delivery, RecvBatch, SendBatch, Slots, TRAIN_SLOT, UdpOptions, UdpSocket};
use adit_wire::checksum::transport_checksum_ok;
use adit_wire::coalesce::{Allowed, Coalescer, Output};
use adit_wire::ip::{Packet, protocol};
use adit_wire::segment::Superpacket;
use adit_wire::virtio::Header;

const ALL: Allowed = Allowed { tcp4: true, tcp6: true, udp: true };

fn open(options: &TunOptions, host: u8) -> Tun {
    let tun = Tun::open(options).unwrap();
    let mut netlink = Netlink::open().unwrap();
    for address in [format!("10.88.0.{host}/24"), format!("fd88::{host}/64")] {
        let address =
            InterfaceAddress { interface: tun.name().to_owned(), address: address.parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
    }
    netlink.set_up(tun.name(), true).unwrap();
    for address in [IpAddr::from([10, 88, 0, host]), format!("fd88::{host}").parse().unwrap()] {
        assert!(netlink.wait_for_address(address, Duration::from_secs(10)).unwrap());
    }
    tun
}

fn offloading() -> TunOptions {
    TunOptions { offloads: true, ..TunOptions::new("adit0") }
}

/// How a joint hands packets from one interface to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    /// Superpackets with their headers.
    Whole,
    /// Cut, and each packet by itself.
    Cut,
    /// Cut, and put together again.
    Both,
}

/// What went through a joint.
#[derive(Debug, Default)]
struct Seen {
    packets: AtomicUsize,
    superpackets: AtomicUsize,
    merged: AtomicUsize,
    largest: AtomicUsize,
}

/// Hands on one read.
fn hand_on(read: &[u8], to: &Tun, joint: Joint, seen: &Seen, room: &mut [u8]) {
    let (header, bytes) = read.split_first_chunk::<VNET_HEADER_LEN>().unwrap();
    let superpacket = Superpacket::new(&Header::parse(header), bytes).unwrap();
    seen.packets.fetch_add(superpacket.count(), Ordering::Relaxed);
    seen.superpackets.fetch_add(usize::from(superpacket.count() > 1), Ordering::Relaxed);
    seen.largest.fetch_max(bytes.len(), Ordering::Relaxed);
    if joint == Joint::Whole {
        assert_eq!(to.send(read).unwrap(), read.len());
        return;
    }
    let mut segments = Vec::new();
    let mut rest = room;
    for index in 0..superpacket.count() {
        let length = superpacket.write_segment(index, rest).unwrap();
        let (segment, behind) = rest.split_at_mut(length);
        let packet = Packet::parse(segment).unwrap();
        assert_ne!(transport_checksum_ok(&packet), Some(false));
        segments.push(packet);
        rest = behind;
    }
    let mut write = |output: Output<'_>| {
        seen.merged.fetch_add(usize::from(output.packets() > 1), Ordering::Relaxed);
        to.send_vectored(output.parts()).unwrap();
    };
    let mut coalescer = Coalescer::new(if joint == Joint::Both { ALL } else { Allowed::default() });
    segments.iter().for_each(|packet| coalescer.push(packet, &mut write));
    coalescer.finish(&mut write);
}

/// Runs `work` in the first of two namespaces whose interfaces are joined: 10.88.0.1 and fd88::1 are there, 10.88.0.2 and
/// fd88::2 in the other one.
fn joined(joint: Joint, work: impl FnOnce(&TemporaryNetns) + Send) -> Seen {
    let (near, far) =
        (TemporaryNetns::create("adit-near").unwrap(), TemporaryNetns::create("adit-far").unwrap());
    let (here, there) = (near.run_in(|| open(&offloading(), 1)), far.run_in(|| open(&offloading(), 2)));
    let (seen, done, waker) = (Seen::default(), AtomicBool::new(false), Waker::new().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let poller = Poller::new().unwrap();
            poller.add(&here, 0, Interest::READ).unwrap();
            poller.add(&there, 1, Interest::READ).unwrap();
            poller.add(&waker, 2, Interest::READ).unwrap();
            let (mut buffer, mut room) = (vec![0; SUPERPACKET_LEN], vec![0; 4 << 20]);
            let mut events = Events::with_capacity(4);
            while !done.load(Ordering::Relaxed) {
                poller.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
                for (from, to) in [(&here, &there), (&there, &here)] {
                    loop {
                        match from.recv(&mut buffer) {
                            Ok(length) => hand_on(&buffer[..length], to, joint, &seen, &mut room),
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            }
        });
        // Also when `work` fails, so that the thread ends.
        struct Stop<'a>(&'a AtomicBool, &'a Waker);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
                self.1.wake();
            }
        }
        let _stop = Stop(&done, &waker);
        near.run_in(|| work(&far));
    });
    seen
}

/// Sends 32 MB from one namespace to the other by TCP and checks that they arrive.
fn transfer(address: &str, far: &TemporaryNetns) {
    const BLOCK: usize = 1 << 20;
    let block = |n: usize| -> Vec<u8> { (0..BLOCK).map(|at| (at * 7 + at / 253 + n * 101) as u8).collect() };
    let address: SocketAddr = address.parse().unwrap();
    let listener = far.run_in(|| TcpListener::bind(address).unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let mut buffer = vec![0; BLOCK];
            for n in 0..32 {
                stream.read_exact(&mut buffer).unwrap();
                assert!(buffer == block(n), "block {n} differs");
            }
            stream.write_all(b"all").unwrap();
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        (0..32).for_each(|n| stream.write_all(&block(n)).unwrap());
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
    });
}

#[test]
fn tcp_passes_whole_cut_and_put_together_with_its_data_intact() {
    for joint in [Joint::Whole, Joint::Cut, Joint::Both] {
        let seen = joined(joint, |far| {
            transfer("10.88.0.2:0", far);
            transfer("[fd88::2]:0", far);
        });
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (superpackets, merged) = (of(&seen.superpackets), of(&seen.merged));
        assert!(superpackets > 100 && of(&seen.packets) > 10 * superpackets, "{joint:?}: {seen:?}");
        assert_eq!(merged > 100, joint == Joint::Both, "{joint:?}: {seen:?}");
    }
}

#[test]
fn a_train_of_datagrams_passes_as_a_superpacket() {
    for joint in [Joint::Whole, Joint::Cut, Joint::Both] {
        let seen = joined(joint, |far| {
            for address in ["10.88.0.2:0", "[fd88::2]:0"] {
                let slots = Slots { size: TRAIN_SLOT, headroom: 0, tailroom: 0 };
                let options = UdpOptions { receive_trains: true, ..UdpOptions::default() };
                let receiver = far.run_in(|| UdpSocket::bind(address.parse().unwrap(), &options).unwrap());
                let any = if receiver.local_addr().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let sender = UdpSocket::bind(any.parse().unwrap(), &UdpOptions::default()).unwrap();
                let bytes: Vec<u8> = (0..40_000).map(|at| (at * 7 / 3) as u8).collect();
                let mut out = SendBatch::new(1, slots);
                let mut slot = out.reserve().unwrap();
                slot.payload()[..40_000].copy_from_slice(&bytes);
                let to = Delivery { segment: 1200, ..Delivery::new(receiver.local_addr(), None) };
                slot.commit_as(0..40_000, to);
                assert_eq!(sender.flush(&mut out).sent, 34);

                let poller = Poller::new().unwrap();
                poller.add(&receiver, 0, Interest::READ).unwrap();
                let (mut batch, mut slots_filled, mut arrived) = (RecvBatch::new(40, slots), 0, Vec::new());
                while arrived.len() < bytes.len() {
                    let ready = poller.wait(&mut Events::with_capacity(1), Some(Duration::from_secs(10)));
                    assert_eq!(ready.unwrap(), 1, "{} bytes came", arrived.len());
                    slots_filled += receiver.recv_batch(&mut batch).unwrap();
                    batch.iter_mut().for_each(|received| arrived.extend_from_slice(received.bytes()));
                }
                assert_eq!(arrived, bytes);
                assert!(joint == Joint::Cut || slots_filled == 1, "{joint:?}: {slots_filled} slots");
            }
        });
        assert_eq!(seen.superpackets.load(Ordering::Relaxed), 2, "{joint:?}: {seen:?}");
    }
}

#[test]
fn the_operator_is_told_what_is_on_and_superpackets_are_no_longer_than_wanted() {
    let seen = joined(Joint::Whole, |far| {
        let mut netlink = Netlink::open().unwrap();
        netlink.set_gso_max_size("adit0", 20_000).unwrap();
        transfer("10.88.0.2:0", far);
    });
    let largest = seen.largest.load(Ordering::Relaxed);
    assert!((10_000..=20_000).contains(&largest), "{largest}");

    TemporaryNetns::create("adit-tun").unwrap().run_in(|| {
        let tun = Tun::open(&offloading()).unwrap();
        assert_eq!(tun.offloads().to_string(), "checksums, TCP segments (ECN too), UDP segments");
        let (fd, name, index) = tun.into_parts();
        let mut tun = Tun::from_parts(fd, name, index);
        assert_eq!(tun.offloads(), Offloads::NONE);
        assert!(tun.negotiate_offloads().unwrap().udp && tun.offloads().udp);
    });
}

#[test]
fn packets_come_out_of_the_queue_that_their_destination_says() {
    TemporaryNetns::create("adit-tun").unwrap().run_in(|| {
        let options = TunOptions { multi_queue: true, ..offloading() };
        let first = open(&options, 1);
        let queues = [first, Tun::open(&options).unwrap(), Tun::open(&options).unwrap()];
        queues[0].steer().unwrap();
        let (v4, v6) = (std::net::UdpSocket::bind("10.88.0.1:0"), std::net::UdpSocket::bind("[fd88::1]:0"));
        let (v4, v6) = (v4.unwrap(), v6.unwrap());
        for host in 2..=100u16 {
            v4.send_to(b"x", (IpAddr::from([10, 88, 0, host as u8]), 9)).unwrap();
            v6.send_to(b"x", (IpAddr::from([0xfd88, 0, 0, 0, host * 3, 0, 0, host]), 9)).unwrap();
        }

        let (mut buffer, mut counts) = (vec![0; SUPERPACKET_LEN], [0; 3]);
        for (number, queue) in queues.iter().enumerate() {
            let (mut header, mut count) = ([0; VNET_HEADER_LEN], 0);
            loop {
                let parts = &mut [io::IoSliceMut::new(&mut header), io::IoSliceMut::new(&mut buffer)];
                let Ok(length) = queue.recv_vectored(parts) else { break };
                let packet = Packet::parse(&buffer[..length - VNET_HEADER_LEN]).unwrap();
                if packet.protocol() == protocol::UDP && !packet.destination().is_multicast() {
                    assert_eq!(
                        queue_of(packet.destination(), queues.len()),
                        number,
                        "{}",
                        packet.destination()
                    );
                    count += 1;
                }
            }
            counts[number] = count;
        }
        assert!(counts.iter().all(|count| *count > 30), "{counts:?}");
    });
}
