//! TUN interfaces against a real kernel, each test in a namespace of its own.

use std::io;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use adit_host::netlink::{IfExists, InterfaceAddress, Netlink};
use adit_host::netns::{Netns, TemporaryNetns};
use adit_host::poll::{Events, Interest, Poller};
use adit_host::tun::{Tun, TunFault, TunOptions};
use adit_wire::ip::{Packet, protocol};
use adit_wire::{checksum, icmp, udp};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

fn in_namespace(work: impl FnOnce() + Send) {
    TemporaryNetns::create("adit-tun").unwrap().run_in(work);
}

/// A TUN interface `adit0` that is up and has 10.88.0.1/24 and fd88::1/64.
fn open(options: &TunOptions) -> Tun {
    let tun = Tun::open(options).unwrap();
    let mut netlink = Netlink::open().unwrap();
    for address in ["10.88.0.1/24", "fd88::1/64"] {
        let address =
            InterfaceAddress { interface: tun.name().to_owned(), address: address.parse().unwrap() };
        netlink.add_address(&address, IfExists::Fail).unwrap();
    }
    netlink.set_up(tun.name(), true).unwrap();
    for address in ["10.88.0.1", "fd88::1"] {
        assert!(netlink.wait_for_address(address.parse().unwrap(), Duration::from_secs(10)).unwrap());
    }
    tun
}

/// Reads packets until one is of the wanted protocol; the kernel also sends multicast of its own.
fn receive(tun: &Tun, wanted: u8, buffer: &mut [u8]) -> usize {
    let poller = Poller::new().unwrap();
    poller.add(tun, 0, Interest::READ).unwrap();
    let mut events = Events::with_capacity(1);
    loop {
        assert_eq!(poller.wait(&mut events, Some(Duration::from_secs(10))).unwrap(), 1, "nothing came");
        let length = tun.recv(buffer).unwrap();
        let packet = Packet::parse(&buffer[..length]).unwrap();
        if packet.protocol() == wanted && !packet.destination().is_multicast() {
            return length;
        }
    }
}

