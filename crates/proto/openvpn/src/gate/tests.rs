use std::time::Duration;

use super::*;
use crate::keyfile::ServerKeyV2;
use crate::packet::KeyId;
use crate::wkc::Metadata;
use crate::wrap::{Digest, Direction, EARLY_NEGOTIATION_START, Wrapper};

const NOW: Moment = Moment { steady: 1_000_000, unix: 1_800_000_000 };

fn later(seconds: u64) -> Moment {
    Moment { steady: NOW.steady + seconds, ..NOW }
}

fn key(n: u8) -> StaticKey {
    StaticKey::new(&[n; 256])
}

fn server_key(n: u8) -> Unwrapper {
    Unwrapper::new(&ServerKeyV2::new(&[n; 128]))
}

/// Six identities with keys of their own, and one without: index, and a client's wrap for it.
fn identities() -> Vec<(IdentityId, IdentityWrap)> {
    let wraps = vec![
        IdentityWrap::Shared(WrapKeys::none()),
        IdentityWrap::Shared(WrapKeys::tls_crypt(&key(1), Role::Server)),
        IdentityWrap::Shared(WrapKeys::tls_crypt(&key(2), Role::Server)),
        IdentityWrap::Shared(WrapKeys::tls_auth(&key(3), Digest::Sha256, Direction::Normal)),
        IdentityWrap::Shared(WrapKeys::tls_auth(&key(4), Digest::Sha512, Direction::Normal)),
        IdentityWrap::PerClient(server_key(5)),
        IdentityWrap::PerClient(server_key(6)),
    ];
    wraps.into_iter().enumerate().map(|(id, wrap)| (IdentityId(id as u32), wrap)).collect()
}

fn client_keys(identity: usize) -> WrapKeys {
    match identity {
        0 => WrapKeys::none(),
        1 | 2 => WrapKeys::tls_crypt(&key(identity as u8), Role::Client),
        3 => WrapKeys::tls_auth(&key(3), Digest::Sha256, Direction::Inverse),
        4 => WrapKeys::tls_auth(&key(4), Digest::Sha512, Direction::Inverse),
        _ => WrapKeys::tls_crypt(&key(100), Role::Client),
    }
}

fn gate() -> Gate {
    Gate::new(identities(), &[9; 32], GateOptions::default())
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A client that speaks by hand, so that it can also speak wrongly.
struct Client {
    session: SessionId,
    from: SocketAddr,
    to: SocketAddr,
    wrapper: Wrapper,
    wrapped: Option<Vec<u8>>,
}

impl Client {
    fn new(identity: usize, first_number: u32) -> Self {
        Self {
            session: SessionId::new([identity as u8 + 1; 8]).unwrap(),
            from: address("192.0.2.7:4242"),
            to: address("198.51.100.1:443"),
            wrapper: Wrapper::new(client_keys(identity), first_number, NOW.unix),
            wrapped: (identity >= 5)
                .then(|| server_key(identity as u8).seal(&key(100), &Metadata::Timestamp(1)).wrapped),
        }
    }

    fn modern(identity: usize) -> Self {
        Self::new(identity, if identity >= 5 { EARLY_NEGOTIATION_START } else { 1 })
    }

    fn packet(&mut self, opcode: Opcode, body: &Body<'_>, wrapped: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        body.write(&mut bytes);
        let mut out = Vec::new();
        self.wrapper.wrap(&Head { opcode, key: KeyId::FIRST, session: self.session }, &bytes, &mut out);
        out.extend(self.wrapped.iter().filter(|_| wrapped).flatten());
        out
    }

    fn first(&mut self) -> Vec<u8> {
        let opcode =
            if self.wrapped.is_some() { Opcode::HardResetClientV3 } else { Opcode::HardResetClientV2 };
        let body = Body { acks: Acks::default(), acked_session: None, id: Some(0), payload: &[] };
        self.packet(opcode, &body, true)
    }

    fn second(&mut self, server: SessionId, repeat_key: bool) -> Vec<u8> {
        let opcode = if repeat_key { Opcode::ControlWkcV1 } else { Opcode::ControlV1 };
        let body = Body {
            acks: Acks::from_iter([0]),
            acked_session: Some(server),
            id: Some(1),
            payload: b"client hello",
        };
        self.packet(opcode, &body, repeat_key)
    }

    /// The server's session id and payload out of its answer.
    fn read(&mut self, reply: &[u8]) -> (SessionId, Vec<u8>) {
        let mut body = Vec::new();
        let unwrapped = self.wrapper.unwrap(reply, &mut body).unwrap();
        assert_eq!(unwrapped.head.opcode, Opcode::HardResetServerV2);
        let body = Body::parse(unwrapped.head.opcode, &body).unwrap();
        assert_eq!((body.acked_session, body.id), (Some(self.session), Some(0)));
        (unwrapped.head.session, body.payload.to_vec())
    }

    fn send(&self, gate: &Gate, packet: &[u8], at: Moment) -> Verdict {
        gate.datagram(packet, self.from, self.to, at)
    }
}

fn reply(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Reply(bytes) => bytes,
        other => panic!("{other:?} instead of a reply"),
    }
}

