mod schema;

use std::collections::HashMap;
use std::thread;

use adit_plan::pool::{Inner, Pools};
use proptest::prelude::*;

use crate::sqlite::Durability;
use crate::testing::{World, assert_sound, pools, start};
use crate::{
    DeviceId, Lease, LeaseFault, LeaseRequest, Page, Recovered, SessionId, Store, StoreFault, Timestamp,
};

fn request(device: DeviceId, session: SessionId, now: Timestamp) -> LeaseRequest {
    LeaseRequest { device, session, now }
}

fn inner(v4: &str, v6: &str) -> Inner {
    Inner { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

#[test]
fn a_lease_is_written_when_it_begins_and_when_it_ends() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let device = world.device("ann", "laptop");
    let lease = world.lease(device.id);
    let (session, started, now) = (lease.session(), lease.started(), world.tick());
    let record = |world: &World| world.store.leases(device.id, &Page::default()).unwrap().items[0];

    assert_eq!(lease.inner(), inner("10.88.0.2", "fd88::2"));
    let open = record(&world);
    assert_eq!((open.session, open.started, open.ended), (session, started, None));
    assert_eq!((open.inner, open.gateway), (lease.inner(), world.store.gateway()));

    lease.end(now).unwrap();
    assert_eq!(record(&world).ended, Some(now));
}

#[test]
fn store_and_lease_may_go_to_any_thread() {
    fn anywhere<T: Send + Sync + 'static>() {}

    anywhere::<Store>();
    anywhere::<Lease>();
}

#[test]
fn a_dropped_lease_ends_at_the_latest_time_told() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    let lease = world.lease(device.id);
    let now = world.tick();
    world.store.heartbeat(now).unwrap();

    drop(lease);

    let record = world.store.leases(device.id, &Page::default()).unwrap().items[0];
    assert_eq!(record.ended, Some(now));
    assert_eq!(world.lease(device.id).inner(), record.inner);
}

#[test]
fn a_device_gets_its_old_addresses_back_even_after_a_restart() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let devices = ["laptop", "phone", "tablet"].map(|name| world.device("ann", name).id);
    let given = devices.map(|device| world.lease(device).inner());

    let mut world = world.after_a_kill();
    let now = world.tick();
    world.store.recover(now, 0).unwrap();
    world.store.set_pools(pools(&["10.88.0.0/24"], &["fd88::/64"])).unwrap();

    let again = [2, 0, 1].map(|place| world.lease(devices[place]).inner());
    assert_eq!(again, [given[2], given[0], given[1]]);
}

#[test]
fn a_full_pool_is_named_and_the_device_has_nothing() {
    let mut world = World::with_pools(&["10.88.0.0/30"], &["fd88::/64"]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let held = world.lease(laptop);
    let (session, now) = (world.session(phone).id, world.tick());

    let fault = world.store.lease(&request(phone, session, now)).unwrap_err();
    let text = fault.to_string();
    assert!(text.starts_with("the pool 10.88.0.0/30 is full: its only address is leased"), "{text}");
    assert_eq!(world.store.leases(phone, &Page::default()).unwrap().items, []);

    held.end(now).unwrap();
    assert!(world.store.lease(&request(phone, session, now)).is_ok());
}

#[test]
fn without_pools_there_is_no_lease() {
    let mut world = World::new();
    let device = world.device("ann", "laptop").id;
    let (session, now) = (world.session(device).id, world.tick());

    assert!(matches!(world.store.lease(&request(device, session, now)), Err(LeaseFault::NoPools)));
}

#[test]
fn a_lease_needs_an_open_session_of_its_device() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let (session, now) = (world.session(laptop).id, world.tick());

    assert!(matches!(world.store.lease(&request(phone, session, now)), Err(LeaseFault::NoSession)));
    world.store.close_session(session, now, "done").unwrap();
    assert!(matches!(world.store.lease(&request(laptop, session, now)), Err(LeaseFault::NoSession)));
    assert_eq!(world.number("SELECT count(*) FROM leases"), 0);
}

