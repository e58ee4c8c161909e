mod model;

use adit_plan::nat::{Assign, Forwards, Size, Wanted};

use super::*;
use crate::testing::{World, layout};
use crate::{Change, Lease, LeaseRequest, NewDevice, NewForward, SessionStart};

fn query(at: Timestamp, address: &str, port: u16) -> TraceQuery {
    let address = address.parse().unwrap();
    TraceQuery { at, address, port: Some(port), protocol: None, tolerance_ms: 0 }
}

fn world() -> World {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_511)), now).unwrap();
    world
}

fn devices(trace: &Trace) -> Vec<DeviceId> {
    trace.matches.iter().filter_map(|found| Some(found.owner.as_ref()?.device)).collect()
}

fn after(at: Timestamp, millis: i64) -> Timestamp {
    Timestamp::from_millis(at.as_millis() + millis)
}

#[test]
fn a_match_says_everything() {
    let mut world = world();
    let device = world.device("ann", "laptop");
    let certificate = world.certificate(&device, 7);
    let now = world.tick();
    let start = SessionStart {
        certificate: Some((&certificate.serial, &certificate.key)),
        ..crate::testing::start(device.id, now)
    };
    let session = world.store.open_session(&start).unwrap().id;
    let lease = world.store.lease(&LeaseRequest { device: device.id, session, now }).unwrap();
    let (id, block, inner) = (lease.id(), lease.block().unwrap(), lease.inner());
    let ended = world.tick();
    lease.end(ended).unwrap();

    let trace = world.store.trace(&query(after(now, 10), "192.0.2.1", 40_500)).unwrap();

    let owner = TraceOwner {
        user: device.user,
        user_name: "ann".parse().unwrap(),
        device: device.id,
        device_name: "laptop".parse().unwrap(),
        certificate: Some(certificate.serial),
        inner: inner.v4.unwrap().into(),
        session,
        lease: id,
    };
    let (kind, gateway, from, to) = (TraceKind::Nat, world.store.gateway(), now, Some(ended));
    let found = TraceMatch { kind, gateway, owner: Some(owner), block: Some(block), from, to };
    assert_eq!(trace.matches, [found]);
    let epoch = trace.epoch.unwrap();
    assert_eq!((epoch.seq, epoch.to, epoch.digest.len()), (world.store.epochs()[0].seq, None, 64));
    assert_eq!(trace.clock_uncertainty_ms, 0);
}

#[test]
fn outside_of_time_port_and_address_there_is_nobody() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let lease = world.lease(device);
    let (from, to) = (lease.started(), world.tick());
    lease.end(to).unwrap();

    let found = |at, address, port| devices(&world.store.trace(&query(at, address, port)).unwrap());
    assert_eq!(found(from, "192.0.2.1", 40_511), [device]);
    assert_eq!(found(to, "192.0.2.1", 40_448), [device], "at the boundary it is named");
    for (at, address, port) in [
        (after(from, -1), "192.0.2.1", 40_500),
        (after(to, 1), "192.0.2.1", 40_500),
        (Timestamp::from_millis(i64::MIN), "192.0.2.1", 40_500),
        (Timestamp::from_millis(i64::MAX), "192.0.2.1", 40_500),
        (from, "192.0.2.1", 40_447),
        (from, "192.0.2.1", 40_512),
        (from, "192.0.2.2", 40_500),
        (from, "198.51.100.1", 65_000),
        (from, "10.88.0.2", 40_500),
    ] {
        assert_eq!(found(at, address, port), [], "{at:?} {address} {port}");
    }
    let wide = TraceQuery { tolerance_ms: 2, ..query(after(to, 2), "192.0.2.1", 40_500) };
    assert_eq!(devices(&world.store.trace(&wide).unwrap()), [device]);
    let endless = TraceQuery { tolerance_ms: u64::MAX, ..wide };
    assert_eq!(devices(&world.store.trace(&endless).unwrap()), [device]);
}

