//! Many packets at once: superpackets of the interface, trains of datagrams, and what goes wrong among them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use adit_engine::{Command, Engine, Event, Path, Session, Sources, start};
use adit_host::netlink::Netlink;
use adit_host::netns::TemporaryNetns;
use adit_host::udp::PathMtu;
use adit_openvpn::Role;
use adit_openvpn::data::Cipher;
use adit_tunnel::DropReason;

use crate::rig::{
    CLIENT, CONTROL, INSIDE, LIMIT, PEER, Setup, alone, carrier, channel_of, open_tun, parts, with_rig,
};

/// Bytes that are different everywhere.
fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn datagrams_that_the_host_sends_in_one_piece_arrive_one_by_one() {
    for (cipher, tcp, offloads) in [
        (Cipher::Aes256Gcm, false, true),
        (Cipher::ChaCha20Poly1305, false, true),
        (Cipher::Aes256Cbc, false, true),
        (Cipher::Aes256Gcm, true, true),
        (Cipher::Aes256Gcm, false, false),
    ] {
        with_rig(Setup { cipher, tcp, offloads, ..Setup::default() }, |mut rig| {
            // One more byte than the last, one byte, the exact MTU, as many as there may be.
            for (segment, length) in [(333, 334), (333, 3333), (1, 40), (1472, 5000), (700, 700 * 64)] {
                let bytes = data(length);
                rig.down_train(&bytes, segment);
                for expected in bytes.chunks(segment) {
                    assert!(rig.gets() == expected, "{cipher:?}, {length} bytes in {segment}");
                }
            }
            rig.engine.wait_for_packets();
            let figures = rig.engine.batches().figures();
            assert_eq!(figures.tun_read.1, 2 + 11 + 40 + 4 + 64);
            assert_eq!(figures.tun_read.0 == 5, offloads, "{figures:?}");
            // The kernel says a word of its own to the new interface.
            let mut drops = rig.engine.drops().iter();
            assert_eq!(drops.find(|(reason, _)| *reason != DropReason::NoRoute), None);
            assert_eq!(rig.session.counters().sent_packets, figures.tun_read.1);
        });
    }
}

#[test]
fn equal_packets_that_wait_together_leave_as_a_train() {
    for offloads in [true, false] {
        with_rig(Setup { offloads, ..Setup::default() }, |mut rig| {
            let sizes = [[200; 30].as_slice(), &[100], &[200; 5], &[1472; 3]].concat();
            rig.while_held(|rig| {
                for (n, size) in sizes.iter().enumerate() {
                    rig.inside.send_to(&vec![n as u8; *size], (CLIENT, 6000)).unwrap();
                }
            });
            for (n, size) in sizes.iter().enumerate() {
                assert_eq!(rig.gets(), vec![n as u8; *size]);
            }
            rig.engine.wait_for_packets();
            // A shorter one ends a train; what may have to be fragmented is in none.
            assert_eq!(rig.engine.batches().figures().sent, (5, 39));
        });
    }
}

#[test]
fn a_train_that_cannot_leave_holds_up_no_other() {
    for (path_mtu, fragments) in [(PathMtu::Probe, false), (PathMtu::Fragment, true)] {
        with_rig(Setup { path_mtu, ..Setup::default() }, |mut rig| {
            Netlink::open().unwrap().set_mtu("lo", 1300).unwrap();
            let sizes = [[200; 5], [1400; 5], [300; 5]].concat();
            rig.while_held(|rig| {
                for (n, size) in sizes.iter().enumerate() {
                    rig.inside.send_to(&vec![n as u8; *size], (CLIENT, 6000)).unwrap();
                }
            });
            for (n, size) in sizes.iter().enumerate().filter(|(_, size)| fragments || **size < 1000) {
                assert_eq!(rig.gets(), vec![n as u8; *size]);
            }
            rig.engine.wait_for_packets();
            assert_eq!(rig.engine.drops().get(DropReason::SendError), if fragments { 0 } else { 5 });
            assert_eq!(rig.down(b"after that"), b"after that");
        });
    }
}

#[test]
fn a_train_from_the_client_reaches_the_host_in_one_piece() {
    with_rig(Setup::default(), |rig| {
        let payloads: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; if n == 19 { 77 } else { 1200 }]).collect();
        let datagrams: Vec<Vec<u8>> = payloads.iter().map(|payload| rig.seal(CLIENT, payload)).collect();
        rig.send_train(&datagrams);
        for payload in &payloads {
            assert_eq!(&rig.arrives(), payload);
        }
        rig.engine.wait_for_packets();
        let figures = rig.engine.batches().figures();
        assert_eq!((figures.received, figures.tun_written), ((1, 20), (1, 20)));
        assert_eq!(rig.session.counters().received_packets, 20);
    });
}

