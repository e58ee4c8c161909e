use adit_plan::nat::Assign;

use super::*;
use crate::testing::{World, layout, layout_of, pools};
use crate::{Lease, LeaseFault, LeaseRequest, Page, TrailCheck};

/// A world with 15 blocks of 64 ports, the highest at 40960-41023.
fn world() -> World {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    set(&mut world, &["192.0.2.1"], 41_023);
    world
}

fn set(world: &mut World, addresses: &[&str], last: u16) -> Replanned {
    let layout = layout(addresses, last - 1_023 + 64..=last);
    let planned = world.store.plan_nat(&layout).unwrap();
    let now = world.tick();
    let done = world.store.set_nat(Some(&layout), now).unwrap();
    assert_eq!(planned, done, "a plan says what will be done");
    done
}

fn block(lease: &Lease) -> String {
    lease.block().unwrap().to_string()
}

fn recorded(world: &World, device: DeviceId) -> Vec<Option<String>> {
    let leases = world.store.leases(device, &Page::default()).unwrap().items;
    leases.iter().map(|lease| lease.block.map(|block| block.to_string())).collect()
}

fn intact(world: &World) {
    let check = world.store.verify_trail(|_| ()).unwrap();
    assert!(matches!(check, TrailCheck::Intact { .. }), "{check:?}");
}

#[test]
fn a_lease_takes_a_block_and_its_device_gets_it_back_even_after_a_restart() {
    let mut world = world();
    let devices = ["laptop", "phone"].map(|name| world.device("ann", name).id);
    let leases = devices.map(|device| world.lease(device));
    assert_eq!(leases.each_ref().map(block), ["192.0.2.1:40960-41023", "192.0.2.1:40896-40959"]);
    assert_eq!(recorded(&world, devices[1]), [Some("192.0.2.1:40896-40959".to_owned())]);

    let mut world = world.after_a_kill();
    let now = world.tick();
    world.store.recover(now, 0).unwrap();
    world.store.set_pools(pools(&["10.88.0.0/24"], &["fd88::/64"])).unwrap();
    assert_eq!(
        set(&mut world, &["192.0.2.1"], 41_023),
        Replanned::default(),
        "the same layout is no new epoch"
    );

    let other = world.device("bob", "tablet").id;
    assert_eq!(block(&world.lease(other)), "192.0.2.1:40832-40895", "one never used comes first");
    assert_eq!(block(&world.lease(devices[1])), "192.0.2.1:40896-40959");
    assert_eq!(block(&world.lease(devices[0])), "192.0.2.1:40960-41023");
    assert_eq!(world.store.epochs().len(), 1);
    intact(&world);
}

#[test]
fn without_nat_there_is_no_block() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    assert_eq!(world.lease(device).block(), None);
    assert_eq!(recorded(&world, device), [None]);
    let now = world.tick();
    assert_eq!(world.store.set_nat(None, now).unwrap(), Replanned::default());
    assert_eq!(world.store.epochs(), []);
}

#[test]
fn when_all_blocks_are_taken_the_next_lease_is_refused_in_words() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_127)), now).unwrap();
    let devices = ["a1", "a2", "a3"].map(|name| world.device("ann", name).id);
    let mut held: Vec<_> = devices[..2].iter().map(|device| world.lease(*device)).collect();
    let (session, now) = (world.session(devices[2]).id, world.tick());
    let request = LeaseRequest { device: devices[2], session, now };

    let fault = world.store.lease(&request).unwrap_err();

    assert!(matches!(fault, LeaseFault::NoBlock(_)));
    assert!(fault.to_string().starts_with("no free port block: of 2 blocks"), "{fault}");
    let freed = held.remove(0);
    let given = block(&freed);
    freed.end(now).unwrap();
    assert_eq!(block(&world.store.lease(&request).unwrap()), given);
}

#[test]
fn a_transfer_and_a_new_session_keep_the_block() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let mut lease = world.lease(device);
    let given = block(&lease);
    let (session, now) = (world.session(device).id, world.tick());
    lease.transfer(session, now).unwrap();
    assert_eq!(block(&lease), given);

    let newer = world.lease(device);

    assert_eq!(block(&newer), given);
    assert_eq!(recorded(&world, device), vec![Some(given); 3]);
    drop(lease);
    assert_eq!(world.store.blocks_now(None).unwrap().len(), 1);
    intact(&world);
}

