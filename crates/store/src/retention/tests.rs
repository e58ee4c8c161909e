use super::*;
use crate::testing::{World, layout};
use crate::{ForwardProtocol, NewForward, Page, TrailCheck};

const DAYS: i64 = 24 * 3_600_000;

fn base(world: &World) -> i64 {
    match world.store.verify_trail(|_| ()).unwrap() {
        TrailCheck::Intact { base, .. } => base,
        broken => panic!("{broken:?}"),
    }
}

#[test]
fn a_purge_moves_the_base_and_says_so_in_the_audit_trail() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_999)), now).unwrap();
    let device = world.device("ann", "laptop").id;
    for _ in 0..10 {
        let lease = world.lease(device);
        let (session, now) = (lease.session(), world.tick());
        lease.end(now).unwrap();
        world.store.close_session(session, now, "done").unwrap();
    }
    let cut = world.tick();
    let last = world.lease(device);
    assert_eq!(base(&world), 0);

    let purged = world.store.purge(cut).unwrap();

    assert_eq!((purged.sessions, purged.leases, purged.blocks), (10, 10, 10));
    let base = base(&world);
    assert!(base > 0);
    assert_eq!(world.number("SELECT count(*) FROM ends"), 0);
    assert_eq!(world.number("SELECT count(*) FROM epochs"), 1, "it is still in force");
    let row = world.store.audit_trail(&Page::default()).unwrap().items.remove(0);
    assert_eq!(
        (row.action.as_str(), &row.detail["base"], &row.detail["leases"]),
        ("trail.purge", &base.into(), &10.into())
    );
    assert_eq!(row.detail["hash"].as_str().unwrap().len(), 64);
    let audits = world.audits();
    assert_eq!(world.store.purge(cut).unwrap(), Purged::default());
    assert_eq!(world.audits(), audits, "nothing was purged, and nothing said");
    assert!(last.block().is_some());
    let again = world.after_a_kill();
    assert!(
        matches!(again.store.verify_trail(|_| ()).unwrap(), TrailCheck::Intact { base: b, .. } if b == base)
    );
}

#[test]
fn an_endless_lease_keeps_its_handle_and_not_the_records_of_others() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_999)), now).unwrap();
    let (server, laptop) = (world.device("ann", "server"), world.device("ann", "laptop"));
    let ports = "30000-30009".parse().unwrap();
    let (protocol, port) = (ForwardProtocol::Tcp, Some(30_004));
    let new = NewForward {
        device: server.id,
        protocols: &[protocol],
        port,
        to_port: 22,
        expires: None,
        ports: &ports,
        per_user: 5,
    };
    let change = world.change();
    let forward = world.store.add_forward(&change, &new).unwrap().remove(0);
    let endless = world.lease(server.id);
    let (id, block, inner) = (endless.id(), endless.block(), endless.inner());
    drop(world.lease(laptop.id));

    for _ in 0..5 {
        let now = world.shift(DAYS + 1_000);
        assert_eq!(world.store.roll(now).unwrap(), Rolled { leases: 1, forwards: 1 });
        assert_eq!(world.store.roll(now).unwrap(), Rolled::default(), "nothing is old any more");
        drop(world.lease(laptop.id));
    }
    let cut = world.tick();
    let rolled = world.store.leases(server.id, &Page::default()).unwrap().items;
    assert_eq!(rolled.len(), 6);
    assert!(rolled.iter().all(|lease| (lease.id, lease.block, lease.inner) == (id, block, inner)));
    assert!(rolled.windows(2).all(|pair| pair[1].ended == Some(pair[0].started)));
    assert_eq!(world.store.forward(forward.id).unwrap().unwrap().port, 30_004);

    // The last day's record of the endless lease is open, and what came after it stays.
    let purged = world.store.purge(cut).unwrap();
    assert_eq!((purged.leases, purged.forwards), (5 + 5, 5));
    base(&world);

    assert_eq!((endless.id(), endless.block(), endless.inner()), (id, block, inner));
    let now = world.tick();
    endless.end(now).unwrap();
    assert_eq!(world.store.leases(server.id, &Page::default()).unwrap().items[0].ended, Some(now));
    assert_eq!(world.number("SELECT count(*) FROM leases WHERE ended IS NULL"), 0);
}

#[test]
fn an_epoch_is_kept_for_as_long_as_it_is_needed() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_999)), now).unwrap();
    let (server, laptop) = (world.device("ann", "server"), world.device("ann", "laptop"));
    drop(world.lease(laptop.id));
    let _kept = world.lease(server.id);
    let now = world.tick();
    // Blocks of both addresses: the server's is one of the first layout still.
    world.store.set_nat(Some(&layout(&["192.0.2.1", "192.0.2.2"], 40_000..=40_999)), now).unwrap();
    drop(world.lease(laptop.id));
    let now = world.shift(2 * DAYS);
    world.store.roll(now).unwrap();
    let cut = world.tick();

    world.store.purge(cut).unwrap();

    assert_eq!(world.number("SELECT count(*) FROM epochs"), 2);
    base(&world);
    world.meddle("DROP TRIGGER epochs_stay; UPDATE epochs SET started = started + 1 WHERE seq = (SELECT min(seq) FROM epochs)").unwrap();
    assert!(matches!(world.store.verify_trail(|_| ()).unwrap(), TrailCheck::Broken { .. }));
}

#[test]
fn a_crash_between_base_and_deletion_is_made_good() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    for _ in 0..5 {
        drop(world.lease(device));
    }
    let cut = world.tick();
    let prefix = world.store.prefix(cut).unwrap();
    world.store.write(Durability::Now, |sql| sql.set_trail_base(prefix.last)).unwrap();
    assert!(matches!(world.store.verify_trail(|_| ()).unwrap(), TrailCheck::Intact { records: 0, .. }));

    world.store.purge(cut).unwrap();

    assert_eq!(world.number("SELECT count(*) FROM leases"), 0);
    base(&world);
}
