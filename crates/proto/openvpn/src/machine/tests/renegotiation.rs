//! New keys within a session.

use super::*;

fn renegotiations(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Renegotiated)).count()
}

#[test]
fn renegotiation_every_few_seconds_loses_no_packet_whoever_starts_it() {
    for (server_starts, client_starts) in [(true, false), (false, true), (true, true)] {
        for wrap in Wrap::ALL {
            let mut setup = Setup::new(wrap);
            setup.server.renegotiate = server_starts.then_some(4 * SECOND);
            setup.client.renegotiate = client_starts.then_some(4 * SECOND);
            let mut pair = setup.pair();
            let (client, server) = connect(&mut pair);
            let (arrived, sent) = traffic(&mut pair, &client, &server, 100 * SECOND);
            assert_eq!(arrived, sent, "{wrap:?}");
            assert!(renegotiations(&pair.a_events) >= 20 && renegotiations(&pair.b_events) >= 20);
            assert!(ended(&pair.a_events).is_none() && ended(&pair.b_events).is_none());
        }
    }
}

#[test]
fn renegotiation_survives_a_bad_link() {
    for seed in 0..10 {
        let mut setup = Setup::new(Wrap::TlsCryptV2)
            .link(Link { loss: 0.15, duplicate: 0.1, jitter: SECOND / 10, ..Link::default() }, seed);
        setup.server.renegotiate = Some(20 * SECOND);
        let mut pair = setup.pair();
        let (client, server) = connect(&mut pair);
        let (arrived, sent) = traffic(&mut pair, &client, &server, 200 * SECOND);
        assert_eq!(arrived, sent, "seed {seed}");
        assert!(renegotiations(&pair.b_events) >= 7);
    }
}

#[test]
fn renegotiations_travel_under_a_key_of_their_own() {
    // CVE-2026-13117: state of the dynamic key outlived its session.
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    connect(&mut pair);
    pair.wire.clear();
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().renegotiate(now);
    assert!(pair.run_until(10 * SECOND, |pair| renegotiations(&pair.a_events) == 1));
    let key = StaticKey::new(&[3; 256]);
    let original = [Role::Client, Role::Server].map(|role| WrapKeys::tls_crypt(&key, role));
    let mut body = Vec::new();
    let mut seen = 0;
    for (_, packet) in &pair.wire {
        let head = Head::parse(packet).unwrap();
        if head.key == KeyId::new(1) {
            seen += 1;
            assert!(original.iter().all(|keys| keys.unwrap(packet, &mut body).is_none()));
        }
    }
    assert!(seen > 4);
}

#[test]
fn a_certificate_may_not_change_within_a_session() {
    let setup = Setup::new(Wrap::TlsCrypt);
    let client_tls = Arc::clone(&setup.client_tls);
    let mut pair = setup.pair();
    let (client, server) = connect(&mut pair);
    client_tls.set_certificate(b"somebody else's");
    pair.run_for(2 * SECOND);
    let now = pair.now;
    pair.a.renegotiate(now);
    assert!(pair.run_until(60 * SECOND, |pair| ended(&pair.a_events).is_some()));
    assert!(
        matches!(ended(&pair.a_events), Some(Ended::AuthFailed(_))),
        "{:?} {:?}",
        pair.a_events,
        pair.b_events
    );
    assert!(carry(&client, &server, b"\x45").is_none());
}

#[test]
fn a_client_refused_at_renegotiation_is_out_at_once() {
    // A stock server leaves the old keys usable for up to an hour.
    let setup = Setup::new(Wrap::TlsCrypt);
    let server_tls = Arc::clone(&setup.server_tls);
    let mut pair = setup.pair();
    let (client, server) = connect(&mut pair);
    server_tls.refuse_peers();
    pair.run_for(2 * SECOND);
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().renegotiate(now);
    assert!(pair.run_until(SECOND, |_| carry(&client, &server, b"\x45").is_none()));
    assert!(pair.run_until(10 * SECOND, |pair| ended(&pair.b_events).is_some()));
}

/// A pair whose server has been asked at a renegotiation and has not decided.
fn undecided() -> (Joined, Arc<Channel>, Arc<Channel>) {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    let (client, server) = connect(&mut pair);
    pair.b.decision = None;
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().renegotiate(now);
    let asked = |event: &Event| matches!(event, Event::Authenticate(login) if login.renegotiation);
    assert!(pair.run_until(10 * SECOND, |pair| pair.b_events.iter().any(asked)));
    (pair, client, server)
}

#[test]
fn a_client_gets_new_keys_no_sooner_than_the_server_has_them() {
    let (mut pair, client, server) = undecided();
    pair.run_for(10 * SECOND);
    assert_eq!(renegotiations(&pair.a_events), 0);
    assert_carries(&client, &server);
    let now = pair.now;
    let grant = Grant { peer_id: 0, options: Vec::new() };
    pair.b.machine.as_mut().unwrap().authorize(&grant, now);
    assert!(pair.run_until(10 * SECOND, |pair| renegotiations(&pair.a_events) == 1));
    // Stock clients use new keys at once if the former ones are young.
    client.promote(KeyId::new(1));
    assert_carries(&client, &server);
    assert_eq!(server.sending_key().unwrap().id(), KeyId::new(1));
}

#[test]
fn a_client_refused_while_its_renegotiation_is_decided_is_told() {
    let (mut pair, client, server) = undecided();
    let now = pair.now;
    pair.b.machine.as_mut().unwrap().refuse("the device is revoked", now);
    assert!(carry(&client, &server, b"\x45").is_none());
    assert!(pair.run_until(10 * SECOND, |pair| ended(&pair.a_events).is_some()));
    assert_eq!(ended(&pair.a_events), Some(&Ended::AuthFailed("the device is revoked".into())));
}

#[test]
fn a_peer_cannot_renegotiate_without_pause() {
    let mut pair = Setup::new(Wrap::TlsCrypt).pair();
    connect(&mut pair);
    for _ in 0..100 {
        let now = pair.now;
        pair.a.renegotiate(now);
        pair.run_for(SECOND / 10);
    }
    assert!(renegotiations(&pair.b_events) <= 10);
    assert!(ended(&pair.b_events).is_none());
}