#[test]
fn what_a_new_layout_moves_stays_its_owners_until_the_last_connection_is_gone() {
    let mut world = world();
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("bob", "phone").id);
    let (first, second) = (world.lease(laptop), world.lease(phone));
    let old = [first.block().unwrap(), second.block().unwrap()];

    let done = set(&mut world, &["192.0.2.1"], 41_055);

    assert!(done.changed && done.kept == 0 && done.homeless.is_empty(), "{done:?}");
    assert_eq!(done.moved.len(), 2);
    let of_first = done.moved.iter().find(|moved| moved.owner.device == laptop).unwrap();
    assert_eq!((of_first.from, of_first.owner.session), (Some(old[0]), first.session()));
    assert_eq!(first.block(), Some(of_first.to), "the handle knows");
    let left = world.store.quarantined().unwrap();
    assert_eq!(left.len(), 2);
    let now_had = world.store.blocks_now(None).unwrap();
    assert_eq!(now_had.iter().filter(|now| now.quarantined).count(), 2);
    assert_eq!(
        world.store.blocks_now(Some(world.store.device(phone).unwrap().unwrap().user)).unwrap().len(),
        2
    );

    let (now, inner) = (world.tick(), first.inner().v4.unwrap());
    assert!(world.store.release_block(old[0], inner, now).unwrap());
    assert!(!world.store.release_block(old[0], inner, now).unwrap(), "once");
    assert_eq!(world.store.quarantined().unwrap().len(), 1);

    // A restart without recovery knows the same.
    let again = world.after_a_kill();
    again.store.set_pools(pools(&["10.88.0.0/24"], &["fd88::/64"])).unwrap();
    let now = world.tick();
    again.store.set_nat(world.store.nat().as_ref(), now).unwrap();
    assert_eq!(again.store.quarantined().unwrap(), world.store.quarantined().unwrap());
    let state = (again.store.state(), world.store.state());
    let (theirs, ours) = (state.0.nat.as_ref().unwrap(), state.1.nat.as_ref().unwrap());
    assert_eq!(theirs.blocks.in_use(), ours.blocks.in_use());
    assert!(theirs.blocks.quarantined().eq(ours.blocks.quarantined()));
    drop(state);

    second.end(now).unwrap();
    assert_eq!(world.store.quarantined().unwrap(), [], "the end of the lease ends them");
    intact(&world);
}

#[test]
fn a_session_that_takes_the_addresses_over_takes_the_quarantine_over() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let mut lease = world.lease(device);
    set(&mut world, &["192.0.2.1"], 41_055);
    let (session, now) = (world.session(device).id, world.tick());
    lease.transfer(session, now).unwrap();
    let newer = world.lease(device);
    assert_eq!(newer.block(), lease.block());

    let left = world.store.quarantined().unwrap();
    assert_eq!(left.iter().map(|left| left.owner.lease).collect::<Vec<_>>(), [newer.id()]);
    let now = world.tick();
    newer.end(now).unwrap();
    assert_eq!(world.store.quarantined().unwrap(), []);
    assert_eq!(world.store.state().nat.as_ref().unwrap().blocks.quarantined().count(), 0);
    intact(&world);
}

#[test]
fn a_layout_without_room_says_who_has_to_go() {
    let mut world = world();
    let devices = ["a1", "a2", "a3"].map(|name| world.device("ann", name).id);
    let leases = devices.map(|device| world.lease(device));
    let now = world.tick();

    // One block of other ports for three.
    let done = world.store.set_nat(Some(&layout(&["192.0.2.9"], 40_000..=40_063)), now).unwrap();

    assert_eq!((done.moved.len(), done.homeless.len()), (1, 2));
    assert!(done.homeless.iter().all(|homeless| homeless.ends && homeless.block.is_some()));
    assert_eq!(leases.iter().filter(|lease| lease.block().is_none()).count(), 2);
    assert_eq!(world.number("SELECT count(*) FROM blocks WHERE ended IS NOT NULL"), 2);
    leases.into_iter().for_each(drop);
    assert_eq!(world.store.state().nat.as_ref().unwrap().blocks.in_use(), 0);
    intact(&world);
}

#[test]
fn nat_is_switched_off_and_on() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let lease = world.lease(device);
    let given = block(&lease);
    let now = world.tick();
    assert!(world.store.set_nat(None, now).unwrap().changed);
    assert_eq!(world.store.blocks_now(None).unwrap(), []);
    assert_eq!(world.store.epochs().iter().filter(|epoch| epoch.layout.is_none()).count(), 1);

    let done = set(&mut world, &["192.0.2.1"], 41_023);

    assert_eq!((done.moved.len(), done.moved[0].from), (1, None));
    assert_ne!(lease.block(), None);
    assert_ne!(block(&lease), given, "one never used comes first");
    intact(&world);
}

#[test]
fn pools_and_layout_may_change_in_either_order() {
    for pools_first in [true, false] {
        let mut world = world();
        let device = world.device("ann", "laptop").id;
        let lease = world.lease(device);
        let new_pools = pools(&["10.90.0.0/24"], &["fd88::/64"]);
        let now = world.tick();
        if pools_first {
            world.store.set_pools(new_pools.clone()).unwrap();
            assert_eq!(world.store.outside_pools().unwrap()[0].id, lease.id());
        }
        let done = world.store.set_nat(Some(&layout(&["192.0.2.2"], 40_064..=41_023)), now).unwrap();
        assert_eq!(done.outside.len(), usize::from(pools_first));
        if !pools_first {
            world.store.set_pools(new_pools).unwrap();
        }
        assert_eq!(world.store.outside_pools().unwrap()[0].id, lease.id());
        assert!(lease.block().is_some());
        lease.end(now).unwrap();
        assert_eq!(world.store.outside_pools().unwrap(), []);
        intact(&world);
    }
}

#[test]
fn with_static_blocks_each_address_has_its_own() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    let layout = layout_of(&["192.0.2.1"], 1_280..=65_535, Assign::Static);
    world.store.set_nat(Some(&layout), now).unwrap();
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("bob", "phone").id);

    let (first, second) = (world.lease(laptop), world.lease(phone));

    assert_eq!(block(&first), "192.0.2.1:65472-65535");
    assert_eq!(block(&second), "192.0.2.1:65408-65471");
    drop(first);
    assert_eq!(block(&world.lease(laptop)), "192.0.2.1:65472-65535");
}
