use crate::testing::{World, issuer, key, serial};
use crate::{
    AccessFault, Certificate, ChangeFault, Issuer, Page, Reason, Refusal, Revocation, Serial, Timestamp,
};

fn refusal(world: &mut World, number: u8) -> Option<Refusal> {
    let now = world.tick();
    match world.store.authorize(&serial(number), &key(number), now) {
        Ok(_) => None,
        Err(AccessFault::Refused(refusal)) => Some(refusal),
        Err(AccessFault::Store(fault)) => panic!("{fault}"),
    }
}

#[test]
fn the_holder_of_a_certificate_is_known_by_serial_number_and_key() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let change = world.change();
    let prefixes =
        world.store.set_prefixes(&change, device.id, &["192.168.7.0/24".parse().unwrap()]).unwrap();

    let authorized = world.store.authorize(&"0001".parse().unwrap(), &key(1), change.now).unwrap();

    assert_eq!((authorized.device, authorized.user.name.as_str()), (device, "ann"));
    assert_eq!(authorized.prefixes, prefixes);
}

#[test]
fn each_refusal_has_its_reason() {
    let mut world = World::new();
    let devices = ["valid", "revoked-certificate", "revoked-device"].map(|name| world.device("ann", name));
    for (number, device) in (1..).zip(&devices) {
        world.certificate(device, number);
    }
    let suspended = world.device("bob", "laptop");
    world.certificate(&suspended, 4);
    let removed = world.device("carl", "laptop");
    world.certificate(&removed, 5);
    let change = world.change();
    let store = &world.store;
    store.revoke_certificate(&change, &issuer(), &serial(2), Reason::Superseded).unwrap();
    store.revoke_device(&change, devices[2].id, Reason::Unspecified).unwrap();
    store.suspend_user(&change, suspended.user).unwrap();
    store.remove_user(&change, removed.user).unwrap();

    assert_eq!(refusal(&mut world, 1), None);
    assert_eq!(refusal(&mut world, 2), Some(Refusal::CertificateRevoked));
    assert_eq!(refusal(&mut world, 3), Some(Refusal::DeviceRevoked));
    assert_eq!(refusal(&mut world, 4), Some(Refusal::UserSuspended));
    assert_eq!(refusal(&mut world, 5), Some(Refusal::UserRemoved));
    assert_eq!(refusal(&mut world, 6), Some(Refusal::Unknown));
    let mismatch = world.store.authorize(&serial(1), &key(2), change.now).unwrap_err();
    assert!(matches!(mismatch, AccessFault::Refused(Refusal::KeyMismatch)));

    world.store.resume_user(&change, suspended.user).unwrap();
    assert_eq!(refusal(&mut world, 4), None);
    world.shift(3_600_000);
    assert_eq!(refusal(&mut world, 1), Some(Refusal::Expired));
}

#[test]
fn a_certificate_is_valid_until_its_last_millisecond() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let last = world.certificate(&device, 1).not_after;
    let after = Timestamp::from_millis(last.as_millis() + 1);

    assert!(world.store.authorize(&serial(1), &key(1), last).is_ok());
    assert!(world.store.authorize(&serial(1), &key(1), after).is_err());
}

#[test]
fn a_serial_number_is_given_once_by_an_issuer() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let first = world.certificate(&device, 1);
    let change = world.change();

    let again = Certificate { key: key(2), ..first.clone() };
    let fault = world.store.add_certificate(&change, &again).unwrap_err();
    assert!(matches!(fault, ChangeFault::SerialTaken(_)));

    let elsewhere = Issuer::from_bytes(&[0xcb]).unwrap();
    let same_identity = Certificate { issuer: elsewhere.clone(), ..first.clone() };
    assert!(matches!(world.store.add_certificate(&change, &same_identity), Err(ChangeFault::SerialTaken(_))));
    let other = Certificate { issuer: elsewhere.clone(), key: key(2), ..first };
    world.store.add_certificate(&change, &other).unwrap();
    assert_eq!(world.store.certificate(&elsewhere, &serial(1)).unwrap().unwrap().certificate, other);
}