#[test]
fn a_new_session_takes_the_lease_over_without_a_gap() {
    let mut world = World::with_pools(&["10.88.0.0/30"], &["fd88::/64"]);
    let device = world.device("ann", "laptop").id;
    let old = world.lease(device);

    let new = world.lease(device);

    assert_eq!(new.inner(), old.inner());
    let records = world.store.leases(device, &Page::default()).unwrap().items;
    assert_eq!(records[1].ended, Some(records[0].started));
    assert_eq!(records[0].ended, None);
    let now = world.tick();
    old.end(now).unwrap();
    let records = world.store.leases(device, &Page::default()).unwrap().items;
    assert_eq!(records[0].ended, None, "the older handle has nothing to end any more");
    let other = world.device("ann", "phone").id;
    let session = world.session(other).id;
    assert!(matches!(world.store.lease(&request(other, session, now)), Err(LeaseFault::Full(_))));
}

#[test]
fn a_lease_moves_to_another_session_in_an_instant() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    let mut lease = world.lease(device);
    let (first, given) = (lease.session(), lease.inner());
    let (second, now) = (world.session(device).id, world.tick());

    lease.transfer(second, now).unwrap();

    assert_eq!((lease.session(), lease.inner(), lease.started()), (second, given, now));
    let records = world.store.leases(device, &Page::default()).unwrap().items;
    assert_eq!((records[1].session, records[1].ended), (first, Some(now)));
    assert_eq!((records[0].session, records[0].started, records[0].ended), (second, now, None));
}

#[test]
fn a_failed_transfer_leaves_the_lease_as_it_was() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let mut lease = world.lease(laptop);
    let (session, given) = (lease.session(), lease.inner());
    let (strange, now) = (world.session(phone).id, world.tick());

    assert!(matches!(lease.transfer(strange, now), Err(LeaseFault::NoSession)));
    assert_eq!((lease.session(), lease.inner()), (session, given));

    let newer = world.lease(laptop);
    assert!(matches!(lease.transfer(newer.session(), now), Err(LeaseFault::Ended)));
    let open = world.number("SELECT count(*) FROM leases WHERE ended IS NULL");
    assert_eq!(open, 1);
}

#[test]
fn leases_do_not_overlap_although_the_clock_is_set_back() {
    let mut world = World::with_pools(&["10.88.0.0/30"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let lease = world.lease(laptop);
    let ended = world.tick();
    lease.end(ended).unwrap();
    world.shift(-3_600_000);

    let next = world.lease(phone);

    assert_eq!(next.started(), ended);
    let early = world.tick();
    next.end(early).unwrap();
    assert_sound(&world.store);
}

#[test]
fn recovery_closes_the_journal_at_the_last_heartbeat() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let before = world.lease(laptop);
    let heartbeat = world.tick();
    world.store.heartbeat(heartbeat).unwrap();
    let after = world.lease(phone);
    let mut world = world.after_a_kill();
    let now = world.shift(60_000);

    let recovered = world.store.recover(now, 0).unwrap();

    assert_eq!(recovered, Recovered { sessions: 2, leases: 2, at: heartbeat });
    let ended = |device| world.store.leases(device, &Page::default()).unwrap().items[0].ended;
    assert_eq!(ended(laptop), Some(heartbeat));
    assert_eq!(ended(phone), Some(after.started()), "not before it began");
    let session = world.store.session(before.session()).unwrap().unwrap();
    assert_eq!((session.ended, session.reason.as_deref()), (Some(heartbeat), Some("gateway stopped")));
    assert_eq!(world.store.recover(now, 0).unwrap(), Recovered { sessions: 0, leases: 0, at: now });
}

#[test]
fn recovery_leaves_room_for_what_passed_after_the_last_heartbeat() {
    for (shift, expected) in [(60_000, 10_000), (4_000, 4_000)] {
        let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
        let device = world.device("ann", "laptop").id;
        let _lease = world.lease(device);
        let heartbeat = world.tick();
        world.store.heartbeat(heartbeat).unwrap();
        let mut world = world.after_a_kill();
        let now = world.shift(shift);
        let ended = world.store.recover(now, 10_000).unwrap().at;
        let passed = ended.as_millis() - heartbeat.as_millis();
        assert!(passed == expected || (ended == now && expected == shift), "{passed} after {shift}");
        assert_eq!(world.store.leases(device, &Page::default()).unwrap().items[0].ended, Some(ended));
    }
}

#[test]
fn a_heartbeat_from_the_future_closes_nothing_in_the_future() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    let lease = world.lease(device);
    let wrong = world.shift(1_000_000_000);
    world.store.heartbeat(wrong).unwrap();
    let mut world = world.after_a_kill();
    let now = world.shift(-900_000_000);

    let recovered = world.store.recover(now, 0).unwrap();

    assert_eq!(recovered.at, now);
    assert_eq!(world.store.leases(device, &Page::default()).unwrap().items[0].ended, Some(now));
    assert!(lease.started() < now);
}

