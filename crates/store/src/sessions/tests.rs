use crate::testing::{World, issuer, key, serial, start};
use crate::{AccessFault, Page, Reason, Refusal, SessionId, SessionStart, StoreFault, Timestamp};

#[test]
fn a_session_is_written_as_it_was_begun() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let certificate = world.certificate(&device, 1);
    let now = world.tick();

    let session = world
        .store
        .open_session(&SessionStart {
            certificate: Some((&certificate.serial, &certificate.key)),
            ..start(device.id, now)
        })
        .unwrap();

    assert_eq!(world.store.session(session.id).unwrap().as_ref(), Some(&session));
    assert_eq!((session.gateway, session.device), (world.store.gateway(), device.id));
    assert_eq!((session.certificate, session.started, session.ended), (Some(serial(1)), now, None));
}

#[test]
fn a_sessions_id_begins_with_its_place_and_another_of_that_place_names_nothing() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let session = world.session(device.id);
    let now = world.tick();
    let other = SessionId::at(session.seq).unwrap();

    assert_eq!((session.id.seq(), other.seq()), (session.seq, session.seq));
    assert_ne!(session.id, other);
    assert_eq!(world.store.session(other).unwrap(), None);
    assert!(!world.store.close_session(other, now, "done").unwrap());
    assert_eq!(world.store.session(session.id).unwrap().unwrap().ended, None);
    let copy = "INSERT INTO sessions (seq, id, gateway_id, device_id, protocol, identity, transport, started) \
                SELECT seq + 1, id, gateway_id, device_id, protocol, identity, transport, started FROM sessions";
    assert!(world.meddle(copy).unwrap_err().contains("CHECK"), "ids are as unique as places");
}

#[test]
fn no_session_opens_after_a_revocation_has_returned() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let certificate = world.certificate(&device, 1);
    let change = world.change();
    let shown = Some((&certificate.serial, &certificate.key));
    let authorized = world.store.authorize(&certificate.serial, &certificate.key, change.now);
    assert!(authorized.is_ok(), "the handshake went well, then came the revocation");

    world.store.revoke_certificate(&change, &issuer(), &serial(1), Reason::Unspecified).unwrap();
    let session =
        world.store.open_session(&SessionStart { certificate: shown, ..start(device.id, change.now) });
    assert!(matches!(session, Err(AccessFault::Refused(Refusal::CertificateRevoked))));

    world.store.suspend_user(&change, device.user).unwrap();
    let session = world.store.open_session(&start(device.id, change.now));
    assert!(matches!(session, Err(AccessFault::Refused(Refusal::UserSuspended))));

    world.store.remove_user(&change, device.user).unwrap();
    let session = world.store.open_session(&start(device.id, change.now));
    assert!(matches!(session, Err(AccessFault::Refused(Refusal::UserRemoved))));
    assert_eq!(world.number("SELECT count(*) FROM sessions"), 0);
}

#[test]
fn a_session_is_not_opened_with_another_devices_certificate() {
    let mut world = World::new();
    let (laptop, phone) = (world.device("ann", "laptop"), world.device("ann", "phone"));
    world.certificate(&laptop, 1);
    let now = world.tick();

    let (serial, key) = (serial(1), key(1));
    let session = world
        .store
        .open_session(&SessionStart { certificate: Some((&serial, &key)), ..start(phone.id, now) });

    assert!(matches!(session, Err(AccessFault::Refused(Refusal::KeyMismatch))));
}

#[test]
fn a_session_ends_once() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let session = world.session(device.id).id;
    let (first, second) = (world.tick(), world.tick());

    assert!(world.store.close_session(session, first, "client left").unwrap());
    assert!(!world.store.close_session(session, second, "revoked").unwrap());

    let session = world.store.session(session).unwrap().unwrap();
    assert_eq!((session.ended, session.reason.as_deref()), (Some(first), Some("client left")));
}

#[test]
fn a_session_does_not_end_before_it_began() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let session = world.session(device.id);
    let before = world.shift(-60_000);

    world.store.close_session(session.id, before, "the clock was set back").unwrap();

    assert_eq!(world.store.session(session.id).unwrap().unwrap().ended, Some(session.started));
}

#[test]
fn open_sessions_are_found_by_user_and_page_by_page() {
    let mut world = World::new();
    let (ann, bob) = (world.device("ann", "laptop"), world.device("bob", "laptop"));
    let phone = world.device("ann", "phone");
    let sessions = [ann.id, bob.id, phone.id, ann.id].map(|device| world.session(device).id);
    let now = world.tick();
    world.store.close_session(sessions[3], now, "client left").unwrap();

    assert_eq!(world.store.open_sessions_of(ann.user).unwrap(), [sessions[0], sessions[2]]);
    let first = world.store.open_sessions(&Page::after(None, 2)).unwrap();
    let rest = world.store.open_sessions(&Page::after(first.next.clone(), 2)).unwrap();
    let ids: Vec<_> = first.items.iter().chain(&rest.items).map(|session| session.id).collect();
    assert_eq!((ids.as_slice(), rest.next), (&sessions[..3], None));
}

