//! What the database itself refuses, whatever the code above it does.

use super::*;

#[test]
fn the_database_itself_refuses_leases_that_overlap_or_come_too_late() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let lease = world.lease(laptop);
    let insert = |world: &World, place: &str, device: DeviceId, v4: &str, v6: &str, started: &str| {
        world.meddle(&format!(
            "INSERT INTO leases (seq, id, gateway_id, device_id, session_id, inner4, inner6, started, hash) \
             SELECT {place}, id, gateway_id, '{device}', session_id, {v4}, {v6}, {started}, hash FROM leases"
        ))
    };
    let (after, fresh) = ("seq + 1000", "'10.88.0.9'");

    for (place, device, v4, v6, refused) in [
        (after, phone, "inner4", "NULL", "inner4 would overlap"),
        (after, phone, "NULL", "inner6", "inner6 would overlap"),
        (after, laptop, fresh, "NULL", "one open lease"),
        ("seq - 1", phone, fresh, "NULL", "in the order"),
        ("NULL", phone, fresh, "NULL", "in the order"),
    ] {
        let fault = insert(&world, place, device, v4, v6, "started").unwrap_err();
        assert!(fault.contains(refused), "{fault}");
    }

    let now = world.tick();
    lease.end(now).unwrap();
    for (v4, v6) in [("inner4", "NULL"), ("NULL", "inner6")] {
        let fault = insert(&world, after, phone, v4, v6, "ended - 1").unwrap_err();
        assert!(fault.contains("would overlap"), "{fault}");
    }
    insert(&world, after, phone, "inner4", "inner6", "ended").unwrap();
}

#[test]
fn a_lease_that_took_no_time_does_not_hide_the_open_one_after_it() {
    let mut world = World::with_pools(&["10.88.0.0/30"], &["fd88::/64"]);
    let device = world.device("ann", "laptop").id;
    let (session, now) = (world.session(device).id, world.tick());
    for _ in 0..2 {
        world.store.lease(&request(device, session, now)).unwrap().end(now).unwrap();
    }
    let _open = world.store.lease(&request(device, session, now)).unwrap();

    let other = world.device("ann", "phone").id;
    for family in ["inner4", "inner6"] {
        let sql = format!(
            "INSERT INTO leases (seq, id, gateway_id, device_id, session_id, {family}, started, hash) \
             SELECT seq + 1, id, gateway_id, '{other}', session_id, {family}, started, hash FROM leases \
             WHERE ended IS NULL"
        );
        assert!(world.meddle(&sql).unwrap_err().contains("would overlap"));
    }
    world.store.set_pools(pools(&["10.88.0.0/30"], &["fd88::/64"])).unwrap();
    let session = world.session(other).id;
    assert!(matches!(world.store.lease(&request(other, session, now)), Err(LeaseFault::Full(_))));
    let found = world.store.leases_of_address("10.88.0.2".parse().unwrap(), now, now).unwrap();
    assert_eq!((found.len(), found[0].ended), (3, None));
}
