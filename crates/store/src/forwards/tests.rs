use std::collections::HashSet;

use super::*;
use crate::testing::World;
use crate::{Reason, TrailCheck};

fn ports() -> PortSet {
    "30000-30009".parse().unwrap()
}

fn wanted(device: DeviceId, ports: &PortSet) -> NewForward<'_> {
    let (protocols, port, to_port, expires) = (&[ForwardProtocol::Tcp], None, 22, None);
    NewForward { device, protocols, port, to_port, expires, ports, per_user: 100 }
}

/// Forwards one port of one protocol.
fn add(world: &World, change: &Change<'_>, new: &NewForward<'_>) -> Result<Forward, ForwardFault> {
    let mut added = world.store.add_forward(change, new)?;
    assert_eq!(added.len(), 1);
    Ok(added.remove(0))
}

fn open(world: &World) -> Vec<(String, u16)> {
    let rows = world.store.forwards(None, &Page::default()).unwrap().items;
    rows.iter().map(|row| (row.device.to_string(), row.forward.port)).collect()
}

#[test]
fn a_forward_is_written_with_an_audit_row_and_ends_once() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let (change, ports, audits) = (world.change(), ports(), world.audits());
    let new = NewForward { port: Some(30_004), ..wanted(device.id, &ports) };
    let forward = add(&world, &change, &new).unwrap();

    assert_eq!(
        (forward.port, forward.to_port, forward.started, forward.ended),
        (30_004, 22, change.now, None)
    );
    assert_eq!(world.store.forward(forward.id).unwrap(), Some(forward));
    assert_eq!(world.store.forwards_of(device.id).unwrap(), [forward]);
    let again = world.change();
    assert_eq!(world.store.end_forward(&again, forward.id).unwrap(), forward);
    assert!(matches!(world.store.end_forward(&again, forward.id), Err(ChangeFault::NotFound("forward"))));

    assert_eq!(world.store.forward(forward.id).unwrap(), None);
    let trail = world.store.audit_trail(&Page::default()).unwrap().items;
    assert_eq!(world.audits(), audits + 2);
    let said: Vec<_> = trail.iter().take(2).map(|row| (row.action.as_str(), row.subject.as_str())).collect();
    assert_eq!(said, [("forward.remove", "ann/laptop"), ("forward.add", "ann/laptop")]);
    assert_eq!(trail[1].detail["port"], 30_004);
}

#[test]
fn a_port_leads_to_one_device_and_protocols_are_apart() {
    let mut world = World::new();
    let (laptop, phone) = (world.device("ann", "laptop"), world.device("bob", "phone"));
    let (change, ports) = (world.change(), ports());
    let new = NewForward { port: Some(30_004), ..wanted(laptop.id, &ports) };
    add(&world, &change, &new).unwrap();

    let other = NewForward { device: phone.id, ..new };
    let fault = add(&world, &change, &other).unwrap_err();
    assert!(fault.to_string().starts_with("tcp port 30004 is forwarded to ann/laptop already"), "{fault}");
    let udp = NewForward { protocols: &[ForwardProtocol::Udp], ..other };
    add(&world, &change, &udp).unwrap();
    let outside = NewForward { port: Some(443), ..new };
    let fault = add(&world, &change, &outside).unwrap_err();
    assert!(fault.to_string().ends_with("choose one of 30000-30009"), "{fault}");
}

#[test]
fn without_a_port_any_free_one_is_chosen_until_there_is_none() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let (change, ports) = (world.change(), ports());
    let mut first = HashSet::new();
    for _ in 0..40 {
        let forward = add(&world, &change, &wanted(device.id, &ports)).unwrap();
        first.insert(forward.port);
        world.store.end_forward(&change, forward.id).unwrap();
    }
    assert!(first.len() > 3, "a choice that can be guessed: {first:?}");

    let given: HashSet<u16> =
        (0..10).map(|_| add(&world, &change, &wanted(device.id, &ports)).unwrap().port).collect();
    assert_eq!(given, ports.iter().collect());
    let fault = add(&world, &change, &wanted(device.id, &ports)).unwrap_err();
    assert!(matches!(fault, ForwardFault::Full { .. }), "{fault}");
}

#[test]
fn a_user_has_so_many_over_all_devices() {
    let mut world = World::new();
    let (laptop, phone) = (world.device("ann", "laptop"), world.device("ann", "phone"));
    let other = world.device("bob", "laptop");
    let (change, ports) = (world.change(), ports());
    let new = |device| NewForward { per_user: 2, ..wanted(device, &ports) };
    let first = add(&world, &change, &new(laptop.id)).unwrap();
    add(&world, &change, &new(phone.id)).unwrap();

    let fault = add(&world, &change, &new(laptop.id)).unwrap_err();

    assert!(fault.to_string().starts_with("ann has 2 forwarded ports"), "{fault}");
    add(&world, &change, &new(other.id)).unwrap();
    world.store.end_forward(&change, first.id).unwrap();
    add(&world, &change, &new(laptop.id)).unwrap();
}

