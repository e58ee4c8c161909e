//! A client and a server machine, and a script that interferes: the bytes say what happens next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_openvpn::Machine;
use adit_openvpn::Role;
use adit_openvpn::gate::IdentityWrap;
use adit_openvpn::keyfile::{ServerKeyV2, StaticKey};
use adit_openvpn::machine::{Carrier, ClientWrap, Farewell, Settings};
use adit_openvpn::testing::{FakeTlsSource, Server, UNIX};
use adit_openvpn::wkc::{Metadata, Unwrapper};
use adit_openvpn::wrap::WrapKeys;
use adit_tunnel::testing::{Link, Pair, Side, TestRng};

/// At most this many steps of virtual time per script.
const STEPS: usize = 3000;

/// Whatever is lost, changed, repeated or injected, whatever either side is told to do in between: nothing panics,
/// nothing grows, time goes on, and at the end both sides come to rest.
pub(crate) fn machine(script: &[u8]) {
    let mut pair = pair(script.first().copied().unwrap_or(0));
    let mut steps = 0;
    for pair_of_bytes in script.chunks(2) {
        let (op, arg) = (pair_of_bytes[0], pair_of_bytes.get(1).copied().unwrap_or(0));
        interfere(&mut pair, op, arg);
        for _ in 0..op % 8 {
            steps += 1;
            if steps > STEPS || !pair.step() {
                return;
            }
        }
        assert!(pair.a_events.len() < 10_000 && pair.b_events.len() < 10_000);
    }
    // Left alone, a session that is up pings and one that is not gives up: both within minutes.
    pair.link.loss = 1.0;
    pair.run_for(Duration::from_secs(300));
    assert!(pair.a.poll_timeout().is_none(), "the client never comes to rest");
    let server = pair.b.machine.as_ref().and_then(Machine::poll_timeout);
    assert!(server.is_none(), "the server never comes to rest: {server:?}");
}

fn pair(choice: u8) -> Pair<Machine, Server> {
    let now = Instant::now();
    let key = StaticKey::new(&[1; 256]);
    let (client_wrap, server_wrap) = match choice % 3 {
        0 => (
            ClientWrap::Shared(WrapKeys::tls_crypt(&key, Role::Client)),
            IdentityWrap::Shared(WrapKeys::tls_crypt(&key, Role::Server)),
        ),
        1 => {
            let server = Unwrapper::new(&ServerKeyV2::new(&[2; 128]));
            (ClientWrap::Own(server.seal(&key, &Metadata::None)), IdentityWrap::PerClient(server))
        }
        _ => (ClientWrap::Shared(WrapKeys::none()), IdentityWrap::Shared(WrapKeys::none())),
    };
    let tls = |role| Arc::new(FakeTlsSource::new(role, b"certificate", 3));
    let mut settings = Settings::new(tls(Role::Client));
    settings.ping_restart = Some(Duration::from_secs(60));
    let carrier = Carrier::default();
    let client =
        Machine::client(Arc::new(settings), client_wrap, carrier, Box::new(TestRng::new(4)), now, UNIX);
    let mut settings = Settings::new(tls(Role::Server));
    settings.renegotiate = Some(Duration::from_secs(30));
    settings.ping = Some(Duration::from_secs(10));
    settings.ping_restart = Some(Duration::from_secs(120));
    let server = Server::new(Arc::new(settings), server_wrap, now, 5);
    Pair::new(client, server, now, Link::default(), 6)
}

fn interfere(pair: &mut Pair<Machine, Server>, op: u8, arg: u8) {
    let now = pair.now;
    let replay = |pair: &Pair<Machine, Server>| {
        let at = usize::from(arg) % pair.wire.len().max(1);
        pair.wire.get(at).cloned()
    };
    match op >> 3 {
        0 => pair.link.loss = f64::from(arg) / 512.0,
        1 => pair.link.duplicate = f64::from(arg) / 512.0,
        2 => pair.link.jitter = Duration::from_millis(u64::from(arg) * 10),
        3 | 4 => {
            if let Some((from, bytes)) = replay(pair) {
                let to = if from == Side::A { Side::B } else { Side::A };
                pair.send(to, &bytes);
            }
        }
        5..=8 => {
            if let Some((from, mut bytes)) = replay(pair) {
                let at = usize::from(op ^ arg) % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= arg | 1;
                }
                let to = if from == Side::A { Side::B } else { Side::A };
                pair.send(to, &bytes);
            }
        }
        9 => pair.send(Side::A, &[arg; 40]),
        10 => pair.send(Side::B, &[arg; 40]),
        11 => pair.a.renegotiate(now),
        12 => {
            if let Some(machine) = &mut pair.b.machine {
                machine.renegotiate(now);
            }
        }
        13 => pair.a.note_activity(now, now),
        14 => {
            if let Some(machine) = &mut pair.b.machine {
                machine.note_activity(now, now);
            }
        }
        15 => pair.b.decision = Some(Err("no".into())),
        16 => pair.run_for(Duration::from_secs(u64::from(arg))),
        17 if arg > 200 => pair.a.close(&Farewell::Exit, now),
        18 if arg > 200 => {
            if let Some(machine) = &mut pair.b.machine {
                machine.close(&Farewell::Restart("x".into()), now);
            }
        }
        19 => pair.b.client_moves(),
        _ => {}
    }
}
