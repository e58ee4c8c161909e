use ipnet::IpNet;

use crate::testing::{World, issuer, pools, serial};
use crate::{
    CertificateState, ChangeFault, Device, NewDevice, Page, PoolsFault, Reason, Revocation, Timestamp,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn names(world: &World, revoked: bool, page: &Page) -> Vec<String> {
    let listed = world.store.devices(None, revoked, Timestamp::default(), page).unwrap();
    listed.items.iter().map(|row| format!("{}/{}", row.user, row.device.name)).collect()
}

fn state_of(world: &World, device: &Device, now: Timestamp) -> CertificateState {
    let listed = world.store.devices(Some(device.user), true, now, &Page::default()).unwrap();
    let row = listed.items.into_iter().find(|row| row.device.id == device.id).unwrap();
    row.certificate
}

#[test]
fn device_names_are_unique_for_their_user_only() {
    let mut world = World::new();
    let laptop = world.device("ann", "Laptop");
    world.device("bob", "laptop");
    let change = world.change();

    let fault =
        world.store.add_device(&change, laptop.user, &NewDevice { name: "LAPTOP", ..Default::default() });

    assert_eq!(fault.unwrap_err().to_string(), "there is a device named Laptop already");
    assert_eq!(world.store.device_by_name(laptop.user, "laptop").unwrap(), Some(laptop));
}

#[test]
fn hostile_device_names_are_refused() {
    let mut world = World::new();
    let ann = world.user("ann");
    let change = world.change();

    for name in ["", "..", "lap/top", "laptop\n", "lap top", "ноут"] {
        let fault =
            world.store.add_device(&change, ann.id, &NewDevice { name, ..Default::default() }).unwrap_err();
        assert!(matches!(fault, ChangeFault::Name(_)), "{name:?}");
    }
}

#[test]
fn a_revoked_devices_name_can_be_used_again() {
    let mut world = World::new();
    let old = world.device("ann", "laptop");
    let change = world.change();
    world.store.revoke_device(&change, old.id, Reason::Unspecified).unwrap();

    let new = world.device("ann", "laptop");

    assert_eq!(world.store.device_by_name(old.user, "laptop").unwrap().unwrap().id, new.id);
}

#[test]
fn revoking_a_device_revokes_its_certificates_once() {
    let mut world = World::new();
    let laptop = world.device("ann", "laptop");
    world.certificate(&laptop, 1);
    world.certificate(&laptop, 2);
    let earlier = world.change();
    world.store.revoke_certificate(&earlier, &issuer(), &serial(1), Reason::Superseded).unwrap();

    let change = world.change();
    let first = world.store.revoke_device(&change, laptop.id, Reason::KeyCompromise).unwrap();
    let audits = world.audits();
    let later = world.change();
    let second = world.store.revoke_device(&later, laptop.id, Reason::Unspecified).unwrap();

    assert_eq!((first.revoked, &second), (Some(change.now), &first));
    assert_eq!(world.audits(), audits);
    let listed = world.store.revocations(&issuer(), &Page::default()).unwrap().items;
    let expected = [
        Revocation { at: earlier.now, reason: Reason::Superseded },
        Revocation { at: change.now, reason: Reason::KeyCompromise },
    ];
    assert_eq!(listed.iter().map(|row| row.revocation).collect::<Vec<_>>(), expected);
}

#[test]
fn a_device_shows_how_it_stands_with_certificates() {
    let mut world = World::new();
    let laptop = world.device("ann", "laptop");
    let now = world.tick();
    assert_eq!(state_of(&world, &laptop, now), CertificateState::None);

    let old = world.certificate(&laptop, 1);
    let new = world.certificate(&laptop, 2);
    let valid = CertificateState::Valid { serial: new.serial.clone(), not_after: new.not_after };
    assert_eq!(state_of(&world, &laptop, now), valid);
    let expired = CertificateState::Expired { serial: new.serial.clone(), not_after: new.not_after };
    assert_eq!(state_of(&world, &laptop, new.not_after), expired);

    let change = world.change();
    let revocation =
        world.store.revoke_certificate(&change, &issuer(), &new.serial, Reason::Unspecified).unwrap();
    let valid = CertificateState::Valid { serial: old.serial.clone(), not_after: old.not_after };
    assert_eq!(state_of(&world, &laptop, now), valid, "the older one can still be used");

    world.store.revoke_certificate(&change, &issuer(), &old.serial, Reason::Unspecified).unwrap();
    let revoked = CertificateState::Revoked { serial: new.serial, revocation };
    assert_eq!(state_of(&world, &laptop, now), revoked);
}

#[test]
fn devices_are_listed_by_user_and_name_page_by_page() {
    let mut world = World::new();
    for user in ["carl", "Ann", "bob"] {
        for device in ["tablet", "Phone", "laptop"] {
            world.device(user, device);
        }
    }
    let all = names(&world, false, &Page::default());
    assert_eq!(all[..4], ["Ann/laptop", "Ann/Phone", "Ann/tablet", "bob/laptop"]);

    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let listed = world.store.devices(None, false, Timestamp::default(), &Page::after(after, 2)).unwrap();
        paged.extend(listed.items.iter().map(|row| format!("{}/{}", row.user, row.device.name)));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);

    let bob = world.store.user_by_name("bob").unwrap().unwrap();
    let first =
        world.store.devices(Some(bob.id), false, Timestamp::default(), &Page::after(None, 2)).unwrap();
    let rest =
        world.store.devices(Some(bob.id), false, Timestamp::default(), &Page::after(first.next, 2)).unwrap();
    let names: Vec<_> = first.items.iter().chain(&rest.items).map(|row| row.device.name.as_str()).collect();
    assert_eq!((names, rest.next), (vec!["laptop", "Phone", "tablet"], None));
}

