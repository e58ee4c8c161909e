//! Random histories beside a model that notes who has which ports when.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::testing::{assert_sound, layout_of, pools};
use crate::{AdmissionFault, LeaseFault, Page, Replanned, TrailCheck};

const DEVICES: usize = 6;
const DAY: i64 = 24 * 3_600_000;

#[derive(Debug, Clone)]
enum Step {
    Connect(usize),
    End(usize),
    Transfer(usize),
    Replan(usize),
    Release(usize),
    Heartbeat,
    Crash,
    Roll,
    Purge,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..DEVICES).prop_map(Step::Connect),
        5 => (0..DEVICES).prop_map(Step::End),
        2 => (0..DEVICES).prop_map(Step::Transfer),
        4 => (0..6_usize).prop_map(Step::Replan),
        2 => (0..8_usize).prop_map(Step::Release),
        1 => Just(Step::Heartbeat),
        1 => Just(Step::Crash),
        1 => Just(Step::Roll),
        1 => Just(Step::Purge),
    ]
}

fn plan(number: usize) -> Option<Layout> {
    Some(match number {
        0 => layout(&["192.0.2.1"], 40_000..=40_511),
        1 => layout(&["192.0.2.1"], 40_032..=40_543),
        2 => layout(&["192.0.2.2", "192.0.2.1"], 40_000..=40_255),
        3 => layout(&["192.0.2.1"], 40_000..=40_127),
        4 => layout_of(&["192.0.2.1"], 30_000..=46_255, Assign::Static),
        _ => return None,
    })
}

/// Ports that were a device's for a time.
#[derive(Debug, Clone, Copy)]
struct Had {
    device: usize,
    block: Block,
    from: Timestamp,
    to: Option<Timestamp>,
}

#[derive(Default)]
struct Model {
    open: HashMap<usize, Lease>,
    had: Vec<Had>,
    /// Before this, records may be gone.
    purged: Option<Timestamp>,
}

impl Model {
    fn end(&mut self, device: usize, block: Option<Block>, at: Timestamp) {
        for had in self.had.iter_mut().filter(|had| had.device == device && had.to.is_none()) {
            if block.is_none_or(|block| block == had.block) {
                had.to = Some(at.max(had.from));
            }
        }
    }

    fn begin(&mut self, device: usize, block: Option<Block>, from: Timestamp) {
        self.had.extend(block.map(|block| Had { device, block, from, to: None }));
    }

    fn replanned(&mut self, done: &Replanned, devices: &[DeviceId], now: Timestamp) {
        let place = |device| devices.iter().position(|&other| other == device).unwrap();
        for homeless in &done.homeless {
            let range = homeless.block.filter(|_| !homeless.ends);
            self.end(place(homeless.owner.device), range, now);
        }
        for moved in &done.moved {
            self.begin(place(moved.owner.device), Some(moved.to), now);
        }
    }