#[test]
fn a_handle_that_outlives_recovery_ends_nothing() {
    let mut world = World::with_pools(&["10.88.0.0/30"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let stale = world.lease(laptop);
    let now = world.tick();
    world.store.recover(now, 0).unwrap();

    let next = world.lease(phone);
    drop(stale);

    let records = world.store.leases(phone, &Page::default()).unwrap().items;
    assert_eq!((records[0].inner, records[0].ended), (next.inner(), None));
    let session = world.session(laptop).id;
    assert!(matches!(world.store.lease(&request(laptop, session, now)), Err(LeaseFault::Full(_))));
}

#[test]
fn changed_pools_leave_open_leases_alone() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let old = world.lease(laptop);

    world.store.set_pools(pools(&["10.90.0.0/24"], &["fd90::/64"])).unwrap();

    assert_eq!(old.inner(), inner("10.88.0.2", ""));
    assert_eq!(world.lease(phone).inner(), inner("10.90.0.2", "fd90::2"));
    assert_eq!(world.lease(laptop).inner(), inner("10.90.0.3", "fd90::3"), "the next session moves");
    drop(old);
    assert_sound(&world.store);
}

#[test]
fn who_had_an_address_is_answered_for_any_moment() {
    let mut world = World::with_pools(&["10.88.0.0/30"], &["fd88::/64"]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("bob", "phone").id);
    let first = world.lease(laptop);
    let (began, ended) = (first.started(), world.tick());
    first.end(ended).unwrap();
    let idle = world.tick();
    let second = world.lease(phone);
    let later = world.tick();

    let who = |address: &str, at: Timestamp| -> Vec<DeviceId> {
        let found = world.store.leases_of_address(address.parse().unwrap(), at, at).unwrap();
        found.iter().map(|lease| lease.device).collect()
    };
    for address in ["10.88.0.2", "fd88::2"] {
        assert_eq!(who(address, Timestamp::default()), []);
        assert_eq!(who(address, began), [laptop]);
        assert_eq!(who(address, ended), [laptop], "at the boundary it is still named");
        assert_eq!(who(address, idle), []);
        assert_eq!(who(address, later), [phone]);
    }
    let all = world.store.leases_of_address("10.88.0.2".parse().unwrap(), began, later).unwrap();
    assert_eq!(all.iter().map(|lease| lease.device).collect::<Vec<_>>(), [phone, laptop]);
    let third = world.lease(phone);
    let moved = third.started();
    let both = world.store.leases_of_address("10.88.0.2".parse().unwrap(), moved, moved).unwrap();
    assert_eq!(
        both.iter().map(|lease| lease.session).collect::<Vec<_>>(),
        [third.session(), second.session()]
    );
}

#[test]
fn leases_are_listed_newest_first_page_by_page() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    let sessions: Vec<SessionId> = (0..5).map(|_| world.lease(device).session()).collect();

    let first = world.store.leases(device, &Page::after(None, 3)).unwrap();
    let rest = world.store.leases(device, &Page::after(first.next.clone(), 3)).unwrap();

    let listed: Vec<_> = first.items.iter().chain(&rest.items).rev().map(|lease| lease.session).collect();
    assert_eq!((listed, rest.next), (sessions, None));
}

#[test]
fn a_full_disk_is_named_and_nothing_is_half_done() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    let pages = world.number("PRAGMA page_count");
    let (session, now) = (world.session(device).id, world.tick());
    world.number(&format!("PRAGMA max_page_count = {pages}"));

    let fault = loop {
        match world.store.lease(&request(device, session, now)) {
            Ok(lease) => drop(lease),
            Err(fault) => break fault,
        }
    };

    assert!(matches!(fault, LeaseFault::Store(StoreFault::DiskFull { .. })), "{fault}");
    assert_eq!(world.number("SELECT count(*) FROM leases WHERE ended IS NULL"), 0);
    world.number("PRAGMA max_page_count = 1000000");
    let lease = world.store.lease(&request(device, session, now)).unwrap();
    assert_eq!(lease.inner(), inner("10.88.0.2", ""));
}

