use super::*;
use crate::testing::{World, assert_sound, key, serial};
use crate::{Page, Refusal};

fn admission<'a>(serial: &'a Serial, key: &'a KeyHash, now: Timestamp) -> Admission<'a> {
    Admission { serial, key, protocol: "openvpn", identity: "default", transport: "udp", now }
}

fn admit(world: &World, admission: &Admission<'_>) -> Result<Admitted, AdmissionFault> {
    world.store.admit(&[*admission]).unwrap().pop().unwrap()
}

#[test]
fn a_welcome_device_gets_session_and_addresses_at_once() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let (serial, key, now) = (serial(1), key(1), world.tick());

    let admitted = admit(&world, &admission(&serial, &key, now)).unwrap();

    assert_eq!((admitted.who.device.id, admitted.who.user.name.as_str()), (device.id, "ann"));
    assert_eq!((admitted.session.device, admitted.session.started), (device.id, now));
    assert_eq!(admitted.session.certificate, Some(serial));
    assert_eq!(admitted.lease.inner().to_string(), "10.88.0.2, fd88::2");
    assert_eq!(admitted.lease.session(), admitted.session.id);
    assert_sound(&world.store);
}

#[test]
fn a_device_that_comes_again_takes_its_addresses_over() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let (serial, key) = (serial(1), key(1));
    let (first, second) = (world.tick(), world.tick());

    let first = admit(&world, &admission(&serial, &key, first)).unwrap();
    let second = admit(&world, &admission(&serial, &key, second)).unwrap();

    assert_eq!(first.lease.inner(), second.lease.inner());
    first.lease.end(world.tick()).unwrap();
    let leases = world.store.leases(device.id, &Page::default()).unwrap().items;
    assert_eq!(leases.iter().filter(|lease| lease.ended.is_none()).count(), 1);
    assert_sound(&world.store);
}

#[test]
fn who_is_refused_or_finds_the_pool_full_leaves_nothing_in_the_journal() {
    // One usable address.
    let mut world = World::with_pools(&["10.88.0.0/30"], &[]);
    let (ann, bob) = (world.device("ann", "laptop"), world.device("bob", "phone"));
    world.certificate(&ann, 1);
    world.certificate(&bob, 2);
    let now = world.tick();
    let journal = |world: &World| {
        (world.number("SELECT count(*) FROM sessions"), world.number("SELECT count(*) FROM leases"))
    };
    assert!(matches!(
        admit(&world, &admission(&serial(1), &key(9), now)),
        Err(AdmissionFault::Refused(Refusal::KeyMismatch))
    ));
    assert_eq!(journal(&world), (0, 0));

    let taken = admit(&world, &admission(&serial(1), &key(1), now)).unwrap();
    let full = admit(&world, &admission(&serial(2), &key(2), now)).unwrap_err();

    let AdmissionFault::NoLease { who, fault: LeaseFault::Full(_) } = &full else { panic!("{full}") };
    assert_eq!(who.device.id, bob.id);
    assert!(full.to_string().starts_with("bob/phone gets no address: "), "{full}");
    assert_eq!(journal(&world), (1, 1));
    taken.lease.end(now).unwrap();
    let later = world.tick();
    assert!(admit(&world, &admission(&serial(2), &key(2), later)).is_ok());
}

#[test]
fn those_who_come_together_get_an_answer_each() {
    // Two usable addresses.
    let mut world = World::with_pools(&["10.88.0.0/29"], &[]);
    let names = ["ann", "bob", "cy", "dan", "eve", "flo"];
    for (number, name) in (1..).zip(names) {
        let device = world.device(name, "laptop");
        world.certificate(&device, number);
    }
    let credentials: Vec<_> = (1..=names.len() as u8).map(|number| (serial(number), key(number))).collect();
    let (wrong, now) = (key(99), world.tick());
    let mut all: Vec<_> = credentials.iter().map(|(serial, key)| admission(serial, key, now)).collect();
    all.insert(1, admission(&credentials[1].0, &wrong, now));
    // Ann comes twice.
    all.insert(2, all[0]);

    let outcomes = world.store.admit(&all).unwrap();

    let said: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(admitted) => format!("{} {}", admitted.who.user.name, admitted.lease.inner()),
            Err(fault) => fault.to_string(),
        })
        .collect();
    assert_eq!(said[0], "ann 10.88.0.2");
    assert_eq!(said[1], Refusal::KeyMismatch.to_string());
    assert_eq!(said[2], "ann 10.88.0.2", "the same device keeps its address");
    assert_eq!(said[3..7], ["bob 10.88.0.3", "cy 10.88.0.4", "dan 10.88.0.5", "eve 10.88.0.6"]);
    assert!(said[7].starts_with("flo/laptop gets no address: "), "{}", said[7]);
    assert_eq!(world.number("SELECT count(*) FROM sessions"), 6);
    assert_eq!(world.number("SELECT count(*) FROM leases WHERE ended IS NULL"), 5);
    assert_sound(&world.store);
}

#[test]
fn a_database_that_fails_lets_nobody_in_and_takes_no_address() {
    // As many usable addresses as devices.
    let mut world = World::with_pools(&["10.88.0.0/29"], &[]);
    for (number, name) in [(1, "ann"), (2, "bob"), (3, "cy"), (4, "dan"), (5, "eve")] {
        let device = world.device(name, "laptop");
        world.certificate(&device, number);
    }
    let credentials: Vec<_> = (1..=5).map(|number| (serial(number), key(number))).collect();
    let all = |now| credentials.iter().map(|(serial, key)| admission(serial, key, now)).collect::<Vec<_>>();
    let fails = "CREATE TEMP TRIGGER fails BEFORE INSERT ON leases WHEN NEW.inner4 = '10.88.0.6' \
                 BEGIN SELECT RAISE(ABORT, 'made to fail'); END";
    world.meddle(fails).unwrap();
    let now = world.tick();
    assert!(world.store.admit(&all(now)).is_err());
    assert_eq!(world.number("SELECT count(*) FROM sessions"), 0);

    world.meddle("DROP TRIGGER fails").unwrap();
    let now = world.tick();
    let outcomes = world.store.admit(&all(now)).unwrap();

    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_sound(&world.store);
}

#[test]
fn without_pools_nobody_comes_in() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let now = world.tick();
    let refused = admit(&world, &admission(&serial(1), &key(1), now));
    assert!(matches!(refused, Err(AdmissionFault::NoPools)));
}