#[test]
fn revoked_devices_are_listed_only_when_asked_for() {
    let mut world = World::new();
    let old = world.device("ann", "laptop");
    let change = world.change();
    world.store.revoke_device(&change, old.id, Reason::Unspecified).unwrap();
    world.device("ann", "phone");

    assert_eq!(names(&world, false, &Page::default()), ["ann/phone"]);
    assert_eq!(names(&world, true, &Page::default()), ["ann/laptop", "ann/phone"]);
}

#[test]
fn prefixes_belong_to_one_device() {
    let mut world = World::new();
    let site = world.device("ann", "site");
    let other = world.device("bob", "site");
    let change = world.change();
    let wanted = [net("192.168.8.0/24"), net("192.168.7.0/24"), net("192.168.7.0/24")];

    let set = world.store.set_prefixes(&change, site.id, &wanted).unwrap();

    assert_eq!(set, [net("192.168.7.0/24"), net("192.168.8.0/24")]);
    assert_eq!(world.store.prefixes(site.id).unwrap(), set);
    let fault = world.store.set_prefixes(&change, other.id, &[net("192.168.0.0/16")]).unwrap_err();
    assert!(fault.to_string().ends_with("which is behind ann/site"), "{fault}");
    world.store.set_prefixes(&change, site.id, &[net("192.168.7.0/25")]).unwrap();
    world.store.set_prefixes(&change, other.id, &[net("192.168.8.0/24")]).unwrap();
}

#[test]
fn a_revoked_devices_prefixes_are_free() {
    let mut world = World::new();
    let ann = world.user("ann");
    let change = world.change();
    let new = NewDevice { name: "site", note: "", prefixes: &[net("192.168.7.0/24")] };
    let old = world.store.add_device(&change, ann.id, &new).unwrap();
    world.store.revoke_device(&change, old.id, Reason::Unspecified).unwrap();

    let device = world.store.add_device(&change, ann.id, &new).unwrap();

    assert_eq!(world.store.prefixes(device.id).unwrap(), [net("192.168.7.0/24")]);
}

#[test]
fn a_device_with_an_impossible_prefix_is_not_added() {
    let mut world = World::with_pools(&["10.88.0.0/16"], &[]);
    let ann = world.user("ann");
    let (change, audits) = (world.change(), world.audits());

    for prefix in ["0.0.0.0/0", "10.88.7.0/24", "10.0.0.0/8", "192.168.7.1/24", "224.0.0.0/8"] {
        let new = NewDevice { name: "site", note: "", prefixes: &[net(prefix)] };
        let fault = world.store.add_device(&change, ann.id, &new).unwrap_err();
        assert!(matches!(fault, ChangeFault::Prefix(_)), "{prefix}: {fault}");
    }

    assert_eq!((world.number("SELECT count(*) FROM devices"), world.audits()), (0, audits));
}

#[test]
fn pools_that_overlap_a_prefix_are_refused() {
    let mut world = World::new();
    let site = world.device("ann", "site");
    let change = world.change();
    world.store.set_prefixes(&change, site.id, &[net("10.88.7.0/24")]).unwrap();

    let fault = world.store.set_pools(pools(&["10.88.0.0/16"], &[])).unwrap_err();

    let PoolsFault::OverlapsPrefix { pool, prefix, owner } = fault else { panic!("{fault}") };
    assert_eq!((pool, prefix, owner.as_str()), (net("10.88.0.0/16"), net("10.88.7.0/24"), "ann/site"));
    world.store.set_pools(pools(&["10.89.0.0/16"], &[])).unwrap();
}