fn dropped(verdict: Verdict) -> DropReason {
    match verdict {
        Verdict::Drop(reason) => reason,
        other => panic!("{other:?} instead of a drop"),
    }
}

fn admitted(verdict: Verdict) -> Admission {
    match verdict {
        Verdict::Admit(admission) => *admission,
        other => panic!("{other:?} instead of an admission"),
    }
}

#[test]
fn each_client_reaches_the_identity_whose_key_it_has() {
    let gate = gate();
    for identity in 0..7 {
        let mut client = Client::modern(identity);
        let first = client.first();
        let answer = reply(client.send(&gate, &first, NOW));
        let (server, payload) = client.read(&answer);
        assert_eq!(payload.is_empty(), identity < 5);
        let second = client.second(server, identity >= 5);
        let admission = admitted(client.send(&gate, &second, later(1)));
        assert_eq!(admission.identity, IdentityId(identity as u32));
        assert_eq!((admission.local, admission.remote), (server, client.session));
        assert_eq!(admission.start, Start::Cookie);
    }
}

#[test]
fn answers_have_the_sizes_of_stock_servers() {
    let gate = gate();
    let sizes: Vec<_> = (0..7)
        .map(|identity| {
            let mut client = Client::modern(identity);
            let first = client.first();
            (first.len(), reply(client.send(&gate, &first, NOW)).len())
        })
        .collect();
    assert_eq!(sizes, [(14, 26), (54, 66), (54, 66), (54, 66), (86, 98), (353, 72), (353, 72)]);
}

#[test]
fn over_tcp_the_first_record_is_enough() {
    let gate = gate();
    for identity in 0..7 {
        let mut client = Client::modern(identity);
        let admission = admitted(gate.record(&client.first(), [3; 8]));
        assert_eq!((admission.identity, admission.start), (IdentityId(identity as u32), Start::Stream));
        assert_eq!(admission.local.bytes(), &[3; 8]);
        assert_eq!(
            dropped(gate.record(&client.second(admission.local, false), [3; 8])),
            DropReason::NoKeyVerified
        );
    }
}

#[test]
fn no_answer_is_given_unless_a_key_verified() {
    let mut wraps = identities();
    wraps.remove(0);
    let gate = Gate::new(wraps, &[9; 32], GateOptions { per_network: 100_000, ..GateOptions::default() });
    for identity in 0..7 {
        let mut client = Client::modern(identity);
        let good = client.first();
        if identity == 0 {
            assert_eq!(dropped(client.send(&gate, &good, NOW)), DropReason::NoKeyVerified);
        }
        for bit in (0..good.len() * 8).step_by(5) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(dropped(client.send(&gate, &bad, NOW)), DropReason::NoKeyVerified, "{identity} {bit}");
        }
        for len in 0..good.len() {
            assert_eq!(dropped(client.send(&gate, &good[..len], NOW)), DropReason::NoKeyVerified);
        }
    }
}

#[test]
fn a_cookie_is_good_for_its_address_identity_and_time_only() {
    // CVE-2025-13086: a comparison the wrong way round accepted any cookie.
    let gate = gate();
    let mut client = Client::modern(1);
    let first = client.first();
    let answer = reply(client.send(&gate, &first, NOW));
    let (server, _) = client.read(&answer);
    let second = client.second(server, false);
    let elsewhere = gate.datagram(&second, address("192.0.2.7:4243"), client.to, NOW);
    assert_eq!(dropped(elsewhere), DropReason::BadCookie);
    let other_port = gate.datagram(&second, client.from, address("198.51.100.1:444"), NOW);
    assert_eq!(dropped(other_port), DropReason::BadCookie);
    assert_eq!(dropped(client.send(&gate, &second, later(3 * SLOT))), DropReason::BadCookie);
    let mut other = Client::modern(2);
    other.session = client.session;
    let second_elsewhere = other.second(server, false);
    assert_eq!(dropped(other.send(&gate, &second_elsewhere, NOW)), DropReason::BadCookie);
    let invented = client.second(SessionId::new([1; 8]).unwrap(), false);
    assert_eq!(dropped(client.send(&gate, &invented, NOW)), DropReason::BadCookie);
    admitted(client.send(&gate, &second, later(2 * SLOT - 1)));
    let restarted = Gate::new(identities(), &[8; 32], GateOptions::default());
    assert_eq!(dropped(client.send(&restarted, &second, NOW)), DropReason::BadCookie);
}

#[test]
fn a_second_packet_from_further_on_in_a_session_is_not_a_beginning() {
    let gate = gate();
    let mut client = Client::modern(1);
    let first = client.first();
    let answer = reply(client.send(&gate, &first, NOW));
    let (server, _) = client.read(&answer);
    for (ack, id) in [(2, 1), (0, 2)] {
        let body =
            Body { acks: Acks::from_iter([ack]), acked_session: Some(server), id: Some(id), payload: &[] };
        let packet = client.packet(Opcode::ControlV1, &body, false);
        assert_eq!(dropped(client.send(&gate, &packet, NOW)), DropReason::BadCookie);
    }
}