#[test]
fn at_the_boundary_between_two_owners_both_are_named() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let now = world.tick();
    world.store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_063)), now).unwrap();
    let (laptop, phone) = (world.device("ann", "laptop").id, world.device("bob", "phone").id);
    let (first, session) = (world.lease(laptop), world.session(phone).id);
    let now = world.tick();
    first.end(now).unwrap();
    let _second = world.store.lease(&LeaseRequest { device: phone, session, now }).unwrap();

    let found = |at| devices(&world.store.trace(&query(at, "192.0.2.1", 40_000)).unwrap());
    assert_eq!(found(now), [phone, laptop]);
    assert_eq!(found(after(now, -1)), [laptop]);
    assert_eq!(found(after(now, 1)), [phone]);
}

#[test]
fn without_a_port_all_are_found_who_had_ports_of_the_address() {
    let mut world = world();
    let both = ["laptop", "phone"].map(|name| world.device("ann", name).id);
    let _leases = both.map(|device| world.lease(device));
    let at = world.tick();

    let trace = world.store.trace(&TraceQuery { port: None, ..query(at, "192.0.2.1", 1) }).unwrap();

    let mut found = devices(&trace);
    found.sort();
    let mut both = both.to_vec();
    both.sort();
    assert_eq!(found, both);
}

#[test]
fn a_forward_leads_to_its_device_while_it_has_a_lease() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let change = world.change();
    let ports = "30000-30009".parse().unwrap();
    let (protocol, port, to_port) = (ForwardProtocol::Tcp, Some(30_004), 22);
    let new = NewForward {
        device,
        protocols: &[protocol],
        port,
        to_port,
        expires: None,
        ports: &ports,
        per_user: 5,
    };
    let forward = world.store.add_forward(&change, &new).unwrap().remove(0);
    let before = world.tick();
    let lease = world.lease(device);
    let during = world.tick();
    let change = world.change();
    world.store.end_forward(&change, forward.id).unwrap();
    let later = world.tick();

    let traced = |query: &TraceQuery| world.store.trace(query).unwrap().matches;
    let asked = query(during, "203.0.113.7", 30_004);
    let found = traced(&asked);
    assert_eq!((found.len(), found[0].kind), (1, TraceKind::Forward));
    assert_eq!((found[0].from, found[0].to), (lease.started(), Some(change.now)));
    for other in [
        query(before, "203.0.113.7", 30_004),
        query(later, "203.0.113.7", 30_004),
        query(during, "203.0.113.7", 30_005),
        TraceQuery { protocol: Some(TraceProtocol::Udp), ..asked },
        TraceQuery { protocol: Some(TraceProtocol::Icmp), ..asked },
    ] {
        assert_eq!(traced(&other), [], "{other:?}");
    }
    assert_eq!(traced(&TraceQuery { protocol: Some(TraceProtocol::Tcp), ..asked }).len(), 1);
}

#[test]
fn forwards_count_on_the_addresses_of_the_layout_alone() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let forward =
        Forwards { addresses: vec!["192.0.2.7".parse().unwrap()], ports: "30000-30009".parse().unwrap() };
    let layout = Layout::new(&Wanted {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ports: 40_000..=40_511,
        size: Size::Ports(64),
        assign: Assign::Lease,
        pools: vec!["10.88.0.0/24".parse().unwrap()],
        forward: Some(forward),
        // What is forwarded and what leaves by blocks is no source port of the host, even in its range.
        host: 30_000..=65_535,
    });
    let now = world.tick();
    world.store.set_nat(Some(&layout.unwrap()), now).unwrap();
    let device = world.device("ann", "laptop").id;
    let (change, ports) = (world.change(), "30000-30009".parse().unwrap());
    let (protocol, port) = (ForwardProtocol::Udp, Some(30_001));
    let new = NewForward {
        device,
        protocols: &[protocol],
        port,
        to_port: 53,
        expires: None,
        ports: &ports,
        per_user: 5,
    };
    world.store.add_forward(&change, &new).unwrap();
    let _lease = world.lease(device);
    let at = world.tick();

    let kinds = |address, port| -> Vec<TraceKind> {
        let matches = world.store.trace(&query(at, address, port)).unwrap().matches;
        matches.iter().map(|found| found.kind).collect()
    };
    assert_eq!(kinds("192.0.2.7", 30_001), [TraceKind::Forward]);
    assert_eq!(kinds("192.0.2.7", 30_002), [], "nobody's, but kept for forwards");
    assert_eq!(kinds("192.0.2.1", 40_511), [TraceKind::Nat]);
    assert_eq!(kinds("192.0.2.1", 40_000), [], "nobody's, but kept for clients");
    assert_eq!(kinds("192.0.2.1", 30_001), [TraceKind::Host], "forwarded elsewhere only");
    for ours in ["192.0.2.1", "192.0.2.7"] {
        assert_eq!(kinds(ours, 65_000), [TraceKind::Host], "the gateway's own connections");
    }
    assert_eq!(kinds("192.0.2.8", 65_000), []);
}