#[test]
fn what_ended_cannot_be_changed_and_what_is_open_cannot_be_deleted() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    let lease = world.lease(device.id);

    for sql in
        ["UPDATE sessions SET device_id = 'x', ended = 9999999", "UPDATE leases SET inner4 = '10.88.0.9'"]
    {
        assert!(world.meddle(sql).unwrap_err().contains("never changed"), "{sql}");
    }
    assert!(world.meddle("DELETE FROM sessions").unwrap_err().contains("is not deleted"));
    assert!(world.meddle("DELETE FROM leases").is_err());
    let (session, now) = (lease.session(), world.tick());
    lease.end(now).unwrap();
    world.store.close_session(session, now, "done").unwrap();
    for sql in ["UPDATE sessions SET ended = ended + 1", "UPDATE leases SET ended = NULL"] {
        assert!(world.meddle(sql).unwrap_err().contains("never changed"), "{sql}");
    }
}

#[test]
fn texts_have_a_largest_length() {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    let (session, now, long) = (world.session(device.id).id, world.tick(), "n".repeat(129));

    let opened = world.store.open_session(&SessionStart { protocol: &long, ..start(device.id, now) });
    assert!(matches!(opened, Err(AccessFault::Store(StoreFault::TooLong { .. }))));
    let closed = world.store.close_session(session, now, &long);
    assert!(matches!(closed, Err(StoreFault::TooLong { .. })));
}

#[test]
fn the_journal_never_learns_where_a_device_is_or_whom_it_talks_to() {
    let world = World::new();
    let state = world.store.state();
    let sql =
        "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'";
    let mut statement = state.db.raw().prepare(sql).unwrap();
    let columns: Vec<(String, String)> =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();

    assert!(columns.len() > 90, "{columns:?}");
    let telling = [
        "remote", "dest", "dst", "peer", "source", "src", "outer", "endpoint", "host", "url", "domain",
        "addr", "port",
    ];
    for (table, column) in columns {
        // The gateway's own port that was forwarded, and the device's own that it leads to.
        if table == "forwards" && (column == "port" || column == "to_port") {
            continue;
        }
        let name = column.replace("transport", "");
        assert!(!telling.iter().any(|word| name.contains(word)), "{table}.{column}");
        assert!(!name.split('_').any(|word| word == "ip"), "{table}.{column}");
    }
}

#[test]
fn a_purge_deletes_what_ended_before_and_nothing_else() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &["fd88::/64"]);
    let device = world.device("ann", "laptop");
    let long = world.device("ann", "server");
    let kept = world.lease(long.id);
    for _ in 0..1_200 {
        let lease = world.lease(device.id);
        let (session, now) = (lease.session(), world.shift(1));
        lease.end(now).unwrap();
        world.store.close_session(session, now, "done").unwrap();
    }
    let early = world.tick();
    assert_eq!(
        world.store.purge(early).unwrap(),
        Default::default(),
        "what is open keeps what comes after it"
    );
    let now = world.shift(2 * 24 * 3_600_000);
    assert_eq!(world.store.roll(now).unwrap().leases, 1);
    let cut = world.tick();
    let last = world.lease(device.id);

    let purged = world.store.purge(cut).unwrap();

    assert_eq!((purged.leases, purged.sessions), (1_201, 1_200));
    for lease in [&kept, &last] {
        assert!(world.store.session(lease.session()).unwrap().is_some());
        assert_eq!(world.store.leases(lease.device(), &Page::default()).unwrap().items.len(), 1);
    }
    assert_eq!(world.store.purge(cut).unwrap(), Default::default());
    assert_eq!(
        world.store.purge(Timestamp::from_millis(i64::MAX)).unwrap(),
        Default::default(),
        "open rows stay"
    );
}

#[test]
fn a_purge_keeps_a_session_as_long_as_its_lease() {
    let mut world = World::with_pools(&["10.88.0.0/24"], &[]);
    let device = world.device("ann", "laptop");
    let lease = world.lease(device.id);
    let now = world.tick();
    world.store.close_session(lease.session(), now, "done").unwrap();
    let cut = world.tick();

    assert_eq!(world.store.purge(cut).unwrap(), Default::default());

    let (session, now) = (lease.session(), world.tick());
    lease.end(now).unwrap();
    let cut = world.tick();
    let purged = world.store.purge(cut).unwrap();
    assert_eq!((purged.leases, purged.sessions), (1, 1));
    assert_eq!(world.store.session(session).unwrap(), None);
}
