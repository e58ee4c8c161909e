use serde_json::json;

use super::*;
use crate::testing::World;
use crate::{Cursor, Reason};

/// A world with a trail of a few rows.
fn trail() -> World {
    let mut world = World::new();
    let device = world.device("ann", "laptop");
    world.certificate(&device, 1);
    let change = world.change();
    world.store.revoke_device(&change, device.id, Reason::Superseded).unwrap();
    world.store.record(&change, "config.reload", "adit.toml", json!({ "sessions": 0 })).unwrap();
    world
}

fn places(world: &World) -> Vec<i64> {
    let rows = world.store.audit_trail(&Page::default()).unwrap().items;
    rows.iter().rev().map(|row| row.seq).collect()
}

/// Takes the guards away, as somebody would who has the file.
fn unguard(world: &World) {
    world.meddle("DROP TRIGGER audits_stay; DROP TRIGGER audits_remain").unwrap();
}

#[test]
fn every_change_leaves_a_row() {
    let world = trail();

    let rows = world.store.audit_trail(&Page::default()).unwrap().items;

    let told: Vec<_> = rows.iter().rev().map(|row| (row.action.as_str(), row.subject.as_str())).collect();
    let expected = [
        ("user.add", "ann"),
        ("device.add", "ann/laptop"),
        ("certificate.add", "ann/laptop"),
        ("device.revoke", "ann/laptop"),
        ("config.reload", "adit.toml"),
    ];
    assert_eq!(told, expected);
    assert!(rows.iter().all(|row| row.actor == "tester"));
    assert_eq!(rows[1].detail["reason"], "superseded");
    assert_eq!(rows[1].detail["certificates"], 1);
}

#[test]
fn a_change_that_fails_leaves_none() {
    let mut world = trail();
    let (change, before) = (world.change(), world.audits());

    world.store.add_user(&change, "ANN", "").unwrap_err();

    assert_eq!(world.audits(), before);
    assert!(matches!(world.store.verify_audit().unwrap(), AuditCheck::Intact { rows: 5, .. }));
}

#[test]
fn a_change_without_its_audit_row_is_not_made() {
    let mut world = trail();
    let change = Change { actor: &"a".repeat(129), ..world.change() };

    assert!(world.store.add_user(&change, "bob", "").is_err());

    assert_eq!(world.store.user_by_name("bob").unwrap(), None);
}

#[test]
fn the_trail_holds_after_a_kill_and_goes_on() {
    let world = trail();
    let AuditCheck::Intact { head: before, .. } = world.store.verify_audit().unwrap() else { panic!() };

    let mut world = world.after_a_kill();
    assert_eq!(world.store.verify_audit().unwrap(), AuditCheck::Intact { rows: 5, head: before.clone() });
    world.user("bob");

    let AuditCheck::Intact { rows: 6, head } = world.store.verify_audit().unwrap() else { panic!() };
    assert_ne!(head, before);
}

#[test]
fn the_database_refuses_to_change_the_trail() {
    let world = trail();

    for sql in ["UPDATE audits SET actor = 'nobody'", "DELETE FROM audits"] {
        assert!(world.meddle(sql).unwrap_err().contains("never"), "{sql}");
    }
}

#[test]
fn a_changed_field_is_found_in_whichever_row_it_is() {
    let fields =
        ["at = at + 1", "actor = 'nobody'", "action = 'user.none'", "subject = 'eve'", "detail = '{}'"];
    for field in fields {
        for place in places(&trail()) {
            let world = trail();
            unguard(&world);
            world.meddle(&format!("UPDATE audits SET {field} WHERE seq = {place}")).unwrap();

            let expected = AuditCheck::Broken { seq: Some(place), what: BrokenLink::Content };
            assert_eq!(world.store.verify_audit().unwrap(), expected, "{field}");
        }
    }
}