#[test]
fn an_end_that_cannot_be_written_keeps_the_addresses_from_others() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("ann", "phone").id);
    let lease = world.lease(laptop);
    let given = lease.inner();
    world
        .meddle("CREATE TRIGGER stuck BEFORE UPDATE ON leases BEGIN SELECT RAISE(ABORT, 'stuck'); END")
        .unwrap();

    drop(lease);

    let other = world.lease(phone);
    assert_ne!(other.inner(), given);
    world.meddle("DROP TRIGGER stuck").unwrap();
    assert_eq!(world.lease(laptop).inner(), given, "its device can still have them");
    drop(other);
    assert_sound(&world.store);
}

#[test]
fn a_panic_in_one_call_does_not_harm_the_next() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    let store = world.store.clone();
    let panicked = thread::spawn(move || {
        let write = store.write(Durability::Soon, |sql| {
            sql.end_all_sessions(Timestamp::default(), "half done")?;
            sql.set_removed(crate::UserId::random()?, Timestamp::default())?;
            if true {
                panic!("in the middle");
            }
            Ok::<_, StoreFault>(())
        });
        write.unwrap();
    });
    assert!(panicked.join().is_err());

    let lease = world.lease(device);

    assert_eq!(lease.inner(), inner("10.88.0.2", ""));
}