/// Turns an echo request into its reply, in place.
fn answer(bytes: &mut [u8]) {
    let packet = Packet::parse(bytes).unwrap();
    let (from, to) = (packet.source(), packet.destination());
    let (at, v4) = (packet.transport_offset(), from.is_ipv4());
    let addresses = if v4 { 12 } else { 8 };
    let length = if v4 { 4 } else { 16 };
    let (one, other) = bytes[addresses..].split_at_mut(length);
    one.swap_with_slice(&mut other[..length]);
    bytes[at] = if v4 { 0 } else { 129 };
    bytes[at + 2..at + 4].fill(0);
    let message = &bytes[at..];
    let sum = if v4 {
        checksum::checksum(message)
    } else {
        let length = message.len() as u32;
        checksum::Sum::new().with_pseudo_header(to, from, protocol::ICMPV6, length).with(message).checksum()
    };
    bytes[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_ping_into_the_interface_is_answered_through_it() {
    in_namespace(|| {
        let tun = open(&TunOptions::new("adit0"));
        for (host, wanted, request) in [("10.88.0.2", protocol::ICMP, 8), ("fd88::2", protocol::ICMPV6, 128)]
        {
            let mut ping = Command::new("ping").args(["-n", "-c", "1", "-W", "10", host]).spawn().unwrap();
            let mut buffer = [0; 2000];
            let length = receive(&tun, wanted, &mut buffer);

            let packet = Packet::parse(&buffer[..length]).unwrap();
            assert_eq!(packet.destination(), host.parse::<IpAddr>().unwrap());
            assert_eq!(icmp::Message::parse(packet.transport()).unwrap().kind(), request);
            assert_eq!(checksum::transport_checksum_ok(&packet), Some(true));

            answer(&mut buffer[..length]);
            assert_eq!(tun.send(&buffer[..length]).unwrap(), length);
            assert!(ping.wait().unwrap().success());
        }
    });
}

#[test]
fn reading_does_not_wait() {
    in_namespace(|| {
        let tun = Tun::open(&TunOptions::new("adit0")).unwrap();
        assert_eq!(tun.recv(&mut [0; 100]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn the_interface_has_the_name_and_index_it_says_and_goes_with_its_last_queue() {
    in_namespace(|| {
        let mut netlink = Netlink::open().unwrap();
        let tun = Tun::open(&TunOptions::new("adit%d")).unwrap();

        assert_eq!(tun.name(), "adit0");
        assert_eq!(netlink.link_index("adit0").unwrap(), tun.index());

        let (fd, name, index) = tun.into_parts();
        let tun = Tun::from_parts(fd, name, index);
        drop(tun);
        // A process that another test is just starting holds a copy of the descriptor for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while netlink.links().unwrap().iter().any(|link| link.name == "adit0") {
            assert!(Instant::now() < deadline, "the interface is still there");
        }
    });
}

#[test]
fn a_name_in_use_is_refused() {
    in_namespace(|| {
        let _first = Tun::open(&TunOptions::new("adit0")).unwrap();
        let fault = Tun::open(&TunOptions::new("adit0")).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "the interface name adit0 is in use: choose another name or remove the interface"
        );

        let here = Netns::current().unwrap();
        Netlink::open().unwrap().add_veth("left0", "right0", std::os::fd::AsFd::as_fd(&here)).unwrap();
        assert!(matches!(Tun::open(&TunOptions::new("left0")), Err(TunFault::NameInUse(_))));
        assert!(matches!(Tun::open(&TunOptions::new("lo")), Err(TunFault::NameInUse(_))));
    });
}

#[test]
fn without_the_capability_the_operator_is_told() {
    in_namespace(|| {
        let none = CapabilitySet::empty();
        // Capabilities belong to the thread, and this one ends with the test.
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .unwrap();

        let fault = Tun::open(&TunOptions::new("adit0")).unwrap_err();

        assert_eq!(
            fault.to_string(),
            "opening the interface adit0 is not permitted: it needs root or CAP_NET_ADMIN"
        );
    });
}

#[test]
fn several_queues_share_the_packets_of_one_interface() {
    in_namespace(|| {
        let options = TunOptions { multi_queue: true, ..TunOptions::new("adit0") };
        let first = open(&options);
        let second = Tun::open(&options).unwrap();
        assert_eq!(first.index(), second.index());
        let single = Tun::open(&TunOptions::new("adit0"));
        assert!(matches!(single, Err(TunFault::NameInUse(_))), "{single:?}");

        // The kernel spreads flows over the queues: of many, each gets some.
        let sender = std::net::UdpSocket::bind("10.88.0.1:0").unwrap();
        for port in 1..=64 {
            sender.send_to(b"x", ("10.88.0.2", port)).unwrap();
        }

        let ports = |tun: &Tun| {
            let (mut count, mut buffer) = (0, [0; 2000]);
            while let Ok(length) = tun.recv(&mut buffer) {
                let packet = Packet::parse(&buffer[..length]).unwrap();
                count += usize::from(packet.protocol() == protocol::UDP && packet.version() == 4);
            }
            count
        };
        let (one, other) = (ports(&first), ports(&second));
        assert_eq!(one + other, 64);
        assert!(one > 0 && other > 0, "{one} and {other}");
    });
}

#[test]
fn packets_carry_a_virtio_header_when_asked_for() {
    in_namespace(|| {
        let tun = open(&TunOptions { vnet_header: true, ..TunOptions::new("adit0") });
        let sender = std::net::UdpSocket::bind("10.88.0.1:0").unwrap();
        sender.send_to(b"out", "10.88.0.2:53").unwrap();
        let mut buffer = [0xff; 2000];
        let packet = loop {
            let length = tun.recv(&mut buffer).unwrap();
            let packet = Packet::parse(&buffer[10..length]).unwrap();
            if packet.version() == 4 {
                break packet;
            }
        };
        assert_eq!(udp::Datagram::parse(packet.transport()).unwrap().payload(), b"out");
        // No offload is on, so the checksum is complete and there is nothing to segment.
        assert_eq!(buffer[..10], [0; 10]);
        assert_eq!(checksum::transport_checksum_ok(&packet), Some(true));

        let mut back = [0; 100];
        let from = "10.88.0.2:53".parse().unwrap();
        let length = udp::build(&mut back[10..], from, sender.local_addr().unwrap(), b"back").unwrap();
        tun.send(&back[..10 + length]).unwrap();
        sender.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (length, remote) = sender.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], remote), (&b"back"[..], from));
    });
}