#[test]
fn two_issuers_serial_numbers_are_revoked_apart() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let first = world.certificate(&device, 1);
    let elsewhere = Issuer::from_bytes(&[0xcb]).unwrap();
    let change = world.change();
    let other = Certificate { issuer: elsewhere.clone(), key: key(2), ..first };
    world.store.add_certificate(&change, &other).unwrap();

    world.store.revoke_certificate(&change, &elsewhere, &serial(1), Reason::Unspecified).unwrap();

    assert!(world.store.authorize(&serial(1), &key(1), change.now).is_ok());
    assert!(world.store.authorize(&serial(1), &key(2), change.now).is_err());
}

#[test]
fn a_revoked_device_gets_no_certificate() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let certificate = world.certificate(&device, 1);
    let change = world.change();
    world.store.revoke_device(&change, device.id, Reason::Unspecified).unwrap();

    let next = Certificate { serial: serial(2), key: key(2), ..certificate };

    assert!(matches!(world.store.add_certificate(&change, &next), Err(ChangeFault::NotFound("device"))));
}

#[test]
fn an_unknown_serial_number_can_be_revoked_before_it_turns_up() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let change = world.change();
    world.store.revoke_certificate(&change, &issuer(), &serial(1), Reason::KeyCompromise).unwrap();

    world.certificate(&device, 1);

    assert_eq!(refusal(&mut world, 1), Some(Refusal::CertificateRevoked));
    let holder = world.store.certificate(&issuer(), &serial(1)).unwrap().unwrap();
    let expected = Revocation { at: change.now, reason: Reason::KeyCompromise };
    assert_eq!(holder.certificate.revocation, Some(expected));
}

#[test]
fn a_revocation_is_final() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let change = world.change();
    let first =
        world.store.revoke_certificate(&change, &issuer(), &serial(1), Reason::KeyCompromise).unwrap();
    let (later, audits) = (world.change(), world.audits());

    let second = world.store.revoke_certificate(&later, &issuer(), &serial(1), Reason::Superseded).unwrap();

    assert_eq!((second, world.audits()), (first, audits));
    for sql in ["DELETE FROM revocations", "UPDATE revocations SET reason = 0"] {
        assert!(world.meddle(sql).unwrap_err().contains("a revocation is final"), "{sql}");
    }
}

#[test]
fn the_revocation_list_is_read_page_by_page() {
    let mut world = World::new();
    let change = world.change();
    for number in 1..=25 {
        world.store.revoke_certificate(&change, &issuer(), &serial(number), Reason::Unspecified).unwrap();
    }
    let elsewhere = Issuer::from_bytes(&[0xcb]).unwrap();
    world.store.revoke_certificate(&change, &elsewhere, &serial(99), Reason::Unspecified).unwrap();

    let (mut seen, mut after): (Vec<Serial>, _) = (Vec::new(), None);
    loop {
        let listed = world.store.revocations(&issuer(), &Page::after(after, 10)).unwrap();
        seen.extend(listed.items.into_iter().map(|row| row.serial));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }

    assert_eq!(seen, (1..=25).map(serial).collect::<Vec<_>>());
}

#[test]
fn revocation_lists_are_numbered_without_repetition() {
    let world = World::new();
    let elsewhere = Issuer::from_bytes(&[0xcb]).unwrap();
    let first = [(); 3].map(|()| world.store.next_crl_number(&issuer()).unwrap());
    let other = world.store.next_crl_number(&elsewhere).unwrap();

    let world = world.after_a_kill();

    assert_eq!((first, other), ([1, 2, 3], 1));
    assert_eq!(world.store.next_crl_number(&issuer()).unwrap(), 4);
}

#[test]
fn certificates_are_kept_byte_for_byte() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let written = world.certificate(&device, 0xf0);

    let world = world.after_a_kill();

    assert_eq!(world.store.certificates(device.id).unwrap(), [written]);
}