    /// Compares the trace with the model at every time at which something happened, and between, at edges of all blocks.
    fn check(&self, world: &World, devices: &[DeviceId]) -> Result<(), TestCaseError> {
        let mut times: BTreeSet<Timestamp> = BTreeSet::new();
        let mut ports: BTreeSet<(Ipv4Addr, u16)> = BTreeSet::new();
        for had in &self.had {
            for time in [Some(had.from), had.to].into_iter().flatten() {
                times.extend([after(time, -1), time, after(time, 1)]);
            }
            let Block { address, from, to } = had.block;
            ports.extend([from, to].map(|port| (address, port)));
        }
        for &at in times.iter().filter(|&&at| self.purged.is_none_or(|purged| at >= purged)) {
            for &(address, port) in &ports {
                let expected: BTreeSet<DeviceId> = self
                    .had
                    .iter()
                    .filter(|had| had.block.contains(address, port))
                    .filter(|had| had.from <= at && had.to.is_none_or(|to| to >= at))
                    .map(|had| devices[had.device])
                    .collect();
                let trace = world.store.trace(&query(at, &address.to_string(), port)).unwrap();
                let nat = trace.matches.iter().filter(|found| found.kind == TraceKind::Nat);
                let found: Vec<DeviceId> = nat.map(|found| found.owner.as_ref().unwrap().device).collect();
                prop_assert_eq!(
                    found.iter().copied().collect::<BTreeSet<_>>(),
                    expected,
                    "{}:{} {:?}",
                    address,
                    port,
                    at
                );
            }
        }
        // But at an instant of change a port is one device's, whenever it is anybody's.
        for (place, one) in self.had.iter().enumerate() {
            for other in self.had.iter().take(place).filter(|other| other.device != one.device) {
                let apart =
                    one.to.is_some_and(|to| to <= other.from) || other.to.is_some_and(|to| to <= one.from);
                prop_assert!(apart || !one.block.overlaps(&other.block), "{one:?} {other:?}");
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_port_is_traced_right_whatever_happened(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
        let devices: Vec<DeviceId> =
            (0..DEVICES).map(|number| world.device("ann", &format!("d{number}")).id).collect();
        let mut model = Model::default();
        let mut current = plan(0);
        let now = world.tick();
        world.store.set_nat(current.as_ref(), now).unwrap();

        for step in steps {
            match step {
                Step::Connect(device) => {
                    let (session, now) = (world.session(devices[device]).id, world.tick());
                    match world.store.lease(&LeaseRequest { device: devices[device], session, now }) {
                        Ok(lease) => {
                            let held = model.had.iter().any(|had| {
                                had.device == device && had.to.is_none() && Some(had.block) == lease.block()
                            });
                            // What it left stays its own for as long as it has the address.
                            if !held {
                                model.begin(device, lease.block(), lease.started());
                            }
                            prop_assert_eq!(lease.block().is_some(), current.is_some());
                            model.open.insert(device, lease);
                        }
                        Err(LeaseFault::NoBlock(_)) => {}
                        Err(fault) => return Err(TestCaseError::fail(fault.to_string())),
                    }
                }
                Step::End(device) => {
                    let now = world.tick();
                    if let Some(lease) = model.open.remove(&device) {
                        lease.end(now).unwrap();
                        model.end(device, None, now);
                    }
                }
                Step::Transfer(device) => {
                    let (session, now) = (world.session(devices[device]).id, world.tick());
                    if let Some(lease) = model.open.get_mut(&device) {
                        let before = lease.block();
                        lease.transfer(session, now).unwrap();
                        prop_assert_eq!(lease.block(), before);
                    }
                }
                Step::Replan(number) => {
                    current = plan(number);
                    let now = world.tick();
                    if let Some(layout) = &current {
                        let planned = world.store.plan_nat(layout).unwrap();
                        let done = world.store.set_nat(Some(layout), now).unwrap();
                        prop_assert_eq!(&planned, &done);
                        model.replanned(&done, &devices, now);
                    } else {
                        world.store.set_nat(None, now).unwrap();
                        (0..DEVICES).for_each(|device| model.end(device, None, now));
                    }
                    for (device, lease) in &model.open {
                        let owned = |block| model.had.iter().any(|had| {
                            had.device == *device && had.block == block && had.to.is_none()
                        });
                        prop_assert!(lease.block().is_none_or(owned), "{lease:?}");
                    }
                    // A lease without a block ends, as the gateway would end it.
                    let without: Vec<usize> = model.open.iter()
                        .filter(|(_, lease)| current.is_some() && lease.block().is_none())
                        .map(|(&device, _)| device)
                        .collect();
                    for device in without {
                        let now = world.tick();
                        model.open.remove(&device).unwrap().end(now).unwrap();
                    }
                }
                Step::Release(place) => {
                    let left = world.store.quarantined().unwrap();
                    let now = world.tick();
                    if let Some(left) = left.get(place) {
                        prop_assert!(world.store.release_block(left.block, left.owner.inner, now).unwrap());
                        let device = devices.iter().position(|&device| device == left.owner.device).unwrap();
                        let still = model.open.get(&device).and_then(Lease::block) == Some(left.block);
                        if !still {
                            model.end(device, Some(left.block), now);
                        }
                    }
                }
                Step::Heartbeat => {
                    let now = world.tick();
                    world.store.heartbeat(now).unwrap();
                }
                Step::Crash => {
                    world = world.after_a_kill();
                    let now = world.tick();
                    let at = world.store.recover(now, 0).unwrap().at;
                    for (device, lease) in std::mem::take(&mut model.open) {
                        // A handle of the store that is gone. What began after the last heartbeat took no time.
                        std::mem::forget(lease);
                        let last = world.store.leases(devices[device], &Page::default()).unwrap().items[0];
                        prop_assert_eq!(last.ended, Some(at.max(last.started)));
                        model.end(device, None, at.max(last.started));
                    }
                    world.store.set_pools(pools(&["10.88.0.0/24"], &["fd88::/64"])).unwrap();
                    prop_assert!(!world.store.set_nat(current.as_ref(), now).unwrap().changed);
                }
                Step::Roll => {
                    let now = world.shift(DAY / 2);
                    world.store.roll(now).unwrap();
                }
                Step::Purge => {
                    let cut = world.tick();
                    world.store.purge(cut).unwrap();
                    model.purged = Some(cut);
                }
            }
            assert_sound(&world.store);
        }
        model.check(&world, &devices)?;
        let check = world.store.verify_trail(|_| ()).unwrap();
        prop_assert!(matches!(check, TrailCheck::Intact { .. }), "{check:?}");
        world.store.check().unwrap();
    }
}

#[test]
fn who_is_admitted_together_gets_blocks_or_words() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_127)), now).unwrap();
    let certificates: Vec<_> = (1..=3_u8)
        .map(|number| {
            let device = world.device("ann", &format!("d{number}"));
            world.certificate(&device, number)
        })
        .collect();
    let now = world.tick();
    let admissions: Vec<_> = certificates
        .iter()
        .map(|certificate| crate::Admission {
            serial: &certificate.serial,
            key: &certificate.key,
            protocol: "test",
            identity: "default",
            transport: "udp",
            now,
        })
        .collect();

    let admitted = world.store.admit(&admissions).unwrap();

    let blocks: BTreeSet<_> =
        admitted.iter().flatten().map(|admitted| admitted.lease.block().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    let fault = admitted[2].as_ref().unwrap_err();
    assert!(matches!(fault, AdmissionFault::NoLease { fault: LeaseFault::NoBlock(_), .. }));
    assert!(fault.to_string().starts_with("ann/d3 gets no ports: no free port block"), "{fault}");
    assert_eq!(world.number("SELECT count(*) FROM sessions"), 2);
}
