use super::*;
use crate::testing::{World, assert_sound, key, serial};
use crate::{Page, Refusal};

fn admission<'a>(serial: &'a Serial, key: &'a KeyHash, now: Timestamp) -> Admission<'a> {
    Admission { serial, key, protocol: "openvpn", identity: "default", transport: "udp", now }
}

#[test]
fn a_welcome_device_gets_session_and_addresses_at_once() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let (serial, key, now) = (serial(1), key(1), world.tick());

    let admitted = world.store.admit(&admission(&serial, &key, now)).unwrap();

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

    let first = world.store.admit(&admission(&serial, &key, first)).unwrap();
    let second = world.store.admit(&admission(&serial, &key, second)).unwrap();

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
        world.store.admit(&admission(&serial(1), &key(9), now)),
        Err(AdmissionFault::Refused(Refusal::KeyMismatch))
    ));
    assert_eq!(journal(&world), (0, 0));

    let taken = world.store.admit(&admission(&serial(1), &key(1), now)).unwrap();
    let full = world.store.admit(&admission(&serial(2), &key(2), now)).unwrap_err();

    let AdmissionFault::NoLease { who, fault: LeaseFault::Full(_) } = &full else { panic!("{full}") };
    assert_eq!(who.device.id, bob.id);
    assert!(full.to_string().starts_with("bob/phone gets no address: "), "{full}");
    assert_eq!(journal(&world), (1, 1));
    taken.lease.end(now).unwrap();
    let later = world.tick();
    assert!(world.store.admit(&admission(&serial(2), &key(2), later)).is_ok());
}

#[test]
fn without_pools_nobody_comes_in() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let now = world.tick();
    let refused = world.store.admit(&admission(&serial(1), &key(1), now));
    assert!(matches!(refused, Err(AdmissionFault::NoPools)));
}
