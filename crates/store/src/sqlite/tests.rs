use std::cell::RefCell;
use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::json;

use crate::testing::{World, issuer, key, layout, pools, serial, start};
use crate::{
    Change, DeviceId, ForwardProtocol, LeaseRequest, NewForward, Page, Reason, Store, Timestamp, TraceQuery,
};

thread_local! {
    /// The statements this thread has used.
    pub(super) static USED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Statements that may look at every row of a table or sort what they find, each with the reason.
const EXCUSED: [(&str, &str); 10] = [
    ("FROM gateways", "one row"),
    ("UPDATE gateways", "one row"),
    ("FROM device_prefixes p", "site-to-site devices are few, and all their prefixes are wanted"),
    ("FROM users u CROSS JOIN devices d", "the devices of each user are few to be sorted"),
    ("WHERE c.device_id = ?1 ORDER BY", "a device has few certificates to be sorted"),
    ("SELECT min(coalesce(", "one row of constants"),
    ("WITH RECURSIVE numbers", "the numbers themselves; each is looked up"),
    ("SELECT count(DISTINCT f.port)", "a user has few forwards"),
    ("FROM epochs", "epochs are few"),
    ("WITH RECURSIVE addresses", "the addresses themselves; each is looked up"),
];

#[test]
fn every_statement_is_served_by_an_index() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    use_everything(&mut world);

    let used = USED.take();
    assert!(used.len() > 40, "only {} statements", used.len());
    let mut excuses: BTreeSet<&str> = EXCUSED.iter().map(|(part, _)| *part).collect();
    // The indexes of open rows have no others, so a scan of one reads what is wanted.
    let slow =
        |step: &String| step.contains("TEMP B-TREE") || step.starts_with("SCAN") && !step.contains("_open");
    for sql in &used {
        let plan = world.plan(sql);
        if plan.iter().any(slow) {
            let excuse = EXCUSED.iter().find(|(part, _)| sql.contains(part));
            let (part, _) = excuse.unwrap_or_else(|| panic!("{sql}\n{plan:#?}"));
            excuses.remove(part);
        }
    }
    assert!(excuses.is_empty(), "nothing to excuse: {excuses:?}");
}

fn use_everything(world: &mut World) {
    let page = Page::default();
    let device = world.device("ann", "laptop");
    let certificate = world.certificate(&device, 1);
    let lease = world.lease(device.id);
    let now = world.tick();
    let change = world.change();
    let store = &world.store;

    store.set_setting(&change, "a", Some("b")).unwrap();
    store.setting("a").unwrap();
    store.set_setting(&change, "a", None).unwrap();
    store.users(true, &page).unwrap();
    store.user_by_name("ann").unwrap();
    store.suspend_user(&change, device.user).unwrap();
    store.resume_user(&change, device.user).unwrap();
    store.device_by_name(device.user, "laptop").unwrap();
    store.devices(None, false, now, &page).unwrap();
    store.devices(Some(device.user), false, now, &page).unwrap();
    store.set_prefixes(&change, device.id, &["192.168.7.0/24".parse::<IpNet>().unwrap()]).unwrap();
    store.certificate(&issuer(), &serial(1)).unwrap();
    store.authorize(&certificate.serial, &certificate.key, now).unwrap();
    store.authorize(&serial(9), &key(9), now).unwrap_err();
    store.next_crl_number(&issuer()).unwrap();
    store.open_sessions(&page).unwrap();
    store.open_sessions_of(device.user).unwrap();
    store.session(lease.session()).unwrap();
    store.leases(device.id, &page).unwrap();
    store.leases_of_address("10.88.0.2".parse().unwrap(), now, now).unwrap();
    store.leases_of_address("fd88::2".parse().unwrap(), now, now).unwrap();
    let again = store.lease(&LeaseRequest { device: device.id, session: lease.session(), now }).unwrap();
    store.close_session(lease.session(), now, "done").unwrap();
    drop((lease, again));
    store.set_pools(pools(&["10.88.0.0/24"], &["fd88::/64"])).unwrap();
    use_nat(store, device.id);
    store.recover(now, 0).unwrap();
    store.heartbeat(now).unwrap();
    store.roll(now).unwrap();
    store.clock_stepped(now, -1_000).unwrap();
    store.verify_trail(|_| ()).unwrap();
    store.purge(change.now).unwrap();
    store.record(&change, "test.used", "everything", json!({})).unwrap();
    store.audit_trail(&page).unwrap();
    store.verify_audit().unwrap();
    store.revoke_certificate(&change, &issuer(), &serial(1), Reason::Superseded).unwrap();
    store.revocations(&issuer(), &page).unwrap();
    store.revoke_device(&change, device.id, Reason::Unspecified).unwrap();
    store.remove_user(&change, device.user).unwrap();
}

fn use_nat(store: &Store, device: DeviceId) {
    let now = Timestamp::from_millis(1_000_000);
    let change = Change { actor: "tester", now };
    store.set_nat(Some(&layout(&["192.0.2.1"], 40_000..=40_255)), now).unwrap();
    let session = store.open_session(&start(device, now)).unwrap().id;
    let lease = store.lease(&LeaseRequest { device, session, now }).unwrap();
    let old = lease.block().unwrap();
    store.set_nat(Some(&layout(&["192.0.2.1"], 40_001..=40_256)), now).unwrap();
    assert_eq!(store.quarantined().unwrap().len(), 1);
    store.blocks_now(None).unwrap();
    store.release_block(old, lease.inner().v4.unwrap(), now).unwrap();
    let ports = "30000-30009".parse().unwrap();
    let (protocol, expires) = (ForwardProtocol::Udp, Some(Timestamp::from_millis(1_000_001)));
    let new = NewForward {
        device,
        protocols: &[protocol],
        port: None,
        to_port: 80,
        expires,
        ports: &ports,
        per_user: 5,
    };
    let forward = store.add_forward(&change, &new).unwrap().remove(0);
    store.forward(forward.id).unwrap();
    store.forwards(None, &Page::default()).unwrap();
    for (address, port) in
        [("192.0.2.1", 40_255), ("192.0.2.1", forward.port), ("fd88::2", 1), ("192.0.2.1", 1)]
    {
        let (address, port) = (address.parse().unwrap(), Some(port));
        store.trace(&TraceQuery { at: now, address, port, protocol: None, tolerance_ms: 0 }).unwrap();
    }
    let later = Change { now: Timestamp::from_millis(1_000_002), ..change };
    assert_eq!(store.expire_forwards(&later).unwrap().len(), 1);
}