#[test]
fn many_threads_lease_at_once_and_no_address_is_given_twice() {
    let mut world = World::with_pools(&["10.88.0.0/28"], &["fd88::/64"]);
    let devices: Vec<DeviceId> =
        (0..16).map(|number| world.device("ann", &format!("d{number}")).id).collect();
    let clock = &std::sync::atomic::AtomicI64::new(world.tick().as_millis());
    let store = &world.store;
    let tick = || Timestamp::from_millis(clock.fetch_add(1, std::sync::atomic::Ordering::Relaxed));

    let full: u32 = thread::scope(|scope| {
        let threads: Vec<_> = (0..8_usize)
            .map(|thread| {
                // Each device is used by two threads, and there are more devices than addresses.
                let devices: Vec<DeviceId> =
                    devices.iter().copied().cycle().skip(thread * 4).take(8).collect();
                scope.spawn(move || {
                    let (mut held, mut full): (Vec<Lease>, u32) = (Vec::new(), 0);
                    for round in 0..100 {
                        let device = devices[round % devices.len()];
                        let session = store.open_session(&start(device, tick())).unwrap().id;
                        match store.lease(&request(device, session, tick())) {
                            Ok(lease) => held.push(lease),
                            Err(LeaseFault::Full(_)) => full += 1,
                            Err(fault) => panic!("{fault}"),
                        }
                        if round % 3 == 0 && !held.is_empty() {
                            held.remove(0).end(tick()).unwrap();
                        }
                        store.close_session(session, tick(), "done").unwrap();
                    }
                    full
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });

    assert_sound(store);
    assert_eq!(world.number("SELECT count(*) FROM leases WHERE ended IS NULL"), 0);
    assert_eq!(world.number("SELECT count(*) FROM leases") + i64::from(full), 800);
}

#[derive(Debug, Clone)]
enum Step {
    Connect(usize),
    End(usize),
    Drop(usize),
    Transfer(usize),
    Heartbeat,
    Crash,
    Repool(usize),
    Clock(i64),
}

const DEVICES: usize = 6;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..DEVICES).prop_map(Step::Connect),
        4 => (0..DEVICES).prop_map(Step::End),
        2 => (0..DEVICES).prop_map(Step::Drop),
        3 => (0..DEVICES).prop_map(Step::Transfer),
        2 => Just(Step::Heartbeat),
        1 => Just(Step::Crash),
        1 => (0..3_usize).prop_map(Step::Repool),
        2 => (-5_000..5_000_i64).prop_map(Step::Clock),
    ]
}

/// What should be: who holds which addresses, and who had which last.
struct Model {
    pools: Pools,
    open: HashMap<usize, Lease>,
    last: HashMap<usize, Inner>,
}

impl Model {
    fn taken(&self, mine: usize, address: std::net::IpAddr) -> bool {
        self.open.iter().any(|(&device, lease)| {
            let Inner { v4, v6 } = lease.inner();
            device != mine && (v4.map(Into::into) == Some(address) || v6.map(Into::into) == Some(address))
        })
    }

    /// Checks the addresses that a device was given.
    fn check(&self, device: usize, given: Inner) -> Result<(), TestCaseError> {
        let last = self.last.get(&device).copied().unwrap_or_default();
        let families = [
            (
                given.v4.map(std::net::IpAddr::from),
                last.v4.map(std::net::IpAddr::from),
                self.pools.capacity().v4,
            ),
            (
                given.v6.map(std::net::IpAddr::from),
                last.v6.map(std::net::IpAddr::from),
                self.pools.capacity().v6,
            ),
        ];
        for (given, last, capacity) in families {
            let Some(given) = given else {
                prop_assert_eq!(capacity, 0, "no address although there is a pool");
                continue;
            };
            prop_assert!(self.pools.leases(given), "{given} is reserved or outside the pools");
            prop_assert!(!self.taken(device, given), "{given} is somebody else's");
            if let Some(last) = last.filter(|&last| self.pools.leases(last) && !self.taken(device, last)) {
                prop_assert_eq!(given, last, "the old address was free");
            }
        }
        Ok(())
    }

    /// Whether every address of some family is leased by others.
    fn full(&self, device: usize) -> bool {
        let others = |v4: bool| {
            let inner =
                self.open.iter().filter(|(other, _)| **other != device).map(|(_, lease)| lease.inner());
            let addresses = inner.filter_map(|inner| {
                if v4 { inner.v4.map(std::net::IpAddr::from) } else { inner.v6.map(std::net::IpAddr::from) }
            });
            addresses.filter(|&address| self.pools.leases(address)).count() as u128
        };
        let capacity = self.pools.capacity();
        (capacity.v4 > 0 && others(true) == capacity.v4) || (capacity.v6 > 0 && others(false) == capacity.v6)
    }
}

fn layout(number: usize) -> Pools {
    match number {
        0 => pools(&["10.88.0.0/29"], &["fd88::/64"]),
        1 => pools(&["10.88.0.0/28"], &[]),
        _ => pools(&["10.88.0.0/30", "10.90.0.0/30"], &["fd88::/125"]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_journal_is_sound_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let devices: Vec<DeviceId> =
            (0..DEVICES).map(|number| world.device("ann", &format!("d{number}")).id).collect();
        let mut model = Model { pools: layout(0), open: HashMap::new(), last: HashMap::new() };
        world.store.set_pools(model.pools.clone()).unwrap();

        for step in steps {
            match step {
                Step::Connect(device) => {
                    let (session, now) = (world.session(devices[device]).id, world.shift(1));
                    match world.store.lease(&request(devices[device], session, now)) {
                        Ok(lease) => {
                            model.check(device, lease.inner())?;
                            model.last.insert(device, lease.inner());
                            model.open.insert(device, lease);
                        }
                        Err(LeaseFault::Full(_)) => prop_assert!(model.full(device), "there was room"),
                        Err(fault) => return Err(TestCaseError::fail(fault.to_string())),
                    }
                }
                Step::End(device) => {
                    let now = world.shift(1);
                    if let Some(lease) = model.open.remove(&device) {
                        lease.end(now).unwrap();
                    }
                }
                Step::Drop(device) => drop(model.open.remove(&device)),
                Step::Transfer(device) => {
                    let (session, now) = (world.session(devices[device]).id, world.shift(1));
                    if let Some(lease) = model.open.get_mut(&device) {
                        let before = lease.inner();
                        lease.transfer(session, now).unwrap();
                        prop_assert_eq!(lease.inner(), before);
                    }
                }
                Step::Heartbeat => {
                    let now = world.tick();
                    world.store.heartbeat(now).unwrap();
                }
                Step::Crash => {
                    let crashed = world.after_a_kill();
                    model.open.clear();
                    world = crashed;
                    let now = world.tick();
                    let recovered = world.store.recover(now, 0).unwrap();
                    prop_assert!(recovered.at <= now);
                    world.store.set_pools(model.pools.clone()).unwrap();
                }
                Step::Repool(number) => {
                    model.pools = layout(number);
                    world.store.set_pools(model.pools.clone()).unwrap();
                }
                Step::Clock(millis) => drop(world.shift(millis)),
            }
            assert_sound(&world.store);
            let open = world.number("SELECT count(*) FROM leases WHERE ended IS NULL");
            prop_assert_eq!(open, model.open.len() as i64);
        }
        world.store.check().unwrap();
    }
}
