//! The packet loop on a real tun interface: packets pass both ways, over UDP and TCP, and none is allocated for.
//!
//! ```text
//!  this test (the client's end, by hand) ── loopback ── shard ── tun (10.9.0.1/24) ── kernel (a UDP socket)
//! ```

mod rig;
mod trains;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use adit_engine::Event;
use adit_host::allocations::{Counting, thread_named};
use adit_host::netlink::Netlink;
use adit_openvpn::data::Cipher;
use adit_tunnel::DropReason;

use rig::{CLIENT, LIMIT, Setup, with_rig};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

#[test]
fn packets_pass_both_ways_over_udp_and_tcp() {
    for tcp in [false, true] {
        with_rig(Setup { tcp, ..Setup::default() }, |mut rig| {
            for n in 0..20u8 {
                rig.up(CLIENT, &[n; 100]);
                assert_eq!(rig.arrives(), [n; 100]);
                assert_eq!(rig.down(&[n; 900]), [n; 900]);
            }
            let counters = rig.session.counters();
            assert_eq!((counters.received_packets, counters.sent_packets), (20, 20));
            assert_eq!((counters.received_bytes, counters.sent_bytes), (20 * 128, 20 * 928));
        });
    }
}

#[test]
fn no_packet_is_allocated_for() {
    for (tcp, cipher) in [
        (false, Cipher::Aes256Gcm),
        (false, Cipher::ChaCha20Poly1305),
        (false, Cipher::Aes256Cbc),
        (true, Cipher::Aes256Gcm),
    ] {
        with_rig(Setup { tcp, cipher, ..Setup::default() }, |mut rig| {
            let mut round = |count: usize| {
                for _ in 0..count {
                    rig.up(CLIENT, &[1; 700]);
                    rig.arrives();
                    rig.down(&[2; 700]);
                    rig.down_train(&[3; 4100], 500);
                    (0..9).for_each(|_| drop(rig.gets()));
                    if !tcp {
                        let datagrams = [0; 9].map(|_| rig.seal(CLIENT, &[4; 500]));
                        rig.send_train(&datagrams);
                        (0..9).for_each(|_| drop(rig.arrives()));
                    }
                }
            };
            // The first packets make what is kept: buffers of the connection, the library's own state.
            round(20);
            ALLOCATOR.watch(thread_named("shard-0").unwrap());
            round(300);
            let count = ALLOCATOR.watched();
            ALLOCATOR.watch(0);
            assert_eq!(count, 0, "{cipher:?} over {}", if tcp { "TCP" } else { "UDP" });
        });
    }
}

#[test]
fn a_packet_from_an_address_of_somebody_else_goes_nowhere() {
    with_rig(Setup::default(), |mut rig| {
        rig.up(Ipv4Addr::new(10, 9, 0, 3), b"forged");
        rig.up(CLIENT, b"own");
        assert_eq!(rig.arrives(), b"own");
        assert_eq!(rig.engine.drops().get(DropReason::BadSource), 1);
    });
}

#[test]
fn only_an_authentic_newer_packet_moves_a_session() {
    with_rig(Setup::default(), |mut rig| {
        rig.up(CLIENT, b"first");
        assert_eq!(rig.arrives(), b"first");
        let home = rig.session.path();
        let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
        elsewhere.connect(home.local()).unwrap();
        elsewhere.set_read_timeout(Some(LIMIT)).unwrap();
        let seal = |payload: &[u8]| rig.seal(CLIENT, payload);
        let (older, newer, newest) = (seal(b"older"), seal(b"newer"), seal(b"newest"));
        // A forged packet, then a genuine one that arrives late: neither moves anything.
        let mut forged = newest.clone();
        *forged.last_mut().unwrap() ^= 1;
        elsewhere.send(&forged).unwrap();
        rig.send(&newer);
        assert_eq!(rig.arrives(), b"newer");
        elsewhere.send(&older).unwrap();
        assert_eq!(rig.arrives(), b"older");
        // A replay of what has been seen.
        elsewhere.send(&newer).unwrap();
        // The next genuine one moves the session, and answers go there.
        assert_eq!(rig.session.path(), home);
        elsewhere.send(&newest).unwrap();
        assert_eq!(rig.arrives(), b"newest");
        match rig.events.recv_timeout(LIMIT).unwrap() {
            Event::Moved { path, .. } => assert_eq!(path.remote(), elsewhere.local_addr().unwrap()),
            other => panic!("{other:?}"),
        }
        rig.inside.send_to(b"to the new place", (CLIENT, 6000)).unwrap();
        assert!(elsewhere.recv(&mut [0; 2000]).unwrap() > 0);
        assert_eq!(rig.engine.drops().get(DropReason::Authentication), 1);
        assert_eq!(rig.engine.drops().get(DropReason::Replay), 1);
    });
}

#[test]
fn after_a_session_is_forgotten_no_packet_of_it_passes() {
    with_rig(Setup::default(), |mut rig| {
        rig.up(CLIENT, b"before");
        assert_eq!(rig.arrives(), b"before");
        rig.session.close();
        rig.up(CLIENT, b"closed");
        // Commands may overtake packets that wait in a socket.
        rig.dropped(DropReason::SessionClosed, 1);
        rig.engine.forget_and_wait(rig.session.handle());
        rig.up(CLIENT, b"forgotten");
        rig.inside.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(rig.inside.recv(&mut [0; 100]).is_err());
        rig.dropped(DropReason::UnknownPeer, 1);
        assert_eq!(rig.engine.drops().get(DropReason::SessionClosed), 1);
    });
}

#[test]
fn the_tun_interface_going_away_is_told_once_and_does_not_spin() {
    with_rig(Setup::default(), |rig| {
        Netlink::open().unwrap().delete_link("adit0").unwrap();
        let why = rig.failure.recv_timeout(LIMIT).unwrap();
        assert!(why.starts_with("the tun interface is gone: "), "{why}");
        assert!(rig.failure.recv_timeout(Duration::from_millis(100)).is_err());
    });
}