#[test]
fn a_text_moved_from_one_field_to_the_next_is_found() {
    let world = trail();
    unguard(&world);
    let place = places(&world)[0];
    world
        .meddle(&format!("UPDATE audits SET action = 'user.adda', subject = 'nn' WHERE seq = {place}"))
        .unwrap();

    let expected = AuditCheck::Broken { seq: Some(place), what: BrokenLink::Content };
    assert_eq!(world.store.verify_audit().unwrap(), expected);
}

#[test]
fn a_missing_row_is_found_at_the_row_after_it() {
    let world = trail();
    unguard(&world);
    let places = places(&world);
    world.meddle(&format!("DELETE FROM audits WHERE seq = {}", places[1])).unwrap();

    let expected = AuditCheck::Broken { seq: Some(places[2]), what: BrokenLink::Order };
    assert_eq!(world.store.verify_audit().unwrap(), expected);
}

#[test]
fn a_cut_off_end_is_found() {
    let world = trail();
    unguard(&world);
    world.meddle("DELETE FROM audits WHERE seq = (SELECT max(seq) FROM audits)").unwrap();

    assert_eq!(world.store.verify_audit().unwrap(), AuditCheck::Broken { seq: None, what: BrokenLink::End });
    world.meddle("DELETE FROM audits").unwrap();
    assert_eq!(world.store.verify_audit().unwrap(), AuditCheck::Broken { seq: None, what: BrokenLink::End });
}

#[test]
fn a_row_put_in_is_found() {
    let world = trail();
    let sql = "INSERT INTO audits SELECT max(seq) + 1, gateway_id, at, actor, action, subject, detail, prev_hash, hash \
               FROM audits";
    world.meddle(sql).unwrap();

    let place = places(&world)[5];
    let expected = AuditCheck::Broken { seq: Some(place), what: BrokenLink::Order };
    assert_eq!(world.store.verify_audit().unwrap(), expected);
}

#[test]
fn a_trail_longer_than_a_batch_is_verified_to_its_end() {
    let mut world = World::new();
    let change = world.change();
    let long = world.store.write(Durability::Soon, |sql| {
        for number in 0..2 * VERIFY_BATCH {
            append(sql, &change, &Entry::new("test.row", number.to_string(), json!(null)))?;
        }
        Ok::<_, StoreFault>(())
    });
    long.unwrap();

    let AuditCheck::Intact { rows, .. } = world.store.verify_audit().unwrap() else { panic!() };
    assert_eq!(rows, 2 * VERIFY_BATCH as u64);
    unguard(&world);
    world.meddle("UPDATE audits SET actor = '' WHERE seq = 1700").unwrap();
    let expected = AuditCheck::Broken { seq: Some(1_700), what: BrokenLink::Content };
    assert_eq!(world.store.verify_audit().unwrap(), expected);
}

#[test]
fn the_trail_is_read_newest_first_page_by_page() {
    let world = trail();
    let first = world.store.audit_trail(&Page::after(None, 3)).unwrap();
    let rest = world.store.audit_trail(&Page::after(first.next.clone(), 3)).unwrap();

    let read: Vec<i64> = first.items.iter().chain(&rest.items).rev().map(|row| row.seq).collect();
    assert_eq!((read, rest.next), (places(&world), None));
    let strange = Page::after(Some(Cursor::new("1; DROP TABLE audits")), 3);
    assert!(matches!(world.store.audit_trail(&strange), Err(StoreFault::Cursor)));
}

#[test]
fn the_encoding_is_the_documented_one() {
    let row = AuditText {
        seq: 7,
        at: Timestamp::from_millis(1_700_000_000_000),
        actor: "root".to_owned(),
        action: "user.add".to_owned(),
        subject: "ann".to_owned(),
        detail: "{\"id\":\"\u{e9}\"}".to_owned(),
        prev_hash: FIRST.to_owned(),
        hash: String::new(),
    };
    let gateway = "00112233445566778899aabbccddeeff".parse().unwrap();

    // Computed by hand: Python's hashlib over struct.pack(">Q", len) + text of the nine texts.
    assert_eq!(hash(gateway, &row), "b943ee8b68536937ab5eef95983b2e8fde38db9bd724c8b8a42e51375011bc4d");
}