#[test]
fn an_ipv6_address_is_its_clients_own_or_behind_it() {
    let mut world = world();
    let user = world.user("ann").id;
    let change = world.change();
    let prefixes = ["2001:db8:7::/48".parse().unwrap()];
    let new = NewDevice { name: "router", prefixes: &prefixes, ..Default::default() };
    let router = world.store.add_device(&change, user, &new).unwrap().id;
    let lease = world.lease(router);
    let (own, at) = (lease.inner().v6.unwrap().to_string(), world.tick());

    for address in [own.as_str(), "2001:db8:7::99"] {
        let trace = world.store.trace(&query(at, address, 443)).unwrap();
        assert_eq!(devices(&trace), [router], "{address}");
        assert_eq!(trace.matches[0].kind, TraceKind::Ipv6);
        assert_eq!(trace.matches[0].owner.as_ref().unwrap().inner.to_string(), address);
    }
    assert_eq!(devices(&world.store.trace(&query(at, "2001:db8:8::99", 443)).unwrap()), []);
}

#[test]
fn an_address_that_is_not_translated_is_its_clients_own() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop").id;
    let lease = world.lease(device);
    let (inner, at) = (lease.inner().v4.unwrap().to_string(), world.tick());

    let trace = world.store.trace(&query(at, &inner, 443)).unwrap();

    assert_eq!(devices(&trace), [device]);
    assert_eq!((trace.matches[0].kind, trace.epoch), (TraceKind::Ipv4, None));
}

#[test]
fn near_a_step_of_the_clock_the_search_is_wider_and_says_so() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let lease = world.lease(device);
    let ended = world.tick();
    lease.end(ended).unwrap();
    world.store.clock_stepped(after(ended, 60_000), -30_000).unwrap();
    world.store.clock_stepped(after(ended, 3 * 24 * 3_600_000), i64::MIN).unwrap();

    let traced = |millis| {
        let trace = world.store.trace(&query(after(ended, millis), "192.0.2.1", 40_500)).unwrap();
        (devices(&trace).len(), trace.clock_uncertainty_ms)
    };
    assert_eq!(traced(30_000), (1, 30_000), "30 s late, and the clock was wrong by as much");
    assert_eq!(traced(30_001), (0, 30_000));
    assert_eq!(traced(24 * 3_600_000), (0, 0), "far from both");
    assert_eq!(
        traced(2 * 24 * 3_600_000),
        (0, i64::MIN.unsigned_abs()),
        "a search is never wider than a day"
    );
}

#[test]
fn a_lease_that_was_written_anew_is_one_match() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let lease = world.lease(device);
    let rolled = world.shift(2 * 24 * 3_600_000);
    assert_eq!(world.store.roll(rolled).unwrap().leases, 1);

    let trace = world.store.trace(&query(rolled, "192.0.2.1", 40_500)).unwrap();

    assert_eq!((trace.matches.len(), trace.matches[0].from, trace.matches[0].to), (1, lease.started(), None));
}

#[test]
fn a_range_in_quarantine_is_still_its_owners() {
    let mut world = world();
    let device = world.device("ann", "laptop").id;
    let lease: Lease = world.lease(device);
    let (old, now) = (lease.block().unwrap(), world.tick());
    world.store.set_nat(Some(&layout(&["192.0.2.2"], 40_000..=40_511)), now).unwrap();
    let at = world.tick();
    let ended = world.tick();
    assert!(world.store.release_block(old, lease.inner().v4.unwrap(), ended).unwrap());
    let change = Change { actor: "tester", now: world.tick() };

    let found = |at, address| devices(&world.store.trace(&query(at, address, 40_500)).unwrap());
    assert_eq!(found(at, "192.0.2.1"), [device]);
    assert_eq!(found(at, "192.0.2.2"), [device]);
    assert_eq!(found(change.now, "192.0.2.1"), []);
    assert_eq!(found(change.now, "192.0.2.2"), [device]);
}
