//! How sessions are ended.

use super::*;

#[test]
fn farewells_reach_the_peer_and_end_the_data_channel_at_once() {
    for (farewell, expected) in [
        (Farewell::Restart("[P]".into()), Ended::Told(Stop::Restart, "[P]".into())),
        (Farewell::Halt("bye".into()), Ended::Told(Stop::Halt, "bye".into())),
        (Farewell::AuthFailed("revoked".into()), Ended::AuthFailed("revoked".into())),
    ] {
        for seed in 0..5 {
            let mut pair = Setup::new(Wrap::TlsCrypt).pair();
            let (client, server) = connect(&mut pair);
            pair.link = Link { loss: 0.3, ..Link::default() };
            let now = pair.now + seed * SECOND;
            pair.b.machine.as_mut().unwrap().close(&farewell, now);
            assert!(carry(&client, &server, b"\x45").is_none(), "no packet passes any more");
            assert!(pair.run_until(30 * SECOND, |pair| ended(&pair.a_events).is_some()));
            assert_eq!(ended(&pair.a_events), Some(&expected));
            pair.run_for(LINGER);
            assert_eq!(ended(&pair.b_events), Some(&Ended::Local));
        }
    }
}

#[test]
fn closing_is_final_and_may_be_repeated() {
    // CVE-2024-28882: a session that was told to end could be kept alive.
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    let (client, server) = connect(&mut pair);
    pair.link.loss = 1.0;
    let start = pair.now;
    for n in 0..50 {
        let now = start + SECOND / 10 * n;
        pair.b.machine.as_mut().unwrap().close(&Farewell::Halt("out".into()), now);
    }
    assert!(pair.run_until(60 * SECOND, |pair| ended(&pair.b_events).is_some()));
    assert!(pair.now - start <= LINGER, "repeating does not prolong");
    let now = pair.now;
    let machine = pair.b.machine.as_mut().unwrap();
    machine.note_activity(now, now);
    assert_eq!(machine.handle_datagram(&[0x20; 60], now), Err(DropReason::SessionClosed.into()));
    assert!(machine.poll_timeout().is_none());
    assert!(carry(&client, &server, b"\x45").is_none());
}

#[test]
fn a_leaving_client_says_so_in_the_way_both_know() {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    connect(&mut pair);
    let now = pair.now;
    pair.a.close(&Farewell::Exit, now);
    assert!(pair.run_until(10 * SECOND, |pair| ended(&pair.b_events).is_some()));
    assert_eq!(ended(&pair.b_events), Some(&Ended::PeerLeft));
    let mut pair = Setup::new(Wrap::TlsCrypt).client_says("IV_PROTO", "2").pair();
    let (_, server) = connect(&mut pair);
    pair.run_for(SECOND);
    pair.wire.clear();
    let now = pair.now;
    pair.a.close(&Farewell::Exit, now);
    pair.drain();
    let mut packet = pair.wire[0].1.clone();
    let len = packet.len();
    packet.resize(len + TAILROOM, 0);
    assert_eq!(server.open(&mut packet, len, 0).unwrap().inner, Inner::Exit);
}