#[test]
fn clients_that_cannot_repeat_their_key_are_served_from_a_bounded_table() {
    let gate = gate();
    let mut clients: Vec<_> = (0..100u16)
        .map(|n| {
            let mut client = Client::new(5, 1);
            client.from.set_port(1000 + n);
            client
        })
        .collect();
    let servers: Vec<_> = clients
        .iter_mut()
        .map(|client| {
            let first = client.first();
            let answer = reply(client.send(&gate, &first, NOW));
            let (server, payload) = client.read(&answer);
            assert!(payload.is_empty());
            server
        })
        .collect();
    let verdicts: Vec<_> = clients
        .iter_mut()
        .zip(servers)
        .map(|(client, server)| {
            let second = client.second(server, false);
            matches!(client.send(&gate, &second, NOW), Verdict::Admit(_))
        })
        .collect();
    assert!(verdicts[..36].iter().all(|admitted| !admitted), "pushed out by later ones");
    assert!(verdicts[36..].iter().all(|admitted| *admitted));
    let strict = GateOptions { old_clients: 0, ..GateOptions::default() };
    let strict = Gate::new(identities(), &[9; 32], strict);
    let first = clients[0].first();
    assert_eq!(dropped(clients[0].send(&strict, &first, NOW)), DropReason::BadCookie);
}

#[test]
fn unkeyed_answers_are_rationed_and_completed_handshakes_give_back() {
    let gate = gate();
    let mut client = Client::modern(0);
    let first = client.first();
    let answered = (0..300).filter(|_| matches!(client.send(&gate, &first, NOW), Verdict::Reply(_))).count();
    assert_eq!(answered, 100);
    gate.completed();
    assert!(matches!(client.send(&gate, &first, NOW), Verdict::Reply(_)));
    assert_eq!(dropped(client.send(&gate, &first, NOW)), DropReason::ReplyBudget);
    assert!(matches!(client.send(&gate, &first, later(1)), Verdict::Reply(_)));
}

#[test]
fn a_flood_from_one_network_is_cut_off_and_others_are_not() {
    let gate = gate();
    let mut client = Client::modern(1);
    let junk = [0x38; 54];
    let reasons: Vec<_> = (0..3000).map(|_| dropped(client.send(&gate, &junk, NOW))).collect();
    assert_eq!(reasons.iter().filter(|r| **r == DropReason::NoKeyVerified).count(), 2000);
    let first = client.first();
    assert_eq!(dropped(client.send(&gate, &first, NOW)), DropReason::SourceBudget);
    client.from = address("203.0.113.9:1");
    assert!(matches!(client.send(&gate, &first, NOW), Verdict::Reply(_)));
    let ten = Duration::from_secs(10).as_secs();
    client.from = address("192.0.2.7:4242");
    assert!(matches!(client.send(&gate, &first, later(ten)), Verdict::Reply(_)));
}

#[test]
fn datagrams_of_other_protocols_do_not_use_up_what_first_packets_may() {
    let gate = gate();
    let mut client = Client::modern(1);
    let from = client.from.ip();
    let looked_at = (0..5000).filter(|_| gate.may_ask_others(from, NOW.steady)).count();
    assert_eq!(looked_at, 2000);
    let first = client.first();
    assert!(matches!(client.send(&gate, &first, NOW), Verdict::Reply(_)));
}

#[test]
fn malformed_wrapped_keys_leave_nothing_behind() {
    // CVE-2025-2704, CVE-2026-12932: malformed tls-crypt-v2 packets crashed servers or leaked memory.
    let gate = gate();
    let mut client = Client::new(5, 1);
    let good = client.first();
    for len in 0..good.len() {
        for tail in [0u16, 289, 290, 299, 1024, 1025, u16::MAX] {
            let mut bad = good[..len].to_vec();
            if let Some(last) = bad.last_chunk_mut() {
                *last = tail.to_be_bytes();
            }
            if bad != good {
                let reason = dropped(gate.datagram(&bad, client.from, client.to, later(len as u64 * 10)));
                assert_eq!(reason, DropReason::NoKeyVerified);
            }
        }
    }
    assert!(gate.old_clients.lock().unwrap().is_empty());
}

proptest::proptest! {
    #[test]
    fn strangers_bytes_are_never_answered(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..500),
        opcode in 3u8..12,
    ) {
        let mut wraps = identities();
        wraps.remove(0);
        let gate = Gate::new(wraps, &[9; 32], GateOptions::default());
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = opcode << 3;
        }
        let (from, to) = (address("[2001:db8::1]:1"), address("[2001:db8::2]:2"));
        proptest::prop_assert!(matches!(gate.datagram(&bytes, from, to, NOW), Verdict::Drop(_)));
        proptest::prop_assert!(matches!(gate.record(&bytes, [1; 8]), Verdict::Drop(_)));
    }
}