#[test]
fn each_datagram_of_a_train_is_judged_by_itself() {
    for offloads in [true, false] {
        with_rig(Setup { offloads, ..Setup::default() }, |rig| {
            rig.engine.tell(Command::Watch(rig.session.path().remote(), rig.session.handle()));
            let seal = |source, n| rig.seal(source, &[n; 100]);
            let (one, two) = (seal(CLIENT, 1), seal(CLIENT, 2));
            let mut forged = seal(CLIENT, 3);
            forged[60] ^= 1;
            let mut control = vec![9; one.len()];
            control[0] = CONTROL;
            let stranger = seal(Ipv4Addr::new(10, 9, 0, 3), 4);
            let noise = vec![0xff; one.len()];
            let last = rig.seal(CLIENT, &[5; 10]);
            rig.send_train(&[one.clone(), forged, one, stranger, control.clone(), noise, two, last]);

            for payload in [&[1; 100][..], &[2; 100], &[5; 10]] {
                assert_eq!(rig.arrives(), payload);
            }
            match rig.events.recv_timeout(LIMIT).unwrap() {
                Event::Control { packet, .. } => assert_eq!(packet, control),
                other => panic!("{other:?}"),
            }
            for reason in
                [DropReason::Authentication, DropReason::Replay, DropReason::BadSource, DropReason::Malformed]
            {
                assert_eq!(rig.engine.drops().get(reason), 1, "{reason:?}");
            }
        });
    }
}

/// A shard at each end: one in the calling thread's namespace, one whose interface is in another.
struct Pair {
    near: Engine,
    far: Engine,
    there: TemporaryNetns,
}

impl Pair {
    fn build(tcp: bool, cipher: Cipher, offloads: [bool; 2]) -> Self {
        let there = TemporaryNetns::create("adit-far").unwrap();
        let tuns =
            [open_tun("10.9.0.1/24", offloads[0]), there.run_in(|| open_tun("10.9.0.2/24", offloads[1]))];
        let carriers = [(); 2].map(|()| carrier(PathMtu::default()));
        let mut addresses = [carriers[0].local_addr(), carriers[1].local_addr()];
        let mut streams = [None, None];
        if tcp {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            addresses = [stream.peer_addr().unwrap(), stream.local_addr().unwrap()];
            streams = [Some(listener.accept().unwrap().0), Some(stream)];
        }
        let ends = tuns.into_iter().zip(carriers).zip(streams).enumerate();
        let mut engines = ends.map(|(index, ((tun, carrier), stream))| {
            let engine = start(parts(tun, carrier)).unwrap();
            let (local, remote) = (addresses[index], addresses[1 - index]);
            let handle = engine.new_handle();
            let path = match stream {
                Some(stream) => {
                    engine.tell(Command::Adopt { handle, stream, remote, local, leftover: Vec::new() });
                    Path::Stream { connection: handle, remote, local }
                }
                None => Path::Udp { socket: 0, remote, local },
            };
            let (role, peer) = [(Role::Server, CLIENT), (Role::Client, INSIDE)][index];
            let sources = Sources::new(vec![IpAddr::from(peer).into()]);
            let session = Session::new(handle, channel_of(role, cipher), Some(PEER), sources, path);
            engine.tell(Command::Attach(Arc::new(session)));
            engine
        });
        let (near, far) = (engines.next().unwrap(), engines.next().unwrap());
        drop(engines);
        Self { near, far, there }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.near.stop();
        self.far.stop();
    }
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes, "the bytes that were sent");
}

#[test]
fn a_stream_passes_whole_both_ways_in_few_and_large_pieces() {
    for (tcp, cipher, offloads) in [
        (false, Cipher::Aes256Gcm, [true, true]),
        (false, Cipher::ChaCha20Poly1305, [true, false]),
        (false, Cipher::Aes256Gcm, [false, true]),
        (false, Cipher::Aes256Cbc, [true, true]),
        (true, Cipher::Aes256Gcm, [true, true]),
        (true, Cipher::Aes256Gcm, [true, false]),
    ] {
        alone(move || {
            let pair = Pair::build(tcp, cipher, offloads);
            let bytes = data(4 << 20);
            let listener = TcpListener::bind((INSIDE, 0)).unwrap();
            let address: SocketAddr = listener.local_addr().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    pair.there.run_in(|| {
                        let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
                        stream.write_all(&bytes).unwrap();
                        expect(&mut stream, &bytes);
                    });
                });
                let mut stream = listener.accept().unwrap().0;
                expect(&mut stream, &bytes);
                stream.write_all(&bytes).unwrap();
            });
            for (engine, offloads) in [(&pair.near, offloads[0]), (&pair.far, offloads[1])] {
                let figures = engine.batches().figures();
                // Acknowledgements come alone.
                let large = |(pieces, packets): (u64, u64)| packets - pieces > 1000;
                let said = format!("TCP {tcp}, {cipher:?}, offloads {offloads}: {figures:?}");
                assert_eq!(large(figures.tun_read), offloads, "{said}");
                let trains = cipher != Cipher::Aes256Cbc && !tcp;
                assert!(!trains || !offloads || large(figures.sent), "{said}");
                assert_eq!(figures.tun_written.0 < figures.tun_written.1, offloads, "{said}");
            }
        });
    }
}