#[test]
fn revoking_a_device_and_removing_a_user_end_their_forwards() {
    let mut world = World::new();
    let (laptop, phone) = (world.device("ann", "laptop"), world.device("ann", "phone"));
    let other = world.device("bob", "tablet");
    let (change, ports) = (world.change(), ports());
    for device in [laptop.id, phone.id, other.id] {
        add(&world, &change, &wanted(device, &ports)).unwrap();
    }
    let revoked = world.change();
    world.store.revoke_device(&revoked, phone.id, Reason::Unspecified).unwrap();
    assert_eq!(world.store.forwards_of(phone.id).unwrap(), []);
    assert_eq!(open(&world).len(), 2);
    let ended = format!("SELECT ended FROM forwards WHERE device_id = '{}'", phone.id);
    assert_eq!(world.number(&ended), revoked.now.as_millis());
    world.store.remove_user(&revoked, laptop.user).unwrap();
    assert_eq!(open(&world).iter().map(|(device, _)| device.as_str()).collect::<Vec<_>>(), ["tablet"]);
    let fault = add(&world, &revoked, &wanted(phone.id, &ports)).unwrap_err();
    assert!(matches!(fault, ForwardFault::Change(ChangeFault::NotFound("device"))), "{fault}");
    assert!(matches!(world.store.verify_trail(|_| ()).unwrap(), TrailCheck::Intact { .. }));
}

#[test]
fn a_forward_ends_when_its_time_is_over() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let (change, ports) = (world.change(), ports());
    let at = Timestamp::from_millis(change.now.as_millis() + 500);
    let new = NewForward { expires: Some(at), ..wanted(device.id, &ports) };
    let forward = add(&world, &change, &new).unwrap();
    let lasting = add(&world, &change, &wanted(device.id, &ports)).unwrap();
    let past = NewForward { expires: Some(change.now), ..new };
    assert!(matches!(add(&world, &change, &past), Err(ForwardFault::Expired)));
    assert_eq!(world.store.expire_forwards(&change).unwrap(), []);

    let later = world.change();
    assert_eq!(world.store.due_forwards(change.now).unwrap(), []);
    assert_eq!(world.store.due_forwards(later.now).unwrap(), [forward]);
    assert_eq!(world.store.expire_forwards(&later).unwrap(), [forward]);
    assert_eq!(world.store.due_forwards(later.now).unwrap(), []);

    assert_eq!(world.store.forwards_of(device.id).unwrap(), [lasting]);
    assert_eq!(
        world.number(&format!("SELECT ended FROM forwards WHERE seq = {}", forward.seq)),
        later.now.as_millis(),
        "until then it was open"
    );
}

#[test]
fn forwards_are_listed_by_protocol_and_port_page_by_page() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let (change, ports) = (world.change(), ports());
    for (protocol, port) in
        [(ForwardProtocol::Udp, 30_001), (ForwardProtocol::Tcp, 30_009), (ForwardProtocol::Tcp, 30_002)]
    {
        let new = NewForward { protocols: &[protocol], port: Some(port), ..wanted(device.id, &ports) };
        add(&world, &change, &new).unwrap();
    }
    let first = world.store.forwards(None, &Page::after(None, 2)).unwrap();
    let rest = world.store.forwards(None, &Page::after(first.next.clone(), 2)).unwrap();
    let listed: Vec<_> = first.items.iter().chain(&rest.items).map(|row| row.forward.port).collect();
    assert_eq!((listed.as_slice(), rest.next), ([30_002, 30_009, 30_001].as_slice(), None));
    let strange = Page::after(Some(Cursor::new("tcp/70000")), 2);
    assert!(matches!(world.store.forwards(None, &strange), Err(StoreFault::Cursor)));
}

#[test]
fn two_protocols_get_one_port_or_nothing() {
    use ForwardProtocol::{Tcp, Udp};
    let mut world = World::new();
    let (laptop, phone) = (world.device("ann", "laptop"), world.device("bob", "phone"));
    let (change, ports) = (world.change(), ports());
    let new = NewForward { protocols: &[Tcp, Udp], per_user: 2, ..wanted(laptop.id, &ports) };
    let added = world.store.add_forward(&change, &new).unwrap();
    assert_eq!(added.iter().map(|forward| forward.protocol).collect::<Vec<_>>(), [Tcp, Udp]);
    assert_eq!(added[0].port, added[1].port);
    assert_ne!(added[0].id, added[1].id);
    let row = world.store.forward_row(added[1].id).unwrap().unwrap();
    assert_eq!((row.user.as_str(), row.device.as_str(), row.forward), ("ann", "laptop", added[1]));

    let free = (30_000..30_010).find(|port| *port != added[0].port).unwrap();
    let udp = NewForward { protocols: &[Udp], port: Some(free), ..wanted(phone.id, &ports) };
    add(&world, &change, &udp).unwrap();
    let taken = NewForward { port: Some(free), ..new };
    let before = open(&world);
    assert!(matches!(
        world.store.add_forward(&change, &taken),
        Err(ForwardFault::Taken { protocol: Udp, .. })
    ));
    assert_eq!(open(&world), before, "not TCP alone either");

    // Both protocols of a port are one port of the two that a user may have.
    let more = || world.store.add_forward(&change, &new);
    more().unwrap();
    assert!(matches!(more(), Err(ForwardFault::TooMany { limit: 2, .. })));
    let of = |user| world.store.forwards(user, &Page::default()).unwrap().items.len();
    assert_eq!((of(None), of(Some(laptop.user)), of(Some(phone.user))), (5, 4, 1));
}
